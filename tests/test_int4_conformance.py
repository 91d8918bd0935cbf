"""Every kernel of weights in groups equals the reference, bit for bit; the packed layouts, exactly."""

from __future__ import annotations

import numpy as np
import pytest
from int4_cases import int4_cases, int4_operands
from int4_cases import weights as int4_weights
from linear_cases import CANARY, CURVES, Case
from test_conformance import HERE, THREADS, _emulated, is_nan16, same_bits

import qkernels as qk
from qkernels import dispatch
from qkernels.backends import native_int4, reference
from qkernels.epilogue import Epilogue
from qkernels.kernel import Kernel, Problem
from qkernels.weight_groups import LAYOUTS, PackedGroups, pack_codes, unpack_codes

KERNELS = [kernel for kernel in dispatch.kernels("linear") if kernel.layout in LAYOUTS.values()]
TILES = {row["isa"]: row for row in native_int4.ROWS}


def runnable(kernel: Kernel) -> tuple[list[Kernel], str]:
    if kernel.isa not in TILES:
        verdict = kernel.judge(Problem("linear", kernel.types, 8, 8, 8, kernel.layout), HERE)
        return ([], verdict) if isinstance(verdict, str) else ([kernel], "")
    module = native_int4._native if kernel.isa in HERE.cpu else _emulated
    if module is None:
        return [], f"this CPU lacks {kernel.isa}, and the module of emulated intrinsics is not built"
    with_threads = (native_int4.kernels_of(module, threads) for threads in THREADS)
    return [next(k for k in kernels if k.name == kernel.name) for kernels in with_threads], ""


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_equals_the_reference(kernel: Kernel) -> None:
    executed, reason = runnable(kernel)
    if not executed:
        pytest.skip(f"{kernel.name}: {reason}")
    row = TILES.get(kernel.isa, {"mr": 4, "nr": 16})
    for i, case in enumerate(int4_cases(kernel, row["mr"], row["nr"])):
        x, packed = int4_operands(case, kernel)
        executed[i % len(executed)].run(x.a, packed, x.out, x.epilogue)
        wanted = np.empty_like(x.out)
        reference._run_groups(x.a, packed, wanted, x.epilogue)
        same = same_bits(x.out, wanted)
        if case.out == "bfloat16":
            same |= is_nan16(x.out) & is_nan16(wanted)
        if not same.all():
            at = tuple(int(v) for v in np.argwhere(~same)[0])
            pytest.fail(
                f"{kernel.name}: out{at} = {x.out[at]!r}, the reference has {wanted[at]!r}; {case}, {packed}, "
                f"threads {THREADS[i % len(executed)]}"
            )
        x.out.view(np.uint8)[...] = CANARY
        assert (x.frame == CANARY).all(), f"{kernel.name} wrote outside of out; {case}, {packed}"


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k.isa == "x86_amx"], ids=lambda kernel: kernel.name)
def test_tall_and_deep_equal_the_reference(kernel: Kernel) -> None:
    """One pass of two strips, even and not; passes one after the other; K in blocks, where little of it fits in L2."""
    executed, reason = runnable(kernel)
    if not executed:
        pytest.skip(f"{kernel.name}: {reason}")
    deep = native_int4._native.cache_bytes(2) * 5 // 16 // 32 // 4 + 300
    rng = np.random.default_rng(3)
    for i, (m, n, k) in enumerate(((47, 70, 300), (64, 300, 1300), (33, 40, 700), (70, 300, deep))):
        case = Case(m, n, k, "float32", str(rng.choice(["random", "extreme"])), "none", "plain", "float", "rows", "",
                    None, "half_even")  # fmt: skip
        x, packed = int4_operands(case, kernel)
        executed[i % len(executed)].run(x.a, packed, x.out, x.epilogue)
        wanted = np.empty_like(x.out)
        reference._run_groups(x.a, packed, wanted, x.epilogue)
        assert same_bits(x.out, wanted).all(), (kernel.name, case, packed)


def test_every_isa_has_every_pair_of_types() -> None:
    for isa in {kernel.isa for kernel in KERNELS}:
        assert {k.types for k in KERNELS if k.isa == isa} == {
            *(a + w + acc for a in ("s8", "u8", "f32") for w in ("u4", "u2") for acc in ("f32", "s32")),
            *(a + w + "f32" for a in ("s8", "u8", "f32") for w in ("u8", "s8")),
        }


@pytest.mark.parametrize("kernel", [k for k in dispatch.kernels("weight_only") if not k.device], ids=lambda k: k.name)
def test_floats_keep_the_bound(kernel: Kernel) -> None:
    """A11: |y − ref| ≤ 2⁻²⁰ Σ|x·w|, of bfloat16 2⁻⁷; exactly 0 where all weights are their zero point."""
    if kernel.isa in TILES:
        module = native_int4._native if kernel.isa in HERE.cpu else _emulated
        if module is None:
            pytest.skip(f"this CPU lacks {kernel.isa}, and the module of emulated intrinsics is not built")
        kernel = next(k for k in native_int4.kernels_of(module, 2) if k.name == kernel.name)
    rng = np.random.default_rng(5)
    rounds = kernel.isa == "x86_amxbf16" and kernel.types.startswith("bf16")  # others keep float32's for bfloat16 too
    bound = 2.0**-7 if rounds else 2.0**-20
    for m, n, k in (
        (1, 35, 700),
        (33, 70, 1100),
        (64, 200, 64),
        (2, 16, 513),
        (3, 130, 96),
        (7, 33, 64),
        (13, 70, 1000),
        (1, 1, 1),
    ):
        packed = int4_weights(rng, kernel, k, n, bool(rng.integers(2)))
        x = (rng.normal(size=(m, k)) * np.exp2(rng.integers(-20, 20, (m, k)))).astype(np.float32)
        out = np.full((m, n), np.nan, np.float32)
        kernel.run(x, packed, out, Epilogue("float32"))
        values = packed.values()
        error = np.abs(out - x.astype(np.float64) @ values)
        assert (error <= bound * (np.abs(x.astype(np.float64)) @ np.abs(values))).all(), (kernel.name, m, n, k)


@pytest.mark.parametrize("curve", CURVES)
def test_curves_are_within_their_tolerance(curve: str) -> None:
    kernel = next(k for k in KERNELS if k.types == "s8u4f32" and k.isa in HERE.cpu)
    case = Case(5, 67, 96, "float32", "random", "none", "plain", "float", "rows", "", curve, "half_even")
    x, packed = int4_operands(case, kernel)
    runnable(kernel)[0][0].run(x.a, packed, x.out, x.epilogue)
    wanted = np.empty_like(x.out)
    reference._run_groups(x.a, packed, wanted, x.epilogue)
    error = np.abs(x.out.astype(np.float64) - wanted.astype(np.float64))
    assert (error <= np.maximum(2 * np.spacing(np.abs(wanted)), 2.0**-22 * np.abs(wanted))).all()


# ---------------------------------------------------------------- the layouts


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize(("k", "n"), [(1, 1), (16, 16), (63, 17), (64, 32), (130, 5), (200, 33)])
def test_codes_are_packed_and_unpacked_exactly(bits: int, k: int, n: int) -> None:
    codes = np.random.default_rng(k).integers(0, 1 << bits, (k, n)).astype(np.uint8)
    packed = pack_codes(codes, bits)
    assert np.array_equal(unpack_codes(packed.reshape(-1), k, n, bits), codes)
    flat, planes = packed.reshape(-1), 8 // bits
    for at_k, at_n in ((0, 0), (k - 1, n - 1), (k // 2, n // 3)):  # the drawing in docs/layouts.md
        line, plane = at_k // (4 * planes), at_k // 4 % planes
        byte = flat[at_n // 16 * (-(-k // 64) * 64 * 16 // planes) + line * 64 + at_n % 16 * 4 + at_k % 4]
        assert byte >> (plane * bits) & ((1 << bits) - 1) == codes[at_k, at_n]


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int2", "uint2"])
@pytest.mark.parametrize("two_level", [False, True])
def test_a_weight_comes_back_from_its_packed_form(dtype: str, two_level: bool) -> None:
    x = np.random.default_rng(1).normal(size=(33, 100)).astype(np.float32)
    weight = qk.quantize(x, dtype=dtype, axis=0, group_size=32, symmetric=dtype[0] == "i", two_level=two_level)
    packed = qk.pack_linear(weight)
    back = packed.unpack()
    assert np.array_equal(back.codes(), weight.codes()) and np.array_equal(back.scale, weight.scale)
    assert np.array_equal(back.dequantize(), weight.dequantize())
    part = packed.parts[0]
    assert isinstance(part, PackedGroups)
    assert (part.scales is None) == two_level


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k.types == "s8u4f32"], ids=lambda kernel: kernel.name)
def test_the_trap_of_two_roundings(kernel: Kernel) -> None:
    """A10: y = 1 + 2⁻²³, then + 2⁻²⁴ (2⁴⁰ − 1)/2⁴⁰; a sum rounded to float64 first is a tie, and goes up."""
    executed, reason = runnable(kernel)
    if not executed:
        pytest.skip(f"{kernel.name}: {reason}")
    a, w = np.zeros((1, 512), np.int8), np.zeros((512, 1), np.uint8)
    a[0, 0], w[0, 0] = 1, 1
    a[0, 256:353], w[256:353, 0] = 127, 15  # 184 785
    a[0, 353], w[353, 0], a[0, 354], w[354, 0] = 17, 15, 3, 1  # + 258 = 3 · 61 681, a factor of 2⁴⁰ − 1
    scale = np.array([[1 + 2.0**-23, (2**40 - 1) // 185043 * 2.0**-64]], np.float32)
    packed = PackedGroups(qk.QTensor(w.T, scale, dtype="uint4", axis=0, group_size=256))
    out = np.empty((1, 1), np.float32)
    executed[0].run(a, packed, out, Epilogue("float32", a_scale=np.ones(1, np.float32), w_scale=np.ones(1, np.float32)))
    assert out[0, 0] == np.float32(1 + 2.0**-23)
