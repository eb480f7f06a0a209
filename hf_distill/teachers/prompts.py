"""Which of a model's prompts are used: those that sentence-transformers itself would use."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from accelerate import PartialState
from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.base.model import BaseModel

from hf_distill.compute.encode import Asked, how_asked
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import TeacherArguments
from hf_distill.teachers.base import TextKind

logger = logging.getLogger(__name__)


def asked_as(model: BaseModel, name: str, call: Callable[[], Any]) -> Asked:
    """How sentence-transformers asks the teacher `name` in `call` (see `how_asked`).

    Raises:
        InputError: The library itself cannot ask it.
    """
    try:
        return how_asked(model, call)
    except (ValueError, TypeError, KeyError, RuntimeError, IndexError, AttributeError) as error:
        raise InputError(
            f"--teacher {name}: sentence-transformers itself cannot use this model on a short "
            f"text ({type(error).__name__}: {error}); mend its folder, or name another model"
        ) from error


def asked_by_kind(
    model: SentenceTransformer | SparseEncoder, arguments: TeacherArguments
) -> dict[TextKind, Asked]:
    """How `encode_query` and `encode_document` ask the teacher, with the recipe's prompts or the
    model's own. Prompts of the model that are not used are said.

    Raises:
        InputError: As `asked_as`.
    """
    query, document, name = arguments.query_prompt, arguments.document_prompt, arguments.teacher
    asked: dict[TextKind, Asked] = {
        "query": asked_as(model, name, lambda: model.encode_query("a", prompt=query)),
        "document": asked_as(model, name, lambda: model.encode_document("a", prompt=document)),
    }
    tell_unused_prompts(model, arguments, *(one.prompt for one in asked.values()))
    return asked


def tell_unused_prompts(model: BaseModel, arguments: TeacherArguments, *used: str) -> None:
    """Say which prompts `model` has if it is asked without one: sentence-transformers uses prompts
    of some names alone, and what the others are for only a person can know.

    Args:
        model: The teacher.
        arguments: Whoever gives a prompt has seen the model's.
        used: The prompts that it is asked with.
    """
    given = arguments.query_prompt is not None or arguments.document_prompt is not None
    unused = {name: text for name, text in model.prompts.items() if text and text not in used}
    if given or all(used) or not unused or not PartialState().is_main_process:
        return
    prompts = "; ".join(f"{name}: {text!r}" for name, text in unused.items())
    logger.warning(
        "%s has prompts that are not used: %s. If texts need one, give it with --query_prompt or "
        "--document_prompt",
        arguments.teacher,
        prompts,
    )
