"""The page in a real browser: upload, caption, attention that follows the word, messages, a phone's width."""

import base64
import io
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import app
from data.errors import UserError
from utils.checkpoint import SHIPPED
from utils.inference import Caption

ROOT = Path(__file__).resolve().parent.parent


def test_words_of_a_checkpoint_are_escaped() -> None:
    words = ["<script>alert(1)</script>", "\"><img onerror='x'>"]
    looked = np.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1]], np.float32)
    captions = [Caption(words, -0.5, looked), Caption(words[:1], -1, looked[:1])]
    page = app.render(np.zeros((32, 32, 3), np.uint8), captions, None)
    tags: list[tuple[str, dict[str, str | None]]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append((tag, dict(attrs)))

    Reader().feed(page)
    assert "script" not in {tag for tag, _ in tags} and not any("onerror" in a for _, a in tags)
    assert [a["data-key"] for tag, a in tags if tag == "button"] == ["0-0", "0-1", "1-0"]
    assert [a["data-key"] for tag, a in tags if tag == "img" and "data-key" in a] == ["0-0", "0-1", "1-0"]
    assert "61%" in page and "37%" in page  # exp of the scores


def test_regions_have_outlines() -> None:
    masks = np.zeros((2, 32, 32), bool)
    masks[0, :, :16], masks[1, :, 16:] = True, True
    page = app.render(np.zeros((32, 32, 3), np.uint8), [Caption(["road"], -1, np.array([[0.9, 0.1]]))], masks)
    sources = re.findall(r'class="(edges|over)"[^>]*base64,([^"]+)"', page)
    edges, over = (np.asarray(Image.open(io.BytesIO(base64.b64decode(source)))) for _, source in sources)
    assert edges[:, 15, 3].all() and edges[..., 3].astype(bool).sum() == 32
    assert over[:, :16, 3].min() > 150 and over[:, 16:, 3].max() == 0  # only what is looked at more than evenly


def test_too_many_pixels_are_refused_before_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "MAX_PIXELS", 100)
    Image.new("RGB", (20, 10)).save(tmp_path / "large.png")
    with pytest.raises(UserError, match="20 x 10 pixels are too many"):
        app.look(tmp_path / "large.png", SHIPPED)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(ROOT / "app.py"), "--port", str(port), str(SHIPPED[0])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    end = time.monotonic() + 240
    while time.monotonic() < end:
        assert process.poll() is None, process.stdout and process.stdout.read()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium on PATH (apt-get install chromium)")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


def test_the_page_does_what_it_promises(browser: Any, address: str, scenes: Path, tmp_path: Path) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.set_default_timeout(120_000)
    outside: list[str] = []
    page.on("request", lambda r: None if re.match(rf"{address}|data:|blob:", r.url) else outside.append(r.url))
    page.goto(address)
    image = min((scenes / "RSICD_images").iterdir())

    # an upload is captioned, with what else the beam found
    page.set_input_files("input[type=file]", image)
    words = page.locator("#result li:first-child button")
    words.nth(1).wait_for()
    assert page.locator("#result li").count() == 5
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing hangs out of a phone

    # the attention follows the pointer, the finger and the slider
    def shown() -> list[str]:
        return page.locator("#result img.over.on").evaluate_all("all => all.map(o => o.dataset.key + o.src)")

    assert shown() == []
    words.nth(0).hover()
    first = shown()
    words.nth(1).click()
    second = shown()
    assert len(first) == len(second) == 1 and first[0][:3] == "0-0" and second[0][:3] == "0-1"
    assert first[0][3:] != second[0][3:]
    slider = page.locator("#result input[type=range]")
    assert slider.input_value() == "2"
    slider.hover()  # away from the words: where scrolling moves one under the pointer, that word is looked at
    slider.fill("1")
    assert shown() == first
    slider.fill("0")
    assert shown() == []
    page.locator("#result li:nth-child(2) button").first.click()
    assert shown()[0][:3] == "1-0"

    # an example, another upload
    before = page.locator("#result .stage img").first.get_attribute("src")
    page.locator("button.thumbnail-item").first.click()
    changed = "before => document.querySelector('#result .stage img').src !== before"
    page.wait_for_function(changed, arg=before)
    page.locator("#result li:first-child button").first.hover()
    assert len(shown()) == 1

    # a broken file gets a message, not a caption and not a path of the server
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    page.get_by_label("Clear").first.click()
    page.set_input_files("input[type=file]", broken)
    message = page.get_by_text("broken.png: not a readable image")
    message.wait_for()
    assert "/tmp" not in message.inner_text()
    page.close()
    assert outside == []  # nothing comes from elsewhere


def test_a_port_that_is_taken_ends_with_one_line(address: str) -> None:
    command = [sys.executable, str(ROOT / "app.py"), "--port", address.rpartition(":")[2], str(SHIPPED[0])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "choose another --port" in done.stderr


def test_a_checkpoint_that_is_none_ends_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_text("no")
    command = [sys.executable, str(ROOT / "app.py"), str(tmp_path / "x.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "not a safetensors" in done.stderr
