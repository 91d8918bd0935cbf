"""conv1d, conv2d, conv3d, conv_transpose2d, pack_conv: layouts, paddings, what follows, bad input."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

import qkernels as qk
from qkernels.backends import reference

RNG = np.random.default_rng(61)
X = RNG.integers(0, 256, (2, 7, 9, 8)).astype(np.uint8)
W = RNG.integers(-128, 128, (12, 3, 2, 8)).astype(np.int8)
QX, QW = qk.QTensor(X, 0.02, 131), qk.QTensor(W, RNG.uniform(0.01, 0.03, 12).astype(np.float32), axis=0)
BIAS = RNG.integers(-9000, 9000, 12).astype(np.int32)


def first(x: Any) -> Any:
    """Channels last → channels first."""
    return np.moveaxis(x, -1, 1)


PADDINGS = [0, 2, (1, 2), ((1, 0), (2, 3)), "valid", "same_upper", "same_lower"]


@pytest.mark.parametrize("padding", PADDINGS, ids=str)
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), ((1, 3), (2, 1))])
def test_layouts_and_paddings(padding: Any, stride: Any, dilation: Any) -> None:
    pairs = [v if isinstance(v, tuple) else (v, v) for v in (stride, dilation)]
    zeros = RNG.integers(-128, 128, 12)
    wanted = reference.conv2d(
        X, W, stride=pairs[0], padding=padding, dilation=pairs[1], x_zero=131, w_zero=zeros, bias=BIAS
    )
    geometry: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
    plain = {"x_zero_point": 131, "w_zero_point": zeros}
    assert np.array_equal(qk.conv2d(X, W, BIAS, layout="NHWC", **geometry, **plain), wanted)
    got = qk.conv2d(first(X), first(W), BIAS, layout="NCHW", **geometry, **plain)
    assert np.array_equal(got, first(wanted)) and got.flags.c_contiguous and got.dtype == np.int32
    q = qk.QTensor(W, QW.scale, zeros, axis=0)
    assert np.array_equal(qk.conv2d(QX, q, BIAS, layout="NHWC", out_dtype="int32", **geometry), wanted)
    packed = qk.pack_conv(first(W), layout="NCHW")
    assert np.array_equal(qk.conv2d(first(X), packed, BIAS, layout="NCHW", **geometry, **plain), first(wanted))


def test_one_and_three_axes() -> None:
    flat = reference.conv2d(X[:, :1], W[:, :1], stride=(1, 2), padding=((0, 0), (1, 1)), x_zero=3)
    got = qk.conv1d(X[:, 0], W[:, 0], layout="NWC", stride=2, padding=1, x_zero_point=3)
    assert np.array_equal(got, flat[:, 0])
    got = qk.conv1d(first(X[:, 0]), first(W[:, 0]), layout="NCW", stride=2, padding=1, x_zero_point=3)
    assert np.array_equal(got, first(flat[:, 0]))
    deep, taps = np.stack([X, X[::-1]], 1), np.stack([W, W[::-1]], 1)
    wide = sum(reference.conv2d(deep[:, i], taps[:, i], x_zero=9).astype(np.int64) for i in range(2))
    assert np.array_equal(qk.conv3d(deep, taps, layout="NDHWC", x_zero_point=9)[:, 0], wide)
    got = qk.conv3d(first(deep), first(taps), layout="NCDHW", x_zero_point=9)
    assert np.array_equal(got[:, :, 0], first(wide))


FINISHES: list[dict[str, Any]] = [
    {},
    {"activation": "relu6", "out_dtype": "float16"},
    {"activation": "gelu"},
    {"out_scale": 0.5, "out_zero_point": 100},
    {"out_scale": 0.5, "out_dtype": "int8", "activation": "relu"},
    *({"out_scale": 0.3, "out_dtype": "int8", "rounding": r} for r in ("gemmlowp", "ruy", "half_up", "half_away")),
]


@pytest.mark.parametrize("finish", FINISHES, ids=str)
@pytest.mark.parametrize("bias", [None, BIAS, RNG.normal(size=12).astype(np.float32)], ids=["", "int32", "float32"])
def test_what_follows(finish: dict[str, Any], bias: Any) -> None:
    acc = reference.conv2d(X, W, padding=1, x_zero=131)
    scales = np.float32(0.02), QW.scale
    if "out_scale" in finish:
        rules = {"zero_point": finish.get("out_zero_point", 0), "dtype": finish.get("out_dtype", "uint8")}
        rules |= {"rounding": finish.get("rounding", "half_even"), "activation": finish.get("activation")}
        wanted = reference.linear_integer(
            acc, *scales, np.float32(finish["out_scale"]), bias=bias, linear=False, **rules
        )
    else:
        wanted = reference.linear_float(
            acc, *scales, bias, None, finish.get("activation"), finish.get("out_dtype", "float32")
        )
    for x, w, layout, back in (
        (QX, QW, "NHWC", lambda y: y),
        (_first(QX), _first(QW), "NCHW", lambda y: np.moveaxis(y, 1, -1)),
    ):
        got = qk.conv2d(x, w, bias, layout=layout, padding=1, **finish)
        values = back(got.codes() if isinstance(got, qk.QTensor) else got)
        assert values.dtype == wanted.dtype
        if finish.get("activation") == "gelu":
            assert np.allclose(values, wanted, rtol=1e-6, atol=1e-6)
        else:
            assert np.array_equal(values, wanted)


def _first(q: qk.QTensor) -> qk.QTensor:
    return qk.QTensor(np.ascontiguousarray(first(q.codes())), q.scale, q.zero_point, axis=q.axis)


def test_residuals() -> None:
    acc = reference.conv2d(X, W, padding=(1, 0), x_zero=131)
    codes = RNG.integers(-128, 128, acc.shape).astype(np.int8)
    r = qk.QTensor(codes, 0.4, -5)
    wanted = reference.linear_integer(
        acc, 0.02, QW.scale, 0.5, 9, "uint8", residual=(codes, 0.4, -5), activation="relu"
    )
    rest: dict[str, Any] = {"padding": (1, 0), "out_scale": 0.5, "out_zero_point": 9, "activation": "relu"}
    assert np.array_equal(qk.conv2d(QX, QW, layout="NHWC", residual=r, **rest).codes(), wanted)
    got = qk.conv2d(_first(QX), _first(QW), layout="NCHW", residual=_first(r), **rest)
    assert np.array_equal(got.codes(), first(wanted))
    real = RNG.normal(size=acc.shape).astype(np.float32)
    got = qk.conv2d(QX, QW, layout="NHWC", padding=(1, 0), residual=real)
    assert np.array_equal(got, reference.linear_float(acc, 0.02, QW.scale, None, real))


def test_out() -> None:
    shape = qk.conv2d(X, W, layout="NHWC").shape
    out = np.empty(shape, np.int32)
    assert qk.conv2d(X, W, layout="NHWC", out=out) is out
    wide = np.zeros((*shape[:-1], 20), np.int32)
    assert qk.conv2d(X, W, layout="NHWC", out=wide[..., 3:15]) is not None
    assert np.array_equal(wide[..., 3:15], out) and not wide[..., :3].any() and not wide[..., 15:].any()
    turned = np.empty((shape[0], shape[3], *shape[1:3]), np.int32)
    assert qk.conv2d(first(X), first(W), layout="NCHW", out=turned) is turned
    assert np.array_equal(first(out), turned)
    codes = np.empty(shape, np.uint8)
    assert qk.conv2d(QX, QW, layout="NHWC", out_scale=1.0, out=codes) is codes
    assert np.array_equal(codes, qk.conv2d(QX, QW, layout="NHWC", out_scale=1.0).codes())
    same = np.ascontiguousarray(X)  # over x itself
    square = RNG.integers(-128, 128, (8, 1, 1, 8)).astype(np.int8)
    q, scale = qk.QTensor(same, 0.02, 131), qk.QTensor(square, 0.01)
    wanted = qk.conv2d(q, scale, layout="NHWC", out_scale=0.7).codes()
    qk.conv2d(q, scale, layout="NHWC", out_scale=0.7, out=same)
    assert np.array_equal(same, wanted)


@pytest.mark.parametrize("groups", [2, 8])
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_packed_weights(groups: int, dtype: str) -> None:
    high = {"int8": 127, "int4": 7}[dtype]
    codes = RNG.integers(-high - 1, high + 1, (8, 3, 3, 8 // groups)).astype(np.int8)
    q = qk.QTensor(codes, RNG.uniform(0.1, 1, 8).astype(np.float32), RNG.integers(-3, 4, 8), dtype=dtype, axis=0)
    packed = qk.pack_conv(q, layout="NHWC", groups=groups)
    assert (
        packed.shape == codes.shape and packed.groups == groups and packed.ndim == 4 and packed.nbytes > codes.size / 2
    )
    wanted = qk.conv2d(QX, q, layout="NHWC", groups=groups)
    for again in (packed, pickle.loads(pickle.dumps(packed))):
        back = again.unpack()
        assert np.array_equal(back.codes(), codes) and np.array_equal(back.scale, q.scale) and back.dtype == dtype
        assert np.array_equal(qk.conv2d(QX, again, layout="NHWC", groups=groups), wanted)
    assert q._packed is not None and "groups=" in repr(packed)
    plain = qk.pack_conv(codes, layout="NHWC", groups=groups)
    assert np.array_equal(plain.unpack(), codes)
    acc = reference.conv2d(X, codes, groups=groups, x_zero=3, w_zero=7)
    got = qk.conv2d(X, plain, layout="NHWC", groups=groups, x_zero_point=3, w_zero_point=7)
    assert np.array_equal(got, acc)


def test_empty() -> None:
    assert qk.conv2d(X, W, layout="NHWC", dilation=9).shape == (2, 0, 0, 12)
    assert qk.conv2d(X[:0], W, layout="NHWC").shape == (0, 5, 8, 12)
    assert qk.conv2d(X, W[:0], layout="NHWC").shape == (2, 5, 8, 0)
    y = qk.conv2d(X[:, :0], W, BIAS, layout="NHWC", padding=2, x_zero_point=7)
    assert y.shape == (2, 2, 12, 12) and (y == BIAS).all()
    y = qk.conv2d(X[..., :0], W[..., :0], BIAS, layout="NHWC", w_zero_point=3)
    assert y.shape == (2, 5, 8, 12) and (y == BIAS).all()
    assert isinstance(qk.explain(qk.conv2d, X[:0], W, layout="NHWC").note, str)


def test_explain() -> None:
    told = qk.explain(qk.conv2d, X, W, layout="NHWC")
    assert told.kernel is not None and told.kernel.op == "conv" and "kernel 1×3×2" in str(told)
    depthwise = np.ones((8, 3, 3, 1), np.int8)
    told = qk.explain(qk.conv2d, X, depthwise, layout="NHWC", groups=8)
    assert told.problem is not None and told.problem.conv is not None and told.problem.conv.depthwise
    told = qk.explain(qk.conv2d, first(X), first(W), layout="NCHW")
    assert "NCHW" in told.note and "copied" in told.note


# ---------------------------------------------------------------- transposed


def spread(x: Any, w: Any, stride: Any, pads: Any, more: Any, dilation: Any, groups: int, zeros: Any) -> np.ndarray:
    """By its definition: every pixel of x, times the kernel, added where it belongs."""
    (batch, height, width, _), (filters, kh, kw, depth) = x.shape, w.shape
    per = filters // groups
    rows = (height - 1) * stride[0] + dilation[0] * (kh - 1) + 1 + more[0]
    columns = (width - 1) * stride[1] + dilation[1] * (kw - 1) + 1 + more[1]
    y = np.zeros((batch, rows, columns, filters), np.int64)
    a, b = x.astype(np.int64) - zeros[0], w.astype(np.int64) - zeros[1]
    for i, j, t, u, g in np.ndindex(height, width, kh, kw, groups):
        outputs, inputs = slice(g * per, (g + 1) * per), slice(g * depth, (g + 1) * depth)
        y[:, i * stride[0] + t * dilation[0], j * stride[1] + u * dilation[1], outputs] += (
            a[:, i, j, inputs] @ b[outputs, t, u].T
        )
    return y[:, pads[0][0] : rows - pads[0][1], pads[1][0] : columns - pads[1][1]]


def test_transposed() -> None:
    for case in range(60):
        rng = np.random.default_rng(case)
        groups, depth, per = int(rng.choice([1, 1, 2])), *(int(n) for n in rng.integers(1, 4, 2))
        (kh, kw), (height, width) = rng.integers(1, 5, 2), rng.integers(1, 6, 2)
        stride, dilation = (tuple(int(n) for n in rng.integers(1, 4, 2)) for _ in range(2))
        more = tuple(int(rng.integers(max(s, d))) for s, d in zip(stride, dilation, strict=True))
        pads = tuple((int(rng.integers(3)), int(rng.integers(2))) for _ in range(2))
        x = rng.integers(-128, 128, (2, height, width, groups * depth)).astype(np.int8)
        w = rng.integers(-128, 128, (groups * per, kh, kw, depth)).astype(np.int8)
        wanted = spread(x, w, stride, pads, more, dilation, groups, (5, -3))
        rest: dict[str, Any] = {
            "stride": stride,
            "padding": pads,
            "dilation": dilation,
            "output_padding": more,
            "groups": groups,
        }
        got = qk.conv_transpose2d(x, w, layout="NHWC", x_zero_point=5, w_zero_point=-3, **rest)
        assert np.array_equal(got, wanted), case
        onnx = w.reshape(groups, per, kh, kw, depth).transpose(0, 4, 1, 2, 3).reshape(groups * depth, per, kh, kw)
        got = qk.conv_transpose2d(first(x), onnx, layout="NCHW", x_zero_point=5, w_zero_point=-3, **rest)
        assert np.array_equal(got, first(wanted)), case
        if wanted.size and case % 3 == 0:
            q = (
                qk.QTensor(w, rng.uniform(0.01, 0.02, groups * per).astype(np.float32), -3, axis=0)
                if case % 2
                else qk.QTensor(w, 0.01, -3)
            )
            scales = np.broadcast_to(q.scale, groups * per)
            codes = rng.integers(-128, 128, wanted.shape).astype(np.int8)
            got = qk.conv_transpose2d(
                qk.QTensor(x, 0.5, 5), q, layout="NHWC", out_scale=0.9, residual=qk.QTensor(codes, 0.2), **rest
            )
            acc = reference.wrap32(wanted)
            assert np.array_equal(
                got.codes(), reference.linear_integer(acc, 0.5, scales, 0.9, residual=(codes, 0.2, 0), linear=False)
            )


# ---------------------------------------------------------------- bad input

OUT = np.zeros((2, 5, 8, 12), np.int32)
LONG = np.full((1, 1, 1, 140_000), 127, np.int8)
PACKED = qk.pack_conv(W, layout="NHWC")
READ_ONLY = np.zeros(OUT.shape, np.int32)
READ_ONLY.flags.writeable = False
CASES: dict[str, tuple[tuple, dict[str, Any], type, list[str]]] = {
    "layout": ((X, W), {"layout": "HWCN"}, ValueError, ["layout='HWCN'", "NHWC", "NCHW"]),
    "layouts confused": ((X, first(W)), {}, ValueError, ["x has 8 channels", "(2, 7, 9, 8)", "(12, 8, 3, 2)", "NHWC"]),
    "the other way": ((X, W), {"layout": "NCHW"}, ValueError, ["x has 7 channels", "(2, 7, 9, 8)", "(12, 3, 2, 8)"]),
    "axes of x": ((X[0], W), {}, ValueError, ["x has shape (7, 9, 8)", "4 axes"]),
    "axes of weight": ((X, W[0]), {}, ValueError, ["weight has shape (3, 2, 8)", "4 axes"]),
    "float x": ((X.astype(np.float32), W), {}, TypeError, ["x is float32", "int8 or uint8", "quantize"]),
    "int16 weight": ((X, W.astype(np.int16)), {}, TypeError, ["weight is int16"]),
    "int16 codes": ((qk.QTensor(X.astype(np.int16), 1.0), QW), {}, TypeError, ["int16", "8 bits"]),
    "groups of x": ((X, W), {"groups": 3}, ValueError, ["8 channels do not divide by groups=3"]),
    "groups of weight": ((X, W[:9, ..., :2]), {"groups": 4}, ValueError, ["9 filters do not divide by groups=4"]),
    "groups 0": ((X, W), {"groups": 0}, ValueError, ["groups=0", "at least 1"]),
    "in/groups": ((X, W), {"groups": 2}, ValueError, ["x has 8 channels", "in/groups = 8", "groups=2"]),
    "an empty kernel": ((X, W[:, :0]), {}, ValueError, ["the kernel is empty"]),
    "stride 0": ((X, W), {"stride": 0}, ValueError, ["stride=0", "at least 1"]),
    "negative stride": ((X, W), {"stride": (1, -2)}, ValueError, ["stride=(1, -2)", "at least 1"]),
    "fractional stride": ((X, W), {"stride": 1.5}, TypeError, ["stride=1.5", "integers"]),
    "three strides": ((X, W), {"stride": (1, 2, 3)}, ValueError, ["stride=(1, 2, 3) has 3 values", "2"]),
    "dilation": ((X, W), {"dilation": 0}, ValueError, ["dilation=0"]),
    "padding: name": ((X, W), {"padding": "same"}, ValueError, ["padding='same'", "same_upper"]),
    "padding: negative": ((X, W), {"padding": (0, -1)}, ValueError, ["padding=(0, -1)", "at least 0"]),
    "padding: pairs": ((X, W), {"padding": ((1, 2),)}, ValueError, ["padding=((1, 2),)", "2 axes"]),
    "output too large": ((X, W), {"padding": 100_000}, ValueError, ["result has shape", "padding=100000"]),
    "x zero": ((X, W), {"x_zero_point": 256}, ValueError, ["x_zero_point=256", "uint8", "0…255"]),
    "x zeros": ((X, W), {"x_zero_point": [1, 2]}, ValueError, ["x_zero_point has shape (2,)", "scalar"]),
    "w zero": ((X, W), {"w_zero_point": np.full(12, -129)}, ValueError, ["w_zero_point=-129", "int8"]),
    "w zeros": ((X, W), {"w_zero_point": [1, 2]}, ValueError, ["w_zero_point has shape (2,)", "(12,)"]),
    "a float zero": ((X, W), {"x_zero_point": 0.5}, TypeError, ["x_zero_point has dtype float64"]),
    "zero of a QTensor": ((QX, QW), {"x_zero_point": 3}, TypeError, ["x_zero_point goes with plain integers"]),
    "one scale missing": ((QX, W), {}, TypeError, ["weight is plain integers and the other a QTensor"]),
    "x by channel": ((qk.QTensor(X, np.ones(8), axis=3), QW), {}, ValueError, ["x has scales by axis=3", "axis=None"]),
    "weight by row": ((QX, qk.QTensor(W, np.ones(8), axis=3)), {}, ValueError, ["has scales by axis=3", "axis=0"]),
    "activation of integers": ((X, W), {"activation": "relu"}, ValueError, ["activation goes with QTensors"]),
    "out_dtype of integers": ((X, W), {"out_dtype": "float32"}, ValueError, ["out_dtype='float32'", "int32"]),
    "float bias of integers": ((X, W, np.ones(12)), {}, ValueError, ["bias of plain integers must be int32"]),
    "bias": ((X, W, BIAS[:5]), {}, ValueError, ["bias has shape (5,)", "(12,)"]),
    "rounding": ((QX, QW), {"out_scale": 1.0, "rounding": "up"}, ValueError, ["rounding='up'", "half_even"]),
    "out_scale": ((QX, QW), {"out_scale": -1.0}, ValueError, ["out_scale", "-1.0"]),
    "residual": ((QX, QW), {"out_scale": 1.0, "residual": qk.QTensor(X, 1.0)}, ValueError, ["residual has shape"]),
    "overflow": ((LONG, LONG), {"out": OUT[:1, :1, :1, :1].copy()}, ValueError, ["k=140000", "overflow int32", "2³¹"]),
    "out: shape": ((X, W), {"out": OUT[:1]}, ValueError, ["out has shape (1, 5, 8, 12)", "(2, 5, 8, 12)"]),
    "out: dtype": ((X, W), {"out": OUT.astype(np.int64)}, TypeError, ["out has dtype int64", "int32"]),
    "out: read-only": ((X, W), {"out": READ_ONLY}, ValueError, ["read-only"]),
    "packed for another layout": ((X, PACKED), {"layout": "NCHW"}, ValueError, ["channels last"]),
    "packed for other groups": ((X, PACKED), {"groups": 2}, ValueError, ["groups=1", "groups=2"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str) -> None:
    arguments, keywords, kind, said = CASES[name]
    watched = np.full(OUT.shape, 77, np.int32)
    keywords = {"layout": "NHWC", **({} if "out_scale" in keywords else {"out": watched}), **keywords}
    with pytest.raises(kind) as raised:
        qk.conv2d(*arguments, **keywords)
    text = str(raised.value)
    assert text.startswith("conv2d: ") and all(part in text for part in said), text
    assert (watched == 77).all(), "out was touched"


def test_bad_transposed_and_packed() -> None:
    with pytest.raises(ValueError, match="conv_transpose2d: output_padding=2, wanted less than stride"):
        qk.conv_transpose2d(X, W, layout="NHWC", output_padding=2, stride=2)
    with pytest.raises(ValueError, match="conv_transpose2d: padding='same_upper'"):
        qk.conv_transpose2d(X, W, layout="NHWC", padding="same_upper")
    with pytest.raises(ValueError, match=r"conv_transpose2d: x has 8 channels"):
        qk.conv_transpose2d(X, W[..., :3], layout="NHWC")
    with pytest.raises(TypeError, match="conv_transpose2d: weight is a PackedConv"):
        qk.conv_transpose2d(X, qk.pack_conv(W, layout="NHWC"), layout="NHWC")
    with pytest.raises(ValueError, match="pack_conv: layout='HWIO', wanted one of"):
        qk.pack_conv(W, layout="HWIO")
    with pytest.raises(ValueError, match="pack_conv: 12 filters do not divide by groups=5"):
        qk.pack_conv(W, layout="NHWC", groups=5)
