"""GPU convolutions in Numba: the host's half of `_numba_cuda_conv`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qkernels.backends._cuda_conv import Filters
from qkernels.backends._numba_cuda_arrays import TYPES, _array, _constant, _kernel, _new, _zeros
from qkernels.backends._numba_cuda_epilogue import finish, finish_as_told, flat, grid_of
from qkernels.device import DeviceArray
from qkernels.kernel import Conv, Kernel


def _conv(x: Any, w: Any, conv: Conv, out: Any, *how: Any) -> None:
    """how: x_zero and an Epilogue, of plain arrays; or `fields`, as csrc/cuda's rows have it, of Filters."""
    acc = out if str(out.dtype) == "int32" else _new(out, out.shape, "int32")
    if isinstance(w, Filters):
        image = x.shaped(conv.batch, *conv.size, conv.channels)
        _sums(image, _plain(w, conv), _zeros(out, (conv.filters,)), w.pad, conv, 0, acc)
        finish_as_told(acc, out, *how)
        return
    x_zero, by = how
    w_zero = _zeros(out, (conv.filters,)) if by.w_zero is None else by.w_zero
    _sums(x, w, w_zero, _zeros(out, (1,)), conv, x_zero, acc)
    finish(acc, out, by)


def _sums(x: Any, w: Any, w_zero: Any, pad: Any, conv: Conv, x_zero: int, acc: Any) -> None:
    """pad: what stands beside the image, x_zero off already."""
    from qkernels.backends import _numba_cuda_conv as kernels

    numbers = [*conv.out, *conv.stride, *conv.dilation, *conv.before, conv.groups, x_zero]
    kernels.conv[grid_of(acc)](*map(_array, (x, w, w_zero, pad, _constant(acc, numbers, "int64"), acc)))


def _plain(w: Filters, conv: Conv) -> DeviceArray:
    """(filters, depth, height, width, channels of a group)."""
    from qkernels.backends import _numba_cuda_conv as kernels

    taps, depth = conv.kernel, conv.channels // conv.groups
    shape = conv.filters, *taps, depth
    if not conv.depthwise:
        _, height, width = taps
        strides = w.pitch, height * width * depth, width * depth, depth, 1
        return w.codes._replace(shape=shape, strides=strides)
    plain = w.codes.new(shape, w.codes.dtype)
    kernels.plain_filters[grid_of(plain)](_array(w.codes), _array(flat(plain)), *taps[1:])
    return plain


def run_pointwise(kernel: Kernel, x: DeviceArray, w: Any, out: DeviceArray, fields: Callable[[Any, int], None]) -> None:
    """As backends.cuda's."""
    (pixels, filters), channels = out.shape, x.shape[-1]
    acc = out if out.dtype == "int32" else out.new(out.shape, "int32")
    right = w.codes._replace(shape=(1, filters, channels), strides=(0, w.pitch, 1))
    kernel.run(x.shaped(1, pixels, channels), right, acc.shaped(1, pixels, filters), None, None)
    finish_as_told(acc, out, fields)


KERNELS = tuple(_kernel("conv", types, "", _conv) for types in TYPES)
