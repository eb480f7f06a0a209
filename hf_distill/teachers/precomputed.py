"""Scores or embeddings from a file: from another system, from people, or from an earlier run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from tqdm.auto import tqdm

from hf_distill.compute.encode import Advance
from hf_distill.data.collection import pair_number, text_number
from hf_distill.data.sources.files import load_files
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import Recipe, TeacherArguments
from hf_distill.run.stage import sha256_of
from hf_distill.teachers.base import SCALES, EmbeddingTeacher, PairTeacher, Scale, reads

SCORE_COLUMN, TEXT_COLUMN, EMBEDDING_COLUMN = "teacher_score", "text", "embedding"

_SAME = 1e-6
"""How far apart two scores of one pair may be and still count as equal."""

_READ = 1000


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
    `rows` (n,) its row in `table`. Prompts, if there were any, are part of the embeddings.
    """

    name: str
    identity: tuple[Any, ...]
    scale: Scale
    keys: np.ndarray
    rows: np.ndarray
    table: Dataset
    dimension: int
    embeds_new_texts = False

    def embed(self, texts: list[str], advance: Advance | None = None) -> np.ndarray:
        """See :meth:`EmbeddingTeacher.embed`.

        Raises:
            InputError: The file has no embedding of a text, one of another dimension, or one that
                is not finite.
        """
        places, has = _find(self.keys, [text_number(text) for text in texts])
        if not has.all():
            raise InputError(
                f"{self.name} has no embedding for {int((~has).sum())} of {len(texts)} texts, e.g. "
                f"{texts[int(has.argmin())][:70]!r}. Every query and document needs one, with "
                "exactly its text"
            )
        embeddings = self.table[self.rows[places].tolist()][EMBEDDING_COLUMN]
        sizes = {len(row or ()) for row in embeddings}
        if sizes - {self.dimension}:
            raise InputError(
                f"{self.name}: embeddings have {', '.join(map(str, sorted(sizes)))} dimensions, "
                f"but the first row has {self.dimension}; all need the same"
            )
        if advance:
            advance(len(texts), 0)
        return self.checked(np.asarray(embeddings, dtype=np.float32), texts, "Look at the file")


@reads("teacher_similarity", "teacher_activation", "score_range")
def load_precomputed(recipe: Recipe) -> PrecomputedScores | PrecomputedEmbeddings:
    """Read the file that `teacher` names. It has `teacher_score` beside the recipe's query and
    document columns, or `embedding` beside `text`.

    Raises:
        InputError: There is no such file, it has none of these columns, a score is not a number or
            lies outside the declared range (with its row), or one pair has two scores.
    """
    path = Path(recipe.teacher.teacher)
    table = load_files(path, recipe.cache, "teacher")
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    digests = [sha256_of(file) for file in files]
    pair_columns = [recipe.data.query_column or "query", recipe.data.document_column or "document"]
    if {*pair_columns, SCORE_COLUMN} <= set(table.column_names):
        return _scores_of(table.select_columns([*pair_columns, SCORE_COLUMN]), recipe, digests)
    if {TEXT_COLUMN, EMBEDDING_COLUMN} <= set(table.column_names):
        return _embeddings_of(table, recipe.teacher, digests)
    raise InputError(
        f"--teacher {path} has the columns {', '.join(table.column_names)}; it needs "
        f"{', '.join([*pair_columns, SCORE_COLUMN])} for scores (name the first two with "
        f"--query_column and --document_column), or {TEXT_COLUMN}, {EMBEDDING_COLUMN} for "
        "embeddings"
    )


def _scale_of(arguments: TeacherArguments) -> Scale:
    """The scale of precomputed scores, after the activation."""
    bounds = arguments.score_range
    if bounds is not None and not (len(bounds) == 2 and bounds[0] < bounds[1]):
        raise InputError(
            f"--score_range {' '.join(map(str, bounds))}: give two numbers, the lower one first"
        )
    if arguments.teacher_activation == "sigmoid":
        return Scale("given", "sigmoid", 0.0, 1.0)
    activation = None if arguments.teacher_activation == "auto" else arguments.teacher_activation
    return Scale("given", activation, *(bounds or (-1.0, 1.0)))


def _scores_of(table: Dataset, recipe: Recipe, digests: list[str]) -> PrecomputedScores:
    path, scale, names = recipe.teacher.teacher, _scale_of(recipe.teacher), table.column_names
    if not len(table):
        raise InputError(f"--teacher {path} has no rows")
    keys = np.empty(len(table), dtype=np.uint64)
    scores = np.empty(len(table), dtype=np.float64)
    for start in tqdm(range(0, len(table), _READ), desc="Reading scores", unit="k", delay=3):
        block = table[start : start + _READ]
        rows = zip(*(block[name] for name in names), strict=True)
        for i, (query, document, score) in enumerate(rows, start):
            try:
                keys[i] = pair_number((query or "").strip(), (document or "").strip())
                scores[i] = np.nan if score is None else float(score)
            except (TypeError, ValueError, AttributeError):
                raise InputError(
                    f"--teacher {path}, row {i}: {SCORE_COLUMN} is {score!r}; a score is a number, "
                    "query and document are texts"
                ) from None
    if scale.activation == "sigmoid":
        scores = 1 / (1 + np.exp(-scores))
    scores = scale.check(scores, path)
    order = np.argsort(keys, kind="stable")
    keys, scores = keys[order], scores[order]
    same = keys[1:] == keys[:-1]
    contradicts = same & (np.abs(scores[1:] - scores[:-1]) > _SAME)
    if contradicts.any():
        i = int(contradicts.argmax())
        raise InputError(
            f"--teacher {path} gives one pair two scores: row {order[i]} says {scores[i]:g}, row "
            f"{order[i + 1]} says {scores[i + 1]:g} ({int(contradicts.sum())} such pairs); keep one"
        )
    first = np.concatenate([[True], ~same])
    return PrecomputedScores(
        name=path,
        identity=("precomputed scores", digests, names, scale.record()),
        scale=scale,
        keys=keys[first],
        scores=scores[first].astype(np.float32),
    )


def _embeddings_of(
    table: Dataset, arguments: TeacherArguments, digests: list[str]
) -> PrecomputedEmbeddings:
    path = arguments.teacher
    dimension = len(table[0][EMBEDDING_COLUMN] or ()) if len(table) else 0
    if not dimension:
        raise InputError(f"--teacher {path} has no embedding in its first row; look at the file")
    declared = arguments.teacher_similarity == "declared"
    similarity = "cosine" if declared else arguments.teacher_similarity
    texts = table.select_columns([TEXT_COLUMN])
    keys = np.empty(len(table), dtype=np.uint64)
    for start in tqdm(range(0, len(table), _READ), desc="Reading embeddings", unit="k", delay=3):
        block = texts[start : start + _READ][TEXT_COLUMN]
        keys[start : start + len(block)] = [text_number((text or "").strip()) for text in block]
    keys, rows = np.unique(keys, return_index=True)
    return PrecomputedEmbeddings(
        name=path,
        identity=("precomputed embeddings", digests, similarity),
        scale=SCALES[similarity],
        keys=keys,
        rows=rows,
        table=table,
        dimension=dimension,
    )
