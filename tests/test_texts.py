"""Texts without pairs, and parallel texts: read, split, trained on and measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY, call, run_tiny, sentences

from hf_distill.pipeline import finished, results_of

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")

ALIGNED = {
    **TINY, "dataset": "texts", "group_column": None, "selection": [], "contrastive_weight": 0.0,
    "regression_weight": 0.0, "regression_on": "diagonal", "texts_per_pair": 2,
}  # fmt: skip


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def recipe(folder: Path, teacher: Path, data: Path) -> Path:
    path = folder / "texts.yaml"
    keys = {**ALIGNED, "dataset_path": str(data), "teacher": str(teacher)}
    path.write_text(yaml.safe_dump(keys))
    return path


@pytest.fixture(scope="module")
def texts_run(teacher_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A whole run on 150 texts, one of which stands twice, and what it printed."""
    folder = tmp_path_factory.mktemp("texts")
    every = sentences(150)
    data = jsonl(folder / "texts.jsonl", [{"text": text} for text in [*every, every[0], " "]])
    out = folder / "run"
    return out, run_tiny(recipe(folder, teacher_dir, data), out).out


def test_a_run_on_texts_leaves_a_student_a_report_and_a_card(texts_run: tuple[Path, str]) -> None:
    folder, output = texts_run
    print(output)
    results = results_of(folder)
    assert results.collection.record.read == {
        "rows found": 152, "kept": 150, "no text": 1, "repeated": 1,
    }  # fmt: skip
