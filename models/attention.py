"""Soft attention of c queries an image over its N regions.

Shapes: keys [B, N, E], query [B, c, E], energy [B, c, N]. `score` [E] makes it additive, None makes it dot-product:

    additive    e_n = score . tanh(key_n + query)      (Bahdanau et al., ICLR 2015; Xu et al., ICML 2015, eq. 4)
    dot         e_n = key_n . query / sqrt(E)          (Vaswani et al., NeurIPS 2017, eq. 1)

then a = softmax(e) and context = sum_n a_n value_n. The dot product is one matrix product for all queries of an image;
the additive form takes B c N E hyperbolic tangents a word, which is what limits it.
"""

import torch
from torch import Tensor


def energies(keys: Tensor, query: Tensor, score: Tensor | None) -> Tensor:
    """How well each region fits each query, [B, c, N]."""
    if score is None:
        return query @ keys.mT * keys.shape[-1] ** -0.5
    return torch.tanh(keys[:, None] + query[:, :, None]) @ score


def weights(energy: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(energy) in float32 over the regions that are there: `mask` bool [B, N], None for all.

    Every image needs at least one region.
    """
    energy = energy.float()
    if mask is not None:
        energy = energy.masked_fill(~mask[:, None], -torch.inf)
    return energy.softmax(-1)


def additive_gradients(keys: Tensor, query: Tensor, score: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of keys, score and query where `upstream` [B, c, N] is that of `energies(keys, query, score)`."""
    tangent = torch.tanh(keys[:, None] + query[:, :, None])
    by_score = torch.mv(tangent.flatten(0, -2).mT, upstream.flatten())
    inner = upstream[..., None] * score * (1 - tangent.square_())
    return inner.sum(1), by_score, inner.sum(2)
