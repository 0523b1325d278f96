"""Loops over few numbers, for which a call of NumPy takes longer than the numbers do, compiled by Numba."""

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F, **options: Any) -> F:
    """`function`, compiled when it is first called; `options` as Numba's `njit` has them.

    What was compiled is kept beside the function's file, or in the user's cache folder where that cannot be written;
    where neither can be it is compiled in each process.
    """
    try:
        found: Any = njit(function, cache=True, **options)
    except RuntimeError:  # no folder to keep it in
        found = njit(function, **options)
    return found
