"""linear as a user sees it: results from scales by the reference's own functions, shapes, out, packing once."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import numpy as np
import pytest
from quantize_cases import ml_dtypes_or_skip, torch_or_skip

import qkernels as qk
from qkernels import dtypes
from qkernels.backends import reference as ref
from qkernels.dtypes import bits_of
from qkernels.ops import linear as module
from qkernels.rounding import ROUNDINGS
from qkernels.weight_groups import LAYOUTS

F32, S32 = np.float32, np.int32
ROWS = ("*", "*_numpy")


def same(x: Any, y: Any) -> bool:
    x, y = np.asarray(x), np.asarray(y)
    bits = f"u{x.itemsize}"
    if x.shape != y.shape or x.dtype != y.dtype:
        return False
    return bool(((x.view(bits) == y.view(bits)) | ((x != x) & (y != y))).all())


def activations(rng: np.random.Generator, lead: tuple[int, ...], k: int, dtype: str, per_row: bool) -> qk.QTensor:
    low, high = dtypes.limits(dtype)
    codes = rng.integers(low, high + 1, (*lead, k)).astype(dtypes.container(dtype))
    if not per_row:
        return qk.QTensor(codes, F32(rng.uniform(0.001, 0.1)), int(rng.integers(low, high + 1)), dtype=dtype)
    scale = np.exp2(rng.uniform(-10, -2, lead)).astype(F32)
    zero = rng.integers(low, high + 1, lead)
    return qk.QTensor(codes, scale, zero, dtype=dtype, axis=tuple(range(len(lead))))


def weights(rng: np.random.Generator, n: int, k: int, dtype: str, axis: Any, symmetric: bool) -> qk.QTensor:
    low, high = dtypes.limits(dtype)
    codes = rng.integers(low, high + 1, (n, k)).astype(dtypes.container(dtype))
    shape = (n,) if axis == 0 else ()
    zero = 0 if symmetric else rng.integers(low, high + 1, shape)
    return qk.QTensor(codes, np.exp2(rng.uniform(-10, -2, shape)).astype(F32), zero, dtype=dtype, axis=axis)


def accumulators(x: qk.QTensor, w: qk.QTensor) -> np.ndarray:
    zero = np.asarray(w.zero_point)
    return ref.matmul(x.codes(), np.ascontiguousarray(w.codes().T), np.asarray(x.zero_point), zero)


# ---------------------------------------------------------------- results


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("rows", ROWS)
def test_codes_are_those_of_the_reference(rounding: str, rows: str) -> None:
    rng = np.random.default_rng(1)
    out_types = itertools.cycle(("int8", "uint8", "int16", "uint4", None))
    acts = itertools.cycle((None, "relu", "relu6", (-0.3, 0.7), (0.0, np.inf)))
    for xt, wt, per_row, axis, bias_of in itertools.product(
        ("int8", "uint8"), ("int8", "uint8", "int4"), (False, True), (None, 0), ("", "int", "float")
    ):
        lead, n, k = ((3, 7), (20,))[per_row], 21, int(rng.integers(1, 90))
        x, w = activations(rng, lead, k, xt, per_row), weights(rng, n, k, wt, axis, bool(rng.integers(2)))
        bias = {"": None, "int": rng.integers(-9999, 9999, n).astype(S32), "float": rng.normal(size=n).astype(F32)}[
            bias_of
        ]
        dtype = next(out_types)
        name, act = dtype or xt, next(acts)
        low, high = dtypes.limits(name)
        sy, zy = F32(rng.choice([0.05, 0.125, 1.0])), int(rng.integers(low, high + 1))
        with qk.use(rows):
            y = qk.linear(
                x, w, bias, activation=act, out_scale=sy, out_zero_point=zy, out_dtype=dtype, rounding=rounding
            )
        wanted = ref.linear_integer(
            accumulators(x, w), x.scale, w.scale, sy, zy, name, rounding, bias, None, act, linear=True
        )
        assert y.dtype == name and y.scale == sy and y.zero_point == zy and y.axis is None
        assert same(y.codes(), wanted), (xt, wt, per_row, axis, bias_of, name, act)


@pytest.mark.parametrize("rows", ROWS)
def test_codes_with_a_residual_are_those_of_the_reference(rows: str) -> None:
    rng = np.random.default_rng(2)
    for kind, act, per_row in itertools.product(("int8", "uint8", "int16"), (None, "relu", (-0.5, 0.5)), (False, True)):
        x, w = activations(rng, (30,), 40, "uint8", per_row), weights(rng, 33, 40, "int8", 0, True)
        low, high = dtypes.limits(kind)
        r = qk.QTensor(rng.integers(low, high + 1, (30, 33)).astype(kind), F32(0.013), int(rng.integers(low, high + 1)))
        with qk.use(rows):
            y = qk.linear(x, w, activation=act, residual=r, out_scale=0.06, out_zero_point=9)
        of_residual = r.codes(), r.scale, r.zero_point
        wanted = ref.linear_integer(
            accumulators(x, w), x.scale, w.scale, F32(0.06), 9, "uint8", residual=of_residual, activation=act
        )
        assert same(y.codes(), wanted), (kind, act, per_row)


@pytest.mark.parametrize("rows", ROWS)
def test_floats_are_those_of_the_reference(rows: str) -> None:
    rng = np.random.default_rng(3)
    acts = itertools.cycle((None, "relu", "relu6", (-0.3, 0.7)))
    for xt, per_row, axis, bias_of, of, dtype in itertools.product(
        ("int8", "float32"), (False, True), (None, 0), ("", "int", "float"), ("", "float", "codes"), (None, "float16")
    ):
        n, k = 19, int(rng.integers(1, 90))
        w = weights(rng, n, k, "int8", axis, xt == "int8")
        x: Any = activations(rng, (22,), k, "int8", per_row) if xt == "int8" else rng.normal(size=(22, k)).astype(F32)
        if xt == "float32" and bias_of == "int":
            continue
        bias = {"": None, "int": rng.integers(-9999, 9999, n), "float": rng.normal(size=n)}[bias_of]
        real = (rng.normal(size=(22, n)) * 3).astype(F32)
        residual = {"": None, "float": real, "codes": qk.quantize(real, axis=0)}[of]
        act = next(acts)
        with qk.use(rows):
            y = qk.linear(x, w, bias, activation=act, residual=residual, out_dtype=dtype)
        q = x if xt == "int8" else qk.dynamic_quantize(x)
        added = None if residual is None else np.asarray(residual)
        wanted = ref.linear_float(accumulators(q, w), q.scale, w.scale, bias, added, act, dtype or "float32")
        assert same(y, wanted), (xt, per_row, axis, bias_of, of, dtype, act)


def test_accumulators() -> None:
    rng = np.random.default_rng(4)
    x, w = activations(rng, (2, 5), 37, "uint8", True), weights(rng, 11, 37, "int8", 0, False)
    assert same(qk.linear(x, w, out_dtype="int32"), accumulators(x, w))
    bias = rng.integers(-999, 999, 11)
    assert same(qk.linear(x, w, bias, out_dtype="int32"), ref.add_bias(accumulators(x, w), bias))
    real = rng.normal(size=11).astype(F32)
    rounded = ref.bias_codes(real, x.scale, w.scale)
    assert same(qk.linear(x, w, real, out_dtype="int32"), ref.add_bias(accumulators(x, w), rounded))


def test_grouped_weights_are_rule_a10() -> None:
    rng = np.random.default_rng(5)
    x, w = rng.normal(size=(9, 70)).astype(F32), rng.normal(size=(13, 70)).astype(F32)
    bias, residual = rng.normal(size=13).astype(F32), rng.normal(size=(9, 13)).astype(F32)
    for dtype, symmetric in (("int4", True), ("uint4", False), ("int8", True)):
        q = qk.quantize(w, dtype=dtype, axis=0, group_size=32, symmetric=symmetric)
        d, codes = qk.dynamic_quantize(x), np.ascontiguousarray(q.codes().T)
        y = ref.grouped_matmul(d.codes(), codes, q.scale.T, 32, 0, np.broadcast_to(q.zero_point, q.scale.shape).T)
        wanted = ref.grouped_linear(y, d.scale, bias, residual, "relu")
        assert same(qk.linear(x, q, bias, residual=residual, activation="relu"), wanted), dtype


def test_float_compute_is_within_rule_a11() -> None:
    rng = np.random.default_rng(6)
    x, w = (
        rng.normal(size=(5, 300)).astype(F32),
        qk.quantize(rng.normal(size=(8, 300)), dtype="int4", axis=0, group_size=50),
    )
    real = np.asarray(w).astype(np.float64)
    wanted, of_sizes = x @ real.T, np.abs(x) @ np.abs(real).T
    for compute, bits in (("float32", 20), ("bfloat16", 7)):
        assert (np.abs(qk.linear(x, w, compute=compute) - wanted) <= 2.0**-bits * of_sizes).all()


# ---------------------------------------------------------------- shapes, types, libraries


def test_shapes() -> None:
    w = qk.quantize(np.random.default_rng(7).normal(size=(6, 10)))
    for lead in ((), (1,), (4,), (2, 3), (2, 0, 3), (0,)):
        x = np.ones((*lead, 10), F32)
        assert qk.linear(x, w).shape == (*lead, 6)
        q = qk.linear(qk.quantize(x), w, out_scale=0.1)
        assert q.shape == (*lead, 6) and q.dtype == "int8"
    assert qk.linear(np.ones((3, 10)), qk.quantize(np.ones((0, 10)))).shape == (3, 0)


def test_no_k_is_the_bias() -> None:
    w, bias = qk.quantize(np.ones((4, 0))), np.array([1.5, -2, 0, 7], F32)
    assert same(qk.linear(np.ones((2, 0), F32), w, bias, activation="relu"), np.array([[1.5, 0, 0, 7]] * 2, F32))
    x = qk.QTensor(np.ones((2, 0), np.int8), 0.5, 3)
    assert same(qk.linear(x, w, np.arange(4), out_dtype="int32"), np.arange(4, dtype=S32) * np.ones((2, 1), S32))
    assert same(qk.linear(x, w, bias, out_scale=0.5, out_zero_point=1).codes()[0], np.array([4, -3, 1, 15], np.int8))


@pytest.mark.parametrize(("dtype", "symmetric", "two_level"), [
    ("int4", True, False), ("uint4", False, False), ("int2", True, True), ("int8", True, False)
])  # fmt: skip
def test_no_k_is_the_bias_with_groups(dtype: str, symmetric: bool, two_level: bool) -> None:
    """A weight without k has no group; its codes, sums and values are empty, and come back from packing."""
    w = qk.quantize(
        np.ones((20, 0)), dtype=dtype, symmetric=symmetric, axis=0, group_size=16, group_axis=1, two_level=two_level
    )
    packed, bias = qk.pack_linear(w), np.arange(20, dtype=F32)
    assert packed.unpack().codes().shape == (20, 0)
    for compute, given in itertools.product(("int8", "float32", "bfloat16"), (w, packed)):
        x = np.ones((3, 0), F32)
        assert same(qk.linear(x, given, bias, compute=compute), np.tile(bias, (3, 1)))
        assert same(qk.linear(x, given, compute=compute), np.zeros((3, 20), F32))


def test_types_of_results() -> None:
    w, bf16 = qk.quantize(np.random.default_rng(8).normal(size=(3, 5))), ml_dtypes_or_skip().bfloat16
    x = np.random.default_rng(9).normal(size=(2, 5))
    y = qk.linear(x.astype(F32), w)
    for dtype in (np.float16, np.float32, np.float64, bf16):
        assert qk.linear(x.astype(dtype), w).dtype == dtype
        assert same(qk.linear(x.astype(F32), w, out_dtype=dtype), y.astype(dtype))
    assert qk.linear(qk.quantize(x, dtype="uint8"), w).dtype == F32
    assert qk.linear(qk.quantize(x, dtype="uint8"), w, out_scale=1.0).dtype == "uint8"
    assert qk.linear(x, w, out_scale=1.0).dtype == "int8"


def test_scales_of_parts_of_the_leading_axes() -> None:
    rng = np.random.default_rng(10)
    x, w = rng.normal(size=(3, 4, 6)).astype(F32), qk.quantize(rng.normal(size=(5, 6)), axis=0)
    for axis in (None, 0, 1, (0, 1)):
        q = qk.quantize(x, axis=axis, symmetric=False)
        whole = np.broadcast_to(q._grain.aligned(np.asarray(q.scale))[..., 0], (3, 4))
        zero = np.broadcast_to(q._grain.aligned(np.broadcast_to(q.zero_point, np.shape(q.scale)))[..., 0], (3, 4))
        acc = ref.matmul(q.codes(), np.ascontiguousarray(w.codes().T), zero)
        assert same(qk.linear(q, w), ref.linear_float(acc, whole, w.scale)), axis


def test_out_is_written_and_returned() -> None:
    rng = np.random.default_rng(11)
    x, w, bias = rng.normal(size=(4, 7)).astype(F32), qk.quantize(rng.normal(size=(5, 7))), np.ones(5, F32)
    y = qk.linear(x, w, bias)
    for _ in range(2):  # the careful road, then the short one
        for out in (np.empty((4, 5), F32), np.empty((4, 10), F32)[:, ::2], np.empty((5, 4), F32).T):
            assert qk.linear(x, w, bias, out=out) is out and same(out, y)
    doubles = np.empty((4, 5))
    assert qk.linear(x, w, bias, out=doubles) is doubles and (doubles == y).all()
    codes, q = np.empty((4, 5), np.uint8), qk.quantize(x)
    assert qk.linear(q, w, out_scale=0.1, out_zero_point=99, out_dtype="uint8", out=codes) is codes
    assert same(codes, qk.linear(q, w, out_scale=0.1, out_zero_point=99, out_dtype="uint8").codes())
    sums = np.empty((4, 5), S32)
    assert qk.linear(q, w, out=sums) is sums and same(sums, qk.linear(q, w, out_dtype="int32"))


def test_out_may_overlap_x_and_residual() -> None:
    rng = np.random.default_rng(12)
    w, x = qk.quantize(rng.normal(size=(7, 7))), rng.normal(size=(7, 7)).astype(F32)
    y, sum_of = qk.linear(x, w), qk.linear(x, w, residual=x)
    for _ in range(2):
        same_memory = x.copy()
        qk.linear(same_memory, w, out=same_memory)
        assert same(same_memory, y)
    both = x.copy()
    assert same(qk.linear(x, w, residual=both, out=both), sum_of)
    with_bias = qk.linear(x, w, x[0])
    for _ in range(2):
        both = x.copy()
        assert same(qk.linear(x, w, both[0], out=both), with_bias)


def test_torch_in_torch_out() -> None:
    torch = torch_or_skip()
    w, x = qk.quantize(torch.randn(6, 9), axis=0), torch.randn(2, 3, 9)
    y = qk.linear(x, w, torch.ones(6), activation="relu")
    assert isinstance(y, torch.Tensor) and same(y.numpy(), qk.linear(x.numpy(), w, np.ones(6, F32), activation="relu"))
    out = torch.empty(2, 3, 6)
    assert qk.linear(x, w, torch.ones(6), activation="relu", out=out) is out and torch.equal(out, y)
    assert torch.equal(qk.linear(x, w, out_dtype="bfloat16"), qk.linear(x, w).bfloat16())
    half = torch.empty(2, 3, 6, dtype=torch.bfloat16)
    assert torch.equal(qk.linear(x.bfloat16(), w, out=half), qk.linear(x.bfloat16(), w))
    q = qk.linear(qk.quantize(x), w, out_scale=0.1)
    assert isinstance(q.codes(), torch.Tensor)
    for odd in (x.transpose(0, 1), x.double(), x.requires_grad_()):  # the short road looks before it takes them
        assert torch.equal(qk.linear(odd, w).float(), qk.linear(odd.detach().contiguous().float(), w))
    with pytest.raises(ValueError, match="bias is of integers"):
        qk.linear(x, w, torch.ones(6, dtype=torch.int32))
    with pytest.raises(ValueError, match="bias has shape"):
        qk.linear(x, w, torch.ones(6, dtype=torch.float64)[:5])


# ---------------------------------------------------------------- packed weights


def test_a_weight_is_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    packed, plain = [], module.dispatch.pack_weights
    monkeypatch.setattr(module.dispatch, "pack_weights", lambda b: packed.append(b.shape) or plain(b))
    w = qk.quantize(np.random.default_rng(13).normal(size=(5, 8)), axis=0)
    first = qk.linear(np.ones((2, 8), F32), w)
    for _ in range(3):
        assert same(qk.linear(np.ones((2, 8), F32), w), first)
    assert same(qk.linear(qk.quantize(np.ones((2, 8))), qk.pack_linear(w), out_dtype="int32"), qk.linear(
        qk.quantize(np.ones((2, 8))), w, out_dtype="int32"))  # fmt: skip
    assert packed == [(8, 5)] and qk.pack_linear(w) is qk.pack_linear(w)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int4", "uint2"])
@pytest.mark.parametrize("shape", [(5, 9), (3, 5, 9)])
def test_packed_weights_come_back(dtype: str, shape: tuple[int, ...]) -> None:
    w = qk.quantize(np.random.default_rng(14).normal(size=shape), dtype=dtype, axis=0, symmetric=False)
    packed = qk.pack_linear(w)
    assert isinstance(packed, qk.PackedMatrix) and packed.shape == shape and packed.dtype == dtype
    assert (
        packed.layout == ("n16k4" if bits_of(dtype) == 8 else LAYOUTS[bits_of(dtype)])
        and packed.nbytes > 0
        and packed.axis == 0
        and packed.group_size is None
    )
    for again in (packed, pickle.loads(pickle.dumps(packed)), copy.deepcopy(packed)):
        back = again.unpack()
        assert same(back.codes(), w.codes()) and same(back.scale, w.scale) and same(back.zero_point, w.zero_point)
        assert same(again.scale, w.scale) and same(again.zero_point, w.zero_point)
    if len(shape) == 2:
        x = np.random.default_rng(15).normal(size=(3, 9)).astype(F32)
        assert same(qk.linear(x, packed), qk.linear(x, w))


def test_the_bound_on_k_knows_the_weights() -> None:
    k = 70_000
    small, large = np.ones((2, k), np.int8), np.full((2, k), -128, np.int8)
    x = qk.QTensor(np.full((1, k), 255, np.uint8), 1.0)
    assert qk.linear(x, qk.QTensor(small, 1.0), out_dtype="int32")[0, 0] == 255 * k
    with pytest.raises(ValueError, match=r"linear: k=70000 could overflow int32: column 0 .* reaches 2284800000"):
        qk.linear(x, qk.QTensor(large, 1.0), out_dtype="int32")
    bias = np.array([0, 2**31 - 255 * k - 1])
    assert qk.linear(x, qk.QTensor(small, 1.0), bias, out_dtype="int32")[0, 1] == 2**31 - 1
    with pytest.raises(ValueError, match="column 1 of the weight with its bias"):
        qk.linear(x, qk.QTensor(small, 1.0), bias + [0, 1], out_dtype="int32")


# ---------------------------------------------------------------- dispatch and the short road


def test_explain() -> None:
    w = qk.quantize(np.ones((5, 8)), axis=0)
    answer = qk.explain(qk.linear, np.ones((2, 8), F32), w)
    assert answer.problem.op == "linear" and answer.problem.types == "f32s8s32" and answer.kernel.op == "linear"
    assert qk.explain(qk.linear, qk.quantize(np.ones((2, 8)), dtype="uint8"), w).problem.types == "u8s8s32"
    assert "empty" in str(qk.explain(qk.linear, np.ones((0, 8), F32), w))
    with qk.use("*_reference"):
        assert qk.explain(qk.linear, np.ones((2, 8), F32), w).kernel.isa == "reference"


def test_the_short_road_gives_the_same_bits_and_stands_aside() -> None:
    rng = np.random.default_rng(16)
    w = qk.quantize(rng.normal(size=(19, 33)), axis=0, symmetric=False, dtype="uint8")
    bias = rng.normal(size=19).astype(F32)
    for m in (1, 2, 33, 34, 65):  # 1, 33 and 65 share a place in the memo
        x = rng.normal(size=(m, 33)).astype(F32)
        with qk.use("*_reference"):
            wanted = [qk.linear(x, w), qk.linear(x, w, bias), qk.linear(x, w, bias, activation="relu6")]
        for _ in range(3):
            made = [qk.linear(x, w), qk.linear(x, w, bias), qk.linear(x, w, bias, activation="relu6")]
            assert all(map(same, made, wanted)), m
        assert same(qk.linear(x[0], w), wanted[0][0])
        for odd in (x.astype(np.float64), x[:, ::-1][:, ::-1], np.asfortranarray(x), x.astype(">f4")):
            assert (qk.linear(odd, w) == wanted[0]).all()
        with pytest.raises(ValueError, match="k=32"):
            qk.linear(x[:, 1:], w)
        with pytest.raises(ValueError, match="bias has shape"):
            qk.linear(x, w, bias[1:])
        with pytest.raises(qk.NoKernelError), qk.use("nothing"):
            qk.linear(x, w)


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_the_short_road_of_codes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    careful, check, total = [], module._check, 0
    monkeypatch.setattr(module, "_check", lambda *args: careful.append(1) or check(*args))
    rng = np.random.default_rng(17)
    low, high = dtypes.limits(kind)
    for m, n, wt, symmetric in itertools.product((1, 5, 40), (1, 19, 64, 70), ("int8", "uint8"), (False, True)):
        w, k = weights(rng, n, 33, wt, 0, symmetric), 33
        ends = np.array([low, high, 0])
        codes = rng.choice(ends, (m, k)) if rng.integers(2) else rng.integers(low, high + 1, (m, k))
        x = qk.QTensor(codes.astype(kind), F32(rng.uniform(0.001, 0.1)), 0 if symmetric else int(rng.choice(ends)))
        biases = None, rng.normal(size=n).astype(F32), rng.integers(-9999, 9999, n).astype(S32), np.zeros(n)
        for bias, act in itertools.product(biases, (None, "relu", "relu6")):
            wishes: dict[str, Any] = {"activation": act}
            if rng.integers(3):
                wishes |= {"out_scale": float(rng.choice([0.05, 0.125, 2.0])), "out_zero_point": int(rng.choice(ends))}
            with qk.use("*_reference"):
                wanted = qk.linear(x, w, bias, **wishes)
            for _ in range(2):
                total += 1
                y = qk.linear(x, w, bias, **wishes)
                assert type(y) is type(wanted)
                if isinstance(y, qk.QTensor):
                    assert (y.dtype, y.zero_point, y.shape) == (wanted.dtype, wanted.zero_point, wanted.shape)
                    assert same(y.scale, wanted.scale) and same(y.codes(), wanted.codes()), (m, n, wt, wishes)
                else:
                    assert same(y, wanted), (m, n, wt, wishes)
    if module._road.enabled:  # a quarter of the calls have a bias of float64
        assert len(careful) - total // 2 < total // 3


def test_the_short_road_of_codes_refuses_what_the_long_one_does() -> None:
    x, w = qk.QTensor(np.full((2, 9), 99, np.uint8), 1e19, 3), qk.quantize(np.ones((4, 9)), axis=0)
    ok = qk.QTensor(x.data, 0.5, 3)
    for _ in range(2):
        qk.linear(ok, w, np.ones(4, F32), out_scale=1.0)  # which it remembers
    for call, words in (
        (lambda: qk.linear(x, w, out_scale=1e-30), "not finite"),
        (lambda: qk.linear(ok, w, np.full(4, 1e12, F32), out_scale=1.0), "no int32"),
        (lambda: qk.linear(ok, w, np.full(4, np.nan, F32), out_scale=1.0), "no int32"),
        (lambda: qk.linear(ok, w, out_scale=0.0), "out_scale is 0.0"),
        (lambda: qk.linear(ok, w, out_scale=float("nan")), "out_scale is nan"),
        (lambda: qk.linear(ok, w, out_scale=1.0, out_zero_point=256), "out_zero_point is 256"),
        (lambda: qk.linear(ok, w, out_zero_point=1), "goes with an out_scale"),
        (lambda: qk.linear(ok, w, np.full(4, 2**31 - 1, S32), out_scale=1.0), "could overflow"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
