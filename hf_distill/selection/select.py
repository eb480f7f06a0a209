"""Selective distillation: which scored pairs are trained on, by named rules, with an audit of what
each dropped.

Rules are applied in the order given, each to what the rules before it have left. A rule is a pure
function of columns to a mask; no more than a batch of the texts is held at a time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value

from hf_distill.data.collection import map_rows
from hf_distill.errors import InputError
from hf_distill.run.folder import (
    RunFolder,
    fingerprint,
    read_json_if_current,
    write_json,
)
from hf_distill.selection.audit import make_audit
from hf_distill.selection.rules import (
    UNSCORED,
    Applied,
    Columns,
    Rule,
    apply_rules,
    parse_rules,
    rule_columns,
)

__all__ = [
    "Applied",
    "Columns",
    "Rule",
    "SelectedPairs",
    "apply_rules",
    "parse_rules",
    "rule_columns",
    "select_pairs",
    "with_outcome",
]


@dataclass(frozen=True)
class SelectedPairs:
    """The outcome of selection.

    Attributes:
        all: Every scored training pair, with `dropped_by` (the rule that dropped it, or null), and,
            where a rule gives weights, `weight` (float32; 0 for a dropped pair).
        selected: Those that no rule dropped.
        audit: What `selection.json` holds.
        key: The fingerprint of what the selection depends on.
    """

    all: Dataset
    selected: Dataset
    audit: Mapping[str, Any]
    key: str

    def summary(self) -> str:
        """What each rule dropped, for a terminal."""
        rules = [
            f"{rule['rule']} "
            + (f"weighs {rule['weighted']:,}" if rule["weighted"] else f"-{rule['dropped']:,}")
            + (
                f" (at {rule['threshold']:.4f})"
                if rule["threshold"] is not None and rule["column"] == "score"
                else ""
            )
            for rule in self.audit["rules"]
        ]
        return f"Selected {self.audit['kept']:,} of {self.audit['pairs_in']:,} training pairs: {', '.join(rules) or 'no rule'}"


def with_outcome(scored: Dataset, rules: Sequence[Rule], applied: Applied) -> Dataset:
    """`scored` with `dropped_by` (the rule, as written, or null), and with `weight`, if a rule
    gives any.
    """
    names = [*map(str, rules), None]  # -1, the last, is for those kept
    weighted = any(rule.weight is not None for rule in rules)
    features = Features(
        {
            **scored.features,
            "dropped_by": Value("string"),
            **({"weight": Value("float32")} if weighted else {}),
        }
    )

    def add(_: dict[str, Any], indices: list[int]) -> dict[str, Any]:
        made: dict[str, Any] = {"dropped_by": [names[i] for i in applied.dropped_by[indices]]}
        return {**made, "weight": applied.weight[indices]} if weighted else made

    return map_rows(scored, add, features)


def select_pairs(
    scored: Dataset, rules: Sequence[Rule], seed: int, folder: RunFolder, scores_key: str
) -> SelectedPairs:
    """Apply `rules` to the scored training pairs and write `selection.json`.

    Args:
        scored: Pairs with `teacher_score`.
        rules: What to apply, in order.
        seed: Seeds random draws, and how ties are broken.
        folder: The run's folder.
        scores_key: The fingerprint of the scores and signals.

    Raises:
        InputError: No pair is left, or a rule needs a column that is not there.
    """
    key = fingerprint(scores_key, [str(rule) for rule in rules], seed)
    columns = rule_columns(scored, rules, seed)
    score = columns.score
    if np.isnan(score).any():
        rules = [Rule(UNSCORED), *rules]
    applied = apply_rules(columns, rules)
    if not len(applied.kept):
        counts = np.bincount(applied.dropped_by, minlength=len(rules))
        worst = int(counts.argmax())
        cut = applied.steps[worst][1].threshold
        raise InputError(
            f"the selection leaves none of {len(score)} pairs; most fell to {rules[worst]} ({counts[worst]}"
            + (f", threshold {cut:.4f}" if cut is not None else "")
            + f"; the teacher's scores lie between {np.nanmin(score):.4f} and {np.nanmax(score):.4f})"
        )
    audit = json.loads(
        json.dumps({"fingerprint": key, **make_audit(scored, columns, rules, applied, seed)})
    )
    everything = with_outcome(scored, rules, applied)
    if read_json_if_current(folder.selection, key) != audit:
        write_json(folder.selection, audit)
    return SelectedPairs(
        all=everything,
        selected=everything.select(applied.kept).flatten_indices(),
        audit=audit,
        key=key,
    )
