"""What backends without intrinsics share of weights with groups: from their sums to results."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qkernels.backends._numpy_epilogue import finish, quantized_rows
from qkernels.epilogue import Epilogue, finish_floats
from qkernels.kernel import Problem
from qkernels.weight_groups import LAYOUTS, LETTERS, PackedGroups

F32, S32 = np.float32, np.int32

Sums = Callable[[np.ndarray, PackedGroups, np.ndarray | None], np.ndarray]


def finish_groups(y: np.ndarray, by: Epilogue, out: np.ndarray) -> None:
    """out = the epilogue of the float sums y (m, n), which are used up."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        y *= by.a_scale[:, None]
    finish_floats(y, by, out)


def composed(sums: Sums) -> Callable[[np.ndarray, PackedGroups, np.ndarray, Epilogue], None]:
    """`Kernel.run` of op "linear" from sums(a, w, a_zero): float32 (m, n), or int32."""

    def run(a: np.ndarray, w: PackedGroups, out: np.ndarray, by: Epilogue) -> None:
        if a.dtype == F32:
            a, scale = quantized_rows(a)
            by = by._replace(a_scale=scale)
        found = sums(a, w, by.a_zero)
        (finish if found.dtype == S32 else finish_groups)(found, by, out)

    return run


def groups_in(problem: Problem) -> int | str:
    """How many groups k has, by `Problem.layout` ("n16k4x2/32": groups of 32), or why the weights are none of these."""
    layout, _, group = problem.layout.partition("/")
    if problem.op not in ("linear", "weight_only") or layout not in LAYOUTS.values():
        return f"reads weights in groups of linear, not {problem.op} of layout {problem.layout or 'plain'}"
    return -(-problem.k // int(group)) if group else 1


TYPES = [  # activations, bits, their letters, accumulator
    (a, bits, w, acc)
    for bits, letters in LETTERS.items()
    for w in letters
    for acc in ("f32", "s32")
    if bits < 8 or acc == "f32"
    for a in ("u8", "s8", "f32")
]
