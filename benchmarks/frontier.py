"""What a smaller student costs in quality: `python benchmarks/frontier.py --domain NAME=PATH`.

The recommended recipe at several depths, down to a student without a transformer, each for the same
number of examples. Each student is measured on the same held-out queries: the latency of a single
query, and nDCG@10 of indexes of fewer dimensions and bytes. Students and results are kept in
`--out`. Writes frontier.md, frontier.svg and frontier.png there. The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure as Plot
from quality import be_quiet, save_plot
from quality_domains import (
    Domain,
    Setting,
    data_options,
    load_domain,
    prepare_domain,
    recipe_of,
    setting_of,
    with_keys,
)
from sentence_transformers import SentenceTransformer

from hf_distill.compute.device import keep_freed_memory
from hf_distill.errors import InputError
from hf_distill.evaluation.efficiency import efficiency
from hf_distill.evaluation.evaluate import embed_task
from hf_distill.evaluation.index import index_size
from hf_distill.evaluation.results import TEACHER, Cost, Estimate, IndexSize
from hf_distill.run.stage import write_json
from hf_distill.study.arms import matched_recipe

SIZES: Mapping[str, tuple[str, ...]] = {
    "static": (
        "--student_backbone", "static", "--student_layers", "none", "--student_dropout", "none",
        "--learning_rate", "2e-2", "--per_device_train_batch_size", "64",
    ),
    "1 layer": ("--student_layers", "0"),
    "2 layers": ("--student_layers", "0,5"),
    "3 layers": (),
    "6 layers": ("--student_layers", "every=1"),
}  # fmt: skip
"""Layers beside the first one: of two, the last; a search would find others on another machine. A
static student has its own steps, because it has no layers that could forget anything, and its
vectors start far from where they end.
"""
INDEXES = {
    "float32": "float32",
    "float32_half": "float32, first half",
    "float32_quarter": "float32, first quarter",
    "int8": "int8",
    "binary_documents": "binary, queries in float32",
    "binary_rescored": "binary, rescored by int8",
}
"""Indexes of `IndexSize.rows`, and what table and plot call them."""
MARKERS = {"int8": "s", "binary_rescored": "^"}
PANELS = (
    ("one query, ms", (0.5, 1, 2, 4, 8)),
    ("MB of an index of a million documents", (32, 64, 128, 256, 512, 1024)),
)
"""Labels and ticks of the horizontal axes."""


@dataclass(frozen=True)
class Size:
    """A student or the teacher: what it costs, and what indexes of its embeddings lose."""

    cost: Cost
    index: IndexSize


@dataclass(frozen=True)
class Frontier:
    """`frontier.json`: every size, and the teacher, on the same held-out queries and documents."""

    queries: int
    documents: int
    sizes: dict[str, Size]
    teacher: Size

    @property
    def rows(self) -> dict[str, Size]:
        """The sizes and the teacher."""
        return {**self.sizes, TEACHER: self.teacher}


def train_size(name: str, domain: str, setting: Setting, examples: int) -> Path:
    """Train the student of a size, unless that is done. Returns its folder."""
    recipe = matched_recipe(recipe_of(domain, setting, SIZES[name]), examples, 0)
    folder = setting.folder(domain) / "frontier" / name.replace(" ", "-")
    run = with_keys(load_domain(domain, setting), recipe, folder)
    with contextlib.redirect_stdout(io.StringIO()):  # the Trainer's own summary
        training = run.training
    print(f"{name}: {training.summary()}", flush=True)
    return run.folder.student


def compile_frontier(folders: Mapping[str, Path], domain: Domain) -> Frontier:
    """Latency and indexes of every size, measured side by side."""
    task, teacher = domain.task, domain.run.teacher.backbone
    assert teacher is not None
    queries, documents = [*task.queries.values()], [*task.documents.values()]
    students = {
        name: SentenceTransformer(str(folder), device="cpu") for name, folder in folders.items()
    }
    costs = efficiency({**students, TEACHER: teacher}, queries, documents, folders).systems
    embedded = {name: embed_task(student, task, name) for name, student in students.items()}
    embedded[TEACHER] = domain.teacher_embeddings
    rows = {
        name: Size(costs[name], index_size(task, *embeddings, "cosine", 0))
        for name, embeddings in embedded.items()
    }
    return Frontier(
        queries=len(queries),
        documents=len(documents),
        sizes={name: rows[name] for name in students},
        teacher=rows[TEACHER],
    )


def _plain(ndcg: Estimate) -> str:
    return f"{ndcg.value:.3f} ({ndcg.low:.3f} to {ndcg.high:.3f})"


def markdown(content: Frontier, domain: str, examples: int) -> str:
    """A row for each size, and what it is over."""
    titles = " | ".join(f"nDCG@10, {title}" for title in INDEXES.values())
    lines = [
        f"| student | MB | one query, ms | documents/s | {titles} |",
        "|---|---:|---:|---:|" + "---|" * len(INDEXES),
    ]
    for name, row in content.rows.items():
        cells = [_plain(row.index.rows[index].ndcg) for index in INDEXES]
        lines.append(
            f"| {'the teacher' if name == TEACHER else name} | {row.cost.megabytes} | "
            f"{row.cost.query_ms_p50} | {row.cost.documents_per_second:,.0f} | "
            f"{' | '.join(cells)} |"
        )
    student = next(iter(content.sizes.values())).index
    weights = ", ".join(
        f"{title} {student.rows[index].bytes_per_million / 1e6:,.0f} MB"
        for index, title in INDEXES.items()
    )
    lines += [
        "",
        f"Trained on {domain}, {examples:,} examples, one seed; {content.queries:,} held-out "
        f"queries among {content.documents:,} documents; 95% bootstrap intervals over queries. A "
        f"million documents of a student take: {weights}. The teacher runs in "
        f"{content.teacher.cost.dtype}, and its indexes are "
        f"{content.teacher.index.dimension / student.dimension:g} times as large.",
    ]
    return "\n".join(lines) + "\n"


def _plot_latency(axes: Any, name: str, row: Size, colour: str) -> None:
    ndcg = row.index.rows["float32"].ndcg
    value, low, high = (float(v or 0) for v in (ndcg.value, ndcg.low, ndcg.high))
    x = row.cost.query_ms_p50
    axes.errorbar(
        x, value, yerr=[[value - low], [high - value]], fmt="o", color=colour, elinewidth=0.8
    )
    place, side = ((5, -12), "left") if name == TEACHER else ((-5, 5), "right")
    axes.annotate(
        name, (x, value), xytext=place, textcoords="offset points", ha=side, fontsize=8,
        color=colour,
    )  # fmt: skip


def _plot_indexes(axes: Any, name: str, row: Size, colour: str) -> None:
    megabytes = {index: row.index.rows[index].bytes_per_million / 1e6 for index in INDEXES}
    values = {index: row.index.rows[index].ndcg.value for index in INDEXES}
    floats = [index for index in INDEXES if index.startswith("float32")]
    axes.plot(
        [megabytes[i] for i in floats], [values[i] for i in floats], "o-", color=colour,
        linewidth=0.9, markersize=4, label=name,
    )  # fmt: skip
    for index, marker in MARKERS.items():
        axes.plot(
            megabytes[index], values[index], marker, color=colour, markersize=6,
            markerfacecolor="none",
        )  # fmt: skip


def plot(content: Frontier) -> Plot:
    """nDCG@10 against the latency of a query, and against the bytes of an index: a line over the
    dimensions of float32, and points for the others.
    """
    look = {
        "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
        "svg.hashsalt": "hf_distill",
    }  # fmt: skip
    with mpl.rc_context(look):
        figure = Plot(figsize=(11.6, 4.2))
        left, right = figure.subplots(1, 2, sharey=True)
        for number, (name, row) in enumerate(content.rows.items()):
            colour = f"C{number}" if name != TEACHER else "#8a8f98"
            _plot_latency(left, name, row, colour)
            _plot_indexes(right, name, row, colour)
        legend = {INDEXES[index]: marker for index, marker in MARKERS.items()}
        for title, marker in {"float32: whole, half, quarter": "o-", **legend}.items():
            right.plot(
                [], [], marker, color="black", markersize=5, markerfacecolor="none",
                linewidth=0.9, label=title,
            )  # fmt: skip
        left.set_ylabel("nDCG@10 in-domain, 95% interval")
        for axes, (label, ticks) in zip((left, right), PANELS, strict=True):
            axes.set_xscale("log")
            axes.set_xlabel(label)
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
        left.set_xlim(left=0.3)
        right.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        figure.tight_layout()
    return figure


def _options() -> argparse.Namespace:
    parser = data_options(__doc__)
    parser.add_argument(
        "--examples", type=int, default=10_240,
        help="Pairs that each student sees. Default: 10,240.",
    )  # fmt: skip
    parser.add_argument(
        "--sizes", nargs="+", choices=list(SIZES), default=list(SIZES), help="Default: all."
    )
    return parser.parse_args()


def main() -> None:
    """Train what is missing, measure, and print the table."""
    line = _options()
    keep_freed_memory()
    be_quiet()
    setting = setting_of(line)
    out, [domain] = setting.out, setting.names
    prepare_domain(domain, setting)
    folders = {name: train_size(name, domain, setting, line.examples) for name in line.sizes}
    content = compile_frontier(folders, load_domain(domain, setting))
    write_json(out / "frontier.json", content)
    text = markdown(content, domain, line.examples)
    (out / "frontier.md").write_text(text, encoding="utf-8")
    save_plot(plot(content), out / "frontier.svg")
    print(f"\n{text}\nWritten to {out}")
    summary = {
        name: {
            "query_ms": row.cost.query_ms_p50,
            "nDCG@10": round(row.index.rows["float32"].ndcg.value or 0, 4),
        }
        for name, row in content.sizes.items()
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(f"frontier.py: error: {error}") from error
