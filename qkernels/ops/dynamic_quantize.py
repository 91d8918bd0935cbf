"""dynamic_quantize: range and codes of activations, found together."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np

from qkernels import dispatch, verbose
from qkernels.arrays import as_float32, as_reals, library_of
from qkernels.checks import owned
from qkernels.device import is_on_device
from qkernels.dtypes import container, known, limits, short
from qkernels.kernel import Problem
from qkernels.ops import ranges_on_device
from qkernels.ops.elementwise import NOTHING, PLACES, ROAD
from qkernels.scales import Grain, grain_of
from qkernels.tensor import QTensor

DYNAMIC_TYPES = ("int8", "uint8", "int4")


def dynamic_quantize(
    x: Any,
    *,
    dtype: Any = "int8",
    per: Literal["tensor", "row"] = "row",
    group_size: int | None = None,
    check_finite: bool = False,
) -> QTensor:
    """Range and codes of x in one pass                                                               arithmetic.md A8

    x             (…, k) float32, float16 and bfloat16 (widened), float64 (rounded to float32 first)
    dtype         "int8", "int4": symmetric, scale = amax/127 or amax/7. "uint8": asymmetric, zero exact; with
                  per="tensor" it is ONNX DynamicQuantizeLinear
    per           "row": a scale for each row, shape (…,); "tensor": one scale
    group_size    with per="row": a scale every group_size along k, shape (…, ⌈k/group_size⌉)
    check_finite  True: NaN or ±∞ in x is an error. Else they take no part in the range; NaN becomes the code of 0
                  (uint8: code 0), ±∞ the ends

    Returns a QTensor of x's shape and library, scale float32, axis = all axes but the last where per="row".
    On a GPU scales and zero points stay there, and a range wider than float32 is not refused: nothing waits for them.
    With check_finite=True the call waits for the answer, and cannot be captured into a CUDA graph.
    Raises  TypeError x's type · ValueError dtype, per, group_size, a range wider than float32 (uint8), NaN or ±∞ if
            asked for · NoKernelError, with every kernel's reason.
    Source  ONNX DynamicQuantizeLinear (uint8); vLLM's and ggml's symmetric rows (int8).
    """
    if group_size is None and not check_finite and type(x) is np.ndarray and type(dtype) is str:
        made = _short(x, dtype, per)
        if made is not None:
            return made
    if is_on_device(x):
        return ranges_on_device.dynamic_quantize(x, dtype, per, group_size, check_finite)
    call = _check(x, dtype, per, group_size, check_finite)
    codes = np.empty(call.x.shape, container(call.dtype))
    scale, zero = np.ones(call.ranges, np.float32), np.zeros(call.ranges, np.int32)
    if codes.size:
        problem = call.problem()
        kernel = dispatch.choose(problem)
        flat = call.x.reshape(call.rows, call.inner), call.group, limits(call.dtype)
        verbose.timed(kernel, problem, kernel.run, *flat, scale, zero, None, codes.reshape(call.rows, call.inner))
        if group_size is None:
            ROAD.remember(kernel, call.rows, call.inner)
    if not np.isfinite(scale).all():
        raise ValueError("dynamic_quantize: x spans a range wider than float32 can express; scale it down")
    shape = call.grain.scale_shape
    kept: Any = 0
    if call.dtype == "uint8":
        kept = owned(zero.astype(np.uint8).reshape(shape)) if shape else int(zero.flat[0])
    scale = owned(scale.reshape(shape))
    return QTensor._of_codes(codes, scale, kept, call.dtype, call.grain, "float32", None, library_of(x))


def _short(x: np.ndarray, dtype: str, per: Any) -> QTensor | None:
    """An ordinary call of a kind that was decided before; None: `_check` shall do it, or refuse."""
    if dtype not in DYNAMIC_TYPES or per not in ("row", "tensor"):
        return None
    made = ROAD.dynamic(x, PLACES[dtype], per == "row")
    if made is None:
        return None
    grain = Grain(x.shape, tuple(range(x.ndim - 1)) if per == "row" else ())
    return QTensor._of_codes(*made, dtype, grain, "float32", None, "numpy")


class _Call(NamedTuple):
    x: np.ndarray  # as kernels read it, contiguous
    real: str  # its type in kernels' names
    dtype: str
    grain: Grain
    rows: int
    inner: int
    group: int

    @property
    def ranges(self) -> tuple[int, int]:
        return self.rows, -(-self.inner // self.group) if self.inner or self.grain.group_size else 1

    def problem(self) -> Problem:
        return Problem("dynamic_quantize", self.real + short(container(self.dtype)), self.rows, self.inner, 1)


def _check(x: Any, dtype: Any, per: Any, group_size: Any, check_finite: bool) -> _Call:
    op = "dynamic_quantize"
    name = known(dtype, DYNAMIC_TYPES, op)
    if per not in ("tensor", "row"):
        raise ValueError(f'{op}: per={per!r}, wanted "tensor" or "row"')
    if per == "tensor" and group_size is not None:
        raise ValueError(f'{op}: group_size={group_size} goes with per="row": groups are parts of rows')
    array, real = as_reals(x, op, "x")
    if per == "row" and array.ndim == 0:
        raise ValueError(f'{op}: x is a scalar, which has no rows; per="tensor" would fit')
    values = as_float32(x, op, "x") if check_finite else array
    if check_finite and not np.isfinite(values).all():
        at = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise ValueError(f"{op}: x has {values[at]} at {at}, wanted finite numbers (check_finite=True)")
    leading = tuple(range(array.ndim - 1)) if per == "row" else None
    grain = grain_of(array.shape, leading, group_size, -1, op)
    inner = array.shape[-1] if per == "row" else array.size
    rows = 1 if per == "tensor" else int(np.prod(array.shape[:-1], dtype=np.int64))
    return _Call(
        np.ascontiguousarray(array).reshape(array.shape), real, name, grain, rows, inner,
        grain.group_size or max(inner, 1),
    )  # fmt: skip


def _problem_of(
    x: Any, *, dtype: Any = "int8", per: str = "row", group_size: int | None = None, check_finite: bool = False
) -> Problem | str:
    if is_on_device(x):
        return ranges_on_device.dynamic_problem(x, dtype, per, group_size, check_finite)
    call = _check(x, dtype, per, group_size, check_finite)
    return call.problem() if call.x.size else NOTHING


dynamic_quantize.problem_of = _problem_of  # type: ignore[attr-defined]
