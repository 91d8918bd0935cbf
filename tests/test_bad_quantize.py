"""Bad input to quantized tensors is refused in words: op, argument, what came, what was wanted. Nothing is half-written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import qkernels as qk
from qkernels.rounding import ROUNDINGS

F32, S32 = np.float32, np.int32
X = np.ones((4, 6), F32)
Q = qk.quantize(X, axis=0)
ACC = np.ones((4, 6), S32)
CODES = np.ones((4, 6), np.int8)
NAN, INF = np.nan, np.inf


def bad_scale(value: float) -> Any:
    scale = np.ones(4, F32)
    scale[2] = value
    return scale


# ruff: noqa: E501
# A case a line reads like a table.
# fmt: off
CASES: dict[str, tuple[Any, type[Exception], list[str]]] = {}


def case(name: str, call: Any, error: type[Exception], *words: str) -> None:
    assert name not in CASES
    CASES[name] = call, error, list(words)


for value in (0.0, -1.0, NAN, INF, -INF):
    for op, call in {
        "quantize": lambda s: qk.quantize(X, s, axis=0),
        "fake_quantize": lambda s: qk.fake_quantize(X, s, axis=0),
        "QTensor": lambda s: qk.QTensor(CODES, s, axis=0),
        "QTensor.from_packed": lambda s: qk.QTensor.from_packed(CODES, (4, 6), s, dtype="int8", axis=0),
        "requantize": lambda s: qk.requantize(ACC, s, axis=0),
    }.items():
        case(f"{op}: a scale of {value}", lambda call=call, v=value: call(bad_scale(v)), ValueError,
             f"{op}: scale has {value} at (2,)", "wanted finite and > 0")  # fmt: skip
    case(f"requantize: the scale {value}", lambda v=value: qk.requantize(ACC, v), ValueError, f"scale is {value}", "> 0")
    case(f"quantize: the scale {value}", lambda v=value: qk.quantize(X, v), ValueError, f"scale is {value}", "> 0")

for dtype, low, high in (("int8", -128, 127), ("uint8", 0, 255), ("int4", -8, 7), ("uint2", 0, 3), ("int16", -32768, 32767)):
    for zero in (low - 1, high + 1):
        words = f"zero_point is {zero}", f"{dtype} ({low}…{high})"
        case(f"quantize: {zero} for {dtype}", lambda z=zero, t=dtype: qk.quantize(X, 1.0, z, dtype=t), ValueError, "quantize: ", *words)
        case(f"requantize: {zero} for {dtype}", lambda z=zero, t=dtype: qk.requantize(ACC, 1.0, z, dtype=t), ValueError, "requantize: ", *words)
        case(f"QTensor: {zero} for {dtype}", lambda z=zero, t=dtype: qk.QTensor(CODES * 0, 1.0, z, dtype=t), ValueError, "QTensor: ", *words)
case("zero point, one of many", lambda: qk.quantize(X, np.ones(4), [0, 0, 128, 0], axis=0), ValueError, "zero_point has 128 at (2,)", "int8")
case("zero point, float", lambda: qk.quantize(X, 1.0, 1.5), TypeError, "quantize: zero_point has dtype float64", "wanted integers")
case("zero point, bool", lambda: qk.requantize(ACC, 1.0, True), TypeError, "requantize: zero_point has dtype bool", "wanted integers")
case("zero point without scale", lambda: qk.quantize(X, None, 3), ValueError, "quantize: zero_point=3 without a scale")
case("zero point, shape", lambda: qk.quantize(X, np.ones(4), np.zeros(6, int), axis=0), ValueError, "zero_point has shape (6,)", "a scalar or (4,)", "axis=1 would fit")

case("scale, shape for the other axis", lambda: qk.quantize(X, np.ones(6), axis=0), ValueError, "quantize: scale has shape (6,)", "wanted (4,)", "axis=0", "(4, 6)", "axis=1 would fit")
case("scale, shape without an axis", lambda: qk.QTensor(CODES, np.ones(4, F32)), ValueError, "QTensor: scale has shape (4,)", "wanted ()", "axis=0 would fit")
case("scale, shape for two axes", lambda: qk.quantize(X, np.ones((4, 6))), ValueError, "axis=(0, 1) would fit")
case("scale, scalar with an axis", lambda: qk.quantize(X, 1.0, axis=0), ValueError, "scale has shape ()", "wanted (4,)", "axis=None would fit")
case("scale, groups of the other axis", lambda: qk.QTensor(CODES, np.ones((2, 6), F32), axis=0, group_size=2), ValueError, "wanted (4, 3)", "axis=1 with group_axis=0 would fit")
case("scale, fits nothing", lambda: qk.quantize(X, np.ones(5), axis=0), ValueError, "scale has shape (5,)", "wanted (4,)")
case("scale, underflows float16", lambda: qk.quantize(X, 1e-9, scale_dtype="float16"), ValueError, "scale is 0.0", "as float16")
case("scale, text", lambda: qk.quantize(X, "a"), TypeError, "quantize: scale has dtype")
case("scale, bool", lambda: qk.quantize(X, True), TypeError, "quantize: scale has dtype bool", "float32")
case("scale_dtype", lambda: qk.quantize(X, scale_dtype="float64"), ValueError, "scale_dtype='float64'", "float32, float16, bfloat16")
case("no scale", lambda: qk.fake_quantize(X, None), ValueError, "fake_quantize: scale is None")
case("found scale, beyond float16", lambda: qk.quantize(X * 1e38, scale_dtype="float16"), ValueError, "quantize: the range", "float16")
case("found scale, beyond float32", lambda: qk.quantize(np.array([-3e38, 3e38], F32), symmetric=False), ValueError, "quantize: the range", "not a finite float32")
case("calibrated scale, beyond float32", lambda: qk.calibrate([np.array([-3e38, 3e38], F32)], symmetric=False), ValueError, "calibrate: the range")
case("dynamic scale, beyond float32", lambda: qk.dynamic_quantize(np.array([[-3e38, 3e38]], F32), dtype="uint8"), ValueError, "dynamic_quantize", "wider than float32")
case("requantize: beyond float32", lambda: qk.requantize(ACC, 1e39), ValueError, "requantize: scale", "half_even", "finite")

for op, call in {"quantize": lambda **k: qk.quantize(X, **k), "QTensor": lambda **k: qk.QTensor(CODES, 1.0, **k)}.items():
    case(f"{op}: axis 2 of 2", lambda c=call: c(axis=2), ValueError, f"{op}: axis=2", "(4, 6)", "-2 … 1")
    case(f"{op}: axis twice", lambda c=call: c(axis=(0, -2)), ValueError, f"{op}: axis=(0, -2)", "twice")
    case(f"{op}: axis float", lambda c=call: c(axis=1.0), TypeError, f"{op}: axis is float", "int")
    case(f"{op}: group_axis is kept", lambda c=call: c(axis=1, group_size=2), ValueError, f"{op}: group_axis=-1", "axis=1", "group_axis=0 would fit")
    case(f"{op}: group_axis 5", lambda c=call: c(axis=1, group_size=2, group_axis=5), ValueError, "group_axis=5", "-2 … 1")
    case(f"{op}: group_size 0", lambda c=call: c(group_size=0), ValueError, f"{op}: group_size=0", "at least 1")
    case(f"{op}: group_size float", lambda c=call: c(group_size=2.0), TypeError, f"{op}: group_size is float")
    case(f"{op}: dtype", lambda c=call: c(dtype="int3"), ValueError, f"{op}: dtype='int3'", "int8, uint8, int4, uint4, int2, uint2, int16, uint16")
case("groups of a scalar", lambda: qk.quantize(F32(1), group_size=2), ValueError, "group_axis=-1", "scalar")

case("x: integers", lambda: qk.quantize(CODES), TypeError, "quantize: x has dtype int8", "float32, float16, bfloat16, float64")
case("x: text", lambda: qk.dynamic_quantize(["a"]), TypeError, "dynamic_quantize: x has dtype")
case("x: complex", lambda: qk.fake_quantize(X * 1j, 1.0), TypeError, "fake_quantize: x has dtype complex64")
case("two_level without groups", lambda: qk.quantize(X, two_level=True), ValueError, "two_level", "group_size")
case("two_level in float16", lambda: qk.quantize(X, two_level=True, group_size=2, scale_dtype="float16"), ValueError, "two_level", "float16")
case("two_level with a scale", lambda: qk.quantize(X, np.ones(3), two_level=True, group_size=2), ValueError, "two_level", "none can be given")

case("dynamic: dtype", lambda: qk.dynamic_quantize(X, dtype="int16"), ValueError, "dynamic_quantize: dtype='int16'", "int8, uint8, int4")
case("dynamic: per", lambda: qk.dynamic_quantize(X, per="column"), ValueError, "dynamic_quantize: per='column'", '"tensor" or "row"')
case("dynamic: groups of a tensor", lambda: qk.dynamic_quantize(X, per="tensor", group_size=2), ValueError, "group_size=2", 'per="row"')
case("dynamic: a scalar", lambda: qk.dynamic_quantize(F32(1)), ValueError, "scalar", 'per="tensor" would fit')
for value in (NAN, INF, -INF):
    case(f"dynamic: {value}", lambda v=value: qk.dynamic_quantize(np.array([[1, 2], [3, v]], F32), check_finite=True), ValueError, f"x has {value} at (1, 1)", "finite")

case("dequantize: an array", lambda: qk.dequantize(CODES), TypeError, "dequantize: q is ndarray", "QTensor")
case("dequantize: dtype", lambda: qk.dequantize(Q, "int8"), ValueError, "dequantize: dtype='int8'", "float32, float16, bfloat16, float64")
case("QTensor: floats", lambda: qk.QTensor(X, 1.0, dtype="int8"), TypeError, "QTensor: data has dtype float32", "quantize")
case("QTensor: float, dtype unsaid", lambda: qk.QTensor(X, 1.0), ValueError, "QTensor: dtype='float32'", "int8, uint8")
case("QTensor: codes too large", lambda: qk.QTensor(CODES * 9, 1.0, dtype="int4"), ValueError, "QTensor: data has codes 9…9", "int4 (-8…7)")
case("QTensor: negative codes", lambda: qk.QTensor(-CODES, 1.0, dtype="uint8"), ValueError, "codes -1…-1", "uint8 (0…255)")
case("from_packed: shape", lambda: qk.QTensor.from_packed(np.zeros((4, 4), np.uint8), (4, 6), 1.0, dtype="uint4"), ValueError, "from_packed: data has shape (4, 4)", "(4, 3)")
case("from_packed: dtype", lambda: qk.QTensor.from_packed(CODES[:, :3], (4, 6), 1.0, dtype="int4"), TypeError, "from_packed: data has dtype int8", "uint8 for int4")
case("index: fancy", lambda: Q[[0, 1]], TypeError, "QTensor: an index has list", "integers, slices")
case("index: too many", lambda: Q[0, 0, 0], IndexError, "QTensor: index (0, 0, 0)", "(4, 6)")
case("index: out of bounds", lambda: Q[4], IndexError, "index 4", "axis 0 of length 4")
GROUPS = qk.quantize(X, axis=0, group_size=4)
case("index: cuts a group", lambda: GROUPS[:, 1:5], ValueError, "1:5 along axis 1 cuts a group of 4", "multiples of 4")
case("index: begins in a group", lambda: GROUPS[:, 1:], ValueError, "1:6 along axis 1 cuts a group of 4")
case("index: step through groups", lambda: GROUPS[:, ::2], ValueError, "step 2 along axis 1", "step 1")

case("requantize: rounding", lambda: qk.requantize(ACC, 0.5, rounding="nearest"), ValueError, "rounding='nearest'", ", ".join(ROUNDINGS))
case("requantize: dtype", lambda: qk.requantize(ACC, 0.5, dtype="int32"), ValueError, "requantize: dtype='int32'", "int8, uint8")
case("requantize: acc", lambda: qk.requantize(ACC.astype(np.int64), 0.5), TypeError, "requantize: acc has dtype int64", "int32")
case("requantize: scale along the other axis", lambda: qk.requantize(ACC, np.ones(6), axis=0), ValueError, "scale has shape (6,)", "(4,)", "axis=1 would fit")
case("requantize: scale without an axis", lambda: qk.requantize(ACC, np.ones(4)), ValueError, "scale has shape (4,)", "axis=None", "axis=0 would fit")
case("requantize: zero point, shape", lambda: qk.requantize(ACC, 1.0, [1, 2]), ValueError, "zero_point has shape (2,)")
case("requantize: bias, shape", lambda: qk.requantize(ACC, 1.0, bias=np.ones(6, S32), axis=0), ValueError, "bias has shape (6,)", "axis=1 would fit")
case("requantize: bias, float", lambda: qk.requantize(ACC, 1.0, bias=0.5), TypeError, "requantize: bias has dtype float64", "int32")
case("requantize: bias, too large", lambda: qk.requantize(ACC, 1.0, bias=2**31), ValueError, "bias has", "int32")
case("requantize: axis", lambda: qk.requantize(ACC, 1.0, axis=2), ValueError, "requantize: axis=2", "-2 … 1")
case("requantize: two axes", lambda: qk.requantize(ACC, 1.0, axis=(0, 1)), TypeError, "axis=(0, 1)", "one axis")
case("requantize: clamp turned", lambda: qk.requantize(ACC, 1.0, clamp=(5, 1)), ValueError, "clamp=(5, 1)", "lowest ≤ highest")
case("requantize: clamp, one", lambda: qk.requantize(ACC, 1.0, clamp=5), TypeError, "clamp=5", "two integers")
case("requantize: clamp, float", lambda: qk.requantize(ACC, 1.0, clamp=(0.0, 6.0)), TypeError, "clamp=(0.0, 6.0)", "two integers")
case("requantize: scale, text", lambda: qk.requantize(ACC, "a"), TypeError, "requantize: scale has dtype")
READ_ONLY = np.zeros((4, 6), np.int8)
READ_ONLY.flags.writeable = False
case("requantize: out, dtype", lambda: qk.requantize(ACC, 1.0, out=np.zeros((4, 6), np.uint8)), TypeError, "out has dtype uint8", "int8")
case("requantize: out, shape", lambda: qk.requantize(ACC, 1.0, out=np.zeros((6, 4), np.int8)), ValueError, "out has shape (6, 4)", "(4, 6)")
case("requantize: out, list", lambda: qk.requantize(ACC, 1.0, out=[1]), TypeError, "out is list", "array")
case("requantize: out, read-only", lambda: qk.requantize(ACC, 1.0, out=READ_ONLY), ValueError, "out is read-only")

case("calibrate: method", lambda: qk.calibrate([X], method="max"), ValueError, "method='max'", "minmax, moving_average, percentile, mse, entropy")
case("calibrate: dtype", lambda: qk.calibrate([X], dtype="int5"), ValueError, "calibrate: dtype='int5'", "int8, uint8")
case("calibrate: nothing", lambda: qk.calibrate([]), ValueError, "calibrate: batches is empty")
case("calibrate: an array", lambda: qk.calibrate(X), TypeError, "calibrate: batches is an array", "[x]")
case("calibrate: integers", lambda: qk.calibrate([X, CODES]), TypeError, "calibrate: batch 1 has dtype int8")
case("calibrate: lengths differ", lambda: qk.calibrate([X, X.T], axis=0), ValueError, "batch 1 has lengths (6,)", "the first had (4,)")
case("calibrate: axis", lambda: qk.calibrate([X], axis=7), ValueError, "calibrate: axis=7", "-2 … 1")
for percent in (0, 101, NAN, "a", True):
    case(f"calibrate: percentile {percent}", lambda p=percent: qk.calibrate([X], method="percentile", percentile=p), ValueError, "calibrate: percentile=")
case("error: shapes", lambda: qk.quantization_error(X.T, Q), ValueError, "quantization_error: x has shape (6, 4)", "(4, 6)")
case("error: shapes of arrays", lambda: qk.quantization_error(X.T, X), ValueError, "x has shape (6, 4)")
case("error: integers", lambda: qk.quantization_error(CODES, Q), TypeError, "quantization_error: x has dtype int8")

COLUMNS, ROWS = qk.quantize(X.T, axis=1), qk.quantize(X.T, axis=0)  # (6, 4)
WRONG_GROUPS = qk.quantize(X.T, axis=0, group_size=2, group_axis=1)
CROSSED = qk.quantize(X.T, group_size=2, group_axis=1)
for name, x in (("float", X), ("QTensor", qk.dynamic_quantize(X))):
    for op, call in {"matmul": lambda a, b: a @ b, "einsum": lambda a, b: np.einsum("ij,jk->ik", a, b)}.items():
        case(f"{op}: {name} × a scale of each k", lambda c=call, a=x: c(a, ROWS), ValueError, f"{op}: b (shape (6, 4)) keeps a scale along axis 0", "axis=1 or axis=None would fit", "group_axis=0")
        case(f"{op}: {name} × both", lambda c=call, a=x: c(a, WRONG_GROUPS), ValueError, "along axis 0", "axis=1")
        case(f"{op}: {name} × groups of columns", lambda c=call, a=x: c(a, CROSSED), ValueError, "groups along axis 1", "group_axis=0 would fit", "axis=1")
case("matmul: a with a scale of each k", lambda: qk.quantize(X, axis=1) @ COLUMNS, ValueError, "matmul: a (shape (4, 6)) keeps a scale along axis 1", "axis=0 or axis=None would fit")
case("dot: a with a scale of each k", lambda: np.dot(qk.quantize(np.ones((2, 4, 6), F32), axis=2), COLUMNS), ValueError, "dot: a", "axis 2", "axis=0 or axis=1 or axis=None")
case("matmul: k differs", lambda: Q @ Q, ValueError, "matmul: a has k=6", "b has k=4")
case("matmul: a scalar", lambda: Q @ F32(2), ValueError, "matmul: a scalar")
case("matmul: batches", lambda: qk.quantize(np.ones((2, 4, 6), F32)) @ qk.quantize(np.ones((3, 6, 4), F32)), ValueError, "(2, 4, 6)", "(3, 6, 4)", "do not broadcast")
case("matmul: zero point", lambda: qk.matmul(Q, COLUMNS, a_zero_point=1), TypeError, "matmul: a_zero_point", "QTensor")
case("matmul: integer result", lambda: qk.matmul(Q, COLUMNS, dtype="int32"), ValueError, "matmul: dtype='int32'", "float32")
case("matmul: integer out", lambda: qk.matmul(Q, COLUMNS, np.zeros((4, 4), S32)), TypeError, "matmul: out has dtype int32", "floats")
case("matmul: out, shape", lambda: qk.matmul(Q, COLUMNS, np.zeros((4, 5), F32)), ValueError, "out has shape (4, 5)", "(4, 4)")
case("matmul: text", lambda: Q @ np.array([["a"] * 4] * 6), TypeError, "matmul: b has dtype", "numbers")
case("pack: a QTensor", lambda: qk.pack(Q), TypeError, "pack: b is a QTensor", "codes()")


# fmt: on
@pytest.mark.parametrize("name", CASES)
def test_refused_in_words(name: str) -> None:
    call, error, words = CASES[name]
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    for word in words:
        assert word in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda out: qk.requantize(ACC, bad_scale(0), axis=0, out=out),
        lambda out: qk.requantize(ACC, 0.5, rounding="up", out=out),
        lambda out: qk.requantize(ACC, 0.5, 1000, out=out),
        lambda out: qk.requantize(ACC, 0.5, bias=np.ones(7, S32), axis=0, out=out),
    ],
)
def test_out_is_untouched(call: Any) -> None:
    out = np.full((4, 6), 85, np.int8)
    with pytest.raises(ValueError):
        call(out)
    with qk.use("nothing"), pytest.raises(qk.NoKernelError):
        qk.requantize(ACC, 0.5, out=out)
    assert (out == 85).all()


def test_torch_on_another_device_is_refused() -> None:
    torch = pytest.importorskip("torch", reason="torch is an extra")
    with pytest.raises(TypeError, match="x is on meta; this build has kernels for CPU tensors only"):
        qk.quantize(torch.empty(3, device="meta"))
