"""`hf-distill study RECIPE --rules "..." --rules "..."`: does selecting pairs help on this data?"""

from __future__ import annotations

import argparse

from hf_distill.commands.recipe_line import add_recipe_line, split_line
from hf_distill.recipe.read import read_recipe
from hf_distill.study.noise import FARTHEST, NEAREST
from hf_distill.study.study import run_study

HELP = (
    "Train the same student on what each list of rules keeps, on random pairs, on the worst pairs "
    "and on all, and compare them."
)

_EXAMPLES, _SEEDS = 10_240, 3


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rules", action="append", metavar='"RULE RULE ..."',
        help="A selection to try, as in a recipe, e.g. --rules \"echo duplicate percentile=80\". "
        "Once for each selection.",
    )  # fmt: skip
    parser.add_argument(
        "--examples", type=int, metavar="N",
        help="Training examples of each student, whatever the size of its selection: pairs of a "
        f"smaller one are repeated. Default: {_EXAMPLES:,}.",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=int, metavar="N",
        help=f"Students for each selection, from the recipe's seed on. Default: {_SEEDS}.",
    )  # fmt: skip
    parser.add_argument(
        "--noise", action="append", metavar="KIND=SHARE",
        help="Give a share of the training pairs another document, and see which selections cope: "
        f"random=0.5 (that of another query) or near=0.5 (one of the teacher's ranks {NEAREST} to "
        f"{FARTHEST}). Once for each study; a share of 0 is the study without noise. Held-out "
        "pairs stay clean. The clean pairs alone are one more selection, the oracle.",
    )  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE and its keys are those of `hf-distill train`; the study's own options may stand
    anywhere among them.
    """
    add_recipe_line(
        parser,
        _add_options,
        '--rules "RULE RULE ..." [--rules ...] [--examples N] [--seeds N] [--noise KIND=SHARE]',
    )


def run(arguments: argparse.Namespace) -> None:
    """Run or continue the study and print its table."""
    arguments, line = split_line(
        arguments,
        _add_options,
        "hf-distill study",
        "hf-distill study quickstart --rules percentile=80",
    )
    examples = _EXAMPLES if arguments.examples is None else arguments.examples
    seeds = _SEEDS if arguments.seeds is None else arguments.seeds
    run_study(
        read_recipe(line, "hf-distill study"),
        arguments.rules or [],
        examples,
        seeds,
        arguments.noise or [],
    )
