"""From a float model to a graph of parts that know their codes: folded, joined, and cut where values become codes."""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx
from torch.nn.utils import fusion

from qkernels.torch.conv import padding_of
from qkernels.torch.layer import Add, GlobalAverage, Joined, Layer, Quantizer
from qkernels.torch.recipe import Precision, Recipe

LAYERS = (torch.nn.Linear, torch.nn.Conv2d)
NORMS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)
DROPPED = (torch.nn.Identity, torch.nn.Dropout, torch.nn.Dropout1d, torch.nn.Dropout2d, torch.nn.Dropout3d)
ADDS = (operator.add, operator.iadd, torch.add)
# What gives codes of the same scale for codes, and does not compute.
MOVES = (
    torch.nn.MaxPool2d, torch.nn.Flatten, F.max_pool2d, F.max_pool2d_with_indices, torch.max_pool2d, torch.flatten,
    torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze,
    "flatten", "reshape", "view", "permute", "transpose", "contiguous", "squeeze", "unsqueeze",
)  # fmt: skip
CONV_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
FLOAT_BY_RECIPE = "the recipe says float"
UNCALLED = "nothing calls it: its weight is used otherwise than in a linear layer or a convolution, or not at all"
POSITIVE = (0.0, float("inf"))


class Prepared(fx.GraphModule):  # type: ignore[misc]
    """The graph. `floats`: {layer that stays in float: why}."""

    floats: dict[str, str]
    recipe: Recipe
    schedule: Any  # of prepare_qat
    steps: int

    def __deepcopy__(self, memo: dict[int, Any]) -> Prepared:
        made = super().__deepcopy__(memo)
        made.floats, made.recipe = dict(self.floats), self.recipe
        return made


def prepare(model: Any, recipe: Recipe, op: str = "quantize_model") -> Prepared:
    """A copy of `model` in evaluation mode, as a graph of Layers, Quantizers and what stays in float.

    Batch norm is folded into the layer before it, ReLU, ReLU6 and Hardtanh become that layer's clamp. Values that only
    quantized parts need become codes there. Layers that cannot be quantized are in `.floats`, by name, with the reason.
    Raises  TypeError no module · ValueError a model that torch.fx cannot trace, or without a layer to quantize; the
            recipe's unknown layers.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"{op}: model is {type(model).__name__}, wanted a torch.nn.Module")
    if not isinstance(recipe, Recipe):
        raise TypeError(f"{op}: recipe is {type(recipe).__name__}, wanted a Recipe")
    if isinstance(model, LAYERS):
        raise ValueError(f"{op}: model is itself a layer, which nothing holds; wrap it: torch.nn.Sequential(model)")
    whole = copy.deepcopy(model).eval()
    recipe.check(name for name, module in whole.named_modules() if isinstance(module, LAYERS))
    try:
        traced = fx.symbolic_trace(whole)
    except Exception as error:
        raise ValueError(
            f"{op}: torch.fx cannot trace {type(model).__name__} ({error}); quantize the parts of it that can be "
            "traced, or use quantize_, which needs no graph"
        ) from error
    graph = Prepared(traced, traced.graph)
    _call_modules(graph)
    floats = _unsupported(whole, graph)
    graph.floats, graph.recipe = floats, recipe
    _drop(graph)
    _take_padding(graph, recipe)
    _fold(graph)
    _make_layers(graph, recipe)
    _Codes(graph, recipe.default).run()
    graph.graph.lint()
    graph.recompile()
    if not any(isinstance(module, Layer) for module in graph.modules()):
        raise ValueError(f"{op}: no layer of {type(model).__name__} is left to quantize: {floats or 'it has none'}")
    return graph


def module_of(graph: fx.GraphModule, node: Any) -> Any:
    return graph.get_submodule(node.target) if isinstance(node, fx.Node) and node.op == "call_module" else None


def _unsupported(model: Any, traced: fx.GraphModule) -> dict[str, str]:
    called = {node.target for node in traced.graph.nodes if node.op == "call_module"}
    why: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, LAYERS):
            if name not in called:
                inside = next((above for above in _above(name) if above in called), None)
                kind = "" if inside is None else type(model.get_submodule(inside)).__name__
                why[name] = (
                    f"it is inside {inside!r}, a {kind}, which torch.fx takes as a whole" if inside else UNCALLED
                )
            elif getattr(module, "padding_mode", "zeros") != "zeros":
                why[name] = f"padding_mode={module.padding_mode!r}, wanted 'zeros'"
            elif module.weight.dtype != torch.float32:
                why[name] = f"its weight is {module.weight.dtype}, wanted torch.float32: model.float()"
            elif not bool(torch.isfinite(module.weight).all()):
                why[name] = "its weight has NaN or infinite values"
        elif isinstance(module, torch.nn.modules.conv._ConvNd | torch.nn.Bilinear | torch.nn.RNNBase):
            why[name] = f"there is no quantized {type(module).__name__}"
        elif isinstance(module, torch.nn.MultiheadAttention):
            why[name] = "MultiheadAttention keeps its products inside"
    return why


def _above(name: str) -> list[str]:
    """The modules that hold one, by name."""
    steps = name.split(".")
    return [".".join(steps[:i]) for i in range(1, len(steps))]


def _call_modules(graph: fx.GraphModule) -> None:
    """F.conv2d and F.linear of a module's own weight, as subclasses of layers write it, become calls of a layer."""
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or node.target not in (F.conv2d, torch.conv2d, F.linear):
            continue
        given = {**dict(zip(CONV_ARGUMENTS, node.args, strict=False)), **node.kwargs}
        weight, bias = given.get("weight"), given.get("bias")
        if not (isinstance(weight, fx.Node) and weight.op == "get_attr" and str(weight.target).endswith(".weight")):
            continue
        if bias is not None and not (isinstance(bias, fx.Node) and bias.op == "get_attr"):
            continue
        name = str(weight.target).removesuffix(".weight")
        layer = _layer_of(node.target, graph.get_submodule(name), given)
        if bias is not None:
            layer.bias = graph.get_parameter(str(bias.target))
        layer._modules.update(graph.get_submodule(name)._modules)  # what pads, say
        graph.set_submodule(name, layer.eval())
        node.op, node.target, node.args, node.kwargs = "call_module", name, (given["input"],), {}
        for used in (weight, bias):
            if used is not None and not used.users:
                graph.graph.erase_node(used)


def _layer_of(function: Any, module: Any, given: dict[str, Any]) -> Any:
    weight = module.weight
    if function is F.linear:
        layer: Any = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    else:
        groups = given.get("groups", 1)
        layer = torch.nn.Conv2d(
            weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]), given.get("stride", 1),
            given.get("padding", 0), given.get("dilation", 1), groups, bias=False, device="meta",
        )  # fmt: skip
    layer.weight = weight
    return layer


def _take_padding(graph: Prepared, recipe: Recipe) -> None:
    """Zeros that are put around an image for a convolution alone are that convolution's, if it becomes a Layer."""
    for node in list(graph.graph.nodes):
        conv, pad = module_of(graph, node), node.args[0] if node.args else None
        if type(conv) is not torch.nn.Conv2d or not isinstance(pad, fx.Node) or len(pad.users) != 1:
            continue
        if _stays_float(graph, recipe, str(node.target)):
            continue
        left, right, top, bottom = _zeros(graph, pad)
        if (left, right, top, bottom) != (0, 0, 0, 0) and conv.padding_mode == "zeros":
            mine = padding_of(conv)
            mine = mine if len(mine) == 4 else [mine[0], mine[0], mine[1], mine[1]]
            conv.sides = [a + b for a, b in zip(mine, (top, bottom, left, right), strict=True)]
            _replace(graph, pad, pad.args[0])


def _stays_float(graph: Prepared, recipe: Recipe, name: str) -> bool:
    return name in graph.floats or recipe.of(name).weights == "float"


def _zeros(graph: fx.GraphModule, node: fx.Node) -> tuple[int, ...]:
    """(left, right, top, bottom) of a node that pads with zeros; all 0 of any other."""
    module, none = module_of(graph, node), (0, 0, 0, 0)
    if isinstance(module, torch.nn.ZeroPad2d):
        found = tuple(module.padding)
    elif node.op == "call_function" and node.target is F.pad:
        given = {**dict(zip(("input", "pad", "mode", "value"), node.args, strict=False)), **node.kwargs}
        if given.get("mode", "constant") != "constant" or given.get("value") not in (None, 0):
            return none
        found = tuple(given["pad"])
    else:
        return none
    return found if len(found) == 4 and all(isinstance(v, int) and v >= 0 for v in found) else none


def _replace(graph: fx.GraphModule, node: fx.Node, by: Any) -> None:
    node.replace_all_uses_with(by)
    graph.graph.erase_node(node)


def _drop(graph: fx.GraphModule) -> None:
    """What does nothing in evaluation mode."""
    for node in list(graph.graph.nodes):
        dropout = node.op == "call_function" and node.target in (F.dropout, F.dropout2d)
        if dropout or isinstance(module_of(graph, node), DROPPED):
            _replace(graph, node, node.args[0])


def _fold(graph: fx.GraphModule) -> None:
    calls = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    for node in list(graph.graph.nodes):
        norm, before = module_of(graph, node), node.args[0] if node.args else None
        if not isinstance(before, fx.Node):
            continue
        layer = module_of(graph, before)
        if not isinstance(norm, NORMS) or type(layer) not in LAYERS or norm.running_mean is None:
            continue
        if len(before.users) > 1 or calls.count(before.target) > 1 or calls.count(node.target) > 1:
            continue
        if isinstance(layer, torch.nn.Linear) and isinstance(norm, torch.nn.BatchNorm2d):
            continue
        fuse = fusion.fuse_conv_bn_eval if isinstance(layer, torch.nn.Conv2d) else fusion.fuse_linear_bn_eval
        graph.set_submodule(before.target, fuse(layer, norm))
        _replace(graph, node, before)


def moves(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Does the node give its argument's codes, or some of them, in another order or shape?"""
    module = module_of(graph, node)
    if isinstance(module, torch.nn.MaxPool2d) and (module.return_indices or module.ceil_mode):
        return False
    if not node.args or not isinstance(node.args[0], fx.Node) or node.kwargs.get("ceil_mode"):
        return False
    return type(module) in MOVES or (node.op != "call_module" and node.target in MOVES)


def clamp_of(graph: fx.GraphModule, node: fx.Node) -> tuple[float, float] | None:
    """(lowest, highest) of a node that clamps its first argument."""
    module = module_of(graph, node)
    if isinstance(module, torch.nn.ReLU) or node.target in (F.relu, torch.relu, F.relu_, torch.relu_, "relu", "relu_"):
        return POSITIVE
    if isinstance(module, torch.nn.Hardtanh):  # ReLU6 is one
        return float(module.min_val), float(module.max_val)
    if node.op == "call_function" and node.target is F.relu6:
        return 0.0, 6.0
    return None


def _joined_clamp(graph: fx.GraphModule, node: fx.Node) -> Any:
    """The clamp that is all that uses a node's value; it is taken out."""
    if len(node.users) != 1:
        return None
    user = next(iter(node.users))
    clamp = clamp_of(graph, user)
    if clamp is not None:
        _replace(graph, user, node)
    return clamp


def _make_layers(graph: Prepared, recipe: Recipe) -> None:
    """Each call of a layer becomes a Layer; calls of one layer share its weight, and have codes of their own."""
    calls = [(node, module_of(graph, node)) for node in graph.graph.nodes]
    seen: dict[str, int] = {}
    for node, module in calls:
        name = str(node.target)
        if type(module) not in LAYERS or name in graph.floats:
            continue
        precision = recipe.of(name)
        if precision.weights == "float":
            graph.floats[name] = FLOAT_BY_RECIPE
            continue
        seen[name] = seen.get(name, 0) + 1
        node.target = name if seen[name] == 1 else f"{name}_call{seen[name]}"
        graph.add_submodule(node.target, Layer(name, module, precision, _joined_clamp(graph, node)))


class _Codes:
    """Where codes are needed, asked from the last node to the first."""

    def __init__(self, graph: Prepared, default: Precision) -> None:
        self.graph, self.default = graph, default
        self.made: dict[fx.Node, Quantizer] = {}

    def run(self) -> None:
        for node in reversed(list(self.graph.graph.nodes)):
            layer = module_of(self.graph, node)
            if isinstance(layer, Layer) and not layer.dynamic:
                layer.sources.append(self.quantized(node.args[0], layer.precision))

    def quantized(self, node: fx.Node, precision: Precision) -> Quantizer:
        """The Quantizer that a node's value has gone through."""
        source = node
        while moves(self.graph, source):
            source = source.args[0]
        if isinstance(module_of(self.graph, source), Quantizer):
            return module_of(self.graph, source)
        if source in self.made:
            return self.made[source]
        made = Quantizer(precision, source.name)
        part = self._part(source)
        with self.graph.graph.inserting_after(source):
            name = f"{source.name}_codes"
            self.graph.add_submodule(name, made)
            cut = self.graph.graph.call_module(name)
        source.replace_all_uses_with(cut)
        cut.args = (source,)
        self.made[source] = made
        if part is not None:
            part.__dict__["output"] = made
            if not isinstance(part, Layer):
                part.sources.extend(self.quantized(value, precision) for value in source.args)
        return made

    def _part(self, node: fx.Node) -> Joined | None:
        """The part that computes this node's codes from codes, made of what stood there; None: it gives floats."""
        found = module_of(self.graph, node)
        if isinstance(found, Layer):
            return None if found.group_size or found.dynamic else found
        if not self._gives_codes(node):
            return None
        clamp = clamp_of(self.graph, node)
        inner = node.args[0] if clamp is not None else node
        if self._adds(inner) and (clamp is None or len(inner.users) == 1):
            part = self._install(node, Add(clamp), inner.args)
            if inner is not node:
                self.graph.graph.erase_node(inner)
            return part
        flat = self._averages(node)
        return None if flat is None else self._install(node, GlobalAverage(flat), node.args[:1])

    def _gives_codes(self, node: Any) -> bool:
        """Could this value be computed from codes alone? Sums and averages of floats are left to floats."""
        while isinstance(node, fx.Node) and moves(self.graph, node):
            node = node.args[0]
        if not isinstance(node, fx.Node) or node in self.made:
            return isinstance(node, fx.Node)
        found = module_of(self.graph, node)
        if isinstance(found, Layer):
            return not (found.group_size or found.dynamic)
        if isinstance(found, Quantizer | Joined):
            return True
        inner = node.args[0] if clamp_of(self.graph, node) is not None else node
        if self._adds(inner):
            return all(map(self._gives_codes, inner.args))
        return self._averages(node) is not None and self._gives_codes(node.args[0])

    def _install(self, node: fx.Node, part: Joined, args: Any) -> Joined:
        name = f"{node.name}_part"
        self.graph.add_submodule(name, part)
        node.op, node.target, node.args, node.kwargs = "call_module", name, tuple(args), {}
        return part

    def _adds(self, node: Any) -> bool:
        if not isinstance(node, fx.Node) or node.kwargs:
            return False
        named = (node.op == "call_function" and node.target in ADDS) or (
            node.op == "call_method" and node.target in ("add", "add_")
        )
        both = len(node.args) == 2 and all(isinstance(value, fx.Node) for value in node.args)
        return named and both and node.args[0] is not node.args[1]

    def _averages(self, node: fx.Node) -> bool | None:
        """False, True: does a global average leave out height and width? None: it is none."""
        module = module_of(self.graph, node)
        if isinstance(module, torch.nn.AdaptiveAvgPool2d):
            return False if module.output_size in (1, (1, 1)) else None
        if node.op == "call_function" and node.target is F.adaptive_avg_pool2d:
            return False if node.args[1:] in ((1,), ((1, 1),)) else None
        if node.target in ("mean", torch.mean) and len(node.args) > 1:
            axes = node.args[1] if isinstance(node.args[1], tuple | list) else node.args[1:]
            kept = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
            return None if sorted(axes) not in ([2, 3], [-2, -1]) else not kept
        return None
