"""What the elementwise ops share: arrays of any shape and granularity → problems → kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qkernels import dispatch, verbose
from qkernels.dtypes import CODE_TYPES
from qkernels.kernel import Kernel, Problem, Scales
from qkernels.scales import Block, Grain, blocks, first_block

ROAD = dispatch.ElementRoad(enabled=not verbose.ENABLED)
PLACES = {name: place for place, name in enumerate(CODE_TYPES)}  # as the short ways in know types of codes

NOTHING = "nothing to compute: an empty array needs no kernel"


def problem_of(op: str, types: str, grain: Grain) -> Problem | str:
    """What `explain` is told."""
    rows, inner = first_block(grain)
    return Problem(op, types, rows, inner, 1) if rows else NOTHING


def run(
    op: str,
    types: str,
    source: np.ndarray,
    target: np.ndarray,
    grain: Grain,
    values: Sequence[np.ndarray | None],
    arguments: Callable[[np.ndarray, np.ndarray, Block], tuple[Any, ...]],
) -> None:
    """Fill `target` from `source`, C-contiguous arrays of these types and the grain's shape, by
    kernel.run(*arguments(…)) for each block. values: arrays of the scale's shape."""
    if source.size == 0:  # A13: no kernel is asked
        return
    for block in blocks(grain, (source, target), values):
        x, out = block.arrays
        problem = Problem(op, types, x.shape[0], x.shape[1], 1)
        kernel: Kernel = dispatch.choose(problem)
        verbose.timed(kernel, problem, kernel.run, *arguments(x, out, block))
        ROAD.remember(kernel, *x.shape)


def zero_values(zero: np.ndarray | int, scale: np.ndarray) -> np.ndarray | None:
    """A zero point as kernels take it: int32 of the scale's shape, None if it is zero."""
    if isinstance(zero, int):
        return np.full(scale.shape, zero, np.int32) if zero else None
    return zero.astype(np.int32)


def scales_of(block: Block) -> Scales:
    """Of a block whose values are (scale, zero)."""
    scale, zero = block.values
    return Scales(scale, zero, block.repeat, block.group)
