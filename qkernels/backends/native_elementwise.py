"""The compiled elementwise kernels: each row of `elementwise_rows()` becomes a Kernel. Without the module, none."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from qkernels.kernel import Hardware, Kernel, Multipliers, Problem, Product, Scales, Sum
from qkernels.rounding import ROUNDINGS

try:
    import qkernels._native as _native
except ImportError:
    _native = None  # type: ignore[assignment]

CALL_US = 1.0  # of crossing into C++
BYTES_NS = 0.1  # of memory, read or written once: what no cache holds


def _judge(row: dict[str, Any], problem: Problem, hardware: Hardware) -> float | str:
    if problem.op != row["op"] or problem.types != row["types"]:
        return f"is for {row['op']} {row['types']}"
    if row["isa"] not in hardware.cpu:
        return f"this CPU lacks {row['isa']}"
    return float(CALL_US + 1e-3 * problem.m * problem.n * (row["ns"] + BYTES_NS * row["bytes"]))


def _quantize(
    native: Callable[..., None], index: int, threads: int, x: np.ndarray, by: Scales, limits: tuple[int, int],
    out: np.ndarray,
) -> None:  # fmt: skip
    native(index, x, by.scale, by.zero, by.repeat, by.group, *limits, out, threads)


def _dequantize(
    native: Callable[..., None], index: int, threads: int, q: np.ndarray, by: Scales, out: np.ndarray
) -> None:
    native(index, q, by.scale, by.zero, by.repeat, by.group, out, threads)


def _dynamic_quantize(
    native: Callable[..., None], index: int, threads: int, x: np.ndarray, group: int, limits: tuple[int, int],
    scale: np.ndarray, zero: np.ndarray, sums: np.ndarray | None, out: np.ndarray,
) -> None:  # fmt: skip
    native(index, x, group, *limits, scale, zero, sums, out, threads)


def _requantize(
    native: Callable[..., None], index: int, threads: int, acc: np.ndarray, by: Multipliers, limits: tuple[int, int],
    out: np.ndarray,
) -> None:  # fmt: skip
    rounding = ROUNDINGS.index(by.rounding)
    native(index, acc, rounding, by.m, by.e, by.bias, by.zero, by.repeat, by.group, *limits, out, threads)


def _add(
    native: Callable[..., None], index: int, threads: int, a: np.ndarray, b: np.ndarray, by: Sum, out: np.ndarray
) -> None:
    native(index, a[None], b[None], by.a_ratio, by.b_ratio, by.offset, out[None], threads)


def _mul(
    native: Callable[..., None], index: int, threads: int, a: np.ndarray, b: np.ndarray, by: Product, out: np.ndarray
) -> None:
    native(index, a[None], b[None], by.m, by.a_zero, by.b_zero, by.zero, out[None], threads)


def _lookup(
    native: Callable[..., None], index: int, threads: int, x: np.ndarray, table: np.ndarray, out: np.ndarray
) -> None:
    native(index, x[None], table[None], out[None], threads)


def _softmax(
    native: Callable[..., None], index: int, threads: int, x: np.ndarray, table: np.ndarray, factor: Any, zero: int,
    out: np.ndarray,
) -> None:  # fmt: skip
    native(index, x, table[None], factor, zero, out, threads)


_RUN: dict[str, Callable[..., None]] = {
    "quantize": _quantize, "dequantize": _dequantize, "dynamic_quantize": _dynamic_quantize, "requantize": _requantize,
    "add": _add, "mul": _mul, "lookup": _lookup, "softmax": _softmax,
}  # fmt: skip


def kernels_of(module: Any, threads: int = 0) -> tuple[Kernel, ...]:
    """The rows of a compiled module. threads 0: as many as set and worth waking; else exactly so many."""
    return tuple(
        Kernel(
            f"{row['op']}_{row['types']}_{row['isa']}",
            row["op"],
            row["types"],
            row["isa"],
            "",
            functools.partial(_judge, row),
            functools.partial(_RUN[row["op"]], getattr(module, row["op"]), index, threads),
        )
        for index, row in enumerate(module.elementwise_rows())
    )


KERNELS = kernels_of(_native) if _native else ()
INDEX = {kernel.name: index for index, kernel in enumerate(KERNELS)}
