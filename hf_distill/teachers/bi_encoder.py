"""A SentenceTransformer as teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding

from hf_distill.compute.encode import PLAIN, Advance, Asked, encode
from hf_distill.compute.models import (
    chosen_dtype,
    in_dtype,
    load_sentence_transformer,
    model_identity,
    set_length,
)
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import Recipe
from hf_distill.teachers.base import (
    SCALES,
    EmbeddingTeacher,
    Prompts,
    Scale,
    TextKind,
    reads,
)
from hf_distill.teachers.prompts import asked_by_kind


@dataclass(frozen=True, eq=False, kw_only=True)
class BiEncoderTeacher(EmbeddingTeacher):
    """A SentenceTransformer, its `backbone`, that embeds texts. It is `asked` for each kind of text
    as `encode_query` and `encode_document` do.
    """

    backbone: SentenceTransformer
    name: str
    identity: tuple[Any, ...]
    precision: str
    scale: Scale
    prompts: Prompts
    asked: Mapping[TextKind, Asked]
    by_kind: bool
    dimension: int

    def embed(self, texts: list[str], advance: Advance | None = None) -> np.ndarray:
        """See :meth:`EmbeddingTeacher.embed`.

        Raises:
            InputError: An embedding is NaN or infinite.
        """
        return self._embed(PLAIN, texts, advance)

    def embed_as(
        self, kind: TextKind, texts: list[str], advance: Advance | None = None
    ) -> np.ndarray:
        """See :meth:`EmbeddingTeacher.embed_as`. Before they are normalised, these are the
        embeddings of `encode_query` and `encode_document`.

        Raises:
            InputError: An embedding is NaN or infinite.
        """
        return self._embed(self.asked[kind], texts, advance)

    def _embed(self, asked: Asked, texts: list[str], advance: Advance | None) -> np.ndarray:
        values = encode(self.backbone, texts, advance=advance, asked=asked).numpy()
        # The model may normalise too, but rounds to its own dtype.
        return self.checked(values, texts, "Check its weights, or try --teacher_dtype float32")


def _differs_by_kind(model: SentenceTransformer) -> bool:
    """Whether a text with its prompt can have two embeddings. False only where that is sure: texts
    go through one plain transformer (or a table of token vectors), which reads the prompt as a part
    of the text.
    """
    first = model[0]
    if any(isinstance(module, Pooling) and not module.include_prompt for module in model):
        return True
    if model.get_model_kwargs():
        return True
    if type(first) is Transformer:
        per_kind = ("query_length", "document_length", "query_expansion")
        has_message = "message" in getattr(first, "modalities", ())
        return has_message or any(getattr(first, name, None) for name in per_kind)
    return type(first) is not StaticEmbedding


@reads(
    "teacher_similarity", "teacher_pooling", "teacher_max_length", "query_prompt",
    "document_prompt", "trust_remote_code",
)  # fmt: skip
def load_bi_encoder(recipe: Recipe) -> BiEncoderTeacher:
    """Load a SentenceTransformer.

    Raises:
        InputError: It cannot be found, loaded or asked, its pooling cannot be replaced, or it has
            fewer positions than it is told to read.
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
        declared = model[places[0]]
        model[places[0]] = Pooling(
            declared.embedding_dimension,
            pooling_mode=arguments.teacher_pooling,
            include_prompt=declared.include_prompt,
        )
    set_length(model, arguments.teacher, arguments.teacher_max_length)
    asked = asked_by_kind(model, arguments)
    prompts = Prompts(asked["query"].prompt, asked["document"].prompt)
    digests = model_identity(model, arguments.teacher, "teacher")
    dtype = chosen_dtype(arguments.teacher_dtype, model.device.type)
    precision = str(dtype).removeprefix("torch.")
    similarity = arguments.teacher_similarity
    name = model.similarity_fn_name if similarity == "declared" else similarity
    return BiEncoderTeacher(
        backbone=in_dtype(model, dtype),
        name=arguments.teacher,
        # Prompts are not part of it: the key of a score covers the texts with their prompts.
        identity=(
            "bi-encoder", digests, arguments.teacher_pooling, model.max_seq_length, precision, name,
        ),
        precision=precision,
        scale=SCALES[name],
        prompts=prompts,
        asked=asked,
        by_kind=_differs_by_kind(model),
        dimension=int(model.get_embedding_dimension() or 0),
    )  # fmt: skip
