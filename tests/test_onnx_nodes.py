"""ONNX's own backend node cases of quantized operators, exactly. Importing a case module makes its cases."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import qkernels as qk
from qkernels import dtypes

onnx = pytest.importorskip("onnx", reason="onnx brings the cases (extra: onnx)")
import onnx.backend.test.case.node as node  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

MODULES = ("qlinearmatmul", "matmulinteger", "quantizelinear", "dequantizelinear", "dynamicquantizelinear")
FLOAT_CODES = ("e4m3fn", "e5m2", "float4e2m1", "_expanded")  # no integers; graphs of other operators
for _name in MODULES:
    importlib.import_module(f"onnx.backend.test.case.node.{_name}")
CASES = [  # the list is onnx's own, and has what other tests import as well
    case
    for case in node._NodeTestCases
    if case.name.startswith(tuple(f"test_{name}" for name in MODULES))
    and not any(word in case.name for word in FLOAT_CODES)
]


def array(x: Any) -> np.ndarray:
    return numpy_helper.to_array(x) if isinstance(x, TensorProto) else np.asarray(x)


def plain(x: np.ndarray) -> tuple[np.ndarray, str]:
    """Codes one a value, and the name of their type (ml_dtypes has int4 and uint2)."""
    name = dtypes.name_of(x.dtype)
    return x.astype(dtypes.container(name)), name


def granularity(x: np.ndarray, scale: np.ndarray, axis: int, block_size: int) -> dict[str, Any]:
    if scale.size == 1:
        return {}
    if block_size:
        axis %= x.ndim
        return {
            "axis": tuple(i for i in range(x.ndim) if i != axis) or None, "group_size": block_size, "group_axis": axis,
        }  # fmt: skip
    return {"axis": axis % x.ndim}


def quantize_linear(x: Any, scale: Any, zero: Any = None, axis: int = 1, block_size: int = 0, **at: Any) -> tuple:
    output = dtypes.name_of(helper.tensor_dtype_to_np_dtype(at["output_dtype"])) if at.get("output_dtype") else "uint8"
    codes, name = (0, output) if zero is None else plain(zero)
    by = granularity(x, scale, axis, block_size)
    q = qk.quantize(x, scale if by else scale.reshape(()), codes if by else np.max(codes), dtype=name, **by)
    return q.codes(), name


def dequantize_linear(x: Any, scale: Any, zero: Any = None, axis: int = 1, block_size: int = 0, **at: Any) -> tuple:
    codes, name = plain(x)
    by = granularity(x, scale, axis, block_size)
    zeros: Any = 0 if zero is None else plain(zero)[0]
    q = qk.QTensor(codes, scale if by else scale.reshape(()), zeros if by else np.max(zeros), dtype=name, **by)
    return q.dequantize(scale.dtype), dtypes.name_of(scale.dtype)


def dynamic_quantize_linear(x: Any) -> list[tuple]:
    q = qk.dynamic_quantize(x, dtype="uint8", per="tensor")
    return [(q.codes(), "uint8"), (q.scale, "float32"), (np.uint8(q.zero_point), "uint8")]


def matmul_integer(a: Any, b: Any, a_zero: Any = None, b_zero: Any = None) -> tuple:
    zeros = {"a_zero_point": 0 if a_zero is None else a_zero, "b_zero_point": 0 if b_zero is None else b_zero}
    return qk.matmul(
        a, b, **{name: zero if np.ndim(zero) == 0 else zero.reshape(-1) for name, zero in zeros.items()}
    ), ""


def qlinear_matmul(a: Any, sa: Any, za: Any, b: Any, sb: Any, zb: Any, sy: Any, zy: Any) -> tuple:
    """Batches of matrices: a linear layer each."""
    one = [np.asarray(v).reshape(-1)[0] for v in (sa, za, sb, zb, sy, zy)]

    def product(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        weight = qk.QTensor(np.ascontiguousarray(w.T), one[2], one[3])
        out = qk.linear(qk.QTensor(x, one[0], one[1]), weight, out_scale=one[4], out_zero_point=one[5],
                        out_dtype=np.asarray(zy).dtype)  # fmt: skip
        return out.codes()

    if a.ndim == 2:
        return product(a, b), ""
    return np.stack([product(x, w) for x, w in zip(a, b, strict=True)]), ""


OPERATORS: dict[str, Callable[..., Any]] = {
    "QuantizeLinear": quantize_linear, "DequantizeLinear": dequantize_linear, "MatMulInteger": matmul_integer,
    "DynamicQuantizeLinear": dynamic_quantize_linear, "QLinearMatMul": qlinear_matmul,
}  # fmt: skip


def test_no_case_is_lost() -> None:
    assert len(CASES) >= 31, "onnx has fewer cases of these operators than it had"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_node(case: Any) -> None:
    (at,) = case.model.graph.node
    attributes = {a.name: helper.get_attribute_value(a) for a in at.attribute}
    for inputs, wanted in case.data_sets:
        by_name = dict(zip((i.name for i in case.model.graph.input), map(array, inputs), strict=True))
        made = OPERATORS[at.op_type](*[by_name[name] if name else None for name in at.input], **attributes)
        made = made if isinstance(made, list) else [made]
        for (got, name), reference in zip(made, map(array, wanted), strict=True):
            codes = reference
            if name and dtypes.name_of(reference.dtype) not in dtypes.FLOAT_TYPES:
                codes, of_type = plain(reference)
                assert name == of_type
            got = np.asarray(got)
            assert got.dtype == codes.dtype and got.shape == codes.shape
            assert np.array_equal(got, codes)
