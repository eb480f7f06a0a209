"""Runs and judgements as files that the command line of `ir_measures` reads, ties, tasks and what
can be wrong with them, and indexes.
"""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import ir_measures
import numpy as np
import pytest

from hf_distill.compute.search import search
from hf_distill.errors import InputError
from hf_distill.evaluation.bm25 import bm25_run
from hf_distill.evaluation.index import hamming_search, index_size
from hf_distill.evaluation.mixed_index import mixed_index
from hf_distill.evaluation.results import Estimate
from hf_distill.evaluation.retrieval import (
    MEASURES,
    depth_of,
    make_run,
    parse_measures,
    per_query,
    without_ties,
    write_qrels,
    write_run,
)
from hf_distill.evaluation.tasks import RetrievalTask, load_task, make_task
from hf_distill.student.head import principal_components

NAMES = ["nDCG@10", "R@1", "R@10", "R@100", "RR@10", "RR", "AP@100", "P@5", "Success@5"]


def tied_task(
    queries: int = 30, documents: int = 200, seed: int = 0
) -> tuple[RetrievalTask, np.ndarray, np.ndarray]:
    """A task of random unit vectors. Most documents have several copies; ids are in random
    order.
    """
    rng = np.random.default_rng(seed)
    ids = [f"d{i}" for i in rng.permutation(documents)]
    judgements = [
        (f"q{i}", ids[j], int(grade))
        for i in range(queries)
        for j, grade in zip(rng.choice(documents, 5, False), (3, 1, 0, 1, 2), strict=True)
    ]
    task = make_task(
        ((f"q{i}", "text") for i in range(queries)),
        ((name, "text") for name in ids),
        judgements,
        "tied",
    )
    vectors = rng.normal(size=(documents // 4, 32)).astype(np.float32)[
        rng.integers(0, documents // 4, documents)
    ]
    wanted = rng.normal(size=(queries, 32)).astype(np.float32)
    vectors, wanted = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (vectors, wanted))
    return task, wanted, vectors


def command_line(qrels: Path, run: Path, *measures: str) -> dict[tuple[str, str], float]:
    """(query, measure) -> value, as `ir_measures` prints it; query `all` is the mean."""
    done = subprocess.run(
        [
            sys.executable, "-m", "ir_measures", "--by_query", "--places", "12",
            str(qrels), str(run), *measures,
        ],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    rows = (line.split("\t") for line in done.stdout.splitlines())
    return {(query, measure): float(value) for query, measure, value in rows}


def test_the_command_line_of_ir_measures_agrees(tmp_path: Path) -> None:
    task, queries, documents = tied_task()
    measures = parse_measures(NAMES)
    run = task.run(search(queries, documents, depth_of(measures)))
    run["q3"] = {}  # a query without an answer counts, too
    values = per_query(run, task.qrels, measures)
    write_run(run, tmp_path / "a.run", "a system")
    write_qrels(task.qrels, tmp_path / "qrels.txt")
    printed = command_line(tmp_path / "qrels.txt", tmp_path / "a.run", *NAMES)
    assert len(printed) == (len(task.qrels) + 1) * len(NAMES)
    for name in NAMES:
        assert printed["all", name] == pytest.approx(values[name].mean(), abs=1e-9)
        for query, value in zip(task.qrels, values[name], strict=True):
            assert printed[query, name] == pytest.approx(value, abs=1e-9), (query, name)


def test_ties_go_by_document_id_for_every_measure() -> None:
    """trec_eval and the MS MARCO script break ties the opposite way; a run has none."""
    run = make_run(["q"], ["a", "b", "c"], np.array([[1.0, 1.0, 1.0]]), np.array([[0, 1, 2]]))
    for rank, name in enumerate("abc", 1):
        values = per_query(run, {"q": {name: 1}}, parse_measures(["RR", "RR@10", "nDCG@10"]))
        assert values["RR"] == values["RR@10"] == pytest.approx(1 / rank)
        assert values["nDCG@10"] == pytest.approx(1 / np.log2(rank + 1))
    with_ties = {"q": {"a": 1.0, "b": 1.0, "c": 1.0}}
    assert per_query(with_ties, {"q": {"a": 1}}, parse_measures(["RR", "RR@10"]))[
        "RR"
    ] == pytest.approx(1 / 3), "that is why"


def test_without_ties_descends_and_hardly_moves() -> None:
    scores = np.array(
        [[0.5, 0.5, 0.5, np.nextafter(np.float32(0.5), np.float32(0)), -1, -1], [0, 0, 0, 0, 0, 0]],
        dtype=np.float32,
    )
    made = without_ties(scores)
    assert (np.diff(made, axis=1) < 0).all()
    np.testing.assert_allclose(made, scores, atol=1e-6)
    assert (without_ties(made) == made).all()


def test_bm25_cuts_ties_by_document_id() -> None:
    documents = {f"d{i}": "the same words" for i in range(9)}
    run = bm25_run({"q": "same words"}, documents, depth=4)
    assert list(run["q"]) == ["d0", "d1", "d2", "d3"]
    assert bm25_run({"q": "the"}, {"d": "the"}) == {"q": {}}, "nothing but stop words"


def test_measures_by_name() -> None:
    assert [str(m) for m in parse_measures(["nDCG@10", "AP(rel=2)@100"])] == [
        "nDCG@10",
        "AP(rel=2)@100",
    ]
    assert depth_of(MEASURES) == 100
    assert depth_of(parse_measures(["R@300"])) == 300
    assert depth_of(parse_measures(["RR"])) == 1000
    for name in ("nDGC@10", "nDCG@", "RR(x=1)", "1 + 1"):
        with pytest.raises(InputError, match=f"ir-measures.*{re.escape(repr(name))}"):
            parse_measures([name])


def test_ids_that_a_trec_file_cannot_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'d 1'.*white space"):
        write_run({"q": {"d 1": 1.0}}, tmp_path / "a.run", "a")
    with pytest.raises(InputError, match="white space"):
        write_qrels({"": {"d": 1}}, tmp_path / "qrels.txt")


# --- tasks ----------------------------------------------------------------------------------------


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny-beir"
    (folder / "qrels").mkdir(parents=True)
    corpus = [
        {"_id": "d2", "title": "Two", "text": "red dog"},
        {"_id": "d1", "title": "", "text": "blue cat"},
        {"_id": "d3", "text": "sun"},
    ]
    queries = [{"_id": "q1", "text": "cat"}, {"_id": "q2", "text": "dog"}]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t2\n")
    return folder


def test_a_beir_folder_keeps_its_ids(beir: Path) -> None:
    task = load_task(str(beir))
    assert (task.name, task.notes) == ("tiny-beir", ())
    assert list(task.documents.items()) == [
        ("d1", "blue cat"),
        ("d2", "Two red dog"),
        ("d3", "sun"),
    ]
    assert task.qrels == {"q1": {"d1": 1}, "q2": {"d2": 2}}
    assert list(task.queries) == list(task.qrels)


def test_what_is_odd_in_a_task_is_said(beir: Path) -> None:
    for file, more in (
        ("queries.jsonl", '{"_id": "q3", "text": "moon"}\n{"_id": "q4", "text": "star"}\n'),
        ("qrels/test.tsv", "q1\td9\t1\nq4\td3\t0\n"),
    ):
        (beir / file).write_text((beir / file).read_text() + more)
    task = load_task(str(beir))
    assert list(task.queries) == ["q1", "q2", "q4"]
    assert task.notes == (
        "1 of 4 judgements name a document that is not in the corpus, e.g. 'd9' for query 'q1': "
        "no system can find it",
        "1 of 3 judged queries have no relevant document in the corpus, e.g. 'q4': every system "
        "gets 0 there",
        "not used: queries without a judgement: 1",
    )


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("corpus.jsonl", "", r"corpus\.jsonl is empty"),
        (
            "corpus.jsonl",
            '{"_id": "d1", "text": "a"}\n{"_id": "d1", "text": "b"}\n',
            "line 2: the document id 'd1' appears a second time",
        ),
        (
            "queries.jsonl",
            '{"_id": "q1", "text": "a"}\n',
            r"1 of 2 judged queries have no text \(e.g. 'q2'\)",
        ),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", "tiny-beir judges nothing"),
        (
            "qrels/test.tsv",
            "h\th\th\nq1\td1\t1\nq1\td1\t2\n",
            "query 'q1' and document 'd1' are judged 1 and 2",
        ),
    ],
)
def test_a_task_that_cannot_be_measured_is_refused(
    beir: Path, file: str, text: str, message: str
) -> None:
    (beir / file).write_text(text)
    with pytest.raises(InputError, match=message):
        load_task(str(beir))


def test_duplicate_ids_of_any_source_are_refused() -> None:
    with pytest.raises(InputError, match=r"t: the document id 'd' appears a second time \(row 2\)"):
        make_task([("q", "")], [("d", ""), ("d", "")], [("q", "d", 1)], "t")


def test_a_text_that_names_no_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--task .*nowhere"):
        load_task(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"--task .*holds no"):
        load_task(str(tmp_path))


# --- what an index costs, and whether the old one can be kept -------------------------------------


def test_hamming_search_by_hand_and_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    queries, documents = rng.normal(size=(7, 16)), rng.normal(size=(50, 16))
    bits = np.packbits(documents > 0, axis=1)
    monkeypatch.setattr("hf_distill.evaluation.index._CELLS", 120)
    scores, indices = hamming_search(queries, bits, 12)
    brute = np.where(queries > 0, 1, -1) @ np.where(documents > 0, 1, -1).T
    expected = np.argsort(-brute, axis=1, kind="stable")[:, :12]
    assert indices.tolist() == expected.tolist()
    assert scores.tolist() == np.take_along_axis(brute, expected, 1).tolist()


def test_an_index_weighs_what_it_should_and_says_what_it_costs() -> None:
    task, queries, documents = tied_task(60, 400)
    result = index_size(task, queries, documents, "cosine", 0)
    assert {name: row.bytes_per_million for name, row in result.rows.items()} == {
        "float32": 128_000_000, "float16": 64_000_000, "int8": 32_000_000, "binary": 4_000_000,
        "binary_documents": 4_000_000, "binary_rescored": 4_000_000, "float32_half": 64_000_000,
        "float32_quarter": 32_000_000,
    }  # fmt: skip
    assert result.dimension == 32
    assert result.rows["binary_rescored"].rescoring_bytes_per_million == 32_000_000
    assert result.rows["binary"].rescoring_bytes_per_million is None
    signs = queries @ np.where(documents > 0, 1, -1).T
    best = np.argsort(-signs, axis=1, kind="stable")[:, :10]
    expected = task.ndcg((np.take_along_axis(signs, best, 1), best)).mean()
    assert result.rows["binary_documents"].ndcg.value == pytest.approx(expected)
    exact = result.rows["float32"]
    assert exact.ndcg.value == task.ndcg(search(queries, documents, 10)).mean()
    assert exact.minus_float32 == Estimate(0, 0, 0, 60)
    for row in result.rows.values():
        expected = pytest.approx(row.ndcg.value - exact.ndcg.value)
        assert row.minus_float32.value == expected
    undefined = index_size(task, queries, documents, "euclidean", 0)
    assert "euclidean" in undefined.undefined
    assert undefined.rows == {}


def test_int8_keeps_the_order_of_products() -> None:
    """Values on 256 levels in each dimension, of very different widths: the quantisation loses
    nothing.
    """
    rng = np.random.default_rng(0)
    widths = np.array([1.0, 10.0, 0.01, 3.0], dtype=np.float32)
    documents = (rng.integers(0, 256, size=(500, 4)) / 255 * widths).astype(np.float32)
    documents[0], documents[1] = 0, widths
    documents += widths * np.float32(1e-4)  # off the edges of the bins, where rounding decides
    queries = rng.normal(size=(40, 4)).astype(np.float32)
    task = make_task(
        ((f"q{i:03}", "") for i in range(40)),
        ((f"d{i:03}", "") for i in range(500)),
        ((f"q{i:03}", f"d{i:03}", 1) for i in range(40)),
        "t",
    )
    relevant = search(queries, documents, 1)[1][:, 0]
    task = dataclasses.replace(
        task, qrels={f"q{i:03}": {f"d{j:03}": 1} for i, j in enumerate(relevant)}
    )
    result = index_size(task, queries, documents, "dot", 0)
    assert result.rows["float32"].ndcg.value == 1
    assert result.rows["int8"].ndcg.value > 0.97


def test_a_student_that_is_its_teachers_projection_can_search_the_teachers_index() -> None:
    task, queries, documents = tied_task()
    nearest = search(queries, documents, 1)[1][:, 0]
    names = list(task.documents)
    task = dataclasses.replace(
        task, qrels={query: {names[j]: 1} for query, j in zip(task.queries, nearest, strict=True)}
    )
    components = principal_components(documents, 8)
    projected = tuple(x @ components.T for x in (queries, documents))
    student = tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in projected)
    result = mixed_index(task, student, (queries, documents), components, "cosine", 0)
    assert (result.undefined, result.dimension) == (None, 8)
    own = task.ndcg(search(*student, 10)).mean()
    for row in (
        result.student_queries_teacher_index,
        result.teacher_queries_student_index,
        result.teacher_queries_teacher_index,
    ):
        assert row.value == pytest.approx(own)
    assert result.minus_student.value == pytest.approx(0)
    teacher = task.ndcg(search(queries, documents, 10)).mean()
    assert result.minus_teacher.value == pytest.approx(own - teacher)
    stranger = tuple(np.roll(x, 3, axis=1) for x in student)
    other = mixed_index(task, stranger, (queries, documents), components, "cosine", 0)
    assert other.minus_student.value < 0


@pytest.mark.parametrize(
    ("components", "similarity", "reason"),
    [
        (None, "cross-encoder", "embeds no texts"),
        (np.eye(32), "euclidean", "ranks by euclidean"),
        (np.eye(32)[:8], "cosine", "32 dimensions, the teacher's embeddings have 8"),
    ],
)
def test_a_mixed_index_that_is_not_possible_says_why(
    components: np.ndarray | None, similarity: str, reason: str
) -> None:
    task, *vectors = tied_task()
    teacher = None if components is None else tuple(vectors)
    result = mixed_index(task, tuple(vectors), teacher, components, similarity, 0)
    assert reason in result.undefined
    assert result.student_queries_teacher_index is None


def test_every_measure_of_the_report_is_known() -> None:
    assert all(isinstance(measure, ir_measures.Measure) for measure in MEASURES)
