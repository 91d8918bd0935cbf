"""add, mul, lookup, concat, clamp, pools, softmax: every row against the reference bit for bit; the ops against plain
expansions; bad input. ONNX Runtime's word on each is in test_oracles_network.py."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from quantize_cases import runs, torch_or_skip

import qkernels as qk
from qkernels import dispatch
from qkernels.backends import native_pools, numpy_network
from qkernels.backends import reference_network as ref
from qkernels.kernel import Average, Kernel, Product, Sum, Window
from qkernels.ops.softmax import exponentials

F32 = np.float32
OPS = ("add", "mul", "lookup", "max_pool", "avg_pool", "channel_sum", "softmax")
DTYPES = {"s8": np.dtype(np.int8), "u8": np.dtype(np.uint8)}
WINDOWS = [
    Window((1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1)),
    Window((2, 3), (2, 1), ((1, 0), (2, 1)), (1, 1)),
    Window((3, 2), (1, 3), ((2, 2), (0, 1)), (2, 1)),
    Window((4, 4), (3, 3), ((0, 3), (3, 0)), (1, 1)),
]


def kernels_of(*ops: str) -> Any:
    return pytest.mark.parametrize(
        "kernel", [k for op in ops for k in dispatch.kernels(op) if k.isa != "reference"], ids=lambda k: k.name
    )


def codes(rng: np.random.Generator, kernel: Kernel, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(0, 256, shape, np.uint8).view(DTYPES[kernel.types[:2]])


def same(kernel: Kernel, got: np.ndarray, wanted: np.ndarray, about: object) -> None:
    if not np.array_equal(got, wanted):
        at = tuple(int(i) for i in np.argwhere(got != wanted)[0])
        pytest.fail(f"{kernel.name}: out{at} = {got[at]}, the reference has {wanted[at]}; {about}")


def sums_at_ties(rng: np.random.Generator) -> Sum:
    """Ratios that put some sums on a tie: halves, and next to them; some of no use at all."""
    kind = rng.integers(0, 4)
    if kind == 0:
        return Sum(F32(0.5), F32(0.25), F32(rng.integers(-300, 300) / 4))
    if kind == 1:
        return Sum(np.nextafter(F32(0.5), F32(rng.integers(0, 2))), F32(1.5), F32(rng.integers(-99, 99) + 0.5))
    if kind == 2:
        return Sum(F32(2.0 ** rng.uniform(-140, 100)), F32(2.0 ** rng.uniform(-140, 100)), F32(rng.normal() * 50))
    return Sum(F32(rng.uniform(0.01, 3)), F32(rng.uniform(0.01, 3)), F32(rng.normal() * 100))


@kernels_of("add", "mul")
def test_pairs(kernel: Kernel) -> None:
    rng, ways = np.random.default_rng(71), runs(kernel)
    for i in range(60):
        n = int(rng.choice([1, 3, 31, 64, 65, 200]))
        a, b = codes(rng, kernel, (n,)), codes(rng, kernel, (n,))
        low = int(np.iinfo(a.dtype).min)
        za, zb, zy = (int(v) for v in rng.integers(low, low + 256, 3))
        m = F32(rng.choice([0.5, 2.0**-8, 2.0**-120, 3e38, 1e-3, 0.0042]))
        by: Any = sums_at_ties(rng) if kernel.op == "add" else Product(m, za, zb, zy)
        got, wanted = np.full(n, 85, a.dtype), np.empty_like(a)
        next(ways).run(a, b, by, got)
        getattr(ref, kernel.op)(a, b, by, wanted)
        same(kernel, got, wanted, (i, by))


@kernels_of("lookup")
def test_tables(kernel: Kernel) -> None:
    rng, ways = np.random.default_rng(72), runs(kernel)
    for n in (1, 255, 1000, 40_000):
        x, table = rng.integers(0, 256, n, np.uint8), rng.integers(0, 256, 256, np.uint8)
        out = np.empty_like(x)
        next(ways).run(x, table, out)
        same(kernel, out, table[x], n)


@kernels_of("max_pool", "avg_pool")
def test_pools(kernel: Kernel) -> None:
    rng, ways = np.random.default_rng(73), runs(kernel)
    for i, window in enumerate(WINDOWS * 4):
        x = codes(rng, kernel, (2, 7, 6, 3))
        x = x if i % 2 else np.ascontiguousarray(x.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
        size = [
            (x.shape[1 + d] + sum(window.pads[d]) - window.dilation[d] * (window.kernel[d] - 1) - 1)
            // window.stride[d] + 1 for d in (0, 1)
        ]  # fmt: skip
        low = int(np.iinfo(x.dtype).min)
        scales = (0.25, 0.5) if i % 3 else (0.1, 0.07)
        by = Average(F32(scales[0]), low + 99, F32(scales[1]), low + int(rng.integers(0, 256)), i % 4 < 2)
        got = np.full((2, *size, 3), 85, x.dtype)
        wanted = np.empty_like(got)
        extra = () if kernel.op == "max_pool" else (by,)
        next(ways).run(x, window, *extra, got)
        getattr(ref, kernel.op)(x, window, *extra, wanted)
        same(kernel, got, wanted, (window, by))


@kernels_of("max_pool", "avg_pool")
def test_pools_of_many_channels_and_columns(kernel: Kernel) -> None:
    """More than a strip of results side by side, in either layout."""
    rng, ways = np.random.default_rng(75), runs(kernel)
    shapes = (1, 3, 4, 300), (1, 4, 530, 2)
    windows = Window((3, 2), (2, 1), ((1, 1), (0, 1)), (1, 1)), Window((2, 3), (1, 2), ((0, 0), (2, 1)), (1, 1))
    for (n, h, w, c), window in itertools.product(shapes, windows):
        for nchw in (False, True):
            x = codes(rng, kernel, (n, c, h, w)).transpose(0, 2, 3, 1)
            x = x if nchw else np.ascontiguousarray(x)
            size = [(x.shape[1 + d] + sum(window.pads[d]) - window.kernel[d]) // window.stride[d] + 1 for d in (0, 1)]
            low = int(np.iinfo(x.dtype).min)
            extra = () if kernel.op == "max_pool" else (Average(F32(0.07), low + 3, F32(0.05), low + 40, nchw),)
            got = np.full((n, c, *size), 85, x.dtype).transpose(0, 2, 3, 1)
            wanted = np.empty_like(got)
            next(ways).run(x, window, *extra, got)
            numpy_network._RUN[kernel.op](x, window, *extra, wanted)  # the reference takes a minute
            same(kernel, got, wanted, (window, nchw))


@kernels_of("channel_sum")
def test_channel_sums(kernel: Kernel) -> None:
    rng, ways = np.random.default_rng(76), runs(kernel)
    for shape in ((1, 1, 1, 1), (2, 3, 5, 7), (1, 40, 40, 2), (3, 2, 2, 600), (2, 9, 1, 3)):
        x = codes(rng, kernel, shape)
        whole = codes(rng, kernel, (shape[0], shape[3], shape[1], shape[2] + 2)).transpose(0, 2, 3, 1)
        turned = np.ascontiguousarray(x.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
        for image in (x, turned, whole[:, :, 1:-1], x[::-1, ::-1]):
            out = np.full((shape[0], 1, 1, shape[3]), 85, np.int32)
            wanted = np.empty_like(out)
            next(ways).run(image, out)
            ref.channel_sum(image, wanted)
            same(kernel, out, wanted, (shape, image.strides))


@kernels_of("softmax")
def test_softmax(kernel: Kernel) -> None:
    rng, ways = np.random.default_rng(74), runs(kernel)
    for i in range(60):
        n = int(rng.choice([1, 2, 10, 65, 300 if i % 9 == 0 else 5]))
        x = codes(rng, kernel, (int(rng.integers(1, 11)), n))
        scale, factor = F32(2.0 ** rng.uniform(-8, 1)), F32(rng.choice([256, 255, 128, 1, 40000]))
        zero = int(rng.integers(np.iinfo(x.dtype).min, np.iinfo(x.dtype).max + 1))
        got, wanted = np.full(x.shape, 85, x.dtype), np.empty_like(x)
        table = exponentials(scale, n)
        next(ways).run(x, table, factor, zero, got)
        ref.softmax(x, table, factor, zero, wanted)
        same(kernel, got, wanted, (i, scale, factor, zero))


def test_every_op_has_a_row_of_everybody() -> None:
    for op in OPS:
        types = {k.types for k in dispatch.kernels(op)}
        compiled = {k.isa for k in dispatch.kernels("max_pool") if k.name in native_pools.INDEX}
        for isa in ("numpy", "numba", "reference", *compiled):
            assert {k.types for k in dispatch.kernels(op) if k.isa == isa} == types


# ---------------------------------------------------------------- the ops


def tensor(
    shape: tuple[int, ...], scale: float = 0.05, zero: int = 3, dtype: str = "int8", seed: int = 0
) -> qk.QTensor:
    low = -128 if dtype == "int8" else 0
    return qk.QTensor(np.random.default_rng(seed).integers(low, low + 256, shape).astype(dtype), scale, zero)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_results_are_near_the_real_ones(dtype: str) -> None:
    """Against float64 of the dequantized values: within half a step, and a little for float32."""
    a, b = tensor((4, 5), 0.02, 7, dtype), tensor((4, 5), 0.03, 90, dtype, 1)
    x, y = a.dequantize("float64"), b.dequantize("float64")
    zero = 0 if dtype == "int8" else 128
    for got, wanted in (
        (qk.add(a, b, 0.1, zero), x + y),
        (qk.mul(a, b, 0.2, zero), x * y),
        (qk.lookup(a, "tanh", 1 / 64, zero), np.tanh(x)),
        (qk.lookup(a, lambda v: v * v, 0.1), x * x),
        (qk.concat([a, b], 1, 0.05, zero), np.concatenate([x, y], 1)),
        (qk.softmax(a), np.exp(x) / np.exp(x).sum(1, keepdims=True)),
    ):
        low, high = (
            got.scale * (np.array(np.iinfo(dtype).min), np.array(np.iinfo(dtype).max)) - got.scale * got.zero_point
        )
        assert np.abs(got.dequantize("float64") - np.clip(wanted, low, high)).max() <= got.scale * 0.501
        assert got.dtype == dtype and got.shape == wanted.shape


def test_clamp_and_tables() -> None:
    q = tensor((300,))
    assert np.array_equal(qk.clamp(q, -1, 1).codes(), np.clip(q.codes(), 3 - 20, 3 + 20))
    assert np.array_equal(qk.clamp(q, 0, np.inf).codes(), np.maximum(q.codes(), 3))
    assert np.array_equal(qk.lookup(q, "relu").codes(), np.maximum(q.codes(), 3))
    table = np.random.default_rng(0).integers(-128, 128, 256)
    assert np.array_equal(qk.lookup(q, table).codes(), table[q.codes().astype(int) + 128])


def test_layouts_agree() -> None:
    x = tensor((2, 9, 8, 5))
    turned = qk.QTensor(np.ascontiguousarray(x.codes().transpose(0, 3, 1, 2)), x.scale, x.zero_point)
    for nhwc, nchw in (
        (qk.max_pool2d(x, 3, layout="NHWC", padding=1), qk.max_pool2d(turned, 3, layout="NCHW", padding=1)),
        (qk.avg_pool2d(x, (2, 3), layout="NHWC", stride=1), qk.avg_pool2d(turned, (2, 3), layout="NCHW", stride=1)),
        (qk.global_avg_pool(x, 0.01, layout="NHWC"), qk.global_avg_pool(turned, 0.01, layout="NCHW")),
    ):
        assert np.array_equal(nhwc.codes().transpose(0, 3, 1, 2), nchw.codes())
        assert nchw.data.flags.c_contiguous and nhwc.scale == nchw.scale


def test_empty_and_broadcast() -> None:
    q = tensor((0, 3))
    assert qk.add(q, q, 1.0).shape == qk.mul(q, q, 1.0).shape == qk.lookup(q, "tanh").shape == (0, 3)
    assert qk.softmax(q).shape == (0, 3) and qk.softmax(tensor((3, 0))).shape == (3, 0)
    assert qk.max_pool2d(tensor((0, 4, 4, 2)), 2, layout="NHWC").shape == (0, 2, 2, 2)
    assert qk.max_pool2d(tensor((1, 1, 1, 2)), 2, layout="NHWC").shape == (1, 0, 0, 2)
    a, b = tensor((4, 1, 3)), tensor((5, 3), seed=1)
    whole = [qk.QTensor(np.broadcast_to(q.codes(), (4, 5, 3)).copy(), q.scale, q.zero_point) for q in (a, b)]
    assert np.array_equal(qk.add(a, b, 0.1).codes(), qk.add(*whole, 0.1).codes())


def test_torch_in_torch_out() -> None:
    torch = torch_or_skip()
    q = qk.QTensor(torch.arange(10, dtype=torch.int8), 0.1)
    assert isinstance(qk.add(q, q, 0.2).codes(), torch.Tensor)


Q, U, IMAGE = tensor((4, 4)), tensor((4, 4), dtype="uint8"), tensor((1, 4, 4, 2))
BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda: qk.add(np.zeros(3, np.int8), Q, 0.1), TypeError, r"add: a is ndarray, wanted a QTensor"),
    (lambda: qk.add(Q, U, 0.1), ValueError, r"add: b has dtype uint8, a has int8"),
    (lambda: qk.mul(Q, tensor((3,)), 0.1), ValueError, r"mul: b has shape \(3,\), a has \(4, 4\)"),
    (lambda: qk.mul(qk.quantize(np.ones((4, 4), F32), axis=0), Q, 0.1), ValueError, r"mul: a has axis=0, wanted one"),
    (lambda: qk.add(Q, Q, 0.0), ValueError, r"add: scale is 0.0"),
    (lambda: qk.add(Q, Q, None), ValueError, r"add: out_scale is None"),
    (lambda: qk.add(Q, Q, 1e-44), ValueError, r"add: out_scale=.* is too small"),
    (lambda: qk.mul(Q, Q, 0.1, 200), ValueError, r"mul: zero_point is 200, outside of int8"),
    (lambda: qk.add(qk.QTensor(np.zeros(3, np.int16), 1.0), Q, 1.0), ValueError, r"add: a has dtype int16"),
    (lambda: qk.lookup(Q, "tan"), ValueError, r"lookup: function='tan', wanted one of relu"),
    (lambda: qk.lookup(Q, 3), TypeError, r"lookup: function is int"),
    (lambda: qk.lookup(Q, np.zeros(7, int)), ValueError, r"wanted 256 codes of int8"),
    (lambda: qk.lookup(Q, np.full(256, 300)), ValueError, r"wanted 256 codes of int8"),
    (lambda: qk.lookup(Q, lambda x: x[:3]), TypeError, r"lookup: function made float32 \(3,\)"),
    (lambda: qk.clamp(Q, 2, 1), ValueError, r"clamp: low=2, high=1"),
    (lambda: qk.clamp(Q, np.nan, 1), ValueError, r"clamp: low=nan"),
    (lambda: qk.concat([]), ValueError, r"concat: tensors is empty"),
    (lambda: qk.concat(Q), TypeError, r"concat: tensors is QTensor"),
    (lambda: qk.concat([Q, U]), ValueError, r"concat: tensors\[1\] has dtype uint8"),
    (lambda: qk.concat([Q, tensor((4, 3))]), ValueError, r"concat: tensors\[1\] has shape \(4, 3\)"),
    (lambda: qk.concat([Q], 2), ValueError, r"concat: axis=2 does not fit shape \(4, 4\)"),
    (lambda: qk.concat([Q], out_zero_point=1), ValueError, r"concat: out_zero_point=1 without an out_scale"),
    (lambda: qk.max_pool2d(IMAGE, 2, layout="HWC"), ValueError, r"max_pool2d: layout='HWC', wanted one of NHWC, NCHW"),
    (lambda: qk.max_pool2d(Q, 2, layout="NHWC"), ValueError, r"max_pool2d: x has shape \(4, 4\), wanted 4 axes"),
    (lambda: qk.max_pool2d(IMAGE, 0, layout="NHWC"), ValueError, r"max_pool2d: kernel=0, wanted at least 1"),
    (lambda: qk.max_pool2d(IMAGE, 2.0, layout="NHWC"), TypeError, r"max_pool2d: kernel=2.0, wanted an int or two"),
    (lambda: qk.avg_pool2d(IMAGE, 2, layout="NHWC", padding=2), ValueError, r"avg_pool2d: padding=2, wanted less than"),
    (lambda: qk.avg_pool2d(IMAGE, 2, layout="NHWC", padding="same"), ValueError, r"avg_pool2d: padding='same'"),
    (lambda: qk.global_avg_pool(tensor((1, 0, 4, 2)), layout="NHWC"), ValueError, r"x has 0 pixels a channel"),
    (lambda: qk.softmax(Q, 2), ValueError, r"softmax: axis=2 does not fit"),
    (lambda: qk.softmax(Q, 1.0), TypeError, r"softmax: axis is float"),
    (lambda: qk.softmax(Q, out_scale=2.0), ValueError, r"softmax: out_scale=2.0, wanted at most 1"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_explain_names_the_row_that_runs() -> None:
    assert qk.explain(qk.add, Q, Q, 0.1).kernel.op == "add"
    assert qk.explain(qk.mul, Q, Q, 0.1).kernel.op == "mul"
    assert qk.explain(qk.lookup, Q, "tanh").kernel.op == "lookup"
    assert qk.explain(qk.max_pool2d, IMAGE, 2, layout="NHWC").kernel.op == "max_pool"
    assert qk.explain(qk.avg_pool2d, IMAGE, 2, layout="NHWC").kernel.op == "avg_pool"
    assert qk.explain(qk.softmax, Q).kernel.op == "softmax"
