"""What an index of the embeddings weighs at each precision, and what that precision costs in
nDCG@10.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sentence_transformers.util.quantization import quantize_embeddings

from hf_distill.compute.search import search
from hf_distill.evaluation.intervals import (
    figure,
    mean,
)
from hf_distill.evaluation.retrieval import (
    NDCG,
    make_run,
    per_query,
)
from hf_distill.evaluation.tasks import RetrievalTask

K, CANDIDATES = 10, 40
"""Documents for a query, and how many a binary index proposes for rescoring: four times as many
(Yamada et al., 2021).
"""
_CELLS = 1 << 23


def hamming_search(
    queries: np.ndarray, documents: np.ndarray, depth: int
) -> tuple[np.ndarray, np.ndarray]:
    """The `depth` documents whose signs agree with the query's in most dimensions; ties by
    ascending index.

    Args:
        queries: (Q, d) floats, of which only the signs count (0 is negative, as in
            `quantize_embeddings`).
        documents: (N, d/8) uint8: the documents' signs, packed.
        depth: At most N.

    Returns:
        Agreements minus disagreements (Q, depth) float32, descending, and indices (Q, depth) int64.
    """
    n, d, depth = len(documents), queries.shape[1], min(depth, len(documents))
    signs = torch.from_numpy(np.unpackbits(documents, axis=1, count=d).astype(np.float32) * 2 - 1)
    order = torch.arange(n)
    scores, indices = (
        torch.empty(len(queries), depth),
        torch.empty(len(queries), depth, dtype=torch.int64),
    )
    step = max(1, _CELLS // n)
    for start in range(0, len(queries), step):
        wanted = torch.from_numpy(
            np.where(queries[start : start + step] > 0, 1, -1).astype(np.float32)
        )
        # Whole numbers, exact in float32: with the index below the unit, no two are equal.
        top = ((wanted @ signs.T).long() * n - order).topk(depth, dim=1).values
        indices[start : start + step] = -top % n
        scores[start : start + step] = -torch.div(-top, n, rounding_mode="floor")
    return scores.numpy(), indices.numpy()


def _rescored(
    queries: np.ndarray, codes: np.ndarray, candidates: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The best `K` of each query's `candidates` (Q, c), by the products with their `codes` (N, d);
    ties by index.
    """
    scores, indices = [], []
    for query, names in zip(queries, np.sort(candidates, axis=1), strict=True):
        values = codes[names].astype(np.float32) @ query
        best = np.argsort(-values, kind="stable")[:K]
        scores.append(values[best])
        indices.append(names[best])
    return np.array(scores), np.array(indices)


def _cut(embeddings: np.ndarray, dimensions: int, measure: str) -> np.ndarray:
    """The first `dimensions` of embeddings (n, d), of unit length again where they are compared by
    cosine.
    """
    cut = embeddings[:, :dimensions]
    return (
        cut / np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), 1e-12)
        if measure == "cosine"
        else cut
    )


def index_size(
    task: RetrievalTask, queries: np.ndarray, documents: np.ndarray, measure: str, seed: int
) -> dict[str, Any]:
    """Bytes per million documents and nDCG@10 of an index at float32, float16, int8, binary, and
    with fewer dimensions.

    The queries stay in float32, save for the binary index, which compares signs. int8 is
    `quantize_embeddings` with the corpus' own ranges, decoded where it is compared; the binary
    index proposes `CANDIDATES` documents that are scored again by their int8 codes, which may lie
    on disk.

    Args:
        task: The task.
        queries: (Q, d) floats.
        documents: (N, d) floats.
        measure: What they are ranked by; only `cosine` and `dot` are measured.
        seed: Seeds the bootstrap.

    Returns:
        `dimension` and, for each precision, `bytes_per_million`, `nDCG@10` and `minus_float32`
        (paired), both with interval, and for the rescored one `rescoring_bytes_per_million`; or
        `undefined`, with the reason.
    """
    if measure not in ("cosine", "dot"):
        return {
            "undefined": f"the embeddings are compared by {measure}; int8 and binary codes stand for products only"
        }
    queries, documents = (
        np.asarray(queries, dtype=np.float32),
        np.asarray(documents, dtype=np.float32),
    )
    d = documents.shape[1]
    ranges = np.vstack([documents.min(axis=0), documents.max(axis=0)])
    codes = np.asarray(quantize_embeddings(documents, "int8", ranges=ranges))
    steps = (ranges[1] - ranges[0]) / 255
    # <q, start + step x (code + 128.5)>: the first part and the offset are the same for every
    # document, and do not rank.
    scaled = (queries * np.where(steps == 0, 1, steps)).astype(np.float32)
    bits = np.asarray(quantize_embeddings(documents, "ubinary"))
    _, candidates = hamming_search(queries, bits, CANDIDATES)
    found = {
        "float32": (4 * d, search(queries, documents, K)),
        "float16": (2 * d, search(queries, documents.astype(np.float16), K)),
        "int8": (d, search(scaled, codes, K)),
        "binary": (bits.shape[1], hamming_search(queries, bits, K)),
        "binary, rescored by int8": (bits.shape[1], _rescored(scaled, codes, candidates)),
    }
    for name, dimensions in (("float32, first half", d // 2), ("float32, first quarter", d // 4)):
        answer = search(
            _cut(queries, max(1, dimensions), measure),
            _cut(documents, max(1, dimensions), measure),
            K,
        )
        found[name] = (4 * max(1, dimensions), answer)
    query_ids, document_ids = list(task.queries), list(task.documents)
    ndcg = {
        name: per_query(make_run(query_ids, document_ids, *answer), task.qrels, NDCG)["nDCG@10"]
        for name, (_, answer) in found.items()
    }
    result: dict[str, Any] = {"dimension": d}
    for name, (width, _) in found.items():
        result[name] = {
            "bytes_per_million": 1_000_000 * width,
            "nDCG@10": figure(mean, [ndcg[name]], seed),
            "minus_float32": figure(mean, [ndcg[name] - ndcg["float32"]], seed),
        }
    result["binary, rescored by int8"]["rescoring_bytes_per_million"] = 1_000_000 * d
    return result
