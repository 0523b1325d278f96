"""Shared by all tests: a fixed seed, and a small data set of synthetic scenes."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts: the tests themselves run on all cores

import pytest
import torch
from filelock import FileLock
from hypothesis import settings

from data.transforms import Preprocessing
from data.vocabulary import SPECIALS, Vocabulary
from models.encoder import Encoder
from utils.checkpoint import Checkpoint, build_captioner, save_checkpoint
from utils.config import parse_config

# New examples are for people, who can look at what is found; a gate must say the same thing twice. No deadlines: a busy
# machine is no finding.
settings.register_profile("nadir", derandomize=bool(os.environ.get("CI")), deadline=None)
settings.load_profile("nadir")

WORDS = ["a", "plane", "boat", "bridge", "river", "field", "many", "green", "two", "by", "the", "some"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long begins first, so that all workers end together."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out as RSICD's: 68 train, 17 val and 17 test scenes of 96 pixels; the workers share it."""
    from data.synthetic import write_dataset

    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "scenes" / "data"
    root.parent.mkdir(exist_ok=True)
    with FileLock(root.parent / "lock"):
        write_dataset(root, 68, 17, 17, seed=0, size=96, processes=1)  # does nothing where it is done
    return root


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The option of a folder for feature stores that a worker's tests share."""
    return f"data.cache_dir={tmp_path_factory.mktemp('cache')}"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A captioner of random weights that sees 32 pixels: fast, and different images give different captions."""
    path = tmp_path_factory.mktemp("checkpoint") / "random.safetensors"
    tree = {"model": {"encoder": {"name": "test_efficientnet", "weights": "none"}, "decoder": {"width": 16}}}
    config = parse_config(tree | {"data": {"size": 32}, "decoding": {"beam_size": 2, "max_words": 5}}, "")
    vocabulary = Vocabulary([*SPECIALS, *WORDS])
    torch.manual_seed(314)  # whichever test asks first; with others many images would get one caption
    captioner = build_captioner(config, Encoder("test_efficientnet"), len(vocabulary), 256)
    save_checkpoint(path, Checkpoint(captioner, vocabulary, Preprocessing(32), config, {}))
    return path
