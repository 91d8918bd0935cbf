"""Arrays on a GPU through the public ops: the emulator stands in for the device, fake_gpu.py for CuPy."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from fake_gpu import Array, values
from gemm_cases import cases, operands

import qkernels as qk
from qkernels import dispatch
from qkernels.backends import cuda as backend
from qkernels.backends import reference
from qkernels.device import view
from qkernels.kernel import Hardware, Problem
from qkernels.ops import on_device

TYPES = (np.int8, np.uint8)


def random(shape: tuple[int, ...], dtype: Any = np.int8, seed: int = 0) -> np.ndarray:
    limits = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(limits.min, limits.max + 1, shape).astype(dtype)


def test_rows_are_those_of_the_module(gpu: Any) -> None:
    module = backend._cuda
    assert [(r.tile, r.isa, r.step, r.first, r.last) for r in backend.ROWS] == [
        (r["tile"], r["isa"], r["step"], r["first_arch"], r["last_arch"]) for r in module.rows()
    ]


SHAPES: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    ((5, 7), (7, 3)), ((1, 64), (64, 130)), ((33, 48), (48, 16)), ((7,), (7, 3)), ((5, 7), (7,)), ((7,), (7,)),
    ((2, 3, 5, 32), (32, 9)), ((2, 5, 32), (2, 32, 9)), ((3, 1, 5, 20), (2, 20, 9)), ((5, 20), (3, 20, 4)),
    ((2, 5, 20), (1, 20, 4)), ((0, 4), (4, 3)), ((3, 0), (0, 4)),
)  # fmt: skip


@pytest.mark.parametrize("arch", [75, 80, 90, 120])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_matmul_equals_the_cpu(gpu: Any, shapes: Any, arch: int) -> None:
    gpu.pretend(arch)
    for i, types in enumerate((t, u) for t in TYPES for u in TYPES):
        a, b = random(shapes[0], types[0], i), random(shapes[1], types[1], i + 1)
        wanted = qk.matmul(a, b)
        got = qk.matmul(gpu.asarray(a), gpu.asarray(b))
        assert np.array_equal(values(got), wanted) and values(got).dtype == np.int32
        if b.ndim == 2:
            packed = qk.pack(gpu.asarray(b))
            assert np.array_equal(values(qk.matmul(gpu.asarray(a), packed)), wanted)
            assert np.array_equal(values(packed.unpack()), b)


@pytest.mark.parametrize("isa", dict.fromkeys(row.isa for row in backend.ROWS))
def test_conformance(gpu: Any, isa: str) -> None:
    """Every row of the registry, on cases of the one conformance test."""
    gpu.pretend(min(90, *(row.last for row in backend.ROWS if row.isa == isa)))
    for kernel in (k for k in qk.kernels("gemm") if k.isa == isa):
        types = [np.dtype("int8" if letter == "s" else "uint8") for letter in (kernel.types[0], kernel.types[2])]
        for i, case in enumerate(cases(8, 16, 0)):
            if (i + len(kernel.name)) % 37 or case.batch:
                continue
            x = operands(case, *types)
            with qk.use(kernel.name):
                zeros = {"a_zero_point": x.a_zero, "b_zero_point": x.b_zero}
                given = {name: zero for name, zero in zeros.items() if zero is not None}
                got = qk.matmul(gpu.lay(x.a), gpu.lay(x.b), **given)
            wanted = reference.matmul(x.a, x.b, *(0 if z is None else z for z in zeros.values()))
            assert np.array_equal(values(got), wanted), (kernel.name, case)


def test_zero_points(gpu: Any) -> None:
    rng = np.random.default_rng(3)
    for shape_a, shape_b in (((4, 5, 40), (40, 6)), ((4, 5, 40), (4, 40, 6)), ((9, 40), (40, 6))):
        a, b = random(shape_a), random(shape_b, np.uint8)
        a_zero, b_zero = rng.integers(-128, 128, shape_a[:-1]), rng.integers(0, 256, shape_b[-1])
        wanted = qk.matmul(a, b, a_zero_point=a_zero, b_zero_point=b_zero)
        x, y = gpu.asarray(a), gpu.asarray(b)
        assert np.array_equal(values(qk.matmul(x, y, a_zero_point=a_zero, b_zero_point=b_zero)), wanted)
        there = gpu.asarray(a_zero.astype(np.int32))
        assert np.array_equal(values(qk.matmul(x, y, a_zero_point=there, b_zero_point=b_zero)), wanted)
        wanted = qk.matmul(a, b, a_zero_point=-7)
        assert np.array_equal(values(qk.matmul(x, y, a_zero_point=-7)), wanted)


def test_strides_and_out(gpu: Any) -> None:
    a, b = random((40, 96)), random((96, 50))
    for turn in (lambda x: x, lambda x: x[::2], lambda x: x[::-1], lambda x: x[:, ::3], lambda x: x[3:, 1:]):
        x, y = turn(a), b[: turn(a).shape[1]]
        got = qk.matmul(turn(gpu.asarray(a)), gpu.asarray(b)[: y.shape[0]])
        assert np.array_equal(values(got), qk.matmul(x, y))
    transposed = gpu.asarray(np.ascontiguousarray(b.T)).T  # as torch keeps weights
    assert np.array_equal(values(qk.matmul(gpu.asarray(a), transposed)), qk.matmul(a, b))
    out = gpu.full((40, 50), -1, np.int32)
    assert qk.matmul(gpu.asarray(a), gpu.asarray(b), out=out) is out
    assert np.array_equal(values(out), qk.matmul(a, b))
    wide = gpu.full((40, 60), -1, np.int32)
    qk.matmul(gpu.asarray(a), gpu.asarray(b), out=wide[:, 5:55])
    assert np.array_equal(values(wide)[:, 5:55], qk.matmul(a, b)) and (values(wide)[:, :5] == -1).all()


def test_sums_in_64_bits(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of k, the last of one; zero points; a packed weight; sums beyond 32 bits."""
    monkeypatch.setattr(on_device, "K_CHUNK", 256)
    a, b = random((3, 513)), random((513, 2), np.uint8, 1)
    x, y = gpu.asarray(a), gpu.asarray(b)
    for zeros in ({}, {"a_zero_point": 5, "b_zero_point": [0, 255]}):
        wanted = qk.matmul(a, b, dtype="int64", **zeros)
        got = values(qk.matmul(x, y, dtype="int64", **zeros))
        assert got.dtype == np.int64 and np.array_equal(got, wanted)
        assert np.array_equal(values(qk.matmul(x, qk.pack(y), dtype="int64", **zeros)), wanted)
    out = gpu.full((3, 2), 0, np.int64)
    assert qk.matmul(x, y, dtype="int64", out=out) is out and np.array_equal(values(out), a.astype(np.int64) @ b)
    parts, total = gpu.full((700,), -(2**31), np.int32), gpu.full((700,), 9, np.int64)
    parts[3:] = random((697,), np.int32)
    for i in range(3):
        dispatch.add_wide_on_device(view(parts), view(total), i > 0)
    assert np.array_equal(values(total), 3 * values(parts).astype(np.int64)) and values(total)[0] == -3 * 2**31


def test_every_type_of_result(gpu: Any) -> None:
    """uint32 and uint64 have the same bits; narrower types wrap, as NumPy's own product does (A3)."""
    a, b = random((5, 40)), random((40, 7), np.uint8)
    x, y = gpu.asarray(a), gpu.asarray(b)
    for dtype in ("int32", "uint32", "int64", "uint64", "int16", "uint16", "int8", "uint8"):
        wanted, got = qk.matmul(a, b, dtype=dtype), values(qk.matmul(x, y, dtype=dtype))
        assert got.dtype == wanted.dtype and np.array_equal(got, wanted), dtype
        for kept in (dtype, "int64", "float64"):
            if not np.can_cast(dtype, kept, "safe"):
                continue
            out, mine = gpu.full((5, 7), 0, kept), np.zeros((5, 7), kept)
            assert qk.matmul(x, y, dtype=dtype, out=out) is out
            assert np.array_equal(values(out), qk.matmul(a, b, dtype=dtype, out=mine)), (dtype, kept)


def test_out_that_overlaps_an_operand(gpu: Any) -> None:
    """The first tile's results lie where the second tile's operands are."""
    room, b = gpu.asarray(random((400, 64))), random((64, 32))
    a = values(room)[:200].copy()
    out = Array(values(room).reshape(-1).view(np.int32).reshape(200, 32))
    with qk.use("*_cuda_dp4a"):
        assert qk.matmul(room[:200], gpu.asarray(b), out=out) is out
    assert np.array_equal(values(out), qk.matmul(a, b))


def test_explain_names_the_kernel_and_the_copies(gpu: Any) -> None:
    a, b = gpu.asarray(random((64, 128))), gpu.asarray(random((128, 256)))
    said = qk.explain(qk.matmul, a, b)
    assert said.kernel is not None and said.kernel.isa == "cuda_sm90a"
    assert "b is copied on its way" in str(said) and "a is copied" not in str(said)
    assert said.declined["gemm_s8s8s32_numpy"] == "computes in host memory"
    assert "copied" not in str(qk.explain(qk.matmul, a, qk.pack(b)))
    gpu.pretend(86)
    assert qk.explain(qk.matmul, a, b).kernel.isa == "cuda_sm80"
    assert (
        qk.explain(qk.matmul, a, b).declined["gemm_s8s8s32_128x256_cuda_sm90a"] == "this GPU is sm_86, it needs sm_90"
    )
    with qk.use("*_cuda_dp4a"):
        assert qk.explain(qk.matmul, a, b).kernel.isa == "cuda_dp4a"
        got = qk.matmul(a, b)
    assert np.array_equal(values(got), qk.matmul(values(a), values(b)))


@pytest.mark.parametrize(
    ("m", "n", "k", "tile"),
    [(1, 4096, 4096, "16x128"), (16, 4096, 4096, "16x128"), (64, 4096, 4096, "64x128"), (8192, 8192, 8192, "128x256")],
)
def test_tiles_by_size(m: int, n: int, k: int, tile: str) -> None:
    problem = Problem("gemm", "s8s8s32", m, n, k, "nk16", "cuda:0")
    chosen = dispatch.choose(problem, Hardware(frozenset(), "sm_90"))
    assert chosen.name == f"gemm_s8s8s32_{tile}_cuda_sm90a"


def test_quantize(gpu: Any) -> None:
    rng = np.random.default_rng(5)
    x = (rng.normal(size=(6, 70, 33)) * 100).astype(np.float32)
    x[0, :5, 0] = [np.nan, np.inf, -np.inf, 0.5, -0.5]
    for keywords in (
        {"scale": 0.5}, {"scale": 0.5, "zero_point": 3, "dtype": "uint8"},
        {"scale": rng.uniform(0.1, 2, 6), "axis": 0}, {"scale": rng.uniform(0.1, 2, 70), "axis": 1},
        {"scale": rng.uniform(0.1, 2, 33), "axis": 2, "zero_point": rng.integers(-5, 5, 33)},
        {"scale": rng.uniform(0.1, 2, (6, 70)), "axis": (0, 1), "dtype": "int16"},
        {"scale": rng.uniform(0.1, 2, (6, 70, 5)), "axis": (0, 1), "group_size": 8},
    ):  # fmt: skip
        wanted, got = qk.quantize(x, **keywords), qk.quantize(gpu.asarray(x), **keywords)
        assert np.array_equal(values(got.codes()), wanted.codes()), keywords
        assert np.array_equal(values(got.dequantize()), wanted.dequantize())
        half = x.astype(np.float16)
        assert np.array_equal(
            values(qk.quantize(gpu.asarray(half), **keywords).data), qk.quantize(half, **keywords).codes()
        )
        assert np.array_equal(values(got.dequantize("float16")), wanted.dequantize("float16"))
    assert qk.explain(qk.quantize, gpu.asarray(x), 0.5).kernel.name == "quantize_f32s8_cuda_dp4a"


@pytest.mark.parametrize("rounding", ["half_even", "gemmlowp", "ruy", "half_up", "half_away"])
def test_requantize(gpu: Any, rounding: str) -> None:
    rng = np.random.default_rng(6)
    acc = rng.integers(-(2**31), 2**31, (30, 41)).astype(np.int32) >> rng.integers(0, 24, (30, 41)).astype(np.int32)
    scale, bias = np.exp2(rng.uniform(-20, -2, 41)), rng.integers(-(2**31), 2**31, 41).astype(np.int32)
    for keywords in (
        {"scale": 2.0**-9}, {"scale": scale, "axis": 1, "bias": bias},
        {"scale": scale[:30], "axis": 0, "zero_point": 9},
        {"scale": 0.01, "dtype": "uint8", "zero_point": 128, "clamp": (3, 240)}, {"scale": 0.25, "dtype": "int16"},
    ):  # fmt: skip
        wanted = qk.requantize(acc, **keywords, rounding=rounding)
        got = qk.requantize(gpu.asarray(acc), **keywords, rounding=rounding)
        assert np.array_equal(values(got), wanted) and values(got).dtype == wanted.dtype, keywords
    out = gpu.full((30, 41), 0, np.int8)
    assert qk.requantize(gpu.asarray(acc), 0.01, rounding=rounding, out=out) is out
    assert np.array_equal(values(out), qk.requantize(acc, 0.01, rounding=rounding))


def test_bad_input(gpu: Any) -> None:
    a, b = gpu.asarray(random((4, 8))), gpu.asarray(random((8, 4)))
    with pytest.raises(
        TypeError, match=r"matmul: a is on cuda:0, b is in host memory; wanted all of them in one place"
    ):
        qk.matmul(a, random((8, 4)))
    acc = gpu.asarray(np.zeros((4, 8), np.int32))
    with pytest.raises(TypeError, match=r"requantize: scale is on a GPU, wanted in host memory"):
        qk.requantize(acc, gpu.asarray(np.ones(8)), axis=1)
    with pytest.raises(TypeError, match=r"requantize: bias is on a GPU"):
        qk.requantize(acc, 0.5, bias=gpu.asarray(np.ones((), np.int32)))
    with pytest.raises(TypeError, match=r"matmul: a is in host memory, b is on cuda:0"):
        qk.matmul(random((4, 8)), qk.pack(b))
    with pytest.raises(TypeError, match=r"matmul: a is on cuda:0, b is on cuda:1"):
        qk.matmul(a, Array(values(b), device=1))
    with pytest.raises(ValueError, match=r"matmul: a has k=8 .*, b has k=4"):
        qk.matmul(a, b.T)
    with pytest.raises(ValueError, match=r"matmul: out has shape \(3, 3\), the product has \(4, 4\)"):
        qk.matmul(a, b, out=gpu.empty((3, 3), np.int32))
    with pytest.raises(TypeError, match=r"matmul: out has dtype int16, which does not hold every int32"):
        qk.matmul(a, b, out=gpu.empty((4, 4), np.int16))
    with pytest.raises(ValueError, match=r"matmul: dtype='float32' of integers on a GPU, wanted a type of integers"):
        qk.matmul(a, b, dtype="float32")
    with pytest.raises(ValueError, match="could overflow int32"):
        qk.matmul(gpu.asarray(np.zeros((1, 140000), np.int8)), gpu.asarray(np.zeros((140000, 1), np.int8)))
    with pytest.raises(ValueError, match="outside of int8"):
        qk.matmul(a, b, a_zero_point=300)
    with pytest.raises(TypeError, match=r"requantize: acc is on cuda:0, out is in host memory"):
        qk.requantize(gpu.asarray(np.ones((3, 3), np.int32)), 1.0, out=np.zeros((3, 3), np.int8))
    with pytest.raises(TypeError, match="a is on cuda:0, b is in host memory"):
        qk.quantize(gpu.asarray(np.ones((3, 3), np.float32)), 1.0) @ np.ones((3, 3), np.float32)
    floats = gpu.asarray(np.ones((3, 3), np.float32))
    assert np.array_equal(values(qk.matmul(floats, floats)), np.full((3, 3), 3.0))


def test_without_a_gpu_the_answer_is_plain() -> None:
    script = (
        "import numpy as np, qkernels as qk\n"
        "a = np.ones((4, 8), np.int8)\n"
        "print(qk.explain(qk.matmul, a, a.T)); qk.show_config()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    if backend._driver_is_there():
        pytest.skip("there is a GPU here")
    assert "gpu         no CUDA device" in done.stdout
    assert "gemm_s8s8s32_128x256_cuda_sm90a" in done.stdout and "declines: no CUDA device" in done.stdout


def test_a_product_beside_the_reference(gpu: Any) -> None:
    a, b = random((70, 300), np.uint8), random((300, 140))
    got = values(qk.matmul(gpu.asarray(a), gpu.asarray(b), a_zero_point=128))
    assert np.array_equal(got, reference.matmul(a, b, 128))
