"""GPU rows of convolutions (csrc/cuda/conv_rows.h): images (batch, height, width, channels) of bytes, adjacent."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from qkernels.backends import _cuda_tiles
from qkernels.device import DeviceArray
from qkernels.kernel import Conv, Hardware, Kernel, Problem
from qkernels.weight import padded

TYPES = ("u8s8s32", "s8s8s32", "u8u8s32", "s8u8s32")
LAYOUT = "nk16"


class Row(NamedTuple):
    """One line of csrc/cuda/conv_rows.h; a test compares them. rate: products a clock of one SM."""

    tile: str
    isa: str
    kind: str
    first: int
    last: int
    rate: float


ROWS = (
    Row("128x128x16", "cuda_sm80", "chunks", 80, 999, 1200.0),
    Row("128x64x16", "cuda_sm80", "chunks", 80, 999, 1000.0),
    Row("128x64x1", "cuda_sm80", "bytes", 80, 999, 150.0),
    Row("1x4", "cuda_dp4a", "depthwise", 75, 999, 50.0),
)


class Filters(NamedTuple):
    """Weights on a GPU as a row reads them, and 16 bytes of the images' zero point."""

    codes: DeviceArray
    pitch: int
    pad: DeviceArray


def arranged(w: np.ndarray, depthwise: bool) -> tuple[np.ndarray, int]:
    """(filters, height, width, channels of a group) of bytes → (what `Filters.codes` shall be, pitch of a filter).

    A matrix: layout `nk16`, k over taps and channels. Depthwise, `c4t4` of one row: [kw][⌈kh/4⌉][channels][4]."""
    filters, height, width, depth = w.shape
    if not depthwise:
        k = height * width * depth
        full = np.zeros((filters, padded(k, 16)), w.dtype)
        full[:, :k] = w.reshape(filters, k)
        return full, full.shape[1]
    whole = np.zeros((padded(height, 4), width, padded(filters, 4)), w.dtype)
    whole[:height, :, :filters] = w[..., 0].transpose(1, 2, 0)
    fours = whole.reshape(-1, 4, width, whole.shape[2])
    return np.ascontiguousarray(fours.transpose(2, 0, 3, 1)), 0


def _judge(declines: Callable[..., str], row: Row, problem: Problem, hardware: Hardware) -> float | str:
    """Microseconds: rounds of tiles, or the bytes of image and result."""
    reason = declines("conv", problem, hardware, row.first, row.last)
    if reason:
        return reason
    conv = problem.conv
    if conv is None or conv.kernel[0] > 1 or conv.size[0] > 1 or conv.before[0] or conv.out[0] > 1:
        return "is for one and two axes"
    depth, filters = conv.channels // conv.groups, conv.filters // conv.groups
    if (row.kind == "depthwise") != conv.depthwise:
        return "is for depthwise convolutions" if row.kind == "depthwise" else "is not for depthwise convolutions"
    if row.kind == "chunks" and depth % 16:
        return f"{depth} channels of a group, wanted a multiple of 16"
    rows, columns = (int(size) for size in row.tile.split("x")[:2])
    gpu = _cuda_tiles.of(hardware.gpu)
    rounds = -(-conv.pixels // rows) * -(-filters // columns) * conv.groups / gpu.sms
    macs = conv.pixels * conv.filters * conv.taps / gpu.sms if conv.depthwise else rounds * rows * columns * problem.k
    read = conv.batch * conv.size[1] * conv.size[2] * conv.channels + conv.pixels * conv.filters
    return gpu.launch_us + max(macs / (gpu.rate("conv", row) * gpu.clock), read / gpu.bytes_us)


def _run(
    module: Callable[[], Any], types: dict[str, int], index: int, x: DeviceArray, w: Filters, conv: Conv,
    out: DeviceArray, fields: Callable[[Any, int], None],
) -> None:  # fmt: skip
    """out (pixels, filters), adjacent = the epilogue of the convolution; fields(epilogue, 0) tells it the rest."""
    call, image, epilogue = module().Conv(), module().Image(), module().Epilogue()
    image.batch, image.channels, image.filters, image.groups = conv.batch, conv.channels, conv.filters, conv.groups
    for name, value in (
        ("kernel", conv.kernel), ("stride", conv.stride), ("dilation", conv.dilation), ("before", conv.before),
        ("out", conv.out),
    ):  # fmt: skip
        setattr(image, f"{name}_h", value[1])
        setattr(image, f"{name}_w", value[2])
    image.height, image.width = conv.size[1:]
    call.x, call.w, call.w_pitch, call.pad = x.pointer, w.codes.pointer, w.pitch, w.pad.pointer
    call.x_signed, call.w_signed = x.dtype == "int8", w.codes.dtype == "int8"
    epilogue.m, epilogue.n, epilogue.k = conv.pixels, conv.filters, conv.taps * (conv.channels // conv.groups)
    epilogue.output, epilogue.out, epilogue.out_row = types[out.dtype], out.pointer, conv.filters
    fields(epilogue, 0)
    call.image, call.epilogue = image, epilogue
    module().conv(index, call, out.stream, out.device)


def kernels_of(module: Callable[[], Any], declines: Callable[..., str], numbers: dict[str, int]) -> tuple[Kernel, ...]:
    return tuple(
        Kernel(
            f"conv_{types}_{row.tile}_{row.isa}", "conv", types, row.isa, LAYOUT,
            functools.partial(_judge, declines, row), functools.partial(_run, module, numbers, index),
        )
        for index, row in enumerate(ROWS)
        for types in TYPES
    )  # fmt: skip
