"""What an exported student costs: its nDCG@10, its bytes, and how long a query takes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from sentence_transformers import SentenceTransformer

from hf_distill.compute.search import search
from hf_distill.evaluation.intervals import estimate, mean
from hf_distill.evaluation.results import Estimate
from hf_distill.evaluation.retrieval import DEPTH
from hf_distill.evaluation.tasks import held_out_task
from hf_distill.report.results import CommonResults, RunResults
from hf_distill.run.environment import describe_environment
from hf_distill.run.stage import is_under_way, read_result, sha256_of, stage
from hf_distill.scoring.documents import documents_of_teacher

TIMED = 32
"""Queries that are timed."""

_MEASURED = "nDCG@10, bytes, latency"
_PYTORCH = "PyTorch"

Encode = Callable[[list[str], str], np.ndarray]
"""Texts and their kind (`query`, `document`) -> embeddings (N, d) float32."""


@dataclass(frozen=True)
class Variant:
    """One exported file, measured.

    Attributes:
        ndcg: nDCG@10 on the run's held-out task.
        minus_student: Its nDCG@10 minus that of the student in PyTorch and float32.
        megabytes: Size of the file.
        query_ms: Milliseconds for a query alone, the median. None: an earlier version measured.
    """

    ndcg: Estimate
    minus_student: Estimate
    megabytes: float
    query_ms: float | None = None


@dataclass(frozen=True)
class Costs:
    """What was measured of a student's exported files.

    Attributes:
        key: The fingerprint of what it depends on.
        training: The key of the training that made the student.
        num_queries: Held-out queries.
        variants: Name -> what was measured.
        query_ms: Milliseconds for a query alone in PyTorch and float32, on the CPU, the median.
        processor: The processor that all times are of.
    """

    key: str
    training: str
    num_queries: int
    variants: dict[str, Variant]
    query_ms: float | None = None
    processor: str | None = None


C = TypeVar("C", bound=Costs)


def query_milliseconds(
    encoders: Mapping[str, Callable[[str], object]], queries: Sequence[str]
) -> dict[str, float]:
    """How long each encoder takes for a query alone: the median of `TIMED`, in milliseconds.

    The encoders take turns, so that what else the machine does is the same for all. The first call
    of each takes longer, and does not count.

    Args:
        encoders: Name -> encoder of one query.
        queries: At least one. Fewer than `TIMED` are asked again.
    """
    for encode in encoders.values():
        encode(queries[0])
    taken: dict[str, list[float]] = {name: [] for name in encoders}
    for query in itertools.islice(itertools.cycle(queries), TIMED):
        for name, encode in encoders.items():
            start = time.perf_counter()
            encode(query)
            taken[name].append(1000 * (time.perf_counter() - start))
    return {name: round(float(np.median(times)), 3) for name, times in taken.items()}


def measure(
    results: RunResults,
    path: Path,
    kind: type[C],
    files: Mapping[str, Path],
    load: Callable[[str], Encode],
    beside: Sequence[Path] = (),
) -> C:
    """Measure exported files on the run's held-out task. A stage.

    Args:
        results: The run.
        path: The JSON file of the stage.
        kind: Its dataclass.
        files: Name -> the file with the weights.
        load: Name -> its encoder.
        beside: What else was exported with them.
    """
    every_file = [*files.values(), *beside]
    model_dir, seed = results.folder.student, results.recipe.seed

    def make(key: str) -> C:
        task = held_out_task(results.collection)
        queries = list((task.student_queries or task.queries).values())
        documents = list(task.documents.values())
        student = SentenceTransformer(str(model_dir), device="cpu")
        index: np.ndarray | None = None
        if results.recipe.training.student_space == "teacher":  # it embeds queries only
            of_teacher = documents_of_teacher(
                results.recipe, results.folder, results.collection, results.soft_labels
            )
            index = of_teacher[task.document_numbers]

        def in_pytorch(texts: list[str], kind: str) -> np.ndarray:
            embed = student.encode_query if kind == "query" else student.encode_document
            return np.asarray(embed(texts, show_progress_bar=False))

        encoders: dict[str, Encode] = {_PYTORCH: in_pytorch} | {name: load(name) for name in files}
        values = {
            name: task.ndcg(
                search(
                    encode(queries, "query"),
                    encode(documents, "document") if index is None else index,
                    DEPTH,
                )
            )
            for name, encode in encoders.items()
        }

        def alone(encode: Encode) -> Callable[[str], object]:
            return lambda query: encode([query], "query")

        times = query_milliseconds({name: alone(e) for name, e in encoders.items()}, queries)
        variants = {
            name: Variant(
                ndcg=estimate(mean, [values[name]], seed),
                minus_student=estimate(mean, [values[name] - values[_PYTORCH]], seed),
                megabytes=round(file.stat().st_size / 1e6, 1),
                query_ms=times[name],
            )
            for name, file in files.items()
        }
        return kind(
            key=key,
            training=results.training.key,
            num_queries=len(queries),
            variants=variants,
            query_ms=times[_PYTORCH],
            processor=describe_environment()["hardware"]["processor"],
        )

    inputs = [
        _MEASURED, results.training.key, results.collection.key, seed, *map(sha256_of, every_file),
    ]  # fmt: skip
    return stage(path, kind, inputs, make, every_file)


def measured(results: CommonResults, path: Path, kind: type[C], files: Sequence[str]) -> C | None:
    """What was measured of this student's exported `files`, which are paths in its folder; None if
    it has none, or if they were not measured.
    """
    if not path.is_file() or not all((results.folder.student / file).is_file() for file in files):
        return None
    if is_under_way(path):
        return None
    record = read_result(path, kind)
    return record if record.training == results.training.key else None
