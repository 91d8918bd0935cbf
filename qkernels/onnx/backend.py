"""onnx.backend.base.Backend over `load`: ONNX's own test runner, and whatever else speaks to backends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.backend.base import Backend as Base
from onnx.backend.base import BackendRep as BaseRep

from qkernels.onnx.errors import ModelError
from qkernels.onnx.graph import array_of
from qkernels.onnx.model import Model, load


class BackendRep(BaseRep):  # type: ignore[misc]
    """A prepared model, as backends hand it out."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """inputs: arrays (or TensorProtos) in the model's order, or a mapping of names."""
        if isinstance(inputs, Mapping):
            return tuple(self.model.run({name: _array(x) for name, x in inputs.items()}))
        given = inputs if isinstance(inputs, Sequence) else [inputs]
        return tuple(self.model(*map(_array, given)))


def _array(x: Any) -> np.ndarray:
    return array_of(x) if isinstance(x, onnx.TensorProto) else np.asarray(x)


class Backend(Base):  # type: ignore[misc]
    """CPU only. What cannot be run raises UnsupportedError in `prepare`."""

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> BackendRep:
        if not cls.supports_device(device):
            raise ValueError(f"Backend: device={device!r}, wanted 'CPU'")
        return BackendRep(load(model))

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        try:
            load(model)
        except ModelError:
            return False
        return cls.supports_device(device)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        return device.split(":")[0].upper() == "CPU"

    @classmethod
    def run_node(
        cls, node: onnx.NodeProto, inputs: Any, device: str = "CPU", outputs_info: Any = None, **kwargs: Any
    ) -> tuple[Any, ...]:
        """One node, in the newest opset unless opset_version says otherwise."""
        arrays = [_array(x) for x in inputs]
        names = [name for name in node.input if name]
        values = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for name, x in zip(names, arrays, strict=True)
        ]
        results = [onnx.ValueInfoProto(name=name) for name in node.output]
        opset = kwargs.get("opset_version", onnx.defs.onnx_opset_version())
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(helper.make_graph([node], "node", values, results), opset_imports=opsets)
        return cls.prepare(model, device).run(arrays)


prepare, run_model, run_node = Backend.prepare, Backend.run_model, Backend.run_node
supports_device, is_compatible = Backend.supports_device, Backend.is_compatible
