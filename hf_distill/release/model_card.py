"""The model card, and what of a run is published under which name."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import (
    DatasetCard,
    EvalResult,
    EvalResultEntry,
    HfApi,
    ModelCardData,
    eval_result_entries_to_yaml,
)

from hf_distill.data.collection import PairData
from hf_distill.errors import InputError
from hf_distill.finished_run import digest_of_model
from hf_distill.recipe.arguments import (
    ENVIRONMENT_KEY,
    Recipe,
)
from hf_distill.release.cards import (
    front_matter,
    hub_id,
    public_name,
    public_teacher,
    render,
)
from hf_distill.release.onnx import FILES as ONNX_FILES
from hf_distill.release.publish import (
    Release,
    Settings,
    check_access,
    publish,
)
from hf_distill.report.page import (
    headline,
    verdict,
)
from hf_distill.report.plots import LABELS
from hf_distill.run.folder import (
    RunFolder,
    read_json_if_current,
    written_whole,
)
from hf_distill.student.build import STATIC


def _model_results(systems: Mapping[str, Any], source: str) -> list[EvalResult]:
    """The student's figures as a `model-index`."""
    dataset_type = hub_id(source) or re.sub(r"[^\w.-]", "-", source)
    return [
        EvalResult(
            task_type="information-retrieval", task_name="Information retrieval", dataset_type=dataset_type,
            dataset_name=f"{source} (held-out)", dataset_split="test", metric_type=re.sub(r"\W+", "_", name).lower(), metric_name=name,
            metric_value=round(figure["value"], 4),
        )
        for name, figure in systems["student"].items()
    ]  # fmt: skip


def _write_eval_results(evaluation: Mapping[str, Any], dataset: str | None, folder: Path) -> None:
    """The student's nDCG@10 as the Hub's evaluation-results file, which names the published data
    set; none without one.
    """
    shutil.rmtree(folder / ".eval_results", ignore_errors=True)
    if dataset is None:
        return
    retrieval = evaluation["retrieval"]
    ndcg = retrieval["systems"]["student"]["nDCG@10"]
    entry = EvalResultEntry(
        dataset_id=dataset,
        task_id="retrieval",
        value=round(ndcg["value"], 4),
        notes=f"nDCG@10 over {retrieval['num_queries']} held-out queries, 95% interval {ndcg['low']:.4f} to {ndcg['high']:.4f}",
    )
    with written_whole(folder / ".eval_results" / "retrieval.yaml") as temporary:
        temporary.write_text(
            yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False), encoding="utf-8"
        )


def _measured_onnx(folder: RunFolder) -> dict[str, Any] | None:
    """What `hf-distill export` measured of this student; None if it was not exported, or is another
    one since.
    """
    return (
        read_json_if_current(folder.onnx, digest_of_model(folder.student))
        if (folder.student / "onnx").is_dir()
        else None
    )


def _objective(recipe: Recipe) -> dict[str, Any]:
    """The objective's keys, and how many further texts of which kind each pair had, where they say
    something.
    """
    further = {
        name: getattr(recipe.trainer, name) or None
        for name in ("hard_negatives_per_pair", "augmented_texts_per_pair")
    }
    keys = {**vars(recipe.objective), **further}
    return {key: value for key, value in keys.items() if value not in (None, [], False)}


def _layers_text(wanted: str | None, found: Sequence[int] | None) -> str:
    """Which layers of its backbone a student keeps, as the card says it: those the training noted,
    or the recipe's word for them.
    """
    if found or not wanted:
        return f"layers {', '.join(map(str, found))} of " if found else ""
    kind, _, number = wanted.partition("=")
    return {
        "every": f"1 in {number} layers, from the first, of ",
        "search": f"{number} layers, found by a search, of ",
    }.get(kind, f"layers {wanted.replace(',', ', ')} of ")


def write_model_card(
    evaluation: Mapping[str, Any],
    training: Mapping[str, Any],
    audit: Mapping[str, Any],
    recipe: Recipe,
    data: PairData,
    folder: RunFolder,
) -> None:
    """Write `student_model_sd/README.md`, and the evaluation-results file beside it, from measured
    results alone.
    """
    source, repo = data.source, recipe.training.hub_model_id
    teacher_name = recipe.teacher.teacher
    from_teacher = recipe.student.student_backbone in ("teacher", STATIC)
    base = hub_id(teacher_name if from_teacher else recipe.student.student_backbone)
    title = (
        repo
        or f"{'ensemble' if recipe.teacher.ensemble else Path(teacher_name).name}-{recipe.name}-student"
    ).split("/")[-1]
    systems = evaluation["retrieval"]["systems"]
    extra: dict[str, Any] = (
        {"license": recipe.run.student_license} if recipe.run.student_license else {}
    )
    if base:
        extra |= {"base_model": base, "base_model_relation": "finetune"}
    if datasets := [name for name in (recipe.run.hub_dataset_id, hub_id(source.name)) if name]:
        extra["datasets"] = datasets
    metadata = ModelCardData(
        language=recipe.data.language,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=[
            "sentence-transformers",
            "feature-extraction",
            "knowledge-distillation",
            "hf_distill",
        ],
        model_name=title,
        eval_results=_model_results(systems, source.name),
        **extra,
    )
    backbone = (
        "the teacher's backbone"
        if from_teacher
        else f"`{public_name(recipe.student.student_backbone)}`"
    )
    static = recipe.student.student_backbone == STATIC
    ran_with = yaml.safe_load(folder.recipe.read_text(encoding="utf-8"))[
        ENVIRONMENT_KEY
    ]  # whatever this machine is
    settings = json.loads(
        (folder.student / "config_sentence_transformers.json").read_text(encoding="utf-8")
    )
    card = render(
        "model_card_template.md",
        metadata=front_matter(metadata),
        title=title,
        repo=repo,
        dataset=recipe.run.hub_dataset_id,
        teacher_name=public_teacher(recipe.teacher),
        student=evaluation["efficiency"]["student"],
        teacher=evaluation["efficiency"].get("teacher"),
        verdict=verdict(evaluation),
        retrieval=evaluation["retrieval"],
        rows=headline(evaluation),
        labels=LABELS,
        measures=list(systems["student"]),
        fidelity=evaluation["fidelity"],
        fidelity_untrained=evaluation["fidelity_untrained"],
        efficiency=evaluation["efficiency"],
        processor=ran_with["hardware"]["processor"],
        onnx=_measured_onnx(folder),
        onnx_files=ONNX_FILES,
        training=training,
        audit=audit,
        counts=data.counts,
        source=source,
        license=recipe.run.student_license,
        objective=_objective(recipe),
        backbone_text=_layers_text(recipe.student.student_layers, training.get("layers"))
        + backbone,
        pooling=recipe.student.student_pooling,
        static=static,
        vocabulary=recipe.student.student_vocabulary,
        bias=not static
        and json.loads((folder.student / "2_Dense" / "config.json").read_text(encoding="utf-8"))[
            "bias"
        ],
        prompts={
            kind: (settings.get("prompts") or {}).get(kind) or "" for kind in ("query", "document")
        },
        max_length=recipe.student.student_max_length,
        language=recipe.data.language,
    )
    with written_whole(folder.student / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")
    _write_eval_results(evaluation, recipe.run.hub_dataset_id, folder.student)


def linked_dataset_card(card: str, repo: str, model: str | None, license_id: str | None) -> str:
    """The dataset card of a run, with the names that it gets on the Hub: its own, and that of the
    student trained on it.
    """
    linked = DatasetCard(card.replace("path/to/this/folder", repo))
    if license_id:
        linked.data["license"] = license_id
    if model:
        linked.text = f"{linked.text.rstrip()}\n\n## Student\n\n[`{model}`](https://huggingface.co/{model}) was trained on these pairs.\n"
    return str(linked)


def releases_of(recipe: Recipe, folder: RunFolder) -> list[Release]:
    """What a run publishes: the data set first, if it has a name, for the student's card links to
    it; then the student.
    """
    model, dataset = str(recipe.training.hub_model_id), recipe.run.hub_dataset_id
    student = Release(model, "model", folder.student)
    if dataset is None:
        return [student]
    card = linked_dataset_card(
        (folder.dataset / "README.md").read_text(encoding="utf-8"),
        dataset,
        model,
        recipe.data.dataset_license,
    )
    return [Release(dataset, "dataset", folder.dataset, {"README.md": card.encode()}), student]


def check_publishing(recipe: Recipe) -> None:
    """Before any work: does `push_to_hub` name where to, and may the token write there?

    Raises:
        InputError: No `hub_model_id`, no token, or one that cannot write. The token itself is never
            in the message.
    """
    if not recipe.training.push_to_hub:
        return
    if not recipe.training.hub_model_id:
        raise InputError("push_to_hub needs --hub_model_id, e.g. you/student")
    names = [
        recipe.training.hub_model_id,
        *([recipe.run.hub_dataset_id] if recipe.run.hub_dataset_id else []),
    ]
    check_access(HfApi(token=recipe.training.hub_token), names)


def publish_run(recipe: Recipe, folder: RunFolder) -> list[str]:
    """Publish a run's student, and its data set if that has a name (see
    `hf_distill.release.publish.publish`).

    Returns:
        What was done, a line each. Empty without `push_to_hub`.
    """
    if not recipe.training.push_to_hub:
        return []
    settings = Settings(private=recipe.training.hub_private_repo, tag=recipe.training.hub_revision)
    return publish(releases_of(recipe, folder), settings, HfApi(token=recipe.training.hub_token))
