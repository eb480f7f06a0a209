"""Selective distillation: named rules choose the pairs that are trained on, and an audit says what
each rule dropped.

Rules are applied in the order given, each to the pairs that those before it kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from hf_distill.data.collection import Pairs
from hf_distill.errors import InputError
from hf_distill.recipe.kinds import digests_of_plugins
from hf_distill.run.folder import RunFolder
from hf_distill.run.stage import stage, written_whole
from hf_distill.selection import texts
from hf_distill.selection.audit import Audit, make_audit
from hf_distill.selection.rules import (
    UNSCORED,
    Applied,
    Columns,
    Rule,
    apply_rules,
    needed_columns,
)

if TYPE_CHECKING:  # selecting needs no model
    from hf_distill.scoring.ranking import Ranking


@dataclass(frozen=True)
class SelectionInputs:
    """What selections choose from. Each column is computed once, when a rule first needs it.

    Attributes:
        pairs: The n training pairs.
        scores: (n,) float32, the teacher's; NaN where it has none.
        ranking: The ranking of the training pairs; None if the teacher embeds no texts.
        key: The fingerprint of all of these.
    """

    pairs: Pairs
    scores: np.ndarray
    ranking: Ranking | None
    key: str
    _columns: dict[str, np.ndarray] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def column(self, name: str, rule: Rule) -> np.ndarray:
        """(n,) the column `name` of `hf_distill.selection.rules.COLUMNS`, which `rule` needs.

        Raises:
            InputError: It needs a ranking, and this teacher has none, or a group or source that the
                pairs do not have.
        """
        if name not in self._columns:
            self._columns[name] = self._make(name, rule)
        return self._columns[name]

    def _make(self, name: str, rule: Rule) -> np.ndarray:
        if name in ("rank", "margin"):
            if self.ranking is None:
                raise InputError(
                    f"the selection rule {rule} needs a teacher that embeds texts, to rank each "
                    "pair's document in a pool; this teacher only scores pairs. Mine lists "
                    "with --candidates bm25, or remove the rule"
                )
            return self.ranking.rank if name == "rank" else self.ranking.margin
        if name in ("group", "source") and texts.is_empty(self.pairs, name):
            raise InputError(
                f"the selection rule {rule} needs a {name}, but the pairs have none; name its "
                f"column with --{name}_column"
            )
        if name == "student_query" and not self.pairs.collection.num_student_queries:
            return self.column("query", rule)
        return texts.PAIR_COLUMNS[name](self.pairs)


@dataclass(frozen=True)
class Selection:
    """Which of n training pairs are trained on.

    Attributes:
        audit: What each rule did.
        dropped_by: (n,) int64, the place in `audit.rules` of the rule that dropped each pair; -1
            for those kept.
        weight: (n,) float32, the weight of each pair, 0 for those dropped; None if no rule gives
            weights.
    """

    audit: Audit
    dropped_by: np.ndarray
    weight: np.ndarray | None

    @property
    def key(self) -> str:
        """The fingerprint of what the selection depends on."""
        return self.audit.key

    @cached_property
    def kept(self) -> np.ndarray:
        """(k,) int64, ascending: the places of the kept pairs among the training pairs."""
        return np.flatnonzero(self.dropped_by < 0)

    def summary(self) -> str:
        """What each rule dropped, for a terminal."""
        audit, said = self.audit, []
        for rule in audit.rules:
            what = f"weighs {rule.weighted:,}" if rule.weighted else f"-{rule.dropped:,}"
            on_score = rule.threshold is not None and rule.column == "score"
            at = f" (at {rule.threshold:.4f})" if on_score else ""
            said.append(f"{rule.rule} {what}{at}")
        return (
            f"Selected {audit.kept:,} of {audit.pairs_in:,} training pairs: "
            f"{', '.join(said) or 'no rule'}"
        )


def rule_columns(inputs: SelectionInputs, rules: Sequence[Rule], seed: int) -> Columns:
    """The columns that `rules` need.

    Args:
        inputs: The pairs, with their scores and ranking.
        rules: What will be applied.
        seed: Seeds the order that breaks ties and that random draws follow.

    Raises:
        InputError: See `SelectionInputs.column`.
    """
    needed = {
        name: inputs.column(name, rule) for rule in rules for name in sorted(needed_columns([rule]))
    }
    order = np.random.default_rng(seed).permutation(len(inputs.pairs))
    return Columns(inputs.pairs, inputs.scores.astype(np.float64), order, needed)


def _nothing_left(columns: Columns, rules: Sequence[Rule], applied: Applied) -> InputError:
    counts = np.bincount(applied.dropped_by, minlength=len(rules))
    worst = int(counts.argmax())
    cut = applied.steps[worst][1].threshold
    return InputError(
        f"--selection keeps none of {len(columns)} pairs; {rules[worst]} dropped the most "
        f"({counts[worst]}{'' if cut is None else f', at threshold {cut:.4f}'}). The teacher's "
        f"scores are between {np.nanmin(columns.score):.4f} and {np.nanmax(columns.score):.4f}; "
        "relax that rule"
    )


def make_selection(columns: Columns, rules: Sequence[Rule], seed: int, key: str) -> Selection:
    """Apply `rules` to the pairs of `columns`, after dropping those without a score.

    Args:
        columns: As from `rule_columns`.
        rules: What to apply, in order.
        seed: What `columns.order` was drawn with, for the audit.
        key: The selection's key.

    Raises:
        InputError: No pair is left.
    """
    if np.isnan(columns.score).any():
        rules = [UNSCORED, *rules]
    applied = apply_rules(columns, rules)
    if not len(applied.kept):
        raise _nothing_left(columns, rules, applied)
    weighted = any(rule.weight is not None for rule in rules)
    return Selection(
        make_audit(columns, rules, applied, seed, key),
        applied.dropped_by,
        applied.weight if weighted else None,
    )


def select_pairs(
    inputs: SelectionInputs, rules: Sequence[Rule], seed: int, folder: RunFolder
) -> Selection:
    """Apply `rules` to the training pairs. A stage: `selection.json`, with the arrays of each pair
    in `cache/selection.npz`.

    Args:
        inputs: The scored training pairs.
        rules: What to apply, in order.
        seed: Of random draws and ties.
        folder: The run's folder.

    Raises:
        InputError: No pair is left, or a rule needs a column that is not there.
    """
    arrays = folder.cache / "selection.npz"

    def make(key: str) -> Audit:
        selection = make_selection(rule_columns(inputs, rules, seed), rules, seed, key)
        weight = np.empty(0, dtype=np.float32) if selection.weight is None else selection.weight
        with written_whole(arrays) as temporary:
            np.savez(temporary, dropped_by=selection.dropped_by, weight=weight)
        return selection.audit

    plugins = digests_of_plugins(rule.name for rule in rules)
    depends_on = [inputs.key, [str(rule) for rule in rules], plugins, seed]
    audit = stage(folder.selection, Audit, depends_on, make, [arrays])
    with np.load(arrays) as held:
        weight = held["weight"]
        return Selection(audit, held["dropped_by"], weight if len(weight) else None)
