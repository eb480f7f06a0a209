"""Clusters of documents by the teacher's embeddings, to spread a budget of pairs over all of them.

Drawing evenly from k-means clusters of embeddings balances training data of which some kinds are
much more frequent than others (Vo et al. 2024, arXiv:2405.15613).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from tqdm.auto import tqdm

from hf_distill.data.collection import Pairs
from hf_distill.data.keys import numbered

if TYPE_CHECKING:  # selecting needs no model
    from hf_distill.scoring.embeddings import EmbeddingTable

MOST_CLUSTERS = 1000

MOST_FITTED = 1 << 24
"""The clusters are fitted on a sample of documents with at most so many numbers (67 MB as float32):
43,690 documents of 384 dimensions.
"""

_BLOCK = 8192


def _directions(table: EmbeddingTable, rows: np.ndarray) -> np.ndarray:
    """The embeddings (m, dimension) in `rows` (m,) as float32 of length 1; zeros stay zeros."""
    values: np.ndarray = table.vectors[rows].astype(np.float32)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    values /= np.where(lengths > 0, lengths, 1)
    return values


def _distinct(values: np.ndarray) -> np.ndarray:
    """Each row of `values` (m, dimension) once, in the order of their bytes."""
    whole = values.view(np.dtype((np.void, values[:1].nbytes)))
    once: np.ndarray = values[np.unique(whole, return_index=True)[1]]
    return once


def document_clusters(pairs: Pairs, table: EmbeddingTable, seed: int) -> np.ndarray:
    """The k-means cluster of each pair's document, by the direction of the teacher's embedding.

    There are as many clusters as the square root of the number of documents, at most 1000: then a
    cluster has about as many documents as there are clusters, and a million documents are compared
    with few enough centres. Each distinct embedding counts once, however many pairs have it, so the
    result does not depend on the order of the pairs. The number of clusters does not depend on how
    many pairs are to be kept, so all shares and seeds of a study draw from the same clusters.

    Args:
        pairs: The n pairs.
        table: The teacher's embeddings of their collection.
        seed: Draws the sample that the clusters are fitted on, and where they start.

    Returns:
        (n,) int64, from 0. Some numbers may not occur.
    """
    rows, place = numbered(table.documents[pairs.documents])
    if not len(rows):
        return np.empty(0, dtype=np.int64)
    sample, most = rows, max(1, MOST_FITTED // table.dimension)
    if len(rows) > most:
        sample = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
    # More clusters than distinct points cannot be fitted.
    points = _distinct(_directions(table, sample))
    count = min(round(len(rows) ** 0.5), MOST_CLUSTERS, len(points))
    # With the default ratio, a small cluster that some batch does not meet is given up. It stays
    # here: small clusters far from the others are what an even draw is for.
    means = MiniBatchKMeans(count, random_state=seed, reassignment_ratio=0.0, compute_labels=False)
    means.fit(points)
    clusters: np.ndarray = np.empty(len(rows), dtype=np.int64)
    with tqdm(total=len(rows), desc="Clusters", unit_scale=True, delay=3, leave=False) as bar:
        for start in range(0, len(rows), _BLOCK):
            some = rows[start : start + _BLOCK]
            clusters[start : start + len(some)] = means.predict(_directions(table, some))
            bar.update(len(some))
    return np.asarray(clusters[place])
