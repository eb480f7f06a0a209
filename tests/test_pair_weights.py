"""Pairs that weigh less or more, from the selection to the loss."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from conftest import sentences
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments

from hf_distill.run.folder import RunFolder
from hf_distill.selection.rules import parse_rules
from hf_distill.selection.select import select_pairs
from hf_distill.training.collator import InBatch
from hf_distill.training.terms import (
    TERMS,
    Weights,
    alignment,
    contrastive,
    hybrid,
    regression,
)
from hf_distill.training.train import training_rows
from hf_distill.training.trainer import DistillationTrainer

S = torch.tensor([[0.9, 0.1, 0.3], [0.2, 0.8, 0.0], [0.5, 0.4, 0.7]], dtype=torch.float64)
T = torch.tensor([[0.8, 0.2, 0.1], [0.1, 0.9, 0.3], [0.6, 0.2, 0.5]], dtype=torch.float64)
POSITIVES, NONE = torch.arange(3), torch.zeros(3, 3, dtype=torch.bool)
EVERY = Weights(
    contrastive=1, regression=1, regression_on="matrix", distribution=1, margin=1, alignment=1
)


def terms(weight: torch.Tensor | None, student: torch.Tensor = S) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    texts, targets = (
        torch.randn(9, 4, generator=generator, dtype=torch.float64) for _ in range(2)
    )  # three pairs, a negative each
    return hybrid(student, InBatch(T, POSITIVES, NONE, weight), EVERY, texts, targets)


def test_by_hand() -> None:
    weight = torch.tensor([1.0, 0.5, 0.0])
    rows = [
        -math.log(math.exp(S[i, i] / 0.5) / sum(math.exp(S[i, j] / 0.5) for j in range(3)))
        for i in range(3)
    ]
    assert contrastive(S, POSITIVES, NONE, 0.5, weight).item() == pytest.approx(
        (rows[0] + 0.5 * rows[1]) / 3
    )
    assert regression(S, T, POSITIVES, "diagonal", weight=weight).item() == pytest.approx(
        (0.1**2 + 0.5 * 0.1**2) / 3
    )
    texts = torch.eye(3, dtype=torch.float64).repeat(
        2, 1
    )  # three queries and three documents, each at right angles to its target
    assert alignment(texts, texts.roll(1, 1), weight).item() == pytest.approx((1 + 0.5 + 0) * 2 / 6)


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


def test_weights_reach_the_loss(teacher_dir: Path, tmp_path: Path) -> None:
    pairs = Dataset.from_dict(
        {
            "pair_id": [str(i) for i in range(4)], "query": sentences(4), "document": sentences(4, 100),
            "teacher_score": [0.1, 0.2, 0.3, 0.4],
        }
    )  # fmt: skip
    folder = RunFolder(tmp_path / "run")
    plain = training_rows(select_pairs(pairs, [], 0, folder, "scores").selected, None)
    weighted = training_rows(
        select_pairs(
            pairs, parse_rules(["threshold=0.25:weight=0.5"]), 0, folder, "scores"
        ).selected,
        None,
    )
    assert "weight" not in plain.features
    assert list(weighted["weight"]) == [0.5, 0.5, 1.0, 1.0]
    model = SentenceTransformer(str(teacher_dir), device="cpu")
    args = SentenceTransformerTrainingArguments(str(tmp_path / "out"), use_cpu=True, report_to=[])

    def loss(rows: Dataset) -> float:
        only = Weights(contrastive=0, regression=1)
        trainer = DistillationTrainer(model=model, args=args, train_dataset=rows, weights=only)
        model.eval()
        with torch.no_grad():
            return float(
                trainer.compute_loss(
                    trainer.model, trainer.data_collator([rows[i] for i in range(4)])
                )
            )

    cosines = (model.encode(pairs["query"][:]) * model.encode(pairs["document"][:])).sum(1)
    errors = (cosines - [0.1, 0.2, 0.3, 0.4]) ** 2
    assert loss(plain) == pytest.approx(errors.mean(), rel=1e-4)
    assert loss(weighted) == pytest.approx((errors * [0.5, 0.5, 1, 1]).mean(), rel=1e-4)
