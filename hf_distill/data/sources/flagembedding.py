"""FlagEmbedding's JSONL: `query`, `pos`, `neg`, and optionally `pos_scores` and `neg_scores`.

Each text of `pos` is relevant. `neg` was mined, and nobody judged it: candidates.
"""

from __future__ import annotations

from collections.abc import Iterator

from hf_distill.data.collection import SourcePairs
from hf_distill.data.format import Format
from hf_distill.data.sources.lists import Cell, listed
from hf_distill.data.sources.rows import (
    Member,
    RowReader,
    how_many,
    list_of,
    refuse_options,
    start_reading,
)
from hf_distill.data.tables.table import Place, Row, Table, Tables
from hf_distill.recipe.arguments import DataArguments


def _names(data: DataArguments) -> tuple[str, str]:
    return data.query_column or "query", data.document_column or "pos"


def _has_columns(table: Table, data: DataArguments) -> bool:
    return set(_names(data)) <= set(table.columns)


def _fits(tables: Tables, data: DataArguments) -> bool:
    # Texts in `pos` and `neg` are triplets. One text among lists is a mistake, and is refused.
    return _names(data)[1] == "pos" and any(
        _has_columns(table, data)
        and any(isinstance(row.get("pos"), (list, tuple)) for row in table.head())
        for table in tables.tables
    )


def _read(tables: Tables, data: DataArguments) -> SourcePairs:
    query, positives = _names(data)
    reading = start_reading(
        tables,
        lambda table: _has_columns(table, data),
        data,
        f"has no table with the columns {query} and {positives}, which FlagEmbedding's lists have",
    )
    head = [row for table, _ in reading.parts for row in table.head()]
    sizes = {
        one: how_many((len(v) for row in head if isinstance(v := row.get(column), list)), one)
        for column, one in ((positives, "positive"), ("neg", "negative"))
    }
    scored = any(row.get("pos_scores") or row.get("neg_scores") for row in head)
    read_as = f"FlagEmbedding lists: {sizes['positive']} and {sizes['negative']} a query" + (
        ", with scores" if scored else ""
    )
    refuse_options(tables, data, read_as, "label_column", "score_column", "positives")

    def reader(table: Table) -> RowReader:
        def members(place: Place, row: Row) -> Iterator[Member]:
            own = {"query": row.get(query)}
            pos, neg = (list_of(row.get(c), table, place, c) for c in (positives, "neg"))
            scores = (
                Cell(table, place, c).scores(list_of(row.get(c), table, place, c), len(texts), of)
                for c, texts, of in (("pos_scores", pos, positives), ("neg_scores", neg, "neg"))
            )
            yield from listed(pos or [None], next(scores) or [None], **own, grade=1)
            yield from listed(neg, next(scores), **own, candidate=True)

        columns = frozenset({query, positives, "neg", "pos_scores", "neg_scores"})
        return RowReader({"query": query, "document": positives}, columns, members)

    return reading.pairs(read_as, reader, data)


FORMAT = Format(_fits, _read)
