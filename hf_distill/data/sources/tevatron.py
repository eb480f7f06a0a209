"""Tevatron's JSONL (`query_id`, `query`, `positive_passages`, `negative_passages`), and that of its
ancestor DPR (`question`, `positive_ctxs`, `negative_ctxs`, `hard_negative_ctxs`).

A passage is an object with `text`, and optionally `title`, an id and a `score`. Its text is title,
space, text, as Tevatron joins them. Positives are relevant; nobody judged the negatives, which are
candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hf_distill.data.collection import SourcePairs
from hf_distill.data.format import Format
from hf_distill.data.sources.rows import (
    Member,
    Reading,
    RowReader,
    how_many,
    list_of,
    name_of,
    refuse_options,
    score_of,
    start_reading,
)
from hf_distill.data.tables.table import Place, Row, Table, Tables
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import DataArguments

_POSITIVES = {"positive_passages": "query", "positive_ctxs": "question"}
"""Column of the positives -> column of the query."""

_NEGATIVES = ("negative_passages", "negative_ctxs", "hard_negative_ctxs")
_PASSAGE_IDS = ("docid", "passage_id", "psg_id", "id")


def _positives(table: Table, data: DataArguments) -> str | None:
    return next(
        (
            column
            for column, query in _POSITIVES.items()
            if column in table.columns and (data.query_column or query) in table.columns
        ),
        None,
    )


def _fits(tables: Tables, data: DataArguments) -> bool:
    return any(_positives(table, data) for table in tables.tables)


def _read(tables: Tables, data: DataArguments) -> SourcePairs:
    reading = start_reading(
        tables,
        lambda table: _positives(table, data) is not None,
        data,
        "has no table with query and positive_passages (Tevatron), or question and positive_ctxs "
        "(DPR)",
    )
    first = reading.parts[0][0]
    positives = _positives(first, data) or ""
    head = [row for table, _ in reading.parts for row in table.head()]

    def sizes(*columns: str) -> list[int]:
        cells = ([row.get(column) for column in columns] for row in head)
        return [sum(len(cell) for cell in row if isinstance(cell, list)) for row in cells]

    read_as = (
        f"{'Tevatron' if positives == 'positive_passages' else 'DPR'} lists: "
        f"{how_many(sizes(positives), 'positive')} and "
        f"{how_many(sizes(*_NEGATIVES), 'negative')} a query, title and text joined"
    )
    refuse_options(
        tables, data, read_as, "label_column", "score_column", "document_column", "positives"
    )
    return reading.pairs(read_as, lambda table: _reader(table, reading, data), data)


def _reader(table: Table, reading: Reading, data: DataArguments) -> RowReader:
    positives = _positives(table, data) or ""
    query = data.query_column or _POSITIVES[positives]

    def members(place: Place, row: Row) -> Iterator[Member]:
        own = {
            "query": row.get(query),
            "query_id": name_of(row.get("query_id"), table, place, "query_id"),
        }
        found = list_of(row.get(positives), table, place, positives)
        for passage in found or [None]:
            yield {**own, **_passage(passage, reading, (table, place, positives)), "grade": 1}
        for column in _NEGATIVES:
            for passage in list_of(row.get(column), table, place, column):
                cell = (table, place, column)
                yield {**own, **_passage(passage, reading, cell), "candidate": True}

    columns = frozenset({query, "query_id", positives, *_NEGATIVES})
    return RowReader({"query": query, "document": positives}, columns, members)


def _passage(passage: object, reading: Reading, cell: tuple[Table, Place, str]) -> Member:
    table, place, column = cell
    if passage is None or isinstance(passage, str):
        return {"document": passage}
    if not isinstance(passage, Mapping):
        raise InputError(
            f"{table.where(place)}: the column {column!r} holds a {type(passage).__name__} "
            f"({passage!r:.50}), but a passage is an object with text, and a title if it has one"
        )
    used = {"title", "text", "score"}
    member: dict[str, Any] = {"document": _joined(passage, cell)}
    if passage.get("score") is not None:
        member["score"] = score_of(passage["score"], table, place, f"{column}.score")
    if (key := next((key for key in _PASSAGE_IDS if key in passage), None)) is not None:
        member["document_id"] = name_of(passage[key], table, place, f"{column}.{key}")
        used.add(key)
    for name, value in passage.items():
        if name not in used and value is not None:
            reading.unused[f"field {name} of {column} of {table.name}"] += 1
    return member


def _joined(passage: Mapping[str, Any], cell: tuple[Table, Place, str]) -> object:
    table, place, column = cell
    title, text = passage.get("title"), passage.get("text")
    if title is not None and not isinstance(title, str):
        raise InputError(
            f"{table.where(place)}: the title of a passage in {column!r} is {title!r:.50}, but it "
            "must be text"
        )
    if text is None and "text" not in passage:
        raise InputError(
            f"{table.where(place)}: a passage in {column!r} has no text; its fields are "
            f"{', '.join(passage)}"
        )
    return f"{title} {text}" if title and isinstance(text, str) else text


FORMAT = Format(_fits, _read)
