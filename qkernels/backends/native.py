"""The compiled kernels: each row of `_native` becomes a Kernel. Without the module, none; `MISSING` says why."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from qkernels.backends import _native_conv
from qkernels.epilogue import Epilogue
from qkernels.kernel import Hardware, Kernel, Problem
from qkernels.weight import K_PAD, N_PANEL, PackedLinear, PackedMatrix, padded

try:
    import qkernels._native as _native

    MISSING = ""
except ImportError as error:
    _native = None  # type: ignore[assignment]
    MISSING = f"not built, or it does not load ({error}); NumPy and Numba kernels stand in"

MAX_DIMS = 18  # of one crossing into C++
PACK_BYTES_US = 2e4  # plain weights packed in a microsecond: what an unpacked product pays on top

QUANTIZED_US = 3e3  # float activations quantized in a microsecond


def _judge(row: dict[str, Any], problem: Problem, hardware: Hardware) -> float | str:
    if problem.op != "gemm" or problem.types != row["types"]:
        return f"is for gemm {row['types']}"
    if problem.layout not in ("", "n16k4"):
        return f"reads layout n16k4, not {problem.layout}"
    if row["isa"] not in hardware.cpu:
        return f"this CPU lacks {row['isa']}"
    if problem.m < row["min_m"]:
        return f"m={problem.m} is below {row['min_m']}"
    m = padded(problem.m, row["mr"]) if problem.m > row["mr"] else problem.m
    macs = m * padded(problem.n, row["nr"]) * padded(problem.k, row["k_step"])
    packing = 0.0 if problem.layout else problem.n * problem.k / PACK_BYTES_US
    return float(row["call_us"] + 2e-3 * macs / row["gops"] + packing)


def pack(b: np.ndarray) -> PackedMatrix:
    k, n = b.shape
    size = padded(n, N_PANEL) * padded(k, K_PAD)
    room = np.empty(size + 63, np.uint8)
    data = room[-room.ctypes.data % 64 :][:size]
    sums = np.empty(padded(n, N_PANEL), np.int32)
    _native.pack(b, data, sums)
    return PackedMatrix(data, sums, (k, n), b.dtype)


def handle(packed: PackedMatrix) -> object:
    """What C++ takes for a packed matrix; made once, its buffers are the matrix's own."""
    if packed._handle is None:
        k, n = packed.shape
        packed._handle = _native.packed(packed._data, packed._sums, k, n, packed.dtype.kind == "i")
    return packed._handle


def _run(
    module: Any,
    threads: int,
    index: int,
    a: np.ndarray,
    b: Any,
    out: np.ndarray,
    a_zero: Any = None,
    b_zero: Any = None,
) -> None:
    if out.ndim > MAX_DIMS:
        for i in range(len(out)):
            zeros = (zero if zero is None else zero[i] for zero in (a_zero, b_zero))
            _run(module, threads, index, a[i], b if isinstance(b, PackedMatrix) else b[i], out[i], *zeros)
        return
    weights = handle(b) if isinstance(b, PackedMatrix) else b
    if (out.strides[-1] == 4 or out.shape[-1] == 1) and out.strides[-2] % 4 == 0 and out.flags.aligned:
        module.gemm(index, a, weights, out, a_zero, b_zero, threads)
    else:
        whole = np.empty(out.shape, np.int32)
        module.gemm(index, a, weights, whole, a_zero, b_zero, threads)
        out[...] = whole


def linear_handle(packed: PackedLinear) -> object:
    """What the short way in takes for a weight of one matrix; made once, its buffers are the weight's own."""
    if packed._handle is None:
        part, columns = packed.parts[0], packed.columns()
        k, n = part.shape
        packed._handle = _native.packed_linear(
            part._data, part._sums, columns.scale, columns.zero, k, n, part.dtype.kind == "i"
        )
    return packed._handle


def _run_linear(
    module: Any, threads: int, index: int, a: np.ndarray, w: PackedMatrix, out: np.ndarray, epilogue: Epilogue
) -> None:
    module.linear(index, a, handle(w), out, epilogue, threads)


def _judge_linear(row: dict[str, Any], types: str, problem: Problem, hardware: Hardware) -> float | str:
    """The product's cost, what its results cost beyond that, and of float activations their quantization."""
    if problem.op != "linear" or problem.types != types:
        return f"is for linear {types}"
    product = _judge(row, problem._replace(op="gemm", types=row["types"]), hardware)
    if isinstance(product, str):
        return product
    return product + (problem.m * problem.k / QUANTIZED_US if types.startswith("f32") else 0.0)


def _linear_kernels(module: Any, threads: int, index: int, row: dict[str, Any]) -> Iterator[Kernel]:
    """A row multiplies for op "linear" as well; one of signed activations takes floats, which become signed codes."""
    of_floats = (f"f32{row['types'][2:]}",) if row["types"].startswith("s8") else ()
    for types in (row["types"], *of_floats):
        yield Kernel(
            row["name"].replace(f"gemm_{row['types']}", f"linear_{types}"), "linear", types, row["isa"], "n16k4",
            functools.partial(_judge_linear, row, types), functools.partial(_run_linear, module, threads, index), pack,
        )  # fmt: skip


def conv_kernels_of(module: Any, threads: int = 0) -> tuple[Kernel, ...]:
    """The convolutions of a compiled module. threads as of `kernels_of`."""
    return _native_conv.kernels_of(module, pack, threads)


def kernels_of(module: Any, threads: int = 0) -> tuple[Kernel, ...]:
    """The rows of a compiled module. threads 0: as many as set and worth waking; else exactly so many."""
    rows = list(enumerate(module.rows()))
    products = (
        Kernel(
            row["name"],
            "gemm",
            row["types"],
            row["isa"],
            "n16k4",
            functools.partial(_judge, row),
            functools.partial(_run, module, threads, index),
            pack,
        )
        for index, row in rows
    )
    return (*products, *(kernel for index, row in rows for kernel in _linear_kernels(module, threads, index, row)))


ROWS: list[dict[str, Any]] = _native.rows() if _native else []
GEMM = kernels_of(_native) if _native else ()
KERNELS = (*GEMM, *conv_kernels_of(_native)) if _native else ()
DEPTHWISE_ROWS: list[dict[str, Any]] = _native.depthwise_rows() if _native else []
INDEX = {row["name"]: index for index, row in enumerate(ROWS)}
