"""What a source hands over, read once, checked and numbered: `read_pairs`."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from datasets import Dataset, Features, Value

from hf_distill.data.collection import (
    TEXT_FEATURES,
    Collection,
    CollectionRecord,
    SourcePairs,
    TableWriter,
)
from hf_distill.data.keys import (
    blocks,
    each_once,
    first_places,
    is_among,
    numbered,
    places_of,
    taken,
)
from hf_distill.data.near_duplicates import text_key
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import CONVERSATION, UTTERANCE
from hf_distill.run.scratch import Numbers, scratch

TABLES = (*TEXT_FEATURES, "judgements", "candidates", "texts")
"""The tables of a collection. Each is a file, `<name>.arrow`."""

TEST_PATH = "test_path"
"""In place of a split: the pair belongs to the test set at `test_path`. It is not part of the
collection, but nothing that shares something with it is trained on.
"""

_NAMES = ("pair_id", "group", "source", "query_id", "document_id")
_WORKING_TEXTS = Features(
    {"text": Value("string"), "student_text": Value("string"), "id": Value("string")}
)
_WORKING_PAIRS = Features(
    {name: Value("string") for name in ("pair_id", "group", "source", "split")}
)
_NOT_JUDGED = -1
_MOST_TEXTS = (1 << 31) - 1
_LOW = (1 << 32) - 1
"""The document's half of `_keys`."""
_LARGEST, _HIGHEST = 2**31, float(np.finfo(np.float32).max)


def open_tables(folder: Path, record: CollectionRecord) -> Collection:
    """The collection whose tables are in `folder`, memory-mapped."""
    queries, documents, judgements, candidates, texts = (
        Dataset.from_file(str(folder / f"{name}.arrow")) for name in TABLES
    )
    return Collection(queries, documents, judgements, record, candidates, texts)


@dataclass(frozen=True)
class Texts:
    """A working table of texts, in which equal texts may stand several times.

    Attributes:
        table: Columns `text`, `student_text` and `id`. Texts are equal if both are.
        first: (rows,) int32, the row of the first equal text.
    """

    table: Dataset
    first: np.ndarray


@dataclass(frozen=True)
class ReadPairs:
    """What a source handed over, by number. A text's number is the row of the first equal one.

    Attributes:
        queries, documents: The texts.
        pairs: `pair_id`, `group`, `source` and `split` of each row that was read as a pair.
        rows: (n,) int64, ascending: which of these rows are pairs.
        pair_queries, pair_documents: (n,) int32.
        grades: (n,) int32, above 0.
        candidate_queries, candidate_documents: (m,) int64, each (query, document) once.
        candidate_scores: (m,) float32; NaN: none.
        candidate_grades: (m,) int32: 0: judged not relevant; above 0: a pair; -1: not judged.
        corpus: (c,) int32, ascending: documents of the source's corpus.
        counts: How many there were, and what became of them.
    """

    queries: Texts
    documents: Texts
    pairs: Dataset
    rows: np.ndarray
    pair_queries: np.ndarray
    pair_documents: np.ndarray
    grades: np.ndarray
    candidate_queries: np.ndarray
    candidate_documents: np.ndarray
    candidate_scores: np.ndarray
    candidate_grades: np.ndarray
    corpus: np.ndarray
    counts: dict[str, int]


class _TextWriter:
    """Writes texts and remembers 8 bytes of each. A text that repeats the one before it is not
    written again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer = TableWriter(path, _WORKING_TEXTS)
        self._hashes = Numbers("Q")
        self._last: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._writer.__exit__(*error)

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, text: str, name: str | None, student_text: str | None = None) -> int:
        """The row of `text`, whose own id is `name`."""
        both = text if student_text is None else f"{text}\0{student_text}"
        number = int.from_bytes(hashlib.sha256(both.encode()).digest()[:8], "big")
        if self._last != number:
            if len(self._hashes) == _MOST_TEXTS:
                raise InputError(
                    f"the data holds more than {_MOST_TEXTS:,} queries or documents, counted with "
                    "repeats, and a text's number has 31 bits; divide it into several runs"
                )
            self._last = number
            self._hashes.append(number)
            self._writer.add(text, student_text, name)
        return len(self._hashes) - 1

    def read(self) -> Texts:
        """What was written, once it is all there."""
        once, which = numbered(self._hashes.read())
        first = taken(first_places(which, len(once)), which)
        return Texts(Dataset.from_file(str(self._path)), first)


class _Reader:
    """Checks rows, and collects what they say in working tables and arrays of numbers."""

    def __init__(
        self,
        queries: _TextWriter,
        documents: _TextWriter,
        pairs: TableWriter,
        student_query: str | None = None,
    ) -> None:
        self.queries, self.documents, self.pairs = queries, documents, pairs
        self.student_query = student_query
        self.counts: Counter[str] = Counter()
        self.pair_queries, self.pair_documents, self.grades = (Numbers("i") for _ in range(3))
        self.listed_queries, self.listed_documents = Numbers("i"), Numbers("i")
        self.listed_scores, self.listed_grades = Numbers("f"), Numbers("i")
        self.own_pairs = 0
        self._group = ("", "")

    def read(self, pairs: SourcePairs, split: str | None = None) -> None:
        """Read the rows of a source, all of them for `split` if it is given."""
        for number, row in enumerate(pairs.rows):
            self.counts["rows"] += 1
            at = RowPlace(pairs, number, row)
            if split is None and self.student_query and "student_query" not in row:
                raise _without_student_query(at, self.student_query)
            self.counts[self._take(row, at, split)] += 1
        if split is None:
            self.own_pairs = len(self.grades)

    def _take(self, row: Mapping[str, Any], at: RowPlace, split: str | None) -> str:
        """Take a row, or not; returns what became of it."""
        query, document = at.text("query"), at.text("document")
        score = at.score()
        grade = _NOT_JUDGED if row.get("candidate") else at.grade()
        if not query or not document:
            return str(row.get("lacks") or ("no document" if query else "no query"))
        student_query = at.text("student_query") if "student_query" in row else query
        if not student_query:
            return "no query for the student"
        pair_id, group, source, query_id, document_id = map(at.name, _NAMES)
        try:
            f"{query}{student_query}{document}{pair_id}{group}{source}{query_id}{document_id}".encode()
        except UnicodeEncodeError:
            return "invalid Unicode"
        other = None if student_query == query else student_query
        query_row = self.queries.add(query, query_id, other)
        document_row = self.documents.add(document, document_id)
        if split is None and (grade <= 0 or not math.isnan(score)):
            self.listed_queries.append(query_row)
            self.listed_documents.append(document_row)
            self.listed_scores.append(score)
            self.listed_grades.append(grade)
        if grade == 0:
            return "judged not relevant"
        if grade == _NOT_JUDGED:
            return "candidates"
        if group is None:
            if self._group[0] != query:
                self._group = (query, text_key(query))
            group = self._group[1]
        self.pairs.add(
            str(at.number) if pair_id is None else pair_id, group, source, split or row.get("split")
        )
        self.pair_queries.append(query_row)
        self.pair_documents.append(document_row)
        self.grades.append(grade)
        return "kept"


def _without_student_query(at: RowPlace, wanted: str) -> InputError:
    """The error about a row that does not say what the student reads."""
    about, turns = at.pairs, wanted in (CONVERSATION, UTTERANCE)
    needs = (
        "it needs the turns of conversations: QReCC's files, or rows with history, query and "
        "rewrite"
        if turns
        else f"no column {wanted!r} stands beside the query in a row"
    )
    return InputError(
        f"{at}: --student_query {wanted}: {needs}. {about.about.name} is read as "
        f"{about.read_as or 'rows of a source'}; name other data, or set --student_query none"
    )


@dataclass(frozen=True, slots=True)
class RowPlace:
    """A row of a source, and how messages name it."""

    pairs: SourcePairs
    number: int
    row: Mapping[str, Any]

    def __str__(self) -> str:
        if "at" in self.row:
            table, place = self.row["at"]
            return str(table.where(place))
        return f"row {self.number} of {self.pairs.about.name}"

    def column(self, key: str) -> str:
        names = self.row.get("names", {})
        return f"the column {names[key]!r}" if key in names else f"the {key}"

    def text(self, key: str) -> str:
        """The text, stripped; empty if it is missing."""
        value = self.row.get(key)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise InputError(
                f"{self}: {self.column(key)} holds a {type(value).__name__} ({value!r:.50}), but "
                "it must be text; make it text, or name another column"
            )
        return value.strip()

    def name(self, key: str) -> str | None:
        value = self.row.get(key)
        return None if value is None else str(value)

    def grade(self) -> int:
        """The grade, 0 for everything that is judged not relevant."""
        value = self.row.get("grade")
        if value is None:
            return 1
        if not isinstance(value, (int, float)) or not value < _LARGEST or value % 1:
            raise InputError(
                f"{self}: the grade is {value!r:.50}; a grade is a whole number: 0 for a document "
                f"that is not relevant, 1 or more (below {_LARGEST:,}) for one that is"
            )
        return max(0, int(value))

    def score(self) -> float:
        """The given score; NaN if there is none."""
        value = self.row.get("score")
        if value is None:
            return float("nan")
        if not isinstance(value, (int, float)) or not abs(value) <= _HIGHEST:
            raise InputError(f"{self}: the score is {value!r:.50}, but a score is a finite number")
        return float(value)


def read_pairs(
    pairs: SourcePairs,
    folder: Path,
    elsewhere: SourcePairs | None = None,
    student_query: str | None = None,
) -> ReadPairs:
    """Read the corpus and the rows of a source, once and in order, into tables in `folder`.

    Rows are left out and counted if they have no query or no document, or if UTF-8 cannot write
    them. A document that is judged relevant and not relevant for one query is no pair.

    Args:
        pairs: The source.
        folder: For working tables.
        elsewhere: A test set of its own. Its pairs get the split `TEST_PATH`; they are not counted.
        student_query: The recipe's. If it is given, every row says what the student reads.

    Raises:
        InputError: A row or a document of the corpus that is not made of texts, or a row without a
            text for the student.
    """
    texts = (folder / "queries.arrow", folder / "documents.arrow")
    with (
        _TextWriter(texts[0]) as queries,
        _TextWriter(texts[1]) as documents,
        TableWriter(folder / "judgements.arrow", _WORKING_PAIRS) as table,
    ):
        counts: Counter[str] = Counter()
        for text, name in _corpus(pairs):
            documents.add(text, name)
        in_corpus = len(documents)
        reader = _Reader(queries, documents, table, student_query)
        reader.read(pairs)
        counts.update(reader.counts)
        if elsewhere is not None:
            reader.read(elsewhere, TEST_PATH)
    return _numbered(reader, folder / "judgements.arrow", in_corpus, counted(pairs.counts, counts))


def counted(of_source: Mapping[str, int], counts: Counter[str]) -> dict[str, int]:
    """How many there were, then what became of them."""
    rows = counts.pop("rows", 0)
    total = {name: n for name, n in of_source.items() if name.endswith(" found")}
    rest = Counter({name: n for name, n in of_source.items() if name not in total})
    return {**(total or {"rows found": rows + rest.total()}), **(counts + rest)}


def _corpus(pairs: SourcePairs) -> Iterable[tuple[str, str | None]]:
    for number, (text, name) in enumerate(pairs.corpus or ()):
        where = f"document {name or number} of the corpus of {pairs.about.name}"
        if not isinstance(text, str):
            raise InputError(f"{where} is a {type(text).__name__}, but it must be text")
        try:
            f"{text}{name}".encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{where} is not valid Unicode; fix it, or leave it out") from error
        if stripped := text.strip():
            yield stripped, name


def _numbered(reader: _Reader, path: Path, in_corpus: int, counts: dict[str, int]) -> ReadPairs:
    """Equal texts get one number, and each (query, document) is one candidate."""
    queries, documents = reader.queries.read(), reader.documents.read()
    pair_queries = taken(queries.first, reader.pair_queries.read())
    pair_documents = taken(documents.first, reader.pair_documents.read())
    grades = reader.grades.read()
    keys = _keys(pair_queries, pair_documents)

    listed_queries = taken(queries.first, reader.listed_queries.read())
    listed = _keys(listed_queries, taken(documents.first, reader.listed_documents.read()))
    listed_grades, scores = reader.listed_grades.read(), reader.listed_scores.read()
    both_ways = is_among(keys, np.unique(listed[listed_grades == 0]))
    both_ways[reader.own_pairs :] = False
    kept = places_of(~both_ways)
    own = kept[: reader.own_pairs - int(both_ways.sum())]

    # Of a candidate that is listed again, the first one with a score counts.
    order = np.lexsort((np.isnan(scores), listed))
    once, first = np.unique(listed[order], return_index=True)
    first = order[first]
    judged = np.isin(once, listed[listed_grades == 0])
    candidate_grades = np.where(judged, 0, _grade_of_pair(once, keys, grades, own))
    has_pair = is_among(listed_queries[first], each_once(taken(pair_queries, own)))

    not_judged = listed_grades == _NOT_JUDGED
    unjudged = np.isin(once, listed[not_judged])
    moved = {
        "judged relevant and not relevant": ("kept", int(both_ways.sum())),
        "repeated candidates": ("candidates", int(not_judged.sum() - unjudged.sum())),
        "candidates of a query without a pair": ("candidates", int((unjudged & ~has_pair).sum())),
    }
    for reason, (was, number) in moved.items():
        if number:
            counts = {**counts, was: counts[was] - number, reason: number}
    order = np.flatnonzero(has_pair)
    order = order[np.argsort(first[order])]
    return ReadPairs(
        queries=queries,
        documents=documents,
        pairs=Dataset.from_file(str(path)),
        rows=kept,
        pair_queries=taken(pair_queries, kept),
        pair_documents=taken(pair_documents, kept),
        grades=taken(grades, kept),
        candidate_queries=listed_queries[first[order]],
        candidate_documents=once[order] & _LOW,
        candidate_scores=scores[first[order]],
        candidate_grades=candidate_grades[order].astype(np.int32),
        corpus=each_once(documents.first[:in_corpus]),
        counts={what: number for what, number in counts.items() if number},
    )


def _keys(queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """One int64 for each (query, document), both below 2 ** 31."""
    keys = scratch(len(queries), np.int64)
    for here in blocks(len(keys)):
        keys[here] = (queries[here].astype(np.int64) << 32) | documents[here]
    return keys


def _grade_of_pair(
    wanted: np.ndarray, keys: np.ndarray, grades: np.ndarray, used: np.ndarray
) -> np.ndarray:
    """The highest grade of the pairs with each key of `wanted` (m,), ascending; `_NOT_JUDGED` if
    there is none. The pairs have `keys` and `grades` (n,), and `used` (u,) are those that count.
    """
    highest = np.full(len(wanted), _NOT_JUDGED)
    some = used[is_among(taken(keys, used), wanted)] if len(wanted) else used[:0]
    np.maximum.at(highest, np.searchsorted(wanted, keys[some]), grades[some])
    return highest
