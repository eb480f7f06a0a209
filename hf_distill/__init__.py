"""Distil a slow teacher into a small, releasable bi-encoder with the Hugging Face Trainer."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_distill.data.conversations import conversation_query
    from hf_distill.errors import InputError
    from hf_distill.finished_run import finished
    from hf_distill.pipeline import Run, train
    from hf_distill.recipe.config import DistillationConfig
    from hf_distill.recipe.read import read_recipe
    from hf_distill.student.save import save_student
    from hf_distill.training.collator import DistillationCollator
    from hf_distill.training.trainer import DistillationTrainer

__all__ = [
    "DistillationCollator",
    "DistillationConfig",
    "DistillationTrainer",
    "InputError",
    "Run",
    "conversation_query",
    "finished",
    "read_recipe",
    "save_student",
    "train",
]

_MODULES = {
    "DistillationCollator": "training.collator",
    "DistillationConfig": "recipe.config",
    "DistillationTrainer": "training.trainer",
    "InputError": "errors",
    "Run": "pipeline",
    "conversation_query": "data.conversations",
    "finished": "finished_run",
    "read_recipe": "recipe.read",
    "save_student": "student.save",
    "train": "pipeline",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used: torch and transformers take seconds,
    which a search of a finished run does without.
    """
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
