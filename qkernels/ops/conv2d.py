"""conv1d, conv2d, conv3d: convolutions of integers and everything that follows them, fused."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from qkernels import dispatch, verbose
from qkernels.arrays import is_torch, library_of
from qkernels.conv_weight import PackedConv
from qkernels.dtypes import container, name_of
from qkernels.epilogue import Epilogue
from qkernels.kernel import Problem
from qkernels.ops import conv as shared
from qkernels.ops import conv_on_device, fused
from qkernels.tensor import QTensor

# What plain integers are to the epilogue: accumulators of scale 1.
_BARE = {np.dtype(t): QTensor(np.empty((0,), t), 1.0) for t in (np.int8, np.uint8)}

_road = dispatch.ConvRoad(QTensor, PackedConv, enabled=not verbose.ENABLED)
_fast = _road.call


def conv2d(
    x: Any, weight: Any, bias: Any = None, *, layout: str, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, activation: Any = None, residual: Any = None, out_scale: Any = None, out_zero_point: Any = 0,
    out_dtype: Any = None, rounding: Any = "half_even", x_zero_point: Any = 0, w_zero_point: Any = 0, out: Any = None,
) -> Any:  # fmt: skip
    """y = activation(x ∗ weight + bias + residual), in one pass                          arithmetic.md A12, A2, A4 … A6

    x           (n, h, w, c) for layout="NHWC", (n, c, h, w) for "NCHW": a QTensor of 8 bits or fewer and one scale, or
                plain int8 or uint8
    weight      (out, kh, kw, in/groups) for "NHWC", (out, in/groups, kh, kw) for "NCHW": a QTensor with one scale or
                one for each filter (axis=0), packed at its first use and remembered; plain int8 or uint8; or what
                `pack_conv` made of either
    bias        (out,): int32 in units of x_scale · weight_scale, or floats (of an integer result rounded to that unit)
    layout      kernels work on NHWC; NCHW is copied there, and its result back: `explain` says how many bytes
    stride, dilation   an int, or (vertical, horizontal)
    padding     an int, (h, w), ((top, bottom), (left, right)), "valid", "same_upper" or "same_lower"; outside of the
                image stands x's zero point
    activation, residual, out_scale, out_zero_point, out_dtype, rounding, out   as in `linear`; the result is
                (n, oh, ow, out), or (n, out, oh, ow). Plain integers give int32, the accumulators (ONNX ConvInteger)
    x_zero_point, w_zero_point   of plain integers: a scalar; a scalar or (out,)

    Without curved activations every result is the same bits on every CPU, kernel and number of threads.
    A kernel that does not fit into the padded image gives an empty result.
    Raises  TypeError types · ValueError shapes (both are named), groups, strides, zero points, names, sums that could
            leave int32 · NoKernelError, with every kernel's reason. `out` is untouched when the call fails.
    Source  ONNX Runtime QLinearConv, ConvInteger; LiteRT conv and depthwise conv by `rounding`.
    """
    result = _fast(
        x, weight, bias, residual, out, layout, stride, padding, dilation, groups, activation, out_scale,
        out_zero_point, out_dtype, rounding, x_zero_point, w_zero_point,
    )  # fmt: skip
    if result is not None:
        return result
    return _convolve(
        "conv2d", 2, x, weight, bias, layout, stride, padding, dilation, groups, x_zero_point, w_zero_point,
        (activation, residual, out_scale, out_zero_point, out_dtype, rounding, out),
    )  # fmt: skip


def conv1d(
    x: Any, weight: Any, bias: Any = None, *, layout: str, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, activation: Any = None, residual: Any = None, out_scale: Any = None, out_zero_point: Any = 0,
    out_dtype: Any = None, rounding: Any = "half_even", x_zero_point: Any = 0, w_zero_point: Any = 0, out: Any = None,
) -> Any:  # fmt: skip
    """`conv2d` along one axis: layout "NWC" with weight (out, kw, in/groups), "NCW" with (out, in/groups, kw)."""
    return _convolve(
        "conv1d", 1, x, weight, bias, layout, stride, padding, dilation, groups, x_zero_point, w_zero_point,
        (activation, residual, out_scale, out_zero_point, out_dtype, rounding, out),
    )  # fmt: skip


def conv3d(
    x: Any, weight: Any, bias: Any = None, *, layout: str, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1, activation: Any = None, residual: Any = None, out_scale: Any = None, out_zero_point: Any = 0,
    out_dtype: Any = None, rounding: Any = "half_even", x_zero_point: Any = 0, w_zero_point: Any = 0, out: Any = None,
) -> Any:  # fmt: skip
    """`conv2d` along three axes: layout "NDHWC" with weight (out, kd, kh, kw, in/groups), "NCDHW" with (out, in/groups,
    kd, kh, kw)."""
    return _convolve(
        "conv3d", 3, x, weight, bias, layout, stride, padding, dilation, groups, x_zero_point, w_zero_point,
        (activation, residual, out_scale, out_zero_point, out_dtype, rounding, out),
    )  # fmt: skip


class _Call(NamedTuple):
    operands: shared.Operands
    order: shared.Layout
    wishes: fused.Wishes  # of the result with channels last
    epilogue: Epilogue
    out: Any  # the user's
    library: str


def _check(op: str, axes: int, x: Any, weight: Any, bias: Any, *geometry: Any) -> _Call:
    *where, x_zero, w_zero, wanted = geometry
    layout, stride, padding, dilation, groups = where
    operands, order = shared.check(op, axes, x, weight, layout, stride, padding, dilation, groups, x_zero, w_zero)
    conv = operands.conv
    shape = (conv.batch, *conv.out[3 - axes :], conv.filters)
    wishes, by = epilogue_of(op, operands, x, order, shape, bias, *wanted)
    shared.check_bound(op, operands, by.bias if by.bias is not None and by.bias.dtype == np.int32 else None)
    library = x._library if isinstance(x, QTensor) else library_of(x)
    return _Call(operands, order, wishes, by, wanted[-1], library)


def epilogue_of(
    op: str, operands: shared.Operands, x: Any, order: shared.Layout, shape: tuple[int, ...], bias: Any,
    activation: Any, residual: Any, out_scale: Any, zero: Any, out_dtype: Any, rounding: Any, out: Any,
) -> tuple[fused.Wishes, Epilogue]:  # fmt: skip
    """What shall follow the convolution; residual and out are turned to channels last."""
    like: Any = x
    if operands.x_scale is None:
        like = _BARE[operands.x.dtype]
        given = {"activation": activation, "residual": residual, "out_scale": out_scale}
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"{op}: {name} goes with QTensors; plain integers have no scale, and give int32")
        if out_dtype is not None and name_of(out_dtype) != "int32":
            raise ValueError(f"{op}: out_dtype={name_of(out_dtype)!r} of plain integers, wanted int32 (or QTensors)")
        if bias is not None and getattr(getattr(bias, "dtype", None), "kind", "i") == "f":
            raise ValueError(f"{op}: bias of plain integers must be int32: they have no scale")
        out_dtype = "int32"
    wishes = fused.check_wishes(
        op, like, shape, bias, activation, turned(op, "residual", residual, order, shape), out_scale, zero, out_dtype,
        rounding, turned(op, "out", out, order, shape),
    )  # fmt: skip
    ones = np.ones(shape[-1], np.float32)
    x_scale = ones[:1] if operands.x_scale is None else operands.x_scale
    w_scale = ones if operands.w_scale is None else operands.w_scale
    by = fused.epilogue_of(
        wishes, x_scale, w_scale, None, operands.w_zero, weight_scales=operands.w_scales, linear=False
    )
    return wishes, by


def turned(op: str, name: str, value: Any, order: shared.Layout, shape: tuple[int, ...]) -> Any:
    """A residual, or out, with channels last; arrays are views."""
    if value is None or order.channels_last or not hasattr(value, "shape"):
        return value
    wanted = tuple(shape[axis] for axis in order.outward)
    if tuple(value.shape) != wanted:
        raise ValueError(f"{op}: {name} has shape {tuple(value.shape)}, wanted {wanted} for layout={order.name!r}")
    if not isinstance(value, QTensor):
        return value.permute(order.inward) if is_torch(value) else value.transpose(order.inward)
    if value._grain.axes or value.group_size is not None:
        raise ValueError(f"{op}: {name} has scales by {value._grain}, wanted axis=None")
    return QTensor(
        np.ascontiguousarray(value._plain().transpose(order.inward)), value._scale, value._zero, dtype=value.dtype
    )


def delivered(call: _Call, target: np.ndarray) -> Any:
    """What the caller gets of (pixels, filters)."""
    wishes, order = call.wishes, call.order
    if order.channels_last or wishes.target is not None:
        result = fused.deliver(wishes, target, call.library)
        return result if wishes.target is None else call.out
    back = np.ascontiguousarray(target.reshape(wishes.shape).transpose(order.outward))
    return fused.deliver(wishes._replace(shape=back.shape), back, call.library)


def _convolve(*arguments: Any) -> Any:
    if conv_on_device.wanted(arguments[2]):
        return conv_on_device.run(conv_on_device.check(_check, *arguments))
    key, packed = _key(*arguments), _packed_of(arguments[3])
    if key is not None and packed is not None and key in packed._ready:
        result = _again(packed._ready[key], arguments[2], arguments[-1])
        if result is not None:
            return result
    call = _check(*arguments)
    w = call.operands.w
    target = fused.room(call.wishes, call.operands.x, w if isinstance(w, np.ndarray) else None)
    kernel = shared.compute(call.operands, call.epilogue, target)
    if key is not None and isinstance(w, PackedConv):
        _remember(key, call, kernel, target, arguments)
    return delivered(call, target)


# ---------------------------------------------------------------- the same call again
# A network calls its layers with the same arguments but for the image, and checking them costs ten times what the
# kernel of a small layer takes. What was made of them stays with the packed weight, found by their values; and the last
# one of conv2d's that gives codes as well where C++ finds it by comparing (csrc/fast_conv.cpp): 1.5 µs for 6.4.

READY = 64  # kept with a weight


def _packed_of(weight: Any) -> PackedConv | None:
    found = weight._packed if type(weight) is QTensor else weight
    return found if type(found) is PackedConv else None


def _is_plain(x: Any) -> bool:
    """8-bit codes of one scale."""
    return type(x) is QTensor and x._scale.shape == () and x.dtype in ("int8", "uint8") and type(x._zero) is int


def _key(
    op: str, axes: int, x: Any, weight: Any, bias: Any, layout: Any, stride: Any, padding: Any, dilation: Any,
    groups: Any, x_zero: Any, w_zero: Any, wanted: tuple,
) -> Any:  # fmt: skip
    """All that the call is made of but codes and memory; None where that is not said so simply."""
    activation, residual, scale, zero, dtype, rounding, out = wanted
    if not _is_plain(x) or (out is not None and type(out) is not np.ndarray):
        return None
    if residual is not None:
        if not _is_plain(residual):
            return None
        residual = residual.shape, residual.dtype, residual._scale.item(), residual._zero
    if bias is not None:
        if type(bias) is not np.ndarray:
            return None
        bias = bias.dtype.str, bias.shape, bias.tobytes()
    key = (
        op, x._data.shape, x.dtype, x._scale.item(), x._zero, bias, layout, stride, padding, dilation, groups, x_zero,
        w_zero, activation, residual, scale, zero, dtype, rounding, None if out is None else out.dtype.str,
        dispatch.pattern_in_force(),
    )  # fmt: skip
    try:
        hash(key)
    except TypeError:  # a list, an array
        return None
    return key


class _Ready(NamedTuple):
    run: Any  # (image, result[, residual]) of a kernel
    target: np.dtype
    pixels: tuple[int, int]  # shape of the result as kernels write it
    wishes: fused.Wishes
    parts: tuple | None  # of the QTensor that results, behind its codes and before the library


def _remember(key: Any, call: _Call, kernel: Any, target: np.ndarray, arguments: tuple) -> None:
    """For channels last, where nothing has to be copied on the way."""
    ready, operands, w = getattr(getattr(kernel, "run", None), "ready", None), call.operands, call.operands.w
    if ready is None or not call.order.channels_last or verbose.ENABLED or not operands.x.flags.c_contiguous:
        return
    by = call.epilogue
    if by.bias is not None:  # the caller's memory, maybe, who may write there
        by = by._replace(bias=by.bias.copy())
    run = ready(operands.x, w, operands.conv, target, operands.x_zero, by)
    if run is None or call.wishes.dtype == "float64":
        return
    if len(w._ready) >= READY:
        w._ready.clear()
    wishes = call.wishes._replace(target=None, out=None, residual=None)
    plain = wishes.kind == "codes" and container(wishes.dtype).name == wishes.dtype
    parts = fused.parts_of(wishes) if plain else None
    w._ready[key] = _Ready(run, target.dtype, (operands.conv.pixels, operands.conv.filters), wishes, parts)
    if parts is not None:
        _, _, x, _, bias, *where, (activation, residual, *wanted, _) = arguments
        fixed = (*where[:5], activation, *wanted, *where[5:])
        _road.remember(w, run, x, bias, residual, fixed, wishes.shape, parts)


def _again(ready: _Ready, x: QTensor, wanted: tuple) -> Any:
    """The result, or None where a tensor needs a closer look."""
    _, residual, *_, out = wanted
    tensors = (x._data,) if residual is None else (x._data, residual._data)
    if not all(codes.flags.c_contiguous for codes in tensors):
        return None
    if out is None:
        target: Any = np.empty(ready.pixels, ready.target)
    elif (
        out.shape == ready.wishes.shape and out.flags.carray
        and not any(np.may_share_memory(out, codes) for codes in tensors)
    ):  # fmt: skip
        target = out
    else:
        return None
    ready.run(tensors[0], target, *tensors[1:])
    if out is not None:
        return out
    if ready.parts is None:
        return fused.deliver(ready.wishes, target, x._library)
    target.shape = ready.wishes.shape
    target.flags.writeable = False
    return QTensor._make(target, *ready.parts, x._library)


def _problem_of(op: str, axes: int) -> Any:
    def problem_of(
        x: Any, weight: Any, bias: Any = None, *, layout: str, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
        groups: int = 1, activation: Any = None, residual: Any = None, out_scale: Any = None, out_zero_point: Any = 0,
        out_dtype: Any = None, rounding: Any = "half_even", x_zero_point: Any = 0, w_zero_point: Any = 0,
        out: Any = None,
    ) -> Problem | str:  # fmt: skip
        arguments = (
            op, axes, x, weight, bias, layout, stride, padding, dilation, groups, x_zero_point, w_zero_point,
            (activation, residual, out_scale, out_zero_point, out_dtype, rounding, out),
        )  # fmt: skip
        if conv_on_device.wanted(x):
            return conv_on_device.check(_check, *arguments).problem()
        call = _check(*arguments)
        if 0 in call.wishes.shape or 0 in (*call.operands.conv.size, call.operands.conv.channels):
            return "nothing to compute: an empty convolution needs no kernel"
        return call.operands.problem()

    return problem_of


def note_of(x: Any, weight: Any, *args: Any, layout: str, **kwargs: Any) -> str:
    """What `explain` adds: the copies that channels first cost."""
    if layout.endswith("C") or 0 in x.shape:
        return ""
    megabytes = float(np.prod(tuple(x.shape), dtype=np.float64)) / 2**20
    return f"layout {layout}: x is copied to channels last ({megabytes:.2f} MiB), and the result back"


for _function, _axes in ((conv1d, 1), (conv2d, 2), (conv3d, 3)):
    _function.problem_of = _problem_of(_function.__name__, _axes)  # type: ignore[attr-defined]
    _function.note_of = note_of  # type: ignore[attr-defined]
