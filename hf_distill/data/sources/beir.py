"""A BEIR folder (Thakur et al., 2021) or data set: corpus, queries and judgements with ids.

The judgements of `dev` are for validation. A judgement of a document that the corpus does not hold
is a row without a document: it is no pair, but a retrieval task counts it, because no system can
find that document.
"""

from __future__ import annotations

from hf_distill.data.collection import SourcePairs
from hf_distill.data.format import Format
from hf_distill.data.sources.id_tables import role_of, shape_of, words_of
from hf_distill.data.sources.judged import pairs_of
from hf_distill.data.tables.table import Tables
from hf_distill.recipe.arguments import DataArguments


def _fits(tables: Tables, data: DataArguments) -> bool:
    shapes = [(shape_of(table), role_of(table)) for table in tables.tables]
    corpus = any("corpus" in words_of(table) for table in tables.tables)
    judged = any(shape == "qrels" for shape, _ in shapes)
    return ("texts", "corpus") in shapes and (
        judged or (corpus and any(role == "queries" for _, role in shapes))
    )


def _read(tables: Tables, data: DataArguments) -> SourcePairs:
    return pairs_of(tables, data, "BEIR", "Queries, a corpus and judgements, in BEIR's form.")


FORMAT = Format(_fits, _read)
