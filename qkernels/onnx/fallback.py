"""Operators that have no implementation here run by ONNX's reference, one node at a time."""

from __future__ import annotations

from typing import Any

from onnx.reference import ReferenceEvaluator
from onnx.reference.ops._op_list import load_op

from qkernels.onnx.errors import UnsupportedError
from qkernels.onnx.graph import Node
from qkernels.onnx.registry import Run


def reference(node: Node) -> Run:
    """The node as onnx.reference has it."""
    if node.proto is None:
        raise UnsupportedError(f"{node.label}: no such operator")
    parameters: dict[str, Any] = {
        "log": _silent, "opsets": {"": node.opset}, "verbose": 0, "new_ops": None, "existing_functions": {},
        "evaluator_cls": ReferenceEvaluator,
    }  # fmt: skip
    try:
        made = load_op("", node.op, node.opset)(node.proto, parameters)
    except Exception as error:  # the reference says it in many ways
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnsupportedError(f"{node.label}: not supported in opset {node.opset} ({said})") from error

    def run(*inputs: Any) -> Any:
        outputs = made.run(*inputs)
        return outputs if len(outputs) > 1 else outputs[0]

    return run


def _silent(*_: Any) -> None:
    pass
