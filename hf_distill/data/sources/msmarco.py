"""MS MARCO's files: collection, queries, judgements, triples of texts or ids, and TREC runs, in any
selection. Tables are told apart by their content, see `hf_distill.data.sources.id_tables.shape_of`.
"""

from __future__ import annotations

from hf_distill.data.collection import SourcePairs
from hf_distill.data.format import Format
from hf_distill.data.sources.id_tables import shape_of
from hf_distill.data.sources.judged import pairs_of
from hf_distill.data.tables.table import Tables
from hf_distill.recipe.arguments import DataArguments


def _fits(tables: Tables, data: DataArguments) -> bool:
    named = data.query_column or data.document_column
    return not named and any(
        shape_of(table) not in (None, "texts", "lines", "documents") for table in tables.tables
    )


def _read(tables: Tables, data: DataArguments) -> SourcePairs:
    return pairs_of(
        tables, data, "MS MARCO", "Queries and passages, in the form of MS MARCO's files."
    )


FORMAT = Format(_fits, _read)
