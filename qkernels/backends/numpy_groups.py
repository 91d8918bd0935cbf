"""Weights of 8, 4 and 2 bits with groups along k, in NumPy: exact chunks of float32 GEMM, group by group.

    y = fma(f32(Σ_{k∈g} (a − za)(w − z)), s[g], y)      or, without scales,      acc += i[g] · Σ_{k∈g} …        A10

A group's product is one float32 GEMM while group · 255 · max|w − z| ≤ 2²⁴ (lemma 2), longer ones run in chunks. The
fma is the one of rounding.py: float64, rounded to odd.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qkernels.backends._numpy_groups import TYPES, composed, groups_in
from qkernels.epilogue import Epilogue, finish_floats
from qkernels.kernel import Hardware, Kernel, Problem
from qkernels.rounding import fma32
from qkernels.weight_groups import LAYOUTS, LETTERS, PackedGroups

F32, S32 = np.float32, np.int32
K_CHUNK = {bits: 2**24 // (255 * ((1 << bits) - 1)) for bits in LAYOUTS}


def group_sum(a: np.ndarray, w: np.ndarray, chunk: int) -> np.ndarray:
    """Σ_k a·w of float32 (m, k) and (k, n), exact, in int32."""
    total = np.zeros((len(a), w.shape[1]), S32)
    for k in range(0, a.shape[1], chunk):
        total += np.matmul(a[:, k : k + chunk], w[k : k + chunk]).astype(S32)
    return total


def sums(a: np.ndarray, w: PackedGroups, a_zero: np.ndarray | None) -> np.ndarray:
    """(m, n): float32 where the groups have scales, int32 (mod 2³²) else."""
    plain, left = w.differences().astype(F32), a.astype(F32)
    if a_zero is not None:
        left -= a_zero[:, None]
    floats = w.scales is not None
    weights = w.group_scales() if floats else w.group_factors()
    y: Any = np.zeros((len(a), w.shape[1]), F32 if floats else np.uint32)
    for g in range(w.groups):
        part = slice(g * w.group, (g + 1) * w.group)
        acc = group_sum(left[:, part], plain[part], K_CHUNK[w.bits])
        y = fma32(acc.astype(F32), weights[g], y) if floats else y + acc.view(np.uint32) * weights[g].view(np.uint32)
    return y if floats else y.view(S32)


def judge(problem: Problem, hardware: Hardware) -> float | str:
    """Microseconds on one core of an AVX2 machine: unpacking, the products, an fma of eight passes for each group."""
    groups = groups_in(problem)
    if isinstance(groups, str):
        return groups
    m, n, k = problem.m, problem.n, problem.k
    quantizing = 4.4e-3 * m * k if problem.types.startswith("f32") else 0.0
    return 50 + groups * 40 + 4e-3 * k * n + 2 * m * n * k / 80e3 + 20e-3 * m * n * groups + quantizing


def run_floats(x: np.ndarray, w: PackedGroups, out: np.ndarray, by: Epilogue) -> None:
    """A11: real activations, weights dequantized, products and sums in float64."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        y = (x.astype(np.float64) @ w.values()).astype(F32)
    finish_floats(y, by, out)


def judge_floats(problem: Problem, hardware: Hardware) -> float | str:
    if problem.op != "weight_only":
        return f"is for weight_only, not {problem.op}"
    product = judge(problem._replace(types=""), hardware)
    return product if isinstance(product, str) else product + 8e-3 * problem.k * problem.n


FLOATS = ("f32", "bf16")  # what is multiplied: compute="float32", "bfloat16"; float64 is within both bounds


def _kernel(op: str, types: str, bits: int, judge: Any, run: Any) -> Kernel:
    return Kernel(f"{op}_{types}_numpy", op, types, "numpy", LAYOUTS[bits], judge, run)


KERNELS: tuple[Kernel, ...] = (
    *(_kernel("linear", f"{a}{w}{acc}", bits, judge, composed(sums)) for a, bits, w, acc in TYPES),
    *(
        _kernel("weight_only", f"{x}{w}f32", bits, judge_floats, run_floats)
        for bits, letters in LETTERS.items()
        for w in letters
        for x in FLOATS
    ),
)
