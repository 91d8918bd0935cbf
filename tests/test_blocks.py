"""Products longer and wider than a cache block, and layers of them: where blocks of weights, parts of k and strips of
rows meet. Native rows only, against float64 sums, which are exact here."""

from __future__ import annotations

import numpy as np
import pytest

import qkernels as qk
from qkernels.backends import native
from qkernels.hardware import detect

ROWS = [kernel for kernel in native.KERNELS if kernel.op == "gemm" and kernel.isa in detect().cpu]
# An L2 of 2 MiB holds 247 columns of k = 5300, 312 of 4200; smaller ones hold fewer. 40 and 261 rows, few and many.
SHAPES = ((40, 340, 4200), (261, 340, 5300))


@pytest.mark.parametrize("kernel", ROWS, ids=lambda kernel: kernel.name)
def test_products_of_many_blocks(kernel: qk.Kernel) -> None:
    of = {"s": np.int8, "u": np.uint8}
    rng = np.random.default_rng(5)
    for m, n, k in SHAPES:
        a, b = (
            rng.integers(np.iinfo(t).min, np.iinfo(t).max + 1, shape).astype(t)
            for t, shape in ((of[kernel.types[0]], (m, k)), (of[kernel.types[2]], (k, n)))
        )
        weights = qk.pack(b)
        for a_zero, b_zero in ((0, 0), (3, -5 if b.dtype == np.int8 else 5)):
            zeros = [np.full(size, zero, np.int32) if zero else None for size, zero in ((m, a_zero), (n, b_zero))]
            room = np.full(m * n + 32, -1, np.int32)
            out = room[5 : 5 + m * n].reshape(m, n)
            kernel.run(a, weights, out, *zeros)
            wanted = (a.astype(np.float64) - a_zero) @ (b.astype(np.float64) - b_zero)
            assert np.array_equal(out, wanted)
            assert (room[:5] == -1).all() and (room[5 + m * n :] == -1).all()


@pytest.mark.parametrize("wishes", ({}, {"out_scale": 400.0}, {"out_dtype": "float16"}), ids=str)
def test_layers_of_many_blocks(wishes: dict) -> None:
    """The best native row equals the NumPy row, bit for bit."""
    rng = np.random.default_rng(6)
    for m, n, k in SHAPES:
        x = qk.quantize(rng.normal(size=(m, k)).astype(np.float32), dtype="uint8", symmetric=False)
        w = qk.quantize(rng.normal(size=(n, k)).astype(np.float32), axis=0)
        bias = rng.normal(size=n).astype(np.float32)
        got = qk.linear(x, w, bias, activation="relu", **wishes)
        with qk.use("*_numpy"):
            wanted = qk.linear(x, w, bias, activation="relu", **wishes)
        for result in (got, wanted):
            assert isinstance(result, qk.QTensor) == ("out_scale" in wishes)
        got, wanted = (r.codes() if isinstance(r, qk.QTensor) else r for r in (got, wanted))
        assert np.array_equal(got, wanted)
