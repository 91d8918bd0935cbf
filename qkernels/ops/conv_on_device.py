"""Convolutions of images that lie on a GPU: channels last, weights in host memory and brought there once.

Arguments are checked by the functions that check those in host memory, on stand-ins. Zero points become a part of the
bias, and of what taps outside of the image read, so that kernels know none. A 1 × 1 convolution is a product.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from qkernels import dispatch
from qkernels.conv_weight import PackedConv
from qkernels.device import DeviceArray, is_on_device, same_device, view
from qkernels.dtypes import bits_of, container
from qkernels.epilogue import Epilogue
from qkernels.kernel import Conv, Problem
from qkernels.ops import conv as shared
from qkernels.ops import fused
from qkernels.ops.device_tensor import LETTERS, DeviceQTensor, lying
from qkernels.ops.linear_on_device import activates, of_codes
from qkernels.ops.on_device import stand_in
from qkernels.rounding import ROUNDINGS
from qkernels.tensor import QTensor

LAYOUT = "nk16"
BYTES = ("int8", "uint8")


def wanted(x: Any) -> bool:
    """Is x for these functions?"""
    return is_on_device(lying(x))


def _blank(x: Any) -> Any:
    """A stand-in of x: its shape, type and scale, without memory."""
    if isinstance(x, DeviceQTensor):  # codes of 4 and 2 bits are unpacked for the kernels
        plain = container(x.dtype).name
        return QTensor._make(np.broadcast_to(np.zeros((), plain), x.shape), x._scale, x._zero, plain, *_rest(x))
    return stand_in(x)


def _rest(x: QTensor) -> tuple[Any, ...]:
    return x._grain, x._scale_dtype, None, "numpy"


class _Weight(NamedTuple):
    filters: Any  # dispatch.Filters
    sums: np.ndarray  # Σ (w − zero) of each filter, int64


_brought: WeakKeyDictionary[PackedConv, dict[tuple[int, int, str], _Weight]] = WeakKeyDictionary()


class Call(NamedTuple):
    """A convolution, checked."""

    op: str
    x: DeviceArray
    weight: _Weight | None  # None: nothing is summed
    operands: shared.Operands  # of stand-ins; the weights are real
    wishes: fused.Wishes
    epilogue: Epilogue  # of host arrays
    residual: Any

    @property
    def conv(self) -> Conv:
        return self.operands.conv

    @property
    def pointwise(self) -> bool:
        """Is it a product of the pixels as they lie?"""
        conv = self.conv
        plain = conv.taps == 1 and conv.stride == (1, 1, 1) and conv.groups == 1 and conv.before == (0, 0, 0)
        return plain and conv.out == conv.size and conv.channels % 16 == 0

    def problem(self) -> Problem | str:
        conv = self.conv
        if 0 in self.wishes.shape or self.weight is None:
            return "nothing to compute: an empty convolution needs no kernel"
        types = f"{LETTERS[self.x.dtype]}{LETTERS[self.weight.filters.codes.dtype]}s32"
        k = conv.taps * (conv.channels // conv.groups)
        if self.pointwise:
            return Problem("gemm", types, conv.pixels, conv.filters, k, LAYOUT, f"cuda:{self.x.device}")
        return Problem("conv", types, conv.pixels, conv.filters, k, LAYOUT, f"cuda:{self.x.device}", conv)


def check(check_host: Any, op: str, axes: int, x: Any, weight: Any, bias: Any, *geometry: Any) -> Call:
    """check_host: conv2d's own check, which sees stand-ins."""
    *where, wanted = geometry
    activation, residual, out_scale, out_zero, out_dtype, rounding, out = wanted
    same_device(op, x=lying(x), residual=lying(residual))
    if is_on_device(lying(weight)) or is_on_device(bias):
        raise TypeError(f"{op}: weight and bias are wanted in host memory, x on a GPU; they are brought there once")
    if out is not None:
        raise ValueError(f"{op}: out on a GPU, wanted none")
    if not where[0].endswith("C"):
        raise ValueError(f"{op}: layout={where[0]!r} on a GPU, wanted channels last")
    if isinstance(x, DeviceQTensor) and (is_on_device(x._scale) or is_on_device(x._zero)):
        raise ValueError(f"{op}: x's scale was found on the GPU, wanted one that was given: it is not waited for")
    if residual is not None and not isinstance(residual, DeviceQTensor):
        raise TypeError(f"{op}: residual is {type(residual).__name__}, wanted a QTensor on a GPU")
    if residual is not None and (residual.found or bits_of(residual.dtype) > 8):
        raise ValueError(f"{op}: residual is {residual!r}, wanted codes of 8 bits or fewer whose scale was given")
    found = x.lies() if isinstance(x, DeviceQTensor) else view(x)
    if isinstance(x, DeviceQTensor) and out_scale is not None and out_dtype is None:
        out_dtype = x.dtype
    if found.dtype not in BYTES:
        raise TypeError(f"{op}: x has dtype {found.dtype}, wanted int8 or uint8, or a QTensor, on a GPU")
    blank = None if residual is None else _blank(residual)
    rest = (activation, blank, out_scale, out_zero, out_dtype, rounding, None)
    host = check_host(op, axes, _blank(x), weight, bias, *where, rest)
    if host.wishes.dtype == "float64":
        raise ValueError(f"{op}: out_dtype='float64' on a GPU, wanted float32, float16 or bfloat16")
    conv = host.operands.conv
    empty = 0 in (*conv.size, conv.channels, conv.filters)
    weight_there = None if empty else _weight_on(op, found, host.operands)
    return Call(op, found, weight_there, host.operands, host.wishes, host.epilogue, residual)


def _weights(op: str, operands: shared.Operands) -> np.ndarray:
    """(filters, height, width, channels of a group): w − zero as int8, or w as uint8 where it has no zero point."""
    w, zero = operands.w, operands.w_zero
    plain = w if isinstance(w, np.ndarray) else w.unpack_nhwc()
    plain = plain.reshape(plain.shape[0], *plain.shape[2:]) if plain.shape[1] == 1 else plain
    if plain.ndim != 4:
        raise ValueError(f"{op}: three axes on a GPU, wanted one or two")
    if zero is None:
        return np.ascontiguousarray(plain)
    difference = plain.astype(np.int16) - zero.astype(np.int16).reshape(-1, 1, 1, 1)
    if difference.size and (difference.min() < -128 or difference.max() > 127):
        raise ValueError(
            f"{op}: weight − its zero point is {difference.min()}…{difference.max()} on a GPU, wanted int8: "
            "quantize with symmetric=True"
        )
    return difference.astype(np.int8)


def _weight_on(op: str, x: DeviceArray, operands: shared.Operands) -> _Weight:
    """The weights there, with 16 bytes of x's zero point; kept with a packed weight."""
    packed = operands.w
    there = _brought.setdefault(packed, {}) if isinstance(packed, PackedConv) else {}
    key = x.device, operands.x_zero, x.dtype
    if key not in there:
        plain = _weights(op, operands)
        codes, pitch = dispatch.arrange_filters(plain, operands.conv.depthwise)
        pad = x.constant(np.full(16, operands.x_zero, x.dtype), x.dtype, (16,))
        filters = dispatch.Filters(x.constant(codes, codes.dtype.name, codes.shape), pitch, pad)
        there[key] = _Weight(filters, plain.sum(axis=(1, 2, 3), dtype=np.int64))
    return there[key]


# ---------------------------------------------------------------- the epilogue


class _Fields:
    """What the kernel's epilogue is told. Holds the arrays that it points to."""

    def __init__(self, call: Call, weight: _Weight):
        self.call, by, n, x = call, call.epilogue, call.conv.filters, call.x
        moved = -call.operands.x_zero * weight.sums  # Σ (x − zx)(w − zw) = Σ x(w − zw) − zx·Σ (w − zw)
        bias = by.bias
        self.float_bias = None
        if bias is not None and bias.dtype == np.float32:
            self.float_bias, bias = x.constant(bias.reshape(n), "float32", (n,)), None
        if bias is not None:
            moved = moved + bias.reshape(n)
        whole = (moved & 0xFFFFFFFF).astype(np.uint32).view(np.int32)
        self.bias = x.constant(whole, "int32", (n,)) if moved.any() else None
        self.arrays = {
            name: x.constant(value.reshape(-1), value.dtype.name, (value.size,))
            for name, value in (("a_scale", by.a_scale), ("w_scale", by.w_scale), ("m", by.m), ("e", by.e))
            if value is not None
        }
        self.residual = None if call.residual is None else call.residual.lies().whole()

    def __call__(self, epilogue: Any, first: int) -> None:
        by, arrays, residual = self.call.epilogue, self.arrays, self.residual
        if self.bias is not None:
            epilogue.bias = self.bias.pointer
        if self.float_bias is not None:
            epilogue.float_bias = self.float_bias.pointer
        if residual is not None:
            epilogue.residual, epilogue.residual_type = residual.pointer, dispatch.types_on_device[residual.dtype]
            epilogue.residual_scale, epilogue.residual_zero = by.residual_scale, by.residual_zero
        if by.is_float:
            epilogue.a_scale, epilogue.w_scale, epilogue.w_scale_step = (
                arrays["a_scale"].pointer,
                arrays["w_scale"].pointer,
                1,
            )
            activates(epilogue, by.activation)
        elif by.out != "int32":
            epilogue.rounding, epilogue.m_values = ROUNDINGS.index(by.rounding), arrays["m"].pointer
            epilogue.m_column = 1 if arrays["m"].size > 1 else 0
            if "e" in arrays:
                epilogue.e_values = arrays["e"].pointer
            epilogue.y_zero, (epilogue.low, epilogue.high) = by.zero, by.limits


def run(call: Call) -> Any:
    x, wishes, problem = call.x, call.wishes, call.problem()
    out = x.new(wishes.shape, wishes.writes)
    if out.size:
        if isinstance(problem, str):
            raise ValueError(f"{call.op}: x {x.shape} on a GPU: nothing to convolve")
        weight, image = call.weight, x.whole()
        assert weight is not None
        kernel, fields = dispatch.choose(problem), _Fields(call, weight)
        rows = out.shaped(call.conv.pixels, call.conv.filters)
        if call.pointwise:
            dispatch.pointwise_on_device(kernel, image, weight.filters, rows, fields)
        else:
            kernel.run(image, weight.filters, call.conv, rows, fields)
    if wishes.kind != "codes":
        return out.owner
    return of_codes(out, wishes)
