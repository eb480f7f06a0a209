"""A cross-encoder as teacher: it reads query and document together, and embeds nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sentence_transformers import CrossEncoder
from torch import nn

from hf_distill.compute.device import encoding_batch_tokens
from hf_distill.compute.encode import (
    Advance,
    run_in_batches,
)
from hf_distill.compute.models import (
    chosen_dtype,
    digest_of_weights,
    load_model,
)
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import TeacherArguments
from hf_distill.run.folder import fingerprint
from hf_distill.teachers.base import Scale

ACTIVATIONS: dict[str, tuple[nn.Module, Scale]] = {
    "sigmoid": (nn.Sigmoid(), Scale("cross-encoder", "sigmoid", 0.0, 1.0)),
    "identity": (nn.Identity(), Scale("cross-encoder", "identity", -np.inf, np.inf)),
}


@dataclass
class CrossEncoderTeacher:
    """A CrossEncoder with one output as teacher (implements `PairTeacher`)."""

    model: CrossEncoder
    name: str
    query_prompt: str
    document_prompt: str
    batch_tokens: int | None
    activation: nn.Module
    scale: Scale
    dtype: torch.dtype
    fingerprint: str

    @property
    def precision(self) -> str:
        """The name of the dtype that the teacher runs in."""
        return str(self.dtype).removeprefix("torch.")

    def score(self, pairs: list[tuple[str, str]], advance: Advance | None = None) -> np.ndarray:
        """See :meth:`PairTeacher.score`.

        Raises:
            InputError: The teacher returns NaN, with the pair it did so for.
        """
        prompted = [
            (self.query_prompt + query, self.document_prompt + document)
            for query, document in pairs
        ]
        scores = torch.empty(len(pairs))
        batch_tokens = self.batch_tokens or encoding_batch_tokens(self.model.device.type)
        for rows, logits in run_in_batches(self.model, prompted, batch_tokens, "scores", advance):
            scores[rows] = self.activation(logits.reshape(len(rows)))
        if scores.isnan().any():
            query, document = pairs[int(scores.isnan().int().argmax())]
            raise InputError(
                f"the teacher {self.name} returns NaN for {int(scores.isnan().sum())} of {len(pairs)} pairs, e.g. for {query[:60]!r} and "
                f"{document[:60]!r}. Check its weights, or try --teacher_dtype float32"
            )
        return scores.numpy()


def load_cross_encoder(arguments: TeacherArguments) -> CrossEncoderTeacher:
    """Load the cross-encoder that `arguments` describe, in the precision that is fast here.

    With `teacher_activation: auto` its logits go through a sigmoid, whatever the model declares: a
        student's cosines are bounded, and
    the same model has been published with either activation.

    Raises:
        InputError: It cannot be found or loaded, or has more outputs than one.
    """
    model = load_model(CrossEncoder, arguments.teacher, "teacher", arguments.trust_remote_code)
    if model.num_labels != 1:
        raise InputError(
            f"--teacher {arguments.teacher} has {model.num_labels} outputs, so it classifies pairs and does not score them; a teacher of "
            "--teacher_kind cross-encoder has one (if this is a SentenceTransformer, leave --teacher_kind out)"
        )
    if arguments.teacher_max_length:
        model.max_seq_length = arguments.teacher_max_length
    weights = digest_of_weights(model)
    dtype = chosen_dtype(arguments, model.device.type)
    model.to(dtype)
    name = "sigmoid" if arguments.teacher_activation == "auto" else arguments.teacher_activation
    activation, scale = ACTIVATIONS[name]
    prompts = arguments.query_prompt or "", arguments.document_prompt or ""
    return CrossEncoderTeacher(
        model=model,
        name=arguments.teacher,
        query_prompt=prompts[0],
        document_prompt=prompts[1],
        batch_tokens=arguments.teacher_batch_tokens,
        activation=activation,
        scale=scale,
        dtype=dtype,
        fingerprint=fingerprint(weights, model.max_seq_length, str(dtype), name, prompts),
    )
