"""The programs as a user runs them: through the command line, on scenes, end to end.

What starts a process of its own proves that it can be started so; importing everything takes it as long as some tests
take. All else is `call`ed with the words of a command line.
"""

import csv
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image

import caption
import eval as eval_program
import train
from data.concepts import Concepts
from data.datasets import load_dataset
from data.errors import UserError
from utils import ship
from utils.checkpoint import SHIPPED, load_checkpoint
from utils.config import load_config

pytestmark = pytest.mark.slow
PROGRAMS = {"train": train, "eval": eval_program, "caption": caption}
ROOT = Path(__file__).resolve().parent.parent
Words = list[str | Path]
Program = Callable[..., subprocess.CompletedProcess[str]]
SMALL = (
    "data.size=96",
    "train.batch_size=16",
    "train.log_every=2",
    "train.lr=5e-3",
    "model.decoder.width=64",
    "decoding.beam_size=2",
    "train.precision=fp32",
)


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """`program("train.py", "--seed", "1")` runs it as a user would, in an empty folder."""
    folder = tmp_path_factory.mktemp("elsewhere")

    def run(name: str, *arguments: str | Path, cwd: Path = folder) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / name), *map(str, arguments)]
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "PYTHON"))}
        return subprocess.run(
            command,
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"data.cache_dir={tmp_path_factory.mktemp('cache')}"


@pytest.fixture(scope="session")
def run_dir(program: Program, scenes: Path, cache: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the scenes, read as RSICD."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    arguments = ["--dataset", "RSICD", "--data-root", scenes, "--output-dir", folder, "--epochs", "3"]
    done = program("train.py", *arguments, "model.encoder.name=tf_efficientnet_lite0", *SMALL, cache)
    assert done.returncode == 0, done.stderr
    assert "distinct pairs" in done.stdout
    assert "split sizes differ" in done.stdout
    assert str(folder / "attention.png") in done.stdout
    assert "CIDEr" in done.stdout
    return folder


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_all_that_it_promises(run_dir: Path) -> None:
    log = lines(run_dir)
    train, val = [x for x in log if "train/loss" in x], [x for x in log if "val/CIDEr" in x]
    assert train[-1]["train/loss"] < train[0]["train/loss"]
    assert [x["epoch"] for x in val] == [1, 2, 3]
    parts = {"train/custum_loss/ce", "train/custum_loss/dsr", "train/custum_loss/avr"}
    for line in train:
        assert line["train/loss"] == pytest.approx(sum(line[part] for part in parts), rel=1e-5)
    assert Image.open(run_dir / "attention.png").width > 500
    assert (run_dir / "config.yaml").exists()
    assert (run_dir / "last" / "state.safetensors").exists()


def test_a_folder_with_a_run_is_only_taken_to_go_on(
    scenes: Path, run_dir: Path, cache: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run_dir / "metrics.jsonl").read_text()
    arguments: Words = ["--dataset", "RSICD", "--data-root", scenes, "--output-dir", run_dir]
    arguments += ["--epochs", "3", "model.encoder.name=tf_efficientnet_lite0", *SMALL, cache]
    for more, fault in (([], "--resume"), (["--resume", "train.clip=2"], r"train\.clip was 1\.0 and is 2\.0")):
        with pytest.raises(UserError, match=fault) as caught:
            call("train", *arguments, *more)
        assert "\n" not in str(caught.value)
    call("train", *arguments, "--resume")
    assert "resuming after epoch 3" in capsys.readouterr().out
    assert (run_dir / "metrics.jsonl").read_text() == before


def test_a_killed_run_ends_as_if_it_had_not_been(scenes: Path, run_dir: Path, cache: str, tmp_path: Path) -> None:
    """Begun by one interpreter, ended by another, which hashes words otherwise; tests/kills.py kills at any moment."""
    folder = tmp_path / "killed"
    words = ["--dataset", "RSICD", "--data-root", str(scenes), "--output-dir", str(folder), "--epochs", "3", "--resume"]
    words += ["model.encoder.name=tf_efficientnet_lite0", *SMALL, cache]
    command = [sys.executable, str(ROOT / "train.py"), *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    state = folder / "last" / "state.safetensors"
    while not state.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(lines(folder)) < len(lines(run_dir))
    call("train", *words)
    assert lines(folder) == lines(run_dir)
    for name in ("best.safetensors", "last/state.safetensors"):
        assert tensors_equal(folder / name, run_dir / name), name


def tensors_equal(one: Path, other: Path) -> bool:
    import torch
    from safetensors.torch import load_file

    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="session")
def evaluated(program: Program, scenes: Path, run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    output = tmp_path_factory.mktemp("eval") / "result.json"
    arguments = ["--checkpoint", run_dir / "best.safetensors", "--dataset", "RSICD", "--data-root", scenes]
    done = program("eval.py", *arguments, "--split", "val", "--output", output)
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    for name, value in result["metrics"].items():
        assert f"{100 * value:.2f}" in done.stdout, name
    return result


def test_eval_gives_what_training_saw(evaluated: dict, run_dir: Path) -> None:
    best = max((x for x in lines(run_dir) if "val/CIDEr" in x), key=lambda x: x["val/CIDEr"])
    assert len(evaluated["captions"]) == 17
    assert evaluated["protocol"]["images"] == 17
    # training decoded from float16 features of the store, eval from the images: a caption may turn on a last bit
    for name in ("Bleu_1", "ROUGE_L", "CIDEr"):
        assert evaluated["metrics"][name] == pytest.approx(best[f"val/{name}"], rel=0.1)


def test_eval_scores_a_results_file_as_it_scored_the_captions(
    evaluated: dict,
    scenes: Path,
    tmp_path: Path,
) -> None:
    results, output = tmp_path / "captions.json", tmp_path / "scored.json"
    by_name = [{"image_id": row["filename"], "caption": row["caption"]} for row in evaluated["captions"]]
    results.write_text(json.dumps(by_name))
    arguments: Words = ["--dataset", "RSICD", "--data-root", scenes, "--split", "val"]
    call("eval", "--results", results, *arguments, "--output", output)
    assert json.loads(output.read_text())["metrics"] == evaluated["metrics"]

    for entries, fault in (
        (by_name[1:], "1 without a caption"),
        ([*by_name, by_name[0]], "1 twice"),
        ([*by_name, {"image_id": "nowhere.png", "caption": "a"}], "nowhere.png"),
        ({"captions": 3}, "expected"),
    ):
        results.write_text(json.dumps(entries))
        with pytest.raises(UserError, match=fault) as caught:
            call("eval", "--results", results, *arguments)
        assert "\n" not in str(caught.value)


def test_the_page_of_a_checkpoint_shows_where_it_looked(scenes: Path, run_dir: Path, tmp_path: Path) -> None:
    checkpoint = run_dir / "best.safetensors"
    data: Words = ["--dataset", "RSICD", "--data-root", scenes, "--split", "val"]
    call("eval", "--checkpoint", checkpoint, *data, "--output", tmp_path / "r.json", "--report", tmp_path / "r.html")
    result, page = json.loads((tmp_path / "r.json").read_text()), (tmp_path / "r.html").read_text()
    assert page.count("data:image/jpeg") == page.count("data-attention") == page.count("<canvas") == 17 + 6
    for value in (100 * result["metrics"]["CIDEr"], 100 * result["intervals"]["CIDEr"][0]):
        assert f"{value:.2f}" in page
    assert 0 <= result["diversity"]["self_cider_of_beam"] <= 1
    protocol = result["protocol"]
    assert protocol["checkpoint_sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert protocol["beam_size"] == 2 and protocol["preprocessing"]["size"] == 96


def test_codes_are_drawn_and_words_said_at_once_from_a_checkpoint(
    scenes: Path, cache: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data: Words = ["--dataset", "RSICD", "--data-root", scenes]
    losses = [{"criterion": "cross_entropy"}, {"criterion": "vae_kl", "head": "latent", "weight": 0.01}]
    losses += [{"criterion": "ctc_loss", "head": "parallel"}, {"criterion": "focal_loss", "head": "concepts"}]
    small = ["model.encoder.name=tf_efficientnet_lite0", *SMALL, cache, f"model.losses={json.dumps(losses)}"]
    call("train", *data, "--output-dir", tmp_path / "run", "--epochs", "1", *small, "model.heads.concepts.tell=true")
    assert {"val/latent/KL", "val/parallel/CIDEr", "val/CIDEr"} <= lines(tmp_path / "run")[-1].keys()
    checkpoint: Words = ["--checkpoint", tmp_path / "run" / "best.safetensors"]
    with pytest.raises(UserError, match="head concepts was made for other data"):  # fewer images, other concepts
        other: Words = ["--output-dir", tmp_path / "other", f"train.init={checkpoint[1]}", "data.limit=20"]
        call("train", *data, *other, *small, "model.heads.concepts.tell=true")
    said = {}
    for way in ("method=greedy", "method=parallel", "method=sample samples=3 temperature=2"):
        words = [word for setting in way.split() for word in ("--decoding", setting)]
        call("eval", *checkpoint, *data, "--split", "val", "--output", tmp_path / "r.json", *words)
        said[way] = json.loads((tmp_path / "r.json").read_text())
        assert said[way]["protocol"]["method"] == way.split()[0].removeprefix("method=")
    greedy, _, drawn = (found["diversity"] for found in said.values())
    assert drawn["best_cider"] >= drawn["mean_cider"] and "best_cider" not in greedy
    assert len({json.dumps(found["captions"]) for found in said.values()}) > 1
    photo = next((scenes / "RSICD_images").iterdir())
    capsys.readouterr()
    call("caption", *checkpoint, photo, "--decoding", "method=parallel")
    assert photo.name in capsys.readouterr().out
    with pytest.raises(UserError, match=r"unknown key decoding\.methods"):
        call("caption", *checkpoint, photo, "--decoding", "methods=beam")


def test_captions_in_every_format(program: Program, scenes: Path, run_dir: Path, tmp_path: Path) -> None:
    checkpoint: Words = ["--checkpoint", run_dir / "best.safetensors"]
    names = sorted(p.name for p in (scenes / "RSICD_images").iterdir())[:3]
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in names:
        shutil.copy(scenes / "RSICD_images" / name, folder)
    printed = program("caption.py", *checkpoint, folder)
    assert printed.returncode == 0, printed.stderr
    rows = {}
    for suffix in ("json", "jsonl", "csv"):
        call("caption", *checkpoint, folder, "--output", tmp_path / f"out.{suffix}")
        rows[suffix] = (tmp_path / f"out.{suffix}").read_text()
    expected = json.loads(rows["json"])
    assert [Path(row["file"]).name for row in expected] == names
    assert [json.loads(line) for line in rows["jsonl"].splitlines()] == expected
    assert [row["caption"] for row in csv.DictReader(rows["csv"].splitlines())] == [r["caption"] for r in expected]
    for line, row in zip(printed.stdout.splitlines(), expected, strict=True):
        assert line == f"{row['file']}: {row['caption']}"
        assert row["caption"]


def test_any_image_can_be_captioned(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (300, 40), dtype=np.uint8)).save(tmp_path / "tall grey.png")
    Image.new("RGBA", (1, 1), (255, 0, 0, 128)).save(tmp_path / "one pixel.png")
    Image.new("CMYK", (500, 400)).save(tmp_path / "cmyk.jpg")
    picture = tmp_path / "looked.png"
    inputs = [*sorted(tmp_path.glob("*.png")), tmp_path / "cmyk.jpg"]
    call("caption", "--checkpoint", run_dir / "best.safetensors", *inputs, "--attention", picture)
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert Image.open(picture).width > 300


def test_the_checkpoint_that_ships_is_the_default(scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = next((scenes / "RSICD_images").glob("river*"))
    call("caption", image)
    assert re.fullmatch(rf"{re.escape(str(image))}: \w+( \w+)+\n", capsys.readouterr().out)
    assert SHIPPED.stat().st_size < 40e6
    config = load_checkpoint(SHIPPED).config
    assert config.data_root is None and config.output_dir is None  # nothing of the machine that trained it
    call("eval", "--data-root", scenes, "--split", "val")
    assert "CIDEr" in capsys.readouterr().out


def test_shipping_halves_a_checkpoint(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best, half = run_dir / "best.safetensors", tmp_path / "half.safetensors"
    monkeypatch.setattr(sys, "argv", ["ship", str(best), str(half)])
    ship.main()
    assert half.stat().st_size < 0.51 * best.stat().st_size
    before, after = load_checkpoint(best), load_checkpoint(half)
    assert before.config.data_root is None and before.config.output_dir is None  # nothing of the machine
    assert after.config == before.config
    assert after.vocabulary.words == before.vocabulary.words
    weights = after.captioner.state_dict()
    for name, value in before.captioner.state_dict().items():
        rounded = value.half().to(value.dtype) if value.is_floating_point() else value
        assert (weights[name] == rounded).all(), name


def test_slips_end_with_one_line_and_exit_code_2(program: Program, run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"broken")
    for arguments, fault in (
        (["train.py", "train.epoch=3"], "unknown key train.epoch"),
        (["train.py", "--dataset", "RSICD"], "--data-root"),
        (["caption.py", "--checkpoint", run_dir / "best.safetensors", tmp_path / "broken.png"], "broken.png"),
    ):
        done = program(*arguments)
        assert done.returncode == 2, done.stderr
        assert fault in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr


def test_slips_are_named(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"broken")
    (tmp_path / "empty").mkdir()
    checkpoint = ["--checkpoint", str(run_dir / "best.safetensors")]
    for arguments, fault in (
        (["train", "--dataset", "RSICD", "--data-root", "."], "RSICD_optimal"),
        (["train", "model.losses=[{criterion: hinge}]"], "unknown criterion 'hinge'"),
        (["train", "model.losses=[{criterion: custum_loss, beta: 1, delta: 2}]"], "knows no key 'delta'"),
        (["train", "model.losses=[{criterion: yolox_loss}]"], "yolox_loss needs"),
        (["train", "--config", "missing.yaml"], "missing.yaml"),
        (["eval", *checkpoint, "--data-root", "."], "dataset_rsicd.json"),
        (["eval", *checkpoint, "--dataset", "COCO"], "dataset"),
        (["eval", *checkpoint, "--beam-size", "0"], "beam_size"),
        (["eval", *checkpoint, "--decoding", "length_penalty=-1"], "length_penalty"),
        (["eval", "--checkpoint", "broken.png"], "not a safetensors checkpoint"),
        (["eval", "--results", "broken.png"], "--dataset"),
        (["caption", *checkpoint, "missing.png"], "no such file"),
        (["caption", *checkpoint, "empty"], "no images in this folder"),
        (["caption", *checkpoint, ".", "--output", "x.txt"], "suffix"),
    ):
        with pytest.raises(UserError, match=fault) as caught:
            call(*arguments)
        assert "\n" not in str(caught.value)
    assert {p.name for p in tmp_path.iterdir()} == {"broken.png", "empty"}  # nothing half-written


def call(name: str, *words: str | Path) -> None:
    """Run a program in this process, as its last line does."""
    arguments = PROGRAMS[name].parse_arguments(list(map(str, words)))
    if name == "train":
        AcceleratorState._reset_state(True)  # it is one for the whole process, and other tests asked for bf16
        train.main(load_config(arguments), arguments.resume)
    else:
        PROGRAMS[name].main(arguments)


def test_a_loss_that_is_not_finite_stops_with_every_term(scenes: Path, cache: str, tmp_path: Path) -> None:
    arguments = one_epoch(scenes, tmp_path / "run")
    with pytest.raises(UserError, match="not finite") as caught:
        call(
            "train",
            *arguments,
            "model.encoder.name=tf_efficientnet_lite0",
            *SMALL,
            cache,
            "train.lr=1e30",
            "train.warmup=0",
        )
    said = str(caught.value)
    for term in ("custum_loss/ce", "custum_loss/dsr", "custum_loss/avr"):
        assert term in said
    assert re.search(r"step \d+, learning rate 1e\+30, images \w+\.png, ", said)
    assert "\n" not in said


def test_the_default_makes_its_own_scenes_and_tracks_offline(
    program: Program, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = [
        "synthetic.train=40",
        "synthetic.val=8",
        "synthetic.test=8",
        "synthetic.size=64",
        "data.size=64",
    ]
    small = [x for x in SMALL if "size=96" not in x]
    arguments = [*scenes, *small, cache, "--epochs", "1"]
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    done = program("train.py", *arguments, "tracking.mode=offline", "tracking.images=2", cwd=first)
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(second)
    call("train", *arguments)
    runs = [next((folder / "runs").glob("synthetic-*")) for folder in (first, second)]
    assert lines(runs[0]) == lines(runs[1])  # the same recipe, the same numbers, in two processes
    assert list(runs[0].rglob("*.wandb"))
    assert len(list((runs[0] / "attention").glob("*.png"))) == 2


def test_the_encoder_can_be_trained(scenes: Path, cache: str, tmp_path: Path) -> None:
    arguments: Words = ["--data-root", scenes, "--output-dir", tmp_path / "run", "--epochs", "1", *SMALL, cache]
    call("train", *arguments, "model.encoder.trainable=true", "model.encoder.lr=1e-3", "train.accumulation=2")
    from safetensors.torch import load_file

    from utils.pretrained import load_encoder

    pretrained = load_encoder("tf_efficientnet_lite0", "pip").state_dict()
    trained = load_file(tmp_path / "run" / "best.safetensors")
    changed = [k for k, v in pretrained.items() if (trained[f"encoder.{k}"] != v).any()]
    assert any("conv_stem" in k for k in changed)
    assert not any("running" in k for k in changed)  # BatchNorm's statistics stay


def test_any_list_of_losses_can_be_trained(scenes: Path, cache: str, tmp_path: Path) -> None:
    losses = [
        "{criterion: cross_entropy, label_smoothing: 0.1, weight: ~}",
        "{criterion: softmax_focal_loss, weight: 0.5}",
        "{criterion: softmax_focal_loss, gamma: 0.0, alpha: ~, weight: 0}",
    ]
    arguments: Words = ["--data-root", scenes, "--output-dir", tmp_path / "run", "--epochs", "1", *SMALL, cache]
    call("train", *arguments, f"model.losses=[{', '.join(losses)}]", "data.limit=40")
    line = lines(tmp_path / "run")[0]
    plain, focal, zero = (line[f"train/{n}"] for n in ("cross_entropy", "softmax_focal_loss", "softmax_focal_loss_1"))
    assert line["train/loss"] == pytest.approx(plain + 0.5 * focal, rel=1e-5)
    assert line["train/weighted/softmax_focal_loss_1"] == 0 < zero


def test_a_head_learns_beside_the_captions(scenes: Path, cache: str, tmp_path: Path) -> None:
    """Concepts on frozen features: their mAP rises above that of a head that only knows how frequent each one is."""
    losses = "[{criterion: custum_loss}, {criterion: focal_loss, head: concepts, alpha: ~, gamma: 0, weight: 20}]"
    arguments: Words = ["--dataset", "RSICD", "--data-root", scenes, "--epochs", "4", f"model.losses={losses}"]
    call("train", *arguments, "--output-dir", tmp_path / "run", *SMALL, cache)
    found = [line["val/concepts/mAP"] for line in lines(tmp_path / "run") if "val/concepts/mAP" in line]
    dataset = load_dataset("RSICD", scenes, "captioning")
    concepts = Concepts(dataset.split("train"), min_images=10)
    truth = concepts.shares(dataset.split("val")) > 0
    prevalence = float(truth[:, truth.any(0)].float().mean())  # the mAP of logits that are the same for every image
    assert len(found) == 4
    assert found[-1] > prevalence + 0.1
    checkpoint = load_checkpoint(tmp_path / "run" / "best.safetensors")  # the head stays behind
    assert not checkpoint.captioner.heads


def test_heads_of_every_family_learn_in_one_run(
    scenes: Path, cache: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heads = {"dice_loss": "segmentation", "yolox_loss": "yolox", "alignment_kl": "retrieval"}
    losses = ["{criterion: custum_loss}", *(f"{{criterion: {loss}, head: {head}}}" for loss, head in heads.items())]
    arguments: Words = ["--data-root", scenes, "--epochs", "2", f"model.losses=[{', '.join(losses)}]", *SMALL, cache]
    arguments += ["data.limit=40", "data.size=128", "decoding.method=greedy", "--output-dir", tmp_path / "run"]
    call("train", *arguments)
    for loss, metric in (("dice_loss", "segmentation/mIoU"), ("alignment_kl", "retrieval/image_to_text_R@5")):
        assert [line[f"train/{loss}"] for line in lines(tmp_path / "run") if "train/loss" in line]
        first, second = (line[f"val/{metric}"] for line in lines(tmp_path / "run") if f"val/{metric}" in line)
        assert 0 <= first <= 1 and 0 <= second <= 1
    assert "yolox/AP50" in capsys.readouterr().out


def test_find_ranks_by_the_embedding_that_was_trained(scenes: Path, cache: str, tmp_path: Path) -> None:
    losses = "[{criterion: custum_loss}, {criterion: alignment_kl, head: retrieval, scale: 20}]"
    arguments: Words = ["--data-root", scenes, "--epochs", "6", f"model.losses={losses}", *SMALL, cache]
    call("train", *arguments, "--output-dir", tmp_path / "run")
    best: Words = ["--checkpoint", tmp_path / "run" / "best.safetensors", "--output", tmp_path / "found.json"]
    call("caption", scenes / "RSICD_images", *best, "--find", "a white plane on a runway")
    match = {Path(row["file"]).name: row["match"] for row in json.loads((tmp_path / "found.json").read_text())}
    assert all(-1 <= value <= 1 for value in match.values())
    dataset = load_dataset("RSICD", scenes)
    about = {image.filename: any("plane" in caption for caption in image.captions) for image in dataset.images}
    right, wrong = ([match[name] for name, has in about.items() if has == kind] for kind in (True, False))
    # the chance that an image with planes fits better than one without (the area under the ROC curve)
    better = sum((a > b) + (a == b) / 2 for a in right for b in wrong) / len(right) / len(wrong)
    assert right and better > 0.8


def test_two_processes_train_as_one(
    scenes: Path, cache: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same global batches: two processes with one batch a step each, one process with two."""
    shared = ["--data-root", str(scenes), "--epochs", "2", *SMALL, cache, "train.batch_size=17", "train.log_every=1"]
    shared += ["model.decoder.dropout=0"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(ROOT / "train.py"), *shared, "train.accumulation=1", "--output-dir", str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    call("train", *shared, "train.accumulation=2", "--output-dir", tmp_path / "one")
    for said in (done.stdout, capsys.readouterr().out):
        assert said.count("run folder") == 2  # one process speaks: at the beginning and at the end
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for a, b in zip(one, two, strict=True):
        for key in a:
            # float32 sums in another order, over four steps of training; a val caption may turn on a last bit
            assert b[key] == pytest.approx(a[key], rel=1e-3 if "train" in key else 0.2, abs=1e-6), key


def test_blank_images_are_seen_as_blank(
    scenes: Path, cache: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments: Words = ["--data-root", scenes, "--output-dir", tmp_path / "run", "--epochs", "1", *SMALL, cache]
    call("train", *arguments, "data.blank_images=true", "data.limit=20")
    assert "20 train and 17 val images" in capsys.readouterr().out
    output = tmp_path / "out.json"
    checkpoint = tmp_path / "run" / "best.safetensors"
    call("eval", "--checkpoint", checkpoint, "--data-root", scenes, "--output", output)
    assert len({row["caption"] for row in json.loads(output.read_text())["captions"]}) == 1


def test_help_answers_without_importing_torch() -> None:
    for name in ("train.py", "eval.py", "caption.py"):
        command = [sys.executable, "-X", "importtime", str(ROOT / name), "--help"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "usage" in done.stdout
        assert "argparse" in done.stderr and "| torch" not in done.stderr


def one_epoch(scenes: Path, folder: Path) -> list[str | Path]:
    """Arguments of a run of one epoch on the scenes, read as RSICD."""
    return ["--dataset", "RSICD", "--data-root", scenes, "--output-dir", folder, "--epochs", "1"]


def test_regions_are_found_trained_on_scored_and_shown(scenes: Path, cache: str, tmp_path: Path) -> None:
    """From the command line: regions of turned images, DSR and AVR over those that are there, page and picture."""
    loss = "{criterion: custum_loss, beta: 0.5, gamma: -0.25}"
    regions = ["regions.kind=felzenszwalb", "regions.count=12", "data.views=8", "data.limit=40"]
    arguments = one_epoch(scenes, tmp_path / "run")
    call(
        "train",
        *arguments,
        "model.encoder.name=tf_efficientnet_lite0",
        *SMALL,
        cache,
        *regions,
        f"model.losses=[{loss}]",
    )
    first, *_, last = lines(tmp_path / "run")
    for term, scale in (("dsr", 0.5), ("avr", -0.25)):
        raw, part = (first[f"train/{kind}custum_loss/{term}"] for kind in ("raw/", ""))
        assert raw > 0 and part == pytest.approx(scale * raw, rel=1e-5)
    assert 0 < last["val/chance"] < 1 and 0 <= last["val/pointing"] <= 1

    checkpoint = tmp_path / "run" / "best.safetensors"
    out, page = tmp_path / "eval.json", tmp_path / "page.html"
    call("eval", "--checkpoint", checkpoint, *arguments[:4], "--split", "val", "--output", out, "--report", page)
    found = json.loads(out.read_text())
    # training saw float16 features and shares of the store, eval the images: attention turns on a last bit
    assert found["grounding"]["pointing"] == pytest.approx(last["val/pointing"], abs=0.02)
    assert page.read_text().count('class="lines"') >= 17
    photo = next((scenes / "RSICD_images").iterdir())
    call("caption", "--checkpoint", checkpoint, photo, "--attention", tmp_path / "looked.png")
    assert Image.open(tmp_path / "looked.png").width > 500


def test_given_masks_go_with_images_that_are_turned(scenes: Path, cache: str, tmp_path: Path) -> None:
    """A trained encoder, and the scenes' own masks as regions."""
    arguments = one_epoch(scenes, tmp_path / "run")
    encoder = ["model.encoder.name=resnet18", "model.encoder.weights=none", "model.encoder.trainable=true"]
    regions = ["regions.kind=masks", f"regions.masks={scenes / 'masks'}", "regions.count=9", "regions.pooling=map"]
    call("train", *arguments, *encoder, *SMALL, cache, *regions, "data.limit=20")
    assert 0 < lines(tmp_path / "run")[-1]["val/pointing"] <= 1
    with pytest.raises(UserError, match=r"regions\.masks=PATH"):
        call("train", *arguments, *encoder, *SMALL, cache, "regions.kind=masks")
