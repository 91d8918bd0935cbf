"""LiteRT's three ways of running conv and depthwise conv, and TFLite Micro, say the same as `conv2d` in the rounding
that docs/arithmetic.md names for each: more than 10⁵ outputs each, exactly."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from litert_models import Model, run, schema
from test_oracles_litert import ACTIVATIONS

import qkernels as qk

F32, S32 = np.float32, np.int32
RUNTIMES = {  # whose rounding is which (docs/arithmetic.md A5)
    "BUILTIN_REF": "gemmlowp",
    "BUILTIN_WITHOUT_DEFAULT_DELEGATES": "ruy",
    "AUTO": "half_even",
    "micro": "gemmlowp",
}
MODELS = 28


class Layer(NamedTuple):
    content: bytes
    codes: np.ndarray
    x: qk.QTensor
    weight: qk.QTensor
    bias: np.ndarray
    wishes: dict[str, Any]


def layer(number: int, depthwise: bool, plain: bool = False) -> Layer:
    """plain: without what LiteRT's built-in depthwise kernel leaves to scalar code, or to the reference's, which
    round as gemmlowp does: channels beyond whole vectors, dilation."""
    rng = np.random.default_rng(90 + number)
    channels = int(rng.integers(17, 40)) if depthwise else int(rng.integers(1, 20))
    channels = 16 * (1 + number % 3) if plain else channels
    filters = channels if depthwise else int(rng.integers(20, 50))
    kh, kw = (int(n) for n in rng.integers(1, 6, 2))
    height, width = (int(n) for n in rng.integers(14, 22, 2))
    stride = int(rng.integers(1, 3))
    dilation = (1, 1) if stride > 1 or number % 3 or plain else tuple(int(n) for n in rng.integers(1, 3, 2))
    padding = ("valid", "same_upper")[number % 2]
    ties = number % 4 < 2
    sw = np.exp2(rng.uniform(-9, -5, filters))
    sw = (np.exp2(np.round(np.log2(sw))) if ties else sw).astype(F32)
    sx = F32(2.0**-5 if ties else rng.uniform(0.01, 0.1))
    sy = F32(2.0 ** int(rng.integers(-5, 1)) if ties else np.exp2(rng.uniform(-5, 1)))
    zx, zy = (int(z) for z in rng.integers(-128, 128, 2))
    x = rng.integers(-128, 128, (1, height, width, channels)).astype(np.int8)
    w = rng.integers(-127, 128, (filters, kh, kw, 1 if depthwise else channels)).astype(np.int8)
    bias = rng.integers(-4000, 4000, filters).astype(S32)
    activation = (None, "relu", "relu6")[number % 3]
    weight = qk.QTensor(w, sw, axis=0)
    groups = channels if depthwise else 1
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    wishes = {"activation": activation, "out_scale": sy, "out_zero_point": zy, **geometry}
    shape = qk.conv2d(qk.QTensor(x, sx, zx), weight, layout="NHWC", **geometry).shape
    model = Model()
    laid = np.ascontiguousarray(w.transpose(3, 1, 2, 0)) if depthwise else w
    inputs = [
        model.add(x.shape, "int8", sx, zx), model.add(laid.shape, "int8", sw, 0, laid, axis=3 if depthwise else 0),
        model.add((filters,), "int32", sx * sw, 0, bias),
    ]  # fmt: skip
    output = model.add(shape, "int8", sy, zy)
    options = schema.DepthwiseConv2DOptionsT() if depthwise else schema.Conv2DOptionsT()
    options.padding = 0 if padding == "same_upper" else 1
    options.strideH = options.strideW = stride
    options.dilationHFactor, options.dilationWFactor = dilation
    options.fusedActivationFunction = ACTIVATIONS[activation]
    if depthwise:
        options.depthMultiplier = 1
    content = model.finish("DEPTHWISE_CONV_2D" if depthwise else "CONV_2D", 3, inputs, [output], options)
    return Layer(content, x, qk.QTensor(x, sx, zx), weight, bias, wishes)


@pytest.mark.parametrize("depthwise", [False, True], ids=["conv", "depthwise"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_convolutions(runtime: str, depthwise: bool) -> None:
    wrong, total, others = 0, 0, 0
    for number in range(MODELS):
        one = layer(number, depthwise, depthwise and runtime == "BUILTIN_WITHOUT_DEFAULT_DELEGATES")
        wanted = run(runtime, one.content, one.codes)
        rounding = RUNTIMES[runtime]
        got = qk.conv2d(one.x, one.weight, one.bias, layout="NHWC", rounding=rounding, **one.wishes).codes()
        assert got.shape == wanted.shape
        wrong, total = wrong + int((got != wanted).sum()), total + wanted.size
        other = "ruy" if rounding != "ruy" else "gemmlowp"
        again = qk.conv2d(one.x, one.weight, one.bias, layout="NHWC", rounding=other, **one.wishes).codes()
        others += int((again != wanted).sum())
    assert total > 10**5
    assert wrong == 0, f"{runtime}: {wrong} of {total} codes differ in rounding {RUNTIMES[runtime]}"
    assert others > 0, "these models cannot tell one rounding from another"
