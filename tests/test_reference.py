"""The reference against Python integers and fractions: no NumPy arithmetic takes part in what is expected.

`nearest` rounds an exact Fraction to a binary floating-point format; everything floating is said in its terms.
Expected integers are clamped *after* rounding, where the reference clamps before: lemma 1 is in every comparison.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
import struct
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest

from qkernels.backends import reference as ref
from qkernels.kernel import Hardware, Problem

INF = math.inf
ROUNDINGS = ("half_even", "gemmlowp", "ruy", "half_up", "half_away")
LIMITS = {
    "int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "uint16": (0, 65535),
    "int4": (-8, 7), "uint4": (0, 15), "int2": (-2, 1), "uint2": (0, 3),
}  # fmt: skip

# ------------------------------------------------------------------------------------------------ the oracle


def nearest(x, precision=24, emin=-126, emax=127):
    """x rounded to float32 (or another binary format), half to even, subnormals kept; ±inf beyond its range."""
    if x in (INF, -INF) or x == 0:
        return x
    x = Fraction(x)
    n, d = x.numerator, x.denominator
    e = abs(n).bit_length() - d.bit_length()
    if abs(n) << max(-e, 0) < d << max(e, 0):
        e -= 1
    places = precision - 1 - max(e, emin)  # after the binary point
    q, rest = divmod(n << max(places, 0), d << max(-places, 0))
    q += 2 * rest > d << max(-places, 0) or (2 * rest == d << max(-places, 0) and q % 2)
    y = Fraction(q << max(-places, 0), 1 << max(places, 0))
    return y if abs(y) < 2 ** (emax + 1) else INF if y > 0 else -INF


def nearest64(x):
    return nearest(x, 53, -1022, 1023)


def test_the_oracle_rounds_as_c_does():
    rng = random.Random(0)
    for _ in range(2000):
        x = (
            struct.unpack("<d", rng.randbytes(8))[0]
            if rng.random() < 0.3
            else rng.uniform(-1, 1) * 2.0 ** rng.randint(-152, 128)
        )
        if math.isfinite(x) and abs(x) < 3.4e38:
            assert nearest(Fraction(x)) == struct.unpack("<f", struct.pack("<f", x))[0]
        a, b = rng.getrandbits(70), rng.getrandbits(60) + 1
        assert nearest64(Fraction(a, b)) == a / b
    assert nearest(Fraction(2) ** 128 * (1 - Fraction(2) ** -25)) == INF  # the tie with the largest float32
    assert nearest(-(Fraction(2) ** -150)) == 0 and nearest(Fraction(2) ** -150 * Fraction(3, 2)) == Fraction(2) ** -149


def f32(x) -> np.float32:
    """A number that is a float32 already."""
    y = np.float32(float(x))
    assert float(y) == x
    return y


def frac(x) -> Fraction:
    return Fraction(float(x))


def near(x: float) -> Fraction:
    return nearest(Fraction(x))


def clamp(x, low, high):
    return max(low, min(x, high))


def half_up(x) -> int:
    return math.floor(x + Fraction(1, 2))


def half_away(x) -> int:
    return half_up(x) if x >= 0 else -half_up(-x)


def wrap(x: int) -> int:
    return (x + 2**31) % 2**32 - 2**31


def product(a, b, za=lambda i: 0, zb=lambda j: 0):
    """Nested lists: the exact product of integer matrices."""
    return [
        [sum((a[i][k] - za(i)) * (b[k][j] - zb(j)) for k in range(len(b))) for j in range(len(b[0]))]
        for i in range(len(a))
    ]


def randints(rng: random.Random, shape, low, high, dtype):
    """Random codes in which the ends of the range are frequent."""
    values = [rng.choice((low, high, rng.randint(low, high))) for _ in range(math.prod(shape))]
    return np.array(values, dtype).reshape(shape)


def bits32(x) -> list[int]:
    return np.asarray(x, np.float32).reshape(-1).view(np.uint32).tolist()


# ------------------------------------------------------------------------------------------------ A1


@pytest.mark.parametrize("dtype", LIMITS)
def test_limits(dtype):
    assert ref.limits(dtype) == LIMITS[dtype]
    assert np.iinfo(ref.container(dtype)).bits == max(8, int("".join(filter(str.isdigit, dtype))))
    assert (np.iinfo(ref.container(dtype)).min < 0) == (LIMITS[dtype][0] < 0)


def test_types_by_numpy_dtype():
    assert ref.limits(np.int8) == (-128, 127) and ref.limits(np.dtype("uint16")) == (0, 65535)


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int2", "uint2"])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 9])
def test_pack_bits(dtype, n):
    bits = int(dtype[-1])
    codes = randints(random.Random(n), (3, n), *LIMITS[dtype], ref.container(dtype))
    packed = ref.pack_bits(codes, dtype)
    for row, packed_row in zip(codes.tolist(), packed.tolist(), strict=True):
        number = sum((code % 2**bits) << (bits * i) for i, code in enumerate(row))
        assert bytes(packed_row) == number.to_bytes(math.ceil(n * bits / 8), "little")
    assert ref.unpack_bits(packed, n, dtype).tolist() == codes.tolist()
    assert ref.unpack_bits(packed, n, dtype).dtype == codes.dtype


def test_casts():
    rng = random.Random(1)
    x = np.array([rng.getrandbits(32) for _ in range(4000)], np.uint32).view(np.float32)
    x[:6] = [0.0, -0.0, INF, -INF, 65520.0, 3.4e38]  # 65520 is the tie between float16's largest and infinity
    x[6:9] = np.array([0x3F808000, 0x3F818000, 0x00018000], np.uint32).view(np.float32)  # ties of bfloat16
    x[9:13] = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFF800001], np.uint32).view(np.float32)  # NaNs on the edge
    bf16 = ref.bfloat16_bits(x).tolist()
    f16 = ref.cast(x, "float16").astype(np.float64).tolist()
    for value, b, h in zip(x.tolist(), bf16, f16, strict=True):
        if math.isnan(value):
            assert b & 0x7FFF > 0x7F80 and math.isnan(h)
            continue
        got = float(np.array([b << 16], np.uint32).view(np.float32)[0])
        assert (got, math.copysign(1, got)) == (nearest(value, 8), math.copysign(1, value))
        assert (h, math.copysign(1, h)) == (nearest(value, 11, -14, 15), math.copysign(1, value))
    half = np.array([1.5, 65504, 6e-8], np.float16)
    assert ref.widen(half).dtype == np.float32 and ref.widen(half).tolist() == half.tolist()


# ------------------------------------------------------------------------------------------------ A2, A3

TYPES = list(itertools.product(("int8", "uint8"), repeat=2))


@pytest.mark.parametrize("ta,tb", TYPES)
def test_matmul(ta, tb):
    rng = random.Random(f"{ta}{tb}")
    for m, n, k in [(1, 1, 1), (3, 4, 5), (2, 3, 33), (4, 1, 7), (0, 3, 2), (3, 0, 2), (2, 3, 0)]:
        a, b = randints(rng, (m, k), *LIMITS[ta], ta), randints(rng, (k, n), *LIMITS[tb], tb)
        za, zb = [rng.choice(LIMITS[ta]) for _ in range(m)], [rng.choice(LIMITS[tb]) for _ in range(n)]
        A, B = a.tolist(), b.tolist() or [[0] * n]
        if k == 0:
            A = [[0]] * m
        plain, zeroed = product(A, B), product(A, B, za.__getitem__, zb.__getitem__)
        if k == 0:
            zeroed = plain
        for got, expected in [
            (ref.matmul(a, b), plain),
            (ref.matmul(a, b, np.array(za, np.int32), np.array(zb, np.int32)), zeroed),
        ]:
            assert got.dtype == np.int32 and got.shape == (m, n)
            assert got.tolist() == (expected if n else [[]] * m)


def test_matmul_batches_and_strides():
    rng = random.Random(3)
    a = randints(rng, (2, 1, 6, 5), -128, 127, np.int8)[:, :, ::-2]  # 3 rows
    b = randints(rng, (3, 4, 5), 0, 255, np.uint8).transpose(0, 2, 1)  # broadcast against (2, 1)
    za, zb = randints(rng, (2, 1, 3), -128, 127, np.int32), randints(rng, (3, 4), 0, 255, np.int32)
    got = ref.matmul(a, b, za, zb)
    assert got.shape == (2, 3, 3, 4)
    for i, j in itertools.product(range(2), range(3)):
        expected = product(a[i, 0].tolist(), b[j].tolist(), za[i, 0].tolist().__getitem__, zb[j].tolist().__getitem__)
        assert got[i, j].tolist() == expected


@pytest.mark.parametrize("ta,tb", TYPES)
def test_accumulators_wrap_mod_2_32(ta, tb):
    k = 140_000
    for a, b, za, zb in itertools.product(LIMITS[ta], LIMITS[tb], LIMITS[ta], LIMITS[tb]):
        got = ref.matmul(np.full((1, k), a, ta), np.full((k, 1), b, tb), za, zb)
        assert got.item() == wrap(k * (a - za) * (b - zb))
        assert ref.accumulate(np.full((1, k), a, ta), np.full((k, 1), b, tb), za, zb).item() == k * (a - za) * (b - zb)


def test_zero_points_of_any_s32_value_stay_right_mod_2_32():
    a, b = np.array([[-128, 127, 5]], np.int8), np.array([[255], [0], [7]], np.uint8)
    for za, zb in itertools.product((-(2**31), 2**31 - 1, 12345), repeat=2):
        expected = wrap(product(a.tolist(), b.tolist(), lambda i, z=za: z, lambda j, z=zb: z)[0][0])
        assert ref.matmul(a, b, np.array([za], np.int32), np.array([zb], np.int32)).item() == expected


def test_zero_point_identity_mod_2_32():
    rng = random.Random(5)
    for k in (1, 7, 70_000):  # the last one overflows the parts, and the sum
        a, b = rng.choices((0, 255, 93), k=k), rng.choices((0, 255, 14), k=k)
        za, zb = rng.randint(0, 255), rng.randint(0, 255)
        parts = [sum(x * y for x, y in zip(a, b, strict=True)), -za * sum(b), -zb * sum(a), k * za * zb]
        got = ref.matmul(np.array([a], np.uint8), np.array([b], np.uint8).T, za, zb).item()
        acc = 0
        for part in parts:
            acc = wrap(acc + wrap(part))
        assert got == acc


def test_k_bounds_are_those_of_the_types_and_tight():
    bounds = {
        ("int8", "int8"): 131_071,
        ("uint8", "int8"): 65_793,
        ("int8", "uint8"): 65_793,
        ("uint8", "uint8"): 33_025,
    }
    for (ta, tb), bound in bounds.items():
        for zero, k in ((0, bound), (None, 33_025)):
            A, B = ref.magnitude(ta, zero), ref.magnitude(tb, zero)
            assert ref.k_bound(A, B) == k
            assert k * A * B <= 2**31 - 1 < (k + 1) * A * B
    assert (
        ref.magnitude("int8", 100) == 228 and ref.magnitude("uint8", 128) == 128 and ref.magnitude("int8", -128) == 255
    )
    assert ref.k_bound(255, 128 * 16) == 4_112  # two-level scales


def test_columns_fit():
    b = np.zeros((4, 5), np.int8)
    b[:, 1], b[:, 2], b[0, 3] = -128, [127, -127, 1, -1], 5
    for a_magnitude, zero, bias in [(255, 0, 0), (2**31 // 512, 0, 0), (2**31 // 512 - 1, 0, [0, -255, 0, 3, 4])]:
        got = ref.columns_fit(b, a_magnitude, zero, np.array(bias)).tolist()
        biases = bias if isinstance(bias, list) else [bias] * 5
        sums = [sum(abs(b.tolist()[k][j] - zero) for k in range(4)) for j in range(5)]
        assert got == [a_magnitude * s + abs(x) < 2**31 for s, x in zip(sums, biases, strict=True)]
    assert ref.columns_fit(b, 2**31 // 512).tolist()[1] is False and ref.columns_fit(b, 2**31 // 512 - 1).all()
    assert ref.columns_fit(b, 2**24).tolist() == [True, False, False, True, True]  # though column 2 adds up to 0
    assert ref.columns_fit(b[:1], 2**21, np.array([-128, 0, 0, 0, -1023])).tolist() == [True, True, True, True, True]
    assert ref.columns_fit(b[:1], 2**21, np.array([-128, 0, 0, 0, -1024])).tolist() == [True, True, True, True, False]
    assert ref.columns_fit(np.zeros((0, 2), np.int8), 255, 0, np.array([2**31 - 1, -(2**31)])).tolist() == [True, False]


def test_lemma_2_float32_chunks():
    magnitudes = {("int8", "int8"): 1024, ("uint8", "int8"): 514, ("int8", "uint8"): 514, ("uint8", "uint8"): 258}
    rng = random.Random(7)
    for (ta, tb), chunk in magnitudes.items():
        assert ref.float32_chunk(ref.magnitude(ta), ref.magnitude(tb)) == chunk
        extreme = [max(LIMITS[t], key=abs) for t in (ta, tb)]
        a = [extreme[0]] * chunk, [rng.choice(LIMITS[ta]) for _ in range(chunk)]
        b = [extreme[1]] * chunk, [rng.choice(LIMITS[tb]) for _ in range(chunk)]
        got = np.array(a, np.float32) @ np.array(b, np.float32).T
        assert got.tolist() == product(a, list(zip(*b, strict=True)))
    # One step beyond, and the chunk is no longer exact: 1024 · 128² + 1 = 2²⁴ + 1 is no float32.
    assert nearest(1024 * 128**2 + 1) != 1024 * 128**2 + 1


# ------------------------------------------------------------------------------------------------ A4

SCALES = [near(s) for s in (1.0, 0.1, 0.3, 7e-3, 0.0123, 3.7, 255.0, 2**-20 / 3, 1e-30, 3e20)]


def test_multiplier_order():
    seen = set()
    for sa, sw, sy in itertools.product(SCALES, repeat=3):
        in_f32 = nearest(nearest(sa * sw) / sy)
        in_f64 = nearest64(nearest64(sa * sw) / sy)
        mixed = nearest64(nearest(sa * sw) / sy)
        seen.add((in_f32 == nearest(sa * nearest(sw / sy)), in_f64 == mixed))
        args = (f32(sa), f32(sw), f32(sy))
        if INF not in (nearest(sa * sw), in_f32):
            got = ref.multiplier(*args, "half_even")
            assert got.dtype == np.float32 and frac(got) == in_f32
            got = ref.multiplier(*args, "ruy", linear=True)
            assert got.dtype == np.float64 and frac(got) == mixed
        for rounding in ROUNDINGS[1:]:
            assert frac(ref.multiplier(*args, rounding)) == in_f64
            if rounding != "ruy":
                assert frac(ref.multiplier(*args, rounding, linear=True)) == in_f64
    assert (False, False) in seen  # the cases do tell the orders apart
    per_channel = ref.multiplier(f32(SCALES[1]), np.array([0.1, 0.3], np.float32), f32(SCALES[3]), "ruy", linear=True)
    assert [frac(v) for v in per_channel] == [nearest64(SCALES[1] * s / SCALES[3]) for s in SCALES[1:3]]


@functools.cache
def fixed_point(M: Fraction):
    """q and e of A4, from the exact M."""
    if M == 0:
        return 0, 0
    e = next(i for i in itertools.count(-1200) if Fraction(2) ** i > M)
    q = half_up(M / Fraction(2) ** e * 2**31)
    if q == 2**31:
        q, e = 2**30, e + 1
    return (0, 0) if e < -31 else (2**31 - 1, 30) if e > 30 else (q, e)


TWO = Fraction(2)
MULTIPLIERS = sorted(
    {
        *(TWO**-i for i in (1, 2, 3, 7, 8, 15, 16, 24, 30, 31, 32, 33, 60)),
        *(3 * TWO**-i for i in (1, 2, 4, 9, 20, 32, 33, 34)),
        *(TWO**i for i in (0, 1, 5, 28, 29, 30, 31, 40)),
        Fraction(1, 2) - TWO**-54,  # + ½ is 1 in f64: part of half_away
        1 - TWO**-32, 1 - TWO**-33, 1 - TWO**-53, 1 + TWO**-31, 1 + TWO**-32, 1 - TWO**-31,  # around q = 2³¹
        TWO**-32 * (1 - TWO**-33), TWO**-32 * (1 - TWO**-31), TWO**30 * (1 - TWO**-33), TWO**30 * (1 - TWO**-31),
        (TWO**30 + Fraction(1, 2)) / 2**31, (TWO**30 + Fraction(3, 2)) / 2**31,  # ties of q
        *(frac(x) for x in (0.1, 0.3333, 0.00217, 1.37e-5, 0.9, 13.7, 5e-324, 1e300)),
    }
)  # fmt: skip


def test_quantized_multiplier():
    kinds = set()
    for M in [Fraction(0), *MULTIPLIERS]:
        q, L, R = (int(v) for v in ref.quantized_multiplier(float(M)))
        expected_q, e = fixed_point(M)
        kinds.add("flushed" if expected_q == 0 else "saturated" if (expected_q, e) == (2**31 - 1, 30) else "plain")
        assert (q, L, R) == (expected_q, max(e, 0), max(-e, 0)), float(M)
    assert kinds == {"flushed", "saturated", "plain"}
    assert [v.tolist() for v in ref.quantized_multiplier(np.array([0.75, 6.0, 2.0**-33]))] == [
        [3 << 29, 3 << 29, 0], [0, 3, 0], [0, 0, 0],
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------ A5

ACCS = sorted(
    {
        *range(-20, 21), *(s * (2**i + d) for i in (8, 15, 23, 24, 25, 30) for d in (-1, 0, 1, 2) for s in (-1, 1)),
        -(2**31), -(2**31) + 1, 2**31 - 1, 2**31 - 2, *random.Random(11).sample(range(-(2**31), 2**31), 20),
        *random.Random(12).sample(range(-40_000, 40_000), 60),
    }
)  # fmt: skip


def rounded(rounding: str, acc: int, M: Fraction) -> int:
    """round(acc · M) of A5, before the zero point and any clamp."""
    if rounding == "half_even":
        t = nearest(nearest(acc) * nearest(M))
        return round(t) if abs(t) != INF else int(math.copysign(2**60, t))
    if rounding == "half_away":
        t = nearest64(acc * M)
        t = t if abs(t) == INF else nearest64(t + (Fraction(1, 2) if acc >= 0 else -Fraction(1, 2)))
        return math.trunc(t) if abs(t) != INF else int(math.copysign(2**60, t))
    q, e = fixed_point(M)
    if rounding == "half_up":
        return half_up(acc * q / Fraction(2) ** (31 - e))
    v = clamp(acc << max(e, 0), -(2**31), 2**31 - 1) * q
    divisor = 2 ** max(-e, 0)
    if rounding == "ruy":
        return half_up(Fraction(half_up(Fraction(v, 2**31)), divisor))
    h = math.trunc(Fraction(v + (2**30 if v >= 0 else 1 - 2**30), 2**31))
    return half_away(Fraction(h, divisor))


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_requantize(rounding):
    acc = np.array(ACCS, np.int32)
    for M in MULTIPLIERS:
        if rounding == "half_even" and nearest(M) == INF:
            continue  # A0: refused
        expected = [rounded(rounding, a, M) for a in ACCS]
        for dtype in ("int8", "uint8", "int16", "uint16", "int4"):
            low, high = LIMITS[dtype]
            for zero in (low, (low + high + 1) // 2 + 3, high):
                got = ref.requantize(acc, float(M), zero, dtype, rounding)
                assert got.dtype == ref.container(dtype)
                assert got.tolist() == [clamp(e + zero, low, high) for e in expected], (float(M), dtype, zero)


def test_the_roundings_differ_on_ties():
    acc = np.array([-6, -5, -3, -2, -1, 1, 2, 3, 5, 6], np.int32)
    got = {name: ref.requantize(acc, 0.25, 0, "int8", name).tolist() for name in ROUNDINGS}
    # of −1.5, −1.25, −0.75, −0.5, −0.25, 0.25, 0.5, 0.75, 1.25, 1.5
    assert got == {
        "half_even": [-2, -1, -1, 0, 0, 0, 0, 1, 1, 2],
        "half_up": [-1, -1, -1, 0, 0, 0, 1, 1, 1, 2],
        "half_away": [-2, -1, -1, -1, 0, 0, 1, 1, 1, 2],
        "gemmlowp": [-2, -1, -1, -1, 0, 1, 1, 1, 2, 2],  # 0.25 is q = 2³⁰, R = 1: ¼ → ½·2 → 1, twice rounded
        "ruy": [-1, -1, 0, 0, 0, 1, 1, 1, 2, 2],
    }


def test_gemmlowp_and_ruy_share_their_first_step():
    """Lemma 6: with R = 0 they are the same function."""
    acc = np.array(ACCS, np.int32)
    for M in (0.5, 0.75, 1.0, 5.0, 0.9):
        assert (ref.requantize(acc, M, 0, "int16", "gemmlowp") == ref.requantize(acc, M, 0, "int16", "ruy")).all()


def test_requantize_along_an_axis_and_clamped():
    rng = random.Random(13)
    acc = randints(rng, (3, 4, 5), -9000, 9000, np.int32)
    scale, zero = [0.01, 0.5, 0.037, 3.0], [0, 7, -100, 127]
    for rounding, clamps in itertools.product(ROUNDINGS, [None, (-5, 90), (-1000, 1000), (200, 300), (-300, -200)]):
        got = ref.requantize(acc, scale, zero, "int8", rounding, clamps, axis=1)
        last = ref.requantize(acc.transpose(0, 2, 1), scale, zero, "int8", rounding, clamps, axis=-1)
        assert (last.transpose(0, 2, 1) == got).all()
        for i, c, j in np.ndindex(3, 4, 5):
            y = rounded(rounding, int(acc[i, c, j]), frac(scale[c])) + zero[c]
            assert got[i, c, j] == clamp(clamp(y, *(clamps or (-(10**9), 10**9))), -128, 127)


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


# ------------------------------------------------------------------------------------------------ the registry's rows

ANY = Hardware(frozenset())


class Packed:
    """All that a row asks of packed weights."""

    def __init__(self, b):
        self.b = b

    def unpack(self):
        return self.b


GEMM = [kernel for kernel in ref.KERNELS if kernel.op == "gemm"]  # the others: test_quantize.py, test_requantize.py


def test_rows():
    assert [k.name for k in GEMM] == [f"gemm_{t}s32_reference" for t in ("u8u8", "u8s8", "s8u8", "s8s8")]
    for kernel in GEMM:
        assert kernel.name == f"{kernel.op}_{kernel.types}_{kernel.isa}" and kernel.layout == "n16k4"
        for layout, size in itertools.product(("", "n16k4"), (1, 4096)):
            cost = kernel.judge(Problem("gemm", kernel.types, size, size, size, layout), ANY)
            assert cost == pytest.approx(1e6 + 2 * size**3 / 100)
        assert "n8k8" in kernel.judge(Problem("gemm", kernel.types, 1, 1, 1, "n8k8"), ANY)
        assert "conv" in kernel.judge(Problem("conv", kernel.types, 1, 1, 1), ANY)
        assert "u8s4s32" in kernel.judge(Problem("gemm", "u8s4s32", 1, 1, 1), ANY)


@pytest.mark.parametrize("kernel", GEMM, ids=lambda k: k.name)
def test_run(kernel):
    names = {"u8": "uint8", "s8": "int8"}
    ta, tb = names[kernel.types[:2]], names[kernel.types[2:4]]
    rng = random.Random(73)
    a = randints(rng, (2, 3, 4, 5), *LIMITS[ta], ta)
    b = randints(rng, (2, 3, 5, 6), *LIMITS[tb], tb)
    za = np.broadcast_to(np.array(LIMITS[ta][1], np.int32), (2, 3, 4))
    zb = randints(rng, (2, 3, 6), *LIMITS[tb], np.int32)
    for a_zero, b_zero, packed in itertools.product((None, za), (None, zb), (False, True)):
        buffer = np.full((2, 3, 6, 8), 12345, np.int32)
        out = buffer.transpose(0, 1, 3, 2)[:, :, ::2]  # strided both ways
        kernel.run(a, Packed(b[1, 2]) if packed else b, out, a_zero, b_zero)
        assert (buffer[..., 1::2] == 12345).all()
        for i, j in np.ndindex(2, 3):
            rows = (lambda r: 0) if a_zero is None else za[i, j].tolist().__getitem__
            columns = (lambda c: 0) if b_zero is None else zb[i, j].tolist().__getitem__
            weights = b[1, 2] if packed else b[i, j]
            assert out[i, j].tolist() == product(a[i, j].tolist(), weights.tolist(), rows, columns)
