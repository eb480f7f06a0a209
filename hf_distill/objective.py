"""The hybrid objective: a weighted sum of named terms over similarity matrices. Pure functions, no model inside.

S is the student's (B, N) matrix of cosines, T the teacher's (NaN where unknown), `positives` (B,) the column of each row's own
document, `ignore` (B, N) cells that are no negatives. Every term is a mean over rows or cells, so that its size does not
depend on the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_distill.collator import InBatch


@dataclass(frozen=True)
class Weights:
    """The weight of each term (0 leaves it out), what the regression is on, and the temperature."""

    contrastive: float = 1.0
    regression: float = 0.1
    regression_on: Literal["diagonal", "matrix"] = "diagonal"
    distribution: float = 0.0
    alignment: float = 0.0
    temperature: float = 0.1


def contrastive(student: Tensor, positives: Tensor, ignore: Tensor, temperature: float) -> Tensor:
    """InfoNCE (van den Oord et al., 2018) over the rows: -log softmax(S / temperature) at the positive, ignored cells left out."""
    logits = (student / temperature).masked_fill(ignore, -torch.inf)
    return F.cross_entropy(logits, positives)


def regression(student: Tensor, teacher: Tensor, positives: Tensor, on: Literal["diagonal", "matrix"]) -> Tensor:
    """Mean squared error to the teacher's scores: at the positives (the paper), or at every known cell of the matrix."""
    if on == "diagonal":
        rows = torch.arange(len(positives), device=student.device)
        student, teacher = student[rows, positives], teacher[rows, positives]
    known = ~teacher.isnan()
    difference = (student - teacher).masked_fill(~known, 0.0)
    return difference.square().sum() / known.sum().clamp(min=1)


def distribution(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) between the softmaxes of each row at `temperature`, over known cells.

    Rows with fewer than two known cells have no distribution and are left out. (In-batch distillation after Hinton et al.,
    2015; for retrieval Hofstaetter et al., 2021.)
    """
    known = ~teacher.isnan()
    rows = known.sum(dim=1) >= 2
    log_q = (student / temperature).masked_fill(~known, -torch.inf)[rows].log_softmax(dim=1)
    log_p = (teacher / temperature).masked_fill(~known, -torch.inf)[rows].log_softmax(dim=1)
    known = known[rows]
    difference = (log_p - log_q).masked_fill(~known, 0.0)
    return (log_p.exp() * difference).sum() / rows.sum().clamp(min=1)


def alignment(student: Tensor, target: Tensor) -> Tensor:
    """Mean of 1 - cosine between student embeddings and targets, both (M, d)."""
    return 1.0 - F.cosine_similarity(student, target, dim=1).mean()


def hybrid(
    student: Tensor,
    batch: InBatch,
    weights: Weights,
    embeddings: Tensor | None = None,
    targets: Tensor | None = None,
) -> dict[str, Tensor]:
    """The weighted terms of the objective by name; their sum is the loss.

    Args:
        student: (B, N) student cosines.
        batch: The teacher's matrices.
        weights: What counts how much. A term of weight 0 is not computed.
        embeddings: (M, d) student embeddings, for the alignment term.
        targets: (M, d) what they are aligned to.

    Raises:
        ValueError: A shape that does not fit, with the shapes; or alignment without embeddings and targets.
    """
    if batch.teacher.shape != student.shape or batch.ignore.shape != student.shape:
        raise ValueError(
            f"the student's matrix is {tuple(student.shape)}, the teacher's {tuple(batch.teacher.shape)}, "
            f"ignore {tuple(batch.ignore.shape)}"
        )
    terms: dict[str, Tensor] = {}
    if weights.contrastive:
        terms["contrastive"] = weights.contrastive * contrastive(student, batch.positives, batch.ignore, weights.temperature)
    if weights.regression:
        terms["regression"] = weights.regression * regression(student, batch.teacher, batch.positives, weights.regression_on)
    if weights.distribution:
        terms["distribution"] = weights.distribution * distribution(student, batch.teacher, weights.temperature)
    if weights.alignment:
        if embeddings is None or targets is None:
            raise ValueError("the alignment term needs student embeddings and the teacher's, and this teacher gives none")
        terms["alignment"] = weights.alignment * alignment(embeddings, targets)
    return terms
