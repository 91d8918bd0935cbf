"""QTensors on a GPU: codes of every width, turned, cut, brought to host memory; and their products."""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import numpy as np
import pytest
from fake_gpu import Array, values

import qkernels as qk

F32 = np.float32
Options = dict[str, Any]


def numbers(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) * np.exp2(rng.integers(-4, 4, shape))).astype(F32)


def same(got: Any, wanted: Any, what: Any = None) -> None:
    """Of QTensors and of arrays: every bit."""
    if not isinstance(wanted, qk.QTensor):
        found = values(got)
        assert found.dtype == wanted.dtype and found.shape == np.shape(wanted) and np.array_equal(found, wanted), what
        return
    assert isinstance(got, qk.QTensor) and got.dtype == wanted.dtype and got.shape == wanted.shape, what
    for mine, theirs in (
        (got.data, wanted.data), (got.codes(), wanted.codes()), (got.scale, wanted.scale),
        (got.zero_point, wanted.zero_point),
    ):  # fmt: skip
        found = values(mine) if isinstance(mine, Array) else np.asarray(mine)
        assert found.shape == np.shape(theirs) and np.array_equal(found, np.asarray(theirs)), what


# Rows of whole bytes and rows that end inside of one, a vector, a scalar, nothing.
SHAPES = ((5, 70), (5, 71), (3, 4, 9), (7,), (), (0, 4), (33, 64))


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int2", "uint2", "int8", "uint16"])
def test_codes_of_every_width(gpu: Any, dtype: str) -> None:
    for shape in SHAPES:
        x = numbers(shape)
        options: tuple[Options, ...] = ({}, {"symmetric": False})
        options += ({"axis": 0}, {"axis": -1}, {"group_size": 16}) if shape else ()
        for given in options:
            wanted, got = qk.quantize(x, dtype=dtype, **given), qk.quantize(gpu.asarray(x), dtype=dtype, **given)
            same(got, wanted, (shape, given))
            placed = {name: value for name, value in given.items() if name != "symmetric"} | {"dtype": dtype}
            same(qk.quantize(gpu.asarray(x), wanted.scale, wanted.zero_point, **placed), wanted, (shape, given))
            for real in ("float32", "float16", "float64"):
                same(got.dequantize(real), wanted.dequantize(real))
            if len(shape) > 1:
                same(got.T, wanted.T)
                same(got.T.dequantize(), wanted.T.dequantize())
                same(got[1:, ...], wanted[1:, ...])
                same(got[:, :64], wanted[:, :64])


def test_brought_to_host_memory(gpu: Any) -> None:
    x = numbers((6, 50))
    for given in ({"dtype": "int4"}, {"axis": 0}, {"dtype": "uint4", "symmetric": False, "group_size": 16},
                  {"dtype": "int4", "group_size": 32, "two_level": True}):  # fmt: skip
        q, wanted = qk.quantize(gpu.asarray(x), **given), qk.quantize(x, **given)
        for back in (q.to_host(), pickle.loads(pickle.dumps(q))):
            same(back, wanted)
            assert isinstance(back.codes(), np.ndarray) and np.array_equal(back.dequantize(), wanted.dequantize())
    assert wanted.to_host() is wanted
    assert q.nbytes == 6 * 25 + 4 * 2 and "on cuda:0" in repr(q)
    with pytest.raises(TypeError, match=r"codes are on a GPU; to_host\(\) brings them here"):
        np.asarray(q)


def test_made_of_codes_there(gpu: Any) -> None:
    """Codes, scale and zero point of the caller's: copied, as a QTensor does not change."""
    rng = np.random.default_rng(3)
    scale, zero = rng.uniform(0.1, 1, 5).astype(F32), rng.integers(0, 16, 5)
    for dtype, low, high in (("uint8", 0, 256), ("int8", -128, 128), ("uint4", 0, 16), ("int16", -999, 999)):
        kept = np.dtype("uint8" if dtype == "uint4" else dtype)
        codes = rng.integers(low, high, (5, 9)).astype(kept)
        wanted = qk.QTensor(codes, scale, zero, dtype=dtype, axis=0)
        mine = gpu.asarray(codes)
        points = gpu.asarray(zero.astype(np.int32))
        for made in (qk.QTensor(mine, scale, zero, dtype=dtype, axis=0),
                     qk.QTensor(mine, gpu.asarray(scale), points, dtype=dtype, axis=0)):  # fmt: skip
            same(made, wanted)
            same(made.dequantize(), wanted.dequantize())
        packed = qk.QTensor.from_packed(gpu.asarray(wanted.data), (5, 9), scale, zero, dtype=dtype, axis=0)
        same(packed, wanted)
        mine[...] = 0
        same(made, wanted)
    scales = {"scale": gpu.asarray(scale), "zero_point": points, "dtype": "uint8", "axis": 0}
    x = numbers((5, 9))
    same(qk.quantize(gpu.asarray(x), **scales), qk.quantize(x, scale, zero, dtype="uint8", axis=0))


def test_bad_codes_and_scales(gpu: Any) -> None:
    codes = gpu.asarray(np.zeros((5, 9), np.int8))
    for call, error, said in (
        (lambda: qk.QTensor(gpu.asarray(np.zeros(3, F32)), 1.0), ValueError, "dtype='float32', wanted one of int8"),
        (lambda: qk.QTensor(gpu.asarray(np.zeros(3, F32)), 1.0, dtype="int8"), TypeError, "data has dtype float32"),
        (lambda: qk.QTensor(codes, 1.0, dtype="int16"), TypeError, "data has dtype int8, wanted int16 on a GPU"),
        (lambda: qk.QTensor(codes, 0.0), ValueError, "QTensor: scale is 0.0"),
        (lambda: qk.QTensor(codes, np.ones(4), axis=0), ValueError, r"scale has shape \(4,\), wanted \(5,\)"),
        (lambda: qk.QTensor(codes, gpu.asarray(np.ones(4, F32)), axis=0), ValueError, r"has shape \(4,\), wanted \(5,"),
        (lambda: qk.QTensor(codes, Array(np.ones((), F32), device=1)), TypeError, "scale is on cuda:1"),
        (lambda: qk.QTensor.from_packed(codes, (5, 9), 1.0, dtype="int4"), TypeError, "data has dtype int8"),
        (lambda: qk.QTensor.from_packed(codes, (5, 8), 1.0, dtype="int8"), ValueError, r"wanted \(5, 8\) for int8"),
    ):  # fmt: skip
        with pytest.raises(error, match=said):
            call()


# ---------------------------------------------------------------- products

PRODUCTS = (
    ((5, 40), (40, 7)), ((2, 3, 5, 40), (40, 7)), ((2, 5, 40), (2, 40, 8)), ((3, 1, 5, 20), (2, 20, 9)),
    ((40,), (40, 7)), ((5, 40), (40,)), ((40,), (40,)), ((0, 4), (4, 3)), ((3, 0), (0, 4)), ((2, 5, 0), (2, 0, 4)),
    ((1, 70), (3, 70, 64)),
)  # fmt: skip
KINDS: tuple[Options, ...] = (
    {}, {"axis": ...}, {"dtype": "uint8", "symmetric": False, "axis": ...}, {"dtype": "int4"},
    {"dtype": "uint4", "symmetric": False, "axis": ...},
)  # fmt: skip


def side(x: Any, kept: tuple[int, ...], kind: Options) -> qk.QTensor:
    return qk.quantize(x, **(kind | {"axis": kept} if "axis" in kind else kind))


@pytest.mark.parametrize("shapes", PRODUCTS, ids=str)
def test_products_of_two(gpu: Any, shapes: Any) -> None:
    """x @ w: the accumulators of both, exact, times their scales."""
    a, b = numbers(shapes[0]), numbers(shapes[1], 1)
    rows = tuple(range(a.ndim - 1))
    columns = tuple(axis for axis in range(b.ndim) if axis != max(b.ndim - 2, 0))
    for i, (left, right) in enumerate(itertools.product(KINDS, KINDS)):
        gpu.pretend((75, 80, 90)[i % 3])
        wanted = side(a, rows, left) @ side(b, columns, right)
        got = side(gpu.asarray(a), rows, left) @ side(gpu.asarray(b), columns, right)
        same(got, np.asarray(wanted), (left, right))


def test_products_with_other_operands(gpu: Any) -> None:
    a, b = numbers((5, 40)), numbers((40, 8), 1)
    codes = np.random.default_rng(2).integers(-128, 128, (5, 40)).astype(np.int8)
    here, there = qk.quantize(b, axis=1), qk.quantize(gpu.asarray(b), axis=1)
    same(qk.matmul(gpu.asarray(codes), there), qk.matmul(codes, here))
    turned = np.ascontiguousarray(codes.T)
    same(qk.matmul(qk.quantize(gpu.asarray(a)), qk.pack(gpu.asarray(turned))), qk.matmul(qk.quantize(a), turned))
    same(qk.quantize(gpu.asarray(b.T), axis=0) @ there, qk.quantize(b.T, axis=0) @ here)
    same(qk.quantize(gpu.asarray(a)) @ qk.quantize(gpu.asarray(b.T), axis=0).T, qk.quantize(a) @ here)
    for kind in (np.float32, np.float16, np.float64):  # by the library, in float32
        same(qk.matmul(gpu.asarray(a.astype(kind)), there), qk.matmul(a.astype(kind), here))
    x, y = qk.quantize(gpu.asarray(a)), qk.quantize(a)
    for dtype in ("float16", "float64"):
        same(qk.matmul(x, there, dtype=dtype), qk.matmul(y, here, dtype=dtype))
    out = gpu.full((5, 8), 0, np.float32)
    assert qk.matmul(x, there, out=out) is out
    same(out, qk.matmul(y, here))
    said = qk.explain(qk.matmul, x, there)
    assert said.kernel is not None and said.kernel.device == "cuda"
    assert qk.explain(qk.matmul, gpu.asarray(a), there).kernel is None


def test_products_refused(gpu: Any) -> None:
    a, b = gpu.asarray(numbers((5, 40))), gpu.asarray(numbers((40, 8)))
    x, w = qk.quantize(a), qk.quantize(b, axis=1)
    wide = qk.quantize(gpu.asarray(np.ones((1, 140000), F32)))
    for call, error, said in (
        (lambda: x @ qk.quantize(numbers((40, 8))), TypeError, "a is on cuda:0, b is in host memory"),
        (lambda: x @ qk.quantize(b, axis=0), ValueError, "keeps a scale along axis 0, which the product sums over"),
        (lambda: x @ qk.quantize(b, axis=1, group_size=8, group_axis=0), ValueError, "b has groups along k on a GPU"),
        (lambda: qk.quantize(a, dtype="int16") @ w, ValueError, "a is of int16 on a GPU"),
        (lambda: x @ qk.quantize(gpu.asarray(numbers((30, 8)))), ValueError, "a has k=40 .*, b has k=30"),
        (lambda: wide @ wide.T, ValueError, "k=140000 could overflow int32"),
        (lambda: qk.matmul(x, w, out=gpu.empty((2, 2), F32)), ValueError, r"out has shape \(2, 2\)"),
        (lambda: qk.matmul(x, w, out=gpu.empty((5, 8), np.int32)), TypeError, "out has dtype int32, wanted floats"),
        (lambda: qk.matmul(x, w, dtype="int32"), ValueError, "dtype='int32', wanted one of float32"),
        (lambda: qk.matmul(x, w, a_zero_point=3), TypeError, "a QTensor has a zero_point of its own"),
    ):  # fmt: skip
        with pytest.raises(error, match=said):
            call()
