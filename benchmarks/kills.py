"""Runs that are killed at any moment end as if nothing had happened: `python benchmarks/kills.py`.

A tiny run, with mined lists, a ranker and a pool, is killed with SIGKILL at seeded moments over its
whole duration, started again until it ends, and compared with an uninterrupted one, artefact by
artefact (times aside). With `--processes 2` one of the two may be killed alone; with `--hosts` each
is on a host of its own, where no launcher ends it, and first both hosts are given a folder of their
own, which has to be refused (and counts as a run). With `--pages`, the search pages of finished
runs are written and killed meanwhile; with `--publish`, finished runs are published to a Hub on
this machine, and what the Hub then holds is compared, too. The last line is JSON: {"runs", "kills",
"same"}. Exit code 1 if a run ends otherwise.
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tiny_run import ROOT, artefacts, prepare, started

# isort: split
from hub_server import TOKEN, Hub, running_hub  # tests/ is on the path since tiny_run was imported

_MOST = 5
"""Kills of a run; then it may end."""

_HANGS = 600
"""Seconds after which a run that nobody kills is said to hang."""

REPOSITORIES = ("--model", "you/student", "--dataset", "you/pairs")


def _ended(process: int, seconds: float) -> int | None:
    """The exit code of a process that ends within `seconds`, else None."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


def _kill(process: int, moments: random.Random) -> None:
    """Kill a process and its group; or one of several that it launched, and it ends the others."""
    launched = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    if len(launched) > 1 and moments.random() < 0.5:
        os.kill(int(moments.choice(launched)), signal.SIGKILL)
    else:
        os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)


def killed_until_it_ends(
    start: Callable[[Path], int], log: Path, moments: random.Random, duration: float
) -> int:
    """How often what `start` starts (a process that leads a group) was killed before it ended.

    Raises:
        RuntimeError: It ends with an error.
    """
    kills = 0
    while True:
        process = start(log)
        code = _ended(process, moments.uniform(0, duration) if kills < _MOST else _HANGS)
        if code is None:
            _kill(process, moments)
            kills += 1
        if code is None and kills > _MOST:
            code = _HANGS
        if code == 0:
            return kills
        if code is not None:
            said = log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"after {kills} kills it ends with code {code}:\n{said}")


def _publishing(run: Path, hub: Hub) -> Callable[[Path], int]:
    """Publishes a run. In a new process: the Hub's address is read when its client is imported."""
    program = "import sys; from hf_distill.commands.main import main; sys.exit(main())"
    line = [sys.executable, "-c", program, "publish", str(run), *REPOSITORIES]
    environment = {
        **os.environ, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(run.parent / "home"),
    }  # fmt: skip

    def start(log: Path) -> int:
        with log.open("w") as out:
            return subprocess.Popen(
                line, stdout=out, stderr=out, env=environment, cwd=ROOT, start_new_session=True
            ).pid

    return start


def _paging(run: Path) -> Callable[[Path], int]:
    """Writes the search page of a run."""
    return lambda log: started(["page", str(run), str(run / "page"), "--cdn"], log, command=True)


def apart(recipe: Path, folder: Path, log: Path) -> list[str]:
    """What is wrong if the hosts of a run do not see each other's folder: they have to be told so,
    and nothing is left there.
    """
    hosts = _hosts_in(folder)
    process = started([str(recipe), "--run_dir", "own"], log, hosts=hosts)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    said = log.read_text(errors="replace")
    wrong = [] if code == 2 else [f"two folders: exit code {code}"]
    if said.count("name a folder that all hosts share") != 2 or "Traceback" in said:
        wrong.append(f"two folders: {said[-500:]!r}")
    return wrong + [str(path) for host in hosts for path in host.iterdir()]


def _hosts_in(folder: Path) -> list[Path]:
    """The working folder of each of two hosts."""
    hosts = [folder / f"host{rank}" for rank in range(2)]
    for host in hosts:
        host.mkdir(parents=True, exist_ok=True)
    return hosts


def _published(hub: Hub) -> dict[str, object]:
    """What a Hub holds: each file of each repository, and the tags that name its last state."""
    held: dict[str, object] = {}
    for (kind, name), repo in hub.repos.items():
        last, files = repo.commits[-1]
        held |= {f"{kind}/{name}/{file}": content for file, content in files.items()}
        held[f"{kind}/{name}: tags"] = sorted(tag for tag, at in repo.tags.items() if at == last)
    return held


@dataclass
class Campaign:
    """Counts what came of the runs, and prints it."""

    moments: random.Random
    runs: int = 0
    kills: int = 0
    same: int = 0

    def compare(
        self,
        name: str,
        start: Callable[[Path], int],
        log: Path,
        duration: float,
        made: Callable[[], dict[str, object]],
        expected: dict[str, object],
    ) -> None:
        """Kill until it ends, and compare what it `made` with what is expected."""
        try:
            self.kills += killed_until_it_ends(start, log, self.moments, duration)
            ours = made()
            names = sorted(ours.keys() | expected.keys())
            others = [name for name in names if ours.get(name) != expected.get(name)]
        except RuntimeError as error:
            others = [str(error)]
        self.count(name, others, "the same")

    def count(self, name: str, wrong: Sequence[str], right: str) -> None:
        """One more run, and what is wrong with it."""
        self.runs += 1
        self.same += not wrong
        print(f"{name}: {', '.join(wrong) or right}", flush=True)


def _timed(start: Callable[[Path], int], log: Path) -> float:
    """Seconds that it takes without a kill."""
    begin = time.perf_counter()
    killed_until_it_ends(start, log, random.Random(0), 1e9)
    return time.perf_counter() - begin


def main() -> int:
    """Run the campaign, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100, help="Default: 100.")
    parser.add_argument("--seed", type=int, default=0, help="Of the moments. Default: 0.")
    parser.add_argument("--processes", type=int, default=1, help="Of each run. Default: 1.")
    parser.add_argument(
        "--hosts", action="store_true", help="Two processes, each on a host of its own."
    )
    parser.add_argument(
        "--pages",
        type=int,
        default=0,
        help="The pages of so many finished runs are written afterwards, and killed meanwhile. "
        "Default: 0.",
    )
    parser.add_argument(
        "--publish", type=int, default=0,
        help="So many finished runs are published afterwards, and killed meanwhile. Default: 0.",
    )  # fmt: skip
    options = parser.parse_args()
    campaign = Campaign(random.Random(options.seed))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        recipe, whole, log = prepare(folder), folder / "whole", folder / "log"

        def training(run: Path) -> Callable[[Path], int]:
            line = [str(recipe), "--run_dir", str(run)]
            hosts = _hosts_in(folder / "hosts") if options.hosts else []
            return lambda log: started(line, log, processes=options.processes, hosts=hosts)

        duration, expected = _timed(training(whole), log), artefacts(whole)
        if options.hosts:
            campaign.count("two folders", apart(recipe, folder / "hosts", log), "refused")
        for number in range(options.runs):
            run = folder / f"run-{number}"
            made = partial(artefacts, run)
            campaign.compare(f"run {number}", training(run), log, duration, made, expected)
            shutil.rmtree(run, ignore_errors=True)
        if options.pages:
            shutil.copytree(whole, folder / "paged")
            duration, expected = _timed(_paging(folder / "paged"), log), artefacts(folder / "paged")
        for number in range(options.pages):
            run = folder / f"paged-{number}"
            shutil.copytree(whole, run)
            made = partial(artefacts, run)
            campaign.compare(f"page {number}", _paging(run), log, duration, made, expected)
            shutil.rmtree(run)
        if options.publish:
            with running_hub() as hub:
                shutil.copytree(whole, folder / "published")
                duration = _timed(_publishing(folder / "published", hub), log)
                expected = _published(hub) | artefacts(folder / "published")
        for number in range(options.publish):
            run = folder / f"published-{number}"
            shutil.copytree(whole, run)
            with running_hub() as hub:
                start = _publishing(run, hub)
                campaign.compare(
                    f"publishing {number}", start, log, duration,
                    lambda run=run, hub=hub: _published(hub) | artefacts(run), expected,
                )  # fmt: skip
            shutil.rmtree(run)
    figures = {"runs": campaign.runs, "kills": campaign.kills, "same": campaign.same}
    print(json.dumps(figures))
    return int(campaign.same != campaign.runs)


if __name__ == "__main__":
    sys.exit(main())
