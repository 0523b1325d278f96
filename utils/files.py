"""What programs share: an option, JSON out, the commit of the code, and the ways to end."""

import argparse
import errno
import gc
import hashlib
import io
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from data.errors import UserError
from data.files import write_whole
from utils.signals import Stopped, stop_at_once

T = TypeVar("T")
DECODED = "decoding.samples, .voters, .beam_size or .max_words"
LIBRARIES = ("torch", "torchvision", "timm", "albumentations", "pillow", "numpy", "pycocoevalcap")


def offer_checkpoints(parser: argparse._ActionsContainer) -> None:
    """`--checkpoint`, given as often as one likes: of a parser, or of a group of its options."""
    parser.add_argument(
        "--checkpoint",
        action="append",
        metavar="PATH",
        help="best.safetensors of a run; again for more, which speak as one, with the options of the first (default: "
        "those that ship)",
    )


def offer_decoding(parser: argparse.ArgumentParser) -> None:
    """`--decoding`, given as often as one likes, for `utils.config.with_decoding`."""
    parser.add_argument(
        "--decoding",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another way to find captions, such as method=greedy or views=1; again for more (default: the run's)",
    )


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, indented, non-ASCII kept."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def git_sha() -> str:
    """The commit of this code, with `+` where files differ from it; 'unknown' outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        commit, changes = (
            subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True, timeout=10).stdout
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return commit.strip() + ("+" if changes.strip() else "")


@cache
def code_digest() -> str:
    """SHA-256 of the code that trains, as it lay on the disk when a program first asked.

    A commit does not say it where files differ from it.
    """
    root = Path(__file__).resolve().parent.parent
    rooms = ("data", "loss", "metrics", "models", "utils")
    digest = hashlib.sha256()
    for path in sorted([root / "train.py", *(path for room in rooms for path in (root / room).rglob("*.py"))]):
        digest.update(f"{path.relative_to(root)} ".encode() + path.read_bytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Python's version and those of the libraries that figures depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}


def one_line(text: str) -> str:
    """`text` with what is not printable escaped: one line, and nothing in it steers a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def run_program(main: Callable[[], T]) -> T:
    """What `main` returns. A user's mistake ends with one line and exit code 2, signal n with exit code 128 + n."""
    stop_at_once()
    gc.freeze()  # what was imported stays, and is not looked through for garbage until the end
    gc.enable()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without é gets \\xe9, not a traceback
    try:
        return main()
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        sys.exit(2)
    except (Stopped, KeyboardInterrupt) as stopped:
        print(one_line(str(stopped)) or "interrupted", file=sys.stderr)
        sys.exit(128 + getattr(stopped, "number", signal.SIGINT))
    except (MemoryError, RuntimeError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # who reads the output has gone (`| head`)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is flushed at the end goes nowhere
            sys.exit(141)
        if (advice := _refused(error)) is None:
            raise
        print(f"error: {advice}", file=sys.stderr)
        sys.exit(2)
    finally:
        if "triton" in sys.modules:  # whose binding complains of all that is left over when Python ends
            gc.unfreeze()


def _refused(error: Exception) -> str | None:
    """What ran out and what to lower, or which file the system refused and why; None where it is another error."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.filename or 'the disk'}: no space left; make room, then go on with the same command"
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
        return f"out of GPU memory; lower train.batch_size, model.encoder.batch_size, data.size or {DECODED}"
    if isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error):
        return f"out of memory; lower train.batch_size, model.encoder.batch_size, data.workers, data.size or {DECODED}"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}; check the path, and who may read and write there"
    return None
