"""Quantized models of others: import_onnx, a graph of QuantizeLinear, QLinearConv, … as modules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import fx

from qkernels.dtypes import bits_of
from qkernels.importers import blocks_of_any_sign
from qkernels.tensor import QTensor
from qkernels.torch.load_floats import DynamicLinear, convolution, float_call, folded, nbits_layer, product, weight_only
from qkernels.torch.load_torchao import from_torchao as from_torchao
from qkernels.torch.network import Codes, Dequantize, QAdd, QGlobalAverage, QMaxPool2d, Quantize
from qkernels.torch.static import StaticConv2d, StaticLinear

OP = "import_onnx"
F32 = np.float32


class Flow(NamedTuple):
    """A value: codes where there is a dtype, else floats. `codes`: what floats were dequantized from. Codes without a
    scale are `node`'s floats, quantized in the layer that takes them, in the range that they have (A8)."""

    node: Any
    scale: Any = None
    zero: int = 0
    dtype: str = ""
    codes: Any = None


class Product(NamedTuple):
    """A layer whose end is not reached yet."""

    x: Flow
    weight: QTensor
    bias: Any
    how: dict[str, Any] | None  # of a convolution
    activation: Any
    name: str


class Unit(NamedTuple):
    """What codes are worth whose scale is found on the way, by the scales of a weight."""

    x: Flow
    scale: Any


class Sums(NamedTuple):
    """Integers: the sums of a layer."""

    x: Flow
    codes: np.ndarray
    zero: Any
    how: dict[str, Any] | None
    name: str


def import_onnx(model: Any) -> Any:
    """A quantized ONNX model as a torch.fx.GraphModule of QConv2d, QLinear and what is between them

    model  a path, bytes, or an onnx.ModelProto: what `export_onnx` writes, or ONNX Runtime's quantize_static, as
           QOperator or QDQ, quantize_dynamic and MatMulNBitsQuantizer: convolutions, linear layers, sums, pools,
           clamps, and common float operators between them. One input, one output

    QOperator models give ONNX Runtime's results bit for bit, QDQ ones those of the fused integer operators. Of
    quantize_dynamic the layers are exact; of MatMulNBits the weights are, and activations stay floats (A11).
    Raises  ValueError an operator, an attribute or a combination that is not read: it is named, with its node; what is
            no ONNX model · TypeError model · OSError
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        if isinstance(model, bytes | bytearray):
            model = onnx.load_from_string(bytes(model))
        elif isinstance(model, str | Path):
            model = onnx.load(str(model))
    except DecodeError as error:
        raise ValueError(f"{OP}: model is no ONNX model: {error}") from error
    if not isinstance(model, onnx.ModelProto):
        raise TypeError(f"{OP}: model is {type(model).__name__}, wanted a path, bytes or an onnx.ModelProto")
    return _Reader(model.graph).run()


class _Reader:
    def __init__(self, graph: Any) -> None:
        from onnx import numpy_helper

        self.onnx = graph
        self.root, self.graph = torch.nn.Module(), fx.Graph()
        self.constants = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
        self.weights: dict[str, Any] = {}  # dequantized constants
        self.values: dict[str, Any] = {}
        self.count = 0

    def run(self) -> Any:
        given = [one.name for one in self.onnx.input if one.name not in self.constants]
        if len(given) != 1 or len(self.onnx.output) != 1:
            raise ValueError(f"{OP}: the model has {len(given)} inputs and {len(self.onnx.output)} outputs, wanted one")
        self.values[given[0]] = Flow(self.graph.placeholder("x"))
        for node in self.onnx.node:
            if node.op_type != "DequantizeLinear" and all(name in self.constants for name in node.input if name):
                self.constants[node.output[0]] = folded(node, [self.constants[name] for name in node.input if name])
                continue
            read: Callable[[Any, dict[str, Any]], Any] = getattr(self, f"_{node.op_type}", self._in_floats)
            made = read(node, self._attributes(node))
            if made is not None:
                self.values[node.output[0]] = made
        result = self.floats(self.onnx.output[0].name)
        self.graph.output(result.node)
        return fx.GraphModule(self.root, self.graph)

    def _attributes(self, node: Any) -> dict[str, Any]:
        from onnx import helper

        return {one.name: helper.get_attribute_value(one) for one in node.attribute}

    def module(self, name: str, module: Any, *args: Any) -> Any:
        self.count += 1
        clean = "".join(c if c.isalnum() else "_" for c in name).strip("_") or "part"
        clean = f"{clean}_{self.count}" if hasattr(self.root, clean) or clean[0].isdigit() else clean
        self.root.add_module(clean, module)
        return self.graph.call_module(clean, args)

    # ---------------------------------------------------------------- values

    def constant(self, name: str, node: Any) -> np.ndarray:
        if name not in self.constants:
            raise ValueError(f"{OP}: node {node.name!r} ({node.op_type}) wants a constant, {name!r} is computed")
        return self.constants[name]

    def number(self, name: str, node: Any) -> Any:
        value = self.constant(name, node)
        if value.size != 1:
            raise ValueError(f"{OP}: node {node.name!r} has {name!r} of shape {value.shape}, wanted one number")
        return value.reshape(())[()]

    def value(self, name: str) -> Flow:
        """A value in whatever it is, products finished as floats."""
        if name not in self.values and name in (constants := {**self.constants, **self.weights}):
            found = constants[name]
            self.values[name] = self.buffer(found.dequantize("float32") if isinstance(found, QTensor) else found)
        found = self.values[name]
        if isinstance(found, Product):
            found = self.values[name] = Flow(self.finish(found).node)
        if isinstance(found, Sums):
            raise ValueError(f"{OP}: {name!r} are integer sums that are not scaled, which is not read")
        return found

    def floats(self, name: str) -> Flow:
        found = self.value(name)
        if not found.dtype and found.codes is None:
            return found
        codes = found.codes or found
        module = Dequantize(codes.scale, codes.zero, codes.dtype)
        return Flow(self.module(f"{name}_values", module, codes.node))

    def buffer(self, values: np.ndarray) -> Flow:
        self.count += 1
        self.root.register_buffer(f"constant_{self.count}", torch.from_numpy(np.array(values)))
        return Flow(self.graph.get_attr(f"constant_{self.count}"))

    def codes(self, name: str, node: Any) -> Flow:
        found = self.value(name)
        found = found.codes or found
        if not found.dtype:
            raise ValueError(f"{OP}: node {node.name!r} ({node.op_type}) wants codes, {name!r} are floats")
        return found

    def flow(self, x: Any, scale: Any, zero: Any, node: Any) -> Flow:
        code = self.constant(zero, node).reshape(-1)[0]
        return Flow(x, F32(self.number(scale, node)), int(code), str(code.dtype))

    def finish(self, product: Product, out: Flow | None = None) -> Flow:
        """The module of a layer; out: the codes that it gives."""
        how = product.how
        bias = None if product.bias is None else torch.from_numpy(np.array(product.bias, F32))
        made: Any
        x = product.x
        if how is None:
            kind = DynamicLinear if x.dtype and x.scale is None else StaticLinear
            made = kind.from_qtensor(product.weight, bias, activation=product.activation)
        else:
            made = StaticConv2d.from_qtensor(product.weight, bias, activation=product.activation, **how)
        if x.scale is None:
            return self._of_range(product, made.eval(), out)
        ranges: list[Any] = [float(x.scale), torch.tensor(x.zero, dtype=getattr(torch, x.dtype))]
        if out is not None:
            ranges += [float(out.scale), torch.tensor(out.zero, dtype=getattr(torch, out.dtype))]
        made.set_ranges(*ranges)
        node = self.module(product.name, made.eval(), x.node)
        return Flow(node) if out is None else out._replace(node=node)

    def _of_range(self, product: Product, made: Any, out: Flow | None) -> Flow:
        """A layer whose input's range is found on the way: it gives floats."""
        made = Flow(self.module(product.name, made, product.x.node))
        if out is None:
            return made
        module = Quantize(out.scale, out.zero, out.dtype)
        return out._replace(node=self.module(f"{product.name}_codes", module, made.node))

    # ---------------------------------------------------------------- codes and floats

    def _in_floats(self, node: Any, how: dict[str, Any]) -> Flow:
        called = float_call(node, how)
        if called is None:
            also = f" with {', '.join(how)}" if how else ""
            raise ValueError(f"{OP}: node {node.name!r} is {node.op_type}{also}, which is not read")
        function, keywords = called
        return Flow(self.graph.call_function(function, self._given(node), keywords))

    def _given(self, node: Any) -> tuple[Any, ...]:
        return tuple(self.floats(name).node for name in node.input if name)

    def _DynamicQuantizeLinear(self, node: Any, _: Any) -> Flow:
        x = Flow(self.floats(node.input[0]).node, dtype="uint8")
        self.values[node.output[1]] = Unit(x, np.ones((), F32))
        return x

    def _MatMulNBits(self, node: Any, how: dict[str, Any]) -> Flow:
        rest = [self.constant(name, node) if name else None for name in node.input[1:]]
        made = nbits_layer(node, rest, how)
        return Flow(self.module(node.output[0], made, self.floats(node.input[0]).node))

    def _QuantizeLinear(self, node: Any, _: Any) -> Flow:
        out = self.flow(None, node.input[1], node.input[2], node)
        found = self.values[node.input[0]]
        if isinstance(found, Product):
            return self.finish(found, out)
        if found.codes is not None and (found.codes.scale, found.codes.zero) == (out.scale, out.zero):
            return found.codes
        x = self.floats(node.input[0])
        module = Quantize(out.scale, out.zero, out.dtype)
        return out._replace(node=self.module(node.output[0], module, x.node))

    def _DequantizeLinear(self, node: Any, how: dict[str, Any]) -> Flow | None:
        if node.input[0] not in self.constants:
            return Flow(None, codes=self.codes(node.input[0], node))
        codes, scale = self.constant(node.input[0], node), self.constant(node.input[1], node)
        zero = self.constant(node.input[2], node) if len(node.input) > 2 and node.input[2] else np.zeros((), np.int8)
        bias = codes.dtype.name == "int32"
        self.weights[node.output[0]] = (codes * scale).astype(F32) if bias else self.qtensor(codes, scale, zero, how)
        return None

    def qtensor(self, codes: np.ndarray, scale: np.ndarray, zero: Any, how: dict[str, Any]) -> QTensor:
        """A constant with scales along its first axis; blocked ones, and those of the second, are turned."""
        dtype = str(codes.dtype)
        plain = codes.astype(np.uint8 if dtype.startswith("u") else np.int8)
        zeros = np.asarray(zero).astype(plain.dtype)
        block, axis = how.get("block_size", 0), how.get("axis", 1)
        if block:
            turned = axis == 0
            rows, steps, points = (v.T if turned and v.ndim else v for v in (plain, scale, zeros))
            if np.signbit(scale).any():
                made = _negative_blocks(rows, steps, points, dtype, block)
            else:
                made = QTensor(rows, steps, points, dtype=dtype, axis=0, group_size=block)
            return made.T if turned else made
        if scale.size == 1:
            return QTensor(plain, F32(scale.reshape(())), int(zeros.reshape(-1)[0]), dtype=dtype)
        return QTensor(plain, scale, zeros if zeros.size > 1 else int(zeros.reshape(-1)[0]), dtype=dtype, axis=axis)

    # ---------------------------------------------------------------- layers of integers

    def _weight(self, names: list[str], node: Any, turned: bool = False) -> QTensor:
        codes, scale = self.constant(names[0], node), self.constant(names[1], node)
        zero = self.constant(names[2], node).reshape(-1)
        codes = codes.T if turned else codes
        zeros = int(zero[0]) if (zero == zero[0]).all() else zero
        if scale.size == 1:
            return QTensor(codes, F32(scale.reshape(())), zeros)
        return QTensor(codes, scale, zeros, axis=0)

    def _bias(self, name: str, x: Flow, weight: QTensor, node: Any) -> np.ndarray:
        """In floats whose codes are these (A6)."""
        codes = self.constant(name, node)
        unit = np.broadcast_to(F32(x.scale) * np.asarray(weight.scale, F32), codes.shape)
        bias = codes.astype(F32) * unit
        if not np.array_equal(np.rint(bias / unit), codes):
            raise ValueError(f"{OP}: node {node.name!r} has a bias beyond ±2²², which floats do not hold")
        return bias

    def _QLinearConv(self, node: Any, how: dict[str, Any]) -> Flow:
        names = list(node.input)
        x, weight = self.codes(names[0], node), self._weight(names[3:6], node)
        bias = self._bias(names[8], x, weight, node) if len(names) > 8 and names[8] else None
        out = self.flow(None, names[6], names[7], node)
        return self.finish(Product(x, weight, bias, self.geometry(node, how, weight), None, node.output[0]), out)

    def _QGemm(self, node: Any, how: dict[str, Any]) -> Flow:
        names = list(node.input)
        if how.get("transA", 0) or how.get("alpha", 1.0) != 1.0:
            raise ValueError(f"{OP}: node {node.name!r} (QGemm) has transA or alpha, which are not read")
        x, weight = self.codes(names[0], node), self._weight(names[3:6], node, not how.get("transB", 0))
        bias = self._bias(names[6], x, weight, node) if names[6] else None
        product = Product(x, weight, bias, None, None, node.output[0])
        if len(names) < 9 or not names[7]:
            return self.finish(product)
        return self.finish(product, self.flow(None, names[7], names[8], node))

    def _QLinearMatMul(self, node: Any, _: Any) -> Flow:
        names = list(node.input)
        x, weight = self.codes(names[0], node), self._weight(names[3:6], node, turned=True)
        out = self.flow(None, names[6], names[7], node)
        return self.finish(Product(x, weight, None, None, None, node.output[0]), out)

    def _ConvInteger(self, node: Any, how: dict[str, Any]) -> Sums:
        codes = self.constant(node.input[1], node)
        return self._sums(node, codes, self.geometry(node, how, codes))

    def _MatMulInteger(self, node: Any, _: Any) -> Sums:
        return self._sums(node, self.constant(node.input[1], node).T, None)

    def _sums(self, node: Any, codes: np.ndarray, how: Any) -> Sums:
        given = len(node.input) > 3 and node.input[3]
        zero = self.constant(node.input[3], node).reshape(-1) if given else np.zeros(1, codes.dtype)
        zeros = int(zero[0]) if (zero == zero[0]).all() else zero
        return Sums(self.codes(node.input[0], node), codes, zeros, how, node.output[0])

    def _Cast(self, node: Any, _: Any) -> Sums:
        found = self.values[node.input[0]]
        if not isinstance(found, Sums):
            raise ValueError(f"{OP}: node {node.name!r} is a Cast of no integer sums, which is not read")
        return found

    def _Mul(self, node: Any, how: dict[str, Any]) -> Any:
        a, b = (self.values.get(name) for name in node.input)
        if isinstance(a, Unit):
            return Unit(a.x, a.scale * self.constant(node.input[1], node).astype(F32))
        if not isinstance(a, Sums):
            return self._in_floats(node, how)
        if isinstance(b, Unit):
            scale = b.scale
        else:
            scale = self._scale_of(self.constant(node.input[1], node).reshape(-1), a.x, node)
        scale = np.broadcast_to(scale.reshape(-1), (len(a.codes),))
        return Product(a.x, QTensor(a.codes, scale, a.zero, axis=0), None, a.how, None, a.name)

    def _scale_of(self, unit: np.ndarray, x: Flow, node: Any) -> np.ndarray:
        """The scales of a weight whose product with the input's is `unit`, exactly."""
        scale = unit / F32(x.scale)
        for near in (scale, np.nextafter(scale, F32(0)), np.nextafter(scale, F32(np.inf))):
            scale = np.where(near * F32(x.scale) == unit, near, scale)
        if not np.array_equal(scale * F32(x.scale), unit):
            raise ValueError(f"{OP}: node {node.name!r} has a scale that is no product with its input's {x.scale}")
        return scale

    def geometry(self, node: Any, how: dict[str, Any], weight: Any) -> dict[str, Any]:
        if how.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID") or len(weight.shape) != 4:
            raise ValueError(f"{OP}: node {node.name!r} ({node.op_type}) has auto_pad, or no two axes; not read")
        top, left, bottom, right = how.get("pads", [0] * 4)
        return {
            "stride": tuple(how.get("strides", (1, 1))), "padding": (top, bottom, left, right),
            "dilation": tuple(how.get("dilations", (1, 1))), "groups": how.get("group", 1),
        }  # fmt: skip

    # ---------------------------------------------------------------- layers of QDQ

    def _layer(self, node: Any, weight: Any, bias: str, how: Any) -> Any:
        values = self.weights.get(bias, self.constants.get(bias))
        if isinstance(values, QTensor):
            values = np.asarray(values)
        found = self.value(node.input[0])
        if how is None and not (found.codes or found).dtype:
            made = weight_only(weight, None if values is None else torch.from_numpy(np.array(values, F32)))
            return Flow(self.module(node.output[0], made, found.node))
        return Product(self.codes(node.input[0], node), weight, values, how, None, node.output[0])

    def _Conv(self, node: Any, how: dict[str, Any]) -> Any:
        weight: Any = self.weights.get(node.input[1])
        given = self.geometry(node, how, self.constant(node.input[1], node) if weight is None else weight)
        if weight is None:
            return Flow(self.graph.call_function(convolution, self._given(node), given))
        return self._layer(node, weight, node.input[2] if len(node.input) > 2 else "", given)

    def _Gemm(self, node: Any, how: dict[str, Any]) -> Any:
        weight: Any = self.weights.get(node.input[1])
        if how.get("transA", 0) or how.get("alpha", 1.0) != 1.0 or how.get("beta", 1.0) != 1.0:
            raise ValueError(f"{OP}: node {node.name!r} (Gemm) has transA, alpha or beta, which are not read")
        if weight is None:
            turned = {"turned": bool(how.get("transB", 0))}
            return Flow(self.graph.call_function(product, self._given(node), turned))
        weight = weight if how.get("transB", 0) else weight.T
        return self._layer(node, weight, node.input[2] if len(node.input) > 2 else "", None)

    def _MatMul(self, node: Any, how: dict[str, Any]) -> Any:
        weight: Any = self.weights.get(node.input[1])
        if weight is None:
            return self._in_floats(node, how)
        return self._layer(node, weight.T, "", None)

    def _Add(self, node: Any, how: dict[str, Any]) -> Any:
        for name, other in (node.input, reversed(node.input)):
            found = self.values.get(name)
            if isinstance(found, Product) and found.bias is None and found.activation is None:
                values = self.constants.get(other, np.zeros(0))
                if values.size == found.weight.shape[0] and _along_columns(values, found.how):
                    return found._replace(bias=values.reshape(-1))
        return self._in_floats(node, how)

    def _Relu(self, node: Any, _: Any) -> Any:
        return self._clamped(node, 0.0, np.inf)

    def _Clip(self, node: Any, _: Any) -> Any:
        ends = [self.number(name, node) if name else None for name in (*node.input[1:], "", "")[:2]]
        found = self.values[node.input[0]]
        if isinstance(found, Flow) and found.dtype:
            low, high = (None if end is None else int(end) for end in ends)
            return found._replace(node=self.graph.call_function(torch.clamp, (found.node, low, high)))
        return self._clamped(
            node, *(v if e is None else float(e) for e, v in zip(ends, (-np.inf, np.inf), strict=True))
        )

    def _clamped(self, node: Any, low: float, high: float) -> Any:
        found = self.values[node.input[0]]
        named = "relu" if (low, high) == (0.0, np.inf) else (low, high)
        if isinstance(found, Product) and found.activation is None:
            return found._replace(activation=named)
        return Flow(self.graph.call_function(torch.clamp, (self.floats(node.input[0]).node, low, high)))

    # ---------------------------------------------------------------- what is between layers

    def _QLinearAdd(self, node: Any, _: Any) -> Flow:
        a, b = (self._operand(node, i) for i in (0, 3))
        out = self.flow(None, node.input[6], node.input[7], node)
        module = QAdd(*(Codes(v.scale, v.zero, v.dtype) for v in (a, b, out)))
        return out._replace(node=self.module(node.output[0], module, a.node, b.node))

    def _operand(self, node: Any, first: int) -> Flow:
        name, scale, zero = node.input[first : first + 3]
        if name not in self.constants:
            return self.codes(name, node)
        return self.flow(self.buffer(self.constants[name]).node, scale, zero, node)

    def _QLinearGlobalAveragePool(self, node: Any, how: dict[str, Any]) -> Flow:
        if how.get("channels_last", 0):
            raise ValueError(f"{OP}: node {node.name!r} has channels_last, which is not read")
        x, out = self.codes(node.input[0], node), self.flow(None, node.input[3], node.input[4], node)
        module = QGlobalAverage(Codes(x.scale, x.zero, x.dtype), Codes(out.scale, out.zero, out.dtype), False)
        return out._replace(node=self.module(node.output[0], module, x.node))

    def _GlobalAveragePool(self, node: Any, _: Any) -> Flow:
        x = self.floats(node.input[0])
        return Flow(self.graph.call_method("mean", (x.node, (2, 3), True)))

    def _MaxPool(self, node: Any, how: dict[str, Any]) -> Flow:
        pads = list(how.get("pads", [0] * 4))
        if how.get("ceil_mode", 0) or pads[:2] != pads[2:] or how.get("auto_pad", b"NOTSET") != b"NOTSET":
            raise ValueError(f"{OP}: node {node.name!r} (MaxPool) has ceil_mode or uneven pads, which are not read")
        kernel, stride = tuple(how["kernel_shape"]), tuple(how.get("strides", (1, 1)))
        found = self.value(node.input[0])
        codes = found.codes or found
        if not codes.dtype:
            module: Any = torch.nn.MaxPool2d(kernel, stride, tuple(pads[:2]), tuple(how.get("dilations", (1, 1))))
            return Flow(self.module(node.output[0], module, codes.node))
        module = QMaxPool2d(kernel, stride, tuple(pads[:2]), tuple(how.get("dilations", (1, 1))))
        made = codes._replace(node=self.module(node.output[0], module, codes.node))
        return made if found.dtype else Flow(None, codes=made)

    def _moved(self, node: Any, move: Callable[[Any], Any]) -> Flow:
        found = self.value(node.input[0])
        if found.codes is not None:
            return Flow(None, codes=found.codes._replace(node=move(found.codes.node)))
        return found._replace(node=move(found.node))

    def _Flatten(self, node: Any, how: dict[str, Any]) -> Flow:
        if how.get("axis", 1) != 1:
            raise ValueError(f"{OP}: node {node.name!r} (Flatten) has axis={how['axis']}, wanted 1")
        return self._moved(node, lambda x: self.graph.call_method("flatten", (x, 1)))

    def _Reshape(self, node: Any, _: Any) -> Flow:
        shape = tuple(int(v) for v in self.constant(node.input[1], node))
        return self._moved(node, lambda x: self.graph.call_method("reshape", (x, shape)))

    def _Transpose(self, node: Any, how: dict[str, Any]) -> Flow:
        order = tuple(how["perm"])
        return self._moved(node, lambda x: self.graph.call_method("permute", (x, order)))


def _negative_blocks(codes: np.ndarray, scale: np.ndarray, zero: np.ndarray, dtype: str, block: int) -> QTensor:
    bits = bits_of(dtype)
    lift = 0 if dtype.startswith("u") else 1 << (bits - 1)
    lifted = [(v.astype(np.int16) + lift).astype(np.uint8) for v in (codes, zero)]
    return blocks_of_any_sign(lifted[0], scale, lifted[1], bits, block)


def _along_columns(values: np.ndarray, how: Any) -> bool:
    """Is it a bias: a number for each output, which of images is the third axis from the end?"""
    axis = -1 if how is None else -3
    return values.ndim >= -axis and values.shape[axis] == values.size
