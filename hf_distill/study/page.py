"""A study as Markdown and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from hf_distill.evaluation.intervals import LEVEL
from hf_distill.evaluation.results import Estimate
from hf_distill.study.arms import FULL
from hf_distill.study.compare import Difference, Row, verdict
from hf_distill.study.detection import DetectorAUC, Picked
from hf_distill.study.noise import FARTHEST, NEAREST
from hf_distill.study.noisy import NoiseRecord

_STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "hf_distill",
}
_CONTROL, _SELECTION, _LINE = "#8a8f98", "#2f6fb3", "#c8642b"


@dataclass(frozen=True)
class Study:
    """The content of `study.json`.

    Attributes:
        examples: Training examples of each student.
        seeds: The seeds of each arm's students.
        queries, documents, pairs: Held out: test queries, the documents that they search, and
            scored test pairs.
        training_pairs: The pairs that the arms choose from.
        arms: A row for each, the controls first.
        noise: What was injected into the training pairs; None: nothing.
        detection: How well the noisy pairs are told from the clean ones; empty without noise.
        picked: What the rule `mismatched` picks of both; None without noise.
    """

    examples: int
    seeds: tuple[int, ...]
    queries: int
    documents: int
    pairs: int
    training_pairs: int
    arms: tuple[Row, ...]
    noise: NoiseRecord | None = None
    detection: tuple[DetectorAUC, ...] = ()
    picked: Picked | None = None


def _value(estimate: Estimate) -> str:
    return "–" if estimate.value is None else f"{estimate.value:.3f}"


def _interval(estimate: Estimate, sign: str = "") -> str:
    if estimate.value is None:
        return "–"
    return f"{estimate.value:{sign}.3f} ({estimate.low:{sign}.3f} to {estimate.high:{sign}.3f})"


def _gap(difference: Difference | None) -> str:
    if difference is None:
        return "–"
    p = difference.p_holm
    said = "undefined" if p is None else "< .001" if p < 0.001 else f"{p:.3f}"
    return f"{_interval(difference.estimate, '+')}, p {said}"


def _line(row: Row) -> str:
    name = row.arm.replace("|", r"\|")
    cells = (
        f"`{name}`", f"{row.pairs:,}", _interval(row.ndcg), _gap(row.minus_random),
        _gap(row.minus_all), _value(row.recall), _value(row.pearson), _value(row.mae),
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


_NOISES = {
    "random": "that of another query",
    "near": f"one that the teacher ranks {NEAREST} to {FARTHEST} for the query",
}


def _picked(picked: Picked | None) -> list[str]:
    if picked is None:
        return []
    return [
        "",
        f"`mismatched` picks {picked.noisy:,} of {picked.of_noisy:,} noisy pairs and "
        f"{picked.clean:,} of {picked.of_clean:,} clean ones: {picked.detection}.",
    ]


def _noise(study: Study) -> list[str]:
    """What was injected, and how well it is detected."""
    noise = study.noise
    if noise is None:
        return []
    return [
        "",
        f"Noise `{noise.kind}={noise.share:g}`, seed {noise.seed}: {noise.changed:,} of "
        f"{noise.pairs:,} training pairs have another document, {_NOISES[noise.kind]}. Held-out "
        "pairs and searched documents are clean. The oracle knows which pairs are.",
        "",
        "| detector of noisy pairs | AUC | pairs |",
        "|---|---|---:|",
        *(f"| {one.detector} | {_interval(one.auc)} | {one.auc.n:,} |" for one in study.detection),
        *_picked(study.picked),
    ]


def markdown(study: Study) -> str:
    """A table, what it is measured on, a verdict on each arm, and what noise there is."""
    several = len(study.seeds) > 1
    seeds = f"{len(study.seeds)} seed{'s' * several} ({', '.join(map(str, study.seeds))})"
    over = "queries and seeds" if several else "queries (one seed says nothing about others)"
    lines = [
        "| trained on | pairs | nDCG@10 | minus random of its size | minus all pairs | Recall@100 "
        "| Pearson | MAE |",
        "|---|---:|---|---|---|---|---|---|",
        *map(_line, study.arms),
        "",
        f"{study.examples:,} examples for each student, {seeds}; {study.queries:,} held-out "
        f"queries over {study.documents:,} documents, {study.pairs:,} held-out pairs. In "
        "parentheses 95% intervals: those of nDCG@10 are bootstrapped over queries, those of "
        f"differences are over {over}. Holm's correction of the p-values is over all comparisons "
        "with the same kind of control.",
        "",
        *(f"- `{row.arm}`: {verdict(row)}." for row in study.arms if row.arm != FULL),
        *_noise(study),
    ]
    return "\n".join(lines) + "\n"


def _numbers(row: Row) -> list[float]:
    """Interval and value of nDCG@10, which is never undefined: NaN for type checkers alone."""
    ndcg = row.ndcg
    return [float("nan") if x is None else x for x in (ndcg.low, ndcg.value, ndcg.high)]


def plot(rows: Sequence[Row]) -> Figure:
    """nDCG@10 of every arm: the mean, its interval, each seed as a tick, and a line at all
    pairs.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.0, 0.8 + 0.42 * len(rows)))
        axes = figure.subplots()
        for place, row in enumerate(reversed(rows)):
            low, value, high = _numbers(row)
            colour = _CONTROL if row.is_control else _SELECTION
            axes.plot(
                [low, high], [place] * 2, color=colour, linewidth=5, alpha=0.4,
                solid_capstyle="butt",
            )  # fmt: skip
            seeds = row.ndcg_by_seed
            axes.plot(seeds, [place] * len(seeds), "|", color=colour, markersize=11)
            axes.plot(value, place, "o", color=colour)
            if row.arm == FULL:
                axes.axvline(value, color=_LINE, linewidth=1)
        names = [f"{row.arm} ({row.pairs:,})" for row in reversed(rows)]
        axes.set_yticks(range(len(rows)), names)
        axes.set_xlabel(
            f"nDCG@10: mean, {LEVEL:.0%} interval over queries, each seed; the line is {FULL}"
        )
    return figure
