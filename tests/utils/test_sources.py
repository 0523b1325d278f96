import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from data.datasets import load_dataset
from data.errors import UserError
from data.images import read_image
from data.transforms import view_of
from models.captioner import Captioner
from models.decoder import Decoder
from models.encoder import Encoder
from models.views import VIEWS
from utils.config import Config, parse_config
from utils.sources import (
    frozen_features,
    hold_back,
    image_files,
    open_dataset,
    thinned,
    with_captions,
)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder("tf_efficientnet_lite0")


@pytest.fixture
def config(scenes: Path, tmp_path: Path) -> Config:
    data = {"size": 96, "limit": 3, "cache_dir": str(tmp_path)}
    return parse_config({"data_root": str(scenes), "data": data, "model": {"encoder": {"batch_size": 8}}}, "test")


@pytest.mark.parametrize("many", [1, 1000])  # images from which on ONNX Runtime looks
@torch.inference_mode()
def test_the_store_holds_what_the_encoder_sees_of_every_view(
    config: Config, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, many: int
) -> None:
    monkeypatch.setattr("models.runtime.MANY", many)
    dataset = open_dataset(config)
    images = dataset.split("train")
    store = frozen_features(config, dataset, images, encoder, "fp32", VIEWS)
    assert store.shape == (3, VIEWS, 9, 1280)
    for epoch in range(3):
        for row, found in enumerate(store.read(range(3), epoch)):
            pixels, view = read_image(dataset.path(images[row])), view_of(config.seed, epoch, row)
            seen = np.rot90(np.fliplr(pixels) if view >= 4 else pixels, view % 4)
            expected = encoder.eval()(torch.from_numpy(seen.copy()).permute(2, 0, 1)[None])[0]
            torch.testing.assert_close(found.float(), expected, rtol=1e-3, atol=1e-3)  # the store is float16
    assert len(list(Path(config.data.cache_dir, "features").iterdir())) == 1


def test_views_have_a_store_of_their_own(config: Config, encoder: Encoder) -> None:
    dataset = open_dataset(config)
    images = dataset.split("val")
    plain, turned = (frozen_features(config, dataset, images, encoder, "fp32", views) for views in (1, VIEWS))
    assert (plain.shape, turned.shape) == ((3, 1, 9, 1280), (3, VIEWS, 9, 1280))
    first = frozen_features(config, dataset, images, encoder, "fp32").read([0, 1, 2])
    torch.testing.assert_close(first, plain.read([0, 1, 2], epoch=5))  # one view: the same in every epoch


def test_extra_layers_have_a_store_of_their_own(config: Config, encoder: Encoder) -> None:
    other = Encoder(encoder.name, ["blocks.4"])
    other.load_state_dict(encoder.state_dict())
    dataset = open_dataset(config)
    images = dataset.split("val")
    plain, more = (frozen_features(config, dataset, images, which, "fp32") for which in (encoder, other))
    assert more.shape == (3, 1, 9, 1280 + 2 * 112)
    torch.testing.assert_close(more.read([0, 1, 2])[..., :1280], plain.read([0, 1, 2]))


def test_images_held_back_leave_train_and_nothing_else(scenes: Path) -> None:
    whole = load_dataset("RSICD", scenes, "captioning")
    some, more = hold_back(whole, 0.2), hold_back(whole, 0.5)
    names = {image.filename for image in some.split("held-back")}
    assert 5 <= len(names) <= 25  # of 68: 13.6 expected, 3.3 standard deviation
    assert names < {image.filename for image in more.split("held-back")}
    assert [image for image in whole.split("train") if image.filename not in names] == some.split("train")
    for split in ("val", "test"):
        assert some.split(split) == whole.split(split)
    assert hold_back(whole, 0.0) == whole


@torch.inference_mode()
def test_an_averaged_store_holds_what_the_captioner_averages(config: Config, encoder: Encoder) -> None:
    dataset = open_dataset(config)
    images = dataset.split("val")
    store = frozen_features(config, dataset, images, encoder, "fp32", VIEWS, averaged=True)
    captioner = Captioner(encoder, Decoder(9, 1280, 8, 0.0)).eval()
    expected = captioner.features(image_files(config, dataset, images).read(range(3)), VIEWS)
    # the store is float16
    torch.testing.assert_close(store.read([0, 1, 2], epoch=3).float(), expected, rtol=1e-3, atol=1e-3)


def test_a_limit_takes_images_from_everywhere(scenes: Path) -> None:
    whole = load_dataset("RSICD", scenes, "captioning").split("train")
    assert thinned(whole, 1000) == whole
    some = thinned(whole, 17)  # 68 / 4
    assert some == whole[::4]
    assert len(thinned(whole, 30)) == 30 and thinned(whole, 30)[-1] in whole[-3:]
    assert thinned([], 5) == []


def test_a_teachers_captions_join_the_train_captions(scenes: Path, config: Config, tmp_path: Path) -> None:
    whole = load_dataset("RSICD", scenes, "captioning")
    said = {image.imgid: f"what a teacher says of {i}" for i, image in enumerate(whole.split("train"))}
    results = tmp_path / "teacher.json"
    results.write_text(json.dumps([{"image_id": imgid, "caption": text} for imgid, text in said.items()]))
    data = config.data.model_copy(update={"more_captions": str(results), "limit": 20})
    taught = open_dataset(config.model_copy(update={"data_root": str(scenes), "dataset": "RSICD", "data": data}))
    assert [image.captions[-1] for image in taught.split("train")] == [said[i.imgid] for i in taught.split("train")]
    assert all(len(image.captions) == 6 for image in taught.split("train"))
    assert taught.split("val") == whole.split("val")
    held = data.model_copy(update={"held_back": 0.2, "limit": 0})  # a teacher that held back the same images
    back = config.model_copy(update={"data_root": str(scenes), "dataset": "RSICD", "data": held})
    kept = open_dataset(back.model_copy(update={"data": held.model_copy(update={"more_captions": None})}))
    left = [{"image_id": image.imgid, "caption": said[image.imgid]} for image in kept.split("train")]
    results.write_text(json.dumps(left))
    assert len(left) < len(said) and all(len(image.captions) == 6 for image in open_dataset(back).split("train"))
    broken = shutil.copytree(scenes, tmp_path / "broken")
    name = whole.split("train")[3].filename
    (broken / "RSICD_images" / name).write_text("no image")
    without = [entry for entry in said if entry != whole.split("train")[3].imgid]
    results.write_text(json.dumps([{"image_id": imgid, "caption": said[imgid]} for imgid in without]))
    left_out = data.model_copy(update={"skip_broken": True, "limit": 0})  # a teacher that left out the same image
    some = open_dataset(back.model_copy(update={"data_root": str(broken), "data": left_out})).split("train")
    assert [image.imgid for image in some] == without and all(len(image.captions) == 6 for image in some)
    results.write_text(json.dumps([{"image_id": 0, "caption": "one"}]))
    with pytest.raises(UserError, match="without a caption"):
        with_captions(whole, results)
