"""The scripts in benchmarks/ run, and end with the line of JSON that they promise. What they
measure is not judged here.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import frontier
import pytest
import quality
import scoring
import selection
import serving
import training
from conftest import REAL_DATA, ROOT
from quality import ARMS, Setting, parse_try, recipe_of, write_conversations

from hf_distill.compute.models import QUICKSTART_PACKAGE, packaged_quickstart_teacher
from hf_distill.data.load import load_collection
from hf_distill.errors import InputError
from hf_distill.recipe.config import DistillationConfig
from hf_distill.recipe.read import read_recipe
from hf_distill.run.folder import RunFolder


def last_line(script: str, *options: object) -> dict[str, Any]:
    """The JSON in the last line of a benchmark's output."""
    done = subprocess.run(
        [sys.executable, f"benchmarks/{script}.py", *map(str, options)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


Main = Callable[..., dict[str, Any]]


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Main:
    """Runs a benchmark in this process, which has imported everything already, without changing
    this process for other tests. Returns the JSON in the last line.
    """
    monkeypatch.setattr(datasets.utils.logging, "disable_progress_bar", lambda: None)

    def run(module: Any, *options: object) -> dict[str, Any]:
        for name in {"be_quiet", "keep_freed_memory", "use_all_cores"} & set(vars(module)):
            monkeypatch.setattr(module, name, lambda *_: None)
        monkeypatch.setattr(sys, "argv", [module.__file__, *map(str, options)])
        module.main()
        figures: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return figures

    return run


@pytest.fixture(autouse=True)
def packaged_teacher() -> None:
    if packaged_quickstart_teacher() is None:
        pytest.skip(f"{QUICKSTART_PACKAGE} is not installed")


@pytest.fixture
def conversations() -> Path:
    path = REAL_DATA / "qrecc_quac_train.json"
    if not path.is_file():
        pytest.skip(f"{path.name}, conversations of QReCC, is not here")
    return path


def test_scoring(main: Main) -> None:
    figures = main(scoring, "--pairs", 40, "--rounds", 1)
    assert {"x_default", "x_best", "peak_share", "mean_diff", "max_diff"} <= set(figures)
    assert figures["pairs"] == 40
    assert 0 < figures["peak_share"] < 1
    assert figures["mean_diff"] <= 2e-3, "the scores stay close to float32"
    assert figures["max_diff"] <= 1e-2


def test_search() -> None:
    pytest.importorskip("faiss", reason="faiss-cpu, the extra `benchmarks`, is not installed")
    figures = last_line(
        "search", "--documents", 9000, "--queries", 30, "--rounds", 1, "--depth", 10
    )
    assert {"x_faiss", "peak_share", "memory_mb", "memory_mb_faiss"} <= set(figures)
    assert figures["agreement"] == 1
    assert figures["score_diff"] < 1e-6


@pytest.mark.filterwarnings("ignore")
def test_training(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    def in_this_process(turn: training.Turn) -> training.Figures:
        result: queue.Queue[training.Figures] = queue.Queue()
        training.measure(turn, result)
        return result.get()

    first = iter([training.in_own_process])

    def take(turn: training.Turn) -> training.Figures:
        """Only the first turn in a process of its own, because starting one takes seconds."""
        return next(first, in_this_process)(turn)

    monkeypatch.setattr(training, "in_own_process", take)
    options = ("--steps", 4, "--turns", 1, "--batch", 4, "--pairs", 40, "--grad_cache")
    figures = main(training, *options)
    assert {"x_fp32", "x_bf16", "examples_per_second"} <= set(figures)
    assert 0 < figures["peak_share"] < 1


def test_selection(main: Main) -> None:
    figures = main(selection, "--pairs", 300, 600)
    assert set(figures) == {"300", "600"}
    assert figures["600"]["pairs"] == 600
    assert 0 < figures["600"]["kept"] < 600
    assert figures["300"]["mb_before"] <= figures["300"]["mb_peak"]


@pytest.mark.filterwarnings("ignore")
def test_serving(main: Main) -> None:
    options = ("--queries", 2, "--documents", 4, "--rounds", 1, "--most_seconds", 1)
    figures = main(serving, *options)["variants"]
    student = ("PyTorch float32", "PyTorch bfloat16", "ONNX float32", "ONNX int8")
    assert {"teacher, PyTorch float32", *(f"student, {name}" for name in student)} <= set(figures)
    for variant in figures.values():
        assert 0 < variant["p50_ms"] <= variant["p95_ms"]
        assert variant["documents_per_second"] > 0
    megabytes = {name: variant["megabytes"] for name, variant in figures.items()}
    assert megabytes["student, ONNX int8"] < megabytes["student, ONNX float32"] / 3


def test_quality(conversations: Path, tmp_path: Path, main: Main) -> None:
    peer = "EmbedDistillLoss, batch 16"
    options = (
        "--qrecc", conversations, "--max_pairs", 120, "--examples", 32, "--jobs", 1,
        "--domain", "conversations", "--arms", peer, "recommended",
        "--try", "alone: contrastive_weight=0", "--out", tmp_path,
    )  # fmt: skip
    figures = last_line("quality", *options, "--seeds", 1)
    assert set(figures) == {"conversations"}
    rows = figures["conversations"]
    assert set(rows) == {"untrained", peer, "recommended", "alone"}
    assert all(0 < row["in_domain ratio"] < 2 for row in rows.values())
    assert len({row["Pearson"] for row in rows.values()}) == 4, "each is another student"

    def results() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.glob("results/*/trained.json")}

    before = results()
    assert len(before) == 4
    again = main(quality, *options, "--seeds", 2, "--table")
    assert again == figures, "the second seed is not there, and is not trained"
    assert results() == before


def test_another_split_of_quality_has_other_held_out_pairs(
    conversations: Path, tmp_path: Path
) -> None:
    write_conversations([conversations], tmp_path)
    held_out = []
    for setting in (Setting(tmp_path), Setting(tmp_path, split=7)):
        recipe = recipe_of("conversations", setting)
        collection = load_collection(recipe, RunFolder(recipe.run_dir))
        held_out.append({*collection.pairs("test").column("pair_id")})
        assert held_out[-1].isdisjoint(collection.pairs("train").column("pair_id"))
    assert 0 < len(held_out[0] & held_out[1]) < min(map(len, held_out)) / 2


def test_the_papers_arm_of_quality_has_the_papers_objective(tmp_path: Path) -> None:
    ours = recipe_of("conversations", Setting(tmp_path), ARMS["the paper"].keys)
    paper = read_recipe(["qrecc", "--dataset_path", str(tmp_path / "qrecc.json")])
    names = [name for name in vars(DistillationConfig)["__annotations__"] if "patience" not in name]
    assert "contrastive_weight" in names
    for name in names:
        assert getattr(ours.training, name) == getattr(paper.training, name), name
    assert ours.student.head_dropout == paper.student.head_dropout
    assert ours.selection.selection[-1:] == paper.selection.selection


def test_a_further_arm_of_quality_names_keys_of_the_recipe(tmp_path: Path) -> None:
    arm = parse_try("eight texts: texts_per_pair=8 alignment_weight=300")
    recipe = recipe_of("pydocs", Setting(tmp_path), arm.keys)
    assert (arm.name, arm.own, arm.loss) == ("eight texts", True, None)
    assert (recipe.training.texts_per_pair, recipe.training.alignment_weight) == (8, 300)
    with pytest.raises(InputError, match="--try 'eight texts'"):
        parse_try("eight texts")


def test_frontier(conversations: Path, tmp_path: Path) -> None:
    options = (
        "--qrecc", conversations, "--max_pairs", 300, "--examples", 64, "--out", tmp_path,
        "--sizes", "2 layers", "static",
    )  # fmt: skip
    figures = last_line("frontier", *options)
    assert set(figures) == {"static", "2 layers"}
    assert figures["static"]["query_ms"] < figures["2 layers"]["query_ms"]
    [folder] = tmp_path.glob("frontier/conversations*/2-layers")
    [config] = folder.glob("*/config.json")
    assert json.loads(config.read_text(encoding="utf-8"))["num_hidden_layers"] == 2
    assert "binary, rescored by int8" in (tmp_path / "frontier.md").read_text(encoding="utf-8")
    trained = (folder / "training.json").stat().st_mtime_ns
    frontier.train_size("2 layers", "conversations", Setting(tmp_path, 300), 64)
    assert (folder / "training.json").stat().st_mtime_ns == trained, "it is not trained again"


@pytest.mark.parametrize(("runs", "processes"), [(4, 1), (2, 2)])
def test_killed_runs_end_as_the_uninterrupted_one(runs: int, processes: int) -> None:
    figures = last_line("kills", "--runs", runs, "--seed", 4, "--processes", processes)
    assert figures["same"] == figures["runs"] == runs
    assert figures["kills"], "how many depends on the machine's speed"


def test_no_damaged_file_is_used_without_a_word() -> None:
    figures = last_line("damage", "--runs", 2, "--seed", 2)
    assert (figures["tracebacks"], figures["silent"]) == (0, 0)
    assert figures["right"] == figures["checks"] >= 10


def test_two_runs_at_once_do_not_disturb_each_other() -> None:
    figures = last_line("two_at_once", "--runs", 2, "--seed", 3)
    assert figures == {"runs": 2, "right": 2, "tracebacks": 0}
