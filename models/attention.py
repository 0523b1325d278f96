"""Soft attention over regions."""

import torch
from torch import Tensor, nn


class SoftAttention(nn.Module):
    """Additive attention (Bahdanau et al., ICLR 2015; Xu et al., ICML 2015, eq. 4-6).

        e_n = v . tanh(key_n + query),  a = softmax(e),  context = sum_n a_n value_n

    Args:
        dim: width of keys and query.

    Shape:
        keys [P, N, dim], values [P, N, D], query [P, dim], mask bool [P, N] (True: the region is there) or None;
        returns context [P, D] and attention [P, N]. A caption needs at least one region.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1, bias=False)

    def forward(self, keys: Tensor, values: Tensor, query: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Context and attention for one word of each caption."""
        energy = self.score(torch.tanh(keys + query[:, None])).squeeze(-1).float()  # [P, N]
        if mask is not None:
            energy = energy.masked_fill(~mask, -torch.inf)
        attention = energy.softmax(-1)
        context = torch.bmm(attention[:, None].to(values.dtype), values).squeeze(1)
        return context, attention
