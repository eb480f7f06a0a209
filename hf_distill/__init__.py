"""Distil a slow teacher into a small, releasable bi-encoder with the Hugging Face Trainer."""

from hf_distill.errors import InputError
from hf_distill.recipe.arguments import (
    Recipe,
    read_recipe,
)
from hf_distill.student.save import save_student
from hf_distill.training.collator import (
    DistillationCollator,
    InBatch,
    in_batch_matrices,
)
from hf_distill.training.terms import (
    Weights,
    hybrid,
)
from hf_distill.training.trainer import DistillationTrainer

__all__ = [
    "DistillationCollator",
    "DistillationTrainer",
    "InBatch",
    "InputError",
    "Recipe",
    "Weights",
    "hybrid",
    "in_batch_matrices",
    "read_recipe",
    "save_student",
]
