"""Every figure against a hand-computed value or a library called by hand."""

import math
from pathlib import Path

import ir_measures
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distill.evaluation import ratio_of_means
from hf_distill.evaluation.efficiency import bytes_on_disk
from hf_distill.evaluation.fidelity import by_range, fidelity, pearson, spearman
from hf_distill.evaluation.intervals import figure, mean
from hf_distill.evaluation.paper_protocol import PUBLISHED, cohens_d, f1_at_median, ndcg_at, paper_protocol, recall_at
from hf_distill.evaluation.retrieval import bm25_run, make_run, per_query
from hf_distill.search import search

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
    qrels = {q: {document_ids[j]: int(g) for j, g in zip(RNG.choice(60, 4, False), (1, 2, 1, 3), strict=True)} for q in query_ids}
    values = per_query(run, qrels)
    expected = ir_measures.calc_aggregate([ir_measures.nDCG @ 10, ir_measures.R @ 100], qrels, run)
    assert values["nDCG@10"].mean() == pytest.approx(expected[ir_measures.nDCG @ 10])
    assert values["R@100"].mean() == pytest.approx(expected[ir_measures.R @ 100])


def test_bm25_finds_the_document_with_the_words() -> None:
    documents = ["the cat sleeps", "stars shine at night", "a river runs to the sea"]
    run = bm25_run(["q1", "q2"], ["stars at night", "nothing matches this"], ["d1", "d2", "d3"], documents)
    assert max(run["q1"], key=run["q1"].get) == "d2"
    assert run["q2"] == {}, "a document without a common word is not retrieved"


# --- intervals -------------------------------------------------------------------------------------------------------


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


# --- fidelity --------------------------------------------------------------------------------------------------------


def test_fidelity_is_scipys() -> None:
    teacher = RNG.uniform(0.2, 0.9, 300)
    student = np.clip(teacher + RNG.normal(0.05, 0.1, 300), -1, 1).round(2)  # rounding makes ties
    result = fidelity(teacher, student, 0)
    assert result["pearson"]["value"] == pytest.approx(scipy.stats.pearsonr(teacher, student).statistic)
    assert result["spearman"]["value"] == pytest.approx(scipy.stats.spearmanr(teacher, student).statistic)
    assert result["mae"]["value"] == pytest.approx(np.abs(teacher - student).mean())
    assert result["rmse"]["value"] == pytest.approx(math.sqrt(((teacher - student) ** 2).mean()))
    assert result["bias"]["value"] == pytest.approx(student.mean() - teacher.mean())
    assert result["num_pairs"] == 300 == sum(row["n"] for row in result["by_range"])


def test_correlations_are_vectorised() -> None:
    x, y = RNG.normal(size=(2, 5, 40))
    assert pearson(x, y) == pytest.approx([scipy.stats.pearsonr(a, b).statistic for a, b in zip(x, y, strict=True)])
    assert spearman(x, y) == pytest.approx([scipy.stats.spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)])


def test_a_constant_student_has_no_correlation_and_it_is_said() -> None:
    result = fidelity(np.array([0.1, 0.5, 0.9]), np.full(3, 0.5), 0)
    assert result["pearson"]["value"] is None
    assert result["pearson"]["undefined"] == "the student's scores are all equal"
    assert result["mae"]["value"] == pytest.approx(0.8 / 3)


def test_ranges_hold_every_pair_once() -> None:
    teacher = np.array([-1.0, -0.05, 0.0, 0.1, 0.95, 1.0])
    rows = by_range(teacher, teacher)
    assert [(row["low"], row["n"]) for row in rows] == [(-1.0, 1), (-0.1, 1), (0.0, 1), (0.1, 1), (0.9, 2)]


# --- the paper's protocol --------------------------------------------------------------------------------------------


def test_overlap_by_hand() -> None:
    teacher, student = np.array([0.9, 0.8, 0.7, 0.1]), np.array([0.5, 0.9, 0.1, 0.8])
    assert recall_at(teacher, student, 1) == 0
    assert recall_at(teacher, student, 2) == 0.5
    assert recall_at(teacher, student, 4) == 1
    dcg, ideal = 0.8 + 0.1 / math.log2(3), 0.9 + 0.8 / math.log2(3)
    assert ndcg_at(teacher, student, 2) == pytest.approx(dcg / ideal)


def test_f1_at_the_median_by_hand_and_as_the_paper_found_it() -> None:
    teacher, student = np.array([0.1, 0.4, 0.6, 0.9]), np.array([0.2, 0.7, 0.3, 0.8])
    assert f1_at_median(teacher, student) == {"value": 0.5, "threshold": 0.5}  # one hit, two true, two predicted
    collapsed = f1_at_median(np.linspace(0, 1, 1001), np.full(1001, 0.99))
    assert collapsed["value"] == pytest.approx(PUBLISHED["f1"], abs=1e-3), "a student collapsed to .99 has the published F1"


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
    assert (result["mae"], result["Recall@10"], result["NDCG@10"], result["f1"]["value"], result["cohens_d"]) == (0, 1, 1, 1, 0)
    assert result["pearson"] == pytest.approx(1)
    assert result["paired_t_test"]["p"] == result["wilcoxon"]["p"] == 1


def test_undefined_statistics_are_none_not_nan() -> None:
    result = paper_protocol(np.array([0.5, 0.75]), np.array([0.25, 0.5]))
    assert result["paired_t_test"]["p"] is None
    assert "no variance" in result["paired_t_test"]["undefined"]
    assert cohens_d(np.ones(3), np.ones(3)) is None
    assert paper_protocol(np.array([0.4, 0.6]), np.array([0.5, 0.5]))["pearson"] is None


def test_bytes_on_disk_are_those_that_loading_reads(tmp_path: Path) -> None:
    sizes = {
        "model.safetensors": 100, "pytorch_model.bin": 99, "config.json": 7, "README.md": 1000, "1_Dense/pytorch_model.bin": 20,
        "onnx/model.onnx": 300, "onnx/config.json": 4, "tf_model.h5": 98,
    }  # fmt: skip
    for name, size in sizes.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    assert bytes_on_disk(tmp_path) == 100 + 7 + 20
