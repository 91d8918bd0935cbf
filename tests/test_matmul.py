"""matmul is a drop-in: NumPy's own suite, NumPy's shapes, any strides, any `out`; wider results where NumPy wraps."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest

import qkernels as qk
from qkernels.backends import reference

try:
    from numpy._core.tests.test_multiarray import TestMatmul as NumPySuite
except ImportError:  # NumPy 1
    from numpy.core.tests.test_multiarray import TestMatmul as NumPySuite


class TestNumPysOwnSuite(NumPySuite):
    matmul = staticmethod(qk.matmul)

    @pytest.mark.xfail(reason="int8 · int8 is int32 here: the one known difference", strict=True)
    def test_result_types(self):
        super().test_result_types()


del NumPySuite

PAIRS = list(itertools.product((np.int8, np.uint8), repeat=2))
RNG = np.random.default_rng(7)


def ints(shape: tuple[int, ...], dtype: type = np.int8) -> np.ndarray:
    limits = np.iinfo(dtype)
    return RNG.integers(limits.min, limits.max + 1, shape).astype(dtype)


def exact(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.matmul(a.astype(np.int64), b.astype(np.int64))


SHAPES = [
    ((3,), (3,)), ((3,), (3, 4)), ((2, 3), (3,)), ((2, 3), (3, 4)), ((5, 2, 3), (3, 4)), ((5, 2, 3), (3,)),
    ((3,), (5, 3, 4)), ((5, 2, 3), (5, 3, 4)), ((5, 1, 2, 3), (6, 3, 4)), ((2, 3), (5, 3, 4)), ((1, 2, 3), (5, 3, 4)),
    ((0, 3), (3, 4)), ((2, 0), (0, 4)), ((2, 3), (3, 0)), ((0, 2, 3), (3, 4)), ((0,), (0,)), ((4, 0, 2, 3), (1, 3, 4)),
]  # fmt: skip


@pytest.mark.parametrize(("a_shape", "b_shape"), SHAPES)
@pytest.mark.parametrize(("a_type", "b_type"), PAIRS)
def test_shapes_are_numpys(a_shape, b_shape, a_type, b_type) -> None:
    a, b = ints(a_shape, a_type), ints(b_shape, b_type)
    result, wanted = qk.matmul(a, b), exact(a, b)
    assert np.shape(result) == wanted.shape
    assert result.dtype == np.int32
    assert np.array_equal(result, wanted)
    assert type(result) is type(wanted) or wanted.ndim == 0
    for _ in range(2):  # the short way in, once Python has decided
        assert np.array_equal(qk.matmul(a, b), wanted)


A_SHAPES = [(3,), (0,), (2, 3), (1, 3), (0, 3), (2, 0), (4, 2, 3), (1, 2, 3), (0, 2, 3), (4, 2, 0), (5, 1, 2, 3)]
B_SHAPES = [(3,), (0,), (3, 4), (3, 1), (3, 0), (0, 4), (4, 3, 2), (1, 3, 4), (0, 3, 4), (4, 0, 2), (5, 4, 3, 2)]


def test_every_pair_of_shapes_is_as_numpy_has_it() -> None:
    """The same shape and the same kind of object (a scalar is none of no dimensions), or both refuse."""
    refused = 0
    for a_shape, b_shape in itertools.product(A_SHAPES, B_SHAPES):
        a, b = ints(a_shape), ints(b_shape, np.uint8)
        try:
            wanted = exact(a, b)
        except ValueError:
            refused += 1
            with pytest.raises(ValueError, match="matmul"):
                qk.matmul(a, b)
            continue
        result = qk.matmul(a, b)
        assert isinstance(result, np.ndarray) == isinstance(wanted, np.ndarray), (a_shape, b_shape)
        assert np.shape(result) == np.shape(wanted) and result.dtype == np.int32, (a_shape, b_shape)
        assert np.array_equal(result, wanted), (a_shape, b_shape)
        if b.ndim == 2:
            assert np.array_equal(qk.matmul(a, qk.pack(b)), wanted), (a_shape, b_shape)
        out = np.full(np.shape(wanted), -1, np.int32)
        assert qk.matmul(a, b, out=out) is out
        assert np.array_equal(out, wanted), (a_shape, b_shape)
    assert 0 < refused < len(A_SHAPES) * len(B_SHAPES)


def test_more_dimensions_than_one_crossing_takes() -> None:
    a, b = ints((1,) * 17 + (2, 3, 5, 7)), ints((1,) * 17 + (2, 3, 7, 4))
    a_zero, b_zero = ints((1,) * 17 + (2, 3, 5)), ints((1,) * 17 + (2, 3, 4))
    assert np.array_equal(qk.matmul(a, b), exact(a, b))
    wanted = exact(a - a_zero[..., None].astype(int), b - b_zero[..., None, :].astype(int))
    assert np.array_equal(qk.matmul(a, b, a_zero_point=a_zero, b_zero_point=b_zero), wanted)


def views(x: np.ndarray) -> dict[str, np.ndarray]:
    wide = np.zeros(tuple(2 * s for s in x.shape), x.dtype)
    wide[tuple(slice(None, None, 2) for _ in x.shape)] = x
    odd = np.zeros(x.size + 1, x.dtype)
    odd[1:] = x.ravel()
    return {
        "contiguous": x,
        "transposed": np.ascontiguousarray(x.T).T,
        "steps": wide[tuple(slice(None, None, 2) for _ in x.shape)],
        "reversed": np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
        "odd address": odd[1:].reshape(x.shape),
        "Fortran": np.asfortranarray(x),
    }


def test_any_strides() -> None:
    a, b = ints((19, 37)), ints((37, 21), np.uint8)
    wanted = exact(a, b)
    for (a_form, x), (b_form, y) in itertools.product(views(a).items(), views(b).items()):
        assert np.array_equal(qk.matmul(x, y), wanted), (a_form, b_form)
        assert np.array_equal(qk.matmul(x, qk.pack(y)), wanted), (a_form, b_form)


def test_zero_strides() -> None:
    row = ints((1, 40))
    a = np.broadcast_to(row, (9, 40))
    b = np.broadcast_to(ints((40, 1)), (40, 17))
    assert np.array_equal(qk.matmul(a, b), exact(a, b))
    batch = np.broadcast_to(ints((9, 40)), (6, 9, 40))
    weights = ints((6, 40, 3))
    assert np.array_equal(qk.matmul(batch, weights), exact(batch, weights))


@pytest.mark.parametrize("form", ["contiguous", "transposed", "steps", "reversed", "Fortran"])
@pytest.mark.parametrize("packed", [False, True])
def test_out(form: str, packed: bool) -> None:
    a, b = ints((7, 33)), ints((33, 18))
    out = views(np.full((7, 18), -1, np.int32))[form]
    weights = qk.pack(b) if packed else b
    for _ in range(2):
        out[...] = -1
        assert qk.matmul(a, weights, out=out) is out
        assert np.array_equal(out, exact(a, b))
    assert qk.matmul(a, weights, out=(out,)) is out


@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_out_of_a_wider_type(dtype: type) -> None:
    a, b = ints((4, 9)), ints((9, 5))
    out = np.empty((4, 5), dtype)
    assert qk.matmul(a, b, out=out) is out
    assert np.array_equal(out, exact(a, b))


@pytest.mark.parametrize("at", [0, 3, 100, 192])
@pytest.mark.parametrize("shared", ["a", "b", "a packed"])
def test_out_may_overlap_the_operands(shared: str, at: int) -> None:
    """Rows of `out` that are written early are operands of later ones."""
    room = np.zeros(4 * 64, np.int8)
    inside, other = room[at : at + 64].reshape(8, 8), ints((8, 8))
    values = ints((8, 8))
    out = room.view(np.int32).reshape(8, 8)
    left = shared != "b"
    wanted = exact(values, other) if left else exact(other, values)
    weights = qk.pack(other) if shared == "a packed" else other
    qk.matmul(values, weights if left else values)  # so that the short way in knows these sizes
    for _ in range(2):
        inside[...] = values
        result = qk.matmul(inside, weights, out=out) if left else qk.matmul(other, inside, out=out)
        assert result is out
        assert np.array_equal(out, wanted)


def test_out_of_a_batch_may_overlap() -> None:
    room = np.zeros(4 * 3 * 64, np.int8)
    a = room[100 : 100 + 192].reshape(3, 8, 8)
    values, b = ints((3, 8, 8)), ints((3, 8, 8))
    out = room.view(np.int32).reshape(3, 8, 8)
    for weights in (b, b[0], b):
        a[...] = values
        assert np.array_equal(qk.matmul(a, weights, out=out), exact(values, weights))


def outs(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Room for a batched result, in every form that a kernel cannot write into at once, or only just."""
    wide = np.zeros(tuple(2 * size for size in shape), np.int32)
    odd = np.frombuffer(bytearray(4 * np.prod(shape, dtype=int) + 1), np.uint8)[1:]
    return {
        "steps": wide[tuple(slice(None, None, 2) for _ in shape)],
        "rows apart": np.zeros((*shape[:-1], shape[-1] + 3), np.int32)[..., 1:-2],
        "batch inside": np.moveaxis(np.zeros((*shape[1:-1], shape[0], shape[-1]), np.int32), -2, 0),
        "reversed batch": np.zeros(shape, np.int32)[::-1],
        "unaligned": odd.view(np.int32).reshape(shape),
        "other byte order": np.zeros(shape, np.dtype(np.int32).newbyteorder()),
    }


@pytest.mark.parametrize("form", list(outs((1, 1, 1))))
def test_out_of_a_batch(form: str) -> None:
    a, b = ints((4, 5, 33)), ints((4, 33, 6))
    out = outs((4, 5, 6))[form]
    for weights in (b, b[0], qk.pack(b[0])):
        out[...] = -1
        assert qk.matmul(a, weights, out=out) is out
        assert np.array_equal(out, exact(a, b if weights is b else b[0])), form


def test_out_that_overlaps_itself_is_written_as_numpy_writes_it() -> None:
    a, b = ints((3, 4)), ints((4, 5))
    room = np.zeros((1, 5), np.int32)
    out = np.lib.stride_tricks.as_strided(room, (3, 5), (0, 4))
    qk.matmul(a, b, out=out)
    assert np.array_equal(room[0], exact(a, b)[2])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("a_type", "b_type"), PAIRS)
def test_zero_points(a_type, b_type, packed: bool) -> None:
    a, b = ints((3, 7, 12), a_type), ints((12, 9), b_type)
    a_limits, b_limits = np.iinfo(a_type), np.iinfo(b_type)
    weights = qk.pack(b) if packed else b
    a_zeros = [
        0,
        a_limits.min,
        a_limits.max,
        np.int8(5),
        ints((7,), a_type),
        ints((3, 7), a_type),
        ints((3, 1), a_type),
    ]
    b_zeros = [0, b_limits.min, b_limits.max, ints((9,), b_type), ints((3, 9), b_type), [1] * 9]
    for za, zb in itertools.product(a_zeros, b_zeros):
        rows = np.broadcast_to(np.asarray(za, np.int64), (3, 7))[..., None]
        columns = np.broadcast_to(np.asarray(zb, np.int64), (3, 9))[..., None, :]
        wanted = np.matmul(a - rows, b - columns)
        assert np.array_equal(qk.matmul(a, weights, a_zero_point=za, b_zero_point=zb), wanted)


def test_zero_points_of_vectors() -> None:
    a, b, zeros = ints((12,)), ints((12, 9)), ints((9,))
    wide = a.astype(np.int64)
    assert np.array_equal(qk.matmul(a, b, a_zero_point=4, b_zero_point=zeros), (wide - 4) @ (b - zeros.astype(int)))
    assert qk.matmul(a, a, a_zero_point=4, b_zero_point=-3) == ((wide - 4) * (wide + 3)).sum()


def test_wrap_is_modulo_two_to_the_32() -> None:
    k = 40_000
    a, b = np.full((2, k), -128, np.int8), np.full((k, 3), 127, np.int8)
    with pytest.raises(ValueError, match="33025"):
        qk.matmul(a, b, a_zero_point=127, b_zero_point=-128)
    wrapped = qk.matmul(a, b, a_zero_point=127, b_zero_point=-128, overflow="wrap")
    total = -255 * 255 * k
    assert int(wrapped[0, 0]) == (total + 2**31) % 2**32 - 2**31
    assert (qk.matmul(a, b, a_zero_point=127, b_zero_point=-128, dtype="int64") == total).all()
    assert (qk.matmul(a, qk.pack(b), a_zero_point=127, b_zero_point=-128, dtype="int64") == total).all()


@pytest.mark.parametrize(("a_type", "b_type"), PAIRS)
@pytest.mark.parametrize("zeros", [(0, 0), (-7, 11)])
def test_wrap_against_pythons_integers(a_type, b_type, zeros) -> None:
    k = 140_000
    a = np.full((2, k), np.iinfo(a_type).max, a_type)
    b = np.full((k, 2), np.iinfo(b_type).max, b_type)
    a[1], b[::3, 1] = ints((k,), a_type), ints((len(b[::3]),), b_type)
    za, zb = (z % 256 if np.iinfo(t).min == 0 else z for z, t in zip(zeros, (a_type, b_type), strict=True))
    wrapped = qk.matmul(a, b, a_zero_point=za, b_zero_point=zb, overflow="wrap")
    packed = qk.matmul(a, qk.pack(b), a_zero_point=za, b_zero_point=zb, overflow="wrap")
    wide = qk.matmul(a, b, a_zero_point=za, b_zero_point=zb, dtype="int64")
    assert wrapped.dtype == np.int32 and wide.dtype == np.int64
    for i, j in itertools.product(range(2), repeat=2):
        total = sum((x - za) * (y - zb) for x, y in zip(a[i].tolist(), b[:, j].tolist(), strict=True))
        assert int(wide[i, j]) == total
        assert int(wrapped[i, j]) == int(packed[i, j]) == (total + 2**31) % 2**32 - 2**31


def test_packed_weights_know_their_own_bound() -> None:
    k = 200_000
    a, b = np.full((1, k), -128, np.int8), np.zeros((k, 2), np.int8)
    b[:1000] = 127
    with pytest.raises(ValueError, match="131071"):
        qk.matmul(a, b)
    assert (qk.matmul(a, qk.pack(b)) == -128 * 127 * 1000).all()
    b[:] = 127
    with pytest.raises(ValueError, match="a column of b reaches"):
        qk.matmul(a, qk.pack(b))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.uint32, np.int64, np.uint64, "int32"])
def test_other_integer_results(dtype) -> None:
    a, b = ints((5, 300)), ints((300, 4), np.uint8)
    result = qk.matmul(a, b, dtype=dtype)
    assert result.dtype == np.dtype(dtype)
    assert np.array_equal(result, exact(a, b).astype(dtype))
    if dtype is np.int8:
        same = ints((300, 4))
        assert np.array_equal(qk.matmul(a, same, dtype=np.int8), np.matmul(a, same))  # NumPy's own, wrapped


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float64, np.int16, np.int32, np.uint64, np.bool_, np.complex64, object]
)
def test_other_operands_are_numpys(dtype) -> None:
    a, b = ints((3, 4)).astype(dtype), ints((4, 5)).astype(dtype)
    result, wanted = qk.matmul(a, b), np.matmul(a, b)
    assert result.dtype == wanted.dtype
    assert np.array_equal(result, wanted)
    mixed = qk.matmul(ints((3, 4)), b)
    assert mixed.dtype == np.matmul(ints((3, 4)), b).dtype


def test_lists_and_float_results_are_numpys() -> None:
    assert np.array_equal(qk.matmul([[1, 2]], [[3], [4]]), [[11]])
    a, b = ints((3, 4)), ints((4, 5))
    assert qk.matmul(a, b, dtype=np.float64).dtype == np.float64


class Labelled(np.ndarray):
    pass


class Louder(np.ndarray):
    __array_priority__ = 20.0


@pytest.mark.parametrize("a_class", [np.ndarray, Labelled, Louder, np.matrix])
@pytest.mark.parametrize("b_class", [np.ndarray, Labelled, Louder, np.matrix])
def test_subclasses_are_kept_as_numpy_keeps_them(a_class, b_class) -> None:
    a, b = ints((3, 4)), ints((4, 3))
    left, right = a.view(a_class), b.view(b_class)
    assert type(qk.matmul(left, right)) is type(np.matmul(left, right))
    assert np.array_equal(qk.matmul(left, right), exact(a, b))
    if np.matrix not in (a_class, b_class):
        x, y = a[0].view(a_class), b[:, 0].view(b_class)
        assert type(qk.matmul(x, y)) is (np.int32 if a_class is b_class is np.ndarray else type(np.matmul(x, y)))
    out = np.zeros((3, 3), np.int32).view(Labelled)
    assert qk.matmul(left, right, out=out) is out


def test_masked_arrays_keep_their_mask() -> None:
    a = np.ma.masked_array(np.ones((2, 2), np.int8), mask=[[0, 1], [0, 0]])
    result, wanted = qk.matmul(a, a), np.matmul(a, a)
    assert np.array_equal(result.mask, wanted.mask)
    assert np.array_equal(result.filled(0), wanted.filled(0))


def test_a_class_with_its_own_products_is_asked() -> None:
    class Own:
        __array_ufunc__ = None

        def __rmatmul__(self, other):
            return "mine"

    class Overrides(np.ndarray):
        def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
            return ufunc.__name__

    assert qk.matmul(ints((3, 4)).view(Overrides), ints((4, 5))) == "matmul"
    with pytest.raises(TypeError):
        qk.matmul(ints((3, 4)), Own())


class TestPacked:
    def test_plain_integers_come_back(self) -> None:
        for shape, dtype in itertools.product(
            [(1, 1), (3, 5), (64, 16), (65, 17), (130, 33), (0, 3), (3, 0)], (np.int8, np.uint8)
        ):
            b = ints(shape, dtype)
            packed = qk.pack(b)
            assert np.array_equal(packed.unpack(), b) and packed.unpack().dtype == dtype
            assert packed.shape == shape and packed.dtype == dtype and packed.layout == "n16k4"
            again = pickle.loads(pickle.dumps(packed))
            assert np.array_equal(again.unpack(), b)
            assert np.array_equal(qk.matmul(ints((2, shape[0])), packed).shape, (2, shape[1]))

    def test_it_does_not_share_memory(self) -> None:
        b = ints((64, 16))
        packed, before = qk.pack(b), b.copy()
        b[...] = 0
        assert np.array_equal(packed.unpack(), before)

    def test_size_and_name(self) -> None:
        packed = qk.pack(ints((100, 20)))
        assert packed.nbytes == 128 * 32 + 32 * 4
        assert repr(packed) == "PackedMatrix(shape=(100, 20), dtype=int8, layout='n16k4')"
        assert qk.pack(packed) is packed

    def test_pickle_holds_no_packed_bytes(self) -> None:
        assert len(pickle.dumps(qk.pack(ints((3, 3))))) < 500


class TestPatchNumpy:
    def test_matmul_and_dot(self) -> None:
        a, b = ints((3, 200)), ints((200, 4))
        numpys = np.matmul, np.dot
        with qk.patch_numpy():
            assert np.array_equal(np.matmul(a, b), exact(a, b))
            assert np.array_equal(np.dot(a, b), exact(a, b))
            assert (a @ b).dtype == np.int8  # the operator cannot be intercepted
            assert np.dot(a.astype(float), b.astype(float)).dtype == np.float64
            assert np.dot(np.int8(3), np.int8(4)) == 12
        assert (np.matmul, np.dot) == numpys

    def test_what_is_handed_on_reaches_numpys_own(self) -> None:
        class Overrides(np.ndarray):
            def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
                return ufunc.__name__

        a, b = ints((3, 4)), ints((4, 5))
        with qk.patch_numpy():
            assert np.array_equal(np.matmul(a, b, dtype=np.float64), exact(a, b))
            assert np.matmul(a.view(Overrides), b) == "matmul"
            assert np.matmul(a, b, casting="unsafe").dtype == np.int8  # an argument that only NumPy has

    def test_numpys_own_come_back(self) -> None:
        numpys = np.matmul, np.dot
        with pytest.raises(ValueError, match="k=4"), qk.patch_numpy(), qk.patch_numpy():
            assert np.matmul is not numpys[0] and np.dot is not numpys[1]
            np.matmul(ints((3, 4)), ints((5, 3)))
        assert (np.matmul, np.dot) == numpys

    @pytest.mark.parametrize(
        ("a_shape", "b_shape"),
        [((4,), (4,)), ((2, 4), (4,)), ((2, 3, 4), (4, 5)), ((2, 3, 4), (6, 4, 5)), ((4,), (6, 4, 5))],
    )
    def test_dot_has_numpys_shapes(self, a_shape, b_shape) -> None:
        a, b = ints(a_shape), ints(b_shape)
        wanted = np.dot(a.astype(np.int64), b.astype(np.int64))
        with qk.patch_numpy():
            assert np.array_equal(np.dot(a, b), wanted)
            if np.ndim(wanted):
                out = np.empty(wanted.shape, np.int32)
                assert np.dot(a, b, out) is out
                assert np.array_equal(out, wanted)


def test_torch_tensors_share_their_memory() -> None:
    torch = pytest.importorskip("torch", reason="torch is an extra")
    a, b = torch.from_numpy(ints((3, 40))), torch.from_numpy(ints((40, 5)))
    result = qk.matmul(a, b)
    assert isinstance(result, torch.Tensor) and result.dtype == torch.int32
    assert np.array_equal(result.numpy(), exact(a.numpy(), b.numpy()))
    assert qk.matmul(a.float(), b.float()).dtype == torch.float32
    scalar = qk.matmul(a[0], b[:, 0])
    assert isinstance(scalar, torch.Tensor) and scalar.shape == ()
    assert int(scalar) == exact(a.numpy()[0], b.numpy()[:, 0])
    out = torch.zeros((3, 5), dtype=torch.int32)
    assert qk.matmul(a, qk.pack(b), out=out) is out and torch.equal(out, result)
    shifted = qk.matmul(a, b, a_zero_point=torch.tensor([1, 2, 3], dtype=torch.int8))
    assert np.array_equal(shifted.numpy(), exact(a.numpy() - np.array([[1], [2], [3]]), b.numpy()))


def test_the_reference_agrees() -> None:
    a, b = ints((5, 77), np.uint8), ints((77, 6))
    assert np.array_equal(qk.matmul(a, b, a_zero_point=9), reference.matmul(a, b, 9, 0))
