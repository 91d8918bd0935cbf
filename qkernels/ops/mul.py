"""mul: the elementwise product of two quantized tensors, in codes of its own."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkernels.kernel import Problem, Product
from qkernels.ops import network
from qkernels.ops.add import check_pair, run_pair, short_pair
from qkernels.tensor import QTensor


def mul(a: QTensor, b: QTensor, out_scale: Any, out_zero_point: Any = 0) -> QTensor:
    """a · b, element by element, rescaled                                                           arithmetic.md A14

    Arguments, result and errors as of `add`; broadcasts exactly as well.
    Source  ONNX Runtime QLinearMul (com.microsoft).
    """
    made = short_pair(True, a, b, out_scale, out_zero_point)
    if made is not None:
        return made
    call = check_pair(a, b, out_scale, out_zero_point, "mul")
    with np.errstate(over="ignore", under="ignore"):
        m = (network.scale_of(a) * network.scale_of(b)) / call.scale
    if not np.isfinite(m):
        raise ValueError(f"mul: out_scale={call.scale} is too small beside the operands': their ratio is not finite")
    assert isinstance(a._zero, int) and isinstance(b._zero, int)
    return run_pair("mul", call, Product(m, a._zero, b._zero, call.zero))


def _problem_of(a: Any, b: Any, out_scale: Any, out_zero_point: Any = 0) -> Problem | str:
    call = check_pair(a, b, out_scale, out_zero_point, "mul")
    return network.problem_of("mul", network.letters(call.like) * 3, call.a.shape)


mul.problem_of = _problem_of  # type: ignore[attr-defined]
