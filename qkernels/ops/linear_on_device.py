"""linear for floats on a GPU: quantized row by row in one pass, multiplied, and finished in the product's own epilogue.

The weight is a host QTensor or what pack_linear made of it; it is brought to the device once, and stays with the packed
weight. What a kernel cannot do is refused by name here, never computed otherwise in silence.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from qkernels import dispatch
from qkernels.activations import clamp_codes
from qkernels.bounds import check_columns
from qkernels.device import DeviceArray, is_on_device, same_device, view
from qkernels.dtypes import limits
from qkernels.kernel import Problem
from qkernels.ops import fused
from qkernels.ops.on_device import LAYOUT, LETTERS, DeviceQTensor, problem_on
from qkernels.scales import Grain
from qkernels.weight import Columns, PackedLinear, padded

OP = "linear"


class _Weight(NamedTuple):
    codes: DeviceArray  # (n, k padded to 16)
    scale: DeviceArray
    zero: DeviceArray | None


_brought: WeakKeyDictionary[PackedLinear, dict[int, _Weight]] = WeakKeyDictionary()


def _weight_on(beside: DeviceArray, packed: PackedLinear, columns: Columns) -> _Weight:
    """The weight on the device of `beside`."""
    there = _brought.setdefault(packed, {})
    if beside.device not in there:
        n, k = packed.shape
        plain = packed.unpack().codes()  # of 4 and 2 bits too, one a byte
        codes = np.zeros((n, padded(k, 16)), plain.dtype)
        codes[:, :k] = plain
        there[beside.device] = _Weight(
            beside.constant(codes, codes.dtype.name, codes.shape),
            beside.constant(columns.scale, "float32", (n,)),
            None if columns.zero is None else beside.constant(columns.zero, "int32", (n,)),
        )
    return there[beside.device]


class Call:
    """linear(x, weight, …) with x on a GPU, checked."""

    def __init__(self, x: Any, packed: PackedLinear, bias: Any, wishes: fused.Wishes, device_bias: bool):
        self.x, self.packed, self.wishes = view(x), packed, wishes
        self.bias = bias if device_bias else wishes.bias
        self.n, self.k = packed.shape
        self.m = math.prod(self.x.shape[:-1])
        self.columns = packed.columns()

    def problem(self) -> Problem:
        types = f"s8{'u8' if str(self.packed.dtype).startswith('u') else 's8'}s32"
        return problem_on(self.x, "gemm", types, self.m, self.n, self.k, LAYOUT)

    @property
    def empty(self) -> bool:
        return 0 in (self.m, self.n, self.k)


def check(
    x: Any, packed: PackedLinear, bias: Any, activation: Any, residual: Any, out_scale: Any, out_zero_point: Any,
    out_dtype: Any, rounding: Any, compute: Any, out: Any,
) -> Call:  # fmt: skip
    found = view(x)
    if found.dtype not in ("float32", "float16", "bfloat16"):
        raise TypeError(f"{OP}: x has dtype {found.dtype}, wanted float32, float16 or bfloat16 on a GPU")
    if not found.shape or found.shape[-1] != packed.shape[1]:
        raise ValueError(f"{OP}: x has shape {found.shape}, weight has k={packed.shape[1]} (shape {packed.shape})")
    refused = {
        'compute="int8" only': compute != "int8",
        "no residual": residual is not None,
        "no out": out is not None,
        "a weight without groups": packed.group_size is not None,
        'rounding="half_even" only': rounding != "half_even",
        "no bias of codes": bias is not None and out_scale is not None,
    }
    for wanted, bad in refused.items():
        if bad:
            raise ValueError(f"{OP}: on a GPU it takes {wanted}")
    there = is_on_device(bias)
    if there:
        same_device(OP, x=x, bias=bias)
        if view(bias).shape != (packed.shape[0],):
            raise ValueError(f"{OP}: bias has shape {view(bias).shape}, wanted ({packed.shape[0]},)")
    wishes = fused.check_wishes(
        OP, x, (*found.shape[:-1], packed.shape[0]), None if there else bias, activation, None, out_scale,
        out_zero_point, out_dtype, rounding, None,
    )  # fmt: skip
    if isinstance(wishes.activation, str):
        raise ValueError(f"{OP}: activation={activation!r} on a GPU, wanted relu, relu6 or (lowest, highest)")
    if wishes.dtype not in ("float32", "float16", "bfloat16", "int8", "uint8"):
        raise ValueError(f"{OP}: out_dtype={wishes.dtype!r} on a GPU, wanted float32, float16, bfloat16, int8 or uint8")
    call = Call(x, packed, bias, wishes, there)
    check_columns(OP, (-127, 127), call.k, call.columns, None, None)
    return call


def run(call: Call) -> Any:
    x, wishes, m, n, k = call.x, call.wishes, call.m, call.n, call.k
    out = x.new(wishes.shape, wishes.dtype)
    if call.empty:
        raise ValueError(f"{OP}: x {x.shape} and weight {call.packed.shape} on a GPU: nothing to multiply")
    weight = _weight_on(x, call.packed, call.columns)
    codes, scale, sums = (
        x.new(shape, kind) for shape, kind in (((m, padded(k, 16)), "int8"), ((m, 1), "float32"), ((m, 1), "int32"))
    )
    quantizes = dispatch.choose(problem_on(x, "dynamic_quantize", f"{LETTERS[x.dtype]}s8", m, k))
    quantizes.run(x.whole().shaped(m, k), k, (-128, 127), scale, None, sums, codes._replace(shape=(m, k)))
    bias = None if call.bias is None else x.constant(call.bias, "float32", (n,))

    def fields(epilogue: Any, first: int) -> None:
        epilogue.a_scale, epilogue.a_scale_step = scale.pointer, 1
        epilogue.w_scale, epilogue.w_scale_step = weight.scale.pointer, 1
        if weight.zero is not None:
            epilogue.w_zero, epilogue.a_sums = weight.zero.pointer, sums.pointer
        if bias is not None:
            epilogue.float_bias = bias.pointer
        _clamps(epilogue, wishes)

    left = codes._replace(shape=(1, m, k), strides=(0, codes.strides[0], 1))
    right = weight.codes._replace(shape=(1, n, k), strides=(0, weight.codes.strides[0], 1))
    dispatch.fused_on_device(dispatch.choose(call.problem()), left, right, out.shaped(1, m, n), fields)
    if wishes.kind == "float":
        return out.owner
    parts: tuple[Any, ...] = (wishes.scale, wishes.zero, wishes.dtype, Grain(wishes.shape), "float32", None, "numpy")
    return DeviceQTensor._make(out.owner, *parts)


def _clamps(epilogue: Any, wishes: fused.Wishes) -> None:
    """The activation: of floats as it is, of codes inside of the limits."""
    ends = wishes.activation if isinstance(wishes.activation, tuple) else None
    if wishes.kind == "float":
        if ends is not None:
            epilogue.clamps, (epilogue.clamp_low, epilogue.clamp_high) = True, ends
        return
    low, high = limits(wishes.dtype)
    if ends is not None:
        found = clamp_codes(ends, wishes.scale, wishes.zero, wishes.rounding)
        low, high = (min(max(end, low), high) for end in found)
    assert wishes.scale is not None
    epilogue.y_scale, epilogue.y_zero, epilogue.low, epilogue.high = float(wishes.scale), wishes.zero, low, high
