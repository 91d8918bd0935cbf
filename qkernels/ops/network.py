"""What the ops between products share: QTensors of one scale, the result's scale, the layout of images, the run."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkernels import dispatch, verbose
from qkernels.checks import scale_values, zero_values
from qkernels.dtypes import container, known, short
from qkernels.kernel import Problem, Window
from qkernels.ops.elementwise import NOTHING, ROAD
from qkernels.scales import Grain
from qkernels.tensor import QTensor

F32 = np.float32
TYPES = ("int8", "uint8")
LAYOUTS = ("NHWC", "NCHW")


def tensor(q: Any, op: str, name: str) -> QTensor:
    """A QTensor of 8 bits with one scale, or an error that says what else came."""
    if not isinstance(q, QTensor):
        raise TypeError(f"{op}: {name} is {type(q).__name__}, wanted a QTensor")
    if q.dtype not in TYPES:
        raise ValueError(f"{op}: {name} has dtype {q.dtype}, wanted one of {', '.join(TYPES)}")
    if q._scale.size != 1 or not isinstance(q._zero, int):
        raise ValueError(f"{op}: {name} has {q._grain}, wanted one scale and zero point for all of it (axis=None)")
    return q


def scale_of(q: QTensor) -> np.float32:
    return F32(q._scale.reshape(())[()])


def out_scale(scale: Any, zero: Any, like: QTensor, op: str, required: bool = False) -> tuple[np.float32, int]:
    """The result's scale and zero point; without a scale those of `like`, unless one is required."""
    if scale is None:
        if required:
            raise ValueError(f"{op}: out_scale is None, wanted a number > 0")
        if zero:
            raise ValueError(f"{op}: out_zero_point={zero!r} without an out_scale")
        assert isinstance(like._zero, int)
        return scale_of(like), like._zero
    values, _ = scale_values(scale, Grain(()), op)
    point = zero_values(zero, Grain(()), like.dtype, op)
    assert isinstance(point, int)
    return F32(values.reshape(())[()]), point


def result(codes: np.ndarray, scale: np.float32, zero: int, like: QTensor) -> QTensor:
    held = np.asarray(scale, F32)
    held.flags.writeable = False
    return QTensor._of_codes(codes, held, zero, like.dtype, Grain(codes.shape), "float32", None, like._library)


def problem_of(op: str, types: str, shape: tuple[int, ...], k: int = 1) -> Problem | str:
    size = int(np.prod(shape, dtype=np.int64))
    return Problem(op, types, size // shape[-1] if shape else 1, shape[-1] if shape else 1, k) if size else NOTHING


def run(op: str, types: str, shape: tuple[int, ...], arguments: tuple[Any, ...], k: int = 1) -> None:
    """Run the cheapest kernel, if there is something to compute."""
    problem = problem_of(op, types, shape, k)
    if isinstance(problem, Problem):
        kernel = dispatch.choose(problem)
        verbose.timed(kernel, problem, kernel.run, *arguments)
        ROAD.remember(kernel, 1, problem.m * problem.n)


def letters(q: QTensor) -> str:
    return short(container(q.dtype))


# ---------------------------------------------------------------- images


def images(q: Any, layout: Any, op: str) -> tuple[QTensor, np.ndarray]:
    """(q, its codes as (n, h, w, c), a view)."""
    if layout not in LAYOUTS:
        raise ValueError(f"{op}: layout={layout!r}, wanted one of {', '.join(LAYOUTS)}")
    tensor(q, op, "x")
    if q.ndim != 4:
        raise ValueError(f"{op}: x has shape {q.shape}, wanted 4 axes, {layout}")
    codes = q._plain()
    return q, codes if layout == "NHWC" else codes.transpose(0, 2, 3, 1)


def in_layout(shape: tuple[int, int, int, int], dtype: np.dtype, layout: str) -> tuple[np.ndarray, np.ndarray]:
    """(a new array as the user's layout has it, the same as (n, h, w, c))."""
    if layout == "NHWC":
        made = np.empty(shape, dtype)
        return made, made
    n, h, w, c = shape
    made = np.empty((n, c, h, w), dtype)
    return made, made.transpose(0, 2, 3, 1)


def _pair(value: Any, op: str, name: str, least: int) -> tuple[int, int]:
    both = value if isinstance(value, tuple | list) else (value, value)
    if len(both) != 2 or any(isinstance(v, bool) or not isinstance(v, int | np.integer) for v in both):
        raise TypeError(f"{op}: {name}={value!r}, wanted an int or two")
    if min(both) < least:
        raise ValueError(f"{op}: {name}={value!r}, wanted at least {least}")
    return int(both[0]), int(both[1])


def window_of(
    kernel: Any, stride: Any, padding: Any, dilation: Any, size: tuple[int, int], op: str
) -> tuple[Window, tuple[int, int]]:
    """(the window, the (h, w) of the result), as A12 has them."""
    k, d = _pair(kernel, op, "kernel", 1), _pair(dilation, op, "dilation", 1)
    s = k if stride is None else _pair(stride, op, "stride", 1)
    pads = _pads(padding, k, s, d, size, op)
    for axis in (0, 1):
        if max(pads[axis]) >= k[axis] * d[axis]:
            raise ValueError(
                f"{op}: padding={padding!r}, wanted less than the kernel {k}: windows outside of the image"
            )
    height, width = (
        max(0, (size[i] + sum(pads[i]) - d[i] * (k[i] - 1) - 1) // s[i] + 1) for i in range(2)
    )  # fmt: skip
    return Window(k, s, pads, d), (height, width)


def _pads(padding: Any, k: Any, s: Any, d: Any, size: tuple[int, int], op: str) -> Any:
    if isinstance(padding, str):
        known(padding, ("valid", "same_upper", "same_lower"), op, "padding")
        if padding == "valid":
            return (0, 0), (0, 0)
        pads = []
        for i in (0, 1):
            total = max(0, (-(-size[i] // s[i]) - 1) * s[i] + d[i] * (k[i] - 1) + 1 - size[i])
            pads.append(
                (total // 2, total - total // 2) if padding == "same_upper" else (total - total // 2, total // 2)
            )
        return tuple(pads)
    both = padding if isinstance(padding, tuple | list) else (padding, padding)
    if len(both) != 2:
        raise TypeError(f"{op}: padding={padding!r}, wanted an int, (h, w), or ((top, bottom), (left, right))")
    return tuple(_pair(v, op, "padding", 0) for v in both)
