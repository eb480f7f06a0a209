"""What the student is trained on: rows that name texts by number, and where these are looked up.

A row of a run holds only numbers. A row of a library user may hold the texts and the teacher's
embeddings themselves. `examples` turns both into one form.

| column | by number | with texts |
|---|---|---|
| `query`, `document` | int | str |
| `teacher_score` | float | float |
| `weight` (optional) | float | float |
| `negatives` (optional, as many in each row) | (k,) int, documents | (k,) str |
| `negative_scores` (with `negatives`) | (k,) float | (k,) float |
| `row` (optional: the pair has texts of the pool beside it) | int | int |
| `source` (optional: where the pair comes from) | str | str |
| `teacher_query_embedding`, `teacher_document_embedding` | looked up | (D,) float, optional |
| `teacher_negative_embeddings` | looked up | (k, D) float, optional |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from torch import Tensor

from hf_distill.data.collection import Collection, Pairs, text_id
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import Recipe
from hf_distill.run.folder import RunFolder
from hf_distill.scoring.embeddings import EmbeddingTable
from hf_distill.scoring.ranking import Ranking
from hf_distill.scoring.scores import Scores
from hf_distill.selection.select import Selection
from hf_distill.teachers.base import EmbeddingTeacher, Teacher
from hf_distill.training.in_batch import Sides
from hf_distill.training.sources import NO_SOURCE, sources_of
from hf_distill.training.texts import Pool, PoolPlan, load_pool, pool_size, student_words

NEEDED = ("query", "document", "teacher_score")
"""Columns of every training row."""


@dataclass(frozen=True)
class Lookup:
    """Where the numbers in a row are looked up.

    Attributes:
        collection: The texts of rows by number; None if the rows hold their texts.
        embeddings: The teacher's embeddings of these; None if it embeds no texts.
        pool: Further texts to align; None if there are none.
    """

    collection: Collection | None = None
    embeddings: EmbeddingTable | None = None
    pool: Pool | None = None


@dataclass(frozen=True)
class Rows:
    """Everything that a training reads.

    Attributes:
        train: The selected pairs, by number.
        validation: The pairs of the validation loss, by number; may be empty.
        lookup: Where the numbers are looked up.
        selection: The key of the selection.
    """

    train: Dataset
    validation: Dataset
    lookup: Lookup
    selection: str


class Earlier(Protocol):
    """The results that `training_rows` reads; `hf_distill.pipeline.Run` has them."""

    recipe: Recipe
    folder: RunFolder

    @property
    def teacher(self) -> Teacher: ...
    @property
    def collection(self) -> Collection: ...
    @property
    def scores(self) -> Scores: ...
    @property
    def ranking(self) -> Ranking | None: ...


def training_rows(earlier: Earlier, selection: Selection, student: SentenceTransformer) -> Rows:
    """What `student` is trained on: the pairs of `selection`, with the recipe's hard negatives and
    pool. The pool is made and embedded here.

    Raises:
        InputError: Hard negatives are wanted and a pair has none, or the student's vocabulary or
            the texts hold no words for the pool.
    """
    recipe, collection, scores = earlier.recipe, earlier.collection, earlier.scores
    train = collection.pairs("train").take(selection.kept)
    validation = collection.pairs("validation")
    columns: dict[str, np.ndarray] = {}
    sources = sources_of(train)
    if sources.names != (NO_SOURCE,):
        columns["source"] = sources.column
    if selection.weight is not None:
        columns["weight"] = selection.weight[selection.kept]
    if wanted := recipe.training.hard_negatives_per_pair:
        columns |= hard_negatives(earlier.ranking, selection.kept, wanted)
    pool = None
    if recipe.training.texts_per_pair:
        columns["row"] = np.arange(len(train))
        plan = PoolPlan(
            pairs=train,
            key=selection.key,
            size=pool_size(len(train), recipe.training),
            words=student_words(student),
            seed=recipe.seed,
        )
        folder = earlier.folder.pool
        shards = Path(recipe.teacher.teacher_cache or folder / "shards")
        # check_objective has refused any teacher that does not embed
        pool = load_pool(plan, cast(EmbeddingTeacher, earlier.teacher), folder, shards)
    return Rows(
        train=number_rows(train, scores.of(train.rows), columns),
        validation=number_rows(validation, scores.of(validation.rows), {}),
        lookup=Lookup(collection, scores.embeddings, pool),
        selection=selection.key,
    )


def number_rows(pairs: Pairs, scores: np.ndarray, columns: Mapping[str, np.ndarray]) -> Dataset:
    """Rows that name the texts of `pairs` by number.

    Args:
        pairs: n pairs.
        scores: (n,) float32, the teacher's. A pair with NaN is left out: the teacher has not scored
            it. (The selection has dropped and counted such training pairs.)
        columns: Further columns, (n,) or (n, k) each.
    """
    all_columns = {
        "query": pairs.queries,
        "document": pairs.documents,
        "teacher_score": np.asarray(scores, np.float32),
        **columns,
    }
    scored = ~np.isnan(all_columns["teacher_score"])

    def arrow(values: np.ndarray) -> pa.Array:
        values = values[scored]
        if values.ndim == 1:
            return pa.array(values)
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])

    table = pa.table({name: arrow(values) for name, values in all_columns.items()})
    return Dataset(table).with_format("numpy")


def hard_negatives(
    ranking: Ranking | None, places: np.ndarray, number: int
) -> dict[str, np.ndarray]:
    """`negatives` (n, number) int64, documents, and `negative_scores` (n, number) float32: the
    teacher's best other documents, best first. The last one is repeated where there are fewer.

    Args:
        ranking: Of all training pairs.
        places: (n,) int64, which of them.
        number: How many for each.

    Raises:
        InputError: The teacher embeds no texts, so there is no ranking; or a pair has no other
            document.
    """
    flag = f"--hard_negatives_per_pair {number}"
    if ranking is None:
        raise InputError(
            f"{flag}: hard negatives come from the teacher's ranking of a pool, and this teacher "
            "embeds no texts; set it to 0"
        )
    there = (ranking.negatives[places] >= 0).sum(axis=1)
    if (none := np.flatnonzero(there == 0)).size:
        raise InputError(
            f"{flag}: {len(none):,} of {len(places):,} pairs, e.g. training pair "
            f"{places[none[0]]}, have no other document to use as a hard negative; set it to 0"
        )
    columns = np.minimum(np.arange(number), there[:, None] - 1)
    return {
        "negatives": np.take_along_axis(ranking.negatives[places], columns, axis=1),
        "negative_scores": np.take_along_axis(ranking.negative_scores[places], columns, axis=1),
    }


@dataclass(frozen=True)
class Examples:
    """B pairs, whichever form their rows had.

    Attributes:
        queries, documents: B texts each.
        negatives: B x k texts, those of each pair in turn.
        sides: What belongs to the texts.
        rows: (B,) int64, the numbers of the rows; None if no texts of the pool belong to them.
    """

    queries: list[str]
    documents: list[str]
    negatives: list[str]
    sides: Sides
    rows: np.ndarray | None


def key_of(text: str) -> int:
    """A signed 64-bit key of a text: equal texts have equal keys."""
    return int(text_id(text), 16) - 2**63


def examples(features: Sequence[Mapping[str, Any]], lookup: Lookup) -> Examples:
    """The pairs in `features`, rows of either form.

    Raises:
        InputError: A column is missing, or the rows hold numbers and there is no collection.
    """
    columns = {name: [row[name] for row in features] for name in features[0]}
    if missing := set(NEEDED) - set(columns):
        raise InputError(
            f"the training rows have no column {', '.join(sorted(missing))}; they have "
            f"{', '.join(columns)}"
        )
    common = {"teacher_score": _floats(columns["teacher_score"])}
    for name, column in (("weight", "weight"), ("negative_score", "negative_scores")):
        if column in columns:
            common[name] = _floats(columns[column])
    rows = np.asarray(columns["row"]) if "row" in columns else None
    read = _with_texts if isinstance(columns["query"][0], str) else _by_number
    queries, documents, negatives, sides = read(columns, lookup)
    return Examples(queries, documents, negatives, Sides.of({**common, **sides}), rows)


_Read = tuple[list[str], list[str], list[str], dict[str, Tensor]]
"""Texts of queries, documents and hard negatives, and the side columns that depend on them."""


def _floats(values: list[Any]) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def _by_number(columns: dict[str, list[Any]], lookup: Lookup) -> _Read:
    """Read rows by number. Each text of a collection is unique, so its number is its key."""
    if lookup.collection is None:
        raise InputError(
            f"the training rows name their texts by number (query {columns['query'][0]!r}); pass "
            "the trainer a lookup with their collection"
        )
    queries, documents = np.asarray(columns["query"]), np.asarray(columns["document"])
    negatives = np.asarray(columns.get("negatives", [[]] * len(queries)), dtype=np.int64)
    every_document = np.concatenate([documents, negatives.ravel()])
    texts = lookup.collection.document_texts(every_document)
    sides = {"query_key": torch.from_numpy(queries), "document_key": torch.from_numpy(documents)}
    if negatives.size:
        sides["negative_key"] = torch.from_numpy(negatives)
    if lookup.embeddings is not None:
        vectors = torch.from_numpy(lookup.embeddings.of_documents(every_document))
        sides["query_embedding"] = torch.from_numpy(lookup.embeddings.of_queries(queries))
        sides["document_embedding"] = vectors[: len(documents)]
        if negatives.size:
            sides["negative_embedding"] = vectors[len(documents) :].view(*negatives.shape, -1)
    pairs = len(documents)
    return lookup.collection.query_texts(queries), texts[:pairs], texts[pairs:], sides


def _with_texts(columns: dict[str, list[Any]], lookup: Lookup) -> _Read:
    """Read rows that hold their texts, and the teacher's embeddings if there are any."""
    negatives = [[str(text) for text in row] for row in columns.get("negatives", ())]
    sides = {
        f"{name}_key": torch.tensor([key_of(text) for text in columns[name]])
        for name in ("query", "document")
    }
    if negatives:
        sides["negative_key"] = torch.tensor([[key_of(text) for text in row] for row in negatives])
    for name, column in (
        ("query_embedding", "teacher_query_embedding"),
        ("document_embedding", "teacher_document_embedding"),
        ("negative_embedding", "teacher_negative_embeddings"),
    ):
        if column in columns:
            sides[name] = _floats(columns[column])
    queries, documents = ([str(text) for text in columns[name]] for name in ("query", "document"))
    return queries, documents, [text for row in negatives for text in row], sides
