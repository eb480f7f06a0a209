"""Small runs that have read everything that a collection can hold, for the exports."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from conftest import recipe_of

from hf_distill.data.collection import Collection, Source, SourcePairs
from hf_distill.data.load import open_collection, write_collection
from hf_distill.run.folder import RunFolder, save_recipe
from hf_distill.run.stage import write_result
from hf_distill.scoring.scores import ScoreStatistics, SoftLabels
from hf_distill.teachers.base import SCALES

Rows = list[dict[str, Any]]
CORPUS = [("A tea kettle hums upon the old stove", "corpus-1"), ("Rain falls on a tin roof", "c2")]


def text(kind: str, number: int) -> str:
    """A text that shares no words with another: no two are near-duplicates."""
    return " ".join(f"{kind}{number}word{i}" for i in range(6))


def row(query: int, document: int, split: str = "train", **more: Any) -> dict[str, Any]:
    """A row of a source, with ids."""
    return {
        "query": text("query", query),
        "document": text("document", document),
        "query_id": f"q{query}",
        "document_id": f"d{document}",
        "split": split,
        **more,
    }


def everything() -> Rows:
    """Four queries to train on, one to validate, two to test; lists of different lengths, each
    document with a score.
    """
    return [
        row(1, 1, grade=2, score=0.9),
        row(1, 2, score=0.8),
        row(1, 3, grade=0, score=0.1),
        row(1, 4, candidate=True, score=0.3),
        row(1, 5, candidate=True, score=0.25),
        row(2, 6, score=0.7),
        row(2, 4, candidate=True, score=0.5),
        row(3, 7, grade=3, score=12.5),
        row(4, 8, score=-1.5),
        row(4, 9, grade=0, score=-2.0),
        row(5, 10, "validation", score=0.6),
        row(5, 3, "validation", grade=0, score=0.05),
        row(6, 11, "test", grade=2, score=0.4),
        row(6, 12, "test", grade=0, score=0.2),
        row(6, 13, "test", candidate=True, score=0.1),
        row(7, 14, "test", score=0.3),
    ]


def triplets(negatives: int = 2) -> Rows:
    """Three queries to train on, one to validate and one to test, each with as many negatives that
    nobody judged; the first has two positives. No scores.
    """
    split = {4: "validation", 5: "test"}
    rows = []
    for query in range(1, 6):
        rows.append(row(query, 10 * query, split.get(query, "train")))
        if query == 1:
            rows.append(row(1, 19))
        rows += [
            row(query, 10 * query + i, split.get(query, "train"), candidate=True)
            for i in range(1, negatives + 1)
        ]
    return rows


def without(rows: Rows, *names: str) -> Rows:
    """`rows` without some of their columns."""
    return [{name: value for name, value in one.items() if name not in names} for one in rows]


def read_run(
    path: Path,
    rows: Iterable[Mapping[str, Any]],
    corpus: Iterable[tuple[str, str | None]] | None = None,
    source: Source = Source("small"),  # noqa: B008  # it is frozen
) -> Collection:
    """A run in the folder `path` that has read its pairs and gone no further."""
    folder = RunFolder(path)
    recipe = recipe_of(run_dir=path)
    data = dataclasses.replace(recipe.data, validation_fraction=0.0)  # only what the data says
    record = write_collection((SourcePairs(source, rows, corpus), None), data, 0, folder, "key")
    write_result(folder.pairs / "manifest.json", record, [])
    save_recipe(recipe, folder)
    return open_collection(folder)


def score_run(path: Path, values: np.ndarray, collection: str = "key") -> None:
    """The soft labels of a run: `values`, in the order of its judgements."""
    folder = RunFolder(path)
    record = SoftLabels(
        key="s", teacher="some/teacher", teacher_kind="bi-encoder", teacher_identity="0",
        precision="float32", query_prompt="", document_prompt="", instruction="",
        scale=SCALES["cosine"].record(),
        dimension=8, pairs=len(values), unscored=0, item="text", items=8,
        items_without_deduplication=8, seconds=0.5, score=ScoreStatistics.of(values), parts=[],
        collection=collection,
    )  # fmt: skip
    write_result(folder.soft_labels / "manifest.json", record, [])
    np.save(folder.soft_labels / "scores.npy", values.astype(np.float32))
