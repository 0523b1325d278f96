import itertools

import pytest
import torch
from torch import Tensor

from models import decoding
from models.captioner import Captioner
from models.decoder import Decoder
from models.decoding import beam_search, greedy, sample
from models.encoder import Encoder
from models.ensemble import Ensemble
from models.pooling import Visual
from models.regions import JointRegions
from models.tokens import END, PAD, START, UNK
from models.views import mean_over_views

V, SIZE = 8, 64
WORDS = [w for w in range(V) if w not in (PAD, START, END, UNK)]


def member(name: str, width: int, attention: str) -> Captioner:
    """A captioner whose logits are steep, so that captions differ."""
    encoder = Encoder(name)
    captioner = Captioner(encoder, Decoder(V, encoder.output_shape(SIZE)[1], width, 0.0, attention)).eval()
    with torch.no_grad():
        captioner.decoder.embedding.weight.mul_(8)
    return captioner


@pytest.fixture(scope="module")
def members() -> list[Captioner]:
    """Of unlike encoders, grids, widths and attention."""
    torch.manual_seed(0)
    found = [member("test_efficientnet", 16, "dot"), member("vit_small_patch14_dinov2", 24, "additive")]
    assert found[0].encoder.output_shape(SIZE)[0] != found[1].encoder.output_shape(SIZE)[0]
    return found


@pytest.fixture
def images() -> Visual:
    # coarse: encoders of random weights take all fine noise for the same
    blocks = torch.randint(0, 256, (4, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    return Visual(blocks.repeat_interleave(16, 2).repeat_interleave(16, 3))


@torch.no_grad()
def log_p(members: list[Captioner], seen: list[Tensor], words: list[int]) -> tuple[float, Tensor]:
    """log p of a caption and its end by each member's teacher forcing on what it saw, and the first one's attention."""
    tokens, each = torch.tensor([[START, *words]]), torch.tensor([0])
    outputs = [captioner(Visual(own), tokens, each) for captioner, own in zip(members, seen, strict=True)]
    p = torch.stack([output.logits[0].double().softmax(-1) for output in outputs]).mean(0)
    scores = p.log().gather(1, torch.tensor([*words, END])[:, None])
    return float(scores.sum()), outputs[0].attention[0, :-1]


@torch.no_grad()
def looks(members: list[Captioner], image: Tensor) -> list[Tensor]:
    """What each member's encoder sees."""
    return [captioner.encoder(image) for captioner in members]


def test_a_wide_beam_finds_the_caption_whose_mean_probabilities_are_highest(
    members: list[Captioner], images: Visual
) -> None:
    ensemble, longest = Ensemble(members).eval(), 3
    found = beam_search(ensemble.decoder, ensemble.regions(images), beam_size=84, max_words=longest)
    differ = 0
    for beams, image in zip(found, images.content.split(1), strict=True):
        seen = looks(members, image)
        captions = [c for length in range(1, longest + 1) for c in itertools.product(WORDS, repeat=length)]
        totals = {c: log_p(members, seen, list(c))[0] / (len(c) + 1) for c in captions}
        best = max(captions, key=lambda c: totals[c])
        assert tuple(beams[0].tokens) == best
        assert beams[0].score == pytest.approx(totals[best], abs=1e-5)  # float32
        torch.testing.assert_close(beams[0].attention, log_p(members, seen, list(best))[1])
        for one, own in zip(members, seen, strict=True):
            alone = {c: log_p([one], [own], list(c))[0] / (len(c) + 1) for c in captions}
            differ += best != max(captions, key=lambda c: alone[c])
    assert differ  # else one member alone would pass


@pytest.mark.parametrize("sparing", [True, False])
def test_teacher_forcing_is_what_decoding_says(
    members: list[Captioner], images: Visual, sparing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "worth_sparing", lambda device: sparing)
    ensemble = Ensemble(members).eval()
    with torch.no_grad():
        seen = Visual(ensemble.features(images.content))
        for search in (greedy, sample):
            found = search(ensemble.decoder, ensemble.regions(seen), 6)
            for hypothesis, own, image in zip(found, seen.split(1), images.content.split(1), strict=True):
                tokens = torch.tensor([[START, *hypothesis.tokens]])
                logits = ensemble(own, tokens, torch.tensor([0])).logits[0]
                expected, _ = log_p(members, looks(members, image), hypothesis.tokens)
                total = logits.gather(1, torch.tensor([*hypothesis.tokens, END])[:, None]).sum()
                assert float(total) == pytest.approx(expected, abs=1e-4)  # of seven words in float32
                assert logits.exp().sum(-1) == pytest.approx(torch.ones(len(logits)), abs=1e-5)


def test_two_of_the_same_say_what_one_says(members: list[Captioner], images: Visual) -> None:
    for captioner in members:
        twice = Ensemble([captioner, captioner]).eval()
        alone, both = (beam_search(c.decoder, c.regions(images), 3, 6) for c in (captioner, twice))
        for ours, theirs in zip(both, alone, strict=True):
            assert [h.tokens for h in ours] == [h.tokens for h in theirs]
            assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], abs=1e-5)


def test_an_image_depends_neither_on_its_batch_nor_on_the_members_order(
    members: list[Captioner], images: Visual
) -> None:
    ensemble, turned = (Ensemble(order).eval() for order in (members, members[::-1]))
    together = beam_search(ensemble.decoder, ensemble.regions(images), 4, 10)
    for image, beams in zip(images.content.split(1), together, strict=True):
        for other in (ensemble, turned):
            alone = beam_search(other.decoder, other.regions(Visual(image)), 4, 10)[0]
            assert [h.tokens for h in alone] == [h.tokens for h in beams]


@torch.no_grad()
def each_sees_its_own(ensemble: Ensemble, members: list[Captioner], images: Visual, views: int) -> None:
    """What each member's decoder looks at in the ensemble is what it looks at alone."""
    joint = ensemble.regions(Visual(ensemble.features(images.content, views=views)))
    assert isinstance(joint, JointRegions)
    for part, captioner in zip(joint.parts, members, strict=True):
        features = mean_over_views(captioner.encoder, images.content, views)
        torch.testing.assert_close(part.keys, captioner.regions(Visual(features)).keys)


def test_each_member_sees_in_as_many_views(members: list[Captioner], images: Visual) -> None:
    each_sees_its_own(Ensemble(members).eval(), members, images, 4)


def test_twins_look_once_through_what_they_share(images: Visual) -> None:
    """Two transformers that differ in their last block, around another encoder, in two views."""
    torch.manual_seed(1)
    name = "vit_small_patch14_dinov2"
    each = [member(name, 16, "dot"), member("test_efficientnet", 16, "dot"), member(name, 24, "dot")]
    first, second = (each[place].encoder.backbone for place in (0, 2))
    own = second.state_dict()
    upper = {key: value for key, value in own.items() if key.startswith(("blocks.11.", "norm."))}
    second.load_state_dict(first.state_dict() | upper)
    ensemble = Ensemble(each).eval()
    assert [places for _, places in ensemble.looks] == [[0, 2], [1]]
    each_sees_its_own(ensemble, each, images, 2)
    each[0].encoder.extra_layers = ("blocks.7",)  # which a branch would not give
    assert [places for _, places in Ensemble(each).looks] == [[0], [1], [2]]
    each[0].encoder.extra_layers = ()
    with torch.no_grad():
        each[2].encoder.mean.add_(0.1)  # images that are scaled otherwise
    assert [places for _, places in Ensemble(each).looks] == [[0], [1], [2]]
