"""Mixed index: whether the student's queries can search the index that the teacher made, without
embedding the documents again.
"""

from __future__ import annotations

import numpy as np

from hf_distill.compute.search import search
from hf_distill.evaluation.intervals import estimate, mean
from hf_distill.evaluation.results import Estimate, MixedIndex
from hf_distill.evaluation.tasks import RetrievalTask

DEPTH = 10
Embedded = tuple[np.ndarray, np.ndarray]
"""Embeddings of a task's queries (Q, d) and documents (N, d)."""


def _projected(embeddings: np.ndarray, components: np.ndarray) -> np.ndarray:
    values = np.asarray(embeddings, dtype=np.float32) @ components.T
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return np.asarray(values / np.maximum(lengths, 1e-12), dtype=np.float32)


def mixed_index(
    task: RetrievalTask,
    student: Embedded,
    teacher: Embedded | None,
    components: np.ndarray | None,
    similarity: str,
    seed: int,
) -> MixedIndex:
    """nDCG@10 of student queries over teacher documents, and the reverse, in the space of the
    teacher's principal components.

    An aligned student embeds into that space (see `hf_distill.student.head.principal_components`).
    The teacher's embeddings are projected to the components and L2-normalised: one matrix product
    converts a deployed index, without the teacher.

    Args:
        task: The task.
        student: The student's embeddings, L2-normalised.
        teacher: The teacher's embeddings, None if it has none.
        components: (c, d) orthonormal rows, None if there are none.
        similarity: What the teacher ranks by.
        seed: Seeds the bootstrap.
    """
    if teacher is None or components is None:
        return MixedIndex("the teacher scores pairs and embeds no texts, so it has no index")
    if similarity not in ("cosine", "dot"):
        return MixedIndex(
            f"the teacher ranks by {similarity}, which the projection to the student's unit sphere "
            "does not keep"
        )
    if student[0].shape[1] != len(components):
        return MixedIndex(
            f"the student has {student[0].shape[1]} dimensions, the teacher's embeddings have "
            f"{len(components)} principal components; choose a --student_dim that is at most the "
            "teacher's dimension"
        )

    def ndcg(queries: np.ndarray, documents: np.ndarray, similarity: str = "dot") -> np.ndarray:
        return task.ndcg(search(queries, documents, DEPTH, similarity))

    def over_queries(values: np.ndarray) -> Estimate:
        return estimate(mean, [values], seed)

    queries, documents = (_projected(values, components) for values in teacher)
    mixed = ndcg(student[0], documents)
    return MixedIndex(
        dimension=len(components),
        student_queries_teacher_index=over_queries(mixed),
        teacher_queries_student_index=over_queries(ndcg(queries, student[1])),
        teacher_queries_teacher_index=over_queries(ndcg(queries, documents)),
        minus_teacher=over_queries(mixed - ndcg(*teacher, similarity)),
        minus_student=over_queries(mixed - ndcg(*student)),
    )
