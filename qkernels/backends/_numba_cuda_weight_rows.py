"""GPU products with packed weights in Numba: the host's half of `_numba_cuda_weights`. The weight and what follows the
sums are described as to csrc/cuda (backends/_cuda_weights.py): arrays there by their pointers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from qkernels.backends._numba_cuda_arrays import _array
from qkernels.backends._numba_cuda_arrays import _judge as _judge_any
from qkernels.backends._numba_cuda_epilogue import finish_as_told, flat, grid_of, reals
from qkernels.device import DeviceArray
from qkernels.kernel import Hardware, Kernel, Problem


def _sums(x: DeviceArray, w: Any, out: DeviceArray) -> DeviceArray:
    """(m, n): float32, or int32 where all of k is one sum of integers."""
    from qkernels.backends import _numba_cuda_weights as kernels

    blocks, integers = w.blocks, x.dtype == "int8" and w.scales is None
    acc = out.new(out.shape, "int32" if integers else "float32")
    codes, zeros = (_array(flat(v)) for v in (w.codes, w.codes if w.zeros is None else w.zeros))
    has, numbers = int(w.zeros is not None), (blocks.zero, blocks.group, blocks.groups)
    if integers:
        factors = _array(flat(w.codes if w.factors is None else w.factors))
        has += 2 * (w.factors is not None)
        kernels.two_level[grid_of(acc)](_array(x), codes, factors, zeros, blocks.bits, has, *numbers, _array(acc))
        return acc
    run = kernels.grouped if x.dtype == "int8" else kernels.weight_only
    left, scales = reals(x), reals(flat(w.scales)._replace(dtype=w.scale_type))
    run[grid_of(acc)](_array(left), codes, _array(scales), zeros, blocks.bits, has, *numbers, _array(acc))
    return acc


def _run(x: DeviceArray, w: Any, out: DeviceArray, fields: Callable[[Any, int], None]) -> None:
    """As backends/_cuda_weights.py's."""
    finish_as_told(_sums(x, w, out), out, fields)


def _judge(op: str, types: str, problem: Problem, hardware: Hardware) -> float | str:
    cost = _judge_any(op, types, problem, hardware)
    if isinstance(cost, str) or problem.layout.startswith("n64k64"):
        return cost
    return f"reads weights of layout n64k64, not {problem.layout or 'plain ones'}"


TYPES = (
    *(("linear", types) for types in ("s8u4f32", "s8u8f32", "s8u4s32")),
    *(
        ("weight_only", f"{x}u{bits}{acc}")
        for x in ("f32", "f16", "bf16")
        for bits in (4, 8)
        for acc in ("f32", "bf16")
    ),
)
KERNELS = tuple(
    Kernel(
        f"{op}_{types}_numba_cuda", op, types, "numba_cuda", f"n64k64{'x2' if 'u4' in types else ''}",
        functools.partial(_judge, op, types), _run,
    )
    for op, types in TYPES
)  # fmt: skip
