"""Every figure against a hand-computed value or a library called by hand."""

import json
import math
from pathlib import Path

import ir_measures
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distill.compute.search import search
from hf_distill.errors import InputError
from hf_distill.evaluation.agreement import (
    overlaps,
    rank_biased_overlap,
    ranking_agreement,
)
from hf_distill.evaluation.efficiency import bytes_on_disk
from hf_distill.evaluation.evaluate import ratio_of_means
from hf_distill.evaluation.examples import (
    per_query_values,
    wins_and_losses,
)
from hf_distill.evaluation.fidelity import (
    average_precision,
    by_range,
    calibration,
    calibration_error,
    decisions,
    f1,
    fidelity,
    kendall_figure,
    pearson,
    quantile_bins,
    roc_auc,
    spearman,
)
from hf_distill.evaluation.intervals import (
    figure,
    mean,
)
from hf_distill.evaluation.paper_protocol import (
    PUBLISHED,
    cohens_d,
    f1_at_median,
    ndcg_at,
    paper_protocol,
    recall_at,
)
from hf_distill.evaluation.retrieval import (
    bm25_run,
    make_run,
    per_query,
)
from hf_distill.evaluation.significance import compare_systems

RNG = np.random.default_rng(0)


def test_every_judged_query_counts_by_hand() -> None:
    run = {"q1": {"d1": 0.9, "d2": 0.8, "d3": 0.1}, "q2": {"d1": 0.5}, "q3": {}}
    qrels = {"q1": {"d2": 1}, "q2": {"d9": 1}, "q3": {"d1": 1}, "q4": {"d1": 1}}
    values = per_query(run, qrels)
    assert values["nDCG@10"].tolist() == pytest.approx([1 / math.log2(3), 0, 0, 0])
    assert values["RR@10"].tolist() == pytest.approx([0.5, 0, 0, 0])
    assert values["R@1"].tolist() == [0, 0, 0, 0]
    assert values["R@10"].tolist() == [1, 0, 0, 0]


def test_per_query_values_are_those_of_ir_measures() -> None:
    documents = RNG.normal(size=(60, 6)).astype(np.float32)
    queries = RNG.normal(size=(20, 6)).astype(np.float32)
    query_ids, document_ids = [f"q{i}" for i in range(20)], [f"d{i}" for i in range(60)]
    run = make_run(query_ids, document_ids, *search(queries, documents, 100))
    qrels = {
        q: {
            document_ids[j]: int(g)
            for j, g in zip(RNG.choice(60, 4, False), (1, 2, 1, 3), strict=True)
        }
        for q in query_ids
    }
    values = per_query(run, qrels)
    expected = ir_measures.calc_aggregate([ir_measures.nDCG @ 10, ir_measures.R @ 100], qrels, run)
    assert values["nDCG@10"].mean() == pytest.approx(expected[ir_measures.nDCG @ 10])
    assert values["R@100"].mean() == pytest.approx(expected[ir_measures.R @ 100])


def test_bm25_finds_the_document_with_the_words() -> None:
    documents = ["the cat sleeps", "stars shine at night", "a river runs to the sea"]
    run = bm25_run(
        ["q1", "q2"], ["stars at night", "nothing matches this"], ["d1", "d2", "d3"], documents
    )
    assert max(run["q1"], key=run["q1"].get) == "d2"
    assert run["q2"] == {}, "a document without a common word is not retrieved"


# --- intervals
# -------------------------------------------------------------------------------------------------------


def test_an_interval_is_the_bootstraps_of_scipy() -> None:
    values = RNG.normal(size=400)
    ours = figure(mean, [values], 0)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(1)
    ).confidence_interval
    assert ours["value"] == pytest.approx(values.mean())
    assert (ours["low"], ours["high"]) == pytest.approx((theirs.low, theirs.high), abs=0.01)
    assert ours["n"] == 400


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    hits = 0
    for seed in range(200):
        sample = np.random.default_rng(seed).exponential(size=100)
        interval = figure(mean, [sample], seed)
        hits += interval["low"] <= 1 <= interval["high"]
    assert 0.88 <= hits / 200 <= 0.99


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30))
def test_an_interval_holds_its_value(values: list[float]) -> None:
    interval = figure(mean, [np.array(values)], 0)
    assert interval["low"] <= interval["value"] <= interval["high"]


def test_nothing_has_no_interval() -> None:
    with pytest.raises(ValueError, match="empty sample"):
        figure(mean, [np.array([])], 0)
    with pytest.raises(ValueError, match="pearson is undefined on these 3 values"):
        figure(pearson, [np.ones(3), np.arange(3.0)], 0)


def test_ratio_of_means() -> None:
    assert ratio_of_means(np.array([1.0, 2.0]), np.array([2.0, 4.0])) == pytest.approx(0.5)
    assert np.isnan(ratio_of_means(np.array([1.0]), np.array([0.0])))


# --- fidelity
# --------------------------------------------------------------------------------------------------------


def test_fidelity_is_scipys() -> None:
    teacher = RNG.uniform(0.2, 0.9, 300)
    student = np.clip(teacher + RNG.normal(0.05, 0.1, 300), -1, 1).round(2)  # rounding makes ties
    result = fidelity(teacher, student, 0)
    assert result["pearson"]["value"] == pytest.approx(
        scipy.stats.pearsonr(teacher, student).statistic
    )
    assert result["spearman"]["value"] == pytest.approx(
        scipy.stats.spearmanr(teacher, student).statistic
    )
    assert result["mae"]["value"] == pytest.approx(np.abs(teacher - student).mean())
    assert result["rmse"]["value"] == pytest.approx(math.sqrt(((teacher - student) ** 2).mean()))
    assert result["bias"]["value"] == pytest.approx(student.mean() - teacher.mean())
    assert result["num_pairs"] == 300 == sum(row["n"] for row in result["by_range"])


def test_correlations_are_vectorised() -> None:
    x, y = RNG.normal(size=(2, 5, 40))
    assert pearson(x, y) == pytest.approx(
        [scipy.stats.pearsonr(a, b).statistic for a, b in zip(x, y, strict=True)]
    )
    assert spearman(x, y) == pytest.approx(
        [scipy.stats.spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)]
    )


def test_a_constant_student_has_no_correlation_and_it_is_said() -> None:
    result = fidelity(np.array([0.1, 0.5, 0.9]), np.full(3, 0.5), 0)
    assert result["pearson"]["value"] is None
    assert result["pearson"]["undefined"] == "the student's scores are all equal"
    assert result["mae"]["value"] == pytest.approx(0.8 / 3)


def test_ranges_hold_every_pair_once() -> None:
    teacher = np.array([-1.0, -0.05, 0.0, 0.1, 0.95, 1.0])
    rows = by_range(teacher, teacher)
    assert [(row["low"], row["n"]) for row in rows] == [
        (-1.0, 1),
        (-0.1, 1),
        (0.0, 1),
        (0.1, 1),
        (0.9, 2),
    ]


# --- the paper's protocol
# --------------------------------------------------------------------------------------------


def test_overlap_by_hand() -> None:
    teacher, student = np.array([0.9, 0.8, 0.7, 0.1]), np.array([0.5, 0.9, 0.1, 0.8])
    assert recall_at(teacher, student, 1) == 0
    assert recall_at(teacher, student, 2) == 0.5
    assert recall_at(teacher, student, 4) == 1
    dcg, ideal = 0.8 + 0.1 / math.log2(3), 0.9 + 0.8 / math.log2(3)
    assert ndcg_at(teacher, student, 2) == pytest.approx(dcg / ideal)


def test_f1_at_the_median_by_hand_and_as_the_paper_found_it() -> None:
    teacher, student = np.array([0.1, 0.4, 0.6, 0.9]), np.array([0.2, 0.7, 0.3, 0.8])
    assert f1_at_median(teacher, student) == {
        "value": 0.5,
        "threshold": 0.5,
    }  # one hit, two true, two predicted
    collapsed = f1_at_median(np.linspace(0, 1, 1001), np.full(1001, 0.99))
    assert collapsed["value"] == pytest.approx(PUBLISHED["f1"], abs=1e-3), (
        "a student collapsed to .99 has the published F1"
    )


def test_tests_are_scipys_and_cohens_d_is_pooled() -> None:
    teacher = RNG.normal(0.77, 0.05, 200)
    student = RNG.normal(0.99, 0.01, 200)
    result = paper_protocol(teacher, student)
    assert result["paired_t_test"]["p"] == scipy.stats.ttest_rel(teacher, student).pvalue
    assert result["wilcoxon"]["p"] == scipy.stats.wilcoxon(teacher, student).pvalue
    pooled = math.sqrt((teacher.var(ddof=1) + student.var(ddof=1)) / 2)
    assert result["cohens_d"] == pytest.approx((teacher.mean() - student.mean()) / pooled)


def test_a_student_equal_to_its_teacher_differs_nowhere() -> None:
    scores = RNG.uniform(size=150)
    result = paper_protocol(scores, scores)
    assert (
        result["mae"],
        result["Recall@10"],
        result["NDCG@10"],
        result["f1"]["value"],
        result["cohens_d"],
    ) == (0, 1, 1, 1, 0)
    assert result["pearson"] == pytest.approx(1)
    assert result["paired_t_test"]["p"] == result["wilcoxon"]["p"] == 1


def test_undefined_statistics_are_none_not_nan() -> None:
    result = paper_protocol(np.array([0.5, 0.75]), np.array([0.25, 0.5]))
    assert result["paired_t_test"]["p"] is None
    assert "no variance" in result["paired_t_test"]["undefined"]
    assert cohens_d(np.ones(3), np.ones(3)) is None
    assert paper_protocol(np.array([0.4, 0.6]), np.array([0.5, 0.5]))["pearson"] is None


# --- fidelity: order, calibration, decisions
# -------------------------------------------------------------------------


def test_kendall_is_scipys_and_its_interval_the_jackknifes() -> None:
    x = RNG.normal(size=40).round(1)
    y = (x + RNG.normal(size=40)).round(1)
    ours = kendall_figure(x, y)
    without = np.array(
        [scipy.stats.kendalltau(np.delete(x, i), np.delete(y, i)).statistic for i in range(40)]
    )
    half = scipy.stats.norm.ppf(0.975) * math.sqrt(
        39 / 40 * ((without - without.mean()) ** 2).sum()
    )
    assert ours["value"] == pytest.approx(scipy.stats.kendalltau(x, y).statistic, abs=1e-9)
    assert (ours["low"], ours["high"]) == pytest.approx(
        (ours["value"] - half, ours["value"] + half), abs=1e-9
    )
    assert kendall_figure(np.array([1.0, 2.0]), np.array([1.0, 2.0])) == {
        "value": 1.0,
        "low": -1.0,
        "high": 1.0,
        "n": 2,
    }


def test_kendalls_interval_covers_the_truth() -> None:
    truth = 2 / math.pi * math.asin(0.6)  # of the bivariate normal with correlation .6
    hits = 0
    for seed in range(300):
        x, e = np.random.default_rng(seed).normal(size=(2, 80))
        interval = kendall_figure(x, 0.6 * x + 0.8 * e)
        hits += interval["low"] <= truth <= interval["high"]
    assert hits / 300 == pytest.approx(0.95, abs=0.04)


def test_calibration_by_hand() -> None:
    student = np.array([0.1, 0.2, 0.3, 0.4])
    teacher = np.array([0.1, 0.4, 0.1, 0.2])
    bins = quantile_bins(student, 2)
    assert bins.tolist() == [0, 0, 1, 1]
    # Gaps 0 -.2 | .2 .2: bin means -.1 and .2, each of half the pairs.
    assert calibration_error(bins, student - teacher) == pytest.approx(0.15)
    result = calibration(np.full(10, 0.5), np.full(10, 0.7), 0)
    assert [row["n"] for row in result["bins"]] == [10], "equal scores share a bin"
    assert result["expected_error"]["value"] == pytest.approx(0.2)


def test_bins_hold_equally_many_pairs() -> None:
    counts = np.bincount(quantile_bins(RNG.normal(size=1000)))
    assert counts.tolist() == [100] * 10


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=20).filter(
        lambda rows: len({t for t, _ in rows}) == 2
    )
)
def test_auc_average_precision_and_f1_are_scikit_learns(rows: list[tuple[bool, int]]) -> None:
    truth, scores = np.array([t for t, _ in rows]), np.array([float(s) for _, s in rows])
    assert roc_auc(truth, scores) == pytest.approx(
        sklearn.metrics.roc_auc_score(truth, scores), abs=1e-9
    )
    assert average_precision(truth, scores) == pytest.approx(
        sklearn.metrics.average_precision_score(truth, scores), abs=1e-9
    )
    assert f1(truth, scores >= 3) == pytest.approx(
        sklearn.metrics.f1_score(truth, scores >= 3), abs=1e-9
    )
    twice = np.stack([truth, truth]), np.stack([scores, -scores])
    assert roc_auc(*twice)[1] == pytest.approx(
        sklearn.metrics.roc_auc_score(truth, -scores), abs=1e-9
    )
    assert average_precision(*twice)[1] == pytest.approx(
        sklearn.metrics.average_precision_score(truth, -scores), abs=1e-9
    )


def test_decisions_at_the_median_are_the_papers_f1() -> None:
    teacher, student = RNG.uniform(size=(2, 101))
    result = decisions(teacher, student, 0)
    assert result["median"]["f1"]["value"] == pytest.approx(f1_at_median(teacher, student)["value"])
    assert result["80th percentile"]["positives"] == 21
    assert (
        result["median"]["roc_auc"]["low"]
        < result["median"]["roc_auc"]["value"]
        < result["median"]["roc_auc"]["high"]
    )


@pytest.mark.parametrize(
    ("teacher", "student", "reason"),
    [
        ([0.5, 0.5, 0.5], [0.1, 0.2, 0.3], "the teacher's scores are all equal"),
        ([0.1, 0.2, 0.3], [0.5, 0.5, 0.5], "the student's scores are all equal"),
        ([0.1], [0.3], "one pair has no correlation"),
    ],
)
def test_constant_scores_are_said_everywhere_and_nothing_crashes(
    teacher: list, student: list, reason: str
) -> None:
    result = fidelity(np.array(teacher), np.array(student), 0)
    assert [result[name]["undefined"] for name in ("pearson", "spearman", "kendall")] == [
        reason
    ] * 3
    auc = result["decisions"]["median"]["roc_auc"]
    assert auc["value"] is None
    assert auc["undefined"] == (
        reason
        if len(set(teacher)) > 1
        else f"every teacher score reaches the threshold {teacher[0]:.4f}"
    )
    table = paper_protocol(np.array(teacher), np.array(student))
    if len(teacher) > 1:
        assert (table["Recall@1"], table["NDCG@1"], table["unranked"]) == (None, None, reason)
    json.dumps([result, table], allow_nan=False)


def test_scores_that_are_missing_are_refused() -> None:
    with pytest.raises(InputError, match="1 teacher scores and 0 student scores are NaN"):
        fidelity(np.array([0.1, np.nan]), np.ones(2), 0)
    with pytest.raises(InputError, match="0 teacher scores and 0 student scores"):
        fidelity(np.ones(0), np.ones(0), 0)


def test_gains_that_are_not_positive_have_no_ndcg() -> None:
    assert ndcg_at(np.array([-1.0, -2.0]), np.array([1.0, 2.0]), 2) is None


def test_equal_differences_that_floats_make_unequal_have_no_test() -> None:
    teacher = np.linspace(0.1, 0.7, 30)
    table = paper_protocol(teacher, teacher + 0.1)
    assert table["paired_t_test"]["p"] is None


# --- rankings
# --------------------------------------------------------------------------------------------------------


def ranking(names: str) -> dict[str, float]:
    return {name: -float(i) for i, name in enumerate(names)}


def test_overlap_and_rank_biased_overlap_by_hand() -> None:
    shared = overlaps(ranking("abcd"), ranking("bade"))
    assert shared.tolist() == [0, 2, 2, 3]
    p = 0.9
    expected = 3 / 4 * p**4 + (1 - p) / p * (0 * p + 2 / 2 * p**2 + 2 / 3 * p**3 + 3 / 4 * p**4)
    assert rank_biased_overlap(shared) == pytest.approx(expected)
    assert rank_biased_overlap(overlaps(ranking("abcd"), ranking("abcd"))) == pytest.approx(1)
    assert rank_biased_overlap(overlaps(ranking("abcd"), ranking("efgh"))) == 0


def test_equal_scores_are_ranked_by_document() -> None:
    assert overlaps({"b": 1.0, "a": 1.0}, {"a": 2.0, "b": 1.0}).tolist() == [1, 2]


@settings(max_examples=50, deadline=None)
@given(st.permutations("abcdefgh"), st.permutations("abcdefgh"))
def test_rank_biased_overlap_is_symmetric_and_within_0_and_1(
    one: list[str], other: list[str]
) -> None:
    left, right = ranking("".join(one)), ranking("".join(other))
    value = rank_biased_overlap(overlaps(left, right))
    assert value == pytest.approx(rank_biased_overlap(overlaps(right, left)))
    assert 0 <= value <= 1 + 1e-12


def test_ranking_agreement_over_queries() -> None:
    teacher = {"q1": ranking("abcdefghijkl"), "q2": ranking("lkjihgfedcba")}
    student = {"q1": ranking("abcdefghijkl"), "q2": ranking("abcdefghijkl")}
    result = ranking_agreement(teacher, {"student": student}, 0)
    assert (result["p"], result["depth"]) == (0.9, 12)
    assert result["student"]["overlap@1"] == {"value": 0.5, "low": 0.0, "high": 1.0, "n": 2}
    assert result["student"]["overlap@10"]["value"] == pytest.approx(
        0.9
    )  # q2's first ten lack a and b, the other's k and l
    assert "overlap@100" not in result["student"]
    with pytest.raises(
        InputError, match="1 of 2 queries have no ranking in the reference or in student"
    ):
        ranking_agreement(teacher, {"student": {"q1": ranking("ab")}}, 0)


# --- the largest wins and losses
# -------------------------------------------------------------------------------------


def test_wins_and_losses_carry_their_texts() -> None:
    queries = {"q1": "one", "q2": "two", "q3": "three"}
    documents = {"d1": "first", "d2": "second " * 100}
    qrels = {"q1": {"d1": 1}, "q2": {"d2": 1}, "q3": {"d1": 1}}
    runs = {
        "student": {"q1": {"d1": 0.9, "d2": 0.1}, "q2": {"d1": 0.9, "d2": 0.8}, "q3": {"d1": 1.0}},
        "teacher": {"q1": {"d2": 0.9, "d1": 0.8}, "q2": {"d2": 0.9}, "q3": {"d1": 1.0}},
    }
    values = {"student": np.array([1.0, 0.63, 1.0]), "teacher": np.array([0.63, 1.0, 1.0])}
    result = wins_and_losses(
        "nDCG@10", ("student", "teacher"), values, runs, queries, documents, qrels
    )
    assert result["wins"] == [
        {
            "query": "one",
            "judged": "first",
            "first": None,
            "value": 1.0,
            "value_against": 0.63,
            "rank": 1,
            "rank_against": 2,
        }
    ]
    (loss,) = result["losses"]
    assert (loss["query"], loss["first"], loss["rank"], loss["rank_against"]) == (
        "two",
        "first",
        2,
        1,
    )
    assert len(loss["judged"]) == 300
    assert loss["judged"].endswith("…")


def test_per_query_values_can_be_tested_again() -> None:
    values = {"a": RNG.uniform(size=30), "b": RNG.uniform(size=30)}
    written = json.loads(
        json.dumps(per_query_values("nDCG@10", values, [str(i) for i in range(30)]))
    )
    again = {name: np.array(row) for name, row in written["systems"].items()}
    p, q = (
        compare_systems(v, "a", 0)["comparisons"]["b"]["paired_t_test"]["p"]
        for v in (values, again)
    )
    assert p == pytest.approx(q, abs=1e-9)


def test_bytes_on_disk_are_those_that_loading_reads(tmp_path: Path) -> None:
    sizes = {
        "model.safetensors": 100, "pytorch_model.bin": 99, "config.json": 7, "README.md": 1000, "1_Dense/pytorch_model.bin": 20,
        "onnx/model.onnx": 300, "onnx/config.json": 4, "tf_model.h5": 98,
    }  # fmt: skip
    for name, size in sizes.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    assert bytes_on_disk(tmp_path) == 100 + 7 + 20
