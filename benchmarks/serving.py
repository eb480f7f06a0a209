"""Measure what serving a student costs beside its teacher: `python benchmarks/serving.py [--run
RUN]`.

The variants take turns in one process: the teacher in PyTorch (float32, and bfloat16 where the
hardware has units for it), the student in PyTorch (float32, bfloat16) and in ONNX (float32, int8).
Measured are the latency of one query at a time (p50, p95), and documents/s in batches of 32.
Without `--run` the student is the quickstart's, untrained: its speed is the same. The last line of
the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from hf_distill.compute.device import cpu_cores, fast_precision, use_all_cores
from hf_distill.compute.models import locate_model
from hf_distill.data.collection import Collection
from hf_distill.finished_run import finished
from hf_distill.pipeline import Run
from hf_distill.recipe.read import read_recipe
from hf_distill.release.onnx import FILES, export_onnx, load_onnx
from hf_distill.student.build import build_student
from hf_distill.student.save import save_student

BATCH = 32


@dataclass(frozen=True)
class Variant:
    """A way to serve: `embed` maps texts to (n, d)."""

    name: str
    embed: Callable[[list[str]], np.ndarray]
    megabytes: float


def of_torch(name: str, folder: str, dtype: torch.dtype) -> Variant:
    """A model in PyTorch on the CPU."""
    model = SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": dtype}).to(dtype)
    size = sum(p.numel() * p.element_size() for p in model.parameters()) / 1e6

    def embed(texts: list[str]) -> np.ndarray:
        embeddings = model.encode(
            texts, batch_size=BATCH, convert_to_tensor=True, show_progress_bar=False
        )
        return embeddings.float().numpy()

    return Variant(f"{name}, PyTorch {str(dtype)[6:]}", embed, size)


def of_onnx(name: str, folder: Path, precision: str) -> Variant:
    """An exported model."""
    encoder = load_onnx(folder, precision)
    return Variant(
        f"{name}, ONNX {precision}",
        encoder.encode,
        (folder / FILES[precision]).stat().st_size / 1e6,
    )


def quickstart(student: Path, pairs: int) -> tuple[Collection, str]:
    """Save the quickstart's student to the folder `student` as it is before training.

    Returns:
        The quickstart's data, and its teacher.
    """
    line = ["--run_dir", student.with_name("run"), "--max_pairs", pairs, "--teacher_dtype=float32"]
    run = Run.open(read_recipe(["quickstart", *map(str, line)]))
    save_student(build_student(run.recipe.student, run.teacher, None, 0), student)
    return run.collection, run.recipe.teacher.teacher


def seconds_of(embed: Callable[[list[str]], np.ndarray], texts: list[str]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    embed(texts)
    return time.perf_counter() - start


def measure(
    variants: list[Variant],
    queries: list[str],
    documents: list[str],
    rounds: int,
    most_seconds: float,
) -> dict[str, dict[str, float]]:
    """Time the variants in turns: the query latencies of all rounds together, and the median
    round's documents/s.

    A turn that would take longer than `most_seconds` gets fewer texts, because bfloat16 is very
    slow without units for it.
    """
    latencies: dict[str, list[float]] = {variant.name: [] for variant in variants}
    speeds: dict[str, list[float]] = {variant.name: [] for variant in variants}
    shares: dict[str, tuple[int, int]] = {}
    for v in variants:
        for texts in (documents[:2], queries[:1]):  # the first calls are slow
            v.embed(texts)
        a_document, a_query = (
            seconds_of(v.embed, documents[:2]) / 2,
            seconds_of(v.embed, queries[:1]),
        )
        shares[v.name] = (
            max(2, min(len(documents), int(most_seconds / a_document))),
            max(2, min(len(queries), int(most_seconds / a_query))),
        )
    for _ in range(rounds):
        for v in variants:
            sample = documents[: shares[v.name][0]]
            speeds[v.name].append(len(sample) / seconds_of(v.embed, sample))
        for i, query in enumerate(queries):
            for v in variants:
                if i < shares[v.name][1]:
                    latencies[v.name].append(1000 * seconds_of(v.embed, [query]))
    return {
        v.name: {
            "p50_ms": round(float(np.percentile(latencies[v.name], 50)), 2),
            "p95_ms": round(float(np.percentile(latencies[v.name], 95)), 2),
            "latencies": len(latencies[v.name]),
            "documents_per_second": round(statistics.median(speeds[v.name]), 1),
            "documents": shares[v.name][0],
            "megabytes": round(v.megabytes, 1),
        }
        for v in variants
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run", type=Path, help="Measure student and teacher of this finished run."
    )
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--documents", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3, help="Turns of each variant.")
    parser.add_argument(
        "--most_seconds",
        type=float,
        default=10.0,
        help="Longest turn of a variant; a slow one gets fewer texts.",
    )
    line = parser.parse_args()
    datasets.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    use_all_cores(1)
    with tempfile.TemporaryDirectory() as temporary:
        student = Path(temporary) / "student"
        if line.run:
            results = finished(line.run)
            saved = SentenceTransformer(str(results.folder.student), device="cpu")
            save_student(saved, student)  # a copy: the run stays as it is
            collection, teacher = results.collection, results.recipe.teacher.teacher
        else:
            collection, teacher = quickstart(student, max(800, 2 * line.documents))
        export_onnx(student)
        place = str(locate_model(teacher, "teacher"))
        fast = fast_precision("cpu")
        variants = [of_torch("teacher", place, torch.float32)]
        variants += [of_torch("teacher", place, torch.bfloat16)] if fast == "bf16" else []
        variants += [
            of_torch("student", str(student), dtype) for dtype in (torch.float32, torch.bfloat16)
        ]
        variants += [of_onnx("student", student, precision) for precision in FILES]
        pairs = collection.pairs("train")
        queries = collection.query_texts(pairs.queries[: line.queries])
        documents = collection.document_texts(pairs.documents[: line.documents])
        figures = measure(variants, queries, documents, line.rounds, line.most_seconds)
    first = figures[variants[0].name]
    print(
        f"\n{line.queries} queries one by one, {line.documents} documents in batches of {BATCH}, "
        f"{line.rounds} rounds, {cpu_cores()} cores"
    )
    print(
        f"{'':<30}{'MB':>8}{'p50, ms':>10}{'p95, ms':>10}{'x teacher':>11}{'documents/s':>13}"
        f"{'x teacher':>11}"
    )
    for name, f in figures.items():
        faster = f["documents_per_second"] / first["documents_per_second"]
        print(
            f"{name:<30}{f['megabytes']:>8.1f}{f['p50_ms']:>10.2f}{f['p95_ms']:>10.2f}"
            f"{first['p50_ms'] / f['p50_ms']:>11.2f}{f['documents_per_second']:>13.1f}"
            f"{faster:>11.2f}"
        )
    print(json.dumps({"cores": cpu_cores(), "fast_precision": fast, "variants": figures}))


if __name__ == "__main__":
    main()
