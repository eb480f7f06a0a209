"""The rules: each a pure function of columns to a mask. Reading them from a recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset

from hf_distill.errors import InputError
from hf_distill.selection import texts

BINS = 10
"""Bins of equal width that `stratified` draws from evenly."""


@dataclass(frozen=True)
class Columns:
    """What rules see, each of shape (n,). What no rule of a recipe needs is None.

    Attributes:
        score: float64, the teacher's score; NaN where it has none.
        order: int64, a seeded permutation of 0 to n - 1: it breaks ties, and it is what random
            draws go by.
        rank: int32, and margin: float32, of a teacher that embeds (see
            `hf_distill.scoring.ranking.Signals`).
        group, source: int64, equal for pairs of one group or source.
        long_enough: bool, at least the characters that the paper asks for.
        overlap: float32, the share of the document's word bigrams that the query has.
        query, document: uint64, equal for texts that are equal up to case, punctuation and spacing.
        family: int64, equal for pairs that near-duplicates connect.
    """

    score: np.ndarray
    order: np.ndarray
    rank: np.ndarray | None = None
    margin: np.ndarray | None = None
    group: np.ndarray | None = None
    source: np.ndarray | None = None
    long_enough: np.ndarray | None = None
    overlap: np.ndarray | None = None
    query: np.ndarray | None = None
    document: np.ndarray | None = None
    family: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.score)

    def take(self, rows: np.ndarray) -> Columns:
        """The columns of the pairs `rows` (m,); their `order` is a permutation of 0 to m - 1
        again.
        """
        parts: dict[str, Any] = {
            name: None if values is None else values[rows] for name, values in vars(self).items()
        }
        order = np.empty(len(rows), dtype=np.int64)
        order[np.argsort(self.order[rows])] = np.arange(len(rows))
        return Columns(**{**parts, "order": order})


class Outcome(NamedTuple):
    """What a rule says of n pairs.

    keep: (n,) bool.
    threshold: The number it compares with, if there is one for all pairs.
    above: (n,) float: how far each pair is on the keeping side of its threshold, in the unit of
        `column`; None without one.
    column: Which column it compares; None if none.
    """

    keep: np.ndarray
    threshold: float | None = None
    above: np.ndarray | None = None
    column: str | None = None


def _exactly(number: float) -> str:
    """The shortest text that is read as `number` again: rules are known by their text."""
    return str(int(number)) if number.is_integer() else repr(number)


@dataclass(frozen=True)
class Rule:
    """A rule of a recipe, e.g. `percentile=80:by=group`: its name, its value if it takes one, and
    its options.

    Attributes:
        by: Apply it within each `group` or `source`.
        on: What `stratified` makes bins of: `score` or `margin`.
        weight: Instead of being dropped, pairs weigh so much (times what earlier rules made them
            weigh) in the objective.
    """

    name: str
    value: float | None = None
    by: str | None = None
    on: str | None = None
    weight: float | None = None

    def __str__(self) -> str:
        text = self.name if self.value is None else f"{self.name}={_exactly(self.value)}"
        options = {
            "by": self.by,
            "on": self.on,
            "weight": None if self.weight is None else _exactly(self.weight),
        }
        return text + "".join(
            f":{key}={value}" for key, value in options.items() if value is not None
        )


def _have(values: np.ndarray | None) -> np.ndarray:
    assert values is not None, "rule_columns makes every column that a rule needs"
    return values


def unscored(columns: Columns, _: Rule) -> Outcome:
    """Drop pairs that the teacher has no score for. Applied first, unasked, where there are any."""
    return Outcome(~np.isnan(columns.score))


def invalid(columns: Columns, _: Rule) -> Outcome:
    """Drop pairs that the paper's extraction rule would not make (query under 6 or document under
    11 characters), and NaN scores.
    """
    return Outcome(_have(columns.long_enough) & np.isfinite(columns.score))


def echo(columns: Columns, _: Rule) -> Outcome:
    """Drop pairs whose document is their query (up to case, punctuation and spacing): score 1.0,
    and nothing to learn.
    """
    return Outcome(_have(columns.query) != _have(columns.document))


def near_echo(columns: Columns, rule: Rule) -> Outcome:
    """Drop pairs whose query has at least the share `value` of the document's word bigrams: the
    document adds little to the query.

    Word n-gram containment is Broder's (1997); leaving such pairs out follows the data set's own
    observation that the teacher's best scores are echoes and near-copies.
    """
    above = (rule.value or 0.0) - _have(columns.overlap).astype(np.float64)
    return Outcome(above > 0, rule.value, above, "overlap")


def _first(keys: Sequence[np.ndarray], at_most: int = 1) -> np.ndarray:
    """(n,) bool: whether no more than `at_most - 1` rows before have the same keys."""
    order = np.lexsort(tuple(keys))  # stable: equal rows stay in the order of the data
    new = np.zeros(len(order), dtype=bool)
    new[:1] = True
    for key in keys:
        new[1:] |= key[order][1:] != key[order][:-1]
    starts = np.flatnonzero(new)
    keep = np.zeros(len(order), dtype=bool)
    keep[order] = (
        np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order)))) < at_most
    )
    return keep


def duplicate(columns: Columns, _: Rule) -> Outcome:
    """Keep the first of the pairs that are the same (query, document) up to case, punctuation and
    spacing.
    """
    return Outcome(_first([_have(columns.query), _have(columns.document)]))


def near_duplicate(columns: Columns, rule: Rule) -> Outcome:
    """Keep the first `value` (default: 1) of the pairs that near-duplicates connect: MinHash
    (Broder 1997), then exact Jaccard of trigrams.

    That training on fewer near-copies loses nothing is Lee et al. 2021 (arXiv:2107.06499), for
    language models.
    """
    return Outcome(_first([_have(columns.family)], int(rule.value or 1)))


def _part(columns: Columns, rule: Rule) -> np.ndarray:
    """(n,) int64: the group or source that the rule works within; all the same without `by`."""
    return (
        np.zeros(len(columns), dtype=np.int64)
        if rule.by is None
        else _have(getattr(columns, rule.by))
    )


def percentile(columns: Columns, rule: Rule) -> Outcome:
    """Keep scores at or above the `value`-th percentile (linear interpolation, as numpy and the
    paper: 80 keeps the top 20%).

    With `by`, each group or source has a percentile of its own, so that none is left without a
    pair.
    """
    part = _part(columns, rule)
    order = np.lexsort((columns.score, part))
    starts = np.flatnonzero(np.append(True, part[order][1:] != part[order][:-1]))
    sizes = np.diff(np.append(starts, len(order)))
    places = (sizes - 1) * ((rule.value or 0.0) / 100)
    low = np.floor(places).astype(np.int64)
    below, over = (
        columns.score[order][starts + np.minimum(low + step, sizes - 1)] for step in (0, 1)
    )
    share = places - low
    # As numpy interpolates, so that its percentile is ours to the last bit.
    cuts = np.where(
        share < 0.5, below + (over - below) * share, over - (over - below) * (1 - share)
    )
    cut = np.empty(len(columns))
    cut[order] = np.repeat(cuts, sizes)
    return Outcome(
        columns.score >= cut,
        float(cuts[0]) if rule.by is None else None,
        columns.score - cut,
        "score",
    )


def threshold(columns: Columns, rule: Rule) -> Outcome:
    """Keep scores at or above `value`."""
    above = columns.score - (rule.value or 0.0)
    return Outcome(above >= 0, rule.value, above, "score")


def top_k(columns: Columns, rule: Rule) -> Outcome:
    """Keep the `value` highest scores, with `by` of each group or source; ties are broken by the
    seed.
    """
    count = int(rule.value or 0)
    part = _part(columns, rule)
    order = np.lexsort((columns.order, -columns.score, part))
    starts = np.flatnonzero(np.append(True, part[order][1:] != part[order][:-1]))
    sizes = np.diff(np.append(starts, len(order)))
    keep = np.zeros(len(columns), dtype=bool)
    keep[order] = np.arange(len(order)) - np.repeat(starts, sizes) < count
    cuts = columns.score[order][starts + np.minimum(count, sizes) - 1]
    cut = np.empty(len(columns))
    cut[order] = np.repeat(cuts, sizes)
    return Outcome(keep, float(cuts[0]) if rule.by is None else None, columns.score - cut, "score")


def rank(columns: Columns, rule: Rule) -> Outcome:
    """Keep pairs whose document is among the teacher's `value` best of the pool for its query (E5,
    arXiv:2212.03533: 2 of a million).
    """
    above = (rule.value or 0.0) - _have(columns.rank).astype(np.float64)
    return Outcome(above >= 0, rule.value, above, "rank")


def margin(columns: Columns, rule: Rule) -> Outcome:
    """Keep pairs whose document scores at least `value` above the best other one of the pool.
    Without another, a pair is kept.

    The margin to the positive is what NV-Retriever (arXiv:2407.15831) tells negatives from missed
    positives by.
    """
    above = _have(columns.margin).astype(np.float64) - (rule.value or 0.0)
    return Outcome((above >= 0) | np.isnan(above), rule.value, above, "margin")


def random(columns: Columns, rule: Rule) -> Outcome:
    """Keep a seeded random share `value` of the pairs: the control that any other rule should beat
    at equal size.
    """
    return Outcome(columns.order < round((rule.value or 0.0) * len(columns)))


def quotas(sizes: np.ndarray, total: int) -> np.ndarray:
    """How many of each bin of `sizes` (b,) make `total` as evenly as they can: what a small bin
    cannot give, the others do. (b,) int64.
    """
    order = np.argsort(sizes, kind="stable")
    given = np.zeros(len(sizes), dtype=np.int64)
    for done, place in enumerate(order):
        given[place] = min(int(sizes[place]), (total - int(given.sum())) // (len(sizes) - done))
    return given


def stratified(columns: Columns, rule: Rule) -> Outcome:
    """Keep a share `value` of the pairs, drawn evenly from ten bins of equal width of the score, or
    with `on=margin` of the margin.

    Sampling evenly over the range of the teacher's margin is TAS-Balanced's (Hofstaetter et al.
    2021, arXiv:2104.06967). Pairs without a margin are a bin of their own.
    """
    values = columns.score if rule.on != "margin" else _have(columns.margin).astype(np.float64)
    bins = np.full(len(values), BINS)
    known = ~np.isnan(values)
    if known.any():
        edges = np.linspace(values[known].min(), values[known].max(), BINS + 1)[1:-1]
        bins[known] = np.searchsorted(edges, values[known], side="right")
    sizes = np.bincount(bins, minlength=BINS + 1)
    wanted = quotas(sizes, round((rule.value or 0.0) * len(values)))
    order = np.lexsort((columns.order, bins))
    keep = np.zeros(len(values), dtype=bool)
    keep[order] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes) < np.repeat(
        wanted, sizes
    )
    return Outcome(keep)


@dataclass(frozen=True)
class _Kind:
    """How a rule is written: whether it needs a value, the value's bounds, its options; and which
    columns it needs.
    """

    apply: Callable[[Columns, Rule], Outcome]
    low: float | None = None
    high: float = float("inf")
    whole: bool = False
    optional: bool = False
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    needs: tuple[str, ...] = ()

    def form(self, name: str) -> str:
        value = "" if self.low is None else "[=...]" if self.optional else "=..."
        return (
            name
            + value
            + "".join(f"[:{key}={'|'.join(values)}]" for key, values in self.options.items())
        )


UNSCORED = "unscored"
_BY = {"by": ("group", "source")}

KINDS: Mapping[str, _Kind] = {
    UNSCORED: _Kind(unscored),
    "invalid": _Kind(invalid, needs=("long_enough",)),
    "echo": _Kind(echo, needs=("query", "document")),
    "near_echo": _Kind(near_echo, 0, 1, needs=("overlap",)),
    "duplicate": _Kind(duplicate, needs=("query", "document")),
    "near_duplicate": _Kind(near_duplicate, 1, whole=True, optional=True, needs=("family",)),
    "percentile": _Kind(percentile, 0, 100, options=_BY),
    "threshold": _Kind(threshold, float("-inf")),
    "top_k": _Kind(top_k, 1, whole=True, options=_BY),
    "rank": _Kind(rank, 1, whole=True, needs=("rank",)),
    "margin": _Kind(margin, float("-inf"), needs=("margin",)),
    "stratified": _Kind(stratified, 0, 1, options={"on": ("score", "margin")}),
    "random": _Kind(random, 0, 1),
}
"""Name of each rule -> what it is. Every rule also takes `:weight=W`, which weighs what it would
drop.
"""


def _read_value(text: str, name: str, value: str) -> float | None:
    kind = KINDS[name]
    if kind.low is None:
        if value:
            raise InputError(f"the selection rule {name} takes no value, found {text!r}")
        return None
    if not value and kind.optional:
        return None
    try:
        number = float(value)
    except ValueError:
        raise InputError(
            f"the selection rule {name} needs a number, as in {name}=..., found {text!r}"
        ) from None
    if not kind.low <= number <= kind.high or (kind.whole and number % 1):
        what = (
            "a whole number of at least 1"
            if kind.whole
            else f"between {kind.low:g} and {kind.high:g}"
        )
        raise InputError(f"{text}: the value of {name} must be {what}")
    return number


def _read_option(text: str, rule: Rule, option: str) -> Rule:
    key, _, value = option.partition("=")
    if key == "weight":
        try:
            weight = float(value)
        except ValueError:
            weight = -1.0
        if not 0 < weight < float("inf"):
            raise InputError(
                f"{text}: weight must be a number above 0 (a rule without it drops), found {value!r}"
            )
        return dataclasses.replace(rule, weight=weight)
    allowed = KINDS[rule.name].options
    if value not in allowed.get(key, ()):
        known = [f"{name}={choice}" for name, choices in allowed.items() for choice in choices] + [
            "weight=W"
        ]
        raise InputError(
            f"{text}: {option!r} is no option of {rule.name}; it takes {', '.join(known)}"
        )
    return (
        dataclasses.replace(rule, by=value) if key == "by" else dataclasses.replace(rule, on=value)
    )


def parse_rules(rules: Sequence[str]) -> list[Rule]:
    """Read rules such as `echo`, `percentile=80`, `percentile=80:by=group` and `rank=2:weight=0.2`.

    Raises:
        InputError: An unknown rule or option, a value missing, left over, not a number, or out of
            its range.
    """
    parsed = []
    for text in rules:
        head, *options = text.split(":")
        name, equals, value = head.partition("=")
        if name not in KINDS or (equals and not value and KINDS[name].optional):
            raise InputError(
                f"unknown selection rule {text!r}; the rules are {', '.join(kind.form(k) for k, kind in KINDS.items())}"
            )
        rule = Rule(name, _read_value(text, name, value if equals else ""))
        for option in options:
            rule = _read_option(text, rule, option)
        parsed.append(rule)
    return parsed


def needed_columns(rules: Sequence[Rule]) -> set[str]:
    """The columns, beside the score, that `rules` compare."""
    by_name = {column for rule in rules for column in KINDS[rule.name].needs}
    return (
        by_name
        | {rule.by for rule in rules if rule.by}
        | {"margin" for rule in rules if rule.on == "margin"}
    )


def rule_columns(scored: Dataset, rules: Sequence[Rule], seed: int) -> Columns:
    """The columns of `scored` that `rules` need, read in batches.

    Args:
        scored: Pairs with `teacher_score`, and what else the rules compare.
        rules: What is going to be applied.
        seed: Seeds the order that breaks ties and that random draws go by.

    Raises:
        InputError: A rule needs a signal that this teacher does not give, or a column that the data
            does not have.
    """
    wanted = needed_columns(rules)
    made: dict[str, np.ndarray] = {}
    for name in sorted(wanted & {"rank", "margin"}):
        if name not in scored.column_names:
            raise InputError(
                "the selection rules rank and margin need a teacher that embeds texts; this one scores pairs only"
            )
        made[name] = texts.numbers(scored, name)
    for name in sorted(wanted & {"group", "source"}):
        if texts.is_empty(scored, name):
            hint = "; name it by --source_column" if name == "source" else ""
            raise InputError(f"a selection rule says by={name}, but the pairs have no {name}{hint}")
        made[name] = texts.codes(scored, name)
    if "long_enough" in wanted:
        made["long_enough"] = texts.long_enough(scored)
    if "overlap" in wanted:
        made["overlap"] = texts.overlap(scored)
    if "query" in wanted:
        made["query"], made["document"] = texts.text_keys(scored)
    if "family" in wanted:
        made["family"] = texts.near_duplicate_families(scored)
    score = texts.numbers(scored, "teacher_score").astype(np.float64)
    return Columns(score, np.random.default_rng(seed).permutation(len(score)), **made)


def apply_rule(columns: Columns, rule: Rule) -> Outcome:
    """What `rule` says of the pairs of `columns`, of which there may be none."""
    return (
        KINDS[rule.name].apply(columns, rule) if len(columns) else Outcome(np.ones(0, dtype=bool))
    )


class Applied(NamedTuple):
    """What rules, one after another, made of n pairs.

    dropped_by: (n,) int64, the place of the rule that dropped each pair, -1 for those kept.
    weight: (n,) float32, what each kept pair weighs: 1 unless a rule with a weight touched it; 0
        for those dropped.
    steps: For each rule the pairs that came to it (m,) and what it said of them.
    """

    dropped_by: np.ndarray
    weight: np.ndarray
    steps: list[tuple[np.ndarray, Outcome]]

    @property
    def kept(self) -> np.ndarray:
        """(k,) int64: the pairs that no rule dropped."""
        return np.flatnonzero(self.dropped_by < 0)


def apply_rules(columns: Columns, rules: Sequence[Rule]) -> Applied:
    """Apply `rules` in order, each to what those before it have left."""
    dropped_by = np.full(len(columns), -1)
    weight = np.ones(len(columns), dtype=np.float32)
    steps = []
    for number, rule in enumerate(rules):
        alive = np.flatnonzero(dropped_by < 0)
        outcome = apply_rule(columns.take(alive), rule)
        steps.append((alive, outcome))
        touched = alive[~outcome.keep]
        if rule.weight is None:
            dropped_by[touched] = number
            weight[touched] = 0
        else:
            weight[touched] *= rule.weight
    return Applied(dropped_by, weight, steps)
