"""Terms: hand-computed values, the paper's formula, what is left out, gradients, and terms of one's
own.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_distill.errors import InputError
from hf_distill.recipe.config import DistillationConfig
from hf_distill.training import terms as module
from hf_distill.training.in_batch import InBatch, Matrices, truncate
from hf_distill.training.terms import (
    TERMS,
    alignment,
    contrastive,
    kl,
    list_kl,
    list_margin,
    margin,
    parse_terms,
    regression,
    spread_out,
    weighted_terms,
)

S = torch.tensor([[0.9, 0.1, 0.3], [0.2, 0.8, 0.0], [0.5, 0.4, 0.7]], dtype=torch.float64)
T = torch.tensor([[0.8, 0.2, 0.1], [0.1, 0.9, 0.3], [0.6, 0.2, 0.5]], dtype=torch.float64)
NONE = torch.zeros(3, 3, dtype=torch.bool)
NO_TEXTS = torch.zeros(0, 2)


def config(**options: Any) -> DistillationConfig:
    """With no term but those named."""
    weights = {f"{name}_weight": 0.0 for name in TERMS}
    return DistillationConfig("unused", use_cpu=True, **{**weights, "temperature": 0.5, **options})


def batch(student: Tensor = S, teacher: Tensor = T, ignore: Tensor = NONE, **more: Any) -> InBatch:
    own = torch.arange(len(student))
    values = {"texts": NO_TEXTS, **more}
    return InBatch(student=student, teacher=teacher, positives=own, ignore=ignore, **values)


def objective(of: InBatch, **options: Any) -> dict[str, Tensor]:
    settings = config(**options)
    return weighted_terms([of], parse_terms(settings), settings)


PLAIN = config()


def test_contrastive_by_hand() -> None:
    by_hand = (
        -sum(
            math.log(math.exp(S[i, i] / 0.5) / sum(math.exp(S[i, j] / 0.5) for j in range(3)))
            for i in range(3)
        )
        / 3
    )
    assert contrastive(batch(), PLAIN).item() == pytest.approx(by_hand)


def test_symmetric_contrastive_is_the_mean_of_rows_and_columns() -> None:
    ignore = NONE.clone()
    ignore[2, 0] = True  # in the reverse matrix: document 2 against query 0
    reverse = Matrices(student=S.T, teacher=T.T, positives=torch.arange(3), ignore=ignore)
    both = contrastive(batch(reverse=reverse), PLAIN).item()
    columns = [math.exp(S[i, j] / 0.5) for j in range(3) for i in range(3)]
    sums = [sum(columns[0:3]), sum(columns[3:6]), sum(columns[7:9])]
    by_hand = -sum(math.log(math.exp(S[j, j] / 0.5) / sums[j]) for j in range(3)) / 3
    assert both == pytest.approx((contrastive(batch(), PLAIN).item() + by_hand) / 2)


def test_truncated_embeddings_have_unit_length() -> None:
    embeddings = torch.tensor([[0.6, 0.0, 0.8], [0.0, -1.0, 0.0]])
    assert truncate(embeddings, 3) is embeddings
    assert truncate(embeddings, 2).tolist() == [[1.0, 0.0], [0.0, -1.0]]


def test_ignored_cells_are_not_negatives() -> None:
    ignore = NONE.clone()
    ignore[0, 2] = True
    row = -math.log(math.exp(0.9 / 0.5) / (math.exp(0.9 / 0.5) + math.exp(0.1 / 0.5)))
    first = batch(S[:1], T[:1], ignore[:1])
    assert contrastive(first, PLAIN).item() == pytest.approx(row)


def test_regression_by_hand() -> None:
    assert regression(batch(), PLAIN).item() == pytest.approx((0.1**2 + 0.1**2 + 0.2**2) / 3)
    matrix = regression(batch(), config(regression_on="matrix")).item()
    assert matrix == pytest.approx(((S - T) ** 2).mean().item())


def test_margin_by_hand_and_over_known_cells() -> None:
    cells = {
        (i, j): ((S[i, i] - S[i, j]) - (T[i, i] - T[i, j])) ** 2
        for i in range(3)
        for j in range(3)
        if i != j
    }
    assert margin(batch(), PLAIN).item() == pytest.approx((sum(cells.values()) / 6).item())
    teacher = T.clone()
    teacher[0, 0] = teacher[1, 2] = math.nan  # row 0 has no margins, row 1 has one
    left = [cells[1, 0], cells[2, 0], cells[2, 1]]
    assert margin(batch(S, teacher), PLAIN).item() == pytest.approx((sum(left) / 3).item())
    assert margin(batch(S, torch.full_like(S, math.nan)), PLAIN).item() == 0


def test_the_teacher_can_have_a_temperature_of_its_own() -> None:
    p, q = (T / 0.2).softmax(1), (S / 0.5).softmax(1)
    assert kl(batch(), config(teacher_temperature=0.2)).item() == pytest.approx(
        (p * (p / q).log()).sum(1).mean().item()
    )


def test_unknown_cells_are_left_out() -> None:
    teacher = T.clone()
    teacher[0, 1] = teacher[2, 2] = math.nan
    known = ~teacher.isnan()
    matrix = config(regression_on="matrix")
    assert regression(batch(S, teacher), matrix).item() == pytest.approx(
        ((S - T)[known] ** 2).mean().item()
    )
    assert regression(batch(S, teacher), PLAIN).item() == pytest.approx((0.1**2 + 0.1**2) / 2)
    assert regression(batch(S, torch.full_like(S, math.nan)), matrix).item() == 0


def test_kl_by_hand_and_over_known_cells() -> None:
    p, q = (T / 0.5).softmax(1), (S / 0.5).softmax(1)
    assert kl(batch(), PLAIN).item() == pytest.approx((p * (p / q).log()).sum(1).mean().item())
    teacher = T.clone()
    teacher[0, 1] = math.nan
    teacher[1, 1:] = math.nan  # one known cell: no distribution
    p0, q0 = (T[0, [0, 2]] / 0.5).softmax(0), (S[0, [0, 2]] / 0.5).softmax(0)
    rows = [(p0 * (p0 / q0).log()).sum(), (p[2] * (p[2] / q[2]).log()).sum()]
    assert kl(batch(S, teacher), PLAIN).item() == pytest.approx((sum(rows) / 2).item())
    assert kl(batch(S, S), PLAIN).item() == pytest.approx(0, abs=1e-12)


NAN = math.nan
LISTED = torch.tensor([[0, 2], [1, 0], [2, 1]])
RANKER = torch.tensor([[4.0, 1.0], [-1.0, 2.0], [0.5, NAN]], dtype=torch.float64)


def test_the_terms_over_lists_by_hand() -> None:
    """Student's lists: .9 and .3, .8 and .2, .7 and .4. The last ranker's score is unknown."""
    of = batch(listed=LISTED, ranker=RANKER)
    settings = config(temperature=0.5, ranker_temperature=2.0)

    def divergence(student: tuple[float, float], ranker: tuple[float, float]) -> float:
        p = [math.exp(x / 2.0) for x in ranker]
        q = [math.exp(x / 0.5) for x in student]
        return sum(
            a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q, strict=True)
        )

    by_hand = (divergence((0.9, 0.3), (4, 1)) + divergence((0.8, 0.2), (-1, 2))) / 2
    assert list_kl(of, settings).item() == pytest.approx(by_hand)
    # A ranker's margin of 3 is one of 3 * .5 / 2 for the student.
    margins = ((0.6 - 0.75) ** 2 + (0.6 + 0.75) ** 2 + 0) / 3
    assert list_margin(of, settings).item() == pytest.approx(margins)
    weighted = batch(listed=LISTED, ranker=RANKER, weight=torch.tensor([2.0, 0.0, 1.0]))
    assert list_margin(weighted, settings).item() == pytest.approx(2 * (0.6 - 0.75) ** 2 / 3)


def test_the_terms_over_lists_have_one_optimum() -> None:
    ranker = torch.tensor([[3.0, -1.0, 0.5]], dtype=torch.float64)
    settings = config(temperature=0.1, ranker_temperature=2.0)
    student = (0.1 / 2.0) * ranker + 0.3
    of = InBatch(
        student=student, teacher=student, positives=torch.tensor([0]), texts=NO_TEXTS,
        ignore=torch.zeros(1, 3, dtype=torch.bool), listed=torch.tensor([[0, 1, 2]]), ranker=ranker,
    )  # fmt: skip
    assert list_kl(of, settings).item() == pytest.approx(0, abs=1e-12)
    assert list_margin(of, settings).item() == pytest.approx(0, abs=1e-12)


def test_a_term_over_lists_needs_lists() -> None:
    with pytest.raises(InputError, match="--list_kl_weight: the training rows have no hard neg"):
        list_kl(batch(), config())


def test_spread_out_by_hand() -> None:
    texts = torch.zeros(0, 4)  # four dimensions: random cosines have a mean square of 1/4
    ignore = NONE.clone()
    ignore[2, 0] = True
    student = S.clone()
    student[2, 1] = 0.6
    rows = [
        (0.2**2, 0),  # .1 and .3: their mean square is below 1/4
        (0.1**2, 0),
        (0.6**2, 0.6**2 - 1 / 4),
    ]
    by_hand = sum(mean + excess for mean, excess in rows) / 3
    assert spread_out(batch(student, ignore=ignore, texts=texts), PLAIN).item() == pytest.approx(
        by_hand
    )
    weight = torch.tensor([1.0, 1.0, 0.0])
    weighed = spread_out(batch(student, ignore=ignore, texts=texts, weight=weight), PLAIN).item()
    assert weighed == pytest.approx((0.2**2 + 0.1**2) / 3), "the mean stays over all rows"
    assert spread_out(batch(S[:1, :1], T[:1, :1], NONE[:1, :1], texts=texts), PLAIN).item() == 0


def test_alignment_by_hand() -> None:
    texts = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    targets = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    aligned = alignment(batch(texts=texts, targets=targets), PLAIN).item()
    assert aligned == pytest.approx(1 - (1 + 1 / math.sqrt(2)) / 2)


def test_alignment_without_targets_or_with_other_dimensions_is_said() -> None:
    with pytest.raises(InputError, match=r"--alignment_weight 3.* no teacher embeddings"):
        objective(batch(), alignment_weight=3)
    with pytest.raises(InputError, match=r"--alignment_weight 3.*\(4, 2\).*\(4, 8\)"):
        objective(batch(texts=torch.ones(4, 2), targets=torch.ones(4, 8)), alignment_weight=3)


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
    default = DistillationConfig("unused", use_cpu=True)
    values = weighted_terms([batch()], parse_terms(default), default)
    assert set(values) == {"contrastive", "regression"}
    assert sum(values.values()).item() == pytest.approx((info_nce + 0.1 * mse).item())


def test_matrices_of_different_shapes_are_said() -> None:
    with pytest.raises(ValueError, match=r"student's matrix is \(3, 3\), the teacher's \(3, 2\)"):
        batch(S, T[:, :2])


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
    listed = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0]])
    ranker = torch.randn(4, 2, dtype=torch.float64)
    ranker[2, 1] = math.nan
    weights = {f"{name}_weight": 0.5 + i for i, name in enumerate(TERMS)}
    settings = {"temperature": 0.3, "teacher_temperature": 0.2, "regression_on": "matrix"}

    def loss(q: Tensor, d: Tensor) -> Tensor:
        matrix = F.normalize(q, dim=1) @ F.normalize(d, dim=1).T
        of = batch(
            matrix, teacher, ignore, texts=torch.cat([q, d]), targets=targets, listed=listed,
            ranker=ranker,
        )  # fmt: skip
        return torch.stack(list(objective(of, **weights, **settings).values())).sum()

    assert torch.autograd.gradcheck(loss, (queries, documents))


def test_every_weight_of_the_config_has_a_function_and_a_term_of_weight_zero_is_not_used() -> None:
    assert TERMS == (
        "contrastive", "regression", "kl", "margin", "list_kl", "list_margin", "alignment",
        "spread_out",
    )  # fmt: skip
    every = parse_terms(config(**{f"{name}_weight": i + 1 for i, name in enumerate(TERMS)}))
    assert every == {name: (i + 1, getattr(module, name)) for i, name in enumerate(TERMS)}
    assert set(parse_terms(config(kl_weight=0.5))) == {"kl"}


OWN = '''
"""A term of one's own."""
import torch

def my_spread(batch, config):
    """Global orthogonal regularisation (Zhang et al. 2017, arXiv:1708.06320)."""
    cosines = batch.texts @ batch.texts.T
    other = ~torch.eye(len(cosines), dtype=torch.bool)
    return cosines[other].mean() ** 2 + config.temperature * 0

def row_by_row(batch, config):
    return batch.student.sum(dim=1)

number = 3
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of somebody else."""
    (tmp_path / "my_terms.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return "my_terms"


def test_a_term_of_ones_own_is_one_function_and_one_line_of_the_config(own: str) -> None:
    texts = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    values = objective(batch(texts=texts), terms=[f"{own}:my_spread=2"], contrastive_weight=1)
    assert set(values) == {"contrastive", "my_spread"}
    assert values["my_spread"].item() == pytest.approx(2 * 0.6**2)
    assert set(parse_terms(config(terms=[f"{own}:my_spread=0"], kl_weight=1))) == {"kl"}


def test_a_term_that_is_not_a_scalar_is_said(own: str) -> None:
    with pytest.raises(ValueError, match=r"row_by_row returned a tensor of shape \(3,\)"):
        objective(batch(), terms=[f"{own}:row_by_row=1"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "every weight of the objective is 0"),
        ({"kl_weight": math.nan}, "--kl_weight: the weight 'nan'"),
        ({"kl_weight": -1.0}, "--kl_weight: the weight '-1.0'"),
        ({"terms": ["kl=1"]}, "--terms kl=1"),
        ({"terms": ["my_terms:my_spread"]}, "--terms my_terms:my_spread: it must read"),
        ({"terms": ["my_terms:my_spread=much"]}, "the weight 'much'"),
        ({"terms": ["my_terms:my_spread=-1"]}, "the weight '-1'"),
        ({"terms": ["my_terms:no_such=1"]}, "my_terms has no no_such"),
        ({"terms": ["no_such_module:term=1"]}, "no_such_module cannot be imported"),
        ({"terms": ["my_terms:number=1"]}, "it is a int, not a function"),
        ({"terms": ["hf_distill.training.terms:kl=1"]}, "already a term kl"),
        ({"terms": ["my_terms:my_spread=1"] * 2}, "already a term my_spread"),
    ],
)
def test_terms_that_make_no_sense_are_refused(own: str, options: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse_terms(config(**options))


def test_a_batch_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch().student = S  # type: ignore[misc]
