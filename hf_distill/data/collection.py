"""The collection: what every source becomes, and all that the later stages read.

Each text is written once. Everything else refers to it by its row number:

| table | columns |
|---|---|
| `queries` | `text`: each query once |
| `documents` | `text`: each document once; `searched`: whether held-out queries search it |
| `judgements` | `pair_id`, `query` and `document` (row numbers), `grade`, `group`, `source`, |
| | `split`, `reason` |

A judgement is a pair: its document answers its query (`grade` above 0). Judgements stand in the
order of their split: train, validation, test, leaked. `group` and `source` belong to the pair and
not to the query, because one question may be asked in two conversations. A missing value is null.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset, Features, Value
from datasets.arrow_writer import ArrowWriter

Split = Literal["train", "validation", "test", "leaked"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test", "leaked")
"""In the order in which their judgements stand. `leaked`: taken out of train and validation,
because a held-out pair shares something with them.
"""

TEXT_FEATURES = {
    "queries": Features({"text": Value("string")}),
    "documents": Features({"text": Value("string"), "searched": Value("bool")}),
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

_READ = 1000


def text_id(text: str) -> str:
    """Sixteen hex digits of the text's SHA-256: equal texts, equal id. Lone surrogates are hashed
    as they are.
    """
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


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
    """What a data set is: for the cards."""

    name: str
    license: str | None = None
    url: str | None = None
    description: str = ""


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

    Pairs of one group are never divided between train and test. The caller of the source strips the
    texts, counts rows without one, writes each text once, splits, and takes leaks out. A source
    raises `hf_distill.errors.InputError` for input that cannot be used at all.

    Attributes:
        about: What the data set is.
        rows: The pairs, one mapping each: `query` and `document` (texts), and optionally `pair_id`
            (default: the row's number), `group` (default: the query), `source`, `grade` (default:
            1) and `split` ("test" for judgements that the source itself holds out; if it gives
            any, no others are tested). Read once, in order.
        corpus: Further documents that held-out queries search. None: they search the documents of
            the held-out pairs alone. Read once, before `rows`.
        counts: How many records there were, and how many the source left out of `rows` for which
            reason. A source that reads lazily fills it while `rows` is read. Empty if each row is a
            record.
    """

    about: Source
    rows: Iterable[Mapping[str, Any]]
    corpus: Iterable[str] | None = None
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CollectionRecord:
    """`pairs/manifest.json`.

    Attributes:
        key: The fingerprint of what the collection depends on.
        source: What the data set is.
        read: How many records were found, and how many were left out for which reason.
        split: Pairs of each split, and `pairs`, `groups`, `test queries`, `corpus documents`.
        leaks_removed: Reason -> pairs taken out of train and validation.
        leaks_left: Pairs that still share something with a held-out pair: always 0.
    """

    key: str
    source: Source
    read: dict[str, int]
    split: dict[str, int]
    leaks_removed: dict[str, int]
    leaks_left: int


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
        return Pairs(self.collection, self.rows[places])

    @property
    def queries(self) -> np.ndarray:
        """(n,) int64, the number of each pair's query."""
        numbers: np.ndarray = self.collection.query_numbers[self.rows]
        return numbers

    @property
    def documents(self) -> np.ndarray:
        """(n,) int64, the number of each pair's document."""
        numbers: np.ndarray = self.collection.document_numbers[self.rows]
        return numbers

    def column(self, name: str) -> list[Any]:
        """A column of `judgements`: `pair_id`, `grade`, `group`, `source` or `reason`."""
        table = self.collection.judgements.select_columns([name]).with_format("arrow")
        values: list[Any] = table[self.rows][name].to_pylist()
        return values

    def batches(self, *columns: str, size: int = _READ) -> Iterator[dict[str, list[Any]]]:
        """The pairs, some at a time, as lists: `columns` of `judgements`, where `query` and
        `document` are the texts.
        """
        for start in range(0, len(self.rows), size):
            part = Pairs(self.collection, self.rows[start : start + size])
            texts = {
                "query": lambda part=part: part.collection.query_texts(part.queries),
                "document": lambda part=part: part.collection.document_texts(part.documents),
            }
            yield {name: texts[name]() if name in texts else part.column(name) for name in columns}


@dataclass(frozen=True)
class Collection:
    """Queries, documents and judgements of a run, memory-mapped. See the module's docstring."""

    queries: Dataset
    documents: Dataset
    judgements: Dataset
    record: CollectionRecord

    @property
    def key(self) -> str:
        """The fingerprint of what the collection depends on."""
        return self.record.key

    @property
    def source(self) -> Source:
        """What the data set is."""
        return self.record.source

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
        return Pairs(self, np.arange(rows.start, rows.stop))

    def every_pair(self) -> Pairs:
        """The judgements of all splits, in order."""
        return Pairs(self, np.arange(len(self.judgements)))

    @cached_property
    def searched(self) -> np.ndarray:
        """(m,) int64, ascending: the numbers of the documents that held-out queries search."""
        column = self.documents.select_columns(["searched"]).with_format("arrow")[:]["searched"]
        return np.flatnonzero(column.to_numpy())

    @cached_property
    def _query_text(self) -> Dataset:
        return self.queries.select_columns(["text"]).with_format("arrow")

    @cached_property
    def _document_text(self) -> Dataset:
        return self.documents.select_columns(["text"]).with_format("arrow")

    def query_texts(self, numbers: np.ndarray) -> list[str]:
        """The texts of queries, by number, in the order given."""
        return _texts(self._query_text, numbers)

    def document_texts(self, numbers: np.ndarray) -> list[str]:
        """The texts of documents, by number, in the order given."""
        return _texts(self._document_text, numbers)

    def summary(self) -> str:
        """What was read, split and removed, in one paragraph for a terminal."""
        record = self.record
        read = ", ".join(f"{reason} {count:,}" for reason, count in record.read.items())
        removed = ", ".join(f"{why} {count:,}" for why, count in record.leaks_removed.items())
        split = record.split
        return (
            f"Pairs    {self.source.name}: {read}\n"
            f"         {split['train']:,} train, {split['validation']:,} validation, "
            f"{split['test']:,} test, split by group; {split['test queries']:,} test queries "
            f"search {split['corpus documents']:,} documents\n"
            "         removed from train and validation, because a held-out pair shares something "
            f"with them: {removed or 'none'} (left: {record.leaks_left})"
        )


def _numbers(table: Dataset, column: str) -> np.ndarray:
    numbers: np.ndarray = table.select_columns([column]).with_format("arrow")[:][column].to_numpy()
    return numbers


def _texts(table: Dataset, numbers: np.ndarray) -> list[str]:
    if not len(numbers):
        return []
    texts: list[str] = table[np.asarray(numbers)]["text"].to_pylist()
    return texts


def write_table(rows: Iterable[Mapping[str, Any]], features: Features, path: Path) -> None:
    """Write `rows` as an Arrow file. There may be no rows: the readers of `datasets` for folders
    and Parquet would refuse such a table.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with ArrowWriter(path=str(path), features=features) as writer:
        for row in rows:
            writer.write({**dict.fromkeys(features), **row})  # null where a source gives nothing
        writer.finalize()
