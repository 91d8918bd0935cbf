"""A model as a list of nodes that can be rewritten: read once, checked once, in the order in which it is run."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import helper, numpy_helper

from qkernels.onnx.errors import ModelError, UnsupportedError

OURS = "qkernels"  # the domain of nodes that fusions make
MICROSOFT = "com.microsoft"
OLDEST = 7  # of ONNX's own operators: the first whose elementwise ones broadcast as NumPy does
DOMAINS = ("", "ai.onnx", MICROSOFT)


@dataclass(eq=False)
class Node:
    """One operator. Inputs that are left out have the name ""."""

    op: str
    domain: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    opset: int = 1
    proto: Any = None  # the NodeProto that it was; None where a fusion made it
    constants: dict[str, np.ndarray] = field(default_factory=dict)  # the graph's, by name

    @property
    def label(self) -> str:
        """As messages name it: Conv 'conv_1', or by its first output where it has no name."""
        return f"{self.op} {self.name!r}" if self.name else f"{self.op} (→ {', '.join(map(repr, self.outputs))})"

    def constant(self, index: int) -> np.ndarray | None:
        """Input `index`, if it is known before any input of the model is."""
        return self.constants.get(self.inputs[index]) if self.has(index) else None

    def has(self, index: int) -> bool:
        return index < len(self.inputs) and bool(self.inputs[index])

    def get(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)


@dataclass(eq=False)
class Value:
    """What is said of an input or an output; sizes are ints, names, or None where anything goes."""

    name: str
    dtype: np.dtype | None
    shape: tuple[Any, ...] | None


@dataclass(eq=False)
class Graph:
    nodes: list[Node]
    constants: dict[str, np.ndarray]
    inputs: list[Value]
    outputs: list[Value]

    def producers(self) -> dict[str, Node]:
        return {name: node for node in self.nodes for name in node.outputs if name}

    def uses(self) -> Counter[str]:
        """How many inputs of nodes, and outputs of the model, a value is."""
        found = Counter(name for node in self.nodes for name in node.inputs if name)
        found.update(value.name for value in self.outputs)
        return found

    def consumers(self) -> dict[str, list[Node]]:
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                found.setdefault(name, []).append(node)
        return found

    def new_constant(self, like: str, value: Any) -> str:
        name = f"{like}:{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def without_the_unused(self) -> None:
        """Drop nodes and constants that no output needs."""
        needed, kept = {value.name for value in self.outputs}, []
        for node in reversed(self.nodes):
            if needed.intersection(node.outputs):
                kept.append(node)
                needed.update(node.inputs)
        self.nodes = kept[::-1]
        for name in [name for name in self.constants if name not in needed]:
            del self.constants[name]  # nodes hold this dictionary


# ---------------------------------------------------------------- reading


def read(model: Any) -> onnx.ModelProto:
    """A ModelProto of one, of a path, or of a file's bytes."""
    if isinstance(model, onnx.ModelProto):
        return model
    if isinstance(model, bytes | bytearray | memoryview):
        return _parsed(bytes(model), "the bytes of the model")
    if not isinstance(model, str | os.PathLike):
        raise TypeError(f"load: model is {type(model).__name__}, wanted a path, bytes or an onnx.ModelProto")
    path = os.fspath(model)
    with open(path, "rb") as file:
        proto = _parsed(file.read(), path)
    try:
        onnx.load_external_data_for_model(proto, os.path.dirname(os.path.abspath(path)))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(f"{path}: the weights that are stored beside it cannot be read: {error}") from error
    return proto


def _parsed(data: bytes, where: str) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(f"{where}: truncated, or no ONNX model ({len(data)} bytes): {error}") from error
    return proto


def graph_of(proto: onnx.ModelProto) -> Graph:
    """The model's graph, its functions inlined. Raises ModelError, UnsupportedError."""
    if not proto.HasField("graph") or not proto.graph.output:
        raise ModelError("the model has no graph with outputs: truncated, or no ONNX model")
    if proto.functions:
        proto = onnx.inliner.inline_local_functions(proto)
    opsets = _opsets(proto)
    constants = {tensor.name: array_of(tensor) for tensor in proto.graph.initializer}
    nodes = [_node(node, opsets, constants) for node in proto.graph.node]
    inputs = [_value(info) for info in proto.graph.input if info.name not in constants]
    graph = Graph([], constants, inputs, [_value(info) for info in proto.graph.output])
    for node in nodes:
        if node.op == "Constant" and node.domain == "":
            constants[node.outputs[0]] = _constant(node)
        else:
            graph.nodes.append(node)
    _check_order(graph)
    return graph


def _opsets(proto: onnx.ModelProto) -> dict[str, int]:
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    if "ai.onnx" in opsets:
        opsets.setdefault("", opsets["ai.onnx"])
    newest = onnx.defs.onnx_opset_version()
    version = opsets.get("")
    if version is None and MICROSOFT not in opsets:
        raise ModelError("the model imports no opset of ONNX: truncated, or no ONNX model")
    if version is not None and not OLDEST <= version <= newest:
        hint = (
            f"onnx {onnx.__version__} knows up to {newest}" if version > newest else "onnx.version_converter raises it"
        )
        raise UnsupportedError(f"the model is of opset {version}, wanted {OLDEST} … {newest} ({hint})")
    return opsets


def _node(proto: onnx.NodeProto, opsets: dict[str, int], constants: dict[str, np.ndarray]) -> Node:
    for text in (proto.op_type, proto.domain, proto.name, *proto.input, *proto.output):
        if not isinstance(text, str):
            raise ModelError(f"a node has a name that is no text: {text!r}")
    domain = "" if proto.domain == "ai.onnx" else proto.domain
    node = Node(
        proto.op_type, domain, list(proto.input), list(proto.output), {}, proto.name, opsets.get(domain, 0), proto,
        constants,
    )  # fmt: skip
    if domain not in DOMAINS:
        raise UnsupportedError(f"{node.label}: operators of the domain {domain!r} are not supported")
    if domain not in opsets:
        raise ModelError(f"{node.label}: the model imports no opset of its domain {domain or 'ai.onnx'!r}")
    for attribute in proto.attribute:
        if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
            raise UnsupportedError(
                f"{node.label}: attribute {attribute.name!r} is a graph; control flow is not supported"
            )
        value = helper.get_attribute_value(attribute)
        node.attributes[attribute.name] = value.decode(errors="replace") if isinstance(value, bytes) else value
    if not domain:
        _check_schema(node)
    return node


def _check_schema(node: Node) -> None:
    """ONNX's own operators: does the opset have it, and with these attributes and numbers of inputs?"""
    try:
        schema = onnx.defs.get_schema(node.op, node.opset, "")
    except onnx.defs.SchemaError:
        if onnx.defs.has(node.op):
            since = min(s.since_version for s in onnx.defs.get_all_schemas_with_history() if s.name == node.op)
            raise ModelError(
                f"{node.label}: the model is of opset {node.opset}, the operator is since {since}"
            ) from None
        raise UnsupportedError(f"{node.label}: ONNX has no operator of this name") from None
    if schema.deprecated:
        raise UnsupportedError(f"{node.label}: the operator is deprecated in opset {node.opset}")
    for name in node.attributes:
        if name not in schema.attributes:
            known = ", ".join(sorted(schema.attributes)) or "none"
            raise UnsupportedError(f"{node.label}: attribute {name!r} is not one of opset {node.opset}: {known}")
    for name, attribute in schema.attributes.items():
        if attribute.required and name not in node.attributes:
            raise ModelError(f"{node.label}: attribute {name!r} is missing")
    if not schema.min_input <= len(node.inputs) <= schema.max_input:
        raise ModelError(f"{node.label}: has {len(node.inputs)} inputs, wanted {schema.min_input} … {schema.max_input}")


def array_of(tensor: onnx.TensorProto) -> np.ndarray:
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise ModelError(f"initializer {tensor.name!r}: its data does not fit its shape or type: {error}") from error


def _constant(node: Node) -> np.ndarray:
    (name, value), *more = node.attributes.items() or [("", None)]
    if more or value is None:
        raise ModelError(f"{node.label}: wanted one attribute, has {sorted(node.attributes)}")
    if name == "value":
        return array_of(value)
    types = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
    if name not in types:
        raise UnsupportedError(f"{node.label}: attribute {name!r} is not supported")
    return np.asarray(value, types[name])


def _value(info: onnx.ValueInfoProto) -> Value:
    kind = info.type.WhichOneof("value")
    if kind is None:
        return Value(info.name, None, None)
    if kind != "tensor_type":
        raise UnsupportedError(f"{info.name!r} is no tensor: sequences, maps and optional values are not supported")
    of = info.type.tensor_type
    shape = None
    if of.HasField("shape"):
        shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in of.shape.dim)
    dtype = None
    if of.elem_type:
        try:
            dtype = helper.tensor_dtype_to_np_dtype(of.elem_type)
        except (KeyError, ValueError):
            raise UnsupportedError(f"{info.name!r} is of the unknown type {of.elem_type}") from None
    return Value(info.name, dtype, shape)


def _check_order(graph: Graph) -> None:
    """Every value is made before it is used, and once."""
    known = {"", *graph.constants, *(value.name for value in graph.inputs)}
    for node in graph.nodes:
        for name in node.inputs:
            if name not in known:
                raise ModelError(f"{node.label}: its input {name!r} is made by no node before it")
        for name in filter(None, node.outputs):
            if name in known:
                raise ModelError(f"{node.label}: its output {name!r} exists before")
            known.add(name)
    _check_made((value.name for value in graph.outputs), known)


def _check_made(names: Iterable[str], known: set[str]) -> None:
    for name in names:
        if name not in known:
            raise ModelError(f"the model's output {name!r} is made by no node: truncated?")
