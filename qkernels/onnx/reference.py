"""OpRun classes: onnx.reference.ReferenceEvaluator runs a model node by node, the quantized ones by kernels."""

from __future__ import annotations

from typing import Any

from onnx import helper
from onnx.reference.op_run import OpRun

from qkernels.onnx import every
from qkernels.onnx.graph import MICROSOFT, Node
from qkernels.onnx.registry import OPERATORS, prepare

CODES = (every.between, every.convolutions, every.lstm, every.products, every.quantizers)
WEIGHTS = ("MatMulNBits", "DynamicQuantizeLSTM")  # their weights must be constants: each call's are


def _run(self: OpRun, *inputs: Any, **attributes: Any) -> tuple[Any, ...]:
    proto = self.onnx_node
    known = {a.name: helper.get_attribute_value(a) for a in proto.attribute}
    known = {name: value.decode() if isinstance(value, bytes) else value for name, value in known.items()}
    known.update({name: attributes[name] for name in known if name in attributes})
    constants = dict(zip(list(proto.input)[1:], inputs[1:], strict=False)) if proto.op_type in WEIGHTS else {}
    node = Node(
        proto.op_type, proto.domain, list(proto.input), list(proto.output), known, proto.name,
        self.run_params["opsets"].get(proto.domain, 1), proto, {n: v for n, v in constants.items() if v is not None},
    )  # fmt: skip
    made = prepare(node)(*inputs)
    return made if type(made) is tuple else (made,)


def operators() -> list[type[OpRun]]:
    """A class for each quantized operator: `ReferenceEvaluator(model, new_ops=operators())`."""
    names = {module.__name__ for module in CODES}
    return [
        type(name, (OpRun,), {"op_domain": domain, "_run": _run})
        for (domain, name), make in OPERATORS.items()
        if domain in ("", MICROSOFT) and make.__module__ in names
    ]
