"""The results of a finished run, read from its folder: what the commands work on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_distill.data.collection import CollectionRecord
from hf_distill.data.load import open_collection
from hf_distill.errors import InputError
from hf_distill.evaluation.results import Evaluation
from hf_distill.evaluation.texts_results import TextsEvaluation
from hf_distill.recipe.read import read_recipe
from hf_distill.report.results import RunResults, TextsResults
from hf_distill.run.folder import RunFolder, check_made_with, read_saved_recipe
from hf_distill.run.stage import read_result
from hf_distill.scoring.lists import open_lists
from hf_distill.scoring.scores import SoftLabels
from hf_distill.selection.audit import Audit
from hf_distill.student.lengths import TextLengths
from hf_distill.training.train import TrainingRecord


def finished(path: Path, *line: str) -> RunResults:
    """The results of the finished run on pairs in the folder `path`; nothing is made.

    Args:
        path: The run's folder.
        *line: Further keys (`--key`, `value`, ...) that override its recipe's.

    Raises:
        InputError: As `results_of`, or it is a run on texts alone.
    """
    results = results_of(path, *line)
    if isinstance(results, RunResults):
        return results
    raise InputError(
        f"the run in {path} is on texts alone: it has no queries and no judged documents, which "
        f"this command needs; load its student from {results.folder.student}, or measure it with "
        "hf-distill compare on a judged set"
    )


def results_of(path: Path, *line: str) -> RunResults | TextsResults:
    """The results of the finished run in the folder `path`; nothing is made.

    Args:
        path: The run's folder.
        *line: Further keys (`--key`, `value`, ...) that override its recipe's.

    Raises:
        InputError: Not a run, not finished, or its recipe and its results come from different
            calls: a later call with other keys was stopped before its end.
    """
    folder = RunFolder(path)
    read_saved_recipe(folder)
    manifest = folder.pairs / "manifest.json"
    alone = manifest.is_file() and read_result(manifest, CollectionRecord).texts is not None
    needed = [
        manifest, folder.soft_labels / "manifest.json", *([] if alone else [folder.selection]),
        folder.student / "modules.json", folder.training, folder.evaluation, folder.text_lengths,
        folder.made_with,
    ]  # fmt: skip
    missing = [str(file.relative_to(path)) for file in needed if not file.is_file()]
    again = f"run it again: hf-distill train {folder.recipe} --run_dir {path} --until release"
    if missing:
        raise InputError(
            f"the run in {path} is not finished: it has no {', '.join(missing)}; {again}"
        )
    check_made_with(folder)
    # This machine may not support the precision that the run was trained in.
    own = ("--run_dir", str(path), "--bf16", "false", "--fp16", "false")
    recipe = read_recipe([str(folder.recipe), *own, *line], runs=False)
    common: dict[str, Any] = {
        "recipe": recipe,
        "folder": folder,
        "collection": open_collection(folder, recipe.data.dataset_license),
        "soft_labels": read_result(folder.soft_labels / "manifest.json", SoftLabels),
        "training": read_result(folder.training, TrainingRecord),
        "lengths": read_result(folder.text_lengths, TextLengths),
    }
    results: RunResults | TextsResults
    if alone:
        measured = read_result(folder.evaluation, TextsEvaluation)
        results = TextsResults(**common, evaluation=measured)
        trained_on, chosen = "texts", results.soft_labels.key
    else:
        mined = recipe.lists.candidates
        lists = open_lists(folder.candidates, common["collection"]) if mined else None
        results = RunResults(
            **common,
            audit=read_result(folder.selection, Audit),
            evaluation=read_result(folder.evaluation, Evaluation),
            lists=None if lists is None else lists.record,
        )
        trained_on, chosen = "pairs that this selection keeps", results.audit.key
    evaluation, training = results.evaluation, results.training
    if training.selection != chosen:
        other = folder.soft_labels if alone else folder.selection
        raise InputError(
            f"{folder.training} and {other} come from different calls: the student was not trained "
            f"on the {trained_on}; {again}"
        )
    if (evaluation.training, evaluation.collection) != (training.key, results.collection.key):
        raise InputError(
            f"{folder.evaluation} measured another student, or other pairs, than this run holds; "
            f"{again}"
        )
    return results
