"""Whose array is it? NumPy arrays in and out; CPU tensors of torch by a shared buffer; the rest is its library's."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from qkernels.dtypes import FLOAT_TYPES, bfloat16, bfloat16_bits, cast_float, listed, name_of


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


# ---------------------------------------------------------------- floats, and arrays that ops make anew


def library_of(x: Any) -> str:
    """ "torch" or "numpy": whose arrays the results for x are."""
    return "torch" if is_torch(x) else "numpy"


def float_name(x: Any) -> str:
    """ "float32", "bfloat16", …: the type of x's elements, or what else it is."""
    return name_of(x.dtype) if hasattr(x, "dtype") else name_of(np.asarray(x).dtype)


def as_float32(x: Any, op: str, name: str) -> np.ndarray:
    """x as float32 (A1: float16 and bfloat16 exactly, float64 rounded); it shares x's memory where it can."""
    if type(x) is np.ndarray and x.dtype == np.float32:
        return x
    kind = float_name(x)
    if kind not in FLOAT_TYPES:
        raise TypeError(f"{op}: {name} has dtype {kind}, wanted one of {listed(FLOAT_TYPES)}")
    if is_torch(x) and kind == "bfloat16":
        x = x.detach().float()
    with np.errstate(over="ignore", under="ignore"):
        return as_array(x, op, name).astype(np.float32, copy=False)


def as_reals(x: Any, op: str, name: str) -> tuple[np.ndarray, str]:
    """(x as kernels read it, its memory where it can be: float32, float16, float64, or bfloat16's bits in uint16;
    that type in kernels' names)."""
    if type(x) is np.ndarray and x.dtype == np.float32:
        return x, "f32"
    kind = float_name(x)
    if kind == "bfloat16":
        bits = x.detach().view(sys.modules["torch"].int16) if is_torch(x) else x
        return as_array(bits, op, name).view(np.uint16), "bf16"
    if kind not in FLOAT_TYPES:
        return as_float32(x, op, name), "f32"  # refuses
    array = as_array(x, op, name)
    return array.astype(array.dtype.newbyteorder("="), copy=False), f"f{8 * array.itemsize}"


def new_array(array: np.ndarray, library: str) -> Any:
    """A result that nobody else holds, in its library."""
    if library == "numpy":
        return array
    import torch

    return torch.from_numpy(array if array.flags.writeable and array.flags.c_contiguous else array.copy())


def from_reals(reals: np.ndarray, dtype: str, library: str) -> Any:
    """What a kernel wrote, bfloat16's bits in uint16, as an array of that float type in its library."""
    if dtype != "bfloat16":
        return new_array(reals, library)
    if library == "torch":
        import torch

        return torch.from_numpy(reals.view(np.int16)).view(torch.bfloat16)
    return reals.view(bfloat16())


def new_floats(values: np.ndarray, dtype: str, library: str) -> Any:
    """float32 values as a new array of a float type, in a library."""
    if library == "torch" and dtype == "bfloat16":
        import torch

        return torch.from_numpy(bfloat16_bits(values).view(np.int16)).view(torch.bfloat16)
    return new_array(cast_float(values, dtype), library)
