"""What is measured of each student of a study or benchmark."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sentence_transformers import SentenceTransformer

from hf_distill.compute.search import search
from hf_distill.evaluation.evaluate import embed_queries, embed_task
from hf_distill.evaluation.retrieval import DEPTH, make_run, parse_measures, per_query
from hf_distill.evaluation.tasks import HeldOutTask

_NDCG, _RECALL = "nDCG@10", "R@100"


@dataclass(frozen=True)
class Measurement:
    """A student on held-out pairs.

    Attributes:
        ndcg, recall: nDCG@10 and Recall@100 of each test query, in the task's order.
        student_score: The cosine of each test pair.
    """

    ndcg: tuple[float, ...]
    recall: tuple[float, ...]
    student_score: tuple[float, ...]


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(values.astype(np.float64).round(6).tolist())


def measure(
    student: SentenceTransformer, task: HeldOutTask, index: np.ndarray | None = None
) -> Measurement:
    """Retrieve from the task's corpus, and score its pairs. Texts get the student's own prompts.
    `index` (N, d) holds the documents that a query encoder searches; None: it embeds them itself.
    """
    queries, documents = (
        embed_task(student, task) if index is None else (embed_queries(student, task), index)
    )
    best = search(queries, documents, DEPTH)
    run = make_run(list(task.queries), list(task.documents), *best)
    values = per_query(run, task.qrels, parse_measures([_NDCG, _RECALL]))
    cosines = np.einsum("nd,nd->n", queries[task.pair_queries], documents[task.pair_documents])
    return Measurement(_rounded(values[_NDCG]), _rounded(values[_RECALL]), _rounded(cosines))
