"""Everything that is measured in a run, on held-out data, with intervals: `evaluate`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from sentence_transformers import SentenceTransformer
from tqdm.auto import tqdm

from hf_distill.compute.encode import encode, how_asked
from hf_distill.data.collection import Collection
from hf_distill.data.conversations import utterance_of
from hf_distill.errors import InputError
from hf_distill.evaluation.agreement import ranking_agreement
from hf_distill.evaluation.by_source import Scored, by_source
from hf_distill.evaluation.efficiency import efficiency
from hf_distill.evaluation.examples import wins_and_losses
from hf_distill.evaluation.fidelity import fidelity
from hf_distill.evaluation.further import embed_by_teacher, folder_name
from hf_distill.evaluation.index import index_size
from hf_distill.evaluation.intervals import bootstrap_settings
from hf_distill.evaluation.mixed_index import Embedded, mixed_index
from hf_distill.evaluation.paper_protocol import paper_protocol
from hf_distill.evaluation.ranker import Reranking, measure_ranker
from hf_distill.evaluation.results import (
    ALONE,
    BM25,
    ON_QUERY,
    ON_UTTERANCE,
    STUDENT,
    TEACHER,
    UNTRAINED,
    Efficiency,
    Evaluation,
    PairScores,
    TaskResults,
)
from hf_distill.evaluation.systems import NDCG, Systems, on_documents_of_teacher
from hf_distill.evaluation.tasks import HeldOutTask, RetrievalTask, held_out_task
from hf_distill.recipe.arguments import CONVERSATION
from hf_distill.run.folder import RunFolder
from hf_distill.scoring.scores import Scores
from hf_distill.teachers.base import Teacher


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
        language: Of the texts (ISO code).
        space: The student's, as in the recipe (`student_space`). In the teacher's, student and
            untrained student search what the teacher embedded.
        tasks: Name -> a further task to measure on, and what the recipe calls it.
        shards: Folder of the teacher's embeddings of these.
        student_query: What the student reads in place of the query, as the recipe says it.
        reranking: The ranker of the lists, and on how many queries it is measured; None: it is not.
    """

    student: SentenceTransformer
    untrained: SentenceTransformer
    teacher: Teacher
    collection: Collection
    scores: Scores
    components: np.ndarray | None
    training: str
    language: str = "en"
    space: Literal["own", "teacher"] = "own"
    tasks: Mapping[str, tuple[str, RetrievalTask]] = field(default_factory=dict)
    shards: Path | None = None
    student_query: str | None = None
    reranking: Reranking | None = None


def embed_task(
    model: SentenceTransformer, task: RetrievalTask, name: str = "model"
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of the task's queries (Q, d), as the student reads them, and documents (N, d),
    float32: those of the model's own `encode_query` and `encode_document`. As after `model.encode`,
    the model is in evaluation mode afterwards.

    Args:
        model: Any SentenceTransformer.
        task: Queries and documents.
        name: The model's name, for the error.

    Raises:
        InputError: An embedding is NaN or infinite.
    """
    documents = list(task.documents.values())
    return embed_queries(model, task, name), embed_as("documents", documents, model, name)


def embed_queries(
    model: SentenceTransformer, task: RetrievalTask, name: str = "model"
) -> np.ndarray:
    """The queries of `embed_task` alone, as the student reads them."""
    queries = task.student_queries or task.queries
    return embed_as("queries", list(queries.values()), model, name)


def embed_as(
    what: Literal["queries", "documents", "texts"],
    texts: list[str],
    model: SentenceTransformer,
    name: str,
) -> np.ndarray:
    """A model's embeddings (n, d) float32 of texts; texts that are neither are read as documents.

    Raises:
        InputError: NaN or infinite ones.
    """
    model.eval()
    ask = model.encode_query if what == "queries" else model.encode_document
    values = encode(model, texts, asked=how_asked(model, lambda: ask("a"))).numpy()
    broken = int((~np.isfinite(values).all(axis=1)).sum())
    if broken:
        raise InputError(
            f"the {name} returns NaN or infinite embeddings for {broken} of {len(values)} "
            f"{what}, which cannot be searched; check its weights"
        )
    return values


def pair_cosines(task: HeldOutTask, queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Cosines (n,) float64 of the held-out pairs, from L2-normalised embeddings of the task's
    queries (Q, d) and documents (N, d).
    """
    left, right = queries[task.pair_queries], documents[task.pair_documents]
    cosines: np.ndarray = np.einsum("nd,nd->n", left, right).astype(np.float64)
    return cosines


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
    embedded = _embed_held_out(subject, task)
    systems = Systems.search(task, embedded, similarity, subject.language)
    systems.write(folder.retrieval)
    runs, ndcg = systems.runs, systems.ndcg

    pairs = subject.collection.pairs("test")
    teacher_scores = subject.scores.of(pairs.rows).astype(np.float64)
    scored = ~np.isnan(teacher_scores)
    teacher_scores = teacher_scores[scored]
    student_scores, untrained_scores = (
        pair_cosines(task, *embedded[name])[scored] for name in (STUDENT, UNTRAINED)
    )
    pair_ids = pairs.take(np.flatnonzero(scored)).column("pair_id")
    against = next(name for name in (TEACHER, BM25, UNTRAINED) if name in ndcg)
    return Evaluation(
        key=key,
        training=subject.training,
        collection=subject.collection.key,
        bootstrap=bootstrap_settings(seed),
        retrieval=systems.retrieval(seed),
        significance=systems.significance(seed),
        per_query=systems.per_query(),
        wins_and_losses=wins_and_losses(NDCG, (STUDENT, against), ndcg, runs, task),
        ranking_agreement=ranking_agreement(
            runs[TEACHER], {name: runs[name] for name in (STUDENT, UNTRAINED)}, seed
        )
        if TEACHER in runs
        else None,
        fidelity=fidelity(teacher_scores, student_scores, seed),
        fidelity_untrained=fidelity(teacher_scores, untrained_scores, seed),
        paper_protocol=paper_protocol(teacher_scores, student_scores),
        efficiency=costs(
            subject,
            [*task.queries.values()],
            [*task.documents.values()],
            folder,
            [*task.student_queries.values()] if task.student_queries else None,
        ),
        index={
            name: index_size(
                task, *embedded[name], similarity if name == TEACHER else "cosine", seed
            )
            for name in (TEACHER, STUDENT)
            if name in embedded
        },
        mixed_index=mixed_index(
            task,
            embedded.get(ALONE, embedded[STUDENT]),
            embedded.get(TEACHER),
            subject.components,
            similarity,
            seed,
        ),
        pairs=PairScores(
            tuple(pair_ids),
            tuple(round(score, 5) for score in teacher_scores.tolist()),
            tuple(round(score, 5) for score in student_scores.tolist()),
        ),
        tasks={
            name: further_task(subject, *named, folder.retrieval / folder_name(name), seed)
            for name, named in subject.tasks.items()
        },
        by_source=by_source(
            subject.collection,
            task,
            systems.values,
            Scored(scored, teacher_scores, student_scores),
            seed,
        ),
        student_query=subject.student_query,
        ranker=None
        if subject.reranking is None
        else measure_ranker(
            subject.reranking, subject.collection, task, runs, embedded[STUDENT], seed
        ),
    )


def _embed_models(subject: Subject, task: RetrievalTask) -> dict[str, Embedded]:
    models = {STUDENT: subject.student, UNTRAINED: subject.untrained}
    bar = tqdm(models.items(), desc=f"Evaluating on {task.name}", unit=" models", leave=False)
    embedded = {name: embed_task(model, task, name) for name, model in bar}
    return embedded | _readings(subject, task, embedded[STUDENT][1])


def _readings(subject: Subject, task: RetrievalTask, documents: np.ndarray) -> dict[str, Embedded]:
    """`READINGS` of the student, over its embeddings of the documents (N, d)."""
    if task.student_queries is None:
        return {}
    forms = {ON_QUERY: list(task.queries.values())}
    if subject.student_query == CONVERSATION:
        utterances = [utterance_of(text) for text in task.student_queries.values()]
        forms = {ON_UTTERANCE: utterances, **forms}
    return {
        name: (embed_as("queries", texts, subject.student, name), documents)
        for name, texts in forms.items()
    }


def _embed_held_out(subject: Subject, task: HeldOutTask) -> dict[str, Embedded]:
    """The embeddings of every system that has any."""
    embedded, table = _embed_models(subject, task), subject.scores.embeddings
    if not subject.teacher.embeds or table is None:
        return embedded
    of_teacher = table.of_queries(task.query_numbers), table.of_documents(task.document_numbers)
    return _searched(subject, {TEACHER: of_teacher, **embedded})


def _searched(subject: Subject, embedded: dict[str, Embedded]) -> dict[str, Embedded]:
    """The embeddings that each system searches with, and in."""
    return on_documents_of_teacher(embedded) if subject.space == "teacher" else embedded


def further_task(
    subject: Subject, named: str, task: RetrievalTask, folder: Path, seed: int
) -> TaskResults:
    """Every system on a further task; its TREC files go to `folder`."""
    of_teacher = embed_by_teacher(task, subject.teacher, subject.shards)
    embedded = _searched(
        subject, {**({TEACHER: of_teacher} if of_teacher else {}), **_embed_models(subject, task)}
    )
    similarity = subject.scores.scale.similarity
    systems = Systems.search(task, embedded, similarity, subject.language)
    systems.write(folder)
    return TaskResults(
        named, systems.retrieval(seed), systems.significance(seed), systems.per_query()
    )


def costs(
    subject: Subject,
    queries: list[str],
    documents: list[str],
    folder: RunFolder,
    student_queries: list[str] | None = None,
) -> Efficiency:
    """The cost of the student, and of a teacher that is one local bi-encoder.

    Args:
        subject: What is measured.
        queries: Which both embed.
        documents: Which both embed.
        folder: Of the run.
        student_queries: What the student embeds in place of `queries`; None: the same.
    """
    models = {STUDENT: subject.student}
    if subject.teacher.backbone is not None and not subject.teacher.members:
        # As it is published: it may have scored in a faster precision.
        models = {TEACHER: copy.deepcopy(subject.teacher.backbone).float(), **models}
    own = None if student_queries is None else {STUDENT: student_queries}
    return efficiency(models, queries, documents, {STUDENT: folder.student}, own)
