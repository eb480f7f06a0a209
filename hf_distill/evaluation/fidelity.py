"""Fidelity: how closely the student's scores follow the teacher's on held-out pairs, as numbers, as
an order and as decisions.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from scipy.stats import kendalltau, norm, rankdata

from hf_distill.errors import InputError
from hf_distill.evaluation.intervals import (
    LEVEL,
    Figure,
    Undefined,
    figure,
    mean,
    undefined,
)


def pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's correlation over the last axis; NaN where one side is constant."""
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    spread = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(spread > 0, (x * y).sum(-1) / spread, np.nan))


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation over the last axis, ties at their mean rank."""
    return pearson(rankdata(x, axis=-1), rankdata(y, axis=-1))


def kendall(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Kendall's tau-b over the last axis (Kendall, 1945, for ties); NaN where one side is
    constant.
    """
    rows = zip(x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1]), strict=True)
    return np.array([kendalltau(a, b).statistic for a, b in rows]).reshape(x.shape[:-1])


def kendall_figure(x: np.ndarray, y: np.ndarray) -> Figure:
    """Kendall's tau-b of (n,) arrays with the jackknife's interval (Arvesen, 1969): in O(n^2) once,
    where a bootstrap would sort anew.

    Memory is bounded by a block of rows. With fewer than three pairs the interval is all of [-1,
    1].
    """
    n = len(x)
    value = float(kendall(x, y))
    concordance = np.empty(n)
    step = max(1, _CELLS // n)
    for start in range(0, n, step):
        rows = slice(start, start + step)
        concordance[rows] = (np.sign(x[rows, None] - x) * np.sign(y[rows, None] - y)).sum(1)
    untied = []
    for side in (x, y):
        _, place, counts = np.unique(side, return_inverse=True, return_counts=True)
        untied.append(n - counts[place])
    total, (of_x, of_y) = concordance.sum(), untied
    with np.errstate(invalid="ignore", divide="ignore"):
        without = (total - 2 * concordance) / np.sqrt(
            (of_x.sum() - 2 * of_x) * (of_y.sum() - 2 * of_y).astype(np.float64)
        )
    without = without[np.isfinite(without)]  # what is left may be constant
    if len(without) < 3:
        return {"value": value, "low": -1.0, "high": 1.0, "n": n}
    half = float(norm.ppf((1 + LEVEL) / 2) * np.sqrt((len(without) - 1) * without.var()))
    return {"value": value, "low": max(-1.0, value - half), "high": min(1.0, value + half), "n": n}


def mae(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mean absolute error over the last axis."""
    return np.asarray(np.abs(x - y).mean(-1))


def rmse(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Root mean squared error over the last axis."""
    return np.asarray(np.sqrt(np.square(x - y).mean(-1)))


def bias(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mean of `y - x` over the last axis: above 0 where the student scores higher than the
    teacher.
    """
    return np.asarray((y - x).mean(-1))


CORRELATIONS = {"pearson": pearson, "spearman": spearman, "kendall": kendall}
STATISTICS = {**CORRELATIONS, "mae": mae, "rmse": rmse, "bias": bias}
BINS = 10
_CELLS = 2**20


def _constant(teacher: np.ndarray, student: np.ndarray) -> str | None:
    """Why nothing can be correlated, if so."""
    if len(teacher) < 2:
        return "one pair has no correlation"
    for side, scores in (("teacher", teacher), ("student", student)):
        if np.ptp(scores) == 0:
            return f"the {side}'s scores are all equal"
    return None


def _figure_or_reason(
    name: str, teacher: np.ndarray, student: np.ndarray, seed: int
) -> Figure | Undefined:
    reason = _constant(teacher, student) if name in CORRELATIONS else None
    if reason:
        return undefined(len(teacher), reason)
    return (
        kendall_figure(teacher, student)
        if name == "kendall"
        else figure(STATISTICS[name], [teacher, student], seed)
    )


def by_range(teacher: np.ndarray, student: np.ndarray, width: float = 0.1) -> list[dict[str, Any]]:
    """Every statistic in each range of the teacher's score, `width` wide; ranges without pairs are
    left out.

    Scores that do not lie in [-1, 1] are cut into as many ranges between the least and the
    greatest. A correlation that is undefined within a range is None; within a range it is usually
    lower than over all pairs, since much of what varies is cut away.
    """
    rows = []
    first, last = (
        (-1.0, 1.0) if np.abs(teacher).max() <= 1 else (float(teacher.min()), float(teacher.max()))
    )
    edges = np.linspace(first, last, round(2 / width) + 1).round(6).tolist()
    for low, high in pairwise(edges):
        inside = ((teacher >= low) | (low == edges[0])) & ((teacher < high) | (high == edges[-1]))
        if inside.any():
            t, s = teacher[inside], student[inside]
            values = {
                name: None if name in CORRELATIONS and _constant(t, s) else float(statistic(t, s))
                for name, statistic in STATISTICS.items()
            }
            error = float(calibration_error(quantile_bins(s), s - t))
            means = {"teacher_mean": float(t.mean()), "student_mean": float(s.mean())}
            rows.append(
                {
                    "low": low,
                    "high": high,
                    "n": int(inside.sum()),
                    **means,
                    **values,
                    "calibration_error": error,
                }
            )
    return rows


# --- calibration
# -----------------------------------------------------------------------------------------------------


def quantile_bins(scores: np.ndarray, bins: int = BINS) -> np.ndarray:
    """The bin (n,) int64 of each score, where bins hold equally many of them; equal scores share a
    bin, so there may be fewer bins.
    """
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, bins + 1)))
    return np.clip(np.searchsorted(edges, scores, side="right") - 1, 0, max(0, len(edges) - 2))


def calibration_error(bins: np.ndarray, gaps: np.ndarray) -> np.ndarray:
    """Expected calibration error over the last axis: the mean over pairs of |mean gap of its bin|
    (Naeini, Cooper & Hauskrecht, 2015).

    Args:
        bins: (..., n) the bin of each pair.
        gaps: (..., n) student's score minus teacher's.
    """
    sums = [np.abs(np.where(bins == b, gaps, 0.0).sum(-1)) for b in range(int(bins.max()) + 1)]
    return np.asarray(np.sum(sums, axis=0) / gaps.shape[-1])


def calibration(teacher: np.ndarray, student: np.ndarray, seed: int) -> dict[str, Any]:
    """What the teacher says, on average, where the student says a score: the calibration curve and
    its expected error.

    The student's scores are cut into `BINS` bins of equally many pairs (Nguyen & O'Connor, 2015).
    The interval resamples pairs in these bins. The error is never below 0, so that of a perfectly
    calibrated student is above 0 by chance, the more so the fewer pairs.
    """
    bins = quantile_bins(student)
    rows = []
    for b in np.unique(bins):
        t, s = teacher[bins == b], student[bins == b]
        rows.append(
            {
                "low": float(s.min()), "high": float(s.max()), "n": len(s), "student_mean": float(s.mean()),
                "teacher_mean": figure(mean, [t], seed),
            }
        )  # fmt: skip
    return {
        "bins": rows,
        "expected_error": figure(calibration_error, [bins, student - teacher], seed),
    }


# --- decisions
# -------------------------------------------------------------------------------------------------------


def f1(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """F1 of booleans over the last axis; NaN where nothing is true and nothing predicted."""
    below = truth.sum(-1) + predicted.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(below > 0, 2 * (truth & predicted).sum(-1) / below, np.nan))


def roc_auc(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Probability that a true pair outscores a false one, ties half (Hanley & McNeil, 1982), over
    the last axis; else NaN.
    """
    true = truth.sum(-1)
    false = truth.shape[-1] - true
    ranks = np.where(truth, rankdata(scores, axis=-1), 0.0).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((ranks - true * (true + 1) / 2) / (true * false))


def average_precision(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Mean over true pairs of the precision at their score, pairs of equal score taken together,
    over the last axis; else NaN.
    """
    order = np.argsort(-scores, axis=-1)
    hits, ordered = np.take_along_axis(truth, order, -1), np.take_along_axis(scores, order, -1)
    n = scores.shape[-1]
    ends = np.concatenate(
        [ordered[..., 1:] != ordered[..., :-1], np.ones((*scores.shape[:-1], 1), dtype=bool)],
        axis=-1,
    )
    # The place where a pair's run of equal scores ends.
    last = np.flip(np.minimum.accumulate(np.flip(np.where(ends, np.arange(n), n), -1), -1), -1)
    precision = np.take_along_axis(hits.cumsum(-1), last, -1) / (last + 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(hits, precision, 0.0).sum(-1) / hits.sum(-1))


THRESHOLDS = {"median": 0.5, "80th percentile": 0.8}
"""Where the teacher's scores are cut, as quantiles: the paper's F1, and what the paper selects for
training.
"""


def decisions(teacher: np.ndarray, student: np.ndarray, seed: int) -> dict[str, Any]:
    """The student as a classifier of "the teacher scores this pair at or above a threshold", at
    each of `THRESHOLDS`.

    F1 cuts the student at the teacher's threshold, so it asks for calibration too; ROC-AUC and
    average precision ask for the order only. Average precision is to be compared with the share of
    positives, which a random order has.
    """
    result = {}
    for name, quantile in THRESHOLDS.items():
        threshold = float(np.quantile(teacher, quantile))
        truth = teacher >= threshold
        row: dict[str, Any] = {
            "threshold": threshold,
            "positives": int(truth.sum()),
            "n": len(truth),
        }
        if truth.all():
            reason = f"every teacher score reaches the threshold {threshold:.4f}"
            result[name] = {
                **row,
                **{
                    key: undefined(len(truth), reason)
                    for key in ("f1", "roc_auc", "average_precision")
                },
            }
            continue
        flat = _constant(teacher, student)
        result[name] = {
            **row,
            "f1": figure(f1, [truth, student >= threshold], seed),
            "roc_auc": undefined(len(truth), flat)
            if flat
            else figure(roc_auc, [truth, student], seed),
            "average_precision": undefined(len(truth), flat)
            if flat
            else figure(average_precision, [truth, student], seed),
        }
    return result


def fidelity(teacher: np.ndarray, student: np.ndarray, seed: int) -> dict[str, Any]:
    """Every statistic with its interval, by range of the teacher's score, calibration, and
    decisions at thresholds of the teacher.

    Args:
        teacher: (n,) teacher scores of held-out pairs.
        student: (n,) student cosines of the same pairs.
        seed: Seeds the bootstrap.

    Raises:
        InputError: No pair, or scores that are not finite.
    """
    if not len(teacher) or len(teacher) != len(student):
        raise InputError(
            f"{len(teacher)} teacher scores and {len(student)} student scores: fidelity needs one of each for every pair"
        )
    bad = int((~np.isfinite(teacher)).sum()), int((~np.isfinite(student)).sum())
    if any(bad):
        raise InputError(
            f"{bad[0]} teacher scores and {bad[1]} student scores are NaN or infinite; leave those pairs out and say how many"
        )
    return {
        "num_pairs": len(teacher),
        **{name: _figure_or_reason(name, teacher, student, seed) for name in STATISTICS},
        "by_range": by_range(teacher, student),
        "calibration": calibration(teacher, student, seed),
        "decisions": decisions(teacher, student, seed),
    }
