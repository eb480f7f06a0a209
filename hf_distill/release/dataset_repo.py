"""The dataset repository of a run: typed Parquet in two configurations, and its card."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset, Features, Sequence, Value, concatenate_datasets
from huggingface_hub import DatasetCardData

from hf_distill.compute.device import describe_environment
from hf_distill.data.collection import Source, map_rows
from hf_distill.data.near_duplicates import NEAR_DUPLICATE_JACCARD
from hf_distill.recipe.arguments import Recipe
from hf_distill.release.cards import (
    front_matter,
    hub_id,
    public_name,
    public_teacher,
    render,
)
from hf_distill.report.plots import save_selection_plot
from hf_distill.run.folder import RunFolder
from hf_distill.scoring.scores import ScoredPairs
from hf_distill.selection.audit import shorten
from hf_distill.selection.select import SelectedPairs
from hf_distill.selection.texts import is_empty

COLUMNS = {
    "pair_id": Value("string"),
    "query": Value("string"),
    "document": Value("string"),
    "group": Value("string"),
    "source": Value("string"),
    "teacher_score": Value("float32"),
    "rank": Value("int32"),
    "margin": Value("float32"),
    "hard_negatives": Sequence(Value("string")),
    "hard_negative_scores": Sequence(Value("float32")),
    "weight": Value("float32"),
}
"""The published columns and their types, in order. Those that a teacher or a selection does not
give are left out.
"""
EXAMPLES = 5
SHARD_BYTES = 500_000_000
"""The largest Parquet file, before compression: what `push_to_hub` splits at, and small enough to
be read again after a broken download.
"""
_PRIVATE = {
    "dataset_path",
    "teacher_cache",
    "teacher_url",
    "ensemble",
    "teacher_batch_tokens",
    "shard_size",
    "trust_remote_code",
}
"""Keys that a card does not repeat: local paths and addresses, and what changes no result."""


def public_features(columns: list[str]) -> tuple[Features, Features]:
    """The features of the configurations `all` and `selected` of training pairs that have
    `columns`.
    """
    given = {name: kind for name, kind in COLUMNS.items() if name in columns}
    return Features({**given, "dropped_by": Value("string")}), Features(given)


def _public(split: Dataset, features: Features) -> Dataset:
    """`split` with exactly `features`, null where it has no such column: every split of a
    configuration must have the same.
    """
    missing = [name for name in features if name not in split.column_names]
    if missing:
        split = map_rows(
            split,
            lambda rows, indices: {name: [None] * len(indices) for name in missing},
            Features({**split.features, **{n: features[n] for n in missing}}),
        )
    return split.select_columns(list(features)).cast(features)


def _shards(split: Dataset) -> int:
    held = split.data.nbytes * (len(split) / max(1, len(split.data)))
    return max(1, -(-int(held) // SHARD_BYTES))


def write_shards(split: Dataset, folder: Path, name: str) -> None:
    """Write `NAME-00000-of-00002.parquet` and so on, as the Hub's own converter names and sizes
    them.

    `datasets` writes row groups of at most 100 MB and the page index, which the viewer reads rows
    by.
    """
    count = _shards(split)
    for number in range(count):
        part = split.shard(count, number, contiguous=True)
        part.to_parquet(str(folder / f"{name}-{number:05d}-of-{count:05d}.parquet"))


def _reproducing(recipe: Recipe) -> str:
    """The recipe's keys of data, teacher and selection that are no defaults, as YAML; without local
    paths and addresses.
    """
    found: dict[str, Any] = {}
    for part in (recipe.data, recipe.teacher, recipe.selection):
        default = vars(type(part)())
        for name, value in vars(part).items():
            if value != default[name] and name not in _PRIVATE:
                found[name] = public_name(value) if name == "teacher" else value
    found["dataset"], found["seed"] = recipe.data.dataset, recipe.training.seed
    return yaml.safe_dump(found, sort_keys=False, allow_unicode=True)


def write_dataset(
    scored: ScoredPairs,
    selected: SelectedPairs,
    recipe: Recipe,
    source: Source,
    counts: Mapping[str, Any],
    folder: RunFolder,
) -> None:
    """Write `dataset/`, ready to push: configs `all` and `selected`, Parquet, the card and its
    picture; replaced as a whole.
    """
    all_features, selected_features = public_features(
        [
            name
            for name in selected.all.column_names
            if name != "source" or not is_empty(selected.all, name)
        ]
    )
    marked = Features({**scored.leaked.features, "dropped_by": Value("string")})
    leaked = map_rows(
        scored.leaked,
        lambda rows, _: {"dropped_by": [f"leak: {reason}" for reason in rows["reason"]]},
        marked,
    )
    splits = {
        "all": {
            "train": concatenate_datasets(
                [_public(selected.all, all_features), _public(leaked, all_features)]
            ),
            "validation": _public(scored.validation, all_features),
            "test": _public(scored.test, all_features),
        },
        "selected": {
            "train": _public(selected.selected, selected_features),
            "validation": _public(scored.validation, selected_features),
            "test": _public(scored.test, selected_features),
        },
    }
    splits = {
        config: {name: split for name, split in parts.items() if len(split)}
        for config, parts in splits.items()
    }
    sizes = [
        {"config": c, "split": s, "pairs": len(split)}
        for c, parts in splits.items()
        for s, split in parts.items()
    ]
    metadata = DatasetCardData(
        language=recipe.data.language,
        license=source.license or "unknown",
        task_categories=["text-retrieval", "sentence-similarity"],
        size_categories=_size_category(sum(map(len, splits["all"].values()))),
        source_datasets=[source.name] if hub_id(source.name) else ["original"],
        pretty_name=f"{source.name} scored by {Path(recipe.teacher.teacher).name if not recipe.teacher.ensemble else 'an ensemble'}",
        tags=["sentence-transformers", "knowledge-distillation", "hf_distill"],
        configs=[
            {
                "config_name": config,
                **({"default": True} if config == "selected" else {}),
                "data_files": [
                    {"split": name, "path": f"{config}/{name}-*.parquet"} for name in parts
                ],
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
        sizes=sizes,
        soft_labels=scored.manifest,
        columns=list(all_features),
        recipe_name=recipe.name,
        keys=_reproducing(recipe),
        environment=describe_environment(),
        teacher=public_teacher(recipe.teacher),
        scale=str(scored.scale),
        counts=counts,
        leaked=", ".join(f"{reason} {n}" for reason, n in counts["leaks"]["removed"].items())
        or "none",
        audit=selected.audit,
        examples=[
            {**row, "query": shorten(row["query"]), "document": shorten(row["document"])}
            for row in shown
        ]
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
                write_shards(split, made / config, name)
        (made / "README.md").write_text(card, encoding="utf-8")
        save_selection_plot(selected.audit, made / "scores.png")
        if folder.dataset.exists():
            shutil.rmtree(folder.dataset)
        made.replace(folder.dataset)


def _size_category(pairs: int) -> str:
    bounds = [
        (10**3, "n<1K"),
        (10**4, "1K<n<10K"),
        (10**5, "10K<n<100K"),
        (10**6, "100K<n<1M"),
        (10**7, "1M<n<10M"),
        (10**8, "10M<n<100M"),
    ]
    return next((name for bound, name in bounds if pairs < bound), "100M<n<1B")
