"""Training speed beside SentenceTransformerTrainer: `python benchmarks/training.py [--steps N]
[--dropout P]`.

The same student (three layers of the quickstart's teacher and a 256-dimensional head), data and
batch for: SentenceTransformerTrainer with MultipleNegativesRankingLoss and with DistillKLDivLoss,
in float32 (its default) and in bfloat16 (its best; it merges the columns into one forward pass by
itself; here it is given plain attention and the memory settings of this project, too, which on a
CPU are faster than what it comes with), and this project's Trainer with contrast and alignment.
Each runs in a process of its own, in turns; the time of a step is the median of all but the first
ones, and of the turns the median is reported. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset
from matmul import matmul_peak
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer import losses
from transformers import TrainerCallback

from hf_distill.compute.device import (
    cpu_cores,
    device_type,
    keep_freed_memory,
    use_all_cores,
)
from hf_distill.compute.models import QUICKSTART_TEACHER
from hf_distill.student.build import build_student
from hf_distill.student.head import principal_components
from hf_distill.training.trainer import DistillationTrainer

WARM_UP = 3
OWN, GRAD_CACHE = "this project", "this project, GradCache"
PEERS = {"MNRL": losses.MultipleNegativesRankingLoss, "DistillKLDivLoss": losses.DistillKLDivLoss}


class StepTimes(TrainerCallback):
    """Notes how long each optimiser step takes."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """One more."""
        self.ends.append(time.perf_counter())

    def seconds(self) -> float:
        """Of the median step after the first ones."""
        return statistics.median(np.diff(self.ends)[WARM_UP - 1 :])


def flops_of_step(model: Any, pairs: Dataset, batch: int) -> float:
    """Of a forward and a backward pass over a batch without padding: six for each weight of a
    linear layer and token.
    """
    weights = sum(
        module.weight.numel()
        for module in model[0].auto_model.encoder.modules()
        if isinstance(module, torch.nn.Linear)
    )
    texts = [*pairs["query"], *pairs["document"]]
    lengths = [
        len(ids)
        for ids in model.tokenizer(texts, truncation=True, max_length=model.max_seq_length)[
            "input_ids"
        ]
    ]
    return 6.0 * weights * sum(lengths) * batch / len(pairs)


def measure(
    variant: str,
    bf16: bool,
    steps: int,
    batch: int,
    dropout: float,
    pairs: list[dict[str, str]],
    result: Any,
) -> None:
    """Train for `steps` steps; put seconds a step, peak memory in MB, and the FLOP of a step into
    `result`.
    """
    warnings.filterwarnings("ignore")
    datasets.utils.logging.disable_progress_bar()
    use_all_cores(1)
    if bf16 or variant.startswith(OWN):
        keep_freed_memory()
    teacher = load_bi_encoder(TeacherArguments(teacher=QUICKSTART_TEACHER, teacher_dtype="float32"))
    rows = Dataset.from_list(pairs)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(2, len(rows), teacher.dimension)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    components = principal_components(vectors.reshape(-1, teacher.dimension), 256)
    arguments = StudentArguments(
        student_layers="0,2,5", student_init="pca", student_dropout=dropout, student_max_length=128
    )
    student = build_student(arguments, teacher, Blueprint(components), 0)
    times = StepTimes()
    with tempfile.TemporaryDirectory() as temporary:
        common: dict[str, Any] = {
            "model": student,
            "args": SentenceTransformerTrainingArguments(
                temporary, per_device_train_batch_size=batch, max_steps=steps, bf16=bf16, use_cpu=device_type() == "cpu",
                save_strategy="no", report_to="none", disable_tqdm=True, logging_strategy="no", learning_rate=1e-5,
            ),
            "callbacks": [times],
        }  # fmt: skip
        if bf16:
            use_plain_attention(student)  # (this project packs its texts instead)
        if variant.startswith(OWN):
            table = rows.add_column("teacher_score", (vectors[0] * vectors[1]).sum(1))
            table = table.add_column("teacher_query_embedding", list(vectors[0])).add_column(
                "teacher_document_embedding", list(vectors[1])
            )
            trainer: SentenceTransformerTrainer = DistillationTrainer(
                weights=Weights(contrastive=1, regression=0, alignment=15, temperature=0.05), components=torch.from_numpy(components),
                grad_cache=variant == GRAD_CACHE, train_dataset=table.with_format("numpy"), **common,
            )  # fmt: skip
        else:
            if variant == "DistillKLDivLoss":
                other = [*rows["document"][1:], rows["document"][0]]
                rows = rows.add_column("negative", other).add_column(
                    "label", [[0.7, 0.2]] * len(rows)
                )
            trainer = SentenceTransformerTrainer(
                train_dataset=rows, loss=PEERS[variant](student), **common
            )
        trainer.train()
        flops = flops_of_step(student, rows, batch)
    result.put((times.seconds(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, flops))


def main() -> None:
    """Measure and say it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=24, help="Optimiser steps of each turn.")
    parser.add_argument("--turns", type=int, default=2, help="Turns that each variant takes.")
    parser.add_argument("--batch", type=int, default=64, help="Pairs in a batch.")
    parser.add_argument(
        "--peers",
        nargs="+",
        choices=PEERS,
        default=list(PEERS),
        help="Losses of SentenceTransformerTrainer.",
    )
    parser.add_argument(
        "--grad_cache", action="store_true", help="Also measure this project with GradCache."
    )
    parser.add_argument(
        "--only_grad_cache",
        action="store_true",
        help="Nothing else: see the memory of --batch 4096 --steps 4.",
    )
    parser.add_argument(
        "--dropout", type=float, default=0.1, help="Dropout in the student, the same for all."
    )
    line = parser.parse_args()
    datasets.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        data = load_pair_data(
            DataArguments(max_pairs=max(1500, 2 * line.batch)),
            42,
            RunFolder(Path(temporary) / "run"),
        )
        pairs = [{"query": row["query"], "document": row["document"]} for row in data.train]
    precisions = (False, True) if bfloat16_is_faster(device_type()) else (False,)
    names = (
        [GRAD_CACHE]
        if line.only_grad_cache
        else [*line.peers, OWN, *[GRAD_CACHE] * line.grad_cache]
    )
    variants = [
        (name, bf16)
        for bf16 in (precisions[-1:] if line.only_grad_cache else precisions)
        for name in names
    ]
    context = multiprocessing.get_context("spawn")
    found: dict[tuple[str, bool], list[tuple[float, float, float]]] = {
        variant: [] for variant in variants
    }
    for _ in range(line.turns):
        for variant in variants:
            result = context.Queue()
            process = context.Process(
                target=measure, args=(*variant, line.steps, line.batch, line.dropout, pairs, result)
            )
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(
                    f"{variant[0]} ended with exit code {process.exitcode}; what it said stands above"
                )
            found[variant].append(result.get())
    seconds = {
        variant: statistics.median(turn[0] for turn in turns) for variant, turns in found.items()
    }
    use_all_cores(1)
    peaks = {
        bf16: matmul_peak(device_type(), torch.bfloat16 if bf16 else torch.float32)
        for bf16 in precisions
    }
    print(
        f"\nbatch {line.batch}, dropout {line.dropout}, {line.steps} steps a turn, {line.turns} turns, {cpu_cores()} cores"
    )
    print(f"{'variant':<32}{'examples/s':>11}{'x first':>13}{'of peak':>9}{'peak MB':>9}")
    for variant, taken in seconds.items():
        name = f"{variant[0]}, {'bfloat16' if variant[1] else 'float32'}"
        share = found[variant][0][2] / taken / peaks[variant[1]]
        memory = max(turn[1] for turn in found[variant])
        print(
            f"{name:<32}{line.batch / taken:>11.1f}{seconds[variants[0]] / taken:>13.2f}{share:>9.1%}{memory:>9.0f}"
        )
    if line.only_grad_cache:
        print(
            json.dumps(
                {
                    "examples_per_second": round(line.batch / seconds[variants[0]], 1),
                    "peak_mb": round(found[variants[0]][0][1]),
                }
            )
        )
        return
    best = seconds[OWN, precisions[-1]]
    figures = {
        "x_fp32": round(seconds[line.peers[0], False] / best, 2),
        "x_bf16": round(min(seconds[name, precisions[-1]] for name in line.peers) / best, 2),
        "x_fp32_in_fp32": round(seconds[line.peers[0], False] / seconds[OWN, False], 2),
        "peak_share": round(found[OWN, precisions[-1]][0][2] / best / peaks[precisions[-1]], 3),
        "examples_per_second": round(line.batch / best, 1),
        "precision": "bfloat16" if precisions[-1] else "float32",
        "dropout": line.dropout,
        "cores": cpu_cores(),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
