"""GPU kernels in Numba: a fallback for machines without nvcc, where `_cuda` could not be built.

One element a thread, or a 16 × 16 tile a block: exact, and slow beside csrc/cuda (no tensor cores).
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from qkernels.kernel import Hardware, Kernel, Multipliers, Problem, Scales
from qkernels.rounding import ROUNDINGS

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


def _gemm(a: Any, w: Any, out: Any, a_zero: Any, w_zero: Any) -> None:
    kernels = _compiled()
    batch, m, n = out.shape
    a_zero = _zeros(out, (batch, m)) if a_zero is None else a_zero
    w_zero = _zeros(out, (batch, n)) if w_zero is None else w_zero
    tile = kernels.TILE
    grid = (-(-m // tile), -(-n // tile), batch)
    kernels.gemm[grid, (tile, tile), _stream(out)](*map(_array, (a, w, out, a_zero, w_zero)))


def _blocks(x: Any, threads: int) -> int:
    return -(-int(np.prod(x.shape)) // threads)


def _quantize(x: Any, by: Scales, limits: tuple[int, int], out: Any) -> None:
    kernels = _compiled()
    zero = _zeros(out, by.scale.shape) if by.zero is None else by.zero
    kernels.quantize[_blocks(x, kernels.THREADS), kernels.THREADS, _stream(out)](
        _array(x), _array(by.scale), _array(zero), by.repeat, by.group, *limits, _array(out)
    )


def _requantize(acc: Any, by: Multipliers, limits: tuple[int, int], out: Any) -> None:
    kernels = _compiled()
    e, bias, zero = (_zeros(out, by.m.shape) if v is None else v for v in (by.e, by.bias, by.zero))
    kernels.requantize[_blocks(acc, kernels.THREADS), kernels.THREADS, _stream(out)](
        *map(_array, (acc, by.m, e, bias, zero)),
        by.repeat,
        by.group,
        ROUNDINGS.index(by.rounding),
        *limits,
        _array(out),
    )


def _dequantize(q: Any, by: Scales, out: Any) -> None:
    from qkernels.backends import _numba_cuda_ranges as kernels

    zero = _zeros(out, by.scale.shape) if by.zero is None else by.zero
    kernels.dequantize[_blocks(q, kernels.THREADS), kernels.THREADS, _stream(out)](
        _array(q), _array(by.scale), _array(zero), by.repeat, by.group, _array(out)
    )


def _dynamic(x: Any, group: int, limits: tuple[int, int], scale: Any, zero: Any, sums: Any, out: Any) -> None:
    from qkernels.backends import _numba_cuda_ranges as kernels

    zero, sums = (_zeros(out, scale.shape) if v is None else v for v in (zero, sums))
    kernels.dynamic[scale.shape[0] * scale.shape[1], kernels.THREADS, _stream(out)](
        _array(x), group, *limits, *map(_array, (scale, zero, sums, out))
    )


def _pairs(ends: Any) -> Any:
    """8 bytes a place as two float32."""
    shape = (*ends.shape, 2)
    return ends.view(np.float32).reshape(shape) if isinstance(ends, np.ndarray) else ends.shaped(*shape)._replace(
        dtype="float32"
    )  # fmt: skip


def _flat(x: Any) -> Any:
    return x.reshape(-1) if isinstance(x, np.ndarray) else x.shaped(x.size)


def find_extremes(x: Any, ends: Any, repeat: int, group: int) -> None:
    """As backends.cuda's, of float32."""
    from qkernels.backends import _numba_cuda_ranges as kernels

    if str(x.dtype) != "float32":
        raise TypeError(f"quantize: x is {x.dtype} on a GPU, wanted float32: Numba's kernels find no other range")
    grid = kernels.THREADS, _stream(x)
    kernels.clear[_blocks(ends, kernels.THREADS), *grid](_array(_pairs(_flat(ends))))
    kernels.extremes[_blocks(x, kernels.THREADS), *grid](_array(x), repeat, group, _array(_pairs(ends)))


def scales_of_extremes(
    ends: Any, limits: tuple[int, int], middle: int | None, scale_dtype: str, found: Any, *groups: int
) -> None:
    """As backends.cuda's, of float32 scales of one level."""
    from qkernels.backends import _numba_cuda_ranges as kernels

    if scale_dtype != "float32" or found.factors is not None:
        raise ValueError(
            "quantize: scale_dtype and two_level on a GPU need csrc/cuda: Numba's kernels do not know them"
        )
    kernels.found[_blocks(found.scale, kernels.THREADS), kernels.THREADS, _stream(found.scale)](
        _array(_pairs(_flat(ends))), *limits, middle is not None, middle or 0, _array(_flat(found.scale)),
        _array(_flat(found.zero)),
    )  # fmt: skip


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


KERNELS: tuple[Kernel, ...] = (
    *(_kernel("gemm", types, "nk16", _gemm) for types in TYPES),
    *(_kernel("quantize", f"f32{code}", "", _quantize) for code in ("s8", "u8")),
    *(_kernel("requantize", f"s32{code}", "", _requantize) for code in ("s8", "u8")),
    *(_kernel("dequantize", f"{code}f32", "", _dequantize) for code in ("s8", "u8")),
    *(_kernel("dynamic_quantize", f"f32{code}", "", _dynamic) for code in ("s8", "u8")),
)
