import itertools

import pytest
import torch

from models import decoder, decoding
from models.decoder import Decoder
from models.decoding import arithmetic_sample, beam_search, greedy, sample
from models.regions import Regions
from models.tokens import END, PAD, START, UNK

V, D, E, N = 8, 5, 16, 4
WORDS = [w for w in range(V) if w not in (PAD, START, END, UNK)]


@pytest.fixture(params=["additive", "dot"])
def model(request: pytest.FixtureRequest) -> Decoder:
    decoder = Decoder(V, D, E, 0.0, request.param).eval()
    with torch.no_grad():  # untrained logits are nearly flat: sharpen them, so that paths differ
        decoder.embedding.weight.mul_(8)
    return decoder


@pytest.fixture(params=[True, False], ids=["sparing", "all"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a CPU draws words, and as a GPU does."""
    for part in (decoding, decoder):
        monkeypatch.setattr(part, "worth_sparing", lambda device: request.param)


def regions_of(model: Decoder, images: int) -> Regions:
    with torch.no_grad():
        return model.prepare(torch.randn(images, N, D) * 3, None)


@torch.no_grad()
def log_p(model: Decoder, regions: Regions, words: list[int]) -> tuple[float, torch.Tensor]:
    """log p of a caption and its end, and its attention, by teacher forcing."""
    logits, attention = model(regions, torch.tensor([[START, *words]]))
    scores = logits[0].log_softmax(-1)
    scores = scores.gather(1, torch.tensor([*words, END])[:, None])
    return float(scores.sum()), attention[0, :-1]


@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.0])
def test_a_wide_beam_finds_what_trying_all_captions_finds(model: Decoder, length_penalty: float) -> None:
    regions = regions_of(model, 3)
    longest = 3
    found = beam_search(model, regions, beam_size=84, max_words=longest, length_penalty=length_penalty)
    for image in range(3):
        own = regions.select(torch.tensor([image]))
        everything = {
            words: log_p(model, own, list(words))[0] / (len(words) + 1) ** length_penalty
            for length in range(1, longest + 1)
            for words in itertools.product(WORDS, repeat=length)
        }
        ranked = sorted(everything, key=lambda words: -everything[words])
        assert tuple(found[image][0].tokens) == ranked[0]
        assert found[image][0].score == pytest.approx(everything[ranked[0]], rel=1e-6, abs=1e-5)  # float32
        scores = [h.score for h in found[image]]
        assert scores == sorted(scores, reverse=True)
        assert len({tuple(h.tokens) for h in found[image]}) == len(found[image])


def test_score_and_attention_are_those_of_teacher_forcing(model: Decoder) -> None:
    regions = regions_of(model, 4)
    for image, hypotheses in enumerate(beam_search(model, regions, 3, 6)):
        own = regions.select(torch.tensor([image]))
        for h in hypotheses:
            total, attention = log_p(model, own, h.tokens)
            assert h.score == pytest.approx(total / (len(h.tokens) + 1), abs=1e-5)
            torch.testing.assert_close(h.attention, attention)


@pytest.mark.usefixtures("either")
def test_a_beam_of_one_is_greedy(model: Decoder) -> None:
    regions = regions_of(model, 16)
    for beams, one in zip(beam_search(model, regions, 1, 12), greedy(model, regions, 12), strict=True):
        # the beam of one may not end while going on is likelier, and greedy likewise takes the likelier
        assert beams[0].tokens == one.tokens
        assert beams[0].score == pytest.approx(one.score, abs=1e-5)


def test_an_image_does_not_depend_on_its_batch(model: Decoder) -> None:
    regions = regions_of(model, 9)
    together = beam_search(model, regions, 4, 10)
    for image in range(9):
        alone = beam_search(model, regions.select(torch.tensor([image])), 4, 10)[0]
        assert [h.tokens for h in alone] == [h.tokens for h in together[image]]


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("beam_size", [1, 2, 5])
@pytest.mark.parametrize("max_words", [1, 7])
def test_captions_always_come_and_always_end(model: Decoder, beam_size: int, max_words: int) -> None:
    regions = regions_of(model, 5)
    with torch.no_grad():
        for bias in (-50.0, 50.0):  # a decoder that never ends, and one that wants nothing else
            model.classifier.bias[END] = bias
            found = [h for beams in beam_search(model, regions, beam_size, max_words) for h in beams]
            found += greedy(model, regions, max_words) + sample(model, regions, max_words)
            assert len(found) >= 15
            for h in found:
                assert 1 <= len(h.tokens) <= max_words
                assert set(h.tokens) <= set(WORDS)
                assert h.attention.shape == (len(h.tokens), N)


@pytest.mark.usefixtures("either")
def test_sampling_follows_the_distribution(model: Decoder) -> None:
    one = regions_of(model, 1)
    with torch.no_grad():
        logits, _, _ = model.step(one, model.start(one), torch.tensor([START]))
    expected = logits[0, WORDS].softmax(-1)
    drawn = sample(model, one, 1, generator=torch.Generator().manual_seed(0), samples=20_000)
    first = torch.tensor([h.tokens[0] for h in drawn])
    found = torch.stack([(first == word).float().mean() for word in WORDS])
    # five standard errors of a share of 20,000 draws
    torch.testing.assert_close(found, expected, rtol=0, atol=5 * 0.5 / 20_000**0.5)


@pytest.mark.parametrize("drawn", [0.0, 1 - 2**-24])
def test_what_cannot_be_said_is_not_drawn_at_either_end(
    model: Decoder, drawn: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: torch.full(shape, drawn))
    for hypothesis in sample(model, regions_of(model, 8), 6, samples=2):
        assert hypothesis.tokens and set(hypothesis.tokens) <= set(WORDS)


@pytest.mark.usefixtures("either")
def test_sampling_at_low_temperature_is_greedy(model: Decoder) -> None:
    regions = regions_of(model, 8)
    cold = sample(model, regions, 6, temperature=1e-3)
    assert [h.tokens for h in cold] == [h.tokens for h in greedy(model, regions, 6)]


@pytest.mark.usefixtures("either")
def test_samples_of_an_image_stand_side_by_side_and_images_end_one_by_one() -> None:
    """Whatever ended before it, a sample's score and attention are those of teacher forcing on its own image."""
    model = Decoder(V, D, E, dropout=0.0).eval()  # flat logits: one word in five is the end
    regions = regions_of(model, 16)
    found = sample(model, regions, 12, samples=3)
    longest = {max(len(h.tokens) for h in found[i : i + 3]) for i in range(0, len(found), 3)}
    assert len(found) == 48 and len(longest) > 1
    for i, h in enumerate(found):
        total, attention = log_p(model, regions.select(torch.tensor([i // 3])), h.tokens)
        assert h.score == pytest.approx(total / (len(h.tokens) + 1), abs=1e-5)
        torch.testing.assert_close(h.attention, attention)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_arithmetic_samples_are_every_nth_of_all_captions_laid_end_to_end(model: Decoder, epsilon: float) -> None:
    regions, longest, samples = regions_of(model, 3), 2, 40
    found = arithmetic_sample(model, regions, longest, samples, epsilon)
    assert len(found) == 3 * samples
    for image in range(3):
        pieces = lay_out(model, regions.select(torch.tensor([image])), [], longest, epsilon)
        ends = torch.tensor([length for _, length in pieces], dtype=torch.float64).cumsum(0)
        assert float(ends[-1]) == pytest.approx(1)
        expected = [pieces[int((ends < (i + 0.5) / samples).sum())][0] for i in range(samples)]
        drawn = found[image * samples : (image + 1) * samples]
        assert [h.tokens for h in drawn] == expected
        for h in drawn:
            total, attention = log_p(model, regions.select(torch.tensor([image])), h.tokens)
            assert h.score == pytest.approx(total / (len(h.tokens) + 1), abs=1e-5)
            torch.testing.assert_close(h.attention, attention)


@torch.no_grad()
def lay_out(
    model: Decoder, own: Regions, said: list[int], longest: int, epsilon: float
) -> list[tuple[list[int], float]]:
    """All captions that go on from `said`, by their words' numbers, and how long a piece each has."""
    if len(said) == longest:
        return [(said, 1.0)]
    p = model(own, torch.tensor([[START, *said]]))[0][0, -1].softmax(-1)
    p = {word: float(p[word]) for word in ([END] if said else []) + WORDS}
    p = {word: value / sum(p.values()) for word, value in p.items()}
    p = {word: value for word, value in p.items() if value >= epsilon or value == max(p.values())}
    pieces = []
    for word, value in sorted(p.items()):
        further = [(said, 1.0)] if word == END else lay_out(model, own, [*said, word], longest, epsilon)
        pieces += [(caption, value / sum(p.values()) * length) for caption, length in further]
    return pieces


@pytest.mark.usefixtures("either")
def test_arithmetic_samples_of_the_likeliest_word_alone_are_greedy(model: Decoder) -> None:
    regions = regions_of(model, 9)
    found = arithmetic_sample(model, regions, 10, 5, epsilon=1.0)
    expected = greedy(model, regions, 10)
    assert [h.tokens for h in found] == [h.tokens for h in expected for _ in range(5)]


def test_arguments_are_checked(model: Decoder) -> None:
    regions = regions_of(model, 1)
    with pytest.raises(ValueError, match="at least 1"):
        beam_search(model, regions, 0)
    with pytest.raises(ValueError, match="temperature"):
        sample(model, regions, temperature=0.0)
    for samples, epsilon in ((0, 0.01), (64, -0.1), (64, 1.1)):
        with pytest.raises(ValueError, match="epsilon"):
            arithmetic_sample(model, regions, samples=samples, epsilon=epsilon)
