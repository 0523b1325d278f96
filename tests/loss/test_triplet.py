import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from loss.triplet import TripletLoss

LABELS = torch.tensor([0, 0, 1, 1, 0, 2, 1])  # the only 2 is nobody's positive


def numbers(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


def naive_distance(x: list[float], y: list[float], kind: str, p: float) -> float:
    if kind == "l2":
        return sum(abs(a - b) ** p for a, b in zip(x, y, strict=True)) ** (1 / p)
    dot = sum(a * b for a, b in zip(x, y, strict=True))
    return 1 - dot / math.sqrt(sum(a * a for a in x)) / math.sqrt(sum(b * b for b in y))


def naive(
    embeddings: Tensor, mining: str, margin: float, kind: str = "l2", p: float = 2, swap: bool = False
) -> list[float]:
    """The losses of the mined triplets."""
    rows, labels = embeddings.tolist(), LABELS.tolist()
    d = [[naive_distance(x, y, kind, p) for y in rows] for x in rows]
    triplets = [
        (a, i, n)
        for a, i, n in itertools.product(range(len(rows)), repeat=3)
        if a != i and labels[a] == labels[i] != labels[n]
    ]
    if mining == "batch_hard":
        anchors = sorted({a for a, _, _ in triplets})
        triplets = [
            (
                a,
                max((i for b, i, _ in triplets if b == a), key=lambda i: d[a][i]),
                min((n for b, _, n in triplets if b == a), key=lambda n: d[a][n]),
            )
            for a in anchors
        ]
    if mining == "semihard":
        triplets = [(a, i, n) for a, i, n in triplets if 0 < d[a][n] - d[a][i] <= margin]
    return [max(d[a][i] - (min(d[a][n], d[i][n]) if swap else d[a][n]) + margin, 0) for a, i, n in triplets]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("p", [1, 2, 3])
def test_given_triplets_are_torchs(reduction: str, swap: bool, p: int) -> None:
    triplet = a, positive, n = numbers(6, 4), numbers(6, 4, seed=1), numbers(6, 4, seed=2)
    ours = TripletLoss(0.7, p=p, swap=swap, reduction=reduction)(*triplet)
    torchs = F.triplet_margin_loss(a, positive, n, margin=0.7, p=p, swap=swap, reduction=reduction)
    torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(x.sum(), triplet) for x in (ours, torchs)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("swap", [False, True])
def test_given_triplets_with_cosine_are_torchs(swap: bool) -> None:
    triplet = [numbers(6, 4, seed=seed) for seed in range(3)]
    expected = F.triplet_margin_with_distance_loss(
        *triplet, distance_function=lambda x, y: 1 - F.cosine_similarity(x, y), margin=0.3, swap=swap
    )
    torch.testing.assert_close(TripletLoss(0.3, "cosine", swap=swap)(*triplet), expected)


@pytest.mark.parametrize("mining", ["all", "batch_hard", "semihard"])
@pytest.mark.parametrize("kind", ["l2", "cosine"])
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("margin", [0.2, 1.0])
def test_mining(mining: str, kind: str, swap: bool, margin: float) -> None:
    embeddings = numbers(7, 3)
    values = naive(embeddings, mining, margin, kind, swap=swap)
    options = {"distance": kind, "swap": swap, "mining": mining}
    none = TripletLoss(margin, reduction="none", **options)(embeddings, LABELS)  # type: ignore[arg-type]
    assert sorted(none.tolist()) == pytest.approx(sorted(values), rel=1e-9, abs=1e-12)
    mean = TripletLoss(margin, **options)(embeddings, LABELS)  # type: ignore[arg-type]
    assert mean.item() == pytest.approx(sum(values) / max(len(values), 1), rel=1e-9)
    positive = [value for value in values if value > 0]
    nonzero = TripletLoss(margin, average="nonzero", **options)(embeddings, LABELS)  # type: ignore[arg-type]
    assert nonzero.item() == pytest.approx(sum(positive) / max(len(positive), 1), rel=1e-9)
    torch.autograd.gradcheck(lambda x: TripletLoss(margin, **options)(x, LABELS), (embeddings,))  # type: ignore[arg-type]


@pytest.mark.parametrize("mining", ["all", "batch_hard", "semihard"])
def test_mining_with_another_norm(mining: str) -> None:
    embeddings = numbers(7, 3)
    values = naive(embeddings, mining, 1.0, p=3)
    loss = TripletLoss(p=3, mining=mining)(embeddings, LABELS)
    assert loss.item() == pytest.approx(sum(values) / len(values), rel=1e-9)


@pytest.mark.parametrize("mining", ["all", "batch_hard", "semihard"])
def test_order_does_not_matter_nor_what_the_labels_are_called(mining: str) -> None:
    embeddings, order = numbers(7, 3), torch.tensor([3, 6, 0, 5, 1, 2, 4])
    loss = TripletLoss(mining=mining)
    torch.testing.assert_close(loss(embeddings[order], 9 - LABELS[order]), loss(embeddings, LABELS))


def test_averages_and_normalisation_differ_and_are_chosen() -> None:
    # the quirk: torch's defaults and metric-learning's give different numbers on one batch
    embeddings = numbers(7, 3)
    torchs_way = TripletLoss(0.05, mining="all")
    metric_learnings_way = TripletLoss(0.05, mining="all", average="nonzero", normalize=True)
    unit = embeddings / embeddings.norm(dim=1, keepdim=True)
    positive = [value for value in naive(unit, "all", 0.05) if value > 0]
    assert metric_learnings_way(embeddings, LABELS).item() == pytest.approx(sum(positive) / len(positive))
    assert torchs_way(embeddings, LABELS).item() == pytest.approx(
        sum(values := naive(embeddings, "all", 0.05)) / len(values)
    )


def test_soft_margin_has_no_margin() -> None:
    a, p, n = (numbers(4, 3, seed=seed) for seed in range(3))
    difference = TripletLoss(1e3, reduction="none")(a, p, n) - 1e3
    expected = torch.tensor([math.log1p(math.exp(x)) for x in difference.tolist()]).double()
    # 1e3 went in and out again: 1e-13 is lost
    torch.testing.assert_close(TripletLoss(soft_margin=True, reduction="none")(a, p, n).detach(), expected)


def test_normalised_embeddings_have_no_length() -> None:
    triplet = [numbers(4, 3, seed=seed) for seed in range(3)]
    loss = TripletLoss(normalize=True)
    torch.testing.assert_close(loss(*[5 * x for x in triplet]), loss(*triplet))


@pytest.mark.parametrize("mining", ["all", "batch_hard"])
@pytest.mark.parametrize("kind", ["l2", "cosine"])
def test_collapsed_embeddings_have_a_finite_gradient(mining: str, kind: str) -> None:
    embeddings = torch.ones(7, 3, requires_grad=True)
    loss = TripletLoss(0.5, kind, mining=mining)(embeddings, LABELS)
    loss.backward()
    assert loss.item() == pytest.approx(0.5, abs=1e-6)
    assert gradient(embeddings).isfinite().all()
    if kind == "l2":
        assert gradient(embeddings).eq(0).all()


def test_small_distances_far_from_the_origin_are_exact() -> None:
    # cdist's matrix product would leave no digit of 1e-3 at 1e3
    embeddings = torch.full((60, 2), 1000.0)
    embeddings[:, 0] += torch.arange(60) / 1024
    labels = torch.arange(60) // 2
    for mining in ("all", "batch_hard"):
        values = TripletLoss(0.01, mining=mining, reduction="none")(embeddings, labels)
        assert values.max().item() == pytest.approx(0.01, rel=1e-6)  # neighbours: both 1 / 1024 away


@pytest.mark.parametrize("mining", ["all", "batch_hard", "semihard"])
@pytest.mark.parametrize("labels", [[], [1], [0, 1, 2], [3, 3, 3]])
def test_no_triplet_is_zero_with_a_graph(mining: str, labels: list[int]) -> None:
    embeddings = torch.ones(len(labels), 4, requires_grad=True)
    for reduction in ("mean", "sum", "none"):
        embeddings.grad = None
        loss = TripletLoss(mining=mining, reduction=reduction)(embeddings, torch.tensor(labels)).sum()
        loss.backward()
        assert loss == 0
        assert gradient(embeddings).eq(0).all()


def test_no_given_triplet_or_none_above_0_is_zero_with_a_graph() -> None:
    empty = torch.zeros(0, 3, requires_grad=True)
    loss = TripletLoss()(empty, empty, empty)
    loss.backward()
    assert loss == 0
    a = torch.zeros(2, 3, requires_grad=True)
    loss = TripletLoss(average="nonzero")(a, torch.zeros(2, 3), torch.full((2, 3), 9.0))
    loss.backward()
    assert loss == 0
    assert gradient(a).eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mining", ["all", "batch_hard", "semihard"])
def test_halves_are_upcast(dtype: torch.dtype, mining: str) -> None:
    embeddings = (2e4 * numbers(7, 3).detach()).to(dtype).requires_grad_()
    loss = TripletLoss(mining=mining, margin=1e4)(embeddings, LABELS)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert gradient(embeddings).isfinite().all()


@pytest.mark.parametrize("kind", ["l2", "cosine"])
@pytest.mark.parametrize("mining", ["all", "batch_hard"])
def test_autocast_costs_no_precision(kind: str, mining: str) -> None:
    embeddings, loss = numbers(7, 32).float(), TripletLoss(distance=kind, mining=mining)
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(embeddings, LABELS)
    torch.testing.assert_close(inside, loss(embeddings, LABELS), rtol=0, atol=0)


def test_gradcheck_of_given_triplets() -> None:
    triplet = tuple(numbers(3, 4, seed=seed) for seed in range(3))
    for options in ({}, {"swap": True}, {"soft_margin": True}, {"distance": "cosine"}, {"normalize": True}):
        torch.autograd.gradcheck(TripletLoss(**options), triplet)


def test_mining_has_its_own_names() -> None:
    embeddings, loss = numbers(7, 4), TripletLoss(mining="all")
    assert loss(embeddings=embeddings, labels=LABELS) == loss(embeddings, LABELS)
    a, p, n = (numbers(3, 4, seed=seed) for seed in range(3))
    assert TripletLoss()(anchor=a, positive=p, negative=n) == TripletLoss()(a, p, n)


def test_bad_input() -> None:
    x = torch.zeros(3, 2)
    with pytest.raises(TypeError, match="missing"):
        TripletLoss(mining="all")(x)
    with pytest.raises(TypeError, match="without mining"):
        TripletLoss()(x, x)
    with pytest.raises(TypeError, match="with it embeddings, labels"):
        TripletLoss(mining="all")(x, x, x)
    with pytest.raises(ValueError, match="one shape"):
        TripletLoss()(x, x, torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"\[B, D\] and \[B\]"):
        TripletLoss(mining="all")(x, torch.zeros(2))
    for options in ({"mining": "hard"}, {"distance": "l1"}, {"average": "some"}, {"reduction": "avg"}):
        with pytest.raises(ValueError, match="must be one of"):
            TripletLoss(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("mining", ["all", "batch_hard", "semihard"])
def test_views_of_one_thing_have_its_label(mining: str) -> None:
    views, labels = torch.randn(3, 5, 4), torch.tensor([0, 1, 1, 2, 3])
    loss = TripletLoss(mining=mining)
    expected = loss(torch.cat(list(views)), torch.cat([labels] * 3))
    assert torch.equal(loss(views, labels), expected) and expected > 0
    with pytest.raises(ValueError, match="must be"):
        loss(views, labels[:4])
