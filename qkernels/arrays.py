"""Whose array is it? NumPy arrays in and out; CPU tensors of torch by a shared buffer; the rest is its library's."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np


def is_torch(x: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def as_array(x: Any, op: str, name: str) -> np.ndarray:
    """x as a plain ndarray that shares its memory where it can (subclasses lose their class)."""
    if is_torch(x):
        if x.device.type != "cpu":
            raise TypeError(f"{op}: {name} is on {x.device}; this build has kernels for CPU tensors only")
        return x.detach().numpy()
    return np.asarray(x)


def wrap_like(result: np.ndarray, x: Any) -> Any:
    """The result as x's library would return it: a tensor for a tensor, a subclass for a subclass, else NumPy's (of no
    dimensions: a scalar)."""
    if is_torch(x):
        return sys.modules["torch"].from_numpy(result) if isinstance(result, np.ndarray) else result
    if isinstance(x, np.ndarray) and type(x) is not np.ndarray and isinstance(result, np.ndarray):
        return x.__array_wrap__(result)
    return result if np.ndim(result) else result[()]


def leading(a: Any, b: Any) -> Any:
    """Whose class the result of a and b has: a's library; among NumPy's subclasses by priority, the first of equals."""
    if is_torch(a) or not isinstance(b, np.ndarray) or type(b) is np.ndarray:
        return a
    return a if type(a) is not np.ndarray and a.__array_priority__ >= b.__array_priority__ else b


def has_mask(x: Any) -> bool:
    """A masked array, whose products leave elements out."""
    masked = sys.modules.get("numpy.ma")
    return masked is not None and isinstance(x, masked.MaskedArray)


def has_own_matmul(x: Any) -> bool:
    """Does x's class take over NumPy's functions (cupy, sparse, QTensor…), so that it must be asked?"""
    override = getattr(type(x), "__array_ufunc__", None)
    return override is not None and override is not np.ndarray.__array_ufunc__
