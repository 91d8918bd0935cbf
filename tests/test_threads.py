"""Threads: the same results at any number, from any thread, after a fork; the GIL is free; threadpoolctl governs us."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

import qkernels as qk
from qkernels.backends import native

pytestmark = pytest.mark.skipif(not native.KERNELS, reason="the native module is not built: there are no threads")

RNG = np.random.default_rng(3)
A = RNG.integers(-128, 128, (300, 700)).astype(np.int8)
B = RNG.integers(-128, 128, (700, 500)).astype(np.int8)
WANTED = np.matmul(A.astype(np.float64), B.astype(np.float64)).astype(np.int32)


@pytest.fixture(autouse=True)
def restore():
    before = qk.get_num_threads()
    yield
    qk.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_any_number_of_threads(threads: int) -> None:
    qk.set_num_threads(threads)
    assert qk.get_num_threads() == threads
    packed = qk.pack(B)
    for _ in range(3):
        assert np.array_equal(qk.matmul(A, B), WANTED)
        assert np.array_equal(qk.matmul(A, packed), WANTED)
    batch = np.stack([A] * 5)
    assert (qk.matmul(batch, np.stack([B] * 5)) == WANTED).all()


def test_none_is_what_the_process_may_use() -> None:
    qk.set_num_threads(None)
    assert qk.get_num_threads() == native._native.available_cpus() <= len(os.sched_getaffinity(0))


def test_many_python_threads_at_once() -> None:
    qk.set_num_threads(2)
    failures: list[str] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for i in range(15):
            m, k, n = rng.integers(1, 200, 3)
            a = rng.integers(0, 256, (m, k)).astype(np.uint8)
            b = rng.integers(-128, 128, (k, n)).astype(np.int8)
            wanted = a.astype(np.int64) @ b.astype(np.int64)
            with qk.use("*_numpy" if (seed + i) % 5 == 0 else "*"):
                if not np.array_equal(qk.matmul(a, b), wanted):
                    failures.append(f"thread {seed}, product {i}: {m}×{k}×{n}")
            if i % 5 == 0 and not np.array_equal(qk.matmul(A, B), WANTED):
                failures.append(f"thread {seed}, large product {i}")

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


def in_child(work) -> int:
    """The exit status of a forked child that runs work()."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = 0 if work() else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# The test forks on purpose while threads exist; CPython 3.12 warns of that.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_fork_after_use() -> None:
    qk.set_num_threads(2)
    assert np.array_equal(qk.matmul(A, B), WANTED)
    for _ in range(3):
        assert in_child(lambda: np.array_equal(qk.matmul(A, B), WANTED)) == 0
        assert in_child(lambda: in_child(lambda: np.array_equal(qk.matmul(A, B), WANTED)) == 0) == 0
        assert np.array_equal(qk.matmul(A, B), WANTED)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_fork_while_others_compute() -> None:
    qk.set_num_threads(2)
    done = threading.Event()
    wrong: list[int] = []

    def work() -> None:
        while not done.is_set():
            if not np.array_equal(qk.matmul(A, B), WANTED):
                wrong.append(1)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        statuses = [in_child(lambda: np.array_equal(qk.matmul(A, B), WANTED)) for _ in range(10)]
    finally:
        done.set()
        worker.join()
    assert statuses == [0] * 10 and not wrong


def test_the_gil_is_free_during_a_product() -> None:
    """Another thread makes progress while a product of many milliseconds runs; with the GIL held it could not."""
    a, out = np.ones((1500, 1500), np.int8), np.empty((1500, 1500), np.int32)
    row = next(i for i, row in enumerate(native.ROWS) if row["runs_here"] and row["types"] == "s8s8s32")
    qk.matmul(a, a)
    counts = {"now": 0}
    running = threading.Event()
    running.set()

    def count() -> None:
        while running.is_set():
            counts["now"] += 1

    counter = threading.Thread(target=count)
    counter.start()
    try:
        progress = []
        for _ in range(3):
            before = counts["now"]
            native._native.gemm(row, a, a, out)
            progress.append(counts["now"] - before)
    finally:
        running.clear()
        counter.join()
    assert max(progress) > 100


def test_threadpoolctl_governs_us() -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl", reason="threadpoolctl is an extra")
    qk.set_num_threads(2)
    qk.register_threadpoolctl()
    assert any(info["user_api"] == "qkernels" for info in threadpoolctl.threadpool_info())
    with threadpoolctl.threadpool_limits(1):
        assert qk.get_num_threads() == 1
    assert qk.get_num_threads() == 2
    with threadpoolctl.threadpool_limits({"qkernels": 1}):
        assert qk.get_num_threads() == 1
