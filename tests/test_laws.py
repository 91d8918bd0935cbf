"""Laws that hold for every product of integers, on shapes and values that hypothesis thinks of."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import qkernels as qk

sizes = st.integers(1, 40)
dtypes = st.sampled_from([np.int8, np.uint8])
fixed = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def products(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    m, n, k = draw(sizes), draw(sizes), draw(sizes)
    a_type, b_type = draw(dtypes), draw(dtypes)
    return draw(arrays(a_type, (m, k))), draw(arrays(b_type, (k, n)))


@fixed
@given(products())
def test_transposition(pair) -> None:
    a, b = pair
    assert np.array_equal(qk.matmul(a, b).T, qk.matmul(b.T, a.T))


@fixed
@given(products(), st.integers(0, 40))
def test_any_split_of_k_adds_up(pair, at) -> None:
    a, b = pair
    assert np.array_equal(qk.matmul(a[:, :at], b[:at]) + qk.matmul(a[:, at:], b[at:]), qk.matmul(a, b))


@fixed
@given(products(), st.integers(0, 40), st.integers(0, 40))
def test_any_block_of_the_output_is_its_own_product(pair, i, j) -> None:
    a, b = pair
    whole = qk.matmul(a, b)
    assert np.array_equal(qk.matmul(a[i:], b[:, :j]), whole[i:, :j])
    assert np.array_equal(qk.matmul(a[:i], qk.pack(b[:, j:])), whole[:i, j:])


@fixed
@given(products(), st.randoms(use_true_random=False))
def test_the_order_of_k_does_not_matter(pair, random) -> None:
    a, b = pair
    order = list(range(len(b)))
    random.shuffle(order)
    assert np.array_equal(qk.matmul(a[:, order], b[order]), qk.matmul(a, b))


@fixed
@given(products(), st.randoms(use_true_random=False))
def test_rows_and_columns_keep_to_themselves(pair, random) -> None:
    a, b = pair
    rows, columns = list(range(len(a))), list(range(b.shape[1]))
    random.shuffle(rows)
    random.shuffle(columns)
    assert np.array_equal(qk.matmul(a[rows], b[:, columns]), qk.matmul(a, b)[rows][:, columns])


@fixed
@given(products(), st.data())
def test_zero_points_are_subtracted(pair, data) -> None:
    a, b = pair
    za = data.draw(st.integers(int(np.iinfo(a.dtype).min), int(np.iinfo(a.dtype).max)))
    zb = data.draw(st.integers(int(np.iinfo(b.dtype).min), int(np.iinfo(b.dtype).max)))
    wanted = (a.astype(np.int64) - za) @ (b.astype(np.int64) - zb)
    assert np.array_equal(qk.matmul(a, b, a_zero_point=za, b_zero_point=zb), wanted)
    assert np.array_equal(qk.matmul(a, qk.pack(b), a_zero_point=za, b_zero_point=zb), wanted)


@fixed
@given(products())
def test_flipping_the_sign_bit_is_a_zero_point(pair) -> None:
    a, b = pair
    flipped = (a.view(np.uint8) ^ 0x80).view(np.uint8 if a.dtype == np.int8 else np.int8)
    zero = 128 if a.dtype == np.int8 else -128
    assert np.array_equal(qk.matmul(flipped, b, a_zero_point=zero), qk.matmul(a, b))


@fixed
@given(products(), st.data())
def test_a_zero_point_moves_with_its_operand(pair, data) -> None:
    """(a + s) − (z + s) = a − z, where a + s stays inside of its type."""
    a, b = pair
    limits = np.iinfo(a.dtype)
    low, high = limits.min - int(a.min()), limits.max - int(a.max())
    shift = data.draw(st.integers(low, high))
    zero = data.draw(st.integers(max(limits.min, limits.min - shift), min(limits.max, limits.max - shift)))
    moved = (a.astype(np.int64) + shift).astype(a.dtype)
    assert np.array_equal(qk.matmul(moved, b, a_zero_point=zero + shift), qk.matmul(a, b, a_zero_point=zero))


@fixed
@given(products(), st.data())
def test_products_distribute_over_wrapped_sums(pair, data) -> None:
    """Bytes form a ring, integers modulo 256, of which dtype=a.dtype is the product."""
    a, b = pair[0], pair[1].view(pair[0].dtype)
    c = data.draw(arrays(b.dtype, b.shape))
    whole = qk.matmul(a, b + c, dtype=a.dtype)
    assert np.array_equal(whole, qk.matmul(a, b, dtype=a.dtype) + qk.matmul(a, c, dtype=a.dtype))
    assert np.array_equal(whole, np.matmul(a, b + c))


@fixed
@given(products(), st.data())
def test_products_distribute_over_sums_that_fit(pair, data) -> None:
    a, b = pair
    c = data.draw(arrays(b.dtype, b.shape))
    low, high = b // 2, c // 2
    assert np.array_equal(qk.matmul(a, low + high), qk.matmul(a, low) + qk.matmul(a, high))


@fixed
@given(products())
def test_the_identity(pair) -> None:
    a, _ = pair
    assert np.array_equal(qk.matmul(a, np.eye(a.shape[1], dtype=np.int8)), a)
