"""linear on a GPU with weights that stay packed there: real activations (`compute`, A11), groups along k (A10); and
what grouped_linear shares with it.

The weight is laid out for the tensor cores once (docs/layouts.md n64k64), brought to the device, and stays with the
packed weight. Floats meet it as they are, or quantized row by row to int8, as `compute` says.
"""

from __future__ import annotations

import math
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from qkernels import dispatch
from qkernels.activations import clamp_codes
from qkernels.bounds import check_columns
from qkernels.device import DeviceArray, is_on_device, same_device, view
from qkernels.dtypes import limits, listed
from qkernels.kernel import Problem
from qkernels.ops import fused
from qkernels.ops.device_tensor import FLOATS, LETTERS, problem_on
from qkernels.ops.linear_on_device import activates, check_bias, of_codes
from qkernels.tensor import QTensor
from qkernels.weight import PackedLinear, padded
from qkernels.weight_blocks import blocks_of, refuses

OP = "linear"

_brought: WeakKeyDictionary[PackedLinear, dict[tuple[int, str], Any]] = WeakKeyDictionary()


def takes(x: Any, weight: Any, compute: Any) -> bool:
    """Is this call for these functions?"""
    if not is_on_device(x) or not isinstance(weight, QTensor | PackedLinear):
        return False
    return compute != "int8" or weight.group_size is not None


def sums_are_integers(packed: PackedLinear) -> bool:
    """Of int8 activations: all of k is one integer sum. Two-level scales, or no groups at all."""
    return packed._rest[4] is not None or packed.group_size is None


def weight_on(beside: DeviceArray, packed: PackedLinear, order: str) -> Any:
    """The weight on the device of `beside`, its codes in the order that products of halves, or of bytes, want."""
    there = _brought.setdefault(packed, {})
    key = beside.device, order
    if key not in there:
        blocks = blocks_of(packed.unpack(), order)

        def brought(values: Any, dtype: str) -> Any:
            return None if values is None else beside.constant(values.view(dtype), dtype, values.shape)

        integers = order == "bytes" and sums_are_integers(packed)
        kind = blocks.scales.dtype.name
        there[key] = dispatch.DeviceBlocks(
            blocks._replace(codes=None, scales=None, zeros=None, factors=None),  # type: ignore[arg-type]
            brought(blocks.codes, "uint8"),
            None if integers else brought(blocks.scales, kind),
            "bfloat16" if kind == "uint16" else kind,
            brought(blocks.zeros, "uint8"),
            brought(blocks.factors, "uint8") if integers else None,
        )
    return there[key]


class Call:
    """linear(x, weight, …), checked."""

    offsets: DeviceArray | None = None  # of experts

    def __init__(self, x: Any, packed: PackedLinear, wishes: fused.Wishes, bias: Any, residual: Any, compute: str):
        self.x, self.packed, self.wishes, self.bias, self.residual = view(x), packed, wishes, bias, residual
        self.compute = compute
        self.n, self.k = packed.shape[-2:]
        self.m = math.prod(self.x.shape[:-1])
        self.order = "bytes" if compute == "int8" else "halves"

    @property
    def integers(self) -> bool:
        return self.compute == "int8" and sums_are_integers(self.packed)

    def column_scales(self) -> DeviceArray:
        """Of integer sums, one for each column of each expert."""
        scales = [self.packed.columns(e).scale for e in range(len(self.packed.parts))]
        return self.x.constant(np.stack(scales), "float32", (len(scales), self.n))

    def problem(self) -> Problem | str:
        if 0 in (self.m, self.n, self.k):
            return "nothing to compute: an empty product needs no kernel"
        blocks = weight_on(self.x, self.packed, self.order).blocks
        layout = dispatch.layout_on_device(blocks.bits, blocks.group, blocks.groups)
        if self.compute == "int8":
            op, types = OP, f"s8u{blocks.bits}{'s32' if self.integers else 'f32'}"
        else:
            op = "weight_only"
            types = f"{LETTERS[self.x.dtype]}u{blocks.bits}{'f32' if self.compute == 'float32' else 'bf16'}"
        if self.offsets is not None:
            op, layout = "experts", f"{layout}[{len(self.packed.parts)}]"
        return problem_on(self.x, op, types, self.m, self.n, self.k, layout)


def check(
    x: Any, packed: PackedLinear, bias: Any, activation: Any, residual: Any, out_scale: Any, out_zero_point: Any,
    out_dtype: Any, rounding: Any, compute: Any, out: Any,
) -> Call:  # fmt: skip
    found = view(x)
    if found.dtype not in FLOATS:
        raise TypeError(f"{OP}: x has dtype {found.dtype}, wanted {listed(FLOATS)} on a GPU")
    n, k = packed.shape[-2:]
    if not found.shape or found.shape[-1] != k:
        raise ValueError(f"{OP}: x has shape {found.shape}, weight has k={k} (shape {packed.shape})")
    why = refuses(packed.unpack())
    if why:
        raise ValueError(f"{OP}: weight has {why} on a GPU")
    if out is not None:
        raise ValueError(f"{OP}: out with a packed weight on a GPU, wanted none")
    there = is_on_device(bias)
    same_device(OP, x=x, bias=bias if there else None, residual=residual)
    wishes = fused.check_wishes(
        OP, x, (*found.shape[:-1], n), None if there else bias, activation, None, out_scale, out_zero_point, out_dtype,
        rounding, None,
    )  # fmt: skip
    if there:
        check_bias(bias, n, quantized=False)
    call = Call(x, packed, wishes, bias if there else wishes.bias, residual, compute)
    check_result(call)
    return call


def check_result(call: Call) -> None:
    wishes, residual = call.wishes, call.residual
    if wishes.kind == "codes" and not call.integers:
        why = f"compute={call.compute!r}" if call.compute != "int8" else "weight has groups along k, which"
        raise ValueError(f"{OP}: {why} gives floats; quantize the result instead of passing out_scale")
    if wishes.dtype not in (*FLOATS, "int8", "uint8"):
        raise ValueError(f"{OP}: out_dtype={wishes.dtype!r} on a GPU, wanted {listed((*FLOATS, 'int8', 'uint8'))}")
    if wishes.kind == "codes" and (wishes.rounding != "half_even" or call.bias is not None or residual is not None):
        raise ValueError(f'{OP}: a result in codes on a GPU takes rounding="half_even", no bias and no residual here')
    if residual is not None:
        found = view(residual)
        if found.shape != wishes.shape or found.dtype not in FLOATS:
            raise ValueError(f"{OP}: residual is {found.dtype} {found.shape}, wanted floats {wishes.shape}")
    if call.integers:
        for expert in range(len(call.packed.parts)):
            check_columns(OP, (-127, 127), call.k, call.packed.columns(expert), None, None)


def run(call: Call) -> Any:
    x, wishes, m, n, k = call.x, call.wishes, call.m, call.n, call.k
    out = x.new(wishes.shape, wishes.dtype)
    problem = call.problem()
    if isinstance(problem, str):
        if out.size:
            raise ValueError(f"{OP}: x {x.shape} and weight {call.packed.shape} on a GPU: nothing to multiply")
        return out.owner
    weight = weight_on(x, call.packed, call.order)
    rows, scale = x.whole().shaped(m, k), None
    if call.compute == "int8":
        rows, scale = _quantized(rows, m, k)
    bias = None if call.bias is None else x.constant(call.bias, "float32", (*call.packed.shape[:-2], n))
    residual = None if call.residual is None else view(call.residual, x).whole()
    columns = call.column_scales() if call.integers else None

    def fields(epilogue: Any, first: int) -> None:
        if scale is not None:
            epilogue.a_scale, epilogue.a_scale_step = scale.pointer, 1
        if columns is not None:
            epilogue.w_scale, epilogue.w_scale_step = columns.pointer, 1
        if bias is not None:
            epilogue.float_bias = bias.pointer
        if residual is not None:
            epilogue.residual, epilogue.residual_type = residual.pointer, dispatch.types_on_device[residual.dtype]
        _ends(epilogue, wishes)

    experts = () if call.offsets is None else (call.offsets,)
    dispatch.choose(problem).run(rows, weight, out.shaped(m, n), fields, *experts)
    if wishes.kind == "float":
        return out.owner
    return of_codes(out, wishes)


def _quantized(x: DeviceArray, m: int, k: int) -> tuple[DeviceArray, DeviceArray]:
    """A8: rows of int8, their pitch a multiple of 16 bytes, and their scales."""
    pitch = padded(k, 16)
    codes, scale = x.new((m, pitch), "int8"), x.new((m, 1), "float32")
    kernel = dispatch.choose(problem_on(x, "dynamic_quantize", f"{LETTERS[x.dtype]}s8", m, k))
    codes = codes._replace(shape=(m, k))
    kernel.run(x, k, (-128, 127), scale, None, None, codes)
    return codes, scale


def _ends(epilogue: Any, wishes: fused.Wishes) -> None:
    """The activation: of floats as it is, of codes inside of the limits."""
    if wishes.kind == "float":
        activates(epilogue, wishes.activation)
        return
    low, high = limits(wishes.dtype)
    if isinstance(wishes.activation, tuple):
        found = clamp_codes(wishes.activation, wishes.scale, wishes.zero, wishes.rounding)
        low, high = (min(max(end, low), high) for end in found)
    assert wishes.scale is not None
    epilogue.y_scale, epilogue.y_zero, epilogue.low, epilogue.high = float(wishes.scale), wishes.zero, low, high
