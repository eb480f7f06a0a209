"""What a source hands over, read once, checked and numbered: `read_pairs`."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from datasets import Dataset
from datasets.arrow_writer import ArrowWriter

from hf_distill.data.collection import (
    JUDGEMENT_FEATURES,
    TEXT_FEATURES,
    Collection,
    CollectionRecord,
    SourcePairs,
    is_unicode,
    write_table,
)
from hf_distill.data.near_duplicates import text_key
from hf_distill.errors import InputError

TABLES = (*TEXT_FEATURES, "judgements")
"""The tables of a collection. Each is a file, `<name>.arrow`."""


def open_tables(folder: Path, record: CollectionRecord) -> Collection:
    """The collection whose tables are in `folder`, memory-mapped."""
    queries, documents, judgements = (
        Dataset.from_file(str(folder / f"{name}.arrow")) for name in TABLES
    )
    return Collection(queries, documents, judgements, record)


class _Texts:
    """Writes each text once and numbers it, in order of appearance."""

    def __init__(self, folder: Path, name: str) -> None:
        path = str(folder / f"{name}.arrow")
        self._writer = ArrowWriter(path=path, features=TEXT_FEATURES[name])
        self._numbers: dict[bytes, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._writer.finalize()
        else:
            self._writer.close()

    def number(self, text: str, **columns: Any) -> int:
        """The number of `text`. A new text is written, with `columns`."""
        digest = hashlib.sha256(text.encode()).digest()
        if digest not in self._numbers:
            self._numbers[digest] = len(self._numbers)
            self._writer.write({"text": text, **columns})
        return self._numbers[digest]


def read_pairs(pairs: SourcePairs, folder: Path) -> Collection:
    """Read the corpus and the rows of a source, once and in order, into tables in `folder`.

    Rows are left out and counted if their grade is not above 0, if they have no query or no
    document, or if UTF-8 cannot write them. A repeated `pair_id` gets a suffix.

    Returns:
        A collection that is not split yet. `split` is "test" where the source itself holds the pair
        out, else null. `searched` says whether a document is in the source's corpus.

    Raises:
        InputError: A row or a document of the corpus that is not made of texts.
    """
    counts: Counter[str] = Counter()

    def judgements(queries: _Texts, documents: _Texts) -> Iterator[dict[str, Any]]:
        for row in _valid_rows(pairs, counts):
            query = queries.number(row["query"])
            document = documents.number(row["document"], searched=False)
            yield {**row, "query": query, "document": document}

    with _Texts(folder, "queries") as queries, _Texts(folder, "documents") as documents:
        for text in _corpus(pairs):
            documents.number(text, searched=True)
        table = folder / "judgements.arrow"
        write_table(judgements(queries, documents), JUDGEMENT_FEATURES, table)
    records = Counter(pairs.counts or {"rows found": counts["rows"]})
    del counts["rows"]
    return open_tables(
        folder, CollectionRecord("", pairs.about, dict(records + counts), {}, {}, leaks_left=0)
    )


def _corpus(pairs: SourcePairs) -> Iterator[str]:
    for number, document in enumerate(pairs.corpus or ()):
        where = f"document {number} of the corpus of {pairs.about.name}"
        text = _text(document, where)
        if not is_unicode(text):
            raise InputError(f"{where} is not valid Unicode; fix it, or leave it out")
        if text:
            yield text


def _valid_rows(pairs: SourcePairs, counts: Counter[str]) -> Iterator[dict[str, Any]]:
    """The rows that are pairs, with texts stripped and defaults filled in."""
    seen: Counter[str] = Counter()
    for number, row in enumerate(pairs.rows):
        where = f"row {number} of {pairs.about.name}"
        query, document = (
            _text(row.get(name), f"the {name} of {where}") for name in ("query", "document")
        )
        pair_id, group, source = (
            None if row.get(name) is None else str(row[name])
            for name in ("pair_id", "group", "source")
        )
        grade = 1 if row.get("grade") is None else row["grade"]
        if not isinstance(grade, int):
            raise InputError(f"the grade of {where} is {grade!r}; a grade is a whole number")
        reason = (
            "judged not relevant" if grade <= 0
            else "no query" if not query
            else "no document" if not document
            else None if is_unicode(f"{query}{document}{pair_id}{group}{source}")
            else "invalid Unicode"
        )  # fmt: skip
        counts["rows"] += 1
        counts[reason or "kept"] += 1
        if reason is None:
            yield {
                "pair_id": _unique(str(number) if pair_id is None else pair_id, seen),
                "query": query,
                "document": document,
                "grade": grade,
                "group": text_key(query) if group is None else group,
                "source": source,
                "split": "test" if row.get("split") == "test" else None,
            }


def _text(value: object, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InputError(
            f"{where} is a {type(value).__name__} ({value!r:.50}), but it must be text"
        )
    return value.strip()


def _unique(name: str, seen: Counter[str]) -> str:
    """`name`, or with a suffix if it was seen before: a, a.2, a.3."""
    seen[name] += 1
    return name if seen[name] == 1 else _unique(f"{name}.{seen[name]}", seen)
