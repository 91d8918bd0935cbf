"""`python -m qkernels bench --op conv`: layers of networks, u8·s8 → u8 of one image, ours beside other libraries.

A contender gets a Layer and hands back a call that is timed as it is and gives codes (height, width, channels).
Results are checked first. Libraries round differently (docs/arithmetic.md A5): a code may differ by one, not by two.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

import qkernels as qk
from qkernels.bench import limits, timing
from qkernels.bench.measure import IDLE_SECONDS, geometric_mean
from qkernels.bench.onnx_sessions import bound
from qkernels.bench.shapes import INT8_CONV, Conv

Call = Callable[[], Any]
X_SCALE, X_ZERO, Y_ZERO = 0.02, 128, 120


class Layer(NamedTuple):
    """Operands of a shape; the same random bytes for everybody, full range, scales by filter."""

    shape: Conv
    x: np.ndarray  # uint8 (1, h, w, c)
    w: np.ndarray  # int8 (out, kh, kw, in/groups)
    w_scale: np.ndarray
    y_scale: float
    bias: np.ndarray

    @property
    def pad(self) -> int:
        return self.shape.dilation * (self.shape.kernel // 2)

    @property
    def geometry(self) -> dict[str, Any]:
        s = self.shape
        return {"stride": s.stride, "padding": self.pad, "dilation": s.dilation, "groups": s.groups}


def layer_of(shape: Conv) -> Layer:
    random = np.random.default_rng(shape.size * 31 + shape.c_out)
    depth = shape.c_in // shape.groups
    x = random.integers(0, 256, (1, shape.size, shape.size, shape.c_in)).astype(np.uint8)
    w = random.integers(-128, 128, (shape.c_out, shape.kernel, shape.kernel, depth)).astype(np.int8)
    w_scale = random.uniform(0.002, 0.006, shape.c_out).astype(np.float32)
    y_scale = 74.0 * 74.0 * math.sqrt(shape.kernel**2 * depth) * X_SCALE * 0.004 / 50
    bias = random.integers(-9000, 9000, shape.c_out).astype(np.int32)
    return Layer(shape, x, w, w_scale, float(np.float32(y_scale)), bias)


class Ours:
    name = "qkernels"
    signed = False

    def available(self) -> str:
        return ""

    def prepare(self, layer: Layer, threads: int) -> Call:
        codes = (layer.x.astype(np.int16) - 128).astype(np.int8) if self.signed else layer.x
        shift = 128 if self.signed else 0
        x = qk.QTensor(codes, X_SCALE, X_ZERO - shift)
        w = qk.pack_conv(qk.QTensor(layer.w, layer.w_scale, axis=0), layout="NHWC", groups=layer.shape.groups)
        size = -(-layer.shape.size // layer.shape.stride)
        out = np.empty((1, size, size, layer.shape.c_out), codes.dtype)
        rest = {"out_scale": layer.y_scale, "out_zero_point": Y_ZERO - shift, "out": out, **layer.geometry}
        return functools.partial(qk.conv2d, x, w, layer.bias, layout="NHWC", **rest)

    def kernel(self, layer: Layer) -> str:
        x = qk.QTensor(layer.x, X_SCALE, X_ZERO)
        w = qk.pack_conv(qk.QTensor(layer.w, layer.w_scale, axis=0), layout="NHWC", groups=layer.shape.groups)
        chosen = qk.explain(qk.conv2d, x, w, layout="NHWC", **layer.geometry).kernel
        return chosen.name if chosen else ""


class OursSigned(Ours):
    """The same numbers as s8 codes."""

    name, signed = "qkernels_s8", True


class Peer:
    name = ""
    modules: tuple[str, ...] = ()

    def available(self) -> str:
        missing = [module for module in self.modules if importlib.util.find_spec(module) is None]
        return f"not installed: {', '.join(missing)}" if missing else ""


class TorchOneDnn(Peer):
    """qconv2d_pointwise with prepacked weights, channels last."""

    name, modules = "torch_onednn", ("torch",)

    def prepare(self, layer: Layer, threads: int) -> Call:
        import torch

        torch.set_num_threads(threads)
        s, ops = layer.shape, torch.ops.onednn
        x = torch.from_numpy(layer.x).permute(0, 3, 1, 2)
        w = torch.from_numpy(np.ascontiguousarray(layer.w.transpose(0, 3, 1, 2)))
        scales, zeros = torch.from_numpy(layer.w_scale), torch.zeros(s.c_out, dtype=torch.int64)
        pair = [s.stride] * 2, [layer.pad] * 2, [s.dilation] * 2
        packed = ops.qconv_prepack(w, scales, X_SCALE, X_ZERO, *pair, s.groups, list(x.shape))
        bias = torch.from_numpy(layer.bias * layer.w_scale * np.float32(X_SCALE))

        def call() -> Any:
            return ops.qconv2d_pointwise(
                x, X_SCALE, X_ZERO, packed, scales, zeros, bias, *pair, s.groups, layer.y_scale, Y_ZERO, torch.uint8,
                "none", [], "",
            )  # fmt: skip

        return lambda: call().permute(0, 2, 3, 1)


class OnnxRuntime(Peer):
    """QLinearConv, channels first."""

    name, modules, channels_last = "ort_nchw", ("onnxruntime", "onnx"), False

    def prepare(self, layer: Layer, threads: int) -> Call:
        from onnx import TensorProto, helper, numpy_helper

        s, last = layer.shape, self.channels_last
        w = np.ascontiguousarray(layer.w.transpose(0, 3, 1, 2))
        x = layer.x if last else np.ascontiguousarray(layer.x.transpose(0, 3, 1, 2))
        size = -(-s.size // s.stride)
        y = np.empty((1, size, size, s.c_out) if last else (1, s.c_out, size, size), np.uint8)
        constants = {
            "xs": np.float32(X_SCALE), "xz": np.uint8(X_ZERO), "w": w, "ws": layer.w_scale,
            "wz": np.zeros(s.c_out, np.int8), "ys": np.float32(layer.y_scale), "yz": np.uint8(Y_ZERO), "b": layer.bias,
        }  # fmt: skip
        more = {"channels_last": 1} if last else {}
        node = helper.make_node(
            "QLinearConv", ["x", *constants], ["y"], domain="com.microsoft" if last else "", strides=[s.stride] * 2,
            pads=[layer.pad] * 4, dilations=[s.dilation] * 2, group=s.groups, **more,
        )  # fmt: skip
        graph = helper.make_graph(
            [node], "layer", [helper.make_tensor_value_info("x", TensorProto.UINT8, x.shape)],
            [helper.make_tensor_value_info("y", TensorProto.UINT8, y.shape)],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        )  # fmt: skip
        opsets = [helper.make_opsetid("", 13), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        return bound(model, threads, {"x": x}, {"y": y}, y if last else y.transpose(0, 2, 3, 1))


class OnnxRuntimeNhwc(OnnxRuntime):
    name, channels_last = "ort_nhwc", True


class OpenVino(Peer):
    """FakeQuantize round a float convolution, which its passes make an integer one; u8 in and out, channels last."""

    name, modules = "openvino", ("openvino",)

    def prepare(self, layer: Layer, threads: int) -> Call:
        import openvino
        from openvino import opset13 as op

        s = layer.shape
        shape = (1, s.c_in, s.size, s.size)
        image = op.parameter(shape, np.float32)
        low, high = -X_ZERO * X_SCALE, (255 - X_ZERO) * X_SCALE
        x = op.fake_quantize(image, *(np.float32(v) for v in (0, 255, low, high)), 256)
        scale = layer.w_scale.reshape(-1, 1, 1, 1)
        w = layer.w.transpose(0, 3, 1, 2).astype(np.float32) * scale
        w_q = op.fake_quantize(w, *(np.float32(v) * scale for v in (-128, 127, -128, 127)), 256)
        step = [s.stride] * 2, [layer.pad] * 2, [layer.pad] * 2, [s.dilation] * 2
        if s.groups == 1:
            y = op.convolution(x, w_q, *step)
        else:
            grouped = np.array([s.groups, s.c_out // s.groups, s.c_in // s.groups, s.kernel, s.kernel])
            y = op.group_convolution(x, op.reshape(w_q, grouped, False), *step)
        real = (layer.bias * layer.w_scale * np.float32(X_SCALE)).reshape(1, -1, 1, 1).astype(np.float32)
        y = op.add(y, real)
        ends = [np.float32((v - Y_ZERO) * layer.y_scale) for v in (0, 255)]
        y = op.fake_quantize(y, *ends, np.float32(0), np.float32(255), 256)
        model = openvino.Model([y], [image], "layer")
        steps = openvino.preprocess.PrePostProcessor(model)
        steps.input().tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
        steps.input().model().set_layout(openvino.Layout("NCHW"))
        steps.output().model().set_layout(openvino.Layout("NCHW"))
        steps.output().tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
        config = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
        compiled = openvino.Core().compile_model(steps.build(), "CPU", config)
        request = compiled.create_infer_request()
        request.set_input_tensor(openvino.Tensor(layer.x, shared_memory=True))

        def call() -> np.ndarray:
            request.infer()
            return request.get_output_tensor().data

        return call


class LiteRt(Peer):
    """XNNPACK, by a model of one operator made in memory; s8·s8 → s8, which is its type."""

    name, modules = "litert", ("ai_edge_litert", "flatbuffers")

    def prepare(self, layer: Layer, threads: int) -> Call:
        from ai_edge_litert.interpreter import Interpreter

        if layer.shape.stride > 1 and layer.shape.kernel > 1:
            raise ValueError("its padding of strided kernels is another")
        interpreter = Interpreter(model_content=_flatbuffer(layer), num_threads=threads)
        interpreter.allocate_tensors()
        x = (layer.x.astype(np.int16) - 128).astype(np.int8)
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
        y = interpreter.tensor(interpreter.get_output_details()[0]["index"])

        def call() -> Any:
            interpreter.invoke()
            return _Shifted(y)

        return call


class _Shifted:
    """s8 codes as u8 ones, when somebody looks."""

    def __init__(self, codes: Callable[[], np.ndarray]) -> None:
        self.codes = codes

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return (self.codes().astype(np.int16) + 128).astype(dtype or np.int16)


def _flatbuffer(layer: Layer) -> bytes:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    s = layer.shape
    depthwise = s.groups == s.c_in == s.c_out > 1
    size = -(-s.size // s.stride)
    model = schema.ModelT()
    model.version, model.description, model.buffers = 3, "a layer", [schema.BufferT()]
    tensors: list[Any] = []

    def add(shape: Any, kind: str, scale: Any, zero: int, data: Any = None, axis: int = 0) -> int:
        tensor, by = schema.TensorT(), schema.QuantizationParametersT()
        tensor.name, tensor.shape, tensor.type = f"t{len(tensors)}", list(shape), getattr(schema.TensorType, kind)
        if data is not None:
            tensor.buffer = len(model.buffers)
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            model.buffers.append(buffer)
        by.scale = [float(v) for v in np.atleast_1d(scale)]
        by.zeroPoint, by.quantizedDimension = [zero] * len(by.scale), axis
        tensor.quantization = by
        tensors.append(tensor)
        return len(tensors) - 1

    w = layer.w.transpose(3, 1, 2, 0) if depthwise else layer.w
    inputs = [
        add(layer.x.shape, "INT8", X_SCALE, X_ZERO - 128), add(w.shape, "INT8", layer.w_scale, 0, w, 3 * depthwise),
        add((s.c_out,), "INT32", np.float32(X_SCALE) * layer.w_scale, 0, layer.bias),
    ]  # fmt: skip
    output = add((1, size, size, s.c_out), "INT8", layer.y_scale, Y_ZERO - 128)
    options = schema.DepthwiseConv2DOptionsT() if depthwise else schema.Conv2DOptionsT()
    options.padding, options.strideH, options.strideW = 0, s.stride, s.stride
    options.dilationHFactor = options.dilationWFactor = s.dilation
    code, operator, graph = schema.OperatorCodeT(), schema.OperatorT(), schema.SubGraphT()
    kinds = schema.BuiltinOperator
    code.builtinCode = code.deprecatedBuiltinCode = kinds.DEPTHWISE_CONV_2D if depthwise else kinds.CONV_2D
    code.version = 3
    if depthwise:
        options.depthMultiplier = 1
    operator.inputs, operator.outputs, operator.builtinOptions = inputs, [output], options
    operator.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
    graph.name, graph.tensors, graph.operators = "layer", tensors, [operator]
    graph.inputs, graph.outputs = inputs[:1], [output]
    model.operatorCodes, model.subgraphs = [code], [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


PEERS: tuple[Any, ...] = (TorchOneDnn(), OnnxRuntime(), OnnxRuntimeNhwc(), OpenVino(), LiteRt())


class Result(NamedTuple):
    name: str
    kernel: str
    operations: int
    samples: dict[str, list[float]]
    wrong: dict[str, float]  # share of codes that are off by more than one
    absent: dict[str, str]
    compute_us: float  # operations / the best register-only peak of this machine, of the same rounds

    def us(self, name: str) -> float:
        return limits.median(self.samples.get(name, []))

    def best_peer(self, floats: bool = False) -> str:
        """Of integers, or of the float32 ones (conv_floats.py)."""
        ours = (Ours.name, OursSigned.name)
        others = (name for name in self.samples if name not in ours and name.endswith("_f32") == floats)
        return min(others, key=self.us, default="")

    def ratio(self, floats: bool = False) -> float:
        best = self.best_peer(floats)
        return self.us(best) / self.us(Ours.name) if best else math.nan


def wanted_codes(layer: Layer) -> np.ndarray:
    with qk.use("*_numpy"):
        x, w = qk.QTensor(layer.x, X_SCALE, X_ZERO), qk.QTensor(layer.w, layer.w_scale, axis=0)
        rest = {"out_scale": layer.y_scale, "out_zero_point": Y_ZERO, **layer.geometry}
        return qk.conv2d(x, w, layer.bias, layout="NHWC", **rest).codes()


def measure(
    shape: Conv, *, threads: int, peers: Sequence[Any] = PEERS, rounds: int = 9, seconds: float = 3.0
) -> Result:
    """Time a layer on everybody who is there and right."""
    layer = layer_of(shape)
    wanted = wanted_codes(layer).astype(np.int16)
    calls: dict[str, Call] = {}
    wrong: dict[str, float] = {}
    absent: dict[str, str] = {}
    for one in (Ours(), OursSigned(), *peers):
        reason = one.available()
        try:
            if reason:
                absent[one.name] = reason
                continue
            call = one.prepare(layer, threads)
            got = np.asarray(call()).astype(np.int16)
        except Exception as error:  # whatever another library raises is its answer
            if isinstance(one, Ours):
                raise
            absent[one.name] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        got = got + 128 if one.name == OursSigned.name else got
        tolerance = 0 if isinstance(one, Ours) else 1
        off = float(np.mean(np.abs(got.reshape(wanted.shape) - wanted) > tolerance))
        wrong[one.name] = off
        if isinstance(one, Ours) and off:
            raise RuntimeError(f"bench: {shape.name}: {off:.2%} of our own codes are wrong")
        if off <= 1e-3:
            calls[one.name] = call
    isa = next(iter(limits.isas()), "")
    peaks: list[float] = []
    samples = timing.interleave(
        calls, rounds=rounds, seconds=seconds, idle=IDLE_SECONDS,
        between=lambda: peaks.extend(limits.peak_gops(isa, threads) for _ in range(3)),
    )  # fmt: skip
    compute = shape.operations / limits.median(peaks) / 1e3
    return Result(shape.name, Ours().kernel(layer), shape.operations, samples, wrong, absent, compute)


def table(results: Sequence[Result]) -> str:
    """µs of everybody, the ratio to the best peer that is right, to the best float32 one, the share of the roof."""
    names = [Ours.name, OursSigned.name, *(peer.name for peer in PEERS)]
    lines = [f"{'layer':24}" + "".join(f"{name:>14}" for name in names) + "   × best peer   × best f32   % of peak"]
    ratios = []
    for result in results:
        cells = "".join(
            f"{result.us(name):14.1f}" if name in result.samples else f"{'wrong' if name in result.wrong else '—':>14}"
            for name in names
        )
        ratios.append(result.ratio())
        share = 100 * result.compute_us / result.us(Ours.name)
        floats = result.best_peer(floats=True)
        beside = f"{result.ratio(floats=True):6.2f} {floats.removesuffix('_f32'):10}" if floats else f"{'—':>6}{'':11}"
        lines.append(f"{result.name:24}{cells}{result.ratio():14.2f}{beside}{share:8.0f}")
    lines.append(f"geometric mean of the ratios: {geometric_mean(ratios):.2f}")
    return "\n".join(lines)


def select(filters: str) -> list[Conv]:
    words = [word.strip() for word in filters.split(",") if word.strip()]
    return [shape for shape in INT8_CONV if not words or any(word in shape.name for word in words)]


def names() -> list[str]:
    return [shape.name for shape in INT8_CONV]
