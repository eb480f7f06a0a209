"""`hf-distill compare A B ... --task T`: models side by side on one retrieval task."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from hf_distill.compute.device import use_all_cores
from hf_distill.compute.models import load_sentence_transformer
from hf_distill.compute.search import search
from hf_distill.errors import InputError
from hf_distill.evaluation.bm25 import bm25_run
from hf_distill.evaluation.evaluate import embed_task
from hf_distill.evaluation.intervals import bootstrap_settings, estimate, mean
from hf_distill.evaluation.results import BM25, Bootstrap, Comparison, Estimate
from hf_distill.evaluation.retrieval import (
    MEASURES,
    Run,
    depth_of,
    parse_measures,
    per_query,
    write_qrels,
    write_run,
)
from hf_distill.evaluation.significance import compare_systems
from hf_distill.evaluation.systems import not_applicable
from hf_distill.evaluation.tasks import RetrievalTask, load_task
from hf_distill.run.folder import RunFolder, recipe_says
from hf_distill.run.stage import write_json
from hf_distill.serving.index import student_of
from hf_distill.teachers.base import SCALES

_TWO_TEXTS = (
    "students that a run trained to read other texts (student_query) read these; other models, and "
    "BM25, read the queries"
)

HELP = "Measure models on one retrieval task, with intervals and tests against the first one."


@dataclass(frozen=True)
class TaskSummary:
    """The task that models were compared on."""

    name: str
    num_queries: int
    num_documents: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ModelComparison:
    """Models side by side: what `--json` writes.

    Attributes:
        task: What they were measured on.
        bootstrap: How the intervals were made.
        models: Name in the tables -> folder or Hub id.
        baseline: The first model's name.
        systems: Model (or `bm25`) -> measure -> its mean over the queries.
        comparisons: Measure -> model -> that model minus the baseline.
        query_ids: The judged queries.
        per_query: Model -> measure -> the value of each of these queries.
    """

    task: TaskSummary
    bootstrap: Bootstrap
    models: dict[str, str]
    baseline: str
    systems: dict[str, dict[str, Estimate]]
    comparisons: dict[str, dict[str, Comparison]]
    query_ids: tuple[str, ...]
    per_query: dict[str, dict[str, tuple[float, ...]]]


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
    parser.add_argument("--bm25", action="store_true", help="also measure BM25")
    parser.add_argument(
        "--measures", nargs="+", default=[str(measure) for measure in MEASURES], metavar="MEASURE",
        help="of ir-measures; the first one is tested (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=42, help="of the bootstrap (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results to FILE")
    parser.add_argument(
        "--runs",
        type=Path,
        metavar="FOLDER",
        help="write TREC runs and qrels.txt to FOLDER, for ir_measures",
    )


def names_of(models: list[str]) -> dict[str, str]:
    """A short name for each model -> where it is: the last part of its path if no other model has
    the same.
    """
    if len(set(models)) < len(models):
        raise InputError(f"a model is named twice: {' '.join(models)}; name each once")
    short = [Path(model).name or model for model in models]
    return {
        name if short.count(name) == 1 else model: model
        for name, model in zip(short, models, strict=True)
    }


def _is_student_of_other_texts(place: Path) -> bool:
    """Whether a run trained it to read other texts than the teacher."""
    folder = RunFolder(place.parent)
    return folder.student == place and recipe_says(folder, "student_query") is not None


def is_query_encoder(location: str) -> bool:
    """Whether `location` is a run whose student searches what its teacher embedded."""
    return bool(recipe_says(RunFolder(Path(location)), "student_space") == "teacher")


def run_of_model(location: str, name: str, task: RetrievalTask, depth: int) -> Run:
    """The run of the SentenceTransformer at `location`, ranked by the similarity that it
    declares.
    """
    place = student_of(location)
    model = load_sentence_transformer(place, "models")
    if not _is_student_of_other_texts(Path(place)):
        task = replace(task, student_queries=None)
    queries, documents = embed_task(model, task, name)
    similarity = str(model.similarity_fn_name)
    if similarity not in SCALES:
        raise InputError(
            f"{location} declares the similarity {similarity}, which cannot be searched by; name a "
            f"model with one of {', '.join(SCALES)}"
        )
    if similarity == "cosine":
        queries, documents = (
            x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
            for x in (queries, documents)
        )
    return task.run(search(queries, documents, depth, similarity))


def run(arguments: argparse.Namespace) -> None:
    measures = parse_measures(arguments.measures)
    if len(arguments.models) + arguments.bm25 < 2:
        raise InputError(
            "one model cannot be compared with itself; name another one, or add --bm25"
        )
    models = names_of(arguments.models)
    task, depth = load_task(arguments.task), depth_of(measures)
    if task.student_queries is not None:
        task = replace(task, notes=(*task.notes, _TWO_TEXTS))
    use_all_cores(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    bar = tqdm(models.items(), desc="Comparing", unit=" models", leave=False)
    runs = {name: run_of_model(location, name, task, depth) for name, location in bar}
    if arguments.bm25:
        bm25 = bm25_run(task.queries, task.documents, depth)
        if nothing := not_applicable(bm25, task.qrels):
            print(f"BM25 is {nothing.reason}")
        else:
            runs[BM25] = bm25
    if arguments.runs:
        write_qrels(task.qrels, arguments.runs / "qrels.txt")
        for name, ranking in runs.items():
            file = f"{name.replace('/', '_').replace(' ', '-')}.run"
            write_run(ranking, arguments.runs / file, name)
    values = {name: per_query(ranking, task.qrels, measures) for name, ranking in runs.items()}
    comparison = compare(task, models, values, arguments.seed)
    for name, location in models.items():
        if is_query_encoder(location):
            print(
                f"Note: {name} is a query encoder, and here it embeds the documents, too; to "
                f"search its teacher's: hf-distill export {location} --format router, then compare "
                f"{location}/router"
            )
    print(table(comparison))
    if arguments.json:
        write_json(arguments.json, comparison)


def compare(
    task: RetrievalTask,
    models: dict[str, str],
    values: Mapping[str, Mapping[str, np.ndarray]],
    seed: int,
) -> ModelComparison:
    """Intervals of every system, and tests of the others against the first model.

    Args:
        task: What was measured on.
        models: Name -> where the model is; the first is the baseline.
        values: System -> measure -> (Q,) per-query values, in the order of the judgements.
        seed: Seeds the bootstrap and the randomisation.
    """
    baseline = next(iter(models))
    measures = list(values[baseline])
    others = [name for name in values if name != baseline]
    return ModelComparison(
        task=TaskSummary(task.name, len(task.qrels), len(task.documents), task.notes),
        bootstrap=bootstrap_settings(seed),
        models=models,
        baseline=baseline,
        systems={
            name: {m: estimate(mean, [per[m]], seed) for m in measures}
            for name, per in values.items()
        },
        comparisons={
            m: compare_systems(
                {name: (values[name][m], values[baseline][m]) for name in others}, seed
            )
            for m in measures
        },
        query_ids=tuple(task.qrels),
        per_query={
            name: {m: tuple(array.tolist()) for m, array in per.items()}
            for name, per in values.items()
        },
    )


def table(comparison: ModelComparison) -> str:
    """The comparison for a terminal."""
    task, systems = comparison.task, comparison.systems
    names = list(systems[comparison.baseline])
    width = max(map(len, systems)) + 2
    lines = [
        f"{task.name}: {task.num_queries:,} judged queries, {task.num_documents:,} documents; 95% "
        "intervals in brackets"
    ]
    lines += [f"Note: {note}" for note in task.notes]
    lines += ["", " " * width + "".join(f"{name:>24}" for name in names)]
    for name, measures in systems.items():
        cells = (f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]" for e in measures.values())
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>24}" for cell in cells))
    lines += [
        "",
        f"{names[0]}, difference from {comparison.baseline}; p of sign flips, corrected by Holm; "
        "Cohen's d_z",
    ]
    for name, row in comparison.comparisons[names[0]].items():
        d, test, effect = row.difference, row.tests["randomisation"], row.cohens_dz.value
        p = test.undefined if test.p_holm is None else f"p = {test.p_holm:.4f}"
        d_z = "" if effect is None else f", d = {effect:+.2f}"
        counts = f"{row.wins} queries better, {row.losses} worse, {row.ties} equal"
        lines.append(
            f"{name:<{width}}{d.value:+.4f} [{d.low:+.4f}, {d.high:+.4f}]  {p}{d_z}  ({counts})"
        )
    return "\n".join(lines)
