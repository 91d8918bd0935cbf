"""grouped_linear: a mixture of experts, each row of x against the weight of its expert."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from qkernels import dispatch, verbose
from qkernels.activations import CLAMPS
from qkernels.arrays import as_array, as_float32, float_name, is_torch, library_of
from qkernels.bounds import S32_MAX
from qkernels.device import is_on_device, same_device
from qkernels.dtypes import FLOAT_TYPES
from qkernels.kernel import Problem
from qkernels.ops import experts_on_device, fused
from qkernels.ops.linear import COMPUTE, Call, _check_compute, epilogue_of_floats, linear, pack_linear, part_of_floats
from qkernels.ops.linear import OP as LINEAR
from qkernels.tensor import QTensor
from qkernels.weight import PackedLinear
from qkernels.weight_groups import PackedGroups

OP = "grouped_linear"
_road = dispatch.ExpertsRoad(enabled=not verbose.ENABLED)


def grouped_linear(x: Any, weight: Any, offsets: Any, bias: Any = None, **epilogue: Any) -> Any:
    """Rows offsets[e] … offsets[e + 1] − 1 of x meet weight[e]: `linear` for each expert.      arithmetic.md A6, A10

    x        (tokens, k): floats or a QTensor, rows sorted by expert
    weight   (e, n, k): QTensor or what `pack_linear` made of it; each expert's bytes are read once
    offsets  (e + 1,) integers, from 0 to tokens, never falling; an expert may have no rows. Of an x on a GPU they may
             lie there: then nobody waits to read and check them, and rows of no expert are left as they were
    bias     (e, n), as `linear` takes each row of it
    The rest is `linear`'s: activation, residual (tokens, n), out_scale, out_zero_point, out_dtype, rounding, compute,
    out.
    Raises  TypeError, ValueError as `linear`, and for offsets that do not divide the rows.
    """
    if experts_on_device.wanted(x):
        x, packed = _checked(x, weight)
        return experts_on_device.run(_call_on_device(x, packed, offsets, bias, epilogue))
    if type(offsets) is not np.ndarray:
        same_device(OP, x=x, offsets=offsets)
    result = _short(x, weight, offsets, bias, **epilogue)
    if result is not None:
        return result
    x, packed = _checked(x, weight)
    sizes: Any = packed.shape
    experts, n, _ = sizes
    tokens = x.shape[0]
    ends = _offsets(offsets, experts, tokens)
    if bias is not None and tuple(getattr(bias, "shape", ())) != (experts, n):
        raise ValueError(f"{OP}: bias has shape {tuple(getattr(bias, 'shape', ()))}, wanted ({experts}, {n})")
    residual, out = epilogue.get("residual"), epilogue.get("out")
    for name, value in (("residual", residual), ("out", out)):
        if value is not None and tuple(value.shape) != (tokens, n):
            raise ValueError(f"{OP}: {name} has shape {tuple(value.shape)}, wanted ({tokens}, {n})")
    result = _together(x, packed, ends, bias, **epilogue)
    return _one_by_one(x, packed, ends, bias, **epilogue) if result is None else result


def _short(x: Any, weight: Any, offsets: Any, bias: Any, activation: Any = None, out: Any = None, **others: Any) -> Any:
    """The result of an ordinary call of a kind that was decided before; else None."""
    packed = weight if type(weight) is PackedLinear else weight._packed if type(weight) is QTensor else None
    made = None if others or packed is None else packed._together.get(False)
    if made is None:
        return None
    if activation is not None and not (type(activation) is str and activation in CLAMPS):
        return None
    ends = offsets if type(offsets) is np.ndarray else np.asarray(offsets)
    clamp = None if activation is None else CLAMPS[activation]
    return _road.short(x, made[0], ends, bias, clamp, out)


def _together(
    x: Any, packed: PackedLinear, ends: list[int], bias: Any, *, activation: Any = None, residual: Any = None,
    out_dtype: Any = None, compute: Any = "int8", out: Any = None, **unusual: Any,
) -> Any:  # fmt: skip
    """Floats of floats in host memory: all experts in one call, each expert's weights read once. Else None."""
    sizes: Any = packed.shape
    experts, n, k = sizes
    part, floats = packed.parts[0], compute != "int8"
    grouped = isinstance(part, PackedGroups)
    if unusual or not ends[-1] or not n or not k or not _road.enabled or compute not in COMPUTE:
        return None
    if isinstance(x, QTensor) or float_name(x) not in FLOAT_TYPES or is_on_device(x):
        return None
    if (packed.group_size is not None and not grouped) or (bias is not None and float_name(bias) not in FLOAT_TYPES):
        return None
    if not floats and 127 * 255 * k > S32_MAX:  # the columns must be looked at
        return None
    try:
        shape = ends[-1], n
        wishes = fused.check_wishes(OP, x, shape, None, activation, residual, None, 0, out_dtype, "half_even", out)
        biases = None if bias is None else np.ascontiguousarray(as_float32(bias, OP, "bias"))
    except (TypeError, ValueError):  # which the first expert says better
        return None
    if wishes.kind != "float":
        return None
    a = np.ascontiguousarray(as_float32(x, OP, "x"))
    call = Call(
        x, packed, wishes, "kernel", a, 0, k, epilogue_of_floats(wishes, None, None), library_of(x),
        "weight_only" if floats else LINEAR, compute,
    )  # fmt: skip
    counts = [end - begin for begin, end in itertools.pairwise(ends)]
    first = part_of_floats(packed.expert(0)) if floats else part
    rows = _road.rows(counts, lambda m: call.problem(m, first))
    if rows is None:
        return None
    target = fused.room(wishes, a, biases)

    def parts() -> list[Any]:
        return [part_of_floats(packed.expert(e)) for e in range(experts)] if floats else list(packed.parts)

    _road.run(packed, parts, floats, rows, ends[1:], a, target, call.epilogue, biases)
    return fused.deliver(wishes, target, call.library)


def _one_by_one(
    x: Any, packed: PackedLinear, ends: list[int], bias: Any, residual: Any = None, out: Any = None, **epilogue: Any
) -> Any:
    parts, tokens = [], ends[-1]
    for e in range(len(ends) - 1):
        rows = slice(ends[e], ends[e + 1])
        if rows.start == rows.stop and (tokens or e):
            continue
        of_rows = {name: v[rows] for name, v in (("residual", residual), ("out", out)) if v is not None}
        of_expert = None if bias is None else bias[e]
        try:
            parts.append(linear(x[rows], packed.expert(e), of_expert, **of_rows, **epilogue))
        except (TypeError, ValueError) as error:
            raise type(error)(str(error).replace("linear:", f"{OP}: expert {e}:", 1)) from None
    if out is not None:
        return out if not isinstance(parts[0], QTensor) else _joined(parts)
    return _joined(parts)


def _problem_of(x: Any, weight: Any, offsets: Any, bias: Any = None, **epilogue: Any) -> Problem | str:
    x, packed = _checked(x, weight)
    if experts_on_device.wanted(x):
        return _call_on_device(x, packed, offsets, bias, epilogue).problem()
    return "linear's kernels, for all experts at once where they can: explain(linear, …) says which"


grouped_linear.problem_of = _problem_of  # type: ignore[attr-defined]


def _call_on_device(x: Any, packed: PackedLinear, offsets: Any, bias: Any, wishes: dict[str, Any]) -> Any:
    experts = packed.shape[0]
    if not is_on_device(offsets):
        offsets = np.array(_offsets(offsets, experts, x.shape[0]), np.int32)
    try:
        _check_compute(wishes.get("compute", "int8"))
        return experts_on_device.check(x, packed, offsets, bias, **wishes)
    except (TypeError, ValueError) as error:
        raise type(error)(str(error).replace("linear:", f"{OP}:", 1)) from None


def _checked(x: Any, weight: Any) -> tuple[Any, PackedLinear]:
    packed = _experts(weight)
    k = packed.shape[-1]
    if not hasattr(x, "shape"):
        x = np.asarray(x)
    if len(x.shape) != 2 or x.shape[1] != k:
        raise ValueError(f"{OP}: x has shape {tuple(x.shape)}, wanted (tokens, {k}) for a weight {packed.shape}")
    return x, packed


def _experts(weight: Any) -> PackedLinear:
    if not isinstance(weight, QTensor | PackedLinear):
        raise TypeError(f"{OP}: weight is {type(weight).__name__}, wanted a QTensor (e, n, k) or a PackedLinear")
    if weight.ndim != 3:
        also = "; one weight for all rows goes to linear" if weight.ndim == 2 else ""
        raise ValueError(f"{OP}: weight has shape {weight.shape}, wanted (e, n, k){also}")
    if weight.shape[0] == 0:
        raise ValueError(f"{OP}: weight has shape {weight.shape}, wanted at least one expert")
    try:
        return pack_linear(weight)
    except ValueError as error:
        raise ValueError(str(error).replace("pack_linear:", f"{OP}:")) from None


def _offsets(offsets: Any, experts: int, tokens: int) -> list[int]:
    found = as_array(offsets, OP, "offsets") if hasattr(offsets, "shape") else np.asarray(offsets)
    if found.dtype.kind not in "iu":
        raise TypeError(f"{OP}: offsets has dtype {found.dtype}, wanted integers")
    if found.shape != (experts + 1,):
        raise ValueError(f"{OP}: offsets has shape {found.shape}, wanted ({experts + 1},) for {experts} experts")
    ends: list[int] = found.tolist()
    if ends[0] != 0 or ends[-1] != tokens or (found[1:] < found[:-1]).any():
        raise ValueError(
            f"{OP}: offsets are {ends[0]} … {ends[-1]}, wanted 0 … {tokens} (the rows of x), never falling"
        )
    return ends


def _joined(parts: list[Any]) -> Any:
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, QTensor):
        codes = np.concatenate([part._plain() for part in parts])
        return QTensor(codes, first._scale, first._zero, dtype=first.dtype)
    if is_torch(first):
        import sys

        return sys.modules["torch"].cat(parts)
    return np.concatenate(parts)
