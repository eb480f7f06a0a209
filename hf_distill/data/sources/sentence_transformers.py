"""The forms of sentence-transformers with more than one document a row, as its losses read them and
as `mine_hard_negatives` writes them:

- triplets and n-tuples: `anchor`, `positive`, `negative` or `negative_1`, `negative_2` ...; with
  `scores` (or `label`), a list of the positive's score and each negative's;
- lists: a query, a column with a list of documents, and a list of `labels` or of `scores`.

The names of query and positive are those of pairs (`--query_column`, `--document_column`). The
positive is relevant. Nobody judged the negatives: candidates. In a list, the labels say what is
relevant; scores alone do not, so `--positives` has to. A `label` that is the margin between
positive and negative gives neither document a score: it is not used, and counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hf_distill.data.collection import SourcePairs
from hf_distill.data.format import Format
from hf_distill.data.sources.lists import Cell, RepeatedPairs, by_rule, listed
from hf_distill.data.sources.rows import (
    QUERY_NAMES,
    Member,
    Reading,
    RowReader,
    as_many,
    fractional,
    grade_of,
    how_many,
    list_of,
    named,
    positives_rule,
    refuse_options,
    refuse_scored_list,
    start_reading,
    text_columns,
)
from hf_distill.data.tables.table import Place, Row, Table, Tables
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import DataArguments

_NEGATIVE = re.compile(r"(hard_)?neg(ative)?s?(_?\d+)?", re.IGNORECASE)
_LISTS = ("docs", "documents", "passages", "candidates")
_POSITIVES = ("pos", "positives")
_LABELS = ("labels", "label")
_SCORES = ("scores", "score", "teacher_scores", "labels", "label")


@dataclass(frozen=True)
class _Columns:
    """The columns of a table.

    Attributes:
        query: Column of the query.
        document: Column of the positive, or of the list.
        negatives: Columns of the negatives. Empty: `document` holds lists.
        labels: Of lists: the column with a list of labels.
        scores: The column with a list of scores.
    """

    query: str
    document: str
    negatives: tuple[str, ...]
    labels: str | None
    scores: str | None


def _lists(value: object) -> bool:
    return isinstance(value, (list, tuple))


def _columns(table: Table, data: DataArguments) -> _Columns | None:
    """What the columns are; None: the table has another format."""
    by_name = {column.lower(): column for column in table.columns}
    head = table.head()

    def holds(column: str | None, *types: type) -> bool:
        return any(isinstance(row.get(column or ""), types) for row in head)

    def first_list(names: Sequence[str], given: str | None) -> str | None:
        there = [given] if given else [by_name[name] for name in names if name in by_name]
        return next((column for column in there if holds(column, list, tuple)), None)

    query, document = text_columns(table, data) or (None, None)
    listed_in = first_list(_LISTS, data.document_column)
    if query is None or listed_in:
        query = data.query_column or next((by_name[n] for n in QUERY_NAMES if n in by_name), None)
        document = listed_in or next((by_name[n] for n in _POSITIVES if n in by_name), None)
    if query is None or document is None or query == document or query not in table.columns:
        return None
    negatives = [
        column
        for column in table.columns
        if _NEGATIVE.fullmatch(column)
        and column not in (query, document)
        and not holds(column, int, float, dict)  # a count of negatives is not one
    ]
    if negatives:
        scores = first_list(_SCORES, data.score_column)
        return _Columns(query, document, tuple(negatives), None, scores)
    if not holds(document, list, tuple):
        return None
    labels = first_list(_LABELS, data.label_column)
    values = (value for row in head for value in _in_list(row.get(labels or "")))
    if labels is not None and data.label_column is None and fractional(values):
        labels = None  # similarities are scores
    scores = first_list(
        [name for name in _SCORES if by_name.get(name) != labels], data.score_column
    )
    return _Columns(query, document, (), labels, scores)


def _fits(tables: Tables, data: DataArguments) -> bool:
    return any(_columns(table, data) is not None for table in tables.tables)


def _read(tables: Tables, data: DataArguments) -> SourcePairs:
    reading = start_reading(
        tables,
        lambda table: _columns(table, data) is not None,
        data,
        "has no table with a query, a positive and negatives, or a query and a list of documents; "
        "name the columns with --query_column and --document_column",
    )
    columns = {id(table): c for table, _ in reading.parts if (c := _columns(table, data))}
    first = next(iter(columns.values()))
    read_as = _read_as(reading, columns)
    rule = positives_rule(data)
    if first.negatives:
        refuse_options(tables, data, read_as, "label_column", "positives")
    elif first.labels:
        refuse_options(tables, data, f"{read_as}, which say what is relevant", "positives")
    elif first.scores is None:
        raise InputError(
            f"{named(tables)} the column {first.document!r} holds lists, and no column says which "
            "of their documents are relevant; name a column of labels or scores, as long as the "
            "lists, with --label_column or --score_column"
        )
    elif rule is None:
        raise refuse_scored_list(
            f"{named(tables)} {read_as}: each query has a list of documents "
            f"({first.document!r}) with scores ({first.scores!r})"
        )

    def reader(table: Table) -> RowReader:
        of = columns[id(table)]
        members = (
            _tuples(table, of, reading) if of.negatives else _labelled(table, of, reading, rule)
        )
        used = frozenset(
            {of.query, of.document, *of.negatives, *filter(None, (of.labels, of.scores))}
        )
        return RowReader({"query": of.query, "document": of.document}, used, members)

    return reading.pairs(read_as, reader, data)


def _read_as(reading: Reading, columns: dict[int, _Columns]) -> str:
    table, _ = reading.parts[0]
    of = columns[id(table)]
    head = table.head()
    if not of.negatives:
        sizes = how_many((len(_in_list(row.get(of.document))) for row in head), "document")
        said = " and ".join(
            what for what, column in (("labels", of.labels), ("scores", of.scores)) if column
        )
        return f"sentence-transformers lists: {sizes} a query, with {said or 'nothing beside them'}"
    count = how_many((len(_negatives(row, of)) for row in head), "negative")
    kind = "triplets" if len(of.negatives) == 1 else "n-tuples"
    scored = any(_scores(row, of)[1] for row in head)
    return f"sentence-transformers {kind}: 1 positive and {count} a row" + (
        ", with scores" if scored else ""
    )


def _in_list(value: Any) -> list[Any]:
    return list(value) if _lists(value) else [value]


def _negatives(row: Row, of: _Columns) -> list[Any]:
    return [text for column in of.negatives for text in _in_list(row.get(column))]


def _scores(row: Row, of: _Columns) -> tuple[bool, list[Any]]:
    """Whether what is there are margins, as many as negatives; else the scores of positive and
    negatives, empty if there are none.
    """
    value = row.get(of.scores) if of.scores else None
    values = [] if value is None else _in_list(value)
    margins = bool(values) and len(values) == len(_negatives(row, of))
    return margins, [] if margins else values


def _tuples(
    table: Table, of: _Columns, reading: Reading
) -> Callable[[Place, Row], Iterator[Member]]:
    repeated = RepeatedPairs()

    def members(place: Place, row: Row) -> Iterator[Member]:
        query, negatives = row.get(of.query), _negatives(row, of)
        positives = _in_list(row.get(of.document))
        texts = [*positives, *negatives]
        margins, values = _scores(row, of)
        if margins:
            reading.unused[f"margins in {of.scores} of {table.name}"] += 1
        scores = Cell(table, place, of.scores or "").scores(
            values, len(texts), "positive and negatives"
        )
        for positive, score in zip(positives, scores, strict=False):
            if isinstance(positive, str) and repeated.has(query, positive):
                reading.counts["the same pair beside another negative"] += 1
            else:
                yield {"query": query, "document": positive, "score": score, "grade": 1}
        yield from listed(negatives, scores[len(positives) :], query=query, candidate=True)

    return members


def _labelled(
    table: Table, of: _Columns, reading: Reading, rule: str | float | None
) -> Callable[[Place, Row], Iterator[Member]]:
    def judged(place: Place, row: Row, scores: list[float | None]) -> list[Member | None]:
        """What is said of each document; None: nothing, though the column is one of labels."""
        if of.labels is None:
            chosen = by_rule(scores, rule or "all")
            return [{"grade": 1} if relevant else {"candidate": True} for relevant in chosen]
        if row.get(of.labels) is None:
            return [None] * len(scores)
        labels = list_of(row[of.labels], table, place, of.labels)
        as_many(labels, (of.labels, of.document), len(scores), table.where(place))
        grades = (grade_of(label, table, place, of.labels) for label in labels)
        return [None if grade is None else {"grade": grade} for grade in grades]

    def members(place: Place, row: Row) -> Iterator[Member]:
        own = {"query": row.get(of.query)}
        documents = list_of(row.get(of.document), table, place, of.document)
        values = list_of(row.get(of.scores), table, place, of.scores) if of.scores else []
        scores = Cell(table, place, of.scores or "").scores(values, len(documents), of.document)
        said = judged(place, row, scores)
        if not documents:
            yield {**own, "document": None}
        for document, score, judgement in zip(documents, scores, said, strict=True):
            if judgement is None:
                reading.counts["no label"] += 1
            else:
                yield {**own, "document": document, "score": score, **judgement}

    return members


FORMAT = Format(_fits, _read)
