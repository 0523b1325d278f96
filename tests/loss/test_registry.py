"""What holds for every loss of the registry: its docstring, and the common contract."""

import copy
import doctest
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import loss as package
from data.loading import moved
from loss import LOSS_REGISTRY, LossFactory, build_loss

SECTIONS = ["Args", "Shape", "Reference", "Example"]
DOCUMENTED = [
    *("custum_loss", "cross_entropy", "focal_loss", "yolox_loss", "retinanet_loss", "pidnet_loss"),
    *("softmax_focal_loss", "gan_loss", "kl_distillation", "vae_kl", "policy_kl", "rlhf_kl", "alignment_kl"),
    *("iou_loss", "box_iou_loss", "dice_loss", "perceptual_loss", "ctc_loss", "triplet_loss"),
]
every_loss = pytest.mark.parametrize("criterion", DOCUMENTED)


def test_the_registry_holds_the_documented_losses() -> None:
    assert sorted(LOSS_REGISTRY) == sorted(DOCUMENTED)


# docstrings


@every_loss
def test_docstring_has_the_order_formula_args_shape_reference_example(criterion: str) -> None:
    doc = inspect.getdoc(LOSS_REGISTRY[criterion]) or ""
    places = [doc.find(f"\n{section}:\n") for section in SECTIONS]
    assert -1 not in places, dict(zip(SECTIONS, places, strict=True))
    assert places == sorted(places)
    assert re.search(r"^ +(loss|vanilla:|full:|L\S*) +.*= ", doc[: places[0]], re.M), "no formula before Args"
    arguments = list(inspect.signature(LOSS_REGISTRY[criterion]).parameters)
    args = doc[places[0] : places[1]]
    for argument in arguments:
        assert re.search(rf"\b{argument}\b.*:", args), f"{argument} is not among Args"
    assert re.search(r"\d{4}", doc[places[2] : places[3]]), "a reference has a year"


@every_loss
def test_docstring_example_runs_and_shows_a_value(criterion: str) -> None:
    cls = LOSS_REGISTRY[criterion]
    module = inspect.getmodule(cls)
    tests = [
        test
        for test in doctest.DocTestFinder(recurse=False).find(cls, globs={**vars(module), cls.__name__: cls})
        if test.examples
    ]
    assert tests, "no example"
    assert any("tensor(" in example.want for test in tests for example in test.examples)
    for test in tests:
        assert doctest.DocTestRunner().run(test).failed == 0


@every_loss
def test_the_readmes_table_has_its_row_and_every_key(criterion: str) -> None:
    readme = (Path(package.__file__).parent / "README.md").read_text()
    rows = [line for line in readme.splitlines() if line.startswith(f"| `{criterion}` |")]
    assert len(rows) == 1
    cls: Any = LOSS_REGISTRY[criterion]
    for path in cls.reads.values():
        assert f"`{path}`" in rows[0], path
    for argument in inspect.signature(cls).parameters:
        assert f"`{argument}`" in rows[0], argument


@every_loss
def test_reads_names_arguments_of_forward_or_the_mappings_keys(criterion: str) -> None:
    cls: Any = LOSS_REGISTRY[criterion]
    parameters = inspect.signature(cls.forward).parameters
    for argument, path in cls.reads.items():
        assert re.fullmatch(r"(out|target)\.\w+\??", path)
        key = path.removesuffix("?").split(".")[1]
        assert argument == key if "out" in parameters else argument in parameters


@every_loss
def test_an_unknown_constructor_key_is_refused(criterion: str) -> None:
    with pytest.raises((TypeError, ValueError)):
        LOSS_REGISTRY[criterion](surely_no_key=1)


# the common contract, on a batch of n for each loss, through the factory


def sample(criterion: str, n: int, dtype: torch.dtype) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return an entry, out and target with n examples; what has a gradient is a leaf of ``dtype``."""
    torch.manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape).to(dtype).requires_grad_()

    def boxes(count: int) -> Tensor:
        corner = 8 * torch.rand(count, 2)
        return torch.cat([corner, corner + 4 + 8 * torch.rand(count, 2)], 1)

    gt = [{"boxes": boxes(2), "labels": torch.tensor([0, 1])} for _ in range(n)]
    words = torch.randint(0, 7, (n, 5))
    words[:, 3:] = -100
    masks = torch.randint(0, 3, (n, 8, 8))
    entry: dict[str, Any] = {}
    out: dict[str, Any] = {"pred": leaf(n, 5, 7)}
    target: dict[str, Any] = {"target": words}
    if criterion == "custum_loss":
        out |= {"attention": torch.rand(n, 5, 4).softmax(-1).to(dtype).requires_grad_(), "region_count": 4}
    elif criterion == "yolox_loss":
        out = {"pred": [leaf(n, 7, 4, 4), leaf(n, 7, 2, 2)]}
        target = {"gt": gt, "img_size": 16, "num_classes": 2}
        entry = {"l1_activate_epoch": 1}
    elif criterion == "retinanet_loss":
        out = {"anchors": boxes(12), "cls_logits": leaf(n, 12, 2), "bbox_regression": leaf(n, 12, 4)}
        target = {"gt": gt}
    elif criterion == "pidnet_loss":
        out = {"extra_p": leaf(n, 3, 4, 4), "pred": leaf(n, 3, 4, 4), "extra_d": leaf(n, 1, 4, 4)}
        target = {"target": masks, "bd_gt": (masks == 1).float()}
    elif criterion == "gan_loss":
        target = {"target_is_real": True}
    elif criterion == "kl_distillation":
        target = {"teacher_logits": torch.randn(n, 5, 7).to(dtype), "mask": words != -100}
    elif criterion == "vae_kl":
        out = {"mu": leaf(n, 4), "logvar": leaf(n, 4)}
    elif criterion == "policy_kl":
        out, target = {"policy": leaf(n, 4)}, {"old_policy": torch.randn(n, 4).to(dtype)}
    elif criterion == "rlhf_kl":
        target = {"ref_logits": torch.randn(n, 5, 7).to(dtype), "mask": words != -100}
    elif criterion == "alignment_kl":
        out = {"image_embeddings": leaf(n, 6), "text_embeddings": leaf(n, 6)}
        target = {"labels": torch.arange(n) // 2}
    elif criterion in ("iou_loss", "dice_loss"):
        out, target = {"masks": leaf(n, 3, 8, 8)}, {"masks": masks}
    elif criterion == "box_iou_loss":
        out, target = {"boxes": boxes(n).to(dtype).requires_grad_()}, {"boxes": boxes(n).to(dtype)}
    elif criterion == "perceptual_loss":
        out, target = {"images": leaf(n, 3, 8, 8)}, {"images": torch.rand(n, 3, 8, 8).to(dtype)}
        entry = {"feature_extractor": lambda image: [image, image[:, :, ::2]], "style_weight": 0.5}
    elif criterion == "ctc_loss":
        out = {"pred": leaf(9, n, 7)}
        target = {"target": torch.randint(1, 7, (n, 3)), "input_lengths": torch.full((n,), 9)}
        target["target_lengths"] = torch.full((n,), 3)
    elif criterion == "triplet_loss":
        out = {"anchor": leaf(n, 6), "positive": leaf(n, 6), "negative": leaf(n, 6)}
    return {"criterion": criterion, **entry}, out, target


def walk(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Apply ``function`` to all tensors of nested dicts and lists; return them flat."""
    if isinstance(value, Tensor):
        return [function(value)]
    if isinstance(value, dict):
        value = list(value.values())
    return [x for item in value for x in walk(item, function)] if isinstance(value, list) else []


def leaves(out: dict[str, Any]) -> list[Tensor]:
    return [tensor for tensor in walk(out, lambda x: x) if tensor.requires_grad]


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_precision_and_gradients(criterion: str, dtype: torch.dtype) -> None:
    entry, out, target = sample(criterion, 4, dtype)
    result = LossFactory([entry])(out, target)
    result.total.backward()
    assert result.total.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert result.total.shape == ()
    assert result.total.isfinite()
    assert result.total != 0
    for leaf in leaves(out):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert leaf.grad.dtype == dtype
    # half precision differs from the same numbers in float32 by nothing: all arithmetic is in float32
    if dtype in (torch.float16, torch.bfloat16):
        out, target = (upcast_all(x) for x in (out, target))
        torch.testing.assert_close(result.total, LossFactory([entry])(out, target).total)


def upcast_all(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().float() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: upcast_all(item) for key, item in value.items()}
    return [upcast_all(item) for item in value] if isinstance(value, list) else value


@every_loss
def test_an_empty_batch_is_exactly_zero_with_a_graph(criterion: str) -> None:
    entry, out, target = sample(criterion, 0, torch.float32)
    total = LossFactory([entry])(out, target).total
    total.backward()
    assert total == 0
    assert all(leaf.grad is not None for leaf in leaves(out))


@every_loss
def test_inputs_are_not_changed_and_a_second_call_gives_the_same(criterion: str) -> None:
    entry, out, target = sample(criterion, 3, torch.float32)
    factory = LossFactory([entry])
    before = [copy.deepcopy(walk(x, lambda t: t.detach())) for x in (out, target)]
    first = factory(out, target).total
    first.backward()
    assert factory(out, target).total == first
    for x, tensors in zip((out, target), before, strict=True):
        after = walk(x, lambda t: t.detach())
        assert len(after) == len(tensors)
        assert all(torch.equal(a, b) for a, b in zip(after, tensors, strict=True))


@every_loss
def test_terms_sum_to_the_loss(criterion: str) -> None:
    entry, out, target = sample(criterion, 3, torch.float64)
    result = build_loss([{**entry, "name": "it", "weight": 0.3}])(out, target)
    torch.testing.assert_close(result.total.detach(), 0.3 * result.terms["it"])
    if result.parts:
        assert all(name.startswith("it/") for name in result.parts)
        torch.testing.assert_close(torch.stack(list(result.parts.values())).sum(), result.terms["it"])
    assert bool(result.parts) == ("return_terms" in inspect.signature(LOSS_REGISTRY[criterion].forward).parameters)
    assert not any(term.requires_grad for term in (*result.parts.values(), *result.terms.values()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a GPU")
@every_loss
def test_it_is_the_same_on_a_gpu(criterion: str) -> None:
    entry, out, target = sample(criterion, 3, torch.float64)
    factory = build_loss([entry])
    found = []
    for device in ("cpu", "cuda"):
        factory.to(device)
        given = moved(out, torch.device(device))
        total = factory(given, moved(target, torch.device(device))).total
        leaves = [x for x in flattened(out) if x.requires_grad]
        found.append([total.cpu(), *torch.autograd.grad(total, leaves, materialize_grads=True)])
    torch.testing.assert_close(*found)


def flattened(value: Any) -> list[Tensor]:
    """The tensors in a mapping of them and of lists of them."""
    if isinstance(value, Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [x for item in inner for x in flattened(item)]


@every_loss
def test_it_uses_no_cuda_call(criterion: str) -> None:
    source = inspect.getsource(inspect.getmodule(LOSS_REGISTRY[criterion]))  # type: ignore[arg-type]
    assert ".cuda" not in source
    assert "empty_cache" not in source
