"""Full-corpus retrieval: exact search, measures through `ir-measures` per query, and the BM25 row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import bm25s
import ir_measures
import numpy as np

MEASURES = tuple(ir_measures.parse_measure(name) for name in ("nDCG@10", "R@1", "R@10", "R@100", "RR@10"))
DEPTH = 100

Run = dict[str, dict[str, float]]
"""query id -> document id -> score, the best `DEPTH` documents."""
Qrels = Mapping[str, Mapping[str, int]]
"""query id -> document id -> relevance grade."""


def make_run(query_ids: Sequence[str], document_ids: Sequence[str], scores: np.ndarray, indices: np.ndarray) -> Run:
    """A run from the result of :func:`search`."""
    return {
        query: {document_ids[j]: float(score) for score, j in zip(row_scores, row, strict=True)}
        for query, row_scores, row in zip(query_ids, scores, indices, strict=True)
    }


def bm25_run(query_ids: Sequence[str], queries: Sequence[str], document_ids: Sequence[str], documents: Sequence[str]) -> Run:
    """BM25 (`bm25s`, its defaults: Lucene's variant, k1 = 1.5, b = .75; no stemming, English stop words) over the corpus."""
    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(documents), stopwords="en", show_progress=False), show_progress=False)
    tokens = bm25s.tokenize(list(queries), stopwords="en", show_progress=False)
    indices, scores = index.retrieve(tokens, k=min(DEPTH, len(documents)), show_progress=False)
    return {
        query: {document_ids[j]: float(score) for score, j in zip(row_scores, row, strict=True) if score > 0}
        for query, row_scores, row in zip(query_ids, scores, indices, strict=True)
    }


def per_query(run: Run, qrels: Qrels) -> dict[str, np.ndarray]:
    """Each of `MEASURES` for every judged query, in the order of `qrels`: name -> (Q,) float64.

    A judged query that the run does not answer counts as 0.
    """
    place = {query: i for i, query in enumerate(qrels)}
    values = {str(measure): np.zeros(len(qrels)) for measure in MEASURES}
    answered = {query: documents for query, documents in run.items() if documents}
    for metric in ir_measures.iter_calc(MEASURES, {q: dict(d) for q, d in qrels.items()}, answered):
        values[str(metric.measure)][place[metric.query_id]] = metric.value
    return values
