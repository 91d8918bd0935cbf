"""Threads: the same results at any number, from any thread, after a fork; the GIL is free; threadpoolctl governs us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
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
    """The exit status of a forked child that runs work(); a child that waits for ever is ended, and fails."""
    pid = os.fork()
    if pid == 0:
        status = 1
        signal.alarm(60)
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


def others_run_during(work, times: int = 1) -> bool:
    """Does another Python thread take a step while work() runs, so many times at most? No thread is asked to give up
    the GIL meanwhile, so that one which holds it throughout lets nobody in."""
    steps: list[int] = []
    gate = threading.Lock()
    gate.acquire()

    def other() -> None:
        with gate:
            steps.append(1)

    worker = threading.Thread(target=other)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        worker.start()
        gate.release()
        for _ in range(times):
            work()
            if steps:
                break
        return bool(steps)
    finally:
        sys.setswitchinterval(interval)
        worker.join()


@pytest.mark.parametrize("road", ["short", "careful", "pack"])
def test_the_gil_is_free_during_long_work(road: str) -> None:
    a, wide = np.ones((1500, 1500), np.int8), np.ones((1500, 20_000), np.int8)
    out, row = np.empty((1500, 1500), np.int32), native.INDEX.get(qk.explain(qk.matmul, a, a).kernel.name, 0)
    qk.set_num_threads(1)
    work = {  # of ours alone: NumPy lets others in when it fills an array
        "short": lambda: qk.matmul(a, a),
        "careful": lambda: native._native.gemm(row, a, a, out),
        "pack": lambda: qk.pack(wide),
    }[road]
    work()  # sizes that are known take the short road
    assert not others_run_during(lambda: sum(range(10_000)), 100)
    assert others_run_during(work, 100)  # a busy machine gives the other thread its turn late


GOVERNED = """
import sys
{imports}
import threadpoolctl, qkernels as qk
qk.set_num_threads(2)
info = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "qkernels"]
assert [pool["num_threads"] for pool in info] == [2], info
with threadpoolctl.threadpool_limits(1):
    assert qk.get_num_threads() == 1
assert qk.get_num_threads() == 2
with threadpoolctl.threadpool_limits({{"qkernels": 1}}):
    assert qk.get_num_threads() == 1
assert qk.get_num_threads() == 2
qk.register_threadpoolctl()  # a second time changes nothing
assert len([pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "qkernels"]) == 1
assert not any(type(finder).__module__ == "qkernels.threads" for finder in sys.meta_path)
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import threadpoolctl, qkernels",
        "import qkernels; assert 'threadpoolctl' not in sys.modules; import threadpoolctl",
        "import qkernels, importlib.util; assert importlib.util.find_spec('threadpoolctl')",  # only asked whether it is
    ],
)
def test_threadpoolctl_governs_us(imports: str) -> None:
    pytest.importorskip("threadpoolctl", reason="threadpoolctl is an extra")
    done = subprocess.run([sys.executable, "-c", GOVERNED.format(imports=imports)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_threadpoolctl_may_be_absent() -> None:
    code = (
        "import sys, qkernels as qk\nsys.path[:] = []\ntry: import threadpoolctl\nexcept ImportError: print('absent')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "absent\n", done.stderr
