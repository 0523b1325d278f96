import json
from pathlib import Path
from typing import Any

import pytest

from data.annotations import read_karpathy, read_nwpu, swap_val_and_test
from data.errors import UserError


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def entry(**changes: Any) -> dict[str, Any]:
    return {
        "filename": "airport_1.jpg",
        "imgid": 7,
        "split": "train",
        "sentences": [{"raw": "a plane .", "tokens": ["a", "plane"]}, {"raw": "one plane", "tokens": []}],
    } | changes


def test_karpathy_fields(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", {"images": [entry(), entry(filename="b.jpg", imgid=8, split="restval")]})
    first, second = read_karpathy(path)
    assert (first.imgid, first.filename, first.split) == (7, "airport_1.jpg", "train")
    assert first.captions == ("a plane .", "one plane")
    assert second.split == "train"


@pytest.mark.parametrize(
    ("images", "fault"),
    [
        ([entry(split="dev")], "split"),
        ([entry(split=None)], "split"),
        ([entry(filename=3)], "filename"),
        ([entry(filename="../../etc/passwd")], "leaves the folder"),
        ([entry(filename="a\\..\\..\\b.jpg")], "leaves the folder"),
        ([entry(filename="/etc/passwd")], "leaves the folder"),
        ([entry(filename=".")], "leaves the folder"),
        ([entry(filename="a" * 256)], "no file can have"),
        ([entry(filename="a\0.jpg")], "no file can have"),
        ([entry(filename="a\ud800.jpg")], "no file can have"),
        ([entry(sentences=[])], "no caption"),
        ([entry(split=[[[[[[[[["train"]]]]]]]]])], "split"),
        ([entry(imgid=2**63)], "64 bits"),
        ([entry(imgid=float("nan"))], "imgid"),
        ([entry(imgid="7")], "imgid"),
        ([entry(imgid=True)], "imgid"),
        ([entry(sentences="a plane")], "sentences"),
        ([entry(sentences=[{"tokens": ["a"]}])], "raw"),
        ([entry(), entry(filename="b.jpg")], "imgid 7 stands twice"),
        ([entry(), entry(imgid=8)], "'airport_1.jpg' stands twice"),
        (["a plane"], "not an object"),
        ([], "no images"),
        ({}, "no list"),
    ],
)
def test_karpathy_faults_are_named(tmp_path: Path, images: Any, fault: str) -> None:
    path = write(tmp_path / "a.json", {"images": images})
    with pytest.raises(UserError, match=fault) as caught:
        read_karpathy(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"[" * 100_000, b"\xff\xfe{}", b"", b"null"])
def test_files_that_are_no_annotations(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    for read in (read_karpathy, read_nwpu):
        with pytest.raises(UserError, match=str(path)):
            read(path)


def test_nwpu_layout(tmp_path: Path) -> None:
    captions = {"raw": "c0", **{f"raw_{i}": f"c{i}" for i in range(1, 5)}}
    document = {
        "airplane": [{"filename": "airplane_001.jpg", "imgid": 0, "split": "train", **captions}],
        "beach": [{"filename": "beach_001.jpg", "imgid": 0, "split": "val", **captions}],
    }
    first, second = read_nwpu(write(tmp_path / "dataset_nwpu.json", document))
    assert first.filename == "airplane/airplane_001.jpg"
    assert first.captions == ("c0", "c1", "c2", "c3", "c4")
    assert (first.imgid, second.imgid) == (0, 1)  # the file counts afresh in every category


def test_swap_exchanges_val_and_test_alone(tmp_path: Path) -> None:
    splits = ["train", "val", "test"]
    images = [entry(split=s, imgid=i, filename=f"{i}.jpg") for i, s in enumerate(splits)]
    swapped = swap_val_and_test(read_karpathy(write(tmp_path / "a.json", {"images": images})))
    assert [image.split for image in swapped] == ["train", "test", "val"]


def test_a_fault_is_named_in_a_line_however_large_it_is(tmp_path: Path) -> None:
    for change in ({"split": "x" * 10**6}, {"imgid": ["y" * 10**6] * 50}, {"filename": "../" * 10**5}):
        path = write(tmp_path / "a.json", {"images": [entry(**change)]})
        with pytest.raises(UserError) as caught:
            read_karpathy(path)
        message = str(caught.value)
        assert message.startswith(str(path))  # however long the folder's own name is
        assert len(message.removeprefix(str(path))) < 340


def test_an_nwpu_image_without_a_name_is_refused(tmp_path: Path) -> None:
    document = {"airplane": [{"split": "train", "raw": "a plane"}]}
    with pytest.raises(UserError, match="filename"):
        read_nwpu(write(tmp_path / "a.json", document))


def test_text_of_every_kind(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    document = json.dumps({"images": [entry(sentences=[{"raw": "\ud800 caf\u00e9"}, {"raw": "word " * 10_000}])]})
    path.write_text("\ufeff" + document, encoding="utf-8")  # as some editors save it
    (image,) = read_karpathy(path)
    assert image.captions[0] == "? café"
    assert len(image.captions[1].split()) == 10_000
