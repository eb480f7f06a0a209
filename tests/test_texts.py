"""Texts without pairs, and parallel texts: how they are read and split, what is trained on them,
what is measured without judgements, and what a whole run says.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY, call, recipe_of, run_tiny, sentences
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import TranslationEvaluator
from tiny_training import tiny

from hf_distill.data.collection import Collection
from hf_distill.data.load import load_collection
from hf_distill.data.sources.files import read_texts
from hf_distill.data.sources.texts import passages_of, tokens_of
from hf_distill.data.texts import named_leaks
from hf_distill.errors import InputError
from hf_distill.evaluation.agreement import gained
from hf_distill.evaluation.texts import (
    _translations,
    closeness,
    nearest_others,
    overlap,
    texts_task,
    why_collapsed,
)
from hf_distill.evaluation.texts_results import Spread
from hf_distill.finished_run import finished, results_of
from hf_distill.release.model_card import model_cards
from hf_distill.report.page import write_texts_report
from hf_distill.report.results import TextsResults
from hf_distill.report.texts import texts_table
from hf_distill.run.folder import RunFolder
from hf_distill.training.in_batch import in_batches
from hf_distill.training.terms import alignment

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")

ALIGNED = {
    **TINY, "dataset": "texts", "group_column": None, "selection": [], "contrastive_weight": 0.0,
    "regression_weight": 0.0, "regression_on": "diagonal", "texts_per_pair": 2,
}  # fmt: skip
"""A run on texts alone."""


def jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_of(path: Path, **keys: Any) -> list[tuple[str, str | None]]:
    """What a source of texts says: the teacher's text and the student's."""
    recipe = recipe_of("texts", dataset_path=path, run_dir=path.parent / "run", **keys)
    source = read_texts(recipe)
    assert source.texts
    return [(row["text"], row.get("student_text")) for row in source.rows]


def collection_of(path: Path, **keys: Any) -> Collection:
    run = path.parent / "run"
    recipe = recipe_of("texts", dataset_path=path, run_dir=run, **keys)
    return load_collection(recipe, RunFolder(run))


# --- reading


@pytest.mark.parametrize(
    ("row", "read"),
    [
        ({"text": "a"}, ("a", None)),
        ({"_id": "7", "title": "T", "text": "a"}, ("T a", None)),
        ({"document": "a", "query": "q"}, ("a", None)),
        ({"english": "a", "translation": "b"}, ("a", "b")),
        ({"english": "a", "non_english": "b"}, ("a", "b")),
        ({"de": "b", "en": "a"}, ("a", "b")),
        ({"sentence1": "a", "sentence2": "b"}, ("a", "b")),
    ],
)
def test_usual_columns_are_recognised(
    tmp_path: Path, row: dict[str, str], read: tuple[str, str | None]
) -> None:
    assert rows_of(jsonl(tmp_path / "texts.jsonl", [row])) == [read]


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "texts.jsonl", [{"clean": "a", "noisy": "b", "text": "c"}])
    assert rows_of(path, text_column="clean", student_text_column="noisy") == [("a", "b")]
    assert rows_of(path, student_text_column="noisy") == [("c", "b")]


def test_two_sentences_with_a_score_are_not_two_forms_of_a_text(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "sts.jsonl", [{"sentence1": "a", "sentence2": "b", "score": 1.5}])
    with pytest.raises(InputError, match=r"sts.*--text_column.*sentence1, sentence2, score"):
        rows_of(path)


def test_lines_without_a_header_are_texts_from_the_first_one_on(tmp_path: Path) -> None:
    lines, cells = tmp_path / "lines.txt", tmp_path / "eng-deu.tsv"
    lines.write_text("first text here\nsecond text\n")
    cells.write_text("a cat\teine Katze\na dog\tein Hund\n")
    assert rows_of(lines) == [("first text here", None), ("second text", None)]
    assert rows_of(cells) == [("a cat", "eine Katze"), ("a dog", "ein Hund")]
    lines.write_text("text\nanother\n")
    assert rows_of(lines) == [("text", None), ("another", None)]


def test_names_that_say_nothing_are_not_texts(tmp_path: Path) -> None:
    cells = tmp_path / "pairs.csv"
    cells.write_text("fra,deu\nun chat,eine Katze\n")
    with pytest.raises(InputError, match=r"--text_column.*fra, deu"):
        rows_of(cells)
    assert rows_of(cells, text_column="fra", student_text_column="deu") == [
        ("un chat", "eine Katze")
    ]


def test_of_a_beir_folder_the_corpus_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "beir"
    folder.mkdir()
    jsonl(folder / "corpus.jsonl", [{"_id": "d", "text": "a document"}])
    jsonl(folder / "queries.jsonl", [{"_id": "q", "text": "a query"}])
    assert rows_of(folder) == [("a document", None)]


def test_a_passage_is_as_long_as_it_may_be_and_ends_at_a_paragraph() -> None:
    """A word of three letters is a token; two stand around a text."""
    paragraph = "one two six"
    assert tokens_of(paragraph) == 5
    assert tokens_of("letters 猫犬.") == 2 + 2 + 2 + 1  # two pieces, two characters, a mark
    text = "\n\n".join([paragraph] * 5)
    assert passages_of(text, 8) == [f"{paragraph}\n\n{paragraph}"] * 2 + [paragraph]
    assert passages_of(text, 100) == [text]
    assert passages_of("one two. six one. two six.", 6) == ["one two.", "six one.", "two six."]
    assert passages_of("one two six one two", 5) == ["one two six", "one two"]
    assert passages_of(" \n ", 5) == []
    long = passages_of("x" * 100, 12)
    assert "".join(long) == "x" * 100


def test_nothing_of_a_document_is_lost_and_its_passages_stay_together(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    (folder / "sub").mkdir(parents=True)
    bodies = {f"sub/{i}.md": "\n\n".join(sentences(6, 10 * i)) for i in range(12)}
    for name, body in bodies.items():
        (folder / name).write_text(body)
    (folder / "empty.txt").write_text("")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    made = collection_of(folder, student_max_length=32, validation_fraction=0.1)
    assert re.search("13 documents; 12 of them are cut", made.record.read_as)
    assert made.record.unused == {
        "documents without text in docs": 1, "files of other kinds in docs": 1,
    }  # fmt: skip
    words = " ".join(made.teacher_texts(np.arange(len(made.texts)))).split()
    assert sorted(words) == sorted(" ".join(bodies.values()).split())
    of_split = [set(made.teacher_texts(made.text_numbers(s))) for s in ("train", "test")]
    for body in bodies.values():
        assert sum(any(text in body for text in texts) for texts in of_split) <= 1


def test_rows_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    pairs = [{"en": text, "de": text.upper()} for text in sentences(40)]
    rows = [*pairs, pairs[0], {"en": " ", "de": "x"}, {"en": "y z", "de": None}]
    rows.append({"en": "lone \ud800 half", "de": "x"})
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = collection_of(path)
    assert made.record.read == {
        "rows found": 44, "kept": 40, "no text": 1, "no student's text": 1, "invalid Unicode": 1,
        "repeated": 1,
    }  # fmt: skip


def test_equal_and_nearly_equal_texts_are_never_trained_on_and_tested(tmp_path: Path) -> None:
    plain = [{"en": text, "de": f"de {text}"} for text in sentences(60)]
    same_text = [{"en": row["en"], "de": f"anders {row['de']}"} for row in plain[:30]]
    near = [{"en": f"{row['en']} now", "de": f"x {i}"} for i, row in enumerate(plain)]
    same_student = [{"en": f"other {i}", "de": row["de"]} for i, row in enumerate(plain)]
    path = jsonl(tmp_path / "rows.jsonl", [*plain, *same_text, *near, *same_student])
    made = collection_of(path, test_fraction=0.3)
    test, train = (made.text_numbers(split) for split in ("test", "train"))
    held_out, trained = ({*made.teacher_texts(n)} for n in (test, train))
    assert not held_out & trained
    assert not {*made.student_texts(test)} & {*made.student_texts(train)}
    assert not {f"{text} now" for text in held_out} & trained
    assert set(made.record.leaks_removed) == {"same student's text", "near-duplicate text"}
    assert made.record.leaks_left == 0
    sizes = made.record.texts
    assert sizes is not None
    assert sizes.train + sizes.validation + sizes.test + sizes.leaked == len(made.texts) == 210


def test_texts_of_a_test_set_are_not_trained_on(tmp_path: Path) -> None:
    texts = sentences(50)
    path = jsonl(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    judged = jsonl(tmp_path / "test.jsonl", [{"query": texts[3], "document": texts[4]}])
    made = collection_of(path, test_path=judged, max_pairs=50)
    used = {*made.teacher_texts(np.arange(made.trained("train")))}
    assert not used & {texts[3], texts[4]}
    with pytest.raises(InputError, match=r"--test_path .*texts without queries"):
        collection_of(path, test_path=path)


def test_each_reason_for_a_leak_has_its_name() -> None:
    reasons = np.array([0, 1, 1, 2, 4, -1], dtype=np.int8)
    assert named_leaks(reasons) == {
        "same group": 1, "same student's text": 2, "same text": 1, "near-duplicate text": 1,
    }  # fmt: skip


# --- what is refused


NEEDS_PAIRS = r"--contrastive_weight 6\.0, --regression_weight 60\.0, .*--selection invalid echo"


@pytest.mark.parametrize("dataset", ["auto", "texts"])
def test_what_needs_pairs_is_refused_in_one_message(
    teacher_dir: Path, tmp_path: Path, dataset: str
) -> None:
    path = jsonl(tmp_path / "texts.jsonl", [{"text": text} for text in sentences(40)])
    line = ["--dataset", dataset, "--dataset_path", path, "--student_dim", "16"]
    models = ["--teacher", teacher_dir, "--student_layers", "0,2", "--student_max_length", "32"]
    said = call(["quickstart", "--run_dir", tmp_path / "run", *line, *models])
    assert said.code == 2
    assert said.err.count("error: ") == 1
    assert re.search(NEEDS_PAIRS, said.err)
    assert "recipe texts" in said.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("key", "value"), [("student_space", "teacher"), ("student_query", "utterance")]
)
def test_texts_have_no_queries_to_treat_differently(tmp_path: Path, key: str, value: str) -> None:
    path = jsonl(tmp_path / "texts.jsonl", [{"text": text} for text in sentences(40)])
    with pytest.raises(InputError, match=rf"--{key} {value}: there are no pairs"):
        rows_of(path, **ALIGNED | {key: value})


def test_pairs_and_texts_are_not_mixed(tmp_path: Path) -> None:
    texts = jsonl(tmp_path / "texts.jsonl", [{"text": text} for text in sentences(4)])
    pairs = jsonl(tmp_path / "pairs.jsonl", [{"query": "a b", "document": "c d"}])
    said = call(
        ["recommended", "--run_dir", tmp_path / "run", "--sources", f"a={texts}", f"b={pairs}"]
    )
    assert (said.code, said.err.count("error: ")) == (2, 1)
    assert "--sources: a is texts without queries" in said.err


def test_rows_of_texts_cannot_be_contrasted(teacher_dir: Path, tmp_path: Path) -> None:
    rows = Dataset.from_dict({"text": ["a"], "teacher_text_embedding": [[0.0] * 32]})
    with pytest.raises(InputError, match=r"--contrastive_weight: .*without pairs"):
        tiny(teacher_dir).trainer(tmp_path, rows)


# --- training


def test_both_forms_of_a_text_are_aligned_to_what_the_teacher_read(
    teacher_dir: Path, tmp_path: Path
) -> None:
    parts = tiny(teacher_dir)
    texts, others = sentences(6), sentences(6, 70)
    rows = Dataset.from_dict(
        {
            "text": texts, "student_text": others, "row": list(range(6)),
            "teacher_text_embedding": parts.embed(texts),
        }
    ).with_format("numpy")  # fmt: skip
    trainer = parts.trainer(
        tmp_path, rows, components=parts.components, lookup=parts.lookup, contrastive_weight=0,
        regression_weight=0, alignment_weight=1, texts_per_pair=2,
    )  # fmt: skip
    batch = trainer.data_collator([rows[i] for i in range(6)])
    loss = trainer.compute_loss(trainer.model, batch).item()
    pool = parts.lookup.pool
    assert pool is not None
    drawn, _, vectors = pool.take(np.arange(12))
    read = parts.student.encode([*texts, *others, *drawn])
    targets = np.concatenate([parts.embed(texts), parts.embed(texts), vectors.astype(np.float32)])
    targets = targets @ parts.components.T
    targets /= np.linalg.norm(targets, axis=1, keepdims=True)
    assert loss == pytest.approx(float((1 - (read * targets).sum(axis=1)).mean()), abs=1e-4)


def test_a_batch_of_texts_has_no_pairs(teacher_dir: Path) -> None:
    config = tiny(teacher_dir).trainer(Path("unused")).args
    none = {name: torch.empty(0, dtype=torch.int64) for name in ("query_key", "document_key")}
    batch = {**none, "teacher_score": torch.empty(0), "text_embedding": torch.eye(3)}
    (view,) = in_batches(torch.eye(3), batch, None, "cosine", config)
    assert view.student.shape == view.teacher.shape == (0, 0)
    assert float(alignment(view, config)) == pytest.approx(0)


# --- measuring


def test_no_text_finds_itself() -> None:
    texts = np.eye(5, dtype=np.float32)
    texts[1] = [0.9, np.sqrt(0.19), 0, 0, 0]  # near text 0
    found = nearest_others((texts[:2], texts), 4)
    assert found[0].tolist() == [1, 2, 3, 4]
    assert found[1].tolist()[:1] == [0]
    assert not (found == np.arange(2)[:, None]).any()


def test_overlap_and_gain_by_hand() -> None:
    wanted = np.array([[1, 2, 3, 4]])
    assert overlap(np.array([[4, 1, 8, 9]]), wanted).tolist() == [0.5]
    assert overlap(np.array([[-1, -1, -1, -1]]), wanted).tolist() == [0]
    best, own = np.array([[0.9, 0.5]]), np.array([[0.5, -0.2]])
    discount = 1 / np.log2(3)
    assert gained(own, best)[0] == pytest.approx(0.5 / (0.9 + 0.5 * discount))
    assert gained(best, best)[0] == 1


def test_a_collapsed_student_is_noticed() -> None:
    teacher = Spread(0.1, 0.12)
    assert why_collapsed(teacher, Spread(0.12, 0.1)) is None
    for student, says in (
        (Spread(0.97, 0.0001), "constant"),
        (Spread(0.97, 0.05), "alike"),
        (Spread(0.3, 0.02), "hardly tells"),
    ):
        assert says in str(why_collapsed(teacher, student))
    assert "its teacher gives" in str(why_collapsed(Spread(0.9, 0.0), Spread(0.9, 0.0)))
    # A teacher whose own texts all lie near each other.
    assert why_collapsed(Spread(0.96, 0.02), Spread(0.97, 0.018)) is None


def test_constant_scores_have_no_correlation() -> None:
    teacher = np.array([0.1, 0.5, 0.9])
    close = closeness(teacher, np.full(3, 0.4), bounded=True, seed=0)
    assert close.pearson.value is None
    assert close.mae.value == pytest.approx((0.3 + 0.1 + 0.5) / 3)
    assert closeness(teacher, teacher, bounded=False, seed=0).mae.value is None


def test_translations_are_found_as_sentence_transformers_finds_them(teacher_dir: Path) -> None:
    model = SentenceTransformer(str(teacher_dir), device="cpu")
    texts, others = sentences(40), [f"{text[:20]} cat dog" for text in sentences(40)]
    theirs = TranslationEvaluator(others, texts, write_csv=False)(model)
    ours = _translations((model.encode(others), model.encode(texts)), others, None, 0)
    assert ours.found.value == pytest.approx(theirs["src2trg_accuracy"])
    assert ours.found_back.value == pytest.approx(theirs["trg2src_accuracy"])
    assert 0 < theirs["src2trg_accuracy"] < 1


# --- whole runs


def run(folder: Path, teacher: Path, data: Path, *line: object) -> str:
    path = folder / "recipe.yaml"
    keys = {**ALIGNED, "dataset_path": str(data), "teacher": str(teacher)}
    path.write_text(yaml.safe_dump(keys))
    return run_tiny(path, folder / "run", *line).out


NOT_OF_TEXTS = ("held-out pairs", "held-out quer", "training pairs", "selection rule", "judged rel")
"""What no page of a run on texts may speak of."""


def test_a_run_on_texts(teacher_dir: Path, tmp_path: Path) -> None:
    data = jsonl(tmp_path / "texts.jsonl", [{"text": text} for text in sentences(150)])
    judged = [{"query": q, "document": d} for q, d in zip(sentences(9, 500), sentences(9, 600))]  # noqa: B905
    test = jsonl(tmp_path / "judged.jsonl", judged)
    out = run(tmp_path, teacher_dir, data, "--test_path", test)
    folder = tmp_path / "run"
    results = results_of(folder)
    assert isinstance(results, TextsResults)
    evaluation = results.evaluation
    task = texts_task(results.collection, 42)
    assert evaluation.num_texts == len(task.queries) == 30
    assert set(evaluation.systems) == {"student", "untrained student", "bm25"}
    student = SentenceTransformer(str(folder / "student_model_sd"), device="cpu")
    embedded = student.encode(task.teacher_texts)
    cosines = embedded[:30] @ embedded.T
    np.fill_diagonal(cosines, -1)
    teacher = SentenceTransformer(str(teacher_dir), device="cpu").encode(task.teacher_texts)
    wanted = teacher[:30] @ teacher.T
    np.fill_diagonal(wanted, -1)
    best = [np.argsort(-part, axis=1)[:, :10] for part in (cosines, wanted)]
    assert evaluation.systems["student"].overlap.value == pytest.approx(overlap(*best).mean())
    assert set(evaluation.tasks) == {"judged"}
    assert "of the teacher's ten nearest texts" in out
    assert "judged: 9 queries" in out
    for page in (folder / "report.html", folder / "student_model_sd" / "README.md"):
        text = page.read_text(encoding="utf-8")
        assert not [words for words in NOT_OF_TEXTS if words in text]
        assert "overlap@10" in text
    broken = dataclasses.replace(evaluation, collapsed="its scores are constant")
    assert texts_table(broken).count("The student has collapsed: its scores are constant") == 1
    write_texts_report(dataclasses.replace(results, evaluation=broken))
    assert "No: it has collapsed: its scores" in (folder / "report.html").read_text("utf-8")
    cards = model_cards(dataclasses.replace(results, evaluation=broken))
    assert b"It has collapsed: its scores are constant" in cards["README.md"]
    assert not (folder / "dataset").exists()
    with pytest.raises(InputError, match="on texts alone"):
        finished(folder)
    before = (folder / "training.json").stat().st_mtime_ns
    run(tmp_path, teacher_dir, data, "--test_path", test)
    assert (folder / "training.json").stat().st_mtime_ns == before


def test_a_run_on_parallel_texts_of_two_languages(teacher_dir: Path, tmp_path: Path) -> None:
    sources = []
    for name, shift in (("cat", 0), ("dog", 200)):
        rows = [
            {"english": text, "translation": " ".join([*text.split()[:-1], name])}
            for text in sentences(90, shift)
        ]
        sources.append(f"{name}={jsonl(tmp_path / f'{name}.jsonl', rows)}")
    line = ["--dataset_path", "none", "--sources", *sources, "--one_source_per_batch", "true"]
    out = run(tmp_path, teacher_dir, tmp_path, *line, "--student_vocabulary", "used")
    results = results_of(tmp_path / "run")
    evaluation = results.evaluation
    assert set(evaluation.translations) == {"teacher", "student", "untrained student"}
    assert set(evaluation.by_source) == {"cat", "dog"}
    assert set(results.training.sources) == {"cat", "dog"}
    assert evaluation.translations["teacher"].found.value > 0.5  # one word differs
    cosine = evaluation.translations["student"].cosine
    untrained = evaluation.translations["untrained student"].cosine
    assert cosine.value > untrained.value
    assert "a text's own other form first for" in out
    card = (tmp_path / "run" / "student_model_sd" / "README.md").read_text(encoding="utf-8")
    drawn = results.training.sources
    assert f"Texts drawn: cat {drawn['cat']}, dog {drawn['dog']}. The energy" in card
    assert not re.search(r"^\d+[.)] ", card, re.MULTILINE), "no number begins a list"
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "The two forms of a text, by source" in report
