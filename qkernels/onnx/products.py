"""Products of codes: QLinearMatMul, MatMulInteger, QGemm, MatMulIntegerToFloat, DynamicQuantizeMatMul, MatMulNBits, and
real rows times weights that stay codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qkernels.importers import from_matmul_nbits
from qkernels.onnx.codes import by_axis, of_columns, of_rows, plain, whole
from qkernels.onnx.graph import MICROSOFT, OURS, Node
from qkernels.onnx.registry import Run, once, operator, point, scalar
from qkernels.ops.dynamic_quantize import dynamic_quantize
from qkernels.ops.linear import linear, pack_linear
from qkernels.ops.matmul import matmul
from qkernels.ops.pack import pack
from qkernels.ops.requantize import requantize
from qkernels.tensor import QTensor

F32 = np.float32


def weight_of(node: Node, b: int, scale: int, zero: int, transposed: bool = False) -> Any:
    """Inputs b (k, n), its scale and its zero point, packed for `linear`; None unless they are constants."""
    codes, step = node.constant(b), node.constant(scale)
    if codes is None or step is None or codes.ndim != 2 or 0 in codes.shape:
        return None
    if node.has(zero) and node.constant(zero) is None:
        return None
    made = by_axis(codes, step, node.constant(zero), 0) if transposed else of_columns(codes, step, node.constant(zero))
    return pack_linear(made)


def by_matrices(a: np.ndarray, b: np.ndarray, one: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """one(matrix of a, matrix of b) over the batch, which broadcasts as in matmul."""
    if a.ndim <= 2 and b.ndim <= 2:
        return one(a, b)
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    left, right = (np.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (a, b))
    made = [one(left[i], right[i]) for i in np.ndindex(*batch)]
    return np.stack(made).reshape(*batch, *made[0].shape)


@operator("QLinearMatMul")
@operator("QLinearMatMul", MICROSOFT, "", 8)
def qlinear_matmul(node: Node) -> Run:
    packed = weight_of(node, 3, 4, 5)
    out_scale, out_zero = once(node, 6, scalar), once(node, 7, point)

    def run(a: Any, sa: Any, za: Any, b: Any, sb: Any, zb: Any, sy: Any, zy: Any) -> np.ndarray:
        to = written(out_scale(sy), out_zero(zy), zy.dtype, a.dtype)
        if packed is not None:
            return linear(of_rows(a, sa, za), packed, **to)._data
        if sa.size == sb.size == np.size(zb) == 1:
            acc = matmul(a, b, a_zero_point=point(za), b_zero_point=point(zb))
            m = multiplier(scalar(sa), scalar(sb), to["out_scale"])
            return np.asarray(requantize(np.asarray(acc), m, to["out_zero_point"], dtype=zy.dtype.name))
        return by_matrices(a, b, lambda x, w: linear(of_rows(x, sa, za), of_columns(w, sb, zb), **to)._data)

    return run


def written(scale: Any, zero: int, dtype: np.dtype, default: np.dtype) -> dict[str, Any]:
    """What `linear` is told of its result; the type only where it is not that of x: so it takes its short way."""
    to = {"out_scale": scale, "out_zero_point": zero}
    return to if dtype == default else {**to, "out_dtype": dtype.name}


def multiplier(sa: np.float32, sb: np.float32, sy: np.float32) -> np.float32:
    """A4 for half_even: f32(f32(sa·sb)/sy)."""
    with np.errstate(over="ignore", under="ignore"):
        return (sa * sb) / sy


@operator("MatMulInteger")
def matmul_integer(node: Node) -> Run:
    codes = node.constant(1)
    packed = pack(codes) if codes is not None and codes.ndim == 2 and codes.size else None

    def run(a: Any, b: Any, za: Any = None, zb: Any = None) -> np.ndarray:
        b = b if packed is None else packed
        return np.asarray(matmul(a, b, a_zero_point=_zeros(za, -1), b_zero_point=_zeros(zb, -2)))

    return run


def _zeros(zero: Any, summed: int) -> Any:
    """Zero points of rows or columns, without the axis that is summed over: (…, m, 1) → (…, m)."""
    if zero is None or zero.size == 1:
        return point(zero)
    return zero.squeeze(summed) if zero.ndim > 1 else zero


@operator("QGemm", MICROSOFT, "alpha transA transB", 6)
def qgemm(node: Node) -> Run:
    turn_a, turn_b = bool(node.get("transA", 0)), bool(node.get("transB", 0))
    alpha, packed = F32(node.get("alpha", 1.0)), weight_of(node, 3, 4, 5, turn_b)

    def run(a: Any, sa: Any, za: Any, b: Any, sb: Any, zb: Any, c: Any = None, sy: Any = None, zy: Any = None) -> Any:
        weight = packed
        if weight is None:
            weight = by_axis(b, sb, zb, 0) if turn_b else of_columns(b, sb, zb)
        x = whole(a.T if turn_a else a, alpha * scalar(sa), point(za))
        to: dict[str, Any] = {}
        if sy is not None:
            to = written(scalar(sy), point(zy), zy.dtype, a.dtype)
        if c is None or c.size == 1 or c.size == c.shape[-1]:
            bias = None if c is None else np.ascontiguousarray(np.broadcast_to(c.reshape(-1), weight.shape[:1]))
            made = linear(x, weight, bias, **to)
        else:  # a bias of each row: row by row
            rows = np.broadcast_to(c, (x.shape[0], weight.shape[0]))
            parts = [linear(x[i : i + 1], weight, np.ascontiguousarray(row), **to) for i, row in enumerate(rows)]
            return np.concatenate([part._data if sy is not None else part for part in parts])
        return made._data if sy is not None else made

    return run


@operator("MatMulIntegerToFloat", MICROSOFT, "", 4)
def matmul_integer_to_float(node: Node) -> Run:
    packed = weight_of(node, 1, 3, 5)

    def run(a: Any, b: Any, sa: Any, sb: Any, za: Any = None, zb: Any = None, bias: Any = None) -> np.ndarray:
        if packed is not None:
            return linear(of_rows(a, sa, za), packed, bias)
        return by_matrices(a, b, lambda x, w: linear(of_rows(x, sa, za), of_columns(w, sb, zb), bias))

    return run


@operator("DynamicQuantizeMatMul", MICROSOFT, "", 3)
def dynamic_quantize_matmul(node: Node) -> Run:
    packed = weight_of(node, 1, 2, 3)

    def run(a: Any, b: Any, sb: Any, zb: Any = None, bias: Any = None) -> np.ndarray:
        x = dynamic_quantize(a, dtype="uint8", per="tensor")
        if packed is not None:
            return linear(x, packed, bias)
        return by_matrices(
            x._data, b, lambda m, w: linear(whole(m, x._scale, x._zero), of_columns(w, sb, zb), bias)
        )  # fmt: skip

    return run


@operator("WeightOnly", OURS)
def weight_only(node: Node) -> Run:
    """x, w (k, n) or turned (n, k), its scale and zero point by tensor, column or block of k, a bias → x · w + bias."""
    turned, block = bool(node.get("turned")), node.get("block_size", 0)

    def by_row(values: Any) -> Any:  # of the weight (n, k)
        return None if values is None else np.ascontiguousarray(values if turned or values.ndim < 2 else values.T)

    codes, scale, zero = (by_row(node.constant(i)) for i in (1, 2, 3))
    if block:
        data, name = plain(codes)
        zeros: Any = 0 if zero is None else plain(zero)[0]
        packed = pack_linear(QTensor(data, scale, zeros, dtype=name, axis=0, group_size=block))
    else:
        packed = pack_linear(by_axis(codes, scale, zero, 0))
    compute, bias = node.get("compute"), node.constant(4)
    added = None if bias is None else np.ascontiguousarray(bias.reshape(-1))
    return lambda x, *_: linear(x, packed, added, compute=compute)


NBITS = "K N bits block_size accuracy_level weight_prepacked"


@operator("MatMulNBits", MICROSOFT, NBITS, 3)
def matmul_nbits(node: Node) -> Run:
    k, n = node.get("K"), node.get("N")
    sizes = {"k": k, "n": n, "bits": node.get("bits", 4), "block_size": node.get("block_size", 32)}
    if not k or not n:
        raise ValueError("attributes 'K' and 'N' are missing")
    if node.get("weight_prepacked", 0):
        raise NotImplementedError("attribute 'weight_prepacked': the order of its weights is ONNX Runtime's own")
    if node.has(4):
        raise NotImplementedError("input 'g_idx' (groups that are not in order)")
    if any(node.has(i) and node.constant(i) is None for i in (1, 2, 3)):
        raise NotImplementedError("weights that are no constants")
    zeros = node.constant(3)
    if zeros is not None and zeros.dtype != np.uint8:
        raise NotImplementedError(f"zero points of type {zeros.dtype}, wanted packed uint8")
    packed = pack_linear(from_matmul_nbits(node.constant(1), node.constant(2), zeros, **sizes))
    compute: Any = "int8" if node.get("accuracy_level", 0) == 4 else "float32"

    def run(a: Any, b: Any, scales: Any, zeros: Any = None, index: Any = None, bias: Any = None) -> np.ndarray:
        return linear(a, packed, bias, compute=compute)

    return run
