"""Score captions: of a checkpoint, or of anyone's results file.

python eval.py --checkpoint runs/RSICD-.../best.safetensors --dataset RSICD --data-root DIR --split val
python eval.py --results captions.json --dataset RSICD --data-root DIR

A results file is COCO's: [{"image_id": imgid or filename, "caption": ".."}].
"""

import argparse

from utils.files import git_sha, run_program, write_json


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line, or `words`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", metavar="PATH", help="best.safetensors of a run")
    what.add_argument("--results", metavar="CAPTIONS.json", help="captions to score as they are")
    parser.add_argument("--dataset", help="synthetic, RSICD, UCM, Sydney or NWPU (default: the checkpoint's)")
    parser.add_argument("--data-root", metavar="DIR", help="folder with the data set's files as published")
    parser.add_argument("--split", default="test", choices=["train", "val", "test"])
    parser.add_argument("--beam-size", type=int, help="default: the checkpoint's")
    parser.add_argument("--output", metavar="F.json", help="write metrics, captions and protocol there")
    return parser.parse_args(words)


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the heavy imports: --help and slips answer at once

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Column, Table

from data.annotations import AnnotatedImage
from data.errors import UserError
from utils.checkpoint import load_checkpoint
from utils.config import Config, parse_config
from utils.devices import best_device, choose_precision
from utils.inference import caption_rows
from utils.metrics import score_captions
from utils.sources import image_files, open_dataset

LIBRARIES = ("torch", "pycocoevalcap", "numpy")


def main(arguments: argparse.Namespace) -> None:
    """Caption the split or read the results, score, print, write."""
    if arguments.checkpoint:
        checkpoint = load_checkpoint(Path(arguments.checkpoint))
        config = checkpoint.config
    else:
        if arguments.dataset is None:
            raise UserError("--results needs --dataset NAME, the annotations to score against")
        config = Config()
    config = with_data(config, arguments)
    dataset = open_dataset(config)
    images = dataset.split(arguments.split)
    if arguments.checkpoint:
        precision = choose_precision("auto", best_device())
        checkpoint.captioner.to(best_device())
        beams = caption_rows(
            checkpoint.captioner,
            checkpoint.vocabulary,
            image_files(config, dataset, images),
            range(len(images)),
            config.decoding,
            precision,
        )
        captions = {image.imgid: found[0].text for image, found in zip(images, beams, strict=True)}
        source = {
            "checkpoint": arguments.checkpoint,
            "checkpoint_sha256": hashlib.sha256(Path(arguments.checkpoint).read_bytes()).hexdigest(),
            "beam_size": config.decoding.beam_size,
            "length_penalty": config.decoding.length_penalty,
            "precision": precision,
        }
    else:
        captions = read_results(Path(arguments.results), images)
        source = {"results": arguments.results}

    scores = score_captions(captions, {image.imgid: image.captions for image in images})
    protocol = {
        "dataset": dataset.spec.name,
        "split": arguments.split,
        "images": len(images),
        "split_sha256": split_digest(images),
        "notes": list(dataset.notes),
        **source,
        "tokenizer": "PTB, lower case, without punctuation (as pycocoevalcap 1.2)",
        "CIDEr": "CIDEr-D of coco-caption, document frequencies of this split's references",
        "unavailable": scores.unavailable,
        "git_sha": git_sha(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
    }
    show(dataset.spec.name, arguments.split, scores.metrics, scores.unavailable)
    if arguments.output:
        names = {image.imgid: image.filename for image in images}
        rows = [{"image_id": i, "filename": names[i], "caption": text} for i, text in captions.items()]
        write_json(Path(arguments.output), {"metrics": scores.metrics, "captions": rows, "protocol": protocol})


def with_data(config: Config, arguments: argparse.Namespace) -> Config:
    """The configuration with the data set, its folder and the beam that the command line names."""
    tree = config.model_dump()
    if arguments.dataset is not None and arguments.dataset != config.dataset:
        tree |= {"dataset": arguments.dataset, "data_root": None}
    if arguments.data_root is not None:
        tree["data_root"] = arguments.data_root
    if arguments.beam_size is not None:
        tree["decoding"]["beam_size"] = arguments.beam_size
    tree["data"]["limit"] = 0 if config.dataset != tree["dataset"] else tree["data"]["limit"]
    return parse_config(tree, "command line")


def read_results(path: Path, images: Sequence[AnnotatedImage]) -> dict[int, str]:
    """Captions by imgid from a COCO results file; `UserError` names ids that are missing, doubled or unknown."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({' '.join(str(error).split())[:80]})") from None
    if isinstance(entries, dict) and isinstance(entries.get("captions"), list):
        entries = entries["captions"]  # what --output writes
    if not isinstance(entries, list) or not all(
        isinstance(e, dict) and isinstance(e.get("caption"), str) and isinstance(e.get("image_id"), int | str)
        for e in entries
    ):
        raise UserError(f'{path}: expected [{{"image_id": imgid or filename, "caption": ".."}}, ..]')
    known: dict[Any, int] = {image.imgid: image.imgid for image in images}
    known |= {image.filename: image.imgid for image in images}
    known |= {Path(image.filename).name: image.imgid for image in images}
    unknown = [e["image_id"] for e in entries if e["image_id"] not in known]
    counts = Counter(known[e["image_id"]] for e in entries if e["image_id"] in known)
    doubled = [imgid for imgid, count in counts.items() if count > 1]
    missing = [image.imgid for image in images if image.imgid not in counts]
    for ids, fault in (
        (unknown, "are not in this split"),
        (doubled, "stand twice"),
        (missing, "have no caption"),
    ):
        if ids:
            some = ", ".join(map(str, ids[:10])) + (", .." if len(ids) > 10 else "")
            raise UserError(f"{path}: {len(ids)} image ids {fault}: {some}; check --split and --dataset")
    return {known[e["image_id"]]: e["caption"] for e in entries}


def split_digest(images: Sequence[AnnotatedImage]) -> str:
    """SHA-256 over file names and captions of a split, in their order: equal where two people score the same."""
    text = json.dumps([[image.filename, image.captions] for image in images])
    return hashlib.sha256(text.encode()).hexdigest()


def show(dataset: str, split: str, metrics: dict[str, float], unavailable: dict[str, str]) -> None:
    """The scores as a table, and why those that are not there are not."""
    console = Console(soft_wrap=True, highlight=False)
    table = Table(*(Column(name, justify="right") for name in metrics), title=f"{dataset} {split} (x 100)")
    table.add_row(*(f"{100 * value:.2f}" for value in metrics.values()))
    console.print(table)
    for name, reason in unavailable.items():
        console.print(f"{name} is not there: {reason}")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    run_program(lambda: main(ARGUMENTS))
