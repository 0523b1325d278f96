"""Masks from elsewhere: files with the regions of each image, and a converter from SAM's output.

    python -m data.masks FOLDER masks.h5       FOLDER: NAME.json as SAM's automatic mask generator or SA-1B gives it

`regions.masks` names a folder with NAME.npz (one array) or NAME.png for each image NAME.jpg, or an HDF5 file with one
dataset NAME for each. The array is [n, H, W], a mask a region (what is not 0 belongs to it; masks may overlap), or
[H, W], a map of labels (0: no region). Any H x W will do: it covers the whole image.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
from PIL import Image

from data.errors import UserError, reason
from data.features import new_store


def read_masks(source: Path, name: str, size: int) -> np.ndarray:
    """The masks of image `name` (without suffix), bool [n, size, size], nearest neighbour; empty ones are left out.

    Raises `UserError` naming the file where it is missing or holds no such array.
    """
    array, where = _stored(source, name)
    if array.ndim == 2:
        array = array == np.unique(array[array != 0])[:, None, None]
    if array.ndim != 3 or 0 in array.shape[1:]:
        raise UserError(f"{where}: an array {list(array.shape)} is neither masks [n, H, W] nor labels [H, W]")
    if not len(array):
        return np.zeros((0, size, size), bool)
    planes = array.astype(bool).astype(np.uint8)
    masks = np.stack([cv2.resize(plane, (size, size), interpolation=cv2.INTER_NEAREST) for plane in planes]) > 0
    return masks[masks.any((1, 2))]


def _stored(source: Path, name: str) -> tuple[np.ndarray, str]:
    """The array of image `name`, and where it was found."""
    try:
        if source.is_file():
            with h5py.File(source, "r") as file:
                if name not in file:
                    raise UserError(f"{source}: no masks of {name}; make them, or leave the image out")
                return np.asarray(file[name]), f"{source} {name}"
        if (packed := source / f"{name}.npz").is_file():
            with np.load(packed, allow_pickle=False) as arrays:
                return next(iter(arrays.values())), str(packed)
        if (picture := source / f"{name}.png").is_file():
            with Image.open(picture) as image:
                if len(image.getbands()) > 1:
                    raise UserError(f"{picture}: {image.mode} is no map of labels; save it with one number a pixel")
                return np.asarray(image), str(picture)
    except UserError:
        raise
    except Exception as error:  # whatever damaged bytes lead to
        raise UserError(f"{source}: masks of {name} cannot be read ({reason(error)}); make them anew") from None
    raise UserError(f"{source}: no {name}.npz or {name}.png; make the masks, or check regions.masks")


def mask_files(source: Path) -> list[Path]:
    """The files that `read_masks` reads from: `source`, or what lies in the folder; `UserError` where there is none."""
    if not source.exists():
        raise UserError(f"{source}: no such folder or file of masks; make them, or check regions.masks")
    if not source.is_dir():
        return [source]
    return sorted(path for path in source.iterdir() if path.suffix in (".npz", ".png"))


def convert(folder: Path, target: Path) -> int:
    """Write the masks of every NAME.json in `folder` into one HDF5 file, whole or not at all; returns how many images.

    A file holds a list of annotations, or a mapping with such a list as "annotations" (SA-1B); each annotation has a
    COCO run-length code as "segmentation". Raises `UserError` naming a file that holds anything else.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise UserError(f"{folder}: no .json files; give the folder that SAM's output lies in")
    with new_store(target, {"made_from": str(folder.name)}) as file:
        for path in paths:
            masks = _decoded(path)
            chunks = {"compression": "gzip", "chunks": (1, *masks.shape[1:])} if len(masks) else {}
            file.create_dataset(path.stem, data=masks, **chunks)
    return len(paths)


def _decoded(path: Path) -> np.ndarray:
    """The masks of one file of SAM's output, uint8 [n, H, W]."""
    from pycocotools import mask as coco

    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        annotations = content["annotations"] if isinstance(content, dict) else content
        codes = [annotation["segmentation"] for annotation in annotations]
        if not codes:
            return np.zeros((0, 1, 1), np.uint8)
        packed = [coco.frPyObjects(code, *code["size"]) if isinstance(code["counts"], list) else code for code in codes]
        return np.ascontiguousarray(coco.decode(packed).transpose(2, 0, 1))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path}: not SAM's output with COCO run-length codes ({reason(error)})") from None


def main() -> None:
    """Convert SAM's output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="NAME.json of each image")
    parser.add_argument("target", type=Path, help="the HDF5 file to write")
    arguments = parser.parse_args()
    print(f"{arguments.target}: masks of {convert(arguments.folder, arguments.target)} images")


if __name__ == "__main__":
    from utils.files import run_program  # as a program it stands above the rooms

    run_program(main)
