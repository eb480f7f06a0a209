"""`hf-distill page RUN OUT`: a search page that needs no server."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from huggingface_hub import HfApi

from hf_distill.compute.device import use_all_cores
from hf_distill.errors import InputError
from hf_distill.finished_run import finished
from hf_distill.release.publish import Settings, check_access, publish
from hf_distill.run.lock import held
from hf_distill.serving.javascript import CDN
from hf_distill.serving.page import check_output, release_of, write_page

HELP = (
    "Write a search page over a run's documents that needs no server: a folder of static files, in "
    "which the browser itself runs the student."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="Folder of a finished run.")
    parser.add_argument(
        "out",
        metavar="OUT",
        type=Path,
        help="The page's folder: a new one, or that of an earlier page, which is replaced.",
    )
    parser.add_argument(
        "--cdn",
        action="store_true",
        help=f"Let browsers load onnxruntime and the tokenizer from {CDN}, with integrity hashes. "
        "Default: they are downloaded from npm once, and are part of the page.",
    )
    parser.add_argument(
        "--push", metavar="OWNER/NAME", help="Also publish the page as this static Space."
    )
    parser.add_argument(
        "--private",
        action="store_true",
        help="With --push: only you see the Space. Default: the recipe's hub_private_repo.",
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the page, say how large it is, and publish it if that is wanted.

    Raises:
        InputError: The run is not finished, the token cannot write to the Space, or as
            `write_page`.
        PublishingError: The Hub does not accept the Space, or does not return what was sent.
    """
    if arguments.private and not arguments.push:
        raise InputError("--private says who sees a Space; name the Space with --push")
    out = Path(os.path.realpath(arguments.out))  # `resolve` raises where links lead in a circle
    check_output(out)
    results = finished(arguments.run_dir)
    training = results.recipe.training
    api = HfApi(token=training.hub_token)
    if arguments.push:
        check_access(api, [arguments.push])
    use_all_cores(1)
    with held(results.folder):
        record = write_page(results, out, CDN if arguments.cdn else None)
    print(f"{arguments.out}: {record.documents:,} documents, {record.bytes / 1e6:.1f} MB")
    if not arguments.push:
        print(f"To see it: python -m http.server -d {arguments.out}")
        return
    settings = Settings(private=arguments.private or training.hub_private_repo or None)
    release = release_of(results, record, out, arguments.push)
    for line in publish([release], settings, api):
        print(line)
