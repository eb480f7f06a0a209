"""The ranker beside the student that is to replace it: on the same held-out queries, with the time
that it takes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from hf_distill.data.collection import Collection
from hf_distill.evaluation.agreement import gained
from hf_distill.evaluation.intervals import estimate, mean, undefined
from hf_distill.evaluation.mixed_index import Embedded
from hf_distill.evaluation.results import BM25, STUDENT, TEACHER, Estimate, RankerResults
from hf_distill.evaluation.retrieval import NDCG, Run, make_run, per_query
from hf_distill.evaluation.significance import paired_tests
from hf_distill.evaluation.tasks import HeldOutTask
from hf_distill.scoring.scores import score_pairs
from hf_distill.teachers.base import PairTeacher

DEPTH = 100
"""Documents of the first stage that the ranker reads for a query."""
RANKER, RERANKED = "ranker", "student, reranked"
_TIMED, _CUTOFF = 5, 10


@dataclass(frozen=True)
class Reranking:
    """What a ranker is measured with.

    Attributes:
        ranker: It scores pairs.
        queries: Held-out queries that are drawn, at most.
        shards: Folder of its scores.
    """

    ranker: PairTeacher
    queries: int
    shards: Path


def _reranked(
    reranking: Reranking, collection: Collection, task: HeldOutTask, run: Run
) -> dict[str, dict[str, float]]:
    """The documents of `run`, with the ranker's scores; those without one are left out."""
    query_number = dict(zip(task.queries, task.query_numbers.tolist(), strict=True))
    document_number = dict(zip(task.documents, task.document_numbers.tolist(), strict=True))
    cells = [(query, name) for query, documents in run.items() for name in documents]
    scores = score_pairs(
        collection,
        np.array([query_number[query] for query, _ in cells], dtype=np.int64),
        np.array([document_number[name] for _, name in cells], dtype=np.int64),
        reranking.ranker,
        reranking.shards,
    ).values
    result: dict[str, dict[str, float]] = {query: {} for query in run}
    for (query, name), score in zip(cells, scores.tolist(), strict=True):
        if not np.isnan(score):
            result[query][name] = score
    return result


def _sorted(scored: Mapping[str, Mapping[str, float]]) -> Run:
    """A run without ties: equal scores by ascending id."""
    run: Run = {}
    for query, documents in scored.items():
        ids = sorted(documents, key=lambda name: (-documents[name], name))
        values = np.array([[documents[name] for name in ids]], dtype=np.float32)
        run |= make_run([query], ids, values, np.arange(len(ids))[None])
    return run


def agreement_on_list(ranker: np.ndarray, student: np.ndarray) -> tuple[float, float]:
    """Kendall's tau-b of two scorings (n,) of a list, and nDCG@10 of the student's order by the
    ranker's scores, scaled to 0 to 1 within the list (see `gained`). NaN where either is constant.
    """
    if np.ptp(ranker) == 0 or np.ptp(student) == 0:
        return np.nan, np.nan
    gains = (ranker - ranker.min()) / np.ptp(ranker)
    order = np.argsort(-student, kind="stable")[:_CUTOFF]
    best = np.sort(gains)[::-1][:_CUTOFF]
    tau = stats.kendalltau(ranker, student).statistic
    return float(tau), float(gained(gains[None, order], best[None])[0])


def _milliseconds(reranking: Reranking, task: HeldOutTask, run: Run) -> float:
    """Median time of the ranker for one list."""
    times = []
    for query in list(run)[:_TIMED]:
        pairs = [(task.queries[query], task.documents[name]) for name in run[query]]
        if pairs:
            start = time.perf_counter()
            reranking.ranker.score(pairs)
            times.append(1000 * (time.perf_counter() - start))
    return round(float(np.median(times)), 1) if times else 0.0


def measure_ranker(
    reranking: Reranking,
    collection: Collection,
    task: HeldOutTask,
    runs: Mapping[str, Run],
    student: Embedded,
    seed: int,
) -> RankerResults:
    """The ranker on some held-out queries.

    Args:
        reranking: What is measured.
        collection: Of the run.
        task: Its held-out pairs.
        runs: System -> its run.
        student: The student's embeddings of the task's queries and documents.
        seed: Draws the queries, and seeds the bootstrap.
    """
    first = TEACHER if TEACHER in runs else BM25
    every = list(task.qrels)
    drawn = np.random.default_rng(seed).permutation(len(every))[: reranking.queries]
    names = [every[i] for i in np.sort(drawn)]
    qrels = {name: task.qrels[name] for name in names}
    stages = {
        system: {name: dict(list(runs[system].get(name, {}).items())[:DEPTH]) for name in names}
        for system in (first, STUDENT)
    }
    scored = {system: _reranked(reranking, collection, task, run) for system, run in stages.items()}
    compared = {
        RANKER: _sorted(scored[first]),
        first: stages[first],
        STUDENT: stages[STUDENT],
        RERANKED: _sorted(scored[STUDENT]),
    }
    ndcg = {system: per_query(run, qrels, NDCG)[str(NDCG[0])] for system, run in compared.items()}
    places = [{name: i for i, name in enumerate(part)} for part in (task.queries, task.documents)]
    agreement = []
    for name, listed in scored[first].items():
        rows = [places[1][document] for document in listed]
        if len(rows) > 1:
            cosines = student[1][rows] @ student[0][places[0][name]]
            agreement.append(agreement_on_list(np.array(list(listed.values())), cosines))
    values = np.array(agreement or [(np.nan, np.nan)])
    values = values[~np.isnan(values).any(axis=1)]

    def over_lists(column: int) -> Estimate:
        if not len(values):
            return undefined(0, "no list holds two documents with different scores")
        return estimate(mean, [values[:, column]], seed)

    return RankerResults(
        name=reranking.ranker.name,
        first_stage=first,
        depth=DEPTH,
        num_queries=len(names),
        of=len(every),
        ndcg={system: estimate(mean, [each], seed) for system, each in ndcg.items()},
        student_minus_ranker=paired_tests(ndcg[STUDENT], ndcg[RANKER], seed),
        kendall=over_lists(0),
        ndcg_by_ranker=over_lists(1),
        milliseconds=_milliseconds(reranking, task, stages[first]),
    )
