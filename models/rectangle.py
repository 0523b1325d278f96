"""The loop over words laid out as a rectangle, of sizes that come again, so that a GPU can replay it.

Hardly two batches have captions of the same lengths. Here every caption runs for as long as any, and a few captions and
steps that nobody reads are added: a dozen sizes serve all batches, and the empty places cost a GPU next to nothing.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.capture import Run, captured, worth_capturing
from models.packing import Grouping
from models.recurrence import Recurrence

CAPTIONS, STEPS = 32, 4  # sizes are multiples of these
SIDE_BY_SIDE = 5  # captions an image in every data set of the field, and samples


class Rectangle(NamedTuple):
    """Packed words in a rectangle: P captions become `captions`, each of `steps` words.

    `grouping` is of the captions with those added, each with an image that has room for it; `place` [S] int64 says
    where in the flattened [steps, captions] each of the packed words stands.
    """

    grouping: Grouping
    place: Tensor
    captions: int
    steps: int

    @classmethod
    def of(cls, grouping: Grouping, running: tuple[int, ...], captions: int, steps: int) -> "Rectangle":
        """Of captions in the order of their packing (models/packing.py), in multiples of `captions` and `steps`."""
        images, most = grouping.caption.shape
        many, device = len(grouping.place), grouping.place.device
        captions, steps = -(-many // captions) * captions, -(-len(running) // steps) * steps
        width = max(SIDE_BY_SIDE, most, -(-captions // images))
        place = torch.div(grouping.place, most, rounding_mode="floor") * width + grouping.place % most
        taken = torch.zeros(images * width, dtype=torch.uint8, device=device).index_fill_(0, place, 1)
        free = taken.argsort(stable=True)[: captions - many]
        added = torch.arange(many, captions, device=device)
        caption = F.pad(grouping.caption, (0, width - most)).flatten().index_copy_(0, free, added)
        words = torch.cat([torch.arange(step * captions, step * captions + c) for step, c in enumerate(running)])
        both = Grouping(caption.view(images, width), torch.cat([place, free]))
        return cls(both, words.to(device), captions, steps)

    def first(self, states: Tensor) -> Tensor:
        """States [P, E] as [captions, E], zeros for those added."""
        return F.pad(states, (0, 0, 0, self.captions - len(states)))

    def spread(self, words: Tensor) -> Tensor:
        """[S, ...] as [steps * captions, ...], zeros where there is no word."""
        return words.new_zeros(self.steps * self.captions, *words.shape[1:]).index_copy(0, self.place, words)

    def pack(self, spread: Tensor) -> Tensor:
        """[steps * captions, ...] as [S, ...]."""
        return spread.index_select(0, self.place)


def recur(keys: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """What `Recurrence` gives; on a CUDA GPU, where it learns, by a captured graph if its sizes come often."""
    loop = partial(in_rectangle, captured, CAPTIONS, STEPS) if worth_capturing(keys) else Recurrence.apply
    return loop(keys, *rest)


def in_rectangle(
    run: Run,
    captions: int,
    steps: int,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    score: Tensor | None,
    grouping: Grouping,
    running: tuple[int, ...],
    hidden: Tensor,
    cell: Tensor,
    from_words: Tensor,
    *weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same by `run(loop, inputs)`, a loop over the words of a rectangle of a multiple of `captions` and `steps`."""
    laid = Rectangle.of(grouping, running, captions, steps)
    states = laid.first(hidden), laid.first(cell), laid.spread(from_words)
    given = keys, values, mask, score, *laid.grouping, *states, *weights
    there = [part is not None for part in given]

    def loop(*inputs: Tensor) -> tuple[Tensor, ...]:
        known = iter(inputs)
        parts: list[Any] = [next(known) if is_there else None for is_there in there]
        keys, values, mask, score, caption, place, *others = parts
        running = (laid.captions,) * laid.steps
        return Recurrence.apply(keys, values, mask, score, Grouping(caption, place), running, *others)

    hiddens, contexts, attention = map(laid.pack, run(loop, [part for part in given if part is not None]))
    return hiddens, contexts, attention
