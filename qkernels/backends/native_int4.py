"""The compiled kernels of weights of 4 and 2 bits, and of 8 with groups: rows on the layouts n16k4x1, x2 and x4."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from qkernels.backends._numpy_groups import groups_in
from qkernels.epilogue import Epilogue
from qkernels.kernel import Hardware, Kernel, Problem
from qkernels.weight import K_PAD, N_PANEL, PackedLinear, padded
from qkernels.weight_groups import LAYOUTS, PackedGroups

try:
    import qkernels._native as _native
except ImportError:  # backends/native.py says why
    _native = None  # type: ignore[assignment]

QUANTIZED_US = 1e4  # activations quantized in a microsecond
FEW_GROUPS = 64  # AMX tiles are half empty below: fewer rows go straight from nibbles
FEW_ROWS = 8
LONGEST_BF16 = 1 << 15  # k: sums of more bfloat16 products may leave A11's bound
SCALE_TYPES = {"float32": 0, "float16": 1, "uint16": 2}


def _judge(row: dict[str, Any], types: str, problem: Problem, hardware: Hardware) -> float | str:
    if problem.op != row["op"] or problem.types != types:
        return f"is for {row['op']} {types}"
    groups = groups_in(problem)
    if isinstance(groups, str):
        return groups
    if row["isa"] not in hardware.cpu:
        return f"this CPU lacks {row['isa']}"
    if row["types"].startswith("bf16") and problem.k > LONGEST_BF16:
        return f"k={problem.k} is above {LONGEST_BF16}"
    m, few = problem.m, row["op"] == "linear" and row["min_m"] > 1 and problem.k < FEW_GROUPS * groups
    least = FEW_ROWS if few else row["min_m"]
    if m < least:
        return f"m={m} is below {least}{f' with groups below {FEW_GROUPS}' if least > row['min_m'] else ''}"
    weights = padded(problem.n, N_PANEL) * padded(problem.k, K_PAD)
    halved = 2 if few else 1
    quantizing = m * problem.k / QUANTIZED_US if types.startswith("f32") and row["op"] == "linear" else 0.0
    reading, computing = 1e-3 * weights * row["bits"] / 8 / row["gb_s"], 2e-3 * m * weights * halved / row["gops"]
    return float(row["call_us"] + max(reading, computing) + min(reading, computing) / 2 + quantizing)


def handle(w: PackedGroups, with_sums: bool) -> object:
    """What C++ takes for the weights; made once, and again when sums of the groups are first wanted."""
    if w._handle is None or (with_sums and not w._handle[1]):  # type: ignore[index]
        kind = SCALE_TYPES[w.scales.dtype.name] if w.scales is not None else 0
        made = _native.packed_int4(
            w._data, *w.shape, w.bits, w.code == "s8", w.group, w.scales, kind, w.factors, w.zeros, w.zero,
            w.sums() if with_sums else None, w.fits_int8, w.tame_scales,
        )  # fmt: skip
        w._handle = made, with_sums
    return w._handle[0]  # type: ignore[index]


def linear_handle(packed: PackedLinear, with_sums: bool = False) -> object:
    """What the short way in takes for a weight of one matrix; made once, and again when sums of the groups are first
    wanted, its buffers are the weight's own."""
    part = packed.parts[0]
    of = handle(part, with_sums)
    if packed._handle is None or packed._handle_of is not of:
        scale = None if part.scales is not None else packed.columns().scale
        packed._handle, packed._handle_of = _native.packed_linear_int4(of, scale), of
    return packed._handle


def float_handle(w: PackedGroups) -> object:
    """The same with scales of groups in float32, whatever makes them: what real activations are multiplied with."""
    if w.scales is not None:
        return handle(w, False)
    if w._float_handle is None:
        made = _native.packed_int4(
            w._data,
            *w.shape,
            w.bits,
            w.code == "s8",
            w.group,
            w.float_scales(),
            0,
            None,
            w.zeros,
            w.zero,
            None,
            False,
            w.tame_scales,
        )
        w._float_handle = made
    return w._float_handle


def _run_floats(
    module: Any, threads: int, index: int, x: np.ndarray, w: PackedGroups, out: np.ndarray, epilogue: Epilogue
) -> None:
    module.linear_int4(index, x, float_handle(w), out, epilogue, threads)


def _run(
    module: Any, threads: int, index: int, a: np.ndarray, w: PackedGroups, out: np.ndarray, epilogue: Epilogue
) -> None:
    module.linear_int4(index, a, handle(w, epilogue.a_zero is not None), out, epilogue, threads)


def _also(row: dict[str, Any]) -> tuple[str, ...]:
    """The further types that a row takes."""
    types = row["types"]
    if types.startswith("s8"):
        return (f"f32{types[2:]}",)
    stands_in = types.startswith("f32") and row["isa"] != "x86_amxbf16"  # which has rows of its own
    return (f"bf16{types[3:]}",) if stands_in else ()


def kernels_of(module: Any, threads: int = 0) -> tuple[Kernel, ...]:
    """The rows of a compiled module.

    One of signed activations takes floats too, which become signed codes; one that multiplies in float32 stands in for
    bfloat16, whose bound is wider.
    """
    return tuple(
        Kernel(
            row["name"].replace(f"_{row['types']}_", f"_{types}_"),
            row["op"],
            types,
            row["isa"],
            LAYOUTS[row["bits"]],
            functools.partial(_judge, row, types),
            functools.partial(_run if row["op"] == "linear" else _run_floats, module, threads, index),
        )
        for index, row in enumerate(module.int4_rows())
        for types in (row["types"], *_also(row))
    )


ROWS: list[dict[str, Any]] = _native.int4_rows() if _native else []
KERNELS = kernels_of(_native) if _native else ()
INDEX = {row["name"]: index for index, row in enumerate(ROWS)}
