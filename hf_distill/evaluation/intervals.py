"""Bootstrap intervals: how much a value could differ if it were measured on as many other queries
or pairs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from hf_distill.evaluation.results import Bootstrap, Estimate

RESAMPLES = 2000
LEVEL = 0.95
_BATCH = 250  # resamples at a time: memory is bounded by these

Statistic = Callable[..., np.ndarray]
"""A statistic over the last axis of one or more samples: it maps arrays (..., n) to (...)."""


def bootstrap_settings(seed: int) -> Bootstrap:
    """How `estimate` makes its intervals, for the record."""
    return Bootstrap(RESAMPLES, LEVEL, seed)


def undefined(n: int, reason: str) -> Estimate:
    """An estimate from `n` queries or pairs that is undefined because of `reason`."""
    return Estimate(None, None, None, n, reason)


def mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis."""
    return np.asarray(values.mean(axis=-1))


def bootstrap(statistic: Statistic, samples: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """`statistic` of `RESAMPLES` bootstrap samples: (RESAMPLES,), NaN where it is undefined on one.

    Args:
        statistic: Vectorised over leading axes.
        samples: One or more arrays (n,), n >= 2, resampled together.
        seed: Seeds the draws.
    """

    def over_last_axis(*resamples: np.ndarray, axis: int) -> np.ndarray:
        return statistic(*resamples)  # scipy moves the axis to the end

    with warnings.catch_warnings():  # of the NaN, which `estimate` leaves out
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        result: Any = stats.bootstrap(
            samples, over_last_axis, paired=True, vectorized=True, n_resamples=RESAMPLES,
            batch=_BATCH, method="percentile", rng=np.random.default_rng(seed),
        )  # fmt: skip
    distribution: np.ndarray = result.bootstrap_distribution
    return distribution


def estimate(statistic: Statistic, samples: Sequence[np.ndarray], seed: int) -> Estimate:
    """`statistic` of `samples` with its percentile bootstrap interval (Efron & Tibshirani, 1993,
    ch. 13).

    The interval is that of `scipy.stats.bootstrap`, with three exceptions. A resample on which the
    statistic is undefined is left out (a constant sample has no correlation). The interval always
    contains the value. One observation, which scipy refuses, has an interval of width 0.

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
        raise ValueError("an empty sample has no interval")
    value = float(statistic(*samples))
    if not np.isfinite(value):
        name = getattr(statistic, "__name__", "the statistic")
        raise ValueError(f"{name} is undefined on these {n} values")
    drawn = bootstrap(statistic, samples, seed) if n > 1 else np.array([value])
    drawn = drawn[np.isfinite(drawn)]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail]) if len(drawn) else (value, value)
    return Estimate(value, float(min(low, value)), float(max(high, value)), n)
