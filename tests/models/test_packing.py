import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from models.packing import Grouping, Packing


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
