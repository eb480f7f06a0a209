"""CSV, TSV, and the whitespace-separated files of TREC: lines of cells.

Cells are text. Nothing guesses a type, and words such as NA, null and nan are words.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from operator import methodcaller
from pathlib import Path

from hf_distill.data.tables.files import File
from hf_distill.data.tables.table import Row, Table
from hf_distill.data.tables.text import LONGEST, blocks, lines
from hf_distill.errors import InputError

Records = Callable[[], Iterator[tuple[int, list[str]]]]

ONE_A_LINE = "one text a line"
"""How a file is read that is no table."""

_HEAD = 100
"""Records by which a delimiter is found."""
_NUMBER = re.compile(
    r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?|nan|[-+]?inf|na|none|null|true|false", re.IGNORECASE
)
_QUOTED = r'"[^"]*(?:""[^"]*)*"'
_CELL = re.compile(rf'(?:^|\t)({_QUOTED}|[^"\t]*)(?=\t|$)')
_RECORD = re.compile(rf'(?:{_QUOTED}|[^"\t]*)(?:\t(?:{_QUOTED}|[^"\t]*))*')


def open_csv(file: File) -> Table:
    """A table with the quotes of RFC 4180, separated by whichever of comma, semicolon and tab
    gives its first records equal numbers of cells.
    """
    delimiter = _delimiter(file.path)
    names = {",": "", ";": "separated by semicolons", "\t": "separated by tabs, quoted as CSV"}
    return _table(file, lambda: _quoted(file.path, delimiter), reading=names[delimiter])


def open_tsv(file: File) -> Table:
    """A table whose lines are cells separated by tabs. The whole file decides whether quotes are
    text, as in MS MARCO, or enclose cells, as pandas and spreadsheets write them.

    Raises:
        InputError: A line with another number of cells; quotes that may be either.
    """
    quotes = _Quotes()
    for number, line in lines(file.path):
        quotes.add(number, line)
    if quotes.enclose(file.path):
        reading = "separated by tabs, quotes enclose cells"
        return _table(file, lambda: _quoted(file.path, "\t"), quotes.records, reading)
    reading = "separated by tabs, quotes are text" if quotes.seen else ""
    read = partial(_split, file.path, methodcaller("split", "\t"))
    return _table(file, read, quotes.lines, reading)


def open_text(file: File) -> Table | None:
    """A TREC file, whose cells are separated by white space; else a table with tabs. None if it is
    neither. What says that it is a run or judgements is one, even if its numbers are none.
    """
    head = [line for _, line in islice(lines(file.path), _HEAD) if line.strip()]
    tabs = all("\t" in line for line in head)
    if head and (all(_is_trec(line.split()) for line in head) or _says_trec(file, head, tabs)):
        read = partial(_split, file.path, str.split)
        return _table(file, read, reading="separated by white space")
    return open_tsv(file) if head and tabs else None


def _says_trec(file: File, head: list[str], tabs: bool) -> bool:
    """Whether the name or the first line says so, whatever the other lines are."""
    first, widths = head[0].split(), {len(line.split()) for line in head}
    if len(first) == 6 and first[1] == "Q0":
        return True
    named = file.suffix in (".trec", ".run", ".qrels")
    named |= file.stem == "qrels" and len(widths) == 1
    return named and not tabs and len(first) in (3, 4, 6)


def open_lines(file: File) -> Table:
    """A table with one cell a line."""
    return _table(file, lambda: _split(file.path, lambda line: [line]), reading=ONE_A_LINE)


def _is_trec(cells: list[str]) -> bool:
    """qrels (query, 0, document, grade), a run (query, Q0, document, rank, score, tag), or what is
    short of these: query, document and a number.
    """
    numbers = [place for place, cell in enumerate(cells) if _NUMBER.fullmatch(cell)]
    return (
        (len(cells) == 6 and (cells[1] == "Q0" or {3, 4} <= set(numbers)))
        or (len(cells) == 4 and (cells[1] == "0" or 3 in numbers))
        or (len(cells) == 3 and 2 in numbers)
    )


def _table(file: File, records: Records, count: int | None = None, reading: str = "") -> Table:
    """The table of `records`, each checked to have as many cells as the first."""
    _, first = next(records(), (0, None))
    if first is None:
        raise InputError(f"{file.path} is empty: it holds blank lines alone")
    width = len(first)

    def cells() -> Iterator[tuple[int, list[str]]]:
        for number, record in records():
            if len(record) != width:
                raise InputError(_ragged(file.path, number, len(record), width))
            yield number, record

    columns = tuple(name.strip() for name in first)

    def rows() -> Iterator[tuple[int, Row]]:
        twice = [name for name in columns if columns.count(name) > 1]
        # Numbers are no header: such a file is read by its cells.
        if twice and not any(_NUMBER.fullmatch(name) for name in twice):
            raise InputError(
                f"{file.path}, line 1: {columns.count(twice[0])} columns are called "
                f"{twice[0]!r}; give each its own name"
            )
        for number, record in islice(cells(), 1, None):
            yield number, dict(zip(columns, [cell or None for cell in record], strict=True))

    return Table(
        file.name, file.stem, file.config, file.split, columns, "line", rows, cells,
        None if count is None else count - 1, reading,
    )  # fmt: skip


def _ragged(path: Path, number: int, width: int, first: int) -> str:
    return (
        f"{path}, line {number}: {width} cells, but the first line has {first}; mend the line, or "
        "leave it out"
    )


def _split(path: Path, cut: Callable[[str], list[str]]) -> Iterator[tuple[int, list[str]]]:
    """The lines that are not blank, cut into cells."""
    for number, line in lines(path):
        if line and not line.isspace():
            yield number, cut(line)


def _quoted(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Records with the number of the line that they begin at."""
    csv.field_size_limit(LONGEST)
    text = chain.from_iterable(io.StringIO(block, newline="\n") for block in blocks(path))
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    start = 1
    try:
        for record in reader:
            if record:
                yield start, record
            start = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{path}, line {start}: {error}. A cell with a quote, a line end or the separator in "
            'it is enclosed in quotes, and each quote in it is doubled: "a ""word"" here"; mend '
            "the line"
        ) from error


def _delimiter(path: Path) -> str:
    """Of the delimiters that cut the first record, one that cuts the next ones into equally many
    cells, else the one that cuts it into most. A comma if none does.
    """
    widths: dict[str, list[int]] = {}
    for delimiter in (",", ";", "\t"):
        widths[delimiter] = []
        try:
            for _, record in islice(_quoted(path, delimiter), _HEAD):
                widths[delimiter].append(len(record))
        except InputError:
            # What cannot be read so is not separated so, or is refused when it is read.
            widths[delimiter].append(0)
    if not any(any(found) for found in widths.values()):
        for _ in _quoted(path, ","):
            break
    first = {delimiter: max(found[:1], default=0) for delimiter, found in widths.items()}
    return max(
        widths, key=lambda d: (first[d] > 1, first[d] > 1 and len(set(widths[d])) == 1, first[d])
    )


@dataclass
class _Quotes:
    """Reads a table with tabs in both ways at once: quotes are text, and quotes enclose cells.

    Attributes:
        seen: Whether there is any quote.
        lines: Lines that are not blank.
        records: Records, if quotes enclose cells.
    """

    seen: bool = False
    lines: int = 0
    records: int = 0
    _width: int = 0
    _ragged: tuple[int, int] | None = None
    _enclosing: bool = True
    _record_width: int = 0
    _open: list[str] = field(default_factory=list)
    _length: int = 0
    _several_lines: bool = False
    _needless: bool = False
    _needless_beside_commas: bool = False
    _bare_comma: bool = False
    _quoted_columns: set[int] = field(default_factory=set)
    _bare_columns: set[int] = field(default_factory=set)

    def add(self, number: int, line: str) -> None:
        if not line or line.isspace():
            if self._open:
                self._open.append(line)
            return
        self.lines += 1
        width = line.count("\t") + 1
        self._width = self._width or width
        if width != self._width and self._ragged is None:
            self._ragged = number, width
        if '"' in line:
            self.seen = True
        elif not self._open:
            self._bare(line)
            return
        if self._enclosing:
            self._open.append(line)
            if line.count('"') % 2 == (len(self._open) == 1):
                # An odd number of quotes: the record goes on, or has just begun to.
                self._length += len(line)
                self._enclosing = self._length < LONGEST
                return
            if len(self._open) == 1 or line.count('"') % 2:
                self._close()

    def _bare(self, line: str) -> None:
        """A record without quotes."""
        self._count(line.count("\t") + 1)
        self._bare_comma = self._bare_comma or "," in line
        if self.records > 1 and len(self._bare_columns) < self._width:
            self._note_bare(line.split("\t"))

    def _note_bare(self, cells: list[str]) -> None:
        self._bare_columns |= {
            place
            for place, cell in enumerate(cells)
            if cell and not cell.startswith('"') and not _NUMBER.fullmatch(cell)
        }

    def _count(self, width: int) -> None:
        self.records += 1
        self._record_width = self._record_width or width
        self._enclosing = self._enclosing and width == self._record_width

    def _close(self) -> None:
        """The lines in `_open` are a record, if quotes enclose cells."""
        rows = sum(line.count("\t") + 1 == self._width for line in self._open)
        record = "\n".join(self._open)
        several = len(self._open) > 1
        self._open, self._length = [], 0
        if not _RECORD.fullmatch(record) or (several and self._width > 1 and rows > 1):
            # Quotes inside a cell, or a cell that swallows what are rows by themselves.
            self._enclosing = False
            return
        cells = _CELL.findall(record)
        self._count(len(cells))
        self._several_lines |= several
        for place, cell in enumerate(cells):
            if not cell.startswith('"'):
                self._bare_comma |= "," in cell
                continue
            inside = cell[1:-1]
            needed = not inside or bool(re.search('["\t\n\r]', inside))
            self._needless |= not needed
            self._needless_beside_commas |= not needed and "," not in inside
            if self.records > 1:
                self._quoted_columns.add(place)
        if self.records > 1:
            self._note_bare(cells)

    def enclose(self, path: Path) -> bool:
        """Whether quotes enclose cells. They do if that gives each record as many cells and either
        the lines alone do not, or they enclose just what a writer encloses: cells that hold quotes
        or tabs, and commas, too (spreadsheets), or all texts of a column.
        """
        if not self.seen or not self._enclosing or self._open:
            if self._ragged is not None:
                raise InputError(_ragged(path, *self._ragged, self._width))
            return False
        if self._ragged is not None:
            return True
        if self._several_lines or self._record_width != self._width:
            raise InputError(
                f"{path}: its quotes may be text or enclose cells, and the rows differ; write it "
                "as CSV or JSONL"
            )
        return (
            not self._needless
            or not (self._needless_beside_commas or self._bare_comma)
            or bool(self._quoted_columns and not self._quoted_columns & self._bare_columns)
        )
