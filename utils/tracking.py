"""Metrics to a file always, to Weights & Biases where asked; tracking never takes a run down."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data.errors import UserError, reason
from data.files import held, lock_file, write_whole
from utils.config import Config, flatten
from utils.files import git_sha

LOG = "metrics.jsonl"  # of a run's folder


class Tracker:
    """`metrics.jsonl` in the run's folder, and a Weights & Biases run beside it.

    Args:
        run_dir: the run's folder. config: its configuration; `config.tracking.mode` is none, offline or online.
            Online without a key or a network becomes offline, with one line that says so.
        lines: when a run is resumed, how many lines its log had; later ones, which it writes again, are dropped.

    `UserError` where another process is at this run.
    """

    def __init__(self, run_dir: Path, config: Config, lines: int = 0) -> None:
        self.path = run_dir / LOG
        self.lines = lines
        self._lock = held(self.path)
        before = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        write_whole(self.path, b"".join(before[:lines]))
        self._wandb: Any = _start_wandb(run_dir, config) if config.tracking.mode != "none" else None

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Append one line, which is on the disk when this returns; scalars go to Weights & Biases too."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror}); make room, then --resume") from None
        self.lines += 1
        self._quietly(lambda: self._wandb.log(values, step=step))

    def table(self, step: int, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Val captions as a table; a cell that is a `Path` is shown as an image."""

        def send() -> None:
            import wandb

            cells = [[wandb.Image(str(c)) if isinstance(c, Path) else c for c in row] for row in rows]
            self._wandb.log({"val/captions": wandb.Table(columns=list(columns), data=cells)}, step=step)

        self._quietly(send)

    def finish(self) -> None:
        """Close the run."""
        self._quietly(lambda: self._wandb.finish())
        lock_file(self.path).unlink(missing_ok=True)
        self._lock.release()

    @property
    def active(self) -> bool:
        """Whether a Weights & Biases run is open."""
        return self._wandb is not None

    def _quietly(self, action: Callable[[], None]) -> None:
        if self._wandb is None:
            return
        try:
            action()
        except Exception as error:  # whatever a tracker's library throws, training goes on
            print(f"tracking stopped: {type(error).__name__}: {reason(error)}", file=sys.stderr)
            self._wandb = None


def _start_wandb(run_dir: Path, config: Config) -> Any:
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        import wandb
    except ImportError:
        print("tracking is off: pip install wandb", file=sys.stderr)
        return None
    arguments: dict[str, Any] = {
        "project": config.tracking.project,
        "name": run_dir.name,
        "dir": str(run_dir),
        "config": {**flatten(config), "git_sha": git_sha()},
    }
    modes: Any = dict.fromkeys([config.tracking.mode, "offline"])
    for mode in modes:
        try:
            settings = wandb.Settings(init_timeout=20, console="off")
            return wandb.init(mode=mode, settings=settings, **arguments)
        except Exception as error:  # no key, no network, a broken installation: each has its own
            print(f"Weights & Biases {mode} cannot start ({reason(error)})", file=sys.stderr)
    return None
