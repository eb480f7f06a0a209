"""Everything that is measured in a run, on held-out data, with intervals: `evaluate`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from sentence_transformers import SentenceTransformer
from tqdm.auto import tqdm

from hf_distill.compute.encode import encode, how_asked
from hf_distill.compute.search import search
from hf_distill.data.collection import Collection
from hf_distill.errors import InputError
from hf_distill.evaluation.agreement import ranking_agreement
from hf_distill.evaluation.efficiency import efficiency
from hf_distill.evaluation.examples import per_query_values, wins_and_losses
from hf_distill.evaluation.fidelity import fidelity
from hf_distill.evaluation.index import index_size
from hf_distill.evaluation.intervals import bootstrap_settings, estimate, mean
from hf_distill.evaluation.mixed_index import Embedded, mixed_index
from hf_distill.evaluation.paper_protocol import paper_protocol
from hf_distill.evaluation.results import (
    BM25,
    STUDENT,
    TEACHER,
    UNTRAINED,
    Efficiency,
    Estimate,
    Evaluation,
    PairScores,
    RetrievalResults,
)
from hf_distill.evaluation.retrieval import (
    DEPTH,
    MEASURES,
    Run,
    bm25_run,
    per_query,
    write_qrels,
    write_run,
)
from hf_distill.evaluation.significance import student_significance
from hf_distill.evaluation.tasks import HeldOutTask, RetrievalTask, held_out_task
from hf_distill.run.folder import RunFolder
from hf_distill.scoring.scores import Scores
from hf_distill.teachers.base import Teacher

NDCG = "nDCG@10"
"""The measure of significance, examples and ratios."""


@dataclass(frozen=True)
class Subject:
    """What is evaluated.

    Attributes:
        student: The trained student.
        untrained: The student as it was before its training.
        teacher: Its cost is measured. Its embeddings are those of `scores`. A teacher that embeds
            no texts cannot search a corpus and is left out of the retrieval.
        collection: The held-out pairs, and the documents that their queries search.
        scores: The teacher's scores and embeddings.
        components: (c, d) principal components of the teacher's embeddings (see
            `hf_distill.student.initialise`); None without embeddings.
        training: The key of the training that made the student.
    """

    student: SentenceTransformer
    untrained: SentenceTransformer
    teacher: Teacher
    collection: Collection
    scores: Scores
    components: np.ndarray | None
    training: str


def embed_task(
    model: SentenceTransformer, task: RetrievalTask, name: str = "model"
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of the task's queries (Q, d) and documents (N, d), float32: those of the model's
    own `encode_query` and `encode_document`. As after `model.encode`, the model is in evaluation
    mode afterwards.

    Args:
        model: Any SentenceTransformer.
        task: Queries and documents.
        name: The model's name, for the error.

    Raises:
        InputError: An embedding is NaN or infinite.
    """
    model.eval()
    parts = (
        ("queries", how_asked(model, lambda: model.encode_query("a")), task.queries),
        ("documents", how_asked(model, lambda: model.encode_document("a")), task.documents),
    )
    embedded = []
    for what, asked, texts in parts:
        values = encode(model, list(texts.values()), asked=asked).numpy()
        broken = int((~np.isfinite(values).all(axis=1)).sum())
        if broken:
            raise InputError(
                f"the {name} returns NaN or infinite embeddings for {broken} of {len(values)} "
                f"{what}, which cannot be searched; check its weights"
            )
        embedded.append(values)
    return embedded[0], embedded[1]


def pair_cosines(task: HeldOutTask, queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Cosines (n,) float64 of the held-out pairs, from L2-normalised embeddings of the task's
    queries (Q, d) and documents (N, d).
    """
    left, right = queries[task.pair_queries], documents[task.pair_documents]
    cosines: np.ndarray = np.einsum("nd,nd->n", left, right).astype(np.float64)
    return cosines


def ratio_of_means(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """mean(numerator) / mean(denominator) over the last axis; NaN where the denominator is 0."""
    below = denominator.mean(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(below > 0, numerator.mean(-1) / below, np.nan))


def evaluate(subject: Subject, folder: RunFolder, seed: int, key: str) -> Evaluation:
    """Evaluate on the held-out pairs, and write the TREC files of the run's folder.

    Args:
        subject: What is evaluated.
        folder: The run's folder; it holds the student that was saved.
        seed: Seeds the bootstrap and the randomisation.
        key: The fingerprint of what the evaluation depends on.

    Raises:
        InputError: A model returns NaN or infinite embeddings.
    """
    task = held_out_task(subject.collection)
    similarity = subject.scores.scale.similarity  # the teacher's; students are compared by cosine
    embedded = _embed_systems(subject, task)
    runs = {
        name: task.run(search(*pair, DEPTH, similarity if name == TEACHER else "dot"))
        for name, pair in embedded.items()
    }
    runs[BM25] = bm25_run(task.queries, task.documents)
    _write_trec_files(task, runs, folder)
    values = {name: per_query(run, task.qrels) for name, run in runs.items()}
    ndcg = {name: measures[NDCG] for name, measures in values.items()}

    pairs = subject.collection.pairs("test")
    teacher_scores = subject.scores.of(pairs.rows).astype(np.float64)
    scored = ~np.isnan(teacher_scores)
    teacher_scores = teacher_scores[scored]
    student_scores, untrained_scores = (
        pair_cosines(task, *embedded[name])[scored] for name in (STUDENT, UNTRAINED)
    )
    pair_ids = pairs.take(np.flatnonzero(scored)).column("pair_id")
    return Evaluation(
        key=key,
        training=subject.training,
        collection=subject.collection.key,
        bootstrap=bootstrap_settings(seed),
        retrieval=_retrieval(task, values, seed),
        significance=student_significance(NDCG, ndcg, seed),
        per_query=per_query_values(NDCG, ndcg, list(task.qrels)),
        wins_and_losses=wins_and_losses(
            NDCG, (STUDENT, TEACHER if TEACHER in runs else BM25), ndcg, runs, task
        ),
        ranking_agreement=ranking_agreement(
            runs[TEACHER], {name: runs[name] for name in (STUDENT, UNTRAINED)}, seed
        )
        if TEACHER in runs
        else None,
        fidelity=fidelity(teacher_scores, student_scores, seed),
        fidelity_untrained=fidelity(teacher_scores, untrained_scores, seed),
        paper_protocol=paper_protocol(teacher_scores, student_scores),
        efficiency=_efficiency(subject, task, folder),
        index={
            name: index_size(
                task, *embedded[name], similarity if name == TEACHER else "cosine", seed
            )
            for name in (TEACHER, STUDENT)
            if name in embedded
        },
        mixed_index=mixed_index(
            task, embedded[STUDENT], embedded.get(TEACHER), subject.components, similarity, seed
        ),
        pairs=PairScores(
            tuple(pair_ids),
            tuple(round(score, 5) for score in teacher_scores.tolist()),
            tuple(round(score, 5) for score in student_scores.tolist()),
        ),
    )


def _embed_systems(subject: Subject, task: HeldOutTask) -> dict[str, Embedded]:
    """The embeddings of every system that has any."""
    models = {STUDENT: subject.student, UNTRAINED: subject.untrained}
    bar = tqdm(models.items(), desc="Evaluating", unit=" models", leave=False)
    embedded = {name: embed_task(model, task, name) for name, model in bar}
    table = subject.scores.embeddings
    if not subject.teacher.embeds or table is None:
        return embedded
    of_teacher = table.of_queries(task.query_numbers), table.of_documents(task.document_numbers)
    return {TEACHER: of_teacher, **embedded}


def _write_trec_files(task: RetrievalTask, runs: Mapping[str, Run], folder: RunFolder) -> None:
    write_qrels(task.qrels, folder.retrieval / "qrels.txt")
    for name, run in runs.items():
        write_run(run, folder.retrieval / f"{name.replace(' ', '-')}.run", name)


def _retrieval(
    task: RetrievalTask, values: Mapping[str, Mapping[str, np.ndarray]], seed: int
) -> RetrievalResults:
    """The means of `values` (system -> measure -> (Q,)), and the student's share of the teacher."""

    def over_teacher() -> Estimate | None:
        if TEACHER not in values or not values[TEACHER][NDCG].any():
            return None
        ratio = [values[name][NDCG] for name in (STUDENT, TEACHER)]
        return estimate(ratio_of_means, ratio, seed)

    return RetrievalResults(
        num_queries=len(task.queries),
        num_documents=len(task.documents),
        notes=task.notes,
        systems={
            name: {str(m): estimate(mean, [measures[str(m)]], seed) for m in MEASURES}
            for name, measures in values.items()
        },
        student_over_teacher=over_teacher(),
    )


def _efficiency(subject: Subject, task: RetrievalTask, folder: RunFolder) -> Efficiency:
    """The cost of the student, and of a teacher that is one local bi-encoder."""
    models = {STUDENT: subject.student}
    if subject.teacher.backbone is not None and not subject.teacher.members:
        # As it is published: it may have scored in a faster precision.
        models = {TEACHER: copy.deepcopy(subject.teacher.backbone).float(), **models}
    queries, documents = list(task.queries.values()), list(task.documents.values())
    return efficiency(models, queries, documents, {STUDENT: folder.student})
