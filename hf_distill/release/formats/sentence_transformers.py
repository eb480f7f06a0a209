"""What the trainers of sentence-transformers take: Parquet, a row a positive or a row a query.

Where each query of a split has the same number of negatives, a row is `anchor`, `positive`,
`negative_1` ..., and `scores` (`score` without negatives) if every text has one. Elsewhere a row is
a query with lists: `query`, `documents`, `labels`, `scores`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hf_distill.data.collection import Split
from hf_distill.release.formats.contents import Contents, ExportFormat, Survey

_ROWS = 5000


def _schema(survey: Survey) -> pa.Schema:
    columns: dict[str, pa.DataType] = {}
    scores = pa.list_(pa.float32())
    if survey.least == survey.most:
        n = survey.most
        negatives = ["negative"] if n == 1 else [f"negative_{i}" for i in range(1, n + 1)]
        columns = dict.fromkeys(["anchor", "positive", *negatives], pa.string())
        last = {"scores": scores} if n else {"score": pa.float32()}
    else:
        columns = {"query": pa.string(), "documents": pa.list_(pa.string())}
        columns["labels"] = pa.list_(pa.int32())
        last = {"scores": scores}
    return pa.schema({**columns, **(last if survey.has_scores("each") else {})})


def _rows(contents: Contents, split: Split, names: list[str]) -> Iterator[tuple[Any, ...]]:
    """The values of each row, in the order of the columns `names`."""
    for query in contents.queries(split, ids=False):
        if "labels" in names:
            listed = [*query.positives, *query.others]
            values: list[Any] = [query.text, [one.text for one in listed]]
            values.append([one.grade or 0 for one in listed])
            yield (*values, [one.score for one in listed])[: len(names)]
            continue
        for positive in query.positives:
            listed = [positive, *query.others]
            scores = [one.score for one in listed]
            values = [query.text, *(one.text for one in listed)]
            yield (*values, scores if "scores" in names else scores[0])[: len(names)]


def _write(contents: Contents, folder: Path) -> dict[str, int]:
    notes: dict[str, int] = {}
    for split, survey in contents.surveys.items():
        schema = _schema(survey)
        rows = _rows(contents, split, schema.names)
        with pq.ParquetWriter(folder / f"{split}.parquet", schema) as writer:
            while part := list(itertools.islice(rows, _ROWS)):
                columns = (
                    pa.array(values, kind)
                    for values, kind in zip(zip(*part, strict=True), schema.types, strict=True)
                )
                writer.write_batch(pa.record_batch(list(columns), schema=schema))
        if "labels" in schema.names:
            why = f"documents of {split} that nobody judged have the label 0, as ones judged so"
            notes[why] = survey.not_judged
        else:
            why = f"documents of {split} judged not relevant are negatives like the others"
            notes[why] = survey.not_relevant
            notes[f"positives of {split} stand in a row without their grade"] = survey.graded
    return notes


FORMAT = ExportFormat(
    write=_write,
    files=("train.parquet", "validation.parquet", "test.parquet"),
    lacks={
        "ids": "are left out",
        "corpus": "are left out: there is no corpus",
        "student_texts": "are left out: trainers take every column",
    },
    scores="each",
    read=(
        "from datasets import load_dataset\n\n"
        'rows = load_dataset("parquet", data_files="FOLDER/SPLIT.parquet", split="train")\n'
        "# The trainers take the columns in their order, and one of labels, score, scores.\n"
        "print(rows[0])"
    ),
)
