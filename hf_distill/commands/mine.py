"""`hf-distill mine RECIPE --format FORMAT`: lists of candidates with scores, to train elsewhere."""

from __future__ import annotations

import argparse

from accelerate import PartialState

from hf_distill.commands import dataset
from hf_distill.commands.recipe_line import add_recipe_line, split_line
from hf_distill.errors import InputError
from hf_distill.pipeline import Run
from hf_distill.recipe.read import read_recipe
from hf_distill.release.formats.export import EXPORT_FORMATS

HELP = (
    "Mine candidates for the training queries, let a ranker score them, and write the lists in the "
    "format of another tool. Nothing is trained."
)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=[*EXPORT_FORMATS], help=dataset.FORMATS)
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help="A new folder, or one of an earlier export, which is replaced. Default: "
        "RUN/export/FORMAT.",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE and its keys are those of `hf-distill train`; the options of the export may stand
    anywhere among them.
    """
    add_recipe_line(
        parser,
        _add_options,
        "--format FORMAT [--output FOLDER]",
        ", e.g. rerank --dataset_path DATA --ranker KIND:MODEL",
    )


def run(arguments: argparse.Namespace) -> None:
    """Mine, score, and export the training split.

    Raises:
        InputError: The recipe mines no candidates, or as `hf-distill train` and `hf-distill
            dataset`.
    """
    arguments, line = split_line(
        arguments,
        _add_options,
        "hf-distill mine",
        "hf-distill mine rerank --dataset_path DATA --format sentence-transformers",
    )
    if arguments.format is None:
        raise InputError(f"--format is missing: name one of {', '.join(EXPORT_FORMATS)}")
    recipe = read_recipe([*line, "--until", "select"], "hf-distill mine")
    if not recipe.lists.candidates:
        raise InputError(
            f"the recipe {recipe.name} mines no candidates; name miners, e.g. --candidates teacher "
            "bm25, or take the recipe rerank"
        )
    for said in Run.open(recipe).stages():
        PartialState().print(said, flush=True)
    if PartialState().is_main_process:
        dataset.export(recipe.run_dir, arguments.format, ["train"], arguments.output)
