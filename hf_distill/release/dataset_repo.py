"""The dataset repository of a run: typed Parquet in two configurations, and its card."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter
from huggingface_hub import DatasetCardData
from markupsafe import Markup

from hf_distill.data.collection import Pairs
from hf_distill.data.near_duplicates import NEAR_DUPLICATE_JACCARD
from hf_distill.errors import printable
from hf_distill.recipe.arguments import Recipe
from hf_distill.release.cards import (
    PLACEHOLDER,
    code,
    front_matter,
    hub_id,
    language_metadata,
    licence_metadata,
    licence_of_texts,
    public_miner,
    public_name,
    public_ranker,
    public_teacher,
    render,
    writer_of_queries,
)
from hf_distill.release.disagreements import others_above, scored_lowest
from hf_distill.report.plots import describe_selection, save_selection_plot
from hf_distill.report.results import RunResults
from hf_distill.run.environment import describe_environment
from hf_distill.run.stage import folder_written_whole, listed, strangers, write_result
from hf_distill.scoring.lists import ListsRecord
from hf_distill.scoring.ranking import Ranking
from hf_distill.scoring.scores import Scores
from hf_distill.selection.audit import shorten
from hf_distill.selection.relabelled import Relabelled
from hf_distill.selection.select import Selection
from hf_distill.teachers.base import Scale
from hf_distill.teachers.ensemble import parse_member

PAIR_COLUMNS = {
    "pair_id": Value("string"),
    "query": Value("string"),
    "student_query": Value("string"),
    "document": Value("string"),
    "group": Value("string"),
    "source": Value("string"),
    "teacher_score": Value("float32"),
}
"""The columns of every pair. `source` is left out if no pair has one, and `student_query` if the
student reads the queries.
"""

RANKING_COLUMNS = {
    "rank": Value("int32"),
    "margin": Value("float32"),
    "hard_negatives": List(Value("string")),
    "hard_negative_scores": List(Value("float32")),
}
"""Columns of training pairs if the teacher embeds texts; null for all other pairs."""

LIST_COLUMNS = {
    "rank": Value("int32"),
    "margin": Value("float32"),
    "candidates": List(Value("string")),
    "candidate_scores": List(Value("float32")),
}
"""The same if lists were mined: these documents need not belong to a pair."""

WEIGHT_COLUMNS = {"weight": Value("float32"), "weight_ranking": Value("float32")}
"""Each is a column of training pairs if a rule gives such weights; null for all other pairs."""

RELABELLED_COLUMN = {"relabelled_from": Value("string")}
"""In `selected` only, if a rule relabels. A relabelled pair has its new document there, with its
score, and no rank and margin, which are those of the document in `all`.
"""

REASON_COLUMN = {"dropped_by": Value("string")}
"""In `all` only: the rule that dropped a training pair, or `leak: ...`."""

EXAMPLES = 5
SHARD_BYTES = 500_000_000
"""The largest Parquet file, before compression: the size at which `push_to_hub` starts a new file.
A download that breaks off is then quickly repeated.
"""

_PRIVATE = frozenset((
    "dataset_path", "sources", "test_path", "pool_path", "eval_tasks", "teacher_cache",
    "teacher_url", "chat_url", "trust_remote_code",
))  # fmt: skip
"""Keys that a card does not show: local paths and addresses, and keys that change no result."""


@dataclass(frozen=True)
class DatasetRecord:
    """`dataset.json`: the scores and the selection that `dataset/` holds, by their keys."""

    scores: str
    selection: str


@dataclass(frozen=True)
class _Tables:
    """The published pairs, read a batch at a time."""

    results: RunResults
    scores: Scores
    ranking: Ranking | None
    lists: ListsRecord | None
    selection: Selection

    @cached_property
    def selected_features(self) -> Features:
        """The columns of the configuration `selected`, in order."""
        columns = {
            **PAIR_COLUMNS,
            **(LIST_COLUMNS if self.lists else RANKING_COLUMNS if self.ranking else {}),
            **{
                name: kind
                for name, kind in WEIGHT_COLUMNS.items()
                if getattr(self.selection, name) is not None
            },
            **({} if self.selection.relabelled is None else RELABELLED_COLUMN),
        }
        sources = self.results.collection.judgements.data["source"]
        if sources.null_count == len(sources):
            del columns["source"]
        if not self.results.collection.num_student_queries:
            del columns["student_query"]
        return Features(columns)

    @cached_property
    def all_features(self) -> Features:
        """The columns of the configuration `all`, in order."""
        columns = {**self.selected_features, **REASON_COLUMN}
        columns.pop("relabelled_from", None)
        return Features(columns)

    @cached_property
    def training_pairs(self) -> Pairs:
        return self.results.collection.pairs("train")

    @cached_property
    def first_pair(self) -> np.ndarray:
        """(documents,) int64: the place of the first training pair with this document; -1: none."""
        first = np.full(len(self.results.collection.documents), -1, dtype=np.int64)
        first[self.training_pairs.documents[::-1]] = np.arange(len(self.training_pairs))[::-1]
        return first

    def batches(self, pairs: Pairs, features: Features) -> Iterator[dict[str, Any]]:
        """`pairs` in batches of columns, exactly those of `features`. A column that does not apply
        to the pairs is null.
        """
        start, rows_of_training = 0, self.results.collection.rows("train")
        names = [name for name in PAIR_COLUMNS if name in features and name != "teacher_score"]
        for batch in pairs.batches(*names, "reason"):
            rows = pairs.rows[start : start + len(batch["reason"])]
            start += len(rows)
            columns = {**batch, "teacher_score": self.scores.of(rows)}
            if len(rows) and rows_of_training.start <= rows[0] < rows_of_training.stop:
                columns |= self._of_training_pairs(rows - rows_of_training.start)
                if "relabelled_from" in features:
                    columns |= self._relabelled(rows - rows_of_training.start, columns)
            else:
                columns["dropped_by"] = [
                    None if reason is None else f"leak: {reason}" for reason in batch["reason"]
                ]
            yield {name: columns.get(name, [None] * len(rows)) for name in features}

    def _of_training_pairs(self, places: np.ndarray) -> dict[str, Any]:
        """The columns that only training pairs have, at `places` (m,) among them."""
        rules = [*(rule.rule for rule in self.selection.audit.rules), None]  # -1, the last: kept
        columns: dict[str, Any] = {
            "dropped_by": [rules[i] for i in self.selection.dropped_by[places]]
        }
        for name in WEIGHT_COLUMNS:
            if (weight := getattr(self.selection, name)) is not None:
                columns[name] = weight[places]
        if self.ranking is not None:
            negatives = self.ranking.negatives[places]
            present = negatives >= 0
            *_, named, scored = LIST_COLUMNS if self.lists else RANKING_COLUMNS
            numbers = negatives[present]
            ids = iter(
                self.results.collection.document_texts(numbers)
                if self.lists
                else self.training_pairs.take(self.first_pair[numbers]).column("pair_id")
            )
            columns |= {
                "rank": self.ranking.rank[places],
                "margin": self.ranking.margin[places],
                named: [[next(ids) for _ in range(n)] for n in present.sum(axis=1)],
                scored: [
                    scores[there].tolist()
                    for scores, there in zip(
                        self.ranking.negative_scores[places], present, strict=True
                    )
                ],
            }
        return columns

    def _relabelled(self, places: np.ndarray, columns: dict[str, Any]) -> dict[str, Any]:
        """`columns` of the training pairs at `places` (m,), as they are trained on."""
        pairs, selection = self.training_pairs.take(places), self.selection
        relabelled = Relabelled.of(pairs, places, selection.relabelled, selection.relabelled_score)
        assert relabelled is not None
        new = relabelled.columns(self.scores)
        changed = np.flatnonzero(relabelled.new).tolist()
        documents = iter(self.results.collection.document_texts(new["document"][relabelled.new]))
        before = self.first_pair[pairs.documents[relabelled.new]]
        ids = iter(self.training_pairs.take(before).column("pair_id"))
        lists = {
            name: list(values)
            for name, values in columns.items()
            if name in {"document", "rank", "margin", *LIST_COLUMNS, *RANKING_COLUMNS}
        }
        lists["relabelled_from"] = [None] * len(places)
        *_, named, scored = LIST_COLUMNS if self.lists else RANKING_COLUMNS
        negatives = self.ranking.negatives[places] if self.ranking is not None else new["document"]
        for row in changed:
            lists["document"][row] = next(documents)
            lists["relabelled_from"][row] = next(ids)
            lists["rank"][row] = lists["margin"][row] = None
            others = negatives[row][negatives[row] >= 0] != new["document"][row]
            for name in (named, scored):
                lists[name][row] = [
                    v for v, kept in zip(lists[name][row], others, strict=True) if kept
                ]
        return {**lists, "teacher_score": new["teacher_score"]}


def _write_split(
    batches: Iterator[dict[str, Any]], features: Features, folder: Path, name: str
) -> None:
    """Write `NAME-00000-of-00002.parquet` and so on, named and sized as the Hub's own converter
    does it.

    `datasets` writes row groups of at most 100 MB and a page index, which lets the viewer read
    single rows. The texts pass through an Arrow file, so memory holds only one batch of them. It is
    given open files: in a path, `::` has a meaning to it.
    """
    arrow = folder / f"{name}.arrow"
    with arrow.open("wb") as file, ArrowWriter(stream=file, features=features) as writer:
        for batch in batches:
            writer.write_batch(batch)
        writer.finalize()
    split = Dataset.from_file(str(arrow))
    count = max(1, -(-split.data.nbytes // SHARD_BYTES))
    for number in range(count):
        part = split.shard(count, number, contiguous=True)
        with (folder / f"{name}-{number:05d}-of-{count:05d}.parquet").open("wb") as file:
            part.to_parquet(file)
    arrow.unlink()


def _reproducing(recipe: Recipe) -> str:
    """The recipe's keys of data, teacher and selection that are not at their default, as YAML.
    Local paths and addresses are left out.
    """
    keys: dict[str, Any] = {"dataset": recipe.data.dataset}
    for part in (recipe.data, recipe.teacher, recipe.lists, recipe.selection):
        default = vars(type(part)())
        keys |= {
            name: value
            for name, value in vars(part).items()
            if value != default[name] and name not in _PRIVATE
        }
    if recipe.teacher.ensemble:
        keys["ensemble"] = [
            f"{kind}:{public_name(name)}={weight:g}"
            for kind, name, weight in map(parse_member, recipe.teacher.ensemble)
        ]
    elif "teacher" in keys:
        keys["teacher"] = public_name(recipe.teacher.teacher)
    if recipe.lists.candidates:
        keys["candidates"] = [public_miner(name) for name in recipe.lists.candidates]
    if recipe.lists.ranker:
        keys["ranker"] = public_ranker(recipe.lists.ranker)
    for name in ("chat_model", "second_model"):
        if name in keys:
            keys[name] = public_name(keys[name])
    text = yaml.safe_dump({**keys, "seed": recipe.seed}, sort_keys=False, allow_unicode=True)
    return printable(text)


def _metadata(results: RunResults, sizes: Sequence[tuple[str, str, int]]) -> DatasetCardData:
    """The card's metadata. `sizes`: configuration, split, pairs."""
    recipe, source = results.recipe, results.collection.source
    teacher = "an ensemble" if recipe.teacher.ensemble else Path(recipe.teacher.teacher).name
    named: dict[str, Any] = {
        **language_metadata(recipe.data.language),
        **licence_metadata(licence_of_texts(results) or "unknown"),
    }
    return DatasetCardData(
        **named,
        task_categories=["text-retrieval", "sentence-similarity"],
        size_categories=size_category(sum(n for config, _, n in sizes if config == "all")),
        source_datasets=[source.name] if hub_id(source.name) else ["original"],
        pretty_name=f"{source.name} scored by {teacher}",
        tags=[
            "sentence-transformers",
            "knowledge-distillation",
            "hf_distill",
            *([] if source.queries_by is None else ["synthetic"]),
        ],
        configs=[
            {
                "config_name": config,
                **({"default": True} if config == "selected" else {}),
                "data_files": [
                    {"split": split, "path": f"{config}/{split}-*.parquet"}
                    for of, split, _ in sizes
                    if of == config
                ],
            }
            for config in ("all", "selected")
        ],
    )


def _examples(batches: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pairs of `selected`, as they stand there, for the card."""
    return [
        {"score": score, "query": shorten(query), "document": shorten(document)}
        for batch in batches
        for query, document, score in zip(
            batch["query"], batch["document"], batch["teacher_score"], strict=True
        )
    ]


def _about_lists(lists: ListsRecord) -> Markup:
    """How the lists were made, without local paths."""
    miners = {str(code(public_miner(name))): number for name, number in lists.mined.by.items()}
    return Markup(lists.described(code(public_name(lists.ranker)), miners))


def write_dataset(
    results: RunResults,
    scores: Scores,
    ranking: Ranking | None,
    selection: Selection,
) -> None:
    """Write `dataset/`, ready to push: Parquet in the configurations `all` and `selected`, the
    card, and its picture. It replaces an earlier one as a whole.
    """
    collection, folder, lists = results.collection, results.folder, results.lists
    tables = _Tables(results, scores, ranking, lists, selection)
    selected = tables.training_pairs.take(selection.kept)
    held_out = {name: [collection.pairs(name)] for name in ("validation", "test")}
    splits: dict[str, dict[str, list[Pairs]]] = {
        "all": {"train": [tables.training_pairs, collection.pairs("leaked")], **held_out},
        "selected": {"train": [selected], **held_out},
    }
    features = {"all": tables.all_features, "selected": tables.selected_features}
    others = strangers(folder.dataset_record, [folder.dataset])
    with folder_written_whole(folder.dataset, listed(folder.dataset_record)) as new:
        sizes = []
        for config, parts in splits.items():
            (new / config).mkdir()
            for name, several in parts.items():
                if not any(map(len, several)):
                    continue  # the readers of `datasets` refuse a split without rows
                batches = (
                    batch for pairs in several for batch in tables.batches(pairs, features[config])
                )
                _write_split(batches, features[config], new / config, name)
                sizes.append((config, name, sum(map(len, several))))
        metadata = _metadata(results, sizes)
        repo = results.recipe.run.hub_dataset_id
        shows_texts, training = results.recipe.run.card_examples, tables.training_pairs
        few = tables.batches(
            selected.take(np.arange(len(selected))[:EXAMPLES]), features["selected"]
        )
        card = render(
            "dataset_card.md.j2",
            metadata=front_matter(metadata),
            title=metadata.pretty_name,
            repo=repo,
            place=PLACEHOLDER if repo is None else f"hf://datasets/{repo}",
            shows_texts=shows_texts,
            source=collection.source,
            queries_by=writer_of_queries(collection.source),
            license=licence_of_texts(results),
            sizes=sizes,
            columns=list(tables.all_features),
            soft_labels=results.soft_labels,
            teacher=public_teacher(results.recipe.teacher),
            scale=str(scores.scale),
            lists=lists,
            about_lists=_about_lists(lists) if lists else "",
            list_scale=str(Scale.read(lists.scale)) if lists else "",
            record=collection.record,
            audit=results.audit,
            plot=describe_selection(results.audit),
            examples=_examples(few) if shows_texts else [],
            lowest=scored_lowest(training, scores.of(training.rows)) if shows_texts else [],
            above=others_above(training, ranking) if shows_texts and ranking else [],
            keys=_reproducing(results.recipe),
            environment=describe_environment(),
            jaccard=NEAR_DUPLICATE_JACCARD,
        )
        (new / "README.md").write_text(card, encoding="utf-8")
        save_selection_plot(results.audit, new / "scores.png")
    record = DatasetRecord(results.soft_labels.key, results.audit.key)
    write_result(folder.dataset_record, record, [folder.dataset], others)


def size_category(pairs: int) -> str:
    """The Hub's name for how large a data set is, e.g. `10K<n<100K`."""
    bounds = ["1K", "10K", "100K", "1M", "10M", "100M", "1B"]
    place = next((i for i in range(6) if pairs < 10 ** (3 + i)), 6)
    return f"{bounds[place - 1]}<n<{bounds[place]}" if place else "n<1K"
