"""PyLate's form for distillation: a table with `query_id`, `document_ids` and `scores`, beside
tables with the texts of `query_id` and of `document_id`: configurations of a data set, or files.

PyLate distils the scores and reads no document as the positive, and neither does the data set card
of `lightonai/ms-marco-en-bge` say that one is: `--positives` has to. Held-out queries search the
whole table of documents.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial

from hf_distill.data.collection import SourcePairs
from hf_distill.data.format import Format
from hf_distill.data.sources.lists import Cell, by_rule
from hf_distill.data.sources.rows import (
    Member,
    RowReader,
    columns_of,
    how_many,
    list_of,
    name_of,
    named,
    positives_rule,
    refuse_options,
    refuse_scored_list,
    start_reading,
)
from hf_distill.data.sources.stored import StoredTexts, TextTable
from hf_distill.data.tables.table import Place, Row, Table, Tables
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import DataArguments

_LISTS = {"query_id", "document_ids"}


def _is_lists(table: Table) -> bool:
    return set(table.columns) >= _LISTS


def _texts(tables: Tables, name: str) -> list[tuple[Table, str]]:
    """The tables with the texts of `name` (query or document), with the column of the text."""
    return [
        (table, column)
        for table in tables.tables
        if f"{name}_id" in table.columns and not _is_lists(table)
        for column in ("text", name)
        if column in table.columns
    ]


def _stored(
    name: str, table: Table, column: str, unused: Counter[str]
) -> Iterator[tuple[Place, str, str]]:
    """Place, id and text of each row that has an id."""
    for place, row in table.read():
        text_id, text = name_of(row.get(f"{name}_id"), table, place, f"{name}_id"), row.get(column)
        if not isinstance(text, str | None):
            raise InputError(
                f"{table.where(place)}: the column {column!r} holds a {type(text).__name__} "
                f"({text!r:.50}), but it must be text"
            )
        if text_id is None:
            unused[f"rows of {table.name} without {name}_id"] += 1
        else:
            yield place, text_id, text or ""


def _fits(tables: Tables, data: DataArguments) -> bool:
    return any(_is_lists(table) for table in tables.tables)


def _parsed(value: object, cell: Cell) -> list[object]:
    """A list, or what Python prints of one."""
    if isinstance(value, str):
        with suppress(ValueError, SyntaxError):  # refused below, as the text that it is
            value = ast.literal_eval(value)
    return list_of(value, cell.table, cell.place, cell.column)


def _read(tables: Tables, data: DataArguments) -> SourcePairs:
    reading = start_reading(
        tables,
        _is_lists,
        data,
        "has no table with query_id, document_ids and scores, which PyLate's lists have",
    )
    texts = {name: _texts(tables, name) for name in ("query", "document")}
    for name, found in texts.items():
        if not found:
            raise InputError(
                f"{named(tables)} no table has the texts of the column {name}_id"
                f"{'s' if name == 'document' else ''}; put one with the columns {name}_id and text "
                f"beside it ({columns_of(tables)})"
            )
    head = [
        _parsed(row.get("document_ids"), Cell(table, 0, "document_ids"))
        for table, _ in reading.parts
        for row in table.head()
    ]
    read_as = f"PyLate lists: {how_many(map(len, head), 'document')} a query, with scores"
    refuse_options(
        tables, data, read_as, "label_column", "score_column", "query_column", "document_column"
    )
    rule = positives_rule(data)
    if rule is None:
        raise refuse_scored_list(f"{named(tables)} {read_as}")

    queries, documents = (
        StoredTexts(
            [TextTable(table, partial(_stored, name, table, column)) for table, column in found],
            name,
            reading.unused,
        )
        for name, found in texts.items()
    )

    def reader(table: Table) -> RowReader:
        def members(place: Place, row: Row) -> Iterator[Member]:
            ids, scores = Cell(table, place, "document_ids"), Cell(table, place, "scores")
            names = [
                name_of(value, table, place, ids.column)
                for value in _parsed(row.get("document_ids"), ids)
            ]
            values = scores.scores(_parsed(row.get("scores"), scores), len(names), ids.column)
            query_id = name_of(row.get("query_id"), table, place, "query_id") or ""
            (query,) = queries.texts(queries.places([query_id]))
            found = documents.texts(documents.places([name or "" for name in names]))
            chosen = by_rule(values, rule)
            for name, document, score, best in zip(names, found, values, chosen, strict=True):
                if query is None or document is None:
                    reading.counts[f"unknown {'query' if query is None else 'document'}"] += 1
                    continue
                yield {
                    "query": query,
                    "document": document,
                    "query_id": query_id,
                    "document_id": name,
                    "score": score,
                    **({"grade": 1} if best else {"candidate": True}),
                }

        names = {"query": "query_id", "document": "document_ids"}
        return RowReader(names, frozenset((*_LISTS, "scores")), members)

    of_texts = tuple(table for found in texts.values() for table, _ in found)
    return replace(reading, beside=of_texts).pairs(read_as, reader, data, documents)


FORMAT = Format(_fits, _read)
