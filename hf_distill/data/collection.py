"""The collection: what every source becomes, and all that the later stages read.

Each text is written once. Everything else refers to it by its row number:

| table | columns |
|---|---|
| `queries` | `text`: each query once; `student_text`: what the student reads in its place; |
| | `id`: the source's own name for it |
| `documents` | `text`: each document once; `searched`: whether held-out queries search it; `id` |
| `judgements` | `pair_id`, `query` and `document` (row numbers), `grade`, `group`, `source`, |
| | `split`, `reason` |
| `candidates` | `query` and `document` (row numbers), `score`, `grade` |
| `texts` | `text`: what the teacher reads; `student_text`: what the student reads, null if it is |
| | the same; `source`, `split`, `reason` |

A judgement is a pair: its document answers its query (`grade` above 0). Judgements stand in the
order of their split: train, validation, test, leaked. `group` and `source` belong to the pair and
not to the query, because one question may be asked in two conversations.

Candidates are the lists that a source brings: further documents beside a query, and the scores that
somebody gave them. `grade` is 0 for a document that was judged not relevant, above 0 for one of the
query's own pairs (it is listed for its score), and null for a document that nobody judged. They
stand in the order of their queries. A missing value is null.

Teacher, BM25 and selection read `text`. The student reads `student_text`, or `text` if that is
null. Two queries may have one text, if the student reads another one in each.

A source brings pairs, or texts alone: then the other tables are empty, and each (text, student's
text) stands once in `texts`, in the order of its split, as judgements do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Value

from hf_distill.data.column import Column
from hf_distill.data.keys import blocks, numbers_from, taken
from hf_distill.run.scratch import scratch

Split = Literal["train", "validation", "test", "leaked"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test", "leaked")
"""In the order in which their judgements stand. `leaked`: taken out of train and validation,
because a held-out pair shares something with them.
"""

TEXT_FEATURES = {
    "queries": Features(
        {"text": Value("string"), "student_text": Value("string"), "id": Value("string")}
    ),
    "documents": Features(
        {"text": Value("string"), "searched": Value("bool"), "id": Value("string")}
    ),
}
JUDGEMENT_FEATURES = Features(
    {
        "pair_id": Value("string"),
        "query": Value("int64"),
        "document": Value("int64"),
        "grade": Value("int32"),
        "group": Value("string"),
        "source": Value("string"),
        "split": Value("string"),
        "reason": Value("string"),
    }
)

CANDIDATE_FEATURES = Features(
    {
        "query": Value("int64"),
        "document": Value("int64"),
        "score": Value("float32"),
        "grade": Value("int32"),
    }
)

TEXTS_FEATURES = Features(
    {name: Value("string") for name in ("text", "student_text", "source", "split", "reason")}
)

_READ, _BATCH_BYTES = 1000, 4 << 20


def text_id(text: str) -> str:
    """Sixteen hex digits of the text's SHA-256: equal texts, equal id. Lone surrogates are hashed
    as they are.
    """
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def query_id(text: str, student_text: str | None) -> str:
    """`text_id` of a query. It depends on what the student reads, if that is another text."""
    return text_id(text if student_text is None else f"{text}\n{student_text}")


def text_number(text: str) -> int:
    """`text_id` as an unsigned 64-bit number."""
    return int(text_id(text), 16)


def pair_number(query: str, document: str) -> int:
    """An unsigned 64-bit number of a (query, document) pair: equal texts, equal number."""
    return text_number(text_id(query) + text_id(document))


def is_unicode(text: str) -> bool:
    """Whether `text` can be written as UTF-8. JSON may hold a lone surrogate, which no file format
    here can.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class Source:
    """What a data set is: for the cards.

    Attributes:
        name: What it is called.
        license, url: As the data says; None if it says nothing.
        description: A few sentences.
        queries_by: The language model that wrote the queries; None: they are the data's own.
    """

    name: str
    license: str | None = None
    url: str | None = None
    description: str = ""
    queries_by: str | None = None


@dataclass(frozen=True)
class SourcePairs:
    """What a source hands over. A source is a function of the recipe that returns this. Your own,
    in `my_package/my_module.py`, is named `--dataset my_package.my_module:read_faq`:

        def read_faq(recipe: Recipe) -> SourcePairs:
            def rows():
                for line in Path(recipe.data.dataset_path).open():
                    question, answer, topic = line.split("|")
                    yield {"query": question, "document": answer, "group": topic}

            return SourcePairs(Source("FAQ", license="mit"), rows())

    A source of texts alone sets `texts`; its rows hold `text`, what the teacher reads, and, if the
    student reads something else, `student_text`.

    Pairs of one group are never divided between train and test. The caller of the source strips the
    texts, counts rows without one, writes each text once, splits, and takes leaks out. A source
    raises `hf_distill.errors.InputError` for input that cannot be used at all.

    Attributes:
        about: What the data set is.
        rows: One mapping for each (query, document) that the data names: `query` and `document`
            (texts). Read once, in order; rows of one query should stand together. Optional:
            `grade`: above 0: the document answers the query (default: 1); 0 or below: it was judged
            not to.
            `candidate`: True if the document only stands in a list beside the query and nobody said
            whether it answers it (a mined negative, a line of a TREC run). It has no `grade`.
            `score`: the score that somebody gave the pair. A row with a score is also kept as a
            candidate.
            `pair_id` (default: the row's number), `group` (default: the query), `source`.
            `student_query`: what the student reads in place of the query (default: the query).
            `query_id`, `document_id`: the data's own names for the texts.
            `split`: "train", "validation" or "test", if the data itself says for what the pair is
            (default: it does not).
            `at`: a `Table` and a place in it, and `names`: `query` and `document` -> the column's
            own name. Both are for messages.
        corpus: Further documents that held-out queries search, as (text, the data's own id or
            None). None: they search the documents of the held-out pairs alone. Read once, before
            `rows`.
        counts: One entry that ends in ` found` (`rows found`, `judgements found`): how many
            (query, document) there were; and reason -> how many of them the source left out of
            `rows`. A source that reads lazily fills it while `rows` is read. Empty if each row is
            one, and none is left out.
        read_as: What the data was recognised as, in a few words: "FlagEmbedding lists: 1 positive
            and 7 negatives a query, with scores".
        unused: What the data holds and nothing here uses -> how many: `column title of
            pairs.csv` -> 200 values, `split dev2 of ...` -> 50 rows, `file README.md` -> 1. May be
            filled while `rows` is read.
        texts: Whether the rows are texts alone, with `group`, `source` and `split` as those of
            pairs have them (default of the group: the text).
    """

    about: Source
    rows: Iterable[Mapping[str, Any]]
    corpus: Iterable[tuple[str, str | None]] | None = None
    counts: dict[str, int] = field(default_factory=dict)
    read_as: str = ""
    unused: dict[str, int] = field(default_factory=dict)
    texts: bool = False


@dataclass(frozen=True)
class TextsRecord:
    """The texts of a collection without pairs: of each split, and whether the student reads other
    texts than the teacher (`parallel`).
    """

    train: int
    validation: int
    test: int
    leaked: int
    parallel: bool


@dataclass(frozen=True)
class CollectionRecord:
    """`pairs/manifest.json`.

    Attributes:
        key: The fingerprint of what the collection depends on.
        source: What the data set is.
        read: How many (query, document) were found (`... found`), and what became of them:
            `kept` as pairs, `candidates`, or left out for which reason. The first is the sum of the
            others.
        split: Pairs of each split, and `pairs`, `groups`, `test queries`, `corpus documents`,
            `candidates`.
        leaks_removed: Reason -> pairs taken out of train and validation.
        leaks_left: Pairs that still share something with a held-out pair: always 0.
        read_as: What the data was recognised as.
        unused: What the data holds and the run does not use -> how many.
        held_out: Where the test pairs come from: drawn by group, or the data's own split.
        texts: How many texts there are, where there are no pairs; else None.
    """

    key: str
    source: Source
    read: dict[str, int]
    split: dict[str, int]
    leaks_removed: dict[str, int]
    leaks_left: int
    read_as: str = ""
    unused: dict[str, int] = field(default_factory=dict)
    held_out: str = "drawn by group"
    texts: TextsRecord | None = None


@dataclass(frozen=True)
class Pairs:
    """Some judgements of a collection, by row number. Texts are looked up when they are needed.

    Attributes:
        collection: The collection that they belong to.
        rows: (n,) int64, their rows in `collection.judgements`.
    """

    collection: Collection
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: np.ndarray) -> Pairs:
        """The pairs at `places` (m,) of these."""
        return Pairs(self.collection, taken(self.rows, places))

    @cached_property
    def queries(self) -> np.ndarray:
        """(n,) int64, the number of each pair's query."""
        return taken(self.collection.query_numbers, self.rows)

    @cached_property
    def documents(self) -> np.ndarray:
        """(n,) int64, the number of each pair's document."""
        return taken(self.collection.document_numbers, self.rows)

    def column(self, name: str) -> list[Any]:
        """A column of `judgements`: `pair_id`, `grade`, `group`, `source` or `reason`."""
        return self.collection.judged[name][self.rows]

    def batches(self, *columns: str, size: int = _READ) -> Iterator[dict[str, list[Any]]]:
        """The pairs, some at a time, as lists: `columns` of `judgements`, where `query` and
        `document` are the texts, and `student_query` what the student reads.
        """
        for start in range(0, len(self.rows), size):
            part = Pairs(self.collection, self.rows[start : start + size])
            texts = {
                "query": lambda part=part: part.collection.query_texts(part.queries),
                "student_query": lambda part=part: part.collection.student_queries(part.queries),
                "document": lambda part=part: part.collection.document_texts(part.documents),
            }
            yield {name: texts[name]() if name in texts else part.column(name) for name in columns}


@dataclass(frozen=True)
class Lists:
    """The candidates of some queries, one list after another.

    Attributes:
        starts: (n + 1,) int64: the list of the i-th query is `starts[i]:starts[i + 1]`.
        rows: (m,) int64, the row of each candidate in the table `candidates`.
        documents: (m,) int64, document numbers.
        scores: (m,) float32, given scores; NaN: none.
        grades: (m,) int32: 0: judged not relevant; above 0: one of the query's pairs; -1: not
            judged.
    """

    starts: np.ndarray
    rows: np.ndarray
    documents: np.ndarray
    scores: np.ndarray
    grades: np.ndarray


@dataclass(frozen=True)
class Collection:
    """The tables of a run, memory-mapped. See the module's docstring."""

    queries: Dataset
    documents: Dataset
    judgements: Dataset
    record: CollectionRecord
    candidates: Dataset = field(
        default_factory=lambda: Dataset(CANDIDATE_FEATURES.arrow_schema.empty_table())
    )
    texts: Dataset = field(
        default_factory=lambda: Dataset(TEXTS_FEATURES.arrow_schema.empty_table())
    )

    @property
    def key(self) -> str:
        """The fingerprint of what the collection depends on."""
        return self.record.key

    @property
    def source(self) -> Source:
        """What the data set is."""
        return self.record.source

    @property
    def folder(self) -> Path | None:
        """Where its tables are; None if they are in memory."""
        files = self.judgements.cache_files
        return Path(files[0]["filename"]).parent if files else None

    @cached_property
    def judged(self) -> Mapping[str, Column]:
        """The columns of `judgements`."""
        return {name: Column(self.judgements, name) for name in self.judgements.column_names}

    @cached_property
    def query_numbers(self) -> np.ndarray:
        """(judgements,) int64, read-only."""
        return _numbers(self.judgements, "query")

    @cached_property
    def document_numbers(self) -> np.ndarray:
        """(judgements,) int64, read-only."""
        return _numbers(self.judgements, "document")

    def rows(self, split: Split) -> slice:
        """Where the judgements of `split` stand."""
        sizes = [self.record.split[name] for name in SPLITS]
        start = sum(sizes[: SPLITS.index(split)])
        return slice(start, start + self.record.split[split])

    def pairs(self, split: Split) -> Pairs:
        """The judgements of `split`."""
        rows = self.rows(split)
        return Pairs(self, numbers_from(rows.start, rows.stop))

    def trained(self, split: Split) -> int:
        """How many training rows `split` has: pairs, or texts where there are no pairs."""
        texts = self.record.texts
        return self.record.split[split] if texts is None else int(getattr(texts, split))

    def text_numbers(self, split: Split) -> np.ndarray:
        """(n,) int64, ascending: the numbers of the texts of `split`."""
        texts = self.record.texts
        sizes = [0 if texts is None else int(getattr(texts, name)) for name in SPLITS]
        start = sum(sizes[: SPLITS.index(split)])
        return np.arange(start, start + sizes[SPLITS.index(split)])

    def every_pair(self) -> Pairs:
        """The judgements of all splits, in order."""
        return Pairs(self, numbers_from(0, len(self.judgements)))

    @cached_property
    def _candidate_queries(self) -> np.ndarray:
        return _numbers(self.candidates, "query")

    def lists(self, queries: np.ndarray) -> Lists:
        """The candidates of `queries` (n,), numbers that may repeat."""
        first, last = (
            np.searchsorted(self._candidate_queries, queries, side) for side in ("left", "right")
        )
        starts = np.concatenate([[0], np.cumsum(last - first)])
        rows = np.arange(starts[-1]) - np.repeat(starts[:-1] - first, last - first)
        table = self.candidates.with_format("arrow")[rows] if len(rows) else None
        if table is None:
            empty = np.empty(0, dtype=np.int64)
            return Lists(starts, empty, empty, empty.astype("f4"), empty.astype("i4"))
        return Lists(
            starts,
            rows,
            table["document"].to_numpy(),
            table["score"].to_numpy(zero_copy_only=False).astype(np.float32),
            table["grade"].fill_null(-1).to_numpy().astype(np.int32),
        )

    @cached_property
    def searched(self) -> np.ndarray:
        """(m,) int64, ascending: the numbers of the documents that held-out queries search."""
        column = self.documents.select_columns(["searched"]).with_format("arrow")[:]["searched"]
        return np.flatnonzero(column.to_numpy())

    @cached_property
    def _query_text(self) -> Column:
        return Column(self.queries, "text")

    @cached_property
    def _student_text(self) -> Column:
        return Column(self.queries, "student_text")

    @cached_property
    def num_student_queries(self) -> int:
        """In how many queries the student reads another text than the teacher."""
        column = self.queries.data["student_text"]
        return len(column) - int(column.null_count)

    @cached_property
    def _document_text(self) -> Column:
        return Column(self.documents, "text")

    def query_texts(self, numbers: np.ndarray) -> list[str]:
        """The texts of queries that the teacher reads, by number, in the order given."""
        return self._query_text[np.asarray(numbers)]

    def student_queries(self, numbers: np.ndarray) -> list[str]:
        """The texts of queries that the student reads, by number, in the order given."""
        texts = self.query_texts(numbers)
        if not self.num_student_queries or not texts:
            return texts
        own = self._student_text[np.asarray(numbers)]
        return [text if other is None else other for text, other in zip(texts, own, strict=True)]

    @cached_property
    def first_of_text(self) -> np.ndarray:
        """(queries,) int64: the first query with the same text, for each query."""
        numbers = np.arange(len(self.queries))
        if not self.num_student_queries:
            return numbers
        parts = (numbers[start : start + _READ] for start in range(0, len(numbers), _READ))
        texts = (text for part in parts for text in self.query_texts(part))
        keys = np.fromiter(map(text_number, texts), dtype=np.uint64, count=len(numbers))
        _, first, which = np.unique(keys, return_index=True, return_inverse=True)
        return np.asarray(first[which])

    def query_ids(self, numbers: np.ndarray) -> list[str]:
        """The `query_id` of each query, by number, in the order given."""
        both = zip(self.query_texts(numbers), self.student_queries(numbers), strict=True)
        return [query_id(text, None if other == text else other) for text, other in both]

    def document_texts(self, numbers: np.ndarray) -> list[str]:
        """The texts of documents, by number, in the order given."""
        return self._document_text[np.asarray(numbers)]

    def teacher_texts(self, numbers: np.ndarray) -> list[str]:
        """What the teacher reads of the texts alone, by number, in the order given."""
        return self._teacher_text[np.asarray(numbers)]

    def student_texts(self, numbers: np.ndarray) -> list[str]:
        """What the student reads of them, by number, in the order given."""
        own = self._other_text[np.asarray(numbers)]
        if None not in own:
            return own
        pairs = zip(own, self.teacher_texts(numbers), strict=True)
        return [text if text is not None else teacher for text, teacher in pairs]

    @cached_property
    def _teacher_text(self) -> Column:
        return Column(self.texts, "text")

    @cached_property
    def _other_text(self) -> Column:
        return Column(self.texts, "student_text")

    def summary(self) -> str:
        """What was read, split and removed, in one paragraph for a terminal."""
        record, split = self.record, self.record.split
        lines = [
            f"{self.source.name}, read as {record.read_as}" if record.read_as else self.source.name,
            _listed(record.read),
        ]
        if record.unused:
            lines.append(f"not used: {_listed(record.unused)}")
        of = split if record.texts is None else vars(record.texts)
        held_out = (
            f"{of['train']:,} train, {of['validation']:,} validation, {of['test']:,} test "
            f"({record.held_out})"
        )
        if record.texts is not None:
            lines.append(held_out)
        else:
            lines.append(
                f"{held_out}; {split['test queries']:,} test queries search "
                f"{split['corpus documents']:,} documents"
            )
        if number := self.num_student_queries:
            lines.append(
                f"the student reads another text than the teacher in {number:,} of "
                f"{len(self.queries):,} queries"
            )
        if split.get("candidates"):
            lines.append(f"{split['candidates']:,} candidates stand beside them")
        lines.append(
            "removed from train and validation, because a held-out "
            f"{'pair' if record.texts is None else 'text'} shares something with them: "
            f"{_listed(record.leaks_removed) or 'none'} (left: {record.leaks_left})"
        )
        what = "Pairs" if record.texts is None else "Texts"
        return f"{what}    " + "\n         ".join(lines)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{what} {count:,}" for what, count in counts.items())


def _numbers(table: Dataset, column: str) -> np.ndarray:
    numbers = scratch(len(table), np.int64)
    one = table.select_columns([column]).with_format("arrow")
    for here in blocks(len(table)):
        numbers[here] = one[here][column].to_numpy()
    return numbers


class TableWriter:
    """Writes the rows of an Arrow file that `Dataset.from_file` reads, some at a time. A process
    that opens the file holds 5 KB for each batch of it, so a batch has a few megabytes.
    """

    def __init__(self, path: Path, features: Features) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._schema = features.arrow_schema
        self._stream = pa.ipc.new_stream(str(path), self._schema)
        self._columns: list[list[Any]] = [[] for _ in features]
        self._parts: list[pa.RecordBatch] = []

    def add(self, *values: Any) -> None:
        """Write a row, its values in the order of the features."""
        for column, value in zip(self._columns, values, strict=True):
            column.append(value)
        if len(self._columns[0]) == _READ:
            self._flush()

    def add_columns(self, *columns: pa.Array) -> None:
        """Write many rows, column by column."""
        self._flush()
        self._put(list(columns))

    def _put(self, columns: list[pa.Array]) -> None:
        self._parts.append(pa.record_batch(columns, schema=self._schema))
        if sum(part.nbytes for part in self._parts) >= _BATCH_BYTES:
            self._write()

    def _write(self) -> None:
        if self._parts:
            self._stream.write_batch(pa.concat_batches(self._parts))
        self._parts.clear()

    def _flush(self) -> None:
        if not self._columns[0]:
            return
        arrays = [
            pa.array(column, type=field.type)
            for column, field in zip(self._columns, self._schema, strict=True)
        ]
        self._put(arrays)
        for column in self._columns:
            column.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()
            self._write()
        self._stream.close()


def write_table(rows: Iterable[Mapping[str, Any]], features: Features, path: Path) -> None:
    """Write `rows` as an Arrow file, null where a row gives nothing. There may be no rows."""
    with TableWriter(path, features) as writer:
        for row in rows:
            writer.add(*(row.get(name) for name in features))
