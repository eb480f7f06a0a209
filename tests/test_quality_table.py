"""The comparison of benchmarks/quality.py: hand-computed estimates, differences and verdicts."""

from __future__ import annotations

import numpy as np
import pytest
from quality_table import (
    Content,
    Reference,
    Results,
    Trained,
    compile_results,
    markdown,
    pearson_difference,
    plot,
    spread,
)

from hf_distill.study.measure import Measurement

QUERIES = 60


def trained(arm: str, seed: int, ndcg: np.ndarray, score: np.ndarray) -> Trained:
    """A student of the documentation that is the same out-of-domain as any other."""

    def measured(values: np.ndarray) -> Measurement:
        return Measurement(tuple(values), (1.0,) * QUERIES, tuple(score))

    return Trained(
        key="key",
        domain="pydocs",
        arm=arm,
        seed=seed,
        pairs=100,
        examples=640,
        training_seconds=10.0,
        in_domain=measured(ndcg),
        out_of_domain=measured(np.full(QUERIES, 0.4)),
        overlap=(0.5,) * QUERIES,
    )


def compiled(trainings: list[Trained], teacher_score: np.ndarray) -> Content:
    """The comparison with a teacher of nDCG@10 .5 on both domains."""
    half = np.full(QUERIES, 0.5)
    reference = Reference(teacher_score, half, half / 2, leaks_removed=3, leaks_left=0)
    references = {"pydocs": reference, "conversations": reference}
    seeds = 1 + max(training.seed for training in trainings)
    return compile_results(Results(trainings, references, ["ours"]), ["pydocs"], seeds, 640)


@pytest.fixture(scope="module")
def content() -> Content:
    """The peers `a` (ranks better) and `b` (agrees better), and an arm of ours that is far better
    in-domain and has exactly b's scores.
    """
    rng = np.random.default_rng(0)
    teacher = rng.uniform(0.2, 0.8, QUERIES)
    noise = [rng.normal(0, 0.02, QUERIES) for _ in range(3)]
    trainings = [trained("untrained", 0, np.full(QUERIES, 0.9), teacher)]
    for seed in range(3):
        agreeing = teacher + 0.1 + noise[seed]
        trainings += [
            trained("a", seed, 0.5 + noise[seed], 0.3 * teacher + 5 * noise[seed]),
            trained("b", seed, 0.4 + noise[seed], agreeing),
            trained("ours", seed, 0.6 + noise[(seed + 1) % 3], agreeing),
        ]
    return compiled(trainings, teacher)


def test_the_best_peer_on_each_measure_is_beaten_or_not(content: Content) -> None:
    compared = {c.measure: c for c in content.domains[0].comparisons}
    # The untrained student is better still, but it is no peer.
    assert compared["in_domain_ndcg"].peer == "a"
    assert compared["in_domain_ndcg"].difference.value == pytest.approx(0.1, abs=0.01)
    assert compared["in_domain_ndcg"].verdict == "better"
    assert compared["pearson"].peer == compared["mae"].peer == "b"
    assert compared["pearson"].difference.value == pytest.approx(0)
    for name in ("pearson", "mae", "out_of_domain_ndcg"):
        assert compared[name].verdict == "no clear difference"


def test_estimates_are_shares_of_the_teachers_and_means_over_seeds(content: Content) -> None:
    rows = {row.arm: row for row in content.domains[0].rows}
    assert rows["ours"].in_domain_ratio.value == pytest.approx(1.2, abs=0.02)
    of_seeds = np.mean(rows["ours"].in_domain_ratio_by_seed)
    assert of_seeds == pytest.approx(rows["ours"].in_domain_ratio.value)
    assert rows["ours"].out_of_domain_ratio.value == pytest.approx(0.8)
    assert rows["b"].mae.value == pytest.approx(0.1, abs=0.01)
    assert rows["ours"].examples_per_second == 64
    assert rows["untrained"].seeds == 1


def test_the_summary_has_four_figures_of_each_arm(content: Content) -> None:
    assert set(content.summary["pydocs"]) == {"untrained", "a", "b", "ours"}
    figures = content.summary["pydocs"]["ours"]
    assert set(figures) == {"in_domain ratio", "out_of_domain ratio", "Pearson", "MAE"}
    assert figures["out_of_domain ratio"] == 0.8


def test_less_error_is_better() -> None:
    teacher, same = np.linspace(0, 1, QUERIES), np.full(QUERIES, 0.5)
    wobble = 0.001 * np.sin(np.arange(QUERIES))
    trainings = [trained("peer", seed, same, teacher + 0.1 + wobble) for seed in range(2)]
    trainings += [trained("ours", seed, same, teacher + 0.05 - wobble) for seed in range(2)]
    [table] = compiled(trainings, teacher).domains
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
    texts = [label.get_text() for axes in plot(content).axes for label in axes.texts]
    assert sorted(texts) == ["a", "b", "ours", "untrained"]


def test_labels_are_moved_apart_and_stay_inside() -> None:
    assert spread([0.1, 0.12, 0.5], 0.1) == pytest.approx([0.1, 0.2, 0.5])
    assert spread([0.2, 0.95, 0.97], 0.1) == pytest.approx([0.15, 0.9, 1.0])
