"""The training stage: its rows, what is refused before it begins, and what it leaves behind."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tiny_training import QUIET, Tiny, tiny, vectors_of

import hf_distill.training.texts as pool_module
from hf_distill.errors import InputError
from hf_distill.recipe.config import DistillationConfig
from hf_distill.run.folder import RunFolder
from hf_distill.run.stage import read_json, write_json
from hf_distill.selection.rules import parse_rules
from hf_distill.teachers.base import SCALES, EmbeddingTeacher, PairTeacher, Scale
from hf_distill.training.rows import (
    EveryText,
    Lookup,
    Negatives,
    Rows,
    hard_negatives,
    number_rows,
    training_rows,
)
from hf_distill.training.stages import TrainingTask, _finite, check_batch
from hf_distill.training.train import (
    TrainingRecord,
    check_objective,
    train_student,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")

ALL = {"query", "document", "teacher_score"}


@pytest.fixture(scope="module")
def parts(teacher_dir: Path) -> Tiny:
    return tiny(teacher_dir)


def config(folder: Path | str = "unused", **options: Any) -> DistillationConfig:
    return DistillationConfig(str(folder), **{**QUIET, "bf16": False, "seed": 3, **options})


def test_fewer_pairs_than_a_batch_is_said() -> None:
    of_16 = config(per_device_train_batch_size=16)
    with pytest.raises(InputError, match=r"15 training pairs .* batch of 16 on 1 process"):
        check_batch(15, of_16)
    check_batch(16, of_16)


RANKING = SimpleNamespace(
    negatives=np.array([[5, 6], [2, -1], [-1, -1]]),
    negative_scores=np.array([[0.5, 0.25], [0.125, np.nan], [np.nan, np.nan]], np.float32),
)


def listed(*documents: list[int]) -> Negatives:
    """What the data lists beside some pairs, two at most; -1: none."""
    numbers = np.array(documents)
    return Negatives(numbers, np.where(numbers < 0, np.nan, 0.75).astype(np.float32))


def test_hard_negatives_are_the_rankings_and_the_last_is_repeated_where_there_are_fewer() -> None:
    none = listed([-1, -1], [-1, -1])
    columns = hard_negatives(none, RANKING, np.array([1, 0]), 2)  # type: ignore[arg-type]
    assert columns["negatives"].tolist() == [[2, 2], [5, 6]]
    assert columns["negative_scores"].tolist() == [[0.125, 0.125], [0.5, 0.25]]


def test_pairs_without_hard_negatives_and_teachers_without_a_ranking_are_refused() -> None:
    with pytest.raises(InputError, match=r"--hard_negatives_per_pair 1: 1 of 2 .* training pair 2"):
        hard_negatives(listed([-1], [-1]), RANKING, np.array([0, 2]), 1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"--hard_negatives_per_pair 1: .* embeds no texts"):
        hard_negatives(listed([-1]), None, np.array([0]), 1)


def test_negatives_that_the_data_lists_come_first_and_each_once() -> None:
    own = listed([9, 5], [2, -1], [7, -1])
    columns = hard_negatives(own, RANKING, np.array([0, 1, 2]), 3)  # type: ignore[arg-type]
    assert columns["negatives"].tolist() == [[9, 5, 6], [2, 2, 2], [7, 7, 7]]
    assert columns["negative_scores"].tolist() == [[0.75, 0.75, 0.25], [0.75] * 3, [0.75] * 3]
    alone = hard_negatives(own, None, np.array([0, 1, 2]), 1)
    assert alone["negatives"].tolist() == [[9], [2], [7]]


def test_rows_name_texts_by_number_and_leave_out_pairs_without_a_score(parts: Tiny) -> None:
    assert parts.lookup.collection is not None
    pairs = parts.lookup.collection.pairs("train").take(np.array([4, 9, 2]))
    scores = np.array([0.5, np.nan, 0.25], np.float32)
    names = pa.array(["a", "b", None])
    further = {"row": np.arange(3), "negatives": np.arange(6).reshape(3, 2), "source": names}
    rows = number_rows(pairs, scores, further)
    assert set(rows.column_names) == ALL | set(further)
    assert rows["query"][:].tolist() == rows["document"][:].tolist() == [4, 2]
    assert [row["negatives"].tolist() for row in rows] == [[0, 1], [4, 5]]
    assert list(rows["source"][:]) == ["a", None]
    assert len(number_rows(pairs.take(np.empty(0, np.int64)), scores[:0], {})) == 0


def earlier(parts: Tiny, folder: Path, **options: Any) -> SimpleNamespace:
    """What a run has before the training."""
    values = np.arange(32, dtype=np.float32) / 32
    embeddings, training = parts.lookup.embeddings, config(**options)
    negatives = np.stack([(np.arange(32) + i) % 32 for i in (1, 2, 3, 4)], axis=1)
    return SimpleNamespace(
        recipe=SimpleNamespace(
            training=training,
            stages=(training,),
            seed=3,
            teacher=SimpleNamespace(teacher_cache=None),
        ),
        folder=RunFolder(folder),
        teacher=None,
        collection=parts.lookup.collection,
        scores=SimpleNamespace(
            of=lambda rows: values[rows],
            embeddings=embeddings,
            between=lambda queries, _: np.zeros(len(queries), np.float32),
        ),
        ranking=SimpleNamespace(negatives=negatives, negative_scores=negatives / 100),
        lists=None,
        further_texts=None,
    )


def selection(weight: np.ndarray | None = None) -> EveryText:
    return EveryText(key="selected", kept=np.array([3, 8, 21, 30]), weight=weight)


def test_the_rows_of_a_run_are_those_that_the_selection_keeps(parts: Tiny, tmp_path: Path) -> None:
    weight = np.linspace(0, 1, 32, dtype=np.float32)
    run = earlier(parts, tmp_path, hard_negatives_per_pair=2)
    rows = training_rows(run, selection(weight), parts.student)  # type: ignore[arg-type]
    kept = [3, 8, 21, 30]
    assert rows.train["query"][:].tolist() == kept
    assert rows.train["teacher_score"][:].tolist() == [i / 32 for i in kept]
    assert rows.train["weight"][:].tolist() == weight[kept].tolist()
    assert [row["negatives"].tolist() for row in rows.train] == [
        [i + 1, (i + 2) % 32] for i in kept
    ]
    assert (len(rows.validation), rows.selection) == (0, "selected")
    assert rows.lookup == Lookup(run.collection, run.scores.embeddings, None)


def test_a_run_with_a_pool_numbers_its_rows(
    parts: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[Path] = []

    def embed_texts(texts: Any, teacher: Any, folder: Path) -> Any:
        folders.append(folder)
        return vectors_of(np.zeros((len(texts), 32)))

    monkeypatch.setattr(pool_module, "embed_texts", embed_texts)
    run = earlier(parts, tmp_path, texts_per_pair=3, num_train_epochs=2)
    rows = training_rows(run, selection(), parts.student)  # type: ignore[arg-type]
    assert set(rows.train.column_names) == ALL | {"row"}
    assert rows.train["row"][:].tolist() == [0, 1, 2, 3]
    assert rows.lookup.pool is not None
    assert len(rows.lookup.pool) == 4 * 3 * 2
    assert "row" not in rows.validation.column_names
    run.recipe.teacher.teacher_cache = str(tmp_path / "shared")
    training_rows(run, selection(), parts.student)  # type: ignore[arg-type]
    assert folders == [tmp_path / "pool" / "shards", tmp_path / "shared"]


def task(parts: Tiny, folder: Path, **options: Any) -> TrainingTask:
    settings = {"per_device_train_batch_size": 8, "num_train_epochs": 2, "logging_steps": 2}
    return TrainingTask(
        student=copy.deepcopy(parts.student),
        stages=(config(folder, **settings, alignment_weight=1.0, **options),),
        rows=Rows(parts.numbers, parts.numbers.select(range(8)), parts.lookup, "selected"),
        components=parts.components,
        scale=SCALES["cosine"],
        layers=(0, 2),
        checkpoints=(folder / "key",),
    )


def test_a_training_record_says_what_was_done_and_is_read_back(parts: Tiny, tmp_path: Path) -> None:
    whole = task(
        parts, tmp_path, texts_per_pair=1, eval_strategy="epoch", save_strategy="epoch",
        load_best_model_at_end=True, early_stopping_patience=2,
    )  # fmt: skip
    record = train_student(whole, "key")
    assert (record.key, record.selection, record.steps, record.epochs) == ("key", "selected", 8, 2)
    assert (record.examples, record.pairs, record.texts, record.processes) == (64, 32, 64, 1)
    assert (record.precision, record.layers, record.resumed_from) == ("fp32", (0, 2), None)
    assert record.best_step in (4, 8)
    assert not whole.student.training
    assert "32 pairs and 64 texts of the pool, 8 steps (2.0 epochs) in fp32" in record.summary()
    write_json(tmp_path / "training.json", record)
    assert read_json(tmp_path / "training.json", TrainingRecord) == record
    assert {"loss", "alignment"} <= set(record.log[0])
    assert any("eval_alignment" in row for row in record.log)


def test_what_json_cannot_hold_is_left_out_of_the_log() -> None:
    row = {"grad_norm": float("nan"), "loss": 1.0, "step": 3}
    assert _finite(row) == {"loss": 1.0, "step": 3}


def test_a_training_goes_on_from_its_own_checkpoint_alone(parts: Tiny, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 3, "texts_per_pair": 1}
    whole = task(parts, tmp_path / "a", **saving)
    assert train_student(whole, "key").resumed_from is None
    again = task(parts, tmp_path / "a", **saving)
    record = train_student(again, "key")
    assert record.resumed_from == "checkpoint-8"
    other = dataclasses.replace(
        task(parts, tmp_path / "a", **saving), checkpoints=(tmp_path / "b",)
    )
    assert train_student(other, "other").resumed_from is None
    for name, value in whole.student.state_dict().items():
        assert value.equal(again.student.state_dict()[name])
        assert value.equal(other.student.state_dict()[name])


def test_an_evaluation_without_validation_pairs_is_refused(parts: Tiny, tmp_path: Path) -> None:
    unwatched = task(parts, tmp_path, eval_strategy="epoch")
    rows = dataclasses.replace(unwatched.rows, validation=parts.numbers.select([]))
    with pytest.raises(InputError, match=r"--eval_strategy epoch: .* --validation_fraction"):
        train_student(dataclasses.replace(unwatched, rows=rows), "key")


class Pairwise(PairTeacher):
    """Scores pairs."""

    name = "ranker"

    def score(self, pairs: Any, advance: Any = None) -> np.ndarray:
        return np.zeros(len(pairs))


class Embedder(EmbeddingTeacher):
    """Embeds texts in 32 dimensions."""

    name = "embedder"
    dimension = 32

    def embed(self, texts: list[str], advance: Any = None) -> np.ndarray:
        return np.zeros((len(texts), 32))


class Given(Embedder):
    """Embeds given texts only."""

    embeds_new_texts = False


class Unbounded(Embedder):
    """Scores on another scale."""

    scale: Scale = SCALES["dot"]


@pytest.mark.parametrize(
    ("teacher", "options", "says"),
    [
        (Pairwise, {"alignment_weight": 1.0}, r"--alignment_weight 1\.0: .* ranker"),
        (Pairwise, {"kl_weight": 0.5}, r"--kl_weight 0\.5"),
        (Pairwise, {"margin_weight": 0.5}, r"--margin_weight 0\.5"),
        (Pairwise, {"texts_per_pair": 2}, "--texts_per_pair 2"),
        (Pairwise, {"student_layers": "search=3"}, "--student_layers search=3"),
        (Pairwise, {"selection": ["echo", "rank=2"]}, r"rank=2: .*\(--selection echo\)"),
        (Pairwise, {"selection": ["stratified=0.5:on=margin"]}, "--selection stratified"),
        (
            Pairwise,
            {"selection": ["rank=2", "coverage=0.5"], "candidates": ["bm25"]},
            r"--selection coverage=0\.5: it needs the teacher's embeddings.*\(--selection rank=2\)",
        ),
        (Unbounded, {}, r"--regression_weight 0\.1: the scores of embedder are dot"),
        (Embedder, {"texts_per_pair": 2}, "--texts_per_pair 2: .*--alignment_weight is 0"),
        (Given, {"texts_per_pair": 2, "alignment_weight": 1.0}, "--texts_per_pair 2: .* embedder"),
        (Embedder, {"student_dim": 64, "alignment_weight": 1.0}, "--student_dim 64: .* 32"),
    ],
)
def test_what_the_teacher_cannot_give_is_refused_before_any_work(
    teacher: type, options: dict, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        check(teacher, options)


def check(teacher: type, options: dict) -> None:
    """Check the objective of a recipe that says `options`."""
    rules = parse_rules(options.pop("selection", []))
    student = {name: options.pop(name, None) for name in ("student_layers", "student_dim")}
    student["student_dim"] = student["student_dim"] or 16
    lists = SimpleNamespace(candidates=options.pop("candidates", []))
    recipe = SimpleNamespace(
        training=config(**options),
        student=SimpleNamespace(**student),
        lists=lists,
    )
    check_objective(recipe, teacher(), rules)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("teacher", "options"),
    [
        (Pairwise, {"selection": ["percentile=20"], "student_layers": "0,2"}),
        (Given, {"alignment_weight": 1.0, "kl_weight": 1.0, "hard_negatives_per_pair": 1}),
        (
            Pairwise,
            {
                "candidates": ["bm25"],
                "kl_weight": 0.5,
                "margin_weight": 0.5,
                "selection": ["rank=2"],
            },
        ),
        (Unbounded, {"regression_weight": 0.0}),
        (Embedder, {"student_dim": 64}),
        (Embedder, {"texts_per_pair": 2, "alignment_weight": 1.0, "student_dim": 32}),
    ],
)
def test_what_the_teacher_can_give_is_not_refused(teacher: type, options: dict) -> None:
    check(teacher, options)
