"""The decoder's loop over words under teacher forcing, with its gradient written out.

Autograd would add up the gradients of the weights, keys and values word by word. Here the loop back only carries what
depends on the word before; those gradients are one large matrix product each, after it.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.attention import additive_gradients, energies, weights

# Shapes: B images, P captions, c captions of the image that has most, T words, N regions, E width.


class Grouping(NamedTuple):
    """Which captions are of the same image, so that they share its regions: [P, ...] to [B, c, ...] and back.

    `caption` [B, c] int64 names the captions of each image (any caption where it has fewer), `place` [P] where in
    the flattened [B, c] each caption stands.
    """

    caption: Tensor
    place: Tensor

    @classmethod
    def of(cls, image_of: Tensor, images: int) -> "Grouping":
        """From the image of each caption [P], those of one image side by side."""
        count = torch.bincount(image_of, minlength=images)
        first = count.cumsum(0) - count
        among = torch.arange(len(image_of), device=image_of.device) - first[image_of]
        width = int(count.max())
        caption = image_of.new_zeros(images, width)
        caption[image_of, among] = torch.arange(len(image_of), device=image_of.device)
        return cls(caption, image_of * width + among)

    @classmethod
    def even(cls, rows: Tensor, images: int) -> "Grouping":
        """Of rows [P, ...], as many of every image."""
        place = torch.arange(rows.shape[0], device=rows.device)
        return cls(place.view(images, -1), place)

    def split(self, rows: Tensor) -> Tensor:
        """[P, ...] as [B, c, ...], with rows that mean nothing where an image has fewer than c captions."""
        return rows.index_select(0, self.caption.flatten()).view(*self.caption.shape, *rows.shape[1:])

    def split_padded(self, rows: Tensor) -> Tensor:
        """The same with zeros there."""
        padded = rows.new_zeros(self.caption.numel(), *rows.shape[1:])
        return padded.index_copy_(0, self.place, rows).view(*self.caption.shape, *rows.shape[1:])

    def repeat(self, images: Tensor) -> Tensor:
        """[B, ...] as [P, ...], each image's row for each of its captions."""
        return images.index_select(0, torch.div(self.place, self.caption.shape[1], rounding_mode="floor"))

    def join(self, grouped: Tensor) -> Tensor:
        """[B, c, ...] as [P, ...]."""
        return grouped.flatten(0, 1).index_select(0, self.place)


class Recurrence(torch.autograd.Function):
    """Hidden states [T, P, E], gated contexts [T, P, E] and attention [T, P, N] of all words.

    Args:
        keys, values: [B, N, E]; mask: bool [B, N] or None; score: [E] or None (models.attention); grouping: of the
            captions. hidden, cell: the first state [P, E], cell in float32. from_words: [T, P, 4 E].
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
        hidden: Tensor,
        cell: Tensor,
        from_words: Tensor,
        w_hidden: Tensor,
        b_hidden: Tensor,
        w_context: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loop on."""
        steps, captions, width = *from_words.shape[:2], hidden.shape[1]
        hiddens = hidden.new_empty(steps + 1, captions, width)
        cells = cell.new_empty(steps + 1, captions, width)
        pre = hidden.new_empty(steps, captions, 6 * width)  # query, then the gates after their nonlinearity
        attended, contexts = hidden.new_empty(2, steps, captions, width)
        attention = cell.new_empty(steps, captions, keys.shape[1])
        # matrix products take the captions of an image together, with empty places; tangents are too dear for those
        own_keys = None if score is None else grouping.repeat(keys)
        from_hidden, from_context = w_hidden.T.contiguous(), w_context.T.contiguous()
        hiddens[0], cells[0] = hidden, cell
        for t in range(steps):
            torch.addmm(b_hidden, hiddens[t], from_hidden, out=pre[t])
            query, gate, gates = pre[t].split([width, width, 4 * width], -1)
            if own_keys is None:
                looked = weights(energies(keys, grouping.split(query), None), mask)
            else:
                looked = weights(grouping.split(energies(own_keys, query[:, None], score)[:, 0]), mask)
            attended[t] = grouping.join(looked.to(values.dtype) @ values)
            attention[t] = grouping.join(looked)
            torch.mul(gate.sigmoid_(), attended[t], out=contexts[t])
            gates += from_words[t]
            gates += contexts[t] @ from_context
            gates[:, : 3 * width].sigmoid_()
            i, f, o, g = gates.split(width, -1)
            torch.addcmul(f * cells[t], i, g.tanh_(), out=cells[t + 1])
            torch.mul(o, torch.tanh(cells[t + 1]).to(o.dtype), out=hiddens[t + 1])
        ctx.save_for_backward(
            *(keys, own_keys, values, score, hiddens, cells, pre, attended, contexts, attention, w_hidden, w_context)
        )
        ctx.grouping = grouping
        return hiddens[1:], contexts, attention

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """The loop back."""
        of_hiddens, of_contexts, of_attention = grads
        keys, own_keys, values, score, hiddens, cells, pre, attended, contexts, attention, w_hidden, w_context = (
            ctx.saved_tensors
        )
        grouping, width = ctx.grouping, hiddens.shape[-1]
        steps = len(contexts)
        of_pre, of_attended, of_energy = torch.empty_like(pre), torch.empty_like(attended), torch.empty_like(attention)
        if own_keys is not None:
            slopes, of_score = torch.zeros_like(own_keys), torch.zeros_like(score)
        of_hidden, of_cell = torch.zeros_like(hiddens[0]), torch.zeros_like(cells[0])
        for t in reversed(range(steps)):
            query, gate, gates = pre[t].split([width, width, 4 * width], -1)
            of_query, of_gate, of_gates = of_pre[t].split([width, width, 4 * width], -1)

            # the LSTM's cell; s (1 - s) is the derivative of a sigmoid s, 1 - h^2 that of tanh
            i, f, o, g = gates.split(width, -1)
            of_hidden = of_hidden + of_hiddens[t]
            tanh_cell = torch.tanh(cells[t + 1])
            of_cell = of_cell + of_hidden * o * (1 - tanh_cell.square())
            of_i, of_f, of_o, of_g = of_gates.split(width, -1)
            of_i.copy_(of_cell * g * (i - i * i))
            of_f.copy_(of_cell * cells[t] * (f - f * f))
            of_o.copy_(of_hidden * tanh_cell * (o - o * o))
            of_g.copy_(of_cell * i * (1 - g * g))
            of_cell = of_cell * f

            # the gated context
            of_context = torch.addmm(of_contexts[t], of_gates, w_context)
            of_attended[t] = of_context * gate
            of_gate.copy_(of_context * attended[t] * (gate - gate * gate))

            # the attention
            looked = attention[t]
            of_looked = of_attention[t] + grouping.join(grouping.split(of_attended[t]) @ values.mT)
            of_energy[t] = looked * (of_looked - (looked * of_looked).sum(-1, keepdim=True))
            upstream = of_energy[t].to(keys.dtype)
            if own_keys is None:
                of_query.copy_(grouping.join(grouping.split(upstream) @ keys) * width**-0.5)
            else:
                of_query.copy_(additive_gradients(own_keys, query, score, upstream, slopes, of_score))
            of_hidden = of_pre[t] @ w_hidden

        def over_words(left: Tensor, right: Tensor) -> Tensor:
            """Sum over words and captions of an image of left [T, P, N] times right [T, P, E]: [B, N, E]."""
            rows = (grouping.split_padded(x.to(keys.dtype).transpose(0, 1)).flatten(1, 2) for x in (left, right))
            return next(rows).mT @ next(rows)

        if own_keys is None:
            of_keys = over_words(of_energy, pre[..., :width]) * width**-0.5
        else:
            of_keys = score * grouping.split_padded(slopes).sum(1)
        flat = of_pre.flatten(0, 1)
        return (
            *(
                of_keys,
                over_words(attention, of_attended),
                None,
                None if score is None else of_score,
                None,
                of_hidden,
                of_cell,
            ),
            of_pre[..., 2 * width :],
            *(flat.T @ hiddens[:-1].flatten(0, 1), flat.sum(0)),
            flat[:, 2 * width :].T @ contexts.flatten(0, 1),
        )
