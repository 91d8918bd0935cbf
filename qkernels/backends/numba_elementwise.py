"""Codes from real numbers and accumulators, and back, in Numba: one pass over memory, on one thread.

The rules are those of numpy_elementwise.py, element by element. Every operand is cast: Numba makes float64 of
int32·float32, which changes bits (A0). Compiled at the first call of each type (1 s), then read from Numba's cache; the
cost says so, in order that small arrays are left to NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qkernels.backends._reals import REALS, reads, writes
from qkernels.kernel import Hardware, Kernel, Multipliers, Problem, Scales

_NO_ZERO = np.zeros((1, 1), np.int32)


def _compiled() -> Any:
    from qkernels.backends import _numba_elementwise  # imports Numba: 0.5 s, and it may not be there

    return _numba_elementwise


def _zero(by: Scales | Multipliers) -> np.ndarray:
    return _NO_ZERO if by.zero is None else by.zero


def _signed(out: np.ndarray) -> np.ndarray:
    """Codes keep their low bits in a signed integer of the same size: half as many functions to compile."""
    return out.view(f"i{out.itemsize}")


def quantize(x: np.ndarray, by: Scales, limits: tuple[int, int], out: np.ndarray) -> None:
    _compiled().quantize(x, by.scale, _zero(by), by.zero is not None, by.repeat, by.group, *limits, _signed(out))


def dequantize(q: np.ndarray, by: Scales, out: np.ndarray) -> None:
    _compiled().dequantize(q, by.scale, _zero(by), by.zero is not None, by.repeat, by.group, out)


def dynamic_quantize(
    x: np.ndarray,
    group: int,
    limits: tuple[int, int],
    scale: np.ndarray,
    zero: np.ndarray,
    sums: np.ndarray | None,
    out: np.ndarray,
) -> None:
    totals = np.empty(scale.shape, np.int32) if sums is None else sums
    row = _compiled().symmetric if limits[0] < 0 else _compiled().asymmetric
    row(x, group, limits[1], scale, zero, totals, _signed(out))


def requantize(acc: np.ndarray, by: Multipliers, limits: tuple[int, int], out: np.ndarray) -> None:
    m = by.m
    e, bias = (np.zeros(m.shape, np.int32) if v is None else v for v in (by.e, by.bias))
    zero = by.zero if by.zero is not None else np.zeros(m.shape, np.int32)
    run = getattr(_compiled(), by.rounding)
    run(acc, m, e, bias, zero, by.repeat, by.group, *limits, _signed(out))


# Nanoseconds an element on one core, measured at 4096² beside NumPy's rows. NumPy dequantizes faster.
_NS = {"quantize": 1.9, "dequantize": 2.2, "dynamic_quantize": 3.5, "requantize": 3.0}
START = 1000.0  # µs, not measured: a first call takes 10⁵ to 10⁶ (import, cache), which small arrays never repay


def _row(op: str, types: str, run: Callable[..., None]) -> Kernel:
    def judge(problem: Problem, hardware: Hardware) -> float | str:
        if problem.op != op or problem.types != types:
            return f"is for {op} {types}"
        if "numba" not in hardware.cpu:
            return "numba is not installed"
        return START + _NS[op] * 1e-3 * problem.m * problem.n

    return Kernel(f"{op}_{types}_numba", op, types, "numba", "", judge, run)


_CODES = ("s8", "u8", "s16", "u16")
KERNELS: tuple[Kernel, ...] = (
    *(_row("quantize", real + codes, reads(real, quantize)) for codes in _CODES for real in REALS),
    *(_row("dequantize", codes + real, writes(real, dequantize)) for codes in _CODES for real in REALS),
    *(_row("dynamic_quantize", real + codes, reads(real, dynamic_quantize)) for codes in _CODES[:2] for real in REALS),
    *(_row("requantize", "s32" + codes, requantize) for codes in _CODES),
)
