"""The loops over words under teacher forcing, with their gradients written out.

Autograd would add up the gradients of the weights, keys and values word by word. Here a loop back only carries what
depends on the word before; those gradients are one large matrix product each, after it.

Words are packed (models/packing.py): `running` says how many captions run at each step.
"""

from typing import Any

import torch
from torch import Tensor

from models.attention import additive_energies, additive_gradients, exponentials, weights
from models.packing import Grouping

# gradients before a nonlinearity of those after it and its result, one pass each
through_sigmoid, through_tanh = torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward

# Shapes: B images, P captions, S words of all captions, N regions, E width.


class Lstm(torch.autograd.Function):
    """Hidden states [S, E] of an LSTM that hears words alone.

    Args:
        running. hidden, cell: the first state [P, E], cell in float32. from_words: [S, 4 E], what the gates hear of
            each word. w_hidden: [4 E, E], by which they hear the state before. All but cell in one floating dtype.
    """

    @staticmethod
    def forward(
        ctx: Any, running: tuple[int, ...], hidden: Tensor, cell: Tensor, from_words: Tensor, w_hidden: Tensor
    ) -> Tensor:
        """The loop on."""
        captions, words = len(hidden), len(from_words)
        hiddens, cells = (part.new_empty(captions + words, part.shape[1]) for part in (hidden, cell))
        gates, tanh_cells = torch.empty_like(from_words), hidden.new_empty(words, hidden.shape[1])
        from_hidden = w_hidden.T.contiguous()
        hiddens[:captions], cells[:captions] = hidden, cell
        for now, before, after in _steps(running, captions):
            torch.addmm(from_words[now], hiddens[before], from_hidden, out=gates[now])
            _cell(gates[now], cells[before], cells[after], tanh_cells[now], hiddens[after])
        ctx.save_for_backward(hiddens, cells, gates, tanh_cells, w_hidden)
        ctx.running = running
        return hiddens[captions:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """The loop back."""
        (of_hiddens,) = grads
        hiddens, cells, gates, tanh_cells, w_hidden = ctx.saved_tensors
        captions = len(hiddens) - len(gates)
        steps = _steps(ctx.running, captions)
        of_gates = torch.empty_like(gates)
        of_states, of_cell = _padded(of_hiddens, captions), torch.zeros_like(cells[:captions])
        for now, before, after in reversed(steps):
            _cell_back(of_states[after], of_cell, of_gates[now], gates[now], cells[before], tanh_cells[now])
            of_states[before].addmm_(of_gates[now], w_hidden)
        return None, of_states[:captions], of_cell, of_gates, of_gates.T @ _before(hiddens, steps)


class Recurrence(torch.autograd.Function):
    """Hidden states [S, E], gated contexts [S, E] and attention [S, N] of an LSTM that looks before it hears a word.

    Args:
        keys, values: [B, N, E]; mask: bool [B, N] or None; score: [E] (models.attention). grouping: of the captions in
            the order of their packing. running. hidden, cell: the first state [P, E] in that order, cell in float32.
            from_words: [S, 4 E].
        w_hidden, b_hidden: [6 E, E], [6 E], the query, the context's gate and the recurrence of the LSTM's gates.
        w_context: [4 E, E]. All but cell, attention and mask in one floating dtype.
    """

    @staticmethod
    def forward(
        ctx: Any,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None,
        score: Tensor,
        grouping: Grouping,
        running: tuple[int, ...],
        hidden: Tensor,
        cell: Tensor,
        from_words: Tensor,
        w_hidden: Tensor,
        b_hidden: Tensor,
        w_context: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loop on."""
        captions, width, words = *hidden.shape, len(from_words)
        hiddens = hidden.new_empty(captions + words, width)
        cells = cell.new_empty(captions + words, width)
        pre = hidden.new_empty(words, 6 * width)  # query, then the gates after their nonlinearity
        attended, contexts, tanh_cells = hidden.new_empty(3, words, width)
        attention = cell.new_empty(words, keys.shape[1])
        # values are for all captions of an image together, with empty places; additive energies are too dear for those
        own_keys = grouping.repeat(exponentials(keys))
        from_hidden, from_context = w_hidden.T.contiguous(), w_context.T.contiguous()
        hiddens[:captions], cells[:captions] = hidden, cell
        for now, before, after in _steps(running, captions):
            torch.addmm(b_hidden, hiddens[before], from_hidden, out=pre[now])
            query, gate, gates = pre[now].split([width, width, 4 * width], -1)
            group = grouping.first(len(query))
            energy = additive_energies(own_keys[: len(query)], exponentials(query), score)
            looked = weights(group.split(energy), mask)
            attended[now] = group.join(looked.to(values.dtype) @ values)
            attention[now] = group.join(looked)
            torch.mul(gate.sigmoid_(), attended[now], out=contexts[now])
            gates += from_words[now]
            gates += contexts[now] @ from_context
            _cell(gates, cells[before], cells[after], tanh_cells[now], hiddens[after])
        ctx.save_for_backward(
            *(own_keys, values, score, hiddens, cells, tanh_cells, pre, attended, contexts, attention),
            *(w_hidden, w_context),
        )
        ctx.grouping, ctx.running = grouping, running
        return hiddens[captions:], contexts, attention

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """The loop back."""
        of_hiddens, of_contexts, of_attention = grads
        own_keys, values, score, hiddens, cells, tanh_cells, pre, attended, contexts, attention, *rest = (
            ctx.saved_tensors
        )
        w_hidden, w_context = rest
        grouping, running, width = ctx.grouping, ctx.running, hiddens.shape[-1]
        captions = len(grouping.place)
        steps = _steps(running, captions)
        of_pre, of_attended, of_energy = torch.empty_like(pre), torch.empty_like(attended), torch.empty_like(attention)
        of_queries, of_context_gates, of_gates = of_pre.split([width, width, 4 * width], -1)
        queries, context_gates, gates = pre.split([width, width, 4 * width], -1)
        slopes, of_score = torch.zeros_like(own_keys), torch.zeros_like(score)
        of_states, of_cell = _padded(of_hiddens, captions), torch.zeros_like(cells[:captions])
        for now, before, after in reversed(steps):
            count = now.stop - now.start
            _cell_back(of_states[after], of_cell, of_gates[now], gates[now], cells[before], tanh_cells[now])

            # the gated context
            of_context = torch.addmm(of_contexts[now], of_gates[now], w_context)
            torch.mul(of_context, context_gates[now], out=of_attended[now])
            through_sigmoid(of_context * attended[now], context_gates[now], grad_input=of_context_gates[now])

            # the attention
            group, looked = grouping.first(count), attention[now]
            of_looked = of_attention[now] + group.join(group.split(of_attended[now]) @ values.mT)
            of_energy[now] = looked * (of_looked - (looked * of_looked).sum(-1, keepdim=True))
            query, upstream = exponentials(queries[now]), of_energy[now].to(own_keys.dtype)
            of_queries[now] = additive_gradients(own_keys[:count], query, score, upstream, slopes[:count], of_score)
            of_states[before].addmm_(of_pre[now], w_hidden)

        place = torch.cat([grouping.place[:count] * len(running) + t for t, count in enumerate(running)])

        def by_image(rows: Tensor) -> Tensor:
            """[S, ...] as [B, c * T, ...], zeros where there is no word."""
            padded = rows.new_zeros(grouping.caption.numel() * len(running), rows.shape[1])
            return padded.index_copy_(0, place, rows).view(len(values), -1, rows.shape[1])

        of_keys = 4 * score * grouping.split_padded(slopes).sum(1)
        of_values = by_image(attention.to(values.dtype)).mT @ by_image(of_attended)
        return (
            *(of_keys, of_values, None, of_score, None, None, of_states[:captions], of_cell, of_gates),
            *(of_pre.T @ _before(hiddens, steps), of_pre.sum(0), of_gates.T @ contexts),
        )


def _cell(gates: Tensor, before: Tensor, cell: Tensor, tanh_cell: Tensor, hidden: Tensor) -> None:
    """Write c = f c' + i g, tanh(c) and h = o tanh(c) to `cell` [p, E], `tanh_cell` and `hidden`.

    gates [p, 4 E], of i, f, o and g before their nonlinearity, become those after it; `before` is c' [p, E].
    """
    width = hidden.shape[1]
    gates[:, : 3 * width].sigmoid_()
    i, f, o, g = gates.split(width, -1)
    torch.addcmul(f * before, i, g.tanh_(), out=cell)
    torch.mul(o, torch.tanh(cell, out=tanh_cell), out=hidden)


def _cell_back(
    of_hidden: Tensor, of_cell: Tensor, of_gates: Tensor, gates: Tensor, before: Tensor, tanh_cell: Tensor
) -> None:
    """Write the gradient of the gates before their nonlinearity to `of_gates` [p, 4 E].

    `of_hidden` [p, E] is that of h; `of_cell` [P, E] holds that of c by later words, and then that of c'.
    """
    of_cell, width = of_cell[: len(of_hidden)], of_hidden.shape[1]
    i, f, o, g = gates.split(width, -1)
    of_i, of_f, of_o, of_g = of_gates.split(width, -1)
    of_cell += through_tanh(of_hidden * o, tanh_cell)
    of_c = of_cell.to(of_hidden.dtype)
    torch.mul(of_c, g, out=of_i)
    torch.mul(of_c, before.to(of_c.dtype), out=of_f)
    torch.mul(of_hidden, tanh_cell, out=of_o)
    through_sigmoid(of_gates[:, : 3 * width], gates[:, : 3 * width], grad_input=of_gates[:, : 3 * width])
    through_tanh(of_c * i, g, grad_input=of_g)
    of_cell *= f


def _steps(running: tuple[int, ...], captions: int) -> list[tuple[slice, slice, slice]]:
    """Of each step its words among all, and its states before and after it among first states and words."""
    steps, before, first = [], 0, 0
    for count in running:
        after = captions + first
        steps.append((slice(first, first + count), slice(before, before + count), slice(after, after + count)))
        before, first = after, first + count
    return steps


def _before(states: Tensor, steps: list[tuple[slice, slice, slice]]) -> Tensor:
    """The state before each word [S, E], of first states and those after each [P + S, E]."""
    return torch.cat([states[before] for _, before, _ in steps])


def _padded(of_hiddens: Tensor, captions: int) -> Tensor:
    """Gradients of first states, of which there are none yet, and of those after each word [P + S, E]."""
    return torch.cat([of_hiddens.new_zeros(captions, of_hiddens.shape[1]), of_hiddens])
