"""Tables of texts, judgements and lists that name each other by id: what each of them is, by its
name, its columns and its first rows (`shape_of`, `parts_of`), and its rows.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Literal

from hf_distill.data.sources.rows import as_number
from hf_distill.data.sources.stored import BATCH, TextTable
from hf_distill.data.tables.table import Place, Row, Table, Tables
from hf_distill.errors import InputError

QUERY_IDS = ("query_id", "qid", "queryid", "q_id", "topic_id")
DOCUMENT_IDS = (
    "corpus_id", "doc_id", "docid", "document_id", "documentid", "pid", "passage_id", "docno",
)  # fmt: skip
TEXTS = ("text", "contents", "content", "passage", "document", "body", "query", "question")
LABELS = ("grade", "relevance", "label", "rel", "judgement", "judgment")
GRADES = ("score", *LABELS)
RANKS = ("rank", "ranking", "position")
"""What columns are called, in lower case and with underscores."""

_PAIRS = {*TEXTS, "answer", "positive", "anchor", "negative"}
"""A table with such a column holds texts, whatever ids stand beside them."""
_HIGHEST_GRADE = 10
"""Of a third column of whole numbers without a name: greater ones are ids."""
_HEAD = 20

Shape = Literal[
    "qrels", "texts", "lines", "documents", "run", "named run", "ranks", "id triples",
    "hard negatives", "triples", "top",
]  # fmt: skip
"""What a table is, by its columns and first rows. `texts` have named columns, `lines` are an id
and a text, `documents` are MS MARCO's (id, url, title, body). A `run` is TREC's, a `named run` has
columns with names, `ranks` is one of (query, document, rank); `top` are (query id, document id,
query, document).
"""

Named = tuple[Place, str, str, Mapping[str, Any]]
"""Place, query id, document id, and what is said of the two: a row of `SourcePairs`."""


@dataclass(frozen=True)
class Judged:
    """A table that names queries and documents by id, and the split that it is for. `scored`: it
    gives scores.
    """

    table: Table
    split: str | None
    read: Callable[[], Iterator[Named]]
    scored: bool = False


@dataclass(frozen=True)
class Parts:
    """What the tables of a folder are.

    Attributes:
        corpus, queries: Tables of texts.
        judgements: Tables of graded (query, document) pairs.
        runs: Lists without judgements.
        triples: Triples of ids, and hard negatives: they say what is relevant.
        texts: Triples of texts and the like: they need no corpus. Each gives its rows.
        unused: Table or file -> how many rows (or 1) nobody reads.
    """

    corpus: list[TextTable] = field(default_factory=list)
    queries: list[TextTable] = field(default_factory=list)
    judgements: list[Judged] = field(default_factory=list)
    runs: list[Judged] = field(default_factory=list)
    triples: list[Judged] = field(default_factory=list)
    texts: list[tuple[Table, Iterable[Row]]] = field(default_factory=list)
    unused: dict[str, int] = field(default_factory=dict)


# --- what a table is


def _plain(name: object) -> str:
    return re.sub(r"[^a-z0-9]+", "_", str(name).lower()).strip("_")


def column_of(table: Table, names: Iterable[str]) -> str | None:
    """The column of `table` that has the first of `names`, in any spelling."""
    keys = {_plain(column): column for column in _keys(table)}
    return next((keys[name] for name in map(_plain, names) if name in keys), None)


@lru_cache(maxsize=256)  # a JSON list is parsed as a whole for its head
def _keys(table: Table) -> tuple[str, ...]:
    if table.cells is not None:
        return table.columns
    return tuple(dict.fromkeys(itertools.chain(table.columns, *table.head(_HEAD))))


def words_of(table: Table) -> str:
    return f"{table.config or ''} {table.stem} {table.name}".lower()


def lines_of(table: Table) -> Iterator[tuple[Place, list[str]]]:
    """The cells of each line that holds something; white space divides them if no tab does."""
    for place, cells in table.cells() if table.cells is not None else ():
        parts = cells if len(cells) > 1 else " ".join(cells).split()
        if any(parts):
            yield place, parts


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?", text.strip()) is not None


def _is_score(text: str) -> bool:
    """A number, or what a system writes that has none."""
    return _is_number(text) or text.lower().lstrip("+-") in ("nan", "inf", "infinity")


def _is_header(cells: Sequence[str]) -> bool:
    """Whether no cell is an id or a number: those have digits."""
    return not any(char.isdigit() for cell in cells if cell != "Q0" for char in cell)


def shape_of(table: Table) -> Shape | None:
    """What `table` is; None: nothing that names texts by id."""
    words = words_of(table)
    keys = {_plain(key) for key in _keys(table)}
    ids = column_of(table, QUERY_IDS) and column_of(table, DOCUMENT_IDS)
    if "qrel" in words or (ids and not keys & _PAIRS):
        ranked = "qrel" not in words and column_of(table, RANKS) and not column_of(table, LABELS)
        return "named run" if ranked else "qrels"
    if table.cells is None and {"qid", "pos", "neg"} <= keys:
        return "hard negatives"
    if _id_column(table) and column_of(table, TEXTS) and not ids:
        return "texts"
    if table.cells is None:
        return None
    head = [cells for _, cells in itertools.islice(lines_of(table), _HEAD)]
    if len({len(cells) for cells in head}) != 1:
        return None
    if "triple" in words and _is_header_of_triples(head[0]):
        head = head[1:]
    return _shape_of_texts(head, words) or (None if keys & _PAIRS else _shape_of_ids(head, words))


def _are_tokens(columns: Sequence[Sequence[str]]) -> bool:
    return all(len(cell.split()) == 1 for column in columns for cell in column)


def _is_header_of_triples(cells: Sequence[str]) -> bool:
    starts = [_plain(cell)[:3] for cell in cells]
    return starts[1:] == ["pos", "neg"]


def _shape_of_texts(rows: list[list[str]], words: str) -> Shape | None:
    """By the cells of the first lines. These files have no header: their first line is a row."""
    columns = list(zip(*rows, strict=True))
    texts = [all(len(cell.split()) > 1 for cell in column) for column in columns]
    shape: Shape | None = None
    match columns:
        case [names, urls, _, _] if _are_tokens([names]) and all("://" in url for url in urls):
            shape = "documents"
        case [_, _, _, _] if _are_tokens(columns[:2]) and all(texts[2:]):
            shape = "top"
        case [_, _, _] if all(texts) or ("triple" in words and any(texts)):
            shape = "triples"
        case [names, _] if _are_tokens([names]) and any(" " in row[1].strip() for row in rows):
            shape = "lines"
    return shape


def _shape_of_ids(rows: list[list[str]], words: str) -> Shape | None:
    """By the cells of the first lines. A first line without a number is a header."""
    header = not any(map(_is_number, rows[0])) and len(rows) > 1
    columns = list(zip(*rows[header:], strict=True))
    numbers = [all(map(_is_number, column)) for column in columns]
    shape: Shape | None = None
    match columns:
        case [*_] if not _are_tokens(columns[:5]):
            shape = None
        case [_, marks, _, _, scores, _] if set(marks) == {"Q0"} or (
            numbers[3] and all(map(_is_score, scores))
        ):
            shape = "run"
        case [_, zeros, _, _] if set(zeros) <= {"0", "Q0"} and (numbers[3] or not header):
            shape = "qrels"
        case [_, _, _] if "triple" in words:
            shape = "id triples"
        case [queries, _, last] if numbers[2] and _are_ranks(queries, last):
            shape = "ranks"
        case [_, _, last] if numbers[2]:
            shape = "qrels" if max(map(float, last)) <= _HIGHEST_GRADE else "id triples"
    return shape


def _are_ranks(queries: Sequence[str], numbers: Sequence[str]) -> bool:
    """Whether the numbers of each query go up by one, from 0 or 1."""
    steps = [
        float(b) - float(a)
        for (q, a), (r, b) in itertools.pairwise(zip(queries, numbers, strict=True))
        if q == r
    ]
    return float(numbers[0]) in (0, 1) and bool(steps) and all(step == 1 for step in steps)


def _id_column(table: Table) -> str | None:
    return column_of(table, ("_id", "id", *QUERY_IDS, *DOCUMENT_IDS))


def role_of(table: Table) -> Literal["corpus", "queries"] | None:
    """By its name: the file's own first, then that of its folder or configuration."""
    for name in (table.stem, table.config or "", table.name):
        if re.search(r"quer|topics|question", name.lower()):
            return "queries"
        if re.search(r"corpus|collection|passages|documents|docs", name.lower()):
            return "corpus"
    return None


def parts_of(tables: Tables) -> Parts:
    """What each table is. Tables that are nothing here stand in `unused`."""
    parts = Parts()
    nameless: list[TextTable] = []
    for table in tables.tables:
        shape = shape_of(table)
        match shape:
            case "qrels":
                parts.judgements.append(Judged(table, table.split, partial(_judged, table)))
            case "texts" | "lines" | "documents":
                role = "corpus" if shape == "documents" else role_of(table)
                read = {"texts": _text_rows, "lines": _text_lines, "documents": _long_documents}
                text = TextTable(table, partial(read[shape], table, role))
                places = {"corpus": parts.corpus, "queries": parts.queries, None: nameless}
                places[role].append(text)
            case "run" | "named run" | "ranks":
                listed = {"run": _run, "named run": _named_run, "ranks": _ranks}[shape]
                scored = shape == "run" or (shape == "named run" and bool(_score_of_run(table)))
                parts.runs.append(Judged(table, table.split, partial(listed, table), scored))
            case "id triples" | "hard negatives":
                said = _id_triples if shape == "id triples" else _hard_negatives
                parts.triples.append(Judged(table, table.split, partial(said, table)))
            case "triples" | "top":
                rows = _triples(table) if shape == "triples" else _top(table)
                parts.texts.append((table, rows))
            case None:
                parts.unused[f"file {table.name}"] = 1
    _tell_by_ids(nameless, parts)
    parts.unused.update({f"file {name}": 1 for name in tables.others})
    return parts


def _tell_by_ids(nameless: list[TextTable], parts: Parts) -> None:
    """Tables of texts whose names say nothing are queries or the corpus by the ids that are judged;
    where both are named, they are not used.
    """
    judged = [*parts.judgements, *parts.triples, *parts.runs]
    if not judged or (parts.corpus and parts.queries):
        parts.unused.update({f"file {text.table.name}": 1 for text in nameless})
        return
    rows = [*itertools.islice(itertools.chain(*(part.read() for part in judged)), BATCH)]
    queries, documents = {row[1] for row in rows}, {row[2] for row in rows}
    for text in nameless:
        as_query = as_document = 0
        for _, name, _ in text.read(Counter()):
            as_query += name in queries
            as_document += name in documents
        if as_query != as_document:
            (parts.queries if as_query > as_document else parts.corpus).append(text)
        elif as_query == 0:
            parts.unused[f"file {text.table.name}"] = 1
        else:
            raise InputError(
                f"{text.table.name} holds ids of queries and of documents alike, so that nobody "
                "can tell what it is; name the files queries.tsv and corpus.tsv (or collection.tsv)"
            )


# --- the rows of each shape


def _name(value: object) -> str:
    """An id as text: 7, 7.0 and " 7 " are "7"."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _text(row: Row, column: str | None, where: str) -> str:
    value = row.get(column) if column is not None else None
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(
            f"{where}: the column {column!r} holds a {type(value).__name__} ({value!r:.50}), but "
            "it must be text"
        )
    return value.strip()


def _text_rows(
    table: Table, role: str | None, unused: Counter[str]
) -> Iterator[tuple[Place, str, str]]:
    """Title and text of named columns; the title of queries is not used."""
    name, text = _id_column(table), column_of(table, TEXTS)
    title = None if role == "queries" else column_of(table, ("title",)) or "title"
    used = {name, text, title}
    for place, row in table.read():
        if name is None or row.get(name) is None or text not in row:
            raise InputError(
                f"{table.where(place)}: expected an object with _id and text, found {list(row)}"
            )
        where = table.where(place)
        parts = (_text(row, title, where), _text(row, text, where))
        for key, value in row.items():
            if key not in used and value not in (None, "", [], {}):
                unused[f"column {key} of {table.name}"] += 1
        yield place, _name(row[name]), " ".join(filter(None, parts))


def _text_lines(
    table: Table, role: str | None, unused: Counter[str]
) -> Iterator[tuple[Place, str, str]]:
    """An id and a text. The first line is a header if it says so."""
    for number, (place, cells) in enumerate(lines_of(table)):
        if number == 0 and _plain(cells[0]) in ("id", *QUERY_IDS, *DOCUMENT_IDS):
            continue
        if len(cells) > len(("id", "text")):
            raise InputError(
                f"{table.where(place)}: expected an id, a tab and a text, found {len(cells)} cells"
            )
        yield place, cells[0].strip(), "".join(cells[1:]).strip()


def _long_documents(
    table: Table, role: str | None, unused: Counter[str]
) -> Iterator[tuple[Place, str, str]]:
    """MS MARCO's documents: id, url, title, body."""
    for place, cells in lines_of(table):
        _expect(table, place, cells, ("document id", "url", "title", "body"))
        unused[f"column url of {table.name}"] += 1
        yield place, cells[0].strip(), " ".join(filter(None, map(str.strip, cells[2:])))


def _expect(table: Table, place: Place, cells: list[str], names: Sequence[str]) -> None:
    if len(cells) != len(names):
        raise InputError(
            f"{table.where(place)}: expected {', '.join(names)}, found {len(cells)} cells: "
            f"{cells!s:.100}"
        )


def _grade(value: object, table: Table, place: Place) -> int:
    """1, 1.0 and "1.0" are 1."""
    number = as_number(value)
    if number is None or not number.is_integer():
        raise InputError(
            f"{table.where(place)}: the grade is {value!r}; a grade is a whole number: 0 for a "
            "document that is not relevant, 1 or more for one that is"
        )
    return int(number)


def _judged(table: Table) -> Iterator[Named]:
    query = column_of(table, (*QUERY_IDS, "query"))
    document = column_of(table, (*DOCUMENT_IDS, "document", "doc", "corpus"))
    grade = column_of(table, GRADES)
    if query is not None and document is not None:
        for place, row in table.read():
            names = [row.get(query), row.get(document)]
            if None in names:
                raise InputError(
                    f"{table.where(place)}: expected {query}, {document} and {grade or 'score'}, "
                    f"found {row}"
                )
            value = 1 if grade is None else row.get(grade)
            query_id, document_id = map(_name, names)
            yield place, query_id, document_id, {"grade": _grade(value, table, place)}
    elif table.cells is None:
        raise InputError(
            f"{table.name} holds judgements, but its columns are {', '.join(table.columns)}; name "
            "them query-id, corpus-id and score"
        )
    else:
        yield from _judged_lines(table)


def _judged_lines(table: Table) -> Iterator[Named]:
    """BEIR's three columns, or TREC's four. There may be a header."""
    for number, (place, cells) in enumerate(lines_of(table)):
        if len(cells) not in (3, 4):
            raise InputError(
                f"{table.where(place)}: expected query id, document id and a grade (or TREC's four "
                f"columns), found {cells}"
            )
        if number == 0 and _is_header(cells):
            continue
        grade = _grade(cells[-1], table, place)
        yield place, cells[0].strip(), cells[-2].strip(), {"grade": grade}


def _run(table: Table) -> Iterator[Named]:
    for number, (place, cells) in enumerate(lines_of(table)):
        _expect(table, place, cells, ("query id", "Q0", "document id", "rank", "score", "tag"))
        if number == 0 and _is_header(cells):
            continue
        said = {"candidate": True, "score": _score(cells[4], table, place)}
        yield place, cells[0], cells[2], said


def _score(value: object, table: Table, place: Place) -> float:
    number = as_number(value)
    if number is None or not math.isfinite(number):
        raise InputError(
            f"{table.where(place)}: the score is {value!r}, but a score is a finite number; mend "
            "the line, or leave it out"
        )
    return number


def _score_of_run(table: Table) -> str | None:
    return column_of(table, ("score", "similarity"))


def _named_run(table: Table) -> Iterator[Named]:
    names = [column_of(table, QUERY_IDS), column_of(table, DOCUMENT_IDS)]
    score = _score_of_run(table)
    for place, row in table.read():
        query, document = (row.get(str(name)) for name in names)
        if query is None or document is None:
            raise InputError(
                f"{table.where(place)}: expected {names[0]} and {names[1]}, found {row!s:.100}"
            )
        said: dict[str, Any] = {"candidate": True}
        if score is not None:
            said["score"] = _score(row.get(score), table, place)
        yield place, _name(query), _name(document), said


def _ranks(table: Table) -> Iterator[Named]:
    for number, (place, cells) in enumerate(lines_of(table)):
        _expect(table, place, cells, ("query id", "document id", "rank"))
        if number == 0 and _is_header(cells):
            continue
        yield place, cells[0], cells[1], {"candidate": True}


def _id_triples(table: Table) -> Iterator[Named]:
    for number, (place, cells) in enumerate(lines_of(table)):
        _expect(table, place, cells, ("query id", "positive id", "negative id"))
        if number == 0 and column_of(table, (*QUERY_IDS, "query")):
            continue  # the header
        yield place, cells[0], cells[1], {"grade": 1}
        yield place, cells[0], cells[2], {"candidate": True}


def _hard_negatives(table: Table) -> Iterator[Named]:
    """`msmarco-hard-negatives.jsonl` of sentence-transformers: the negatives of each system are
    ids, or objects with a `pid`.
    """
    columns = [column_of(table, (name,)) for name in ("qid", "pos", "neg")]
    for place, row in table.read():
        query, positives, negatives = (row.get(str(column)) for column in columns)
        systems = negatives.values() if isinstance(negatives, dict) else [negatives]
        for said, listed in (({"grade": 1}, [positives]), ({"candidate": True}, systems)):
            for item in itertools.chain(*(names or () for names in listed)):
                name = item.get("pid") if isinstance(item, dict) else item
                if query is None or name is None:
                    raise InputError(
                        f"{table.where(place)}: expected qid, and lists of ids in pos and neg, "
                        f"found {row!s:.100}"
                    )
                yield place, _name(query), _name(name), said


def _triples(table: Table) -> Iterator[Row]:
    names = {"query": "query", "document": "positive"}, {"query": "query", "document": "negative"}
    split = table.split
    for number, (place, cells) in enumerate(lines_of(table)):
        _expect(table, place, cells, ("query", "positive", "negative"))
        if number == 0 and _is_header_of_triples(cells):
            continue
        shared = {"query": cells[0], "split": split, "at": (table, place)}
        yield {**shared, "document": cells[1], "grade": 1, "names": names[0]}
        yield {**shared, "document": cells[2], "candidate": True, "names": names[1]}


def _top(table: Table) -> Iterator[Row]:
    """`top1000.dev`: query id, document id, query, document."""
    names = {"query": "query", "document": "passage"}
    for place, cells in lines_of(table):
        _expect(table, place, cells, ("query id", "document id", "query", "document"))
        yield {
            "query": cells[2], "document": cells[3], "query_id": cells[0], "document_id": cells[1],
            "candidate": True, "at": (table, place), "names": names,
        }  # fmt: skip
