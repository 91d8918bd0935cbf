"""Models in ONNX Runtime, on arrays that are bound: nothing is allocated or copied in a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def bound(
    model: Any, threads: int, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray], result: Any,
    others: tuple[str, ...] = (),
) -> Callable[[], Any]:  # fmt: skip
    """A call of the model, which gives `result`: what is made of the outputs, once. others: outputs nobody looks at."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, x in inputs.items():
        binding.bind_input(name, "cpu", 0, x.dtype, x.shape, x.ctypes.data)
    for name, y in outputs.items():
        binding.bind_output(name, "cpu", 0, y.dtype, y.shape, y.ctypes.data)
    for name in others:
        binding.bind_output(name, "cpu")

    def call(keep: Any = (inputs, outputs)) -> Any:  # their memory, as long as the call
        session.run_with_iobinding(binding)
        return result

    return call
