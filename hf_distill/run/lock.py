"""One call at a time in a run's folder."""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock
from accelerate import PartialState

from hf_distill.errors import InputError
from hf_distill.run.folder import RunFolder, remove_leftovers
from hf_distill.run.stage import read_json, write_json


@dataclass(frozen=True)
class Holder:
    """`cache/lock.json`: the process that works in a run's folder, and since when."""

    host: str
    pid: int
    since: str


def _holder(about: Path) -> str:
    """Who holds the folder. The file comes and goes with the other call."""
    try:
        by = read_json(about, Holder)
    except (OSError, InputError):
        return "another call"
    return f"process {by.pid} on {by.host} since {by.since}"


@contextlib.contextmanager
def held(folder: RunFolder) -> Iterator[None]:
    """Hold the folder while a call works in it. The main process holds it for all of a call.

    The operating system gives the lock back when its process ends, however it ends. So a lock that
    a killed call left behind does not block the next one.

    Raises:
        InputError: Another call works in the folder: which one.
    """
    if not PartialState().is_main_process:
        yield
        return
    existed = folder.path.exists()
    folder.cache.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder.cache / "lock", blocking=False)
    about = folder.cache / "lock.json"
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise InputError(
            f"--run_dir {folder.path} is in use by {_holder(about)}; wait until it ends, or name "
            "another --run_dir"
        ) from error
    try:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        write_json(about, Holder(socket.gethostname(), os.getpid(), now))
        remove_leftovers(folder)
        yield
    finally:
        about.unlink(missing_ok=True)
        lock.release()
        if not existed and {p.name for p in folder.path.glob("**/*")} <= {"cache", "lock"}:
            shutil.rmtree(folder.path, ignore_errors=True)  # the call was refused
