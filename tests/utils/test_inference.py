from collections.abc import Sequence

import numpy as np
import pytest
import torch

from data.vocabulary import SPECIALS, Vocabulary
from models.captioner import Captioner
from models.decoder import Decoder
from models.encoder import Encoder
from models.pooling import Visual
from utils.config import DecodingConfig
from utils.inference import Caption, caption_rows

VOCABULARY = Vocabulary([*SPECIALS, "a", "red", "blue", "plane", "boat"])


class Features:
    def read(self, rows: Sequence[int], epoch: int = 0) -> Visual:
        features = [torch.randn(4, 512, generator=torch.Generator().manual_seed(row)) for row in rows]
        return Visual(torch.stack(features))


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    torch.manual_seed(3)
    model = Captioner(Encoder("resnet18"), Decoder(len(VOCABULARY), 512, 16, 0.5))
    with torch.no_grad():
        model.decoder.embedding.weight.mul_(4)  # untrained logits are nearly flat: sharpen them, so that paths differ
    return model


def captions(captioner: Captioner, rows: list[int], size: int = 4, **decoding: object) -> list[list[Caption]]:
    config = DecodingConfig.model_validate({"max_words": 6, **decoding})
    return list(caption_rows(captioner, VOCABULARY, Features(), rows, config, "fp32", batch_size=size))


@pytest.mark.parametrize(("method", "count"), [("beam", 3), ("greedy", 1), ("sample", 1)])
def test_every_method_captions_every_row_in_order(captioner: Captioner, method: str, count: int) -> None:
    rows = [5, 0, 3, 9, 1, 2, 7]
    found = captions(captioner, rows, method=method, beam_size=3)
    assert [len(beams) for beams in found] == [count] * len(rows)
    for beams in found:
        assert beams[0].attention.shape == (len(beams[0].words), 4)
        np.testing.assert_allclose(beams[0].attention.sum(1), 1, rtol=1e-5)
        assert beams[0].text == " ".join(beams[0].words) != ""
    again = captions(captioner, rows, method=method, beam_size=3)
    assert [[c.words for c in beams] for beams in again] == [[c.words for c in beams] for beams in found]
    if method != "sample":  # what is drawn depends on the batch, what is searched does not
        for row, beams in zip(rows, found, strict=True):
            assert captions(captioner, [row], 1, method=method, beam_size=3)[0][0].words == beams[0].words


def test_temperature_reaches_sampling(captioner: Captioner) -> None:
    rows = list(range(20))
    cold = captions(captioner, rows, method="sample", temperature=1e-5)
    assert [c[0].words for c in cold] == [c[0].words for c in captions(captioner, rows, method="greedy")]
    assert [c[0].words for c in cold] != [c[0].words for c in captions(captioner, rows, method="sample")]
