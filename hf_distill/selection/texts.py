"""What rules read about texts, groups and sources: a few bytes for each pair, read in batches."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, Literal

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm.auto import tqdm

from hf_distill.data.collection import Pairs, text_number
from hf_distill.data.keys import numbered
from hf_distill.data.near_duplicates import (
    NEAR_DUPLICATE_JACCARD,
    candidate_index,
    jaccard,
    signatures,
    text_key,
    trigram_hashes,
    word_trigrams,
)
from hf_distill.data.sources.qrecc import MIN_DOCUMENT_CHARACTERS, MIN_QUERY_CHARACTERS
from hf_distill.run.scratch import in_file

_BATCH = 1000

Side = Literal["query", "document", "student_query"]
"""Which text of a pair. `student_query` is what the student reads in place of the query."""


def _progress(total: int, what: str) -> Any:
    return tqdm(total=total, desc=what, unit_scale=True, delay=3, leave=False)


def _per_text(
    pairs: Pairs, side: Side, measure: Callable[[str], Any], dtype: type, what: str
) -> np.ndarray:
    """(n,) of `dtype`: `measure` of a text of each pair. It sees each text once."""
    of = pairs.collection
    numbers = pairs.documents if side == "document" else pairs.queries
    read = {
        "query": of.query_texts,
        "document": of.document_texts,
        "student_query": of.student_queries,
    }[side]
    unique, place = numbered(numbers)
    values: np.ndarray = np.empty(len(unique), dtype=dtype)
    with _progress(len(unique), what) as bar:
        for start in range(0, len(unique), _BATCH):
            texts = read(unique[start : start + _BATCH])
            values[start : start + len(texts)] = [measure(text) for text in texts]
            bar.update(len(texts))
    return np.asarray(values[place])


def _texts(pairs: Pairs, what: str) -> Iterator[list[tuple[str, str]]]:
    """The (query, document) texts of `pairs`, a batch at a time."""
    with _progress(len(pairs), what) as bar:
        for batch in pairs.batches("query", "document", size=_BATCH):
            yield list(zip(batch["query"], batch["document"], strict=True))
            bar.update(len(batch["query"]))


def long_enough(pairs: Pairs) -> np.ndarray:
    """(n,) bool: both texts have at least the characters of the paper's extraction rule."""
    queries = _per_text(pairs, "query", len, np.int64, "Text lengths")
    documents = _per_text(pairs, "document", len, np.int64, "Text lengths")
    enough: np.ndarray = (queries >= MIN_QUERY_CHARACTERS) & (documents >= MIN_DOCUMENT_CHARACTERS)
    return enough


def ngram_overlap(query: str, document: str, n: int = 2) -> float:
    """The share of the document's word n-grams that its query has, too: 1.0 for an echo, 0.0 for a
    document in entirely other words.

    Texts are compared by `text_key`. A document of fewer than n words counts as one n-gram of all
    its words.
    """
    words, own = text_key(document).split(), text_key(query).split()
    n = min(n, max(1, len(words)))
    theirs = {tuple(own[i : i + n]) for i in range(len(own) - n + 1)}
    grams = [tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))]
    return sum(gram in theirs for gram in grams) / len(grams)


def overlap(pairs: Pairs) -> np.ndarray:
    """(n,) float32: `ngram_overlap` of each pair."""
    shares = (ngram_overlap(*texts) for batch in _texts(pairs, "Echoes") for texts in batch)
    return np.fromiter(shares, dtype=np.float32, count=len(pairs))


def text_keys(pairs: Pairs, side: Side) -> np.ndarray:
    """(n,) uint64: equal for texts of equal `text_key`."""
    return _per_text(pairs, side, lambda text: text_number(text_key(text)), np.uint64, "Duplicates")


def is_empty(pairs: Pairs, column: str) -> bool:
    """Whether `group` or `source` is missing in every one of the pairs (at least one)."""
    batches = pairs.batches(column)
    return len(pairs) > 0 and all(value is None for batch in batches for value in batch[column])


def codes(pairs: Pairs, column: str) -> np.ndarray:
    """(n,) int32 from 0: equal where `group` or `source` is. Missing values have a code of their
    own.

    The codes follow the hashes of the values and not the order of the data, so the audit's choice
    among groups of one size favours neither the beginning nor the end.
    """
    numbers = (
        text_number(str(value)) ^ (value is None)  # "None" may be the name of one
        for batch in pairs.batches(column)
        for value in batch[column]
    )
    return numbered(np.fromiter(numbers, dtype=np.uint64, count=len(pairs)))[1]


def _joined(texts: list[tuple[str, str]]) -> list[str]:
    return [f"{query}\n{document}" for query, document in texts]


def _band_keys(pairs: Pairs, file: IO[bytes]) -> np.ndarray:
    """(b, n) uint64, mapped from `file`: pairs that share a key in a row may be near-duplicates
    (locality-sensitive hashing of MinHash signatures).
    """
    index = candidate_index()
    bands, rows = int(index.b), int(index.r)
    keys = in_file(file, np.uint64, (bands, len(pairs)))
    mixer = np.random.default_rng(0).integers(1, 2**63, size=rows, dtype=np.uint64) | np.uint64(1)
    place = 0
    for batch in _texts(pairs, "Near-duplicates"):
        signed = signatures([trigram_hashes(text) for text in _joined(batch)]).astype(np.uint64)
        by_band = signed[:, : bands * rows].reshape(len(signed), bands, rows)
        mixed = by_band * mixer  # modulo 2**64: their sum is a hash of the band
        keys[:, place : place + len(signed)] = mixed.sum(axis=2, dtype=np.uint64).T
        place += len(signed)
    return keys


def _candidates(band: np.ndarray, families: np.ndarray) -> np.ndarray:
    """(m, 2) int64: each pair that shares a key of a band with others, beside the first of them and
    beside the one before it, if they are not of one family already.
    """
    order = np.argsort(band, kind="stable")
    ranked, new = band[order], np.ones(len(band), dtype=bool)
    np.not_equal(ranked[1:], ranked[:-1], out=new[1:])
    same, starts = np.flatnonzero(~new), np.flatnonzero(new)
    first = starts[np.searchsorted(starts, same, side="right") - 1]
    edges = np.concatenate(
        [np.stack([order[beside], order[same]], axis=1) for beside in (same - 1, first)]
    )
    apart = families[edges[:, 0]] != families[edges[:, 1]]
    return np.unique(edges[apart], axis=0)


def _are_near(pairs: Pairs, edges: np.ndarray) -> np.ndarray:
    """(m,) bool: whether the pairs of each of `edges` (m, 2) are near-duplicates."""
    near = np.zeros(len(edges), dtype=bool)
    for start in range(0, len(edges), _BATCH):
        block = edges[start : start + _BATCH]
        rows = np.unique(block)
        (batch,) = pairs.take(rows).batches("query", "document", size=len(rows))
        texts = _joined(list(zip(batch["query"], batch["document"], strict=True)))
        trigrams = dict(zip(rows.tolist(), map(word_trigrams, texts), strict=True))
        near[start : start + len(block)] = [
            jaccard(trigrams[a], trigrams[b]) >= NEAR_DUPLICATE_JACCARD for a, b in block.tolist()
        ]
    return near


def _joined_families(families: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """`families` (n,) after those at both ends of each of `edges` (m, 2) have become one."""
    ends, places = np.unique(families[edges], return_inverse=True)
    left, right = places.reshape(-1, 2).T
    graph = coo_array((np.ones(len(left), dtype=bool), (left, right)), shape=(len(ends),) * 2)
    labels = connected_components(graph, directed=False)[1]
    least = ends[np.unique(labels, return_index=True)[1]]
    renamed = np.arange(len(families), dtype=families.dtype)
    renamed[ends] = least[labels]
    joined: np.ndarray = renamed[families]
    return joined


def near_duplicate_families(pairs: Pairs) -> np.ndarray:
    """(n,) int64: the place of the first one of the pairs that near-duplicates connect.

    Two pairs are near-duplicates if the word trigrams of query and document together have a Jaccard
    similarity of at least `NEAR_DUPLICATE_JACCARD`. MinHash (Broder 1997) proposes candidates, band
    by band, and the trigrams decide. A pair just above the threshold can be missed. The keys of the
    bands, 80 bytes a pair, are in a file beside the pairs.
    """
    families = np.arange(len(pairs))
    if not len(pairs):
        return families
    with tempfile.TemporaryFile(dir=pairs.collection.folder) as file:
        for band in _band_keys(pairs, file):
            edges = _candidates(band, families)
            families = _joined_families(families, edges[_are_near(pairs, edges)])
    return families


PAIR_COLUMNS: Mapping[str, Callable[[Pairs], np.ndarray]] = {
    "group": lambda pairs: codes(pairs, "group"),
    "source": lambda pairs: codes(pairs, "source"),
    "long_enough": long_enough,
    "overlap": overlap,
    "query": lambda pairs: text_keys(pairs, "query"),
    "document": lambda pairs: text_keys(pairs, "document"),
    "student_query": lambda pairs: text_keys(pairs, "student_query"),
    "family": near_duplicate_families,
}
"""The columns of `hf_distill.selection.rules.Columns` that come from the pairs themselves."""
