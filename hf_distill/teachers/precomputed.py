"""Scores or embeddings from a file: from another system, from people, or from an earlier run."""

from __future__ import annotations

import dataclasses
import hashlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from hf_distill.compute.encode import Advance
from hf_distill.data.collection import pair_number, text_number
from hf_distill.data.sources.files import read_path
from hf_distill.data.tables.open import open_tables
from hf_distill.data.tables.table import Table, Tables
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import DataArguments, Recipe, TeacherArguments
from hf_distill.run.scratch import in_file
from hf_distill.run.stage import folder_written_whole, sha256_of, stage
from hf_distill.teachers.base import (
    SCALES,
    EmbeddingTeacher,
    PairTeacher,
    Scale,
    declared_range,
    reads,
)

SCORE_COLUMNS, TEXT_COLUMN, EMBEDDING_COLUMN = ("teacher_score", "score"), "text", "embedding"

_BLOCK = 1 << 16
_SAME = 1e-6
"""How far apart two scores of one pair may be and still count as equal."""


def _find(keys: np.ndarray, wanted: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The place of each of `wanted` (n,) in the ascending `keys`, and whether it is there."""
    numbers = np.array(wanted, dtype=np.uint64)
    places = np.minimum(np.searchsorted(keys, numbers), len(keys) - 1)
    return places, keys[places] == numbers


@dataclass(frozen=True, eq=False, kw_only=True)
class PrecomputedScores(PairTeacher):
    """Scores (n,) of pairs. `keys` (n,) uint64, ascending, are the `pair_number` of each."""

    name: str
    identity: tuple[Any, ...]
    scale: Scale
    keys: np.ndarray
    scores: np.ndarray

    def score(self, pairs: list[tuple[str, str]], advance: Advance | None = None) -> np.ndarray:
        """See :meth:`PairTeacher.score`: NaN for a pair that the file does not have."""
        places, has = _find(self.keys, [pair_number(*pair) for pair in pairs])
        if advance:
            advance(len(pairs), 0)
        scores: np.ndarray = np.where(has, self.scores[places], np.float32(np.nan))
        return scores


@dataclass(frozen=True, eq=False, kw_only=True)
class PrecomputedEmbeddings(EmbeddingTeacher):
    """Embeddings of some texts. `keys` (n,) uint64, ascending, are the `text_number` of each, and
    `rows` (n,) int64 its row in `vectors` (n, dimension), float32; of equal keys the first one
    counts. All are memory-mapped. Prompts, if there were any, are part of the embeddings.
    """

    name: str
    identity: tuple[Any, ...]
    scale: Scale
    keys: np.ndarray
    rows: np.ndarray
    vectors: np.ndarray
    dimension: int
    embeds_new_texts = False

    def embed(self, texts: list[str], advance: Advance | None = None) -> np.ndarray:
        """See :meth:`EmbeddingTeacher.embed`.

        Raises:
            InputError: The file has no embedding of a text, or one that is not finite.
        """
        places, has = _find(self.keys, [text_number(text) for text in texts])
        if not has.all():
            raise InputError(
                f"{self.name} has no embedding for {int((~has).sum())} of {len(texts)} texts, e.g. "
                f"{texts[int(has.argmin())][:70]!r}. Every query and document needs one, with "
                "exactly its text"
            )
        if advance:
            advance(len(texts), 0)
        return self.checked(self.vectors[self.rows[places]], texts, "Look at the file")


@reads("teacher_similarity", "teacher_activation", "score_range")
def load_precomputed(recipe: Recipe) -> PrecomputedScores | PrecomputedEmbeddings:
    """Read the file or folder that `teacher` names: embeddings in the columns `text` and
    `embedding`, or scores in any format that a data set can have.

    Raises:
        InputError: There is no such file, it holds neither, a score is not a number or lies outside
            the declared range, embeddings of several sizes, or one pair has two scores.
    """
    path = Path(recipe.teacher.teacher)
    tables = open_tables(path, "teacher", recipe.cache)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    digests = [sha256_of(file) for file in files]
    embedded = [t for t in tables.tables if {TEXT_COLUMN, EMBEDDING_COLUMN} <= set(t.columns)]
    if embedded:
        return _embeddings_of(embedded, recipe, digests)
    return _scores_of(_columns_there(recipe.data, tables), recipe, digests)


def _columns_there(data: DataArguments, tables: Tables) -> DataArguments:
    """Of the recipe's columns, which are those of the data set, the ones that the teacher's tables
    have, too. Every row with a score counts, relevant or not.
    """
    there = {column for table in tables.tables for column in table.columns}
    names = ("query_column", "document_column", "label_column", "score_column", "group_column",
             "source_column", "text_column", "student_text_column")  # fmt: skip
    given = {name: getattr(data, name) for name in names}
    kept: dict[str, Any] = {
        name: column if column in there else None for name, column in given.items()
    }
    kept["score_column"] = kept["score_column"] or next(
        (column for column in SCORE_COLUMNS if column in there), None
    )
    return dataclasses.replace(data, positives="all", **kept)


def _scale_of(arguments: TeacherArguments) -> Scale:
    """The scale of precomputed scores, after the activation."""
    bounds = declared_range(arguments.score_range)
    if arguments.teacher_activation == "sigmoid":
        return Scale("given", "sigmoid", 0.0, 1.0)
    activation = None if arguments.teacher_activation == "auto" else arguments.teacher_activation
    return Scale("given", activation, *(bounds or (-1.0, 1.0)))


def _where(row: Any) -> str:
    """Where a row of a source stands."""
    table, place = row["at"]
    return str(table.where(place))


def _scores_of(data: DataArguments, recipe: Recipe, digests: list[str]) -> PrecomputedScores:
    path, scale = recipe.teacher.teacher, _scale_of(recipe.teacher)
    pairs = read_path(Path(path), "teacher", data, recipe.cache)
    numbers, values, places, parts = array("Q"), array("d"), array("q"), array("L")
    tables: dict[str, Table] = {}
    rows = 0
    with tqdm(pairs.rows, desc="Reading scores", unit=" rows", delay=3, leave=False) as bar:
        for row in bar:
            rows += 1
            query, document, score = row.get("query"), row.get("document"), row.get("score")
            if score is None or query is None or document is None:
                continue
            try:
                numbers.append(pair_number(query.strip(), document.strip()))
                values.append(float(score))
            except (TypeError, ValueError, AttributeError):
                raise InputError(
                    f"--teacher {path}: {_where(row)}: the score is {score!r}; a score is a "
                    "number, query and document are texts"
                ) from None
            table, place = row["at"]
            tables.setdefault(table.name, table)
            parts.append(list(tables).index(table.name))
            places.append(place)
    if not numbers:
        raise InputError(
            f"--teacher {path} is read as {pairs.read_as}, and none of its {rows} rows has a "
            f"score; they stand in a column {' or '.join(SCORE_COLUMNS)}, or name it with "
            f"--score_column. Embeddings stand in {TEXT_COLUMN} and {EMBEDDING_COLUMN}"
        )
    keys, scores = np.array(numbers, dtype=np.uint64), np.array(values)
    if scale.activation == "sigmoid":
        scores = 1 / (1 + np.exp(-scores))
    scores = scale.check(scores, path)
    order = np.argsort(keys, kind="stable")
    keys, scores = keys[order], scores[order]
    same = keys[1:] == keys[:-1]
    contradicts = same & (np.abs(scores[1:] - scores[:-1]) > _SAME)
    if contradicts.any():
        i = int(contradicts.argmax())
        first, second = (
            f"{list(tables.values())[parts[j]].where(places[j])} says {scores[k]:g}"
            for k, j in ((i, order[i]), (i + 1, order[i + 1]))
        )
        raise InputError(
            f"--teacher {path} gives one pair two scores: {first}, {second} "
            f"({int(contradicts.sum())} such pairs); keep one"
        )
    one = np.concatenate([[True], ~same])
    columns = [getattr(data, f"{name}_column") for name in ("query", "document", "score")]
    return PrecomputedScores(
        name=path,
        identity=("precomputed scores", digests, columns, scale.record()),
        scale=scale,
        keys=keys[one],
        scores=scores[one].astype(np.float32),
    )


@dataclass(frozen=True)
class EmbeddingCopy:
    """`cache/embeddings-*.json`: the folder beside it holds the embeddings of a file as arrays."""

    key: str


def _written_embeddings(tables: Iterable[Table], folder: Path, name: str) -> None:
    """Write the embeddings of `tables` to `folder` as float32, row after row, the number of each
    text, these in ascending order, and the first row of each.
    """
    dimension = 0
    with (folder / "vectors").open("wb") as file, (folder / "numbers").open("wb") as numbers:
        for table in tables:
            for place, row in tqdm(table.read(), desc="Reading embeddings", delay=3, leave=False):
                text, values = row.get(TEXT_COLUMN), row.get(EMBEDDING_COLUMN)
                try:
                    vector = np.asarray(values or (), dtype=np.float32)
                    number = text_number((text or "").strip())
                except (TypeError, ValueError, AttributeError):
                    raise InputError(
                        f"--teacher {name}: {table.where(place)}: {TEXT_COLUMN} must be a text, "
                        f"and {EMBEDDING_COLUMN} a list of numbers"
                    ) from None
                dimension = dimension or vector.size
                if not vector.size or vector.shape != (dimension,):
                    raise InputError(
                        f"--teacher {name}: {table.where(place)} has an embedding of {vector.size} "
                        f"dimensions, the first row one of {dimension}; all need the same"
                    )
                numbers.write(np.uint64(number).tobytes())
                file.write(vector.tobytes())
    if not dimension:
        raise InputError(f"--teacher {name} has no rows; look at the file")
    every = np.memmap(folder / "numbers", dtype=np.uint64, mode="r")
    with (folder / "keys").open("w+b") as file:
        keys = in_file(file, np.uint64, every.shape)
    keys[:] = every
    keys.sort()
    with (folder / "rows").open("w+b") as file:
        rows = in_file(file, np.int64, every.shape)
    for stop in range(len(every), 0, -_BLOCK):
        places = np.arange(stop - 1, max(stop - _BLOCK, 0) - 1, -1)
        rows[np.searchsorted(keys, every[places])] = places  # of equal ones the last counts


def _embeddings_of(
    tables: list[Table], recipe: Recipe, digests: list[str]
) -> PrecomputedEmbeddings:
    arguments: TeacherArguments = recipe.teacher
    declared = arguments.teacher_similarity == "declared"
    similarity = "cosine" if declared else arguments.teacher_similarity
    content = hashlib.sha256("".join(digests).encode()).hexdigest()[:16]
    kept = recipe.cache / f"embeddings-{content}"

    def make(key: str) -> EmbeddingCopy:
        with folder_written_whole(kept) as folder:
            _written_embeddings(tables, folder, arguments.teacher)
        return EmbeddingCopy(key)

    stage(kept.with_suffix(".json"), EmbeddingCopy, ["ascending", *digests], make, [kept])
    keys = np.memmap(kept / "keys", dtype=np.uint64, mode="r")
    rows = np.memmap(kept / "rows", dtype=np.int64, mode="r")
    vectors = np.memmap(kept / "vectors", dtype=np.float32, mode="r").reshape(len(keys), -1)
    return PrecomputedEmbeddings(
        name=arguments.teacher,
        identity=("precomputed embeddings", digests, similarity),
        scale=SCALES[similarity],
        keys=keys,
        rows=rows,
        vectors=vectors,
        dimension=vectors.shape[1],
    )
