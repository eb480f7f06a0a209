"""What the formats with one query a row share: which table is for what, the names of columns,
labels and scores, and which documents of a scored list are relevant.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_distill.data.collection import Source, SourcePairs
from hf_distill.data.tables.table import Place, Row, Table, Tables
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import CONVERSATION, UTTERANCE, DataArguments

QUERY_NAMES = ("query", "question", "anchor")
DOCUMENT_NAMES = ("document", "passage", "positive", "answer", "context", "text")
"""Columns that are queries and documents without a flag. The first name wins; of the others, there
must be one alone.
"""

LABEL_NAMES = ("label", "grade", "relevance")
SCORE_NAMES = ("score", "teacher_score")
SPLIT_NAMES = ("train", "validation", "test")
ALSO_VALIDATION = ("dev", "val", "valid", "eval")

HISTORY, REWRITE = "history", "rewrite"
"""Columns of the turns of conversations, beside `query`."""

COLUMN_OPTIONS = (
    "query_column", "document_column", "label_column", "score_column", "group_column",
    "source_column", "text_column", "student_text_column",
)  # fmt: skip
_OWN_KEYS = ("dataset_path", "dataset_name")
"""Keys of the data that the options about columns are meant for. A test set or a second source may
lack such a column.
"""

_LABEL_WORDS = {
    "true": 1, "false": 0, "relevant": 1, "not relevant": 0, "not_relevant": 0, "irrelevant": 0,
}  # fmt: skip

Member = dict[str, Any]
"""One (query, document): what a row says of it."""


@dataclass(frozen=True)
class RowReader:
    """How the rows of one table become (query, document)s.

    Attributes:
        names: `query` and `document` -> what the table calls them, for messages.
        columns: The columns that are read.
        members: The (query, document)s of a row, given with its place.
    """

    names: Mapping[str, str]
    columns: frozenset[str]
    members: Callable[[Place, Row], Iterable[Member]]


@dataclass(frozen=True)
class Reading:
    """Tables on their way to `SourcePairs`.

    Attributes:
        tables: All of them.
        parts: Those that are read, each with the split of its rows.
        counts: Reason -> (query, document)s that are left out; filled while rows are read.
        beside: Tables that these need, such as those with the texts of ids.
        unused: Filled while rows are read.
        note: What `read_as` adds about the splits.
    """

    tables: Tables
    parts: tuple[tuple[Table, str | None], ...]
    beside: tuple[Table, ...] = ()
    counts: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)
    note: str = ""

    def pairs(
        self,
        read_as: str,
        reader: Callable[[Table], RowReader],
        data: DataArguments,
        corpus: Iterable[tuple[str, str | None]] | None = None,
    ) -> SourcePairs:
        """The rows of all parts, with their group, source and place."""
        readers = [reader(table) for table, _ in self.parts]

        def rows() -> Iterator[Member]:
            for (table, split), of_table in zip(self.parts, readers, strict=True):
                yield from self._rows(table, split, of_table, data)
            self._count_the_rest()

        return SourcePairs(
            Source(
                self.tables.name,
                license=self.tables.license,
                url=self.tables.url,
                description=f"{read_as[0].upper()}{read_as[1:]}.",
            ),
            rows(),
            corpus=corpus,
            counts=self.counts,
            read_as=f"{read_as}{self.note}",
            unused=self.unused,
        )

    def _rows(
        self, table: Table, split: str | None, reader: RowReader, data: DataArguments
    ) -> Iterator[Member]:
        group, source = (
            column if column in table.columns else None
            for column in (data.group_column, data.source_column)
        )
        for_student = column_of(data) if column_of(data) in table.columns else None
        used = reader.columns | {group, source, for_student}
        shared = {"names": reader.names, "split": split}
        unused: Counter[str] = Counter()
        for place, row in table.read():
            base: Member = {**shared, "at": (table, place)}
            for key, column in (("group", group), ("source", source)):
                if column is not None:
                    base[key] = name_of(row.get(column), table, place, column)
            if for_student is not None:
                base["student_query"] = row.get(for_student)
                base["names"] = {**reader.names, "student_query": for_student}
            for member in reader.members(place, row):
                yield {**base, **member}
            for column, value in row.items():
                if value is not None and column not in used:
                    unused[column] += 1
        for column, count in unused.items():
            self.unused[f"column {column} of {table.name}"] += count

    def _count_the_rest(self) -> None:
        read = {id(table) for table in (*(table for table, _ in self.parts), *self.beside)}
        for table in self.tables.tables:
            if id(table) not in read:
                count = table.count if table.count is not None else sum(1 for _ in table.read())
                what = f"split {table.split} of " if table.split else "table "
                self.unused[f"{what}{table.name}"] += count
        for name in self.tables.others:
            self.unused[f"file {name}"] += 1


def start_reading(
    tables: Tables, has_format: Callable[[Table], bool], data: DataArguments, missing: str
) -> Reading:
    """Choose the tables that are read, and say for which split each is.

    A split of one name alone is no split: its rows are divided. Tables for a purpose that is not
    train, validation or test are not read; a table without a split is for training where no other
    is.

    Args:
        tables: All of them.
        has_format: Whether a table has the format.
        data: `dataset_split`.
        missing: What tables of this format have, for the error.

    Raises:
        InputError: No table has the format, several configurations have it, or there is no such
            split.
    """
    chosen = [table for table in tables.tables if has_format(table)]
    if not chosen:
        raise InputError(f"{named(tables)} {missing}; {columns_of(tables)}")
    configs = sorted({table.config or "(top)" for table in chosen})
    if len(configs) > 1:
        raise InputError(
            f"{named(tables)} holds several data sets: {', '.join(configs)}; name one of them with "
            "--dataset_config, or several with --sources NAME=PATH"
        )
    splits = list(dict.fromkeys(table.split for table in chosen))
    if data.dataset_split is not None:
        wanted = data.dataset_split
        wanted = "validation" if wanted in ALSO_VALIDATION else wanted
        if wanted not in splits:
            raise InputError(
                f"--dataset_split {data.dataset_split}: {tables.name} has no such split; its "
                f"splits are {', '.join(str(split) for split in splits)}"
            )
        return Reading(tables, tuple((t, None) for t in chosen if t.split == wanted))
    usual = SPLIT_NAMES if "train" in splits else (None, *SPLIT_NAMES)
    parts = [(t, t.split or "train") for t in chosen if t.split in usual]
    if not parts and len(splits) > 1:
        raise InputError(
            f"{named(tables)} has the splits {', '.join(map(str, splits))}, and none of them is "
            "train, validation or test; name one with --dataset_split"
        )
    if len({split for _, split in parts}) <= 1:
        parts = parts or [(table, "") for table in chosen]
        only = {table.split for table, _ in parts} - {None, "train"}
        note = f"; all of it is the split {only.pop()}, which is divided" if only else ""
        return Reading(tables, tuple((table, None) for table, _ in parts), note=note)
    return Reading(tables, tuple(parts))


def named(tables: Tables) -> str:
    """`--dataset_path pairs.jsonl`, for messages."""
    return f"--{tables.key} {tables.path or tables.name}:"


def columns_of(tables: Tables) -> str:
    """What the tables hold, for messages."""
    held = "; ".join(f"{t.name}: {', '.join(t.columns)}" for t in tables.tables[:5])
    more = f"; and {len(tables.tables) - 5} more" if len(tables.tables) > 5 else ""
    return f"the columns are {held}{more}"


def column_of(data: DataArguments) -> str | None:
    """The column that the student reads in place of the query; None: `student_query` names none."""
    return None if data.student_query in (CONVERSATION, UTTERANCE) else data.student_query


def fitting_options(tables: Tables, data: DataArguments) -> DataArguments:
    """The options as they apply to these tables.

    Raises:
        InputError: A column that none of the tables has, where the option was meant for them.
    """
    there = {column for table in tables.tables for column in table.columns}
    given = {key: getattr(data, key) for key in COLUMN_OPTIONS} | {"student_query": column_of(data)}
    missing = [key for key, column in given.items() if column not in (None, *there)]
    if missing and tables.key in _OWN_KEYS:
        key = missing[0]
        raise InputError(
            f"--{key} {getattr(data, key)}: {tables.name} has no such column; {columns_of(tables)}"
        )
    return DataArguments(**{**vars(data), **dict.fromkeys(missing)})


def refuse_options(tables: Tables, data: DataArguments, read_as: str, *keys: str) -> None:
    """Refuse `keys` that are given but have no effect on this format.

    Raises:
        InputError: One of them is given, and was meant for these tables.
    """
    for key in keys:
        if getattr(data, key) is not None and tables.key in _OWN_KEYS:
            raise InputError(
                f"--{key} {getattr(data, key)} has no effect: {tables.name} is read as {read_as}; "
                "leave it out, or name another --format"
            )


def text_columns(table: Table, data: DataArguments) -> tuple[str, str] | None:
    """The columns of query and document: those that are named, else those with a usual name; None
    if it is not clear which they are.
    """
    by_name = {column.lower(): column for column in table.columns}
    query = data.query_column or _usual(by_name, QUERY_NAMES, data.document_column)
    document = data.document_column or _usual(by_name, DOCUMENT_NAMES, query)
    if query is None and document is None and {"title", "body"} <= by_name.keys():
        query, document = by_name["title"], by_name["body"]
    if query is None or document is None or not {query, document} <= set(table.columns):
        return None
    return query, document


def _usual(by_name: Mapping[str, str], names: Sequence[str], other: str | None) -> str | None:
    there = [by_name[name] for name in names if name in by_name and by_name[name] != other]
    first = by_name.get(names[0])
    return first if first in there else there[0] if len(there) == 1 else None


def one_of(table: Table, given: str | None, names: Sequence[str], key: str) -> str | None:
    """The column `given`, else the one with a usual name.

    Raises:
        InputError: Several have one.
    """
    if given is not None:
        return given if given in table.columns else None
    there = [column for column in table.columns if column.lower() in names]
    if len(there) > 1:
        raise InputError(
            f"{table.name} has the columns {' and '.join(there)}; name the one to use with --{key}"
        )
    return there[0] if there else None


def name_of(value: object, table: Table, place: Place, column: str) -> str | None:
    """A group, source or id as text: 7, 7.0 and "7" are one name. Nothing is no name.

    Raises:
        InputError: A list or an object.
    """
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() else str(value)
    if value is None or isinstance(value, int):
        return None if value is None else str(value)
    raise InputError(
        f"{table.where(place)}: the column {column!r} holds a {type(value).__name__} "
        f"({value!r:.50}), but a name is a text or a number"
    )


def score_of(value: object, table: Table, place: Place, column: str) -> float | None:
    """A score; None if it is missing.

    Raises:
        InputError: It is no number.
    """
    score = math.nan if value is None else _number(value)
    if score is None or math.isinf(score):
        raise InputError(
            f"{table.where(place)}: the column {column!r} holds {value!r:.50}, but a score is a "
            "number; fix the row, or name another --score_column"
        )
    return None if math.isnan(score) else score


def as_number(value: object) -> float | None:
    """A label as a number; None if it is none."""
    if isinstance(value, str):
        value = _LABEL_WORDS.get(value.strip().lower(), value)
    return _number(value)


def _number(value: object) -> float | None:
    """A number, also if it is written as text; None if it is none."""
    if isinstance(value, str) and "_" in value:
        return None  # Python reads 1_0 as 10
    try:
        return float(value)  # type: ignore[arg-type]  # what is no number raises
    except (TypeError, ValueError, OverflowError):
        return None


def grade_of(value: object, table: Table, place: Place, column: str) -> int | None:
    """A label as a grade: 1, 1.0, "1", true and "relevant" are 1. None if it is missing.

    Raises:
        InputError: It is a word, or no whole number.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    number = as_number(value)
    if number is None or not math.isfinite(number) or not number.is_integer():
        raise InputError(
            f"{table.where(place)}: the column {column!r} holds {value!r:.50}, but a label is a "
            "whole number: 0 for a document that is not relevant, 1 or more for one that is. Name "
            "the column with --score_column if these are similarities; replace words by numbers"
        )
    return int(number)


def fractional(values: Iterable[object]) -> bool:
    """Whether one of the labels is a number with a fraction, so that they are similarities."""
    numbers = (as_number(value) for value in values)
    return any(n is not None and math.isfinite(n) and not n.is_integer() for n in numbers)


def list_of(value: object, table: Table, place: Place, column: str) -> list[Any]:
    """A list; nothing is an empty one.

    Raises:
        InputError: Something else.
    """
    if value is None:
        return []
    if isinstance(value, (list, tuple, np.ndarray)):
        return list(value)
    raise InputError(
        f"{table.where(place)}: the column {column!r} holds a {type(value).__name__} "
        f"({value!r:.50}), but this format has a list there; write [...] around it"
    )


def as_many(values: Sequence[object], columns: tuple[str, str], texts: int, where: str) -> None:
    """Refuse a list that is not as long as the one that it belongs to.

    Args:
        values: Scores or labels.
        columns: Their column, and that of the texts.
        texts: How many texts there are.
        where: The row, for the error.

    Raises:
        InputError: The lengths differ.
    """
    if len(values) != texts:
        raise InputError(
            f"{where}: {columns[0]!r} has {len(values)} values and {columns[1]!r} {texts} texts, "
            "so nobody knows which belongs to which; fix the row"
        )


# --- which documents of a scored list are relevant


def positives_rule(data: DataArguments) -> str | float | None:
    """`--positives`: best, first, all, or a score.

    Raises:
        InputError: Something else.
    """
    rule = data.positives
    if rule is None or rule in ("best", "first", "all"):
        return rule
    try:
        return float(rule)
    except ValueError:
        raise InputError(
            f"--positives {rule}: it is best, first, all, or a score, e.g. 0.5"
        ) from None


def refuse_scored_list(what: str) -> InputError:
    """The error about lists of which nothing says what is relevant."""
    return InputError(
        f"{what}, and nothing says which of them are relevant; say it with --positives best, "
        "first, all or a score, e.g. 0.5, or name a column of labels with --label_column"
    )


def relevant(queries: np.ndarray, scores: np.ndarray, rule: str | float) -> np.ndarray:
    """Which rows are relevant.

    Args:
        queries: (n,) equal numbers for equal queries.
        scores: (n,) float64; NaN: none.
        rule: all; first: the first row of each query; best: the first of its rows with the highest
            score; a number: all rows with at least this score.

    Returns:
        (n,) bool.
    """
    if rule == "all":
        return np.ones(len(queries), dtype=bool)
    if not isinstance(rule, str):
        at_least: np.ndarray = scores >= rule
        return at_least
    keys = (queries,) if rule == "first" else (-np.nan_to_num(scores, nan=-np.inf), queries)
    order = np.lexsort(keys)
    _, first = np.unique(queries[order], return_index=True)
    rows = np.zeros(len(queries), dtype=bool)
    rows[order[first]] = True
    return rows & ~np.isnan(scores) if rule == "best" else rows


# --- words for `read_as`


def how_many(counts: Iterable[int], one: str) -> str:
    """`1 positive`, `7 negatives`, `2 to 5 negatives`."""
    numbers = sorted(set(counts)) or [0]
    if len(numbers) == 1:
        return f"{numbers[0]} {one}{'' if numbers[0] == 1 else 's'}"
    return f"{numbers[0]} to {numbers[-1]} {one}s"
