"""A source in any format as a retrieval task."""

from __future__ import annotations

from typing import Any

import pytest

from hf_distill.data.collection import Source, SourcePairs, text_id
from hf_distill.errors import InputError
from hf_distill.evaluation.tasks import task_of

ROWS: list[dict[str, Any]] = [
    {"query": "cat", "document": "blue cat", "query_id": "q1", "document_id": "d2"},
    {"query": "cat", "document": "sun", "grade": 0, "query_id": "q1", "document_id": "d1"},
    {
        "query": "cat",
        "document": "moon",
        "candidate": True,
        "query_id": "q1",
        "document_id": "d3",
    },
    {"query": "dog", "document": "red dog", "grade": 2, "query_id": "q2", "document_id": "d4"},
]


def source(rows: list[dict[str, Any]], **more: Any) -> SourcePairs:
    return SourcePairs(Source("rows"), iter(rows), **more)


def with_splits(*splits: str | None) -> list[dict[str, Any]]:
    return [{**row, "split": split} for row, split in zip(ROWS, splits, strict=True)]


def test_a_task_has_the_datas_ids_grades_and_whole_corpus() -> None:
    corpus = [("blue cat", "d2"), ("star", "d0"), ("sun", "d1"), (" red dog ", "d4")]
    task = task_of(source(ROWS, corpus=iter(corpus)), "mine")
    assert (task.name, task.notes) == ("mine", ())
    assert task.queries == {"q1": "cat", "q2": "dog"}
    assert task.qrels == {"q1": {"d2": 1, "d1": 0}, "q2": {"d4": 2}}
    # A candidate that the corpus does not hold is searched, too: the data say that it exists.
    assert list(task.documents.items()) == [
        ("d0", "star"), ("d1", "sun"), ("d2", "blue cat"), ("d3", "moon"), ("d4", "red dog"),
    ]  # fmt: skip


def test_without_a_corpus_the_documents_beside_the_queries_are_searched() -> None:
    task = task_of(source(with_splits("test", "test", "test", "train")), "mine")
    assert task.qrels == {"q1": {"d2": 1, "d1": 0}}
    assert list(task.documents) == ["d1", "d2", "d3"]
    assert task.notes == ("1 judgements of the split train are left out",)


@pytest.mark.parametrize(
    ("splits", "queries"),
    [
        (("train", "train", "train", "test"), ["q2"]),
        (("train", "train", "train", "validation"), ["q2"]),
        (("validation", "validation", None, "test"), ["q2"]),
        (("train", "train", "train", "train"), ["q1", "q2"]),
        ((None, None, None, None), ["q1", "q2"]),
    ],
)
def test_a_task_is_the_test_split_if_the_data_say_splits(
    splits: tuple[str | None, ...], queries: list[str]
) -> None:
    assert list(task_of(source(with_splits(*splits)), "mine").queries) == queries


def test_texts_without_ids_get_the_ids_of_their_content() -> None:
    rows = [{"query": " cat ", "document": "blue cat"}, {"query": "cat", "document": ""}]
    task = task_of(source(rows, unused={"column x": 2}), "mine")
    assert task.qrels == {text_id("cat"): {text_id("blue cat"): 1}}
    assert task.notes == (
        "not used: column x: 2",
        "1 rows without a query or a document are left out",
    )


def test_a_judgement_of_a_document_that_is_not_there_counts() -> None:
    rows = [*ROWS, {"query": "dog", "document": None, "query_id": "q2", "document_id": "d9"}]
    task = task_of(source(rows), "mine")
    assert task.qrels["q2"] == {"d4": 2, "d9": 1}
    assert "d9" not in task.documents
    assert "1 of 4 judgements name a document that is not in the corpus" in task.notes[0]


@pytest.mark.parametrize("wrong", [{"query": 7}, {"document": ["x"]}, {"grade": 0.5}])
def test_what_is_no_text_or_grade_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"7|list|0\.5"):
        task_of(source([*ROWS, {**ROWS[0], **wrong}]), "mine")


def test_an_id_with_two_texts_is_refused() -> None:
    rows = [*ROWS, {"query": "other", "document": "x", "query_id": "q1"}]
    with pytest.raises(InputError, match="'q1' has two texts"):
        task_of(source(rows), "mine")
