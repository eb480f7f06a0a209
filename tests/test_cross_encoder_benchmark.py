"""benchmarks/cross_encoder.py on made data: what it trains on, what it keeps, and that it makes a
teacher.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cross_encoder
import cross_encoder_data
import datasets
import numpy as np
import pytest
from conftest import recipe_of, sentences
from cross_encoder import lists_of, rerank, together
from cross_encoder_data import mine, read_sets, relevant, training_documents
from sentence_transformers import CrossEncoder

from hf_distill.data.near_duplicates import text_key
from hf_distill.errors import InputError
from hf_distill.teachers.base import PairTeacher
from hf_distill.teachers.load import load_teacher

COUNT = 60


def write_beir(folder: Path, splits: dict[str, range], offset: int = 0) -> Path:
    """Queries that are the first words of their document; those of a split are `splits[split]`."""
    (folder / "qrels").mkdir(parents=True)
    documents = sentences(COUNT, offset)
    queries = [" ".join(text.split()[:6]) for text in documents]
    for name, texts in (("corpus", documents), ("queries", queries)):
        letter = name[0]
        rows = [{"_id": f"{letter}{i}", "text": text} for i, text in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for split, numbers in splits.items():
        lines = [f"q{i}\tc{i}\t1\n" for i in numbers]
        (folder / "qrels" / f"{split}.tsv").write_text(
            "query-id\tcorpus-id\tscore\n" + "".join(lines)
        )
    return folder


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    """40 training queries and 20 held-out ones. Query 3 has the text of the held-out query 50."""
    folder = write_beir(tmp_path / "own", {"train": range(40), "test": range(40, 60)})
    path = folder / "queries.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[3]["text"] = rows[50]["text"].upper() + "!"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


Main = Callable[..., dict[str, Any]]


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Main:
    """Runs the benchmark in this process. Returns the JSON in the last line."""
    monkeypatch.setattr(datasets.utils.logging, "disable_progress_bar", lambda: None)
    for name in ("be_quiet", "keep_freed_memory"):
        monkeypatch.setattr(cross_encoder, name, lambda *_: None)

    def run(*options: object) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["cross_encoder.py", *map(str, options)])
        cross_encoder.main()
        figures: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return figures

    return run


def unit(rows: int, seed: int) -> np.ndarray:
    """Random unit vectors."""
    vectors = np.random.default_rng(seed).normal(size=(rows, 8)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_held_out_queries_are_not_trained_on(beir: Path, tmp_path: Path) -> None:
    other = write_beir(tmp_path / "other", {"test": range(10)})  # the texts of training queries
    one, further = read_sets([beir], [other], 5, 1)
    assert one.training is not None
    assert further.training is None
    held = {text_key(text) for text in json_texts(beir, range(40, 60))}
    held |= {text_key(text) for text in further.task.queries.values()}
    trained = {text_key(text) for text in one.training.queries.values()}
    assert len(one.task.queries) == 5, "some are measured"
    assert not trained & one.held_out
    assert not trained & held, "also those that are not measured, and those of the others"
    assert set(one.training.qrels) == {f"q{i}" for i in range(10, 40)} | {"q3"} - {"q3"}
    assert "10 of 40 training queries have the text of a held-out query" in " ".join(one.notes)


def json_texts(folder: Path, numbers: range) -> list[str]:
    lines = (folder / "queries.jsonl").read_text().splitlines()
    return [json.loads(lines[i])["text"] for i in numbers]


def test_without_a_training_split_queries_are_held_out(tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "one", {"test": range(COUNT)})
    (one,) = read_sets([folder], [], 300, 1)
    (again,) = read_sets([folder], [], 300, 1)
    (another,) = read_sets([folder], [], 300, 2)
    assert one.training is not None
    assert len(one.task.qrels) == COUNT // 4
    assert set(one.task.qrels) | set(one.training.qrels) == {f"q{i}" for i in range(COUNT)}
    assert not set(one.task.qrels) & set(one.training.qrels)
    assert one.task.queries == again.task.queries != another.task.queries
    assert "no training split, so 15 of 60 queries, drawn with seed 1" in one.notes[0]


def test_negatives_are_not_relevant(beir: Path) -> None:
    (one,) = read_sets([beir], [], 20, 1)
    assert one.training is not None
    queries, documents = unit(len(one.training.qrels), 1), unit(COUNT, 2)
    names = list(one.task.documents)
    documents[names.index("c7")] = documents[names.index("c6")]  # a copy of what answers q6
    found = mine(one, queries, documents, 1, "key")
    assert len(found.lists) == len(one.training.qrels) == 39
    hidden = {f"c{i}" for i in range(40, 60)}
    for row in found.lists:
        assert row.negatives
        assert len(row.negatives) == len(set(row.negatives)) <= cross_encoder_data.NEGATIVES
        assert not set(row.negatives) & relevant(one.training.qrels[row.query])
        assert not set(row.negatives) & hidden, "documents of held-out queries are not seen"
    of = {row.query: row for row in found.lists}
    assert "c7" not in of["q6"].negatives
    assert "c6" not in of["q7"].negatives
    assert found.left_out["candidates nearly the same as a relevant document"] >= 1
    assert found.left_out["candidates that are relevant"] >= 39, "BM25 finds each one"
    assert 0 < found.above < 1, "those that the bi-encoder prefers are among them"
    assert set(training_documents(one)) == {names.index(f"c{i}") for i in range(40)}
    assert mine(one, queries, documents, 1, "key") == found
    assert mine(one, queries, documents, 2, "key") != found


def test_equal_questions_share_what_is_relevant(tmp_path: Path) -> None:
    folder = write_beir(tmp_path / "one", {"train": range(40), "test": range(40, 60)})
    path = folder / "queries.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[1]["text"] = rows[0]["text"] + "?"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (one,) = read_sets([folder], [], 20, 1)
    assert one.training is not None
    found = mine(one, unit(40, 1), unit(COUNT, 2), 1, "key")
    for row in found.lists[:2]:
        assert not {"c0", "c1"} & set(row.negatives)
    assert found.left_out["candidates that are relevant"] > 40, "c1 for q0, and c0 for q1"
    assert "candidates with the text of a relevant document" not in found.left_out


def test_rows(beir: Path) -> None:
    (one,) = read_sets([beir], [], 20, 1)
    assert one.training is not None
    mined = [cross_encoder_data.List("q0", ("c0",), tuple(f"c{i}" for i in range(1, 10)))]
    rows, texts = lists_of(one, mined), one.task.documents
    assert rows["query"] == [one.training.queries["q0"]] * 2
    names = [[f"c{i}" for i in range(8)], ["c0", "c8", "c9"]]
    assert rows["documents"] == [[texts[name] for name in row] for row in names]
    assert rows["labels"] == [[cross_encoder.TARGET] + [0.0] * 7, [cross_encoder.TARGET, 0.0, 0.0]]


def test_together() -> None:
    run = {"a": {"x": 0.9, "y": 0.1}, "b": {"z": 0.5}}
    scores = {"a": {"x": -7.0, "y": 3.0, "w": 9.0}, "b": {"z": 4.0}}
    means = together(run, scores)  # quantiles of three scores: 1/6, 3/6, 5/6
    assert means["a"] == pytest.approx({"x": (5 + 1) / 12, "y": (1 + 3) / 12})
    assert means["b"] == pytest.approx({"z": (3 + 5) / 12})


def test_rerank() -> None:
    run = {"a": {"x": 9.0, "y": 8.0, "z": 7.0}, "b": {}}
    result = rerank(run, {"a": {"x": 0.1, "y": 0.5, "z": 0.5, "w": 1.0}, "b": {}})
    assert list(result["a"]) == ["y", "z", "x"], "equal scores by id, nothing new"
    assert result["a"]["y"] > result["a"]["z"] > result["a"]["x"]
    assert result["b"] == {}


@pytest.mark.filterwarnings("ignore")
def test_it_is_trained_once_and_is_a_teacher(
    beir: Path, tmp_path: Path, teacher_dir: Path, main: Main,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    other = write_beir(tmp_path / "other", {"test": range(10)}, offset=500)
    options = (
        out, "--data", beir, "--others", other, "--body", teacher_dir, "--minutes", 0.002,
        "--queries", 8, "--depth", 20, "--seed", 1,
    )  # fmt: skip
    figures = main(*options)
    assert {"own", "other", "steps", "minutes"} == set(figures)
    assert 0 < figures["own"]["BM25"] <= 1
    written = json.loads((out / "cross_encoder.json").read_text(encoding="utf-8"))
    assert [one["queries"] for one in written["sets"]] == [8, 8]
    assert [one["trained_on"] for one in written["sets"]] == [True, False]
    assert "| own | 39 queries | 8 | 60 |" in (out / "cross_encoder.md").read_text(encoding="utf-8")

    def refuse(*_: Any) -> None:
        raise AssertionError("nothing is trained or scored again")

    monkeypatch.setattr(cross_encoder, "train", refuse)
    monkeypatch.setattr(cross_encoder_data, "mine", refuse)
    monkeypatch.setattr(cross_encoder_data, "encode", refuse)
    monkeypatch.setattr(cross_encoder, "load_teacher", refuse)
    assert main(*options) == figures
    with pytest.raises(AssertionError, match="again"):
        main(*options, "--minutes", 0.003)

    recipe = recipe_of(teacher=out / "model", teacher_kind="cross-encoder")
    teacher = load_teacher(recipe)
    assert isinstance(teacher, PairTeacher)
    pairs = list(zip(sentences(5), sentences(5, 70), strict=True))
    own = CrossEncoder(str(out / "model"), device="cpu").predict(pairs)
    np.testing.assert_allclose(teacher.score(pairs), own, atol=1e-6)
    assert (out / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--data", "/nowhere"], "/nowhere"),
        (["--data", "HERE", "--others", "HERE"], "own is the name of two"),
        (["--data", "HERE", "--minutes", "0"], "--minutes 0.0: it must be above 0"),
        (["--data", "HERE", "--body", "/nowhere"], "--body /nowhere: there is no such folder"),
    ],
)
def test_what_it_cannot_use_is_one_message(
    options: list[str], says: str, beir: Path, tmp_path: Path, teacher_dir: Path, main: Main
) -> None:
    line = [text.replace("HERE", str(beir)) for text in options]
    with pytest.raises(InputError, match=says):
        main(tmp_path / "out", "--body", teacher_dir, *line)
