"""Selective distillation: which scored pairs are trained on, by named rules, with an audit of what each dropped.

Rules are applied in the order given, each to what the rules before it have left. A rule is a pure function of columns to a
mask; the pairs themselves go through one `Dataset.filter`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value

from hf_distill.data.cleaning import text_key
from hf_distill.data.contract import map_rows
from hf_distill.data.qrecc import MIN_DOCUMENT_CHARACTERS, MIN_QUERY_CHARACTERS
from hf_distill.errors import InputError
from hf_distill.run_folder import RunFolder, fingerprint, read_json_if_current, write_json

EXAMPLES_PER_RULE = 3
_EXAMPLE_CHARACTERS = 160


@dataclass(frozen=True)
class Columns:
    """What a rule sees, each of shape (n,): `query` and `document` as lists of str, `score` float64, `order` int64, and of a teacher that
    embeds `rank` int32 and `margin` float32 (see `hf_distill.signals.Signals`).

    `order` is a seeded permutation: it breaks ties and it is what `random` draws by.
    """

    query: Sequence[str]
    document: Sequence[str]
    score: np.ndarray
    order: np.ndarray
    rank: np.ndarray | None = None
    margin: np.ndarray | None = None


Outcome = tuple[np.ndarray, float | None]
"""A rule's result: mask (n,) of the pairs to keep, and the score threshold that it came to, if it has one."""


def invalid(columns: Columns, _: float | None) -> Outcome:
    """Drop pairs that the paper's extraction rule would not make (query under 6 or document under 11 characters), and NaN scores."""
    long_enough = [
        len(query) >= MIN_QUERY_CHARACTERS and len(document) >= MIN_DOCUMENT_CHARACTERS
        for query, document in zip(columns.query, columns.document, strict=True)
    ]
    return np.array(long_enough, dtype=bool) & np.isfinite(columns.score), None


def unscored(columns: Columns, _: float | None) -> Outcome:
    """Drop pairs that the teacher has no score for. Applied first, unasked, where there are any."""
    return ~np.isnan(columns.score), None


def echo(columns: Columns, _: float | None) -> Outcome:
    """Drop pairs whose document is their query (up to case, punctuation and spacing): score 1.0, and nothing to learn."""
    pairs = zip(columns.query, columns.document, strict=True)
    return np.array([text_key(query) != text_key(document) for query, document in pairs], dtype=bool), None


def duplicate(columns: Columns, _: float | None) -> Outcome:
    """Keep the first of the pairs that are the same (query, document) up to case, punctuation and spacing."""
    seen: set[tuple[str, str]] = set()
    keep = np.zeros(len(columns.score), dtype=bool)
    for i, pair in enumerate(zip(columns.query, columns.document, strict=True)):
        key = (text_key(pair[0]), text_key(pair[1]))
        keep[i] = key not in seen
        seen.add(key)
    return keep, None


def percentile(columns: Columns, value: float | None) -> Outcome:
    """Keep scores at or above the `value`-th percentile (linear interpolation, as numpy and the paper: 80 keeps the top 20%)."""
    cut = float(np.percentile(columns.score, value or 0.0))
    return columns.score >= cut, cut


def threshold(columns: Columns, value: float | None) -> Outcome:
    """Keep scores at or above `value`."""
    return columns.score >= value, value


def top_k(columns: Columns, value: float | None) -> Outcome:
    """Keep the `value` highest scores; ties are broken by the seed."""
    best = np.lexsort((columns.order, -columns.score))[: int(value or 0)]
    keep = np.zeros(len(columns.score), dtype=bool)
    keep[best] = True
    return keep, float(columns.score[best].min()) if len(best) else None


def rank(columns: Columns, value: float | None) -> Outcome:
    """Keep pairs whose document is among the teacher's `value` best of the pool for its query (E5, arXiv:2212.03533: 2 of a million)."""
    return _signal(columns, columns.rank) <= (value or 0), None


def margin(columns: Columns, value: float | None) -> Outcome:
    """Keep pairs whose document scores at least `value` above the best other one of the pool. Without another, a pair is kept."""
    values = _signal(columns, columns.margin)
    return (values >= value) | np.isnan(values), None


def _signal(columns: Columns, values: np.ndarray | None) -> np.ndarray:
    if values is None:
        raise InputError("the selection rules rank and margin need a teacher that embeds texts; this one scores pairs only")
    return values


def random(columns: Columns, value: float | None) -> Outcome:
    """Keep a seeded random share `value` of the pairs: the control that any other rule should beat at equal size."""
    return columns.order < round((value or 0) * len(columns.order)), None


@dataclass(frozen=True)
class _Kind:
    apply: Callable[[Columns, float | None], Outcome]
    low: float | None = None
    high: float | None = None
    whole: bool = False

    @property
    def takes_value(self) -> bool:
        return self.low is not None


UNSCORED = "unscored"

_KINDS: Mapping[str, _Kind] = {
    UNSCORED: _Kind(unscored),
    "invalid": _Kind(invalid),
    "echo": _Kind(echo),
    "duplicate": _Kind(duplicate),
    "percentile": _Kind(percentile, 0, 100),
    "threshold": _Kind(threshold, float("-inf"), float("inf")),
    "top_k": _Kind(top_k, 1, float("inf"), whole=True),
    "rank": _Kind(rank, 1, float("inf"), whole=True),
    "margin": _Kind(margin, float("-inf"), float("inf")),
    "random": _Kind(random, 0, 1),
}


@dataclass(frozen=True)
class Rule:
    """A rule of a recipe, e.g. `percentile=80`: its name and its value, if it takes one."""

    name: str
    value: float | None = None

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name}={self.value:g}"


def parse_rules(texts: Sequence[str]) -> list[Rule]:
    """Read rules such as `echo` and `percentile=80`.

    Raises:
        InputError: An unknown rule, a value missing, left over, not a number, or out of its range.
    """
    rules = []
    for text in texts:
        name, equals, value = text.partition("=")
        if name not in _KINDS:
            known = ", ".join(k + "=..." * kind.takes_value for k, kind in _KINDS.items())
            raise InputError(f"unknown selection rule {text!r}; the rules are {known}")
        kind = _KINDS[name]
        if not kind.takes_value:
            if equals:
                raise InputError(f"the selection rule {name} takes no value, found {text!r}")
            rules.append(Rule(name))
            continue
        try:
            number = float(value)
        except ValueError:
            raise InputError(f"the selection rule {name} needs a number, as in {name}=..., found {text!r}") from None
        if not (kind.low is not None and kind.high is not None and kind.low <= number <= kind.high) or (kind.whole and number % 1):
            what = "a whole number of at least 1" if kind.whole else f"between {kind.low:g} and {kind.high:g}"
            raise InputError(f"{text}: the value of {name} must be {what}")
        rules.append(Rule(name, number))
    return rules


def _shorten(text: str) -> str:
    return text if len(text) <= _EXAMPLE_CHARACTERS else text[: _EXAMPLE_CHARACTERS - 1] + "…"


def apply_rules(columns: Columns, rules: Sequence[Rule]) -> tuple[list[str | None], list[dict[str, Any]]]:
    """Apply `rules` in order.

    Returns:
        For each pair the rule that dropped it, or None; and for each rule a record: `rule`, `pairs_in`, `dropped`,
        `threshold` (a number or None) and the indices of up to three `examples` of what it dropped, nearest the threshold.
    """
    n = len(columns.score)
    dropped_by = np.full(n, -1)
    records = []
    for number, rule in enumerate(rules):
        alive = np.flatnonzero(dropped_by < 0)
        ranks = np.empty(len(alive), dtype=np.int64)
        ranks[np.argsort(columns.order[alive])] = np.arange(len(alive))
        rows = alive.tolist()
        part = Columns(
            [columns.query[i] for i in rows],
            [columns.document[i] for i in rows],
            columns.score[alive],
            ranks,
            None if columns.rank is None else columns.rank[alive],
            None if columns.margin is None else columns.margin[alive],
        )
        keep, cut = _KINDS[rule.name].apply(part, rule.value) if len(alive) else (np.ones(0, dtype=bool), None)
        gone = alive[~keep]
        dropped_by[gone] = number
        nearest = gone[np.argsort(-columns.score[gone], kind="stable")] if cut is not None else gone
        records.append(
            {
                "rule": str(rule),
                "pairs_in": len(alive),
                "dropped": len(gone),
                "threshold": cut,
                "examples": [int(i) for i in nearest[:EXAMPLES_PER_RULE]],
            }
        )
    return [None if i < 0 else str(rules[i]) for i in dropped_by], records


@dataclass(frozen=True)
class SelectedPairs:
    """The outcome of selection.

    Attributes:
        all: Every scored training pair, with `dropped_by` (the rule that dropped it, or null).
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
            f"{rule['rule']} -{rule['dropped']:,}" + (f" (at {rule['threshold']:.4f})" if rule["threshold"] is not None else "")
            for rule in self.audit["rules"]
        ]
        return f"Selected {self.audit['kept']:,} of {self.audit['pairs_in']:,} training pairs: {', '.join(rules) or 'no rule'}"


def rule_columns(scored: Dataset, seed: int) -> Columns:
    """The columns of `scored` that rules see; `seed` seeds the order that breaks ties."""
    score = np.asarray(scored["teacher_score"], dtype=np.float64)
    order = np.random.default_rng(seed).permutation(len(score))
    ranks, margins = (np.asarray(scored[name]) if name in scored.column_names else None for name in ("rank", "margin"))
    return Columns(list(scored["query"]), list(scored["document"]), score, order, ranks, margins)


def kept_rows(columns: Columns, rules: Sequence[Rule]) -> np.ndarray:
    """Indices (m,) int64 of the scored pairs that no rule drops: what `select_pairs` would train on, without its audit."""
    dropped_by, _ = apply_rules(columns, [Rule(UNSCORED), *rules])
    return np.array([i for i, reason in enumerate(dropped_by) if reason is None], dtype=np.int64)


def select_pairs(scored: Dataset, rules: Sequence[Rule], seed: int, folder: RunFolder, scores_key: str) -> SelectedPairs:
    """Apply `rules` to the scored training pairs and write `selection.json`.

    Args:
        scored: Pairs with `teacher_score`.
        rules: What to apply, in order.
        seed: Seeds `random`, and how ties are broken.
        folder: The run's folder.
        scores_key: The fingerprint of the scores and signals.

    Raises:
        InputError: No pair is left.
    """
    key = fingerprint(scores_key, [str(rule) for rule in rules], seed)
    columns = rule_columns(scored, seed)
    score, queries, documents = columns.score, columns.query, columns.document
    if np.isnan(score).any():
        rules = [Rule(UNSCORED), *rules]
    dropped_by, records = apply_rules(columns, rules)
    kept = sum(reason is None for reason in dropped_by)
    if not kept:
        worst = max(records, key=lambda record: record["dropped"])
        raise InputError(
            f"the selection leaves none of {len(score)} pairs; most fell to {worst['rule']} ({worst['dropped']}"
            + (f", threshold {worst['threshold']:.4f}" if worst["threshold"] is not None else "")
            + f"; the teacher's scores lie between {np.nanmin(score):.4f} and {np.nanmax(score):.4f})"
        )
    for record in records:
        record["examples"] = [
            {
                "pair_id": scored[i]["pair_id"],
                "query": _shorten(queries[i]),
                "document": _shorten(documents[i]),
                "teacher_score": None if np.isnan(score[i]) else round(float(score[i]), 4),
            }
            for i in record["examples"]
        ]
    features = Features({**scored.features, "dropped_by": Value("string")})
    everything = map_rows(scored, lambda _, indices: {"dropped_by": [dropped_by[i] for i in indices]}, features)
    selected = everything.filter(
        lambda reasons: [reason is None for reason in reasons],
        input_columns="dropped_by",
        batched=True,
    ).flatten_indices()
    kept_score = score[[reason is None for reason in dropped_by]]
    known = score[~np.isnan(score)]
    edges = np.linspace(min(0.0, float(known.min())), max(1.0, float(known.max())), 41)
    audit = {
        "fingerprint": key,
        "seed": seed,
        "pairs_in": len(score),
        "kept": kept,
        "rules": records,
        "score": {
            "all": {"mean": float(known.mean()), "min": float(known.min()), "max": float(known.max())},
            "kept": {"mean": float(kept_score.mean()), "min": float(kept_score.min()), "max": float(kept_score.max())},
        },
        "histogram": {
            "edges": [round(float(edge), 6) for edge in edges],
            "kept": np.histogram(kept_score, edges)[0].tolist(),
            "dropped": (np.histogram(known, edges)[0] - np.histogram(kept_score, edges)[0]).tolist(),
        },
    }
    if read_json_if_current(folder.selection, key) is None:
        write_json(folder.selection, json.loads(json.dumps(audit)))
    return SelectedPairs(all=everything, selected=selected, audit=audit, key=key)
