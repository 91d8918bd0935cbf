"""The rules of docs/arithmetic.md in NumPy: slow, plain, never optimised. Every other backend must give these bits.

Read it beside the specification: each function names the rule (A1 … A12) that it is. NumPy arrays come in, new arrays
go out, nothing is kept. Arguments are assumed valid: the ops check them, in the user's words, before anything runs.
Scales and zero points are scalars or arrays. Those "of a row" have the shape of the result without its last axis,
those "of a column" the length of its last axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from qkernels.epilogue import Epilogue
from qkernels.kernel import Conv, Hardware, Kernel, Multipliers, Problem, Scales
from qkernels.scales import placed

F32, F64, S32, S64 = np.float32, np.float64, np.int32, np.int64
S32_MIN, S32_MAX = -(2**31), 2**31 - 1

Array = np.ndarray
Real = Any  # a number, or an array of them
Clamp = tuple[float, float]
Activation = str | Clamp

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


# ------------------------------------------------------------------------------------------------- A6: the fused order


def clamp_float(x: Array, low: Real, high: Real) -> Array:
    """A6. low if x < low, high if x > high, else x itself: so NaN stays NaN, and −0 stays −0 under relu."""
    return np.where(x < F32(low), F32(low), np.where(x > F32(high), F32(high), x))


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


_erfc = np.vectorize(math.erfc, otypes=[F64])
_CLAMPS: dict[str, Clamp] = {"relu": (0.0, math.inf), "relu6": (0.0, 6.0)}
_CURVES: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: 0.5 * x * _erfc(-x / math.sqrt(2)),
    # 0.5·x·(1 + tanh u) = x·sigmoid(2u), without the cancellation at x → −∞
    "gelu_tanh": lambda x: x * _sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)),
    "silu": lambda x: x * _sigmoid(x),
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
}


def activate(x: Array, activation: Activation | None) -> Array:
    """A6. float32 → float32. Clamps are exact; the curves are float64 rounded once, for others to be compared with."""
    if activation is None:
        return x
    if isinstance(activation, str) and activation in _CURVES:
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            return _CURVES[activation](x.astype(F64)).astype(F32)
    return clamp_float(x, *(_CLAMPS[activation] if isinstance(activation, str) else activation))


def clamp_of(activation: Activation | None, sy: Real, zero_point: Real, rounding: str) -> tuple[Array, Array] | None:
    """A6. The integer bounds zy + round(f32(a)/f32(sy)) of a clamp; a bound beyond s32 saturates to s32 first."""
    if activation is None:
        return None
    bounds = _CLAMPS[activation] if isinstance(activation, str) else activation
    codes = []
    for bound in bounds:
        with np.errstate(over="ignore"):
            t = F32(bound) / widen(sy)
        rounded = np.rint(t) if rounding == "half_even" else round_half_away(t)
        codes.append(np.clip(rounded.astype(F64), S32_MIN, S32_MAX).astype(S64) + zero_point)
    return codes[0], codes[1]


def add_bias(acc: Array, bias: Real) -> Array:
    """A2. An s32 bias of a column belongs to the accumulator, mod 2³²."""
    return wrap32(acc.astype(S64) + np.asarray(bias, S64))


def bias_codes(bias: Real, sa: Real, sw: Real) -> Array:
    """A6. A float bias of a column in units of sa·sw: rint(f32(bias / f32(sa·sw))). It differs by row where sa does."""
    with np.errstate(over="ignore"):
        t = widen(bias) / (_of_rows(widen(sa)) * widen(sw))
    return np.clip(np.rint(t).astype(F64), S32_MIN, S32_MAX).astype(S64)


def _is_integer(x: Real) -> bool:
    return np.issubdtype(np.asarray(x).dtype, np.integer)


def finish_float(
    y: Array, bias: Real = None, residual: Real = None, activation: Activation | None = None, dtype: Any = "float32"
) -> Array:
    """A6. float32 y, + float bias of a column, + residual, activation, cast, each step rounded."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        if bias is not None:
            y = y + widen(bias)
        if residual is not None:
            y = y + widen(residual)
    return cast(activate(y, activation), dtype)


def linear_float(
    acc: Array,
    sa: Real,
    sw: Real,
    bias: Real = None,
    residual: Real = None,
    activation: Activation | None = None,
    dtype: Any = "float32",
) -> Array:
    """A6, float output: f32(f32(acc)·f32(sa_i·sw_j)), then `finish_float`. An s32 bias is added to acc instead."""
    if bias is not None and _is_integer(bias):
        acc, bias = add_bias(acc, bias), None
    with np.errstate(over="ignore", under="ignore"):
        c = _of_rows(widen(sa)) * widen(sw)
    return finish_float(scaled32(acc, c), bias, residual, activation, dtype)


def linear_integer(
    acc: Array,
    sa: Real,
    sw: Real,
    sy: Real,
    zero_point: Real = 0,
    dtype: Any = "int8",
    rounding: str = "half_even",
    bias: Real = None,
    residual: tuple[Array, Real, Real] | None = None,
    activation: Activation | None = None,
    *,
    linear: bool = True,
) -> Array:
    """A6, integer output: bias into acc, A5, + residual (codes, scale, zero point), + zy, the activation's clamp.

    linear: the op is `linear`, not a convolution (A4).
    """
    if bias is not None:
        acc = add_bias(acc, bias if _is_integer(bias) else bias_codes(bias, sa, sw))
    clamp = clamp_of(activation, sy, zero_point, rounding)
    m = multiplier(_of_rows(sa), sw, sy, rounding, linear=linear)
    if residual is None:
        return requantize(acc, m, zero_point, dtype, rounding, clamp)
    t = add_residual(scaled32(acc, m), *residual, sy)
    qmin, qmax = limits(dtype)
    return clamp_codes(round_half_even(t, qmin - zero_point, qmax - zero_point) + zero_point, dtype, clamp)


def add_residual(t: Array, r: Array, sr: Real, zr: Real, sy: Real) -> Array:
    """A6. t' = f32(t + u), u = f32(f32(r − zr) · f32(sr/sy)): the residual joins before the only rounding."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        u = (r.astype(S64) - zr).astype(F32) * (widen(sr) / widen(sy))
        return np.asarray(t + u)


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


# ------------------------------------------------------------------------------------------------ A10: grouped weights


def fma32(a: Real, b: Real, c: Real) -> Array:
    """A10. f32(a·b + c) with a single rounding, as the hardware's fma.

    In float64 the product of two float32 is exact; the sum is not. Rounding it to nearest and then to float32 would
    round twice, so it is rounded to odd instead (Boldo and Melquiond 2008): two-sum finds the error, and an even
    inexact sum moves one place towards it. 53 ≥ 24 + 2 bits make the second rounding the only one that shows.
    """
    a, b, c = (np.asarray(v, F32).astype(F64) for v in (a, b, c))
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        product = a * b
        total = np.asarray(product + c)
        c_seen = total - product
        error = (product - (total - c_seen)) + (c - c_seen)
        even = (total.view(S64) & 1) == 0
        towards = np.where(error > 0, np.inf, -np.inf)
        move = np.isfinite(total) & (error != 0) & even
        return np.where(move, np.nextafter(total, towards), total).astype(F32)


def groups_of(k: int, group_size: int) -> list[slice]:
    """A10. k ∈ [g·G, (g+1)·G); the last may be short."""
    return [slice(start, min(start + group_size, k)) for start in range(0, k, group_size)]


def grouped_matmul(a: Array, b: Array, scale: Array, group_size: int, a_zero: Real = 0, b_zero: Real = 0) -> Array:
    """A10. y = fma(f32(acc_g), s[g], y), g ascending, from y = 0: float32. `grouped_linear` follows.

    a (…, m, k); b (k, n); scale (groups, n); b_zero scalar or (groups, n).
    """
    k, n = b.shape
    scale, zeros = widen(scale), np.broadcast_to(b_zero, (len(groups_of(k, group_size)), n))
    y = np.zeros((*a.shape[:-1], n), F32)
    for g, part in enumerate(groups_of(k, group_size)):
        acc = matmul(a[..., part], b[part], a_zero, zeros[g])
        y = fma32(acc.astype(F32), scale[g], y)
    return y


def grouped_linear(
    y: Array,
    sa: Real,
    bias: Real = None,
    residual: Real = None,
    activation: Activation | None = None,
    dtype: Any = "float32",
) -> Array:
    """A10. What follows `grouped_matmul`: f32(y·sa_i), then `finish_float`. The bias is float: s32 has no unit."""
    with np.errstate(over="ignore", under="ignore"):
        return finish_float(y * _of_rows(widen(sa)), bias, residual, activation, dtype)


def two_level_matmul(a: Array, b: Array, factors: Array, group_size: int, a_zero: Real = 0, b_zero: Real = 0) -> Array:
    """A10. Scales s[g,j] = c[j]·i[g,j], i = factors (groups, n) in 1 … 16: acc = Σ_g i·acc_g, mod 2³², in int32.

    A5 and A6 follow with c in the place of sw.
    """
    k, n = b.shape
    zeros = np.broadcast_to(b_zero, factors.shape)
    acc = np.zeros((*a.shape[:-1], n), S64)
    for g, part in enumerate(groups_of(k, group_size)):
        acc += factors[g].astype(S64) * accumulate(a[..., part], b[part], a_zero, zeros[g])
    return wrap32(acc)


# ---------------------------------------------------------------------------------------------------- A11: weight-only


def weight_only(x: Array, q: Array, scale: Real, zero_point: Real = 0, group_size: int | None = None) -> Array:
    """A11. What float kernels are compared with: x (…, k) times s·(q − z) (k, n) in float64.

    With a group_size, scale and zero_point are (groups, n); else of a column.
    """
    if group_size is not None:
        groups = -(-q.shape[0] // group_size)
        scale, zero_point = (
            np.repeat(np.broadcast_to(v, (groups, q.shape[1])), group_size, axis=0)[: q.shape[0]]
            for v in (scale, zero_point)
        )
    w = widen(scale).astype(F64) * (q.astype(S64) - np.asarray(zero_point, S64))
    return widen(x).astype(F64) @ w


# ---------------------------------------------------------------------------------------------------- A12: convolution

Pads = tuple[tuple[int, int], tuple[int, int]]  # (top, bottom), (left, right)


def conv_size(size: int, kernel: int, stride: int = 1, pads: tuple[int, int] = (0, 0), dilation: int = 1) -> int:
    """A12. ⌊(H + p_top + p_bottom − dil·(kh−1) − 1)/stride⌋ + 1, or 0 where the kernel does not fit at all."""
    return max(0, (size + sum(pads) - dilation * (kernel - 1) - 1) // stride + 1)


def same_pads(size: int, kernel: int, stride: int, dilation: int, upper: bool) -> tuple[int, int]:
    """A12. The padding that makes ⌈size/stride⌉ outputs; the odd one at the end (upper), or at the start."""
    total = max(0, (-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size)
    small, large = total // 2, total - total // 2
    return (small, large) if upper else (large, small)


def conv_pads(
    padding: Any,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int] = (1, 1),
    dilation: Sequence[int] = (1, 1),
) -> Pads:
    """A12. Any padding a user can write, as ((top, bottom), (left, right))."""
    if padding == "valid":
        padding = 0
    if isinstance(padding, str):
        height, width = (
            same_pads(size[i], kernel[i], stride[i], dilation[i], padding == "same_upper") for i in range(2)
        )
        return height, width
    by_axis = (padding, padding) if isinstance(padding, int) else padding
    height, width = ((p, p) if isinstance(p, int) else (p[0], p[1]) for p in by_axis)
    return height, width


def conv2d(
    x: Array,
    w: Array,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: Any = 0,
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    x_zero: int = 0,
    w_zero: Real = 0,
    bias: Real = 0,
) -> Array:
    """A12. x (batch, h, w, c), w (out, kh, kw, c/groups) → (batch, oh, ow, out) int32, mod 2³².

    w_zero and bias are scalars or (out,). A tap outside the image reads x_zero, so it adds nothing.
    """
    (batch, height, width, _), (out_channels, kh, kw, depth) = x.shape, w.shape
    pads = conv_pads(padding, (height, width), (kh, kw), stride, dilation)
    oh = conv_size(height, kh, stride[0], pads[0], dilation[0])
    ow = conv_size(width, kw, stride[1], pads[1], dilation[1])
    acc = np.zeros((batch, oh, ow, out_channels), S64)
    if acc.size == 0:
        return wrap32(acc)
    image = np.pad(x.astype(S64) - x_zero, ((0, 0), *pads, (0, 0)))
    taps = w.astype(S64) - np.asarray(w_zero, S64).reshape(-1, 1, 1, 1)
    filters = out_channels // groups
    for g in range(groups):
        outputs, inputs = slice(g * filters, (g + 1) * filters), slice(g * depth, (g + 1) * depth)
        for i, j in np.ndindex(kh, kw):
            rows = dilation[0] * i + stride[0] * np.arange(oh)
            columns = dilation[1] * j + stride[1] * np.arange(ow)
            acc[..., outputs] += image[:, rows][:, :, columns, inputs] @ taps[outputs, i, j].T
    return wrap32(acc + np.asarray(bias, S64))


# ------------------------------------------------------------------------------------------------- the registry's rows


def _run(a: Array, b: Any, out: Array, a_zero: Array | None, b_zero: Array | None) -> None:
    plain = b if isinstance(b, np.ndarray) else b.unpack()
    out[...] = matmul(a, plain, 0 if a_zero is None else a_zero, 0 if b_zero is None else b_zero)


def _run_linear(a: Array, w: Any, out: Array, by: Epilogue) -> None:
    if a.dtype == F32:
        quantized = dynamic_quantize(a)
        a, by = quantized.codes, by._replace(a_scale=quantized.scale)
    acc = matmul(a, w.unpack(), 0 if by.a_zero is None else by.a_zero, 0 if by.w_zero is None else by.w_zero)
    out[...] = finish(acc, by)


def _run_groups(a: Array, w: Any, out: Array, by: Epilogue) -> None:
    """A10, of weights whose zero points lie beside their groups. Without scales of groups the sums are integers."""
    if a.dtype == F32:
        quantized = dynamic_quantize(a)
        a, by = quantized.codes, by._replace(a_scale=quantized.scale)
    codes, zeros, a_zero = w.unsigned(), w.group_zeros(), 0 if by.a_zero is None else by.a_zero
    if w.scales is None:
        out[...] = finish(two_level_matmul(a, codes, w.group_factors(), w.group, a_zero, zeros), by)
        return
    y = grouped_matmul(a, codes, w.group_scales(), w.group, a_zero, zeros)
    residual = by.residual
    if residual is not None and _is_integer(residual):  # A9
        residual = dequantize(residual, by.residual_scale, by.residual_zero)
    y = grouped_linear(y, by.a_scale, by.bias, residual, by.activation, by.out)
    out[...] = y.view(np.uint16) if by.out == "bfloat16" else y


def _run_floats(x: Array, w: Any, out: Array, by: Epilogue) -> None:
    """A11."""
    scales = w.float_scales().transpose(1, 0, 2).reshape(w.groups, -1)[:, : w.shape[1]]
    y = weight_only(x, w.unsigned(), scales, w.group_zeros(), w.group).astype(F32)
    residual = by.residual
    if residual is not None and _is_integer(residual):  # A9
        residual = dequantize(residual, by.residual_scale, by.residual_zero)
    y = finish_float(y, by.bias, residual, by.activation, by.out)
    out[...] = y.view(np.uint16) if by.out == "bfloat16" else y


def finish(acc: Array, by: Epilogue) -> Array:
    """A6, from what an op has made of scales and zero points; `linear_float` and `linear_integer` begin earlier."""
    integer = by.bias is not None and _is_integer(by.bias)
    residual = by.residual
    if residual is not None and _is_integer(residual):  # A9
        residual = dequantize(residual, by.residual_scale, by.residual_zero)
    if by.is_float:
        y = linear_float(acc, by.a_scale, by.w_scale, by.bias, residual, by.activation, by.out)
        return y.view(np.uint16) if by.out == "bfloat16" else y
    acc = add_bias(acc, by.bias) if integer else acc
    if by.out == "int32":
        return acc
    M = by.m if by.e is None else np.ldexp(by.m.astype(F64), by.e - 31)  # exact; A4 turns it into the same q and e
    if residual is None:
        return requantize(acc, M, by.zero, by.out, by.rounding, by.limits)
    with np.errstate(over="ignore", invalid="ignore"):
        t = scaled32(acc, M) + residual
    low, high = by.limits
    return (round_half_even(t, low - by.zero, high - by.zero) + by.zero).astype(by.out)


def _run_conv(x: Array, w: Any, conv: Conv, out: Array, x_zero: int, by: Epilogue) -> None:
    """A12 in three axes: a sum of two-dimensional ones over the taps in depth."""
    plain = w if isinstance(w, np.ndarray) else w.unpack_nhwc()
    (_, *size), (_, *kernel), (step, *stride), (gap, *dilation), (front, *before), (_, *count) = conv[1:2] + conv[4:9]
    ends = [(count[i] - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1 - size[i] - before[i] for i in (0, 1)]
    pads = tuple((max(before[i], 0), max(ends[i], 0)) for i in (0, 1))
    rows, columns = (slice(max(-before[i], 0), size[i] - max(-ends[i], 0)) for i in (0, 1))
    total = np.zeros((conv.batch, *conv.out, conv.filters), S64)
    for od, kd in np.ndindex(conv.out[0], conv.kernel[0]):
        at = od * step + kd * gap - front
        if 0 <= at < conv.size[0]:
            total[:, od] += conv2d(
                x[:, at, rows, columns], plain[:, kd], stride=(stride[0], stride[1]), padding=pads,
                dilation=(dilation[0], dilation[1]), groups=conv.groups, x_zero=x_zero,
                w_zero=0 if by.w_zero is None else by.w_zero,
            )  # fmt: skip
    out[...] = finish(wrap32(total).reshape(out.shape), by)


def _placed(value: Array | None, by: Scales | Multipliers, x: Array) -> Array:
    everything = slice(0, x.shape[0]), slice(0, x.shape[1])
    return np.asarray(0) if value is None else placed(value, by.repeat, by.group, *everything)


def _type_of(limits: tuple[int, int]) -> str:
    return f"{'int' if limits[0] else 'uint'}{(limits[1] - limits[0]).bit_length()}"


def _run_quantize(x: Array, by: Scales, limits: tuple[int, int], out: Array) -> None:
    out[...] = quantize(x, _placed(by.scale, by, x), _placed(by.zero, by, x), _type_of(limits))


def _run_dequantize(q: Array, by: Scales, out: Array) -> None:
    out[...] = dequantize(q, _placed(by.scale, by, q), _placed(by.zero, by, q))


def _run_dynamic(x: Array, group: int, limits: Any, scale: Array, zero: Array, sums: Array | None, out: Array) -> None:
    found = dynamic_quantize(x, _type_of(limits), "row", group)
    out[...], scale[...], zero[...] = found.codes, found.scale, found.zero_point
    if sums is not None:
        sums[...] = found.sums


def _run_requantize(acc: Array, by: Multipliers, limits: tuple[int, int], out: Array) -> None:
    m, e, zero = (_placed(v, by, acc) for v in (by.m, by.e, by.zero))
    M = m if by.e is None else np.ldexp(m.astype(F64), e - 31)  # exact; A4 turns it into the same q and e
    acc = add_bias(acc, _placed(by.bias, by, acc))
    out[...] = requantize(acc, M, zero, out.dtype, by.rounding, limits)


def _row(op: str, types: str, run: Callable[..., None], layout: str = "") -> Kernel:
    def judge(problem: Problem, hardware: Hardware) -> float | str:
        if problem.op != op:
            return f"op is {problem.op}, not {op}"
        if problem.types != types:
            return f"types are {problem.types}, not {types}"
        if problem.layout.partition("/")[0] not in ("", layout):
            return f"weights are packed as {problem.layout}"
        return 1e6 + 2 * problem.m * problem.n * problem.k / 1e2  # always the last resort

    return Kernel(f"{op}_{types}_reference", op, types, "reference", layout, judge, run)


_CODES = ("s8", "u8", "s16", "u16")
KERNELS: tuple[Kernel, ...] = (
    *(_row("gemm", f"{a}{w}s32", _run, "n16k4") for a in ("u8", "s8") for w in ("u8", "s8")),
    *(_row("linear", f"{a}{w}s32", _run_linear, "n16k4") for a in ("u8", "s8", "f32") for w in ("u8", "s8")),
    *(_row("conv", f"{a}{w}s32", _run_conv, "n16k4") for a in ("u8", "s8") for w in ("u8", "s8")),
    *(
        _row("linear", f"{a}{w}{acc}", _run_groups, layout)
        for w, layout in (("u4", "n16k4x2"), ("u2", "n16k4x4"))
        for acc in ("f32", "s32")
        for a in ("u8", "s8", "f32")
    ),
    *(
        _row("weight_only", f"{x}{w}f32", _run_floats, layout)
        for w, layout in (("u4", "n16k4x2"), ("u2", "n16k4x4"))
        for x in ("f32", "bf16")
    ),
    *(_row("quantize", f"f32{q}", _run_quantize) for q in _CODES),
    *(_row("dequantize", f"{q}f32", _run_dequantize) for q in _CODES),
    *(_row("dynamic_quantize", f"f32{q}", _run_dynamic) for q in _CODES[:2]),
    *(_row("requantize", f"s32{q}", _run_requantize) for q in _CODES),
)
