"""Guard pages: every buffer flush against memory that may not be touched, before it and behind it, for every kernel.

A subprocess a module, so that a fault is a failing test with the kernel's name, and not the end of the run.
"""

from __future__ import annotations

import pytest
from guard_pages import assert_inside

from qkernels.backends import native

try:
    from qkernels import _emulated
except ImportError:
    _emulated = None  # type: ignore[assignment]

SCRIPT = r"""
import contextvars, importlib, sys
import numpy as np
from guard_pages import guarded, release

CANARY = 0x5A5A5A5A

def spread(x, gap, at_end, fill):
    '''The same with `gap` elements of `fill` between its rows, and the flat buffer.'''
    rows, cols = x.shape
    flat = guarded(np.full((rows - 1) * (cols + gap) + cols, fill, x.dtype), at_end)
    view = np.lib.stride_tricks.as_strided(flat, x.shape, ((cols + gap) * x.itemsize, x.itemsize))
    view[...] = x
    return view, flat

def backwards(x, at_end):
    return guarded(np.ascontiguousarray(x[::-1, ::-1]), at_end)[::-1, ::-1]

module = importlib.import_module("qkernels." + sys.argv[1])
rng = np.random.default_rng(0)
for index, row in enumerate(module.rows()):
    if not row["runs_here"]:
        continue
    a_type, b_type = (np.int8 if row["types"][i] == "s" else np.uint8 for i in (0, 2))
    mr, nr = row["mr"], row["nr"]
    sizes = [(1, 1, 1), (mr, nr, 64), (mr + 1, nr + 1, 65), (mr - 1, nr - 1, 63), (2, 17, 5), (3, 16, 130), (70, 9, 33),
             (mr + 1, nr + 1, 64), (70, 9, 32), (3, 23, 128), (1, 7, 4)]  # whole groups of k in ragged panels
    for m, n, k in sizes:
        for at_end in (True, False):
            print(row["name"], m, n, k, "end" if at_end else "start", flush=True)
            a = guarded(rng.integers(0, 256, (m, k)).astype(np.uint8).view(a_type), at_end)
            b = guarded(rng.integers(0, 256, (k, n)).astype(np.uint8).view(b_type), at_end)
            za = guarded(rng.integers(0, 100, m).astype(np.int32), at_end)
            zb = guarded(rng.integers(0, 100, n).astype(np.int32), at_end)
            wanted = (a.astype(np.int64) - za[:, None]) @ (b.astype(np.int64) - zb)
            data = guarded(np.zeros(-(-n // 16) * 16 * (-(-k // 64) * 64), np.uint8), at_end)
            sums = guarded(np.zeros(-(-n // 16) * 16, np.int32), at_end)
            module.pack(b, data, sums)
            bt = guarded(np.ascontiguousarray(b.T), at_end).T
            at = guarded(np.ascontiguousarray(a.T), at_end).T
            handle = module.packed(data, sums, k, n, b_type is np.int8)
            wide, narrow = spread(a, 37, at_end, 1)[0], spread(b, 5, at_end, 1)[0]
            forms = [(a, b), (a, handle), (at, bt), (wide, narrow), (wide, handle), (at, handle),
                     (backwards(a, at_end), backwards(b, at_end)), (backwards(a, at_end), handle)]
            for left, right in forms:
                for threads in (1, 2):
                    out = guarded(np.zeros((m, n), np.int32), at_end)
                    module.gemm(index, left, right, out, za, zb, threads)
                    assert np.array_equal(out, wanted), "wrong result"
                    out, flat = spread(np.zeros((m, n), np.int32), 3, at_end, CANARY)
                    module.gemm(index, left, right, out, za, zb, threads)
                    assert np.array_equal(out, wanted), "wrong result between canaries"
                    assert (flat == CANARY).sum() >= 3 * (m - 1), "a canary is dead"
            row_a, column_b = np.broadcast_to(a[-1:], (m, k)), np.broadcast_to(b[:, -1:], (k, n))
            out = guarded(np.zeros((m, n), np.int32), at_end)
            module.gemm(index, row_a, column_b, out)
            assert (out == a[-1].astype(np.int64) @ b[:, -1].astype(np.int64)).all(), "wrong result of zero strides"
            if not module.emulated:
                module.watch(contextvars.ContextVar("nothing", default=None))
                module.forget()
                plain = a.astype(np.int64) @ b.astype(np.int64)
                for left, right in forms:
                    module.remember(index, a_type is np.int8, b_type is np.int8, right is handle, m, n, k)
                    out = guarded(np.zeros((m, n), np.int32), at_end)
                    assert module.fast(left, right, out) is out, "the short road declines"
                    assert np.array_equal(out, plain), "wrong on the short road"
            release()
print("all inside")
"""


@pytest.mark.parametrize("module", ["_native", "_emulated"])
def test_no_kernel_touches_what_is_not_its_own(module: str) -> None:
    if (native._native if module == "_native" else _emulated) is None:
        pytest.skip(f"the module {module} is not built")
    assert_inside(SCRIPT, module)
