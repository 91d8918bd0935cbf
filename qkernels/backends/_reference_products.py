"""Products of the reference and what follows them: A6, A10 … A12. reference.py says how to read it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qkernels.backends._reference_codes import (
    F32,
    F64,
    S32_MAX,
    S32_MIN,
    S64,
    Array,
    Real,
    _of_rows,
    accumulate,
    cast,
    clamp_codes,
    limits,
    matmul,
    multiplier,
    requantize,
    round_half_away,
    round_half_even,
    scaled32,
    widen,
    wrap32,
)

Clamp = tuple[float, float]
Activation = str | Clamp

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
