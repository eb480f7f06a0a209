"""What is found out about a training before any work: its settings are tried, and its checkpoint is
looked at.
"""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from transformers import PrinterCallback, TrainerState
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from hf_distill.compute.device import device_type, give_back_freed_memory
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import Recipe
from hf_distill.recipe.config import DistillationConfig
from hf_distill.training.trainer import DistillationTrainer

LAST, NONE = ("true", "last"), ("false",)
"""Values of `resume_from_checkpoint` beside a path."""

_FAULTS = (
    ArithmeticError, ImportError, RuntimeError, ValueError, TypeError, AttributeError, LookupError,
    AssertionError, OSError,
)  # fmt: skip
"""What torch, transformers and their optional packages raise for settings that do not work here."""

_ALONE: dict[str, Any] = {
    "contrastive_weight": 1.0, "regression_weight": 0.0, "kl_weight": 0.0, "margin_weight": 0.0,
    "alignment_weight": 0.0, "terms": [], "texts_per_pair": 0, "hard_negatives_per_pair": 0,
    "matryoshka_dims": [], "one_source_per_batch": False, "source_shares": [], "source_alpha": 1.0,
    "per_device_train_batch_size": 2, "max_steps": 1, "eval_strategy": IntervalStrategy.NO,
    "eval_on_start": False, "save_strategy": SaveStrategy.NO, "load_best_model_at_end": False,
    "logging_strategy": IntervalStrategy.NO, "report_to": [], "disable_tqdm": True,
    "push_to_hub": False, "resume_from_checkpoint": None,
}  # fmt: skip
"""The settings of a rehearsal that are not the recipe's: everything but how a step is made."""

_SUSPECTS = (
    "deepspeed", "fsdp", "torch_compile", "activation_checkpointing", "fp16", "bf16",
    "dataloader_num_workers", "debug",
)  # fmt: skip
"""What a message names if a step fails: the first of these that is set."""


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
    _rehearse(config, student)
    give_back_freed_memory()


def _try(name: str, value: object, act: Callable[[], object]) -> None:
    """Do `act`; if it fails, the value of the flag `name` is why."""
    try:
        act()
    except InputError:
        raise
    except _FAULTS as error:
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
    small = copy.copy(config)
    for name, value in _ALONE.items():
        setattr(small, name, value)
    count = 2 * small.world_size * max(1, small.n_gpu)
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
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
            return  # they set up the model once in a process
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


def wanted_checkpoint(config: DistillationConfig, own: Path) -> str | None:
    """The checkpoint that a training begins with, if any.

    Args:
        config: `resume_from_checkpoint` is a path, `true` (the last checkpoint of this training, as
            for `Trainer.train`), `false` (begin anew), or none (the last one, if there is one).
        own: The folder of this training's checkpoints.

    Raises:
        InputError: `true`, and this training has no checkpoint.
    """
    named = config.resume_from_checkpoint
    if named and named.lower() not in (*LAST, *NONE):
        return named
    if named and named.lower() in NONE:
        return None
    last = _last_checkpoint(own, IntervalStrategy(config.eval_strategy))
    if named and last is None:
        raise InputError(
            f"--resume_from_checkpoint {named}: this training has no checkpoint in {own}; set it "
            "to none: a run goes on from its own last checkpoint, and begins anew where there is "
            "none"
        )
    return last


def _last_checkpoint(folder: Path, evaluates: IntervalStrategy) -> str | None:
    """The last checkpoint from which the Trainer goes on as if nothing had happened."""
    complete = [  # the Trainer writes its state last
        path.parent
        for path in folder.glob("checkpoint-*/trainer_state.json")
        if path.parent.name.partition("-")[2].isdigit() and _goes_on(path, evaluates)
    ]
    last = max(complete, key=lambda path: int(path.name.partition("-")[2]), default=None)
    return None if last is None else str(last)


def _goes_on(path: Path, evaluates: IntervalStrategy) -> bool:
    """Whether the training can go on from this state of it.

    The Trainer forgets two things. It trains at least one step of an epoch that it resumes inside,
    also behind the last step and where it had stopped early; and it makes no evaluation at the end
    of an epoch whose last step it had saved before. The checkpoint before such a one makes the
    steps between them again, and then the same student.
    """
    state = TrainerState.load_from_json(str(path))
    control = state.stateful_callbacks.get("TrainerControl", {}).get("args", {})
    early = control.get("should_training_stop", False) and state.global_step < state.max_steps
    between = float(state.epoch or 0).is_integer()
    evaluated = any("eval_loss" in r and r["step"] == state.global_step for r in state.log_history)
    if early or (state.global_step >= state.max_steps and not between):
        return False
    return not between or evaluates != IntervalStrategy.EPOCH or evaluated


def check_checkpoint(recipe: Recipe, student: SentenceTransformer) -> None:
    """Raise InputError if `resume_from_checkpoint` names no checkpoint of such a student."""
    named = recipe.training.resume_from_checkpoint
    if not named or named.lower() in NONE:
        return
    folder = Path(str(recipe.training.output_dir))
    if named.lower() in LAST:
        if not any(folder.glob("*/checkpoint-*")):
            raise InputError(
                f"--resume_from_checkpoint {named}: {folder} holds no checkpoint; set it to none: "
                "a run goes on from its own last checkpoint, and begins anew where there is none"
            )
        return
    path = Path(named)
    needed = ("trainer_state.json", "modules.json")
    missing = [name for name in needed if not (path / name).is_file()]
    if missing:
        says = f"it holds no {missing[0]}" if path.is_dir() else "there is no such folder"
        raise InputError(
            f"--resume_from_checkpoint {named}: {says}; name a folder checkpoint-N of a training, "
            "or true for the last one of this run"
        )
    if recipe.student.student_vocabulary == "used":
        return  # the vocabulary is cut when the texts are read
    try:
        there = SentenceTransformer(str(path), device="cpu").state_dict()
    except _FAULTS as error:
        says = " ".join(str(error).split())
        raise InputError(
            f"--resume_from_checkpoint {named}: it cannot be loaded ({says}); name another one"
        ) from error
    here = student.state_dict()
    others = [
        name
        for name in here.keys() | there.keys()
        if name not in here or name not in there or here[name].shape != there[name].shape
    ]
    if others:
        raise InputError(
            f"--resume_from_checkpoint {named}: it holds another student: {len(others)} of "
            f"{len(here)} parameters differ, e.g. {sorted(others)[0]}; build the student "
            "as that one was built, or name another checkpoint"
        )
