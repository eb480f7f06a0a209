"""Two processes that check each other. Each writes what it was told to `FOLDER/RANK.json`; then
process 0 is killed while process 1 waits for its result.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState

from hf_distill.errors import InputError
from hf_distill.run import processes
from hf_distill.run.stage import stage


@dataclass(frozen=True)
class Made:
    """The result of a stage."""

    key: str


def refusal(act: Callable[[], object]) -> str:
    """What an InputError says; empty if there is none."""
    try:
        act()
    except InputError as error:
        return str(error)
    return ""


def work(folder: Path, rank: int) -> None:
    """What process `rank` does."""
    said: dict[str, object] = {}
    processes.end_together()
    own = folder / "host" / str(rank)  # as if each host had a disk of its own
    said["same"] = refusal(lambda: processes.check_same({"bf16": True, "seed": 3}))
    said["precision"] = refusal(lambda: processes.check_same({"seed": 3, "bf16": rank == 0}))
    shared = folder / "shared" / "run"
    said["shared"] = refusal(lambda: processes.check_shared({"run_dir": shared}))
    processes._SEE_SECONDS = 0.5
    said["unshared"] = refusal(
        lambda: processes.check_shared({"run_dir": shared, "teacher_cache": own / "cache"})
    )
    said["left"] = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_dir())
    together = ["key", f"data of {rank}"]
    said["together"] = refusal(
        lambda: stage(folder / "t.json", Made, together, Made, together=True)
    )
    inputs = ["key", "data of 0"]
    said["makes"] = stage(folder / "a.json", Made, inputs, Made).key

    def slowly(key: str) -> Made:
        time.sleep(1)  # while it is made, process 1 already knows that it waits for another one
        return Made(key)

    others = ["key", f"data of {rank}"]
    said["waits"] = refusal(lambda: stage(folder / "b.json", Made, others, slowly))
    (folder / f"{rank}.json").write_text(json.dumps(said))
    if rank == 0:
        while not (folder / "1.json").exists():
            time.sleep(0.05)
        time.sleep(0.5)
        if not os.fork():  # a worker, which lives on for a while
            os.closerange(1, 3)  # the test waits until nobody writes there
            time.sleep(15)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    stage(folder / "never.json", Made, ["key"], Made)


def main(folder: Path, port: str) -> None:
    """Fork two processes, and write the exit code of each to `FOLDER/ended.json`."""
    processes.GRACE_SECONDS = 0.5
    children: dict[int, int] = {}
    for rank in range(2):
        if child := os.fork():
            children[child] = rank
            continue
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
            MASTER_ADDR="localhost", MASTER_PORT=port,
        )  # fmt: skip
        torch.set_num_threads(1)
        PartialState(cpu=True, backend="gloo")
        work(folder, rank)
        os._exit(3)
    codes = {}
    for _ in range(2):
        child, status = os.wait()
        codes[children[child]] = [os.waitstatus_to_exitcode(status), time.time()]
    (folder / "ended.json").write_text(json.dumps(codes))
