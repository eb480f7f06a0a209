"""The training stage: the checks before it begins, and the training itself."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator
from transformers import EarlyStoppingCallback
from transformers.trainer_utils import IntervalStrategy

from hf_distill.compute.device import give_back_freed_memory
from hf_distill.data.collection import Collection
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import Recipe
from hf_distill.recipe.config import DistillationConfig
from hf_distill.run.disk import DEPTH, Sizes
from hf_distill.selection.rules import Rule, needed_columns
from hf_distill.student.layers import SEARCH
from hf_distill.teachers.base import EmbeddingTeacher, Scale, Teacher
from hf_distill.training.checkpoints import wanted_checkpoint
from hf_distill.training.rows import Rows
from hf_distill.training.sources import drawn_of
from hf_distill.training.texts import pool_size
from hf_distill.training.trainer import DistillationTrainer, check_scale

_SOURCES = 8
"""More sources than this are not named in a summary."""


@dataclass(frozen=True)
class TrainingRecord:
    """`training.json`: how a student was trained.

    Attributes:
        key: The fingerprint of everything that the training depends on.
        selection: The key of the selection whose pairs it was trained on.
        steps: Optimiser steps.
        epochs: Passes over the pairs, as far as the training went.
        examples: Pairs seen; a pair that was seen twice counts twice.
        processes: How many processes trained together.
        pairs: Training pairs.
        sources: Source -> how many of its pairs were drawn, repeats included (see
            `hf_distill.training.sources.drawn_of`); empty if no pair has a source.
        texts: Texts of the pool; 0 without one.
        seconds: Seconds since the first step of this call, or since it resumed from a checkpoint.
        resumed_from: Name of the checkpoint that it resumed from, if it did.
        precision: bf16, fp16 or fp32.
        best_step: The step of the best evaluation, if that was kept.
        layers: The layers of the backbone that a search chose, if there was one.
        log: What the Trainer logged, in order: `step`, `epoch`, `loss`, `eval_loss`, each weighted
            term by name, and the measure that chose the best student, e.g. `eval_nDCG@10`. Values
            that are not finite are left out.
        watched: The measure that the evaluations computed beside the loss, of how many queries and
            documents; empty if none.
    """

    key: str
    selection: str
    steps: int
    epochs: float
    examples: int
    processes: int
    pairs: int
    sources: dict[str, int]
    texts: int
    seconds: float
    resumed_from: str | None
    precision: str
    best_step: int | None
    layers: tuple[int, ...] | None
    log: tuple[dict[str, float], ...]
    watched: str = ""

    def summary(self) -> str:
        """How the training went, for a terminal."""
        beside = f" and {self.texts:,} texts of the pool" if self.texts else ""
        on = f", on {self.processes} processes" if self.processes > 1 else ""
        best = f"; kept: step {self.best_step:,}" if self.best_step else ""
        if self.watched:
            best += f"; watched: {self.watched}"
        went_on = f"; resumed from {self.resumed_from}" if self.resumed_from else ""
        drawn = ", ".join(f"{name} {number:,}" for name, number in self.sources.items())
        few = 0 < len(self.sources) <= _SOURCES
        sources = f"\n         pairs drawn: {drawn}" if few else ""
        return (
            f"Training {self.pairs:,} pairs{beside}, {self.steps:,} steps ({self.epochs:.1f} "
            f"epochs) in {self.precision}{on}, {self.seconds:,.0f} s{best}{went_on}{sources}"
        )


@dataclass(frozen=True)
class TrainingTask:
    """A student, and what it is trained on.

    Attributes:
        student: The untrained student; it is trained in place.
        config: The objective and the training arguments.
        rows: What it is trained on.
        components: (student dimension, teacher dimension) coordinates of the alignment's targets;
            None if the teacher has no embeddings.
        scale: What the teacher's scores mean.
        layers: The layers of the backbone that a search chose, for the record.
        checkpoints: Folder for checkpoints of this training alone.
        evaluator: What the evaluations compute beside the loss, and what then chooses the best
            student. Its `primary_metric` is the name, and greater is better.
    """

    student: SentenceTransformer
    config: DistillationConfig
    rows: Rows
    components: np.ndarray | None
    scale: Scale
    layers: tuple[int, ...] | None
    checkpoints: Path
    evaluator: BaseEvaluator | None = None


def check_batch(pairs: int, config: DistillationConfig) -> None:
    """Raise InputError if the pairs do not fill one batch of all processes, or an epoch has fewer
    batches than a step takes.
    """
    batch = config.train_batch_size * config.world_size
    if pairs < batch:
        raise InputError(
            f"{pairs} training pairs do not fill one batch of {config.train_batch_size} on "
            f"{config.world_size} process(es); keep more pairs (--selection) or lower "
            "--per_device_train_batch_size"
        )
    batches = pairs // batch if config.dataloader_drop_last else math.ceil(pairs / batch)
    if batches < config.gradient_accumulation_steps:
        raise InputError(
            f"--gradient_accumulation_steps {config.gradient_accumulation_steps}: {pairs} training "
            f"pairs are only {batches} batches, so no step would be as large; keep more pairs, or "
            "lower it"
        )


def check_amounts(collection: Collection, config: DistillationConfig) -> None:
    """Check, before anything is scored, that there are enough pairs and documents for the settings.

    Raises:
        InputError: As `check_batch`; no validation pairs for an evaluation, or fewer than a batch
            where incomplete batches are dropped; or fewer documents than hard negatives.
    """
    check_batch(len(collection.pairs("train")), config)
    validation = len(collection.pairs("validation"))
    check_validation(validation, config)
    documents, negatives = len(collection.documents), config.hard_negatives_per_pair
    if negatives >= documents:
        raise InputError(
            f"--hard_negatives_per_pair {negatives}: there are only {documents} documents, so no "
            "query has that many others; lower it"
        )


def student_sizes(student: SentenceTransformer) -> Sizes:
    """How large a student is."""
    tokenizer = getattr(student.tokenizer, "backend_tokenizer", student.tokenizer)
    return Sizes(
        student=sum(4 * tensor.numel() for tensor in student.state_dict().values()),
        tokenizer=len(tokenizer.to_str()) if hasattr(tokenizer, "to_str") else 0,
    )


def sizes_with(
    student: Sizes, collection: Collection, teacher: Teacher, config: DistillationConfig
) -> Sizes:
    """How much a run works on, once its pairs are read."""
    split = collection.record.split
    tables = (collection.queries, collection.documents)
    return dataclasses.replace(
        student,
        pairs=len(collection.judgements),
        train=split["train"],
        texts=sum(map(len, tables)),
        text_bytes=sum(table.data.nbytes for table in tables),
        dimension=cast(EmbeddingTeacher, teacher).dimension if teacher.embeds else 0,
        pool=pool_size(split["train"], config),
        tested=split["test queries"] * min(DEPTH, split["corpus documents"]),
    )


def check_validation(pairs: int, config: DistillationConfig) -> None:
    """Raise InputError if the evaluations during training have too few pairs."""
    strategy = IntervalStrategy(config.eval_strategy).value
    if strategy == "no":
        return
    if not pairs:
        raise InputError(
            f"--eval_strategy {strategy}: there are no validation pairs to evaluate "
            "on; set --validation_fraction above 0, or --eval_strategy no"
        )
    batch = config.eval_batch_size * config.world_size
    if config.dataloader_drop_last and pairs < batch:
        raise InputError(
            f"--per_device_eval_batch_size {config.per_device_eval_batch_size}: {pairs} validation "
            f"pairs do not fill one batch on {config.world_size} process(es), and "
            "--dataloader_drop_last drops what does not; lower it to "
            f"{max(1, pairs // config.world_size)} or less"
        )


def check_objective(recipe: Recipe, teacher: Teacher, rules: Sequence[Rule]) -> None:
    """Raise InputError if the recipe needs something that the teacher does not have: bounded
    scores, embeddings (of new texts), a ranking, enough dimensions.

    Args:
        recipe: The whole recipe.
        teacher: The teacher, loaded.
        rules: The selection, parsed.
    """
    config, student = recipe.training, recipe.student
    check_scale(config, teacher.scale, teacher.name)
    if not teacher.embeds:
        ranked = [str(rule) for rule in rules if {"rank", "margin"} & needed_columns([rule])]
        needs: dict[str, dict[str, Any]] = {
            "the teacher's ranking of a pool": {
                "selection": " ".join(ranked),
                "student_layers": student.student_layers
                if (student.student_layers or "").startswith(SEARCH)
                else None,
            },
            "the teacher's embeddings": {
                "texts_per_pair": config.texts_per_pair,
                "alignment_weight": config.alignment_weight,
            },
            "scores of other pairs than the given ones": {
                "kl_weight": config.kl_weight,
                "margin_weight": config.margin_weight,
            },
        }
        for what, keys in needs.items():
            for name, value in keys.items():
                if value:
                    raise InputError(
                        f"--{name} {value}: it needs {what}, but {teacher.name} scores pairs and "
                        "embeds no texts; remove it (set it to 0 or none), or name a teacher that "
                        "embeds texts"
                    )
        return
    if config.texts_per_pair and not config.alignment_weight:
        raise InputError(
            f"--texts_per_pair {config.texts_per_pair}: these texts are only aligned, and "
            "--alignment_weight is 0; set it above 0, or set --texts_per_pair 0"
        )
    if config.texts_per_pair and not teacher.embeds_new_texts:
        raise InputError(
            f"--texts_per_pair {config.texts_per_pair}: it makes new texts, but {teacher.name} "
            "holds embeddings of given texts only; set it to 0"
        )
    dimension: int = teacher.dimension  # type: ignore[attr-defined]  # a teacher that embeds has one
    if config.alignment_weight and student.student_dim > dimension:
        raise InputError(
            f"--student_dim {student.student_dim}: alignment_weight is {config.alignment_weight}, "
            f"and the teacher's embeddings have only {dimension} dimensions to align with; lower "
            "--student_dim, or set --alignment_weight 0"
        )


def train_student(task: TrainingTask, key: str) -> TrainingRecord:
    """Train the student in place, on all processes together. If `task.checkpoints` holds a
    checkpoint, the training resumes from the last one.

    Args:
        task: The student, and what it is trained on.
        key: The fingerprint of everything that the training depends on.

    Returns:
        How it went. The student is in evaluation mode.

    Raises:
        InputError: Fewer pairs than a batch, or an evaluation without validation pairs.
    """
    rows, student = task.rows, task.student
    config = copy.copy(task.config)
    config.output_dir = str(task.checkpoints)
    config.restore_callback_states_from_checkpoint = True  # early stopping goes on counting
    config.push_to_hub = False  # the release stage publishes, once everything is measured
    check_batch(len(rows.train), config)
    check_validation(len(rows.validation), config)
    evaluates = IntervalStrategy(config.eval_strategy).value != "no"
    evaluator = task.evaluator if evaluates else None
    if evaluator is not None:
        config.metric_for_best_model = f"eval_{evaluator.primary_metric}"
    config.greater_is_better = evaluator is not None  # otherwise it is the loss
    patience = config.early_stopping_patience
    trainer = DistillationTrainer(
        model=student,
        args=config,
        train_dataset=rows.train,
        eval_dataset=rows.validation if evaluates else None,
        components=task.components,
        scale=task.scale,
        lookup=rows.lookup,
        evaluator=evaluator,
        callbacks=[] if patience is None else [EarlyStoppingCallback(patience)],
    )
    checkpoint = wanted_checkpoint(config, task.checkpoints)
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.perf_counter() - start
    student.eval()
    give_back_freed_memory()
    state, pool = trainer.state, rows.lookup.pool
    step = config.train_batch_size * config.world_size * config.gradient_accumulation_steps
    return TrainingRecord(
        key=key,
        selection=rows.selection,
        steps=state.global_step,
        epochs=float(state.epoch or 0),
        examples=state.global_step * step,
        processes=config.world_size,
        pairs=len(rows.train),
        sources=drawn_of(trainer.plan, rows.train, state.global_step, config),
        texts=0 if pool is None else len(pool),
        seconds=round(seconds, 1),
        resumed_from=Path(checkpoint).name if checkpoint else None,
        precision="bf16" if config.bf16 else "fp16" if config.fp16 else "fp32",
        best_step=state.best_global_step,
        layers=task.layers,
        log=tuple(_finite(row) for row in state.log_history),
        watched="" if evaluator is None else str(evaluator),
    )


def _finite(row: dict[str, Any]) -> dict[str, float]:
    """The values of a log's row that are finite numbers. JSON cannot hold others, and fp16 logs a
    gradient norm of NaN where it skips a step.
    """
    return {
        name: value
        for name, value in row.items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }
