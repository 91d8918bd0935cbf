"""A multilayer perceptron, trained in float by scikit-learn, and the same network in 8-bit integers.

Quantization from first principles, spelled out: value = scale · (code − zero_point). A layer relu(x · w + bias) becomes

    acc = Σ_k (x − x_zero) · w + bias          integers, exact, by qkernels.matmul                    arithmetic.md A2
    y   = clamp(round(acc · m)) + y_zero       m = x_scale · w_scale / y_scale, half to even          arithmetic.md A5

Weights have a scale for each output, activations one for each layer, found on the training images (calibration).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import qkernels as qk

QMIN, QMAX = -128, 127
F32 = np.float32


class Images(NamedTuple):
    """x (images, 64) float32, −1 for white … 1 for black; y (images,) the digit."""

    x: np.ndarray
    y: np.ndarray


def digits(held_out: int = 450) -> tuple[Images, Images]:
    """1797 handwritten digits of 8×8 pixels (UCI, part of scikit-learn): those to train on, those held out."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(pixels))
    x, y = ((pixels[order] - 8) / 8).astype(F32), labels[order]
    return Images(x[held_out:], y[held_out:]), Images(x[:held_out], y[:held_out])


class FloatNetwork(NamedTuple):
    weights: list[np.ndarray]  # (inputs, outputs) float32 each
    biases: list[np.ndarray]

    def activations(self, x: np.ndarray) -> list[np.ndarray]:
        """The input of every layer, and the logits."""
        values = [x]
        for layer, (w, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            y = values[-1] @ w
            y += bias
            if layer < len(self.weights) - 1:
                np.maximum(y, 0, out=y)
            values.append(y)
        return values

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.activations(x)[-1]


def train(images: Images, hidden: tuple[int, ...] = (512, 512), epochs: int = 15) -> FloatNetwork:
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier
    from threadpoolctl import threadpool_limits  # scikit-learn needs it, so it is there

    model = MLPClassifier(hidden, max_iter=epochs, batch_size=64, random_state=0)
    # Products of 64 rows are too small for threads: on a busy machine they cost ten times the training.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # as many epochs as were asked for
        model.fit(*images)
    contiguous = [np.ascontiguousarray(w, F32) for w in model.coefs_]
    return FloatNetwork(contiguous, [np.ascontiguousarray(bias, F32) for bias in model.intercepts_])


class Range(NamedTuple):
    """The codes of a layer's activations."""

    scale: np.float32
    zero: int


def calibrate(values: np.ndarray) -> Range:
    """int8 codes for the range of `values` and 0, which gets a code of its own."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    scale = F32((high - low) / (QMAX - QMIN)) if high > low else F32(1)
    return Range(scale, int(np.clip(np.rint(QMIN - low / float(scale)), QMIN, QMAX)))


def quantize(x: np.ndarray, to: Range) -> np.ndarray:
    """arithmetic.md A7: a true division, half to even."""
    t = x / to.scale
    np.clip(t, QMIN - to.zero, QMAX - to.zero, out=t)
    np.rint(t, out=t)
    t += F32(to.zero)
    return t.astype(np.int8)


def requantize(acc: np.ndarray, m: np.ndarray, zero: int) -> np.ndarray:
    """arithmetic.md A5, half_even: clamp(rint(f32(f32(acc) · m))) + zero. acc int32, m float32 for each column."""
    t = acc.astype(F32)
    t *= m
    np.clip(t, QMIN - zero, QMAX - zero, out=t)
    np.rint(t, out=t)
    t += F32(zero)
    return t.astype(np.int8)


class Layer(NamedTuple):
    w: np.ndarray  # (inputs, outputs) int8
    w_scale: np.ndarray  # float32, one for each output
    packed: qk.PackedMatrix
    bias: np.ndarray  # int32, in units of x_scale · w_scale
    x: Range
    unit: np.ndarray  # float32, one for each output: x_scale · w_scale, what one of acc is worth
    m: np.ndarray | None  # float32, unit / y_scale; None for the last layer, whose acc become logits
    y: Range | None


Product = Callable[[np.ndarray, Layer], np.ndarray]


def by_qkernels(x: np.ndarray, layer: Layer) -> np.ndarray:
    return qk.matmul(x, layer.packed, a_zero_point=layer.x.zero)


def by_numpy_int32(x: np.ndarray, layer: Layer) -> np.ndarray:
    """The same integers as NumPy users get them."""
    return np.matmul(x.astype(np.int32) - layer.x.zero, layer.w.astype(np.int32))


class Int8Network(NamedTuple):
    layers: list[Layer]

    def __call__(self, x: np.ndarray, product: Product = by_qkernels) -> np.ndarray:
        """Float images in, float logits out; int8 in between."""
        codes = quantize(x, self.layers[0].x)
        for layer in self.layers:
            acc = product(codes, layer)
            acc += layer.bias
            if layer.m is None or layer.y is None:
                return acc.astype(F32) * layer.unit
            codes = requantize(acc, layer.m, layer.y.zero)  # y.zero is the code of 0, so the lower clamp is relu
        raise ValueError("an Int8Network needs a last layer, without y")


def by_linear(network: Int8Network) -> Callable[[np.ndarray], np.ndarray]:
    """The same network as a user of `linear` writes it: one call a layer, the same bits."""
    weights = [qk.QTensor(layer.w.T, layer.w_scale, axis=0) for layer in network.layers]

    def run(x: np.ndarray) -> np.ndarray:
        first = network.layers[0]
        codes: Any = qk.quantize(x, first.x.scale, first.x.zero)
        for layer, weight in zip(network.layers, weights, strict=True):
            if layer.y is None:
                return qk.linear(codes, weight, layer.bias)
            codes = qk.linear(codes, weight, layer.bias, out_scale=layer.y.scale, out_zero_point=layer.y.zero)
        raise ValueError("an Int8Network needs a last layer, without y")

    return run


def quantize_network(network: FloatNetwork, training: np.ndarray) -> Int8Network:
    ranges = [calibrate(values) for values in network.activations(training)[:-1]]
    layers: list[Layer] = []
    for i, (w, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        w_scale = np.maximum(np.abs(w).max(axis=0) / F32(127), np.finfo(F32).tiny)
        codes = np.clip(np.rint(w / w_scale), -127, 127).astype(np.int8)
        unit = ranges[i].scale * w_scale
        y: Any = ranges[i + 1] if i + 1 < len(ranges) else None
        m = unit / y.scale if y else None
        layers.append(
            Layer(codes, w_scale, qk.pack(codes), np.rint(bias / unit).astype(np.int32), ranges[i], unit, m, y)
        )
    return Int8Network(layers)


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(logits.argmax(axis=1) == labels))
