"""Whether systems differ on the queries of one task: paired differences, intervals and tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.stats

from hf_distill.evaluation.intervals import figure, mean


def compare(values: Mapping[str, np.ndarray], baseline: str, seed: int) -> dict[str, Any]:
    """Each system against `baseline`, on the same queries.

    Args:
        values: System -> (Q,) values of one measure, position i the same query in all.
        baseline: The system that the others are compared with.
        seed: Seeds the bootstrap.

    Returns:
        System -> `difference` (system minus baseline, with interval), `p` of the paired t-test (1 where no query differs; None, with
        `undefined`, where all differ by the same amount or there is only one), `wins`, `losses`, `ties` (queries).
    """
    result: dict[str, Any] = {}
    for name, system in values.items():
        if name == baseline:
            continue
        difference = system - values[baseline]
        row: dict[str, Any] = {"difference": figure(mean, [difference], seed)}
        if not difference.any():
            row["p"] = 1.0
        elif len(difference) < 2 or np.ptp(difference) == 0:
            row |= {"p": None, "undefined": f"the {len(difference)} differences have no variance"}
        else:
            row["p"] = float(scipy.stats.ttest_rel(system, values[baseline]).pvalue)
        result[name] = row | {
            "wins": int((difference > 0).sum()),
            "losses": int((difference < 0).sum()),
            "ties": int((difference == 0).sum()),
        }
    return result
