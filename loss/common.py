"""What every loss shares: precision, reduction, label checks and the sum of named terms."""

from collections.abc import Mapping

import torch
from torch import Tensor

REDUCTIONS = ("mean", "sum", "none")
HALVES = (torch.float16, torch.bfloat16)


def upcast(tensor: Tensor) -> Tensor:
    """Return half precision as float32 and everything else, float64 included, as it is.

    >>> upcast(torch.ones(2, dtype=torch.bfloat16)).dtype, upcast(torch.ones(2, dtype=torch.float64)).dtype
    (torch.float32, torch.float64)
    """
    return tensor.float() if tensor.dtype in HALVES else tensor


def bounded(logits: Tensor) -> Tensor:
    """Return logits with -inf and inf as half the least and greatest number; NaN stays.

    An infinite logit is a sure one, but inf - inf and 0 * inf are NaN. Half, so that two still add up.

    >>> bounded(torch.tensor([-torch.inf, 1.0])).sigmoid()
    tensor([0.0000, 0.7311])
    """
    limit = torch.finfo(logits.dtype).max / 2
    return logits.clamp(-limit, limit)


def full_precision(tensor: Tensor) -> torch.autocast:
    """Return a context in which autocast leaves matrix products of ``tensor``'s device alone."""
    return torch.autocast(tensor.device.type, enabled=False)


def check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")


def check_reduction(reduction: str, choices: tuple[str, ...] = REDUCTIONS) -> None:
    """Raise ValueError unless ``reduction`` is one of ``choices``."""
    check_choice("reduction", reduction, choices)


def check_same_shape(first: Tensor, second: Tensor) -> None:
    """Raise ValueError unless both have one shape: broadcasting would hide a mistake."""
    if first.shape != second.shape:
        raise ValueError(f"the shapes {tuple(first.shape)} and {tuple(second.shape)} differ")


def check_labels(labels: Tensor, num_classes: int, ignore_index: int | None = None) -> None:
    """Raise IndexError where a label is neither in [0, num_classes) nor ``ignore_index``.

    Only labels on the CPU are read. On an accelerator the answer would have to be waited for, so there the
    bounds asserts of torch's own gather and nll kernels speak; ``cross_entropy`` checks by itself everywhere.
    """
    if labels.device.type != "cpu" or labels.numel() == 0:
        return
    wrong = (labels < 0) | (labels >= num_classes)
    if ignore_index is not None:
        wrong &= labels != ignore_index
    if wrong.any():
        raise IndexError(f"label {labels[wrong][0].item()} is outside [0, {num_classes}) and is not ignored")


def check_class_weight(weight: Tensor, num_classes: int) -> None:
    """Raise ValueError unless ``weight`` is one number per class: of a longer one, the rest would go unnoticed."""
    if weight.shape != (num_classes,):
        raise ValueError(f"{num_classes} classes want as many weights, not the shape {tuple(weight.shape)}")


def find_class_dim(logits: Tensor, labels: Tensor, dims: tuple[int, ...] = (1, -1)) -> int:
    """Return the first of ``dims`` along which ``logits`` can hold the classes of ``labels``.

    An axis can hold them if ``logits`` without it has the shape of ``labels``.

    Raises:
        ValueError: none of ``dims`` can.

    >>> labels = torch.zeros(2, 7)
    >>> find_class_dim(torch.zeros(2, 7, 9), labels), find_class_dim(torch.zeros(2, 9, 7), labels)
    (2, 1)
    """
    shape = logits.shape
    for dim in dims:
        axis = dim % logits.ndim if -logits.ndim <= dim < logits.ndim else None
        if axis is not None and shape[:axis] + shape[axis + 1 :] == labels.shape:
            return axis
    raise ValueError(f"labels {tuple(labels.shape)} do not fit logits {tuple(shape)}, classes on axis {dims}")


def either(first: Tensor | None, second: Tensor | None) -> Tensor:
    """Return the one that is given, of the two names of an argument; TypeError for none and for both."""
    if first is None:
        first, second = second, None
    if first is None or second is not None:
        raise TypeError("an argument is missing, or given under both of its names")
    return first


def along_first(weight: Tensor, values: Tensor) -> Tensor:
    """Shape one weight per entry of the first axis, [B], so that it broadcasts over ``values``, [B, ...]."""
    if weight.shape != values.shape[:1]:
        raise ValueError(f"weight {tuple(weight.shape)} is not one number per entry of {tuple(values.shape)}")
    return upcast(weight).reshape(-1, *[1] * (values.ndim - 1))


def read_pair(
    out: Tensor | Mapping[str, Tensor],
    target: Tensor | Mapping[str, Tensor],
    weight: Tensor | None,
    token_count: Tensor | float | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | float | None]:
    """Return prediction, target, weight and token_count, from two tensors or from the trainer's mappings."""
    if isinstance(out, Mapping) and isinstance(target, Mapping):
        weight, token_count = target.get("weight", weight), target.get("token_count", token_count)
        out, target = out["pred"], target["target"]
    if not isinstance(out, Tensor) or not isinstance(target, Tensor):
        raise TypeError("out and target must be two tensors or two mappings")
    return out, target, weight, token_count


def zero_with_graph(*tensors: Tensor) -> Tensor:
    """Return exactly 0.0 that depends on ``tensors``: ``backward()`` gives them zero gradients.

    A sum over no elements, because 0 * inf would be NaN.

    >>> x = torch.tensor([float("inf"), 1.0], requires_grad=True)
    >>> zero_with_graph(x).backward(); x.grad
    tensor([0., 0.])
    """
    return torch.stack([upcast(tensor).reshape(-1)[:0].sum() for tensor in tensors]).sum()


def divide(total: Tensor, count: Tensor | float) -> Tensor:
    """Return ``total / count``; where ``count`` is 0, ``total`` (a zero with its graph). No device sync."""
    if isinstance(count, Tensor):
        count = count.to(total.dtype)
        return total / torch.where(count == 0, 1.0, count)
    return total / (count or 1.0)


def reduce(
    values: Tensor,
    reduction: str = "mean",
    weight: Tensor | None = None,
    divisor: Tensor | float | None = None,
) -> Tensor:
    """Reduce one loss value per element to what is asked; the only place where losses are averaged.

    mean = sum(weight * values) / sum(weight), exactly 0.0 where nothing counts; sum = sum(weight * values);
    none = weight * values. An element with weight 0 counts as 0 even when its value is inf or NaN.

    Args:
        values: one loss value per element, any shape, floating.
        reduction: "mean", "sum" or "none".
        weight: bool mask (True counts) or numbers, broadcastable to ``values``; None means all count once.
        divisor: what "mean" divides by instead of sum(weight): the count of a whole of which ``values`` are a
            part (a batch split over processes or accumulation steps), so that the parts' losses add up.

    Raises:
        ValueError: unknown ``reduction``.

    >>> reduce(torch.tensor([1.0, 3.0, float("inf")]), "mean", torch.tensor([True, True, False]))
    tensor(2.)
    """
    check_reduction(reduction)
    count: Tensor | float = values.numel()
    if weight is not None:
        weight = upcast(weight).expand_as(values)  # a sum of halves ends at 65504, or counts only to 256
        count = weight.sum()
        if weight.dtype == torch.bool:
            values = values.masked_fill(~weight, 0.0)
        else:
            values = (values * weight.to(values.dtype)).masked_fill(weight == 0, 0.0)
    if reduction == "none":
        return values
    total = values.sum()
    return divide(total, count if divisor is None else divisor) if reduction == "mean" else total


def sum_terms(terms: Mapping[str, Tensor], return_terms: bool) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
    """Add the terms of one loss: the total, and with ``return_terms`` also the terms, detached.

    >>> sum_terms({"a": torch.tensor(1.0), "b": torch.tensor(2.0)}, True)
    (tensor(3.), {'a': tensor(1.), 'b': tensor(2.)})
    """
    total = torch.stack(list(terms.values())).sum()
    return (total, {name: term.detach() for name, term in terms.items()}) if return_terms else total
