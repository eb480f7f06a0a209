"""Runs that are killed at any moment end as if nothing had happened: `python benchmarks/kills.py`.

A tiny run is killed with SIGKILL at seeded moments over its whole duration, started again until it
ends, and compared with an uninterrupted one, artefact by artefact (times aside). The last line is
JSON: {"runs", "kills", "same"}. Exit code 1 if a run ends otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tiny_run import ROOT, artefacts, prepare, started


def _ended(process: int, seconds: float) -> int | None:
    """The exit code of a process that ends within `seconds`, else None."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


def _start(recipe: Path, run: Path, processes: int) -> int:
    line = [str(recipe), "--run_dir", str(run)]
    log = run.with_suffix(".log")
    if processes == 1:
        return started(line, log)
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port=0"]
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, *launch, str(ROOT / "train.py"), *line],
            stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    return process.pid


def _kill(process: int, run: Path) -> None:
    """Kill the group of a process, and those workers of it that lead a group of their own."""
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    marker = os.fsencode(run)
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marker in (folder / "cmdline").read_bytes():
                os.kill(int(folder.name), signal.SIGKILL)
        except (OSError, ValueError):
            continue  # it has ended


def killed_until_it_ends(
    recipe: Path, run: Path, processes: int, moments: random.Random, duration: float
) -> int:
    """How often the run was killed before it ended.

    Raises:
        RuntimeError: It ends with an error.
    """
    kills = 0
    while True:
        process = _start(recipe, run, processes)
        code = _ended(process, moments.uniform(0, duration) if kills < 5 else 600)
        if code is None:
            _kill(process, run)
            kills += 1
        elif code == 0:
            return kills
        else:
            said = run.with_suffix(".log").read_text()[-2000:]
            raise RuntimeError(f"after {kills} kills it ends with code {code}:\n{said}")


def main() -> int:
    """Run the campaign, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100, help="Default: 100.")
    parser.add_argument("--seed", type=int, default=0, help="Of the moments. Default: 0.")
    parser.add_argument("--processes", type=int, default=1, help="Of each run. Default: 1.")
    options = parser.parse_args()
    moments, kills, same = random.Random(options.seed), 0, 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        recipe, whole = prepare(folder), folder / "whole"
        start = time.perf_counter()
        killed_until_it_ends(recipe, whole, options.processes, random.Random(0), 1e9)
        duration, expected = time.perf_counter() - start, artefacts(whole)
        for number in range(options.runs):
            run = folder / f"run-{number}"
            try:
                kills += killed_until_it_ends(recipe, run, options.processes, moments, duration)
                ours = artefacts(run)
                names = sorted(ours.keys() | expected.keys())
                others = [name for name in names if ours.get(name) != expected.get(name)]
            except RuntimeError as error:
                others = [str(error)]
            same += not others
            print(f"run {number}: {', '.join(others) or 'the same'}", flush=True)
            shutil.rmtree(run, ignore_errors=True)
    print(json.dumps({"runs": options.runs, "kills": kills, "same": same}))
    return int(same != options.runs)


if __name__ == "__main__":
    sys.exit(main())
