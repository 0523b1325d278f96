from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import regions, standins
from data.synthetic import generate_scene
from data.vocabulary import SPECIALS, Vocabulary
from models.decoder import Decoder


def test_best_overlaps_are_counted_pixels() -> None:
    dice = np.random.default_rng(0)
    masks, found = dice.random((3, 9, 7)) < 0.4, dice.random((5, 9, 7)) < 0.6
    expected = [max((mask & region).sum() / (mask | region).sum() for region in found) for mask in masks]
    np.testing.assert_allclose(regions.best_overlaps(masks, found), expected, rtol=1e-6)  # float32 counts
    assert regions.best_overlaps(masks, masks).tolist() == [1, 1, 1]


def test_things_are_of_their_class_and_in_their_box() -> None:
    scene = generate_scene(regions.SEED, 1)
    masks = regions.things(scene)
    assert 0 < len(masks) <= len(scene.boxes)
    assert all(len(set(scene.mask[mask])) == 1 for mask in masks)


def test_regions_are_compared_in_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    regions.main(2)
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[-3:]]
    assert [row[0].strip("| ") for row in rows] == list(regions.KINDS)
    assert all(0 < float(row[column]) < 1 for row in rows for column in (1, 2))


def test_a_decoder_of_fewer_channels_says_the_same_of_them_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    vocabulary = Vocabulary([*SPECIALS, "a", "plane"])
    shipped = Decoder(len(vocabulary), standins.CHANNELS // 2, standins.WIDTH, 0.5, "dot").eval()
    torch.nn.init.normal_(shipped.state_dict()["region.0.weight"], 1, 0.2)
    start = SimpleNamespace(captioner=SimpleNamespace(decoder=shipped), vocabulary=vocabulary)
    monkeypatch.setattr(standins, "load_checkpoint", lambda path: start)
    monkeypatch.setattr(standins, "DEVICE", torch.device("cpu"))
    features = torch.randn(2, standins.CELLS, standins.CHANNELS // 2)
    decoder, _ = standins.speaking()
    found = decoder.eval().prepare(features.repeat(1, 1, 2), None)
    # twice as many terms in float32's sums
    torch.testing.assert_close(found.values, shipped.prepare(features, None).values, rtol=1e-4, atol=1e-5)
