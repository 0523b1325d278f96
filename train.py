"""Train a captioner: python train.py [--dataset RSICD --data-root DIR] [section.key=value ...].

With nothing else it trains on synthetic scenes that it makes itself. Every option and its default stands in
utils/config.py; recipes stand in configs/. A run's folder holds config.yaml, origin.json, metrics.jsonl, attention.png,
best.safetensors (what eval.py and caption.py read), val.json (its captions of val), and last/ (what --resume needs).
"""

import argparse

from utils.config import Config, load_config
from utils.files import run_program, write_json


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line, or `words`; None where a flag was not given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", metavar="F.yaml", help="a recipe (default: the data set's own in configs/)")
    parser.add_argument("--dataset", help="synthetic (default), RSICD, UCM, Sydney, NWPU or own")
    parser.add_argument("--data-root", metavar="DIR", help="folder with the data set's files as published")
    parser.add_argument("--output-dir", metavar="DIR", help="the run's folder (default: runs/DATASET-DATE-TIME)")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--resume", action="store_true", help="go on with the run in --output-dir, or start it")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="any option of utils/config.py")
    return parser.parse_intermixed_args(words)


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the heavy imports: --help and slips answer at once
    CONFIG = run_program(lambda: load_config(ARGUMENTS))

import copy
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from rich.console import Console
from torch import Tensor

from data.annotations import AnnotatedImage
from data.datasets import CaptionDataset
from data.errors import UserError
from data.loading import Batch, CaptionBatches, loader
from data.tokenizer import tokenize
from data.vocabulary import Vocabulary
from loss import LossFactory, LossResult, build_loss
from metrics.scores import FAST, score_captions
from utils.checkpoint import (
    Checkpoint,
    build_captioner,
    load_state,
    save_checkpoint,
    save_state,
)
from utils.devices import best_device, choose_precision, keep_freed_memory
from utils.grounding import ground, known_truth
from utils.guides import TARGET as GUIDES
from utils.guides import Guides, load_models
from utils.heads import OUT as HEADS_OUT
from utils.heads import TARGET as HEADS_TARGET
from utils.heads import Setting, build_heads, score_heads
from utils.inference import caption_rows
from utils.pretrained import load_encoder
from utils.progress import track
from utils.results import result_entries
from utils.runs import open_run, origin_of, show_result
from utils.signals import SafePoints
from utils.sources import open_dataset, preprocessing_of, visuals_of
from utils.tracking import Tracker

# What the captioner offers to the criteria of model.losses; loss/README.md says which of them reads what.
OUT = ("pred", "policy", "attention", "region_count", *HEADS_OUT)
TARGET = ("target", "weight", "mask", "region_mask", "token_count", "caption_count", *HEADS_TARGET)
console = Console(soft_wrap=True, highlight=False, markup=False)


@dataclass
class Progress:
    """Where a run stands: epochs and steps done, best CIDEr on val and its epoch, lines of the log, fp16's scaler."""

    epoch: int = 0
    step: int = 0
    best: float = -1.0
    best_epoch: int = 0
    lines: int = 0
    scaler: dict[str, float] | None = None


def main(config: Config, resume: bool) -> None:
    """One run, from the files of a data set to the best checkpoint and a picture."""
    try:
        criteria = build_loss(config.model_dump(), class_dim=-1)
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise UserError(f"model.losses: {error}") from None
    guided = [key for key, option in GUIDES.items() if getattr(config.train, option)]
    if problems := criteria.missing(OUT, (*TARGET, *guided)):
        ways = [f"; train.{option} brings {key}" for key, option in GUIDES.items() if key in str(problems)]
        raise UserError(f"model.losses: {'; '.join(problems)}{''.join(ways)}")
    device = best_device()
    keep_freed_memory()
    precision = choose_precision(config.train.precision, device)
    # told that it is a CPU, it lets several processes speak over gloo
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no" if precision == "fp32" else precision)
    criteria.to(accelerator.device)
    rank, world = accelerator.process_index, accelerator.num_processes
    console.quiet = not accelerator.is_main_process

    # Data: annotations, words, and what the decoder will look at.
    with accelerator.main_process_first():
        dataset = open_dataset(config)
        init, teachers = load_models(config)
        known = (
            load_encoder(config.model.encoder.name, config.model.encoder.weights)
            if init is None
            else init.captioner.encoder
        )
        encoder = copy.deepcopy(known).to(accelerator.device)
        images = {split: dataset.split(split) for split in ("train", "val")}
        truths = known_truth(dataset)
        visuals = {
            split: visuals_of(config, dataset, images[split], encoder, precision, learning=split == "train")
            for split in images
        }
    words = (tokenize(caption) for image in images["train"] for caption in image.captions)
    given = [model.vocabulary for model in (init, *teachers) if model]
    vocabulary = given[0] if given else Vocabulary.build(words, config.data.min_count)
    cells, channels = encoder.output_shape(config.data.size)
    heads = build_heads(criteria.heads, Setting(config, dataset, len(vocabulary), cells, channels))
    targets = {name: head.targets for name, head in heads.items()}
    batches, val_batches = (
        CaptionBatches(images[split], visuals[split], vocabulary, config.data.max_words, targets) for split in images
    )
    describe_data(dataset, images, vocabulary, batches)

    # Model, optimizer, and where the run stands. Seeded here: whether features had to be made changes nothing after.
    set_seed(config.seed)
    modules = {name: head.module for name, head in heads.items()}
    captioner = build_captioner(config, encoder, len(vocabulary), channels, modules).to(accelerator.device)
    if init:
        captioner.decoder.load_state_dict(init.captioner.decoder.state_dict())
    guides = Guides(config, criteria, captioner, init, teachers, dataset, batches, precision)
    groups = captioner.parameter_groups(config.train.lr, config.model.encoder.lr, config.train.weight_decay)
    optimizer = torch.optim.AdamW(list(groups), betas=(0.9, 0.98), fused=True)
    peaks = [group["lr"] for group in optimizer.param_groups]
    origin = origin_of(dataset)
    run_dir = open_run(config, resume, accelerator, origin)
    state_path = run_dir / "last" / "state.safetensors"
    progress = Progress()
    if state_path.exists():
        progress = Progress(**load_state(state_path, captioner, optimizer))
        console.print(f"resuming after epoch {progress.epoch} (step {progress.step})")
    if accelerator.scaler and progress.scaler:
        accelerator.scaler.load_state_dict(progress.scaler)
    tracker = Tracker(run_dir, config, progress.lines) if accelerator.is_main_process else None
    log = tracker.log if tracker else lambda *_: None
    model, optimizer = accelerator.prepare(captioner, optimizer)

    accumulation = config.train.accumulation
    per_epoch = math.ceil(len(batches.epoch(0, config.train.batch_size, config.seed, rank, world)) / accumulation)
    total = per_epoch * config.train.epochs
    console.print(f"run folder {run_dir}: {total} steps on {accelerator.device} in {precision}")

    saved = time.monotonic()

    def save() -> str:
        """Write what --resume needs; returns how to go on."""
        nonlocal saved
        if tracker:
            progress.lines = tracker.lines
            progress.scaler = accelerator.scaler.state_dict() if accelerator.scaler else None
            save_state(state_path, captioner, optimizer, asdict(progress))
        saved = time.monotonic()
        return f"stopped after step {progress.step}; the same command with --resume --output-dir {run_dir} goes on"

    with SafePoints(save, heed=accelerator.is_main_process) as safe:
        for epoch in range(progress.epoch, config.train.epochs):
            if epoch - progress.best_epoch >= config.train.patience:
                console.print(f"no better CIDEr on val for {config.train.patience} epochs: stopping")
                break

            # Train: every step takes `accumulation` batches, and every term is averaged over all of them on all
            # processes. What is drawn at random depends on the step's number alone, so that any step can be made again.
            model.train()
            criteria.set_epoch(epoch + 1)
            began = time.monotonic()
            done = progress.step - epoch * per_epoch
            keys = batches.epoch(epoch, config.train.batch_size, config.seed, rank, world)[done * accumulation :]
            stream = iter(track(loader(batches, keys, config.data.workers), len(keys), f"epoch {epoch + 1}"))
            terms: dict[str, Tensor] = {}
            for _ in safe.between(range(done, per_epoch)):
                rate = learning_rate(progress.step, total, config.train.warmup)
                for parameters, peak in zip(optimizer.param_groups, peaks, strict=True):
                    parameters["lr"] = peak * rate
                group = [b for _, b in zip(range(accumulation), stream, strict=False)]
                set_seed(hash((config.seed, rank, progress.step)) % 2**32)  # here: a loader that starts draws, too
                group = [guides(b.to(accelerator.device), epoch) for b in group]
                try:
                    for _ in range(config.train.updates):
                        terms = train_step(model, criteria, optimizer, group, accelerator, config.train.clip)
                except FloatingPointError as error:
                    names = ", ".join(images["train"][row].filename for b in group for row in b.rows.tolist())
                    where = f"step {progress.step + 1}, learning rate {peaks[0] * rate:.3g}, images {names}"
                    raise UserError(f"{error} at {where}; lower train.lr or set train.precision=fp32") from None
                progress.step += 1
                if progress.step % config.train.log_every == 0:
                    values = {name: float(accelerator.reduce(term, "mean")) for name, term in terms.items()}
                    log(progress.step, {"epoch": epoch + 1, "lr": peaks[0] * rate, **values})
                if time.monotonic() - saved >= config.train.save_every:
                    save()
            trained = time.monotonic() - began

            # Validate by free decoding; the best checkpoint is the one with the highest CIDEr.
            mine = range(rank, len(images["val"]), world)
            captions = caption_rows(
                captioner, vocabulary, visuals["val"], mine, config.decoding, precision, what="validation"
            )
            texts = (beams[0].text for beams in safe.between(captions))
            said = dict(gather_object(list(zip(mine, texts, strict=True))))
            scores = score_captions(said, {i: image.captions for i, image in enumerate(images["val"])}, FAST).metrics
            scores |= score_heads(captioner, heads, val_batches, precision, guides.show)
            scores |= ground(captioner, vocabulary, visuals["val"], images["val"], truths, precision)
            progress.epoch = epoch + 1
            if scores["CIDEr"] > progress.best:
                progress.best, progress.best_epoch = scores["CIDEr"], epoch + 1
                if tracker:
                    about = {"epoch": epoch + 1, "val": scores, **origin}
                    checkpoint = Checkpoint(captioner, vocabulary, preprocessing_of(config), config, about)
                    save_checkpoint(run_dir / "best.safetensors", checkpoint)
                    entries = result_entries(images["val"], [said[row] for row in range(len(said))])
                    write_json(run_dir / "val.json", {**about, "seconds": trained, "captions": entries})
            log(progress.step, {"epoch": epoch + 1, **{f"val/{k}": v for k, v in scores.items()}})
            save()
            shown = [f"loss {float(terms['train/loss']):.3f}"] if terms else []
            shown += [f"{name} {value:.3f}" for name, value in scores.items()]
            seconds = time.monotonic() - began
            console.print(f"epoch {epoch + 1:3d}  {'  '.join(shown)}  {trained:.0f} + {seconds - trained:.0f} s")

    accelerator.wait_for_everyone()
    if tracker:
        show_result(run_dir, dataset, images["val"], visuals["val"], precision, tracker, progress.step, console)
        tracker.finish()


def learning_rate(step: int, steps: int, warmup: float) -> float:
    """The share of the peak learning rate at `step` of `steps`: a linear rise, then half a cosine down to zero."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def train_step(
    model: torch.nn.Module,
    criteria: LossFactory,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    accelerator: Accelerator,
    clip: float,
) -> dict[str, Tensor]:
    """One optimizer step on `batches`; returns the loss, its terms raw and weighted, and the gradient's norm.

    Words and captions are counted over all batches and processes first, so that the gradient is that of one mean over
    all of them, however they are split.
    """
    sizes = [[b.word_count, b.caption_count, len(b.rows)] for b in batches]
    counts = torch.tensor(sizes, device=accelerator.device).sum(0)
    # the gradients of processes are averaged, too
    token_count, caption_count, image_count = accelerator.reduce(counts, "mean")
    terms: dict[str, Tensor] = {}
    for i, batch in enumerate(batches):
        with accelerator.no_sync(model) if i < len(batches) - 1 else nullcontext():
            with accelerator.autocast():
                output = model(batch.visuals, batch.tokens[:, :-1], batch.image_of, batch.shown)
            result = criteria(
                {
                    "pred": output.logits,
                    "policy": output.logits,
                    "attention": output.attention,
                    "region_count": output.region_count,
                    **output.heads,
                },
                {
                    "target": batch.words,
                    "weight": batch.weight,
                    "mask": batch.mask,
                    "region_mask": output.region_mask,
                    "token_count": token_count,
                    "caption_count": caption_count,
                    **{k: {**v, "share": len(batch.rows) / image_count} for k, v in batch.targets.items()},
                    **batch.guides,
                },
            )
            stop_unless_finite(result.total, "loss", log_terms(result))
            accelerator.backward(result.total)
        for name, value in log_terms(result).items():
            terms[name] = terms[name] + value if name in terms else value
    if "reward" in batches[0].guides:
        terms["train/reward"] = torch.stack([batch.guides["reward"] for batch in batches]).mean()
    terms["train/gradient"] = accelerator.clip_grad_norm_(model.parameters(), clip)
    if accelerator.scaler is None:  # a scaler skips such a step and lowers its scale
        stop_unless_finite(terms["train/gradient"], "gradient", terms)
    optimizer.step()
    optimizer.zero_grad()
    return terms


def stop_unless_finite(value: Tensor, what: str, terms: dict[str, Tensor]) -> None:
    """`FloatingPointError` with every term where `value` is infinite or no number."""
    if not torch.isfinite(value):
        every = ", ".join(f"{name} {float(term):.4g}" for name, term in terms.items())
        raise FloatingPointError(f"the {what} is not finite ({every})")


def log_terms(result: LossResult) -> dict[str, Tensor]:
    """The loss and its terms under the names that they have in the log: raw, weighted, and the parts of each."""
    return {
        "train/loss": result.total.detach(),
        **{f"train/{name}": value for name, value in (result.terms | result.parts).items()},
        **{f"train/raw/{name}": value for name, value in result.raw.items()},
        **{f"train/weighted/{name}": value for name, value in result.weighted.items()},
    }


def describe_data(
    dataset: CaptionDataset,
    images: dict[str, list[AnnotatedImage]],
    vocabulary: Vocabulary,
    batches: CaptionBatches,
) -> None:
    """Say what is trained on."""
    for note in dataset.notes:
        console.print(note)
    captions, distinct = batches.counts
    console.print(
        f"{dataset.spec.name}: {len(images['train'])} train and {len(images['val'])} val images, {len(vocabulary)} "
        f"words; {captions} captions are {distinct} distinct pairs, each trained once with its count as weight"
    )


if __name__ == "__main__":
    run_program(lambda: main(CONFIG, ARGUMENTS.resume))
