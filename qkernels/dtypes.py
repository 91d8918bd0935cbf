"""The types that a user may name (A1), and their limits: codes of 16 bits and fewer, floats of 64 and fewer."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

CODE_TYPES = ("int8", "uint8", "int4", "uint4", "int2", "uint2", "int16", "uint16")
FLOAT_TYPES = ("float32", "float16", "bfloat16", "float64")
SCALE_TYPES = ("float32", "float16", "bfloat16")
F32 = np.float32


def listed(names: Any) -> str:
    return ", ".join(map(str, names))


def name_of(dtype: Any) -> str:
    """ "int8", "bfloat16", …: of a name, a dtype of NumPy, ml_dtypes or torch; what is no type keeps its repr."""
    if isinstance(dtype, str | np.dtype):  # NumPy takes 3 µs to spell a name
        return _spelled(dtype)
    return _name_of(dtype)


@functools.lru_cache(maxsize=256)
def _spelled(dtype: str | np.dtype) -> str:
    return _name_of(dtype)


def _name_of(dtype: Any) -> str:
    if isinstance(dtype, str):
        return dtype
    if str(dtype).startswith("torch."):
        return str(dtype).removeprefix("torch.")
    try:
        return np.dtype(dtype).name
    except TypeError:
        return repr(dtype)


def known(dtype: Any, names: tuple[str, ...], op: str, argument: str = "dtype") -> str:
    """The name of dtype, which must be one of `names`."""
    name = name_of(dtype)
    if name not in names:
        raise ValueError(f"{op}: {argument}={name!r}, wanted one of {listed(names)}")
    return name


def bits_of(name: str) -> int:
    """ "uint4" → 4."""
    return int(name.removeprefix("u").removeprefix("int"))


@functools.cache
def limits(name: str) -> tuple[int, int]:
    """qmin and qmax of a type of codes."""
    bits = bits_of(name)
    return (0, (1 << bits) - 1) if name.startswith("u") else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)


@functools.cache
def container(name: str) -> np.dtype:
    """The NumPy type that holds one code: 4- and 2-bit codes live in int8 or uint8."""
    bits = max(8, bits_of(name))
    return np.dtype(f"uint{bits}" if name.startswith("u") else f"int{bits}")


@functools.lru_cache(maxsize=256)
def short(dtype: np.dtype) -> str:
    """ "s8", "u16", "f32": a NumPy type as kernels' names have it."""
    return f"{'s' if dtype.kind == 'i' else dtype.kind}{8 * dtype.itemsize}"


# ---------------------------------------------------------------- floats that NumPy does not have


def bfloat16_bits(x: np.ndarray) -> np.ndarray:
    """float32 → the uint16 bits of the nearest bfloat16, half to even; a NaN stays a NaN."""
    bits = np.ascontiguousarray(x, F32).view(np.uint32).reshape(np.shape(x))
    with np.errstate(over="ignore"):
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x0040)
    return np.where(np.isnan(x), quiet, rounded).astype(np.uint16)


def from_bfloat16_bits(bits: np.ndarray) -> np.ndarray:
    """uint16 bits → float32, exactly."""
    return (np.asarray(bits, np.uint16).astype(np.uint32) << np.uint32(16)).view(F32)


def rounded_to(x: np.ndarray, name: str) -> np.ndarray:
    """float32 → the values that float type `name` has for them, in float32."""
    if name == "bfloat16":
        return from_bfloat16_bits(bfloat16_bits(x))
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(x, F32).astype(name).astype(F32)


def cast_float(x: np.ndarray, name: str) -> np.ndarray:
    """float32 → an array of a float type, half to even (A1). NumPy's bfloat16 is that of ml_dtypes."""
    if name == "bfloat16":
        return bfloat16_bits(x).view(bfloat16())
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(x).astype(name, copy=False)


def bfloat16() -> Any:
    try:
        import ml_dtypes
    except ImportError:
        raise ImportError("bfloat16 arrays of NumPy need the package ml_dtypes: pip install ml_dtypes") from None
    return np.dtype(ml_dtypes.bfloat16)
