"""The compiled convolutions. Each gemm row of a module is one as well: the same micro-kernel, its A gathered from the
image (csrc/cpu/conv.cpp)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from qkernels.conv_weight import PackedConv, merged, pack_depthwise, pack_matrices
from qkernels.epilogue import Epilogue
from qkernels.kernel import Conv, Hardware, Kernel, Problem
from qkernels.weight import PackedMatrix, padded

GROUPED_ISA, GROUPED_GOPS = "x86_avx512vnni", 400.0  # whose row has kernels for small groups
GATHER_BYTES_US = 8e3  # windows copied side by side in a microsecond


def _is_grouped(conv: Conv) -> bool:
    """Is it for csrc/cpu/grouped.h, if nothing but its shape were asked?"""
    depth, per = conv.channels // conv.groups, conv.filters // conv.groups
    return conv.groups > 1 and depth in (4, 8) and max(16 // per, 1) * depth <= 64 and (16 % per == 0 or per % 16 == 0)


def _judge(row: dict[str, Any], problem: Problem, hardware: Hardware) -> float | str:
    if problem.op != "conv" or problem.types != row["types"] or problem.conv is None:
        return f"is for conv {row['types']}"
    if problem.layout not in ("", "n16k4"):
        return f"reads layout n16k4, not {problem.layout}"
    if row["isa"] not in hardware.cpu:
        return f"this CPU lacks {row['isa']}"
    conv = problem.conv
    if problem.m < row["min_m"]:
        return f"{problem.m} output pixels are fewer than {row['min_m']}"
    if row["isa"] == GROUPED_ISA and _is_grouped(conv):
        return float(row["call_us"] + 2e-3 * problem.m * conv.filters * problem.k / GROUPED_GOPS)
    matrices = conv.groups // merged(conv.groups, conv.filters)
    k = conv.taps * (conv.channels // matrices)
    m = padded(problem.m, row["mr"]) if problem.m > row["mr"] else problem.m
    macs = m * padded(conv.filters // matrices, row["nr"]) * padded(k, row["k_step"])
    copies = problem.m * k / GATHER_BYTES_US if conv.taps > 1 else 0.0
    return float(row["call_us"] + matrices * (2e-3 * macs / row["gops"] + copies))


def _run(
    module: Any,
    pack: Callable[[np.ndarray], PackedMatrix],
    threads: int,
    index: int,
    x: np.ndarray,
    w: Any,
    conv: Conv,
    out: np.ndarray,
    x_zero: int,
    by: Epilogue,
) -> None:
    if isinstance(w, PackedConv) and not w.fits(by.w_zero):
        w = w.unpack_nhwc()
    if not isinstance(w, PackedConv):
        w = pack_matrices(w, conv.groups, by.w_zero, pack)
    matrices = conv.groups // merged(conv.groups, conv.filters)
    signed = w.dtype.kind == "i"
    module.conv(index, x, w._data, w._sums, matrices, signed, tuple(conv), out, x_zero, by, threads)


def _judge_depthwise(row: dict[str, Any], problem: Problem, hardware: Hardware) -> float | str:
    if problem.op != "conv" or problem.types != row["types"] or problem.conv is None:
        return f"is for conv {row['types']}"
    conv = problem.conv
    if not conv.depthwise or conv.kernel[0] > 1 or conv.size[0] > 1 or conv.out[0] > 1 or conv.before[0]:
        return "is for depthwise convolutions of flat images: one filter a channel"
    if problem.layout not in ("", "c4t4"):
        return f"reads layout c4t4, not {problem.layout}"
    if row["isa"] not in hardware.cpu:
        return f"this CPU lacks {row['isa']}"
    return float(0.5 + 2e-3 * problem.m * padded(conv.channels, 16) * problem.k / row["gops"])


def _run_depthwise(
    module: Any, threads: int, index: int, x: np.ndarray, w: Any, conv: Conv, out: np.ndarray, x_zero: int,
    by: Epilogue,
) -> None:  # fmt: skip
    if not isinstance(w, PackedConv):
        w = pack_depthwise(w, conv.groups)
    if x.strides[3] != conv.channels:
        x = np.ascontiguousarray(x)
    signed = w.dtype.kind == "i"
    module.depthwise(index, x, w._data, w._sums, signed, tuple(conv), out, x_zero, by, threads)


def _ready(
    module: Any, depthwise: bool, index: int, x: np.ndarray, w: PackedConv, conv: Conv, out: np.ndarray, x_zero: int,
    by: Epilogue,
) -> Callable[..., None] | None:  # fmt: skip
    """`run` of which only x, out and the residual's codes are left open: C contiguous, of these sizes. None where that
    cannot be."""
    if (by.residual is not None and by.residual.itemsize > 1) or not w.fits(by.w_zero):
        return None
    matrices = conv.groups // merged(conv.groups, conv.filters)
    signed = w.dtype.kind == "i"
    found = module.conv_ready(depthwise, index, x, w._data, w._sums, matrices, signed, tuple(conv), out, x_zero, by)
    return functools.partial(module.conv_again, found)


def _runs(run: Any, ready: Any) -> Any:
    """`Kernel.run` with its short way."""
    run.ready = ready
    return run


def kernels_of(module: Any, pack: Callable[[np.ndarray], PackedMatrix], threads: int = 0) -> tuple[Kernel, ...]:
    """The convolutions of a compiled module. threads 0: as many as set and worth waking; else exactly so many."""
    products = (
        Kernel(
            row["name"].replace("gemm", "conv", 1), "conv", row["types"], row["isa"], "n16k4",
            functools.partial(_judge, row),
            _runs(
                functools.partial(_run, module, pack, threads, index), functools.partial(_ready, module, False, index)
            ),
        )
        for index, row in enumerate(module.rows())
    )  # fmt: skip
    depthwise = (
        Kernel(
            row["name"], "conv", row["types"], row["isa"], "c4t4",
            functools.partial(_judge_depthwise, row),
            _runs(
                functools.partial(_run_depthwise, module, threads, index),
                functools.partial(_ready, module, True, index),
            ),
        )
        for index, row in enumerate(module.depthwise_rows())
    )  # fmt: skip
    return (*products, *depthwise)
