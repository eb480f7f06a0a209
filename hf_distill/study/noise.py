"""Noise in training pairs, injected on purpose: some pairs get a document that does not answer
their query. Pure functions of arrays.

`random` deals the documents of the chosen pairs out among them, so that each document stays as
often as it was. `near` takes a document that the teacher ranks near the right one. Shuffled
passages are the noise of NPC (arXiv:2311.03798).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self, cast, get_args

import numpy as np

from hf_distill.errors import InputError
from hf_distill.scoring.ranking import Ranking

NoiseKind = Literal["random", "near"]
NEAREST, FARTHEST = 2, 20
"""`near` takes documents from the first of these ranks to the last. Rank 1 may well be right."""
_ROUNDS = 100
"""So many times documents that answer their new query are exchanged for others."""


@dataclass(frozen=True)
class Noise:
    """What is done to the pairs: its `kind`, and the `share` of the pairs that get it."""

    kind: NoiseKind
    share: float

    def __str__(self) -> str:
        return f"{self.kind}={self.share:g}"


def parse_noise(texts: Sequence[str]) -> list[Noise]:
    """Read texts such as `random=0.5`.

    Raises:
        InputError: An unknown kind, a share that is not in [0, 1), or one noise twice.
    """
    noises: list[Noise] = []
    for text in texts:
        kind, _, value = text.partition("=")
        if kind not in get_args(NoiseKind):
            raise InputError(
                f"--noise {text!r}: {kind!r} is unknown; write random=SHARE or near=SHARE, e.g. "
                "--noise random=0.5"
            )
        try:
            share = float(value)
        except ValueError:
            share = math.nan
        if not 0 <= share < 1:
            raise InputError(
                f"--noise {text!r}: the share must be a number from 0 to below 1, e.g. "
                f"--noise {kind}=0.5"
            )
        noise = Noise(cast(NoiseKind, kind), share)
        if noise in noises:
            raise InputError(f"--noise {noise} is given twice; leave one out")
        noises.append(noise)
    return noises


@dataclass(frozen=True)
class Answers:
    """Which documents are judged to answer which queries.

    Attributes:
        query_of: (queries,) int64: equal for queries that have the same text, by number.
        document_of: (documents,) int64: the same of documents.
        judged: (m,) int64, ascending: a number for each judged pair.
    """

    query_of: np.ndarray
    document_of: np.ndarray
    judged: np.ndarray

    @classmethod
    def of(
        cls,
        query_keys: np.ndarray,
        document_keys: np.ndarray,
        queries: np.ndarray,
        documents: np.ndarray,
    ) -> Self:
        """Of judged pairs.

        Args:
            query_keys: (queries,) equal for queries that count as the same, by number.
            document_keys: (documents,) the same of documents.
            queries, documents: (m,) int64, the numbers of each judged pair's texts.
        """
        query_of = np.unique(query_keys, return_inverse=True)[1].astype(np.int64)
        document_of = np.unique(document_keys, return_inverse=True)[1].astype(np.int64)
        own = cls(query_of, document_of, np.empty(0, dtype=np.int64))
        return cls(query_of, document_of, np.unique(own._numbers(queries, documents)))

    def _numbers(self, queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
        numbers: np.ndarray = (
            self.query_of[queries] * (self.document_of.max(initial=0) + 1)
            + self.document_of[documents]
        )
        return numbers

    def has(self, queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
        """Whether each document answers its query; any shape, numbers of texts."""
        answers: np.ndarray = np.isin(self._numbers(queries, documents), self.judged)
        return answers


@dataclass(frozen=True)
class Injected:
    """What was changed.

    Attributes:
        places: (m,) int64, ascending: which of the n pairs.
        documents: (m,) int64: the numbers of the documents that they have now.
    """

    places: np.ndarray
    documents: np.ndarray


def wanted(share: float, count: int) -> int:
    """How many of `count` pairs are changed."""
    return round(share * count)


def inject_random(
    queries: np.ndarray, documents: np.ndarray, answers: Answers, share: float, seed: int
) -> Injected:
    """Deal the documents of a share of the pairs out among these pairs.

    Args:
        queries, documents: (n,) int64, the numbers of each pair's texts.
        answers: What no pair may become.
        share: Of the pairs.
        seed: Seeds the choice.

    Raises:
        InputError: There is no way to deal them out so that none answers its query.
    """
    rng = np.random.default_rng(seed)
    places = np.sort(rng.permutation(len(queries))[: wanted(share, len(queries))])
    theirs = rng.permutation(documents[places])
    for _ in range(_ROUNDS):
        right = np.flatnonzero(answers.has(queries[places], theirs))
        if not len(right):
            return Injected(places, theirs)
        for one, other in zip(right, rng.integers(len(places), size=len(right)), strict=True):
            theirs[[one, other]] = theirs[[other, one]]
    raise InputError(
        f"--noise random={share:g} cannot deal the documents of {len(places):,} pairs out so that "
        f"none answers its query: {len(right):,} still do; name a larger share, or more pairs"
    )


def near_ranks(queries: np.ndarray, documents: np.ndarray, ranking: Ranking) -> np.ndarray:
    """(n, k) int64: the teacher's rank of each of a pair's best other documents in the pool, where
    the query's own documents have theirs, too.

    Args:
        queries, documents: (n,) int64: equal numbers for equal texts.
        ranking: Of these pairs, with k other documents.
    """
    k = ranking.negatives.shape[1]
    once = np.unique(np.stack([queries, documents]), axis=1, return_index=True)[1]
    _, query = np.unique(queries, return_inverse=True)
    above = np.zeros((query.max(initial=-1) + 1, k + 1), dtype=np.int64)
    # A document of rank r has r - 1 others above it, so it is above the r-th one and those below.
    np.add.at(above, (query[once], np.minimum(ranking.rank[once] - 1, k)), 1)
    ranks: np.ndarray = np.arange(1, k + 1) + above.cumsum(axis=1)[query, :k]
    return ranks


def inject_near(
    queries: np.ndarray,
    documents: np.ndarray,
    answers: Answers,
    ranking: Ranking,
    share: float,
    seed: int,
) -> Injected:
    """Give a share of the pairs a document that the teacher ranks from `NEAREST` to `FARTHEST` for
    their query.

    Args:
        queries, documents: (n,) int64, the numbers of each pair's texts.
        answers: What no pair may become.
        ranking: Of the pairs, with at least `FARTHEST` other documents where the pool has as many.
        share: Of the pairs.
        seed: Seeds the choice.

    Raises:
        InputError: Too few pairs have such a document.
    """
    rng = np.random.default_rng(seed)
    ranks = near_ranks(answers.query_of[queries], answers.document_of[documents], ranking)
    others = ranking.negatives
    usable = (others >= 0) & (ranks >= NEAREST) & (ranks <= FARTHEST)
    usable &= ~answers.has(queries[:, None], np.maximum(others, 0))
    order = rng.permutation(len(queries))
    order = order[usable[order].any(axis=1)]
    number = wanted(share, len(queries))
    if len(order) < number:
        raise InputError(
            f"--noise near={share:g} needs {number:,} pairs with a wrong document among the "
            f"teacher's ranks {NEAREST} to {FARTHEST}, and {len(order):,} of {len(queries):,} have "
            "one; name a smaller share, or more pairs"
        )
    places = np.sort(order[:number])
    draw = np.where(usable[places], rng.random((number, others.shape[1])), -1.0)
    return Injected(places, others[places, draw.argmax(axis=1)])
