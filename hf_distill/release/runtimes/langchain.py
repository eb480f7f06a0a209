"""LangChain's `HuggingFaceEmbeddings`, which gets the prompts as the card says."""

from __future__ import annotations

from typing import Any

from langchain_huggingface import HuggingFaceEmbeddings


def embed(student: dict[str, Any], queries: list[str], documents: list[str]) -> tuple[Any, Any]:
    """Embeddings of queries and of documents, a row a text."""
    prompts: dict[str, Any] = {}
    if any(student["prompts"].values()):
        prompts = {
            "encode_kwargs": {"prompt": student["prompts"]["document"]},
            "query_encode_kwargs": {"prompt": student["prompts"]["query"]},
        }
    embeddings = HuggingFaceEmbeddings(
        model_name=student["folder"], model_kwargs={"device": "cpu"}, **prompts
    )
    rows = [embeddings.embed_query(text) for text in queries]
    return rows, embeddings.embed_documents(documents)
