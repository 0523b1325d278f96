import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection._utils import BoxCoder

from loss.boxes import elementwise_iou, encode_boxes, is_proper, pairwise_iou, proper_targets

COORDINATE = st.integers(0, 12).map(float)
BOX = st.tuples(COORDINATE, COORDINATE, COORDINATE, COORDINATE).map(
    lambda b: [min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3])]
)


def naive_iou(a: list[float], b: list[float]) -> float:
    """Count unit squares: boxes have whole coordinates."""
    squares = [{(x, y) for x in range(int(c[0]), int(c[2])) for y in range(int(c[1]), int(c[3]))} for c in (a, b)]
    union = len(squares[0] | squares[1])
    return len(squares[0] & squares[1]) / union if union else 0.0


@settings(max_examples=100, deadline=None)
@given(st.lists(BOX, min_size=1, max_size=4), st.lists(BOX, min_size=1, max_size=4))
def test_pairwise_iou_counts_squares(first: list[list[float]], second: list[list[float]]) -> None:
    iou = pairwise_iou(torch.tensor(first).double(), torch.tensor(second).double())
    expected = torch.tensor([[naive_iou(a, b) for b in second] for a in first], dtype=torch.float64)
    torch.testing.assert_close(iou, expected, rtol=1e-12, atol=0)


@settings(max_examples=100, deadline=None)
@given(BOX, BOX)
def test_elementwise_iou_counts_squares(a: list[float], b: list[float]) -> None:
    iou = elementwise_iou(torch.tensor([a]).double(), torch.tensor([b]).double(), eps=1e-12)
    assert iou.item() == pytest.approx(naive_iou(a, b), rel=1e-9)


def test_no_boxes_give_empty_overlap() -> None:
    assert pairwise_iou(torch.zeros(0, 4), torch.zeros(3, 4)).shape == (0, 3)


def test_degenerate_boxes_are_dropped_with_their_labels() -> None:
    inf, nan = math.inf, math.nan
    boxes = torch.tensor(
        [
            [0, 0, 2, 2],
            [1, 1, 1, 5],
            [1, 1, 5, 1],
            [4, 4, 2, 2],
            [0, 0, inf, 1],
            [nan, 0, 1, 1],
            [-3, -3, -1, -1],
        ]
    )
    assert is_proper(boxes).tolist() == [True, False, False, False, False, False, True]
    labels = torch.tensor([1, -1, 99, 5, 5, 5, 0])  # of the dropped, nobody asks for the label
    before = boxes.clone(), labels.clone()
    kept, kept_labels = proper_targets({"boxes": boxes, "labels": labels}, 2, like=torch.zeros(1).double())
    assert kept.tolist() == [[0, 0, 2, 2], [-3, -3, -1, -1]] and kept.dtype == torch.float64
    assert kept_labels.tolist() == [1, 0]
    torch.testing.assert_close((boxes, labels), before, equal_nan=True)


@pytest.mark.parametrize("boxes", [torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, 4, dtype=torch.int64)])
def test_an_image_without_boxes(boxes: torch.Tensor) -> None:
    kept, labels = proper_targets({"boxes": boxes, "labels": torch.zeros(0)}, 2, like=torch.zeros(1))
    assert kept.shape == (0, 4) and labels.shape == (0,) and kept.dtype == torch.float32


def test_labels_are_checked() -> None:
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    for label in (-1, 2):
        with pytest.raises(IndexError, match="label"):
            proper_targets({"boxes": boxes, "labels": torch.tensor([label])}, 2, like=boxes)
    with pytest.raises(ValueError, match="1 boxes but 2 labels"):
        proper_targets({"boxes": boxes, "labels": torch.tensor([0, 1])}, 2, like=boxes)


def test_encoding_is_torchvisions() -> None:
    generator = torch.Generator().manual_seed(0)
    corner, size = (
        torch.rand(2, 20, 2, generator=generator) * 50,
        torch.rand(2, 20, 2, generator=generator) * 50 + 1,
    )
    boxes, anchors = torch.cat([corner, corner + size], dim=2).double()
    expected = BoxCoder((1.0, 1.0, 1.0, 1.0)).encode_single(boxes, anchors)
    torch.testing.assert_close(encode_boxes(boxes, anchors), expected, rtol=1e-10, atol=1e-12)
