"""`hf-distill publish RUN`: the student and the scored pairs of a finished run, to the Hub."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from huggingface_hub import HfApi

from hf_distill.errors import InputError
from hf_distill.finished_run import open_finished_run
from hf_distill.release.model_card import (
    releases_of,
    write_model_card,
)
from hf_distill.release.publish import (
    PublishingError,
    Settings,
    dry_run,
    publish,
)

HELP = "Publish a run's student and scored pairs, load both back by commit in a fresh process, compare, and tag."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="Folder of a finished run.")
    parser.add_argument(
        "--model",
        metavar="OWNER/NAME",
        help="Repository of the student. Default: the recipe's hub_model_id.",
    )
    parser.add_argument(
        "--dataset",
        metavar="OWNER/NAME",
        help="Repository of the scored pairs. Default: the recipe's; if none, not sent.",
    )
    parser.add_argument(
        "--private",
        action="store_true",
        help="Only you, or your organisation's members, see them. Default: the recipe's hub_private_repo.",
    )
    parser.add_argument(
        "--gated",
        choices=["auto", "manual"],
        help="Who wants the files asks for them: granted at once, or by you.",
    )
    parser.add_argument(
        "--revision",
        metavar="TAG",
        help="Tag of this version. Default: the recipe's hub_revision, or the next of v1, v2.",
    )
    parser.add_argument(
        "--license",
        metavar="ID",
        help="Licence of the student. Default: the recipe's student_license.",
    )
    parser.add_argument(
        "--dataset_license", metavar="ID", help="Licence of the pairs. Default: the recipe's."
    )
    parser.add_argument(
        "--collection", metavar="TITLE", help="Put both into the collection of this title."
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="Show what would be sent, and send nothing."
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the student's card with the names it gets, and publish.

    Raises:
        InputError: The run is not finished, or the token may not write there.
    """
    given = {
        "--hub_model_id": arguments.model,
        "--hub_dataset_id": arguments.dataset,
        "--student_license": arguments.license,
        "--dataset_license": arguments.dataset_license,
    }
    line = [token for flag, value in given.items() if value for token in (flag, value)]
    finished = open_finished_run(arguments.run_dir, "--push_to_hub", "true", *line)
    recipe, folder = finished.recipe, finished.folder
    if not recipe.training.hub_model_id:
        raise InputError("name the student's repository: --model you/student")
    if recipe.run.hub_dataset_id and not (folder.dataset / "README.md").is_file():
        raise InputError(
            f"{folder.dataset} is not there; run train.py with the run's recipe again, or leave --dataset out"
        )
    private = arguments.private or recipe.training.hub_private_repo or None
    tag = arguments.revision or recipe.training.hub_revision
    settings = Settings(private, arguments.gated, tag, arguments.collection)
    write_model_card(
        finished.evaluation, finished.training, finished.audit, recipe, finished.data, folder
    )
    releases = releases_of(recipe, folder)
    act = dry_run if arguments.dry_run else publish
    try:
        for said in act(releases, settings, HfApi(token=recipe.training.hub_token)):
            print(said)
    except PublishingError as error:
        sys.exit(f"hf-distill: error: {error}")
