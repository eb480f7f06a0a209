"""What can be measured of a student without judgements: whether it finds what its teacher finds,
whether its scores are the teacher's, and whether it tells texts apart at all.

Held-out texts are the queries. Each searches other texts and never finds itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from sentence_transformers import SentenceTransformer

from hf_distill.compute.bm25 import Words
from hf_distill.compute.search import search
from hf_distill.data.collection import Collection, text_id
from hf_distill.errors import InputError
from hf_distill.evaluation.agreement import gained
from hf_distill.evaluation.bm25 import bm25_run
from hf_distill.evaluation.evaluate import Subject, costs, embed_as, further_task
from hf_distill.evaluation.fidelity import mae, pearson, spearman, why_unordered
from hf_distill.evaluation.further import folder_name
from hf_distill.evaluation.intervals import bootstrap_settings, estimate, mean, undefined
from hf_distill.evaluation.results import (
    BM25,
    STUDENT,
    TEACHER,
    UNANSWERED,
    UNTRAINED,
    Estimate,
)
from hf_distill.evaluation.significance import student_significance
from hf_distill.evaluation.texts_results import (
    Closeness,
    Spread,
    TextsEvaluation,
    TextSystem,
    TranslationResults,
)
from hf_distill.run.folder import RunFolder
from hf_distill.scoring.scores import Scores
from hf_distill.teachers.base import pair_similarity

OVERLAP = "overlap@10"
"""The measure that every claim is about."""
K = 10
MOST_TEXTS, MOST_SEARCHED = 1_000, 10_000
"""Held-out texts that are queries, and texts that they search, at most."""

CONSTANT, ALIKE, NARROW = 1e-3, 0.95, 0.25
"""A student has collapsed if its scores of random texts have a standard deviation below `CONSTANT`
or below `NARROW` of the teacher's, or a mean above `ALIKE` that is not the teacher's, too.
"""


@dataclass(frozen=True)
class TextsTask:
    """Held-out texts as queries, and the texts that they search.

    Attributes:
        queries: (Q,) int64, numbers of test texts, each teacher's text once.
        searched: (N,) int64, numbers of texts, each teacher's text once. The queries come first:
            query i is text i of them.
        teacher_texts: N texts, as the teacher reads them.
        student_texts: Q texts, as the student reads the queries.
    """

    queries: np.ndarray
    searched: np.ndarray
    teacher_texts: list[str]
    student_texts: list[str]

    @property
    def parallel(self) -> bool:
        """Whether the student reads other texts than the teacher."""
        return self.student_texts != self.teacher_texts[: len(self.queries)]

    @cached_property
    def depth(self) -> int:
        """How many nearest texts are compared: ten, or all others where there are fewer."""
        return min(K, len(self.searched) - 1)


def texts_task(collection: Collection, seed: int) -> TextsTask:
    """At most `MOST_TEXTS` test texts and `MOST_SEARCHED` texts, drawn by the seed.

    Raises:
        InputError: There is only one text to search.
    """
    draw = np.random.default_rng(seed)
    seen: set[str] = set()

    def once(numbers: np.ndarray) -> np.ndarray:
        new = []
        for number, text in zip(numbers.tolist(), collection.teacher_texts(numbers), strict=True):
            if (name := text_id(text)) not in seen:
                seen.add(name)
                new.append(number)
        return np.array(new, dtype=np.int64)

    test = once(draw.permutation(collection.text_numbers("test")))
    queries = test[:MOST_TEXTS]
    train = draw.permutation(collection.text_numbers("train"))[: max(0, MOST_SEARCHED - len(test))]
    searched = np.concatenate([test, once(train)])[:MOST_SEARCHED]
    if len(searched) < 3:
        raise InputError(
            f"there are {len(searched)} different texts to search, so no order can be compared; "
            "add texts"
        )
    return TextsTask(
        queries,
        searched,
        collection.teacher_texts(searched),
        collection.student_texts(queries),
    )


Embedded = tuple[np.ndarray, np.ndarray]
"""Embeddings of a task's queries (Q, d) and of the texts that they search (N, d)."""


def embed_texts_task(model: SentenceTransformer, task: TextsTask, name: str) -> Embedded:
    """A model's embeddings (float32). Where both read the same texts, these are embedded once."""
    searched = embed_as("texts", task.teacher_texts, model, name)
    if not task.parallel:
        return searched[: len(task.queries)], searched
    return embed_as("texts", task.student_texts, model, name), searched


def nearest_others(embedded: Embedded, depth: int, similarity: str = "dot") -> np.ndarray:
    """(Q, depth) int64: the texts nearest to each query but itself, the nearest first."""
    queries, searched = (np.asarray(part, dtype=np.float32) for part in embedded)
    _, found = search(queries, searched, depth + 1, similarity)
    own = found == np.arange(len(queries))[:, None]
    order = np.argsort(own, axis=1, kind="stable")[:, :depth]
    return np.take_along_axis(found, order, axis=1)


def bm25_others(task: TextsTask, language: str) -> np.ndarray:
    """(Q, depth) int64: the same by BM25; -1 where it finds fewer."""
    queries = {f"{i:09d}": text for i, text in enumerate(task.student_texts)}
    documents = {f"{i:09d}": text for i, text in enumerate(task.teacher_texts)}
    words = Words.of((*queries.values(), *documents.values()), language)
    run = bm25_run(queries, documents, task.depth + 1, words)
    found = np.full((len(queries), task.depth), -1, dtype=np.int64)
    for row, (query, ranked) in enumerate(run.items()):
        others = [int(name) for name in ranked if name != query][: task.depth]
        found[row, : len(others)] = others
    return found


def overlap(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(Q,) the share of `wanted` (Q, k) among `found` (Q, k), whatever the order."""
    shares: np.ndarray = (wanted[:, :, None] == found[:, None, :]).any(axis=2).mean(axis=1)
    return shares


def closeness(teacher: np.ndarray, student: np.ndarray, bounded: bool, seed: int) -> Closeness:
    """Of a student's cosines (n,) to a teacher's scores (n,). If the scores are not bounded like
    cosines, there is no error.
    """
    teacher, student = (np.asarray(part, dtype=np.float64) for part in (teacher, student))
    unordered, both = why_unordered(teacher, student), [teacher, student]

    def unless(reason: str | None, make: str) -> Estimate:
        statistic = {"pearson": pearson, "spearman": spearman, "mae": mae}[make]
        return undefined(len(teacher), reason) if reason else estimate(statistic, both, seed)

    scale = None if bounded else "the teacher's scores are no cosines"
    return Closeness(
        pairs=len(teacher),
        pearson=unless(unordered, "pearson"),
        spearman=unless(unordered, "spearman"),
        mae=unless(scale, "mae"),
    )


def why_collapsed(teacher: Spread, student: Spread) -> str | None:
    """What is wrong with a student's scores of random texts, compared with the teacher's; None if
    nothing is.
    """
    if teacher.sd < CONSTANT:
        return (
            f"its teacher gives all texts the same embedding: two random ones score "
            f"{teacher.mean:.3f}, with a standard deviation of {teacher.sd:.1g}; check the teacher "
            "and its tokenizer"
        )
    if student.sd < CONSTANT:
        return (
            f"its scores are constant: two random texts score {student.mean:.3f}, with a standard "
            f"deviation of {student.sd:.1g}"
        )
    if student.mean > ALIKE > teacher.mean:
        return (
            f"nearly all texts look alike to it: two random ones have a mean cosine of "
            f"{student.mean:.2f} (the teacher's: {teacher.mean:.2f})"
        )
    if student.sd < NARROW * teacher.sd:
        return (
            f"it hardly tells texts apart: its scores of random texts have a standard deviation of "
            f"{student.sd:.3f}, and the teacher's {teacher.sd:.3f}"
        )
    return None


@dataclass(frozen=True)
class _Measured:
    """The systems on a task, and the teacher's own answers."""

    task: TextsTask
    embedded: Mapping[str, Embedded]
    similarity: str
    seed: int

    def scores(self, name: str, found: np.ndarray) -> np.ndarray:
        """(Q, k) the scores by the system `name` of each query with the texts `found` (Q, k)."""
        queries, searched = self.embedded[name]
        measure = self.similarity if name == TEACHER else "cosine"
        rows = np.repeat(np.arange(len(found)), found.shape[1])
        values = pair_similarity(measure, queries[rows], searched[found.ravel()])
        return values.reshape(found.shape).astype(np.float64)

    @cached_property
    def best(self) -> np.ndarray:
        """(Q, k): what the teacher finds."""
        return nearest_others(self.embedded[TEACHER], self.task.depth, self.similarity)

    @cached_property
    def random(self) -> np.ndarray:
        """(Q, 1): a random other text for each query."""
        drawn = np.random.default_rng(self.seed).integers(
            len(self.task.searched) - 1, size=len(self.task.queries)
        )
        drawn += drawn >= np.arange(len(drawn))  # never itself
        return drawn[:, None]

    @cached_property
    def near(self) -> np.ndarray:
        """(Q, 1): one of what the teacher finds for each query."""
        draw = np.random.default_rng((self.seed, 1))
        places = draw.integers(self.best.shape[1], size=(len(self.best), 1))
        return np.take_along_axis(self.best, places, axis=1)

    def gains(self, found: np.ndarray) -> np.ndarray:
        """(Q,) nDCG of what a system finds (Q, k); -1: nothing."""
        gains = self.scores(TEACHER, np.maximum(found, 0))
        return gained(np.where(found < 0, 0, gains), self.scores(TEACHER, self.best))

    def close(self, name: str, pairs: np.ndarray, bounded: bool) -> Closeness:
        teacher, own = (self.scores(n, pairs).ravel() for n in (TEACHER, name))
        return closeness(teacher, own, bounded, self.seed)

    def spread(self, name: str) -> Spread:
        values = self.scores(name, self.random)
        return Spread(round(float(values.mean()), 5), round(float(values.std()), 5))


def _translations(
    embedded: Embedded, texts: list[str], own: np.ndarray | None, seed: int
) -> TranslationResults:
    """As `TranslationEvaluator` of sentence-transformers: each of Q texts among the Q of the other
    side. Another text with the same words is the same text.

    Args:
        embedded: Of the student's texts and of the teacher's texts, both (Q, d).
        texts: The student's texts.
        own: (Q, d) what the student's texts are aligned to; None if nothing is known.
        seed: Seeds the bootstrap.
    """
    theirs, ours = (np.asarray(part, dtype=np.float32) for part in embedded)
    numbers = np.arange(len(theirs))
    names = np.unique(np.array(texts, dtype=object), return_inverse=True)[1]
    _, found = search(theirs, ours, 1)
    _, back = search(ours, theirs, 1)
    cosine = None
    if own is not None:
        values = pair_similarity("cosine", theirs, own).astype(np.float64)
        cosine = estimate(mean, [values], seed)
    return TranslationResults(
        found=estimate(mean, [(found[:, 0] == numbers).astype(np.float64)], seed),
        found_back=estimate(mean, [(names[back[:, 0]] == names).astype(np.float64)], seed),
        cosine=cosine,
    )


def _teacher(task: TextsTask, collection: Collection, scores: Scores) -> Embedded:
    """The teacher's embeddings: it reads its own texts as queries, too."""
    assert scores.embeddings is not None, "texts alone need a teacher that embeds"
    searched = scores.embeddings.of_texts(task.searched).astype(np.float32)
    return searched[: len(task.queries)], searched


def evaluate_texts(subject: Subject, folder: RunFolder, seed: int, key: str) -> TextsEvaluation:
    """Evaluate on the held-out texts, and write the TREC files of further tasks.

    Args:
        subject: What is evaluated.
        folder: The run's folder; it holds the student that was saved.
        seed: Seeds what is drawn, the bootstrap and the randomisation.
        key: The fingerprint of what the evaluation depends on.

    Raises:
        InputError: A model returns NaN or infinite embeddings, or there are too few texts.
    """
    collection, scores = subject.collection, subject.scores
    task = texts_task(collection, seed)
    embedded = {
        TEACHER: _teacher(task, collection, scores),
        STUDENT: embed_texts_task(subject.student, task, STUDENT),
        UNTRAINED: embed_texts_task(subject.untrained, task, UNTRAINED),
    }
    measured = _Measured(task, embedded, scores.scale.similarity, seed)
    found = {name: nearest_others(embedded[name], task.depth) for name in (STUDENT, UNTRAINED)}
    by_words = bm25_others(task, subject.language)
    if (by_words[:, 0] < 0).mean() <= UNANSWERED:
        found[BM25] = by_words
    overlaps = {name: overlap(texts, measured.best) for name, texts in found.items()}
    bounded = scores.scale.is_bounded

    def system(name: str) -> TextSystem:
        has_cosines = name in embedded
        return TextSystem(
            overlap=estimate(mean, [overlaps[name]], seed),
            ndcg=estimate(mean, [measured.gains(found[name])], seed),
            random=measured.close(name, measured.random, bounded) if has_cosines else None,
            near=measured.close(name, measured.near, bounded) if has_cosines else None,
        )

    spread = {name: measured.spread(name) for name in (TEACHER, STUDENT)}
    translations, by_source = _both_forms(subject, task, embedded, seed)
    return TextsEvaluation(
        key=key,
        training=subject.training,
        collection=collection.key,
        bootstrap=bootstrap_settings(seed),
        num_texts=len(task.queries),
        num_searched=len(task.searched),
        systems={name: system(name) for name in found},
        significance=student_significance(OVERLAP, overlaps, seed),
        spread=spread,
        collapsed=why_collapsed(spread[TEACHER], spread[STUDENT]),
        translations=translations,
        by_source=by_source,
        efficiency=costs(subject, task.student_texts, task.teacher_texts, folder),
        tasks={
            name: further_task(subject, *named, folder.retrieval / folder_name(name), seed)
            for name, named in subject.tasks.items()
        },
    )


_TestForms = tuple[dict[str, TranslationResults], dict[str, TranslationResults]]


def _both_forms(
    subject: Subject, task: TextsTask, embedded: Mapping[str, Embedded], seed: int
) -> _TestForms:
    """The translations of every system, and those of the student by source."""
    if not task.parallel:
        return {}, {}
    collection, table = subject.collection, subject.scores.embeddings
    assert table is not None, "texts alone need a teacher that embeds"
    count = len(task.queries)
    own = table.of_texts(task.queries).astype(np.float32)
    components = subject.components
    space = None if components is None else own @ components.T
    first = collection.text_numbers("test")[0]
    sides = {name: (embedded[name][0], embedded[name][1][:count]) for name in (STUDENT, UNTRAINED)}
    if len(table.student_texts):
        of_teacher = table.of_student_texts()[task.queries - first].astype(np.float32)
        sides = {TEACHER: (of_teacher, own), **sides}
    spaces = {TEACHER: own, STUDENT: space, UNTRAINED: space}

    def of(name: str, rows: np.ndarray) -> TranslationResults:
        left, right = (side[rows] for side in sides[name])
        texts = [task.student_texts[i] for i in rows.tolist()]
        target = spaces[name]
        return _translations((left, right), texts, None if target is None else target[rows], seed)

    rows = np.arange(count)
    sources = collection.texts.select_columns(["source"]).with_format("arrow")[task.queries]
    names = np.array([name or "" for name in sources["source"].to_pylist()], dtype=object)
    several = sorted(set(names)) if len(set(names)) > 1 else []
    return (
        {name: of(name, rows) for name in sides},
        {name or "(no source)": of(STUDENT, np.flatnonzero(names == name)) for name in several},
    )
