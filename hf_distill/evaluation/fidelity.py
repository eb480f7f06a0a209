"""Fidelity: how closely the student's scores follow the teacher's on held-out pairs."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from scipy.stats import rankdata

from hf_distill.evaluation.intervals import Figure, figure


def pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's correlation over the last axis; NaN where one side is constant."""
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    spread = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(spread > 0, (x * y).sum(-1) / spread, np.nan))


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation over the last axis, ties at their mean rank."""
    return pearson(rankdata(x, axis=-1), rankdata(y, axis=-1))


def mae(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mean absolute error over the last axis."""
    return np.asarray(np.abs(x - y).mean(-1))


def rmse(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Root mean squared error over the last axis."""
    return np.asarray(np.sqrt(np.square(x - y).mean(-1)))


def bias(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mean of `y - x` over the last axis: above 0 where the student scores higher than the teacher."""
    return np.asarray((y - x).mean(-1))


STATISTICS = {"pearson": pearson, "spearman": spearman, "mae": mae, "rmse": rmse, "bias": bias}


def _figure_or_reason(name: str, teacher: np.ndarray, student: np.ndarray, seed: int) -> Figure | dict[str, Any]:
    if name in ("pearson", "spearman") and (np.ptp(teacher) == 0 or np.ptp(student) == 0):
        side = "teacher" if np.ptp(teacher) == 0 else "student"
        return {"value": None, "low": None, "high": None, "n": len(teacher), "undefined": f"the {side}'s scores are all equal"}
    return figure(STATISTICS[name], [teacher, student], seed)


def by_range(teacher: np.ndarray, student: np.ndarray, width: float = 0.1) -> list[dict[str, Any]]:
    """The errors in each range of the teacher's score, `width` wide; ranges without pairs are left out.

    Scores that do not lie in [-1, 1] are cut into as many ranges between the least and the greatest.
    """
    rows = []
    first, last = (-1.0, 1.0) if np.abs(teacher).max() <= 1 else (float(teacher.min()), float(teacher.max()))
    edges = np.linspace(first, last, round(2 / width) + 1).round(6).tolist()
    for low, high in pairwise(edges):
        inside = ((teacher >= low) | (low == edges[0])) & ((teacher < high) | (high == edges[-1]))
        if inside.any():
            t, s = teacher[inside], student[inside]
            rows.append(
                {
                    "low": low, "high": high, "n": int(inside.sum()), "teacher_mean": float(t.mean()),
                    "student_mean": float(s.mean()), "mae": float(mae(t, s)), "rmse": float(rmse(t, s)),
                }
            )  # fmt: skip
    return rows


def fidelity(teacher: np.ndarray, student: np.ndarray, seed: int) -> dict[str, Any]:
    """Every statistic with its interval, and the errors by range of the teacher's score.

    Args:
        teacher: (n,) teacher scores of held-out pairs.
        student: (n,) student cosines of the same pairs.
        seed: Seeds the bootstrap.
    """
    figures = {name: _figure_or_reason(name, teacher, student, seed) for name in STATISTICS}
    return {"num_pairs": len(teacher), **figures, "by_range": by_range(teacher, student)}
