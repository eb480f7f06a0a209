"""What is found out about a training before any work: its settings are tried in one step."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from transformers import PrinterCallback
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hf_distill.compute.device import device_type, give_back_freed_memory
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import Recipe
from hf_distill.recipe.config import DistillationConfig
from hf_distill.run.processes import lost
from hf_distill.training.checkpoints import FAULTS, check_checkpoint
from hf_distill.training.terms import TERMS
from hf_distill.training.trainer import DistillationTrainer

_ALONE: dict[str, Any] = {
    **{f"{name}_weight": float(name == "contrastive") for name in TERMS}, "terms": [],
    "texts_per_pair": 0, "hard_negatives_per_pair": 0,
    "student_space": "own",
    "matryoshka_dims": [], "one_source_per_batch": False, "source_shares": [], "source_alpha": 1.0,
    "per_device_train_batch_size": 2, "max_steps": 1, "eval_strategy": IntervalStrategy.NO,
    "eval_on_start": False, "save_strategy": SaveStrategy.NO, "load_best_model_at_end": False,
    "logging_strategy": IntervalStrategy.NO, "report_to": [], "disable_tqdm": True,
    "push_to_hub": False, "resume_from_checkpoint": None,
}  # fmt: skip
"""The settings of a rehearsal that are not the recipe's: everything but how a step is made."""

_SUSPECTS = (
    "torch_compile", "activation_checkpointing", "fp16", "bf16",
    "dataloader_num_workers", "debug",
)  # fmt: skip
"""What a message names if a step fails: the first of these that is set."""


_LAUNCHED = {
    "ACCELERATE_USE_FSDP": "fsdp",
    "ACCELERATE_USE_DEEPSPEED": "deepspeed",
    "ACCELERATE_USE_MEGATRON_LM": "megatron_lm",
}
"""What `accelerate launch` sets -> the strategy that it means."""


def check_strategy(config: DistillationConfig) -> None:
    """Check, before anything is loaded, that each process trains a whole student.

    Raises:
        InputError: FSDP, DeepSpeed or another strategy that cuts it into parts, or several GPUs in
            one process.
    """
    named = {name: getattr(config, name) for name in ("fsdp", "deepspeed", "parallelism_config")}
    flags = [f"--{name} {value}" for name, value in named.items() if value]
    flags += [
        f"accelerate launch with {strategy}"
        for variable, strategy in _LAUNCHED.items()
        if os.environ.get(variable, "").lower() in ("true", "1")
    ]
    if flags:
        raise InputError(
            f"{flags[0]}: it cuts the model into parts, and a student that was trained so is not "
            "saved here. A student is small, and every process trains a whole one (DDP): leave it "
            "out; for larger batches in the same memory there is --grad_cache true"
        )
    if config.n_gpu > 1:
        raise InputError(
            f"there are {config.n_gpu} GPUs and one process, so the Trainer would use "
            "DataParallel, in which each part of a batch sees its own negatives only. Start a "
            f"process for each GPU (accelerate launch --num_processes {config.n_gpu} train.py "
            "...), or show it one (CUDA_VISIBLE_DEVICES=0)"
        )


def check_training(recipe: Recipe, student: SentenceTransformer) -> None:
    """Find out whether the training can begin, before anything is read or scored. Nothing is
    written.

    Args:
        recipe: The whole recipe, with every precision decided.
        student: An untrained student that is thrown away: one step trains it.

    Raises:
        InputError: A setting that does nothing or fails on this machine (a precision, an optimizer,
            a schedule, a compiler, a package that is not installed), weights that are not finite,
            or no checkpoint to resume from.
    """
    config = recipe.training
    if config.fp16 and device_type() == "cpu":
        raise InputError(
            "--fp16 true: a CPU does not train in float16, and the flag would do nothing; set "
            "--fp16 false, or --bf16 true for bfloat16"
        )
    inner = [module for module in student.modules() if module is not student]
    if config.activation_checkpointing and not any(
        hasattr(module, "gradient_checkpointing_enable") for module in inner
    ):
        raise InputError(
            "--gradient_checkpointing true: a student without a transformer has no layers to "
            "recompute; set it to false"
        )
    for pattern in config.learning_rate_mapping or {}:
        if not any(re.search(pattern, f"model.{name}") for name, _ in student.named_parameters()):
            raise InputError(
                f"--learning_rate_mapping {pattern}: no parameter of the student has such a name; "
                f"they look like model.{next(iter(dict(student.named_parameters())))}"
            )
    broken = [name for name, p in student.named_parameters() if not bool(p.isfinite().all())]
    if broken:
        raise InputError(
            f"--student_backbone {recipe.student.student_backbone}: {len(broken)} parameters of "
            f"the untrained student hold NaN or infinite values, e.g. {broken[0]}; check its "
            "weights"
        )
    check_checkpoint(recipe, student)
    for name in config.report_to or []:
        _try("report_to", name, partial(_start_reporting, name))
    for stage in recipe.stages:
        _rehearse(stage, student)
    give_back_freed_memory()


def _try(name: str, value: object, act: Callable[[], object]) -> None:
    """Do `act`; if it fails, the value of the flag `name` is why."""
    try:
        act()
    except InputError:
        raise
    except FAULTS as error:
        if other := lost():
            raise InputError(other) from error
        says = " ".join(str(error).split()).removesuffix(".")
        if not isinstance(error, (ImportError, ValueError)):
            says = f"{type(error).__name__}: {says}"
        raise InputError(
            f"--{name} {value}: {says}. Install what it needs, or give the flag another value; "
            "this was tried before any work"
        ) from error


def _start_reporting(name: str) -> None:
    for callback in get_reporting_integration_callbacks([name]):  # type: ignore[no-untyped-call]  # untyped
        callback()


def _rehearse(config: DistillationConfig, student: SentenceTransformer) -> None:
    """One step on two pairs, with the recipe's optimizer, schedule, precision and compiler."""
    small = config.copied()
    for name, value in _ALONE.items():
        setattr(small, name, value)
    count = 2 * small.world_size
    rows = Dataset.from_dict(
        {
            "query": [f"query {i}" for i in range(count)],
            "document": [f"document {i}" for i in range(count)],
            "teacher_score": [0.5] * count,
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        small.output_dir = folder
        made: list[DistillationTrainer] = []
        suspect = next((name for name in _SUSPECTS if getattr(config, name)), "use_cpu")
        value = getattr(config, suspect)
        _try(suspect, value, lambda: made.append(DistillationTrainer(student, small, rows)))
        trainer = made[0]
        trainer.remove_callback(PrinterCallback)
        _try("optim", getattr(config.optim, "value", config.optim), trainer.create_optimizer)
        schedule = getattr(config.lr_scheduler_type, "value", config.lr_scheduler_type)
        kwargs = f" --lr_scheduler_kwargs {config.lr_scheduler_kwargs}"
        _try(
            "lr_scheduler_type",
            schedule + (kwargs if config.lr_scheduler_kwargs else ""),
            lambda: trainer.create_scheduler(_planned_steps(config), trainer.optimizer),
        )
        _try(suspect, value, trainer.train)


def _planned_steps(config: DistillationConfig) -> int:
    """Some number of steps: how many there will be is known when the data is read."""
    return config.max_steps if config.max_steps > 0 else 1000
