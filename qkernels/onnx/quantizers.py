"""QuantizeLinear, DequantizeLinear, DynamicQuantizeLinear: 2 to 16 bits, by tensor, axis and block."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper

from qkernels import dtypes
from qkernels.onnx.codes import BYTES, elementwise, granularity, plain, typed, whole
from qkernels.onnx.graph import MICROSOFT, Node
from qkernels.onnx.registry import Run, operator, point, scalar
from qkernels.ops.dequantize import dequantize
from qkernels.ops.dynamic_quantize import dynamic_quantize
from qkernels.ops.quantize import quantize
from qkernels.tensor import QTensor

F32 = np.float32


def _output_type(node: Node, zero: Any) -> str:
    if zero is not None:
        name = dtypes.name_of(zero.dtype)
    else:
        wanted = node.get("output_dtype", 0)
        name = dtypes.name_of(helper.tensor_dtype_to_np_dtype(wanted)) if wanted else "uint8"
    if name not in dtypes.CODE_TYPES:
        raise NotImplementedError(f"codes of type {name}, wanted one of {dtypes.listed(dtypes.CODE_TYPES)}")
    return name


def _check_precision(node: Node) -> None:
    if node.get("precision", 0) not in (0, 1):
        raise NotImplementedError(f"attribute 'precision' is {node.get('precision')}, wanted float32")


@operator("QuantizeLinear")
@operator("QuantizeLinear", MICROSOFT, "axis", 2)
def quantize_linear(node: Node) -> Run:
    axis, block = node.get("axis", 1), node.get("block_size", 0)
    _check_precision(node)
    known = None if node.constant(1) is None else _by_tensor(node, node.constant(1), node.constant(2))

    def run(x: np.ndarray, scale: np.ndarray, zero: Any = None) -> np.ndarray:
        once = known if known is not None else _by_tensor(node, scale, zero)
        if once is not None and x.dtype.kind == "f":
            step, at, name = once
            if name in BYTES:
                return elementwise(lambda v: quantize(v, step, at, dtype=name)._data, x)
            return typed(elementwise(lambda v: quantize(v, step, at, dtype=name)._plain(), x), name)
        name = _output_type(node, zero)
        zeros: Any = 0 if zero is None else plain(zero)[0]
        by = granularity(x, scale, axis, block)
        if x.dtype.kind != "f" and dtypes.name_of(x.dtype) != "bfloat16":
            x = x.astype(F32)  # int32 accumulators, exact up to 2²⁴ as in ONNX
        if not by:
            scale, zeros = scale.reshape(()), int(np.reshape(zeros, ()))
        return typed(quantize(x, scale, zeros, dtype=name, **by)._plain(), name)

    return run


def _by_tensor(node: Node, scale: Any, zero: Any) -> tuple[Any, int, str] | None:
    """(scale, zero point, type) of a whole tensor; None where each axis or block has its own."""
    if scale is None or scale.size != 1 or node.get("block_size", 0) or (node.has(2) and zero is None):
        return None
    name = _output_type(node, zero)
    return scalar(scale), point(None if zero is None else plain(zero)[0]), name


@operator("DequantizeLinear")
@operator("DequantizeLinear", MICROSOFT, "axis", 2)
def dequantize_linear(node: Node) -> Run:
    axis, block = node.get("axis", 1), node.get("block_size", 0)
    wanted = node.get("output_dtype", 0)
    target = dtypes.name_of(helper.tensor_dtype_to_np_dtype(wanted)) if wanted else None
    if target not in (None, *dtypes.FLOAT_TYPES):
        raise NotImplementedError(f"attribute 'output_dtype' asks for {target}, wanted a float type")

    def run(x: np.ndarray, scale: np.ndarray, zero: Any = None) -> np.ndarray:
        kind = target or dtypes.name_of(scale.dtype)
        if x.dtype == np.int32:
            return _of_accumulators(x, scale, zero, axis).astype(kind, copy=False)
        codes, name = plain(x)
        if name not in dtypes.CODE_TYPES:
            raise NotImplementedError(f"{node.label}: codes of type {name}")
        if scale.size == 1 and not block and name in BYTES:
            step, at = scalar(scale), point(zero)
            return elementwise(lambda v: dequantize(whole(v, step, at), kind), x)
        by = granularity(x, scale, axis, block)
        zeros: Any = 0 if zero is None else plain(zero)[0]
        if not by:
            scale, zeros = scale.reshape(()), int(np.reshape(zeros, ()))
        return QTensor(codes, scale, zeros, dtype=name, **by).dequantize(kind)

    return run


def _of_accumulators(x: np.ndarray, scale: np.ndarray, zero: Any, axis: int) -> np.ndarray:
    """int32, of a bias for one: f32(x − zero) · scale."""
    shape = [1] * x.ndim
    if scale.size > 1:
        shape[axis % x.ndim] = -1
    at = 0 if zero is None else zero.astype(np.int64).reshape(shape if zero.size > 1 else (1,) * x.ndim)
    return (x.astype(np.int64) - at).astype(F32) * scale.astype(F32).reshape(shape)


@operator("DynamicQuantizeLinear")
def dynamic_quantize_linear(node: Node) -> Run:
    def run(x: np.ndarray) -> tuple[np.ndarray, ...]:
        found: list[Any] = []

        def codes(v: np.ndarray) -> np.ndarray:
            found.append(dynamic_quantize(v, dtype="uint8", per="tensor"))
            return found[0]._data

        made = elementwise(codes, x)
        return made, found[0]._scale, np.asarray(found[0]._zero, np.uint8)

    return run
