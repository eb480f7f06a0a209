"""Every option of objective and training: `DistillationConfig`.

It is here with the other options, and not with the trainer that reads it, so that reading a recipe
imports nothing of the training.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

from sentence_transformers import SentenceTransformerTrainingArguments

from hf_distill.recipe.option import option


@dataclass
class DistillationConfig(SentenceTransformerTrainingArguments):
    """The hybrid objective, a weighted sum of terms, and how it is trained.

    It also has every field of `SentenceTransformerTrainingArguments`. A term of weight 0 is not
    computed. `hf_distill.training.terms` says what each term computes.
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
        "Weight of MarginMSE: the squared error of the margin between a pair's own document and "
        "each other one.",
    )
    list_kl_weight: float = option(
        0.0,
        "Weight of the KL divergence between ranker's and student's distributions over the list of "
        "each query: its own document and its hard negatives. See candidates.",
    )
    list_margin_weight: float = option(
        0.0,
        "Weight of MarginMSE over the list of each query: the squared error of the margin between "
        "its own document and each hard negative, to the ranker's.",
    )
    alignment_weight: float = option(
        0.0,
        "Weight of 1 - cosine between the student's embedding and the teacher's, projected on its "
        "principal components (in the teacher's own space: as it is).",
    )
    student_space: Literal["own", "teacher"] = option(
        "own",
        "teacher: a query encoder. The student embeds into the teacher's own space, its queries "
        "are compared with the teacher's embeddings of the documents, in training and in every "
        "figure, and student_dim is the teacher's. own: the student embeds the documents, too.",
    )
    spread_out_weight: float = option(
        0.0,
        "Weight of a regularisation: queries and documents that do not belong together are like "
        "random directions. Meant for int8 and binary indexes.",
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
    ranker_temperature: float = option(
        1.0,
        "How far apart two scores of the ranker are that the student should hold one temperature "
        "apart. 1 suits the logits of a cross-encoder, and the student's temperature suits "
        "cosines.",
    )
    regression_on: Literal["diagonal", "matrix"] = option(
        "diagonal",
        "Regress on the scores of the pairs (the paper), or on every known in-batch score.",
    )
    false_negative_margin: float | None = option(
        None,
        "A document of the batch is not a negative in the contrastive term if the teacher scores "
        "it above the pair's own document minus this margin. Default: only equal texts are "
        "excluded.",
    )
    positive_cut: float | None = option(
        0.95,
        "A candidate of a query's list is no negative in the contrastive term if the ranker scores "
        "it above this part of the score of the pair's own document. none: all are negatives.",
    )
    contrastive_symmetric: bool = option(
        False,
        "Also contrast each document with the queries of the batch, and take the mean of both "
        "directions.",
    )
    matryoshka_dims: list[int] = option(
        [],
        "Train embeddings that can be cut to these dimensions, e.g. 64 128. The objective is the "
        "mean over them and student_dim.",
    )
    hard_negatives_per_pair: int = option(
        0,
        "Add this many hard negatives for each pair to the batch: some of its query's candidates, "
        "if they are mined; else documents that the data lists beside its query, then the other "
        "documents that the teacher ranks best. Each takes the time of one more text.",
    )
    mine_again: bool = option(
        False,
        "In a further stage of the training: the student so far mines the lists of this stage, in "
        "place of the bi-encoders that mined them before, and what is new in them is scored.",
    )
    texts_per_pair: int = option(
        0,
        "For each pair (or text, where there are no pairs), also align this many texts of the "
        "pool: passages of the run's own texts, half of them with some words exchanged. The "
        "student then forgets less of what the pairs do not cover.",
    )
    source_alpha: float = option(
        1.0,
        "How often pairs of each source are drawn: in proportion to its number of pairs to the "
        "power of this. 1: as they are; 0: every source as often.",
    )
    source_shares: list[str] = option(
        [], "Shares of the sources instead, NAME=SHARE each, e.g. faq=0.7 docs=0.3."
    )
    one_source_per_batch: bool = option(
        False, "Take all pairs of a batch from one source, so that negatives are of one kind."
    )
    grad_cache: bool = option(
        False,
        "Train batches of thousands of pairs in little memory; this takes a second forward pass "
        "(GradCache).",
    )
    early_stopping_patience: int | None = option(
        None,
        "Stop after this many evaluations without a better validation loss. Needs eval_strategy, "
        "save_strategy and load_best_model_at_end.",
    )

    @property
    def precision(self) -> Literal["bf16", "fp16", "fp32"]:
        """What `bf16` and `fp16` say."""
        return "bf16" if self.bf16 else "fp16" if self.fp16 else "fp32"

    def copied(self) -> DistillationConfig:
        """A copy that trains in `precision`. The Trainer would take the precision that `accelerate`
        was launched with, also where both flags are false.
        """
        copied = copy.copy(self)
        copied.mixed_precision = "no" if self.precision == "fp32" else self.precision
        return copied
