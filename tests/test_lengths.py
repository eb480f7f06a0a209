"""How many texts teacher and student cut. In the tiny models every word is a token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import recipe_of
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from tokenizers import Tokenizer

from hf_distill.pipeline import Run
from hf_distill.run.stage import read_json
from hf_distill.student import lengths
from hf_distill.student.lengths import Lengths, ModelLengths, TextLengths

WORDS = ("red", "green", "blue", "cat", "dog")
DOCUMENT_WORDS = [10 + i % 31 for i in range(60)]
"""10 to 40 words, without the two special tokens."""


def texts(counts: list[int], name: str) -> list[str]:
    """A text of so many words for each of `counts`; no two are alike."""
    return [" ".join([*(WORDS * 9)[: n - 2], name, f"{i}"]) for i, n in enumerate(counts)]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 queries of five words, and a document for each."""
    path = tmp_path_factory.mktemp("lengths") / "pairs.jsonl"
    queries, documents = texts([5] * 60, "what"), texts(DOCUMENT_WORDS, "page")
    rows = zip(queries, documents, strict=True)
    path.write_text("".join(json.dumps({"query": q, "document": d}) + "\n" for q, d in rows))
    return path


def lengths_of(pairs: Path, run_dir: Path, teacher: object, **keys: Any) -> TextLengths:
    """The result for a student of at most 20 tokens, unless told otherwise."""
    defaults = {"eval_strategy": "no",
        "teacher": teacher, "dataset": "files", "dataset_path": pairs, "run_dir": run_dir,
        "student_layers": "0,2", "student_dim": 16, "student_max_length": 20,
        "per_device_train_batch_size": 4, "selection": None, "stages": None,
    }  # fmt: skip
    return Run.open(recipe_of(**{**defaults, **keys})).lengths


def expected(extra: int, limit: int) -> dict[str, Any]:
    """Figures of the documents, computed here: `extra` tokens beside the words."""
    tokens = np.array(DOCUMENT_WORDS) + extra
    beyond = np.maximum(tokens - limit, 0)
    return {
        "texts": 60, "counted": 60, "mean": round(tokens.mean(), 1), "longest": tokens.max(),
        "median": sorted(tokens)[29], "p95": sorted(tokens)[56], "limit": limit,
        "cut": (beyond > 0).sum(), "lost": pytest.approx(beyond.sum() / tokens.sum()),
    }  # fmt: skip


def test_what_teacher_and_student_cut_is_counted(
    pairs: Path, tmp_path: Path, teacher_dir: Path
) -> None:
    result = lengths_of(pairs, tmp_path / "run", teacher_dir)
    (teacher,) = result.teachers
    assert vars(teacher.of["documents"]) == expected(2, 32)
    assert vars(result.student.of["documents"]) == expected(2, 20)
    queries = result.student.of["queries"]
    assert (queries.mean, queries.longest, queries.limit, queries.cut) == (7, 7, 20, 0)
    assert result.unknown == ()
    assert read_json(tmp_path / "run" / "text_lengths.json", TextLengths) == result


def test_prompts_are_part_of_a_text(pairs: Path, tmp_path: Path, teacher_dir: Path) -> None:
    keys = {"document_prompt": "the page ", "query_prompt": "what "}
    result = lengths_of(pairs, tmp_path / "run", teacher_dir, **keys)
    for model, limit in ((result.teachers[0], 32), (result.student, 20)):
        assert vars(model.of["documents"]) == expected(4, limit)
        assert model.of["queries"].longest == 8


def test_the_teachers_own_limit_counts(pairs: Path, tmp_path: Path, teacher_dir: Path) -> None:
    result = lengths_of(pairs, tmp_path / "run", teacher_dir, teacher_max_length=13)
    assert vars(result.teachers[0].of["documents"]) == expected(2, 13)


def test_a_cross_encoder_reads_pairs(
    pairs: Path, tmp_path: Path, cross_encoder_dir: Path, backbone_dir: Path
) -> None:
    keys = {"student_backbone": backbone_dir, "student_init": "random", "alignment_weight": 0}
    result = lengths_of(
        pairs, tmp_path / "run", cross_encoder_dir, teacher_kind="cross-encoder",
        teacher_max_length=30, texts_per_pair=0, **keys,
    )  # fmt: skip
    (teacher,) = result.teachers
    assert list(teacher.of) == ["pairs"]
    assert vars(teacher.of["pairs"]) == expected(5, 30)  # the tiny tokenizer marks no pairs


def test_a_static_student_has_its_limit_and_no_special_tokens(
    pairs: Path, tmp_path: Path, teacher_dir: Path
) -> None:
    result = lengths_of(
        pairs, tmp_path / "run", teacher_dir, student_backbone="static", student_layers=None,
        student_dropout=None,
    )  # fmt: skip
    assert vars(result.student.of["documents"]) == expected(0, 20)


def test_a_table_of_token_vectors_without_a_limit_cuts_nothing(
    pairs: Path, tmp_path: Path, teacher_dir: Path, backbone_dir: Path
) -> None:
    tokenizer = Tokenizer.from_file(str(backbone_dir / "tokenizer.json"))
    tokenizer.no_truncation()
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=32), Normalize()])
    model.save_pretrained(str(tmp_path / "static"), create_model_card=False)
    keys = {"student_backbone": backbone_dir, "student_init": "random"}
    result = lengths_of(pairs, tmp_path / "run", tmp_path / "static", **keys)
    documents = result.teachers[0].of["documents"]
    assert (documents.limit, documents.cut, documents.longest) == (None, 0, 40)


def test_a_route_has_its_own_limit(pairs: Path, tmp_path: Path, backbone_dir: Path) -> None:
    query, document = (Transformer(str(backbone_dir)) for _ in range(2))
    query.max_seq_length, document.max_seq_length = 6, 15
    modules = [
        Router.for_query_document(
            [query, Pooling(32, pooling_mode="mean")], [document, Pooling(32, pooling_mode="mean")]
        ),
        Normalize(),
    ]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(
        str(tmp_path / "router"), create_model_card=False
    )
    keys = {"student_backbone": backbone_dir, "student_init": "random"}
    result = lengths_of(pairs, tmp_path / "run", tmp_path / "router", **keys)
    (teacher,) = result.teachers
    assert (teacher.of["queries"].limit, teacher.of["queries"].cut) == (6, 60)
    assert vars(teacher.of["documents"]) == expected(2, 15)


def test_what_a_file_of_scores_was_made_from_is_not_known(
    pairs: Path, tmp_path: Path, backbone_dir: Path
) -> None:
    scores = tmp_path / "scores.jsonl"
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    scores.write_text("".join(json.dumps({**row, "teacher_score": 0.5}) + "\n" for row in rows))
    keys = {"student_backbone": backbone_dir, "student_init": "random", "alignment_weight": 0}
    result = lengths_of(
        pairs, tmp_path / "run", scores, teacher_kind="precomputed", texts_per_pair=0, **keys
    )
    assert result.teachers == ()
    assert result.unknown == (str(scores),)
    assert str(scores) in result.summary()


def test_every_member_of_an_ensemble_is_measured(
    pairs: Path, tmp_path: Path, teacher_dir: Path, cross_encoder_dir: Path, backbone_dir: Path
) -> None:
    members = [f"bi-encoder:{teacher_dir}=1", f"cross-encoder:{cross_encoder_dir}=1"]
    keys = {"student_backbone": backbone_dir, "student_init": "random", "alignment_weight": 0}
    result = lengths_of(
        pairs, tmp_path / "run", "none", teacher_kind="ensemble", ensemble=members,
        texts_per_pair=0, **keys,
    )  # fmt: skip
    assert [list(teacher.of) for teacher in result.teachers] == [
        ["queries", "documents"], ["pairs"],
    ]  # fmt: skip


def test_of_many_texts_some_are_drawn_and_it_is_said(
    pairs: Path, tmp_path: Path, teacher_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lengths, "SAMPLE", 25)
    monkeypatch.setattr(lengths, "_READ", 10)
    result = lengths_of(pairs, tmp_path / "run", teacher_dir)
    documents = result.student.of["documents"]
    assert (documents.texts, documents.counted) == (60, 25)
    assert f"{documents.cut} of 25 documents (drawn from 60)" in result.summary()


def model(role: Any, limit: int | None, tokens: list[int]) -> ModelLengths:
    queries = Lengths.of(np.array([3]), limit, 1)
    documents = Lengths.of(np.array(tokens), limit, len(tokens))
    return ModelLengths(role, "m", {"queries": queries, "documents": documents})


def test_the_summary_says_what_was_cut_by_whom() -> None:
    # Of 10 + 20 + 30 tokens the student loses 8 + 18, the teacher 5.
    result = TextLengths(
        "key", (model("teacher", 25, [10, 20, 30]), model("student", 12, [10, 20, 30])), ()
    )
    teacher, student, flag = result.summary().splitlines()
    assert "teacher reads 25 tokens: 1 of 3 documents" in teacher
    assert "(33.3%), up to 30; 8.3%" in teacher
    assert "student reads 12 tokens: 2 of 3 documents" in student
    assert "43.3%" in student
    assert "--student_max_length 25 " in flag


def test_no_flag_is_named_if_the_teacher_cuts_as_much() -> None:
    same = [model(role, 12, [10, 20, 30]) for role in ("teacher", "student")]
    assert "--student_max_length" not in TextLengths("key", tuple(same), ()).summary()


def test_the_summary_says_that_nothing_was_cut() -> None:
    result = TextLengths("key", (model("teacher", None, [9]), model("student", 9, [9])), ())
    assert len(result.summary().splitlines()) == 1
    assert "no text" in result.summary()
    assert "student reads 9 tokens" in result.summary()


def test_a_run_says_it_before_the_scores(finished_run: tuple[Path, str]) -> None:
    folder, said = finished_run
    assert said.index("Pairs ") < said.index("Cut ") < said.index("Scores ")
    assert (folder / "text_lengths.json").is_file()
