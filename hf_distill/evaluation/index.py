"""How large an index of the embeddings is at each precision, and how much nDCG@10 that precision
loses.
"""

from __future__ import annotations

import numpy as np
import torch
from sentence_transformers.util.quantization import quantize_embeddings

from hf_distill.compute.search import search
from hf_distill.evaluation.intervals import estimate, mean
from hf_distill.evaluation.results import IndexRow, IndexSize
from hf_distill.evaluation.tasks import RetrievalTask

K, CANDIDATES = 10, 40
"""Documents per query, and how many a binary index proposes for rescoring: four times as many
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


def _cut(embeddings: np.ndarray, dimensions: int, similarity: str) -> np.ndarray:
    """The first `dimensions` of embeddings (n, d), scaled to unit length again if they are compared
    by cosine.
    """
    cut = embeddings[:, :dimensions]
    if similarity != "cosine":
        return cut
    lengths: np.ndarray = np.linalg.norm(cut, axis=1, keepdims=True)
    return np.asarray(cut / np.maximum(lengths, 1e-12))


def index_size(
    task: RetrievalTask, queries: np.ndarray, documents: np.ndarray, similarity: str, seed: int
) -> IndexSize:
    """Bytes per million documents and nDCG@10 of an index at float32, float16, int8, binary, and
    with fewer dimensions.

    The queries stay in float32; only the row `binary` compares signs with signs. `binary_documents`
    are the same bits, as -1 and 1, times the queries. int8 is `quantize_embeddings` with the
    corpus' own ranges, decoded where it is compared. The rescored binary index proposes
    `CANDIDATES` documents by signs, which are scored again by their int8 codes; these may stay on
    disk.

    Args:
        task: The task.
        queries: (Q, d) floats.
        documents: (N, d) floats.
        similarity: What they are ranked by. Only `cosine` and `dot` are measured.
        seed: Seeds the bootstrap.
    """
    d = documents.shape[1]
    if similarity not in ("cosine", "dot"):
        reason = (
            f"the embeddings are compared by {similarity}, but int8 and binary codes only replace "
            "products"
        )
        return IndexSize(d, {}, reason)
    queries, documents = (np.asarray(x, dtype=np.float32) for x in (queries, documents))
    ranges = np.vstack([documents.min(axis=0), documents.max(axis=0)])
    codes = np.asarray(quantize_embeddings(documents, "int8", ranges=ranges))
    steps = (ranges[1] - ranges[0]) / 255
    # <q, start + step x (code + 128.5)>: the first part and the offset are the same for every
    # document and do not change the order.
    scaled = (queries * np.where(steps == 0, 1, steps)).astype(np.float32)
    bits = np.asarray(quantize_embeddings(documents, "ubinary"))
    signs = np.where(documents > 0, np.float32(1), np.float32(-1))
    _, candidates = hamming_search(queries, bits, CANDIDATES)
    half, quarter = max(1, d // 2), max(1, d // 4)

    def search_first(dimensions: int) -> tuple[np.ndarray, np.ndarray]:
        left, right = (_cut(x, dimensions, similarity) for x in (queries, documents))
        return search(left, right, K)

    answers = {
        "float32": (4 * d, search(queries, documents, K)),
        "float16": (2 * d, search(queries, documents.astype(np.float16), K)),
        "int8": (d, search(scaled, codes, K)),
        "binary": (bits.shape[1], hamming_search(queries, bits, K)),
        "binary_documents": (bits.shape[1], search(queries, signs, K)),
        "binary_rescored": (bits.shape[1], _rescored(scaled, codes, candidates)),
        "float32_half": (4 * half, search_first(half)),
        "float32_quarter": (4 * quarter, search_first(quarter)),
    }
    ndcg = {name: task.ndcg(answer) for name, (_, answer) in answers.items()}
    rows = {
        name: IndexRow(
            bytes_per_million=1_000_000 * width,
            ndcg=estimate(mean, [ndcg[name]], seed),
            minus_float32=estimate(mean, [ndcg[name] - ndcg["float32"]], seed),
            rescoring_bytes_per_million=1_000_000 * d if name == "binary_rescored" else None,
        )
        for name, (width, _) in answers.items()
    }
    return IndexSize(d, rows)
