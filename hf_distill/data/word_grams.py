"""Hashes of the word n-grams of many texts at once, without a Python object for each."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np

_BASE = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2 ** 64
_INVERSE = pow(_BASE, -1, 1 << 64)
_BYTES = 1 << 19
"""Characters of the texts that are hashed at once; of a longer text, all."""
_SPACE, _NEW_LINE = 32, 10


def word_grams(keys: Sequence[str], n: int) -> tuple[np.ndarray, np.ndarray]:
    """The hashes (m,) uint64 of the word n-grams of t texts, one text after another, and where
    those of each begin, with the end (t + 1,) int64. Of a text of fewer than n words it is that of
    the whole text.

    A hash is a polynomial over the bytes modulo 2 ** 64, mixed by the finalizer of SplitMix64
    (Steele, Lea & Flood 2014, doi:10.1145/2660193.2660195).

    Args:
        keys: Words with one space between them (t,).
        n: Words of a gram.
    """
    parts = [_hashed(part, n) for part in _parts(keys)]
    counts = np.concatenate([[0], *(counts for _, counts in parts)])
    hashes = np.concatenate([np.empty(0, np.uint64), *(hashes for hashes, _ in parts)])
    return hashes, np.cumsum(counts)


def _parts(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    """`keys` in parts of about `_BYTES` characters."""
    start, size = 0, 0
    for stop, key in enumerate(keys):
        if size and size + len(key) > _BYTES:
            yield keys[start:stop]
            start, size = stop, 0
        size += len(key)
    if start < len(keys):
        yield keys[start:]


@functools.lru_cache(maxsize=2)
def _powers(base: int, bits: int) -> np.ndarray:
    """(2 ** bits,) uint64: the powers of `base` from 0 on, modulo 2 ** 64."""
    factors = np.full(1 << bits, base, dtype=np.uint64)
    factors[0] = 1
    return np.cumprod(factors)


def _hashed(keys: Sequence[str], n: int) -> tuple[np.ndarray, np.ndarray]:
    """The hashes of the n-grams of `keys`, and how many each has."""
    codes = np.frombuffer("\n".join(keys).encode("utf-8", "surrogatepass"), dtype=np.uint8)
    ends = np.append(np.flatnonzero((codes == _SPACE) | (codes == _NEW_LINE)), len(codes))
    starts = np.concatenate([[0], ends[:-1] + 1])
    last = np.append(np.flatnonzero(codes[ends[:-1]] == _NEW_LINE), len(ends) - 1)
    first = np.concatenate([[0], last[:-1] + 1])  # first and last word of each text
    counts = np.maximum(last - first + 2 - n, 1)
    begin = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts - first, counts)
    stop = np.minimum(begin + n - 1, np.repeat(last, counts))

    bits = len(codes).bit_length()
    sums = np.zeros(len(codes) + 1, dtype=np.uint64)
    np.multiply(codes + np.uint64(1), _powers(_INVERSE, bits)[: len(codes)], out=sums[1:])
    np.cumsum(sums, out=sums)  # of each byte times the inverse to the power of its place
    right = ends[stop]
    mixed = (sums[right] - sums[starts[begin]]) * _powers(_BASE, bits)[right]
    for bits_right, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(bits_right))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31)), counts


def each_once(hashes: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The hashes of each text once, ascending, and where those of each begin; as `word_grams`."""
    text = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    order = np.lexsort((hashes, text))
    hashes, text = hashes[order], text[order]
    new = np.ones(len(hashes), dtype=bool)
    new[1:] = (hashes[1:] != hashes[:-1]) | (text[1:] != text[:-1])
    return hashes[new], np.searchsorted(text[new], np.arange(len(starts)))


def salted(hashes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Hashes that are equal only if they belong to the same one of t texts, which have `counts`
    (t,) of `hashes`.
    """
    salt = np.arange(1, len(counts) + 1, dtype=np.uint64) * np.uint64(_BASE)
    return np.asarray(hashes ^ np.repeat(salt, counts))
