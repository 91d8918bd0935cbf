"""Cases of weights in groups: groups of every size, zero points, scales of three types, two levels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from gemm_cases import values
from linear_cases import Case, Operands, cases, operands

from qkernels.dtypes import limits
from qkernels.scales import Grain
from qkernels.tensor import QTensor
from qkernels.weight_groups import PackedGroups

F32, S32 = np.float32, np.int32
GROUPS = (16, 32, 48, 64, 80, 128, 256, 1000)


def int4_cases(kernel: Any, mr: int, nr: int) -> Iterator[Case]:
    """Some of the cases of linear, and long ones whose groups are many."""
    floats = kernel.types.endswith("f32")
    listed = list(cases(mr, nr, 256, kernel.types.startswith("f32") or floats))
    yield from listed[:: max(1, len(listed) // 70)]
    long = next(case for case in listed if case.out == "float32")
    for m, n, k in ((1, 35, 700), (3, 16, 513), (mr, nr + 1, 640), (2 * mr + 1, 2 * nr + 5, 300), (2, 130, 96)):
        yield long._replace(m=m, n=n, k=k, residual="")


def _scales(rng: np.random.Generator, n: int, groups: int) -> np.ndarray:
    """Of six magnitudes, so that sums of groups cancel and round; some subnormal in float16."""
    scale = np.exp2(rng.uniform(-12, 2, (n, groups))).astype(F32)
    scale[rng.random((n, groups)) < 0.05] = 2.0**-20
    return scale


def weights(rng: np.random.Generator, kernel: Any, k: int, n: int, extreme: bool) -> PackedGroups:
    bits = int(kernel.types[-4])
    dtype = f"{rng.choice(['int', 'uint'])}{bits}"
    if bits == 8:  # in memory as they are
        dtype = "int8" if kernel.types[-5] == "s" else "uint8"
    low, high = limits(dtype)
    codes = rng.choice([low, high], (n, k)) if extreme else rng.integers(low, high + 1, (n, k))
    group = int(rng.choice(GROUPS))
    grouped = kernel.types.endswith("f32") or bool(rng.integers(2))
    groups = -(-k // group) if grouped else 1
    grain = Grain((n, k), (0,), group, 1) if grouped else Grain((n, k), (0,))
    way = rng.integers(3)
    zero: Any = int(rng.integers(low, high + 1)) if way == 1 else 0
    if way == 2:
        zero = rng.integers(low, high + 1, grain.scale_shape).astype(np.int8 if low else np.uint8)
    stored = str(rng.choice(["float32", "float16", "bfloat16"]))
    scale, factors = _scales(rng, n, groups), None
    if stored == "float16":
        scale = scale.astype(np.float16).astype(F32)
    if stored == "bfloat16":
        scale = (scale.view(np.uint32) & np.uint32(0xFFFF0000)).view(F32)
    if grouped and kernel.types.endswith("s32"):
        factors = rng.integers(1, 17, (n, groups)).astype(np.uint8)
        scale, stored = (scale[:, :1] * factors).astype(F32), "float32"
    made = QTensor(codes, scale if grouped else scale[:, 0], zero, dtype=dtype, axis=0, **_groups(grouped, group))
    parts = (made._data, np.ascontiguousarray(scale if grouped else scale[:, 0]), made._zero, dtype, grain)
    return PackedGroups(QTensor._make(*parts, stored, factors, "numpy"))


def _groups(grouped: bool, group: int) -> dict[str, int]:
    return {"group_size": group, "group_axis": 1} if grouped else {}


def int4_operands(case: Case, kernel: Any) -> tuple[Operands, PackedGroups]:
    of = {"s": np.dtype(np.int8), "u": np.dtype(np.uint8), "f": np.dtype(F32)}
    a_type = of[kernel.types[0]]
    x = operands(case, a_type, np.dtype(np.int8))
    rng = np.random.default_rng(case.seed + 11)
    by = x.epilogue._replace(w_zero=None)
    if kernel.types.endswith("f32"):
        by = by._replace(w_scale=np.ones(case.n, F32))
    if a_type != F32:
        extreme = values(rng, "extreme" if case.values == "odd" else "random", a_type, (case.m, case.k))
        x = x._replace(a=extreme if case.values == "odd" else x.a)
        if by.is_float and by.a_scale is None:
            by = by._replace(a_scale=np.exp2(rng.uniform(-12, 2, case.m)).astype(F32))
        if by.a_zero is None and rng.integers(2):
            low, high = np.iinfo(a_type).min, np.iinfo(a_type).max
            by = by._replace(a_zero=rng.choice(np.array([low, high, 3, -1 if low else 128]), case.m).astype(S32))
    return x._replace(epilogue=by), weights(rng, kernel, case.k, case.n, case.values in ("extreme", "odd"))
