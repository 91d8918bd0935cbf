"""Weights of 4 and 2 bits through the public doors: linear, grouped_linear, matmul; what fits, and what is refused."""

from __future__ import annotations

import copy
import importlib
import itertools
import pickle
from typing import Any

import numpy as np
import pytest

import qkernels as qk
from qkernels import dispatch
from qkernels.backends import reference as ref
from qkernels.weight_groups import PackedGroups

F32 = np.float32
RNG = np.random.default_rng(3)


def floats(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(F32)


def expected(x: np.ndarray, weight: qk.QTensor, bias: Any = None) -> np.ndarray:
    """A8, A10, A6 of a weight (n, k) with float scales of groups."""
    found = ref.dynamic_quantize(x)
    zero = np.asarray(weight.zero_point)
    zeros = zero if zero.ndim == 0 else zero.T.astype(np.int64)
    codes, scale = weight.codes().T, np.asarray(weight.scale, F32).T
    y = ref.grouped_matmul(found.codes, codes, scale, weight.group_size, 0, zeros)
    return ref.grouped_linear(y, found.scale, bias)


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int2", "uint2"])
@pytest.mark.parametrize(("group", "stored"), [(16, "float32"), (32, "float16"), (48, "bfloat16"), (128, "float32")])
@pytest.mark.parametrize("m", [1, 3, 9])
def test_grouped_weights_are_exact(dtype: str, group: int, stored: str, m: int) -> None:
    weight = qk.quantize(
        floats(21, 200), dtype=dtype, axis=0, group_size=group, symmetric=dtype[0] == "i", scale_dtype=stored
    )
    x, bias = floats(m, 200), floats(21)
    y = qk.linear(x, weight, bias)
    assert isinstance(qk.pack_linear(weight).parts[0], PackedGroups)
    assert np.array_equal(y, expected(x, weight, bias))
    for _ in range(2):  # the short way in
        assert np.array_equal(qk.linear(x, weight, bias), y)
    out = np.empty_like(y)
    assert qk.linear(x, weight, bias, out=out) is out and np.array_equal(out, y)


@pytest.mark.parametrize("group", [7, 20, 33])
def test_groups_that_kernels_do_not_take_are_exact_too(group: int) -> None:
    weight = qk.quantize(floats(5, 66), dtype="int4", axis=0, group_size=group)
    x = floats(3, 66)
    assert not isinstance(qk.pack_linear(weight).parts[0], PackedGroups)
    assert np.array_equal(qk.linear(x, weight), expected(x, weight))


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("group", "stored"), [(16, "float32"), (32, "float16"), (48, "bfloat16"), (128, "float32")])
@pytest.mark.parametrize("m", [1, 3, 9, 40])
def test_groups_of_bytes_are_exact(dtype: str, symmetric: bool, group: int, stored: str, m: int) -> None:
    weight = qk.quantize(
        floats(37, 200), dtype=dtype, axis=0, group_size=group, symmetric=symmetric, scale_dtype=stored
    )
    part = qk.pack_linear(weight).parts[0]
    assert isinstance(part, PackedGroups) and np.array_equal(part.unpack().T, weight.codes())
    x, bias = floats(m, 200), floats(37)
    y = qk.linear(x, weight, bias)
    assert np.array_equal(y, expected(x, weight, bias)) and np.array_equal(qk.linear(x, weight, bias), y)
    assert qk.explain(qk.linear, x, weight).problem.layout == f"n16k4x1/{group}"


def test_two_level_scales_of_bytes_are_their_products() -> None:
    weight = qk.quantize(floats(21, 200), dtype="int8", axis=0, group_size=32, two_level=True)
    x = floats(5, 200)
    assert np.array_equal(qk.linear(x, weight), expected(x, weight))


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("m", [1, 5, 40])
def test_bytes_without_groups_compute_in_floats(dtype: str, compute: str, symmetric: bool, m: int) -> None:
    weight = qk.quantize(floats(33, 320), dtype=dtype, axis=0, symmetric=symmetric)
    x, bias = floats(m, 320), floats(33)
    packed = qk.pack_linear(weight)
    y = qk.linear(x, packed, compute=compute).astype(np.float64)
    w = weight.dequantize("float64").T
    bound = (2.0**-20 if compute == "float32" else 2.0**-7) * (np.abs(x.astype(np.float64)) @ np.abs(w))
    assert (np.abs(y - x.astype(np.float64) @ w) <= bound).all()
    if compute == "float32":  # bias and activation after it, in float32
        z = qk.linear(x, packed, bias, activation="relu", compute=compute)
        assert np.array_equal(z, np.maximum(y.astype(F32) + bias, 0))
    assert np.shares_memory(packed._floats._data, packed.parts[0]._data)


def test_two_levels_are_integers_all_the_way() -> None:
    weight = qk.quantize(floats(21, 200), dtype="int4", axis=0, group_size=32, two_level=True)
    part = qk.pack_linear(weight).parts[0]
    assert part.scales is None and part.factors is not None
    x = qk.dynamic_quantize(floats(5, 200))
    factors, c = part.group_factors(), np.asarray(weight.scale)[:, 0] / part.group_factors()[0]
    acc = ref.two_level_matmul(x.codes(), weight.codes().T, factors, 32)
    assert np.array_equal(qk.linear(x, weight, out_dtype="int32"), acc)
    assert np.array_equal(qk.linear(x, weight), ref.linear_float(acc, x.scale, c))
    codes = qk.linear(x, weight, out_scale=0.25, activation="relu")
    wanted = ref.linear_integer(acc, x.scale, c, F32(0.25), activation="relu")
    assert np.array_equal(codes.codes(), wanted)


def test_columns_without_groups_follow_the_rule_of_bytes() -> None:
    w4 = qk.quantize(floats(21, 200), dtype="uint4", axis=0, symmetric=False)
    w8 = qk.QTensor(w4.codes(), w4.scale, w4.zero_point, dtype="uint8", axis=0)
    x, bias = floats(5, 200), floats(21)
    assert np.array_equal(qk.linear(x, w4, bias, activation="relu"), qk.linear(x, w8, bias, activation="relu"))
    q = qk.quantize(x, dtype="uint8", symmetric=False)
    for kind in ({"out_dtype": "int32"}, {"out_scale": 0.1, "out_zero_point": 3, "rounding": "gemmlowp"}):
        one, other = qk.linear(q, w4, **kind), qk.linear(q, w8, **kind)
        assert np.array_equal(*(v.codes() if isinstance(v, qk.QTensor) else v for v in (one, other)))


def test_activations_of_four_bits() -> None:
    """A4W4, through linear and through matmul."""
    w = qk.quantize(floats(21, 96), dtype="int4", axis=0)
    x = qk.dynamic_quantize(floats(5, 96), dtype="int4")
    acc = x.codes().astype(np.int64) @ w.codes().T.astype(np.int64)
    assert np.array_equal(qk.linear(x, w, out_dtype="int32"), acc)
    y = ref.linear_float(acc.astype(np.int32), x.scale, w.scale)
    assert np.array_equal(qk.linear(x, w), y)
    assert np.array_equal(qk.matmul(x, w.T), y) and np.array_equal(x @ w.T, y)


def test_copies_and_pickles_keep_every_number() -> None:
    weight = qk.quantize(floats(21, 200), dtype="uint4", axis=0, group_size=64, symmetric=False, scale_dtype="float16")
    packed, x = qk.pack_linear(weight), floats(4, 200)
    y = qk.linear(x, packed)
    for again in (pickle.loads(pickle.dumps(packed)), copy.deepcopy(packed)):
        assert again.scale.dtype == np.float16 and np.array_equal(qk.linear(x, again), y)
    assert packed.nbytes < weight.codes().nbytes // 2 + 4096


def test_explain_knows_the_groups() -> None:
    weight = qk.quantize(floats(32, 128), dtype="int4", axis=0, group_size=32)
    said = qk.explain(qk.linear, floats(2, 128), weight)
    assert said.problem.types == "f32u4f32" and said.problem.layout == "n16k4x2/32"
    assert str(said).startswith("linear f32u4f32 m=2 n=32 k=128, layout n16k4x2/32")


@pytest.mark.parametrize("m", [1, 5, 40])
def test_compute_in_floats_keeps_its_bound(m: int) -> None:
    weight = qk.quantize(floats(33, 320), dtype="uint4", axis=0, group_size=32, symmetric=False)
    x = floats(m, 320)
    w = weight.dequantize("float64").T
    for compute, bound in (("float32", 2.0**-20), ("bfloat16", 2.0**-7)):
        y = qk.linear(x, weight, compute=compute)
        exact = ref.weight_only(x, weight.codes().T, weight.scale.T, weight.zero_point.T.astype(int), 32)
        assert (np.abs(y - exact) <= bound * (np.abs(x.astype(np.float64)) @ np.abs(w))).all()


def _unusual(kind: str, x: np.ndarray, scale: np.ndarray) -> None:
    if kind == "positive":  # what is left out of x cannot cancel
        np.abs(x, out=x)
    elif kind == "subnormal":
        x[1, 3], x[2, 5] = 2.0**-149, -(2.0**-130)
    elif kind == "wide":
        x[3] *= np.exp2(RNG.uniform(-120, 120, x.shape[1])).astype(F32)
    elif kind == "large":
        x[:] = np.copysign(F32(3e36), x)
        scale *= F32(1e-3)
    elif kind == "small":
        x *= F32(1e-30)
    elif kind == "scales":
        np.abs(x, out=x)
        scale[1::2] *= F32(2.0**40)


@pytest.mark.parametrize("kind", ["positive", "subnormal", "wide", "large", "small", "scales", "zeros"])
@pytest.mark.parametrize("dtype", ["int4", "uint8"])
@pytest.mark.parametrize("group", [16, 32, 80, 1024])
def test_unusual_numbers_keep_the_bound_of_float32(kind: str, dtype: str, group: int) -> None:
    codes = RNG.integers(*((1, 8) if kind == "positive" else (0, 8)), (37, 700)).astype(dtype.replace("4", "8"))
    scale = np.exp2(RNG.uniform(-9, -5, (37, -(-700 // group)))).astype(F32)
    x = floats(21, 700) * (kind != "zeros")
    _unusual(kind, x, scale)
    weight = qk.QTensor(codes, scale, dtype=dtype, axis=0, group_size=group, group_axis=1)
    y = qk.linear(x, weight, compute="float32").astype(np.float64)
    w = weight.dequantize("float64").T
    size = np.abs(x.astype(np.float64)) @ np.abs(w)
    assert (np.abs(y - x.astype(np.float64) @ w) <= 2.0**-20 * size + 2.0**-149).all()


def test_small_scales_of_what_is_small_in_its_row_keep_the_bound() -> None:
    codes, x = np.zeros((37, 704), np.int8), np.zeros((21, 704), F32)
    codes[:, 1], x[:, 0], x[:, 1] = 1, 2.0**100, F32(1.2345678) * F32(2.0**-50)
    weight = qk.QTensor(codes, np.full((37, 22), 2.0**-75, F32), dtype="int4", axis=0, group_size=32, group_axis=1)
    y = qk.linear(x, weight, compute="float32").astype(np.float64)
    wanted = x.astype(np.float64) @ weight.dequantize("float64").T
    assert (np.abs(y - wanted) <= 2.0**-20 * wanted).all()


def test_what_is_not_finite_stays_in_its_row() -> None:
    weight = qk.quantize(floats(33, 320), dtype="int4", axis=0, group_size=32)
    x = floats(9, 320)
    plain = qk.linear(x, weight, compute="float32")
    x[2, 7], x[5, 9] = np.inf, np.nan
    y = qk.linear(x, weight, compute="float32")
    assert not np.isfinite(y[2]).any() and np.isnan(y[5]).all()
    others = [0, 1, 3, 4, 6, 7, 8]
    size = np.abs(x[others]) @ np.abs(weight.dequantize().T)
    assert (np.abs(y[others] - plain[others]) <= 2.0**-19 * size).all()


# ---------------------------------------------------------------- experts


@pytest.mark.parametrize("how", [{"group_size": 32}, {"group_size": 32, "two_level": True}, {}])
@pytest.mark.parametrize("dtype", ["int4", "int8"])
def test_each_row_meets_its_expert(how: dict, dtype: str) -> None:
    weight = qk.quantize(floats(4, 21, 96), dtype=dtype, axis=(0, 1), group_axis=-1, **how)
    x, bias, residual = floats(11, 96), floats(4, 21), floats(11, 21)
    ends = [0, 3, 3, 10, 11]
    parts = [
        qk.linear(x[a:b], weight[e], bias[e], activation="relu", residual=residual[a:b])
        for e, (a, b) in enumerate(itertools.pairwise(ends))
        if a < b
    ]
    wanted = np.concatenate(parts)
    for given in (weight, qk.pack_linear(weight)):
        y = qk.grouped_linear(x, given, np.array(ends), bias, activation="relu", residual=residual)
        assert np.array_equal(y, wanted)
    out = np.full((11, 21), 7, F32)
    assert qk.grouped_linear(x, weight, ends, bias, activation="relu", residual=residual, out=out) is out
    assert np.array_equal(out, wanted)
    q = qk.quantize(x, axis=0)
    if "group_size" not in how:
        codes = qk.grouped_linear(q, weight, ends, out_scale=0.5)
        assert isinstance(codes, qk.QTensor) and codes.shape == (11, 21)
    assert qk.grouped_linear(x[:0], weight, [0] * 5).shape == (0, 21)


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Expert by expert is not the way, where there are compiled kernels."""
    module = importlib.import_module("qkernels.ops.grouped_linear")
    if dispatch.native._native is not None:
        monkeypatch.setattr(module, "_one_by_one", lambda *args, **kwargs: pytest.fail("one by one"))


@pytest.mark.parametrize("how", [{"group_size": 32}, {"group_size": 32, "two_level": True}, {}])
@pytest.mark.parametrize("dtype", ["int4", "uint4", "int8", "uint8", "int2"])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("compute", ["int8", "float32", "bfloat16"])
def test_all_experts_in_one_call(how: dict, dtype: str, threads: int, compute: Any, together: None) -> None:
    symmetric = dtype[0] == "i"
    weight = qk.quantize(floats(7, 70, 130), dtype=dtype, axis=(0, 1), group_axis=-1, symmetric=symmetric, **how)
    x, bias, residual = floats(333, 130), floats(7, 70), floats(333, 70)
    ends = [0, 40, 41, 41, 300, 302, 302, 333]
    rest: dict = {"activation": "relu", "compute": compute}
    before = qk.get_num_threads()
    try:
        qk.set_num_threads(threads)
        y = qk.grouped_linear(x, qk.pack_linear(weight), ends, bias, residual=residual, **rest)
        half = qk.grouped_linear(x.astype(np.float16), weight, ends, out_dtype="float32", compute=compute)
    finally:
        qk.set_num_threads(before)
    for e, (a, b) in enumerate(itertools.pairwise(ends)):
        if a < b:
            assert np.array_equal(y[a:b], qk.linear(x[a:b], weight[e], bias[e], residual=residual[a:b], **rest))
            assert np.array_equal(
                half[a:b], qk.linear(x[a:b].astype(np.float16).astype(F32), weight[e], compute=compute)
            )


@pytest.mark.skipif(dispatch.native._native is None, reason="no compiled kernels")
@pytest.mark.parametrize("how", [{"group_size": 32}, {"group_size": 32, "two_level": True}, {}])
@pytest.mark.parametrize("dtype", ["int4", "uint8"])
def test_the_short_way_to_experts(how: dict, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("qkernels.ops.grouped_linear")
    symmetric = dtype[0] == "i"
    weight = qk.quantize(floats(5, 70, 130), dtype=dtype, axis=(0, 1), group_axis=-1, symmetric=symmetric, **how)
    x, bias, ends = floats(33, 130), floats(5, 70), np.array([0, 4, 11, 11, 12, 33])
    rest: dict = {"bias": bias, "activation": "relu6"}
    wanted = module._one_by_one(x, qk.pack_linear(weight), ends.tolist(), **rest)
    assert np.array_equal(qk.grouped_linear(x, weight, ends, **rest), wanted)
    monkeypatch.setattr(module, "_together", lambda *args, **kwargs: pytest.fail("the long way"))
    out = np.full_like(wanted, 7)
    for given in (weight, qk.pack_linear(weight)):
        assert qk.grouped_linear(x, given, ends, out=out, **rest) is out and np.array_equal(out, wanted)
        assert np.array_equal(qk.grouped_linear(x, given, ends.tolist(), **rest), wanted)
    monkeypatch.undo()
    for change in (  # what it does not take goes the long way, or is refused there
        {"x": np.asfortranarray(x)}, {"offsets": ends.astype(np.int32)}, {"x": x.astype(np.float64)},
        {"bias": bias.astype(np.float16)}, {"activation": (0.0, 6.0)},
    ):  # fmt: skip
        given = {"x": x, "weight": weight, "offsets": ends, **rest, **change}
        y = qk.grouped_linear(**given)
        assert y.shape == wanted.shape and np.allclose(y, wanted, atol=0.1)
        assert "bias" in change or np.array_equal(y.astype(F32), wanted)
    both = floats(33, 200)  # the result over what is read
    there = both[:, :130].copy()
    qk.grouped_linear(there, weight, ends, out=there[:, :70], **rest)
    assert np.array_equal(there[:, :70], qk.grouped_linear(both[:, :130], weight, ends, **rest))
    for bad in (ends + 1, ends[:-1], ends[::-1], ends.astype(float)):
        with pytest.raises((TypeError, ValueError), match="grouped_linear: offsets"):
            qk.grouped_linear(x, weight, bad, **rest)


def test_kernels_that_are_not_compiled_take_experts_one_by_one() -> None:
    weight = qk.quantize(floats(3, 20, 64), dtype="int4", axis=(0, 1), group_axis=-1, group_size=32)
    x, ends = floats(6, 64), [0, 2, 2, 6]
    wanted = qk.grouped_linear(x, weight, ends)
    for pattern in ("*_numpy", "*_reference"):
        with qk.use(pattern), dispatch.record() as names:
            assert np.array_equal(qk.grouped_linear(x, weight, ends), wanted)
        assert names and all(name.endswith(pattern[1:]) for name in names)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"offsets": [0, 2, 5]}, ValueError, "offsets has shape (3,), wanted (4,) for 3 experts"),
        ({"offsets": [0, 2, 1, 5]}, ValueError, "offsets are 0 … 5, wanted 0 … 5 (the rows of x), never falling"),
        ({"offsets": [0, 2, 3, 4]}, ValueError, "offsets are 0 … 4, wanted 0 … 5"),
        ({"offsets": [0.0, 2.0, 3.0, 5.0]}, TypeError, "offsets has dtype float64, wanted integers"),
        ({"x": np.zeros((5, 31), F32)}, ValueError, "x has shape (5, 31), wanted (tokens, 32)"),
        ({"weight": qk.quantize(np.ones((4, 32), F32))}, ValueError, "wanted (e, n, k); one weight for all rows"),
        ({"weight": np.ones((3, 4, 32), F32)}, TypeError, "weight is ndarray, wanted a QTensor (e, n, k)"),
        ({"bias": np.zeros(4, F32)}, ValueError, "bias has shape (4,), wanted (3, 4)"),
        ({"residual": np.zeros((5, 3), F32)}, ValueError, "residual has shape (5, 3), wanted (5, 4)"),
        ({"activation": "elu"}, ValueError, "grouped_linear: expert 0: activation"),
    ],
)
def test_grouped_linear_refuses(change: dict, error: type, said: str) -> None:
    given: dict[str, Any] = {
        "x": np.ones((5, 32), F32), "weight": qk.quantize(np.ones((3, 4, 32), F32), dtype="int4", axis=(0, 1)),
        "offsets": [0, 2, 3, 5],
    }  # fmt: skip
    given |= change
    with pytest.raises(error, match="grouped_linear") as caught:
        qk.grouped_linear(given.pop("x"), given.pop("weight"), given.pop("offsets"), **given)
    assert said in str(caught.value)


# ---------------------------------------------------------------- what does not fit


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda c: qk.QTensor(c, np.ones((4, 3), F32), dtype="int4", axis=0, group_size=32), "scale has shape (4, 3)"),
        (lambda c: qk.QTensor(c, np.ones((4, 2), F32), 16, dtype="uint4", axis=0, group_size=32), "uint4"),
        (lambda c: qk.QTensor(c, np.ones((4, 2), F32), dtype="int4", axis=0, group_size=0), "group_size=0"),
        (
            lambda c: qk.QTensor.from_packed(
                np.zeros((4, 31), np.uint8), (4, 64), np.ones(4, F32), dtype="int4", axis=0
            ),
            "data has shape (4, 31), wanted (4, 32)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(build: Any, said: str) -> None:
    with pytest.raises(ValueError, match="QTensor") as caught:
        build(np.zeros((4, 64), np.int8))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"out_scale": 0.5}, "weight has groups along k, which gives floats"),
        ({"bias": np.zeros(4, np.int32)}, "bias is"),
        ({"x": np.zeros((2, 63), F32)}, "x has k=63"),
    ],
)
def test_wishes_that_groups_cannot_grant(wish: dict, said: str) -> None:
    weight = qk.quantize(np.ones((4, 64), F32), dtype="int4", axis=0, group_size=32)
    out = np.full((2, 4), 5, F32)
    given = {"x": np.ones((2, 64), F32)} | wish
    with pytest.raises(ValueError, match="linear") as caught:
        qk.linear(given.pop("x"), weight, out=None if "out_scale" in wish else out, **given)
    assert said in str(caught.value) and (out == 5).all()


@pytest.mark.parametrize(("k", "group"), [(8, 8), (12, 12), (5, 100), (40, 48)])
def test_one_group_of_any_length(k: int, group: int) -> None:
    w = qk.quantize(np.random.default_rng(k).normal(size=(6, k)).astype(F32), dtype="int4", axis=0, group_size=group)
    x = np.random.default_rng(1).normal(size=(3, k)).astype(F32)
    exact = x.astype(np.float64) @ w.dequantize().T.astype(np.float64)
    assert np.allclose(qk.linear(x, w, compute="float32"), exact, atol=1e-5)
    columns = qk.QTensor(w.codes(), np.asarray(w.scale)[:, 0], dtype="int4", axis=0)
    assert np.array_equal(qk.linear(x, w), qk.linear(x, columns)) or np.allclose(qk.linear(x, w), qk.linear(x, columns))
