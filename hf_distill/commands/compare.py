"""`hf-distill compare A B ... --task T`: models side by side on one retrieval task."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from hf_distill.compute.device import use_all_cores
from hf_distill.compute.models import load_sentence_transformer
from hf_distill.compute.search import search
from hf_distill.errors import InputError
from hf_distill.evaluation.evaluate import embed
from hf_distill.evaluation.intervals import (
    LEVEL,
    RESAMPLES,
    figure,
    mean,
)
from hf_distill.evaluation.retrieval import (
    MEASURES,
    Run,
    bm25_run,
    depth_of,
    make_run,
    parse_measures,
    per_query,
    write_qrels,
    write_run,
)
from hf_distill.evaluation.significance import compare_systems
from hf_distill.evaluation.tasks import (
    RetrievalTask,
    load_task,
)
from hf_distill.run.folder import (
    RunFolder,
    write_json,
)
from hf_distill.teachers.base import SCALES

HELP = "Measure models on one retrieval task, with intervals and tests against the first one."
BM25 = "bm25"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="a SentenceTransformer: folder, run folder (its student) or Hub id",
    )
    parser.add_argument(
        "--task",
        required=True,
        help="a run's folder (its held-out pairs), a BEIR folder, nano:NAME or mteb:NAME",
    )
    parser.add_argument("--bm25", action="store_true", help="measure BM25, too")
    parser.add_argument(
        "--measures", nargs="+", default=[str(measure) for measure in MEASURES], metavar="MEASURE",
        help="of ir-measures; the first one is tested (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=42, help="of the bootstrap (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    parser.add_argument(
        "--runs",
        type=Path,
        metavar="FOLDER",
        help="write TREC runs and qrels.txt to FOLDER, for ir_measures",
    )


def names_of(models: list[str]) -> dict[str, str]:
    """A short name for each model -> where it is: the last part that tells them apart."""
    if len(set(models)) < len(models):
        raise InputError(f"a model is named twice: {' '.join(models)}")
    short = [Path(model).name or model for model in models]
    return {
        name if short.count(name) == 1 else model: model
        for name, model in zip(short, models, strict=True)
    }


def run_of_model(location: str, name: str, task: RetrievalTask, depth: int, bar: Any) -> Run:
    """The run of the SentenceTransformer at `location`, ranked by the similarity that it
    declares.
    """
    student = RunFolder(Path(location)).student
    model = load_sentence_transformer(str(student) if student.is_dir() else location, "models")
    queries, documents = embed(model, task, name, bar)
    measure = str(model.similarity_fn_name)
    if measure not in SCALES:
        raise InputError(
            f"{location} declares the similarity {measure}; known are {', '.join(SCALES)}"
        )
    if measure == "cosine":
        queries, documents = (
            x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
            for x in (queries, documents)
        )
    return make_run(
        list(task.queries), list(task.documents), *search(queries, documents, depth, measure)
    )


def run(arguments: argparse.Namespace) -> None:
    measures = parse_measures(arguments.measures)
    if len(arguments.models) + arguments.bm25 < 2:
        raise InputError(
            "one model has nothing to be compared with; name another one, or add --bm25"
        )
    models = names_of(arguments.models)
    task, depth = load_task(arguments.task), depth_of(measures)
    use_all_cores(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    with tqdm(total=2 * len(models), desc="Comparing", unit=" encodings", leave=False) as bar:
        runs = {
            name: run_of_model(location, name, task, depth, bar)
            for name, location in models.items()
        }
    if arguments.bm25:
        runs[BM25] = bm25_run(
            list(task.queries),
            list(task.queries.values()),
            list(task.documents),
            list(task.documents.values()),
            depth,
        )
    values = {name: per_query(found, task.qrels, measures) for name, found in runs.items()}
    names = [str(measure) for measure in measures]
    baseline = next(iter(models))
    result = {
        "task": {
            "name": task.name,
            "num_queries": len(task.qrels),
            "num_documents": len(task.documents),
            "notes": list(task.notes),
        },
        "bootstrap": {"resamples": RESAMPLES, "level": LEVEL, "seed": arguments.seed},
        "models": models,
        "systems": {
            name: {m: figure(mean, [per[m]], arguments.seed) for m in names}
            for name, per in values.items()
        },
        "against": {
            "baseline": baseline,
            **{
                m: compare_systems(
                    {name: per[m] for name, per in values.items()}, baseline, arguments.seed
                )["comparisons"]
                for m in names
            },
        },
    }
    print(table(result))
    if arguments.runs:
        write_qrels(task.qrels, arguments.runs / "qrels.txt")
        for name, found in runs.items():
            write_run(
                found, arguments.runs / f"{name.replace('/', '_').replace(' ', '-')}.run", name
            )
    if arguments.json:
        write_json(
            arguments.json,
            result
            | {
                "per_query": {
                    "ids": list(task.qrels),
                    **{n: {m: p[m].tolist() for m in p} for n, p in values.items()},
                }
            },
        )


def table(result: dict[str, Any]) -> str:
    """What `run` found, for a terminal."""
    task, systems, against = result["task"], result["systems"], result["against"]
    names = list(next(iter(systems.values())))
    width = max(len(name) for name in systems) + 2
    lines = [
        f"{task['name']}: {task['num_queries']:,} judged queries, {task['num_documents']:,} documents; 95% intervals in brackets"
    ]
    lines += [f"Note: {note}" for note in task["notes"]]
    lines += ["", " " * width + "".join(f"{name:>24}" for name in names)]
    for name, figures in systems.items():
        cells = (
            f"{f['value']:.3f} [{f['low']:.3f}, {f['high']:.3f}]"
            for f in (figures[m] for m in names)
        )
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>24}" for cell in cells))
    lines += [
        "",
        f"{names[0]}, difference from {against['baseline']}; p of sign flips, corrected by Holm; Cohen's d_z",
    ]
    for name, row in against[names[0]].items():
        d = row["difference"]
        test, effect = row["randomisation"], row["cohens_dz"]["value"]
        p = test["undefined"] if test["p"] is None else f"p = {test['p_holm']:.4f}"
        p += "" if effect is None else f", d = {effect:+.2f}"
        counts = f"{row['wins']} queries better, {row['losses']} worse, {row['ties']} equal"
        lines.append(
            f"{name:<{width}}{d['value']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}]  {p}  ({counts})"
        )
    return "\n".join(lines)
