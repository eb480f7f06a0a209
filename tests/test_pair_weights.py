"""Pairs that weigh less or more, from the selection to the loss."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import tiny

from hf_distill.recipe.config import DistillationConfig
from hf_distill.training.in_batch import InBatch
from hf_distill.training.terms import (
    TERMS,
    alignment,
    contrastive,
    parse_terms,
    regression,
    weighted_terms,
)

S = torch.tensor([[0.9, 0.1, 0.3], [0.2, 0.8, 0.0], [0.5, 0.4, 0.7]], dtype=torch.float64)
T = torch.tensor([[0.8, 0.2, 0.1], [0.1, 0.9, 0.3], [0.6, 0.2, 0.5]], dtype=torch.float64)


def config(**options: Any) -> DistillationConfig:
    return DistillationConfig("unused", use_cpu=True, temperature=0.5, **options)


EVERY = config(**{f"{name}_weight": 1.0 for name in TERMS}, regression_on="matrix")


def batch(weight: torch.Tensor | None, student: torch.Tensor = S, **more: Any) -> InBatch:
    generator = torch.Generator().manual_seed(0)
    texts, targets = (
        torch.randn(9, 4, generator=generator, dtype=torch.float64) for _ in range(2)
    )  # three pairs, a negative each
    each = None if weight is None else weight.repeat(3)
    lists = {"listed": torch.tensor([[0, 1], [1, 2], [2, 0]]), "ranker": T[:, :2]}
    values = {"texts": texts, "targets": targets, "text_weight": each, **lists, **more}
    ignore = torch.zeros(3, 3, dtype=torch.bool)
    own = torch.arange(3)
    return InBatch(
        student=student, teacher=T, positives=own, ignore=ignore, weight=weight, **values
    )


def terms(weight: torch.Tensor | None, student: torch.Tensor = S) -> dict[str, torch.Tensor]:
    return weighted_terms([batch(weight, student)], parse_terms(EVERY), EVERY)


def test_by_hand() -> None:
    weight = torch.tensor([1.0, 0.5, 0.0])
    rows = [
        -math.log(math.exp(S[i, i] / 0.5) / sum(math.exp(S[i, j] / 0.5) for j in range(3)))
        for i in range(3)
    ]
    contrast = contrastive(batch(weight), config()).item()
    assert contrast == pytest.approx((rows[0] + 0.5 * rows[1]) / 3)
    squares = regression(batch(weight), config()).item()
    assert squares == pytest.approx((0.1**2 + 0.5 * 0.1**2) / 3)
    # Three queries and three documents, each at right angles to its target.
    texts = torch.eye(3, dtype=torch.float64).repeat(2, 1)
    right_angles = batch(
        weight, texts=texts, targets=texts.roll(1, 1), text_weight=weight.repeat(2)
    )
    assert alignment(right_angles, config()).item() == pytest.approx((1 + 0.5 + 0) * 2 / 6)


def test_weights_of_one_change_nothing_and_every_term_is_linear_in_them() -> None:
    plain, ones, twos = terms(None), terms(torch.ones(3)), terms(torch.full((3,), 2.0))
    assert set(plain) == set(TERMS)
    for name in TERMS:
        assert plain[name].item() == pytest.approx(ones[name].item())
        assert twos[name].item() == pytest.approx(2 * plain[name].item())


def test_a_row_of_weight_zero_teaches_nothing() -> None:
    student = S.clone().requires_grad_()
    weighted = terms(torch.tensor([1.0, 0.0, 1.0]), student)
    torch.stack(list(weighted.values())).sum().backward()
    assert student.grad is not None
    assert student.grad[1].abs().max() == 0
    assert student.grad[[0, 2]].abs().min() > 0


def test_ranking_terms_alone_have_their_own_weights(teacher_dir: Path, tmp_path: Path) -> None:
    parts = tiny(teacher_dir)
    rows = parts.texts.select(range(4)).with_format("numpy")

    def terms_of(**weights: list[float]) -> dict[str, float]:
        weighted = rows
        for name, values in weights.items():
            weighted = weighted.add_column(name, values).with_format("numpy")
        weights_of_terms = {"contrastive_weight": 1, "regression_weight": 1, "alignment_weight": 1}
        trainer = parts.trainer(tmp_path, weighted, components=parts.components, **weights_of_terms)
        trainer.model.eval()
        logged: dict[str, float] = {}
        trainer.track_loss_components = logged.update
        with torch.no_grad():
            features = trainer.data_collator([weighted[i] for i in range(4)])
            trainer.compute_loss(trainer.model, features)
        return {name: float(value) for name, value in logged.items()}

    plain = terms_of()
    alone = terms_of(weight_ranking=[0.5] * 4)
    assert alone["alignment"] == pytest.approx(plain["alignment"])
    assert alone["contrastive"] == pytest.approx(plain["contrastive"] / 2)
    assert alone["regression"] == pytest.approx(plain["regression"] / 2)
    both = terms_of(weight=[2.0] * 4, weight_ranking=[0.5] * 4)
    assert both["alignment"] == pytest.approx(2 * plain["alignment"])
    assert both["contrastive"] == pytest.approx(plain["contrastive"] / 2), "in place of `weight`"


def test_weights_of_the_rows_reach_the_loss(teacher_dir: Path, tmp_path: Path) -> None:
    parts = tiny(teacher_dir)
    weights = [0.5, 0.5, 1.0, 1.0]
    weighted = parts.texts.select(range(4)).add_column("weight", weights).with_format("numpy")
    q, d = (parts.student.encode(list(weighted[name])) for name in ("query", "document"))
    errors = ((q * d).sum(1) - weighted["teacher_score"]) ** 2
    for rows, expected in (
        (weighted.remove_columns("weight"), errors.mean()),
        (weighted, (errors * weights).mean()),
    ):
        trainer = parts.trainer(tmp_path, rows, contrastive_weight=0, regression_weight=1)
        trainer.model.eval()
        with torch.no_grad():
            features = trainer.data_collator([rows[i] for i in range(4)])
            loss = trainer.compute_loss(trainer.model, features).item()
        assert loss == pytest.approx(expected, rel=1e-4)
