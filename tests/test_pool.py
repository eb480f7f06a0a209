"""The pool of texts: what passages hold, that they are unique and the same each time, how many
there are, and which stand beside which pair.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import recipe_of, run_tiny, sentences
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from tiny_models import WORDS
from tiny_training import tiny_collection, vectors_of

import hf_distill.training.texts as module
from hf_distill.data.collection import Pairs
from hf_distill.data.further_texts import HELD_OUT, NEAR, check_pool_path, load_further_texts
from hf_distill.data.load import load_collection
from hf_distill.errors import InputError
from hf_distill.recipe.config import DistillationConfig
from hf_distill.run.folder import RunFolder
from hf_distill.training.texts import (
    LARGEST,
    LONGEST,
    MOST_EXCHANGED,
    SHORTEST,
    Drawn,
    PoolPlan,
    load_pool,
    make_pool,
    passage,
    pool_places,
    pool_size,
    student_words,
    texts_of_pairs,
    vocabulary_words,
)

words = st.lists(st.text("abcde", min_size=1, max_size=4), min_size=0, max_size=60)


def pairs_of(queries: list[str], documents: list[str]) -> Pairs:
    numbers = np.arange(len(queries))
    return tiny_collection(queries, documents, np.stack([numbers, numbers], 1)).pairs("train")


@given(words, st.text(max_size=5))
def test_a_passage_is_of_its_text_but_for_words_of_the_vocabulary(
    text: list[str], seed: str
) -> None:
    drawn = passage(" ".join(text), ["NEW"], seed).split()
    assert min(SHORTEST, len(text)) <= len(drawn) <= min(LONGEST, len(text))
    places = range(len(text) - len(drawn) + 1)
    assert any(
        all(new in (old, "NEW") for new, old in zip(drawn, text[start:], strict=False))
        for start in places
    )
    assert drawn == passage(" ".join(text), ["NEW"], seed).split()


def test_half_of_the_passages_stay_and_the_others_lose_up_to_three_fifths_of_their_words() -> None:
    text = " ".join(f"old{i}" for i in range(400))
    shares = [
        np.mean([word == "new" for word in passage(text, ["new"], str(seed)).split()])
        for seed in range(2000)
    ]
    # Short ones may keep theirs by chance.
    assert np.mean([share == 0 for share in shares]) == pytest.approx(0.5, abs=0.08)
    assert np.mean(shares) == pytest.approx(MOST_EXCHANGED / 4, abs=0.02)


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["[CLS]", "the", "##ing", "of", "cat", "1999", "don't"], ["cat", "the"]),
        (["<s>", "▁the", "ing", "▁Katze", "▁", "▁of"], ["Katze", "the"]),
        (["<s>", "Ġthe", "ing", "Ġcat"], ["cat", "the"]),
    ],
)
def test_the_words_of_each_kind_of_vocabulary(pieces: list[str], expected: list[str]) -> None:
    assert vocabulary_words(pieces) == expected


def test_the_words_of_a_student_and_a_vocabulary_without_any(teacher_dir: Path) -> None:
    student = SentenceTransformer(str(teacher_dir), device="cpu")
    assert student_words(student) == sorted({word for word in WORDS if len(word) > 2})
    student[0].processor = object()
    with pytest.raises(InputError, match=r"--texts_per_pair .* no whole words"):
        student_words(student)


def test_a_pool_holds_different_passages_of_queries_and_documents_by_turns() -> None:
    queries, documents = sentences(20), sentences(20, 100)
    pairs = pairs_of(queries, documents)
    pool = list(make_pool(texts_of_pairs(pairs), 300, ["new"], seed=1))
    assert len({text for text, _ in pool}) == len(pool) == 300
    assert [kind for _, kind in pool].count("query") == pytest.approx(150, abs=5)
    of_kind = {"query": queries, "document": documents}
    for text, kind in pool:
        kept = [word for word in text.split() if word != "new"]
        assert any(set(kept) <= set(own.split()) for own in of_kind[kind])
    unchanged = [text for text, kind in pool if "new" not in text.split()]
    assert len(unchanged) == pytest.approx(150, abs=40)
    assert list(make_pool(texts_of_pairs(pairs), 300, ["new"], seed=1)) == pool
    assert list(make_pool(texts_of_pairs(pairs), 300, ["new"], seed=2)) != pool
    assert list(make_pool(texts_of_pairs(pairs), 100, ["new"], seed=1)) == pool[:100]


def test_further_texts_take_turns_with_queries_and_documents() -> None:
    texts = texts_of_pairs(pairs_of(["query a b"] * 3, ["document c d"] * 3))
    further = Drawn(np.arange(2), lambda numbers: ["further e f" for _ in numbers], "document")
    pool = list(make_pool([*texts, further], 30, [f"new{i}" for i in range(99)], seed=1))
    words = {word for text, _ in pool for word in text.split()}
    assert {"query", "document", "further"} <= words
    assert [kind for _, kind in pool].count("query") == pytest.approx(10, abs=4)


def write_texts(path: Path, texts: list[Any]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def test_further_texts_hold_nothing_held_out(tmp_path: Path) -> None:
    pairs = [
        {"query": f"{query}?", "document": text}
        for query, text in zip(sentences(30), sentences(30, 100), strict=True)
    ]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in pairs), encoding="utf-8")
    folder = RunFolder(tmp_path / "run")
    run = {"run_dir": folder.path, "dataset_path": data, "test_fraction": 0.3}
    collection = load_collection(recipe_of("recommended", **run), folder)
    held_out = collection.pairs("test")
    [query] = collection.query_texts(held_out.queries[:1])
    [document] = collection.document_texts(held_out.documents[:1])
    [validated] = collection.document_texts(collection.pairs("validation").documents[:1])
    [trained] = collection.document_texts(collection.pairs("train").documents[:1])
    own = [f"{word} stands alone here" for word in WORDS[:5]]
    path = write_texts(
        tmp_path / "more.jsonl",
        [
            *own,
            own[0].upper(),
            query,
            document + ".",
            f"{document} too",
            trained,
            validated,
            None,
            "\ud800",
        ],
    )
    recipe = recipe_of("recommended", **run, pool_path=path)
    further = load_further_texts(recipe, collection, folder)
    assert further is not None
    assert further.at(np.arange(len(further.texts))) == [*own, trained]
    assert further.record.read == {
        "rows found": 13, "kept": 6, "repeated": 1, HELD_OUT: 3, NEAR: 1, "no text": 1,
        "invalid Unicode": 1,
    }  # fmt: skip
    assert "kept 6" in further.summary()
    nothing = write_texts(tmp_path / "none.jsonl", [query, document])
    with pytest.raises(InputError, match=r"--pool_path .*none.jsonl: no text .*held-out text 2"):
        load_further_texts(recipe_of("recommended", **run, pool_path=nothing), collection, folder)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"pool_path": "nowhere"}, "--pool_path nowhere: there is no such file"),
        (
            {"pool_path": ".", "texts_per_pair": 0},
            r"--pool_path \. has no effect: --texts_per",
        ),
    ],
)
def test_a_pool_path_that_cannot_be_used_is_refused_at_once(keys: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        check_pool_path(recipe_of("recommended", **keys))


def test_a_run_with_further_texts(tiny: Path, tmp_path: Path) -> None:
    path = write_texts(tmp_path / "more.jsonl", sentences(20, 500))
    line = ["--alignment_weight", "1", "--texts_per_pair", "2", "--contrastive_weight", "1"]
    plain = run_tiny(tiny, tmp_path / "run", *line, "--until", "train")
    assert "Pool " not in plain.out
    made = [tmp_path / "run" / name for name in ("training.json", "pool/manifest.json")]
    before = [path.read_text() for path in made]
    said = run_tiny(tiny, tmp_path / "run", *line, "--pool_path", path)
    assert "Pool     holds passages of more, too; read as texts of 'text'" in said.out
    assert all(path.read_text() != old for path, old in zip(made, before, strict=True))
    card = (tmp_path / "run" / "student_model_sd" / "README.md").read_text(encoding="utf-8")
    assert "20 further texts" in " ".join(card.split())


def test_a_pool_is_of_the_selected_texts_alone() -> None:
    pairs = pairs_of(
        [f"query{i} a b c" for i in range(9)], [f"document{i} d e f" for i in range(9)]
    )
    pool = make_pool(texts_of_pairs(pairs.take(np.array([2, 7]))), 20, ["new"], seed=0)
    named = {word for text, _ in pool for word in text.split() if word[-1].isdigit()}
    assert named == {"query2", "query7", "document2", "document7"}


def test_texts_that_are_few_and_short_give_fewer_passages_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        module, "embed_texts", lambda texts, teacher, folder: vectors_of(np.zeros((len(texts), 4)))
    )
    plan = PoolPlan(
        texts_of_pairs(pairs_of(["one", "one"], ["two", " "])), "selected", 50, ["new"], 0
    )
    pool = load_pool(plan, SimpleNamespace(), tmp_path, tmp_path)  # type: ignore[arg-type]
    assert {row["text"] for row in pool.texts} == {"one", "two", "new"}
    assert "--texts_per_pair needs 50 different texts" in caplog.text
    assert "gave only 3;" in caplog.text
    blank = PoolPlan(texts_of_pairs(pairs_of([" "], ["  "])), "selected", 5, ["new"], 0)
    with pytest.raises(InputError, match="--texts_per_pair: the training texts hold no words"):
        load_pool(blank, SimpleNamespace(), tmp_path / "other", tmp_path)  # type: ignore[arg-type]


def test_a_pool_is_made_once_and_embedded_as_its_rows_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded: list[list[dict]] = []

    def embed_texts(texts: Dataset, teacher: object, folder: Path) -> object:
        embedded.append([*texts])
        return vectors_of(np.arange(2 * len(texts)).reshape(-1, 2))

    monkeypatch.setattr(module, "embed_texts", embed_texts)
    plan = PoolPlan(
        texts_of_pairs(pairs_of(sentences(5), sentences(5, 9))), "selected", 12, ["new"], 0
    )
    pool = load_pool(plan, SimpleNamespace(), tmp_path, tmp_path)  # type: ignore[arg-type]
    texts, kinds, vectors = pool.take(np.array([4, 0]))
    assert [{"text": t, "kind": k} for t, k in zip(texts, kinds, strict=True)] == [
        embedded[0][4],
        embedded[0][0],
    ]
    assert vectors.tolist() == [[8, 9], [0, 1]]
    monkeypatch.setattr(module, "make_pool", lambda *_: pytest.fail("made again"))
    assert len(load_pool(plan, SimpleNamespace(), tmp_path, tmp_path)) == 12  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pairs", "each", "settings", "size"),
    [
        (100, 4, {"num_train_epochs": 3}, 1200),
        (100, 4, {"num_train_epochs": 1.5}, 600),
        (100, 4, {"max_steps": 20}, 20 * 16 * 4),
        (100, 4, {"max_steps": 2, "gradient_accumulation_steps": 2}, 2 * 2 * 16 * 4),
        (LARGEST // 8, 4, {"num_train_epochs": 3}, LARGEST),
        (LARGEST, 4, {"num_train_epochs": 3}, 4 * LARGEST),
        (LARGEST, 4, {"num_train_epochs": 0.5}, 2 * LARGEST),
        (100, 0, {"num_train_epochs": 3}, 0),
    ],
)
def test_a_pool_has_new_texts_for_each_epoch_until_there_are_many(
    pairs: int, each: int, settings: dict, size: int
) -> None:
    config = DistillationConfig(
        "unused", per_device_train_batch_size=16, use_cpu=True, texts_per_pair=each, **settings
    )
    assert pool_size(pairs, config) == size


@given(st.integers(1, 30), st.integers(1, 4), st.integers(1, 4), st.data())
def test_every_text_is_drawn_once_before_any_is_drawn_again(
    pairs: int, each: int, epochs: int, data: st.DataObject
) -> None:
    size = data.draw(st.integers(1, pairs * each * epochs))
    drawn = np.concatenate(
        [pool_places(np.arange(pairs), epoch, pairs, each, size).ravel() for epoch in range(epochs)]
    )
    counts = np.bincount(drawn, minlength=size)
    assert len(drawn) == pairs * each * epochs
    assert counts.max() - counts.min() <= 1


def test_the_texts_beside_a_pair_do_not_depend_on_the_batch() -> None:
    whole = pool_places(np.arange(10), 2, 10, 3, 17)
    assert pool_places(np.array([7, 1]), 2, 10, 3, 17).tolist() == whole[[7, 1]].tolist()
