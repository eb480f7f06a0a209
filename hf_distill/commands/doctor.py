"""`hf-distill doctor DATA`: which pairs look wrong, by a teacher alone."""

from __future__ import annotations

import argparse
from pathlib import Path

from accelerate import PartialState

from hf_distill.commands.recipe_line import add_recipe_line, split_line
from hf_distill.errors import InputError
from hf_distill.pipeline import Run
from hf_distill.recipe.kinds import SOURCES
from hf_distill.recipe.read import read_recipe
from hf_distill.run.folder import save_recipe
from hf_distill.run.lock import held
from hf_distill.run.stage import write_json
from hf_distill.study.diagnosis import MOST, Diagnosis, check_pairs, diagnose, limited
from hf_distill.study.diagnosis_text import examples, summary

HELP = (
    "Say in minutes how many pairs look mismatched, duplicated, echoed, too short, cut, empty or "
    "leaking, with examples of each and the selection that takes care of them. A teacher reads the "
    "pairs; nothing is trained."
)

_RECIPE = "recommended"


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", metavar="FILE", help="Write the same as JSON, with the texts of the examples."
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """DATA and the keys of `hf-distill train`; the command's own option may stand anywhere among
    them.
    """
    more = (
        f" {_RECIPE}, whose data are DATA: a file or a folder as for --dataset_path, in any format "
        "that hf-distill train reads, or a source as for --dataset (hub, with --dataset_name, or "
        "pydocs). Of the keys these matter here: --teacher MODEL, --query_column and "
        f"--document_column, --format, --seed, --max_pairs N (default: {MOST:,}; none: all) and "
        f"--run_dir (default: runs/{_RECIPE}). The run's folder keeps what the teacher computes, "
        "so a training there does not compute it again. E.g.: hf-distill doctor pairs.jsonl"
    )
    add_recipe_line(parser, _add_options, "[--json FILE]", more, "DATA")


def run(arguments: argparse.Namespace) -> None:
    """Look at the pairs, and print what there is to say about them.

    Raises:
        InputError: Data without pairs, no folder for the JSON, or as `hf-distill train`.
    """
    arguments, line = split_line(
        arguments, _add_options, "hf-distill doctor", "hf-distill doctor pairs.jsonl", "data"
    )
    to = None if arguments.json is None else Path(arguments.json)
    if to is not None and (to.is_dir() or not to.parent.is_dir()):
        raise InputError(f"--json {to}: name a file in a folder that exists")
    data, *keys = line
    key = "--dataset" if data in SOURCES else "--dataset_path"
    line = [_RECIPE, key, data, *keys, "--until", "read"]
    opened = Run.open(limited(read_recipe(line, "hf-distill doctor")))
    _ = opened.teacher  # what cannot be loaded is said before the data are read
    check_pairs(opened)
    with held(opened.folder):
        diagnosis = _diagnosis(opened)
    if PartialState().is_main_process:
        if to is not None:
            write_json(to, diagnosis)
        for said in (*examples(diagnosis), "", *summary(diagnosis, str(opened.folder.path))):
            print(said)


def _diagnosis(run: Run) -> Diagnosis:
    """What is to be said, with a line for each stage before it."""
    say = PartialState().print
    say(run.collection.summary(), flush=True)
    if PartialState().is_main_process and not run.folder.recipe.exists():
        save_recipe(run.recipe, run.folder)
    say(run.scores.summary(), flush=True)
    return diagnose(run)
