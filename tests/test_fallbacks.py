"""The two backends that need no compiler, NumPy and Numba, against int64 products reduced mod 2³²."""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys

import numpy as np
import pytest

from qkernels.backends import numba_cpu, numpy_cpu
from qkernels.kernel import Hardware, Kernel, Problem

NUMBA = importlib.util.find_spec("numba") is not None
TYPES = {"u8": np.uint8, "s8": np.int8}
CANARY = 0x5EAFBEEF
EXTREME = np.array([-(2**31), 2**31 - 1, -(2**31) + 1, 0, 1, -1, 128, -128, 255, -255, 65536], np.int32)

GEMMS = tuple(kernel for kernel in numpy_cpu.KERNELS + numba_cpu.KERNELS if kernel.op == "gemm")
rows = pytest.mark.parametrize(
    "kernel",
    [
        pytest.param(
            kernel,
            id=kernel.name,
            marks=pytest.mark.skipif(kernel.isa == "numba" and not NUMBA, reason="numba is not installed"),
        )
        for kernel in GEMMS
    ],
)


def types_of(kernel: Kernel) -> tuple[type, type]:
    return TYPES[kernel.types[:2]], TYPES[kernel.types[2:4]]


def integers(rng: np.random.Generator, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max + 1, shape, dtype)


def expected(a, b, a_zero=None, b_zero=None) -> np.ndarray:
    """int64 wraps mod 2⁶⁴, so its low 32 bits are right even where zero points overflow it."""
    a, b = a.astype(np.int64), b.astype(np.int64)
    a = a if a_zero is None else a - a_zero.astype(np.int64)[..., :, None]
    b = b if b_zero is None else b - b_zero.astype(np.int64)[..., None, :]
    return np.matmul(a, b).astype(np.uint32).view(np.int32)


def check(kernel: Kernel, a, b, a_zero=None, b_zero=None, out=None, plain=None) -> None:
    """Runs into `out`, a view into a larger array, or into contiguous memory amid canaries; nothing else may change."""
    want = expected(a, b if plain is None else plain, a_zero, b_zero)
    if out is None:
        out = np.empty(want.size + 128, np.int32)[64:-64].reshape(want.shape)
    base = out
    while base.base is not None:
        base = base.base
    base[...] = np.uint32(CANARY).view(np.int32)
    before = [None if x is None or not isinstance(x, np.ndarray) else x.copy() for x in (a, b, a_zero, b_zero)]
    kernel.run(a, b, out, a_zero, b_zero)
    wrong = np.argwhere(out != want)
    assert not wrong.size, (
        f"{kernel.name} {a.shape}·{b.shape} at {wrong[0]}: {out[tuple(wrong[0])]}, want {want[tuple(wrong[0])]}"
    )
    out[...] = np.uint32(CANARY).view(np.int32)
    assert (base == np.uint32(CANARY).view(np.int32)).all(), f"{kernel.name} wrote outside of out"
    for x, copy in zip((a, b, a_zero, b_zero), before, strict=True):
        assert copy is None or (x == copy).all(), f"{kernel.name} wrote to an input"


def zero_points(rng: np.random.Generator, length: int) -> list[np.ndarray | None]:
    scalar = np.broadcast_to(rng.choice(EXTREME), (length,))
    return [None, scalar, rng.choice(EXTREME, length).astype(np.int32)]


@rows
def test_small_sizes(kernel: Kernel):
    rng = np.random.default_rng(1)
    for m, n, k in itertools.product((1, 2, 3, 4, 5, 7, 10), (1, 2, 3, 5, 8, 9), (1, 2, 3, 4, 6, 9, 10)):
        a, b = (integers(rng, dtype, shape) for dtype, shape in zip(types_of(kernel), ((m, k), (k, n)), strict=True))
        check(kernel, a, b)


@rows
@pytest.mark.parametrize("k", (257, 258, 259, 513, 514, 515, 1023, 1024, 1025, 2049, 4097))
def test_chunk_edges_random_and_worst_case(kernel: Kernel, k: int):
    rng = np.random.default_rng(k)
    a_type, b_type = types_of(kernel)
    check(kernel, integers(rng, a_type, (5, k)), integers(rng, b_type, (k, 7)))
    # Every product of the largest magnitude and one sign. Then one of them replaced by a small odd one, in the signed
    # range to which the float32 backend shifts: at K = 1025 the sum is 2²⁴ + 1, which float32 does not hold.
    ends = [(np.iinfo(x).min, np.iinfo(x).max) for x in (a_type, b_type)]
    for x, y in itertools.product(*ends):
        a, b = np.full((3, k), x, a_type), np.full((k, 5), y, b_type)
        check(kernel, a, b)
        a[:, -1], b[-1] = np.iinfo(a_type).min + 129, np.iinfo(b_type).min + 129
        check(kernel, a, b)


@rows
@pytest.mark.parametrize("m, n, k", ((1025, 3, 5), (3, 1025, 6), (63, 65, 33), (130, 129, 100), (17, 31, 1500)))
def test_ragged_blocks(kernel: Kernel, m: int, n: int, k: int):
    rng = np.random.default_rng(m)
    a_type, b_type = types_of(kernel)
    a, b = integers(rng, a_type, (m, k)), integers(rng, b_type, (k, n))
    check(kernel, a, b)
    check(kernel, a, b, rng.choice(EXTREME, m).astype(np.int32), rng.choice(EXTREME, n).astype(np.int32))


@rows
@pytest.mark.parametrize("k", (1, 9, 300, 1030, 2049))
def test_zero_points(kernel: Kernel, k: int):
    rng = np.random.default_rng(k)
    a_type, b_type = types_of(kernel)
    a, b = integers(rng, a_type, (6, k)), integers(rng, b_type, (k, 9))
    for a_zero, b_zero in itertools.product(zero_points(rng, 6), zero_points(rng, 9)):
        check(kernel, a, b, a_zero, b_zero)
    strided = rng.choice(EXTREME, 27).astype(np.int32)
    check(kernel, a, b, strided[11::-2], strided[::3])


def views(x: np.ndarray) -> list[np.ndarray]:
    """The same integers in other memory: transposed, spread out, reversed on each axis."""
    rows, columns = x.shape
    spread = np.zeros((2 * rows, 3 * columns), x.dtype)
    spread[::2, ::3] = x
    return [x, np.asfortranarray(x), spread[::2, ::3], x[::-1, ::-1].copy()[::-1, ::-1], x.T[::-1].copy()[::-1].T]


@rows
def test_strides_of_inputs(kernel: Kernel):
    rng = np.random.default_rng(3)
    a_type, b_type = types_of(kernel)
    a_zero, b_zero = (rng.choice(EXTREME, size).astype(np.int32) for size in (11, 13))
    for k in (1, 35, 1040):
        a, b = integers(rng, a_type, (11, k)), integers(rng, b_type, (k, 13))
        for x, y in itertools.product(views(a), views(b)):
            check(kernel, x, y)
            check(kernel, x, y, a_zero, b_zero)
    check(kernel, np.broadcast_to(a[:1, :1], (4, 20)), np.broadcast_to(b[:1], (20, 13)))


@rows
def test_strides_of_out(kernel: Kernel):
    rng = np.random.default_rng(4)
    a_type, b_type = types_of(kernel)
    for k in (20, 1040):
        a, b = integers(rng, a_type, (6, k)), integers(rng, b_type, (k, 9))
        zeros = rng.choice(EXTREME, 6).astype(np.int32), rng.choice(EXTREME, 9).astype(np.int32)
        for out in (
            np.empty((6, 9), np.int32),
            np.empty((9, 6), np.int32).T,
            np.empty((15, 40), np.int32)[1:13:2, 3:30:3],
            np.empty((8, 11), np.int32)[1:-1, 1:-1],
            np.empty((8, 11), np.int32)[6:0:-1, 9:0:-1],
        ):
            check(kernel, a, b, out=out)
            check(kernel, a, b, *zeros, out=out)


@rows
def test_batches(kernel: Kernel):
    rng = np.random.default_rng(5)
    a_type, b_type = types_of(kernel)
    m, n, k = 4, 5, 37
    for batch in ((1,), (3,), (2, 3), (2, 1, 3)):
        a, b = integers(rng, a_type, (*batch, m, k)), integers(rng, b_type, (*batch, k, n))
        a_zero, b_zero = rng.choice(EXTREME, (*batch, m)), rng.choice(EXTREME, (*batch, n))
        one = b[(0,) * len(batch)]
        check(kernel, a, b)
        check(kernel, a, b, a_zero, b_zero)
        check(kernel, a, np.broadcast_to(one, b.shape), a_zero, b_zero)
        check(
            kernel, a, b, np.broadcast_to(a_zero.flat[0], a_zero.shape), np.broadcast_to(b_zero[..., :1], b_zero.shape)
        )
        check(kernel, np.broadcast_to(a[:1], a.shape), np.broadcast_to(b[:1], b.shape), a_zero, b_zero)
        out = np.empty((m + 1, *batch, n + 2), np.int32)[1:, ..., 2:]
        check(kernel, a, b, a_zero, b_zero, out=np.moveaxis(out, 0, -2))
        swapped = np.swapaxes(np.ascontiguousarray(np.swapaxes(b, 0, -1)), 0, -1)
        check(kernel, a[..., ::-1, :], swapped, a_zero, None)


@rows
def test_batches_larger_than_any_buffer(kernel: Kernel):
    rng = np.random.default_rng(6)
    a_type, b_type = types_of(kernel)
    a, b = integers(rng, a_type, (3, 700, 30, 20)), integers(rng, b_type, (3, 700, 20, 31))
    check(kernel, a, b)
    check(kernel, a, np.broadcast_to(b[0, 0], b.shape), None, np.broadcast_to(np.int32(7), (3, 700, 31)))


class Packed:
    """What a backend may ask of a packed weight."""

    def __init__(self, plain: np.ndarray):
        self.plain, self.shape = plain, plain.shape

    def unpack(self) -> np.ndarray:
        return self.plain


@rows
def test_packed_weights(kernel: Kernel):
    rng = np.random.default_rng(7)
    a_type, b_type = types_of(kernel)
    b = integers(rng, b_type, (70, 19))
    for batch in ((), (3,), (2, 3)):
        a, a_zero = integers(rng, a_type, (*batch, 5, 70)), rng.choice(EXTREME, (*batch, 5))
        check(kernel, a, Packed(b), a_zero, np.broadcast_to(rng.choice(EXTREME, 19), (*batch, 19)), plain=b)


def test_a_call_inside_a_call(monkeypatch: pytest.MonkeyPatch):
    """A finalizer or a signal handler may call in the middle of a call of the same thread; scratch is not shared."""
    rng = np.random.default_rng(8)
    kernel, product, calls = numpy_cpu.KERNELS[0], numpy_cpu._float_product, itertools.count()
    a, b = integers(rng, np.uint8, (9, 50)), integers(rng, np.int8, (50, 8))

    def interrupted(*operands: np.ndarray) -> None:
        if next(calls) == 0:
            check(kernel, a[::-1], b)
        product(*operands)

    monkeypatch.setattr(numpy_cpu, "_float_product", interrupted)
    check(kernel, a, b)
    assert next(calls) == 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="guards memory with Linux's mprotect")
@pytest.mark.parametrize(
    "backend",
    ("numpy_cpu", pytest.param("numba_cpu", marks=pytest.mark.skipif(not NUMBA, reason="numba is not installed"))),
)
def test_not_a_byte_beyond_out(backend: str):
    """out lies against a page that may not be touched; adding zero there would not show in a canary."""
    code = f"""
import ctypes, mmap
import numpy as np
from qkernels.backends.{backend} import KERNELS
page = mmap.PAGESIZE
memory = mmap.mmap(-1, 3 * page)
raw = np.frombuffer(memory, np.int32)
for guard in (0, 2):
    address = ctypes.c_void_p(raw.ctypes.data + guard * page)
    assert ctypes.CDLL(None).mprotect(address, ctypes.c_size_t(page), 0) == 0
inner = raw[page // 4 : 2 * page // 4]
for m, n, k in ((1, 1, 1), (3, 5, 7), (5, 3, 20), (7, 7, 2), (9, 1, 3), (1, 9, 3), (4, 33, 16)):
    for out in (inner[: m * n].reshape(m, n), inner[-m * n :].reshape(m, n)):
        for zeros in ((None, None), (np.ones(m, np.int32), np.ones(n, np.int32))):
            KERNELS[0].run(np.ones((m, k), np.uint8), np.ones((k, n), np.int8), out, *zeros)
            assert (out == (k if zeros[0] is None else 0)).all()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_judges_name_their_reasons():
    for kernel in GEMMS:
        assert kernel.name == f"gemm_{kernel.types}_{kernel.isa}" and kernel.layout == "n16k4"
        problem, machine = Problem("gemm", kernel.types, 64, 64, 64), Hardware(frozenset({"numba"}))
        assert 0 < kernel.judge(problem, machine) < kernel.judge(problem._replace(k=640), machine)
        assert isinstance(kernel.judge(problem._replace(layout="n16k4"), machine), (int, float))
        assert "n8k8" in kernel.judge(problem._replace(layout="n8k8"), machine)
        assert "conv" in kernel.judge(problem._replace(op="conv"), machine)
    bare = Hardware(frozenset())
    problem = Problem("gemm", "s8s8s32", 8, 8, 8)
    assert {kernel.judge(problem, bare) for kernel in GEMMS if kernel.isa == "numba"} == {"numba is not installed"}
    assert all(kernel.judge(problem, bare) > 0 for kernel in GEMMS if kernel.isa == "numpy")


def test_the_numba_rows_exist_without_numba():
    code = """
import sys
sys.modules["numba"] = sys.modules["llvmlite"] = None
from qkernels.backends.numba_cpu import KERNELS
from qkernels.kernel import Hardware, Problem
assert [kernel.op for kernel in KERNELS].count("gemm") == 4
assert KERNELS[0].judge(Problem("gemm", KERNELS[0].types, 8, 8, 8), Hardware(frozenset())) == "numba is not installed"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_numba_is_not_imported_before_it_runs():
    code = "import sys, qkernels.backends.numba_cpu; sys.exit('numba' in sys.modules or 'llvmlite' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
