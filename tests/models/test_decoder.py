import torch
from torch import nn

from models.decoder import Decoder, Regions

V, D, E, P, T, N = 11, 7, 8, 3, 5, 6


def decoder(dropout: float = 0.0) -> Decoder:
    return Decoder(V, D, E, dropout)


def test_teacher_forcing_is_step_after_step() -> None:
    model = decoder()
    regions = model.prepare(torch.randn(P, N, D), None)
    tokens = torch.randint(V, (P, T))
    logits, attention = model(regions, tokens)
    assert logits.shape == (P, T, V)
    assert attention.shape == (P, T, N)
    state = model.start(regions)
    for t in range(T):
        step_logits, state, step_attention = model.step(regions, state, tokens[:, t])
        torch.testing.assert_close(logits[:, t], step_logits)
        torch.testing.assert_close(attention[:, t], step_attention)


def test_the_recurrence_is_an_lstm_cell_on_word_and_gated_context() -> None:
    model = decoder()
    regions = model.prepare(torch.randn(P, N, D), None)
    tokens = torch.randint(V, (P,))
    state = model.start(regions)
    _, new, _ = model.step(regions, state, tokens)

    cell = nn.LSTMCell(2 * E, E)
    i, f, o, g = range(4)  # our order; torch's is i, f, g, o
    order = torch.cat([torch.arange(E) + k * E for k in (i, f, g, o)])
    query, gate, recurrence = model.from_hidden.weight.split([E, E, 4 * E])
    query_bias, gate_bias, recurrence_bias = model.from_hidden.bias.split([E, E, 4 * E])
    with torch.no_grad():
        cell.weight_ih.copy_(torch.cat([model.from_word.weight, model.from_context.weight], 1)[order])
        cell.weight_hh.copy_(recurrence[order])
        cell.bias_ih.copy_(model.from_word.bias[order])
        cell.bias_hh.copy_(recurrence_bias[order])
    context, _ = model.attention(regions.keys, regions.values, state.hidden @ query.T + query_bias, None)
    context = torch.sigmoid(state.hidden @ gate.T + gate_bias) * context
    hidden, c = cell(torch.cat([model.embedding(tokens), context], 1), (state.hidden, state.cell))
    torch.testing.assert_close(new.hidden, hidden)
    torch.testing.assert_close(new.cell, c)


def test_regions_that_are_not_there_change_nothing() -> None:
    model = decoder()
    features, tokens = torch.randn(P, N, D), torch.randint(V, (P, T))
    mask = torch.arange(N).expand(P, N) < 4
    logits, attention = model(model.prepare(features, mask), tokens)
    without, _ = model(model.prepare(features[:, :4], None), tokens)
    torch.testing.assert_close(logits, without)
    assert (attention[..., 4:] == 0).all()
    features[:, 4:] = 1e4
    torch.testing.assert_close(model(model.prepare(features, mask), tokens)[0], logits)


def test_words_to_come_do_not_reach_back() -> None:
    model = decoder()
    regions = model.prepare(torch.randn(P, N, D), None)
    tokens = torch.randint(V, (P, T))
    before, _ = model(regions, tokens)
    tokens[:, 3:] = (tokens[:, 3:] + 1) % V
    after, _ = model(regions, tokens)
    torch.testing.assert_close(before[:, :3], after[:, :3], rtol=0, atol=0)
    assert (before[:, 3:] != after[:, 3:]).any()


def test_every_parameter_gets_a_gradient() -> None:
    model = decoder()
    logits, attention = model(model.prepare(torch.randn(P, N, D), None), torch.randint(V, (P, T)))
    (logits.log_softmax(-1)[..., 0].sum() + attention[..., 0].sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_select() -> None:
    regions = Regions(torch.randn(2, N, E), torch.randn(2, N, E), torch.ones(2, N, dtype=torch.bool))
    chosen = regions.select(torch.tensor([1, 1, 0]))
    assert torch.equal(chosen.keys[1], regions.keys[1])
    assert torch.equal(chosen.values[2], regions.values[0])
    assert chosen.mask is not None and chosen.mask.shape == (3, N)
