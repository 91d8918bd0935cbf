"""The parts of a network that is being quantized: float layers that know their codes.

A prepared graph runs in one of these modes, each a forward that stays a torch.nn.Module:

    float      as it was                        observe    the same, looked at for ranges
    fake       values rounded to codes' values, sums in float: what trains
    integers   sums and rounding as the kernels have them, bit for bit
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import qkernels
from qkernels.dtypes import limits
from qkernels.ops.calibrate import Calibrator
from qkernels.tensor import QTensor
from qkernels.torch import simulate
from qkernels.torch.conv import padding_of
from qkernels.torch.recipe import Precision

MODES = ("float", "observe", "fake", "integers")
TINY = 2.0**-100  # learned scales stay above it


class Part(torch.nn.Module):  # type: ignore[misc]
    """mode is set for all parts of a graph together; learn: scales have gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.mode, self.learn = "float", False


class Quantizer(Part):
    """Where values of a graph become codes of one scale. dtype "int8" or "uint8"."""

    def __init__(self, precision: Precision, name: str = "") -> None:
        super().__init__()
        self.dtype, self.precision, self.name = precision.activations, precision, name
        self.calibrator = self.new_calibrator()
        self.observing = False  # still, while values are rounded already
        self.scale = torch.nn.Parameter(torch.tensor(1.0))
        self.register_buffer("zero_point", torch.tensor(0))

    def new_calibrator(self) -> Calibrator:
        how = self.precision
        return Calibrator(how.method, self.dtype, symmetric=how.symmetric, percentile=how.percentile)

    def settle(self) -> None:
        """Take the range that was observed."""
        scale, zero = self.calibrator.result()
        with torch.no_grad():
            self.scale.copy_(torch.as_tensor(scale))
            self.zero_point.copy_(torch.as_tensor(zero))

    @property
    def zero(self) -> int:
        return int(self.zero_point)

    def step(self) -> Any:
        """The scale, kept above 0 while it learns."""
        return self.scale.abs().clamp_min(TINY)

    def forward(self, x: Any) -> Any:
        if self.mode == "observe":
            if bool(x.isnan().any()):
                raise ValueError(f"{self.name!r}, which goes into a quantized layer, has NaN there")
            self.calibrator.add(x.detach())
        if self.mode in ("float", "observe"):
            return x
        if self.observing and self.training:
            self.calibrator.add(x.detach())
            self.settle()
        learn = (
            (x.numel() / max(1, x.shape[0]) * limits(self.dtype)[1]) ** -0.5
            if self.learn and self.mode == "fake"
            else 0.0
        )
        return simulate.fake_quantize(x, self.step(), self.zero, self.dtype, learn)

    def extra_repr(self) -> str:
        return f"{self.dtype}, scale={self.scale.item():.6g}, zero_point={self.zero}"


class Joined(Part):
    """A part whose result is computed from codes; `source`, `output`: the Quantizers of what comes in and goes out,
    which belong to the graph and not to this module."""

    def __init__(self, activation: Any = None) -> None:
        super().__init__()
        self.activation = activation  # (lowest, highest)
        self.__dict__["sources"] = []
        self.__dict__["output"] = None

    def clamped(self, y: Any) -> Any:
        return y if self.activation is None else torch.clamp(y, *self.activation)


class Layer(Joined):
    """A torch.nn.Linear or torch.nn.Conv2d, batch norm folded, with the clamp that follows it."""

    def __init__(self, name: str, module: Any, precision: Precision, activation: Any = None) -> None:
        super().__init__(activation)
        self.name, self.precision = name, precision
        self.weight, self.bias = module.weight, module.bias
        self.how: dict[str, Any] | None = None  # of a convolution
        if isinstance(module, torch.nn.Conv2d):
            sides = getattr(module, "sides", None) or padding_of(module)
            self.how = {
                "stride": tuple(module.stride), "dilation": tuple(module.dilation), "groups": module.groups,
                "padding": tuple(sides) if len(sides) == 4 else (sides[0], sides[0], sides[1], sides[1]),
            }  # fmt: skip
        n, size = self.weight.shape[0], precision.group_size
        # One group is no groups: a scale for each output, whose sums stay integers.
        self.group_size = size if self.how is None and size is not None and size < self.weight.shape[1] else None
        self.whole = precision.scales == "tensor"  # one scale for all of the weight
        shape = (n, -(-self.weight.shape[1] // self.group_size)) if self.group_size else (1,) if self.whole else (n,)
        self.weight_scale = torch.nn.Parameter(torch.ones(shape))
        self.register_buffer("weight_zero", torch.zeros(shape))
        self.__dict__["unrounded"] = None
        self.watch: Any = None  # called with (layer, input) while observing

    @property
    def dynamic(self) -> bool:
        return self.precision.activations == "dynamic"

    # ---------------------------------------------------------------- the weight

    def keep(self) -> None:
        """Remember weight and bias as they are before rounding, outside of the parameters."""
        self.__dict__["unrounded"] = (self.weight, self.bias)

    def spread(self, per_scale: Any) -> Any:
        """A number for each scale → one that broadcasts with the weight."""
        if self.group_size:
            return per_scale.repeat_interleave(self.group_size, 1)[:, : self.weight.shape[1]]
        return per_scale.reshape(-1, *[1] * (self.weight.ndim - 1))

    def step(self) -> Any:
        return self.weight_scale.abs().clamp_min(TINY)

    def fake_weight(self) -> Any:
        learn = 0.0
        if self.learn and self.mode == "fake":
            learn = (self.weight.numel() / self.weight_scale.numel() * limits(self.precision.weights)[1]) ** -0.5
        return simulate.fake_quantize(
            self.weight, self.spread(self.step()), self.spread(self.weight_zero), self.precision.weights, learn
        )

    def qtensor(self) -> QTensor:
        """The weight's codes."""
        zero = self.weight_zero.cpu().numpy().astype(np.uint8 if self.precision.weights[0] == "u" else np.int8)
        same = zero.size and (zero == zero.flat[0]).all()
        scale = self.step().detach().cpu().numpy()
        return qkernels.quantize(
            self.weight.detach().cpu().numpy(), scale[0] if self.whole else scale, int(zero.flat[0]) if same else zero,
            dtype=self.precision.weights, axis=None if self.whole else 0, group_size=self.group_size,
        )  # fmt: skip

    # ---------------------------------------------------------------- the four ways to run it

    def forward(self, x: Any) -> Any:
        if self.mode == "observe":
            self._look(x.detach())
        if self.mode == "integers":
            return self._integers(x.detach())
        if self.mode == "fake":
            return self.clamped(self._product(self._seen(x), self.fake_weight(), self.bias))
        weight, bias = self.unrounded or (self.weight, self.bias)
        return self.clamped(self._product(x, weight, bias))

    def _look(self, x: Any) -> None:
        if self.how is not None and x.ndim != 4:
            raise ValueError(f"{self.name} is a convolution that gets an image {tuple(x.shape)}, wanted (n, c, h, w)")
        if self.watch is not None:
            self.watch(self, x)

    def _product(self, x: Any, weight: Any, bias: Any = None) -> Any:
        if self.how is None:
            return F.linear(x, weight, bias)
        y = simulate.convolve(x, weight, self.how)
        return y if bias is None else y + bias.reshape(-1, 1, 1)

    def _seen(self, x: Any) -> Any:
        if not self.dynamic:
            return x
        if self.how is None:
            return simulate.dynamic_values(x)
        codes, scale = simulate.dynamic_image(x.detach())
        return simulate.straight_through(codes * scale, x)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _integers(self, x: Any) -> Any:
        if self.dynamic:
            codes, unit = simulate.dynamic_rows(x) if self.how is None else simulate.dynamic_image(x)
            codes = codes.double()
        else:
            unit = self.sources[0].step()
            codes = simulate.codes_of(x, unit)
        step = self.step()
        weight = simulate.codes_of(self.fake_weight(), self.spread(step))
        if self.group_size:
            y = simulate.grouped_linear(codes, weight, step, self.group_size) * unit
            return self.clamped(y if self.bias is None else y + self.bias)
        acc = self._product(codes, weight)
        worth = unit * step  # of one of acc, for each output
        across = (-1, 1, 1) if self.how is not None else (-1,)
        if self.output is None:
            wide = unit * step if self.how is None else worth.reshape(across)
            y = acc.float() * wide
            return self.clamped(y if self.bias is None else y + self.bias.reshape(across))
        if self.bias is not None:
            acc = acc + torch.round(self.bias / worth).double().reshape(across)
        out, m = self.output, (worth / self.output.step()).reshape(across)
        return simulate.requantized(acc, m, out.step(), out.zero, out.dtype, self.activation)

    def extra_repr(self) -> str:
        kind = "linear" if self.how is None else f"conv2d {self.how}"
        return f"{self.name}, {kind}, {self.precision.short}, activation={self.activation}"


class Add(Joined):
    """a + b, then a clamp; of codes QLinearAdd."""

    def forward(self, a: Any, b: Any) -> Any:
        if self.mode != "integers":
            return self.clamped(a + b)
        scales, zeros = zip(*((q.step(), q.zero) for q in self.sources), strict=True)
        out = self.output
        y = simulate.added(a.detach(), b.detach(), scales, zeros, (out.step(), out.zero), out.dtype)
        if self.activation is None:
            return y
        return simulate.requantized(
            simulate.codes_of(y, out.step()), 1, out.step(), out.zero, out.dtype, self.activation
        )


class GlobalAverage(Joined):
    """The mean of every channel: (n, c, h, w) → (n, c, 1, 1), or (n, c)."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.flat = flat

    def forward(self, x: Any) -> Any:
        if self.mode != "integers":
            y = x.mean((-2, -1), keepdim=True)
        else:
            out = self.output
            y = simulate.averaged(x.detach(), self.sources[0].step(), (out.step(), out.zero), out.dtype)
        return y.flatten(1) if self.flat else y


def parts(graph: Any) -> list[Any]:
    return [module for module in graph.modules() if isinstance(module, Part)]


def layers(graph: Any) -> list[Layer]:
    """In the order of the graph."""
    return [module for module in graph.modules() if isinstance(module, Layer)]


def set_mode(graph: Any, mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"set_mode: mode={mode!r}, wanted one of {', '.join(MODES)}")
    for part in parts(graph):
        part.mode = mode
