"""A query with a list of documents: what the formats of lists share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hf_distill.data.sources.rows import Member, as_many, relevant, score_of
from hf_distill.data.tables.table import Place, Table


@dataclass(frozen=True)
class Cell:
    """A column of a row, for messages."""

    table: Table
    place: Place
    column: str

    def scores(self, values: Sequence[object], texts: int, of: str) -> list[float | None]:
        """The scores of `texts` texts in the column `of`. An empty list is no scores.

        Raises:
            InputError: There are more or fewer, or one is no number.
        """
        if not values:
            return [None] * texts
        as_many(values, (self.column, of), texts, self.table.where(self.place))
        return [score_of(value, self.table, self.place, self.column) for value in values]


def by_rule(scores: Sequence[float | None], rule: str | float) -> list[bool]:
    """Which documents of one list are relevant (see `relevant`)."""
    values = np.array([np.nan if score is None else score for score in scores])
    chosen: list[bool] = relevant(np.zeros(len(values), dtype=int), values, rule).tolist()
    return chosen


def listed(
    documents: Sequence[object], scores: Sequence[float | None], **same: object
) -> Iterator[Member]:
    """A member for each document of a list, all of them with `same`."""
    for document, score in zip(documents, scores, strict=True):
        yield {"document": document, "score": score, **same}


@dataclass
class RepeatedPairs:
    """Notices a pair that its query had in one of the rows just before, as a positive that stands
    beside one negative after another.
    """

    query: object = None
    documents: frozenset[object] = frozenset()

    def has(self, query: object, document: object) -> bool:
        """Whether the rows of this query had the document already."""
        seen = query == self.query and document in self.documents
        before = self.documents if query == self.query else frozenset()
        self.query, self.documents = query, before | {document}
        return seen
