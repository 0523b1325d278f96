"""Data sets that come as parquet, as Hugging Face keeps them: unpacked once into files, then read like any other."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from data.datasets import DATASETS, DatasetSpec
from data.errors import UserError, reason
from data.files import drafting

ROWS = 64  # that are held at a time
_SPLITS = {"train": "train", "valid": "val", "validation": "val", "val": "val", "dev": "val", "test": "test"}


def find_parquet(root: Path) -> list[Path]:
    """The parquet files under a folder, in the order of their names; none where a data set lies there as files."""
    if any((root / name).is_file() for spec in DATASETS.values() for name in spec.annotations):
        return []
    return sorted(root.rglob("*.parquet"))


def unpack_parquet(root: Path, spec: DatasetSpec, cache: Path) -> Path:
    """Lay the parquet files under `root` out as `spec` is published, in a folder of `cache` named after what they are.

    The columns are those of `arampacha/rsicd`: `filename`, `captions` (a list of sentences) and `image` (the file's
    bytes, or a struct with them in `bytes`). The split is the word of the path below `root` that names one
    (`data/valid-00000-of-00001.parquet`, `default/test/0000.parquet`). Image files are written as they are, without
    the folder that `filename` puts before them. Returns the folder; does nothing where it is there already.

    Raises `UserError` naming the file where a column or a split is not to be found, or captions are no list of texts.
    """
    files = find_parquet(root)
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    key = hashlib.sha256(json.dumps([spec.name, stamps]).encode()).hexdigest()[:16]
    folder = cache / f"{spec.name}-parquet-{key}"
    if folder.is_dir():
        return folder
    images: list[dict[str, Any]] = []
    try:
        with drafting(folder) as draft:
            (draft / spec.image_folders[0]).mkdir(parents=True)
            for path in files:
                split = split_of(path.relative_to(root))
                for filename, captions, content in _rows(path):
                    image = draft / spec.image_folders[0] / filename
                    if image.exists():
                        raise UserError(f"{path}: {filename} stands twice in {path.parent}; remove one of the two")
                    image.write_bytes(content)
                    sentences = [{"raw": caption} for caption in captions]
                    entry = {"filename": filename, "imgid": len(images), "split": split, "sentences": sentences}
                    images.append(entry)
            text = json.dumps({"dataset": spec.name, "images": images})
            (draft / spec.annotations[0]).write_text(text, encoding="utf-8")
            draft.replace(folder)
    except OSError as error:
        if not folder.is_dir():  # another process was faster
            raise UserError(
                f"{folder}: cannot be written ({error.strerror}); make room or set data.cache_dir"
            ) from None
    return folder


def split_of(path: Path) -> str:
    """The split that a parquet file's path names, from its end.

    Examples:
        >>> [split_of(Path(name)) for name in ("data/valid-00000-of-00001-9f.parquet", "default/test/0000.parquet")]
        ['val', 'test']
    """
    for word in reversed(re.findall(r"[a-z]+", str(path).lower())):
        if word in _SPLITS:
            return _SPLITS[word]
    raise UserError(f"{path}: its name says no split; name it train-.., valid-.. or test-...parquet")


def _rows(path: Path) -> Iterator[tuple[str, list[str], bytes]]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: reading parquet needs pip install -r requirements-geo.txt") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS, columns=["filename", "captions", "image"]):
                for row in batch.to_pylist():
                    content = row["image"]["bytes"] if isinstance(row["image"], dict) else row["image"]
                    name = PurePosixPath(row["filename"].replace("\\", "/")).name
                    if name in ("", "..") or not isinstance(content, bytes):
                        raise UserError(f"{path}: {row['filename']!r} has no name or no image bytes; fetch it again")
                    captions = row["captions"]
                    if not (isinstance(captions, list) and all(isinstance(caption, str) for caption in captions)):
                        raise UserError(f"{path}: captions of {row['filename']!r} are no list of texts; make them one")
                    yield name, captions, content
    except (pyarrow.ArrowException, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: no filename, captions and image to be read from it ({reason(error)})") from None
