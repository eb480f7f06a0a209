"""A SparseEncoder (SPLADE) as teacher: one weight for each word of the vocabulary. It scores pairs
here, because a dense student cannot follow such embeddings, but can follow their similarities.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array, vstack
from sentence_transformers import SparseEncoder
from sentence_transformers.util import select_max_active_dims

from hf_distill.compute.device import encoding_batch_tokens
from hf_distill.compute.encode import Advance, Asked, run_in_batches
from hf_distill.compute.models import chosen_dtype, load_model, model_identity, set_length
from hf_distill.recipe.arguments import Recipe
from hf_distill.teachers.base import SCALES, PairTeacher, Prompts, Scale, TextKind, reads
from hf_distill.teachers.prompts import asked_by_kind

_BLOCK = 256
"""Pairs whose embeddings are compared at a time, as dense rows."""


@dataclass(frozen=True, eq=False, kw_only=True)
class SparseEncoderTeacher(PairTeacher):
    """A SparseEncoder, `asked` for each kind of text as `encode_query` and `encode_document` do."""

    model: SparseEncoder
    name: str
    identity: tuple[Any, ...]
    precision: str
    scale: Scale
    prompts: Prompts
    asked: Mapping[TextKind, Asked]

    def score(self, pairs: list[tuple[str, str]], advance: Advance | None = None) -> np.ndarray:
        """See :meth:`PairTeacher.score`. These are the scores of `SparseEncoder.similarity`. Each
        unique text is encoded once.

        Raises:
            InputError: A score is NaN or infinite.
        """
        sides = [list(dict.fromkeys(texts)) for texts in zip(*pairs, strict=True)]
        encoded, told = 0, 0

        def tell(texts: int, tokens: int) -> None:
            nonlocal encoded, told
            encoded += texts
            done = len(pairs) * encoded // sum(map(len, sides))
            if advance:
                advance(done - told, tokens)
            told = done

        kinds: tuple[TextKind, ...] = ("query", "document")
        tables = [self._embed(kind, side, tell) for kind, side in zip(kinds, sides, strict=True)]
        places = [{text: i for i, text in enumerate(side)} for side in sides]
        rows = [[place[pair[i]] for pair in pairs] for i, place in enumerate(places)]
        scores = torch.empty(len(pairs))
        for start in range(0, len(pairs), _BLOCK):
            block = slice(start, start + _BLOCK)
            left, right = (
                torch.from_numpy(table[row[block]].toarray())
                for table, row in zip(tables, rows, strict=True)
            )
            scores[block] = self.model.similarity_pairwise(left, right)
        if self.scale.activation == "sigmoid":
            scores = scores.sigmoid()
        return self.checked(
            scores.numpy(), pairs, "Check its weights, or try --teacher_dtype float32"
        )

    def _embed(self, kind: TextKind, texts: list[str], advance: Advance) -> csr_array:
        """Sparse embeddings (len(texts), vocabulary), float32."""
        parts, order = [], []
        batch_tokens = encoding_batch_tokens(self.model.device.type)
        for rows, values in run_in_batches(
            self.model, texts, batch_tokens, "sentence_embedding", advance, self.asked[kind]
        ):
            most = self.model.max_active_dims
            kept = values if most is None else select_max_active_dims(values, max_active_dims=most)
            parts.append(csr_array(kept.numpy()))
            order += rows
        return vstack(parts, format="csr")[np.argsort(order)]


@reads(
    "teacher_similarity", "teacher_activation", "teacher_max_length", "query_prompt",
    "document_prompt", "trust_remote_code",
)  # fmt: skip
def load_sparse_encoder(recipe: Recipe) -> SparseEncoderTeacher:
    """Load a SparseEncoder. Its embeddings are compared as the model says, which is the dot product
    for all published ones, unless the recipe gives a `teacher_similarity`.

    Raises:
        InputError: It cannot be found, loaded or asked, or has fewer positions than it is told to
            read.
    """
    arguments = recipe.teacher
    model = load_model(SparseEncoder, arguments.teacher, "teacher", arguments.trust_remote_code)
    set_length(model, arguments.teacher, arguments.teacher_max_length)
    if "teacher_similarity" in recipe.given and arguments.teacher_similarity != "declared":
        model.similarity_fn_name = arguments.teacher_similarity
    asked = asked_by_kind(model, arguments)
    prompts = Prompts(asked["query"].prompt, asked["document"].prompt)
    digests = model_identity(model, arguments.teacher, "teacher")
    dtype = chosen_dtype(arguments.teacher_dtype, model.device.type)
    precision, name = str(dtype).removeprefix("torch."), model.similarity_fn_name
    scale = SCALES[name]
    if arguments.teacher_activation == "sigmoid":
        scale = Scale(name, "sigmoid", 0.0, 1.0)
    return SparseEncoderTeacher(
        model=model.to(dtype),
        name=arguments.teacher,
        # Prompts are not part of it: the key of a score covers them.
        identity=(
            "sparse-encoder", digests, model.max_seq_length, precision, scale.record(),
        ),
        precision=precision,
        scale=scale,
        prompts=prompts,
        asked=asked,
    )  # fmt: skip
