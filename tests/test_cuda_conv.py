"""Convolutions on a GPU through the public door, run by the emulator: the CPU's bits, over strides, paddings,
dilations, groups, stems, depthwise, every output and rounding; and every row where it can run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_emulator import ROUNDINGS, emulated
from fake_gpu import values

import qkernels as qk
from qkernels import dispatch
from qkernels.backends import cuda as backend
from qkernels.kernel import Conv, Hardware, Problem

# image, filters, kernel, stride, padding, dilation, groups
GEOMETRIES: tuple[tuple[Any, ...], ...] = (
    ((2, 9, 8, 16), 20, (3, 3), 1, 1, 1, 1), ((1, 13, 12, 32), 70, (3, 3), 2, ((0, 1), (2, 1)), 1, 1),
    ((1, 11, 11, 16), 33, (3, 2), (1, 2), 2, (2, 3), 1), ((2, 17, 15, 3), 24, (7, 7), 2, 3, 1, 1),
    ((1, 8, 9, 48), 12, (1, 1), 1, 0, 1, 1), ((1, 8, 9, 32), 12, (1, 1), 2, 0, 1, 1),
    ((1, 7, 7, 64), 40, (3, 3), 1, "same_upper", 1, 4), ((1, 7, 9, 10), 15, (3, 3), 1, 1, 1, 5),
    ((1, 9, 9, 20), 20, (3, 3), 1, 1, 1, 20), ((2, 8, 9, 13), 13, (5, 5), 2, 2, 1, 13),
    ((1, 6, 150, 16), 130, (1, 3), 1, (0, 1), 1, 1), ((1, 3, 3, 16), 5, (3, 3), 1, 0, 1, 1),
)  # fmt: skip


def codes(rng: np.random.Generator, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    limits = np.iinfo(dtype)
    x = rng.integers(limits.min, limits.max + 1, shape).astype(dtype)
    x[rng.random(shape) < 0.2] = limits.max
    x[rng.random(shape) < 0.2] = limits.min
    return x


def made(geometry: tuple[Any, ...], types: Any = (np.uint8, np.int8)) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    image, filters, kernel, stride, padding, dilation, groups = geometry
    rng = np.random.default_rng(filters)
    weight = codes(rng, types[1], (filters, *kernel, image[-1] // groups))
    where = {"layout": "NHWC", "stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return codes(rng, types[0], image), weight, where


def test_rows_are_those_of_the_module(gpu: Any) -> None:
    from qkernels.backends._cuda_conv import ROWS

    assert [(r.tile, r.isa, r.kind, r.first, r.last) for r in ROWS] == [
        (r["tile"], r["isa"], r["kind"], r["first_arch"], r["last_arch"]) for r in backend._cuda.conv_rows()
    ]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_accumulators_equal_the_cpu(gpu: Any, geometry: tuple[Any, ...]) -> None:
    gpu.pretend(80)
    for i, types in enumerate(((np.uint8, np.int8), (np.int8, np.int8), (np.uint8, np.uint8))):
        emulated().seed(i)
        x, weight, where = made(geometry, types)
        zero = {"x_zero_point": 117 if types[0] == np.uint8 else -5}
        bias = np.random.default_rng(1).integers(-(2**20), 2**20, len(weight)).astype(np.int32)
        wanted = qk.conv2d(x, weight, bias, **where, **zero)
        got = qk.conv2d(gpu.asarray(x), weight, bias, **where, **zero)
        assert np.array_equal(values(got), wanted) and values(got).dtype == np.int32, types


def test_every_row(gpu: Any) -> None:
    """Where several rows can run, all of them give the same."""
    gpu.pretend(80)
    seen = set()
    for geometry in GEOMETRIES:
        x, weight, where = made(geometry)
        wanted = qk.conv2d(x, weight, **where, x_zero_point=3)
        for name in qk.explain(qk.conv2d, gpu.asarray(x), weight, **where, x_zero_point=3).costs:
            if "cuda_sm80" not in name and "cuda_dp4a" not in name:
                continue
            with qk.use(name):
                got = qk.conv2d(gpu.asarray(x), weight, **where, x_zero_point=3)
            assert np.array_equal(values(got), wanted), name
            seen.add(name.removeprefix("conv_u8s8s32_"))
    from qkernels.backends._cuda_conv import ROWS

    assert {f"{row.tile}_{row.isa}" for row in ROWS} <= seen


@pytest.mark.parametrize("at", [0, 3, 4, 6, 8])
def test_fused(gpu: Any, at: int) -> None:
    """Codes by every rounding, floats, bias, residual, activations, zero points of the weights."""
    gpu.pretend(80)
    x, weight, where = made(GEOMETRIES[at])
    rng = np.random.default_rng(at)
    filters = len(weight)
    image = qk.QTensor(x, 0.02, 120)
    w = qk.QTensor(weight, rng.uniform(0.001, 0.01, filters).astype(np.float32), axis=0)
    bias = rng.normal(size=filters).astype(np.float32)
    there = qk.quantize(gpu.asarray(image.dequantize()), 0.02, 120, dtype="uint8")
    assert np.array_equal(values(there.codes()), x)
    wishes: list[dict[str, Any]] = [{"out_scale": 0.1, "out_zero_point": 100, "rounding": name} for name in ROUNDINGS]
    wishes += [{}, {"out_dtype": "float16", "activation": "relu"}, {"out_dtype": "int32"}]
    wishes += [{"out_scale": 0.1, "out_dtype": "int8", "activation": (-3.0, 6.0)}]
    for wish in wishes:
        given = None if wish.get("out_dtype") == "int32" else bias
        wanted, got = qk.conv2d(image, w, given, **where, **wish), qk.conv2d(there, w, given, **where, **wish)
        if isinstance(wanted, qk.QTensor):
            assert np.array_equal(values(got.codes()), wanted.codes()) and got.dtype == wanted.dtype, wish
        else:
            assert np.array_equal(values(got), wanted) and values(got).dtype == wanted.dtype, wish
    wanted = qk.conv2d(image, w, bias, **where, out_scale=0.1, out_zero_point=100)
    residual = qk.quantize(gpu.asarray(wanted.dequantize()), 0.1, 100, dtype="uint8")
    both = {"out_scale": 0.15, "out_zero_point": 90, "activation": "relu"}
    got = qk.conv2d(there, w, bias, **where, residual=residual, **both)
    assert np.array_equal(values(got.codes()), qk.conv2d(image, w, bias, **where, residual=wanted, **both).codes())
    scales = np.full(filters, 0.01, np.float32)
    shifted = qk.QTensor(np.clip(weight, -90, 90), scales, rng.integers(-30, 30, filters).astype(np.int8), axis=0)
    got = qk.conv2d(there, qk.pack_conv(shifted, layout="NHWC", groups=where["groups"]), **where)
    assert np.array_equal(values(got), qk.conv2d(image, shifted, **where))


def test_one_axis(gpu: Any) -> None:
    gpu.pretend(80)
    for channels, groups in ((16, 1), (6, 1), (12, 12)):
        x, weight, _ = made(((2, 1, 31, channels), 12, (1, 5), 1, 0, 1, groups))
        where = {"layout": "NWC", "stride": 2, "padding": 2, "dilation": 2, "groups": groups}
        wanted = qk.conv1d(x[:, 0], weight[:, 0], **where)
        assert np.array_equal(values(qk.conv1d(gpu.asarray(x[:, 0]), weight[:, 0], **where)), wanted)


def test_no_bank_conflicts_in_the_main_loop(gpu: Any) -> None:
    gpu.pretend(80)
    module = emulated()
    for at in (1, 3):
        x, weight, where = made(GEOMETRIES[at])
        module.reset_counters()
        qk.conv2d(gpu.asarray(x), weight, **where)
        counted = module.counters()
        assert counted["products"] > 0
        loop = ("ldmatrix", "cp.async", "st.shared.16")
        assert {kind: n for kind, n in counted["conflicts"].items() if n and kind in loop} == {}


@pytest.mark.parametrize(
    ("channels", "filters", "groups", "name"),
    [
        (256, 256, 1, "conv_u8s8s32_128x128x16_cuda_sm80"), (64, 64, 1, "conv_u8s8s32_128x64x16_cuda_sm80"),
        (3, 64, 1, "conv_u8s8s32_128x64x1_cuda_sm80"), (64, 64, 64, "conv_u8s8s32_1x4_cuda_dp4a"),
    ],
)  # fmt: skip
def test_rows_by_size(channels: int, filters: int, groups: int, name: str) -> None:
    ones = (1, 1, 1)
    conv = Conv(32, (1, 56, 56), channels, filters, (1, 3, 3), ones, ones, (0, 1, 1), (1, 56, 56), groups)
    problem = Problem("conv", "u8s8s32", conv.pixels, filters, 9 * channels // groups, "nk16", "cuda:0", conv)
    assert dispatch.choose(problem, Hardware(frozenset(), "sm_90")).name == name


def test_a_product_is_made_of_single_taps(gpu: Any) -> None:
    x, weight, where = made(GEOMETRIES[4])
    said = qk.explain(qk.conv2d, gpu.asarray(x), weight, **where)
    assert said.kernel.name.startswith("gemm_u8s8s32_") and said.kernel.isa == "cuda_sm90a"
    assert np.array_equal(values(qk.conv2d(gpu.asarray(x), weight, **where)), qk.conv2d(x, weight, **where))


def test_bad_input(gpu: Any) -> None:
    x, weight, where = made(GEOMETRIES[0])
    there = gpu.asarray(x)
    for error, arguments, keywords, said in (
        (ValueError, (there, weight), {**where, "layout": "NCHW"}, "wanted channels last"),
        (TypeError, (there, gpu.asarray(weight)), where, "weight and bias are wanted in host memory"),
        (TypeError, (gpu.asarray(x.astype(np.float32)), weight), where, "x"),
        (ValueError, (there, weight[..., :3]), where, "x has 16 channels, weight has in = 3"),
        (ValueError, (there, weight), {**where, "out": x}, "out on a GPU"),
        (ValueError, (there, weight), {**where, "w_zero_point": 100}, "weight − its zero point is"),
    ):  # fmt: skip
        with pytest.raises(error, match=said):
            qk.conv2d(*arguments, **keywords)
    gpu.pretend(75)
    with pytest.raises(qk.NoKernelError, match="it needs sm_80"), qk.use("*_cuda_sm80"):
        qk.conv2d(there, weight, **where)
    empty = qk.conv2d(gpu.asarray(x[:0]), weight, **where)
    assert values(empty).shape == (0, 9, 8, 20)
