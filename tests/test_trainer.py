"""Training on a tiny model: parameters move, the loss is the formula, and equal effective batches
train equally.
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
import training_process
from conftest import sentences
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from test_ranks import free_port
from tiny_training import Tiny, set_dropout, tiny

from hf_distill.errors import InputError
from hf_distill.recipe.config import DistillationConfig
from hf_distill.teachers.base import Scale
from hf_distill.training.rows import Lookup
from hf_distill.training.trainer import DistillationTrainer

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")

EVERY = {
    "contrastive_weight": 1, "regression_weight": 2, "regression_on": "matrix", "kl_weight": 0.5,
    "margin_weight": 0.5, "alignment_weight": 3, "temperature": 0.2,
}  # fmt: skip
RUNS = ("one", "two")
ALIGNMENT = {"contrastive_weight": 0, "regression_weight": 0, "alignment_weight": 1}


@pytest.fixture(scope="module")
def parts(teacher_dir: Path) -> Tiny:
    return tiny(teacher_dir)


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def largest_difference(one: torch.nn.Module, other: torch.nn.Module) -> float:
    a, b = weights_of(one), weights_of(other)
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def terms_of(trainer: Any, features: list[dict[str, Any]]) -> dict[str, float]:
    """The weighted terms of a batch, and their sum as `loss`."""
    terms: dict[str, torch.Tensor] = {}
    trainer.track_loss_components = terms.update
    trainer.model.eval()
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, trainer.data_collator(features))
    return {name: value.item() for name, value in (terms | {"loss": loss}).items()}


def rows_of(rows: Dataset, count: int = 8) -> list[dict[str, Any]]:
    return [rows[i] for i in range(count)]


def test_every_parameter_that_matters_moves(parts: Tiny, tmp_path: Path) -> None:
    trainer = parts.trainer(tmp_path)
    before = weights_of(trainer.model)
    trainer.train()
    still = {name for name, value in trainer.model.named_parameters() if value.equal(before[name])}
    assert {name for name in still if "pooler" not in name and "position" not in name} == set()


def test_the_loss_of_a_step_is_the_papers_formula(parts: Tiny, tmp_path: Path) -> None:
    features = rows_of(parts.texts)
    loss = terms_of(parts.trainer(tmp_path), features)["loss"]
    q, d = (
        parts.student.encode([str(row[name]) for row in features]).astype(np.float64)
        for name in ("query", "document")
    )
    cosines = q @ d.T
    info_nce = np.mean(
        [-cosines[i, i] / 0.1 + math.log(np.exp(cosines[i] / 0.1).sum()) for i in range(8)]
    )
    mse = np.mean([(cosines[i, i] - float(features[i]["teacher_score"])) ** 2 for i in range(8)])
    assert loss == pytest.approx(info_nce + 0.1 * mse, abs=1e-4)


def test_rows_by_number_have_the_loss_of_rows_with_texts(parts: Tiny, tmp_path: Path) -> None:
    plain = parts.numbers.remove_columns(["row", "negatives", "negative_scores"])
    losses = [
        terms_of(
            parts.trainer(tmp_path, rows, components=parts.components, lookup=lookup, **EVERY),
            rows_of(rows),
        )
        for rows, lookup in ((parts.texts, None), (plain, parts.lookup))
    ]
    assert len(losses[0]) == 6
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_a_batch_is_packed_and_has_the_loss_of_a_padded_one(parts: Tiny, tmp_path: Path) -> None:
    trainer = parts.trainer(tmp_path, lookup=parts.lookup, rows=parts.numbers)
    packer = trainer.data_collator.packer
    assert packer is not None
    losses = []
    for trainer.data_collator.packer in (packer, None):
        batch = trainer.data_collator(rows_of(parts.numbers))
        assert ("texts0_packing" in batch) == (trainer.data_collator.packer is not None)
        losses.append(trainer.compute_loss(trainer.model, batch).item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_the_trainer_packs_where_it_can(parts: Tiny, tmp_path: Path) -> None:
    assert parts.trainer(tmp_path).data_collator.packer.first_position == 0
    other = copy.deepcopy(parts.student)
    other[0].auto_model.config.model_type = "mpnet"
    config = DistillationConfig(str(tmp_path), use_cpu=True, report_to="none")
    trainer = DistillationTrainer(other, config, parts.texts)
    assert trainer.data_collator.packer is None


def form_of(model: SentenceTransformer) -> tuple[Any, ...]:
    """All of a model that training leaves as it was: modules, what they hold, configuration."""
    modules = [(name, id(module), type(module)) for name, module in model.named_modules()]
    backbone = model[0].auto_model
    held = [sorted(vars(module)) for module in backbone.modules()]
    return modules, held, dict(vars(backbone.config)), list(model.state_dict())


@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_training_changes_the_weights_and_nothing_else(
    parts: Tiny, tmp_path: Path, kind: str
) -> None:
    trainer = parts.trainer(
        tmp_path, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2
    )
    model, backbone = trainer.model, trainer.model[0].auto_model
    backbone.config.model_type = kind
    trainer.data_collator = trainer.get_data_collator(model, trainer.args)
    seen = set()
    backbone.embeddings.register_forward_hook(
        lambda *_: seen.add(backbone.config._attn_implementation)
    )
    model.save_pretrained(str(tmp_path / "before"), create_model_card=False)
    before = form_of(model)
    trainer.train()
    trainer.evaluate()
    assert seen == {"hf_distill_packed" if kind == "bert" else "eager"}
    assert form_of(model) == before
    for file in ("before/config.json", "before/1_Pooling/config.json", "before/modules.json"):
        saved = tmp_path / file.replace("before", "checkpoint-4")
        assert saved.read_text() == (tmp_path / file).read_text()


def test_a_matryoshka_loss_is_the_mean_over_its_dimensions(parts: Tiny, tmp_path: Path) -> None:
    settings = {"contrastive_weight": 1, "regression_weight": 2, "regression_on": "matrix"}
    settings |= {"alignment_weight": 3, "temperature": 0.2, "contrastive_symmetric": True}
    trainer = parts.trainer(tmp_path, components=parts.components, matryoshka_dims=[4], **settings)
    features = rows_of(parts.texts)
    loss = terms_of(trainer, features)["loss"]
    q, d = (
        parts.student.encode([str(row[name]) for row in features]).astype(np.float64)
        for name in ("query", "document")
    )
    t = [
        np.array([row[f"teacher_{kind}_embedding"] for row in features])
        for kind in ("query", "document")
    ]
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
        targets = np.concatenate(t) @ parts.components.T[:, :dimension]
        ours = np.concatenate([cut_q, cut_d])
        alignment = 1 - ((ours * targets).sum(1) / np.linalg.norm(targets, axis=1)).mean()
        by_hand.append(contrast + 2 * ((cosines - teacher) ** 2).mean() + 3 * alignment)
    assert loss == pytest.approx(np.mean(by_hand), abs=1e-4)


def test_each_term_is_logged_and_they_sum_to_the_loss(
    parts: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spread.py").write_text(
        "def spread(batch, config):\n    return batch.texts.var()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    trainer = parts.trainer(
        tmp_path, components=parts.components, eval_strategy="epoch", terms=["spread:spread=4"],
        false_negative_margin=0.5, **EVERY,
    )  # fmt: skip
    trainer.train()
    terms = ("contrastive", "regression", "kl", "margin", "alignment", "spread")
    steps = [row for row in trainer.state.log_history if "loss" in row]
    assert len(steps) == 4
    for row in steps:
        assert sum(row[term] for term in terms) == pytest.approx(row["loss"], abs=1e-3)
        assert 0 < row["ignored_cells"] < 1
    evaluation = next(row for row in trainer.state.log_history if "eval_loss" in row)
    assert sum(evaluation[f"eval_{term}"] for term in terms) == pytest.approx(
        evaluation["eval_loss"], abs=1e-3
    )


def test_alignment_brings_the_student_to_the_teacher(parts: Tiny, tmp_path: Path) -> None:
    trainer = parts.trainer(tmp_path, components=parts.components, num_train_epochs=8, **ALIGNMENT)
    trainer.train()
    losses = [row["alignment"] for row in trainer.state.log_history if "alignment" in row]
    assert losses[-1] < 0.7 * losses[0]


def test_without_components_a_student_aligns_with_the_teachers_own_embeddings(
    parts: Tiny, tmp_path: Path
) -> None:
    config = DistillationConfig(str(tmp_path), use_cpu=True, report_to="none", **ALIGNMENT)
    trainer = DistillationTrainer(copy.deepcopy(parts.teacher), config, parts.texts)
    assert terms_of(trainer, rows_of(parts.texts))["loss"] == pytest.approx(0, abs=1e-5)
    student = DistillationTrainer(copy.deepcopy(parts.student), config, parts.texts)
    with pytest.raises(InputError, match=r"--alignment_weight 1.*\(16, 16\).*\(16, 32\)"):
        terms_of(student, rows_of(parts.texts))


def cosines_of(parts: Tiny, texts: list[str], targets: np.ndarray) -> np.ndarray:
    """The student's cosines to the targets of `texts`."""
    projected = targets.astype(np.float32) @ parts.components.T
    ours = parts.student.encode(texts)
    cosines: np.ndarray = (ours * projected).sum(1) / np.linalg.norm(projected, axis=1)
    return cosines


def test_texts_of_the_pool_are_aligned_and_nothing_else(parts: Tiny, tmp_path: Path) -> None:
    rows = parts.numbers.remove_columns(["negatives", "negative_scores"])
    settings = {**EVERY, "components": parts.components, "lookup": parts.lookup}
    with_them, without = (
        parts.trainer(tmp_path, rows, texts_per_pair=each, **settings) for each in (2, 0)
    )
    with_them.data_collator.epoch.fill_(3)
    terms = [terms_of(trainer, rows_of(rows)) for trainer in (with_them, without)]
    for name in ("contrastive", "regression", "kl", "margin"):
        assert terms[0][name] == pytest.approx(terms[1][name], abs=1e-5)
    pool = parts.lookup.pool
    assert pool is not None
    texts, _, targets = pool.take((3 * 32 * 2 + np.arange(16)) % 64)
    further = 3 * (1 - cosines_of(parts, texts, targets).mean())
    # 16 texts of pairs, 16 of the pool
    assert terms[0]["alignment"] == pytest.approx((terms[1]["alignment"] + further) / 2, abs=1e-5)


def test_texts_of_the_pool_and_hard_negatives_weigh_as_their_pairs_do(
    parts: Tiny, tmp_path: Path
) -> None:
    rows = parts.numbers.add_column("weight", [float(i == 2) for i in range(32)])
    rows = rows.with_format("numpy")
    trainer = parts.trainer(
        tmp_path, rows, components=parts.components, lookup=parts.lookup, texts_per_pair=1,
        **ALIGNMENT,
    )  # fmt: skip
    loss = terms_of(trainer, rows_of(rows, 4))["loss"]
    q, d, pool = sentences(32), sentences(32, 400), sentences(64, 900)
    texts = [q[2], d[2], d[3], d[4], pool[2]]
    assert loss == pytest.approx(
        (1 - cosines_of(parts, texts, parts.embed(texts))).sum() / 20, abs=1e-4
    )


def test_accumulated_steps_weigh_as_much_as_one(parts: Tiny, tmp_path: Path) -> None:
    """Regression sees no other rows, so 4 x 2 accumulated must train like 1 x 8 (a batch key
    `labels` would make it 4 times).
    """
    trained = []
    for batch, steps in ((8, 1), (2, 4)):
        trainer = parts.trainer(
            tmp_path, contrastive_weight=0, regression_weight=1, optim="sgd", learning_rate=0.1,
            per_device_train_batch_size=batch, gradient_accumulation_steps=steps, max_grad_norm=0,
        )  # fmt: skip
        trainer.train()
        trained.append(trainer)
    assert largest_difference(trained[0].model, trained[1].model) < 1e-5
    assert largest_difference(trained[0].model, parts.student) > 1e-3


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_resumed_training_is_uninterrupted_training(
    parts: Tiny, tmp_path: Path, dropout: float
) -> None:
    settings = {"save_strategy": "steps", "save_steps": 3, "num_train_epochs": 2}
    trainers = [parts.trainer(tmp_path / name, **settings) for name in ("whole", "resumed")]
    for trainer in trainers:
        set_dropout(trainer.model, dropout)
    whole, resumed = trainers
    whole.train()
    assert whole.state.global_step == 8
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert largest_difference(whole.model, resumed.model) == 0


def pool_settings(parts: Tiny) -> dict[str, Any]:
    return {
        "rows": parts.numbers, "components": parts.components, "lookup": parts.lookup,
        "alignment_weight": 5, "texts_per_pair": 1, "num_train_epochs": 3,
    }  # fmt: skip


def test_resumed_training_has_the_texts_of_its_epoch(parts: Tiny, tmp_path: Path) -> None:
    settings = {**pool_settings(parts), "save_strategy": "steps", "save_steps": 5}
    whole = parts.trainer(tmp_path / "whole", **settings)
    whole.train()
    assert (whole.state.global_step, int(whole.data_collator.epoch)) == (12, 2)
    resumed = parts.trainer(tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert largest_difference(whole.model, resumed.model) == 0
    first = parts.trainer(tmp_path / "first", **settings | {"save_strategy": "no"})
    first.data_collator.epoch.fill_ = lambda epoch: None  # always the texts of the first epoch
    first.train()
    assert largest_difference(whole.model, first.model) > 1e-4


def test_persistent_workers_draw_the_texts_of_each_epoch(parts: Tiny, tmp_path: Path) -> None:
    trained = [
        parts.trainer(tmp_path / str(workers), dataloader_num_workers=workers,
                      dataloader_persistent_workers=workers > 0, **pool_settings(parts))
        for workers in (0, 1)
    ]  # fmt: skip
    for trainer in trained:
        trainer.train()
    assert trained[1].state.global_step == 12
    assert largest_difference(trained[0].model, trained[1].model) == 0


def test_a_loss_that_is_not_finite_stops_with_its_name(parts: Tiny, tmp_path: Path) -> None:
    column = "teacher_query_embedding"
    infinite = np.array([math.inf] + [0.0] * 31, dtype=np.float32)
    broken = parts.texts.map(
        lambda row, i: {column: infinite if i == 20 else row[column]}, with_indices=True
    )
    trainer = parts.trainer(tmp_path, broken, regression_on="matrix")
    with pytest.raises(FloatingPointError, match=r"step [0-3]: .*\({'regression': inf}\)"):
        trainer.train()


def test_bfloat16_trains_to_nearly_the_same_student(parts: Tiny, tmp_path: Path) -> None:
    trained = []
    for bf16 in (False, True):
        trainer = parts.trainer(tmp_path, bf16=bf16)
        trainer.train()
        trained.append(trainer.model.eval().encode(sentences(10)))
    assert (trained[0] * trained[1]).sum(axis=1).min() > 0.99
    assert not np.array_equal(trained[0], trained[1])


def test_the_best_checkpoint_is_loaded_at_the_end(parts: Tiny, tmp_path: Path) -> None:
    trainer = parts.trainer(
        tmp_path, eval_strategy="epoch", save_strategy="epoch", num_train_epochs=3,
        load_best_model_at_end=True,
    )  # fmt: skip
    trainer.train()
    best = min(
        (row for row in trainer.state.log_history if "eval_loss" in row),
        key=lambda row: row["eval_loss"],
    )
    assert trainer.state.best_metric == best["eval_loss"]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(best["eval_loss"], abs=1e-5)


def test_rows_of_plain_lists_without_embeddings_are_enough(
    teacher_dir: Path, tmp_path: Path
) -> None:
    """What a user of the library has at least: queries, documents and scores."""
    rows = Dataset.from_dict(
        {
            "query": ["how do I read a csv file", "what is a lock"],
            "document": ["Parse a file of values.", "Only one thread holds it at a time."],
            "teacher_score": [0.62, 0.48],
        }
    )
    student = SentenceTransformer(str(teacher_dir), device="cpu")
    config = DistillationConfig(
        str(tmp_path), per_device_train_batch_size=2, num_train_epochs=1, use_cpu=True,
        report_to="none", save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    DistillationTrainer(model=student, args=config, train_dataset=rows).train()
    assert largest_difference(student, SentenceTransformer(str(teacher_dir), device="cpu")) > 0


def test_arguments_without_an_objective_are_refused(parts: Tiny, tmp_path: Path) -> None:
    plain = SentenceTransformerTrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(
        InputError, match=r"args is a SentenceTransformerTrainingArguments.*DistillationConfig"
    ):
        DistillationTrainer(parts.student, plain, parts.texts)  # type: ignore[arg-type]


def test_no_duplicates_compares_the_two_texts_alone(parts: Tiny, tmp_path: Path) -> None:
    rows = parts.texts.with_format(None).to_dict()
    rows["teacher_score"] = [0.5] * 32
    rows["document"][1] = rows["document"][0]
    trainer = parts.trainer(
        tmp_path, Dataset.from_dict(rows).with_format("numpy"), batch_sampler="no_duplicates",
    )  # fmt: skip
    batches = [batch["document_key"].tolist() for batch in trainer.get_train_dataloader()]
    assert all(len(set(batch)) == len(batch) for batch in batches)
    assert 4 <= len(batches) <= 5


def test_two_processes_train_like_one_with_their_batches_together(
    teacher_dir: Path, tmp_path: Path
) -> None:
    """Gradient norms and parameters after eight steps, on gloo."""
    logs = [tmp_path / f"{rank}.log" for rank in range(2)]
    world = {
        "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "localhost",
        "MASTER_PORT": free_port(),
    }  # fmt: skip
    two = [
        forked.start(
            log, training_process.train, teacher_dir, 8, tmp_path / "two", RANK=rank,
            LOCAL_RANK=rank, **world,
        )
        for rank, log in enumerate(logs)
    ]  # fmt: skip
    training_process.train(teacher_dir, 16, tmp_path / "one")
    for process, log in zip(two, logs, strict=True):
        forked.ended(process, log)
    for form in training_process.FORMS:
        one, two = (json.loads((tmp_path / n / form / "log.json").read_text()) for n in RUNS)
        assert (one["world"], two["world"], len(one["grad_norms"])) == (1, 2, 8)
        np.testing.assert_allclose(two["grad_norms"], one["grad_norms"], rtol=1e-4)
        students = [SentenceTransformer(str(tmp_path / n / form), device="cpu") for n in RUNS]
        assert largest_difference(*students) < 1e-6


def test_training_rows_on_another_scale_are_refused(parts: Tiny, tmp_path: Path) -> None:
    logits = parts.texts.map(lambda row: {"teacher_score": 8.25})
    with pytest.raises(InputError, match=r"32 of 32 scores.*\[-1, 1\], e\.g\.\s8\.2500"):
        parts.trainer(tmp_path, logits)
    unbounded = Scale("cross-encoder", "identity", -math.inf, math.inf)
    with pytest.raises(InputError, match=r"--regression_weight 0\.1.*cross-encoder"):
        parts.trainer(tmp_path, logits, scale=unbounded)
    parts.trainer(tmp_path, logits, scale=unbounded, regression_weight=0)


@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_grad_cache_holds_few_activations_and_gives_the_same_gradients(
    parts: Tiny, tmp_path: Path, kind: str
) -> None:
    gradients, held = {}, {}
    for cached in (False, True):
        trainer = parts.trainer(
            tmp_path, components=parts.components, grad_cache=cached,
            per_device_train_batch_size=32, **EVERY,
        )  # fmt: skip
        trainer.model[0].auto_model.config.model_type = kind
        trainer.data_collator = trainer.get_data_collator(trainer.model, trainer.args)
        trainer.data_collator.group_size = 4
        sizes: list[int] = []

        def note(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        trainer.model.train()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = trainer.compute_loss(
                trainer.model, trainer.data_collator(rows_of(parts.texts, 32))
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


def test_a_lookup_is_empty_where_rows_carry_their_texts(parts: Tiny, tmp_path: Path) -> None:
    assert parts.trainer(tmp_path).lookup == Lookup()
