"""Parquet, and the two forms of Arrow files: streams (`datasets`) and files (Feather)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from hf_distill.data.tables.files import File
from hf_distill.data.tables.table import Row, Table
from hf_distill.data.tables.text import compression, first_bytes, open_bytes, refused
from hf_distill.errors import InputError
from hf_distill.run.stage import stage, written_whole

_ROWS = 1000
"""Rows that become Python objects at once."""


def open_parquet(file: File, cache: Path) -> Table:
    """A table of a Parquet file.

    Raises:
        InputError: The file is damaged, or names a column twice.
    """

    def open_file() -> Any:
        return pq.ParquetFile(_unpacked(file.path, cache), memory_map=True, pre_buffer=False)

    with refused(file.path), open_file() as parquet:
        schema, count = parquet.schema_arrow, parquet.metadata.num_rows

    def batches() -> Iterator[Any]:
        with open_file() as parquet:
            yield from parquet.iter_batches(batch_size=_ROWS)

    return _table(file, schema, batches, count)


def open_arrow(file: File, cache: Path) -> Table:
    """A table of an Arrow file or stream. The lengths of its batches are read at once, so that a
    stream that was cut off is refused before its rows are read.

    Raises:
        InputError: The file is damaged, or names a column twice.
    """
    is_file = first_bytes(file.path, 6) == b"ARROW1"

    def batches() -> Iterator[Any]:
        with pa.memory_map(str(_unpacked(file.path, cache))) as source:
            if is_file:
                reader = pa.ipc.open_file(source)
                yield from map(reader.get_batch, range(reader.num_record_batches))
            else:
                yield from pa.ipc.open_stream(source)

    def whole() -> Iterator[Any]:
        for batch in batches():
            batch.validate(full=True)  # Arrow follows a wrong offset out of the file, and crashes
            yield batch

    with refused(file.path), pa.memory_map(str(_unpacked(file.path, cache))) as source:
        opened = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
        schema = opened.schema
        count = sum(batch.num_rows for batch in batches())
    return _table(file, schema, whole, count)


class _Info(msgspec.Struct, frozen=True):
    features: dict[str, Any] | None = None


class _Metadata(msgspec.Struct, frozen=True):
    """What `datasets` writes beside the columns of an Arrow schema, as far as it is read."""

    info: _Info = _Info()


def class_names(schema: pa.Schema, where: object) -> dict[str, list[str]]:
    """Column -> the names of its classes, where `datasets` keeps the number of a class instead of
    its name. What a number means is a matter of their order, so only the names can be read.

    Raises:
        InputError: What `datasets` wrote about the columns of the file `where` is damaged.
    """
    said = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = msgspec.json.decode(said, type=_Metadata).info.features or {}
        return {
            column: msgspec.convert(feature["names"], list[str])
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
            if pa.types.is_integer(schema.field(column).type)
        }
    except (msgspec.MsgspecError, LookupError) as error:
        raise InputError(
            f"{where}: the features that `datasets` wrote beside its columns cannot be read "
            f"({error}); write the file again"
        ) from error


def with_names(
    rows: Iterable[tuple[int, Row]], classes: Mapping[str, list[str]], where: object
) -> Iterator[tuple[int, Row]]:
    """`rows` of the file `where` with the names of classes instead of their numbers; -1 is no
    class.

    Raises:
        InputError: A number without a name.
    """
    for number, row in rows:
        for column, names in classes.items():
            place = row[column]
            if place is not None and place >= len(names):
                raise InputError(
                    f"{where}, row {number}: the column {column!r} holds the class {place}, but "
                    f"only {len(names)} classes have names; write the file again"
                )
            row[column] = None if place is None or place < 0 else names[place]
        yield number, row


def rows_of(batches: Iterable[Any]) -> Iterator[tuple[int, Row]]:
    """The rows of Arrow batches or tables, numbered from 0."""
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _ROWS):
            for row in batch.slice(start, _ROWS).to_pylist():
                yield number, row
                number += 1


def _table(
    file: File, schema: pa.Schema, batches: Callable[[], Iterator[Any]], count: int
) -> Table:
    with refused(file.path):
        names, classes = schema.names, class_names(schema, file.path)
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(
            f"{file.path}: {names.count(twice[0])} columns are called {twice[0]!r}; give each its "
            "own name"
        )

    def rows() -> Iterator[tuple[int, Row]]:
        found = with_names(rows_of(batches()), classes, file.path)
        while True:
            with refused(file.path):
                numbered = next(found, None)
            if numbered is None:
                return
            yield numbered

    return Table(
        file.name, file.stem, file.config, file.split, tuple(names), "row", rows, count=count
    )


@dataclass(frozen=True)
class Unpacked:
    """`cache/*.json`: the file beside it is a compressed one, unpacked."""

    key: str


def _unpacked(path: Path, cache: Path) -> Path:
    """The file itself; a compressed one is written to `cache` first, because it is read at places
    and not from its beginning.
    """
    if compression(path) is None:
        return path
    state = path.stat()
    text = f"{path.resolve()} {state.st_size} {state.st_mtime_ns}"
    name = sha256(text.encode()).hexdigest()[:16]
    target = cache / f"{name}{path.suffixes[-2] if len(path.suffixes) > 1 else ''}"

    def make(key: str) -> Unpacked:
        with (
            refused(path), written_whole(target) as part, open_bytes(path) as source,
            part.open("wb") as written,
        ):  # fmt: skip
            shutil.copyfileobj(source, written, 1 << 20)
        return Unpacked(key)

    stage(cache / f"{name}.json", Unpacked, [name], make, [target])
    return target
