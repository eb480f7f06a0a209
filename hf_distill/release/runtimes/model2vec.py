"""model2vec, on what was exported for it. It has no prompts, so they go before the texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model2vec import StaticModel


def embed(student: dict[str, Any], queries: list[str], documents: list[str]) -> tuple[Any, Any]:
    """Embeddings of queries and of documents, a row a text."""
    model = StaticModel.from_pretrained(Path(student["folder"], student["file"]).parent)

    def rows(texts: list[str], kind: str) -> Any:
        return model.encode([student["prompts"][kind] + text for text in texts])

    return rows(queries, "query"), rows(documents, "document")
