"""Augmented texts: what passages may hold, that they are the same each time, and that the teacher
embeds them once.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import WORDS, sentences
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments

from hf_distill.errors import InputError
from hf_distill.recipe.arguments import TeacherArguments
from hf_distill.run.folder import RunFolder
from hf_distill.scoring.scores import embed_texts
from hf_distill.teachers.bi_encoder import (
    BiEncoderTeacher,
    load_bi_encoder,
)
from hf_distill.training.texts import (
    LONGEST,
    MOST_EXCHANGED,
    SHORTEST,
    kind_of,
    one_by_one,
    passage,
    student_words,
    vocabulary_words,
    with_augmented_texts,
)
from hf_distill.training.train import (
    MOST_AUGMENTED,
    augmented_rounds,
    training_rows,
)

words = st.lists(st.text("abcde", min_size=1, max_size=4), min_size=0, max_size=60)


@pytest.fixture(scope="module")
def teacher(teacher_dir: Path) -> BiEncoderTeacher:
    prompts = TeacherArguments(
        teacher=str(teacher_dir),
        teacher_dtype="float32",
        query_prompt="what ",
        document_prompt="page ",
    )
    return load_bi_encoder(prompts)


@given(words, st.text(max_size=5))
def test_a_passage_is_of_its_text_but_for_words_of_the_vocabulary(
    text: list[str], seed: str
) -> None:
    made = passage(" ".join(text), ["NEW"], seed).split()
    assert min(SHORTEST, len(text)) <= len(made) <= min(LONGEST, len(text))
    places = range(len(text) - len(made) + 1)
    assert any(
        all(new in (old, "NEW") for new, old in zip(made, text[start:], strict=False))
        for start in places
    )
    assert made == passage(" ".join(text), ["NEW"], seed).split()


def test_half_of_the_passages_stay_and_the_others_lose_up_to_three_fifths_of_their_words() -> None:
    text = " ".join(f"old{i}" for i in range(400))
    shares = [
        np.mean([word == "new" for word in passage(text, ["new"], str(seed)).split()])
        for seed in range(2000)
    ]
    assert np.mean([share == 0 for share in shares]) == pytest.approx(
        0.5, abs=0.08
    )  # short ones may keep theirs by chance
    assert np.mean(shares) == pytest.approx(MOST_EXCHANGED / 4, abs=0.02)


@pytest.mark.parametrize(
    ("pieces", "found"),
    [
        (["[CLS]", "the", "##ing", "of", "cat", "1999", "don't"], ["cat", "the"]),
        (["<s>", "▁the", "ing", "▁Katze", "▁", "▁of"], ["Katze", "the"]),
        (["<s>", "Ġthe", "ing", "Ġcat"], ["cat", "the"]),
    ],
)
def test_the_words_of_each_kind_of_vocabulary(pieces: list[str], found: list[str]) -> None:
    assert vocabulary_words(pieces) == found


def test_the_words_of_a_student_and_a_vocabulary_without_any(teacher_dir: Path) -> None:
    student = SentenceTransformer(str(teacher_dir), device="cpu")
    assert student_words(student) == sorted({word for word in WORDS if len(word) > 2})
    student[0].processor = object()
    with pytest.raises(
        InputError, match="has no piece that is a word; set augmented_texts_per_pair: 0"
    ):
        student_words(student)


def test_rows_carry_the_teachers_embeddings_of_what_was_made(
    teacher: BiEncoderTeacher, folder: RunFolder
) -> None:
    pairs = Dataset.from_dict(
        {
            "pair_id": list("abc"),
            "query": sentences(3),
            "document": sentences(3, 9),
            "group": list("xyz"),
            "teacher_score": [0.5, 0.25, 0.0],
        }
        | {"query_id": list("abc"), "document_id": list("abc")}
    )
    made = with_augmented_texts(pairs, 4, ["moon", "tree"], teacher)
    flat = one_by_one(made)
    assert flat["kind"][:] == ["document", "query"] * 6
    table = embed_texts(flat, teacher, folder, TeacherArguments(), "augmented")

    class Own:  # the pairs' own embeddings do not matter here
        rows = np.zeros((1, 32), dtype=np.float16)

        def of(self, ids: list[str]) -> np.ndarray:
            return np.zeros((len(ids), 32), dtype=np.float16)

    rows = training_rows(made, Own(), table)  # type: ignore[arg-type]
    for row in rows:
        prompted = [
            teacher.prompted(str(text), kind_of(i)) for i, text in enumerate(row["augmented"])
        ]
        assert prompted[1].startswith("what ")
        np.testing.assert_allclose(
            row["teacher_augmented_embeddings"], teacher.embed(prompted), atol=2e-3
        )


def test_each_pair_gives_as_many_texts_and_always_the_same_ones(teacher: BiEncoderTeacher) -> None:
    names = [chr(ord("a") + i) for i in range(10)]
    pairs = Dataset.from_dict(
        {"pair_id": names, "query": [f"{n}q" for n in names], "document": [f"{n}d" for n in names]}
    )
    made = with_augmented_texts(pairs, 6, ["new"], teacher)
    again = with_augmented_texts(pairs, 4, ["new"], teacher)
    for i in range(6):
        own = [passage(f"{n}{'dq'[i % 2]}", ["new"], f"{n} {i}") for n in names]
        found = [row[i] for row in made["augmented"]]
        assert any(found == own[start:] + own[:start] for start in range(10)), (
            "those of the pairs so many rows further on"
        )
        assert i >= 4 or found == [row[i] for row in again["augmented"]]
    starts = [made["augmented"][0][i][0] for i in range(6)]
    assert len(set(starts)) > 2, "a row's texts are of several pairs"


def test_what_was_embedded_is_not_embedded_again(
    teacher: BiEncoderTeacher, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = Dataset.from_dict({"text": sentences(6), "kind": ["query", "document"] * 3})
    first = embed_texts(texts, teacher, folder, TeacherArguments(), "augmented")
    monkeypatch.setattr(BiEncoderTeacher, "embed", lambda *_: pytest.fail("embedded again"))
    again = embed_texts(texts.select(range(4)), teacher, folder, TeacherArguments(), "augmented")
    assert (len(first), len(again)) == (6, 4)


@pytest.mark.parametrize(
    ("pairs", "settings", "rounds"),
    [
        (100, {"num_train_epochs": 3}, 3),
        (100, {"num_train_epochs": 1.5}, 2),
        (100, {"max_steps": 20}, 4),
        (100, {"max_steps": 20, "gradient_accumulation_steps": 2}, 7),
        (MOST_AUGMENTED // 8, {"num_train_epochs": 3}, 2),
        (MOST_AUGMENTED, {"num_train_epochs": 3}, 1),
    ],
)
def test_new_texts_for_each_epoch_until_there_are_many(
    pairs: int, settings: dict, rounds: int
) -> None:
    args = SentenceTransformerTrainingArguments(
        output_dir="unused", per_device_train_batch_size=16, use_cpu=True, **settings
    )
    assert augmented_rounds(pairs, 4, args) == rounds
