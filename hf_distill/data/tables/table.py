"""What every format reads: rows under names, wherever they lie.

A file, a split of a `save_to_disk` folder and a split of a Hub data set all become a `Table`. The
formats of `hf_distill.data.sources` see only these.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

Row = dict[str, Any]
Place = int
"""Where a row stands in its table: the number of its line or of its row."""


@dataclass(frozen=True)
class Table:
    """Rows under names.

    Attributes:
        name: What messages call it: `pairs.jsonl`, `qrels/test.tsv`, `data (split train)`.
        stem: The name that tells what it is for, in lower case and without extension, number of
            the part or split: `corpus`, `queries`, `qrels`, `collection`.
        config: The configuration (Hub) or the folder below the path that it lies in; None: the
            top.
        split: `train`, `validation` or `test` if its name or the data set says so (`dev`, `val`,
            `valid` and `eval` are validation), another split's name as it is, None if nothing is
            said.
        columns: Names in order. Of delimited text, the cells of its first line, whether that is a
            header or not.
        unit: What its places count: lines, from 1; or rows, from 0, of Arrow and Parquet and of
            JSON that is one value.
        read: Its rows with their places, in order, read from disk again at each call and never
            held in memory as a whole. Delimited text: below the first line, every value a str; an
            empty cell is None.
        cells: Of delimited text (CSV, TSV, TREC): all lines, the first one too, as cells. None for
            everything else.
        count: Number of rows if it is known without reading them.
        reading: How the file is read where that had to be decided by its content: `separated by
            tabs, quotes are text`. Empty if nothing had to be.
    """

    name: str
    stem: str
    config: str | None
    split: str | None
    columns: tuple[str, ...]
    unit: Literal["line", "row"]
    read: Callable[[], Iterator[tuple[Place, Row]]]
    cells: Callable[[], Iterator[tuple[Place, list[str]]]] | None = None
    count: int | None = None
    reading: str = ""

    def where(self, place: Place) -> str:
        """`pairs.jsonl, line 17`, for messages."""
        return f"{self.name}, {self.unit} {place}"

    def with_columns(self, columns: Sequence[tuple[str, Any]]) -> Table:
        """This table with further columns that have one value in all rows. A column that it has
        already stays. Rows must have names, so delimited text stays as it is.
        """
        new = {name: value for name, value in columns if name not in self.columns}
        if not new or self.cells is not None:
            return self

        def read() -> Iterator[tuple[Place, Row]]:
            for place, row in self.read():
                yield place, {**row, **new}

        return replace(self, columns=(*self.columns, *new), read=read)

    def head(self, count: int = 20) -> list[Row]:
        """The first rows: enough to recognise a format by."""
        return [row for _, row in itertools.islice(self.read(), count)]


@dataclass(frozen=True)
class Tables:
    """The tables at a path or in a Hub data set.

    Attributes:
        path: Where they are; None for a data set on the Hub.
        name: What the data is called: the file's stem, the folder's name, the data set's id.
        key: The recipe's key that named it, for messages: `dataset_path`, `test_path`, `teacher`.
        tables: In order of their names.
        others: Files beside them that are no tables and are not read (`README.md`).
        license, url: As a dataset card or the Hub says; None if nothing says so.
    """

    path: Path | None
    name: str
    key: str
    tables: tuple[Table, ...]
    others: tuple[str, ...] = ()
    license: str | None = None
    url: str | None = None

    def named(self, *stems: str) -> tuple[Table, ...]:
        """The tables whose `stem` or `config` is one of these."""
        return tuple(t for t in self.tables if t.stem in stems or t.config in stems)
