"""What a selection did, in figures and examples: the content of `selection.json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from hf_distill.selection import texts
from hf_distill.selection.rules import (
    UNSCORED,
    Applied,
    Columns,
    Rule,
    apply_rule,
)

EXAMPLES = 3
WORST = 10
_CHARACTERS = 160


def shorten(text: str) -> str:
    """`text`, cut where it would be too long for a table."""
    return text if len(text) <= _CHARACTERS else text[: _CHARACTERS - 1] + "…"


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)


def _examples(
    scored: Dataset, columns: Columns, rows: np.ndarray, column: str | None
) -> list[dict[str, Any]]:
    shown = []
    for i, row in zip(rows.tolist(), scored.select(rows.tolist()), strict=True):
        value = (
            {} if column in (None, "score") else {column: _number(getattr(columns, str(column))[i])}
        )
        shown.append(
            {
                "pair_id": row["pair_id"], "query": shorten(row["query"]), "document": shorten(row["document"]),
                "teacher_score": _number(columns.score[i]), **value,
            }
        )  # fmt: skip
    return shown


def _spread(values: np.ndarray) -> dict[str, float]:
    return {
        "min": float(values.min()),
        "median": float(np.median(values)),
        "max": float(values.max()),
    }


def rule_records(
    scored: Dataset, columns: Columns, rules: Sequence[Rule], applied: Applied
) -> list[dict[str, Any]]:
    """For each rule: pairs in and out, its threshold, ties at it, and examples.

    Of a rule with a threshold the examples are those nearest to it on both sides; of another one,
    those in the seeded order.
    """
    records = []
    for rule, (alive, outcome) in zip(rules, applied.steps, strict=True):
        keep, above = outcome.keep, outcome.above
        sides: dict[str, np.ndarray] = {}
        for name, side in (
            ("examples", np.flatnonzero(~keep)),
            ("kept_examples", np.flatnonzero(keep)),
        ):
            ties = columns.order[alive[side]]
            by = (ties,) if above is None else (ties, np.abs(above[side]))
            nearest = side[np.lexsort(by)] if above is not None or name == "examples" else side[:0]
            sides[name] = alive[nearest[:EXAMPLES]]
        tied = np.zeros(len(keep), dtype=bool) if above is None else above == 0
        record: dict[str, Any] = {
            "rule": str(rule),
            "pairs_in": len(alive),
            "dropped": int((~keep).sum()) if rule.weight is None else 0,
            "weighted": 0 if rule.weight is None else int((~keep).sum()),
            "threshold": outcome.threshold,
            "column": outcome.column,
            "tied": int(tied.sum()),
            "tied_dropped": int((tied & ~keep).sum()),
            **{
                name: _examples(scored, columns, rows, outcome.column)
                for name, rows in sides.items()
            },
        }
        if rule.by is not None and above is not None and len(alive):
            record["threshold_by"] = {"column": rule.by, **_spread(columns.score[alive] - above)}
        records.append(record)
    return records


def overlap_matrix(columns: Columns, rules: Sequence[Rule]) -> list[list[int]]:
    """Cell (i, j): how many of all pairs both rules would drop (or weigh), each on its own; the
    diagonal is what one would.
    """
    known = np.flatnonzero(~np.isnan(columns.score))
    alone = []
    for rule in rules:
        dropped = (
            np.isnan(columns.score) if rule.name == UNSCORED else np.zeros(len(columns), dtype=bool)
        )
        if rule.name != UNSCORED:  # the other rules never see a pair without a score
            dropped[known] = ~apply_rule(columns.take(known), rule).keep
        alone.append(dropped)
    return [[int((one & other).sum()) for other in alone] for one in alone]


def losses(scored: Dataset, column: str, kept: np.ndarray) -> dict[str, Any]:
    """What each value of `column` (`group`, `source`) lost.

    Returns:
        `parts` (how many values), `emptied` (how many have no pair left), and the `worst`: those
        that lost most pairs, with `pairs_in` and `kept`.
    """
    part = texts.codes(scored, column)
    before = np.bincount(part)
    after = np.bincount(part[kept], minlength=len(before))
    lost = before - after
    worst = np.lexsort((-before, -lost))[:WORST]
    places = {int(code): int(np.argmax(part == code)) for code in worst if lost[code]}
    return {
        "parts": len(before),
        "emptied": int(((after == 0) & (before > 0)).sum()),
        "worst": [
            {
                column: shorten(str(scored[place][column])),
                "pairs_in": int(before[code]),
                "kept": int(after[code]),
            }
            for code, place in places.items()
        ],
    }


def make_audit(
    scored: Dataset, columns: Columns, rules: Sequence[Rule], applied: Applied, seed: int
) -> dict[str, Any]:
    """What `selection.json` holds, less its fingerprint. `in = kept + the sum of dropped`, by
    rule.
    """
    score, kept = columns.score, applied.kept
    known = score[~np.isnan(score)]
    edges = np.linspace(min(0.0, float(known.min())), max(1.0, float(known.max())), 41)
    kept_counts, all_counts = np.histogram(score[kept], edges)[0], np.histogram(known, edges)[0]
    parts = [name for name in ("group", "source") if not texts.is_empty(scored, name)]
    return {
        "seed": seed,
        "pairs_in": len(score),
        "kept": len(kept),
        "weight": {"sum": float(applied.weight.sum()), **_spread(applied.weight[kept])},
        "rules": rule_records(scored, columns, rules, applied),
        "overlap": overlap_matrix(columns, rules),
        "losses": {name: losses(scored, name, kept) for name in parts},
        "score": {
            "all": {
                "mean": float(known.mean()),
                "min": float(known.min()),
                "max": float(known.max()),
            },
            "kept": {
                "mean": float(score[kept].mean()),
                "min": float(score[kept].min()),
                "max": float(score[kept].max()),
            },
        },
        "histogram": {
            "edges": [round(float(edge), 6) for edge in edges],
            "kept": kept_counts.tolist(),
            "dropped": (all_counts - kept_counts).tolist(),
        },
    }
