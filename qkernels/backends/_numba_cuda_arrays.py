"""What every row of `numba_cuda` needs on the host: arrays as Numba takes them, new ones, and how a row is declined."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from qkernels.kernel import Hardware, Kernel, Problem

TYPES = ("u8s8s32", "s8s8s32", "u8u8s32", "s8u8s32")


def _compiled() -> Any:
    from qkernels.backends import _numba_cuda as compiled  # imports numba.cuda, and it may not be there

    return compiled


def _array(x: Any) -> Any:
    """What Numba takes for it: a view of the device's memory; in the simulator arrays are NumPy's."""
    if isinstance(x, np.ndarray):
        return x
    from numba import config, cuda

    item = np.dtype(x.dtype).itemsize
    if config.ENABLE_CUDASIM:  # which has no arrays but the host's
        reach = item * (1 + sum((size - 1) * step for size, step in zip(x.shape, x.strides, strict=True)))
        room: Any = (ctypes.c_char * max(reach, 0)).from_address(x.pointer)
        room.owner = x.owner
        from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

        return FakeCUDAArray(np.ndarray(x.shape, x.dtype, room, 0, tuple(step * item for step in x.strides)))
    return cuda.from_cuda_array_interface(
        {
            "shape": x.shape, "strides": tuple(step * item for step in x.strides), "typestr": np.dtype(x.dtype).str,
            "data": (x.pointer, False), "version": 3,
        },
        owner=x.owner,
    )  # fmt: skip


def _zeros(like: Any, shape: tuple[int, ...]) -> Any:
    return np.zeros(shape, np.int32) if isinstance(like, np.ndarray) else like.constant(0, "int32", shape)


def _new(like: Any, shape: tuple[int, ...], dtype: str) -> Any:
    return np.empty(shape, dtype) if isinstance(like, np.ndarray) else like.new(shape, dtype)


def _constant(like: Any, values: Any, dtype: str) -> Any:
    array = np.asarray(values, dtype)
    return array if isinstance(like, np.ndarray) else like.constant(array, dtype, array.shape)


def _full(like: Any, value: int, shape: tuple[int, ...]) -> Any:
    return np.full(shape, value, np.int32) if isinstance(like, np.ndarray) else like.constant(value, "int32", shape)


def _bits(x: Any) -> Any:
    """float32 as int32."""
    return x.view(np.int32) if isinstance(x, np.ndarray) else x._replace(dtype="int32")


def _halves(x: Any) -> Any:
    """bfloat16 as uint16."""
    return x.view(np.uint16) if isinstance(x, np.ndarray) else x._replace(dtype="uint16")


def _stream(x: Any) -> Any:
    from numba import config, cuda

    simulated = isinstance(x, np.ndarray) or config.ENABLE_CUDASIM
    return 0 if simulated else cuda.external_stream(x.stream)


def _blocks(x: Any, threads: int) -> int:
    return -(-int(np.prod(x.shape)) // threads)


def missing() -> str:
    return (
        "" if importlib.util.find_spec("numba") and importlib.util.find_spec("numba.cuda") else "numba is not installed"
    )


def _judge(op: str, types: str, problem: Problem, hardware: Hardware) -> float | str:
    if problem.op != op or problem.types != types:
        return f"is for {op} {types}"
    if not problem.device:
        return "is for arrays on a GPU"
    if "numba" not in hardware.cpu:
        return "numba is not installed"
    return missing() or 100 + 2 * problem.m * problem.n * problem.k / 1e6


def _kernel(op: str, types: str, layout: str, run: Callable[..., None]) -> Kernel:
    def judge(problem: Problem, hardware: Hardware) -> float | str:
        return _judge(op, types, problem, hardware)

    return Kernel(f"{op}_{types}_numba_cuda", op, types, "numba_cuda", layout, judge, run)
