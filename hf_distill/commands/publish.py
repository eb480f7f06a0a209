"""`hf-distill publish RUN`: the student and the scored pairs of a finished run, to the Hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from huggingface_hub import HfApi

from hf_distill.errors import InputError
from hf_distill.finished_run import results_of
from hf_distill.release.hub import releases_of
from hf_distill.release.model_card import write_model_card
from hf_distill.release.publish import Settings, dry_run, publish
from hf_distill.run.lock import held

HELP = (
    "Publish a run's student and scored pairs, load both back by commit in a fresh process, "
    "compare, and tag."
)


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
        help="Repository of the scored pairs. Default: the recipe's hub_dataset_id; without one "
        "they are not published.",
    )
    parser.add_argument(
        "--private",
        action="store_true",
        help="Only you, or the members of your organisation, see them. Default: the recipe's "
        "hub_private_repo.",
    )
    parser.add_argument(
        "--gated",
        choices=["auto", "manual"],
        help="Users have to request access, which is granted at once, or by you.",
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
        "--dataset_license",
        metavar="ID",
        help="Licence of the pairs. Default: the recipe's dataset_license.",
    )
    parser.add_argument(
        "--collection", metavar="TITLE", help="Put both into the collection of this title."
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="Show what would be sent, and send nothing."
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the student's card with its names on the Hub, and publish. A dry run writes nothing.

    Raises:
        InputError: The run is not finished, a name is missing, or the token may not write there.
        PublishingError: The Hub refuses something, or does not return what was sent.
    """
    given = {
        "--hub_model_id": arguments.model,
        "--hub_dataset_id": arguments.dataset,
        "--student_license": arguments.license,
        "--dataset_license": arguments.dataset_license,
    }
    line = [token for flag, value in given.items() if value for token in (flag, value)]
    results = results_of(arguments.run_dir, "--push_to_hub", "true", *line)
    training, folder = results.recipe.training, results.folder
    if not training.hub_model_id:
        raise InputError(
            "the student's repository has no name; give one with --model, e.g. you/student"
        )
    if results.recipe.run.hub_dataset_id and not folder.dataset_record.is_file():
        raise InputError(
            f"{folder.dataset} does not exist; make it: hf-distill train {folder.recipe} --run_dir "
            f"{folder.path} --until release"
        )
    settings = Settings(
        private=arguments.private or training.hub_private_repo or None,
        gated=arguments.gated,
        tag=arguments.revision or training.hub_revision,
        collection=arguments.collection,
    )
    api = HfApi(token=training.hub_token)
    if arguments.dry_run:
        lines = dry_run(releases_of(results), settings, api)
    else:
        with held(folder):
            write_model_card(results)
            lines = publish(releases_of(results), settings, api)
    for line_of_text in lines:
        print(line_of_text)
