"""How many threads a large product uses. QKERNELS_NUM_THREADS sets the default; else affinity and cgroup decide."""

from __future__ import annotations

import os

from qkernels.backends import native


def set_num_threads(n: int | None) -> None:
    """Use n threads for large products, process-wide. None: as many as this process may use. Results do not change."""
    if n is not None and (isinstance(n, bool) or not isinstance(n, int)):
        raise TypeError(f"set_num_threads: n must be an int or None, got {type(n).__name__}")
    if n is not None and n < 1:
        raise ValueError(f"set_num_threads: n={n}, wanted at least 1")
    if native._native is not None:
        native._native.set_num_threads(n or 0)


def get_num_threads() -> int:
    """The threads that a large product uses; small ones use fewer."""
    return native._native.get_num_threads() if native._native is not None else 1


def _set_default() -> None:
    text = os.environ.get("QKERNELS_NUM_THREADS", "")
    if text:
        if not text.isdecimal() or int(text) < 1:
            raise ValueError(f"QKERNELS_NUM_THREADS={text!r}, wanted a number of at least 1")
        set_num_threads(int(text))


_set_default()
