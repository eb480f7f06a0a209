"""Every figure of a run, on held-out data, with its interval and denominator:
`evaluate_student`.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from tqdm.auto import tqdm

from hf_distill.compute.encode import encode
from hf_distill.compute.search import search
from hf_distill.data.collection import (
    PairData,
    text_id,
)
from hf_distill.errors import InputError
from hf_distill.evaluation.agreement import ranking_agreement
from hf_distill.evaluation.efficiency import efficiency
from hf_distill.evaluation.examples import (
    per_query_values,
    wins_and_losses,
)
from hf_distill.evaluation.fidelity import fidelity
from hf_distill.evaluation.index import index_size
from hf_distill.evaluation.intervals import (
    LEVEL,
    RESAMPLES,
    figure,
    mean,
)
from hf_distill.evaluation.mixed_index import compatibility
from hf_distill.evaluation.paper_protocol import paper_protocol
from hf_distill.evaluation.retrieval import (
    DEPTH,
    MEASURES,
    bm25_run,
    make_run,
    per_query,
    write_qrels,
    write_run,
)
from hf_distill.evaluation.significance import compare_systems
from hf_distill.evaluation.tasks import (
    RetrievalTask,
    held_out_task,
)
from hf_distill.run.folder import (
    RunFolder,
    write_json,
)
from hf_distill.scoring.scores import ScoredPairs
from hf_distill.teachers.base import (
    EmbeddingTeacher,
    Teacher,
)
from hf_distill.teachers.bi_encoder import BiEncoderTeacher

__all__ = ["EVALUATION_FORM", "RetrievalTask", "evaluate_student", "held_out_task"]

EVALUATION_FORM = 2
"""Which figures `evaluation.json` holds: one of another form is made again."""

TEACHER, STUDENT, UNTRAINED, BM25 = "teacher", "student", "untrained student", "bm25"


def embed(
    model: SentenceTransformer, task: RetrievalTask, name: str, bar: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of the task's queries (Q, d) and documents (N, d), float32."""
    bar.set_postfix_str(name)
    prompts = {kind: model.prompts.get(kind) or "" for kind in ("query", "document")}
    queries = encode(model, [prompts["query"] + text for text in task.queries.values()]).numpy()
    bar.update()
    documents = encode(
        model, [prompts["document"] + text for text in task.documents.values()]
    ).numpy()
    bar.update()
    for what, values in (("queries", queries), ("documents", documents)):
        if not np.isfinite(values).all():
            raise InputError(
                f"the {name} returns NaN or infinite embeddings for {int((~np.isfinite(values).all(axis=1)).sum())} of {len(values)} {what}"
            )
    return queries, documents


def pair_cosines(
    test: Dataset, task: RetrievalTask, queries: np.ndarray, documents: np.ndarray
) -> np.ndarray:
    """Cosines (n,) of the test pairs from the task's L2-normalised embeddings."""
    query_row = {name: i for i, name in enumerate(task.queries)}
    document_row = {name: i for i, name in enumerate(task.documents)}
    q = queries[[query_row[text_id(text)] for text in test["query"]]]
    d = documents[[document_row[text_id(text)] for text in test["document"]]]
    cosines: np.ndarray = np.einsum("nd,nd->n", q, d).astype(np.float64)
    return cosines


def evaluate_student(
    student: SentenceTransformer,
    untrained: SentenceTransformer,
    teacher: Teacher,
    data: PairData,
    scored: ScoredPairs,
    components: np.ndarray | None,
    folder: RunFolder,
    seed: int,
    key: str,
) -> dict[str, Any]:
    """Evaluate on the held-out pairs and write `evaluation.json`.

    Args:
        student: The trained student.
        untrained: The student as it was before training: without this row, every figure flatters.
        teacher: For its cost; its embeddings are those of `scored`. One that embeds nothing cannot
            search a corpus: it has no row among the retrieval systems.
        data: The held-out pairs and the corpus.
        scored: The teacher's scores and embeddings.
        components: Principal components of the teacher's embeddings (see
            `hf_distill.student.build.Blueprint`), None without embeddings.
        folder: The run's folder.
        seed: Seeds the bootstrap.
        key: The fingerprint of what the figures depend on.

    Returns:
        What `evaluation.json` holds.
    """
    task = held_out_task(data)
    query_ids, document_ids = list(task.queries), list(task.documents)
    with tqdm(total=4, desc="Evaluating", unit=" encodings", leave=False) as bar:
        embedded = {
            STUDENT: embed(student, task, STUDENT, bar),
            UNTRAINED: embed(untrained, task, UNTRAINED, bar),
        }
    if isinstance(teacher, EmbeddingTeacher) and scored.embeddings is not None:
        queries_of_teacher = scored.embeddings.of(
            text_id(teacher.prompted(text, "query")) for text in task.queries.values()
        )
        documents_of_teacher = scored.embeddings.of(
            text_id(teacher.prompted(text, "document")) for text in task.documents.values()
        )
        embedded = {TEACHER: (queries_of_teacher, documents_of_teacher), **embedded}
    measure_of = {TEACHER: scored.scale.measure}
    runs = {
        name: make_run(
            query_ids, document_ids, *search(queries, documents, DEPTH, measure_of.get(name, "dot"))
        )
        for name, (queries, documents) in embedded.items()
    }
    runs[BM25] = bm25_run(
        query_ids, list(task.queries.values()), document_ids, list(task.documents.values())
    )
    write_qrels(task.qrels, folder.retrieval / "qrels.txt")
    for name, run in runs.items():
        write_run(run, folder.retrieval / f"{name.replace(' ', '-')}.run", name)
    values = {name: per_query(run, task.qrels) for name, run in runs.items()}

    teacher_scores = np.asarray(scored.test["teacher_score"], dtype=np.float64)
    known = ~np.isnan(teacher_scores)
    cosines = {
        name: pair_cosines(data.test, task, *embedded[name])[known] for name in (STUDENT, UNTRAINED)
    }
    teacher_scores = teacher_scores[known]
    ndcg = {name: result["nDCG@10"] for name, result in values.items()}
    evaluation = {
        "fingerprint": key,
        "bootstrap": {"resamples": RESAMPLES, "level": LEVEL, "seed": seed},
        "retrieval": {
            "num_queries": len(task.queries),
            "num_documents": len(task.documents),
            "notes": list(task.notes),
            "systems": {
                name: {
                    str(measure): figure(mean, [result[str(measure)]], seed) for measure in MEASURES
                }
                for name, result in values.items()
            },
            "student_over_teacher": {
                "nDCG@10": figure(ratio_of_means, [ndcg[STUDENT], ndcg[TEACHER]], seed)
            }
            if TEACHER in ndcg and ndcg[TEACHER].any()
            else None,
            "student_minus": {
                name: {"nDCG@10": figure(mean, [ndcg[STUDENT] - ndcg[name]], seed)}
                for name in ndcg
                if name != STUDENT
            },
        },
        "significance": {"measure": "nDCG@10", **compare_systems(ndcg, STUDENT, seed)},
        "per_query": per_query_values("nDCG@10", ndcg, list(task.qrels)),
        "wins_and_losses": wins_and_losses(
            "nDCG@10",
            (STUDENT, TEACHER if TEACHER in runs else BM25),
            ndcg,
            runs,
            task.queries,
            task.documents,
            task.qrels,
        ),
        "ranking_agreement": ranking_agreement(
            runs[TEACHER], {name: runs[name] for name in (STUDENT, UNTRAINED)}, seed
        )
        if TEACHER in runs
        else None,
        "fidelity": fidelity(teacher_scores, cosines[STUDENT], seed),
        "fidelity_untrained": fidelity(teacher_scores, cosines[UNTRAINED], seed),
        "paper_protocol": paper_protocol(teacher_scores, cosines[STUDENT]),
        "efficiency": efficiency(
            # Both as they are published: the teacher may have scored in a faster precision.
            {
                **(
                    {TEACHER: copy.deepcopy(teacher.model).float()}
                    if isinstance(teacher, BiEncoderTeacher)
                    else {}
                ),
                STUDENT: student,
            },
            list(task.queries.values()),
            list(task.documents.values()),
            {STUDENT: folder.student},
        ),
        "index": {
            name: index_size(task, *embedded[name], measure_of.get(name, "cosine"), seed)
            for name in (TEACHER, STUDENT)
            if name in embedded
        },
        "compatibility": compatibility(
            task,
            embedded[STUDENT],
            embedded.get(TEACHER),
            components,
            measure_of[TEACHER],
            seed,
        ),
        "pairs": {
            "pair_id": [
                name
                for name, has_score in zip(data.test["pair_id"], known, strict=True)
                if has_score
            ],
            "teacher_score": [round(float(x), 5) for x in teacher_scores],
            "student_score": [round(float(x), 5) for x in cosines[STUDENT]],
        },
    }
    write_json(folder.evaluation, evaluation)
    return evaluation


def ratio_of_means(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """mean(numerator) / mean(denominator) over the last axis; NaN where the denominator is 0."""
    below = denominator.mean(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(below > 0, numerator.mean(-1) / below, np.nan))
