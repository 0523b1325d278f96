"""How a batch's captions lie side by side: without gaps where they have ended, and grouped by image.

Shapes: B images, P captions, c captions of the image that has most, T words of the longest, S words of all captions,
E any width.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Packing(NamedTuple):
    """The words of captions of different lengths without gaps: those of the first step, of the second, and so on.

    Captions stand in the order of their lengths, the longest first, so that those that still run are always the first.

    `order` [P] int64 says which caption stands where, `running` how many run at each step (S in all), `place` [S] int64
    where in the flattened [P, T] of `shape` each word stands.
    """

    order: Tensor
    running: tuple[int, ...]
    place: Tensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, lengths: Tensor, steps: int) -> "Packing":
        """Of captions with so many words each [P] int64, none more than T = `steps`."""
        order = lengths.argsort(descending=True, stable=True)
        step = torch.arange(steps, device=lengths.device)[:, None]
        there = step < lengths[order]  # [T, P]
        running = tuple(count for count in there.sum(1).tolist() if count)
        return cls(order, running, (order * steps + step)[there], (len(lengths), steps))

    @property
    def caption(self) -> Tensor:
        """Which caption each word is of, int64 [S]."""
        return torch.div(self.place, self.shape[1], rounding_mode="floor")

    def pack(self, words: Tensor) -> Tensor:
        """[P, T, ...] as [S, ...]."""
        return words.flatten(0, 1).index_select(0, self.place)

    def unpack(self, packed: Tensor) -> Tensor:
        """[S, ...] as [P, T, ...], zeros where a caption has no word."""
        padded = packed.new_zeros(self.shape[0] * self.shape[1], *packed.shape[1:])
        return padded.index_copy(0, self.place, packed).view(*self.shape, *packed.shape[1:])


class Grouping(NamedTuple):
    """Which captions are of the same image, so that they share its regions: [P, ...] to [B, c, ...] and back.

    `caption` [B, c] int64 names the captions of each image (any caption where it has fewer), `place` [P] where in
    the flattened [B, c] each caption stands.
    """

    caption: Tensor
    place: Tensor

    @classmethod
    def of(cls, rows: Tensor, images: int, image_of: Tensor | None = None) -> "Grouping":
        """Of rows [P, ...], row p of image `image_of[p]`, those of one side by side; None: as many of every image."""
        row = torch.arange(rows.shape[0], device=rows.device)
        if image_of is None:
            return cls(row.view(images, -1), row)
        count = torch.bincount(image_of, minlength=images)
        among = row - (count.cumsum(0) - count)[image_of]
        width = int(count.max())
        caption = image_of.new_zeros(images, width)
        caption[image_of, among] = row
        return cls(caption, image_of * width + among)

    def ordered(self, order: Tensor) -> "Grouping":
        """The same captions in another order: first caption `order[0]`, and so on."""
        return Grouping(order.argsort()[self.caption], self.place[order])

    def first(self, count: int) -> "Grouping":
        """Of the first captions alone, so many."""
        return Grouping(self.caption.clamp(max=count - 1), self.place[:count])

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
