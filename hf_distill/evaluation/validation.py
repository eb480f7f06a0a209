"""Retrieval measures on the validation queries, computed while a student trains."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import ir_measures
import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.base.model import BaseModel

from hf_distill.compute.search import search
from hf_distill.data.collection import Collection, text_id
from hf_distill.errors import InputError
from hf_distill.evaluation.evaluate import embed_queries, embed_task
from hf_distill.evaluation.fidelity import pearson
from hf_distill.evaluation.mixed_index import Embedded
from hf_distill.evaluation.passages import Passages
from hf_distill.evaluation.retrieval import depth_of, parse_measures, per_query
from hf_distill.evaluation.tasks import RetrievalTask, make_task, student_queries
from hf_distill.recipe.arguments import Recipe
from hf_distill.scoring.scores import Scores
from hf_distill.teachers.base import pair_similarity
from hf_distill.training.between import (
    CLOSENESS,
    ELSEWHERE,
    ERROR,
    RANKING,
    Measure,
    Measured,
)

MOST_DOCUMENTS = 10_000
"""Documents that the validation queries search: enough to tell students apart, and few enough to be
embedded at each evaluation.
"""

FEW_DOCUMENTS = 1_000
"""The same, where several students are compared: each embeds them again."""

_CELLS = 10
"""Near and random documents of each query whose scores are compared."""

_PREFIX = "eval_"
_WATCHING = ("reduce_lr_on_plateau", "greedy")
"""Schedules that read the measure."""


def _measure(name: str) -> ir_measures.Measure:
    """The measure that `name` means, in any case: `ndcg@10`, `nDCG@10`, `mrr@10`.

    Raises:
        InputError: As `parse_measures`.
    """
    spelled = {known.lower(): known for known in ir_measures.measures.registry}
    end = min((name.find(c) for c in "@(" if c in name), default=len(name))
    base = spelled.get(name[:end].lower(), name[:end])
    return parse_measures([base + name[end:]])[0]


def watched_measure(recipe: Recipe) -> ir_measures.Measure | None:
    """The retrieval measure that `metric_for_best_model` names; None if it is the loss.

    Raises:
        InputError: It is neither, or `greater_is_better` or the schedule takes the worst for the
            best.
    """
    config = recipe.training
    named = config.metric_for_best_model
    if named is None:
        return None
    name = named.removeprefix(_PREFIX)
    measure = None
    if name != "loss":
        try:
            measure = _measure(name)
        except InputError as error:
            raise InputError(
                f"--metric_for_best_model {named}: no evaluation during training computes it. It "
                "can be eval_loss, or a retrieval measure on the validation queries, e.g. "
                f"eval_ndcg@10, eval_mrr@10, eval_r@100 ({error})"
            ) from error
    if "greater_is_better" in recipe.given and config.greater_is_better != (measure is not None):
        raise InputError(
            f"--greater_is_better {config.greater_is_better}: of --metric_for_best_model {named} "
            f"the {'greatest' if measure else 'least'} value is best; remove --greater_is_better"
        )
    schedule = str(getattr(config.lr_scheduler_type, "value", config.lr_scheduler_type))
    kwargs = config.lr_scheduler_kwargs if isinstance(config.lr_scheduler_kwargs, dict) else {}
    if measure and schedule in _WATCHING and kwargs.get("mode") != "max":
        raise InputError(
            f"--lr_scheduler_type {schedule}: it would take the least of --metric_for_best_model "
            f'{named} for the best; set --lr_scheduler_kwargs \'{{"mode": "max"}}\''
        )
    return measure


def _searched(collection: Collection, seed: int, most: int) -> np.ndarray:
    """(n,) int64: the documents of `validation_task`."""
    own = np.unique(collection.pairs("validation").documents)
    others = np.setdiff1d(np.arange(len(collection.documents)), own)
    drawn = np.random.default_rng(seed).permutation(others)[: max(0, most - len(own))]
    return np.concatenate([own, drawn])


def validation_task(collection: Collection, seed: int, most: int | None = None) -> RetrievalTask:
    """The validation queries, and the documents that they search: those judged for them, and others
    of the collection, drawn by the seed, up to `most` together (default: `MOST_DOCUMENTS`). Ids
    are `query_id`s and `text_id`s.
    """
    pairs = collection.pairs("validation")
    queries, documents = (
        np.unique(pairs.queries),
        _searched(collection, seed, most or MOST_DOCUMENTS),
    )
    query_texts, query_ids, document_texts = (
        dict(zip(numbers.tolist(), look_up(numbers), strict=True))
        for numbers, look_up in (
            (queries, collection.query_texts),
            (queries, collection.query_ids),
            (documents, collection.document_texts),
        )
    )
    grades: dict[tuple[int, int], int] = {}
    for query, document, grade in zip(
        pairs.queries.tolist(), pairs.documents.tolist(), pairs.column("grade"), strict=True
    ):
        grades[query, document] = max(grade, grades.get((query, document), 0))
    task = make_task(
        ((query_ids[number], text) for number, text in query_texts.items()),
        ((text_id(text), text) for text in document_texts.values()),
        ((query_ids[q], text_id(document_texts[d]), grade) for (q, d), grade in grades.items()),
        "validation queries",
    )
    return replace(task, student_queries=student_queries(collection, queries))


class ValidationRetrieval(BaseEvaluator):
    """An evaluator for the Trainer: one measure of a task, as the mean over its queries.

    Args:
        task: Queries and documents.
        measure: What is computed.
        documents: (N, d) embeddings of the documents that the model's queries search. None: its
            own.
    """

    def __init__(
        self,
        task: RetrievalTask,
        measure: ir_measures.Measure,
        documents: np.ndarray | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped
        self.task, self.measure, self.documents = task, measure, documents
        self.primary_metric = str(measure)

    def __str__(self) -> str:
        return (
            f"{self.measure} of {len(self.task.queries):,} validation queries among "
            f"{len(self.task.documents):,} documents"
        )

    def __call__(self, model: BaseModel, *_: Any, **__: Any) -> dict[str, float]:
        """The measure of `model`, by its name. The model's mode stays as it was."""
        training = model.training
        embedded = _embedded(cast(SentenceTransformer, model), self.task, self.documents)
        model.train(training)
        run = self.task.run(search(*embedded, depth_of([self.measure])))
        values = per_query(run, self.task.qrels, [self.measure])[str(self.measure)]
        return {str(self.measure): float(values.mean())}


def _embedded(
    model: SentenceTransformer, task: RetrievalTask, documents: np.ndarray | None
) -> Embedded:
    """The student's queries (Q, d), and the documents (N, d) that they search: the given ones, or
    its own.
    """
    if documents is None:
        return embed_task(model, task, "student")
    return embed_queries(model, task, "student"), documents


def _of_teacher(
    collection: Collection, scores: Scores, task: RetrievalTask, searched: np.ndarray
) -> np.ndarray:
    """The teacher's embeddings (N, D) float32 of the task's documents, in their order. They are the
    documents `searched` of the collection.
    """
    assert scores.embeddings is not None
    place = {name: i for i, name in enumerate(task.documents)}
    numbers = np.empty(len(task.documents), dtype=np.int64)
    numbers[[place[text_id(text)] for text in collection.document_texts(searched)]] = searched
    return scores.embeddings.of_documents(numbers).astype(np.float32)


def validation_evaluator(
    recipe: Recipe, collection: Collection, scores: Scores | None = None
) -> ValidationRetrieval | None:
    """What the evaluations during the training of `recipe` compute beside the loss; None: nothing.
    In the teacher's space, the queries search the teacher's embeddings, which are in `scores`.

    Raises:
        InputError: As `watched_measure`.
    """
    measure = watched_measure(recipe)
    if measure is None:
        return None
    task, documents = validation_task(collection, recipe.seed), None
    if recipe.training.student_space == "teacher":
        assert scores is not None, "a query encoder searches what the teacher embedded"
        searched = _searched(collection, recipe.seed, MOST_DOCUMENTS)
        documents = _of_teacher(collection, scores, task, searched)
    return ValidationRetrieval(task, measure, documents)


def point_measure(
    collection: Collection,
    scores: Scores,
    seed: int,
    space: Literal["own", "teacher"] = "own",
    passages: Passages | None = None,
) -> Measure | None:
    """What compares students between two stages of a training, on the validation queries: `RANKING`
    among at most `FEW_DOCUMENTS` documents, and `CLOSENESS` and `ERROR` to the teacher's scores;
    and `ELSEWHERE` on held-out `passages`, if there are any.

    The error is that over the pairs themselves, as in the report: contrast raises their scores. How
    close the scores are is measured over the pairs and, where the teacher embeds texts, over the
    ten documents of each query that it finds nearest and ten random ones. None: no validation
    pairs. In the teacher's `space`, the student's queries search the teacher's documents.
    """
    pairs = collection.pairs("validation")
    if not len(pairs):
        return None
    task = validation_task(collection, seed, FEW_DOCUMENTS)
    cells = _cells(collection, scores, task, seed)
    measure = parse_measures([RANKING])[0]
    given = None
    if space == "teacher":
        given = _of_teacher(collection, scores, task, _searched(collection, seed, FEW_DOCUMENTS))

    def measured(model: SentenceTransformer) -> Measured:
        queries, documents = _embedded(model, task, given)
        run = task.run(search(queries, documents, depth_of([measure])))
        student = (queries[cells.queries] * documents[cells.documents]).sum(axis=1)
        scores = {
            CLOSENESS: float(pearson(student, cells.scores)),
            ERROR: float(np.abs(student - cells.scores)[: cells.pairs].mean()),
        }
        if passages is not None and not np.isnan(
            elsewhere := passages.closeness(model, space == "teacher")
        ):
            scores[ELSEWHERE] = elsewhere
        return Measured(per_query(run, task.qrels, [measure])[str(measure)], scores)

    return measured


@dataclass(frozen=True)
class _Cells:
    """n pairs of a task's query and document, by their places in it, and the teacher's scores. The
    first `pairs` are validation pairs.
    """

    queries: np.ndarray
    documents: np.ndarray
    scores: np.ndarray
    pairs: int


def _cells(collection: Collection, scores: Scores, task: RetrievalTask, seed: int) -> _Cells:
    pairs = collection.pairs("validation")
    places = [{name: i for i, name in enumerate(part)} for part in (task.queries, task.documents)]

    def documents_at(numbers: np.ndarray) -> np.ndarray:
        return np.array([places[1][text_id(text)] for text in collection.document_texts(numbers)])

    queries = np.array([places[0][name] for name in collection.query_ids(pairs.queries)])
    documents = documents_at(pairs.documents)
    values = scores.of(pairs.rows)
    known = ~np.isnan(values)
    own = _Cells(queries[known], documents[known], values[known], int(known.sum()))
    if scores.embeddings is None:
        return own
    numbers = np.empty(len(task.queries), dtype=np.int64)
    numbers[queries] = pairs.queries
    of_queries = scores.embeddings.of_queries(numbers).astype(np.float32)
    searched = _searched(collection, seed, FEW_DOCUMENTS)
    of_documents = _of_teacher(collection, scores, task, searched)
    count = min(_CELLS, len(of_documents))
    _, nearest = search(of_queries, of_documents, count, scores.scale.similarity)
    draw = np.random.default_rng(seed)
    further = np.concatenate(
        [nearest, draw.integers(len(of_documents), size=nearest.shape)], axis=1
    )
    rows, columns = np.repeat(np.arange(len(further)), further.shape[1]), further.ravel()
    given = pair_similarity(scores.scale.similarity, of_queries[rows], of_documents[columns])
    return _Cells(
        np.concatenate([own.queries, rows]),
        np.concatenate([own.documents, columns]),
        np.concatenate([own.scores, given]),
        own.pairs,
    )
