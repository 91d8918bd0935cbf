"""torchao's tensors of integers as QTensors: their own values."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from qkernels.torch.load import from_torchao  # noqa: E402


def tensor(codes: Any, scale: Any, zero: Any = None, **more: Any) -> Any:
    """What torchao's tensors have, where it is not installed."""
    return SimpleNamespace(qdata=codes, scale=scale, zero_point=zero, shape=codes.shape, **more)


def test_rows_groups_and_the_whole() -> None:
    codes = torch.randint(-8, 8, (6, 32), dtype=torch.int8)
    rows = from_torchao(tensor(codes, torch.rand(6, 1) + 0.1, block_size=(1, 32)))
    assert rows.axis == 0 and rows.dtype == "int8" and np.array_equal(rows.codes(), codes)
    zero = torch.randint(-8, 8, (6, 4), dtype=torch.int8)
    groups = from_torchao(tensor(codes, torch.rand(6, 4) + 0.1, zero, block_size=(1, 8), target_dtype="torch.int4"))
    assert (groups.dtype, groups.group_size) == ("int4", 8) and np.array_equal(groups.zero_point, zero)
    assert from_torchao(tensor(codes, torch.tensor([[0.5]]), block_size=(6, 32))).axis is None
    with pytest.raises(ValueError, match="block_size=\\(2, 8\\)"):
        from_torchao(tensor(codes, torch.rand(3, 4), block_size=(2, 8)))
    with pytest.raises(TypeError, match="wanted one with qdata"):
        from_torchao(codes)


def test_a_quantized_model_of_torchao() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = torch.nn.Sequential(torch.nn.Linear(64, 16))
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig(version=2))
    weight = model[0].weight
    assert np.array_equal(from_torchao(weight).dequantize(), weight.dequantize().detach())
