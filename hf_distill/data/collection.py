"""The column contract of pairs, and what every source hands over.

| column | type | meaning |
|---|---|---|
| `pair_id` | string | unique in the data set |
| `query` | string | stripped, not empty |
| `document` | string | stripped, not empty |
| `group` | string | pairs that must never be split between train and test (a conversation, a module, a query) |
| `source` | string | where a pair is from, for selection by source (a package, a part of a data set); null where it is all one |
| `relevance` | int32 | test pairs only: the grade of the judgement, above 0 |
| `reason` | string | leaked pairs only: what the pair shares with a held-out one |
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value
from datasets.arrow_writer import ArrowWriter

PAIR_FEATURES = Features(
    {name: Value("string") for name in ("pair_id", "query", "document", "group", "source")}
)
TEST_FEATURES = Features({**PAIR_FEATURES, "relevance": Value("int32")})
LEAKED_FEATURES = Features({**PAIR_FEATURES, "reason": Value("string")})
CORPUS_FEATURES = Features({"document_id": Value("string"), "document": Value("string")})


def text_id(text: str) -> str:
    """Sixteen hex digits of the text's SHA-256: equal texts, equal id. Lone surrogates are hashed
    as they are.
    """
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def text_number(text: str) -> int:
    """`text_id` as an unsigned 64-bit number."""
    return int(text_id(text), 16)


def pair_key(query: str, document: str) -> int:
    """An unsigned 64-bit key of a (query, document) pair: equal texts, equal key."""
    return text_number(text_id(query) + text_id(document))


def is_unicode(text: str) -> bool:
    """Whether `text` can be written as UTF-8. JSON may smuggle in a lone surrogate, which no file
    format here can hold.
    """
    return not any("\ud800" <= character <= "\udfff" for character in text)


@dataclass(frozen=True)
class Source:
    """What a data set is: for the cards, and to know whether it has changed."""

    name: str
    license: str | None = None
    url: str | None = None
    description: str = ""


@dataclass(frozen=True)
class SourcePairs:
    """What a source read.

    Attributes:
        pairs: Columns of `PAIR_FEATURES`.
        counts: How many records were found, and how many fell to which reason; `found = kept + sum
            of the rest`.
        judged: A source's own test set (BEIR): columns of `TEST_FEATURES`; None if the pairs are to
            be split.
        corpus: The documents that the judged queries search: columns of `CORPUS_FEATURES`; None if
            it is the test pairs'.
    """

    pairs: Dataset
    counts: Mapping[str, int]
    source: Source
    judged: Dataset | None = None
    corpus: Dataset | None = None


@dataclass(frozen=True)
class PairData:
    """Pairs, split. `train`, `validation`: `PAIR_FEATURES`; `test`: `TEST_FEATURES`; `leaked`:
    `LEAKED_FEATURES`; `corpus`: `CORPUS_FEATURES`.

    `leaked` are the pairs that were taken out of training and validation because a held-out pair
    shares a text with them. `counts` has three parts: `source` (as read), `split` (pairs a split),
        `leaks` (what was removed by reason, and how many are
    left: always 0). `key` is the fingerprint of what the pairs depend on.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    leaked: Dataset
    corpus: Dataset
    source: Source
    counts: Mapping[str, Any]
    key: str = ""

    def summary(self) -> str:
        """What was read, split and removed, in one paragraph for a terminal."""
        read = ", ".join(f"{reason} {count:,}" for reason, count in self.counts["source"].items())
        split, leaks = self.counts["split"], self.counts["leaks"]
        removed = (
            ", ".join(f"{reason} {count:,}" for reason, count in leaks["removed"].items()) or "none"
        )
        return (
            f"Pairs    {self.source.name}: {read}\n"
            f"         {split['train']:,} train, {split['validation']:,} validation, {split['test']:,} test, split by group; "
            f"{split['test queries']:,} test queries search {split['corpus documents']:,} documents\n"
            f"         taken out of train and validation for sharing with held-out pairs: {removed} (left: {leaks['left']})"
        )


def dataset_of(
    rows: Iterable[Mapping[str, Any]], features: Features, folder: Path, name: str
) -> Dataset:
    """A memory-mapped Dataset of `rows`, written to `folder/name.arrow` without ever holding all of
    them.
    """
    path = folder / f"{name}.{os.getpid()}.arrow"
    write_table(rows, features, path)
    return Dataset.from_file(str(path))


def write_table(rows: Iterable[Mapping[str, Any]], features: Features, path: Path) -> None:
    """Write `rows` as an Arrow file, which may hold none (the readers of `datasets` for folders and
    Parquet refuse that).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with ArrowWriter(path=str(path), features=features) as writer:
        for row in rows:
            writer.write({**dict.fromkeys(features), **row})  # null where a source says nothing
        writer.finalize()


def map_rows(
    rows: Dataset,
    add: Callable[[dict[str, list[Any]], list[int]], dict[str, Any]],
    features: Features,
    batch_size: int = 1000,
) -> Dataset:
    """`rows` through `datasets.map`, in batches: `add(batch, indices)` returns columns to add; the
    result has `features`.

    Columns that are not in `features` go. The result is memory-mapped, beside the data it was made
    from. It is made anew each time: what is worth keeping between calls is an artefact of the run,
        not a cache that depends on how a function hashes.
    """
    if not len(rows):  # `map` would return them without the new columns
        return Dataset.from_dict({name: [] for name in features}, features=features)
    return rows.map(
        add,
        with_indices=True,
        batched=True,
        batch_size=batch_size,
        features=features,
        remove_columns=[name for name in rows.column_names if name not in features],
        new_fingerprint=uuid.uuid4().hex,
    )
