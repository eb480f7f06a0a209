"""The terms of the objective. Each is a pure function of a batch and the config.

The objective is their weighted sum. A field `<name>_weight` of `DistillationConfig` stands for the
function `<name>` of this module. `terms` adds functions of any other module. Every term is a mean
over rows, cells or texts, which does not grow with the batch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hf_distill.errors import InputError
from hf_distill.recipe.config import DistillationConfig
from hf_distill.recipe.kinds import PLUGIN, load_object
from hf_distill.training.in_batch import InBatch, Matrices

Term = Callable[[InBatch, DistillationConfig], Tensor]
"""A function of what `InBatch` holds, and of the config, that returns a scalar with a gradient."""

_SUFFIX = "_weight"

TERMS = tuple(
    field.name.removesuffix(_SUFFIX)
    for field in dataclasses.fields(DistillationConfig)
    if field.name.endswith(_SUFFIX)
)
"""The terms of this module."""


def _weighted(errors: Tensor, weight: Tensor | None) -> Tensor:
    """`errors` (B, ...) times the `weight` (B,) of the pairs, if they have any. Means stay over all
    rows, so that N processes train like one.
    """
    return errors if weight is None else errors * weight.view(-1, *[1] * (errors.ndim - 1))


def _divergence(student: Tensor, teacher: Tensor, weight: Tensor | None) -> Tensor:
    """The mean of KL(teacher || student) between the softmaxes of each row of two matrices (B, n),
    over cells that the teacher knows (not NaN). Rows with fewer than two of these are left out.
    """
    known = ~teacher.isnan()
    rows = known.sum(dim=1, keepdim=True) >= 2
    counts = known & rows

    def log_shares(scores: Tensor) -> Tensor:
        # Rows that are left out stay, without a share: to remove them, a GPU would have to wait.
        return scores.masked_fill(~counts, -torch.inf).masked_fill(~rows, 0.0).log_softmax(dim=1)

    log_p, log_q = log_shares(teacher), log_shares(student)
    divergence = log_p.exp() * (log_p - log_q).masked_fill(~counts, 0.0)
    return _weighted(divergence, weight).sum() / rows.sum().clamp(min=1)


def contrastive(batch: InBatch, config: DistillationConfig) -> Tensor:
    """InfoNCE (van den Oord et al. 2018): -log softmax(S / temperature) at the positive, without
    the ignored cells, averaged over the rows.

    With `contrastive_symmetric` it is the mean of both directions: each document also has to find
    its query (as in CLIP, Radford et al. 2021, arXiv:2103.00020).
    """

    def info_nce(of: Matrices) -> Tensor:
        logits = (of.student / config.temperature).masked_fill(of.ignore, -torch.inf)
        losses = F.cross_entropy(logits, of.positives, reduction="none")
        return _weighted(losses, of.weight).mean()

    if batch.reverse is None:
        return info_nce(batch)
    return (info_nce(batch) + info_nce(batch.reverse)) / 2


def regression(batch: InBatch, config: DistillationConfig) -> Tensor:
    """Mean squared error to the teacher's scores: at the positives (the paper), or with
    `regression_on: matrix` at every known cell.
    """
    student, teacher = batch.student, batch.teacher
    if config.regression_on == "diagonal":
        own = batch.positives[:, None]
        student, teacher = student.gather(1, own), teacher.gather(1, own)
    known = ~teacher.isnan()
    errors = (student - teacher).masked_fill(~known, 0.0).square()
    return _weighted(errors, batch.weight).sum() / known.sum().clamp(min=1)


def margin(batch: InBatch, config: DistillationConfig) -> Tensor:
    """MarginMSE (Hofstaetter et al. 2020, arXiv:2010.02666): mean squared error of each other
    document's margin to the row's own.

    The margin of column j in row i is S[i, positive] - S[i, j], over known cells. A row whose own
    score is unknown has no margins.
    """
    own = batch.positives[:, None]
    of_student = batch.student.gather(1, own) - batch.student
    errors = of_student - (batch.teacher.gather(1, own) - batch.teacher)
    known = (~errors.isnan()).scatter(1, own, False)
    squared = errors.masked_fill(~known, 0.0).square()
    return _weighted(squared, batch.weight).sum() / known.sum().clamp(min=1)


def kl(batch: InBatch, config: DistillationConfig) -> Tensor:
    """KL(teacher || student) between the softmaxes of each row, over known cells. The teacher has
    its own temperature, if one is set.

    A row with fewer than two known cells has no distribution and is left out. (In-batch
    distillation after Hinton et al. 2015; for retrieval Hofstaetter et al. 2021.)
    """
    of_teacher = batch.teacher / (config.teacher_temperature or config.temperature)
    return _divergence(batch.student / config.temperature, of_teacher, batch.weight)


def _of_list(batch: InBatch, name: str) -> tuple[Tensor, Tensor]:
    """The student's and the ranker's scores (B, 1 + k) of each row's list."""
    if batch.listed is None or batch.ranker is None:
        raise InputError(
            f"--{name}_weight: the training rows have no hard negatives, so a query has no list; "
            "set --hard_negatives_per_pair above 0, or the weight to 0"
        )
    return batch.student.gather(1, batch.listed), batch.ranker


def list_kl(batch: InBatch, config: DistillationConfig) -> Tensor:
    """KL(ranker || student) between the softmaxes over each row's list: its own document and its
    hard negatives, those with a known score.

    The student's scores are divided by `temperature`, and the ranker's by `ranker_temperature`. A
    row with fewer than two known scores is left out. (Listwise distillation of a cross-encoder, as
    in RocketQAv2, Ren et al. 2021, arXiv:2110.07367.)
    """
    student, ranker = _of_list(batch, "list_kl")
    return _divergence(
        student / config.temperature, ranker / config.ranker_temperature, batch.weight
    )


def list_margin(batch: InBatch, config: DistillationConfig) -> Tensor:
    """MarginMSE over each row's list (Hofstaetter et al. 2020, arXiv:2010.02666): mean squared
    error of the margins between its own document and its hard negatives.

    A margin of one `ranker_temperature` is one of `temperature` for the student: with that, this
    term and `list_kl` have the same optimum. It is a mean over the known margins of each row, 0
    where there are none, and then over the rows, so that N processes train like one.
    """
    student, ranker = _of_list(batch, "list_margin")
    target = ranker * (config.temperature / config.ranker_temperature)
    errors = (student[:, :1] - student[:, 1:]) - (target[:, :1] - target[:, 1:])
    known = ~errors.isnan()
    squared = errors.masked_fill(~known, 0.0).square()
    return _weighted(squared.sum(dim=1) / known.sum(dim=1).clamp(min=1), batch.weight).mean()


def alignment(batch: InBatch, config: DistillationConfig) -> Tensor:
    """Mean of 1 - cosine between the student's embedding of each text and its target.

    Raises:
        InputError: There are no targets, or they have other dimensions than the student.
    """
    if batch.targets is None:
        raise InputError(
            f"--alignment_weight {config.alignment_weight}: the training rows hold no teacher "
            "embeddings to align with; set it to 0, or name a teacher that embeds texts"
        )
    if batch.targets.shape != batch.texts.shape:
        raise InputError(
            f"--alignment_weight {config.alignment_weight}: the student's embeddings are "
            f"{tuple(batch.texts.shape)} and their targets {tuple(batch.targets.shape)}; pass as "
            "many `components` as the student has dimensions"
        )
    distances = 1.0 - F.cosine_similarity(batch.texts, batch.targets, dim=1)
    return _weighted(distances, batch.text_weight).mean()


def spread_out(batch: InBatch, config: DistillationConfig) -> Tensor:
    """Global orthogonal regularisation (Zhang et al. 2017, arXiv:1708.06320): a query and a
    document that do not belong together have a cosine like two random directions of d dimensions,
    whose mean is 0 and whose mean square is 1/d.

    For each row it is mean² + max(0, mean of squares - 1/d) over its negatives. A row without
    negatives is 0. Each row has a mean of its own, and not the batch, so that N processes train
    like one.
    """
    negatives = ~batch.ignore.scatter(1, batch.positives[:, None], True)
    cosines = batch.student.masked_fill(~negatives, 0.0)
    count = negatives.sum(dim=1).clamp(min=1)
    mean, square = cosines.sum(dim=1) / count, cosines.square().sum(dim=1) / count
    excess = (square - 1 / batch.texts.shape[1]).clamp(min=0.0)
    return _weighted(mean.square() + excess, batch.weight).mean()


def _weight_of(text: str, flag: str) -> float:
    """A weight, read and checked."""
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise InputError(f"{flag}: the weight {text!r} is not a number of at least 0")
    return weight


def parse_terms(config: DistillationConfig) -> dict[str, tuple[float, Term]]:
    """Weight and function of each term that has a weight, by name.

    Raises:
        InputError: A weight that is not a number of at least 0, a term of your own that cannot be
            read or loaded, two terms of the same name, or no term at all.
    """
    terms: dict[str, tuple[float, Term]] = {}
    for name in TERMS:
        value = getattr(config, name + _SUFFIX)
        terms[name] = (_weight_of(str(value), f"--{name}{_SUFFIX}"), globals()[name])
    for text in config.terms:
        where, _, weight = text.rpartition("=")
        if not PLUGIN.fullmatch(where):
            raise InputError(
                f"--terms {text}: it must read package.module:name=WEIGHT, e.g. "
                "my_package.my_module:my_term=0.5"
            )
        name = where.partition(":")[2]
        if name in terms:
            raise InputError(f"--terms {text}: there is already a term {name}; rename the function")
        function = load_object(where, "terms")
        if not callable(function):
            raise InputError(f"--terms {text}: it is a {type(function).__name__}, not a function")
        terms[name] = (_weight_of(weight, f"--terms {text}"), function)
    used = {name: term for name, term in terms.items() if term[0]}
    if not used:
        raise InputError(
            f"every weight of the objective is 0 ({', '.join(name + _SUFFIX for name in terms)}), "
            "so there is nothing to train on; set one above 0"
        )
    return used


def weighted_terms(
    batches: Sequence[InBatch],
    terms: Mapping[str, tuple[float, Term]],
    config: DistillationConfig,
) -> dict[str, Tensor]:
    """Each term times its weight, by name; their sum is the loss.

    Args:
        batches: One for each dimension that the embeddings are cut to. The objective is the mean
            over them (Matryoshka, Kusupati et al. 2022, arXiv:2205.13147).
        terms: As `parse_terms` returns them.
        config: Passed on to the terms.

    Raises:
        ValueError: A term did not return a scalar.
    """
    weighted = {}
    for name, (weight, term) in terms.items():
        values = [term(batch, config) for batch in batches]
        if values[0].ndim:
            raise ValueError(
                f"the term {name} returned a tensor of shape {tuple(values[0].shape)}; a term is "
                "a scalar, e.g. the mean over the rows"
            )
        weighted[name] = weight * torch.stack(values).mean()
    return weighted
