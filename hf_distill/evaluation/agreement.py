"""Ranking agreement: whether a system finds what the teacher finds, in the same order. Judgements
play no part.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

import numpy as np

from hf_distill.errors import InputError
from hf_distill.evaluation.intervals import estimate, mean
from hf_distill.evaluation.results import Agreement, Estimate, RankingAgreement

PERSISTENCE = 0.9
"""The p of rank-biased overlap: the first ten ranks have 86% of the weight (Webber et al.,
2010).
"""
CUTOFFS = (1, 10, 100)

Ranking = Mapping[str, float]
"""Document id -> score."""


def _ranks(ranking: Ranking, depth: int) -> dict[str, int]:
    best = sorted(ranking.items(), key=lambda item: (-item[1], item[0]))
    return {name: rank for rank, (name, _) in enumerate(islice(best, depth))}


def overlaps(one: Ranking, other: Ranking) -> np.ndarray:
    """How many documents the first d of both rankings share, for d = 1 .. k: (k,) int64, where k is
    the length of the shorter one.

    Equal scores are ranked by document id.
    """
    depth = min(len(one), len(other))
    left, right = _ranks(one, depth), _ranks(other, depth)
    shared_from = [max(rank, right[name]) for name, rank in left.items() if name in right]
    return np.bincount(np.array(shared_from, dtype=np.int64), minlength=depth).cumsum()


def rank_biased_overlap(shared: np.ndarray, p: float = PERSISTENCE) -> float:
    """RBO_ext (Webber, Moffat & Zobel, 2010, the extrapolated form): 1 for equal rankings, 0 for
    disjoint ones; early ranks count most.

    Beyond the depth k of the rankings, their agreement is assumed to stay what it is at k.

    Args:
        shared: (k,) `overlaps` of the two rankings, k >= 1.
        p: The probability that a reader continues to the next rank.
    """
    depth = np.arange(1, len(shared) + 1)
    agreement = shared / depth
    return float(agreement[-1] * p ** len(shared) + (1 - p) / p * (agreement * p**depth).sum())


def gained(gains: np.ndarray, best: np.ndarray) -> np.ndarray:
    """(Q,) nDCG of an order: DCG = the sum over ranks i from 1 of gain / log2(i + 1) (Järvelin &
    Kekäläinen, 2002), divided by that of the best order. A gain is the score that a teacher or a
    ranker gives the query with the text at that rank, or 0 where it is negative.

    Args:
        gains: (Q, k) its scores of what a system finds, in the system's order; 0 for nothing.
        best: (Q, k) those of its own order.
    """
    discount = 1 / np.log2(np.arange(gains.shape[1]) + 2)
    own, most = ((np.maximum(part, 0) * discount).sum(axis=1) for part in (gains, best))
    return np.where(most > 0, own / np.where(most > 0, most, 1), 1.0)


def ranking_agreement(
    reference: Mapping[str, Ranking], runs: Mapping[str, Mapping[str, Ranking]], seed: int
) -> RankingAgreement:
    """overlap@K and rank-biased overlap of each run with `reference`, means over queries.

    Args:
        reference: Query id -> the teacher's ranking.
        runs: System -> query id -> its ranking; the same queries.
        seed: Seeds the bootstrap.

    Returns:
        The agreement of each system. A K beyond the shortest ranking is left out.

    Raises:
        InputError: A run lacks a query of the reference, or a ranking is empty.
    """
    shared = {name: _shared(reference, run, name) for name, run in runs.items()}
    depths = {name: min(map(len, counts)) for name, counts in shared.items()}

    def over_queries(values: list[float]) -> Estimate:
        return estimate(mean, [np.array(values)], seed)

    systems = {
        name: Agreement(
            overlap={
                k: over_queries([counts[k - 1] / k for counts in shared[name]])
                for k in CUTOFFS
                if k <= depth
            },
            rbo=over_queries([rank_biased_overlap(counts) for counts in shared[name]]),
        )
        for name, depth in depths.items()
    }
    return RankingAgreement(PERSISTENCE, min(depths.values()), systems)


def _shared(
    reference: Mapping[str, Ranking], run: Mapping[str, Ranking], name: str
) -> list[np.ndarray]:
    """`overlaps` for each query."""
    missing = sum(1 for query, ranking in reference.items() if not ranking or not run.get(query))
    if missing or not reference:
        raise InputError(
            f"{missing} of {len(reference)} queries have no ranking in the reference or in {name}: "
            "rankings cannot be compared without them"
        )
    return [overlaps(ranking, run[query]) for query, ranking in reference.items()]
