"""Infinity's engine, with PyTorch on the CPU, as its server runs it. It has no prompts, so they go
before the texts.
"""

from __future__ import annotations

import asyncio
from typing import Any

from infinity_emb import AsyncEmbeddingEngine, EngineArgs


def embed(student: dict[str, Any], queries: list[str], documents: list[str]) -> tuple[Any, Any]:
    """Embeddings of queries and of documents, a row a text."""
    engine = AsyncEmbeddingEngine.from_args(
        EngineArgs(
            model_name_or_path=student["folder"],
            engine="torch",
            device="cpu",
            dtype="float32",
            bettertransformer=False,  # it does not know every backbone
            compile=False,
            model_warmup=False,
        )
    )

    async def rows() -> list[Any]:
        parts: list[Any] = []
        async with engine:
            for kind, texts in (("query", queries), ("document", documents)):
                prompted = [student["prompts"][kind] + text for text in texts]
                embeddings, _tokens = await engine.embed(sentences=prompted)
                parts.append(embeddings)
        return parts

    of_queries, of_documents = asyncio.run(rows())
    return of_queries, of_documents
