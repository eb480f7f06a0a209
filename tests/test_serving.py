"""What is searched: the documents of a collection or of the installed packages, embedded once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import sentences
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from hf_distill.compute.encode import Advance
from hf_distill.data.collection import Collection, CollectionRecord, Source, SourcePairs, text_id
from hf_distill.errors import InputError, printable
from hf_distill.run.stage import read_json
from hf_distill.serving import index as module
from hf_distill.serving import kept
from hf_distill.serving.index import (
    Corpus,
    IndexRecord,
    corpus_of_python,
    corpus_of_run,
    embedded,
    index_of,
    load_student,
    student_of,
)
from hf_distill.serving.kept import nearest

TEXTS = sentences(30)


@pytest.fixture
def corpus() -> Corpus:
    return Corpus([f"document {i}" for i in range(30)], TEXTS, "a corpus")


@pytest.fixture(scope="module")
def model(teacher_dir: Path) -> SentenceTransformer:
    model = SentenceTransformer(str(teacher_dir), device="cpu").eval()
    model.prompts = {"query": "who ", "document": "book "}
    return model


def fails(*_: object) -> np.ndarray:
    pytest.fail("the embeddings are kept")


def test_every_document_of_a_run_is_searched_once_under_its_first_pair() -> None:
    record = CollectionRecord(
        key="a collection",
        source=Source("tests"),
        read={},
        split={"train": 3, "validation": 0, "test": 1, "leaked": 0},
        leaks_removed={},
        leaks_left=0,
    )
    collection = Collection(
        queries=Dataset.from_dict({"text": ["a", "b", "c"]}),
        documents=Dataset.from_dict({"text": ["one", "two", "three", "nobody's"]}),
        judgements=Dataset.from_dict(
            {"query": [0, 1, 1, 2], "document": [1, 0, 1, 2], "pair_id": ["p", "q", "r", "s"]}
        ),
        record=record,
    )
    corpus = corpus_of_run(collection)
    assert corpus.texts == ["one", "two", "three", "nobody's"]
    assert corpus.ids == ["q", "p", "s", text_id("nobody's")]
    assert corpus.key == "a collection"


def test_an_index_answers_as_the_model_does(
    model: SentenceTransformer, corpus: Corpus, tmp_path: Path
) -> None:
    index = index_of(model, corpus, tmp_path / "student")
    cosines = model.encode(["book " + text for text in TEXTS]) @ model.encode("who a cat")
    hits = index.ask("a cat", 3)
    assert [hit.text for hit in hits] == [TEXTS[i] for i in np.argsort(-cosines)[:3]]
    assert [hit.id for hit in hits] == [f"document {i}" for i in np.argsort(-cosines)[:3]]
    kept_as_float16 = [hit.score for hit in hits]
    np.testing.assert_allclose(kept_as_float16, np.sort(cosines)[::-1][:3], atol=1e-3)
    assert len(index.ask("a cat", 100)) == 30


def test_an_index_is_kept_until_model_or_corpus_change(
    model: SentenceTransformer,
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "student"
    first = index_of(model, corpus, path)
    record = read_json(path.with_suffix(".json"), IndexRecord)
    assert (record.documents, record.dimension) == (30, 32)
    with monkeypatch.context() as patched:
        patched.setattr(module, "encode", fails)
        np.testing.assert_array_equal(index_of(model, corpus, path).embeddings, first.embeddings)
    for changed in ("prompt", "length", "corpus"):
        other, texts = model, corpus
        if changed == "corpus":
            texts = Corpus(corpus.ids[:9], TEXTS[:9], "another corpus")
        else:
            other = SentenceTransformer(modules=list(model), device="cpu")
            other.prompts = {"query": "who ", "document": "book of " * (changed == "prompt")}
            other.max_seq_length = 5 if changed == "length" else 32
        index = index_of(other, texts, path)
        assert index.embeddings.shape != first.embeddings.shape or not np.array_equal(
            index.embeddings, first.embeddings
        ), changed
    assert len(list(tmp_path.iterdir())) == 2, "one index a path, whatever it is of"


def test_an_interrupted_embedding_is_made_again(corpus: Corpus, tmp_path: Path) -> None:
    vectors = np.eye(30, 4, dtype=np.float32)

    def embed(texts: list[str], advance: Advance) -> np.ndarray:
        advance(len(texts), 0)
        return vectors

    np.testing.assert_array_equal(embedded(corpus, ["x"], embed, tmp_path / "a"), vectors)
    embedded(corpus, ["x"], fails, tmp_path / "a")
    (tmp_path / "a.npy").unlink()
    np.testing.assert_array_equal(embedded(corpus, ["x"], embed, tmp_path / "a"), vectors)
    with pytest.raises(InputError, match="no document"):
        embedded(Corpus([], [], "empty"), ["x"], embed, tmp_path / "b")


def test_the_nearest_rows_are_those_with_the_largest_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kept, "_BLOCK", 4)
    rows = np.array([[1, 0], [0, 1], [0.5, 0], [1, 0], [0, -1], [0.75, 0]], dtype=np.float16)
    scores, places = nearest(np.array([1, 0.25], dtype=np.float32), rows, 4)
    assert (places.tolist(), scores.tolist()) == ([0, 3, 5, 2], [1, 1, 0.75, 0.5])
    assert len(nearest(np.ones(2, dtype=np.float32), rows, 99)[1]) == 6


@pytest.fixture
def harvests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How often the documentation was read. It holds one text twice."""
    calls: list[str] = []

    def harvest(*_: object) -> SourcePairs:
        calls.append("read")
        rows = [("a.f", "Return it."), ("b.g", "Read it."), ("c.h", "Return it.")]
        return SourcePairs(
            Source("pydocs"), [{"pair_id": name, "document": text} for name, text in rows]
        )

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "harvest", harvest)
    return calls


def test_the_python_documentation_is_read_once_until_packages_change(
    harvests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = corpus_of_python()
    assert (first.ids, first.texts) == (["a.f", "b.g"], ["Return it.", "Read it."])
    assert corpus_of_python() == first
    assert len(harvests) == 1
    monkeypatch.setattr(module, "python_identity", lambda: ["another Python"])
    assert corpus_of_python().key != first.key
    assert len(harvests) == 2


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["recipe.yaml"], "no student yet.* --until release"),
        ([], r"^(?!--).*nowhere"),
    ],
)
def test_a_run_or_model_that_is_not_there_is_refused_without_naming_a_flag(
    tmp_path: Path, files: list[str], says: str
) -> None:
    place = tmp_path / "nowhere"
    for name in files:
        place.mkdir(exist_ok=True)
        (place / name).touch()
    with pytest.raises(InputError, match=says) as caught:
        load_student(str(place))
    assert "--model" not in str(caught.value)


def test_a_run_stands_for_its_student(tmp_path: Path) -> None:
    assert student_of("you/student") == "you/student"
    (tmp_path / "student_model_sd").mkdir()
    assert student_of(str(tmp_path)) == str(tmp_path / "student_model_sd")


def test_control_characters_do_not_reach_a_terminal() -> None:
    assert (
        printable("a \x1b[31mred\x07\u202e\nline é 漢") == "a \\x1b[31mred\\x07\\u202e\nline é 漢"
    )
