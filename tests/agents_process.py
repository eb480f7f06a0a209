"""Two hosts, as a launcher's agents see them. Each has one process of the run, in a folder of its
own (`FOLDER/host0`, `FOLDER/host1`), and what it says goes to `FOLDER/NAME-RANK.log`.

First they are given a run folder that each has for itself. Then they share one, and process 1 is
killed in its eighth step (one of each stage was tried before); then both are started again. The
exit codes go to `FOLDER/codes.json`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from hf_distill.commands.train import main as train
from hf_distill.run import processes
from hf_distill.training.trainer import DistillationTrainer

STEPS = 10


def kill_in_step(steps: int) -> None:
    """Let this process be killed when it begins its `steps`-th training step."""
    step, count = DistillationTrainer.training_step, 0

    def counted(self: Any, *arguments: Any, **keys: Any) -> Any:
        nonlocal count
        count += 1
        if count == steps:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *arguments, **keys)

    vars_of: Any = DistillationTrainer
    vars_of.training_step = counted


def two(folder: Path, name: str, port: int, line: list[str], dies: bool = False) -> list[int]:
    """Run `line` on both hosts. Returns the exit code of each."""
    ranks: dict[int, int] = {}
    for rank in range(2):
        if child := os.fork():
            ranks[child] = rank
            continue
        os.environ.update(
            RANK=str(rank), LOCAL_RANK="0", GROUP_RANK=str(rank), WORLD_SIZE="2",
            LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        )  # fmt: skip
        host = folder / f"host{rank}"
        host.mkdir(exist_ok=True)
        os.chdir(host)
        log = os.open(folder / f"{name}-{rank}.log", os.O_CREAT | os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        torch.set_num_threads(1)
        if dies and rank == 1:
            kill_in_step(STEPS)
        code = train(line)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    codes = [0, 0]
    for _ in range(2):
        child, status = os.wait()
        codes[ranks[child]] = os.waitstatus_to_exitcode(status)
    return codes


def main(folder: Path, port: int, line: list[str]) -> None:
    """Both cases, one after the other."""
    processes.GRACE_SECONDS, processes._SEE_SECONDS = 0.5, 1.0
    shared = [*line, "--run_dir", str(folder / "shared")]
    codes = {
        "apart": two(folder, "apart", port, [*line, "--run_dir", "run"]),
        "killed": two(folder, "killed", port, shared, dies=True),
        "again": two(folder, "again", port, shared),
    }
    (folder / "codes.json").write_text(json.dumps(codes))
