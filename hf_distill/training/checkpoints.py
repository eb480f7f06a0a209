"""The checkpoints of a training: which one it begins with, and whether that one is whole."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState
from sentence_transformers import SentenceTransformer
from transformers import TrainerState
from transformers.trainer_utils import IntervalStrategy

from hf_distill.errors import InputError
from hf_distill.recipe.arguments import Recipe
from hf_distill.recipe.config import DistillationConfig
from hf_distill.run.stage import read_result, write_result

LAST, NONE = ("true", "last"), ("false",)
"""Values of `resume_from_checkpoint` beside a path."""

FAULTS = (
    ArithmeticError, ImportError, RuntimeError, ValueError, TypeError, AttributeError, LookupError,
    AssertionError, OSError,
)  # fmt: skip
"""What torch, transformers and their optional packages raise for settings that do not work here."""

_SEAL = "complete.json"
"""In the folder of a checkpoint: it is whole. It is written last."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Complete:
    """`complete.json`: after which step the checkpoint was written."""

    step: int


def seal(checkpoint: Path, step: int) -> None:
    """Say that a checkpoint is whole, with the SHA-256 of all its files. Every process has written
    its own.
    """
    write_result(checkpoint / _SEAL, Complete(step), [checkpoint])


def _fault(checkpoint: Path) -> str | None:
    """What is wrong with the files of a checkpoint, if anything."""
    if not (checkpoint / _SEAL).is_file():
        return f"{checkpoint} is not whole (it has no {_SEAL})"
    try:
        read_result(checkpoint / _SEAL, Complete)
    except InputError as error:
        return str(error).partition(";")[0]
    return None


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
    last = _last_checkpoint(own, config)
    if named and last is None:
        raise InputError(
            f"--resume_from_checkpoint {named}: this training has no checkpoint in {own}; set it "
            "to none: a run goes on from its own last checkpoint, and begins anew where there is "
            "none"
        )
    return last


def _last_checkpoint(folder: Path, config: DistillationConfig) -> str | None:
    """The last checkpoint from which the Trainer goes on as if nothing had happened. Those after it
    stay, until the training writes them anew.
    """
    if config.save_only_model:
        return None  # without the optimiser's state another student would come out
    steps = {
        int(path.name.partition("-")[2]): path
        for path in folder.glob("checkpoint-*")
        if path.name.partition("-")[2].isdigit()
    }
    for _, path in sorted(steps.items(), reverse=True):
        if fault := _fault(path):
            if PartialState().is_main_process:
                _log.warning("%s. The training goes on from the one before it.", fault)
        elif _goes_on(path, config):
            return str(path)
    return None


def _goes_on(path: Path, config: DistillationConfig) -> bool:
    """Whether the training can go on from this checkpoint.

    The Trainer forgets two things. It trains at least one step of an epoch that it resumes inside,
    also behind the last step and where it had stopped early; and it makes no evaluation at the end
    of an epoch whose last step it had saved before. The checkpoint before such a one makes the
    steps between them again, and then the same student. So does the one before the best, if the
    best one is damaged.
    """
    state = TrainerState.load_from_json(str(path / "trainer_state.json"))
    control = state.stateful_callbacks.get("TrainerControl", {}).get("args", {})
    early = control.get("should_training_stop", False) and state.global_step < state.max_steps
    between = float(state.epoch or 0).is_integer()
    evaluated = any("eval_loss" in r and r["step"] == state.global_step for r in state.log_history)
    if early or (state.global_step >= state.max_steps and not between):
        return False
    if config.load_best_model_at_end and state.best_model_checkpoint:
        best = Path(state.best_model_checkpoint)
        if best.resolve().parent != path.resolve().parent or (best != path and _fault(best)):
            return False
    epochs = IntervalStrategy(config.eval_strategy) == IntervalStrategy.EPOCH
    return not between or not epochs or evaluated


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
    if (path / _SEAL).is_file() and (fault := _fault(path)):
        raise InputError(f"--resume_from_checkpoint {named}: {fault}; name another one")
    if recipe.student.student_vocabulary == "used":
        return  # the vocabulary is cut when the texts are read
    try:
        there = SentenceTransformer(str(path), device="cpu").state_dict()
    except FAULTS as error:
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
