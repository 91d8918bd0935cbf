"""Scales that are found on a GPU: the same codes, scales and zero points as on the CPU, whatever shares a scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fake_gpu import Array, values
from quantize_cases import ml_dtypes_or_skip

import qkernels as qk

SHAPES: tuple[tuple[tuple[int, ...], dict[str, Any]], ...] = (
    ((3, 700), {}), ((1,), {}), ((7, 513), {"axis": 0}), ((40, 5), {"axis": 1}), ((3, 16), {"axis": 1}),
    ((600, 70), {"axis": -1}), ((6, 7, 33), {"axis": 1}), ((2, 3, 640), {"axis": 1}), ((6, 7, 33), {"axis": (0, 1)}),
    ((5, 70), {"axis": 0, "group_size": 16}), ((5, 70), {"group_size": 32}),
    ((4, 1100), {"axis": 0, "group_size": 600}), ((6, 7, 33), {"axis": (0, 2)}), ((3, 2, 5, 9), {"axis": (1, 3)}),
    ((70, 5), {"axis": 1, "group_size": 16, "group_axis": 0}),
    ((3, 4, 50), {"axis": 0, "group_size": 3, "group_axis": 1}),
)  # fmt: skip


def numbers(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Of every magnitude, with zeros, infinities and NaN; one row of nothing but zeros."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=shape) * np.exp2(rng.integers(-9, 9, shape))).astype(np.float32)
    flat = x.reshape(-1)
    flat[rng.integers(0, flat.size, 1 + flat.size // 50)] = rng.choice([np.nan, np.inf, -np.inf, -0.0, 0.0])
    if x.ndim > 1 and len(x) > 2:
        x[1] = 0
    return x


def same(got: Any, wanted: qk.QTensor) -> None:
    for mine, theirs in ((got.codes(), wanted.codes()), (got.scale, wanted.scale), (got.zero_point, wanted.zero_point)):
        found = values(mine) if isinstance(mine, Array) else np.asarray(mine)
        assert found.shape == np.shape(theirs) and np.array_equal(found, np.asarray(theirs))
        assert isinstance(theirs, int) or found.dtype == np.asarray(theirs).dtype
    assert got.dtype == wanted.dtype and got.axis == wanted.axis and got.group_size == wanted.group_size


@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_quantize_finds_its_scale(gpu: Any, case: Any) -> None:
    shape, keywords = case
    for i, dtype in enumerate(("int8", "uint8", "int16", "uint16", "int4", "uint2")):
        x = numbers(shape, i)
        x = x if i % 2 else np.maximum(x, np.float32(-0.25))
        for symmetric in (True, False):
            rest = keywords | {"dtype": dtype, "symmetric": symmetric}
            same(qk.quantize(gpu.asarray(x), **rest), qk.quantize(x, **rest))
    half = numbers(shape, 9).astype(np.float16)
    same(qk.quantize(gpu.asarray(half), **keywords), qk.quantize(half, **keywords))
    double = numbers(shape, 10).astype(np.float64) * 1.1
    wanted = qk.quantize(double, **keywords)
    same(qk.quantize(gpu.asarray(double), **keywords), wanted)
    got = qk.quantize(gpu.asarray(double), **keywords)
    assert np.array_equal(values(got.dequantize()), wanted.dequantize())
    assert np.array_equal(values(qk.dequantize(got, "float16")), qk.dequantize(wanted, "float16"))


def test_stored_scales_are_rounded_first(gpu: Any) -> None:
    ml_dtypes_or_skip()
    x = numbers((9, 130), 3) * np.float32(0.001)
    x[2] *= np.float32(1e-9)  # a float16 scale of it is 0, which counts as 1
    for stored in ("float16", "bfloat16"):
        for symmetric in (True, False):
            keywords = {"axis": 0, "scale_dtype": stored, "symmetric": symmetric, "dtype": "uint8"}
            same(qk.quantize(gpu.asarray(x), **keywords), qk.quantize(x, **keywords))


@pytest.mark.parametrize("case", [case for case in SHAPES if "group_size" in case[1]], ids=str)
def test_two_level_scales(gpu: Any, case: Any) -> None:
    """1 … 16 times a common one, of groups along any axis; empty groups, and rows of nothing but those."""
    shape, keywords = case
    for i, (dtype, symmetric) in enumerate((("int4", True), ("uint4", False), ("int8", True), ("uint8", False))):
        x = numbers(shape, i)
        x[0] = 0 if i % 2 else x[0] * np.float32(1e-38)
        given = keywords | {"dtype": dtype, "symmetric": symmetric, "two_level": True}
        got, wanted = qk.quantize(gpu.asarray(x), **given), qk.quantize(x, **given)
        same(got, wanted)
        assert np.array_equal(values(got._factors), wanted._factors) and got._factors.dtype == np.uint8
        assert np.array_equal(values(got.dequantize()), wanted.dequantize())


def test_check_finite(gpu: Any) -> None:
    """The first that is none is named, as on the CPU; where there is none it changes nothing."""
    ml_dtypes = ml_dtypes_or_skip()
    rng = np.random.default_rng(4)
    for kind in (np.float32, np.float16, ml_dtypes.bfloat16, np.float64):
        x = rng.normal(size=(9, 70)).astype(kind)
        same(qk.dynamic_quantize(gpu.asarray(x), check_finite=True), qk.dynamic_quantize(x))
        for at in ((0, 0), (8, 69), (4, 33)):
            bad = x.copy()
            bad[at], bad[8, 69] = (np.nan, -np.inf, np.inf)[at[0] % 3], np.inf
            said = [pytest.raises(ValueError, match=r"wanted finite numbers \(check_finite=True\)") for _ in range(2)]
            with said[0] as mine:
                qk.dynamic_quantize(gpu.asarray(bad), check_finite=True)
            with said[1] as theirs:
                qk.dynamic_quantize(bad, check_finite=True)
            assert str(mine.value) == str(theirs.value) and f"at {at}" in str(mine.value)
    strided = rng.normal(size=(9, 70)).astype(np.float32)
    strided[:, 1::2] = np.nan  # not looked at
    same(qk.dynamic_quantize(gpu.asarray(strided)[:, ::2], check_finite=True), qk.dynamic_quantize(strided[:, ::2]))


def test_dynamic_quantize(gpu: Any) -> None:
    for i, (shape, keywords) in enumerate((
        ((5, 70), {}), ((2, 3, 300), {"dtype": "uint8"}), ((5, 70), {"group_size": 32}), ((90,), {}), ((1, 1), {}),
        ((5, 70), {"per": "tensor"}), ((4, 17000), {"per": "tensor"}), ((70001,), {"per": "tensor", "dtype": "uint8"}),
        ((1, 66000), {"dtype": "uint8"}), ((0, 4), {}), ((3, 5, 64), {"group_size": 16, "dtype": "uint8"}),
        *((shape, {"dtype": "int4"} | more) for shape in ((5, 70), (5, 71), (3, 2, 9), (1, 70001), (9,), (0, 4))
          for more in ({}, {"per": "tensor"}, {"group_size": 6}, {"group_size": 7})),
    )):  # fmt: skip
        x = numbers(shape, i) if 0 not in shape else np.zeros(shape, np.float32)
        same(qk.dynamic_quantize(gpu.asarray(x), **keywords), qk.dynamic_quantize(x, **keywords))
        half = x.astype(np.float16)
        same(qk.dynamic_quantize(gpu.asarray(half), **keywords), qk.dynamic_quantize(half, **keywords))
    strided = numbers((8, 60), 3)
    same(qk.dynamic_quantize(gpu.asarray(strided)[::2, ::3]), qk.dynamic_quantize(strided[::2, ::3]))
    nothing = np.zeros((2, 70000), np.float32)
    nothing[0, 5] = np.inf
    same(qk.dynamic_quantize(gpu.asarray(nothing), per="tensor"), qk.dynamic_quantize(nothing, per="tensor"))
    assert qk.explain(qk.dynamic_quantize, gpu.asarray(strided)).kernel.name == "dynamic_quantize_f32s8_cuda_dp4a"
    assert qk.explain(qk.quantize, gpu.asarray(strided)).kernel.name == "quantize_f32s8_cuda_dp4a"


def test_refused(gpu: Any) -> None:
    x = gpu.asarray(np.ones((3, 4), np.float32))
    for call, said in (
        (lambda: qk.quantize(x, zero_point=3), "zero_point=3 without a scale"),
        (lambda: qk.quantize(x, dtype="int3"), "dtype='int3', wanted one of int8"),
        (lambda: qk.quantize(x, two_level=True), "two_level goes with a group_size"),
        (lambda: qk.quantize(x, 1.0, group_size=2, two_level=True), "two_level finds the scale"),
        (lambda: qk.dynamic_quantize(x, dtype="uint4"), "dtype='uint4', wanted one of int8, uint8, int4"),
        (lambda: qk.dynamic_quantize(x, per="column"), "per='column', wanted"),
        (lambda: qk.quantize(x, axis=5), "axis=5 does not fit shape"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
    with pytest.raises(TypeError, match="quantize: x has dtype int32, wanted one of float32"):
        qk.quantize(gpu.asarray(np.ones(3, np.int32)))
