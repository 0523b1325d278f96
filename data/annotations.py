"""Read and check caption annotations: Karpathy-style JSON (RSICD, UCM, Sydney) and NWPU-Captions' own layout."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from reprlib import repr as shown
from typing import Any

from data.errors import UserError, reason

SPLITS = ("train", "val", "test")
REMEDY = "restore the published file, or see docs/your-own-data.md"


@dataclass(frozen=True)
class AnnotatedImage:
    """One image and its captions as the annotation file gives them.

    `filename` is relative to the folder of images, with forward slashes; `captions` are the raw sentences.
    """

    imgid: int
    filename: str
    split: str
    captions: tuple[str, ...]


def read_karpathy(path: Path, faults: list[str] | None = None) -> list[AnnotatedImage]:
    """Images of a Karpathy-style file: `{"images": [{"filename", "imgid", "split", "sentences": [{"raw"}]}]}`.

    A `split` of "restval" counts as "train" (Karpathy & Fei-Fei, CVPR 2015). A missing `imgid` is the
    image's position. Raises `UserError` naming the file and the entry that is not as it should be; where `faults` is
    given, every such entry is named there instead, and the others are returned.
    """
    document = _read_json(path)
    entries = document.get("images") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise UserError(f'{path}: no list "images" at the top; expected a Karpathy-style annotation file')
    return _read_entries(path, entries, _karpathy_image, faults)


def read_nwpu(path: Path, faults: list[str] | None = None) -> list[AnnotatedImage]:
    """Images of NWPU-Captions' file: `{category: [{"filename", "split", "raw", "raw_1" .. "raw_4"}]}`.

    `filename` becomes `category/filename`; where the images lie without category folders, `data.datasets`
    finds them by their names. `imgid`s restart in every category there, so they are counted afresh. `faults` as in
    `read_karpathy`.
    """
    document = _read_json(path)
    if not isinstance(document, dict) or not all(isinstance(v, list) for v in document.values()):
        raise UserError(f"{path}: expected an object of lists, one a category; {REMEDY}")
    placed = [(category, i, entry) for category, entries in document.items() for i, entry in enumerate(entries)]
    return _read_entries(path, placed, _nwpu_image, faults)


def _read_entries(
    path: Path, entries: list[Any], read: Callable[[Path, int, Any], AnnotatedImage], faults: list[str] | None
) -> list[AnnotatedImage]:
    if not entries:
        raise UserError(f"{path}: holds no images; {REMEDY}")
    images: list[AnnotatedImage] = []
    seen: set[tuple[str, int | str]] = set()
    for position, entry in enumerate(entries):
        try:
            image = read(path, position, entry)
            for key in (("imgid", image.imgid), ("filename", image.filename)):
                if key in seen:
                    raise UserError(f"{path}: {key[0]} {shown(key[1])} stands twice; remove one of the two entries")
                seen.add(key)
            images.append(image)
        except UserError as error:
            if faults is None:
                raise
            faults.append(str(error))
    return images


def _karpathy_image(path: Path, position: int, entry: Any) -> AnnotatedImage:
    where = f"{path}: images[{position}]"
    if not isinstance(entry, dict):
        raise UserError(f"{where} is not an object; {REMEDY}")
    if isinstance(entry.get("filename"), str):
        where += f" ({shown(entry['filename'])})"
    sentences = entry.get("sentences")
    if not isinstance(sentences, list) or not all(isinstance(s, dict) for s in sentences):
        raise UserError(f'{where} has no list "sentences" of objects {{"raw": ".."}}; {REMEDY}')
    return AnnotatedImage(
        imgid=_imgid(entry, position, where),
        filename=_filename(entry.get("filename"), where),
        split=_split(entry.get("split"), where),
        captions=_captions({f".sentences[{i}]": s.get("raw") for i, s in enumerate(sentences)}, where),
    )


def _nwpu_image(path: Path, position: int, placed: tuple[str, int, Any]) -> AnnotatedImage:
    category, place, entry = placed
    where = f"{path}: {shown(category)}[{place}]"
    if not isinstance(entry, dict):
        raise UserError(f"{where} is not an object; {REMEDY}")
    keys = ["raw", *(f"raw_{i}" for i in range(1, 5))]
    return AnnotatedImage(
        imgid=position,
        filename=_filename(f"{category}/{_filename(entry.get('filename'), where)}", where),
        split=_split(entry.get("split"), where),
        captions=_captions({f".{key}": entry[key] for key in keys if key in entry}, where),
    )


def swap_val_and_test(images: list[AnnotatedImage]) -> list[AnnotatedImage]:
    """The same images with the names of `val` and `test` exchanged."""
    other = {"val": "test", "test": "val"}
    return [replace(image, split=other.get(image.split, image.split)) for image in images]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; save the annotations as UTF-8 JSON") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{path}: not valid JSON ({reason(error)}); {REMEDY}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its rights") from None


def _filename(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f'{where}: "filename" is missing or not text; {REMEDY}')
    parts = PurePosixPath(value.replace("\\", "/")).parts
    if not parts or ".." in parts or value.startswith(("/", "\\")) or ":" in parts[0]:
        raise UserError(f"{where}: filename {shown(value)} leaves the folder of images; make it a relative path")
    if "\0" in value or any(_too_long(part) for part in parts):
        raise UserError(f"{where}: filename {shown(value)} is a name that no file can have; {REMEDY}")
    return "/".join(parts)


def _too_long(name: str) -> bool:
    """Whether a file system cannot hold the name: more than 255 bytes, or half a character."""
    try:
        return len(name.encode()) > 255
    except UnicodeEncodeError:
        return True


def _imgid(entry: dict[str, Any], position: int, where: str) -> int:
    value = entry.get("imgid", position)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 2**63:
        raise UserError(f'{where}: "imgid" is {shown(value)}, not a whole number (64 bits); {REMEDY}')
    return value


def _split(value: Any, where: str) -> str:
    split = "train" if value == "restval" else value
    if split not in SPLITS:
        raise UserError(f'{where}: "split" is {shown(value)}; it must be one of {", ".join(SPLITS)}')
    return split


def _captions(values: dict[str, Any], where: str) -> tuple[str, ...]:
    """The captions at the places that `values` names; half a character, which JSON can hold and no file, becomes ?."""
    if not values:
        raise UserError(f"{where} has no caption; give it one or remove the entry")
    for place, value in values.items():
        if not isinstance(value, str):
            raise UserError(f'{where}{place}: "raw" is {shown(value)}, not text; {REMEDY}')
    return tuple(value.encode("utf-8", "replace").decode() for value in values.values())
