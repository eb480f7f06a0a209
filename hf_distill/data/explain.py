"""What a run read, for `--explain`: what it was recognised as, what became of each row, what is not
used, and three rows of each table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from hf_distill.data.collection import Collection
from hf_distill.errors import printable

EXAMPLES = 3
_WIDTH = 100
_SHORTEST = 20


def explain(collection: Collection) -> str:
    """Lines of at most 100 characters."""
    return "\n".join(_lines(collection))


def _lines(collection: Collection) -> Iterator[str]:
    record = collection.record
    yield from _wrapped(f"{record.source.name}, read as {record.read_as or 'rows of a source'}")
    yield "rows"
    yield from _counts(record.read)
    yield "not used"
    yield from _counts(record.unused) if record.unused else ("  nothing",)
    yield f"splits (test: {record.held_out})"
    if record.texts is not None:
        sizes = {name: n for name, n in vars(record.texts).items() if name != "parallel"}
        yield from _counts({**sizes, **record.leaks_removed})
        yield f"texts: {len(collection.texts):,}"
        for number, row in enumerate(_first(collection.texts)):
            yield from _text(number, row)
        return
    yield from _counts({**record.split, **record.leaks_removed})
    yield f"queries: {len(collection.queries):,}"
    yield from _texts(collection.queries)
    yield f"documents: {len(collection.documents):,}"
    yield from _texts(collection.documents)
    yield f"judgements: {len(collection.judgements):,}"
    for row in _first(collection.judgements):
        said = {key: row[key] for key in ("grade", "split", "group", "source", "pair_id")}
        yield from _pair(collection, row, said)
    yield f"candidates: {len(collection.candidates):,}"
    for row in _first(collection.candidates):
        grade = "not judged" if row["grade"] is None else f"grade {row['grade']}"
        yield from _pair(collection, row, {"": grade, "score": row["score"]})


def _first(table: Any) -> list[dict[str, Any]]:
    return [dict(row) for row in table.select(range(min(EXAMPLES, len(table))))]


def _counts(counts: Mapping[str, int]) -> Iterator[str]:
    for what, count in counts.items():
        yield from _wrapped(f"  {count:>9,}  {what}")


def _wrapped(line: str) -> Iterator[str]:
    """`line` without control characters, cut into pieces that fit."""
    line = printable(line)
    while len(line) > _WIDTH:
        cut = line.rfind(" ", _SHORTEST, _WIDTH)
        cut = cut if cut > 0 else _WIDTH
        yield line[:cut]
        line = f"    {line[cut:].lstrip()}"
    yield line


def short(text: str, width: int) -> str:
    """`text` on one line of at most `width` characters, its control characters shown."""
    flat = printable(" ".join(text.split()))
    return flat if len(flat) <= width else f"{flat[: width - 3]}..."


def _texts(table: Any) -> Iterator[str]:
    for number, row in enumerate(_first(table)):
        name = f" [{short(row['id'], 20)}]" if row["id"] else ""
        start = f"  {number}{name} "
        yield start + short(row["text"], _WIDTH - len(start))
        if other := row.get("student_text"):
            yield "    " + short(f"the student reads: {other}", _WIDTH - 4)


def _text(number: int, row: Mapping[str, Any]) -> Iterator[str]:
    source = f" [{short(row['source'], 20)}]" if row["source"] else ""
    start = f"  {number}{source} "
    if row["student_text"] is None:
        yield start + short(row["text"], _WIDTH - len(start))
    else:
        half = (_WIDTH - len(start) - 4) // 2
        yield f"{start}{short(row['text'], half)} -> {short(row['student_text'], half)}"


def _pair(
    collection: Collection, row: Mapping[str, Any], said: Mapping[str, object]
) -> Iterator[str]:
    (query,) = collection.query_texts(np.array([row["query"]]))
    (document,) = collection.document_texts(np.array([row["document"]]))
    yield f"  {short(query, 47)} -> {short(document, 47)}"
    parts = (
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}".lstrip()
        for key, value in said.items()
        if value is not None
    )
    yield f"    {short(', '.join(parts), _WIDTH - 4)}"
