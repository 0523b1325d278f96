import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from data.errors import UserError
from data.vocabulary import SPECIALS, Vocabulary
from models.captioner import Captioner
from models.decoder import Decoder
from models.decoding import Hypothesis
from models.decoding import greedy as greedy_search
from models.encoder import Encoder
from models.heads.latent import LatentHead
from models.heads.parallel import ParallelHead
from models.pooling import Visual
from models.regions import Regions
from models.runtime import open_session
from utils import inference
from utils.config import DecodingConfig
from utils.inference import Caption, by_consensus, caption_rows, look

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


@pytest.mark.parametrize(("method", "count"), [("beam", 3), ("greedy", 1), ("sample", 1), ("consensus", 3)])
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


def test_consensus_says_first_what_most_voters_say_too() -> None:
    def said(*tokens: int) -> Hypothesis:
        return Hypothesis(list(tokens), -float(len(tokens)), torch.zeros(len(tokens), 1))

    first = [said(4, 5), said(4, 6, 7), said(8)], [said(4, 6, 7), said(4, 6, 5), said(8, 8), said(4, 6), said(5, 4)]
    second = [said(8), said(4, 6, 7)], [*[said(8)] * 4, said(4, 6, 7)]
    found = by_consensus([first[0], second[0]], [*first[1], *second[1]])
    assert [h.tokens for h in found[0]] == [[4, 6, 7], [4, 5], [8]]
    assert [h.tokens for h in found[1]] == [[8], [4, 6, 7]]
    alone = by_consensus([second[0]], second[1])
    assert [h.tokens for h in alone[0]] == [h.tokens for h in found[1]]


def test_consensus_is_the_beam_in_another_order(captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = list(range(12))
    unsure = copy.deepcopy(captioner)
    unsure.decoder.embedding.weight.data.div_(4)
    beams = captions(unsure, rows, method="beam", beam_size=4)
    voted = captions(unsure, rows, method="consensus", beam_size=4)
    ordered = [sorted((c.text, c.score) for c in image) for image in beams]
    assert ordered == [sorted((c.text, c.score) for c in image) for image in voted]
    assert [image[0].text for image in beams] != [image[0].text for image in voted]
    monkeypatch.setattr(inference, "SAMPLED", 3 * 64)  # of a batch of four images three and one
    in_parts = captions(unsure, rows, method="consensus", beam_size=4)
    assert [[c.text for c in image] for image in in_parts] == [[c.text for c in image] for image in voted]


@pytest.mark.parametrize("method", ["beam", "greedy", "sample", "consensus"])
def test_no_caption_is_made_of_no_number(captioner: Captioner, method: str) -> None:
    broken = copy.deepcopy(captioner)
    broken.decoder.classifier.bias.data[5] = torch.nan
    with pytest.raises(UserError, match=r"^no caption has a probability .* train\.precision=fp32$"):
        captions(broken, [0, 1], method=method)


@pytest.mark.parametrize("method", ["beam", "sample"])
def test_what_is_read_in_pieces_is_captioned_together(
    captioner: Captioner, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four at a time and then three, whether these are read at once or by twos: the same are drawn."""
    rows = [5, 0, 3, 9, 1, 2, 7]
    at_once = captions(captioner, rows, method=method)
    monkeypatch.setattr("utils.inference.LOOKED_AT", 2)
    in_pieces = captions(captioner, rows, method=method)
    assert [[c.words for c in beams] for beams in in_pieces] == [[c.words for c in beams] for beams in at_once]


class Images:
    def read(self, rows: Sequence[int], epoch: int = 0) -> Visual:
        rng = torch.Generator().manual_seed(0)
        return Visual(torch.randint(0, 256, (32, 3, 64, 64), dtype=torch.uint8, generator=rng)[list(rows)])


def test_many_images_are_looked_at_through_onnx_runtime(captioner: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    decoding = DecodingConfig(max_words=6, beam_size=2, views=8)

    def session(model: bytes, threads: int) -> object:
        opened.append(model)
        return open_session(model, threads)

    monkeypatch.setattr("models.runtime.open_session", session)
    monkeypatch.setattr("models.runtime.MANY", 32 * decoding.views)
    plain, swift = (
        list(caption_rows(captioner, VOCABULARY, Images(), range(count), decoding, "fp32", 8))[:5] for count in (5, 32)
    )
    assert len(opened) == 1  # for the 32 images, once for all batches
    for one, other in zip(plain, swift, strict=True):
        assert [caption.words for caption in one] == [caption.words for caption in other]
        # float32 added up in another order
        np.testing.assert_allclose(one[0].score, other[0].score, rtol=1e-4)


def test_temperature_reaches_sampling(captioner: Captioner) -> None:
    rows = list(range(20))
    cold = captions(captioner, rows, method="sample", temperature=1e-5)
    assert [c[0].words for c in cold] == [c[0].words for c in captions(captioner, rows, method="greedy")]
    assert [c[0].words for c in cold] != [c[0].words for c in captions(captioner, rows, method="sample")]


@pytest.fixture(scope="module")
def latent(captioner: Captioner) -> Captioner:
    torch.manual_seed(1)
    head = LatentHead(512, len(VOCABULARY), 16, width=8, size=4, dropout=0.5)
    with torch.no_grad():
        head.tell.weight.uniform_(-10, 10)  # at first codes move no word
    heads = {"latent": head, "parallel": ParallelHead(512, len(VOCABULARY), 12, width=8, layers=1, dropout=0.5)}
    return Captioner(captioner.encoder, captioner.decoder, heads=heads)


def test_sampling_draws_as_many_captions_as_are_asked_for_best_first(captioner: Captioner, latent: Captioner) -> None:
    for model in (captioner, latent):
        found = captions(model, [4, 2, 6], method="sample", samples=6, temperature=3.0)  # flat: six are hardly one
        assert [len(group) for group in found] == [6, 6, 6]
        for group in found:
            assert [c.score for c in group] == sorted((c.score for c in group), reverse=True)
            assert len({c.text for c in group}) > 1
        again = captions(model, [4, 2, 6], method="sample", samples=6, temperature=3.0)
        assert [[c.text for c in group] for group in again] == [[c.text for c in group] for group in found]


def test_copies_of_images_for_codes_come_in_parts(latent: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def noted(decoder: Decoder, regions: Regions, most: int) -> list[Hypothesis]:
        seen.append(len(regions.values))
        return greedy_search(decoder, regions, most)

    monkeypatch.setattr(inference, "greedy", noted)
    monkeypatch.setattr(inference, "CAPTIONED", 7)
    found = captions(latent, [4, 2, 6, 0], method="sample", samples=3, temperature=1.0)
    assert [len(group) for group in found] == [3] * 4 and seen == [6, 6]


def test_with_a_latent_code_it_is_the_code_that_is_drawn(latent: Captioner) -> None:
    """Cold codes are the prior's mean, which greedy decoding has; what a code says is most probable, not drawn."""
    rows = list(range(8))
    greedy = [c[0].text for c in captions(latent, rows, method="greedy")]
    assert [c[0].text for c in captions(latent, rows, method="sample", temperature=1e-6)] == greedy
    drawn = captions(latent, rows, method="sample", size=8)
    assert [c[0].text for c in drawn] != greedy
    with torch.inference_mode():
        visual = Features().read(rows)
        generator = torch.Generator().manual_seed(0)
        told = latent.heads["latent"].draw(visual.content, 1.0, generator)  # type: ignore[operator]
        regions = latent.decoder.prepare(visual.content, None)._replace(told=latent.decoder.hear(told))
    assert [VOCABULARY.decode(h.tokens) for h in greedy_search(latent.decoder, regions, 6)] == [
        c[0].words for c in drawn
    ]


def test_all_words_at_once_where_there_is_a_head_for_it(captioner: Captioner, latent: Captioner) -> None:
    found = captions(latent, [3, 1, 2], method="parallel")
    with torch.inference_mode():
        expected = latent.heads["parallel"].say(Features().read([3, 1, 2]).content)  # type: ignore[operator]
    assert [c[0].words for c in found] == [VOCABULARY.decode(h.tokens) for h in expected]
    assert [c[0].attention.shape for c in found] == [(len(c[0].words), 4) for c in found]
    with pytest.raises(UserError, match="head: parallel"):
        captions(captioner, [3], method="parallel")


def test_probabilities_that_are_no_numbers_are_named(captioner: Captioner) -> None:
    broken = copy.deepcopy(captioner)
    with torch.no_grad():
        broken.decoder.classifier.bias.fill_(torch.nan)
    with pytest.raises(UserError, match=r"NaN .* train\.precision=fp32"):
        captions(broken, [0], method="beam")


@pytest.mark.parametrize("shares", [None, torch.rand(5, 2, 49)])
def test_what_memory_does_not_hold_at_once_is_looked_at_in_halves(
    captioner: Captioner, shares: torch.Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    visual = Visual(torch.randint(256, (5, 3, 64, 64), dtype=torch.uint8), shares)
    whole = look(captioner, visual, 1, "fp32")
    features = captioner.features

    def little(content: torch.Tensor, views: int) -> torch.Tensor:
        if len(content) > 1:
            raise torch.OutOfMemoryError
        return features(content, views)

    monkeypatch.setattr(captioner, "features", little)
    parts = look(captioner, visual, 1, "fp32")
    torch.testing.assert_close(parts.content, whole.content)
    assert (parts.shares is shares is None) or torch.equal(torch.as_tensor(parts.shares), torch.as_tensor(shares))
    monkeypatch.setattr(captioner, "features", lambda *_: little(visual.content, 1))
    with pytest.raises(torch.OutOfMemoryError):  # not even one
        look(captioner, visual, 1, "fp32")
