"""What train.py can be asked for: losses, heads, encoders, regions, processes; each from the command line."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from data.concepts import Concepts
from data.datasets import load_dataset
from data.errors import UserError
from tests.programs import ROOT, SMALL, Words, call, lines, one_epoch, start
from utils.checkpoint import SHIPPED, load_checkpoint, load_checkpoints

pytestmark = pytest.mark.slow


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
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    done = start("train.py", *arguments, "tracking.mode=offline", "tracking.images=2", cwd=first)
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


def test_one_command_makes_all_that_ships(scenes: Path, tmp_path: Path) -> None:
    for path in ROOT.iterdir():
        if path.name not in ("runs", "cache", "build"):
            (tmp_path / path.name).symlink_to(path)
    options = "--epochs 1 data.size=64 data.limit=6 train.batch_size=6 train.precision=fp32 decoding.max_words=5"
    command = ["make", "-o", "setup", "rsicd", f"DATA={scenes}", f"OPTIONS={options}"]
    command.append(f"VENV={Path(sys.executable).parent.parent}")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    made = sorted((tmp_path / "runs" / "rsicd").glob("*.safetensors"))
    assert [path.name for path in made] == sorted(path.name for path in SHIPPED)
    for ours, theirs in zip(map(load_checkpoint, made), map(load_checkpoint, sorted(SHIPPED)), strict=True):
        assert ours.config.model.encoder.extra_layers == theirs.config.model.encoder.extra_layers
        assert ours.config.model.decoder == theirs.config.model.decoder
        assert ours.config.decoding.method == theirs.config.decoding.method
    load_checkpoints(made)  # as one


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


def test_find_ranks_by_the_embedding_that_was_trained(scenes: Path, cache: str, tmp_path: Path) -> None:
    losses = "[{criterion: custum_loss}, {criterion: alignment_kl, head: retrieval, scale: 20}]"
    arguments: Words = ["--data-root", scenes, "--epochs", "6", f"model.losses={losses}", *SMALL, cache]
    call("train", *arguments, "--output-dir", tmp_path / "run")
    best: Words = ["--checkpoint", tmp_path / "run" / "best.safetensors", "--output", tmp_path / "found.json"]
    call("caption", scenes / "RSICD_images", *best, "--find", "a river")
    match = {Path(row["file"]).name: row["match"] for row in json.loads((tmp_path / "found.json").read_text())}
    assert all(-1 <= value <= 1 for value in match.values())
    dataset = load_dataset("RSICD", scenes)
    about = {image.filename: any("river" in caption for caption in image.captions) for image in dataset.images}
    right, wrong = ([match[name] for name, has in about.items() if has == kind] for kind in (True, False))
    # the chance that an image with a river fits better than one without (the area under the ROC curve)
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
        "train.precision=auto",  # as eval looks
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
    encoder = ["model.encoder.name=test_efficientnet", "model.encoder.weights=none", "model.encoder.trainable=true"]
    regions = ["regions.kind=masks", f"regions.masks={scenes / 'masks'}", "regions.count=9", "regions.pooling=map"]
    call("train", *arguments, *encoder, *SMALL, cache, *regions, "data.limit=20")
    assert 0 < lines(tmp_path / "run")[-1]["val/pointing"] <= 1
    with pytest.raises(UserError, match=r"regions\.masks=PATH"):
        call("train", *arguments, *encoder, *SMALL, cache, "regions.kind=masks")
    photo = next((scenes / "RSICD_images").iterdir())
    (tmp_path / "elsewhere").mkdir()
    twin = shutil.copy(photo, tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"more than one image is called {photo.stem}; they would have the same masks"):
        call("caption", "--checkpoint", tmp_path / "run" / "best.safetensors", photo, twin)
