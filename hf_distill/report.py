"""The report: evaluation and audit as one self-contained HTML page, plots inside."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure as Plot

from hf_distill.evaluation import BM25, STUDENT, TEACHER, UNTRAINED
from hf_distill.objective import TERMS
from hf_distill.run_folder import RunFolder, written_whole
from hf_distill.selection_plot import describe_selection, draw_selection

LABELS = {TEACHER: "teacher", STUDENT: "student", UNTRAINED: "the untrained student", BM25: "BM25"}
"""How a system is called in a sentence."""

TEMPLATES = Path(__file__).parent / "templates"

BLUE, ORANGE, GREY = "#2f6fb3", "#c8642b", "#8a8f98"
_STYLE: dict[Any, Any] = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "svg.fonttype": "path", "svg.hashsalt": "hf_distill", "axes.edgecolor": GREY, "text.color": GREY, "axes.labelcolor": GREY,
    "xtick.color": GREY, "ytick.color": GREY, "axes.titlecolor": GREY,
}  # fmt: skip
"""Mid-grey ink on a transparent ground: readable in light and in dark mode."""


@dataclass(frozen=True)
class Picture:
    """A plot for the page: `svg` is an img tag's data URI, `alt` what it shows, in words and figures."""

    svg: str
    alt: str
    caption: str


def _picture(plot: Plot, alt: str, caption: str) -> Picture:
    buffer = io.StringIO()
    plot.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    return Picture("data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue().encode()).decode(), alt, caption)


def _plot(width: float = 5.4, height: float = 3.4) -> tuple[Plot, Any]:
    plot = Plot(figsize=(width, height))
    return plot, plot.subplots()


def environment() -> jinja2.Environment:
    """Jinja with HTML escaping for `.html` templates only; an undefined name is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(["html.j2"], default_for_string=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def plot_retrieval(retrieval: Mapping[str, Any]) -> Picture:
    """nDCG@10 of every system with its interval."""
    names = [name for name in (BM25, UNTRAINED, STUDENT, TEACHER) if name in retrieval["systems"]]
    figures = [retrieval["systems"][name]["nDCG@10"] for name in names]
    plot, axes = _plot(5.4, 2.2)
    for row, (name, f) in enumerate(zip(names, figures, strict=True)):
        axes.plot(
            [f["low"], f["high"]], [row, row], color=BLUE if name == STUDENT else GREY, linewidth=5, alpha=0.45, solid_capstyle="butt"
        )
        axes.plot(f["value"], row, "o", color=BLUE if name == STUDENT else GREY)
    axes.set_yticks(range(len(names)), [LABELS[name].removeprefix("the ") for name in names])
    axes.set_xlabel(f"nDCG@10 over {retrieval['num_queries']:,} queries, 95% interval")
    text = "; ".join(f"{n} {f['value']:.3f} ({f['low']:.3f} to {f['high']:.3f})" for n, f in zip(names, figures, strict=True))
    return _picture(plot, f"nDCG@10 with 95% intervals: {text}", "Retrieval over the full held-out corpus.")


def plot_scatter(evaluation: Mapping[str, Any]) -> Picture:
    """Teacher score against student score of the held-out pairs."""
    teacher, student = (np.array(evaluation["pairs"][f"{name}_score"]) for name in (TEACHER, STUDENT))
    plot, axes = _plot(4.2, 4.0)
    axes.scatter(teacher, student, s=5, alpha=0.35, color=BLUE, linewidths=0, rasterized=True)
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


def plot_selection(audit: Mapping[str, Any]) -> Picture:
    """The teacher's scores of kept and dropped training pairs, with the thresholds of the rules."""
    return _picture(draw_selection(audit), describe_selection(audit), "What the selection kept and dropped.")


def plot_losses(training: Mapping[str, Any]) -> Picture:
    """The training loss, its weighted terms, and the validation loss over steps."""
    log = training["log"]
    plot, axes = _plot(5.4, 3.0)
    own = {"loss", "eval_loss"}
    terms = [name for name in TERMS if any(name in row for row in log)]
    for name in ("loss", *terms, "eval_loss"):
        points = [(row["step"], row[name]) for row in log if name in row]
        if points:
            style = {"color": BLUE, "linewidth": 1.8} if name == "loss" else {"color": ORANGE, "marker": "o"} if name == "eval_loss" else {}
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
    return _picture(plot, f"Training loss over {training['steps']:,} steps, {story}", "Training, term by term (each times its weight).")


def headline(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of the headline table: one per system, figures as {value, low, high}."""
    systems = evaluation["retrieval"]["systems"]
    return [
        {"system": name, "label": LABELS[name].removeprefix("the "), **systems[name]}
        for name in (TEACHER, STUDENT, UNTRAINED, BM25)
        if name in systems
    ]


def results_table(evaluation: Mapping[str, Any]) -> str:
    """The headline figures as a short table for a terminal, and the verdict under it."""
    measures = list(evaluation["retrieval"]["systems"][STUDENT])
    lines = [f"{'':<18}" + "".join(f"{name:>10}" for name in measures)]
    for row in headline(evaluation):
        lines.append(f"{row['label']:<18}" + "".join(f"{row[name]['value']:>10.3f}" for name in measures))
    f = evaluation["fidelity"]
    lines.append("")
    for name in ("pearson", "mae"):
        figure = f[name]
        value = "undefined" if figure["value"] is None else f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"
        lines.append(f"{name.upper() if name == 'mae' else 'Pearson'} to the teacher on {f['num_pairs']:,} held-out pairs: {value}")
    return "\n".join([*lines, verdict(evaluation)])


def verdict(evaluation: Mapping[str, Any]) -> str:
    """One honest sentence: what share of the teacher's nDCG@10 the student keeps, and what it beats beyond doubt."""
    over_teacher = evaluation["retrieval"]["student_over_teacher"]
    margins = evaluation["retrieval"]["student_minus"]
    beaten = [name for name in (BM25, UNTRAINED) if margins[name]["nDCG@10"]["low"] > 0]
    level = [name for name in (BM25, UNTRAINED) if margins[name]["nDCG@10"]["low"] <= 0 <= margins[name]["nDCG@10"]["high"]]
    worse = [name for name in (BM25, UNTRAINED) if margins[name]["nDCG@10"]["high"] < 0]
    if over_teacher is not None:
        ratio = over_teacher["nDCG@10"]
        kept = f"The student keeps {ratio['value']:.1%} of the teacher's nDCG@10 (95% interval {ratio['low']:.1%} to {ratio['high']:.1%})"
    else:
        own = evaluation["retrieval"]["systems"][STUDENT]["nDCG@10"]
        kept = (
            f"The student reaches nDCG@10 {own['value']:.3f} (95% interval {own['low']:.3f} to {own['high']:.3f}; the teacher embeds no "
            "texts, so it cannot search the corpus)"
        )
    claims = [
        f"{verb} {' and '.join(LABELS[name] for name in names)}"
        for verb, names in (("is better than", beaten), ("cannot be told apart from", level), ("is worse than", worse))
        if names
    ]
    return f"{kept}; it {', '.join(claims)}."


def write_report(
    evaluation: Mapping[str, Any],
    audit: Mapping[str, Any],
    training: Mapping[str, Any],
    soft_labels: Mapping[str, Any],
    counts: Mapping[str, Any],
    recipe: Mapping[str, Any],
    name: str,
    folder: RunFolder,
) -> None:
    """Write `report.html` from measured results; text from the data is escaped, nothing is loaded from elsewhere."""
    with mpl.rc_context(_STYLE):
        pictures = {
            "retrieval": plot_retrieval(evaluation["retrieval"]),
            "scatter": plot_scatter(evaluation),
            "selection": plot_selection(audit),
            "losses": plot_losses(training),
        }
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            name=name,
            verdict=verdict(evaluation),
            rows=headline(evaluation),
            measures=list(next(iter(evaluation["retrieval"]["systems"].values()))),
            evaluation=evaluation,
            audit=audit,
            training=training,
            soft_labels=soft_labels,
            counts=counts,
            recipe=recipe,
            pictures=pictures,
        )
    )
    with written_whole(folder.report) as temporary:
        temporary.write_text(page, encoding="utf-8")
