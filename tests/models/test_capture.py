"""What is captured on a GPU, against the same as it is."""

import copy
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from models import capture
from models.capture import replayed
from models.decoder import Decoder
from models.encoder import Encoder
from models.packing import Grouping
from models.recurrence import Lstm, Recurrence
from utils.devices import autocast

WIDTH, REGIONS = 8, 5
RUNNING = (8, 8, 8, 8)


def given(loop: type[torch.autograd.Function], masked: bool, device: str) -> list[Any]:
    """What a loop takes, drawn at random, of eight captions of four images."""

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64).to(device).requires_grad_()

    first, words = (drawn(8, WIDTH), drawn(8, WIDTH)), drawn(sum(RUNNING), 4 * WIDTH)
    if loop is Lstm:
        return [RUNNING, *first, words, drawn(4 * WIDTH, WIDTH)]
    mask = torch.rand(4, REGIONS) < 0.7
    mask[:, 0] = True
    grouping = Grouping.of(torch.empty(8, 0), 4)
    return [
        *(drawn(4, REGIONS, WIDTH), drawn(4, REGIONS, WIDTH), mask.to(device) if masked else None, drawn(WIDTH)),
        *(Grouping(*(part.to(device) for part in grouping)), RUNNING, *first, words),
        *(drawn(6 * WIDTH, WIDTH), drawn(6 * WIDTH), drawn(4 * WIDTH, WIDTH)),
    ]


def results(call: Callable[..., Any], inputs: list[Any]) -> list[Tensor]:
    """What a loop gives, and the gradients of a random function of it."""
    found = call(*inputs)
    found = found if isinstance(found, tuple) else (found,)
    dice = torch.Generator().manual_seed(0)
    upstream = [torch.randn(part.shape, generator=dice, dtype=torch.float64).to(part.device) for part in found]
    learned = [part for part in inputs if isinstance(part, Tensor) and part.requires_grad]
    loss = sum((part * up).sum() for part, up in zip(found, upstream, strict=True))
    return [*found, *torch.autograd.grad(loss, learned)]


@pytest.mark.parametrize(("loop", "masked"), [(Lstm, False), (Recurrence, False), (Recurrence, True)])
def test_a_loop_of_tensors_alone_gives_the_same(
    loop: type[torch.autograd.Function], masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is captured, called as it is, since a CPU has no graphs."""
    seen = []

    def as_it_is(function: capture.Function, inputs: Sequence[Tensor], about: Hashable) -> tuple[Tensor, ...]:
        seen.append((len(inputs), hash(about)))
        return function(*inputs)

    inputs = given(loop, masked, "cpu")
    expected = results(loop.apply, inputs)
    monkeypatch.setattr(capture, "worth_capturing", lambda tensor: True)
    monkeypatch.setattr(capture, "captured", as_it_is)
    for _ in range(2):
        for ours, theirs in zip(results(partial(replayed, loop.apply), inputs), expected, strict=True):
            assert torch.equal(ours, theirs)
    assert seen[0] == seen[1] and seen[0][0] == (4 if loop is Lstm else 11 + masked)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="captured graphs need a CUDA GPU")
@pytest.mark.parametrize(("loop", "masked"), [(Lstm, False), (Recurrence, False), (Recurrence, True)])
def test_a_captured_loop_gives_the_same_each_time_it_is_replayed(
    loop: type[torch.autograd.Function], masked: bool
) -> None:
    torch.manual_seed(0)
    before = len(capture._graphs)
    for _ in range(capture.OFTEN + 2):
        inputs = given(loop, masked, "cuda")
        replay = results(partial(replayed, loop.apply), inputs)
        for ours, theirs in zip(replay, results(loop.apply, inputs), strict=True):
            torch.testing.assert_close(ours, theirs)
    assert len(capture._graphs) == before + 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="captured graphs need a CUDA GPU")
@pytest.mark.parametrize("loop", [Lstm, Recurrence])
def test_a_second_loop_before_the_first_went_back_does_not_use_its_memory(loop: type[torch.autograd.Function]) -> None:
    torch.manual_seed(0)
    many = [given(loop, False, "cuda") for _ in range(capture.OFTEN + 2)]
    found = [replayed(loop.apply, *inputs) for inputs in many]
    for inputs, result in zip(many, found, strict=True):
        words = inputs[3] if loop is Lstm else inputs[8]
        ours = torch.autograd.grad((result if loop is Lstm else result[0]).square().sum(), words)
        plain = loop.apply(*inputs)
        theirs = torch.autograd.grad((plain if loop is Lstm else plain[0]).square().sum(), words)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="captured graphs need a CUDA GPU")
@pytest.mark.parametrize("attention", ["additive", "dot"])
def test_a_decoder_learns_the_same_on_a_gpu(attention: str) -> None:
    torch.manual_seed(0)
    decoder = Decoder(11, 7, WIDTH, 0.0, attention)
    on_gpu = copy.deepcopy(decoder).cuda()
    before = len(capture._graphs)
    for _ in range(capture.OFTEN + 2):
        features, tokens, lengths = torch.randn(4, REGIONS, 7), torch.randint(11, (8, 5)), torch.randint(1, 6, (8,))
        lengths[0] = 5
        found = []
        for model, device in ((decoder, "cpu"), (on_gpu, "cuda")):
            image_of = torch.arange(4, device=device).repeat_interleave(2)
            regions = model.prepare(features.to(device), None)
            logits, looked = model(regions, tokens.to(device), image_of, None, lengths.to(device))
            loss = logits.log_softmax(-1)[..., 3].square().sum() + looked.square().sum()
            found.append([logits, looked, *torch.autograd.grad(loss, list(model.parameters()))])
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(theirs.cpu(), ours, rtol=1e-4, atol=1e-4)  # sums in another order
    assert len(capture._graphs) == before + 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="captured graphs need a CUDA GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_captured_encoder_learns_the_same_over_several_batches_a_step(precision: str) -> None:
    torch.manual_seed(0)
    device = torch.device("cuda")
    encoder = Encoder("tf_efficientnet_lite0").to(device)
    plain = copy.deepcopy(encoder)
    before = len(capture._graphs)
    for _ in range(capture.OFTEN + 2):
        batches = torch.randint(0, 256, (2, 4, 3, 64, 64), dtype=torch.uint8, device=device)
        for images in batches:
            for look in (encoder, plain._see):
                with autocast(device, precision):
                    look(images).float().square().mean().backward()
        for (name, ours), theirs in zip(encoder.named_parameters(), plain.parameters(), strict=True):
            assert ours.grad is not None and theirs.grad is not None
            off = (ours.grad - theirs.grad).norm() / theirs.grad.norm()
            assert off < 1e-2, name  # sums in another order, in bfloat16 or TF32; a lost batch would give 0.3 and more
            ours.grad = theirs.grad = None
    assert len(capture._graphs) == before + 1


def test_what_cannot_be_captured_is_called_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def fails(function: capture.Function, inputs: tuple[Tensor, ...]) -> capture.Function:
        tried.append(function)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fails)
    weight = torch.ones(2, requires_grad=True)
    for call in range(capture.OFTEN + 2):
        (product,) = capture.captured(lambda a, b: (a * b,), [torch.full((2,), float(call))], [weight])
        assert product.tolist() == [call, call]
    assert len(tried) == 1
