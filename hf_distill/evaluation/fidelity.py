"""Fidelity: how closely the student's scores follow the teacher's on held-out pairs, as numbers, as
an order and as decisions.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from scipy.stats import kendalltau, norm, rankdata

from hf_distill.errors import InputError
from hf_distill.evaluation.intervals import LEVEL, Statistic, estimate, mean, undefined
from hf_distill.evaluation.results import (
    ByRange,
    Calibration,
    CalibrationBin,
    Decision,
    Estimate,
    Fidelity,
)

BINS = 10
THRESHOLDS = {"median": 0.5, "p80": 0.8}
"""Where the teacher's scores are cut, as quantiles: the paper's F1, and what the paper selects for
training.
"""
ROUNDING = 1e-6
"""Scores that differ by no more than this share of the largest one are constant: their order is
that of rounding.
"""
_CELLS = 2**20


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


def kendall_estimate(x: np.ndarray, y: np.ndarray) -> Estimate:
    """Kendall's tau-b of (n,) arrays with the jackknife's interval (Arvesen, 1969). It takes O(n^2)
    once, where a bootstrap would sort every resample.

    Memory is bounded by a block of rows. With fewer than three pairs the interval is [-1, 1].
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
    without = without[np.isfinite(without)]  # without one pair, the others may be constant
    if len(without) < 3:
        return Estimate(value, -1.0, 1.0, n)
    half = float(norm.ppf((1 + LEVEL) / 2) * np.sqrt((len(without) - 1) * without.var()))
    return Estimate(value, max(-1.0, value - half), min(1.0, value + half), n)


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


def is_flat(scores: np.ndarray) -> bool:
    """Whether `scores` (n,) are all equal, up to rounding."""
    return bool(np.ptp(scores) <= ROUNDING * np.abs(scores).max())


def why_unordered(teacher: np.ndarray, student: np.ndarray) -> str | None:
    """Why these scores have no correlation; None if they have."""
    if len(teacher) < 2:
        return "one pair has no correlation"
    for side, scores in (("teacher", teacher), ("student", student)):
        if is_flat(scores):
            return f"the {side}'s scores are all equal"
    return None


def by_range(teacher: np.ndarray, student: np.ndarray, width: float = 0.1) -> tuple[ByRange, ...]:
    """Every statistic in each range of the teacher's score, `width` wide. Ranges without pairs are
    left out.

    If scores lie outside [-1, 1], as many ranges are cut between the lowest and the highest score.
    Within a range a correlation is usually lower than over all pairs, because the scores vary less.
    """
    rows = []
    first, last = (
        (-1.0, 1.0) if np.abs(teacher).max() <= 1 else (float(teacher.min()), float(teacher.max()))
    )
    edges = np.linspace(first, last, round(2 / width) + 1).round(6).tolist()
    for low, high in pairwise(edges):
        inside = ((teacher >= low) | (low == edges[0])) & ((teacher < high) | (high == edges[-1]))
        if inside.any():
            rows.append(_range_row(low, high, teacher[inside], student[inside]))
    return tuple(rows)


def _range_row(low: float, high: float, teacher: np.ndarray, student: np.ndarray) -> ByRange:
    ordered = why_unordered(teacher, student) is None
    return ByRange(
        low=low,
        high=high,
        n=len(teacher),
        teacher_mean=float(teacher.mean()),
        student_mean=float(student.mean()),
        pearson=float(pearson(teacher, student)) if ordered else None,
        spearman=float(spearman(teacher, student)) if ordered else None,
        kendall=float(kendall(teacher, student)) if ordered else None,
        mae=float(mae(teacher, student)),
        rmse=float(rmse(teacher, student)),
        bias=float(bias(teacher, student)),
        calibration_error=float(calibration_error(quantile_bins(student), student - teacher)),
    )


# --- calibration -------------------------------------------------------------------------------


def quantile_bins(scores: np.ndarray, bins: int = BINS) -> np.ndarray:
    """The bin (n,) int64 of each score. Bins hold equally many scores. Equal scores share a bin, so
    there may be fewer bins.
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


def calibration(teacher: np.ndarray, student: np.ndarray, seed: int) -> Calibration:
    """The teacher's mean score of pairs that the student scores alike: the calibration curve and
    its expected error.

    The student's scores are cut into `BINS` bins of equally many pairs (Nguyen & O'Connor, 2015).
    The interval resamples pairs in these bins. The error is never below 0. Even a perfectly
    calibrated student has an error above 0 by chance, and a larger one if there are fewer pairs.
    """
    bins = quantile_bins(student)
    rows = []
    for b in np.unique(bins):
        t, s = teacher[bins == b], student[bins == b]
        rows.append(
            CalibrationBin(
                low=float(s.min()),
                high=float(s.max()),
                n=len(s),
                student_mean=float(s.mean()),
                teacher_mean=estimate(mean, [t], seed),
            )
        )
    error = estimate(calibration_error, [bins, student - teacher], seed)
    return Calibration(tuple(rows), error)


# --- decisions ---------------------------------------------------------------------------------


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
    """Mean over true pairs of the precision at their score, over the last axis; pairs of equal
    score are taken together. NaN without true pairs.
    """
    order = np.argsort(-scores, axis=-1)
    hits, ordered = np.take_along_axis(truth, order, -1), np.take_along_axis(scores, order, -1)
    n = scores.shape[-1]
    ends = np.concatenate(
        [ordered[..., 1:] != ordered[..., :-1], np.ones((*scores.shape[:-1], 1), dtype=bool)],
        axis=-1,
    )
    # The place at which a pair's run of equal scores ends.
    last = np.flip(np.minimum.accumulate(np.flip(np.where(ends, np.arange(n), n), -1), -1), -1)
    precision = np.take_along_axis(hits.cumsum(-1), last, -1) / (last + 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(hits, precision, 0.0).sum(-1) / hits.sum(-1))


def decide(teacher: np.ndarray, student: np.ndarray, quantile: float, seed: int) -> Decision:
    """The student as a classifier of "the teacher scores this pair at or above its `quantile`".

    F1 cuts the student's scores at the teacher's threshold, so it also depends on calibration.
    ROC-AUC and average precision depend on the order only. Compare average precision with the share
    of positives, which a random order reaches.
    """
    threshold = float(np.quantile(teacher, quantile))
    truth = teacher >= threshold
    everything = (
        f"every teacher score reaches the threshold {threshold:.4f}" if truth.all() else None
    )

    def of(statistic: Statistic, values: np.ndarray, reason: str | None) -> Estimate:
        if reason:
            return undefined(len(truth), reason)
        return estimate(statistic, [truth, values], seed)

    unordered = everything or why_unordered(teacher, student)
    return Decision(
        quantile=quantile,
        threshold=threshold,
        positives=int(truth.sum()),
        n=len(truth),
        f1=of(f1, student >= threshold, everything),
        roc_auc=of(roc_auc, student, unordered),
        average_precision=of(average_precision, student, unordered),
    )


def fidelity(teacher: np.ndarray, student: np.ndarray, seed: int) -> Fidelity:
    """Every statistic with its interval, by range of the teacher's score, as a calibration curve,
    and as decisions at thresholds of the teacher.

    Args:
        teacher: (n,) teacher scores of held-out pairs.
        student: (n,) student cosines of the same pairs.
        seed: Seeds the bootstrap.

    Raises:
        InputError: There is no pair, or a score is not finite.
    """
    if not len(teacher) or len(teacher) != len(student):
        raise InputError(
            f"{len(teacher)} teacher scores and {len(student)} student scores: fidelity needs one "
            "of each for every pair"
        )
    bad = int((~np.isfinite(teacher)).sum()), int((~np.isfinite(student)).sum())
    if any(bad):
        raise InputError(
            f"{bad[0]} teacher scores and {bad[1]} student scores are NaN or infinite; leave out "
            "those pairs, and report how many"
        )
    both, unordered = [teacher, student], why_unordered(teacher, student)

    def unless_unordered(make: Callable[[], Estimate]) -> Estimate:
        return undefined(len(teacher), unordered) if unordered else make()

    return Fidelity(
        num_pairs=len(teacher),
        pearson=unless_unordered(lambda: estimate(pearson, both, seed)),
        spearman=unless_unordered(lambda: estimate(spearman, both, seed)),
        kendall=unless_unordered(lambda: kendall_estimate(teacher, student)),
        mae=estimate(mae, both, seed),
        rmse=estimate(rmse, both, seed),
        bias=estimate(bias, both, seed),
        by_range=by_range(teacher, student),
        calibration=calibration(teacher, student, seed),
        decisions={
            name: decide(teacher, student, quantile, seed) for name, quantile in THRESHOLDS.items()
        },
    )
