"""The Numba-CUDA rows in Numba's simulator, in a process of their own: importing numba chooses the simulator."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SCRIPT = """
import itertools
import sys
import numpy as np
import qkernels as qk
from qkernels.backends import numba_cuda, reference
from qkernels.backends.cuda import Found
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

for seed, (shape, group) in enumerate((((1, 1), 1), ((3, 300), 300), ((4, 130), 32), ((2, 7), 3))):
    x = (rng.normal(size=shape) * np.exp2(rng.integers(-9, 9, shape))).astype(np.float32)
    if shape[1] > 6:
        x[0, :5] = [np.nan, np.inf, -np.inf, -0.0, 1e-38]
        x[-1] = 0
    for code in ("s8", "u8"):
        wanted = reference.dynamic_quantize(x, np.dtype(of[code]).name, "row", group)
        for with_sums in (False, True):
            out, scale = np.full(shape, 77, of[code]), np.zeros(wanted.scale.shape, np.float32)
            zero, sums = (np.full(scale.shape, 77, np.int32) for _ in range(2))
            limits = (-128, 127) if code == "s8" else (0, 255)
            of_sums = sums if with_sums else None
            rows[f"dynamic_quantize_f32{code}_numba_cuda"].run(x, group, limits, scale, zero, of_sums, out)
            assert np.array_equal(out, wanted.codes) and np.array_equal(scale, wanted.scale), (code, shape, group)
            assert np.array_equal(zero, wanted.zero_point) and (not with_sums or np.array_equal(sums, wanted.sums))
        back = np.zeros(shape, np.float32)
        rows[f"dequantize_{code}f32_numba_cuda"].run(out, Scales(scale, zero, 1, group), back)
        for i, j in np.ndindex(*shape):
            place = i, j // group
            assert back[i, j] == np.float32(int(out[i, j]) - zero[place]) * scale[place]
        for symmetric in (True, False):
            ends = np.full(scale.shape, -1, np.int64)
            numba_cuda.find_extremes(x, ends, 1, group)
            middle = None if not symmetric else 128 if code == "u8" else 0
            found = Found(np.zeros(scale.shape, np.float32), None, np.zeros(scale.shape, np.int32))
            numba_cuda.scales_of_extremes(ends, limits, middle, "float32", found, 1, 1)
            q = qk.quantize(x, dtype=np.dtype(of[code]).name, axis=0, group_size=group, symmetric=symmetric)
            points = np.broadcast_to(q.zero_point, q.scale.shape)
            assert np.array_equal(found.scale, q.scale) and np.array_equal(found.zero, points), (code, symmetric)

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

sys.path.insert(0, "tests")
from conv_cases import OUTS, Case, conv, operands

geometries = itertools.cycle((
    conv((3, 4), 3, 2, (3, 3), pads=1), conv((5,), 4, 6, (2,), 2, groups=2), conv((2, 3, 3), 2, 2, (2, 2, 1), groups=2),
    conv((4, 4), 2, 3, (2, 2), dilation=2, batch=2), conv((3, 3), 1, 3, (1, 1), 2, -1 + 1),
))
types = itertools.cycle(numba_cuda.TYPES)
for seed, (out, curve) in enumerate([*((out, None) for out in OUTS), ("bfloat16", None), ("float16", "silu"),
    *(("float32", curve) for curve in ("gelu", "gelu_tanh", "hardswish", "sigmoid", "tanh", "residual", "codes"))]):
    kind = next(types)
    case = Case(next(geometries), "random", ("odd", "none")[seed % 2], ("none", "one", "each")[seed % 3], out
                if out != "bfloat16" else "float32", "plain", seed)
    x = operands(case, np.dtype(of[kind[:2]]), np.dtype(of[kind[2:4]]))
    by = x.by._replace(out=out) if out == "bfloat16" else x.by
    if curve == "residual":
        by = by._replace(residual=rng.normal(size=x.out.shape).astype(np.float32))
    elif curve == "codes":
        by = by._replace(residual=random(np.uint8, *x.out.shape), residual_scale=0.25, residual_zero=128)
    elif curve:
        by = by._replace(activation=curve)
    got, wanted = (np.full(x.out.shape, 77, np.uint16 if out == "bfloat16" else x.out.dtype) for _ in range(2))
    rows[f"conv_{kind}_numba_cuda"].run(x.x, x.w, case.conv, got, x.x_zero, by)
    reference._run_conv(x.x, x.w, case.conv, wanted, x.x_zero, by)
    if curve and out == "float32" and isinstance(by.activation, str):
        assert np.allclose(got, wanted, rtol=2**-22, atol=0), (out, curve)
    else:
        assert np.array_equal(got, wanted), (kind, out, curve)
print("all of them")
"""

# As a GPU would get them: the simulator runs Python, which knows no types. The driver is asked for the GPU's age alone.
COMPILED = """
import re
import types as plain
from numba import cuda, types
from numba.cuda import dispatcher
from qkernels.backends import _numba_cuda as elements, _numba_cuda_conv as convs, _numba_cuda_ranges as ranges
from qkernels.backends import _numba_cuda_weights as weights

dispatcher.get_current_device = lambda: plain.SimpleNamespace(compute_capability=(7, 5))
s8, u8, u16, s32, s64, f16, f32, f64 = (getattr(types, name) for name in (
    "int8", "uint8", "uint16", "int32", "int64", "float16", "float32", "float64"))

def array(kind, ndim, layout="C"):
    return types.Array(kind, ndim, layout)

words, reals, codes = array(s32, 2), array(f32, 2), array(u8, 1)
numbers = (s64,) * 5
kernels = (
    (elements.gemm, (array(u8, 3, "A"), array(s8, 3, "A"), array(s32, 3), words, words)),
    (elements.quantize, (reals, reals, words, *numbers[:4], array(s8, 2))),
    (elements.requantize, (words, reals, words, words, words, *numbers, array(u8, 2))),
    (elements.requantize, (words, array(f64, 2), words, words, words, *numbers, array(s8, 2))),
    (ranges.dynamic, (reals, *numbers[:3], reals, words, words, array(s8, 2, "A"))),
    (ranges.dequantize, (array(u8, 2), reals, words, *numbers[:2], reals)),
    (ranges.extremes, (reals, *numbers[:2], array(f32, 3))),
    (ranges.clear, (array(f32, 2),)),
    (ranges.found, (reals, *numbers[:2], types.boolean, s64, array(f32, 1), array(s32, 1))),
    (convs.conv, (array(u8, 5, "A"), array(s8, 5, "A"), array(s32, 1), array(u8, 1), array(s64, 1), words)),
    (convs.plain_filters, (array(s8, 4), array(s8, 1), s64, s64)),
    (convs.add_bias, (words, words)),
    (convs.floats, (words, array(f32, 1), array(f32, 1), reals, array(s8, 2), s64, f64, s64, s64, f64, f64,
                    array(f16, 2))),
    (convs.bfloats, (words, array(u16, 2))),
    (weights.grouped, (array(s8, 2), codes, array(f16, 1), codes, *numbers, reals)),
    (weights.two_level, (array(s8, 2), *(codes,) * 3, *numbers, words)),
    (weights.weight_only, (reals, codes, array(f32, 1), codes, *numbers, reals)),
    (weights.weight_only, (array(f16, 2), codes, array(f32, 1), codes, *numbers, reals)),
    (weights.widened, (array(u16, 1), array(u16, 2))),
    (weights.multipliers, (*(array(f32, 1),) * 2, f64, reals)),
    (convs.floats, (reals, array(f32, 1), array(f32, 1), reals, reals, s64, f64, s64, s64, f64, f64, reals)),
    (convs.joined, (words, reals, array(u8, 2), s64, f64, *numbers[:4], array(s8, 2))),
)
for kernel, signature in kernels:
    ptx, _ = cuda.compile_ptx(kernel.py_func, signature, cc=(7, 5))
    fused = kernel is weights.grouped  # A10 wants it
    assert bool(re.search(r"fma[.]rn[.]f32", ptx)) == fused and not re.search("div[.](approx|full)", ptx), kernel
print("all of them")
"""

# The public door on the Numba rows: arrays "on a GPU" of fake_gpu.py, without the module _cuda.
DOOR = """
import itertools
import sys
sys.path.insert(0, "tests")
import ml_dtypes
import numpy as np
import fake_gpu as gpu
import qkernels as qk
from fake_gpu import values

rng = np.random.default_rng(0)

def real(*shape):
    return rng.normal(size=shape).astype(np.float32)

def same(got, wanted, said):
    got = got.codes() if isinstance(got, qk.QTensor) else got
    wanted = wanted.codes() if isinstance(wanted, qk.QTensor) else wanted
    assert np.array_equal(values(got), wanted) and values(got).dtype == wanted.dtype, said

def weight(n, k, **keywords):
    return qk.quantize(real(n, k), axis=0, **keywords)

used = set()
for keywords, (m, n, k) in itertools.product((
    {"dtype": "int4", "group_size": 32}, {"dtype": "uint4", "group_size": 64, "symmetric": False},
    {"dtype": "int4", "group_size": 32, "scale_dtype": "float16"}, {"dtype": "int2", "group_size": 96},
    {"dtype": "int8", "group_size": 64, "scale_dtype": "bfloat16"}, {"dtype": "int4", "group_size": 1024},
    {"dtype": "int4", "group_size": 32, "two_level": True}), ((1, 67, 40), (3, 9, 136))):
    x, w, bias, residual = real(m, k), weight(n, k, **keywords), real(n), real(m, n)
    there = gpu.asarray(x)
    used.add(qk.explain(qk.linear, there, w).kernel.name)
    for wishes in ({}, {"bias": bias, "activation": "relu"}, {"out_dtype": "float16", "activation": (-1.0, 2.0)}):
        wanted = qk.linear(x, w, **wishes)
        same(qk.linear(there, w, **wishes), wanted, (keywords, wishes))
    wanted = qk.linear(x, w, bias, residual=residual)
    same(qk.linear(there, w, gpu.asarray(bias), residual=gpu.asarray(residual)), wanted, keywords)
    if "two_level" in keywords:
        for wishes in ({"activation": "relu6"}, {"out_dtype": "uint8", "out_zero_point": 100}):
            wanted = qk.linear(x, w, out_scale=0.1, **wishes)
            same(qk.linear(there, w, out_scale=0.1, **wishes), wanted, wishes)
    exact = w.dequantize("float64").T
    for compute, dtype in itertools.product(("float32", "bfloat16"), (np.float32, np.float16, ml_dtypes.bfloat16)):
        left = x.astype(dtype)
        used.add(qk.explain(qk.linear, gpu.asarray(left), w, compute=compute).kernel.name)
        y = values(qk.linear(gpu.asarray(left), w, bias, compute=compute, out_dtype="float32"))
        size = np.abs(left.astype(float)) @ np.abs(exact) + np.abs(bias)
        assert (np.abs(y - (left.astype(float) @ exact + bias)) <= 2.0**-20 * size).all(), (keywords, compute, dtype)
        half = values(qk.linear(gpu.asarray(left), w, bias, compute=compute, out_dtype="bfloat16"))
        assert np.array_equal(half, y.astype(ml_dtypes.bfloat16)), (compute, dtype)

convs = (((2, 9, 9, 16), 12, 3, 1, 1), ((1, 7, 7, 3), 5, 7, 2, 1), ((1, 6, 6, 16), 9, 1, 1, 1),
    ((1, 8, 7, 8), 8, 3, 1, 4), ((1, 9, 9, 6), 6, 5, 1, 6), ((2, 5, 5, 6), 6, 3, 2, 6))
for (size, filters, taps, stride, groups), kind in zip(convs, itertools.cycle(("int8", "uint8"))):
    keywords = dict(layout="NHWC", stride=stride, padding=taps // 2, groups=groups)
    w = qk.quantize(real(filters, taps, taps, size[3] // groups), axis=0)
    limits = np.iinfo(kind)
    codes = rng.integers(limits.min, limits.max + 1, size).astype(kind)
    x, bias = qk.QTensor(codes, 0.05, 3), real(filters)
    there = qk.QTensor(gpu.asarray(codes), 0.05, 3)
    used.add(qk.explain(qk.conv2d, there, w, **keywords).kernel.name)
    plain = qk.conv2d(x, w, out_scale=0.3, **keywords)
    other = rng.integers(-128, 128, plain.shape).astype(np.int8)
    for wishes in ({}, {"bias": bias, "activation": "relu"}, {"out_dtype": "float16"}, {"out_dtype": "int32"},
        {"out_scale": 0.3, "activation": "relu6"}, {"out_scale": 0.3, "rounding": "gemmlowp"},
        {"out_scale": 0.2, "residual": qk.QTensor(other, 0.1, -5)},
        {"bias": bias, "residual": qk.QTensor(other, 0.1, 4)}):
        given = dict(wishes)
        if "residual" in given:
            r = given["residual"]
            given["residual"] = qk.QTensor(gpu.asarray(other), float(r.scale), int(r.zero_point))
        same(qk.conv2d(there, w, **keywords, **given), qk.conv2d(x, w, **keywords, **wishes), (size, wishes))
assert {"conv_s8s8s32_numba_cuda", "conv_u8s8s32_numba_cuda", "gemm_s8s8s32_numba_cuda"} <= used
used = {name for name in used if not name.startswith(("conv", "gemm"))}
wanted = {k.name for k in qk.kernels() if k.name.endswith("numba_cuda") and k.layout.startswith("n64k64")}
assert used == wanted, wanted ^ used
print("all of them")
"""


def test_the_public_door_in_the_simulator() -> None:
    """Packed weights and convolutions: the CPU's bits, or the bound of A11; every row of weights is used."""
    pytest.importorskip("numba.cuda", reason="numba is an extra")
    pytest.importorskip("ml_dtypes")
    pytest.importorskip("qkernels._cuda_emulated", reason="its memory is the fake GPU's")
    done = subprocess.run(
        [sys.executable, "-c", DOOR], capture_output=True, text=True, cwd=ROOT,
        env=os.environ | {"NUMBA_ENABLE_CUDASIM": "1"},
    )  # fmt: skip
    assert done.returncode == 0 and "all of them" in done.stdout, done.stdout + done.stderr


def test_kernels_compile_for_a_gpu() -> None:
    """No fused multiply-add where the specification rounds twice, no approximate division (A0)."""
    pytest.importorskip("numba.cuda", reason="numba is an extra")
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, cwd=ROOT)
    if "libNVVM cannot be found" in done.stderr or "NvvmSupportError" in done.stderr:
        pytest.skip("Numba finds no NVVM: it needs a CUDA toolkit")
    assert done.returncode == 0 and "all of them" in done.stdout, done.stdout + done.stderr


def test_rows_equal_the_reference_in_the_simulator() -> None:
    pytest.importorskip("numba.cuda", reason="numba is an extra")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=ROOT,
        env=os.environ | {"NUMBA_ENABLE_CUDASIM": "1"},
    )  # fmt: skip
    assert done.returncode == 0 and "all of them" in done.stdout, done.stdout + done.stderr
