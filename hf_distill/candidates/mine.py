"""Mining: a list of candidates for each query, out of a corpus.

A miner gives the places of documents in the corpus, best first; -1 where it has no more. Several
miners take turns in `joined`, so that each of them is heard where a list is short.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hf_distill.compute.bm25 import BM25

GIVEN, TEACHER, WORDS = "given", "teacher", "bm25"
NAMED = (GIVEN, TEACHER, WORDS)
"""Miners with a name: what the data lists, the teacher's nearest documents, and BM25. Any other
name is a bi-encoder.
"""


def by_words(index: BM25, queries: Iterable[str], depth: int) -> np.ndarray:
    """The documents that BM25 finds: (Q, depth) int64, their places in the corpus of `index`, best
    first; -1: it finds no more.
    """
    rows = []
    for query in queries:
        _, places = index.search(query, depth)
        row = np.full(depth, -1, dtype=np.int64)
        row[: len(places)] = places
        rows.append(row)
    return np.stack(rows)


@dataclass(frozen=True)
class Mined:
    """Lists of Q queries, one after another.

    Attributes:
        starts: (Q + 1,) int64: the list of query i is `starts[i]:starts[i + 1]`.
        documents: (m,) int64, numbers of documents.
        drawn: (m,) bool: no miner found it; it was drawn at random.
    """

    starts: np.ndarray
    documents: np.ndarray
    drawn: np.ndarray


def with_best(lists: np.ndarray, relevant: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """What is no candidate of each query: what is relevant, and the `count` best other documents
    of a miner, which may be relevant, too.

    Args:
        lists: (Q, k) int64: the miner's documents, best first; -1: none.
        relevant: Of each query, (p,) int64.
        count: How many.
    """
    return [
        np.concatenate([own, row[(row >= 0) & ~np.isin(row, own)][:count]])
        for row, own in zip(lists, relevant, strict=True)
    ]


def joined(
    lists: Sequence[np.ndarray], positives: Sequence[np.ndarray], depth: int
) -> list[np.ndarray]:
    """One list for each query, of at most `depth` documents: the first of each miner, then the
    second of each, and so on; each document once, and none that is relevant.

    Args:
        lists: (Q, k) int64 of each miner: documents, best first; -1: none.
        positives: Of each query, (p,) int64: documents that are relevant.
        depth: Documents in a list, at most.
    """
    width = max(part.shape[1] for part in lists)
    together = np.full((len(positives), width, len(lists)), -1, dtype=np.int64)
    for place, part in enumerate(lists):
        together[:, : part.shape[1], place] = part
    result = []
    for row, relevant in zip(together.reshape(len(positives), -1), positives, strict=True):
        others = row[(row >= 0) & ~np.isin(row, relevant)]
        first = np.sort(np.unique(others, return_index=True)[1])
        result.append(others[first][:depth])
    return result


def filled(
    lists: Sequence[np.ndarray],
    positives: Sequence[np.ndarray],
    corpus: np.ndarray,
    least: int,
    seed: int,
) -> Mined:
    """Lists with at least `least` documents, as far as the corpus has them: shorter ones are filled
    up with random documents that are not relevant.

    Args:
        lists: Of each query, (n,) int64.
        positives: Of each query, (p,) int64.
        corpus: (N,) int64: what is drawn from.
        least: Documents in a list.
        seed: Of the draws; those of a query do not depend on other queries.
    """
    rows, drawn = [], []
    for number, (row, relevant) in enumerate(zip(lists, positives, strict=True)):
        missing = least - len(row)
        more = np.empty(0, dtype=np.int64)
        if missing > 0:
            draw = np.random.default_rng((seed, number))
            wanted = min(len(corpus), missing + len(row) + len(relevant))
            some = corpus[draw.choice(len(corpus), wanted, replace=False)]
            more = some[~np.isin(some, np.concatenate([row, relevant]))][:missing]
        rows.append(np.concatenate([row, more]))
        drawn.append(np.arange(len(row) + len(more)) >= len(row))
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    empty = np.empty(0, dtype=np.int64)
    return Mined(
        starts,
        np.concatenate([empty, *rows]),
        np.concatenate([empty.astype(bool), *drawn]),
    )
