"""Distil a slow teacher into a small, releasable bi-encoder with the Hugging Face Trainer."""

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
