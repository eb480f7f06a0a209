"""What it costs to serve a student instead of its teacher: `python benchmarks/serving.py [--run
RUN]`.

In one run and in turns: the teacher in PyTorch (float32, and bfloat16 where that is faster here),
the student in PyTorch (float32, bfloat16) and in ONNX (float32, int8). Latency of one query at a
time (p50, p95) and documents/s in batches of 32. Without `--run` the student is the quickstart's,
untrained: its speed is the same. Ends with one line of JSON.
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

from hf_distill.compute.device import (
    bfloat16_speedup,
    cpu_cores,
    use_all_cores,
)
from hf_distill.compute.models import (
    QUICKSTART_TEACHER,
    locate_model,
)
from hf_distill.data.load import load_pair_data
from hf_distill.finished_run import open_finished_run
from hf_distill.recipe.arguments import (
    DataArguments,
    StudentArguments,
    TeacherArguments,
)
from hf_distill.release.onnx import (
    FILES,
    export_onnx,
    load_onnx,
)
from hf_distill.run.folder import RunFolder
from hf_distill.student.build import build_student
from hf_distill.student.save import save_student
from hf_distill.teachers.bi_encoder import load_bi_encoder

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
        made = model.encode(
            texts, batch_size=BATCH, convert_to_tensor=True, show_progress_bar=False
        )
        return made.float().numpy()

    return Variant(f"{name}, PyTorch {str(dtype)[6:]}", embed, size)


def of_onnx(name: str, folder: Path, precision: str) -> Variant:
    """An exported model."""
    encoder = load_onnx(folder, precision)
    return Variant(
        f"{name}, ONNX {precision}",
        encoder.encode,
        (folder / FILES[precision]).stat().st_size / 1e6,
    )


def quickstart_student(folder: Path) -> None:
    """Save the quickstart's student as it is before training."""
    teacher = load_bi_encoder(TeacherArguments(teacher=QUICKSTART_TEACHER, teacher_dtype="float32"))
    arguments = StudentArguments(student_layers="0,2,5", student_dim=256, student_max_length=128)
    save_student(build_student(arguments, teacher, None, 0), folder)


def seconds_of(embed: Callable[[list[str]], np.ndarray], texts: list[str]) -> float:
    """One call."""
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
    """Time every variant in turns: the query latencies of all rounds together, and the median
    round's documents/s.

    A turn that would take longer than `most_seconds` gets fewer documents, and fewer queries:
        bfloat16 without hardware is very slow.
    """
    latencies: dict[str, list[float]] = {variant.name: [] for variant in variants}
    speeds: dict[str, list[float]] = {variant.name: [] for variant in variants}
    shares: dict[str, tuple[int, int]] = {}
    for v in variants:
        for texts in (documents[:2], queries[:1]):  # the first calls pay for set-up
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
    """Measure and say it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--run", type=Path, help="A finished run, whose student and teacher are measured."
    )
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--documents", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3, help="Turns that each variant takes.")
    parser.add_argument(
        "--most_seconds",
        type=float,
        default=10.0,
        help="Longest turn of a variant: a slow one gets fewer texts.",
    )
    line = parser.parse_args()
    datasets.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    use_all_cores(1)
    with tempfile.TemporaryDirectory() as temporary:
        student, teacher = Path(temporary) / "student", QUICKSTART_TEACHER
        if line.run:
            run = open_finished_run(line.run)
            save_student(
                SentenceTransformer(str(run.folder.student), device="cpu"), student
            )  # a copy: the run stays as it is
            data, teacher = run.data, run.recipe.teacher.teacher
        else:
            quickstart_student(student)
            data = load_pair_data(
                DataArguments(max_pairs=max(800, 2 * line.documents)),
                0,
                RunFolder(Path(temporary) / "run"),
            )
        export_onnx(student)
        place = locate_model(teacher, "teacher")
        bfloat16 = bfloat16_speedup("cpu")
        variants = [of_torch("teacher", place, torch.float32)]
        variants += [of_torch("teacher", place, torch.bfloat16)] if bfloat16 > 1 else []
        variants += [
            of_torch("student", str(student), dtype) for dtype in (torch.float32, torch.bfloat16)
        ]
        variants += [of_onnx("student", student, precision) for precision in FILES]
        texts = data.train["query"][: line.queries], data.train["document"][: line.documents]
        figures = measure(variants, *texts, line.rounds, line.most_seconds)
    first = figures[variants[0].name]
    print(
        f"\n{line.queries} queries one by one, {line.documents} documents in batches of {BATCH}, {line.rounds} rounds, {cpu_cores()} cores"
    )
    print(
        f"{'':<30}{'MB':>8}{'p50, ms':>10}{'p95, ms':>10}{'x teacher':>11}{'documents/s':>13}{'x teacher':>11}"
    )
    for name, f in figures.items():
        print(
            f"{name:<30}{f['megabytes']:>8.1f}{f['p50_ms']:>10.2f}{f['p95_ms']:>10.2f}{first['p50_ms'] / f['p50_ms']:>11.2f}"
            f"{f['documents_per_second']:>13.1f}{f['documents_per_second'] / first['documents_per_second']:>11.2f}"
        )
    print(
        json.dumps(
            {"cores": cpu_cores(), "bfloat16_speedup": round(bfloat16, 2), "variants": figures}
        )
    )


if __name__ == "__main__":
    main()
