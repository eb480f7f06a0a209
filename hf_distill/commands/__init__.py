"""The command `hf-distill`: what one does with a finished run or a model. Each module here is one
subcommand.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn, Protocol

from hf_distill.commands import (
    compare,
    demo,
    export,
    publish,
    search,
    study,
)
from hf_distill.errors import InputError


class Command(Protocol):
    """A module of this package: `HELP` (one line), its arguments, and what it does with them."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace) -> None: ...


COMMANDS: dict[str, Command] = {
    "study": study,
    "compare": compare,
    "export": export,
    "publish": publish,
    "search": search,
    "demo": demo,
}
"""Name of each subcommand -> its module."""


class _Parser(argparse.ArgumentParser):
    """argparse, but an error is one `InputError` instead of a usage text."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}\n  See: {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; input that cannot be used is one message and exit code 2."""
    parser = _Parser(
        prog="hf-distill",
        description="Work with finished runs and models; a run is made by: accelerate launch train.py",
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.add_arguments(
            subparsers.add_parser(name, help=command.HELP, description=command.HELP)
        )
    try:
        arguments = parser.parse_args(argv)
        COMMANDS[arguments.command].run(arguments)
    except InputError as error:
        print(f"hf-distill: error: {error}", file=sys.stderr)
        return 2
    return 0
