"""The device at hand and the precision that it multiplies fastest."""

import ctypes
import os
import sys
from datetime import timedelta

import torch

from data.errors import UserError

PATIENCE = timedelta(days=30)  # of a process that waits for others; where one of them dies, the launcher ends all
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def best_device() -> torch.device:
    """CUDA, of several processes on a machine each with a GPU of its own, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def choose_precision(wanted: str, device: torch.device) -> str:
    """`wanted` ("fp32", "bf16" or "fp16"); for "auto" bf16 where the device has it in hardware, else "fp32".

    `UserError` for fp16 on a CPU, where its small gradients are not scaled and vanish.
    """
    if wanted == "fp16" and device.type == "cpu":
        raise UserError("train.precision=fp16 wants a GPU; set bf16 or fp32")
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "bf16"
    return "fp32"


def looking_precision(trained: str, device: torch.device) -> str:
    """What a captioner looks and speaks in after training with `train.precision` = `trained`: fp32 where that asked
    for it, perhaps because nothing less held its numbers, and else what is fastest here.
    """
    return choose_precision("fp32" if trained == "fp32" else "auto", device)


def choose_workers(wanted: int | None, device: torch.device) -> int:
    """`wanted` processes that read ahead; for None as many as there are cores to spare beside a GPU, at most 8.

    On a CPU none, since what reads ahead takes from the cores that train.
    """
    if wanted is not None:
        return wanted
    if device.type == "cpu":
        return 0
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # processes that train on this machine
    return max(0, min(8, (os.cpu_count() or 1) // here - 1))


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Autocasting to `precision` on `device`; does nothing for "fp32"."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")


def tune_memory() -> None:
    """Let glibc keep what is freed for the next step, which asks for the same sizes again, and oneDNN fewer kernels.

    By default every large tensor is a fresh mapping, whose pages the kernel zeroes one by one: a quarter of the time
    that tuning an encoder takes on a CPU. Of oneDNN's kernels, one for each shape and a third of a MB each, 1,024 are
    kept where nobody says otherwise; since captions end one by one, a decoder's batches have always new shapes, and
    256 kernels train as fast with half a GB less. To be called before the first product.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
    if sys.platform == "linux":
        m_mmap_max, m_trim_threshold = -4, -1  # malloc.h
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # musl has none
            libc.mallopt(m_mmap_max, 0)
            libc.mallopt(m_trim_threshold, -1)
