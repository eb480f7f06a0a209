"""The plots of a report, as SVG that a page carries inside and whose ink follows light and dark
mode.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure as Plot

from hf_distill.evaluation.evaluate import (
    BM25,
    STUDENT,
    TEACHER,
    UNTRAINED,
)
from hf_distill.training.terms import TERMS

LABELS = {TEACHER: "teacher", STUDENT: "student", UNTRAINED: "the untrained student", BM25: "BM25"}
"""How a system is called in a sentence."""

BLUE, ORANGE, GREY = "#2f6fb3", "#c8642b", "#8a8f98"
STYLE: dict[Any, Any] = {
    "font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "svg.fonttype": "path", "svg.hashsalt": "hf_distill", "axes.edgecolor": GREY, "text.color": GREY, "axes.labelcolor": GREY,
    "xtick.color": GREY, "ytick.color": GREY, "axes.titlecolor": GREY,
}  # fmt: skip
"""On a transparent ground."""

_INK = {
    GREY: ("--ink", "#4a525d", "#b9c1cc"),
    BLUE: ("--own", "#2f6fb3", "#7db2ea"),
    ORANGE: ("--other", "#b3521d", "#f0a070"),
}
"""What a colour of a plot is in light and in dark mode: at least 4.5 : 1 against the page's ground
in both.
"""


@dataclass(frozen=True)
class Picture:
    """A plot for the page: `svg` is an img tag's data URI, `alt` what it shows, in words and
    figures.
    """

    svg: str
    alt: str
    caption: str


_DRAWN_ONE_BY_ONE = 2000


def _picture(plot: Plot, alt: str, caption: str) -> Picture:
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
    return Picture(
        "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode(), alt, caption
    )


def _plot(width: float = 5.4, height: float = 3.4) -> tuple[Plot, Any]:
    plot = Plot(figsize=(width, height))
    return plot, plot.subplots()


def plot_retrieval(retrieval: Mapping[str, Any]) -> Picture:
    """nDCG@10 of every system with its interval."""
    names = [name for name in (BM25, UNTRAINED, STUDENT, TEACHER) if name in retrieval["systems"]]
    figures = [retrieval["systems"][name]["nDCG@10"] for name in names]
    plot, axes = _plot(5.4, 2.2)
    for row, (name, f) in enumerate(zip(names, figures, strict=True)):
        axes.plot(
            [f["low"], f["high"]],
            [row, row],
            color=BLUE if name == STUDENT else GREY,
            linewidth=5,
            alpha=0.45,
            solid_capstyle="butt",
        )
        axes.plot(f["value"], row, "o", color=BLUE if name == STUDENT else GREY)
    axes.set_yticks(range(len(names)), [LABELS[name].removeprefix("the ") for name in names])
    axes.set_xlabel(f"nDCG@10 over {retrieval['num_queries']:,} queries, 95% interval")
    text = "; ".join(
        f"{n} {f['value']:.3f} ({f['low']:.3f} to {f['high']:.3f})"
        for n, f in zip(names, figures, strict=True)
    )
    return _picture(
        plot, f"nDCG@10 with 95% intervals: {text}", "Retrieval over the full held-out corpus."
    )


def plot_cost(evaluation: Mapping[str, Any]) -> Picture:
    """nDCG@10 against the latency of one query, of every system whose latency is known; the others
    as lines.
    """
    systems, cost = evaluation["retrieval"]["systems"], evaluation["efficiency"]
    # The untrained student is the same architecture, so it costs the same.
    latency = {
        name: cost[STUDENT if name == UNTRAINED else name]
        for name in systems
        if name in cost or name == UNTRAINED
    }
    plot, axes = _plot(5.4, 3.2)
    story = []
    for name in (TEACHER, STUDENT, UNTRAINED, BM25):
        if name not in systems:
            continue
        figure, label = systems[name]["nDCG@10"], LABELS[name].removeprefix("the ")
        colour = BLUE if name == STUDENT else GREY
        if name in latency:
            x = latency[name]["query_ms_p50"]
            reach = [[figure["value"] - figure["low"]], [figure["high"] - figure["value"]]]
            axes.errorbar(
                [x],
                [figure["value"]],
                yerr=reach,
                fmt="o",
                color=colour,
                markersize=7,
                elinewidth=2,
                alpha=0.9,
            )
            axes.annotate(
                label, (x, figure["value"]), xytext=(7, 4), textcoords="offset points", color=colour
            )
            story.append(f"{label} {figure['value']:.3f} at {x:.{0 if x >= 10 else 1}f} ms")
        else:
            axes.axhline(figure["value"], color=GREY, linestyle="--", linewidth=1)
            axes.annotate(
                f"{label} (not timed)", (0.99, figure["value"]), xycoords=("axes fraction", "data"), xytext=(0, 3),
                textcoords="offset points", ha="right", color=GREY,
            )  # fmt: skip
            story.append(f"{label} {figure['value']:.3f}, not timed")
    axes.margins(x=0.35)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"one query, median ms on {cost['device']}")
    axes.set_ylabel("nDCG@10, 95% interval")
    return _picture(
        plot,
        f"nDCG@10 against query latency: {'; '.join(story)}",
        "Quality against latency: up and left is better.",
    )


def plot_scatter(evaluation: Mapping[str, Any]) -> Picture:
    """Teacher score against student score of the held-out pairs."""
    teacher, student = (
        np.array(evaluation["pairs"][f"{name}_score"]) for name in (TEACHER, STUDENT)
    )
    plot, axes = _plot(4.2, 4.0)
    many = (
        len(teacher) > _DRAWN_ONE_BY_ONE
    )  # as a raster they do not follow dark mode: a colour for both
    axes.scatter(
        teacher,
        student,
        s=7,
        alpha=0.5,
        color="#5a93d0" if many else BLUE,
        linewidths=0,
        rasterized=many,
    )
    low, high = float(min(teacher.min(), student.min())), float(max(teacher.max(), student.max()))
    axes.plot([low, high], [low, high], color=ORANGE, linewidth=1)
    axes.set_xlabel("teacher's score")
    axes.set_ylabel("student's score")
    f = evaluation["fidelity"]
    r = "undefined" if f["pearson"]["value"] is None else f"{f['pearson']['value']:.3f}"
    return _picture(
        plot,
        f"Scatter of {len(teacher):,} held-out pairs: Pearson {r}, mean absolute error {f['mae']['value']:.3f}, "
        f"bias {f['bias']['value']:+.3f}",
        "Every held-out pair; on the line, student and teacher agree.",
    )


def plot_calibration(calibration: Mapping[str, Any]) -> Picture:
    """The teacher's mean score where the student says a score, with its interval."""
    bins = calibration["bins"]
    x, y = np.array([b["student_mean"] for b in bins]), [b["teacher_mean"] for b in bins]
    values = np.array([f["value"] for f in y])
    plot, axes = _plot(4.2, 4.0)
    reach = [values - [f["low"] for f in y], np.array([f["high"] for f in y]) - values]
    axes.errorbar(x, values, yerr=reach, fmt="o-", color=BLUE, linewidth=1.2, markersize=5)
    low, high = float(min(x.min(), values.min())), float(max(x.max(), values.max()))
    axes.plot([low, high], [low, high], color=ORANGE, linewidth=1)
    axes.set_xlabel("student's score, mean of the bin")
    axes.set_ylabel("teacher's score, mean of the bin")
    error = calibration["expected_error"]
    return _picture(
        plot,
        f"Calibration in {len(bins)} bins of equally many pairs; expected calibration error {error['value']:.3f} "
        f"({error['low']:.3f} to {error['high']:.3f})",
        "On the line, the student's score is what the teacher says on average.",
    )


def plot_wins(per_query: Mapping[str, Any], against: str) -> Picture:
    """The student's value minus that of `against`, query by query, sorted."""
    values = {name: np.array(row) for name, row in per_query["systems"].items()}
    differences = np.sort(values[STUDENT] - values[against])[::-1]
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    plot, axes = _plot(5.4, 2.8)
    x = np.arange(len(differences))
    axes.fill_between(
        x,
        differences,
        where=(differences > 0).tolist(),
        step="mid",
        color=BLUE,
        label=f"wins ({wins:,})",
    )
    axes.fill_between(
        x,
        differences,
        where=(differences < 0).tolist(),
        step="mid",
        color=ORANGE,
        label=f"losses ({losses:,})",
    )
    axes.axhline(0, color=GREY, linewidth=1)
    axes.set_xlabel(f"{len(x):,} queries, from the largest win to the largest loss")
    axes.set_ylabel(f"{per_query['measure']}, difference")
    axes.legend(frameon=False, labelcolor=GREY)
    other = LABELS[against] if against == BM25 else f"the {LABELS[against].removeprefix('the ')}"
    return _picture(
        plot,
        f"Difference to {other} on each query: {wins:,} wins, {len(x) - wins - losses:,} ties, {losses:,} losses; largest win "
        f"{max(differences.max(), 0):+.3f}, largest loss {min(differences.min(), 0):+.3f}",
        f"The student against {other}, query by query.",
    )


def score_thresholds(audit: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The rules that cut the teacher's score at one number, and that number."""
    return [
        (rule["rule"], rule["threshold"])
        for rule in audit["rules"]
        if rule["threshold"] is not None and rule["column"] == "score"
    ]


def _draw_selection(audit: Mapping[str, Any]) -> Plot:
    """The histogram of `selection.json`: kept pairs, dropped pairs on top, a line at each threshold
    of the score.
    """
    edges = np.array(audit["histogram"]["edges"])
    kept, dropped = np.array(audit["histogram"]["kept"]), np.array(audit["histogram"]["dropped"])
    plot, axes = _plot(5.4, 3.0)
    axes.bar(
        edges[:-1], kept, np.diff(edges), align="edge", color=BLUE, label=f"kept ({kept.sum():,})"
    )
    axes.bar(
        edges[:-1],
        dropped,
        np.diff(edges),
        align="edge",
        bottom=kept,
        color=GREY,
        alpha=0.6,
        label=f"dropped ({dropped.sum():,})",
    )
    for name, cut in score_thresholds(audit):
        axes.axvline(cut, color=ORANGE, label=f"{name}: {cut:.4f}")
    axes.set_xlabel("teacher's score")
    axes.set_ylabel("training pairs")
    axes.legend(frameon=False, labelcolor=GREY)
    return plot


def describe_selection(audit: Mapping[str, Any]) -> str:
    """What the picture shows, in words and figures."""
    kept, dropped = sum(audit["histogram"]["kept"]), sum(audit["histogram"]["dropped"])
    thresholds = (
        "; ".join(f"{name} at {cut:.4f}" for name, cut in score_thresholds(audit))
        or "no rule has a threshold of the score"
    )
    return f"Histogram of teacher scores: {kept:,} pairs kept, {dropped:,} dropped; {thresholds}"


def plot_selection(audit: Mapping[str, Any]) -> Picture:
    """The teacher's scores of kept and dropped training pairs, with the thresholds of the rules."""
    return _picture(
        _draw_selection(audit), describe_selection(audit), "What the selection kept and dropped."
    )


def save_selection_plot(audit: Mapping[str, Any], path: Path) -> None:
    """The same as a PNG on white, for the dataset card."""
    with mpl.rc_context(STYLE):
        _draw_selection(audit).savefig(path, dpi=140, bbox_inches="tight", facecolor="white")


def plot_losses(training: Mapping[str, Any]) -> Picture:
    """The training loss, its weighted terms, and the validation loss over steps."""
    log = training["log"]
    plot, axes = _plot(5.4, 3.0)
    own = {"loss", "eval_loss"}
    terms = [name for name in TERMS if any(name in row for row in log)]
    for name in ("loss", *terms, "eval_loss"):
        points = [(row["step"], row[name]) for row in log if name in row]
        if points:
            style = (
                {"color": BLUE, "linewidth": 1.8}
                if name == "loss"
                else {"color": ORANGE, "marker": "o"}
                if name == "eval_loss"
                else {}
            )
            axes.plot(
                *zip(*points, strict=True),
                label="validation loss" if name == "eval_loss" else name,
                alpha=1 if name in own else 0.6,
                **style,
            )
    axes.set_xlabel("step")
    axes.set_ylabel("weighted loss")
    if log:
        axes.legend(frameon=False, labelcolor=GREY)
    losses = [row["loss"] for row in log if "loss" in row]
    story = f"from {losses[0]:.3f} to {losses[-1]:.3f}" if losses else "not logged"
    return _picture(
        plot,
        f"Training loss over {training['steps']:,} steps, {story}",
        "Training, term by term (each times its weight).",
    )
