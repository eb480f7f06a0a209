"""Compatibility: whether the student's queries can search the index that the teacher made, so that
it need not be made again.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hf_distill.compute.search import search
from hf_distill.evaluation.intervals import (
    figure,
    mean,
)
from hf_distill.evaluation.retrieval import (
    NDCG,
    make_run,
    per_query,
)
from hf_distill.evaluation.tasks import RetrievalTask

DEPTH = 10
Embedded = tuple[np.ndarray, np.ndarray]
"""Embeddings of a task's queries (Q, d) and documents (N, d)."""


def _projected(embeddings: np.ndarray, components: np.ndarray) -> np.ndarray:
    values = np.asarray(embeddings, dtype=np.float32) @ components.T
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return np.asarray(values / np.maximum(lengths, 1e-12), dtype=np.float32)


def _ndcg(task: RetrievalTask, queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
    run = make_run(list(task.queries), list(task.documents), *search(queries, documents, DEPTH))
    return per_query(run, task.qrels, NDCG)["nDCG@10"]


def compatibility(
    task: RetrievalTask,
    student: Embedded,
    teacher: Embedded | None,
    components: np.ndarray | None,
    measure: str,
    seed: int,
) -> dict[str, Any]:
    """nDCG@10 of student queries over teacher documents, and the reverse, in the space of the
    teacher's principal components.

    An aligned student lives in that space (see `hf_distill.student.head.teacher_components`). The
    teacher's embeddings are projected on the components and L2-normalised: a deployed index is
    converted by one matrix product, without the teacher.

    Args:
        task: The task.
        student: The student's embeddings, L2-normalised.
        teacher: The teacher's embeddings, None if it has none.
        components: (c, d) orthonormal rows, None if there are none.
        measure: What the teacher ranks by.
        seed: Seeds the bootstrap.

    Returns:
        `possible: False` and `reason`; or `possible: True` and, each with interval,
            `student_queries_teacher_index`,
        `teacher_queries_student_index`, `teacher_queries_teacher_index` (both sides projected), and
        `minus_teacher`, `minus_student`: the first one's paired difference from the teacher and the
            student each in its own index.
    """

    def impossible(reason: str) -> dict[str, Any]:
        return {"possible": False, "reason": reason}

    if teacher is None or components is None:
        return impossible(
            "the teacher scores pairs and has no embeddings, so it has no index that queries could search"
        )
    if measure not in ("cosine", "dot"):
        return impossible(
            f"the teacher ranks by {measure}, which does not survive the projection to the student's unit sphere"
        )
    if student[0].shape[1] != len(components):
        return impossible(
            f"the student has {student[0].shape[1]} dimensions, the teacher's embeddings {len(components)} principal components; "
            "take a student_dim that is no larger than the teacher's dimension"
        )
    queries, documents = (_projected(values, components) for values in teacher)
    crossed = _ndcg(task, student[0], documents)
    own = {
        "teacher": per_query(_teacher_run(task, teacher, measure), task.qrels, NDCG)["nDCG@10"],
        "student": _ndcg(task, *student),
    }
    return {
        "possible": True,
        "dimension": len(components),
        "student_queries_teacher_index": {"nDCG@10": figure(mean, [crossed], seed)},
        "teacher_queries_student_index": {
            "nDCG@10": figure(mean, [_ndcg(task, queries, student[1])], seed)
        },
        "teacher_queries_teacher_index": {
            "nDCG@10": figure(mean, [_ndcg(task, queries, documents)], seed)
        },
        **{
            f"minus_{name}": {"nDCG@10": figure(mean, [crossed - values], seed)}
            for name, values in own.items()
        },
    }


def _teacher_run(
    task: RetrievalTask, teacher: Embedded, measure: str
) -> dict[str, dict[str, float]]:
    return make_run(list(task.queries), list(task.documents), *search(*teacher, DEPTH, measure))
