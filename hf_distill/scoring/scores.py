"""The teacher's scores of all pairs of a collection."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from accelerate import PartialState

from hf_distill.compute.encode import Advance
from hf_distill.data.collection import Collection, Pairs, Split
from hf_distill.data.keys import blocks, places_of, taken
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import Recipe
from hf_distill.run.folder import RunFolder
from hf_distill.run.scratch import scratch
from hf_distill.run.shards import Shards
from hf_distill.run.stage import fingerprint, stage, written_whole
from hf_distill.scoring.embeddings import EmbeddingTable, embed_collection
from hf_distill.scoring.items import Items, work_once
from hf_distill.teachers.base import (
    JUDGE,
    EmbeddingTeacher,
    PairTeacher,
    Scale,
    Teacher,
    pair_similarity,
)
from hf_distill.teachers.ensemble import combine, normalise_scores

_BLOCK = 8192


@dataclass(frozen=True)
class ScoreStatistics:
    """How the known scores are distributed."""

    mean: float
    sd: float
    median: float
    min: float
    max: float

    @classmethod
    def of(cls, scores: np.ndarray) -> ScoreStatistics:
        """Of `scores` (n,), NaN left out."""
        some = places_of(~np.isnan(scores))
        known, squares = scratch(len(some), np.float64), scratch(len(some), np.float64)
        for here in blocks(len(some)):
            known[here] = scores[some[here]]
        mean = known.mean()
        np.subtract(known, mean, out=squares)
        np.multiply(squares, squares, out=squares)
        low, high = known.min(), known.max()
        median = np.median(known, overwrite_input=True)
        return cls(*map(float, (mean, np.sqrt(squares.mean()), median, low, high)))


@dataclass(frozen=True)
class SoftLabels:
    """`soft_labels/manifest.json`.

    Attributes:
        key: The fingerprint of what the scores depend on.
        teacher: Its name.
        teacher_kind: As in the recipe.
        teacher_identity: The fingerprint of the teacher: weights and settings.
        precision: The precision in which the teacher ran.
        query_prompt, document_prompt: Text before each query and document.
        instruction: What a ranker's own default prompt tells it.
        scale: What the scores mean: `similarity`, `activation`, `range` (null: no bound).
        dimension: Of the teacher's embeddings; null if it has none.
        pairs: How many were scored, over all splits.
        unscored: How many of them the teacher has no score for.
        item: What the teacher worked on: `text` or `pair`, or `item` for an ensemble.
        items: How many unique ones there were.
        items_without_deduplication: How many there were with all repeats.
        seconds: How long it took, from the first text to the last score.
        score: How the scores are distributed; null where there are no pairs.
        parts: Names of the files that hold what the teacher computed.
        collection: The key of the collection that was scored.
    """

    key: str
    teacher: str
    teacher_kind: str
    teacher_identity: str
    precision: str
    query_prompt: str
    document_prompt: str
    instruction: str
    scale: dict[str, Any]
    dimension: int | None
    pairs: int
    unscored: int
    item: str
    items: int
    items_without_deduplication: int
    seconds: float
    score: ScoreStatistics | None
    parts: list[str]
    collection: str = ""


@dataclass(frozen=True)
class Scores:
    """The teacher's scores and embeddings of a collection.

    Attributes:
        record: Who scored what, and how long it took.
        values: (judgements,) float32, in the order of the collection's judgements; NaN where the
            teacher has no score.
        embeddings: The teacher's embeddings; None if it embeds no texts.
        scale: What the scores mean.
    """

    record: SoftLabels
    values: np.ndarray
    embeddings: EmbeddingTable | None
    scale: Scale

    @property
    def key(self) -> str:
        """The fingerprint of what the scores depend on."""
        return self.record.key

    def of(self, rows: slice | np.ndarray) -> np.ndarray:
        """Scores (m,) float32 of the judgements in `rows`."""
        return self.values[rows] if isinstance(rows, slice) else taken(self.values, rows)

    def between(self, queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
        """(n,) float32: the teacher's scores of `queries` (n,) with `documents` (n,), numbers that
        need not belong to a pair. It must embed texts.
        """
        table = self.embeddings
        assert table is not None
        values = np.empty(len(queries), dtype=np.float32)
        for start in range(0, len(queries), _BLOCK):
            some = slice(start, start + _BLOCK)
            values[some] = pair_similarity(
                self.scale.similarity,
                table.of_queries(queries[some]),
                table.of_documents(documents[some]),
            )
        return values

    def summary(self) -> str:
        """What was scored, for a terminal. There is no rate: some of it may have been there."""
        record, score = self.record, self.record.score
        repeats = record.items_without_deduplication - record.items
        prompts = (
            ("query", record.query_prompt),
            ("document", record.document_prompt),
            ("instruction", record.instruction),
        )
        used = ", ".join(f"{name} {text!r}" for name, text in prompts if text) or "none"
        unscored = f"; {record.unscored:,} without a score" if record.unscored else ""
        if score is None:
            return (
                f"Teacher  {record.items:,} unique texts embedded by {record.teacher} "
                f"({record.precision}; {self.scale}; {repeats:,} repeats saved), "
                f"{record.seconds} s\n"
                f"         prompts: {used}"
            )
        return (
            f"Scores   {record.pairs:,} pairs by {record.teacher} ({record.precision}; "
            f"{self.scale}), {record.items:,} unique {record.item}s ({repeats:,} repeats saved), "
            f"{record.seconds} s\n"
            f"         prompts: {used}\n"
            f"         mean {score.mean:.3f}, sd {score.sd:.3f}, min {score.min:.3f}, "
            f"max {score.max:.3f}{unscored}{self._agreement()}"
        )

    def _agreement(self) -> str:
        """How often a judge agrees with the data about what is relevant, for a terminal."""
        if self.scale.similarity != JUDGE:
            return ""
        agrees = int((self.values > 0.5).sum())
        return (
            f"\n         the judge gives {agrees:,} of {len(self.values):,} pairs "
            f"({agrees / len(self.values):.0%}) a grade of 2 or 3: it agrees that they answer the "
            "query"
        )


def shards_of(folder: RunFolder, shared: str | None, item: str = "text") -> Path:
    """Where what a teacher computes for each `item` (`text` or `pair`) is kept: in `shared`, the
    recipe's `teacher_cache`, or in the run's folder.
    """
    return Path(shared) if shared else folder.soft_labels / f"{item}s"


@dataclass(frozen=True)
class _Store:
    """Where what a teacher computes is kept: `shared` between runs, or in the run's folder."""

    folder: RunFolder
    shared: str | None

    def shards(self, item: str) -> Path:
        return shards_of(self.folder, self.shared, item)

    def embed(self, collection: Collection, teacher: Teacher) -> EmbeddingTable:
        return embed_collection(
            collection, cast(EmbeddingTeacher, teacher), self.shards("text"), self.folder.cache
        )


@dataclass(frozen=True)
class Scored:
    """Scores (n,) float32 of pairs, and what was done for them; see `SoftLabels`."""

    values: np.ndarray
    item: str
    items: int
    items_without_deduplication: int
    parts: list[str]


def _by_embeddings(collection: Collection, scale: Scale, table: EmbeddingTable) -> Scored:
    queries, documents = collection.query_numbers, collection.document_numbers
    values = scratch(len(queries), np.float32)
    for start in range(0, len(queries), _BLOCK):
        rows = slice(start, start + _BLOCK)
        values[rows] = pair_similarity(
            scale.similarity, table.of_queries(queries[rows]), table.of_documents(documents[rows])
        )
    return Scored(
        values,
        item="text",
        items=len(table.vectors),
        items_without_deduplication=2 * len(queries)
        + len(collection.searched)
        + len(table.texts)
        + len(table.student_texts),
        parts=list(table.parts),
    )


def _by_pairs(collection: Collection, teacher: PairTeacher, store: _Store) -> Scored:
    queries, documents = collection.query_numbers, collection.document_numbers
    return score_pairs(collection, queries, documents, teacher, store.shards("pair"))


def score_pairs(
    collection: Collection,
    queries: np.ndarray,
    documents: np.ndarray,
    teacher: PairTeacher,
    folder: Path,
) -> Scored:
    """The scores of n pairs of a collection. All processes share the work, and what the shards in
    `folder` hold is not scored again.

    Args:
        collection: Its texts.
        queries, documents: (n,) int64, the numbers of each pair's texts.
        teacher: Scores them.
        folder: Of the shards. Several runs may share it.

    Raises:
        InputError: Scores of another shape, or outside the declared scale.
    """

    def read(places: np.ndarray) -> list[tuple[str, str]]:
        left = collection.query_texts(queries[places])
        return list(zip(left, collection.document_texts(documents[places]), strict=True))

    def score(pairs: list[tuple[str, str]], advance: Advance) -> np.ndarray:
        values = teacher.score(pairs, advance)
        if values.shape != (len(pairs),):
            raise InputError(
                f"the teacher {teacher.name} returned scores of shape {values.shape} for "
                f"{len(pairs)} pairs, expected one score a pair"
            )
        return teacher.scale.check(values, teacher.name).astype(np.float32)

    def around(places: np.ndarray, lengths: np.ndarray) -> contextlib.AbstractContextManager[None]:
        return teacher.working(lengths, queries[places])

    pairs = Items(
        len(queries),
        read,
        "pair",
        lists=queries if teacher.by_query else None,
        least=teacher.shard_pairs,
    )
    worker = fingerprint(teacher.identity, dataclasses.asdict(teacher.prompts))
    stored = work_once(pairs, pairs.keys(), Shards(folder, worker), score, around)
    empty = np.empty(0, dtype=np.float32)
    values = np.concatenate([empty, *(part.values for part in stored.parts)])[stored.places]
    return Scored(
        values[stored.unique],
        item="pair",
        items=len(stored.places),
        items_without_deduplication=pairs.count,
        parts=[part.path.name for part in stored.parts],
    )


def _by_ensemble(
    collection: Collection, members: Sequence[tuple[Teacher, float]], store: _Store
) -> Scored:
    train = collection.rows("train")
    parts = [_scored_by(collection, member, store) for member, _ in members]
    quantiles = [
        normalise_scores(part.values[train].astype(np.float64), part.values.astype(np.float64))
        for part in parts
    ]
    return Scored(
        combine(quantiles, [weight for _, weight in members]).astype(np.float32),
        item="item",
        items=sum(part.items for part in parts),
        items_without_deduplication=sum(part.items_without_deduplication for part in parts),
        parts=[name for part in parts for name in part.parts],
    )


def _scored_by(
    collection: Collection, teacher: Teacher, store: _Store, table: EmbeddingTable | None = None
) -> Scored:
    """Scores by any teacher; `table` holds its embeddings if they are there already."""
    if teacher.members:
        return _by_ensemble(collection, teacher.members, store)
    if teacher.embeds:
        return _by_embeddings(collection, teacher.scale, table or store.embed(collection, teacher))
    if teacher.scores_pairs:
        return _by_pairs(collection, cast(PairTeacher, teacher), store)
    raise InputError(
        f"the teacher {teacher.name} ({type(teacher).__name__}) neither embeds texts nor scores "
        "pairs; a teacher is an EmbeddingTeacher or a PairTeacher of hf_distill.teachers.base"
    )


def scores_beside(
    collection: Collection, model: EmbeddingTeacher, recipe: Recipe, folder: RunFolder
) -> np.ndarray:
    """(judgements,) float32: the scores of a model beside the teacher. Its embeddings are kept in
    shards, like the teacher's.
    """
    return _scored_by(collection, model, _Store(folder, recipe.teacher.teacher_cache)).values


def write_soft_labels(path: Path, pairs: Pairs, scores: np.ndarray) -> None:
    """Write the paper's `teacher_soft_labels.json`: a list of {pair_id, query, document,
    teacher_score}.

    Args:
        path: The file.
        pairs: The pairs.
        scores: Their scores (n,); NaN is written as null.
    """
    numbers = (score for here in blocks(len(scores)) for score in scores[here].tolist())
    begin = "[\n"
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for batch in pairs.batches("pair_id", "query", "document"):
            for values in zip(*batch.values(), strict=True):
                score = next(numbers)
                label = dict(zip(batch, values, strict=True))
                label["teacher_score"] = None if np.isnan(score) else round(score, 6)
                file.write(begin + json.dumps(label, ensure_ascii=False))
                begin = ",\n"
        file.write("\n]\n" if len(pairs) else "[]\n")


def _check_scored(collection: Collection, values: np.ndarray, teacher: str) -> None:
    splits: tuple[Split, ...] = ("train", "test")
    for split in splits:
        scores = values[collection.rows(split)]
        if np.isnan(scores).all():
            raise InputError(
                f"{teacher} has no score for any of the {len(scores)} {split} pairs; check that "
                "its texts are exactly those of the pairs"
            )


def score_collection(
    collection: Collection, teacher: Teacher, recipe: Recipe, folder: RunFolder
) -> Scores:
    """Score every pair with the teacher. All processes share the work.

    The result is kept in `folder.soft_labels` until the pairs or the teacher change. What the
    teacher computed is kept in shards, so an interrupted call continues where it stopped.

    Args:
        collection: The pairs.
        teacher: Scores them.
        recipe: `teacher_cache` and `teacher_kind` are read.
        folder: The run's folder.

    Raises:
        InputError: Embeddings that are not finite, embeddings or scores of another shape than
            declared, scores outside the declared scale, or no score at all for the training or the
            test pairs.
    """
    began = time.perf_counter()
    store = _Store(folder, recipe.teacher.teacher_cache)
    table = store.embed(collection, teacher) if teacher.embeds else None
    path, scores_path = folder.soft_labels / "manifest.json", folder.soft_labels / "scores.npy"
    values: np.ndarray | None = None

    def make(key: str) -> SoftLabels:
        nonlocal values
        scored = _scored_by(collection, teacher, store, table)
        values = teacher.scale.check(scored.values, teacher.name)
        if len(values):
            _check_scored(collection, values, teacher.name)
        record = SoftLabels(
            key=key,
            teacher=teacher.name,
            teacher_kind=recipe.teacher.teacher_kind,
            teacher_identity=fingerprint(teacher.identity),
            precision=teacher.precision,
            query_prompt=teacher.prompts.query,
            document_prompt=teacher.prompts.document,
            instruction=teacher.instruction,
            scale=teacher.scale.record(),
            dimension=table.dimension if table else None,
            pairs=len(values),
            unscored=int(np.isnan(values).sum()),
            item=scored.item,
            items=scored.items,
            items_without_deduplication=scored.items_without_deduplication,
            seconds=round(time.perf_counter() - began, 1),
            score=ScoreStatistics.of(values) if len(values) else None,
            parts=scored.parts,
            collection=collection.key,
        )
        if PartialState().is_main_process:
            with written_whole(scores_path) as temporary:
                np.save(temporary, values)
            if len(values):
                write_soft_labels(folder.soft_labels_json, collection.every_pair(), values)
        return record

    prompts, scale = dataclasses.asdict(teacher.prompts), teacher.scale.record()
    inputs = (collection.key, teacher.identity, prompts, scale)
    files = (scores_path, *([folder.soft_labels_json] if len(collection.judgements) else []))
    record = stage(path, SoftLabels, inputs, make, files, together=True)
    values = np.load(scores_path, mmap_mode="r") if values is None else values
    return Scores(record, values, table, teacher.scale)
