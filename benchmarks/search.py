"""Exact search beside faiss's flat index on the same vectors, in one run: `python
benchmarks/search.py [--documents N] [--queries Q]`.

The corpus is synthetic: unit vectors in a memory-mapped file of float16 (`--dtype float32` for
float32), as embeddings are kept here. Both sides start from that file; faiss holds float32 in
memory, which its index is made of, and the time to read the file into it counts as its set-up, not
as its search. Each side runs in a process of its own, turns are taken, medians of `--rounds`
reported. Memory is what a process holds beyond the libraries (pages of mapped files, which the
system takes back whenever it wants, apart). Agreement is the share of (query, place) where both
name the same document. Ends with one line of JSON. faiss is the extra `benchmarks`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from matmul import matmul_peak

from hf_distill.compute.device import (
    cpu_cores,
    use_all_cores,
)
from hf_distill.compute.search import search

BLOCK = 1 << 16


def write_vectors(path: Path, count: int, dimension: int, dtype: str, seed: int) -> None:
    """`count` random unit vectors as a .npy file, a block at a time."""
    rng = np.random.default_rng(seed)
    out = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(count, dimension))
    for start in range(0, count, BLOCK):
        rows = rng.standard_normal((min(BLOCK, count - start), dimension), dtype=np.float32)
        out[start : start + BLOCK] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    out.flush()


def memory_mb() -> float:
    """Anonymous memory of this process."""
    line = next(
        row
        for row in Path("/proc/self/status").read_text().splitlines()
        if row.startswith("RssAnon")
    )
    return int(line.split()[1]) / 1024


@contextmanager
def peak_memory() -> Iterator[Callable[[], float]]:
    """The most that this process held beyond what it held at the start, in MB, looked at every 10
    ms.
    """
    before, peak, done = memory_mb(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], memory_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield lambda: max(peak[0] - before, 0.0)
    done.set()
    watcher.join()


def ours(
    queries: np.ndarray, documents: np.ndarray, depth: int
) -> tuple[Callable[[], tuple[np.ndarray, np.ndarray]], float]:
    """Our search, and the seconds of its set-up: none."""
    return lambda: search(queries, documents, depth, device="cpu"), 0.0


def theirs(
    queries: np.ndarray, documents: np.ndarray, depth: int
) -> tuple[Callable[[], tuple[np.ndarray, np.ndarray]], float]:
    """faiss's flat index by inner product, filled from the file, and the seconds that took."""
    start = time.perf_counter()
    faiss.omp_set_num_threads(cpu_cores())
    index = faiss.IndexFlatIP(documents.shape[1])
    for first in range(0, len(documents), BLOCK):
        index.add(np.asarray(documents[first : first + BLOCK], dtype=np.float32))
    wanted = np.asarray(queries, dtype=np.float32)
    return lambda: index.search(wanted, depth), time.perf_counter() - start


def serve(side: Callable[..., Any], folder: Path, depth: int, pipe: Any) -> None:
    """Be one side: set up, then search whenever asked, and send what was found, how long it took
    and the memory.
    """
    use_all_cores(1)
    queries, documents = (
        np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("queries", "documents")
    )
    with peak_memory() as peak:
        run, set_up = side(queries, documents, depth)
        run_once = run()
        pipe.send((set_up, run_once))
        while pipe.recv():
            start = time.perf_counter()
            run()
            pipe.send((time.perf_counter() - start, peak()))


def main() -> None:
    """Measure and say it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=1_000_000, help="How many documents.")
    parser.add_argument("--queries", type=int, default=1000, help="How many queries.")
    parser.add_argument("--dimension", type=int, default=256, help="Of the embeddings.")
    parser.add_argument("--depth", type=int, default=100, help="Documents for a query.")
    parser.add_argument(
        "--dtype", choices=["float16", "float32"], default="float16", help="Of the file."
    )
    parser.add_argument("--rounds", type=int, default=5, help="Turns that each side takes.")
    line = parser.parse_args()
    use_all_cores(1)
    context = multiprocessing.get_context("spawn")
    figures: dict[str, Any] = {
        key: getattr(line, key) for key in ("documents", "queries", "dimension", "depth", "dtype")
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_vectors(folder / "documents.npy", line.documents, line.dimension, line.dtype, 0)
        write_vectors(folder / "queries.npy", line.queries, line.dimension, line.dtype, 1)
        sides: dict[str, Any] = {}
        answers: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        set_ups: dict[str, float] = {}
        for name, side in (("this project", ours), ("faiss flat", theirs)):
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(side, folder, line.depth, there))
            process.start()
            set_ups[name], answers[name] = here.recv()
            sides[name] = (process, here)
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        memory: dict[str, float] = {}
        for _ in range(line.rounds):
            for name, (_process, pipe) in sides.items():
                pipe.send(True)
                took, memory[name] = pipe.recv()
                seconds[name].append(took)
        for process, pipe in sides.values():
            pipe.send(False)
            process.join()
    median = {name: statistics.median(values) for name, values in seconds.items()}
    flops = 2.0 * line.queries * line.documents * line.dimension
    peak = matmul_peak("cpu", torch.float32)
    print(
        f"{line.queries:,} queries over {line.documents:,} documents, {line.dimension} dims, {line.dtype} file, {flops / 1e12:.2f} TFLOP"
    )
    print(f"{'':<14}{'seconds':>9}{'GFLOP/s':>9}{'of peak':>9}{'set-up, s':>11}{'memory, MB':>12}")
    for name in sides:
        speed = flops / median[name]
        print(
            f"{name:<14}{median[name]:>9.3f}{speed / 1e9:>9.0f}{speed / peak:>9.1%}{set_ups[name]:>11.2f}{memory[name]:>12.0f}"
        )
    ratios = [
        theirs / ours
        for ours, theirs in zip(seconds["this project"], seconds["faiss flat"], strict=True)
    ]
    figures |= {
        "cores": cpu_cores(),
        "seconds": round(median["this project"], 3),
        "x_faiss": round(statistics.median(ratios), 2),
        "peak_share": round(flops / median["this project"] / peak, 3),
        "memory_mb": round(memory["this project"]),
        "memory_mb_faiss": round(memory["faiss flat"]),
        "agreement": round(
            float((answers["this project"][1] == answers["faiss flat"][1]).mean()), 6
        ),
        "score_diff": float(np.abs(answers["this project"][0] - answers["faiss flat"][0]).max()),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
