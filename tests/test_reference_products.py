"""The reference of products and what follows them against exact numbers (exact.py): A6, A10 … A12."""

from __future__ import annotations

import itertools
import math
import random
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from exact import (
    INF,
    ROUNDINGS,
    TWO,
    bits32,
    clamp,
    f32,
    frac,
    half_away,
    near,
    nearest,
    nearest64,
    randints,
    rounded,
    wrap,
)

from qkernels.backends import reference as ref

# ------------------------------------------------------------------------------------------------ A6


def small_case(seed: int):
    rng = random.Random(seed)
    acc = randints(rng, (5, 6), -(2**31), 2**31 - 1, np.int32)
    acc[1:] = randints(rng, (4, 6), -60_000, 60_000, np.int32)
    sa = [near(rng.uniform(0.001, 0.1)) for _ in range(5)]
    sw = [near(rng.uniform(0.001, 0.1)) for _ in range(6)]
    return rng, acc, sa, sw


def as_f32(values) -> np.ndarray:
    return np.array([f32(v) for v in values])


def test_linear_float():
    rng, acc, sa, sw = small_case(17)
    bias = [near(rng.uniform(-3, 3)) for _ in range(6)]
    residual = [[near(rng.uniform(-3, 3)) for _ in range(6)] for _ in range(5)]
    contracted = 0
    for with_bias, with_residual, bounds in itertools.product((0, 1), (0, 1), (None, "relu", "relu6", (-1.5, 0.75))):
        got = ref.linear_float(
            acc, as_f32(sa), as_f32(sw), as_f32(bias) if with_bias else None,
            np.array([as_f32(r) for r in residual]) if with_residual else None, bounds,
        )  # fmt: skip
        assert got.dtype == np.float32
        for i, j in np.ndindex(5, 6):
            c = nearest(sa[i] * sw[j])
            y = nearest(nearest(int(acc[i, j])) * c)
            if with_bias:
                contracted += nearest(nearest(int(acc[i, j])) * c + bias[j]) != nearest(y + bias[j])
                y = nearest(y + bias[j])
            if with_residual:
                y = nearest(y + residual[i][j])
            y = clamp(y, *{None: (-INF, INF), "relu": (0, INF), "relu6": (0, 6)}.get(bounds, bounds))
            assert frac(got[i, j]) == y
    assert contracted  # an fma in the place of product and sum would have been seen


def test_linear_float_with_integer_bias_scalars_and_casts():
    _, acc, sa, sw = small_case(19)
    bias = np.array([2**31 - 1, -(2**31), 5, -7, 0, 1000], np.int32)
    got = ref.linear_float(acc, f32(sa[0]), f32(sw[0]), bias, dtype="float16")
    assert got.dtype == np.float16
    for i, j in np.ndindex(5, 6):
        y = nearest(nearest(wrap(int(acc[i, j]) + int(bias[j]))) * nearest(sa[0] * sw[0]))
        assert float(got[i, j]) == nearest(y, 11, -14, 15)


def test_float_clamps_keep_nan_and_minus_zero():
    x = np.array([np.nan, -0.0, 0.0, -1.0, 7.0, INF, -INF], np.float32)
    assert bits32(ref.activate(x, "relu6"))[1:] == bits32([-0.0, 0.0, 0.0, 6.0, 6.0, 0.0])
    assert bits32(ref.activate(x, "relu"))[1:] == bits32([-0.0, 0.0, 0.0, 7.0, INF, 0.0])
    assert bits32(ref.activate(x, (-0.5, 0.5)))[1:] == bits32([-0.0, 0.0, -0.5, 0.5, 0.5, -0.5])
    assert np.isnan(ref.activate(x, "relu")[0])


PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459")


def curve(name: str, x: Decimal) -> Decimal:
    def sigmoid(v):
        return 1 / (1 + (-v).exp())

    if name == "gelu":  # ½·x·(1 + erf(x/√2)), erf by its Taylor series
        z = x / Decimal(2).sqrt()
        term, total, n = z, z, 0
        while abs(term) > Decimal(10) ** -75:
            n += 1
            term = -term * z * z / n
            total += term / (2 * n + 1)
        return x / 2 * (1 + total * 2 / PI.sqrt())
    if name == "gelu_tanh":
        u = (2 / PI).sqrt() * (x + Decimal("0.044715") * x**3)
        return x / 2 * (1 + (1 - (-2 * u).exp()) / (1 + (-2 * u).exp()))
    if name == "tanh":
        return (1 - (-2 * x).exp()) / (1 + (-2 * x).exp())
    return {"sigmoid": sigmoid, "silu": lambda v: v * sigmoid(v), "hardswish": lambda v: v * clamp(v + 3, 0, 6) / 6}[
        name
    ](x)


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu", "hardswish", "sigmoid", "tanh"])
def test_curves(name):
    rng = random.Random(23)
    x = [0.0, 1e-6, -1e-6, 0.5, -0.5, 3.0, -3.0, 8.0, -8.0, *(rng.uniform(-7, 7) for _ in range(40))]
    x = np.array(x, np.float32)
    got = ref.activate(x, name)
    assert got.dtype == np.float32
    with localcontext() as context:
        context.prec = 70  # the Taylor series loses digits, and there are enough of them
        for value, y in zip(x.tolist(), got.tolist(), strict=True):
            exact = Fraction(curve(name, Decimal(value)))
            ulp = max(abs(nearest(exact)) * Fraction(2) ** -23, Fraction(2) ** -149)
            assert abs(frac(y) - exact) <= ulp * Fraction(51, 100), (value, y)
    extremes = ref.activate(np.array([-3e38, -200, 200, 3e38], np.float32), name).astype(np.float64)
    assert not np.isnan(extremes).any() and extremes[0] in (0.0, -1.0)


def test_clamp_bounds_of_integers():
    sy = near(0.1)
    for rounding, activation, zero in itertools.product(ROUNDINGS, ("relu", "relu6", (-0.25, 0.25)), (-128, 5)):
        low, high = {"relu": (0, INF), "relu6": (0, 6)}.get(activation, activation)
        nearest_integer = round if rounding == "half_even" else half_away
        got = ref.clamp_of(activation, f32(sy), zero, rounding)
        bounds = [nearest(Fraction(b) / sy) if b != INF else 2**31 - 1 for b in (low, high)]
        assert [int(v) for v in got] == [nearest_integer(b) + zero for b in bounds]
    ties = [[int(v) for v in ref.clamp_of((-0.5, 2.5), 1.0, 0, rounding)] for rounding in ("half_even", "gemmlowp")]
    assert ties == [[0, 2], [-1, 3]]
    below_a_half = float(nearest(Fraction(1, 2) - TWO**-25))  # to which adding 0.5 in float32 gives 1
    assert [int(v) for v in ref.clamp_of((-below_a_half, below_a_half), 1.0, 0, "ruy")] == [0, 0]
    assert [int(v) for v in ref.clamp_of((-INF, 1e30), 1.0, 0, "ruy")] == [-(2**31), 2**31 - 1]
    assert ref.clamp_of(None, 1.0, 0, "ruy") is None


def expected_multiplier(rounding, sa, sw, sy, mixed):
    if rounding == "half_even":
        return nearest(nearest(sa * sw) / sy)
    return nearest64(nearest(sa * sw) / sy) if mixed else nearest64(sa * sw / sy)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_linear_integer(rounding):
    rng, acc, sa, sw = small_case(29)
    sy, zero = near(0.77), -11
    bias32 = randints(rng, (6,), -5000, 5000, np.int32)
    bias_f = [near(rng.uniform(-30, 30)) for _ in range(6)]
    bias_f[0] = nearest(sa[0] * sw[0]) * Fraction(5, 2)  # a tie
    for per_row, per_column, bias, activation, linear in itertools.product(
        (0, 1), (0, 1), (None, "s32", "float"), (None, "relu", (-3.0, 20.0)), (False, True)
    ):
        a_scales, w_scales = sa if per_row else sa[:1] * 5, sw if per_column else sw[:1] * 6
        got = ref.linear_integer(
            acc, as_f32(sa) if per_row else f32(sa[0]), as_f32(sw) if per_column else f32(sw[0]), f32(sy), zero,
            "int8", rounding, {None: None, "s32": bias32, "float": as_f32(bias_f)}[bias], None, activation,
            linear=linear,
        )  # fmt: skip
        low, high = {None: (-INF, INF), "relu": (0, INF)}.get(activation, activation)
        nearest_integer = round if rounding == "half_even" else half_away
        low, high = (b if abs(b) == INF else nearest_integer(nearest(Fraction(b) / sy)) + zero for b in (low, high))
        for i, j in np.ndindex(5, 6):
            total = int(acc[i, j])
            if bias == "s32":
                total = wrap(total + int(bias32[j]))
            if bias == "float":
                total = wrap(total + round(nearest(bias_f[j] / nearest(a_scales[i] * w_scales[j]))))
            mixed = linear and rounding == "ruy" and not per_column
            M = expected_multiplier(rounding, a_scales[i], w_scales[j], sy, mixed)
            y = rounded(rounding, total, M) + zero
            assert got[i, j] == clamp(clamp(y, low, high), -128, 127)


def test_bias_codes():
    """A float bias in units of f32(sa·sw): ties to even, an f32 division, another unit for every row."""
    sa, sw = [Fraction(1, 2), near(0.1)], [Fraction(1, 4), near(0.3), near(1e-3)]
    bias = [Fraction(n, 16) for n in (1, 3, 5, -1, -3, 7)]  # units of 1/8: ties
    got = ref.bias_codes(as_f32(bias), f32(sa[0]), f32(sw[0]))
    assert got.dtype == np.int64 and got.tolist() == [0, 2, 2, 0, -2, 4]
    rng = random.Random(28)
    orders = 0
    for _ in range(200):
        bias = [near(rng.uniform(-1, 1) * 10 ** rng.randint(0, 4)) for _ in range(3)]
        got = ref.bias_codes(as_f32(bias), as_f32(sa), as_f32(sw)).tolist()
        assert got == [[round(nearest(b / nearest(x * y))) for b, y in zip(bias, sw, strict=True)] for x in sa]
        orders += got != [[round(b / (x * y)) for b, y in zip(bias, sw, strict=True)] for x in sa]
    assert orders  # real arithmetic would have been seen


def test_residual_joins_before_the_only_rounding():
    rng = random.Random(31)
    acc, residual = randints(rng, (60, 50), -900, 900, np.int32), randints(rng, (60, 50), 0, 255, np.uint8)
    rounded_apart = clamped = 0
    for sa, sw, sy, sr, zy, zr in [
        (near(0.1), near(0.3), near(0.5), near(0.3), 7, 100),
        (Fraction(1, 4), Fraction(1, 2), Fraction(1, 2), Fraction(1, 4), 128, 128),  # ties
    ]:
        for activation, bias in ((None, None), ("relu6", np.arange(50, dtype=np.int32) - 20)):
            got = ref.linear_integer(
                acc, f32(sa), f32(sw), f32(sy), zy, "uint8", "half_even", bias, (residual, f32(sr), zr), activation
            ).tolist()
            m, scale = nearest(nearest(sa * sw) / sy), nearest(sr / sy)
            for i, j in np.ndindex(60, 50):
                t = nearest((int(acc[i, j]) + (0 if bias is None else int(bias[j]))) * m)
                u = nearest((int(residual[i, j]) - zr) * scale)
                y = round(nearest(t + u)) + zy
                rounded_apart += 0 <= y <= 255 and y != round(t) + round(u) + zy
                bounded = y if activation is None else clamp(y, zy, zy + round(nearest(6 / sy)))
                clamped += bounded != y
                assert got[i][j] == clamp(bounded, 0, 255)
    assert rounded_apart and clamped


def test_residual_bit_for_bit():
    """Before it is rounded to a code, where an f64 on the way would show."""
    rng = random.Random(32)
    r = randints(rng, (400,), -128, 127, np.int8)
    t = [near(rng.uniform(-100, 100)) for _ in range(400)]
    in_f64 = 0
    for sr, sy, zr in ((near(0.3), near(0.77), -5), (near(1e-3), near(0.1), 127), (near(3.7), near(0.3), -128)):
        got = ref.add_residual(as_f32(t), r, f32(sr), zr, f32(sy))
        assert got.dtype == np.float32
        for value, code, y in zip(t, r.tolist(), got.tolist(), strict=True):
            assert y == nearest(value + nearest((code - zr) * nearest(sr / sy)))
            in_f64 += y != nearest(value + nearest((code - zr) * sr / sy))
    assert in_f64
    opposite = np.array([[2**31 - 1]], np.int32), 1e38, 1.0, 1.0, 7, "int8", "half_even"
    residual = np.array([[-128]], np.int8), 1e38, 127
    assert ref.linear_integer(*opposite, residual=residual).item() == -128  # ∞ − ∞


# ------------------------------------------------------------------------------------------------ A10


def check_fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> None:
    for x, y, z, got in zip(a.tolist(), b.tolist(), c.tolist(), ref.fma32(a, b, c).tolist(), strict=True):
        assert got == nearest(Fraction(x) * Fraction(y) + Fraction(z)), (x.hex(), y.hex(), z.hex(), got.hex())


def test_fma32_double_rounding_traps():
    """(2²⁰+1)(2²⁰−1) = 2⁴⁰−1: a product a hair below half a unit of c. float64 rounds it to the half itself."""
    traps = []
    for exponent, sign_c, sign_p in itertools.product((-126, -120, -3, 0, 1, 60, 103), (1, -1), (1, -1)):
        for odd in (1, 3, 5, 2**22 + 1, 2**23 - 1, 0, 2):  # the last bits of c
            c = sign_c * (1 + odd * TWO**-23) * TWO**exponent
            half_unit = TWO ** (exponent - 24)
            a = sign_p * (2**20 + 1) * TWO**-20
            b = (2**20 - 1) * TWO**-20 * half_unit
            if nearest(b) == b:
                traps.append((a, b, c))
    for fraction in (2**21 + 1, 2**21 + 2, 2**22 - 1):  # the same among the subnormals, whose unit is 2⁻¹⁴⁹
        for sign in (1, -1):
            for up in range(3):  # b alone must be a float32, so the smallness is moved into a
                shift = 30 + up
                traps.append((sign * (2**20 + 1) * TWO ** (-20 - shift), (2**20 - 1) * TWO ** (-20 - 150 + shift),
                              fraction * TWO**-149))  # fmt: skip
    naive_wrong = 0
    for a, b, c in traps:
        naive_wrong += nearest(nearest64(a * b + c)) != nearest(a * b + c)
    assert naive_wrong > 50
    check_fma(*(np.array([f32(t[i]) for t in traps]) for i in range(3)))


def test_fma32_random():
    rng = random.Random(53)
    a, b, c = (np.array([rng.getrandbits(32) for _ in range(3000)], np.uint32).view(np.float32) for _ in range(3))
    finite = np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
    a, b, c = a[finite], b[finite], c[finite]
    check_fma(a, b, c)

    def some():
        return rng.choice((-1, 1)) * rng.randint(1, 2**24 - 1) * 2.0 ** rng.randint(-30, -20)

    small = [np.array([some() for _ in range(1000)], np.float32) for _ in range(3)]
    check_fma(*small)
    check_fma(small[0], small[1], -(small[0] * small[1]))  # cancellation: only the error of the product is left
    check_fma(small[0] * np.float32(2.0**-70), small[1] * np.float32(2.0**-60), small[2] * np.float32(2.0**-140))


def test_fma32_special_values():
    one, big, tiny = np.float32(1), np.float32(3e38), np.float32(1e-45)
    with np.errstate(all="raise"):  # and it does not warn
        assert bits32(ref.fma32(-0.0, one, -0.0)) == bits32(-0.0) and bits32(ref.fma32(-0.0, one, 0.0)) == bits32(0.0)
        assert bits32(ref.fma32(one, one, -one)) == bits32(0.0)
        assert bits32(ref.fma32(-tiny, tiny, 0.0)) == bits32(-0.0)
        assert (
            ref.fma32(big, big, -INF) == -INF and ref.fma32(big, big, -big) == INF and ref.fma32(big, -big, 1) == -INF
        )
        assert np.isnan(ref.fma32(INF, 0.0, one)) and np.isnan(ref.fma32(INF, one, -INF))
        assert np.isnan(ref.fma32(np.nan, one, one)) and ref.fma32(INF, one, one) == INF
        assert ref.fma32(tiny, np.float32(0.5), tiny).item() == float(nearest(TWO**-149 * Fraction(3, 2)))


def test_grouped_matmul():
    rng = random.Random(59)
    for k, group in [(10, 4), (8, 8), (7, 1), (5, 16), (0, 4)]:
        groups = -(-k // group)
        a, b = randints(rng, (3, k), 0, 255, np.uint8), randints(rng, (k, 4), -8, 7, np.int8)
        scale = np.array([rng.uniform(0.01, 1) for _ in range(groups * 4)], np.float32).reshape(groups, 4)
        za, zb = [0, 128, 255], randints(rng, (groups, 4), -8, 7, np.int32)
        sa = [near(0.1), near(0.37), near(1e-3)]
        bias = [near(0.5), near(-3.1), near(7.7), Fraction(0)]
        got = ref.grouped_matmul(a, b, scale, group, np.array(za, np.int32), zb)
        full = ref.grouped_linear(got, as_f32(sa), as_f32(bias), activation="relu")
        assert got.dtype == full.dtype == np.float32 and got.shape == (3, 4)
        for i, j in np.ndindex(3, 4):
            y = Fraction(0)
            for g in range(groups):
                acc = sum(
                    (int(a[i, t]) - za[i]) * (int(b[t, j]) - int(zb[g, j]))
                    for t in range(g * group, min(k, (g + 1) * group))
                )
                y = nearest(nearest(acc) * frac(scale[g, j]) + y)
            assert frac(got[i, j]) == y
            assert frac(full[i, j]) == max(0, nearest(nearest(y * sa[i]) + bias[j]))


def test_two_level_matmul():
    rng = random.Random(61)
    a, b = randints(rng, (2, 3, 11), -128, 127, np.int8), randints(rng, (11, 4), 0, 15, np.uint8)
    factors = randints(rng, (3, 4), 1, 16, np.uint8)
    zb = randints(rng, (3, 4), 0, 15, np.int32)
    got = ref.two_level_matmul(a, b, factors, 4, 9, zb)
    assert got.dtype == np.int32
    for t, i, j in np.ndindex(2, 3, 4):
        assert got[t, i, j] == sum(
            int(factors[k // 4, j]) * (int(a[t, i, k]) - 9) * (int(b[k, j]) - int(zb[k // 4, j])) for k in range(11)
        )
    k = 5000  # beyond the bound of the types
    full = np.full((1, k), 255, np.uint8), np.full((k, 1), -128, np.int8), np.full((1, 1), 16, np.uint8)
    assert ref.two_level_matmul(*full, k).item() == wrap(-16 * 255 * 128 * k)


# ------------------------------------------------------------------------------------------------ A11


@pytest.mark.parametrize("group", [None, 4])
def test_weight_only(group):
    rng = random.Random(67)
    x = np.array([rng.gauss(0, 1) for _ in range(30)], np.float32).reshape(3, 10)
    q = randints(rng, (10, 4), 0, 15, np.uint8)
    shape = (4,) if group is None else (3, 4)
    s = np.array([rng.uniform(0.01, 1) for _ in range(math.prod(shape))], np.float32).reshape(shape)
    z = randints(rng, shape, 0, 15, np.int32)
    got = ref.weight_only(x, q, s, z, group)
    assert got.dtype == np.float64
    for i, j in np.ndindex(3, 4):
        at = [(j,) if group is None else (k // group, j) for k in range(10)]
        terms = [frac(x[i, k]) * frac(s[at[k]]) * (int(q[k, j]) - int(z[at[k]])) for k in range(10)]
        assert abs(frac(got[i, j]) - sum(terms)) <= sum(map(abs, terms)) * TWO**-49


# ------------------------------------------------------------------------------------------------ A12


def positions(size, kernel, stride, pads, dilation):
    """Where windows start, found by sliding one over the padded axis."""
    return [p for p in range(-pads[0], size + pads[1], stride) if p + dilation * (kernel - 1) < size + pads[1]]


def test_conv_size():
    for size, kernel, stride, dilation, before, after in itertools.product(
        range(9), range(1, 5), (1, 2, 3), (1, 2, 3), (0, 1, 2), (0, 3)
    ):
        expected = len(positions(size, kernel, stride, (before, after), dilation))
        assert ref.conv_size(size, kernel, stride, (before, after), dilation) == expected


def test_paddings():
    args = (7, 9), (3, 4), (2, 3), (1, 2)
    assert ref.conv_pads("valid", *args) == ref.conv_pads(0, *args) == ((0, 0), (0, 0))
    assert ref.conv_pads(2, *args) == ((2, 2), (2, 2))
    assert ref.conv_pads((1, 2), *args) == ((1, 1), (2, 2))
    assert ref.conv_pads(((1, 0), (2, 3)), *args) == ((1, 0), (2, 3))
    for size, kernel, stride, dilation in itertools.product(range(1, 12), range(1, 5), (1, 2, 3, 5), (1, 2)):
        upper = ref.conv_pads("same_upper", (size, 4), (kernel, 1), (stride, 1), (dilation, 1))[0]
        lower = ref.conv_pads("same_lower", (4, size), (1, kernel), (1, stride), (1, dilation))[1]
        assert lower == upper[::-1] and upper[1] - upper[0] in (0, 1)
        outputs = math.ceil(size / stride)
        assert len(positions(size, kernel, stride, upper, dilation)) == outputs
        if sum(upper):  # one less would not do
            assert (outputs - 1) * stride + dilation * (kernel - 1) + 1 == size + sum(upper)


@pytest.mark.parametrize(
    "size,kernel,stride,padding,dilation,groups",
    [
        ((4, 5), (1, 1), (1, 1), 0, (1, 1), 1),
        ((5, 6), (3, 3), (1, 1), 1, (1, 1), 1),
        ((5, 6), (3, 2), (2, 1), ((1, 2), (0, 1)), (1, 2), 2),
        ((6, 5), (2, 3), (1, 3), "same_upper", (2, 1), 1),
        ((6, 5), (2, 3), (3, 2), "same_lower", (1, 1), 4),  # depthwise
        ((2, 2), (3, 3), (2, 2), 0, (1, 1), 1),  # nothing fits
        ((0, 3), (1, 1), (1, 1), 0, (1, 1), 1),
        ((1, 1), (3, 3), (1, 1), 4, (1, 1), 2),  # windows wholly outside the image
    ],
)
def test_conv2d(size, kernel, stride, padding, dilation, groups):
    rng = random.Random(71)
    channels, filters = 4, 8
    x = randints(rng, (2, *size, channels), 0, 255, np.uint8)
    w = randints(rng, (filters, *kernel, channels // groups), -128, 127, np.int8)
    w_zero, bias = randints(rng, (filters,), -128, 127, np.int32), randints(rng, (filters,), -99, 99, np.int32)
    pads = ref.conv_pads(padding, size, kernel, stride, dilation)
    tops = positions(size[0], kernel[0], stride[0], pads[0], dilation[0])
    lefts = positions(size[1], kernel[1], stride[1], pads[1], dilation[1])
    for zeros in ((0, 0, 0), (255, w_zero, bias), (77, -128, 5)):
        x_zero, zw, b = zeros
        got = ref.conv2d(
            x, w, stride=stride, padding=padding, dilation=dilation, groups=groups, x_zero=x_zero, w_zero=zw, bias=b
        )
        assert got.dtype == np.int32 and got.shape == (2, len(tops), len(lefts), filters)
        for n, oy, ox, f in np.ndindex(got.shape):
            zf, total = int(np.broadcast_to(zw, filters)[f]), int(np.broadcast_to(b, filters)[f])
            for i, j, c in np.ndindex(*kernel, channels // groups):
                y, xx = tops[oy] + i * dilation[0], lefts[ox] + j * dilation[1]
                inside = 0 <= y < size[0] and 0 <= xx < size[1]
                channel = f // (filters // groups) * (channels // groups) + c
                value = int(x[n, y, xx, channel]) if inside else x_zero
                total += (value - x_zero) * (int(w[f, i, j, c]) - zf)
            assert got[n, oy, ox, f] == total
