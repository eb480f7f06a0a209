"""The paper's own protocol, kept so that its published figures stay comparable. It is no retrieval:
it ranks the pairs.

A pair's score is the student's cosine of its query and its document; the teacher's score of the
pair is the reference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import ttest_rel, wilcoxon

from hf_distill.evaluation.fidelity import (
    mae,
    pearson,
)

CUTOFFS = (1, 5, 10, 50, 100)

PUBLISHED = {
    "pearson": 0.3531, "mae": 0.1454, "Recall@1": 1.0, "Recall@10": 0.400, "NDCG@10": 0.7347, "f1": 0.6672, "cohens_d": -3.623,
}  # fmt: skip
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

    (Jarvelin & Kekalainen, 2002, linear gains. The paper does not print its formula.) None where
    the best gain is not above 0, as it may be of logits.
    """
    discounts = 1 / np.log2(np.arange(2, k + 2))
    best = float((teacher[top_pairs(teacher, k)] * discounts).sum())
    return float((teacher[top_pairs(student, k)] * discounts).sum()) / best if best > 0 else None


def f1_at_median(teacher: np.ndarray, student: np.ndarray) -> dict[str, float]:
    """F1 of the student's scores as a classifier of the teacher's, both cut at the teacher's median
    score.
    """
    cut = float(np.median(teacher))
    truth, predicted = teacher >= cut, student >= cut
    hits = int((truth & predicted).sum())
    return {"value": 2 * hits / (int(truth.sum()) + int(predicted.sum())), "threshold": cut}


def cohens_d(teacher: np.ndarray, student: np.ndarray) -> float | None:
    """(mean teacher - mean student) / pooled standard deviation (Cohen, 1988); None if both are
    constant.
    """
    if len(teacher) < 2:
        return None
    pooled = np.sqrt((teacher.var(ddof=1) + student.var(ddof=1)) / 2)
    return float((teacher.mean() - student.mean()) / pooled) if pooled > 0 else None


def _tests(teacher: np.ndarray, student: np.ndarray) -> dict[str, Any]:
    """The paired t-test and Wilcoxon's signed-rank test of teacher against student scores."""
    difference = teacher - student
    if (
        np.ptp(difference) <= 1e-12 * np.abs(difference).max()
    ):  # equal, up to what floats make of equal ones
        same = bool((difference == 0).all())
        p = 1.0 if same else None
        note = {} if same else {"undefined": "every difference is the same, so it has no variance"}
        return {
            name: {"statistic": 0.0 if same else None, "p": p, **note}
            for name in ("paired_t_test", "wilcoxon")
        }
    t, w = ttest_rel(teacher, student), wilcoxon(teacher, student)
    return {
        "paired_t_test": {"statistic": float(t.statistic), "p": float(t.pvalue)},
        "wilcoxon": {"statistic": float(w.statistic), "p": float(w.pvalue)},
    }


def paper_protocol(teacher: np.ndarray, student: np.ndarray) -> dict[str, Any]:
    """The paper's table on held-out pairs, beside what it published.

    Args:
        teacher: (n,) teacher scores.
        student: (n,) student cosines.

    Returns:
        The table; what is undefined is None. Scores that are all equal rank nothing: Recall@K and
        NDCG@K are then None, and `unranked` says why.
    """
    correlation = float(pearson(teacher, student))
    cutoffs = [k for k in CUTOFFS if k <= len(teacher)]
    flat = [
        name for name, scores in (("teacher", teacher), ("student", student)) if np.ptp(scores) == 0
    ]
    return {
        "num_pairs": len(teacher),
        "unranked": f"the {flat[0]}'s scores are all equal" if flat else None,
        "pearson": correlation if np.isfinite(correlation) else None,
        "mae": float(mae(teacher, student)),
        **{f"Recall@{k}": None if flat else recall_at(teacher, student, k) for k in cutoffs},
        **{f"NDCG@{k}": None if flat else ndcg_at(teacher, student, k) for k in cutoffs},
        "f1": f1_at_median(teacher, student),
        **_tests(teacher, student),
        "cohens_d": cohens_d(teacher, student),
        "teacher_mean": float(teacher.mean()),
        "student_mean": float(student.mean()),
        "published": PUBLISHED,
    }
