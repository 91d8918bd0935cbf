"""The engine beside Python: one network, written for the engine, run by both in turn; the codes must be equal.

cmake -S examples/engine_cpp -B build/engine -Dqkernels_DIR="$(python -m qkernels --cmakedir)"
cmake --build build/engine
python examples/engine_cpp/compare.py build/engine/engine
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

import qkernels as qk
from qkernels.geometry import out_size

F32 = np.float32
Image = tuple[int, int, int, int]  # batch, height, width, channels


class Layer(NamedTuple):
    """uint8 codes in and out, int8 weights with a scale for each channel, relu where low is the zero point."""

    weight: qk.QTensor  # (n, k), or (filters, height, width, channels of a group)
    bias: np.ndarray
    x_zero: int
    scales: tuple[float, float]  # of input and output
    zero: int
    relu: bool
    options: dict[str, Any]  # of conv2d; empty: linear

    def __call__(self, x: qk.QTensor) -> qk.QTensor:
        common = {"out_scale": self.scales[1], "out_zero_point": self.zero, "activation": "relu" if self.relu else None}
        if not self.options:
            flat = qk.QTensor(x.data.reshape(len(x.data), -1), x.scale, x.zero_point)
            return qk.linear(flat, self.weight, self.bias, **common)
        return qk.conv2d(x, self.weight, self.bias, layout="NHWC", **self.options, **common)

    def numbers(self, x: Image) -> list[int]:
        """The header of the layer in the engine's file."""
        head = [int(bool(self.options)), self.x_zero, self.zero, self.zero if self.relu else 0, 255]
        shape = self.weight.shape
        if not self.options:
            return [*head, x[0], *shape]
        stride, pads, groups = (self.options.get(name, 1) for name in ("stride", "padding", "groups"))
        kernel = shape[1:3]
        out = [out_size(x[i + 1], kernel[i], stride, 1, (pads, pads)) for i in (0, 1)]
        return [
            *head, x[0], 1, *x[1:3], x[3], shape[0], 1, *kernel, 1, stride, stride, 1, 1, 1, 0, pads, pads, 1, *out,
            groups,
        ]  # fmt: skip

    def write(self, x: Image) -> bytes:
        scale = F32(self.scales[0]) * self.weight.scale.reshape(-1) / F32(self.scales[1])
        arrays = self.weight.data, self.bias.astype(np.int32), scale.astype(F32)
        numbers = self.numbers(x)
        return struct.pack(f"<{len(numbers)}q", *numbers) + b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)


def network(image: Image, seed: int = 0) -> list[Layer]:
    """Convolution, depthwise and pointwise convolutions, two linear layers: random weights, sensible scales."""
    rng = np.random.default_rng(seed)
    _, height, width, channels = image
    layers: list[Layer] = []
    scale, zero = 0.02, 3

    def add(shape: tuple[int, ...], relu: bool = True, **options: Any) -> None:
        nonlocal scale, zero
        codes = rng.integers(-127, 128, shape).astype(np.int8)
        weight = qk.QTensor(codes, rng.uniform(0.002, 0.01, shape[0]).astype(F32), axis=0)
        bias = rng.integers(-2000, 2000, shape[0]).astype(np.int32)
        reach = scale * 0.006 * 128 * 74 * np.sqrt(np.prod(shape[1:]))
        made = float(F32(4 * reach / 255)), int(rng.integers(0, 20)) if relu else 128
        layers.append(Layer(weight, bias, zero, (scale, made[0]), made[1], relu, options))
        scale, zero = made

    add((32, 3, 3, channels), stride=2, padding=1, groups=1)
    add((32, 3, 3, 1), stride=1, padding=1, groups=32)
    add((64, 1, 1, 32), stride=1, padding=0, groups=1)
    flat = -(-height // 2) * -(-width // 2) * 64
    add((128, flat))
    add((10, 128), relu=False)
    return layers


def save(path: pathlib.Path, layers: Sequence[Layer], image: Image) -> None:
    """The engine's file: the number of layers, and each one's numbers and arrays."""
    parts, x = [struct.pack("<q", len(layers))], image
    for layer in layers:
        parts.append(layer.write(x))
        numbers = layer.numbers(x)
        if layer.options:
            x = (x[0], numbers[-3], numbers[-2], layer.weight.shape[0])
    path.write_bytes(b"".join(parts))


def runner(layers: Sequence[Layer]) -> Callable[[np.ndarray], np.ndarray]:
    def run(codes: np.ndarray) -> np.ndarray:
        x = qk.QTensor(codes, layers[0].scales[0], layers[0].x_zero)
        for layer in layers:
            x = layer(x)
        return x.data

    return run


class Engine:
    """The program, kept running, so that its rounds and Python's can take turns."""

    def __init__(self, program: str, model: pathlib.Path, threads: int) -> None:
        self.process = subprocess.Popen(
            [program, str(model), str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.folder = model.parent

    def run(self, codes: np.ndarray, outputs: int, rounds: int = 1) -> tuple[np.ndarray, float]:
        """(codes of the last layer, median seconds of a run)."""
        assert self.process.stdin is not None and self.process.stdout is not None
        source, target = self.folder / "input", self.folder / "output"
        source.write_bytes(codes.tobytes())
        self.process.stdin.write(f"{source} {target} {rounds}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the engine ended with status {self.process.wait()}")
        return np.frombuffer(target.read_bytes(), np.uint8).reshape(-1, outputs), int(line) * 1e-9

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=56)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    image = options.batch, options.size, options.size, 3
    layers = network(image)
    qk.set_num_threads(options.threads)
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 256, image).astype(np.uint8)
    run = runner(layers)
    with tempfile.TemporaryDirectory() as folder:
        model = pathlib.Path(folder, "model")
        save(model, layers, image)
        engine = Engine(options.engine, model, options.threads)
        wanted = run(codes)
        found, _ = engine.run(codes, 10)
        if not np.array_equal(found, wanted):
            print("the codes differ")
            return 1
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(options.rounds):
            times[0].append(engine.run(codes, 10, 5)[1])
            inner = []
            for _ in range(5):
                start = time.perf_counter()
                run(codes)
                inner.append(time.perf_counter() - start)
            times[1].append(statistics.median(inner))
        engine.close()
    mine, theirs = (1e6 * statistics.median(t) for t in times)
    print(f"{len(layers)} layers, batch {options.batch}, {options.threads} threads: the same codes")
    print(f"engine {mine:.0f} µs, Python {theirs:.0f} µs, engine/Python {mine / theirs:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
