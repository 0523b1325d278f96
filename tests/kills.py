"""Kill training at random moments and resume it until it ends: python -m tests.kills [--kills 100] [--seed 0].

A run that was never killed and one that is killed again and again, by SIGKILL, SIGTERM and Ctrl-C, must end with the
same bytes in metrics.jsonl and the same tensors in both checkpoints. Moments are drawn evenly over a run's time, or on
purpose while a file is being written. One process imports everything and forks the runs: a kill costs no import.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import timm  # noqa: F401  makes the encoder
import torch
from safetensors.torch import load_file

import train
from data.synthetic import write_dataset
from utils.config import Config, load_config
from utils.files import run_program

OPTIONS = (
    "data.size=32",
    "train.batch_size=6",
    "train.log_every=1",
    "train.save_every=0",
    "train.precision=fp32",
    "model.encoder.name=test_efficientnet",
    "model.encoder.weights=none",
    "model.encoder.batch_size=4",
    "model.decoder.width=16",
    "decoding.beam_size=2",
    "decoding.max_words=8",
)


class Runs:
    """Forks runs of one recipe on scenes in `folder`; every run has its own folder and its own cache."""

    def __init__(self, folder: Path, options: tuple[str, ...] = ()) -> None:
        self.folder, self.options = folder, options
        write_dataset(folder / "scenes", 24, 8, 1, seed=0, size=32, processes=1)

    def config(self, name: str) -> Config:
        words = ["--data-root", self.folder / "scenes", "--output-dir", self.folder / name, "--epochs", "3"]
        words += [f"data.cache_dir={self.folder / name}-cache", *OPTIONS, *self.options]
        return load_config(train.parse_arguments(list(map(str, words))))

    def start(self, name: str) -> int:
        """The id of a process that trains, or goes on training, run `name`."""
        config = self.config(name)
        sys.stdout.flush()
        process = os.fork()
        if process:
            return process
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # shells switch it off for what they run behind
            for number, where in ((1, os.devnull), (2, f"{self.folder / name}.err")):
                os.dup2(os.open(where, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            run_program(lambda: train.main(config, resume=True))
            os._exit(0)
        except SystemExit as end:
            os._exit(int(end.code or 0))
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(99)

    def errors(self, name: str) -> str:
        return (self.folder / f"{name}.err").read_text()

    def phase(self, name: str) -> str:
        """Where run `name` was when it ended, by what it left."""
        run, cache = self.folder / name, self.folder / f"{name}-cache"
        writing = [path.name for path in (*run.rglob("*.unfinished"), *cache.rglob("*.unfinished"))]
        if writing:
            return "writing the feature store" if "h5" in writing[0] else f"writing {writing[0].split('.')[1]}"
        if not (run / "config.yaml").exists():
            return "before the run's folder"
        if not (run / "last" / "state.safetensors").exists():
            return "before the first save"
        return "training or validating"


def kill(runs: Runs, name: str, draw: random.Random, duration: float) -> tuple[str, int] | None:
    """Start run `name` and kill it; returns the phase and the signal, None where the run had already ended."""
    number = draw.choice([signal.SIGKILL] * 4 + [signal.SIGTERM, signal.SIGINT])
    until: Callable[[], bool]
    end = time.monotonic() + draw.uniform(0, 0.8 * duration)
    if draw.random() < 0.5:
        until = lambda: time.monotonic() > end  # noqa: E731
    else:  # while something is being written
        skip = draw.randrange(12)
        seen: set[str] = set()

        def until() -> bool:
            for folder in (runs.folder / name, runs.folder / f"{name}-cache"):
                for path in folder.rglob("*.unfinished"):
                    with suppress(FileNotFoundError):  # it has just been given its name
                        seen.add(f"{path}{path.stat().st_ino}")
            return len(seen) > skip

    process = runs.start(name)
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            assert os.waitstatus_to_exitcode(status) == 0, runs.errors(name)
            return None
        if until():
            break
        time.sleep(0.0002)
    os.kill(process, number)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if code == 0:
        return None
    assert code == (-number if number == signal.SIGKILL else 128 + number), f"exit code {code}: {runs.errors(name)}"
    if number != signal.SIGKILL:
        assert len(runs.errors(name).splitlines()) == 1, runs.errors(name)
    return runs.phase(name), number


def check_same(one: Path, other: Path) -> None:
    """`AssertionError` unless two runs have the same log and the same tensors, bit for bit."""
    logs = [(run / "metrics.jsonl").read_text().splitlines() for run in (one, other)]
    assert logs[0] == logs[1], f"{other}: {set(logs[0]) ^ set(logs[1])}"
    for name in ("best.safetensors", "last/state.safetensors"):
        a, b = load_file(one / name), load_file(other / name)
        assert a.keys() == b.keys(), f"{other}: {name}"
        for key in a:
            assert torch.equal(a[key], b[key]), f"{other}: {key} of {name}"


def survive(folder: Path, kills: int, seed: int, options: tuple[str, ...] = ()) -> Counter[tuple[str, int]]:
    """Kill so many times, each run until it ends; `AssertionError` where a run differs from one never killed."""
    runs, draw = Runs(folder, options), random.Random(seed)
    began = time.monotonic()
    status = os.waitpid(runs.start("whole"), 0)[1]
    assert status == 0, runs.errors("whole")
    duration = time.monotonic() - began
    survived: Counter[tuple[str, int]] = Counter()
    number = 0
    while survived.total() < kills:
        name = f"killed-{number}"
        while found := kill(runs, name, draw, duration):
            survived[found] += 1
            print(f"{survived.total()} {found[0]}", file=sys.stderr)
            if survived.total() == kills:
                status = os.waitpid(runs.start(name), 0)[1]
                assert status == 0, runs.errors(name)
                break
        check_same(folder / "whole", folder / name)
        assert not list((folder / name).rglob("*.unfinished"))
        number += 1
    return survived


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        survived = survive(Path(folder), arguments.kills, arguments.seed, tuple(arguments.overrides))
    for (phase, number), count in sorted(survived.items()):
        print(f"{count:4d}  {signal.Signals(number).name:8s} {phase}")
    print(f"{survived.total()} kills survived: the same metrics.jsonl and the same weights, bit for bit")


if __name__ == "__main__":
    main()
