"""The results of a run that has not happened, built by hand and by the package's own functions."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from conftest import sentences
from datasets import Dataset

from hf_distill.data.collection import (
    JUDGEMENT_FEATURES,
    SPLITS,
    Collection,
    CollectionRecord,
    Source,
)
from hf_distill.evaluation.agreement import ranking_agreement
from hf_distill.evaluation.examples import per_query_values, wins_and_losses
from hf_distill.evaluation.fidelity import fidelity
from hf_distill.evaluation.intervals import estimate, mean
from hf_distill.evaluation.paper_protocol import paper_protocol
from hf_distill.evaluation.results import (
    BM25,
    STUDENT,
    TEACHER,
    UNTRAINED,
    Bootstrap,
    Cost,
    Efficiency,
    Evaluation,
    IndexRow,
    IndexSize,
    MixedIndex,
    PairScores,
    RetrievalResults,
)
from hf_distill.evaluation.significance import student_significance
from hf_distill.evaluation.tasks import make_task
from hf_distill.recipe.read import read_recipe
from hf_distill.report.results import RunResults
from hf_distill.run.folder import RunFolder
from hf_distill.scoring.ranking import Ranking
from hf_distill.scoring.scores import Scores, ScoreStatistics, SoftLabels
from hf_distill.selection.rules import parse_rules
from hf_distill.selection.select import Selection, SelectionInputs, select_pairs
from hf_distill.student.lengths import Lengths, ModelLengths, TextLengths
from hf_distill.teachers.base import SCALES
from hf_distill.training.train import TrainingRecord

NASTY = '<script>alert("query")</script>'
SYSTEMS = (TEACHER, STUDENT, UNTRAINED, BM25)
SPLIT = {"train": 140, "validation": 20, "test": 36, "leaked": 4}
SCORES = np.linspace(0.1, 0.9, 30)
LENGTHS = TextLengths(
    "l",
    (
        ModelLengths("teacher", "t", {"queries": Lengths(200, 200, 9.0, 9, 12, 14, 32, 0, 0.0)}),
        ModelLengths(
            "student", "b", {"documents": Lengths(200, 200, 9.0, 9, 40, 48, 32, 7, 0.051)}
        ),
    ),
    ("an endpoint",),
)


def random_values(systems: tuple[str, ...] = SYSTEMS, n: int = 40) -> dict[str, np.ndarray]:
    """nDCG@10 of each query, each system worse than the one before."""
    rng = np.random.default_rng(0)
    return {
        name: np.clip(rng.normal(0.8 - 0.15 * i, 0.15, n), 0, 1) for i, name in enumerate(systems)
    }


def ratio(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of two means over the last axis."""
    return np.asarray(one.mean(-1) / other.mean(-1))


def retrieval_results(values: Mapping[str, np.ndarray]) -> RetrievalResults:
    """From nDCG@10 of each query."""
    n, own, teacher = len(values[STUDENT]), values[STUDENT], values.get(TEACHER)
    return RetrievalResults(
        num_queries=n,
        num_documents=n,
        notes=(f"a note {NASTY}",),
        systems={name: {"nDCG@10": estimate(mean, [v], 0)} for name, v in values.items()},
        student_over_teacher=None if teacher is None else estimate(ratio, [own, teacher], 0),
        not_applicable={},
        same_text=0,
        words="language en",
    )


def evaluation(
    values: Mapping[str, np.ndarray], teacher: np.ndarray = SCORES, student: np.ndarray = SCORES**2
) -> Evaluation:
    """What `evaluate` measures, from per-query values and the scores of the held-out pairs."""
    n = len(values[STUDENT])
    ids = [f"q{i}" for i in range(n)]
    task = make_task(
        ((name, NASTY) for name in ids),
        ((f"d{i}", f"{NASTY} & <b>document</b> {i}") for i in range(n)),
        ((name, f"d{i}", 1) for i, name in enumerate(ids)),
        "held-out pairs",
    )
    run = {name: {f"d{i}": 1.0, f"d{(i + 1) % n}": 0.5} for i, name in enumerate(ids)}
    against = TEACHER if TEACHER in values else BM25
    names = [name for name in (TEACHER, STUDENT) if name in values]
    cost = Cost(10**6, 4.0, 4 * 10**6, 12.5, 8, "torch", "float32", 50.0, 2.5, 3.0)
    ndcg, zero = estimate(mean, [values[STUDENT]], 0), estimate(mean, [np.zeros(n)], 0)
    row, rescored = IndexRow(32 * 10**6, ndcg, zero), IndexRow(10**6, ndcg, zero, 8 * 10**6)
    rows = {"float32": row, "int8": row, "binary_documents": row}
    rows |= {"binary_rescored": rescored, "float32_half": row}
    index = {TEACHER: IndexSize(8, {}, "it is compared by euclidean"), STUDENT: IndexSize(8, rows)}
    agreement = ranking_agreement(run, {STUDENT: run, UNTRAINED: run}, 0)
    mixed = MixedIndex(None, 8, ndcg, ndcg, ndcg, zero, zero)
    return Evaluation(
        key="e",
        training="t",
        collection="c",
        bootstrap=Bootstrap(2000, 0.95, 0),
        retrieval=retrieval_results(values),
        significance=student_significance("nDCG@10", values, 0),
        per_query=per_query_values("nDCG@10", values, ids),
        wins_and_losses=wins_and_losses(
            "nDCG@10", (STUDENT, against), values, {STUDENT: run, against: run}, task
        ),
        ranking_agreement=agreement if TEACHER in values else None,
        fidelity=fidelity(teacher, student, 0),
        fidelity_untrained=fidelity(teacher, student[::-1], 0),
        paper_protocol=paper_protocol(teacher, student),
        efficiency=Efficiency(4, 4, "cpu", dict.fromkeys(names, cost)),
        index={name: index[name] for name in names},
        mixed_index=mixed if TEACHER in values else MixedIndex("the teacher has no index"),
        pairs=PairScores((), tuple(teacher.tolist()), tuple(student.tolist())),
        tasks={},
        by_source={},
    )


@functools.cache
def usual_evaluation() -> Evaluation:
    """Of all four systems on 40 queries."""
    return evaluation(random_values())


def collection(source: Source = Source("pairs")) -> Collection:  # noqa: B008  # it is frozen
    """200 pairs, a group of four after another. The documents of the pairs 3 and 7 are the same."""
    n = sum(SPLIT.values())
    document = np.arange(n)
    document[7] = 3
    split = [name for name in SPLITS for _ in range(SPLIT[name])]
    judgements = Dataset.from_dict(
        {
            "pair_id": [f"pair {i}" for i in range(n)],
            "query": np.arange(n),
            "document": document,
            "grade": [1] * n,
            "group": [str(i // 4) for i in range(n)],
            "source": [None] * n,
            "split": split,
            "reason": ["same query" if name == "leaked" else None for name in split],
        },
        JUDGEMENT_FEATURES,
    )
    texts = sentences(n, 1000)
    searched = [name == "test" for name in split]
    record = CollectionRecord(
        key="c",
        source=source,
        read={"rows": n},
        split={**SPLIT, "pairs": n, "groups": n // 4, "test queries": 36, "corpus documents": 36},
        leaks_removed={"same query": 4},
        leaks_left=0,
    )
    queries = Dataset.from_dict({"text": sentences(n), "student_text": [None] * n})
    documents = Dataset.from_dict({"text": texts, "searched": searched})
    return Collection(queries, documents, judgements, record)


def scores(of: Collection) -> Scores:
    """A score of every pair, of a teacher that embeds."""
    values = np.random.default_rng(1).uniform(-0.2, 1, len(of.judgements)).astype(np.float32)
    record = SoftLabels(
        key="s", teacher="t", teacher_kind="bi-encoder", teacher_identity="0123456789abcdef",
        precision="float32", query_prompt="", document_prompt="", instruction="",
        scale=SCALES["cosine"].record(), dimension=8, pairs=len(values), unscored=0,
        item="text", items=8, items_without_deduplication=16, seconds=0.5,
        score=ScoreStatistics.of(values), parts=[],
    )  # fmt: skip
    return Scores(record, values, None, SCALES["cosine"])


def ranking(of: Collection) -> Ranking:
    """Ranks, margins and four negatives of each training pair, the last of which is often none."""
    n, rng = SPLIT["train"], np.random.default_rng(2)
    documents = of.pairs("train").documents
    negatives = rng.choice(documents, (n, 4))
    negatives[::2, -1] = -1
    negative_scores = np.where(negatives < 0, np.nan, rng.random((n, 4))).astype(np.float32)
    margin = rng.normal(size=n).astype(np.float32)
    margin[5] = np.nan
    rank = rng.integers(1, 6, n).astype(np.int32)
    return Ranking("r", rank, margin, negatives, negative_scores, 139)


def training(**values: Any) -> TrainingRecord:
    """How a student was trained."""
    defaults = {
        "key": "t", "selection": "x", "steps": 2, "epochs": 1.0, "examples": 8, "processes": 1,
        "pairs": 4, "sources": {}, "texts": 0, "seconds": 1.5, "resumed_from": None,
        "precision": "fp32", "best_step": None, "layers": None, "log": [],
    }  # fmt: skip
    return msgspec.convert({**defaults, **values}, TrainingRecord)


def selection(
    rules: list[str], of: Collection, scored: Scores, ranked: Ranking | None, folder: RunFolder
) -> Selection:
    """What `rules` choose of the training pairs, with seed 3."""
    values = scored.of(of.rows("train"))
    inputs = SelectionInputs(of.pairs("train"), values, ranked, "inputs")
    return select_pairs(inputs, parse_rules(rules), 3, folder)


def run_results(
    folder: RunFolder,
    *line: str,
    measured: Evaluation | None = None,
    rules: tuple[str, ...] = (),
    source: Source = Source("pairs"),  # noqa: B008  # it is frozen
) -> tuple[RunResults, Scores, Ranking, Selection]:
    """A run of `rules`, with the keys of `line`, and what was measured of it."""
    folder.path.mkdir(parents=True, exist_ok=True)
    pairs = collection(source)
    scored, ranked = scores(pairs), ranking(pairs)
    selected = selection(list(rules), pairs, scored, ranked, folder)
    results = RunResults(
        recipe=read_recipe(["quickstart", "--run_dir", str(folder.path), *line]),
        folder=folder,
        collection=pairs,
        soft_labels=scored.record,
        audit=selected.audit,
        training=training(),
        evaluation=measured or usual_evaluation(),
        lengths=LENGTHS,
    )
    return results, scored, ranked, selected
