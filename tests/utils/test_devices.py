"""Memory and what it costs, which can only be seen in a process of its own; readers beside a device."""

import os
import subprocess
import sys

import pytest
import torch

from data.errors import UserError
from utils.devices import best_device, choose_precision, choose_workers, looking_precision

ALLOCATE = """
import resource, torch
from utils.devices import tune_memory
for keep in (False, True):
    if keep: tune_memory()
    for _ in range(20): torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10): torch.ones(2**24)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_kept_memory_is_not_zeroed_again() -> None:
    freed, kept = map(int, subprocess.check_output([sys.executable, "-c", ALLOCATE], text=True).split())
    assert kept < freed / 10


CONVOLVE = """
import torch
from utils.devices import tune_memory
tune_memory()
weight = torch.ones(8, 8, 3, 3)
for height in [*range(100, 400), 100]: torch.conv2d(torch.ones(1, 8, height, 40), weight)
"""


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="oneDNN")
@pytest.mark.parametrize(("capacity", "made"), [({}, 301), ({"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024"}, 300)])
def test_onednn_forgets_the_kernels_of_old_shapes_unless_told_otherwise(capacity: dict[str, str], made: int) -> None:
    environment = os.environ | {"ONEDNN_VERBOSE": "2"} | capacity
    told = subprocess.check_output([sys.executable, "-c", CONVOLVE], text=True, env=environment).splitlines()
    assert sum("create:cache_miss" in line and "convolution," in line for line in told) == made


@pytest.mark.parametrize(
    ("wanted", "device", "cores", "processes", "workers"),
    [
        (None, "cpu", 16, 1, 0),
        (3, "cpu", 16, 1, 3),
        (None, "cuda", 16, 1, 8),
        (None, "cuda", 4, 1, 3),
        (None, "cuda", 16, 4, 3),
        (None, "cuda", 2, 4, 0),
        (0, "cuda", 16, 1, 0),
    ],
)
def test_readers_take_the_cores_that_are_to_spare_beside_a_gpu(
    wanted: int | None, device: str, cores: int, processes: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert choose_workers(wanted, torch.device(device)) == workers


@pytest.mark.parametrize("trained", ["auto", "bf16", "fp16", "fp32"])
def test_a_captioner_looks_in_full_precision_where_it_was_trained_so(trained: str) -> None:
    cpu = torch.device("cpu")
    assert looking_precision(trained, cpu) == ("fp32" if trained == "fp32" else choose_precision("auto", cpu))


def test_half_precision_without_a_gpu_is_refused() -> None:
    with pytest.raises(UserError, match="fp16 wants a GPU"):
        choose_precision("fp16", torch.device("cpu"))
    assert choose_precision("fp16", torch.device("cuda")) == "fp16"


@pytest.mark.parametrize(("rank", "gpu"), [(None, 0), ("1", 1), ("5", 1)])
def test_each_process_of_a_machine_has_a_gpu_of_its_own(
    rank: str | None, gpu: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert best_device() == torch.device("cuda", gpu)
