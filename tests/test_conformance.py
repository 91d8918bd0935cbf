"""One test: every kernel × every case equals the reference, bit for bit.

A kernel whose instruction set this CPU lacks is executed from its own source through emulated intrinsics (module
`_emulated`, built with QKERNELS_EMULATE=ON); where that is not built either, it is listed as skipped, with the reason.
GPU kernels take other arrays: test_cuda_arrays.py gives them the same cases.
"""

from __future__ import annotations

import numpy as np
import pytest
from gemm_cases import CANARY, Case, cases, operands, values
from linear_cases import CANARY as BYTE
from linear_cases import CURVES
from linear_cases import Case as LinearCase
from linear_cases import cases as linear_cases
from linear_cases import operands as linear_operands

from qkernels import dispatch
from qkernels.backends import native, reference
from qkernels.epilogue import Epilogue
from qkernels.hardware import detect
from qkernels.kernel import Kernel, Problem

try:
    from qkernels import _emulated
except ImportError:
    _emulated = None  # type: ignore[assignment]

HERE = detect()
TILES = {row["isa"]: row for row in native.ROWS}
THREADS = (1, 2, 7)
K_BLOCK = {"x86_amx": 1024, "numpy": 1024}
LINEAR = [
    kernel for kernel in dispatch.kernels("linear") if kernel.layout == "n16k4"
]  # others: test_int4_conformance.py


def runnable(kernel: Kernel) -> tuple[list[Kernel], str]:
    """How the kernel can be executed here, once for each number of threads, or why not."""
    if kernel.isa not in TILES:
        verdict = kernel.judge(Problem(kernel.op, kernel.types, 8, 8, 8, kernel.layout), HERE)
        return ([], verdict) if isinstance(verdict, str) else ([kernel], "")
    module = native._native if kernel.isa in HERE.cpu else _emulated
    if module is None:
        return [], f"this CPU lacks {kernel.isa}, and the module of emulated intrinsics is not built"
    with_threads = (native.kernels_of(module, threads) for threads in THREADS)
    return [next(k for k in kernels if k.name == kernel.name) for kernels in with_threads], ""


def types_of(kernel: Kernel) -> tuple[np.dtype, np.dtype]:
    of = {"s": np.dtype(np.int8), "u": np.dtype(np.uint8), "f": np.dtype(np.float32)}
    return of[kernel.types[0]], of[kernel.types.removesuffix("s32")[-2]]


def check(kernel: Kernel, case: Case, threads: object) -> None:
    x = operands(case, *types_of(kernel))
    weights = dispatch.pack_weights(x.b) if case.form == "packed" and not case.batch else x.b
    kernel.run(x.a, weights, x.out, x.a_zero, x.b_zero)
    a_zero = 0 if x.a_zero is None else x.a_zero
    b_zero = 0 if x.b_zero is None else x.b_zero
    wanted = reference.matmul(x.a, x.b, a_zero, b_zero)
    if not np.array_equal(x.out, wanted):
        at = tuple(int(i) for i in np.argwhere(x.out != wanted)[0])
        pytest.fail(
            f"{kernel.name}: out{at} = {x.out[at]}, the reference has {wanted[at]}; {case}, threads {threads}\n"
            f"rerun: python -m pytest 'tests/test_conformance.py::test_equals_the_reference[{kernel.name}]'"
        )
    x.out[...] = CANARY
    assert (x.frame == CANARY).all(), f"{kernel.name} wrote outside of out; {case}, threads {threads}"


@pytest.mark.parametrize(
    "kernel", [k for k in dispatch.kernels("gemm") if not k.device], ids=lambda kernel: kernel.name
)
def test_equals_the_reference(kernel: Kernel) -> None:
    executed, reason = runnable(kernel)
    if not executed:
        pytest.skip(f"{kernel.name}: {reason}")
    row = TILES.get(kernel.isa, {"mr": 8, "nr": 16})
    for i, case in enumerate(cases(row["mr"], row["nr"], K_BLOCK.get(kernel.isa, 0))):
        j = i % len(executed)
        check(executed[j], case, THREADS[j])


# m, n, k, the column of a line of 64 bytes at which out begins, elements between its rows. Where they are whole lines,
# AMX turns the weights so that tiles end where lines do; 198 columns from 4: both ends of a row, in different calls.
FEW_STEPS = (
    *((83, n, 64, offset, 96) for n in (48, 64, 71, 80) for offset in (0, 4, 9, 15)),
    *((40, 198, 70, offset, 208) for offset in (1, 4, 5, 12)),
    (70, 64, 200, 4, 64),
    (130, 60, 520, 4, 64),
    (17, 97, 64, 4, 97),
    (3, 64, 64, 4, 64),
)


@pytest.mark.parametrize("kernel", [k for k in dispatch.kernels("gemm") if k.isa in TILES], ids=lambda k: k.name)
def test_products_of_few_steps_wherever_out_begins(kernel: Kernel) -> None:
    executed, reason = runnable(kernel)
    if not executed:
        pytest.skip(f"{kernel.name}: {reason}")
    rng = np.random.default_rng(11)
    for i, (m, n, k, offset, row) in enumerate(FEW_STEPS):
        a, b = (values(rng, "random", t, shape) for t, shape in zip(types_of(kernel), ((m, k), (k, n)), strict=True))
        room = np.full(m * row + 64, CANARY, np.int32)
        begin = -(room.ctypes.data // 4) % 16 + offset
        out = room[begin : begin + m * row].reshape(m, row)[:, :n]
        executed[i % len(executed)].run(a, dispatch.pack_weights(b), out, None, None)
        assert np.array_equal(out, reference.matmul(a, b, 0, 0)), f"{kernel.name}: {FEW_STEPS[i]}"
        out[...] = CANARY
        assert (room == CANARY).all(), f"{kernel.name} wrote outside of out: {FEW_STEPS[i]}"


# The least and the greatest weights whose products fit 16 bits in pairs, and what one beyond them is (narrow.h).
NARROW = {np.dtype(np.int8): (-64, 64, (-65, 65)), np.dtype(np.uint8): (0, 128, (129,))}


@pytest.mark.parametrize("kernel", [k for k in dispatch.kernels("gemm") if k.isa in TILES], ids=lambda k: k.name)
def test_weights_of_seven_bits_and_one_beyond(kernel: Kernel) -> None:
    executed, reason = runnable(kernel)
    if not executed:
        pytest.skip(f"{kernel.name}: {reason}")
    rng, (of_a, of_b) = np.random.default_rng(12), types_of(kernel)
    low, high, beyond = NARROW[of_b]
    for i, (m, n, k) in enumerate(((19, 37, 70), (1, 16, 200), (4, 5, 3), (33, 64, 64))):
        a = rng.choice(np.array([np.iinfo(of_a).min, np.iinfo(of_a).max], of_a), (m, k))
        random = rng.integers(low, high, (k, n), of_b, endpoint=True)
        ends = rng.choice(np.array([low, high], of_b), (k, n))
        for b in (random, ends, np.full((k, n), low, of_b), np.full((k, n), high, of_b)):
            for wide in (None, *beyond):
                if wide is not None:  # one weight of the last column decides which kernel runs
                    b[:, -1] = high if wide > 0 else low
                    b[k // 2, -1] = wide
                out = np.empty((m, n), np.int32)
                executed[i % len(executed)].run(a, dispatch.pack_weights(b), out, None, None)
                assert np.array_equal(out, reference.matmul(a, b, 0, 0)), f"{kernel.name}: {(m, n, k)}, {wide}"


def test_every_pair_of_types_has_a_row_of_every_isa() -> None:
    isas = {kernel.isa for kernel in dispatch.kernels("gemm")}
    for isa in isas:
        assert {k.types for k in dispatch.kernels("gemm") if k.isa == isa} == {
            "s8s8s32",
            "s8u8s32",
            "u8s8s32",
            "u8u8s32",
        }
    for isa in {kernel.isa for kernel in LINEAR}:
        assert {k.types for k in LINEAR if k.isa == isa} == {
            a + w + "s32" for a in ("s8", "u8", "f32") for w in ("s8", "u8")
        }


# ---------------------------------------------------------------- linear: the product and its epilogue


def same_bits(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Element by element; a NaN equals a NaN, its payload is not promised (A1)."""
    if x.dtype.kind != "f":
        return x == y
    return (x.view(f"u{x.itemsize}") == y.view(f"u{y.itemsize}")) | (np.isnan(x) & np.isnan(y))


def is_nan16(bits: np.ndarray) -> np.ndarray:
    return (bits & 0x7FFF) > 0x7F80  # of bfloat16


def check_linear(kernel: Kernel, case: LinearCase, threads: object) -> None:
    x = linear_operands(case, *types_of(kernel))
    packed = dispatch.pack_weights(x.w)
    kernel.run(x.a, packed, x.out, x.epilogue)
    wanted = np.empty_like(x.out)
    reference._run_linear(x.a, packed, wanted, x.epilogue)
    same = same_bits(x.out, wanted)
    if case.out == "bfloat16":
        same |= is_nan16(x.out) & is_nan16(wanted)
    if not same.all():
        at = tuple(int(i) for i in np.argwhere(~same)[0])
        pytest.fail(
            f"{kernel.name}: out{at} = {x.out[at]!r}, the reference has {wanted[at]!r}; {case}, threads {threads}\n"
            f"rerun: python -m pytest 'tests/test_conformance.py::test_linear_equals_the_reference[{kernel.name}]'"
        )
    x.out.view(np.uint8)[...] = BYTE
    assert (x.frame == BYTE).all(), f"{kernel.name} wrote outside of out; {case}, threads {threads}"


@pytest.mark.parametrize("kernel", LINEAR, ids=lambda kernel: kernel.name)
def test_linear_equals_the_reference(kernel: Kernel) -> None:
    executed, reason = runnable(kernel)
    if not executed:
        pytest.skip(f"{kernel.name}: {reason}")
    row = TILES.get(kernel.isa, {"mr": 8, "nr": 16})
    of_floats = kernel.types.startswith("f32")
    for i, case in enumerate(linear_cases(row["mr"], row["nr"], K_BLOCK.get(kernel.isa, 0), of_floats)):
        j = i % len(executed)
        check_linear(executed[j], case, THREADS[j])


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("kernel", LINEAR, ids=lambda kernel: kernel.name)
def test_curves_are_within_their_tolerance(kernel: Kernel, curve: str) -> None:
    """A6: 2 ulp or 2⁻²²·|y|. Rows of +1 and −1, and a scale for each argument: those of every size up to 2⁵, densely
    where the curves bend, and a few that are enormous."""
    executed, reason = runnable(kernel)
    if not executed:
        pytest.skip(f"{kernel.name}: {reason}")
    a_type, w_type = types_of(kernel)
    sizes = np.concatenate([np.exp2(np.linspace(-149, 5, 3000)), np.linspace(0, 20, 5000), [100, 1e4, 1e19, 3e38]])
    n = len(sizes)
    a = np.array([[127.0], [-127.0]] if a_type == np.float32 else [[1], [255 if a_type == np.uint8 else -1]], a_type)
    a_zero = np.array([0, 256 if a_type == np.uint8 else 0], np.int32)
    by = Epilogue(
        "float32", None if a_type == np.float32 else a_zero, None, None, np.ones(1, np.float32),
        (sizes / (127 if a_type == np.float32 else 1)).astype(np.float32), curve,
    )  # fmt: skip
    packed = dispatch.pack_weights(np.ones((1, n), w_type))
    out, wanted = np.empty((2, n), np.float32), np.empty((2, n), np.float32)
    executed[0].run(a, packed, out, by)
    reference._run_linear(a, packed, wanted, by)
    error = np.abs(out.astype(np.float64) - wanted.astype(np.float64))
    bound = np.maximum(2 * np.spacing(np.abs(wanted)), 2.0**-22 * np.abs(wanted))
    assert np.isfinite(out).all()
    assert (error <= bound).all(), f"{kernel.name}: {curve} is off by {np.max(error / bound):.3g} of its tolerance"
