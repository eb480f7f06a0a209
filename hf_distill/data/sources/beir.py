"""A BEIR folder (Thakur et al., 2021): corpus.jsonl, queries.jsonl and qrels/*.tsv."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_distill.data.collection import Source, SourcePairs, is_unicode
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import Recipe


def read_texts(path: Path, fields: tuple[str, ...]) -> dict[str, str]:
    """`_id` -> the non-empty `fields` of each line, joined by a space.

    Raises:
        InputError: The file is missing, a line is not a text with an id, or an id appears twice.
    """
    if not path.is_file():
        raise InputError(
            f"there is no {path.name} in {path.parent}; a BEIR folder holds corpus.jsonl, "
            "queries.jsonl and qrels/"
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
                    f"{path}, line {number}: invalid Unicode (a lone surrogate); fix or remove "
                    "the line"
                )
            if name in texts:
                raise InputError(f"{path}, line {number}: the id {name!r} appears a second time")
            texts[name] = " ".join(
                str(record[key]).strip() for key in fields if record.get(key)
            ).strip()
    return texts


def read_qrels(path: Path) -> Iterator[tuple[str, str, int]]:
    """(query id, document id, grade) of each line below the header.

    Raises:
        InputError: A line of another form.
    """
    with path.open(encoding="utf-8", newline="") as lines:
        for number, row in enumerate(csv.reader(lines, delimiter="\t"), 1):
            well_formed = len(row) == 3 and row[2].lstrip("-").isdigit()
            if number == 1 and len(row) == 3 and not well_formed:
                continue  # the header
            if not well_formed:
                raise InputError(
                    f"{path}, line {number}: expected query id, document id and an integer grade, "
                    f"found {row}"
                )
            yield row[0], row[1], int(row[2])


def read_beir(recipe: Recipe) -> SourcePairs:
    """The BEIR folder `dataset_path`: `qrels/train.tsv` to train on, `qrels/test.tsv` to test with,
    and the whole corpus to search in. `group` is the query.

    If only one of the two files is there, its pairs are split by query.

    Raises:
        InputError: A missing or malformed file (with the line), an id that appears twice, or a
            test.tsv without a usable judgement.
    """
    if recipe.data.dataset_path is None:
        raise InputError("--dataset beir needs --dataset_path, a BEIR folder")
    folder = Path(recipe.data.dataset_path)
    documents = read_texts(folder / "corpus.jsonl", ("title", "text"))
    queries = read_texts(folder / "queries.jsonl", ("text",))
    # Test first: a pair that is in both files keeps its id there.
    files = [folder / "qrels" / name for name in ("test.tsv", "train.tsv")]
    files = [file for file in files if file.is_file()]
    if not files:
        raise InputError(
            f"there is no train.tsv or test.tsv in {folder / 'qrels'}; a BEIR folder keeps its "
            "judgements there"
        )
    counts: Counter[str] = Counter()

    def pairs(file: Path, split: str | None) -> Iterator[dict[str, Any]]:
        for query_id, document_id, grade in read_qrels(file):
            counts["judgements found"] += 1
            if grade > 0 and not queries.get(query_id):
                counts["unknown or empty query"] += 1
            elif grade > 0 and not documents.get(document_id):
                counts["unknown or empty document"] += 1
            else:
                yield {
                    "pair_id": f"{query_id}_{document_id}",
                    "query_id": query_id,
                    "document_id": document_id,
                    "query": queries.get(query_id),
                    "document": documents.get(document_id),
                    "grade": grade,
                    "group": query_id,
                    "split": split,
                }

    def rows() -> Iterator[dict[str, Any]]:
        *test, training = files
        for file in test:
            usable = 0
            for row in pairs(file, "test"):
                usable += row["grade"] > 0
                yield row
            if not usable:
                raise InputError(
                    f"{file} holds no judgement above 0 of a query and a document with text, so "
                    "there is nothing to test with; fix it, or remove it to split train.tsv"
                )
        yield from pairs(training, None)

    about = Source(
        name=folder.resolve().name,
        description=f"A BEIR folder of {len(queries)} queries and {len(documents)} documents.",
    )
    return SourcePairs(
        about, rows(), corpus=((text, name) for name, text in documents.items()), counts=counts
    )
