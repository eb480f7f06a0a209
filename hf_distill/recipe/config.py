"""Every option of objective and training: `DistillationConfig`.

It stands with the other options, and not with the trainer that reads it, so that reading a recipe
needs nothing of the training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sentence_transformers import SentenceTransformerTrainingArguments

from hf_distill.recipe.option import option


@dataclass
class DistillationConfig(SentenceTransformerTrainingArguments):
    """The hybrid objective, a weighted sum of terms, and how it is trained.

    Everything of `SentenceTransformerTrainingArguments` is here, too. A term of weight 0 is left
    out; see `hf_distill.training.terms` for what each computes.
    """

    contrastive_weight: float = option(1.0, "Weight of InfoNCE over the in-batch cosines.")
    regression_weight: float = option(
        0.1, "Weight of the mean squared error to the teacher's scores."
    )
    kl_weight: float = option(
        0.0, "Weight of the KL divergence between teacher's and student's in-batch distributions."
    )
    margin_weight: float = option(
        0.0,
        "Weight of MarginMSE: the squared error of each other document's margin to the pair's own.",
    )
    alignment_weight: float = option(
        0.0, "Weight of 1 - cosine to the teacher's embedding on its principal components."
    )
    terms: list[str] = option(
        [], "Terms of your own with their weights, e.g. my_package.my_module:my_term=0.5."
    )
    temperature: float = option(
        0.1, "Temperature of the contrastive term and of the student's scores in the KL term."
    )
    teacher_temperature: float | None = option(
        None, "Temperature of the teacher's scores in the KL term. Default: temperature."
    )
    regression_on: Literal["diagonal", "matrix"] = option(
        "diagonal",
        "Regress on the scores of the pairs (the paper), or on every known in-batch score.",
    )
    false_negative_margin: float | None = option(
        None,
        "Documents of the batch that the teacher scores above a pair's own less this margin do not "
        "count as negatives in the contrastive term. Default: only equal texts do not.",
    )
    contrastive_symmetric: bool = option(
        False, "Contrast each document with the batch's queries too: the mean of both directions."
    )
    matryoshka_dims: list[int] = option(
        [],
        "Train embeddings that may be cut to these dimensions: the objective is the mean over them "
        "and student_dim, e.g. 64 128.",
    )
    hard_negatives_per_pair: int = option(
        0,
        "Add the teacher's best other documents for each pair's query to the batch, so many a "
        "pair. Each costs as much as another text.",
    )
    texts_per_pair: int = option(
        0,
        "Align so many texts of the pool beside each pair: passages of the run's own texts, half "
        "of them with some words exchanged. They keep what the pairs do not cover.",
    )
    grad_cache: bool = option(
        False,
        "Train batches of thousands of pairs in little memory, at the price of a second forward "
        "pass (GradCache).",
    )
    early_stopping_patience: int | None = option(
        None,
        "Stop after so many evaluations without a better validation loss. Needs eval_strategy and "
        "save_strategy.",
    )
