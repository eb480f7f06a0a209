"""Several teachers as one: the weighted mean of their scores, all brought to one scale first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hf_distill.errors import InputError
from hf_distill.recipe.arguments import Recipe, TeacherArguments
from hf_distill.recipe.kinds import TEACHERS, load_kind
from hf_distill.teachers.base import Prompts, Scale, Teacher
from hf_distill.teachers.load import SINGLE_KINDS, kind_and_name, options_read, refuse_unread


def normalise_scores(fitted_on: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Quantiles in [0, 1] of one teacher's `scores` (n,) among its scores `fitted_on` (m,): the
    share of these that is lower, where equal ones count half. NaN in `fitted_on` is left out; NaN
    in `scores` stays.
    """
    values = np.sort(fitted_on[~np.isnan(fitted_on)])
    lower, not_higher = (np.searchsorted(values, scores, side) for side in ("left", "right"))
    return np.where(np.isnan(scores), np.nan, (lower + not_higher) / (2 * len(values)))


def combine(scores: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Weighted mean (n,) of several teachers' scores, NaN where one of them is NaN."""
    total = sum(weight * values for weight, values in zip(weights, scores, strict=True))
    return np.asarray(total / sum(weights))


@dataclass(frozen=True, eq=False, kw_only=True)
class EnsembleTeacher(Teacher):
    """Teachers with their weights. Each of them scores on its own, and the scores are added up."""

    members: tuple[tuple[Teacher, float], ...]
    prompts: Prompts
    scale = Scale("weighted mean of quantiles", None, 0.0, 1.0)

    @property
    def name(self) -> str:  # type: ignore[override]  # follows from the members
        """The members' names with their weights."""
        return " + ".join(f"{weight:g} {member.name}" for member, weight in self.members)

    @property
    def identity(self) -> tuple[Any, ...]:  # type: ignore[override]  # the same
        """The members' identities and weights."""
        return ("ensemble", *((member.identity, weight) for member, weight in self.members))

    @property
    def precision(self) -> str:  # type: ignore[override]  # the same
        """The precision of each member."""
        return ", ".join(member.precision for member, _ in self.members)


def parse_member(text: str) -> tuple[str, str, float]:
    """Kind, teacher and weight of a member, written as `KIND:TEACHER=WEIGHT`.

    Raises:
        InputError: It is not of this form (see `kind_and_name`), or the weight is not above 0.
    """
    named, _, weight = text.rpartition("=")
    both = kind_and_name(named)
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if both is None or not 0 < number < math.inf:
        raise InputError(
            f"--ensemble {text}: a member is KIND:TEACHER=WEIGHT with a weight above 0, as in "
            "cross-encoder:cross-encoder/ms-marco-MiniLM-L6-v2=0.5; KIND is one of "
            f"{', '.join(SINGLE_KINDS)}, or package.module:name of your own"
        )
    return *both, number


def load_ensemble(recipe: Recipe) -> EnsembleTeacher:
    """Load every member with those options of the recipe that its kind reads.

    Raises:
        InputError: No members, one that cannot be read or loaded, or an option that none of them
            reads.
    """
    arguments = recipe.teacher
    if not arguments.ensemble:
        raise InputError("--teacher_kind ensemble needs --ensemble KIND:TEACHER=WEIGHT ...")
    members = []
    every_option = {"ensemble"}
    for kind_name, name, weight in map(parse_member, arguments.ensemble):
        kind = load_kind(kind_name, TEACHERS, "ensemble")
        options = options_read(kind)
        every_option |= options
        own = {option: getattr(arguments, option) for option in options - {"ensemble"}}
        member = TeacherArguments(**own | {"teacher_kind": kind_name, "teacher": name})
        members.append((kind, replace(recipe, teacher=member), weight))
    refuse_unread(arguments, every_option)
    return EnsembleTeacher(
        members=tuple((kind(recipe), weight) for kind, recipe, weight in members),
        prompts=Prompts(arguments.query_prompt or "", arguments.document_prompt or ""),
    )
