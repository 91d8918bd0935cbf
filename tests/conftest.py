"""Fixtures of more than one file."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The library of fake_gpu.py on an emulated sm_90; `gpu.pretend(80)` makes it another."""
    import fake_gpu
    from cuda_emulator import emulated

    from qkernels import dispatch
    from qkernels.backends import cuda as backend

    module = emulated()
    monkeypatch.setattr(backend, "_cuda", module)
    dispatch.survey.cache_clear()
    module.forget()
    module.seed(1)
    module.pretend(90)
    yield fake_gpu
    module.forget()
    dispatch.survey.cache_clear()
