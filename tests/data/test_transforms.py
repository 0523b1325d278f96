import numpy as np
import pytest

from data.transforms import Preprocessing, to_channels_first

IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def test_an_image_of_the_right_size_stays_as_it_is() -> None:
    np.testing.assert_array_equal(Preprocessing(64).transform()(image=IMAGE)["image"], IMAGE)


def test_shrinking_averages() -> None:
    expected = IMAGE.reshape(32, 2, 32, 2, 3).mean((1, 3))
    found = Preprocessing(32).transform()(image=IMAGE)["image"]
    np.testing.assert_allclose(found, expected, atol=0.51)  # rounding to uint8


def test_augmentation_turns_image_and_mask_together() -> None:
    transform = Preprocessing(64).transform(augment=True)
    shapes = set()
    for seed in range(40):
        transform.set_random_seed(seed)
        marked = np.zeros((64, 64, 3), np.uint8)
        marked[3, 10] = 200  # off every axis of symmetry: its place tells which of the eight was drawn
        out = transform(image=marked, mask=(marked[..., 0] > 0).astype(np.uint8))
        place = np.argwhere(out["mask"])
        assert len(place) == 1
        assert out["image"][tuple(place[0])].min() > 100
        shapes.add(tuple(place[0]))
    assert len(shapes) == 8


def test_augmentation_depends_on_its_seed_alone() -> None:
    first, second = Preprocessing(64).transform(True), Preprocessing(64).transform(True)
    second(image=IMAGE)
    outs = []
    for transform in (first, second):
        transform.set_random_seed(5)
        outs.append(transform(image=IMAGE)["image"])
    np.testing.assert_array_equal(*outs)
    assert (outs[0] != IMAGE).any()


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
