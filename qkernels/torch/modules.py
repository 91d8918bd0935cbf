"""QLinear, QEmbedding: layers whose weights are codes with scales, kept as buffers. QLookup: functions of codes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

import qkernels
from qkernels.activations import check_activation
from qkernels.dtypes import CODE_TYPES, SCALE_TYPES, container, known, limits, name_of
from qkernels.scales import grain_of
from qkernels.tensor import QTensor
from qkernels.torch import ops, weights
from qkernels.torch.weights import Memo, Parts

# Buffers that need not be there. A state dict that has one brings it along.
RANGES = "input_scale", "input_zero_point", "output_scale", "output_zero_point"
OPTIONAL = ("weight_zero_point", "weight_factors", "bias", *RANGES)


class QWeight(torch.nn.Module):  # type: ignore[misc]
    """What quantized layers share: a weight as buffers, and what kernels read, made from it when it is first needed.

    weight               int8 or uint8 codes; of 4- and 2-bit types packed along the last axis, low bits first, uint8
    weight_scale         (), (n,), or (n, groups): float32, float16 or bfloat16
    weight_zero_point    integers of the scale's shape or (), weight_factors uint8 of it: None where there are none
    bias                 (n,) float32, or None
    input_scale, input_zero_point, output_scale, output_zero_point   of codes as input and output, () tensors, or None

    A cast (`model.half()`, `.to(torch.bfloat16)`) leaves all of them as they are: it says what activations shall be.
    """

    optional: tuple[str, ...] = OPTIONAL

    def __init__(self, shape: tuple[int, ...], dtype: Any, group_size: int | None, scale_dtype: Any, device: Any):
        super().__init__()
        self.weight_shape, self.dtype = tuple(shape), known(dtype, CODE_TYPES, type(self).__name__)
        self.group_size = group_size
        stored = known(scale_dtype, SCALE_TYPES, type(self).__name__, "scale_dtype")
        grain = grain_of(self.weight_shape, 0, group_size, -1, type(self).__name__)
        packed = weights.data_shape(self.weight_shape, self.dtype)
        kind = torch.uint8 if packed != self.weight_shape else getattr(torch, container(self.dtype).name)
        self.register_buffer("weight", torch.zeros(packed, dtype=kind, device=device))
        scale = torch.ones(grain.scale_shape, dtype=getattr(torch, stored), device=device)
        self.register_buffer("weight_scale", scale)
        for name in self.optional:
            self.register_buffer(name, None)
        self._memo = Memo()

    def _take(self, q: QTensor, bias: Any) -> None:
        parts = weights.parts_of(q)
        self.weight, self.weight_scale, self.weight_zero_point, self.weight_factors = parts
        self.bias = None if bias is None else bias.detach().to(torch.float32, copy=True)

    def _parts(self) -> Parts:
        kept = self._buffers  # attributes of a module take five times as long
        return Parts(kept["weight"], kept["weight_scale"], kept["weight_zero_point"], kept["weight_factors"])

    def qtensor(self) -> QTensor:
        """The weight as a QTensor, a copy."""
        return weights.qtensor_of(self._parts(), self.weight_shape, self.dtype, self.group_size)

    def dequantize(self, dtype: Any = torch.float32) -> Any:
        """The weight as floats, a new tensor."""
        values = torch.from_numpy(self.qtensor().dequantize("float32"))
        return values.to(device=self.weight.device, dtype=dtype)

    def set_ranges(
        self, input_scale: Any = None, input_zero_point: Any = None, output_scale: Any = None,
        output_zero_point: Any = None,
    ) -> None:  # fmt: skip
        """Static scales and zero points of what comes in and goes out; the type of a zero point (int8, uint8) is that
        of the codes."""
        for name, value in {
            "input_scale": input_scale, "input_zero_point": input_zero_point, "output_scale": output_scale,
            "output_zero_point": output_zero_point,
        }.items():  # fmt: skip
            if value is not None and name.endswith("scale"):
                value = torch.as_tensor(value, dtype=torch.float32).reshape(()).clone()
            elif value is not None:
                value = torch.as_tensor(value).reshape(()).clone()
            setattr(self, name, value)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for name in self.optional:
            given, mine = state_dict.get(prefix + name), self._buffers[name]
            if given is not None and (mine is None or mine.shape != given.shape):
                self._buffers[name] = torch.empty_like(given, device=self.weight.device)
            elif given is None:
                self._buffers[name] = None
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _finish(self) -> dict[str, Any]:
        """What the operators take beside a weight and an input."""
        wanted: dict[str, Any] = {"activation": None, "clamp": None}
        if isinstance(self.activation, str):
            wanted["activation"] = self.activation
        elif self.activation is not None:
            wanted["clamp"] = list(self.activation)
        return {**wanted, "out_scale": self.output_scale, "out_zero_point": self.output_zero_point}

    def _described(self) -> str:
        said = [f"dtype={self.dtype}"]
        said += [f"group_size={self.group_size}"] if self.group_size else []
        said += [f"activation={self.activation!r}"] if getattr(self, "activation", None) else []
        said += ["static input"] if self.input_scale is not None else []
        said += ["codes out"] if self.output_scale is not None else []
        said += ["through a table"] if getattr(self, "table", None) is not None else []
        return ", ".join(said)


class _Ready(NamedTuple):
    """A layer's buffers as kernels take them."""

    packed: Any
    static: Any  # ops.prepared, or None


class QLinear(QWeight):
    """torch.nn.Linear on integer kernels: y = activation(x · weightᵀ + bias)                 arithmetic.md A4 … A11

    x           (…, in_features) float32, float16 or bfloat16: quantized row by row on the way (A8), or, where there is
                an input_scale, with that; then int8 and uint8 codes are taken as well. CPU, or CUDA
    dtype       of the weight: "int8" "uint8" "int4" "uint4" "int2" "uint2", a scale for each output
    group_size  scales also change every group_size along in_features
    activation  as of `qkernels.linear`
    compute     "int8": exact integers. "float32", "bfloat16": x stays as it is, for weights in 4 bits (A11)
    out_dtype   torch.float32, float16 or bfloat16; None: x's type, float32 of codes. With an output_scale the result is
                codes; `then` sends them through a table

    There is no gradient.
    """

    optional = (*OPTIONAL, "table")

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, dtype: Any = "int8",
        group_size: int | None = None, scale_dtype: Any = "float32", activation: Any = None, compute: str = "int8",
        out_dtype: Any = None, device: Any = None,
    ) -> None:  # fmt: skip
        super().__init__((out_features, in_features), dtype, group_size, scale_dtype, device)
        self.in_features, self.out_features = in_features, out_features
        self.activation, self.compute, self.out_dtype = check_activation(activation, "QLinear"), compute, out_dtype
        if bias:
            self.bias = torch.zeros(out_features, dtype=torch.float32, device=device)

    @classmethod
    def from_qtensor(
        cls, q: QTensor, bias: Any = None, *, activation: Any = None, compute: str = "int8", out_dtype: Any = None
    ) -> QLinear:
        """Of a weight (n, k) that is quantized already."""
        n, k = q.shape
        made = cls(
            k, n, False, dtype=q.dtype, group_size=q.group_size, activation=activation, compute=compute,
            out_dtype=out_dtype, device="meta",
        )  # fmt: skip
        made._take(q, bias)
        return made

    @classmethod
    def from_float(
        cls, module: Any, *, dtype: Any = "int8", group_size: int | None = None, scale_dtype: Any = "float32",
        symmetric: bool = True, two_level: bool = False, activation: Any = None, compute: str = "int8",
        out_dtype: Any = None,
    ) -> QLinear:  # fmt: skip
        """Of a torch.nn.Linear, its weight rounded to the nearest code (A7)."""
        q = qkernels.quantize(
            module.weight.detach().cpu(), dtype=dtype, axis=0, group_size=group_size, symmetric=symmetric,
            scale_dtype=scale_dtype, two_level=two_level,
        )  # fmt: skip
        made = cls.from_qtensor(q, module.bias, activation=activation, compute=compute, out_dtype=out_dtype)
        return made.to(module.weight.device).train(module.training)

    def then(self, function: Any, out_scale: Any = None, out_zero_point: Any = 0) -> QLinear:
        """function(y) of the codes y, as `qkernels.lookup` takes it; None: none any more. Where scale and zero point
        are not given they are y's own.

        Raises  ValueError no output range (`set_ranges`) · and what `qkernels.lookup` raises.
        """
        if function is None:
            self.table = None
            return self
        if self.output_scale is None:
            raise ValueError("QLinear.then: the layer has no output range: a table is of codes; call set_ranges first")
        zero = self.output_zero_point
        dtype = "uint8" if getattr(zero, "dtype", None) is torch.uint8 else "int8"
        scale, point = self.output_scale.item(), 0 if zero is None else int(zero.item())
        to = (scale, point) if out_scale is None else (out_scale, out_zero_point)
        self.table = _table(function, scale, point, to[0], to[1], dtype).to(self.weight.device)
        return self

    def forward(self, x: Any, residual: Any = None) -> Any:
        """residual: of the result's shape, floats, added before the activation."""
        if torch.compiler.is_compiling() or not ops.eager(x):
            return self._operator(x, residual)
        buffers = self._buffers  # attributes of a module take five times as long
        ready = self._memo.of(tuple(buffers.values()), self._ready)
        if self.compute == "int8":
            if ready.static is not None:
                to = self.out_dtype or (x.dtype if x.is_floating_point() else torch.float32)
                y = ops.short_static_linear(x, ready.static, self.activation, residual, to)
            elif buffers["input_scale"] is None and buffers["output_scale"] is None:
                to = self.out_dtype or x.dtype
                y = ops.short_linear(x, ready.packed, buffers["bias"], self.activation, residual, to)
            else:
                y = None
            if y is not None:
                return y
        finish = {**ops.FINISH, **self._finish(), "residual": residual, "out_dtype": self._out_name()}
        y = ops.linear(x, ready.packed, self.bias, self.input_scale, self.input_zero_point, self.compute, finish)
        return y if self.table is None else torch.ops.qkernels.lookup(y, self.table)

    def _ready(self, *_: Any) -> _Ready:
        packed = weights.pack_linear(*self._parts(), self.in_features, self.dtype, self.group_size)
        ranges = tuple(self._buffers[name] for name in RANGES)
        return _Ready(packed, ops.prepared(packed, self.bias, ranges, self.table))

    def _operator(self, x: Any, residual: Any) -> Any:
        y = torch.ops.qkernels.linear(
            x, *self._parts(), self.bias, dtype=self.dtype, group_size=self.group_size, x_scale=self.input_scale,
            x_zero_point=self.input_zero_point, compute=self.compute, residual=residual, out_dtype=self._out_name(),
            **self._finish(),
        )  # fmt: skip
        return y if self.table is None else torch.ops.qkernels.lookup(y, self.table)

    def _out_name(self) -> str | None:
        return None if self.out_dtype is None else name_of(self.out_dtype)

    def extra_repr(self) -> str:
        bias = self.bias is not None
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}, {self._described()}"


class QEmbedding(QWeight):
    """torch.nn.Embedding with its rows as codes: a row is dequantized when it is looked up             arithmetic.md A9

    indices (…,) integers → (…, embedding_dim) of out_dtype
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, *, dtype: Any = "int8", group_size: int | None = None,
        scale_dtype: Any = "float32", out_dtype: Any = torch.float32, device: Any = None,
    ) -> None:  # fmt: skip
        super().__init__((num_embeddings, embedding_dim), dtype, group_size, scale_dtype, device)
        self.num_embeddings, self.embedding_dim, self.out_dtype = num_embeddings, embedding_dim, out_dtype

    @classmethod
    def from_qtensor(cls, q: QTensor, *, out_dtype: Any = torch.float32) -> QEmbedding:
        """Of a table (rows, dim) that is quantized already, a scale a row or a group."""
        made = cls(*q.shape, dtype=q.dtype, group_size=q.group_size, out_dtype=out_dtype, device="meta")
        made._take(q, None)
        return made

    @classmethod
    def from_float(
        cls, module: Any, *, dtype: Any = "int8", group_size: int | None = None, scale_dtype: Any = "float32",
        symmetric: bool = True,
    ) -> QEmbedding:  # fmt: skip
        """Of a torch.nn.Embedding."""
        table = module.weight.detach().cpu()
        q = qkernels.quantize(
            table, dtype=dtype, axis=0, group_size=group_size, scale_dtype=scale_dtype, symmetric=symmetric
        )
        made = cls.from_qtensor(q, out_dtype=module.weight.dtype)
        return made.to(module.weight.device).train(module.training)

    def forward(self, indices: Any) -> Any:
        rows = torch.nn.functional.embedding(indices, self.weight)  # indexing takes four times as long
        codes = _unpacked(rows, self.embedding_dim, self.dtype)
        if self.weight_zero_point is not None:
            zero = self._of_rows(self.weight_zero_point, indices)
            codes = codes.to(torch.int32) - zero.to(torch.int32)
        values = codes.to(torch.float32) * self._of_rows(self.weight_scale, indices).to(torch.float32)
        return values.to(self.out_dtype)

    def _of_rows(self, values: Any, indices: Any) -> Any:
        """Scales or zero points of the rows, to broadcast against them."""
        if values.ndim == 0:
            return values
        if values.ndim == 1:
            return values[indices].unsqueeze(-1)
        spread = values[indices].repeat_interleave(self.group_size, dim=-1)
        return spread[..., : self.embedding_dim]

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, {self._described()}"


def _unpacked(data: Any, length: int, dtype: str) -> Any:
    """Codes one a value from `Parts.data`, in torch's own operators."""
    bits = int(dtype.lstrip("uint"))
    if bits >= 8:
        return data
    mask, per_byte = (1 << bits) - 1, 8 // bits
    shifts = torch.arange(per_byte, device=data.device, dtype=torch.uint8) * bits
    codes = ((data.unsqueeze(-1) >> shifts) & mask).flatten(-2)[..., :length].to(torch.int8)
    return codes if dtype.startswith("u") else codes - ((codes >> (bits - 1)) << bits)


def _table(function: Any, in_scale: Any, in_zero: int, out_scale: Any, out_zero: int, dtype: str) -> Any:
    """The codes of function(code), the lowest code's first."""
    low, high = limits(dtype)
    codes = QTensor(np.arange(low, high + 1).astype(dtype), in_scale, in_zero)
    return torch.from_numpy(qkernels.lookup(codes, function, out_scale, out_zero).codes().copy())


class QLookup(torch.nn.Module):  # type: ignore[misc]
    """Any function of codes, by a table of 256                                                       arithmetic.md A15

    function    a name or a function of a float32 array, as `qkernels.lookup` takes it
    in_scale, in_zero_point, out_scale, out_zero_point   numbers; dtype: "int8" or "uint8", of both codes
    """

    def __init__(
        self, function: Any, in_scale: float, in_zero_point: int, out_scale: float, out_zero_point: int, *,
        dtype: str = "int8",
    ) -> None:  # fmt: skip
        super().__init__()
        table = _table(function, in_scale, in_zero_point, out_scale, out_zero_point, dtype)
        self.register_buffer("table", table)

    def forward(self, codes: Any) -> Any:
        return torch.ops.qkernels.lookup(codes, self.table)
