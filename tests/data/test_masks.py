import json
import runpy
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from data.errors import UserError
from data.masks import convert, mask_files, read_masks

ROOT = Path(__file__).resolve().parents[2]
MASKS = np.random.default_rng(0).random((3, 6, 6)) < 0.4


@pytest.fixture
def sam(tmp_path: Path) -> Path:
    """SAM's output for two images: a list with compressed codes, and SA-1B's mapping with plain ones."""
    folder = tmp_path / "sam"
    folder.mkdir()
    codes = [coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in MASKS]
    entries = [{"segmentation": {**code, "counts": code["counts"].decode()}, "area": 1} for code in codes]
    (folder / "airport_1.json").write_text(json.dumps(entries))
    counts = [0, 2, 4]  # column by column: two pixels of the region, four others
    plain = {"image": {}, "annotations": [{"segmentation": {"size": [3, 2], "counts": counts}}]}
    (folder / "beach_2.json").write_text(json.dumps(plain))
    return folder


def test_sam_is_converted_mask_by_mask(sam: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "masks.h5"
    monkeypatch.setattr(sys, "argv", ["data.masks", str(sam), str(target)])
    monkeypatch.setattr("utils.files.stop_at_once", lambda: None)  # the tests' own signals stay as they are
    runpy.run_path(str(ROOT / "data" / "masks.py"), run_name="__main__")
    np.testing.assert_array_equal(read_masks(target, "airport_1", 6), MASKS)
    assert h5py.File(target)["beach_2"][:].tolist() == [[[1, 0], [1, 0], [0, 0]]]
    assert mask_files(target) == [target]
    with pytest.raises(UserError, match=r"nope\.h5: no such .* of masks; .* check regions\.masks"):
        mask_files(tmp_path / "nope.h5")
    with pytest.raises(UserError, match="no masks of port_3"):
        read_masks(target, "port_3", 6)


@pytest.mark.parametrize("content", ["[", '[{"area": 1}]', '{"a": 1}', '[{"segmentation": {"size": [2, 2]}}]'])
def test_what_is_not_sams_is_named_and_nothing_is_written(sam: Path, tmp_path: Path, content: str) -> None:
    (sam / "worse.json").write_text(content)
    with pytest.raises(UserError, match=r"worse\.json"):
        convert(sam, tmp_path / "masks.h5")
    assert not (tmp_path / "masks.h5").exists()
    with pytest.raises(UserError, match=r"no \.json"):
        convert(tmp_path, tmp_path / "masks.h5")


def test_a_map_of_labels_is_a_mask_a_label(tmp_path: Path) -> None:
    labels = np.array([[0, 3, 3], [7, 7, 3], [7, 7, 0]], np.uint8)
    np.savez(tmp_path / "a.npz", labels)
    Image.fromarray(labels).save(tmp_path / "b.png")
    for name in "ab":
        np.testing.assert_array_equal(read_masks(tmp_path, name, 3), [labels == 3, labels == 7])
    assert read_masks(tmp_path, "a", 6)[0].sum() == 4 * 3  # in any resolution
    Image.fromarray(labels).convert("RGB").save(tmp_path / "b.png")
    with pytest.raises(UserError, match=r"b\.png: RGB is no map of labels; save it with one number a pixel"):
        read_masks(tmp_path, "b", 3)
    assert [path.name for path in mask_files(tmp_path)] == ["a.npz", "b.png"]


def test_empty_masks_are_left_out(tmp_path: Path) -> None:
    np.savez(tmp_path / "some.npz", np.concatenate([MASKS, np.zeros((2, 6, 6), bool)]))
    np.savez(tmp_path / "none.npz", np.zeros((0, 6, 6), bool))
    assert len(read_masks(tmp_path, "some", 6)) == 3
    assert read_masks(tmp_path, "none", 6).shape == (0, 6, 6)


def test_files_that_hold_no_masks_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "line.npz", np.zeros(5))
    (tmp_path / "noise.npz").write_bytes(b"no archive")
    np.savez(tmp_path / "pickled.npz", np.array([{}], dtype=object))
    for name in ("line", "noise", "pickled"):
        with pytest.raises(UserError, match=name):
            read_masks(tmp_path, name, 4)


def test_an_image_in_which_nothing_was_found_has_no_masks(sam: Path, tmp_path: Path) -> None:
    (sam / "sea_3.json").write_text("[]")
    assert convert(sam, tmp_path / "masks.h5") == 3
    assert read_masks(tmp_path / "masks.h5", "sea_3", 6).shape == (0, 6, 6)
    np.testing.assert_array_equal(read_masks(tmp_path / "masks.h5", "airport_1", 6), MASKS)


@pytest.mark.parametrize("damage", ["empty", "cut", "one array"])
def test_damaged_masks_are_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "scene.npz"
    np.savez_compressed(path, MASKS)
    whole = path.read_bytes()
    if damage == "one array":
        with open(path, "wb") as file:
            np.save(file, MASKS)
    else:
        path.write_bytes(b"" if damage == "empty" else whole[:60] + bytes(40) + whole[100:])
    with pytest.raises(UserError, match="masks of scene cannot be read"):
        read_masks(tmp_path, "scene", 6)
