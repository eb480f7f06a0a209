"""Signals for selection from the teacher's embeddings: how a pair's own document does for its query
among a pool of others.

Rank consistency is what E5 keeps its pairs by (Wang et al. 2022, arXiv:2212.03533: the passage is
among the teacher's top 2 of a million); a positive-aware margin is what NV-Retriever mines its hard
negatives by (Moreira et al. 2024, arXiv:2407.15831).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset, Features, Sequence, Value
from tqdm.auto import tqdm

from hf_distill.compute.device import device_type
from hf_distill.data.collection import map_rows
from hf_distill.run.folder import (
    RunFolder,
    fingerprint,
    main_makes,
    written_whole,
)
from hf_distill.scoring.scores import (
    EmbeddingTable,
    ScoredPairs,
)
from hf_distill.teachers.base import similarity

_PAIR_BLOCK, _DOCUMENT_BLOCK = 512, 8192


@dataclass(frozen=True)
class Signals:
    """For each of n pairs.

    Attributes:
        rank: (n,) int32, from 1: how many documents of the pool the teacher puts above the pair's
            own, plus 1. A document that the data pairs with the same query is not counted.
        margin: (n,) float32: score of the own document minus that of the best other one; NaN if the
            pool has no other.
        negatives: (n, k) int64: the best other documents, best first, each as the index of a pair
            that holds it; -1 where there is none.
        negative_scores: (n, k) float32: their scores; NaN where there is none.
        pool: How many documents the pool has.
    """

    rank: np.ndarray
    margin: np.ndarray
    negatives: np.ndarray
    negative_scores: np.ndarray
    pool: int


def document_pool(documents: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Indices (m,) int64 of pairs that hold each unique one of `documents` (n,) first; a seeded
    sample if there are more than `size`.
    """
    _, first = np.unique(documents, return_index=True)
    first = np.sort(first)
    if len(first) <= size:
        return first
    return np.sort(np.random.default_rng(seed).choice(first, size, replace=False))


def pool_signals(
    queries: np.ndarray,
    documents: np.ndarray,
    scores: np.ndarray,
    embeddings: EmbeddingTable,
    measure: str,
    pool: np.ndarray,
    k: int,
) -> Signals:
    """Compute the signals by exact search, in blocks of bounded memory.

    Args:
        queries, documents: Keys (n,) uint64 of the pairs' texts in `embeddings`.
        scores: The teacher's scores (n,) of the pairs.
        embeddings: The teacher's embeddings.
        measure: Its similarity.
        pool: As from `document_pool`.
        k: Best other documents to note.
    """
    count, k = len(queries), min(k, len(pool))
    device = device_type() if device_type() == "cuda" else "cpu"
    pool_keys = documents[pool]
    by_key = np.argsort(pool_keys)
    # A query's own documents, in all its pairs, are no others: cells (pair, place in the pool) to
    # leave out.
    order = np.argsort(queries, kind="stable")  # pairs of one query stand together
    rank = np.empty(count, dtype=np.int32)
    margin = np.full(count, np.nan, dtype=np.float32)
    negatives = np.full((count, k), -1, dtype=np.int64)
    negative_scores = np.full((count, k), np.nan, dtype=np.float32)

    def own_cells(rows: np.ndarray) -> Iterator[tuple[int, int]]:
        lows = np.searchsorted(queries, queries[rows], side="left", sorter=order)
        highs = np.searchsorted(queries, queries[rows], side="right", sorter=order)
        for place, (low, high) in enumerate(zip(lows, highs, strict=True)):
            for key in documents[order[low:high]]:
                found = np.searchsorted(pool_keys, key, sorter=by_key)
                if found < len(pool_keys) and pool_keys[by_key[found]] == key:
                    yield place, int(by_key[found])

    for start in tqdm(
        range(0, count, _PAIR_BLOCK),
        desc="Ranking in the pool",
        unit_scale=_PAIR_BLOCK,
        unit=" pairs",
        delay=3,
    ):
        rows = order[start : start + _PAIR_BLOCK]
        left = torch.from_numpy(embeddings.of_numbers(queries[rows])).to(device).float()
        own = torch.from_numpy(scores[rows]).to(device).float()
        cells = np.array(list(own_cells(rows)), dtype=np.int64).reshape(-1, 2)
        above = torch.zeros(len(rows), dtype=torch.int64, device=device)
        best = torch.full((len(rows), max(k, 1)), -torch.inf, device=device)
        best_places = torch.full((len(rows), max(k, 1)), -1, dtype=torch.int64, device=device)
        for first in range(0, len(pool), _DOCUMENT_BLOCK):
            part = (
                torch.from_numpy(embeddings.of_numbers(pool_keys[first : first + _DOCUMENT_BLOCK]))
                .to(device)
                .float()
            )
            found = similarity(measure, left, part)
            here = cells[(cells[:, 1] >= first) & (cells[:, 1] < first + len(part))]
            found[here[:, 0], here[:, 1] - first] = -torch.inf
            above += (found > own[:, None]).sum(dim=1)
            top, places = found.topk(min(best.shape[1], found.shape[1]), dim=1)
            merged, merged_places = (
                torch.cat([best, top], 1),
                torch.cat([best_places, places + first], 1),
            )
            best, chosen = merged.topk(best.shape[1], dim=1)
            best_places = merged_places.gather(1, chosen)
        known = torch.isfinite(best)
        rank[rows] = (above + 1).cpu().numpy()
        margin[rows] = torch.where(known[:, 0], own - best[:, 0], torch.nan).cpu().numpy()
        if k:
            chosen_places = torch.where(known, best_places, -1).cpu().numpy()
            negatives[rows] = np.where(chosen_places >= 0, pool[np.maximum(chosen_places, 0)], -1)
            negative_scores[rows] = torch.where(known, best, torch.nan).cpu().numpy()
    return Signals(rank, margin, negatives, negative_scores, len(pool))


def with_signals(
    scored: ScoredPairs, pool_size: int, k: int, seed: int, folder: RunFolder
) -> tuple[Dataset, str]:
    """The scored training pairs with `rank`, `margin`, `hard_negatives` (pair ids) and
    `hard_negative_scores`, and their fingerprint.

    The pool is the documents of the training pairs. A teacher without embeddings has no such
        signals: the pairs come back as they are.
    """
    embeddings = scored.embeddings
    if embeddings is None:
        return scored.train, scored.key
    key = fingerprint(scored.key, pool_size, k, seed)
    path = folder.soft_labels / f"signals-{key}.npz"

    def make() -> None:
        queries, documents = (
            np.array([int(name, 16) for name in scored.train[column]], dtype=np.uint64)
            for column in ("query_id", "document_id")
        )
        pool = document_pool(documents, pool_size, seed)
        scores = np.asarray(scored.train["teacher_score"], dtype=np.float32)
        made = pool_signals(queries, documents, scores, embeddings, scored.scale.measure, pool, k)
        for stale in folder.soft_labels.glob("signals-*.npz"):
            stale.unlink()
        with written_whole(path) as temporary:
            np.savez(temporary, **vars(made))

    main_makes(path, make)
    with np.load(path) as arrays:
        made = Signals(
            **{name: arrays[name] for name in ("rank", "margin", "negatives", "negative_scores")},
            pool=int(arrays["pool"]),
        )
    pair_ids = np.array(scored.train["pair_id"], dtype=object)

    def add(_: dict[str, list[object]], indices: list[int]) -> dict[str, object]:
        known = [row[row >= 0] for row in made.negatives[indices]]
        return {
            "rank": made.rank[indices],
            "margin": made.margin[indices],
            "hard_negatives": [pair_ids[row].tolist() for row in known],
            "hard_negative_scores": [
                values[: len(row)].tolist()
                for values, row in zip(made.negative_scores[indices], known, strict=True)
            ],
        }

    features = Features(
        {
            **scored.train.features,
            "rank": Value("int32"),
            "margin": Value("float32"),
            "hard_negatives": Sequence(Value("string")),
            "hard_negative_scores": Sequence(Value("float32")),
        }
    )
    return map_rows(scored.train, add, features), key
