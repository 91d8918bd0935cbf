"""export_onnx: a quantized model as an ONNX file, with the same numbers.

qoperator   QLinearConv, QGemm, QLinearAdd, ConvInteger, MatMulInteger: integers, bit for bit in ONNX Runtime
qdq         QuantizeLinear and DequantizeLinear around float operators, which OpenVINO, TensorRT and ONNX Runtime fuse
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from torch import fx
from torch.fx.passes.shape_prop import ShapeProp

from qkernels.dtypes import bits_of
from qkernels.torch.convert import Quantized
from qkernels.torch.modules import QLinear, QWeight
from qkernels.torch.network import NAMED, Dequantize, QAdd, QGlobalAverage, QMaxPool2d, Quantize, clamped_codes
from qkernels.torch.onnx_writer import MICROSOFT, Writer
from qkernels.torch.prepare import clamp_of, module_of
from qkernels.torch.ptq import fitting, tensors

OP = "export_onnx"
FORMATS = ("qoperator", "qdq")
LEAST = 2.0**-119  # A8
FLOAT_OPS = {
    operator.add: "Add", torch.add: "Add", operator.mul: "Mul", torch.mul: "Mul", operator.matmul: "MatMul",
    torch.sigmoid: "Sigmoid", torch.tanh: "Tanh", "sigmoid": "Sigmoid", "tanh": "Tanh",
    torch.nn.Sigmoid: "Sigmoid", torch.nn.Tanh: "Tanh", operator.iadd: "Add",
}  # fmt: skip


def export_onnx(model: Quantized, example: Any, path: Any = None, *, format: str = "qoperator", opset: int = 21) -> Any:
    """The ONNX model of what `quantize_model` or `convert` made; written to `path` where one is given.

    example  an input, as the model takes it; the first axis of every input may be of another length later
    format   "qoperator" or "qdq", as above. Layers with groups of 4-bit weights are blocked DequantizeLinear of int4
             and a float product in both; so are dynamic ones of "qdq" with their weights alone quantized
    opset    21 or later

    Raises  TypeError model, example · ValueError format, opset, an example that does not fit, an operator that is not
            written (it is named), weights that the format has no place for.
    """
    if not isinstance(model, Quantized):
        raise TypeError(f"{OP}: model is {type(model).__name__}, wanted what quantize_model or convert gives")
    if format not in FORMATS:
        raise ValueError(f"{OP}: format={format!r}, wanted one of {', '.join(FORMATS)}")
    if opset < 21:
        raise ValueError(f"{OP}: opset={opset}, wanted 21 or later: blocked and 4-bit DequantizeLinear came with it")
    given = example if isinstance(example, tuple | list) else (example,)
    if not tensors(given):
        raise TypeError(f"{OP}: example is {type(example).__name__}, wanted a tensor or a tuple of tensors")
    with torch.no_grad():
        fitting(model, given, f"{OP}: example")
    ShapeProp(model).propagate(*given)
    made = (_QOperator if format == "qoperator" else _Qdq)(model, opset).write()
    if path is not None:
        with open(path, "wb") as file:
            file.write(made.SerializeToString())
    return made


class Value(NamedTuple):
    name: str
    scale: str = ""  # names of constants; of floats empty
    zero: str = ""
    dtype: str = ""


def shape_of(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["tensor_meta"].shape)


def array(x: Any) -> np.ndarray:
    return x.detach().cpu().numpy()


class _Export:
    """What both formats share: the walk, values in floats, moves."""

    def __init__(self, model: Quantized, opset: int) -> None:
        self.model, self.to = model, Writer(opset)
        self.values: dict[fx.Node, Value] = {}

    def write(self) -> Any:
        inputs, outputs = [], []
        for node in self.model.graph.nodes:
            if node.op == "placeholder":
                kind = TensorProto.FLOAT if node.meta["tensor_meta"].dtype == torch.float32 else TensorProto.INT64
                inputs.append(helper.make_tensor_value_info(self.to.name(node.name), kind, self._dims(node)))
                self.values[node] = Value(node.name)
            elif node.op == "output":
                results = node.args[0] if isinstance(node.args[0], tuple | list) else (node.args[0],)
                for source in results:
                    name = self._float(source)
                    outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, self._dims(source)))
            else:
                self.values[node] = self._node(node, module_of(self.model, node))
        return self.to.model(inputs, outputs)

    def _dims(self, node: fx.Node) -> list[Any]:
        return ["batch", *shape_of(node)[1:]]

    def _float(self, node: fx.Node) -> str:
        value = self.values[node]
        if value.dtype:
            return self.to.op("DequantizeLinear", [value.name, value.scale, value.zero], f"{node.name}_values")
        return value.name

    def _codes_like(self, name: str, scale: Any, zero: Any) -> Value:
        """A value's name with constants of its scale and zero point."""
        dtype = "uint8" if zero is not None and zero.dtype == torch.uint8 else "int8"
        code = 0 if zero is None else int(zero)
        return Value(
            name, self.to.scalar(f"{name}_scale", float(scale), np.float32),
            self.to.scalar(f"{name}_zero", code, dtype), dtype,
        )  # fmt: skip

    def _node(self, node: fx.Node, module: Any) -> Value:
        if isinstance(module, Quantize):
            value = self._codes_like(node.name, module.scale, module.zero_point)
            self.to.op("QuantizeLinear", [self._float(node.args[0]), value.scale, value.zero], node.name)
            return value
        if isinstance(module, Dequantize):
            return Value(self._float(node.args[0]))
        if isinstance(module, QLinear):
            if module.group_size:
                return self._clamped(node, self._grouped(node, module), module.activation)
            return self._linear(node, module)
        if isinstance(module, QWeight):
            return self._conv(node, module)
        if isinstance(module, QMaxPool2d):
            return self._max_pool(node, module)
        if isinstance(module, QAdd | QGlobalAverage):
            return self._part(node, module)
        if node.op == "get_attr":
            value = self.model
            for step in str(node.target).split("."):
                value = getattr(value, step)
            return Value(self.to.constant(node.name, array(value)))
        return self._move(node, module) or self._in_floats(node, module)

    # ---------------------------------------------------------------- layers in floats

    def _clamped(self, node: fx.Node, x: str, activation: Any) -> Value:
        bounds = NAMED.get(activation, activation) if activation is None or isinstance(activation, str) else activation
        if bounds is None:
            return Value(x)
        if bounds == NAMED["relu"]:
            return Value(self.to.op("Relu", [x], f"{node.name}_relu"))
        low, high = (None if np.isinf(bound) else bound for bound in bounds)
        return Value(self.to.clip(x, low, high, np.float32, f"{node.name}_clip"))

    def _with_bias(self, y: str, bias: Any, name: str, axes: int = 0) -> str:
        if bias is None:
            return y
        values = array(bias).reshape(-1, *[1] * axes)
        return self.to.op("Add", [y, self.to.constant(f"{name}_bias", values)], f"{name}_sum")

    def _blocked(self, name: str, module: QWeight) -> str:
        """The weight (k, n) in floats, from its codes."""
        q = module.qtensor()
        codes, dtype = np.asarray(q.codes()).T, q.dtype
        if bits_of(dtype) == 2:  # ONNX has no 2-bit type before opset 25
            dtype = dtype.replace("2", "4")
        scale = np.asarray(q.scale, np.float32)
        inputs = [
            self.to.codes(f"{name}_weight", codes, dtype),
            self.to.constant(f"{name}_weight_scale", scale.T),
        ]
        zero = q.zero_point
        if not isinstance(zero, int) or zero:
            full = np.broadcast_to(np.asarray(zero), scale.shape).T
            inputs.append(self.to.codes(f"{name}_weight_zero", full, dtype))
        blocks: dict[str, Any] = {"axis": 0, "block_size": module.group_size} if module.group_size else {"axis": 1}
        return self.to.op("DequantizeLinear", inputs, f"{name}_weight_values", **blocks)

    def _grouped(self, node: fx.Node, module: QWeight) -> str:
        if module.group_size and module.weight_shape[1] % module.group_size:
            raise ValueError(
                f"{OP}: {node.target} has k={module.weight_shape[1]} in groups of {module.group_size}, which do not "
                "divide it; ONNX Runtime wants whole blocks"
            )
        y = self.to.op("MatMul", [self._float(node.args[0]), self._blocked(node.name, module)], f"{node.name}_product")
        return self._with_bias(y, module.bias, node.name)

    def _in_floats(self, node: fx.Node, module: Any) -> Value:
        x = self._float(node.args[0])
        if type(module) is torch.nn.Linear:
            weight = self.to.constant(f"{node.name}_weight", array(module.weight).T)
            return Value(
                self._with_bias(self.to.op("MatMul", [x, weight], f"{node.name}_product"), module.bias, node.name)
            )
        if type(module) is torch.nn.Conv2d:
            from qkernels.torch.conv import padding_of

            weights = [self.to.constant(f"{node.name}_weight", array(module.weight))]
            weights += [] if module.bias is None else [self.to.constant(f"{node.name}_bias", array(module.bias))]
            how = {"stride": module.stride, "dilation": module.dilation, "padding": padding_of(module)}
            return Value(self.to.op("Conv", [x, *weights], node.name, **geometry(how, module.groups)))
        if type(module) is torch.nn.LayerNorm and module.weight is not None:
            parts = [self.to.constant(f"{node.name}_weight", array(module.weight))]
            parts += [] if module.bias is None else [self.to.constant(f"{node.name}_bias", array(module.bias))]
            axis = -len(module.normalized_shape)
            return Value(self.to.op("LayerNormalization", [x, *parts], node.name, axis=axis, epsilon=module.eps))
        clamp = clamp_of(self.model, node)
        if clamp is not None:
            return self._clamped(node, x, clamp)
        if type(module) is torch.nn.GELU:
            return Value(self.to.op("Gelu", [x], node.name, approximate=module.approximate))
        if type(module) is torch.nn.MaxPool2d or node.target in (F.max_pool2d, torch.max_pool2d):
            from qkernels.torch.convert import pool_of

            return Value(self.to.op("MaxPool", [x], node.name, **pooling(pool_of(node, module))))
        if type(module) is torch.nn.AdaptiveAvgPool2d and module.output_size in (1, (1, 1)):
            return Value(self.to.op("GlobalAveragePool", [x], node.name))
        kind = FLOAT_OPS.get(type(module) if module is not None else node.target)
        if kind is None:
            what = type(module).__name__ if module is not None else node.target
            raise ValueError(f"{OP}: {node.name} is {what}, which is not written to ONNX")
        inputs = [
            self._float(v) if isinstance(v, fx.Node) else self.to.scalar(f"{node.name}_number", v, np.float32)
            for v in node.args
        ]
        return Value(self.to.op(kind, inputs, node.name))

    # ---------------------------------------------------------------- moves

    def _move(self, node: fx.Node, module: Any) -> Value | None:
        names = ("flatten", "reshape", "view", "contiguous", "permute", "transpose", "squeeze", "unsqueeze")
        called = getattr(node.target, "__name__", node.target)
        if not (isinstance(module, torch.nn.Flatten) or (node.op != "call_module" and called in names)):
            return None
        source, x = node.args[0], self.values[node.args[0]]
        before = len(shape_of(source))
        if called == "contiguous":
            return x
        if called in ("permute", "transpose"):
            order = list(range(before))
            if called == "transpose":
                a, b = (axis % before for axis in node.args[1:3])
                order[a], order[b] = order[b], order[a]
            else:
                axes = node.args[1] if isinstance(node.args[1], tuple | list) else node.args[1:]
                order = [axis % before for axis in axes]
            return x._replace(name=self.to.op("Transpose", [x.name], node.name, perm=order))
        shape = np.array([-1, *shape_of(node)[1:]], np.int64)
        made = self.to.op("Reshape", [x.name, self.to.constant(f"{node.name}_shape", shape)], node.name)
        return x._replace(name=made)

    # ---------------------------------------------------------------- of each format

    def _linear(self, node: fx.Node, module: Any) -> Value:
        raise NotImplementedError

    def _conv(self, node: fx.Node, module: Any) -> Value:
        raise NotImplementedError

    def _part(self, node: fx.Node, module: Any) -> Value:
        raise NotImplementedError

    def _max_pool(self, node: fx.Node, module: QMaxPool2d) -> Value:
        x = self.values[node.args[0]]
        return x._replace(name=self.to.op("MaxPool", [x.name], node.name, **pooling(module)))


def geometry(how: dict[str, Any], groups: int) -> dict[str, Any]:
    sides = list(how["padding"])
    top, bottom, left, right = sides if len(sides) == 4 else (sides[0], sides[0], sides[1], sides[1])
    return {
        "strides": list(how["stride"]), "dilations": list(how["dilation"]), "pads": [top, left, bottom, right],
        "group": groups,
    }  # fmt: skip


def conv_geometry(module: Any) -> dict[str, Any]:
    how = {"stride": module.stride, "dilation": module.dilation, "padding": module.padding}
    return geometry(how, module.groups)


def pooling(pool: QMaxPool2d) -> dict[str, Any]:
    def pair(value: Any) -> list[int]:
        return [value, value] if isinstance(value, int) else list(value)

    pads = pair(pool.padding)
    return {
        "kernel_shape": pair(pool.kernel), "strides": pair(pool.kernel if pool.stride is None else pool.stride),
        "pads": pads * 2, "dilations": pair(pool.dilation),
    }  # fmt: skip


class _QOperator(_Export):
    def _weight(self, node: fx.Node, module: QWeight, turned: bool = False) -> tuple[np.ndarray, str, str]:
        """(scales, names of the codes and their zero point, which is 0): codes less their zero points, in int8."""
        q = module.qtensor()
        zero = np.asarray(q.zero_point).reshape(-1, *[1] * (len(q.shape) - 1))
        codes = np.asarray(q.codes()).astype(np.int16) - zero
        if codes.min(initial=0) < -128 or codes.max(initial=0) > 127:
            raise ValueError(f"{OP}: {node.target} has weights of {q.dtype} with zero points, wanted int8 in qoperator")
        scale = np.broadcast_to(np.asarray(q.scale, np.float32), (q.shape[0],))
        codes = codes.T if turned else codes
        return (
            scale,
            self.to.codes(f"{node.name}_weight", codes, "int8"),
            self.to.scalar(f"{node.name}_zero", 0, "int8"),
        )

    def _bias(self, node: fx.Node, module: QWeight, unit: np.ndarray) -> str:
        """int32 (A6)"""
        codes = np.rint(array(module.bias) / unit).astype(np.int32)
        return self.to.constant(f"{node.name}_bias", codes)

    def _finished(self, node: fx.Node, module: QWeight, value: Value) -> Value:
        """The clamp of codes, where their range does not hold it."""
        clamp = NAMED.get(module.activation) if isinstance(module.activation, str) else module.activation
        low, high = clamped_codes(clamp, float(module.output_scale), int(module.output_zero_point or 0), value.dtype)
        if low is None and high is None:
            return value
        return value._replace(name=self.to.clip(value.name, low, high, value.dtype, f"{node.name}_clip"))

    def _unit(self, module: QWeight, scale: np.ndarray) -> np.ndarray:
        return np.float32(module.input_scale.item()) * scale

    def _conv(self, node: fx.Node, module: Any) -> Value:
        scale, codes, zero = self._weight(node, module)
        how = conv_geometry(module)
        if module.output_scale is not None:
            x = self.values[node.args[0]]
            out = self._codes_like(node.name, module.output_scale, module.output_zero_point)
            inputs = [
                x.name, x.scale, x.zero, codes, self.to.constant(f"{node.name}_weight_scale", scale),
                self.to.constant(f"{node.name}_weight_zero", np.zeros(len(scale), np.int8)), out.scale, out.zero,
            ]  # fmt: skip
            if module.bias is not None:
                inputs.append(self._bias(node, module, self._unit(module, scale)))
            self.to.op("QLinearConv", inputs, node.name, **how)
            return self._finished(node, module, out)
        if module.input_scale is None:
            x, worth = self._dynamic_image(node, scale.reshape(-1, 1, 1))
        else:
            x = self.values[node.args[0]]
            worth = self.to.constant(f"{node.name}_unit", self._unit(module, scale).reshape(-1, 1, 1))
        acc = self.to.op("ConvInteger", [x.name, codes, x.zero, zero], f"{node.name}_acc", **how)
        return self._from_acc(node, module, acc, worth, 2)

    def _from_acc(self, node: fx.Node, module: QWeight, acc: str, worth: str, axes: int) -> Value:
        y = self.to.op("Cast", [acc], f"{node.name}_float", to=TensorProto.FLOAT)
        y = self.to.op("Mul", [y, worth], f"{node.name}_product")
        return self._clamped(
            node, self._with_bias(y, module.bias, node.name, axes), getattr(module, "activation", None)
        )

    def _dynamic_image(self, node: fx.Node, scale: np.ndarray) -> tuple[Value, str]:
        names = [self.to.name(f"{node.name}_x{part}") for part in ("", "_scale", "_zero")]
        self.to.nodes.append(helper.make_node("DynamicQuantizeLinear", [self._float(node.args[0])], names))
        weight = self.to.constant(f"{node.name}_weight_scale", scale)
        return Value(names[0], names[1], names[2], "uint8"), self.to.op("Mul", [names[1], weight], f"{node.name}_unit")

    def _linear(self, node: fx.Node, module: Any) -> Value:
        if module.output_scale is None:
            scale, codes, zero = self._weight(node, module, turned=True)
            if module.input_scale is None:
                x, worth = self._dynamic_rows(node, scale)
            else:
                x = self.values[node.args[0]]
                worth = self.to.constant(f"{node.name}_unit", self._unit(module, scale))
            acc = self.to.op("MatMulInteger", [x.name, codes, x.zero, zero], f"{node.name}_acc")
            return self._from_acc(node, module, acc, worth, 0)
        scale, codes, zero = self._weight(node, module)
        x, name = self.values[node.args[0]], self.values[node.args[0]].name
        shape = shape_of(node)
        if len(shape) != 2:
            rows = self.to.constant(f"{node.name}_rows", np.array([-1, module.in_features], np.int64))
            name = self.to.op("Reshape", [name, rows], f"{node.name}_in_rows")
        out = self._codes_like(node.name, module.output_scale, module.output_zero_point)
        inputs = [
            name, x.scale, x.zero, codes, self.to.constant(f"{node.name}_weight_scale", scale),
            self.to.constant(f"{node.name}_weight_zero", np.zeros(len(scale), np.int8)),
            "" if module.bias is None else self._bias(node, module, self._unit(module, scale)), out.scale, out.zero,
        ]  # fmt: skip
        made = self.to.op("QGemm", inputs, node.name, MICROSOFT, transB=1)
        if len(shape) != 2:
            back = self.to.constant(f"{node.name}_shape", np.array([-1, *shape[1:]], np.int64))
            made = self.to.op("Reshape", [made, back], f"{node.name}_back")
        return self._finished(node, module, out._replace(name=made))

    def _dynamic_rows(self, node: fx.Node, scale: np.ndarray) -> tuple[Value, str]:
        """A8's rows in int8."""
        x, name, to = self._float(node.args[0]), node.name, self.to
        axis = to.constant(f"{name}_last", np.array([-1], np.int64))
        amax = to.op("ReduceMax", [to.op("Abs", [x], f"{name}_abs"), axis], f"{name}_amax", keepdims=1)
        small = to.op("Less", [amax, to.scalar(f"{name}_least", LEAST, np.float32)], f"{name}_small")
        one = to.scalar(f"{name}_one", 1, np.float32)
        safe = to.op("Where", [small, one, amax], f"{name}_safe")
        most = to.scalar(f"{name}_most", 127, np.float32)
        codes = to.op("Mul", [x, to.op("Div", [most, safe], f"{name}_per")], f"{name}_steps")
        codes = to.op("Cast", [to.op("Round", [codes], f"{name}_rounded")], f"{name}_x", to=TensorProto.INT8)
        worth = to.op("Div", [safe, most], f"{name}_x_scale")
        # A product of (…, 1) and (1, n), not Mul: ONNX Runtime 1.32 fuses that into MatMulIntegerToFloat, which has one
        # scale for all rows.
        worth = to.op("MatMul", [worth, to.constant(f"{name}_weight_scale", scale[None])], f"{name}_unit")
        return Value(codes, "", to.scalar(f"{name}_x_zero", 0, np.int8), "int8"), worth

    def _part(self, node: fx.Node, module: Any) -> Value:
        out = self._codes_like(node.name, module.scale, module.zero_point)
        if isinstance(module, QAdd):
            a, b = (self.values[source] for source in node.args)
            inputs = [a.name, a.scale, a.zero, b.name, b.scale, b.zero, out.scale, out.zero]
            self.to.op("QLinearAdd", inputs, node.name, MICROSOFT)
            low, high = clamped_codes(module.activation, float(module.scale), int(module.zero_point), out.dtype)
            if low is None and high is None:
                return out
            return out._replace(name=self.to.clip(out.name, low, high, out.dtype, f"{node.name}_clip"))
        x = self.values[node.args[0]]
        inputs = [x.name, x.scale, x.zero, out.scale, out.zero]
        self.to.op("QLinearGlobalAveragePool", inputs, node.name, MICROSOFT, channels_last=0)
        return self._flat(node, module, out)

    def _flat(self, node: fx.Node, module: Any, out: Value) -> Value:
        if not module.flat:
            return out
        return out._replace(name=self.to.op("Flatten", [out.name], f"{node.name}_flat", axis=1))


class _Qdq(_Export):
    def _weight(self, node: fx.Node, module: QWeight) -> str:
        q = module.qtensor()
        dtype = q.dtype.replace("2", "4") if bits_of(q.dtype) == 2 else q.dtype
        scale = np.broadcast_to(np.asarray(q.scale, np.float32), (q.shape[0],))
        inputs = [
            self.to.codes(f"{node.name}_weight", np.asarray(q.codes()), dtype),
            self.to.constant(f"{node.name}_weight_scale", scale),
        ]
        zero = np.broadcast_to(np.asarray(q.zero_point), (q.shape[0],))
        inputs.append(self.to.codes(f"{node.name}_weight_zero", zero, dtype))
        return self.to.op("DequantizeLinear", inputs, f"{node.name}_weight_values", axis=0)

    def _bias(self, node: fx.Node, module: QWeight) -> list[str]:
        """In codes of its own where x's scale is known, as those who fuse want it."""
        if module.bias is None:
            return []
        bias = array(module.bias)
        if module.input_scale is None or module.output_scale is None:
            return [self.to.constant(f"{node.name}_bias", bias)]
        scale = np.broadcast_to(np.asarray(module.qtensor().scale, np.float32), bias.shape)
        unit = np.float32(module.input_scale.item()) * scale
        codes = self.to.constant(f"{node.name}_bias", np.rint(bias / unit).astype(np.int32))
        units = self.to.constant(f"{node.name}_bias_scale", unit)
        zeros = self.to.constant(f"{node.name}_bias_zero", np.zeros(len(bias), np.int32))
        return [self.to.op("DequantizeLinear", [codes, units, zeros], f"{node.name}_bias_values", axis=0)]

    def _finished(self, node: fx.Node, module: QWeight, y: str) -> Value:
        y = self._clamped(node, y, getattr(module, "activation", None)).name
        if module.output_scale is None:
            return Value(y)
        return self._quantized(node, y, module.output_scale, module.output_zero_point)

    def _quantized(self, node: fx.Node, y: str, scale: Any, zero: Any) -> Value:
        out = self._codes_like(self.to.name(f"{node.name}_codes"), scale, zero)
        return out._replace(name=self.to.op("QuantizeLinear", [y, out.scale, out.zero], f"{node.name}_quantized"))

    def _conv(self, node: fx.Node, module: Any) -> Value:
        inputs = [self._float(node.args[0]), self._weight(node, module), *self._bias(node, module)]
        y = self.to.op("Conv", inputs, f"{node.name}_product", **conv_geometry(module))
        return self._finished(node, module, y)

    def _linear(self, node: fx.Node, module: Any) -> Value:
        x = self._float(node.args[0])
        if len(shape_of(node)) == 2:
            inputs = [x, self._weight(node, module), *self._bias(node, module)]
            return self._finished(node, module, self.to.op("Gemm", inputs, f"{node.name}_product", transB=1))
        y = self.to.op("MatMul", [x, self._blocked(node.name, module)], f"{node.name}_product")
        return self._finished(node, module, self._with_bias(y, module.bias, node.name))

    def _max_pool(self, node: fx.Node, module: QMaxPool2d) -> Value:
        x = self.values[node.args[0]]
        y = self.to.op("MaxPool", [self._float(node.args[0])], f"{node.name}_values", **pooling(module))
        return x._replace(name=self.to.op("QuantizeLinear", [y, x.scale, x.zero], node.name))

    def _part(self, node: fx.Node, module: Any) -> Value:
        inputs = [self._float(source) for source in node.args]
        if isinstance(module, QAdd):
            y = self.to.op("Add", inputs, f"{node.name}_sum")
            y = self._clamped(node, y, module.activation).name
        else:
            y = self.to.op("GlobalAveragePool", inputs, f"{node.name}_mean")
            y = self.to.op("Flatten", [y], f"{node.name}_flat", axis=1) if module.flat else y
        return self._quantized(node, y, module.scale, module.zero_point)
