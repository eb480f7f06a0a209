"""What teacher and student cost on this machine, measured side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

_DOCUMENTS, _QUERIES, _BATCH, _ROUNDS = 128, 24, 16, 3


def _documents_per_second(model: SentenceTransformer, documents: list[str]) -> float:
    start = time.perf_counter()
    model.encode(documents, batch_size=_BATCH, show_progress_bar=False)
    return len(documents) / (time.perf_counter() - start)


def _latency(model: SentenceTransformer, query: str) -> float:
    start = time.perf_counter()
    model.encode(query, show_progress_bar=False)
    return 1000 * (time.perf_counter() - start)


def efficiency(models: dict[str, SentenceTransformer], queries: Sequence[str], documents: Sequence[str]) -> dict[str, Any]:
    """Size, documents/s (median of three turns) and single-query latency of each model, as they are loaded, taking turns.

    Args:
        models: Name -> model.
        queries: Of these the first 24 are timed one by one.
        documents: Of these the first 128 are timed, in batches of 16.
    """
    sample = list(documents[:_DOCUMENTS])
    speeds: dict[str, list[float]] = {name: [] for name in models}
    latencies: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        model.encode(sample[:4], show_progress_bar=False)  # the first call pays for set-up
    for _ in range(_ROUNDS):
        for name, model in models.items():
            speeds[name].append(_documents_per_second(model, sample))
    for query in queries[:_QUERIES]:
        for name, model in models.items():
            latencies[name].append(_latency(model, query))
    result: dict[str, Any] = {
        "documents": len(sample),
        "queries": len(queries[:_QUERIES]),
        "device": str(next(iter(models.values())).device),
    }
    for name, model in models.items():
        parameters = list(model.parameters())
        result[name] = {
            "parameters": sum(p.numel() for p in parameters),
            "megabytes": round(sum(p.numel() * p.element_size() for p in parameters) / 1e6, 1),
            "dtype": str(parameters[0].dtype).removeprefix("torch."),
            "dimension": int(model.get_embedding_dimension() or 0),
            "documents_per_second": round(float(np.median(speeds[name])), 1),
            "query_ms_p50": round(float(np.percentile(latencies[name], 50)), 2),
            "query_ms_p95": round(float(np.percentile(latencies[name], 95)), 2),
        }
    return result
