"""Full-corpus retrieval: runs without ties, measures per query through `ir-measures`, and TREC
files.

Among equal scores, trec_eval (nDCG, R, AP) puts the greater document id first and the MS MARCO
script (RR@10) the smaller one; `ir_measures` calls both. A run therefore holds no ties, so that
every measure reads the same ranking, here and on the command line. Among equal scores the smaller
document id comes first, and each later one is lowered by the smallest step of float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import ir_measures
import numpy as np

from hf_distill.errors import InputError
from hf_distill.run.stage import written_whole

MEASURES = tuple(
    ir_measures.parse_measure(name) for name in ("nDCG@10", "R@1", "R@10", "R@100", "RR@10")
)
NDCG = (ir_measures.parse_measure("nDCG@10"),)
"""Used where no other measure is needed, because each one takes time."""
DEPTH = 100

Run = dict[str, dict[str, float]]
"""Query id -> document id -> score, the best `DEPTH` documents, the best first."""
Qrels = Mapping[str, Mapping[str, int]]
"""Query id -> document id -> relevance grade."""


def parse_measures(names: Iterable[str]) -> tuple[ir_measures.Measure, ...]:
    """Measures by the names that `ir-measures` gives them, e.g. `nDCG@10`, `AP(rel=2)@100`.

    Raises:
        InputError: A name it does not know, or a measure whose program is not installed.
    """
    measures = []
    for name in names:
        try:
            measure = ir_measures.parse_measure(name)
            measure.validate_params()  # type: ignore[no-untyped-call]  # untyped
        except (ValueError, NameError, TypeError, KeyError, AssertionError) as error:
            raise InputError(
                f"ir-measures has no measure {name!r} ({error}); name one like nDCG@10, "
                "R@100, RR@10, AP@100, P@5"
            ) from error
        if not ir_measures.DefaultPipeline.supports(measure):  # type: ignore[no-untyped-call]  # untyped
            raise InputError(
                f"measure {name!r}: the program that computes it is not installed; install it (see "
                "https://ir-measur.es/en/latest/providers.html)"
            )
        measures.append(measure)
    return tuple(measures)


def depth_of(measures: Sequence[ir_measures.Measure]) -> int:
    """How many documents per query `measures` need: their greatest cutoff, at least `DEPTH`. A
    measure without a cutoff needs 1,000, as at TREC.
    """
    cutoffs = [measure.params.get("cutoff", 1000) for measure in measures]
    return max([DEPTH, *(cutoff for cutoff in cutoffs if isinstance(cutoff, int))])


def without_ties(scores: np.ndarray) -> np.ndarray:
    """`scores` (Q, k), descending, as strictly descending float32: a score that is not below the
    one before it is lowered to the next float32 below that one.
    """
    result = np.array(scores, dtype=np.float32)
    for place in range(1, result.shape[1]):
        result[:, place] = np.minimum(
            result[:, place], np.nextafter(result[:, place - 1], np.float32(-np.inf))
        )
    return result


def make_run(
    query_ids: Sequence[str], document_ids: Sequence[str], scores: np.ndarray, indices: np.ndarray
) -> Run:
    """A run from the result of `search`, in its order: ties are in order of document id if
    `document_ids` ascend.
    """
    return {
        query: {document_ids[j]: float(score) for score, j in zip(row_scores, row, strict=True)}
        for query, row_scores, row in zip(query_ids, without_ties(scores), indices, strict=True)
    }


def per_query(
    run: Run, qrels: Qrels, measures: Sequence[ir_measures.Measure] = MEASURES
) -> dict[str, np.ndarray]:
    """Each of `measures` for every judged query, in the order of `qrels`: name -> (Q,) float64.

    A judged query that the run does not answer counts as 0.
    """
    place = {query: i for i, query in enumerate(qrels)}
    values = {str(measure): np.zeros(len(qrels)) for measure in measures}
    answered = {query: documents for query, documents in run.items() if documents}
    for metric in ir_measures.iter_calc(
        list(measures), {q: dict(d) for q, d in qrels.items()}, answered
    ):
        values[str(metric.measure)][place[metric.query_id]] = metric.value
    return values


def _check_ids(ids: Iterable[str], path: Path) -> None:
    for name in ids:
        if not name or name.split() != [name]:
            raise InputError(
                f"{path}: the id {name!r} is empty or contains white space, which a TREC file "
                "cannot hold; give it another id"
            )


def write_run(run: Run, path: Path, tag: str) -> None:
    """Write `run` as a TREC run: `query Q0 document rank score tag`. Nine digits give a float32
    back exactly.

    Raises:
        InputError: An id with white space.
    """
    _check_ids((name for query, documents in run.items() for name in (query, *documents)), path)
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for query, documents in run.items():
            for rank, (name, score) in enumerate(documents.items(), 1):
                file.write(f"{query} Q0 {name} {rank} {score:.9g} {tag.replace(' ', '-')}\n")


def write_qrels(qrels: Qrels, path: Path) -> None:
    """Write `qrels` as TREC judgements: `query 0 document grade`.

    Raises:
        InputError: An id with white space.
    """
    _check_ids((name for query, documents in qrels.items() for name in (query, *documents)), path)
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(
            f"{query} 0 {name} {grade}\n"
            for query, documents in qrels.items()
            for name, grade in documents.items()
        )
