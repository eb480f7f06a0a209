"""`hf-distill demo RUN`: teacher and student side by side, on this machine or as a Space."""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from pathlib import Path

from huggingface_hub import HfApi

from hf_distill.compute.device import use_all_cores
from hf_distill.errors import InputError
from hf_distill.finished_run import finished
from hf_distill.release.publish import Release, Settings, publish
from hf_distill.serving import demo_app
from hf_distill.serving.demo import local_demo, write_space

HELP = "A small Gradio app over a run's documents: teacher and student side by side, with timings."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="Folder of a finished run.")
    parser.add_argument(
        "--push",
        metavar="OWNER/NAME",
        help="Publish the app as this Space instead of serving it here.",
    )
    parser.add_argument(
        "--model",
        metavar="OWNER/NAME",
        help="With --push: the published student. Default: the recipe's hub_model_id.",
    )
    parser.add_argument(
        "--private",
        action="store_true",
        help="With --push: only you see the Space. Default: the recipe's hub_private_repo.",
    )
    parser.add_argument(
        "--trust_remote_code",
        action="store_true",
        help="Let the teacher run code from its repository. What the run's recipe says about that "
        "does not count here.",
    )


def run(arguments: argparse.Namespace) -> None:
    """Serve the app until it is stopped, or publish it.

    Raises:
        InputError: Gradio is missing, the run is not finished, or a Space cannot show its models.
        PublishingError: The Hub does not accept the Space.
    """
    unused = [key for key in ("private", "model") if getattr(arguments, key)]
    if unused and not arguments.push:
        raise InputError(f"--{unused[0]} is about a Space; name the Space with --push")
    if not arguments.push and importlib.util.find_spec("gradio") is None:
        raise InputError("gradio is not installed: pip install 'hf_distill[demo]'")
    trust = ("--trust_remote_code", "true") if arguments.trust_remote_code else ()
    results = finished(arguments.run_dir, *trust)
    use_all_cores(1)
    if not arguments.push:
        demo_app.build(*local_demo(results)).launch()
        return
    training = results.recipe.training
    student = arguments.model or training.hub_model_id
    if not student:
        raise InputError(
            "--push: a Space loads the published student; name it with --model, e.g. you/x"
        )
    settings = Settings(private=arguments.private or training.hub_private_repo or None)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_space(results, folder, student)
        releases = [Release(arguments.push, "space", folder)]
        for line in publish(releases, settings, HfApi(token=training.hub_token)):
            print(line)
