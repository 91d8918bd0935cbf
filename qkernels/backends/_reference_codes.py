"""Codes and accumulators of the reference: A1 … A5, A7 … A9. reference.py says how to read it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

F32, F64, S32, S64 = np.float32, np.float64, np.int32, np.int64
S32_MIN, S32_MAX = -(2**31), 2**31 - 1

Array = np.ndarray
Real = Any  # a number, or an array of them

# ----------------------------------------------------------------------------------------------------------- A1: types


def type_name(dtype: Any) -> str:
    """A1. "int8", "uint4", "bfloat16", …, from a name or a NumPy (or ml_dtypes) dtype."""
    return dtype if isinstance(dtype, str) else np.dtype(dtype).name


def bits_of(dtype: Any) -> int:
    """A1. The width of an integer type: "uint4" → 4."""
    return int(type_name(dtype).removeprefix("u").removeprefix("int"))


def is_signed(dtype: Any) -> bool:
    return not type_name(dtype).startswith("u")


def limits(dtype: Any) -> tuple[int, int]:
    """A1. qmin and qmax of an integer type."""
    bits = bits_of(dtype)
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if is_signed(dtype) else (0, (1 << bits) - 1)


def container(dtype: Any) -> np.dtype:
    """A1. The NumPy type that holds one code: 4- and 2-bit codes live in int8 or uint8."""
    bits = max(8, bits_of(dtype))
    return np.dtype(f"int{bits}" if is_signed(dtype) else f"uint{bits}")


def pack_bits(codes: Array, dtype: Any) -> Array:
    """A1. (…, n) codes of a 4- or 2-bit type → (…, ⌈n·bits/8⌉) uint8, lower index in lower bits, padded with 0."""
    bits = bits_of(dtype)
    per_byte = 8 // bits
    codes = np.asarray(codes)
    n = codes.shape[-1]
    packed = np.zeros((*codes.shape[:-1], -(-n // per_byte)), np.uint8)
    for i in range(n):
        field = codes[..., i].astype(np.uint8) & np.uint8((1 << bits) - 1)
        packed[..., i // per_byte] |= field << np.uint8(bits * (i % per_byte))
    return packed


def unpack_bits(packed: Array, n: int, dtype: Any) -> Array:
    """A1. The inverse of `pack_bits`: the first n codes of the last axis, two's complement where the type is signed."""
    bits = bits_of(dtype)
    per_byte = 8 // bits
    codes = np.zeros((*packed.shape[:-1], n), S64)
    for i in range(n):
        codes[..., i] = (packed[..., i // per_byte] >> np.uint8(bits * (i % per_byte))) & np.uint8((1 << bits) - 1)
    if is_signed(dtype):
        codes = np.where(codes >= 1 << (bits - 1), codes - (1 << bits), codes)
    return codes.astype(container(dtype))


def widen(x: Real) -> Array:
    """A1. float16 and bfloat16, values and scales alike, become float32 (exactly) before anything else is done."""
    return np.asarray(x).astype(F32)


def bfloat16_bits(x: Real) -> Array:
    """A1. float32 → the 16 bits of the nearest bfloat16, half to even; a NaN stays a NaN."""
    bits = np.asarray(x, F32).view(np.uint32).astype(S64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # the carry into the exponent is the wanted overflow
    quiet = (bits >> 16) | 0x0040
    return np.where(np.isnan(x), quiet, rounded).astype(np.uint16)


def cast(x: Array, dtype: Any) -> Array:
    """A1. float32 → float32, float16 or bfloat16, half to even. NumPy's bfloat16 is that of ml_dtypes."""
    if type_name(dtype) == "bfloat16":
        import ml_dtypes  # type: ignore[import-not-found, unused-ignore]

        return bfloat16_bits(x).view(ml_dtypes.bfloat16)
    with np.errstate(over="ignore"):
        return np.asarray(x, F32).astype(dtype)


# -------------------------------------------------------------------------------------------------------- broadcasting


def _of_rows(value: Real) -> Array:
    """A scalar, or (…, m), made to broadcast against (…, m, n)."""
    value = np.asarray(value)
    return value if value.ndim == 0 else value[..., :, None]


def _of_columns(value: Real) -> Array:
    """A scalar, or (…, n), made to broadcast against (…, m, n)."""
    value = np.asarray(value)
    return value if value.ndim == 0 else value[..., None, :]


def _along(value: Real, axis: int | None, ndim: int) -> Array:
    """A scalar, or (length of axis,), made to broadcast against ndim axes. Without an axis it broadcasts as it is."""
    value = np.asarray(value)
    if axis is None or value.ndim == 0:
        return value
    return value.reshape([-1 if i == axis % ndim else 1 for i in range(ndim)])


# ---------------------------------------------------------------------------------------------------- A2: accumulation


def wrap32(value: Real) -> Array:
    """A2. s64 → s32 mod 2³²."""
    return (np.asarray(value, S64) & 0xFFFFFFFF).astype(np.uint32).view(S32)


def accumulate(a: Array, b: Array, a_zero: Real = 0, b_zero: Real = 0) -> Array:
    """A2. Σ_k (a[…, i, k] − a_zero_i) · (b[…, k, j] − b_zero_j) in s64. Batches broadcast.

    Should zero points of any s32 value make s64 itself wrap, it wraps mod 2⁶⁴, and mod 2³² nothing is lost.
    """
    return np.matmul(a.astype(S64) - _of_rows(a_zero), b.astype(S64) - _of_columns(b_zero))


def matmul(a: Array, b: Array, a_zero: Real = 0, b_zero: Real = 0) -> Array:
    """A2, A3. The exact product, mod 2³², in int32; a_zero of a row, b_zero of a column."""
    return wrap32(accumulate(a, b, a_zero, b_zero))


def magnitude(dtype: Any, zero: int | None = 0) -> int:
    """A2. max |q − zero| over the codes q of a type; zero=None: over all zero points of that type too."""
    qmin, qmax = limits(dtype)
    return qmax - qmin if zero is None else max(zero - qmin, qmax - zero)


def k_bound(a_magnitude: int, b_magnitude: int) -> int:
    """A2. The largest K at which no accumulator can leave s32, whatever the codes (no bias)."""
    return S32_MAX // (a_magnitude * b_magnitude)


def columns_fit(b: Array, a_magnitude: int, b_zero: Real = 0, bias: Real = 0) -> Array:
    """A2. Per column: max|a − za| · Σ_k |b − zb| + |bias| < 2³¹, so that no activations can overflow it."""
    total = np.abs(b.astype(S64) - _of_columns(b_zero)).sum(axis=-2)
    return a_magnitude * total + np.abs(np.asarray(bias, S64)) <= S32_MAX


def float32_chunk(a_magnitude: int, b_magnitude: int) -> int:
    """Lemma 2. The largest K at which a plain float32 GEMM of integers is exact."""
    return 2**24 // (a_magnitude * b_magnitude)


# ----------------------------------------------------------------------------------------------------- A4: multipliers


def multiplier(sa: Real, sw: Real, sy: Real, rounding: str, *, linear: bool = False) -> Array:
    """A4. The real multiplier sa·sw/sy: float32 for half_even, float64 for the others. linear: the op is `linear`."""
    sa, sw, sy = widen(sa), widen(sw), widen(sy)
    with np.errstate(over="ignore", under="ignore"):
        if rounding == "half_even":
            return np.asarray((sa * sw) / sy)
        if rounding == "ruy" and linear and sw.size == 1:
            return np.asarray((sa * sw).astype(F64) / sy.astype(F64))
    return np.asarray(sa.astype(F64) * sw.astype(F64) / sy.astype(F64))


def quantized_multiplier(M: Real) -> tuple[Array, Array, Array]:
    """A4. M ≈ q · 2^(L − R − 31): (q, L, R), each s64, q in 2³⁰ … 2³¹−1, or 0."""
    fraction, exponent = np.frexp(np.asarray(M, F64))
    scaled = fraction * 2.0**31  # exact
    q = np.floor(scaled).astype(S64)
    q += scaled - q >= 0.5  # exact again: half away from zero, M > 0
    e = exponent.astype(S64)
    q, e = np.where(q == 2**31, 2**30, q), np.where(q == 2**31, e + 1, e)
    flushed, saturated = e < -31, e > 30
    q = np.where(flushed, 0, np.where(saturated, S32_MAX, q))
    e = np.where(flushed, 0, np.where(saturated, 30, e))
    return q, np.maximum(e, 0), np.maximum(-e, 0)


# -------------------------------------------------------------------------------------------------- A5: requantization


def scaled32(acc: Array, m: Real) -> Array:
    """A5. t = f32(f32(acc)·m)."""
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(np.asarray(acc).astype(F32) * np.asarray(m).astype(F32))


def round_half_even(t: Array, low: Real, high: Real) -> Array:
    """A5, A6, A7. Clamp the real t to the integers [low, high], NaN to low, then round it, half to even."""
    t = np.where(np.isnan(t), F64(low), t)  # float64 holds t, low and high exactly
    return np.rint(np.clip(t, F64(low), F64(high))).astype(S64)


def round_half_away(t: Array) -> Array:
    """A6. The nearest integer, half away from zero; exact, where adding 0.5 would round a second time."""
    whole = np.trunc(t)
    with np.errstate(invalid="ignore"):  # an infinite t
        return whole + np.copysign(np.abs(t - whole) >= 0.5, t)


def _half_even(acc: Array, scale: Array, low: Array, high: Array) -> Array:
    return round_half_even(scaled32(acc, scale), low, high)


def _gemmlowp(acc: Array, scale: Array, low: Array, high: Array) -> Array:
    q, L, R = quantized_multiplier(scale)
    v = _shift_left(acc, L) * q
    nudged = v + np.where(v >= 0, 2**30, 1 - 2**30)
    h = np.where(nudged >= 0, nudged >> 31, -(-nudged >> 31))  # truncating division
    mask = (1 << R) - 1
    remainder, threshold = h & mask, (mask >> 1) + (h < 0)
    return np.clip((h >> R) + (remainder > threshold), low, high)


def _ruy(acc: Array, scale: Array, low: Array, high: Array) -> Array:
    q, L, R = quantized_multiplier(scale)
    h = (_shift_left(acc, L) * q + 2**30) >> 31
    half = np.where(R > 0, 1 << np.maximum(R - 1, 0), 0)
    return np.clip((h + half) >> R, low, high)


def _half_up(acc: Array, scale: Array, low: Array, high: Array) -> Array:
    q, L, R = quantized_multiplier(scale)
    t = 31 - (L - R)  # 1 … 62
    return np.clip((acc * q + (S64(1) << (t - 1))) >> t, low, high)


def _half_away(acc: Array, scale: Array, low: Array, high: Array) -> Array:
    with np.errstate(over="ignore", under="ignore"):
        product = acc.astype(F64) * scale.astype(F64)
    nearest = np.trunc(product + np.copysign(0.5, acc.astype(F64)))
    return np.clip(nearest, low.astype(F64), high.astype(F64)).astype(S64)


def _shift_left(acc: Array, L: Array) -> Array:
    """A5. acc << L, saturated to s32."""
    return np.clip(acc << L, S32_MIN, S32_MAX)


ROUNDINGS: dict[str, Callable[[Array, Array, Array, Array], Array]] = {
    "half_even": _half_even,
    "gemmlowp": _gemmlowp,
    "ruy": _ruy,
    "half_up": _half_up,
    "half_away": _half_away,
}


def clamp_codes(y: Array, dtype: Any, clamp: tuple[Real, Real] | None = None) -> Array:
    """A5, A6. Integers clamped to [lo, hi], then to the type, in its container. (Lemma 1: the order is free.)"""
    if clamp is not None:
        y = np.minimum(np.maximum(y, clamp[0]), clamp[1])
    return np.clip(y, *limits(dtype)).astype(container(dtype))


def requantize(
    acc: Array,
    scale: Real,
    zero_point: Real = 0,
    dtype: Any = "int8",
    rounding: str = "half_even",
    clamp: tuple[Real, Real] | None = None,
    *,
    axis: int | None = None,
) -> Array:
    """A5. y = clamp(round(acc · scale) + zero_point): s32 accumulators → a type of at most 16 bits.

    scale is the real multiplier (A4), scalar or along `axis`; without an axis it broadcasts. So does zero_point.
    """
    acc = np.asarray(acc, S64)
    scale, zero = _along(scale, axis, acc.ndim), _along(zero_point, axis, acc.ndim).astype(S64)
    qmin, qmax = limits(dtype)
    rounded = ROUNDINGS[rounding](acc, scale, np.asarray(qmin - zero), np.asarray(qmax - zero))
    return clamp_codes(rounded + zero, dtype, clamp)


# -------------------------------------------------------------------------------------------- A7, A9: codes and values


def quantize(x: Array, scale: Real, zero_point: Real = 0, dtype: Any = "int8", *, axis: int | None = None) -> Array:
    """A7. q = rint(clamp(x/s, qmin−z, qmax−z)) + z, a true float32 division, half to even; NaN → qmin."""
    x = widen(x)
    s, z = widen(_along(scale, axis, x.ndim)), _along(zero_point, axis, x.ndim).astype(S64)
    qmin, qmax = limits(dtype)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        t = x / s
    return (round_half_even(t, qmin - z, qmax - z) + z).astype(container(dtype))


def dequantize(
    q: Array, scale: Real, zero_point: Real = 0, dtype: Any = "float32", *, axis: int | None = None
) -> Array:
    """A9. x = f32(f32(q − z)·s), then the cast."""
    q = np.asarray(q)
    s, z = widen(_along(scale, axis, q.ndim)), _along(zero_point, axis, q.ndim).astype(S64)
    with np.errstate(over="ignore", under="ignore"):
        return cast((q.astype(S64) - z).astype(F32) * s, dtype)


# -------------------------------------------------------------------------------------------- A8: dynamic quantization


class Dynamic(NamedTuple):
    """What A8 makes of x. Ranges: the tensor, its rows, or the groups of its rows."""

    codes: Array  # of x's shape
    scale: Array  # float32, one a range
    zero_point: Array  # of the codes' type, one a range; 0 for signed types
    sums: Array  # int32: the codes of every row, or of every group, added up


SMALLEST_AMAX = F32(2.0**-119)  # below it the scale would be subnormal, and 127/amax may overflow


def _unsigned_range(x: Array, dtype: Any) -> tuple[Array, np.float32, int]:
    """A8, of one range: ONNX DynamicQuantizeLinear. The range always includes 0, which is exact."""
    qmin, qmax = F32(limits(dtype)[0]), F32(limits(dtype)[1])
    finite = x[np.isfinite(x)]
    low, high = finite.min(initial=F32(0)), finite.max(initial=F32(0))
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        scale = (high - low) / qmax
        if scale == 0:  # an empty range, or a division that underflowed
            scale = F32(1)
        zero = np.rint(np.clip(F32(0) - low / scale, qmin, qmax))
        t = np.clip(np.rint(x / scale) + zero, qmin, qmax)
    codes = np.where(np.isnan(t), qmin, t).astype(container(dtype))
    return codes, scale, int(zero)


def _signed_range(x: Array, dtype: Any) -> tuple[Array, np.float32, int]:
    """A8, of one range: symmetric. The reciprocal is rounded, and so is the product: this is not A7."""
    qmax = F32(limits(dtype)[1])
    amax = np.abs(x[np.isfinite(x)]).max(initial=F32(0))
    if amax < SMALLEST_AMAX:
        return np.zeros(x.shape, container(dtype)), F32(1), 0
    scale, reciprocal = amax / qmax, qmax / amax
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        t = np.rint(np.clip(x * reciprocal, -qmax, qmax))
    return np.where(np.isnan(t), F32(0), t).astype(container(dtype)), scale, 0


def dynamic_quantize(x: Array, dtype: Any = "int8", per: str = "row", group_size: int | None = None) -> Dynamic:
    """A8. Range and codes of x. int8, int4: symmetric. uint8: the rule of ONNX, which knows per="tensor" only."""
    x = widen(x)
    one_range = _signed_range if is_signed(dtype) else _unsigned_range
    if per == "tensor":
        flat, scale, zero = one_range(x.reshape(-1), dtype)
        codes = flat.reshape(x.shape)
        sums = np.asarray(codes.sum(axis=-1, dtype=S64) if x.ndim else codes)
        return Dynamic(codes, np.asarray(scale), np.asarray(zero, codes.dtype), wrap32(sums))
    k = x.shape[-1]
    starts = [0] if group_size is None else list(range(0, k, group_size))
    codes = np.empty(x.shape, container(dtype))
    scales = np.empty((*x.shape[:-1], len(starts)), F32)
    zeros = np.empty(scales.shape, codes.dtype)
    sums = np.empty(scales.shape, S32)
    for row in np.ndindex(x.shape[:-1]):
        for g, start in enumerate(starts):
            part = slice(start, k if group_size is None else start + group_size)
            codes[row][part], scales[*row, g], zeros[*row, g] = one_range(x[row][part], dtype)
            sums[*row, g] = wrap32(codes[row][part].sum(dtype=S64))
    if group_size is None:
        scales, zeros, sums = scales[..., 0], zeros[..., 0], sums[..., 0]
    return Dynamic(codes, scales, zeros, sums)
