"""ONNX Runtime says the same: ConvInteger and QLinearConv, more than a thousand random cases, every element. A model
has its strides and groups fixed and its sizes free, so that it serves several cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import qkernels as qk

onnx = pytest.importorskip("onnx", reason="onnx makes the models (extra: onnx)")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is the oracle (extra: onnx)")
from onnx import TensorProto, helper  # noqa: E402
from test_oracles_onnx import open_model  # noqa: E402

CODES = {"u8": TensorProto.UINT8, "s8": TensorProto.INT8}
TYPES = {"u8": np.uint8, "s8": np.int8}
MODELS, RUNS = 90, 6  # of each operator: 540 cases


class Layer:
    """A random convolution, and its model."""

    def __init__(self, seed: int, quantized: bool) -> None:
        rng = np.random.default_rng(seed)
        self.quantized = quantized
        axes = 1 if seed % 9 == 8 else 2
        kind = ("dense", "grouped", "depthwise")[seed % 3]
        self.groups = {"dense": 1, "grouped": int(rng.integers(2, 5)), "depthwise": int(rng.integers(2, 40))}[kind]
        self.depth = 1 if kind == "depthwise" else int(rng.integers(1, 9))
        self.filters = self.groups * (1 if kind == "depthwise" else int(rng.integers(1, 9)))
        self.kernel = tuple(int(n) for n in rng.integers(1, 5, axes))
        self.stride = tuple(int(n) for n in rng.integers(1, 4, axes))
        self.dilation = tuple(int(n) for n in rng.integers(1, 3, axes))
        self.pads = tuple((int(rng.integers(k)), int(rng.integers(k))) for k in self.kernel)
        self.x_type = ("u8", "s8")[seed // 2 % 2]
        # ConvInteger of s8 images is not there; QLinearConv takes u8·u8, u8·s8, s8·s8
        self.w_type = "s8" if self.x_type == "s8" else ("u8", "s8")[seed % 2]
        if not quantized:
            self.x_type = "u8"
        self.each = bool(seed % 4)
        self.rng = rng
        self.run = self._model()

    def _model(self) -> Any:
        attributes = {
            "strides": self.stride, "dilations": self.dilation, "group": self.groups,
            "pads": [p[0] for p in self.pads] + [p[1] for p in self.pads],
        }  # fmt: skip
        rank = len(self.kernel) + 2
        x, w = CODES[self.x_type], CODES[self.w_type]
        value = helper.make_tensor_value_info
        image, weight = value("x", x, [None] * rank), value("w", w, [None] * rank)
        if not self.quantized:
            node = helper.make_node("ConvInteger", ["x", "w", "xz", "wz"], ["y"], **attributes)
            inputs = [image, weight, value("xz", x, []), value("wz", w, [])]
            return open_model([node], inputs, [value("y", TensorProto.INT32, [None] * rank)])
        names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"]
        node = helper.make_node("QLinearConv", names, ["y"], **attributes)
        each, real = [None] if self.each else [], TensorProto.FLOAT
        inputs = [
            image, value("xs", real, []), value("xz", x, []), weight, value("ws", real, each), value("wz", w, each),
            value("ys", real, []), value("yz", x, []), value("b", TensorProto.INT32, [None]),
        ]  # fmt: skip
        return open_model([node], inputs, [value("y", x, [None] * rank)])

    def operands(self) -> tuple[np.ndarray, np.ndarray]:
        rng = self.rng
        least = [d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True)]
        size = [int(rng.integers(n, n + 9)) for n in least]
        x = rng.integers(0, 256, (int(rng.integers(1, 3)), self.groups * self.depth, *size)).astype(np.uint8)
        w = rng.integers(0, 256, (self.filters, self.depth, *self.kernel)).astype(np.uint8)
        return x.view(TYPES[self.x_type]), w.view(TYPES[self.w_type])

    def zero(self, kind: str, *shape: int) -> np.ndarray:
        ends = np.iinfo(TYPES[kind])
        return self.rng.integers(ends.min, ends.max + 1, shape).astype(TYPES[kind])

    def ours(self, x: Any, w: Any, *bias: Any, **rest: Any) -> Any:
        op, layout = (qk.conv2d, "NCHW") if x.ndim == 4 else (qk.conv1d, "NCW")
        return op(
            x, w, *bias, layout=layout, stride=self.stride, padding=self.pads, dilation=self.dilation,
            groups=self.groups, **rest,
        )  # fmt: skip


def test_conv_integer() -> None:
    wrong = cases = 0
    for seed in range(MODELS):
        layer = Layer(seed, quantized=False)
        for _ in range(RUNS):
            x, w = layer.operands()
            xz, wz = layer.zero("u8"), layer.zero(layer.w_type)
            (wanted,) = layer.run.run(None, {"x": x, "w": w, "xz": xz, "wz": wz})
            got = layer.ours(x, w, x_zero_point=int(xz), w_zero_point=int(wz))
            assert got.shape == wanted.shape
            wrong += int((got != wanted).sum())
            cases += 1
    assert cases == MODELS * RUNS and wrong == 0


def test_qlinear_conv() -> None:
    wrong = cases = ties = 0
    for seed in range(MODELS):
        layer = Layer(seed, quantized=True)
        rng = layer.rng
        for run in range(RUNS):
            x, w = layer.operands()
            shape = (layer.filters,) if layer.each else ()
            xz, yz = layer.zero(layer.x_type), layer.zero(layer.x_type)
            wz = layer.zero(layer.w_type, *shape) if layer.w_type == "u8" else np.zeros(shape, np.int8)
            if layer.each and layer.w_type == "u8":
                wz[:] = wz[0]  # it takes one zero point a tensor only
            xs, ws = np.float32(rng.uniform(0.001, 0.1)), np.float32(rng.uniform(0.001, 0.1, shape))
            ys = np.float32(rng.uniform(0.02, 0.4) * xs * np.mean(ws) * 100 * np.sqrt(w[0].size))
            if run % 3 == 0:  # powers of two: many ties
                xs, ys, ws = np.float32(0.25), np.float32(32), np.full(shape, 0.5, np.float32)
                ties += 1
            b = rng.integers(-20_000, 20_000, layer.filters).astype(np.int32)
            feed = {"x": x, "xs": xs, "xz": xz, "w": w, "ws": ws, "wz": wz, "ys": ys, "yz": yz, "b": b}
            (wanted,) = layer.run.run(None, {name: np.asarray(value) for name, value in feed.items()})
            weight = qk.QTensor(w, ws, wz if layer.each else int(wz), axis=0 if layer.each else None)
            got = layer.ours(qk.QTensor(x, xs, int(xz)), weight, b, out_scale=ys, out_zero_point=int(yz)).codes()
            assert got.shape == wanted.shape and got.dtype == wanted.dtype
            wrong += int((got != wanted).sum())
            cases += 1
    assert cases == MODELS * RUNS and ties > 100 and wrong == 0
