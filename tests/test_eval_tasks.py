"""A test set of one's own and further tasks, figures per source, and what must not be claimed: a
whole tiny run and its parts.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import call, recipe_of, run_tiny, sentences

from hf_distill.evaluation.results import Evaluation
from hf_distill.run.folder import RunFolder
from hf_distill.run.stage import read_json

OWN, ELSEWHERE = sentences(20, 5000), sentences(20, 6000)
FURTHER, CORPUS = sentences(15, 7000), sentences(40, 8000)


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def test_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pairs of one's own. The first query is one of `pairs_file`, too."""
    queries = [sentences(1)[0], *OWN[1:]]
    rows = [{"query": q, "document": d} for q, d in zip(queries, ELSEWHERE, strict=True)]
    return write_lines(tmp_path_factory.mktemp("own") / "own test.v2.jsonl", rows)


def beir_folder(folder: Path) -> Path:
    write_lines(
        folder / "corpus.jsonl",
        [{"_id": f"d {i}", "title": "", "text": text} for i, text in enumerate(CORPUS)],
    )
    write_lines(
        folder / "queries.jsonl", [{"_id": f"q{i}", "text": t} for i, t in enumerate(FURTHER)]
    )
    (folder / "qrels").mkdir()
    lines = [f"q{i}\td {i}\t{1 + i % 2}" for i in range(15)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two BEIR folders of the same name."""
    parent = tmp_path_factory.mktemp("beir")
    return beir_folder(parent / "a" / "tests"), beir_folder(parent / "b" / "tests")


@pytest.fixture(scope="module")
def measured(
    tiny: Path, test_set: Path, folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunFolder, str]:
    """A run with all three tasks, and what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "tasks"
    said = run_tiny(tiny, folder, "--test_path", test_set, "--eval_tasks", *folders)
    return RunFolder(folder), said.out


def test_tasks_are_measured_beside_the_held_out_pairs(measured) -> None:
    folder, out = measured
    result = read_json(folder.evaluation, Evaluation)
    print(out)
    assert list(result.tasks) == ["own-test", "tests", "tests-2"]
