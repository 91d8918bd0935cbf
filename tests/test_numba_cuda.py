"""The Numba-CUDA rows in Numba's simulator, in a process of their own: importing numba chooses the simulator."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = """
import itertools
import numpy as np
from qkernels.backends import numba_cuda, reference
from qkernels.kernel import Multipliers, Scales
from qkernels.rounding import multiplier_of

rows = {k.name: k for k in numba_cuda.KERNELS}
rng = np.random.default_rng(0)

def random(dtype, *shape):
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max + 1, shape).astype(dtype)

of = {"s8": np.int8, "u8": np.uint8}
for types, (batch, m, n, k) in zip(numba_cuda.TYPES, ((1, 18, 5, 21), (2, 3, 17, 9), (1, 1, 1, 1), (1, 16, 16, 32))):
    a, w = random(of[types[:2]], batch, m, k), random(of[types[2:4]], batch, n, k)
    a_zero, w_zero = random(np.int8, batch, m).astype(np.int32), random(np.int8, batch, n).astype(np.int32)
    for zeros in ((None, None), (a_zero, w_zero)):
        out = np.full((batch, m, n), 0x5A5A5A5A, np.int32)
        rows[f"gemm_{types}_numba_cuda"].run(a, w, out, *zeros)
        wanted = reference.matmul(a, w.swapaxes(1, 2), *(0 if z is None else z for z in zeros))
        assert np.array_equal(out, wanted), types

x = (rng.normal(size=(9, 14)) * 60).astype(np.float32)
x[0, :5] = [np.nan, np.inf, -np.inf, 0.75, -1.25]
for code, low, high, zero in (("s8", -128, 127, -3), ("u8", 0, 255, 128)):
    scale = rng.uniform(0.2, 1, (9, 1)).astype(np.float32)
    scale[0] = 0.5
    out = np.zeros(x.shape, of[code])
    by = Scales(scale, np.full((9, 1), zero, np.int32), 1, 14)
    rows[f"quantize_f32{code}_numba_cuda"].run(x, by, (low, high), out)
    assert np.array_equal(out, reference.quantize(x, scale, zero, of[code])), code

acc = random(np.int32, 8, 12) >> rng.integers(0, 24, (8, 12)).astype(np.int32)
acc[0, :4] = [2, -2, 6, -6]
for rounding, (code, low, high, zero) in itertools.product(
    ("half_even", "gemmlowp", "ruy", "half_up", "half_away"), (("s8", -128, 127, 5), ("u8", 3, 250, 128))
):
    real = np.exp2(rng.uniform(-16, 2, (1, 12)))
    real[0, :6] = 0.25
    m, e = multiplier_of(real, rounding)
    bias = random(np.int32, 1, 12)
    bias[0, :6] = 0
    out = np.zeros(acc.shape, of[code])
    by = Multipliers(rounding, m, e, bias, np.full((1, 12), zero, np.int32), 1, 1)
    rows[f"requantize_s32{code}_numba_cuda"].run(acc, by, (low, high), out)
    given = m if rounding == "half_even" else real
    wanted = reference.requantize(reference.add_bias(acc, bias), given, zero, of[code], rounding, (low, high))
    assert np.array_equal(out, wanted), (rounding, code)
print("all of them")
"""


def test_rows_equal_the_reference_in_the_simulator() -> None:
    pytest.importorskip("numba.cuda", reason="numba is an extra")
    root = pathlib.Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=root,
        env=os.environ | {"NUMBA_ENABLE_CUDASIM": "1"},
    )  # fmt: skip
    assert done.returncode == 0 and "all of them" in done.stdout, done.stdout + done.stderr
