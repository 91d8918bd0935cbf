"""DynamicQuantizeLSTM: an LSTM whose two products are `linear` of codes, activations quantized when they come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qkernels import dispatch
from qkernels.kernel import Problem
from qkernels.onnx.codes import by_axis, whole
from qkernels.onnx.curves import gates
from qkernels.onnx.graph import MICROSOFT, Node
from qkernels.onnx.registry import Run, operator
from qkernels.ops.dynamic_quantize import dynamic_quantize
from qkernels.ops.linear import linear, pack_linear
from qkernels.tensor import QTensor

F32 = np.float32
ATTRIBUTES = "activation_alpha activation_beta activations clip direction hidden_size input_forget layout"
GATES = ["Sigmoid", "Tanh", "Tanh"]


@operator("DynamicQuantizeLSTM", MICROSOFT, ATTRIBUTES, 12)
def dynamic_quantize_lstm(node: Node) -> Run:
    """X (steps, batch, in), W (directions, in, 4·hidden), R (directions, hidden, 4·hidden), B (directions, 8·hidden),
    sequence_lens, initial h and c, peepholes, then scale and zero point of W and of R. The gates' order: i, o, f, c."""
    direction = node.get("direction", "forward")
    if direction not in ("forward", "reverse", "bidirectional"):
        raise ValueError(f"attribute 'direction' is {direction!r}")
    for name in ("clip", "activation_alpha", "activation_beta", "input_forget", "layout"):
        if node.get(name):
            raise NotImplementedError(f"attribute {name!r}")
    wanted = [str(a, "utf-8") if isinstance(a, bytes) else a for a in node.get("activations") or GATES]
    if any(wanted[i : i + 3] != GATES for i in range(0, len(wanted), 3)):
        raise NotImplementedError(f"attribute 'activations' is {wanted}, wanted {GATES}")
    if node.has(4) or node.has(7):
        raise NotImplementedError("input 'sequence_lens'" if node.has(4) else "input 'P' (peepholes)")
    weights = [_weights(node, *at) for at in ((1, 8, 9), (2, 10, 11))]
    reverse = [direction == "reverse"] if direction != "bidirectional" else [False, True]

    def run(x: Any, w: Any, r: Any, b: Any = None, _lens: Any = None, h: Any = None, c: Any = None, *_: Any) -> tuple:
        made = []
        for d, backward in enumerate(reverse):
            bias = None if b is None else b[d, : b.shape[1] // 2] + b[d, b.shape[1] // 2 :]
            start = [None if v is None else v[d] for v in (h, c)]
            made.append(_cell(x[::-1] if backward else x, weights[0][d], weights[1][d], bias, *start))
        ys = np.stack([y[::-1] if backward else y for (y, _h, _c), backward in zip(made, reverse, strict=True)], axis=1)
        return ys, np.stack([h for _, h, _ in made]), np.stack([c for _, _, c in made])

    return run


def _weights(node: Node, w: int, scale: int, zero: int) -> list[Any]:
    """(in, 4·hidden) of each direction, packed."""
    codes, steps, zeros = (node.constant(i) for i in (w, scale, zero))
    if codes is None or steps is None or zeros is None:
        raise NotImplementedError("weights that are no constants")
    made = []
    for d, one in enumerate(codes):
        step, at = (v.reshape(len(codes), -1)[d] if v.size > 1 else v.reshape(1) for v in (steps, zeros))
        made.append(pack_linear(by_axis(np.ascontiguousarray(one.T), step, at, 0)))
    return made


def _quantizer(rows: int, n: int) -> Callable[[np.ndarray], QTensor]:
    """dynamic_quantize of finite (rows, n), to uint8 of one scale; its memory is written again by the next call."""
    problem = Problem("dynamic_quantize", "f32u8", 1, rows * n, 1)
    run = dispatch.choose(problem).run
    codes, scale, zero = np.empty((rows, n), np.uint8), np.ones((1, 1), F32), np.zeros((1, 1), np.int32)
    flat = codes.reshape(1, -1)

    def quantized(x: np.ndarray) -> QTensor:
        run(x.reshape(1, -1), rows * n, (0, 255), scale, zero, None, flat)
        return whole(codes, scale[0, 0], int(zero[0, 0]))

    return quantized


def _cell(x: np.ndarray, w: Any, r: Any, bias: Any, h: Any, c: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    steps, batch = x.shape[:2]
    hidden = r.shape[1]
    given = linear(dynamic_quantize(np.ascontiguousarray(x), dtype="uint8", per="tensor"), w, bias)
    h = np.zeros((batch, hidden), F32) if h is None else np.ascontiguousarray(h)
    c = np.zeros((batch, hidden), F32) if c is None else c
    ys = np.empty((steps, batch, hidden), F32)
    quantized, sums = _quantizer(batch, hidden), np.empty((batch, 4 * hidden), F32)
    for t in range(steps):
        q = quantized(h)
        now = linear(q, r, out=sums)
        now += given[t]
        open_ = gates(now[:, : 3 * hidden])
        c = open_[:, 2 * hidden :] * c + open_[:, :hidden] * np.tanh(now[:, 3 * hidden :])
        h = np.multiply(open_[:, hidden : 2 * hidden], np.tanh(c), out=ys[t])
    return ys, h, c
