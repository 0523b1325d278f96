"""The documentation as a reader uses it: every command in it runs, the notebook too, and the site builds."""

import importlib.util
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import rasterio
from nbclient import NotebookClient
from PIL import Image
from rasterio.transform import from_origin

import ablate
import app
import caption
import eval as eval_program
import train
from loss import LOSS_REGISTRY
from utils.config import Config, load_config, read_overrides, with_decoding
from utils.grid import load_grid, variants

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in
         ("index", "scenes", "page", "export", "scaling", "your-own-data", "tutorials/index"))]  # fmt: skip
# What a reader's machine has and a test's has not, or what another test runs.
ELSEWHERE = {
    r"weights=hub|data\.fetch|mode=online": "wants the network; tests/data/test_fetch.py has a server of its own",
    r"^python app\.py": "tests/test_app.py",
    r"utils\.export|onnx_captions": "tests/utils/test_export.py",
    r"^(torchrun|accelerate)": "tests/test_scenes.py and tests/test_recipes.py run two processes",
    r"^python (ablate\.py|-m benchmarks)|--config|reproduce_rsicd": "trains for long; has tests of its own",
    r"^(make|pip|git|uv)": "sets things up",
}
PARSERS: dict[str, Callable[[list[str]], Any]] = {
    "train.py": train.parse_arguments,
    "eval.py": eval_program.parse_arguments,
    "caption.py": caption.parse_arguments,
    "ablate.py": ablate.parse_arguments,
    "app.py": app.parse_arguments,
}
TINY = [
    *("--epochs", "1", "data.limit=6", "data.size=64", "data.min_count=1", "train.batch_size=6"),
    *("model.decoder.width=16", "decoding.beam_size=2"),
    *("model.encoder.name=test_efficientnet", "model.encoder.weights=none"),
    *("synthetic.size=64", "synthetic.train=6", "synthetic.val=6", "synthetic.test=6"),
]


def commands() -> list[str]:
    """Every command line that stands in a block of code, comments taken off, in the order of the pages."""
    found: dict[str, None] = {}
    for page in PAGES:
        blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        for block in (block for language, block in blocks if not language):
            lines = block.replace("\\\n", " ").splitlines()
            programs = [line for line in lines if re.match(r"(python|torchrun|accelerate|make|pip) ", line)]
            found |= dict.fromkeys(re.sub(r"\s+#.*", "", line) for line in programs)
    return list(found)


@pytest.fixture(scope="module")
def desk(scenes: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the pages name: data sets, a run, pictures, a scene."""
    folder = tmp_path_factory.mktemp("desk")
    for data in (folder / "DIR", folder / "datasets" / "RSICD"):
        shutil.copytree(scenes, data)
    (folder / "DIR" / "dataset.json").write_bytes((folder / "DIR" / "dataset_rsicd.json").read_bytes())
    (folder / "DIR" / "images").symlink_to("RSICD_images")
    for run in ("RUN", "OTHER"):
        (folder / run).mkdir()
        (folder / run / "best.safetensors").write_bytes(checkpoint.read_bytes())
    for name in ("photos", "folder", "archive", "SOME"):
        (folder / name).mkdir()
        Image.new("RGB", (64, 64), (40, 120, 60)).save(folder / name / "1.png")
    Image.new("RGB", (64, 64), (120, 40, 60)).save(folder / "photo.jpg")
    images = json.loads((folder / "DIR" / "dataset.json").read_text())["images"]
    lines = [f'{i["filename"]},{i["split"]},"{s["raw"]}"' for i in images for s in i["sentences"]]
    (folder / "table.csv").write_text("\n".join(["filename,split,caption", *lines]))
    values = np.random.default_rng(0).integers(0, 256, (3, 300, 300)).astype("uint8")
    place = from_origin(5e5, 54e5, 1, 1)
    with rasterio.open(folder / "scene.tif", "w", driver="GTiff", count=3, height=300, width=300, dtype="uint8",
                       crs="EPSG:32631", transform=place) as file:  # fmt: skip
        file.write(values)
    rows = [f'{{"image_id": {i}, "caption": "a road"}}' for i in range(68, 85)]
    for name in ("ours.json", "theirs.json"):
        (folder / name).write_text(f"[{', '.join(rows)}]")
    return folder


def run(command: str, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command as a shell would, in this process; where it trains or scores, on next to nothing."""
    _, *words = shlex.split(command)
    if words[0] == "train.py" or words[0].endswith(("add_a_loss.py", "add_an_encoder.py")):
        words += TINY if "encoder" not in words[0] else [word for word in TINY if "model.encoder" not in word]
    if words[0] == "eval.py" and "--split" not in words:
        words += ["--split", "val"]
    monkeypatch.chdir(desk)
    monkeypatch.setattr(sys, "argv", words[1:] if words[0] == "-m" else words)
    registered = dict(LOSS_REGISTRY)
    try:
        if words[0] == "-m":
            monkeypatch.delitem(sys.modules, words[1], raising=False)  # where another test has imported it
            runpy.run_module(words[1], run_name="__main__")
        else:
            runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    except SystemExit as end:
        assert not end.code, command
    finally:  # a tutorial adds a loss, which is none of the documented ones
        LOSS_REGISTRY.clear()
        LOSS_REGISTRY.update(registered)


@pytest.mark.parametrize("command", commands())
def test_commands(command: str, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := next((why for pattern, why in ELSEWHERE.items() if re.search(pattern, command)), None):
        pytest.skip(reason)
    run(command, desk, monkeypatch)


def every_command() -> list[str]:
    """Every command that stands anywhere: on a page, in a docstring of a benchmark, in a recipe's comments."""
    texts = [path.read_text(encoding="utf-8") for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))]
    texts += [path.read_text(encoding="utf-8") for path in (ROOT / "benchmarks").glob("*.py")]
    texts += [path.read_text(encoding="utf-8") for path in (ROOT / "configs").rglob("*.yaml")]
    lines = [line for text in texts for line in text.replace("\\\n", " ").splitlines()]
    found = (
        re.match(r"(?:# |    |> )?(python (?:\w+\.py|benchmarks/\w+\.py|-m [\w.]+)(?: .*|$))", line) for line in lines
    )
    return sorted({re.sub(r"\s+#.*| \[.*\]", "", match[1]) for match in found if match})


@pytest.mark.parametrize("command", every_command())
def test_every_command_is_understood(command: str) -> None:
    """Also those that train for too long to be run here: their files are there, their options known."""
    _, name, *words = shlex.split(command)
    if name == "-m":
        assert importlib.util.find_spec(words[0]) is not None
        return
    assert (ROOT / name).exists()
    if name in PARSERS:
        asked = PARSERS[name](words)
        if name == "train.py":
            load_config(asked)
        elif name == "ablate.py" and asked.grid != "GRID.yaml":
            variants(Path(asked.grid), load_grid(Path(asked.grid)), read_overrides(asked.overrides))
        elif name == "eval.py":
            with_decoding(Config(), asked.decoding)


def test_the_notebook_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(ROOT / "docs" / "tutorials" / "first_steps.ipynb", as_version=4)
    tiny = [word for word in TINY if "=" in word] + ["train.epochs=1", f"data.cache_dir={tmp_path}"]
    for cell in notebook.cells:
        cell.source = re.sub(r"SMALL = \[.*", f"SMALL = {tiny}", cell.source)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    assert sum("image/png" in output.data for output in shown) == 3


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0 and not done.stdout, done.stdout + done.stderr
    tutorials = (tmp_path / "site" / "tutorials" / "index.html").read_text()
    assert "AttentionEntropy" in tutorials and "--8" not in tutorials  # the scripts are included
    heads = (tmp_path / "site" / "heads" / "index.html").read_text()
    assert 'href="../rooms/loss/"' in heads  # for ../loss/README.md, which is no page
    page = (tmp_path / "site" / "rooms" / "data" / "index.html").read_text()
    assert 'id="data.scenes.Scene"' in page
    for rooms in (ROOT / "docs" / "rooms").glob("*.md"):
        for module in re.findall(r"^::: (\S+)", rooms.read_text(), re.MULTILINE):
            assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        (["a.png,train,a road, with cars"], "line 2: has not as many values as the first line; quote those with a ','"),
        (["a.png,train"], "line 2: has not as many values"),
        (["a.png,train,a road", "a.png,val,a river"], "line 3: a.png is in train, above, and val; keep one"),
    ],
)
def test_a_table_that_would_lose_words_is_refused(tmp_path: Path, lines: list[str], fault: str) -> None:
    (tmp_path / "table.csv").write_text("\n".join(["filename,split,caption", *lines]))
    script = ROOT / "docs" / "tutorials" / "table_to_dataset.py"
    command = [sys.executable, script, tmp_path / "table.csv", tmp_path / "dataset.json"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 2 and fault in done.stderr and not (tmp_path / "dataset.json").exists()
