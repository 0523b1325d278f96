"""The public data sets of remote-sensing image captioning, each as one specification, loaded by one function."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from data.annotations import SPLITS, AnnotatedImage, read_karpathy, read_nwpu, swap_val_and_test
from data.errors import UserError
from data.images import read_image


@dataclass(frozen=True)
class DatasetSpec:
    """What is known of a public data set before its files are opened.

    `annotations` and `image_folders` are the names that circulate, the published one first. `split_sizes`
    counts images of (train, val, test). `landmarks` maps an image to the split that it has under the
    captioning convention, for data sets that circulate with val and test exchanged.
    """

    name: str
    source: str
    annotations: tuple[str, ...]
    image_folders: tuple[str, ...]
    split_sizes: tuple[int, int, int] | None
    read: Callable[[Path, list[str] | None], list[AnnotatedImage]] = read_karpathy
    landmarks: dict[str, str] = field(default_factory=dict)

    @property
    def files(self) -> str:
        """What its folder holds, in words."""
        return f"{self.annotations[0]} and {self.image_folders[0]}/"


DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            name="synthetic",
            source="train.py makes it itself",
            annotations=("dataset_rsicd.json",),
            image_folders=("RSICD_images",),
            split_sizes=None,
        ),
        # Lu, Wang, Zheng, Li: Exploring Models and Data for Remote Sensing Image Caption Generation, TGRS 56(4), 2018
        DatasetSpec(
            name="RSICD",
            source="github.com/201528014227051/RSICD_optimal",
            annotations=("dataset_rsicd.json",),
            image_folders=("RSICD_images", "images"),
            split_sizes=(8734, 1093, 1094),
            landmarks={"airport_348.jpg": "val", "airport_61.jpg": "test"},
        ),
        # Qu, Li, Tao, Lu: Deep Semantic Understanding of High Resolution Remote Sensing Image, CITS 2016
        DatasetSpec(
            name="UCM",
            source="github.com/201528014227051/RSICD_optimal (UCM-captions)",
            annotations=("dataset.json", "dataset_ucm.json"),
            image_folders=("imgs", "images"),
            split_sizes=(1680, 210, 210),
        ),
        # of the same
        DatasetSpec(
            name="Sydney",
            source="github.com/201528014227051/RSICD_optimal (Sydney-captions)",
            annotations=("dataset.json", "dataset_sydney.json"),
            image_folders=("imgs", "images"),
            split_sizes=(497, 58, 58),
        ),
        # Cheng, Huang, Xu, Zhou, Li, Wang: NWPU-Captions Dataset and MLCA-Net, IEEE TGRS 60, 2022
        DatasetSpec(
            name="NWPU",
            source="github.com/HaiyanHuang98/NWPU-Captions",
            annotations=("dataset_nwpu.json",),
            image_folders=("NWPU_images", "images", "NWPU-RESISC45"),
            split_sizes=(25200, 3150, 3150),
            read=read_nwpu,
        ),
        DatasetSpec(
            name="own",
            source="docs/your-own-data.md",
            annotations=("dataset.json",),
            image_folders=("images",),
            split_sizes=None,
        ),
    )
}

CONVENTIONS = ("captioning", "as-is")


@dataclass(frozen=True)
class CaptionDataset:
    """A data set on disk: its images, the folder that they lie in, what was noticed, and what was left out and why."""

    spec: DatasetSpec
    image_root: Path
    images: tuple[AnnotatedImage, ...]
    notes: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    def split(self, name: str) -> list[AnnotatedImage]:
        """The images of one split, in the order of the annotations. `UserError` where there are none."""
        images = [image for image in self.images if image.split == name]
        if not images:
            raise UserError(
                f"{self.spec.name}: split {name!r} has no images in {self.image_root.parent}; "
                f"choose one of {', '.join(sorted({i.split for i in self.images}))}"
            )
        return images

    def path(self, image: AnnotatedImage) -> Path:
        """Where the image's file lies."""
        return self.image_root / image.filename


def load_dataset(name: str, root: Path | None, convention: str = "captioning") -> CaptionDataset:
    """Open data set `name` in folder `root`, as published.

    RSICD circulates with val and test exchanged: the captioning annotations have `airport_61.jpg` in test
    (1,094 images), the retrieval benchmarks in val. Both are recognised by their content; under
    `convention="captioning"` the names are put right, under `"as-is"` they stay. `notes` says which was
    found, and where split sizes differ from the published ones.

    Raises `UserError` where the name, the folder, the annotation file or the images are not to be had.
    """
    if name not in DATASETS:
        raise UserError(f"unknown data set {name!r}; known are {', '.join(DATASETS)}")
    if convention not in CONVENTIONS:
        raise UserError(f"unknown convention {convention!r}; known are {', '.join(CONVENTIONS)}")
    root = check_root(name, root)
    spec = DATASETS[name]
    annotations = _first(root, spec.annotations, Path.is_file)
    image_root = folder_of_images(root, spec.image_folders)
    if annotations is None or image_root is None:
        missing = " or ".join(spec.annotations if annotations is None else spec.image_folders)
        raise UserError(f"{root}: no {missing}; put {spec.files} there, see {spec.source}")

    images = spec.read(annotations, None)
    notes = []
    convention_found = convention_of(images, spec.landmarks)
    if convention_found == "exchanged":
        if convention == "captioning":
            images = swap_val_and_test(images)
            notes.append(
                f"{name}: val and test are exchanged in {annotations.name} (the retrieval benchmarks' convention); "
                "using the captioning convention"
            )
        else:
            notes.append(f"{name}: val and test are exchanged in {annotations.name}; kept as they are")
    elif convention_found == "captioning":
        notes.append(f"{name}: splits follow the captioning convention")
    notes += _size_notes(images, spec)
    images = located(images, image_root)
    for fault in links_out(images, image_root):
        raise UserError(fault)
    return CaptionDataset(spec, image_root, tuple(images), tuple(notes))


def check_root(name: str, root: Path | None) -> Path:
    """The folder of data set `name`; `UserError` where it is not named or not there."""
    spec = DATASETS[name]
    if root is None:
        raise UserError(f"{name} needs --data-root DIR, a folder with {spec.files}; see {spec.source}")
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; name one with {spec.files}, see {spec.source}")
    return root


def folder_of_images(root: Path, names: tuple[str, ...]) -> Path | None:
    """The first of folders `names` in `root`, or the one of its own name in it, as some programs unpack an archive."""
    folder = _first(root, names, Path.is_dir)
    inner = folder / folder.name if folder else None
    return inner if inner and inner.is_dir() else folder


def _first(root: Path, names: tuple[str, ...], is_there: Callable[[Path], bool]) -> Path | None:
    return next((root / name for name in names if is_there(root / name)), None)


def convention_of(images: list[AnnotatedImage], landmarks: dict[str, str]) -> str | None:
    """'captioning', 'exchanged', or None where no landmark is there or they contradict each other."""
    agree = {image.split == landmarks[image.filename] for image in images if image.filename in landmarks}
    return None if len(agree) != 1 else "captioning" if agree.pop() else "exchanged"


def _size_notes(images: list[AnnotatedImage], spec: DatasetSpec) -> list[str]:
    if spec.split_sizes is None:
        return []
    found = Counter(image.split for image in images)
    differing = [
        f"{split} {found[split]} (published {size})"
        for split, size in zip(SPLITS, spec.split_sizes, strict=True)
        if found[split] != size
    ]
    return [f"warning: {spec.name}: split sizes differ: {', '.join(differing)}"] if differing else []


def located(images: list[AnnotatedImage], image_root: Path) -> list[AnnotatedImage]:
    """The images with `filename` as it really lies under `image_root`: in its category's folder or flat.

    One that lies in a folder is enough to keep the folders: others may be missing.
    """
    flat = [replace(image, filename=image.filename.rpartition("/")[2]) for image in images]
    if len({image.filename for image in flat}) < len(flat):
        return images
    folders = {image.filename.rpartition("/")[0] for image in images} - {""}
    there = {folder for folder in folders if os.path.isdir(image_root / folder)}  # first: they are few
    nested = (image.filename for image in images if image.filename.rpartition("/")[0] in there)
    return images if any(os.path.exists(image_root / name) for name in nested) else flat


def links_out(images: list[AnnotatedImage], image_root: Path) -> Iterator[str]:
    """What is wrong with each file or folder of these images that is a link out of the folder of images."""
    root = image_root.resolve()
    folders = {(image_root / image.filename).parent for image in images}
    folders |= {above for folder in folders for above in folder.parents}
    folders -= {image_root, *image_root.parents}
    for path in (*folders, *(image_root / image.filename for image in images)):
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            yield f"{path}: a link that leaves the folder of images; put the file itself there"


def without_broken(dataset: CaptionDataset) -> CaptionDataset:
    """The data set without the images that cannot be read; `skipped` says which those are, and why."""

    def fault(image: AnnotatedImage) -> str | None:
        try:
            read_image(dataset.path(image))
        except UserError as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter's lock
        faults = list(pool.map(fault, dataset.images))
    skipped = tuple(found for found in faults if found)
    note = f"warning: {dataset.spec.name}: {len(skipped)} images cannot be read and are left out"
    kept = tuple(image for image, found in zip(dataset.images, faults, strict=True) if not found)
    return replace(dataset, images=kept, skipped=skipped, notes=(*dataset.notes, *([note] if skipped else [])))
