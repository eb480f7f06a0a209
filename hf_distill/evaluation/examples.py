"""Values query by query, and the queries that the student wins and loses by most, with their
texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

EXAMPLES = 5
_CHARACTERS = 300
_DECIMALS = 12  # so that tests on what was written agree with those on what was measured


def per_query_values(
    measure: str, values: Mapping[str, np.ndarray], query_ids: Sequence[str]
) -> dict[str, Any]:
    """The values (Q,) of `measure` of every system, in the order of `query_ids`, so that every test
    can be repeated from the file.
    """
    systems = {name: np.round(array, _DECIMALS).tolist() for name, array in values.items()}
    return {"measure": measure, "query_id": list(query_ids), "systems": systems}


def _shortened(text: str) -> str:
    return text if len(text) <= _CHARACTERS else text[: _CHARACTERS - 1] + "…"


def _ranking(run: Mapping[str, float]) -> list[str]:
    return [name for name, _ in sorted(run.items(), key=lambda item: (-item[1], item[0]))]


def wins_and_losses(
    measure: str,
    names: tuple[str, str],
    values: Mapping[str, np.ndarray],
    runs: Mapping[str, Mapping[str, Mapping[str, float]]],
    queries: Mapping[str, str],
    documents: Mapping[str, str],
    qrels: Mapping[str, Mapping[str, int]],
) -> dict[str, Any]:
    """The queries on which two systems differ most.

    Args:
        measure: What the values measure.
        names: The system and the one it is held against.
        values: System -> (Q,) values in the order of `qrels`.
        runs: System -> query id -> document id -> score.
        queries: Query id -> text.
        documents: Document id -> text.
        qrels: Query id -> document id -> grade.

    Returns:
        `measure`, `system`, `against`, and `wins` and `losses`: the `EXAMPLES` largest of each,
            largest first, among equals the earliest,
        with both values, the texts of the query, of the judged document that the system ranks best
        and of its first document if that is another (at most 300 characters each), and both ranks
        of the judged document (None: not found).
    """
    system, against = names
    differences = values[system] - values[against]
    ids = list(qrels)

    def example(i: int) -> dict[str, Any]:
        rankings = {name: _ranking(runs[name].get(ids[i], {})) for name in names}
        relevant = [name for name, grade in qrels[ids[i]].items() if grade > 0] or list(
            qrels[ids[i]]
        )
        found = [name for name in rankings[system] if name in relevant]
        judged = found[0] if found else relevant[0]
        first = rankings[system][0] if rankings[system] else None
        return {
            "query": _shortened(queries[ids[i]]),
            "judged": _shortened(documents[judged]) if judged in documents else None,
            "first": _shortened(documents[first])
            if first is not None and first != judged
            else None,
            "value": float(values[system][i]),
            "value_against": float(values[against][i]),
            "rank": rankings[system].index(judged) + 1 if judged in rankings[system] else None,
            "rank_against": rankings[against].index(judged) + 1
            if judged in rankings[against]
            else None,
        }

    best, worst = (
        np.argsort(-differences, kind="stable")[:EXAMPLES],
        np.argsort(differences, kind="stable")[:EXAMPLES],
    )
    return {
        "measure": measure,
        "system": system,
        "against": against,
        "wins": [example(i) for i in best.tolist() if differences[i] > 0],
        "losses": [example(i) for i in worst.tolist() if differences[i] < 0],
    }
