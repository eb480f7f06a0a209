"""Which pairs are probably mismatched: two groups of pairs by the teacher's rank.

The document of a mismatched pair has nothing to do with its query. So it is one of the pool's
documents like any other, and its rank among the m of them is uniform over 1 to m. The ranks of all
pairs are a mixture of these and of the better ranks of the others: the two-groups model of Efron,
Tibshirani, Storey and Tusher (2001, doi:10.1198/016214501753382129), with the uniform ranks as the
null. Of the other pairs it asks only that the worse a rank is, the fewer of them have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.stats import binomtest
from sklearn.isotonic import IsotonicRegression

LEAST_PAIRS = 100
"""Of fewer pairs the density of the ranks is not known well enough."""

LEAST_POOL = 20
"""Among fewer documents a random one often ranks as well as the right one."""

BINS = 40
"""Bins of the rank, geometric ones: the density changes fastest among the first ranks."""


@dataclass(frozen=True)
class Detection:
    """What the ranks say about mismatched pairs.

    The share is an upper estimate: pairs whose right document the teacher ranks no better than
    random ones count, too.

    Attributes:
        pairs: How many have a rank.
        pool: Documents that each pair's own is ranked among.
        nothing: Why no pair counts as mismatched; None: some do.
        share: The part of the pairs that is mismatched, between 0 and 1; 0 if nothing was detected.
        low, high: Its 95% interval; (0, 1) if the ranks cannot say.
        edges: Ranks at which the b bins begin, ascending, and one more than the pool has: (b + 1,).
            Empty if the ranks cannot say.
        counts: Pairs of each bin (b,).
        density: Of the ranks of all pairs in each bin (b,), never rising; uniform ranks have 1.
    """

    pairs: int
    pool: int
    nothing: str | None
    share: float = 0.0
    low: float = 0.0
    high: float = 1.0
    edges: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    density: tuple[float, ...] = ()

    @cached_property
    def _of_bins(self) -> np.ndarray:
        """(b,) float32: the probability in each bin, the local false discovery rate."""
        return (self.share / np.maximum(self.density, self.share)).astype(np.float32)

    @property
    def half(self) -> int | None:
        """The first rank from which on the probability is at least one half; None if nothing was
        detected.
        """
        if self.nothing is not None:
            return None
        return self.edges[int(np.argmax(self._of_bins >= 0.5))]

    def probability(self, rank: np.ndarray) -> np.ndarray:
        """(n,) float32: how probably each pair with this `rank` (n,), from 1, is mismatched. It
        never falls with the rank. It is 0 for all if nothing was detected.
        """
        if self.nothing is not None:
            return np.zeros(len(rank), dtype=np.float32)
        # A document that is not in the pool can be behind all of it.
        place = np.minimum(np.searchsorted(self.edges, rank, side="right"), len(self.counts))
        found: np.ndarray = self._of_bins[place - 1]
        return found

    def __str__(self) -> str:
        if self.nothing is not None:
            return f"no mismatched pairs were detected: {self.nothing}"
        return (
            f"up to {self.share:.1%} of the pairs ({self.low:.1%} to {self.high:.1%}) look "
            "mismatched, because the teacher ranks their documents no better than random ones; "
            f"from rank {self.half:,} of {self.pool:,} on, that is at least as probable as not"
        )


def detect_mismatches(rank: np.ndarray, pool: int, mined: bool = False) -> Detection:
    """Tell mismatched pairs from others by the rank of their documents.

    The share of mismatched pairs is Storey's estimate (2002, doi:10.1111/1467-9868.00346, at one
    half): the part of the pairs that are in the lower half of the pool, over the part of uniform
    ranks that are. Its interval is Wilson's. The density of all ranks is the best one of those that
    never rise (the Grenander estimator, here of binned ranks): an isotonic regression of the part
    of each bin over its width, weighted by the width. Share over density is the probability.

    A bin begins at the lower half. So the last rank has a probability of 1.

    Args:
        rank: (n,) integers, from 1: one more than the documents that score above each pair's own.
        pool: Documents that it is ranked among.
        mined: Whether these were mined for its query and are no random ones.
    """
    pairs = len(rank)
    if mined:
        return Detection(
            pairs,
            pool,
            "each document is ranked in a list that was mined for its query, and lists hold no "
            "random documents to compare it with",
        )
    if pairs < LEAST_PAIRS:
        return Detection(pairs, pool, f"{pairs} ranks are too few; {LEAST_PAIRS} are needed")
    if pool < LEAST_POOL:
        return Detection(
            pairs, pool, f"a pool of {pool} documents is too small; {LEAST_POOL} are needed"
        )
    middle = pool // 2 + 1
    below = int((rank >= middle).sum())
    random = (pool + 1 - middle) / pool
    interval = binomtest(below, pairs).proportion_ci(method="wilson")
    share, low, high = (
        min(1.0, float(part) / random) for part in (below / pairs, interval.low, interval.high)
    )
    geometric = np.round(np.geomspace(1, pool + 1, BINS + 1)).astype(np.int64)
    edges = np.union1d(geometric, [middle])
    counts, _ = np.histogram(rank, edges)  # the last bin takes a rank behind the whole pool, too
    width = np.diff(edges) / pool
    density = IsotonicRegression(increasing=False).fit_transform(
        np.arange(len(counts)), counts / pairs / width, sample_weight=width
    )
    nothing = None
    if low <= 0:
        nothing = (
            f"none of the {pairs:,} documents is in the lower half of the pool, where half of the "
            f"mismatched ones would be; at most {high:.1%} of the pairs can be mismatched"
        )
    return Detection(
        pairs=pairs,
        pool=pool,
        nothing=nothing,
        share=share,
        low=low,
        high=high,
        edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
        density=tuple(density.tolist()),
    )
