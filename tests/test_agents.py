"""Several hosts: an agent of the launcher on each, here on one machine. What they make together is
what one process makes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import agents_process
import forked
import numpy as np
import pytest
from conftest import ROOT, run_tiny
from safetensors.numpy import load_file
from test_ranks import free_port

AGENT = (sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1")
SAME = (
    "teacher_soft_labels.json", "soft_labels/scores.npy", "candidates/mined.npz",
    "candidates/scores.npy", "selection.json",
)  # fmt: skip


@pytest.fixture(scope="module")
def line(tiny: Path, cross_encoder_dir: Path) -> list[str]:
    """A recipe with mined lists that a ranker scores, and a stage for which the student mines. SGD:
    Adam divides what is 0 but for rounding by its own size.
    """
    keys = {
        "candidates_per_query": 6, "hard_negatives_per_pair": 2, "list_kl_weight": 1,
        "rerank_queries": 10, "ranker": f"cross-encoder:{cross_encoder_dir}", "texts_per_pair": 1,
        "optim": "sgd", "learning_rate": 0.05, "per_device_eval_batch_size": 8,
    }  # fmt: skip
    flags = [word for name, value in keys.items() for word in (f"--{name}", str(value))]
    again = ["--stages", "mine_again=true, num_train_epochs=1"]
    return [str(tiny), "--candidates", "teacher", "bm25", *again, *flags]


ONE, EACH_OF_TWO = (["--per_device_train_batch_size", size] for size in ("16", "8"))


@pytest.fixture(scope="module")
def agents(line: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any]]:
    """The folder of a whole run by two agents, and what waits for them; they run meanwhile."""
    folder, port = tmp_path_factory.mktemp("agents"), free_port()
    started = [
        subprocess.Popen(
            [
                *AGENT, "--node_rank", str(rank), "--master_addr", "127.0.0.1", "--master_port",
                str(port), str(ROOT / "train.py"), *line, *EACH_OF_TWO, "--run_dir",
                str(folder / "run"),
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]  # fmt: skip

    def ended() -> list[str]:
        said = [agent.communicate(timeout=600)[0] for agent in started]
        assert [agent.returncode for agent in started] == [0, 0], "\n".join(said)[-6000:]
        return said

    yield folder / "run", ended
    for agent in started:
        agent.kill()
        agent.wait()


@pytest.fixture(scope="module")
def killed(
    line: list[str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """What `agents_process.py` left: its folder, and the exit codes."""
    folder = tmp_path_factory.mktemp("killed")
    whole = [*line, "--until", "train", *EACH_OF_TWO]
    log = folder / "log"
    forked.ended(forked.start(log, agents_process.main, folder, free_port(), whole), log)
    return folder, json.loads((folder / "codes.json").read_text())


@pytest.fixture(scope="module")
def alone(line: list[str], agents: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process, with the batches of both."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    run_tiny(Path(line[0]), folder, *line[1:], *ONE, "--until", "train")
    return folder


def assert_same(ours: Path, alone: Path) -> None:
    """Bytes of what is scored and selected; the student to 1e-6, which the training moved much
    further.
    """
    for name in SAME:
        assert (ours / name).read_bytes() == (alone / name).read_bytes(), name
    [again], [theirs] = (sorted(run.glob("checkpoints/*/candidates")) for run in (ours, alone))
    for name in ("mined.npz", "scores.npy"):
        assert (again / name).read_bytes() == (theirs / name).read_bytes(), f"mined again: {name}"
    for name in ("model.safetensors", "2_Dense/model.safetensors"):
        theirs = load_file(alone / "student_model_sd" / name)
        for key, value in load_file(ours / "student_model_sd" / name).items():
            np.testing.assert_allclose(value, theirs[key], atol=1e-6, err_msg=f"{name} {key}")


def losses(folder: Path) -> list[float]:
    log = json.loads((folder / "training.json").read_text())["log"]
    return [row["loss"] for row in log if "loss" in row]


def test_two_agents_make_the_labels_selection_and_student_of_one_process(
    agents: tuple[Path, Any], alone: Path
) -> None:
    folder, ended = agents
    said = ended()
    assert_same(folder, alone)
    training = json.loads((folder / "training.json").read_text())
    assert (training["processes"], training["pairs"]) == (2, 112)
    evaluations = [row for row in training["log"] if "eval_loss" in row]
    assert len(evaluations) == 2 + 1
    np.testing.assert_allclose(losses(folder), losses(alone), rtol=1e-5)
    assert losses(folder)[-1] < losses(folder)[0]
    assert (folder / "report.html").is_file()
    assert all("on 2 processes" in text for text in said), "on the terminal of each host"
    assert "FutureWarning" not in "".join(said)


def test_a_process_that_is_killed_on_one_host_ends_both_and_changes_nothing(
    killed: tuple[Path, dict[str, Any]], alone: Path
) -> None:
    folder, codes = killed
    assert codes["killed"] == [1, -9]
    assert "process 1 on" in (folder / "killed-0.log").read_text()
    assert codes["again"] == [0, 0], (folder / "again-0.log").read_text()[-3000:]
    training = json.loads((folder / "shared" / "training.json").read_text())
    assert training["resumed_from"] == "checkpoint-7 of stage 1"
    assert_same(folder / "shared", alone)


def test_two_hosts_with_a_folder_each_are_told_so(killed: tuple[Path, dict[str, Any]]) -> None:
    folder, codes = killed
    assert codes["apart"] == [2, 2]
    for rank in range(2):
        said = (folder / f"apart-{rank}.log").read_text()
        assert "error: --run_dir run: process 1 on" in said
        assert "name a folder that all hosts share" in said
        assert not list((folder / f"host{rank}").iterdir())
