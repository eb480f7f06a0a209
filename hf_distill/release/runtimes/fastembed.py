"""fastembed, with the student as a custom model: pooling and normalisation are in the graph, so
fastembed does neither. It has no prompts, so they go before the texts.
"""

from __future__ import annotations

from typing import Any

from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType


def embed(student: dict[str, Any], queries: list[str], documents: list[str]) -> tuple[Any, Any]:
    """Embeddings of queries and of documents, a row a text."""
    TextEmbedding.add_custom_model(
        model="student",
        pooling=PoolingType.DISABLED,
        normalization=False,
        sources=ModelSource(hf="you/student"),  # never asked: the folder is named below
        dim=student["dimension"],
        model_file=student["file"],
    )
    model = TextEmbedding("student", specific_model_path=student["folder"])

    def rows(texts: list[str], kind: str) -> list[Any]:
        return list(model.embed([student["prompts"][kind] + text for text in texts]))

    return rows(queries, "query"), rows(documents, "document")
