"""Formats with one query a row: pairs, triplets and n-tuples, lists. Each is read from a file as
its own tool writes it, and the values are those in the file.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from conftest import recipe_of, sentences
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

from hf_distill.data.read import ReadPairs, read_pairs
from hf_distill.data.sources.files import read_any, read_path, read_sources
from hf_distill.data.sources.rows import relevant
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import DataArguments

Pair = tuple[str, str]


@dataclass(frozen=True)
class Read:
    """What a source said, by texts.

    Attributes:
        pairs: (query, document) -> grade.
        candidates: (query, document) -> (grade or None, score or None).
        columns: `pair_id`, `group`, `source` and `split` of each pair.
    """

    pairs: dict[Pair, int]
    candidates: dict[Pair, tuple[int | None, float | None]]
    columns: list[dict[str, Any]]
    counts: dict[str, int]
    unused: dict[str, int]
    read_as: str


def texts_of(read: ReadPairs, queries: np.ndarray, documents: np.ndarray) -> list[Pair]:
    return [
        (read.queries.table[int(q)]["text"], read.documents.table[int(d)]["text"])
        for q, d in zip(queries, documents, strict=True)
    ]


def by_texts(source: Any) -> Read:
    with tempfile.TemporaryDirectory() as folder:
        read = read_pairs(source, Path(folder))
        pairs = texts_of(read, read.pair_queries, read.pair_documents)
        listed = texts_of(read, read.candidate_queries, read.candidate_documents)
        said = [
            (None if grade < 0 else int(grade), None if math.isnan(score) else float(score))
            for grade, score in zip(read.candidate_grades, read.candidate_scores, strict=True)
        ]
        return Read(
            dict(zip(pairs, read.grades.tolist(), strict=True)),
            dict(zip(listed, said, strict=True)),
            [dict(read.pairs[int(row)]) for row in read.rows],
            dict(read.counts),
            dict(source.unused),
            source.read_as,
        )


def read(path: Path, key: str = "dataset_path", **options: Any) -> Read:
    """What is at `path`."""
    return by_texts(read_path(path, key, DataArguments(**options), path.parent / "cache"))


def jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pairs_of(**columns: Sequence[Any]) -> list[dict[str, Any]]:
    """Rows of columns."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


# --- pairs


@pytest.mark.parametrize(
    ("query", "document"),
    [
        ("query", "document"), ("question", "answer"), ("anchor", "positive"), ("query", "passage"),
        ("query", "text"), ("Question", "Answer"), ("question", "context"), ("title", "body"),
    ],
)  # fmt: skip
def test_usual_names_of_columns_need_no_flag(tmp_path: Path, query: str, document: str) -> None:
    rows = [{query: "one", document: "first text", "other": 1}]
    said = read(jsonl(tmp_path / "pairs.jsonl", rows))
    assert said.pairs == {("one", "first text"): 1}
    assert said.unused == {"column other of pairs.jsonl": 1}


@pytest.mark.parametrize(
    "columns",
    [("question", "passage", "answer"), ("query", "a", "b"), ("sentence1", "sentence2")],
)
def test_unclear_columns_are_refused_with_the_flags(
    tmp_path: Path, columns: tuple[str, ...]
) -> None:
    path = jsonl(tmp_path / "pairs.jsonl", [dict.fromkeys(columns, "some text")])
    with pytest.raises(
        InputError, match=f"{', '.join(columns)}.*--query_column.*--document_column"
    ):
        read(path)
    said = read(path, query_column=columns[0], document_column=columns[1])
    assert said.pairs == {("some text", "some text"): 1}


@pytest.mark.parametrize("key", ["query", "document", "label", "score", "group", "source"])
def test_a_column_that_is_named_must_be_there(tmp_path: Path, key: str) -> None:
    path = jsonl(tmp_path / "pairs.jsonl", [{"query": "a", "document": "b"}])
    with pytest.raises(InputError, match=rf"--{key}_column nowhere.*query, document"):
        read(path, **{f"{key}_column": "nowhere"})
    # It was said of the training data: a test set may lack it.
    assert read(path, "test_path", **{f"{key}_column": "nowhere"}).pairs == {("a", "b"): 1}


def test_labels_say_what_is_relevant(tmp_path: Path) -> None:
    labels = [1, 0, 3, -1, True, False, 2.0, "1", "0", "True", "relevant", "not relevant", None]
    rows = pairs_of(
        query=["q"] * len(labels),
        document=[f"document {i}" for i in range(len(labels))],
        label=[None if label is None else str(label) for label in labels],
    )
    said = read(jsonl(tmp_path / "pairs.jsonl", rows))
    assert [said.pairs.get(("q", f"document {i}"), 0) for i in range(13)] == [
        1, 0, 3, 0, 1, 0, 2, 1, 0, 1, 1, 0, 0,
    ]  # fmt: skip
    assert said.counts == {
        "rows found": 13, "kept": 7, "judged not relevant": 5, "no label": 1,
    }  # fmt: skip
    assert ("q", "document 12") not in said.candidates
    assert {grade for grade, _ in said.candidates.values()} == {0}


@pytest.mark.parametrize("name", ["label", "grade", "relevance"])
@pytest.mark.parametrize("values", [[1, 0], [True, False], [1.0, 0.0]])
def test_a_column_of_labels_is_known_by_its_name(
    tmp_path: Path, name: str, values: list[Any]
) -> None:
    rows = [{"query": "q", "document": f"text {v}", name: v} for v in values]
    said = read(jsonl(tmp_path / "pairs.jsonl", rows))
    assert said.pairs == {("q", f"text {values[0]}"): 1}
    assert said.candidates == {("q", f"text {values[1]}"): (0, None)}
    assert name in said.read_as


@pytest.mark.parametrize("label", ["entailment", "E", "maybe"])
def test_words_that_are_no_labels_are_refused_with_row_and_value(
    tmp_path: Path, label: str
) -> None:
    rows = pairs_of(query=["q", "q"], document=["a", "b"], label=["1", label])
    with pytest.raises(InputError, match=rf"pairs.jsonl, line 2.*'label'.*'{label}'"):
        read(jsonl(tmp_path / "pairs.jsonl", rows))


def test_a_label_with_a_fraction_is_a_similarity(tmp_path: Path) -> None:
    rows = pairs_of(query=["q", "r"], document=["a", "b"], label=[0.9, 0.1])
    path = jsonl(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(InputError, match=r"'label'.*--positives"):
        read(path)
    with pytest.raises(InputError, match=r"line 1.*'label'.*0\.9.*--score_column"):
        read(path, label_column="label")
    said = read(path, positives="0.5")
    assert said.pairs == {("q", "a"): 1}
    assert said.counts == {
        "rows found": 2, "kept": 1, "candidates of a query without a pair": 1,
    }  # fmt: skip
    assert read(path, score_column="label").pairs == {("q", "a"): 1, ("r", "b"): 1}


def test_whole_numbers_that_are_called_a_score_need_a_flag(tmp_path: Path) -> None:
    rows = pairs_of(query=["q", "r"], document=["a", "b"], score=[1, 0])
    path = jsonl(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(InputError, match=r"--label_column score.*--score_column score"):
        read(path)
    assert read(path, label_column="score").pairs == {("q", "a"): 1}
    assert read(path, score_column="score").candidates == {
        ("q", "a"): (1, 1.0), ("r", "b"): (1, 0.0),
    }  # fmt: skip


def test_two_columns_that_could_be_the_label_need_a_flag(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "pairs.jsonl", [{"query": "q", "document": "a", "label": 1, "grade": 0}]
    )
    with pytest.raises(InputError, match=r"label and grade.*--label_column"):
        read(path)
    said = read(path, label_column="label")
    assert said.pairs == {("q", "a"): 1}
    assert said.unused == {"column grade of pairs.jsonl": 1}


SCORED = pairs_of(
    query=["q", "r", "q", "r", "q", "s"],
    document=["a", "b", "c", "d", "e", "f"],
    score=[0.2, 0.8, 0.9, 0.3, 0.6, None],
)


def test_a_scored_list_needs_to_be_told_what_is_relevant(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "scored.jsonl", SCORED)
    with pytest.raises(InputError, match=r"3 queries have 6 documents.*--positives"):
        read(path)


@pytest.mark.parametrize(
    ("rule", "documents"),
    [("best", "cb"), ("first", "abf"), ("all", "abcdef"), ("0.6", "bce"), ("2", "")],
)
def test_positives_of_a_scored_list(tmp_path: Path, rule: str, documents: str) -> None:
    said = read(jsonl(tmp_path / "scored.jsonl", SCORED), positives=rule)
    assert {document for _, document in said.pairs} == set(documents)
    if rule == "best":
        assert said.candidates == {
            ("q", "a"): (None, pytest.approx(0.2)), ("q", "c"): (1, pytest.approx(0.9)),
            ("q", "e"): (None, pytest.approx(0.6)), ("r", "b"): (1, pytest.approx(0.8)),
            ("r", "d"): (None, pytest.approx(0.3)),
        }  # fmt: skip
        assert said.counts["candidates of a query without a pair"] == 1


def test_one_document_a_query_with_a_score_is_a_pair(tmp_path: Path) -> None:
    rows = [SCORED[0], SCORED[1], SCORED[0], {"query": None, "document": "x", "score": 0.5},
            {"query": None, "document": "y", "score": 0.5}]  # fmt: skip
    said = read(jsonl(tmp_path / "scored.jsonl", rows))
    assert said.pairs == {("q", "a"): 1, ("r", "b"): 1}


def test_this_projects_own_scores_are_pairs(tmp_path: Path) -> None:
    rows = [
        {"pair_id": f"p{i}", "query": "q", "document": f"text {i}", "teacher_score": i / 4}
        for i in range(3)
    ]
    path = tmp_path / "teacher_soft_labels.json"
    path.write_text(json.dumps(rows))
    said = read(path)
    assert said.pairs == {("q", f"text {i}"): 1 for i in range(3)}
    assert [row["pair_id"] for row in said.columns] == ["p0", "p1", "p2"]
    assert said.candidates["q", "text 2"] == (1, 0.5)


@pytest.mark.parametrize("score", ["high", [1], float("inf")])
def test_a_score_that_is_no_number_is_refused(tmp_path: Path, score: object) -> None:
    rows = [{"query": "q", "document": "a", "score": 0.5}, SCORED[1] | {"score": score}]
    with pytest.raises(InputError, match=r"line 2.*score"):
        read(jsonl(tmp_path / "scored.jsonl", rows))


@pytest.mark.parametrize("options", [{}, {"label_column": "label"}])
def test_positives_beside_labels_have_no_effect_and_are_refused(
    tmp_path: Path, options: dict[str, str]
) -> None:
    path = jsonl(tmp_path / "pairs.jsonl", [{"query": "q", "document": "a", "label": 1}])
    with pytest.raises(InputError, match=r"--positives best.*label"):
        read(path, positives="best", **options)


def test_positives_of_another_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--positives top"):
        read(jsonl(tmp_path / "scored.jsonl", SCORED), positives="top")


@given(
    st.lists(st.tuples(st.integers(0, 3), st.none() | st.floats(-1, 1)), max_size=12),
    st.sampled_from(["best", "first", "all", 0.25]),
)
def test_relevant_equals_its_definition(
    rows: list[tuple[int, float | None]], rule: str | float
) -> None:
    scores = np.array([math.nan if s is None else s for _, s in rows], dtype=float)
    queries = np.array([q for q, _ in rows], dtype=int)
    expected = []
    for row, (query, score) in enumerate(rows):
        of_query = [i for i, (other, _) in enumerate(rows) if other == query]
        scored = [i for i in of_query if rows[i][1] is not None]
        expected.append(
            True if rule == "all"
            else row == of_query[0] if rule == "first"
            else bool(scored) and row == max(scored, key=lambda i: (rows[i][1], -i))
            if rule == "best"
            else score is not None and score >= float(rule)
        )  # fmt: skip
    assert relevant(queries, scores, rule).tolist() == expected


def test_nothing_is_no_group_and_7_is_one_name(tmp_path: Path) -> None:
    groups = [7, 7.0, "7", None, None, "", math.nan, "x"]
    frame = [{"query": f"q{i}", "document": f"d{i}", "topic": g} for i, g in enumerate(groups)]
    said = read(jsonl(tmp_path / "pairs.jsonl", frame), group_column="topic")
    assert [row["group"] for row in said.columns] == [
        "7", "7", "7", "q3", "q4", "q5", "q6", "x",
    ]  # fmt: skip


def test_a_list_is_no_group(tmp_path: Path) -> None:
    rows = [{"query": "q", "document": "d", "topic": ["a"]}]
    with pytest.raises(InputError, match=r"line 1.*'topic'.*list"):
        read(jsonl(tmp_path / "pairs.jsonl", rows), group_column="topic")


@pytest.mark.parametrize("column", ["query", "document"])
def test_a_text_of_another_type_is_refused_with_column_row_and_value(
    tmp_path: Path, column: str
) -> None:
    rows = [{"query": "q", "document": "d"}, {"query": "q", "document": "d", column: 17}]
    with pytest.raises(InputError, match=rf"pairs.jsonl, line 2.*'{column}'.*17"):
        read(jsonl(tmp_path / "pairs.jsonl", rows))


# --- texts


@pytest.mark.parametrize("options", [{}, {"format": "texts"}])
def test_a_table_of_texts_alone_is_recognised(tmp_path: Path, options: dict[str, str]) -> None:
    path = jsonl(tmp_path / "corpus.jsonl", [{"text": text} for text in sentences(3)])
    source = read_path(path, "dataset_path", DataArguments(**options), tmp_path / "cache")
    assert source.texts
    assert [row["text"] for row in source.rows] == sentences(3)


def test_one_column_is_not_query_and_document(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "pairs.jsonl", [{"query": "a b", "document": "c d"}])
    with pytest.raises(InputError, match="query"):
        read(path, query_column="query", document_column="query")


# --- sentence-transformers


TRIPLETS = pairs_of(
    anchor=["q", "q", "r"], positive=["a", "a", "b"], negative=["x", "y", "z"], label=[0.3, 1, 2]
)


def test_a_triplets_negative_is_a_candidate_and_its_pair_counts_once(tmp_path: Path) -> None:
    said = read(jsonl(tmp_path / "triplets.jsonl", TRIPLETS))
    assert said.pairs == {("q", "a"): 1, ("r", "b"): 1}
    assert said.candidates == dict.fromkeys([("q", "x"), ("q", "y"), ("r", "z")], (None, None))
    assert said.counts == {
        "rows found": 6, "kept": 2, "candidates": 3, "the same pair beside another negative": 1,
    }  # fmt: skip
    # MarginMSE's label: it gives neither document a score.
    assert said.unused == {"column label of triplets.jsonl": 3}


def test_triplets_of_other_names_are_named_by_flags(tmp_path: Path) -> None:
    rows = pairs_of(ask=["q"], reply=["a"], neg_1=["x"], neg_2=["y"])
    said = read(jsonl(tmp_path / "tuples.jsonl", rows), query_column="ask", document_column="reply")
    assert said.pairs == {("q", "a"): 1}
    assert set(said.candidates) == {("q", "x"), ("q", "y")}


def test_pos_and_neg_that_are_texts_are_triplets(tmp_path: Path) -> None:
    said = read(jsonl(tmp_path / "t.jsonl", pairs_of(query=["q"], pos=["a"], neg=["x"])))
    assert (said.pairs, set(said.candidates)) == ({("q", "a"): 1}, {("q", "x")})


@pytest.mark.parametrize(
    ("values", "scores"), [([3.0, 1.0, 0.5], (3.0, 1.0, 0.5)), ([2.0, 2.5], (None, None, None))]
)
def test_scores_of_a_tuple_are_one_for_each_text_and_margins_are_not_used(
    tmp_path: Path, values: list[float], scores: tuple[float | None, ...]
) -> None:
    rows = [{"query": "q", "positive": "a", "negative_1": "x", "negative_2": "y", "label": values}]
    said = read(jsonl(tmp_path / "tuples.jsonl", rows))
    given_scores = [said.candidates.get(("q", text), (1, None))[1] for text in "axy"]
    assert given_scores == list(scores)
    assert said.unused == ({} if len(values) == 3 else {"margins in label of tuples.jsonl": 1})


def test_scores_that_fit_no_text_are_refused_with_both_numbers(tmp_path: Path) -> None:
    rows = [{"query": "q", "positive": "a", "negative": "x", "scores": [1.0, 2.0, 3.0]}]
    with pytest.raises(InputError, match=r"line 1.*'scores'.* 3 .* 2 "):
        read(jsonl(tmp_path / "tuples.jsonl", rows))


def test_a_list_with_labels(tmp_path: Path) -> None:
    rows = [
        {"query": "q", "docs": ["a", "b", "c"], "labels": [1, 0, 2], "scores": [0.5, 0.25, 0.75]},
        {"query": "r", "docs": ["d", "e"], "labels": [0, None], "scores": None},
        {"query": "s", "docs": [], "labels": [], "scores": []},
    ]
    said = read(jsonl(tmp_path / "lists.jsonl", rows))
    assert said.pairs == {("q", "a"): 1, ("q", "c"): 2}
    assert said.candidates == {("q", "a"): (1, 0.5), ("q", "b"): (0, 0.25), ("q", "c"): (2, 0.75)}
    assert said.counts == {
        "rows found": 6, "kept": 2, "judged not relevant": 2, "no label": 1, "no document": 1,
    }  # fmt: skip


def test_a_list_with_scores_alone_needs_positives(tmp_path: Path) -> None:
    rows = [{"query": "q", "documents": ["a", "b"], "scores": [0.25, 0.5]}]
    path = jsonl(tmp_path / "lists.jsonl", rows)
    with pytest.raises(InputError, match=r"'documents'.*'scores'.*--positives"):
        read(path)
    assert read(path, positives="best").pairs == {("q", "b"): 1}
    assert read(path, positives="first").candidates == {
        ("q", "a"): (1, 0.25), ("q", "b"): (None, 0.5),
    }  # fmt: skip


def test_a_list_without_labels_and_scores_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "lists.jsonl", [{"query": "q", "documents": ["a", "b"]}])
    with pytest.raises(InputError, match=r"'documents'.*--label_column"):
        read(path)


@pytest.mark.parametrize("given_labels", [[1], [1, 0, 1]])
def test_labels_that_do_not_fit_are_refused_with_both_numbers(
    tmp_path: Path, given_labels: list[int]
) -> None:
    rows = [{"query": "q", "docs": ["a", "b"], "labels": given_labels}]
    with pytest.raises(InputError, match=rf"line 1.* {len(given_labels)} .* 2 "):
        read(jsonl(tmp_path / "lists.jsonl", rows))


MINED = [
    ("triplet", False), ("triplet", True), ("n-tuple", False), ("n-tuple", True),
    ("labeled-pair", False), ("labeled-pair", True), ("labeled-list", False),
    ("labeled-list", True),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("form", "scores"), MINED)
def test_what_mine_hard_negatives_writes(
    tmp_path: Path, teacher_dir: Path, form: Any, scores: bool
) -> None:
    model = SentenceTransformer(str(teacher_dir), device="cpu")
    queries, answers = sentences(12), sentences(12, 100)
    queries[1] = queries[0]  # one query with two positives
    data = datasets.Dataset.from_dict({"question": queries, "answer": answers})
    mined = mine_hard_negatives(
        data, model, num_negatives=3, output_format=form, output_scores=scores, verbose=False
    )
    mined.to_json(tmp_path / "mined.jsonl")
    needs_rule = scores and form.startswith("labeled")
    if needs_rule:
        with pytest.raises(InputError, match="--positives"):
            read(tmp_path / "mined.jsonl")
    # Nothing of a labelled form with scores says what is relevant, but that it comes first.
    said = read(tmp_path / "mined.jsonl", positives="first" if needs_rule else None)
    given_pairs = set(zip(queries, answers, strict=True))
    if (form, scores) == ("labeled-pair", True):
        assert len(set(said.pairs) ^ given_pairs) == 1  # the second positive of one query
    else:
        assert set(said.pairs) == given_pairs
    negatives = {pair for pair in said.candidates if pair not in given_pairs}
    assert len(negatives) == 3 * 11
    assert {said.candidates[pair][0] for pair in negatives} == (
        {0} if form.startswith("labeled") and not scores else {None}
    )
    if scores:
        for (query, text), (_, score) in said.candidates.items():
            vectors = model.encode([query, text], normalize_embeddings=True)
            assert score == pytest.approx(float(vectors[0] @ vectors[1]), abs=1e-4)
    listed = {score is None for _, score in said.candidates.values()}
    assert listed == {not scores}


# --- FlagEmbedding, Tevatron, DPR: by their documented layouts


FLAG = [
    {"query": "q", "pos": ["a", "b"], "neg": ["x"], "pos_scores": [0.5, 0.75],
     "neg_scores": [0.25], "prompt": "Represent this", "type": "normal"},
    {"query": "r", "pos": [], "neg": ["y"], "pos_scores": [], "neg_scores": [0.5]},
    {"query": "s", "pos": ["c"], "neg": None, "pos_scores": None, "neg_scores": None},
]  # fmt: skip


def test_flagembedding(tmp_path: Path) -> None:
    said = read(jsonl(tmp_path / "flag.jsonl", FLAG))
    assert said.pairs == {("q", "a"): 1, ("q", "b"): 1, ("s", "c"): 1}
    assert said.candidates == {
        ("q", "a"): (1, 0.5),
        ("q", "b"): (1, 0.75),
        ("q", "x"): (None, 0.25),
    }
    assert said.counts == {
        "rows found": 6, "kept": 3, "candidates": 1, "no document": 1,
        "candidates of a query without a pair": 1,
    }  # fmt: skip
    assert said.unused == {"column prompt of flag.jsonl": 1, "column type of flag.jsonl": 1}
    assert said.read_as.startswith("FlagEmbedding lists: 0 to 2 positives")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"pos_scores": [0.5]}, r"line 1.*'pos_scores'.* 1 .*'pos' 2 "),
        ({"neg_scores": [0.5, 1]}, r"line 1.*'neg_scores'.* 2 .*'neg' 1 "),
        ({"pos": "a text"}, r"line 1.*'pos'.*a text"),
        ({"pos": ["a", 5]}, r"line 1.*'pos'.*5"),
        ({"pos_scores": [0.5, "high"]}, r"line 1.*'pos_scores'.*high"),
    ],
)
def test_a_damaged_list_is_refused_with_its_row(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        read(jsonl(tmp_path / "flag.jsonl", [{**FLAG[0], **change}, FLAG[2]]))


@pytest.mark.parametrize("key", ["positives", "label_column", "score_column"])
def test_an_option_without_effect_is_refused(tmp_path: Path, key: str) -> None:
    path = jsonl(tmp_path / "flag.jsonl", FLAG)
    with pytest.raises(InputError, match=f"--{key} .*FlagEmbedding"):
        read(path, **{key: "best" if key == "positives" else "prompt"})


def test_tevatron_joins_title_and_text(tmp_path: Path) -> None:
    rows = [
        {
            "query_id": 7, "query": "q",
            "positive_passages": [{"docid": "d1", "title": "Title", "text": "body"}],
            "negative_passages": [
                {"docid": "d2", "title": "", "text": "other", "lang": "en"},
                {"docid": 3, "text": "third", "score": 0.5},
            ],
        },
        {"query_id": "8", "query": "r", "positive_passages": [], "negative_passages": []},
    ]  # fmt: skip
    said = read(jsonl(tmp_path / "tevatron.jsonl", rows))
    assert said.pairs == {("q", "Title body"): 1}
    assert said.candidates == {("q", "other"): (None, None), ("q", "third"): (None, 0.5)}
    assert said.counts == {"rows found": 4, "kept": 1, "candidates": 2, "no document": 1}
    assert said.unused == {"field lang of negative_passages of tevatron.jsonl": 1}
    source = read_path(
        tmp_path / "tevatron.jsonl", "dataset_path", DataArguments(), tmp_path / "cache"
    )
    ids = [(row["query_id"], row.get("document_id")) for row in source.rows]
    assert ids == [("7", "d1"), ("7", "d2"), ("7", "3"), ("8", None)]


def test_dpr_is_read_like_tevatron(tmp_path: Path) -> None:
    rows = [
        {
            "question": "q", "answers": ["x"], "positive_ctxs": [{"title": "T", "text": "a"}],
            "negative_ctxs": [{"title": "", "text": "b"}],
            "hard_negative_ctxs": [{"title": "U", "text": "c", "psg_id": "5"}],
        }
    ]  # fmt: skip
    path = tmp_path / "dpr.json"
    path.write_text(json.dumps(rows))
    said = read(path)
    assert said.pairs == {("q", "T a"): 1}
    assert set(said.candidates) == {("q", "b"), ("q", "U c")}
    assert said.unused == {"column answers of dpr.json": 1}


@pytest.mark.parametrize(
    ("passage", "says"),
    [({"docid": "1", "body": "x"}, "docid, body"), (5, "int"), ({"text": 5}, "5")],
)
def test_a_damaged_passage_is_refused_with_its_row(
    tmp_path: Path, passage: object, says: str
) -> None:
    rows = [{"query_id": "1", "query": "q", "positive_passages": [passage]}]
    with pytest.raises(InputError, match=rf"tevatron.jsonl, line 1.*positive_passages.*{says}"):
        read(jsonl(tmp_path / "tevatron.jsonl", rows))


# --- PyLate: the layout of lightonai/ms-marco-en-bge


def pylate(folder: Path, ids: list[Any], scores: list[Any]) -> Path:
    """A folder with the three tables."""
    folder.mkdir()
    texts = {
        "queries": {"query_id": ["1", "2"], "text": ["q", "r"]},
        "documents": {"document_id": ["10", "11", "12", "13"], "text": ["a", "b", "c", "d"]},
        "train": {"query_id": ["1", "2"], "document_ids": ids, "scores": scores},
    }
    for name, table in texts.items():
        datasets.Dataset.from_dict(table).to_parquet(folder / f"{name}.parquet")
    return folder


@pytest.mark.parametrize(
    ("ids", "scores"),
    [
        ([["10", "11"], ["12", "99"]], [[0.25, 0.5], [0.75, 1.0]]),
        ([[10, 11], [12, 99]], [[0.25, 0.5], [0.75, 1.0]]),
        (["['10', '11']", "['12', '99']"], ["[0.25, 0.5]", "[0.75, 1.0]"]),
    ],
)
def test_pylate_looks_texts_up(tmp_path: Path, ids: list[Any], scores: list[Any]) -> None:
    path = pylate(tmp_path / "kd", ids, scores)
    with pytest.raises(InputError, match=r"PyLate.*--positives"):
        read(path)
    said = read(path, positives="first")
    assert said.pairs == {("q", "a"): 1, ("r", "c"): 1}
    assert said.candidates == {
        ("q", "a"): (1, 0.25), ("q", "b"): (None, 0.5), ("r", "c"): (1, 0.75),
    }  # fmt: skip
    assert said.counts == {"rows found": 4, "kept": 2, "candidates": 1, "unknown document": 1}
    assert said.unused == {}
    source = read_path(path, "dataset_path", DataArguments(positives="first"), tmp_path / "cache")
    assert sorted(source.corpus or ()) == [("a", "10"), ("b", "11"), ("c", "12"), ("d", "13")]


def test_pylate_without_its_texts_says_what_is_missing(tmp_path: Path) -> None:
    path = pylate(tmp_path / "kd", [["10"], ["11"]], [[1.0], [1.0]])
    (path / "documents.parquet").unlink()
    with pytest.raises(InputError, match="document_id and text"):
        read(path, positives="first")


def test_pylate_lists_of_other_lengths_are_refused(tmp_path: Path) -> None:
    path = pylate(tmp_path / "kd", [["10", "11"], ["12"]], [[1.0, 2.0], [1.0, 2.0]])
    with pytest.raises(InputError, match=r"train.parquet, row 1.*'scores'.* 2 .* 1 "):
        read(path, positives="first")


def test_an_id_with_two_texts_is_refused(tmp_path: Path) -> None:
    path = pylate(tmp_path / "kd", [["10"], ["11"]], [[1.0], [1.0]])
    table = {"query_id": ["1", "2", "2"], "text": ["q", "r", "s"]}
    datasets.Dataset.from_dict(table).to_parquet(path / "queries.parquet")
    with pytest.raises(InputError, match=r"queries.parquet, row 2.*'2'"):
        read(path, positives="first")


# --- splits, several tables, several sources


def row(number: int) -> dict[str, str]:
    return {"query": f"q{number}", "document": f"d{number}"}


def test_splits_are_what_their_names_say(tmp_path: Path) -> None:
    for number, name in enumerate(["train", "dev", "test"]):
        jsonl(tmp_path / "data" / f"{name}.jsonl", [row(number)])
    said = read(tmp_path / "data")
    assert {r["group"]: r["split"] for r in said.columns} == {
        "q0": "train", "q1": "validation", "q2": "test",
    }  # fmt: skip
    only = read(tmp_path / "data", dataset_split="dev")
    assert set(only.pairs) == {("q1", "d1")}
    assert only.columns[0]["split"] is None
    assert sum(only.unused.values()) == 2
    with pytest.raises(InputError, match=r"--dataset_split train2.*train"):
        read(tmp_path / "data", dataset_split="train2")


def test_one_split_alone_is_divided(tmp_path: Path) -> None:
    jsonl(tmp_path / "data" / "test.jsonl", [row(0)])
    assert read(tmp_path / "data").columns[0]["split"] is None


def test_a_split_of_another_name_is_not_used_and_counted(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    parts = {"train": [row(0)], "test": [row(1)], "dev2": [row(2), row(3)]}
    datasets.DatasetDict(
        {name: datasets.Dataset.from_list(rows) for name, rows in parts.items()}
    ).save_to_disk(folder)
    said = read(folder)
    assert set(said.pairs) == {("q0", "d0"), ("q1", "d1")}
    assert [n for what, n in said.unused.items() if "dev2" in what] == [2]


def test_of_a_test_set_with_splits_only_the_test_is_read(tmp_path: Path) -> None:
    for number, name in enumerate(["train", "test"]):
        jsonl(tmp_path / "data" / f"{name}.jsonl", [row(number)])
    said = read(tmp_path / "data", "test_path")
    assert set(said.pairs) == {("q1", "d1")}
    assert said.counts == {"rows found": 2, "kept": 1, "of another split": 1}


def test_a_table_of_another_form_is_not_used_and_counted(tmp_path: Path) -> None:
    jsonl(tmp_path / "data" / "pairs.jsonl", [row(0)])
    jsonl(tmp_path / "data" / "statistics.jsonl", [{"mean": 1}, {"mean": 2}])
    (tmp_path / "data" / "notes.md").write_text("notes")
    said = read(tmp_path / "data")
    assert said.pairs == {("q0", "d0"): 1}
    assert said.unused == {"table statistics.jsonl": 2, "file notes.md": 1}


def test_several_data_sets_in_a_folder_are_refused_until_one_is_named(tmp_path: Path) -> None:
    for name in ("faq", "docs"):
        jsonl(tmp_path / "data" / name / "pairs.jsonl", [row(len(name))])
    with pytest.raises(InputError, match=r"docs, faq.*--dataset_config"):
        read(tmp_path / "data")
    assert set(read(tmp_path / "data", dataset_config="faq").pairs) == {("q3", "d3")}
    with pytest.raises(InputError, match=r"--dataset_config nothing.*docs, faq"):
        read(tmp_path / "data", dataset_config="nothing")


def test_several_sources_are_read_each_in_its_own_format(tmp_path: Path) -> None:
    pairs = [{**row(i), "topic": 7, "label": i % 2} for i in range(4)]
    paths = {
        "faq": jsonl(tmp_path / "faq.jsonl", pairs),
        "flag": jsonl(tmp_path / "flag.jsonl", [{**line, "topic": 7} for line in FLAG]),
    }
    sources = [f"{name}={path}" for name, path in paths.items()]
    recipe = recipe_of(sources=sources, group_column="topic", run_dir=tmp_path / "run")
    said = by_texts(read_any(recipe))
    assert said.pairs == {
        ("q1", "d1"): 1, ("q3", "d3"): 1, ("q", "a"): 1, ("q", "b"): 1, ("s", "c"): 1,
    }  # fmt: skip
    assert [r["source"] for r in said.columns] == ["faq", "faq", "flag", "flag", "flag"]
    assert {r["group"] for r in said.columns} == {"faq: 7", "flag: 7"}
    assert said.counts["rows found"] == 10 == sum(said.counts.values()) - 10
    assert said.unused["flag: column prompt of flag.jsonl"] == 1
    assert said.read_as.startswith("faq: pairs")
    assert "; flag: FlagEmbedding" in said.read_as


@pytest.mark.parametrize(("sources", "says"), [(["a=x", "a=y"], "a"), (["x.jsonl"], "NAME=PATH")])
def test_sources_need_a_name_each(tmp_path: Path, sources: list[str], says: str) -> None:
    with pytest.raises(InputError, match=f"--sources .*{says}"):
        read_sources(recipe_of(sources=sources, run_dir=tmp_path))


def test_a_column_that_no_source_has_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "faq.jsonl", [row(0)])
    recipe = recipe_of(sources=[f"faq={path}"], group_column="topic", run_dir=tmp_path)
    with pytest.raises(InputError, match="--group_column topic"):
        read_sources(recipe)


def test_a_run_reads_one_thing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--dataset_path c: --sources a=b"):
        read_any(recipe_of(sources=["a=b"], dataset_path="c", run_dir=tmp_path))


def test_a_folder_of_python_files_is_a_source_tree(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    words = " ".join(sentences(2))
    (tree / "module.py").write_text(f'"""Read a file of words.\n\n{words}\n"""\n')
    source = read_any(recipe_of(dataset_path=tree, run_dir=tmp_path / "run"))
    assert [row["query"] for row in source.rows] == ["Read a file of words."]


def test_the_format_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.py").write_text(
        "from hf_distill.data.sources.pairs import FORMAT\nx = 1\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    path = jsonl(tmp_path / "t.jsonl", [{**line, "label": 1} for line in TRIPLETS])
    assert read(path, format="pairs").candidates == {}
    assert read(path, format="own:FORMAT").candidates == {}
    with pytest.raises(InputError, match="--format own:x"):
        read(path, format="own:x")
    with pytest.raises(InputError, match=r"query and pos\b.*anchor, positive"):
        read(path, format="flagembedding")
    with pytest.raises(InputError, match=r"'flagembeding'.*'flagembedding'"):
        read(path, format="flagembeding")


# --- whatever a source reads: it is all there, and no judged document becomes a positive

TEXT = st.sampled_from(["a", "b", "c", " a ", "", "  ", None])
SCORE = st.none() | st.floats(-1, 1)
LABEL = st.sampled_from([0, 1, 2, -1, None, True, False, 1.0])


@st.composite
def scored_texts(draw: st.DrawFn, values: Any = SCORE) -> tuple[list[Any], list[Any]]:
    texts = draw(st.lists(TEXT, max_size=3))
    return texts, [draw(values) for _ in texts]


@st.composite
def a_row(draw: st.DrawFn, form: str) -> dict[str, Any]:
    query = draw(st.sampled_from(["q", "r", "s", "", None]))
    if form == "pairs":
        return {"query": query, "document": draw(TEXT), "label": draw(LABEL)}
    if form == "scored":
        score = draw(st.floats(-1, 1).filter(lambda s: not s.is_integer()))
        return {"query": query, "document": draw(TEXT), "score": score}
    if form == "triplets":
        return {"anchor": query, "positive": draw(TEXT), "negative": draw(TEXT)}
    if form == "lists":
        documents, labels = draw(scored_texts(LABEL))
        return {"query": query, "docs": documents, "labels": labels}
    if form == "tevatron":
        return {
            "query_id": 1,
            "query": query,
            "positive_passages": [{"text": text} for text in draw(st.lists(TEXT, max_size=3))],
            "negative_passages": [{"text": text} for text in draw(st.lists(TEXT, max_size=3))],
        }
    (pos, pos_scores), (neg, neg_scores) = draw(scored_texts()), draw(scored_texts())
    return {
        "query": query, "pos": pos, "pos_scores": pos_scores, "neg": neg, "neg_scores": neg_scores,
    }  # fmt: skip


def not_relevant(row: dict[str, Any]) -> set[Pair]:
    """What a row judges not to be relevant."""
    documents = row.get("docs", [row.get("document")])
    labels = row.get("labels", [row.get("label")])
    return {
        ((row["query"] or "").strip(), (document or "").strip())
        for document, label in zip(documents, labels, strict=True)
        if label is not None and label <= 0
    }


FORMS = {
    "pairs": "pairs", "scored": "pairs", "triplets": "sentence-transformers",
    "lists": "sentence-transformers", "tevatron": "tevatron", "flag": "flagembedding",
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_everything_found_is_used_or_counted_and_nothing_judged_bad_is_a_pair(
    form: str, data: st.DataObject
) -> None:
    rows = data.draw(st.lists(a_row(form), min_size=1, max_size=8))
    if form == "lists":  # by these the format is recognised
        rows.insert(0, {"query": "t", "docs": ["first"], "labels": [1]})
    with tempfile.TemporaryDirectory() as folder:
        path = jsonl(Path(folder) / "rows.jsonl", rows)
        options = {"positives": "best"} if form == "scored" else {}
        said = read(path, format=FORMS[form], **options)
    counts = dict(said.counts)
    (total,) = (counts.pop(what) for what in list(counts) if what.endswith(" found"))
    assert total == sum(counts.values())
    if form in ("pairs", "lists"):
        bad = set().union(*(not_relevant(row) for row in rows))
        assert not bad & set(said.pairs)
    if form == "pairs":
        assert total == len(rows)
    if form == "flag":
        assert total == sum(max(1, len(row["pos"])) + len(row["neg"]) for row in rows)


# --- what somebody tried on purpose


def test_a_class_is_read_by_its_name_and_not_by_its_number(tmp_path: Path) -> None:
    names = ["relevant", "irrelevant"]
    features = Features(
        {"query": Value("string"), "document": Value("string"), "label": ClassLabel(names=names)}
    )
    rows = {"query": ["a", "b"], "document": ["x", "y"], "label": [0, 1]}
    table = Dataset.from_dict(rows, features=features)
    table.to_parquet(str(tmp_path / "pairs.parquet"))
    table.save_to_disk(str(tmp_path / "saved"))
    for path in (tmp_path / "pairs.parquet", tmp_path / "saved"):
        said = list(read_any(recipe_of(dataset_path=path, run_dir=tmp_path / "run")).rows)
        assert [(row["query"], row["grade"]) for row in said] == [("a", 1), ("b", 0)]


def test_classes_that_say_nothing_of_relevance_are_refused(tmp_path: Path) -> None:
    names = ["entailment", "neutral", "contradiction"]
    features = Features(
        {"query": Value("string"), "document": Value("string"), "label": ClassLabel(names=names)}
    )
    rows = {"query": ["a", "b"], "document": ["x", "y"], "label": [2, 0]}
    Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "nli.parquet"))
    source = read_any(recipe_of(dataset_path=tmp_path / "nli.parquet", run_dir=tmp_path / "run"))
    with pytest.raises(InputError, match=r"nli\.parquet, row 0: .*'label'.*contradiction"):
        list(source.rows)


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    table = Dataset.from_dict({"query": ["a"], "document": ["x"]})
    table.to_parquet(str(tmp_path / "data" / "train-00000-of-00002.parquet"))
    with pytest.raises(InputError, match=r"train has 2 parts, and 1 of them"):
        read_any(recipe_of(dataset_path=tmp_path, run_dir=tmp_path / "run"))


def test_an_underscore_is_no_part_of_a_number(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("query,document,label\na,x,1_0\n")
    with pytest.raises(InputError, match=r"pairs\.csv, line 2: .*'1_0'"):
        list(read_any(recipe_of(dataset_path=path, run_dir=tmp_path / "run")).rows)


def test_an_underscore_is_no_part_of_a_score(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("query,document,score\na,x,0.5\nb,y,1_0\n")
    with pytest.raises(InputError, match=r"pairs\.csv, line 3: .*'1_0'"):
        list(read_any(recipe_of(dataset_path=path, run_dir=tmp_path / "run")).rows)


def test_a_table_beside_train_is_not_trained_on(tmp_path: Path) -> None:
    for i, name in enumerate(("train", "dev", "dev2")):
        jsonl(tmp_path / "d" / f"{name}.jsonl", [row(10 * i), row(10 * i + 1)])
    source = read_any(recipe_of(dataset_path=tmp_path / "d", run_dir=tmp_path / "run"))
    assert [r["split"] for r in source.rows] == ["validation"] * 2 + ["train"] * 2
    assert source.unused == {"table dev2.jsonl": 2}


def test_it_is_said_that_a_test_split_alone_is_divided(tmp_path: Path) -> None:
    jsonl(tmp_path / "d" / "test.jsonl", [row(0), row(1)])
    source = read_any(recipe_of(dataset_path=tmp_path / "d", run_dir=tmp_path / "run"))
    assert source.read_as.endswith("; all of it is the split test, which is divided")
