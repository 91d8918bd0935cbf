"""GPU kernels in Numba: a fallback for machines without nvcc, where `_cuda` could not be built.

One element a thread, or a 16 × 16 tile a block: exact, and slow beside csrc/cuda (no tensor cores).
"""

from __future__ import annotations

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
    from numba import cuda

    item = np.dtype(x.dtype).itemsize
    return cuda.from_cuda_array_interface(
        {
            "shape": x.shape, "strides": tuple(step * item for step in x.strides), "typestr": np.dtype(x.dtype).str,
            "data": (x.pointer, False), "version": 3,
        },
        owner=x.owner,
    )  # fmt: skip


def _zeros(like: Any, shape: tuple[int, ...]) -> Any:
    return np.zeros(shape, np.int32) if isinstance(like, np.ndarray) else like.constant(0, "int32", shape)


def _stream(x: Any) -> Any:
    from numba import cuda

    return 0 if isinstance(x, np.ndarray) else cuda.external_stream(x.stream)


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


def _judge(op: str, types: str, problem: Problem, hardware: Hardware) -> float | str:
    if problem.op != op or problem.types != types:
        return f"is for {op} {types}"
    if not problem.device:
        return "is for arrays on a GPU"
    if "numba" not in hardware.cpu or importlib.util.find_spec("numba.cuda") is None:
        return "numba is not installed"
    return 100 + 2 * problem.m * problem.n * problem.k / 1e6


def _kernel(op: str, types: str, layout: str, run: Callable[..., None]) -> Kernel:
    def judge(problem: Problem, hardware: Hardware) -> float | str:
        return _judge(op, types, problem, hardware)

    return Kernel(f"{op}_{types}_numba_cuda", op, types, "numba_cuda", layout, judge, run)


KERNELS: tuple[Kernel, ...] = (
    *(_kernel("gemm", types, "nk16", _gemm) for types in TYPES),
    *(_kernel("quantize", f"f32{code}", "", _quantize) for code in ("s8", "u8")),
    *(_kernel("requantize", f"s32{code}", "", _requantize) for code in ("s8", "u8")),
)
