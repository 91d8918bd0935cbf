"""GPU products with packed weights in Numba: the host's half of `_numba_cuda_weights`. The weight and what follows the
sums are described as to csrc/cuda (backends/_cuda_weights.py): arrays there by their pointers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from qkernels.backends import numba_cuda
from qkernels.device import DeviceArray
from qkernels.kernel import Hardware, Kernel, Problem

FLOATS = {1: "float32", 2: "float16", 3: "bfloat16"}  # the numbers of types in csrc/cuda/calls.h


def _said(fields: Callable[[Any, int], None]) -> Any:
    """What the op puts into an epilogue: nothing, where it puts nothing."""
    said = SimpleNamespace(
        a_scale=0, a_scale_step=0, w_scale=0, w_scale_step=0, float_bias=0, residual=0, residual_type=1, curve=0,
        clamps=False, clamp_low=0.0, clamp_high=0.0, y_scale=1.0, y_zero=0, low=0, high=0,
    )  # fmt: skip
    fields(said, 0)
    return said


def _at(like: DeviceArray, pointer: int, dtype: str, *shape: int) -> DeviceArray:
    return like._replace(pointer=pointer, dtype=dtype).shaped(*shape)


def _flat(x: DeviceArray) -> DeviceArray:
    return x.shaped(x.size)


def _reals(x: DeviceArray) -> Any:
    """float32 and float16 as they are, bfloat16 widened: for a kernel."""
    from qkernels.backends import _numba_cuda_weights as kernels

    if x.dtype not in ("bfloat16", "uint16"):
        return numba_cuda._array(x)
    x = x.whole()
    wide = x.new(x.shape, "float32")
    kernels.widened[numba_cuda._blocks(x, kernels.THREADS), kernels.THREADS, numba_cuda._stream(x)](
        numba_cuda._array(_flat(x)._replace(dtype="uint16")),
        numba_cuda._array(wide.shaped(x.size, 2)._replace(dtype="uint16")),
    )
    return numba_cuda._array(wide)


def _sums(x: DeviceArray, w: Any, out: DeviceArray) -> DeviceArray:
    """(m, n): float32, or int32 where all of k is one sum of integers."""
    from qkernels.backends import _numba_cuda_weights as kernels

    blocks, integers = w.blocks, x.dtype == "int8" and w.scales is None
    acc = out.new(out.shape, "int32" if integers else "float32")
    zeros = numba_cuda._array(_flat(w.codes if w.zeros is None else w.zeros))
    has, numbers = int(w.zeros is not None), (blocks.zero, blocks.group, blocks.groups)
    grid = numba_cuda._blocks(acc, kernels.THREADS), kernels.THREADS, numba_cuda._stream(out)
    codes, sums = numba_cuda._array(_flat(w.codes)), numba_cuda._array(acc)
    if integers:
        factors = numba_cuda._array(_flat(w.codes if w.factors is None else w.factors))
        has += 2 * (w.factors is not None)
        kernels.two_level[grid](numba_cuda._array(x), codes, factors, zeros, blocks.bits, has, *numbers, sums)
        return acc
    run = kernels.grouped if x.dtype == "int8" else kernels.weight_only
    scales = _flat(w.scales)._replace(dtype=w.scale_type)
    run[grid](_reals(x), codes, _reals(scales), zeros, blocks.bits, has, *numbers, sums)
    return acc


def _run(x: DeviceArray, w: Any, out: DeviceArray, fields: Callable[[Any, int], None]) -> None:
    """As backends/_cuda_weights.py's."""
    from qkernels.backends import _numba_cuda_conv as epilogues
    from qkernels.backends import _numba_cuda_weights as kernels

    said, acc, (m, n) = _said(fields), _sums(x, w, out), out.shape
    grid = numba_cuda._blocks(out, kernels.THREADS), kernels.THREADS, numba_cuda._stream(out)
    array = numba_cuda._array
    ones = out.constant(1, "float32", (max(m, n),))
    a_scale = _at(out, said.a_scale, "float32", m if said.a_scale_step else 1) if said.a_scale else ones.shaped(1)
    w_scale = _at(out, said.w_scale, "float32", n) if said.w_scale else ones.shaped(n)
    if out.dtype in ("int8", "uint8"):
        limits = said.y_zero, said.low, said.high
        kernels.coded[grid](*map(array, (acc, a_scale, w_scale)), said.y_scale, *limits, array(out))
        return
    bias = array(_at(out, said.float_bias, "float32", 1, n) if said.float_bias else ones.shaped(1, n))
    residual = _reals(_at(out, said.residual, FLOATS[said.residual_type], m, n)) if said.residual else bias
    has = epilogues.BIAS * bool(said.float_bias) + epilogues.RESIDUAL * bool(said.residual)
    act = epilogues.GELU + said.curve - 1 if said.curve else epilogues.CLAMP if said.clamps else epilogues.NONE
    target = out.new(out.shape, "float32") if out.dtype == "bfloat16" else out
    epilogues.floats[grid](
        *map(array, (acc, a_scale, w_scale)), bias, residual, has, 1.0, 0, act, said.clamp_low, said.clamp_high,
        array(target),
    )  # fmt: skip
    if out.dtype == "bfloat16":
        epilogues.bfloats[grid](array(numba_cuda._bits(target)), array(numba_cuda._halves(out)))


def _judge(op: str, types: str, problem: Problem, hardware: Hardware) -> float | str:
    cost = numba_cuda._judge(op, types, problem, hardware)
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
