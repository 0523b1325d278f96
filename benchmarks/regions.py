"""Regions as we find them and at the image's full size: how well they cover what is there, and milliseconds an image.

    python benchmarks/regions.py [--scenes 250]

Of a thing in a synthetic scene the best overlap (intersection over union) that any of the regions has; its mean over
all things, and over scenes the mean difference of their means with its standard error. One core.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from skimage.segmentation import felzenszwalb, slic

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.grouping import grouping
from data.regions import RegionSpec, enlarged, segment
from data.synthetic import Scene, generate_scene
from utils.progress import track

SEED = 5
KINDS = ("slic", "felzenszwalb", "selective_search")


def at_full_size(image: np.ndarray, spec: RegionSpec) -> np.ndarray:
    """As `segment`, on the image as it is, with scikit-image's own rounds and smoothing: bool [n, S, S]."""
    if spec.kind == "slic":
        labels = slic(image, spec.count, spec.compactness, start_label=0)
        return labels == np.arange(labels.max() + 1)[:, None, None]
    labels = felzenszwalb(image, scale=spec.scale, min_size=image.shape[0] * image.shape[1] // 1000)
    if spec.kind == "felzenszwalb":
        members, parents = grouping(labels, image, min(spec.count, labels.max() + 1))
        return members[parents == len(members)].take(labels, 1)
    return grouping(labels, image)[0][-spec.count :].take(labels, 1)


def things(scene: Scene) -> np.ndarray:
    """The pixels of each thing, bool [n, S, S]: those of its class within its box."""
    masks = np.zeros((len(scene.boxes), *scene.mask.shape), bool)
    for mask, (x1, y1, x2, y2), label in zip(masks, scene.boxes.astype(int), scene.labels, strict=True):
        mask[y1:y2, x1:x2] = scene.mask[y1:y2, x1:x2] == label
    return masks[masks.any((1, 2))]


def best_overlaps(masks: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """The best intersection over union that any region bool [m, S, S] has with each mask bool [n, S, S]: [n]."""
    ours, theirs = (part.reshape(len(part), -1).astype(np.float32) for part in (masks, regions))
    both = ours @ theirs.T
    return (both / (ours.sum(1)[:, None] + theirs.sum(1) - both)).max(1)


def judged(
    find: Callable[[np.ndarray, RegionSpec], np.ndarray], spec: RegionSpec, scenes: list[Scene]
) -> tuple[list[np.ndarray], float]:
    """Best overlaps of each scene's things, and milliseconds an image."""
    overlaps, seconds = [], 0.0
    for scene in track(scenes, len(scenes), f"{spec.kind} by {find.__name__}"):
        start = time.perf_counter()
        regions = find(scene.image, spec)
        seconds += time.perf_counter() - start
        overlaps.append(best_overlaps(things(scene), enlarged(regions, len(scene.image))))
    return overlaps, seconds / len(scenes) * 1e3


def main(count: int) -> None:
    """Print a row for each kind of regions."""
    cv2.setNumThreads(1)
    scenes = [scene for scene in (generate_scene(SEED, i) for i in range(count)) if len(things(scene))]
    print(f"{sum(len(things(scene)) for scene in scenes)} things of {len(scenes)} scenes\n")
    print("| regions | overlap | at full size | difference | ms | at full size |\n|---|---:|---:|---:|---:|---:|")
    for kind in KINDS:
        (ours, ms), (full, full_ms) = (judged(find, RegionSpec(kind), scenes) for find in (segment, at_full_size))
        gain = np.array([a.mean() - b.mean() for a, b in zip(ours, full, strict=True)])
        error = gain.std(ddof=1) / len(gain) ** 0.5
        means = " | ".join(f"{np.concatenate(overlaps).mean():.3f}" for overlaps in (ours, full))
        print(f"| {kind} | {means} | {gain.mean():+.3f} ± {error:.3f} | {ms:.1f} | {full_ms:.1f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=250)
    main(parser.parse_args().scenes)
