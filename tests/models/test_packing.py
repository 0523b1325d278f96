from itertools import pairwise

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from models.packing import SIDE_BY_SIDE, Grouping, Layout, Packing, rectangle, staircase


@pytest.mark.parametrize("lengths", [[3, 5, 1, 4, 4], [1], [2, 2, 2], [1, 1, 4]])
def test_packing_is_torchs(lengths: list[int]) -> None:
    words = torch.randn(len(lengths), 5, 2)
    packing = Packing.of(torch.tensor(lengths), 5)
    packed = pack_padded_sequence(words, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
    assert packing.running == tuple(packed.batch_sizes.tolist()) and packed.sorted_indices is not None
    # captions of the same length may stand in any order; torch's is not stable
    assert [lengths[p] for p in packing.order] == [lengths[p] for p in packed.sorted_indices]
    padded, _ = pad_packed_sequence(packed, batch_first=True, total_length=5)
    assert torch.equal(packing.unpack(packing.pack(words)), padded)
    first = packing.running[0]
    assert torch.equal(packing.pack(words)[:first], words[packing.order[:first], 0])
    assert torch.equal(packing.caption[:first], packing.order[:first])
    assert torch.equal(packing.caption.bincount(minlength=len(lengths)), torch.tensor(lengths))


@pytest.mark.parametrize("layout", [staircase, rectangle])
@pytest.mark.parametrize("lengths", [[3, 5, 1, 4, 4], [1], [2, 2, 2], [1] * 40, list(range(1, 31)) * 5])
def test_laid_out_words_come_back_and_sizes_are_multiples(layout: Layout, lengths: list[int]) -> None:
    steps = max(lengths) + 2
    words = torch.randn(len(lengths), steps, 2)
    exact, packing = (Packing.of(torch.tensor(lengths), steps, how) for how in (tuple, layout))
    assert torch.equal(packing.unpack(packing.pack(words)), exact.unpack(exact.pack(words)))
    assert len(packing.caption) == len(packing.place) == sum(packing.running)
    assert int(packing.caption.max()) < len(lengths)
    running = packing.running
    assert all(a >= b for a, b in pairwise(running))  # captions that run are the first
    assert all(a >= b for a, b in zip(running, exact.running, strict=False)) and len(running) >= len(exact.running)
    if layout is rectangle:
        assert len(set(running)) == 1 and running[0] % 32 == len(running) % 4 == 0
        assert running[0] < len(lengths) + 32 and len(running) < max(lengths) + 4
    else:
        assert all(count % 16 == 0 for count in running) and sum(running) % 128 == 0
        assert sum(running) < sum(-(-count // 16) * 16 for count in exact.running) + 128


@pytest.mark.parametrize("captions", [6, 7, 32])
def test_captions_that_are_added_have_places_of_their_own(captions: int) -> None:
    image_of, order = torch.tensor([0, 0, 0, 2, 3, 3]), torch.tensor([4, 0, 3, 2, 5, 1])
    before = Grouping.of(order, 4, image_of).ordered(order)
    grouping = before.filled(captions)
    assert len(grouping.place.unique()) == captions
    assert torch.equal(grouping.caption.flatten()[grouping.place], torch.arange(captions))
    assert torch.equal(grouping.image_of[:6], before.image_of)
    assert captions == 6 or grouping.caption.shape[1] == max(SIDE_BY_SIDE, captions // 4)


def test_words_lie_with_the_image_of_their_caption() -> None:
    image_of, order = torch.tensor([0, 0, 0, 2, 3, 3]), torch.tensor([4, 0, 3, 2, 5, 1])
    running = (6, 6, 4, 1)
    grouping = Grouping.of(order, 4, image_of).ordered(order).of_words(running)
    captions = torch.cat([order[:count] for count in running])
    rows = torch.randn(sum(running), 2)
    assert torch.equal(grouping.image_of, image_of[captions])
    assert torch.equal(grouping.join(grouping.split(rows)), rows)
    assert len(grouping.place.unique()) == len(rows) and grouping.caption.shape == (4, 16)


def test_captions_in_another_order_and_the_first_of_them_keep_their_images() -> None:
    image_of, order = torch.tensor([0, 0, 0, 2, 3, 3]), torch.tensor([4, 0, 3, 2, 5, 1])
    images, rows = torch.randn(4, 2), torch.randn(6, 2)
    grouping = Grouping.of(rows, 4, image_of).ordered(order)
    for count in (6, 3, 1):
        some = grouping.first(count)
        assert torch.equal(some.repeat(images), images[image_of[order[:count]]])
        grouped = some.split(rows[:count])
        assert torch.equal(some.join(grouped), rows[:count])
        for position, caption in enumerate(order[:count]):  # each of them lies with its image
            assert (grouped[image_of[caption]] == rows[position]).all(-1).any()


def test_as_many_captions_of_every_image_lie_side_by_side() -> None:
    rows = torch.randn(6, 2)
    even = Grouping.of(rows, 2)
    of = Grouping.of(rows, 2, torch.tensor([0, 0, 0, 1, 1, 1]))
    assert torch.equal(even.caption, of.caption) and torch.equal(even.place, of.place)
