"""sentence-transformers, also versions before 5, which have no `encode_query`."""

from __future__ import annotations

from typing import Any

from sentence_transformers import SentenceTransformer


def embed(student: dict[str, Any], queries: list[str], documents: list[str]) -> tuple[Any, Any]:
    """Embeddings of queries and of documents, a row a text."""
    model = SentenceTransformer(student["folder"], device="cpu")
    prompts = model.prompts or {}

    def encode(texts: list[str], kind: str) -> Any:
        if hasattr(model, f"encode_{kind}"):
            return getattr(model, f"encode_{kind}")(texts, show_progress_bar=False)
        name = kind if kind in prompts else None
        return model.encode(texts, prompt_name=name, show_progress_bar=False)

    return encode(queries, "query"), encode(documents, "document")
