"""Significance: whether two systems can be told apart on these queries, by how much they differ,
and what difference these queries could have shown at all.

Everything works on per-query values of one measure, paired by query. A difference is always one
system minus another. `scipy.stats` does the arithmetic, except for Holm's correction and the
crossed random-effects interval over seeds, which it does not have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import special, stats

from hf_distill.errors import InputError
from hf_distill.evaluation.intervals import LEVEL, bootstrap, estimate, mean, undefined
from hf_distill.evaluation.results import (
    STUDENT,
    Comparison,
    CrossedInterval,
    Estimate,
    SeedsComparison,
    Significance,
    SignificanceTest,
)

ALPHA, POWER = 0.05, 0.8
RANDOMISATIONS = 9_999
TESTS = ("paired_t_test", "wilcoxon", "randomisation", "bootstrap")
_CELLS = 2**20  # numbers of a batch of randomisations: memory does not grow with the queries


def t_test(differences: np.ndarray) -> SignificanceTest:
    """The paired t-test, two-sided; undefined where every difference is the same."""
    if not differences.any():
        return SignificanceTest(0.0, 1.0)
    if is_constant(differences):
        reason = "every difference is the same, so it has no variance"
        return SignificanceTest(None, None, undefined=reason)
    result = stats.ttest_1samp(differences, 0.0)
    return SignificanceTest(float(result.statistic), float(result.pvalue))


def wilcoxon(differences: np.ndarray) -> SignificanceTest:
    """Wilcoxon's signed-rank test, two-sided."""
    if not differences.any():
        return SignificanceTest(0.0, 1.0)
    result = stats.wilcoxon(differences)
    return SignificanceTest(float(result.statistic), float(result.pvalue))


def _randomisation(differences: np.ndarray, seed: int) -> SignificanceTest:
    """The randomisation test (Fisher, 1935): under the null hypothesis the two values of a query
    can be exchanged, which flips the sign of its difference.

    Every pattern of signs is tried if there are at most `RANDOMISATIONS`, otherwise that many
    random ones.
    """
    if not differences.any():
        return SignificanceTest(0.0, 1.0)
    result = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", vectorized=True,
        n_resamples=RANDOMISATIONS, batch=max(1, _CELLS // len(differences)),
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    return SignificanceTest(float(result.statistic), float(min(result.pvalue, 1.0)))


def _bootstrap_test(differences: np.ndarray, seed: int) -> SignificanceTest:
    """The bootstrap test: how often a bootstrap mean is as far from the observed mean as that is
    from 0 (Efron & Tibshirani, 1993, sec. 16.4).
    """
    if not differences.any():
        return SignificanceTest(0.0, 1.0)
    if is_constant(differences):
        reason = "every difference is the same, so every resample is"
        return SignificanceTest(None, None, undefined=reason)
    observed = float(differences.mean())
    drawn = bootstrap(mean, [differences], seed)
    extreme = int((np.abs(drawn - observed) >= abs(observed)).sum())
    return SignificanceTest(observed, (1 + extreme) / (1 + len(drawn)))


def is_constant(differences: np.ndarray) -> bool:
    """Whether all differences are the same, up to the rounding of floats."""
    return bool(np.ptp(differences) <= 1e-12 * np.abs(differences).max())


def cohens_dz(differences: np.ndarray) -> np.ndarray:
    """Cohen's d of paired values, d_z: mean of the differences / their standard deviation (Cohen,
    1988, sec. 2.3.5), over the last axis.

    NaN where all differences are equal. It cannot be compared with a d over the pooled standard
    deviation of two groups.
    """
    spread = (
        differences.std(-1, ddof=1)
        if differences.shape[-1] > 1
        else np.zeros(differences.shape[:-1])
    )
    # The standard deviation of equal floats may differ from 0 in the last digit.
    constant = np.ptp(differences, axis=-1) <= 1e-12 * np.abs(differences).max(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(constant, np.nan, differences.mean(-1) / spread))


def smallest_detectable(differences: np.ndarray) -> float | None:
    """The difference of means that a paired t-test finds with 80% probability, given as many
    queries whose differences vary as these do.

    Two-sided at 5%, with the right sign, from the noncentral t distribution (Cohen, 1988, ch. 2).
    It depends on the number of queries and on the standard deviation of the differences, not on
    their mean: it describes the test set for this pair of systems, before any correction for
    several comparisons. None with fewer than two queries, or if all differences are equal, because
    their variance is then unknown.
    """
    n = len(differences)
    if n < 2 or is_constant(differences):
        return None
    shift = special.nctdtrinc(n - 1, 1 - POWER, stats.t.ppf(1 - ALPHA / 2, n - 1))
    return float(shift * differences.std(ddof=1) / np.sqrt(n))


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p-values (Holm, 1979), which bound the family-wise error. An
    undefined p stays None and is not counted.
    """
    defined = sorted((value, i) for i, value in enumerate(p) if value is not None)
    adjusted: list[float | None] = [None] * len(p)
    running = 0.0
    for rank, (value, i) in enumerate(defined):
        running = max(running, min(1.0, (len(defined) - rank) * value))
        adjusted[i] = running
    return adjusted


def paired_tests(system: np.ndarray, other: np.ndarray, seed: int) -> Comparison:
    """Whether `system` and `other` differ on their common queries, and by how much.

    Args:
        system: (Q,) per-query values of a measure.
        other: (Q,) those of the other system; position i is the same query in both.
        seed: Seeds the randomisation and the bootstrap.

    Returns:
        `system` minus `other`. An undefined p-value is None, with the reason. If no query differs,
        it is 1.

    Raises:
        InputError: There is no query, the numbers of queries differ, or values are not finite.
    """
    system, other = np.asarray(system, dtype=np.float64), np.asarray(other, dtype=np.float64)
    _check(system, other)
    differences = system - other
    n = len(differences)
    if n == 1 and differences.any():
        alone = SignificanceTest(None, None, undefined="one query says nothing about others")
        tests = dict.fromkeys(TESTS, alone)
    else:
        tests = {
            "paired_t_test": t_test(differences),
            "wilcoxon": wilcoxon(differences),
            "randomisation": _randomisation(differences, seed),
            "bootstrap": _bootstrap_test(differences, seed),
        }
    return Comparison(
        difference=estimate(mean, [differences], seed),
        tests=tests,
        cohens_dz=undefined(n, "every difference is the same, so there is no spread to divide by")
        if is_constant(differences)
        else estimate(cohens_dz, [differences], seed),
        smallest_detectable=smallest_detectable(differences),
        wins=int((differences > 0).sum()),
        ties=int((differences == 0).sum()),
        losses=int((differences < 0).sum()),
    )


def _check(system: np.ndarray, other: np.ndarray) -> None:
    if system.shape[-1:] != other.shape[-1:] or system.ndim < 1:
        raise InputError(
            f"per-query values of shapes {system.shape} and {other.shape} cannot be paired; "
            "measure both systems on the same queries, in the same order"
        )
    if not system.shape[-1]:
        raise InputError("there is no query to compare systems on; name a task with judged queries")
    bad = int((~np.isfinite(system)).sum() + (~np.isfinite(other)).sum())
    if bad:
        raise InputError(
            f"{bad} per-query values are NaN or infinite; count a query that a system does not "
            "answer as 0"
        )


def compare_systems(
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], seed: int
) -> dict[str, Comparison]:
    """Several comparisons at once; the p-values of each test are corrected over them by Holm.

    Args:
        pairs: The comparison's name -> (Q,) per-query values of the system and of the other one.
        seed: Seeds the randomisation and the bootstrap.

    Returns:
        Each comparison as from `paired_tests`, with `p_holm`.

    Raises:
        InputError: See `paired_tests`.
    """
    comparisons = {name: paired_tests(*values, seed) for name, values in pairs.items()}
    adjusted = {
        test: holm([comparison.tests[test].p for comparison in comparisons.values()])
        for test in TESTS
    }

    def corrected(i: int, comparison: Comparison) -> Comparison:
        tests = {
            name: dataclasses.replace(test, p_holm=adjusted[name][i])
            for name, test in comparison.tests.items()
        }
        return dataclasses.replace(comparison, tests=tests)

    return {
        name: corrected(i, comparison) for i, (name, comparison) in enumerate(comparisons.items())
    }


def student_significance(measure: str, values: Mapping[str, np.ndarray], seed: int) -> Significance:
    """The student minus every other system.

    Args:
        measure: What the values measure.
        values: System -> (Q,) per-query values; position i is the same query in all of them.
        seed: Seeds the randomisation and the bootstrap.

    Raises:
        InputError: See `paired_tests`.
    """
    student = values[STUDENT]
    pairs = {name: (student, other) for name, other in values.items() if name != STUDENT}
    return Significance(
        measure=measure,
        num_queries=len(student),
        alpha=ALPHA,
        power=POWER,
        randomisations=RANDOMISATIONS,
        comparisons=compare_systems(pairs, seed),
    )


def crossed_interval(differences: np.ndarray) -> CrossedInterval:
    """The mean of differences (S, Q) of S seeds on Q queries, with an interval over other queries
    *and* other seeds.

    Seeds and queries are crossed random effects: with the mean squares of seeds, of queries and of
    the rest, the variance of the grand mean is (MS_seeds + MS_queries - MS_rest) / (S Q) (Searle,
    Casella & McCulloch, 1992, ch. 4; a component below 0 counts as 0), with Satterthwaite's degrees
    of freedom (1946): Clark's quasi-F (1973), as an interval.
    """
    n = differences.size
    if is_constant(differences):
        value = float(differences[0, 0])
        if value == 0:
            return CrossedInterval(Estimate(0.0, 0.0, 0.0, n), 1.0, None)
        return CrossedInterval(undefined(n, f"every difference is {value:g}"), None, None)
    seeds, queries = differences.shape
    grand = float(differences.mean())
    rows, columns = differences.mean(1, keepdims=True), differences.mean(0, keepdims=True)
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
    p = float(2 * stats.t.sf(abs(grand) / error, df))
    return CrossedInterval(Estimate(grand, grand - half, grand + half, n), p, df)


def over_seeds(values: np.ndarray, baseline: np.ndarray, seed: int) -> SeedsComparison:
    """A recipe that was run with several seeds against a baseline, with an interval over other
    queries *and* other seeds.

    Every seed answers every query. Taking each (seed, query) as an observation of its own would
    count every query S times. Taking the mean over seeds as one system would ignore that another
    seed gives another student (see `crossed_interval`). A bootstrap over seeds would be too narrow:
    with S seeds it shrinks their variance to (S - 1) / S of its size.

    Args:
        values: (S, Q) per-query values, S >= 2 seeds. Those of a run are in its `evaluation.json`
            under `per_query`.
        baseline: (Q,) of one system, or (S, Q) if the baseline was run with the same seeds and row
            i belongs to row i.
        seed: Seeds the randomisation and the bootstrap of the tests over queries.

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
            f"values of shape {values.shape} cannot be compared with a baseline of shape "
            f"{baseline.shape}; give (seeds, queries), at least two of each, and a baseline of "
            "(queries,) or of the same shape"
        )
    _check(values, baseline)
    differences = values - baseline
    per_seed = differences.mean(1)
    return SeedsComparison(
        num_seeds=len(values),
        num_queries=values.shape[1],
        crossed=crossed_interval(differences),
        per_seed=tuple(per_seed.tolist()),
        sd_between_seeds=float(per_seed.std(ddof=1)),
        these_seeds=paired_tests(
            values.mean(0), np.broadcast_to(baseline, values.shape).mean(0), seed
        ),
    )
