"""What a selection did, in numbers and examples: the content of `selection.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hf_distill.data.keys import blocks, places_of, taken
from hf_distill.run.scratch import scratch
from hf_distill.selection import texts
from hf_distill.selection.mismatch import Detection
from hf_distill.selection.rules import (
    UNSCORED,
    Applied,
    Columns,
    Outcome,
    Rule,
    apply_rule,
)

EXAMPLES = 3
WORST = 10
_BINS = 40
_CHARACTERS = 160


@dataclass(frozen=True)
class Example:
    """A pair that a rule kept or dropped. Texts are cut to 160 characters.

    Attributes:
        teacher_score: None if the teacher has none.
        value: What the rule compares, where that is not the score; None if there is nothing.
    """

    pair_id: str
    query: str
    document: str
    teacher_score: float | None
    value: float | None


@dataclass(frozen=True)
class ThresholdBy:
    """The thresholds of the groups or sources (`column`), over the pairs that a rule saw."""

    column: str
    min: float
    median: float
    max: float


@dataclass(frozen=True)
class RuleRecord:
    """What one rule did.

    Attributes:
        rule: As written in the recipe.
        pairs_in: Pairs that the rules before it kept and did not relabel.
        dropped, weighted: Pairs that it dropped, or gave its weight instead.
        threshold: The number that it compares all pairs with; None without one.
        column: What it compares: `score`, or another column; None if there is none.
        tied, tied_dropped: Pairs exactly at the threshold, and those of them that it dropped,
            weighed or relabelled.
        examples: Pairs that it dropped, weighed or relabelled: those nearest to the threshold, or
            without a threshold the first in the seeded order.
        kept_examples: Those nearest to the threshold that it kept.
        threshold_by: With `by`, the thresholds of the groups or sources.
        relabelled: Pairs that it gave another document.
    """

    rule: str
    pairs_in: int
    dropped: int
    weighted: int
    threshold: float | None
    column: str | None
    tied: int
    tied_dropped: int
    examples: tuple[Example, ...]
    kept_examples: tuple[Example, ...]
    threshold_by: ThresholdBy | None
    relabelled: int = 0


@dataclass(frozen=True)
class Part:
    """A group or source: its pairs before and after. `name` is None for pairs that have none."""

    name: str | None
    pairs_in: int
    kept: int


@dataclass(frozen=True)
class Loss:
    """What the groups (or sources) lost.

    Attributes:
        parts: How many there are.
        emptied: How many have no pair left.
        worst: Those that lost the most pairs, the worst first.
    """

    parts: int
    emptied: int
    worst: tuple[Part, ...]


@dataclass(frozen=True)
class Weights:
    """The weights of the kept pairs."""

    sum: float
    min: float
    median: float
    max: float


@dataclass(frozen=True)
class ScoreRange:
    """The teacher's scores of some pairs."""

    mean: float
    min: float
    max: float


@dataclass(frozen=True)
class Scores:
    """The teacher's scores of all scored pairs, and of those kept."""

    all: ScoreRange
    kept: ScoreRange


@dataclass(frozen=True)
class Histogram:
    """Kept and dropped pairs by the teacher's score: counts (b,) between `edges` (b + 1,)."""

    edges: tuple[float, ...]
    kept: tuple[int, ...]
    dropped: tuple[int, ...]


@dataclass(frozen=True)
class Audit:
    """The content of `selection.json`. `pairs_in` is `kept` plus what each rule dropped.

    Attributes:
        key: The fingerprint of what the selection depends on.
        seed: Seeds random draws and the order of ties.
        pairs_in, kept: Training pairs before and after.
        weight: The weights of the kept pairs.
        rules: What each rule did, in order.
        overlap: Cell (i, j): the pairs that rules i and j both drop (or weigh) if each is applied
            alone to all pairs; the diagonal is what one rule drops.
        losses: `group` and `source`, if the pairs have any -> what each lost.
        score: Scores before and after.
        histogram: Scores of all scored pairs. A relabelled pair has the score of its own document.
        weight_ranking: The weights of the kept pairs in the terms that compare queries with
            documents, if a rule gives some for these alone.
        detection: What the ranks of all pairs say about mismatched ones, if a rule asks for it.
    """

    key: str
    seed: int
    pairs_in: int
    kept: int
    weight: Weights
    rules: tuple[RuleRecord, ...]
    overlap: tuple[tuple[int, ...], ...]
    losses: dict[str, Loss]
    score: Scores
    histogram: Histogram
    weight_ranking: Weights | None = None
    detection: Detection | None = None

    @property
    def relabelled(self) -> int:
        """How many pairs have another document than in the data."""
        return sum(rule.relabelled for rule in self.rules)


def shorten(text: str) -> str:
    """`text`, cut if it is too long for a table."""
    return text if len(text) <= _CHARACTERS else text[: _CHARACTERS - 1] + "…"


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)


def _spread(values: np.ndarray) -> tuple[float, float, float]:
    """Minimum, median and maximum of `values` (n,), which are put into another order."""
    low, high = float(values.min()), float(values.max())
    return low, float(np.median(values, overwrite_input=True)), high


def _score_range(scores: np.ndarray) -> ScoreRange:
    return ScoreRange(float(scores.mean()), float(scores.min()), float(scores.max()))


def _weights(weight: np.ndarray, kept: np.ndarray) -> Weights:
    return Weights(float(weight.sum()), *_spread(taken(weight, kept)))


def _examples(columns: Columns, rows: np.ndarray, column: str | None) -> tuple[Example, ...]:
    if not len(rows):
        return ()
    shown = columns.take(rows)
    values = shown.needed.get(column or "", np.full(len(rows), np.nan))
    (batch,) = shown.pairs.batches("pair_id", "query", "document")
    return tuple(
        Example(pair_id, shorten(query), shorten(document), _number(score), _number(value))
        for pair_id, query, document, score, value in zip(
            *batch.values(), shown.score, values, strict=True
        )
    )


def _nearest(
    columns: Columns, alive: np.ndarray, side: np.ndarray, above: np.ndarray | None
) -> np.ndarray:
    """The `EXAMPLES` of `side` (m,), places among the pairs `alive`, that are nearest to the
    threshold, if there is one; of equally near ones the first in the seeded order.
    """
    nearest = side[:0]
    for here in blocks(len(side)):
        some = np.concatenate([nearest, side[here]])
        far = np.zeros(len(some)) if above is None else np.abs(above[some])
        nearest = some[np.lexsort((columns.order[alive[some]], far))[:EXAMPLES]]
    return nearest


def _record(
    columns: Columns, rule: Rule, alive: np.ndarray, outcome: Outcome, relabelled: int
) -> RuleRecord:
    keep, above = outcome.keep, outcome.above
    dropped, kept = places_of(~keep), places_of(keep)
    sides = [dropped, kept if above is not None else kept[:0]]
    examples, kept_examples = (
        _examples(columns, alive[_nearest(columns, alive, side, above)], outcome.column)
        for side in sides
    )
    tied = np.zeros(1, dtype=bool) if above is None else above == 0
    by, cuts = rule.options.get("by"), None
    if by is not None and above is not None and len(alive):
        scores = taken(columns.score, alive)
        cuts = ThresholdBy(by, *_spread(np.subtract(scores, above, out=scores)))
    return RuleRecord(
        rule=str(rule),
        pairs_in=len(alive),
        dropped=len(dropped) - relabelled if rule.drops else 0,
        weighted=0 if rule.drops else len(dropped) - relabelled,
        threshold=None if outcome.threshold is None else float(outcome.threshold),
        column=outcome.column,
        tied=int(tied.sum()),
        tied_dropped=int((tied & ~keep).sum()),
        examples=examples,
        kept_examples=kept_examples,
        threshold_by=cuts,
        relabelled=relabelled,
    )


def overlap_matrix(columns: Columns, rules: Sequence[Rule]) -> tuple[tuple[int, ...], ...]:
    """`Audit.overlap`. A pair without a score is dropped by `UNSCORED` alone: the other rules never
    see it.
    """
    scored = places_of(~np.isnan(columns.score))
    seen = columns if len(scored) == len(columns) else columns.take(scored)
    alone = scratch((len(rules), len(columns)), np.bool_)
    for dropped, rule in zip(alone, rules, strict=True):
        if rule == UNSCORED:
            dropped[:] = np.isnan(columns.score)
        else:
            dropped[scored] = ~apply_rule(seen, rule).keep
    return tuple(tuple(int(np.count_nonzero(one & other)) for other in alone) for one in alone)


def _counts(part: np.ndarray, count: int) -> np.ndarray:
    """(count,) int32: how often each number below `count` is in `part` (n,)."""
    counts = scratch(count, np.int32)
    for here in blocks(len(part)):
        codes, some = np.unique(part[here], return_counts=True)
        counts[codes] += some.astype(np.int32)
    return counts


def _loss(columns: Columns, column: str, kept: np.ndarray) -> Loss:
    """What each value of `column` lost; `kept` (k,) are the places of the pairs that are left."""
    pairs, part = columns.pairs, columns.needed.get(column)
    part = texts.codes(pairs, column) if part is None else part
    before = _counts(part, int(part.max()) + 1)
    after = _counts(taken(part, kept), len(before))
    lost = before - after
    least = np.partition(lost, -WORST)[-WORST] if len(lost) > WORST else 1
    most = np.flatnonzero(lost >= max(1, least))
    worst = most[np.lexsort((-before[most], -lost[most]))[:WORST]].tolist()
    places = np.array([np.argmax(part == code) for code in worst], dtype=np.int64)
    names = pairs.take(places).column(column) if worst else []
    return Loss(
        len(before),
        int((after == 0).sum()),
        tuple(
            Part(None if name is None else shorten(name), int(before[code]), int(after[code]))
            for name, code in zip(names, worst, strict=True)
        ),
    )


def _histogram(scores: np.ndarray, kept: np.ndarray) -> Histogram:
    """Over [0, 1], or a wider range if `scores`, those of all scored pairs, exceed it."""
    edges = np.linspace(min(0.0, float(scores.min())), max(1.0, float(scores.max())), _BINS + 1)
    every, left = np.histogram(scores, edges)[0], np.histogram(kept, edges)[0]
    return Histogram(
        tuple(round(float(edge), 6) for edge in edges),
        tuple(left.tolist()),
        tuple((every - left).tolist()),
    )


def make_audit(
    columns: Columns, rules: Sequence[Rule], applied: Applied, seed: int, key: str
) -> Audit:
    """The audit of `rules` that left at least one pair.

    Args:
        columns: The columns of all pairs.
        rules: The rules that were applied.
        applied: What they did to the pairs of `columns`.
        seed: The seed of `columns.order`.
        key: The selection's key.
    """
    kept, pairs = applied.kept, columns.pairs
    scored = taken(columns.score, places_of(~np.isnan(columns.score)))
    left = taken(columns.score, kept)
    by = _counts(taken(applied.relabelled_by, places_of(applied.relabelled_by >= 0)), len(rules))
    relabelled = by.tolist()
    ranking_weighted = any(rule.weight_ranking is not None for rule in rules)
    return Audit(
        key=key,
        seed=seed,
        pairs_in=len(columns),
        kept=len(kept),
        weight=_weights(applied.weight, kept),
        rules=tuple(
            _record(columns, rule, alive, outcome, number)
            for rule, (alive, outcome), number in zip(rules, applied.steps, relabelled, strict=True)
        ),
        overlap=overlap_matrix(columns, rules),
        losses={
            name: _loss(columns, name, kept)
            for name in ("group", "source")
            if not texts.is_empty(pairs, name)
        },
        score=Scores(_score_range(scored), _score_range(left)),
        histogram=_histogram(scored, left),
        weight_ranking=_weights(applied.weight_ranking, kept) if ranking_weighted else None,
        detection=columns.detection,
    )
