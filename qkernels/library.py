"""Where the C library, its header and its CMake package lie: beside this package, or beside its compiled half."""

from __future__ import annotations

import pathlib


def _find(inside: str) -> str:
    """A path below the package. Of an editable install the compiled half and what comes with it lie elsewhere."""
    import importlib.resources

    import qkernels

    roots = [pathlib.Path(str(importlib.resources.files(qkernels))), *map(pathlib.Path, qkernels.__path__)]
    for root in roots:
        if (root / inside).exists():
            return str(root / inside)
    looked = " or ".join(sorted({str(root) for root in roots}))
    raise FileNotFoundError(
        f"qkernels has no {inside} in {looked}: it was installed without its native half (QKERNELS_NATIVE=ON makes the "
        "build say why)"
    )


def get_library() -> str:
    """The path of libqkernels.so, for `ctypes.CDLL` and for linkers.

    Raises  FileNotFoundError where qkernels was installed without its native half.
    """
    return _find("lib/libqkernels.so")


def get_include() -> str:
    """The folder of qkernels.h, the C API.

    Raises  FileNotFoundError where qkernels was installed without its native half.
    """
    return str(pathlib.Path(_find("include/qkernels.h")).parent)


def get_cmake_dir() -> str:
    """The folder that `find_package(qkernels CONFIG)` looks for: pass it as -Dqkernels_DIR.

    Raises  FileNotFoundError where qkernels was installed without its native half.
    """
    return _find("lib/cmake/qkernels")
