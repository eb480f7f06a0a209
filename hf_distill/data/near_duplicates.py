"""When two texts count as the same: exactly, after normalisation, or nearly."""

from __future__ import annotations

import functools
import hashlib
import re
import struct
from collections.abc import Iterable

from datasketch import MinHash, MinHashLSH

NEAR_DUPLICATE_JACCARD = 0.7
"""Two texts are near-duplicates if their sets of word trigrams have at least this Jaccard
similarity.
"""

_PERMUTATIONS = 64
_WORD = re.compile(r"\w+")


def text_key(text: str) -> str:
    """`text` without case, punctuation and spacing. A text of punctuation alone is its own key."""
    return " ".join(_WORD.findall(text.casefold())) or text.strip()


def word_trigrams(text: str) -> frozenset[int]:
    """64-bit hashes of the word trigrams of `text_key(text)`; of the whole key if it has fewer than
    three words.
    """
    words = text_key(text).split()
    grams = {" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2))}
    return frozenset(
        struct.unpack(
            "<Q", hashlib.blake2b(g.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        )[0]
        for g in grams
    )


def jaccard(left: frozenset[int], right: frozenset[int]) -> float:
    """Size of the intersection over size of the union; 1.0 for two empty sets."""
    union = len(left | right)
    return len(left & right) / union if union else 1.0


@functools.cache
def _empty_signature() -> MinHash:
    """Kept, because drawing its permutations takes longer than applying them to a text."""
    return MinHash(num_perm=_PERMUTATIONS, seed=0, hashfunc=_as_32_bits)


def minhash(trigrams: frozenset[int]) -> MinHash:
    """The MinHash signature (Broder 1997, through `datasketch`) of a set of trigrams."""
    signature = _empty_signature().copy()
    signature.update_batch(list(trigrams))
    return signature


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
        self._trigrams: list[frozenset[int]] = []
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Put `text` into the index."""
        trigrams = word_trigrams(text)
        self._index.insert(len(self._trigrams), minhash(trigrams), check_duplication=False)
        self._trigrams.append(trigrams)

    def has(self, text: str) -> bool:
        """Whether a text in the index has at least `NEAR_DUPLICATE_JACCARD` of its trigrams in
        common with `text`.
        """
        trigrams = word_trigrams(text)
        candidates = self._index.query(minhash(trigrams))
        return any(
            jaccard(trigrams, self._trigrams[i]) >= NEAR_DUPLICATE_JACCARD for i in candidates
        )


def _as_32_bits(trigram: int) -> int:
    return trigram & 0xFFFFFFFF
