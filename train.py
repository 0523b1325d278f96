"""Train a captioner: python train.py [--dataset RSICD --data-root DIR] [section.key=value ...].

With nothing else it trains on synthetic scenes that it makes itself. Every option and its default stands in
utils/config.py; recipes stand in configs/. A run's folder holds config.yaml, origin.json, metrics.jsonl, attention.png,
best.safetensors (what eval.py and caption.py read), val.json (its captions of val), and last/ (what --resume needs).
"""

import argparse
import gc
from pathlib import Path

from data.datasets import CaptionDataset, check_root
from utils.config import Config, load_config
from utils.files import run_program


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
    if CONFIG.dataset != "synthetic":
        run_program(lambda: check_root(CONFIG.dataset, Path(CONFIG.data_root) if CONFIG.data_root else None))

    gc.disable()  # until run_program: to look through all that libraries make, again and again, takes its time

import copy
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import gather_object, set_seed
from rich.console import Console
from torch import Tensor

from data.annotations import AnnotatedImage
from data.errors import UserError, reason
from data.loading import Batch, BatchKey, CaptionBatches, Visuals, loader
from data.synthetic import Truth
from data.tokenizer import tokenize
from data.vocabulary import SPECIALS, Vocabulary
from loss import LossFactory
from metrics.scores import FAST, score_captions
from models.captioner import Captioner
from models.encoder import Encoder
from utils.checkpoint import Checkpoint, build_captioner
from utils.criteria import build_criteria, log_terms, offered, stop_unless_finite
from utils.devices import PATIENCE, best_device, choose_precision, choose_workers, tune_memory
from utils.grounding import ground, known_truth
from utils.guides import Guides, load_models
from utils.heads import Head, Setting, build_heads, score_heads
from utils.inference import caption_rows
from utils.pretrained import load_encoder
from utils.progress import track
from utils.runs import Progress, keep_best, open_run, origin_of, show_data, show_epoch, show_result
from utils.signals import SafePoints
from utils.sources import open_dataset, preprocessing_of, visuals_of
from utils.tracking import Tracker

console = Console(soft_wrap=True, highlight=False, markup=False)


@dataclass(frozen=True)
class Data:
    """What a run learns from and is judged by; `images`, `visuals` and `batches` are by split.

    `truths` is what is true of synthetic scenes, by file name; `channels` are those of a cell's features.
    """

    dataset: CaptionDataset
    images: dict[str, list[AnnotatedImage]]
    visuals: dict[str, Visuals]
    truths: dict[str, Truth]
    vocabulary: Vocabulary
    channels: int
    heads: dict[str, Head]
    batches: dict[str, CaptionBatches]


def main(config: Config, resume: bool) -> None:
    """One run, from the files of a data set to the best checkpoint and a picture."""
    criteria = build_criteria(config)
    device = best_device()
    tune_memory()
    precision = choose_precision(config.train.precision, device)
    # told that it is a CPU, it lets several processes speak over gloo
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no" if precision == "fp32" else precision,
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=PATIENCE),  # while the first one encodes, the others wait
            DistributedDataParallelKwargs(find_unused_parameters=any(criteria.heads)),  # no loss may read a branch
        ],
    )
    criteria.to(accelerator.device)
    console.quiet = not accelerator.is_main_process
    set_seed(config.seed)  # an encoder without weights is drawn
    with accelerator.main_process_first():  # what it downloads, draws or encodes the others find in the cache
        init, teachers = load_models(config)
        wanted = config.model.encoder
        if init:
            encoder = copy.deepcopy(init.captioner.encoder)
        else:
            encoder = load_encoder(wanted.name, wanted.weights, wanted.extra_layers)
        given = next((model.vocabulary for model in (init, *teachers) if model), None)
        data = open_data(config, criteria.heads, encoder.to(accelerator.device), given, precision)
    show_data(data.dataset, data.batches["train"], data.batches["val"], len(data.vocabulary), console)

    # Model, optimizer, and where the run stands.
    captioner, optimizer = build_model(config, data, encoder, init)
    guides = Guides(config, criteria, captioner, init, teachers, data.dataset, data.batches["train"], precision)
    origin = origin_of(data.dataset, config)
    run_dir = open_run(config, resume, accelerator, origin)
    progress = Progress.resumed(run_dir, captioner, optimizer, accelerator, console)
    tracker = Tracker(run_dir, config, progress.lines) if accelerator.is_main_process else None
    log = tracker.log if tracker else lambda *_: None
    model, optimizer = accelerator.prepare(captioner, optimizer)
    save = partial(progress.save, run_dir, captioner, optimizer, accelerator, tracker)
    total = len(plan(config, data.batches["train"], accelerator, 0)) * config.train.epochs
    console.print(f"run folder {run_dir}: {total} steps on {accelerator.device} in {precision}")

    saved = time.monotonic()
    with SafePoints(save, heed=accelerator.is_main_process) as safe:
        for epoch in range(progress.epoch, config.train.epochs):
            if epoch - progress.best_epoch >= config.train.patience:
                console.print(f"no better CIDEr on val for {config.train.patience} epochs: stopping")
                break
            began = step_began = time.monotonic()
            before = progress.seconds
            terms: dict[str, Tensor] = {}
            for terms in train_epoch(
                config, epoch, progress, model, criteria, optimizer, data.batches["train"], guides, accelerator, safe
            ):
                now = time.monotonic()
                progress.seconds, step_began = progress.seconds + now - step_began, now
                if progress.step % config.train.log_every == 0:
                    values = {name: float(accelerator.reduce(term, "mean")) for name, term in terms.items()}
                    log(progress.step, {"epoch": epoch + 1, "lr": optimizer.param_groups[0]["lr"], **values})
                if time.monotonic() - saved >= config.train.save_every:
                    save()
                    saved = time.monotonic()
                step_began = time.monotonic()  # neither the log nor a save is training
            said, scores = validate(config, captioner, data, guides, precision, accelerator, safe)
            progress.epoch = epoch + 1
            if scores["CIDEr"] > progress.best or config.train.keep == "last":
                progress.best, progress.best_epoch = scores["CIDEr"], epoch + 1
                if tracker:
                    about = {"epoch": epoch + 1, "val": scores, **origin}
                    best = Checkpoint(captioner, data.vocabulary, preprocessing_of(config), config, about)
                    keep_best(run_dir, best, data.images["val"], said, progress.seconds / progress.epoch)
            log(progress.step, {"epoch": epoch + 1, **{f"val/{k}": v for k, v in scores.items()}})
            save()
            saved = time.monotonic()
            show_epoch(epoch, terms, scores, progress.seconds - before, time.monotonic() - began, console)

    accelerator.wait_for_everyone()
    if tracker:
        val = data.images["val"], data.visuals["val"]
        show_result(run_dir, data.dataset, *val, precision, tracker, progress.step, console)
        tracker.finish()


def open_data(
    config: Config, heads: Sequence[str | None], encoder: Encoder, vocabulary: Vocabulary | None, precision: str
) -> Data:
    """Annotations, words, what the decoder will look at, and the heads that criteria name, with what they should give.

    Without a `vocabulary` it is that of the train captions. Raises `UserError` where the encoder takes no images of
    `data.size` or an extra layer gives no map, or no word stands `data.min_count` times.
    """
    try:
        cells, channels = encoder.output_shape(config.data.size)
    except (AssertionError, AttributeError, RuntimeError) as error:  # each library and model has its own
        raise UserError(
            f"model.encoder.name={encoder.name} cannot look at images of data.size={config.data.size} "
            f"({reason(error)}); choose another size or encoder"
        ) from None
    except ValueError as error:
        raise UserError(f"model.encoder.extra_layers: {error}; choose a layer that all of it passes") from None
    dataset = open_dataset(config)
    images = {split: dataset.split(split) for split in ("train", "val")}
    if vocabulary is None:
        words = (tokenize(caption) for image in images["train"] for caption in image.captions)
        vocabulary = Vocabulary.build(words, config.data.min_count)
        if len(vocabulary) == len(SPECIALS):
            least = config.data.min_count
            raise UserError(f"data.min_count={least}: no word of the train captions stands so often; lower it")
    visuals = {
        split: visuals_of(config, dataset, images[split], encoder, precision, learning=split == "train")
        for split in images
    }
    set_seed(config.seed)  # here: whether features had to be made changes nothing after
    built = build_heads(heads, Setting(config, dataset, vocabulary, cells, channels))
    targets = {name: head.targets for name, head in built.items()}
    batches = {
        split: CaptionBatches(images[split], visuals[split], vocabulary, config.data.max_words, targets)
        for split in images
    }
    return Data(dataset, images, visuals, known_truth(dataset), vocabulary, channels, built, batches)


def build_model(
    config: Config, data: Data, encoder: Encoder, init: Checkpoint | None
) -> tuple[Captioner, torch.optim.Optimizer]:
    """The captioner, its decoder and heads going on from `init`, and AdamW, whose groups know their `peak` rates."""
    set_seed(config.seed)  # again: a decoder begins the same with whatever heads
    modules = {name: head.module for name, head in data.heads.items()}
    captioner = build_captioner(config, encoder, len(data.vocabulary), data.channels, modules).to(encoder.mean.device)
    try:
        encoder.freeze(config.model.encoder.frozen_stages)
    except ValueError as error:
        raise UserError(f"model.encoder.frozen_stages: {error}") from None
    if config.model.encoder.trainable:
        encoder.freeze_unused(config.data.size)
    if init:
        captioner.decoder.load_state_dict(init.captioner.decoder.state_dict())
        for name, head in init.captioner.heads.items():
            if name in captioner.heads:
                try:
                    captioner.heads[name].load_state_dict(head.state_dict())
                except RuntimeError:
                    raise UserError(f"train.init: its head {name} was made for other data; begin without it") from None
    groups = captioner.parameter_groups(config.train.lr, config.model.encoder.lr, config.train.weight_decay)
    kept = [{**group, "peak": group["lr"]} for group in groups]
    return captioner, torch.optim.AdamW(kept, betas=(0.9, 0.98), fused=True)


def plan(config: Config, batches: CaptionBatches, accelerator: Accelerator, epoch: int) -> list[list[BatchKey]]:
    """For each step of an epoch the batches that this process takes: `train.accumulation`, the last step the rest."""
    rank, world = accelerator.process_index, accelerator.num_processes
    keys = batches.epoch(epoch, config.train.batch_size, config.seed, rank, world)
    return [keys[i : i + config.train.accumulation] for i in range(0, len(keys), config.train.accumulation)]


def train_epoch(
    config: Config,
    epoch: int,
    progress: Progress,
    model: torch.nn.Module,
    criteria: LossFactory,
    optimizer: torch.optim.Optimizer,
    batches: CaptionBatches,
    guides: Guides,
    accelerator: Accelerator,
    safe: SafePoints,
) -> Iterator[dict[str, Tensor]]:
    """Make the steps of an epoch that are not made yet, count each in `progress`, and yield its terms.

    Every term is averaged over all batches of the step on all processes. What is drawn at random depends on the step's
    number alone, so that any step can be made again.
    """
    model.train()
    criteria.set_epoch(epoch + 1)
    steps = plan(config, batches, accelerator, epoch)
    total = len(steps) * config.train.epochs
    steps = steps[progress.step - epoch * len(steps) :]
    keys = [key for step in steps for key in step]
    workers = choose_workers(config.data.workers, accelerator.device)
    stream = iter(track(loader(batches, keys, workers), len(keys), f"epoch {epoch + 1}"))
    for step in safe.between(steps):
        rate = learning_rate(progress.step, total, config.train.warmup)
        for parameters in optimizer.param_groups:
            parameters["lr"] = parameters["peak"] * rate
        group = list(islice(stream, len(step)))
        seed = hash((config.seed, accelerator.process_index, progress.step)) % 2**32
        set_seed(seed)  # here: a loader that starts draws, too
        group = [guides(batch.to(accelerator.device), epoch) for batch in group]
        try:
            for _ in range(config.train.updates):
                terms = train_step(model, criteria, optimizer, group, accelerator, config.train.clip)
        except FloatingPointError as error:
            names = ", ".join(batches.images[row].filename for key in step for row in key.rows)
            where = f"step {progress.step + 1}, learning rate {optimizer.param_groups[0]['lr']:.3g}, images {names}"
            raise UserError(f"{error} at {where}; lower train.lr or set train.precision=fp32") from None
        progress.step += 1
        yield terms


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
    # a mean over processes, as their gradients are averaged, too
    counts = accelerator.reduce(torch.tensor(sizes, device=accelerator.device).sum(0), "mean")
    terms: dict[str, Tensor] = {}
    for i, batch in enumerate(batches):
        with accelerator.no_sync(model) if i < len(batches) - 1 else nullcontext():
            with accelerator.autocast():
                output = model(batch.visuals, batch.tokens[:, :-1], batch.image_of, batch.shown)
            try:
                result = criteria(*offered(output, batch, counts))
            except ValueError as error:  # only now is it known what a value has to fit, such as the number of words
                raise UserError(f"model.losses: {error}") from error
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


def validate(
    config: Config,
    captioner: Captioner,
    data: Data,
    guides: Guides,
    precision: str,
    accelerator: Accelerator,
    safe: SafePoints,
) -> tuple[list[str], dict[str, float]]:
    """The captions of val by free decoding, shared out among processes; scores of captions, heads and attention."""
    images, visuals = data.images["val"], data.visuals["val"]
    mine = range(accelerator.process_index, len(images), accelerator.num_processes)
    captions = caption_rows(captioner, data.vocabulary, visuals, mine, config.decoding, precision, what="validation")
    texts = (beams[0].text for beams in safe.between(captions))
    said = dict(gather_object(list(zip(mine, texts, strict=True))))
    scores = score_captions(said, {i: image.captions for i, image in enumerate(images)}, FAST).metrics
    scores |= score_heads(captioner, data.heads, data.batches["val"], precision, guides.show)
    views, most = config.decoding.views, config.data.max_words
    scores |= ground(captioner, data.vocabulary, visuals, images, data.truths, precision, views, most)
    return [said[row] for row in range(len(said))], scores


if __name__ == "__main__":
    run_program(lambda: main(CONFIG, ARGUMENTS.resume))
