"""The index of `hf-distill search` where no student answers without torch, which this loads."""

from __future__ import annotations

from pathlib import Path

import torch

from hf_distill.commands.libraries import set_up
from hf_distill.compute.device import use_all_cores
from hf_distill.compute.models import digest_of_weights
from hf_distill.finished_run import finished
from hf_distill.recipe.arguments import CONVERSATION
from hf_distill.run.folder import RunFolder, recipe_says
from hf_distill.serving.index import (
    Index,
    corpus_of_python,
    index_of,
    index_of_run,
    load_student,
    user_cache,
)


def open_with_torch(run_or_model: str, python: bool) -> tuple[Index, bool]:
    """The index, from an earlier call or made now, and whether the student reads the turns before a
    question.

    Args:
        run_or_model: A run, or a model.
        python: Search the documentation of the installed packages, also if it is a run.

    Raises:
        InputError: The run is not finished, or there is no such model.
    """
    set_up()
    use_all_cores(1)
    folder = RunFolder(Path(run_or_model))
    if not python and folder.recipe.is_file() and (folder.student / "modules.json").is_file():
        results = finished(folder.path)  # first: it names a file that is damaged
        index = index_of_run(results, load_student(run_or_model))
    else:
        model = load_student(run_or_model)
        path = user_cache() / digest_of_weights(model)[:16]
        index = index_of(model, corpus_of_python(), path)
    # One question is so short that several threads would only wait for each other.
    torch.set_num_threads(1)
    return index, recipe_says(folder, "student_query") == CONVERSATION
