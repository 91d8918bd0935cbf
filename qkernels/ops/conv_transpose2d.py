"""conv_transpose2d: the convolution that spreads pixels, as stride × stride ordinary ones, without a zero inserted.

Output pixel o of an axis receives x[i]·w[t] where o = i·stride + t·dilation − pad. Outputs of one residue mod stride
meet every stride-th tap or so, always the same ones: each residue is a convolution of its own with those taps, turned
round, and step 1; its results lie `stride` apart.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from qkernels.arrays import library_of
from qkernels.conv_weight import PackedConv
from qkernels.epilogue import Epilogue
from qkernels.geometry import MOST, numbers, pads_of
from qkernels.ops import conv as shared
from qkernels.ops import conv2d, fused
from qkernels.tensor import QTensor

OP = "conv_transpose2d"


def conv_transpose2d(
    x: Any, weight: Any, bias: Any = None, *, layout: str, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
    dilation: Any = 1, groups: int = 1, activation: Any = None, residual: Any = None, out_scale: Any = None,
    out_zero_point: Any = 0, out_dtype: Any = None, rounding: Any = "half_even", x_zero_point: Any = 0,
    w_zero_point: Any = 0, out: Any = None,
) -> Any:  # fmt: skip
    """The transposed convolution, y[o] = Σ x[i]·w[t] over i·stride + t·dilation − padding = o          A12, A2, A4 … A6

    weight          (out, kh, kw, in/groups) for layout="NHWC", as TFLite has it; (in, out/groups, kh, kw) for "NCHW",
                    as ONNX and torch have it. Plain integers or a QTensor of one scale (NHWC: or axis=0)
    padding         taken off the result: an int, (h, w) or ((top, bottom), (left, right)); the result has
                    (size − 1)·stride + dilation·(kernel − 1) + 1 − padding + output_padding pixels
    output_padding  pixels more at the bottom and right, an int or (h, w), less than stride or dilation

    All else as in `conv2d`. Source  ONNX ConvTranspose, TFLite TRANSPOSE_CONV (`rounding`).
    """
    call = _check(
        x, weight, bias, layout, stride, padding, output_padding, dilation, groups, x_zero_point, w_zero_point,
        (activation, residual, out_scale, out_zero_point, out_dtype, rounding, out),
    )  # fmt: skip
    wishes = call.done.wishes
    target = fused.room(wishes, call.done.operands.x)
    cube = target.reshape(wishes.shape)
    for phase in call.phases:
        part = cube[:, phase.rows, phase.columns]
        if part.size == 0:
            continue
        operands, by = call.of_phase(phase, wishes.shape)
        filled = np.empty((part.shape[0] * part.shape[1] * part.shape[2], part.shape[3]), target.dtype)
        shared.compute(operands, by, filled)
        part[...] = filled.reshape(part.shape)
    return conv2d.delivered(call.done, target)


class Phase(NamedTuple):
    """The outputs of one residue, and the taps that reach them."""

    rows: slice
    columns: slice
    taps: tuple[np.ndarray, np.ndarray]  # of each axis, the last first
    before: tuple[int, int]
    step: tuple[int, int]  # dilation of what is left


class _Call(NamedTuple):
    done: Any  # conv2d's call: operands, wishes, epilogue
    w: np.ndarray  # (out, kh, kw, in/groups)
    phases: list[Phase]

    def of_phase(self, phase: Phase, shape: tuple[int, ...]) -> tuple[shared.Operands, Epilogue]:
        operands, by = self.done.operands, self.done.epilogue
        taps_h, taps_w = phase.taps
        empty = not (len(taps_h) and len(taps_w))  # no tap reaches them: a tap of nothing stands in
        w = np.zeros_like(self.w[:, :1, :1]) if empty else self.w[:, taps_h][:, :, taps_w]
        counts = tuple(
            len(range(*part.indices(n))) for part, n in zip((phase.rows, phase.columns), shape[1:3], strict=True)
        )
        conv = operands.conv._replace(
            kernel=(1, *w.shape[1:3]), stride=(1, 1, 1), dilation=(1, *phase.step), before=(0, *phase.before),
            out=(1, *counts),
        )  # type: ignore[arg-type]  # fmt: skip
        if empty:
            operands, by = operands._replace(w_zero=None), by._replace(w_zero=None)
        residual = by.residual
        if residual is not None:
            cube = residual.reshape(shape)[:, phase.rows, phase.columns]
            residual = np.ascontiguousarray(cube).reshape(-1, shape[-1])
        return operands._replace(w=w[:, None], conv=conv), by._replace(residual=residual)


def _axis_phases(
    size: int, taps: int, stride: int, dilation: int, pad: int
) -> list[tuple[slice, np.ndarray, int, int]]:
    """(outputs, taps, before, step) of each residue of an axis."""
    found = []
    for residue in range(min(stride, size)):
        reaching = [t for t in range(taps) if (residue + pad - t * dilation) % stride == 0]
        # taps that reach are a step apart; input index = (o + pad − t·dilation)/stride, falling with t
        order = np.array(reaching[::-1], int)
        step = (reaching[1] - reaching[0]) * dilation // stride if len(reaching) > 1 else 1
        before = -((residue + pad - reaching[-1] * dilation) // stride) if reaching else 0
        found.append((slice(residue, size, stride), order, before, step))
    return found


def _check(
    x: Any, weight: Any, bias: Any, layout: Any, stride: Any, padding: Any, output_padding: Any, dilation: Any,
    groups: Any, x_zero: Any, w_zero: Any, wanted: tuple,
) -> _Call:  # fmt: skip
    order = shared.layout_of(OP, layout, 2)
    (count,) = numbers(OP, "groups", groups, 1, 1)
    if isinstance(padding, str):
        raise ValueError(f"{OP}: padding={padding!r}, wanted integers: libraries differ in what a name means here")
    w, w_scale, w_own = _weight(weight, order, count)
    steps, gaps = numbers(OP, "stride", stride, 2, 1), numbers(OP, "dilation", dilation, 2, 1)
    more = numbers(OP, "output_padding", output_padding, 2, 0)
    if any(m >= max(s, d) for m, s, d in zip(more, steps, gaps, strict=True)):
        raise ValueError(f"{OP}: output_padding={output_padding!r}, wanted less than stride={steps} or dilation={gaps}")
    operands = _operands(x, w, w_scale, w_own, order, gaps, count, x_zero, w_zero)
    pads = pads_of(OP, padding, operands.conv.size[1:], w.shape[1:3], steps, gaps)
    sizes = [
        max(0, (n - 1) * s + d * (k - 1) + 1 - sum(p) + m) if n else 0
        for n, k, s, d, p, m in zip(operands.conv.size[1:], w.shape[1:3], steps, gaps, pads, more, strict=True)
    ]
    shape = (operands.conv.batch, *sizes, w.shape[0])
    if np.prod(shape, dtype=object) > MOST:
        raise ValueError(f"{OP}: the result has shape {shape}, over {MOST} elements")
    axes = [_axis_phases(sizes[i], w.shape[1 + i], steps[i], gaps[i], pads[i][0]) for i in range(2)]
    phases = [
        Phase(rows, columns, (th, tw), (bh, bw), (sh, sw))
        for rows, th, bh, sh in axes[0] for columns, tw, bw, sw in axes[1]
    ]  # fmt: skip
    wishes, by = conv2d.epilogue_of(OP, operands, x, order, shape, bias, *wanted)
    shared.check_bound(OP, operands, by.bias if by.bias is not None and by.bias.dtype == np.int32 else None)
    library = x._library if isinstance(x, QTensor) else library_of(x)
    return _Call(conv2d._Call(operands, order, wishes, by, wanted[-1], library), w, phases)


def _weight(weight: Any, order: shared.Layout, groups: int) -> tuple[np.ndarray, Any, Any]:
    """(codes (out, kh, kw, in/groups), scale and zero point of the QTensor they were or None)."""
    if isinstance(weight, PackedConv):
        raise TypeError(f"{OP}: weight is a PackedConv, wanted the plain weights: each phase packs its own taps")
    codes, scale, zero = shared.codes_of(OP, "weight", weight)
    if codes.ndim != 4:
        named = "(out, kh, kw, in/groups)" if order.channels_last else "(in, out/groups, kh, kw)"
        raise ValueError(f"{OP}: weight has shape {codes.shape}, wanted 4 axes {named} for layout={order.name!r}")
    if scale is not None:
        kept = ((), (0,)) if order.channels_last else ((), (1,)) if groups == 1 else ((),)
        if weight.group_size is not None or weight._grain.axes not in kept:
            fits = " or ".join(f"axis={axes[0] if axes else None}" for axes in kept)
            raise ValueError(f"{OP}: weight has scales by {weight._grain}; {fits} would fit")
    if order.channels_last:
        return codes, scale, zero
    if codes.shape[0] % groups:
        raise ValueError(
            f"{OP}: weight has shape {codes.shape}: {codes.shape[0]} channels do not divide by groups={groups}"
        )
    inner, per, kh, kw = codes.shape
    one = codes.reshape(groups, inner // groups, per, kh, kw).transpose(0, 2, 3, 4, 1)
    return one.reshape(groups * per, kh, kw, inner // groups), scale, zero


def _operands(
    x: Any, w: np.ndarray, w_scale: Any, w_own: Any, order: shared.Layout, gaps: Any, groups: int, x_zero: Any,
    w_zero: Any,
) -> shared.Operands:  # fmt: skip
    """Those of an ordinary convolution of step 1 that meets every pixel: only its geometry changes with the phase."""
    codes, x_scale, x_own = shared.codes_of(OP, "x", x)
    if (x_scale is None) != (w_scale is None):
        bare = "x" if x_scale is None else "weight"
        raise TypeError(f"{OP}: {bare} is plain integers and the other a QTensor: give both a scale, or neither")
    for name, given, own in (("x_zero_point", x_zero, x_own), ("w_zero_point", w_zero, w_own)):
        if own is not None and np.any(np.asarray(given) != 0):
            raise TypeError(f"{OP}: {name} goes with plain integers; a QTensor has a zero_point of its own")
    zeros = (x_zero if x_own is None else x_own, w_zero if w_own is None else w_own)
    reach = tuple(gap * (k - 1) for gap, k in zip(gaps, w.shape[1:3], strict=True))
    named = w.transpose(shared.Layout(order.name, 2).outward)
    if isinstance(x, QTensor) and (x.group_size is not None or x._grain.axes):
        raise ValueError(f"{OP}: x has scales by {x._grain}; only axis=None would fit")
    operands, _ = shared.check(OP, 2, codes, named, order.name, 1, reach, gaps, groups, *zeros)
    if x_scale is None:
        return operands
    every = np.ascontiguousarray(np.broadcast_to(w_scale.reshape(-1), w.shape[:1]), np.float32)
    return operands._replace(x_scale=x_scale.reshape(1), w_scale=every, w_scales=w_scale.size)
