"""Scoring runs that are killed, or that share a cache with another, end with the bytes of one that
was left alone.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import forked
import pytest
from conftest import sentences
from scoring_process import score, write_collection

SECONDS_PER_SHARD = 0.02


@pytest.fixture(scope="module")
def context() -> ForkServerContext:
    """Starts processes that have everything imported already."""
    return forked.server()


def start(
    context: ForkServerContext, run: Path, pairs: Path, cache: Path | None = None
) -> BaseProcess:
    process = context.Process(target=score, args=(run, pairs, cache, SECONDS_PER_SHARD))
    process.start()
    return process


def parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("[!.]*.arrow"))}


def artefacts(run: Path) -> dict[str, object]:
    """Everything that a finished run leaves, less the seconds it took and the seal over them."""
    manifest = json.loads((run / "soft_labels" / "manifest.json").read_text())
    timed = ("seconds", "sealed")
    return {
        "labels": (run / "teacher_soft_labels.json").read_bytes(),
        "texts": parts(run / "soft_labels" / "texts"),
        "scores": (run / "soft_labels" / "scores.npy").read_bytes(),
        "manifest": {key: value for key, value in manifest.items() if key not in timed},
    }


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection of 200 pairs of 400 texts."""
    path = tmp_path_factory.mktemp("data") / "pairs"
    splits = ["train"] * 160 + ["test"] * 40
    write_collection(path, list(zip(sentences(200), sentences(200, 1000), splits, strict=True)))
    return path


@pytest.fixture(scope="module")
def whole(
    context: ForkServerContext,
    tmp_path_factory: pytest.TempPathFactory,
    pairs: Path,
) -> tuple[dict[str, object], float]:
    run = tmp_path_factory.mktemp("runs") / "whole"
    start(context, run, pairs).join()  # the first one waits for the imports
    shutil.rmtree(run)
    began = time.perf_counter()
    process = start(context, run, pairs)
    process.join()
    assert process.exitcode == 0
    return artefacts(run), time.perf_counter() - began


def test_twenty_kills_end_with_identical_bytes(
    context: ForkServerContext,
    whole: tuple[dict[str, object], float],
    tmp_path: Path,
    pairs: Path,
) -> None:
    expected, seconds = whole
    moments = random.Random(7)
    killed = 0
    while killed < 20:
        run = tmp_path / f"run{killed}"
        done: set[str] = set()
        for _ in range(4):
            process = start(context, run, pairs)
            process.join(moments.uniform(0.05, 0.9) * seconds)
            process.kill()
            process.join()
            killed += process.exitcode == -9
            now = set(parts(run / "soft_labels" / "texts"))
            assert done <= now, "a part that was whole is kept"
            assert now <= set(expected["texts"]), "a part that has its name is whole"
            done = now
        last = start(context, run, pairs)
        last.join()
        assert last.exitcode == 0
        assert artefacts(run) == expected


def test_two_runs_on_one_cache_share_the_work(
    context: ForkServerContext,
    whole: tuple[dict[str, object], float],
    tmp_path: Path,
    pairs: Path,
) -> None:
    cache = tmp_path / "cache"
    processes = [start(context, tmp_path / name, pairs, cache) for name in ("one", "two")]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert parts(cache) == whole[0]["texts"]
    assert not list(cache.glob(".*")), "no lock and no temporary file is left"
    for name in ("one", "two"):
        assert artefacts(tmp_path / name)["labels"] == whole[0]["labels"]


def test_a_run_takes_up_what_a_killed_one_was_at(
    context: ForkServerContext,
    whole: tuple[dict[str, object], float],
    tmp_path: Path,
    pairs: Path,
) -> None:
    cache = tmp_path / "cache"
    first, second = (start(context, tmp_path / name, pairs, cache) for name in ("one", "two"))
    first.join(whole[1] / 2)
    first.kill()
    second.join(20 * whole[1] + 20)
    assert second.exitcode == 0, "it does not wait for the lock of a dead process"
    assert parts(cache) == whole[0]["texts"]
