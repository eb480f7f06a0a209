"""The hybrid objective: a weighted sum of named terms over similarity matrices. Pure functions, no
model inside.

S is the student's (B, N) matrix of cosines, T the teacher's (NaN where unknown), `positives` (B,)
the column of each row's own document, `ignore` (B, N) cells that are no negatives. Every term is a
mean over rows or cells, so that its size does not depend on the batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_distill.training.collator import InBatch

TERMS = ("contrastive", "regression", "distribution", "margin", "alignment")

RegressionLoss = Literal["mse", "mae", "huber"]

HUBER_DELTA = 0.1
"""Where the Huber loss turns from squared to linear, in units of the score."""


@dataclass(frozen=True)
class Weights:
    """The weight of each of `TERMS` (0 leaves it out), and their settings.

    Attributes:
        regression_on: The scores of the pairs, or every known cell of the matrix.
        regression_loss: Squared, absolute or Huber error.
        temperature: Of the contrastive term and, of the student's scores, of the distribution term.
        teacher_temperature: Of the teacher's scores in the distribution term; None: `temperature`.
    """

    contrastive: float = 1.0
    regression: float = 0.1
    regression_on: Literal["diagonal", "matrix"] = "diagonal"
    regression_loss: RegressionLoss = "mse"
    distribution: float = 0.0
    margin: float = 0.0
    alignment: float = 0.0
    temperature: float = 0.1
    teacher_temperature: float | None = None

    def towards(self, end: Mapping[str, float], progress: float) -> Weights:
        """The weights at `progress` (0 to 1) on a straight line from these to those of `end`; terms
        it does not name stay.
        """
        moved = {
            name: (1 - progress) * getattr(self, name) + progress * value
            for name, value in end.items()
        }
        return dataclasses.replace(self, **moved)


def _weighted(errors: Tensor, weight: Tensor | None) -> Tensor:
    """`errors` (B, ...) times the `weight` (B,) of the pairs, if they have any. Means stay over all
    rows: N processes train like one.
    """
    return errors if weight is None else errors * weight.view(-1, *[1] * (errors.ndim - 1))


def contrastive(
    student: Tensor,
    positives: Tensor,
    ignore: Tensor,
    temperature: float,
    weight: Tensor | None = None,
) -> Tensor:
    """InfoNCE (van den Oord et al., 2018) over the rows: -log softmax(S / temperature) at the
    positive, ignored cells left out.
    """
    logits = (student / temperature).masked_fill(ignore, -torch.inf)
    return _weighted(F.cross_entropy(logits, positives, reduction="none"), weight).mean()


def regression(
    student: Tensor,
    teacher: Tensor,
    positives: Tensor,
    on: Literal["diagonal", "matrix"],
    loss: RegressionLoss = "mse",
    weight: Tensor | None = None,
) -> Tensor:
    """Mean error to the teacher's scores: at the positives (the paper, squared), or at every known
    cell of the matrix.

    `huber` is half the squared error below `HUBER_DELTA`, and linear with slope `HUBER_DELTA` above
    (Huber 1964).
    """
    if on == "diagonal":
        rows = torch.arange(len(positives), device=student.device)
        student, teacher = student[rows, positives], teacher[rows, positives]
    known = ~teacher.isnan()
    difference = (student - teacher).masked_fill(~known, 0.0)
    if loss == "mae":
        errors = difference.abs()
    elif loss == "huber":
        errors = F.huber_loss(
            difference, torch.zeros_like(difference), reduction="none", delta=HUBER_DELTA
        )
    else:
        errors = difference.square()
    return _weighted(errors, weight).sum() / known.sum().clamp(min=1)


def margin(
    student: Tensor, teacher: Tensor, positives: Tensor, weight: Tensor | None = None
) -> Tensor:
    """MarginMSE (Hofstaetter et al., 2020, arXiv:2010.02666): mean squared error of each other
    document's margin to the row's own.

    The margin of column j in row i is S[i, positive] - S[i, j]; over known cells, the positives
    left out. A row whose own score is unknown has no margins.
    """
    own = positives[:, None]
    errors = (student.gather(1, own) - student) - (teacher.gather(1, own) - teacher)
    known = ~errors.isnan()
    known.scatter_(1, own, False)
    return _weighted(errors.masked_fill(~known, 0.0).square(), weight).sum() / known.sum().clamp(
        min=1
    )


def distribution(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    teacher_temperature: float | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """KL(teacher || student) between the softmaxes of each row, over known cells; the teacher's at
    its own temperature, if it has one.

    Rows with fewer than two known cells have no distribution and are left out. (In-batch
    distillation after Hinton et al., 2015; for retrieval Hofstaetter et al., 2021.)
    """
    known = ~teacher.isnan()
    rows = known.sum(dim=1) >= 2
    log_q = (student / temperature).masked_fill(~known, -torch.inf)[rows].log_softmax(dim=1)
    log_p = (
        (teacher / (teacher_temperature or temperature))
        .masked_fill(~known, -torch.inf)[rows]
        .log_softmax(dim=1)
    )
    known = known[rows]
    difference = (log_p - log_q).masked_fill(~known, 0.0)
    return _weighted(
        log_p.exp() * difference, None if weight is None else weight[rows]
    ).sum() / rows.sum().clamp(min=1)


def truncate(embeddings: Tensor, dimension: int) -> Tensor:
    """The first `dimension` dimensions of embeddings (M, d), again of unit length: what a
    Matryoshka student is served with.
    """
    return (
        embeddings
        if dimension == embeddings.shape[1]
        else F.normalize(embeddings[:, :dimension], dim=1)
    )


def alignment(student: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean of 1 - cosine between student embeddings and targets, both (M, d).

    `weight` is that of the B pairs whose texts these are: B queries, B documents, then the further
        texts of each pair in turn (hard
    negatives, augmented ones), as many of each.
    """
    if weight is not None:
        further = len(student) // len(weight) - 2
        weight = torch.cat([weight, weight, weight.repeat_interleave(further)])
    return _weighted(1.0 - F.cosine_similarity(student, target, dim=1), weight).mean()


def hybrid(
    student: Tensor,
    batch: InBatch,
    weights: Weights,
    embeddings: Tensor | None = None,
    targets: Tensor | None = None,
    reverse: tuple[Tensor, InBatch] | None = None,
) -> dict[str, Tensor]:
    """The weighted terms of the objective by name; their sum is the loss.

    Args:
        student: (B, N) student cosines.
        batch: The teacher's matrices.
        weights: What counts how much. A term of weight 0 is not computed.
        embeddings: (M, d) student embeddings, for the alignment term.
        targets: (M, d) what they are aligned to.
        reverse: (B, P) student cosines of each document with the queries, and the matrices of
            these. Given, the contrastive term is the mean of both directions: each document, too,
                has to find its query (as in CLIP, Radford et al. 2021, arXiv:2103.00020).

    Raises:
        ValueError: A shape that does not fit, with the shapes; or alignment without embeddings and
            targets.
    """
    if batch.teacher.shape != student.shape or batch.ignore.shape != student.shape:
        raise ValueError(
            f"the student's matrix is {tuple(student.shape)}, the teacher's {tuple(batch.teacher.shape)}, "
            f"ignore {tuple(batch.ignore.shape)}"
        )
    terms: dict[str, Tensor] = {}
    if weights.contrastive:
        term = contrastive(
            student, batch.positives, batch.ignore, weights.temperature, batch.weight
        )
        if reverse is not None:
            matrix, of = reverse
            term = (
                term + contrastive(matrix, of.positives, of.ignore, weights.temperature, of.weight)
            ) / 2
        terms["contrastive"] = weights.contrastive * term
    if weights.regression:
        terms["regression"] = weights.regression * regression(
            student,
            batch.teacher,
            batch.positives,
            weights.regression_on,
            weights.regression_loss,
            batch.weight,
        )
    if weights.distribution:
        terms["distribution"] = weights.distribution * distribution(
            student, batch.teacher, weights.temperature, weights.teacher_temperature, batch.weight
        )
    if weights.margin:
        terms["margin"] = weights.margin * margin(
            student, batch.teacher, batch.positives, batch.weight
        )
    if weights.alignment:
        if embeddings is None or targets is None:
            raise ValueError(
                "the alignment term needs student embeddings and the teacher's, and this teacher gives none"
            )
        terms["alignment"] = weights.alignment * alignment(embeddings, targets, batch.weight)
    return terms
