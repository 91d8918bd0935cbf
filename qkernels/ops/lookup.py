"""lookup, clamp: any function of one code, through a table of 256."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from qkernels import activations
from qkernels.checks import owned
from qkernels.dtypes import container, limits, listed
from qkernels.kernel import Problem
from qkernels.ops import network
from qkernels.ops.dequantize import values
from qkernels.ops.quantize import quantize
from qkernels.tensor import QTensor

F32 = np.float32


def lookup(q: QTensor, function: Any, out_scale: Any = None, out_zero_point: Any = 0) -> QTensor:
    """function(q), a code at a time                                                                 arithmetic.md A15

    q          QTensor of int8 or uint8 with one scale, any shape
    function   "sigmoid" "tanh" "gelu" "gelu_tanh" "silu" "hardswish" "relu" "relu6"; or a function of a float32 array;
               or the table itself: 256 codes of q's type, the lowest code's first
    out_scale, out_zero_point   of the result; default: q's own

    The table's entries are quantize(function(dequantized code)).
    Raises  TypeError q or function · ValueError unknown names (with the known ones), scale, zero point, a table of
            another length or type.
    Source  ONNX Runtime QLinearSigmoid, QLinearLeakyRelu (com.microsoft).
    """
    x = network.tensor(q, "lookup", "q")
    scale, zero = network.out_scale(out_scale, out_zero_point, x, "lookup")
    if _is_table(function):
        table = _given(function, x)
    elif isinstance(function, str):
        assert isinstance(x._zero, int)
        table = _named(function, x.dtype, network.scale_of(x), x._zero, scale, zero)
    else:
        table = _made(_function(function), x, scale, zero)
    return network.result(by_table(x._plain(), table), scale, zero, x)


def by_table(codes: np.ndarray, table: np.ndarray) -> np.ndarray:
    """table: of codes' type, the lowest code's entry first."""
    raw = np.roll(table.view(np.uint8), 128) if table.dtype.kind == "i" else table
    out = np.empty(codes.shape, codes.dtype)
    x = np.ascontiguousarray(codes).reshape(-1)
    network.run("lookup", "u8u8", codes.shape, (x.view(np.uint8), raw, out.reshape(-1).view(np.uint8)))
    return out


def rescaled(q: QTensor, scale: np.float32, zero: int) -> np.ndarray:
    """q's codes in another scale and zero point: themselves where these are its own."""
    if network.scale_of(q) == scale and q._zero == zero:
        return q._plain()
    assert isinstance(q._zero, int)
    return by_table(q._plain(), _named(None, q.dtype, network.scale_of(q), q._zero, scale, zero))


def clamp(q: QTensor, low: float, high: float) -> QTensor:
    """The codes of q clamped to those of the real numbers low and high, half to even           arithmetic.md A6, A15

    q keeps its scale, zero point and type; ±inf leave an end open.
    Raises  TypeError q · ValueError low > high, NaN.
    """
    x = network.tensor(q, "clamp", "q")
    if not low <= high:
        raise ValueError(f"clamp: low={low!r}, high={high!r}, wanted low ≤ high")
    assert isinstance(x._zero, int)
    least, most = activations.clamp_codes((float(low), float(high)), network.scale_of(x), x._zero, "half_even")
    ends = limits(x.dtype)
    codes = np.arange(ends[0], ends[1] + 1)
    table = np.clip(np.clip(codes, least, most), *ends).astype(container(x.dtype))
    return network.result(by_table(x._plain(), table), network.scale_of(x), x._zero, x)


@functools.lru_cache(maxsize=256)
def _named(name: str | None, dtype: str, scale: Any, zero: Any, out_scale: np.float32, out_zero: int) -> np.ndarray:
    """The table of a function by its name, of the identity by None: made once, in 90 µs."""
    one = QTensor(np.zeros(1, container(dtype)), scale, zero)
    return owned(_made(_function(name) if name is not None else lambda x: x, one, out_scale, out_zero))


def _is_table(function: Any) -> bool:
    return isinstance(function, np.ndarray | list | tuple)


def _given(function: Any, q: QTensor) -> np.ndarray:
    table = np.asarray(function)
    low, high = limits(q.dtype)
    if table.shape != (256,) or table.dtype.kind not in "iu" or table.min() < low or table.max() > high:
        raise ValueError(
            f"lookup: the table has shape {table.shape} and dtype {table.dtype}, wanted 256 codes of {q.dtype}"
        )
    return table.astype(container(q.dtype))


def _function(function: Any) -> Callable[[np.ndarray], np.ndarray]:
    if callable(function):
        return function
    if not isinstance(function, str):
        raise TypeError(f"lookup: function is {type(function).__name__}, wanted a name, a function or a table")
    if function not in activations.NAMES:
        raise ValueError(f"lookup: function={function!r}, wanted one of {listed(activations.NAMES)}")
    named = activations.check_activation(function, "lookup")
    return lambda x: activations.activate(x, named)


def _made(function: Callable[[np.ndarray], np.ndarray], q: QTensor, scale: np.float32, zero: int) -> np.ndarray:
    low, high = limits(q.dtype)
    codes = np.arange(low, high + 1).astype(container(q.dtype))
    found = np.asarray(function(values(QTensor(codes, scale_of_one(q), q._zero))))
    if found.shape != (256,) or found.dtype.kind != "f":
        raise TypeError(f"lookup: function made {found.dtype} {found.shape} of float32 (256,), wanted the same shape")
    return quantize(found, scale, zero, dtype=q.dtype)._plain()


def scale_of_one(q: QTensor) -> float:
    return float(network.scale_of(q))


def _problem_of(q: Any, *_: Any, **__: Any) -> Problem | str:
    return network.problem_of("lookup", "u8u8", network.tensor(q, "lookup", "q").shape)


lookup.problem_of = _problem_of  # type: ignore[attr-defined]
clamp.problem_of = _problem_of  # type: ignore[attr-defined]
