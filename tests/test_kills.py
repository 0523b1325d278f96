import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_twenty_kills_cost_nothing() -> None:
    """In a process of its own, which has no threads when it forks; `make kills` does it 100 times."""
    command = [sys.executable, "-m", "tests.kills", "--kills", "20"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "20 kills survived" in done.stdout
