"""The registry of losses, and the weighted sum of those that a config names.

A loss says what it reads from the trainer's two mappings in its attribute ``reads``: argument -> "out.key" or
"target.key", with "?" behind the key where it may be absent. A loss whose ``forward`` takes ``out`` and
``target`` gets the mappings themselves; any other gets what it reads as keyword arguments.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, cast, runtime_checkable

from torch import Tensor, nn

from loss.box_iou import BoxIoULoss
from loss.common import zero_with_graph
from loss.cross_entropy import CrossEntropyLoss
from loss.ctc import CTCLoss
from loss.focal import SigmoidFocalLoss, SoftmaxFocalLoss
from loss.gan import GANLoss
from loss.kl import AlignmentKLLoss, KLDistillationLoss, PolicyKLLoss, RLHFKLLoss, VAEKLLoss
from loss.loss import custum_loss
from loss.overlap import DiceLoss, IoULoss
from loss.perceptual import PerceptualLoss
from loss.pidnet import PIDNetLoss
from loss.retinanet import RetinaNetLoss
from loss.triplet import TripletLoss
from loss.yolox import YOLOXLoss

LOSS_REGISTRY: dict[str, type[nn.Module]] = {
    "custum_loss": custum_loss,
    "cross_entropy": CrossEntropyLoss,
    "focal_loss": SigmoidFocalLoss,
    "softmax_focal_loss": SoftmaxFocalLoss,
    "yolox_loss": YOLOXLoss,
    "retinanet_loss": RetinaNetLoss,
    "pidnet_loss": PIDNetLoss,
    "gan_loss": GANLoss,
    "kl_distillation": KLDistillationLoss,
    "vae_kl": VAEKLLoss,
    "policy_kl": PolicyKLLoss,
    "rlhf_kl": RLHFKLLoss,
    "alignment_kl": AlignmentKLLoss,
    "iou_loss": IoULoss,
    "box_iou_loss": BoxIoULoss,
    "dice_loss": DiceLoss,
    "perceptual_loss": PerceptualLoss,
    "ctc_loss": CTCLoss,
    "triplet_loss": TripletLoss,
}

FACTORY_KEYS = ("criterion", "name", "weight", "head")  # an entry's keys that are not the constructor's


@dataclass(frozen=True)
class LossResult:
    """What one call of a :class:`LossFactory` gives; all but ``total`` is detached. No device was waited for.

    Attributes:
        total: sum_i weight_i * loss_i, the scalar to go backward from.
        terms: name -> loss, as it was before its weight.
        weighted: name -> weight * loss; these sum to ``total``.
        parts: "name/part" -> part of a loss that has several ("ce", "dsr", "avr" of custum_loss), before the
            loss's weight; the parts of one name sum to its entry in ``terms``.
        raw: "name/part" -> part before the loss's own weight of it as well (DSR without beta, AVR without gamma);
            not there where that weight is 0.
    """

    total: Tensor
    terms: dict[str, Tensor]
    weighted: dict[str, Tensor]
    parts: dict[str, Tensor]
    raw: dict[str, Tensor]


@runtime_checkable
class Epochal(Protocol):
    """A loss that changes with the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Take the epoch, counted from 1."""


class LossFactory(nn.Module):
    """The weighted sum of the losses that a config lists: total = sum_i weight_i * loss_i.

    Args:
        losses: the entries, each a mapping with "criterion" (a name in ``LOSS_REGISTRY``), optionally "name",
            "weight" and "head", and arguments of the loss's constructor. The name defaults to the criterion, then
            criterion_1, criterion_2, ... A weight that is absent or None is 1.0; 0 stays 0. A loss with a head
            reads that head's mappings, ``out[head]`` and ``target[head]``, in place of ``out`` and ``target``.
        class_weight: class weights for ``cross_entropy``, which alone gets them.
        class_dim: the axis of the classes in ``out["pred"]`` for the losses that take a ``class_dim``. A
            captioning model's logits [P, T, V] want -1; without it, T == V would be read as [N, C, ...]. A
            head's losses get neither of the two.

    Attributes:
        names, weights, heads: the losses' names, weights and heads (None: the captioner itself), in the order of
            the entries.

    Raises:
        ValueError: no entry, an unknown criterion or key (the message lists the known ones), a weight that
            is no finite number, a name that stands twice, reduction "none".

    >>> import torch
    >>> factory = LossFactory([{"criterion": "cross_entropy", "weight": 0.5}])
    >>> result = factory({"pred": torch.zeros(1, 2)}, {"target": torch.tensor([0])})
    >>> result.total, result.terms
    (tensor(0.3466), {'cross_entropy': tensor(0.6931)})
    """

    def __init__(
        self,
        losses: Sequence[Mapping[str, Any]],
        class_weight: Tensor | Sequence[float] | None = None,
        class_dim: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(losses, str | Mapping) or not isinstance(losses, Sequence) or not losses:
            raise ValueError(f"losses must be a list of at least one entry with a criterion, not {losses!r}")
        self.criteria = [checked_criterion(entry) for entry in losses]
        self.names = unique_names([entry.get("name") for entry in losses], self.criteria)
        self.weights = [
            checked_weight(entry.get("weight"), name) for name, entry in zip(self.names, losses, strict=True)
        ]
        self.heads = [checked_head(entry.get("head"), name) for name, entry in zip(self.names, losses, strict=True)]
        offered = {"class_weight": class_weight, "class_dim": class_dim}
        self.losses = nn.ModuleList(
            make_loss(criterion, entry, offered if head is None else {})
            for criterion, entry, head in zip(self.criteria, losses, self.heads, strict=True)
        )

    @property
    def reads(self) -> set[str]:
        """Everything that a loss reads of the captioner, as "out.key" or "target.key", needed or not."""
        captions = (loss for loss, head in zip(self.losses, self.heads, strict=True) if head is None)
        return {path.removesuffix("?") for loss in captions for path in cast(Any, loss).reads.values()}

    def missing(self, out_keys: Iterable[str], target_keys: Iterable[str]) -> list[str]:
        """Return one line for each loss that needs what is not among the keys of ``out`` and ``target``.

        What a head gives stands there as "head.key".

        >>> LossFactory([{"criterion": "custum_loss"}]).missing({"pred", "attention", "region_count"}, set())
        ['custum_loss needs target.target, which is not there']
        """
        present = {f"out.{key}" for key in out_keys} | {f"target.{key}" for key in target_keys}
        lines = []
        for name, criterion, head, loss in zip(self.names, self.criteria, self.heads, self.losses, strict=True):
            absent = [path for path in needs(loss, head) if path not in present]
            if absent:
                label = name if name == criterion else f"{name} ({criterion})"
                verb = "is" if len(absent) == 1 else "are"
                lines.append(f"{label} needs {' and '.join(absent)}, which {verb} not there")
        return lines

    def set_epoch(self, epoch: int) -> None:
        """Tell the epoch (from 1) to the losses that change with it."""
        for loss in self.losses:
            if isinstance(loss, Epochal):
                loss.set_epoch(epoch)

    def forward(self, out: Mapping[str, Any], target: Mapping[str, Any], **more: Any) -> LossResult:
        """Return the losses of ``out`` (what the model gave) against ``target`` (what the dataset gave).

        Args:
            out: e.g. "pred", "attention"; which loss reads which key stands in ``loss/README.md``. What a head
                gives is a mapping in it, under the head's name.
            target: e.g. "target", "weight"; what a head should give likewise. A head's losses are means over their
                batch; ``target[head]["share"]``, its share of the images of the whole step, weighs them.
            **more: further entries of ``target``, as ``token_count=...``.

        Raises:
            KeyError: a loss needs an entry that is not there. ValueError: one gives more than a number.
        """
        target = {**target, **more}
        absent = self.missing(dotted(out), dotted(target))
        if absent:
            raise KeyError("; ".join(absent))
        total: Tensor | None = None
        terms, weighted, parts, raw = {}, {}, {}, {}
        for name, weight, head, loss in zip(self.names, self.weights, self.heads, self.losses, strict=True):
            if head is None:
                value, inner = call(loss, out, target)
            else:
                share = target[head].get("share", 1.0)
                value, inner = call(loss, out[head], target[head])
                value, inner = value * share, {part: term * share for part, term in inner.items()}
            if value.ndim:
                raise ValueError(f"{name} gives a tensor of shape {list(value.shape)}; reduce it to one number")
            contribution = weight * value if weight else zero_with_graph(value)  # 0 * inf would be NaN
            total = contribution if total is None else total + contribution
            terms[name] = value.detach()
            weighted[name] = contribution.detach()
            parts.update({f"{name}/{part}": term for part, term in inner.items()})
            scales = {part: scale for part, scale in getattr(loss, "scales", {}).items() if scale and part in inner}
            raw.update({f"{name}/{part}": inner[part] / scale for part, scale in scales.items()})
        assert total is not None
        return LossResult(total, terms, weighted, parts, raw)


def build_loss(
    cfg: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    class_weight: Tensor | Sequence[float] | None = None,
    class_dim: int | None = None,
) -> LossFactory:
    """Build the losses of a config: a mapping with ``model.losses``, or that list itself. It is not changed.

    >>> build_loss({"model": {"losses": [{"criterion": "cross_entropy", "weight": None}]}}).weights
    [1.0]
    """
    losses: Any = cfg
    if isinstance(cfg, Mapping):
        try:
            losses = cfg["model"]["losses"]
        except (KeyError, TypeError):
            raise ValueError("the config has no list model.losses") from None
    return LossFactory(losses, class_weight, class_dim)


def checked_criterion(entry: Mapping[str, Any]) -> str:
    """Return the entry's criterion; ValueError unless the registry has it."""
    criterion = entry.get("criterion") if isinstance(entry, Mapping) else None
    if not isinstance(criterion, str) or criterion not in LOSS_REGISTRY:
        raise ValueError(f"unknown criterion {criterion!r} in {entry!r}; known: {', '.join(sorted(LOSS_REGISTRY))}")
    return criterion


def checked_weight(weight: object, name: str) -> float:
    """Return a loss weight as float, None as 1.0; ValueError for what is no finite number (bool is none)."""
    if weight is None:
        return 1.0
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise ValueError(f"the weight of {name} must be a finite number or absent, not {weight!r}")
    return float(weight)


def checked_head(head: object, name: str) -> str | None:
    """Return an entry's head, None where it has none; ValueError for what is no word."""
    if head is not None and (not isinstance(head, str) or not head):
        raise ValueError(f"the head of {name} must be a word or absent, not {head!r}")
    return head


def unique_names(given: Sequence[str | None], criteria: Sequence[str]) -> list[str]:
    """Return the given names, and criterion, criterion_1, ... (the first that is free) where there is none.

    >>> unique_names([None, "ce", None], ["cross_entropy"] * 3)
    ['cross_entropy', 'ce', 'cross_entropy_1']
    """
    for name in given:
        if name is not None and (not isinstance(name, str) or not name):
            raise ValueError(f"a loss's name must be a word, not {name!r}")
    taken = [name for name in given if name is not None]
    for name in taken:
        if taken.count(name) > 1:
            raise ValueError(f"two losses have the name {name!r}")
    names = []
    for explicit, criterion in zip(given, criteria, strict=True):
        name, count = explicit or criterion, 0
        while explicit is None and name in taken:
            count += 1
            name = f"{criterion}_{count}"
        if explicit is None:
            taken.append(name)
        names.append(name)
    return names


def make_loss(criterion: str, entry: Mapping[str, Any], offered: Mapping[str, Any]) -> nn.Module:
    """Construct the entry's loss, with those of ``offered`` that it takes and the entry does not give.

    An argument whose name the entry needs itself has an underscore there: ``criterion_`` of perceptual_loss.
    """
    loss = LOSS_REGISTRY[criterion]
    if not hasattr(loss, "reads"):
        raise ValueError(f"{criterion}: its class lacks `reads`, which says what it is called with (loss/builder.py)")
    known = {f"{name}_" if name in FACTORY_KEYS else name: name for name in inspect.signature(loss).parameters}
    given = {key: value for key, value in entry.items() if key not in FACTORY_KEYS}
    unknown = [str(key) for key in given if key not in known]
    if unknown:
        keys = ", ".join([*FACTORY_KEYS, *known])
        raise ValueError(f"{criterion} knows no key {', '.join(map(repr, unknown))}; known: {keys}")
    if given.get("reduction") == "none":
        raise ValueError(f"{criterion} with reduction 'none' gives no number that could be summed with others")
    options = {key: value for key, value in offered.items() if key in known and value is not None} | given
    return loss(**{known[key]: value for key, value in options.items()})


def needs(loss: Any, head: str | None = None) -> list[str]:
    """Return the paths, "out.key" or "target.key" ("out.head.key"), without which ``loss`` cannot be called."""
    paths = [path for path in loss.reads.values() if not path.endswith("?")]
    return paths if head is None else [path.replace(".", f".{head}.", 1) for path in paths]


def dotted(mapping: Mapping[str, Any]) -> list[str]:
    """Return the keys of a mapping, and of the mappings in it as "head.key".

    >>> dotted({"pred": 1, "concepts": {"pred": 2}})
    ['pred', 'concepts.pred']
    """
    keys = []
    for key, value in mapping.items():
        keys += [f"{key}.{inner}" for inner in value] if isinstance(value, Mapping) else [key]
    return keys


@cache
def argument_names(function: Callable[..., Any]) -> frozenset[str]:
    """Return the names of the arguments that ``function`` takes."""
    return frozenset(inspect.signature(function).parameters)


def call(loss: Any, out: Mapping[str, Any], target: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """Call ``loss`` on what it reads; return its value, and its terms where it has several."""
    names = argument_names(type(loss).forward)
    arguments: dict[str, Any] = {"out": out, "target": target}
    if "out" not in names:
        sources, arguments = arguments, {}
        for name, path in loss.reads.items():
            side, key = path.removesuffix("?").split(".")
            if key in sources[side]:
                arguments[name] = sources[side][key]
    if "return_terms" in names:
        return loss(**arguments, return_terms=True)
    return loss(**arguments), {}
