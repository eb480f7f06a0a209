"""How seconds and memory of each stage grow with the number of pairs: `python benchmarks/scale.py
[--pairs N ...]`.

Synthetic pairs stand in Parquet parts, as Spark or Ray Data write them, with precomputed embeddings
of 32 dimensions. A tenth of the documents are near-copies of another, some are echoes. Each process
opens the run anew, makes one stage, and has its own peak: the most anonymous memory that it held,
imports and what earlier stages hand over included. Pages of mapped files do not count, because the
system takes them back when memory is short. On a machine that has other work, the seconds of the
processor say more than those of the clock. The last line is JSON, of the last number of pairs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from machine import memory_mb, process_server
from selection import synthetic_texts
from sentence_transformers import SentenceTransformer

from hf_distill.data import load
from hf_distill.pipeline import Run
from hf_distill.recipe.read import read_recipe
from hf_distill.run.folder import RunFolder
from hf_distill.scoring import embeddings, scores
from hf_distill.training.hardware import with_precision
from hf_distill.training.rows import training_rows

DIMENSION, PART = 32, 10_000
RULES = ["invalid", "echo", "near_echo=0.8", "duplicate", "near_duplicate", "rank=1000"]
PROCESSES: dict[str, Callable[[Run], object]] = {
    "teacher": lambda run: run.teacher,
    "collection": lambda run: run.collection,
    "scores": lambda run: run.scores,
    "ranking": lambda run: run.ranking,
    "selection": lambda run: run.selection,
    "rows": lambda run: training_rows(run, run.selection, cast(SentenceTransformer, None)),
}
"""What each process makes. Its earlier stages are there already, and are opened first."""
BEFORE = {
    "collection": ("teacher",),
    "scores": ("teacher", "collection"),
    "ranking": ("collection", "scores"),
    "selection": ("collection", "scores", "ranking"),
    "rows": ("collection", "scores", "ranking", "selection"),
}
WITHIN: dict[str, tuple[Any, str]] = {
    "read": (load, "read_pairs"),
    "leak check": (load, "arrange"),
    "keys": (embeddings, "_kept_keys"),
    "table": (embeddings, "_stored"),
    "soft labels": (scores, "write_soft_labels"),
}
"""Parts of a process that are stages of their own: the function that is one."""
STAGES = ("open", *PROCESSES, *WITHIN)


@dataclass(frozen=True)
class Figures:
    """Seconds by the clock and of the processor, and peak memory (MB) of a stage."""

    seconds: float
    processor: float
    peak_mb: float


def write_pairs(pairs: int, folder: Path) -> None:
    """Write the pairs and the embeddings of their texts as Parquet parts."""
    rng = np.random.default_rng(0)
    texts = synthetic_texts(pairs)
    query = ""
    for name in ("pairs", "teacher"):
        (folder / name).mkdir()
    for part, start in enumerate(range(0, pairs, PART)):
        rows = []
        for _ in range(min(PART, pairs - start)):
            own, document = next(texts)
            query = own or query
            rows.append((query, document))
        queries, documents = (list(column) for column in zip(*rows, strict=True))
        vectors = rng.standard_normal((len(rows), DIMENSION), dtype=np.float32)
        near = vectors + 0.5 * rng.standard_normal(vectors.shape, dtype=np.float32)
        values = np.concatenate([near, vectors]).ravel()
        pq.write_table(
            pa.table({"query": queries, "document": documents}),
            folder / "pairs" / f"part-{part:05}.parquet",
        )
        pq.write_table(
            pa.table(
                {
                    "text": queries + documents,
                    "embedding": pa.FixedSizeListArray.from_arrays(pa.array(values), DIMENSION),
                }
            ),
            folder / "teacher" / f"part-{part:05}.parquet",
        )


def open_run(folder: Path) -> Run:
    """The run of the synthetic pairs, without a student."""
    line = [
        "quickstart", "--run_dir", folder / "run", "--dataset", "auto",
        "--dataset_path", folder / "pairs", "--max_pairs", "none", "--test_fraction", 0.1,
        "--validation_fraction", 0.05, "--teacher_kind", "precomputed",
        "--teacher", folder / "teacher", "--selection", *RULES, "--texts_per_pair", 0,
        "--student_backbone", "none", "--student_layers", "none", "--student_init", "random",
        "--hard_negatives_per_pair", 2,
    ]  # fmt: skip
    recipe = with_precision(read_recipe([str(word) for word in line]))
    return Run(recipe, RunFolder(recipe.run_dir))


def work(name: str, folder: Path, current: Synchronized[int], answer: Any) -> None:
    """Make one result in this process. `current` is the place in `STAGES` of what is under way."""
    taken = {stage: np.zeros(2) for stage in STAGES}
    held = dict[str, float]()

    def now() -> np.ndarray:
        return np.array([time.perf_counter(), time.process_time()])

    def timed(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            before, start = current.value, now()
            current.value = STAGES.index(stage)
            try:
                return function(*args)
            finally:
                current.value = before
                taken[stage] += now() - start
                taken[STAGES[before]] -= now() - start
                # a stage may be over before anybody has looked at it
                held[stage] = max(held.get(stage, 0.0), memory_mb("self"))

        return call

    datasets.utils.logging.disable_progress_bar()
    run = open_run(folder)
    for earlier in BEFORE.get(name, ()):
        PROCESSES[earlier](run)
    for stage, (module, function) in WITHIN.items():
        setattr(module, function, timed(stage, getattr(module, function)))
    timed(name, PROCESSES[name])(run)
    answer.put({stage: (*taken[stage].tolist(), held[stage]) for stage in STAGES if stage in held})


def measure(pairs: int, folder: Path) -> dict[str, Figures]:
    """The figures of each stage, one process after another."""
    write_pairs(pairs, folder)
    server = process_server("scale")
    figures: dict[str, Figures] = {}
    for name in PROCESSES:
        current, answer = server.Value("i", 0), server.Queue()
        process = server.Process(target=work, args=(name, folder, current, answer))
        process.start()
        peak = dict.fromkeys(STAGES, 0.0)
        while answer.empty() and process.is_alive():
            stage = STAGES[current.value]
            peak[stage] = max(peak[stage], memory_mb(str(process.pid)))
            time.sleep(0.005)
        if answer.empty() and not process.is_alive():
            raise SystemExit(f"the process of {name} ended with code {process.exitcode}")
        for stage, (clock, processor, held) in answer.get().items():
            peak[stage] = max(peak[stage], held)
            figures[stage] = Figures(round(clock, 2), round(processor, 2), round(peak[stage], 1))
            print(
                f"{pairs:>12,} {stage:<12}{clock:>10.2f} s{processor:>10.2f} s"
                f"{peak[stage]:>10.0f} MB",
                flush=True,
            )
        process.join()
    return figures


def growth(sizes: list[int], figures: list[dict[str, Figures]]) -> str:
    """A table: of each stage the processor's microseconds and the bytes a pair, fitted (least
    squares) over `sizes`.
    """
    lines = [f"{'fitted growth':<16}{'us a pair':>12}{'bytes a pair':>14}"]
    for stage in figures[0]:
        seconds, megabytes = (
            np.polyfit(sizes, [getattr(row[stage], name) for row in figures], 1)[0]
            for name in ("processor", "peak_mb")
        )
        lines.append(f"{stage:<16}{seconds * 1e6:>12.1f}{megabytes * 2**20:>14.1f}")
    return "\n".join(lines)


def main() -> None:
    """Measure every number of pairs, and print their growth."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, nargs="+", default=[10_000, 100_000])
    sizes = parser.parse_args().pairs
    every: list[dict[str, Figures]] = []
    for pairs in sizes:
        with tempfile.TemporaryDirectory() as folder:
            every.append(measure(pairs, Path(folder)))
    if len(sizes) > 1:
        print(growth(sizes, every))
    stages = {
        stage: {"seconds": figures.seconds, "peak_mb": figures.peak_mb}
        for stage, figures in every[-1].items()
    }
    print(json.dumps({"pairs": sizes[-1], "stages": stages}))


if __name__ == "__main__":
    main()
