"""Every way to start a run, as a user would: one short run each, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import hf_distill

HF_DISTILL = "import sys; from hf_distill.commands.main import main; sys.exit(main())"
WAYS = {
    "train.py": (sys.executable, str(ROOT / "train.py")),
    "accelerate launch train.py": (
        sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1",
        str(ROOT / "train.py"),
    ),
    "accelerate launch -m hf_distill": (
        sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m",
        "hf_distill",
    ),
    "hf-distill train": (sys.executable, "-c", HF_DISTILL, "train"),
}  # fmt: skip


def start(*command: object, check: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        timeout=600,
    )
    assert done.returncode == check, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that each way goes on with, or begins."""
    return tmp_path_factory.mktemp("ways") / "run"


@pytest.mark.parametrize("way", WAYS)
def test_a_run_can_be_started_by(way: str, tiny: Path, begun: Path) -> None:
    done = start(*WAYS[way], tiny, "--run_dir", begun, "--until", "select")
    assert "Selected" in done.stdout
    assert (begun / "selection.json").is_file()


def test_a_launcher_shows_the_message_of_what_cannot_be_used() -> None:
    refused = start(*WAYS["accelerate launch train.py"], "nowhere", check=1)
    assert "nowhere" in refused.stderr


def test_a_run_can_be_started_from_python(tiny: Path, tmp_path: Path) -> None:
    results = hf_distill.train(
        str(tiny),
        run_dir=tmp_path / "run",
        max_steps=2,
        save_strategy="no",
        load_best_model_at_end=False,
        early_stopping_patience=None,
    )
    assert results.training.steps == 2
    assert (results.folder.student / "modules.json").is_file()


def test_python_asks_for_results_where_there_are_some(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(hf_distill.InputError, match="--until score"):
        hf_distill.train(str(tiny), run_dir=tmp_path / "run", until="score")
    assert not (tmp_path / "run").exists()
