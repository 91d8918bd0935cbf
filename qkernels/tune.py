"""tune: the candidates for a call, timed on this machine; the fastest is remembered."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from qkernels import dispatch, tuned
from qkernels.device import is_on_device, wait
from qkernels.dispatch import Explanation
from qkernels.kernel import Kernel

HOPELESS = 20.0  # an estimate so many times the best one's is not tried
CLEARLY = 0.97  # of the time of the kernel that is chosen without tuning: less is noise
ROUNDS = 7
SAMPLE_S = 2e-3


def tune(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Explanation:
    """Times every kernel that could run `fn(*args, **kwargs)`, here and now, and remembers the fastest.

    fn is one of qkernels' operations; it is called a few hundred times, `out` is written. Kernels take turns, medians
    are compared, and the one that is chosen without tuning keeps its place unless another is 3 % faster. Results do
    not depend on it: all kernels compute the same bits. Tune on an idle machine, with the threads that will be used.

    Of arrays on a GPU a sample ends when the GPU has got so far, and the winner holds for GPUs of that architecture.

    The winner holds for problems of the same operation, types, sizes, layout and number of threads, in this process
    and, through a file in the user's cache directory (XDG_CACHE_HOME, ~/.cache), in later ones. `use` and QKERNELS_USE
    go before it. Blocks and strips are not tuned: they follow from the sizes of the caches.

    Returns what `explain` answers then; its `.costs` are the times, in µs, of the kernels that were tried.
    Raises  TypeError, ValueError as `explain` and the call · ValueError where no kernel is asked · OSError the file.
    """
    before = dispatch.explain(fn, *args, **kwargs)
    problem, chosen = before.problem, before.kernel
    if problem is None or chosen is None:
        raise ValueError(f"tune: nothing to tune: {before.note or 'no kernel runs this call'}")
    least = min(before.costs.values())
    tried = [k for k in dispatch.KERNELS if before.costs.get(k.name, float("inf")) <= HOPELESS * least]
    there = [x for x in map(_lying, (*args, *kwargs.values())) if is_on_device(x)] if problem.device else []
    times = _times(tried, lambda: fn(*args, **kwargs), (lambda: wait(there[0])) if there else _no_wait)
    best = min(tried, key=lambda kernel: times[kernel.name])
    if times[best.name] > CLEARLY * times.get(chosen.name, float("inf")):
        best = chosen
    tuned.keep(problem, best.name)
    dispatch.forget(*args, *kwargs.values())
    return Explanation(problem, best, times, before.declined, f"tuned: measured on this machine, {problem}")


def _lying(x: Any) -> Any:
    """What of it may lie on a GPU: of a QTensor its codes."""
    return getattr(x, "data", x) if not isinstance(x, np.ndarray) and not is_on_device(x) else x


def _no_wait() -> None:
    """Calls on host arrays are done when they return."""


def _times(
    tried: list[Kernel], call: Callable[[], Any], finished: Callable[[], None] = _no_wait
) -> dict[str, float]:  # fmt: skip
    """{name: median µs of a call}, the kernels in turn. finished: waits until the calls have been executed."""
    repeats, samples = {}, {kernel.name: list[float]() for kernel in tried}
    for kernel in tried:
        with dispatch.use(f"{kernel.op}/{kernel.name}"):
            call()
            finished()
            begin = time.perf_counter()
            call()
            finished()
            repeats[kernel.name] = max(1, int(SAMPLE_S / max(time.perf_counter() - begin, 1e-7)))
    for _ in range(ROUNDS):
        for kernel in tried:
            taken = samples[kernel.name]
            with dispatch.use(f"{kernel.op}/{kernel.name}"):
                begin = time.perf_counter()
                for _ in range(repeats[kernel.name]):
                    call()
                finished()
                taken.append((time.perf_counter() - begin) / repeats[kernel.name] * 1e6)
    return {name: float(np.median(taken)) for name, taken in samples.items()}
