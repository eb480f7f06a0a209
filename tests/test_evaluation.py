"""Every estimate against a hand-computed value or a library called by hand; a whole evaluation."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import ir_measures
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
from conftest import sentences
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from hf_distill.compute.search import search
from hf_distill.data.collection import (
    JUDGEMENT_FEATURES,
    TEXT_FEATURES,
    Collection,
    CollectionRecord,
    Source,
    text_id,
    write_table,
)
from hf_distill.errors import InputError
from hf_distill.evaluation.agreement import overlaps, rank_biased_overlap, ranking_agreement
from hf_distill.evaluation.bm25 import bm25_run
from hf_distill.evaluation.by_source import Scored, by_source
from hf_distill.evaluation.efficiency import bytes_on_disk, efficiency, peak_megabytes
from hf_distill.evaluation.evaluate import Subject, embed_task, evaluate
from hf_distill.evaluation.examples import per_query_values, wins_and_losses
from hf_distill.evaluation.fidelity import (
    average_precision,
    by_range,
    calibration,
    calibration_error,
    decide,
    f1,
    fidelity,
    kendall_estimate,
    pearson,
    quantile_bins,
    roc_auc,
    spearman,
)
from hf_distill.evaluation.intervals import estimate, mean
from hf_distill.evaluation.paper_protocol import (
    PUBLISHED,
    cohens_d,
    f1_at_median,
    ndcg_at,
    paper_protocol,
    recall_at,
)
from hf_distill.evaluation.results import SYSTEMS, Estimate, Evaluation, Example, NotApplicable
from hf_distill.evaluation.retrieval import make_run, per_query
from hf_distill.evaluation.significance import paired_tests
from hf_distill.evaluation.systems import not_applicable, ratio_of_means
from hf_distill.evaluation.tasks import RetrievalTask, held_out_task
from hf_distill.report.headline import (
    Standing,
    is_it_good_enough,
    results_table,
    standing,
    verdict,
)
from hf_distill.report.plots import plot_cost, plot_retrieval
from hf_distill.run.folder import RunFolder
from hf_distill.run.stage import read_json, write_json
from hf_distill.teachers.base import SCALES, EmbeddingTeacher, PairTeacher, Scale, Teacher

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
    queries = {"q1": "stars at night", "q2": "nothing matches this"}
    run = bm25_run(queries, dict(zip(("d1", "d2", "d3"), documents, strict=True)))
    assert max(run["q1"], key=run["q1"].get) == "d2"
    assert run["q2"] == {}, "a document without a common word is not retrieved"


# --- intervals ------------------------------------------------------------------------------------


def test_an_interval_is_the_bootstraps_of_scipy() -> None:
    values = RNG.normal(size=400)
    ours = estimate(mean, [values], 0)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(1)
    ).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)
    assert ours.n == 400


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    hits = 0
    for seed in range(200):
        sample = np.random.default_rng(seed).exponential(size=100)
        interval = estimate(mean, [sample], seed)
        hits += interval.low <= 1 <= interval.high
    assert 0.88 <= hits / 200 <= 0.99


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30))
def test_an_interval_holds_its_value(values: list[float]) -> None:
    interval = estimate(mean, [np.array(values)], 0)
    assert interval.low <= interval.value <= interval.high


def test_one_observation_has_an_interval_of_width_0() -> None:
    assert estimate(mean, [np.array([0.3])], 0) == Estimate(0.3, 0.3, 0.3, 1)


def test_resamples_on_which_a_statistic_is_undefined_are_left_out() -> None:
    """Of two pairs, half the resamples hold one pair twice and have no correlation."""
    assert estimate(pearson, [np.array([0.0, 1.0]), np.array([0.0, 2.0])], 0).low == pytest.approx(
        1
    )


def test_an_empty_or_undefined_sample_has_no_interval() -> None:
    with pytest.raises(ValueError, match="empty sample"):
        estimate(mean, [np.array([])], 0)
    with pytest.raises(ValueError, match="pearson is undefined on these 3 values"):
        estimate(pearson, [np.ones(3), np.arange(3.0)], 0)


def test_ratio_of_means() -> None:
    assert ratio_of_means(np.array([1.0, 2.0]), np.array([2.0, 4.0])) == pytest.approx(0.5)
    assert np.isnan(ratio_of_means(np.array([1.0]), np.array([0.0])))


# --- fidelity -------------------------------------------------------------------------------------


def test_fidelity_is_scipys() -> None:
    teacher = RNG.uniform(0.2, 0.9, 300)
    student = np.clip(teacher + RNG.normal(0.05, 0.1, 300), -1, 1).round(2)  # rounding makes ties
    result = fidelity(teacher, student, 0)
    assert result.pearson.value == pytest.approx(scipy.stats.pearsonr(teacher, student).statistic)
    assert result.spearman.value == pytest.approx(scipy.stats.spearmanr(teacher, student).statistic)
    assert result.mae.value == pytest.approx(np.abs(teacher - student).mean())
    assert result.rmse.value == pytest.approx(math.sqrt(((teacher - student) ** 2).mean()))
    assert result.bias.value == pytest.approx(student.mean() - teacher.mean())
    assert result.num_pairs == 300 == sum(row.n for row in result.by_range)


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
    assert result.pearson == Estimate(None, None, None, 3, "the student's scores are all equal")
    assert result.mae.value == pytest.approx(0.8 / 3)


def test_ranges_hold_every_pair_once() -> None:
    teacher = np.array([-1.0, -0.05, 0.0, 0.1, 0.95, 1.0])
    rows = by_range(teacher, teacher)
    counts = [(row.low, row.n) for row in rows]
    assert counts == [(-1.0, 1), (-0.1, 1), (0.0, 1), (0.1, 1), (0.9, 2)]


# --- the paper's protocol -------------------------------------------------------------------------


def test_overlap_by_hand() -> None:
    teacher, student = np.array([0.9, 0.8, 0.7, 0.1]), np.array([0.5, 0.9, 0.1, 0.8])
    assert recall_at(teacher, student, 1) == 0
    assert recall_at(teacher, student, 2) == 0.5
    assert recall_at(teacher, student, 4) == 1
    dcg, ideal = 0.8 + 0.1 / math.log2(3), 0.9 + 0.8 / math.log2(3)
    assert ndcg_at(teacher, student, 2) == pytest.approx(dcg / ideal)


def test_f1_at_the_median_by_hand_and_of_a_collapsed_student() -> None:
    teacher, student = np.array([0.1, 0.4, 0.6, 0.9]), np.array([0.2, 0.7, 0.3, 0.8])
    assert f1_at_median(teacher, student) == 0.5  # one hit, two true, two predicted
    collapsed = f1_at_median(np.linspace(0, 1, 1001), np.full(1001, 0.99))
    assert collapsed == pytest.approx(PUBLISHED.f1, abs=1e-3), (
        "a student collapsed to .99 has the published F1"
    )


def test_tests_are_scipys_and_cohens_d_is_pooled() -> None:
    teacher = RNG.normal(0.77, 0.05, 200)
    student = RNG.normal(0.99, 0.01, 200)
    result = paper_protocol(teacher, student)
    assert result.paired_t_test.p == scipy.stats.ttest_rel(teacher, student).pvalue
    assert result.wilcoxon.p == scipy.stats.wilcoxon(teacher, student).pvalue
    pooled = math.sqrt((teacher.var(ddof=1) + student.var(ddof=1)) / 2)
    expected = pytest.approx((teacher.mean() - student.mean()) / pooled)
    assert result.student.cohens_d == expected


def test_a_student_equal_to_its_teacher_differs_nowhere() -> None:
    scores = RNG.uniform(size=150)
    result = paper_protocol(scores, scores)
    own = result.student
    assert (own.mae, own.recall[10], own.ndcg[10], own.f1, own.cohens_d) == (0, 1, 1, 1, 0)
    assert own.pearson == pytest.approx(1)
    assert result.paired_t_test.p == result.wilcoxon.p == 1


def test_undefined_statistics_are_none_not_nan() -> None:
    result = paper_protocol(np.array([0.5, 0.75]), np.array([0.25, 0.5]))
    for test in (result.paired_t_test, result.wilcoxon):
        assert test.p is None
        assert "no variance" in test.undefined
    assert cohens_d(np.ones(3), np.ones(3)) is None
    flat = paper_protocol(np.array([0.4, 0.6]), np.array([0.5, 0.5]))
    assert flat.student.pearson is None


# --- fidelity: order, calibration, decisions ------------------------------------------------------


def test_kendall_is_scipys_and_its_interval_the_jackknifes() -> None:
    x = RNG.normal(size=40).round(1)
    y = (x + RNG.normal(size=40)).round(1)
    ours = kendall_estimate(x, y)
    without = np.array(
        [scipy.stats.kendalltau(np.delete(x, i), np.delete(y, i)).statistic for i in range(40)]
    )
    half = scipy.stats.norm.ppf(0.975) * math.sqrt(
        39 / 40 * ((without - without.mean()) ** 2).sum()
    )
    assert ours.value == pytest.approx(scipy.stats.kendalltau(x, y).statistic, abs=1e-9)
    assert (ours.low, ours.high) == pytest.approx((ours.value - half, ours.value + half), abs=1e-9)
    two = np.array([1.0, 2.0])
    assert kendall_estimate(two, two) == Estimate(1.0, -1.0, 1.0, 2)


def test_kendalls_interval_covers_the_truth() -> None:
    truth = 2 / math.pi * math.asin(0.6)  # of the bivariate normal with correlation .6
    hits = 0
    for seed in range(300):
        x, e = np.random.default_rng(seed).normal(size=(2, 80))
        interval = kendall_estimate(x, 0.6 * x + 0.8 * e)
        hits += interval.low <= truth <= interval.high
    assert hits / 300 == pytest.approx(0.95, abs=0.04)


def test_calibration_by_hand() -> None:
    student = np.array([0.1, 0.2, 0.3, 0.4])
    teacher = np.array([0.1, 0.4, 0.1, 0.2])
    bins = quantile_bins(student, 2)
    assert bins.tolist() == [0, 0, 1, 1]
    # Gaps 0 -.2 | .2 .2: bin means -.1 and .2, each of half the pairs.
    assert calibration_error(bins, student - teacher) == pytest.approx(0.15)
    result = calibration(np.full(10, 0.5), np.full(10, 0.7), 0)
    assert [row.n for row in result.bins] == [10], "equal scores share a bin"
    assert result.expected_error.value == pytest.approx(0.2)


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
    result = decide(teacher, student, 0.5, 0)
    assert result.f1.value == pytest.approx(f1_at_median(teacher, student))
    assert result.roc_auc.low < result.roc_auc.value < result.roc_auc.high
    assert decide(teacher, student, 0.8, 0).positives == 21


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
    assert {result.pearson.undefined, result.spearman.undefined, result.kendall.undefined} == {
        reason
    }
    auc = result.decisions["median"].roc_auc
    assert auc.value is None
    flat = f"every teacher score reaches the threshold {teacher[0]:.4f}"
    assert auc.undefined == (reason if len(set(teacher)) > 1 else flat)
    table = paper_protocol(np.array(teacher), np.array(student))
    if len(teacher) > 1:
        assert (table.student.recall[1], table.student.ndcg[1]) == (None, None)
        assert table.unranked == reason
    for content in (result, table):
        json.dumps(dataclasses.asdict(content), allow_nan=False)


def test_scores_that_are_missing_are_refused() -> None:
    with pytest.raises(InputError, match="1 teacher scores and 0 student scores are NaN"):
        fidelity(np.array([0.1, np.nan]), np.ones(2), 0)
    with pytest.raises(InputError, match="0 teacher scores and 0 student scores"):
        fidelity(np.ones(0), np.ones(0), 0)


def test_gains_that_are_not_positive_have_no_ndcg() -> None:
    assert ndcg_at(np.array([-1.0, -2.0]), np.array([1.0, 2.0]), 2) is None


def test_equal_differences_that_floats_make_unequal_have_no_test() -> None:
    teacher = np.linspace(0.1, 0.7, 30)
    assert paper_protocol(teacher, teacher + 0.1).paired_t_test.p is None


# --- rankings -------------------------------------------------------------------------------------


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
    assert (result.persistence, result.depth) == (0.9, 12)
    overlap = result.systems["student"].overlap
    assert overlap[1] == Estimate(0.5, 0.0, 1.0, 2)
    # q2's first ten lack a and b, the other's k and l.
    assert overlap[10].value == pytest.approx(0.9)
    assert 100 not in overlap
    with pytest.raises(InputError, match=r"1 of 2 queries have no ranking .* in student"):
        ranking_agreement(teacher, {"student": {"q1": ranking("ab")}}, 0)


# --- the largest wins and losses ------------------------------------------------------------------


def test_wins_and_losses_carry_their_texts() -> None:
    queries = {"q1": "one", "q2": "two", "q3": "three"}
    documents = {"d1": "first", "d2": "second " * 100}
    qrels = {"q1": {"d1": 1}, "q2": {"d2": 1}, "q3": {"d1": 1}}
    runs = {
        "student": {"q1": {"d1": 0.9, "d2": 0.1}, "q2": {"d1": 0.9, "d2": 0.8}, "q3": {"d1": 1.0}},
        "teacher": {"q1": {"d2": 0.9, "d1": 0.8}, "q2": {"d2": 0.9}, "q3": {"d1": 1.0}},
    }
    values = {"student": np.array([1.0, 0.63, 1.0]), "teacher": np.array([0.63, 1.0, 1.0])}
    task = RetrievalTask(queries, documents, qrels)
    result = wins_and_losses("nDCG@10", ("student", "teacher"), values, runs, task)
    assert result.wins == (
        Example(
            query="one",
            judged="first",
            first=None,
            value=1.0,
            value_against=0.63,
            rank=1,
            rank_against=2,
        ),
    )
    (loss,) = result.losses
    assert (loss.query, loss.first) == ("two", "first")
    assert (loss.rank, loss.rank_against) == (2, 1)
    assert len(loss.judged) == 300
    assert loss.judged.endswith("…")


def test_per_query_values_can_be_tested_again() -> None:
    values = {"a": RNG.uniform(size=30), "b": RNG.uniform(size=30)}
    written = per_query_values("nDCG@10", values, [str(i) for i in range(30)]).systems
    p, q = (
        paired_tests(np.array(v["a"]), np.array(v["b"]), 0).tests["paired_t_test"].p
        for v in (values, written)
    )
    assert p == pytest.approx(q, abs=1e-9)


# --- cost -----------------------------------------------------------------------------------------


def test_bytes_on_disk_are_those_that_loading_reads(tmp_path: Path) -> None:
    sizes = {
        "model.safetensors": 100, "pytorch_model.bin": 99, "config.json": 7, "README.md": 1000,
        "1_Dense/pytorch_model.bin": 20, "onnx/model.onnx": 300, "onnx/config.json": 4,
        "tf_model.h5": 98,
    }  # fmt: skip
    for name, size in sizes.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    assert bytes_on_disk(tmp_path) == 100 + 7 + 20


def test_the_profiler_prints_nothing(teacher_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = SentenceTransformer(str(teacher_dir), device="cpu")
    weights = sum(p.numel() * p.element_size() for p in [*model.parameters(), *model.buffers()])
    few, many = (peak_megabytes(model, ["a cat"] * count) for count in (1, 64))
    assert weights / 1e6 < few < many
    out, err = capfd.readouterr()
    assert "profiler" not in out + err


def test_every_model_has_its_cost(teacher_dir: Path) -> None:
    model = SentenceTransformer(str(teacher_dir), device="cpu")
    result = efficiency({"one": model, "two": model}, ["a cat"] * 30, ["a dog"] * 20)
    assert (result.documents, result.queries, result.device) == (20, 24, "cpu")
    cost = result.systems["two"]
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert (cost.dimension, cost.dtype, cost.backend) == (32, "float32", "torch")
    assert cost.bytes_on_disk == bytes_on_disk(teacher_dir)
    assert cost.query_ms_p50 <= cost.query_ms_p95


# --- a whole evaluation ---------------------------------------------------------------------------


QUERIES, DOCUMENTS = sentences(40), sentences(70, 1000)


@pytest.fixture
def toy(tmp_path: Path) -> Collection:
    """Ten training pairs, and thirty held-out pairs whose queries search sixty documents. The last
    held-out query has two documents, one of them judged twice.
    """
    judged = [(i, i, 1) for i in range(40)] + [(39, 50, 1), (39, 50, 3)]
    rows = {
        "queries": [{"text": text} for text in QUERIES],
        "documents": [{"text": text, "searched": i >= 10} for i, text in enumerate(DOCUMENTS)],
        "judgements": [
            {"pair_id": f"p{i}", "query": q, "document": d, "grade": grade}
            for i, (q, d, grade) in enumerate(judged)
        ],
    }
    features = {**TEXT_FEATURES, "judgements": JUDGEMENT_FEATURES}
    tables = []
    for name, content in rows.items():
        path = tmp_path / f"{name}.arrow"
        write_table(content, features[name], path)
        tables.append(Dataset.from_file(str(path)))
    split = {"train": 10, "validation": 0, "test": 32, "leaked": 0}
    return Collection(*tables, CollectionRecord("pairs", Source("toy"), {}, split, {}, 0))


def model_of(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu")


class Embedder(EmbeddingTeacher):
    def __init__(self, model: SentenceTransformer) -> None:
        self.name, self.identity, self.backbone, self.dimension = "teacher", (), model, 32

    def embed(self, texts: list[str], advance: object = None) -> np.ndarray:
        return self.backbone.encode(texts)


class Ranker(PairTeacher):
    name, identity = "ranker", ()

    def score(self, pairs: list[tuple[str, str]], advance: object = None) -> np.ndarray:
        return np.zeros(len(pairs), dtype=np.float32)


def subject_of(collection: Collection, teacher: Teacher, student: SentenceTransformer) -> Subject:
    """The student, which is the untrained one, too, and scores, of which the last is missing."""
    queries, documents = (student.encode(texts) for texts in (QUERIES, DOCUMENTS))
    values = RNG.uniform(size=len(collection.judgements)).astype(np.float32)
    values[-1] = np.nan
    table = SimpleNamespace(
        of_queries=lambda numbers: queries[numbers].astype(np.float16),
        of_documents=lambda numbers: documents[numbers].astype(np.float16),
    )
    scores = SimpleNamespace(
        of=lambda rows: values[rows],
        scale=SCALES["cosine"] if teacher.embeds else Scale("cross-encoder", low=0.0),
        embeddings=table if teacher.embeds else None,
    )
    components = np.eye(32, dtype=np.float32) if teacher.embeds else None
    return Subject(student, student, teacher, collection, scores, components, "training")


def test_an_evaluation_is_written_and_read_back_as_it_was(
    toy: Collection, teacher_dir: Path, folder: RunFolder
) -> None:
    student = model_of(teacher_dir)
    subject = subject_of(toy, Embedder(model_of(teacher_dir)), student)
    # As a student is before its training: with its dropout on.
    subject = dataclasses.replace(subject, untrained=model_of(teacher_dir).train())
    result = evaluate(subject, folder, 0, "key")
    write_json(folder.evaluation, result)
    assert read_json(folder.evaluation, Evaluation) == result
    assert (result.key, result.training, result.collection) == ("key", "training", "pairs")

    content = json.loads(folder.evaluation.read_text(encoding="utf-8"))
    systems = content["retrieval"]["systems"]
    assert tuple(systems) == SYSTEMS == ("teacher", "student", "untrained student", "bm25")
    assert systems["untrained student"]["nDCG@10"] == systems["student"]["nDCG@10"]
    own = systems["student"]["nDCG@10"]
    assert own["low"] < own["value"] < own["high"]
    assert content["fidelity"]["mae"]["value"] == result.fidelity.mae.value

    assert (result.retrieval.num_queries, result.retrieval.num_documents) == (30, 60)
    cosines = np.sum(student.encode(QUERIES) * student.encode(DOCUMENTS[:40]), axis=1)[10:]
    assert result.pairs.pair_ids == tuple(f"p{i}" for i in range(10, 41)), "the last has no score"
    assert result.pairs.student[:30] == pytest.approx(cosines, abs=2e-5)
    expected = scipy.stats.pearsonr(result.pairs.teacher, result.pairs.student).statistic
    assert result.fidelity.pearson.value == pytest.approx(expected, abs=1e-3)
    assert result.paper_protocol.num_pairs == result.fidelity.num_pairs == 31
    values = {name: np.array(row) for name, row in result.per_query.systems.items()}
    bm25 = result.significance.comparisons["bm25"]
    assert bm25.difference.value == pytest.approx((values["student"] - values["bm25"]).mean())
    assert list(result.efficiency.systems) == list(result.index) == ["teacher", "student"]
    assert result.mixed_index.minus_student.value == pytest.approx(0, abs=0.02)
    assert result.ranking_agreement.systems["student"].overlap[1].value > 0.9

    names = sorted(path.name for path in folder.retrieval.iterdir())
    assert names == ["bm25.run", "qrels.txt", "student.run", "teacher.run", "untrained-student.run"]
    first = folder.retrieval.joinpath("qrels.txt").read_text().splitlines()[0]
    assert first == f"{text_id(QUERIES[10])} 0 {text_id(DOCUMENTS[10])} 1"


def test_a_teacher_that_embeds_nothing_is_not_among_the_systems(
    toy: Collection, teacher_dir: Path, folder: RunFolder
) -> None:
    subject = subject_of(toy, Ranker(), model_of(teacher_dir))
    result = evaluate(subject, folder, 0, "key")
    write_json(folder.evaluation, result)
    assert read_json(folder.evaluation, Evaluation) == result
    assert tuple(result.retrieval.systems) == SYSTEMS[1:]
    assert result.retrieval.student_over_teacher is None
    assert result.ranking_agreement is None
    assert result.wins_and_losses.against == "bm25"
    assert list(result.efficiency.systems) == list(result.index) == ["student"]
    assert "embeds no texts" in result.mixed_index.undefined


def test_a_held_out_task_names_its_numbers(toy: Collection) -> None:
    task = held_out_task(toy)
    assert list(task.queries) == list(task.qrels) == [text_id(text) for text in QUERIES[10:]]
    assert task.query_numbers.tolist() == list(range(10, 40))
    assert sorted(task.document_numbers.tolist()) == list(range(10, 70))
    assert list(task.documents) == sorted(task.documents)
    assert toy.document_texts(task.document_numbers) == list(task.documents.values())
    assert task.pair_queries.tolist() == [*range(30), 29, 29]
    pair_texts = [list(task.documents.values())[place] for place in task.pair_documents]
    assert pair_texts == [*DOCUMENTS[10:40], DOCUMENTS[50], DOCUMENTS[50]]
    last = {text_id(DOCUMENTS[39]): 1, text_id(DOCUMENTS[50]): 3}
    assert task.qrels[text_id(QUERIES[39])] == last


def test_a_model_in_training_mode_is_measured_without_dropout(teacher_dir: Path) -> None:
    model, task = model_of(teacher_dir), RetrievalTask({"q": "a cat"}, {"d": "a dog"}, {})
    expected = model.encode(["a cat", "a dog"])
    model.train()
    with torch.no_grad():
        dropped = model(model.preprocess(["a cat"]))["sentence_embedding"].numpy()
    assert not np.allclose(dropped, expected[:1], atol=1e-3)
    queries, documents = embed_task(model, task)
    np.testing.assert_allclose(np.concatenate([queries, documents]), expected, atol=1e-5)


def test_a_model_is_measured_behind_its_own_prompts(teacher_dir: Path) -> None:
    model, task = model_of(teacher_dir), RetrievalTask({"q": "cat"}, {"d": "dog"}, {})
    for name in ("document", "passage"):
        model.prompts = {"query": "who ", name: "the "}
        queries, documents = embed_task(model, task)
        np.testing.assert_allclose(queries, model.encode(["who cat"], prompt=""), atol=1e-5)
        np.testing.assert_allclose(documents, model.encode(["the dog"], prompt=""), atol=1e-5)


def test_a_model_that_returns_nan_is_named(teacher_dir: Path) -> None:
    model, task = model_of(teacher_dir), RetrievalTask({"q": "cat"}, {"d": "dog"}, {})
    next(model.parameters()).data.fill_(float("nan"))
    with pytest.raises(InputError, match=r"the student returns NaN .* 1 of 1 queries"):
        embed_task(model, task, "student")


# --- what must not be claimed -------------------------------------------------------------------


def with_documents(collection: Collection, change: Callable[[int, str], str]) -> Collection:
    """`collection` with other document texts."""
    table = collection.documents
    texts = [change(i, text) for i, text in enumerate(table["text"])]
    return dataclasses.replace(
        collection, documents=Dataset.from_dict({"text": texts, "searched": table["searched"]})
    )


def cyrillic(_: int, text: str) -> str:
    """`text` in other letters: no query shares a word with it."""
    letters = {ord("a") + i: chr(ord("а") + i) for i in range(26)}
    return text.translate(letters)


@pytest.mark.parametrize("embeds", [True, False])
def test_a_bm25_that_finds_nothing_is_not_applicable_and_never_beaten(
    embeds: bool, toy: Collection, teacher_dir: Path, folder: RunFolder
) -> None:
    model = model_of(teacher_dir)
    teacher = Embedder(model) if embeds else Ranker()
    result = evaluate(subject_of(with_documents(toy, cyrillic), teacher, model), folder, 0, "key")
    write_json(folder.evaluation, result)
    assert read_json(folder.evaluation, Evaluation) == result
    content = json.loads(folder.evaluation.read_text())
    row = content["retrieval"]["systems"]["bm25"]["nDCG@10"]
    assert (row["value"], row["low"], row["n"]) == (None, None, 30)
    reason = "not applicable: finds no document for 30 of 30 queries"
    assert row["undefined"] == reason
    assert content["retrieval"]["not_applicable"] == {"bm25": {"unanswered": 30, "queries": 30}}
    assert "bm25" not in result.significance.comparisons
    assert "bm25" not in result.per_query.systems
    assert result.wins_and_losses.against == ("teacher" if embeds else "untrained student")
    assert "bm25" not in sum(vars(standing(result)).values(), ())
    assert "better than BM25" not in verdict(result)
    for said in (results_table(result), verdict(result), is_it_good_enough(result)):
        assert reason in said
    assert "BM25" not in plot_retrieval(result.retrieval).alt
    assert "BM25" not in plot_cost(result).alt


def test_half_of_the_queries_are_enough_for_bm25(
    toy: Collection, teacher_dir: Path, folder: RunFolder
) -> None:
    """Fifteen of thirty queries have an answer, so the row stays."""
    task = held_out_task(toy)
    run = {query: {} if i < 15 else {"d": 1.0} for i, query in enumerate(task.qrels)}
    assert not_applicable(run, task.qrels) is None
    run[list(task.qrels)[20]] = {}
    assert not_applicable(run, task.qrels) == NotApplicable(16, 30)


def test_retrieval_of_a_query_that_is_its_own_document_shows_nothing(
    toy: Collection, teacher_dir: Path, folder: RunFolder
) -> None:
    def same(i: int, text: str) -> str:
        return f"{QUERIES[i].upper()}!" if 10 <= i < 26 else text

    model = model_of(teacher_dir)
    subject = subject_of(with_documents(toy, same), Embedder(model), model)
    result = evaluate(subject, folder, 0, "key")
    assert result.retrieval.same_text == 16
    reason = "16 of 30 queries are the text of their own document, which any system finds"
    assert result.retrieval.trivial == reason
    assert reason in verdict(result)
    assert is_it_good_enough(result) == f"Not shown: {reason}."
    assert standing(result) == Standing((), (), ())
    fewer = dataclasses.replace(result.retrieval, same_text=15)
    assert fewer.trivial is None, "half of them is not most of them"


def test_scores_that_differ_by_rounding_alone_are_constant() -> None:
    rounded, student = 1 - RNG.uniform(0, 9e-7, 50), RNG.uniform(size=50)
    result = fidelity(rounded, student, 0)
    assert result.pearson.undefined == "the teacher's scores are all equal"
    assert result.spearman.value is None
    assert result.decisions["median"].roc_auc.value is None
    paper = paper_protocol(rounded, student)
    assert (paper.student.pearson, paper.unranked) == (None, "the teacher's scores are all equal")
    assert fidelity(rounded * 1e-7, student, 0).pearson.value is None
    tiny = RNG.uniform(1e-9, 1e-8, 50)  # small, and not all equal
    assert fidelity(tiny, student, 0).pearson.value is not None


# --- by source ----------------------------------------------------------------------------------


def with_sources(collection: Collection, sources: list[str | None]) -> Collection:
    table = collection.judgements.remove_columns("source").add_column("source", sources)
    return dataclasses.replace(collection, judgements=table)


def test_figures_by_source_are_those_of_its_queries_and_pairs(
    toy: Collection, teacher_dir: Path, folder: RunFolder
) -> None:
    """42 pairs: 10 train, then held out 20 of `faq`, 11 of `docs` and, beside the last query, one
    without a source. `log` is trained on alone.
    """
    sources = ["log"] * 10 + ["faq"] * 20 + ["docs"] * 11 + [None]
    model = model_of(teacher_dir)
    subject = subject_of(with_sources(toy, sources), Embedder(model), model)
    result = evaluate(subject, folder, 0, "key")
    rows = result.by_source
    assert {name: (row.num_queries, row.num_pairs) for name, row in rows.items()} == {
        "faq": (20, 20), "docs": (10, 11), "(no source)": (1, 0), "log": (0, 0),
    }  # fmt: skip
    student = np.array(result.per_query.systems["student"])
    for name, places in (("faq", slice(0, 20)), ("docs", slice(20, 30))):
        row = rows[name].systems["student"]["nDCG@10"]
        assert row.value == pytest.approx(student[places].mean())
        assert row.low <= row.value <= row.high
        assert set(rows[name].systems) == set(SYSTEMS)
    both = np.array(result.pairs.teacher), np.array(result.pairs.student)
    assert rows["faq"].mae.value == pytest.approx(np.abs(both[0] - both[1])[:20].mean(), abs=1e-4)
    expected = scipy.stats.pearsonr(both[0][20:31], both[1][20:31]).statistic
    assert rows["docs"].pearson.value == pytest.approx(expected, abs=1e-3)
    assert rows["log"].systems["student"]["nDCG@10"].undefined == "none of its queries is held out"
    assert rows["(no source)"].mae.undefined == "none of its held-out pairs has a score"


def test_one_source_has_no_rows_and_many_are_summed(toy: Collection) -> None:
    task, n = held_out_task(toy), 32
    values = {"student": {m: RNG.uniform(size=30) for m in ("nDCG@10", "R@10")}}
    scores = Scored(np.ones(n, dtype=bool), RNG.uniform(size=n), RNG.uniform(size=n))
    for one in (["a"] * 42, [None] * 42):
        assert by_source(with_sources(toy, one), task, values, scores, 0) == {}
    many = ["big"] * 15 + [f"s{i:02}" for i in range(25)] + ["big"] * 2
    rows = by_source(with_sources(toy, many), task, values, scores, 0)
    assert len(rows) == 21
    assert next(iter(rows)) == "big"
    others = rows["others (6 sources)"]
    assert (others.num_queries, others.num_pairs) == (6, 6)
    alone = values["student"]["nDCG@10"][24:30]
    assert others.systems["student"]["nDCG@10"].value == pytest.approx(alone.mean())
    assert sum(row.num_pairs for row in rows.values()) == n
