"""When two texts count as the same: exactly, after normalisation, or nearly."""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
from datasketch import MinHash, MinHashLSH

from hf_distill.data.keys import is_among
from hf_distill.data.word_grams import each_once, word_grams

NEAR_DUPLICATE_JACCARD = 0.7
"""Two texts are near-duplicates if their sets of word trigrams have at least this Jaccard
similarity.
"""

_PERMUTATIONS = 64
_BATCH = 1000
_RECENT = 1 << 16
"""Trigrams of texts that are not sorted among those of the others yet, at least."""
_WORD = re.compile(r"\w+")


def text_key(text: str) -> str:
    """`text` without case, punctuation and spacing. A text of punctuation alone is its own key."""
    return " ".join(_WORD.findall(text.casefold())) or text.strip()


def words_of(text: str) -> str:
    """`text_key` with one space between two words, also of a text of punctuation alone."""
    return " ".join(text_key(text).split())


def trigram_hashes(text: str) -> np.ndarray:
    """(n,) uint64, each once, ascending: hashes of the word trigrams of `text_key(text)`; of the
    whole key if it has fewer than three words.
    """
    return np.unique(word_grams([words_of(text)], 3)[0])


def word_trigrams(text: str) -> frozenset[int]:
    """`trigram_hashes` as a set."""
    return frozenset(trigram_hashes(text).tolist())


def jaccard(left: frozenset[int], right: frozenset[int]) -> float:
    """Size of the intersection over size of the union; 1.0 for two empty sets."""
    union = len(left | right)
    return len(left & right) / union if union else 1.0


@functools.cache
def _empty_signature() -> MinHash:
    """Kept, because drawing its permutations takes longer than applying them to a text."""
    return MinHash(num_perm=_PERMUTATIONS, seed=0, hashfunc=_as_32_bits, scheme="affine32")


def signatures(hashes: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """(n, p) uint32: the MinHash signature (Broder 1997) of each of n texts, given their trigrams
    as from `word_grams`; all at once.

    The permutations are those of `datasketch`: the finalizer of MurmurHash3 (Appleby), then
    a h + b modulo 2 ** 32.
    """
    mixed = hashes.astype(np.uint32)  # the low half
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> np.uint32(shift))) * np.uint32(factor)
    mixed ^= mixed >> np.uint32(16)
    result = np.empty((len(starts) - 1, _PERMUTATIONS), dtype=np.uint32)
    factors, offsets = np.asarray(_empty_signature().permutations, dtype=np.uint32)
    for number, (factor, offset) in enumerate(zip(factors, offsets, strict=True)):
        result[:, number] = np.minimum.reduceat(mixed * factor + offset, starts[:-1])
    return result


def candidate_index() -> MinHashLSH:
    """An empty index that proposes near-duplicates. `datasketch` chooses its bands and rows for a
    threshold a little below `NEAR_DUPLICATE_JACCARD`.
    """
    return MinHashLSH(threshold=NEAR_DUPLICATE_JACCARD - 0.1, num_perm=_PERMUTATIONS)


class NearDuplicates:
    """An index of texts that answers whether a text has a near-duplicate among them.

    It is exact: the word trigrams that a text has in common with each text of the index are
    counted, by the list of texts that each trigram has.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        # Each trigram, ascending, beside a text that has it; and the trigrams of each text.
        self._trigrams = np.empty(0, dtype=np.uint64)
        self._texts = np.empty(0, dtype=np.int32)
        self._sizes = np.empty(0, dtype=np.int32)
        # The same of texts that came since.
        self._recent: dict[int, list[int]] = {}
        self._recent_sizes: list[int] = []
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Put `text` into the index."""
        trigrams = trigram_hashes(text).tolist()
        for trigram in trigrams:
            self._recent.setdefault(trigram, []).append(len(self._recent_sizes))
        self._recent_sizes.append(len(trigrams))
        if len(self._recent) > max(_RECENT, len(self._trigrams) // 4):
            self._sort()

    def _sort(self) -> None:
        """Put the texts that came since among the sorted ones."""
        if not self._recent:
            return
        counts = list(map(len, self._recent.values()))
        recent = np.fromiter(itertools.chain.from_iterable(self._recent.values()), np.int32)
        trigrams = np.repeat(np.fromiter(self._recent, np.uint64), counts)
        trigrams = np.concatenate([self._trigrams, trigrams])
        texts = np.concatenate([self._texts, len(self._sizes) + recent])
        order = np.argsort(trigrams, kind="stable")
        self._trigrams, self._texts = trigrams[order], texts[order].astype(np.int32)
        self._sizes = np.concatenate([self._sizes, np.array(self._recent_sizes, dtype=np.int32)])
        self._recent, self._recent_sizes = {}, []

    def has(self, text: str) -> bool:
        """Whether a text in the index has at least `NEAR_DUPLICATE_JACCARD` of its trigrams in
        common with `text`.
        """
        return self._has(trigram_hashes(text))

    def _has(self, trigrams: np.ndarray) -> bool:
        """`has` of a text with these trigrams (m,), each once."""
        starts, ends = (
            np.searchsorted(self._trigrams, trigrams, side) for side in ("left", "right")
        )
        counts = ends - starts
        places = np.arange(counts.sum()) + np.repeat(ends - np.cumsum(counts), counts)
        shared = np.bincount(self._texts[places], minlength=len(self._sizes))
        if (shared / (self._sizes + len(trigrams) - shared) >= NEAR_DUPLICATE_JACCARD).any():
            return True
        recent = Counter(
            itertools.chain.from_iterable(self._recent.get(one, ()) for one in trigrams.tolist())
        )
        return any(
            both / (self._recent_sizes[number] + len(trigrams) - both) >= NEAR_DUPLICATE_JACCARD
            for number, both in recent.items()
        )

    def have(self, texts: Iterable[str]) -> Iterator[bool]:
        """`has` of each text, faster for many texts of which few have a near-duplicate.

        A near-duplicate has at least `NEAR_DUPLICATE_JACCARD` of a text's own trigrams. Most texts
        share fewer with all texts of the index together, and are not looked up.
        """
        self._sort()
        remaining = iter(texts)
        while batch := [words_of(text) for text in itertools.islice(remaining, _BATCH)]:
            trigrams, starts = each_once(*word_grams(batch, 3))
            shared = np.add.reduceat(
                is_among(trigrams, self._trigrams), starts[:-1], dtype=np.int64
            )
            possible = shared / np.diff(starts) >= NEAR_DUPLICATE_JACCARD
            for number, near in enumerate(possible.tolist()):
                yield near and self._has(trigrams[starts[number] : starts[number + 1]])


def _as_32_bits(trigram: int) -> int:
    return trigram & 0xFFFFFFFF
