"""add: the sum of two quantized tensors, in codes of its own."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from qkernels.dtypes import container
from qkernels.kernel import Problem, Sum
from qkernels.ops import network
from qkernels.scales import Grain
from qkernels.tensor import QTensor

F32 = np.float32


def add(a: QTensor, b: QTensor, out_scale: Any, out_zero_point: Any = 0) -> QTensor:
    """a + b, rescaled and rounded once                                                              arithmetic.md A14

    a, b            QTensors of one type, int8 or uint8, each with one scale; shapes broadcast as NumPy's
    out_scale       of the result, finite and > 0
    out_zero_point  of the result, a code of the type

    Returns a QTensor of the operands' type. Where shapes are equal this is com.microsoft.QLinearAdd, bit for bit, as
    ONNX Runtime computes it on CPUs with AVX2.
    Raises  TypeError no QTensor · ValueError types, axes, shapes, scale, zero point.
    Source  ONNX Runtime QLinearAdd.
    """
    made = short_pair(False, a, b, out_scale, out_zero_point)
    if made is not None:
        return made
    call = check_pair(a, b, out_scale, out_zero_point, "add")
    assert isinstance(a._zero, int) and isinstance(b._zero, int)
    with np.errstate(over="ignore", under="ignore"):
        ratios = network.scale_of(a) / call.scale, network.scale_of(b) / call.scale
        offset = F32(call.zero) - (ratios[0] * F32(a._zero) + ratios[1] * F32(b._zero))
    if not np.isfinite(ratios).all() or not np.isfinite(offset):
        raise ValueError(f"add: out_scale={call.scale} is too small beside the operands': their ratio is not finite")
    return run_pair("add", call, Sum(*ratios, offset))


def short_pair(product: bool, a: Any, b: Any, scale: Any, zero: Any) -> QTensor | None:
    """An ordinary call of a kind that was decided before; None: `check_pair` shall do it, or refuse."""
    if type(a) is not QTensor or type(b) is not QTensor or a.dtype not in network.TYPES or b.dtype != a.dtype:
        return None
    real = float(scale) if type(scale) is F32 else scale
    made = network.ROAD.pair(product, a._data, a._scale, a._zero, b._data, b._scale, b._zero, real, zero)
    if made is None:
        return None
    return QTensor._of_codes(*made, zero, a.dtype, Grain(a.shape), "float32", None, a._library)


class Pair(NamedTuple):
    a: np.ndarray  # codes, C contiguous, of the result's shape
    b: np.ndarray
    scale: np.float32
    zero: int
    like: QTensor


def check_pair(a: Any, b: Any, scale: Any, zero: Any, op: str) -> Pair:
    """What add and mul want of their operands."""
    x, y = network.tensor(a, op, "a"), network.tensor(b, op, "b")
    if x.dtype != y.dtype:
        raise ValueError(f"{op}: b has dtype {y.dtype}, a has {x.dtype}")
    try:
        shape = np.broadcast_shapes(x.shape, y.shape)
    except ValueError:
        raise ValueError(f"{op}: b has shape {y.shape}, a has {x.shape}, which do not broadcast") from None
    codes = [np.ascontiguousarray(np.broadcast_to(q._plain(), shape)).reshape(shape) for q in (x, y)]
    return Pair(codes[0], codes[1], *network.out_scale(scale, zero, x, op, required=True), x)


def run_pair(op: str, call: Pair, by: Any) -> QTensor:
    out = np.empty(call.a.shape, container(call.like.dtype))
    flat = call.a.reshape(-1), call.b.reshape(-1), by, out.reshape(-1)
    network.run(op, network.letters(call.like) * 3, call.a.shape, flat)
    return network.result(out, call.scale, call.zero, call.like)


def _problem_of(a: Any, b: Any, out_scale: Any, out_zero_point: Any = 0) -> Problem | str:
    call = check_pair(a, b, out_scale, out_zero_point, "add")
    return network.problem_of("add", network.letters(call.like) * 3, call.a.shape)


add.problem_of = _problem_of  # type: ignore[attr-defined]
