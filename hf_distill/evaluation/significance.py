"""Significance: can two systems be told apart on these queries, by how much do they differ, and
what could have been seen at all?

Everything works on per-query values of one measure, paired by query. The arithmetic is
`scipy.stats`'; only Holm's correction and the crossed random-effects interval over seeds, which it
does not have, are written out here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special, stats

from hf_distill.errors import InputError
from hf_distill.evaluation.intervals import (
    LEVEL,
    RESAMPLES,
    figure,
    mean,
    resampled,
    undefined,
)

ALPHA, POWER = 0.05, 0.8
RANDOMISATIONS = 9_999
TESTS = ("paired_t_test", "wilcoxon", "randomisation", "bootstrap")
_CELLS = (
    2**20
)  # numbers of a batch of randomisations, so that memory does not grow with the number of queries


def _t_test(differences: np.ndarray) -> dict[str, Any]:
    result = stats.ttest_1samp(differences, 0.0)  # of the differences: the paired t-test
    return {"statistic": float(result.statistic), "p": float(result.pvalue)}


def _wilcoxon(differences: np.ndarray) -> dict[str, Any]:
    result = stats.wilcoxon(differences)
    return {"statistic": float(result.statistic), "p": float(result.pvalue)}


def _randomisation(differences: np.ndarray, seed: int) -> dict[str, Any]:
    """Under the null hypothesis a query's two values could as well be exchanged, which flips the
    sign of its difference (Fisher, 1935).

    Every pattern of signs where there are fewer than `RANDOMISATIONS`, else so many random ones.
    """
    result = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", vectorized=True, n_resamples=RANDOMISATIONS,
        batch=max(1, _CELLS // len(differences)), rng=np.random.default_rng(seed),
    )  # fmt: skip
    return {"statistic": float(result.statistic), "p": float(min(result.pvalue, 1.0))}


def _bootstrap_test(differences: np.ndarray, seed: int) -> dict[str, Any]:
    """How often a bootstrap mean lies as far from the observed mean as that lies from 0 (Efron &
    Tibshirani, 1993, sec. 16.4).
    """
    observed = float(differences.mean())
    drawn = resampled(mean, [differences], seed)
    extreme = int((np.abs(drawn - observed) >= abs(observed)).sum())
    return {"statistic": observed, "p": (1 + extreme) / (1 + len(drawn))}


def _equal(differences: np.ndarray) -> bool:
    """Whether all differences are the same, up to what floats make of equal ones."""
    return bool(np.ptp(differences) <= 1e-12 * np.abs(differences).max())


def cohens_dz(differences: np.ndarray) -> np.ndarray:
    """Cohen's d of paired values, d_z: mean of the differences / their standard deviation (Cohen,
    1988, sec. 2.3.5), over the last axis.

    NaN where all differences are equal. Not to be compared with a d over the pooled standard
    deviation of two groups.
    """
    spread = (
        differences.std(-1, ddof=1)
        if differences.shape[-1] > 1
        else np.zeros(differences.shape[:-1])
    )
    # Equal floats may leave a spread in the last digit.
    constant = np.ptp(differences, axis=-1) <= 1e-12 * np.abs(differences).max(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(constant, np.nan, differences.mean(-1) / spread))


def smallest_detectable(differences: np.ndarray) -> float | None:
    """The difference of means that a paired t-test of so many queries, whose differences vary as
    these do, finds with 80% probability.

    Two-sided at 5% and with its right sign, from the noncentral t distribution (Cohen, 1988, ch.
    2). It depends on the number of queries and on the standard deviation of the differences, not on
    their mean: a property of the test set for this pair of systems, before any correction for
        several comparisons. None with fewer than two queries or where all differences are equal:
            nothing then
    says how they vary.
    """
    n = len(differences)
    if n < 2 or _equal(differences):
        return None
    shift = special.nctdtrinc(n - 1, 1 - POWER, stats.t.ppf(1 - ALPHA / 2, n - 1))
    return float(shift * differences.std(ddof=1) / np.sqrt(n))


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p-values (Holm, 1979), which hold the family-wise error; an
    undefined p stays None and is not counted.
    """
    known = sorted((value, i) for i, value in enumerate(p) if value is not None)
    adjusted: list[float | None] = [None] * len(p)
    running = 0.0
    for rank, (value, i) in enumerate(known):
        running = max(running, min(1.0, (len(known) - rank) * value))
        adjusted[i] = running
    return adjusted


def paired_tests(system: np.ndarray, baseline: np.ndarray, seed: int) -> dict[str, Any]:
    """Whether `system` and `baseline` differ on the queries both answered, and by how much.

    Args:
        system: (Q,) per-query values of a measure.
        baseline: (Q,) those of the other system; position i is the same query in both.
        seed: Seeds the randomisation and the bootstrap.

    Returns:
        `difference` (system minus baseline, with its bootstrap interval), each of `TESTS` as
        {statistic, p} (two-sided), `cohens_dz` with its bootstrap interval, `smallest_detectable`,
        and the number of `wins`, `losses` and `ties`. A p that does not exist is None, with its
        reason under `undefined`; where no query differs it is 1.

    Raises:
        InputError: No query, another number of queries on either side, or values that are not
            finite.
    """
    system, baseline = np.asarray(system, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    _check(system, baseline)
    differences = system - baseline
    n = len(differences)
    if not differences.any():
        tests: dict[str, dict[str, Any]] = {name: {"statistic": 0.0, "p": 1.0} for name in TESTS}
    elif n == 1:
        tests = {
            name: {"statistic": None, "p": None, "undefined": "one query says nothing about others"}
            for name in TESTS
        }
    else:
        tests = {
            "paired_t_test": _t_test(differences)
            if not _equal(differences)
            else {
                "statistic": None,
                "p": None,
                "undefined": "every difference is the same, so it has no variance",
            },
            "wilcoxon": _wilcoxon(differences),
            "randomisation": _randomisation(differences, seed),
            "bootstrap": _bootstrap_test(differences, seed)
            if not _equal(differences)
            else {
                "statistic": None,
                "p": None,
                "undefined": "every difference is the same, so every resample is",
            },
        }
    d = undefined(n, "every difference is the same, so there is no spread to measure it in")
    return {
        "difference": figure(mean, [differences], seed),
        **tests,
        "cohens_dz": figure(cohens_dz, [differences], seed) if not _equal(differences) else d,
        "smallest_detectable": smallest_detectable(differences),
        "wins": int((differences > 0).sum()),
        "losses": int((differences < 0).sum()),
        "ties": int((differences == 0).sum()),
    }


def _check(system: np.ndarray, baseline: np.ndarray) -> None:
    if system.shape[-1:] != baseline.shape[-1:] or system.ndim < 1:
        raise InputError(
            f"per-query values of shapes {system.shape} and {baseline.shape} cannot be paired: both systems must be measured on the same "
            "queries, in the same order"
        )
    if not system.shape[-1]:
        raise InputError(
            "there is no query to compare systems on; name a task that has judged queries"
        )
    bad = int((~np.isfinite(system)).sum() + (~np.isfinite(baseline)).sum())
    if bad:
        raise InputError(
            f"{bad} per-query values are NaN or infinite; a query that a system does not answer counts as 0"
        )


def compare_systems(values: Mapping[str, np.ndarray], baseline: str, seed: int) -> dict[str, Any]:
    """Every other system against `baseline` on the same queries, the p-values of each test
    corrected over the comparisons by Holm.

    Args:
        values: System -> (Q,) per-query values of one measure; position i is the same query in all
            of them.
        baseline: The name in `values` that the others are compared with.
        seed: Seeds the randomisation and the bootstrap.

    Returns:
        `baseline`, `num_queries`, the settings, and `comparisons`: system -> what
            :func:`paired_tests` returns, and `p_holm` in each test.

    Raises:
        InputError: `baseline` is not among the systems, or values cannot be paired (see
            :func:`paired_tests`).
    """
    if baseline not in values:
        raise InputError(
            f"the baseline {baseline!r} is not among the systems: {', '.join(map(repr, values))}"
        )
    comparisons = {
        name: paired_tests(array, values[baseline], seed)
        for name, array in values.items()
        if name != baseline
    }
    for test in TESTS:
        adjusted = holm([comparison[test]["p"] for comparison in comparisons.values()])
        for comparison, p in zip(comparisons.values(), adjusted, strict=True):
            comparison[test]["p_holm"] = p
    return {
        "baseline": baseline,
        "num_queries": len(values[baseline]),
        "alpha": ALPHA,
        "power": POWER,
        "correction": "Holm, over the comparisons",
        "effect_size": "d_z: mean of the paired differences over their standard deviation",
        "randomisations": RANDOMISATIONS,
        "resamples": RESAMPLES,
        "seed": seed,
        "comparisons": comparisons,
    }


def crossed_interval(differences: np.ndarray) -> dict[str, Any]:
    """The mean of differences (S, Q) of S seeds on Q queries, with an interval over other queries
    *and* other seeds.

    Seeds and queries are crossed random effects: with the mean squares of seeds, queries and what
        is left, the variance of the grand mean
    is (MS_seeds + MS_queries - MS_rest) / (S Q) (Searle, Casella & McCulloch, 1992, ch. 4; a
    component below 0 counts as 0), with Satterthwaite's degrees of freedom (1946): Clark's quasi-F
    (1973), as an interval.
    """
    n = differences.size
    if _equal(differences):
        value = float(differences[0, 0])
        same: Any = (
            {"value": 0.0, "low": 0.0, "high": 0.0, "n": n}
            if value == 0
            else undefined(n, f"every difference is {value:g}")
        )
        return {"difference": same, "p": 1.0 if value == 0 else None, "degrees_of_freedom": None}
    seeds, queries = differences.shape
    grand, rows, columns = (
        float(differences.mean()),
        differences.mean(1, keepdims=True),
        differences.mean(0, keepdims=True),
    )
    freedom = np.array([seeds - 1, queries - 1, (seeds - 1) * (queries - 1)])
    squares = [queries * np.square(rows - grand).sum(), seeds * np.square(columns - grand).sum()]
    squares.append(np.square(differences - rows - columns + grand).sum())
    of_seeds, of_queries, rest = np.array(squares) / freedom
    seeds_vary, queries_vary = int(of_seeds > rest), int(of_queries > rest)
    terms = np.array(
        [of_seeds * seeds_vary, of_queries * queries_vary, rest * (1 - seeds_vary - queries_vary)]
    )
    df = float(terms.sum() ** 2 / (terms**2 / freedom).sum())
    error = float(np.sqrt(terms.sum() / n))
    half = float(stats.t.ppf((1 + LEVEL) / 2, df)) * error
    return {
        "difference": {"value": grand, "low": grand - half, "high": grand + half, "n": n},
        "p": float(2 * stats.t.sf(abs(grand) / error, df)),
        "degrees_of_freedom": df,
    }


def over_seeds(values: np.ndarray, baseline: np.ndarray, seed: int) -> dict[str, Any]:
    """A recipe that was run with several seeds against a baseline: what holds for other queries
    *and* other seeds.

    Every seed answers every query. Taking each (seed, query) for an observation of its own would
    count every query S times, and taking the mean over seeds for one system would forget that
        another seed gives another student: see :func:`crossed_interval`. A bootstrap
    over seeds would be too narrow: with S of them it shrinks their variance to (S - 1) / S of
        itself.

    Args:
        values: (S, Q) per-query values, S >= 2 seeds. Those of a run are in its `evaluation.json`
            under `per_query`.
        baseline: (Q,) of one system, or (S, Q) if the baseline was run with the same seeds and row
            i belongs to row i.
        seed: Seeds the randomisation and the bootstrap of the tests over queries.

    Returns:
        `difference` with the interval over seeds and queries, its `p` and `degrees_of_freedom`, the
        mean difference of each seed (`per_seed`) and their standard deviation (`sd_between_seeds`),
        and `these_seeds`: :func:`paired_tests` on the mean over these seeds, which generalises to
            other queries only.

    Raises:
        InputError: Fewer than two seeds or two queries, or values that cannot be paired.
    """
    values, baseline = np.asarray(values, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if (
        values.ndim != 2
        or len(values) < 2
        or values.shape[1] < 2
        or baseline.shape not in (values.shape, values.shape[1:])
    ):
        raise InputError(
            f"values of shape {values.shape} against a baseline of shape {baseline.shape}: expected (seeds, queries), at least two of "
            "each, and a baseline of (queries,) or of the same shape"
        )
    _check(values, baseline)
    differences = values - baseline
    per_seed = differences.mean(1)
    return {
        "num_seeds": len(values),
        "num_queries": values.shape[1],
        **crossed_interval(differences),
        "per_seed": per_seed.tolist(),
        "sd_between_seeds": float(per_seed.std(ddof=1)),
        "these_seeds": paired_tests(
            values.mean(0), np.broadcast_to(baseline, values.shape).mean(0), seed
        ),
    }
