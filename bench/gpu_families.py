"""Packed weights and convolutions on a GPU: checks against the CPU's kernels, and times beside torch's bf16."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

F32 = np.float32
GROUPED: tuple[dict[str, Any], ...] = (
    {"dtype": "int4", "group_size": 128, "scale_dtype": "float16"},
    {"dtype": "uint4", "group_size": 32, "symmetric": False},
    {"dtype": "int8"},
    {"dtype": "int4", "group_size": 64, "two_level": True},
)
# image, filters, kernel, stride, padding, groups: a stem, ResNet's layers, a strided, a grouped and a depthwise one
CONVS: tuple[tuple[Any, ...], ...] = (
    ((2, 34, 33, 3), 24, 7, 2, 3, 1), ((2, 14, 15, 64), 72, 3, 1, 1, 1), ((1, 15, 14, 128), 130, 3, 2, 1, 1),
    ((2, 9, 9, 64), 40, 1, 1, 0, 1), ((1, 14, 14, 64), 64, 3, 1, 1, 4), ((1, 15, 15, 36), 36, 3, 1, 1, 36),
)  # fmt: skip
DECODE = ((8192, 8192), (16384, 8192), (20480, 7168))  # n, k
EXPERTS = (64, 2048, 2048)  # experts, n, k
# of ResNet-50: height and width, channels, filters, kernel, stride
RESNET = (
    (224, 3, 64, 7, 2), (56, 64, 64, 1, 1), (56, 64, 64, 3, 1), (56, 64, 256, 1, 1), (56, 256, 128, 1, 1),
    (28, 128, 128, 3, 1), (28, 128, 512, 1, 1), (28, 512, 256, 1, 1), (14, 256, 256, 3, 1), (14, 256, 1024, 1, 1),
    (14, 1024, 512, 1, 1), (7, 512, 512, 3, 1), (7, 512, 2048, 1, 1),
)  # fmt: skip


def kernels_of(qk: Any, call: Callable[..., Any], *args: Any, **keywords: Any) -> list[str]:
    """Every kernel of this GPU that can run the call, but Numba's."""
    return [name for name in qk.explain(call, *args, **keywords).costs if "numba" not in name]


def weight_checks(arrays: Any, quick: bool) -> Iterator[tuple[str, bool]]:
    """linear with packed weights, on every kernel that can run it: the CPU's bits, or within the bound of A11."""
    import qkernels as qk

    rng = np.random.default_rng(5)
    for keywords in GROUPED:
        weight = qk.quantize(rng.normal(size=(200, 392)).astype(F32), axis=0, **keywords)
        w = weight.dequantize("float64").T
        for m in (1, 9) if quick else (1, 8, 17, 33, 70, 130):
            x = rng.normal(size=(m, 392)).astype(F32)
            there = arrays.there(x)
            if weight.group_size is not None:  # the quantizing kernel runs as well: use() would leave it out
                name = qk.explain(qk.linear, there, weight).kernel.name
                got = arrays.here(qk.linear(there, weight))
                yield f"{name} m={m}", bool(np.array_equal(got, qk.linear(x, weight)))
            half = x.astype(np.float16)
            there = arrays.there(half)
            exact, size = half.astype(np.float64) @ w, np.abs(half.astype(np.float64)) @ np.abs(w)
            for compute, bound in (("float32", 2.0**-20), ("bfloat16", 2.0**-7)):
                for name in kernels_of(qk, qk.linear, there, weight, compute=compute):
                    with qk.use(name):
                        got = arrays.here(qk.linear(there, weight, compute=compute, out_dtype="float32"))
                    yield f"{name} m={m}", bool((np.abs(got - exact) <= bound * size).all())


def expert_checks(arrays: Any) -> Iterator[tuple[str, bool]]:
    """grouped_linear with offsets on the GPU: the CPU's bits, experts without rows and with many."""
    import qkernels as qk

    rng = np.random.default_rng(9)
    for keywords in GROUPED:
        how = keywords | ({"group_axis": -1} if "group_size" in keywords else {})
        weight = qk.quantize(rng.normal(size=(40, 72, 200)).astype(F32), axis=(0, 1), **how)
        for sizes in (rng.integers(0, 3, 40), np.where(np.arange(40) % 13 == 5, 90, 0)):
            ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
            x, bias = rng.normal(size=(ends[-1], 200)).astype(F32), rng.normal(size=(40, 72)).astype(F32)
            there, offsets = arrays.there(x), arrays.there(ends)
            name = qk.explain(qk.grouped_linear, there, weight, offsets, bias).kernel.name
            got = arrays.here(qk.grouped_linear(there, weight, offsets, bias))
            yield f"{name} m={ends[-1]}", bool(np.array_equal(got, qk.grouped_linear(x, weight, ends, bias)))


def conv_checks(arrays: Any) -> Iterator[tuple[str, bool]]:
    """conv2d with a fused requantization, on every kernel that can run it, equals the CPU's."""
    import qkernels as qk

    rng = np.random.default_rng(6)
    for image, filters, kernel, stride, padding, groups in CONVS:
        x = rng.integers(0, 256, image).astype(np.uint8)
        codes = rng.integers(-128, 128, (filters, kernel, kernel, image[-1] // groups)).astype(np.int8)
        weight = qk.QTensor(codes, rng.uniform(1e-3, 1e-2, filters).astype(F32), axis=0)
        where = {"layout": "NHWC", "stride": stride, "padding": padding, "groups": groups, "out_scale": 0.5}
        wanted = qk.conv2d(qk.QTensor(x, 0.02, 120), weight, **where)
        real = arrays.there(qk.QTensor(x, 0.02, 120).dequantize())
        there = qk.quantize(real, 0.02, 120, dtype="uint8")
        for name in kernels_of(qk, qk.conv2d, there, weight, **where):
            with qk.use(name):
                got = arrays.here(qk.conv2d(there, weight, **where).codes())
            yield f"{name} {image} {kernel}x{kernel}", bool(np.array_equal(got, wanted.codes()))


# ---------------------------------------------------------------- times


@functools.cache
def decoded(n: int, k: int, count: int, keywords: tuple[tuple[str, Any], ...]) -> list[Any]:
    """Random weights, packed at their first use: seconds for each, so that rows share them."""
    import qkernels as qk

    made = dict(keywords)
    rng = np.random.default_rng(7)
    plain = rng.integers(-8, 8, (n, k)).astype(np.int8)
    scale = np.full((n, -(-k // made["group_size"])) if "group_size" in made else (n,), 0.01, F32)
    return [qk.QTensor(np.roll(plain, i), scale, axis=0, **made) for i in range(count)]


def weight_row(torch: Any, measure: Any, what: str, m: int, n: int, k: int, compute: str, **keywords: Any) -> dict:
    """One shape, weights rotated past the cache; bytes are those of weights and scales."""
    import qkernels as qk

    bits, group = (8 if keywords["dtype"] == "int8" else 4), keywords.get("group_size", k)
    size = n * k * bits // 8 + 2 * n * -(-k // group)
    weights = decoded(n, k, -(-measure.L2_BYTES // size) + 1, tuple(keywords.items()))
    count = len(weights)
    x = torch.randn(m, k, dtype=torch.bfloat16, device="cuda")
    row = {"what": what, "m": m, "n": n, "k": k}
    row["kernel"] = qk.explain(qk.linear, x, weights[0], compute=compute).kernel.name
    row["us"] = measure.median_us(torch, lambda i: qk.linear(x, weights[i % count], compute=compute))
    row["bytes_us"], row["tops"] = size / row["us"], 2e-6 * m * n * k / row["us"]
    w = [torch.randn(n, k, dtype=torch.bfloat16, device="cuda") for _ in range(2)]
    row["bfloat16_us"] = measure.median_us(torch, lambda i: x @ w[i % 2].T)
    return row


def expert_row(torch: Any, measure: Any, what: str, tokens: int, compute: str, **keywords: Any) -> dict:
    """A layer of EXPERTS experts, rows shared out evenly; bytes are those of the experts that have rows. Beside it
    torch's bf16 product of each expert, offsets known to the host."""
    import qkernels as qk

    experts, n, k = EXPERTS
    plain = np.random.default_rng(10).integers(-8, 8, (experts, n, k)).astype(np.int8)
    group = keywords.get("group_size", k)
    scale = np.full((experts, n, k // group) if "group_size" in keywords else (experts, n), 0.01, F32)
    weight = qk.pack_linear(qk.QTensor(plain, scale, axis=(0, 1), **keywords))
    ends = [tokens * e // experts for e in range(experts + 1)]
    x = torch.randn(tokens, k, dtype=torch.bfloat16, device="cuda")
    offsets = torch.tensor(ends, dtype=torch.int32, device="cuda")
    row: dict[str, Any] = {"what": what, "m": tokens, "n": n, "k": k}
    row["kernel"] = qk.explain(qk.grouped_linear, x, weight, offsets, compute=compute).kernel.name
    row["us"] = measure.median_us(torch, lambda i: qk.grouped_linear(x, weight, offsets, compute=compute))
    active = sum(b > a for a, b in itertools.pairwise(ends))
    bits = 8 if keywords["dtype"] == "int8" else 4
    row["bytes_us"] = active * n * (k * bits // 8 + 2 * (k // group)) / row["us"]
    row["tops"] = 2e-6 * tokens * n * k / row["us"]
    w = torch.randn(experts, k, n, dtype=torch.bfloat16, device="cuda")
    rows = [(slice(a, b), w[e]) for e, (a, b) in enumerate(itertools.pairwise(ends)) if b > a]
    row["bfloat16_us"] = measure.median_us(torch, lambda i: [x[part] @ each for part, each in rows])
    return row


def conv_row(torch: Any, measure: Any, size: int, channels: int, filters: int, kernel: int, stride: int) -> dict:
    import qkernels as qk

    batch, depthwise = 128, filters == 0
    filters, groups = (channels, channels) if depthwise else (filters, 1)
    real = torch.randn(batch, size, size, channels, device="cuda")
    x = qk.quantize(real, 0.02, 128, dtype="uint8")
    rng = np.random.default_rng(8)
    codes = rng.integers(-128, 128, (filters, kernel, kernel, channels // groups)).astype(np.int8)
    weight = qk.QTensor(codes, np.full(filters, 0.01, F32), axis=0)
    where: dict[str, Any] = {"layout": "NHWC", "stride": stride, "padding": kernel // 2, "groups": groups}
    out = -(-size // stride)
    row = {"what": f"conv {kernel}x{kernel}", "m": batch * out * out, "n": filters, "k": codes[0].size}
    call = {**where, "out_scale": 0.5, "out_zero_point": 128}
    row["kernel"] = qk.explain(qk.conv2d, x, weight, **call).kernel.name
    row["us"] = measure.median_us(torch, lambda i: qk.conv2d(x, weight, **call))
    row["tops"] = 2e-6 * row["m"] * row["n"] * row["k"] / row["us"]
    row["bytes_us"] = (real.numel() + row["m"] * filters) / row["us"]
    image = real.to(torch.bfloat16).permute(0, 3, 1, 2)  # channels_last, as it lies
    w = torch.from_numpy(codes).cuda().to(torch.bfloat16).permute(0, 3, 1, 2)
    args = {"stride": stride, "padding": kernel // 2, "groups": groups}
    row["bfloat16_us"] = measure.median_us(torch, lambda i: torch.nn.functional.conv2d(image, w, **args))
    return row


def table(torch: Any, measure: Any) -> list[dict[str, Any]]:
    int4 = {"dtype": "int4", "group_size": 128}
    rows = [weight_row(torch, measure, "W4A16", 1, n, k, "bfloat16", **int4) for n, k in DECODE]
    rows += [weight_row(torch, measure, "W4A16", m, 8192, 8192, "bfloat16", **int4) for m in (16, 32, 64)]
    rows.append(weight_row(torch, measure, "W8A16", 1, 8192, 8192, "bfloat16", dtype="int8"))
    rows += [weight_row(torch, measure, "W4A8", m, 8192, 8192, "int8", **int4) for m in (1, 256, 1024, 2048)]
    for m in (32, 4096):
        rows.append(expert_row(torch, measure, "experts W8A8", m, "int8", dtype="int8"))
        rows.append(expert_row(torch, measure, "experts W4A8", m, "int8", **int4))
        rows.append(expert_row(torch, measure, "experts W4A16", m, "bfloat16", **int4))
    rows += [conv_row(torch, measure, *shape) for shape in RESNET]
    rows += [conv_row(torch, measure, size, channels, 0, 3, 1) for size, channels in ((112, 64), (56, 128))]
    return rows
