"""What rules see of the texts: small numbers for each pair, computed in batches, so that no more
than a batch of texts is ever held.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm.auto import tqdm

from hf_distill.data.collection import text_number
from hf_distill.data.near_duplicates import (
    NEAR_DUPLICATE_JACCARD,
    candidate_index,
    jaccard,
    minhash,
    text_key,
    word_trigrams,
)
from hf_distill.data.sources.qrecc import (
    MIN_DOCUMENT_CHARACTERS,
    MIN_QUERY_CHARACTERS,
)

_BATCH = 1000


def _batches(pairs: Dataset, columns: Sequence[str], what: str) -> Iterator[dict[str, Any]]:
    with tqdm(
        total=len(pairs), desc=what, unit=" pairs", unit_scale=True, delay=3, leave=False
    ) as bar:
        for table in (
            pairs.select_columns(list(columns)).with_format("arrow").iter(_BATCH)
        ):  # Arrow: several times as fast as rows
            yield {name: table[name].to_pylist() for name in columns}
            bar.update(len(table))


def numbers(pairs: Dataset, column: str) -> np.ndarray:
    """(n,) the numbers of a column, NaN where there is none."""
    values: np.ndarray = pairs.select_columns([column]).with_format("arrow")[:][column].to_numpy()
    return values


def ngram_overlap(query: str, document: str, n: int = 2) -> float:
    """The share of the document's word n-grams that its query has, too: 1.0 for an echo, 0.0 for a
    document that says it otherwise.

    Texts are compared by `text_key`. A document of fewer than n words counts as one n-gram of all
    of them.
    """
    words, own = text_key(document).split(), text_key(query).split()
    n = min(n, max(1, len(words)))
    theirs = {tuple(own[i : i + n]) for i in range(len(own) - n + 1)}
    grams = [tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))]
    return sum(gram in theirs for gram in grams) / len(grams)


def long_enough(pairs: Dataset) -> np.ndarray:
    """(n,) bool: at least the characters that the paper's extraction rule asks for."""
    return np.array(
        [
            len(query) >= MIN_QUERY_CHARACTERS and len(document) >= MIN_DOCUMENT_CHARACTERS
            for batch in _batches(pairs, ["query", "document"], "Measuring texts")
            for query, document in zip(batch["query"], batch["document"], strict=True)
        ],
        dtype=bool,
    )


def overlap(pairs: Dataset) -> np.ndarray:
    """(n,) float32: :func:`ngram_overlap` of each pair."""
    return np.array(
        [
            ngram_overlap(query, document)
            for batch in _batches(pairs, ["query", "document"], "Looking for echoes")
            for query, document in zip(batch["query"], batch["document"], strict=True)
        ],
        dtype=np.float32,
    )


def text_keys(pairs: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Two (n,) uint64 arrays: a key of each query and of each document, equal for texts of equal
    `text_key`.
    """
    keys: tuple[list[int], list[int]] = ([], [])
    for batch in _batches(pairs, ["query", "document"], "Looking for duplicates"):
        for found, texts in zip(keys, (batch["query"], batch["document"]), strict=True):
            found += [text_number(text_key(text)) for text in texts]
    return np.array(keys[0], dtype=np.uint64), np.array(keys[1], dtype=np.uint64)


def is_empty(pairs: Dataset, column: str) -> bool:
    """Whether there is no such column, or nothing but null in it."""
    if column not in pairs.column_names:
        return True
    return len(pairs) > 0 and all(
        value is None
        for batch in _batches(pairs, [column], f"Reading {column}")
        for value in batch[column]
    )


def codes(pairs: Dataset, column: str) -> np.ndarray:
    """(n,) int64 from 0: equal where the texts in `column` are equal."""
    keys = [
        text_number(str(value))
        for batch in _batches(pairs, [column], f"Reading {column}")
        for value in batch[column]
    ]
    inverse: np.ndarray = np.unique(np.array(keys, dtype=np.uint64), return_inverse=True)[1]
    return inverse.astype(np.int64)


def _joined(batch: dict[str, Any]) -> list[str]:
    return [
        f"{query}\n{document}"
        for query, document in zip(batch["query"], batch["document"], strict=True)
    ]


def _band_keys(pairs: Dataset) -> np.ndarray:
    """(n, b) uint64: pairs that share a key in a column may be near-duplicates (locality-sensitive
    hashing of MinHash signatures).
    """
    index = candidate_index()
    bands, rows = int(index.b), int(index.r)
    keys = np.empty((len(pairs), bands), dtype=np.uint64)
    mixer = np.random.default_rng(0).integers(1, 2**63, size=rows, dtype=np.uint64) | np.uint64(1)
    place = 0
    for batch in _batches(pairs, ["query", "document"], "Looking for near-duplicates"):
        signatures = np.array(
            [minhash(word_trigrams(text)).hashvalues for text in _joined(batch)], dtype=np.uint64
        )
        mixed = (
            signatures[:, : bands * rows].reshape(len(signatures), bands, rows) * mixer
        )  # modulo 2**64: a hash of the band
        keys[place : place + len(signatures)] = mixed.sum(axis=2, dtype=np.uint64)
        place += len(signatures)
    return keys


def _candidates(keys: np.ndarray) -> np.ndarray:
    """(m, 2) int64: of the pairs with one key in a band, each with the first of them and with the
    one before it.
    """
    edges = [np.empty((0, 2), dtype=np.int64)]
    for band in keys.T:
        order = np.argsort(band, kind="stable")
        same = np.flatnonzero(band[order][1:] == band[order][:-1]) + 1
        starts = np.flatnonzero(np.append(True, band[order][1:] != band[order][:-1]))
        first = starts[np.searchsorted(starts, same, side="right") - 1]
        edges += [
            np.stack([order[same - 1], order[same]], axis=1),
            np.stack([order[first], order[same]], axis=1),
        ]
    return np.unique(np.concatenate(edges), axis=0)


def near_duplicate_families(pairs: Dataset) -> np.ndarray:
    """(n,) int64: equal for pairs that are connected by near-duplicates.

    Two pairs are near-duplicates if the word trigrams of query and document together have a Jaccard
    similarity of at least `NEAR_DUPLICATE_JACCARD`: MinHash (Broder 1997, through `datasketch`)
        proposes, the trigrams themselves decide. One just above the
    threshold can be missed.
    """
    edges = _candidates(_band_keys(pairs)) if len(pairs) else np.empty((0, 2), dtype=np.int64)
    near = np.zeros(len(edges), dtype=bool)
    texts = pairs.select_columns(["query", "document"])
    for start in range(0, len(edges), _BATCH):
        block = edges[start : start + _BATCH]
        rows = np.unique(block)
        trigrams = dict(
            zip(rows.tolist(), map(word_trigrams, _joined(texts[rows.tolist()])), strict=True)
        )
        near[start : start + _BATCH] = [
            jaccard(trigrams[a], trigrams[b]) >= NEAR_DUPLICATE_JACCARD for a, b in block.tolist()
        ]
    left, right = edges[near].T
    graph = coo_array(
        (np.ones(len(left), dtype=bool), (left, right)), shape=(len(pairs), len(pairs))
    )
    labels: np.ndarray = (
        connected_components(graph, directed=False)[1] if len(pairs) else np.empty(0)
    )
    return labels.astype(np.int64)
