"""The study of selections: which arms there are, how they are compared, and a small one from the
command line.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import Dataset
from scipy.stats import ttest_rel

from hf_distill.commands import main
from hf_distill.errors import InputError
from hf_distill.evaluation.significance import crossed_interval
from hf_distill.recipe.arguments import read_recipe
from hf_distill.run.folder import open_run_folder
from hf_distill.selection.rules import (
    Columns,
    parse_rules,
    rule_columns,
)
from hf_distill.study.selection_study import (
    FULL,
    compare,
    parse_selections,
    plan_arms,
    verdict,
)


def columns(scores: list[float]) -> Columns:
    n = len(scores)
    pairs = {
        "query": [f"query number {i}" for i in range(n)],
        "document": [f"document number {i}" for i in range(n)],
        "teacher_score": scores,
    }
    made = rule_columns(Dataset.from_dict(pairs), parse_rules(["invalid", "echo"]), 0)
    return dataclasses.replace(made, order=np.arange(n)[::-1])


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
    assert rows[FULL] == list(range(9)), "a pair without a score is no pair to train on"
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
        ([], "name at least one selection"),
        (["percentile=80", "percentile=80"], "is given twice"),
        ([" "], "names no rule"),
        (["threshold=2"], "keeps none of 3 pairs"),
        (["perzentile=2"], "unknown selection rule"),
    ],
)
def test_a_bad_selection_is_said(selections: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        plan_arms(parse_selections(selections), columns([0.1, 0.2, 0.3]))


def test_a_comparison_is_over_queries_and_seeds() -> None:
    scores = columns([i / 10 for i in range(10)])
    arms = plan_arms(parse_selections(["top_k=5"]), scores)
    rng = np.random.default_rng(0)
    teacher = rng.random(40)
    base = rng.random((2, 30)) * 0.8

    def result(arm: str, seed: int, shift: float) -> dict:
        values = base[seed] + shift + 0.01 * rng.random(30)
        return {
            "arm": arm, "seed": seed, "pairs": 5, "nDCG@10": values.tolist(), "R@100": [1.0] * 30,
            "student_score": (teacher + 0.1).tolist(),
        }  # fmt: skip

    shifts = {FULL: 0.0, "random 5": 0.0, "bottom 5": -0.1, "top_k=5": 0.05}
    results = [result(arm, seed, shift) for seed in (0, 1) for arm, shift in shifts.items()]
    rows = {row["arm"]: row for row in compare(arms, results, teacher, 0)}
    ours, theirs = (
        np.mean([r["nDCG@10"] for r in results if r["arm"] == name], axis=0)
        for name in ("top_k=5", "random 5")
    )
    gap = rows["top_k=5"]["minus_random"]
    assert gap["value"] == pytest.approx((ours - theirs).mean())
    assert gap["low"] < gap["value"] < gap["high"]
    by_seed = np.array(
        [[r["nDCG@10"] for r in results if r["arm"] == name] for name in ("top_k=5", "random 5")]
    )
    assert gap["p"] == gap["p_holm"] == crossed_interval(by_seed[0] - by_seed[1])["p"]
    assert len(gap["by_seed"]) == 2
    assert rows["top_k=5"]["pearson"]["value"] == pytest.approx(1)
    assert rows["top_k=5"]["mae"]["value"] == pytest.approx(0.1)
    assert verdict(rows["top_k=5"]) == "better than random pairs of its size; better than all pairs"
    assert verdict(rows["bottom 5"]) == "worse than all pairs"
    gap["p_holm"] = 0.06
    assert verdict(rows["top_k=5"]).startswith("no clear difference from random")
    alone = [{**r, "seed": 0} for r in results if r["seed"] == 0]
    one = {row["arm"]: row for row in compare(arms, alone, teacher, 0)}["top_k=5"]["minus_random"]
    values = {r["arm"]: r["nDCG@10"] for r in alone}
    assert one["p"] == pytest.approx(ttest_rel(values["top_k=5"], values["random 5"]).pvalue)


@pytest.fixture
def recipe(tmp_path: Path, pairs_file: Path, teacher_dir: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    keys = {
        "dataset": "files", "dataset_path": str(pairs_file), "group_column": "topic", "teacher": str(teacher_dir),
        "teacher_dtype": "float32",
        "student_layers": "0,2", "student_dim": 16, "student_init": "pca", "student_max_length": 32, "student_dropout": 0.0,
        "per_device_train_batch_size": 16, "bf16": False, "run_dir": str(tmp_path / "run"), "eval_strategy": "epoch",
        "save_strategy": "epoch", "load_best_model_at_end": True, "early_stopping_patience": 1, "num_train_epochs": 1,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(keys))
    return path


def test_a_study_goes_on_where_it_was_stopped(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [
        "study",
        str(recipe),
        "--temperature",
        "0.2",
        "--rules",
        "echo percentile=60",
        "--examples",
        "40",
    ]
    assert main([*line, "--seeds", "1"]) == 0
    out = tmp_path / "run" / "study"
    first = {path.name: path.stat().st_mtime_ns for path in (out / "results").iterdir()}
    assert len(first) == 4
    mine = tmp_path / "run" / "recipe.yaml"
    assert mine.read_bytes() == (out / "recipe.yaml").read_bytes(), (
        "a folder without a run may become one"
    )
    mine.write_text(mine.read_text().replace("temperature: 0.2", "temperature: 0.3"))
    before = mine.read_bytes()
    assert main([*line, "--seeds", "2"]) == 0
    assert mine.read_bytes() == before, "what a run was made with stays"
    assert yaml.safe_load((out / "recipe.yaml").read_text())["temperature"] == 0.2
    assert open_run_folder(read_recipe([str(recipe)])).path == tmp_path / "run", (
        "train.py takes the folder"
    )
    second = {path.name: path.stat().st_mtime_ns for path in (out / "results").iterdir()}
    assert len(second) == 8
    assert first.items() <= second.items(), "what was there is not made again"
    study = json.loads((out / "study.json").read_text())
    assert (study["examples"], study["seeds"]) == (48, [42, 43]), "whole batches"
    assert [row["arm"] for row in study["arms"]][0::3] == [FULL, "echo percentile=60"]
    assert {row["seeds"] for row in study["arms"]} == {2}
    results = [json.loads(path.read_text()) for path in (out / "results").iterdir()]
    assert {(result["steps"], result["examples"]) for result in results} == {(3, 48)}
    assert len({tuple(result["student_score"]) for result in results}) == 8, "eight students"
    assert "| `echo percentile=60` | " in (out / "study.md").read_text()
    assert "| `echo percentile=60` | " in capsys.readouterr().out
    assert (out / "study.svg").read_text().startswith("<?xml")
    assert not (out / "checkpoints").exists()


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
