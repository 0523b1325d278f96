"""Train every recipe of a grid and compare them: python ablate.py GRID.yaml [--data-root DIR] [section.key=value ...].

A grid (utils/grid.py says how to write one; configs/ablations/ has some) is a base recipe, factors and seeds. Runs that
are done are not done again (the table says where they are of other code), and a run that was stopped goes on. Started
several times, the processes share the runs out. The folder then holds table.md, table.csv, plot.png, and of every run a
folder VARIANT/seedN as train.py leaves it.
"""

import argparse

from utils.files import code_digest, git_sha, run_program, write_json


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line, or `words`; None where a flag was not given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", metavar="GRID.yaml")
    parser.add_argument("--data-root", metavar="DIR", help="folder with the data set's files as published")
    parser.add_argument("--output-dir", metavar="DIR", help="default: runs/ablations/GRID")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--table", action="store_true", help="train nothing, only compare what is done")
    what.add_argument("--sweep", action="store_true", help="train nothing, write the grid as a Weights & Biases sweep")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="options of the base recipe")
    return parser.parse_intermixed_args(words)


if __name__ == "__main__":
    ARGUMENTS = parse_arguments()  # before the heavy imports: --help and slips answer at once

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import yaml
from filelock import FileLock, Timeout
from rich.console import Console

import train
from data.datasets import CaptionDataset
from data.errors import UserError
from data.files import write_whole
from metrics.diversity import diversity, rare_recall
from metrics.scores import FAST, score_captions
from utils.comparison import SECONDS, TESTED, Run, compare, markdown, plot, write_csv
from utils.config import Config, dump_config, read_overrides
from utils.grid import Grid, Variant, load_grid, variants
from utils.grounding import SCORES as GROUNDING
from utils.results import read_results
from utils.runs import check_same_recipe, holds_run
from utils.sources import open_dataset

CODE = code_digest()  # of what is imported here, whatever is edited while runs are at work
BUSY, DONE = 75, 76  # exit codes where another process is at a run, and where it has done it
console = Console(soft_wrap=True, highlight=False, markup=False)


def main(arguments: argparse.Namespace) -> None:
    """Train what is not done yet, then compare."""
    path = Path(arguments.grid)
    grid = load_grid(path)
    root = {} if arguments.data_root is None else {"data_root": arguments.data_root}
    cells = variants(path, grid, root | read_overrides(arguments.overrides))
    check_columns(path, grid.columns)
    folder = Path(arguments.output_dir or f"runs/ablations/{path.stem}")
    if arguments.sweep:
        write_sweep(folder, grid, cells)
        return
    failed = [] if arguments.table else train_all(folder, grid, cells)
    with suppress(*[UserError] if failed else []):  # what failed says more than that there is nothing to compare
        tabulate(folder, path.stem, grid, cells)
    if failed:
        raise UserError(f"{len(failed)} runs failed, start again to try again: {'; '.join(failed)}")


def check_columns(path: Path, columns: Sequence[str]) -> None:
    """`UserError` where a run cannot come to have one of these, before any is done; heads' (`concepts/mAP`) may be."""
    scores = score_captions({0: "a"}, {0: ["a"]}, FAST).metrics
    known = {*scores, *diversity(["a"], ["a"]), *GROUNDING, "rare_recall", SECONDS}
    if unknown := [column for column in columns if column not in known and "/" not in column]:
        raise UserError(f"{path}: columns: no measure {unknown[0]!r}; there are {', '.join(sorted(known))}")


def run_config(folder: Path, variant: Variant, seed: int) -> Config:
    """The configuration of one run."""
    return variant.config.model_copy(update={"seed": seed, "output_dir": str(folder / variant.name / f"seed{seed}")})


def train_all(folder: Path, grid: Grid, cells: Sequence[Variant]) -> list[str]:
    """Do the runs that are not done, seed by seed, so that every variant has one early; returns what failed."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the run that is at work ends, too
    runs = [(variant, seed, run_config(folder, variant, seed)) for seed in grid.seeds for variant in cells]
    waiting = [run for run in runs if not is_done(run[2])]
    console.print(
        f"{folder}: {len(cells)} variants x {len(grid.seeds)} seeds, {len(runs) - len(waiting)} runs are done"
    )
    failed, busy, times = [], [], []
    for patient in (False, True):  # in the end, wait for what others are at: where they died, it is done here
        for left, (variant, seed, config) in zip(range(len(waiting), 0, -1), waiting, strict=True):
            name = f"{', '.join(variant.levels)}, seed {seed}"
            began = time.monotonic()
            code = in_own_process(config, patient)
            if code == BUSY:
                console.print(f"{name}: another process is at it")
                busy.append((variant, seed, config))
            elif code == DONE:
                console.print(f"{name}: another process has done it")
            elif code:
                log = Path(str(config.output_dir)) / "log.txt"
                said = log.read_text(encoding="utf-8").strip().splitlines() if log.exists() and code > 0 else []
                reason = said[-1] if said else f"ended by signal {-code}" if code < 0 else f"exit code {code}"
                failed.append(f"{name} ({log}: {reason})")
                console.print(f"{name}: failed, see {log}")
            else:
                times.append(time.monotonic() - began)
                score = json.loads(results_of(config).read_text(encoding="utf-8"))["val"][TESTED]
                rest = sum(times) / len(times) * (left - 1) / 60
                console.print(f"{name}: {TESTED} {100 * score:.2f} in {times[-1]:.0f} s, about {rest:.0f} min left")
        waiting, busy = busy, []
    return failed


def in_own_process(config: Config, patient: bool) -> int:
    """The exit code of a run in a process of its own: what it leaves behind in memory, or its crash, harms no other.

    The process is a fork, which starts with the imports done. It holds the run's lock itself, so that the lock is
    gone when the run is, however either ends.
    """
    process = get_context("fork").Process(target=run_program, args=(partial(train_one, config, patient),))
    process.start()
    try:
        process.join()
    finally:
        process.terminate()
        process.join()
    return process.exitcode or 0


def train_one(config: Config, patient: bool) -> None:
    """Do or go on with a run, its output in log.txt; exit code `BUSY` where another process is at it.

    Where `patient`, wait until it no longer is; exit code `DONE` where it has done it.
    """
    folder = Path(str(config.output_dir))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    try:
        with FileLock(folder / "lock", timeout=-1 if patient else 0):
            if is_done(config):
                sys.exit(DONE)
            train.main(config, resume=True)
            began = json.loads((folder / "origin.json").read_text(encoding="utf-8")).get("code")
            # a run that other code began is of neither
            write_json(folder / "done.json", {"git_sha": git_sha(), "code": CODE if began == CODE else ""})
    except Timeout:
        sys.exit(BUSY)


def is_done(config: Config) -> bool:
    """Whether the run is done; `UserError` where its folder has a run of another recipe."""
    folder = Path(str(config.output_dir))
    if holds_run(folder):
        check_same_recipe(folder / "config.yaml", config)
    return (folder / "done.json").exists()


def code_of(config: Config) -> str:
    """The digest of the code that did a run, "" where it did not say."""
    return json.loads((Path(str(config.output_dir)) / "done.json").read_text(encoding="utf-8")).get("code", "")


def results_of(config: Config) -> Path:
    """The file in which train.py left the captions of a run."""
    return Path(str(config.output_dir)) / "val.json"


def tabulate(folder: Path, title: str, grid: Grid, cells: Sequence[Variant]) -> None:
    """Compare the runs that are done: table.md, table.csv and plot.png."""
    dataset = open_dataset(cells[0].config)
    runs: dict[tuple[str, ...], dict[int, Run]] = {}
    missing = older = 0
    for variant in cells:
        configs = {seed: run_config(folder, variant, seed) for seed in grid.seeds}
        done = {seed: read_run(config, dataset, grid.columns) for seed, config in configs.items() if is_done(config)}
        missing += len(configs) - len(done)
        older += sum(code_of(configs[seed]) != CODE for seed in done)
        if done:
            runs[variant.levels] = done
    if cells[0].levels not in runs:
        raise UserError(f"{folder}: no run of the baseline ({', '.join(cells[0].levels)}) is done, nothing to compare")
    known = {name: None for seeds in runs.values() for run in seeds.values() for name in run.measures}
    if unknown := [column for column in grid.columns if column not in known]:
        raise UserError(f"columns: no measure {unknown[0]!r}; there are {', '.join(known)}")
    rows = compare(runs)
    table = markdown(rows, list(grid.factors), grid.columns)
    drawn = "both images and seeds" if len(grid.seeds) > 1 else "images, which says nothing of other seeds,"
    about = (
        f"{dataset.spec.name} val, {len(dataset.split('val'))} images, best epoch by {TESTED}; shares x 100, mean ± "
        f"standard deviation over seeds. Difference: {TESTED} against the first row, {drawn} drawn at random "
        f"(metrics/statistics.py, crossed_test)."
    )
    about += f" {missing} runs are not done yet." if missing else ""
    about += f" {older} runs are of other code than this; another --output-dir does them anew." if older else ""
    write_whole(folder / "table.md", f"# {title}\n\n{table}\n{about}\n")
    write_csv(folder / "table.csv", rows, list(grid.factors), grid.columns)
    plot(folder / "plot.png", rows, f"{title} ({dataset.spec.name} val)")
    console.print(f"{table}\n{about}\n{folder}/table.md, table.csv, plot.png")


def read_run(config: Config, dataset: CaptionDataset, columns: Sequence[str]) -> Run:
    """Score the captions that a run left, by every metric that needs no Java and, where a column asks, by diversity.

    What training scored beside them, as the metrics of heads, is taken from there.
    """
    images = dataset.split("val")
    captions = read_results(results_of(config), images)
    scores = score_captions(captions, {image.imgid: image.captions for image in images}, FAST)
    left = json.loads(results_of(config).read_text(encoding="utf-8"))
    measures = {**left["val"], **scores.metrics, SECONDS: left["seconds"]}
    if not measures.keys() >= set(columns):
        train_captions = [c for image in dataset.split("train") for c in image.captions]
        measures |= diversity(captions.values(), train_captions)
        texts = [captions[image.imgid] for image in images]
        measures["rare_recall"] = rare_recall(texts, [image.captions for image in images], train_captions)
    return Run(measures, scores.per_image[TESTED])


def write_sweep(folder: Path, grid: Grid, cells: Sequence[Variant]) -> None:
    """Write each variant as a recipe, and a sweep over these recipes and the seeds: sweep.yaml."""
    recipes = []
    for variant in cells:
        recipes.append(str(folder / "recipes" / f"{variant.name}.yaml"))
        tracking = variant.config.tracking.model_copy(update={"mode": "online"})
        write_whole(Path(recipes[-1]), dump_config(variant.config.model_copy(update={"tracking": tracking})))
    sweep = {
        "program": "train.py",
        "method": "grid",
        "metric": {"name": f"val/{TESTED}", "goal": "maximize"},
        "parameters": {"config": {"values": recipes}, "seed": {"values": list(grid.seeds)}},
        "command": ["${env}", "${interpreter}", "${program}", "${args}"],
    }
    write_whole(folder / "sweep.yaml", yaml.safe_dump(sweep, sort_keys=False))
    console.print(f"wandb sweep --project {cells[0].config.tracking.project} {folder / 'sweep.yaml'}")


if __name__ == "__main__":
    run_program(lambda: main(ARGUMENTS))
