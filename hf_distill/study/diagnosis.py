"""What a teacher alone says about pairs, before any training: which look wrong, of what kind, and
which rules would take care of them.

The training pairs are looked at, because these are what a selection chooses from.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hf_distill.data.collection import CollectionRecord, Pairs
from hf_distill.errors import InputError
from hf_distill.pipeline import Run
from hf_distill.recipe.arguments import Recipe
from hf_distill.scoring.ranking import Ranking
from hf_distill.selection.audit import shorten
from hf_distill.selection.mismatch import Detection
from hf_distill.selection.rules import Columns, apply_rule, apply_rules, parse_rules
from hf_distill.selection.select import rule_columns
from hf_distill.student.lengths import teacher_lengths

MOST = 100_000
"""Of more pairs than this, so many are looked at, unless `max_pairs` says otherwise."""

EXAMPLES = 3

MISMATCHED = "mismatched:weight_ranking=0"
"""What is done about mismatched pairs, as in `recommended.yaml`."""

_RULES = ("invalid", "echo", "duplicate", "near_duplicate", MISMATCHED)
"""In the order of the selection. What compares many pairs comes after what looks at one."""

_BATCH = 1000


@dataclass(frozen=True)
class Example:
    """A pair of a finding. Texts are cut to 160 characters.

    Attributes:
        query, document: Its texts.
        said: What to see in it; None if that is plain.
    """

    query: str
    document: str
    said: str | None = None


@dataclass(frozen=True)
class Finding:
    """Pairs of one kind.

    Attributes:
        kind: Its name.
        what: What it means.
        count: How many there are; None if they cannot be looked for.
        of: Of how many.
        unit: What is counted.
        because: What the count rests on, or why there is none.
        advice: What to do about them; None if there is nothing to do.
        rule: The rule of a selection that does it; None if no rule does.
        examples: Some of them, drawn by the seed.
    """

    kind: str
    what: str
    count: int | None
    of: int
    unit: str
    because: str | None
    advice: str | None
    rule: str | None
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True)
class Mismatches:
    """How sure it is which pairs are mismatched.

    Attributes:
        detection: What the ranks say.
        wrongly: How many of those called mismatched are expected to be fine, at least.
        missed: How many of the others are expected to be mismatched, at most.
        first: How many documents the teacher ranks first of the pool for their query.
        far: How many it ranks below the best tenth of the pool.
    """

    detection: Detection
    wrongly: float
    missed: float
    first: int
    far: int


@dataclass(frozen=True)
class Diagnosis:
    """What is written with `--json`.

    Attributes:
        source: What the data set is called.
        read_as: What its files were recognised as.
        teacher: Its name.
        found, pairs: Pairs of the data that could be read, and those that were looked at: training
            pairs.
        held_out: Pairs that are held out, which are compared with the others for leaks alone.
        beyond: Pairs that were not looked at because there are more than `max_pairs`.
        split: Where the held-out pairs come from.
        seed: Seeds split, sample, pool and examples.
        mismatches: See there; None if the teacher embeds no texts.
        findings: What was looked for.
        selection: The rules that take care of what was found, and those of the recipe.
        kept: Pairs that they leave.
        without_contrast: Those of them whose texts alone are used.
    """

    source: str
    read_as: str
    teacher: str
    found: int
    pairs: int
    held_out: int
    beyond: int
    split: str
    seed: int
    mismatches: Mismatches | None
    findings: tuple[Finding, ...]
    selection: tuple[str, ...]
    kept: int
    without_contrast: int


def _mismatches(detection: Detection, ranking: Ranking) -> Mismatches:
    probability = detection.probability(ranking.rank)
    called = probability >= 0.5
    return Mismatches(
        detection=detection,
        wrongly=round(float((1 - probability[called]).sum()), 1),
        missed=round(float(probability[~called].sum()), 1),
        first=int((ranking.rank == 1).sum()),
        far=int((ranking.rank > max(1, ranking.pool // 10)).sum()),
    )


def _how_sure(said: Mismatches) -> str:
    ranks = (
        f"the teacher ranks {said.first:,} of the documents first of {said.detection.pool:,} for "
        f"their query, and {said.far:,} below the best tenth"
    )
    if said.detection.nothing is not None:
        return f"none counts as mismatched: {said.detection.nothing}; {ranks}"
    return (
        f"{said.detection}. Of the pairs named at least some {said.wrongly:,.0f} are fine, and of "
        f"the others at most some {said.missed:,.0f} are mismatched; {ranks}"
    )


def _first(columns: Columns, picked: np.ndarray) -> np.ndarray:
    """(k,) the places of the first picked pairs (n,) in the seeded order."""
    places = np.flatnonzero(picked)
    first: np.ndarray = places[np.argsort(columns.order[places])[:EXAMPLES]]
    return first


def _examples(
    pairs: Pairs, places: np.ndarray, said: Sequence[str | None] = ()
) -> tuple[Example, ...]:
    if not len(places):
        return ()
    (texts,) = pairs.take(places).batches("query", "document")
    return tuple(
        Example(shorten(query), shorten(document), note)
        for query, document, note in zip(
            texts["query"], texts["document"], said or [None] * len(places), strict=True
        )
    )


def _best(columns: Columns, ranking: Ranking, places: np.ndarray) -> list[str]:
    """The teacher's best other document for some pairs."""
    best = ranking.negatives[places, 0]
    texts = columns.pairs.collection.document_texts(best)
    return [f"the teacher's best: {shorten(text)}" for text in texts]


def _longest(pairs: Pairs, number: int) -> np.ndarray:
    """(number,) places of pairs with the longest documents, in characters; each document once."""
    once, first = np.unique(pairs.documents, return_index=True)
    lengths = np.empty(len(once), dtype=np.int64)
    for start in range(0, len(once), _BATCH):
        texts = pairs.collection.document_texts(once[start : start + _BATCH])
        lengths[start : start + len(texts)] = [len(text) for text in texts]
    longest: np.ndarray = first[np.argsort(-lengths, kind="stable")[:number]]
    return longest


def _of_rules(columns: Columns, ranking: Ranking | None, said: Mismatches | None) -> list[Finding]:
    """Findings that rules take care of."""
    scored = np.flatnonzero(~np.isnan(columns.score))
    seen = columns.take(scored)
    names = [name for name in _RULES if name != MISMATCHED or ranking is not None]
    picked: dict[str, np.ndarray] = {}
    for name, rule in zip(names, parse_rules(names), strict=True):
        picked[name] = np.zeros(len(columns), dtype=bool)
        picked[name][scored] = ~apply_rule(seen, rule).keep
    picked["near_duplicate"] &= ~picked["duplicate"]

    def finding(kind: str, rule: str, what: str, advice: str) -> Finding:
        places = _first(columns, picked[rule])
        return Finding(
            kind, what, int(picked[rule].sum()), len(columns), "pairs", None, advice, rule,
            _examples(columns.pairs, places),
        )  # fmt: skip

    found = [
        finding(
            "too short", "invalid", "queries under 6 or documents under 11 characters", "drop them"
        ),
        finding("echoed", "echo", "documents that repeat their query", "drop them"),
        finding(
            "duplicated", "duplicate", "pairs that stand there already, but for case and "
            "punctuation", "keep the first of each",
        ),
        finding(
            "nearly duplicated", "near_duplicate", "pairs that share most word trigrams with "
            "another one", "keep one of each family",
        ),
    ]  # fmt: skip
    what = "documents that the teacher probably ranks no better than random ones for their query"
    if ranking is None or said is None:
        why = "this teacher embeds no texts, so it ranks no pool of documents"
        nothing = Finding("mismatched", what, None, len(columns), "pairs", why, None, None)
        return [nothing, *found]
    places = _first(columns, picked[MISMATCHED])
    mismatched = Finding(
        kind="mismatched",
        what=what,
        count=int(picked[MISMATCHED].sum()),
        of=len(columns),
        unit="pairs",
        because=_how_sure(said),
        advice="keep their texts, without contrast; where contrast is what teaches, "
        "give them the teacher's best document (:relabel)",
        rule=MISMATCHED,
        examples=_examples(columns.pairs, places, _best(columns, ranking, places)),
    )
    return [mismatched, *found]


def _cut(run: Run, pairs: Pairs) -> Finding:
    """Texts that the teacher cuts at its limit."""
    models, unknown = teacher_lengths(run.teacher, run.collection, run.recipe.seed)
    counted = [(kind, one) for model in models for kind, one in model.of.items()]
    said = [
        f"{model.name} reads {one.limit:,} tokens: {one.cut:,} of {one.counted:,} {kind} are "
        f"longer, and {one.lost:.1%} of all their tokens are lost"
        for model in models
        for kind, one in model.of.items()
        if one.cut
    ]
    cut = len(said) > 0
    longer = max((one.cut for kind, one in counted if kind != "queries"), default=0)
    said += [f"whether {name} cut texts is not known here" for name in unknown]
    return Finding(
        kind="cut",
        what="texts that are longer than the teacher reads",
        count=sum(one.cut for _, one in counted) if counted else None,
        of=sum(one.counted for _, one in counted),
        unit="texts",
        because="; ".join(said) or None,
        advice="no rule: divide documents into passages, or take a teacher that reads more"
        if cut
        else None,
        rule=None,
        examples=_examples(pairs, _longest(pairs, min(EXAMPLES, longer))),
    )


def _empty(record: CollectionRecord) -> Finding:
    """Rows that could not be read as pairs."""
    lost = {why: n for why, n in record.read.items() if why.startswith("no ")}
    reasons = ", ".join(f"{why}: {n:,}" for why, n in lost.items())
    found = sum(n for name, n in record.read.items() if name.endswith(" found"))
    return Finding(
        kind="empty",
        what="rows without a query or without a document",
        count=sum(lost.values()),
        of=found,
        unit="rows",
        because=reasons or None,
        advice="nothing: no run uses them" if lost else None,
        rule=None,
    )


def _leaks(run: Run) -> Finding:
    """Pairs that share something with held-out ones."""
    record, leaked = run.collection.record, run.collection.pairs("leaked")
    reasons = ", ".join(f"{why}: {n:,}" for why, n in record.leaks_removed.items())
    places = np.random.default_rng(run.recipe.seed).permutation(len(leaked))[:EXAMPLES]
    said = [f"{why} as a held-out pair" for why in leaked.take(places).column("reason")]
    split = f"the held-out pairs are {record.held_out}"
    return Finding(
        kind="leaking",
        what="pairs for training or validation that share something with held-out ones",
        count=len(leaked),
        of=record.split["pairs"],
        unit="pairs",
        because=f"{reasons}; {split}" if reasons else split,
        advice="nothing: every run takes them out" if len(leaked) else None,
        rule=None,
        examples=_examples(leaked, places, said),
    )


def diagnose(run: Run) -> Diagnosis:
    """Look at the pairs of `run`. Nothing is trained, and no student is built."""
    collection, recipe, ranking = run.collection, run.recipe, run.ranking
    record, said = collection.record, None
    names = [name for name in _RULES if name != MISMATCHED or ranking is not None]
    columns = rule_columns(run.selection_inputs, parse_rules(names), recipe.seed)
    if ranking is not None:
        said = _mismatches(run.selection_inputs.detection, ranking)
    findings = [
        *_of_rules(columns, ranking, said),
        _cut(run, columns.pairs),
        _empty(record),
        _leaks(run),
    ]
    # What the recipe has anyway stays: a sample may hold no pair that it would drop.
    needed = {finding.rule for finding in findings if finding.rule and finding.count}
    needed |= {*recipe.selection.selection}
    selection = tuple(name for name in names if name in needed)
    applied = apply_rules(columns, parse_rules(selection))
    weighed = (applied.weight_ranking < 1) & (applied.dropped_by < 0)
    split: Mapping[str, int] = record.split
    return Diagnosis(
        source=record.source.name,
        read_as=record.read_as,
        teacher=run.teacher.name,
        found=split["pairs"] + record.unused.get("pairs beyond max_pairs", 0),
        pairs=len(columns),
        held_out=split["validation"] + split["test"],
        beyond=record.unused.get("pairs beyond max_pairs", 0),
        split=record.held_out,
        seed=recipe.seed,
        mismatches=said,
        findings=tuple(findings),
        selection=selection,
        kept=len(applied.kept),
        without_contrast=int(weighed.sum()),
    )


def limited(recipe: Recipe) -> Recipe:
    """`recipe` with at most `MOST` pairs, unless it says how many."""
    if "max_pairs" in recipe.given:
        return recipe
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, max_pairs=MOST))


def check_pairs(run: Run) -> None:
    """Read the data of `run`, whose recipe goes no further.

    Raises:
        InputError: There are texts in it, and no pairs. No folder is left behind.
    """
    existed = run.folder.path.exists()
    if run.has_pairs:
        return
    if not existed:
        shutil.rmtree(run.folder.path, ignore_errors=True)
    raise InputError(
        f"{run.collection.source.name} holds {len(run.collection.texts):,} texts and no pairs of a "
        "query and a document, and only pairs are looked at; name data with queries and documents, "
        "or train on the texts: hf-distill train texts"
    )
