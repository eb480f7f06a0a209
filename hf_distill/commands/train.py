"""`hf-distill train [RECIPE] [--key value ...]`: from pairs to a released student."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from accelerate import PartialState

from hf_distill.commands.libraries import set_up
from hf_distill.commands.terminal import exit_code
from hf_distill.pipeline import Run
from hf_distill.recipe.read import read_recipe

HELP = "Run a recipe, from pairs to a released student; --help lists its keys."


def run(argv: Sequence[str], program: str) -> None:
    """Read the recipe, open its run, and print a summary of each stage.

    Raises:
        InputError: Something in the recipe or the data cannot be used.
        PublishingError: The Hub did not accept the release.
    """
    for said in Run.open(read_recipe(argv, program)).stages():
        PartialState().print(said, flush=True)


def main(argv: Sequence[str] | None = None, program: str = "train.py") -> int:
    """The program `train.py`: its exit code."""
    line = sys.argv[1:] if argv is None else argv
    set_up()
    return exit_code(program, lambda: run(line, program))
