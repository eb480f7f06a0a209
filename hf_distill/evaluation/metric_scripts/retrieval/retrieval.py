"""Retrieval measures of `ir-measures` with per-query values and intervals, as an
`evaluate.Metric`.
"""

# One module per line: `evaluate.load` reads the imports by a pattern.
import dataclasses
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from hf_distill.errors import InputError
from hf_distill.evaluation.intervals import estimate, mean
from hf_distill.evaluation.retrieval import parse_measures, per_query

_DESCRIPTION = """Retrieval by any measure that ir-measures has. Every query counts: one whose
ranking is empty or holds nothing relevant counts as what the measure gives it, usually 0."""
_INPUTS = """
Args:
    predictions: one per query: {"documents": ids, "scores": numbers}; a higher score ranks earlier.
    references: one per query, in the same order: {"documents": judged ids, "grades": integers,
        above 0 if relevant}.
    measures: names as ir-measures has them; nDCG@10, R@100 and RR@10 if not given.
    seed: seeds the bootstrap intervals; 0 if not given.
Returns:
    the mean of each measure over the queries; intervals: the same with its 95% interval;
    per_query: the values, in the order of the queries.
Examples:
    >>> from hf_distill.evaluation.metrics import Retrieval
    >>> ranking = {"documents": ["d1", "d2"], "scores": [0.9, 0.4]}
    >>> judged = {"documents": ["d2"], "grades": [1]}
    >>> Retrieval().compute(predictions=[ranking], references=[judged], measures=["RR"])["RR"]
    0.5
"""


def _table(rows: list[dict[str, Any]], column: str, what: str) -> dict[str, dict[str, Any]]:
    """Query number -> document id -> value, checked."""
    table = {}
    for i, row in enumerate(rows):
        names, values = row["documents"], row[column]
        if len(names) != len(values):
            raise InputError(
                f"{what} {i} has {len(names)} documents and {len(values)} {column}; give one for "
                "each document"
            )
        if len(set(names)) != len(names):
            raise InputError(
                f"{what} {i} names {len(names) - len(set(names))} of its {len(names)} documents "
                "twice; name each once"
            )
        table[str(i)] = dict(zip(names, values, strict=True))
    return table


class Retrieval(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """`Retrieval().compute(predictions=rankings, references=judgements, measures=["nDCG@10"])`; see
    `.inputs_description`.
    """

    def _info(self) -> evaluate.MetricInfo:
        text, number, grade = (
            datasets.Value("string"),
            datasets.Value("float64"),
            datasets.Value("int64"),
        )
        features = datasets.Features(
            {
                "predictions": {
                    "documents": datasets.Sequence(text),
                    "scores": datasets.Sequence(number),
                },
                "references": {
                    "documents": datasets.Sequence(text),
                    "grades": datasets.Sequence(grade),
                },
            }
        )
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation="", inputs_description=_INPUTS, features=features
        )

    def _compute(
        self,
        predictions: list[dict[str, Any]],
        references: list[dict[str, Any]],
        measures: Sequence[str] = ("nDCG@10", "R@100", "RR@10"),
        seed: int = 0,
    ) -> dict[str, Any]:
        run, qrels = (
            _table(predictions, "scores", "prediction"),
            _table(references, "grades", "reference"),
        )
        unjudged = [query for query, grades in qrels.items() if not grades]
        if unjudged:
            raise InputError(
                f"{len(unjudged)} of {len(qrels)} queries have no judgement (first: reference "
                f"{unjudged[0]}); leave them out"
            )
        parsed = parse_measures(measures)
        values = per_query(run, qrels, parsed)
        intervals = {name: estimate(mean, [array], seed) for name, array in values.items()}
        return {
            **{name: interval.value for name, interval in intervals.items()},
            "intervals": {
                name: dataclasses.asdict(interval) for name, interval in intervals.items()
            },
            "per_query": {name: array.tolist() for name, array in values.items()},
        }
