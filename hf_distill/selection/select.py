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
from hf_distill.selection.clusters import document_clusters
from hf_distill.selection.mismatch import Detection, detect_mismatches
from hf_distill.selection.rules import (
    UNSCORED,
    Applied,
    Columns,
    Rule,
    apply_rules,
    needed_columns,
)
from hf_distill.selection.second import COLUMN, check_second_model

if TYPE_CHECKING:  # selecting needs no model
    from hf_distill.scoring.embeddings import EmbeddingTable
    from hf_distill.scoring.ranking import Ranking


RANKED = frozenset({"rank", "margin", "mismatch", "better", "better_score"})
"""Columns that need a ranking."""

EMBEDDED = frozenset({"cluster"})
"""Columns that need the teacher's embeddings."""

_ARRAYS = ("dropped_by", "weight", "weight_ranking", "relabelled", "relabelled_score")
_BLOCK = 65_536


def better_documents(pairs: Pairs, ranking: Ranking) -> tuple[np.ndarray, np.ndarray]:
    """The columns `better` and `better_score` (n,) of `hf_distill.selection.rules.Columns`.

    A new positive is a document of the training pairs, because these alone were checked for leaks:
    none is relevant to a held-out query, or a near-duplicate of such a document. The ranking leaves
    out what answers the query in the data. A document that repeats the query, but for case,
    punctuation and spacing, is none either: a teacher scores echoes highest. A pair keeps its
    document if its query had no other one left to be a negative.

    Args:
        pairs: The training pairs.
        ranking: Of these.
    """
    trained = np.zeros(len(pairs.collection.documents), dtype=bool)
    trained[pairs.documents] = True
    query_keys = texts.text_keys(pairs, "query")
    document_keys = np.zeros(len(trained), dtype=np.uint64)
    document_keys[pairs.documents] = texts.text_keys(pairs, "document")
    number = np.full(len(pairs), -1, dtype=np.int64)
    score = np.full(len(pairs), np.nan, dtype=np.float32)
    for start in range(0, len(pairs), _BLOCK):
        some = slice(start, start + _BLOCK)
        documents, scores = ranking.negatives[some], ranking.negative_scores[some]
        queries = pairs.queries[some]
        lists = pairs.collection.lists(queries)
        rows = np.repeat(np.arange(len(queries)), np.diff(lists.starts))
        refused = (rows << 32 | lists.documents)[lists.grades == 0]
        keys = np.arange(len(queries))[:, None] << 32 | documents
        own = scores[:, :1] + ranking.margin[some, None]  # NaN where it is unknown: not above
        usable = (scores > own) & (documents >= 0) & trained[documents] & ~np.isin(keys, refused)
        usable &= (documents >= 0).sum(axis=1, keepdims=True) > 1
        usable &= document_keys[documents] != query_keys[some, None]
        best, has = usable.argmax(axis=1)[:, None], usable.any(axis=1)
        number[some] = np.where(has, np.take_along_axis(documents, best, axis=1)[:, 0], -1)
        score[some] = np.where(has, np.take_along_axis(scores, best, axis=1)[:, 0], np.nan)
    return number, score


@dataclass(frozen=True)
class SelectionInputs:
    """What selections choose from. Each column is computed once, when a rule first needs it.

    Attributes:
        pairs: The n training pairs.
        scores: (n,) float32, the teacher's; NaN where it has none.
        ranking: The ranking of the training pairs; None if the teacher embeds no texts.
        key: The fingerprint of all of these.
        embeddings: The teacher's; None if it embeds no texts.
        disagreement: (n,) float32, of the teacher and a second model; None if none is named.
    """

    pairs: Pairs
    scores: np.ndarray
    ranking: Ranking | None
    key: str
    embeddings: EmbeddingTable | None = None
    disagreement: np.ndarray | None = None
    _columns: dict[str, np.ndarray] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def column(self, name: str, rule: Rule) -> np.ndarray:
        """(n,) the column `name` of `hf_distill.selection.rules.COLUMNS`, which `rule` needs.

        Raises:
            InputError: It needs a ranking or embeddings, and this teacher has none, or a group or
                source that the pairs do not have.
        """
        if name not in self._columns:
            self._columns[name] = self._make(name, rule)
        return self._columns[name]

    @cached_property
    def detection(self) -> Detection:
        """What the ranks say about mismatched pairs; only with a ranking."""
        assert self.ranking is not None
        known = ~np.isnan(self.scores)  # a pair without a score has no rank either
        return detect_mismatches(self.ranking.rank[known], self.ranking.pool, self.ranking.mined)

    def _of_ranking(self, name: str, rule: Rule) -> np.ndarray:
        """One of the columns `RANKED`."""
        if self.ranking is None:
            lists = name != "mismatch"  # they hold no random documents
            do = "Mine lists with --candidates bm25, or remove" if lists else "Remove"
            raise InputError(
                f"the selection rule {rule} needs a teacher that embeds texts, to rank each "
                f"pair's document in a pool; this teacher only scores pairs. {do} the rule"
            )
        if name == "mismatch":
            return self.detection.probability(self.ranking.rank)
        if name in ("better", "better_score"):
            better = better_documents(self.pairs, self.ranking)
            self._columns.update(zip(("better", "better_score"), better, strict=True))
            return self._columns[name]
        return self.ranking.rank if name == "rank" else self.ranking.margin

    def _make(self, name: str, rule: Rule) -> np.ndarray:
        if name in RANKED:
            return self._of_ranking(name, rule)
        if name == "cluster":
            if self.embeddings is None:
                raise InputError(
                    f"the selection rule {rule} needs a teacher that embeds texts, to find "
                    "clusters of documents; this teacher only scores pairs. Name one that embeds "
                    "texts, or remove the rule"
                )
            # As for the mixture of margins, the seed is not the recipe's: the seeds of a study
            # draw from the same clusters.
            return document_clusters(self.pairs, self.embeddings, seed=0)
        if name == COLUMN:
            check_second_model([rule], None if self.disagreement is None else "")
            assert self.disagreement is not None
            return self.disagreement
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
        weight_ranking: (n,) float32, the weight of each pair in the terms that compare queries with
            documents, in place of `weight`; None if no rule gives weights for these alone.
        relabelled: (n,) int64, the number of the document that each pair has in place of its own;
            -1: its own. None if no rule relabels.
        relabelled_score: (n,) float32, what the ranking scores that document for the query; NaN
            where a pair has its own. None if no rule relabels.
    """

    audit: Audit
    dropped_by: np.ndarray
    weight: np.ndarray | None = None
    weight_ranking: np.ndarray | None = None
    relabelled: np.ndarray | None = None
    relabelled_score: np.ndarray | None = None

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
            drops = "drops " if rule.relabelled else "-"
            done = {"relabels ": rule.relabelled, "weighs ": rule.weighted, drops: rule.dropped}
            what = " and ".join(f"{verb}{n:,}" for verb, n in done.items() if n) or "-0"
            on_score = rule.threshold is not None and rule.column == "score"
            at = f" (at {rule.threshold:.4f})" if on_score else ""
            said.append(f"{rule.rule} {what}{at}")
        detection = "" if audit.detection is None else f"\n         {audit.detection}"
        return (
            f"Selected {audit.kept:,} of {audit.pairs_in:,} training pairs: "
            f"{', '.join(said) or 'no rule'}{detection}"
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
    detection = inputs.detection if "mismatch" in needed else None
    scores = inputs.scores.astype(np.float64)
    return Columns(inputs.pairs, scores, order, needed, detection)


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
    ranking_weighted = any(rule.weight_ranking is not None for rule in rules)
    relabelled = score = None
    if any(rule.relabel for rule in rules):
        new = applied.relabelled_by >= 0
        relabelled = np.where(new, columns["better"], -1)
        score = np.where(new, columns["better_score"], np.float32(np.nan))
    return Selection(
        audit=make_audit(columns, rules, applied, seed, key),
        dropped_by=applied.dropped_by,
        weight=applied.weight if weighted else None,
        weight_ranking=applied.weight_ranking if ranking_weighted else None,
        relabelled=relabelled,
        relabelled_score=score,
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
        of_pairs = {name: getattr(selection, name) for name in _ARRAYS}
        with written_whole(arrays) as temporary:
            np.savez(temporary, **{k: v for k, v in of_pairs.items() if v is not None})
        return selection.audit

    plugins = digests_of_plugins(rule.name for rule in rules)
    depends_on = [inputs.key, [str(rule) for rule in rules], plugins, seed]
    audit = stage(folder.selection, Audit, depends_on, make, [arrays])
    with np.load(arrays) as held:
        return Selection(audit, **{name: held[name] for name in held.files})
