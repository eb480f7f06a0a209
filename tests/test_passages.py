from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from hf_distill.evaluation.passages import PASSAGES, Passages, held_out_passages
from hf_distill.evaluation.validation import point_measure
from hf_distill.pipeline import Run
from hf_distill.recipe.read import read_recipe
from hf_distill.training.between import ELSEWHERE, Point, acceptable, chosen


@pytest.fixture(scope="module")
def run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("passages")
    return Run.open(read_recipe([str(tiny), "--run_dir", str(folder)]))


def passages_of(run: Run, student: SentenceTransformer, seed: int = 0) -> Passages | None:
    of = (run.collection, run.scores, run.teacher, student, run._shards, seed)
    return held_out_passages(*of)


@pytest.fixture(scope="module")
def student(run: Run) -> SentenceTransformer:
    return run.untrained()


@pytest.fixture(scope="module")
def passages(run: Run, student: SentenceTransformer) -> Passages:
    found = passages_of(run, student)
    assert found is not None
    return found


def test_passages_are_of_validation_documents_and_some_have_other_words(
    run: Run, passages: Passages
) -> None:
    numbers = np.unique(run.collection.pairs("validation").documents)
    texts = run.collection.document_texts(numbers)
    assert 50 < len(passages.texts) == len(set(passages.texts)) <= PASSAGES
    own = sum(any(passage in text for text in texts) for passage in passages.texts)
    assert 0.2 < own / len(passages.texts) < 0.9


def test_each_passage_is_compared_with_near_and_random_ones(
    run: Run, passages: Passages, teacher_dir: Path
) -> None:
    count = len(passages.texts)
    assert np.bincount(passages.left).tolist() == [20] * count
    assert not (passages.left == passages.right).any()
    teacher = SentenceTransformer(str(teacher_dir), device="cpu").encode(passages.texts)
    np.testing.assert_allclose(passages.teacher, teacher, atol=1e-3)
    scores = passages.teacher @ passages.teacher.T  # of embeddings that are kept as float16
    own = scores[passages.left, passages.right]
    np.testing.assert_allclose(passages.scores, own, atol=1e-3)
    np.fill_diagonal(scores, -2)
    nearest = np.sort(scores, axis=1)[:, :-11:-1]
    np.testing.assert_allclose(passages.scores.reshape(count, 20)[:, :10], nearest, atol=1e-3)


def test_closeness_is_the_correlation_with_the_teacher(
    passages: Passages, student: SentenceTransformer, teacher_dir: Path
) -> None:
    teacher = SentenceTransformer(str(teacher_dir), device="cpu")
    assert passages.closeness(teacher) == pytest.approx(1, abs=1e-4)
    own = student.encode(passages.texts)
    cosines = (own[passages.left] * own[passages.right]).sum(axis=1)
    expected = np.corrcoef(cosines, passages.scores)[0, 1]
    assert passages.closeness(student) == pytest.approx(expected, abs=1e-5)
    assert expected < 0.999


def test_a_query_encoder_is_compared_with_the_teachers_passages(
    passages: Passages, teacher_dir: Path
) -> None:
    encoder = SentenceTransformer(str(teacher_dir), device="cpu", prompts={"document": "blue "})
    own = encoder.encode(passages.texts, prompt="blue ")
    cosines = (own[passages.left] * passages.teacher[passages.right]).sum(axis=1)
    expected = np.corrcoef(cosines, passages.scores)[0, 1]
    found = passages.closeness(encoder, in_teachers_space=True)
    assert found == pytest.approx(expected, abs=1e-3)
    assert abs(found - passages.closeness(encoder)) > 0.01


def test_a_student_that_makes_no_difference_has_no_closeness(
    run: Run, passages: Passages, student: SentenceTransformer
) -> None:
    constant = Passages(
        passages.texts, passages.teacher, passages.left, passages.right, 0 * passages.scores
    )
    measured = point_measure(run.collection, run.scores, 0, "own", constant)
    assert measured is not None
    assert ELSEWHERE not in measured(student).scores
    here = {"Pearson": 0.9, "MAE": 0.1}
    assert not acceptable(Point(1.0, here), Point(0.0, {**here, ELSEWHERE: 0.9}))


def test_a_student_that_fails_elsewhere_is_measured_and_not_taken(
    run: Run, passages: Passages, student: SentenceTransformer
) -> None:
    measured = point_measure(run.collection, run.scores, 0, "own", passages)
    without = point_measure(run.collection, run.scores, 0)
    assert measured is not None
    assert without is not None
    assert set(measured(student).scores) == {"Pearson", "MAE", ELSEWHERE}
    assert set(without(student).scores) == {"Pearson", "MAE"}
    broken = copy.deepcopy(student)
    words = broken[0].auto_model.embeddings.word_embeddings.weight
    torch.manual_seed(0)
    words.data = words.data[torch.randperm(len(words))]
    points = [Point(0.0, {**measured(model).scores}) for model in (student, broken)]
    assert points[1].measures[ELSEWHERE] < points[0].measures[ELSEWHERE] - 0.1
    here = {"Pearson": 0.9, "MAE": 0.1}
    values = (0.9, 0.895, 0.885)
    points = [Point(i / 2, {**here, ELSEWHERE: value}) for i, value in enumerate(values)]
    assert chosen(points, np.array([[0.5], [0.6], [0.7]])) == 0.5, "the last one ranks best"


def test_without_words_or_a_teacher_that_embeds_there_are_none(
    run: Run, student: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_distill.evaluation.passages.words_of", lambda _: [])
    assert passages_of(run, student) is None
    monkeypatch.undo()
    monkeypatch.setattr(type(run.teacher), "embeds_new_texts", False)
    assert passages_of(run, student) is None
