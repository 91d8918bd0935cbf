"""How many threads a large product uses. QKERNELS_NUM_THREADS sets the default; else affinity and cgroup decide."""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

from qkernels.backends import native


def set_num_threads(n: int | None) -> None:
    """Use n threads for large products, process-wide. None: as many as this process may use. Results do not change."""
    if n is not None and (isinstance(n, bool) or not hasattr(n, "__index__")):
        raise TypeError(f"set_num_threads: n must be an int or None, got {type(n).__name__}")
    count = 0 if n is None else operator.index(n)
    if n is not None and count < 1:
        raise ValueError(f"set_num_threads: n={n}, wanted at least 1")
    if native._native is not None:
        native._native.set_num_threads(min(count, 2**31 - 1))  # the pool has a bound of its own


def get_num_threads() -> int:
    """The threads that a large product uses; small ones use fewer."""
    return native._native.get_num_threads() if native._native is not None else 1


def lend_team(run: int, number: int, size: int) -> bool:
    """Work on an OpenMP run-time's threads instead of our own: addresses of its GOMP_parallel, omp_get_thread_num and
    omp_get_num_threads; zeros: on our own again. Process-wide; a forked child has its own. False without a native half.
    """
    if native._native is None:
        return False
    native._native.lend_team(run, number, size)
    return True


def _set_default() -> None:
    text = os.environ.get("QKERNELS_NUM_THREADS", "")
    if text:
        if not text.isdecimal() or int(text) < 1:
            raise ValueError(f"QKERNELS_NUM_THREADS={text!r}, wanted a number of at least 1")
        set_num_threads(int(text))


_set_default()


# ---------------------------------------------------------------- threadpoolctl


def register_threadpoolctl() -> None:
    """Let threadpoolctl find our pool: `threadpool_limits(1)` and `threadpool_info()` then cover it.

    Happens by itself when both are imported, in either order; needed only where threadpoolctl is not imported from a
    file on sys.path.
    """
    import threadpoolctl

    _register(threadpoolctl)


def _register(threadpoolctl: Any) -> None:
    class QKernelsController(threadpoolctl.LibController):  # type: ignore[misc]
        user_api = internal_api = "qkernels"
        filename_prefixes = ("_native",)
        check_symbols = ("qkernels_get_num_threads", "qkernels_set_num_threads")

        def get_num_threads(self) -> int:
            return int(self.dynlib.qkernels_get_num_threads())

        def set_num_threads(self, num_threads: int) -> None:
            self.dynlib.qkernels_set_num_threads(num_threads)

        def get_version(self) -> None:
            return None

    if "qkernels" not in {controller.internal_api for controller in threadpoolctl._ALL_CONTROLLERS}:
        threadpoolctl.register(QKernelsController)


class _WhenImported:
    """On sys.meta_path until threadpoolctl is imported: importing it ourselves would cost every process 9 ms."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "threadpoolctl":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module
            spec.loader.exec_module = lambda module: self._after(execute, module)  # type: ignore[method-assign]
        return spec

    def _after(self, execute: Callable[[Any], None], module: Any) -> None:
        execute(module)
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        if hasattr(module, "register"):  # from version 3.2 on
            _register(module)


if "threadpoolctl" in sys.modules:
    register_threadpoolctl()
elif native._native is not None:
    sys.meta_path.insert(0, _WhenImported())
