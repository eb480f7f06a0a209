"""The training stage: the checks before it begins, and the training itself."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from accelerate import PartialState
from safetensors.torch import load_model, save_model
from sentence_transformers import SentenceTransformer
from transformers.trainer_utils import IntervalStrategy

from hf_distill.data.collection import Collection
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import Recipe
from hf_distill.recipe.config import DistillationConfig
from hf_distill.run.disk import DEPTH, KEY, Sizes
from hf_distill.run.stage import stage, written_whole
from hf_distill.scoring.lists import pairs_of
from hf_distill.selection.rules import Rule, needed_columns
from hf_distill.selection.select import EMBEDDED, RANKED
from hf_distill.student.layers import SEARCH
from hf_distill.teachers.base import EmbeddingTeacher, Teacher
from hf_distill.training.between import AUTO, Point, settle
from hf_distill.training.stages import (
    StageRecord,
    TrainingTask,
    check_batch,
    check_validation,
    train_stage,
)
from hf_distill.training.texts import wanted_pool
from hf_distill.training.trainer import check_scale

_SOURCES = 8
"""More sources than this are not named in a summary."""


@dataclass(frozen=True)
class Stage:
    """A stage of a training: the keys that differ from the recipe's (empty for the first one), its
    optimiser steps, and its seconds.
    """

    name: str
    steps: int
    seconds: float


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
        pairs: Training pairs, or training texts where there are no pairs.
        sources: Source -> how many of its pairs were drawn, repeats included (see
            `hf_distill.training.sources.drawn_of`); empty if no pair has a source.
        texts: Texts of the pool; 0 without one.
        seconds: Seconds since the first step of each stage, or since it resumed from a checkpoint.
        resumed_from: Name of the last checkpoint that it resumed from, in this call or an earlier
            one, if it did; with the number of the stage, if there are several.
        precision: bf16, fp16 or fp32.
        best_step: The step of the best evaluation, if that was kept.
        layers: The layers of the backbone that a search chose, if there was one.
        log: What the Trainer logged, in order: `step`, `epoch`, `loss`, `eval_loss`, each weighted
            term by name, and the measure that chose the best student, e.g. `eval_nDCG@10`. Values
            that are not finite are left out.
        watched: The measure that the evaluations computed beside the loss, of how many queries and
            documents; empty if none.
        stages: The stages, in order.
        specialised: Where between the last two stages the student is, if that was asked: 0 is the
            stage before the last, 1 the last one.
        points: What was measured between them, on held-out data.
        unit: What it was trained on: pairs or texts.
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
    stages: tuple[Stage, ...] = ()
    specialised: float | None = None
    points: tuple[Point, ...] = ()
    unit: Literal["pairs", "texts"] = "pairs"

    def summary(self) -> str:
        """How the training went, for a terminal."""
        beside = f" and {self.texts:,} texts of the pool" if self.texts else ""
        on = f", on {self.processes} processes" if self.processes > 1 else ""
        best = f"; kept: step {self.best_step:,}" if self.best_step else ""
        if self.watched:
            best += f"; watched: {self.watched}"
        went_on = f"; resumed from {self.resumed_from}" if self.resumed_from else ""
        drawn = ", ".join(f"{name} {number:,}" for name, number in self.sources.items())
        steps = f"{self.steps:,} steps"
        if len(self.stages) > 1:
            steps = " + ".join(f"{stage.steps:,}" for stage in self.stages) + " steps"
        if self.specialised is not None:
            best += f"; specialised: {self.specialised:g}"
        few = 0 < len(self.sources) <= _SOURCES
        sources = f"\n         {self.unit} drawn: {drawn}" if few else ""
        return (
            f"Training {self.pairs:,} {self.unit}{beside}, {steps} ({self.epochs:.1f} "
            f"epochs) in {self.precision}{on}, {self.seconds:,.0f} s{best}{went_on}{sources}"
        )


def check_amounts(collection: Collection, config: DistillationConfig) -> None:
    """Check, before anything is scored, that there are enough pairs and documents for the settings.

    Raises:
        InputError: As `check_batch`; no validation pairs for an evaluation, or fewer than a batch
            where incomplete batches are dropped; or fewer documents than hard negatives.
    """
    what = "pairs" if collection.record.texts is None else "texts"
    check_batch(collection.trained("train"), config, what)
    check_validation(collection.trained("validation"), config, what)
    documents, negatives = len(collection.documents), config.hard_negatives_per_pair
    if negatives and negatives >= documents:
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
    student: Sizes,
    collection: Collection,
    teacher: Teacher,
    recipe: Recipe,
    miners: Iterable[EmbeddingTeacher] = (),
) -> Sizes:
    """How much a run works on, once its pairs are read. `miners` are the bi-encoders that mine its
    lists.
    """
    split = collection.record.split
    listed = pairs_of(collection) if recipe.lists.candidates else None
    tables = (collection.queries, collection.documents, collection.texts)
    train = collection.trained("train")
    return dataclasses.replace(
        student,
        pairs=len(collection.judgements),
        train=train,
        texts=sum(map(len, tables)),
        text_bytes=sum(table.data.nbytes for table in tables),
        documents=len(collection.documents),
        document_bytes=collection.documents.data.nbytes,
        dimension=cast(EmbeddingTeacher, teacher).dimension if teacher.embeds else 0,
        pool=wanted_pool(train, recipe.stages),
        tested=split["test queries"] * min(DEPTH, split["corpus documents"]),
        listed_pairs=0 if listed is None else len(listed),
        listed=0 if listed is None else len(np.unique(listed.queries)),
        mined=sum(2 * miner.dimension + KEY for miner in miners),
    )


def check_place(specialise: str | None, validation: int) -> None:
    """Raise InputError if validation pairs are to choose how far a student is specialised, and
    there are none.
    """
    if specialise == AUTO and not validation:
        raise InputError(
            "--specialise auto: validation queries choose the place, and the data leaves none; "
            "name a place from 0 to 1"
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
        mined = bool(recipe.lists.candidates)
        relabels = [str(rule) for rule in rules if rule.relabel]
        if mined and relabels and recipe.lists.ranker:
            raise InputError(
                f"--selection {relabels[0]}: a new positive needs the teacher's score, but "
                f"{teacher.name} embeds no texts, and another ranker scores the lists; leave out "
                "--ranker, name a teacher that embeds texts, or weigh these pairs (:weight=W)"
            )
        ranked = [str(rule) for rule in rules if RANKED & needed_columns([rule])]
        embedded = [str(rule) for rule in rules if EMBEDDED & needed_columns([rule])]
        needs: dict[str, dict[str, Any]] = {
            "the teacher's ranking of a pool": {
                "selection": "" if mined else " ".join(ranked),
                "student_layers": student.student_layers
                if (student.student_layers or "").startswith(SEARCH)
                else None,
            },
            "the teacher's embeddings": {
                "selection": " ".join(embedded),
                "texts_per_pair": config.texts_per_pair,
                "alignment_weight": config.alignment_weight,
            },
            "scores of other pairs than the given ones": {
                "kl_weight": 0 if mined else config.kl_weight,
                "margin_weight": 0 if mined else config.margin_weight,
            },
        }
        gone = {*embedded, *([] if mined else ranked)}
        left = " ".join(str(rule) for rule in rules if str(rule) not in gone) or "none"
        for what, keys in needs.items():
            for name, value in keys.items():
                if value:
                    do = f"--selection {left}" if name == "selection" else "set it to 0 or none"
                    raise InputError(
                        f"--{name} {value}: it needs {what}, but {teacher.name} scores pairs and "
                        f"embeds no texts; remove it ({do}), or name a teacher that embeds texts"
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


def check_lists_scale(config: DistillationConfig, scorer: Teacher) -> None:
    """Raise InputError if a term over lists reads scores that lie so close together that all
    candidates are nearly the same to it.

    Args:
        config: A stage of the training.
        scorer: What scores the lists.
    """
    scale, temperature = scorer.scale, config.ranker_temperature
    if not (config.list_kl_weight or config.list_margin_weight) or not scale.is_bounded:
        return
    if temperature >= (scale.high - scale.low) / 2:
        raise InputError(
            f"--ranker_temperature {temperature}: the scores of {scorer.name} are {scale}, so at "
            "this temperature all candidates of a list are nearly the same; set it to the "
            f"student's --temperature ({config.temperature}) for cosines, or to about 0.1 for "
            "scores in [0, 1]"
        )


def train_student(task: TrainingTask, key: str) -> TrainingRecord:
    """Train the student in place, stage by stage, on all processes together. It resumes from the
    last stage that was completed, and from the last checkpoint of the one after it.

    Args:
        task: The student, and what it is trained on.
        key: The fingerprint of everything that the training depends on.

    Returns:
        How it went. The student is in evaluation mode.

    Raises:
        InputError: As `train_stage`.
    """
    last = len(task.stages)
    records = [_kept_stage(task, number) for number in range(1, last)]
    place: float | None = None
    points: tuple[Point, ...] = ()
    seconds = 0.0
    if task.specialise is None:
        records.append(train_stage(task, last, key))
    else:
        records.append(_kept_stage(task, last))
        start = time.perf_counter()
        place, points = settle(task.student, task.weights(last - 1), task.specialise, task.measured)
        seconds = time.perf_counter() - start
    config, pool = task.stages[0], task.rows.lookup.pool
    offsets = np.cumsum([0, *(record.steps for record in records)]).tolist()
    sources: dict[str, int] = {}
    for record in records:
        for name, count in record.sources.items():
            sources[name] = sources.get(name, 0) + count
    best = records[-1].best_step if place in (None, 1.0) else None
    evaluator = task.evaluator
    watches = any(IntervalStrategy(stage.eval_strategy).value != "no" for stage in task.stages)
    return TrainingRecord(
        key=key,
        selection=task.rows.selection,
        steps=offsets[-1],
        epochs=sum(record.epochs for record in records),
        examples=sum(record.examples for record in records),
        processes=config.world_size,
        pairs=len(task.rows.train),
        sources=sources,
        texts=0 if pool is None else len(pool),
        seconds=round(sum((record.seconds for record in records), seconds), 1),
        resumed_from=_resumed_from(records),
        precision=config.precision,
        best_step=None if best is None else best + offsets[-2],
        layers=task.layers,
        log=tuple(
            row | {"step": row["step"] + offset}
            for record, offset in zip(records, offsets, strict=False)
            for row in record.log
        ),
        watched=str(evaluator) if evaluator is not None and watches else "",
        stages=tuple(Stage(record.name, record.steps, record.seconds) for record in records),
        specialised=place,
        points=points,
        unit="texts" if "text" in task.rows.train.column_names else "pairs",
    )


def _resumed_from(records: Sequence[StageRecord]) -> str | None:
    named = [
        f"{one.resumed_from} of stage {number}" if len(records) > 1 else one.resumed_from
        for number, one in enumerate(records, 1)
        if one.resumed_from
    ]
    return named[-1] if named else None


def _kept_stage(task: TrainingTask, number: int) -> StageRecord:
    """A stage that something follows. The student after it is kept."""
    weights = task.weights(number)

    def make(of_stage: str) -> StageRecord:
        record = train_stage(task, number, of_stage)
        if PartialState().is_main_process:
            with written_whole(weights) as temporary:
                save_model(task.student, str(temporary))
        return record

    path = weights.with_suffix(".json")
    inputs = [task.checkpoints[number - 1].name]
    record = stage(path, StageRecord, inputs, make, [weights], together=True)
    PartialState().wait_for_everyone()  # the main process has written it
    load_model(task.student, weights)
    return record
