"""The programs, called in this process or started in one of their own, and the options of a small run."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from accelerate.state import AcceleratorState

import caption
import eval as eval_program
import train
from utils.config import load_config

PROGRAMS = {"train": train, "eval": eval_program, "caption": caption}
ROOT = Path(__file__).resolve().parent.parent
Words = list[str | Path]
SMALL = (
    "data.size=96",
    "train.batch_size=16",
    "train.log_every=2",
    "train.lr=5e-3",
    "model.decoder.width=64",
    "decoding.beam_size=2",
    "train.precision=fp32",
)


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def call(name: str, *words: str | Path) -> None:
    """Run a program in this process, as its last line does."""
    arguments = PROGRAMS[name].parse_arguments(list(map(str, words)))
    if name == "train":
        AcceleratorState._reset_state(True)  # it is one for the whole process, and other tests asked for bf16
        train.main(load_config(arguments), arguments.resume)
    else:
        PROGRAMS[name].main(arguments)


def one_epoch(scenes: Path, folder: Path) -> list[str | Path]:
    """Arguments of a run of one epoch on the scenes, read as RSICD."""
    return ["--dataset", "RSICD", "--data-root", scenes, "--output-dir", folder, "--epochs", "1"]


def start(
    name: str, *arguments: str | Path, cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a program as a user would, in a process of its own and an empty folder, with environment `variables`."""
    command = [sys.executable, str(ROOT / name), *map(str, arguments)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "PYTHON"))}
    environment |= variables
    with tempfile.TemporaryDirectory() as elsewhere:
        return subprocess.run(
            command, cwd=cwd or elsewhere, env=environment, capture_output=True, text=True, timeout=300
        )
