"""eval.py with results files, through its command line: what stands around a score."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import eval as program
from data.annotations import AnnotatedImage, read_karpathy
from data.errors import UserError
from metrics.scores import score_captions
from metrics.statistics import bootstrap
from utils.config import dump_config, parse_config
from utils.sources import thinned

Write = Callable[[str, list[str]], Path]


@pytest.fixture
def images(scenes: Path) -> list[AnnotatedImage]:
    """The val split."""
    return [image for image in read_karpathy(scenes / "dataset_rsicd.json") if image.split == "val"]


@pytest.fixture
def write(images: list[AnnotatedImage], tmp_path: Path) -> Write:
    """`write(name, captions)`: a results file of the val split."""

    def write_captions(name: str, captions: list[str]) -> Path:
        path = tmp_path / name
        rows = [{"image_id": i.imgid, "caption": text} for i, text in zip(images, captions, strict=True)]
        path.write_text(json.dumps(rows))
        return path

    return write_captions


def run(results: Path, root: Path, *words: str | Path) -> dict[str, Any]:
    """What --output holds."""
    output = results.with_suffix(".out")
    command = ["--results", results, "--dataset", "RSICD", "--data-root", root, "--split", "val", "--output", output]
    program.main(program.parse_arguments(list(map(str, [*command, *words]))))
    return json.loads(output.read_text())


def test_what_a_paper_needs_stands_around_the_scores(
    scenes: Path, images: list[AnnotatedImage], write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    captions = [image.captions[0] for image in images[1:] + images[:1]]
    result = run(write("a.json", captions), scenes)
    scores = score_captions(dict(enumerate(captions)), {i: image.captions for i, image in enumerate(images)})
    assert result["metrics"] == scores.metrics
    assert {name: tuple(ends) for name, ends in result["intervals"].items()} == bootstrap(scores)
    said = capsys.readouterr().out
    for name, value in result["metrics"].items():
        low, high = result["intervals"][name]
        assert low <= value <= high
        assert f"{100 * value:.2f}" in said and f"{100 * low:.2f} to {100 * high:.2f}" in said

    classes = {image.filename.rsplit("_", 1)[0] for image in images}
    assert set(result["classes"]) == classes
    assert sum(scores["images"] for scores in result["classes"].values()) == len(images)
    total = sum(scores["images"] * scores["CIDEr"] for scores in result["classes"].values())
    assert total / len(images) == pytest.approx(result["metrics"]["CIDEr"], abs=1e-12)

    assert 0 < result["diversity"]["distinct_1"] <= 1 and result["diversity"]["length"] > 3
    assert {"seen_in_train", "vocabulary_of_train"} <= set(result["diversity"])
    assert [row["caption"] for row in result["captions"]] == captions
    wanted = {"dataset", "split", "images", "split_sha256", "results", "results_sha256", "tokenizer", "BLEU", "METEOR"}
    wanted |= {"ROUGE_L", "CIDEr", "intervals", "unavailable", "git_sha", "versions", "notes"}
    assert wanted <= set(result["protocol"])


def test_a_better_system_is_a_gain_and_a_worse_one_a_loss(
    scenes: Path, images: list[AnnotatedImage], write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write("good.json", [image.captions[0] for image in images])
    bad = write("bad.json", [image.captions[0] for image in images[1:] + images[:1]])
    for first, second, verdict, sign in ((good, bad, "gain", 1), (bad, good, "loss", -1)):
        comparison = run(first, scenes, "--baseline", second)["comparison"]
        assert verdict in capsys.readouterr().out
        assert comparison["baseline"] == str(second)
        assert {"Bleu_4", "ROUGE_L", "CIDEr"} <= set(comparison["metrics"])
        for test in comparison["metrics"].values():
            assert test["verdict"] == verdict and test["p"] < 0.05
            assert sign * test["difference"] > 0 and test["low"] * test["high"] > 0


def test_systems_that_a_coin_tells_apart_differ_by_noise(
    scenes: Path, images: list[AnnotatedImage], write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each image's two captions go to either system by a coin: there is nothing to find."""
    coin = random.Random(1)
    pairs = [coin.sample([image.captions[0], image.captions[1]], 2) for image in images]
    first, second = write("a.json", [a for a, _ in pairs]), write("b.json", [b for _, b in pairs])
    tests = run(first, scenes, "--baseline", second)["comparison"]["metrics"]
    assert any(test["difference"] != 0 for test in tests.values())
    assert {test["verdict"] for test in tests.values()} == {"noise"}
    assert "noise" in capsys.readouterr().out
    same = run(first, scenes, "--baseline", first)["comparison"]["metrics"]
    for test in same.values():
        assert (test.pop("p"), test.pop("verdict")) == (1, "noise")
        assert test == pytest.approx({"difference": 0, "low": 0, "high": 0}, abs=1e-12)  # a sum's last bits


def test_the_difference_is_that_of_the_two_scores(scenes: Path, images: list[AnnotatedImage], write: Write) -> None:
    first = write("a.json", [image.captions[0] for image in images])
    second = write("b.json", ["an aerial view of a scene"] * len(images))
    one, other = run(first, scenes, "--baseline", second), run(second, scenes)
    for name, test in one["comparison"]["metrics"].items():
        assert test["difference"] == pytest.approx(one["metrics"][name] - other["metrics"][name], abs=1e-12)
    # what --output wrote is a results file itself
    again = run(first, scenes, "--baseline", second.with_suffix(".out"))
    assert again["comparison"]["metrics"] == one["comparison"]["metrics"]


def test_a_run_says_which_images_its_captions_are_of(
    scenes: Path, images: list[AnnotatedImage], tmp_path: Path
) -> None:
    some = thinned(images, 5)
    rows = [{"image_id": image.imgid, "caption": image.captions[0]} for image in some]
    (tmp_path / "val.json").write_text(json.dumps(rows))
    config = parse_config({"dataset": "RSICD", "data_root": str(scenes), "data": {"limit": 5}}, "")
    (tmp_path / "config.yaml").write_text(dump_config(config))
    with pytest.raises(UserError, match="without a caption"):
        run(tmp_path / "val.json", scenes)
    result = run(tmp_path / "val.json", scenes, "--config", tmp_path / "config.yaml")
    assert [entry["image_id"] for entry in result["captions"]] == [image.imgid for image in some]


def test_a_baseline_of_other_images_is_an_error(scenes: Path, images: list[AnnotatedImage], write: Write) -> None:
    results, other = write("a.json", ["a road"] * len(images)), write("b.json", ["a road"] * len(images))
    other.write_text(json.dumps(json.loads(other.read_text())[1:]))
    with pytest.raises(UserError, match=rf"b\.json: 1 without a caption: {images[0].filename}"):
        run(results, scenes, "--baseline", other)


@pytest.fixture
def bare(scenes: Path, tmp_path: Path) -> Path:
    """The scenes with a val split alone; two images have numbers for names, none has a file."""
    root = tmp_path / "bare"
    (root / "RSICD_images").mkdir(parents=True)
    document = json.loads((scenes / "dataset_rsicd.json").read_text())
    document["images"] = [image for image in document["images"] if image["split"] == "val"]
    for number in range(2):
        document["images"][number]["filename"] = f"{number:05}.png"
    (root / "dataset_rsicd.json").write_text(json.dumps(document))
    return root


def test_without_train_captions_images_or_classes_the_rest_is_there(
    bare: Path, images: list[AnnotatedImage], write: Write, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    result = run(write("a.json", ["a road"] * len(images)), bare, "--report", tmp_path / "r.html")
    assert "left out" in capsys.readouterr().out
    assert "seen_in_train" not in result["diversity"] and "length" in result["diversity"]
    assert sum(scores["images"] for scores in result["classes"].values()) == len(images) - 2
    page = (tmp_path / "r.html").read_text()
    assert "2 images carry no class" in page and "image cannot be read" in page and "data-attention" not in page


def test_captions_of_any_kind_are_scored_and_shown(
    scenes: Path, images: list[AnnotatedImage], write: Write, tmp_path: Path
) -> None:
    hostile = ["", "<script>alert(1)</script>", "\"'><b>", "road " * 10_000, "\u2028 a \x0c b \r c", "机场", "\ud800"]
    captions = hostile + ["a road"] * (len(images) - len(hostile))
    result = run(write("a.json", captions), scenes, "--report", tmp_path / "r.html")
    assert result["captions"][3]["caption"] == captions[3]
    page = (tmp_path / "r.html").read_text()
    assert page.count("<script>") == 1 and "&lt;script&gt;alert(1)" in page and page.count("data:image/jpeg") > 17
    # a split without a word in it has no diversity, and JSON without NaN
    empty = run(write("b.json", [""] * len(images)), scenes, "--report", tmp_path / "r.html")
    json.dumps(empty, allow_nan=False)


def test_one_image_is_enough(scenes: Path, images: list[AnnotatedImage], tmp_path: Path) -> None:
    root = tmp_path / "one"
    shutil.copytree(scenes / "RSICD_images", root / "RSICD_images")
    document = json.loads((scenes / "dataset_rsicd.json").read_text())
    document["images"] = [image for image in document["images"] if image["imgid"] == images[0].imgid]
    (root / "dataset_rsicd.json").write_text(json.dumps(document))
    results = tmp_path / "a.json"
    results.write_text(json.dumps([{"image_id": images[0].filename, "caption": images[0].captions[0]}]))
    result = run(results, root, "--report", tmp_path / "r.html", "--baseline", results)
    assert result["intervals"]["Bleu_1"] == [result["metrics"]["Bleu_1"]] * 2
    assert "The one image" in (tmp_path / "r.html").read_text()


def test_what_is_compared_with_is_not_written_over(scenes: Path, images: list[AnnotatedImage], write: Write) -> None:
    ours, theirs = (write(name, [image.captions[0] for image in images]) for name in ("ours.json", "theirs.json"))
    before = theirs.read_bytes()
    with pytest.raises(UserError, match=r"theirs\.json: is what is to be read"):
        run(ours, scenes, "--baseline", theirs, "--report", theirs)
    assert theirs.read_bytes() == before
