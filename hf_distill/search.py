"""Exact search by blocks: memory is bounded by the block, not by the number of queries or documents."""

from __future__ import annotations

import numpy as np
import torch

from hf_distill.teachers import similarity

_QUERY_BLOCK, _DOCUMENT_BLOCK = 256, 65536


def search(queries: np.ndarray, documents: np.ndarray, depth: int, measure: str = "dot") -> tuple[np.ndarray, np.ndarray]:
    """The `depth` documents most similar to each query, exactly.

    Args:
        queries: (Q, d) floats.
        documents: (N, d) floats; may be memory-mapped.
        depth: How many documents for a query, at most N.
        measure: What similarity (see `hf_distill.teachers.SCALES`).

    Returns:
        Scores (Q, k) float32, descending, and document indices (Q, k) int64; equal scores by ascending index.
    """
    depth = min(depth, len(documents))
    scores = torch.empty(len(queries), depth)
    indices = torch.empty(len(queries), depth, dtype=torch.int64)
    for start in range(0, len(queries), _QUERY_BLOCK):
        block = torch.from_numpy(np.asarray(queries[start : start + _QUERY_BLOCK], dtype=np.float32))
        best_scores, best = torch.empty(len(block), 0), torch.empty(len(block), 0, dtype=torch.int64)
        for first in range(0, len(documents), _DOCUMENT_BLOCK):
            part = torch.from_numpy(np.asarray(documents[first : first + _DOCUMENT_BLOCK], dtype=np.float32))
            found = similarity(measure, block, part)
            top, places = found.topk(min(depth, len(part)), dim=1)
            best_scores, best = torch.cat([best_scores, top], 1), torch.cat([best, places + first], 1)
            order = best.argsort(dim=1)  # by index first, so that the stable sort by score keeps that order among ties
            best_scores, best = best_scores.gather(1, order), best.gather(1, order)
            order = best_scores.argsort(dim=1, descending=True, stable=True)[:, :depth]
            best_scores, best = best_scores.gather(1, order), best.gather(1, order)
        scores[start : start + len(block)], indices[start : start + len(block)] = best_scores, best
    return scores.numpy(), indices.numpy()
