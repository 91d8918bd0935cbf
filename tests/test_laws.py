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


@fixed
@given(products(), st.randoms(use_true_random=False))
def test_the_order_of_k_does_not_matter(pair, random) -> None:
    a, b = pair
    order = list(range(len(b)))
    random.shuffle(order)
    assert np.array_equal(qk.matmul(a[:, order], b[order]), qk.matmul(a, b))


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
@given(products())
def test_the_identity(pair) -> None:
    a, _ = pair
    assert np.array_equal(qk.matmul(a, np.eye(a.shape[1], dtype=np.int8)), a)
