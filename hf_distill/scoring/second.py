"""How far apart the teacher and a second model put each training pair.

The second model may be another teacher: what both say is more reliable than what one says. It may
be the student of an earlier run: where it disagrees with the teacher, it has something to learn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hf_distill.data.collection import Collection
from hf_distill.recipe.arguments import Recipe
from hf_distill.run.folder import RunFolder
from hf_distill.run.stage import fingerprint
from hf_distill.scoring.scores import Scores, scores_beside
from hf_distill.teachers.base import EmbeddingTeacher
from hf_distill.teachers.ensemble import normalise_scores


@dataclass(frozen=True)
class Second:
    """A second model's view of n training pairs.

    Attributes:
        key: The fingerprint of what it depends on, beside the teacher's scores.
        disagreement: (n,) float32, see `disagreement`.
    """

    key: str
    disagreement: np.ndarray


def disagreement(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(n,) float32, between 0 and 1: how far apart two models' scores (n,) put each pair.

    Scores are replaced by their quantiles among their model's own, because two models seldom mean
    the same by a score. A pair that one of them has no score for (NaN) has NaN.
    """
    of_first, of_second = (
        normalise_scores(scores.astype(np.float64), scores.astype(np.float64))
        for scores in (first, second)
    )
    result: np.ndarray = np.abs(of_first - of_second).astype(np.float32)
    return result


def second_view(
    collection: Collection,
    scores: Scores,
    model: EmbeddingTeacher,
    recipe: Recipe,
    folder: RunFolder,
) -> Second:
    """Compare the teacher's `scores` of the training pairs with those of `model`, whose embeddings
    are kept in shards, like the teacher's.
    """
    train = collection.rows("train")
    theirs = scores_beside(collection, model, recipe, folder)[train]
    return Second(fingerprint(model.identity), disagreement(scores.of(train), theirs))
