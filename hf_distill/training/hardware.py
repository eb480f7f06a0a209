"""What a recipe leaves to the machine: precision, and processes that tokenise beside a GPU."""

from __future__ import annotations

import dataclasses
import os
from typing import Literal, cast

from transformers.trainer_pt_utils import AcceleratorConfig

from hf_distill.compute.device import Precision, device_type, fast_precision, loader_workers
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import Recipe
from hf_distill.run.processes import from_main

_DTYPES: dict[Precision, Literal["bfloat16", "float16", "float32"]] = {
    "bf16": "bfloat16", "fp16": "float16", "fp32": "float32",
}  # fmt: skip


def with_precision(recipe: Recipe) -> Recipe:
    """`recipe` with every precision decided. The main process decides those that the recipe leaves
    open, by what the hardware supports, and all processes use its decision.

    The student trains in bfloat16 where that is fast, and in float32 elsewhere: float16 needs a
    loss scale that suits the weights of the objective. A precision that `accelerate` was launched
    with takes precedence over the hardware's, and one that the recipe names over both.

    Raises:
        InputError: `accelerate` was launched with fp8.
    """
    fast, launched = from_main(
        (fast_precision(device_type()), os.environ.get("ACCELERATE_MIXED_PRECISION", "no"))
    )
    teacher, given = recipe.teacher, recipe.given
    if teacher.teacher_dtype == "auto":
        teacher = dataclasses.replace(teacher, teacher_dtype=_DTYPES[fast])
    if not given & {"bf16", "fp16"}:
        if launched == "fp8":
            raise InputError(
                "accelerate was launched with mixed_precision fp8, in which nothing trains here; "
                "set it to bf16, fp16 or no"
            )
        mixed = launched if launched in ("bf16", "fp16") else fast
        stages = [
            dataclasses.replace(stage, bf16=mixed == "bf16", fp16=mixed == launched == "fp16")
            for stage in recipe.stages
        ]
        recipe = dataclasses.replace(recipe, training=stages[0], further=tuple(stages[1:]))
    return dataclasses.replace(recipe, teacher=teacher, given=given | {"bf16", "fp16"})


def with_workers(recipe: Recipe, device: str) -> Recipe:
    """`recipe` with processes that tokenise beside a training on `device`, and copies to it that
    nobody waits for, unless it says otherwise. A CPU has nothing to gain from either.
    """
    workers = loader_workers(device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    for training in recipe.stages if workers else ():
        if "accelerator_config" not in recipe.given and training.dataloader_pin_memory:
            cast(AcceleratorConfig, training.accelerator_config).non_blocking = True
        if "dataloader_num_workers" not in recipe.given:
            training.dataloader_num_workers = workers
            training.dataloader_persistent_workers = True
    return recipe


def on_this_machine(recipe: Recipe) -> Recipe:
    """`recipe` with everything decided that it leaves to the machine.

    Raises:
        InputError: As `with_precision`.
    """
    return with_workers(with_precision(recipe), device_type())
