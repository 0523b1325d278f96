"""What freed memory costs can only be seen in a process of its own."""

import subprocess
import sys

import pytest

ALLOCATE = """
import resource, torch
from utils.devices import keep_freed_memory
for keep in (False, True):
    if keep: keep_freed_memory()
    for _ in range(20): torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10): torch.ones(2**24)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_kept_memory_is_not_zeroed_again() -> None:
    freed, kept = map(int, subprocess.check_output([sys.executable, "-c", ALLOCATE], text=True).split())
    assert kept < freed / 10
