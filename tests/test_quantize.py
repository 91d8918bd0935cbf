"""quantize, dequantize, dynamic_quantize, fake_quantize, quantization_error: every row against the reference bit for
bit, every granularity against an expansion done an element at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from quantize_cases import (
    LAYOUTS,
    REALS,
    TYPES,
    as_real,
    brute_spread,
    code_types,
    floats,
    granularities,
    ml_dtypes_or_skip,
    runs,
    scale_shape,
    scales,
    torch_or_skip,
    types_of,
)  # fmt: skip

import qkernels as qk
from qkernels import dispatch, dtypes
from qkernels.backends import reference as ref
from qkernels.kernel import Kernel, Scales

F32 = np.float32
SHAPE = (4, 7, 5)


def same_bits(got: np.ndarray, wanted: np.ndarray) -> bool:
    return got.dtype == wanted.dtype and got.shape == wanted.shape and got.tobytes() == wanted.tobytes()


def compare(kernel: Kernel, got: np.ndarray, wanted: np.ndarray, about: str) -> None:
    if not same_bits(got, wanted):
        at = tuple(int(i) for i in np.argwhere(got.view(np.uint8) != wanted.view(np.uint8))[0])
        pytest.fail(
            f"{kernel.name}: {about}: byte {at}: {got.reshape(-1)[:4]}…, the reference {wanted.reshape(-1)[:4]}…"
        )


# ---------------------------------------------------------------- the rows

SOME = ("one", "each column", "groups of a row, the last short", "wide columns")  # what strips of widened numbers meet


def rows_and_layouts(op: str) -> list[Any]:
    return [
        pytest.param(kernel, layout, id=f"{kernel.name}-{layout}")
        for kernel in dispatch.kernels(op)
        for layout in (LAYOUTS if types_of(kernel)[0] == "f32" else SOME)
    ]


@pytest.mark.parametrize(("kernel", "layout"), rows_and_layouts("quantize"))
def test_rows_quantize(kernel: Kernel, layout: str) -> None:
    ways = runs(kernel, list(LAYOUTS).index(layout))
    at, rng = LAYOUTS[layout], np.random.default_rng(3)
    real, letters = types_of(kernel)
    for name in code_types(letters):
        low, high = dtypes.limits(name)
        for with_zero in (False, True):
            scale = scales(rng, (at.scale_rows, at.scale_columns))
            zero = rng.integers(low, high + 1, scale.shape).astype(np.int32) if with_zero else None
            given, x = as_real(floats(rng, (at.rows, at.inner), at.spread(scale)), real)
            out = np.full(x.shape, 85, dtypes.container(name))
            next(ways).run(given, Scales(scale, zero, at.repeat, at.group), (low, high), out)
            wanted = ref.quantize(x, at.spread(scale), 0 if zero is None else at.spread(zero), name)
            compare(kernel, out, wanted, f"{layout}, {name}, zero points {with_zero}")


@pytest.mark.parametrize(("kernel", "layout"), rows_and_layouts("dequantize"))
def test_rows_dequantize(kernel: Kernel, layout: str) -> None:
    ways = runs(kernel, list(LAYOUTS).index(layout))
    at, rng = LAYOUTS[layout], np.random.default_rng(4)
    real, letters = types_of(kernel)
    name = code_types(letters)[0]
    low, high = dtypes.limits(name)
    for with_zero in (False, True):
        scale = scales(rng, (at.scale_rows, at.scale_columns))
        zero = rng.integers(low, high + 1, scale.shape).astype(np.int32) if with_zero else None
        q = rng.integers(low, high + 1, (at.rows, at.inner)).astype(dtypes.container(name))
        out = np.full(q.shape, 85, REALS[real])
        next(ways).run(q, Scales(scale, zero, at.repeat, at.group), out)
        wanted = ref.dequantize(q, at.spread(scale), 0 if zero is None else at.spread(zero))
        wanted = ref.bfloat16_bits(wanted) if real == "bf16" else ref.cast(wanted, REALS[real])
        compare(kernel, out, wanted, f"{layout}, zero points {with_zero}")


def awkward_rows(rng: np.random.Generator, rows: int, inner: int) -> np.ndarray:
    """Rows of every magnitude; some empty of numbers, tiny, one-sided, with ±∞ and NaN, of ties."""
    with np.errstate(over="ignore"):
        x = (rng.normal(size=(rows, inner)) * np.exp2(rng.integers(-160, 120, (rows, 1)))).astype(F32)
    x[rng.random(x.shape) < 0.02] = np.inf
    x[rng.random(x.shape) < 0.02] = -np.inf
    x[rng.random(x.shape) < 0.02] = np.nan
    for i, row in enumerate(x):
        if i % 7 == 1:
            row[:] = rng.choice(np.array([0.0, -0.0, np.nan, np.inf, -np.inf], F32), inner)
        if i % 7 == 2:
            row[:] = np.abs(row)
        if i % 7 == 3:
            row[:] = -np.abs(row)
        if i % 7 == 4:
            row[:] = rng.integers(-508, 509, inner) / F32(8)
            row[0] = 63.5
        if i % 7 >= 5:  # next to ties of x·f32(Q/amax), where an ulp of the reciprocal shows
            amax, most = F32(rng.uniform(1, 2)), (127, 7)[i % 7 - 5]
            near = (rng.integers(-most, most, inner) + 0.5) * (float(amax) / most)
            row[:] = np.nextafter(near.astype(F32), rng.choice(np.array([-9, 9], F32), inner))
            row[0] = amax
    return x


@pytest.mark.parametrize("kernel", dispatch.kernels("dynamic_quantize"), ids=lambda k: k.name)
def test_rows_dynamic_quantize(kernel: Kernel) -> None:
    ways = runs(kernel)
    rng = np.random.default_rng(5)
    real, letters = types_of(kernel)
    names = [name for name in code_types(letters) if name in ("int8", "uint8", "int4")]
    for name in names:
        for rows, inner, group in [(40, 65, 65), (28, 70, 32), (30, 33, 1), (60, 1, 1), (1, 70000, 70000), (3, 9, 4)]:
            given, x = as_real(awkward_rows(rng, rows, inner), real)
            groups = -(-inner // group)
            for wants_sums in (True, False):
                scale, zero = np.zeros((rows, groups), F32), np.full((rows, groups), -99, np.int32)
                sums = np.full((rows, groups), -99, np.int32) if wants_sums else None
                out = np.full(x.shape, 85, dtypes.container(name))
                next(ways).run(given, group, dtypes.limits(name), scale, zero, sums, out)
                wanted = ref.dynamic_quantize(x, name, "row", group)
                about = f"{name} {rows}×{inner}, groups of {group}"
                compare(kernel, scale, wanted.scale, about)
                compare(kernel, zero, wanted.zero_point.astype(np.int32), about)
                compare(kernel, out, wanted.codes, about)
                assert sums is None or same_bits(sums, wanted.sums), about


def test_every_op_and_type_has_a_row_of_numpy_and_of_the_reference() -> None:
    codes = ("s8", "u8", "s16", "u16")
    wanted = {("quantize", r + c) for c in codes for r in REALS} | {("dequantize", c + r) for c in codes for r in REALS}
    wanted |= {("dynamic_quantize", r + c) for c in codes[:2] for r in REALS}
    wanted |= {("requantize", "s32" + c) for c in codes}
    for isa in ("numpy", "reference", "numba"):
        assert {(k.op, k.types) for k in qk.kernels() if k.isa == isa and k.op in {op for op, _ in wanted}} == wanted


# ---------------------------------------------------------------- the ops: types and granularities


@pytest.mark.parametrize("dtype", TYPES)
def test_given_scales_of_every_granularity(dtype: str) -> None:
    rng = np.random.default_rng(6)
    low, high = dtypes.limits(dtype)
    for how in granularities(3):
        shape = scale_shape(SHAPE, **how)
        scale, zero = scales(rng, shape), rng.integers(low, high + 1, shape)
        axes = how["axis"] or ()
        spread = [brute_spread(v, SHAPE, axes, how.get("group_size"), how.get("group_axis", -1)) for v in (scale, zero)]
        x = floats(rng, SHAPE, spread[0])
        q = qk.quantize(x, scale, zero, dtype=dtype, **how)
        wanted = ref.quantize(x, spread[0], spread[1], dtype)
        assert q.dtype == dtype and q.shape == SHAPE and q.scale.shape == shape, how
        assert same_bits(q.codes(), wanted), (how, "codes")
        assert same_bits(q.dequantize(), ref.dequantize(wanted, *spread)), (how, "values")


def found_range(x: np.ndarray, dtype: str, symmetric: bool) -> tuple[Any, int]:
    """A7 for one range, as the document has it."""
    low, high = ref.limits(dtype)
    finite = x[np.isfinite(x)]
    mn, mx = min(F32(0), finite.min(initial=0)), max(F32(0), finite.max(initial=0))
    if symmetric:
        middle = (high + 1) // 2 if low == 0 else 0
        amax = max(-mn, mx)
        return (F32(1) if amax < 2.0**-119 else F32(amax) / F32(high - middle)), middle
    s = F32(mx - mn) / F32(high - low)
    s = s if s else F32(1)
    return s, low + int(np.rint(np.clip(F32(0) - F32(mn / s), 0, high - low)))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", TYPES)
def test_found_scales_of_every_granularity(dtype: str, symmetric: bool) -> None:
    rng = np.random.default_rng(7)
    x = rng.normal(size=SHAPE).astype(F32) * np.exp2(rng.integers(-4, 5, SHAPE)).astype(F32)
    x[0, :3, :2] = [[np.nan, np.inf], [-np.inf, 1e30], [0, 0]]
    x[1], x[2] = 0, np.abs(x[2])
    x[3, :, 1] = 1e-40
    for how in granularities(3):
        q = qk.quantize(x, dtype=dtype, symmetric=symmetric, **how)
        number = np.arange(math.prod(q.scale.shape)).reshape(q.scale.shape)
        which = brute_spread(number, SHAPE, how["axis"] or (), how.get("group_size"), how.get("group_axis", -1))
        zeros = np.broadcast_to(q.zero_point, q.scale.shape).reshape(-1)
        for i, s in enumerate(q.scale.reshape(-1)):
            with np.errstate(under="ignore"):
                wanted = found_range(x[which == i], dtype, symmetric)
            assert (s, zeros[i]) == wanted, (how, i)
        spread = [q.scale.reshape(-1)[which], zeros[which]]
        assert same_bits(q.codes(), ref.quantize(x, *spread, dtype)), how
        if not symmetric:
            assert (q.dequantize()[x == 0] == 0).all(), "0 is exact"


def test_inputs_of_every_float_type_and_stride() -> None:
    rng = np.random.default_rng(8)
    wide = rng.normal(size=(6, 10))
    for dtype in (np.float64, np.float32, np.float16):
        x = wide.astype(dtype)
        wanted = ref.quantize(x.astype(F32), F32(0.02), 3)
        assert same_bits(qk.quantize(x, 0.02, 3).codes(), wanted)
        assert same_bits(qk.quantize(np.asfortranarray(x), 0.02, 3).codes(), wanted)
        assert same_bits(qk.quantize(x[::-1, ::-1], 0.02, 3).codes(), np.ascontiguousarray(wanted[::-1, ::-1]))
        assert qk.fake_quantize(x, 0.02, 3).dtype == dtype
        assert same_bits(qk.dynamic_quantize(x.T).codes(), ref.dynamic_quantize(x.T).codes)
    assert qk.quantize(wide.tolist(), 0.02, 3).codes().tolist() == wanted.tolist()
    assert qk.quantize(np.array([1e300, -1e300]), 1.0).codes().tolist() == [127, -128], "beyond float32 is ±∞"
    ml_dtypes = ml_dtypes_or_skip()
    x = wide.astype(ml_dtypes.bfloat16)
    assert same_bits(qk.quantize(x, 0.02, 3).codes(), ref.quantize(x.astype(F32), F32(0.02), 3))
    assert qk.fake_quantize(x, 0.02).dtype == ml_dtypes.bfloat16
    assert qk.quantize(x, dtype=ml_dtypes.int4).dtype == "int4"


def test_scalars_vectors_and_empty_arrays() -> None:
    assert qk.quantize(np.float32(1.26), 0.5).codes() == 3
    assert qk.quantize(np.float32(1.26)).dequantize() == pytest.approx(1.26)
    assert qk.dynamic_quantize(np.array([1.0, -2.0], F32)).scale.shape == ()
    for shape in ((0,), (3, 0), (0, 3), (2, 0, 4)):
        x = np.zeros(shape, F32)
        for how in granularities(len(shape)):
            for symmetric in (True, False):
                q = qk.quantize(x, symmetric=symmetric, **how)
                assert q.shape == q.codes().shape == q.dequantize().shape == shape
                assert q.scale.shape == scale_shape(shape, **how) and (q.scale == 1).all()
        assert qk.dynamic_quantize(x).codes().shape == shape
        assert qk.dynamic_quantize(x, group_size=3, dtype="uint8").scale.shape == (*shape[:-1], -(-shape[-1] // 3))
        assert qk.dynamic_quantize(x, per="tensor", dtype="uint8").scale.shape == ()
        assert qk.quantization_error(x, qk.quantize(x)).max == 0


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_scales_are_rounded_before_they_are_used(stored: str) -> None:
    rng = np.random.default_rng(9)
    x = rng.normal(size=(5, 64)).astype(F32)
    for symmetric in (True, False):
        q = qk.quantize(x, axis=0, group_size=16, scale_dtype=stored, symmetric=symmetric, dtype="uint8")
        exact = qk.quantize(x, axis=0, group_size=16, symmetric=symmetric, dtype="uint8")
        kept = q._scale
        cast = (
            kept.astype(np.float16).astype(F32) if stored == "float16" else (kept.view(np.uint32) >> 16 << 16).view(F32)
        )
        assert same_bits(kept, np.ascontiguousarray(cast)) and not np.array_equal(kept, exact.scale)
        assert (np.abs(kept / exact.scale - 1) <= (2.0**-11 if stored == "float16" else 2.0**-8)).all()
        spread = np.repeat(kept, 16, axis=1)
        zero = np.repeat(np.broadcast_to(q.zero_point, kept.shape), 16, axis=1)
        assert same_bits(q.codes(), ref.quantize(x, spread, zero, "uint8"))
        assert q.nbytes == 5 * 64 + 5 * 4 * 2 + (0 if symmetric else 5 * 4)
    tiny = qk.quantize(np.full(4, 1e-9, F32), scale_dtype="float16")
    assert tiny.scale == 1 and tiny.codes().tolist() == [0] * 4, "a scale that underflows counts as an empty range"
    if stored == "bfloat16":
        ml_dtypes = ml_dtypes_or_skip()
        assert qk.quantize(x, scale_dtype=stored).scale.dtype == ml_dtypes.bfloat16


def test_two_level_scales() -> None:
    rng = np.random.default_rng(10)
    x = (rng.normal(size=(6, 70)) * np.exp2(rng.integers(-3, 4, (6, 70)))).astype(F32)
    x[0, :16], x[1] = 0, 0
    for how in ({"axis": 0}, {"axis": None}):
        for symmetric in (True, False):
            q = qk.quantize(x, group_size=16, two_level=True, symmetric=symmetric, dtype="int4", **how)
            ideal = qk.quantize(x, group_size=16, symmetric=symmetric, dtype="int4", **how)
            factors = q._factors
            assert factors is not None and factors.min() >= 1 and factors.max() <= 16
            common = q.scale / factors
            assert (common == common[..., :1]).all(), "one scale for all groups, exactly"
            full = np.broadcast_to(ideal.scale != 1, q.scale.shape)
            assert (q.scale[full] >= ideal.scale[full]).all(), "nothing is clipped"
            assert (q.scale <= np.maximum(ideal.scale * F32(1.01), 1.01 * common)[...] + common).all()
    assert (qk.quantize(x, axis=0, group_size=16, two_level=True).scale[1] == 1).all(), "an empty channel"
    assert qk.quantize(x, axis=0, group_size=16, two_level=True).T[:, :3]._factors.shape == (5, 3)


# ---------------------------------------------------------------- dynamic_quantize, fake_quantize


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int4"])
def test_dynamic_quantize_is_the_rule(dtype: str) -> None:
    rng = np.random.default_rng(11)
    x = awkward_rows(rng, 42, 37).reshape(6, 7, 37)
    for per, group in (("row", None), ("row", 8), ("row", 100), ("tensor", None)):
        q = qk.dynamic_quantize(x, dtype=dtype, per=per, group_size=group)
        wanted = ref.dynamic_quantize(x, dtype, per, group)
        assert same_bits(q.codes(), wanted.codes), (per, group)
        assert same_bits(np.asarray(q.scale), wanted.scale), (per, group)
        zero = np.broadcast_to(q.zero_point, wanted.zero_point.shape)
        assert np.array_equal(zero, wanted.zero_point), (per, group)
        assert q.axis == (None if per == "tensor" else (0, 1)) and q.group_size == group


def test_nan_and_infinity() -> None:
    x = np.array([[1.0, -2.0, np.nan, np.inf, -np.inf]], F32)
    assert qk.quantize(x, 0.01).codes().tolist() == [[100, -128, -128, 127, -128]], "A7: NaN is the lowest code"
    assert qk.quantize(x).scale == F32(2 / 127), "and takes no part in the range"
    assert qk.dynamic_quantize(x).codes().tolist() == [[64, -127, 0, 127, -127]], "A8: NaN is 0"
    assert qk.dynamic_quantize(x, dtype="uint8", per="tensor").codes().tolist() == [[255, 0, 0, 255, 0]]
    assert qk.dynamic_quantize(x[:, :2], check_finite=True).codes().tolist() == [[64, -127]]


def test_fake_quantize_is_both() -> None:
    rng = np.random.default_rng(12)
    x = rng.normal(size=(6, 10)).astype(F32)
    scale, zero = scales(rng, (6, 4)), rng.integers(0, 16, (6, 4))
    got = qk.fake_quantize(x, scale, zero, dtype="uint4", axis=0, group_size=3)
    q = qk.quantize(x, scale, zero, dtype="uint4", axis=0, group_size=3)
    assert same_bits(got, qk.dequantize(q))
    assert same_bits(got, q.dequantize()) and got.dtype == F32


def test_dequantize_to_every_float_type() -> None:
    q = qk.quantize(np.random.default_rng(13).normal(size=(4, 9)).astype(F32), axis=1)
    wanted = ref.dequantize(q.codes(), q.scale[None, :])
    for dtype in ("float32", "float16", "float64", np.float16):
        assert same_bits(q.dequantize(dtype), wanted.astype(dtype))
    ml_dtypes = ml_dtypes_or_skip()
    assert same_bits(q.dequantize("bfloat16"), wanted.astype(ml_dtypes.bfloat16))
    assert same_bits(q.dequantize(ml_dtypes.bfloat16), wanted.astype(ml_dtypes.bfloat16))


# ---------------------------------------------------------------- dispatch, torch, errors of quantization


def test_the_kernel_is_chosen_and_named() -> None:
    x = np.random.default_rng(14).normal(size=(8, 16)).astype(F32)
    for pattern in ("*_reference", "*_numpy"):
        with qk.use(pattern):
            for fn in (qk.quantize, qk.dynamic_quantize, lambda x: qk.fake_quantize(x, 0.1)):
                fn(x)
            answer = qk.explain(qk.quantize, x, axis=0)
            assert answer.kernel is not None and answer.kernel.name == "quantize_f32s8" + pattern[1:]
            assert (answer.problem.m, answer.problem.n, answer.problem.k) == (8, 16, 1)
            kernel = qk.explain(qk.dequantize, qk.quantize(x, dtype="uint4")).kernel
            assert kernel is not None and kernel.name == "dequantize_u8f32" + pattern[1:]
    with qk.use("nothing"), pytest.raises(qk.NoKernelError, match="quantize_f32s8_reference: use"):
        qk.quantize(x, 0.1)
    assert "nothing to compute" in str(qk.explain(qk.quantize, x[:0]))
    assert "nothing to compute" in str(qk.explain(qk.dynamic_quantize, x[:0]))


def test_torch_in_and_out() -> None:
    torch = torch_or_skip()
    x = torch.randn(6, 40, generator=torch.Generator().manual_seed(1))
    plain = qk.quantize(x.numpy(), axis=0)
    q = qk.quantize(x, axis=0)
    assert isinstance(q.codes(), torch.Tensor) and isinstance(q.scale, torch.Tensor)
    assert torch.equal(q.codes(), torch.from_numpy(np.array(plain.codes())))
    assert torch.equal(q.dequantize(), torch.from_numpy(plain.dequantize()))
    half = x.to(torch.bfloat16)
    assert torch.equal(qk.quantize(half, 0.02).codes(), qk.quantize(half.float(), 0.02).codes())
    wanted = qk.dequantize(qk.quantize(half.float(), 0.02)).to(torch.bfloat16)
    assert torch.equal(qk.fake_quantize(half, 0.02), wanted)
    assert torch.equal(q.dequantize("bfloat16"), q.dequantize().to(torch.bfloat16))
    assert qk.dynamic_quantize(x.requires_grad_()).dequantize(torch.float16).dtype == torch.float16
    assert qk.quantize(x, axis=0, scale_dtype=torch.bfloat16).scale.dtype == torch.bfloat16


def test_quantization_error() -> None:
    rng = np.random.default_rng(15)
    x = rng.normal(size=(50, 60)).astype(F32)
    q = qk.quantize(x, 0.01, axis=None)
    found = qk.quantization_error(x, q)
    error = q.dequantize().astype(float) - x
    assert found.max == np.abs(error).max() and found.mean == pytest.approx(np.abs(error).mean())
    assert found.sqnr_db == pytest.approx(10 * math.log10((x.astype(float) ** 2).sum() / (error**2).sum()))
    assert found.clipped == ((x > 1.275) | (x < -1.285)).mean()
    counts, edges = found.histogram
    assert counts.sum() == x.size and edges[0] == -found.max and edges[-1] == found.max and len(edges) == 65
    plain = qk.quantization_error(x, q.dequantize())
    assert plain.sqnr_db == found.sqnr_db and math.isnan(plain.clipped)
    assert qk.quantization_error(x, x).sqnr_db == math.inf
    x[0, 0], x[0, 1] = np.inf, np.nan
    assert math.isfinite(qk.quantization_error(x, q).max) and "dB" in str(found)
    assert qk.quantization_error(x, q).clipped == pytest.approx(found.clipped + 1 / x.size, abs=1 / x.size)
