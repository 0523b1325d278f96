"""Maps of layers inside a backbone, laid beside the one that it gives.

Lower layers have smaller cells and know less of what they see.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Shapes: B images, N = n * n cells of the last map with D channels, M = m * m of another one with C.


@contextmanager
def overheard(backbone: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Within it, what these modules of the backbone give, each time that they are called, comes into the dict.

    For one look only: hooks that stayed would go along with a copy of the backbone and fill the first one's dict.
    """
    given: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    hooks = [
        backbone.get_submodule(layer).register_forward_hook(lambda _, __, seen, kept=kept: kept.append(seen))
        for layer, kept in given.items()
    ]
    try:
        yield given
    finally:
        for hook in hooks:
            hook.remove()


def beside(last: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """The last map [B, N, D] and what others [B, M, C] show of its cells, side by side on the last axis.

        f_n = [last_n, mean_{m in n} map_m, max_{m in n} map_m, ...]

    over the places m of a map that lie in cell n; of a map with the same cells, map_n itself. Rows of cells run from
    the top left.

    >>> one, fine = torch.zeros(1, 1, 1), torch.tensor([[[1.0], [2.0], [3.0], [6.0]]])
    >>> beside(one, [fine])
    tensor([[[0., 3., 6.]]])
    """
    return torch.cat([last, *(_of_cells(seen, last.shape[1]) for seen in maps)], -1) if maps else last


def _of_cells(seen: Tensor, cells: int) -> Tensor:
    if seen.shape[1] == cells:
        return seen
    grid = seen.transpose(1, 2).unflatten(2, (math.isqrt(seen.shape[1]), -1))  # [B, C, m, m]
    side = math.isqrt(cells)
    pooled = torch.cat([F.adaptive_avg_pool2d(grid, side), F.adaptive_max_pool2d(grid, side)], 1)
    return pooled.flatten(2).transpose(1, 2)
