"""From the encoder's cells to finer maps, for heads that say something of each place."""

import math

from torch import Tensor, nn

from models.heads import Seen

# Shapes: B images, D encoder channels, E width of the maps, s cells a side of the encoder's grid.


class Pyramid(nn.Module):
    """The features as maps [B, E, s, s], [B, E, 2 s, 2 s], ..., each made of the one before.

        map_0 = ReLU(W LN(feature)),   map_1 = PixelShuffle(ReLU(W' LN(feature))) + up(map_0),
        map_k+1 = block(up(map_k)),    block = ReLU(GN(conv 3x3)),  up bilinear

    All the channels of a cell are looked at again for its four quarters (Shi et al., CVPR 2016): what lies where in a
    cell stands in them, and not in the few of the map.

    Args:
        channels: D. width: E, a multiple of 8. levels: how many maps, at least 2.
    """

    def __init__(self, channels: int, width: int, levels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.whole, self.quarters = nn.Linear(channels, width), nn.Linear(channels, 4 * width)
        self.shuffle, self.relu = nn.PixelShuffle(2), nn.ReLU()
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.blocks = nn.ModuleList(block(width) for _ in range(levels - 1))

    def forward(self, seen: Seen) -> list[Tensor]:
        """The maps, coarsest first."""
        features = self.norm(seen.features)
        side = math.isqrt(features.shape[1])
        coarse, fine = (
            self.relu(linear(features)).transpose(1, 2).unflatten(2, (side, side))
            for linear in (self.whole, self.quarters)
        )
        first, *others = self.blocks
        maps = [coarse, first(self.shuffle(fine) + self.up(coarse))]
        for one in others:
            maps.append(one(self.up(maps[-1])))
        return maps


def block(width: int) -> nn.Sequential:
    """A 3x3 convolution, normalised over 8 groups of channels, and ReLU: [B, E, h, w] to the same."""
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(8, width), nn.ReLU())
