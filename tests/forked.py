"""Processes that begin within milliseconds: what they import is there, and nothing was computed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from machine import process_server


def server() -> ForkServerContext:
    """The one of these tests. `tiny_run` is last: it takes what is imported out of the garbage
    collection.
    """
    return process_server("scale", "scoring_process", "training", "training_process", "tiny_run")


def start(
    log: Path, act: Callable[..., object], *arguments: object, **environment: object
) -> BaseProcess:
    """`act(*arguments)` in a process of its own; what it returns is the exit code. `act` is a
    function of a module. What it says goes to `log` and, from stderr, to `log`.err.
    """
    process = server().Process(target=_act, args=(log, environment, act, arguments))
    process.start()
    return process


def _act(
    log: Path,
    environment: dict[str, object],
    act: Callable[..., object],
    arguments: tuple[object, ...],
) -> None:
    os.environ.update({name: str(value) for name, value in environment.items()})
    for number, path in ((1, log), (2, error_log(log))):
        with path.open("wb") as out:
            os.dup2(out.fileno(), number)
    sys.exit(act(*arguments))  # type: ignore[arg-type]  # a code or None


def error_log(log: Path) -> Path:
    """Where stderr goes."""
    return log.with_name(f"{log.name}.err")


def ended(process: BaseProcess, log: Path) -> str:
    """What a process said that ended well."""
    process.join(600)
    assert process.exitcode == 0, error_log(log).read_text(errors="replace")[-3000:]
    return log.read_text(errors="replace")


def script(name: str, *line: object) -> object:
    """The script of benchmarks/, to be run with `start`."""
    sys.argv = [f"{name}.py", *map(str, line)]
    return import_module(name).main()
