"""The comparison of benchmarks/quality.py: hand-computed estimates, differences and verdicts."""

from __future__ import annotations

import numpy as np
import pytest
from quality_table import (
    Content,
    FurtherReference,
    Reference,
    References,
    Results,
    Student,
    compile_results,
    markdown,
    out_of_domain,
    pearson_difference,
    plot,
    spread,
)

from hf_distill.study.measure import Measurement

QUERIES = 60


SMALL = {"small": (0.9, 0.3), "large": (0.4,) * QUERIES}
"""nDCG@10 of the queries of two further tasks."""


def trained(
    arm: str, seed: int, ndcg: np.ndarray, score: np.ndarray, minutes: float = 5
) -> Student:
    """A student of the documentation that is the same out of domain as any other."""
    return Student(
        domain="pydocs",
        minutes=minutes,
        arm=arm,
        seed=seed,
        pairs=100,
        examples=640,
        planned_seconds=60 * minutes,
        teacher_seconds=10.0,
        in_domain=Measurement(tuple(ndcg), (1.0,) * QUERIES, tuple(score)),
        overlap=(0.5,) * QUERIES,
        further=SMALL,
    )


def compiled(students: list[Student], teacher_score: np.ndarray) -> Content:
    """The comparison with a teacher of nDCG@10 .5 in-domain, and 1.0 and .5 on two tasks."""
    half = np.full(QUERIES, 0.5)
    further = {
        "small": FurtherReference((1.0, 1.0), np.zeros(2), 7),
        "large": FurtherReference((0.5,) * QUERIES, half / 2, 0),
    }
    own = Reference(teacher_score, half, half / 2, leaks_removed=3, leaks_left=0)
    return compile_results(Results(students, {"pydocs": References(own, further)}, ["ours"]))


@pytest.fixture(scope="module")
def content() -> Content:
    """The peers `a` (ranks better) and `b` (agrees better), and an arm of ours that is far better
    in-domain and has exactly b's scores.
    """
    rng = np.random.default_rng(0)
    teacher = rng.uniform(0.2, 0.8, QUERIES)
    noise = [rng.normal(0, 0.02, QUERIES) for _ in range(3)]
    trainings = [trained("untrained", 0, np.full(QUERIES, 0.9), teacher, minutes=0)]
    for seed in range(3):
        agreeing = teacher + 0.1 + noise[seed]
        trainings += [
            trained("a", seed, 0.5 + noise[seed], 0.3 * teacher + 5 * noise[seed]),
            trained("b", seed, 0.4 + noise[seed], agreeing),
            trained("ours", seed, 0.6 + noise[(seed + 1) % 3], agreeing),
        ]
    return compiled(trainings, teacher)


def test_the_best_peer_on_each_measure_is_beaten_or_not(content: Content) -> None:
    compared = {c.measure: c for c in content.tables[0].comparisons}
    # The untrained student is better still, but it is no peer.
    assert compared["in_domain"].peer == "a"
    assert compared["in_domain"].difference.value == pytest.approx(0.1, abs=0.01)
    assert compared["in_domain"].verdict == "better"
    assert compared["pearson"].peer == compared["mae"].peer == "b"
    assert compared["pearson"].difference.value == pytest.approx(0)
    for name in ("pearson", "mae", "out_of_domain"):
        assert compared[name].verdict == "no clear difference"


def test_estimates_are_shares_of_the_teachers_and_means_over_seeds(content: Content) -> None:
    rows = {row.arm: row for row in content.tables[0].rows}
    assert rows["ours"].in_domain_ratio.value == pytest.approx(1.2, abs=0.02)
    of_seeds = np.mean(rows["ours"].in_domain_ratio_by_seed)
    assert of_seeds == pytest.approx(rows["ours"].in_domain_ratio.value)
    assert rows["ours"].out_of_domain_ratio.value == pytest.approx((0.6 + 0.8) / 2)
    assert rows["b"].mae.value == pytest.approx(0.1, abs=0.01)
    assert rows["ours"].further == {"small": pytest.approx(0.6), "large": pytest.approx(0.8)}
    assert (rows["ours"].examples, rows["ours"].seconds) == (640, 300)
    assert rows["untrained"].seeds == 1


def test_tasks_count_alike_however_many_queries_they_have() -> None:
    student = trained("a", 0, np.zeros(QUERIES), np.zeros(QUERIES))
    further = {
        "small": FurtherReference((1.0, 1.0), np.zeros(2), 0),
        "large": FurtherReference((0.5,) * QUERIES, np.zeros(QUERIES), 0),
    }
    values = out_of_domain(student, further)
    assert len(values) == 2 + QUERIES
    assert values.mean() == pytest.approx((0.6 / 1 + 0.4 / 0.5) / 2)
    assert out_of_domain(student, {}).size == 0


def test_the_summary_has_four_figures_of_each_arm(content: Content) -> None:
    assert set(content.summary["pydocs, 5 min"]) == {"untrained", "a", "b", "ours"}
    figures = content.summary["pydocs, 5 min"]["ours"]
    assert set(figures) == {"in_domain ratio", "out_of_domain ratio", "Pearson", "MAE"}
    assert figures["out_of_domain ratio"] == 0.7


def test_less_error_is_better() -> None:
    teacher, same = np.linspace(0, 1, QUERIES), np.full(QUERIES, 0.5)
    wobble = 0.001 * np.sin(np.arange(QUERIES))
    trainings = [trained("peer", seed, same, teacher + 0.1 + wobble) for seed in range(2)]
    trainings += [trained("ours", seed, same, teacher + 0.05 - wobble) for seed in range(2)]
    [table] = compiled(trainings, teacher).tables
    [of_error] = [c for c in table.comparisons if c.measure == "mae"]
    assert of_error.difference.value == pytest.approx(-0.05, abs=1e-3)
    assert of_error.verdict == "better"


def test_the_pearson_difference_is_that_of_the_mean_correlations() -> None:
    rng = np.random.default_rng(1)
    teacher, noise = rng.normal(size=200), rng.normal(size=(2, 200))
    ours, theirs = teacher + 0.1 * noise, teacher + 1.0 * noise
    difference = pearson_difference(teacher, ours, theirs, 0)
    wanted = np.mean(
        [
            np.corrcoef(teacher, a)[0, 1] - np.corrcoef(teacher, b)[0, 1]
            for a, b in zip(ours, theirs, strict=True)
        ]
    )
    assert difference.estimate.value == pytest.approx(wanted)
    assert difference.estimate.low is not None
    assert difference.estimate.high is not None
    assert 0 < difference.estimate.low < wanted < difference.estimate.high
    assert difference.p is not None
    assert difference.p < 0.01
    assert pearson_difference(teacher, ours, ours, 0).p == 1.0


def test_the_table_and_the_plot_name_every_arm(content: Content) -> None:
    text = markdown(content)
    assert all(f"| {name} |" in text for name in ("a", "b", "**ours**", "untrained"))
    assert "removed from training because they share" in text
    assert ": 3; left: 0." in text
    assert "small: 1.000 (0.000) over 2, 7 of its texts are training texts" in text
    texts = [label.get_text() for axes in plot(content).axes for label in axes.texts]
    assert sorted(texts) == ["a", "b", "ours", "untrained"]


def test_labels_are_moved_apart_and_stay_inside() -> None:
    assert spread([0.1, 0.12, 0.5], 0.1) == pytest.approx([0.1, 0.2, 0.5])
    assert spread([0.2, 0.95, 0.97], 0.1) == pytest.approx([0.15, 0.9, 1.0])
