"""Several teachers as one: a weighted mean of their scores, each brought to one scale first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hf_distill.errors import InputError
from hf_distill.run.folder import fingerprint
from hf_distill.teachers.base import (
    Scale,
    Teacher,
)

Normalization = Literal["none", "minmax", "quantile"]


def normalise_scores(fitted_on: np.ndarray, scores: np.ndarray, how: Normalization) -> np.ndarray:
    """Scores (n,) of one teacher brought to [0, 1] by what `fitted_on` (m,) shows; NaN in either is
    left out, and stays.

    `minmax`: linear from the least to the greatest score of `fitted_on`, clipped. `quantile`: the
        share of `fitted_on` that is lower,
    ties counted half. `none`: as they are.
    """
    if how == "none":
        return scores
    known = np.sort(fitted_on[~np.isnan(fitted_on)])
    if how == "minmax":
        width = known[-1] - known[0]
        scaled = (
            (scores - known[0]) / width if width > 0 else np.where(np.isnan(scores), np.nan, 0.5)
        )
        return np.asarray(np.clip(scaled, 0.0, 1.0))
    below = np.searchsorted(known, scores, side="left") + np.searchsorted(
        known, scores, side="right"
    )
    return np.where(np.isnan(scores), np.nan, below / (2 * len(known)))


def combine(scores: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Weighted mean (n,) of several teachers' scores; NaN where any of them has none."""
    total = sum(weight * values for weight, values in zip(weights, scores, strict=True))
    return np.asarray(total / sum(weights))


@dataclass(frozen=True)
class EnsembleTeacher:
    """Members and their weights. It is `hf_distill.scoring.scores` that lets each score, restartably, and
    combines the scores.
    """

    members: tuple[Teacher, ...]
    weights: tuple[float, ...]
    normalization: Normalization

    def __post_init__(self) -> None:
        unbounded = [member.name for member in self.members if not member.scale.is_bounded]
        if self.normalization == "none" and unbounded:
            raise InputError(
                f"--ensemble_normalization none adds scores as they are, but those of {', '.join(unbounded)} are unbounded; "
                "use quantile or minmax"
            )

    @property
    def name(self) -> str:
        """The members' names with their weights."""
        return " + ".join(
            f"{weight:g} {member.name}"
            for weight, member in zip(self.weights, self.members, strict=True)
        )

    @property
    def fingerprint(self) -> str:
        """Of members, weights and normalisation."""
        return fingerprint(
            [member.fingerprint for member in self.members], self.weights, self.normalization
        )

    @property
    def precision(self) -> str:
        """Of each member."""
        return ", ".join(member.precision for member in self.members)

    @property
    def scale(self) -> Scale:
        """[0, 1] after a normalisation, else the widest of the members'."""
        measure = f"weighted mean ({self.normalization})"
        if self.normalization != "none":
            return Scale(measure, None, 0.0, 1.0)
        return Scale(
            measure,
            None,
            min(m.scale.low for m in self.members),
            max(m.scale.high for m in self.members),
        )
