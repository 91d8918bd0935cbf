"""What stands between products, search and weight-only products through the C API: what the Python functions compute,
by every kernel that this CPU runs, in workspaces of exactly the size asked for; and what is wrong is said."""

from __future__ import annotations

import ctypes
import itertools
from ctypes import c_float, c_int32, c_int64, c_void_p
from typing import Any

import capi_library as c
import numpy as np
import pytest

import qkernels as qk
from qkernels.backends import native_elementwise, native_int4, native_pools, native_topk
from qkernels.hardware import detect
from qkernels.ops.softmax import exponentials

F32 = np.float32
ROWS = (*native_elementwise.KERNELS, *native_pools.KERNELS, *native_topk.KERNELS, *native_int4.KERNELS)
HERE = [kernel for kernel in ROWS if kernel.isa in detect().cpu]
SIZES = (1, 3, 63, 64, 65, 1000, 70_001)
CANARY = 0x5A


def of_op(*ops: str) -> Any:
    found = [kernel for kernel in HERE if kernel.op in ops]
    return pytest.mark.parametrize("kernel", found, ids=[kernel.name for kernel in found])


def codes(rng: np.random.Generator, dtype: str, *shape: int) -> np.ndarray:
    low, high = (-128, 128) if dtype == "int8" else (0, 256)
    return rng.integers(low, high, shape).astype(dtype)


def dtype_of(kernel: Any) -> str:
    return "int8" if kernel.types.startswith("s8") else "uint8"


def hosted(op: str, args: Any, tasks: int) -> None:
    """Of the functions without a workspace."""
    c.call(op, args, c.Host(tasks=tasks, parallel_for=c.backwards))


class Framed:
    """Room for a result with canaries round it."""

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.room = np.full(size + 128, CANARY, np.uint8)
        self.out = self.room[64 : 64 + size].view(dtype).reshape(shape)

    def check(self) -> None:
        size = self.out.nbytes
        assert (self.room[:64] == CANARY).all() and (self.room[64 + size :] == CANARY).all(), "it wrote outside"


@of_op("add", "mul")
def test_pairs(kernel: Any) -> None:
    rng, dtype, run = np.random.default_rng(1), dtype_of(kernel), getattr(qk, kernel.op)
    for i, size in enumerate(SIZES):
        a, b = codes(rng, dtype, size), codes(rng, dtype, size)
        scales = [F32(v) for v in rng.uniform(0.001, 0.2, 3)]
        zeros = [int(v) for v in codes(rng, dtype, 3)]
        wanted = run(qk.QTensor(a, scales[0], zeros[0]), qk.QTensor(b, scales[1], zeros[1]), scales[2], zeros[2])
        framed = Framed(a.shape, dtype)
        args = c.PairArgs(
            kernel=c.kernel_index(kernel.name), type=c.TYPES[dtype], count=size, a=c.pointer(a), b=c.pointer(b),
            out=c.pointer(framed.out), a_scale=scales[0], b_scale=scales[1], out_scale=scales[2], a_zero=zeros[0],
            b_zero=zeros[1], out_zero=zeros[2],
        )  # fmt: skip
        hosted(kernel.op, args, (1, 3, 8)[i % 3])
        np.testing.assert_array_equal(framed.out, wanted.codes())
        framed.check()


@of_op("lookup")
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_lookup_and_concat(kernel: Any, dtype: str) -> None:
    """Tensors side by side: each through its table to its columns of the result."""
    rng = np.random.default_rng(2)
    for rows, tasks in itertools.product((1, 5, 64), (1, 3)):
        parts = [codes(rng, dtype, rows, n) for n in (1, 63, 130)]
        scales, zeros = [F32(0.02), F32(0.05), F32(0.013)], [int(v) for v in codes(rng, dtype, 3)]
        scale, zero = scales[1], zeros[1]
        tensors = [qk.QTensor(*part) for part in zip(parts, scales, zeros, strict=True)]
        wanted = qk.concat(tensors, 1, scale, zero).codes()
        framed, at = Framed(wanted.shape, dtype), 0
        for part, s, z in zip(parts, scales, zeros, strict=True):
            table = np.empty(256, dtype)
            c.call("rescale_table", c_int32(c.TYPES[dtype]), c_float(s), c_int32(z), c_float(scale), c_int32(zero),
                   c_void_p(c.pointer(table)))  # fmt: skip
            args = c.LookupArgs(
                kernel=c.kernel_index(kernel.name), type=c.TYPES[dtype], rows=rows, columns=part.shape[1],
                in_=c.pointer(part), out=c.pointer(framed.out) + at, out_row=wanted.shape[1], table=c.pointer(table),
            )  # fmt: skip
            hosted("lookup", args, tasks)
            at += part.shape[1]
        np.testing.assert_array_equal(framed.out, wanted)
        framed.check()


@of_op("softmax")
def test_softmax(kernel: Any) -> None:
    rng, dtype = np.random.default_rng(3), dtype_of(kernel)
    for rows, columns in ((1, 1), (3, 17), (7, 64), (9, 1000)):
        x, scale = codes(rng, dtype, rows, columns), F32(rng.uniform(0.01, 0.2))
        zero = int(codes(rng, dtype, 1)[0])
        wanted = qk.softmax(qk.QTensor(x, scale), -1, 1 / 256, zero).codes()
        table, found = exponentials(scale, columns), np.empty(256, F32)
        c.call("softmax_table", c_float(scale), c_int64(columns), c_void_p(c.pointer(found)))
        np.testing.assert_allclose(found, table, rtol=3e-7)  # e^x of another library
        framed = Framed(x.shape, dtype)
        args = c.SoftmaxArgs(
            kernel=c.kernel_index(kernel.name), type=c.TYPES[dtype], rows=rows, columns=columns, in_=c.pointer(x),
            out=c.pointer(framed.out), table=c.pointer(table), out_scale=1 / 256, out_zero=zero,
        )  # fmt: skip
        hosted("softmax", args, rows)
        np.testing.assert_array_equal(framed.out, wanted)
        framed.check()


WINDOWS = [
    (2, 2, 0), ((3, 2), (2, 1), ((1, 0), (0, 1))), (3, 1, 1), ((1, 4), 3, 0),
]  # fmt: skip


def steps(x: np.ndarray) -> Any:
    return (c_int64 * 4)(*(step // x.itemsize for step in x.strides))


@of_op("max_pool", "avg_pool")
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_pools(kernel: Any, layout: str) -> None:
    rng, dtype = np.random.default_rng(4), dtype_of(kernel)
    for i, (window, stride, padding) in enumerate(WINDOWS):
        x = codes(rng, dtype, 2, 9, 8, 35)
        images = x if layout == "NHWC" else np.ascontiguousarray(x.transpose(0, 3, 1, 2))
        zero, out_zero, counts = int(codes(rng, dtype, 1)[0]), int(codes(rng, dtype, 1)[0]), bool(i % 2)
        q = qk.QTensor(images, F32(0.03), zero)
        how = {"layout": layout, "stride": stride, "padding": padding}
        if kernel.op == "max_pool":
            wanted = qk.max_pool2d(q, window, **how).codes()
        else:
            wanted = qk.avg_pool2d(q, window, 0.02, out_zero, count_include_pad=counts, **how).codes()
        framed = Framed(wanted.shape, dtype)
        order = (0, 1, 2, 3) if layout == "NHWC" else (0, 2, 3, 1)
        last, out = images.transpose(order), framed.out.transpose(order)
        pair = [v if isinstance(v, tuple) else (v, v) for v in (window, stride)]
        before = [side[0] if isinstance(side, tuple) else side for side in padding] if isinstance(padding, tuple) else [
            padding, padding
        ]  # fmt: skip
        args = c.PoolArgs(
            kernel=c.kernel_index(kernel.name), type=c.TYPES[dtype], images=2, height=9, width=8, channels=35,
            x=c.pointer(images), x_step=steps(last), out=c.pointer(framed.out), out_step=steps(out),
            out_height=out.shape[1], out_width=out.shape[2], window=tuple(pair[0]), stride=tuple(pair[1]),
            before=tuple(before), dilation=(1, 1), count_outside=counts, scale=0.03, out_scale=0.02, zero=zero,
            out_zero=out_zero,
        )  # fmt: skip
        hosted(kernel.op, args, (1, 3)[i % 2])
        np.testing.assert_array_equal(framed.out, wanted)
        framed.check()
        if layout == "NHWC":  # adjacent: no steps
            args.x_step = args.out_step = (c_int64 * 4)()
            framed.out[...] = 0
            hosted(kernel.op, args, 2)
            np.testing.assert_array_equal(framed.out, wanted)


@of_op("channel_sum")
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_global_averages(kernel: Any, layout: str) -> None:
    rng, dtype = np.random.default_rng(5), dtype_of(kernel)
    for images, height, width, channels in ((1, 1, 1, 1), (3, 5, 7, 40), (2, 30, 31, 129)):
        x = codes(rng, dtype, images, height, width, channels)
        given = x if layout == "NHWC" else np.ascontiguousarray(x.transpose(0, 3, 1, 2))
        zero = int(codes(rng, dtype, 1)[0])
        wanted = qk.global_avg_pool(qk.QTensor(given, F32(0.03), zero), 0.02, 5, layout=layout).codes()
        spread = 1 if layout == "NHWC" else 3  # channels of the result lie apart
        framed = Framed((images, channels, spread), dtype)
        framed.out[...] = 99
        last = given if layout == "NHWC" else given.transpose(0, 2, 3, 1)
        args = c.PoolArgs(
            kernel=c.kernel_index(kernel.name), type=c.TYPES[dtype], images=images, height=height, width=width,
            channels=channels, x=c.pointer(given), x_step=steps(last), out=c.pointer(framed.out),
            out_step=(channels * spread, 1, 1, spread), scale=0.03, out_scale=0.02, zero=zero, out_zero=5,
        )  # fmt: skip
        for tasks in (1, 3):
            c.run("global_avg_pool", args, tasks)
            np.testing.assert_array_equal(framed.out[..., 0], wanted.reshape(images, channels))
            assert (framed.out[..., 1:] == 99).all()
            framed.check()
    with pytest.raises(c.Refused, match="QK_SMALL_WORKSPACE"):
        c.run("global_avg_pool", args, 1, spare=1)


@of_op("topk")
def test_topk(kernel: Any) -> None:
    rng = np.random.default_rng(6)
    types = [{"s8": "int8", "u8": "uint8"}[kernel.types[i : i + 2]] for i in (0, 2)]
    cases = [(1, 300, 20, 1), (3, 300, 65, 7), (20, 500, 33, 500), (300, 900, 40, 5)]
    for (queries, rows, dims, k), distance in itertools.product(cases, (False, True)):
        if distance and types[0] != types[1]:
            continue
        corpus, query = codes(rng, types[0], rows, dims), codes(rng, types[1], queries, dims)
        scores, indices = qk.topk(query, corpus, k, metric="l2" if distance else "ip")
        for turned, tasks in ((False, 1), (False, 4), (True, 3)):
            c_, q_ = (np.asfortranarray(v) if turned else v for v in (corpus, query))
            found, at = Framed((queries, k), np.int32), Framed((queries, k), np.int64)
            args = c.TopkArgs(
                kernel=c.kernel_index(kernel.name), corpus_type=c.TYPES[types[0]], query_type=c.TYPES[types[1]],
                distance=int(distance), rows=rows, dims=dims, corpus=c.pointer(c_), corpus_row=c_.strides[0],
                corpus_column=c_.strides[1], queries=queries, query=c.pointer(q_), query_row=q_.strides[0],
                query_column=q_.strides[1], k=k, scores=c.pointer(found.out), indices=c.pointer(at.out),
            )  # fmt: skip
            c.run("topk", args, tasks)
            np.testing.assert_array_equal(at.out, indices)
            np.testing.assert_array_equal(found.out, scores)
            found.check(), at.check()
    with pytest.raises(c.Refused, match="QK_SMALL_WORKSPACE"):
        c.run("topk", args, 1, spare=1)


@of_op("weight_only")
def test_weight_only(kernel: Any) -> None:
    """Real rows times groups: the same kernel's numbers as from Python, and the reference's within the rule's bound."""
    rng, ran = np.random.default_rng(7), 0
    if "s8" in kernel.types:
        pytest.skip("qk_pack_groups takes unsigned codes")
    dtype = {"u2": "int2", "u4": "int4", "u8": "uint8"}[kernel.types[-5:-3]]
    for m, n, k, group in ((1, 40, 96, 32), (5, 33, 128, 16), (40, 64, 160, 64)):
        w = rng.normal(0, 1, (n, k)).astype(F32)
        q = qk.quantize(w, dtype=dtype, axis=0, group_size=group, symmetric=dtype != "uint8")
        part = qk.pack_linear(q).parts[0]
        packed, _memory = c.pack_groups(part, sums=False)
        x, bias = rng.normal(0, 1, (m, k)).astype(F32), rng.normal(0, 1, n).astype(F32)
        framed = Framed((m, n), F32)
        e = c.Epilogue(type=c.TYPES["float32"], residual_type=c.NO_RESIDUAL, out=c.pointer(framed.out))
        e.float_bias = c.pointer(bias)
        args = c.LinearArgs(
            kernel=c.kernel_index(kernel.name), a_type=c.TYPES["float32"], m=m, a=c.pointer(x), a_row=k, a_column=1,
            groups=ctypes.pointer(packed), epilogue=ctypes.pointer(e),
        )  # fmt: skip
        compute = "bfloat16" if kernel.types.startswith("bf16") else "float32"
        try:
            with qk.use(kernel.name):
                wanted = qk.linear(x, q, bias, compute=compute)
        except qk.NoKernelError:
            with pytest.raises(c.Refused, match="QK_NO_KERNEL"):
                c.run("weight_only", args, 1)
            continue
        for tasks in (1, 3):
            c.run("weight_only", args, tasks)
            np.testing.assert_array_equal(framed.out, wanted)
            framed.check()
        ran += 1
    assert ran > 0


def refused(match: str, op: str, args: Any) -> None:
    with pytest.raises(c.Refused, match=match):
        hosted(op, args, 1)


def test_mistakes_are_said() -> None:
    x = np.zeros(16, np.int8)
    at = c.pointer(x)

    def pair(**other: Any) -> c.PairArgs:
        good = {"kernel": -1, "type": c.TYPES["int8"], "count": 16, "a": at, "b": at, "out": at, "a_scale": 1.0,
                "b_scale": 1.0, "out_scale": 1.0}  # fmt: skip
        return c.PairArgs(**{**good, **other})

    hosted("add", pair(), 1)
    refused("QK_BAD_ARGUMENT: type is 9, wanted QK_S8 or QK_U8", "add", pair(type=9))
    refused("QK_BAD_ARGUMENT: b_scale is nan, wanted finite and > 0", "mul", pair(b_scale=float("nan")))
    refused("QK_BAD_ARGUMENT: out_zero is 128, wanted a code of -128 … 127", "add", pair(out_zero=128))
    refused("their ratio is not finite", "add", pair(a_scale=3e38, out_scale=1e-3))
    refused("QK_NULL_POINTER: b is NULL", "mul", pair(b=None))
    refused("QK_NO_KERNEL", "add", pair(kernel=0))
    refused("QK_BAD_ARGUMENT: an array of", "add", pair(count=0))
    short = pair()
    short.size = 8
    refused("QK_BAD_STRUCT: qk_pair_args.size is 8", "add", short)

    table = np.arange(256, dtype=np.uint8)
    look = {"kernel": -1, "type": c.TYPES["uint8"], "rows": 2, "columns": 8, "in_": at, "out": at,
            "table": c.pointer(table)}  # fmt: skip
    hosted("lookup", c.LookupArgs(**look), 1)
    refused("out's at least 8", "lookup", c.LookupArgs(**{**look, "out_row": 7}))
    refused("QK_NULL_POINTER: table is NULL", "lookup", c.LookupArgs(**{**look, "table": None}))

    pool = {"kernel": -1, "type": c.TYPES["uint8"], "images": 1, "height": 4, "width": 4, "channels": 1, "x": at,
            "out": at, "out_height": 2, "out_width": 2, "window": (2, 2), "stride": (2, 2), "dilation": (1, 1),
            "scale": 1.0, "out_scale": 1.0}  # fmt: skip
    hosted("max_pool", c.PoolArgs(**pool), 1)
    refused("lies outside of the image", "max_pool", c.PoolArgs(**{**pool, "out_height": 4}))
    refused("before is 2, wanted 0 or more, and less than the window", "avg_pool",
            c.PoolArgs(**{**pool, "before": (2, 0)}))  # fmt: skip
    refused("dilation is 2, wanted 1", "avg_pool", c.PoolArgs(**{**pool, "dilation": (2, 1)}))
    refused("x has a size of 0", "max_pool", c.PoolArgs(**{**pool, "width": 0}))

    scores, indices = np.zeros(4, np.int32), np.zeros(4, np.int64)
    search = {"kernel": -1, "corpus_type": c.TYPES["int8"], "query_type": c.TYPES["int8"], "rows": 4, "dims": 4,
              "corpus": at, "corpus_row": 4, "corpus_column": 1, "queries": 1, "query": at, "query_row": 4,
              "query_column": 1, "k": 2, "scores": c.pointer(scores), "indices": c.pointer(indices)}  # fmt: skip
    c.run("topk", c.TopkArgs(**search))
    for wrong, said in (
        ({"k": 5}, "k is 5, wanted at most the 4 rows"), ({"dims": 131072}, "sums could leave int32"),
        ({"distance": 1, "query_type": c.TYPES["uint8"]}, "wanted one type for distances"),
        ({"rows": 0}, "a size of 0"), ({"corpus": None}, "corpus is NULL"),
    ):  # fmt: skip
        with pytest.raises(c.Refused, match=said):
            c.run("topk", c.TopkArgs(**{**search, **wrong}))
    with pytest.raises(c.Refused, match="QK_BAD_ARGUMENT: columns is 0"):
        c.call("softmax_table", c_float(0.1), c_int64(0), c_void_p(c.pointer(np.empty(256, F32))))
    with pytest.raises(c.Refused, match="groups is NULL"):
        c.run("weight_only", c.LinearArgs(kernel=-1, a_type=c.TYPES["float32"], m=1))


def test_every_op_was_among_them() -> None:
    assert {kernel.op for kernel in HERE} >= {"add", "mul", "lookup", "softmax", "max_pool", "avg_pool", "channel_sum",
                                              "topk", "weight_only"}  # fmt: skip
