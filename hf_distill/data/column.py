"""Values of a column by row number. `Dataset.__getitem__` slices the table once for each row, which
takes ten times as long and a kilobyte a row.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

_READ = 1000


class Column:
    """A column of a table, which may be memory-mapped; only the requested values are copied."""

    def __init__(self, table: Dataset, name: str) -> None:
        self._made_from = table, name
        # `data` is without a selection of rows, if there is one; to flatten it writes a table anew
        whole = table if table._indices is None else table.flatten_indices()
        column: pa.ChunkedArray = whole.data[name]
        self._chunks = [chunk for chunk in column.chunks if len(chunk)]
        self._starts = np.cumsum([0, *map(len, self._chunks)])
        self._empty = pa.array([], type=column.type)

    def __reduce__(self) -> tuple[type[Column], tuple[Dataset, str]]:
        return Column, self._made_from  # a mapped table is pickled as the name of its file

    def __len__(self) -> int:
        return int(self._starts[-1])

    def array(self, rows: np.ndarray) -> pa.Array:
        """The values (m,) of `rows` (m,), in the order given; null where there is none."""
        order = np.argsort(rows, kind="stable")
        ascending = rows[order]
        chunks = np.searchsorted(self._starts, ascending, side="right") - 1
        cuts = [0, *(np.flatnonzero(chunks[1:] != chunks[:-1]) + 1).tolist(), len(chunks)]
        parts = [self._empty]
        for first, stop in itertools.pairwise(cuts) if len(rows) else ():
            chunk = self._chunks[chunks[first]]
            here = ascending[first:stop] - self._starts[chunks[first]]
            is_run = here[-1] - here[0] == len(here) - 1 and bool((np.diff(here) == 1).all())
            parts.append(chunk.slice(here[0], len(here)) if is_run else chunk.take(pa.array(here)))
        joined = pa.concat_arrays(parts)
        if (order[1:] > order[:-1]).all():
            return joined
        places = np.empty(len(order), dtype=np.int64)
        places[order] = np.arange(len(order))
        return joined.take(pa.array(places))

    def __getitem__(self, rows: np.ndarray) -> list[Any]:
        """The values of `rows` (m,), in the order given; None where there is none."""
        values: list[Any] = self.array(rows).to_pylist()
        return values

    def each(self, rows: np.ndarray) -> Iterator[Any]:
        """The values of `rows` (m,), looked up some at a time."""
        for start in range(0, len(rows), _READ):
            yield from self[rows[start : start + _READ]]
