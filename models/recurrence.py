"""The decoder's loop over words under teacher forcing, with its gradient written out.

Autograd would add up the gradients of the weights, keys and values word by word. Here the loop back only carries what
depends on the word before; those gradients are one large matrix product each, after it.
"""

from typing import Any

import torch
from torch import Tensor

from models.attention import additive_gradients, energies, weights
from models.packing import Grouping

# Shapes: B images, P captions, S words of all captions, N regions, E width.


class Recurrence(torch.autograd.Function):
    """Hidden states [S, E], gated contexts [S, E] and attention [S, N] of all words, packed.

    Args:
        keys, values: [B, N, E]; mask: bool [B, N] or None; score: [E] or None (models.attention). grouping: of the
            captions in the order of their packing; running: how many run at each step. hidden, cell: the first state
            [P, E] in that order, cell in float32. from_words: [S, 4 E].
        w_hidden, b_hidden: [6 E, E], [6 E], the query, the context's gate and the recurrence of the LSTM's gates.
        w_context: [4 E, E]. All but cell, attention and mask in one floating dtype.
    """

    @staticmethod
    def forward(
        ctx: Any,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None,
        score: Tensor | None,
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
        attended, contexts = hidden.new_empty(2, words, width)
        attention = cell.new_empty(words, keys.shape[1])
        # matrix products take the captions of an image together, with empty places; tangents are too dear for those
        own_keys = None if score is None else grouping.repeat(keys)
        from_hidden, from_context = w_hidden.T.contiguous(), w_context.T.contiguous()
        hiddens[:captions], cells[:captions] = hidden, cell
        for now, before, after in _steps(running, captions):
            torch.addmm(b_hidden, hiddens[before], from_hidden, out=pre[now])
            query, gate, gates = pre[now].split([width, width, 4 * width], -1)
            group = grouping.first(len(query))
            if own_keys is None:
                looked = weights(energies(keys, group.split(query), None), mask)
            else:
                looked = weights(group.split(energies(own_keys[: len(query)], query[:, None], score)[:, 0]), mask)
            attended[now] = group.join(looked.to(values.dtype) @ values)
            attention[now] = group.join(looked)
            torch.mul(gate.sigmoid_(), attended[now], out=contexts[now])
            gates += from_words[now]
            gates += contexts[now] @ from_context
            gates[:, : 3 * width].sigmoid_()
            i, f, o, g = gates.split(width, -1)
            torch.addcmul(f * cells[before], i, g.tanh_(), out=cells[after])
            torch.mul(o, torch.tanh(cells[after]).to(o.dtype), out=hiddens[after])
        ctx.save_for_backward(
            *(keys, own_keys, values, score, hiddens, cells, pre, attended, contexts, attention, w_hidden, w_context)
        )
        ctx.grouping, ctx.running = grouping, running
        return hiddens[captions:], contexts, attention

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """The loop back."""
        of_hiddens, of_contexts, of_attention = grads
        keys, own_keys, values, score, hiddens, cells, pre, attended, contexts, attention, w_hidden, w_context = (
            ctx.saved_tensors
        )
        grouping, running, width = ctx.grouping, ctx.running, hiddens.shape[-1]
        captions = len(grouping.place)
        steps = _steps(running, captions)
        of_pre, of_attended, of_energy = torch.empty_like(pre), torch.empty_like(attended), torch.empty_like(attention)
        if own_keys is not None:
            slopes, of_score = torch.zeros_like(own_keys), torch.zeros_like(score)
        of_hidden, of_cell = torch.zeros_like(hiddens[:captions]), torch.zeros_like(cells[:captions])
        for now, before, after in reversed(steps):
            query, gate, gates = pre[now].split([width, width, 4 * width], -1)
            of_query, of_gate, of_gates = of_pre[now].split([width, width, 4 * width], -1)
            count = len(query)
            group = grouping.first(count)

            # the LSTM's cell; s (1 - s) is the derivative of a sigmoid s, 1 - h^2 that of tanh
            i, f, o, g = gates.split(width, -1)
            of_h = of_hidden[:count] + of_hiddens[now]
            tanh_cell = torch.tanh(cells[after])
            of_c = of_cell[:count] + of_h * o * (1 - tanh_cell.square())
            of_i, of_f, of_o, of_g = of_gates.split(width, -1)
            of_i.copy_(of_c * g * (i - i * i))
            of_f.copy_(of_c * cells[before] * (f - f * f))
            of_o.copy_(of_h * tanh_cell * (o - o * o))
            of_g.copy_(of_c * i * (1 - g * g))
            of_cell[:count] = of_c * f

            # the gated context
            of_context = torch.addmm(of_contexts[now], of_gates, w_context)
            of_attended[now] = of_context * gate
            of_gate.copy_(of_context * attended[now] * (gate - gate * gate))

            # the attention
            looked = attention[now]
            of_looked = of_attention[now] + group.join(group.split(of_attended[now]) @ values.mT)
            of_energy[now] = looked * (of_looked - (looked * of_looked).sum(-1, keepdim=True))
            upstream = of_energy[now].to(keys.dtype)
            if own_keys is None:
                of_query.copy_(group.join(group.split(upstream) @ keys) * width**-0.5)
            else:
                of_query.copy_(additive_gradients(own_keys[:count], query, score, upstream, slopes[:count], of_score))
            of_hidden[:count] = of_pre[now] @ w_hidden

        place = torch.cat([grouping.place[:count] * len(running) + t for t, count in enumerate(running)])

        def by_image(rows: Tensor) -> Tensor:
            """[S, ...] as [B, c * T, ...], zeros where there is no word."""
            padded = rows.new_zeros(grouping.caption.numel() * len(running), rows.shape[1])
            return padded.index_copy_(0, place, rows).view(len(keys), -1, rows.shape[1])

        def over_words(left: Tensor, right: Tensor) -> Tensor:
            """Sum over words and captions of an image of left [S, N] times right [S, E]: [B, N, E]."""
            return by_image(left).mT @ by_image(right)

        if own_keys is None:
            of_keys = over_words(of_energy.to(keys.dtype), pre[:, :width]) * width**-0.5
        else:
            of_keys = score * grouping.split_padded(slopes).sum(1)
        return (
            *(of_keys, over_words(attention.to(keys.dtype), of_attended)),
            *(None, None if score is None else of_score, None, None, of_hidden, of_cell),
            of_pre[:, 2 * width :],
            *(of_pre.T @ torch.cat([hiddens[before] for _, before, _ in steps]), of_pre.sum(0)),
            of_pre[:, 2 * width :].T @ contexts,
        )


def _steps(running: tuple[int, ...], captions: int) -> list[tuple[slice, slice, slice]]:
    """Of each step its words among all, and its states before and after it among first states and words."""
    steps, before, first = [], 0, 0
    for count in running:
        after = captions + first
        steps.append((slice(first, first + count), slice(before, before + count), slice(after, after + count)))
        before, first = after, first + count
    return steps
