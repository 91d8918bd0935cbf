"""Other libraries that multiply int8 matrices, each through its fastest way in; imported when they are asked for.

To add one: a class with `name`, `types`, `available()`, `prepare(a, b, threads)` (contender.py), and a line in PEERS.
Its result is checked before it is timed; one that computes wrong numbers is shown, and is not the best peer.

Why not OpenVINO, LiteRT: their products leave as rescaled codes or floats, not as int32. OpenVINO is beside `linear`.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from qkernels.bench.contender import Call, Contender
from qkernels.bench.onnx_sessions import bound


class _Library:
    """A peer that is a module of this interpreter."""

    name = types = ""
    modules: tuple[str, ...] = ()

    def available(self) -> str:
        missing = [module for module in self.modules if importlib.util.find_spec(module) is None]
        return f"not installed: {', '.join(missing)}" if missing else ""

    def version(self) -> str:
        return importlib.metadata.version(self.modules[0])


def _by_matrix(prepare: Callable[[np.ndarray, np.ndarray], tuple[Call, Any]], a: np.ndarray, b: np.ndarray) -> Call:
    """A library of plain matrices, over a batch: one call each. The result is a list."""
    if a.ndim == 2:
        return prepare(a, b)[0]
    calls = [prepare(one_a, one_b)[0] for one_a, one_b in zip(a, b, strict=True)]
    return lambda: [call() for call in calls]


class _OnnxRuntime(_Library):
    """MatMulInteger, b an initializer (so it is packed before), input and output bound to our memory."""

    modules = ("onnxruntime", "onnx")

    def prepare(self, a: np.ndarray, b: np.ndarray, threads: int) -> Call | None:
        from onnx import TensorProto, helper, numpy_helper

        shape = (*a.shape[:-1], b.shape[-1])
        kind = TensorProto.UINT8 if a.dtype == np.uint8 else TensorProto.INT8
        graph = helper.make_graph(
            [helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
            "product",
            [helper.make_tensor_value_info("a", kind, a.shape)],
            [helper.make_tensor_value_info("y", TensorProto.INT32, shape)],
            [numpy_helper.from_array(b, "b")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        y = np.empty(shape, np.int32)
        return bound(model, threads, {"a": a}, {"y": y}, y)


class OnnxRuntimeU8(_OnnxRuntime):
    name, types = "ort_u8s8", "u8s8"


class OnnxRuntimeS8(_OnnxRuntime):
    name, types = "ort_s8s8", "s8s8"


class TorchIntMm(_Library):
    """torch._int_mm (oneDNN), b by rows or by columns, whichever is faster here; it cannot pack."""

    name, types, modules = "torch_int_mm", "s8s8", ("torch",)

    def prepare(self, a: np.ndarray, b: np.ndarray, threads: int) -> Call | None:
        import torch

        torch.set_num_threads(threads)

        def one(a: np.ndarray, b: np.ndarray) -> tuple[Call, Any]:
            x, out = torch.from_numpy(a), torch.empty((len(a), b.shape[1]), dtype=torch.int32)
            rows = torch.from_numpy(b)
            ways = [functools.partial(torch._int_mm, x, y, out=out) for y in (rows, rows.t().contiguous().t())]
            return min(ways, key=_quickly), out

        return _by_matrix(one, a, b)


def _quickly(call: Call) -> float:
    """s: the best of three, after a call that may set things up; of a long call, that one."""
    times: list[float] = []
    while len(times) < 4 and sum(times) < 0.05:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times[1:] or times)


class NumKong(_Library):
    """dots_pack once, dots_packed into a given output. One thread, whatever is asked for."""

    name, types, modules = "numkong", "s8s8", ("numkong",)

    def prepare(self, a: np.ndarray, b: np.ndarray, threads: int) -> Call | None:
        import numkong

        def one(a: np.ndarray, b: np.ndarray) -> tuple[Call, Any]:
            packed = numkong.dots_pack(np.ascontiguousarray(b.T))
            out = numkong.dots_packed(a, packed)
            return functools.partial(numkong.dots_packed, a, packed, out=out), out

        return _by_matrix(one, a, b)


PEERS: tuple[Contender, ...] = (OnnxRuntimeU8(), OnnxRuntimeS8(), TorchIntMm(), NumKong())


def chosen(names: str, of: tuple[Contender, ...] = PEERS) -> list[Contender]:
    """Those of the peers that each word between commas begins, or "all". Raises ValueError for one that begins none."""
    if names == "all":
        return list(of)
    found = []
    for word in names.split(","):
        matching = [peer for peer in of if peer.name.startswith(word.strip())]
        if not matching:
            raise ValueError(f"bench: no peer begins with {word!r}; there are {', '.join(peer.name for peer in of)}")
        found += matching
    return found
