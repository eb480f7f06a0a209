"""PyLate's form for distillation: a table with `query_id`, `document_ids` and `scores`, beside
tables with the texts of `query_id` and of `document_id`: configurations of a data set, or files.

PyLate distils the scores and reads no document as the positive, and neither does the data set card
of `lightonai/ms-marco-en-bge` say that one is: `--positives` has to. Held-out queries search the
whole table of documents.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache

from hf_distill.data.collection import SourcePairs
from hf_distill.data.format import Format
from hf_distill.data.sources.by_id import TextsById
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

    @cache
    def by_id(name: str) -> TextsById:
        ((_, column), *_) = texts[name]
        return TextsById(
            [table for table, _ in texts[name]], f"{name}_id", lambda row: row.get(column)
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
            for name, score, chosen in zip(names, values, by_rule(values, rule), strict=True):
                if query_id not in by_id("query"):
                    reading.counts["unknown query"] += 1
                elif name is None or name not in by_id("document"):
                    reading.counts["unknown document"] += 1
                else:
                    yield {
                        "query": by_id("query")[query_id],
                        "document": by_id("document")[name],
                        "query_id": query_id,
                        "document_id": name,
                        "score": score,
                        **({"grade": 1} if chosen else {"candidate": True}),
                    }

        names = {"query": "query_id", "document": "document_ids"}
        return RowReader(names, frozenset((*_LISTS, "scores")), members)

    def corpus() -> Iterator[tuple[str, str | None]]:
        yield from by_id("document")

    of_texts = tuple(table for found in texts.values() for table, _ in found)
    return replace(reading, beside=of_texts).pairs(read_as, reader, data, corpus())


FORMAT = Format(_fits, _read)
