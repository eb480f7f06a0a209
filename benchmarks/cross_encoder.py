"""A cross-encoder that can be a teacher (a ranker), trained here because none is at hand:

    python benchmarks/cross_encoder.py OUT --data WIKIQA MEDQUAD SCIFACT --body all-MiniLM-L6-v2 \\
      --others MSMARCO TREC_CAST --minutes 15

The body is a bi-encoder; it gets a new head and is trained by sentence-transformers' own
CrossEncoderTrainer on the training judgements of `--data`, with negatives that BM25 and the
bi-encoder find. Held-out queries are never trained on. Then it reranks what BM25 and the bi-encoder
find for held-out queries, and for those of `--others`, which nothing is trained on. It scores as
`--teacher OUT/model --teacher_kind cross-encoder` does.

Expected before it was run. On the sets that it is trained on, it ranks better than the bi-encoder:
clearly on MedQuAD, whose questions differ in one word (symptoms, treatment) that a bi-encoder
hardly sees; by .02 to .05 on WikiQA. On SciFact 809 queries are too few, and it stays below the
bi-encoder. On sets that it is not trained on it is worse than the bi-encoder by .05 or more: the
bi-encoder has seen a billion pairs, and this ranker some ten thousand.

Negatives, the training and the scores of each set are kept in OUT, and a second call makes only
what is missing. Writes OUT/model, OUT/cross_encoder.json and OUT/cross_encoder.md. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cross_encoder_data import (
    BI_ENCODER,
    BM25,
    FORM,
    FirstStage,
    List,
    RankingSet,
    Stages,
    read_sets,
)
from datasets import Dataset, DatasetDict
from quality import be_quiet
from sentence_transformers import CrossEncoder
from sentence_transformers.base.training_args import MultiDatasetBatchSamplers
from sentence_transformers.cross_encoder import (
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
)
from sentence_transformers.cross_encoder.losses import ListNetLoss
from transformers import TrainerCallback, set_seed

from hf_distill.compute.device import device_type, fast_precision, keep_freed_memory
from hf_distill.compute.models import (
    chosen_dtype,
    load_sentence_transformer,
    locate_model,
    model_identity,
    most_tokens,
    transformers_of,
)
from hf_distill.errors import InputError
from hf_distill.evaluation.intervals import estimate, mean
from hf_distill.evaluation.results import Comparison, Estimate
from hf_distill.evaluation.retrieval import NDCG, Run, make_run, parse_measures, per_query
from hf_distill.evaluation.significance import ALPHA, compare_systems
from hf_distill.recipe.read import read_recipe
from hf_distill.report.headline import with_interval
from hf_distill.run.stage import folder_written_whole, stage, write_json
from hf_distill.teachers.base import PairTeacher
from hf_distill.teachers.ensemble import combine, normalise_scores
from hf_distill.teachers.load import load_teacher

BODY = "sentence-transformers/all-MiniLM-L6-v2"
DEPTH = 100
"""Documents of each first stage that are reranked."""
LENGTH = 128
"""Tokens of a query and its document together. The body was trained on as many."""
PER_LIST, LISTS = 8, 4
"""Documents of a training list, and lists of a batch."""
LOSS, TARGET = "ListNetLoss", 10.0
"""Its target is the softmax of the labels. With this label nearly all of it is on the relevant
document, and the loss is the cross-entropy of a list.
"""
ROUNDS = 3
"""Steps on each set that are timed. The first is not counted."""
RERANKED = {first: f"{first}, reranked" for first in (BM25, BI_ENCODER)}
TOGETHER = "bi-encoder + ranker"


# --- the training --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """How the ranker is trained.

    Attributes:
        body: A folder or a Hub id.
        rate: The greatest learning rate.
        minutes: Of training, on a machine with nothing else to do.
        seed: Of the head, the order and the lists.
    """

    body: str
    rate: float
    minutes: float
    seed: int

    @property
    def inputs(self) -> list[Any]:
        """What the result depends on, beside body and data."""
        settings = [self.rate, self.minutes, self.seed]
        return [FORM, LENGTH, PER_LIST, LISTS, TARGET, LOSS, *settings]


def lists_of(data: RankingSet, mined: Iterable[List]) -> Dataset:
    """Rows of a query, its documents and their labels: a relevant document and `PER_LIST` - 1
    negatives, as many rows as a query has negatives for.
    """
    assert data.training is not None
    rows: dict[str, list[Any]] = {"query": [], "documents": [], "labels": []}
    size = PER_LIST - 1
    for one in mined:
        for number, start in enumerate(range(0, len(one.negatives), size)):
            negatives = one.negatives[start : start + size]
            names = (one.relevant[number % len(one.relevant)], *negatives)
            rows["query"].append(data.training.queries[one.query])
            rows["documents"].append([data.task.documents[name] for name in names])
            rows["labels"].append([TARGET] + [0.0] * len(negatives))
    return Dataset.from_dict(rows)


class Clock(TrainerCallback):
    """Seconds of each step, as they would be on a machine with nothing else to do: on a CPU, those
    that the process computes for, divided by its threads.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    @staticmethod
    def _now() -> float:
        on_cpu = device_type() == "cpu"
        return time.process_time() / torch.get_num_threads() if on_cpu else time.perf_counter()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """A step begins."""
        self._start = self._now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A step has ended."""
        self.seconds.append(self._now() - self._start)


def train(
    settings: Settings, data: Mapping[str, Dataset], steps: int
) -> tuple[CrossEncoder, list[float], float]:
    """Train for a number of steps, the sets in turn.

    Returns:
        The ranker, the seconds of each step (see `Clock`) and the mean loss.
    """
    set_seed(settings.seed)
    device = device_type()
    # On a CPU, SDPA's backward pass in bfloat16 takes half of a step.
    attention = {"attn_implementation": "eager"} if device == "cpu" else {}
    model = CrossEncoder(
        str(locate_model(settings.body, "body")),
        num_labels=1,
        device=device,
        model_kwargs={"dtype": torch.float32, **attention},
    )
    model.max_seq_length = min([LENGTH, *filter(None, map(most_tokens, transformers_of(model)))])
    precision, clock = fast_precision(device), Clock()
    with tempfile.TemporaryDirectory() as temporary:
        arguments = CrossEncoderTrainingArguments(
            output_dir=temporary,
            max_steps=steps,
            per_device_train_batch_size=LISTS,
            learning_rate=settings.rate,
            warmup_steps=0.1,
            weight_decay=0.01,
            bf16=precision == "bf16",
            fp16=precision == "fp16",
            use_cpu=device == "cpu",
            seed=settings.seed,
            data_seed=settings.seed,
            multi_dataset_batch_sampler=MultiDatasetBatchSamplers.ROUND_ROBIN,
            save_strategy="no",
            logging_steps=max(1, min(25, steps)),
            report_to="none",
            dataloader_pin_memory=device == "cuda",
        )
        trainer = CrossEncoderTrainer(
            model=model,
            args=arguments,
            train_dataset=DatasetDict(data),
            loss=ListNetLoss(model, mini_batch_size=0),
            callbacks=[clock],
        )
        result = trainer.train()
    return model.eval(), clock.seconds, float(result.training_loss)


@dataclass(frozen=True)
class Trained:
    """`trained.json`. The ranker is in `model/` beside it.

    Attributes:
        key: The fingerprint of everything that it depends on.
        rows: Set -> training lists.
        queries: Set -> training queries.
        steps: Steps, as many on each set.
        examples: Pairs of a query and a document in these.
        step_seconds: Mean seconds of a step when it was timed, by `Clock`.
        seconds: Seconds of all steps, by `Clock`.
        wall: Seconds that went by.
        loss: The mean loss.
    """

    key: str
    rows: dict[str, int]
    queries: dict[str, int]
    steps: int
    examples: int
    step_seconds: float
    seconds: float
    wall: float
    loss: float


def trained(out: Path, settings: Settings, sets: Sequence[Stages]) -> Trained:
    """The ranker: read, or trained for as many steps as `settings.minutes` have time for."""
    learnt = {one.data.name: (one, one.mined()) for one in sets if one.data.training is not None}

    def make(key: str) -> Trained:
        data = {name: lists_of(one.data, mined.lists) for name, (one, mined) in learnt.items()}
        _, timed, _ = train(settings, data, ROUNDS * len(data))
        step = float(np.mean(timed[len(data) :]))
        steps = max(len(data), int(60 * settings.minutes / step))
        said = f"{step:.2f} s a step, so {steps:,} steps"
        print(f"{', '.join(data)}: {said}", flush=True)
        start = time.perf_counter()
        model, seconds, loss = train(settings, data, steps)
        wall = time.perf_counter() - start
        with folder_written_whole(out / "model") as folder:
            model.save_pretrained(str(folder), create_model_card=False, safe_serialization=True)
        return Trained(
            key=key,
            rows={name: len(part) for name, part in data.items()},
            queries={name: len(mined.lists) for name, (_, mined) in learnt.items()},
            steps=steps,
            examples=steps * LISTS * PER_LIST,
            step_seconds=round(step, 3),
            seconds=round(sum(seconds), 1),
            wall=round(wall, 1),
            loss=round(loss, 4),
        )

    inputs = [*settings.inputs, sets[0].identity, [mined.key for _, mined in learnt.values()]]
    return stage(out / "trained.json", Trained, inputs, make, [out / "model"])


# --- how good it is ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scored:
    """`scores.json`: query -> document -> the ranker's score."""

    key: str
    scores: dict[str, dict[str, float]]


def rerank(run: Run, scores: Mapping[str, Mapping[str, float]]) -> Run:
    """The documents of `run`, by the ranker's scores; equal scores by document id."""
    result: Run = {}
    for query, documents in run.items():
        names = sorted(documents, key=lambda name: (-scores[query][name], name))
        values = np.array([[scores[query][name] for name in names]], dtype=np.float32)
        result |= make_run([query], names, values, np.arange(len(names))[None])
    return result


def together(run: Run, scores: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """The mean of the scores of `run` and of the ranker, as a teacher of the kind `ensemble` takes
    it: as quantiles among all pairs.
    """
    pairs = [(query, name) for query, documents in run.items() for name in documents]
    both = [
        np.array([of[query][name] for query, name in pairs], dtype=np.float64)
        for of in (run, scores)
    ]
    means = combine([normalise_scores(values, values) for values in both], [1.0, 1.0])
    result: dict[str, dict[str, float]] = {query: {} for query in run}
    for (query, name), value in zip(pairs, means.tolist(), strict=True):
        result[query][name] = value
    return result


@dataclass(frozen=True)
class Measured:
    """A set, and what is measured on it.

    Attributes:
        name: The set.
        trained_on: Whether other queries of it were trained on.
        queries, documents: How many are measured, and how many they search.
        notes: How it was divided, and what a reader should know.
        pairs: Pairs that the ranker scored.
        ndcg: System -> nDCG@10.
        recall: First stage -> recall within what is reranked.
        comparisons: `A - B` -> a comparison of nDCG@10. p is corrected by Holm over these.
        per_query: System -> nDCG@10 of each query.
    """

    name: str
    trained_on: bool
    queries: int
    documents: int
    notes: tuple[str, ...]
    pairs: int
    ndcg: dict[str, Estimate]
    recall: dict[str, Estimate]
    comparisons: dict[str, Comparison]
    per_query: dict[str, tuple[float, ...]]


def verdict(comparison: Comparison) -> str:
    """`better`, `worse` or `no clear difference`, by the randomisation test."""
    p, value = comparison.tests["randomisation"].p_holm, comparison.difference.value
    if p is None or value is None or p >= ALPHA:
        return "no clear difference"
    return "better" if value > 0 else "worse"


@dataclass(frozen=True)
class Ranker:
    """The saved ranker as a teacher, read when it is first asked.

    Attributes:
        folder: Of the model.
        key: Of its training.
    """

    folder: Path
    key: str

    @cached_property
    def teacher(self) -> PairTeacher:
        """The teacher of a recipe that names it."""
        named = ["--teacher", str(self.folder), "--teacher_kind", "cross-encoder"]
        teacher = load_teacher(read_recipe(["quickstart", *named]))
        assert isinstance(teacher, PairTeacher)
        return teacher

    def scores(self, one: Stages, first: FirstStage) -> Scored:
        """Scores of all documents that a first stage finds: read, or made."""
        task = one.data.task

        def make(key: str) -> Scored:
            asked = [
                (query, name)
                for query in task.queries
                for name in sorted(set().union(*(run[query] for run in first.runs.values())))
            ]
            texts = [(task.queries[query], task.documents[name]) for query, name in asked]
            values = self.teacher.score(texts).tolist() if texts else []
            scores: dict[str, dict[str, float]] = {query: {} for query in task.queries}
            for (query, name), value in zip(asked, values, strict=True):
                scores[query][name] = value
            return Scored(key, scores)

        return stage(one.folder / "scores.json", Scored, [FORM, self.key, first.key], make)


def measured(one: Stages, ranker: Ranker, depth: int) -> Measured:
    """The ranker on a set."""
    task, first = one.data.task, one.first_stage(depth)
    scored = ranker.scores(one, first)
    runs = dict(first.runs)
    runs |= {RERANKED[name]: rerank(run, scored.scores) for name, run in first.runs.items()}
    dense = first.runs[BI_ENCODER]
    runs[TOGETHER] = rerank(dense, together(dense, scored.scores))
    ndcg = {name: per_query(run, task.qrels, NDCG)["nDCG@10"] for name, run in runs.items()}
    within = parse_measures([f"R@{depth}"])
    recall = {
        name: per_query(run, task.qrels, within)[f"R@{depth}"] for name, run in first.runs.items()
    }
    compared = {
        f"{left} - {right}": (ndcg[left], ndcg[right])
        for left, right in (
            (RERANKED[BI_ENCODER], BI_ENCODER),
            (RERANKED[BM25], BM25),
            (RERANKED[BM25], BI_ENCODER),
            (TOGETHER, BI_ENCODER),
        )
    }
    return Measured(
        name=one.data.name,
        trained_on=one.data.training is not None,
        queries=len(task.qrels),
        documents=len(task.documents),
        notes=(*one.data.notes, *task.notes),
        pairs=sum(map(len, scored.scores.values())),
        ndcg={name: estimate(mean, [values], one.seed) for name, values in ndcg.items()},
        recall={name: estimate(mean, [values], one.seed) for name, values in recall.items()},
        comparisons=compare_systems(compared, one.seed),
        per_query={name: tuple(values.round(6).tolist()) for name, values in ndcg.items()},
    )


@dataclass(frozen=True)
class Content:
    """`cross_encoder.json`."""

    settings: Settings
    depth: int
    trained: Trained
    above: dict[str, float]
    left_out: dict[str, dict[str, int]]
    sets: tuple[Measured, ...]

    @property
    def summary(self) -> dict[str, Any]:
        """The line of JSON."""
        return {
            "steps": self.trained.steps,
            "minutes": round(self.trained.seconds / 60, 1),
            **{
                one.name: {
                    **{name: round(float(e.value or 0), 4) for name, e in one.ndcg.items()},
                    "verdict": verdict(one.comparisons[f"{RERANKED[BI_ENCODER]} - {BI_ENCODER}"]),
                }
                for one in self.sets
            },
        }


def _difference(comparison: Comparison) -> str:
    value, p = comparison.difference, comparison.tests["randomisation"].p_holm
    shown = "undefined"
    if value.value is not None:
        shown = f"{value.value:+.3f} ({value.low:+.3f} to {value.high:+.3f})"
    return f"{shown} | {'–' if p is None else f'{p:.3f}'} | {verdict(comparison)}"


def markdown(content: Content) -> str:
    """The tables."""
    trained, systems = content.trained, (BM25, RERANKED[BM25], BI_ENCODER, RERANKED[BI_ENCODER])
    systems = (*systems, TOGETHER)
    lines = [
        f"{trained.steps:,} steps of {LISTS} lists of at most {PER_LIST} documents, "
        f"{LOSS}, learning rate {content.settings.rate:g}, {LENGTH} tokens; "
        f"{trained.seconds / 60:.1f} minutes of an idle machine ({trained.wall / 60:.1f} went by). "
        f"Seed {content.settings.seed}. The best {content.depth} documents are reranked.",
        "",
        "| set | trained on | queries | documents | " + " | ".join(systems) + " |",
        "|---|---|---:|---:|" + "---|" * len(systems),
    ]
    for one in content.sets:
        figures = " | ".join(with_interval(one.ndcg[name]) for name in systems)
        learnt = f"{trained.queries[one.name]:,} queries" if one.trained_on else "no"
        lines.append(f"| {one.name} | {learnt} | {one.queries:,} | {one.documents:,} | {figures} |")
    lines += ["", "| set | nDCG@10 | difference | p | verdict |", "|---|---|---|---:|---|"]
    lines += [
        f"| {one.name} | {name} | {_difference(comparison)} |"
        for one in content.sets
        for name, comparison in one.comparisons.items()
    ]
    lines.append("")
    for one in content.sets:
        recall = ", ".join(f"{name} {with_interval(value)}" for name, value in one.recall.items())
        lines.append(f"- {one.name}: recall at {content.depth}: {recall}. {'; '.join(one.notes)}.")
    for name, counts in content.left_out.items():
        said = "; ".join(f"{reason}: {count:,}" for reason, count in sorted(counts.items()))
        lines.append(
            f"- {name}: the bi-encoder prefers {content.above[name]:.0%} of the negatives to the "
            f"relevant documents. Left out: {said or 'nothing'}."
        )
    return "\n".join(lines) + "\n"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="Folder of results.")
    parser.add_argument(
        "--data", nargs="+", type=Path, required=True, metavar="FOLDER",
        help="Sets to train on: BEIR folders, or any judged data that the project reads. Their "
        "held-out queries are measured.",
    )  # fmt: skip
    parser.add_argument(
        "--others", nargs="*", type=Path, default=[], metavar="FOLDER",
        help="Sets that nothing is trained on.",
    )  # fmt: skip
    parser.add_argument(
        "--body", default=BODY, help=f"A bi-encoder: a folder or a Hub id. Default: {BODY}."
    )
    parser.add_argument(
        "--minutes", type=float, default=15.0,
        help="Of training, on a machine with nothing else to do. Default: 15.",
    )  # fmt: skip
    parser.add_argument(
        "--learning_rate", type=float, default=1e-4, help="The greatest. Default: 1e-4."
    )
    parser.add_argument(
        "--queries", type=int, default=300,
        help="Held-out queries of each set that are measured, at most. Default: 300.",
    )  # fmt: skip
    parser.add_argument(
        "--depth", type=int, default=DEPTH,
        help=f"Documents of each first stage that are reranked. Default: {DEPTH}.",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=42, help="Default: 42.")
    line = parser.parse_args()
    for name in ("minutes", "learning_rate", "queries", "depth"):
        if not getattr(line, name) > 0:
            raise InputError(f"--{name} {getattr(line, name)}: it must be above 0")
    return line


def main() -> None:
    """Mine, train and measure what is missing, and print the tables."""
    line = _options()
    keep_freed_memory()
    be_quiet()
    out: Path = line.out.resolve()
    settings = Settings(line.body, line.learning_rate, line.minutes, line.seed)
    body = load_sentence_transformer(line.body, "body")
    dtype = chosen_dtype("auto", device_type())
    identity = (*model_identity(body, line.body, "body"), str(dtype))
    body = body.to(dtype)
    sets = [
        Stages(data, out / "sets" / data.name, body, identity, line.seed)
        for data in read_sets(line.data, line.others, line.queries, line.seed)
    ]
    for one in sets:
        said = one.data.training
        learnt = f"{len(said.qrels):,} training queries, " if said else ""
        print(f"{one.data.name}: {learnt}{len(one.data.task.qrels):,} measured", flush=True)
    record = trained(out, settings, sets)
    ranker = Ranker(out / "model", record.key)
    results = []
    for one in sets:
        results.append(measured(one, ranker, line.depth))
        said_of = {name: round(e.value or 0, 3) for name, e in results[-1].ndcg.items()}
        print(f"{one.data.name}: {said_of}", flush=True)
    mined = {one.data.name: one.mined() for one in sets if one.data.training is not None}
    content = Content(
        settings, line.depth, record, {name: one.above for name, one in mined.items()},
        {name: one.left_out for name, one in mined.items()}, tuple(results),
    )  # fmt: skip
    write_json(out / "cross_encoder.json", content)
    text = markdown(content)
    (out / "cross_encoder.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\nWritten to {out}")
    print(json.dumps(content.summary))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(f"cross_encoder.py: error: {error}") from error
