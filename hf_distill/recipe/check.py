"""What can be refused by looking at the keys of a recipe alone, before any work."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

from hf_distill.errors import InputError
from hf_distill.recipe.arguments import Recipe

Number = float | None


def _ranges(
    recipe: Recipe,
) -> tuple[tuple[Mapping[str, Number], Callable[[float], bool], str], ...]:
    """Names and values of the keys that are numbers, with what each must hold."""
    data, teacher, student, training = (
        recipe.data, recipe.teacher, recipe.student, recipe.training,
    )  # fmt: skip
    positive = {
        "temperature": training.temperature,
        "teacher_temperature": training.teacher_temperature,
        "student_dim": student.student_dim,
        "student_max_length": student.student_max_length,
        "max_pairs": data.max_pairs,
        "teacher_max_length": teacher.teacher_max_length,
    }
    shares = {
        "test_fraction": data.test_fraction,
        "validation_fraction": data.validation_fraction,
        "head_dropout": student.head_dropout,
        "student_dropout": student.student_dropout,
    }
    counts = {
        **weights_of(recipe),
        "hard_negatives_per_pair": training.hard_negatives_per_pair,
        "texts_per_pair": training.texts_per_pair,
    }
    return (
        (positive, lambda x: 0 < x < math.inf, "must be above 0"),
        (shares, lambda x: 0 <= x < 1, "must be at least 0 and below 1"),
        (counts, lambda x: 0 <= x < math.inf, "must be a number of at least 0"),
    )


def weights_of(recipe: Recipe) -> dict[str, float]:
    """The key of each term of the objective, and its weight."""
    names = [field.name for field in dataclasses.fields(recipe.training)]
    return {name: getattr(recipe.training, name) for name in names if name.endswith("_weight")}


def check_recipe(recipe: Recipe) -> None:
    """Check what argparse cannot judge.

    Raises:
        InputError: A number outside its range, keys that exclude or need each other, or nothing to
            train on.
    """
    for values, holds, says in _ranges(recipe):
        for name, value in values.items():
            if value is not None and not holds(value):
                raise InputError(f"--{name} {value}: it {says}")
    data, training = recipe.data, recipe.training
    if not any(weights_of(recipe).values()) and not training.terms:
        raise InputError(
            f"every weight of the objective is 0 ({', '.join(weights_of(recipe))}), so there is "
            "nothing to train on; set one above 0"
        )
    for dimension in training.matryoshka_dims:
        if not 0 < dimension < recipe.student.student_dim:
            raise InputError(
                f"--matryoshka_dims {dimension}: it must be between 1 and student_dim - 1 "
                f"({recipe.student.student_dim - 1})"
            )
    if data.test_fraction == 0 or data.test_fraction + data.validation_fraction >= 1:
        raise InputError(
            f"--test_fraction {data.test_fraction} and --validation_fraction "
            f"{data.validation_fraction}: both training and evaluation need some groups; the first "
            "must be above 0 and their sum below 1"
        )
    if training.early_stopping_patience is not None and training.eval_strategy == "no":
        raise InputError(
            f"--early_stopping_patience {training.early_stopping_patience}: it watches the "
            "validation loss, and --eval_strategy no computes none; set --eval_strategy steps or "
            "epoch"
        )
    if training.early_stopping_patience is not None and training.metric_for_best_model is None:
        raise InputError(
            f"--early_stopping_patience {training.early_stopping_patience}: it compares with the "
            "best evaluation, and none is kept; set --load_best_model_at_end true"
        )
    if training.eval_strategy != "no" and not data.validation_fraction:
        raise InputError(
            "--validation_fraction 0: --eval_strategy steps or epoch needs "
            "validation pairs; set --eval_strategy no, or a fraction above 0"
        )
    if recipe.run.hub_dataset_id and not training.push_to_hub:
        raise InputError(
            f"--hub_dataset_id {recipe.run.hub_dataset_id}: nothing is published without "
            "--push_to_hub; add it, or set --hub_dataset_id none"
        )
