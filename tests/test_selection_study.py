"""The study of selections: its arms, how they are compared, and a small one from the command
line.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.stats import ttest_rel
from sentence_transformers import SentenceTransformer

from hf_distill.commands.main import main
from hf_distill.data.collection import Pairs
from hf_distill.errors import InputError
from hf_distill.evaluation.results import Estimate
from hf_distill.evaluation.significance import crossed_interval
from hf_distill.evaluation.tasks import HeldOutTask
from hf_distill.recipe.read import read_recipe
from hf_distill.run.folder import open_run_folder
from hf_distill.run.stage import read_json
from hf_distill.selection.audit import Audit
from hf_distill.selection.rules import Columns
from hf_distill.study.arms import FULL, matched_recipe, parse_selections, plan_arms
from hf_distill.study.compare import ArmResult, Row, compare, verdict
from hf_distill.study.measure import Measurement, measure
from hf_distill.study.page import Study, markdown, plot


def columns(scores: list[float]) -> Columns:
    """Scores with the reversed order as the seeded one; texts are long and different."""
    n = len(scores)
    needed = {
        "long_enough": np.ones(n, dtype=bool),
        "query": np.arange(n, dtype=np.uint64),
        "document": np.arange(n, 2 * n, dtype=np.uint64),
    }
    order = np.arange(n)[::-1].copy()
    return Columns(Pairs(None, np.arange(n)), np.array(scores), order, needed)


def test_arms_by_hand() -> None:
    scores = columns([0.1, 0.2, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, float("nan")])
    arms = plan_arms(parse_selections(["threshold=0.7", "top_k=3 echo", "invalid"]), scores)
    assert [arm.name for arm in arms] == [
        FULL,
        "random 3",
        "bottom 3",
        "threshold=0.7",
        "top_k=3 echo",
        "invalid",
    ]
    assert [arm.control for arm in arms] == [None, None, None, "random 3", "random 3", None], (
        "invalid keeps all: all pairs are its control"
    )
    rows = {arm.name: arm.rows(scores).tolist() for arm in arms}
    assert rows[FULL] == list(range(9)), "without a score, a pair is not trained on"
    assert rows["random 3"] == [6, 7, 8], (
        "the first three with a score in the seeded order, here the reversed one"
    )
    assert rows["bottom 3"] == [0, 1, 2]
    assert rows["threshold=0.7"] == rows["top_k=3 echo"] == [6, 7, 8]
    tied = columns([0.5, 0.2, 0.2, 0.2])
    bottom = next(
        arm for arm in plan_arms(parse_selections(["top_k=2"]), tied) if arm.name == "bottom 2"
    )
    assert bottom.rows(tied).tolist() == [2, 3], "ties are broken by the seeded order"


@pytest.mark.parametrize(
    ("selections", "says"),
    [
        ([], "--rules: name at least one"),
        (["percentile=80", "percentile=80"], "--rules 'percentile=80' is given twice"),
        ([" "], "--rules ' ' names no rule"),
        (["threshold=2"], "--rules 'threshold=2' keeps none of 3 pairs"),
        (["perzentile=2"], "--rules 'perzentile' is unknown"),
    ],
)
def test_a_bad_selection_is_refused(selections: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        plan_arms(parse_selections(selections), columns([0.1, 0.2, 0.3]))


def test_a_comparison_is_over_queries_and_seeds() -> None:
    scores = columns([i / 10 for i in range(10)])
    arms = plan_arms(parse_selections(["top_k=5"]), scores)
    rng = np.random.default_rng(0)
    teacher = rng.random(40)
    base = rng.random((2, 30)) * 0.8

    def result(arm: str, seed: int, shift: float) -> ArmResult:
        values = base[seed] + shift + 0.01 * rng.random(30)
        measured = Measurement(tuple(values), (1.0,) * 30, tuple(teacher + 0.1))
        return ArmResult("key", arm, seed, 5, 1, 16, "fp32", 1.0, 2.0, measured)

    shifts = {FULL: 0.0, "random 5": 0.0, "bottom 5": -0.1, "top_k=5": 0.05}
    results = [result(arm, seed, shift) for seed in (0, 1) for arm, shift in shifts.items()]
    rows = {row.arm: row for row in compare(arms, results, teacher, 0)}
    ours, theirs = (
        np.array([r.measured.ndcg for r in results if r.arm == name])
        for name in ("top_k=5", "random 5")
    )
    row = rows["top_k=5"]
    gap = row.minus_random
    assert gap.estimate.value == pytest.approx((ours - theirs).mean())
    assert gap.estimate.low < gap.estimate.value < gap.estimate.high
    assert gap.p == gap.p_holm == crossed_interval(ours - theirs).p
    assert row.minus_all.p_holm > row.minus_all.p, "three arms are compared with all pairs"
    assert len(gap.by_seed) == 2
    assert row.pearson.value == pytest.approx(1)
    assert row.mae.value == pytest.approx(0.1)
    assert verdict(row) == "better than random pairs of its size; better than all pairs"
    assert verdict(rows["bottom 5"]) == "worse than all pairs"
    unclear = dataclasses.replace(row, minus_random=dataclasses.replace(gap, p_holm=0.06))
    assert verdict(unclear).startswith("no clear difference from random")
    alone = [r for r in results if r.seed == 0]
    one = next(row for row in compare(arms, alone, teacher, 0) if row.arm == "top_k=5")
    values = {r.arm: r.measured.ndcg for r in alone}
    expected = ttest_rel(values["top_k=5"], values["random 5"]).pvalue
    assert one.minus_random.p == pytest.approx(expected)


def test_a_student_that_scores_all_pairs_alike_has_no_correlation_but_a_row() -> None:
    arms = plan_arms({}, columns([0.1, 0.2]))
    measured = Measurement((0.5, 0.7), (1.0, 1.0), (0.3, 0.3, 0.3))
    result = ArmResult("key", FULL, 0, 2, 1, 16, "fp32", 1.0, 2.0, measured)
    (row,) = compare(arms, [result], np.array([0.1, 0.2, 0.3]), 0)
    assert (row.pearson.value, row.pearson.n) == (None, 3)
    assert row.mae.value == pytest.approx(0.1)


def row(arm: str, ndcg: float, **more: object) -> Row:
    estimate = Estimate(ndcg, ndcg - 0.1, ndcg + 0.1, 30)
    nothing = Estimate(None, None, None, 30, "all scores are equal")
    parts = {
        "is_control": True, "pairs": 1234, "ndcg_by_seed": (ndcg,), "recall": estimate,
        "pearson": nothing, "mae": estimate, "control": None, "minus_random": None,
        "minus_all": None,
    }  # fmt: skip
    return Row(arm=arm, ndcg=estimate, **{**parts, **more})


def test_the_page_shows_every_arm_and_what_is_undefined() -> None:
    rows = (row(FULL, 0.5), row("top_k=3", 0.6, is_control=False))
    text = markdown(Study(48, (42,), 30, 40, 50, 1300, rows))
    assert "| `top_k=3` | 1,234 | 0.600 (0.500 to 0.700) | – | – | 0.600 | – | 0.600 |" in text
    assert "one seed says nothing about others" in text
    labels = plot(rows).axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == ["top_k=3 (1,234)", f"{FULL} (1,234)"]


def test_a_students_own_prompts_stand_before_what_is_measured(teacher_dir: Path) -> None:
    task = HeldOutTask(
        queries={"q": "red dog", "r": "blue cat"},
        documents={"a": "the sun", "b": "the moon", "c": "a star"},
        qrels={"q": {"a": 1}, "r": {"b": 1}},
        query_numbers=np.array([0, 1]),
        document_numbers=np.array([0, 1, 2]),
        pair_queries=np.array([0, 1, 1]),
        pair_documents=np.array([0, 1, 0]),
    )
    student = SentenceTransformer(str(teacher_dir), device="cpu")
    plain = measure(student, task)
    student.prompts = {"query": "north south ", "document": ""}
    prompted = measure(student, task)
    embedded = student.encode(["north south blue cat", "the sun"])
    assert prompted.student_score[2] == pytest.approx(embedded[0] @ embedded[1], abs=1e-5)
    assert prompted.student_score != plain.student_score
    assert (len(plain.ndcg), plain.recall) == (2, (1.0, 1.0))


def test_a_matched_recipe_sees_whole_batches_and_leaves_the_recipe_alone(recipe: Path) -> None:
    given = read_recipe([str(recipe)])
    matched = matched_recipe(given, 40, 7)
    training = matched.training
    assert (training.max_steps, training.seed, matched.seed) == (3, 7, 7)
    assert (training.eval_strategy, training.save_strategy) == ("no", "no")
    assert training.early_stopping_patience is None
    assert training.dataloader_drop_last
    assert (given.training.max_steps, given.training.eval_strategy) == (-1, "epoch")


@pytest.fixture
def recipe(tmp_path: Path, pairs_file: Path, teacher_dir: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    keys = {
        "dataset": "files", "dataset_path": str(pairs_file), "group_column": "topic",
        "teacher": str(teacher_dir), "teacher_dtype": "float32", "student_layers": "0,2",
        "student_dim": 16, "student_init": "pca", "student_max_length": 32,
        "student_dropout": 0.0, "per_device_train_batch_size": 16, "bf16": False,
        "run_dir": str(tmp_path / "run"), "eval_strategy": "epoch", "save_strategy": "epoch",
        "load_best_model_at_end": True, "early_stopping_patience": 1, "num_train_epochs": 1,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(keys))
    return path


def test_a_study_goes_on_where_it_was_stopped(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [
        "study", str(recipe), "--temperature", "0.2", "--rules", "echo percentile=60",
        "--examples", "40",
    ]  # fmt: skip
    assert main([*line, "--seeds", "1"]) == 0
    out = tmp_path / "run" / "study"
    first = {path.name: path.stat().st_mtime_ns for path in (out / "results").iterdir()}
    assert len(first) == 4
    of_run = tmp_path / "run" / "recipe.yaml"
    assert of_run.read_bytes() == (out / "recipe.yaml").read_bytes(), (
        "a folder without a run may become one"
    )
    of_run.write_text(of_run.read_text().replace("temperature: 0.2", "temperature: 0.3"))
    before = of_run.read_bytes()
    assert main([*line, "--seeds", "2"]) == 0
    assert of_run.read_bytes() == before, "what a run was made with stays"
    assert yaml.safe_load((out / "recipe.yaml").read_text())["temperature"] == 0.2
    assert open_run_folder(read_recipe([str(recipe)])).path == tmp_path / "run", (
        "train.py takes the folder"
    )
    second = {path.name: path.stat().st_mtime_ns for path in (out / "results").iterdir()}
    assert len(second) == 8
    assert first.items() <= second.items(), "what was there is not made again"
    study = read_json(out / "study.json", Study)
    assert (study.examples, study.seeds) == (48, (42, 43)), "whole batches"
    assert [row.arm for row in study.arms][0::3] == [FULL, "echo percentile=60"]
    results = [read_json(path, ArmResult) for path in (out / "results").iterdir()]
    assert {(result.steps, result.examples) for result in results} == {(3, 48)}
    assert len({result.measured.student_score for result in results}) == 8, "eight students"
    audits = [read_json(p, Audit) for p in (out / "selections").glob("*/selection.json")]
    assert sorted(audit.kept for audit in audits) == sorted(result.pairs for result in results)
    assert "| `echo percentile=60` | " in (out / "study.md").read_text()
    assert "| `echo percentile=60` | " in capsys.readouterr().out
    assert (out / "study.svg").read_text().startswith("<?xml")
    assert not (out / "checkpoints").exists()
    assert not (tmp_path / "run" / "training.json").exists(), "the run's own student is not made"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["study"], "name the recipe first"),
        (["study", "--rules", "echo"], "name the recipe first"),
        (["study", "{recipe}"], "name at least one selection"),
        (["study", "{recipe}", "--rules", "echo", "--seeds", "0"], "both must be at least 1"),
        (["study", "{recipe}", "--rules", "echo", "--seeds", "two"], "invalid int value: 'two'"),
        (
            ["study", "{recipe}", "--rules", "echo", "--temperatur", "1"],
            "did you mean 'temperature'",
        ),
        (
            ["study", "{recipe}", "--second_model", "first", "--rules", "echo"],
            "--second_model first: no selection rule reads it",
        ),
    ],
)
def test_a_bad_line_is_one_message(
    line: list[str], says: str, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([part.format(recipe=recipe) for part in line]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists(), (
        "whatever can be refused is refused before anything is written"
    )
