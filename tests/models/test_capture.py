"""The loop in a rectangle, and on a GPU captured, against the loop over packed words."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from models import capture
from models.encoder import Encoder
from models.packing import Grouping, Packing
from models.rectangle import Rectangle, in_rectangle, recur
from models.recurrence import Recurrence
from utils.devices import autocast

WIDTH, REGIONS = 8, 5
LENGTHS, IMAGE_OF = [3, 5, 1, 4, 4, 2, 6], [0, 0, 1, 2, 2, 2, 3]


def given(lengths: list[int], image_of: list[int], scored: bool, masked: bool, device: str = "cpu") -> list[Any]:
    """What the loop takes, drawn at random, of captions with so many words on these images."""
    images = max(image_of) + 1
    packing = Packing.of(torch.tensor(lengths), max(lengths))
    rows = torch.empty(len(lengths), 0)
    grouping = Grouping.of(rows, images, torch.tensor(image_of)).ordered(packing.order)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64).to(device).requires_grad_()

    mask = torch.rand(images, REGIONS) < 0.7
    mask[:, 0] = True
    keys = drawn(images, REGIONS, WIDTH)
    return [
        *(keys, drawn(images, REGIONS, WIDTH), mask.to(device) if masked else None, drawn(WIDTH) if scored else None),
        *(Grouping(*(part.to(device) for part in grouping)), packing.running),
        *(drawn(len(lengths), WIDTH), drawn(len(lengths), WIDTH), drawn(sum(lengths), 4 * WIDTH)),
        *(drawn(6 * WIDTH, WIDTH), drawn(6 * WIDTH), drawn(4 * WIDTH, WIDTH)),
    ]


def results(loop: Callable[..., tuple[Tensor, Tensor, Tensor]], inputs: list[Any]) -> list[Tensor]:
    """What a loop gives, and the gradients of a random function of it."""
    found = loop(*inputs)
    dice = torch.Generator().manual_seed(0)
    upstream = [torch.randn(part.shape, generator=dice, dtype=torch.float64).to(part.device) for part in found]
    learned = [part for part in inputs if isinstance(part, Tensor) and part.requires_grad]
    loss = sum((part * up).sum() for part, up in zip(found, upstream, strict=True))
    return [*found, *torch.autograd.grad(loss, learned)]  # type: ignore[arg-type]


def as_it_is(function: capture.Function, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return function(*inputs)


@pytest.mark.parametrize(("captions", "steps"), [(1, 1), (4, 4), (32, 7)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize(("lengths", "image_of"), [(LENGTHS, IMAGE_OF), ([2], [0]), ([1, 1, 1], [0, 1, 2])])
def test_a_rectangle_changes_neither_results_nor_gradients(
    lengths: list[int], image_of: list[int], scored: bool, masked: bool, captions: int, steps: int
) -> None:
    torch.manual_seed(0)
    inputs = given(lengths, image_of, scored, masked)
    plain = results(Recurrence.apply, inputs)
    laid = results(lambda *parts: in_rectangle(as_it_is, captions, steps, *parts), inputs)
    for ours, theirs in zip(laid, plain, strict=True):
        torch.testing.assert_close(ours, theirs)  # float64: sums of other lengths, a few of the last bits


def test_sizes_of_a_rectangle_are_multiples_and_every_caption_has_a_place_of_its_own() -> None:
    packing = Packing.of(torch.tensor(LENGTHS), max(LENGTHS))
    grouping = Grouping.of(torch.empty(len(LENGTHS), 0), 4, torch.tensor(IMAGE_OF)).ordered(packing.order)
    laid = Rectangle.of(grouping, packing.running, 10, 4)
    assert (laid.captions, laid.steps) == (10, 8)
    assert len(laid.grouping.place.unique()) == 10
    assert torch.equal(laid.grouping.caption.flatten()[laid.grouping.place], torch.arange(10))
    assert torch.equal(
        laid.grouping.place // laid.grouping.caption.shape[1],
        torch.cat([grouping.place // 3, laid.grouping.place[7:] // laid.grouping.caption.shape[1]]),
    )
    words = torch.randn(sum(LENGTHS), 2)
    spread = laid.spread(words)
    assert torch.equal(laid.pack(spread), words) and int((spread == 0).all(1).sum()) == 80 - len(words)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="captured graphs need a CUDA GPU")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scored", [False, True])
def test_a_captured_loop_gives_the_same_each_time_it_is_replayed(scored: bool, masked: bool) -> None:
    torch.manual_seed(0)
    before = len(capture._graphs)
    for _ in range(capture.OFTEN + 2):
        inputs = given(LENGTHS, IMAGE_OF, scored, masked, "cuda")
        for ours, theirs in zip(results(recur, inputs), results(Recurrence.apply, inputs), strict=True):
            torch.testing.assert_close(ours, theirs)
    assert len(capture._graphs) == before + 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="captured graphs need a CUDA GPU")
def test_a_second_loop_before_the_first_went_back_does_not_use_its_memory() -> None:
    torch.manual_seed(0)
    many = [given(LENGTHS, IMAGE_OF, False, False, "cuda") for _ in range(capture.OFTEN + 2)]
    found = [recur(*inputs) for inputs in many]
    for inputs, (hiddens, _, _) in zip(many, found, strict=True):
        ours = torch.autograd.grad(hiddens.square().sum(), inputs[0])
        theirs = torch.autograd.grad(Recurrence.apply(*inputs)[0].square().sum(), inputs[0])
        torch.testing.assert_close(ours, theirs)


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
