"""The reference of codes and real numbers against exact numbers (exact.py): A7 … A9."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest
from exact import INF, LIMITS, SCALES, TWO, clamp, f32, frac, near, nearest

from qkernels.backends import reference as ref

# ------------------------------------------------------------------------------------------------ A7, A9


@pytest.mark.parametrize("dtype", LIMITS)
def test_quantize(dtype):
    rng = random.Random(37)
    low, high = LIMITS[dtype]
    by_reciprocal = 0
    for s in (near(0.1), near(0.0123), Fraction(1), near(3e-3), near(1e-42), near(1e35)):
        ties = [nearest((n + Fraction(1, 2)) * s) for n in (-5, -2, -1, 0, 1, 2, 3, 6, 7, 126, 127, low, high)]
        x = [0.0, -0.0, 3e38, -3e38, 1e-45, *map(float, ties), *(rng.uniform(-300, 300) * float(s) for _ in range(60))]
        x = [v for v in x if abs(v) < 3.4e38]
        x = np.array(x, np.float32)
        x = np.concatenate([x, np.nextafter(x, np.float32(INF)), np.nextafter(x, np.float32(-INF))])
        for zero in (low, (low + high) // 2, high):
            got = ref.quantize(x, f32(s), zero, dtype)
            assert got.dtype == ref.container(dtype)
            for value, q in zip(x.tolist(), got.tolist(), strict=True):
                t = nearest(Fraction(value) / s)
                q_expected = zero + (round(t) if abs(t) != INF else int(math.copysign(10**9, t)))
                assert q == clamp(q_expected, low, high), (value, float(s), zero)
                inverse = nearest(1 / s)
                if abs(t) < 2**20 and inverse != INF:
                    by_reciprocal += round(nearest(Fraction(value) * inverse)) != round(t)
        special = ref.quantize(np.array([np.nan, INF, -INF], np.float32), f32(s), zero, dtype)
        assert special.tolist() == [low, high, low]
    assert by_reciprocal  # a multiplication by 1/s would have been seen


def test_quantize_and_dequantize_along_an_axis():
    x = np.array([[0.5, 1.5, -2.5], [10.0, -0.25, 0.75]], np.float32)
    assert ref.quantize(x, [0.5, 0.25], [0, -3], axis=0).tolist() == [[1, 3, -5], [37, -4, 0]]
    assert ref.quantize(x, [0.5, 1.0, 2.0], [1, 2, 3], "uint8", axis=1).tolist() == [[2, 4, 2], [21, 2, 3]]
    q = np.array([[1, 3, -5], [37, -4, 0]], np.int8)
    assert ref.dequantize(q, [0.5, 0.25], [0, -3], axis=0).tolist() == [[0.5, 1.5, -2.5], [10.0, -0.25, 0.75]]
    half = np.array([0.3, 1.7], np.float16)
    s = np.float16(0.1)  # the code must be that of the widened scale, not of 0.1
    assert ref.quantize(half, s).tolist() == [round(nearest(frac(v) / frac(s))) for v in half.tolist()]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int4"])
def test_dequantize(dtype):
    low, high = LIMITS[dtype]
    q = np.array(sorted({low, high, 0, 1, (low + high) // 2, high - 1}), ref.container(dtype))
    for s, zero in itertools.product((*SCALES, near(1e-44), near(3e38)), (low, 0, high)):
        got = ref.dequantize(q, f32(s), zero, "float32")
        assert got.dtype == np.float32
        assert [float(v) for v in got] == [nearest((code - zero) * s) for code in q.tolist()]
    assert ref.dequantize(q, np.float32(0.1), 0, "float16").dtype == np.float16


# ------------------------------------------------------------------------------------------------ A8


def onnx_range(x: list[float]):
    """DynamicQuantizeLinear in fractions: codes, scale, zero point."""
    finite = [Fraction(v) for v in x if math.isfinite(v)]
    low, high = min([Fraction(0), *finite]), max([Fraction(0), *finite])
    scale = nearest(nearest(high - low) / 255) or Fraction(1)
    zero = round(clamp(-nearest(low / scale), 0, 255))
    codes = []
    for v in x:
        t = nearest(Fraction(v) / scale) if math.isfinite(v) else v
        t = 0 if math.isnan(t) else math.copysign(10**9, t) if abs(t) == INF else round(t) + zero
        codes.append(int(clamp(t, 0, 255)))
    return codes, scale, zero


def signed_range(x: list[float], qmax: int):
    amax = max((abs(Fraction(v)) for v in x if math.isfinite(v)), default=Fraction(0))
    if amax < Fraction(2) ** -119:
        return [0] * len(x), Fraction(1), 0
    scale, reciprocal = nearest(amax / qmax), nearest(qmax / amax)
    codes = []
    for v in x:
        t = nearest(Fraction(v) * reciprocal) if math.isfinite(v) else v
        codes.append(0 if math.isnan(t) else int(math.copysign(qmax, t)) if abs(t) == INF else round(t))
    return codes, scale, 0


def one_range(x: list[float], dtype: str):
    return onnx_range(x) if dtype == "uint8" else signed_range(x, {"int8": 127, "int4": 7}[dtype])


def rows_for_a8():
    rng = random.Random(41)
    nan = math.nan
    rows = [
        [], [0.0], [-0.0, 0.0], [1.0], [-1.0], [5.0, 7.0], [-5.0, -7.0], [nan], [INF, -INF], [nan, INF, 1.0, -2.0],
        [1e-45], [-1e-45, 1e-45], [1e-42, -2e-43], [INF, 1e-40, nan], [2.0**-119, -(2.0**-119), INF],
        [2.0**-120, 1e-37], [2e38, -1e38, 0.0], [3.4e38, 1.0], [-3.4e38, 1.0], [0.5, 1.5, 2.5, 127.0, -126.5],
        [3.5, -0.5, 0.5, 1.5, -2.5, 7.0], [255.0, 0.5, 1.5, 2.5], [-127.5, 127.5, 0.5], [-128.5, 126.5, 1.0],
    ]  # fmt: skip
    for _ in range(150):
        width = 10.0 ** rng.randint(-43, 36)
        rows.append([rng.gauss(rng.choice((0, 0, 2)), 1) * width for _ in range(rng.randint(1, 24))])
    return [np.array(row, np.float32) for row in rows]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int4"])
def test_dynamic_quantize(dtype):
    below = np.nextafter(np.float32(2.0**-119), np.float32(0))
    for x in [*rows_for_a8(), np.array([below, -below, INF], np.float32)]:
        expected = one_range(x.tolist(), dtype)
        codes, scale, zero = expected
        for per in ("tensor", "row"):
            got = ref.dynamic_quantize(x[None] if per == "row" else x, dtype, per)
            assert got.codes.dtype == ref.container(dtype) and got.codes.reshape(-1).tolist() == codes, x
            assert got.scale.dtype == np.float32 and frac(got.scale.item()) == scale
            assert got.zero_point.dtype == got.codes.dtype and got.zero_point.item() == zero
            assert got.sums.dtype == np.int32 and got.sums.item() == sum(codes)
    if dtype == "uint8":  # a range beyond float32 has no finite scale: A0 refuses what comes out
        assert ref.dynamic_quantize(np.array([3e38, -1e38], np.float32), dtype, "tensor").scale == INF
    scalar = ref.dynamic_quantize(np.float32(-3.0), dtype, "tensor")
    assert scalar.codes.shape == scalar.scale.shape == scalar.sums.shape == ()


def test_dynamic_quantize_by_row_and_group():
    rng = random.Random(43)
    x = np.array([rng.gauss(0, 1) * 10 ** rng.randint(-3, 3) for _ in range(2 * 3 * 10)], np.float32).reshape(2, 3, 10)
    for dtype, group in itertools.product(("int8", "int4", "uint8"), (None, 4, 5, 16)):
        got = ref.dynamic_quantize(x, dtype, group_size=group)
        starts = range(0, 10, group or 10)
        shape = (2, 3) if group is None else (2, 3, len(starts))
        assert got.codes.shape == x.shape and got.scale.shape == got.zero_point.shape == got.sums.shape == shape
        for row in np.ndindex(2, 3):
            for g, start in enumerate(starts):
                codes, scale, zero = one_range(x[row][start : start + (group or 10)].tolist(), dtype)
                at = row if group is None else (*row, g)
                assert got.codes[row][start : start + (group or 10)].tolist() == codes
                assert (frac(got.scale[at]), got.zero_point[at], got.sums[at]) == (scale, zero, sum(codes))
    empty = ref.dynamic_quantize(np.zeros((2, 0), np.float32), "int8")
    assert empty.scale.tolist() == [1, 1] and empty.codes.shape == (2, 0) and empty.sums.tolist() == [0, 0]


def test_signed_codes_never_exceed_their_range():
    """Lemma 5: amax · f32(127/amax) rounds to 127, whatever amax is."""
    rng = random.Random(47)
    for _ in range(1000):
        amax = Fraction(rng.randint(2**23, 2**24 - 1)) * TWO ** rng.randint(-142, 104)
        for qmax in (127, 7):
            assert round(nearest(amax * nearest(qmax / amax))) == qmax
            assert nearest(amax / qmax) >= TWO**-126 and nearest(qmax / amax) < TWO**127
