"""Training pairs that a selection has given another document."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hf_distill.data.collection import Pairs
from hf_distill.data.keys import is_among
from hf_distill.scoring.scores import Scores


@dataclass(frozen=True)
class Relabelled:
    """The documents of n training pairs, where some are relabelled.

    Attributes:
        pairs: The pairs, with the documents that they have in the data.
        documents: (n,) int64, the new document of each pair; -1: its own.
        scores: (n,) float32, what the ranker scores it for the query, the teacher if there is none;
            NaN: its own.
    """

    pairs: Pairs
    documents: np.ndarray
    scores: np.ndarray

    @classmethod
    def of(
        cls,
        pairs: Pairs,
        places: np.ndarray,
        documents: np.ndarray | None,
        scores: np.ndarray | None,
    ) -> Relabelled | None:
        """`pairs` are those at `places` (n,) of the training pairs. `documents` and `scores` are of
        all, as in `Selection.relabelled` and `Selection.relabelled_score`; None: no rule relabels.
        """
        if documents is None or scores is None:
            return None
        return cls(pairs, documents[places], scores[places])

    @property
    def new(self) -> np.ndarray:
        """(n,) bool: whether a pair is relabelled."""
        new: np.ndarray = self.documents >= 0
        return new

    def columns(self, scores: Scores) -> dict[str, np.ndarray]:
        """`document`, `teacher_score` and `relabelled_from` (n,) of training rows; the last is the
        document in the data, -1 where it has stayed.

        Args:
            scores: The teacher's. If it embeds no texts, it is the ranker of the lists.
        """
        own, of_pairs = self.pairs.documents, scores.of(self.pairs.rows)
        given = self.scores
        if scores.embeddings is not None:
            given = np.full(len(own), np.nan, dtype=np.float32)
            given[self.new] = scores.between(self.pairs.queries[self.new], self.documents[self.new])
        return {
            "document": np.where(self.new, self.documents, own),
            "teacher_score": np.where(self.new, given, of_pairs),
            "relabelled_from": np.where(self.new, own, -1),
        }

    def answers(self, documents: np.ndarray, rows: slice = slice(None)) -> np.ndarray:
        """(m, k) bool: which of `documents` (m, k) are the new one of a pair of the same query. Row
        i is of the i-th of the pairs `rows`.
        """
        asked = self._queries[rows, None] << 32 | documents
        found = is_among(asked.ravel(), self._keys).reshape(asked.shape)
        return found & (documents >= 0)

    @cached_property
    def _queries(self) -> np.ndarray:
        """(n,) int64, equal for pairs whose queries are the same text."""
        queries: np.ndarray = self.pairs.collection.first_of_text[self.pairs.queries]
        return queries

    @cached_property
    def _keys(self) -> np.ndarray:
        """Query and new document of each relabelled pair, in one number; ascending."""
        return np.unique((self._queries << 32 | self.documents)[self.new])
