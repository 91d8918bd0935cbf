"""ONNX's own node cases of quantized operators through the Backend and through ReferenceEvaluator, exactly; and the
casts to and from 4 and 2 bits. Importing a case module makes its cases."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx brings the cases (extra: onnx)")
import onnx.backend.test.case.node as node  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

import qkernels.onnx as qo  # noqa: E402

INTEGER = (
    "qlinearmatmul", "matmulinteger", "convinteger", "qlinearconv", "quantizelinear", "dequantizelinear",
    "dynamicquantizelinear",
)  # fmt: skip
FLOAT_CODES = ("e4m3fn", "e5m2", "e8m0", "float4e2m1", "_expanded")  # no integers; graphs of other operators


def _cases(modules: tuple[str, ...]) -> list[Any]:
    for module in modules:
        importlib.import_module(f"onnx.backend.test.case.node.{module}")
    chosen = [c for c in node._NodeTestCases if c.name.startswith(tuple(f"test_{name}" for name in modules))]
    return [c for c in chosen if not any(word in c.name.lower() for word in FLOAT_CODES)]


QUANTIZED = _cases(INTEGER)
CASTS = [c for c in _cases(("cast", "castlike")) if "INT4" in c.name or "INT2" in c.name]


def array(x: Any) -> np.ndarray:
    return numpy_helper.to_array(x) if isinstance(x, TensorProto) else np.asarray(x)


def same(made: Any, wanted: Any) -> None:
    for got, reference in zip(made, map(array, wanted), strict=True):
        assert got.dtype == reference.dtype and got.shape == reference.shape
        if reference.dtype.kind in "iub":
            assert np.array_equal(got, reference)
        else:  # floats bit for bit, and 4- and 2-bit codes of ml_dtypes
            assert got.tobytes() == reference.tobytes()


def test_no_case_is_lost() -> None:
    assert len(QUANTIZED) >= 34, "onnx has fewer cases of these operators than it had"
    assert len(CASTS) >= 30


@pytest.mark.parametrize("case", [*QUANTIZED, *CASTS], ids=lambda case: case.name)
def test_backend(case: Any) -> None:
    prepared = qo.Backend.prepare(case.model)
    for inputs, wanted in case.data_sets:
        same(prepared.run(inputs), wanted)


@pytest.mark.parametrize("case", QUANTIZED, ids=lambda case: case.name)
def test_reference_evaluator(case: Any) -> None:
    seen = []
    classes = []
    for base in qo.operators():

        def counted(self: Any, *inputs: Any, base: Any = base, **attributes: Any) -> Any:
            seen.append(base.__name__)
            return base._run(self, *inputs, **attributes)

        classes.append(type(base.__name__, (base,), {"_run": counted, "op_domain": base.op_domain}))
    run = ReferenceEvaluator(case.model, new_ops=classes)
    for inputs, wanted in case.data_sets:
        names = [i.name for i in case.model.graph.input]
        same(run.run(None, dict(zip(names, map(array, inputs), strict=True))), wanted)
    assert seen == [case.model.graph.node[0].op_type] * len(case.data_sets)


def test_backend_interface() -> None:
    assert qo.supports_device("CPU") and qo.supports_device("cpu:0") and not qo.supports_device("CUDA")
    case = QUANTIZED[0]
    assert qo.Backend.is_compatible(case.model)
    with pytest.raises(ValueError, match="device='CUDA'"):
        qo.Backend.prepare(case.model, "CUDA")
    x = np.arange(-3, 4, dtype=np.float32)
    (y,) = qo.Backend.run_node(helper.make_node("Relu", ["x"], ["y"]), [x])
    assert np.array_equal(y, np.maximum(x, 0))
    unsupported = helper.make_model(
        helper.make_graph(
            [helper.make_node("NoSuch", ["x"], ["y"])], "g", case.model.graph.input, case.model.graph.output
        )
    )
    assert not qo.Backend.is_compatible(unsupported)
