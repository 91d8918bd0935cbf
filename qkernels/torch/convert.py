"""From a prepared graph to one that runs on kernels, with codes between the layers."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from qkernels.torch.layer import Add, GlobalAverage, Layer, Part, Quantizer, set_mode
from qkernels.torch.network import Codes, Dequantize, QAdd, QGlobalAverage, QMaxPool2d, Quantize
from qkernels.torch.prepare import Prepared, module_of, moves
from qkernels.torch.static import StaticConv2d, StaticLinear

POOLS = (F.max_pool2d, F.max_pool2d_with_indices, torch.max_pool2d)


class Quantized(fx.GraphModule):  # type: ignore[misc]
    """What `convert` makes. floats: {layer left in float: why}; prepared: the graph that simulates it."""

    floats: dict[str, str]
    prepared: Prepared

    def __deepcopy__(self, memo: dict[int, Any]) -> Quantized:
        made = super().__deepcopy__(memo)
        made.floats = dict(self.floats)
        made.__dict__["prepared"] = copy.deepcopy(self.prepared, memo)
        return made


def convert(prepared: Prepared) -> Quantized:
    """The network of kernels whose results are those of `prepared` in mode "integers", bit for bit.

    Raises  TypeError prepared
    """
    if not isinstance(prepared, Prepared):
        raise TypeError(f"convert: prepared is {type(prepared).__name__}, wanted what calibrated or prepare_qat gives")
    prepared = copy.deepcopy(prepared)
    set_mode(prepared, "integers")
    made = _Converter(prepared).run()
    made.floats = dict(prepared.floats)
    made.__dict__["prepared"] = prepared  # no part of the network, nor of its state
    return made


class _Converter:
    def __init__(self, prepared: Prepared) -> None:
        self.old = prepared
        self.root = torch.nn.Module()
        self.graph = fx.Graph()
        self.floats: dict[fx.Node, fx.Node] = {}  # of the old graph → where its value is in floats
        self.codes: dict[fx.Node, tuple[fx.Node, Codes]] = {}  # … and in codes, with their scale

    def run(self) -> Quantized:
        for node in self.old.graph.nodes:
            self._node(node)
        self.graph.lint()
        return Quantized(self.root, self.graph)

    # ---------------------------------------------------------------- values

    def float_of(self, node: fx.Node) -> fx.Node:
        if node not in self.floats:
            source, codes = self.codes[node]
            self.floats[node] = self._module(
                f"{source.name}_values", Dequantize(codes.scale, int(codes.zero_point), codes.dtype), source
            )
        return self.floats[node]

    def codes_of(self, node: fx.Node) -> tuple[fx.Node, Codes]:
        return self.codes[node]

    def _module(self, name: str, module: Any, *args: Any) -> fx.Node:
        *above, last = name.split(".")
        place = self.root
        for step in above:
            if not hasattr(place, step):
                place.add_module(step, torch.nn.Module())
            place = getattr(place, step)
        place.add_module(last, module)
        return self.graph.call_module(name, tuple(args))

    # ---------------------------------------------------------------- nodes

    def _node(self, node: fx.Node) -> None:
        module = module_of(self.old, node)
        if isinstance(module, Quantizer):
            self._quantizer(node, module)
        elif isinstance(module, Layer):
            self._layer(node, module)
        elif isinstance(module, Part):
            self._part(node, module)
        elif node.args and node.args[0] in self.codes and node.args[0] not in self.floats and moves(self.old, node):
            self._move(node, module)
        else:
            self.floats[node] = self._copied(node, module)

    def _copied(self, node: fx.Node, module: Any) -> fx.Node:
        if isinstance(module, torch.nn.Conv2d):  # so that its images are in the order in which codes are
            module.to(memory_format=torch.channels_last)
        if module is not None:
            self._install(str(node.target), module)
        elif node.op == "get_attr":
            self._attribute(str(node.target))
        return self.graph.node_copy(node, self.float_of)

    def _install(self, name: str, module: Any) -> None:
        self._module(name, module)
        self.graph.erase_node(next(reversed(self.graph.nodes)))

    def _attribute(self, name: str) -> None:
        *above, last = name.split(".")
        owner, place = self.old, self.root
        for step in above:
            owner = getattr(owner, step)
            if not hasattr(place, step):
                place.add_module(step, torch.nn.Module())
            place = getattr(place, step)
        value = getattr(owner, last)
        if isinstance(value, torch.nn.Parameter):
            place.register_parameter(last, value)
        elif isinstance(value, torch.Tensor):
            place.register_buffer(last, value)
        else:
            setattr(place, last, value)

    def _quantizer(self, node: fx.Node, quantizer: Quantizer) -> None:
        source = node.args[0]
        if source in self.codes:  # its producer has these codes
            self.codes[node] = self.codes[source]
            return
        made = Quantize(quantizer.step().detach(), quantizer.zero, quantizer.dtype)
        self.codes[node] = self._module(f"{node.name}", made, self.float_of(source)), made

    def _of(self, quantizer: Quantizer) -> Codes:
        return Codes(quantizer.step().detach(), quantizer.zero, quantizer.dtype)

    def _layer(self, node: fx.Node, layer: Layer) -> None:
        bias = None if layer.bias is None else layer.bias.detach()
        q, activation = layer.qtensor(), layer.activation
        made: Any
        if layer.how is None:
            made = StaticLinear.from_qtensor(q, bias, activation=activation)
        else:
            made = StaticConv2d.from_qtensor(q, bias, activation=activation, **layer.how)
        made.eval()
        source = node.args[0]
        if not layer.dynamic:
            given, codes = self.codes_of(source)
            made.set_ranges(codes.scale, codes.zero_point)
        else:
            given = self.float_of(source)
        if layer.output is not None:
            out = self._of(layer.output)
            made.set_ranges(made.input_scale, made.input_zero_point, out.scale, out.zero_point)
            self.codes[node] = self._module(str(node.target), made, given), out
        else:
            self.floats[node] = self._module(str(node.target), made, given)

    def _part(self, node: fx.Node, part: Any) -> None:
        given = [self.codes_of(source) for source in node.args]
        out = self._of(part.output)
        made: Any
        if isinstance(part, Add):
            made = QAdd(given[0][1], given[1][1], out, part.activation)
        else:
            assert isinstance(part, GlobalAverage)
            made = QGlobalAverage(given[0][1], out, part.flat)
        self.codes[node] = self._module(str(node.target), made, *(source for source, _ in given)), out

    def _move(self, node: fx.Node, module: Any) -> None:
        """The same of codes."""
        given, codes = self.codes[node.args[0]]
        if isinstance(module, torch.nn.MaxPool2d) or node.target in POOLS:
            pool = pool_of(node, module)
            self.codes[node] = self._module(f"{node.name}_pool", pool, given), codes
            return
        if module is not None:
            self._install(str(node.target), module)

        def found(source: fx.Node) -> fx.Node:
            return given if source is node.args[0] else self.float_of(source)

        self.codes[node] = self.graph.node_copy(node, found), codes


def pool_of(node: fx.Node, module: Any) -> QMaxPool2d:
    if module is not None:
        return QMaxPool2d(module.kernel_size, module.stride, module.padding, module.dilation)
    names = ("kernel_size", "stride", "padding", "dilation")
    given: dict[str, Any] = {"stride": None, "padding": 0, "dilation": 1, **node.kwargs}
    given.update(zip(names, node.args[1:], strict=False))
    return QMaxPool2d(*(given[name] for name in names))
