"""linear with arrays on a GPU: the same bits as on the CPU, whatever x, the weight and the result are made of."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from cuda_emulator import product
from fake_gpu import Array, values

import qkernels as qk
from qkernels.activations import CURVES, activate
from qkernels.rounding import ROUNDINGS

F32, S32 = np.float32, np.int32
K, N, LEAD = 70, 50, (3, 5)
RNG = np.random.default_rng(7)
X = RNG.normal(size=(*LEAD, K)).astype(F32)
W = RNG.normal(size=(N, K)).astype(F32)
BIAS = RNG.normal(size=N).astype(F32)
SCALES = np.exp2(RNG.uniform(-6, -4, LEAD)).astype(F32)
ZEROS = RNG.integers(100, 156, LEAD)

# name → x on the CPU and on the GPU, from the module that makes its arrays
ACTIVATIONS: dict[str, Any] = {
    "float32": lambda of: of(X),
    "float16": lambda of: of(X.astype(np.float16)),
    "one scale": lambda of: qk.quantize(of(X), 0.03),
    "one uint8": lambda of: qk.quantize(of(X), 0.03, 121, dtype="uint8"),
    "rows": lambda of: qk.quantize(of(X), SCALES, ZEROS, dtype="uint8", axis=(0, 1)),
    "some rows": lambda of: qk.quantize(of(X), SCALES[:, 0], axis=0),
    "found rows": lambda of: qk.dynamic_quantize(of(X)),
    "found uint8": lambda of: qk.dynamic_quantize(of(X), dtype="uint8"),
    "found one": lambda of: qk.quantize(of(X), dtype="uint8", symmetric=False),
    "int4": lambda of: qk.dynamic_quantize(of(X), dtype="int4"),
}
WEIGHTS: dict[str, Any] = {
    "axis 0": lambda of: qk.quantize(W, axis=0),
    "one": lambda of: qk.quantize(W),
    "uint8": lambda of: qk.quantize(W, axis=0, symmetric=False, dtype="uint8"),
    "int4": lambda of: qk.quantize(W, axis=0, dtype="int4"),
    "packed": lambda of: qk.pack_linear(qk.quantize(W, axis=0)),
    "there": lambda of: qk.quantize(of(W), np.full(N, 0.02), axis=0),
    "there, found": lambda of: qk.quantize(of(W), axis=0, symmetric=False),
    "there, found, one": lambda of: qk.quantize(of(W)),
    "there, int4": lambda of: qk.quantize(of(W), axis=0, dtype="int4"),
    "there, uint2": lambda of: qk.quantize(of(W), axis=0, dtype="uint2", symmetric=False),
}


def host(x: np.ndarray) -> np.ndarray:
    return x


def equal(got: Any, wanted: Any, what: Any) -> None:
    if isinstance(wanted, qk.QTensor):
        assert np.array_equal(values(got.codes()), wanted.codes()), what
        assert np.array_equal(values(got.data), wanted.data), what
        assert got.scale == wanted.scale and got.zero_point == wanted.zero_point and got.dtype == wanted.dtype
    else:
        assert values(got).dtype == wanted.dtype and values(got).shape == wanted.shape
        assert np.array_equal(values(got).view(np.uint8), wanted.view(np.uint8)), what


def test_every_x_with_every_weight(gpu: Any) -> None:
    for i, (x, w) in enumerate(itertools.product(ACTIVATIONS, WEIGHTS)):
        gpu.pretend((75, 80, 90)[i % 3])
        wishes: dict[str, Any] = (
            {}, {"bias": BIAS, "activation": "relu"}, {"out_scale": 0.05, "bias": BIAS},
            {"out_scale": 0.05, "activation": "relu6", "out_dtype": "uint8", "out_zero_point": 100},
        )[i % 4]  # fmt: skip
        wanted = qk.linear(ACTIVATIONS[x](host), WEIGHTS[w](host), **wishes)
        equal(qk.linear(ACTIVATIONS[x](gpu.asarray), WEIGHTS[w](gpu.asarray), **wishes), wanted, (x, w, wishes))


@pytest.mark.parametrize("x", ACTIVATIONS)
def test_every_result(gpu: Any, x: str) -> None:
    rng = np.random.default_rng(8)
    there, here = ACTIVATIONS[x](gpu.asarray), ACTIVATIONS[x](host)
    weight = qk.quantize(W, axis=0)
    codes, floats = rng.integers(-128, 128, (*LEAD, N)).astype(np.int8), rng.normal(size=(*LEAD, N)).astype(F32)
    results: list[dict[str, Any]] = [
        {"out_dtype": "float16", "bias": BIAS}, {"activation": (-1.0, 2.0)}, {"out_dtype": "float64"},
        {"residual": floats}, {"residual": floats.astype(np.float16), "out_dtype": "float16", "activation": "relu"},
        {"residual": (codes, 0.02, 3)}, {"out_scale": 0.05, "residual": (codes, 0.02, 3), "bias": BIAS},
        *({"out_scale": 0.04, "rounding": rounding, "bias": BIAS, "out_zero_point": 5} for rounding in ROUNDINGS),
        *({"out_scale": 0.001, "rounding": rounding, "out_dtype": "int16", "bias": BIAS} for rounding in ROUNDINGS),
        {"out_scale": 0.0004, "out_dtype": "uint16", "out_zero_point": 30000, "activation": "relu"},
        *({"out_scale": 0.5, "out_dtype": dtype, "out_zero_point": 1} for dtype in ("int4", "uint4", "int2", "uint2")),
    ]  # fmt: skip
    if isinstance(here, qk.QTensor):
        whole = rng.integers(-9999, 9999, N).astype(S32)
        results += [{"out_dtype": "int32"}, {"out_dtype": "int32", "bias": whole}, {"bias": whole}]
        results += [{"out_dtype": "int32", "bias": BIAS}, {"bias": whole, "out_scale": 0.05}]
    for i, wishes in enumerate(results):
        gpu.pretend((75, 80, 90)[i % 3])
        wanted = qk.linear(here, weight, **_placed(wishes, host, qk))
        got = qk.linear(there, weight, **_placed(wishes, gpu.asarray, qk))
        equal(got, wanted, wishes)


def _placed(wishes: dict[str, Any], of: Any, qk: Any) -> dict[str, Any]:
    """A residual belongs where x is."""
    r = wishes.get("residual")
    if r is None:
        return wishes
    return wishes | {"residual": of(r) if isinstance(r, np.ndarray) else _codes_of(*r, of)}


def _codes_of(codes: np.ndarray, scale: float, zero: int, of: Any) -> Any:
    """A QTensor of these codes: quantizing the numbers that they stand for gives them back."""
    numbers = ((codes.astype(np.int32) - zero) * F32(scale)).astype(F32)
    q = qk.quantize(of(numbers), scale, zero)
    found = values(q.codes()) if isinstance(q.codes(), Array) else q.codes()
    assert np.array_equal(found, codes)
    return q


# name → a residual on the CPU and on the GPU
RESIDUALS: dict[str, Any] = {
    "given": lambda of, r: qk.quantize(of(r), 0.01, 3),
    "found": lambda of, r: qk.quantize(of(r)),
    "found, uint8": lambda of, r: qk.dynamic_quantize(of(r), dtype="uint8", per="tensor"),
    "found, int4": lambda of, r: qk.quantize(of(r), dtype="int4"),
    "found, int16": lambda of, r: qk.quantize(of(r), dtype="int16"),
    "given, uint16": lambda of, r: qk.quantize(of(r), 0.001, 30000, dtype="uint16"),
}


@pytest.mark.parametrize("columns", [48, 50])
@pytest.mark.parametrize("name", RESIDUALS)
def test_residuals_of_codes(gpu: Any, name: str, columns: int) -> None:
    """Whose scale is known here or there; in vectors and one at a time; joining codes before their only rounding."""
    rng = np.random.default_rng(12)
    residual, weight = rng.normal(size=(*LEAD, columns)).astype(F32), qk.quantize(W[:columns], axis=0)
    wishes: tuple[dict[str, Any], ...] = (
        {}, {"out_dtype": "float16", "activation": "relu"}, {"out_scale": 0.05},
        {"out_scale": 0.05, "activation": "relu"},
        {"out_scale": 0.001, "out_dtype": "int16", "bias": BIAS[:columns]}, {"out_scale": 0.4, "out_dtype": "uint4"},
    )  # fmt: skip
    for i, wish in enumerate(wishes):
        gpu.pretend((75, 80, 90)[i % 3])
        wanted = qk.linear(X, weight, residual=RESIDUALS[name](host, residual), **wish)
        there = RESIDUALS[name](gpu.asarray, residual)
        equal(qk.linear(gpu.asarray(X), weight, residual=there, **wish), wanted, (name, wish))


def test_a_bias_of_int32_there(gpu: Any) -> None:
    """It is not read, and its sums wrap."""
    rng, weight = np.random.default_rng(13), qk.quantize(W, axis=0)
    bias = rng.integers(-(2**20), 2**20, N).astype(S32)
    for name in ("one scale", "rows", "found uint8", "int4"):
        here, there = ACTIVATIONS[name](host), ACTIVATIONS[name](gpu.asarray)
        for wish in ({"out_dtype": "int32"}, {}, {"out_scale": 1.5}):
            equal(
                qk.linear(there, weight, gpu.asarray(bias), **wish), qk.linear(here, weight, bias, **wish), (name, wish)
            )
    x = qk.quantize(gpu.asarray(np.ones((1, K), F32)), 1.0)
    most = np.full(N, 2**31 - 1, S32)
    bare = values(qk.linear(x, weight, out_dtype="int32")).astype(np.int64)
    got = values(qk.linear(x, weight, gpu.asarray(most), out_dtype="int32"))
    assert np.array_equal(got, (bare + 2**31 - 1).astype(np.uint32).view(S32)[:, :]) and (bare > 0).any()


def test_nothing_to_sum(gpu: Any) -> None:
    """k = 0: the bias through the epilogue (A13)."""
    rng = np.random.default_rng(14)
    nothing, residual = np.zeros((*LEAD, 0), F32), rng.normal(size=(*LEAD, N)).astype(F32)
    weights = (
        lambda of: qk.quantize(np.zeros((N, 0), F32), np.full(N, 0.5), axis=0),
        lambda of: qk.quantize(of(np.zeros((N, 0), F32)), np.full(N, 0.5), 3, axis=0),
    )
    for made, weight in itertools.product(
        (lambda of: of(nothing), lambda of: qk.quantize(of(nothing), 0.5, 3)), weights
    ):
        for wish in (
            {},
            {"bias": BIAS, "activation": "relu"},
            {"out_scale": 0.1, "bias": BIAS},
            {"residual": residual},
        ):
            wanted = qk.linear(made(host), weight(host), **wish)
            placed = wish | ({"residual": gpu.asarray(residual)} if "residual" in wish else {})
            equal(qk.linear(made(gpu.asarray), weight(gpu.asarray), **placed), wanted, wish)
    x = gpu.asarray(nothing)
    assert "nothing to compute" in str(qk.explain(qk.linear, x, weights[0](host)))


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_one_weight_scale_and_ties(gpu: Any, rounding: str) -> None:
    """A4 has a rule for one weight scale; powers of two make ties."""
    rng = np.random.default_rng(9)
    x, w = rng.integers(-8, 8, (9, 33)).astype(F32), rng.integers(-8, 8, (21, 33)).astype(F32)
    near = 0.5 - 2.0**-25, 0.5 + 2.0**-24, 0.5  # their product is ¼ in f32, and more than that in f64
    for sx, sw, sy in ((0.5, 0.25, 1.0), (0.3, 0.7, 1.9), near):
        weight = qk.quantize(w * F32(sw), sw)
        wishes = {"out_scale": sy, "rounding": rounding, "bias": x[0, :21] * F32(0.5) * F32(sx * sw)}
        wanted = qk.linear(qk.quantize(x * F32(sx), sx), weight, **wishes)
        equal(qk.linear(qk.quantize(gpu.asarray(x * F32(sx)), sx), weight, **wishes), wanted, (sx, sw, sy))


def test_out_strides_and_explain(gpu: Any) -> None:
    weight, x = qk.quantize(W, axis=0), gpu.asarray(X)
    wanted = qk.linear(X, weight)
    out = gpu.full((*LEAD, N), 0, F32)
    assert qk.linear(x, weight, out=out) is out and np.array_equal(values(out), wanted)
    wide = gpu.full((*LEAD, 2 * N), 7, F32)
    qk.linear(x, weight, out=wide[..., ::2])
    assert np.array_equal(values(wide)[..., ::2], wanted) and (values(wide)[..., 1::2] == 7).all()
    square = qk.quantize(RNG.normal(size=(K, K)).astype(F32), axis=0)
    same = gpu.asarray(X)
    assert np.array_equal(values(qk.linear(same, square, out=same)), qk.linear(X, square))
    codes = gpu.full((*LEAD, N), 0, np.int8)
    assert qk.linear(x, weight, out_scale=0.05, out=codes) is codes
    assert np.array_equal(values(codes), qk.linear(X, weight, out_scale=0.05).codes())
    four = gpu.full((*LEAD, N), 0, np.int8)
    assert qk.linear(x, weight, out_scale=0.5, out_dtype="int4", out=four) is four
    assert np.array_equal(values(four), qk.linear(X, weight, out_scale=0.5, out_dtype="int4").codes())
    part = gpu.asarray(X)[:, ::2]
    assert np.array_equal(values(qk.linear(part, weight)), qk.linear(X[:, ::2], weight))
    assert qk.explain(qk.linear, x, weight).kernel.device == "cuda"
    there = qk.quantize(gpu.asarray(W), axis=0)
    assert "weight is copied on its way" in str(qk.explain(qk.linear, x, there))
    assert "copied" not in str(qk.explain(qk.linear, x, weight))
    empty = qk.linear(gpu.asarray(np.zeros((0, K), F32)), weight)
    assert values(empty).shape == (0, N)


def test_curves(gpu: Any) -> None:
    """Within A6's tolerance of the function, for numbers of every magnitude: acc = 0 leaves the bias."""
    rng = np.random.default_rng(10)
    zero = np.zeros((1, 2, 16), np.int8)
    sizes = np.exp2(rng.uniform(-149, 127.9, 1000))
    special = [0.0, -0.0, 3.0, -3.0, 88.8, -88.8, 3.4e38, -3.4e38]
    y = np.concatenate([np.linspace(-12, 12, 3001), rng.normal(size=1000), sizes, -sizes, special]).astype(F32)
    w, one = np.zeros((1, len(y), 16), np.int8), np.ones(1, F32)
    for row, (i, curve) in zip((7, 5, 7, 4, 7, 5), enumerate(CURVES), strict=True):
        gpu.pretend(90)
        got = product(row, zero, w, "float32", a_scale=one, w_scale=one, float_bias=y, curve=i + 1)[0]
        wanted = activate(y.copy(), curve)
        ulp = np.spacing(np.abs(wanted).astype(F32)).astype(np.float64)
        allowed = np.maximum(2 * ulp, np.ldexp(np.abs(y.astype(np.float64)), -22))
        error = np.abs(got.astype(np.float64) - wanted) / allowed
        assert (got[0] == got[1]).all() and error.max() <= 1, (curve, y[error.max(axis=0).argmax()])
    for curve in CURVES:
        wanted = qk.linear(X, qk.quantize(W, axis=0), BIAS, activation=curve, out_dtype="float16")
        got = qk.linear(gpu.asarray(X), qk.quantize(W, axis=0), BIAS, activation=curve, out_dtype="float16")
        assert np.abs(values(got).astype(F32) - wanted.astype(F32)).max() <= 2**-9, curve


def test_bad_input(gpu: Any) -> None:
    x, weight = gpu.asarray(X), qk.quantize(W, axis=0)
    q = qk.quantize(x, 0.03)
    wishes: list[tuple[Any, dict[str, Any], Any, str]] = [
        (x, {"compute": "float16"}, ValueError, "compute='float16'"),
        (x, {"residual": X[..., :N]}, TypeError, "x is on cuda:0, residual is in host memory"),
        (x, {"residual": gpu.asarray(X)}, ValueError, "residual has shape"),
        (x, {"out_dtype": "int12", "out_scale": 1.0}, ValueError, "out_dtype='int12', wanted one of int8"),
        (x, {"out_scale": 1.0, "activation": "gelu"}, ValueError, "activation='gelu' of codes"),
        (x, {"out_scale": 1.0, "residual": gpu.asarray(X[..., :N])}, ValueError, "residual is Array, wanted a QTensor"),
        (x, {"bias": gpu.asarray(BIAS.astype(S32))}, TypeError, "bias has dtype int32, wanted floats on a GPU"),
        (q, {"bias": gpu.asarray(BIAS.astype(np.int64))}, TypeError, "bias has dtype int64, wanted floats or int32"),
        (x, {"bias": gpu.asarray(BIAS[:9])}, ValueError, r"bias has shape \(9,\)"),
        (x, {"out": np.zeros((*LEAD, N), F32)}, TypeError, "out is in host memory"),
        (x, {"out": gpu.empty((*LEAD, N), np.int16)}, ValueError, "out_dtype='int16' needs an out_scale"),
        (x, {"out": gpu.empty((*LEAD, N), np.int16), "out_scale": 1.0, "out_dtype": "int4"}, TypeError, "wanted int8"),
        (x, {"out": gpu.empty((2, N), F32)}, ValueError, "out has shape"),
        (x, {"out_dtype": "int32"}, ValueError, "wants a QTensor x"),
        (q, {"out_dtype": "int32", "residual": gpu.asarray(X[..., :N])}, ValueError, "bare accumulators"),
        (q, {"out_scale": 1e-44}, ValueError, "not finite in float32"),
        (q, {"bias": BIAS * F32(1e12), "out_scale": 1.0}, ValueError, "bias has .* which is no int32"),
        (gpu.asarray(X[..., :9]), {}, ValueError, r"x has shape \(3, 5, 9\), weight \(50, 70\)"),
        (gpu.asarray(X.astype(S32)), {}, TypeError, "x has dtype int32, wanted floats"),
        (Array(X, device=1), {"bias": gpu.asarray(BIAS)}, TypeError, "x is on cuda:1, bias is on cuda:0"),
    ]
    for given, keywords, error, said in wishes:
        with pytest.raises(error, match=said):
            qk.linear(given, weight, **keywords)
    with pytest.raises(TypeError, match="x is in host memory, weight is on cuda:0"):
        qk.linear(X, qk.quantize(gpu.asarray(W), axis=0))
    with pytest.raises(ValueError, match="could overflow int32"):
        wide = gpu.asarray(np.ones((1, 140000), F32))
        qk.linear(qk.quantize(wide, 1.0), qk.quantize(gpu.asarray(np.ones((1, 140000), F32)), 1.0))
