"""Texts that rows name by id. They lie on disk; of each, 16 bytes are in memory."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Value

from hf_distill.data.collection import TableWriter, is_unicode, text_number
from hf_distill.data.tables.table import Place, Table
from hf_distill.errors import InputError

BATCH = 1000
_WORKING = Features(
    {"text": Value("string"), "id": Value("string"), "table": Value("int32"), "at": Value("int64")}
)


@dataclass(frozen=True)
class TextTable:
    """A table of texts with ids. `read` gives the place, id and text of each, and counts columns
    that are not used.
    """

    table: Table
    read: Callable[[Counter[str]], Iterator[tuple[Place, str, str]]]


@dataclass(frozen=True)
class _Stored:
    """Texts in an Arrow file.

    Attributes:
        table: Columns `text` and `id`, and the place that the text was read from.
        numbers: (n,) uint64, ascending: the `text_number` of each id.
        rows: (n,) int64: where in `table` the text with each of these is.
    """

    table: Dataset
    numbers: np.ndarray
    rows: np.ndarray


class StoredTexts:
    """Looks texts up by id. They are read when they are first needed, into a working folder that
    goes with this object. An id may stand in two files (MS MARCO's dev and dev.small), but not with
    two texts.

    Args:
        tables: Where the texts are.
        what: `query` or `document`, for messages.
        unused: What is counted while the tables are read.
    """

    def __init__(self, tables: Sequence[TextTable], what: str, unused: dict[str, int]) -> None:
        self._tables, self._what, self._unused = tables, what, unused

    @cached_property
    def _stored(self) -> _Stored:
        folder = tempfile.mkdtemp(prefix="hf_distill-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        path, numbers = Path(folder) / "texts.arrow", array("Q")
        unused: Counter[str] = Counter()
        with TableWriter(path, _WORKING) as writer:
            for number, text in enumerate(self._tables):
                for place, name, content in text.read(unused):
                    if not is_unicode(name + content):
                        raise InputError(
                            f"{text.table.where(place)}: invalid Unicode (a lone surrogate); fix "
                            "or remove the line"
                        )
                    numbers.append(text_number(name))
                    writer.add(content, name, number, place)
        self._unused.update(unused)
        table = Dataset.from_file(str(path)).with_format("arrow")
        every = np.array(numbers, dtype=np.uint64)
        rows = np.argsort(every, kind="stable")
        stored = _Stored(table, every[rows], rows)
        self._check_repeated(stored)
        return stored

    def _check_repeated(self, stored: _Stored) -> None:
        repeated = np.flatnonzero(stored.numbers[1:] == stored.numbers[:-1])
        for start in range(0, len(repeated), BATCH):
            places = repeated[start : start + BATCH]
            first, second = (stored.table[stored.rows[at]] for at in (places, places + 1))
            texts = zip(first["text"].to_pylist(), second["text"].to_pylist(), strict=True)
            for number, (text, other) in enumerate(texts):
                if text != other:
                    table = self._tables[second["table"][number].as_py()].table
                    raise InputError(
                        f"{table.where(second['at'][number].as_py())}: the {self._what} id "
                        f"{second['id'][number].as_py()!r} appears a second time, with another "
                        "text; make ids unique"
                    )

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """(text, id) of each, in order."""
        table = self._stored.table
        for start in range(0, len(table), BATCH):
            part = table[start : start + BATCH]
            yield from zip(part["text"].to_pylist(), part["id"].to_pylist(), strict=True)

    def __len__(self) -> int:
        return len(self._stored.rows)

    @property
    def unique(self) -> int:
        """The number of ids, where `len` is the number of texts."""
        return len(np.unique(self._stored.numbers))

    def places(self, names: Sequence[str]) -> np.ndarray:
        """(n,) int64: the row of each of these ids; -1: there is no such text."""
        numbers = np.array([text_number(name) for name in names], dtype=np.uint64)
        stored = self._stored
        if not len(stored.rows):
            return np.full(len(names), -1)
        place = np.searchsorted(stored.numbers, numbers)
        place = np.minimum(place, len(stored.rows) - 1)
        return np.where(stored.numbers[place] == numbers, stored.rows[place], -1)

    def texts(self, places: np.ndarray) -> list[str | None]:
        """The texts in these rows (n,); None for -1."""
        known = places >= 0
        found = self._stored.table[places[known]]["text"].to_pylist() if known.any() else []
        texts = iter(found)
        return [next(texts) if here else None for here in known.tolist()]
