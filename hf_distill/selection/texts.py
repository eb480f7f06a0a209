"""What rules read about texts, groups and sources: a few bytes for each pair, read in batches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm.auto import tqdm

from hf_distill.data.collection import Pairs, text_number
from hf_distill.data.keys import blocks, each_once, numbered, numbers_from, places_of, taken
from hf_distill.data.near_duplicates import (
    NEAR_DUPLICATE_JACCARD,
    candidate_index,
    signatures,
    text_key,
    words_of,
)
from hf_distill.data.sources.qrecc import MIN_DOCUMENT_CHARACTERS, MIN_QUERY_CHARACTERS
from hf_distill.data.word_grams import each_once as grams_once
from hf_distill.data.word_grams import salted, word_grams
from hf_distill.run.scratch import scratch

_BATCH = 1000
_HIGH = np.uint64(((1 << 32) - 1) << 32)

Side = Literal["query", "document", "student_query"]
"""Which text of a pair. `student_query` is what the student reads in place of the query."""


def _progress(total: int, what: str) -> Any:
    return tqdm(total=total, desc=what, unit_scale=True, delay=3, leave=False)


@dataclass(frozen=True)
class _Texts:
    """The texts of one side of some pairs, each once.

    Attributes:
        texts: The texts.
        of_pair: (n,) int64, which of them each pair has.
    """

    texts: list[str]
    of_pair: np.ndarray

    @cached_property
    def keys(self) -> list[str]:
        """The `text_key` of each text."""
        return [text_key(text) for text in self.texts]

    @cached_property
    def numbers(self) -> np.ndarray:
        """(n,) uint64: equal for pairs with texts of equal `text_key`."""
        numbers = np.fromiter(map(text_number, self.keys), np.uint64, len(self.keys))
        return np.asarray(numbers[self.of_pair])

    @cached_property
    def lengths(self) -> np.ndarray:
        """(n,) int64: the characters of each pair's text."""
        lengths = np.fromiter(map(len, self.texts), np.int64, len(self.texts))
        return np.asarray(lengths[self.of_pair])

    @cached_property
    def of_pairs(self) -> list[str]:
        """The text of each pair."""
        return [self.texts[i] for i in self.of_pair.tolist()]

    @cached_property
    def words(self) -> list[str]:
        """The words of each pair's text, with one space between two."""
        words = [" ".join(key.split()) for key in self.keys]
        return [words[i] for i in self.of_pair.tolist()]


class _Batch:
    """The texts of some pairs. Each is read and normalised once, for all columns."""

    def __init__(self, pairs: Pairs) -> None:
        self._pairs = pairs

    def _side(self, side: Side) -> _Texts:
        of, numbers = self._pairs.collection, self._pairs.queries
        read = of.query_texts if side == "query" else of.student_queries
        if side == "document":
            numbers, read = self._pairs.documents, of.document_texts
        once, of_pair = np.unique(numbers, return_inverse=True)
        return _Texts(read(once), of_pair)

    @cached_property
    def query(self) -> _Texts:
        return self._side("query")

    @cached_property
    def document(self) -> _Texts:
        return self._side("document")

    @cached_property
    def student_query(self) -> _Texts:
        return self._side("student_query")

    @cached_property
    def joined(self) -> list[str]:
        """The words of query and document together."""
        both = zip(self.query.of_pairs, self.document.of_pairs, strict=True)
        words = zip(self.query.words, self.document.words, strict=True)
        joined = [f"{query} {document}" for query, document in words]
        for place, (query, document) in enumerate(both):
            # a text of punctuation alone has no words beside one that has some
            own = self.query.words[place], self.document.words[place]
            if not all(words[:1].isalnum() for words in own):
                joined[place] = words_of(f"{query}\n{document}")
        return joined


def long_enough(batch: _Batch) -> np.ndarray:
    """(n,) bool: both texts have at least the characters of the paper's extraction rule."""
    enough: np.ndarray = (batch.query.lengths >= MIN_QUERY_CHARACTERS) & (
        batch.document.lengths >= MIN_DOCUMENT_CHARACTERS
    )
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


def overlap(batch: _Batch) -> np.ndarray:
    """(n,) float64: `ngram_overlap` of each pair."""
    documents, starts = word_grams(batch.document.words, 2)
    queries, starts_of_queries = word_grams(batch.query.words, 2)
    counts = np.diff(starts)
    shared = np.isin(salted(documents, counts), salted(queries, np.diff(starts_of_queries)))
    shares: np.ndarray = np.add.reduceat(shared, starts[:-1], dtype=np.int64) / counts
    for place, words in enumerate(batch.document.words):
        if " " not in words:
            texts = batch.query.of_pairs[place], batch.document.of_pairs[place]
            shares[place] = ngram_overlap(*texts)
    return shares


def text_keys(pairs: Pairs, side: Side) -> np.ndarray:
    """(n,) uint64: equal for texts of equal `text_key`."""
    return text_columns(pairs, [side])[side]


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
    numbers, values = scratch(len(pairs), np.uint64), pairs.collection.judged[column]
    for here in blocks(len(pairs), _BATCH):
        once = values.array(pairs.rows[here]).dictionary_encode("encode")
        own = [
            text_number(str(value)) ^ (value is None)  # "None" may be the name of one
            for value in once.dictionary.to_pylist()
        ]
        numbers[here] = np.array(own, dtype=np.uint64)[once.indices.to_numpy()]
    return numbered(numbers)[1]


class _Bands:
    """Keys of pairs that may be near-duplicates, (b, n) uint64: pairs that share a key in a row may
    be (locality-sensitive hashing of MinHash signatures).
    """

    def __init__(self, count: int) -> None:
        index = candidate_index()
        self._bands, self._rows = int(index.b), int(index.r)
        self._mixer = np.random.default_rng(0).integers(
            1, 2**63, size=self._rows, dtype=np.uint64
        ) | np.uint64(1)
        self.keys = scratch((self._bands, count), np.uint64)

    def add(self, here: slice, batch: _Batch) -> None:
        """Write the keys of the pairs `here`."""
        signed = signatures(*word_grams(batch.joined, 3)).astype(np.uint64)
        by_band = signed[:, : self._bands * self._rows].reshape(-1, self._bands, self._rows)
        mixed = by_band * self._mixer  # modulo 2**64: their sum is a hash of the band
        self.keys[:, here] = mixed.sum(axis=2, dtype=np.uint64).T


def _sharing(band: np.ndarray) -> np.ndarray:
    """(m,) int64: the places of the pairs that share the first half of a key of the `band` (n,)
    with another one, ordered by it.
    """
    packed = scratch(len(band), np.uint64)
    for here in blocks(len(band)):
        packed[here] = band[here] & _HIGH
        packed[here] |= np.arange(here.start, here.stop, dtype=np.uint64)
    packed.sort()
    shares = scratch(len(band), np.bool_)
    for here in blocks(len(band) - 1):
        same = (packed[here] ^ packed[here.start + 1 : here.stop + 1]) & _HIGH == 0
        shares[here] |= same
        shares[here.start + 1 : here.stop + 1] |= same
    return (taken(packed, places_of(shares)) & ~_HIGH).astype(np.int64)


def _candidates(band: np.ndarray, families: np.ndarray) -> np.ndarray:
    """(m, 2) int64: each pair that shares a key of a band with others, beside the first of them and
    beside the one before it, if they are not of one family already.
    """
    places = _sharing(band)
    order = places[np.argsort(band[places], kind="stable")]
    ranked, new = band[order], np.ones(len(order), dtype=bool)
    np.not_equal(ranked[1:], ranked[:-1], out=new[1:])
    same, starts = np.flatnonzero(~new), np.flatnonzero(new)
    first = starts[np.searchsorted(starts, same, side="right") - 1]
    edges = np.concatenate(
        [np.stack([order[beside], order[same]], axis=1) for beside in (same - 1, first)]
    )
    edges = edges[families[edges[:, 0]] != families[edges[:, 1]]]
    once = each_once(edges[:, 0] << 32 | edges[:, 1])
    return np.stack([once >> 32, once & 0xFFFFFFFF], axis=1)


def _parts(values: np.ndarray, starts: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The parts of `values` with these `numbers` (m,), one after another; `starts` (t + 1,)."""
    sizes = np.diff(starts)[numbers]
    begins = np.cumsum(sizes) - sizes
    return np.asarray(values[np.arange(sizes.sum()) - np.repeat(begins - starts[numbers], sizes)])


def _are_near(pairs: Pairs, edges: np.ndarray) -> np.ndarray:
    """(m,) bool: whether the pairs of each of `edges` (m, 2) are near-duplicates."""
    near = np.zeros(len(edges), dtype=bool)
    for here in blocks(len(edges), _BATCH):
        rows, place = np.unique(edges[here], return_inverse=True)
        trigrams, starts = grams_once(*word_grams(_Batch(pairs.take(rows)).joined, 3))
        counts = np.diff(starts)
        left, right = (
            salted(_parts(trigrams, starts, side), counts[side]) for side in place.reshape(-1, 2).T
        )
        lengths = counts[place.reshape(-1, 2)]
        begins = np.cumsum(lengths[:, 0]) - lengths[:, 0]
        both = np.add.reduceat(np.isin(left, right), begins, dtype=np.int64)
        near[here] = both / (lengths.sum(axis=1) - both) >= NEAR_DUPLICATE_JACCARD
    return near


def _join(families: np.ndarray, edges: np.ndarray) -> None:
    """Make one of the `families` (n,) at both ends of each of `edges` (m, 2)."""
    if not len(edges):
        return
    ends, places = np.unique(families[edges], return_inverse=True)
    left, right = places.reshape(-1, 2).T
    graph = coo_array((np.ones(len(left), dtype=bool), (left, right)), shape=(len(ends),) * 2)
    labels = connected_components(graph, directed=False)[1]
    least = ends[np.unique(labels, return_index=True)[1]]
    renamed = numbers_from(0, len(families), families.dtype)
    renamed[ends] = least[labels]
    for here in blocks(len(families)):
        families[here] = renamed[families[here]]


def near_duplicate_families(pairs: Pairs) -> np.ndarray:
    """(n,) int32: the place of the first one of the pairs that near-duplicates connect.

    Two pairs are near-duplicates if the word trigrams of query and document together have a Jaccard
    similarity of at least `NEAR_DUPLICATE_JACCARD`. MinHash (Broder 1997) proposes candidates, band
    by band, and the trigrams decide. A pair just above the threshold can be missed. The keys of the
    bands are 80 bytes a pair.
    """
    return text_columns(pairs, ["family"])["family"]


_OF_TEXTS: Mapping[str, tuple[type, Callable[[_Batch], np.ndarray]]] = {
    "long_enough": (np.bool_, long_enough),
    "overlap": (np.float32, overlap),
    "query": (np.uint64, lambda batch: batch.query.numbers),
    "document": (np.uint64, lambda batch: batch.document.numbers),
    "student_query": (np.uint64, lambda batch: batch.student_query.numbers),
}
TEXT_COLUMNS = frozenset(_OF_TEXTS) | {"family"}
"""The columns of `hf_distill.selection.rules.Columns` that come from texts."""


def text_columns(pairs: Pairs, names: Collection[str]) -> dict[str, np.ndarray]:
    """Some of `TEXT_COLUMNS`, (n,) each. Texts are read and normalised once for all of them."""
    columns = {name: scratch(len(pairs), _OF_TEXTS[name][0]) for name in names if name != "family"}
    bands = _Bands(len(pairs)) if "family" in names else None
    with _progress(len(pairs), "Texts") as bar:
        for here in blocks(len(pairs), _BATCH):
            batch = _Batch(Pairs(pairs.collection, pairs.rows[here]))
            for name, values in columns.items():
                values[here] = _OF_TEXTS[name][1](batch)
            if bands is not None:
                bands.add(here, batch)
            bar.update(here.stop - here.start)
    if bands is not None:
        columns["family"] = numbers_from(0, len(pairs), np.int32)
        for band in bands.keys:
            edges = _candidates(band, columns["family"])
            _join(columns["family"], edges[_are_near(pairs, edges)])
    return columns
