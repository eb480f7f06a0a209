"""A SentenceTransformer as teacher."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling

from hf_distill.compute.encode import (
    Advance,
    encode,
)
from hf_distill.compute.models import (
    chosen_dtype,
    digest_of_weights,
    load_sentence_transformer,
)
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import TeacherArguments
from hf_distill.run.folder import fingerprint
from hf_distill.teachers.base import (
    SCALES,
    Kind,
    Scale,
)


def check_finite(values: np.ndarray, texts: list[str], teacher: str, hint: str) -> None:
    """Raise InputError, with the number of such texts and one of them, if an embedding (a row of
    `values`) is not finite.
    """
    broken = ~np.isfinite(values).all(axis=1)
    if broken.any():
        raise InputError(
            f"the teacher {teacher} returns NaN or infinite embeddings for {int(broken.sum())} of {len(texts)} texts, "
            f"e.g. for {texts[int(broken.argmax())][:80]!r}. {hint}"
        )


def normalised(values: np.ndarray) -> np.ndarray:
    """Rows of `values` (n, d) divided by their length, float32; a row of zeros stays."""
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    result: np.ndarray = (values / np.maximum(lengths, 1e-12)).astype(np.float32)
    return result


@dataclass
class BiEncoderTeacher:
    """A SentenceTransformer as teacher (implements `EmbeddingTeacher`)."""

    model: SentenceTransformer
    name: str
    query_prompt: str
    document_prompt: str
    batch_tokens: int | None
    fingerprint: str
    dtype: torch.dtype
    scale: Scale = SCALES["cosine"]

    @property
    def precision(self) -> str:
        """The name of the dtype that the teacher runs in."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def dimension(self) -> int:
        """Dimensions of the teacher's embeddings."""
        return int(self.model.get_embedding_dimension() or 0)

    def prompted(self, text: str, kind: Kind) -> str:
        """`text` behind the prompt of its kind."""
        return (self.query_prompt if kind == "query" else self.document_prompt) + text

    def embed(self, texts: list[str], advance: Advance | None = None) -> np.ndarray:
        """See :meth:`EmbeddingTeacher.embed`.

        Raises:
            InputError: The teacher returns NaN or an infinity, with the text it did so for.
        """
        values = encode(self.model, texts, self.batch_tokens, advance).numpy()
        check_finite(values, texts, self.name, "Check its weights, or try --teacher_dtype float32")
        # Normalised in float32, also where the model does so itself: there it rounds to its dtype.
        return normalised(values) if self.scale.measure == "cosine" else values


def _own_prompt(model: SentenceTransformer, *names: str) -> str:
    for name in names:
        if model.prompts.get(name):
            return str(model.prompts[name])
    return ""


def load_bi_encoder(arguments: TeacherArguments) -> BiEncoderTeacher:
    """Load the SentenceTransformer that `arguments` describe, in the precision that is fast here.

    Raises:
        InputError: As `load_sentence_transformer`, or a pooling that cannot be replaced.
    """
    model = load_sentence_transformer(arguments.teacher, "teacher", arguments.trust_remote_code)
    if arguments.teacher_pooling:
        places = [i for i, module in enumerate(model) if isinstance(module, Pooling)]
        if len(places) != 1:
            raise InputError(
                f"--teacher_pooling {arguments.teacher_pooling}: {arguments.teacher} has {len(places)} pooling modules, expected one"
            )
        model[places[0]] = Pooling(
            model[places[0]].embedding_dimension, pooling_mode=arguments.teacher_pooling
        )
    if arguments.teacher_max_length:
        model.max_seq_length = arguments.teacher_max_length
    weights = digest_of_weights(model)
    dtype = chosen_dtype(arguments, model.device.type)
    model.to(dtype)
    measure = (
        str(model.similarity_fn_name)
        if arguments.teacher_similarity == "declared"
        else arguments.teacher_similarity
    )
    query_prompt = (
        _own_prompt(model, "query") if arguments.query_prompt is None else arguments.query_prompt
    )
    document_prompt = (
        _own_prompt(model, "document", "passage")
        if arguments.document_prompt is None
        else arguments.document_prompt
    )
    return BiEncoderTeacher(
        model=model,
        name=arguments.teacher,
        query_prompt=query_prompt,
        document_prompt=document_prompt,
        batch_tokens=arguments.teacher_batch_tokens,
        dtype=dtype,
        scale=SCALES[measure],
        # The embeddings of a dot product differ from those of a cosine only in length, but they are
        # stored as they are scored.
        fingerprint=fingerprint(
            weights, arguments.teacher_pooling, model.max_seq_length, str(dtype), measure
        ),
    )
