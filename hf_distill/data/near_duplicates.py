"""When two texts count as the same: exactly, after normalisation, or nearly."""

from __future__ import annotations

import functools
import itertools
import re
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


def minhash(trigrams: frozenset[int]) -> MinHash:
    """The MinHash signature (Broder 1997, through `datasketch`) of a set of trigrams."""
    signature = _empty_signature().copy()
    signature.update_batch(list(trigrams))
    return signature


def signatures(hashes: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """(n, p) uint32: the `minhash` of each of n texts, given their trigrams as from `word_grams`;
    all at once.

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

    MinHash with locality-sensitive hashing (Broder 1997, through `datasketch`) proposes candidates,
    and the exact Jaccard similarity of their word trigrams decides. So every near-duplicate that it
    reports is one. It can miss one just above the threshold, and practically never a nearer one.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._index = candidate_index()
        self._trigrams: list[np.ndarray] = []
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Put `text` into the index."""
        trigrams = trigram_hashes(text)
        signature = minhash(frozenset(trigrams.tolist()))
        self._index.insert(len(self._trigrams), signature, check_duplication=False)
        self._trigrams.append(trigrams)

    def has(self, text: str) -> bool:
        """Whether a text in the index has at least `NEAR_DUPLICATE_JACCARD` of its trigrams in
        common with `text`.
        """
        return self._has(word_trigrams(text))

    def _has(self, trigrams: frozenset[int]) -> bool:
        candidates = self._index.query(minhash(trigrams))
        return any(
            jaccard(trigrams, frozenset(self._trigrams[i].tolist())) >= NEAR_DUPLICATE_JACCARD
            for i in candidates
        )

    def have(self, texts: Iterable[str]) -> Iterator[bool]:
        """`has` of each text, faster for many texts of which few have a near-duplicate.

        A near-duplicate has at least `NEAR_DUPLICATE_JACCARD` of a text's own trigrams. Most texts
        share fewer with all texts of the index together, and are not looked up.
        """
        every = np.unique(np.concatenate([np.empty(0, "<u8"), *self._trigrams]))
        remaining = iter(texts)
        while batch := [words_of(text) for text in itertools.islice(remaining, _BATCH)]:
            trigrams, starts = each_once(*word_grams(batch, 3))
            shared = np.add.reduceat(is_among(trigrams, every), starts[:-1], dtype=np.int64)
            possible = shared / np.diff(starts) >= NEAR_DUPLICATE_JACCARD
            for number, near in enumerate(possible.tolist()):
                own = trigrams[starts[number] : starts[number + 1]]
                yield near and self._has(frozenset(own.tolist()))


def _as_32_bits(trigram: int) -> int:
    return trigram & 0xFFFFFFFF
