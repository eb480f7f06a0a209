"""Lists beside the pairs: what a source says of more documents than the relevant one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distill.data.collection import Collection, Source, SourcePairs, Split
from hf_distill.data.load import write_collection
from hf_distill.data.read import TEST_PATH, open_tables, read_pairs
from hf_distill.errors import InputError
from hf_distill.evaluation.tasks import held_out_task
from hf_distill.recipe.arguments import DataArguments
from hf_distill.run.folder import RunFolder
from hf_distill.scoring.embeddings import EmbeddingTable, Vectors
from hf_distill.scoring.scores import Scores
from hf_distill.teachers.base import SCALES
from hf_distill.training.rows import listed_negatives


def collect(path: Path, rows: list[dict], test_set: list[dict] | None = None) -> Collection:
    data = DataArguments(test_fraction=0.5, validation_fraction=0.0)
    sources = [
        None if listed is None else SourcePairs(Source("rows"), listed)
        for listed in (rows, test_set)
    ]
    folder = RunFolder(path / "run")
    return open_tables(folder.pairs, write_collection(tuple(sources), data, 0, folder, "key"))


def lists_of(collection: Collection, split: Split) -> dict[str, list[tuple[str, float, int]]]:
    """Query -> (document, score, grade) of its candidates."""
    numbers = np.unique(collection.pairs(split).queries)
    lists = collection.lists(numbers)
    texts = collection.document_texts(lists.documents)
    every = list(zip(texts, lists.scores.tolist(), lists.grades.tolist(), strict=True))
    queries = collection.query_texts(numbers)
    return {query: every[lists.starts[i] : lists.starts[i + 1]] for i, query in enumerate(queries)}


ROWS: list[dict[str, Any]] = [
    {"query": "q1", "document": "yes", "score": 0.9, "split": "train"},
    {"query": "q1", "document": "also yes", "grade": 2, "split": "train"},
    {"query": "q1", "document": "mined", "candidate": True, "score": 0.25, "split": "train"},
    {"query": "q1", "document": "mined", "candidate": True, "split": "train"},
    {"query": "q1", "document": "no", "grade": 0, "split": "train"},
    {"query": "q1", "document": "tested", "candidate": True, "split": "train"},
    {"query": "q2", "document": "tested", "split": "test"},
    {"query": "q2", "document": "mined", "candidate": True, "split": "test"},
    {"query": "q3", "document": "both", "grade": 1, "split": "train"},
    {"query": "q3", "document": "both", "grade": 0, "split": "train"},
    {"query": "q4", "document": "alone", "candidate": True},
    {"query": "q4", "document": "", "candidate": True},
]


def test_a_list_is_kept_beside_the_pairs_of_its_query(tmp_path: Path) -> None:
    collection = collect(tmp_path, ROWS)
    read = dict(collection.record.read)
    assert read.pop("rows found") == 12 == sum(read.values())
    assert read == {
        "kept": 3,
        "candidates": 3,
        "repeated candidates": 1,
        "judged not relevant": 2,
        "judged relevant and not relevant": 1,
        "candidates of a query without a pair": 1,
        "no document": 1,
    }
    assert collection.pairs("train").column("grade") == [1, 2]
    assert lists_of(collection, "train") == {
        "q1": [
            ("yes", pytest.approx(0.9), 1),
            ("mined", 0.25, -1),
            ("no", pytest.approx(np.nan, nan_ok=True), 0),
        ]
    }
    # "tested" is the document of a held-out pair: it is no candidate of a training query.
    assert collection.record.unused == {"candidates that are documents of held-out pairs": 1}
    assert collection.record.split["candidates"] == 4


def test_held_out_queries_search_their_own_candidates_too(tmp_path: Path) -> None:
    collection = collect(tmp_path, ROWS)
    assert collection.document_texts(collection.searched) == ["tested", "mined"]


def test_a_held_out_document_that_is_judged_not_relevant_has_a_grade_of_0(tmp_path: Path) -> None:
    rows = [
        *ROWS,
        {"query": "q2", "document": "far off", "grade": 0, "split": "test"},
    ]
    task = held_out_task(collect(tmp_path, rows))
    names = dict(task.documents)
    (grades,) = task.qrels.values()
    assert {names[name]: grade for name, grade in grades.items()} == {"tested": 1, "far off": 0}
    assert set(names.values()) == {"tested", "far off", "mined"}


def test_the_lists_of_repeated_queries_and_of_none_are_found(tmp_path: Path) -> None:
    collection = collect(tmp_path, ROWS)
    (number,) = np.unique(collection.pairs("train").queries)
    other = 1 - number
    lists = collection.lists(np.array([number, other, number]))
    assert np.diff(lists.starts).tolist() == [3, 1, 3]
    assert lists.documents[:3].tolist() == lists.documents[4:].tolist()
    none = collection.lists(np.empty(0, dtype=np.int64))
    assert (none.starts.tolist(), len(none.documents)) == ([0], 0)


def test_nothing_that_a_test_set_of_ones_own_holds_is_trained_on(tmp_path: Path) -> None:
    rows = [{"query": f"query {i}", "document": f"text {i} " * 4} for i in range(20)]
    rows += [
        {"query": f"query {i}", "document": "text 3 " * 4, "candidate": True} for i in range(20)
    ]
    before = collect(tmp_path / "before", rows)
    trained = set(before.pairs("train").column("pair_id"))
    after = collect(
        tmp_path,
        rows,
        [{"query": "Query 5?", "document": "x"}, {"query": "y", "document": "text 3 " * 4}],
    )
    ids = {split: set(after.pairs(split).column("pair_id")) for split in ("train", "test")}
    assert ids["train"] == trained - {"5", "3"}
    assert ids["test"] == set(before.pairs("test").column("pair_id"))
    assert len(after.every_pair()) == 20
    assert after.record.leaks_left == 0
    listed = [text for of in lists_of(after, "train").values() for text, _, _ in of]
    assert "text 3" not in {text[:6] for text in listed}


@pytest.mark.parametrize(
    ("splits", "held_out", "tested"),
    [
        ("train test", "the data's own test split", ["d1"]),
        ("train validation", "the data's own validation split", ["d1"]),
        ("train validation test", "the data's own test split", ["d2"]),
        ("test", "drawn by group", None),
    ],
)
def test_the_datas_own_splits_are_used(
    tmp_path: Path, splits: str, held_out: str, tested: list[str] | None
) -> None:
    names = splits.split()
    rows = [
        {"query": f"q{i} {name} {j}", "document": f"d{i}" if j == 0 else f"{i} {j} " * 5,
         "split": name}
        for i, name in enumerate(names)
        for j in range(1 if name in ("test", "validation") and len(names) > 1 else 9)
    ]  # fmt: skip
    collection = collect(tmp_path, rows)
    assert collection.record.held_out == held_out
    documents = collection.document_texts(collection.pairs("test").documents)
    assert tested is None or documents == tested


ROW = st.fixed_dictionaries(
    {
        "query": st.sampled_from(["a", "b", "c", " ", "", "\ud800"]),
        "document": st.sampled_from(["x", "y", "z", "", "a"]),
    },
    optional={
        "grade": st.integers(-1, 3),
        "score": st.floats(-1, 1, width=32),
        "split": st.sampled_from(["train", "test", "validation"]),
    },
) | st.fixed_dictionaries(
    {
        "query": st.sampled_from(["a", "b", "c"]),
        "document": st.sampled_from(["x", "y", "z", "w"]),
        "candidate": st.just(True),
    },
    optional={"score": st.floats(-1, 1, width=32)},
)


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(ROW, max_size=40), test_set=st.lists(ROW, max_size=5))
def test_what_is_read_is_used_or_has_a_reason_and_no_judged_negative_is_a_pair(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict], test_set: list[dict]
) -> None:
    folder = tmp_path_factory.mktemp("read")
    read = read_pairs(
        SourcePairs(Source("rows"), rows), folder, SourcePairs(Source("test"), test_set)
    )
    counts = dict(read.counts)
    assert counts.pop("rows found", 0) == len(rows) == sum(counts.values())
    own = np.array(read.pairs["split"], dtype=object)[read.rows] != TEST_PATH
    assert counts.get("kept", 0) == own.sum()
    assert counts.get("candidates", 0) <= len(read.candidate_queries)

    def texts(queries: np.ndarray, documents: np.ndarray) -> list[tuple[str, str]]:
        left, right = read.queries.table["text"], read.documents.table["text"]
        return [(left[q], right[d]) for q, d in zip(queries, documents, strict=True)]

    pairs = set(texts(read.pair_queries[own], read.pair_documents[own]))
    negative = {
        (row["query"].strip(), row["document"].strip())
        for row in rows
        if not row.get("candidate") and row.get("grade", 1) <= 0
    }
    assert not pairs & negative
    candidates = texts(read.candidate_queries, read.candidate_documents)
    assert len(set(candidates)) == len(candidates)
    for pair, grade in zip(candidates, read.candidate_grades.tolist(), strict=True):
        assert (grade > 0) == (pair in pairs)
        assert (grade == 0) == (pair in negative)


def test_a_wrong_type_is_named_by_column_place_and_value(tmp_path: Path) -> None:
    class Lines:
        def where(self, place: int) -> str:
            return f"pairs.jsonl, line {place}"

    row = {"query": "a", "document": 7, "at": (Lines(), 17), "names": {"document": "answer"}}
    with pytest.raises(InputError, match=r"pairs\.jsonl, line 17: .*'answer'.*\(7\)"):
        collect(tmp_path, [{"query": "a", "document": "b"}, row])


@pytest.mark.parametrize("block", [1, 1 << 16])
def test_the_best_scored_candidates_that_are_not_relevant_are_the_negatives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr("hf_distill.training.rows._BLOCK", block)
    rows = [
        {"query": "q", "document": "yes", "score": 0.9},
        {"query": "q", "document": "unscored", "candidate": True},
        {"query": "q", "document": "low", "grade": 0, "score": 0.1},
        {"query": "q", "document": "high", "candidate": True, "score": 0.6},
        {"query": "other", "document": "else where"},
        {"query": "third", "document": "some thing"},
    ]
    collection = collect(tmp_path, rows)
    everything = collection.every_pair()
    unit = np.eye(8, dtype=np.float16)[: len(collection.documents)]
    vectors = Vectors((unit,), np.arange(len(unit), dtype=np.uint32), 8)
    table = EmbeddingTable(
        vectors, np.zeros(len(collection.queries), np.int64), np.arange(len(unit))
    )
    scores = SimpleNamespace(embeddings=table, scale=SCALES["cosine"])
    scores.between = partial(Scores.between, scores)
    negatives = listed_negatives(everything, scores, 2)  # type: ignore[arg-type]
    texts = [
        [collection.document_texts(np.array([number]))[0] for number in row if number >= 0]
        for row in negatives.documents
    ]
    named = dict(zip(collection.query_texts(everything.queries), texts, strict=True))
    assert named == {"q": ["high", "low"], "other": [], "third": []}
    here = negatives.documents >= 0
    assert negatives.scores[here].tolist() == [float(d == 0) for d in negatives.documents[here]]
    assert np.isnan(negatives.scores[~here]).all()
