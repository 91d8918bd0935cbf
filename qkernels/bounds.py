"""When can a sum of products leave int32? (A2) Answered before the product starts, never found out after it."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkernels.weight import Columns, PackedMatrix

# k up to which no sum of products can, whatever the values; with any zero point it is the smallest
K_BOUND = {"s8s8": 131_071, "u8s8": 65_793, "s8u8": 65_793, "u8u8": 33_025}
K_BOUND_ZERO = 33_025
K_CHUNK = 32_768  # of a product summed in int64


def sign_of(dtype: np.dtype) -> str:
    return "s8" if dtype.kind == "i" else "u8"


def check_int32(op: str, a_type: np.dtype, b: Any, k: int, a_zero: Any, b_zero: Any) -> None:
    """Raise ValueError where Σ_k (a − a_zero)(b − b_zero) may not fit. Zero points: ints or arrays."""
    if k <= K_BOUND_ZERO:
        return
    any_zero = not (isinstance(a_zero, int) and isinstance(b_zero, int) and a_zero == b_zero == 0)
    types = sign_of(a_type) + sign_of(b.dtype)
    bound = K_BOUND_ZERO if any_zero else K_BOUND[types]
    if k <= bound:
        return
    if isinstance(b, PackedMatrix):  # the values are known: each column's own sum of magnitudes decides
        limits = np.iinfo(a_type)
        reach = max(int(limits.max - np.min(a_zero)), int(np.max(a_zero) - limits.min))
        worst = max(b.magnitude(int(zero)) for zero in np.unique(b_zero))
        if reach * worst < 2**31:
            return
        why = f"a column of b reaches {reach} · {worst} ≥ 2³¹"
    else:
        why = f"{types[:2]}·{types[2:]}{' with zero points' if any_zero else ''} is exact up to k={bound}"
    raise ValueError(f'{op}: k={k} could overflow int32: {why}; pass dtype="int64" or overflow="wrap"')


S32_MAX = 2**31 - 1


def check_columns(op: str, codes: tuple[int, int], k: int, columns: Columns, a_zero: Any, bias: Any) -> None:
    """Raise ValueError where Σ_k (a − a_zero)(w − w_zero) + bias may leave int32 in some column.

    codes: the lowest and highest that a has; a_zero, bias: int32 arrays or None (a float bias is none here).
    """
    low, high = codes
    zeros = (0, 0) if a_zero is None else (int(a_zero.min(initial=0)), int(a_zero.max(initial=0)))
    reach = max(high - zeros[0], zeros[1] - low)
    added = np.abs(bias.astype(np.int64)).max(axis=0, initial=0) if bias is not None and bias.dtype == np.int32 else 0
    if reach * 255 * k + np.max(added, initial=0) <= S32_MAX:  # whatever the weights are
        return
    worst = reach * columns.magnitudes() + added
    if (worst <= S32_MAX).all():
        return
    j = int(np.argmax(worst))
    of_bias = " with its bias" if bias is not None else ""
    raise ValueError(
        f"{op}: k={k} could overflow int32: column {j} of the weight{of_bias} reaches {int(worst[j])} ≥ 2³¹ with "
        f"activations of magnitude {reach}; split k, or use smaller codes"
    )
