"""A disk that fills up, in each stage: one message names the file, nothing is half-written, and the
same call with space ends as if nothing had happened.
"""

from __future__ import annotations

import importlib
import math
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import Said, call
from tiny_run import artefacts

from hf_distill.commands.main import main
from hf_distill.commands.train import main as train
from hf_distill.run import disk
from hf_distill.run.stage import TEMPORARY

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")


@pytest.fixture(autouse=True)
def unexpected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills while the run is at work: the check before it has seen nothing."""
    monkeypatch.setattr(disk, "largest_file", lambda: math.inf)


LIMIT = resource.RLIMIT_FSIZE


def calling(line: list[Any], full_from: str, size: int, program: Any = train) -> Said:
    """Run a program. From the call of a function of its on, no file can become larger than so many
    bytes.
    """
    module, _, function = full_from.rpartition(".")
    before, limits = getattr(importlib.import_module(module), function), resource.getrlimit(LIMIT)

    def limited(*arguments: Any, **keywords: Any) -> Any:
        resource.setrlimit(LIMIT, (size, limits[1]))
        return before(*arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(full_from, limited)
        try:
            return call(line, program)
        finally:
            resource.setrlimit(LIMIT, limits)


def left_over(run: Path) -> list[str]:
    return [path.name for path in run.rglob("*") if TEMPORARY.fullmatch(path.name)]


RUN = "hf_distill.pipeline"
STAGES = {
    "reading": (f"{RUN}.load_collection", "working", "pairs/manifest.json"),
    "recipe": (f"{RUN}.save_recipe", "recipe.yaml", "pairs/x"),
    "lengths": (f"{RUN}.text_lengths", "", "text_lengths.json"),
    "scoring": (f"{RUN}.score_collection", "soft_labels", "teacher_soft_labels.json"),
    "selection": (f"{RUN}.select_pairs", "selection", "selection.json"),
    "checkpoints": (f"{RUN}.train_student", "checkpoint", "training.json"),
    "student": (f"{RUN}.save_student", "student_model_sd", "training.json"),
    "evaluation": (f"{RUN}.evaluate", "retrieval", "evaluation.json"),
    "report": (f"{RUN}.write_report", "report.html", "report.html"),
    "index": (f"{RUN}.keep_index", "documents.parquet", "search/kept.json"),
    "results": (f"{RUN}.save_made_with", "results.json", "results.json"),
    "data set": (f"{RUN}.write_dataset", "dataset", "dataset.json"),
    "card": (f"{RUN}.write_model_card", "README.md", "student_model_sd/README.md"),
}
"""The function that begins a stage, what the message names, and what makes the stage work again."""


@pytest.mark.parametrize("name", STAGES)
def test_a_disk_that_fills_in_a_stage(tiny: Path, copied: Path, name: str) -> None:
    function, named, gone = STAGES[name]
    whole = artefacts(copied)
    if name == "reading":
        shutil.rmtree(copied)
    (copied / gone).unlink(missing_ok=True)
    if name in ("scoring", "checkpoints"):
        shutil.rmtree(copied / ("soft_labels" if name == "scoring" else "checkpoints"))
    said = calling([tiny, "--run_dir", copied], function, 150)
    messages = [line for line in said.err.splitlines() if "error: " in line]
    assert (said.code, len(messages), "Traceback" in said.err) == (1, 1, False), said.err
    assert named in messages[0]
    assert str(copied) in messages[0]
    assert not left_over(copied)
    there = artefacts(copied)
    assert {path: whole[path] for path in there} == there, "what has its name is whole"
    assert call([tiny, "--run_dir", copied]).code == 0
    assert artefacts(copied) == whole


COMMANDS = {
    "search": ("hf_distill.commands.student_index.index_of_run", ["search", "RUN", "a cat"]),
    "dataset": ("hf_distill.commands.dataset.export_collection",
                ["dataset", "RUN", "--format", "beir"]),
    "export": ("hf_distill.commands.export.export_onnx", ["export", "RUN"]),
    "publish": ("hf_distill.commands.publish.write_model_card",
                ["publish", "RUN", "--model", "you/x"]),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_disk_that_fills_in_a_command(copied: Path, name: str) -> None:
    function, line = COMMANDS[name]
    line = [str(copied) if token == "RUN" else token for token in line]
    if name == "search":
        shutil.rmtree(copied / "search")  # it makes the index again
    whole = artefacts(copied)
    said = calling(line, function, 100, main)
    assert said.code in (1, 2), said.err
    messages = [text for text in said.err.splitlines() if "error: " in text]
    assert (len(messages), "Traceback" in said.err) == (1, False), said.err
    assert str(copied) in messages[0]
    assert not left_over(copied)
    assert artefacts(copied) == whole
    if name != "publish":
        again = call(line, main)
        assert again.code == 0, again.err
