"""The weights between two stages of a training.

The last stage of a training may specialise a student: towards ranking in the domain of the pairs,
and away from the teacher's scores. The students between its weights before and after this stage
take no training (WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from safetensors.torch import load_model
from sentence_transformers import SentenceTransformer
from torch import Tensor

from hf_distill.run.processes import from_main

AUTO = "auto"
PLACES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""The places that are measured. 0: before the last stage; 1: after it."""

RANKING, CLOSENESS, ERROR = "nDCG@10", "Pearson", "MAE"
"""What `auto` reads: how well a student ranks, and how closely it follows the teacher's scores."""

ELSEWHERE = "Pearson of passages"
"""The same closeness on held-out passages, where it is measured."""

LESS_CLOSE, MORE_ERROR = 0.01, 0.005
"""How much of Pearson and MAE to the teacher's scores `auto` gives for a better ranking."""


@dataclass(frozen=True)
class Measured:
    """A student on held-out data.

    Attributes:
        ranking: (Q,) `RANKING` of each query.
        scores: `CLOSENESS`, `ERROR` and perhaps `ELSEWHERE`.
    """

    ranking: np.ndarray
    scores: dict[str, float]


Measure = Callable[[SentenceTransformer], Measured]


@dataclass(frozen=True)
class Point:
    """A student between two stages: its place, from 0 to 1, and what it reaches on held-out data:
    measure -> value.
    """

    place: float
    measures: dict[str, float]


def between(before: dict[str, Tensor], after: dict[str, Tensor], place: float) -> dict[str, Tensor]:
    """The weights at `place` of the straight line between two students of the same form."""
    return {
        name: torch.lerp(before[name], value, place) if value.is_floating_point() else value
        for name, value in after.items()
    }


def acceptable(point: Point, start: Point) -> bool:
    """Whether a student follows the teacher's scores nearly as closely as that before the last
    stage.
    """
    here, before = point.measures, start.measures
    close = [name for name in (CLOSENESS, ELSEWHERE) if name in before]
    return here[ERROR] <= before[ERROR] + MORE_ERROR and all(
        here.get(name, -np.inf) >= before[name] - LESS_CLOSE for name in close
    )


def chosen(points: Sequence[Point], ranking: np.ndarray) -> float:
    """The furthest of the `acceptable` places that ranks as well as the best of them: at most one
    standard error of their difference below it (the rule of one standard error, Breiman et al.,
    Classification and Regression Trees, 1984, sec. 3.4.3, with the differences of each query).

    Args:
        points: The students, from before the last stage to after it.
        ranking: (P, Q) `RANKING` of each of these students for each query.
    """
    close = [i for i, point in enumerate(points) if acceptable(point, points[0])]
    best = max(close, key=lambda i: ranking[i].mean())
    behind = ranking[best] - ranking
    error = behind.std(axis=1, ddof=min(1, ranking.shape[1] - 1)) / np.sqrt(ranking.shape[1])
    return max(points[i].place for i in close if behind[i].mean() <= error[i])


def settle(
    student: SentenceTransformer,
    before: Path,
    place: str,
    measured: Measure | None,
) -> tuple[float, tuple[Point, ...]]:
    """Give a student the weights at a place between two stages.

    Args:
        student: As the last stage left it; changed in place.
        before: The weights before that stage.
        place: A number from 0 to 1, or `AUTO`.
        measured: Measures a student on held-out data; None: there is none.

    Returns:
        The place, and what was measured at `PLACES`.
    """
    after = {name: value.clone() for name, value in student.state_dict().items()}
    load_model(student, before)
    start = {name: value.clone() for name, value in student.state_dict().items()}
    points: list[Point] = []
    ranking: list[np.ndarray] = []
    if measured is not None and PartialState().is_main_process:
        for number in PLACES:
            student.load_state_dict(between(start, after, number))
            here = measured(student)
            ranking.append(here.ranking)
            points.append(Point(number, {RANKING: float(here.ranking.mean()), **here.scores}))
    decision = from_main(chosen(points, np.stack(ranking)) if place == AUTO and points else None)
    settled = float(place) if decision is None else decision
    student.load_state_dict(between(start, after, settled))
    return settled, tuple(points)
