"""What conv1d, conv2d and conv3d share: arguments checked once → a geometry → a kernel."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from qkernels import dispatch, verbose
from qkernels.arrays import as_array, is_torch
from qkernels.bounds import K_BOUND_ZERO, sign_of
from qkernels.conv_weight import PackedConv
from qkernels.dtypes import bits_of, name_of
from qkernels.epilogue import Epilogue
from qkernels.geometry import conv_of, numbers
from qkernels.kernel import Conv, Kernel, Problem
from qkernels.tensor import QTensor

LAYOUTS = {1: ("NWC", "NCW"), 2: ("NHWC", "NCHW"), 3: ("NDHWC", "NCDHW")}
S32 = np.dtype(np.int32)


class Layout(NamedTuple):
    """The order of axes that the user named, and the way from it to channels last and back."""

    name: str
    axes: int

    @property
    def channels_last(self) -> bool:
        return self.name.endswith("C")

    @property
    def inward(self) -> tuple[int, ...]:
        """Axes of an image, or of a weight, in the order batch (or filters), …, channels."""
        rank = self.axes + 2
        return tuple(range(rank)) if self.channels_last else (0, *range(2, rank), 1)

    @property
    def outward(self) -> tuple[int, ...]:
        rank = self.axes + 2
        return tuple(range(rank)) if self.channels_last else (0, rank - 1, *range(1, rank - 1))


class Operands(NamedTuple):
    """The integers of a convolution, checked, in three axes and channels last."""

    x: np.ndarray  # (batch, depth, height, width, channels), any strides
    w: Any  # (filters, depth, height, width, channels of a group), or a PackedConv of it
    x_zero: int
    w_zero: np.ndarray | None  # int32 (filters,)
    x_scale: np.ndarray | None  # float32 (1,); None of plain integers
    w_scale: np.ndarray | None  # float32 (filters,), of `w_scales` that were given; None likewise
    w_scales: int
    conv: Conv

    def problem(self) -> Problem:
        conv = self.conv
        layout = self.w.layout if isinstance(self.w, PackedConv) else ""
        types = f"{sign_of(self.x.dtype)}{sign_of(self.w.dtype)}s32"
        k = conv.taps * (conv.channels // conv.groups)
        return Problem("conv", types, conv.pixels, conv.filters, k, layout, conv=conv)


def layout_of(op: str, layout: Any, axes: int) -> Layout:
    if layout not in LAYOUTS[axes]:
        raise ValueError(f"{op}: layout={layout!r}, wanted {' or '.join(map(repr, LAYOUTS[axes]))}")
    return Layout(layout, axes)


# ---------------------------------------------------------------- operands


def codes_of(op: str, name: str, x: Any) -> tuple[np.ndarray, Any, Any]:
    """(8-bit integers, scale and zero point of a QTensor, else None and None)."""
    if isinstance(x, QTensor):
        if bits_of(x.dtype) > 8:
            raise TypeError(f"{op}: {name} has dtype {x.dtype}, wanted codes of at most 8 bits")
        return x._plain(), x._scale, x._zero
    if isinstance(x, np.ndarray) or is_torch(x) or not hasattr(x, "shape"):
        array = as_array(x, op, name)
        if array.dtype in (np.int8, np.uint8):
            return array, None, None
        found = name_of(array.dtype)
    else:
        found = type(x).__name__
    raise TypeError(f"{op}: {name} is {found}, wanted int8 or uint8, or a QTensor (qkernels.quantize makes one)")


def weight_of(op: str, weight: Any, layout: Layout, groups: int) -> tuple[Any, tuple[int, ...], Any, Any]:
    """(plain weights of three axes or a PackedConv, their shape with channels last, scale, zero point)."""
    if isinstance(weight, QTensor):
        weight = packed_once(op, weight, layout, groups)
    if isinstance(weight, PackedConv):
        if weight.groups != groups or weight._axes != layout.inward:
            packed_for = f"channels {'last' if weight._axes[1] == 1 else 'first'}"
            raise ValueError(
                f"{op}: weight of shape {weight.shape} was packed for {packed_for} and groups={weight.groups}, not for "
                f"layout={layout.name!r} and groups={groups}"
            )
        return weight, tuple(weight.shape[axis] for axis in layout.inward), weight.scale, weight.zero_point
    codes, _, _ = codes_of(op, "weight", weight)
    plain = three_axes(op, codes, layout)
    return plain, (plain.shape[0], *plain.shape[4 - layout.axes :]), None, None


def three_axes(op: str, codes: np.ndarray, layout: Layout) -> np.ndarray:
    """Plain weights as kernels take them."""
    if codes.ndim != layout.axes + 2:
        raise ValueError(
            f"{op}: weight has shape {codes.shape}, wanted {layout.axes + 2} axes: "
            f"({'out, …, in/groups' if layout.channels_last else 'out, in/groups, …'}) for layout={layout.name!r}"
        )
    plain = codes.transpose(layout.inward)
    return plain.reshape(plain.shape[0], *(1,) * (3 - layout.axes), *plain.shape[1:])


def pack_weight(op: str, weight: Any, layout: Layout, groups: int) -> PackedConv:
    """Plain integers or a QTensor, packed."""
    codes, _, zero = codes_of(op, "weight", weight)
    plain = np.ascontiguousarray(three_axes(op, codes, layout))
    if plain.shape[0] % groups:
        raise ValueError(f"{op}: {plain.shape[0]} filters do not divide by groups={groups}: weight has {codes.shape}")
    if 0 in plain.shape:
        raise ValueError(f"{op}: weight of shape {codes.shape} is empty; pass it as it is")
    if isinstance(weight, QTensor) and (weight.group_size is not None or weight._grain.axes not in ((), (0,))):
        raise ValueError(f"{op}: weight has scales by {weight._grain}; axis=0 or axis=None would fit")
    zeros = None if zero is None else w_zero_of(op, 0, plain.dtype, zero, plain.shape[0])
    flat = layout.axes < 3 and groups == plain.shape[0] > 1 and plain.shape[-1] == 1
    packed = dispatch.pack_conv_weights(plain, groups, zeros, flat)
    packed.shape, packed._axes = tuple(codes.shape), layout.inward  # type: ignore[assignment]
    packed._rest = _parts(weight)[1:] if isinstance(weight, QTensor) else None
    return packed


def packed_once(op: str, weight: QTensor, layout: Layout, groups: int) -> Any:
    """The weight, packed at its first use and remembered: nothing in it can change."""
    if weight.size == 0:
        return weight._plain()
    found = weight._packed
    if not isinstance(found, PackedConv) or found.groups != groups or found._axes != layout.inward:
        found = pack_weight(op, weight, layout, groups)
        object.__setattr__(weight, "_packed", found)
    return found


def _parts(q: QTensor) -> tuple:
    return (q._data, q._scale, q._zero, q.dtype, q._grain, q._scale_dtype, q._factors, q._library)


def check(
    op: str,
    axes: int,
    x: Any,
    weight: Any,
    layout: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    x_zero: Any,
    w_zero: Any,
) -> tuple[Operands, Layout]:
    """The call, as kernels take it."""
    order = layout_of(op, layout, axes)
    (count,) = numbers(op, "groups", groups, 1, 1)
    codes, x_scale, own_zero = codes_of(op, "x", x)
    w, w_shape, w_scale, own_w_zero = weight_of(op, weight, order, count)
    if codes.ndim != axes + 2:
        raise ValueError(f"{op}: x has shape {codes.shape}, wanted {axes + 2} axes for layout={order.name!r}")
    if isinstance(x, QTensor) and (x.group_size is not None or x._grain.axes):
        raise ValueError(f"{op}: x has scales by {x._grain}; only axis=None would fit")
    image = codes.transpose(order.inward)
    steps, gaps = numbers(op, "stride", stride, axes, 1), numbers(op, "dilation", dilation, axes, 1)
    _check_channels(op, codes.shape, weight, image.shape[-1], w_shape, count, order)
    conv = conv_of(op, image.shape, w_shape, count, steps, padding, gaps)
    zero = _x_zero(op, x_zero, codes.dtype, own_zero)
    zeros = w_zero_of(op, w_zero, w.dtype, own_w_zero, conv.filters)
    cube = image.reshape(image.shape[0], *conv.size, conv.channels)
    if (x_scale is None) != (w_scale is None):
        bare = "x" if x_scale is None else "weight"
        raise TypeError(f"{op}: {bare} is plain integers and the other a QTensor: give both a scale, or neither")
    one = None if x_scale is None else np.ascontiguousarray(x_scale, np.float32).reshape(1)
    every, scales = None, 0
    if w_scale is not None:
        scales = w_scale.size
        every = np.ascontiguousarray(np.broadcast_to(w_scale.reshape(-1), (conv.filters,)), np.float32)
    return Operands(cube, w, zero, zeros, one, every, scales, conv), order


def _check_channels(
    op: str, x_shape: Any, weight: Any, channels: int, w_shape: tuple[int, ...], groups: int, order: Layout
) -> None:
    shapes = f"x has shape {tuple(x_shape)}, weight {tuple(weight.shape)}, layout={order.name!r}"
    if channels % groups:
        raise ValueError(f"{op}: {channels} channels do not divide by groups={groups}: {shapes}")
    if w_shape[0] % groups:
        raise ValueError(f"{op}: {w_shape[0]} filters do not divide by groups={groups}: {shapes}")
    if channels // groups != w_shape[-1]:
        of = "in/groups" if groups > 1 else "in"
        raise ValueError(
            f"{op}: x has {channels} channels, weight has {of} = {w_shape[-1]} for groups={groups}: {shapes} means "
            f"{'(n, …, c) and (out, …, in/groups)' if order.channels_last else '(n, c, …) and (out, in/groups, …)'}"
        )
    if 0 in w_shape[1:-1]:
        raise ValueError(f"{op}: the kernel is empty: {shapes}")


def _integer_zero(op: str, name: str, value: Any, dtype: np.dtype) -> np.ndarray:
    array = as_array(value, op, name)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{op}: {name} has dtype {array.dtype}, wanted integers")
    limits = np.iinfo(dtype)
    if array.size and (array.min() < limits.min or array.max() > limits.max):
        bad = int(array.min() if array.min() < limits.min else array.max())
        raise ValueError(f"{op}: {name}={bad} is outside of {dtype} ({limits.min}…{limits.max})")
    return array


def _x_zero(op: str, given: Any, dtype: np.dtype, own: Any) -> int:
    array = _integer_zero(op, "x_zero_point", given, dtype)
    if array.size != 1:
        raise ValueError(f"{op}: x_zero_point has shape {array.shape}, wanted a scalar")
    value = int(array.reshape(()))
    if own is None:
        return value
    if value:
        raise TypeError(f"{op}: x_zero_point goes with plain integers; a QTensor has a zero_point of its own")
    return int(own)


def w_zero_of(op: str, given: Any, dtype: np.dtype, own: Any, filters: int) -> np.ndarray | None:
    array = _integer_zero(op, "w_zero_point", given, dtype)
    if own is not None:
        if array.any():
            raise TypeError(f"{op}: w_zero_point goes with plain integers; a QTensor has a zero_point of its own")
        array = np.asarray(own)
    if array.size != 1 and array.shape != (filters,):
        raise ValueError(f"{op}: w_zero_point has shape {array.shape}, wanted a scalar or ({filters},)")
    if not array.any():
        return None
    return np.ascontiguousarray(np.broadcast_to(array.reshape(-1), (filters,)), np.int32)


# ---------------------------------------------------------------- bounds


def check_bound(op: str, call: Operands, bias: Any) -> None:
    """Raise ValueError where an accumulator may leave int32 (A2)."""
    conv = call.conv
    k = conv.taps * (conv.channels // conv.groups)
    largest = 0 if bias is None or not bias.size else int(np.abs(bias.astype(np.int64)).max())
    if k <= K_BOUND_ZERO and 255 * 255 * k + largest < 2**31:
        return
    limits = np.iinfo(call.x.dtype)
    reach = max(limits.max - call.x_zero, call.x_zero - limits.min)
    plain = call.w if isinstance(call.w, np.ndarray) else call.w.unpack_nhwc()
    zero = np.int64(0) if call.w_zero is None else call.w_zero.astype(np.int64).reshape(-1, 1, 1, 1, 1)
    sums = np.abs(plain.astype(np.int64) - zero).sum(axis=(1, 2, 3, 4))
    worst = reach * sums + (0 if bias is None else np.abs(bias.astype(np.int64)))
    if worst.size and worst.max() >= 2**31:
        at = int(worst.argmax())
        raise ValueError(
            f"{op}: k={k} (taps · channels of a group) could overflow int32: filter {at} reaches {reach} · {sums[at]}"
            f"{'' if bias is None else ' + bias'} ≥ 2³¹"
        )


# ---------------------------------------------------------------- running


def adjacent(x: np.ndarray) -> np.ndarray:
    """x with its channels adjacent: itself, or a copy."""
    return x if x.strides[-1] == 1 or x.shape[-1] == 1 else np.ascontiguousarray(x)


def compute(call: Operands, by: Epilogue, out: np.ndarray) -> Kernel | None:
    """out (pixels, filters) = the convolution and what follows it, by the kernel that is returned."""
    if out.size == 0:  # A13: no kernel is asked
        return None
    empty = 0 in (*call.conv.size, call.conv.channels)
    if empty:  # nothing is summed: one pixel, met by no weight, says so to kernels
        ones = (1, 1, 1)
        conv = Conv(call.conv.batch, ones, 1, call.conv.filters, ones, ones, ones, (0, 0, 0), call.conv.out, 1)
        x, w = (np.zeros((n, *ones, 1), a.dtype) for n, a in ((conv.batch, call.x), (conv.filters, call.w)))
        call, by = call._replace(x=x, w=w, conv=conv, x_zero=0, w_zero=None), by._replace(w_zero=None)
    problem = call.problem()
    kernel: Kernel = dispatch.choose(problem)
    weights: Any = call.w if isinstance(call.w, PackedConv) else np.ascontiguousarray(call.w)
    verbose.timed(kernel, problem, kernel.run, adjacent(call.x), weights, call.conv, out, call.x_zero, by)
    return None if empty else kernel
