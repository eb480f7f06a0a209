"""The run of BM25 over a task. `hf_distill.compute.bm25` says what counts as a word."""

from __future__ import annotations

from collections.abc import Mapping

from hf_distill.compute.bm25 import BM25, Words
from hf_distill.evaluation.retrieval import DEPTH, Run, make_run


def bm25_run(
    queries: Mapping[str, str],
    documents: Mapping[str, str],
    depth: int = DEPTH,
    words: Words | None = None,
) -> Run:
    """BM25 (`bm25s`, its defaults: Lucene's variant, k1 = 1.5, b = .75) over a corpus; see `Words`.

    A document that shares no word with the query is not retrieved. Ties as in `make_run`.

    Args:
        queries: Id -> text.
        documents: Id -> text.
        depth: Documents per query, at most.
        words: How to split them. Default: as English, by the scripts that they have.
    """
    words = words or Words.of((*queries.values(), *documents.values()), "en")
    index = BM25(list(documents.values()), words)
    document_ids = list(documents)
    run: Run = {}
    for query, text in queries.items():
        scores, best = index.search(text, depth)
        run |= make_run([query], document_ids, scores[None], best[None])
    return run
