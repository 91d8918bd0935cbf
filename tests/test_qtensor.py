"""QTensor: its algebra of axes and groups against expansions an element at a time, its products against the rules."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import numpy as np
import pytest
from quantize_cases import TYPES, brute_spread, granularities, ml_dtypes_or_skip, scale_shape, torch_or_skip

import qkernels as qk
from qkernels import dtypes
from qkernels.backends import reference as ref
from qkernels.serialize import from_arrays, to_arrays
from qkernels.subbyte import unpack_bits

F32 = np.float32
RNG = np.random.default_rng(41)
SHAPE = (4, 7, 6)


def tensor(shape: tuple[int, ...], dtype: str = "int8", zeros: bool = True, **how: Any) -> qk.QTensor:
    low, high = dtypes.limits(dtype)
    codes = RNG.integers(low, high + 1, shape)
    parts = scale_shape(shape, **how)
    scale = np.exp2(RNG.uniform(-8, 0, parts)).astype(F32)
    return qk.QTensor(codes, scale, RNG.integers(low, high + 1, parts) if zeros else 0, dtype=dtype, **how)


def values(q: qk.QTensor) -> np.ndarray:
    """What q stands for, from its public attributes, an element at a time (A9)."""
    axes = () if q.axis is None else q.axis if isinstance(q.axis, tuple) else (q.axis,)
    how = axes, q.group_size, q.group_axis
    zero = q.zero_point if isinstance(q.zero_point, int) else brute_spread(q.zero_point, q.shape, *how)
    return ref.dequantize(q.codes(), brute_spread(q.scale, q.shape, *how), zero)


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int2", "uint2"])
@pytest.mark.parametrize("shape", [(3, 8), (5, 7), (1, 1), (0, 4), (3, 0), (2, 3, 5), (3, 300_003)])
def test_packed_codes_come_apart(dtype: str, shape: tuple[int, ...]) -> None:
    codes = RNG.integers(*dtypes.limits(dtype), shape, endpoint=True)
    found = unpack_bits(ref.pack_bits(codes, dtype), shape[-1], dtype)
    assert found.dtype == ("uint8" if dtype[0] == "u" else "int8") and found.flags.c_contiguous
    assert np.array_equal(found, codes)


def same(q: qk.QTensor, wanted: np.ndarray) -> bool:
    return np.array_equal(q.dequantize(), wanted) and np.array_equal(values(q), wanted)


# ---------------------------------------------------------------- what it is


@pytest.mark.parametrize("dtype", TYPES)
def test_codes_packed_and_plain(dtype: str) -> None:
    low, high = dtypes.limits(dtype)
    for shape in [(), (1,), (5,), (4,), (3, 7), (2, 3, 8), (0,), (3, 0), (0, 3)]:
        codes = RNG.integers(low, high + 1, shape).astype(dtypes.container(dtype))
        q = qk.QTensor(codes, 0.5, dtype=dtype)
        assert q.shape == shape and q.ndim == len(shape) and q.dtype == dtype
        assert q.codes().dtype == codes.dtype and np.array_equal(q.codes(), codes)
        if dtypes.bits_of(dtype) < 8:
            line = codes.reshape(shape or (1,))
            assert q.data.dtype == np.uint8 and np.array_equal(q.data, ref.pack_bits(line, dtype))
        else:
            assert np.array_equal(q.data, codes)
        again = qk.QTensor.from_packed(q.data, shape, 0.5, dtype=dtype)
        assert np.array_equal(again.codes(), codes) and np.array_equal(again.data, q.data)
        assert q.nbytes == q.data.nbytes + 4
        assert same(q, ref.dequantize(codes, F32(0.5)))


def test_unused_bits_are_ignored_and_zero() -> None:
    q = qk.QTensor.from_packed(np.array([[0x21, 0xF3]], np.uint8), (1, 3), 1.0, dtype="uint4")
    assert q.codes().tolist() == [[1, 2, 3]] and q.data.tolist() == [[0x21, 0x03]]


def test_the_documented_shapes_of_scales() -> None:
    q = qk.quantize(np.ones((6, 70), F32), axis=0, group_size=32)
    assert q.scale.shape == (6, 3) and (q.axis, q.group_size, q.group_axis) == (0, 32, 1)
    assert qk.quantize(np.ones((6, 70), F32), axis=0).scale.shape == (6,)
    assert qk.quantize(np.ones((70, 6), F32), axis=1, group_axis=0, group_size=32).scale.shape == (3, 6)
    assert qk.quantize(np.ones((2, 6, 70), F32), axis=(0, 1), group_size=32).scale.shape == (2, 6, 3)
    assert qk.quantize(np.ones((2, 6, 70), F32), axis=(-2, 0)).axis == (0, 1)


def test_immutable() -> None:
    codes, scale, zero = np.ones((3, 4), np.int8), np.ones(3, F32), np.zeros(3, np.int8)
    q = qk.QTensor(codes, scale, zero, axis=0)
    codes[:], scale[:], zero[:] = 9, 9, 9
    assert same(q, np.ones((3, 4), F32)), "what was passed in may change"
    for array in (q.data, q.scale, q.zero_point, q.codes(), q[1:].data, q.T.data, q.T.scale):
        assert not array.flags.writeable
    for name in ("dtype", "axis", "scale", "data", "anything"):
        with pytest.raises(AttributeError):
            setattr(q, name, 1)
        with pytest.raises(AttributeError):
            delattr(q, name)
    with pytest.raises(TypeError, match="immutable"):
        np.add(q, 1, out=q)
    read_only = np.frombuffer(b"\1\2\3\4", np.int8)
    assert np.shares_memory(qk.QTensor(read_only, 1.0).data, read_only), "what cannot change is not copied"
    view = codes.view()
    view.flags.writeable = False
    assert not np.shares_memory(qk.QTensor(view, 1.0).data, codes), "a read-only view of what can change is"


@pytest.mark.parametrize("how", granularities(3), ids=str)
def test_algebra(how: dict[str, Any]) -> None:
    for dtype in ("int8", "uint4", "int2"):
        q = tensor(SHAPE, dtype, **how)
        wanted = values(q)
        assert q.scale.shape == scale_shape(SHAPE, **how)
        assert same(q, wanted) and np.array_equal(np.asarray(q), wanted)
        assert same(q.T, wanted.T) and same(q.T.T, wanted) and q.T.shape == SHAPE[::-1]
        assert repr(q) and len(q) == 4
        again = pickle.loads(pickle.dumps(q))
        assert same(again, wanted) and repr(again) == repr(q) and again.data.tobytes() == q.data.tobytes()
        assert not again.data.flags.writeable
        assert copy.deepcopy(q) is q and copy.copy(q) is q
        cuts: list[list[Any]] = [[slice(None), slice(1, 3), 2, -1, slice(None, None, -1), slice(3, 3)] for _ in SHAPE]
        if q.group_size:
            cuts[q.group_axis] = [slice(None), slice(3, None), slice(0, 3), 0, -1, 2, slice(3, 3)]
        for index in itertools.product(*cuts):
            assert same(q[index], wanted[index]), index
            assert not q[index].data.flags.writeable
        assert (
            same(q[..., 0], wanted[..., 0])
            and same(q[1], wanted[1])
            and same(q[1][..., None][...] if 0 else q[1], wanted[1])
        )
    assert [part.shape for part in q] == [SHAPE[1:]] * 4


def test_transposed_codes_are_not_copied() -> None:
    q = tensor((5, 8), axis=0)
    assert np.shares_memory(q.T.data, q.data) and np.shares_memory(q[1:, ::2].data, q.data)


def test_numpy_sees_the_values() -> None:
    q = tensor((4, 5), axis=0)
    wanted = values(q)
    assert np.array_equal(np.add(q, 1), wanted + 1) and np.array_equal(np.ones((4, 5), F32) - q, 1 - wanted)
    assert np.array_equal(np.concatenate([q, q]), np.concatenate([wanted, wanted]))
    assert np.sum(q) == wanted.sum() and np.asarray(q, np.float64).dtype == np.float64
    assert np.shape(q) == (4, 5) and np.ndim(q) == 2 and np.size(q) == 20 and np.size(q, 0) == 4
    assert np.array_equal(np.add.reduce(q), np.add.reduce(wanted))
    with pytest.raises(ValueError, match="copy=False"):
        np.array(q, copy=False)


# ---------------------------------------------------------------- products

TWO = [("int8", "int8"), ("uint8", "int8"), ("int8", "uint8"), ("uint8", "uint8"), ("int4", "uint2"), ("uint8", "int4")]


@pytest.mark.parametrize(("ta", "tb"), TWO)
def test_products_are_rule_a6(ta: str, tb: str) -> None:
    for a_how, b_how in itertools.product(({"axis": None}, {"axis": 0}), ({"axis": None}, {"axis": 1})):
        a, b = tensor((5, 40), ta, **a_how), tensor((40, 6), tb, **b_how)
        acc = ref.matmul(a.codes(), b.codes(), a.zero_point, b.zero_point)
        wanted = ref.linear_float(acc, a.scale, b.scale)
        results = {
            "@": a @ b,
            "np.matmul": np.matmul(a, b),
            "np.dot": np.dot(a, b),
            "qk.matmul": qk.matmul(a, b),
            "einsum": np.einsum("ij,jk->ik", a, b),
            "einsum, implicit": np.einsum("ij,jk", a, b),
            "einsum, turned": np.einsum("ij,kj->ki", a, b.T).T,
        }
        for name, got in results.items():
            assert got.dtype == F32 and got.tobytes() == wanted.tobytes(), (name, a_how, b_how)
        out = np.empty((5, 6), F32)
        assert np.matmul(a, b, out=out) is out and np.array_equal(out, wanted)
        with np.errstate(over="ignore"):
            assert np.array_equal(qk.matmul(a, b, dtype="float16"), wanted.astype(np.float16))


def test_products_of_vectors_and_batches() -> None:
    a, b = tensor((2, 1, 5, 16), axis=(0, 2)), tensor((3, 16, 6), "uint8", axis=(0, 2))
    acc = ref.matmul(a.codes(), b.codes(), a.zero_point[:, None, :], b.zero_point[None])
    wanted = ref.linear_float(acc, a.scale[:, None, :], b.scale[None, :, None, :])
    assert (a @ b).tobytes() == wanted.tobytes() and (a @ b).shape == (2, 3, 5, 6)
    got = np.einsum("abik,bkj->baij", a, b[:1])
    assert np.array_equal(got, wanted[:, :1].swapaxes(0, 1))
    row, column = a[0, 0, 2], b[1, :, 4]
    assert row.ndim == 1 and row @ column == wanted[0, 1, 2, 4] and np.dot(row, column) == row @ column
    assert np.array_equal(row @ b, wanted[0, :, 2]) and np.array_equal(a @ column, wanted[:, 1:2, :, 4])
    dotted = np.dot(a[0, 0], b)
    assert dotted.shape == (5, 3, 6) and np.array_equal(dotted, wanted[0].swapaxes(0, 1))
    batched = np.einsum("bik,bkj->bij", tensor((3, 4, 16), axis=(0, 1)), b)
    assert batched.shape == (3, 4, 6)


def test_a_product_with_plain_integers_and_packed_weights() -> None:
    codes, q = RNG.integers(-128, 128, (5, 16)).astype(np.int8), tensor((16, 6), axis=1)
    wanted = ref.linear_float(ref.matmul(codes, q.codes(), 0, q.zero_point), F32(1), q.scale)
    assert (codes @ q).tobytes() == wanted.tobytes()
    a, plain = tensor((4, 16), "uint8", axis=0), RNG.integers(-128, 128, (16, 6)).astype(np.int8)
    wanted = ref.linear_float(ref.matmul(a.codes(), plain, a.zero_point), a.scale, F32(1))
    assert (a @ plain).tobytes() == wanted.tobytes() and qk.matmul(a, qk.pack(plain)).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("dtype", ["int8", "uint4"])
@pytest.mark.parametrize("k", [64, 70])
def test_grouped_products_are_rule_a10(dtype: str, k: int) -> None:
    a, w = tensor((5, k), "uint8", axis=0), tensor((6, k), dtype, axis=0, group_size=16)
    y = ref.grouped_matmul(a.codes(), w.codes().T, w.scale.T, 16, a.zero_point, w.zero_point.T)
    wanted = ref.grouped_linear(y, a.scale)
    for got in (a @ w.T, np.einsum("ik,jk->ij", a, w), (w @ a.T).T, qk.matmul(a, w.T)):
        assert np.ascontiguousarray(got).tobytes() == wanted.tobytes()
    one = ref.grouped_matmul(a.codes()[:, :16], w.codes().T[:16], w.scale.T[:1], 16, a.zero_point, w.zero_point.T[:1])
    assert np.array_equal(a[:, :16] @ w[:, :16].T, ref.grouped_linear(one, a.scale))


def test_sixteen_bits_and_long_sums_are_exact() -> None:
    a, b = tensor((3, 50), "int16", axis=0), tensor((50, 4), "uint16", axis=1)
    acc = ref.accumulate(a.codes(), b.codes(), a.zero_point.astype(int), b.zero_point.astype(int))
    wanted = acc.astype(F32) * (a.scale[:, None] * b.scale)
    assert (a @ b).tobytes() == wanted.tobytes()
    long = qk.QTensor(np.full((1, 140_000), -128, np.int8), 1.0)
    assert (long @ long.T).tolist() == [[128.0 * 128 * 140_000]], "beyond the bound of int32"


def test_a_float_operand() -> None:
    w = tensor((6, 32), axis=0, group_size=8)
    for dtype in (np.float64, np.float32, np.float16):
        x = RNG.normal(size=(5, 32)).astype(dtype)
        got = x @ w.T
        assert got.dtype == dtype
        close = {np.float64: 1e-12, np.float32: 1e-4, np.float16: 1e-1}[dtype]
        wanted = x.astype(float) @ values(w).T.astype(float)
        assert np.allclose(got, wanted, rtol=0, atol=close * np.abs(values(w)).sum(axis=1).max())
        assert np.array_equal(np.einsum("ij,kj->ik", x, w).shape, got.shape)
    assert np.allclose(np.dot(w, x[0].astype(F32)), values(w) @ x[0].astype(F32), atol=1)
    ml_dtypes = ml_dtypes_or_skip()
    assert (x.astype(ml_dtypes.bfloat16) @ w.T).dtype == ml_dtypes.bfloat16


def test_empty_products() -> None:
    for m, k, n in ((0, 3, 2), (2, 0, 3), (2, 3, 0)):
        a, b = tensor((m, k), axis=0), tensor((k, n), axis=1)
        assert np.array_equal(a @ b, np.zeros((m, n), F32))
        grouped = tensor((k, n), axis=1, group_axis=0, group_size=2)
        assert np.array_equal(a @ grouped, np.zeros((m, n), F32))


def test_einsum_of_anything_else() -> None:
    a, b = tensor((4, 5), zeros=False), tensor((5, 4), zeros=False)
    for pattern, operands in {
        "ij->i": (a,),
        "ij,ji->": (a, b),
        "ij,jk,kl->il": (a, b, a),
        "ii->i": (a[:4, :4],),
    }.items():
        assert np.allclose(np.einsum(pattern, *operands), np.einsum(pattern, *map(values, operands)), atol=1e-3), (
            pattern
        )
    assert np.allclose(np.einsum("...j,jk->...k", a, b), values(a) @ values(b), atol=1e-3)
    assert np.allclose(np.tensordot(a, b, 1), values(a) @ values(b), atol=1e-3)


# ---------------------------------------------------------------- other libraries


def test_dlpack() -> None:
    for dtype in ("int8", "uint4"):
        q = tensor((3, 5), dtype)
        got = np.from_dlpack(q)
        assert np.array_equal(got, q.codes()) and q.__dlpack_device__() == (1, 0)
    torch = torch_or_skip()
    got = torch.from_dlpack(q)
    got += 1
    assert not np.array_equal(got.numpy(), q.codes()), "a consumer that can write has a copy"


def test_torch() -> None:
    torch = torch_or_skip()
    x, w = torch.randn(5, 32), torch.randn(6, 32)
    q = qk.quantize(w, axis=0)
    wanted = qk.quantize(w.numpy(), axis=0)
    assert isinstance(x @ q.T, torch.Tensor) and torch.allclose(x @ q.T, x @ q.dequantize().T, atol=1e-4)
    exact = qk.dynamic_quantize(x) @ q.T
    assert isinstance(exact, torch.Tensor)
    assert np.array_equal(exact.numpy(), qk.dynamic_quantize(x.numpy()) @ wanted.T)
    again = pickle.loads(pickle.dumps(q))
    assert torch.equal(again.codes(), q.codes())
    q.codes().zero_()
    assert np.array_equal(q.codes().numpy(), wanted.codes()), "tensors are copies"
    four = qk.QTensor(torch.tensor([[1, -2, 3]], dtype=torch.int8), torch.tensor([0.5]), axis=0, dtype="int4")
    assert four.data.dtype == torch.uint8 and four.dequantize().tolist() == [[0.5, -1.0, 1.5]]


def state() -> dict[str, Any]:
    two_level = qk.quantize(RNG.normal(size=(6, 64)), axis=0, group_size=16, two_level=True, dtype="int4")
    half = qk.quantize(RNG.normal(size=(6, 9)), axis=1, scale_dtype="float16", symmetric=False)
    brain = qk.QTensor._make(*pickle_parts(qk.quantize(RNG.normal(size=(4, 6)), axis=0, scale_dtype="bfloat16")))
    some = {f"layer.{i}.{dtype}": tensor((3, 7), dtype, axis=0, group_size=4) for i, dtype in enumerate(TYPES)}
    return {
        **some,
        "scalar": tensor((2, 3), zeros=False),
        "norm": np.arange(3.0),
        "two": two_level,
        "half": half,
        "brain": brain,
    }


def pickle_parts(q: qk.QTensor) -> tuple:
    return q._data, q._scale, q._zero, q.dtype, q._grain, q._scale_dtype, q._factors, q._library


def check_state(got: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert got.keys() == wanted.keys()
    for name, q in wanted.items():
        if isinstance(q, qk.QTensor):
            assert repr(got[name]) == repr(q) and np.array_equal(got[name].data, q.data), name
            assert np.array_equal(got[name]._scale, q._scale) and np.array_equal(got[name].zero_point, q.zero_point), (
                name
            )
            assert (got[name]._factors is None) == (q._factors is None) and np.array_equal(
                got[name]._factors, q._factors
            )
        else:
            assert np.array_equal(got[name], q)


def test_serialized() -> None:
    wanted = state()
    check_state(from_arrays(*to_arrays(wanted)), wanted)
    with pytest.raises(ValueError, match=r"'a\.data' is the name of two arrays"):
        to_arrays({"a": tensor((2, 2)), "a.data": np.zeros(1)})
    arrays, metadata = to_arrays({"a": tensor((2, 2))})
    with pytest.raises(ValueError, match=r"'a' lacks a\.data"):
        from_arrays({"a.scale": arrays["a.scale"]}, metadata)
    with pytest.raises(ValueError, match="scale is nan"):
        from_arrays({**arrays, "a.scale": np.array(np.nan, F32)}, metadata)
    with pytest.raises(ValueError, match="format 2, wanted 1"):
        from_arrays(arrays, {"qkernels:a": '{"format": 2}'})


def test_safetensors(tmp_path: Any) -> None:
    safetensors = pytest.importorskip("safetensors", reason="safetensors is an extra (test)")
    from safetensors.numpy import save_file

    wanted = state()
    arrays, metadata = to_arrays(wanted)
    save_file(arrays, tmp_path / "x.safetensors", metadata)
    with safetensors.safe_open(tmp_path / "x.safetensors", "numpy") as file:
        got = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        check_state(from_arrays(got, file.metadata()), wanted)
