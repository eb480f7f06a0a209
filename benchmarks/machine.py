"""What the benchmarks ask of the machine: the limit that its matrix products reach, how much memory
a process holds, and processes that begin at once.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext
from pathlib import Path

import torch

SHAPES = (
    (256, 384, 1536), (1024, 384, 1536), (4096, 384, 1536), (4096, 1536, 384), (2048, 2048, 2048),
)  # fmt: skip
"""Rows, inner dimension and columns of a transformer's matrix products."""


def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of the best of `SHAPES`."""
    best = 0.0
    for rows, inner, columns in SHAPES:
        left = torch.randn(rows, inner, device=device, dtype=dtype)
        right = torch.randn(columns, inner, device=device, dtype=dtype)
        for _ in range(10):
            start = time.perf_counter()
            torch.nn.functional.linear(left, right)
            if device == "cuda":
                torch.cuda.synchronize()
            best = max(best, 2 * rows * inner * columns / (time.perf_counter() - start))
    return best


def memory_mb(process: str = "self") -> float:
    """Anonymous memory of this process or the one with this number; 0 if it has ended. Pages of
    mapped files do not count, because the system can take them back at any time.
    """
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    line = next((row for row in status if row.startswith("RssAnon")), "RssAnon: 0 kB")
    return int(line.split()[1]) / 1024


@contextmanager
def peak_memory() -> Iterator[Callable[[], float]]:
    """The most that this process held beyond what it held at the start, in MB. It looks every 10
    ms.
    """
    before, peak, done = memory_mb(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], memory_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield lambda: max(peak[0] - before, 0.0)
    finally:
        done.set()
        watcher.join()


def process_server(*modules: str) -> ForkServerContext:
    """Starts processes that have imported `modules` already, and in which nothing was computed.
    There is one server for this process: it keeps the modules of the first call.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(list(modules))
    before = os.environ.get("PYTHONPATH")
    # Python 3.11 imports nothing that lies on the parent's sys.path alone, and does not say so.
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before
    return server
