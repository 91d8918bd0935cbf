"""Everything that follows the accumulation, as kernels take it: one noun for linear, convolutions, all weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from qkernels.activations import Activation, activate
from qkernels.dtypes import bfloat16_bits

F32 = np.float32
FLOATS = ("float32", "float16", "bfloat16")  # of `Epilogue.out`
CODES = ("int8", "uint8", "int16", "uint16")


class Epilogue(NamedTuple):
    """What becomes of acc[i, j] = Σ_k (a − a_zero_i)(w − w_zero_j), i of m rows, j of n columns     A2, A6

    out is one of three kinds, and says which of the fields below are used:

        "int32"   acc + bias                                                                               mod 2³²
        a float   y = f32(f32(acc) · f32(a_scale_i · w_scale_j)), an int32 bias inside of acc; then each that is there:
                  + float bias, + residual, activation, cast                                                    A6
        codes     clamp(round(acc + bias) + zero, limits), round as `rounding` and `m`, `e` say; a residual joins
                  f32(f32(acc + bias)·m) before it is rounded (half_even only); NaN becomes limits[0]        A5, A6

    Arrays are C contiguous. (1 | m, n) is one row for all, or a row each. Whatever arrays are None is left out.
    """

    out: str  # "int32"; "float32" "float16" "bfloat16" (uint16 bits); "int8" "uint8" "int16" "uint16"
    a_zero: Any = None  # int32 (m,)
    w_zero: Any = None  # int32 (n,)
    bias: Any = None  # int32 (1 | m, n); of float results also float32 (1, n)
    a_scale: Any = None  # float32 (1,) or (m,); None: the kernel finds it, because a is float (A8)
    w_scale: Any = None  # float32 (n,)
    activation: Activation = None  # of float results: (lowest, highest) or a curve's name
    rounding: str = "half_even"
    m: Any = None  # (1 | m, n) half_even: float32. half_away: float64. gemmlowp, ruy, half_up: int32 q of q·2^(e−31)
    e: Any = None  # int32 of m's shape, for those three (kernel.Multipliers)
    zero: int = 0
    limits: tuple[int, int] = (0, 0)  # of the codes: the type's after the activation's, which lemma 1 makes one
    residual: Any = None  # (m, n) float32, added as it is; or int8, uint8: f32(f32(r − residual_zero)·residual_scale)
    residual_scale: float = 1.0  # a float32; of codes sr/sy
    residual_zero: int = 0

    @property
    def is_float(self) -> bool:
        return self.out in FLOATS

    def rows(self, part: slice) -> Epilogue:
        """The epilogue of some of the rows."""

        def cut(value: Any) -> Any:
            return value if value is None or len(value) == 1 else value[part]

        whole = self.residual if self.residual is None else self.residual[part]
        return self._replace(
            a_zero=None if self.a_zero is None else self.a_zero[part], bias=cut(self.bias), m=cut(self.m),
            e=cut(self.e), a_scale=cut(self.a_scale), residual=whole,
        )  # fmt: skip


def container(out: str) -> np.dtype:
    """The NumPy type of the array that a kernel writes."""
    return np.dtype("uint16" if out == "bfloat16" else out)


# ---------------------------------------------------------------- in NumPy, for what has no kernel of its own


def residual_values(by: Epilogue) -> np.ndarray:
    """The residual in float32 (A9)."""
    if by.residual.dtype == F32:
        return by.residual
    difference = by.residual.astype(np.int32) - np.int32(by.residual_zero)
    with np.errstate(over="ignore", under="ignore"):
        return difference.astype(F32) * F32(by.residual_scale)


def finish_floats(y: np.ndarray, by: Epilogue, out: np.ndarray) -> None:
    """out = y + float bias + residual, activated, cast. y (m, n) float32 is used up."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if by.bias is not None and by.bias.dtype == F32:
            y += by.bias
        if by.residual is not None:
            y += residual_values(by)
        y = activate(y, by.activation)
        out[...] = bfloat16_bits(y) if by.out == "bfloat16" else y
