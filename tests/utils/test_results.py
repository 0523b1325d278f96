"""Results files, and scores by scene class against each class scored alone."""

import json
from pathlib import Path

import pytest

from data.annotations import AnnotatedImage
from data.errors import UserError
from metrics.scores import FAST, score_captions
from utils.results import class_scores, read_results, scene_class, split_digest

IMAGES = [
    AnnotatedImage(7, "airport_1.jpg", "val", ("two planes on a runway", "planes near a terminal")),
    AnnotatedImage(3, "airport_2.jpg", "val", ("a plane on a runway", "a long runway")),
    AnnotatedImage(5, "river/river_1.jpg", "val", ("a river through a forest", "a green river")),
    AnnotatedImage(9, "00313.jpg", "val", ("some trees", "many trees near a road")),
]
TEXTS = {7: "a plane on a runway", 3: "a long long runway", 5: "a river", 9: "many trees near a river"}


def test_each_class_has_the_scores_that_it_has_alone() -> None:
    references = {image.imgid: image.captions for image in IMAGES}
    scores = score_captions(TEXTS, references, FAST)
    found = class_scores(scores, [scene_class(image.filename) for image in IMAGES])
    assert list(found) == ["airport", "river"]
    for name, ids in (("airport", [7, 3]), ("river", [5])):
        alone = score_captions({i: TEXTS[i] for i in ids}, {i: references[i] for i in ids}, FAST).metrics
        for metric in ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L"):
            assert found[name][metric] == pytest.approx(alone[metric], abs=1e-12)
        # the document frequencies are the whole set's: a class' CIDEr is the mean of its images'
        cider = dict(zip(scores.keys, scores.per_image["CIDEr"], strict=True))
        assert found[name]["CIDEr"] == pytest.approx(sum(cider[i] for i in ids) / len(ids), abs=1e-12)
    assert class_scores(scores, [None] * 4) == {}


@pytest.mark.parametrize(
    ("filename", "scene"),
    [
        ("airport_12.jpg", "airport"),
        ("storagetanks_357.png", "storagetanks"),
        ("airplane/airplane_001.jpg", "airplane"),
        ("baseball_diamond_700.jpg", "baseball_diamond"),
        ("beach12.tif", "beach"),
        ("00313.jpg", None),
        ("17.tif", None),
        ("overview.png", None),
        ("_5.png", None),
        ("", None),
    ],
)
def test_a_scene_class_is_what_stands_before_the_number(filename: str, scene: str | None) -> None:
    assert scene_class(filename) == scene


def written(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value))
    return path


def test_ids_and_file_names_name_images_and_the_split_gives_the_order(tmp_path: Path) -> None:
    keys = ["river_1.jpg", 9, "airport_2.jpg", 7]
    entries = [{"image_id": key, "caption": str(key)} for key in keys]
    for document in (entries, {"captions": entries, "metrics": {}}):
        found = read_results(written(tmp_path / "r.json", document), IMAGES)
        assert list(found.items()) == [(7, "7"), (3, "airport_2.jpg"), (5, "river_1.jpg"), (9, "9")]


def test_a_whole_file_name_goes_before_the_end_of_another(tmp_path: Path) -> None:
    images = [*IMAGES, AnnotatedImage(11, "old/00313.jpg", "val", ("a road",))]
    entries = [{"image_id": image.filename, "caption": image.filename} for image in images]
    found = read_results(written(tmp_path / "r.json", entries), images)
    assert found == {image.imgid: image.filename for image in images}


def test_half_a_character_is_replaced(tmp_path: Path) -> None:
    entries = [{"image_id": image.imgid, "caption": "a \ud800 road"} for image in IMAGES]
    assert read_results(written(tmp_path / "r.json", entries), IMAGES)[7] == "a ? road"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda rows: rows[1:], r"1 without a caption: airport_1\.jpg"),
        (lambda rows: [*rows, rows[0]], r"1 twice: airport_1\.jpg"),
        (lambda rows: [*rows, {"image_id": "airport_1.jpg", "caption": "b"}], r"1 twice: airport_1\.jpg"),
        (lambda rows: [*rows, {"image_id": 99, "caption": "b"}], "not in this split: 99"),
        (lambda rows: {"annotations": rows}, "expected"),
        (lambda rows: [{"image_id": 7}], "expected"),
        (lambda rows: [{"image_id": 7, "caption": None}], "expected"),
        (lambda rows: [{"image_id": [7], "caption": "a"}], "expected"),
    ],
)
def test_a_fault_is_named_with_file_and_ids(change, fault: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    entries = [{"image_id": i, "caption": text} for i, text in TEXTS.items()]
    path = written(tmp_path / "r.json", change(entries))
    with pytest.raises(UserError, match=fault) as caught:
        read_results(path, IMAGES)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("[" * 100_000)
    for path, fault in (("r.json", "not JSON"), ("missing.json", "check the path"), ("", "check the path")):
        with pytest.raises(UserError, match=fault):
            read_results(tmp_path / path, IMAGES)


def test_the_digest_tells_splits_apart() -> None:
    digest = split_digest(IMAGES)
    assert digest == split_digest(list(IMAGES))
    assert digest != split_digest(IMAGES[::-1])
    assert digest != split_digest(IMAGES[:-1])
