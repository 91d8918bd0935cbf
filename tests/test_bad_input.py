"""Bad input is refused in words (op, argument, what came, what was wanted), and `out` is untouched."""

from __future__ import annotations

import re

import numpy as np
import pytest

import qkernels as qk

A, B = np.ones((3, 8), np.int8), np.ones((8, 4), np.int8)
LONG = np.ones((2, 140_000), np.int8)
READ_ONLY = np.zeros((3, 4), np.int32)
READ_ONLY.flags.writeable = False


def read_only(out: np.ndarray) -> np.ndarray:
    view = out.view()
    view.flags.writeable = False
    return view


# `out` is (3, 4) int32 and its surroundings are watched; every case that can passes it, or a view of it.
CASES = {
    "k differs": (lambda out: qk.matmul(A, B[:5], out=out), ValueError, ["matmul", "a has k=8", "b has k=5"]),
    "packed for another k": (
        lambda out: qk.matmul(A, qk.pack(B[:5]), out=out),
        ValueError,
        ["matmul", "k=8", "was packed for k=5"],
    ),
    "batches differ": (
        lambda out: qk.matmul(np.ones((2, 3, 8), np.int8), np.ones((3, 8, 4), np.int8), out=out),
        ValueError,
        ["(2, 3, 8)", "(3, 8, 4)", "do not broadcast"],
    ),
    "a scalar": (lambda out: qk.matmul(np.array(3, np.int8), B, out=out), ValueError, ["matmul", "scalar"]),
    "out: shape": (
        lambda out: qk.matmul(A, B, out=out.T),
        ValueError,
        ["matmul: out has shape (4, 3)", "(3, 4)"],
    ),
    "out: int8": (
        lambda out: qk.matmul(A, B, out=out.view(np.int8)[:, ::4]),
        TypeError,
        ["matmul: out has dtype int8", "int32"],
    ),
    "out: float32 does not hold int32": (
        lambda out: qk.matmul(A, B, out=out.view(np.float32)),
        TypeError,
        ["out has dtype float32", "int32"],
    ),
    "out: int32 for an int64 result": (
        lambda out: qk.matmul(A, B, out=out, dtype="int64"),
        TypeError,
        ["out has dtype int32", "int64"],
    ),
    "out: a list": (lambda out: qk.matmul(A, B, out=[[0] * 4] * 3), TypeError, ["matmul: out is list", "array"]),
    "out: read-only": (lambda out: qk.matmul(A, B, out=read_only(out)), ValueError, ["matmul: out is read-only"]),
    "out: two": (
        lambda out: qk.matmul(A, B, out=(out, out)),
        TypeError,
        ["matmul: out is tuple", "array of int32"],
    ),
    "out: too few axes": (
        lambda out: qk.matmul(A[None], B, out=out),
        ValueError,
        ["matmul: out has shape (3, 4)", "(1, 3, 4)"],
    ),
    "out: for a packed b": (
        lambda out: qk.matmul(A[:2], qk.pack(B), out=out),
        ValueError,
        ["matmul: out has shape (3, 4)", "(2, 4)"],
    ),
    "dtype: no type": (
        lambda out: qk.matmul(A, B, out=out, dtype="int63"),
        TypeError,
        ["matmul: dtype='int63'", "int64"],
    ),
    "dtype: byte order": (
        lambda out: qk.matmul(A, B, out=out, dtype=np.dtype(np.int64).newbyteorder()),
        TypeError,
        ["matmul: dtype=", "byte order"],
    ),
    "a_zero_point: None": (
        lambda out: qk.matmul(A, B, out=out, a_zero_point=None),
        TypeError,
        ["a_zero_point has dtype object", "integers"],
    ),
    "a_zero_point: ragged": (
        lambda out: qk.matmul(A, B, out=out, a_zero_point=[[1, 2], [3]]),
        ValueError,
        ["matmul: a_zero_point", "integers"],
    ),
    "b_zero_point: beyond int64": (
        lambda out: qk.matmul(A, B, out=out, b_zero_point=2**70),
        ValueError,
        [f"b_zero_point={2**70}", "int8"],
    ),
    "b_zero_point of packed uint8": (
        lambda out: qk.matmul(A, qk.pack(B.view(np.uint8)), out=out, b_zero_point=-1),
        ValueError,
        ["b_zero_point=-1", "uint8"],
    ),
    "a_zero_point: too large": (
        lambda out: qk.matmul(A, B, out=out, a_zero_point=128),
        ValueError,
        ["a_zero_point=128", "int8", "-128", "127"],
    ),
    "a_zero_point: negative of uint8": (
        lambda out: qk.matmul(A.view(np.uint8), B, out=out, a_zero_point=-1),
        ValueError,
        ["a_zero_point=-1", "uint8"],
    ),
    "b_zero_point: one of many": (
        lambda out: qk.matmul(A, B, out=out, b_zero_point=[0, 0, -129, 0]),
        ValueError,
        ["b_zero_point=-129", "int8"],
    ),
    "a_zero_point: float": (
        lambda out: qk.matmul(A, B, out=out, a_zero_point=1.0),
        TypeError,
        ["a_zero_point has dtype float64", "integers"],
    ),
    "a_zero_point: bool": (
        lambda out: qk.matmul(A, B, out=out, a_zero_point=True),
        TypeError,
        ["a_zero_point has dtype bool", "integers"],
    ),
    "a_zero_point: shape": (
        lambda out: qk.matmul(A, B, out=out, a_zero_point=[1, 2]),
        ValueError,
        ["a_zero_point has shape (2,)", "(3,)"],
    ),
    "b_zero_point: shape": (
        lambda out: qk.matmul(A, B, out=out, b_zero_point=[1, 2, 3]),
        ValueError,
        ["b_zero_point has shape (3,)", "(4,)"],
    ),
    "b_zero_point: too many axes": (
        lambda out: qk.matmul(A, B, out=out, b_zero_point=np.zeros((1, 1, 4), int)),
        ValueError,
        ["b_zero_point has shape (1, 1, 4)"],
    ),
    "a_zero_point of a vector": (
        lambda out: qk.matmul(A[0], B, out=out[0], a_zero_point=[1]),
        ValueError,
        ["a_zero_point has shape (1,)", "scalar"],
    ),
    "zero point of floats": (
        lambda out: qk.matmul(A.astype(float), B, out=out, a_zero_point=1),
        TypeError,
        ["a_zero_point", "int8 or uint8"],
    ),
    "k beyond int32": (
        lambda out: qk.matmul(LONG, LONG.T, out=out[:2, :2]),
        ValueError,
        ["matmul: k=140000", "131071", 'dtype="int64"', 'overflow="wrap"'],
    ),
    "k beyond int32, uint8": (
        lambda out: qk.matmul(LONG.view(np.uint8), LONG.T.view(np.uint8), out=out[:2, :2]),
        ValueError,
        ["u8·u8", "33025"],
    ),
    "k beyond int32, mixed": (
        lambda out: qk.matmul(LONG.view(np.uint8), LONG.T, out=out[:2, :2]),
        ValueError,
        ["u8·s8", "65793"],
    ),
    "k beyond int32, zero point": (
        lambda out: qk.matmul(LONG[:, :40_000], LONG.T[:40_000], out=out[:2, :2], b_zero_point=1),
        ValueError,
        ["matmul: k=40000", "with zero points", "33025"],
    ),
    "k beyond int32, packed": (
        lambda out: qk.matmul(LONG, qk.pack(LONG.T.copy() * 127), out=out[:2, :2]),
        ValueError,
        ["matmul: k=140000", "a column of b reaches", 'dtype="int64"'],
    ),
    "overflow": (
        lambda out: qk.matmul(A, B, out=out, overflow="saturate"),
        ValueError,
        ["overflow='saturate'", '"error"', '"wrap"'],
    ),
    "packed a": (lambda out: qk.matmul(qk.pack(B), B, out=out), TypeError, ["a is a PackedMatrix", "second operand"]),
    "float a, packed b": (
        lambda out: qk.matmul(A.astype(np.float32), qk.pack(B), out=out),
        TypeError,
        ["float32", "PackedMatrix of int8", "int8 or uint8"],
    ),
    "float result, packed b": (
        lambda out: qk.matmul(A, qk.pack(B), out=out, dtype=np.float32),
        TypeError,
        ["PackedMatrix of int8"],
    ),
    "pack: float": (
        lambda out: qk.pack(B.astype(np.float32)),
        TypeError,
        ["pack: b has dtype float32", "int8 or uint8"],
    ),
    "pack: int32": (lambda out: qk.pack(B.astype(np.int32)), TypeError, ["pack: b has dtype int32", "int8 or uint8"]),
    "pack: a vector": (lambda out: qk.pack(B[0]), ValueError, ["pack: b has shape (4,)", "(k, n)"]),
    "pack: a batch": (lambda out: qk.pack(B[None]), ValueError, ["pack: b has shape (1, 8, 4)", "(k, n)"]),
    "use: not a string": (lambda out: qk.use(3).__enter__(), TypeError, ["use: pattern", "int"]),
    "explain: not an operation": (
        lambda out: qk.explain(np.matmul, A, B),
        TypeError,
        ["explain: fn", "qkernels.matmul"],
    ),
    "threads: 0": (lambda out: qk.set_num_threads(0), ValueError, ["set_num_threads: n=0", "1"]),
    "threads: bool": (lambda out: qk.set_num_threads(True), TypeError, ["set_num_threads", "bool"]),
    "threads: negative": (lambda out: qk.set_num_threads(np.int64(-3)), ValueError, ["set_num_threads: n=-3", "1"]),
    "threads: float": (lambda out: qk.set_num_threads(2.0), TypeError, ["set_num_threads", "float"]),
}


@pytest.mark.parametrize("name", CASES)
def test_refused_in_words(name: str) -> None:
    call, error, words = CASES[name]
    frame = np.full((5, 6), 0x5A5A5A5A, np.int32)
    with pytest.raises(error) as caught:
        call(frame[1:-1, 1:-1])
    for word in words:
        assert word in str(caught.value), f"{name}: {word!r} is not in: {caught.value}"
    assert (frame == 0x5A5A5A5A).all(), name


def test_a_pattern_that_leaves_nothing() -> None:
    out = np.full((3, 4), -7, np.int32)
    qk.matmul(A, B)  # what was decided before the pattern does not count
    with qk.use("*_of_another_world"), pytest.raises(qk.NoKernelError) as caught:
        qk.matmul(A, B, out=out)
    with qk.use("*_of_another_world"), pytest.raises(qk.NoKernelError):
        qk.matmul(A, B, out=out.astype(np.int64), dtype="int64")
    assert (out == -7).all()
    assert "gemm s8s8s32 m=3 n=4 k=8" in str(caught.value)
    assert set(caught.value.reasons) == {k.name for k in qk.kernels("gemm") if k.types == "s8s8s32"}
    assert all(reason for reason in caught.value.reasons.values())
    assert any(re.search("use\\(.*leaves it out", reason) for reason in caught.value.reasons.values())


def test_native_checks_hold_without_python() -> None:
    """The module's own checks, for memory safety: whatever Python passes, nothing outside of a buffer is touched."""
    native = pytest.importorskip("qkernels._native", reason="the native module is not built")
    row = next(i for i, row in enumerate(native.rows()) if row["runs_here"] and row["types"] == "s8s8s32")
    out = np.zeros((3, 4), np.int32)
    packed = qk.pack(B)
    bad = [
        (A, B[:5], out), (A[:2], B, out), (A, B[:, :3], out), (A.view(np.uint8), B, out), (A, B.view(np.uint8), out),
        (A, B, out.astype(np.int64)), (A, B, out[:, ::2]), (A, B, READ_ONLY), (A[None], B, out), (A, B[0], out),
        (A[:0], B, out[:0]), (A, None, out), (A, object(), out), (np.ones((3, 9), np.int8), packed._handle, out),
    ]  # fmt: skip
    for a, b, target in bad:
        with pytest.raises((ValueError, TypeError)):
            native.gemm(row, a, b, target)
    for zero in (np.zeros(2, np.int32), np.zeros(3, np.int64), np.zeros((1, 3), np.int32), 3):
        with pytest.raises((ValueError, TypeError)):
            native.gemm(row, A, B, out, zero)
    for index in (-1, 10_000):
        with pytest.raises(IndexError):
            native.gemm(index, A, B, out)
    with pytest.raises(ValueError):
        native.pack(B, np.zeros(10, np.uint8), np.zeros(16, np.int32))
    with pytest.raises(ValueError):
        native.packed(np.zeros(10, np.uint8), np.zeros(16, np.int32), 8, 4, True)
    elsewhere = [i for i, row in enumerate(native.rows()) if not row["runs_here"]]
    for index in elsewhere[:1]:
        with pytest.raises(ValueError, match="CPU"):
            native.gemm(index, A, B, out)
    assert not out.any()


def test_the_short_way_in_leaves_the_unusual_to_python() -> None:
    """`fast` answers None, and touches nothing, whatever it is given; even for sizes that it knows."""
    native = pytest.importorskip("qkernels._native", reason="the native module is not built")
    row = next(i for i, row in enumerate(native.rows()) if row["runs_here"] and row["types"] == "s8s8s32")
    packed = qk.pack(B)
    qk.matmul(A, packed)
    native.remember(row, True, True, False, 3, 4, 8)
    native.remember(row, True, True, True, 3, 4, 8)
    assert (native.fast(A, B, None) == 8).all() and (native.fast(A, packed._handle, None) == 8).all()
    frame = np.full((5, 6), 0x5A5A5A5A, np.int32)
    out = frame[1:-1, 1:-1]
    shared = np.zeros(48, np.int8)
    inside = shared[20:44].reshape(3, 8)

    class Own(np.ndarray):
        pass

    outs = [
        out.T, out[:2], out[None], out[:, ::2], out.view(np.float32), out.view(np.int8)[:, ::4], read_only(out),
        out.view(Own), out.view(out.dtype.newbyteorder()), [[0] * 4] * 3, object(), 3,
    ]  # fmt: skip
    for weights in (B, packed._handle):
        for target in outs:
            assert native.fast(A, weights, target) is None
        assert native.fast(inside, weights, shared.view(np.int32).reshape(3, 4)) is None
    operands = [
        (A.view(Own), B), (A, B.view(Own)), (A.view(np.uint8), B), (A, B.view(np.uint8)), (A.astype(np.int16), B),
        (A[0], B), (A[None], B), (A[None], packed._handle), (A, B[:, 0]), (A[:2], B), (A[:, :5], B), (A, None), (3, B),
        (A, packed), (A, object()), (None, None), (A[:0], B), (A.view(np.bool_), B),
    ]  # fmt: skip
    for a, b in operands:
        assert native.fast(a, b, None) is None and native.fast(a, b, out) is None
    assert native.fast() is None and native.fast(A, B) is None
    assert (frame == 0x5A5A5A5A).all() and not shared.any()
    for wrong in ((-1, True, True), (10_000, True, True), (row, False, True), (row, True, False)):
        with pytest.raises(ValueError, match="remember"):
            native.remember(*wrong, False, 3, 4, 8)
