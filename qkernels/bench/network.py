"""`python -m qkernels bench --op network`: what a quantized network does between its products, beside others.

As elementwise.py, whose table this is too: images of codes, one and sixteen of them, channels last unless it is said.
torch's quantized operators round and rescale by rules of their own; the share of codes that differ stands in the table.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

import qkernels as qk
from qkernels import dispatch
from qkernels.bench.elementwise import Contenders, codes_of, ort, show, start, torch_or_none
from qkernels.kernel import Average, Problem, Product, Sum, Window
from qkernels.ops.softmax import exponentials

F32 = np.float32
IMAGES = (1, 16)
SHAPE = (56, 56, 256)
MICROSOFT = "com.microsoft"


class Data:
    def __init__(self, images: int) -> None:
        rng = np.random.default_rng(images)
        self.x, self.y = rng.integers(0, 256, (2, images, *SHAPE), np.uint8)
        self.a, self.b = qk.QTensor(self.x, 0.02, 100), qk.QTensor(self.y, 0.03, 128)
        self.turned = np.ascontiguousarray(self.x.transpose(0, 3, 1, 2))


def _constants(**values: float) -> dict[str, np.ndarray]:
    """Scales in float32, and zero points (names with a z) in uint8."""
    return {name: np.asarray(value, np.uint8 if name.startswith("z") else F32) for name, value in values.items()}


def _kernel(op: str, types: str, arguments: tuple[Any, ...]) -> Contenders:
    kernel = dispatch.choose(Problem(op, types, 1 << 10, 1 << 10, 1))

    def call() -> Any:
        kernel.run(*arguments)
        return arguments[-1]

    return {"kernel": (call, np.asarray)}


def _of_torch(x: np.ndarray, scale: float, zero: int) -> Any:
    """A quantized tensor, channels last: a view of NHWC."""
    torch = torch_or_none()
    q = torch._make_per_tensor_quantized_tensor(torch.from_numpy(x), scale, zero)
    return q.permute(0, 3, 1, 2)


def _nhwc(result: Any) -> np.ndarray:
    return np.asarray(result.int_repr().permute(0, 2, 3, 1).numpy())


def _pair(d: Data, op: str) -> Contenders:
    ours = getattr(qk, op)
    found: Contenders = {"qkernels": (lambda: ours(d.a, d.b, 0.05, 120), codes_of)}
    flat = d.x.reshape(-1), d.y.reshape(-1)
    ratios = F32(0.02) / F32(0.05), F32(0.03) / F32(0.05)
    offset = F32(120) - (ratios[0] * F32(100) + ratios[1] * F32(128))
    product = Product(F32(0.02) * F32(0.03) / F32(0.05), 100, 128, 120)
    by: Any = Sum(*ratios, offset) if op == "add" else product
    found |= _kernel(op, "u8u8u8", (*flat, by, np.empty_like(flat[0])))
    if torch_or_none():
        x, y = _of_torch(d.x, 0.02, 100), _of_torch(d.y, 0.03, 128)
        call = getattr(torch_or_none().ops.quantized, op)
        found["torch"] = (lambda: call(x, y, 0.05, 120)), _nhwc
    values = _constants(sa=0.02, za=100) | {"b": d.y} | _constants(sb=0.03, zb=128, sy=0.05, zy=120)
    return found | ort(f"QLinear{op.title()}", d.x, np.uint8, values, domain=MICROSOFT)


def _sigmoid(d: Data) -> Contenders:
    found: Contenders = {"qkernels": (lambda: qk.lookup(d.a, "sigmoid", 1 / 256), codes_of)}
    table = qk.lookup(qk.QTensor(np.arange(256).astype(np.uint8), 0.02, 100), "sigmoid", 1 / 256).codes()
    flat = d.x.reshape(-1)
    found |= _kernel("lookup", "u8u8", (flat, table, np.empty_like(flat)))
    if torch_or_none():
        x = _of_torch(d.x, 0.02, 100)
        found["torch"] = (lambda: torch_or_none().sigmoid(x)), _nhwc
    return found | ort("QLinearSigmoid", d.x, np.uint8, _constants(sx=0.02, zx=100, sy=1 / 256, zy=0), domain=MICROSOFT)


def _softmax(d: Data) -> Contenders:
    found: Contenders = {"qkernels": (lambda: qk.softmax(d.a), codes_of)}
    rows = d.x.reshape(-1, SHAPE[-1])
    out = np.empty_like(rows)
    found |= _kernel("softmax", "u8u8", (rows, exponentials(F32(0.02), SHAPE[-1]), F32(256), 0, out))
    values = _constants(sx=0.02, zx=100, sy=1 / 256, zy=0)
    return found | ort("QLinearSoftmax", d.x, np.uint8, values, domain=MICROSOFT, axis=-1, opset=13)


def _concat(d: Data) -> Contenders:
    found: Contenders = {"qkernels": (lambda: qk.concat([d.a, d.b], 3), codes_of)}
    found["kernel"] = found["qkernels"]
    if torch_or_none():
        x, y = _of_torch(d.x, 0.02, 100), _of_torch(d.y, 0.03, 128)
        call = torch_or_none().ops.quantized.cat
        found["torch"] = (lambda: call([x, y], 1, 0.02, 100)), _nhwc
    none = np.empty(0)  # x itself
    values = _constants(sy=0.02, zy=100) | {"x": none} | _constants(sa=0.02, za=100) | {"b": d.y}
    values |= _constants(sb=0.03, zb=128)
    shape = (*d.x.shape[:3], 2 * SHAPE[-1])
    return found | ort("QLinearConcat", d.x, np.uint8, values, shape=shape, domain=MICROSOFT, axis=3)


def _max_pool(d: Data, layout: str) -> Contenders:
    nchw = layout == "NCHW"
    q = qk.QTensor(d.turned, 0.02, 100) if nchw else d.a
    found: Contenders = {"qkernels": (lambda: qk.max_pool2d(q, 3, stride=2, padding=1, layout=layout), codes_of)}
    window = Window((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1))
    shape = (len(d.x), SHAPE[-1], 28, 28) if nchw else (len(d.x), 28, 28, SHAPE[-1])
    out = np.empty(shape, np.uint8)
    views = (d.turned.transpose(0, 2, 3, 1), out.transpose(0, 2, 3, 1)) if nchw else (d.x, out)
    found |= _kernel("max_pool", "u8u8", (views[0], window, views[1]))
    found["kernel"] = found["kernel"][0], lambda result: result.transpose(0, 3, 1, 2) if nchw else result
    torch = torch_or_none()
    if torch:
        x = _of_torch(d.x, 0.02, 100)
        x = x.contiguous() if nchw else x
        call = torch.nn.functional.max_pool2d
        found["torch"] = (
            (lambda: call(x, 3, 2, 1)),
            (lambda result: result.int_repr().numpy()) if nchw else _nhwc,
        )
    if not nchw:
        return found
    attributes: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    return found | ort("MaxPool", d.turned, np.uint8, {}, shape=shape, **attributes)


def _avg_pool(d: Data) -> Contenders:
    how: dict[str, Any] = {"stride": 2, "padding": 1, "layout": "NHWC"}
    found: Contenders = {"qkernels": (lambda: qk.avg_pool2d(d.a, 3, 0.02, 100, **how), codes_of)}
    window = Window((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1))
    shape = (len(d.x), 28, 28, SHAPE[-1])
    out = np.empty(shape, np.uint8)
    found |= _kernel("avg_pool", "u8u8", (d.x, window, Average(F32(0.02), 100, F32(0.02), 100, False), out))
    torch = torch_or_none()
    if torch:
        x = _of_torch(d.x, 0.02, 100)
        call = torch.nn.functional.avg_pool2d
        found["torch"] = (lambda: call(x, 3, 2, 1, count_include_pad=False)), _nhwc
    attributes: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "channels_last": 1}
    values = _constants(sx=0.02, zx=100, sy=0.02, zy=100)
    return found | ort("QLinearAveragePool", d.x, np.uint8, values, shape=shape, domain=MICROSOFT, **attributes)


def _global(d: Data) -> Contenders:
    found: Contenders = {"qkernels": (lambda: qk.global_avg_pool(d.a, 0.01, 100, layout="NHWC"), codes_of)}
    found["kernel"] = found["qkernels"]
    torch = torch_or_none()
    if torch:
        x = _of_torch(d.x, 0.02, 100)
        found["torch"] = (lambda: torch.nn.functional.adaptive_avg_pool2d(x, (1, 1))), _nhwc
    shape = (len(d.x), 1, 1, SHAPE[-1])
    values = _constants(sx=0.02, zx=100, sy=0.01, zy=100)
    return found | ort(
        "QLinearGlobalAveragePool", d.x, np.uint8, values, shape=shape, domain=MICROSOFT, channels_last=1
    )


SUBJECTS: dict[str, Callable[[Data], Contenders]] = {
    "add": lambda d: _pair(d, "add"),
    "mul": lambda d: _pair(d, "mul"),
    "sigmoid by table": _sigmoid,
    "softmax of 256": _softmax,
    "concat, one part rescaled": _concat,
    "max_pool 3×3 s2": lambda d: _max_pool(d, "NHWC"),
    "max_pool 3×3 s2 NCHW": lambda d: _max_pool(d, "NCHW"),
    "avg_pool 3×3 s2": _avg_pool,
    "global_avg_pool": _global,
}


def run(options: argparse.Namespace) -> int:
    """Prints a line a subject, as elementwise.py."""
    start(options)
    for images in IMAGES[:1] if options.quick else IMAGES:
        data = Data(images)
        shape = "×".join(map(str, data.x.shape))
        print(f"{shape} codes, {options.threads} thread(s), µs; +%: differs; best peer / qkernels, / kernel")
        show(options, {name: functools.partial(make, data) for name, make in SUBJECTS.items()})
    return 0
