"""Text recognition in int8: what it reads, and how fast, beside ONNX Runtime, OpenVINO and torch.

    pip install 'qkernels[onnx]' pillow; pip install --no-deps rapidocr-onnxruntime ddddocr; pip install openvino torch
    python examples/ocr.py [--threads 1 2] [--lines 60] [--nodes]

Two networks that their packages ship. PP-OCRv4's recogniser (rapidocr-onnxruntime), float, is quantized here by ONNX
Runtime's tools: a scale for each filter, convolutions and products, QDQ. ddddocr's is quantized as it is shipped:
ConvInteger, DynamicQuantizeLSTM. The same int8 file is everybody's; lines are rendered, so that every letter is known.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_peers
import text_lines

import qkernels as qk
import qkernels.onnx
from qkernels.bench import timing

HEIGHT, WIDTH = 48, 320  # of the recogniser's input
CALIBRATION = 24  # lines of either kind
OLD_HEIGHT = 64


class Task(NamedTuple):
    name: str
    model: bytes
    floats: bytes | None  # the network before it was quantized
    prepare: Callable[[np.ndarray], np.ndarray]
    characters: Sequence[str]
    sets: dict[str, list[text_lines.Line]]


def folder_of(package: str) -> pathlib.Path:
    """Without importing it: the networks need nothing else of the packages."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations is not None
    return pathlib.Path(spec.submodule_search_locations[0])


# ---------------------------------------------------------------- PP-OCRv4


def recogniser_input(pixels: np.ndarray) -> np.ndarray:
    """(1, 3, 48, 320): −1 … 1, the rest of the width 0."""
    line = text_lines.resized(pixels, HEIGHT, WIDTH)
    made = np.zeros((1, 3, HEIGHT, WIDTH), np.float32)
    made[..., : line.shape[1]] = line * 2 - 1
    return made


def recogniser(lines: int) -> Task:
    import onnx

    model = onnx.load(folder_of("rapidocr_onnxruntime") / "models" / "ch_PP-OCRv4_rec_infer.onnx")
    listed = next(entry.value for entry in model.metadata_props if entry.key == "character")
    sets = {f"{kind} lines": text_lines.sentences(lines, 1, hard=kind == "hard") for kind in ("clean", "hard")}
    floats, int8 = quantized(model)
    return Task("PP-OCRv4 recogniser", int8, floats, recogniser_input, ["", *listed.split("\n"), " "], sets)


def quantized(model: Any) -> tuple[bytes, bytes]:
    """(the network as floats, the same in int8), both simplified by ONNX Runtime's own pass before quantization."""
    import onnx
    from onnx import version_converter
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Lines(CalibrationDataReader):
        def __init__(self) -> None:
            hard, clean = (text_lines.sentences(CALIBRATION, seed, hard) for seed, hard in ((7, True), (8, False)))
            self.left: Iterator[Any] = iter([{"x": recogniser_input(line.pixels)} for line in hard + clean])

        def get_next(self) -> Any:
            return next(self.left, None)

    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        newer, simple, made = (pathlib.Path(folder) / f"{name}.onnx" for name in ("newer", "simple", "int8"))
        onnx.save(version_converter.convert_version(model, 17), newer)
        quant_pre_process(str(newer), str(simple), skip_symbolic_shape=True)
        quantize_static(
            str(simple), str(made), Lines(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, op_types_to_quantize=["Conv", "MatMul"],
        )  # fmt: skip
        return simple.read_bytes(), made.read_bytes()


# ---------------------------------------------------------------- ddddocr


def old_input(pixels: np.ndarray) -> np.ndarray:
    """(1, 1, 64, width): 0 … 1."""
    return np.ascontiguousarray(text_lines.resized(pixels, OLD_HEIGHT)[None, None])


def conv_integer(lines: int) -> Task:
    folder = folder_of("ddddocr")
    spec = importlib.util.spec_from_file_location("charsets", folder / "charsets.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = (folder / "common_old.onnx").read_bytes()
    sets = {"strings": text_lines.strings(lines, 3)}
    return Task("ddddocr, ConvInteger", model, None, old_input, module.CHARSET_OLD, sets)


# ---------------------------------------------------------------- what they read, how long they take


def calls_of(task: Task, threads: int, x: np.ndarray) -> dict[str, onnx_peers.Call]:
    """By name; x: an input, whose shape is that of all. A peer that cannot run the model is left out, and says why."""
    qk.set_num_threads(threads)
    ours = qkernels.onnx.load(task.model)
    calls: dict[str, onnx_peers.Call] = {"qkernels int8": lambda x: ours(x)[0]}
    makers: dict[str, Any] = {"onnxruntime int8": ("onnxruntime", lambda: onnx_peers.onnx_runtime(task.model, threads))}
    makers["openvino int8"] = ("openvino", lambda: onnx_peers.openvino(task.model, threads, x.shape))
    floats = task.floats
    if floats is not None:
        makers["torch float32"] = ("torch", lambda: onnx_peers.torch_float(floats, threads, x))
    for name, (package, make) in makers.items():
        if not onnx_peers.installed(package):
            continue
        try:
            call = make()
            call(x)
        except Exception as error:
            print(f"  {name} does not run it: {str(error).strip().splitlines()[0][:100]}")
            continue
        calls[name] = call
    return calls


def accuracy(task: Task, calls: dict[str, onnx_peers.Call]) -> Iterator[str]:
    """Character error rate, and whole lines that are right. Peers that were made for one shape read those of it."""
    for title, lines in task.sets.items():
        for name, call in calls.items():
            wrong = letters = right = count = 0
            for line in lines:
                try:
                    got = text_lines.read(_steps(call(task.prepare(line.pixels))), task.characters)
                except Exception:  # of another width
                    continue
                count += 1
                wrong += text_lines.errors(got, line.text)
                letters += len(line.text)
                right += got == line.text
            if count:
                rate = wrong / letters
                yield f"  {title:12} {name:18} character errors {rate:6.3f}, lines right {right:3} of {count}"


def _steps(scores: np.ndarray) -> np.ndarray:
    """(steps, classes) of (1, steps, classes) or (steps, 1, classes)."""
    return scores.reshape(-1, scores.shape[-1])


def times(calls: dict[str, onnx_peers.Call], x: np.ndarray, threads: int) -> Iterator[str]:
    """ms a line of everybody, interleaved."""
    samples = timing.interleave(
        {name: (lambda call=call: call(x)) for name, call in calls.items()}, rounds=15, seconds=20, idle=0.01
    )
    ours = float(np.median(samples["qkernels int8"]))
    for name, taken in samples.items():
        took = float(np.median(taken))
        yield (
            f"  {name:18}{took / 1e3:8.2f} ms ± {100 * timing.spread(taken):2.0f} %  {took / ours:5.2f} × ours, "
            f"{threads} thread{'s' if threads > 1 else ''}"
        )


TASKS = {"rapidocr_onnxruntime": recogniser, "ddddocr": conv_integer}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--lines", type=int, default=60, help="that are read, of each kind")
    parser.add_argument("--nodes", action="store_true", help="every node's time and kernels")
    options = parser.parse_args(arguments)
    missing = [name for name in TASKS if not onnx_peers.installed(name)]
    for name in missing:
        sys.stderr.write(f"ocr: the package {name} is missing, which has the network: pip install --no-deps {name}\n")
    for package, make in TASKS.items():
        if package in missing:
            continue
        task = make(options.lines)
        print(task.name)
        first = next(iter(task.sets.values()))[0]
        x = task.prepare(first.pixels)
        for i, threads in enumerate(options.threads):
            calls = calls_of(task, threads, x)
            if i == 0:
                print(*accuracy(task, calls), sep="\n")
                if options.nodes:
                    print(nodes(task, x))
            print(*times(calls, x, threads), sep="\n")
    return 1 if len(missing) == len(TASKS) else 0


def nodes(task: Task, x: np.ndarray) -> str:
    from qkernels.onnx.command import table

    model = qkernels.onnx.load(task.model)
    feeds = {model.inputs[0].name: x}
    made = model.trace(feeds)
    return table(made, list(np.median([model.times(feeds) for _ in range(9)], axis=0)), 0.0, 0)


if __name__ == "__main__":
    raise SystemExit(main())
