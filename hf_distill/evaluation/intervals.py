"""Bootstrap intervals: how far a figure could have fallen otherwise with as many other queries or
pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
_BLOCK = 250


class Figure(TypedDict):
    """A value, its 95% interval, and how many queries or pairs it is over (`n`)."""

    value: float
    low: float
    high: float
    n: int


class Undefined(TypedDict):
    """A figure that cannot be had, and why: a correlation of constant scores, say."""

    value: None
    low: None
    high: None
    n: int
    undefined: str


def undefined(n: int, reason: str) -> Undefined:
    """The figure over `n` queries or pairs that does not exist because of `reason`."""
    return {"value": None, "low": None, "high": None, "n": n, "undefined": reason}


Statistic = Callable[..., np.ndarray]
"""Maps arrays (..., n) to (...): a statistic over the last axis of one or more samples."""


def mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis."""
    return np.asarray(values.mean(axis=-1))


def resampled(statistic: Statistic, samples: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """`statistic` of `RESAMPLES` bootstrap samples: (RESAMPLES,), NaN where it is undefined on one.

    The draws are those of `scipy.stats.bootstrap(..., paired=True, batch=250,
    rng=numpy.random.default_rng(seed))`, in memory that is bounded by the batch.
    """
    n = len(samples[0])
    rng = np.random.default_rng(seed)
    drawn = []
    for start in range(0, RESAMPLES, _BLOCK):
        rows = rng.integers(0, n, size=(min(_BLOCK, RESAMPLES - start), n))
        drawn.append(statistic(*(sample[rows] for sample in samples)))
    return np.concatenate(drawn)


def figure(statistic: Statistic, samples: Sequence[np.ndarray], seed: int) -> Figure:
    """`statistic` of `samples` with its percentile bootstrap interval (Efron & Tibshirani, 1993,
    ch. 13).

    Args:
        statistic: Vectorised over leading axes.
        samples: One or more arrays (n,), resampled together: position i is one query or pair in all
            of them.
        seed: Seeds the resampling.

    Raises:
        ValueError: An empty sample, or a statistic that is undefined on these samples (NaN).
    """
    n = len(samples[0])
    if not n:
        raise ValueError("no interval for an empty sample")
    value = float(statistic(*samples))
    if not np.isfinite(value):
        raise ValueError(
            f"{getattr(statistic, '__name__', 'the statistic')} is undefined on these {n} values"
        )
    drawn = resampled(statistic, samples, seed)
    drawn = drawn[np.isfinite(drawn)]  # e.g. a correlation of a resample that is constant
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail]) if len(drawn) else (value, value)
    return {"value": value, "low": float(min(low, value)), "high": float(max(high, value)), "n": n}
