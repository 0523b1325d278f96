"""Soft attention of c queries an image over its N regions.

Shapes: keys [B, N, E], query [B, c, E], energy [B, c, N]. `score` [E] makes it additive, None makes it dot-product:

    additive    e_n = score . tanh(key_n + query)      (Bahdanau et al., ICLR 2015; Xu et al., ICML 2015, eq. 4)
    dot         e_n = key_n . query / sqrt(E)          (Vaswani et al., NeurIPS 2017, eq. 1)

then a = softmax(e) and context = sum_n a_n value_n. The dot product is one matrix product for all queries of an image;
the additive form takes B c N E hyperbolic tangents a word, which is what limits it. They are taken as

    tanh(key + query) = 2 / (1 + exp(-2 key) exp(-2 query)) - 1

so that exponentials are of keys and of queries and not of every pair of them. The -1 adds the same to all energies of a
query, which softmax does not see: it is left out.
"""

import torch
from torch import Tensor

LARGEST = 40.0  # of what exponentials are taken: the product of two is then never inf x 0


def energies(keys: Tensor, query: Tensor, score: Tensor | None) -> Tensor:
    """How well each region fits each query, [B, c, N]; additive ones are larger by the sum of `score`."""
    if score is None:
        return query @ keys.mT * keys.shape[-1] ** -0.5
    return additive_energies(exponentials(keys)[:, None], exponentials(query), score)


def exponentials(x: Tensor) -> Tensor:
    """exp(-2 x) of keys or queries, with x within -40 to 40; float16, whose range is too small for it, as float32."""
    return (-2 * (x.float() if x.dtype == torch.float16 else x).clamp(-LARGEST, LARGEST)).exp_()


def additive_energies(keys: Tensor, query: Tensor, score: Tensor) -> Tensor:
    """`energies` [..., N] by the `exponentials` of keys [..., N, E] and query [..., E]."""
    return _sigmoid(keys, query) @ (2 * score).to(keys.dtype)


def weights(energy: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(energy) in float32 over the regions that are there: `mask` bool [B, N], None for all.

    Every image needs at least one region.
    """
    energy = energy.float()
    if mask is not None:
        energy = energy.masked_fill(~mask[:, None], -torch.inf)
    return energy.softmax(-1)


def additive_gradients(
    keys: Tensor, query: Tensor, score: Tensor, upstream: Tensor, slopes: Tensor, of_score: Tensor
) -> Tensor:
    """Gradients of one query a row where `upstream` [P, N] is that of `additive_energies(keys, query, score)`.

    `keys` [P, N, E] and `query` [P, E] are exponentials, the gradients are of what these were taken of. Returns that of
    query [P, E]. Adds that of score to `of_score` [E] and, to `slopes` [P, N, E], what times 4 `score` is that of keys:
    both are sums over words.
    """
    sigmoid = _sigmoid(keys, query)
    of_score.add_(torch.mv(sigmoid.flatten(0, 1).mT, upstream.flatten()), alpha=2)
    slope = torch.addcmul(sigmoid, sigmoid, sigmoid, value=-1, out=sigmoid)  # a quarter of that of tanh
    slopes.addcmul_(upstream[..., None], slope)
    return 4 * score * (upstream[:, None] @ slope)[:, 0]


def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent of float32 or float64 by a sigmoid, a quarter of the time on a CPU."""
    return 2 * torch.sigmoid(2 * x) - 1


def _sigmoid(keys: Tensor, query: Tensor) -> Tensor:
    """(1 + tanh(k + q)) / 2 by the exponentials of keys k [..., N, E] and of the query q [..., E] beside them."""
    return torch.addcmul(keys.new_ones(()), keys, query[..., None, :]).reciprocal_()
