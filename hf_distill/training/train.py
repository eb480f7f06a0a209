"""The training stage: the rows that are trained on, what is refused before it begins, and the
training itself.
"""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Sequence, Value
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.base.modules import Transformer
from transformers import EarlyStoppingCallback, PreTrainedModel
from transformers.trainer_utils import get_last_checkpoint

from hf_distill.data.collection import (
    map_rows,
    text_number,
)
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import (
    Recipe,
    parse_final_weights,
)
from hf_distill.run.folder import RunFolder
from hf_distill.scoring.scores import (
    EmbeddingTable,
    ScoredPairs,
    embed_texts,
)
from hf_distill.selection.rules import needed_columns, parse_rules
from hf_distill.student.build import Blueprint
from hf_distill.student.layers import SEARCH
from hf_distill.teachers.base import (
    EmbeddingTeacher,
    Scale,
    Teacher,
)
from hf_distill.teachers.precomputed import PrecomputedEmbeddings
from hf_distill.training.terms import Weights
from hf_distill.training.texts import (
    one_by_one,
    student_words,
    with_augmented_texts,
)
from hf_distill.training.trainer import (
    DistillationTrainer,
    check_scale,
)

MOST_AUGMENTED = 200_000
"""Augmented texts that are made new for later epochs, at most: a set of pairs that is larger than
this has enough of them in one.
"""


def _hard_negatives(pair_ids: list[list[str]], of: list[str], number: int) -> list[str]:
    """`number` ids for each of the pairs `of`, from its candidates, best first; the last one
    repeated where there are fewer.
    """
    found = []
    for candidates, pair_id in zip(pair_ids, of, strict=True):
        if not len(candidates):
            raise InputError(
                f"the pair {pair_id} has no other document to be its hard negative; set hard_negatives_per_pair: 0"
            )
        found += [candidates[min(i, len(candidates) - 1)] for i in range(number)]
    return found


def with_hard_negatives(selected: Dataset, everything: Dataset, number: int) -> Dataset:
    """`selected` with `number` hard negatives: `negatives` (texts), `negative_scores` and
    `negative_ids` (keys of the embeddings).

    Args:
        selected: Pairs with the signals' `hard_negatives` and `hard_negative_scores`.
        everything: The pairs that these name: all that were scored for training.
        number: How many; as many as the signals hold, at most. With 0, `selected` is returned as it
            is.

    Raises:
        InputError: The teacher embeds nothing, so that there are no candidates; or a pair has none.
    """
    if not number:
        return selected
    if "hard_negatives" not in selected.column_names:
        raise InputError(
            "hard_negatives_per_pair needs a teacher that embeds texts; this one scores pairs only"
        )
    keys = np.array([text_number(pair_id) for pair_id in everything["pair_id"]], dtype=np.uint64)
    order = np.argsort(keys)

    def attach(batch: dict[str, Any], _: list[int]) -> dict[str, Any]:
        names = _hard_negatives(batch["hard_negatives"], batch["pair_id"], number)
        places = order[
            np.searchsorted(
                keys, np.array([text_number(name) for name in names], dtype=np.uint64), sorter=order
            )
        ]
        found = everything[places.tolist()]

        def by_row(values: list[Any]) -> list[list[Any]]:
            return [values[start : start + number] for start in range(0, len(values), number)]

        scores = [
            [row[min(i, len(row) - 1)] for i in range(number)]
            for row in batch["hard_negative_scores"]
        ]
        return {
            "negatives": by_row(found["document"]),
            "negative_ids": by_row(found["document_id"]),
            "negative_scores": scores,
        }

    features = Features(
        {
            **selected.features,
            "negatives": Sequence(Value("string"), length=number),
            "negative_ids": Sequence(Value("string"), length=number),
            "negative_scores": Sequence(Value("float32"), length=number),
        }
    )
    return map_rows(selected, attach, features, batch_size=256)


def training_rows(
    scored: Dataset, embeddings: EmbeddingTable | None, augmented: EmbeddingTable | None = None
) -> Dataset:
    """The columns that the collator reads: the texts, `group`, `teacher_score`, and the teacher's
    embeddings as float16, if it has any; of hard negatives too, where `with_hard_negatives` has put
    some; and `weight`, if the selection gave any.

    `augmented` are the teacher's embeddings of what `with_augmented_texts` has put, if it has.

    Pairs without a score are left out (of the training pairs, the selection has dropped and counted
    them).
    """
    if np.isnan(np.asarray(scored["teacher_score"], dtype=np.float32)).any():
        scored = scored.filter(
            lambda scores: [not np.isnan(x) for x in scores],
            input_columns="teacher_score",
            batched=True,
        )
    own = [
        name
        for name in ("query", "document", "group", "teacher_score", "weight")
        if name in scored.features
    ]
    if embeddings is None:
        return scored.select_columns(own).with_format("numpy")
    dimension = embeddings.rows.shape[1]

    negatives = [name for name in ("negatives", "negative_scores") if name in scored.features]

    def attach(batch: dict[str, Any], _: list[int]) -> dict[str, Any]:
        made = {
            "teacher_query_embedding": list(embeddings.of(batch["query_id"])),
            "teacher_document_embedding": list(embeddings.of(batch["document_id"])),
        }
        if negatives:
            made["teacher_negative_embeddings"] = [
                embeddings.of(row).tolist() for row in batch["negative_ids"]
            ]
        if augmented is not None:
            made["teacher_augmented_embeddings"] = [
                augmented.of(row).tolist() for row in batch["augmented_ids"]
            ]
        return made

    vector = Sequence(Value("float16"), length=dimension)
    further = {
        "negatives": "teacher_negative_embeddings",
        "augmented": "teacher_augmented_embeddings",
    }
    features = Features(
        {
            **{
                name: scored.features[name]
                for name in (*own, *negatives, *(["augmented"] if augmented is not None else []))
            },
            "teacher_query_embedding": vector,
            "teacher_document_embedding": vector,
            **{
                made: Sequence(vector, length=scored.features[name].length)
                for name, made in further.items()
                if name in scored.features
            },
        }
    )
    few = 256 if augmented is None else 32  # the rows' vectors are Python lists for a moment
    return map_rows(scored, attach, features, batch_size=few).with_format("numpy")


def augmented_rounds(pairs: int, each: int, args: SentenceTransformerTrainingArguments) -> int:
    """For how many epochs new augmented texts are made, `each` for every one of `pairs`; those
    after them begin again with the first.
    """
    a_step = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    epochs = math.ceil(
        args.max_steps * a_step / pairs if args.max_steps > 0 else args.num_train_epochs
    )
    return max(1, min(epochs, MOST_AUGMENTED // (each * pairs)))


def student_rows(
    selected: Dataset,
    everything: Dataset,
    scored: ScoredPairs,
    recipe: Recipe,
    teacher: Teacher,
    student: SentenceTransformer,
    folder: RunFolder,
) -> Dataset:
    """What `student` is trained on: the pairs `selected` of `everything`, with the hard negatives
    and augmented texts of the recipe.
    """
    pairs = with_hard_negatives(selected, everything, recipe.trainer.hard_negatives_per_pair)
    each = recipe.trainer.augmented_texts_per_pair
    if not each:
        return training_rows(pairs, scored.embeddings)
    assert isinstance(teacher, EmbeddingTeacher)  # check_objective has refused any other
    number = each * augmented_rounds(len(pairs), each, recipe.training)
    pairs = with_augmented_texts(pairs, number, student_words(student), teacher)
    table = embed_texts(one_by_one(pairs), teacher, folder, recipe.teacher, "augmented")
    return training_rows(pairs, scored.embeddings, table)


def check_batch(pairs: int, args: SentenceTransformerTrainingArguments) -> None:
    """Raise InputError if the pairs do not fill one batch of all processes."""
    needed = args.train_batch_size * args.world_size
    if pairs < needed:
        raise InputError(
            f"{pairs} training pairs do not fill one batch of {args.train_batch_size} on {args.world_size} process(es); "
            "keep more pairs (see selection) or lower per_device_train_batch_size"
        )


def check_objective(recipe: Recipe, teacher: Teacher) -> None:
    """Raise InputError if the objective needs of the teacher what it does not have: bounded scores,
    embeddings, a ranking, enough dimensions."""
    final = parse_final_weights(recipe.objective.final_weights)
    used = objective_weights(recipe).towards(
        final, 0.5
    )  # a term that is used at all has a weight on the way
    check_scale(used, teacher.scale, teacher.name)
    if not isinstance(teacher, EmbeddingTeacher):
        ranking = {
            "selection": needed_columns(parse_rules(recipe.selection.selection))
            & {"rank", "margin"},
            "hard_negatives_per_pair": recipe.trainer.hard_negatives_per_pair,
            "student_layers": (recipe.student.student_layers or "").startswith(SEARCH),
        }
        for name, wanted in ranking.items():
            if wanted:
                raise InputError(
                    f"{name} asks for the teacher's ranking of a pool, but {teacher.name} embeds no texts and scores pairs only"
                )
        needs = {
            "augmented_texts_per_pair": recipe.trainer.augmented_texts_per_pair,
            "alignment_weight": used.alignment,
            "distribution_weight": used.distribution,
            "margin_weight": used.margin,
        }
        for name, weight in needs.items():
            if weight:
                raise InputError(
                    f"{name} is {weight}, but the teacher {teacher.name} embeds no texts, so that it knows no scores but those of the "
                    f"pairs; set {name}: 0"
                )
        return
    if recipe.trainer.augmented_texts_per_pair:
        if not used.alignment:
            raise InputError(
                "augmented_texts_per_pair makes texts to be aligned, but alignment_weight is 0; set one of them"
            )
        if isinstance(teacher, PrecomputedEmbeddings):
            raise InputError(
                f"augmented_texts_per_pair makes new texts, and {teacher.name} holds embeddings of given ones alone; set "
                "augmented_texts_per_pair: 0"
            )
    teacher_dimension = teacher.dimension
    if used.alignment and recipe.student.student_dim > teacher_dimension:
        raise InputError(
            f"alignment_weight is {recipe.objective.alignment_weight}, but student_dim {recipe.student.student_dim} is more than the "
            f"{teacher_dimension} dimensions of the teacher's embeddings; lower student_dim or set alignment_weight: 0"
        )


def objective_weights(recipe: Recipe) -> Weights:
    """The recipe's objective."""
    o = recipe.objective
    return Weights(
        contrastive=o.contrastive_weight,
        regression=o.regression_weight,
        regression_on=o.regression_on,
        regression_loss=o.regression_loss,
        distribution=o.distribution_weight,
        margin=o.margin_weight,
        teacher_temperature=o.teacher_temperature,
        alignment=o.alignment_weight,
        temperature=o.temperature,
    )


def use_plain_attention(student: SentenceTransformer) -> None:
    """On a CPU, let the student's backbone train with attention of plain matrix products (unless
    its texts are packed: see `hf_distill.training.packing`, which does so, too).

    In bfloat16 the backward pass of PyTorch's fused attention takes half of a step there. In
    float32 the two are level, as far as a noisy machine could tell.
    """
    if student.device.type == "cpu" and isinstance(student[0], Transformer):
        backbone: PreTrainedModel = student[0].auto_model
        backbone.set_attn_implementation("eager")


def train_student(
    student: SentenceTransformer,
    recipe: Recipe,
    train_rows: Dataset,
    validation_rows: Dataset,
    blueprint: Blueprint,
    scale: Scale,
    key: str,
) -> dict[str, Any]:
    """Train `student` in place, going on from the last checkpoint of the same training if there is
    one.

    Args:
        student: The untrained student.
        recipe: The objective and the training arguments.
        train_rows: As made by :func:`training_rows`.
        validation_rows: The same, for the validation loss; may be empty if nothing evaluates.
        blueprint: What the training data decided: its components are the alignment target's
            coordinates.
        scale: What the teacher's scores mean.
        key: The fingerprint of everything that the training depends on.

    Returns:
        What `training.json` holds: steps, examples, seconds, precision and the log.

    Raises:
        InputError: Fewer pairs than a batch, or an evaluation without validation pairs.
    """
    use_plain_attention(student)
    args = copy.copy(recipe.training)
    output = (
        Path(str(args.output_dir)) / key
    )  # a checkpoint of another training is nothing to go on from
    args.output_dir = str(output)
    args.push_to_hub = False  # the release stage publishes, once everything is measured
    check_batch(len(train_rows), args)
    evaluates = args.eval_strategy != "no"
    if evaluates and not len(validation_rows):
        raise InputError(
            "eval_strategy asks for a validation loss, but there are no validation pairs (validation_fraction)"
        )
    patience = recipe.trainer.early_stopping_patience
    trainer = DistillationTrainer(
        weights=objective_weights(recipe),
        final_weights=parse_final_weights(recipe.objective.final_weights),
        false_negative_margin=recipe.objective.false_negative_margin,
        false_negative_groups=recipe.objective.false_negative_groups,
        symmetric=recipe.objective.contrastive_symmetric,
        matryoshka_dims=recipe.objective.matryoshka_dims,
        log_gradient_norms=recipe.objective.log_gradient_norms,
        grad_cache=recipe.trainer.grad_cache,
        augmented_each=recipe.trainer.augmented_texts_per_pair,
        components=None if blueprint.components is None else torch.from_numpy(blueprint.components),
        scale=scale,
        model=student,
        args=args,
        train_dataset=train_rows,
        eval_dataset=validation_rows if evaluates else None,
        callbacks=[EarlyStoppingCallback(patience)] if patience is not None else [],
    )
    last = get_last_checkpoint(output) if output.is_dir() else None  # type: ignore[no-untyped-call]  # transformers has no type for it
    checkpoint = args.resume_from_checkpoint or last
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.perf_counter() - start
    student.eval()
    state = trainer.state
    return {
        "fingerprint": key,
        "steps": state.global_step,
        "epochs": state.epoch,
        "examples": state.global_step
        * args.train_batch_size
        * args.world_size
        * args.gradient_accumulation_steps,
        "processes": args.world_size,
        "pairs": len(train_rows),
        "seconds": round(seconds, 1),
        "resumed_from": Path(checkpoint).name if checkpoint else None,
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
        "best_step": state.best_global_step,
        "layers": blueprint.layers,
        "log": state.log_history,
    }
