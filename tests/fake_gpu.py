"""A library of arrays "on a GPU", for tests without one: NumPy memory behind __cuda_array_interface__.

Its arrays cannot be read as NumPy arrays by accident; `values` reads them. The fixture `gpu` of conftest.py puts the
emulator in the place of the module _cuda."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from cuda_emulator import emulated

STREAM = SimpleNamespace(ptr=0)
current_device = 0


class Array:
    """As a cupy.ndarray, as far as qkernels asks."""

    def __init__(self, values: np.ndarray, device: int = 0):
        self._values, self.device = values, SimpleNamespace(id=device)
        self.dtype, self.shape, self.ndim = values.dtype, values.shape, values.ndim

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        steps = None if self._values.flags.c_contiguous else self._values.strides
        return {
            "shape": self.shape, "typestr": self.dtype.str, "data": (self._values.ctypes.data, False), "version": 3,
            "strides": steps, "stream": None,
        }  # fmt: skip

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("implicit copy from a GPU")

    def __getitem__(self, index: Any) -> Array:
        return Array(np.asarray(self._values[index]), self.device.id)  # of no dimensions: an array still

    def __setitem__(self, index: Any, value: Any) -> None:
        self._values[index] = value._values if isinstance(value, Array) else value

    def __matmul__(self, other: Array) -> Array:
        return Array(self._values @ other._values)

    def get(self) -> np.ndarray:
        return self._values.copy()

    def view(self, dtype: Any) -> Array:
        return Array(self._values.view(dtype), self.device.id)

    def astype(self, dtype: Any) -> Array:
        return asarray(self._values.astype(dtype))

    def reshape(self, shape: Any) -> Array:
        return Array(self._values.reshape(shape), self.device.id)

    def swapaxes(self, i: int, j: int) -> Array:
        return Array(self._values.swapaxes(i, j), self.device.id)

    @property
    def T(self) -> Array:
        return Array(self._values.T, self.device.id)


def _room(shape: Any, dtype: Any) -> np.ndarray:
    """16-byte aligned memory that kernels may touch, and not a byte more."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.full(size + 16, 0x5A, np.uint8)
    start = -raw.ctypes.data % 16
    emulated().allow(raw.ctypes.data + start, size, True)
    return raw[start : start + size].view(dtype).reshape(shape)


def empty(shape: Any, dtype: Any) -> Array:
    return Array(_room(shape, dtype), current_device)


def full(shape: Any, value: Any, dtype: Any) -> Array:
    made = empty(shape, dtype)
    made._values[...] = value
    return made


def asarray(values: Any) -> Array:
    values = np.asarray(values)
    made = empty(values.shape, values.dtype)
    made._values[...] = values
    return made


def lay(x: np.ndarray) -> Array:
    """x in memory of the GPU, with the strides and the odd address that it has."""
    low, high = np.lib.array_utils.byte_bounds(x)
    room = _room((high - low + 1,), np.uint8)
    start = x.__array_interface__["data"][0] - low + low % 2
    made = np.ndarray(x.shape, x.dtype, room.data, start, x.strides)
    made[...] = x
    return Array(made, current_device)


def ascontiguousarray(x: Array) -> Array:
    return asarray(x._values)


def broadcast_to(x: Array, shape: Any) -> Array:
    return Array(np.broadcast_to(x._values, shape), x.device.id)


cuda = SimpleNamespace(get_current_stream=lambda: STREAM)


def values(x: Any) -> np.ndarray:
    assert isinstance(x, Array), type(x)
    return x._values


def pretend(arch: int) -> None:
    emulated().pretend(arch)
