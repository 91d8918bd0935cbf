"""grouped_linear on a GPU: one launch for all experts, whose rows the kernel finds by itself (csrc/cuda/experts.h).

Weights stay packed there as `linear`'s do, those of 8 bits without groups among them. Offsets that lie on the GPU are
never read here: nothing waits, and a call can be captured into a CUDA graph.
"""

from __future__ import annotations

from typing import Any

from qkernels.arrays import as_float32, float_name
from qkernels.device import DeviceArray, is_on_device, same_device, view
from qkernels.dtypes import FLOAT_TYPES, listed
from qkernels.ops import packed_on_device
from qkernels.ops.device_tensor import FLOATS, DeviceQTensor
from qkernels.weight import PackedLinear

OP = "linear"  # grouped_linear puts its own name there


class Call(packed_on_device.Call):
    """grouped_linear(x, weight, offsets, …), checked."""

    def __init__(self, like: packed_on_device.Call, bias: Any, offsets: DeviceArray):
        super().__init__(like.x.owner, like.packed, like.wishes, bias, like.residual, like.compute)
        self.offsets = offsets


def wanted(x: Any) -> bool:
    return is_on_device(x) or isinstance(x, DeviceQTensor)


def check(
    x: Any, packed: PackedLinear, offsets: Any, bias: Any, *, activation: Any = None, residual: Any = None,
    out_scale: Any = None, out_zero_point: Any = 0, out_dtype: Any = None, rounding: Any = "half_even",
    compute: Any = "int8", out: Any = None,
) -> Call:  # fmt: skip
    """offsets: on the device, or checked already."""
    if isinstance(x, DeviceQTensor):
        raise TypeError(f"{OP}: x is a QTensor on a GPU, wanted floats there: {listed(FLOATS)}")
    there = {name: v for name, v in (("offsets", offsets), ("bias", bias)) if v is not None and is_on_device(v)}
    same_device(OP, x=x, **there)
    like = packed_on_device.check(
        x, packed, None, activation, residual, out_scale, out_zero_point, out_dtype, rounding, compute, out
    )
    call = Call(like, _bias(bias, packed.shape[:-1]), _offsets(like.x, offsets, packed.shape[0]))
    packed_on_device.check_result(call)
    return call


run = packed_on_device.run


def _offsets(beside: DeviceArray, offsets: Any, experts: int) -> DeviceArray:
    if not is_on_device(offsets):
        return beside.constant(offsets, "int32", (experts + 1,))
    found = view(offsets, beside)
    if found.dtype not in ("int32", "int64"):
        raise TypeError(f"{OP}: offsets has dtype {found.dtype}, wanted int32 or int64 on a GPU")
    if found.shape != (experts + 1,):
        raise ValueError(f"{OP}: offsets has shape {found.shape}, wanted ({experts + 1},) for {experts} experts")
    return found.converted("int32").whole()


def _bias(bias: Any, shape: tuple[int, ...]) -> Any:
    if bias is None:
        return None
    dtype = view(bias).dtype if is_on_device(bias) else float_name(bias)
    if dtype not in (FLOATS if is_on_device(bias) else FLOAT_TYPES):
        raise TypeError(f"{OP}: bias has dtype {dtype}, wanted {listed(FLOATS)}: a float x has no unit of integers")
    if tuple(bias.shape) != shape:
        raise ValueError(f"{OP}: bias has shape {tuple(bias.shape)}, wanted {shape}")
    return bias if is_on_device(bias) else as_float32(bias, OP, "bias")
