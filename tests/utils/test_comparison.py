import csv
from pathlib import Path

import numpy as np

from utils.comparison import SECONDS, Run, compare, markdown, write_csv


def test_one_image_is_compared_but_not_tested() -> None:
    run = Run({"CIDEr": 0.5, SECONDS: 1.0}, np.array([0.5]))
    baseline, other = compare({("a",): {0: run}, ("b",): {0: run}})
    assert baseline.test is None and other.test is None


def test_a_measure_that_only_some_variants_have_is_left_empty_for_the_others(tmp_path: Path) -> None:
    """A head's metric, where the baseline has no such head."""
    cider = np.random.default_rng(0).random(8)
    plain = {seed: Run({"CIDEr": 0.5 + 0.1 * seed, SECONDS: 3.0}, cider) for seed in (0, 1)}
    headed = {seed: Run({"CIDEr": 0.6, "concepts/mAP": 0.2 + 0.1 * seed, SECONDS: 3.0}, cider + 0.1) for seed in (0, 1)}
    rows = compare({("none",): plain, ("predicted",): headed})
    columns = ["CIDEr", "concepts/mAP"]
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in markdown(rows, ["head"], columns).splitlines()
    ]
    assert lines[2][:4] == ["none", "2", "55.00 ± 7.07", ""]
    assert lines[3][:4] == ["predicted", "2", "60.00 ± 0.00", "25.00 ± 7.07"]
    write_csv(tmp_path / "table.csv", rows, ["head"], columns)
    first, second = csv.DictReader((tmp_path / "table.csv").open())
    assert first["concepts/mAP"] == first["concepts/mAP (std)"] == "" and float(second["concepts/mAP"]) == 0.25
