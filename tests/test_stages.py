"""A training of several stages, and the students between the last two."""

from __future__ import annotations

import copy
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import call
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_model
from sentence_transformers import SentenceTransformer
from test_interrupted_training import KilledError, Killer
from tiny_training import QUIET, Tiny, tiny
from transformers import TrainerCallback

from hf_distill.errors import InputError
from hf_distill.finished_run import finished
from hf_distill.pipeline import Run
from hf_distill.recipe.config import DistillationConfig
from hf_distill.recipe.read import read_recipe
from hf_distill.report.plots import plot_points
from hf_distill.teachers.base import SCALES
from hf_distill.training import stages as stages_module
from hf_distill.training.between import PLACES, Measured, Point, between, chosen
from hf_distill.training.rows import Rows, rows_of_stage
from hf_distill.training.stages import TrainingTask
from hf_distill.training.train import train_student
from hf_distill.training.trainer import DistillationTrainer

SECOND = "contrastive_weight=1, alignment_weight=0, learning_rate=5e-3, num_train_epochs=1"


@pytest.fixture(scope="module")
def parts(teacher_dir: Path) -> Tiny:
    return tiny(teacher_dir)


def config(**settings: Any) -> DistillationConfig:
    usual = {
        "per_device_train_batch_size": 8, "num_train_epochs": 2, "logging_steps": 1, "seed": 3,
        "learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 3,
    }  # fmt: skip
    return DistillationConfig("unused", **{**QUIET, **usual, **settings})


def task(parts: Tiny, folder: Path, **keys: Any) -> TrainingTask:
    """Alignment for eight steps, then contrast for four."""
    stages = (
        config(alignment_weight=1.0, contrastive_weight=0.0, hard_negatives_per_pair=0),
        config(contrastive_weight=1.0, num_train_epochs=1, hard_negatives_per_pair=2),
    )
    return TrainingTask(
        student=copy.deepcopy(parts.student), stages=stages, names=(SECOND,),
        rows=Rows(parts.numbers, parts.numbers.select(range(8)), parts.lookup, "selected"),
        components=parts.components, scale=SCALES["cosine"], layers=None,
        checkpoints=(folder / "1", folder / "2"),
        **keys,
    )  # fmt: skip


def weights(task: TrainingTask) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in task.student.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(value.equal(b[name]) for name, value in a.items())


def test_stages_follow_one_another_and_the_record_says_so(parts: Tiny, tmp_path: Path) -> None:
    both = task(parts, tmp_path / "both")
    record = train_student(both, "key")
    assert [(stage.name, stage.steps) for stage in record.stages] == [("", 8), (SECOND, 4)]
    assert (record.steps, record.epochs, record.examples) == (12, 3, 96)
    steps = [row["step"] for row in record.log if "loss" in row]
    assert steps == [*range(1, 13)]
    names = [{"alignment", "contrastive"} & set(row) for row in record.log if "loss" in row]
    assert names == [{"alignment"}] * 8 + [{"contrastive"}] * 4
    assert "8 + 4 steps (3.0 epochs)" in record.summary()

    first = task(parts, tmp_path / "first")
    first = dataclasses.replace(first, stages=first.stages[:1], checkpoints=first.checkpoints[:1])
    train_student(first, "key")
    loaded = copy.deepcopy(parts.student)
    load_model(loaded, both.weights(1))
    assert equal(weights(first), loaded.state_dict()), "the first stage is a training of its own"
    second = task(parts, tmp_path / "second")
    second = dataclasses.replace(
        second, student=first.student, stages=second.stages[1:], checkpoints=second.checkpoints[1:]
    )
    train_student(second, "key")
    assert equal(weights(second), weights(both)), "and so is the second"


@pytest.mark.parametrize(
    ("step", "checkpoint"),
    [(2, None), (8, "checkpoint-6 of stage 1"), (9, None), (12, "checkpoint-3 of stage 2")],
)
def test_killed_in_any_stage_it_ends_as_if_nothing_had_happened(
    parts: Tiny,
    tmp_path: Path,
    step: int,
    checkpoint: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = task(parts, tmp_path / "whole")
    expected = train_student(whole, "key")
    killer = Killer("on_step_end", step)

    class Killed(DistillationTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.add_callback(killer)

    monkeypatch.setattr(stages_module, "DistillationTrainer", Killed)
    with pytest.raises(KilledError):
        train_student(task(parts, tmp_path / "killed"), "key")
    monkeypatch.undo()
    again = task(parts, tmp_path / "killed")
    record = train_student(again, "key")
    assert equal(weights(again), weights(whole))
    assert [row["step"] for row in record.log] == [row["step"] for row in expected.log]
    assert record.resumed_from == checkpoint


def test_a_stage_that_is_done_is_not_trained_again(
    parts: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_student(task(parts, tmp_path), "key")
    steps: list[int] = []

    class Counts(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            steps.append(state.global_step)

    class Counted(DistillationTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.add_callback(Counts())

    monkeypatch.setattr(stages_module, "DistillationTrainer", Counted)
    again = task(parts, tmp_path)
    train_student(again, "key")
    assert steps == [], "the first stage is done, and the second ended with a checkpoint"
    damaged = again.weights(1)
    damaged.write_bytes(damaged.read_bytes()[:-1])
    train_student(again, "key")
    assert steps == [], "the first stage goes on from its own last checkpoint"


@pytest.mark.parametrize("place", [0.0, 0.25, 1.0])
def test_the_student_lies_between_the_stages(parts: Tiny, tmp_path: Path, place: float) -> None:
    plain = task(parts, tmp_path / "plain")
    assert train_student(plain, "key").specialised is None
    before = copy.deepcopy(parts.student)
    load_model(before, plain.weights(1))
    seen: list[float] = []

    def measured(model: Any) -> Measured:
        seen.append(float(sum(p.detach().double().sum() for p in model.parameters())))
        time.sleep(0.1)
        return Measured(np.array([0.25, 0.75]), {"Pearson": 0.9, "MAE": 0.1})

    settled = task(parts, tmp_path / "settled", specialise=str(place), measured=measured)
    record = train_student(settled, "key")
    assert record.specialised == place
    assert [point.place for point in record.points] == [*PLACES]
    assert record.seconds > sum(stage.seconds for stage in record.stages) + 0.4, "measuring, too"
    assert len({*seen}) == len(PLACES), "each place is another student"
    start, end = before.state_dict(), weights(plain)
    for name, value in weights(settled).items():
        expected = start[name] + place * (end[name] - start[name])
        torch.testing.assert_close(value, expected)


def place(*students: tuple[list[float], float, float]) -> float:
    """What is chosen of students with these nDCG@10 of each query, Pearson and MAE."""
    points = [
        Point(place, {"nDCG@10": float(np.mean(ranking)), "Pearson": close, "MAE": error})
        for place, (ranking, close, error) in zip(PLACES, students, strict=False)
    ]
    return chosen(points, np.array([ranking for ranking, *_ in students]))


def test_auto_goes_as_far_as_the_scores_and_the_ranking_allow() -> None:
    start = ([0.5, 0.5], 0.90, 0.04)
    better, best = [0.6, 0.6], [0.7, 0.7]
    assert place(start, (better, 0.90, 0.04), (best, 0.89, 0.045)) == 0.5
    assert place(start, (better, 0.90, 0.04), (best, 0.88, 0.04)) == 0.25, "Pearson"
    assert place(start, (better, 0.90, 0.04), (best, 0.90, 0.05)) == 0.25, "MAE"
    assert place(start, (better, 0.80, 0.02), (best, 0.95, 0.06)) == 0.0
    assert place(start, (best, 0.90, 0.04), (better, 0.90, 0.04)) == 0.25, "ranks worse again"
    assert place(start, ([0.5, 0.5], 0.95, 0.03)) == 0.25, "as good: the further one"


def test_auto_takes_a_difference_below_its_standard_error_for_noise() -> None:
    """Differences of .3 and -.1: mean .1, standard deviation .283, standard error .2. Of .3 and .1:
    mean .2, standard deviation .141, standard error .1.
    """
    start = ([0.1, 0.1], 0.9, 0.04)
    assert place(start, ([0.8, 0.4], 0.9, 0.04), ([0.5, 0.5], 0.9, 0.04)) == 0.5
    assert place(start, ([0.8, 0.6], 0.9, 0.04), ([0.5, 0.5], 0.9, 0.04)) == 0.25
    assert place(([0.5], 0.9, 0.04), ([0.6], 0.9, 0.04), ([0.5], 0.9, 0.04)) == 0.25, "one query"


@given(st.floats(0, 1))
def test_a_point_is_on_the_line(place: float) -> None:
    before = {"w": torch.tensor([0.0, 2.0]), "n": torch.tensor([3])}
    after = {"w": torch.tensor([1.0, -2.0]), "n": torch.tensor([4])}
    point = between(before, after, place)
    assert point["w"].tolist() == pytest.approx([place, 2 - 4 * place], abs=1e-6)
    assert point["n"].tolist() == [4]
    assert between(before, after, 1.0)["w"].equal(after["w"])
    assert between(before, after, 0.0)["w"].equal(before["w"])


def test_rows_have_the_hard_negatives_of_their_stage(parts: Tiny) -> None:
    rows = parts.numbers
    every = np.asarray(rows["negatives"][:])
    one = rows_of_stage(rows, config(hard_negatives_per_pair=1))
    assert np.asarray(one["negatives"][:]).tolist() == every[:, :1].tolist()
    assert one.column_names == rows.column_names
    none = rows_of_stage(rows, config(hard_negatives_per_pair=0))
    assert set(rows.column_names) - set(none.column_names) == {"negatives", "negative_scores"}
    assert none["query"][:].tolist() == rows["query"][:].tolist()
    assert rows_of_stage(none, config(hard_negatives_per_pair=2)) is none


# --- the recipe -----------------------------------------------------------------------------------


def test_a_stage_is_the_recipe_with_other_keys() -> None:
    line = ["recommended", "--dataset_path", "x.jsonl", "--stages"]
    recipe = read_recipe([*line, "contrastive_weight=1 learning_rate=5e-5, max_steps=128"])
    first, second = recipe.stages
    assert (second.contrastive_weight, second.learning_rate, second.max_steps) == (1, 5e-5, 128)
    assert (second.alignment_weight, second.weight_decay) == (540, 0.01), "the others are the same"
    assert (first.contrastive_weight, first.max_steps) == (12, -1)
    one = read_recipe([*line, "none"])
    assert (one.schedule.specialise, one.specialise) == ("auto", None), "nothing is between"
    assert recipe.training_keys(2) != one.training_keys(1)
    assert recipe.training_keys(1) == one.training_keys(1), "what follows does not matter"
    assert recipe.keys()["stages"] == recipe.schedule.stages
    limited = read_recipe([*line, "num_train_epochs=2", "--max_steps", "9"])
    assert (limited.further[0].max_steps, limited.further[0].num_train_epochs) == (-1, 2)
    assert read_recipe([*line, "max_steps=1", "max_steps=2"]).further[1].max_steps == 2
    assert read_recipe([*line, "max_steps=1", "--stages", "none"]).further == ()


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (["--stages", "max_steps"], "--stages 'max_steps': 'max_steps' is not key=value"),
        (["--stages", "max_steps=0"], "--stages 'max_steps=0': --max_steps 0: nothing"),
        (["--stages", "terms=evil:t=1"], "terms is the same in every stage"),
        (["--stages", "student_dim=3"], "student_dim is the same in every stage"),
        (["--stages", "contarstive_weight=3"], "unknown key contarstive_weight.*contrastive"),
        (["--stages", "max_steps=1 max_steps=2"], "max_steps stands there twice"),
        (["--stages", "learning_rate=x"], "--learning_rate x: it must be a number"),
        (["--stages", ""], "is not key=value|empty"),
        (["--stages", "none", "--specialise", "0.5"], "--specialise 0.5: there is one stage"),
        (["--stages", "max_steps=1", "--specialise", "2"], "--specialise 2: it must be auto"),
        (["--stages", "max_steps=1", "--specialise", "nan"], "--specialise nan: it must be auto"),
    ],
)
def test_a_stage_that_cannot_be_read_is_one_message(keys: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        read_recipe(["recommended", "--dataset_path", "x.jsonl", *keys])
    assert "\n" not in str(caught.value).split("See:")[0].strip()


def test_a_run_of_two_stages(tiny: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    line = [tiny, "--run_dir", run, "--stages", SECOND, "--specialise", "auto"]
    said = call(line)
    assert said.code == 0, said.err
    assert "; specialised: " in said.out
    results = finished(run)
    assert len(results.training.points) == len(PLACES)
    assert results.training.specialised in PLACES
    for point in results.training.points:
        assert set(point.measures) == {"nDCG@10", "Pearson", "MAE", "Pearson of passages"}
    pairs = results.collection.pairs("validation")
    student = SentenceTransformer(str(run / "student_model_sd"), device="cpu")
    queries = student.encode_query(results.collection.query_texts(pairs.queries))
    documents = student.encode_document(results.collection.document_texts(pairs.documents))
    given = np.load(run / "soft_labels" / "scores.npy")[pairs.rows]
    error = np.abs((queries * documents).sum(axis=1) - given).mean()
    [chosen_point] = [p for p in results.training.points if p.place == results.training.specialised]
    assert chosen_point.measures["MAE"] == pytest.approx(error, abs=1e-3), "of the pairs alone"
    assert "between the last two stages" in (run / "report.html").read_text(encoding="utf-8")
    card = " ".join((run / "student_model_sd" / "README.md").read_text(encoding="utf-8").split())
    assert f"at {results.training.specialised:g} between" in card
    assert "specialised" in plot_points(results.training).alt
    again = call(line)
    assert (again.code, "; specialised" in again.out) == (0, True)
    record = json.loads((run / "training.json").read_text())
    assert call([*line[:-1], "0"]).code == 0
    other = json.loads((run / "training.json").read_text())
    assert (other["specialised"], other["points"][0]) == (0.0, record["points"][0])
    assert other["key"] != record["key"]
    assert other["stages"] == record["stages"], "another place is no other training"


def test_another_last_stage_trains_no_first_one_again(tiny: Path, tmp_path: Path) -> None:
    def first_stages() -> dict[Path, int]:
        paths = (tmp_path / "run" / "checkpoints").glob("*/after.safetensors")
        return {path: path.stat().st_mtime_ns for path in paths}

    line = [tiny, "--run_dir", tmp_path / "run", "--until", "train", "--stages"]
    assert call([*line, SECOND]).code == 0
    before = first_stages()
    assert len(before) == 1
    assert call([*line, f"{SECOND}, temperature=0.2"]).code == 0
    assert first_stages() == before
    # A larger pool is another one, and the first stage draws other texts from it.
    assert call([*line, f"{SECOND}, alignment_weight=1, texts_per_pair=9".replace(
        "alignment_weight=0, ", "")]).code == 0  # fmt: skip
    assert len(first_stages()) == 2


def test_a_place_between_needs_validation_pairs_only_to_be_chosen(
    tiny: Path, tmp_path: Path
) -> None:
    line = [str(tiny), "--run_dir", str(tmp_path / "run"), "--validation_fraction", "0"]
    line += ["--eval_strategy", "no", "--load_best_model_at_end", "false"]
    line += ["--early_stopping_patience", "none", "--stages", SECOND]
    with pytest.raises(InputError, match=r"--specialise auto: .*validation"):
        Run.open(read_recipe([*line, "--specialise", "auto"]))
    assert Run.open(read_recipe([*line, "--specialise", "0.5"])).recipe.schedule.specialise == "0.5"
