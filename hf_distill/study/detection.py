"""How well what the teacher says tells noisy pairs from clean ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hf_distill.evaluation.fidelity import roc_auc
from hf_distill.evaluation.intervals import estimate, undefined
from hf_distill.evaluation.results import Estimate

SAMPLE = 10_000
"""Of more pairs than this, so many are drawn: the interval is narrow then."""


@dataclass(frozen=True)
class DetectorAUC:
    """How well a `detector` finds noisy pairs: the area under its ROC curve, the probability that
    it suspects a noisy pair more than a clean one, with an interval over pairs.
    """

    detector: str
    auc: Estimate


def suspicions(
    score: np.ndarray, rank: np.ndarray, margin: np.ndarray, probability: np.ndarray
) -> dict[str, np.ndarray]:
    """Detector -> how much it suspects each pair, (n,) float64. A pair without a margin, whose
    pool has no other document, is suspected least.

    Args:
        score, rank, margin: (n,), what the teacher says.
        probability: (n,), how probably each pair is mismatched, by the mixture over the margins.
            It falls with the margin, so it cannot detect more than the margin does.
    """
    return {
        "score": -score.astype(np.float64),
        "rank": rank.astype(np.float64),
        "margin": -np.nan_to_num(margin.astype(np.float64), nan=np.inf, posinf=np.inf),
        "mixture": probability.astype(np.float64),
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
