"""The comparison of benchmarks/quality.py: hand-computed figures, differences and verdicts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from quality_table import Results, compile_results, markdown, pearson_difference, plot, spread

QUERIES = 60


def training(
    home: str, arm: str, seed: int, home_ndcg: np.ndarray, score: np.ndarray, abroad: float = 0.4
) -> dict[str, Any]:
    at_home = {
        "nDCG@10": home_ndcg,
        "R@100": np.ones(QUERIES),
        "overlap@10": np.full(QUERIES, 0.5),
        "student_score": score,
    }
    return {
        "home": home, "arm": arm, "seed": seed, "pairs": 100, "examples": 640, "training_seconds": 10.0,
        "at_home": {key: value.tolist() for key, value in at_home.items()}, "abroad": {"nDCG@10": np.full(QUERIES, abroad).tolist()},
    }  # fmt: skip


def references(teacher_score: np.ndarray) -> dict[str, Any]:
    values = {"nDCG@10": np.full(QUERIES, 0.5)}
    leaks = {"removed from train": 2, "removed from validation": 1, "left": 0}
    return {
        "teacher_score": teacher_score,
        "teacher": values,
        "bm25": {"nDCG@10": np.full(QUERIES, 0.25)},
        "leaks": leaks,
    }


@pytest.fixture
def content() -> dict[str, Any]:
    """Peers a (ranks better) and b (agrees better), and one arm of ours that is far better at home
    and exactly b's scores.
    """
    rng = np.random.default_rng(0)
    teacher = rng.uniform(0.2, 0.8, QUERIES)
    noise = [rng.normal(0, 0.02, QUERIES) for _ in range(3)]
    trainings = []
    for seed in range(3):
        trainings += [
            training("pydocs", "a", seed, 0.5 + noise[seed], 0.3 * teacher + 5 * noise[seed]),
            training("pydocs", "b", seed, 0.4 + noise[seed], teacher + 0.1 + noise[seed]),
            training(
                "pydocs", "ours", seed, 0.6 + noise[(seed + 1) % 3], teacher + 0.1 + noise[seed]
            ),
        ]
    trainings.append(training("pydocs", "untrained", 0, np.full(QUERIES, 0.9), teacher))
    found = Results(
        trainings, {"pydocs": references(teacher), "conversations": references(teacher)}, ["ours"]
    )
    return compile_results(found, ["pydocs"], 3, 640)


def test_the_best_peer_on_each_measure_is_found_and_beaten_or_not(content: dict[str, Any]) -> None:
    compared = {c["measure"]: c for c in content["homes"][0]["comparisons"]}
    assert (
        compared["home nDCG@10"]["peer"] == "a"
    )  # the untrained student is better still, and no peer
    assert compared["home nDCG@10"]["value"] == pytest.approx(0.1, abs=0.01)
    assert compared["home nDCG@10"]["verdict"] == "better"
    assert compared["Pearson"]["peer"] == compared["MAE"]["peer"] == "b"
    assert compared["Pearson"]["value"] == pytest.approx(0)
    assert {compared[name]["verdict"] for name in ("Pearson", "MAE", "abroad nDCG@10")} == {
        "no clear difference"
    }


def test_figures_are_shares_of_the_teachers_and_means_over_seeds(content: dict[str, Any]) -> None:
    rows = {row["arm"]: row for row in content["homes"][0]["rows"]}
    assert rows["ours"]["home ratio"]["value"] == pytest.approx(1.2, abs=0.02)
    assert rows["ours"]["abroad ratio"]["value"] == pytest.approx(0.8)
    assert rows["b"]["MAE"]["value"] == pytest.approx(0.1, abs=0.01)
    assert rows["ours"]["examples/s"] == 64
    assert rows["untrained"]["seeds"] == 1


def test_less_error_is_better() -> None:
    teacher = np.linspace(0, 1, QUERIES)
    same = np.full(QUERIES, 0.5)
    wobble = 0.001 * np.sin(np.arange(QUERIES))
    trainings = [
        training("pydocs", "peer", seed, same, teacher + 0.1 + wobble) for seed in range(2)
    ]
    trainings += [
        training("pydocs", "ours", seed, same, teacher + 0.05 - wobble) for seed in range(2)
    ]
    found = Results(
        trainings, {"pydocs": references(teacher), "conversations": references(teacher)}, ["ours"]
    )
    compared = {
        c["measure"]: c
        for c in compile_results(found, ["pydocs"], 2, 640)["homes"][0]["comparisons"]
    }
    assert compared["MAE"]["value"] == pytest.approx(-0.05, abs=1e-3)
    assert compared["MAE"]["verdict"] == "better"


def test_the_pearson_difference_is_that_of_the_mean_correlations() -> None:
    rng = np.random.default_rng(1)
    teacher, noise = rng.normal(size=200), rng.normal(size=(2, 200))
    ours, theirs = teacher + 0.1 * noise, teacher + 1.0 * noise
    found = pearson_difference(teacher, ours, theirs, 0)
    wanted = np.mean(
        [
            np.corrcoef(teacher, a)[0, 1] - np.corrcoef(teacher, b)[0, 1]
            for a, b in zip(ours, theirs, strict=True)
        ]
    )
    assert found["value"] == pytest.approx(wanted)
    assert 0 < found["low"] < found["value"] < found["high"]
    assert found["p"] < 0.01
    assert pearson_difference(teacher, ours, ours, 0)["p"] == 1.0


def test_the_table_and_the_plot_name_every_arm(content: dict[str, Any]) -> None:
    text = markdown(content)
    assert all(f"| {name} |" in text for name in ("a", "b", "**ours**", "untrained"))
    assert "removed from training because they share" in text
    assert ": 3; left: 0." in text
    texts = [label.get_text() for axes in plot(content).axes for label in axes.texts]
    assert sorted(texts) == ["a", "b", "ours", "untrained"]


def test_labels_are_moved_apart_and_stay_inside() -> None:
    assert spread([0.1, 0.12, 0.5], 0.1) == pytest.approx([0.1, 0.2, 0.5])
    assert spread([0.2, 0.95, 0.97], 0.1) == pytest.approx([0.15, 0.9, 1.0])
