"""The release of a run: model card, dataset repository with its card, and what of it is published under which name."""

from __future__ import annotations

import html
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset, Features, Value, concatenate_datasets
from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, EvalResultEntry, HfApi, ModelCardData, eval_result_entries_to_yaml

from hf_distill.arguments import ENVIRONMENT_KEY, Recipe, TeacherArguments, parse_member
from hf_distill.data import PairData, Source
from hf_distill.data.cleaning import NEAR_DUPLICATE_JACCARD
from hf_distill.data.contract import map_rows
from hf_distill.errors import InputError
from hf_distill.finished_run import digest_of_model
from hf_distill.hardware import describe_environment
from hf_distill.onnx_export import FILES as ONNX_FILES
from hf_distill.publishing import Release, Settings, check_access, publish
from hf_distill.report import LABELS, environment, headline, save_selection_plot, verdict
from hf_distill.run_folder import RunFolder, read_json_if_current, written_whole
from hf_distill.scoring import ScoredPairs
from hf_distill.selection import SelectedPairs

PUBLIC_FEATURES = Features(
    {name: Value("string") for name in ("pair_id", "query", "document", "group")} | {"teacher_score": Value("float32")}
)
ALL_FEATURES = Features({**PUBLIC_FEATURES, "dropped_by": Value("string")})
EXAMPLES = 5
_EXAMPLE_CHARACTERS = 160


def escape_markdown(text: str) -> str:
    """`text` on one line, so that no character of it is read as Markdown or HTML."""
    flat = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]()#+!|~$-])", r"\\\1", flat)


def _interval(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return f"undefined ({figure['undefined']})"
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


def _render(template: str, **values: Any) -> str:
    jinja = environment()
    jinja.filters["escape_markdown"] = escape_markdown
    jinja.filters["interval"] = _interval
    return jinja.get_template(template).render(**values)


def _front_matter(data: DatasetCardData | ModelCardData) -> str:
    return f"---\n{data.to_yaml()}\n---\n"


def hub_id(name: str) -> str | None:
    """`name` if it can be a Hub id and is no folder here, else None: cards never name local paths."""
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists() else None


def public_name(name: str) -> str:
    """How a card calls a model: its Hub id, or the last part of a local path."""
    return hub_id(name) or Path(name).name


def public_teacher(arguments: TeacherArguments) -> str:
    """How a card calls the teacher, in Markdown: its public name, or each member's of an ensemble with its weight."""
    if not arguments.ensemble:
        return f"`{public_name(arguments.teacher)}`"
    members = [parse_member(text) for text in arguments.ensemble]
    return "an ensemble of " + ", ".join(f"`{public_name(name)}` ({kind}, weight {weight:g})" for kind, name, weight in members)


def _shorten(text: str) -> str:
    return text if len(text) <= _EXAMPLE_CHARACTERS else text[: _EXAMPLE_CHARACTERS - 1] + "…"


def _public(split: Dataset, features: Features) -> Dataset:
    if "dropped_by" in features and "dropped_by" not in split.column_names:
        return map_rows(split, lambda rows, _: {"dropped_by": [None] * len(rows["pair_id"])}, features)
    return split.select_columns(list(features)).cast(features)


def write_dataset(
    scored: ScoredPairs,
    selected: SelectedPairs,
    recipe: Recipe,
    source: Source,
    counts: Mapping[str, Any],
    folder: RunFolder,
) -> None:
    """Write `dataset/`, ready to push: configs `all` and `selected`, Parquet, the card and its picture; replaced as a whole."""
    soft_labels = scored.manifest
    leaked = map_rows(scored.leaked, lambda rows, _: {"dropped_by": [f"leak: {reason}" for reason in rows["reason"]]}, ALL_FEATURES)
    splits = {
        "all": {
            "train": concatenate_datasets([_public(selected.all, ALL_FEATURES), leaked]),
            "validation": _public(scored.validation, ALL_FEATURES),
            "test": _public(scored.test, ALL_FEATURES),
        },
        "selected": {
            "train": _public(selected.selected, PUBLIC_FEATURES),
            "validation": _public(scored.validation, PUBLIC_FEATURES),
            "test": _public(scored.test, PUBLIC_FEATURES),
        },
    }
    splits = {config: {name: split for name, split in parts.items() if len(split)} for config, parts in splits.items()}
    sizes = [{"config": c, "split": s, "pairs": len(split)} for c, parts in splits.items() for s, split in parts.items()]
    teacher = hub_id(recipe.teacher.teacher) if recipe.teacher.teacher_kind in ("bi-encoder", "cross-encoder") else None
    metadata = DatasetCardData(
        language=recipe.data.language,
        license=source.license or "unknown",
        task_categories=["text-retrieval", "sentence-similarity"],
        size_categories=_size_category(len(splits["all"]["train"])),
        source_datasets=[source.name] if hub_id(source.name) else ["original"],
        pretty_name=f"{source.name} scored by {Path(recipe.teacher.teacher).name if not recipe.teacher.ensemble else 'an ensemble'}",
        tags=["sentence-transformers", "knowledge-distillation", "hf_distill", *([f"base_model:{teacher}"] if teacher else [])],
        configs=[
            {
                "config_name": config,
                **({"default": True} if config == "selected" else {}),
                "data_files": [{"split": name, "path": f"{config}/{name}.parquet"} for name in parts],
            }
            for config, parts in splits.items()
        ],
    )
    shown = selected.selected.select(range(min(EXAMPLES, len(selected.selected))))
    card = _render(
        "dataset_card.md.j2",
        metadata=_front_matter(metadata),
        title=metadata.pretty_name,
        repo=recipe.run.hub_dataset_id,
        source=source,
        commit=describe_environment()["git_commit"],
        sizes=sizes,
        soft_labels=soft_labels,
        teacher=public_teacher(recipe.teacher),
        scale=str(scored.scale),
        counts=counts,
        leaked=", ".join(f"{reason} {n}" for reason, n in counts["leaks"]["removed"].items()) or "none",
        audit=selected.audit,
        examples=[{**row, "query": _shorten(row["query"]), "document": _shorten(row["document"])} for row in shown]
        if recipe.run.card_examples
        else [],
        jaccard=NEAR_DUPLICATE_JACCARD,
    )
    folder.path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.path, prefix=".dataset.") as temporary:
        made = Path(temporary) / "dataset"
        for config, parts in splits.items():
            (made / config).mkdir(parents=True)
            for name, split in parts.items():
                split.to_parquet(str(made / config / f"{name}.parquet"))
        (made / "README.md").write_text(card, encoding="utf-8")
        save_selection_plot(selected.audit, made / "scores.png")
        if folder.dataset.exists():
            shutil.rmtree(folder.dataset)
        made.replace(folder.dataset)


def _size_category(pairs: int) -> str:
    bounds = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"), (10**8, "10M<n<100M")]
    return next((name for bound, name in bounds if pairs < bound), "100M<n<1B")


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
    """The student's nDCG@10 as the Hub's evaluation-results file, which names the published data set; none without one."""
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
        temporary.write_text(yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False), encoding="utf-8")


def _measured_onnx(folder: RunFolder) -> dict[str, Any] | None:
    """What `hf-distill export` measured of this student; None if it was not exported, or is another one since."""
    return read_json_if_current(folder.onnx, digest_of_model(folder.student)) if (folder.student / "onnx").is_dir() else None


def write_model_card(
    evaluation: Mapping[str, Any],
    training: Mapping[str, Any],
    audit: Mapping[str, Any],
    recipe: Recipe,
    data: PairData,
    folder: RunFolder,
) -> None:
    """Write `student_model_sd/README.md`, and the evaluation-results file beside it, from measured results alone."""
    source, repo = data.source, recipe.training.hub_model_id
    teacher_name = recipe.teacher.teacher
    from_teacher = recipe.student.student_backbone == "teacher"
    base = hub_id(teacher_name if from_teacher else recipe.student.student_backbone)
    title = (repo or f"{'ensemble' if recipe.teacher.ensemble else Path(teacher_name).name}-{recipe.name}-student").split("/")[-1]
    systems = evaluation["retrieval"]["systems"]
    extra: dict[str, Any] = {"license": recipe.run.student_license} if recipe.run.student_license else {}
    if base:
        extra |= {"base_model": base, "base_model_relation": "finetune"}
    if datasets := [name for name in (recipe.run.hub_dataset_id, hub_id(source.name)) if name]:
        extra["datasets"] = datasets
    metadata = ModelCardData(
        language=recipe.data.language,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "feature-extraction", "knowledge-distillation", "hf_distill"],
        model_name=title,
        eval_results=_model_results(systems, source.name),
        **extra,
    )
    backbone = "the teacher's backbone" if from_teacher else f"`{public_name(recipe.student.student_backbone)}`"
    layers = recipe.student.student_layers
    ran_with = yaml.safe_load(folder.recipe.read_text(encoding="utf-8"))[ENVIRONMENT_KEY]  # whatever this machine is
    settings = json.loads((folder.student / "config_sentence_transformers.json").read_text(encoding="utf-8"))
    card = _render(
        "model_card_template.md",
        metadata=_front_matter(metadata),
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
        objective={key: value for key, value in vars(recipe.objective).items() if value not in (None, [], False)},
        backbone_text=f"layers {layers} of {backbone}" if layers else backbone,
        pooling=recipe.student.student_pooling,
        bias=json.loads((folder.student / "2_Dense" / "config.json").read_text(encoding="utf-8"))["bias"],
        prompts={kind: (settings.get("prompts") or {}).get(kind) or "" for kind in ("query", "document")},
        max_length=recipe.student.student_max_length,
        language=recipe.data.language,
    )
    with written_whole(folder.student / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")
    _write_eval_results(evaluation, recipe.run.hub_dataset_id, folder.student)


def linked_dataset_card(card: str, repo: str, model: str | None, license_id: str | None) -> str:
    """The dataset card of a run, with the names that it gets on the Hub: its own, and that of the student trained on it."""
    linked = DatasetCard(card.replace("path/to/this/folder", repo))
    if license_id:
        linked.data["license"] = license_id
    if model:
        linked.text = f"{linked.text.rstrip()}\n\n## Student\n\n[`{model}`](https://huggingface.co/{model}) was trained on these pairs.\n"
    return str(linked)


def releases_of(recipe: Recipe, folder: RunFolder) -> list[Release]:
    """What a run publishes: the data set first, if it has a name, for the student's card links to it; then the student."""
    model, dataset = str(recipe.training.hub_model_id), recipe.run.hub_dataset_id
    student = Release(model, "model", folder.student)
    if dataset is None:
        return [student]
    card = linked_dataset_card((folder.dataset / "README.md").read_text(encoding="utf-8"), dataset, model, recipe.data.dataset_license)
    return [Release(dataset, "dataset", folder.dataset, {"README.md": card.encode()}), student]


def check_publishing(recipe: Recipe) -> None:
    """Before any work: does `push_to_hub` name where to, and may the token write there?

    Raises:
        InputError: No `hub_model_id`, no token, or one that cannot write. The token itself is never in the message.
    """
    if not recipe.training.push_to_hub:
        return
    if not recipe.training.hub_model_id:
        raise InputError("push_to_hub needs --hub_model_id, e.g. you/student")
    names = [recipe.training.hub_model_id, *([recipe.run.hub_dataset_id] if recipe.run.hub_dataset_id else [])]
    check_access(HfApi(token=recipe.training.hub_token), names)


def publish_run(recipe: Recipe, folder: RunFolder) -> list[str]:
    """Publish a run's student, and its data set if that has a name (see `hf_distill.publishing.publish`).

    Returns:
        What was done, a line each. Empty without `push_to_hub`.
    """
    if not recipe.training.push_to_hub:
        return []
    settings = Settings(private=recipe.training.hub_private_repo, tag=recipe.training.hub_revision)
    return publish(releases_of(recipe, folder), settings, HfApi(token=recipe.training.hub_token))
