"""Files and folders become tables: `open_tables`."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from hf_distill.data.tables.arrow import open_arrow, open_parquet
from hf_distill.data.tables.delimited import open_csv, open_lines, open_text, open_tsv
from hf_distill.data.tables.files import COMPRESSED, File, describe, describe_folder
from hf_distill.data.tables.jsonl import not_a_table, open_json
from hf_distill.data.tables.table import Table, Tables
from hf_distill.data.tables.text import first_bytes
from hf_distill.errors import InputError

READERS: Mapping[str, Callable[[File, Path], Table | None]] = {
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), lambda file, _: open_json(file)),
    ".csv": lambda file, _: open_csv(file),
    **dict.fromkeys((".tsv", ".tab"), lambda file, _: open_tsv(file)),
    **dict.fromkeys((".txt", ".trec", ".run", ".qrels"), lambda file, _: open_text(file)),
    **dict.fromkeys((".parquet", ".pq"), open_parquet),
    **dict.fromkeys((".arrow", ".feather"), open_arrow),
}
"""Extension -> what reads it. A reader returns None for a file that holds no table."""

_WITHOUT_EXTENSION = re.compile(r"collection|corpus|quer|qrels|triples|\brun\b|top1000")
"""What MS MARCO calls files of text that may have no extension: `top1000.dev`, `qrels.train`."""
_SNIFFED = 4096
_PART_OF = re.compile(r"-(\d{5})-of-(\d{5})(?=\.)")


def open_tables(path: Path, key: str, cache: Path) -> Tables:
    """The tables at `path`: a file, a folder of files, what `save_to_disk` wrote, or the clone of
    a data set's repository.

    Args:
        path: File or folder. Brackets and asterisks in it are plain characters.
        key: The recipe's key that names `path`, for messages.
        cache: Where compressed Parquet and Arrow files are unpacked.

    Raises:
        InputError: Nothing there, no table, two files that may be the same table, or a file that
            cannot be read, with the line if it has lines.
    """
    if not path.exists():
        raise InputError(f"--{key} {path}: there is no such file or folder")
    if path.is_dir():
        return _open_folder(path, key, cache)
    file = describe(path, path.parent)
    table = _open_file(file, key, cache)
    name = PurePosixPath(file.name.removesuffix(path.suffix if _packed(path) else "")).stem
    return Tables(path, name, key, (table,))


def _packed(path: Path) -> bool:
    return path.suffix.lower() in COMPRESSED


def _open_file(file: File, key: str, cache: Path) -> Table:
    reader = READERS.get(file.suffix)
    if reader is None:
        start = first_bytes(file.path, 6)
        if start.startswith(b"PAR1"):
            return open_parquet(file, cache)
        if start == b"ARROW1":
            return open_arrow(file, cache)
        table = open_text(file) if start.isascii() and b"\0" not in start else None
        if table is None:
            raise InputError(
                f"--{key} {file.path}: {file.suffix or 'a name without an extension'} cannot be "
                f"read; name a {', '.join(READERS)} file, or one of these compressed "
                f"({', '.join(COMPRESSED)})"
            )
        return table
    table = reader(file, cache)
    if table is not None:
        return table
    if file.suffix in (".json", ".jsonl", ".ndjson"):
        raise not_a_table(file)
    return open_lines(file)


def _reader(file: File) -> Callable[[File, Path], Table | None] | None:
    known = READERS.get(file.suffix)
    if known or not _WITHOUT_EXTENSION.search(file.name.lower()):
        return known
    start = first_bytes(file.path, _SNIFFED) if file.path.stat().st_size else b""
    return READERS[".txt"] if start and b"\0" not in start and _is_utf8(start) else None


def _is_utf8(start: bytes) -> bool:
    """Whether these bytes are text that may go on behind them."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False
    return True


def _open_folder(path: Path, key: str, cache: Path) -> Tables:
    files, others, license_name = describe_folder(path)
    readers = {file: reader for file in files if (reader := _reader(file)) is not None}
    readable = list(readers)
    others += [file.name for file in files if file not in readers]
    _check_names(readable, path, key)
    _check_parts(readable, path, key)
    tables = []
    for file in readable:
        table = readers[file](file, cache)
        if table is None:
            others.append(file.name)
        else:
            tables.append(table.with_columns(file.partition))
    if not tables:
        what = f"; it holds {', '.join(sorted(others)[:8])}" if others else "; it is empty"
        raise InputError(
            f"--{key} {path}: the folder holds no {', '.join(READERS)} file with a table{what}"
        )
    name = path.resolve().name
    ordered = tuple(sorted(tables, key=lambda table: table.name))
    return Tables(path, name, key, ordered, tuple(sorted(others)), license_name)


def _check_parts(files: list[File], path: Path, key: str) -> None:
    """`train-00000-of-00002` without its neighbour is half of a table."""
    numbers: dict[tuple[str, int], set[int]] = {}
    for file in files:
        if part := _PART_OF.search(file.name):
            whole = file.name[: part.start()]
            numbers.setdefault((whole, int(part[2])), set()).add(int(part[1]))
    for (whole, total), there in numbers.items():
        if missing := sorted(set(range(total)) - there):
            raise InputError(
                f"--{key} {path}: {whole} has {total} parts, and {len(missing)} of them are not "
                f"there (e.g. number {missing[0]}); download the folder again"
            )


def _check_names(files: list[File], path: Path, key: str) -> None:
    """The same table in two forms would be read twice."""
    names: dict[str, str] = {}
    for file in files:
        whole = file.name.removesuffix(file.path.suffix) if _packed(file.path) else file.name
        known = file.suffix in READERS
        name = whole[: len(whole) - len(file.suffix)] if known else whole
        if name in names:
            raise InputError(
                f"--{key} {path}: {names[name]} and {file.name} may be one table in two forms, "
                "and would be read twice; keep one of them, or name the file"
            )
        names[name] = file.name
