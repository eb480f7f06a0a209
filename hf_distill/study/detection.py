"""How well what the teacher says tells noisy pairs from clean ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hf_distill.evaluation.fidelity import roc_auc
from hf_distill.evaluation.intervals import estimate, undefined
from hf_distill.evaluation.results import Estimate
from hf_distill.selection.mismatch import Detection

SAMPLE = 10_000
"""Of more pairs than this, so many are drawn: the interval is narrow then."""


@dataclass(frozen=True)
class DetectorAUC:
    """How well a `detector` finds noisy pairs: the area under its ROC curve, the probability that
    it suspects a noisy pair more than a clean one, with an interval over pairs.
    """

    detector: str
    auc: Estimate


@dataclass(frozen=True)
class Picked:
    """What the rule `mismatched` picks of pairs of which some are noisy.

    Attributes:
        noisy, clean: How many of either kind it picks.
        of_noisy, of_clean: Of how many.
        detection: What it rests on.
    """

    noisy: int
    of_noisy: int
    clean: int
    of_clean: int
    detection: Detection


def picked(is_noisy: np.ndarray, rank: np.ndarray, detection: Detection) -> Picked:
    """What `mismatched` picks by `rank` (n,), where `is_noisy` (n,) bool says which are noisy."""
    called = detection.probability(rank) >= 0.5
    noisy, clean = called[is_noisy], called[~is_noisy]
    return Picked(int(noisy.sum()), len(noisy), int(clean.sum()), len(clean), detection)


def suspicions(score: np.ndarray, rank: np.ndarray, margin: np.ndarray) -> dict[str, np.ndarray]:
    """Detector -> how much it suspects each pair, (n,) float64. A pair without a margin, whose
    pool has no other document, is suspected least.

    Args:
        score, rank, margin: (n,), what the teacher says.
    """
    return {
        "score": -score.astype(np.float64),
        "rank": rank.astype(np.float64),
        "margin": -np.nan_to_num(margin.astype(np.float64), nan=np.inf, posinf=np.inf),
    }


def detection(
    is_noisy: np.ndarray, suspected: Mapping[str, np.ndarray], seed: int
) -> tuple[DetectorAUC, ...]:
    """How well each detector finds the noisy pairs.

    Args:
        is_noisy: (n,) bool.
        suspected: Detector -> (n,) how much it suspects each pair; NaN where it says nothing.
        seed: Seeds the sample and the bootstrap.
    """
    places = np.arange(len(is_noisy))
    if len(places) > SAMPLE:
        draw = np.random.default_rng(seed)
        places = np.sort(draw.choice(len(is_noisy), SAMPLE, replace=False))

    def of(values: np.ndarray) -> Estimate:
        known = places[~np.isnan(values[places])]
        try:
            return estimate(roc_auc, [is_noisy[known], values[known]], seed)
        except ValueError as error:  # no noisy pair is known, or no clean one
            return undefined(len(known), str(error))

    return tuple(DetectorAUC(name, of(values)) for name, values in suspected.items())
