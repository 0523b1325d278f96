"""Caption images: python caption.py INPUT... [--checkpoint PATH] [--output F.json|.jsonl|.csv].

An INPUT is an image or a folder of images.
"""

import argparse

from utils.files import run_program, write_whole


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line, or `words`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="an image, or a folder of images")
    parser.add_argument("--checkpoint", metavar="PATH", help="best.safetensors of a run (default: the one that ships)")
    parser.add_argument("--output", metavar="F", help="write the captions there: .json, .jsonl or .csv")
    parser.add_argument("--attention", metavar="F.png", help="draw where the decoder looked for each word")
    return parser.parse_args(words)


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the heavy imports: --help and slips answer at once

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from data.errors import UserError
from data.images import IMAGE_SUFFIXES
from data.loading import ImageFiles
from utils.checkpoint import SHIPPED, load_checkpoint
from utils.devices import best_device, choose_precision
from utils.inference import caption_rows
from utils.visualize import Panel, attention_figure


def main(arguments: argparse.Namespace) -> None:
    """Caption every input; print, or write in the format that the suffix of --output names."""
    writer = None
    if arguments.output:
        writer = FORMATS.get(Path(arguments.output).suffix)
        if writer is None:
            raise UserError(f"--output {arguments.output}: the suffix must be one of {', '.join(FORMATS)}")
    paths = find_images([Path(name) for name in arguments.inputs])
    checkpoint = load_checkpoint(Path(arguments.checkpoint or SHIPPED))
    checkpoint.captioner.to(best_device())
    files = ImageFiles(paths, checkpoint.preprocessing)
    beams = caption_rows(
        checkpoint.captioner,
        checkpoint.vocabulary,
        files,
        range(len(paths)),
        checkpoint.config.decoding,
        choose_precision("auto", best_device()),
    )
    best = [found[0] for found in beams]
    rows = [
        {"file": str(path), "caption": caption.text, "score": round(caption.score, 4)}
        for path, caption in zip(paths, best, strict=True)
    ]
    if writer:
        write_whole(Path(arguments.output), writer(rows))
    else:
        for row in rows:
            print(f"{row['file']}: {row['caption']}")
    if arguments.attention:
        images = files.read(range(len(paths))).permute(0, 2, 3, 1).numpy()
        panels = [Panel(image, c.words, c.attention) for image, c in zip(images, best, strict=True)]
        attention_figure(Path(arguments.attention), panels)


def find_images(inputs: Sequence[Path]) -> list[Path]:
    """The image files that the inputs name: files as they are, folders searched through, in sorted order."""
    paths: list[Path] = []
    for item in inputs:
        if item.is_dir():
            found = sorted(p for p in item.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            if not found:
                raise UserError(f"{item}: no images in this folder; known are {', '.join(IMAGE_SUFFIXES)}")
            paths += found
        elif item.is_file():
            paths.append(item)
        else:
            raise UserError(f"{item}: no such file or folder; check the path")
    return paths


def _as_csv(rows: Sequence[dict[str, object]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


FORMATS: dict[str, Callable[[Sequence[dict[str, object]]], str]] = {
    ".json": lambda rows: json.dumps(list(rows), indent=2, ensure_ascii=False) + "\n",
    ".jsonl": lambda rows: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
    ".csv": _as_csv,
}


if __name__ == "__main__":
    run_program(lambda: main(ARGUMENTS))
