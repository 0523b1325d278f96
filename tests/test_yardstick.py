"""The yardstick of benchmarks/speed.py computes what we compute: speeds of like are compared with like."""

import pytest
import torch

from benchmarks.yardstick import Yardstick, beam_search
from models import decoding
from models.decoder import Decoder


@pytest.fixture
def decoder() -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(20, 12, 16, 0.5, "additive").eval()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, 0, 0.5)  # so that words differ
    return decoder


def test_logits_and_attention_are_ours(decoder: Decoder) -> None:
    features, tokens = torch.randn(3, 7, 12), torch.randint(20, (5, 6))
    image_of = torch.tensor([0, 0, 1, 2, 2])
    yardstick = Yardstick.of(decoder).eval()
    expected = decoder(decoder.prepare(features, None), tokens, image_of)
    for got, ours in zip(yardstick(features[image_of], tokens), expected, strict=True):
        torch.testing.assert_close(got, ours)


def test_captions_are_ours(decoder: Decoder) -> None:
    features = torch.randn(8, 7, 12)
    yardstick = Yardstick.of(decoder).eval()
    ours = decoding.beam_search(decoder, decoder.prepare(features, None), 3, 10)
    for image, captions in zip(features, ours, strict=True):
        found = beam_search(yardstick, image[None], 3, 10)
        assert [words for _, words in found] == [caption.tokens for caption in captions]
        assert [score for score, _ in found] == pytest.approx([caption.score for caption in captions], abs=1e-5)
