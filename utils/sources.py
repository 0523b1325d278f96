"""What a configuration's data set is on this machine: its annotations, and the visual input of a split."""

import hashlib
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from data.annotations import AnnotatedImage
from data.datasets import DATASETS, CaptionDataset, load_dataset, without_broken
from data.errors import UserError
from data.features import FeatureStore, build_store, store_key
from data.files import making
from data.loading import Content, ImageFiles, Readable, Regions, Visuals, in_order, visual_loader
from data.masks import mask_files
from data.parquet import find_parquet, unpack_parquet
from data.region_store import FoundRegions, RegionStore, build_regions, find_all
from data.regions import METHOD, RegionFinder, RegionSpec
from data.synthetic import REQUEST, VERSION, write_dataset
from data.transforms import Preprocessing
from models.encoder import Encoder
from models.runtime import translated
from models.views import mean_over_views, turned
from utils.config import Config
from utils.devices import autocast, choose_workers
from utils.pretrained import digest
from utils.progress import track
from utils.results import read_results


def open_dataset(config: Config) -> CaptionDataset:
    """The configured data set; synthetic scenes are made first where they are not there yet.

    `UserError` where a folder is named but no data set, which would take it for synthetic scenes that it has not.
    """
    root = None if config.data_root is None else Path(config.data_root)
    if config.dataset == "synthetic" and root is None:
        scenes = config.synthetic
        name = f"synthetic-v{VERSION}-{scenes.train}-{scenes.val}-{scenes.test}-{scenes.size}-{scenes.seed}"
        root = Path(config.data.cache_dir) / name
        write_dataset(root, scenes.train, scenes.val, scenes.test, scenes.seed, scenes.size)
    elif config.dataset == "synthetic" and root and root.is_dir() and not (root / REQUEST).exists():
        others = ", ".join(name for name in DATASETS if name != "synthetic")
        raise UserError(f"{root}: no synthetic scenes there; say by --dataset what is: {others}")
    elif root is not None and find_parquet(root):
        root = unpack_parquet(root, DATASETS[config.dataset], Path(config.data.cache_dir))
    dataset = load_dataset(config.dataset, root, config.data.convention)
    dataset = hold_back(dataset, config.data.held_back)
    if config.data.skip_broken:  # first: who captioned the train images left them out, too
        dataset = without_broken(dataset)
    if config.data.more_captions:
        dataset = with_captions(dataset, Path(config.data.more_captions))
    if config.data.limit:
        splits = [dataset.split(split) for split in dict.fromkeys(image.split for image in dataset.images)]
        kept = tuple(image for split in splits for image in thinned(split, config.data.limit))
        dataset = replace(dataset, images=kept)
    return dataset


def with_captions(dataset: CaptionDataset, path: Path) -> CaptionDataset:
    """The data set whose train images have one caption more, that of a results file (eval.py --split train --output).

    With a teacher's captions this is distillation by sequences (Kim & Rush, EMNLP 2016).
    """
    more = read_results(path, dataset.split("train"))
    images = (
        replace(image, captions=(*image.captions, more[image.imgid])) if image.split == "train" else image
        for image in dataset.images
    )
    return replace(dataset, images=tuple(images))


def thinned(images: Sequence[AnnotatedImage], limit: int) -> list[AnnotatedImage]:
    """At most `limit` images, evenly spread: data sets list one scene class after the other."""
    kept = min(limit, len(images))
    return [images[i * len(images) // kept] for i in range(kept)]


def hold_back(dataset: CaptionDataset, share: float) -> CaptionDataset:
    """The data set with about this share of its train images as a split of their own, named `held-back`.

    An image is held back where the first 8 bytes of the SHA-256 of its file name, as a number in 0..1, lie below the
    share: the same images on every machine, and more of them where the share grows.
    """

    def drawn(image: AnnotatedImage) -> bool:
        number = int.from_bytes(hashlib.sha256(image.filename.encode()).digest()[:8]) / 2**64
        return image.split == "train" and number < share

    images = tuple(replace(image, split="held-back") if drawn(image) else image for image in dataset.images)
    return replace(dataset, images=images)


def image_files(
    config: Config, dataset: CaptionDataset, images: Sequence[AnnotatedImage], augment: bool = False
) -> ImageFiles:
    """The images themselves, preprocessed."""
    paths = [dataset.path(image) for image in images]
    return ImageFiles(paths, preprocessing_of(config), augment, config.seed, config.data.blank_images)


def visuals_of(
    config: Config,
    dataset: CaptionDataset,
    images: Sequence[AnnotatedImage],
    encoder: Encoder,
    precision: str,
    learning: bool,
) -> Visuals:
    """What the captioner looks at: images where the encoder is trained, else its features of them, and their regions.

    Where `learning`, the images are turned and coloured as `data.augment` and `data.views` say.
    """
    content: Content
    if config.model.encoder.trainable:
        content = image_files(config, dataset, images, config.data.augment and learning)
    else:
        views = config.data.views if learning else config.decoding.views
        content = frozen_features(config, dataset, images, encoder, precision, views, averaged=not learning)
    return Visuals(content, stored_regions(config, dataset, images, encoder))


def frozen_features(
    config: Config,
    dataset: CaptionDataset,
    images: Sequence[AnnotatedImage],
    encoder: Encoder,
    precision: str,
    views: int = 1,
    averaged: bool = False,
) -> FeatureStore:
    """The features of a frozen encoder, from the store in `data.cache_dir`; made now where they are not there.

    With `views=8` the store holds every turn and flip of each image, of which an epoch sees one: augmentation for an
    encoder that is not trained; `averaged`, it holds their mean. The store's name depends on the encoder and a digest
    of its weights, the preprocessing, the views, and name, size and time of every file, so that features of anything
    else are never found.
    """
    files = image_files(config, dataset, images)
    description = {
        "encoder": [encoder.name, *encoder.extra_layers],
        "weights": digest(encoder.state_dict()),
        "precision": precision,
        "preprocessing": preprocessing_of(config).to_dict(),
        "blank": config.data.blank_images,
        "views": views,
        "averaged": averaged,
        "split": images[0].split,
        "dataset": dataset.spec.name,
    }
    path = Path(config.data.cache_dir) / "features" / f"{store_key(description, files.paths)}.h5"
    with making(path) as missing:
        if missing:
            size = max(1, config.model.encoder.batch_size // views)  # images, of which the encoder sees all views
            keys = in_order(range(len(images)), size)
            workers = choose_workers(config.data.workers, encoder.mean.device)
            chunks = track(visual_loader(files, keys, workers), len(keys), f"features of {images[0].split}")
            look = encode_mean if averaged else encode_views
            encode_all = partial(look, encoder, precision=precision, views=views)
            with translated(encoder, len(images) * views, precision):
                build_store(path, chunks, len(images), encode_all, description)
    return FeatureStore(path, config.seed)


def region_finder(config: Config, encoder: Encoder) -> RegionFinder | None:
    """What finds the configured regions in an image; None: the encoder's cells are the regions."""
    if config.regions.masks and config.regions.kind != "masks":
        raise UserError(f"regions.masks={config.regions.masks} is read by regions.kind=masks alone; add it")
    if config.regions.kind == "grid":
        return None
    if config.regions.kind == "masks" and not config.regions.masks:
        raise UserError("regions.kind=masks needs regions.masks=PATH, a folder or an HDF5 file of masks")
    cells, _ = encoder.output_shape(config.data.size)
    return RegionFinder(RegionSpec(**config.regions.model_dump(exclude={"pooling"})), math.isqrt(cells))


def stored_regions(
    config: Config, dataset: CaptionDataset, images: Sequence[AnnotatedImage], encoder: Encoder
) -> Regions | None:
    """The configured regions of these images, from the store in `data.cache_dir`; found now where they are not there.

    The store's name depends on all that regions depend on, the files among it, and not on the encoder but for its grid.
    """
    finder = region_finder(config, encoder)
    if finder is None:
        return None
    files = image_files(config, dataset, images)
    description = {
        "regions": asdict(finder.spec),
        "method": METHOD,
        "side": finder.side,
        "preprocessing": preprocessing_of(config).to_dict(),
        "blank": config.data.blank_images,
    }
    given = mask_files(Path(finder.spec.masks)) if finder.spec.masks else []
    path = Path(config.data.cache_dir) / "regions" / f"{store_key(description, [*given, *files.paths])}.h5"
    with making(path) as missing:
        if missing:
            found = track(find_all(files, finder), len(images), f"regions of {images[0].split}")
            problems = build_regions(path, found, len(images), description)
            for problem in problems:
                print(f"warning: its one region is the whole image: {problem}", file=sys.stderr)
    return RegionStore(path, config.data.size)


def live_regions(config: Config, content: Readable[Tensor], names: Sequence[str], encoder: Encoder) -> Regions | None:
    """The configured regions of images that are looked at once; `names` are their files', without suffixes."""
    finder = region_finder(config, encoder)
    if config.regions.kind == "masks" and (twice := [name for name, times in Counter(names).items() if times > 1]):
        raise UserError(f"regions.kind=masks: more than one image is called {twice[0]}; they would have the same masks")
    return None if finder is None else FoundRegions(content, names, finder)


@torch.inference_mode()
def encode(encoder: Encoder, images: Tensor, precision: str) -> Tensor:
    """Features [b, N, D] of uint8 images [b, 3, H, W], computed in `precision` where the encoder lies."""
    device = encoder.mean.device
    with autocast(device, precision):
        return encoder.eval()(images.to(device))


def encode_views(encoder: Encoder, images: Tensor, precision: str, views: int) -> Tensor:
    """Features [b, views, N, D] of the first `views` turns and flips of uint8 images [b, 3, S, S]."""
    seen = torch.stack([turned(images, view) for view in range(views)], 1)  # [b, views, 3, S, S]
    return encode(encoder, seen.flatten(0, 1), precision).unflatten(0, seen.shape[:2])


def encode_mean(encoder: Encoder, images: Tensor, precision: str, views: int) -> Tensor:
    """Features [b, 1, N, D] of uint8 images [b, 3, S, S], the mean over their first `views` turns and flips."""
    return mean_over_views(partial(encode, encoder, precision=precision), images, views)[:, None]


def preprocessing_of(config: Config) -> Preprocessing:
    """The configured preprocessing."""
    return Preprocessing(config.data.size, config.data.interpolation)
