"""Results files: anyone's captions of a split, what identifies the split, and its scores by scene class."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.annotations import AnnotatedImage
from data.errors import UserError, reason
from metrics.scores import Scores


def read_results(path: Path, images: Sequence[AnnotatedImage]) -> dict[int, str]:
    """Captions by imgid, in the order of `images`, from a COCO results file or from what `eval.py --output` wrote.

    Raises `UserError` naming the file, and the ids that are missing, doubled or unknown.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({reason(error)}); eval.py --output F.json writes such a file") from None
    if isinstance(entries, dict) and isinstance(entries.get("captions"), list):
        entries = entries["captions"]  # what --output writes
    if not isinstance(entries, list) or not all(
        isinstance(e, dict) and isinstance(e.get("caption"), str) and isinstance(e.get("image_id"), int | str)
        for e in entries
    ):
        raise UserError(f'{path}: expected [{{"image_id": imgid or filename, "caption": ".."}}, ..]')
    known: dict[Any, int] = {Path(image.filename).name: image.imgid for image in images}
    known |= {image.filename: image.imgid for image in images}  # after the short names, which may be another's
    known |= {image.imgid: image.imgid for image in images}
    unknown = [e["image_id"] for e in entries if e["image_id"] not in known]
    counts = Counter(known[e["image_id"]] for e in entries if e["image_id"] in known)
    doubled = [image.filename for image in images if counts[image.imgid] > 1]
    missing = [image.filename for image in images if image.imgid not in counts]
    for names, fault in (
        (unknown, "not in this split"),
        (doubled, "twice"),
        (missing, "without a caption"),
    ):
        if names:
            some = ", ".join(map(str, names[:10])) + (", .." if len(names) > 10 else "")
            raise UserError(f"{path}: {len(names)} {fault}: {some}; was it made of another split or data set?")
    # JSON can hold halves of characters ("\ud800"), which no file can
    captions = {known[e["image_id"]]: e["caption"].encode("utf-8", "replace").decode() for e in entries}
    return {image.imgid: captions[image.imgid] for image in images}


def result_entries(images: Sequence[AnnotatedImage], captions: Sequence[str]) -> list[dict[str, Any]]:
    """Captions of `images`, in their order, as the entries of a results file."""
    return [
        {"image_id": image.imgid, "filename": image.filename, "caption": caption}
        for image, caption in zip(images, captions, strict=True)
    ]


def split_digest(images: Sequence[AnnotatedImage]) -> str:
    """SHA-256 over file names and captions of a split, in their order: equal where two people score the same."""
    text = json.dumps([[image.filename, image.captions] for image in images])
    return hashlib.sha256(text.encode()).hexdigest()


def scene_class(filename: str) -> str | None:
    """The scene class that a file's name carries before its number, None where it is a number alone.

    Examples:
        >>> [scene_class(name) for name in ("airport_12.jpg", "baseball_diamond/baseball_diamond_007.jpg", "00313.jpg")]
        ['airport', 'baseball_diamond', None]
    """
    found = re.fullmatch(r"(.*[^\W\d_])[ _-]?\d+", Path(filename).stem)
    return found[1] if found else None


def class_scores(scores: Scores, classes: Sequence[str | None]) -> dict[str, dict[str, float]]:
    """The scores of each scene class as a corpus of its own; CIDEr's document frequencies stay the whole set's.

    Args:
        scores: of B images.
        classes: the images' classes, in the order of `scores.keys`; images with None belong to none.

    Returns:
        Class, in alphabetical order, to metric to score.
    """
    names = sorted({name for name in classes if name is not None})
    if not names:
        return {}
    members = np.array([[name == other for other in classes] for name in names], np.float64)
    columns = scores.weighted(members)
    return {name: {metric: float(column[c]) for metric, column in columns.items()} for c, name in enumerate(names)}
