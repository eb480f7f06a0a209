"""Load the teacher that a recipe names."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from hf_distill.errors import InputError
from hf_distill.recipe.arguments import Recipe, TeacherArguments
from hf_distill.recipe.kinds import PLUGIN, TEACHERS, load_kind
from hf_distill.teachers.base import Teacher

_EVERY_KIND = {"teacher", "teacher_kind", "teacher_dtype", "teacher_cache"}
"""Options that no kind refuses. Opening a run sets `teacher_dtype`, whatever the kind."""

SHARED = frozenset({"teacher_url", "trust_remote_code"})
"""Options that a ranker beside the teacher reads as they are."""

SINGLE_KINDS = tuple(kind for kind in TEACHERS if kind != "ensemble")
"""Kinds of one model."""


def kind_and_name(text: str) -> tuple[str, str] | None:
    """Kind and model of `KIND:MODEL`, where KIND is a name of `SINGLE_KINDS` or a
    `package.module:name`; None if it is not of this form.
    """
    known = next((kind for kind in SINGLE_KINDS if text.startswith(f"{kind}:")), None)
    plugin = PLUGIN.match(text)
    kind = known or (plugin.group() if plugin else "")
    model = text.removeprefix(f"{kind}:")
    return (kind, model) if kind and model and text.startswith(f"{kind}:") else None


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


def _read_by_ranker(recipe: Recipe) -> frozenset[str]:
    """The options of the teacher that its ranker reads, too."""
    kind, _ = kind_and_name(recipe.lists.ranker or "") or ("", "")
    return SHARED & options_read(load_kind(kind, TEACHERS, "ranker")) if kind else frozenset()


def load_teacher(recipe: Recipe) -> Teacher:
    """Load the teacher that `recipe` names.

    Raises:
        InputError: An unknown kind, an option that it does not read, or whatever the kind itself
            refuses.
    """
    kind = load_kind(recipe.teacher.teacher_kind, TEACHERS, "teacher_kind")
    refuse_unread(recipe.teacher, options_read(kind) | _read_by_ranker(recipe))
    teacher: Teacher = kind(recipe)
    return teacher
