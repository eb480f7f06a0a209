"""A cross-encoder as teacher: it reads query and document together, and has no embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sentence_transformers import CrossEncoder
from torch import nn

from hf_distill.compute.device import encoding_batch_tokens
from hf_distill.compute.encode import Advance, run_in_batches
from hf_distill.compute.models import (
    chosen_dtype,
    load_model,
    model_identity,
)
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import Recipe
from hf_distill.teachers.base import PairTeacher, Prompts, Scale, reads

ACTIVATIONS: dict[str, tuple[nn.Module, Scale]] = {
    "sigmoid": (nn.Sigmoid(), Scale("cross-encoder", "sigmoid", 0.0, 1.0)),
    "identity": (nn.Identity(), Scale("cross-encoder", "identity", -np.inf, np.inf)),
}


@dataclass(frozen=True, eq=False, kw_only=True)
class CrossEncoderTeacher(PairTeacher):
    """A CrossEncoder with one output."""

    model: CrossEncoder
    name: str
    identity: tuple[Any, ...]
    precision: str
    activation: nn.Module
    scale: Scale
    prompts: Prompts

    def score(self, pairs: list[tuple[str, str]], advance: Advance | None = None) -> np.ndarray:
        """See :meth:`PairTeacher.score`.

        Raises:
            InputError: A score is NaN.
        """
        query_prompt, document_prompt = self.prompts.query, self.prompts.document
        items = [(query_prompt + query, document_prompt + document) for query, document in pairs]
        scores = torch.empty(len(pairs))
        batch_tokens = encoding_batch_tokens(self.model.device.type)
        for rows, logits in run_in_batches(self.model, items, batch_tokens, "scores", advance):
            scores[rows] = self.activation(logits.reshape(len(rows)))
        broken = scores.isnan()
        if broken.any():
            query, document = pairs[int(broken.int().argmax())]
            raise InputError(
                f"the teacher {self.name} returns NaN for {int(broken.sum())} of {len(pairs)} "
                f"pairs, e.g. for {query[:60]!r} and {document[:60]!r}. Check its weights, or try "
                "--teacher_dtype float32"
            )
        return scores.numpy()


@reads(
    "teacher_activation", "teacher_max_length", "query_prompt", "document_prompt",
    "trust_remote_code",
)  # fmt: skip
def load_cross_encoder(recipe: Recipe) -> CrossEncoderTeacher:
    """Load a cross-encoder.

    With `teacher_activation: auto` its logits go through a sigmoid, whatever the model declares: a
    student's cosines are bounded, and the same model has been published with either activation.

    Raises:
        InputError: It cannot be found or loaded, or does not have exactly one output.
    """
    arguments = recipe.teacher
    model = load_model(CrossEncoder, arguments.teacher, "teacher", arguments.trust_remote_code)
    if model.num_labels != 1:
        raise InputError(
            f"--teacher {arguments.teacher} has {model.num_labels} outputs, so it classifies pairs "
            "instead of scoring them; name a cross-encoder with one output (or, if this is a "
            "SentenceTransformer, set --teacher_kind bi-encoder)"
        )
    if arguments.teacher_max_length:
        model.max_seq_length = arguments.teacher_max_length
    digests = model_identity(model, arguments.teacher, "teacher")
    dtype = chosen_dtype(arguments.teacher_dtype, model.device.type)
    precision = str(dtype).removeprefix("torch.")
    auto = arguments.teacher_activation == "auto"
    activation, scale = ACTIVATIONS["sigmoid" if auto else arguments.teacher_activation]
    prompts = Prompts(arguments.query_prompt or "", arguments.document_prompt or "")
    return CrossEncoderTeacher(
        model=model.to(dtype),
        name=arguments.teacher,
        identity=(
            "cross-encoder", digests, model.max_seq_length, precision, scale.activation,
            vars(prompts),
        ),
        precision=precision,
        activation=activation,
        scale=scale,
        prompts=prompts,
    )  # fmt: skip
