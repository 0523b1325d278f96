"""ablate.py as a user runs it: stopped, gone on with, shared between processes, and compared."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from filelock import FileLock
from PIL import Image

import ablate
import train
from data.errors import UserError
from utils.config import Config, load_config, parse_config, read_yaml
from utils.files import write_json
from utils.grid import load_grid, variants

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
GRID: dict = {
    "recipe": "synthetic.yaml",
    "base": {
        "train.epochs": 1,
        "train.batch_size": 16,
        "train.precision": "fp32",
        "data.size": 64,
        "data.limit": 20,
        "decoding.method": "greedy",
    },
    "factors": {
        "loss": {
            "CE + DSR": {"model.losses": [{"criterion": "custum_loss", "use_avr": False}]},
            "CE": {"model.losses": [{"criterion": "cross_entropy"}]},
        },
        "model.decoder.width": [16],
    },
    "seeds": [0, 1],
    "baseline": {"loss": "CE"},
    "columns": ["CIDEr", "vocabulary"],
}


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(GRID, sort_keys=False))
    return path


def test_a_grid_is_stopped_gone_on_with_and_compared(scenes: Path, grid: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / "ablate.py"), str(grid), "--data-root", str(scenes), "--output-dir", str(out)]
    command.append(f"data.cache_dir={tmp_path / 'cache'}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}

    killed = subprocess.Popen(command, start_new_session=True, **pipes)  # type: ignore[call-overload]
    while not list(out.glob("*/seed0/done.json")):
        assert killed.poll() is None, killed.stderr.read()
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    first = {path: path.stat().st_mtime_ns for path in out.glob("*/seed*/done.json")}
    assert len(first) < 3  # as the third is begun, the second is done

    held = out / "CE_16" / "seed1"
    held.mkdir(parents=True, exist_ok=True)
    lock = FileLock(held / "lock")
    lock.acquire()  # as another process would that is at this run
    again = subprocess.Popen(command, **pipes)  # type: ignore[call-overload]
    said = ""
    while "another process is at it" not in said:
        line = again.stdout.readline()
        assert line, again.stderr.read()  # it has ended
        said += line
    assert not (held / "done.json").exists()
    lock.release()  # and dies
    rest, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    done = list(out.glob("*/seed*/done.json"))
    assert len(done) == 4
    assert all(path.stat().st_mtime_ns == when for path, when in first.items())  # what was done was not done again
    assert f"{said}{rest}".count("min left") == 4 - len(first)
    assert all((path.parent / "metrics.jsonl").read_text().count("val/CIDEr") == 1 for path in done)

    assert (out / "table.md").read_text().splitlines()[2].startswith("| loss | model.decoder.width | seeds | CIDEr |")
    with (out / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["loss"], row["model.decoder.width"]) for row in rows] == [("CE", "16"), ("CE + DSR", "16")]
    for row in rows:
        folders = [out / f"{row['loss'].replace(' ', '-')}_{row['model.decoder.width']}" / f"seed{s}" for s in (0, 1)]
        scores = [json.loads((folder / "val.json").read_text())["val"]["CIDEr"] for folder in folders]
        assert float(row["CIDEr"]) == pytest.approx(np.mean(scores), abs=1e-9)
        assert float(row["CIDEr (std)"]) == pytest.approx(np.std(scores, ddof=1), abs=1e-9)
    for row in rows[1:]:
        assert float(row["difference"]) == pytest.approx(float(row["CIDEr"]) - float(rows[0]["CIDEr"]), abs=1e-9)
        assert float(row["low"]) <= float(row["difference"]) <= float(row["high"]) and 0 <= float(row["p"]) <= 1
    assert Image.open(out / "plot.png").width > 500

    assert "other code" not in (out / "table.md").read_text()
    write_json(done[0], {"git_sha": "unknown"})  # as before a loss was edited
    ablate.main(ablate.parse_arguments([*command[2:], "--table"]))
    assert "1 runs are of other code than this" in (out / "table.md").read_text()

    changed = yaml.safe_load(grid.read_text())
    changed["base"]["train.lr"] = 1.0
    grid.write_text(yaml.safe_dump(changed))
    with pytest.raises(UserError, match=r"train\.lr was 0\.002 and is 1\.0"):
        ablate.main(ablate.parse_arguments(command[2:]))


def test_a_run_that_other_code_began_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for began, code in ((ablate.CODE, ablate.CODE), ("before a loss was edited", "")):
        config = Config(output_dir=str(tmp_path / code))

        def run(config: Config, resume: bool, began: str = began) -> None:
            write_json(Path(str(config.output_dir)) / "origin.json", {"code": began})

        monkeypatch.setattr(train, "main", run)
        assert ablate.in_own_process(config, patient=False) == 0
        assert ablate.code_of(config) == code


def test_a_sweep_runs_the_same_recipes(grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    arguments = ablate.parse_arguments([str(grid), "--sweep", "--output-dir", str(tmp_path / "out"), "train.lr=1e-3"])
    ablate.main(arguments)
    assert str(tmp_path / "out" / "sweep.yaml") in capsys.readouterr().out
    sweep = yaml.safe_load((tmp_path / "out" / "sweep.yaml").read_text())
    cells = variants(grid, load_grid(grid), {"train.lr": 1e-3})
    parameters = sweep["parameters"]
    assert parameters["seed"]["values"] == [0, 1]
    for recipe, variant in zip(parameters["config"]["values"], cells, strict=True):
        asked = {"args": {"config": {"value": recipe}, "seed": {"value": 1}}}
        words = create_sweep_command(sweep["command"])[3:]  # as the agent runs them
        assert words == ["${args}"]
        config = load_config(train.parse_arguments(create_sweep_command_args(asked)["args"]))
        assert config.tracking.mode == "online"
        kept = {"seed": 1, "tracking": variant.config.tracking}
        assert config.model_copy(update=kept) == variant.config.model_copy(update=kept)


def test_every_cell_is_the_base_with_its_levels(grid: Path) -> None:
    factors = GRID["factors"] | {"model.decoder.width": [16, 24]}
    grid.write_text(yaml.safe_dump(GRID | {"factors": factors}, sort_keys=False))
    cells = variants(grid, load_grid(grid), {"train.lr": 1e-3, "dataset": "RSICD"})
    assert [cell.levels for cell in cells] == [("CE", "16"), ("CE + DSR", "16"), ("CE + DSR", "24"), ("CE", "24")]
    assert [cell.config.model.decoder.width for cell in cells] == [16, 16, 24, 24]
    assert all(cell.config.train.lr == 1e-3 and cell.config.dataset == "RSICD" for cell in cells)
    tree = read_yaml(ROOT / "configs" / "synthetic.yaml")
    plain = parse_config(tree, "").model_dump()
    assert cells[0].config.model_dump()["decoding"] == plain["decoding"] | {"method": "greedy"}


def test_lists_are_reached_into_and_cells_share_nothing(grid: Path) -> None:
    base = {"model.losses": [{"criterion": "cross_entropy"}, {"criterion": "softmax_focal_loss"}]}
    factors = {"model.losses.1.weight": [0, 0.5], "model.losses.1.gamma": [1.0, 2.0]}
    grid.write_text(yaml.safe_dump({"base": base, "factors": factors}, sort_keys=False))
    losses = [cell.config.model.losses for cell in variants(grid, load_grid(grid), {})]
    assert [loss[0] for loss in losses] == [{"criterion": "cross_entropy"}] * 4
    assert [(loss[1]["weight"], loss[1]["gamma"]) for loss in losses] == [(0, 1.0), (0, 2.0), (0.5, 1.0), (0.5, 2.0)]


def test_processes_share_the_runs_out_and_one_that_fails_ends_no_other(scenes: Path, tmp_path: Path) -> None:
    factors = {"regions.kind": ["masks", "grid"], "model.decoder.width": [16, 24]}  # there are no masks
    base = GRID["base"] | {"data.limit": 8, "data.size": 32, "decoding.max_words": 4}
    shared = {"recipe": "synthetic.yaml", "base": base, "factors": factors, "baseline": {"regions.kind": "grid"}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(shared, sort_keys=False))
    command = [sys.executable, str(ROOT / "ablate.py"), str(tmp_path / "tiny.yaml"), "--data-root", str(scenes)]
    command += ["--output-dir", str(tmp_path / "out"), f"data.cache_dir={tmp_path / 'cache'}"]
    together = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ended = [process.communicate(timeout=300) for process in together]
    assert [process.returncode for process in together] == [2, 2]
    assert sum(said.count("min left") for said, _ in ended) == 2  # each run that can be done was done once
    for _, errors in ended:
        assert errors.startswith("error: 2 runs failed, start again to try again: masks, ")
        assert all(f"masks, {width}, seed 0 (" in errors for width in (16, 24))  # whoever comes to which first
        assert "regions.masks" in errors and len(errors.splitlines()) == 1
    assert "2 runs are not done yet" in (tmp_path / "out" / "table.md").read_text()
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 2  # of train and val, made once, and no lock

    words = [*command[2:]]  # a slip in the columns is found before anything is trained
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(shared | {"columns": ["CIDER"]}, sort_keys=False))
    with pytest.raises(UserError, match="no measure 'CIDER'; there are Bleu_1"):
        ablate.main(ablate.parse_arguments(words))
    words = [*command[2:], "--table"]
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(shared | {"baseline": {}}, sort_keys=False))
    with pytest.raises(UserError, match=r"no run of the baseline \(masks, 16\) is done"):
        ablate.main(ablate.parse_arguments(words))


def test_every_grid_that_ships_is_valid() -> None:
    for path in (ROOT / "configs" / "ablations").rglob("*.yaml"):
        assert len(variants(path, load_grid(path), {})) > 1


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"factor": {}}, "unknown|extra|Extra"),
        ({"factors": {}}, "factors"),
        ({"baseline": {}, "factors": {"train.epoch": [1, 2]}}, r"unknown key train\.epoch"),
        ({"baseline": {}, "factors": {"a": {"one": {"train.lr": "high"}}}}, r"one: train\.lr"),
        ({"factors": {"a": {"b c": None, "b-c": None}}, "baseline": {}}, "share the folder b-c"),
        ({"baseline": {"loss": "KL"}}, "no level 'KL'"),
        ({"baseline": {"colour": "red"}}, "no such factor"),
        ({"factors": {"data.limit": [5, 6]}, "baseline": {}}, "change the val images"),
        ({"seeds": []}, "seeds"),
        ({"base": {"seed": 3}}, "seed is each run's own; set seeds"),
        ({"factors": {"seed": [1, 2]}, "baseline": {}}, "seed is each run's own; set seeds"),
        (
            {"baseline": {}, "factors": {"a": {"b": {"train.lr": 1.0}}, "train.lr": [2.0]}},
            "a and train.lr both set train.lr",
        ),
        ({"base": {"model.losses": [{}]}, "baseline": {}, "factors": {"model.losses.1.weight": [1]}}, "a list of 1,"),
        ({"base": {"train": 3}, "factors": {"train.lr": [1.0]}, "baseline": {}}, "train is a value"),
    ],
)
def test_slips_in_a_grid_are_named(grid: Path, change: dict, fault: str) -> None:
    grid.write_text(yaml.safe_dump(GRID | change))
    with pytest.raises(UserError, match=fault) as caught:
        variants(grid, load_grid(grid), {})
    assert str(grid) in str(caught.value) and "\n" not in str(caught.value)


def test_the_default_losses_are_reached_into(grid: Path) -> None:
    change = {"base": {"train.epochs": 1}, "factors": {"model.losses.0.beta": [0.5]}, "baseline": {}}
    grid.write_text(yaml.safe_dump(GRID | change))
    (cell,) = variants(grid, load_grid(grid), {})
    assert cell.config.model.losses == [Config().model.losses[0] | {"beta": 0.5}]


def test_what_a_factor_or_a_run_sets_is_not_set_from_outside(grid: Path) -> None:
    with pytest.raises(UserError, match="output_dir is each run's own; set --output-dir"):
        variants(grid, load_grid(grid), {"output_dir": "elsewhere"})
    with pytest.raises(UserError, match=r"model\.decoder\.width"):
        variants(grid, load_grid(grid), {"model.decoder.width": 3})
