"""from_pretrained with our quantizer: quantized on the way in, saved as codes, and read again."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: the extra 'torch'")
transformers = pytest.importorskip("transformers", reason="transformers is not installed: the extra 'transformers'")

import qkernels as qk  # noqa: E402
from qkernels.torch import QLinear  # noqa: E402
from qkernels.transformers import QKernelsConfig  # noqa: E402

CONFIGS = [
    {}, {"weights": "int4", "group_size": 32}, {"weights": "int4", "group_size": 16, "symmetric": False},
    {"weights": "int4", "group_size": 32, "scale_dtype": "bfloat16"},
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("llama")
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.mark.parametrize("how", CONFIGS, ids=str)
def test_a_model_is_quantized_saved_and_read_again(folder, tmp_path, how) -> None:
    words = torch.arange(12)[None] * 7 % 97
    read = transformers.AutoModelForCausalLM.from_pretrained
    plain = read(folder)
    model = read(folder, quantization_config=QKernelsConfig(**how))
    kinds = {name: type(module) for name, module in model.named_modules()}
    assert kinds["model.layers.0.mlp.up_proj"] is QLinear and kinds["lm_head"] is torch.nn.Linear
    float_weight = plain.model.layers[1].self_attn.q_proj.weight.detach()
    layer = model.model.layers[1].self_attn.q_proj
    given = {"dtype": layer.dtype, "group_size": layer.group_size, "symmetric": how.get("symmetric", True)}
    expected = qk.quantize(float_weight, axis=0, scale_dtype=how.get("scale_dtype", "float32"), **given)
    assert torch.equal(layer.dequantize(), expected.dequantize())
    with torch.inference_mode():
        y = model(words).logits
        error = (y - plain(words).logits).abs().max() / y.abs().max()
        assert 0 < error < (0.05 if not how else 0.5)
        model.save_pretrained(tmp_path)
        again = read(tmp_path)
        assert type(again.model.layers[0].mlp.up_proj) is QLinear
        assert torch.equal(again(words).logits, y)


def test_named_modules_stay_in_float(folder) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=QKernelsConfig(skip=["down_proj", "lm_head"])
    )
    kinds = {name: type(module) for name, module in model.named_modules()}
    assert kinds["model.layers.0.mlp.down_proj"] is torch.nn.Linear and kinds["model.layers.0.mlp.up_proj"] is QLinear


def test_unknown_weights_are_named() -> None:
    with pytest.raises(ValueError, match="weights='int3', wanted one of int8, int4"):
        QKernelsConfig("int3")
