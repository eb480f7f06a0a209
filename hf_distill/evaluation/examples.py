"""Values query by query, and the queries that the student wins and loses by most, with their
texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hf_distill.evaluation.results import Example, PerQuery, WinsAndLosses
from hf_distill.evaluation.retrieval import Run
from hf_distill.evaluation.tasks import RetrievalTask

EXAMPLES = 5
_CHARACTERS = 300
_DECIMALS = 12  # tests on what was written then agree with those on what was measured


def per_query_values(
    measure: str, values: Mapping[str, np.ndarray], query_ids: Sequence[str]
) -> PerQuery:
    """The values (Q,) of `measure` of every system, in the order of `query_ids`."""
    systems = {name: tuple(np.round(array, _DECIMALS).tolist()) for name, array in values.items()}
    return PerQuery(measure, tuple(query_ids), systems)


def _shortened(text: str) -> str:
    return text if len(text) <= _CHARACTERS else text[: _CHARACTERS - 1] + "…"


def _ranking(run: Mapping[str, float]) -> list[str]:
    return [name for name, _ in sorted(run.items(), key=lambda item: (-item[1], item[0]))]


def wins_and_losses(
    measure: str,
    names: tuple[str, str],
    values: Mapping[str, np.ndarray],
    runs: Mapping[str, Run],
    task: RetrievalTask,
) -> WinsAndLosses:
    """The queries on which two systems differ most: `EXAMPLES` in each direction. Of equal ones,
    the first count.

    Args:
        measure: What the values measure.
        names: The system, and the one that it is compared with.
        values: System -> (Q,) values in the order of the task's judgements.
        runs: System -> its run.
        task: Texts and judgements.
    """
    system, against = names
    differences = values[system] - values[against]
    ids = list(task.qrels)

    def example(i: int) -> Example:
        query, grades = ids[i], task.qrels[ids[i]]
        ranking, other = (_ranking(runs[name].get(query, {})) for name in names)
        relevant = [name for name, grade in grades.items() if grade > 0] or list(grades)
        judged = next((name for name in ranking if name in relevant), relevant[0])
        first = ranking[0] if ranking and ranking[0] != judged else None
        return Example(
            query=_shortened(task.queries[query]),
            student_query=_shortened(task.student_queries[query]) if task.student_queries else None,
            judged=_shortened(task.documents[judged]) if judged in task.documents else None,
            first=None if first is None else _shortened(task.documents[first]),
            value=float(values[system][i]),
            value_against=float(values[against][i]),
            rank=ranking.index(judged) + 1 if judged in ranking else None,
            rank_against=other.index(judged) + 1 if judged in other else None,
        )

    best = np.argsort(-differences, kind="stable")[:EXAMPLES].tolist()
    worst = np.argsort(differences, kind="stable")[:EXAMPLES].tolist()
    return WinsAndLosses(
        measure=measure,
        system=system,
        against=against,
        wins=tuple(example(i) for i in best if differences[i] > 0),
        losses=tuple(example(i) for i in worst if differences[i] < 0),
    )
