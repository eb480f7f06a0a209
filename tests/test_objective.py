"""Hand-computed values, the paper's formula, what is left out, and gradients."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_distill.training.collator import InBatch
from hf_distill.training.terms import (
    HUBER_DELTA,
    Weights,
    alignment,
    contrastive,
    distribution,
    hybrid,
    margin,
    regression,
    truncate,
)

S = torch.tensor([[0.9, 0.1, 0.3], [0.2, 0.8, 0.0], [0.5, 0.4, 0.7]], dtype=torch.float64)
T = torch.tensor([[0.8, 0.2, 0.1], [0.1, 0.9, 0.3], [0.6, 0.2, 0.5]], dtype=torch.float64)
POSITIVES = torch.arange(3)
NONE = torch.zeros(3, 3, dtype=torch.bool)


def batch(teacher: Tensor = T, ignore: Tensor = NONE) -> InBatch:
    return InBatch(teacher, POSITIVES, ignore)


def test_contrastive_by_hand() -> None:
    by_hand = (
        -sum(
            math.log(math.exp(S[i, i] / 0.5) / sum(math.exp(S[i, j] / 0.5) for j in range(3)))
            for i in range(3)
        )
        / 3
    )
    assert contrastive(S, POSITIVES, NONE, 0.5).item() == pytest.approx(by_hand)


def test_symmetric_contrastive_is_the_mean_of_rows_and_columns() -> None:
    ignore = NONE.clone()
    ignore[2, 0] = True  # in the reverse matrix: document 2 against query 0
    terms = hybrid(
        S,
        batch(),
        Weights(contrastive=2, regression=0, temperature=0.5),
        reverse=(S.T, batch(T.T, ignore)),
    )
    rows = contrastive(S, POSITIVES, NONE, 0.5).item()
    columns = [math.exp(S[i, j] / 0.5) for j in range(3) for i in range(3)]
    sums = [sum(columns[0:3]), sum(columns[3:6]), sum(columns[7:9])]
    by_hand = -sum(math.log(math.exp(S[j, j] / 0.5) / sums[j]) for j in range(3)) / 3
    assert terms["contrastive"].item() == pytest.approx(2 * (rows + by_hand) / 2)


def test_truncated_embeddings_have_unit_length() -> None:
    embeddings = torch.tensor([[0.6, 0.0, 0.8], [0.0, -1.0, 0.0]])
    assert truncate(embeddings, 3) is embeddings
    assert truncate(embeddings, 2).tolist() == [[1.0, 0.0], [0.0, -1.0]]


def test_ignored_cells_are_no_negatives() -> None:
    ignore = NONE.clone()
    ignore[0, 2] = True
    row = -math.log(math.exp(0.9 / 0.5) / (math.exp(0.9 / 0.5) + math.exp(0.1 / 0.5)))
    assert contrastive(S[:1], POSITIVES[:1], ignore[:1], 0.5).item() == pytest.approx(row)


def test_regression_by_hand() -> None:
    assert regression(S, T, POSITIVES, "diagonal").item() == pytest.approx(
        (0.1**2 + 0.1**2 + 0.2**2) / 3
    )
    assert regression(S, T, POSITIVES, "matrix").item() == pytest.approx(
        ((S - T) ** 2).mean().item()
    )


def test_other_errors_of_the_regression_by_hand() -> None:
    assert regression(S, T, POSITIVES, "diagonal", "mae").item() == pytest.approx(
        (0.1 + 0.1 + 0.2) / 3
    )
    huber = (2 * 0.5 * 0.1**2 + HUBER_DELTA * (0.2 - HUBER_DELTA / 2)) / 3
    assert regression(S, T, POSITIVES, "diagonal", "huber").item() == pytest.approx(huber)


def test_margin_by_hand_and_over_known_cells() -> None:
    cells = {
        (i, j): ((S[i, i] - S[i, j]) - (T[i, i] - T[i, j])) ** 2
        for i in range(3)
        for j in range(3)
        if i != j
    }
    assert margin(S, T, POSITIVES).item() == pytest.approx((sum(cells.values()) / 6).item())
    teacher = T.clone()
    teacher[0, 0] = teacher[1, 2] = math.nan  # row 0 has no margins, row 1 has one
    left = [cells[1, 0], cells[2, 0], cells[2, 1]]
    assert margin(S, teacher, POSITIVES).item() == pytest.approx((sum(left) / 3).item())
    assert margin(S, torch.full_like(S, math.nan), POSITIVES).item() == 0


def test_the_teacher_may_have_a_temperature_of_its_own() -> None:
    p, q = (T / 0.2).softmax(1), (S / 0.5).softmax(1)
    assert distribution(S, T, 0.5, 0.2).item() == pytest.approx(
        (p * (p / q).log()).sum(1).mean().item()
    )


def test_weights_move_towards_others() -> None:
    moved = Weights(contrastive=0.0, alignment=10.0, regression=0.5).towards(
        {"contrastive": 1.0, "alignment": 2.0}, 0.25
    )
    assert (moved.contrastive, moved.alignment, moved.regression) == (0.25, 8.0, 0.5)


def test_unknown_cells_are_left_out() -> None:
    teacher = T.clone()
    teacher[0, 1] = teacher[2, 2] = math.nan
    known = ~teacher.isnan()
    assert regression(S, teacher, POSITIVES, "matrix").item() == pytest.approx(
        ((S - T)[known] ** 2).mean().item()
    )
    assert regression(S, teacher, POSITIVES, "diagonal").item() == pytest.approx(
        (0.1**2 + 0.1**2) / 2
    )
    assert regression(S, torch.full_like(S, math.nan), POSITIVES, "matrix").item() == 0


def test_distribution_by_hand_and_over_known_cells() -> None:
    p, q = (T / 0.5).softmax(1), (S / 0.5).softmax(1)
    assert distribution(S, T, 0.5).item() == pytest.approx((p * (p / q).log()).sum(1).mean().item())
    teacher = T.clone()
    teacher[0, 1] = math.nan
    teacher[1, 1:] = math.nan  # one known cell: no distribution
    p0, q0 = (T[0, [0, 2]] / 0.5).softmax(0), (S[0, [0, 2]] / 0.5).softmax(0)
    rows = [(p0 * (p0 / q0).log()).sum(), (p[2] * (p[2] / q[2]).log()).sum()]
    assert distribution(S, teacher, 0.5).item() == pytest.approx((sum(rows) / 2).item())
    assert distribution(S, S, 0.5).item() == pytest.approx(0, abs=1e-12)


def test_alignment_by_hand() -> None:
    assert alignment(
        torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    ).item() == pytest.approx(1 - (1 + 1 / math.sqrt(2)) / 2)


def test_the_papers_objective_is_its_formula() -> None:
    """InfoNCE at temperature .1 + .1 x MSE(diagonal, teacher score), written out with plain
    loops.
    """
    info_nce = (
        sum(
            -S[i, i] / 0.1 + math.log(sum(math.exp(S[i, j] / 0.1) for j in range(3)))
            for i in range(3)
        )
        / 3
    )
    mse = sum((S[i, i] - T[i, i]) ** 2 for i in range(3)) / 3
    terms = hybrid(
        S,
        batch(),
        Weights(contrastive=1.0, regression=0.1, regression_on="diagonal", temperature=0.1),
    )
    assert set(terms) == {"contrastive", "regression"}
    assert sum(terms.values()).item() == pytest.approx((info_nce + 0.1 * mse).item())


def test_a_term_without_weight_is_not_computed() -> None:
    unknown = torch.full_like(S, math.nan)
    assert set(hybrid(S, batch(unknown), Weights(regression=0))) == {"contrastive"}


def test_shapes_that_do_not_fit_are_said() -> None:
    with pytest.raises(ValueError, match=r"student's matrix is \(3, 3\), the teacher's \(3, 2\)"):
        hybrid(S, batch(T[:, :2]), Weights())
    with pytest.raises(ValueError, match="alignment term needs"):
        hybrid(S, batch(), Weights(alignment=1))


def test_gradients_of_every_term_with_unknown_and_ignored_cells() -> None:
    torch.manual_seed(0)
    queries, documents = (
        torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    teacher = torch.rand(4, 4, dtype=torch.float64)
    teacher[0, 1] = teacher[3, 0] = math.nan
    ignore = torch.zeros(4, 4, dtype=torch.bool)
    ignore[1, 2] = True
    targets = torch.randn(8, 3, dtype=torch.float64)
    weights = Weights(
        contrastive=1,
        regression=2,
        regression_on="matrix",
        distribution=0.5,
        margin=0.7,
        alignment=3,
        temperature=0.3,
        teacher_temperature=0.2,
    )

    def loss(q: Tensor, d: Tensor) -> Tensor:
        matrix = F.normalize(q, dim=1) @ F.normalize(d, dim=1).T
        terms = hybrid(
            matrix, InBatch(teacher, torch.arange(4), ignore), weights, torch.cat([q, d]), targets
        )
        return torch.stack(list(terms.values())).sum()

    assert torch.autograd.gradcheck(loss, (queries, documents))
