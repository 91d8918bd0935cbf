"""The rules of docs/arithmetic.md in NumPy: slow, plain, never optimised. Every other backend must give these bits.

Read it beside the specification: each function names the rule (A1 … A12) that it is; those of codes and accumulators
are in _reference_codes.py, those of products in _reference_products.py, their rows here. NumPy arrays come in, new
arrays go out, nothing is kept. Arguments are assumed valid: the ops check them, in the user's words, before anything
runs. Scales and zero points are scalars or arrays. Those "of a row" have the shape of the result without its last
axis, those "of a column" the length of its last axis.
"""

# ruff: noqa: F403, F405
# All of both halves is this module's.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qkernels.backends._reals import REALS, reads, writes
from qkernels.backends._reference_codes import *
from qkernels.backends._reference_products import *
from qkernels.backends._reference_products import _is_integer
from qkernels.epilogue import Epilogue
from qkernels.kernel import Conv, Hardware, Kernel, Multipliers, Problem, Scales
from qkernels.scales import placed

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
_GROUPED = (("u4", "n16k4x2"), ("u2", "n16k4x4"), ("u8", "n16k4x1"), ("s8", "n16k4x1"))
KERNELS: tuple[Kernel, ...] = (
    *(_row("gemm", f"{a}{w}s32", _run, "n16k4") for a in ("u8", "s8") for w in ("u8", "s8")),
    *(_row("linear", f"{a}{w}s32", _run_linear, "n16k4") for a in ("u8", "s8", "f32") for w in ("u8", "s8")),
    *(_row("conv", f"{a}{w}s32", _run_conv, "n16k4") for a in ("u8", "s8") for w in ("u8", "s8")),
    *(
        _row("linear", f"{a}{w}{acc}", _run_groups, layout)
        for w, layout in _GROUPED
        for acc in ("f32", "s32")
        if w[1] != "8" or acc == "f32"
        for a in ("u8", "s8", "f32")
    ),
    *(_row("weight_only", f"{x}{w}f32", _run_floats, layout) for w, layout in _GROUPED for x in ("f32", "bf16")),
    *(_row("quantize", real + q, reads(real, _run_quantize)) for q in _CODES for real in REALS),
    *(_row("dequantize", q + real, writes(real, _run_dequantize)) for q in _CODES for real in REALS),
    *(_row("dynamic_quantize", real + q, reads(real, _run_dynamic)) for q in _CODES[:2] for real in REALS),
    *(_row("requantize", f"s32{q}", _run_requantize) for q in _CODES),
)
