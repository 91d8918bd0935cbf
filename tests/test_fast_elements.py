"""The short ways into the elementwise ops: taken once a kind of call was decided, the same answers bit for bit as the
long way, and nothing that is unusual or wrong goes through them."""

# ruff: noqa: B023
# Every function that a loop makes is called before the loop goes on.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import test_bad_quantize

import qkernels as qk
from qkernels.backends import native
from qkernels.ops.elementwise import PLACES, ROAD
from qkernels.rounding import ROUNDINGS

F32, S32 = np.float32, np.int32
pytestmark = pytest.mark.skipif(not ROAD.enabled, reason=f"no compiled half, or QKERNELS_VERBOSE: {native.MISSING}")
SHAPES = [(1,), (40_000,), (7, 300), (2, 3, 50), (3, 4, 5, 6), (1, 1)]
DTYPES = tuple(PLACES)


def parts(result: Any) -> list[Any]:
    """All that a result is, to the byte."""
    if not isinstance(result, qk.QTensor):
        return [type(result), result.dtype, result.shape, result.tobytes(), result.flags.writeable]
    zero = result.zero_point
    return [
        result.dtype, result.shape, result.axis, result.group_size, type(result.scale), result.scale.shape,
        np.asarray(result.scale).tobytes(), type(zero), np.asarray(zero).tobytes(), result.data.dtype,
        result.data.tobytes(), result.data.flags.writeable, result.scale.flags.writeable, result._library,
    ]  # fmt: skip


def same_both_ways(call: Callable[[], Any], about: object) -> Any:
    with qk.use("*"):  # a pattern in force: the long way
        wanted = call()
    call()  # is remembered
    got = call()
    assert parts(got) == parts(wanted), about
    return got


def reals(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any = F32) -> np.ndarray:
    x = rng.normal(size=shape) * 20
    x[rng.random(shape) < 0.05] = np.nan
    x[rng.random(shape) < 0.05] = np.inf
    return x.astype(dtype)


def axes_of(shape: tuple[int, ...]) -> list[int | None]:
    return [None, *range(-len(shape), len(shape))]


@pytest.mark.parametrize("dtype", DTYPES)
def test_quantize(dtype: str) -> None:
    rng = np.random.default_rng(91)
    low = 0 if dtype.startswith("u") else -2
    for shape in SHAPES:
        for axis in axes_of(shape):
            x = reals(rng, shape, rng.choice(np.array([F32, np.float16, np.float64], object)))
            n = () if axis is None else shape[axis]
            scale: Any = rng.uniform(0.01, 3, n).astype(F32) if axis is not None else rng.uniform(0.01, 3)
            zeros = rng.integers(low, low + 4, n).astype("u1" if low == 0 else "i1")
            zeros = zeros.astype(f"{'u' if low == 0 else 'i'}2") if dtype.endswith("16") else zeros
            for zero in (None, 0, low + 3, zeros if axis is not None else 1):
                about = (shape, axis, zero)
                q = same_both_ways(lambda: qk.quantize(x, scale, zero, dtype=dtype, axis=axis), about)
                same_both_ways(lambda: qk.dequantize(q), about)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int4"])
@pytest.mark.parametrize("per", ["row", "tensor"])
def test_dynamic_quantize(dtype: str, per: Any) -> None:
    rng = np.random.default_rng(92)
    for shape in SHAPES:
        for real in (F32, np.float16, np.float64):
            x = reals(rng, shape, real)
            q = same_both_ways(lambda: qk.dynamic_quantize(x, dtype=dtype, per=per), shape)
            same_both_ways(lambda: qk.dequantize(q), shape)
    wide = np.array([[3e38, -3e38]], F32)
    for _ in range(3):
        if dtype == "uint8":
            with pytest.raises(ValueError, match="wider than float32"):
                qk.dynamic_quantize(wide, dtype=dtype, per=per)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint4"])
def test_requantize(dtype: str, rounding: str) -> None:
    rng = np.random.default_rng(93)
    for shape in SHAPES:
        for axis in axes_of(shape):
            acc = (rng.integers(-(2**31), 2**31, shape) >> rng.integers(0, 24)).astype(S32)
            n = () if axis is None else (shape[axis],)
            scale = np.exp2(rng.uniform(-28, 2, n))
            given: Any = float(scale) if axis is None else scale.astype(rng.choice(np.array([F32, np.float64], object)))
            bias = rng.integers(-(2**31), 2**31, n).astype(S32) if axis is not None else None
            out = np.empty(shape, qk.requantize(acc, 0.5, dtype=dtype).dtype)
            for zero, added, to in ((0, None, None), (3, bias, None), (2, None, out)):
                same_both_ways(
                    lambda: qk.requantize(
                        acc, given, zero, dtype=dtype, axis=axis, bias=added, rounding=rounding, out=to
                    ),
                    (shape, axis, zero),
                )


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_add_and_mul(dtype: str) -> None:
    rng = np.random.default_rng(94)
    low = 0 if dtype == "uint8" else -128
    for shape in SHAPES:
        a, b = (
            qk.QTensor(rng.integers(low, low + 256, shape).astype(dtype), rng.uniform(0.01, 2), int(zero))
            for zero in rng.integers(low, low + 256, 2)
        )
        scale, zero = float(rng.uniform(0.01, 2)), int(rng.integers(low, low + 256))
        same_both_ways(lambda: qk.add(a, b, scale, zero), shape)
        same_both_ways(lambda: qk.mul(a, b, scale, zero), shape)


@pytest.mark.parametrize("name", test_bad_quantize.CASES)
def test_what_is_wrong_is_refused_by_the_long_way(name: str) -> None:
    """Although calls of these shapes and types are remembered."""
    for dtype in ("int8", "uint8"):
        q = qk.quantize(test_bad_quantize.X, 1.0, dtype=dtype)
        q.dequantize()
        qk.quantize(test_bad_quantize.X, np.ones(4, F32), dtype=dtype, axis=0)
        qk.quantize(test_bad_quantize.X, np.ones(6, F32), dtype=dtype, axis=1)
        qk.dynamic_quantize(test_bad_quantize.X, dtype=dtype)
        for axis, scale in ((None, 1.0), (0, np.ones(4)), (1, np.ones(6))):
            qk.requantize(test_bad_quantize.ACC, scale, dtype=dtype, axis=axis)
    test_bad_quantize.test_refused_in_words(name)


def test_the_short_way_is_taken_and_stands_aside() -> None:
    x = np.linspace(-1, 1, 900, dtype=F32).reshape(30, 30)
    acc, column = (x * 1000).astype(S32), np.full(30, 0.1, F32)
    q = qk.quantize(x, 0.1)
    for call in (
        lambda: qk.quantize(x, 0.1), lambda: qk.quantize(x, column, axis=1), lambda: qk.dequantize(q),
        lambda: qk.dynamic_quantize(x), lambda: qk.requantize(acc, 0.1), lambda: qk.add(q, q, 0.2),
        lambda: qk.mul(q, q, 0.2),
    ):  # fmt: skip
        call()
    place = PLACES["int8"]
    taken = {
        "tensor": lambda: ROAD.quantize(x, 0.1, None, place, None),
        "columns": lambda: ROAD.quantize(x, column, None, place, 1),
        "dequantize": lambda: ROAD.dequantize(q._data, q._scale, q._zero, ()),
        "dynamic": lambda: ROAD.dynamic(x, place, True),
        "requantize": lambda: ROAD.requantize(acc, 0.1, 0, place, None, None, 0, None),
        "add": lambda: ROAD.pair(False, q._data, q._scale, 0, q._data, q._scale, 0, 0.2, 0),
        "mul": lambda: ROAD.pair(True, q._data, q._scale, 0, q._data, q._scale, 0, 0.2, 0),
    }
    for name, short in taken.items():
        assert short() is not None, name
        with qk.use("*_numpy"):
            assert short() is None, name
    for declined in (
        ROAD.quantize(x, 0.0, None, place, None), ROAD.quantize(x, np.nan, None, place, None),
        ROAD.quantize(x, 1e-46, None, place, None), ROAD.quantize(x, 1e39, None, place, None),
        ROAD.quantize(x, 0.1, 128, place, None), ROAD.quantize(x, 0.1, 2**70, place, None),
        ROAD.quantize(x, 0.1, True, place, None), ROAD.quantize(x, 0.1, None, 8, None),
        ROAD.quantize(x, 0.1, None, None, None), ROAD.quantize(x.T, 0.1, None, place, None),
        ROAD.quantize(x, column * np.nan, None, place, 1), ROAD.quantize(x, column[:29], None, place, 1),
        ROAD.quantize(x, column[::-1], None, place, 1), ROAD.quantize(x, column, None, place, 2),
        ROAD.quantize(x, column.reshape(30, 1), None, place, 1), ROAD.quantize(x[:0], 0.1, None, place, None),
        ROAD.quantize(x.astype(">f4"), 0.1, None, place, None), ROAD.quantize(x[:29], 0.1, None, place, None),
        ROAD.dynamic(acc, place, True), ROAD.requantize(x, 0.1, 0, place, None, None, 0, None),
        ROAD.requantize(acc, 0.1, 0, place, None, None, 5, None),
        ROAD.requantize(acc, 1e39, 0, place, None, None, 0, None),
        ROAD.requantize(acc, np.inf, 0, place, None, None, 1, None),
        ROAD.requantize(acc, 0.1, 0, place, None, None, 0, acc.view(np.int8)[:, :30]),
        ROAD.requantize(acc, 0.1, 0, place, None, None, 0, acc.view(np.int8).reshape(-1)[:900].reshape(30, 30)),
        ROAD.requantize(acc, 0.1, 0, place, None, None, 0, q._data), ROAD.quantize(), ROAD.pair(),
    ):  # fmt: skip
        assert declined is None
