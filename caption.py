"""Caption images: python caption.py INPUT... [--checkpoint PATH] [--output F.json|.jsonl|.csv].

An INPUT is an image, a folder of images, or a quoted pattern such as 'photos/**/*.jpg'. An image that is broken is
named and left out; in --output it has an `error` in place of a caption. Captions are kept as they are made, in
F.partial: a run that was cut off goes on from there when the same command is given again.

Exit code: 0 where there are captions, even if some images were left out; 2 where there are none.
"""

import argparse

from utils.files import run_program

PICTURED = 16  # images in --attention


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line, or `words`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="an image, a folder of images, or a quoted pattern")
    parser.add_argument("--checkpoint", metavar="PATH", help="best.safetensors of a run (default: the one that ships)")
    parser.add_argument("--output", metavar="F", help="write the captions there: .json, .jsonl or .csv")
    parser.add_argument(
        "--attention", metavar="F.png", help=f"draw where the decoder looked for each word, of up to {PICTURED} images"
    )
    return parser.parse_args(words)


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the heavy imports: --help and slips answer at once

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import TextIO

import torch

from data.errors import UserError
from data.files import check_writable, writing
from data.images import IMAGE_SUFFIXES
from data.loading import ImageFiles
from utils.checkpoint import SHIPPED, Checkpoint, load_checkpoint
from utils.devices import best_device, choose_precision
from utils.files import one_line
from utils.inference import caption_batch
from utils.journal import Journal, Row
from utils.progress import track
from utils.results import file_digest
from utils.visualize import Panel, attention_figure

BATCH = 64  # images at a time


def main(arguments: argparse.Namespace) -> None:
    """Caption every input; print, or write in the format that the suffix of --output names."""
    output = Path(arguments.output) if arguments.output else None
    if output and output.suffix not in FORMATS:
        raise UserError(f"--output {output}: the suffix must be one of {', '.join(FORMATS)}")
    picture = Path(arguments.attention) if arguments.attention else None
    files = find_images(arguments.inputs)
    for path in filter(None, (output, picture)):
        check_writable(path)
    source = Path(arguments.checkpoint or SHIPPED)
    checkpoint = load_checkpoint(source)
    about = {"checkpoint_sha256": file_digest(source), **checkpoint.config.decoding.model_dump()}
    journal = Journal(output, about) if output else None
    left = [file for file in files if journal is None or file not in journal]
    if len(left) < len(files):
        print(f"going on after {len(files) - len(left)} of {len(files)} images", file=sys.stderr)

    panels: list[Panel] = []
    broken = []
    for row in caption_files(checkpoint, left, journal, panels if picture else None):
        if "error" in row:
            broken.append(row["error"])
            if len(files) > 1:
                print(f"left out: {one_line(row['error'])}", file=sys.stderr)
        elif journal is None:
            print(f"{one_line(row['file'])}: {one_line(row['caption'])}", flush=True)
    if len(broken) == len(files):
        if journal:
            journal.remove()
        raise UserError(broken[0] if len(files) == 1 else f"none of the {len(files)} images can be read")
    if output and journal:
        with writing(output) as name, open(name, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            FORMATS[output.suffix](journal.rows(files), file)
        journal.remove()
    if picture and panels:
        attention_figure(picture, panels)
    if broken:
        print(f"{len(files) - len(broken)} images captioned, {len(broken)} left out", file=sys.stderr)


def caption_files(
    checkpoint: Checkpoint, files: Sequence[str], journal: Journal | None, panels: list[Panel] | None
) -> Iterator[Row]:
    """A row for each image file, with its caption or with the error that it could not be read for.

    A batch's rows are in the journal before they are given out. The first `PICTURED` images are put into `panels`.
    """
    captioner = checkpoint.captioner.to(best_device())
    precision = choose_precision("auto", best_device())
    images = ImageFiles([Path(file) for file in files], checkpoint.preprocessing)
    starts = range(0, len(files), BATCH)
    for start in track(starts, len(starts), "captions"):
        rows: list[Row] = []
        read = []
        for place in range(start, min(start + BATCH, len(files))):
            rows.append({"file": files[place]})
            try:
                read.append((rows[-1], images.read([place])))
            except UserError as error:
                rows[-1]["error"] = str(error)
        if read:
            visuals = torch.cat([image for _, image in read])
            found = caption_batch(
                captioner, checkpoint.vocabulary, visuals, checkpoint.config.decoding, precision, seed=start
            )
            for (row, image), beam in zip(read, found, strict=True):
                row |= {"caption": beam[0].text, "score": round(beam[0].score, 4)}
                if panels is not None and len(panels) < PICTURED:
                    panels.append(Panel(image[0].permute(1, 2, 0).numpy(), beam[0].words, beam[0].attention))
        if journal:
            journal.add(rows)
        yield from rows


def find_images(inputs: Sequence[str]) -> list[str]:
    """The image files that the inputs name, each once: files as they are, what folders and patterns hold sorted."""
    files: dict[str, None] = {}
    for item in inputs:
        path = Path(item)
        if path.is_file():
            found = [str(path)]
        elif path.is_dir():
            found = _images(path.rglob("*"))
        elif has_magic(item):
            found = _images(map(Path, glob(item, recursive=True)))
        else:
            raise UserError(f"{item}: no such file or folder; check the path")
        if not found:
            where = "in this folder" if path.is_dir() else "fit this pattern"
            raise UserError(f"{item}: no images {where}; known are {', '.join(IMAGE_SUFFIXES)}")
        files |= dict.fromkeys(found)
    return list(files)


def _images(paths: Iterator[Path]) -> list[str]:
    return sorted(str(path) for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def _write_json(rows: Iterator[Row], file: TextIO) -> None:
    for i, row in enumerate(rows):
        file.write(",\n  " if i else "[\n  ")
        file.write(json.dumps(row, ensure_ascii=False))
    file.write("\n]\n")


def _write_lines(rows: Iterator[Row], file: TextIO) -> None:
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_csv(rows: Iterator[Row], file: TextIO) -> None:
    writer = csv.DictWriter(file, ("file", "caption", "score", "error"))
    writer.writeheader()
    writer.writerows(rows)


FORMATS: dict[str, Callable[[Iterator[Row], TextIO], None]] = {
    ".json": _write_json,
    ".jsonl": _write_lines,
    ".csv": _write_csv,
}


if __name__ == "__main__":
    run_program(lambda: main(ARGUMENTS))
