"""LlamaIndex's `HuggingFaceEmbedding`. Its instructions are the prompts."""

from __future__ import annotations

from typing import Any

from llama_index.embeddings.huggingface import HuggingFaceEmbedding


def embed(student: dict[str, Any], queries: list[str], documents: list[str]) -> tuple[Any, Any]:
    """Embeddings of queries and of documents, a row a text."""
    model = HuggingFaceEmbedding(
        model_name=student["folder"],
        device="cpu",
        query_instruction=student["prompts"]["query"],
        text_instruction=student["prompts"]["document"],
    )
    rows = [model.get_query_embedding(text) for text in queries]
    return rows, model.get_text_embedding_batch(documents)
