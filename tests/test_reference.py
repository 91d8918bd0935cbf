"""The reference of types, accumulators and requantization against exact numbers (exact.py): A1 … A5, and its rows."""

from __future__ import annotations

import itertools
import math
import random
import struct
from fractions import Fraction

import numpy as np
import pytest
from exact import (
    INF,
    LIMITS,
    ROUNDINGS,
    SCALES,
    TWO,
    clamp,
    f32,
    fixed_point,
    frac,
    nearest,
    nearest64,
    product,
    randints,
    rounded,
    wrap,
)

from qkernels.backends import reference as ref
from qkernels.kernel import Hardware, Problem


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
