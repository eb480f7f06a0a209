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
from hf_distill.data.keys import blocks, numbers_from, places_of
from hf_distill.errors import InputError
from hf_distill.recipe.kinds import digests_of_plugins
from hf_distill.run.folder import RunFolder
from hf_distill.run.scratch import in_scratch, scratch
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
from hf_distill.selection.texts import TEXT_COLUMNS

if TYPE_CHECKING:  # selecting needs no model
    from hf_distill.scoring.embeddings import EmbeddingTable
    from hf_distill.scoring.ranking import Ranking


RANKED = frozenset({"rank", "margin", "mismatch", "better", "better_score"})
"""Columns that need a ranking."""

_BETTER = frozenset({"better", "better_score"})

EMBEDDED = frozenset({"cluster"})
"""Columns that need the teacher's embeddings."""

_ARRAYS = ("dropped_by", "weight", "weight_ranking", "relabelled", "relabelled_score")
_BLOCK = 8192


def better_documents(
    pairs: Pairs, ranking: Ranking, query_keys: np.ndarray, keys_of_documents: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The columns `better` and `better_score` (n,) of `hf_distill.selection.rules.Columns`.

    A new positive is a document of the training pairs, because these alone were checked for leaks:
    none is relevant to a held-out query, or a near-duplicate of such a document. The ranking leaves
    out what answers the query in the data. A document that repeats the query, but for case,
    punctuation and spacing, is none either: a teacher scores echoes highest. A pair keeps its
    document if its query had no other one left to be a negative.

    Args:
        pairs: The training pairs.
        ranking: Of these.
        query_keys, keys_of_documents: Their columns `query` and `document`.
    """
    trained = scratch(len(pairs.collection.documents), np.bool_)
    document_keys = scratch(len(trained), np.uint64)
    for some in blocks(len(pairs), _BLOCK):
        trained[pairs.documents[some]] = True
        document_keys[pairs.documents[some]] = keys_of_documents[some]
    number, score = scratch(len(pairs), np.int64), scratch(len(pairs), np.float32)
    for some in blocks(len(pairs), _BLOCK):
        documents, scores = ranking.negatives[some], ranking.negative_scores[some]
        queries = pairs.queries[some]
        lists = pairs.collection.lists(queries)
        rows = np.repeat(np.arange(len(queries)), np.diff(lists.starts))
        refused = (rows << 32 | lists.documents)[lists.grades == 0]
        asked = np.arange(len(queries))[:, None] << 32 | documents
        own = scores[:, :1] + ranking.margin[some, None]  # NaN where it is unknown: not above
        usable = (scores > own) & (documents >= 0) & trained[documents] & ~np.isin(asked, refused)
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

    def columns(self, rules: Sequence[Rule]) -> dict[str, np.ndarray]:
        """The columns (n,) of `hf_distill.selection.rules.COLUMNS` that `rules` need.

        Raises:
            InputError: One needs a ranking or embeddings, and this teacher has none, or a group or
                source that the pairs do not have.
        """
        needed = {name: rule for rule in reversed(rules) for name in needed_columns([rule])}
        for name, rule in needed.items():
            self._check(name, rule)
        better = needed.keys() & _BETTER
        of_texts = (needed.keys() | ({"query", "document"} if better else set())) & TEXT_COLUMNS
        if new := sorted(of_texts - self._columns.keys()):
            self._read(new)
        for name in sorted(needed.keys() - self._columns.keys()):
            if name not in self._columns:
                self._make(name)
        return {name: self._columns[name] for name in sorted(needed)}

    def _read(self, names: Sequence[str]) -> None:
        """Make columns of texts, in one reading."""
        same = "student_query" in names and not self.pairs.collection.num_student_queries
        wanted = ({*names} - {"student_query"}) | {"query"} if same else {*names}
        self._columns.update(texts.text_columns(self.pairs, sorted(wanted - self._columns.keys())))
        if same:
            self._columns["student_query"] = self._columns["query"]

    @cached_property
    def detection(self) -> Detection:
        """What the ranks say about mismatched pairs; only with a ranking."""
        assert self.ranking is not None
        known = ~np.isnan(self.scores)  # a pair without a score has no rank either
        return detect_mismatches(self.ranking.rank[known], self.ranking.pool, self.ranking.mined)

    def _check(self, name: str, rule: Rule) -> None:
        if name in RANKED and self.ranking is None:
            lists = name != "mismatch"  # they hold no random documents
            do = "Mine lists with --candidates bm25, or remove" if lists else "Remove"
            raise InputError(
                f"the selection rule {rule} needs a teacher that embeds texts, to rank each "
                f"pair's document in a pool; this teacher only scores pairs. {do} the rule"
            )
        if name in EMBEDDED and self.embeddings is None:
            raise InputError(
                f"the selection rule {rule} needs a teacher that embeds texts, to find "
                "clusters of documents; this teacher only scores pairs. Name one that embeds "
                "texts, or remove the rule"
            )
        if name == COLUMN and self.disagreement is None:
            check_second_model([rule], None)
        if name in ("group", "source") and texts.is_empty(self.pairs, name):
            raise InputError(
                f"the selection rule {rule} needs a {name}, but the pairs have none; name its "
                f"column with --{name}_column"
            )

    def _make(self, name: str) -> None:
        """Make a column that is not of texts; for `better` these are there already."""
        if name in ("group", "source"):
            self._columns[name] = texts.codes(self.pairs, name)
        elif name == "cluster":
            assert self.embeddings is not None
            # As for the mixture of margins, the seed is not the recipe's: the seeds of a study
            # draw from the same clusters.
            self._columns[name] = document_clusters(self.pairs, self.embeddings, seed=0)
        elif name == COLUMN:
            assert self.disagreement is not None
            self._columns[name] = self.disagreement
        else:
            assert self.ranking is not None
            if name in _BETTER:
                keys = self._columns["query"], self._columns["document"]
                better = better_documents(self.pairs, self.ranking, *keys)
                self._columns.update(zip(("better", "better_score"), better, strict=True))
            elif name == "mismatch":
                self._columns[name] = self.detection.probability(self.ranking.rank)
            else:
                self._columns[name] = getattr(self.ranking, name)


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
        return places_of(self.dropped_by < 0)

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
        InputError: See `SelectionInputs.columns`.
    """
    needed = inputs.columns(rules)
    order = numbers_from(0, len(inputs.pairs))
    np.random.default_rng(seed).shuffle(order)  # as `permutation`, in its place
    detection = inputs.detection if "mismatch" in needed else None
    scores = scratch(len(inputs.pairs), np.float64)
    scores[:] = inputs.scores
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
        relabelled, score = scratch(len(new), np.int64), scratch(len(new), np.float32)
        relabelled[:], score[:] = -1, np.nan
        np.copyto(relabelled, columns["better"], where=new)
        np.copyto(score, columns["better_score"], where=new)
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
        return Selection(audit, **{name: in_scratch(held[name]) for name in held.files})
