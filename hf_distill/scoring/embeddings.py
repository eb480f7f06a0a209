"""The teacher's embeddings: each unique text is embedded once and stored once, in shards that are
memory-mapped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
from datasets import Dataset

from hf_distill.compute.encode import Advance
from hf_distill.data.collection import Collection
from hf_distill.errors import InputError
from hf_distill.run.shards import Shards, locate
from hf_distill.run.stage import fingerprint, stage, written_whole
from hf_distill.scoring.items import Items, work_once
from hf_distill.teachers.base import EmbeddingTeacher, TextKind


@dataclass(frozen=True)
class Vectors:
    """Rows of memory-mapped tables. Only the requested rows are copied.

    Attributes:
        parts: The tables, each (m_i, dimension) float16.
        places: (n,) uint32: place of each row in the concatenation of `parts`.
        dimension: Columns of each.
    """

    parts: tuple[np.ndarray, ...]
    places: np.ndarray
    dimension: int

    def __len__(self) -> int:
        return len(self.places)

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0, *(len(part) for part in self.parts)])

    def __getitem__(self, rows: np.ndarray | slice) -> np.ndarray:
        """A copy of the rows (m, dimension), float16, in the order given. Each part is read from
        front to back.
        """
        places = self.places[rows]
        order = np.argsort(places)
        places = places[order]
        cuts = np.searchsorted(places, self._starts)
        result = np.empty((len(places), self.dimension), dtype=np.float16)
        for i in np.flatnonzero(np.diff(cuts)):
            here = slice(cuts[i], cuts[i + 1])
            result[order[here]] = self.parts[i][places[here] - self._starts[i]]
        return result


@dataclass(frozen=True)
class EmbeddingTable:
    """The teacher's embeddings of a collection.

    Attributes:
        vectors: One row for each unique text with its prompt, by ascending key.
        queries: (queries,) int32: row of each query of the collection.
        documents: (documents,) int32: row of each document of the collection.
        texts: (texts,) int32: row of each text alone, as the teacher reads it.
        student_texts: (test texts,) int32: row of what the student reads of each test
            text, if it reads others and the teacher embeds them.
        parts: Names of the files that hold them.
    """

    vectors: Vectors
    queries: np.ndarray
    documents: np.ndarray
    parts: tuple[str, ...] = ()
    texts: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    student_texts: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    @property
    def dimension(self) -> int:
        """Dimensions of the embeddings."""
        return self.vectors.dimension

    def of_queries(self, numbers: np.ndarray | slice) -> np.ndarray:
        """Embeddings (m, dimension), float16, of queries by number."""
        return self.vectors[self.queries[numbers]]

    def of_documents(self, numbers: np.ndarray | slice) -> np.ndarray:
        """Embeddings (m, dimension), float16, of documents by number."""
        return self.vectors[self.documents[numbers]]

    def of_texts(self, numbers: np.ndarray | slice) -> np.ndarray:
        """Embeddings (m, dimension), float16, of texts alone by number."""
        return self.vectors[self.texts[numbers]]

    def of_student_texts(self) -> np.ndarray:
        """Embeddings (n, dimension), float16, of what the student reads of the test texts."""
        return self.vectors[self.student_texts]


Asked = tuple[str, str]
"""What a teacher embeds: the kind of a text (`query` or `document`), and the text without its
prompt.
"""


def _embed(teacher: EmbeddingTeacher, texts: list[Asked], advance: Advance) -> np.ndarray:
    """The teacher's embeddings as float16, checked."""
    if teacher.by_kind:
        values = np.empty((len(texts), teacher.dimension), dtype=np.float32)
        for kind in ("query", "document"):
            rows = [i for i, (own, _) in enumerate(texts) if own == kind]
            if rows:
                part = teacher.embed_as(kind, [texts[i][1] for i in rows], advance)
                values[rows] = _checked_shape(teacher, part, len(rows))
    else:
        prompted = [teacher.prompts.of(cast(TextKind, kind)) + text for kind, text in texts]
        values = _checked_shape(teacher, teacher.embed(prompted, advance), len(texts))
    with np.errstate(over="ignore"):
        stored: np.ndarray = values.astype(np.float16)
    if not np.isfinite(stored).all():
        raise InputError(
            f"the teacher {teacher.name} returned embeddings with values up to "
            f"{np.abs(values).max():.3g}, more than float16 holds (65,504); compare them with "
            "--teacher_similarity cosine"
        )
    return stored


def _checked_shape(teacher: EmbeddingTeacher, values: np.ndarray, count: int) -> np.ndarray:
    if values.shape != (count, teacher.dimension):
        raise InputError(
            f"the teacher {teacher.name} returned embeddings of shape {values.shape} for "
            f"{count} texts, expected dimension {teacher.dimension}"
        )
    return values


def _stored(
    texts: Items[Asked], keys: np.ndarray, teacher: EmbeddingTeacher, folder: Path
) -> tuple[Vectors, np.ndarray, tuple[str, ...]]:
    """Embeddings by ascending key, the row (count,) of each text in them, and names of the
    files.
    """
    shards = Shards(folder, fingerprint(teacher.identity))
    stored = work_once(texts, keys, shards, lambda batch, advance: _embed(teacher, batch, advance))
    values = tuple(part.values for part in stored.parts)
    names = tuple(part.path.name for part in stored.parts)
    return Vectors(values, stored.places, teacher.dimension), stored.unique, names


def _texts_of(collection: Collection, new: bool) -> Items[Asked]:
    """The collection's queries, its documents, its texts alone, and what the student reads of the
    test texts, if it reads others and the teacher can embed them (`new`).
    """
    alone = collection.record.texts
    parallel = alone is not None and alone.parallel and new
    test = collection.text_numbers("test") if parallel else np.empty(0, dtype=np.int64)
    parts: list[tuple[int, Callable[[np.ndarray], list[str]]]] = [
        (len(collection.queries), collection.query_texts),
        (len(collection.documents), collection.document_texts),
        (len(collection.texts), collection.teacher_texts),
        (len(test), lambda places: collection.student_texts(test[places])),
    ]
    starts = np.cumsum([0, *(count for count, _ in parts)])

    def read(places: np.ndarray) -> list[Asked]:
        texts = np.empty(len(places), dtype=object)
        for (_, look_up), start, end in zip(parts, starts, starts[1:], strict=False):
            here = (places >= start) & (places < end)
            texts[here] = look_up(places[here] - start)
        kinds = np.where(places < starts[1], "query", "document").tolist()
        return list(zip(kinds, texts.tolist(), strict=True))

    return Items(int(starts[-1]), read, "text")


def _keys(texts: Items[Asked], teacher: EmbeddingTeacher) -> np.ndarray:
    """(count,) uint64: texts with equal embeddings have equal keys. That is a text with its prompt,
    and for a teacher with `by_kind` also its kind and where the prompt ends.
    """

    def read(places: np.ndarray) -> list[str]:
        asked = [
            (kind, teacher.prompts.of(cast(TextKind, kind)), text)
            for kind, text in texts.read(places)
        ]
        return ["\0".join(parts) if teacher.by_kind else parts[1] + parts[2] for parts in asked]

    return Items(texts.count, read, texts.what).keys()


@dataclass(frozen=True)
class TextKeys:
    """`cache/text_keys-*.json`: for how many texts there are keys, in the array beside it."""

    key: str
    texts: int


def _kept_keys(
    texts: Items[Asked], teacher: EmbeddingTeacher, name: str, cache: Path
) -> np.ndarray:
    """The keys of `texts`, kept in `cache`: hashing millions of texts takes seconds. `name` says
    what they depend on.
    """
    path = cache / f"text_keys-{name}.npy"

    def make(key: str) -> TextKeys:
        keys = _keys(texts, teacher)
        with written_whole(path) as temporary:
            np.save(temporary, keys)
        return TextKeys(key, len(keys))

    stage(path.with_suffix(".json"), TextKeys, [name], make, [path])
    keys: np.ndarray = np.load(path, mmap_mode="r")
    return keys


def embed_collection(
    collection: Collection, teacher: EmbeddingTeacher, folder: Path, cache: Path
) -> EmbeddingTable:
    """The teacher's embeddings of every query, document and text; only what no shard holds is
    embedded.

    Args:
        collection: Its texts are embedded.
        teacher: Embeds them.
        folder: Folder of the shards. Several runs may share it.
        cache: Folder for working files of this run.

    Raises:
        InputError: Embeddings that float16 cannot hold, or of another dimension than declared.
    """
    new = teacher.embeds_new_texts
    texts = _texts_of(collection, new)
    name = fingerprint(collection.key, dataclasses.asdict(teacher.prompts), teacher.by_kind, new)
    keys = _kept_keys(texts, teacher, name, cache)
    vectors, rows, parts = _stored(texts, keys, teacher, folder)
    sizes = [len(table) for table in (collection.queries, collection.documents, collection.texts)]
    queries, documents, own, students = np.split(rows, np.cumsum(sizes))
    return EmbeddingTable(vectors, queries, documents, parts, own, students)


def embed_texts(texts: Dataset, teacher: EmbeddingTeacher, folder: Path) -> Vectors:
    """The teacher's embeddings of further texts, in the order of the rows of `texts`.

    Args:
        texts: Columns `text` and `kind` (`query` or `document`, whose prompt the text gets).
        teacher: Embeds them.
        folder: Folder of the shards. Several runs may share it. What it holds is not embedded
            again.

    Raises:
        InputError: As `embed_collection`.
    """

    def read(places: np.ndarray) -> list[Asked]:
        rows = texts[places]
        return list(zip(rows["kind"], rows["text"], strict=True))

    items = Items(len(texts), read, "text")
    vectors, rows, _ = _stored(items, _keys(items, teacher), teacher, folder)
    return dataclasses.replace(vectors, places=vectors.places[rows])


def embed_batch(asked: list[Asked], teacher: EmbeddingTeacher, shards: Shards) -> np.ndarray:
    """The teacher's embeddings (n, dimension) float16 of `asked` (n), in that order. What `shards`
    do not hold is embedded, and kept as one more shard.

    Raises:
        InputError: As `embed_collection`.
    """
    items = Items(len(asked), lambda places: [asked[place] for place in places], "text")
    unique, first, inverse = np.unique(
        _keys(items, teacher), return_index=True, return_inverse=True
    )

    def work(keys: np.ndarray) -> np.ndarray:
        batch = items.read(first[np.searchsorted(unique, keys)])
        return _embed(teacher, batch, lambda *_: None)

    shards.complete(unique, len(unique), work)
    parts, places = locate(shards.parts(), unique)
    vectors = Vectors(tuple(part.values for part in parts), places, teacher.dimension)
    return vectors[inverse]
