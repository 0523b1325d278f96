"""Synthetic scenes: aerial pictures with captions, boxes and masks that are true, from a seed alone.

A scene depends on (seed, index, size) and on nothing else, and is the same on every machine. Layout and
wording depend on (seed, index) only: the same scene can be had at another resolution (where a relation is on
the edge between two words, rounding to pixels may turn it).

`write_dataset` writes them as RSICD's files are laid out, with the truth beside them:

    dataset_rsicd.json   captions and splits, Karpathy style
    RSICD_images/        airport_0.png, bridge_1.png, ...
    masks/               the same names: class of each pixel
    truth.json           classes, boxes, labels, and the words that name each class
    synthetic.json       what was asked for (generator version, seed, sizes)
"""

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.errors import UserError
from data.files import drafting, write_whole
from data.scenery import country, town
from data.scenery.canvas import DIRECTIONS, UNITS, Canvas, Dice, Point
from data.scenery.captions import Group, tell
from data.scenery.classes import CLASSES, MIN_SIDE, NOUNS, STUFF, THINGS
from data.scenery.story import Story
from data.scenery.templates import TEMPLATES

REQUEST = "synthetic.json"  # what a folder of scenes was asked for
VERSION = 1
SCENES: dict[str, Callable[[Story], None]] = {
    "airport": town.airport,
    "baseballfield": town.baseballfield,
    "beach": country.beach,
    "bridge": town.bridge,
    "commercial": town.commercial,
    "denseresidential": town.denseresidential,
    "desert": country.desert,
    "farmland": country.farmland,
    "forest": country.forest,
    "industrial": town.industrial,
    "meadow": country.meadow,
    "mediumresidential": town.mediumresidential,
    "mountain": country.mountain,
    "parking": town.parking,
    "playground": town.playground,
    "pond": country.pond,
    "port": town.port,
    "railwaystation": town.railwaystation,
    "resort": town.resort,
    "river": country.river,
    "sparseresidential": town.sparseresidential,
    "square": town.square,
    "stadium": town.stadium,
    "storagetanks": town.storagetanks,
    "viaduct": town.viaduct,
}
SCENE_TYPES: tuple[str, ...] = tuple(SCENES)


@dataclass(frozen=True)
class Scene:
    """One scene and all that is true of it.

    Attributes:
        image: uint8 [H, W, 3].
        scene_type: one of SCENE_TYPES.
        captions: five sentences, some of them the same.
        boxes: float32 [n, 4], x1 y1 x2 y2 in pixels, tight about what is seen of each thing; the right and
            lower edges lie behind the last pixel.
        labels: int64 [n], index into CLASSES of each box.
        mask: uint8 [H, W], index into CLASSES of each pixel.
        nouns: class -> words of these captions that name it, for classes that the mask holds.
        groups: role -> what the captions speak of.
        relation: key of `RELATIONS`, how group `main` lies to group `other`.
    """

    image: np.ndarray
    scene_type: str
    captions: tuple[str, ...]
    boxes: np.ndarray
    labels: np.ndarray
    mask: np.ndarray
    nouns: dict[str, tuple[str, ...]]
    groups: dict[str, Group]
    relation: str


@dataclass(frozen=True)
class Truth:
    """What `write_dataset` stored of a scene beside its picture and captions; fields as in `Scene`."""

    scene_type: str
    boxes: np.ndarray
    labels: np.ndarray
    nouns: dict[str, tuple[str, ...]]
    mask_path: Path

    @property
    def mask(self) -> np.ndarray:
        """The class of each pixel, uint8 [H, W]."""
        with Image.open(self.mask_path) as image:
            return np.asarray(image)


def generate_scene(seed: int, index: int, size: int = 224) -> Scene:
    """Make scene `index` of the series `seed` as a picture of size x size pixels.

    The type is SCENE_TYPES[index % len(SCENE_TYPES)]: any run of indices holds all types equally often.
    Raises ValueError for a negative seed or index, or a size below 32.
    """
    if seed < 0 or index < 0 or size < 32:
        raise ValueError(f"seed and index must be >= 0 and size >= 32, got {seed}, {index}, {size}")
    scene_type = SCENE_TYPES[index % len(SCENE_TYPES)]
    layout, texture, film, wording = (Dice((seed, index, stream)) for stream in range(4))
    canvas = Canvas(size, texture, film, sun=layout.choice(DIRECTIONS))
    story = Story(canvas, layout)
    SCENES[scene_type](story)
    image = canvas.finish(
        gain=layout.between(0.8, 1.1),
        haze=layout.between(0.0, 0.16),
        tint=(layout.between(0.96, 1.04), 1.0, layout.between(0.94, 1.06)),
    )
    spans, centres = _spans(canvas.owner, len(canvas.kinds))
    least = MIN_SIDE * size / UNITS
    things = [
        i for i, (x1, y1, x2, y2) in spans.items() if canvas.kinds[i] in THINGS and min(x2 - x1, y2 - y1) >= least
    ]
    # slivers of things that have no box count as background
    shown = [k if k in STUFF or i in things else "background" for i, k in enumerate(canvas.kinds)]
    mask = np.array([CLASSES.index(kind) for kind in shown], np.uint8)[canvas.owner]
    groups = {
        role: replace(
            group,
            members=tuple(things.index(i) for i in story.owners[role] if i in things),
            centre=_middle([centres[i] for i in story.owners[role] if i in centres], UNITS / size),
        )
        for role, group in story.groups.items()
    }
    relation = _relation(groups["main"], groups["other"]) if "other" in groups else "beside"
    captions = _repeat(tell(TEMPLATES[scene_type], groups, relation, wording), wording)
    words = {w for caption in captions for w in caption.split()}
    present = {CLASSES[i] for i in np.unique(mask)}
    return Scene(
        image=image,
        scene_type=scene_type,
        captions=captions,
        boxes=np.array([spans[i] for i in things], np.float32).reshape(-1, 4),
        labels=np.array([CLASSES.index(canvas.kinds[i]) for i in things], np.int64),
        mask=mask,
        nouns={c: said for c in CLASSES if c in present and (said := tuple(w for w in NOUNS[c] if w in words))},
        groups=groups,
        relation=relation,
    )


Span = tuple[int, int, int, int]


def _spans(owner: np.ndarray, n: int) -> tuple[dict[int, Span], dict[int, Point]]:
    """Tight box x1 y1 x2 y2 and centre of gravity of the pixels of each owner that is seen at all."""
    ys, xs = np.nonzero(owner)
    ids = owner[ys, xs]
    low, high, mean = np.full((2, n), owner.shape[0]), np.zeros((2, n), np.int64), np.zeros((2, n))
    area = np.maximum(np.bincount(ids, minlength=n), 1)
    for axis, values in enumerate((xs, ys)):
        np.minimum.at(low[axis], ids, values)
        np.maximum.at(high[axis], ids, values + 1)
        mean[axis] = np.bincount(ids, weights=values, minlength=n) / area + 0.5
    seen = [i for i in range(1, n) if high[0, i] > 0]
    spans = {i: (int(low[0, i]), int(low[1, i]), int(high[0, i]), int(high[1, i])) for i in seen}
    return spans, {i: (float(mean[0, i]), float(mean[1, i])) for i in seen}


def _middle(points: list[Point], unit: float) -> Point:
    """The mean of some points in pixels, in scene units."""
    n = max(len(points), 1)
    return sum(x for x, _ in points) * unit / n, sum(y for _, y in points) * unit / n


def _relation(main: Group, other: Group) -> str:
    """Which relation holds: a direction if it is clear, else beside."""
    dx, dy = main.centre[0] - other.centre[0], main.centre[1] - other.centre[1]
    if abs(dx) > max(2 * abs(dy), 20):
        return "left" if dx < 0 else "right"
    if abs(dy) > max(2 * abs(dx), 20):
        return "above" if dy < 0 else "below"
    return "beside"


def _repeat(sentences: list[str], dice: Dice) -> tuple[str, ...]:
    """RSICD's habit: half of the images have five sentences, the others repeat one to three of them."""
    kept = min(5 if dice.chance(50) else dice.integer(1, 3), len(sentences))
    return tuple(sentences[i % kept] for i in range(5))


def boundaries(mask: np.ndarray) -> np.ndarray:
    """Mark the pixels that touch another class above, below, left or right of them.

    Args:
        mask: label map, integer [H, W].

    Returns:
        uint8 [H, W], 1 on both sides of each border between classes (so borders are two pixels wide).

    Example:
        >>> boundaries(np.array([[0, 0, 0, 5]])).tolist()
        [[0, 0, 1, 1]]
    """
    edge = np.zeros(mask.shape, np.uint8)
    across, down = mask[:, 1:] != mask[:, :-1], mask[1:] != mask[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge


def write_dataset(
    root: Path,
    n_train: int,
    n_val: int,
    n_test: int,
    seed: int,
    size: int = 224,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a dataset of synthetic scenes into the folder `root`, whole or not at all.

    Train takes the first indices, then val, then test, so that no scene stands in two splits and each split
    holds all types about equally often. Does nothing where `root` already holds this very dataset.

    Args:
        root: folder to make; may exist if it is empty.
        n_train, n_val, n_test: scenes a split.
        seed: of the series.
        size: of the pictures, pixels.
        processes: how many to use; default is one a CPU core. A caller's script must be importable where the
            platform starts processes afresh (`if __name__ == "__main__":`).
        progress: called as progress(done, total) after each scene.

    Raises:
        UserError: `root` holds something else.
    """
    root = Path(root)
    if min(n_train, n_val, n_test) < 0:
        raise ValueError(f"a split cannot have fewer than 0 scenes: {n_train}, {n_val}, {n_test}")
    request = {"version": VERSION, "seed": seed, "train": n_train, "val": n_val, "test": n_test, "size": size}
    if _holds(root, request):
        return
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root} holds something else: name another folder, or delete this one")
    try:
        with drafting(root) as draft:
            for folder in ("RSICD_images", "masks"):
                (draft / folder).mkdir(parents=True)
            splits = ["train"] * n_train + ["val"] * n_val + ["test"] * n_test
            images, truth = [], {}
            for index, (name, captions, facts) in enumerate(_write_scenes(draft, seed, len(splits), size, processes)):
                images.append(_karpathy(name, index, splits[index], captions))
                truth[name] = facts
                if progress:
                    progress(index + 1, len(splits))
            write_whole(draft / "dataset_rsicd.json", json.dumps({"dataset": "synthetic", "images": images}))
            write_whole(draft / "truth.json", json.dumps({"classes": CLASSES, "images": truth}))
            write_whole(draft / REQUEST, json.dumps(request))
            draft.replace(root)  # in place of an empty folder, too
    except OSError as error:
        if not _holds(root, request):  # another process was faster: that is fine if it wrote the same
            raise UserError(f"{root} cannot be written ({error}): name another folder or make room") from error


def _holds(root: Path, request: dict[str, int]) -> bool:
    """Whether the folder holds the dataset that was asked for."""
    try:
        return json.loads((root / REQUEST).read_text(encoding="utf-8")) == request
    except (OSError, ValueError):
        return False


Written = tuple[str, tuple[str, ...], dict[str, Any]]


def _write_scenes(root: Path, seed: int, n: int, size: int, processes: int | None) -> Iterator[Written]:
    """Write pictures and masks of scenes 0..n-1; give each one's file name, captions and truth, in order."""
    task = partial(_write_scene, root, seed, size)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(processes or cores, n)
    if workers <= 1:
        yield from map(task, range(n))
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(task, range(n), chunksize=max(1, min(16, n // workers)))


def _write_scene(root: Path, seed: int, size: int, index: int) -> Written:
    scene = generate_scene(seed, index, size)
    name = f"{scene.scene_type}_{index}.png"
    Image.fromarray(scene.image).save(root / "RSICD_images" / name, compress_level=1)
    Image.fromarray(scene.mask).save(root / "masks" / name, compress_level=1)
    facts = {
        "scene_type": scene.scene_type,
        "boxes": scene.boxes.astype(int).tolist(),
        "labels": scene.labels.tolist(),
        "nouns": scene.nouns,
    }
    return name, scene.captions, facts


def _karpathy(name: str, index: int, split: str, captions: tuple[str, ...]) -> dict[str, Any]:
    """One image's entry as RSICD's file has it."""
    sentids = [5 * index + i for i in range(5)]
    sentences = [
        {
            "raw": raw,
            "tokens": raw.replace(",", " ").replace(".", " ").split(),
            "imgid": index,
            "sentid": sentid,
        }
        for raw, sentid in zip(captions, sentids, strict=True)
    ]
    return {"filename": name, "imgid": index, "split": split, "sentids": sentids, "sentences": sentences}


def read_truth(root: Path) -> dict[str, Truth]:
    """Read the truth that `write_dataset` stored, by file name; masks are read when asked for.

    Raises UserError if the folder holds no synthetic scenes, or such with other classes than this version's.
    """
    path = Path(root) / "truth.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        classes = stored["classes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): make the dataset anew with write_dataset") from error
    if classes != list(CLASSES):
        raise UserError(f"{path} has other classes than this version draws: delete the folder to make it anew")
    return {
        name: Truth(
            scene_type=facts["scene_type"],
            boxes=np.array(facts["boxes"], np.float32).reshape(-1, 4),
            labels=np.array(facts["labels"], np.int64),
            nouns={kind: tuple(words) for kind, words in facts["nouns"].items()},
            mask_path=Path(root) / "masks" / name,
        )
        for name, facts in stored["images"].items()
    }
