"""The release: the model card, publishing it and the dataset repository, and loading back what was published."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCardData, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from hf_distill.arguments import Recipe
from hf_distill.cards import front_matter, hub_id, public_name, public_teacher, render
from hf_distill.data import Source
from hf_distill.errors import InputError
from hf_distill.hardware import describe_environment
from hf_distill.report import headline, verdict
from hf_distill.run_folder import RunFolder, written_whole


def write_model_card(
    evaluation: Mapping[str, Any],
    training: Mapping[str, Any],
    audit: Mapping[str, Any],
    recipe: Recipe,
    source: Source,
    folder: RunFolder,
) -> None:
    """Write `student_model_sd/README.md` from measured results alone."""
    teacher_name = recipe.teacher.teacher
    from_teacher = recipe.student.student_backbone == "teacher"
    base = hub_id(teacher_name if from_teacher else recipe.student.student_backbone)
    title = (
        recipe.training.hub_model_id or f"{'ensemble' if recipe.teacher.ensemble else Path(teacher_name).name}-{recipe.name}-student"
    ).split("/")[-1]
    systems = evaluation["retrieval"]["systems"]
    dataset_type = hub_id(source.name) or re.sub(r"[^\w.-]", "-", source.name)
    results = [
        EvalResult(
            task_type="information-retrieval", dataset_type=dataset_type, dataset_name=f"{source.name} (held-out)",
            metric_type=re.sub(r"\W+", "_", name).lower(), metric_name=name, metric_value=round(figure["value"], 4),
        )
        for name, figure in systems["student"].items()
    ]  # fmt: skip
    extra: dict[str, Any] = {"license": recipe.run.student_license} if recipe.run.student_license else {}
    if base:
        extra |= {"base_model": base, "base_model_relation": "finetune"}
    if recipe.run.hub_dataset_id:
        extra["datasets"] = [recipe.run.hub_dataset_id]
    metadata = ModelCardData(
        language=recipe.data.language,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "feature-extraction", "knowledge-distillation", "hf_distill"],
        model_name=title,
        eval_results=results,
        **extra,
    )
    backbone = "the teacher's backbone" if from_teacher else f"`{public_name(recipe.student.student_backbone)}`"
    layers = recipe.student.student_layers
    card = render(
        "model_card_template.md",
        metadata=front_matter(metadata),
        title=title,
        repo=recipe.training.hub_model_id,
        teacher_name=public_teacher(recipe.teacher),
        student=evaluation["efficiency"]["student"],
        teacher=evaluation["efficiency"].get("teacher"),
        verdict=verdict(evaluation),
        retrieval=evaluation["retrieval"],
        rows=headline(evaluation),
        measures=list(systems["student"]),
        fidelity=evaluation["fidelity"],
        fidelity_untrained=evaluation["fidelity_untrained"],
        efficiency=evaluation["efficiency"],
        processor=describe_environment()["hardware"]["processor"],
        training=training,
        audit=audit,
        source=source,
        objective={key: value for key, value in vars(recipe.objective).items() if value not in (None, [], False)},
        backbone_text=f"layers {layers} of {backbone}" if layers else backbone,
        pooling=recipe.student.student_pooling,
        max_length=recipe.student.student_max_length,
        language=recipe.data.language,
    )
    with written_whole(folder.student / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")


def _api(recipe: Recipe) -> HfApi:
    return HfApi(token=recipe.training.hub_token)


def check_publishing(recipe: Recipe) -> None:
    """Before any work: does `push_to_hub` name where to, and does the Hub know the token?

    Raises:
        InputError: No `hub_model_id`, no token, or one that the Hub refuses. The token itself is never in the message.
    """
    if not recipe.training.push_to_hub:
        return
    if not recipe.training.hub_model_id:
        raise InputError("push_to_hub needs --hub_model_id, e.g. you/student")
    try:
        _api(recipe).whoami()
    except LocalTokenNotFoundError as error:
        raise InputError("push_to_hub needs a Hub token: run `hf auth login`, or set HF_TOKEN") from error
    except (HfHubHTTPError, OSError) as error:
        raise InputError(f"the Hub does not accept the token ({type(error).__name__}); nothing was done. Run `hf auth login`") from error


def _verify(repo: str, kind: str, revision: str, local: Path, api: HfApi) -> None:
    """Download what was published, by commit, into an empty cache, and compare it with what was sent, byte for byte."""
    with tempfile.TemporaryDirectory() as cache:
        back = Path(snapshot_download(repo, repo_type=kind, revision=revision, cache_dir=cache, token=api.token))
        for file in sorted(p for p in local.rglob("*") if p.is_file()):
            name = file.relative_to(local)
            if not (back / name).is_file() or (back / name).read_bytes() != file.read_bytes():
                raise RuntimeError(f"{repo} at {revision}: {name} on the Hub differs from the local file; publish again")


def publish(recipe: Recipe, folder: RunFolder) -> list[str]:
    """Push the student, and the dataset if `hub_dataset_id` is given; then load both back by commit and compare.

    Returns:
        The address of each commit. Empty without `push_to_hub`.

    Raises:
        RuntimeError: What the Hub returns differs from what was sent.
    """
    if not recipe.training.push_to_hub:
        return []
    api = _api(recipe)
    targets: Sequence[tuple[str | None, str, Path]] = (
        (recipe.run.hub_dataset_id, "dataset", folder.dataset),
        (recipe.training.hub_model_id, "model", folder.student),
    )
    addresses = []
    for repo, kind, local in targets:
        if repo is None:
            continue
        made = api.create_repo(repo, repo_type=kind, private=recipe.training.hub_private_repo, exist_ok=True)
        commit = api.upload_folder(repo_id=made.repo_id, repo_type=kind, folder_path=str(local), commit_message="Release by hf_distill")
        _verify(made.repo_id, kind, str(commit.oid), local, api)
        addresses.append(str(commit.commit_url))
    return addresses
