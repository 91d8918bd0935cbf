"""Rows for real numbers of other types than float32 (A1): those of float32, with all of it widened or narrowed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qkernels.dtypes import bfloat16_bits, from_bfloat16_bits

REALS = ("f32", "f16", "bf16", "f64")  # bf16: its bits, in uint16
F32 = np.float32


def reads(real: str, run: Callable[..., None]) -> Callable[..., None]:
    """run(x, …) of float32 x → the same of x in `real`."""
    if real == "f32":
        return run

    def widened(x: np.ndarray, *rest: Any) -> None:
        with np.errstate(over="ignore", under="ignore"):
            run(from_bfloat16_bits(x) if real == "bf16" else x.astype(F32), *rest)

    return widened


def writes(real: str, run: Callable[..., None]) -> Callable[..., None]:
    """run(…, out) into float32 out → the same into `real`."""
    if real == "f32":
        return run

    def narrowed(*arguments: Any) -> None:
        *rest, out = arguments
        values = np.empty(out.shape, F32)
        run(*rest, values)
        with np.errstate(over="ignore", under="ignore"):
            out[...] = bfloat16_bits(values) if real == "bf16" else values

    return narrowed
