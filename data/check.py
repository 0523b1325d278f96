"""Check a data set before training on it: python -m data.check DIR [--sheet F.png].

DIR holds annotations beside a folder of images, or parquet files (data/parquet.py), which are unpacked first, to where
training on RSICD looks for them; other data sets are unpacked once more as they are trained on.
Every problem is listed, not only the first, and some images are drawn with their first captions on one sheet to look
at. Exit code 0: nothing stands in the way of training; 1: problems were found.
"""

import argparse
import hashlib
import sys
import textwrap
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.progress import track

from data.annotations import SPLITS, AnnotatedImage
from data.datasets import DATASETS, convention_of, folder_of_images, links_out, located
from data.errors import UserError
from data.images import IMAGE_SUFFIXES, read_image
from data.parquet import find_parquet, unpack_parquet
from data.tokenizer import tokenize

SHEET, COLUMNS, SIDE = 24, 6, 224  # images on the sheet, in a row, and their pixels
LONG = 30  # words: longer captions are cut in training (data.max_words)
OFTEN = 3  # a word that stands more rarely in the train captions is not learned (data.min_count)
SMALL = 32  # pixels: encoders need at least so many


@dataclass
class Findings:
    """What was found in a data set: its sound images, what must be mended, and what is good to know."""

    folder: Path
    images: list[AnnotatedImage] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def path(self, image: AnnotatedImage) -> Path:
        """Where an image's file lies."""
        return self.folder / image.filename


def check(root: Path) -> Findings:
    """Look at every annotation and every image of the data set in `root`, however `DATASETS` lays one out.

    Problems: entries that cannot be read, stand twice or leave the folder; images that are missing, broken or smaller
    than 32 pixels, or links out of the folder; images without a caption that has words; no train or no val split; no
    word that stands often enough to be learned; one picture in two splits.
    Notes: counts, captions that training will cut, files without annotations, pictures that stand twice in a split.

    Raises `UserError` where there is no data set at all.
    """
    layouts = [(spec, root / name) for spec in DATASETS.values() for name in spec.annotations]
    spec, annotations = next(((s, path) for s, path in layouts if path.is_file()), (None, root))
    if spec is None:
        known = ", ".join(dict.fromkeys(path.name for _, path in layouts))
        raise UserError(f"{root}: no annotations there; expected one of {known}")
    names = tuple(dict.fromkeys(name for s in DATASETS.values() for name in s.image_folders))
    folder = folder_of_images(root, names)
    if folder is None:
        raise UserError(f"{root}: no folder of images there; expected one of {', '.join(names)}")
    findings = Findings(folder)
    findings.images = located(spec.read(annotations, findings.problems), folder)
    landmarks = {image: split for s in DATASETS.values() for image, split in s.landmarks.items()}
    if convention_of(findings.images, landmarks) == "exchanged":
        findings.notes.append("val and test are exchanged; train.py takes them as captioning does (data.convention)")
    _check_captions(findings)
    _check_pictures(findings)
    return findings


def _check_captions(findings: Findings) -> None:
    images = Counter(image.split for image in findings.images)
    captions = Counter(image.split for image in findings.images for _ in image.captions)
    for split in SPLITS:
        findings.notes.append(f"{split}: {images[split]} images, {captions[split]} captions")
        if split != "test" and not images[split]:
            findings.problems.append(f"split {split} has no images; training needs train and val")
    long, words = 0, Counter[str]()
    for image in findings.images:
        tokens = [tokenize(caption) for caption in image.captions]
        lengths = list(map(len, tokens))
        words.update(token for caption in tokens if image.split == "train" for token in caption)
        long += sum(length > LONG for length in lengths)
        if not any(lengths):
            findings.problems.append(f"{image.filename}: no caption with words")
    if images["train"] and max(words.values(), default=0) < OFTEN:
        findings.problems.append(
            f"no word stands {OFTEN} times in the train captions; write more of them, or train with data.min_count=1"
        )
    if long:
        findings.notes.append(f"{long} captions have more than {LONG} words; training cuts them (data.max_words)")


def _check_pictures(findings: Findings) -> None:
    findings.problems += links_out(findings.images, findings.folder)
    seen: dict[str, list[AnnotatedImage]] = defaultdict(list)
    for image in track(findings.images, "images", disable=not sys.stderr.isatty(), transient=True):
        try:
            pixels = read_image(findings.path(image))
        except UserError as error:
            findings.problems.append(str(error))
            continue
        height, width = pixels.shape[:2]
        if min(height, width) < SMALL:
            findings.problems.append(f"{image.filename}: {width} x {height} pixels; at least {SMALL} are needed")
        seen[hashlib.sha256(f"{width}".encode() + pixels.tobytes()).hexdigest()].append(image)
    twice = 0
    for same in seen.values():
        places = ", ".join(f"{image.filename} ({image.split})" for image in same)
        if len({image.split for image in same}) > 1:
            findings.problems.append(f"one picture in several splits: {places}")
        elif len(same) > 1:
            twice += 1
    if twice:
        findings.notes.append(f"{twice} pictures stand more than once within a split")
    known = {findings.path(image) for image in findings.images}
    files = (p for p in findings.folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if unknown := [path for path in files if path not in known]:
        findings.notes.append(f"{len(unknown)} image files have no annotation, {min(unknown).name} for one")


def contact_sheet(findings: Findings, count: int = SHEET) -> Image.Image:
    """Some of the images, drawn by a fixed seed, each above its name, its split and its first caption."""
    order = np.random.default_rng(0).permutation(len(findings.images))
    drawn: list[tuple[AnnotatedImage, np.ndarray]] = []
    for index in order:
        image = findings.images[index]
        try:
            drawn.append((image, read_image(findings.path(image))))
        except UserError:
            continue
        if len(drawn) == count:
            break
    return _draw(drawn)


def _draw(drawn: Sequence[tuple[AnnotatedImage, np.ndarray]]) -> Image.Image:
    font = ImageFont.load_default(13)
    margin, text = 10, 66
    rows = -(-max(1, len(drawn)) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (SIDE + margin) + margin, rows * (SIDE + text + margin) + margin), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (image, pixels) in enumerate(drawn):
        x, y = margin + i % COLUMNS * (SIDE + margin), margin + i // COLUMNS * (SIDE + text + margin)
        picture = Image.fromarray(pixels)
        picture.thumbnail((SIDE, SIDE))
        sheet.paste(picture, (x, y))
        pen.text((x, y + SIDE + 3), textwrap.shorten(f"{image.split}: {image.filename}", 34), "grey", font)
        caption = " ".join(image.captions[0].split()) if image.captions else "(no caption)"
        pen.text((x, y + SIDE + 19), "\n".join(textwrap.wrap(caption, 34)[:3]), "black", font, spacing=2)
    return sheet


def main() -> int:
    """Print what was found, draw the sheet; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="DIR", help="the data set")
    parser.add_argument("--sheet", type=Path, default=Path("contact-sheet.png"), metavar="F.png")
    parser.add_argument(
        "--cache-dir", type=Path, default=Path("cache"), help="where parquet files are unpacked (cache)"
    )
    arguments = parser.parse_args()
    root = arguments.root
    if find_parquet(root):
        root = unpack_parquet(root, DATASETS["RSICD"], arguments.cache_dir)
    findings = check(root)
    print("\n".join([*findings.notes, *(f"problem: {problem}" for problem in findings.problems)]))
    try:
        contact_sheet(findings).save(arguments.sheet)
    except (OSError, ValueError) as error:
        raise UserError(f"{arguments.sheet}: cannot be written ({error}); choose another --sheet") from None
    found = len(findings.problems)
    print(f"{found} problem{'s' * (found != 1)}; look at {arguments.sheet}")
    return 1 if found else 0


if __name__ == "__main__":
    from utils.files import run_program  # as a program it stands above the rooms

    sys.exit(run_program(main))
