"""The significance tests against scipy called by hand, and on data that is too small, too equal or
odd.
"""

import dataclasses
import json
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distill.errors import InputError
from hf_distill.evaluation.intervals import RESAMPLES, estimate, mean
from hf_distill.evaluation.results import Estimate, SignificanceTest
from hf_distill.evaluation.significance import (
    RANDOMISATIONS,
    TESTS,
    cohens_dz,
    compare_systems,
    crossed_interval,
    holm,
    over_seeds,
    paired_tests,
    smallest_detectable,
    student_significance,
)


def two_systems(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Like nDCG@10: many ties, many zeros."""
    rng = np.random.default_rng(seed)
    baseline = rng.choice([0.0, 0.43, 0.63, 1.0], n)
    return np.where(rng.random(n) < 0.5, baseline, rng.choice([0.0, 0.43, 0.63, 1.0], n)), baseline


def test_every_test_is_scipys_called_by_hand() -> None:
    system, baseline = two_systems(200)
    d = system - baseline
    result = paired_tests(system, baseline, seed=3)
    tests = result.tests
    close = {"rel": 1e-9, "abs": 1e-9}
    t, w = scipy.stats.ttest_rel(system, baseline), scipy.stats.wilcoxon(system, baseline)
    assert tests["paired_t_test"].p == pytest.approx(t.pvalue, **close)
    assert tests["paired_t_test"].statistic == pytest.approx(t.statistic, **close)
    assert tests["wilcoxon"].p == pytest.approx(w.pvalue, **close)
    flips = scipy.stats.permutation_test(
        (d,), np.mean, permutation_type="samples", n_resamples=RANDOMISATIONS, batch=2**20 // 200,
        rng=np.random.default_rng(3),
    )  # fmt: skip
    assert tests["randomisation"].p == pytest.approx(flips.pvalue, **close)
    drawn = scipy.stats.bootstrap(
        (d,), np.mean, method="percentile", n_resamples=RESAMPLES, batch=250,
        rng=np.random.default_rng(3),
    )  # fmt: skip
    assert result.difference.value == pytest.approx(d.mean(), **close)
    assert result.difference.low == pytest.approx(drawn.confidence_interval.low, **close)
    assert result.difference.high == pytest.approx(drawn.confidence_interval.high, **close)
    extreme = (np.abs(drawn.bootstrap_distribution - d.mean()) >= abs(d.mean())).sum()
    assert tests["bootstrap"].p == pytest.approx((1 + extreme) / (1 + RESAMPLES), **close)
    counts = (result.wins, result.losses, result.ties)
    assert counts == ((d > 0).sum(), (d < 0).sum(), (d == 0).sum())


def test_the_paired_bootstrap_is_scipys_on_two_samples() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 80))
    ratio = scipy.stats.bootstrap(
        (x, y), lambda a, b, axis: a.mean(axis) - 2 * b.mean(axis), paired=True, vectorized=True,
        method="percentile", n_resamples=RESAMPLES, batch=250, rng=np.random.default_rng(1),
    )  # fmt: skip
    ours = estimate(lambda a, b: a.mean(-1) - 2 * b.mean(-1), [x, y], 1)
    assert (ours.low, ours.high) == pytest.approx(tuple(ratio.confidence_interval), abs=1e-9)


def test_few_queries_are_randomised_exactly() -> None:
    differences = np.array([0.3, 0.1, -0.05, 0.2])
    # Of the 16 patterns of signs, |sum| reaches .55 in ++++, ++-+ and their mirror images.
    test = paired_tests(differences, np.zeros(4), 0).tests["randomisation"]
    assert test.p == pytest.approx(4 / 16)


def test_a_system_equal_to_another_differs_nowhere() -> None:
    system, _ = two_systems(50)
    (result,) = compare_systems({"other": (system, system.copy())}, 0).values()
    assert result.tests == dict.fromkeys(TESTS, SignificanceTest(0.0, 1.0, p_holm=1.0))
    assert result.difference == Estimate(0.0, 0.0, 0.0, 50)
    assert (result.wins, result.losses, result.ties) == (0, 0, 50)
    assert result.cohens_dz.value is None
    assert "no spread" in result.cohens_dz.undefined
    assert result.smallest_detectable is None


def test_a_constant_difference_has_no_t_test_and_says_why() -> None:
    result = paired_tests(np.full(20, 0.5), np.full(20, 0.4), 0)
    assert result.tests["paired_t_test"] == SignificanceTest(
        None, None, undefined="every difference is the same, so it has no variance"
    )
    assert result.tests["bootstrap"].p is None
    assert result.tests["wilcoxon"].p < 0.001
    assert result.tests["randomisation"].p < 0.001
    json.dumps(dataclasses.asdict(result), allow_nan=False)


def test_one_query_says_so() -> None:
    (result,) = compare_systems({"a": (np.array([0.7]), np.array([0.2]))}, 0).values()
    assert all(test.p is None and test.p_holm is None for test in result.tests.values())
    assert result.tests["wilcoxon"].undefined == "one query says nothing about others"
    assert result.difference.value == pytest.approx(0.5)
    assert result.smallest_detectable is None


@pytest.mark.parametrize(
    ("system", "other", "says"),
    [
        (np.ones(3), np.ones(4), r"\(3,\) and \(4,\)"),
        (np.ones(0), np.ones(0), "no query"),
        (np.ones(2), np.array([np.nan, 1]), "1 per-query values are NaN"),
    ],
)
def test_values_that_cannot_be_paired_are_refused(
    system: np.ndarray, other: np.ndarray, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        compare_systems({"other": (system, other)}, 0)


def test_significance_is_the_student_minus_the_other_system() -> None:
    better, worse = np.array([0.9, 0.8, 1.0, 0.7]), np.array([0.5, 0.6, 0.3, 0.1])
    values = {"teacher": better, "student": worse, "bm25": worse - 0.1}
    result = student_significance("nDCG@10", values, 0)
    assert list(result.comparisons) == ["teacher", "bm25"]
    against = result.comparisons["teacher"]
    assert against.difference.value == pytest.approx((worse - better).mean())
    assert (against.wins, against.losses) == (0, 4)
    assert against.cohens_dz.value < 0
    assert against.tests["paired_t_test"].statistic < 0
    assert result.comparisons["bm25"].difference.value == pytest.approx(0.1)
    assert result.comparisons["bm25"].wins == 4


def test_exchanging_two_systems_mirrors_their_comparison() -> None:
    system, other = two_systems(60)
    one, mirrored = paired_tests(system, other, 0), paired_tests(other, system, 0)
    assert one.difference.value == pytest.approx(-mirrored.difference.value)
    assert one.difference.low == pytest.approx(-mirrored.difference.high)
    for name, test in one.tests.items():
        assert test.p == pytest.approx(mirrored.tests[name].p), name


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, None, 0.5]) == [1.0, None, 1.0]
    assert holm([]) == []


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_and_keeps_their_order(p: list[float]) -> None:
    adjusted = holm(p)
    assert all(a >= b for a, b in zip(adjusted, p, strict=True))
    assert adjusted == [holm(p)[i] for i in range(len(p))]
    order = np.argsort(p, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


def test_p_values_of_a_comparison_are_corrected_over_the_comparisons() -> None:
    rng = np.random.default_rng(1)
    base = rng.uniform(size=60)
    pairs = {name: (base + rng.normal(0.02, 0.1, 60), base) for name in ("s0", "s1", "s2")}
    tests = [c.tests["paired_t_test"] for c in compare_systems(pairs, 0).values()]
    assert [test.p_holm for test in tests] == holm([test.p for test in tests])
    assert tests[0].p == paired_tests(*pairs["s0"], 0).tests["paired_t_test"].p


def test_cohens_dz_by_hand() -> None:
    d = np.array([1.0, 2.0, 3.0])
    assert cohens_dz(d) == pytest.approx(2.0)  # mean 2, standard deviation 1
    assert np.isnan(cohens_dz(np.array([0.1, 0.1, 0.1])))
    t = scipy.stats.ttest_1samp(d, 0).statistic
    assert cohens_dz(d) == pytest.approx(t / math.sqrt(3))


def test_the_smallest_detectable_difference_has_the_power_it_claims() -> None:
    sample = np.random.default_rng(0).normal(size=64)
    sample *= 0.3 / sample.std(ddof=1)
    detectable = smallest_detectable(sample)
    # Cohen's table: n = 64 pairs, d_z = .356 for a power of .80.
    assert detectable / 0.3 == pytest.approx(0.356, abs=0.001)
    drawn = np.random.default_rng(1).normal(detectable, 0.3, size=(4000, 64))
    power = (scipy.stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05).mean()
    assert power == pytest.approx(0.8, abs=0.02)


def test_the_bootstrap_interval_of_a_difference_covers_the_truth() -> None:
    """Values like nDCG: half the queries tie, the others jump between few values."""
    steps, chances = np.array([0.0, 0.37, -0.2, 0.57]), [0.55, 0.2, 0.15, 0.1]
    truth = float(steps @ chances)
    hits = 0
    for seed in range(400):
        sample = np.random.default_rng(seed).choice(steps, 120, p=chances)
        interval = estimate(mean, [sample], seed)
        hits += interval.low <= truth <= interval.high
    assert hits / 400 == pytest.approx(0.95, abs=0.03)  # 3 standard errors are .033


# --- several seeds -------------------------------------------------------------------------------


def test_over_seeds_by_hand() -> None:
    baseline = np.array([0.4, 0.6, 0.3])
    # The seeds' means are .3 and .1, the queries' .2, .05 and .35, the grand mean .2.
    values = baseline + np.array([[0.3, 0.1, 0.5], [0.1, 0.0, 0.2]])
    result = over_seeds(values, baseline, 0)
    of_seeds, of_queries, rest = (
        3 * (0.1**2 + 0.1**2),
        2 * (0.15**2 + 0.15**2) / 2,
        (0.05**2 + 0.05**2) * 2 / 2,
    )
    variance = (of_seeds + of_queries - rest) / 6
    freedom = (of_seeds + of_queries - rest) ** 2 / (
        of_seeds**2 / 1 + of_queries**2 / 2 + rest**2 / 2
    )
    half = scipy.stats.t.ppf(0.975, freedom) * math.sqrt(variance)
    crossed = result.crossed
    assert crossed.degrees_of_freedom == pytest.approx(freedom)
    interval = (crossed.difference.value, crossed.difference.low, crossed.difference.high)
    assert interval == pytest.approx((0.2, 0.2 - half, 0.2 + half))
    assert crossed.difference.n == 6
    assert crossed.p == pytest.approx(2 * scipy.stats.t.sf(0.2 / math.sqrt(variance), freedom))
    assert result.per_seed == pytest.approx((0.3, 0.1))
    assert result.sd_between_seeds == pytest.approx(math.sqrt(0.02))
    assert result.these_seeds == paired_tests(values.mean(0), baseline, 0)


def test_seeds_that_agree_are_the_test_over_queries() -> None:
    system, baseline = two_systems(80)
    result = over_seeds(np.tile(system, (3, 1)), baseline, 0)
    expected = scipy.stats.ttest_rel(system, baseline).pvalue
    assert result.crossed.p == pytest.approx(expected, rel=1e-9)
    assert result.sd_between_seeds == 0


def test_the_interval_over_seeds_and_queries_covers_the_truth_where_one_over_queries_does_not() -> (
    None
):
    rng = np.random.default_rng(0)
    hits = only_queries = 0
    for _ in range(400):
        differences = (
            rng.normal(0, 0.03, (3, 1))
            + rng.normal(0, 0.2, (1, 150))
            + rng.normal(0, 0.1, (3, 150))
        )
        grand = crossed_interval(differences).difference
        hits += grand.low <= 0 <= grand.high
        only_queries += scipy.stats.ttest_1samp(differences.mean(0), 0).pvalue > 0.05
    assert hits / 400 == pytest.approx(0.95, abs=0.03)
    assert only_queries / 400 < 0.85


def test_a_seed_effect_smaller_than_chance_counts_as_none() -> None:
    # The seeds' means are equal, the rest is not.
    noise = np.array([[0.1, -0.1, 0.3], [-0.1, 0.1, 0.3]])
    assert crossed_interval(noise).degrees_of_freedom == pytest.approx(2)


def test_seeds_equal_to_the_baseline_differ_nowhere() -> None:
    result = over_seeds(np.ones((2, 5)), np.ones(5), 0)
    assert (result.crossed.p, result.crossed.difference.value) == (1.0, 0.0)
    assert result.these_seeds.tests["bootstrap"].p == 1.0
    shifted = over_seeds(np.full((2, 5), 0.5), np.zeros((2, 5)), 0).crossed
    assert shifted.p is None
    assert shifted.difference.undefined == "every difference is 0.5"


@pytest.mark.parametrize(
    ("values", "baseline"),
    [((1, 5), (5,)), ((5,), (5,)), ((2, 5), (4,)), ((2, 1), (1,)), ((3, 5), (2, 5))],
)
def test_too_few_seeds_or_queries_are_refused(values: tuple, baseline: tuple) -> None:
    with pytest.raises(InputError, match="at least two of each"):
        over_seeds(np.zeros(values), np.zeros(baseline), 0)
