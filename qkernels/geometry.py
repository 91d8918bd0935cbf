"""Strides, paddings and sizes of a convolution as a user may write them, checked, as `kernel.Conv` has them (A12)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from qkernels.kernel import Conv

SAME = ("same_upper", "same_lower")
MOST = 2**31 - 1  # of any size here, so that no index of a kernel can overflow


def numbers(op: str, name: str, value: Any, axes: int, least: int) -> tuple[int, ...]:
    """An int for every axis, from one int or a sequence of `axes`."""
    given = value if isinstance(value, tuple | list | np.ndarray) else (value,) * axes
    if len(given) != axes:
        raise ValueError(f"{op}: {name}={value!r} has {len(given)} values, wanted an int or {axes} of them")
    for one in given:
        if isinstance(one, bool) or not isinstance(one, int | np.integer):
            raise TypeError(f"{op}: {name}={value!r}, wanted integers")
        if not least <= one <= MOST:
            raise ValueError(f"{op}: {name}={value!r}, wanted at least {least}")
    return tuple(int(one) for one in given)


def pads_of(
    op: str,
    padding: Any,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> tuple[tuple[int, int], ...]:
    """(before, after) of every axis."""
    axes = len(size)
    if isinstance(padding, str):
        if padding == "valid":
            return ((0, 0),) * axes
        if padding not in SAME:
            raise ValueError(f'{op}: padding={padding!r}, wanted integers, "valid", {", ".join(map(repr, SAME))}')
        found = []
        for n, k, s, d in zip(size, kernel, stride, dilation, strict=True):
            total = max(0, (-(-n // s) - 1) * s + d * (k - 1) + 1 - n)
            small, large = total // 2, total - total // 2
            found.append((small, large) if padding == "same_upper" else (large, small))
        return tuple(found)
    if isinstance(padding, tuple | list) and any(isinstance(p, tuple | list) for p in padding):
        if len(padding) != axes:
            raise ValueError(f"{op}: padding={padding!r} has {len(padding)} values, wanted one for each of {axes} axes")
        pairs = [numbers(op, "padding", p, 2, 0) for p in padding]
        return tuple((pair[0], pair[1]) for pair in pairs)
    return tuple((p, p) for p in numbers(op, "padding", padding, axes, 0))


def out_size(n: int, k: int, stride: int, dilation: int, pads: tuple[int, int]) -> int:
    """How many windows fit, with a true floor: none where the kernel does not fit at all."""
    return max(0, (n + sum(pads) - dilation * (k - 1) - 1) // stride + 1)


def conv_of(
    op: str,
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    groups: int,
    stride: tuple[int, ...],
    padding: Any,
    dilation: tuple[int, ...],
) -> Conv:
    """The geometry of x (batch, …, channels) and w (filters, …, channels of a group), whose ranks and groups fit."""
    size, kernel = x_shape[1:-1], w_shape[1:-1]
    axes = len(size)
    pads = pads_of(op, padding, size, kernel, stride, dilation)
    out = [out_size(*each) for each in zip(size, kernel, stride, dilation, pads, strict=True)]
    if math.prod((x_shape[0], *out, w_shape[0])) > MOST:
        raise ValueError(
            f"{op}: the result has shape {(x_shape[0], *out, w_shape[0])} (batch, …, channels), over {MOST} elements; "
            f"padding={padding!r}"
        )

    def three(values: Sequence[int], missing: int) -> Any:
        return (missing,) * (3 - axes) + tuple(values)

    return Conv(
        x_shape[0], three(size, 1), x_shape[-1], w_shape[0], three(kernel, 1), three(stride, 1), three(dilation, 1),
        three([before for before, _ in pads], 0), three(out, 1), groups,
    )  # fmt: skip
