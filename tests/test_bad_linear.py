"""Bad input to linear is refused in words: op, argument, what came, what was wanted. `out` stays as it was."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

import qkernels as qk

F32, S32 = np.float32, np.int32
W = qk.quantize(np.ones((5, 8)), axis=0)
X = np.ones((3, 8), F32)
Q = qk.quantize(X, dtype="uint8")
R = qk.quantize(np.ones((3, 5)))
NAN, INF = np.nan, np.inf


# ruff: noqa: E501
# A case a line reads like a table.
# fmt: off
CASES: dict[str, tuple[Any, type[Exception], list[str]]] = {}


def case(name: str, call: Any, error: type[Exception], *words: str) -> None:
    assert name not in CASES
    CASES[name] = call, error, list(words)


case("weight, an array", lambda: qk.linear(X, np.ones((5, 8), np.int8)), TypeError, "linear: weight is ndarray", "QTensor (n, k)")
case("weight, a PackedMatrix", lambda: qk.linear(X, qk.pack(np.ones((8, 5), np.int8))), TypeError, "linear: weight is PackedMatrix")
case("weight of 16 bits", lambda: qk.linear(X, qk.quantize(np.ones((5, 8)), dtype="int16")), ValueError, "linear: weight is of int16", "8 bits or fewer")
case("weight, a vector", lambda: qk.linear(X, qk.quantize(np.ones(8))), ValueError, "linear: weight has shape (8,)", "wanted (n, k)")
case("weight, experts", lambda: qk.linear(X, qk.quantize(np.ones((2, 5, 8)))), ValueError, "shape (2, 5, 8)", "grouped_linear")
case("weight, scales along k", lambda: qk.linear(X, qk.quantize(np.ones((5, 8)), axis=1)), ValueError, "linear: weight (shape (5, 8)) keeps a scale along axis 1", "axis=0", "group_axis=1")
case("weight, groups along n", lambda: qk.linear(X, qk.quantize(np.ones((5, 8)), axis=1, group_size=2, group_axis=0)), ValueError, "axis")
case("pack_linear, an array", lambda: qk.pack_linear(np.ones((5, 8))), TypeError, "pack_linear: weight is ndarray", "quantize(w, axis=0)")
case("pack_linear, a scalar", lambda: qk.pack_linear(qk.quantize(1.0)), ValueError, "pack_linear: weight has shape ()", "(e, n, k)")
case("k", lambda: qk.linear(X[:, :7], W), ValueError, "linear: x has k=7 (shape (3, 7))", "weight has k=8 (shape (5, 8))")
case("k, packed", lambda: qk.linear(X[:, :7], qk.pack_linear(W)), ValueError, "x has k=7", "weight was packed for k=8")
case("x, a scalar", lambda: qk.linear(F32(1), W), ValueError, "linear: x has no dimensions")
case("x, a quantized scalar", lambda: qk.linear(qk.quantize(F32(1)), W), ValueError, "linear: x is a scalar", "(…, k)")
case("x, integers", lambda: qk.linear(X.astype(np.int8), W), TypeError, "linear: x has dtype int8", "QTensor(x, 1.0)")
case("x, 16 bits", lambda: qk.linear(qk.quantize(X, dtype="int16"), W), ValueError, "linear: x is of int16", "8 bits")
case("x, scales along k", lambda: qk.linear(qk.quantize(X, axis=1), W), ValueError, "linear: x (shape (3, 8)) has a scale along axis 1", "axis=None or axis=0 would fit")
case("x, groups", lambda: qk.linear(qk.quantize(X, axis=0, group_size=4), W), ValueError, "x (shape (3, 8)) has groups along axis 1", "axis=0 would fit")
case("x, objects", lambda: qk.linear([["a"] * 8], W), TypeError, "linear: x has dtype str")
case("bias, shape", lambda: qk.linear(X, W, np.ones(4)), ValueError, "linear: bias has shape (4,)", "wanted (5,)")
case("bias, a scalar", lambda: qk.linear(X, W, 1.0), ValueError, "bias has shape ()", "wanted (5,)")
case("bias, bools", lambda: qk.linear(Q, W, np.ones(5, bool)), TypeError, "bias has dtype bool", "int32 or floats")
case("bias, integers of float x", lambda: qk.linear(X, W, np.ones(5, S32)), ValueError, "bias is of integers", "which a float x does not have")
case("bias, beyond int32", lambda: qk.linear(Q, W, np.full(5, 2**31)), ValueError, "bias has 2147483648…2147483648", "int32")
case("bias, beyond int32 in its unit", lambda: qk.linear(Q, W, np.array([0, 0, 1e30, 0, 0]), out_scale=1.0), ValueError, "bias has 1.0000", "no int32 in units")
case("bias, NaN in codes", lambda: qk.linear(Q, W, np.array([0, NAN, 0, 0, 0]), out_scale=1.0), ValueError, "bias has nan at (1,)", "no int32")
for value in (0.0, -1.0, NAN, INF):
    case(f"out_scale {value}", lambda v=value: qk.linear(Q, W, out_scale=v), ValueError, f"linear: out_scale is {value}", "finite and > 0")
case("out_scale, an array", lambda: qk.linear(Q, W, out_scale=np.ones(5)), ValueError, "linear: out_scale has shape (5,)", "wanted ()")
case("out_zero_point, out of range", lambda: qk.linear(Q, W, out_scale=1.0, out_zero_point=256), ValueError, "linear: out_zero_point is 256", "uint8 (0…255)")
case("out_zero_point, an array", lambda: qk.linear(Q, W, out_scale=1.0, out_zero_point=[1] * 5), ValueError, "out_zero_point has shape (5,)", "one scale")
case("out_zero_point without a scale", lambda: qk.linear(Q, W, out_zero_point=3), ValueError, "out_zero_point=3 goes with an out_scale")
case("out_dtype of codes without a scale", lambda: qk.linear(Q, W, out_dtype="int8"), ValueError, "out_dtype='int8' needs an out_scale")
case("out_dtype unknown", lambda: qk.linear(Q, W, out_dtype="int31"), ValueError, "out_dtype='int31'", "float32, float16", "int32")
case("out_dtype float with a scale", lambda: qk.linear(Q, W, out_dtype="float32", out_scale=1.0), ValueError, "out_dtype='float32'", "int8, uint8")
case("int32 of float x", lambda: qk.linear(X, W, out_dtype="int32"), ValueError, 'out_dtype="int32" wants a QTensor x')
case("int32 with an activation", lambda: qk.linear(Q, W, out_dtype="int32", activation="relu"), ValueError, "activation", "bare accumulators")
case("rounding unknown", lambda: qk.linear(Q, W, out_scale=1.0, rounding="up"), ValueError, "rounding='up'", "half_even, gemmlowp")
case("rounding of floats", lambda: qk.linear(Q, W, rounding="ruy"), ValueError, "rounding='ruy' goes with an out_scale")
case("activation unknown", lambda: qk.linear(X, W, activation="swish"), ValueError, "activation='swish'", "relu, relu6, gelu")
case("activation, three numbers", lambda: qk.linear(X, W, activation=(1, 2, 3)), TypeError, "activation=(1, 2, 3)", "(lowest, highest)")
case("activation, ends", lambda: qk.linear(X, W, activation=(1, 0)), ValueError, "activation=(1, 0)", "lowest ≤ highest")
case("activation, NaN", lambda: qk.linear(X, W, activation=(NAN, 0)), ValueError, "lowest ≤ highest")
case("activation, a curve of codes", lambda: qk.linear(Q, W, activation="gelu", out_scale=1.0), ValueError, "activation='gelu' of codes", "relu6", "table of 256")
case("residual, shape", lambda: qk.linear(X, W, residual=np.ones((3, 4), F32)), ValueError, "residual has shape (3, 4)", "result has (3, 5)")
case("residual, integers", lambda: qk.linear(X, W, residual=np.ones((3, 5), S32)), TypeError, "residual has dtype int32")
case("residual, floats of codes", lambda: qk.linear(Q, W, residual=np.ones((3, 5), F32), out_scale=1.0), ValueError, "residual is ndarray", "wanted a QTensor")
case("residual, scales", lambda: qk.linear(Q, W, residual=qk.quantize(np.ones((3, 5)), axis=0), out_scale=1.0), ValueError, "residual has axis=0", "one scale")
case("residual and rounding", lambda: qk.linear(Q, W, residual=R, out_scale=1.0, rounding="ruy"), ValueError, "rounding='ruy' with a residual", "half_even")
case("compute unknown", lambda: qk.linear(X, W, compute="int4"), ValueError, "compute='int4'", "int8, float32, bfloat16")
case("compute of codes", lambda: qk.linear(Q, W, compute="float32"), ValueError, "compute='float32' wants a float x")
case("compute to codes", lambda: qk.linear(X, W, compute="float32", out_scale=1.0), ValueError, "gives floats")
case("grouped to codes", lambda: qk.linear(X, qk.quantize(np.ones((5, 8)), axis=0, group_size=4), out_scale=1.0), ValueError, "weight has groups along k", "gives floats")
case("grouped with an int bias", lambda: qk.linear(Q, qk.quantize(np.ones((5, 8)), axis=0, group_size=4), np.ones(5, S32)), ValueError, "bias is int32, wanted floats")
case("scales beyond float32", lambda: qk.linear(qk.QTensor(np.ones((3, 8), np.int8), 1e30), qk.QTensor(np.ones((5, 8), np.int8), 1e30)), ValueError, "x_scale · weight_scale is not finite")
case("multiplier beyond float32", lambda: qk.linear(qk.QTensor(np.ones((3, 8), np.int8), 1e20), W, out_scale=1e-30), ValueError, "out_scale is not finite")
case("residual's scale beyond float32", lambda: qk.linear(Q, W, residual=qk.QTensor(np.ones((3, 5), np.int8), 1e20), out_scale=1e-30), ValueError, "residual's scale / out_scale is not finite")
case("matmul with a PackedLinear", lambda: qk.matmul(np.ones((3, 8), np.int8), qk.pack_linear(W)), TypeError, "matmul: b is a PackedLinear (5, 8)", "pack(b)")
case("unpackable x", lambda: qk.linear(qk.pack_linear(W), W), TypeError, "linear: x is PackedLinear")
case("out, a list", lambda: qk.linear(X, W, out=[0]), TypeError, "linear: out is list")
case("out, shape", lambda: qk.linear(X, W, out=np.ones((3, 4), F32)), ValueError, "linear: out has shape (3, 4)", "result has (3, 5)")
case("out, dtype", lambda: qk.linear(X, W, out_dtype="float16", out=np.ones((3, 5), F32)), TypeError, "out has dtype float32, wanted float16")
case("out, codes' dtype", lambda: qk.linear(Q, W, out_scale=1.0, out_dtype="int8", out=np.ones((3, 5), np.uint8)), TypeError, "out has dtype uint8, wanted int8")
# fmt: on


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_in_words(name: str) -> None:
    call, error, words = CASES[name]
    with pytest.raises(error) as caught:
        call()
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{caught.value}\nlacks {missing}"


def test_out_is_untouched_when_a_call_fails() -> None:
    for dtype, kwargs in ((F32, {}), (np.uint8, {"out_scale": 1.0}), (S32, {"out_dtype": "int32"})):
        out = np.full((3, 5), 77, dtype)
        for wrong in ({"bias": np.ones(4)}, {"activation": "swish"}, {"rounding": "x"}, {"residual": np.ones((3, 4))}):
            with pytest.raises((ValueError, TypeError)):
                qk.linear(Q, W, out=out, **{**kwargs, **wrong})
        with pytest.raises(qk.NoKernelError), qk.use("nothing"):
            qk.linear(Q, W, out=out, **kwargs)
        assert (out == 77).all()
    out = np.ones((3, 5), F32)
    out.flags.writeable = False
    for _ in range(2):
        with pytest.raises(ValueError, match="out is read-only"):
            qk.linear(X, W, out=out)


def test_explain_raises_as_the_call_would() -> None:
    assert list(inspect.signature(qk.linear.problem_of).parameters) == list(inspect.signature(qk.linear).parameters)
    with pytest.raises(ValueError, match="linear: x has k=7"):
        qk.explain(qk.linear, X[:, :7], W)
    with pytest.raises(ValueError, match="linear: bias has shape"):
        qk.explain(qk.linear, X, W, np.ones(4))
