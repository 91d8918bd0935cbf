"""The sentence encoder in onnxruntime and OpenVINO, as their own tools quantize it: for sentence_encoder.py --peers.

Both get the graph that Hugging Face's BERT exports, with three products where sentence_encoder.py has one, because that
is what their fusions of attention look for.
"""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from sentence_encoder import HEADS, LAYERS, WIDTH, Encoder
from torch import nn
from torch.nn import functional as F


class Separate(nn.Module):
    """A layer with a product each for queries, keys and values."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        for part, w, b in zip(self.parts, layer.qkv.weight.split(WIDTH), layer.qkv.bias.split(WIDTH), strict=True):
            part.weight.data, part.bias.data = w.clone(), b.clone()
        self.layer = layer

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        def heads(y: torch.Tensor) -> torch.Tensor:
            return y.view(y.shape[0], y.shape[1], HEADS, WIDTH // HEADS).permute(0, 2, 1, 3)

        q, k, v = (heads(part(x)) for part in self.parts)
        scores = torch.matmul(q, k.transpose(-1, -2)) / (WIDTH // HEADS) ** 0.5 + mask
        mixed = torch.matmul(torch.softmax(scores, -1), v).permute(0, 2, 1, 3).contiguous()
        x = self.layer.norm1(self.layer.out(mixed.view(x.shape[0], x.shape[1], WIDTH)) + x)
        return self.layer.norm2(self.layer.down(F.gelu(self.layer.up(x))) + x)


class Exported(nn.Module):
    def __init__(self, model: Encoder) -> None:
        super().__init__()
        self.model, self.layers = model, nn.ModuleList(Separate(model.layers[i]) for i in range(LAYERS))

    def forward(self, words: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.model.norm(self.model.word(words) + self.model.position.weight[: words.shape[1]])
        hidden = (1.0 - mask[:, None, None, :].to(x.dtype)) * -10000.0
        for layer in self.layers:
            x = layer(x, hidden)
        return x


def _files(model: Encoder, folder: pathlib.Path) -> dict[str, str]:
    """ONNX files: as exported, with onnxruntime's fusions and dynamic int8, and with int8 ranges in the graph."""
    import numpy as np
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )
    from onnxruntime.transformers import optimizer

    plain, fused, dynamic, static = (str(folder / f"{name}.onnx") for name in ("plain", "fused", "dynamic", "static"))
    words = torch.randint(1000, 30000, (2, 64))
    axes = {name: {0: "batch", 1: "tokens"} for name in ("words", "mask", "hidden")}
    torch.onnx.export(
        Exported(model).eval(), (words, torch.ones_like(words)), plain, input_names=["words", "mask"],
        output_names=["hidden"], dynamic_axes=axes, dynamo=False, opset_version=17,
    )  # fmt: skip
    optimizer.optimize_model(
        plain, model_type="bert", num_heads=HEADS, hidden_size=WIDTH, opt_level=0
    ).save_model_to_file(fused)
    quantize_dynamic(
        fused, dynamic, per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Attention"],
        extra_options={"DefaultTensorType": 1},
    )  # fmt: skip

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        left = 6

        def get_next(self) -> Any:
            if not self.left:
                return None
            self.left -= 1
            numbers = np.random.default_rng(self.left).integers(1000, 30000, (2, 64))
            return {"words": numbers, "mask": np.ones_like(numbers)}

    quantize_static(
        plain, static, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8, op_types_to_quantize=["MatMul"], extra_options={"MatMulConstBOnly": True},
    )  # fmt: skip
    return {"plain": plain, "dynamic": dynamic, "static": static}


def runs(model: Encoder, words: torch.Tensor, threads: int) -> dict[str, Callable[[], Any]]:
    """{name: what to time}"""
    import onnxruntime
    import openvino

    files = _files(model, pathlib.Path(tempfile.mkdtemp()))
    given = {"words": words.numpy(), "mask": torch.ones_like(words).numpy()}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    found: dict[str, Callable[[], Any]] = {}
    session = onnxruntime.InferenceSession(files["dynamic"], options, providers=["CPUExecutionProvider"])
    found["onnxruntime int8"] = lambda: session.run(None, given)
    core = openvino.Core()
    for name, file, precision in (
        ("OpenVINO int8 + bfloat16", "static", "bf16"), ("OpenVINO int8", "static", "f32"),
        ("OpenVINO bfloat16", "plain", "bf16"),
    ):  # fmt: skip
        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision, "NUM_STREAMS": 1}
        request = core.compile_model(core.read_model(files[file]), "CPU", settings).create_infer_request()
        found[name] = lambda request=request: request.infer(given)  # type: ignore[misc]
    return found
