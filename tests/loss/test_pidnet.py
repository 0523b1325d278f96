import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from loss.pidnet import PIDNetLoss, boundary_loss, ohem_cross_entropy

CLASSES, IGNORE = 3, 255


def gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


def scene(seed: int = 0, small: int = 4, large: int = 7) -> tuple[dict, dict]:
    """Three maps, float64, smaller than their labels; a fifth of the labels ignored."""
    generator = torch.Generator().manual_seed(seed)

    def maps(channels: int) -> Tensor:
        shape = (2, channels, small, small)
        return (3 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()

    out = {"extra_p": maps(CLASSES), "pred": maps(CLASSES), "extra_d": maps(1)}
    labels = torch.randint(0, CLASSES, (2, large, large), generator=generator)
    labels[torch.rand(2, large, large, generator=generator) < 0.2] = IGNORE
    boundary = (torch.rand(2, large, large, generator=generator) < 0.3).double()
    return out, {"target": labels, "bd_gt": boundary}


def enlarge(maps: Tensor, size: int) -> list:
    """Bilinear with aligned corners, pixel by pixel."""
    n, c, h, w = maps.shape
    grid = maps.tolist()

    def at(image: list, y: float, x: float) -> float:
        y0, x0 = min(int(y), h - 2), min(int(x), w - 2)
        fy, fx = y - y0, x - x0
        top = image[y0][x0] * (1 - fx) + image[y0][x0 + 1] * fx
        return top * (1 - fy) + (image[y0 + 1][x0] * (1 - fx) + image[y0 + 1][x0 + 1] * fx) * fy

    steps = [(i * (h - 1) / (size - 1)) for i in range(size)]
    return [[[[at(grid[i][k], y, x) for x in steps] for y in steps] for k in range(c)] for i in range(n)]


def naive(out: dict, target: dict, ohem: bool = False, keep: int = 131072, **o: float) -> dict[str, float]:
    """The formula, pixel by pixel."""
    size = target["target"].shape[1]
    labels, boundary = target["target"].tolist(), target["bd_gt"].tolist()
    p, i, d = (enlarge(out[key].detach(), size) for key in ("extra_p", "pred", "extra_d"))
    pixels = [(n, y, x) for n in range(len(labels)) for y in range(size) for x in range(size)]

    def ce(maps: list, n: int, y: int, x: int) -> float:
        logits = [maps[n][c][y][x] for c in range(CLASSES)]
        return math.log(sum(math.exp(v) for v in logits)) - logits[labels[n][y][x]]

    def main(where: list) -> float:
        where = [q for q in where if labels[q[0]][q[1]][q[2]] != IGNORE]
        if ohem and where:
            probs = sorted(math.exp(-ce(i, *q)) for q in where)
            limit = max(probs[min(keep, len(probs) - 1)], 0.9)
            where = [q for q in where if math.exp(-ce(i, *q)) < limit]
        return sum(ce(i, *q) for q in where) / max(len(where), 1)

    valid = [q for q in pixels if labels[q[0]][q[1]][q[2]] != IGNORE]
    aux = sum(ce(p, *q) for q in valid) / max(len(pixels if ohem else valid), 1)
    pos = sum(boundary[n][y][x] for n, y, x in pixels)
    bd = 0.0
    for n, y, x in pixels:
        logit, is_boundary = d[n][0][y][x], boundary[n][y][x]
        share = (len(pixels) - pos if is_boundary else pos) / len(pixels)
        bd += share * math.log(1 + math.exp(-logit if is_boundary else logit))
    near = [(n, y, x) for n, y, x in pixels if 1 / (1 + math.exp(-d[n][0][y][x])) > 0.8]
    return {
        "semantic": 0.4 * aux + main(pixels),
        "boundary": 20 * bd / len(pixels),
        "boundary_aware": main(near),
    }


@pytest.mark.parametrize("options", [{}, {"ohem": True}, {"ohem": True, "keep": 20}, {"ohem": True, "keep": 0}])
@pytest.mark.parametrize("seed", range(3))
def test_terms_are_the_naive_loop(seed: int, options: dict) -> None:
    out, target = scene(seed)
    expected = naive(out, target, options.get("ohem", False), max(options.get("keep", 131072), 1))
    loss = PIDNetLoss(ohem=options.get("ohem", False), ohem_min_kept=options.get("keep", 131072))
    total, terms = loss(out, target, return_terms=True)
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-9)
    assert total.item() == pytest.approx(sum(expected.values()), rel=1e-9)
    assert not any(term.requires_grad for term in terms.values())


def test_closed_form() -> None:
    # Logits 0: log C everywhere; half the pixels are boundary, so both weights are 1/2; sigmoid(0) < 0.8.
    out = {
        "extra_p": torch.zeros(1, 4, 2, 2),
        "pred": torch.zeros(1, 4, 2, 2),
        "extra_d": torch.zeros(1, 1, 2, 2),
    }
    target = {"target": torch.tensor([[[0, 1], [2, 3]]]), "bd_gt": torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])}
    terms = PIDNetLoss()(out, target, return_terms=True)[1]
    expected = {"semantic": 1.4 * math.log(4), "boundary": 10 * math.log(2), "boundary_aware": 0.0}
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-6)  # float32


def test_weights() -> None:
    out, target = scene()
    plain = PIDNetLoss()(out, target, return_terms=True)[1]
    loss = PIDNetLoss(balance_weights=(0.0, 2.0), sb_weight=3.0, bd_weight=5.0)
    weighted = loss(out, target, return_terms=True)[1]
    torch.testing.assert_close(weighted["boundary"], plain["boundary"] / 4)
    torch.testing.assert_close(weighted["boundary_aware"], plain["boundary_aware"] * 3)
    without = PIDNetLoss()({**out, "extra_p": None}, target, return_terms=True)[1]["semantic"]
    torch.testing.assert_close(weighted["semantic"], without * 2)
    assert PIDNetLoss(bd_thresh=0.99)(out, target, return_terms=True)[1]["boundary_aware"] != plain["boundary_aware"]
    assert PIDNetLoss(ohem=True, ohem_thresh=0.5, ohem_min_kept=1)(out, target) != PIDNetLoss(ohem=True)(out, target)


def test_no_auxiliary_map_drops_its_term() -> None:
    out, target = scene()
    absent = {key: value for key, value in out.items() if key != "extra_p"}
    for given in (absent, {**absent, "extra_p": None}):
        assert torch.equal(PIDNetLoss()(given, target), PIDNetLoss(balance_weights=(0.0, 1.0))(out, target))


def test_gradcheck() -> None:
    out, target = scene(small=3, large=4)
    for ohem in (False, True):

        def loss(p: Tensor, i: Tensor, d: Tensor, ohem: bool = ohem) -> Tensor:
            return PIDNetLoss(ohem=ohem)({"extra_p": p, "pred": i, "extra_d": d}, target)

        assert torch.autograd.gradcheck(loss, tuple(out.values()), fast_mode=True)


@pytest.mark.parametrize("ohem", [False, True])
def test_all_ignored_is_zero_with_a_graph(ohem: bool) -> None:
    # The original: NaN without OHEM, an IndexError with it.
    out, target = scene()
    target["target"] = torch.full_like(target["target"], IGNORE)
    total, terms = PIDNetLoss(ohem=ohem, bd_weight=0.0)(out, target, return_terms=True)
    total.backward()
    assert total.item() == 0.0 and terms["semantic"] == terms["boundary_aware"] == 0.0
    assert all((gradient(m) == 0).all() for m in out.values())


@pytest.mark.parametrize("ohem", [False, True])
def test_no_pixel_near_a_boundary_costs_nothing(ohem: bool) -> None:
    # As at the start of training; the original gives NaN or fails.
    out, target = scene()
    out["extra_d"].data.fill_(-3.0)
    total, terms = PIDNetLoss(ohem=ohem)(out, target, return_terms=True)
    total.backward()
    assert terms["boundary_aware"] == 0.0 and total.isfinite()
    assert all(gradient(m).isfinite().all() for m in out.values())


def test_ohem_of_one_easy_pixel_is_zero_with_a_graph() -> None:
    # The original averages over nothing: NaN.
    logits = torch.tensor([[[[9.0]], [[0.0]]]], requires_grad=True)
    loss = ohem_cross_entropy(logits, torch.tensor([[[0]]]), IGNORE, 0.9, 100)
    loss.backward()
    assert loss.item() == 0.0 and (gradient(logits) == 0).all()


def test_ohem_keeps_the_hard_pixels() -> None:
    # p = 0.2, 0.5, 0.6, 0.95 of the true class
    p = torch.tensor([0.2, 0.5, 0.6, 0.95]).double()
    logits = torch.stack([p.log(), (1 - p).log()])[None, :, None]
    labels = torch.zeros(1, 1, 4, dtype=torch.int64)

    def mean_of(count: int) -> float:
        return -p[:count].log().mean().item()

    for thresh, min_kept, kept in (
        (0.9, 100, 3),
        (0.55, 1, 2),
        (0.1, 1, 1),
        (0.1, 2, 2),
        (0.1, 100, 3),
        (0.1, 0, 1),
    ):
        loss = ohem_cross_entropy(logits, labels, IGNORE, thresh, min_kept)
        assert loss.item() == pytest.approx(mean_of(kept), rel=1e-9), (thresh, min_kept)


def test_ignored_pixels_change_nothing() -> None:
    out, target = scene(small=7)
    ignored = (target["target"] == IGNORE)[:, None]
    changed = {key: (m.detach() + 10 * ignored if key != "extra_d" else m.detach()) for key, m in out.items()}
    torch.testing.assert_close(PIDNetLoss()(changed, target), PIDNetLoss()(out, target).detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("ohem", [False, True])
def test_auxiliary_average_with_and_without_ohem(ohem: bool) -> None:
    # With OHEM the official training averages the auxiliary map over all pixels, ignored ones as 0.
    out, target = scene(small=7)
    values = F.cross_entropy(out["extra_p"], target["target"], ignore_index=IGNORE, reduction="none")
    expected = values.mean() if ohem else values.sum() / (target["target"] != IGNORE).sum()
    loss = PIDNetLoss(ohem=ohem, balance_weights=(1.0, 0.0))
    torch.testing.assert_close(loss(out, target, return_terms=True)[1]["semantic"], expected.detach())


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_boundary_map_of_one_value_costs_nothing(value: float) -> None:
    logits = torch.randn(1, 1, 3, 3, requires_grad=True)
    loss = boundary_loss(logits, torch.full((1, 3, 3), value))
    loss.backward()
    assert loss.item() == 0.0 and (gradient(logits) == 0).all()


def test_boundary_maps_of_any_type_and_other_values() -> None:
    out, target = scene()
    expected = PIDNetLoss()(out, target)
    for dtype in (torch.uint8, torch.bool, torch.int64, torch.float32):  # the original fails for uint8
        assert torch.equal(PIDNetLoss()(out, {**target, "bd_gt": target["bd_gt"].to(dtype)}), expected)
    logits = torch.randn(1, 1, 1, 4, dtype=torch.float64)
    of_two = boundary_loss(logits[..., :2], torch.tensor([[[1.0, 0.0]]]))
    others = boundary_loss(logits, torch.tensor([[[1.0, 0.0, 255.0, math.nan]]]))
    torch.testing.assert_close(others, of_two / 2)  # weight 0, but counted in the mean over all pixels


def test_inputs_are_not_changed() -> None:
    # The original overwrites the entries of ``out`` with the resized maps.
    out, target = scene()
    kept = dict(out), dict(target), [x.detach().clone() for x in (*out.values(), *target.values())]
    PIDNetLoss()(out, target)
    PIDNetLoss(ohem=True)(out, target)
    assert all(out[key] is value for key, value in kept[0].items()) and out.keys() == kept[0].keys()
    assert all(target[key] is value for key, value in kept[1].items())
    assert all(torch.equal(a, b) for a, b in zip((*out.values(), *target.values()), kept[2], strict=True))


@pytest.mark.parametrize("ohem", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, ohem: bool) -> None:
    out, target = scene()
    half = {key: (m.detach() * 3000).to(dtype).requires_grad_() for key, m in out.items()}
    loss = PIDNetLoss(ohem=ohem)(half, target)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert all(gradient(m).isfinite().all() for m in half.values())


@pytest.mark.parametrize("large", [4, 8])
def test_infinite_logits_are_sure_ones(large: int) -> None:
    # as large as the labels, or resized, where a weight of 0 meets inf
    edge = torch.tensor([-1.0, -1.0, 1.0, 1.0])[:, None].expand(4, 4)
    impossible = torch.stack([edge > 0, edge < 0])[None]  # which class
    out = {
        "pred": torch.where(impossible, -torch.inf, 0.0).requires_grad_(),
        "extra_d": (edge[None, None] * torch.inf).requires_grad_(),
    }
    right = (torch.arange(large) >= large // 2).long()[:, None].expand(1, large, large)
    target = {"target": right, "bd_gt": right}
    total, terms = PIDNetLoss()(out, target, return_terms=True)
    total.backward()
    assert terms["boundary"] == 0 and terms["semantic"] == terms["boundary_aware"] == 0
    assert all(gradient(m).isfinite().all() for m in out.values())


def test_an_empty_batch_is_zero_with_a_graph() -> None:
    out = {key: torch.zeros(0, c, 4, 4, requires_grad=True) for key, c in (("extra_p", 2), ("pred", 2), ("extra_d", 1))}
    target = {"target": torch.zeros(0, 4, 4, dtype=torch.int64), "bd_gt": torch.zeros(0, 4, 4)}
    for ohem in (False, True):
        loss = PIDNetLoss(ohem=ohem)(out, target)
        loss.backward()
        assert loss.item() == 0.0 and all(m.grad is not None for m in out.values())


def test_ignore_index() -> None:
    out, target = scene()
    other = {**target, "target": torch.where(target["target"] == IGNORE, -1, target["target"])}
    assert torch.equal(PIDNetLoss(ignore_index=-1)(out, other), PIDNetLoss()(out, target))
    with pytest.raises(IndexError):
        PIDNetLoss()(out, other)


def test_bad_arguments() -> None:
    with pytest.raises(TypeError):
        PIDNetLoss(ignore_label=255)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="balance_weights"):
        PIDNetLoss(balance_weights=(1.0,))  # type: ignore[arg-type]
    out, target = scene()
    with pytest.raises(ValueError, match="extra_p"):
        PIDNetLoss()({**out, "pred": None}, target)
    with pytest.raises(ValueError, match="differ"):
        PIDNetLoss()(out, {**target, "bd_gt": target["bd_gt"].flatten(1)})  # as many numbers in another layout
