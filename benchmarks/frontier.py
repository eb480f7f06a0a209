"""What a smaller student costs in quality: `python benchmarks/frontier.py --qrecc FILE [FILE ...]
[--home pydocs]`.

The recommended recipe at several depths, down to a student without a transformer, each for the same
number of examples; of each the latency of a single query, and nDCG@10 of indexes of fewer
dimensions and bytes on the same held-out queries. Students and figures are kept in `--out`. Writes
frontier.md, frontier.svg and frontier.png there, and ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from hf_distill.study.selection_study import matched_recipe
from matplotlib.figure import Figure as Plot
from quality import (
    DOMAINS,
    Domain,
    Setting,
    be_quiet,
    load_domain,
    recipe_of,
    rows_of,
    write_conversations,
)
from sentence_transformers import SentenceTransformer

from hf_distill.compute.device import keep_freed_memory
from hf_distill.compute.encode import encode
from hf_distill.evaluation.efficiency import efficiency
from hf_distill.evaluation.index import index_size
from hf_distill.run.folder import (
    fingerprint,
    read_json_if_current,
    write_json,
)
from hf_distill.student.build import (
    build_student,
    draw_blueprint,
)
from hf_distill.student.save import save_student
from hf_distill.training.train import train_student

FORM = 1
STATIC = (
    "--student_backbone", "static", "--learning_rate", "2e-2", "--per_device_train_batch_size", "64",
)  # fmt: skip
SIZES: Mapping[str, tuple[str, ...]] = {
    "static": STATIC,
    "1 layer": ("--student_layers", "0"),
    "2 layers": ("--student_layers", "0,5"),
    "3 layers": (),
    "6 layers": ("--student_layers", "every=1"),
}
"""Layers beside the first: of two, the last; a search would find others on another machine. A
static student has its own steps: it has no layers to forget anything, and its vectors start far
from where they end.
"""
INDEXES = (
    "float32",
    "float32, first half",
    "float32, first quarter",
    "int8",
    "binary, rescored by int8",
)
MARKERS = {"int8": "s", "binary, rescored by int8": "^"}


def make_student(name: str, domain: Domain, home: str, setting: Setting, examples: int) -> Path:
    """Train the student of a size, unless it is there; its folder."""
    recipe = matched_recipe(recipe_of(home, setting, SIZES[name]), examples, 0)
    if name == "static":  # the recommended keys of a transformer are refused for it
        recipe = dataclasses.replace(
            recipe,
            student=dataclasses.replace(recipe.student, student_layers=None, student_dropout=None),
        )
    folder = setting.out / "frontier" / home / name.replace(" ", "-")
    key = fingerprint(FORM, domain.train_key, recipe.of_student, recipe.training_keys(), examples)
    if read_json_if_current(folder.with_suffix(".json"), key) is None:
        blueprint = draw_blueprint(recipe.student, domain.teacher, domain.scored, domain.folder, 0)
        student = build_student(recipe.student, domain.teacher, blueprint, 0)
        with tempfile.TemporaryDirectory() as temporary:
            rows = rows_of(domain, recipe, student, Path(temporary))
            recipe.training.output_dir, recipe.training.disable_tqdm = temporary, True
            with contextlib.redirect_stdout(io.StringIO()):  # the Trainer's own summary
                made = train_student(
                    student, recipe, rows, rows.select([]), blueprint, domain.scored.scale, key
                )
        save_student(student, folder)
        write_json(folder.with_suffix(".json"), {"fingerprint": key, "seconds": made["seconds"]})
        print(f"{name}: trained in {made['seconds']:.0f} s", flush=True)
    return folder


def compile_frontier(folders: Mapping[str, Path], domain: Domain) -> dict[str, Any]:
    """Latency and indexes of every size, measured side by side."""
    task = domain.task
    queries, documents = [*task.queries.values()], [*task.documents.values()]
    students = {
        name: SentenceTransformer(str(folder), device="cpu") for name, folder in folders.items()
    }
    cost = efficiency({**students, "teacher": domain.teacher.model}, queries, documents, folders)
    sizes = {}
    for name, student in students.items():
        sizes[name] = {
            "cost": cost[name],
            "index": index_size(
                task,
                *(encode(student, texts).numpy() for texts in (queries, documents)),
                "cosine",
                0,
            ),
        }
    teacher = index_size(task, *domain.teacher_embeddings, "cosine", 0)
    return {
        "queries": len(queries),
        "documents": len(documents),
        "sizes": sizes,
        "teacher": {"cost": cost["teacher"], "index": teacher},
    }


def markdown(content: Mapping[str, Any], home: str, examples: int) -> str:
    """A row for each size, and what it is over."""
    rows = {**content["sizes"], "the teacher": content["teacher"]}
    lines = [
        "| student | MB | one query, ms | documents/s | "
        + " | ".join(f"nDCG@10, {name}" for name in INDEXES)
        + " |",
        "|---|---:|---:|---:|" + "---|" * len(INDEXES),
    ]
    for name, row in rows.items():
        figures = [row["index"][index]["nDCG@10"] for index in INDEXES]
        cells = [f"{f['value']:.3f} ({f['low']:.3f} to {f['high']:.3f})" for f in figures]
        cost = row["cost"]
        lines.append(
            f"| {name} | {cost['megabytes']} | {cost['query_ms_p50']} | {cost['documents_per_second']:,.0f} | {' | '.join(cells)} |"
        )
    sizes = next(iter(content["sizes"].values()))["index"]
    weights = ", ".join(
        f"{index} {sizes[index]['bytes_per_million'] / 1e6:,.0f} MB" for index in INDEXES
    )
    lines += [
        "",
        f"Trained on {home}, {examples:,} examples, one seed; {content['queries']:,} held-out queries among {content['documents']:,} "
        f"documents; 95% bootstrap intervals over queries. A million documents of a student take: {weights}. The teacher runs in "
        f"{content['teacher']['cost']['dtype']}, and its indexes are {content['teacher']['index']['dimension'] / sizes['dimension']:g} "
        "times as large.",
    ]
    return "\n".join(lines) + "\n"


def plot(content: Mapping[str, Any]) -> Plot:
    """nDCG@10 against the latency of a query, and against the bytes of an index: of float32 a line
    over dimensions, the others points.
    """
    with mpl.rc_context(
        {
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "svg.hashsalt": "hf_distill",
        }
    ):
        figure = Plot(figsize=(11.6, 4.2))
        left, right = figure.subplots(1, 2, sharey=True)
        rows = {**content["sizes"], "teacher": content["teacher"]}
        for number, (name, row) in enumerate(rows.items()):
            colour = f"C{number}" if name != "teacher" else "#8a8f98"
            whole = row["index"]["float32"]["nDCG@10"]
            x = row["cost"]["query_ms_p50"]
            errors = [[whole["value"] - whole["low"]], [whole["high"] - whole["value"]]]
            left.errorbar(x, whole["value"], yerr=errors, fmt="o", color=colour, elinewidth=0.8)
            beside = (
                {"xytext": (5, -12), "ha": "left"}
                if name == "teacher"
                else {"xytext": (-5, 5), "ha": "right"}
            )
            left.annotate(
                name,
                (x, whole["value"]),
                textcoords="offset points",
                fontsize=8,
                color=colour,
                **beside,
            )
            megabytes = {index: row["index"][index]["bytes_per_million"] / 1e6 for index in INDEXES}
            values = {index: row["index"][index]["nDCG@10"]["value"] for index in INDEXES}
            floats = [index for index in INDEXES if index.startswith("float32")]
            right.plot(
                [megabytes[i] for i in floats],
                [values[i] for i in floats],
                "o-",
                color=colour,
                linewidth=0.9,
                markersize=4,
                label=name,
            )
            for index, marker in MARKERS.items():
                right.plot(
                    megabytes[index],
                    values[index],
                    marker,
                    color=colour,
                    markersize=6,
                    markerfacecolor="none",
                )
        for index, marker in {"float32: whole, half, quarter": "o-", **MARKERS}.items():
            right.plot(
                [],
                [],
                marker,
                color="black",
                markersize=5,
                markerfacecolor="none",
                linewidth=0.9,
                label=index,
            )
        left.set_ylabel("nDCG@10 at home, 95% interval")
        for axes, label, ticks in (
            (left, "one query, ms", (0.5, 1, 2, 4, 8)), (right, "MB of an index of a million documents", (32, 64, 128, 256, 512, 1024)),
        ):  # fmt: skip
            axes.set_xscale("log")
            axes.set_xlabel(label)
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
        left.set_xlim(left=0.3)
        right.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        figure.tight_layout()
    return figure


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--qrecc",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="QReCC JSON files: the conversations.",
    )
    parser.add_argument(
        "--home",
        choices=DOMAINS,
        default="conversations",
        help="The domain to train and measure on.",
    )
    parser.add_argument(
        "--sizes", nargs="+", choices=list(SIZES), default=list(SIZES), help="Default: all."
    )
    parser.add_argument(
        "--examples",
        type=int,
        default=10_240,
        help="Pairs that each student sees. Default: 10,240.",
    )
    parser.add_argument(
        "--max_pairs", type=int, help="Pairs of each domain at most, to try the script out."
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/quality"),
        help="Folder of data and results, which quality.py may share.",
    )
    return parser.parse_args()


def main() -> None:
    """Train what is missing, measure, and say it."""
    line = _options()
    keep_freed_memory()
    be_quiet()
    out = line.out.resolve()
    write_conversations(line.qrecc, out)
    setting = Setting(out, line.max_pairs)
    domain = load_domain(line.home, setting)
    folders = {
        name: make_student(name, domain, line.home, setting, line.examples) for name in line.sizes
    }
    content = compile_frontier(folders, domain)
    write_json(out / "frontier.json", content)
    text = markdown(content, line.home, line.examples)
    (out / "frontier.md").write_text(text, encoding="utf-8")
    for suffix in ("svg", "png"):
        plot(content).savefig(
            out / f"frontier.{suffix}", bbox_inches="tight", facecolor="white", dpi=150
        )
    print(f"\n{text}\nWritten to {out}")
    summary = {
        name: {
            "query_ms": row["cost"]["query_ms_p50"],
            "nDCG@10": round(row["index"]["float32"]["nDCG@10"]["value"], 4),
        }
        for name, row in content["sizes"].items()
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
