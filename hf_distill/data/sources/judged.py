"""The pairs of folders whose judgements and lists name texts by id: BEIR's and MS MARCO's.

The texts lie on disk until they are needed; of each, 16 bytes are in memory.
"""

from __future__ import annotations

import itertools
import re
import shutil
import tempfile
import weakref
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Value

from hf_distill.data.collection import (
    Source,
    SourcePairs,
    TableWriter,
    is_unicode,
    pair_number,
    text_number,
)
from hf_distill.data.sources.id_tables import (
    BATCH,
    SPLITS,
    Judged,
    Named,
    Parts,
    TextTable,
    parts_of,
    role_of,
    shape_of,
)
from hf_distill.data.sources.rows import COLUMN_OPTIONS
from hf_distill.data.tables.table import Row, Table, Tables
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import DataArguments

_ORDER = ("test", "validation", "train", None)
"""Of the judgements: a pair that is in two splits keeps its id in the first one."""
_WORKING = Features({"text": Value("string"), "id": Value("string")})


# --- texts by id


@dataclass(frozen=True)
class _Stored:
    """Texts in an Arrow file.

    Attributes:
        table: Columns `text` and `id`.
        numbers: (n,) uint64, ascending: the `text_number` of each id.
        rows: (n,) int64: where in `table` the text with each of these is.
    """

    table: Dataset
    numbers: np.ndarray
    rows: np.ndarray


class StoredTexts:
    """Looks texts up by id. They are read when they are first needed, into a working folder that
    goes with this object.
    """

    def __init__(self, tables: Sequence[TextTable], what: str, unused: dict[str, int]) -> None:
        self._tables, self._what, self._unused = tables, what, unused

    @cached_property
    def _stored(self) -> _Stored:
        folder = tempfile.mkdtemp(prefix="hf_distill-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        path, numbers, ends = Path(folder) / "texts.arrow", array("Q"), []
        unused: Counter[str] = Counter()
        with TableWriter(path, _WORKING) as writer:
            for text in self._tables:
                for place, name, content in text.read(unused):
                    if not is_unicode(name + content):
                        raise InputError(
                            f"{text.table.where(place)}: invalid Unicode (a lone surrogate); fix "
                            "or remove the line"
                        )
                    numbers.append(text_number(name))
                    writer.add(content, name)
                ends.append(len(numbers))
        self._unused.update(unused)
        table = Dataset.from_file(str(path)).with_format("arrow")
        every = np.array(numbers, dtype=np.uint64)
        rows = np.argsort(every, kind="stable")
        stored = _Stored(table, every[rows], rows)
        self._check_repeated(stored, np.array(ends))
        return stored

    def _check_repeated(self, stored: _Stored, ends: np.ndarray) -> None:
        """An id may stand in two files (MS MARCO's dev and dev.small), but not with two texts."""
        repeated = np.flatnonzero(stored.numbers[1:] == stored.numbers[:-1])
        for start in range(0, len(repeated), BATCH):
            places = repeated[start : start + BATCH]
            first, second = stored.rows[places], stored.rows[places + 1]
            tables = [np.searchsorted(ends, rows, side="right") for rows in (first, second)]
            texts = [stored.table[rows]["text"].to_pylist() for rows in (first, second)]
            bad = (tables[0] == tables[1]) | np.array([a != b for a, b in zip(*texts, strict=True)])
            if bad.any():
                at = int(second[np.flatnonzero(bad)].min())
                self._refuse(stored.table[[at]]["id"][0].as_py(), at, ends)

    def _refuse(self, name: str, row: int, ends: np.ndarray) -> None:
        number = int(np.searchsorted(ends, row, side="right"))
        before = int(ends[number - 1]) if number else 0
        text = self._tables[number]
        place, *_ = next(itertools.islice(text.read(Counter()), row - before, None))
        raise InputError(
            f"{text.table.where(place)}: the {self._what} id {name!r} appears a second time; make "
            "ids unique"
        )

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """(text, id) of each, in order."""
        table = self._stored.table
        for start in range(0, len(table), BATCH):
            part = table[start : start + BATCH]
            yield from zip(part["text"].to_pylist(), part["id"].to_pylist(), strict=True)

    def __len__(self) -> int:
        return len(self._stored.rows)

    @property
    def unique(self) -> int:
        """The number of ids, where `len` is the number of texts."""
        return len(np.unique(self._stored.numbers))

    def places(self, names: Sequence[str]) -> np.ndarray:
        """(n,) int64: the row of each of these ids; -1: there is no such text."""
        numbers = np.array([text_number(name) for name in names], dtype=np.uint64)
        stored = self._stored
        if not len(stored.rows):
            return np.full(len(names), -1)
        place = np.searchsorted(stored.numbers, numbers)
        place = np.minimum(place, len(stored.rows) - 1)
        return np.where(stored.numbers[place] == numbers, stored.rows[place], -1)

    def texts(self, places: np.ndarray) -> list[str | None]:
        """The texts in these rows (n,); None for -1."""
        known = places >= 0
        found = self._stored.table[places[known]]["text"].to_pylist() if known.any() else []
        texts = iter(found)
        return [next(texts) if here else None for here in known.tolist()]


# --- pairs


def pairs_of(tables: Tables, data: DataArguments, kind: str, description: str) -> SourcePairs:
    """The judgements, lists and triples of a folder as pairs.

    Raises:
        InputError: A table that the others need is missing, `dataset_split` names none of its
            splits, or an option names a column.
    """
    check_no_columns(tables, data, kind)
    parts = parts_of(tables)
    about = Source(tables.name, tables.license, tables.url, description)
    _check_whole(parts, tables)
    unused = dict(parts.unused)
    judgements = _of_splits(parts.judgements, data.dataset_split, unused)
    lists = [*parts.triples, *parts.runs]
    counts: Counter[str] = Counter()
    corpus = StoredTexts(parts.corpus, "document", unused)
    queries = StoredTexts(parts.queries, "query", unused)
    found = "rows found" if lists or parts.texts else "judgements found"
    by_id = bool(judgements or lists)

    def rows() -> Iterator[Row]:
        counts[found] = 0
        positives, judged = _Positives(), np.zeros(len(queries) if by_id else 0, dtype=bool)
        tables_of = Counter(part.split for part in judgements)
        said = set[int]()
        for part in judgements:
            usable = 0
            for row in _looked_up(part, queries, corpus, judged):
                counts[found] += 1
                usable += row["grade"] > 0 and bool(row["query"]) and bool(row["document"])
                if parts.triples or parts.texts:
                    positives.add(row)
                if tables_of[part.split] > 1:  # as MS MARCO's dev and dev.small
                    number = text_number(f"{part.split} {row['pair_id']} {row['grade']}")
                    if number in said:
                        counts["repeated judgements"] += 1
                        continue
                    said.add(number)
                yield row
            if part.split == "test" and not usable and len(judgements) > 1:
                raise InputError(
                    f"{part.table.name} holds no judgement above 0 of a query and a document with "
                    "text, so there is nothing to test with; fix it, or remove it to split the "
                    "other judgements"
                )
        listed = (_looked_up(part, queries, corpus, judged) for part in lists)
        for row in itertools.chain(*listed, *(rows for _, rows in parts.texts)):
            counts[found] += 1
            if row.get("candidate") or positives.add(row):
                yield row
            else:
                counts["repeated positives"] += 1
        if by_id and (unjudged := queries.unique - int(judged.sum())):
            unused["queries without a judgement"] = unjudged

    splits = ", ".join(dict.fromkeys(part.split or "no split" for part in judgements))
    names = [*(part.table.name for part in lists), *(table.name for table, _ in parts.texts)]
    read_as = kind + (f": judgements ({splits})" if judgements else "")
    read_as += f"{' and' if judgements else ':'} lists ({', '.join(names)})" if names else ""
    return SourcePairs(about, rows(), corpus if by_id else None, counts, read_as, unused)


def check_no_columns(tables: Tables, data: DataArguments, kind: str) -> None:
    """Refuse options about columns, which this format has under fixed names. Of a test set, they
    are not meant for it.
    """
    given = [key for key in COLUMN_OPTIONS if getattr(data, key) is not None]
    if given and tables.key in ("dataset_path", "dataset_name"):
        raise InputError(
            f"--{given[0]} {getattr(data, given[0])} has no effect: {tables.name} is read as "
            f"{kind}, whose columns have fixed names; leave the option out, or name another "
            "--format"
        )


def _place(table: Table) -> str:
    """The folder or configuration beside which others of its kind lie: `en` of `en/qrels` and of
    `en-corpus`.
    """
    return re.sub(r"(^|[-_/])(corpus|queries|qrels|default)$", "", table.config or "")


def _check_whole(parts: Parts, tables: Tables) -> None:
    corpora, queries = (
        {_place(text.table) for text in texts} for texts in (parts.corpus, parts.queries)
    )
    if len(several := sorted(corpora & queries)) > 1:
        raise InputError(
            f"{tables.name} holds {len(several)} collections ({', '.join(several)}), whose ids may "
            "be the same; name one of them"
        )
    by_id = [part.table.name for part in (*parts.judgements, *parts.triples, *parts.runs)]
    positives = by_id[: len(parts.judgements) + len(parts.triples)]
    texts = any(shape_of(table) == "triples" for table, _ in parts.texts)
    missing = {
        "judgements (qrels/train.tsv, qrels/test.tsv, or one qrels.tsv)": not positives
        and not texts,
        "the documents' texts (corpus.jsonl or collection.tsv)": not parts.corpus
        and (bool(by_id) or not texts),
        "the queries' texts (queries.jsonl or queries.tsv)": not parts.queries
        and (bool(by_id) or not texts),
    }
    if any(missing.values()):
        there = [*by_id, *(text.table.name for text in (*parts.corpus, *parts.queries))]
        odd = [
            f"; {table.name} has no id and text, but the columns {', '.join(table.columns)}"
            for table in tables.tables
            if role_of(table) and shape_of(table) is None
        ]
        raise InputError(
            f"{tables.name} holds {', '.join(there) or 'none of these'}, but not "
            f"{', nor '.join(what for what, lacks in missing.items() if lacks)}{''.join(odd)}; put "
            "what is missing beside it"
        )


def _own_name(table: Table) -> str:
    """What a table of judgements without a known split is called: `dl19` of `qrels/dl19.tsv`."""
    return "" if table.stem in ("qrels", "all", table.config) else table.stem


def _of_splits(parts: Sequence[Judged], wanted: str | None, unused: dict[str, int]) -> list[Judged]:
    """The judgements of train, validation and test, in order; or, if there are no such, those of
    the only other split; or those of the split that is wanted. What is left out is counted.
    """
    names = [part.split or _own_name(part.table) for part in parts]
    splits: tuple[str | None, ...] = ("",)
    if wanted is not None:
        splits = (SPLITS.get(wanted, wanted),)
    elif any(name in _ORDER for name in names):
        splits = _ORDER
    elif len(set(names)) == 1:
        splits = (names[0],)
    if parts and not any(name in splits for name in names):
        there = ", ".join(dict.fromkeys(name or "no split" for name in names))
        raise InputError(
            f"--dataset_split {wanted}: the judgements are for {there}; name one of these"
            if wanted is not None
            else f"the judgements are for {there}, and nothing says which of them to train on or "
            "to test with; name them qrels/train.tsv and qrels/test.tsv, or one with "
            "--dataset_split"
        )
    chosen = []
    for part, name in zip(parts, names, strict=True):
        if name in splits:
            chosen.append(part if splits is _ORDER else Judged(part.table, None, part.read))
        else:
            count = part.table.count
            unused[f"judgements of {part.table.name} ({name or 'no split'})"] = (
                sum(1 for _ in part.read()) if count is None else count
            )
    return sorted(chosen, key=lambda part: _ORDER.index(part.split))


class _Positives:
    """Pairs that were said to be relevant. A triple repeats them: it is one pair, with a longer
    list.
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def add(self, row: Row) -> bool:
        """Whether the pair is new."""
        if not row["query"] or not row["document"]:
            return True
        key = pair_number(row["query"], row["document"])
        new = key not in self._seen
        if row["grade"] > 0:
            self._seen.add(key)
        return new


def _batches(rows: Iterable[Named]) -> Iterator[list[Named]]:
    rows = iter(rows)
    while batch := list(itertools.islice(rows, BATCH)):
        yield batch


def _looked_up(
    part: Judged, queries: StoredTexts, corpus: StoredTexts, judged: np.ndarray
) -> Iterator[Row]:
    """The rows of a table, with texts. `judged` (queries,) is set where a row says a grade."""
    names = {"query": "query id", "document": "document id"}
    for batch in _batches(part.read()):
        _, query_ids, document_ids, _ = zip(*batch, strict=True)
        query_places, document_places = queries.places(query_ids), corpus.places(document_ids)
        graded = np.array(["grade" in said for *_, said in batch])
        judged[query_places[graded & (query_places >= 0)]] = True
        texts = zip(queries.texts(query_places), corpus.texts(document_places), strict=True)
        for (place, query_id, document_id, said), (query, document) in zip(
            batch, texts, strict=True
        ):
            yield {
                "pair_id": f"{query_id}_{document_id}",
                "query": query,
                "document": document,
                "query_id": query_id,
                "document_id": document_id,
                "group": query_id,
                "split": part.split,
                "lacks": "unknown or empty document" if query else "unknown or empty query",
                "at": (part.table, place),
                "names": names,
                **said,
            }
