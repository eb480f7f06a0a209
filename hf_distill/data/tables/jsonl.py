"""JSON: an object a line, a list of objects, or one object that holds the columns."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from hf_distill.data.tables.files import File
from hf_distill.data.tables.table import Row, Table
from hf_distill.data.tables.text import BLOCK, LONGEST, chunks, lines
from hf_distill.errors import InputError

_MOST_COLUMNS = 1000
_LARGEST_DOCUMENT = 1 << 30
"""Characters of a file whose columns stand one after another: it is held as a whole."""

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()
_ROW = msgspec.json.Decoder(dict[str, Any])
_KEYS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def open_json(file: File) -> Table | None:
    """A table of JSON. The file is read once, for the names of its columns. None: the file is one
    object that is no table, like a configuration.

    A row is an object, or a list whose columns are called 0, 1, 2. The number of an element of a
    list is the place of its row.

    Raises:
        InputError: Text that is not JSON, or a row that is neither object nor list, with the line;
            more than 1,000 columns.
    """
    pieces = chunks(file.path)
    start = next((text.lstrip() for text in pieces if not text.isspace()), "")
    if not start:
        raise InputError(f"{file.path} is empty: it holds white space alone")
    if _one_a_line(file, start, next(pieces, "")):
        return _table(file, "line", lambda: _line_rows(file.path), _line_keys(file.path))
    if start[0] == "[":
        keys = (row for _, row in _list_rows(file.path))
        return _table(file, "row", lambda: _list_rows(file.path), keys)
    rows = _rows_of_document(_document(file.path))
    if rows is None:
        return None

    def document_rows() -> Iterator[tuple[int, Row]]:
        return enumerate(_rows_of_document(_document(file.path)) or ())

    return _table(file, "row", document_rows, iter(rows))


def not_a_table(file: File) -> InputError:
    """Why a file for which `open_json` returned None cannot be read."""
    value = _document(file.path)
    keys = ", ".join(map(repr, list(value)[:8])) if isinstance(value, dict) else ""
    held = f"one object, with the keys {keys}" if keys else f"one value, {value!r:.50}"
    return InputError(
        f"{file.path} holds {held}; a table is an object a "
        "line (.jsonl), a list of objects, or an object of columns of the same length"
    )


def _one_a_line(file: File, start: str, more: str) -> bool:
    """Whether each line is a row by itself, by the first two pieces. A `.json` with one line is a
    document.
    """
    first, end, rest = start.partition("\n")
    document = file.suffix == ".json"
    if not end and more:
        return not document and start[0] == "{"
    try:
        value = _DECODER.decode(first)
    except (ValueError, RecursionError):
        # A bracket alone begins a document; what else is broken is refused with its line.
        return not document and first[0] == "{" and first.strip() != "{"
    if isinstance(value, list) and value and isinstance(value[0], dict | list):
        return False
    return not document or bool(rest.strip() or more.strip())


def _table(
    file: File,
    unit: Any,
    read: Callable[[], Iterator[tuple[int, Row]]],
    keys: Iterator[Row],
) -> Table:
    columns: dict[str, None] = {}
    count = 0
    for row in keys:
        count += 1
        if not row.keys() <= columns.keys():
            columns |= dict.fromkeys(row)
            if len(columns) > _MOST_COLUMNS:
                raise InputError(
                    f"{file.path} has more than {_MOST_COLUMNS:,} different keys; a row is an "
                    "object whose keys are the names of columns"
                )
    empty = dict.fromkeys(columns)

    def rows() -> Iterator[tuple[int, Row]]:
        for place, row in read():
            yield place, row if len(row) == len(empty) else {**empty, **row}

    return Table(
        file.name, file.stem, file.config, file.split, tuple(columns), unit, rows,
        count=count,
    )  # fmt: skip


def _row(value: object, where: str) -> Row:
    if isinstance(value, dict):
        return value
    if isinstance(value, list):
        return {str(place): cell for place, cell in enumerate(value)}
    raise InputError(
        f"{where}: {value!r:.50} is a {type(value).__name__}, but a row is an object with the "
        "names of the columns"
    )


def _slowly(line: str, where: str) -> Row:
    """As Python's own reader has it, which takes NaN, Infinity and lone surrogates, too."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where}: not JSON: {error.msg} at column {error.colno}; mend the line, or leave it "
            "out"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON that can be read: {error}") from error
    return _row(value, where)


def _line_rows(path: Path) -> Iterator[tuple[int, Row]]:
    decode = _ROW.decode
    for number, line in lines(path):
        try:
            row = decode(line)
        except (msgspec.DecodeError, RecursionError):
            if not line.strip():
                continue
            row = _slowly(line, f"{path}, line {number}")
        yield number, row


def _line_keys(path: Path) -> Iterator[Row]:
    """The rows with their keys alone."""
    decode = _KEYS.decode
    for number, line in lines(path):
        try:
            yield decode(line)
        except (msgspec.DecodeError, RecursionError):
            if line.strip():
                yield _slowly(line, f"{path}, line {number}")


class _Reader:
    """Reads one JSON value after another from a text that comes in pieces."""

    def __init__(self, path: Path, longest: int) -> None:
        self._path, self._longest = path, longest
        self._pieces = chunks(path)
        self._text, self._place, self._lines, self._ended = "", 0, 0, False

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            space = _SPACE.match(self._text, self._place)
            self._place = space.end() if space else self._place
            if self._place < len(self._text) or self._ended:
                return self._text[self._place : self._place + 1]
            self._more(BLOCK)

    def skip(self) -> None:
        """Pass the character that `peek` returned."""
        self._place += 1

    def value(self) -> Any:
        """The value that begins at the next character."""
        self.peek()
        while True:
            try:
                value, self._place = _DECODER.raw_decode(self._text, self._place)
                return value
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos > len(self._text) - 16
                if self._ended or not cut:
                    raise self.error(error.msg, error.pos) from error
                self._more(len(self._text) - self._place)
            except (ValueError, RecursionError) as error:
                raise self.error(str(error), self._place) from error

    def _more(self, size: int) -> None:
        """At least `size` more characters: as many as there are, so that a long value is not tried
        again after each block."""
        self._lines += self._text.count("\n", 0, self._place)
        pieces, self._place = [self._text[self._place :]], 0
        while size > 0 and (piece := next(self._pieces, "")):
            pieces.append(piece)
            size -= len(piece)
        self._ended = size > 0
        self._text = "".join(pieces)
        if len(self._text) > self._longest + BLOCK:
            raise InputError(
                f"{self._path}, line {self._lines + 1}: a value of more than "
                f"{self._longest:,} characters; write one object a line (.jsonl)"
            )

    def error(self, said: str, place: int | None = None) -> InputError:
        """What is wrong at `place`, the next character."""
        place = self._place if place is None else place
        line = self._lines + self._text.count("\n", 0, place) + 1
        ends = said.startswith("Unterminated") or place >= len(self._text.rstrip())
        cut = " (the file ends here: it was cut off)" if ends else ""
        return InputError(f"{self._path}, line {line}: not JSON: {said}{cut}; mend the file")


def _list_rows(path: Path) -> Iterator[tuple[int, Row]]:
    reader = _Reader(path, LONGEST)
    reader.peek()
    reader.skip()
    number = 0
    while reader.peek() != "]":
        yield number, _row(reader.value(), f"{path}, row {number}")
        number += 1
        if reader.peek() == "]":
            break
        if reader.peek() != ",":
            raise reader.error("expecting , or ]")
        reader.skip()
        if reader.peek() == "]":
            raise reader.error("a comma after the last row")
    reader.skip()
    if reader.peek():
        raise reader.error("more text after the list")


def _document(path: Path) -> Any:
    reader = _Reader(path, _LARGEST_DOCUMENT)
    value = reader.value()
    if reader.peek():
        raise reader.error("more text after the value; put each object on a line of its own")
    return value


def _rows_of_document(value: Any) -> list[Row] | None:
    """The rows of `{"data": [{...}]}`, of columns that are lists, and of what `DataFrame.to_json`
    of pandas writes (columns by index; or `columns` and `data`).
    """
    if not isinstance(value, dict) or not value:
        return None
    return _rows_of_data(value) or _rows_of_lists(value) or _rows_of_index(value)


def _rows_of_data(value: dict[str, Any]) -> list[Row] | None:
    data, names = value.get("data"), value.get("columns")
    if not isinstance(data, list):
        return None
    if all(isinstance(row, dict) for row in data):
        lists = sum(isinstance(other, list) for other in value.values())
        return data if lists == 1 else None
    if isinstance(names, list) and all(
        isinstance(row, list) and len(row) == len(names) for row in data
    ):
        return [dict(zip(map(str, names), row, strict=True)) for row in data]
    return None


def _rows_of_lists(value: dict[str, Any]) -> list[Row] | None:
    columns = list(value.values())
    if not all(isinstance(column, list) for column in columns):
        return None
    if len(set(map(len, columns))) > 1:
        return None
    if any(isinstance(cell, dict) for column in columns for cell in column):
        return None
    return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]


def _rows_of_index(value: dict[str, Any]) -> list[Row] | None:
    columns = list(value.values())
    if not all(isinstance(column, dict) for column in columns):
        return None
    if any(column.keys() != columns[0].keys() for column in columns):
        return None
    if not all(key.isdigit() for key in columns[0]):
        return None
    return [{name: value[name][key] for name in value} for key in columns[0]]
