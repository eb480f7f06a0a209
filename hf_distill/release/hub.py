"""Which parts of a run are published under which names."""

from __future__ import annotations

import json

from huggingface_hub import DatasetCard, HfApi

from hf_distill.errors import InputError, printable
from hf_distill.recipe.arguments import Recipe
from hf_distill.release.cards import PLACEHOLDER, hub_link, licence_metadata
from hf_distill.release.dataset_repo import DatasetRecord
from hf_distill.release.model2vec import model2vec_files
from hf_distill.release.model_card import model_cards
from hf_distill.release.onnx import onnx_files
from hf_distill.release.openvino import openvino_files
from hf_distill.release.publish import Release, Settings, check_access, publish
from hf_distill.report.results import RunResults, TextsResults
from hf_distill.run.stage import files_of, read_result


def linked_dataset_card(card: str, repo: str, model: str, license_id: str | None) -> str:
    """A run's dataset card with its names on the Hub: its own repository, and that of the student
    trained on it.
    """
    card = card.replace(json.dumps(PLACEHOLDER), json.dumps(repo))
    linked = DatasetCard(card.replace(f"'{PLACEHOLDER}/", f"'hf://datasets/{repo}/"))
    for key, value in licence_metadata(license_id).items():
        linked.data[key] = value
    linked.text = (
        f"{linked.text.rstrip()}\n\n## Student\n\n{hub_link(model)} was trained on these pairs.\n"
    )
    return printable(str(linked))


def releases_of(results: RunResults | TextsResults) -> list[Release]:
    """What a run publishes: the data set, if it has a name, and then the student, whose card links
    to it. Only files that the run wrote are part of it, and the student's card is made for its name
    on the Hub. Nothing is written.

    Raises:
        InputError: The data set is of another selection or of other scores, or one of its files is
            not what was written.
    """
    recipe, folder = results.recipe, results.folder
    model, dataset = str(recipe.training.hub_model_id), recipe.run.hub_dataset_id
    own = files_of(folder.training, folder.student)
    own |= onnx_files(results) | openvino_files(results) | model2vec_files(results)
    student = Release(model, "model", folder.student, model_cards(results), own)
    if dataset is None or not isinstance(results, RunResults):
        return [student]
    record = read_result(folder.dataset_record, DatasetRecord)
    if record != DatasetRecord(results.soft_labels.key, results.audit.key):
        raise InputError(
            f"{folder.dataset} holds the pairs of an earlier selection, or other scores; run "
            f"{folder.recipe} again with --until release, then publish"
        )
    card = (folder.dataset / "README.md").read_text(encoding="utf-8")
    linked = linked_dataset_card(card, dataset, model, recipe.data.dataset_license)
    own = files_of(folder.dataset_record, folder.dataset)
    return [
        Release(dataset, "dataset", folder.dataset, {"README.md": linked.encode()}, own),
        student,
    ]


def check_publishing(recipe: Recipe) -> None:
    """Check before any work that `push_to_hub` names a repository and that the token may write
    there.

    Raises:
        InputError: No `hub_model_id`, no token, or one that cannot write. No message contains the
            token.
    """
    if not recipe.training.push_to_hub:
        return
    model, dataset = recipe.training.hub_model_id, recipe.run.hub_dataset_id
    if not model:
        raise InputError(
            "--push_to_hub true: the student's repository has no name; give one with "
            "--hub_model_id, e.g. you/student"
        )
    check_access(HfApi(token=recipe.training.hub_token), [model, *([dataset] if dataset else [])])


def publish_run(results: RunResults | TextsResults) -> list[str]:
    """Publish a run's student, and its data set if that has a name (see
    `hf_distill.release.publish.publish`).

    Returns:
        What was done, a line each. Empty without `push_to_hub`.
    """
    training = results.recipe.training
    if not training.push_to_hub:
        return []
    settings = Settings(private=training.hub_private_repo, tag=training.hub_revision)
    return publish(releases_of(results), settings, HfApi(token=training.hub_token))
