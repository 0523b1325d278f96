"""Search by words, by either judge, against what the captioner and its head say themselves."""

import math
from pathlib import Path

import pytest
import torch

from data.transforms import Preprocessing
from data.vocabulary import SPECIALS, Vocabulary
from models.encoder import Encoder
from models.heads.concepts import ConceptHead
from models.heads.retrieval import RetrievalHead
from models.pooling import Visual
from utils.checkpoint import Checkpoint, build_captioner, load_checkpoint, save_checkpoint
from utils.config import parse_config
from utils.search import Query

VOCABULARY = Vocabulary([*SPECIALS, "a", "plane", "by", "the", "sea"])
IMAGES = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def write(path: Path, head: bool) -> Path:
    """A captioner of random weights with the head `concepts`, and `retrieval` where `head`."""
    model = {"encoder": {"name": "test_efficientnet", "weights": "none"}, "decoder": {"width": 16}}
    config = parse_config({"model": {**model, "heads": {"retrieval": {"width": 8}}}, "data": {"size": 32}}, "")
    heads: dict[str, torch.nn.Module] = {"concepts": ConceptHead(256, torch.full((4,), 0.5), 0.0)}
    if head:
        heads["retrieval"] = RetrievalHead(256, len(VOCABULARY), 8, 0.2)
    captioner = build_captioner(config, Encoder("test_efficientnet"), len(VOCABULARY), 256, heads)
    save_checkpoint(path, Checkpoint(captioner, VOCABULARY, Preprocessing(32), config, {}))
    return path


def test_the_embedding_judges_where_there_is_one(tmp_path: Path) -> None:
    captioner = load_checkpoint(write(tmp_path / "c.safetensors", head=True)).captioner
    assert list(captioner.heads) == ["retrieval"]  # the other one stays behind
    query = Query(captioner, VOCABULARY, "a zeppelin by the sea", 32)
    assert query.unknown == ["zeppelin"]
    tokens = torch.tensor([VOCABULARY.encode(["a", "by", "the", "sea"], 9)]).expand(3, -1)
    with torch.no_grad():
        out = captioner.look(Visual(IMAGES), tokens, torch.arange(3))["retrieval"]
    pairs = zip(out["image_embeddings"].tolist(), out["text_embeddings"].tolist(), strict=True)
    cosines = [sum(map(math.prod, zip(a, b, strict=True))) / math.hypot(*a) / math.hypot(*b) for a, b in pairs]
    assert query.match(Visual(IMAGES)) == pytest.approx(cosines, abs=1e-5)
    assert len(set(cosines)) == 3


def test_without_one_the_captioner_does(tmp_path: Path) -> None:
    captioner = load_checkpoint(write(tmp_path / "c.safetensors", head=False)).captioner
    assert not captioner.heads
    seen = torch.cat([IMAGES, torch.full((1, 3, 32, 32), 127, dtype=torch.uint8)])
    words = VOCABULARY.encode(["a", "plane"], 2)[:-1]
    with torch.no_grad():
        said = captioner(Visual(seen), torch.tensor([words[:-1]]).expand(4, -1), torch.arange(4)).logits.log_softmax(-1)
    *fits, habit = (sum(float(row[t, word]) for t, word in enumerate(words[1:])) / 2 for row in said)
    query = Query(captioner, VOCABULARY, "a plane", 32)
    assert query.match(Visual(IMAGES)) == pytest.approx([fit - habit for fit in fits], abs=1e-5)
