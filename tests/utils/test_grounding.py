import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.datasets import load_dataset
from data.errors import UserError
from data.loading import ImageFiles, Visuals
from data.region_store import FoundRegions
from data.regions import RegionFinder, RegionSpec
from data.scenery.classes import CLASSES
from data.synthetic import Truth
from data.tokenizer import tokenize
from data.transforms import Preprocessing
from data.truth import truth_of
from data.vocabulary import SPECIALS, Vocabulary
from models.captioner import Captioner
from models.decoder import Decoder
from models.encoder import Encoder
from models.views import mean_over_views
from utils.grounding import ground, known_truth, score_map, score_nouns


def test_scores_of_a_map_by_hand() -> None:
    there = np.zeros((4, 4), bool)
    there[:2, :2] = True
    assert score_map(np.array([[0.7, 0.1], [0.1, 0.1]]), there) == (1.0, 1.0, 0.25)
    assert score_map(np.array([[0.1, 0.7], [0.1, 0.1]]), there) == (0.0, 0.0, 0.25)
    assert score_map(np.full((2, 2), 0.25), there) == (0.25, 0.25, 0.25)  # an even look: chance
    assert score_map(np.array([[0.4, 0.4], [0.1, 0.1]]), there) == (0.5, 0.5, 0.25)  # a tie is shared out


@pytest.fixture
def truth(tmp_path: Path) -> Truth:
    mask = np.zeros((8, 8), np.uint8)
    mask[:4], mask[4:, :4] = CLASSES.index("water"), CLASSES.index("boat")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    nouns = {"water": ("water", "sea"), "boat": ("boats",)}
    return Truth("port", np.zeros((0, 4)), np.zeros(0), nouns, tmp_path / "mask.png")


def test_nouns_are_scored_on_what_they_name(truth: Truth) -> None:
    masks = np.stack([truth.mask == CLASSES.index(name) for name in ("water", "boat", "background")])
    words = ["many", "boats", "on", "the", "sea", "<end>"]
    attention = np.array([[0, 0, 1], [0.1, 0.8, 0.1], [0, 0, 1], [0, 0, 1], [0.2, 0.7, 0.1], [0, 0, 1]])
    found = score_nouns(words, attention, masks, truth)
    assert found == {"boat": [(1.0, 1.0, 0.25)], "water": [(0.0, 0.0, 0.5)]}
    assert score_nouns(["many", "planes"], attention[:2], masks, truth) == {}


def test_an_even_attention_is_chance(scenes: Path) -> None:
    dataset = load_dataset("RSICD", scenes)
    truths, images = known_truth(dataset), dataset.split("val")[:6]
    assert set(truths) == {image.filename for image in dataset.images}
    words = (tokenize(caption) for image in images for caption in image.captions)
    vocabulary = Vocabulary.build(words, 1)
    captioner = Captioner(Encoder("resnet18"), Decoder(len(vocabulary), 512, 16, 0.0)).eval()
    files = ImageFiles([dataset.path(image) for image in images], Preprocessing(96))
    names = [path.stem for path in files.paths]
    regions = FoundRegions(files, names, RegionFinder(RegionSpec("slic", 8), 3))
    with torch.no_grad():
        captioner.decoder.state_dict()["looking.score.weight"].zero_()  # every region is looked at alike
    for visuals in (Visuals(files), Visuals(files, regions)):
        scores = ground(captioner, vocabulary, visuals, images, truths, "fp32")
        assert scores["pointing"] == pytest.approx(scores["chance"], abs=1e-5)
        assert scores["IoU"] == pytest.approx(scores["chance"], abs=1e-5)
        assert 0.05 < scores["chance"] < 0.95
    assert ground(captioner, vocabulary, Visuals(files), images, {}, "fp32") == {}
    scores = ground(captioner, vocabulary, Visuals(files), images[:5], truths, "fp32")
    fewer = {name: truth for name, truth in truths.items() if name != images[5].filename}
    assert ground(captioner, vocabulary, Visuals(files), images, fewer, "fp32") == pytest.approx(scores)
    nameless = Vocabulary([*SPECIALS, *(f"word{i}" for i in range(len(vocabulary) - len(SPECIALS)))])
    assert ground(captioner, nameless, Visuals(files), images, truths, "fp32") == {}


class Averaged(ImageFiles):
    """The features of images, averaged over their turns."""

    encoder: Encoder

    def read(self, rows: Sequence[int], epoch: int = 0) -> torch.Tensor:
        with torch.no_grad():
            return mean_over_views(self.encoder, super().read(rows, epoch), 4)


def test_images_are_seen_in_as_many_views_as_for_captions(scenes: Path) -> None:
    torch.manual_seed(0)
    dataset = load_dataset("RSICD", scenes)
    truths, images = known_truth(dataset), dataset.split("val")[:6]
    vocabulary = Vocabulary.build((tokenize(caption) for image in images for caption in image.captions), 1)
    captioner = Captioner(Encoder("resnet18"), Decoder(len(vocabulary), 512, 16, 0.0)).eval()
    paths = [dataset.path(image) for image in images]
    files, averaged = ImageFiles(paths, Preprocessing(96)), Averaged(paths, Preprocessing(96))
    averaged.encoder = captioner.encoder
    once, turned = (ground(captioner, vocabulary, Visuals(files), images, truths, "fp32", views) for views in (1, 4))
    assert turned == ground(captioner, vocabulary, Visuals(averaged), images, truths, "fp32") != once


def test_what_someone_else_calls_truth_is_not_ours(scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(scenes, tmp_path / "own")
    (tmp_path / "own" / "synthetic.json").unlink()
    (tmp_path / "own" / "truth.json").write_text("[1, 2]")
    dataset = load_dataset("RSICD", tmp_path / "own")
    assert known_truth(dataset) == {}
    with pytest.raises(UserError, match=r"truth\.json cannot be read"):
        truth_of(dataset, "masks")
