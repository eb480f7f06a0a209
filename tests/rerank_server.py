"""Rerankers on loopback that ask for, and answer, what each real server does: its routes, its own
fields, and its refusal of a request in another form.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable
from typing import Any

MODEL = "tiny-reranker"

Reply = tuple[int, bytes]


def logit(query: str, document: str) -> float:
    """What every server here thinks of a pair: a number from -6 to 6."""
    return zlib.crc32(f"{query}\0{document}".encode()) / 2**32 * 12 - 6


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def said(status: int, **body: Any) -> Reply:
    return status, json.dumps(body).encode()


def ranked(query: str, documents: list[str], raw: bool = False) -> list[tuple[int, float]]:
    """Index and score of each document, the best first."""
    logits = [logit(query, document) for document in documents]
    scores = enumerate(logits if raw else map(sigmoid, logits))
    return sorted(scores, key=lambda item: -item[1])


def missing(request: dict[str, Any], *names: str) -> str | None:
    return next((name for name in names if name not in request), None)


def tei(path: str, request: dict[str, Any]) -> Reply:
    """text-embeddings-inference: another form, a bare list, and as many texts as it is told."""
    if path != "/rerank":
        return 404, b""
    if name := missing(request, "query", "texts"):
        what = f"Failed to deserialize the JSON body: missing field `{name}` at line 1 column 99"
        return 422, what.encode()
    if len(request["texts"]) > 32:
        return said(413, error="batch size > maximum allowed batch size 32", error_type="Batch")
    results = ranked(request["query"], request["texts"], request.get("raw_scores", False))
    return 200, json.dumps([{"index": i, "score": score} for i, score in results]).encode()


def vllm(path: str, request: dict[str, Any]) -> Reply:
    """vLLM: raw scores by `use_activation`, and the documents in any case."""
    if path not in ("/rerank", "/v1/rerank", "/v2/rerank"):
        return said(404, detail="Not Found")
    if name := missing(request, "query", "documents"):
        return said(400, error={"message": f"Field required: {name}", "code": 400})
    if request.get("model") != MODEL:
        return said(404, error={"message": f"The model `{request['model']}` does not exist."})
    documents = request["documents"]
    results = ranked(request["query"], documents, request.get("use_activation") is False)
    return said(
        200,
        id="rerank-0f",
        model=MODEL,
        usage={"prompt_tokens": 5 * len(documents), "total_tokens": 5 * len(documents)},
        results=[
            {"index": i, "document": {"text": documents[i]}, "relevance_score": score}
            for i, score in results[: request.get("top_n") or None]
        ],
    )


def infinity(path: str, request: dict[str, Any]) -> Reply:
    """Infinity: raw scores by `raw_scores`."""
    if path != "/rerank":
        return said(404, detail="Not Found")
    if name := missing(request, "query", "documents"):
        return said(422, detail=[{"type": "missing", "loc": ["body", name]}])
    documents = request["documents"]
    results = ranked(request["query"], documents, request.get("raw_scores", False))
    return said(
        200,
        object="rerank",
        model=MODEL,
        results=[{"relevance_score": score, "index": i, "document": None} for i, score in results],
        usage={"prompt_tokens": 5 * len(documents), "total_tokens": 5 * len(documents)},
        id="infinity-0f",
        created=0,
    )


def cohere(version: str) -> Callable[[str, dict[str, Any]], Reply]:
    """Cohere's API: search units, and no raw scores."""

    def reply(path: str, request: dict[str, Any]) -> Reply:
        if path != f"/{version}/rerank":
            return said(404, message="not found")
        if name := missing(request, "model", "query", "documents"):
            return said(400, id="0f", message=f"invalid request: {name} is required")
        results = ranked(request["query"], request["documents"])
        return said(
            200,
            id="0f",
            results=[{"index": i, "relevance_score": score} for i, score in results],
            meta={"api_version": {"version": version[1]}, "billed_units": {"search_units": 1}},
        )

    return reply


def jina(path: str, request: dict[str, Any]) -> Reply:
    """Jina's API: the documents unless they are not wanted, and no raw scores."""
    if path != "/v1/rerank":
        return said(404, detail="Not Found")
    if name := missing(request, "model", "query", "documents"):
        return said(422, detail=f"{name} is required")
    documents = request["documents"]
    results: list[dict[str, Any]] = [
        {"index": i, "relevance_score": score} for i, score in ranked(request["query"], documents)
    ]
    if request.get("return_documents", True):
        results = [{**one, "document": {"text": documents[one["index"]]}} for one in results]
    usage = {"total_tokens": 5 * len(documents)}
    return said(200, model=MODEL, object="list", usage=usage, results=results)


def logits(path: str, request: dict[str, Any]) -> Reply:
    """A server in Cohere's form that never applies a sigmoid, as llama.cpp."""
    if "documents" not in request:
        return said(400, error="documents must be there")
    results = ranked(request["query"], request["documents"], raw=True)
    return said(200, results=[{"index": i, "relevance_score": score} for i, score in results])
