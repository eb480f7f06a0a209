"""The scripts in benchmarks/ run, and end with the line of JSON that they promise. What they
measure is not judged here.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REAL_DATA, ROOT
from quality import ARMS, Setting, recipe_of, write_conversations

from hf_distill.compute.models import (
    QUICKSTART_PACKAGE,
    packaged_quickstart_teacher,
)
from hf_distill.data.load import load_pair_data
from hf_distill.recipe.arguments import read_recipe
from hf_distill.run.folder import RunFolder


def last_line(*command: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(autouse=True)
def packaged_teacher() -> None:
    if packaged_quickstart_teacher() is None:
        pytest.skip(f"{QUICKSTART_PACKAGE} is not installed")


def test_scoring() -> None:
    figures = last_line("benchmarks/scoring.py", "--pairs", "60", "--rounds", "1")
    assert {"x_default", "x_best", "peak_share", "mean_diff", "max_diff"} <= set(figures)
    assert 0 < figures["peak_share"] < 1
    assert figures["mean_diff"] <= 2e-3, "the scores stay close to float32"
    assert figures["max_diff"] <= 1e-2


def test_search() -> None:
    pytest.importorskip("faiss", reason="faiss-cpu, the extra `benchmarks`, is not installed")
    figures = last_line(
        "benchmarks/search.py",
        "--documents",
        "9000",
        "--queries",
        "30",
        "--rounds",
        "1",
        "--depth",
        "10",
    )
    assert {"x_faiss", "peak_share", "memory_mb", "memory_mb_faiss"} <= set(figures)
    assert figures["agreement"] == 1
    assert figures["score_diff"] < 1e-6


def test_training() -> None:
    figures = last_line(
        "benchmarks/training.py",
        "--steps",
        "5",
        "--turns",
        "1",
        "--batch",
        "4",
        "--peers",
        "MNRL",
        "--grad_cache",
    )
    assert {"x_fp32", "x_bf16", "peak_share"} <= set(figures)
    assert 0 < figures["peak_share"] < 1


def test_selection() -> None:
    figures = last_line("benchmarks/selection.py", "--pairs", "300", "600")
    assert set(figures) == {"300", "600"}
    assert figures["600"]["pairs"] == 600
    assert 0 < figures["600"]["kept"] < 600
    assert figures["300"]["mb_before"] <= figures["300"]["mb_peak"]


def test_serving() -> None:
    figures = last_line(
        "benchmarks/serving.py",
        "--queries",
        "2",
        "--documents",
        "4",
        "--rounds",
        "1",
        "--most_seconds",
        "1",
    )["variants"]
    student = ("PyTorch float32", "PyTorch bfloat16", "ONNX float32", "ONNX int8")
    assert {"teacher, PyTorch float32", *(f"student, {name}" for name in student)} <= set(figures)
    for variant in figures.values():
        assert 0 < variant["p50_ms"] <= variant["p95_ms"]
        assert variant["documents_per_second"] > 0
    assert (
        figures["student, ONNX int8"]["megabytes"]
        < figures["student, ONNX float32"]["megabytes"] / 3
    )


def test_quality(tmp_path: Path) -> None:
    conversations = REAL_DATA / "qrecc_quac_train.json"
    if not conversations.is_file():
        pytest.skip(f"{conversations.name}, conversations of QReCC, is not here")
    call = (
        "benchmarks/quality.py", "--qrecc", str(conversations), "--max_pairs", "300", "--examples", "64", "--jobs", "1", "--home",
        "conversations", "--arms", "EmbedDistillLoss", "recommended", "--try", "alone: contrastive_weight=0", "--out", str(tmp_path),
    )  # fmt: skip
    figures = last_line(*call, "--seeds", "1")
    assert set(figures["conversations"]) == {
        "untrained",
        "EmbedDistillLoss",
        "recommended",
        "alone",
    }
    assert all(0 < row["home ratio"] < 2 for row in figures["conversations"].values())
    assert len({row["Pearson"] for row in figures["conversations"].values()}) == 4, (
        "each is another student"
    )
    results = sorted((tmp_path / "results").iterdir())
    assert last_line(*call, "--seeds", "2", "--table") == figures, (
        "the second seed is not there, and is not trained"
    )
    assert sorted((tmp_path / "results").iterdir()) == results


def test_another_split_of_quality_has_other_held_out_pairs(tmp_path: Path) -> None:
    conversations = REAL_DATA / "qrecc_quac_train.json"
    if not conversations.is_file():
        pytest.skip(f"{conversations.name}, conversations of QReCC, is not here")
    write_conversations([conversations], tmp_path)
    held_out = []
    for setting in (Setting(tmp_path), Setting(tmp_path, split=7)):
        recipe = recipe_of("conversations", setting)
        data = load_pair_data(recipe.data, recipe.training.seed, RunFolder(recipe.run_dir))
        held_out.append({*data.test["pair_id"]})
        assert held_out[-1].isdisjoint(data.train["pair_id"])
    assert 0 < len(held_out[0] & held_out[1]) < min(map(len, held_out)) / 2


def test_the_papers_arm_of_quality_has_the_papers_objective(tmp_path: Path) -> None:
    ours = recipe_of("conversations", Setting(tmp_path), ARMS["the paper"].keys)
    paper = read_recipe(
        [str(ROOT / "recipes" / "qrecc.yaml"), "--dataset_path", str(tmp_path / "qrecc.json")]
    )
    assert ours.objective.false_negative_margin == -2, (
        "less than any two cosines differ by: no negative is left out"
    )
    assert dataclasses.replace(ours.objective, false_negative_margin=None) == paper.objective
    assert ours.trainer.augmented_texts_per_pair == paper.trainer.augmented_texts_per_pair == 0


def test_frontier(tmp_path: Path) -> None:
    conversations = REAL_DATA / "qrecc_quac_train.json"
    if not conversations.is_file():
        pytest.skip(f"{conversations.name}, conversations of QReCC, is not here")
    call = (
        "benchmarks/frontier.py", "--qrecc", str(conversations), "--max_pairs", "300", "--examples", "64", "--sizes", "static", "2 layers",
        "--out", str(tmp_path),
    )  # fmt: skip
    figures = last_line(*call)
    assert set(figures) == {"static", "2 layers"}
    assert figures["static"]["query_ms"] < figures["2 layers"]["query_ms"]
    folder = tmp_path / "frontier" / "conversations"
    assert (
        json.loads((folder / "2-layers" / "config.json").read_text(encoding="utf-8"))[
            "num_hidden_layers"
        ]
        == 2
    )
    trained = (folder / "2-layers.json").stat().st_mtime_ns
    again = last_line(*call)
    assert [row["nDCG@10"] for row in again.values()] == [
        row["nDCG@10"] for row in figures.values()
    ]
    assert (folder / "2-layers.json").stat().st_mtime_ns == trained, (
        "what is there is not trained again"
    )
    assert "binary, rescored by int8" in (tmp_path / "frontier.md").read_text(encoding="utf-8")
