import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.check import check
from data.datasets import DATASETS, load_dataset, without_broken
from data.errors import UserError
from data.images import read_image


def miniature(root: Path, annotations: str, folder: str, names: dict[str, str]) -> Path:
    """A data set of 8-pixel images: filename -> split."""
    (root / folder).mkdir(parents=True)
    images = []
    for i, (name, split) in enumerate(names.items()):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(root / folder / name)
        images.append({"filename": name, "imgid": i, "split": split, "sentences": [{"raw": f"picture {i}"}]})
    (root / annotations).write_text(json.dumps({"images": images}))
    return root


def test_rsicd_in_both_conventions(tmp_path: Path) -> None:
    names = {"airport_1.jpg": "train", "airport_348.jpg": "val", "airport_61.jpg": "test"}
    captioning = miniature(tmp_path / "a", "dataset_rsicd.json", "RSICD_images", names)
    exchanged = {"airport_1.jpg": "train", "airport_348.jpg": "test", "airport_61.jpg": "val"}
    retrieval = miniature(tmp_path / "b", "dataset_rsicd.json", "RSICD_images", exchanged)

    for root in (captioning, retrieval):
        dataset = load_dataset("RSICD", root)
        assert [i.filename for i in dataset.split("val")] == ["airport_348.jpg"]
        assert [i.filename for i in dataset.split("test")] == ["airport_61.jpg"]
    assert "follow the captioning convention" in load_dataset("RSICD", captioning).notes[0]
    assert "exchanged" in load_dataset("RSICD", retrieval).notes[0]
    kept = load_dataset("RSICD", retrieval, "as-is")
    assert [i.filename for i in kept.split("val")] == ["airport_61.jpg"]
    assert "kept" in kept.notes[0]

    (retrieval / "RSICD_images").rename(retrieval / "inner")
    (retrieval / "RSICD_images").mkdir()
    (retrieval / "inner").rename(retrieval / "RSICD_images" / "RSICD_images")  # as some programs unpack an archive
    dataset = load_dataset("RSICD", retrieval)
    assert all(dataset.path(image).is_file() for image in dataset.images)
    assert any("val and test are exchanged" in note for note in check(retrieval).notes)
    assert not any("exchanged" in note for note in check(captioning).notes)


@pytest.mark.parametrize("name", ["UCM", "Sydney"])
@pytest.mark.parametrize("folder", ["imgs", "images"])
def test_ucm_and_sydney(tmp_path: Path, name: str, folder: str) -> None:
    root = miniature(tmp_path, "dataset.json", folder, {"1.tif": "train", "2.tif": "val", "3.tif": "test"})
    dataset = load_dataset(name, root)
    assert read_image(dataset.path(dataset.split("val")[0])).tolist() == np.full((8, 8, 3), 1).tolist()
    sizes = DATASETS[name].split_sizes
    assert sizes is not None
    assert f"train 1 (published {sizes[0]})" in dataset.notes[0]


@pytest.mark.parametrize("folder", ["NWPU_images", "images"])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("missing", [[], ["airplane_000.jpg"]])
def test_nwpu_with_and_without_category_folders(tmp_path: Path, folder: str, nested: bool, missing: list[str]) -> None:
    """What is missing, the first of all images too, does not hide where the others lie."""
    document: dict[str, list[dict[str, object]]] = {"airplane": [], "beach": []}
    for category in document:
        where = tmp_path / folder / category if nested else tmp_path / folder
        where.mkdir(parents=True, exist_ok=True)
        for i, split in enumerate(("train", "val", "test")):
            filename = f"{category}_{i:03}.jpg"
            if filename not in missing:
                Image.new("RGB", (8, 8)).save(where / filename)
            document[category].append({"filename": filename, "imgid": i, "split": split, "raw": f"{category} {i}"})
    (tmp_path / "dataset_nwpu.json").write_text(json.dumps(document))
    dataset = load_dataset("NWPU", tmp_path)
    assert len(dataset.images) == 6
    assert [dataset.path(i).name for i in dataset.images if not dataset.path(i).is_file()] == missing
    assert len({image.imgid for image in dataset.images}) == 6


def test_published_sizes_raise_no_warning(tmp_path: Path) -> None:
    splits = [s for s, n in zip(("train", "val", "test"), (497, 58, 58), strict=True) for _ in range(n)]
    images = [
        {"filename": f"{i}.tif", "imgid": i, "split": s, "sentences": [{"raw": "a house"}]}
        for i, s in enumerate(splits)
    ]
    (tmp_path / "imgs").mkdir()
    (tmp_path / "dataset.json").write_text(json.dumps({"images": images}))
    assert load_dataset("Sydney", tmp_path).notes == ()


def test_what_is_missing_is_named_with_its_source(tmp_path: Path) -> None:
    for name in ("RSICD", "UCM", "Sydney", "NWPU"):
        spec = DATASETS[name]
        with pytest.raises(UserError, match="--data-root") as caught:
            load_dataset(name, None)
        assert spec.source in str(caught.value)
        with pytest.raises(UserError, match=str(tmp_path)) as caught:
            load_dataset(name, tmp_path)
        assert spec.annotations[0] in str(caught.value)
        assert spec.source in str(caught.value)
    with pytest.raises(UserError, match="known are synthetic, RSICD"):
        load_dataset("COCO", tmp_path)


def test_a_split_without_images(tmp_path: Path) -> None:
    root = miniature(tmp_path, "dataset.json", "imgs", {"1.tif": "train"})
    with pytest.raises(UserError, match="choose one of train"):
        load_dataset("UCM", root).split("test")


def test_links_that_leave_the_folder_are_refused(tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    (outside / "1.tif").touch()
    root = miniature(tmp_path / "data", "dataset.json", "imgs", {"1.tif": "train", "2.tif": "val"})
    (root / "imgs" / "2.tif").unlink()
    (root / "imgs" / "2.tif").symlink_to("1.tif")
    assert load_dataset("UCM", root).images  # a link within the folder
    (root / "imgs" / "2.tif").unlink()
    (root / "imgs" / "2.tif").symlink_to(outside / "1.tif")
    with pytest.raises(UserError, match=r"2\.tif: a link that leaves"):
        load_dataset("UCM", root)
    (root / "imgs" / "2.tif").unlink()
    (root / "imgs" / "deep").symlink_to(outside)
    document = (root / "dataset.json").read_text().replace("2.tif", "deep/1.tif")
    (root / "dataset.json").write_text(document)
    with pytest.raises(UserError, match="deep: a link that leaves"):
        load_dataset("UCM", root)
    (outside / "below").mkdir()
    (outside / "below" / "1.tif").touch()
    (root / "dataset.json").write_text(document.replace("deep/1.tif", "deep/below/1.tif"))
    with pytest.raises(UserError, match="deep: a link that leaves"):
        load_dataset("UCM", root)


def test_names_that_would_become_one_keep_their_folders(tmp_path: Path) -> None:
    (tmp_path / "NWPU_images").mkdir()
    document = {name: [{"filename": "1.jpg", "split": "train", "raw": "a"}] for name in ("airplane", "beach")}
    (tmp_path / "dataset_nwpu.json").write_text(json.dumps(document))
    names = [image.filename for image in load_dataset("NWPU", tmp_path).images]
    assert names == ["airplane/1.jpg", "beach/1.jpg"]


def test_broken_images_can_be_left_out(tmp_path: Path) -> None:
    root = miniature(tmp_path, "dataset.json", "imgs", {f"{i}.tif": "train" for i in range(5)})
    whole = load_dataset("UCM", root)
    assert without_broken(whole) == whole
    (root / "imgs" / "1.tif").write_bytes(b"")
    (root / "imgs" / "3.tif").unlink()
    kept = without_broken(load_dataset("UCM", root))
    assert [image.filename for image in kept.images] == ["0.tif", "2.tif", "4.tif"]
    assert ["1.tif" in kept.skipped[0], "3.tif" in kept.skipped[1], len(kept.skipped)] == [True, True, 2]
    assert kept.notes[-1] == "warning: UCM: 2 images cannot be read and are left out"
