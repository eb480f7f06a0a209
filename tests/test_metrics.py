"""The `evaluate.Metric`s: as classes, and as `evaluate.load` finds them in their folders."""

import doctest
import math
from pathlib import Path

import evaluate
import numpy as np
import pytest
import scipy.stats

from hf_distill.errors import InputError
from hf_distill.evaluation.metric_scripts.fidelity import fidelity as fidelity_script
from hf_distill.evaluation.metric_scripts.retrieval import retrieval as retrieval_script
from hf_distill.evaluation.metrics import FIDELITY, RETRIEVAL, Fidelity, Retrieval

RANKINGS = [
    {"documents": ["d1", "d2", "d3"], "scores": [0.9, 0.8, 0.1]},
    {"documents": [], "scores": []},
]
JUDGED = [{"documents": ["d2"], "grades": [1]}, {"documents": ["d9"], "grades": [2]}]


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", tmp_path / "metrics")
    monkeypatch.setattr("evaluate.config.HF_MODULES_CACHE", tmp_path / "modules")


@pytest.mark.parametrize(
    "metric",
    [Fidelity(keep_in_memory=True), evaluate.load(FIDELITY, keep_in_memory=True)],
    ids=["class", "load"],
)
def test_fidelity_as_class_and_by_folder(metric: evaluate.Metric) -> None:
    teacher = np.random.default_rng(0).uniform(size=50)
    student = np.clip(teacher + np.random.default_rng(1).normal(0, 0.1, 50), 0, 1)
    result = metric.compute(predictions=student, references=teacher)
    assert result["pearson"] == pytest.approx(scipy.stats.pearsonr(teacher, student).statistic)
    assert result["kendall"] == pytest.approx(scipy.stats.kendalltau(teacher, student).statistic)
    assert result["bias"] == pytest.approx((student - teacher).mean())
    assert result["details"]["mae"]["low"] < result["mae"] < result["details"]["mae"]["high"]
    constant = metric.compute(predictions=[0.5, 0.5], references=[0.1, 0.9])
    assert constant["pearson"] is None
    assert constant["details"]["pearson"]["undefined"] == "the student's scores are all equal"


@pytest.mark.parametrize(
    "metric",
    [Retrieval(keep_in_memory=True), evaluate.load(RETRIEVAL, keep_in_memory=True)],
    ids=["class", "load"],
)
def test_retrieval_as_class_and_by_folder(metric: evaluate.Metric) -> None:
    result = metric.compute(predictions=RANKINGS, references=JUDGED, measures=["nDCG@10", "RR"])
    assert result["per_query"] == {
        "nDCG@10": pytest.approx([1 / math.log2(3), 0]),
        "RR": [0.5, 0.0],
    }
    assert result["RR"] == 0.25
    assert result["intervals"]["RR"] == {
        "value": 0.25, "low": 0.0, "high": 0.5, "n": 2, "undefined": None,
    }  # fmt: skip


def test_predictions_in_batches_are_the_same() -> None:
    one, batches = Retrieval(experiment_id="one"), Retrieval(experiment_id="batches")
    for ranking, judged in zip(RANKINGS, JUDGED, strict=True):
        batches.add(prediction=ranking, reference=judged)
    assert batches.compute() == one.compute(predictions=RANKINGS, references=JUDGED)


@pytest.mark.parametrize(
    ("ranking", "judged", "measures", "says"),
    [
        (
            {"documents": ["d1"], "scores": []},
            JUDGED[0],
            ["RR"],
            "prediction 0 has 1 documents and 0 scores",
        ),
        (
            {"documents": ["d1", "d1"], "scores": [1, 2]},
            JUDGED[0],
            ["RR"],
            "names 1 of its 2 documents twice",
        ),
        (RANKINGS[0], {"documents": [], "grades": []}, ["RR"], "1 of 1 queries have no judgement"),
        (RANKINGS[0], JUDGED[0], ["NDGC"], "measure 'NDGC'"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    ranking: dict, judged: dict, measures: list, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        Retrieval(keep_in_memory=True).compute(
            predictions=[ranking], references=[judged], measures=measures
        )


@pytest.mark.parametrize(
    "script", [fidelity_script, retrieval_script], ids=["fidelity", "retrieval"]
)
def test_the_example_of_a_metric_runs(script: object) -> None:
    (test,) = [doctest.DocTestParser().get_doctest(script._INPUTS, {}, script.__name__, None, 0)]
    assert doctest.DocTestRunner().run(test).failed == 0


@pytest.mark.parametrize(
    "script", [fidelity_script, retrieval_script], ids=["fidelity", "retrieval"]
)
def test_a_script_imports_one_module_per_line(script: object) -> None:
    """`evaluate.load` reads a script's imports by a pattern that sees only the first name of a
    line.
    """
    lines = [
        line
        for line in Path(script.__file__).read_text(encoding="utf-8").splitlines()
        if line.startswith("import ")
    ]
    assert len(lines) >= 3
    assert not [line for line in lines if "," in line]
