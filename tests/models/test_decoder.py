from functools import partial

import pytest
import torch
from torch import Tensor, nn

import models.decoder
from models.decoder import Decoder
from models.looking import LookAfter, LookBefore
from models.packing import Layout, rectangle, staircase
from models.regions import Regions, State

V, D, E, P, T, N = 11, 7, 8, 3, 5, 6
IMAGE_OF = torch.tensor([0, 0, 0, 2, 3, 3])  # image 1 has no caption


def decoder(attention: str) -> Decoder:
    return Decoder(V, D, E, 0.0, attention)


def word_by_word(model: Decoder, regions: Regions, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """What `forward` computes, by `step` and with autograd's own gradient; one caption an image."""
    state, logits, attention = model.start(regions), [], []
    for t in range(tokens.shape[1]):
        step_logits, state, step_attention = model.step(regions, state, tokens[:, t])
        logits.append(step_logits)
        attention.append(step_attention)
    return torch.stack(logits, 1), torch.stack(attention, 1)


@pytest.mark.parametrize("lengths", [None, [3, 5, 1, 4, 2, 4], [2, 2, 1, 1, 2, 1]])
@pytest.mark.parametrize("attention", ["dot", "additive"])
@pytest.mark.parametrize("masked", [False, True])
def test_the_written_out_gradient_is_that_of_autograd_word_by_word(
    attention: str, masked: bool, lengths: list[int] | None
) -> None:
    torch.manual_seed(0)
    model = decoder(attention)
    with torch.no_grad():  # attention far from even, so that its gradient counts
        asks = model.looking.query if isinstance(model.looking, LookAfter) else model.looking.from_hidden
        asks.weight[:E].mul_(8)
    features = torch.randn(4, N, D, requires_grad=True)
    mask = torch.rand(4, N) < 0.7 if masked else None
    tokens = torch.randint(V, (len(IMAGE_OF), T))
    there = torch.arange(T) < torch.tensor(lengths or [T])[:, None]
    found = []
    for fast in (True, False):
        regions = model.prepare(features, mask)
        if fast:
            logits, looked = model(
                regions, tokens, IMAGE_OF, lengths=None if lengths is None else torch.tensor(lengths)
            )
        else:
            logits, looked = (x * there[..., None] for x in word_by_word(model, regions.select(IMAGE_OF), tokens))
        loss = logits.log_softmax(-1)[..., 3].square().sum() + (looked.square() * torch.arange(N)).sum()
        found.append([logits, looked, *torch.autograd.grad(loss, [features, *model.parameters()])])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lengths", [None, [3, 5, 1, 4, 2, 4], [1, 1, 1, 1, 1, 1]])
@pytest.mark.parametrize("attention", ["dot", "additive"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("layout", [staircase, rectangle, partial(staircase, captions=2, words=8)])
def test_words_that_nobody_reads_change_nothing(
    layout: Layout, attention: str, masked: bool, lengths: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = decoder(attention).double()
    features, told = torch.randn(4, N, D).double().requires_grad_(), torch.randn(len(IMAGE_OF), 4 * E).double()
    tokens = torch.randint(V, (len(IMAGE_OF), T))
    mask = torch.rand(4, N) < 0.7 if masked else None
    found = []
    for chosen in (tuple, layout):
        monkeypatch.setattr(models.decoder, "_layout", lambda values, chosen=chosen: chosen)
        regions = model.prepare(features, mask)
        given = None if lengths is None else torch.tensor(lengths)
        logits, looked = model(regions, tokens, IMAGE_OF, told, given)
        loss = logits.log_softmax(-1)[..., 3].square().sum() + (looked.square() * torch.arange(N)).sum()
        found.append([logits, looked, *torch.autograd.grad(loss, [features, *model.parameters()])])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)  # the cell is in float32


@pytest.mark.parametrize("attention", ["dot", "additive"])
def test_bfloat16_keeps_its_bits(attention: str) -> None:
    torch.manual_seed(0)
    model = Decoder(V, 64, 64, 0.0, attention)
    features, tokens = torch.randn(4, N, 64), torch.randint(V, (len(IMAGE_OF), T))
    found = []
    for half, fast in ((True, True), (True, False), (False, True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            regions = model.prepare(features, None)
            if fast:
                logits, looked = model(regions, tokens, IMAGE_OF)
            else:
                logits, looked = word_by_word(model, regions.select(IMAGE_OF), tokens)
        loss = logits.float().log_softmax(-1)[..., 3].sum() + looked.square().sum()
        found.append([logits, looked, *torch.autograd.grad(loss, list(model.parameters()))])
    for a, naive, exact in zip(*found, strict=True):  # about as far off as what autograd does in bfloat16
        assert (a - exact).norm() <= 1.5 * (naive - exact).norm() + 2**-8 * exact.norm()


@pytest.mark.parametrize("attention", ["dot", "additive"])
def test_teacher_forcing_is_step_after_step(attention: str) -> None:
    model = decoder(attention)
    regions = model.prepare(torch.randn(P, N, D), None)
    tokens = torch.randint(V, (P, T))
    logits, looked = model(regions, tokens)
    assert logits.shape == (P, T, V)
    assert looked.shape == (P, T, N)
    state = model.start(regions)
    for t in range(T):
        step_logits, state, step_looked = model.step(regions, state, tokens[:, t])
        torch.testing.assert_close(logits[:, t], step_logits)
        torch.testing.assert_close(looked[:, t], step_looked)


@pytest.mark.parametrize("attention", ["dot", "additive"])
def test_words_that_follow_the_same_state_are_as_if_each_had_it_alone(attention: str) -> None:
    torch.manual_seed(0)
    model = decoder(attention)
    regions = model.prepare(torch.randn(4, N, D), torch.arange(N) < torch.tensor([[6], [2], [4], [5]]))
    regions = regions._replace(told=torch.randn(4, 4 * E))
    image_of, after = torch.tensor([0, 0, 2, 3]), torch.tensor([1, 0, 1, 3, 3, 3])  # state 2 is of use to no word
    state, tokens = State(torch.randn(4, E), torch.randn(4, E)), torch.tensor([4, 4, 5, 6, 6, 7])
    logits, new, looked = model.step(regions, state, tokens, image_of, after)
    for p, s in enumerate(after):
        own = model.step(regions.select(image_of[s : s + 1]), state.select(s[None]), tokens[p : p + 1])
        torch.testing.assert_close(
            (logits[p], new.hidden[p], new.cell[p], looked[p]), (own[0][0], *(x[0] for x in own[1]), own[2][0])
        )


@pytest.mark.parametrize("attention", ["dot", "additive"])
def test_a_step_is_an_lstm_cell_that_looks_before_or_after(attention: str) -> None:
    model = decoder(attention)
    looking = model.looking
    regions = model.prepare(torch.randn(P, N, D), None)
    tokens = torch.randint(V, (P,))
    state = model.start(regions)
    logits, new, looked = model.step(regions, state, tokens)
    words = model.embedding(tokens)

    def look(asked: Tensor) -> tuple[Tensor, Tensor]:
        query, gate = asked.chunk(2, -1)
        if isinstance(looking, LookBefore):
            energy = looking.score(torch.tanh(regions.keys + query[:, None]))[..., 0]
        else:
            energy = (regions.values @ query[..., None])[..., 0] / E**0.5
        weights = energy.softmax(-1)
        return torch.sigmoid(gate) * (weights[..., None] * regions.values).sum(1), weights

    # our order of gates; torch's is i, f, g, o
    order = torch.cat([torch.arange(E) + k * E for k in (0, 1, 3, 2)])
    cell = nn.LSTMCell(E if isinstance(looking, LookAfter) else 2 * E, E)
    with torch.no_grad():
        cell.bias_ih.copy_(model.from_word.bias[order])
        if isinstance(looking, LookAfter):
            cell.weight_ih.copy_(model.from_word.weight[order])
            cell.weight_hh.copy_(looking.from_hidden.weight[order])
            cell.bias_hh.zero_()
            hidden, c = cell(words, (state.hidden, state.cell))
            context, weights = look(looking.query(hidden))
        else:
            cell.weight_ih.copy_(torch.cat([model.from_word.weight, looking.from_context.weight], 1)[order])
            cell.weight_hh.copy_(looking.from_hidden.weight[2 * E :][order])
            cell.bias_hh.copy_(looking.from_hidden.bias[2 * E :][order])
            context, weights = look(looking.from_hidden(state.hidden)[:, : 2 * E])
            hidden, c = cell(torch.cat([words, context], 1), (state.hidden, state.cell))
    torch.testing.assert_close((new.hidden, new.cell, looked), (hidden, c, weights))
    torch.testing.assert_close(logits, model.classifier(hidden + model.output_context(context) + words))


@pytest.mark.parametrize("attention", ["dot", "additive"])
def test_what_is_told_of_a_caption_comes_with_every_word_and_gets_its_gradient(attention: str) -> None:
    model = decoder(attention)
    features, tokens = torch.randn(4, N, D), torch.randint(V, (len(IMAGE_OF), T))
    told = torch.randn(len(IMAGE_OF), E, requires_grad=True)
    found = []
    for fast in (True, False):
        regions = model.prepare(features, None)
        logits, _ = (
            model(regions, tokens, IMAGE_OF, model.hear(told))
            if fast
            else word_by_word(model, regions.select(IMAGE_OF)._replace(told=model.hear(told)), tokens)
        )
        found.append([logits, *torch.autograd.grad(logits.log_softmax(-1)[..., 3].square().sum(), told)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert (found[0][1].abs().sum(1) > 0).all()
    nothing, _ = model(model.prepare(features, None), tokens, IMAGE_OF, model.hear(0 * told))
    torch.testing.assert_close(nothing, model(model.prepare(features, None), tokens, IMAGE_OF)[0], rtol=0, atol=0)
    assert (found[0][0] != nothing).any()


@pytest.mark.parametrize("attention", ["dot", "additive"])
def test_regions_that_are_not_there_change_nothing(attention: str) -> None:
    model = decoder(attention)
    features, tokens = torch.randn(P, N, D), torch.randint(V, (P, T))
    mask = torch.arange(N).expand(P, N) < 4
    logits, looked = model(model.prepare(features, mask), tokens)
    without, _ = model(model.prepare(features[:, :4], None), tokens)
    torch.testing.assert_close(logits, without)
    assert (looked[..., 4:] == 0).all()
    features[:, 4:] = 1e4
    torch.testing.assert_close(model(model.prepare(features, mask), tokens)[0], logits)


@pytest.mark.parametrize("attention", ["dot", "additive"])
def test_words_to_come_do_not_reach_back(attention: str) -> None:
    model = decoder(attention)
    regions = model.prepare(torch.randn(P, N, D), None)
    tokens = torch.randint(V, (P, T))
    before, _ = model(regions, tokens)
    # to other captions' words: as many distinct ones are read together, which fixes the order of sums
    tokens[:, 3:] = tokens[:, 3:].roll(1, 0)
    after, _ = model(regions, tokens)
    torch.testing.assert_close(before[:, :3], after[:, :3], rtol=0, atol=0)
    assert (before[:, 3:] - after[:, 3:]).abs().max() > 1e-2


@pytest.mark.parametrize("attention", ["dot", "additive"])
def test_every_parameter_gets_a_gradient(attention: str) -> None:
    model = decoder(attention)
    logits, looked = model(model.prepare(torch.randn(P, N, D), None), torch.randint(V, (P, T)))
    (logits.log_softmax(-1)[..., 0].sum() + looked[..., 0].sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_each_distinct_word_is_read_once() -> None:
    model = Decoder(V, D, E, 0.5)
    read: list[Tensor] = []
    model.from_word.register_forward_hook(lambda module, given, out: read.append(given[0]))
    tokens = torch.tensor([[1, 4, 1, 4, 9], [4, 4, 4, 1, 1]])
    regions = model.prepare(torch.randn(2, N, D), None)
    model(regions, tokens)
    model.step(regions, model.start(regions), tokens[:, 1])
    torch.testing.assert_close(read[0], model.embedding.weight[[1, 4, 9]], rtol=0, atol=0)
    torch.testing.assert_close(read[1], model.embedding.weight[[4]], rtol=0, atol=0)


@pytest.mark.parametrize("attention", ["dot", "additive"])
def test_a_gpu_reads_every_word_and_gets_the_same(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Decoder(V, D, E, 0.5, attention)
    features, tokens = torch.randn(P, N, D), torch.randint(V, (P, T))
    results = []
    for sparing in (True, False):
        monkeypatch.setattr(models.decoder, "worth_sparing", lambda device, sparing=sparing: sparing)
        torch.manual_seed(1)  # the same dropout
        logits, _ = model(model.prepare(features, None), tokens)
        model.zero_grad()
        logits.log_softmax(-1)[..., 0].sum().backward()
        results.append([logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)  # float32 sums in another order


def test_select() -> None:
    regions = Regions(torch.randn(2, N, E), torch.randn(2, N, E), torch.ones(2, N, dtype=torch.bool))
    assert regions.select(torch.tensor([0])).told is None
    regions = regions._replace(told=torch.randn(2, 4 * E))
    chosen = regions.select(torch.tensor([1, 1, 0]))
    assert chosen.told is not None and regions.told is not None and torch.equal(chosen.told[1], regions.told[1])
    assert torch.equal(chosen.keys[1], regions.keys[1])
    assert torch.equal(chosen.values[2], regions.values[0])
    assert chosen.mask is not None and chosen.mask.shape == (3, N)
