"""Models beside the teacher: the ranker that scores lists, bi-encoders that mine them, and the
second model of a selection.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from hf_distill.errors import InputError
from hf_distill.recipe.arguments import Recipe, TeacherArguments
from hf_distill.recipe.kinds import TEACHERS, load_kind
from hf_distill.teachers.base import EmbeddingTeacher, PairTeacher, Teacher
from hf_distill.teachers.load import SHARED, SINGLE_KINDS, kind_and_name, options_read


def _beside(recipe: Recipe, kind: str, model: str, key: str, activation: str = "auto") -> Teacher:
    """A model of `kind`. It shares precision, address and trust with the teacher, and has its own
    prompts and limits.
    """
    load, shared = load_kind(kind, TEACHERS, key), recipe.teacher
    wanted = {name: getattr(shared, name) for name in SHARED} | {"teacher_activation": activation}
    read = options_read(load)
    own = TeacherArguments(
        teacher=model,
        teacher_kind=kind,
        teacher_dtype=shared.teacher_dtype,
        **{name: value for name, value in wanted.items() if name in read},
    )
    try:
        loaded: Teacher = load(replace(recipe, teacher=own))
    except InputError as error:  # it speaks of a teacher
        says = str(error).replace("--teacher_activation", "--ranker_activation")
        raise InputError(f"--{key} {model}: {says}") from error
    return loaded


def load_ranker(recipe: Recipe) -> PairTeacher | None:
    """The ranker that `recipe` names; None if the teacher scores the lists.

    Raises:
        InputError: It is not of the form KIND:MODEL, or of a kind that scores no pairs.
    """
    text = recipe.lists.ranker
    if text is None:
        return None
    both = kind_and_name(text)
    if both is None:
        raise InputError(
            f"--ranker {text}: a ranker is KIND:MODEL, as in "
            "cross-encoder:cross-encoder/ms-marco-MiniLM-L6-v2; KIND is one of "
            f"{', '.join(SINGLE_KINDS)}, or package.module:name of your own"
        )
    ranker = _beside(recipe, *both, "ranker", recipe.lists.ranker_activation)
    if not ranker.scores_pairs:
        raise InputError(
            f"--ranker {text}: it embeds texts and scores no pairs. As a teacher it scores lists, "
            "too: name it with --teacher, and set --ranker none"
        )
    return cast(PairTeacher, ranker)


def load_miner(recipe: Recipe, model: str) -> EmbeddingTeacher:
    """The bi-encoder `model`, which mines candidates.

    Raises:
        InputError: It cannot be loaded.
    """
    return cast(EmbeddingTeacher, _beside(recipe, "bi-encoder", model, "candidates"))


def load_second(recipe: Recipe) -> EmbeddingTeacher | None:
    """The second model that `recipe` names for its selection; None if it names none.

    Raises:
        InputError: It cannot be loaded.
    """
    model = recipe.selection.second_model
    if model is None:
        return None
    return cast(EmbeddingTeacher, _beside(recipe, "bi-encoder", model, "second_model"))
