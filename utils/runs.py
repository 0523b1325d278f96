"""A run's folder: opened at the start, kept up to date, shown at the end; and what a run says meanwhile."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor

from data.annotations import AnnotatedImage
from data.datasets import CaptionDataset
from data.errors import UserError
from data.files import file_digest, held, write_whole
from data.loading import CaptionBatches, Visuals
from metrics.scores import printed
from models.captioner import Captioner
from utils.checkpoint import Checkpoint, load_checkpoint, load_state, save_checkpoint, save_state
from utils.config import Config, dump_config, flatten, parse_config, read_yaml
from utils.devices import best_device
from utils.files import code_digest, git_sha, versions, write_json
from utils.inference import caption_rows
from utils.results import result_entries, split_digest
from utils.sources import image_files
from utils.tracking import LOG, Tracker
from utils.visualize import Panel, attention_figure

# what changes no result
FREE_ON_RESUME = (
    *("data_root", "output_dir", "data.cache_dir", "data.workers"),
    *("train.save_every", "train.log_every", "tracking."),
    "train.precision",  # Progress says in which one the run was trained
)
PICTURED = 6  # val images in attention.png
BEST = "best.safetensors"
STATE = "last/state.safetensors"


@dataclass
class Progress:
    """Where a run stands: epochs and steps done, best CIDEr on val and its epoch, lines of the log, fp16's scaler.

    `seconds` are those of training alone, in all processes that went on with the run one after another. `processes` is
    how many train together, on which it depends what a step is of, `precision` that of their products (None: a run of
    before these were kept).
    """

    epoch: int = 0
    step: int = 0
    best: float = -1.0
    best_epoch: int = 0
    lines: int = 0
    seconds: float = 0.0
    scaler: dict[str, float] | None = None
    processes: int | None = None
    precision: str | None = None

    @classmethod
    def resumed(
        cls,
        run_dir: Path,
        captioner: Captioner,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        console: Console,
    ) -> "Progress":
        """A run at its start, or where it was last saved; captioner, optimizer and scaler are then put back, too.

        `UserError` where another number of processes saved it, whose steps are of other batches, or another precision.
        """
        now, precision = accelerator.num_processes, accelerator.mixed_precision.replace("no", "fp32")
        if not (run_dir / STATE).exists():
            return cls(processes=now, precision=precision)
        progress = cls(**load_state(run_dir / STATE, captioner, optimizer))
        if progress.processes not in (None, now):
            raise UserError(
                f"{run_dir / STATE}: processes that train together were {progress.processes} and are {now}; go on with "
                "as many, or choose another --output-dir"
            )
        if progress.precision not in (None, precision):
            raise UserError(
                f"{run_dir / STATE}: trained in {progress.precision}, and here it would go on in {precision}; add "
                f"train.precision={progress.precision}, or choose another --output-dir"
            )
        progress.processes, progress.precision = now, precision
        if accelerator.scaler and progress.scaler:
            accelerator.scaler.load_state_dict(progress.scaler)
        console.print(f"resuming after epoch {progress.epoch} (step {progress.step})")
        return progress

    def save(
        self,
        run_dir: Path,
        captioner: Captioner,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        tracker: Tracker | None,
    ) -> str:
        """Write what --resume needs, in the process that has the tracker; returns how to go on."""
        if tracker:
            self.lines = tracker.lines
            self.scaler = accelerator.scaler.state_dict() if accelerator.scaler else None
            save_state(run_dir / STATE, captioner, optimizer, asdict(self))
        return f"stopped after step {self.step}; the same command with --resume --output-dir {run_dir} goes on"


def open_run(config: Config, resume: bool, accelerator: Accelerator, origin: dict[str, Any]) -> Path:
    """The run's folder, with config.yaml and origin.json in it; one that holds a run is only taken with --resume.

    `UserError` where that run had another recipe or other data, or --resume names no folder.
    """
    if resume and not config.output_dir:
        raise UserError("--resume goes on with the run in a folder; name it by --output-dir")
    named = config.output_dir or (new_folder(config.dataset) if accelerator.is_main_process else None)
    run_dir = Path(broadcast_object_list([named])[0])
    written = run_dir / "config.yaml"
    begun = holds_run(run_dir)
    if begun:
        if not resume:
            raise UserError(f"{run_dir} holds a run: add --resume to go on with it, or choose another --output-dir")
        check_same_recipe(written, config)
        check_same_data(run_dir / "origin.json", origin)
    elif any((run_dir / name).exists() for name in (BEST, STATE)):
        raise UserError(f"{run_dir}: holds a model without the config.yaml of its run; choose another --output-dir")
    accelerator.wait_for_everyone()  # all have looked before the first one writes
    if accelerator.is_main_process and not begun:
        held(run_dir / LOG).release()  # nobody has just begun there
        write_json(run_dir / "origin.json", origin)
        write_whole(written, dump_config(config))
    return run_dir


def holds_run(run_dir: Path) -> bool:
    """Whether a run in this folder has got as far as to save something; another may begin where none has."""
    return (run_dir / "config.yaml").exists() and any((run_dir / name).exists() for name in (BEST, STATE))


def new_folder(dataset: str) -> str:
    """An empty folder of this run's own, runs/DATASET-DATE-TIME, with a number where another began in this second.

    `UserError` where it cannot be made.
    """
    name = f"runs/{dataset}-{datetime.now():%Y%m%d-%H%M%S}"
    for folder in (name, *(f"{name}-{i}" for i in range(2, 1000))):
        try:
            Path(folder).mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"{folder}: cannot be made ({error.strerror}); name an --output-dir") from None
    raise UserError(f"{name}: a thousand runs began in this second; name an --output-dir")


def origin_of(dataset: CaptionDataset, config: Config) -> dict[str, Any]:
    """What a run's numbers come from beside its configuration: code, libraries, data, and the images left out.

    And the models that it begins with or learns from, whose files may have become others by the time it goes on.
    """
    splits = dict.fromkeys(image.split for image in dataset.images)
    models = filter(None, (config.model.encoder.weights, config.train.init, *config.train.teachers))
    return {
        "git_sha": git_sha(),
        "code": code_digest(),
        "versions": versions(),
        "data_sha256": {split: split_digest(dataset.split(split)) for split in splits},
        "models_sha256": {name: file_digest(Path(name)) for name in models if Path(name).is_file()},
        "skipped": list(dataset.skipped),
    }


def check_same_recipe(written: Path, config: Config) -> None:
    """`UserError` naming what differs where the run that `written` (its config.yaml) is of had another recipe."""
    before, now = flatten(parse_config(read_yaml(written), str(written))), flatten(config)
    differing = (key for key in before | now if before.get(key) != now.get(key))
    if changed := [key for key in differing if not key.startswith(FREE_ON_RESUME)]:
        was = ", ".join(f"{key} was {before.get(key)} and is {now.get(key)}" for key in changed)
        raise UserError(f"{written}: a run goes on with its own recipe, but {was}; choose another --output-dir")


def check_same_data(written: Path, origin: Mapping[str, Any]) -> None:
    """`UserError` naming what differs where the run of `written` (its origin.json) saw other data or other models."""
    try:
        before = json.loads(written.read_text(encoding="utf-8"))
        data, models = before["data_sha256"], before.get("models_sha256", {})
        changed = [split for split, digest in origin["data_sha256"].items() if data.get(split) != digest]
        now = origin.get("models_sha256", {})
        others = [name for name, digest in now.items() if models.get(name, digest) != digest]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise UserError(f"{written}: does not say what data the run is of; choose another --output-dir") from None
    if changed:
        raise UserError(
            f"{written}: a run goes on with its own data, but file names or captions of {', '.join(changed)} differ; "
            "check --data-root, or choose another --output-dir"
        )
    if others:
        raise UserError(
            f"{written}: the run began with another {', '.join(others)} than is there now; put that back, or choose "
            "another --output-dir"
        )


def keep_best(
    run_dir: Path, best: Checkpoint, images: Sequence[AnnotatedImage], captions: Sequence[str], seconds: float
) -> None:
    """Write best.safetensors and val.json: its captions of `images`, and how many seconds an epoch took to train."""
    save_checkpoint(run_dir / BEST, best)
    entries = result_entries(images, captions)
    write_json(run_dir / "val.json", {**best.about, "seconds": seconds, "captions": entries})


def show_data(
    dataset: CaptionDataset, train: CaptionBatches, val: CaptionBatches, vocabulary_size: int, console: Console
) -> None:
    """Say what is trained on."""
    for note in dataset.notes:
        console.print(note)
    captions, distinct = train.counts
    console.print(
        f"{dataset.spec.name}: {len(train.images)} train and {len(val.images)} val images, {vocabulary_size} "
        f"words; {captions} captions are {distinct} distinct pairs, each trained once with its count as weight"
    )


def show_epoch(
    epoch: int,
    terms: Mapping[str, Tensor],
    scores: Mapping[str, float],
    trained: float,
    seconds: float,
    console: Console,
) -> None:
    """Print one line: the last step's loss, the scores on val, the seconds of training and of the rest."""
    shown = [f"loss {float(terms['train/loss']):.3f}"] if terms else []
    shown += [f"{name} {printed(name, value)}" for name, value in scores.items()]
    console.print(f"epoch {epoch + 1:3d}  {'  '.join(shown)}  {trained:.0f} + {seconds - trained:.0f} s")


def show_result(
    run_dir: Path,
    dataset: CaptionDataset,
    images: Sequence[AnnotatedImage],
    visuals: Visuals,
    precision: str,
    tracker: Tracker,
    step: int,
    console: Console,
) -> None:
    """Print the best epoch's scores; draw val images with their captions and where the decoder looked."""
    best = load_checkpoint(run_dir / BEST)
    config = best.config
    count = max(PICTURED, config.tracking.images if tracker.active else 0)
    rows = np.random.default_rng(0).permutation(len(images))[:count].tolist()
    captioner = best.captioner.to(best_device())
    captions = caption_rows(captioner, best.vocabulary, visuals, rows, config.decoding, precision)
    pixels = image_files(config, dataset, images).read(rows).permute(0, 2, 3, 1).numpy()
    panels = [
        Panel(image, found[0].words, found[0].attention, visuals.masks(row))
        for row, image, found in zip(rows, pixels, captions, strict=True)
    ]
    picture = run_dir / "attention.png"
    attention_figure(picture, panels[:PICTURED])
    if tracker.active:
        cells = []
        for row, panel in zip(rows[: config.tracking.images], panels, strict=False):
            looked = run_dir / "attention" / f"{images[row].imgid}.png"
            attention_figure(looked, [panel])
            caption = " ".join(panel.words)
            cells.append([images[row].filename, dataset.path(images[row]), caption, images[row].captions[0], looked])
        tracker.table(step, ("filename", "image", "caption", "reference", "attention"), cells)

    scores = best.about["val"]
    method, beam_size = config.decoding.method, config.decoding.beam_size
    way = f"{method} {beam_size}" if method in ("beam", "consensus") else method
    title = f"{dataset.spec.name} val (shares x 100), epoch {best.about['epoch']}, {way}"
    table = Table("", Column("score", justify="right"), title=title)
    for name, value in scores.items():
        table.add_row(name, printed(name, value))
    console.print(table)
    console.print(f"run folder  {run_dir}\npicture     {picture}")
