"""Load the teacher that a recipe names."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from hf_distill.errors import InputError
from hf_distill.recipe.arguments import Recipe, TeacherArguments
from hf_distill.recipe.kinds import TEACHERS, load_kind
from hf_distill.teachers.base import Teacher

_EVERY_KIND = {"teacher", "teacher_kind", "teacher_dtype", "teacher_cache"}
"""Options that no kind refuses. Opening a run sets `teacher_dtype`, whatever the kind."""


def options_read(kind: Any) -> frozenset[str]:
    """The options that a kind of teacher reads (see `hf_distill.teachers.base.reads`)."""
    return getattr(kind, "reads", frozenset(vars(TeacherArguments()))) | _EVERY_KIND


def refuse_unread(arguments: TeacherArguments, read: Collection[str]) -> None:
    """Refuse options that are set to something other than their default and have no effect.

    Args:
        arguments: The options.
        read: Those that the kind of teacher reads.

    Raises:
        InputError: One of the others is set.
    """
    defaults = vars(TeacherArguments())
    for name, value in vars(arguments).items():
        if name not in read and value != defaults[name]:
            text = " ".join(map(str, value)) if isinstance(value, list) else value
            raise InputError(
                f"--{name} {text} has no effect with --teacher_kind {arguments.teacher_kind}; "
                "leave it at its default, or name another kind"
            )


def load_teacher(recipe: Recipe) -> Teacher:
    """Load the teacher that `recipe` names.

    Raises:
        InputError: An unknown kind, an option that it does not read, or whatever the kind itself
            refuses.
    """
    kind = load_kind(recipe.teacher.teacher_kind, TEACHERS, "teacher_kind")
    refuse_unread(recipe.teacher, options_read(kind))
    teacher: Teacher = kind(recipe)
    return teacher
