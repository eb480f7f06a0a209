"""Scores or embeddings that are there already, in a file: from another system, a person, or an
earlier run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset
from tqdm.auto import tqdm

from hf_distill.compute.encode import Advance
from hf_distill.data.collection import (
    pair_key,
    text_number,
)
from hf_distill.data.sources.table import load_files
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import (
    DataArguments,
    TeacherArguments,
)
from hf_distill.run.folder import fingerprint
from hf_distill.teachers.base import (
    SCALES,
    Kind,
    Scale,
)
from hf_distill.teachers.bi_encoder import (
    check_finite,
    normalised,
)

TEXT_COLUMN, EMBEDDING_COLUMN = "text", "embedding"
_SAME = 1e-6


@dataclass(frozen=True)
class PrecomputedScores:
    """Scores of (query, document) pairs, by their texts (implements `PairTeacher`). `keys` (n,)
    uint64 ascending, `scores` (n,).
    """

    name: str
    keys: np.ndarray
    scores: np.ndarray
    scale: Scale
    fingerprint: str
    precision: str = "unknown"

    def score(self, pairs: list[tuple[str, str]], advance: Advance | None = None) -> np.ndarray:
        """See :meth:`PairTeacher.score`: NaN for a pair that the file does not hold."""
        wanted = np.array([pair_key(query, document) for query, document in pairs], dtype=np.uint64)
        places = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        if advance:
            advance(len(pairs), 0)
        found: np.ndarray = np.where(
            self.keys[places] == wanted, self.scores[places], np.float32(np.nan)
        )
        return found


@dataclass(frozen=True)
class PrecomputedEmbeddings:
    """Embeddings of texts, by the texts (implements `EmbeddingTeacher`). `keys` (n,) uint64
    ascending; text i is row `rows[i]`.
    """

    name: str
    keys: np.ndarray
    rows: np.ndarray
    table: Dataset
    dimension: int
    scale: Scale
    fingerprint: str
    precision: str = "unknown"

    def prompted(self, text: str, kind: Kind) -> str:
        """`text`: whatever prompt there was is in the embedding."""
        return text

    def embed(self, texts: list[str], advance: Advance | None = None) -> np.ndarray:
        """See :meth:`EmbeddingTeacher.embed`.

        Raises:
            InputError: The file holds no embedding of a text, one of another dimension, or one that
                is not finite.
        """
        wanted = np.array([text_number(text) for text in texts], dtype=np.uint64)
        places = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        missing = self.keys[places] != wanted
        if missing.any():
            raise InputError(
                f"{self.name} has no embedding for {int(missing.sum())} of {len(texts)} texts, e.g. {texts[int(missing.argmax())][:70]!r}. "
                "Every query and document of the pairs and the corpus needs one, under exactly its text"
            )
        found = self.table[self.rows[places].tolist()][EMBEDDING_COLUMN]
        sizes = {len(row) for row in found}
        if sizes != {self.dimension}:
            raise InputError(
                f"{self.name}: embeddings have {sorted(sizes)} dimensions, the first row has {self.dimension}"
            )
        values = np.asarray(found, dtype=np.float32)
        check_finite(values, texts, self.name, "Look at the file")
        if advance:
            advance(len(texts), 0)
        return normalised(values) if self.scale.measure == "cosine" else values


def _file_key(path: Path) -> list[tuple[str, int, int]]:
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    return [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]


def load_precomputed(
    arguments: TeacherArguments, data: DataArguments, cache: Path
) -> PrecomputedScores | PrecomputedEmbeddings:
    """Read the file that `teacher` names: a column of scores beside query and document, or of
    embeddings beside `text`.

    Raises:
        InputError: No such file, neither kind of columns, a score that is no number or outside the
            declared range (with its row), or two scores for one pair.
    """
    path = Path(arguments.teacher)
    table = load_files(path, cache, "teacher")
    names = (data.query_column, data.document_column, arguments.score_column)
    if set(names) <= set(table.column_names):
        return _scores_of(table, names, arguments, path)
    if {TEXT_COLUMN, EMBEDDING_COLUMN} <= set(table.column_names):
        return _embeddings_of(table, arguments, path)
    raise InputError(
        f"--teacher {path} has the columns {', '.join(table.column_names)}; a precomputed teacher has {', '.join(names)} (scores; see "
        f"--query_column, --document_column, --score_column) or {TEXT_COLUMN}, {EMBEDDING_COLUMN} (embeddings)"
    )


def _scores_of(
    table: Dataset, names: tuple[str, str, str], arguments: TeacherArguments, path: Path
) -> PrecomputedScores:
    low, high = arguments.score_range or (-1.0, 1.0)
    activation = None if arguments.teacher_activation == "auto" else arguments.teacher_activation
    scale = (
        Scale("given", activation, 0.0, 1.0)
        if activation == "sigmoid"
        else Scale("given", activation, low, high)
    )
    keys = np.empty(len(table), dtype=np.uint64)
    scores = np.empty(len(table), dtype=np.float64)
    for start in tqdm(range(0, len(table), 1000), desc="Reading scores", unit="k", delay=3):
        block = table[start : start + 1000]
        for i, (query, document, score) in enumerate(
            zip(*(block[name] for name in names), strict=True), start
        ):
            try:
                keys[i] = pair_key((query or "").strip(), (document or "").strip())
                scores[i] = np.nan if score is None else float(score)
            except (TypeError, ValueError, AttributeError):
                raise InputError(
                    f"{path}, row {i}: {names[2]} is {score!r}; a score is a number, query and document are texts"
                ) from None
    if activation == "sigmoid":
        scores = 1 / (1 + np.exp(-scores))
    scores = scale.check(scores, str(path))
    order = np.argsort(keys, kind="stable")
    keys, scores = keys[order], scores[order]
    same = keys[1:] == keys[:-1]
    if len(keys) == 0:
        raise InputError(f"{path} holds no row")
    if (contradiction := same & (np.abs(scores[1:] - scores[:-1]) > _SAME)).any():
        i = int(contradiction.argmax())
        raise InputError(
            f"{path} gives one pair two scores: row {order[i]} says {scores[i]:g}, row {order[i + 1]} says {scores[i + 1]:g} "
            f"({int(contradiction.sum())} such pairs)"
        )
    first = np.concatenate([[True], ~same])
    key = fingerprint("precomputed", _file_key(path), names, scale.key())
    return PrecomputedScores(str(path), keys[first], scores[first].astype(np.float32), scale, key)


def _embeddings_of(
    table: Dataset, arguments: TeacherArguments, path: Path
) -> PrecomputedEmbeddings:
    if not len(table):
        raise InputError(f"{path} holds no row")
    measure = (
        "cosine" if arguments.teacher_similarity == "declared" else arguments.teacher_similarity
    )
    texts = table.select_columns([TEXT_COLUMN])
    keys = np.empty(len(table), dtype=np.uint64)
    for start in tqdm(range(0, len(table), 1000), desc="Reading embeddings", unit="k", delay=3):
        block = texts[start : start + 1000][TEXT_COLUMN]
        keys[start : start + len(block)] = [text_number((text or "").strip()) for text in block]
    keys, rows = np.unique(keys, return_index=True)
    dimension = len(table[0][EMBEDDING_COLUMN] or [])
    if not dimension:
        raise InputError(f"{path}, row 0: no embedding")
    key = fingerprint("precomputed", _file_key(path), measure)
    return PrecomputedEmbeddings(str(path), keys, rows, table, dimension, SCALES[measure], key)
