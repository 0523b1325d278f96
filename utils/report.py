"""One self-contained HTML page of an evaluation: scores beside published ones, images, captions, attention."""

import base64
import io
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from data.annotations import AnnotatedImage
from data.errors import UserError
from data.files import write_whole
from data.images import read_image
from data.tokenizer import tokenize
from metrics.published import PUBLISHED
from utils.inference import Caption
from utils.visualize import outlines, paint

TEMPLATE = Path(__file__).with_name("report.html")
ENDS, MIDDLE = 60, 120  # of a large split: so many of the best and of the worst, and of the others at random
SIDE, QUALITY = 256, 72  # of the embedded JPEGs: pixels, and 1 to 95
PAINTED = 32  # pixels a side of the attention over regions
TOP = 3  # cards of the very best and the very worst

HEADLINE = ("CIDEr", "Bleu_4", "METEOR", "ROUGE_L")
LABELS = {**{f"Bleu_{n}": f"BLEU-{n}" for n in range(1, 5)}, "ROUGE_L": "ROUGE-L"}
VARIETY = {
    "length": ("Words a caption", "mean", ".2f"),
    "length_std": ("Their spread", "standard deviation of words a caption", ".2f"),
    "vocabulary": ("Vocabulary", "different words used", ",.0f"),
    "vocabulary_of_train": ("Of train's vocabulary", "share that is used", ".1%"),
    "rare_recall": ("Rare words", "share said of those in fewer than 1 % of train captions", ".1%"),
    "unique": ("Different captions", "share of all", ".1%"),
    "seen_in_train": ("Seen in train", "share of captions that stand there word by word", ".1%"),
    "distinct_1": ("Distinct-1", "different words, share of all", ".1%"),
    "distinct_2": ("Distinct-2", "different word pairs, share of all", ".1%"),
    "self_cider_of_beam": ("Self-CIDEr", "how far the captions of an image's beam differ, 0 to 1", ".2f"),
}
"""What is said of each measure of diversity, in this order: its name, its meaning, how it is printed."""


class Example(NamedTuple):
    """An image, its file, its caption with its CIDEr, and, where a model made it, where each word looked.

    `masks` gives the regions that it looked at, as `Panel` has them.
    """

    image: AnnotatedImage
    path: Path
    caption: str
    cider: float
    look: Caption | None = None
    masks: Callable[[], np.ndarray | None] = lambda: None


def write_report(path: Path, result: Mapping[str, Any], examples: Sequence[Example]) -> None:
    """Write the page: `result` is what `eval.py --output` writes, `examples` its images in any order.

    The page loads nothing from anywhere. Of a split of more than 240 images it shows the 60 with the highest CIDEr, the
    60 with the lowest and 120 of the others, drawn with seed 0. Images that cannot be read are left out, their captions
    are not. Raises `UserError` where the file cannot be written.
    """
    protocol = result["protocol"]
    ranked = sorted(examples, key=lambda example: (-example.cider, example.image.filename))
    shown = choose(ranked)
    cards = {example.image.imgid: _card(example) for example in shown}
    extreme = min(TOP, len(ranked) // 2)
    best, worst = ("".join(cards[e.image.imgid] for e in part) for part in (ranked[:extreme], ranked[-extreme:][::-1]))
    fields = {
        "title": escape(f"{protocol['dataset']} {protocol['split']}"),
        "source": escape(str(protocol.get("checkpoint") or protocol.get("results"))),
        "images": f"{len(examples):,} image" + "s" * (len(examples) > 1),
        "headline": _headline(result),
        "scores": _scores(result),
        "comparison": _comparison(result.get("comparison")),
        "classes": _classes(result["classes"], len(examples)),
        "diversity": _diversity(result["diversity"]),
        "extremes": _section("The best and the worst", _rows(best, worst)) if extreme else "",
        "gallery": "".join(cards[example.image.imgid] for example in shown),
        "shown": _shown(len(shown), len(examples)),
        "attention": _LEGEND if any(example.look for example in shown) else "",
        "protocol": _protocol(protocol),
    }
    page = re.sub(r"\{\{(\w+)\}\}", lambda found: fields[found[1]], TEMPLATE.read_text(encoding="utf-8"))
    write_whole(path, page.encode("utf-8", "replace"))


def choose(ranked: Sequence[Example]) -> list[Example]:
    """What the gallery holds of examples sorted by score, in their order."""
    if len(ranked) <= 2 * ENDS + MIDDLE:
        return list(ranked)
    middle = random.Random(0).sample(range(ENDS, len(ranked) - ENDS), MIDDLE)
    places = [*range(ENDS), *sorted(middle), *range(len(ranked) - ENDS, len(ranked))]
    return [ranked[place] for place in places]


def _shown(shown: int, images: int) -> str:
    if shown == images:
        return f"All {images:,} images." if images > 1 else "The one image."
    return f"{shown} of {images:,} images: the best {ENDS}, the worst {ENDS}, and {MIDDLE} of the others at random."


def _section(title: str, body: str) -> str:
    name = title.split()[-1].lower()
    return f'<section id="{name}"><h2>{title}</h2>{body}</section>'


def _headline(result: Mapping[str, Any]) -> str:
    boxes = []
    for name in HEADLINE:
        if name in result["metrics"]:
            low, high = (f"{100 * end:.1f}" for end in result["intervals"][name])
            value = f"{100 * result['metrics'][name]:.1f}"
            label = LABELS.get(name, name)
            boxes.append(f"<div><dt>{label}</dt><dd><b>{value}</b><span>{low} – {high}</span></dd></div>")
    return f'<dl class="headline">{"".join(boxes)}</dl>'


def _scores(result: Mapping[str, Any]) -> str:
    metrics, protocol = result["metrics"], result["protocol"]
    published = PUBLISHED.get(protocol["dataset"], ())
    head = "".join(f"<th>{LABELS.get(name, name)}</th>" for name in metrics)
    mine = "".join(
        f"<td>{100 * value:.2f}<small>{100 * result['intervals'][name][0]:.2f} –<br>"
        f"{100 * result['intervals'][name][1]:.2f}</small></td>"
        for name, value in metrics.items()
    )
    rows = f'<tr class="mine"><th scope="row">This evaluation<small>95 % interval</small></th>{mine}</tr>'
    if published:
        mark = "Published, not re-run here · test split"
        mark += "" if protocol["split"] == "test" else ", which is not this one: not to be compared"
        rows += f'<tr class="mark"><th colspan="{len(metrics) + 1}"><span>{mark}</span></th></tr>'
    for method, built_of, scores in published:
        cells = "".join(f"<td>{scores[name]:.2f}</td>" if name in scores else "<td>–</td>" for name in metrics)
        rows += f'<tr class="published"><th scope="row">{method}<small>{built_of}</small></th>{cells}</tr>'
    missing = "".join(
        f"<p>{escape(name)} is not there: {escape(reason)}</p>" for name, reason in protocol["unavailable"].items()
    )
    note = f'<div class="note"><p>Scores are multiplied by 100.</p>{missing}</div>'
    return _table(f"<td></td>{head}", rows) + note


def _table(head: str, rows: str) -> str:
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f'<div class="wide" tabindex="0" role="region" aria-label="table">{table}</div>'


def _comparison(comparison: Mapping[str, Any] | None) -> str:
    if comparison is None:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{LABELS.get(name, name)}</th><td class="verdict {test["verdict"]}">{test["verdict"]}</td>'
        f"<td>{100 * test['difference']:+.2f}</td>"
        f"<td>{100 * test['low']:+.2f} to {100 * test['high']:+.2f}</td><td>{test['p']:.3f}</td></tr>"
        for name, test in comparison["metrics"].items()
    )
    note = (
        f"This evaluation minus <code>{escape(comparison['baseline'])}</code>, x 100, on the same images. Noise is a "
        "difference that swapping captions between the two at random reaches in 5 % of trials or more."
    )
    table = _table("<td></td><th></th><th>difference</th><th>95 % interval</th><th>p</th>", rows)
    return _section("Against the baseline", f'{table}<div class="note"><p>{note}</p></div>')


def _classes(classes: Mapping[str, Mapping[str, float]], images: int) -> str:
    if not classes:
        return ""
    highest = max(scores["CIDEr"] for scores in classes.values()) or 1.0
    rows = "".join(
        f"<li><span>{escape(name)}<small>{scores['images']}</small></span>"
        f'<span class="bar"><i style="width:{100 * scores["CIDEr"] / highest:.1f}%"></i></span>'
        f"<span>{100 * scores['CIDEr']:.1f}</span></li>"
        for name, scores in sorted(classes.items(), key=lambda item: -item[1]["CIDEr"])
    )
    without = images - sum(int(scores["images"]) for scores in classes.values())
    note = "CIDEr x 100; the small number counts images."
    note += f" {without} images carry no class in their names." if without else ""
    return _section("Scene classes", f'<ol class="bars">{rows}</ol><div class="note"><p>{note}</p></div>')


def _diversity(varied: Mapping[str, float]) -> str:
    boxes = "".join(
        f"<div><dt>{label}</dt><dd><b>{varied[name]:{form}}</b><span>{meaning}</span></dd></div>"
        for name, (label, meaning, form) in VARIETY.items()
        if name in varied
    )
    note = '<div class="note"><p>There are no train captions here to compare with.</p></div>'
    return _section("Diversity", f'<dl class="facts">{boxes}</dl>{"" if "seen_in_train" in varied else note}')


def _rows(best: str, worst: str) -> str:
    return f'<h3>Highest CIDEr</h3><div class="cards">{best}</div><h3>Lowest CIDEr</h3><div class="cards">{worst}</div>'


def _card(example: Example) -> str:
    masks = example.masks() if example.look else None
    name = escape(example.image.filename)
    words = len(tokenize(example.caption))
    references = "".join(
        f"<li>{escape(text)}{f' <small>× {count}</small>' if count > 1 else ''}</li>"
        for text, count in Counter(caption.strip() for caption in example.image.captions).items()
    )
    return (
        f'<article class="card" data-cider="{example.cider:.6f}" data-length="{words}" data-name="{name}">'
        f"{_picture(example, masks)}{_caption(example, masks)}"
        f'<p class="about"><b>{100 * example.cider:.1f}</b> CIDEr · {words} word{"s" * (words != 1)} · {name}</p>'
        f'<ul class="references" aria-label="references">{references}</ul></article>'
    )


def _picture(example: Example, masks: np.ndarray | None) -> str:
    try:
        image = Image.fromarray(read_image(example.path))
    except UserError:
        return '<div class="picture missing">image cannot be read</div>'
    image.thumbnail((SIDE, SIDE))
    canvas = '<canvas aria-hidden="true"></canvas>' if example.look else ""
    if masks is not None:
        lines = Image.fromarray(np.where(outlines(masks), 255, 0).astype(np.uint8)).convert("1")
        canvas += f'<img class="lines" alt="" src="{_embedded(lines, "PNG", transparency=0)}">'
    canvas += '<span class="peak"></span>' if example.look else ""
    return (
        f'<div class="picture" style="--ratio:{image.width / image.height:.4f}">'
        f'<img alt="{escape(example.image.filename)}" src="{_embedded(image, "JPEG", quality=QUALITY)}">{canvas}</div>'
    )


def _embedded(image: Image.Image, form: str, **options: Any) -> str:
    """The image as a data URL."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _caption(example: Example, masks: np.ndarray | None) -> str:
    look = example.look
    if look is None or not look.words:
        return f'<p class="caption">{escape(example.caption) or "<i>no words</i>"}</p>'
    regions = look.attention.shape[1]
    if masks is not None:
        places = np.arange(PAINTED) * masks.shape[1] // PAINTED
        regions, masks = int(masks.any((1, 2)).sum()), masks[:, places][:, :, places]
    # in multiples of an even look; one scale for all words of a caption, so that brighter is more
    even = paint(look.attention * regions, masks)
    low, high = float(even.min()), float(even.max())
    levels = np.rint(255 * (even - low) / ((high - low) or 1.0)).astype(np.uint8)
    data = base64.b64encode(levels.tobytes()).decode()
    buttons = " ".join(f"<button type='button'>{escape(word)}</button>" for word in look.words)
    return (
        f'<p class="caption words" role="group" aria-label="caption: the arrow keys move from word to word" '
        f'data-side="{even.shape[1]}" data-low="{low:.4f}" data-high="{high:.4f}" data-attention="{data}">{buttons}</p>'
    )


_LEGEND = (
    '<p class="legend">Point at a word, tap it, or reach it with Tab and the arrow keys, to see where the model looked '
    "when it said it. Brightness runs from the least to the most attention within a caption; the peak is in multiples "
    'of an even look at the whole image. <span class="ramp">less <i></i> more</span></p>'
)


def _protocol(protocol: Mapping[str, Any]) -> str:
    def text(value: Any) -> str:
        if isinstance(value, Mapping):
            return "<br>".join(f"{escape(str(key))} {text(item)}" for key, item in value.items())
        return "<br>".join(map(text, value)) if isinstance(value, list) else escape(str(value))

    def rows() -> Iterable[str]:
        for name, value in protocol.items():
            if value not in ({}, []):
                yield f"<div><dt>{escape(name.replace('_', ' '))}</dt><dd>{text(value)}</dd></div>"

    return f'<dl class="protocol">{"".join(rows())}</dl>'
