"""A SentenceTransformer as teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling

from hf_distill.compute.encode import Advance, encode
from hf_distill.compute.models import (
    chosen_dtype,
    load_sentence_transformer,
    model_identity,
)
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import Recipe
from hf_distill.teachers.base import SCALES, EmbeddingTeacher, Prompts, Scale, reads


@dataclass(frozen=True, eq=False, kw_only=True)
class BiEncoderTeacher(EmbeddingTeacher):
    """A SentenceTransformer, its `backbone`, that embeds texts."""

    backbone: SentenceTransformer
    name: str
    identity: tuple[Any, ...]
    precision: str
    scale: Scale
    prompts: Prompts
    dimension: int

    def embed(self, texts: list[str], advance: Advance | None = None) -> np.ndarray:
        """See :meth:`EmbeddingTeacher.embed`.

        Raises:
            InputError: An embedding is NaN or infinite.
        """
        values = encode(self.backbone, texts, advance=advance).numpy()
        # The model may normalise too, but rounds to its own dtype.
        return self.checked(values, texts, "Check its weights, or try --teacher_dtype float32")


def _prompt(given: str | None, model: SentenceTransformer, *names: str) -> str:
    """The recipe's prompt, else the first of the model's own of these `names`."""
    own = [model.prompts.get(name) or "" for name in names]
    return next(filter(None, own), "") if given is None else given


@reads(
    "teacher_similarity", "teacher_pooling", "teacher_max_length", "query_prompt",
    "document_prompt", "trust_remote_code",
)  # fmt: skip
def load_bi_encoder(recipe: Recipe) -> BiEncoderTeacher:
    """Load a SentenceTransformer.

    Raises:
        InputError: It cannot be found or loaded, or its pooling cannot be replaced.
    """
    arguments = recipe.teacher
    model = load_sentence_transformer(arguments.teacher, "teacher", arguments.trust_remote_code)
    if arguments.teacher_pooling:
        places = [i for i, module in enumerate(model) if isinstance(module, Pooling)]
        if len(places) != 1:
            raise InputError(
                f"--teacher_pooling {arguments.teacher_pooling} replaces one pooling module, but "
                f"{arguments.teacher} has {len(places)}; set --teacher_pooling none"
            )
        model[places[0]] = Pooling(
            model[places[0]].embedding_dimension, pooling_mode=arguments.teacher_pooling
        )
    if arguments.teacher_max_length:
        model.max_seq_length = arguments.teacher_max_length
    digests = model_identity(model, arguments.teacher, "teacher")
    dtype = chosen_dtype(arguments.teacher_dtype, model.device.type)
    precision = str(dtype).removeprefix("torch.")
    similarity = arguments.teacher_similarity
    name = model.similarity_fn_name if similarity == "declared" else similarity
    prompts = Prompts(
        _prompt(arguments.query_prompt, model, "query"),
        _prompt(arguments.document_prompt, model, "document", "passage"),
    )
    return BiEncoderTeacher(
        backbone=model.to(dtype),
        name=arguments.teacher,
        # Prompts are not part of it: the key of a score covers the texts with their prompts.
        identity=(
            "bi-encoder", digests, arguments.teacher_pooling, model.max_seq_length, precision, name,
        ),
        precision=precision,
        scale=SCALES[name],
        prompts=prompts,
        dimension=int(model.get_embedding_dimension() or 0),
    )  # fmt: skip
