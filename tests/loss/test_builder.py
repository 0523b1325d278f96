import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from loss import LOSS_REGISTRY, LossFactory, build_loss
from loss.cross_entropy import CrossEntropyLoss
from loss.loss import custum_loss

# the example of the trainer's document
DOCUMENT = """
model:
  losses:
    - criterion: cross_entropy
      label_smoothing: 0.1
      weight: ~
    - criterion: focal_loss
      alpha: 0.25
      gamma: 2.0
      weight: 0.5
"""


def pair() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, generator=generator, dtype=torch.float64).requires_grad_()
    return {"pred": logits}, {"target": torch.tensor([0, 2, 1, 1])}


def captioning(steps: int = 5, words: int = 7) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the captioning trainer gives: three captions, the last without a word."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, words, (3, steps), generator=generator)
    labels[0, 3:], labels[2] = -100, -100
    out = {
        "pred": torch.randn(3, steps, words, generator=generator, dtype=torch.float64).requires_grad_(),
        "attention": torch.randn(3, steps, 4, generator=generator, dtype=torch.float64).softmax(-1),
        "region_count": 4,
    }
    return out, {"target": labels, "weight": torch.tensor([2, 1, 3])}


def losses(*criteria: str, **options: Any) -> LossFactory:
    return LossFactory([{"criterion": criterion} for criterion in criteria], **options)


def test_the_documents_example() -> None:
    yaml = pytest.importorskip("yaml")
    out, target = pair()
    result = build_loss(yaml.safe_load(DOCUMENT))(out, target)
    ce = F.cross_entropy(out["pred"], target["target"], label_smoothing=0.1)
    focal = LOSS_REGISTRY["focal_loss"](alpha=0.25, gamma=2.0)(out["pred"], target["target"])
    torch.testing.assert_close(result.total, ce + 0.5 * focal)
    torch.testing.assert_close(result.terms, {"cross_entropy": ce.detach(), "focal_loss": focal.detach()})
    torch.testing.assert_close(result.weighted, {"cross_entropy": ce.detach(), "focal_loss": 0.5 * focal.detach()})
    result.total.backward()
    assert out["pred"].grad is not None
    assert not any(term.requires_grad for term in (*result.terms.values(), *result.weighted.values()))


def test_duplicates_are_both_counted_under_names_of_their_own() -> None:
    out, target = pair()
    entries: list[dict[str, Any]] = [
        {"criterion": "cross_entropy"},
        {"criterion": "cross_entropy", "label_smoothing": 0.5},
        {"criterion": "cross_entropy", "name": "smooth", "label_smoothing": 1.0, "weight": 2},
    ]
    result = build_loss(entries)(out, target)
    expected = [F.cross_entropy(out["pred"], target["target"], label_smoothing=e) for e in (0.0, 0.5, 1.0)]
    assert list(result.terms) == ["cross_entropy", "cross_entropy_1", "smooth"]
    torch.testing.assert_close(result.total, expected[0] + expected[1] + 2 * expected[2])


def test_names_do_not_collide() -> None:
    taken = {"criterion": "cross_entropy", "name": "cross_entropy_1"}
    plain = {"criterion": "cross_entropy"}
    assert LossFactory([plain, plain, taken]).names == ["cross_entropy", "cross_entropy_2", "cross_entropy_1"]
    first = {"criterion": "cross_entropy", "name": "cross_entropy"}
    assert LossFactory([plain, first]).names == ["cross_entropy_1", "cross_entropy"]
    assert LossFactory([{"criterion": "cross_entropy", "name": None}]).names == ["cross_entropy"]
    with pytest.raises(ValueError, match="two losses have the name 'ce'"):
        LossFactory([{"criterion": "cross_entropy", "name": "ce"}] * 2)
    for name in (3, "", True):
        with pytest.raises(ValueError, match="name"):
            LossFactory([{"criterion": "cross_entropy", "name": name}])


@pytest.mark.parametrize(("weight", "factor"), [({}, 1.0), ({"weight": None}, 1.0), ({"weight": 0}, 0.0)])
def test_absent_weights_are_1_and_0_stays_0(weight: dict[str, Any], factor: float) -> None:
    out, target = pair()
    result = LossFactory([{"criterion": "cross_entropy", **weight}])(out, target)
    result.total.backward()
    raw = F.cross_entropy(out["pred"], target["target"]).detach()
    torch.testing.assert_close(result.terms["cross_entropy"], raw)
    torch.testing.assert_close(result.total.detach(), factor * raw)


@pytest.mark.parametrize("weight", ["1", True, False, math.nan, math.inf, [1.0], torch.tensor(1.0)])
def test_a_weight_that_is_no_number_is_refused(weight: object) -> None:
    with pytest.raises(ValueError, match="the weight of cross_entropy must be a finite number"):
        LossFactory([{"criterion": "cross_entropy", "weight": weight}])


def test_unknown_criteria_and_keys_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"cross_entropi.*cross_entropy, ctc_loss, custum_loss"):
        losses("cross_entropi")
    with pytest.raises(ValueError, match=r"'label_smooth'; known: .*label_smoothing"):
        LossFactory([{"criterion": "cross_entropy", "label_smooth": 0.1}])
    with pytest.raises(ValueError, match="unknown criterion None"):
        LossFactory([{"weight": 1.0}])
    nothings: list[Any] = [[], {}, "cross_entropy", None]
    for nothing in nothings:
        with pytest.raises(ValueError, match="losses must be a list"):
            LossFactory(nothing)
    configs: list[dict[str, Any]] = [{}, {"model": {}}, {"model": None}]
    for cfg in configs:
        with pytest.raises(ValueError, match=r"model\.losses"):
            build_loss(cfg)


def test_a_loss_of_ones_own_says_what_it_reads_and_gives_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(torch.nn.Module):
        def forward(self, pred: torch.Tensor) -> torch.Tensor:
            return pred.mean(0)

    monkeypatch.setitem(LOSS_REGISTRY, "own", Own)
    with pytest.raises(ValueError, match="own: its class lacks `reads`"):
        build_loss([{"criterion": "own"}])
    Own.reads = {"pred": "out.pred"}  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"own gives a tensor of shape \[3\]; reduce it"):
        build_loss([{"criterion": "own"}])({"pred": torch.zeros(2, 3)}, {})


def test_classes_of_a_head_lie_where_they_do_in_pictures() -> None:
    logits, labels = torch.randn(2, 3, 4, 5), torch.randint(3, (2, 4, 5))
    factory = build_loss([{"criterion": "cross_entropy", "head": "segmentation"}], class_dim=-1)
    found = factory({"segmentation": {"pred": logits}}, {"segmentation": {"target": labels}}).total
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(logits, labels))


def test_a_loss_that_is_not_reduced_is_refused() -> None:
    with pytest.raises(ValueError, match="focal_loss with reduction 'none'"):
        build_loss([{"criterion": "focal_loss", "reduction": "none"}])


def test_the_config_and_the_inputs_are_not_changed() -> None:
    cfg = {"model": {"losses": [{"criterion": "cross_entropy", "weight": None}, {"criterion": "custum_loss"}]}}
    before = copy.deepcopy(cfg)
    out, target = captioning()
    keys = set(out), set(target)
    build_loss(cfg, class_weight=[1.0] * 7)(out, target, token_count=3)
    assert cfg == before
    assert (set(out), set(target)) == keys


def test_class_weight_reaches_cross_entropy_alone() -> None:
    out, target = pair()
    class_weight = [1.0, 2.0, 0.5]
    result = losses("cross_entropy", "softmax_focal_loss", class_weight=class_weight)(out, target)
    plain = losses("cross_entropy", "softmax_focal_loss")(out, target)
    expected = F.cross_entropy(out["pred"], target["target"], weight=torch.tensor(class_weight).double())
    torch.testing.assert_close(result.terms["cross_entropy"], expected.detach())
    assert result.terms["softmax_focal_loss"] == plain.terms["softmax_focal_loss"]
    own = LossFactory([{"criterion": "cross_entropy", "class_weight": [1.0, 1.0, 1.0]}], class_weight=class_weight)
    assert own(out, target).total == plain.terms["cross_entropy"]


def test_the_weight_of_an_entry_is_the_losss_and_not_the_classes() -> None:
    (loss,) = LossFactory([{"criterion": "cross_entropy", "weight": 3.0}]).losses
    assert isinstance(loss, CrossEntropyLoss)
    assert loss.class_weight is None


def test_captioning_reads_weights_masks_and_counts() -> None:
    out, target = captioning()
    factory = LossFactory(
        [
            {"criterion": "custum_loss", "name": "caption", "beta": 0.5, "weight": 2.0},
            {"criterion": "cross_entropy"},
        ]
    )
    target["region_mask"] = torch.tensor([[True, True, True, False]]).expand(3, -1)
    result = factory(out, target)
    total, terms = LOSS_REGISTRY["custum_loss"](beta=0.5)(
        out["pred"],
        target["target"],
        out["attention"],
        4,
        weight=target["weight"],
        region_mask=target["region_mask"],
        return_terms=True,
    )
    torch.testing.assert_close(result.terms["caption"], total.detach())
    torch.testing.assert_close(result.parts, {f"caption/{name}": term for name, term in terms.items()})
    torch.testing.assert_close(result.weighted["caption"], 2 * total.detach())
    torch.testing.assert_close(result.terms["cross_entropy"], terms["ce"])


def test_parts_of_a_batch_with_the_counts_of_the_whole_add_up() -> None:
    out, target = captioning()
    factory = losses("custum_loss", "cross_entropy", "softmax_focal_loss", "focal_loss", class_dim=-1)
    whole = factory(out, target)
    counts = {"token_count": 2 * 3 + 5, "caption_count": 2 + 1}
    total = torch.zeros((), dtype=torch.float64)
    for rows in (slice(0, 1), slice(1, 3)):
        part_out = {**out, "pred": out["pred"][rows], "attention": out["attention"][rows]}
        total = total + factory(part_out, {k: v[rows] for k, v in target.items()}, **counts).total
    torch.testing.assert_close(total, whole.total)
    torch.testing.assert_close(*[torch.autograd.grad(x, out["pred"]) for x in (total, whole.total)])


@pytest.mark.parametrize("criterion", ["cross_entropy", "focal_loss", "softmax_focal_loss"])
def test_captions_of_as_many_steps_as_words(criterion: str) -> None:
    out, target = captioning(steps=7, words=7)
    flat_out, flat_target = {"pred": out["pred"].flatten(0, 1)}, {"target": target["target"].flatten()}
    del target["weight"]
    expected = losses(criterion)(flat_out, flat_target).total
    torch.testing.assert_close(losses(criterion, class_dim=-1)(out, target).total, expected)
    axis_1 = losses(criterion)(out, target).total  # without it axis 1 is read as the classes
    assert (axis_1 - expected).abs() > 1e-3


def test_an_argument_whose_name_is_taken_has_an_underscore() -> None:
    images = {"images": torch.ones(1, 3, 2, 2)}
    entry = {"criterion": "perceptual_loss", "feature_extractor": lambda image: [image]}
    for distance, expected in (("l1", 3.0), ("mse", 9.0)):
        factory = LossFactory([{**entry, "criterion_": distance}])
        assert factory(images, {"images": 4 * images["images"]}).total == expected


def test_missing_names_what_each_loss_needs() -> None:
    factory = LossFactory(
        [
            {"criterion": "cross_entropy"},
            {"criterion": "yolox_loss", "name": "boxes"},
            {"criterion": "kl_distillation"},
            {"criterion": "triplet_loss", "mining": "all"},
        ]
    )
    lines = factory.missing({"pred"}, {"target"})
    assert lines == [
        "boxes (yolox_loss) needs target.gt, which is not there",
        "kl_distillation needs target.teacher_logits, which is not there",
        "triplet_loss needs out.embeddings and target.labels, which are not there",
    ]
    assert losses("cross_entropy").missing({"pred"}, {"target"}) == []
    with pytest.raises(KeyError, match="teacher_logits"):
        losses("kl_distillation")({"pred": torch.zeros(1, 2)}, {})


def test_a_head_has_mappings_of_its_own() -> None:
    words, concepts = torch.randn(3, 4, 5), torch.randn(2, 6)
    out = {"pred": words, "concepts": {"pred": concepts}}
    target = {"target": torch.randint(5, (3, 4)), "concepts": {"target": torch.rand(2, 6)}}
    focal = {"criterion": "focal_loss", "gamma": 1.0}
    both = LossFactory([{"criterion": "cross_entropy"}, {**focal, "head": "concepts"}], class_dim=-1)
    assert both.missing({"pred"}, {"target"}) == [
        "focal_loss needs out.concepts.pred and target.concepts.target, which are not there"
    ]
    result = both(out, target)
    alone = LossFactory([focal])({"pred": concepts}, target["concepts"]).total
    torch.testing.assert_close(result.terms["focal_loss"], alone)
    torch.testing.assert_close(result.terms["cross_entropy"], losses("cross_entropy", class_dim=-1)(out, target).total)
    with pytest.raises(ValueError, match="head of focal_loss must be a word"):
        LossFactory([{**focal, "head": 3}])


def test_the_shares_of_a_heads_batches_add_up_to_the_whole() -> None:
    pred, target = torch.randn(6, 4), torch.rand(6, 4)
    factory = LossFactory([{"criterion": "focal_loss", "head": "concepts"}])
    whole = factory({"concepts": {"pred": pred}}, {"concepts": {"target": target}}).total
    parts = []
    for rows in ([0, 1, 2, 3], [4, 5]):
        wanted = {"target": target[rows], "share": len(rows) / 6}
        parts.append(factory({"concepts": {"pred": pred[rows]}}, {"concepts": wanted}).total)
    torch.testing.assert_close(sum(parts), whole)


def test_every_kind_of_call() -> None:
    x, labels = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 0, 1, 1])
    entries: list[dict[str, Any]] = [
        {"criterion": "triplet_loss", "mining": "batch_hard"},
        {"criterion": "kl_distillation"},
        {"criterion": "rlhf_kl", "estimator": "k2"},
        {"criterion": "policy_kl"},
        {"criterion": "alignment_kl"},
        {"criterion": "vae_kl"},
        {"criterion": "gan_loss", "gan_mode": "lsgan"},
    ]
    out = {"embeddings": x, "pred": x, "logprobs": x, "policy": x, "mu": x, "logvar": x}
    out |= {"image_embeddings": x, "text_embeddings": 2 * x}
    target = {"labels": labels, "teacher_logits": x.detach() + 1, "ref_logprobs": x.detach(), "old_policy": x}
    result = build_loss(entries)(out, target, target_is_real=True)
    assert list(result.terms) == [entry["criterion"] for entry in entries]
    torch.testing.assert_close(result.total.detach(), torch.stack(list(result.weighted.values())).sum())
    result.total.backward()


def test_set_epoch_reaches_those_that_need_it() -> None:
    factory = LossFactory([{"criterion": "cross_entropy"}, {"criterion": "yolox_loss", "l1_activate_epoch": 3}])
    torch.manual_seed(0)
    out = {"pred": [torch.randn(1, 7, 4, 4)]}
    target = {
        "gt": [{"boxes": torch.tensor([[2.0, 2.0, 20.0, 20.0]]), "labels": torch.tensor([1])}],
        "img_size": 32,
        "num_classes": 2,
    }
    yolox = LossFactory([{"criterion": "yolox_loss", "l1_activate_epoch": 3}])
    on = []
    for epoch in (2, 3, 4):
        yolox.set_epoch(epoch)
        on.append(float(yolox(out, target).parts["yolox_loss/l1"]) > 0)
    assert on == [False, True, True]
    factory.set_epoch(3)  # cross_entropy has no epoch


def test_a_detached_graph_is_not_hidden() -> None:
    out, target = pair()
    total = losses("cross_entropy")({"pred": out["pred"].detach()}, target).total
    assert not total.requires_grad
    with pytest.raises(RuntimeError, match="does not require grad"):
        total.backward()


def test_nothing_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> float:
        raise AssertionError("a loss was read on the host")

    out, target = captioning()
    factory = losses("custum_loss", "cross_entropy", "softmax_focal_loss")
    monkeypatch.setattr(Tensor, "item", refuse)
    monkeypatch.setattr(Tensor, "__float__", refuse)
    monkeypatch.setattr(Tensor, "__bool__", refuse)
    monkeypatch.setattr(Tensor, "tolist", refuse)
    factory(out, target)


def test_it_moves_and_saves_like_a_module() -> None:
    factory = losses("cross_entropy", class_weight=[1.0, 2.0, 1.0]).to(torch.float64)
    assert next(factory.buffers()).dtype == torch.float64
    assert not factory.state_dict()  # class weights come from the data, not from a checkpoint


def test_dsr_and_avr_are_told_without_their_weights() -> None:
    attention = torch.rand(2, 3, 4).softmax(-1)
    out = {"pred": torch.randn(2, 3, 5), "attention": attention, "region_count": 4}
    target = {"target": torch.randint(5, (2, 3))}
    entry = {"criterion": "custum_loss", "beta": 0.25, "gamma": -0.5, "weight": 3.0}
    result = build_loss([entry])(out, target)
    raw = custum_loss()
    torch.testing.assert_close(result.raw["custum_loss/dsr"], raw.DSR(attention))
    torch.testing.assert_close(result.raw["custum_loss/avr"], raw.AVR(attention, 4))
    torch.testing.assert_close(result.parts["custum_loss/avr"], -0.5 * raw.AVR(attention, 4))
    assert "custum_loss/dsr" not in build_loss([entry | {"beta": 0.0}])(out, target).raw
    assert build_loss([entry | {"use_avr": False}])(out, target).raw.keys() == {"custum_loss/dsr"}


def test_the_parts_of_a_heads_loss_have_its_share() -> None:
    maps = {"extra_p": torch.randn(2, 3, 4, 4), "pred": torch.randn(2, 3, 4, 4), "extra_d": torch.randn(2, 1, 4, 4)}
    masks = torch.randint(3, (2, 4, 4))
    wanted = {"target": masks, "bd_gt": (masks == 1).float()}
    factory = LossFactory([{"criterion": "pidnet_loss", "head": "cover"}])
    whole = factory({"cover": maps}, {"cover": wanted})
    share = factory({"cover": maps}, {"cover": {**wanted, "share": 0.25}})
    torch.testing.assert_close(torch.stack(list(share.parts.values())).sum(), share.terms["pidnet_loss"])
    torch.testing.assert_close(share.terms["pidnet_loss"], 0.25 * whole.terms["pidnet_loss"])


def test_what_is_only_watched_may_be_infinite() -> None:
    watched: dict[str, Any] = {"criterion": "cross_entropy", "name": "watched", "weight": 0}
    entries = [{"criterion": "cross_entropy"}, watched]
    logits = torch.tensor([[0.0, -torch.inf]], requires_grad=True)
    result = LossFactory(entries)({"pred": logits}, {"target": torch.tensor([0])})
    assert result.total == result.terms["cross_entropy"] == 0
    result = LossFactory(entries[1:])({"pred": logits}, {"target": torch.tensor([1])})
    result.total.backward()
    assert result.total == 0 and result.terms["watched"] == torch.inf
    assert logits.grad is not None and logits.grad.tolist() == [[0, 0]]
