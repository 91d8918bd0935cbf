"""What a quantized network does between its products, in Numba: one pass, on one thread.

The rules are those of numpy_network.py, element by element. Compiled at the first call of each type; the cost says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qkernels.kernel import Average, Hardware, Kernel, Problem, Product, Sum, Window

F32, S32 = np.float32, np.int32


def _compiled() -> Any:
    from qkernels.backends import _numba_network  # imports Numba: 0.5 s, and it may not be there

    return _numba_network


def _ends(out: np.ndarray) -> tuple[int, int]:
    return (-128, 127) if out.dtype.kind == "i" else (0, 255)


def add(a: np.ndarray, b: np.ndarray, by: Sum, out: np.ndarray) -> None:
    _compiled().add(a, b, F32(by.a_ratio), F32(by.b_ratio), F32(by.offset), *_ends(out), out)


def mul(a: np.ndarray, b: np.ndarray, by: Product, out: np.ndarray) -> None:
    _compiled().mul(a, b, F32(by.m), by.a_zero, by.b_zero, by.zero, *_ends(out), out)


def lookup(x: np.ndarray, table: np.ndarray, out: np.ndarray) -> None:
    _compiled().lookup(x, table, out)


def _geometry(window: Window) -> tuple[int, ...]:
    before = window.pads[0][0], window.pads[1][0]
    return (*window.kernel, *window.stride, *before, *window.dilation)


def max_pool(x: np.ndarray, window: Window, out: np.ndarray) -> None:
    _compiled().max_pool(x, _geometry(window), _ends(out)[0], out)


def avg_pool(x: np.ndarray, window: Window, by: Average, out: np.ndarray) -> None:
    scales = F32(by.scale), by.zero, F32(by.out_scale), F32(by.out_zero)
    _compiled().avg_pool(x, _geometry(window), scales, by.count_pads, *_ends(out), out)


def channel_sum(x: np.ndarray, out: np.ndarray) -> None:
    _compiled().channel_sum(x, out)


def softmax(x: np.ndarray, table: np.ndarray, factor: Any, zero: int, out: np.ndarray) -> None:
    _compiled().softmax(x, table, F32(factor), zero, *_ends(out), out)


_NS = {"add": 2.0, "mul": 2.0, "lookup": 0.6, "max_pool": 1.0, "avg_pool": 2.0, "channel_sum": 0.7, "softmax": 6.0}
_RUN: dict[str, Callable[..., None]] = {
    "add": add, "mul": mul, "lookup": lookup, "max_pool": max_pool, "avg_pool": avg_pool, "channel_sum": channel_sum,
    "softmax": softmax,
}  # fmt: skip
START = 1000.0  # µs, as numba_elementwise.py's


def _row(op: str, types: str) -> Kernel:
    def judge(problem: Problem, hardware: Hardware) -> float | str:
        if problem.op != op or problem.types != types:
            return f"is for {op} {types}"
        if "numba" not in hardware.cpu:
            return "numba is not installed"
        return START + _NS[op] * 1e-3 * problem.m * problem.n * problem.k

    return Kernel(f"{op}_{types}_numba", op, types, "numba", "", judge, _RUN[op])


KERNELS: tuple[Kernel, ...] = (
    *(_row(op, q * 3) for op in ("add", "mul") for q in ("s8", "u8")),
    _row("lookup", "u8u8"),
    *(_row(op, q * 2) for op in ("max_pool", "avg_pool", "softmax") for q in ("s8", "u8")),
    *(_row("channel_sum", q + "s32") for q in ("s8", "u8")),
)
