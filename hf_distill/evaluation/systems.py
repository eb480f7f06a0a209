"""The systems on one retrieval task: their runs, and what is measured of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from hf_distill.compute.bm25 import Words
from hf_distill.compute.search import search
from hf_distill.data.near_duplicates import text_key
from hf_distill.evaluation.bm25 import bm25_run
from hf_distill.evaluation.examples import per_query_values
from hf_distill.evaluation.intervals import estimate, mean, undefined
from hf_distill.evaluation.mixed_index import Embedded
from hf_distill.evaluation.results import (
    ALONE,
    BM25,
    READINGS,
    STUDENT,
    TEACHER,
    UNANSWERED,
    UNTRAINED,
    Estimate,
    NotApplicable,
    PerQuery,
    RetrievalResults,
    Significance,
)
from hf_distill.evaluation.retrieval import (
    DEPTH,
    MEASURES,
    Qrels,
    Run,
    per_query,
    write_qrels,
    write_run,
)
from hf_distill.evaluation.significance import student_significance
from hf_distill.evaluation.tasks import RetrievalTask

NDCG = "nDCG@10"
"""The measure of significance, examples and ratios."""


def ratio_of_means(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """mean(numerator) / mean(denominator) over the last axis; NaN where the denominator is 0."""
    below = denominator.mean(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(below > 0, numerator.mean(-1) / below, np.nan))


def not_applicable(run: Run, qrels: Qrels) -> NotApplicable | None:
    """Whether `run` finds no document for most queries, and for how many; None if it does."""
    result = NotApplicable(sum(not run.get(query) for query in qrels), len(qrels))
    return result if result.unanswered > UNANSWERED * result.queries else None


def on_documents_of_teacher(embedded: Mapping[str, Embedded]) -> dict[str, Embedded]:
    """The systems of a query encoder: student and untrained student search the teacher's documents,
    and `ALONE` is the student with documents of its own. As they are if the teacher is not among
    them: it has no embeddings of these documents.
    """
    systems = dict(embedded)
    if TEACHER not in systems:
        return systems
    systems[ALONE] = systems[STUDENT]
    documents = np.asarray(systems[TEACHER][1], dtype=np.float32)
    for name in (STUDENT, UNTRAINED, *READINGS):
        if name in systems:
            systems[name] = systems[name][0], documents
    return systems


@dataclass(frozen=True)
class Systems:
    """The runs of every system on one task.

    Attributes:
        task: Queries, documents and judgements.
        runs: System -> its run.
        words: What BM25 took for words.
    """

    task: RetrievalTask
    runs: Mapping[str, Run]
    words: Words

    @classmethod
    def search(
        cls, task: RetrievalTask, embedded: Mapping[str, Embedded], similarity: str, language: str
    ) -> Systems:
        """Search by embeddings and by BM25.

        Args:
            task: The task.
            embedded: System -> embeddings of the task's queries and documents.
            similarity: What the teacher ranks by; the others are compared by cosine.
            language: Of the texts (ISO code).
        """
        runs = {
            name: task.run(search(*pair, DEPTH, similarity if name == TEACHER else "dot"))
            for name, pair in embedded.items()
        }
        words = Words.of((*task.queries.values(), *task.documents.values()), language)
        runs[BM25] = bm25_run(task.queries, task.documents, words=words)
        return cls(task, runs, words)

    @cached_property
    def not_applicable(self) -> dict[str, NotApplicable]:
        """The systems that find no document for most queries."""
        missing = {name: not_applicable(run, self.task.qrels) for name, run in self.runs.items()}
        return {name: result for name, result in missing.items() if result}

    @cached_property
    def values(self) -> dict[str, dict[str, np.ndarray]]:
        """System that is applicable -> measure -> (Q,), in the order of the judgements."""
        return {
            name: per_query(run, self.task.qrels)
            for name, run in self.runs.items()
            if name not in self.not_applicable
        }

    @property
    def ndcg(self) -> dict[str, np.ndarray]:
        """System that is applicable -> nDCG@10 of each query (Q,)."""
        return {name: measures[NDCG] for name, measures in self.values.items()}

    def same_text(self) -> int:
        """How many queries are the text of a relevant document, but for case, punctuation and
        spacing.
        """
        documents = self.task.documents
        return sum(
            any(
                grade > 0
                and name in documents
                and text_key(documents[name]) == text_key(self.task.queries[query])
                for name, grade in grades.items()
            )
            for query, grades in self.task.qrels.items()
        )

    def retrieval(self, seed: int) -> RetrievalResults:
        """The means over queries, and the student's share of the teacher."""
        queries = len(self.task.qrels)

        def row(name: str) -> dict[str, Estimate]:
            if name in self.not_applicable:
                reason = self.not_applicable[name].reason
                return {str(m): undefined(queries, reason) for m in MEASURES}
            measures = self.values[name]
            return {str(m): estimate(mean, [measures[str(m)]], seed) for m in MEASURES}

        def over_teacher() -> Estimate | None:
            ndcg = self.ndcg
            if TEACHER not in ndcg or not ndcg[TEACHER].any():
                return None
            return estimate(ratio_of_means, [ndcg[STUDENT], ndcg[TEACHER]], seed)

        return RetrievalResults(
            num_queries=queries,
            num_documents=len(self.task.documents),
            notes=self.task.notes,
            systems={name: row(name) for name in self.runs},
            student_over_teacher=over_teacher(),
            not_applicable=self.not_applicable,
            same_text=self.same_text(),
            words=str(self.words),
            searched="teacher" if ALONE in self.runs else "own",
        )

    def significance(self, seed: int) -> Significance:
        """The student minus every other system that is applicable."""
        return student_significance(NDCG, self.ndcg, seed)

    def per_query(self) -> PerQuery:
        """nDCG@10 of every query."""
        return per_query_values(NDCG, self.ndcg, list(self.task.qrels))

    def write(self, folder: Path) -> None:
        """Write runs and judgements as TREC files."""
        write_qrels(self.task.qrels, folder / "qrels.txt")
        for name, run in self.runs.items():
            write_run(run, folder / f"{name.replace(' ', '-')}.run", name)
