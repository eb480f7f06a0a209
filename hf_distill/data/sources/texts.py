"""Texts without queries: a text a row, or two forms of one a row (parallel texts: what the teacher
reads, and what the student reads), or documents, one a file.

A document is cut into passages that a model can read whole, because a model reads only the
beginning of what is longer than its limit.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hf_distill.data.collection import Source, SourcePairs
from hf_distill.data.format import Format
from hf_distill.data.sources.rows import (
    LABEL_NAMES,
    SCORE_NAMES,
    Member,
    Reading,
    RowReader,
    refuse_options,
    start_reading,
    text_columns,
)
from hf_distill.data.tables.delimited import ONE_A_LINE
from hf_distill.data.tables.files import COMPRESSED, walk
from hf_distill.data.tables.open import READERS
from hf_distill.data.tables.table import Place, Row, Table, Tables
from hf_distill.data.tables.text import chunks
from hf_distill.recipe.arguments import DataArguments

TEXT_NAMES = ("text", "document", "passage", "content", "contents", "sentence", "body")
PARALLEL_NAMES = (
    ("text", "student_text"), ("english", "non_english"), ("english", "translation"),
    ("sentence1", "sentence2"), ("source", "target"),
)  # fmt: skip
"""Columns that hold parallel texts without a flag, the teacher's first; and `en` beside one other
column whose name is a language's code.
"""
DOCUMENTS = (".txt", ".md")
"""Extensions of files that are one document each, in a folder without tables."""

_LANGUAGE = re.compile(r"[a-z]{2,3}([-_][a-z]{2,4})?", re.IGNORECASE)
_CORPORA = ("corpus", "collection")
_PARAGRAPH, _LINE, _SENTENCE = r"\n\s*\n", r"\n", r"(?<=[.!?。！？])\s*"
_PIECE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]{1,5}|[^\w\s]|_")
_SPECIAL = 2
"""Tokens that a model puts around a text."""

Columns = tuple[str, str | None]
"""The columns of the teacher's texts and of the student's; None: the same."""


def _title(table: Table, text: str) -> str | None:
    """The column of titles, which are read before the texts."""
    there = [column for column in table.columns if column.lower() == "title" and column != text]
    return there[0] if len(there) == 1 else None


def _parallel(table: Table) -> Columns | None:
    """Columns with usual names of parallel texts. Two sentences with a score or a label are not two
    forms of one text.
    """
    by_name = {column.lower(): column for column in table.columns}
    if by_name.keys() & {*SCORE_NAMES, *LABEL_NAMES}:
        return None
    for text, student in PARALLEL_NAMES:
        if {text, student} <= by_name.keys():
            return by_name[text], by_name[student]
    others = [name for name in by_name if name != "en" and _LANGUAGE.fullmatch(name)]
    if "en" in by_name and len(others) == 1:
        return by_name["en"], by_name[others[0]]
    return None


def _columns(table: Table, data: DataArguments) -> Columns | None:
    """The columns that are named, else those with usual names; None: none, or it is not clear."""
    named_columns = (data.text_column, data.student_text_column)
    if any(named_columns):
        text = data.text_column or _alone(table, data.student_text_column)
        if text is None or not {text, data.student_text_column or text} <= set(table.columns):
            return None
        return text, data.student_text_column
    if parallel := _parallel(table):
        return parallel
    text = _alone(table, None)
    return None if text is None else (text, None)


def _alone(table: Table, beside: str | None) -> str | None:
    """The only column with a usual name of texts, or the only one that there is."""
    columns = [column for column in table.columns if column != beside]
    there = [column for column in columns if column.lower() in TEXT_NAMES]
    if len(there) > 1:
        there = [column for column in there if column.lower() == TEXT_NAMES[0]]
    return there[0] if there else columns[0] if len(columns) == 1 else None


def _no_header(table: Table, data: DataArguments) -> bool:
    """Whether the lines of delimited text are texts from the first one on: one cell, or two (the
    teacher's text first), that are no names: they hold a space, or letters of other scripts.
    """
    if table.cells is None or data.text_column or data.student_text_column:
        return False
    first = [cell.strip() for cell in table.columns]
    is_text = any(" " in cell or not cell.isascii() for cell in first)
    return len(first) <= 2 and (is_text or table.reading == ONE_A_LINE)


def _clearly(table: Table, data: DataArguments) -> bool:
    """Whether a table holds texts and nothing that could be a query or a document of one."""
    if data.query_column or data.document_column or text_columns(table, data) is not None:
        return False
    if len(table.columns) == 1:
        return True
    there = [column for column in table.columns if column.lower() in TEXT_NAMES]
    long = [
        column
        for column in table.columns
        if any(isinstance(v := row.get(column), str) and " " in v.strip() for row in table.head())
    ]
    return len(there) == 1 and long in ([], there)


def _fits(tables: Tables, data: DataArguments) -> bool:
    if data.text_column or data.student_text_column:
        return any(_columns(table, data) for table in tables.tables)
    return bool(tables.tables) and all(_clearly(table, data) for table in tables.tables)


def _read(tables: Tables, data: DataArguments) -> SourcePairs:
    options = ("query_column", "document_column", "label_column", "score_column", "positives")
    refuse_options(tables, data, "texts", *options)
    corpora = {id(table) for table in tables.named(*_CORPORA)}

    def is_read(table: Table) -> bool:
        has = _columns(table, data) is not None or _no_header(table, data)
        return has and (not corpora or id(table) in corpora)

    reading = start_reading(
        tables,
        is_read,
        data,
        f"has no table with a column of texts ({', '.join(TEXT_NAMES)}) or with two forms of one "
        f"({'; '.join(map(' and '.join, PARALLEL_NAMES))}), or it has several; name the teacher's "
        "with --text_column, and the student's, if it is another one, with --student_text_column",
    )
    tables_read = [table for table, _ in reading.parts]
    of = {
        id(table): None if _no_header(table, data) else _columns(table, data)
        for table in tables_read
    }
    source = reading.pairs(
        _said(tables_read[0], of[id(tables_read[0])]),
        lambda table: _reader(table, of[id(table)], reading),
        data,
    )
    return dataclasses.replace(source, texts=True)


def _said(table: Table, columns: Columns | None) -> str:
    if columns is None:
        return (
            "texts, one a line"
            if len(table.columns) == 1
            else "parallel texts without a header: the teacher reads the first, the student the "
            "second"
        )
    text, student = columns
    title = _title(table, text)
    before = f", {title!r} before it" if title is not None and student is None else ""
    if student is None:
        return f"texts of {text!r}{before}"
    return f"parallel texts: the teacher reads {text!r}, the student {student!r}"


def _reader(table: Table, columns: Columns | None, reading: Reading) -> RowReader:
    if columns is None:
        return _of_cells(table)
    text, student = columns
    title = _title(table, text) if student is None else None

    def members(place: Place, row: Row) -> Iterator[Member]:
        value = row.get(text)
        if title is not None and isinstance(value, str) and isinstance(row.get(title), str):
            value = f"{row[title]} {value}"
        yield {"text": value, **({} if student is None else {"student_text": row.get(student)})}

    names = {"text": text, **({} if student is None else {"student_text": student})}
    used = frozenset(name for name in (text, student, title) if name is not None)
    return RowReader(names, used, members)


def _of_cells(table: Table) -> RowReader:
    """Lines of one or two cells, from the first one on."""
    first, *second = table.columns
    keys = ("text", *(["student_text"] if second else []))
    start = [True]

    def members(place: Place, row: Row) -> Iterator[Member]:
        if start:  # the first line, which the table takes for names
            start.clear()
            yield dict(zip(keys, table.columns, strict=True))
        yield {key: row.get(column) for key, column in zip(keys, table.columns, strict=True)}

    return RowReader({key: key for key in keys}, frozenset((first, *second)), members)


# --- documents, one a file


def documents_in(path: Path) -> list[Path]:
    """The documents of a folder, in order of their paths; of a single file, itself if it is
    Markdown. Empty where a folder holds tables: then these are read.
    """
    if path.is_file():
        return [path] if path.suffix.lower() == ".md" else []
    files = list(walk(path)) if path.is_dir() else []
    suffixes = {
        file.suffixes[-2].lower()
        if file.suffix.lower() in COMPRESSED and len(file.suffixes) > 1
        else file.suffix.lower()
        for file in files
    }
    if suffixes & (READERS.keys() - set(DOCUMENTS)):
        return []
    return sorted(file for file in files if file.suffix.lower() in DOCUMENTS)


def read_documents(path: Path, files: Sequence[Path], longest: int) -> SourcePairs:
    """Documents as texts, each cut into passages that a model of `longest` tokens reads whole. All
    passages of a document are in the same split.
    """
    counts: dict[str, int] = {}
    unused: dict[str, int] = {}
    long = sum(tokens_of(_content(file)) > longest for file in files)
    others = sum(file not in set(files) for file in walk(path)) if path.is_dir() else 0

    def rows() -> Iterator[dict[str, Any]]:
        empty = number = 0
        for file in files:
            name = file.relative_to(path).as_posix() if path.is_dir() else file.name
            passages = passages_of(_content(file), longest)
            empty += not passages
            number += len(passages)
            yield from ({"text": text, "group": name} for text in passages)
        counts["passages found"] = number
        for what, count in (("documents without text", empty), ("files of other kinds", others)):
            if count:
                unused[f"{what} in {path.name}"] = count

    read_as = (
        f"{len(files):,} document{'' if len(files) == 1 else 's'}; {long:,} of them are cut into "
        f"passages, at paragraphs where possible: they are longer than about {longest} tokens, "
        "which is what the student reads"
    )
    return SourcePairs(
        Source(path.resolve().name, description=f"{read_as}."),
        rows(),
        counts=counts,
        read_as=read_as,
        unused=unused,
        texts=True,
    )


def _content(file: Path) -> str:
    return "".join(chunks(file)) if file.stat().st_size else ""


def tokens_of(text: str) -> int:
    """About how many tokens a model makes of `text`, and rather too many: one for every five
    letters of a word, every Chinese, Japanese or Korean character, and every mark.
    """
    return sum(1 for _ in _PIECE.finditer(text)) + _SPECIAL


def passages_of(text: str, longest: int) -> list[str]:
    """`text` in passages of at most `longest` tokens (see `tokens_of`), as few as possible: cut
    between paragraphs, inside a longer one between lines, then sentences, then words.
    """
    return _packed(text.strip(), longest, (_PARAGRAPH, _LINE, _SENTENCE, r"\s+"))


def _packed(text: str, longest: int, borders: Sequence[str]) -> list[str]:
    if tokens_of(text) <= longest:
        return [text] if text else []
    if not borders:  # a word of a thousand letters
        size = max(1, longest - _SPECIAL)
        return [text[start : start + size] for start in range(0, len(text), size)]
    passages: list[str] = []
    start = end = 0
    for part_start, part_end in _parts(text, borders[0]):
        if start < end and tokens_of(text[start:part_end]) > longest:
            passages += _packed(text[start:end].strip(), longest, borders[1:])
            start = part_start
        end = part_end
    return passages + _packed(text[start:end].strip(), longest, borders[1:])


def _parts(text: str, border: str) -> Iterator[tuple[int, int]]:
    """Where the parts between borders begin and end."""
    start = 0
    for match in re.finditer(border, text):
        if match.start() > start:
            yield start, match.start()
        start = match.end()
    if start < len(text):
        yield start, len(text)


FORMAT = Format(_fits, _read)
