"""Weights of 8, 4 and 2 bits with groups along k, in Numba: for machines without our compiled kernels, one thread.

Weights are unpacked to int16, zero points taken off, columns adjacent; a row of sums stays in L1 while a group passes.
The fma of A10 is LLVM's intrinsic: `x * y + z` rounds twice, or once, as LLVM pleases.
"""

from __future__ import annotations

import numpy as np

from qkernels.backends._numpy_groups import TYPES, composed, groups_in
from qkernels.kernel import Hardware, Kernel, Problem
from qkernels.weight_groups import LAYOUTS, PackedGroups

F32, S32 = np.float32, np.int32


def sums(a: np.ndarray, w: PackedGroups, a_zero: np.ndarray | None) -> np.ndarray:
    """(m, n): float32 where the groups have scales, int32 (mod 2³²) else."""
    from qkernels.backends import _numba_groups as compiled

    left = a.astype(np.int16, order="C")
    if a_zero is not None:
        left -= a_zero.astype(np.int16)[:, None]
    shape, weights = (len(a), w.shape[1]), w.differences().astype(np.int16)
    if w.scales is not None:
        y = np.zeros(shape, F32)
        compiled.float_sums(left, weights, w.group, np.ascontiguousarray(w.group_scales()), y)
        return y
    total = np.zeros(shape, np.uint32)
    compiled.integer_sums(left, weights, w.group, np.ascontiguousarray(w.group_factors()).view(np.uint32), total)
    return total.view(S32)


def judge(problem: Problem, hardware: Hardware) -> float | str:
    """Microseconds on one core of an AVX2 machine."""
    groups = groups_in(problem)
    if isinstance(groups, str):
        return groups
    if "numba" not in hardware.cpu:
        return "numba is not installed"
    m, n, k = problem.m, problem.n, problem.k
    quantizing = 4.4e-3 * m * k if problem.types.startswith("f32") else 0.0
    return 30 + 4e-3 * k * n + 2 * m * n * k / 20e3 + 1e-3 * m * n * groups + quantizing


KERNELS: tuple[Kernel, ...] = tuple(
    Kernel(f"linear_{a}{w}{acc}_numba", "linear", f"{a}{w}{acc}", "numba", LAYOUTS[bits], judge, composed(sums))
    for a, bits, w, acc in TYPES
)
