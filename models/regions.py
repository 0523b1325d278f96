"""What a decoder carries from word to word: the regions that it looks at, and its state."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

# Shapes: B images, P captions, N regions, E width.


class Regions(NamedTuple):
    """What the decoder needs of each image, computed once: keys and values [B, N, E], mask [B, N] or None.

    `told` [B, 4 E] is what the LSTM's gates hear of a head with every word (`Decoder.hear`); None: nothing.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor | None
    told: Tensor | None = None

    def select(self, rows: Tensor) -> "Regions":
        """The regions of these rows, in this order."""
        mask, told = (None if part is None else part.index_select(0, rows) for part in (self.mask, self.told))
        values = self.values.index_select(0, rows)
        return Regions(values if self.keys is self.values else self.keys.index_select(0, rows), values, mask, told)


class State(NamedTuple):
    """The LSTM's hidden state and cell, [P, E] each."""

    hidden: Tensor
    cell: Tensor

    def select(self, rows: Tensor) -> "State":
        """The states of these rows, in this order."""
        return State(self.hidden.index_select(0, rows), self.cell.index_select(0, rows))


class JointRegions:
    """The `Regions` of each of several decoders (models/ensemble.py)."""

    def __init__(self, parts: Sequence[Regions]) -> None:
        self.parts = parts

    @property
    def keys(self) -> Tensor:
        """The first one's."""
        return self.parts[0].keys

    def select(self, rows: Tensor) -> "JointRegions":
        """The regions of these rows, in this order."""
        return JointRegions([part.select(rows) for part in self.parts])


class JointState:
    """The `State` of each of several decoders."""

    def __init__(self, parts: Sequence[State]) -> None:
        self.parts = parts

    def select(self, rows: Tensor) -> "JointState":
        """The states of these rows, in this order."""
        return JointState([part.select(rows) for part in self.parts])
