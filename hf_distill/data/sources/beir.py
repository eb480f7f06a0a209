"""A BEIR folder (Thakur et al., 2021): corpus.jsonl, queries.jsonl and qrels/*.tsv."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_distill.data.collection import (
    CORPUS_FEATURES,
    PAIR_FEATURES,
    TEST_FEATURES,
    Source,
    SourcePairs,
    dataset_of,
    is_unicode,
    text_id,
)
from hf_distill.errors import InputError


def read_texts(path: Path, fields: tuple[str, ...]) -> dict[str, str]:
    """`_id` -> the non-empty `fields` of each line, joined by a space."""
    if not path.is_file():
        raise InputError(
            f"no {path.name} in {path.parent}; a BEIR folder has corpus.jsonl, queries.jsonl and qrels/"
        )
    texts: dict[str, str] = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(
                    f"{path}, line {number}: not JSON: {error.msg} at column {error.colno}"
                ) from error
            if not isinstance(record, dict) or "_id" not in record or "text" not in record:
                raise InputError(f"{path}, line {number}: expected an object with _id and text")
            name = str(record["_id"])
            if not is_unicode(f"{name} {record['text']} {record.get('title') or ''}"):
                raise InputError(
                    f"{path}, line {number}: text that is no valid Unicode (a lone surrogate); mend or remove the line"
                )
            if name in texts:
                raise InputError(f"{path}, line {number}: the id {name!r} appears a second time")
            texts[name] = " ".join(
                str(record[key]).strip() for key in fields if record.get(key)
            ).strip()
    return texts


def read_qrels(path: Path) -> Iterator[tuple[str, str, int]]:
    """(query id, document id, grade) of each line below the header."""
    with path.open(encoding="utf-8", newline="") as lines:
        for number, row in enumerate(csv.reader(lines, delimiter="\t"), 1):
            well_formed = len(row) == 3 and row[2].lstrip("-").isdigit()
            if number == 1 and len(row) == 3 and not well_formed:
                continue  # the header
            if not well_formed:
                raise InputError(
                    f"{path}, line {number}: expected query id, document id and an integer grade, found {row}"
                )
            yield row[0], row[1], int(row[2])


def read_beir(folder: Path, cache: Path) -> SourcePairs:
    """Read a BEIR folder: training pairs from `qrels/train.tsv`, judgements from `qrels/test.tsv`,
    the whole corpus.

    With only one of the two, its pairs are split by query and searched in the whole corpus all the
    same. `group` is the query.

    Raises:
        InputError: A missing or malformed file (with the line), an id that appears twice, no usable
            judgement.
    """
    documents = read_texts(folder / "corpus.jsonl", ("title", "text"))
    queries = read_texts(folder / "queries.jsonl", ("text",))
    qrels = {name: folder / "qrels" / f"{name}.tsv" for name in ("train", "test")}
    present = {name: path for name, path in qrels.items() if path.is_file()}
    if not present:
        raise InputError(
            f"no train.tsv or test.tsv in {folder / 'qrels'}; a BEIR folder keeps its judgements there"
        )
    counts: Counter[str] = Counter()

    def rows(name: str) -> Iterator[dict[str, Any]]:
        for query_id, document_id, grade in read_qrels(present[name]):
            counts["judgements found"] += 1
            if grade <= 0:
                reason = "judged not relevant"
            elif not queries.get(query_id):
                reason = "unknown or empty query"
            elif not documents.get(document_id):
                reason = "unknown or empty document"
            else:
                reason = "kept"
                yield {
                    "pair_id": f"{query_id}_{document_id}",
                    "query": queries[query_id],
                    "document": documents[document_id],
                    "group": query_id,
                    **({"relevance": grade} if name == "test" and "train" in present else {}),
                }
            counts[reason] += 1

    training = "train" if "train" in present else "test"
    pairs = dataset_of(rows(training), PAIR_FEATURES, cache, "beir")
    judged = (
        dataset_of(rows("test"), TEST_FEATURES, cache, "beir-judged") if len(present) == 2 else None
    )
    unique = {text_id(text): text for text in documents.values() if text}
    corpus = dataset_of(
        ({"document_id": i, "document": text} for i, text in unique.items()),
        CORPUS_FEATURES,
        cache,
        "beir-corpus",
    )
    return SourcePairs(
        pairs=pairs,
        counts=dict(counts),
        source=Source(
            name=folder.resolve().name,
            description=f"A BEIR folder of {len(queries)} queries and {len(documents)} documents.",
        ),
        judged=judged,
        corpus=corpus,
    )
