"""Retrieval measures of `ir-measures` with per-query values and intervals, as an
`evaluate.Metric`.
"""

# One module a line: `evaluate.load` reads the imports by a pattern.
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import ir_measures
import numpy as np

from hf_distill.errors import InputError
from hf_distill.evaluation.intervals import (
    figure,
    mean,
)

_DESCRIPTION = """Retrieval by any measure that ir-measures knows. Every query given counts: one whose ranking is empty, or holds nothing
relevant, counts with what the measure gives it, usually 0."""
_INPUTS = """
Args:
    predictions: one a query: {"documents": ids, "scores": numbers}; a higher score ranks earlier.
    references: one a query, in the same order: {"documents": judged ids, "grades": integers, above 0 if relevant}.
    measures: names as ir-measures has them; nDCG@10, R@100 and RR@10 if not given.
    seed: seeds the bootstrap intervals; 0 if not given.
Returns:
    the mean of each measure over the queries; intervals: the same with its 95% interval; per_query: the values, in the order of queries.
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
                f"{what} {i} has {len(names)} documents and {len(values)} {column}; give one for each document"
            )
        if len(set(names)) != len(names):
            raise InputError(
                f"{what} {i} names {len(names) - len(set(names))} of its {len(names)} documents twice; name each once"
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
                f"{len(unjudged)} of {len(qrels)} queries have no judgement (first: reference {unjudged[0]}); leave them out"
            )
        try:
            parsed = [ir_measures.parse_measure(name) for name in measures]
        except (NameError, ValueError, SyntaxError) as error:
            raise InputError(
                f"ir-measures does not know one of the measures {', '.join(measures)}: {error}"
            ) from error
        values = {str(measure): np.zeros(len(qrels)) for measure in parsed}
        # A query without a ranking has no row in what ir-measures returns, and stays 0.
        for metric in ir_measures.iter_calc(
            parsed, qrels, {query: ranking for query, ranking in run.items() if ranking}
        ):
            values[str(metric.measure)][int(metric.query_id)] = metric.value
        intervals = {name: figure(mean, [array], seed) for name, array in values.items()}
        return {
            **{name: interval["value"] for name, interval in intervals.items()},
            "intervals": intervals,
            "per_query": {name: array.tolist() for name, array in values.items()},
        }
