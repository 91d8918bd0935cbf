"""A model made ready once, and run many times."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from qkernels import dispatch
from qkernels.onnx import every as _every  # noqa: F401  operators enter the registry
from qkernels.onnx import fuse_dynamic, fuse_moves, fuse_qdq, fuse_tables, fuse_weights
from qkernels.onnx.graph import Graph, Node, Value, graph_of, read
from qkernels.onnx.registry import Run, call, prepare

SMALL = 1 << 16  # bytes that a result of constants may take and still be kept


class Step(NamedTuple):
    node: Node
    run: Run
    inputs: tuple[int, ...]  # slots
    outputs: tuple[int, ...]
    free: tuple[int, ...]  # slots that nobody reads later


class Made(NamedTuple):
    """What a node did in a run: its kernels by name (none: NumPy), and the seconds."""

    node: Node
    kernels: tuple[str, ...]
    seconds: float
    shape: tuple[int, ...]  # of its first output


class Model:
    """A prepared model. `model(x)` or `model(name=x)` gives the outputs in order, ndarrays; any number of threads may
    call.

    inputs, outputs   `Value`s: name, dtype, shape (ints, names of sizes, None)
    """

    def __init__(self, graph: Graph, compute: str = "float32") -> None:
        self.inputs: list[Value] = graph.inputs
        self.outputs: list[Value] = graph.outputs
        with np.errstate(all="ignore"):
            _fold(graph, everything=False)
            fuse_weights.turn(graph)
            for fuse in (fuse_moves.fuse, fuse_qdq.fuse, fuse_tables.fuse, fuse_dynamic.fuse):
                fuse(graph)
            fuse_weights.fuse(graph, compute)
            _fold(graph, everything=True)
        graph.without_the_unused()
        self._plan(graph)

    @property
    def nodes(self) -> list[Node]:
        """As they run: what fusions left of the model's."""
        return [step.node for step in self._steps]

    def _plan(self, graph: Graph) -> None:
        slots: dict[str, int] = {"": 0}
        start: list[Any] = [None]

        def slot(name: str, value: Any = None) -> int:
            if name not in slots:
                slots[name] = len(start)
                start.append(value)
            return slots[name]

        for name, value in graph.constants.items():
            slot(name, _read_only(value))
        kept = {slot(value.name) for value in (*graph.inputs, *graph.outputs)} | set(slots.values())
        last: dict[int, int] = {}
        wired = []
        for i, node in enumerate(graph.nodes):
            inputs = tuple(slot(name) for name in node.inputs)
            outputs = tuple(slot(name) if name else -1 for name in node.outputs)
            last.update(dict.fromkeys((*inputs, *outputs), i))
            wired.append((node, inputs, outputs))
        ends: dict[int, list[int]] = {}
        for at, i in last.items():
            if at not in kept and at > 0:
                ends.setdefault(i, []).append(at)
        self._steps = [
            Step(node, prepare(node), inputs, outputs, tuple(ends.get(i, ())))
            for i, (node, inputs, outputs) in enumerate(wired)
        ]
        self._start = start
        self._in = [slots[value.name] for value in graph.inputs]
        self._out = [slots[value.name] for value in graph.outputs]

    # ---------------------------------------------------------------- running

    def __call__(self, *inputs: Any, **by_name: Any) -> list[np.ndarray]:
        """inputs in the model's order, by name, or a mapping of names."""
        if len(inputs) == 1 and isinstance(inputs[0], Mapping) and not by_name:
            return self.run(inputs[0])
        if len(inputs) > len(self.inputs):
            raise ValueError(f"the model has {len(self.inputs)} inputs, got {len(inputs)}")
        given = {value.name: x for value, x in zip(self.inputs, inputs, strict=False)}
        return self.run({**given, **by_name})

    def run(self, feeds: Mapping[str, Any]) -> list[np.ndarray]:
        """{name: array} → the outputs in order."""
        slots = self._slots(feeds)
        with np.errstate(all="ignore"):  # as any other runtime: infinities and NaNs are results
            for step in self._steps:
                _do(step, slots)
        return self._results(slots)

    def trace(self, feeds: Mapping[str, Any]) -> list[Made]:
        """The same, node by node: which kernels ran and how long each took. Slower than `run`."""
        slots, made = self._slots(feeds), []
        pattern = dispatch.pattern_in_force()
        with (
            np.errstate(all="ignore"),
            dispatch.use("?*" if pattern == "*" else pattern),
        ):  # by the careful road, which asks for kernels
            for step in self._steps:
                with dispatch.record() as kernels:
                    begin = time.perf_counter()
                    outputs = _do(step, slots, keep=True)
                    took = time.perf_counter() - begin
                made.append(Made(step.node, tuple(dict.fromkeys(kernels)), took, np.shape(outputs[0])))
                for at in step.free:
                    slots[at] = None
        return made

    def times(self, feeds: Mapping[str, Any]) -> list[float]:
        """Seconds of each node, in a run as `run` makes it."""
        slots, marks = self._slots(feeds), [time.perf_counter()]
        with np.errstate(all="ignore"):
            for step in self._steps:
                _do(step, slots)
                marks.append(time.perf_counter())
        return [b - a for a, b in itertools.pairwise(marks)]

    def _slots(self, feeds: Mapping[str, Any]) -> list[Any]:
        names = [value.name for value in self.inputs]
        for name in feeds:
            if name not in names:
                raise ValueError(f"{name!r} is no input of the model; its inputs are {names}")
        slots = self._start.copy()
        for value, at in zip(self.inputs, self._in, strict=True):
            if value.name not in feeds:
                raise ValueError(f"the input {value.name!r} is missing")
            slots[at] = _checked(value, feeds[value.name])
        return slots

    def _results(self, slots: list[Any]) -> list[np.ndarray]:
        made = [np.asarray(slots[at]) for at in self._out]
        return [x if x.flags.c_contiguous and x.flags.writeable else np.array(x, order="C") for x in made]

    def __repr__(self) -> str:
        names = [value.name for value in self.inputs]
        return f"Model({len(self._steps)} nodes, inputs {names}, outputs {[value.name for value in self.outputs]})"


def _do(step: Step, slots: list[Any], keep: bool = False) -> tuple[Any, ...]:
    made = call(step.node, step.run, *[slots[at] for at in step.inputs])
    outputs = made if type(made) is tuple else (made,)
    for at, value in zip(step.outputs, outputs, strict=False):
        if at >= 0:
            slots[at] = value
    if not keep:
        for at in step.free:
            slots[at] = None
    return outputs


def _checked(value: Value, given: Any) -> np.ndarray:
    x = np.asarray(given)
    if value.dtype is not None and x.dtype != value.dtype:
        raise TypeError(f"the input {value.name!r} has dtype {x.dtype}, wanted {value.dtype}")
    if value.shape is not None:
        fits = len(value.shape) == x.ndim and all(
            not isinstance(n, int) or n == size for n, size in zip(value.shape, x.shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("?" if n is None else str(n) for n in value.shape)
            raise ValueError(f"the input {value.name!r} has shape {x.shape}, wanted ({wanted})")
    return _read_only(x)


def _read_only(x: np.ndarray) -> np.ndarray:
    """A view that nothing is written to; so is whatever a node makes of it without a copy, and `_results` sees it."""
    view = x.view()
    view.flags.writeable = False
    return view


def _fold(graph: Graph, everything: bool) -> None:
    """Compute what depends on constants alone: before the fusions small things only, and no dequantized weights."""
    left = []
    for node in graph.nodes:
        known = [graph.constants.get(name) if name else None for name in node.inputs]
        constant = node.inputs and all(v is not None or not name for v, name in zip(known, node.inputs, strict=True))
        small = sum(v.nbytes for v in known if v is not None) <= SMALL and node.op != "DequantizeLinear"
        if not constant or not (everything or small) or node.op.startswith(("Random", "Bernoulli", "Multinomial")):
            left.append(node)
            continue
        slots = dict(zip(node.outputs, _tuple(call(node, prepare(node), *known)), strict=False))
        graph.constants.update({name: np.asarray(value) for name, value in slots.items() if name})
    graph.nodes = left


def _tuple(made: Any) -> Sequence[Any]:
    return made if type(made) is tuple else (made,)


COMPUTE = ("float32", "int8")


def load(model: Any, compute: str = "float32") -> Model:
    """A path, the bytes of a file, or an onnx.ModelProto → a `Model`, its weights packed.

    compute  of products of real numbers and weights that are codes: "float32", as the model says; "int8": rows of x are
             quantized on the way (A8), which is faster and not what the model says

    Raises  ModelError a truncated file, a graph that does not hold together · UnsupportedError (a ModelError) an
            operator, an attribute or an opset that is not supported, with the node · OSError no such file · ValueError
            compute.
    """
    if compute not in COMPUTE:
        raise ValueError(f"load: compute={compute!r}, wanted one of {', '.join(map(repr, COMPUTE))}")
    return Model(graph_of(read(model)), compute)
