"""Exact search by blocks. Memory holds a block of documents, a tile of similarities and the best
documents of each query, however many documents there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from hf_distill.compute.device import device_type, exact_products
from hf_distill.errors import InputError

_QUERIES, _DOCUMENTS = 512, 8192
"""Rows and columns of a tile of similarities: 16 MB, filled again and again."""

_GROUP = 16
"""Columns of a tile that are skipped together if the greatest of them is not good enough."""

_SPARE = 32
"""Documents beyond `depth` that are kept by their float32 similarity until exact scores decide."""

_EXACT = 4096
"""Rows that are scored exactly at a time."""

_NORM = {"euclidean": 2.0, "manhattan": 1.0}


def _similarities(similarity: str, queries: Tensor, documents: Tensor, tile: Tensor) -> Tensor:
    """(n, m) float32, in `tile` if they are products. Distances are negated, and computed without
    the cancellation of the product form.
    """
    if similarity not in _NORM:
        out = tile[: len(queries) * len(documents)].view(len(queries), len(documents))
        return torch.mm(queries, documents.T, out=out)
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cdist(queries, documents, p=_NORM[similarity], compute_mode=mode).neg_()


def _exactly(similarity: str, queries: Tensor, documents: Tensor) -> Tensor:
    """Similarities of broadcast rows (..., d), summed in float64 and rounded to float32, so that
    equal documents have equal scores.
    """
    left, right = queries.double(), documents.double()
    if similarity not in _NORM:
        return (left * right).sum(-1).float()
    distances: Tensor = torch.linalg.vector_norm(left - right, ord=_NORM[similarity], dim=-1)
    return -distances.float()


def _rows(vectors: np.ndarray, which: slice | np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(vectors[which], dtype=np.float32))


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))


def _check_finite(vectors: Tensor, what: str) -> None:
    if not math.isfinite(float(vectors.norm(dim=1).max())):
        raise InputError(f"an embedding among {what} is NaN or infinite, so it cannot be searched")


def _top(found: Tensor, width: int, least: Tensor) -> tuple[Tensor, Tensor]:
    """Values and columns of the `width` greatest in each row of `found` (n, m); those that are not
    above `least` (n,) may be missing.

    Only groups of columns whose maximum is above `least` hold such a value, and of these only the
    `width` groups with the greatest maxima.
    """
    m = found.shape[1]
    groups = m // _GROUP
    # Group j holds the columns j, j + groups, j + 2 * groups, ...; the last few belong to none.
    maxima = found[:, : groups * _GROUP].view(len(found), _GROUP, groups).amax(1)
    wanted = min(width, groups)
    if found.device.type == "cpu":  # an accelerator would wait for the number
        wanted = min(width, int((maxima > least[:, None]).sum(1).max()))
    best = maxima.topk(wanted, sorted=False).indices
    members = [best + groups * i for i in range(_GROUP)]
    rest = torch.arange(groups * _GROUP, m, device=found.device).expand(len(found), -1)
    columns = torch.cat([*members, rest], dim=1)
    return found.gather(1, columns), columns


def _candidates(
    queries: Tensor, documents: np.ndarray, width: int, similarity: str, device: str
) -> tuple[Tensor, Tensor, float]:
    """The `width` best documents of each query by their float32 similarities: these, descending,
    and their indices (both (n, width), on the CPU), and the length of the longest document.
    """
    scores = torch.full((len(queries), width), -torch.inf, device=device)
    indices = torch.full((len(queries), width), -1, device=device)
    tile = torch.empty(_QUERIES * _DOCUMENTS, device=device)
    longest, queries = torch.zeros((), device=device), queries.to(device)
    for block in _slices(len(documents), _DOCUMENTS):
        part = _rows(documents, block).to(device)
        longest = torch.maximum(longest, part.norm(dim=1).max())
        for rows in _slices(len(queries), _QUERIES):
            found = _similarities(similarity, queries[rows], part, tile)
            values, columns = _top(found, width, scores[rows, -1])
            numbers = torch.cat([indices[rows], columns + block.start], dim=1)
            scores[rows], taken = torch.cat([scores[rows], values], dim=1).topk(width)
            indices[rows] = numbers.gather(1, taken)
    if not math.isfinite(length := float(longest)):
        for block in _slices(len(documents), _DOCUMENTS):
            _check_finite(_rows(documents, block), f"the documents from {block.start} on")
    return scores.cpu(), indices.cpu(), length


def _ranked(scores: Tensor, indices: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """The `depth` best of each row of `scores` and `indices` (n, w): by score, then by index."""
    order = indices.argsort(dim=1)
    scores, indices = scores.gather(1, order), indices.gather(1, order)
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :depth]
    return scores.gather(1, order), indices.gather(1, order)


def _among_all(
    query: Tensor, documents: np.ndarray, depth: int, similarity: str
) -> tuple[Tensor, Tensor]:
    """The answer (1, depth) to one query (1, d), with every document scored exactly."""
    scores, indices = torch.empty(1, 0), torch.empty(1, 0, dtype=torch.int64)
    for block in _slices(len(documents), _DOCUMENTS):
        part = _exactly(similarity, query, _rows(documents, block))
        numbers = block.start + torch.arange(len(part))
        scores = torch.cat([scores, part[None]], dim=1)
        indices = torch.cat([indices, numbers[None]], dim=1)
        scores, indices = _ranked(scores, indices, depth)
    return scores, indices


def search(
    queries: np.ndarray,
    documents: np.ndarray,
    depth: int,
    similarity: str = "dot",
    device: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The `depth` documents most similar to each query, exactly.

    Scores are summed in float64, rounded to float32, and decide the order. Blocks, threads and the
    device do not change the answer, and equal documents have equal scores.

    Args:
        queries: (Q, d) floats.
        documents: (N, d) floats: any array that gives slices and rows, e.g. a memory-mapped one. To
            break ties by document id, sort the rows by id.
        depth: How many documents for each query, at most N.
        similarity: A key of `hf_distill.teachers.base.SCALES`. For `cosine`, rows are L2-normalised
            already.
        device: Where to compute; by default the accelerator, if there is one.

    Returns:
        Scores (Q, k) float32, descending, and document indices (Q, k) int64; equal scores by
        ascending index.

    Raises:
        InputError: An embedding is NaN or infinite.
    """
    depth, width = min(depth, len(documents)), min(depth + _SPARE, len(documents))
    answer = torch.empty(len(queries), depth), torch.empty(len(queries), depth, dtype=torch.int64)
    if not answer[0].numel():
        return answer[0].numpy(), answer[1].numpy()
    asked = _rows(queries, slice(None))
    _check_finite(asked, "the queries")
    with exact_products():
        scores, indices, longest = _candidates(
            asked, documents, width, similarity, device or device_type()
        )
    for rows in _slices(len(asked), max(1, _EXACT // width)):
        vectors = _rows(documents, indices[rows].flatten().numpy())
        exact = _exactly(similarity, asked[rows, None], vectors.view(-1, width, asked.shape[1]))
        answer[0][rows], answer[1][rows] = _ranked(exact, indices[rows], depth)
    if width < len(documents):
        # The most that a float32 sum of d products can be off (Higham, 2002, section 3.1), twice:
        # once for the last document that was kept and once for one that was not.
        least = scores[:, depth - 1]
        size = least.abs() if similarity in _NORM else longest * asked.norm(dim=1)
        doubt = 2 * (asked.shape[1] + 2) * 2.0**-24 * size
        for i in (scores[:, -1] >= least - doubt).nonzero().flatten().tolist():
            # All candidates are nearly equal, so an equally good document may be missing.
            answer[0][i : i + 1], answer[1][i : i + 1] = _among_all(
                asked[i : i + 1], documents, depth, similarity
            )
    return answer[0].numpy(), answer[1].numpy()
