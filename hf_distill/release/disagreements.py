"""Pairs on which the teacher and the judgements disagree most, with their texts: for the card."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hf_distill.data.collection import Pairs
from hf_distill.scoring.ranking import Ranking
from hf_distill.selection.audit import shorten

SHOWN = 5


@dataclass(frozen=True)
class Disagreement:
    """A training pair. Its texts are cut to 160 characters.

    Attributes:
        pair_id: As in the data set.
        query, document: Its texts.
        score: The teacher's, or if `other` comes from a list the ranker's.
        other: The document that is scored highest for this query and that nobody judged relevant to
            it; None if the pair is shown for its own score.
        other_score: Its score.
    """

    pair_id: str
    query: str
    document: str
    score: float
    other: str | None = None
    other_score: float | None = None


def _pairs(pairs: Pairs, places: np.ndarray) -> list[tuple[str, str, str]]:
    """Id, query and document of the pairs at `places` (m,)."""
    names = ("pair_id", "query", "document")
    return [
        (pair_id, shorten(query), shorten(document))
        for batch in pairs.take(places).batches(*names)
        for pair_id, query, document in zip(*(batch[name] for name in names), strict=True)
    ]


def scored_lowest(pairs: Pairs, scores: np.ndarray) -> list[Disagreement]:
    """The `SHOWN` pairs, judged relevant, that the teacher scores lowest; of equal ones the first.

    Args:
        pairs: The training pairs.
        scores: (n,) float32, their scores; NaN: none.
    """
    places = np.argsort(scores, kind="stable")[: min(SHOWN, int((~np.isnan(scores)).sum()))]
    return [
        Disagreement(*texts, score=float(scores[place]))
        for place, texts in zip(places, _pairs(pairs, places), strict=True)
    ]


def others_above(pairs: Pairs, ranking: Ranking) -> list[Disagreement]:
    """The `SHOWN` pairs whose query has a document that is scored furthest above their own, though
    nobody judged it relevant; no document is shown twice. Empty if there is none above.

    Args:
        pairs: The training pairs, as `ranking` has them.
        ranking: Their margins, and the best other documents.
    """
    below = ranking.margin < 0  # NaN, where there is no other document, is not
    order = np.flatnonzero(below)[np.argsort(ranking.margin[below], kind="stable")]
    order = order[ranking.negatives[order, 0] >= 0]
    _, first = np.unique(ranking.negatives[order, 0], return_index=True)
    places = order[np.sort(first)[:SHOWN]]
    others = pairs.collection.document_texts(ranking.negatives[places, 0])
    scores = ranking.negative_scores[places, 0]
    return [
        Disagreement(
            *texts,
            score=float(score + margin),
            other=shorten(other),
            other_score=float(score),
        )
        for texts, other, score, margin in zip(
            _pairs(pairs, places), others, scores, ranking.margin[places], strict=True
        )
    ]
