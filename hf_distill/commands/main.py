"""The command `hf-distill`. Each module here is one subcommand."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn, Protocol

from hf_distill.commands import (
    compare,
    dataset,
    demo,
    doctor,
    export,
    mine,
    page,
    publish,
    search,
    study,
    train,
    verify,
)
from hf_distill.commands.terminal import exit_code, set_up
from hf_distill.errors import InputError


class Command(Protocol):
    """A module of this package: `HELP` (one line), its options, and what it does with them."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> None: ...


COMMANDS: dict[str, Command] = {
    "doctor": doctor,
    "study": study,
    "compare": compare,
    "dataset": dataset,
    "mine": mine,
    "export": export,
    "verify": verify,
    "publish": publish,
    "search": search,
    "demo": demo,
    "page": page,
}
"""Name of each subcommand -> its module. `train` is not here: its options are those of a recipe."""


class _Parser(argparse.ArgumentParser):
    """argparse, but an error is one `InputError` instead of a usage text."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}\n  See: {self.prog} --help")


def _run(argv: Sequence[str]) -> None:
    if argv and argv[0] == "train":
        train.run(argv[1:], "hf-distill train")
        return
    parser = _Parser(
        prog="hf-distill", description="Train students, and work with finished runs and models."
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    subparsers.add_parser("train", help=train.HELP)
    for name, command in COMMANDS.items():
        command.add_arguments(
            subparsers.add_parser(name, help=command.HELP, description=command.HELP)
        )
    arguments = parser.parse_args(argv)
    COMMANDS[arguments.command].run(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """The program `hf-distill`: its exit code."""
    line = sys.argv[1:] if argv is None else argv
    set_up()
    return exit_code("hf-distill", lambda: _run(line))
