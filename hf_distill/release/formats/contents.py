"""What an export writes: the pairs of some splits, query by query, with the lists beside them."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset
from tqdm.auto import tqdm

from hf_distill.data.collection import Collection, Lists, Pairs, Split, query_id
from hf_distill.data.near_duplicates import text_key

_QUERIES = 256
"""Queries whose lists are held at a time. A TREC run has 1,000 documents a query."""

_TEXTS = 1000

Needed = Literal["each", "any", "none"]
"""Of which documents a format takes the scores: of all of a split or of none, of any, never."""


@dataclass(frozen=True)
class Listed:
    """A document beside a query. `grade` is None if nobody judged it, `score` if it has none."""

    id: str
    text: str
    grade: int | None
    score: float | None


@dataclass(frozen=True)
class Query:
    """A query with its documents: `positives` of grade 1 or more, `others` judged not relevant or
    not judged. Each document is listed once. `student_text` is what the student reads in its place;
    None if it reads the queries.
    """

    id: str
    text: str
    positives: list[Listed]
    others: list[Listed]
    student_text: str | None = None


@dataclass(frozen=True)
class _Block:
    """The documents of n queries, by number. The first p are the positives of all n.

    Attributes:
        queries: (n,) int64.
        of: (p + m,) int64, the place of each document's query in `queries`.
        documents: (p + m,) int64.
        grades: (p + m,) int32; -1: not judged.
        given: (p + m,) float32, given scores; NaN: none.
        teacher: (p + m,) float32, the teacher's scores; NaN: none.
        positives: p.
        repeated: How many further pairs were the same as one of the p.
    """

    queries: np.ndarray
    of: np.ndarray
    documents: np.ndarray
    grades: np.ndarray
    given: np.ndarray
    teacher: np.ndarray
    positives: int
    repeated: int


@dataclass(frozen=True)
class Survey:
    """What a split holds.

    Attributes:
        queries, positives: How many.
        repeated: Further pairs of the same query and document.
        graded: Positives of grade 2 or more.
        not_relevant: Documents judged not relevant.
        not_judged: Documents that nobody judged.
        given, teacher: How many of the documents have a given score, and one of the teacher.
        least, most: The fewest and the most documents of a query that are no positives.
        documents: (documents of the collection,) bool, whether one stands beside a query.
        judged: The same, whether a query has judged it.
    """

    queries: int
    positives: int
    repeated: int
    graded: int
    not_relevant: int
    not_judged: int
    given: int
    teacher: int
    least: int
    most: int
    documents: np.ndarray
    judged: np.ndarray

    @property
    def others(self) -> int:
        """Documents that are no positives."""
        return self.not_relevant + self.not_judged

    @property
    def scores(self) -> str | None:
        """Whose scores are written: `teacher`, `given` or None. A list has one scale, and the
        teacher scores the pairs only: where there are others beside them, theirs are the given.
        """
        if self.teacher and not self.others:
            return "teacher"
        return "given" if self.given else None

    @property
    def scored(self) -> int:
        """How many documents have the score that is written."""
        return (
            0 if self.scores is None else self.teacher if self.scores == "teacher" else self.given
        )

    def has_scores(self, needed: Needed) -> bool:
        """Whether a format that takes the scores of `needed` documents gets them."""
        if needed == "each":
            return self.scored == self.positives + self.others
        return needed == "any" and self.scored > 0


@dataclass(frozen=True)
class Names:
    """What texts are called in a format: their own id, or the id of the text.

    Attributes:
        table: `queries` or `documents` of a collection.
        own: (rows,) bool, whether a text keeps its own id. Otherwise it has none, or one that the
            format cannot write or that several texts have.
    """

    table: Dataset
    own: np.ndarray

    @classmethod
    def of_table(cls, table: Dataset, forbidden: re.Pattern[str]) -> Names:
        """The names in `table`. An own id that is empty or in which `forbidden` is found is not
        kept.
        """
        ids = table.select_columns(["id"]).with_format("arrow")
        hashes = np.empty(len(table), dtype=np.int64)
        own = np.zeros(len(table), dtype=bool)
        for start in range(0, len(table), _TEXTS):
            for row, name in enumerate(ids[start : start + _TEXTS]["id"].to_pylist(), start):
                own[row] = bool(name) and not forbidden.search(name)
                hashes[row] = hash(name)
        _, which, count = np.unique(hashes[own], return_inverse=True, return_counts=True)
        own[own] = count[which] == 1
        return cls(table, own)

    def of(self, numbers: np.ndarray) -> list[str]:
        """The names of the texts with these numbers."""
        names = np.empty(len(numbers), dtype=object)
        own = self.own[numbers]
        table = self.table.with_format("arrow")
        if own.any():
            names[own] = table.select_columns(["id"])[numbers[own]]["id"].to_pylist()
        if not own.all():
            of_texts = [name for name in ("text", "student_text") if name in table.column_names]
            rows = table.select_columns(of_texts)[numbers[~own]]
            others = rows["student_text"].to_pylist() if len(of_texts) > 1 else repeat(None)
            names[~own] = [
                query_id(*both) for both in zip(rows["text"].to_pylist(), others, strict=False)
            ]
        return list(names)


@dataclass(frozen=True)
class Contents:
    """What an export writes.

    Attributes:
        collection: The run's collection.
        pairs: The pairs of each split that is written.
        teacher: (judgements,) float32, the teacher's score of every pair; None if the run has none.
        forbidden: What an id must not hold in this format.
    """

    collection: Collection
    pairs: Mapping[Split, Pairs]
    teacher: np.ndarray | None
    forbidden: re.Pattern[str]

    @cached_property
    def query_names(self) -> Names:
        return Names.of_table(self.collection.queries, self.forbidden)

    @cached_property
    def document_names(self) -> Names:
        return Names.of_table(self.collection.documents, self.forbidden)

    @cached_property
    def surveys(self) -> dict[Split, Survey]:
        """What each split holds."""
        return {split: self._survey(split) for split in self.pairs}

    def total(self, of: Callable[[Survey], int]) -> int:
        """The sum of a figure over the splits."""
        return sum(map(of, self.surveys.values()))

    def documents(self, of: Callable[[Survey], np.ndarray]) -> np.ndarray:
        """(documents,) bool, the union of a mask over the splits."""
        union: np.ndarray = np.any([of(survey) for survey in self.surveys.values()], axis=0)
        return union

    def query_numbers(self) -> np.ndarray:
        """(n,) int64, the queries of all splits, in order."""
        return np.unique(np.concatenate([pairs.queries for pairs in self.pairs.values()]))

    def searched(self) -> np.ndarray:
        """(documents,) bool, whether held-out queries search it."""
        mask = np.zeros(len(self.collection.documents), dtype=bool)
        mask[self.collection.searched] = True
        return mask

    def with_id(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of the queries, and of these `documents` (m,), that have their own id."""
        numbers = (self.query_numbers(), documents)
        tables = (self.collection.queries, self.collection.documents)
        queries, documents = (
            of[pc.is_valid(table.data["id"]).to_numpy()[of]]
            for of, table in zip(numbers, tables, strict=True)
        )
        return queries, documents

    def groups_and_sources(self) -> tuple[int, int]:
        """How many pairs have a group other than that of their query, and a source."""
        groups = sources = 0
        for pairs in self.pairs.values():
            for batch in pairs.batches("query", "group", "source"):
                groups += sum(
                    group != text_key(query)
                    for query, group in zip(batch["query"], batch["group"], strict=True)
                )
                sources += sum(source is not None for source in batch["source"])
        return groups, sources

    def queries(self, split: Split, ids: bool = True, texts: bool = True) -> Iterator[Query]:
        """The queries of a split with their documents, in order of appearance. Ids and texts are
        empty where they are not asked for.
        """
        survey = self.surveys[split]
        with tqdm(total=survey.queries, desc=split, unit=" queries", delay=1, leave=False) as bar:
            for block in self._blocks(split):
                yield from self._texts_of(block, survey.scores, ids, texts)
                bar.update(len(block.queries))

    def _texts_of(
        self, block: _Block, scores: str | None, ids: bool, texts: bool
    ) -> Iterator[Query]:
        collection, total = self.collection, len(block.documents)
        values = block.teacher if scores == "teacher" else block.given
        listed = [
            Listed(
                name, text, None if grade < 0 else grade, None if score == "nan" else float(score)
            )
            for name, text, grade, score in zip(
                self.document_names.of(block.documents) if ids else [""] * total,
                collection.document_texts(block.documents) if texts else [""] * total,
                block.grades.tolist(),
                # As text: the shortest number that is this float32, .1 and not .10000000149.
                map(str, values) if scores else ["nan"] * total,
                strict=True,
            )
        ]
        n, p = len(block.queries), block.positives
        positives = np.searchsorted(block.of[:p], np.arange(n + 1)).tolist()
        others = (p + np.searchsorted(block.of[p:], np.arange(n + 1))).tolist()
        names = self.query_names.of(block.queries) if ids else [""] * n
        query_texts = collection.query_texts(block.queries)
        own_texts = collection.student_queries(block.queries)
        for i, (name, text, own) in enumerate(zip(names, query_texts, own_texts, strict=True)):
            yield Query(
                name,
                text,
                listed[positives[i] : positives[i + 1]],
                listed[others[i] : others[i + 1]],
                own if collection.num_student_queries else None,
            )

    def _survey(self, split: Split) -> Survey:
        documents = np.zeros(len(self.collection.documents), dtype=bool)
        judged = documents.copy()
        counts: Counter[str] = Counter()
        least, most = sys.maxsize, 0
        for block in self._blocks(split):
            p = block.positives
            documents[block.documents] = True
            judged[block.documents[block.grades >= 0]] = True
            others = np.bincount(block.of[p:], minlength=len(block.queries))
            least, most = min(least, int(others.min())), max(most, int(others.max()))
            counts.update(
                queries=len(block.queries),
                positives=p,
                repeated=block.repeated,
                graded=int((block.grades > 1).sum()),
                not_relevant=int((block.grades == 0).sum()),
                not_judged=int((block.grades < 0).sum()),
                given=int((~np.isnan(block.given)).sum()),
                teacher=int((~np.isnan(block.teacher)).sum()),
            )
        return Survey(**counts, least=least, most=most, documents=documents, judged=judged)

    def _blocks(self, split: Split) -> Iterator[_Block]:
        """The queries of a split in order of appearance, some at a time."""
        pairs = self.pairs[split]
        once, first, which = np.unique(pairs.queries, return_index=True, return_inverse=True)
        appearance = np.argsort(first)
        place = np.argsort(appearance)[which]
        order = np.argsort(place, kind="stable")
        grades = np.array(pairs.column("grade"), dtype=np.int32)
        for start in range(0, len(once), _QUERIES):
            queries = once[appearance[start : start + _QUERIES]]
            low, high = np.searchsorted(place[order], [start, start + len(queries)])
            rows = order[low:high]
            scores = np.full(len(rows), np.nan, dtype=np.float32)
            if self.teacher is not None:
                scores = self.teacher[pairs.rows[rows]]
            yield _block(
                queries,
                _Positives(place[rows] - start, pairs.documents[rows], grades[rows], scores),
                self.collection.lists(queries),
            )


@dataclass(frozen=True)
class _Positives:
    """Pairs of a block: place of the query, document, grade, the teacher's score; (p,) each."""

    of: np.ndarray
    documents: np.ndarray
    grades: np.ndarray
    teacher: np.ndarray


def _block(queries: np.ndarray, pairs: _Positives, lists: Lists) -> _Block:
    keys = (pairs.of << 32) | pairs.documents
    once, first, which = np.unique(keys, return_index=True, return_inverse=True)
    grades = np.zeros(len(once), dtype=np.int32)
    np.maximum.at(grades, which, pairs.grades)  # a pair may be there twice: the highest grade
    appearance = np.argsort(first)
    positive_keys, grades, first = once[appearance], grades[appearance], first[appearance]

    of = np.repeat(np.arange(len(queries)), np.diff(lists.starts))
    listed = (of << 32) | lists.documents
    scores = np.where(np.isfinite(lists.scores), lists.scores, np.float32(np.nan))
    given = np.full(len(first), np.nan, dtype=np.float32)
    if len(listed):
        order = np.argsort(listed, kind="stable")
        found = order[np.minimum(np.searchsorted(listed[order], positive_keys), len(order) - 1)]
        given = np.where(listed[found] == positive_keys, scores[found], given)
    # A document that answers the query elsewhere (a leaked pair, one that the selection dropped)
    # has a grade, and is no negative.
    others = np.flatnonzero((lists.grades <= 0) & ~np.isin(listed, positive_keys))
    none = np.full(len(others), np.nan, dtype=np.float32)
    return _Block(
        queries=queries,
        of=np.concatenate([pairs.of[first], of[others]]),
        documents=np.concatenate([pairs.documents[first], lists.documents[others]]),
        grades=np.concatenate([grades, lists.grades[others]]),
        given=np.concatenate([given, scores[others]]),
        teacher=np.concatenate([pairs.teacher[first], none]),
        positives=len(first),
        repeated=len(keys) - len(first),
    )


@dataclass(frozen=True)
class ExportFormat:
    """A format that a collection is written in.

    Attributes:
        write: Writes the files into an empty folder. Returns what it changed or left out, in a
            sentence that follows a number -> how many. Zeros are not said.
        files: Every file that it may write.
        lacks: Of `graded`, `not_relevant`, `not_judged`, `ids`, `corpus` and `student_texts` what
            has no place in it -> what becomes of it.
        scores: Of which documents it takes scores.
        read: Lines of Python that read what was written; `FOLDER` stands for the folder, and
            `SPLIT` for a split.
        validation: What it calls the validation split.
        forbidden: What an id must not hold.
    """

    write: Callable[[Contents, Path], dict[str, int]]
    files: tuple[str, ...]
    lacks: Mapping[str, str]
    scores: Needed
    read: str
    validation: str = "validation"
    forbidden: re.Pattern[str] = re.compile(r"(?!)")


def texts_in_order(
    look_up: Callable[[np.ndarray], list[str]], numbers: np.ndarray
) -> Iterator[str]:
    """The texts (or names) of `numbers`, looked up some at a time."""
    for start in range(0, len(numbers), _TEXTS):
        yield from look_up(numbers[start : start + _TEXTS])
