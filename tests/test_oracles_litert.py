"""LiteRT's three ways of running a fully-connected layer, and TFLite Micro, say the same as `linear` in the rounding
that docs/arithmetic.md names for each: more than 10⁵ outputs each, exactly."""

from __future__ import annotations

import numpy as np
import pytest
from litert_models import RUNTIMES, Model, run, schema

import qkernels as qk

F32, S32 = np.float32, np.int32
M, N = 64, 65
MODELS = 28  # of 4,160 outputs each
ACTIVATIONS = {None: 0, "relu": 1, "relu6": 3}  # as the flatbuffer has them


def layer(number: int) -> tuple[bytes, np.ndarray, qk.QTensor, qk.QTensor, np.ndarray, dict]:
    """A model, its input, and what `linear` is called with."""
    rng = np.random.default_rng(50 + number)
    k, per_channel = int(rng.integers(1, 100)), number % 2 == 1
    scale = np.exp2(rng.uniform(-9, -5, N if per_channel else 1))
    if number % 4 < 2:  # multipliers that are powers of two: ties
        scale = np.exp2(np.round(np.log2(scale)))
    sw, sx = scale.astype(F32), F32(2.0**-5 if number % 4 < 2 else rng.uniform(0.01, 0.1))
    sy = F32(2.0 ** int(rng.integers(-9, 0)) if number % 4 < 2 else np.exp2(rng.uniform(-9, 0)))
    zx, zy = (int(z) for z in rng.integers(-128, 128, 2))
    x, w = rng.integers(-128, 128, (M, k)).astype(np.int8), rng.integers(-127, 128, (N, k)).astype(np.int8)
    bias = rng.integers(-4000, 4000, N).astype(S32)
    activation = (None, "relu", "relu6")[number % 3]
    model = Model()
    inputs = [model.add((M, k), "int8", sx, zx), model.add((N, k), "int8", sw, 0, w),
              model.add((N,), "int32", sx * sw, 0, bias)]  # fmt: skip
    output = model.add((M, N), "int8", sy, zy)
    options = schema.FullyConnectedOptionsT()
    options.fusedActivationFunction = ACTIVATIONS[activation]
    content = model.finish("FULLY_CONNECTED", 12 if per_channel else 4, inputs, [output], options)
    weight = qk.QTensor(w, sw, axis=0) if per_channel else qk.QTensor(w, sw[0])
    return content, x, qk.QTensor(x, sx, zx), weight, bias, {
        "activation": activation, "out_scale": sy, "out_zero_point": zy,
    }  # fmt: skip


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_fully_connected(runtime: str) -> None:
    wrong, total, others = 0, 0, 0
    for number in range(MODELS):
        content, codes, x, weight, bias, wishes = layer(number)
        wanted = run(runtime, content, codes)
        rounding = RUNTIMES[runtime]
        got = qk.linear(x, weight, bias, rounding=rounding, **wishes).codes()
        wrong, total = wrong + int((got != wanted).sum()), total + wanted.size
        other = "ruy" if rounding != "ruy" else "gemmlowp"
        others += int((qk.linear(x, weight, bias, rounding=other, **wishes).codes() != wanted).sum())
    assert total > 10**5
    assert wrong == 0, f"{runtime}: {wrong} of {total} codes differ in rounding {RUNTIMES[runtime]}"
    assert others > 0, "these models cannot tell one rounding from another"
