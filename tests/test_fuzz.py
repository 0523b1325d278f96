from pathlib import Path

import pytest

from tests.fuzz import fuzz


@pytest.mark.slow
def test_a_thousand_damaged_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The first of what `make fuzz` goes on with."""
    ends, found = fuzz(tmp_path, range(1000), seed=0)
    assert not found, "\n".join(found)
    for target in ("annotations", "images", "checkpoints"):  # neither is all refused nor all read
        assert min(ends[f"{target} read"], ends[f"{target} refused"]) > 5, ends
    assert capfd.readouterr().err == ""
