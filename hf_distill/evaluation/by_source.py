"""Figures per source, where the pairs come from several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hf_distill.data.collection import Collection
from hf_distill.evaluation.fidelity import mae, pearson, why_unordered
from hf_distill.evaluation.intervals import Statistic, estimate, mean, undefined
from hf_distill.evaluation.results import Estimate, SourceResults
from hf_distill.evaluation.tasks import HeldOutTask

MOST = 20
"""Sources with a row of their own, if there are more."""
MEASURES = ("nDCG@10", "R@10")
NO_SOURCE = "(no source)"


@dataclass(frozen=True)
class Scored:
    """Scores of the held-out pairs that the teacher scored.

    Attributes:
        rows: (n,) bool: which of the held-out pairs these are.
        teacher, student: (m,) float64.
    """

    rows: np.ndarray
    teacher: np.ndarray
    student: np.ndarray


def by_source(
    collection: Collection,
    task: HeldOutTask,
    values: Mapping[str, Mapping[str, np.ndarray]],
    scores: Scored,
    seed: int,
) -> dict[str, SourceResults]:
    """The figures of each source, the one with most held-out queries first. With more than `MOST`,
    the smallest are summed as `others (N sources)`.

    Args:
        collection: The pairs.
        task: Its held-out pairs.
        values: System -> measure -> (Q,) values, in the order of the task's queries.
        scores: Of the held-out pairs.
        seed: Seeds the bootstrap.

    Returns:
        Source -> its figures; nothing if there is one source. A query with pairs of two sources
        counts for both.
    """
    everywhere = {source or NO_SOURCE for source in collection.every_pair().column("source")}
    if len(everywhere) < 2:
        return {}
    pairs = collection.pairs("test")
    sources = np.array([source or NO_SOURCE for source in pairs.column("source")])

    def over(statistic: Statistic, samples: list[np.ndarray], reason: str | None) -> Estimate:
        return undefined(len(samples[0]), reason) if reason else estimate(statistic, samples, seed)

    def figures(names: list[str]) -> SourceResults:
        rows = np.isin(sources, names)
        queries = np.unique(task.pair_queries[rows])
        both = [side[rows[scores.rows]] for side in (scores.teacher, scores.student)]
        without = None if len(queries) else "none of its queries is held out"
        unscored = None if len(both[0]) else "none of its held-out pairs has a score"
        return SourceResults(
            num_queries=len(queries),
            num_pairs=len(both[0]),
            systems={
                name: {m: over(mean, [measures[m][queries]], without) for m in MEASURES}
                for name, measures in values.items()
            },
            pearson=over(pearson, both, unscored or why_unordered(*both)),
            mae=over(mae, both, unscored),
        )

    sizes = {
        name: len(np.unique(task.pair_queries[sources == name])) for name in sorted(everywhere)
    }
    order = sorted(sizes, key=lambda name: -sizes[name])
    results = {name: figures([name]) for name in order[:MOST]}
    if rest := order[MOST:]:
        results[f"others ({len(rest)} sources)"] = figures(rest)
    return results
