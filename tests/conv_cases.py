"""The cases of the conv conformance test: geometries round every edge, hostile values, every epilogue."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from gemm_cases import VALUES, values

from qkernels.epilogue import Epilogue, container
from qkernels.geometry import out_size
from qkernels.kernel import Conv

OUTS = ("int32", "bias", "uint8", "int8", "gemmlowp", "ruy", "half_up", "half_away", "residual", "float32", "float16")


class Case(NamedTuple):
    conv: Conv
    values: str
    x_zero: str  # "none", "odd"
    w_zero: str  # "none", "one", "each"
    out: str  # of OUTS, "clamped", or "steep": products of sums that leave int32
    form: str  # "packed", "plain", "channels of a wider image", "odd address"
    seed: int


def conv(
    size: tuple[int, ...], channels: int, filters: int, kernel: tuple[int, ...], stride: Any = 1, pads: Any = 0,
    dilation: Any = 1, groups: int = 1, batch: int = 1,
) -> Conv:  # fmt: skip
    """A geometry of one to three axes; pads: the same before and after, or (before, after) of all axes."""
    axes = len(size)

    def every(value: Any) -> tuple[int, ...]:
        return tuple(value) if isinstance(value, tuple) else (value,) * axes

    before, after = (
        every(p) for p in (pads if isinstance(pads, tuple) and isinstance(pads[0], tuple) else (pads, pads))
    )
    steps, gaps = every(stride), every(dilation)
    ends = list(zip(before, after, strict=True))
    out = tuple(out_size(*each) for each in zip(size, kernel, steps, gaps, ends, strict=True))
    lead = 3 - axes
    ones = (1,) * lead
    return Conv(
        batch, (*ones, *size), channels, filters, (*ones, *kernel), (*ones, *steps), (*ones, *gaps),
        ((0,) * lead + before), (*ones, *out), groups,
    )  # type: ignore[arg-type]  # fmt: skip


def dense() -> list[Conv]:
    """Tiles of 32 and 12 pixels, panels of 16 filters, k to 64: one less, just so, one more."""
    return [
        conv((1, 1), 1, 1, (1, 1)),
        conv((4, 4), 64, 16, (1, 1)),
        conv((5, 7), 65, 17, (1, 1), batch=2),
        conv((7, 5), 5, 33, (1, 1), stride=2),
        conv((6, 6), 16, 8, (3, 3), pads=1),
        conv((9, 4), 64, 31, (3, 3), pads=1),
        conv((5, 5), 3, 20, (7, 7), stride=2, pads=3),
        conv((11, 6), 4, 16, (3, 2), stride=(2, 3), pads=((2, 0), (0, 1)), batch=2),
        conv((8, 9), 7, 5, (2, 4), stride=(1, 2), pads=((0, 3), (1, 2)), dilation=(2, 2)),
        conv((3, 3), 9, 3, (3, 3), pads=4),  # windows wholly outside
        conv((2, 40), 2, 34, (1, 5), pads=((0, 2), (0, 2))),
        conv((37,), 6, 7, (4,), stride=3, pads=((2,), (5,)), dilation=2),
        conv((70,), 1, 2, (1,)),
        conv((4, 5, 3), 3, 9, (2, 3, 2), stride=(2, 1, 2), pads=1),
        conv((3, 2, 4), 2, 4, (3, 1, 2), dilation=(1, 1, 2), pads=((2, 0, 0), (1, 0, 1)), batch=2),
        conv((6, 7), 3, 4, (2, 3))._replace(before=(0, -1, -2), out=(1, 4, 3)),  # a part of the image left out
        conv((4, 4), 128, 8, (2, 2), stride=2),
        conv((3, 3), 23, 6, (3, 3), pads=1),  # k = 207
    ]


def grouped() -> list[Conv]:
    sizes = ((2, 3, 4), (4, 4, 4), (8, 8, 8), (8, 2, 3), (32, 4, 4), (3, 16, 16), (2, 20, 33), (6, 1, 2), (5, 2, 1))
    return [
        conv((5, 6), g * c, g * f, (3, 2), pads=1, groups=g, stride=1 + i % 2, dilation=1 + i % 3 // 2)
        for i, (g, c, f) in enumerate(sizes)
    ]


def depthwise() -> list[Conv]:
    """Channels round vectors of 4 … 64, kernels of one and two groups of taps, short and long segments."""
    kernels = ((3, 3), (5, 5), (7, 7), (1, 1), (2, 4), (4, 1), (6, 3), (8, 2), (1, 9), (9, 1), (3, 5))
    channels = (2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 100, 130)
    found = []
    for i, (kernel, stride, dilation) in enumerate(itertools.product(kernels, (1, 2, (3, 1)), (1, 2))):
        c = channels[5 * i % 17]
        size = (3 + i % 9, 2 + i * 7 % 13)
        found.append(conv(size, c, c, kernel, stride, i % 4, dilation, groups=c, batch=1 + i % 2))
    return [
        *found,
        conv((4, 70), 96, 96, (3, 3), pads=1, groups=96),  # several segments a row
        conv((5, 300), 70, 70, (3, 3), 2, 1, groups=70),
        conv((30,), 20, 20, (3,), pads=1, groups=20),
        conv((3, 4, 5), 6, 6, (2, 3, 3), pads=1, groups=6),
        conv((3, 4, 5), 6, 6, (1, 3, 3), pads=((0, 1, 1), (0, 1, 1)), groups=6),
    ]


def finished() -> Iterator[Case]:
    """What becomes 8-bit codes without weight zero points: the kernels' own ways to the last bit of them."""
    whole = [
        conv((6, 70), 32, 32, (3, 3), pads=1, groups=32),  # two vectors of channels in a vector of codes
        conv((5, 9), 48, 48, (3, 3), pads=((0, 1), (1, 0)), groups=48, batch=2),  # odd rows of images
        conv((7, 11), 64, 64, (5, 5), pads=2, groups=64),
        conv((4, 6), 80, 80, (5, 5), 2, 2, groups=80),
        conv((9, 13), 16, 16, (3, 3), 2, pads=((0, 0), (1, 1)), groups=16),
        conv((9, 8), 96, 96, (7, 7), pads=3, groups=96),
        conv((3, 7), 144, 144, (4, 3), dilation=2, pads=3, groups=144),
        conv((6, 40), 240, 240, (3, 3), (1, 2), 1, groups=240),  # several segments of quads that are not adjacent
        conv((1, 3), 16, 16, (3, 3), pads=1, groups=16),  # too few outputs for four vectors
        conv((9, 41), 64, 64, (3, 3), pads=1, groups=16, batch=2),  # four channels a group, several strips
        conv((7, 9), 32, 32, (3, 2), 2, pads=((2, 0), (0, 3)), groups=4),  # eight
        conv((8, 10), 64, 16, (3, 3), pads=1, dilation=(2, 1), groups=16),  # one filter a group
        conv((6, 11), 24, 96, (2, 3), pads=1, groups=6),  # sixteen
        conv((5, 12), 8, 64, (3, 3), pads=1, groups=2),  # two vectors of filters
        conv((6, 9), 32, 64, (3, 3), 3, pads=1, dilation=(1, 2), groups=8, batch=2),
    ]
    dense = [
        conv((5, 14), c, f, (1, 1))
        for c, f in ((16, 96), (24, 144), (32, 16), (96, 24), (65, 40), (130, 8), (40, 250), (7, 17))
    ]
    gathered = [
        conv((9, 11), 3, 24, (7, 7), 2, 3),
        conv((6, 6), 10, 16, (3, 3), pads=1),
        conv((8, 7), 5, 33, (3, 5), 1, 2, (1, 2)),
        conv((3, 5), 12, 16, (3, 2), pads=1, batch=2),
    ]
    # lines of 9 … 16 output pixels and multiples, whose tiles AMX loads from the image
    tiled = [
        conv((7, 12), 64, 40, (3, 3), pads=1),
        conv((5, 33), 64, 17, (3, 3), pads=1, batch=2),
        conv((9, 30), 128, 33, (3, 3), 2, ((0, 2), (1, 1))),
        conv((6, 47), 64, 18, (3, 3), 2, 1),
        conv((6, 13), 64, 32, (3, 3), pads=2, dilation=2),
        conv((7, 9), 64, 16, (2, 3), (1, 1), ((1, 0), (2, 2)), (3, 2), batch=2),
        conv((11, 31), 3, 24, (7, 7), 2, 3, batch=2),  # four lines of the image in a pixel
        conv((9, 11), 4, 33, (5, 4), 1, ((4, 1), (1, 2)), (2, 1)),
        conv((8, 20), 16, 20, (4, 4), (3, 2), ((3, 0), (0, 2))),
        conv((5, 16), 20, 48, (3, 3), pads=1),
        conv((64, 12), 192, 16, (3, 3), pads=1),  # several bands
        conv((2, 9), 512, 320, (3, 3), pads=1),  # several blocks of weights
        conv((3, 9), 64, 5, (3, 3))._replace(before=(0, -1, -2), out=(1, 1, 12)),  # to the right of the image
    ]
    forms = itertools.cycle(("packed", "odd address", "channels of a wider image"))
    outs = itertools.cycle(("uint8", "clamped", "int8", "clamped", "residual", "steep", "clamped"))
    for seed, (geometry, kind) in enumerate(itertools.product([*whole, *dense, *gathered, *tiled], VALUES)):
        yield Case(geometry, kind, ("odd", "none")[seed % 2], "none", next(outs), next(forms), 2000 + seed)


def cases() -> Iterator[Case]:
    yield from finished()
    for seed, (out, zero) in enumerate(itertools.product((*OUTS, "clamped"), ("none", "each"))):  # tiles of the image
        geometry = conv((3, 11), 64, 20, (3, 3), pads=1)
        yield Case(geometry, VALUES[seed % len(VALUES)], "odd", zero, out, "packed", 3000 + seed)
    forms = ("packed", "plain", "packed", "channels of a wider image", "odd address")
    ways = itertools.cycle(itertools.product(forms, VALUES))
    zeros = itertools.cycle(itertools.product(("odd", "none"), ("none", "none", "one", "each")))
    outs = itertools.cycle(OUTS)
    for seed, geometry in enumerate([*dense(), *grouped(), *depthwise()]):
        if 0 in geometry.out:
            continue
        (form, values), (x_zero, w_zero) = next(ways), next(zeros)
        yield Case(geometry, values, x_zero, w_zero, next(outs), form, seed)
        if seed % 3 == 0:
            (form, values), (x_zero, w_zero) = next(ways), next(zeros)
            yield Case(geometry, values, x_zero, w_zero, next(outs), form, seed + 1000)


class Operands(NamedTuple):
    x: np.ndarray
    w: np.ndarray
    x_zero: int
    by: Epilogue
    out: np.ndarray


def _image(rng: np.random.Generator, case: Case, dtype: np.dtype) -> np.ndarray:
    shape = (case.conv.batch, *case.conv.size, case.conv.channels)
    x = values(rng, case.values, dtype, shape)
    if case.form == "channels of a wider image":
        wide = np.zeros((*shape[:-1], shape[-1] + 5), dtype)
        wide[..., 2 : 2 + shape[-1]] = x
        return wide[..., 2 : 2 + shape[-1]]
    if case.form == "odd address":
        room = np.zeros(x.size + 1, dtype)
        room[1:] = x.reshape(-1)
        return room[1:].reshape(shape)
    return x


def _epilogue(rng: np.random.Generator, case: Case, w_zero: Any) -> Epilogue:
    n, pixels = case.conv.filters, case.conv.pixels
    by = Epilogue("int32", w_zero=w_zero, bias=rng.integers(-30_000, 30_000, (1, n)).astype(np.int32))
    if case.out == "int32":
        return by._replace(bias=None)
    if case.out == "bias":
        return by
    reach = 100 * case.conv.taps * (case.conv.channels // case.conv.groups)
    if case.out.startswith("float"):
        scales = rng.uniform(0.1, 9, n).astype(np.float32) / np.float32(reach)
        real = rng.normal(size=(1, n)).astype(np.float32) if case.seed % 2 else by.bias
        return by._replace(
            out=case.out, a_scale=np.array([0.7], np.float32), w_scale=scales, bias=real, activation=(0.0, 6.0)
        )
    real = rng.uniform(0.2, 2, (1, n)) / reach
    by = by._replace(out="int8" if case.seed % 2 else "uint8", rounding="half_even", m=real.astype(np.float32), zero=7)
    by = by._replace(limits=(-90, 100) if by.out == "int8" else (7, 255))
    if case.out == "clamped":
        return by
    if case.out == "steep":
        return by._replace(m=(10 ** rng.uniform(-5, 9, (1, n))).astype(np.float32))
    if case.out == "residual":
        codes = rng.integers(-128, 128, (pixels, n)).astype(np.int8)
        return by._replace(residual=codes, residual_scale=0.37, residual_zero=-3)
    if case.out in ("gemmlowp", "ruy", "half_up"):
        q = rng.integers(2**30, 2**31, (1, n)).astype(np.int32)
        e = np.rint(np.log2(real)).astype(np.int32)
        return by._replace(rounding=case.out, m=q, e=e)
    return by._replace(rounding="half_away", m=real) if case.out == "half_away" else by._replace(out=case.out, limits={
        "int8": (-128, 127), "uint8": (0, 255)}[case.out])  # fmt: skip


def operands(case: Case, x_type: np.dtype, w_type: np.dtype) -> Operands:
    rng = np.random.default_rng(case.seed)
    shape = (case.conv.filters, *case.conv.kernel, case.conv.channels // case.conv.groups)
    x, w = _image(rng, case, x_type), values(rng, case.values, w_type, shape)
    ends = np.iinfo(w_type)
    each = rng.integers(ends.min, ends.max + 1, case.conv.filters).astype(np.int32)
    w_zero = {"none": None, "one": np.full_like(each, each[0]), "each": each}[case.w_zero]
    by = _epilogue(rng, case, w_zero)
    x_zero = 0 if case.x_zero == "none" else int(np.iinfo(x_type).max) - 4
    return Operands(x, w, x_zero, by, np.empty((case.conv.pixels, case.conv.filters), container(by.out)))
