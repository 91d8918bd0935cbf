"""What follows the sums of Numba's GPU kernels: an `Epilogue` of arrays there, or what an op tells csrc/cuda's."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from qkernels.activations import CURVES
from qkernels.backends._cuda_elementwise import OUTPUTS
from qkernels.backends._numba_cuda_arrays import (
    _array,
    _bits,
    _blocks,
    _compiled,
    _full,
    _halves,
    _new,
    _stream,
    _zeros,
)
from qkernels.device import DeviceArray
from qkernels.epilogue import Epilogue
from qkernels.kernel import Multipliers
from qkernels.rounding import ROUNDINGS

FLOATS = ("float32", "float16", "bfloat16")
# csrc/cuda/calls.h's Epilogue, as far as ops tell it: where they say nothing.
UNSAID = {
    "bias": 0, "float_bias": 0, "a_scale": 0, "a_scale_step": 0, "w_scale": 0, "w_scale_step": 0, "residual": 0,
    "residual_type": OUTPUTS["float32"], "residual_scale": 1.0, "residual_zero": 0, "curve": 0, "clamps": False,
    "clamp_low": 0.0, "clamp_high": 0.0, "rounding": 0, "m_values": 0, "m_column": 0, "e_values": 0, "y_scale": 1.0,
    "y_zero": 0, "low": 0, "high": 0,
}  # fmt: skip


def grid_of(x: Any) -> tuple[int, int, Any]:
    """A thread an element."""
    from qkernels.backends._numba_cuda import THREADS

    return _blocks(x, THREADS), THREADS, _stream(x)


def flat(x: DeviceArray) -> DeviceArray:
    return x.shaped(x.size)


def requantize(acc: Any, by: Multipliers, limits: tuple[int, int], out: Any) -> None:
    kernels = _compiled()
    e, bias, zero = (_zeros(out, by.m.shape) if v is None else v for v in (by.e, by.bias, by.zero))
    kernels.requantize[_blocks(acc, kernels.THREADS), kernels.THREADS, _stream(out)](
        *map(_array, (acc, by.m, e, bias, zero)),
        by.repeat,
        by.group,
        ROUNDINGS.index(by.rounding),
        *limits,
        _array(out),
    )


def reals(x: Any) -> Any:
    """float32 and float16 as they are, bfloat16 widened."""
    from qkernels.backends import _numba_cuda_weights as kernels

    if str(x.dtype) != "bfloat16":
        return x
    x = x.whole()
    wide = x.new(x.shape, "float32")
    pairs = wide.shaped(x.size, 2)._replace(dtype="uint16")
    kernels.widened[grid_of(x)](_array(flat(x)._replace(dtype="uint16")), _array(pairs))
    return wide


def finish_as_told(acc: DeviceArray, out: DeviceArray, fields: Callable[[Any, int], None]) -> None:
    """acc (m, n) → out; fields(epilogue, 0) fills in csrc/cuda's, with pointers."""
    said = SimpleNamespace(**UNSAID)
    fields(said, 0)
    m, n = out.shape

    def at(pointer: int, dtype: str, *shape: int) -> Any:
        return out._replace(pointer=pointer, dtype=dtype).shaped(*shape) if pointer else None

    ones = out.constant(1, "float32", (n,))
    a_scale = at(said.a_scale, "float32", m if said.a_scale_step else 1) or ones._replace(shape=(1,))
    by = Epilogue(out.dtype, a_scale=a_scale, w_scale=at(said.w_scale, "float32", n) or ones)
    residual_type = next(name for name, number in OUTPUTS.items() if number == said.residual_type)
    by = by._replace(
        residual=at(said.residual, residual_type, m, n),
        residual_scale=said.residual_scale, residual_zero=said.residual_zero,
    )  # fmt: skip
    if out.dtype in FLOATS:
        clamp = (said.clamp_low, said.clamp_high) if said.clamps else None
        by = by._replace(
            bias=at(said.float_bias, "float32", 1, n), activation=CURVES[said.curve - 1] if said.curve else clamp
        )
    elif out.dtype != "int32":
        rounding = ROUNDINGS[said.rounding]
        kind = {"half_even": "float32", "half_away": "float64"}.get(rounding, "int32")
        factors = at(said.m_values, kind, 1, n) or _multipliers(by, said.y_scale, out)
        by = by._replace(
            rounding=rounding, m=factors, e=at(said.e_values, "int32", 1, n), zero=said.y_zero,
            limits=(said.low, said.high),
        )  # fmt: skip
    finish(acc, out, by, at(said.bias, "int32", 1, n))


def _multipliers(by: Epilogue, y_scale: float, out: DeviceArray) -> DeviceArray:
    """A4 of half_even, a row for all or a row each."""
    from qkernels.backends import _numba_cuda_weights as kernels

    factors = out.new((by.a_scale.size, out.shape[1]), "float32")
    kernels.multipliers[grid_of(factors)](*map(_array, (by.a_scale, by.w_scale)), y_scale, _array(factors))
    return factors


def finish(acc: Any, out: Any, by: Epilogue, bias: Any = None) -> None:
    """acc (m, n), int32 or float32 → out. bias: int32, beside by's; acc becomes the sum."""
    from qkernels.backends import _numba_cuda_conv as kernels

    n = out.shape[1]
    float_bias = by.bias is not None and str(by.bias.dtype) == "float32"
    for added in (bias, None if float_bias else by.bias):
        if added is not None:
            kernels.add_bias[grid_of(acc)](_array(acc), _array(added))
    if by.out == "int32":
        return
    coded = by.residual is not None and str(by.residual.dtype) in ("int8", "uint8")
    has = kernels.BIAS * float_bias + kernels.RESIDUAL * (by.residual is not None) + kernels.CODED * coded
    nothing = _zeros(out, (1, n))
    residual = _array(nothing if by.residual is None else reals(by.residual))
    of_residual = residual, has, by.residual_scale, by.residual_zero
    if not by.is_float:
        if by.residual is not None:
            kernels.joined[grid_of(out)](_array(acc), _array(by.m), *of_residual, by.zero, *by.limits, _array(out))
        else:
            zero = _full(out, by.zero, by.m.shape)
            requantize(acc, Multipliers(by.rounding, by.m, by.e, None, zero, 1, 1), by.limits, out)
        return
    act, ends = kernels.NONE, (0.0, 0.0)
    if isinstance(by.activation, str):
        act = kernels.GELU + CURVES.index(by.activation)
    elif by.activation is not None:
        act, ends = kernels.CLAMP, by.activation
    added = _array(by.bias if float_bias else nothing)
    target = _new(out, out.shape, "float32") if by.out == "bfloat16" else out
    kernels.floats[grid_of(out)](
        *map(_array, (acc, by.a_scale, by.w_scale)), added, *of_residual, act, *ends, _array(target)
    )  # fmt: skip
    if by.out == "bfloat16":
        kernels.bfloats[grid_of(out)](_array(_bits(target)), _array(_halves(out)))
