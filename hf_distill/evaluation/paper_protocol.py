"""The paper's own protocol, kept to compare with its published figures. It ranks pairs; that is not
retrieval.

A pair's score is the student's cosine of its query and its document; the teacher's score of the
pair is the reference.
"""

from __future__ import annotations

import numpy as np

from hf_distill.evaluation.fidelity import f1, is_flat, mae, pearson
from hf_distill.evaluation.results import PaperFigures, PaperProtocol
from hf_distill.evaluation.significance import is_constant, t_test, wilcoxon

CUTOFFS = (1, 5, 10, 50, 100)

PUBLISHED = PaperFigures(
    pearson=0.3531,
    mae=0.1454,
    recall={1: 1.0, 10: 0.400},
    ndcg={10: 0.7347},
    f1=0.6672,
    cohens_d=-3.623,
)
"""What the paper reports for its student, measured on the pairs that it was trained on."""


def top_pairs(scores: np.ndarray, k: int) -> np.ndarray:
    """Indices of the `k` highest scores, descending; ties by position."""
    return np.argsort(-scores, kind="stable")[:k]


def recall_at(teacher: np.ndarray, student: np.ndarray, k: int) -> float:
    """Share of the teacher's top `k` pairs that are among the student's top `k`."""
    return len(set(top_pairs(teacher, k)) & set(top_pairs(student, k))) / k


def ndcg_at(teacher: np.ndarray, student: np.ndarray, k: int) -> float | None:
    """DCG of the student's top `k` pairs with the teacher's scores as gains, over that of the
    teacher's own top `k`.

    (Jarvelin & Kekalainen, 2002, linear gains. The paper does not print its formula.) None if the
    best gain is not above 0, as can happen with logits.
    """
    discounts = 1 / np.log2(np.arange(2, k + 2))
    best = float((teacher[top_pairs(teacher, k)] * discounts).sum())
    return float((teacher[top_pairs(student, k)] * discounts).sum()) / best if best > 0 else None


def f1_at_median(teacher: np.ndarray, student: np.ndarray) -> float:
    """F1 of the student's scores as a classifier of the teacher's, both cut at the teacher's median
    score.
    """
    cut = float(np.median(teacher))
    return float(f1(teacher >= cut, student >= cut))


def cohens_d(teacher: np.ndarray, student: np.ndarray) -> float | None:
    """(mean teacher - mean student) / pooled standard deviation (Cohen, 1988). None with fewer than
    two pairs, or if both are constant.
    """
    if len(teacher) < 2:
        return None
    pooled = np.sqrt((teacher.var(ddof=1) + student.var(ddof=1)) / 2)
    return float((teacher.mean() - student.mean()) / pooled) if pooled > 0 else None


def paper_protocol(teacher: np.ndarray, student: np.ndarray) -> PaperProtocol:
    """The paper's table on held-out pairs, beside what it published.

    Args:
        teacher: (n,) teacher scores.
        student: (n,) student cosines.

    Returns:
        The table. Scores that are all equal rank nothing: recall and nDCG are then None.
    """
    correlation = float(pearson(teacher, student))
    sides = (("teacher", teacher), ("student", student))
    flat = next((name for name, scores in sides if is_flat(scores)), None)
    cutoffs = [k for k in CUTOFFS if k <= len(teacher)]
    differences = teacher - student
    t = t_test(differences)
    return PaperProtocol(
        num_pairs=len(teacher),
        unranked=f"the {flat}'s scores are all equal" if flat else None,
        student=PaperFigures(
            pearson=None if flat or not np.isfinite(correlation) else correlation,
            mae=float(mae(teacher, student)),
            recall={k: None if flat else recall_at(teacher, student, k) for k in cutoffs},
            ndcg={k: None if flat else ndcg_at(teacher, student, k) for k in cutoffs},
            f1=f1_at_median(teacher, student),
            cohens_d=cohens_d(teacher, student),
        ),
        published=PUBLISHED,
        median=float(np.median(teacher)),
        paired_t_test=t,
        wilcoxon=t if is_constant(differences) else wilcoxon(differences),
        teacher_mean=float(teacher.mean()),
        student_mean=float(student.mean()),
    )
