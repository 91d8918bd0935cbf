"""The compiled pools: each row of `pool_rows()` becomes a Kernel. Without the module, none."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from qkernels.kernel import Average, Hardware, Kernel, Problem, Window

try:
    import qkernels._native as _native
except ImportError:
    _native = None  # type: ignore[assignment]

CALL_US = 2.0  # of crossing into C++


def _judge(row: dict[str, Any], problem: Problem, hardware: Hardware) -> float | str:
    if problem.op != row["op"] or problem.types != row["types"]:
        return f"is for {row['op']} {row['types']}"
    if row["isa"] not in hardware.cpu:
        return f"this CPU lacks {row['isa']}"
    return float(CALL_US + 1e-3 * problem.m * problem.n * problem.k * row["ns"])


def _max_pool(module: Any, index: int, threads: int, x: np.ndarray, window: Window, out: np.ndarray) -> None:
    before = window.pads[0][0], window.pads[1][0]
    module.pool(index, x, window.kernel, window.stride, before, window.dilation, None, out, threads)


def _avg_pool(
    module: Any, index: int, threads: int, x: np.ndarray, window: Window, by: Average, out: np.ndarray
) -> None:
    before = window.pads[0][0], window.pads[1][0]
    module.pool(index, x, window.kernel, window.stride, before, window.dilation, tuple(by), out, threads)


def _channel_sum(module: Any, index: int, threads: int, x: np.ndarray, out: np.ndarray) -> None:
    module.pool(index, x, x.shape[1:3], (1, 1), (0, 0), (1, 1), None, out, threads)


_RUN: dict[str, Any] = {"max_pool": _max_pool, "avg_pool": _avg_pool, "channel_sum": _channel_sum}


def kernels_of(module: Any, threads: int = 0) -> tuple[Kernel, ...]:
    """The rows of a compiled module. threads 0: as many as set and worth waking; else exactly so many."""
    return tuple(
        Kernel(
            f"{row['op']}_{row['types']}_{row['isa']}", row["op"], row["types"], row["isa"], "",
            functools.partial(_judge, row), functools.partial(_RUN[row["op"]], module, index, threads),
        )
        for index, row in enumerate(module.pool_rows())
    )  # fmt: skip


KERNELS = kernels_of(_native) if _native else ()
INDEX = {kernel.name: index for index, kernel in enumerate(KERNELS)}
