"""The dataset repository of a run: typed Parquet in two configurations, and its card."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value, concatenate_datasets
from huggingface_hub import DatasetCardData

from hf_distill.arguments import Recipe
from hf_distill.cards import front_matter, hub_id, public_teacher, render
from hf_distill.data import Source
from hf_distill.data.cleaning import NEAR_DUPLICATE_JACCARD
from hf_distill.data.contract import map_rows
from hf_distill.hardware import describe_environment
from hf_distill.run_folder import RunFolder
from hf_distill.scoring import ScoredPairs
from hf_distill.selection import SelectedPairs
from hf_distill.selection_plot import save_selection_plot

PUBLIC_FEATURES = Features(
    {name: Value("string") for name in ("pair_id", "query", "document", "group")} | {"teacher_score": Value("float32")}
)
ALL_FEATURES = Features({**PUBLIC_FEATURES, "dropped_by": Value("string")})
EXAMPLES = 5
_EXAMPLE_CHARACTERS = 160


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
    card = render(
        "dataset_card.md.j2",
        metadata=front_matter(metadata),
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
