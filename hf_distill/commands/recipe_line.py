"""Commands whose line is a recipe with its keys, and options of their own anywhere among them."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from hf_distill.errors import InputError

AddOptions = Callable[[argparse.ArgumentParser], None]


def add_recipe_line(
    parser: argparse.ArgumentParser,
    add_options: AddOptions,
    own: str,
    more: str = "",
    first: str = "RECIPE",
) -> None:
    """Give `parser` the options that `add_options` adds, and RECIPE [--key value ...].

    Args:
        parser: Of the command.
        add_options: Adds the command's own options.
        own: These options, for the usage.
        more: What its help says of the recipe.
        first: What stands in the place of the recipe.
    """
    parser.allow_abbrev = False  # --seed is the recipe's
    parser.usage = f"%(prog)s {first} [--key value ...] {own}"
    add_options(parser)
    parser.add_argument(
        "line",
        nargs=argparse.REMAINDER,
        metavar=f"{first} [--key value ...]",
        help=f"As for hf-distill train{more}.",
    )


def split_line(
    arguments: argparse.Namespace,
    add_options: AddOptions,
    program: str,
    example: str,
    first: str = "recipe",
) -> tuple[argparse.Namespace, list[str]]:
    """The command's own options, and the rest of its line: the recipe and its keys.

    Raises:
        InputError: An option without its value, or no recipe (or what stands `first` in its
            place); `example` is a line with one.
    """
    options = argparse.ArgumentParser(
        prog=program, allow_abbrev=False, add_help=False, exit_on_error=False
    )
    add_options(options)
    try:
        arguments, line = options.parse_known_args(arguments.line, arguments)
    except argparse.ArgumentError as error:
        raise InputError(f"{error}\n  See: {program} --help") from error
    if not line or line[0].startswith("-"):
        raise InputError(f"name the {first} first, e.g.: {example}")
    return arguments, line
