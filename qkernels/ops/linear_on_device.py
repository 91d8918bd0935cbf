"""linear on a GPU: floats are quantized row by row in one pass, multiplied, and finished in the product's own epilogue.

x is floats or a QTensor there; the weight a host QTensor or what pack_linear made of it, brought to the device once,
or a QTensor there. Scales stay where they are. What a kernel cannot do is refused by name here, never computed
otherwise in silence. What of a value lies on the device is never read: bounds come from types then, and a bias of int32
that lies there is added mod 2³².
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from qkernels import dispatch
from qkernels.activations import CURVES, clamp_codes
from qkernels.bounds import check_columns
from qkernels.device import DeviceArray, is_on_device, same_device, view
from qkernels.dtypes import bits_of, container, limits, name_of
from qkernels.kernel import Problem
from qkernels.ops import fused
from qkernels.ops.device_tensor import FLOATS, LETTERS, DeviceQTensor, lying, packed, problem_on, real_numbers
from qkernels.ops.on_device import LAYOUT
from qkernels.ops.weights_on_device import Weight, weight_on
from qkernels.rounding import ROUNDINGS
from qkernels.scales import Grain
from qkernels.tensor import QTensor
from qkernels.weight import padded

OP = "linear"
F32 = np.float32


class Rows(NamedTuple):
    """A QTensor x as a product takes it."""

    factor: Any  # dispatch.Factor
    scale: np.ndarray | None  # float32 (1,) or (m,), where it is known here
    zero: np.ndarray | None  # int32, or the ends of its type where it is not known here


class Call:
    """linear(x, weight, …) with x on a GPU, checked."""

    def __init__(
        self, x: Any, weight: Any, wishes: fused.Wishes, bias: Any, residual: Any, target: DeviceArray | None, out: Any
    ):
        self.given, self.wishes, self.bias, self.residual = x, wishes, bias, residual
        self.target, self.out = target, out
        self.x = x.lies() if isinstance(x, DeviceQTensor) else real_numbers(x, OP)
        self.n, self.k = weight.shape
        self.m = math.prod(self.x.shape[:-1])
        self.weight: Weight = weight_on(self.x, weight, OP)
        self.rows = _rows(x, self.x, self.m, self.k) if isinstance(x, DeviceQTensor) else None

    def problem(self) -> Problem | str:
        if self.empty or not self.k:
            return "nothing to compute: an empty product needs no kernel"
        codes = self.x.dtype if self.rows else "int8"
        return self._problem(codes, self.weight.factor.codes.dtype, self.k)

    def product(self, left: Any, right: Any) -> Problem:
        """Of the operands as they are multiplied."""
        return self._problem(left.codes.dtype, right.codes.dtype, left.codes.shape[-1])

    def _problem(self, x: str, weight: str, k: int) -> Problem:
        return problem_on(self.x, "gemm", f"{LETTERS[x]}{LETTERS[weight]}s32", self.m, self.n, k, LAYOUT)

    @property
    def empty(self) -> bool:
        return 0 in (self.m, self.n)

    def note(self) -> str:
        """Which operands are copied before the product."""
        operands = {"x": self.rows.factor.codes if self.rows else None, "weight": self.weight.factor.codes}
        copied = [name for name, x in operands.items() if x is not None and not dispatch.lies_well(x)]
        why = "its k is not adjacent, or its rows do not begin at multiples of 16 bytes"
        return "\n".join(f"{name} is copied on its way: {why}" for name in copied)


# ---------------------------------------------------------------- checks


def wanted(x: Any, weight: Any) -> bool:
    """Is any of them for these functions?"""
    return is_on_device(x) or isinstance(x, DeviceQTensor) or isinstance(weight, DeviceQTensor)


def check(
    x: Any, weight: Any, bias: Any, activation: Any, residual: Any, out_scale: Any, out_zero_point: Any,
    out_dtype: Any, rounding: Any, compute: Any, out: Any,
) -> Call:  # fmt: skip
    from qkernels.ops.linear import _check_x, _weight

    _check_x(x, compute)
    device_weight = isinstance(weight, DeviceQTensor)
    packed = weight if device_weight else _weight(weight)
    on_it = {"x": lying(x), "bias": bias if is_on_device(bias) else None, "out": out, "residual": lying(residual)}
    same_device(OP, **on_it, weight=lying(weight) if device_weight else None)
    shape = tuple(x.shape)
    if not shape or len(packed.shape) != 2 or shape[-1] != packed.shape[1]:
        raise ValueError(f"{OP}: x has shape {shape}, weight {packed.shape}, wanted (…, k) and (n, k)")
    n = packed.shape[0]
    there = is_on_device(bias)
    wishes = fused.check_wishes(
        OP, x, (*shape[:-1], n), None if there else bias, activation, None, out_scale, out_zero_point,
        view(out).dtype if out is not None and out_dtype is None else out_dtype, rounding, None,
    )  # fmt: skip
    if there:
        check_bias(bias, n, isinstance(x, QTensor))
    _check_residual(residual, activation, wishes)
    call = Call(x, packed, wishes, bias if there else wishes.bias, residual, _target(out, wishes), out)
    _check_numbers(call)
    return call


def check_bias(bias: Any, n: int, quantized: bool) -> None:
    """quantized: x is, so that there is a unit for int32. Its size is not known here, and the sum wraps (A2)."""
    found = view(bias)
    if found.dtype not in (*FLOATS, *(("int32",) if quantized else ())):
        raise TypeError(f"{OP}: bias has dtype {found.dtype}, wanted floats{' or int32' if quantized else ''} on a GPU")
    if found.shape != (n,):
        raise ValueError(f"{OP}: bias has shape {found.shape}, wanted ({n},)")


def _check_residual(residual: Any, activation: Any, wishes: fused.Wishes) -> None:
    if residual is None:
        return
    if wishes.dtype == "int32":
        raise ValueError(f'{OP}: residual needs real numbers or codes; out_dtype="int32" gives the bare accumulators')
    if tuple(residual.shape) != wishes.shape:
        raise ValueError(f"{OP}: residual has shape {tuple(residual.shape)}, the result has {wishes.shape}")
    if not isinstance(residual, DeviceQTensor):
        real_numbers(residual, f"{OP}: residual")
    if wishes.kind != "codes":
        return
    fused.check_integer(OP, activation, wishes.activation, residual, wishes.rounding)


def _target(out: Any, wishes: fused.Wishes) -> DeviceArray | None:
    if out is None:
        return None
    target = view(out)
    kept = container(wishes.dtype).name if wishes.kind == "codes" else wishes.dtype
    if target.dtype != kept:
        raise TypeError(f"{OP}: out has dtype {target.dtype}, wanted {kept}")
    if target.shape != wishes.shape:
        raise ValueError(f"{OP}: out has shape {target.shape}, the result has {wishes.shape}")
    return target


def _check_numbers(call: Call) -> None:
    """What can be known here of scales that are not finite, of a bias that is no int32, and of the bound on k."""
    weight, rows, wishes, bias = call.weight, call.rows, call.wishes, call.wishes.bias
    if weight.scale is not None and rows is not None and rows.scale is not None:
        with np.errstate(over="ignore", under="ignore"):
            by = fused.epilogue_of(wishes, rows.scale, weight.scale, None, None, weight_scales=weight.scales)
        bias = by.bias
    if call.k:
        codes = limits(call.given.dtype) if rows is not None else (-127, 127)
        check_columns(OP, codes, call.k, weight.columns(), rows.zero if rows else None, bias)


def _rows(x: DeviceQTensor, codes: DeviceArray, m: int, k: int) -> Rows:
    grain, lead = x._grain, x.shape[:-1]
    scale, zero = x._scale, x._zero
    one = math.prod(grain.scale_shape) == 1
    factor_zero = None
    if not (isinstance(zero, int) and zero == 0):
        spread = zero if isinstance(zero, int) else grain.aligned(zero)[..., 0]
        factor_zero = codes.constant(spread, "int32", lead).shaped(m)
    shape = (1,) if one else lead
    there = codes.constant(scale.reshape(shape) if one else grain.aligned(scale)[..., 0], "float32", shape)
    flat = codes.whole().shaped(1, m, k) if codes.ndim != 2 else codes._replace(
        shape=(1, m, k), strides=(0, *codes.strides)
    )  # fmt: skip
    known = None
    if not is_on_device(scale):
        known = scale.reshape(1) if one else np.broadcast_to(grain.aligned(scale)[..., 0], lead).reshape(m)
    ends = np.array(limits(x.dtype), np.int32) if is_on_device(zero) else np.atleast_1d(np.asarray(zero, np.int32))
    factor = dispatch.Factor(flat, there.shaped(there.size), 0 if one else 1, factor_zero)
    return Rows(factor, known, None if factor_zero is None else ends)


# ---------------------------------------------------------------- the product


def run(call: Call) -> Any:
    x, wishes, m, n = call.x, call.wishes, call.m, call.n
    kept = call.target if call.target is not None and _writes_into(call.target, call) else None
    out = kept if kept is not None else x.new(wishes.shape, wishes.writes)
    if not call.empty:
        left, right = _factors(call)
        fields = _Fields(call, left)
        kernel = dispatch.choose(call.product(left, right))
        dispatch.fused_on_device(kernel, left, right, out.shaped(1, m, n), fields.fill)
    if call.target is not None:
        if kept is None:
            call.out[...] = out.owner
        return call.out
    if wishes.kind != "codes":
        return out.converted(wishes.dtype).owner
    return of_codes(out, wishes)


def of_codes(codes: DeviceArray, wishes: fused.Wishes) -> Any:
    """The result of a product in codes, as a QTensor."""
    parts: tuple[Any, ...] = (wishes.scale, wishes.zero, wishes.dtype, Grain(wishes.shape), "float32", None, "numpy")
    return DeviceQTensor._make(packed(codes, wishes.dtype).owner, *parts)


def _factors(call: Call) -> tuple[Any, Any]:
    """The operands. Where k = 0 (A13) they are one k of zeros, and their zero points have no part in it."""
    x, m, n, k = call.x, call.m, call.n, call.k
    right = call.weight.factor
    if k:
        return call.rows.factor if call.rows else _quantized(x, m, k), right
    zeros = [x.constant(0, "int8", (size, 16))._replace(shape=(1, size, 1), strides=(0, 16, 1)) for size in (m, n)]
    rows = call.rows.factor if call.rows else dispatch.Factor(zeros[0], x.constant(1, "float32", (m, 1)), 1, None)
    return rows._replace(codes=zeros[0], zero=None, sums=None), right._replace(codes=zeros[1], zero=None, sums=None)


def _writes_into(target: DeviceArray, call: Call) -> bool:
    """May a kernel write there: adjacent, the kernel's type, apart from what it reads."""
    read = [call.x, *(view(lying(v)) for v in (call.bias, call.residual) if v is not None and is_on_device(lying(v)))]
    return (
        target.contiguous
        and target.dtype == call.wishes.writes
        and not any(target.may_overlap(other) for other in read)
    )


def _quantized(x: DeviceArray, m: int, k: int) -> Any:
    """A8: rows of floats to int8, their scales and the sums of their codes, in one pass."""
    codes, scale, sums = (
        x.new(shape, kind) for shape, kind in (((m, padded(k, 16)), "int8"), ((m, 1), "float32"), ((m, 1), "int32"))
    )
    kernel = dispatch.choose(problem_on(x, "dynamic_quantize", f"{LETTERS[x.dtype]}s8", m, k))
    kernel.run(x.whole().shaped(m, k), k, (-128, 127), scale, None, sums, codes._replace(shape=(m, k)))
    matrix = codes._replace(shape=(1, m, k), strides=(0, codes.strides[0], 1))
    return dispatch.Factor(matrix, scale, 1, None, sums)


class _Fields:
    """What the epilogue is told beside the operands. Holds the arrays that it points to."""

    def __init__(self, call: Call, left: Any):
        self.call, self.bias, self.m_values, self.e_values = call, None, None, None
        wishes, n, x = call.wishes, call.n, call.x
        self.residual = _residual(call)
        self.integer = call.bias is not None and name_of(call.bias.dtype) == "int32"
        if call.bias is not None:
            self.bias = x.constant(call.bias, "int32" if self.integer else "float32", (n,))
        if wishes.kind == "float":
            return
        floats = None if self.integer else self.bias
        single = wishes.rounding == "ruy" and call.weight.scales == 1
        y_scale = 1.0 if wishes.scale is None else float(wishes.scale)
        rounding = wishes.rounding if wishes.kind == "codes" else "half_even"
        made = dispatch.prepare_on_device(left, call.weight.factor, y_scale, rounding, single, floats)
        self.m_values, self.e_values = made[1:]
        if floats is not None:
            self.bias, self.integer = made[0], True

    def fill(self, epilogue: Any) -> None:
        wishes, n = self.call.wishes, self.call.n
        if self.bias is not None and self.integer:
            epilogue.bias, epilogue.bias_row = self.bias.pointer, n if self.bias.size > n else 0
        elif self.bias is not None:
            epilogue.float_bias = self.bias.pointer
        if self.residual is not None:
            self.residual.fill(epilogue)
        if wishes.kind == "float":
            activates(epilogue, wishes.activation)
        elif wishes.kind == "codes":
            self._codes(epilogue)

    def _codes(self, epilogue: Any) -> None:
        """A5, and the activation inside of the limits."""
        wishes, n = self.call.wishes, self.call.n
        assert wishes.scale is not None
        low, high = limits(wishes.dtype)
        if isinstance(wishes.activation, tuple):
            found = clamp_codes(wishes.activation, wishes.scale, wishes.zero, wishes.rounding)
            low, high = (min(max(end, low), high) for end in found)
        epilogue.y_scale, epilogue.y_zero, epilogue.low, epilogue.high = float(wishes.scale), wishes.zero, low, high
        if self.m_values is not None and self.e_values is not None:
            epilogue.rounding = ROUNDINGS.index(wishes.rounding)
            epilogue.m_values, epilogue.e_values = self.m_values.pointer, self.e_values.pointer
            epilogue.m_row, epilogue.m_column = n if self.m_values.size > n else 0, 1


def activates(epilogue: Any, activation: Any) -> None:
    if isinstance(activation, str):
        epilogue.curve = 1 + CURVES.index(activation)
    elif activation is not None:
        epilogue.clamps, (epilogue.clamp_low, epilogue.clamp_high) = True, activation


class _Residual(NamedTuple):
    """As the epilogue reads it: adjacent floats, or 8-bit codes of one scale and zero point."""

    array: DeviceArray
    scale: float = 1.0
    zero: int = 0
    found_scale: DeviceArray | None = None  # where the device alone knows them
    found_zero: DeviceArray | None = None

    def fill(self, epilogue: Any) -> None:
        epilogue.residual, epilogue.residual_type = self.array.pointer, dispatch.types_on_device[self.array.dtype]
        epilogue.residual_scale, epilogue.residual_zero = self.scale, self.zero
        if self.found_scale is not None:
            epilogue.found_scale = self.found_scale.pointer
        if self.found_zero is not None:
            epilogue.found_zero = self.found_zero.pointer


def _residual(call: Call) -> _Residual | None:
    r, wishes = call.residual, call.wishes
    if r is None:
        return None
    if not isinstance(r, DeviceQTensor):
        return _Residual(real_numbers(r, OP).whole())
    into = float(wishes.scale) if wishes.kind == "codes" and wishes.scale is not None else None
    if bits_of(r.dtype) > 8 or math.prod(r._grain.scale_shape) > 1:
        return _Residual(view(r.with_scale(_ratio(call.x, r._scale, into)).dequantize()))
    codes, zero = r.lies().whole(), r._zero
    made = _Residual(codes)
    if is_on_device(zero):
        made = made._replace(found_zero=codes.constant(zero, "int32", (1,)))
    else:
        made = made._replace(zero=int(zero))
    if is_on_device(r._scale):
        return made._replace(found_scale=codes.constant(r._scale, "float32", (1,)))
    return made._replace(scale=float(_ratio(codes, r._scale, into).reshape(())))


def _ratio(beside: DeviceArray, scale: Any, into: float | None) -> Any:
    """f32(scale / into); into: the result's scale where it is codes, or None."""
    if into is None:
        return scale
    if is_on_device(scale):
        return dispatch.over_on_device(view(scale, beside), into).owner
    with np.errstate(over="ignore", under="ignore"):
        ratio = np.asarray(scale / F32(into), F32)
    if not np.isfinite(ratio).all():
        raise ValueError(f"{OP}: residual's scale / out_scale is not finite in float32 (A0); use smaller scales")
    return ratio
