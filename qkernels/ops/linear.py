"""linear: x · weightᵀ and everything that follows it, fused; pack_linear: weights rearranged once for it."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np

from qkernels import dispatch, verbose
from qkernels.activations import CLAMPS
from qkernels.arrays import as_float32, float_name, is_torch, library_of
from qkernels.bounds import check_columns, sign_of
from qkernels.checks import owned
from qkernels.dtypes import FLOAT_TYPES, bits_of, limits, listed
from qkernels.epilogue import Epilogue, finish_floats
from qkernels.kernel import Problem
from qkernels.ops import fused, linear_on_device, packed_on_device
from qkernels.ops.dequantize import values
from qkernels.ops.dynamic_quantize import dynamic_quantize
from qkernels.ops.qmatmul import Roles, check_scale, multiply
from qkernels.scales import GROUPED, KEPT, Grain
from qkernels.tensor import QTensor
from qkernels.weight import PackedLinear, PackedMatrix
from qkernels.weight_groups import PackedGroups, suits

F32, S32 = np.float32, np.int32
COMPUTE = ("int8", "float32", "bfloat16")
OP = "linear"
BYTES = ("int8", "uint8")
_ZERO = 0
_FAST: dict[Any, Any] = {None: None, **CLAMPS}
_CURVE = ()  # no clamp: the short road stands aside

_road = dispatch.LinearRoad(enabled=not verbose.ENABLED)
_of_floats = _road.of_floats
# for modules, too, which know what they call
of_codes, of_tensors, of_static, prepare_static, tensors_state = (
    _road.of_codes, _road.of_tensors, _road.static, _road.prepare, _road.state,
)  # fmt: skip


def pack_linear(weight: Any) -> PackedLinear:
    """A weight (n, k), or a stack of experts (e, n, k), ready for `linear`.                       docs/layouts.md n16k4

    weight  QTensor of 8 bits or fewer: one scale, a scale for each n (axis=0), or groups along k

    `linear` does it by itself at a weight's first use and remembers the result with the QTensor: packing by hand saves
    the memory of the plain codes, when the QTensor is then dropped.
    Raises  TypeError weight · ValueError its shape, or a scale along k (the message says what would fit).
    """
    if isinstance(weight, PackedLinear):
        return weight
    if not isinstance(weight, QTensor):
        raise TypeError(f"pack_linear: weight is {type(weight).__name__}, wanted a QTensor (n, k): quantize(w, axis=0)")
    if weight._packed is None:
        object.__setattr__(weight, "_packed", _packed(weight.to_host()))
    return weight._packed


def _packed(weight: QTensor) -> PackedLinear:
    op = "pack_linear"
    if weight.ndim not in (2, 3):
        raise ValueError(f"{op}: weight has shape {weight.shape}, wanted (n, k), or (e, n, k) of experts")
    if bits_of(weight.dtype) > 8:
        raise ValueError(f"{op}: weight is of {weight.dtype}, wanted codes of 8 bits or fewer")
    batch = tuple(range(weight.ndim - 2))
    check_scale(op, "weight", weight, Roles(batch, (weight.ndim - 2,), (weight.ndim - 1,)))
    if not suits(weight):
        experts = range(weight.shape[0]) if weight.ndim == 3 else (None,)
        return PackedLinear(weight, tuple(PackedGroups(weight, expert) for expert in experts))
    codes = weight._plain()
    plain = codes if weight.ndim == 3 else codes[None]
    return PackedLinear(weight, tuple(dispatch.pack_weights(expert.T) for expert in plain))


def linear(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    activation: Any = None,
    residual: Any = None,
    out_scale: Any = None,
    out_zero_point: Any = 0,
    out_dtype: Any = None,
    rounding: Any = "half_even",
    compute: Literal["int8", "float32", "bfloat16"] = "int8",
    out: Any = None,
) -> Any:
    """y = activation(x · weightᵀ + bias + residual), in one pass                              arithmetic.md A2, A4 … A8

    x           (…, k): QTensor of 8 bits or fewer, one scale or one for each row; or floats, whose rows are quantized
                to int8 on the way, each with a scale of its own (A8)
    weight      (n, k): QTensor, packed at its first use and remembered, or what `pack_linear` made of it
    bias        (n,): int32 in units of x_scale · weight_scale, or floats (of an integer result rounded to that unit)
    activation  "relu" "relu6" "gelu" "gelu_tanh" "silu" "hardswish" "sigmoid" "tanh", or (lowest, highest)
    residual    of the result's shape, added before the activation: floats or a QTensor
    out_scale, out_zero_point   of a QTensor as the result; its activation is a clamp, its residual a QTensor of one
                scale (rounding="half_even" only)
    out_dtype   of that QTensor (default: x's type, int8 of float x). Without out_scale: "float32" "float16" "bfloat16"
                "float64" (default: x's float type, float32 of a QTensor), or "int32" of a QTensor x: the accumulators
    rounding    of a QTensor as the result, as in `requantize`
    compute     "int8": exact integers. "float32", "bfloat16": x stays as it is, weight is dequantized (A11): within
                2⁻²⁰, 2⁻⁷ of Σ|x·w|. For few rows and for accuracy; "bfloat16" is the fastest of all for many rows and
                groups of 32 or less where the CPU has AMX, and else the same as "float32"
    out         array of out_dtype and the result's shape, any strides, or of the codes of a QTensor; it is returned

    On a GPU what lies there is not read: an int32 bias there is added mod 2³². A weight with groups that lies there is
    packed in host memory at its first use, which waits for it; such weights take no `out` there.
    Without curved activations every result is the same bits on every CPU, kernel and number of threads.
    Raises  TypeError types of arguments · ValueError shapes, scales (the message names the axes that would fit), the
            bound on k, names (with the known ones) · NoKernelError, with every kernel's reason. `out` is untouched
            when the call fails.
    Source  ONNX Runtime QLinearMatMul, MatMulIntegerToFloat; LiteRT fully-connected.
    """
    if residual is None and out_dtype is None and compute == "int8" and rounding == "half_even":
        packed = weight if type(weight) is PackedLinear else weight._packed if type(weight) is QTensor else None
        if packed is not None and packed._handle is not None and (activation is None or type(activation) is str):
            result = _short(x, packed._handle, bias, _FAST.get(activation, _CURVE), out_scale, out_zero_point, out)
            if result is not None:
                return result
    _check_compute(compute)
    if packed_on_device.takes(x, weight, compute):
        rest = (bias, activation, residual, out_scale, out_zero_point, out_dtype, rounding, compute, out)
        return packed_on_device.run(packed_on_device.check(x, _weight(weight), *rest))
    if linear_on_device.wanted(x, weight):
        return linear_on_device.run(
            linear_on_device.check(
                x, weight, bias, activation, residual, out_scale, out_zero_point, out_dtype, rounding, compute, out
            )
        )
    call = _check(
        x, weight, bias, activation, residual, out_scale, out_zero_point, out_dtype, rounding, compute, out
    )  # fmt: skip
    if 0 in call.wishes.shape or call.k == 0 or call.way != "kernel":  # A13: no kernel is asked
        return _without_kernel(call)
    problem = call.problem()
    kernel = dispatch.choose(problem)
    target = fused.room(call.wishes, call.a)
    verbose.timed(kernel, problem, kernel.run, call.a, call.part, target, call.epilogue)
    if call.op == OP:
        _road.remember(kernel, call.packed, call.m, call.epilogue is not None and call.epilogue.a_zero is not None)
    return fused.deliver(call.wishes, target, call.library)


def _short(x: Any, handle: Any, bias: Any, activation: Any, out_scale: Any, out_zero: Any, out: Any) -> Any:
    """The result of an ordinary call of a kind that was decided before; else None."""
    if type(x) is not QTensor:
        if out_scale is not None or out_zero is not _ZERO:
            return None
        if type(x) is np.ndarray:
            return _of_floats(x, handle, bias, activation, out)
        return _of_tensors(x, handle, bias, activation, out) if is_torch(x) else None
    if x.dtype not in BYTES or type(x._zero) is not int or x._library != "numpy":
        return None
    if type(out_scale) is F32:
        out_scale = float(out_scale)
    result = of_codes(x._data, handle, bias, activation, out, x._scale, x._zero, out_scale, out_zero)
    if result is None or out is not None or out_scale is None:
        return result
    scale = owned(np.array(out_scale, F32))
    return QTensor._of_codes(result, scale, out_zero, x.dtype, Grain(result.shape), "float32", None, "numpy")


def _of_tensors(x: Any, handle: Any, bias: Any, activation: Any, out: Any) -> Any:
    """Likewise of CPU tensors: their memory is looked at where it lies."""
    if out is None:
        return of_tensors(x, handle, bias, activation, None, "float32") if float_name(x) == "float32" else None
    tensors = [v for v in (x, bias, out) if v is not None]
    if not all(is_torch(v) and v.device.type == "cpu" and v.dtype is x.dtype for v in tensors):
        return None
    if float_name(x) != "float32":
        return None
    x, bias, views = (v if v is None else v.detach().numpy() for v in (x, bias, out))
    result = _of_floats(x, handle, bias, activation, views)
    return result if result is None else out


class Call(NamedTuple):
    x: Any
    packed: PackedLinear
    wishes: fused.Wishes
    way: str  # "kernel", "grouped", or the compute in floats
    a: Any  # (m, k) codes, or float32
    m: int
    k: int
    epilogue: Epilogue | None
    library: str
    op: str = OP
    compute: str = "int8"

    @property
    def part(self) -> Any:
        return self.packed.parts[0] if self.op == OP else part_of_floats(self.packed)

    def problem(self, m: int = 0, part: Any = None) -> Problem:
        """m, part: of other rows and weights than the call's own."""
        left = "f32" if self.a.dtype == F32 else sign_of(self.a.dtype)
        n, m, part = self.wishes.shape[-1], m or self.m, part or self.part
        if isinstance(part, PackedGroups):
            if self.op == "weight_only":
                types = f"{'bf16' if self.compute == 'bfloat16' else 'f32'}{part.code}f32"
            else:
                types = left + part.types
            return Problem(self.op, types, m, n, self.k, part.grouped_layout)
        return Problem(OP, f"{left}{sign_of(part.dtype)}s32", m, n, self.k, part.layout)


def _check(
    x: Any, weight: Any, bias: Any, activation: Any, residual: Any, out_scale: Any, out_zero_point: Any,
    out_dtype: Any, rounding: Any, compute: Any, out: Any,
) -> Call:  # fmt: skip
    packed = _weight(weight)
    if not hasattr(x, "shape"):
        x = np.asarray(x)
    _check_x(x, compute)
    shape, (n, k) = tuple(x.shape), packed.shape
    if not shape or shape[-1] != k:
        found = f"k={shape[-1]} (shape {shape})" if shape else "no dimensions"
        how = "was packed for" if isinstance(weight, PackedLinear) else "has"
        raise ValueError(f"{OP}: x has {found}, weight {how} k={k} (shape {packed.shape})")
    wishes = fused.check_wishes(
        OP, x, (*shape[:-1], n), bias, activation, residual, out_scale, out_zero_point, out_dtype, rounding, out
    )
    m, library = math.prod(shape[:-1]), x._library if isinstance(x, QTensor) else library_of(x)
    part = packed.parts[0]
    scaled = packed.group_size is not None and not (isinstance(part, PackedGroups) and part.scales is None)
    if compute != "int8" or scaled:
        if wishes.kind != "float":
            why = f"compute={compute!r}" if compute != "int8" else "weight has groups along k, which"
            raise ValueError(f"{OP}: {why} gives floats; quantize the result instead of passing out_scale or int32")
        if wishes.bias is not None and wishes.bias.dtype == S32:
            raise ValueError(
                f"{OP}: bias is int32, wanted floats: there is no one unit x_scale · weight_scale here (A10)"
            )
        if compute != "int8" and (isinstance(part, PackedGroups) or packed.group_size is None):
            floats = np.ascontiguousarray(as_float32(x, OP, "x")).reshape(m, k)
            by = epilogue_of_floats(wishes, None, None)
            return Call(x, packed, wishes, "kernel", floats, m, k, by, library, "weight_only", compute)
        if compute != "int8" or not isinstance(part, PackedGroups):
            return Call(x, packed, wishes, compute if compute != "int8" else "grouped", None, m, k, None, library)
    if not isinstance(x, QTensor) and wishes.kind == "codes":  # the multiplier is known when the rows' scales are
        x = dynamic_quantize(x)
    if isinstance(x, QTensor):
        a = x._plain().reshape(m, k)
        scale, zero = _rows(x, m)
    else:
        a, scale, zero = np.ascontiguousarray(as_float32(x, OP, "x")).reshape(m, k), None, None
    if scaled:  # the kernel's sums are floats, weighed already
        return Call(x, packed, wishes, "kernel", a, m, k, epilogue_of_floats(wishes, scale, zero), library)
    columns = packed.columns()
    epilogue = fused.epilogue_of(wishes, scale, columns.scale, zero, columns.zero, weight_scales=columns.scales)
    if k:
        check_columns(OP, limits(x.dtype) if isinstance(x, QTensor) else (-127, 127), k, columns, zero, epilogue.bias)
    return Call(x, packed, wishes, "kernel", a, m, k, epilogue, library)


def epilogue_of_floats(wishes: fused.Wishes, scale: Any, zero: Any) -> Epilogue:
    """A10: y · a_scale, float bias, residual, activation."""
    return fused.epilogue_of(wishes, scale, np.ones(wishes.shape[-1], F32), zero, None, weight_scales=1)


def part_of_floats(packed: PackedLinear) -> PackedGroups:
    """The weight as kernels of op "weight_only" take it: bytes without groups as one group. Made once."""
    part = packed.parts[0]
    if isinstance(part, PackedGroups):
        return part
    if packed._floats is None:
        columns = packed.columns()
        packed._floats = PackedGroups.of_columns(part, columns.scale, columns.zero)
    return packed._floats


def _check_compute(compute: Any) -> None:
    if compute not in COMPUTE:
        raise ValueError(f"{OP}: compute={compute!r}, wanted one of {listed(COMPUTE)}")


def _weight(weight: Any) -> PackedLinear:
    if not isinstance(weight, QTensor | PackedLinear):
        raise TypeError(f"{OP}: weight is {type(weight).__name__}, wanted a QTensor (n, k) or a PackedLinear")
    if weight.ndim != 2:
        also = "; experts go to grouped_linear" if weight.ndim == 3 else ""
        raise ValueError(f"{OP}: weight has shape {weight.shape}, wanted (n, k){also}")
    try:
        return pack_linear(weight)
    except ValueError as error:
        raise ValueError(str(error).replace("pack_linear:", f"{OP}:")) from None


def _check_x(x: Any, compute: str) -> None:
    if isinstance(x, PackedMatrix):
        raise TypeError(f"{OP}: x is {type(x).__name__}, wanted floats or a QTensor; only the weight may be packed")
    if not isinstance(x, QTensor):
        if float_name(x) not in FLOAT_TYPES:
            raise TypeError(
                f"{OP}: x has dtype {float_name(x)}, wanted floats ({listed(FLOAT_TYPES)}) or a QTensor; for bare "
                "integers: matmul, or QTensor(x, 1.0)"
            )
        return
    if compute != "int8":
        raise ValueError(f"{OP}: compute={compute!r} wants a float x, which it does not quantize; x is a QTensor")
    if bits_of(x.dtype) > 8:
        raise ValueError(f"{OP}: x is of {x.dtype}, wanted codes of 8 bits or fewer, or floats")
    if not x.ndim:
        raise ValueError(f"{OP}: x is a scalar, wanted (…, k)")
    last, grain = x.ndim - 1, x._grain
    rows = tuple(range(last))
    fits = f"axis=None{f' or axis={rows[0] if len(rows) == 1 else rows}' if rows else ''} would fit"
    for axis in range(x.ndim):
        if grain.kind(axis) == GROUPED or (axis == last and grain.kind(axis) == KEPT and x.shape[axis] > 1):
            what = "groups" if grain.kind(axis) == GROUPED else "a scale"
            raise ValueError(f"{OP}: x (shape {x.shape}) has {what} along axis {axis}, wanted one scale a row; {fits}")


def _rows(x: QTensor, m: int) -> tuple[np.ndarray, np.ndarray | None]:
    """(float32 (1,) or (m,), int32 (m,) or None): scales and zero points of rows."""
    grain, lead = x._grain, x.shape[:-1]
    scale = x._scale.reshape(1) if x._scale.size == 1 else None
    if scale is None:
        scale = np.ascontiguousarray(np.broadcast_to(grain.aligned(x._scale)[..., 0], lead)).reshape(m)
    if isinstance(x._zero, int):
        return scale, np.full(m, x._zero, S32) if x._zero else None
    zero = np.broadcast_to(grain.aligned(x._zero)[..., 0], lead).astype(S32).reshape(m)
    return scale, zero if zero.any() else None


# ---------------------------------------------------------------- without kernels


def _without_kernel(call: Call) -> Any:
    """Empty things (A13), grouped weights (A10) and floats (A11) in NumPy, in double precision or by groups."""
    wishes, n = call.wishes, call.wishes.shape[-1]
    target = fused.room(wishes)
    if call.way == "kernel" and target.size:  # k = 0: nothing is summed, and zero · (0 − zero) has no terms
        call = _one_zero(call)
        kernel = dispatch.choose(call.problem())
        kernel.run(call.a, call.part, target, call.epilogue)
    elif target.size:
        weight = call.packed.unpack()
        if call.way == "grouped":
            x = call.x if isinstance(call.x, QTensor) else dynamic_quantize(call.x)
            rows = Roles((), tuple(range(x.ndim - 1)), (x.ndim - 1,))
            y: Any = multiply(OP, x, weight, rows, Roles((), (0,), (1,)), np.matmul)
        else:
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                y = as_float32(call.x, OP, "x").astype(np.float64) @ values(weight).T.astype(np.float64)
                y = y.astype(F32)
        wanted = fused.epilogue_of(wishes, None, np.ones(n, F32), None, None, weight_scales=1)
        finish_floats(np.ascontiguousarray(y, F32).reshape(target.shape), wanted, target)
    return fused.deliver(wishes, target, call.library)


def _one_zero(call: Call) -> Call:
    """The same with k = 1, weights 0 without a zero point, activations 0."""
    part = dispatch.pack_weights(np.zeros((1, call.wishes.shape[-1]), np.int8))
    packed = PackedLinear.__new__(PackedLinear)
    packed.parts = (part,)
    epilogue = call.epilogue._replace(w_zero=None) if call.epilogue else None
    return call._replace(op=OP, a=np.zeros((call.m, 1), call.a.dtype), k=1, packed=packed, epilogue=epilogue)


def _problem_of(
    x: Any, weight: Any, bias: Any = None, *, activation: Any = None, residual: Any = None, out_scale: Any = None,
    out_zero_point: Any = 0, out_dtype: Any = None, rounding: Any = "half_even", compute: Any = "int8", out: Any = None,
) -> Problem | str:  # fmt: skip
    _check_compute(compute)
    if packed_on_device.takes(x, weight, compute):
        rest = (bias, activation, residual, out_scale, out_zero_point, out_dtype, rounding, compute, out)
        return packed_on_device.check(x, _weight(weight), *rest).problem()
    if linear_on_device.wanted(x, weight):
        return linear_on_device.check(
            x, weight, bias, activation, residual, out_scale, out_zero_point, out_dtype, rounding, compute, out
        ).problem()
    call = _check(
        x, weight, bias, activation, residual, out_scale, out_zero_point, out_dtype, rounding, compute, out
    )  # fmt: skip
    if call.way == "grouped":
        return "a weight with groups along k: NumPy, group by group (A10)"
    if call.way != "kernel":
        return f"compute={call.way!r}: NumPy, in float64"
    if 0 in call.wishes.shape or call.k == 0:
        return "nothing to compute: an empty product needs no kernel"
    return call.problem()


linear.problem_of = _problem_of  # type: ignore[attr-defined]


def _note_of(
    x: Any, weight: Any, bias: Any = None, *, activation: Any = None, residual: Any = None, out_scale: Any = None,
    out_zero_point: Any = 0, out_dtype: Any = None, rounding: Any = "half_even", compute: Any = "int8", out: Any = None,
) -> str:  # fmt: skip
    if packed_on_device.takes(x, weight, compute) or not linear_on_device.wanted(x, weight):
        return ""
    return linear_on_device.check(
        x, weight, bias, activation, residual, out_scale, out_zero_point, out_dtype, rounding, compute, out
    ).note()


linear.note_of = _note_of  # type: ignore[attr-defined]
