"""What linear and the convolutions share: a user's wishes for what follows the product → an Epilogue, and a result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from qkernels.activations import Activation, check_activation, clamp_codes
from qkernels.arrays import as_array, as_float32, float_name, is_torch, new_array, new_floats
from qkernels.checks import owned, scale_values, zero_array
from qkernels.dtypes import CODE_TYPES, FLOAT_TYPES, bits_of, cast_float, container, known, limits, name_of
from qkernels.epilogue import Epilogue
from qkernels.epilogue import container as written
from qkernels.ops.dequantize import values
from qkernels.rounding import check_rounding, multiplier_of
from qkernels.scales import Grain
from qkernels.tensor import QTensor

F32, S32 = np.float32, np.int32


class Wishes(NamedTuple):
    """What shall follow a product of `shape` (…, n), checked as far as it does not depend on the operands' scales."""

    op: str
    shape: tuple[int, ...]
    dtype: str  # of the result: "int32", a float type, a type of codes
    bias: np.ndarray | None  # (n,) int32 or float32
    activation: Activation
    residual: Any  # None, a QTensor, or float32 of `shape`
    scale: np.ndarray | None  # float32 (), of codes
    zero: int
    rounding: str
    out: Any  # as given
    target: np.ndarray | None  # the same as an array

    @property
    def kind(self) -> str:
        return "s32" if self.dtype == "int32" else "float" if self.dtype in FLOAT_TYPES else "codes"

    @property
    def writes(self) -> str:
        """`Epilogue.out`: what kernels write, before the op makes a float64 of it."""
        if self.kind == "codes":
            return container(self.dtype).name
        return "float32" if self.dtype == "float64" else self.dtype


def check_wishes(
    op: str, x: Any, shape: Sequence[int], bias: Any, activation: Any, residual: Any, out_scale: Any,
    out_zero_point: Any, out_dtype: Any, rounding: Any, out: Any,
) -> Wishes:  # fmt: skip
    """x: the activations, a QTensor or floats, which say what the result is where nothing else does."""
    shape = tuple(shape)
    named = check_rounding(rounding, op)
    act = check_activation(activation, op)
    dtype = _result_type(op, x, out_scale, out_dtype, out)
    scale, zero = None, 0
    if dtype in CODE_TYPES:
        if out_scale is None:
            raise ValueError(f"{op}: out_dtype={dtype!r} needs an out_scale; without one the result is int32 or floats")
        scale, zero = _out_scale(op, out_scale, out_zero_point, dtype)
        check_integer(op, activation, act, residual, named)
    else:
        if np.any(np.asarray(out_zero_point) != 0):
            raise ValueError(f"{op}: out_zero_point={out_zero_point!r} goes with an out_scale")
        if named != "half_even":
            raise ValueError(
                f"{op}: rounding={rounding!r} goes with an out_scale; a result in {dtype} has nothing to round"
            )
    if dtype == "int32" and (act is not None or residual is not None):
        what = "activation" if act is not None else "residual"
        raise ValueError(f'{op}: {what} needs real numbers or codes; out_dtype="int32" gives the bare accumulators')
    checked = _bias(op, bias, shape[-1], isinstance(x, QTensor))
    return Wishes(
        op, shape, dtype, checked, act, _residual(op, residual, shape), scale, zero, named, out,
        _target(op, out, shape, dtype),
    )  # fmt: skip


def _result_type(op: str, x: Any, out_scale: Any, out_dtype: Any, out: Any) -> str:
    quantized = isinstance(x, QTensor)
    if out_dtype is None and out is not None and hasattr(out, "dtype"):
        out_dtype = name_of(out.dtype)
    if out_scale is not None:
        default = x.dtype if quantized else "int8"
        return default if out_dtype is None else known(out_dtype, CODE_TYPES, op, "out_dtype")
    if out_dtype is None:
        return "float32" if quantized else float_name(x)
    name = name_of(out_dtype)
    if name == "int32" and not quantized:
        raise ValueError(
            f'{op}: out_dtype="int32" wants a QTensor x: accumulators of float x have no unit of their own'
        )
    return known(name, ("int32", *FLOAT_TYPES, *CODE_TYPES), op, "out_dtype")


def _out_scale(op: str, out_scale: Any, zero: Any, dtype: str) -> tuple[np.ndarray, int]:
    try:
        scale, _ = scale_values(out_scale, Grain(()), op, "float32")
        zeros = zero_array(zero, dtype, op)
    except (TypeError, ValueError) as error:
        said = (
            str(error).replace(f"{op}: scale", f"{op}: out_scale").replace(f"{op}: zero_point", f"{op}: out_zero_point")
        )
        raise type(error)(said) from None
    if zeros.size != 1:
        raise ValueError(f"{op}: out_zero_point has shape {zeros.shape}, wanted a scalar: the result has one scale")
    return scale.reshape(()), int(zeros.reshape(()))


def check_integer(op: str, said: Any, activation: Activation, residual: Any, rounding: str) -> None:
    if isinstance(activation, str):
        raise ValueError(
            f"{op}: activation={said!r} of codes, wanted a clamp: relu, relu6, (lowest, highest). Leave out_scale out "
            "and quantize the result, or look the codes up in a table of 256"
        )
    if residual is None:
        return
    if not isinstance(residual, QTensor):
        raise ValueError(f"{op}: residual is {type(residual).__name__}, wanted a QTensor where the result is one")
    if math.prod(residual._grain.scale_shape) > 1:
        raise ValueError(f"{op}: residual has {residual._grain}, wanted axis=None: one scale")
    if rounding != "half_even":
        raise ValueError(
            f'{op}: rounding={rounding!r} with a residual, wanted "half_even": the others know no residual'
        )


def _bias(op: str, bias: Any, n: int, quantized: bool) -> np.ndarray | None:
    if bias is None:
        return None
    if float_name(bias) in FLOAT_TYPES:
        values = as_float32(bias, op, "bias")
    else:
        values = as_array(bias, op, "bias")
        if values.dtype.kind not in "iu":
            raise TypeError(f"{op}: bias has dtype {values.dtype}, wanted int32 or floats")
        if not quantized:
            raise ValueError(
                f"{op}: bias is of integers, in units of x_scale · weight_scale, which a float x does not have; "
                "pass the real numbers"
            )
        if values.size and (values.min() < -(2**31) or values.max() >= 2**31):
            raise ValueError(f"{op}: bias has {values.min()}…{values.max()}, outside of int32")
        values = values.astype(S32, copy=False)
    if values.shape != (n,):
        raise ValueError(f"{op}: bias has shape {values.shape}, wanted ({n},)")
    return np.ascontiguousarray(values)


def _residual(op: str, residual: Any, shape: tuple[int, ...]) -> Any:
    if residual is None:
        return None
    if isinstance(residual, QTensor):
        found: Any = residual
    else:
        found = np.ascontiguousarray(as_float32(residual, op, "residual"))
    if tuple(found.shape) != shape:
        raise ValueError(f"{op}: residual has shape {tuple(found.shape)}, the result has {shape}")
    return found


def _target(op: str, out: Any, shape: tuple[int, ...], dtype: str) -> np.ndarray | None:
    """`out` as an array of what is written to it (bfloat16: its bits)."""
    if out is None:
        return None
    if not isinstance(out, np.ndarray) and not is_torch(out):
        raise TypeError(f"{op}: out is {type(out).__name__}, wanted an array of {dtype}")
    wanted = container(dtype).name if dtype in CODE_TYPES else dtype
    if name_of(out.dtype) != wanted:
        raise TypeError(f"{op}: out has dtype {name_of(out.dtype)}, wanted {wanted}")
    if tuple(out.shape) != shape:
        raise ValueError(f"{op}: out has shape {tuple(out.shape)}, the result has {shape}")
    if wanted == "bfloat16":
        import sys

        array = as_array(out.view(sys.modules["torch"].int16) if is_torch(out) else out, op, "out").view(np.uint16)
    else:
        array = as_array(out, op, "out")
    if not array.flags.writeable:
        raise ValueError(f"{op}: out is read-only")
    return array


# ---------------------------------------------------------------- the epilogue


def _finite(op: str, values: np.ndarray, what: str) -> np.ndarray:
    if not np.isfinite(values).all():
        raise ValueError(f"{op}: {what} is not finite in float32 (A0); use smaller scales")
    return values


def epilogue_of(
    wishes: Wishes, a_scale: np.ndarray | None, w_scale: np.ndarray, a_zero: Any, w_zero: Any, *, weight_scales: int,
    linear: bool = True,
) -> Epilogue:  # fmt: skip
    """a_scale: float32 (1,) or (m,), None where the kernel finds it; w_scale: (n,), of `weight_scales` that were given
    (A4 has a rule for one). Zero points: int32 (m,) and (n,), or None. linear: the op is `linear` (A4)."""
    op, bias, n = wishes.op, wishes.bias, wishes.shape[-1]
    made = Epilogue(wishes.writes, a_zero, w_zero, w_scale=w_scale, bias=None if bias is None else bias.reshape(1, n))
    with np.errstate(over="ignore", under="ignore"):
        unit = None if a_scale is None else a_scale[:, None] * w_scale
    if unit is not None:
        _finite(op, unit, "x_scale · weight_scale")
    if wishes.kind != "float" and bias is not None and bias.dtype == F32:
        made = made._replace(bias=_bias_codes(op, bias, unit))
    if wishes.kind == "s32":
        return made
    if wishes.kind == "float":
        return made._replace(a_scale=a_scale, activation=wishes.activation, **_residual_of(wishes, None))
    zero, (low, high) = wishes.zero, limits(wishes.dtype)
    ends = low, high
    if isinstance(wishes.activation, tuple):
        ends = clamp_codes(wishes.activation, wishes.scale, zero, wishes.rounding)
    m, e = _multipliers(wishes, a_scale, w_scale, unit, linear and weight_scales == 1)
    within = min(max(ends[0], low), high), min(max(ends[1], low), high)
    return made._replace(
        rounding=wishes.rounding, m=m, e=e, zero=zero, limits=within, **_residual_of(wishes, wishes.scale)
    )


def _bias_codes(op: str, bias: np.ndarray, unit: Any) -> np.ndarray:
    """A6: rint(f32(bias / unit)), an s32, a row for all or a row each."""
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        t = np.rint(bias / unit)
    if not (np.abs(t) < 2.0**31).all():
        j = int(np.argwhere(~(np.abs(t) < 2.0**31))[0][-1])
        raise ValueError(f"{op}: bias has {bias[j]} at ({j},), which is no int32 in units of x_scale · weight_scale")
    return np.ascontiguousarray(t.astype(S32))


def _multipliers(
    wishes: Wishes, a_scale: Any, w_scale: np.ndarray, unit: Any, one_scale: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """A4, of (1 | m, n): `Epilogue.m` and `.e`."""
    sy = wishes.scale
    with np.errstate(over="ignore", under="ignore"):
        if wishes.rounding == "half_even":
            real: Any = unit / sy
        elif wishes.rounding == "ruy" and one_scale:
            real = unit.astype(np.float64) / np.float64(sy)
        else:
            real = a_scale[:, None].astype(np.float64) * w_scale.astype(np.float64) / np.float64(sy)
    m, e = multiplier_of(_finite(wishes.op, real, "x_scale · weight_scale / out_scale"), wishes.rounding)
    return np.ascontiguousarray(m), None if e is None else np.ascontiguousarray(e)


def _residual_of(wishes: Wishes, out_scale: Any) -> dict[str, Any]:
    r = wishes.residual
    if r is None:
        return {}
    rows = (-1, wishes.shape[-1])
    if not isinstance(r, QTensor):
        return {"residual": r.reshape(rows)}
    if bits_of(r.dtype) <= 8 and r._scale.size == 1 and np.size(r._zero) == 1:
        scale = r._scale.reshape(())
        with np.errstate(over="ignore", under="ignore"):
            scale = (
                scale if out_scale is None else _finite(wishes.op, scale / out_scale, "residual's scale / out_scale")
            )
        zero = int(np.asarray(r._zero).reshape(()))
        codes = np.ascontiguousarray(r._plain()).reshape(rows)
        return {"residual": codes, "residual_scale": float(scale), "residual_zero": zero}
    if out_scale is None:
        return {"residual": values(r).reshape(rows)}
    with np.errstate(over="ignore", under="ignore"):  # 16-bit codes of one scale
        scale = _finite(wishes.op, r._scale.reshape(()) / out_scale, "residual's scale / out_scale")
        difference = r._plain().astype(np.int64) - np.asarray(r._zero, np.int64).reshape(())
        return {"residual": (difference.astype(F32) * scale).reshape(rows)}


# ---------------------------------------------------------------- the result


def room(wishes: Wishes, *inputs: Any) -> np.ndarray:
    """(m, n) for a kernel to write: `out` itself where it may be written directly."""
    target, n = wishes.target, wishes.shape[-1]
    others = [*inputs, wishes.bias, wishes.residual._data if isinstance(wishes.residual, QTensor) else wishes.residual]
    if (
        target is not None and target.flags.c_contiguous and wishes.dtype != "float64" and target.flags.aligned
        and not any(isinstance(x, np.ndarray) and np.may_share_memory(target, x) for x in others)
    ):  # fmt: skip
        return target.reshape(-1, n) if n else target.reshape(0, 0)
    m = int(np.prod(wishes.shape[:-1], dtype=np.int64))
    return np.empty((m, n), written(wishes.writes))


def parts_of(wishes: Wishes) -> tuple:
    """What a QTensor of the resulting codes is made of, behind them and before the library."""
    return owned(np.asarray(wishes.scale)), wishes.zero, wishes.dtype, Grain(wishes.shape), "float32", None


def deliver(wishes: Wishes, filled: np.ndarray, library: str) -> Any:
    """What the caller gets: `out`, a QTensor, or an array of `library`, from what `room` gave and a kernel filled."""
    result = filled.reshape(wishes.shape)
    if wishes.target is not None:
        if not np.may_share_memory(wishes.target, filled):
            wishes.target[...] = result
        return wishes.out
    if wishes.kind == "codes":
        return QTensor._of_codes(result, *parts_of(wishes), library)
    if wishes.dtype == "bfloat16":
        if library == "torch":
            import torch

            return torch.from_numpy(result.view(np.int16)).view(torch.bfloat16)
        return result.view(cast_float(np.empty(0, F32), "bfloat16").dtype)
    if wishes.dtype == "float64":
        return new_floats(result, "float64", library)
    return new_array(result, library)
