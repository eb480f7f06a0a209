"""The picture of a selection: the teacher's scores of what was kept and dropped, with the thresholds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure as Plot

BLUE, ORANGE, GREY = "#2f6fb3", "#c8642b", "#8a8f98"


def score_thresholds(audit: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The rules that cut the teacher's score at one number, and that number."""
    return [(rule["rule"], rule["threshold"]) for rule in audit["rules"] if rule["threshold"] is not None and rule["column"] == "score"]


def draw_selection(audit: Mapping[str, Any]) -> Plot:
    """The histogram of `selection.json`: kept pairs, dropped pairs on top, a line at each threshold of the score."""
    edges = np.array(audit["histogram"]["edges"])
    kept, dropped = np.array(audit["histogram"]["kept"]), np.array(audit["histogram"]["dropped"])
    plot = Plot(figsize=(5.4, 3.0))
    axes = plot.subplots()
    axes.bar(edges[:-1], kept, np.diff(edges), align="edge", color=BLUE, label=f"kept ({kept.sum():,})")
    axes.bar(edges[:-1], dropped, np.diff(edges), align="edge", bottom=kept, color=GREY, alpha=0.6, label=f"dropped ({dropped.sum():,})")
    for name, cut in score_thresholds(audit):
        axes.axvline(cut, color=ORANGE, label=f"{name}: {cut:.4f}")
    axes.set_xlabel("teacher's score")
    axes.set_ylabel("training pairs")
    axes.legend(frameon=False, labelcolor=GREY)
    return plot


def describe_selection(audit: Mapping[str, Any]) -> str:
    """What the picture shows, in words and figures."""
    kept, dropped = sum(audit["histogram"]["kept"]), sum(audit["histogram"]["dropped"])
    thresholds = "; ".join(f"{name} at {cut:.4f}" for name, cut in score_thresholds(audit)) or "no rule has a threshold of the score"
    return f"Histogram of teacher scores: {kept:,} pairs kept, {dropped:,} dropped; {thresholds}"


def save_selection_plot(audit: Mapping[str, Any], path: Path) -> None:
    """The picture as a PNG on white, for the dataset card."""
    style: dict[Any, Any] = {
        "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "axes.axisbelow": True,
    }  # fmt: skip
    with mpl.rc_context(style):
        draw_selection(audit).savefig(path, dpi=140, bbox_inches="tight", facecolor="white")
