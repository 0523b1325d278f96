"""The page: its structure everywhere, its behaviour in a real browser where one is installed."""

import base64
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.annotations import AnnotatedImage
from metrics.published import PUBLISHED
from utils.inference import Caption
from utils.report import ENDS, MIDDLE, Example, write_report

HOSTILE = [
    "<script>window.hacked = 1</script>",
    "\"><img src=x onerror='window.hacked = 1'>",
    "' onmouseover='window.hacked = 1' x='",
    "{{protocol}} &lt;b&gt; \\1 \\g<0> \x00 \u2028",
    "word " * 10_000,
    "w" * 10_000,
    "",
]


def result_of(examples: list[Example], **protocol: Any) -> dict[str, Any]:
    """As eval.py writes it, with made-up scores."""
    test: dict[str, Any] = {"difference": 0.012, "low": -0.01, "high": 0.03, "p": 0.2, "verdict": "noise"}
    return {
        "metrics": {"Bleu_4": 0.3125, "ROUGE_L": 0.4987, "CIDEr": 0.8517},
        "intervals": {"Bleu_4": (0.2983, 0.3343), "ROUGE_L": (0.4703, 0.5025), "CIDEr": (0.8066, 0.8922)},
        "classes": {"airport": {"images": 2, "CIDEr": 1.0}, "river<i>": {"images": 1, "CIDEr": 0.25}},
        "diversity": {"distinct_1": 0.25, "vocabulary": 140.0, "length": 10.21, "self_cider_of_beam": 0.5},
        "comparison": {"baseline": "<b>.json", "baseline_sha256": "0" * 64, "metrics": {"CIDEr": test}},
        "captions": [],
        "protocol": {
            "dataset": "RSICD",
            "split": "val",
            "images": len(examples),
            "results": "<i>.json",
            "unavailable": {"METEOR": "no <Java>"},
            "versions": {"torch": "1&2"},
            **protocol,
        },
    }


def example(number: int, caption: str, cider: float, folder: Path, look: Caption | None = None) -> Example:
    image = AnnotatedImage(number, f"airport_{number}.png", "val", ("a road", "a road", "a <u>river</u>"))
    return Example(image, folder / image.filename, caption, cider, look)


@pytest.fixture
def looked(tmp_path: Path) -> list[Example]:
    """30 images with captions of three words, each of which looked at another cell of a 2 x 2 grid."""
    attention = np.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]], np.float32)
    found = []
    for number in range(30):
        words = ["a", "long", "road" + "s" * (number % 4)]
        found.append(
            example(number, " ".join(words), (number * 7 % 30) / 10, tmp_path, Caption(words, -1.0, attention))
        )
        Image.new("RGB", (64, 48), (number * 8, 90, 120)).save(found[-1].path)
    return found


class Page(HTMLParser):
    """Every tag with its attributes, and the text outside of scripts and styles."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.inside = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside not in ("script", "style"):
            self.text += data

    def all(self, tag: str, name: str = "") -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == tag and (not name or name in (a.get("class") or "").split())]


def test_the_page_holds_what_it_promises(looked: list[Example], tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", result_of(looked), looked)
    page = Page(tmp_path / "r.html")
    assert "{{" not in page.text
    for text in ("85.17", "80.66", "89.22", "+1.20", "-1.00 to +3.00", "noise", "no <Java>", "All 30 images", "1&2"):
        assert text in page.text, text
    assert "Published, not re-run here" in page.text and "not to be compared" in page.text
    for row in PUBLISHED["RSICD"]:
        assert row.method in page.text and f"{row.metrics['CIDEr']:.2f}" in page.text
    ciders = [float(card["data-cider"] or 0) for card in page.all("article")]
    assert ciders[:6] == pytest.approx([2.9, 2.8, 2.7, 0.0, 0.1, 0.2])
    assert ciders[6:] == pytest.approx([i / 10 for i in range(29, -1, -1)])
    widths = [bar["style"] for bar in page.all("i") if "style" in bar]
    assert widths == ["width:100.0%", "width:25.0%"]
    write_report(tmp_path / "r.html", result_of(looked, split="test"), looked)
    assert "not to be compared" not in Page(tmp_path / "r.html").text
    write_report(tmp_path / "r.html", result_of(looked, dataset="synthetic"), looked)
    assert "Published" not in Page(tmp_path / "r.html").text


def test_the_page_loads_nothing(looked: list[Example], tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", result_of(looked), looked)
    page = Page(tmp_path / "r.html")
    links = [value or "" for _, found in page.tags for name, value in found.items() if name in ("src", "href")]
    assert links and all(link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"url\(|@import|fetch\(|https?:", (tmp_path / "r.html").read_text())


def test_attention_is_the_model_s(looked: list[Example], tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", result_of(looked), looked)
    caption = Page(tmp_path / "r.html").all("p", "words")[0]
    levels = np.frombuffer(base64.b64decode(caption["data-attention"] or ""), np.uint8).reshape(3, 4)
    low, high = float(caption["data-low"] or 0), float(caption["data-high"] or 0)
    assert caption["data-side"] == "2"
    # in multiples of an even look, 1/4; a byte holds 1/255 of the range
    step = (high - low) / 255
    assert looked[0].look is not None
    np.testing.assert_allclose(low + levels * step, looked[0].look.attention * 4, rtol=0, atol=step / 2 + 1e-4)


def test_attention_over_regions_is_painted_through_them(looked: list[Example], tmp_path: Path) -> None:
    masks = np.zeros((4, 64, 64), bool)  # two regions that share the image, one upon them, one that is missing
    masks[0, :, :32], masks[1, :, 32:], masks[2, 16:48, 16:48] = True, True, True
    write_report(tmp_path / "r.html", result_of(looked), [looked[0]._replace(masks=lambda: masks)])
    page = Page(tmp_path / "r.html")
    caption = page.all("p", "words")[0]
    assert caption["data-side"] == "32" and len(page.all("img", "lines")) == 1
    levels = np.frombuffer(base64.b64decode(caption["data-attention"] or ""), np.uint8).reshape(3, 32, 32)
    low, high = float(caption["data-low"] or 0), float(caption["data-high"] or 0)
    found = low + levels * (high - low) / 255
    # in multiples of an even look at the three regions that are there
    for (y, x), expected in {(0, 0): 2.1, (0, 31): 0.3, (16, 12): 2.4, (16, 20): 0.6}.items():
        assert found[0, y, x] == pytest.approx(expected, abs=(high - low) / 510 + 1e-3)


def test_without_attention_or_images_the_page_says_nothing_of_them(tmp_path: Path) -> None:
    for count in (1, 2):
        examples = [example(i, "a road", 0.0, tmp_path) for i in range(count)]
        result = result_of(examples, dataset="synthetic") | {"classes": {}}
        del result["comparison"]
        write_report(tmp_path / "r.html", result, examples)
        page = Page(tmp_path / "r.html")
        for absent in ("looked", "attention", "baseline", "classes"):
            assert absent not in page.text
        assert not page.all("canvas") and not page.all("img") and "image cannot be read" in page.text


def test_a_large_split_is_shown_in_part(tmp_path: Path) -> None:
    examples = [example(i, f"caption {i}", float(i), tmp_path) for i in range(1000)]
    for name in ("one.html", "two.html"):
        write_report(tmp_path / name, result_of(examples), examples)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    page = Page(tmp_path / "one.html")
    shown = [float(card["data-cider"] or 0) for card in page.all("article", "card")[6:]]
    assert len(shown) == len(set(shown)) == 2 * ENDS + MIDDLE
    assert shown[:ENDS] == [999.0 - i for i in range(ENDS)]
    assert shown[-ENDS:] == [ENDS - 1.0 - i for i in range(ENDS)]
    assert "240 of 1,000 images: the best 60, the worst 60, and 120 of the others at random" in page.text


def test_hostile_words_stay_words(tmp_path: Path) -> None:
    examples = [example(i, text, 0.1 * i, tmp_path) for i, text in enumerate(HOSTILE)]
    attention = np.full((2, 4), 0.25)
    words = ["<script>window.hacked = 1</script>", "<b onclick='window.hacked = 1'>"]
    examples.append(example(99, " ".join(words), 0.5, tmp_path, Caption(words, -1.0, attention)))
    write_report(tmp_path / "r.html", result_of(examples), examples)
    page = Page(tmp_path / "r.html")
    assert len(page.all("script")) == 1
    assert not [name for _, found in page.tags for name in found if name.startswith("on")]
    assert not page.all("u") and not page.all("b", "json")
    for text in (*HOSTILE[:3], HOSTILE[4], HOSTILE[5], *words, "{{protocol}} &lt;b&gt;", "<b>.json", "river<i>"):
        assert text in page.text, text[:50]


# --- in a browser ---


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium on PATH (apt-get install chromium)")
    quiet = ("background-networking", "component-update", "sync", "gpu", "quic")
    with api.sync_playwright() as playwright:
        flags = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium: Any) -> Iterator[Any]:
    """`opened(path, width=.., ..)` is a page in a fresh context; whatever it complains of or asks for is a failure."""
    contexts: list[Any] = []
    trouble: list[str] = []

    def watch(text: str, wrong: bool) -> None:
        if wrong:
            trouble.append(text)

    def open_page(path: Path, width: int = 1200, **options: Any) -> Any:
        context = chromium.new_context(viewport={"width": width, "height": 900}, reduced_motion="reduce", **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: watch(message.text, message.type == "error"))
        page.on("pageerror", lambda error: watch(str(error), True))
        page.on("request", lambda r: watch(r.url, not r.url.startswith(("file:", "data:"))))
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert trouble == []


def shown(page: Any, what: str) -> list[Any]:
    script = "(cards, what) => cards.filter((card) => !card.hidden).map((card) => card.dataset[what])"
    return page.eval_on_selector_all("#gallery .card", script, what)


def test_the_gallery_sorts_and_goes_on(opened: Any, looked: list[Example], tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", result_of(looked), looked)
    page = opened(tmp_path / "r.html")
    ciders = sorted((example.cider for example in looked), reverse=True)
    assert [float(x) for x in shown(page, "cider")] == pytest.approx(ciders[:24])
    page.get_by_role("button", name="Show more").click()
    assert [float(x) for x in shown(page, "cider")] == pytest.approx(ciders)
    assert page.get_by_role("button", name="Show more").count() == 0
    page.get_by_label("Sort by").select_option("CIDEr, lowest first")
    assert [float(x) for x in shown(page, "cider")] == pytest.approx(ciders[::-1][:24])
    page.get_by_label("Sort by").select_option("file name")
    assert shown(page, "name") == [f"airport_{i}.png" for i in range(24)]
    for label, backwards in (("length, longest first", True), ("length, shortest first", False)):
        page.get_by_label("Sort by").select_option(label)
        lengths = list(map(int, shown(page, "length")))
        assert lengths == sorted(lengths, reverse=backwards)


def test_words_show_where_the_model_looked(opened: Any, looked: list[Example], tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", result_of(looked), looked)
    page = opened(tmp_path / "r.html")
    card = page.locator("#gallery .card").first
    words, picture = card.locator(".words button"), card.locator(".picture")
    opacity = "node => Number(getComputedStyle(node.querySelector('canvas')).opacity)"
    brightest = """node => {
      const canvas = node.querySelector("canvas");
      const bytes = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
      const alphas = [...bytes].filter((_, i) => i % 4 == 3);
      return alphas.indexOf(Math.max(...alphas));
    }"""
    assert picture.evaluate(opacity) == 0
    for place, cell in ((0, 0), (1, 1)):
        words.nth(place).hover()
        assert picture.evaluate(opacity) == 1
        assert picture.evaluate(brightest) == cell
        assert picture.locator(".peak").inner_text() == "peak 2.8 × even"
    words.nth(2).hover()
    assert picture.locator(".peak").inner_text() == "peak 1.0 × even"
    page.mouse.move(1, 1)
    assert picture.evaluate(opacity) == 0

    words.nth(1).click()  # keeps the map
    page.mouse.move(1, 1)
    assert picture.evaluate(opacity) == 1 and picture.evaluate(brightest) == 1
    words.nth(1).click()
    page.mouse.move(1, 1)
    assert picture.evaluate(opacity) == 0

    page.get_by_label("Sort by").focus()
    page.keyboard.press("Tab")
    assert words.nth(0).evaluate("node => node === document.activeElement")
    assert picture.evaluate(brightest) == 0 and picture.evaluate(opacity) == 1
    page.keyboard.press("ArrowRight")
    assert words.nth(1).evaluate("node => node === document.activeElement")
    assert picture.evaluate(brightest) == 1
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    assert card.locator("[aria-pressed=true]").count() == 0
    page.keyboard.press("Tab")  # on to the next caption, not the next word
    assert (
        page.locator("#gallery .card")
        .nth(1)
        .locator("button")
        .evaluate_all("nodes => nodes.includes(document.activeElement)")
    )
    assert picture.evaluate(opacity) == 0


def test_a_tap_shows_where_the_model_looked(opened: Any, looked: list[Example], tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", result_of(looked), looked)
    page = opened(tmp_path / "r.html", width=390, has_touch=True, is_mobile=True)
    card = page.locator("#gallery .card").first
    card.locator(".words button").nth(1).tap()
    assert "looking" in (card.locator(".picture").get_attribute("class") or "")
    card.locator(".words button").nth(1).tap()
    assert "looking" not in (card.locator(".picture").get_attribute("class") or "")


def test_hostile_words_do_nothing_and_fit(opened: Any, tmp_path: Path) -> None:
    examples = [example(i, text, 0.1 * i, tmp_path) for i, text in enumerate(HOSTILE)]
    write_report(tmp_path / "r.html", result_of(examples), examples)
    page = opened(tmp_path / "r.html")
    for width in (320, 390, 1200):
        page.set_viewport_size({"width": width, "height": 900})
        for caption in page.locator("#gallery .caption").all():
            caption.hover()
        assert page.evaluate("window.hacked") is None
        assert page.evaluate("document.documentElement.scrollWidth") == width
        for caption in page.locator("#gallery .caption").all():
            assert caption.evaluate("node => node.scrollWidth <= node.clientWidth")
        texts = page.locator("#gallery .caption").all_text_contents()
        assert HOSTILE[0] in texts and HOSTILE[1] in texts and HOSTILE[5] in texts


def test_the_page_reads_without_scripts(opened: Any, looked: list[Example], tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", result_of(looked), looked)
    page = opened(tmp_path / "r.html", java_script_enabled=False)
    assert page.locator("#gallery .card").last.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(opened: Any, looked: list[Example], tmp_path: Path, scheme: str) -> None:
    """WCAG AA: a contrast of 4.5 for every colour that words have."""
    write_report(tmp_path / "r.html", result_of(looked), looked)
    page = opened(tmp_path / "r.html", color_scheme=scheme)
    colours = page.evaluate("""() => {
      const of = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
      return Object.fromEntries(["paper", "card", "ink", "soft", "accent", "gain", "loss"].map((n) => [n, of(n)]));
    }""")

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for below in ("paper", "card"):
        for above in ("ink", "soft", "accent", "gain", "loss"):
            dark, light = sorted((luminance(colours[below]), luminance(colours[above])))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (below, above)
