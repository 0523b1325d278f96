"""A page to try a captioner on: python app.py [CHECKPOINT...] [--port 7860].

Drop an image or pick an example: it shows the caption, what else the beam found, and where the decoder looked for the
word under the pointer. CHECKPOINTs can be chosen on the page (default: those that ship, and those under runs/).
"""

import argparse

from utils.files import run_program


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line, or `words`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="*", metavar="CHECKPOINT", help="best.safetensors of a run")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in")
    parser.add_argument("--port", type=int, default=7860)
    return parser.parse_args(words)


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the heavy imports: --help and slips answer at once

import base64
import html
import io
import math
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # nothing leaves this machine

import numpy as np
from PIL import Image

from data.errors import UserError
from data.loading import ImageFiles, Visuals
from data.synthetic import SCENE_TYPES, generate_scene
from utils.checkpoint import SHIPPED, Checkpoint, load_checkpoints
from utils.devices import best_device, looking_precision
from utils.inference import Caption, caption_batch
from utils.sources import live_regions
from utils.visualize import heat, outlines, paint

MAX_BYTES, MAX_PIXELS = "25mb", 50_000_000  # of an upload
WAITING = 16  # people in the queue; one is served at a time
EXAMPLES = ("airport", "bridge", "port", "stadium", "storagetanks")
SHOWN = 448  # pixels of the picture on the page
SCORE = "exp(score): with length penalty 1 the geometric mean of the words' probabilities"
LISTED = 5  # captions
FAINT = 1.25  # times an even look: what a word looks at less than that stays pale

STYLE = """
.look { display: flex; flex-wrap: wrap; gap: 1.5rem; padding: 0; }
.look .view { flex: 0 1 448px; width: 100%; }
.look .stage { position: relative; aspect-ratio: 1; margin-bottom: .75rem; }
.look .stage img { position: absolute; inset: 0; width: 100%; height: 100%; border-radius: 6px; margin: 0; }
.look .over { opacity: 0; transition: opacity .15s; }
.look .over.on { opacity: 1; }
.look ol { flex: 1 1 260px; min-width: 0; list-style: none; padding: 0; margin: 0; }
.look li { display: flex; gap: .75rem; align-items: baseline; margin: 0 0 .4rem; line-height: 1.6; }
.look li:first-child { font-size: 1.4rem; }
.look .score { flex: 0 0 3rem; text-align: right; opacity: .65; font-size: .9rem; }
.look button { all: unset; padding: 0 .15em; border-radius: 4px; cursor: pointer; }
.look button.on, .look button:hover, .look button:focus-visible { background: #fed976; color: #000; }
.look input { width: 100%; }
.look .peak { opacity: .65; font-size: .9rem; }
"""

# One listener on the element: what it holds is replaced with every image.
SCRIPT = """
const show = (key) => {
  for (const part of element.querySelectorAll('[data-key]')) part.classList.toggle('on', part.dataset.key === key);
  const slider = element.querySelector('input[type=range]');
  const [beam, word] = (key || '').split('-');
  if (slider && beam === '0') slider.value = Number(word) + 1;
  const said = key && element.querySelector(`button[data-key="${key}"]`);
  const peak = element.querySelector('.peak');
  if (peak) peak.textContent = said ? `“${said.textContent}”: at most ${said.dataset.peak} times an even look` : '';
};
for (const kind of ['pointerover', 'focusin', 'click'])
  element.addEventListener(kind, (event) => event.target.matches('button[data-key]') && show(event.target.dataset.key));
element.addEventListener('input', (event) => show(event.target.value > 0 ? `0-${event.target.value - 1}` : ''));
"""


@lru_cache(maxsize=2)
def open_checkpoint(paths: tuple[Path, ...]) -> Checkpoint:
    """A checkpoint, or several that speak as one, on the best device; the last two stay in memory."""
    checkpoint = load_checkpoints(paths)
    checkpoint.captioner.to(best_device())
    return checkpoint


def look(image: Path, paths: tuple[Path, ...]) -> str:
    """The picture, its captions and their attention as HTML, for an image file and checkpoints that speak as one.

    Raises `UserError` where the image cannot be read or has more than `MAX_PIXELS`.
    """
    with suppress(OSError, Image.DecompressionBombError), Image.open(image) as opened:  # read_image says what is wrong
        width, height = opened.size
        if width * height > MAX_PIXELS:
            raise UserError(f"{image}: {width} x {height} pixels are too many for this page; tile or shrink it")
    checkpoint = open_checkpoint(paths)
    content = ImageFiles([image], checkpoint.preprocessing)
    visuals = Visuals(content, live_regions(checkpoint.config, content, [image.stem], checkpoint.captioner.encoder))
    visual = visuals.read([0])
    decoding = checkpoint.config.decoding
    if decoding.method != "consensus":
        decoding = decoding.model_copy(update={"method": "beam"})  # which gives several captions, too
    precision = looking_precision(checkpoint.config.train.precision, best_device())
    found = caption_batch(checkpoint.captioner, checkpoint.vocabulary, visual, decoding, precision, seed=0)
    captions = found[0][:LISTED]
    return render(visual.content[0].permute(1, 2, 0).numpy(), captions, visuals.masks(0))


def render(pixels: np.ndarray, captions: Sequence[Caption], masks: np.ndarray | None) -> str:
    """HTML of an image uint8 [H, W, 3] under the attention of each word of each caption, best first.

    `masks` bool [N, H, W] are the regions that the attention is over, drawn with their outlines; None: a grid. Each
    word has a scale of its own, from an even look to its peak, which stands below the picture: on one scale with a word
    that stares into a corner the others could not be seen. Words are escaped: a vocabulary is anybody's text.
    """
    painted = [paint(caption.attention, masks) for caption in captions]
    even = 1 / (captions[0].attention.shape[1] if masks is None else masks.any((1, 2)).sum())
    overlays, lines = [], []
    if masks is not None:
        edges = np.zeros((*masks.shape[1:], 4), np.uint8)
        edges[outlines(masks)] = (255, 255, 255, 170)
        overlays.append(f'<img class="edges" alt="" src="{_png(edges)}">')
    for beam, (caption, maps) in enumerate(zip(captions, painted, strict=True)):
        words = []
        for i, (word, looked) in enumerate(zip(caption.words, maps, strict=True)):
            key = f'data-key="{beam}-{i}"'
            overlays.append(f'<img class="over" alt="" {key} src="{_png(_heat(looked / even))}">')
            words.append(f'<button {key} data-peak="{looked.max() / even:.1f}">{html.escape(word)}</button>')
        score = f'<span class="score" title="{SCORE}">{math.exp(caption.score):.0%}'
        lines.append(f"<li>{score}</span><span>{' '.join(words)}</span></li>")
    picture = io.BytesIO()
    Image.fromarray(pixels).resize((SHOWN, SHOWN), Image.Resampling.BICUBIC).save(picture, "JPEG", quality=90)
    best = html.escape(captions[0].text)
    slider = f'<input type="range" min="0" max="{len(captions[0].words)}" value="0" aria-label="word">'
    return f"""
        <div class="look">
          <div class="view">
            <div class="stage"><img alt="{best}" src="{_url(picture, "jpeg")}">{"".join(overlays)}</div>
            <label>Where it looked, word by word{slider}</label>
            <div class="peak"></div>
          </div>
          <ol>{"".join(lines)}</ol>
        </div>"""


def _heat(looked: np.ndarray) -> np.ndarray:
    """Attention [h, w] in even looks as RGBA of as many pixels, transparent up to 1; the browser smooths it."""
    return heat((looked - 1) / (max(FAINT, looked.max()) - 1))


def _png(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return _url(buffer, "png")


def _url(content: io.BytesIO, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


def write_examples(folder: Path) -> list[Path]:
    """Synthetic scenes to try it on, without anything downloaded."""
    paths = []
    for name in EXAMPLES:
        paths.append(folder / f"{name}.png")
        Image.fromarray(generate_scene(1, SCENE_TYPES.index(name), 224).image).save(paths[-1])
    return paths


def main(arguments: argparse.Namespace) -> None:
    """Open the page and serve it until it is stopped."""
    named = arguments.checkpoints or map(str, sorted(Path("runs").glob("*/best.safetensors")))
    found = {} if arguments.checkpoints else {" + ".join(path.name for path in SHIPPED): SHIPPED}
    found |= {path: (Path(path),) for path in named}
    for paths in list(found.values())[: len(arguments.checkpoints) or 1]:
        open_checkpoint(paths)  # what is broken is said now, and Gradio takes seconds to import
    try:
        import gradio
    except ImportError:
        raise UserError("the page needs Gradio: pip install -r requirements-app.txt") from None

    def answer(image: str | None, name: str) -> str:
        if image is None:
            return ""
        try:
            return look(Path(image), found[name])
        except UserError as error:
            # Pillow's own words, in brackets, would name the server's folders
            said = re.sub(r" \(.*\)", "", str(error).replace(str(Path(image).parent) + os.sep, ""))
            raise gradio.Error(said, duration=None) from None

    with TemporaryDirectory() as folder, gradio.Blocks(title="Nadir", analytics_enabled=False) as page:
        examples = write_examples(Path(folder))
        gradio.Markdown(
            "# Nadir\nAerial and satellite images in words. Drop an image, or pick one of the drawn scenes."
        )
        with gradio.Row():
            image = gradio.File(label="Image", file_types=["image"], type="filepath", height=140, scale=1)
            gallery = gradio.Gallery(
                [str(path) for path in examples],
                show_label=False,
                buttons=[],
                columns=len(examples),
                height=140,
                allow_preview=False,
                scale=2,
            )
        chosen = gradio.Dropdown(list(found), value=next(iter(found)), label="Checkpoint", visible=len(found) > 1)
        result = gradio.HTML(css_template=STYLE, js_on_load=SCRIPT, elem_id="result")

        def pick(event: gradio.SelectData) -> str:
            return str(examples[event.index])

        gallery.select(pick, None, image)
        for event in (image.change, chosen.change):
            event(answer, [image, chosen], result, concurrency_limit=1)
        page.queue(max_size=WAITING)
        try:
            page.launch(
                server_name=arguments.host,
                server_port=arguments.port,
                max_file_size=MAX_BYTES,
                theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
                footer_links=[],
                allowed_paths=[folder],
                share=False,
                quiet=True,  # what Gradio says of public links is not for a page that sends nothing anywhere
                prevent_thread_lock=True,
            )
        except (OSError, OverflowError):
            raise UserError(f"cannot listen at {arguments.host}:{arguments.port}; choose another --port") from None
        print(f"the page is at {page.local_url}", flush=True)
        page.block_thread()


if __name__ == "__main__":
    run_program(lambda: main(ARGUMENTS))
