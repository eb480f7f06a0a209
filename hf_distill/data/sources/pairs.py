"""Tables with a query and a document a row, and optionally a label, a score, a group, a source and
ids.

A label says what is relevant: above 0 it is, 0 or below it is judged not to be. A missing label
says nothing, so the row is neither, and is counted. A score says how similar a teacher finds the
two, and not what is relevant: where queries have several documents, each with a score and no label,
`--positives` has to say it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hf_distill.data.collection import SourcePairs
from hf_distill.data.format import Format
from hf_distill.data.sources.rows import (
    DOCUMENT_NAMES,
    LABEL_NAMES,
    QUERY_NAMES,
    SCORE_NAMES,
    Member,
    Reading,
    RowReader,
    as_number,
    fractional,
    grade_of,
    name_of,
    named,
    one_of,
    positives_rule,
    refuse_options,
    refuse_scored_list,
    relevant,
    score_of,
    start_reading,
    text_columns,
)
from hf_distill.data.tables.table import Place, Row, Table, Tables
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import DataArguments

SOFT_LABELS = {"pair_id", "query", "document", "teacher_score"}
"""The columns of this project's own `teacher_soft_labels.json`. All of its rows are pairs."""

_IDS = ("pair_id", "query_id", "document_id")


@dataclass(frozen=True)
class Columns:
    """The columns of a table of pairs."""

    query: str
    document: str
    label: str | None
    score: str | None

    def used(self, table: Table) -> frozenset[str]:
        """Every column that is read."""
        ids = [name for name in _IDS if name in table.columns]
        return frozenset(
            {self.query, self.document, *ids, *(c for c in (self.label, self.score) if c)}
        )


def _fits(tables: Tables, data: DataArguments) -> bool:
    return any(text_columns(table, data) for table in tables.tables)


def _columns(table: Table, data: DataArguments) -> Columns:
    """What the columns of a table are.

    Raises:
        InputError: Query and document are the same column, several columns are labels, or whole
            numbers are called a score.
    """
    query, document = text_columns(table, data) or ("", "")
    if query == document:
        raise InputError(
            f"--query_column {query}: it is also the --document_column, and a text is not its own "
            "answer; name two columns. Texts without queries are read with --dataset texts"
        )
    label = one_of(table, data.label_column, LABEL_NAMES, "label_column")
    score = one_of(table, data.score_column, SCORE_NAMES, "score_column")
    if set(table.columns) == SOFT_LABELS:
        return Columns(query, document, None, score)
    if label is not None and label == score:
        label, score = (label, None) if data.label_column else (None, score)
    head = table.head()
    if label is not None and data.label_column is None and fractional(r.get(label) for r in head):
        if positives_rule(data) is None or score is not None:
            raise InputError(
                f"{table.name}: the column {label!r} holds similarities, and nothing says from "
                "which one on a document is relevant; say it with --positives, e.g. 0.5, or best; "
                f"or name it with --score_column {label}, and each row is relevant"
            )
        return Columns(query, document, None, label)
    if label is None and score is not None and data.score_column is None:
        values = [as_number(v) for row in head if (v := row.get(score)) is not None]
        if values and all(value is not None and value.is_integer() for value in values):
            raise InputError(
                f"{table.name}: the column {score!r} holds whole numbers, which can be grades or "
                f"scores; name it with --label_column {score} if 0 is not relevant, or with "
                f"--score_column {score}"
            )
    return Columns(query, document, label, score)


def _read(tables: Tables, data: DataArguments) -> SourcePairs:
    reading = start_reading(
        tables,
        lambda table: text_columns(table, data) is not None,
        data,
        f"has no table with a query ({', '.join(QUERY_NAMES)}) and a document "
        f"({', '.join(DOCUMENT_NAMES)}) a row, or it has several; name them with --query_column "
        "and --document_column",
    )
    columns = {id(table): _columns(table, data) for table, _ in reading.parts}
    every = list(columns.values())
    labels = any(c.label for c in every)
    scores = any(c.score for c in every)
    read_as = (
        f"pairs of {every[0].query!r} and {every[0].document!r}"
        + (f", with labels ({every[0].label or 'of some tables'})" if labels else "")
        + (f", with scores ({every[0].score or 'of some tables'})" if scores else "")
    )
    if labels:
        refuse_options(tables, data, f"{read_as}, which say what is relevant", "positives")
    elif not scores:
        refuse_options(tables, data, f"{read_as}, without scores", "positives")
    is_pair = _choose(reading, columns, data) if scores and not labels else None
    if is_pair is not None:
        read_as += f"; relevant: {data.positives}"
    return reading.pairs(
        read_as, lambda table: _reader(table, columns[id(table)], reading, is_pair), data
    )


def _choose(
    reading: Reading, columns: dict[int, Columns], data: DataArguments
) -> Iterator[bool] | None:
    """Whether each row is relevant, in the order of the rows; None: all are. 25 bytes
    of each row are held.

    Raises:
        InputError: Queries have several documents, and `--positives` is not given.
    """
    rule = positives_rule(data)
    tables = [table for table, _ in reading.parts]
    if rule is None and all(set(table.columns) == SOFT_LABELS for table in tables):
        return None
    queries, pairs, scores, whole = array("q"), array("q"), array("d"), array("b")
    for table in tables:
        of = columns[id(table)]
        for place, row in table.read():
            query, document = (str(row.get(c) or "").strip() for c in (of.query, of.document))
            queries.append(hash(query))
            pairs.append(hash((query, document)))
            whole.append(bool(query and document))
            score = score_of(row.get(of.score), table, place, of.score) if of.score else None
            scores.append(np.nan if score is None else score)
    if rule is not None:
        chosen: list[bool] = relevant(np.array(queries), np.array(scores), rule).tolist()
        return iter(chosen)
    there = np.array(whole, dtype=bool)
    once, documents = (len(np.unique(np.array(numbers)[there])) for numbers in (queries, pairs))
    if documents > once:
        raise refuse_scored_list(
            f"{named(reading.tables)} {once:,} queries have {documents:,} documents, with a score "
            f"each (column {columns[id(tables[0])].score})"
        )
    return None


def _reader(
    table: Table, of: Columns, reading: Reading, is_pair: Iterator[bool] | None
) -> RowReader:
    ids = [name for name in _IDS if name in table.columns]

    def members(place: Place, row: Row) -> Iterator[Member]:
        member: Member = {"query": row.get(of.query), "document": row.get(of.document)}
        for name in ids:
            member[name] = name_of(row.get(name), table, place, name)
        if of.score is not None:
            member["score"] = score_of(row.get(of.score), table, place, of.score)
        if of.label is not None:
            member["grade"] = grade_of(row.get(of.label), table, place, of.label)
            if member["grade"] is None:
                reading.counts["no label"] += 1
                return
        elif is_pair is not None and not next(is_pair):
            member["candidate"] = True
        yield member

    return RowReader({"query": of.query, "document": of.document}, of.used(table), members)


FORMAT = Format(_fits, _read)
