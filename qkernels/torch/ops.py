"""torch.ops.qkernels: the operators as torch's dispatcher, `torch.compile` and `torch.export` know them.

Tensors in, tensors out; a graph needs nothing else. They are registered with `torch.library.Library` and not with
`custom_op`, whose wrapper costs a call 7 µs more. There are no gradients. What a weight is to kernels is made at its
first use and found again by the tensor of its codes; writing to it (`copy_`, `load_state_dict`) has it made anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import qkernels
from qkernels import activations
from qkernels.arrays import float_name
from qkernels.dtypes import container
from qkernels.ops.linear import of_static, of_tensors, prepare_static
from qkernels.scales import Grain
from qkernels.tensor import QTensor
from qkernels.torch import weights
from qkernels.torch.weights import Parts

LIBRARY = torch.library.Library("qkernels", "DEF")
DEVICES = ("CPU", "CUDA")
CODES = (torch.int8, torch.uint8)

_WEIGHT = "Tensor x, Tensor weight, Tensor weight_scale, Tensor? weight_zero_point=None, Tensor? weight_factors=None"
_INPUT = "Tensor? x_scale=None, Tensor? x_zero_point=None"
_FINISH = (
    "Tensor? residual=None, Tensor? residual_scale=None, Tensor? residual_zero_point=None, str? activation=None, "
    "float[]? clamp=None, Tensor? out_scale=None, Tensor? out_zero_point=None, str? out_dtype=None"
)
_GRAIN = "str dtype='int8', int? axis=None, int? group_size=None"
SCHEMAS = {
    "matmul": "(Tensor a, Tensor b) -> Tensor",
    "quantize": f"(Tensor x, Tensor scale, Tensor? zero_point=None, *, {_GRAIN}) -> Tensor",
    "dequantize": f"(Tensor codes, Tensor scale, Tensor? zero_point=None, *, {_GRAIN}, str out_dtype='float32') "
    "-> Tensor",
    "lookup": "(Tensor codes, Tensor table) -> Tensor",
    "linear": f"({_WEIGHT}, Tensor? bias=None, *, str dtype='int8', int? group_size=None, {_INPUT}, "
    f"str compute='int8', {_FINISH}) -> Tensor",
    "conv2d": f"({_WEIGHT}, Tensor? bias=None, *, int[] stride, int[] padding, int[] dilation, int groups=1, "
    f"int width=0, str dtype='int8', {_INPUT}, {_FINISH}) -> Tensor",
}

_ONE = np.ones((), np.float32)
_linears, _convs = weights.Memos(weights.pack_linear), weights.Memos(weights.pack_conv)


def number(x: Any, op: str, name: str) -> Any:
    """A scale or a zero point of a whole tensor, from a tensor of one element."""
    if x is None or isinstance(x, int | float):
        return x
    if x.numel() != 1:
        raise ValueError(f"{op}: {name} has shape {tuple(x.shape)}, wanted one number: activations have one scale")
    return x.item()


def as_qtensor(x: Any, scale: Any, zero: Any, op: str, name: str) -> Any:
    """x as an operand: floats as they are where there is no scale, else codes; floats with a scale are quantized, to
    codes of the zero point's type."""
    code_type = "uint8" if getattr(zero, "dtype", None) is torch.uint8 else "int8"
    scale, zero = number(scale, op, f"{name}_scale"), number(zero, op, f"{name}_zero_point")
    if scale is None:
        return x
    if x.dtype not in CODES:
        return qkernels.quantize(x, scale, zero or 0, dtype=code_type)
    if x.device.type != "cpu":
        raise TypeError(f"{op}: {name} are codes on {x.device}, wanted floats there: they are quantized on the way")
    codes = x.detach().numpy()
    empty = QTensor(codes[:0], scale, zero or 0)  # checks them
    return QTensor._of_codes(
        codes, empty._scale, empty._zero, empty.dtype, Grain(codes.shape), "float32", None, "torch"
    )


def result_type(x: Any, out_scale: Any, out_zero: Any, out_dtype: str | None) -> str:
    """The type of a result: what is named, the type of its zero point, or x's own."""
    if out_dtype is not None:
        return out_dtype
    if out_scale is None:
        return float_name(x) if x.is_floating_point() else "float32"
    like = out_zero if getattr(out_zero, "dtype", None) in CODES else x
    return float_name(like) if like.dtype in CODES else "int8"


def _tensor_type(*of: Any) -> Any:
    name = result_type(*of)
    return getattr(torch, container(name).name if "int" in name and name != "int32" else name)


def _finish(
    op: str, x: Any, residual: Any, residual_scale: Any, residual_zero: Any, activation: Any, clamp: Any,
    out_scale: Any, out_zero: Any, out_dtype: Any,
) -> dict[str, Any]:  # fmt: skip
    """The keywords of qkernels.linear and its like."""
    if clamp is not None:
        if activation is not None:
            raise ValueError(f"{op}: activation={activation!r} and clamp={clamp}, wanted one of them")
        activation = tuple(clamp)
    if residual is not None:
        residual = as_qtensor(residual, residual_scale, residual_zero, op, "residual")
    return {
        "activation": activation, "residual": residual, "out_scale": number(out_scale, op, "out_scale"),
        "out_zero_point": number(out_zero, op, "out_zero_point") or 0,
        "out_dtype": result_type(x, out_scale, out_zero, out_dtype),
    }  # fmt: skip


def as_tensor(y: Any) -> Any:
    """A result that nobody else holds: of a QTensor its codes, not copied."""
    if not isinstance(y, QTensor):
        return y
    if not isinstance(y._data, torch.Tensor):
        y._data.flags.writeable = True
        return torch.from_numpy(y._data)
    return y._data


def eager(x: Any) -> bool:
    """May a module compute at once, around the dispatcher? Not where somebody traces or transforms what is called."""
    return (
        type(x) is torch.Tensor
        and not torch._C._len_torch_dispatch_stack()
        and torch._C._functorch.peek_interpreter_stack() is None
        and not torch._C._is_tracing()
    )


# activation → what ops.linear.of_tensors takes. Another clamp is that itself.
_CURVES = {name: 1 + i for i, name in enumerate(activations.CURVES)}
_SHORT: dict[Any, Any] = {None: None, **activations.CLAMPS, **_CURVES}
_NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def short_linear(x: Any, packed: Any, bias: Any, activation: Any, residual: Any, dtype: Any) -> Any:
    """linear(x, …) of float tensors as modules call it all the time; or None, "the long way"."""
    name = _NAMES.get(dtype)
    if packed._handle is None or name is None or x.dtype not in _NAMES:
        return None
    if x.dtype is not torch.float32:
        x = x.float()
    if residual is not None and residual.dtype is not torch.float32:
        residual = residual.float()
    return of_tensors(x, packed._handle, bias, _SHORT.get(activation, activation), residual, name)


def prepared(packed: Any, bias: Any, ranges: tuple[Any, ...], table: Any) -> Any:
    """What `short_static_linear` takes, of an input's and an output's scale and zero point and a table of the output's
    codes; or None, "the long way"."""
    scale, zero, out_scale, out_zero = ranges
    if scale is None:
        return None
    at, to = (number(value, "linear", "zero_point") or 0 for value in (zero, out_zero))
    signed = getattr(zero, "dtype", None) is not torch.uint8
    if out_scale is not None and signed is (getattr(out_zero, "dtype", None) is torch.uint8):
        return None  # codes of the other type
    floats, entries = (None if t is None else t.detach().cpu().numpy() for t in (bias, table))
    by = number(out_scale, "linear", "out_scale")
    return prepare_static(packed, floats, number(scale, "linear", "x_scale"), at, signed, by, to, entries)


def short_static_linear(x: Any, ready: Any, activation: Any, residual: Any, dtype: Any) -> Any:
    """linear(x, …) of codes, or of floats that become codes in one scale, on the CPU; or None, "the long way"."""
    if residual is not None and residual.dtype is not torch.float32:
        residual = residual.float()
    return of_static(x, ready, _SHORT.get(activation, activation), residual, _NAMES.get(dtype))


# ---------------------------------------------------------------- what they compute


def _matmul(a: Any, b: Any) -> Any:
    return qkernels.matmul(a, b)


def _quantize(x: Any, scale: Any, zero_point: Any = None, *, dtype: Any, axis: Any, group_size: Any) -> Any:
    if x.device.type != "cpu":  # scales of a kernel's launch are host values
        scale, zero_point = scale.cpu(), zero_point if zero_point is None else zero_point.cpu()
    q = qkernels.quantize(
        x, scale, 0 if zero_point is None else zero_point, dtype=dtype, axis=axis, group_size=group_size
    )
    return q.codes()


def _dequantize(
    codes: Any, scale: Any, zero_point: Any = None, *, dtype: Any, axis: Any, group_size: Any, out_dtype: Any
) -> Any:
    zero = 0 if zero_point is None else zero_point.cpu()
    q = QTensor(codes.cpu(), scale.cpu(), zero, dtype=dtype, axis=axis, group_size=group_size)
    return q.dequantize(out_dtype).to(codes.device)


def _lookup(codes: Any, table: Any) -> Any:
    """table[code], the lowest code's entry first."""
    x = QTensor._of_codes(
        codes.detach().numpy(), _ONE, 0, float_name(codes), Grain(codes.shape), "float32", None, "torch"
    )
    return as_tensor(qkernels.lookup(x, table.numpy()))


def _linear(
    x: Any, weight: Any, weight_scale: Any, weight_zero_point: Any = None, weight_factors: Any = None, bias: Any = None,
    *, dtype: Any, group_size: Any, x_scale: Any, x_zero_point: Any, compute: Any, **finish: Any,
) -> Any:  # fmt: skip
    packed = _linears.of(Parts(weight, weight_scale, weight_zero_point, weight_factors), x.shape[-1], dtype, group_size)
    if x_scale is None and finish["out_scale"] is None and finish["residual_scale"] is None and compute == "int8":
        clamp, named = finish["clamp"], finish["activation"]
        to = x.dtype if finish["out_dtype"] is None else getattr(torch, finish["out_dtype"])
        if clamp is None or named is None:
            y = short_linear(x, packed, bias, named if clamp is None else tuple(clamp), finish["residual"], to)
            if y is not None:
                return y
    return linear(x, packed, bias, x_scale, x_zero_point, compute, finish)


def linear(x: Any, packed: Any, bias: Any, x_scale: Any, x_zero: Any, compute: Any, finish: dict[str, Any]) -> Any:
    """The same of a packed weight. finish: as the operators' schema names them."""
    wanted = _finish("linear", x, *_in_order(finish))
    a = as_qtensor(x, x_scale, x_zero, "linear", "x")
    return as_tensor(qkernels.linear(a, packed, bias, compute=compute, **wanted))


def _in_order(finish: dict[str, Any]) -> list[Any]:
    names = (
        "residual", "residual_scale", "residual_zero_point", "activation", "clamp", "out_scale", "out_zero_point",
        "out_dtype",
    )  # fmt: skip
    return [finish[name] for name in names]


def _conv2d(
    x: Any, weight: Any, weight_scale: Any, weight_zero_point: Any = None, weight_factors: Any = None, bias: Any = None,
    *, stride: Any, padding: Any, dilation: Any, groups: Any, width: Any, dtype: Any, x_scale: Any, x_zero_point: Any,
    **finish: Any,
) -> Any:  # fmt: skip
    parts = Parts(weight, weight_scale, weight_zero_point, weight_factors)
    packed = _convs.of(parts, width or weight.shape[-1], dtype, groups)
    return conv2d(x, packed, bias, stride, padding, dilation, groups, x_scale, x_zero_point, finish)


def conv2d(
    x: Any, packed: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int, x_scale: Any, x_zero: Any,
    finish: dict[str, Any],
) -> Any:  # fmt: skip
    """The same of a packed weight. x (n, c, h, w): where it is adjacent in torch.channels_last, nothing is copied."""
    wanted = _finish("conv2d", x, *_in_order(finish))
    if x_scale is None and x.is_floating_point():
        q = qkernels.dynamic_quantize(x.permute(0, 2, 3, 1).contiguous(), dtype="uint8", per="tensor")
    else:
        q = as_qtensor(x.permute(0, 2, 3, 1).contiguous(), x_scale, x_zero, "conv2d", "x")
    residual = wanted["residual"]
    if residual is not None:
        wanted["residual"] = _channels_last(residual)
    top, bottom, left, right = padding if len(padding) == 4 else (padding[0], padding[0], padding[1], padding[1])
    y = qkernels.conv2d(
        q, packed, None if bias is None else bias.detach().numpy(), layout="NHWC", stride=tuple(stride),
        padding=((top, bottom), (left, right)), dilation=tuple(dilation), groups=groups, **wanted,
    )  # fmt: skip
    back = as_tensor(y).permute(0, 3, 1, 2)
    return back.contiguous() if x.is_contiguous() else back


def _channels_last(residual: Any) -> Any:
    if not isinstance(residual, QTensor):
        return residual.permute(0, 2, 3, 1)
    codes = residual._data.transpose(0, 2, 3, 1).copy()
    return QTensor._of_codes(
        codes, residual._scale, residual._zero, residual.dtype, Grain(codes.shape), "float32", None, "torch"
    )


# ---------------------------------------------------------------- what they give, without computing it


def _matmul_shape(a: Any, b: Any) -> Any:
    if a.is_floating_point() or b.is_floating_point():
        raise TypeError(f"matmul: a is {a.dtype}, b is {b.dtype}, wanted int8 or uint8")
    return torch.matmul(a.float(), b.float()).to(torch.int32).contiguous()


def _quantize_shape(x: Any, scale: Any, zero_point: Any = None, *, dtype: Any, **grain: Any) -> Any:
    return x.new_empty(x.shape, dtype=getattr(torch, container(dtype).name))


def _dequantize_shape(codes: Any, scale: Any, zero_point: Any = None, *, out_dtype: Any, **grain: Any) -> Any:
    return codes.new_empty(codes.shape, dtype=getattr(torch, out_dtype))


def _lookup_shape(codes: Any, table: Any) -> Any:
    return torch.empty_like(codes, memory_format=torch.contiguous_format)


def _linear_shape(
    x: Any, weight: Any, *parts: Any, out_scale: Any, out_zero_point: Any, out_dtype: Any, **rest: Any
) -> Any:
    dtype = _tensor_type(x, out_scale, out_zero_point, out_dtype)
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=dtype)


def _conv2d_shape(
    x: Any, weight: Any, *parts: Any, stride: Any, padding: Any, dilation: Any, width: Any, out_scale: Any,
    out_zero_point: Any, out_dtype: Any, **rest: Any,
) -> Any:  # fmt: skip
    top, bottom, left, right = padding if len(padding) == 4 else (padding[0], padding[0], padding[1], padding[1])
    kernel = weight.shape[2], width or weight.shape[3]
    sizes = [
        (size + around - step * (taps - 1) - 1) // by + 1
        for size, around, taps, step, by in zip(
            x.shape[2:], (top + bottom, left + right), kernel, dilation, stride, strict=True
        )
    ]
    shape, dtype = (x.shape[0], weight.shape[0], *sizes), _tensor_type(x, out_scale, out_zero_point, out_dtype)
    last = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    return torch.empty(shape, dtype=dtype, device=x.device, memory_format=last)


_RUN: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "matmul": (_matmul, _matmul_shape),
    "quantize": (_quantize, _quantize_shape),
    "dequantize": (_dequantize, _dequantize_shape),
    "linear": (_linear, _linear_shape),
    "lookup": (_lookup, _lookup_shape),
    "conv2d": (_conv2d, _conv2d_shape),
}
FINISH: dict[str, Any] = dict.fromkeys(
    ("residual", "residual_scale", "residual_zero_point", "activation", "clamp", "out_scale", "out_zero_point",
     "out_dtype")
)  # fmt: skip
_OPTIONAL: dict[str, dict[str, Any]] = {
    "quantize": {"dtype": "int8", "axis": None, "group_size": None},
    "linear": {"dtype": "int8", "group_size": None, "x_scale": None, "x_zero_point": None, "compute": "int8", **FINISH},
    "conv2d": {"groups": 1, "width": 0, "dtype": "int8", "x_scale": None, "x_zero_point": None, **FINISH},
}
_OPTIONAL["dequantize"] = {**_OPTIONAL["quantize"], "out_dtype": "float32"}


def _with_defaults(function: Callable[..., Any], defaults: dict[str, Any]) -> Callable[..., Any]:
    """torch leaves out arguments that have their default."""
    if not defaults:
        return function

    def call(*args: Any, **given: Any) -> Any:
        return function(*args, **{**defaults, **given})

    return call


for _name, _schema in SCHEMAS.items():
    _compute, _shape = (_with_defaults(f, _OPTIONAL.get(_name, {})) for f in _RUN[_name])
    LIBRARY.define(_name + _schema)
    for _device in DEVICES:
        LIBRARY.impl(_name, _compute, _device)
    LIBRARY.impl(_name, torch.library.fallthrough_kernel, "Autograd")
    torch.library.register_fake(f"qkernels::{_name}", _shape, lib=LIBRARY)
