"""Exact search beside faiss's flat index on the same vectors, in one run: `python
benchmarks/search.py [--documents N] [--queries Q]`.

The corpus is synthetic: unit vectors in a memory-mapped file of float16, as embeddings are kept
here (`--dtype float32`: of float32). Both sides start from that file. faiss holds its index in
memory as float32; reading the file into it counts as its set-up, and not as its search. Each side
runs in a process of its own. They take turns, and the median of `--rounds` counts. Memory is what a
process holds beyond the libraries, without pages of mapped files. Agreement is the share of (query,
place) where both name the same document. The last line is JSON. faiss is the extra `benchmarks`.

`--approximate` adds faiss's inverted lists (a 32nd part of them is searched) and HNSW (32
neighbours, a search of 128): what they take to be built, and which part of the exact answer they
find. Random vectors have no neighbours to speak of, which is unfair to both: with `--intrinsic R`
the vectors lie near a random subspace of R dimensions.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from machine import matmul_peak, peak_memory

from hf_distill.compute.device import cpu_cores, use_all_cores
from hf_distill.compute.search import search

BLOCK = 1 << 16
OURS, THEIRS, LISTS, GRAPH = "this project", "faiss flat", "faiss IVF", "faiss HNSW"

Answer = tuple[np.ndarray, np.ndarray]
"""Scores and document numbers of each query, (Q, depth) both."""
Side = Callable[[np.ndarray, np.ndarray, int], Callable[[], Answer]]
"""Sets up a search for queries (Q, d) among documents (N, d) at a depth, and returns it."""


def write_vectors(
    path: Path, shape: tuple[int, int], dtype: str, seed: int, intrinsic: int | None = None
) -> None:
    """Write random unit vectors as a .npy file, a block at a time. `intrinsic`: the dimensions of
    the subspace near which they lie; a tenth of the length of each leads away from it.
    """
    rng = np.random.default_rng(seed)
    axes = np.random.default_rng(0).standard_normal((intrinsic or 1, shape[1]), dtype=np.float32)
    out = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    for start in range(0, shape[0], BLOCK):
        count = min(BLOCK, shape[0] - start)
        rows = rng.standard_normal((count, shape[1]), dtype=np.float32)
        if intrinsic:
            within = rng.standard_normal((count, intrinsic), dtype=np.float32) @ axes
            rows = within / np.sqrt(intrinsic) + 0.1 * rows
        out[start : start + BLOCK] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    out.flush()


def ours(queries: np.ndarray, documents: np.ndarray, depth: int) -> Callable[[], Answer]:
    """This project's search. It has no set-up."""
    return lambda: search(queries, documents, depth, device="cpu")


def theirs(queries: np.ndarray, documents: np.ndarray, depth: int) -> Callable[[], Answer]:
    """faiss's flat index by inner product, filled from the file."""
    faiss.omp_set_num_threads(cpu_cores())
    index = faiss.IndexFlatIP(documents.shape[1])
    for first in range(0, len(documents), BLOCK):
        index.add(np.asarray(documents[first : first + BLOCK], dtype=np.float32))
    wanted = np.asarray(queries, dtype=np.float32)
    return lambda: index.search(wanted, depth)


def approximate(form: str, setting: Callable[[int], dict[str, int]]) -> Side:
    """faiss's index of this form, with the settings of its search for so many lists."""

    def side(queries: np.ndarray, documents: np.ndarray, depth: int) -> Callable[[], Answer]:
        faiss.omp_set_num_threads(cpu_cores())
        lists = 4 * round(len(documents) ** 0.5)
        name = form.format(lists=lists)
        index = faiss.index_factory(documents.shape[1], name, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            index.train(np.asarray(documents[: 64 * lists], dtype=np.float32))
        for first in range(0, len(documents), BLOCK):
            index.add(np.asarray(documents[first : first + BLOCK], dtype=np.float32))
        for option, value in setting(lists).items():
            faiss.ParameterSpace().set_index_parameter(index, option, value)
        wanted = np.asarray(queries, dtype=np.float32)
        return lambda: index.search(wanted, depth)

    return side


SIDES: dict[str, Side] = {
    OURS: ours,
    THEIRS: theirs,
    LISTS: approximate("IVF{lists},Flat", lambda lists: {"nprobe": max(1, lists // 32)}),
    GRAPH: approximate("HNSW32", lambda _: {"efSearch": 128}),
}


def recall(answer: Answer, exact: Answer) -> float:
    """Which part of the documents of the exact answer another one holds."""
    same = [np.isin(of, found).mean() for of, found in zip(exact[1], answer[1], strict=True)]
    return float(np.mean(same))


def serve(name: str, folder: Path, depth: int, pipe: Any) -> None:
    """Be one side: set up and send what that took and the answer. Then search whenever asked, and
    send the seconds and the memory.
    """
    use_all_cores(1)
    queries, documents = (
        np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("queries", "documents")
    )
    with peak_memory() as peak:
        start = time.perf_counter()
        run = SIDES[name](queries, documents, depth)
        pipe.send((time.perf_counter() - start, run()))
        while pipe.recv():
            start = time.perf_counter()
            run()
            pipe.send((time.perf_counter() - start, peak()))


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=1_000_000, help="How many documents.")
    parser.add_argument("--queries", type=int, default=1000, help="How many queries.")
    parser.add_argument("--dimension", type=int, default=256, help="Of the embeddings.")
    parser.add_argument("--depth", type=int, default=100, help="Documents for each query.")
    parser.add_argument(
        "--dtype", choices=["float16", "float32"], default="float16", help="Of the file."
    )
    parser.add_argument("--intrinsic", type=int, help="Dimensions near which the vectors lie.")
    parser.add_argument("--approximate", action="store_true", help="faiss's IVF and HNSW, too.")
    parser.add_argument("--rounds", type=int, default=5, help="Turns that each side takes.")
    line = parser.parse_args()
    use_all_cores(1)
    sides = list(SIDES) if line.approximate else [OURS, THEIRS]
    context = multiprocessing.get_context("spawn")
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    set_ups: dict[str, float] = {}
    memory: dict[str, float] = {}
    answers: dict[str, Answer] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for seed, (name, rows) in enumerate(
            (("documents", line.documents), ("queries", line.queries))
        ):
            shape = rows, line.dimension
            write_vectors(folder / f"{name}.npy", shape, line.dtype, seed, line.intrinsic)
        running: dict[str, tuple[Any, Any]] = {}
        for name in sides:
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(name, folder, line.depth, there))
            process.start()
            set_ups[name], answers[name] = here.recv()
            running[name] = (process, here)
        for _ in range(line.rounds):
            for name, (_process, pipe) in running.items():
                pipe.send(True)
                took, memory[name] = pipe.recv()
                seconds[name].append(took)
        for process, pipe in running.values():
            pipe.send(False)
            process.join()
    median = {name: statistics.median(values) for name, values in seconds.items()}
    flops = 2.0 * line.queries * line.documents * line.dimension
    peak = matmul_peak("cpu", torch.float32)
    print(
        f"{line.queries:,} queries over {line.documents:,} documents, {line.dimension} dimensions, "
        f"{line.dtype} file, {flops / 1e12:.2f} TFLOP"
    )
    heads = f"{'GFLOP/s':>9}{'of peak':>9}{'set-up, s':>11}{'memory, MB':>12}{'recall':>8}"
    print(f"{'':<14}{'seconds':>9}{heads}")
    for name in sides:
        speed = flops / median[name]
        found = recall(answers[name], answers[OURS])
        print(
            f"{name:<14}{median[name]:>9.3f}{speed / 1e9:>9.0f}{speed / peak:>9.1%}"
            f"{set_ups[name]:>11.2f}{memory[name]:>12.0f}{found:>8.3f}"
        )
    ratios = [there / here for here, there in zip(seconds[OURS], seconds[THEIRS], strict=True)]
    (our_scores, our_places), (their_scores, their_places) = answers[OURS], answers[THEIRS]
    figures = {
        **{key: getattr(line, key) for key in vars(line) if key != "rounds"},
        "cores": cpu_cores(),
        "seconds": round(median[OURS], 3),
        "x_faiss": round(statistics.median(ratios), 2),
        "peak_share": round(flops / median[OURS] / peak, 3),
        "memory_mb": round(memory[OURS]),
        "memory_mb_faiss": round(memory[THEIRS]),
        "agreement": round(float((our_places == their_places).mean()), 6),
        "score_diff": float(np.abs(our_scores - their_scores).max()),
        "recall": {
            name: round(recall(answers[name], answers[OURS]), 4) for name in sides if name != OURS
        },
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
