"""qkernels in transformers: `from_pretrained(…, quantization_config=QKernelsConfig())`.

    import qkernels.transformers                       # registers "qkernels" with transformers
    model = AutoModel.from_pretrained(path, quantization_config=QKernelsConfig(weights="int4", group_size=32))
    model.save_pretrained(there)                       # codes and scales; from_pretrained(there) needs no config

The linear layers become `qkernels.torch.QLinear`, but for the output embeddings and what `skip` names.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from qkernels.dtypes import known
from qkernels.torch import Int4, Int8Dynamic, QLinear, quantize_

METHOD = "qkernels"
WEIGHTS = ("int8", "int4")


@register_quantization_config(METHOD)
class QKernelsConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """weights      "int8", a scale for each output; or "int4", with scales that change every group_size inputs
    group_size, symmetric, scale_dtype, compute   of int4: as of `qkernels.torch.Int4`
    skip            names of modules to leave in float, or ends of them; None: the output embeddings and what they share
    Raises  ValueError weights
    """

    def __init__(
        self, weights: str = "int8", group_size: int | None = None, symmetric: bool = True,
        scale_dtype: str = "float32", compute: str = "int8", skip: list[str] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        self.quant_method = METHOD
        self.weights = known(weights, WEIGHTS, "QKernelsConfig", "weights")
        self.group_size, self.symmetric, self.scale_dtype = group_size, symmetric, scale_dtype
        self.compute, self.skip = compute, skip

    def recipe(self) -> Int8Dynamic | Int4:
        """The same for `qkernels.torch.quantize_`."""
        if self.weights == "int8":
            return Int8Dynamic()
        return Int4(self.group_size, self.symmetric, self.scale_dtype, compute=self.compute)


@register_quantizer(METHOD)
class QKernelsQuantizer(HfQuantizer):  # type: ignore[misc]
    """Quantizes a model when its float weights are loaded, or makes room for weights that were saved as codes."""

    requires_calibration = False
    is_trainable = False

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        return True

    @property
    def is_compileable(self) -> bool:
        return True

    def _wanted(self, model: Any) -> dict[str, torch.nn.Linear]:
        skipped = self.get_modules_to_not_convert(model, self.quantization_config.skip)
        return {
            name: module for name, module in model.named_modules()
            if type(module) is torch.nn.Linear
            and not any(name == end or name.endswith(f".{end}") or name.startswith(f"{end}.") for end in skipped)
        }  # fmt: skip

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> Any:
        if not self.pre_quantized:
            return model
        config = self.quantization_config
        for name, module in self._wanted(model).items():
            made = QLinear(
                module.in_features, module.out_features, module.bias is not None,
                dtype="int8" if config.weights == "int8" else "int4" if config.symmetric else "uint4",
                group_size=None if config.weights == "int8" else config.group_size,
                scale_dtype="float32" if config.weights == "int8" else config.scale_dtype, compute=config.compute,
                device=module.weight.device,
            )  # fmt: skip
            if config.weights == "int4" and not config.symmetric:
                made.weight_zero_point = torch.zeros_like(made.weight_scale, dtype=torch.uint8)
            model.set_submodule(name, made)
        return model

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        if self.pre_quantized:
            return model
        wanted = self._wanted(model)
        return quantize_(model, self.quantization_config.recipe(), lambda _, name: name in wanted)
