"""Distil a slow teacher into a small, releasable bi-encoder with the Hugging Face Trainer."""

from hf_distill.arguments import Recipe, read_recipe
from hf_distill.collator import DistillationCollator, InBatch, in_batch_matrices
from hf_distill.errors import InputError
from hf_distill.export import save_student
from hf_distill.objective import Weights, hybrid
from hf_distill.trainer import DistillationTrainer

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
