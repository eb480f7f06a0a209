"""Exact search by blocks: memory is bounded by the block and the answer, not by the number of
documents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from hf_distill.compute.device import device_type
from hf_distill.errors import InputError

_QUERY_BLOCK, _DOCUMENT_BLOCK = 1024, {"cpu": 4096}
"""A tile of their similarities, 16 MB on a CPU, stays in its last cache until it has been looked
through.
"""
_GROUP = 64
"""Documents of a tile that are passed over together if the best of them is not good enough."""
_SPARE = 32
"""Documents beyond `depth` that are kept by their float32 similarity: what decides is computed more
exactly, for these only.
"""
_RESCORED = 16384


def _similarity(measure: str, queries: Tensor, documents: Tensor, out: Tensor) -> Tensor:
    """(n, m) similarities, in `out` where they are products; distances negated, without the
    cancellation of the product form.
    """
    if measure in ("cosine", "dot"):
        torch.mm(queries, documents.T, out=out)
        return out
    distances: Tensor = torch.cdist(
        queries, documents, p=_NORM[measure], compute_mode="donot_use_mm_for_euclid_dist"
    )
    return -distances


_NORM = {"euclidean": 2.0, "manhattan": 1.0}


def _exactly(measure: str, queries: Tensor, documents: Tensor) -> Tensor:
    """Similarities of broadcast rows (..., d), summed in float64 and rounded to float32: equal
    documents, equal scores.
    """
    left, right = queries.double(), documents.double()
    if measure in ("cosine", "dot"):
        return (left * right).sum(-1).float()
    distances: Tensor = torch.linalg.vector_norm(left - right, ord=_NORM[measure], dim=-1)
    return -distances.float()


def _block(rows: np.ndarray, start: int, stop: int) -> Tensor:
    return torch.from_numpy(np.asarray(rows[start:stop], dtype=np.float32))


@dataclass
class _Best:
    """The best documents so far of n queries: float32 similarities (n, w) and indices (n, w), and
    candidates not yet merged into them.
    """

    scores: Tensor
    indices: Tensor
    waiting: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    @classmethod
    def empty(cls, count: int, width: int, device: str) -> _Best:
        return cls(
            torch.full((count, width), -torch.inf, device=device),
            torch.full((count, width), -1, device=device),
        )

    def offer(self, found: Tensor, first: int) -> None:
        """Look through `found` (n, m), the similarities of documents `first` to `first + m`."""
        n, width = self.scores.shape
        if (
            self.indices[0, -1] < 0 or found.shape[1] % _GROUP
        ):  # the first tiles, while there is room, and the last
            scores, places = found.topk(min(width, found.shape[1]), dim=1)
            self._take(scores, places + first)
            return
        least = self.scores[:, -1]
        groups = found.view(n, -1, _GROUP)
        owner, group = (groups.amax(-1) > least[:, None]).nonzero(as_tuple=True)
        values = found.view(-1, _GROUP).index_select(
            0, owner * groups.shape[1] + group
        )  # the few groups that hold something
        row, column = (values > least[owner, None]).nonzero(as_tuple=True)
        self.waiting.append((owner[row], values[row, column], first + group[row] * _GROUP + column))
        if sum(len(part[0]) for part in self.waiting) * 2 > n * width:
            self.merge()

    def merge(self) -> None:
        """Take the waiting candidates in."""
        if not self.waiting:
            return
        n = len(self.scores)
        counts = [torch.bincount(owner, minlength=n) for owner, _values, _names in self.waiting]
        total = torch.stack(counts).sum(0)
        scores = self.scores.new_full((n, int(total.max())), -torch.inf)
        indices = self.indices.new_full(scores.shape, -1)
        before = torch.zeros_like(total)
        for (owner, values, names), count in zip(
            self.waiting, counts, strict=True
        ):  # owners ascend in each
            place = (
                torch.arange(len(owner), device=owner.device)
                + (before + count - count.cumsum(0))[owner]
            )
            scores[owner, place], indices[owner, place] = values, names
            before += count
        self.waiting = []
        self._take(scores, indices)

    def _take(self, scores: Tensor, indices: Tensor) -> None:
        self.scores, taken = torch.cat([self.scores, scores], 1).topk(self.scores.shape[1], dim=1)
        self.indices = torch.cat([self.indices, indices], 1).gather(1, taken)


def _by_hand(
    query: Tensor, documents: np.ndarray, depth: int, measure: str
) -> tuple[Tensor, Tensor]:
    """The answer to one query, of whose candidates too many are nearly equal: every document is
    scored exactly.
    """
    scores, indices = torch.empty(0), torch.empty(0, dtype=torch.int64)
    for first in range(0, len(documents), _RESCORED):
        part = _exactly(measure, query, _block(documents, first, first + _RESCORED))
        scores, indices = (
            torch.cat([scores, part]),
            torch.cat([indices, torch.arange(first, first + len(part))]),
        )
        order = scores.argsort(descending=True, stable=True)[:depth]
        scores, indices = scores[order], indices[order]
    return scores, indices


def _settle(
    best_scores: Tensor,
    best: Tensor,
    queries: Tensor,
    documents: np.ndarray,
    longest: float,
    depth: int,
    measure: str,
) -> tuple[Tensor, Tensor]:
    """The first `depth` of the candidates (n, w) by their exact scores, then by index."""
    d = queries.shape[1]
    # What a float32 sum of d products can be wrong by (Higham, 2002, section 3.1), on both sides of
    # the comparison.
    if measure in ("cosine", "dot"):
        doubt = 2 * (d + 2) * 2.0**-24 * longest * queries.norm(dim=1, keepdim=True)
    else:
        doubt = 2 * (d + 2) * 2.0**-24 * best_scores[:, depth - 1 : depth].abs()
    least = best_scores[:, depth - 1 : depth] - doubt
    wanted = best_scores >= least
    scores = torch.full_like(best_scores, -torch.inf)
    row, column = wanted.nonzero(as_tuple=True)
    for start in range(0, len(row), _RESCORED):
        r, c = row[start : start + _RESCORED], column[start : start + _RESCORED]
        names, where = torch.unique(
            best[r, c], return_inverse=True
        )  # sorted: a file is read in its own order
        vectors = torch.from_numpy(np.asarray(documents[names.numpy()], dtype=np.float32))
        scores[r, c] = _exactly(measure, queries.index_select(0, r), vectors.index_select(0, where))
    order = best.argsort(
        dim=1
    )  # by index first, so that the stable sort by score keeps that order among ties
    scores, indices = scores.gather(1, order), best.gather(1, order)
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :depth]
    scores, indices = scores.gather(1, order), indices.gather(1, order)
    if best.shape[1] < len(documents):
        for i in (
            wanted.all(dim=1).nonzero()[:, 0].tolist()
        ):  # something just as good may have been cut
            scores[i], indices[i] = _by_hand(queries[i], documents, depth, measure)
    return scores, indices


def search(
    queries: np.ndarray,
    documents: np.ndarray,
    depth: int,
    measure: str = "dot",
    device: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The `depth` documents most similar to each query, exactly.

    The scores are sums in float64 rounded to float32 and decide the order, so that neither blocks
    nor threads nor the device show in the answer: equal documents have equal scores, also at the
        cut.

    Args:
        queries: (Q, d) floats.
        documents: (N, d) floats; any array that gives slices and rows, e.g. memory-mapped, is read
            a block at a time. To break ties by document id, have the rows in the order of their
            ids.
        depth: How many documents for a query, at most N.
        measure: What similarity (see `hf_distill.teachers.base.SCALES`).
        device: Where to compute; by default the accelerator, if there is one.

    Returns:
        Scores (Q, k) float32, descending, and document indices (Q, k) int64; equal scores by
        ascending index.

    Raises:
        InputError: A document's embedding is NaN or infinite.
    """
    device = device or device_type()
    depth = min(depth, len(documents))
    if not depth or not len(queries):
        return np.empty((len(queries), depth), dtype=np.float32), np.empty(
            (len(queries), depth), dtype=np.int64
        )
    width = min(depth + _SPARE, len(documents))
    blocks = [
        _block(queries, start, start + _QUERY_BLOCK)
        for start in range(0, len(queries), _QUERY_BLOCK)
    ]
    bests = [_Best.empty(len(block), width, device) for block in blocks]
    longest, step = 0.0, _DOCUMENT_BLOCK.get(device.split(":")[0], 65536)
    buffers: dict[tuple[int, int], Tensor] = {}
    for first in range(0, len(documents), step):
        part = _block(documents, first, first + step).to(device)
        norm = float(part.norm(dim=1).max())
        if not math.isfinite(norm):
            raise InputError(
                f"an embedding among documents {first} to {first + len(part) - 1} is NaN or infinite; it cannot be searched"
            )
        longest = max(longest, norm)
        for block, best in zip(blocks, bests, strict=True):
            buffer = buffers.get((len(block), len(part)))
            if (
                buffer is None
            ):  # one for each size, filled again and again: fresh memory costs as much as a third of the product
                buffer = buffers[len(block), len(part)] = torch.empty(
                    len(block), len(part), device=device
                )
            best.offer(_similarity(measure, block.to(device), part, buffer), first)
    scores, indices = (
        torch.empty(len(queries), depth),
        torch.empty(len(queries), depth, dtype=torch.int64),
    )
    for i, (block, best) in enumerate(zip(blocks, bests, strict=True)):
        best.merge()
        rows = slice(i * _QUERY_BLOCK, (i + 1) * _QUERY_BLOCK)
        scores[rows], indices[rows] = _settle(
            best.scores.cpu(), best.indices.cpu(), block, documents, longest, depth, measure
        )
    return scores.numpy(), indices.numpy()
