"""The weights between two stages of a training.

The last stage of a training may specialise a student: towards ranking in the domain of the pairs,
and away from the teacher's scores. The students between its weights before and after this stage
take no training (WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_model
from sentence_transformers import SentenceTransformer
from torch import Tensor

AUTO = "auto"
PLACES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""The places that are measured. 0: before the last stage; 1: after it."""

RANKING, CLOSENESS, ERROR = "nDCG@10", "Pearson", "MAE"
"""What `auto` reads: the measure that it maximises, and the two that hold it back."""

LESS_CLOSE, MORE_ERROR = 0.01, 0.005
"""How much of Pearson and MAE to the teacher's scores `auto` gives for a better ranking."""


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
    return (
        point.measures[CLOSENESS] >= start.measures[CLOSENESS] - LESS_CLOSE
        and point.measures[ERROR] <= start.measures[ERROR] + MORE_ERROR
    )


def chosen(points: Sequence[Point]) -> float:
    """The place that ranks best of the `acceptable` ones; the nearer one to the stage before where
    two rank equally. The first of `points` is before the last stage.
    """
    close = [point for point in points if acceptable(point, points[0])]
    return max(close, key=lambda point: (point.measures[RANKING], -point.place)).place


def settle(
    student: SentenceTransformer,
    before: Path,
    place: str,
    measured: Callable[[SentenceTransformer], dict[str, float]] | None,
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
    if measured is not None and PartialState().is_main_process:
        for number in PLACES:
            student.load_state_dict(between(start, after, number))
            points.append(Point(number, measured(student)))
    decision = [chosen(points) if place == AUTO and points else None]
    if PartialState().num_processes > 1:
        broadcast_object_list(decision)
    settled = float(place) if decision[0] is None else decision[0]
    student.load_state_dict(between(start, after, settled))
    return settled, tuple(points)
