"""Texts without pairs: read once, each (text, student's text) kept once, split without leaks, and
written as the table `texts` of a collection.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Value

from hf_distill.data.collection import (
    SPLITS,
    TEXTS_FEATURES,
    SourcePairs,
    TableWriter,
    TextsRecord,
    pair_number,
    text_number,
)
from hf_distill.data.column import Column
from hf_distill.data.keys import taken
from hf_distill.data.near_duplicates import text_key
from hf_distill.data.read import TEST_PATH, RowPlace, counted
from hf_distill.data.split import LEAKS, NOT_SAID, Arrangement, PairNumbers, seeded_groups

TEXT_LEAKS = {
    "same group": "same group",
    "same query": "same student's text",
    "same document": "same text",
    "near-duplicate document": "near-duplicate text",
}
"""What those of `hf_distill.data.split.LEAKS` that texts can have are called: a text is to its
student's text what a document is to its query.
"""

_WORKING = Features(
    {name: Value("string") for name in ("text", "student_text", "source", "group", "split")}
)
_BATCH = 1000


@dataclass(frozen=True)
class ReadTexts:
    """What a source of texts handed over.

    Attributes:
        table: `text`, `student_text` (null: the same), `source`, `group` and `split` of each row.
        rows: (n,) int64, ascending: those that are used, each (text, student's text) once.
        numbers: The group, student's text and text of each of these, as numbers.
        parallel: Whether a student's text differs.
        counts: How many there were, and what became of them.
    """

    table: Dataset
    rows: np.ndarray
    numbers: PairNumbers
    parallel: bool
    counts: dict[str, int]

    def texts(self, places: np.ndarray) -> Iterator[str]:
        """The teacher's texts at `places` (m,) among these, looked up some at a time."""
        return Column(self.table, "text").each(taken(self.rows, places))


class _Reader:
    """Checks rows, and writes those that are texts. It remembers 25 bytes of each."""

    def __init__(self, table: TableWriter) -> None:
        self.table, self.counts = table, Counter[str]()
        self.keys, self.pairs, self.elsewhere = array("Q"), array("Q"), array("b")
        self.parallel = False

    def read(self, source: SourcePairs) -> None:
        """The rows of a source of texts."""
        for number, row in enumerate(source.rows):
            self.counts["rows"] += 1
            self.counts[self._take(row, RowPlace(source, number, row))] += 1

    def read_test_set(self, test_set: SourcePairs) -> None:
        """The texts of a test set of pairs. They are not part of the collection."""
        for number, row in enumerate(test_set.rows):
            at = RowPlace(test_set, number, row)
            if not row.get("candidate") and at.grade() > 0:
                for text in filter(None, (at.text("query"), at.text("document"))):
                    self._add(text, text, None, None, TEST_PATH)

    def _take(self, row: Mapping[str, Any], at: RowPlace) -> str:
        """Take a row, or not; returns what became of it."""
        text = at.text("text")
        student = at.text("student_text") if "student_text" in row else text
        if not text or not student:
            return "no student's text" if text else "no text"
        group, source = at.name("group"), at.name("source")
        try:
            f"{text}{student}{group}{source}".encode()
        except UnicodeEncodeError:
            return "invalid Unicode"
        self.parallel |= student != text
        self._add(text, student, source, group, row.get("split"))
        return "kept"

    def _add(
        self, text: str, student: str, source: str | None, group: str | None, split: str | None
    ) -> None:
        key = text_number(text_key(text))
        self.keys.append(key if student == text else text_number(text_key(student)))
        self.keys.append(key)
        self.pairs.append(pair_number(text, student))
        self.elsewhere.append(split == TEST_PATH)
        own = None if student == text else student
        self.table.add(text, own, source, f"{key:x}" if group is None else group, split)


def read_texts(
    source: SourcePairs,
    folder: Path,
    elsewhere: SourcePairs | None,
    given: Mapping[Any, int],
    seed: int,
) -> ReadTexts:
    """Read a source of texts, once and in order, into a table in `folder`.

    Rows are left out and counted if they have no text, if UTF-8 cannot write it, or if they repeat
    an earlier row.

    Args:
        source: The source.
        folder: For a working table.
        elsewhere: A test set of pairs, whose texts are not trained on.
        given: What a row's split means -> its number in `hf_distill.data.split`.
        seed: Orders the groups.

    Raises:
        InputError: A row that is not made of texts.
    """
    path = folder / "texts.arrow"
    with TableWriter(path, _WORKING) as table:
        reader = _Reader(table)
        reader.read(source)
        counts = counted(source.counts, reader.counts)
        if elsewhere is not None:
            reader.read_test_set(elsewhere)
    table = Dataset.from_file(str(path))
    pairs = np.array(reader.pairs, dtype=np.uint64)
    own = np.flatnonzero(np.array(reader.elsewhere) == 0)
    first = own[np.sort(np.unique(pairs[own], return_index=True)[1])]
    if repeated := len(own) - len(first):
        counts = {**counts, "kept": counts["kept"] - repeated, "repeated": repeated}
    rows = np.union1d(first, np.flatnonzero(reader.elsewhere))
    keys = np.array(reader.keys, dtype=np.uint64).view(np.int64).reshape(-1, 2)[rows]
    return ReadTexts(
        table=table,
        rows=rows,
        numbers=_numbers(table, rows, keys, given, seed),
        parallel=reader.parallel,
        counts={what: number for what, number in counts.items() if number},
    )


def _numbers(
    table: Dataset, rows: np.ndarray, keys: np.ndarray, given: Mapping[Any, int], seed: int
) -> PairNumbers:
    groups = seeded_groups(Column(table, "group").each(rows), seed, len(rows))
    splits = (given.get(split, NOT_SAID) for split in Column(table, "split").each(rows))
    return PairNumbers(
        np.column_stack([groups, keys]), np.fromiter(splits, dtype=np.int8, count=len(rows))
    )


def write_texts(read: ReadTexts, arrangement: Arrangement, path: Path) -> TextsRecord:
    """Write the table `texts` of a collection, in the order of the arrangement."""
    splits, reasons = np.array(SPLITS), np.array([*map(TEXT_LEAKS.get, LEAKS), None])
    names = ("text", "student_text", "source")
    columns, rows = [Column(read.table, name) for name in names], read.rows[arrangement.rows]
    with TableWriter(path, TEXTS_FEATURES) as writer:
        for start in range(0, len(rows), _BATCH):
            here = slice(start, start + _BATCH)
            writer.add_columns(
                *(column.array(rows[here]) for column in columns),
                pa.array(splits[arrangement.split[here]].tolist()),
                pa.array(reasons[arrangement.leaks[here]].tolist(), pa.string()),
            )
    sizes = np.bincount(arrangement.split, minlength=len(SPLITS)).tolist()
    return TextsRecord(**dict(zip(SPLITS, sizes, strict=True)), parallel=read.parallel)


def named_leaks(leaks: np.ndarray) -> dict[str, int]:
    """Reason -> how many texts were taken out for it, from `Arrangement.leaks` (m,)."""
    counts = np.bincount(leaks[leaks >= 0], minlength=len(LEAKS))
    return {TEXT_LEAKS[why]: n for why, n in zip(LEAKS, counts.tolist(), strict=True) if n}
