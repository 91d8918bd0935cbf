"""GPU kernels in Numba: a fallback for machines without nvcc, where `_cuda` could not be built.

One element a thread, or a 16 × 16 tile a block: exact, and slow beside csrc/cuda (no tensor cores).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qkernels.backends import _numba_cuda_conv_rows, _numba_cuda_weight_rows
from qkernels.backends._numba_cuda_arrays import TYPES, _array, _blocks, _compiled, _kernel, _stream, _zeros
from qkernels.backends._numba_cuda_arrays import missing as missing
from qkernels.backends._numba_cuda_epilogue import requantize as _requantize
from qkernels.kernel import Kernel, Scales

run_pointwise = _numba_cuda_conv_rows.run_pointwise


def _gemm(a: Any, w: Any, out: Any, a_zero: Any, w_zero: Any) -> None:
    kernels = _compiled()
    batch, m, n = out.shape
    a_zero = _zeros(out, (batch, m)) if a_zero is None else a_zero
    w_zero = _zeros(out, (batch, n)) if w_zero is None else w_zero
    tile = kernels.TILE
    grid = (-(-m // tile), -(-n // tile), batch)
    kernels.gemm[grid, (tile, tile), _stream(out)](*map(_array, (a, w, out, a_zero, w_zero)))


def _quantize(x: Any, by: Scales, limits: tuple[int, int], out: Any) -> None:
    kernels = _compiled()
    zero = _zeros(out, by.scale.shape) if by.zero is None else by.zero
    kernels.quantize[_blocks(x, kernels.THREADS), kernels.THREADS, _stream(out)](
        _array(x), _array(by.scale), _array(zero), by.repeat, by.group, *limits, _array(out)
    )


def _dequantize(q: Any, by: Scales, out: Any) -> None:
    from qkernels.backends import _numba_cuda_ranges as kernels

    zero = _zeros(out, by.scale.shape) if by.zero is None else by.zero
    kernels.dequantize[_blocks(q, kernels.THREADS), kernels.THREADS, _stream(out)](
        _array(q), _array(by.scale), _array(zero), by.repeat, by.group, _array(out)
    )


def _dynamic(x: Any, group: int, limits: tuple[int, int], scale: Any, zero: Any, sums: Any, out: Any) -> None:
    from qkernels.backends import _numba_cuda_ranges as kernels

    zero, sums = (_zeros(out, scale.shape) if v is None else v for v in (zero, sums))
    kernels.dynamic[scale.shape[0] * scale.shape[1], kernels.THREADS, _stream(out)](
        _array(x), group, *limits, *map(_array, (scale, zero, sums, out))
    )


def _pairs(ends: Any) -> Any:
    """8 bytes a place as two float32."""
    shape = (*ends.shape, 2)
    return ends.view(np.float32).reshape(shape) if isinstance(ends, np.ndarray) else ends.shaped(*shape)._replace(
        dtype="float32"
    )  # fmt: skip


def _flat(x: Any) -> Any:
    return x.reshape(-1) if isinstance(x, np.ndarray) else x.shaped(x.size)


def find_extremes(x: Any, ends: Any, repeat: int, group: int) -> None:
    """As backends.cuda's, of float32."""
    from qkernels.backends import _numba_cuda_ranges as kernels

    if str(x.dtype) != "float32":
        raise TypeError(f"quantize: x is {x.dtype} on a GPU, wanted float32: Numba's kernels find no other range")
    grid = kernels.THREADS, _stream(x)
    kernels.clear[_blocks(ends, kernels.THREADS), *grid](_array(_pairs(_flat(ends))))
    kernels.extremes[_blocks(x, kernels.THREADS), *grid](_array(x), repeat, group, _array(_pairs(ends)))


def scales_of_extremes(
    ends: Any, limits: tuple[int, int], middle: int | None, scale_dtype: str, found: Any, *groups: int
) -> None:
    """As backends.cuda's, of float32 scales of one level."""
    from qkernels.backends import _numba_cuda_ranges as kernels

    if scale_dtype != "float32" or found.factors is not None:
        raise ValueError(
            "quantize: scale_dtype and two_level on a GPU need csrc/cuda: Numba's kernels do not know them"
        )
    kernels.found[_blocks(found.scale, kernels.THREADS), kernels.THREADS, _stream(found.scale)](
        _array(_pairs(_flat(ends))), *limits, middle is not None, middle or 0, _array(_flat(found.scale)),
        _array(_flat(found.zero)),
    )  # fmt: skip


KERNELS: tuple[Kernel, ...] = (
    *(_kernel("gemm", types, "nk16", _gemm) for types in TYPES),
    *_numba_cuda_conv_rows.KERNELS,
    *_numba_cuda_weight_rows.KERNELS,
    *(_kernel("quantize", f"f32{code}", "", _quantize) for code in ("s8", "u8")),
    *(_kernel("requantize", f"s32{code}", "", _requantize) for code in ("s8", "u8")),
    *(_kernel("dequantize", f"{code}f32", "", _dequantize) for code in ("s8", "u8")),
    *(_kernel("dynamic_quantize", f"f32{code}", "", _dynamic) for code in ("s8", "u8")),
)
