"""requantize: every row and rounding against the reference bit for bit, at least ten million times."""

from __future__ import annotations

import numpy as np
import pytest
from quantize_cases import LAYOUTS, Layout, missing, runs, torch_or_skip

import qkernels as qk
from qkernels import dispatch, dtypes
from qkernels.backends import reference as ref
from qkernels.kernel import Kernel, Multipliers
from qkernels.rounding import ROUNDINGS, fma32, multiplier_of

F32, S32 = np.float32, np.int32
KERNELS = dispatch.kernels("requantize")
S32_ENDS = np.array(
    [-(2**31), -(2**31) + 1, -(2**30), -(2**24) - 1, -1, 0, 1, 2**24 + 1, 2**30, 2**31 - 2, 2**31 - 1], S32
)
# Ordinary ones; powers of two, whose products tie; next to q = 2³¹; flushed and saturated by A4; the ends of float64.
ODD = (0.5, 0.25, 1.0, 2.0, 2.0**-8, 2.0**-20, 1 - 2.0**-33, 1 - 2.0**-32, 0.75, 3e-5, 2.0**-31, 2.0**-32, 2.0**-33,
       2.0**-34, 2.0**30, 2.0**31, 2.0**32, 1e20, 1e-20, 1e-300, 2.0**-149, 2.0**-150, 5e-324)  # fmt: skip


def accumulators(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Of every magnitude, small ones and the ends of s32 often."""
    acc = (rng.integers(-(2**31), 2**31, shape) >> rng.integers(0, 31, shape)).astype(S32)
    return np.where(rng.random(shape) < 0.05, rng.choice(S32_ENDS, shape), acc).astype(S32)


def multipliers(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    ordinary = np.exp2(rng.uniform(-14, 1, shape))
    # Those that put the accumulator on a tie: half of an odd number over a small one.
    ties = (rng.integers(0, 200, shape) + 0.5) / rng.integers(1, 200, shape)
    kind = rng.integers(0, 4, shape)
    return np.select([kind == 0, kind == 1], [rng.choice(ODD, shape), ties], ordinary)


def check(
    kernel: Kernel, layout: Layout, rounding: str, rng: np.random.Generator, clamp: bool, bias: bool, zero: bool
) -> int:
    name = {"s": "int", "u": "uint"}[kernel.types[3]] + kernel.types[4:]
    low, high = dtypes.limits(name)
    shape = (layout.scale_rows, layout.scale_columns)
    scale, acc = multipliers(rng, shape), accumulators(rng, (layout.rows, layout.inner))
    m, e = multiplier_of(scale, rounding)
    added = rng.integers(-(2**31), 2**31, shape).astype(S32) if bias else None
    zeros = rng.integers(low, high + 1, shape).astype(S32) if zero else None
    limits = tuple(sorted(rng.integers(low, high + 1, 2).tolist())) if clamp else (low, high)
    out = np.full(acc.shape, 85, dtypes.container(name))
    kernel.run(acc, Multipliers(rounding, m, e, added, zeros, layout.repeat, layout.group), limits, out)
    whole = ref.add_bias(acc, 0 if added is None else layout.spread(added))
    given = scale.astype(F32) if rounding == "half_even" else scale
    wanted = ref.requantize(
        whole, layout.spread(given), 0 if zeros is None else layout.spread(zeros), name, rounding, limits
    )
    if not np.array_equal(out, wanted):
        at = tuple(int(i) for i in np.argwhere(out != wanted)[0])
        pytest.fail(
            f"{kernel.name}, {rounding}: out{at} = {out[at]}, the reference has {wanted[at]}; acc {whole[at]}, {layout}"
        )
    return out.size


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_rows_requantize(kernel: Kernel, rounding: str) -> None:
    ways = runs(kernel)
    rng = np.random.default_rng(21)
    for i, layout in enumerate(LAYOUTS.values()):
        for clamp, bias, zero in ((False, False, False), (i % 2 == 0, True, True), (i % 2 == 1, False, True)):
            check(next(ways), layout, rounding, rng, clamp, bias, zero)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_ten_million(rounding: str) -> None:
    """2.1 million for each rounding, one scale, row and column at a time, against the reference computed once."""
    rng = np.random.default_rng(22)
    rows, inner = 350, 500
    acc = accumulators(rng, (rows, inner))
    done = 0
    runnable = [k for k in KERNELS if k.types == "s32s8" and not missing(k) and k.isa != "reference"]
    while done < 2_100_000:
        for shape, repeat, group in (((1, 1), 1, inner), ((rows, 1), 1, inner), ((1, inner), 1, 1)):
            scale = multipliers(rng, shape)
            m, e = multiplier_of(scale, rounding)
            zeros = rng.integers(-128, 128, shape).astype(S32)
            given = scale.astype(F32) if rounding == "half_even" else scale
            wanted = ref.requantize(acc, given, zeros, "int8", rounding)
            for kernel in runnable:
                out = np.empty(acc.shape, np.int8)
                kernel.run(acc, Multipliers(rounding, m, e, None, zeros, repeat, group), (-128, 127), out)
                assert np.array_equal(out, wanted), (kernel.name, rounding, np.argwhere(out != wanted)[0])
                done += out.size


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def test_ties_of_large_accumulators(kernel: Kernel, rounding: str) -> None:
    """|acc| > 2²⁴, which float32 rounds, and a multiplier that puts it next to a tie: every rounding shows."""
    ways = runs(kernel)
    rng = np.random.default_rng(27)
    n = 20_000
    out = np.empty((n, 1), {"s": "i", "u": "u"}[kernel.types[3]] + str(int(kernel.types[4:]) // 8))
    limits = int(np.iinfo(out.dtype).min), int(np.iinfo(out.dtype).max)
    zero = 0 if limits[0] else 127
    acc = (rng.integers(2**24, 2**31, (n, 1)) * rng.choice([-1, 1], (n, 1))).astype(S32)
    scale = (rng.integers(1, 120, (n, 1)) + 0.5) / np.abs(acc.astype(np.float64))
    scale = np.where(rng.random((n, 1)) < 0.5, scale, scale.astype(F32))
    m, e = multiplier_of(scale, rounding)
    next(ways).run(acc, Multipliers(rounding, m, e, None, np.full((n, 1), zero, S32), 1, 1), limits, out)
    given = scale.astype(F32) if rounding == "half_even" else scale
    wanted = ref.requantize(acc, given, zero, out.dtype, rounding)
    assert np.array_equal(out, wanted), (kernel.name, np.flatnonzero(out != wanted)[:5])


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_multipliers_are_those_of_the_reference(rounding: str) -> None:
    rng = np.random.default_rng(23)
    scale = np.concatenate([np.array(ODD), np.exp2(rng.uniform(-40, 40, 20000)), 1 - np.arange(1, 9) * 2.0**-33])
    m, e = multiplier_of(scale, rounding)
    if rounding == "half_even":
        assert m.dtype == F32 and np.array_equal(m, scale.astype(F32)) and e is None
    elif rounding == "half_away":
        assert np.array_equal(m, scale) and e is None
    else:
        q, left, right = ref.quantized_multiplier(scale)
        assert e is not None and m.dtype == e.dtype == S32
        assert np.array_equal(m, q) and np.array_equal(e, left - right)
        assert (m[e == 0] == 0).any() and (m == 2**31 - 1).any(), "some are flushed, some saturated"


# ---------------------------------------------------------------- the op


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int4", "uint4", "int2", "uint2", "int16", "uint16"])
def test_every_type_and_axis(dtype: str, rounding: str) -> None:
    rng = np.random.default_rng(24)
    low, high = dtypes.limits(dtype)
    acc = accumulators(rng, (3, 8, 5))
    for axis in (None, 0, 1, 2, -1, -2):
        n = () if axis is None else (acc.shape[axis],)
        scale = np.exp2(rng.uniform(-30, 3, n))
        zero, bias = rng.integers(low, high + 1, n), rng.integers(-1000, 1000, n)
        shape = [1] * 3
        shape[axis or 0] = -1
        placed = [np.reshape(v, shape) for v in (scale, zero, bias)] if n else [scale, zero, bias]
        given = placed[0].astype(F32) if rounding == "half_even" else placed[0]
        for clamp in (None, (low + 1, high - 1), (-(10**9), 0), (high + 5, high + 9)):
            got = qk.requantize(acc, scale, zero, dtype=dtype, axis=axis, bias=bias, clamp=clamp, rounding=rounding)
            wanted = ref.requantize(ref.add_bias(acc, placed[2]), given, placed[1], dtype, rounding, clamp)
            assert got.dtype == wanted.dtype and np.array_equal(got, wanted), (axis, clamp)
        scalar = qk.requantize(acc, 0.003, zero, dtype=dtype, axis=axis, rounding=rounding)
        m = F32(0.003) if rounding == "half_even" else np.float64(0.003)
        assert np.array_equal(scalar, ref.requantize(acc, m, placed[1], dtype, rounding)), (
            "a scalar scale along an axis"
        )


def test_the_roundings_by_name() -> None:
    acc = np.array([-6, -5, -3, -2, -1, 0, 1, 2, 3, 5, 6], S32)
    wanted = {
        "half_even": [-2, -1, -1, 0, 0, 0, 0, 0, 1, 1, 2],
        "gemmlowp": [-2, -1, -1, -1, 0, 0, 1, 1, 1, 2, 2],  # twice rounded: ¼ → ½ → 1
        "ruy": [-1, -1, 0, 0, 0, 0, 1, 1, 1, 2, 2],  # and −¾ → −1 → 0
        "half_up": [-1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 2],
        "half_away": [-2, -1, -1, -1, 0, 0, 0, 1, 1, 1, 2],
    }
    for rounding, codes in wanted.items():
        assert qk.requantize(acc, 0.25, rounding=rounding).tolist() == codes, rounding
    assert qk.requantize(acc, 0.25).tolist() == wanted["half_even"], "the default"


def test_out_strides_overlap_and_empty() -> None:
    rng = np.random.default_rng(25)
    acc = accumulators(rng, (6, 8))
    wanted = ref.requantize(acc, F32(1e-6), 0, "int8")
    for x in (acc, np.asfortranarray(acc), np.repeat(acc, 2, axis=1)[:, ::2], acc.copy()[::-1][::-1]):
        out = np.empty((6, 8), np.int8)
        assert qk.requantize(x, 1e-6, out=out) is out and np.array_equal(out, wanted)
    strided = np.zeros((12, 16), np.int8)
    qk.requantize(acc, 1e-6, out=strided[::2, ::2])
    assert np.array_equal(strided[::2, ::2], wanted) and not strided[1::2].any() and not strided[:, 1::2].any()
    inside = acc.copy()
    qk.requantize(inside, 1e-6, out=inside.view(np.int8)[:, ::4])
    assert np.array_equal(inside.view(np.int8)[:, ::4], wanted), "out over acc"
    large = accumulators(rng, (300, 300))  # more than a block: out lies where acc is read last
    wanted = ref.requantize(large, F32(1e-6), 0, "int8")
    end = large.view(np.int8).reshape(-1)[-large.size :].reshape(large.shape)
    assert np.array_equal(qk.requantize(large, 1e-6, out=end), wanted), "contiguous, at the end of acc"
    for shape in ((0,), (3, 0)):
        assert qk.requantize(np.zeros(shape, S32), 0.5).shape == shape
    assert qk.requantize(np.array(7, S32), 0.5) == 4
    assert qk.requantize(np.array([1], S32), np.array([0.5]), bias=np.array([2])).tolist() == [2]


def test_a_kernel_is_named_and_bias_wraps() -> None:
    acc = np.array([[2**31 - 1, 5]], S32)
    for pattern in ("*_reference", "*_numpy"):
        with qk.use(pattern):
            assert qk.requantize(acc, 1e-7, bias=1).tolist() == [[-128, 0]], "mod 2³²"
            kernel = qk.explain(qk.requantize, acc, 0.5, dtype="uint16").kernel
            assert kernel is not None and kernel.name == "requantize_s32u16" + pattern[1:]


def test_torch_in_and_out() -> None:
    torch = torch_or_skip()
    acc = torch.arange(-40, 40, dtype=torch.int32).reshape(8, 10)
    scale = torch.rand(10, generator=torch.Generator().manual_seed(2)) + 0.1
    got = qk.requantize(acc, scale, torch.tensor(3), axis=1)
    assert isinstance(got, torch.Tensor) and got.dtype == torch.int8
    assert np.array_equal(got.numpy(), ref.requantize(acc.numpy(), scale.numpy(), 3))
    out = torch.empty(8, 10, dtype=torch.int8)
    assert qk.requantize(acc, scale, 3, axis=1, out=out) is out and torch.equal(out, got)


def test_fma32_is_the_references() -> None:
    rng = np.random.default_rng(26)
    a, b, c = ((rng.normal(size=200_000) * np.exp2(rng.integers(-60, 60, 200_000))).astype(F32) for _ in range(3))
    assert fma32(a, b, c).tobytes() == ref.fma32(a, b, c).tobytes()
    trap = F32(2.0**-12 * (2**20 + 1) / 2**20), F32(2.0**-12 * (2**20 - 1) / 2**20), F32(1 + 2.0**-23)
    assert fma32(*trap) == F32(1 + 2.0**-23), "rounded once (lemma 7)"
