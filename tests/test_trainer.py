"""Training on a tiny model: parameters move, the loss is the formula, and equal effective batches
train equally.
"""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, sentences
from datasets import Dataset, Features, Sequence, Value
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments

from hf_distill.errors import InputError
from hf_distill.recipe.arguments import (
    StudentArguments,
    TeacherArguments,
)
from hf_distill.student.build import (
    Blueprint,
    build_student,
    set_dropout,
)
from hf_distill.student.head import principal_components
from hf_distill.teachers.base import Scale
from hf_distill.teachers.bi_encoder import (
    BiEncoderTeacher,
    load_bi_encoder,
)
from hf_distill.training.terms import Weights
from hf_distill.training.trainer import DistillationTrainer

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")


@pytest.fixture(scope="module")
def teacher(teacher_dir: Path) -> BiEncoderTeacher:
    return load_bi_encoder(TeacherArguments(teacher=str(teacher_dir), teacher_dtype="float32"))


@pytest.fixture(scope="module")
def rows(teacher: BiEncoderTeacher) -> Dataset:
    queries, documents = sentences(32), sentences(32, 400)
    q, d = teacher.embed(queries), teacher.embed(documents)
    vector = Sequence(Value("float32"), length=32)
    features = Features(
        {
            "query": Value("string"), "document": Value("string"), "teacher_score": Value("float32"),
            "teacher_query_embedding": vector, "teacher_document_embedding": vector,
        }
    )  # fmt: skip
    table = {
        "query": queries, "document": documents, "teacher_score": (q * d).sum(1), "teacher_query_embedding": list(q),
        "teacher_document_embedding": list(d),
    }  # fmt: skip
    return Dataset.from_dict(table, features=features).with_format("numpy")


@pytest.fixture(scope="module")
def components(rows: Dataset) -> np.ndarray:
    return principal_components(
        np.concatenate([rows["teacher_query_embedding"], rows["teacher_document_embedding"]]), 16
    )


@pytest.fixture(scope="module")
def untrained(teacher: BiEncoderTeacher, components: np.ndarray) -> SentenceTransformer:
    arguments = StudentArguments(
        student_layers="0,2",
        student_dim=16,
        student_max_length=32,
        student_init="pca",
        student_dropout=0.0,
    )
    return build_student(arguments, teacher, Blueprint(components), 0)


def make_trainer(
    model: SentenceTransformer,
    rows: Dataset,
    folder: Path,
    weights: Weights,
    components: np.ndarray | None = None,
    **changes: Any,
) -> DistillationTrainer:
    own = {
        name: changes.pop(name)
        for name in (
            "final_weights",
            "false_negative_margin",
            "symmetric",
            "matryoshka_dims",
            "log_gradient_norms",
            "grad_cache",
            "augmented_each",
            "scale",
        )
        if name in changes
    }
    settings: dict[str, Any] = {
        "output_dir": str(folder), "per_device_train_batch_size": 8, "num_train_epochs": 1, "learning_rate": 1e-3, "save_strategy": "no",
        "logging_steps": 1, "disable_tqdm": True, "use_cpu": True, "seed": 3, "report_to": "none",
    }  # fmt: skip
    return DistillationTrainer(
        **own,
        weights=weights,
        components=None if components is None else torch.from_numpy(components),
        model=copy.deepcopy(model),
        args=SentenceTransformerTrainingArguments(**{**settings, **changes}),
        train_dataset=rows,
        eval_dataset=rows if changes.get("eval_strategy", "no") != "no" else None,
    )


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def largest_difference(one: torch.nn.Module, other: torch.nn.Module) -> float:
    a, b = weights_of(one), weights_of(other)
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_every_parameter_that_matters_moves(
    untrained: SentenceTransformer, rows: Dataset, tmp_path: Path
) -> None:
    trainer = make_trainer(untrained, rows, tmp_path, Weights())
    before = weights_of(trainer.model)
    trainer.train()
    still = {name for name, value in trainer.model.named_parameters() if value.equal(before[name])}
    assert {name for name in still if "pooler" not in name and "position" not in name} == set()


def test_the_loss_of_a_step_is_the_papers_formula(
    untrained: SentenceTransformer, rows: Dataset, tmp_path: Path
) -> None:
    trainer = make_trainer(
        untrained, rows, tmp_path, Weights(contrastive=1.0, regression=0.1, temperature=0.1)
    )
    features = [rows[i] for i in range(8)]
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, trainer.data_collator(features)).item()
    model = trainer.model.eval()
    q, d = (
        model.encode([str(row[name]) for row in features]).astype(np.float64)
        for name in ("query", "document")
    )
    cosines = q @ d.T
    info_nce = np.mean(
        [-cosines[i, i] / 0.1 + math.log(np.exp(cosines[i] / 0.1).sum()) for i in range(8)]
    )
    mse = np.mean([(cosines[i, i] - float(features[i]["teacher_score"])) ** 2 for i in range(8)])
    assert loss == pytest.approx(info_nce + 0.1 * mse, abs=1e-4)


def test_a_batch_is_packed_and_has_the_loss_of_a_padded_one(
    untrained: SentenceTransformer, rows: Dataset, tmp_path: Path
) -> None:
    trainer = make_trainer(untrained, rows, tmp_path, Weights())
    features = [rows[i] for i in range(8)]
    losses = []
    for first_position in (0, None):
        trainer.data_collator.first_position = first_position
        batch = trainer.data_collator(features)
        assert ("texts0_packing" in batch) == (first_position is not None)
        losses.append(trainer.compute_loss(trainer.model, batch).item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_the_trainer_packs_where_it_can(
    untrained: SentenceTransformer, rows: Dataset, tmp_path: Path
) -> None:
    assert make_trainer(untrained, rows, tmp_path, Weights()).data_collator.first_position == 0
    other = copy.deepcopy(untrained)
    other[0].auto_model.config.model_type = "mpnet"
    assert make_trainer(other, rows, tmp_path, Weights()).data_collator.first_position is None


def test_a_matryoshka_loss_is_the_mean_over_its_dimensions(
    untrained: SentenceTransformer, rows: Dataset, components: np.ndarray, tmp_path: Path
) -> None:
    weights = Weights(
        contrastive=1, regression=2, regression_on="matrix", alignment=3, temperature=0.2
    )
    trainer = make_trainer(
        untrained, rows, tmp_path, weights, components, matryoshka_dims=[4], symmetric=True
    )
    features = [rows[i] for i in range(8)]
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, trainer.data_collator(features)).item()
    model = trainer.model.eval()
    q, d = (
        model.encode([str(row[name]) for row in features]).astype(np.float64)
        for name in ("query", "document")
    )
    t = (
        np.array([row["teacher_query_embedding"] for row in features]),
        np.array([row["teacher_document_embedding"] for row in features]),
    )
    teacher = t[0] @ t[1].T
    teacher[range(8), range(8)] = [row["teacher_score"] for row in features]
    by_hand = []
    for dimension in (4, 16):
        cut_q, cut_d = (
            x[:, :dimension] / np.linalg.norm(x[:, :dimension], axis=1, keepdims=True)
            for x in (q, d)
        )
        cosines = cut_q @ cut_d.T
        log_sums = np.log(np.exp(cosines / 0.2).sum(1)) + np.log(np.exp(cosines / 0.2).sum(0))
        contrast = (log_sums - 2 * np.diag(cosines) / 0.2).mean() / 2
        targets = np.concatenate(t) @ components.T[:, :dimension]
        ours = np.concatenate([cut_q, cut_d])
        alignment = 1 - ((ours * targets).sum(1) / np.linalg.norm(targets, axis=1)).mean()
        by_hand.append(contrast + 2 * ((cosines - teacher) ** 2).mean() + 3 * alignment)
    assert loss == pytest.approx(np.mean(by_hand), abs=1e-4)


def test_each_term_is_logged_and_they_sum_to_the_loss(
    untrained: SentenceTransformer, rows: Dataset, components: np.ndarray, tmp_path: Path
) -> None:
    weights = Weights(
        contrastive=1, regression=2, regression_on="matrix", distribution=0.5, alignment=3
    )
    trainer = make_trainer(untrained, rows, tmp_path, weights, components, eval_strategy="epoch")
    trainer.train()
    terms = ("contrastive", "regression", "distribution", "alignment")
    steps = [row for row in trainer.state.log_history if "loss" in row]
    assert len(steps) == 4
    for row in steps:
        assert sum(row[term] for term in terms) == pytest.approx(row["loss"], abs=1e-3)
    evaluation = next(row for row in trainer.state.log_history if "eval_loss" in row)
    assert sum(evaluation[f"eval_{term}"] for term in terms) == pytest.approx(
        evaluation["eval_loss"], abs=1e-3
    )


def test_alignment_brings_the_student_to_the_teacher(
    untrained: SentenceTransformer, rows: Dataset, components: np.ndarray, tmp_path: Path
) -> None:
    trainer = make_trainer(
        untrained,
        rows,
        tmp_path,
        Weights(contrastive=0, regression=0, alignment=1),
        components,
        num_train_epochs=8,
    )
    trainer.train()
    losses = [row["alignment"] for row in trainer.state.log_history if "alignment" in row]
    assert losses[-1] < 0.7 * losses[0]


@pytest.fixture(scope="module")
def augmented(rows: Dataset, teacher: BiEncoderTeacher) -> Dataset:
    """`rows`, each with four augmented texts: two for each of two epochs."""
    texts = sentences(4 * len(rows), 900)
    of_row = [texts[4 * i : 4 * i + 4] for i in range(len(rows))]
    table = rows.with_format(None).to_dict() | {
        "augmented": of_row,
        "teacher_augmented_embeddings": [list(teacher.embed(t)) for t in of_row],
    }
    return Dataset.from_dict(table).with_format("numpy")


def test_augmented_texts_are_aligned_and_nothing_else(
    untrained: SentenceTransformer, augmented: Dataset, components: np.ndarray, tmp_path: Path
) -> None:
    weights = Weights(contrastive=1, regression=2, regression_on="matrix", alignment=3)
    features = [augmented[i] for i in range(8)]
    with_them, without = (
        make_trainer(
            untrained,
            augmented,
            tmp_path,
            weights,
            components,
            augmented_each=each,
            **{"logging_steps": 1},
        )
        for each in (2, 0)
    )
    with_them.data_collator.epoch = 3  # of two rounds: the second's turn
    terms = []
    for trainer in (with_them, without):
        losses: dict[str, torch.Tensor] = {}
        trainer.track_loss_components = losses.update  # type: ignore[method-assign]
        trainer.compute_loss(trainer.model.eval(), trainer.data_collator(features))
        terms.append({name: value.item() for name, value in losses.items()})
    for name in ("contrastive", "regression"):
        assert terms[0][name] == pytest.approx(terms[1][name], abs=1e-5)
    ours = untrained.encode([str(text) for row in features for text in row["augmented"][2:]])
    targets = (
        np.concatenate([row["teacher_augmented_embeddings"][2:] for row in features]) @ components.T
    )
    further = 3 * (1 - ((ours * targets).sum(1) / np.linalg.norm(targets, axis=1)).mean())
    assert terms[0]["alignment"] == pytest.approx(
        (terms[1]["alignment"] + further) / 2, abs=1e-5
    )  # 16 texts of pairs, 16 others


def test_augmented_texts_and_hard_negatives_weigh_as_their_pairs_do(
    untrained: SentenceTransformer, augmented: Dataset, components: np.ndarray, tmp_path: Path
) -> None:
    trainer = make_trainer(
        untrained,
        augmented,
        tmp_path,
        Weights(contrastive=0, regression=0, alignment=1),
        components,
        augmented_each=1,
    )
    features = [dict(augmented[i]) for i in range(4)]
    for i, row in enumerate(features):
        row |= {
            "negatives": [features[i - 1]["document"]],
            "negative_scores": np.zeros(1),
            "weight": float(i == 2),
        }
        row["teacher_negative_embeddings"] = features[i - 1]["teacher_document_embedding"][None]
    loss = trainer.compute_loss(trainer.model.eval(), trainer.data_collator(features)).item()
    row = features[2]
    texts = [row["query"], row["document"], *row["negatives"], row["augmented"][0]]
    targets = [row["teacher_query_embedding"], row["teacher_document_embedding"]]
    targets += [row["teacher_negative_embeddings"][0], row["teacher_augmented_embeddings"][0]]
    projected = np.stack(targets) @ components.T
    cosines = (untrained.encode([str(text) for text in texts]) * projected).sum(1) / np.linalg.norm(
        projected, axis=1
    )
    assert loss == pytest.approx((1 - cosines).sum() / 16, abs=1e-5)


def test_accumulated_steps_weigh_as_much_as_one(
    untrained: SentenceTransformer, rows: Dataset, tmp_path: Path
) -> None:
    """Regression sees no other rows, so 4 x 2 accumulated must train like 1 x 8 (a batch key
    `labels` would make it 4 times).
    """
    trained = []
    for batch, steps in ((8, 1), (2, 4)):
        trainer = make_trainer(
            untrained, rows, tmp_path, Weights(contrastive=0, regression=1), per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            optim="sgd", learning_rate=0.1, max_grad_norm=0,
        )  # fmt: skip
        trainer.train()
        trained.append(trainer)
    assert largest_difference(trained[0].model, trained[1].model) < 1e-5
    assert largest_difference(trained[0].model, untrained) > 1e-3


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_resumed_training_is_uninterrupted_training(
    untrained: SentenceTransformer, rows: Dataset, tmp_path: Path, dropout: float
) -> None:
    untrained = copy.deepcopy(untrained)
    set_dropout(untrained[0].auto_model, dropout)
    settings = {"save_strategy": "steps", "save_steps": 3, "num_train_epochs": 2}
    whole = make_trainer(untrained, rows, tmp_path / "whole", Weights(), **settings)
    whole.train()
    assert whole.state.global_step == 8
    resumed = make_trainer(untrained, rows, tmp_path / "resumed", Weights(), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert largest_difference(whole.model, resumed.model) == 0


def test_resumed_training_has_the_augmented_texts_of_its_epoch(
    untrained: SentenceTransformer, augmented: Dataset, components: np.ndarray, tmp_path: Path
) -> None:
    settings = {
        "save_strategy": "steps",
        "save_steps": 5,
        "num_train_epochs": 3,
        "augmented_each": 2,
    }
    whole = make_trainer(
        untrained, augmented, tmp_path / "whole", Weights(alignment=5), components, **settings
    )
    whole.train()
    assert (whole.state.global_step, whole.data_collator.epoch) == (12, 2)
    resumed = make_trainer(
        untrained, augmented, tmp_path / "resumed", Weights(alignment=5), components, **settings
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert largest_difference(whole.model, resumed.model) == 0
    always_the_first = make_trainer(
        untrained, augmented.map(lambda row: {name: row[name][:2] for name in ("augmented", "teacher_augmented_embeddings")}),
        tmp_path / "first", Weights(alignment=5), components, **settings | {"save_strategy": "no"},
    )  # fmt: skip
    always_the_first.train()
    assert largest_difference(whole.model, always_the_first.model) > 1e-4


def test_a_loss_that_is_not_finite_stops_with_its_name(
    untrained: SentenceTransformer, rows: Dataset, tmp_path: Path
) -> None:
    column = "teacher_query_embedding"
    infinite = np.array([math.inf] + [0.0] * 31, dtype=np.float32)
    broken = rows.map(
        lambda row, i: {column: infinite if i == 20 else row[column]}, with_indices=True
    )
    trainer = make_trainer(untrained, broken, tmp_path, Weights(regression_on="matrix"))
    with pytest.raises(
        FloatingPointError, match=r"step [0-3]: the objective is not finite \({'regression': inf}\)"
    ):
        trainer.train()


def test_bfloat16_trains_to_nearly_the_same_student(
    untrained: SentenceTransformer, rows: Dataset, tmp_path: Path
) -> None:
    trained = []
    for bf16 in (False, True):
        trainer = make_trainer(untrained, rows, tmp_path, Weights(), bf16=bf16)
        trainer.train()
        trained.append(trainer.model.eval().encode(sentences(10)))
    assert (trained[0] * trained[1]).sum(axis=1).min() > 0.99
    assert not np.array_equal(trained[0], trained[1])


def test_the_best_checkpoint_is_loaded_at_the_end(
    untrained: SentenceTransformer, rows: Dataset, tmp_path: Path
) -> None:
    trainer = make_trainer(
        untrained,
        rows,
        tmp_path,
        Weights(),
        eval_strategy="epoch",
        save_strategy="epoch",
        num_train_epochs=3,
        load_best_model_at_end=True,
    )
    trainer.train()
    best = min(
        (row for row in trainer.state.log_history if "eval_loss" in row),
        key=lambda row: row["eval_loss"],
    )
    assert trainer.state.best_metric == best["eval_loss"]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best["eval_loss"], abs=1e-5)


def test_the_readmes_library_example_runs(
    teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = next(
        block for block in readme.split("```python\n")[1:] if "DistillationTrainer" in block
    ).split("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("path/to/a/model", str(teacher_dir)), "README.md", "exec"), {})
    student = SentenceTransformer(str(tmp_path / "my-student"), device="cpu")
    assert student.encode(["read a csv file"]).shape == (1, 32)
    assert largest_difference(student, SentenceTransformer(str(teacher_dir), device="cpu")) > 0


def test_two_processes_train_like_one_with_their_batches_together(
    teacher_dir: Path, tmp_path: Path
) -> None:
    """Loss gradients and parameters after eight steps, on gloo. (SGD: Adam divides what is 0 but
    for rounding by its own size.)
    """
    runs = {}
    for name, launcher, batch in (
        ("one", [], "16"),
        ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"], "8"),
    ):
        script = str(Path(__file__).parent / "training_process.py")
        done = subprocess.run(
            [sys.executable, *launcher, script, str(teacher_dir), batch, str(tmp_path / name)],
            capture_output=True, text=True, check=False, timeout=300, env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        log = json.loads((tmp_path / name / "log.json").read_text())
        runs[name] = (log, SentenceTransformer(str(tmp_path / name), device="cpu"))
    assert [log["world"] for log, _ in runs.values()] == [1, 2]
    assert len(runs["one"][0]["grad_norms"]) == 8
    np.testing.assert_allclose(
        runs["two"][0]["grad_norms"], runs["one"][0]["grad_norms"], rtol=1e-4
    )
    assert largest_difference(runs["one"][1], runs["two"][1]) < 1e-6


def test_weights_move_in_a_straight_line_and_gradients_and_ignored_cells_are_logged(
    untrained: SentenceTransformer, rows: Dataset, components: np.ndarray, tmp_path: Path
) -> None:
    plain = make_trainer(
        untrained,
        rows,
        tmp_path,
        Weights(contrastive=0, regression=0, alignment=2),
        components,
        learning_rate=0.0,
    )
    plain.train()
    moving = make_trainer(
        untrained, rows, tmp_path, Weights(contrastive=1, regression=0, alignment=2), components, learning_rate=0.0,
        final_weights={"contrastive": 0.0, "alignment": 8.0}, false_negative_margin=0.5, log_gradient_norms=True,
    )  # fmt: skip
    moving.train()
    steps = [
        [row for row in trainer.state.log_history if "loss" in row] for trainer in (plain, moving)
    ]
    assert [m["alignment"] / p["alignment"] for p, m in zip(*steps, strict=True)] == pytest.approx(
        [1, 2, 3, 4], rel=1e-3
    )
    assert steps[1][3]["contrastive"] == 0, "a term of weight 0 is not computed"
    assert all(0 < row["ignored_cells"] < 1 for row in steps[1])
    assert steps[1][3]["alignment_gradient"] == pytest.approx(
        4 * steps[1][0]["alignment_gradient"], rel=0.5
    )


def test_training_rows_on_another_scale_are_refused(
    untrained: SentenceTransformer, rows: Dataset, tmp_path: Path
) -> None:
    logits = rows.map(lambda row: {"teacher_score": 8.25})
    with pytest.raises(
        InputError,
        match=r"32 of 32 scores lie outside the declared range \[-1, 1\], e\.g\. 8\.2500",
    ):
        make_trainer(untrained, logits, tmp_path, Weights())
    unbounded = Scale("cross-encoder", "identity", -math.inf, math.inf)
    with pytest.raises(
        InputError,
        match=r"regression_weight is 0\.1, but the scores of the training rows are cross-encoder",
    ):
        make_trainer(untrained, logits, tmp_path, Weights(), scale=unbounded)
    make_trainer(untrained, logits, tmp_path, Weights(regression=0), scale=unbounded)


def test_grad_cache_holds_few_activations_and_gives_the_same_gradients(
    untrained: SentenceTransformer, rows: Dataset, components: np.ndarray, tmp_path: Path
) -> None:
    weights = Weights(
        contrastive=1, regression=1, regression_on="matrix", distribution=1, alignment=1
    )
    gradients, held = {}, {}
    for cached in (False, True):
        trainer = make_trainer(
            untrained,
            rows,
            tmp_path,
            weights,
            components,
            grad_cache=cached,
            per_device_train_batch_size=32,
        )
        trainer.data_collator.group_size = 4
        sizes: list[int] = []

        def note(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        trainer.model.train()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = trainer.compute_loss(
                trainer.model, trainer.data_collator([rows[i] for i in range(32)])
            )
        held[cached] = sum(sizes)
        loss.backward()
        gradients[cached] = {
            name: p.grad.clone()
            for name, p in trainer.model.named_parameters()
            if p.grad is not None
        }
    assert held[True] < held[False] / 10
    assert gradients[True].keys() == gradients[False].keys()
    for name, gradient in gradients[True].items():
        torch.testing.assert_close(gradient, gradients[False][name], atol=1e-5, rtol=1e-5)
