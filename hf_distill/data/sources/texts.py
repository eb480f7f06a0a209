"""Texts without queries. Nothing can be trained on them alone yet, so they are refused before any
work.
"""

from __future__ import annotations

from hf_distill.data.collection import SourcePairs
from hf_distill.data.format import Format
from hf_distill.data.sources.rows import named, text_columns
from hf_distill.data.tables.table import Table, Tables
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import DataArguments

TEXT_NAMES = ("text", "document", "passage", "content", "contents", "sentence", "body")


def _column(table: Table, data: DataArguments) -> str | None:
    """The column of texts, if it is the only one that could be a query or a document."""
    if data.query_column is not None and data.query_column == data.document_column:
        return data.query_column if data.query_column in table.columns else None
    if data.query_column or data.document_column or text_columns(table, data) is not None:
        return None
    if len(table.columns) == 1:
        return table.columns[0]
    there = [column for column in table.columns if column.lower() in TEXT_NAMES]
    long = [
        column
        for column in table.columns
        if any(isinstance(v := row.get(column), str) and " " in v.strip() for row in table.head())
    ]
    return there[0] if len(there) == 1 and long in ([], there) else None


def _fits(tables: Tables, data: DataArguments) -> bool:
    return bool(tables.tables) and all(_column(table, data) for table in tables.tables)


def _read(tables: Tables, data: DataArguments) -> SourcePairs:
    column = next((c for table in tables.tables if (c := _column(table, data))), None)
    what = f"the column {column!r} of " if column else ""
    raise InputError(
        f"{named(tables)} {what}{tables.name} holds texts without queries, and training needs "
        "pairs of a query and a document; add a column of queries, and name both columns with "
        "--query_column and --document_column"
    )


FORMAT = Format(_fits, _read)
