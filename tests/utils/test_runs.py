"""Run folders: each run has its own, and goes on with what it began with."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from rich.console import Console

from data.errors import UserError
from data.files import file_digest
from utils.checkpoint import save_state
from utils.config import Config, parse_config
from utils.files import write_json
from utils.runs import STATE, Progress, new_folder, open_run, origin_of
from utils.sources import open_dataset


def test_runs_that_begin_in_one_second_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(new_folder, ["RSICD"] * 40))
    assert len(set(folders)) == 40 and all(Path(folder).is_dir() for folder in folders)
    assert all(re.fullmatch(r"runs/RSICD-\d{8}-\d{6}(-\d+)?", folder) for folder in folders)


def test_a_run_goes_on_with_its_own_data(tmp_path: Path) -> None:
    AcceleratorState._reset_state(True)  # it is one for the whole process, and other tests asked for bf16
    accelerator = Accelerator(cpu=True)
    config = Config(output_dir=str(tmp_path / "run"))
    moved = config.model_copy(update={"data_root": "elsewhere"})
    origin = {"data_sha256": {"train": "a", "val": "b"}}
    open_run(config.model_copy(update={"seed": 5}), False, accelerator, {})  # fails before it saves anything
    assert open_run(config, False, accelerator, origin) == open_run(moved, True, accelerator, origin)
    (tmp_path / "run" / STATE).parent.mkdir()
    (tmp_path / "run" / STATE).touch()
    with pytest.raises(UserError, match="holds a run: add --resume"):
        open_run(config, False, accelerator, origin)
    with pytest.raises(UserError, match=r"origin\.json: .* captions of val differ; check --data-root, or"):
        open_run(moved, True, accelerator, {"data_sha256": {"train": "a", "val": "c"}})
    models = {"models_sha256": {"encoder.safetensors": "a"}}
    open_run(moved, True, accelerator, {**origin, **models})  # a run of before this was kept
    write_json(tmp_path / "run" / "origin.json", {**origin, **models})
    open_run(moved, True, accelerator, {**origin, **models})
    with pytest.raises(UserError, match=r"origin\.json: the run began with another encoder\.safetensors than"):
        open_run(moved, True, accelerator, {**origin, "models_sha256": {"encoder.safetensors": "b"}})
    for left in ("{}", "[", "[]"):
        (tmp_path / "run" / "origin.json").write_text(left)
        with pytest.raises(UserError, match=r"origin\.json: does not say"):
            open_run(config, True, accelerator, origin)


def test_a_run_goes_on_with_as_many_processes(tmp_path: Path) -> None:
    model: Any = torch.nn.Linear(2, 2)
    # one without a state: to make one of its own takes torch seconds
    optimizer: Any = SimpleNamespace(state_dict=lambda: {"state": {}, "param_groups": []}, load_state_dict=len)

    tracker: Any = SimpleNamespace(lines=0)

    def among(processes: int, precision: str = "no") -> Any:
        return SimpleNamespace(num_processes=processes, mixed_precision=precision, scaler=None)

    def resumed(processes: int, precision: str = "no") -> Progress:
        return Progress.resumed(tmp_path, model, optimizer, among(processes, precision), Console(quiet=True))

    begun = resumed(2)
    begun.save(tmp_path, model, optimizer, among(2), tracker)
    assert resumed(2) == begun
    for other in (1, 3):
        with pytest.raises(UserError, match=rf"were 2 and are {other}; go on with as many, or choose another --output"):
            resumed(other)
    with pytest.raises(UserError, match=r"in fp32, and here it would go on in bf16; add train\.precision=fp32"):
        resumed(2, "bf16")
    save_state(tmp_path / STATE, model, optimizer, {"step": 3})  # as it was before these were kept
    assert resumed(2) == Progress(step=3, processes=2, precision="fp32")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").touch()
    with pytest.raises(
        UserError, match=r"^runs/RSICD-[\d-]+: cannot be made \(Not a directory\); name an --output-dir$"
    ):
        new_folder("RSICD")


def test_of_the_models_that_a_run_begins_with_the_files_count(scenes: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"1")
    config = Config(dataset="RSICD", data_root=str(scenes))
    dataset = open_dataset(config)
    assert origin_of(dataset, config)["models_sha256"] == {}
    tree = config.model_dump()
    tree["model"]["encoder"]["weights"] = str(weights)
    assert origin_of(dataset, parse_config(tree, ""))["models_sha256"] == {str(weights): file_digest(weights)}
