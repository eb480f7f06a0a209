"""Haystack's embedders of texts and of documents, of version 3 on. `prefix` is the prompt."""

from __future__ import annotations

from typing import Any

from haystack import Document
from haystack.utils import ComponentDevice
from haystack_integrations.components.embedders.sentence_transformers import (
    SentenceTransformersDocumentEmbedder,
    SentenceTransformersTextEmbedder,
)


def embed(student: dict[str, Any], queries: list[str], documents: list[str]) -> tuple[Any, Any]:
    """Embeddings of queries and of documents, a row a text."""
    common: dict[str, Any] = {
        "model": student["folder"],
        "device": ComponentDevice.from_str("cpu"),
        "progress_bar": False,
    }
    ask = SentenceTransformersTextEmbedder(**common, prefix=student["prompts"]["query"])
    read = SentenceTransformersDocumentEmbedder(**common, prefix=student["prompts"]["document"])
    ask.warm_up()
    read.warm_up()
    rows = [ask.run(text=text)["embedding"] for text in queries]
    # An id of its own for each: the same text twice would be the same document.
    found = read.run([Document(id=str(i), content=text) for i, text in enumerate(documents)])
    return rows, [document.embedding for document in found["documents"]]
