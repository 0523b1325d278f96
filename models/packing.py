"""How a batch's captions lie side by side: without gaps where they have ended, and grouped by image.

Shapes: B images, P captions, c captions of the image that has most, T words of the longest, S words of all captions,
E any width.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Layout = Callable[[Sequence[int]], tuple[int, ...]]  # how many captions run at each step, and how many to lay out
SIDE_BY_SIDE = 5  # captions an image in every data set of the field, and samples
WORDS_OF_AN_IMAGE = 16  # places for the words of an image come in multiples of so many, so that sizes come again


def staircase(running: Sequence[int], captions: int = 16, words: int = 128) -> tuple[int, ...]:
    """No fewer captions at each step, a multiple of `captions`, and a multiple of `words` in all, itself one of that.

    A CPU's bfloat16 products are compiled for each size that they come in, which takes as long as one of them, and
    hardly two batches have captions of the same lengths. In such steps a few dozen sizes serve all batches.
    """
    laid = [-(-count // captions) * captions for count in running]
    missing = -sum(laid) % words
    for step in range(1, len(laid)):
        added = min(missing, laid[step - 1] - laid[step])
        laid[step] += added
        missing -= added
    while missing:
        laid.append(min(missing, laid[-1]))
        missing -= laid[-1]
    return tuple(laid)


def rectangle(running: Sequence[int], captions: int = 32, steps: int = 4) -> tuple[int, ...]:
    """All captions at every step, in multiples of `captions` and `steps`: a dozen sizes serve all batches.

    A graph can hold only what always has the same size (models/capture.py), and empty places cost a GPU next to
    nothing.
    """
    return (-(-running[0] // captions) * captions,) * (-(-len(running) // steps) * steps)


class Packing(NamedTuple):
    """The words of captions of different lengths without gaps: those of the first step, of the second, and so on.

    Captions stand in the order of their lengths, the longest first, so that those that still run are always the first.
    A layout may let them run for longer, and add captions at the end, whose words nobody reads.

    `order` [P] int64 says which caption stands where, `running` how many run at each step (S in all), `place` [S] int64
    where in the flattened [P, T] of `shape` each word stands, P T for one that nobody reads.
    """

    order: Tensor
    running: tuple[int, ...]
    place: Tensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, lengths: Tensor, steps: int, layout: Layout = tuple) -> "Packing":
        """Of captions with so many words each [P] int64, none more than T = `steps`."""
        order = lengths.argsort(descending=True, stable=True)
        step = torch.arange(steps, device=lengths.device)[:, None]
        there = step < lengths[order]  # [T, P]
        counts = [count for count in there.sum(1).tolist() if count]
        running, nowhere = layout(counts), len(lengths) * steps
        place = order.new_full((len(running), running[0]), nowhere)
        place[: len(counts), : len(lengths)] = torch.where(there, order * steps + step, nowhere)[: len(counts)]
        runs = torch.arange(running[0]) < torch.tensor(running)[:, None]
        return cls(order, running, place[runs.to(place.device)], (len(lengths), steps))

    @property
    def caption(self) -> Tensor:
        """Which caption each word is of, int64 [S]; the last one's for words that nobody reads."""
        return torch.div(self.place, self.shape[1], rounding_mode="floor").clamp(max=self.shape[0] - 1)

    def pack(self, words: Tensor) -> Tensor:
        """[P, T, ...] as [S, ...], with any of them where nobody reads."""
        return words.flatten(0, 1).index_select(0, self.place.clamp(max=self.shape[0] * self.shape[1] - 1))

    def unpack(self, packed: Tensor) -> Tensor:
        """[S, ...] as [P, T, ...], zeros where a caption has no word."""
        words = self.shape[0] * self.shape[1]
        padded = packed.new_zeros(words + 1, *packed.shape[1:]).index_copy_(0, self.place, packed)
        return padded[:words].view(*self.shape, *packed.shape[1:])


class Grouping(NamedTuple):
    """Which rows, captions or words, are of the same image and share its regions: [P, ...] to [B, c, ...] and back.

    `caption` [B, c] int64 names the captions of each image (any caption where it has fewer), `place` [P] where in
    the flattened [B, c] each caption stands.
    """

    caption: Tensor
    place: Tensor

    @classmethod
    def of(cls, rows: Tensor, images: int, image_of: Tensor | None = None, multiple: int = 1) -> "Grouping":
        """Of rows [P, ...], row p of image `image_of[p]`, those of one side by side; None: as many of every image.

        c is a multiple of `multiple` where `image_of` is given.
        """
        row = torch.arange(rows.shape[0], device=rows.device)
        if image_of is None:
            return cls(row.view(images, -1), row)
        count = torch.bincount(image_of, minlength=images)
        among = row - (count.cumsum(0) - count)[image_of]
        width = -(-int(count.max()) // multiple) * multiple
        caption = image_of.new_zeros(images, width)
        caption[image_of, among] = row
        return cls(caption, image_of * width + among)

    @property
    def image_of(self) -> Tensor:
        """Of which image each caption is, int64 [P]."""
        return torch.div(self.place, self.caption.shape[1], rounding_mode="floor")

    def ordered(self, order: Tensor) -> "Grouping":
        """The same captions in another order: first caption `order[0]`, and so on."""
        return Grouping(order.argsort()[self.caption], self.place[order])

    def first(self, count: int) -> "Grouping":
        """Of the first captions alone, so many."""
        return Grouping(self.caption.clamp(max=count - 1), self.place[:count])

    def filled(self, captions: int) -> "Grouping":
        """With captions added at the end, so many in all, each on an image that has room."""
        many, (images, most) = len(self.place), self.caption.shape
        if captions == many:
            return self
        width = max(SIDE_BY_SIDE, most, -(-captions // images))
        place = self.image_of * width + self.place % most
        taken = torch.zeros(images * width, dtype=torch.uint8, device=place.device).index_fill_(0, place, 1)
        place = torch.cat([place, taken.argsort(stable=True)[: captions - many]])
        caption = place.new_zeros(images * width)
        caption[place] = torch.arange(captions, device=place.device)
        return Grouping(caption.view(images, width), place)

    def of_words(self, running: Sequence[int]) -> "Grouping":
        """Of the words of these captions, packed, of which so many run at each step."""
        image_of = torch.cat([self.image_of[:count] for count in running])
        order = image_of.argsort(stable=True)
        return Grouping.of(order, len(self.caption), image_of[order], WORDS_OF_AN_IMAGE).ordered(order.argsort())

    def split(self, rows: Tensor) -> Tensor:
        """[P, ...] as [B, c, ...], with rows that mean nothing where an image has fewer than c captions."""
        return rows.index_select(0, self.caption.flatten()).view(*self.caption.shape, *rows.shape[1:])

    def split_padded(self, rows: Tensor) -> Tensor:
        """The same with zeros there."""
        padded = rows.new_zeros(self.caption.numel(), *rows.shape[1:])
        return padded.index_copy_(0, self.place, rows).view(*self.caption.shape, *rows.shape[1:])

    def repeat(self, images: Tensor) -> Tensor:
        """[B, ...] as [P, ...], each image's row for each of its captions."""
        return images.index_select(0, self.image_of)

    def join(self, grouped: Tensor) -> Tensor:
        """[B, c, ...] as [P, ...]."""
        return grouped.flatten(0, 1).index_select(0, self.place)
