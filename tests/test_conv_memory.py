"""Guard pages round all that a convolution reads and writes: image, weights, bias, multipliers, residual, result."""

from __future__ import annotations

import pytest
from guard_pages import assert_inside

from qkernels.backends import native

SCRIPT = r"""
import numpy as np
from guard_pages import guarded, release
from conv_cases import cases
from test_conv_conformance import EVERYTHING, NATIVE, problem, runnable, wanted
from qkernels import dispatch

CASES = [case for i, case in enumerate(cases()) if case.form != "channels of a wider image" and i % 3 == 0]
kernels = [k for k in dispatch.kernels("conv") if k.name in NATIVE]
for turn, kernel in enumerate(kernels):
    executed, _ = runnable(kernel)
    for i, case in enumerate(CASES):
        if not executed or isinstance(kernel.judge(problem(kernel, case), EVERYTHING), str):
            continue
        given, result = wanted(case, kernel.types)
        depthwise = kernel.layout == "c4t4"
        for at_end in (True, False):
            print(kernel.name, "end" if at_end else "start", case, flush=True)
            w = dispatch.pack_conv_weights(given.w, case.conv.groups, given.by.w_zero, depthwise)
            w._data, w._sums = guarded(w._data, at_end), guarded(w._sums, at_end)
            arrays = {name: guarded(value, at_end) for name, value in given.by._asdict().items()
                      if isinstance(value, np.ndarray)}
            x, out = guarded(given.x, at_end), guarded(given.out, at_end)
            executed[(turn + i) % len(executed)].run(x, w, case.conv, out, given.x_zero, given.by._replace(**arrays))
            assert np.array_equal(out, result, equal_nan=out.dtype.kind == "f"), "wrong result"
            del w, arrays, x, out
            release()
print("all inside")
"""


def test_no_convolution_touches_what_is_not_its_own() -> None:
    if native._native is None:
        pytest.skip("the native module is not built")
    assert_inside(SCRIPT)
