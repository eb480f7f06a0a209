"""How far a ranker agrees with the judgements: where it puts a relevant document among others."""

from __future__ import annotations

import numpy as np

_BLOCK = 8192


def auc_of_lists(
    own: np.ndarray,
    of: np.ndarray,
    starts: np.ndarray,
    scores: np.ndarray,
    among: np.ndarray,
) -> tuple[float | None, int]:
    """The probability that a pair's own document is scored above another one of its query's list,
    the area under the ROC curve of the list (Hanley and McNeil 1982,
    doi:10.1148/radiology.143.1.7063747). A tie is half of it. The mean over pairs.

    Args:
        own: (n,) floats, the score of each pair's own document; NaN: unknown.
        of: (n,) int64: the list of each.
        starts: (Q + 1,) int64: list i is `starts[i]:starts[i + 1]` of the candidates.
        scores: (m,) floats, of the candidates; NaN: unknown.
        among: (m,) bool: the candidates that it is compared with.

    Returns:
        The probability, and the number of pairs whose own document and a candidate have a score.
        None if there is no such pair.
    """
    usable = among & ~np.isnan(scores)
    total, pairs = 0.0, 0
    for start in range(0, len(own), _BLOCK):
        lists, known = of[start : start + _BLOCK], own[start : start + _BLOCK]
        sizes = starts[lists + 1] - starts[lists]
        row = np.repeat(np.arange(len(lists)), sizes)
        first = np.repeat(np.cumsum(sizes) - sizes, sizes)
        place = starts[lists][row] + np.arange(len(row)) - first
        row, place = row[usable[place]], place[usable[place]]
        above = (known[row] > scores[place]) + 0.5 * (known[row] == scores[place])
        count = np.bincount(row, minlength=len(lists))
        counts = (count > 0) & ~np.isnan(known)
        sums = np.bincount(row, weights=above, minlength=len(lists))
        total += float((sums[counts] / count[counts]).sum())
        pairs += int(counts.sum())
    return (total / pairs if pairs else None), pairs
