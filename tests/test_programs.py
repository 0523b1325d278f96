"""The programs as a user runs them, end to end: a run on scenes, and what eval.py and caption.py make of it.

What starts a process of its own proves that it can be started so; importing everything takes it as long as some tests
take. All else is `call`ed with the words of a command line.
"""

import csv
import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from data.errors import UserError
from tests.programs import ROOT, SMALL, Words, call, lines, one_epoch, start
from utils import ship
from utils.checkpoint import SHIPPED, load_checkpoint, save_checkpoint
from utils.config import with_decoding

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def run_dir(scenes: Path, cache: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the scenes, read as RSICD."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    arguments: Words = ["--dataset", "RSICD", "--data-root", scenes, "--output-dir", folder, "--epochs", "3"]
    done = start("train.py", *arguments, "model.encoder.name=tf_efficientnet_lite0", *SMALL, cache)
    assert done.returncode == 0, done.stderr
    assert "distinct pairs" in done.stdout
    assert "split sizes differ" in done.stdout
    assert str(folder / "attention.png") in done.stdout
    assert "CIDEr" in done.stdout
    return folder


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
    scenes: Path, run_dir: Path, cache: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
    shutil.copy(run_dir / "best.safetensors", tmp_path)
    model = (tmp_path / "best.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"holds a model without the config\.yaml"):
        call("train", *(tmp_path if word is run_dir else word for word in arguments))
    assert (tmp_path / "best.safetensors").read_bytes() == model


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
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(UserError, match=r"metrics\.jsonl: another process is writing it"):
        call("train", *words)
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
def evaluated(scenes: Path, run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What `--output` holds, and under "page" what `--report` does."""
    output = tmp_path_factory.mktemp("eval") / "result.json"
    report = output.with_name("page.html")
    checkpoint = run_dir / "best.safetensors"
    call("eval", "--checkpoint", checkpoint, *val_of(scenes), "--output", output, "--report", report)
    return {**json.loads(output.read_text()), "page": report.read_text()}


def val_of(scenes: Path) -> Words:
    return ["--dataset", "RSICD", "--data-root", scenes, "--split", "val"]


def test_without_java_all_but_meteor_is_there(evaluated: dict, scenes: Path, run_dir: Path, tmp_path: Path) -> None:
    output, empty = tmp_path / "result.json", tmp_path / "bin"
    empty.mkdir()
    words = ["--checkpoint", run_dir / "best.safetensors", *val_of(scenes), "--output", output]
    done = start("eval.py", *words, PATH=str(empty), JAVA_HOME=str(empty))
    assert done.returncode == 0, done.stderr
    metrics = json.loads(output.read_text())["metrics"]
    assert metrics == {name: value for name, value in evaluated["metrics"].items() if name != "METEOR"}
    assert "METEOR is not there" in done.stdout
    for name, value in metrics.items():
        assert f"{100 * value:.2f}" in done.stdout, name


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
    call("eval", "--results", results, *val_of(scenes), "--output", output)
    assert json.loads(output.read_text())["metrics"] == evaluated["metrics"]

    for entries, fault in (
        (by_name[1:], "1 without a caption"),
        ([*by_name, by_name[0]], "1 twice"),
        ([*by_name, {"image_id": "nowhere.png", "caption": "a"}], "nowhere.png"),
        ({"captions": 3}, "expected"),
    ):
        results.write_text(json.dumps(entries))
        with pytest.raises(UserError, match=fault) as caught:
            call("eval", "--results", results, *val_of(scenes))
        assert "\n" not in str(caught.value)


def test_the_page_of_a_checkpoint_shows_where_it_looked(evaluated: dict, run_dir: Path) -> None:
    page, checkpoint = evaluated["page"], run_dir / "best.safetensors"
    assert page.count("data:image/jpeg") == page.count("data-attention") == page.count("<canvas") == 17 + 6
    for value in (100 * evaluated["metrics"]["CIDEr"], 100 * evaluated["intervals"]["CIDEr"][0]):
        assert f"{value:.2f}" in page
    assert 0 <= evaluated["diversity"]["self_cider_of_beam"] <= 1
    protocol = evaluated["protocol"]
    assert protocol["checkpoint_sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert protocol["beam_size"] == 2 and protocol["preprocessing"]["size"] == 96


def test_checkpoints_that_are_named_together_speak_as_one(
    scenes: Path, run_dir: Path, evaluated: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best, image, output = run_dir / "best.safetensors", min((scenes / "RSICD_images").iterdir()), tmp_path / "o.json"
    twice: Words = ["--checkpoint", best, "--checkpoint", best]  # what one says, two of the same say
    call("eval", *twice, *val_of(scenes), "--output", output)
    result = json.loads(output.read_text())
    assert result["captions"] == evaluated["captions"]
    protocol = result["protocol"]
    assert protocol["checkpoint"] == f"{best} + {best}"
    assert protocol["checkpoint_sha256"] == " + ".join(2 * [evaluated["protocol"]["checkpoint_sha256"]])
    capsys.readouterr()
    call("caption", "--checkpoint", best, image)
    alone = capsys.readouterr().out
    call("caption", *twice, image)
    assert capsys.readouterr().out == alone


def test_captions_in_every_format(scenes: Path, run_dir: Path, tmp_path: Path) -> None:
    checkpoint: Words = ["--checkpoint", run_dir / "best.safetensors"]
    names = sorted(p.name for p in (scenes / "RSICD_images").iterdir())[:3]
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in names:
        shutil.copy(scenes / "RSICD_images" / name, folder)
    printed = start("caption.py", *checkpoint, folder)
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


def test_the_checkpoints_that_ship_are_the_default(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = next((scenes / "RSICD_images").glob("river*"))
    call("caption", image)
    assert re.fullmatch(rf"{re.escape(str(image))}: \w+( \w+)+\n", capsys.readouterr().out)
    assert sum(path.stat().st_size for path in SHIPPED) < 40e6
    for path in SHIPPED:
        config = load_checkpoint(path).config
        assert config.data_root is None and config.output_dir is None  # nothing of the machine that trained it
        found = config.decoding
        assert (found.method, found.beam_size, found.views) == ("consensus", 10, 8)  # as the documents have it
    call("eval", "--data-root", scenes, "--split", "val", "--output", tmp_path / "both.json")
    assert "CIDEr" in capsys.readouterr().out
    protocol = json.loads((tmp_path / "both.json").read_text())["protocol"]
    assert protocol["checkpoint"] == " + ".join(path.name for path in SHIPPED)


def test_shipping_halves_a_decoder_and_leaves_out_an_encoder_that_pip_brings(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best, half = run_dir / "best.safetensors", tmp_path / "half.safetensors"
    monkeypatch.setattr(sys, "argv", ["ship", "--decoding", "method=consensus", str(best), str(half)])
    ship.main()
    before, after = load_checkpoint(best), load_checkpoint(half)
    assert before.config.data_root is None and before.config.output_dir is None  # nothing of the machine
    assert before.config.decoding.method != after.config.decoding.method == "consensus"
    assert after.config == with_decoding(before.config, ["method=consensus"])
    assert after.vocabulary.words == before.vocabulary.words
    decoder = sum(value.nbytes for value in after.captioner.decoder.parameters())
    assert half.stat().st_size < decoder < best.stat().st_size / 10  # half of it, and what is said of it
    weights = after.captioner.state_dict()
    for name, value in before.captioner.state_dict().items():
        expected = value if name.startswith("encoder.") else value.half().to(value.dtype)
        assert (weights[name] == expected).all(), name


def test_shipping_with_a_rank_and_training_on_from_what_it_left(
    run_dir: Path, scenes: Path, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An encoder of which one layer learned in one direction: two factors are all that the file and a next run need."""
    tuned = load_checkpoint(run_dir / "best.safetensors")
    weight = [parameter for parameter in tuned.captioner.encoder.parameters() if parameter.ndim > 1][-1]
    with torch.no_grad():
        weight.add_(weight.std() * torch.randn(len(weight), 1, 1, 1) * torch.randn(1, *weight.shape[1:]))
    save_checkpoint(tmp_path / "tuned.safetensors", tuned)
    small = tmp_path / "small.safetensors"
    monkeypatch.setattr(sys, "argv", ["ship", "--rank", "-1", str(tmp_path / "tuned.safetensors"), str(small)])
    with pytest.raises(UserError, match="--rank -1"):
        ship.main()
    assert not small.exists()
    monkeypatch.setattr(sys, "argv", ["ship", "--rank", "2", str(tmp_path / "tuned.safetensors"), str(small)])
    ship.main()
    assert [name.rpartition(".")[2] for name in load_file(small) if name.startswith("encoder.")] == ["left", "right"]
    arguments = [*one_epoch(scenes, tmp_path / "run"), *SMALL, cache, "data.limit=8", f"train.init={small}"]
    call("train", *arguments, "model.encoder.name=tf_efficientnet_lite0")
    trained = load_checkpoint(tmp_path / "run" / "best.safetensors").captioner.encoder.state_dict()
    for name, value in tuned.captioner.encoder.state_dict().items():
        # what changed is a product of two numbers of 11 bits, and at most twice the largest weight
        torch.testing.assert_close(trained[name], value, rtol=0, atol=2**-9 * float(value.abs().max()))


def test_slips_end_with_one_line_and_exit_code_2(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"broken")
    for arguments, fault in (
        (["train.py", "train.epoch=3"], "unknown key train.epoch"),
        (["train.py", "--dataset", "RSICD"], "--data-root"),
        (["caption.py", "--checkpoint", run_dir / "best.safetensors", tmp_path / "broken.png"], "broken.png"),
    ):
        done = start(*arguments)
        assert done.returncode == 2, done.stderr
        assert fault in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr


def test_slips_are_named(
    scenes: Path, run_dir: Path, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"broken")
    (tmp_path / "empty").mkdir()
    checkpoint = ["--checkpoint", str(run_dir / "best.safetensors")]
    for arguments, fault in (
        (["train", "--dataset", "RSICD", "--data-root", "."], "RSICD_optimal"),
        (["train", "model.losses=[{criterion: hinge}]"], "unknown criterion 'hinge'"),
        (["train", "model.losses=[{criterion: [hinge]}]"], r"unknown criterion \['hinge'\]"),
        (["train", "model.losses=[{criterion: custum_loss, beta: 1, delta: 2}]"], "knows no key 'delta'"),
        (["train", "model.losses=[{criterion: yolox_loss}]"], "yolox_loss needs"),
        (
            ["train", "model.losses=[{criterion: custum_loss, beta: high}]"],
            "beta = 'high': Input should be a valid number",
        ),
        (["train", "model.losses=[{criterion: custum_loss, gamma: ~}]"], "gamma = None: Input should be"),
        (["train", "model.losses=[{criterion: cross_entropy, ignore_index: 1.5}]"], "ignore_index = 1.5"),
        (["train", "--data-root", "empty"], "empty: no synthetic scenes there; say by --dataset what is: RSICD"),
        (
            ["train", "--dataset", "RSICD", "--data-root", scenes, "regions.masks=x", *SMALL, cache],
            "regions.kind=masks alone",
        ),
        (["train", "decoding.method=parallel"], "wants a loss of head: parallel"),
        (["train", f"train.teachers=[{checkpoint[1]}]"], "no loss learns from them"),
        (["train", "train.reward={}"], "DSR, AVR and label smoothing make no sense; take them from custum_loss"),
        (
            ["train", "train.reward={}", "model.losses=[{criterion: cross_entropy, label_smoothing: 0.1}]"],
            "take them from cross_entropy",
        ),
        (["train", "--config", "missing.yaml"], "missing.yaml"),
        (["eval", *checkpoint, "--data-root", "."], "dataset_rsicd.json"),
        (["eval", *checkpoint, "--dataset", "COCO"], "dataset"),
        (["eval", *checkpoint, "--beam-size", "0"], "beam_size"),
        (["eval", *checkpoint, "--decoding", "length_penalty=-1"], "length_penalty"),
        (["eval", "--checkpoint", "broken.png"], "not a safetensors checkpoint"),
        (["eval", "--results", "broken.png"], "--dataset"),
        (["eval", "--results", "broken.png", "--config", "broken.png"], "broken.png: "),
        (["eval", *checkpoint, "--config", "config.yaml"], "--config is for --results"),
        (["eval", "--results", "broken.png", "--dataset", "RSICD", "--beam-size", "3"], "are for a checkpoint"),
        (["eval", "--checkpoint", "broken.png", "--output", "empty"], "empty: is a folder"),  # before all else
        (["eval", "--checkpoint", "broken.png", "--report", "broken.png/r.html"], "r.html: cannot be written"),
        (["caption", *checkpoint, "missing.png"], "no such file"),
        (["caption", *checkpoint, "empty"], "no images in this folder"),
        (["caption", *checkpoint, ".", "--output", "x.txt"], "suffix"),
        (["caption", *checkpoint, "broken.png", "--attention", "x.jpg"], "--attention x.jpg: pictures are PNG"),
        (["caption", *checkpoint, "broken.png", "--find", ""], "knows none of these words"),
    ):
        with pytest.raises(UserError, match=fault) as caught:
            call(*arguments)
        assert "\n" not in str(caught.value)
    assert {p.name for p in tmp_path.iterdir()} == {"broken.png", "empty"}  # nothing half-written


def test_help_answers_without_importing_torch() -> None:
    for name in ("train.py", "eval.py", "caption.py"):
        command = [sys.executable, "-X", "importtime", str(ROOT / name), "--help"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "usage" in done.stdout
        assert "argparse" in done.stderr and not re.search(r"\|\s+torch\b", done.stderr)  # indented where it is nested


@pytest.mark.parametrize(("keep", "epoch", "ran"), [("best", 1, 2), ("last", 3, 3)])
def test_the_best_epoch_or_the_last_is_kept(
    keep: str, epoch: int, ran: int, scenes: Path, cache: str, tmp_path: Path
) -> None:
    """Nothing is learned at such a rate, so that no epoch is better than the first."""
    words: Words = [
        "--dataset",
        "RSICD",
        "--data-root",
        scenes,
        "--output-dir",
        tmp_path / "run",
        "--epochs",
        "3",
        *SMALL,
    ]
    call("train", *words, cache, "train.lr=1e-12", "train.patience=1", f"train.keep={keep}")
    assert load_checkpoint(tmp_path / "run" / "best.safetensors").about["epoch"] == epoch
    assert json.loads((tmp_path / "run" / "val.json").read_text())["epoch"] == epoch
    assert sum("val/CIDEr" in line for line in lines(tmp_path / "run")) == ran
