"""Training speed beside SentenceTransformerTrainer: `python benchmarks/training.py [--steps N]
[--dropout P]`.

All train the same student (three layers of the quickstart's teacher and a 256-dimensional head) on
the same pairs in the same batches: SentenceTransformerTrainer with MultipleNegativesRankingLoss and
with DistillKLDivLoss, and this project's trainer with contrast and alignment. The peers run in
float32, their default, and in bfloat16, their best. There they also get plain attention and the
memory settings of this project, which on a CPU are faster than their own. Each variant runs in a
process of its own, and they take turns. A step takes as long as the median step after the first
ones, and the median of the turns counts. The last line is JSON.

`--profile` measures none of this: it prints which part of the processor's time each operation of
this project's steps takes.
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
from dataclasses import dataclass
from typing import Any, cast

import datasets
import numpy as np
import torch
from datasets import Dataset
from machine import matmul_peak
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer import losses
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from hf_distill.compute.device import (
    cpu_cores,
    device_type,
    fast_precision,
    keep_freed_memory,
    use_all_cores,
)
from hf_distill.evaluation.efficiency import silence_profiler
from hf_distill.pipeline import Run
from hf_distill.recipe.config import DistillationConfig
from hf_distill.recipe.read import read_recipe
from hf_distill.student.build import Initialisation, build_student
from hf_distill.student.head import principal_components
from hf_distill.teachers.base import EmbeddingTeacher
from hf_distill.training.trainer import DistillationTrainer

WARM_UP = 3
OWN, GRAD_CACHE = "this project", "this project, GradCache"
PEERS = {"MNRL": losses.MultipleNegativesRankingLoss, "DistillKLDivLoss": losses.DistillKLDivLoss}


@dataclass(frozen=True)
class Turn:
    """What a process trains: a variant, in bfloat16 or float32, `steps` steps on batches of
    `batch` pairs of the run that the recipe's keys `line` open. `shares`: print where the time
    goes.
    """

    variant: str
    bf16: bool
    steps: int
    batch: int
    line: tuple[str, ...]
    shares: bool = False


@dataclass(frozen=True)
class Figures:
    """Of a turn: seconds of a step, peak memory in MB, and the FLOP of a step."""

    seconds: float
    megabytes: float
    flops: float


class StepTimes(TrainerCallback):
    """Notes when each optimiser step ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """One more."""
        self.ends.append(time.perf_counter())

    def seconds(self) -> float:
        """Of the median step after the first ones."""
        return statistics.median(np.diff(self.ends)[WARM_UP - 1 :])


class Shares(TrainerCallback):
    """Watches the steps after the first ones, and says which operations take their time."""

    def __init__(self) -> None:
        silence_profiler()
        self.watched = profile(activities=[ProfilerActivity.CPU])

    def on_step_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """The first steps take longer."""
        if state.global_step == WARM_UP:
            self.watched.start()

    def on_train_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """Print them."""
        self.watched.stop()
        took = {event.key: event.self_cpu_time_total for event in self.watched.key_averages()}
        whole = sum(took.values())
        print(f"{whole / (state.max_steps - WARM_UP) / 1e6:.2f} s a step, of which")
        for name in sorted(took, key=lambda name: -took[name])[:15]:
            print(f"    {took[name] / whole:.1%} {name}")


def flops_of_step(model: SentenceTransformer, pairs: Dataset, batch: int) -> float:
    """Of a forward and a backward pass over a batch without padding: six for each weight of a
    linear layer and token.
    """
    linear = [m for m in model[0].auto_model.encoder.modules() if isinstance(m, torch.nn.Linear)]
    weights = sum(module.weight.numel() for module in linear)
    texts = [*pairs["query"], *pairs["document"]]
    tokens = model.tokenizer(texts, truncation=True, max_length=model.max_seq_length)["input_ids"]
    return 6.0 * weights * sum(map(len, tokens)) * batch / len(pairs)


def own_rows(rows: Dataset, vectors: np.ndarray) -> Dataset:
    """`rows` as this project's trainer reads rows that carry their texts.

    Args:
        rows: Columns `query` and `document`.
        vectors: (2, n, d), the teacher's embeddings of both.
    """
    columns = {
        "teacher_score": (vectors[0] * vectors[1]).sum(axis=1),
        "teacher_query_embedding": list(vectors[0]),
        "teacher_document_embedding": list(vectors[1]),
    }
    for name, values in columns.items():
        rows = rows.add_column(name, values)
    return rows.with_format("numpy")


def kl_rows(rows: Dataset) -> Dataset:
    """`rows` as DistillKLDivLoss reads them: another document, and two scores."""
    others = [*rows["document"][1:], rows["document"][0]]
    return rows.add_column("negative", others).add_column("label", [[0.7, 0.2]] * len(rows))


def measure(turn: Turn, result: Any) -> None:
    """Take a turn, and put its `Figures` into `result`."""
    warnings.filterwarnings("ignore")
    datasets.utils.logging.disable_progress_bar()
    is_own = turn.variant in (OWN, GRAD_CACHE)
    if turn.bf16 or is_own:
        keep_freed_memory()
    run = Run.open(read_recipe(turn.line))
    rows = Dataset.from_dict(
        {name: [text for b in run.collection.pairs("train").batches(name) for text in b[name]]
         for name in ("query", "document")}
    )  # fmt: skip
    dimension = cast(EmbeddingTeacher, run.teacher).dimension
    vectors = np.random.default_rng(0).normal(size=(2, len(rows), dimension)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    components = principal_components(vectors.reshape(-1, dimension), 256)
    student = build_student(run.recipe.student, run.teacher, Initialisation(components), 0)
    times = StepTimes()
    callbacks = [times, *([Shares()] if turn.shares else [])]
    with tempfile.TemporaryDirectory() as temporary:
        config = DistillationConfig(
            temporary, per_device_train_batch_size=turn.batch, max_steps=turn.steps,
            bf16=turn.bf16, use_cpu=device_type() == "cpu", save_strategy="no", report_to="none",
            disable_tqdm=True, logging_strategy="no", learning_rate=1e-5, contrastive_weight=1,
            regression_weight=0, alignment_weight=15, temperature=0.05,
            grad_cache=turn.variant == GRAD_CACHE,
        )  # fmt: skip
        if is_own:
            trainer: SentenceTransformerTrainer = DistillationTrainer(
                student, config, own_rows(rows, vectors), components, callbacks=callbacks
            )
        else:
            if turn.bf16 and device_type() == "cpu":
                student[0].auto_model.set_attn_implementation("eager")
            trainer = SentenceTransformerTrainer(
                model=student,
                args=config,
                train_dataset=kl_rows(rows) if turn.variant == "DistillKLDivLoss" else rows,
                loss=PEERS[turn.variant](student),
                callbacks=[times],
            )
        trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result.put(Figures(times.seconds(), peak, flops_of_step(student, rows, turn.batch)))


def in_own_process(turn: Turn) -> Figures:
    """Take a turn in a new process."""
    context = multiprocessing.get_context("spawn")
    result = context.Queue()
    process = context.Process(target=measure, args=(turn, result))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(
            f"{turn.variant} ended with exit code {process.exitcode}; its own output is above"
        )
    figures: Figures = result.get()
    return figures


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=24, help="Optimiser steps of each turn.")
    parser.add_argument("--turns", type=int, default=2, help="Turns that each variant takes.")
    parser.add_argument("--batch", type=int, default=64, help="Pairs in a batch.")
    parser.add_argument(
        "--pairs", type=int, default=1500, help="Pairs to draw batches from; at least two batches."
    )
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
        help="Measure nothing else, e.g. the memory of --batch 4096 --steps 4.",
    )
    parser.add_argument(
        "--dropout", type=float, default=0.1, help="Dropout in the student, the same for all."
    )
    parser.add_argument(
        "--profile", action="store_true", help="Where the time of this project's steps goes."
    )
    return parser.parse_args()


def main() -> None:
    """Measure, and print a table."""
    line = _options()
    datasets.utils.logging.disable_progress_bar()
    precisions = (False, True) if fast_precision(device_type()) == "bf16" else (False,)
    names = [*line.peers, OWN, *[GRAD_CACHE] * line.grad_cache]
    if line.only_grad_cache:
        names, precisions = [GRAD_CACHE], precisions[-1:]
    variants = [(name, bf16) for bf16 in precisions for name in names]
    turns: dict[tuple[str, bool], list[Figures]] = {variant: [] for variant in variants}
    with tempfile.TemporaryDirectory() as temporary:
        keys = {
            "run_dir": f"{temporary}/run",
            "max_pairs": max(line.pairs, 2 * line.batch),
            "teacher_dtype": "float32",
            "student_layers": "0,2,5",
            "student_dropout": line.dropout,
        }
        recipe_line = ("quickstart", *(f"--{name}={value}" for name, value in keys.items()))
        if line.profile:
            turn = Turn(OWN, precisions[-1], line.steps, line.batch, recipe_line, shares=True)
            in_own_process(turn)
            return
        for _ in range(line.turns):
            for variant in variants:
                turn = Turn(*variant, line.steps, line.batch, recipe_line)
                turns[variant].append(in_own_process(turn))
    seconds = {name: statistics.median(t.seconds for t in own) for name, own in turns.items()}
    use_all_cores(1)
    peaks = {
        bf16: matmul_peak(device_type(), torch.bfloat16 if bf16 else torch.float32)
        for bf16 in precisions
    }
    share = {
        variant: turns[variant][0].flops / taken / peaks[variant[1]]
        for variant, taken in seconds.items()
    }
    print(
        f"\nbatch {line.batch}, dropout {line.dropout}, {line.steps} steps a turn, {line.turns} "
        f"turns, {cpu_cores()} cores"
    )
    print(f"{'variant':<32}{'examples/s':>11}{'x first':>13}{'of peak':>9}{'peak MB':>9}")
    for variant, taken in seconds.items():
        name = f"{variant[0]}, {'bfloat16' if variant[1] else 'float32'}"
        memory = max(turn.megabytes for turn in turns[variant])
        print(
            f"{name:<32}{line.batch / taken:>11.1f}{seconds[variants[0]] / taken:>13.2f}"
            f"{share[variant]:>9.1%}{memory:>9.0f}"
        )
    if line.only_grad_cache:
        [variant] = variants
        figures: dict[str, Any] = {
            "examples_per_second": round(line.batch / seconds[variant], 1),
            "peak_mb": round(turns[variant][0].megabytes),
        }
    else:
        first, fast = line.peers[0], precisions[-1]
        best = seconds[OWN, fast]
        figures = {
            "x_fp32": round(seconds[first, False] / best, 2),
            "x_bf16": round(min(seconds[name, fast] for name in line.peers) / best, 2),
            "x_fp32_in_fp32": round(seconds[first, False] / seconds[OWN, False], 2),
            "peak_share": round(share[OWN, fast], 3),
            "examples_per_second": round(line.batch / best, 1),
            "precision": "bfloat16" if fast else "float32",
            "dropout": line.dropout,
            "cores": cpu_cores(),
        }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
