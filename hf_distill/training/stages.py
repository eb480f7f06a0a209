"""One stage of a training."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator
from transformers import EarlyStoppingCallback
from transformers.trainer_utils import IntervalStrategy

from hf_distill.compute.device import give_back_freed_memory
from hf_distill.errors import InputError
from hf_distill.recipe.config import DistillationConfig
from hf_distill.teachers.base import Scale
from hf_distill.training.between import Measure
from hf_distill.training.checkpoints import wanted_checkpoint
from hf_distill.training.progress import show_one_bar
from hf_distill.training.rows import Rows, rows_of_stage
from hf_distill.training.sources import drawn_of
from hf_distill.training.trainer import DistillationTrainer


@dataclass(frozen=True)
class StageRecord:
    """How a stage of a training went.

    Attributes:
        key: Its fingerprint.
        name: The keys that differ from the recipe's, as it says them; empty for the first stage.
        steps, epochs, examples, sources, seconds, resumed_from, best_step, log: As in
            `TrainingRecord`, of this stage alone.
    """

    key: str
    name: str
    steps: int
    epochs: float
    examples: int
    sources: dict[str, int]
    seconds: float
    resumed_from: str | None
    best_step: int | None
    log: tuple[dict[str, float], ...]


def lists_again(checkpoints: Path) -> Path:
    """Folder of the lists that the student mined for a stage with these checkpoints."""
    return checkpoints / "candidates"


@dataclass(frozen=True)
class TrainingTask:
    """A student, and what it is trained on.

    Attributes:
        student: The untrained student; it is trained in place.
        stages: The objective and the training arguments of each stage.
        names: What the keys of each further stage are, as in the recipe.
        rows: What it is trained on.
        components: (student dimension, teacher dimension) coordinates of the alignment's targets;
            None if the teacher has no embeddings.
        scale: What the teacher's scores mean.
        layers: The layers of the backbone that a search chose, for the record.
        checkpoints: Folder for checkpoints of each stage; its name says what they are of.
        evaluator: What the evaluations compute beside the loss, and what then chooses the best
            student. Its `primary_metric` is the name, and greater is better.
        specialise: As in the recipe.
        measured: What a point between the last two stages is measured by, on held-out data.
        rows_again: Of the student so far and a folder: what a stage is trained on whose lists the
            student mines; they are kept in the folder.
    """

    student: SentenceTransformer
    stages: tuple[DistillationConfig, ...]
    rows: Rows
    components: np.ndarray | None
    scale: Scale
    layers: tuple[int, ...] | None
    checkpoints: tuple[Path, ...]
    names: tuple[str, ...] = ()
    evaluator: BaseEvaluator | None = None
    specialise: str | None = None
    measured: Measure | None = None
    rows_again: Callable[[SentenceTransformer, Path], Rows] | None = None

    def rows_of(self, number: int) -> Rows:
        """What a stage is trained on; 1 is the first. The student is as the one before left it."""
        if not self.stages[number - 1].mine_again:
            return self.rows
        assert self.rows_again is not None, "check_lists refuses it"
        return self.rows_again(self.student, lists_again(self.checkpoints[number - 1]))

    def weights(self, number: int) -> Path:
        """The student after a stage that something follows; 1 is the first."""
        return self.checkpoints[number - 1] / "after.safetensors"


def check_batch(pairs: int, config: DistillationConfig, what: str = "pairs") -> None:
    """Raise InputError if the pairs (`what` says what they are) do not fill one batch of all
    processes, or an epoch has fewer batches than a step takes.
    """
    more = "keep more pairs (--selection)" if what == "pairs" else f"add {what}"
    batch = config.train_batch_size * config.world_size
    if pairs < batch:
        raise InputError(
            f"{pairs} training {what} do not fill one batch of {config.train_batch_size} on "
            f"{config.world_size} process(es); {more} or lower "
            "--per_device_train_batch_size"
        )
    batches = pairs // batch if config.dataloader_drop_last else math.ceil(pairs / batch)
    if batches < config.gradient_accumulation_steps:
        raise InputError(
            f"--gradient_accumulation_steps {config.gradient_accumulation_steps}: {pairs} training "
            f"{what} are only {batches} batches, so no step would be as large; {more}, or "
            "lower it"
        )


def check_validation(pairs: int, config: DistillationConfig, what: str = "pairs") -> None:
    """Raise InputError if the evaluations during training have too few pairs."""
    strategy = IntervalStrategy(config.eval_strategy).value
    if strategy == "no":
        return
    if not pairs:
        raise InputError(
            f"--eval_strategy {strategy}: there are no validation {what} to evaluate "
            "on; set --validation_fraction above 0, or --eval_strategy no"
        )
    batch = config.eval_batch_size * config.world_size
    if config.dataloader_drop_last and pairs < batch:
        raise InputError(
            f"--per_device_eval_batch_size {config.per_device_eval_batch_size}: {pairs} validation "
            f"{what} do not fill one batch on {config.world_size} process(es), and "
            "--dataloader_drop_last drops what does not; lower it to "
            f"{max(1, pairs // config.world_size)} or less"
        )


def train_stage(task: TrainingTask, number: int, key: str) -> StageRecord:
    """Train the student in place in one stage (1 is the first), on all processes together. If it
    has a checkpoint, it resumes from the last one.

    Returns:
        How it went. The student is in evaluation mode.

    Raises:
        InputError: Fewer pairs than a batch, or an evaluation without validation pairs.
    """
    rows, student = task.rows_of(number), task.student
    config = task.stages[number - 1].copied()
    folder = task.checkpoints[number - 1]
    config.output_dir = str(folder)
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
    train = rows_of_stage(rows.train, config)
    trainer = DistillationTrainer(
        model=student,
        args=config,
        train_dataset=train,
        eval_dataset=rows_of_stage(rows.validation, config) if evaluates else None,
        components=task.components,
        scale=task.scale,
        lookup=rows.lookup,
        evaluator=evaluator,
        callbacks=[] if patience is None else [EarlyStoppingCallback(patience)],
    )
    show_one_bar(trainer)
    checkpoint = wanted_checkpoint(config, folder)
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.perf_counter() - start
    student.eval()
    give_back_freed_memory()
    state = trainer.state
    step = config.train_batch_size * config.world_size * config.gradient_accumulation_steps
    return StageRecord(
        key=key,
        name=task.names[number - 2] if number > 1 else "",
        steps=state.global_step,
        epochs=float(state.epoch or 0),
        examples=state.global_step * step,
        sources=drawn_of(trainer.plan, train, state.global_step, config),
        seconds=round(seconds, 1),
        resumed_from=Path(checkpoint).name if checkpoint else None,
        best_step=state.best_global_step,
        log=tuple(_finite(row) for row in state.log_history),
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
