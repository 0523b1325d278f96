import albumentations as A
import cv2
import numpy as np
import pytest
import torch

from data.transforms import Preprocessing, colour_jitter, to_channels_first, view_of
from models.views import VIEWS, turned

IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def test_an_image_of_the_right_size_stays_as_it_is() -> None:
    np.testing.assert_array_equal(Preprocessing(64).resized(IMAGE), IMAGE)


def test_shrinking_averages() -> None:
    expected = IMAGE.reshape(32, 2, 32, 2, 3).mean((1, 3))
    found = Preprocessing(32).resized(IMAGE)
    np.testing.assert_allclose(found, expected, atol=0.51)  # rounding to uint8


@pytest.mark.parametrize(("height", "width"), [(100, 40), (40, 100), (50, 60), (90, 70), (64, 64)])
def test_resizing_is_albumentations(height: int, width: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    theirs = A.Resize(64, 64, interpolation=cv2.INTER_CUBIC, area_for_downscale="image")
    np.testing.assert_array_equal(Preprocessing(64).resized(image), theirs(image=image)["image"])


def test_augmentation_depends_on_its_seed_alone() -> None:
    first, second = colour_jitter(), colour_jitter()
    second(image=IMAGE)
    outs = []
    for jitter in (first, second):
        jitter.set_random_seed(5)
        outs.append(jitter(image=IMAGE)["image"])
    np.testing.assert_array_equal(*outs)
    assert (outs[0] != IMAGE).any()


@pytest.mark.parametrize("view", range(VIEWS))
def test_views_are_the_turns_and_flips_of_numpy(view: int) -> None:
    expected = np.rot90(np.fliplr(IMAGE) if view >= 4 else IMAGE, view % 4)
    found = turned(torch.from_numpy(to_channels_first(IMAGE)), view)
    np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), expected)
    assert view or found.permute(1, 2, 0).numpy().tobytes() == IMAGE.tobytes()


def test_no_two_views_are_the_same() -> None:
    marked = torch.arange(9).view(3, 3)
    assert len({tuple(turned(marked, view).flatten().tolist()) for view in range(VIEWS)}) == VIEWS


def test_the_view_is_a_number_of_seed_epoch_and_row() -> None:
    drawn = np.bincount([view_of(1, epoch, row) for epoch in range(20) for row in range(400)], minlength=VIEWS)
    assert drawn.min() > 0.9 * drawn.mean()
    assert {view_of(0, epoch, row, 1) for epoch in range(5) for row in range(5)} == {0}


def test_channels_first() -> None:
    out = to_channels_first(IMAGE)
    assert out.flags["C_CONTIGUOUS"]
    assert (out[2, 5, 7] == IMAGE[5, 7, 2]).all()


def test_fields_survive_and_are_checked() -> None:
    assert Preprocessing(**Preprocessing(96, "area").to_dict()) == Preprocessing(96, "area")
    with pytest.raises(ValueError, match="interpolation"):
        Preprocessing(96, "nearest")
    with pytest.raises(ValueError, match="size"):
        Preprocessing(8)
