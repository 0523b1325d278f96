"""CUDA graphs of what a step of training does, so that a GPU's thousands of small kernels start without Python.

A graph is captured once for inputs of certain sizes and replayed whenever these come again; it works on memory of its
own, into which inputs are copied (torch.cuda.make_graphed_callables). What is captured must not depend on their values.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

OFTEN = 3  # sizes are captured when they come for this time
GRAPHS = 64  # at most, 0 for none; one of the decoder's loop holds some 100 MB for 64 images

Function = Callable[..., tuple[Tensor, ...]]  # of tensors alone


def worth_capturing(tensor: Tensor) -> bool:
    """Whether what comes of this tensor is learned from, by one process on a CUDA GPU.

    Several that train together share gradients while these arrive, which a graph must be told of before they begin.
    """
    return GRAPHS > 0 and tensor.is_cuda and torch.is_grad_enabled() and not torch.distributed.is_initialized()


def captured(
    function: Function, inputs: Sequence[Tensor], weights: Sequence[Tensor] = (), about: Hashable = None
) -> tuple[Tensor, ...]:
    """`function(*inputs, *weights)`, on and back by a graph where one is there or the sizes come `OFTEN`.

    Results hold until the next call with the same sizes. `weights` are worked on where they lie, and a graph is for
    these alone; `about` is what the function depends on beside them. Where a graph's results still wait for their
    gradients, its memory is in use, and the function is called as it is; so it is where nothing learns, and where it
    cannot be captured.
    """
    if not any(part.requires_grad for part in (*inputs, *weights)):
        return function(*inputs, *weights)
    sizes = tuple((part.shape, part.dtype, part.device, part.requires_grad) for part in inputs)
    key = about, sizes, tuple(map(id, weights))
    _seen[key] += 1
    if key not in _graphs and _seen[key] >= OFTEN and len(_graphs) < GRAPHS:
        try:
            _graphs[key] = _Graph(function, inputs, weights)
        except RuntimeError:  # an encoder that waits for values of its own, or too little memory for a graph of it
            _graphs[key] = None
    graph = _graphs.get(key)
    return function(*inputs, *weights) if graph is None or graph.busy else graph(inputs)


def replayed(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)`, on a CUDA GPU, where it learns, by a graph; arguments may be tuples of tensors, too."""
    leaves, structure = tree_flatten(arguments)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if not worth_capturing(tensors[0]):
        return function(*arguments)

    def of_tensors(*given: Tensor) -> tuple[Tensor, ...]:
        known = iter(given)
        filled = [next(known) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        results = function(*tree_unflatten(filled, structure))
        return results if isinstance(results, tuple) else (results,)

    constants = tuple(leaf for leaf in leaves if not isinstance(leaf, Tensor))
    results = captured(of_tensors, tensors, about=(function, structure, constants))
    return results if len(results) > 1 else results[0]


class _Graph:
    """A function captured on and back; `busy` from the one to the other, since both work on the same memory."""

    def __init__(self, function: Function, inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
        own = [tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in inputs]
        self.weights = weights
        with warnings.catch_warnings(), torch.autocast("cuda", enabled=False):  # a function brings its own
            warnings.simplefilter("ignore")  # that gradients come on another stream, which is so only here
            self.replay: Function = torch.cuda.make_graphed_callables(function, (*own, *weights))  # type: ignore[assignment]
        self.busy = False

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        for leaf in (*inputs, *self.weights):
            if leaf.is_leaf and leaf.grad is not None:  # may lie where the way back will write
                leaf.grad = leaf.grad.clone()
        results = self.replay(*inputs, *self.weights)
        self.busy = True
        results[0].register_hook(self._free)
        return results

    def _free(self, gradient: Tensor) -> None:
        self.busy = False


_seen: Counter[Hashable] = Counter()
_graphs: dict[Hashable, _Graph | None] = {}  # None: cannot be captured
