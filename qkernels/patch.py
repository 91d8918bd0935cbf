"""patch_numpy: np.matmul and np.dot on 8-bit integers, without touching the caller's code."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from qkernels.ops.matmul import BYTES, matmul


def _ours(a: Any, b: Any) -> bool:
    return isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.dtype in BYTES and b.dtype in BYTES


def _dot(a: np.ndarray, b: np.ndarray, out: np.ndarray | None) -> Any:
    """np.dot's shapes: out[i, j, m] = Σ a[i, k] · b[j, k, m]."""
    if b.ndim <= 2:
        return matmul(a, b, out=out)
    columns = np.moveaxis(b, -2, 0)
    result = matmul(a, columns.reshape(columns.shape[0], -1)).reshape(*a.shape[:-1], *columns.shape[1:])
    if out is None:
        return result
    out[...] = result
    return out


@contextlib.contextmanager
def patch_numpy() -> Iterator[None]:
    """Within the block np.matmul and np.dot of int8/uint8 arrays run on qkernels: exact, int32 results.

    Everything else goes to NumPy as before. The operator @ is not covered (ndarrays cannot be intercepted there), nor
    are names bound before (`from numpy import dot`). Process-wide while it is in force.
    """
    numpy_matmul, numpy_dot = np.matmul, np.dot

    @functools.wraps(numpy_matmul, assigned=("__name__", "__doc__"), updated=())
    def patched_matmul(*args: Any, **kwargs: Any) -> Any:
        plain = len(args) >= 2 and kwargs.keys() <= {"out", "dtype"} and _ours(args[0], args[1])
        return matmul(*args, **kwargs) if plain else numpy_matmul(*args, **kwargs)

    @functools.wraps(numpy_dot, assigned=("__name__", "__doc__"), updated=())
    def patched_dot(a: Any, b: Any, out: Any = None) -> Any:
        if _ours(a, b) and a.ndim and b.ndim:
            return _dot(a, b, out)
        return numpy_dot(a, b) if out is None else numpy_dot(a, b, out)

    _replace(matmul=patched_matmul, dot=patched_dot)
    try:
        yield
    finally:
        _replace(matmul=numpy_matmul, dot=numpy_dot)


def _replace(**functions: Callable[..., Any]) -> None:
    for name, function in functions.items():
        setattr(np, name, function)
