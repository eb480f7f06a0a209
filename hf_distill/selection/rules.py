"""The selection rules, each a pure function of columns to a mask, and how a recipe's text becomes
one of them.

Add a rule of your own with `@rule` and name it in the recipe, as in
`selection: [my_package.my_module:short=4:weight=0.5]`:

    @rule(low=1, whole=True)
    def short(columns: Columns, rule: Rule) -> Outcome:
        words = [
            len(text.split())
            for batch in columns.pairs.batches("document")
            for text in batch["document"]
        ]
        return Outcome(np.array(words, dtype=np.int64) >= rule.number)
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from hf_distill.data.collection import Pairs
from hf_distill.data.keys import blocks, first_places, lexsort, numbered, places_of, taken
from hf_distill.errors import InputError
from hf_distill.recipe.kinds import PLUGIN, RULES, load_kind
from hf_distill.run.scratch import in_scratch, scratch
from hf_distill.selection.mismatch import Detection

BINS = 10
"""`stratified` draws evenly from this many bins of equal width."""

COLUMNS = (
    "rank", "margin", "mismatch", "better", "better_score", "group", "source", "long_enough",
    "overlap", "query", "document", "student_query", "family", "cluster", "disagreement",
)  # fmt: skip
"""The columns that a rule can need besides the score. See `Columns`."""


@dataclass(frozen=True)
class Columns:
    """What rules can read about n pairs.

    Attributes:
        pairs: The pairs, for rules that read texts: `pairs.batches("query", "document")`.
        score: (n,) float64, the teacher's score; NaN where it has none.
        order: (n,) int64, a seeded permutation of 0 to n - 1. It breaks ties, and random draws
            follow it.
        needed: The columns that the rules of the recipe need, each (n,):
            `rank` (int32) and `margin` (float32): see `hf_distill.scoring.ranking.Ranking`;
            `mismatch` (float32): how probably the pair is mismatched, see
            `hf_distill.selection.mismatch`;
            `better` (int64) and `better_score` (float32): the number and the score of the best
            training document that scores above the pair's own, and that the data does not call not
            relevant; -1 and NaN if there is none;
            `group` and `source` (int64): equal for pairs of one group or source;
            `long_enough` (bool): the texts have at least the characters that the paper requires;
            `overlap` (float32): the share of the document's word bigrams that the query also has;
            `query`, `document` and `student_query`, what the student reads in place of the query
            (uint64): equal for texts that differ at most in case, punctuation and spacing;
            `family` (int64): equal for pairs that near-duplicates connect;
            `cluster` (int64): equal for pairs whose documents the teacher embeds close to each
            other, see `hf_distill.selection.clusters`;
            `disagreement` (float32): how far apart teacher and second model put the pair, see
            `hf_distill.scoring.second`.
        detection: Where `mismatch` comes from, if a rule needs it.
    """

    pairs: Pairs
    score: np.ndarray
    order: np.ndarray
    needed: Mapping[str, np.ndarray] = field(default_factory=dict)
    detection: Detection | None = None

    def __len__(self) -> int:
        return len(self.score)

    def __getitem__(self, name: str) -> np.ndarray:
        """A needed column (n,).

        Raises:
            InputError: The rule that reads it does not declare it.
        """
        if name not in self.needed:
            raise InputError(
                f"a selection rule reads the column {name!r} without declaring it; add it to the "
                f"rule's decorator: @rule(needs=({name!r},))"
            )
        return self.needed[name]

    def take(self, rows: np.ndarray) -> Columns:
        """The columns of the pairs `rows` (m,). Their `order` is a permutation of 0 to m - 1."""
        order = scratch(len(rows), np.int64)
        by_order = lexsort(taken(self.order, rows))
        for here in blocks(len(rows)):
            order[by_order[here]] = np.arange(here.start, here.stop)
        needed = {name: taken(values, rows) for name, values in self.needed.items()}
        score = taken(self.score, rows)
        return Columns(self.pairs.take(rows), score, order, needed, self.detection)


class Outcome(NamedTuple):
    """What a rule decides about n pairs.

    keep: (n,) bool.
    threshold: The number that all pairs are compared with, if there is one.
    above: (n,) float: how far each pair is on the keeping side of its threshold, in the unit of
        `column`; None without a threshold.
    column: `score` or the name of the column that is compared; None if there is none.
    """

    keep: np.ndarray
    threshold: float | None = None
    above: np.ndarray | None = None
    column: str | None = None


@dataclass(frozen=True)
class RuleKind:
    """What a rule does and how it is written. The decorator `rule` makes one from a function.

    Attributes:
        apply: The function. It never sees an empty set of pairs.
        low, high: The lowest and the highest value; `low` None: the rule takes no value.
        whole: The value is a whole number.
        optional: The value may be left out.
        options: What may follow the value: each option with its choices. Every rule also takes
            what `Rule` says about the pairs that it would drop.
        needs: The columns of `COLUMNS` that the function reads. A chosen option that is the name of
            a column, as in `by=group`, counts too.
    """

    apply: Callable[[Columns, Rule], Outcome]
    low: float | None = None
    high: float = math.inf
    whole: bool = False
    optional: bool = False
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    needs: tuple[str, ...] = ()

    @property
    def values(self) -> str:
        """Which values it accepts, for an error."""
        number, low = "a whole number" if self.whole else "a number", self.low or 0.0
        if math.isfinite(self.high):
            return f"{number} between {low:g} and {self.high:g}"
        return f"{number} of at least {low:g}" if math.isfinite(low) else number


def rule(
    low: float | None = None,
    high: float = math.inf,
    whole: bool = False,
    optional: bool = False,
    options: Mapping[str, tuple[str, ...]] | None = None,
    needs: tuple[str, ...] = (),
) -> Callable[[Callable[[Columns, Rule], Outcome]], RuleKind]:
    """Decorate a function to make it a `RuleKind`, where the arguments are explained.

    Raises:
        InputError: `needs` names something that is not a column.
    """
    unknown = sorted(set(needs) - set(COLUMNS))
    if unknown:
        raise InputError(
            f"@rule(needs=...): {unknown[0]!r} is not a column; the columns are "
            f"{', '.join(COLUMNS)}"
        )
    return lambda apply: RuleKind(apply, low, high, whole, optional, options or {}, needs)


def _exactly(number: float) -> str:
    """The shortest text that reads back as `number`."""
    return str(int(number)) if number.is_integer() else repr(number)


@dataclass(frozen=True)
class Rule:
    """A rule of a recipe, e.g. `percentile=80:by=group`. Its text identifies it.

    What it does with the pairs that it picks: without more it drops them. It can weigh them, or
    relabel them: their document becomes the teacher's best one of the ranking pool. A pair for
    which there is no better document is dropped or weighed.

    Attributes:
        name: As the recipe writes it.
        kind: What it does.
        value: Its value; None if it has none.
        options: The chosen options, e.g. {"by": "group"}.
        weight: Pairs are not dropped: their weight in the objective is multiplied by this.
        weight_ranking: Pairs are not dropped: their weight in the terms that compare queries with
            documents is multiplied by this; the alignment of their texts is as before.
        relabel: Pairs with a better document get it in place of their own.
    """

    name: str
    kind: RuleKind = field(repr=False)
    value: float | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    weight: float | None = None
    weight_ranking: float | None = None
    relabel: bool = False

    @property
    def drops(self) -> bool:
        """Whether it drops the pairs that it picks and does not relabel."""
        return self.weight is None and self.weight_ranking is None

    @property
    def number(self) -> float:
        """The value, for rules that always have one (else 0)."""
        return self.value or 0.0

    def __str__(self) -> str:
        text = self.name if self.value is None else f"{self.name}={_exactly(self.value)}"
        text += "".join(f":{option}={choice}" for option, choice in self.options.items())
        text += ":relabel" if self.relabel else ""
        for name, weight in (("weight", self.weight), ("weight_ranking", self.weight_ranking)):
            text += "" if weight is None else f":{name}={_exactly(weight)}"
        return text


def _runs(*keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where runs of rows with equal `keys` start, and their lengths, both (r,) int64."""
    new = scratch(len(keys[0]), np.bool_)
    new[:1] = True
    for key in keys:
        new[1:] |= key[1:] != key[:-1]
    starts = places_of(new)
    sizes = scratch(len(starts), np.int64)
    np.subtract(starts[1:], starts[:-1], out=sizes[:-1])
    sizes[-1:] = len(new) - starts[-1:]
    return starts, sizes


def _first(order: np.ndarray, runs: tuple[np.ndarray, np.ndarray], most: np.ndarray) -> np.ndarray:
    """(n,) bool: whether a row is among the first of its run, in `order` (n,); `most` is how many
    of each run (r,).
    """
    starts, _ = runs
    keep = scratch(len(order), np.bool_)
    for here in blocks(len(order)):
        places, run = _run_of(starts, here)
        keep[order[here][places - starts[run] < most[run]]] = True
    return keep


def _run_of(starts: np.ndarray, here: slice) -> tuple[np.ndarray, np.ndarray]:
    """The places (m,) of a slice, and the run of each; `starts` (r,) are where runs begin."""
    places = np.arange(here.start, here.stop)
    return places, np.searchsorted(starts, places, side="right") - 1


def _part(columns: Columns, rule: Rule) -> np.ndarray:
    """(n,) int64: the group or source that the rule works within; without `by`, one for all."""
    by = rule.options.get("by")
    return scratch(len(columns), np.int32) if by is None else columns[by]


def _at_or_above(
    columns: Columns, rule: Rule, order: np.ndarray, starts: np.ndarray, cuts: np.ndarray
) -> Outcome:
    """Keep scores at or above the cut of their group or source: `cuts` (r,) of those that begin at
    `starts` (r,) in `order` (n,).
    """
    above = scratch(len(columns), np.float64)
    for here in blocks(len(order)):
        above[order[here]] = cuts[_run_of(starts, here)[1]]
    threshold = None if "by" in rule.options else float(cuts[0])
    keep = columns.score >= above
    return Outcome(keep, threshold, np.subtract(columns.score, above, out=above), "score")


def _is_scored(columns: Columns, _: Rule) -> Outcome:
    return Outcome(~np.isnan(columns.score))


UNSCORED = Rule("unscored", RuleKind(_is_scored))
"""Drops pairs without a teacher's score. It comes first where there are any; a recipe cannot name
it.
"""


@rule(needs=("long_enough",))
def invalid(columns: Columns, _: Rule) -> Outcome:
    """Drop pairs that the paper's extraction rule would leave out (query under 6 or document under
    11 characters), and pairs whose score is not finite.
    """
    return Outcome(columns["long_enough"] & np.isfinite(columns.score))


@rule(needs=("query", "document"))
def echo(columns: Columns, _: Rule) -> Outcome:
    """Drop pairs whose document is their query, up to case, punctuation and spacing. Their score is
    1.0, and they teach nothing.
    """
    return Outcome(columns["query"] != columns["document"])


@rule(low=0, high=1, needs=("overlap",))
def near_echo(columns: Columns, rule: Rule) -> Outcome:
    """Drop pairs whose query has at least the share `value` of the document's word bigrams: such a
    document adds little to the query.

    Word n-gram containment is from Broder (1997). The rule exists because the teacher's best scores
    on QReCC are echoes and near-copies.
    """
    above = np.subtract(rule.number, columns["overlap"], dtype=np.float64)
    return Outcome(above > 0, rule.value, above, "overlap")


@rule(needs=("query", "document", "student_query"))
def duplicate(columns: Columns, _: Rule) -> Outcome:
    """Keep the first of the pairs that are the same (query, document), also for the student, up to
    case, punctuation and spacing.
    """
    keys = columns["query"], columns["document"], columns["student_query"]
    order = lexsort(*keys)  # stable: equal pairs stay in the order of the data
    runs = _runs(*(taken(key, order) for key in keys))
    return Outcome(_first(order, runs, np.ones_like(runs[1])))


@rule(low=1, whole=True, optional=True, needs=("family",))
def near_duplicate(columns: Columns, rule: Rule) -> Outcome:
    """Keep the first `value` (default: 1) of the pairs that near-duplicates connect: MinHash
    (Broder 1997) proposes them, the exact Jaccard similarity of trigrams decides.

    Lee et al. 2021 (arXiv:2107.06499) find that language models lose nothing by training on fewer
    near-copies.
    """
    order = lexsort(columns["family"])
    runs = _runs(taken(columns["family"], order))
    return Outcome(_first(order, runs, np.full_like(runs[1], int(rule.value or 1))))


@rule(low=0, high=100, options={"by": ("group", "source")})
def percentile(columns: Columns, rule: Rule) -> Outcome:
    """Keep scores at or above the `value`-th percentile (linear interpolation, as in numpy and the
    paper: 80 keeps the top 20%).

    With `by`, each group or source has its own percentile, so each keeps at least one pair.
    """
    part = _part(columns, rule)
    order = lexsort(columns.score, part)
    starts, sizes = _runs(taken(part, order))
    places = (sizes - 1) * (rule.number / 100)
    low = np.floor(places).astype(np.int64)
    below, over = (
        columns.score[order[starts + np.minimum(low + step, sizes - 1)]] for step in (0, 1)
    )
    share = places - low
    # numpy interpolates like this; the result is equal to its percentile to the last bit.
    cut = np.where(share < 0.5, below + (over - below) * share, over - (over - below) * (1 - share))
    return _at_or_above(columns, rule, order, starts, cut)


@rule(low=-math.inf)
def threshold(columns: Columns, rule: Rule) -> Outcome:
    """Keep scores at or above `value`."""
    above = columns.score - rule.number
    return Outcome(above >= 0, rule.value, above, "score")


@rule(low=1, whole=True, options={"by": ("group", "source")})
def top_k(columns: Columns, rule: Rule) -> Outcome:
    """Keep the `value` highest scores, with `by` those of each group or source. The seed breaks
    ties.
    """
    part = _part(columns, rule)
    order = lexsort(columns.order, -columns.score, part)
    starts, sizes = _runs(taken(part, order))
    most = np.minimum(int(rule.number), sizes)
    last = columns.score[order[starts + most - 1]]
    outcome = _at_or_above(columns, rule, order, starts, last)
    return outcome._replace(keep=_first(order, (starts, sizes), most))


@rule(low=1, whole=True, needs=("rank",))
def rank(columns: Columns, rule: Rule) -> Outcome:
    """Keep pairs whose document is among the teacher's `value` best of the pool for its query (E5,
    arXiv:2212.03533, keeps the best 2 of a million).
    """
    above = np.subtract(rule.number, columns["rank"], dtype=np.float64)
    return Outcome(above >= 0, rule.value, above, "rank")


@rule(low=-math.inf, needs=("margin",))
def margin(columns: Columns, rule: Rule) -> Outcome:
    """Keep pairs whose document scores at least `value` above the best other one of the pool, and
    pairs for which the pool has no other.

    NV-Retriever (arXiv:2407.15831) tells negatives from missed positives by this margin.
    """
    above = np.subtract(columns["margin"], rule.number, dtype=np.float64)
    return Outcome((above >= 0) | np.isnan(above), rule.value, above, "margin")


@rule(low=0, high=1, optional=True, needs=("mismatch",))
def mismatched(columns: Columns, rule: Rule) -> Outcome:
    """Drop pairs whose probability of being mismatched is at least `value` (default: .5).

    The probability comes from the rank. It is 0 for all pairs if the ranks show no mismatched ones.
    """
    limit = 0.5 if rule.value is None else rule.value
    above = np.subtract(limit, columns["mismatch"], dtype=np.float64)
    return Outcome(above > 0, limit, above, "mismatch")


@rule(low=0, high=1)
def random(columns: Columns, rule: Rule) -> Outcome:
    """Keep a random share `value` of the pairs, drawn with the seed. It is the control: any other
    rule should beat it at equal size.
    """
    return Outcome(columns.order < round(rule.number * len(columns)))


def quotas(sizes: np.ndarray, total: int) -> np.ndarray:
    """How many to take of each bin of `sizes` (b,): (b,) int64. They add up to `total`, as evenly
    as possible: the other bins make up for what a small bin lacks.
    """
    order = np.argsort(sizes, kind="stable")
    quota = np.zeros(len(sizes), dtype=np.int64)
    for done, place in enumerate(order):
        quota[place] = min(int(sizes[place]), (total - int(quota.sum())) // (len(sizes) - done))
    return quota


def _evenly(columns: Columns, bins: np.ndarray, share: float) -> np.ndarray:
    """(n,) bool: whether a pair is in the `share` that is drawn evenly from `bins` (n,), numbers
    from 0. Within a bin the seeded order decides.
    """
    sizes = np.bincount(bins)
    most = quotas(sizes, round(share * len(columns)))
    order = lexsort(columns.order, bins)
    return _first(order, (np.cumsum(sizes) - sizes, sizes), most)


@rule(low=0, high=1, options={"on": ("score", "margin")})
def stratified(columns: Columns, rule: Rule) -> Outcome:
    """Keep a share `value` of the pairs, drawn evenly from ten bins of equal width of the score, or
    with `on=margin` of the margin. Pairs without a margin are a bin of their own.

    TAS-Balanced (Hofstaetter et al. 2021, arXiv:2104.06967) samples evenly over the range of the
    teacher's margin.
    """
    on_margin = rule.options.get("on") == "margin"
    values = columns["margin"] if on_margin else columns.score
    bins = scratch(len(values), np.int32)
    bins[:] = BINS
    if not np.isnan(values).all():
        ends = float(np.nanmin(values)), float(np.nanmax(values))
        edges = np.linspace(*ends, BINS + 1)[1:-1]
        for here in blocks(len(values)):
            some = values[here].astype(np.float64)
            places = np.searchsorted(edges, some, side="right")
            bins[here] = np.where(np.isnan(some), BINS, places)
    return Outcome(_evenly(columns, bins, rule.number))


@rule(low=0, high=1, needs=("cluster",))
def coverage(columns: Columns, rule: Rule) -> Outcome:
    """Keep a share `value` of the pairs, drawn evenly from clusters of their documents: one pair a
    cluster and round, in the seeded order, until there are enough.
    """
    return Outcome(_evenly(columns, columns["cluster"], rule.number))


def _lowest_share(columns: Columns, rule: Rule, values: np.ndarray) -> Outcome:
    """Keep the share `value` of the pairs with the lowest `values` (n,). The seed breaks ties."""
    keep = scratch(len(columns), np.bool_)
    keep[lexsort(columns.order, values)[: round(rule.number * len(columns))]] = True
    return Outcome(keep)


@rule(low=0, high=1, needs=("disagreement",))
def agreement(columns: Columns, rule: Rule) -> Outcome:
    """Keep the share `value` of the pairs on which the teacher and the second model agree best."""
    return _lowest_share(columns, rule, columns["disagreement"])


@rule(low=0, high=1, needs=("disagreement",))
def disagreement(columns: Columns, rule: Rule) -> Outcome:
    """Keep the share `value` of the pairs on which the teacher and the second model disagree most.

    If the second model is a student, these are the pairs whose soft labels it has learned least.
    """
    return _lowest_share(columns, rule, -columns["disagreement"])


_ACTIONS = ("relabel", "weight", "weight_ranking")
"""What every rule takes: see `Rule`."""


def _name_of(text: str) -> str:
    """What a rule's text begins with: a name of `RULES`, or `package.module:name`."""
    name = re.split("[=:]", text, maxsplit=1)[0]
    own = PLUGIN.match(text)
    if name in RULES or own is None or text[own.end() : own.end() + 1] not in ("", "=", ":"):
        return name
    # A misspelt name with an option, as in `ecko:weight=2`, is not the function `weight` of a
    # module `ecko`.
    misspelt = own.group() in (f"{name}:{option}" for option in ("by", "on", *_ACTIONS))
    return name if misspelt else own.group()


def _read_value(text: str, name: str, kind: RuleKind, value: str) -> float | None:
    """The number of `value`, e.g. `=80`; None if there is none, and none is needed."""
    if kind.low is None and value:
        raise InputError(f"{text}: {name} takes no value")
    if kind.low is None or (kind.optional and not value):
        return None
    try:
        number = float(value.removeprefix("="))
    except ValueError:
        raise InputError(f"{text}: {name} needs a number, as in {name}=...") from None
    if not (kind.low <= number <= kind.high and math.isfinite(number)) or (
        kind.whole and number % 1
    ):
        raise InputError(f"{text}: the value of {name} must be {kind.values}")
    return number


def _read_weight(text: str, name: str, value: str) -> float:
    try:
        weight = float(value)
    except ValueError:
        weight = math.nan
    if name == "weight_ranking" and not 0 <= weight < math.inf:
        raise InputError(
            f"{text}: weight_ranking must be a number of at least 0, found {value!r}; at 0 a pair "
            "only keeps the alignment of its texts"
        )
    if name == "weight" and not 0 < weight < math.inf:
        raise InputError(
            f"{text}: weight must be a number above 0, found {value!r}; a rule without a weight "
            "drops pairs"
        )
    return weight


def _read_rule(text: str, key: str) -> Rule:
    shown, name = f"--{key} {text}", _name_of(text)
    kind = load_kind(name, RULES, key)
    if not isinstance(kind, RuleKind):
        raise InputError(
            f"{shown}: {name} is a {type(kind).__name__}, not a rule; write @rule(...) of "
            "hf_distill.selection.rules above the function"
        )
    value, *rest = text[len(name) :].split(":")
    number = _read_value(shown, name, kind, value)
    weights: dict[str, float] = {}
    chosen: dict[str, str] = {}
    for option in rest:
        left, _, right = option.partition("=")
        if left in ("weight", "weight_ranking"):
            weights[left] = _read_weight(shown, left, right)
        elif option == "relabel":
            continue
        elif right in kind.options.get(left, ()):
            chosen[left] = right
        else:
            allowed = [f"{o}={choice}" for o, choices in kind.options.items() for choice in choices]
            raise InputError(
                f"{shown}: {name} has no option {option!r}; it takes "
                f"{', '.join([*allowed, 'weight=W', 'weight_ranking=W', 'relabel'])}"
            )
    options = {option: chosen[option] for option in kind.options if option in chosen}
    return Rule(name, kind, number, options, **weights, relabel="relabel" in rest)


def parse_rules(texts: Sequence[str], key: str = "selection") -> list[Rule]:
    """Read rules such as `echo`, `percentile=80:by=group`, `rank=2:weight=0.2`,
    `mismatched:relabel` and `my_package.my_module:my_rule=3`.

    Args:
        texts: One rule each.
        key: The recipe's key or the command's option, for errors.

    Raises:
        InputError: An unknown rule or option; a module that cannot be imported; a value that is
            missing, not accepted, not a number, or out of its range.
    """
    return [_read_rule(text, key) for text in texts]


def needed_columns(rules: Sequence[Rule]) -> set[str]:
    """The names of `COLUMNS` that `rules` need."""
    named = {name for rule in rules for name in (*rule.kind.needs, *rule.options.values())}
    if any(rule.relabel for rule in rules):
        named |= {"better", "better_score"}
    return named & set(COLUMNS)


def apply_rule(columns: Columns, rule: Rule) -> Outcome:
    """What `rule` decides about the pairs of `columns`; there may be none.

    Raises:
        InputError: The rule does not return one bool for each pair.
    """
    if not len(columns):
        return Outcome(np.ones(0, dtype=bool))
    outcome = rule.kind.apply(columns, rule)
    keep, above = in_scratch(outcome.keep), outcome.above
    outcome = outcome._replace(keep=keep, above=None if above is None else in_scratch(above))
    if keep.shape != (len(columns),) or keep.dtype != bool:
        raise InputError(
            f"the selection rule {rule} returns {keep.dtype} of shape {keep.shape} for "
            f"{len(columns)} pairs; `keep` of its Outcome must have one bool for each pair"
        )
    return outcome


class Applied(NamedTuple):
    """What rules, one after another, did to n pairs.

    dropped_by: (n,) int64, the place of the rule that dropped each pair; -1 for those kept.
    relabelled_by: (n,) int64, the place of the rule that relabelled each pair; -1: none.
    weight: (n,) float32, the product of the weights that rules gave a kept pair, else 1; 0 for
        those dropped.
    weight_ranking: (n,) float32, the same for the terms that compare queries with documents: the
        product of `weight` and of the weights for these alone.
    steps: For each rule the pairs that it saw (m,) and what it decided about them.
    """

    dropped_by: np.ndarray
    relabelled_by: np.ndarray
    weight: np.ndarray
    weight_ranking: np.ndarray
    steps: list[tuple[np.ndarray, Outcome]]

    @property
    def kept(self) -> np.ndarray:
        """(k,) int64: the pairs that no rule dropped."""
        return places_of(self.dropped_by < 0)


def _first_with_new(columns: Columns, rows: np.ndarray, earlier: np.ndarray) -> np.ndarray:
    """Those of the pairs `rows` (m,) that have a better document, which the pairs `earlier` (e,) or
    one before them has not got yet for the same query.
    """
    rows = taken(rows, places_of(taken(columns["better"], rows) >= 0))
    every = scratch(len(earlier) + len(rows), np.int64)
    every[: len(earlier)], every[len(earlier) :] = earlier, rows
    keys = columns.pairs.take(every).queries
    keys <<= 32
    keys |= taken(columns["better"], every)
    once, which = numbered(keys)
    first = first_places(which, len(once))
    first.sort()
    return taken(every, first[np.searchsorted(first, len(earlier)) :])


def apply_rules(columns: Columns, rules: Sequence[Rule]) -> Applied:
    """Apply `rules` in order, each to the pairs that those before it kept and did not relabel,
    because the columns describe a pair's own document.
    """
    dropped_by, relabelled_by = scratch((2, len(columns)), np.int64)
    weight, weight_ranking = scratch((2, len(columns)), np.float32)
    dropped_by[:] = relabelled_by[:] = -1
    weight[:] = weight_ranking[:] = 1
    steps = []
    for number, rule in enumerate(rules):
        alive = places_of((dropped_by < 0) & (relabelled_by < 0))
        seen = columns if len(alive) == len(columns) else columns.take(alive)
        outcome = apply_rule(seen, rule)
        steps.append((alive, outcome))
        picked = taken(alive, places_of(~outcome.keep))
        if rule.relabel:
            new = _first_with_new(columns, picked, places_of(relabelled_by >= 0))
            relabelled_by[new] = number
            picked = taken(picked, places_of(taken(relabelled_by, picked) < 0))
        if rule.drops:
            dropped_by[picked] = number
            weight[picked] = weight_ranking[picked] = 0
            continue
        own = 1 if rule.weight is None else rule.weight
        of_ranking = own * (1 if rule.weight_ranking is None else rule.weight_ranking)
        for here in blocks(len(picked)):
            weight[picked[here]] *= own
            weight_ranking[picked[here]] *= of_ranking
    return Applied(dropped_by, relabelled_by, weight, weight_ranking, steps)
