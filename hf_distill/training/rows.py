"""What the student is trained on: rows that name texts by number, and where these are looked up.

A row of a run holds only numbers. A row of a library user may hold the texts and the teacher's
embeddings themselves. `examples` turns both into one form.

| column | by number | with texts |
|---|---|---|
| `query`, `document` | int | str |
| `teacher_score` | float | float |
| `weight` (optional) | float | float |
| `weight_ranking` (optional: in place of `weight`, but for alignment) | float | float |
| `relabelled_from` (optional: the document before; -1 or None: the same) | int | str or None |
| `negatives` (optional, as many in each row) | (k,) int, documents | (k,) str |
| `negative_scores` (with `negatives`, optional) | (k,) float | (k,) float |
| `list_scores` (with `negatives`, optional) | (1 + k,) float, the ranker's | the same |
| `row` (optional: the pair has texts of the pool beside it) | int | int |
| `source` (optional: where the pair comes from) | str | str |
| `teacher_query_embedding`, `teacher_document_embedding` | looked up | (D,) float, optional |
| `teacher_negative_embeddings` | looked up | (k, D) float, optional |

A row without a pair is a text that is aligned:

| column | by number | with texts |
|---|---|---|
| `text` | int | str, what the teacher has read |
| `student_text` (optional: the student reads another text, too) | looked up | str |
| `teacher_text_embedding` | looked up | (D,) float |
| `row`, `source` (optional) | as above | as above |
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from torch import Tensor

from hf_distill.data.collection import Collection, Pairs, text_id
from hf_distill.data.further_texts import FurtherTexts
from hf_distill.data.keys import blocks, numbers_from, places_of, taken
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import Recipe
from hf_distill.recipe.config import DistillationConfig
from hf_distill.run.folder import RunFolder
from hf_distill.run.scratch import scratch
from hf_distill.scoring.embeddings import EmbeddingTable
from hf_distill.scoring.lists import ScoredLists
from hf_distill.scoring.ranking import Ranking
from hf_distill.scoring.scores import Scores
from hf_distill.selection.relabelled import Relabelled
from hf_distill.teachers.base import EmbeddingTeacher, Teacher
from hf_distill.training.in_batch import Sides
from hf_distill.training.lists import of_lists
from hf_distill.training.sources import NO_SOURCE, Sources, sources_of
from hf_distill.training.texts import (
    Drawn,
    Pool,
    PoolPlan,
    load_pool,
    student_words,
    texts_alone,
    texts_of_pairs,
    wanted_pool,
)

_BLOCK = 8192
"""Pairs at a time."""

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


class Chosen(Protocol):
    """Which training rows are used: a `Selection` of pairs, or `EveryText`."""

    @property
    def key(self) -> str: ...
    @property
    def kept(self) -> np.ndarray: ...
    @property
    def weight(self) -> np.ndarray | None: ...
    @property
    def weight_ranking(self) -> np.ndarray | None: ...
    @property
    def relabelled(self) -> np.ndarray | None: ...
    @property
    def relabelled_score(self) -> np.ndarray | None: ...


@dataclass(frozen=True)
class EveryText:
    """All training texts, where there are no pairs to choose from.

    Attributes:
        key: The fingerprint of what they depend on.
        kept: (n,) int64, all their places.
        weight, weight_ranking, relabelled, relabelled_score: They have none.
    """

    key: str
    kept: np.ndarray
    weight: np.ndarray | None = None
    weight_ranking: np.ndarray | None = None
    relabelled: np.ndarray | None = None
    relabelled_score: np.ndarray | None = None


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
    @property
    def lists(self) -> ScoredLists | None: ...
    @property
    def further_texts(self) -> FurtherTexts | None: ...


def training_rows(earlier: Earlier, selection: Chosen, student: SentenceTransformer) -> Rows:
    """What `student` is trained on: the pairs of `selection`, with the recipe's hard negatives and
    pool; or the texts, where there are no pairs. The pool is made and embedded here.

    Raises:
        InputError: Hard negatives are wanted and a pair has none, or the student's vocabulary or
            the texts hold no words for the pool.
    """
    recipe, collection, scores = earlier.recipe, earlier.collection, earlier.scores
    if collection.record.texts is not None:
        return _rows_of_texts(earlier, selection, student)
    train = collection.pairs("train").take(selection.kept)
    validation = collection.pairs("validation")
    columns: dict[str, Any] = {}
    of_validation: dict[str, Any] = {}
    sources = sources_of(train)
    if sources.names != (NO_SOURCE,):
        columns["source"] = sources.column
    for name in ("weight", "weight_ranking"):
        if (weight := getattr(selection, name)) is not None:
            columns[name] = taken(weight, selection.kept)
    new = Relabelled.of(train, selection.kept, selection.relabelled, selection.relabelled_score)
    if new is not None:
        columns |= new.columns(scores)
    wanted = max(stage.hard_negatives_per_pair for stage in recipe.stages)
    if wanted and earlier.lists is not None:
        places = len(collection.pairs("train")) + np.arange(len(validation))
        columns |= of_lists(earlier.lists, selection.kept, wanted, recipe, new)
        of_validation = of_lists(earlier.lists, places, wanted, recipe)
        if not earlier.teacher.embeds and recipe.lists.ranker is None:
            for every in (columns, of_validation):
                every["negative_scores"] = every["list_scores"][:, 1:]
    elif wanted:
        listed = listed_negatives(train, scores, wanted)
        columns |= hard_negatives(listed, earlier.ranking, selection.kept, wanted, new)
    pool = _pool(earlier, selection, texts_of_pairs(train), student)
    if pool is not None:
        columns["row"] = numbers_from(0, len(train))
    return Rows(
        train=number_rows(train, scores.of(train.rows), columns),
        validation=number_rows(validation, scores.of(validation.rows), of_validation),
        lookup=Lookup(collection, scores.embeddings, pool),
        selection=selection.key,
    )


def _pool(
    earlier: Earlier,
    selection: Chosen,
    texts: Sequence[Drawn],
    student: SentenceTransformer,
) -> Pool | None:
    """The pool of passages of `texts`, made and embedded; None without one."""
    recipe, folder = earlier.recipe, earlier.folder.pool
    size = wanted_pool(len(selection.kept), recipe.stages)
    if not size:
        return None
    further = earlier.further_texts
    if further is not None:
        texts = [*texts, Drawn(np.arange(len(further.texts)), further.at, "document")]
    plan = PoolPlan(
        texts=texts,
        key=selection.key if further is None else f"{selection.key} {further.record.key}",
        size=size,
        words=student_words(student),
        seed=recipe.seed,
    )
    shards = Path(recipe.teacher.teacher_cache or folder / "shards")
    # check_objective has refused any teacher that does not embed
    return load_pool(plan, cast(EmbeddingTeacher, earlier.teacher), folder, shards)


def _rows_of_texts(earlier: Earlier, selection: Chosen, student: SentenceTransformer) -> Rows:
    """Rows of texts alone: their numbers."""
    collection = earlier.collection
    train, validation = (collection.text_numbers(split) for split in ("train", "validation"))
    columns: dict[str, Any] = {"text": train}
    sources = Sources.of(collection.texts, train)
    if sources.names != (NO_SOURCE,):
        columns["source"] = sources.column
    pool = _pool(earlier, selection, texts_alone(collection), student)
    if pool is not None:
        columns["row"] = np.arange(len(train))
    return Rows(
        train=_rows_in(pa.table(columns)),
        validation=_rows_in(pa.table({"text": validation})),
        lookup=Lookup(collection, earlier.scores.embeddings, pool),
        selection=selection.key,
    )


def rows_of_stage(rows: Dataset, config: DistillationConfig) -> Dataset:
    """`rows` with as many hard negatives as a stage of the training wants: the first ones."""
    if "negatives" not in rows.column_names:
        return rows
    table, wanted = rows.with_format("arrow")[:], config.hard_negatives_per_pair
    for name in {"negatives", "negative_scores", "list_scores"} & {*table.column_names}:
        most = wanted + (name == "list_scores" and wanted > 0)
        values = pc.list_flatten(table[name]).to_numpy().reshape(len(table), -1)[:, :most]
        place = table.schema.get_field_index(name)
        table = table.remove_column(place)
        if most:
            lists = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
            table = table.add_column(place, name, lists)
    return _rows_in(table)


def _rows_in(table: pa.Table) -> Dataset:
    """The rows of `table`. Its fingerprint is given, because `datasets` would serialise the whole
    table to find one.
    """
    digest = hashlib.sha256()
    for column in table.columns:
        for chunk in column.chunks:
            for part in filter(None, chunk.buffers()):
                digest.update(part)
    return Dataset(table, fingerprint=digest.hexdigest()[:16]).with_format("numpy")


def number_rows(pairs: Pairs, scores: np.ndarray, columns: Mapping[str, Any]) -> Dataset:
    """Rows that name the texts of `pairs` by number.

    Args:
        pairs: n pairs.
        scores: (n,) float32, the teacher's. A pair with NaN is left out: the teacher has not scored
            it. (The selection has dropped and counted such training pairs.)
        columns: Further columns, (n,) or (n, k) each, or an Arrow array (n,).
    """
    all_columns = {
        "query": pairs.queries,
        "document": pairs.documents,
        "teacher_score": np.asarray(scores, np.float32),
        **columns,
    }
    scored = ~np.isnan(all_columns["teacher_score"])
    rows = None if scored.all() else places_of(scored)

    def arrow(values: Any) -> pa.Array:
        """Arrow's view of `values`: nothing is copied if all pairs are scored."""
        if isinstance(values, pa.Array):
            return values if rows is None else values.take(pa.array(rows))
        values = values if rows is None else taken(values, rows)
        if values.ndim == 1:
            return pa.array(values)
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])

    return _rows_in(pa.table({name: arrow(values) for name, values in all_columns.items()}))


@dataclass(frozen=True)
class Negatives:
    """Documents that do not answer n queries.

    Attributes:
        documents: (n, k) int64, document numbers, best first; -1: none.
        scores: (n, k) float32, the teacher's; NaN: none, or unknown.
    """

    documents: np.ndarray
    scores: np.ndarray


def listed_negatives(pairs: Pairs, scores: Scores, number: int) -> Negatives:
    """The candidates that the data lists beside the queries of `pairs`, `number` at most for each:
    those with the highest given score, then those without one in the order of the data. Documents
    that the data calls relevant are left out.

    The teacher's scores come from its embeddings. They are unknown if it embeds no texts.
    """
    shape = len(pairs), number
    result = Negatives(scratch(shape, np.int64), scratch(shape, np.float32))
    result.documents[:], result.scores[:] = -1, np.nan
    for here in blocks(len(pairs), _BLOCK) if len(pairs.collection.candidates) else ():
        queries = pairs.queries[here]
        lists = pairs.collection.lists(queries)
        pair = np.repeat(np.arange(len(queries)), np.diff(lists.starts))
        negative = np.flatnonzero(lists.grades <= 0)
        given = np.nan_to_num(-lists.scores[negative], nan=np.inf)
        order = negative[np.lexsort((given, pair[negative]))]
        pair = pair[order]
        place = np.arange(len(pair)) - np.searchsorted(pair, pair)
        pair, place, order = (values[place < number] for values in (pair, place, order))
        documents = lists.documents[order]
        result.documents[here][pair, place] = documents
        if scores.embeddings is not None:
            result.scores[here][pair, place] = scores.between(queries[pair], documents)
    return result


def hard_negatives(
    listed: Negatives,
    ranking: Ranking | None,
    places: np.ndarray,
    number: int,
    new: Relabelled | None = None,
) -> dict[str, np.ndarray]:
    """`negatives` (n, number) int64, documents, and `negative_scores` (n, number) float32: first
    those that the data lists, then the teacher's best other documents, best first. The last one is
    repeated where there are fewer.

    Args:
        listed: Of the n pairs.
        ranking: Of all training pairs; None if the teacher embeds no texts.
        places: (n,) int64, which of the training pairs these are.
        number: How many for each.
        new: The documents of relabelled pairs, which are no negatives of their queries.

    Raises:
        InputError: A pair has neither.
    """
    shape = len(places), number
    chosen, chosen_scores = scratch(shape, np.int64), scratch(shape, np.float32)
    empty = scratch(len(places), np.bool_)
    for some in blocks(len(places), _BLOCK):
        documents, scores = listed.documents[some], listed.scores[some]
        if ranking is not None:
            documents = np.concatenate([documents, ranking.negatives[places[some]]], axis=1)
            scores = np.concatenate([scores, ranking.negative_scores[places[some]]], axis=1)
        repeats = np.tril(documents[:, :, None] == documents[:, None, :], k=-1).any(axis=2)
        usable = (documents >= 0) & ~repeats
        if new is not None:
            usable &= ~new.answers(documents, some)
        last = usable.sum(axis=1) - 1
        best = np.argsort(~usable, axis=1, kind="stable")
        at = np.take_along_axis(best, np.minimum(np.arange(number), last[:, None]), axis=1)
        chosen[some] = np.take_along_axis(documents, at, axis=1)
        chosen_scores[some] = np.take_along_axis(scores, at, axis=1)
        empty[some] = last < 0
    if (none := np.flatnonzero(empty)).size:
        raise InputError(
            f"--hard_negatives_per_pair {number}: {len(none):,} of {len(places):,} pairs, e.g. "
            f"training pair {places[none[0]]}, have no hard negative: the data lists none beside "
            "the query, and "
            + ("this teacher embeds no texts" if ranking is None else "there is no other document")
            + " to find one; set it to 0"
        )
    return {"negatives": chosen, "negative_scores": chosen_scores}


def check_negatives(collection: Collection, teacher: Teacher, recipe: Recipe) -> None:
    """Raise InputError if hard negatives are wanted, and neither the data nor the teacher has any.
    Called before the scoring.
    """
    wanted = recipe.training.hard_negatives_per_pair
    if recipe.lists.candidates:
        return
    if wanted and not teacher.embeds and not len(collection.candidates):
        raise InputError(
            f"--hard_negatives_per_pair {wanted}: hard negatives come from the teacher's ranking "
            f"of a pool or from lists in the data, but {teacher.name} embeds no texts, and "
            f"{collection.source.name} lists no documents beside its queries; mine some with "
            "--candidates bm25, or set it to 0"
        )


@dataclass(frozen=True)
class Examples:
    """B pairs, or texts alone, whichever form their rows had.

    Attributes:
        queries, documents: B texts each; none of texts alone.
        negatives: B x k texts, those of each pair in turn.
        sides: What belongs to the texts.
        rows: (B,) int64, the numbers of the rows; None if no texts of the pool belong to them.
        texts: Texts alone: B of the teacher, then B of the student if it reads others.
        text_embedding: (B or 2 B, D), the teacher's embedding of each; None of pairs.
    """

    queries: list[str]
    documents: list[str]
    negatives: list[str]
    sides: Sides
    rows: np.ndarray | None
    texts: list[str] = field(default_factory=list)
    text_embedding: Tensor | None = None


def key_of(text: str) -> int:
    """A signed 64-bit key of a text: equal texts have equal keys."""
    return int(text_id(text), 16) - 2**63


def examples(features: Sequence[Mapping[str, Any]], lookup: Lookup) -> Examples:
    """The pairs in `features`, rows of either form.

    Raises:
        InputError: A column is missing, or the rows hold numbers and there is no collection.
    """
    columns = {name: [row[name] for row in features] for name in features[0]}
    if "text" in columns:
        return _alone(columns, lookup)
    if missing := set(NEEDED) - set(columns):
        raise InputError(
            f"the training rows have no column {', '.join(sorted(missing))}; they have "
            f"{', '.join(columns)}"
        )
    common = {"teacher_score": _floats(columns["teacher_score"])}
    for name, column in (
        ("weight", "weight"),
        ("weight_ranking", "weight_ranking"),
        ("negative_score", "negative_scores"),
        ("list_score", "list_scores"),
    ):
        if column in columns:
            common[name] = _floats(columns[column])
    rows = np.asarray(columns["row"]) if "row" in columns else None
    read = _with_texts if isinstance(columns["query"][0], str) else _by_number
    queries, documents, negatives, sides = read(columns, lookup)
    return Examples(queries, documents, negatives, Sides.of({**common, **sides}), rows)


def _alone(columns: Mapping[str, list[Any]], lookup: Lookup) -> Examples:
    """Rows of texts alone. What the student reads has the teacher's embedding of its text."""
    if isinstance(columns["text"][0], str):
        if "teacher_text_embedding" not in columns:
            raise InputError(
                "the training rows hold texts and no teacher_text_embedding to align them with; "
                f"they have {', '.join(columns)}"
            )
        texts, others = list(columns["text"]), list(columns.get("student_text", []))
        embedding = _floats(columns["teacher_text_embedding"])
    else:
        numbers = np.asarray(columns["text"])
        collection, embeddings = lookup.collection, lookup.embeddings
        if collection is None or embeddings is None:
            raise InputError(
                f"the training rows name their texts by number (text {columns['text'][0]!r}); pass "
                "the trainer a lookup with their collection and the teacher's embeddings"
            )
        parallel = collection.record.texts is not None and collection.record.texts.parallel
        texts = collection.teacher_texts(numbers)
        others = collection.student_texts(numbers) if parallel else []
        embedding = torch.from_numpy(embeddings.of_texts(numbers))
    return Examples(
        queries=[],
        documents=[],
        negatives=[],
        sides=Sides.none(),
        rows=np.asarray(columns["row"]) if "row" in columns else None,
        texts=texts + others,
        text_embedding=embedding.repeat(2, 1) if others else embedding,
    )


_Read = tuple[list[str], list[str], list[str], dict[str, Tensor]]
"""Texts of queries, documents and hard negatives, and the side columns that depend on them."""


def _floats(values: list[Any]) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def _by_number(columns: dict[str, list[Any]], lookup: Lookup) -> _Read:
    """Read rows by number, as the student reads them. Each document of a collection is unique, so
    its number is its key; that of a query is the number of the first one with its text.
    """
    if lookup.collection is None:
        raise InputError(
            f"the training rows name their texts by number (query {columns['query'][0]!r}); pass "
            "the trainer a lookup with their collection"
        )
    queries, documents = np.asarray(columns["query"]), np.asarray(columns["document"])
    negatives = np.asarray(columns.get("negatives", [[]] * len(queries)), dtype=np.int64)
    every_document = np.concatenate([documents, negatives.ravel()])
    texts = lookup.collection.document_texts(every_document)
    sides = {
        "query_key": torch.from_numpy(lookup.collection.first_of_text[queries]),
        "document_key": torch.from_numpy(documents),
    }
    if "relabelled_from" in columns:
        before = np.asarray(columns["relabelled_from"])
        sides["old_document_key"] = torch.from_numpy(np.where(before < 0, documents, before))
    if negatives.size:
        sides["negative_key"] = torch.from_numpy(negatives)
    if lookup.embeddings is not None:
        vectors = torch.from_numpy(lookup.embeddings.of_documents(every_document))
        sides["query_embedding"] = torch.from_numpy(lookup.embeddings.of_queries(queries))
        sides["document_embedding"] = vectors[: len(documents)]
        if negatives.size:
            sides["negative_embedding"] = vectors[len(documents) :].view(*negatives.shape, -1)
    pairs = len(documents)
    return lookup.collection.student_queries(queries), texts[:pairs], texts[pairs:], sides


def _with_texts(columns: dict[str, list[Any]], lookup: Lookup) -> _Read:
    """Read rows that hold their texts, and the teacher's embeddings if there are any."""
    negatives = [[str(text) for text in row] for row in columns.get("negatives", ())]
    sides = {
        f"{name}_key": torch.tensor([key_of(text) for text in columns[name]])
        for name in ("query", "document")
    }
    if "relabelled_from" in columns:
        before = zip(columns["relabelled_from"], columns["document"], strict=True)
        sides["old_document_key"] = torch.tensor([key_of(old or own) for old, own in before])
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
