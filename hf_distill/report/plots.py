"""The plots of a report, as SVG inside the page. Their colours follow light and dark mode."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_distill.evaluation.results import (
    ALONE,
    IN_ORDER,
    READINGS,
    STUDENT,
    UNTRAINED,
    Calibration,
    Estimate,
    Evaluation,
    PerQuery,
    RetrievalResults,
)
from hf_distill.evaluation.texts import OVERLAP
from hf_distill.evaluation.texts_results import TextsEvaluation
from hf_distill.report.headline import LABELS, NDCG, in_a_sentence, with_interval
from hf_distill.selection.audit import Audit
from hf_distill.selection.mismatch import Detection
from hf_distill.training.between import (
    CLOSENESS,
    ELSEWHERE,
    ERROR,
    LESS_CLOSE,
    MORE_ERROR,
    RANKING,
    acceptable,
)
from hf_distill.training.terms import TERMS
from hf_distill.training.train import TrainingRecord

BLUE, ORANGE, GREY = "#2f6fb3", "#c8642b", "#8a8f98"
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "svg.fonttype": "path",
    "svg.hashsalt": "hf_distill",
    "axes.edgecolor": GREY,
    "text.color": GREY,
    "axes.labelcolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "axes.titlecolor": GREY,
}
"""For a transparent background. The salt gives equal plots equal bytes."""

_INK = {
    GREY: ("--ink", "#4a525d", "#b9c1cc"),
    BLUE: ("--own", "#2f6fb3", "#7db2ea"),
    ORANGE: ("--other", "#b3521d", "#f0a070"),
}
"""Colour of a plot -> CSS variable, colour in light mode, colour in dark mode. The contrast to the
page's background is at least 4.5 : 1 in both.
"""

_LINE = 0.07
"""Height of a label in `plot_cost`, as a share of the panel's."""

_DRAWN_ONE_BY_ONE = 2000
"""More points than this are drawn as an image, which keeps the page small."""


@dataclass(frozen=True)
class Picture:
    """A plot for the page: `svg` is a data URI for an img tag; `alt` says in words and numbers what
    the plot shows.
    """

    svg: str
    alt: str
    caption: str


def _picture(plot: Figure, alt: str, caption: str) -> Picture:
    buffer = io.StringIO()
    plot.savefig(
        buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None}
    )
    svg = buffer.getvalue()
    for colour, (name, _, _) in _INK.items():
        svg = svg.replace(colour, f"var({name})")
    light, dark = (";".join(f"{ink[0]}:{ink[shade]}" for ink in _INK.values()) for shade in (1, 2))
    css = f"<style>:root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
    svg = svg.replace("<defs>", css + "<defs>", 1)
    uri = "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
    return Picture(uri, alt, caption)


def _plot(width: float = 5.4, height: float = 3.4) -> tuple[Figure, Axes]:
    plot = Figure(figsize=(width, height))
    return plot, plot.subplots()


def _colour(system: str) -> str:
    return BLUE if system == STUDENT else GREY


def _arms(estimates: list[Estimate]) -> tuple[np.ndarray, np.ndarray]:
    """Values (n,) and what `errorbar` draws around them, (2, n): how far down and how far up."""
    low, value, high = (
        np.array([getattr(estimate, name) for estimate in estimates], dtype=np.float64)
        for name in ("low", "value", "high")
    )
    return value, np.stack([value - low, high - value])


def plot_retrieval(retrieval: RetrievalResults) -> Picture:
    """nDCG@10 of every system with its interval."""
    names = [
        name
        for name in reversed(IN_ORDER)
        if name in retrieval.systems and name not in retrieval.not_applicable
    ]
    return _by_system(
        {name: retrieval.systems[name][NDCG] for name in names},
        NDCG,
        f"{retrieval.num_queries:,} queries",
        "Retrieval over all held-out documents.",
    )


def plot_overlap(evaluation: TextsEvaluation) -> Picture:
    """What every system finds of the teacher's nearest texts, with its interval."""
    systems = evaluation.systems
    return _by_system(
        {name: systems[name].overlap for name in reversed(IN_ORDER) if name in systems},
        OVERLAP,
        f"{evaluation.num_texts:,} texts",
        "The share of the teacher's ten nearest texts that each system finds.",
    )


def _by_system(of: dict[str, Estimate], measure: str, over: str, caption: str) -> Picture:
    """A dot with its interval for each system."""
    names, estimates = list(of), list(of.values())
    values, (down, up) = _arms(estimates)
    rows, colours = np.arange(len(names)), [_colour(name) for name in names]
    plot, axes = _plot(5.4, 2.2)
    axes.hlines(rows, values - down, values + up, colors=colours, linewidth=5, alpha=0.45)
    axes.scatter(values, rows, color=colours, zorder=3)
    axes.set_yticks(rows, [LABELS[name] for name in names])
    axes.set_xlabel(f"{measure} over {over}, 95% interval")
    story = [
        f"{LABELS[name]} {with_interval(estimate)}"
        for name, estimate in zip(names, estimates, strict=True)
    ]
    return _picture(
        plot,
        f"{measure} with 95% intervals: {'; '.join(story)}",
        caption,
    )


def apart(points: Sequence[tuple[float, float]], gap: float) -> list[float]:
    """The heights of labels at `points` (x, y): those of one x are moved up until they are `gap`
    apart.
    """
    heights, last = [0.0] * len(points), dict[float, float]()
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        x, y = points[i]
        heights[i] = last[x] = max(y, last.get(x, -np.inf) + gap)
    return heights


def plot_cost(evaluation: Evaluation) -> Picture:
    """nDCG@10 against the latency of one query. Systems that were not timed are lines."""
    systems, efficiency = evaluation.retrieval.systems, evaluation.efficiency
    plot, axes = _plot(5.4, 3.2)
    story, labels = [], []
    for name in IN_ORDER:
        if name not in systems or name in (*READINGS, *evaluation.retrieval.not_applicable):
            continue
        estimate, colour = systems[name][NDCG], _colour(name)
        # They have the same architecture, so a query costs the same.
        cost = efficiency.systems.get(STUDENT if name in (UNTRAINED, ALONE) else name)
        values, arms = _arms([estimate])
        if cost is None:
            axes.axhline(values[0], color=GREY, linestyle="--", linewidth=1)
            axes.annotate(
                f"{LABELS[name]}\n(not timed)",
                (1.02, values[0]),  # outside: inside it would lie on the label of a system
                xycoords=("axes fraction", "data"),
                va="center",
                color=GREY,
            )
            story.append(f"{LABELS[name]} {estimate.value:.3f}, not timed")
        else:
            x = cost.query_ms_p50
            axes.errorbar(
                [x], values, arms, fmt="o", color=colour, markersize=7, elinewidth=2, alpha=0.9
            )
            labels.append((x, values[0], name))
            story.append(f"{LABELS[name]} {estimate.value:.3f} at {x:.{0 if x >= 10 else 1}f} ms")
    low, high = axes.get_ylim()
    heights = apart([(x, y) for x, y, _ in labels], _LINE * (high - low))
    for (x, _, name), height in zip(labels, heights, strict=True):
        axes.annotate(
            LABELS[name], (x, height), xytext=(7, 4), textcoords="offset points",
            color=_colour(name),
        )  # fmt: skip
    axes.margins(x=0.35)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"one query, median ms on {efficiency.device}")
    axes.set_ylabel(f"{NDCG}, 95% interval")
    return _picture(
        plot,
        f"{NDCG} against query latency: {'; '.join(story)}",
        "Quality against latency: up and to the left is better.",
    )


def _identity(axes: Axes, x: np.ndarray, y: np.ndarray) -> None:
    """The line on which both scores are equal, as long as the data."""
    ends = [float(min(x.min(), y.min())), float(max(x.max(), y.max()))]
    axes.plot(ends, ends, color=ORANGE, linewidth=1)


def plot_scatter(evaluation: Evaluation) -> Picture:
    """Teacher score against student score of the held-out pairs."""
    teacher, student = np.array(evaluation.pairs.teacher), np.array(evaluation.pairs.student)
    plot, axes = _plot(4.2, 4.0)
    many = len(teacher) > _DRAWN_ONE_BY_ONE
    # An image cannot follow dark mode: its colour suits both.
    colour = "#5a93d0" if many else BLUE
    axes.scatter(teacher, student, s=7, alpha=0.5, color=colour, linewidths=0, rasterized=many)
    _identity(axes, teacher, student)
    axes.set_xlabel("teacher's score")
    axes.set_ylabel("student's score")
    fidelity = evaluation.fidelity
    r = "undefined" if fidelity.pearson.value is None else f"{fidelity.pearson.value:.3f}"
    return _picture(
        plot,
        f"Scatter plot of {len(teacher):,} held-out pairs: Pearson {r}, "
        f"mean absolute error {fidelity.mae.value:.3f}, bias {fidelity.bias.value:+.3f}",
        "Every held-out pair. On the line, student and teacher agree.",
    )


def plot_calibration(calibration: Calibration) -> Picture:
    """The teacher's mean score in each bin of the student's scores, with its interval."""
    x = np.array([part.student_mean for part in calibration.bins])
    values, arms = _arms([part.teacher_mean for part in calibration.bins])
    plot, axes = _plot(4.2, 4.0)
    axes.errorbar(x, values, yerr=arms, fmt="o-", color=BLUE, linewidth=1.2, markersize=5)
    _identity(axes, x, values)
    axes.set_xlabel("student's score, mean of the bin")
    axes.set_ylabel("teacher's score, mean of the bin")
    error = calibration.expected_error
    return _picture(
        plot,
        f"Calibration in {len(x)} bins with equally many pairs; expected calibration error "
        f"{error.value:.3f} ({error.low:.3f} to {error.high:.3f})",
        "On the line, the student's score is the teacher's mean score.",
    )


def plot_wins(per_query: PerQuery, against: str) -> Picture:
    """The student's value minus that of the system `against`, query by query, sorted."""
    student, other = (np.array(per_query.systems[name]) for name in (STUDENT, against))
    differences = np.sort(student - other)[::-1]
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    ties = len(differences) - wins - losses
    plot, axes = _plot(5.4, 2.8)
    x = np.arange(len(differences))
    for where, colour, label in (
        (differences > 0, BLUE, f"wins ({wins:,})"),
        (differences < 0, ORANGE, f"losses ({losses:,})"),
    ):
        axes.fill_between(
            x, differences, where=where.tolist(), step="mid", color=colour, label=label
        )
    axes.axhline(0, color=GREY, linewidth=1)
    axes.set_xlabel(f"{len(x):,} queries, from the largest win to the largest loss")
    axes.set_ylabel(f"{per_query.measure}, difference")
    axes.legend(frameon=False, labelcolor=GREY)
    return _picture(
        plot,
        f"Difference to {in_a_sentence(against)} on each query: {wins:,} wins, {ties:,} ties, "
        f"{losses:,} losses; largest win {max(differences.max(), 0):+.3f}, "
        f"largest loss {min(differences.min(), 0):+.3f}",
        f"The student against {in_a_sentence(against)}, query by query.",
    )


def score_thresholds(audit: Audit) -> list[tuple[str, float]]:
    """The rules that cut the teacher's score at one number, and that number."""
    return [
        (rule.rule, rule.threshold)
        for rule in audit.rules
        if rule.threshold is not None and rule.column == "score"
    ]


def _draw_selection(audit: Audit) -> Figure:
    """The audit's histogram: kept pairs, dropped pairs on top, a line at each threshold."""
    edges, kept, dropped = (
        np.array(values)
        for values in (audit.histogram.edges, audit.histogram.kept, audit.histogram.dropped)
    )
    plot, axes = _plot(5.4, 3.0)
    bars: dict[str, Any] = {"x": edges[:-1], "width": np.diff(edges), "align": "edge"}
    axes.bar(height=kept, color=BLUE, label=f"kept ({kept.sum():,})", **bars)
    axes.bar(
        height=dropped,
        bottom=kept,
        color=GREY,
        alpha=0.6,
        label=f"dropped ({dropped.sum():,})",
        **bars,
    )
    for name, threshold in score_thresholds(audit):
        axes.axvline(threshold, color=ORANGE, label=f"{name}: {threshold:.4f}")
    axes.set_xlabel("teacher's score")
    axes.set_ylabel("training pairs")
    axes.legend(frameon=False, labelcolor=GREY)
    return plot


def describe_selection(audit: Audit) -> str:
    """What the histogram shows, in words and numbers."""
    kept, dropped = sum(audit.histogram.kept), sum(audit.histogram.dropped)
    thresholds = [f"{name} at {threshold:.4f}" for name, threshold in score_thresholds(audit)]
    return (
        f"Histogram of teacher scores: {kept:,} pairs kept, {dropped:,} dropped; "
        f"{'; '.join(thresholds) or 'no rule has a threshold of the score'}"
    )


def plot_selection(audit: Audit) -> Picture:
    """The teacher's scores of kept and dropped training pairs, with the rules' thresholds."""
    return _picture(
        _draw_selection(audit),
        describe_selection(audit),
        "Training pairs that the selection kept and dropped.",
    )


def save_selection_plot(audit: Audit, path: Path) -> None:
    """The same plot as a PNG on white, for the dataset card."""
    with mpl.rc_context(STYLE):
        _draw_selection(audit).savefig(path, dpi=140, bbox_inches="tight", facecolor="white")


def plot_ranks(detection: Detection) -> Picture:
    """How dense the ranks of all pairs are, and how dense those of the mismatched ones. `detection`
    has bins.
    """
    edges, density = np.array(detection.edges), np.array(detection.density)
    counted = np.array(detection.counts) / detection.pairs / (np.diff(edges) / detection.pool)
    plot, axes = _plot(5.4, 3.0)
    axes.bar(
        edges[:-1], counted, np.diff(edges), align="edge", color=GREY, alpha=0.4, label="counted"
    )
    axes.stairs(density, edges, color=BLUE, linewidth=1.8, label="all pairs, never rising")
    if detection.half is not None:
        axes.axhline(detection.share, color=ORANGE, label="mismatched pairs")
        axes.axvline(detection.half, color=GREY, linestyle=":", label="probability 1/2")
    axes.set_xscale("log")
    axes.set_yscale("log")
    # Plain numbers: powers of ten would be formulas, whose fonts are not everywhere.
    for axis, form in ((axes.xaxis, "{x:,.0f}"), (axes.yaxis, "{x:g}")):
        axis.set_major_formatter(form)
        axis.set_minor_formatter("")
    axes.set_xlim(1, edges[-1])
    axes.set_ylim(bottom=min(0.5, *(counted[counted > 0] / 2)))
    axes.set_xlabel(f"rank in the pool of {detection.pool:,} documents")
    axes.set_ylabel("density (1: at random)")
    axes.legend(frameon=False, labelcolor=GREY)
    return _picture(
        plot,
        f"Density of {detection.pairs:,} ranks, {density[0]:.3g} at rank 1 and {density[-1]:.3g} "
        f"at the last: {detection}",
        "How dense the ranks of the pairs' own documents are, before the rules; both axes are "
        "logarithmic. Ranks of mismatched pairs are as dense everywhere.",
    )


def plot_losses(training: TrainingRecord, own_terms: Sequence[str] = ()) -> Picture:
    """The training loss, its weighted terms, and the validation loss, step by step. `own_terms`:
    names of terms that are not of this package.
    """
    plot, axes = _plot(5.4, 3.0)
    faint: dict[str, Any] = {"alpha": 0.6}
    curves: dict[str, tuple[str, dict[str, Any]]] = {
        "loss": ("loss", {"color": BLUE, "linewidth": 1.8}),
        **{name: (name, faint) for name in (*TERMS, *own_terms)},
        "eval_loss": ("validation loss", {"color": ORANGE, "marker": "o"}),
    }
    for key, (label, style) in curves.items():
        points = [(row["step"], row[key]) for row in training.log if key in row]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
    if axes.lines:
        axes.legend(frameon=False, labelcolor=GREY)
    for border in np.cumsum([stage.steps for stage in training.stages])[:-1].tolist():
        axes.axvline(border, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_xlabel("step")
    axes.set_ylabel("weighted loss")
    losses = [row["loss"] for row in training.log if "loss" in row]
    story = f"from {losses[0]:.3f} to {losses[-1]:.3f}" if losses else "not logged"
    return _picture(
        plot,
        f"Training loss over {training.steps:,} steps, {story}",
        "Training loss, and each term times its weight.",
    )


def plot_points(training: TrainingRecord) -> Picture:
    """Ranking against closeness to the teacher's scores, on passages with other words, too, and
    against the error, of the students between the last two stages. Those that `auto` would not
    take are hollow.
    """
    points = training.points
    measures = [
        name
        for name in (CLOSENESS, ELSEWHERE, ERROR)
        if all(name in point.measures for point in points)
    ]
    elsewhere = (
        " Passages are of validation documents, half of them with other words, and auto takes none "
        f"that loses more than {LESS_CLOSE:g} there, either."
        if ELSEWHERE in measures
        else ""
    )
    plot = Figure(figsize=(2.7 * len(measures), 3.0))
    panels = plot.subplots(1, len(measures), sharey=True)
    for axes, measure in zip(panels, measures, strict=True):
        at = [(point.measures[measure], point.measures[RANKING]) for point in points]
        axes.plot(*zip(*at, strict=True), color=BLUE, linewidth=1)
        for point, place in zip(points, at, strict=True):
            colour = ORANGE if point.place == training.specialised else BLUE
            face = colour if acceptable(point, points[0]) else "none"
            axes.plot(*place, "o", color=colour, markerfacecolor=face, markersize=7)
            axes.annotate(f"{point.place:g}", place, (4, 5), textcoords="offset points", color=GREY)
        axes.margins(0.2)
        axes.locator_params(axis="x", nbins=3)
        axes.set_xlabel(measure if measure == ELSEWHERE else f"{measure} to the teacher")
    plot.axes[0].set_ylabel(f"{RANKING}, validation queries")
    shown = "; ".join(
        f"{point.place:g}: "
        + ", ".join(f"{name} {point.measures[name]:.3f}" for name in (RANKING, *measures))
        for point in points
    )
    return _picture(
        plot,
        f"Students between the last two stages, by place ({shown}); the student is specialised at "
        f"{training.specialised:g}",
        "Students between the last two stages of the training: 0 is before the last one, 1 after. "
        "Orange: the student. Hollow: auto takes none that follows the teacher's scores less "
        f"closely than before the last stage, by more than {LESS_CLOSE:g} of {CLOSENESS} or "
        f"{MORE_ERROR:g} of {ERROR}.{elsewhere}",
    )
