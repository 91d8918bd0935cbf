"""QTensors on a GPU: codes of every width, made, turned, multiplied and brought back, against the CPU's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

F32 = np.float32
CODES: tuple[dict[str, Any], ...] = (
    {"dtype": "int4", "group_size": 32}, {"dtype": "uint4", "symmetric": False, "axis": 0}, {"dtype": "int2"},
    {"dtype": "uint16", "axis": 1}, {"dtype": "int4", "group_size": 32, "two_level": True},
)  # fmt: skip
PAIRS: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({}, {"axis": 1}), ({"axis": 0, "dtype": "uint8", "symmetric": False}, {"axis": 1}),
    ({"dtype": "int4"}, {"dtype": "uint4", "symmetric": False, "axis": 1}),
)  # fmt: skip


def equal(arrays: Any, got: Any, wanted: Any) -> bool:
    """Every bit, of arrays and of QTensors with their scales."""
    if hasattr(wanted, "codes"):
        back = got.to_host()
        same = np.array_equal(back.data, wanted.data) and np.array_equal(back.scale, wanted.scale)
        return bool(same and np.array_equal(back.zero_point, wanted.zero_point))
    found = arrays.here(got)
    return bool(found.dtype == wanted.dtype and np.array_equal(found, wanted))


def checks(arrays: Any) -> Iterator[tuple[str, bool]]:
    import qkernels as qk

    rng = np.random.default_rng(9)
    x = (rng.normal(size=(70, 331)) * np.exp2(rng.integers(-4, 4, (70, 331)))).astype(F32)  # rows end inside of bytes
    there = arrays.there(x)
    for keywords in CODES:
        got, wanted = qk.quantize(there, **keywords), qk.quantize(x, **keywords)
        yield f"codes {keywords}", equal(arrays, got, wanted)
        yield f"dequantize {keywords}", equal(arrays, got.dequantize(), wanted.dequantize())
        yield f"turned {keywords}", equal(arrays, got.T, wanted.T)
        yield f"cut {keywords}", equal(arrays, got[3:, :64], wanted[3:, :64])
    w = np.ascontiguousarray(x[:45].T)
    for left, right in PAIRS:
        wanted = qk.quantize(x, **left) @ qk.quantize(w, **right)
        got = qk.quantize(there, **left) @ qk.quantize(arrays.there(w), **right)
        yield f"product {left} {right}", equal(arrays, got, np.asarray(wanted))
    yield from _layers(arrays, qk, x)
    yield from _refusal(arrays, qk, x)


def _layers(arrays: Any, qk: Any, x: np.ndarray) -> Iterator[tuple[str, bool]]:
    """linear to codes of 2 to 16 bits, with a bias of integers."""
    weight = qk.quantize(x[:45], axis=0)
    bias = np.arange(-20000, 25000, 1000, dtype=np.int32)
    for wishes in ({"out_dtype": "int16"}, {"out_dtype": "uint4"}, {"out_dtype": "uint16", "rounding": "ruy"}):
        call = {"out_scale": 0.5, **wishes}
        wanted = qk.linear(qk.quantize(x), weight, bias=bias, **call)
        got = qk.linear(qk.quantize(arrays.there(x)), weight, bias=arrays.there(bias), **call)
        yield f"linear {wishes}", equal(arrays, got, wanted)


def _refusal(arrays: Any, qk: Any, x: np.ndarray) -> Iterator[tuple[str, bool]]:
    """check_finite waits for the device, and names the place."""
    bad = x.copy()
    bad[33, 330] = np.nan
    try:
        qk.dynamic_quantize(arrays.there(bad), check_finite=True)
        yield "check_finite", False
    except ValueError as error:
        yield "check_finite", "(33, 330)" in str(error)
    yield (
        "check_finite of finite",
        equal(arrays, qk.dynamic_quantize(arrays.there(x), check_finite=True), qk.dynamic_quantize(x)),
    )
