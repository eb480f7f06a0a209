"""A cross-encoder as teacher: it reads query and document together, and has no embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sentence_transformers import CrossEncoder
from torch import Tensor, nn

from hf_distill.compute.device import encoding_batch_tokens
from hf_distill.compute.encode import Advance, Asked, run_in_batches
from hf_distill.compute.models import (
    chosen_dtype,
    load_model,
    model_identity,
    set_length,
)
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import Recipe
from hf_distill.teachers.base import PairTeacher, Prompts, Scale, reads
from hf_distill.teachers.prompts import asked_as, tell_unused_prompts

ACTIVATIONS: dict[str, tuple[nn.Module, Scale]] = {
    "sigmoid": (nn.Sigmoid(), Scale("cross-encoder", "sigmoid", 0.0, 1.0)),
    "identity": (nn.Identity(), Scale("cross-encoder", "identity", -np.inf, np.inf)),
}


@dataclass(frozen=True, eq=False, kw_only=True)
class CrossEncoderTeacher(PairTeacher):
    """A CrossEncoder with one output, `asked` as `predict` does."""

    model: CrossEncoder
    name: str
    identity: tuple[Any, ...]
    precision: str
    activation: Callable[[Tensor], Tensor]
    scale: Scale
    prompts: Prompts
    instruction: str
    asked: Asked

    def score(self, pairs: list[tuple[str, str]], advance: Advance | None = None) -> np.ndarray:
        """See :meth:`PairTeacher.score`. These are the scores of `CrossEncoder.predict` with this
        activation.

        Raises:
            InputError: A score is NaN or infinite.
        """
        items = [(query, self.prompts.document + document) for query, document in pairs]
        scores = torch.empty(len(pairs))
        batch_tokens = encoding_batch_tokens(self.model.device.type)
        for rows, logits in run_in_batches(
            self.model, items, batch_tokens, "scores", advance, self.asked
        ):
            scores[rows] = self.activation(logits.reshape(len(rows)))
        return self.checked(
            scores.numpy(), pairs, "Check its weights, or try --teacher_dtype float32"
        )


def _activation(model: CrossEncoder, wanted: str) -> tuple[Callable[[Tensor], Tensor], Scale]:
    """What turns logits into scores, and their scale: `wanted`, or for `auto` a sigmoid, unless the
    model declares something other than a sigmoid or nothing.
    """
    declared: Any = model.activation_fn
    known = declared is None or isinstance(declared, (nn.Sigmoid, nn.Identity))
    if wanted == "auto" and not known:
        bound = 1.0 if isinstance(declared, nn.Tanh) else np.inf
        return declared, Scale("cross-encoder", type(declared).__name__.lower(), -bound, bound)
    return ACTIVATIONS["sigmoid" if wanted == "auto" else wanted]


@reads(
    "teacher_activation", "teacher_max_length", "query_prompt", "document_prompt",
    "trust_remote_code",
)  # fmt: skip
def load_cross_encoder(recipe: Recipe) -> CrossEncoderTeacher:
    """Load a cross-encoder.

    `query_prompt` is the prompt of `CrossEncoder.predict`: the instruction of an LLM reranker, or
    the text before the query. By default it is the model's own default prompt.

    With `teacher_activation: auto` its logits go through a sigmoid, also if the model declares
    none: a student's cosines are bounded, and the same model has been published with either.

    Raises:
        InputError: It cannot be found, loaded or asked, does not have exactly one output, or has
            fewer positions than it is told to read.
    """
    arguments = recipe.teacher
    model = load_model(CrossEncoder, arguments.teacher, "teacher", arguments.trust_remote_code)
    if model.num_labels != 1:
        raise InputError(
            f"--teacher {arguments.teacher} has {model.num_labels} outputs, so it classifies pairs "
            "instead of scoring them; name a cross-encoder with one output"
        )
    set_length(model, arguments.teacher, arguments.teacher_max_length)
    given, document = arguments.query_prompt, arguments.document_prompt or ""
    asked = asked_as(model, arguments.teacher, lambda: model.predict([("a", "b")], prompt=given))
    tell_unused_prompts(model, arguments, asked.prompt)
    digests = model_identity(model, arguments.teacher, "teacher")
    dtype = chosen_dtype(arguments.teacher_dtype, model.device.type)
    precision = str(dtype).removeprefix("torch.")
    activation, scale = _activation(model, arguments.teacher_activation)
    return CrossEncoderTeacher(
        model=model.to(dtype),
        name=arguments.teacher,
        identity=(
            "cross-encoder", digests, model.max_seq_length, precision, scale.activation,
            asked.prompt, document,
        ),
        precision=precision,
        activation=activation,
        scale=scale,
        prompts=Prompts(given or "", document),
        instruction=asked.prompt if given is None else "",
        asked=asked,
    )  # fmt: skip
