"""Turns of conversations, one a row: `history` (the turns before, the oldest first), `query` (the
utterance), `rewrite` (the question that stands alone) and a document.

The query is the rewrite. What the student reads in its place, `student_query` says. Where nothing
names a group, the conversation is that of its first turn: all that begin alike are in one split.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hf_distill.data.collection import SourcePairs
from hf_distill.data.conversations import conversation_query
from hf_distill.data.format import Format
from hf_distill.data.near_duplicates import text_key
from hf_distill.data.sources.rows import (
    DOCUMENT_NAMES,
    HISTORY,
    REWRITE,
    Member,
    RowReader,
    list_of,
    name_of,
    named,
    refuse_options,
    start_reading,
    text_columns,
)
from hf_distill.data.tables.table import Place, Row, Table, Tables
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import CONVERSATION, UTTERANCE, DataArguments

_QUERY, _ID = "query", "id"


def of_turn(
    data: DataArguments, table: Table, place: Place, row: Row, columns: tuple[str, str]
) -> Any:
    """What the student reads of a turn, whose `columns` are history and utterance.

    Raises:
        InputError: The history is no list of texts.
    """
    history = list_of(row.get(columns[0]), table, place, columns[0])
    utterance = row.get(columns[1])
    for turn in history:
        if not isinstance(turn, str):
            raise InputError(
                f"{table.where(place)}: the column {columns[0]!r} holds a {type(turn).__name__} "
                f"({turn!r:.50}), but the turns before a query are texts"
            )
    if data.student_query == UTTERANCE or not isinstance(utterance, str) or not utterance.strip():
        return utterance
    return conversation_query(history, utterance)


def _has_turns(table: Table) -> bool:
    return {HISTORY, _QUERY, REWRITE} <= set(table.columns)


def _fits(tables: Tables, data: DataArguments) -> bool:
    return any(map(_has_turns, tables.tables))


def _read(tables: Tables, data: DataArguments) -> SourcePairs:
    reading = start_reading(
        tables, _has_turns, data, f"has no table with {HISTORY}, {_QUERY} and {REWRITE}"
    )
    refuse_options(
        tables, data, "turns", "query_column", "label_column", "score_column", "positives"
    )
    for table, _ in reading.parts:
        if text_columns(table, data) is None:
            raise InputError(
                f"{named(tables)} {table.name} holds turns without a document "
                f"({', '.join(DOCUMENT_NAMES)}), or with several; name its column with "
                f"--document_column. Turns that nothing answers are taught by their rewrites alone "
                f"with --document_column {REWRITE} --selection none"
            )
    return reading.pairs("turns of conversations", lambda table: _reader(table, data), data)


def _reader(table: Table, data: DataArguments) -> RowReader:
    document = (text_columns(table, data) or ("", ""))[1]
    turns = data.student_query in (CONVERSATION, UTTERANCE)
    used = {_QUERY, REWRITE, document, _ID, *([HISTORY] if turns else [])}

    def members(place: Place, row: Row) -> Iterator[Member]:
        first = [*list_of(row.get(HISTORY), table, place, HISTORY), row.get(_QUERY)][0]
        name = name_of(row.get(_ID), table, place, _ID)
        rewrite = row.get(REWRITE)
        member: Member = {
            "query": rewrite if rewrite and str(rewrite).strip() else row.get(_QUERY),
            "document": row.get(document),
            "query_id": name,
            "pair_id": name,
        }
        if data.group_column is None:
            member["group"] = text_key(str(first))
        if turns:
            member["student_query"] = of_turn(data, table, place, row, (HISTORY, _QUERY))
        yield member

    names = {"query": REWRITE, "document": document, "student_query": _QUERY}
    return RowReader(names, frozenset(used), members)


FORMAT = Format(_fits, _read)
