"""What only the compiled elementwise kernels have to prove: quotients without a division, stores past the caches,
ranges that threads share, rows of every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
from quantize_cases import REALS, runs

from qkernels import dispatch
from qkernels.backends import native, native_elementwise, numpy_elementwise
from qkernels.kernel import Kernel, Multipliers, Scales
from qkernels.rounding import multiplier_of

F32, S32 = np.float32, np.int32
NATIVE = [kernel for kernel in dispatch.KERNELS if kernel.name in native_elementwise.INDEX]
pytestmark = pytest.mark.skipif(not NATIVE, reason=f"no compiled half: {native.MISSING}")


def of(op: str, types: str) -> list[Kernel]:
    return [kernel for kernel in NATIVE if (kernel.op, kernel.types) == (op, types)]


def test_every_isa_has_every_op_and_type() -> None:
    codes = ("s8", "u8", "s16", "u16")
    wanted = {("quantize", r + c) for c in codes for r in REALS} | {("dequantize", c + r) for c in codes for r in REALS}
    wanted |= {("dynamic_quantize", r + c) for c in codes[:2] for r in REALS}
    wanted |= {("requantize", "s32" + c) for c in codes} | {("softmax", c * 2) for c in codes[:2]}
    wanted |= {(op, c * 3) for op in ("add", "mul") for c in codes[:2]} | {("lookup", "u8u8")}
    for isa in {kernel.isa for kernel in NATIVE}:
        assert {(k.op, k.types) for k in NATIVE if k.isa == isa} == wanted


def near_ties(rng: np.random.Generator, scale: np.ndarray, n: int) -> np.ndarray:
    """(n, scales) numbers x whose quotient x/scale is half of an odd number, or a few steps of float32 beside it."""
    halves = rng.integers(-140, 140, (n, scale.size)) + 0.5
    with np.errstate(over="ignore", under="ignore"):
        x = (halves * scale.astype(np.float64)).astype(F32)
    return (x.view(S32) + rng.integers(-2, 3, x.shape).astype(S32)).view(F32)


@pytest.mark.parametrize("kernel", of("quantize", "f32s8"), ids=lambda k: k.name)
@pytest.mark.parametrize("by_column", [False, True])
def test_quotients_are_those_of_a_division(kernel: Kernel, by_column: bool) -> None:
    """Scales of every magnitude, the ends of the range where no division is needed among them, all at ties."""
    rng = np.random.default_rng(61)
    ends = [2.0**-100, 2.0**100]
    around = [np.nextafter(F32(end), F32(to)) for end in ends for to in (0, np.inf)]
    mantissas = np.concatenate([1 + np.arange(4) * 2.0**-23, 2 - np.arange(1, 5) * 2.0**-23, rng.uniform(1, 2, 640)])
    scale = np.concatenate([ends, around, mantissas * np.exp2(rng.integers(-126, 122, mantissas.size))]).astype(F32)
    x = near_ties(rng, scale, 1500)
    wanted = np.empty(x.shape, np.int8)
    by = Scales(scale[None], None, 1, 1)
    numpy_elementwise.quantize(x, by, (-128, 127), wanted)
    if not by_column:
        x, wanted, by = x.T.copy(), wanted.T.copy(), Scales(scale[:, None], None, 1, len(x))
    out = np.empty_like(wanted)
    next(runs(kernel)).run(x, by, (-128, 127), out)
    assert np.array_equal(out, wanted), np.argwhere(out != wanted)[:3]


LARGE = (1500, 6007)  # 9 MB of codes: more than is written through the caches, from odd addresses


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("isa", sorted({kernel.isa for kernel in NATIVE}))
def test_large_outputs(isa: str, threads: int) -> None:
    """Written past the caches, in parts: nothing is missed at the seams, nothing is written beside them."""
    if isa not in {row["isa"] for row in native.ROWS if row["runs_here"]}:
        pytest.skip(f"this CPU lacks {isa}")
    rows = {(k.op, k.types): k for k in native_elementwise.kernels_of(native._native, threads) if k.isa == isa}
    rng = np.random.default_rng(62)
    m, n = LARGE
    x = (rng.standard_normal(LARGE, F32) * F32(3)).astype(F32)
    x[rng.integers(0, m, 50), rng.integers(0, n, 50)] = np.nan
    zero = rng.integers(-5, 5, (1, n)).astype(S32)
    scale = np.exp2(rng.uniform(-6, 0, (1, n))).astype(F32)
    frame = np.full(m * n + 128, 85, np.int8)
    out = frame[61 : 61 + m * n].reshape(LARGE)
    wanted = np.empty(LARGE, np.int8)
    for by in (Scales(scale[:, :1], zero[:, :1], 1, n), Scales(scale, zero, 1, 1)):
        rows["quantize", "f32s8"].run(x, by, (-128, 127), out)
        numpy_elementwise.quantize(x, by, (-128, 127), wanted)
        assert np.array_equal(out, wanted)
    assert (frame[:61] == 85).all() and (frame[61 + m * n :] == 85).all()
    real, wanted_real = np.empty(m * n + 1, F32)[1:].reshape(LARGE), np.empty(LARGE, F32)
    rows["dequantize", "s8f32"].run(out, by, real)
    numpy_elementwise.dequantize(wanted, by, wanted_real)
    assert real.tobytes() == wanted_real.tobytes()
    acc = rng.integers(-(2**20), 2**20, LARGE).astype(S32)
    multipliers = Multipliers(
        "half_even", *multiplier_of(scale.astype(np.float64) / 999, "half_even"), None, None, 1, 1
    )
    rows["requantize", "s32s8"].run(acc, multipliers, (-128, 127), out)
    numpy_elementwise.requantize(acc, multipliers, (-128, 127), wanted)
    assert np.array_equal(out, wanted)
    for types, limits in (("f32s8", (-127, 127)), ("f32u8", (0, 255))):
        found = [[np.empty((1, 1), kind) for kind in (F32, S32, S32)] for _ in range(2)]
        flat, codes, wanted_codes = x.reshape(1, -1), out.view(types[3:].replace("s", "i")[0] + "1"), wanted.view("i1")
        codes, wanted_codes = codes.reshape(1, -1), wanted_codes.view(codes.dtype).reshape(1, -1)
        rows["dynamic_quantize", types].run(flat, flat.size, limits, *found[0], codes)
        numpy_elementwise.dynamic_quantize(flat, flat.size, limits, *found[1], wanted_codes)
        assert np.array_equal(codes, wanted_codes)
        assert [v.tobytes() for v in found[0]] == [v.tobytes() for v in found[1]]
