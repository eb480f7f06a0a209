"""The command `hf-distill`. Each module here is one subcommand."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn, Protocol, cast

from hf_distill.commands.terminal import exit_code, set_up_log
from hf_distill.errors import InputError


class Command(Protocol):
    """A module of this package: `HELP` (one line), its options, and what it does with them."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> None: ...


COMMANDS = (
    "doctor", "study", "compare", "dataset", "mine", "export", "verify", "publish", "search",
    "demo", "page",
)  # fmt: skip
"""Each is a module of this package, imported when it is asked for: most of them load torch, which
takes seconds. `train` is not here: its options are those of a recipe.
"""


def _command(name: str) -> Command:
    return cast(Command, import_module(f"hf_distill.commands.{name}"))


class _Parser(argparse.ArgumentParser):
    """argparse, but an error is one `InputError` instead of a usage text."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}\n  See: {self.prog} --help")


def _run(argv: Sequence[str]) -> None:
    if argv and argv[0] == "train":
        import_module("hf_distill.commands.train").run(argv[1:], "hf-distill train")
        return
    parser = _Parser(
        prog="hf-distill", description="Train students, and work with finished runs and models."
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    asked = [name for name in COMMANDS if argv and argv[0] == name]
    if not asked:  # the list of all
        subparsers.add_parser("train", help=import_module("hf_distill.commands.train").HELP)
    for name in asked or COMMANDS:
        command = _command(name)
        command.add_arguments(
            subparsers.add_parser(name, help=command.HELP, description=command.HELP)
        )
    arguments = parser.parse_args(argv)
    _command(arguments.command).run(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """The program `hf-distill`: its exit code."""
    line = sys.argv[1:] if argv is None else argv
    if line and line[0] == "search":
        set_up_log()  # it sets up the rest only if it needs it
    else:
        import_module("hf_distill.commands.libraries").set_up()
    return exit_code("hf-distill", lambda: _run(line))
