"""An OpenAI-compatible embeddings endpoint as teacher: text-embeddings-inference, vLLM, Infinity,
llama.cpp, OpenAI and others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hf_distill.compute.encode import Advance
from hf_distill.compute.endpoint import EXAMPLE, KEY_VARIABLE
from hf_distill.recipe.arguments import Recipe
from hf_distill.teachers.base import SCALES, EmbeddingTeacher, Prompts, Scale, reads
from hf_distill.teachers.http_api import Api, ask_all, connect, tokens_in

BATCH_SIZE = 32
"""Texts in a request."""

CONCURRENCY = 4
"""Requests at the same time."""


@dataclass(frozen=True, eq=False, kw_only=True)
class EndpointTeacher(EmbeddingTeacher):
    """Embeddings from `POST {api.url}/embeddings`."""

    api: Api
    name: str
    scale: Scale
    prompts: Prompts
    dimension: int = 0
    identity: tuple[Any, ...] = ()

    def embed(self, texts: list[str], advance: Advance | None = None) -> np.ndarray:
        """See :meth:`EmbeddingTeacher.embed`.

        Raises:
            InputError: The endpoint refuses, cannot be reached after `RETRIES`, or does not return
                one finite embedding of the expected dimension for each text.
        """
        batches = [texts[i : i + BATCH_SIZE] for i in range(0, len(texts), BATCH_SIZE)]
        rows = []
        for batch, (values, tokens) in ask_all(self._ask, batches, CONCURRENCY):
            rows.append(values)
            if advance:
                advance(len(batch), tokens)
        return self.checked(np.concatenate(rows), texts, "Look at the server")

    def _ask(self, texts: list[str]) -> tuple[np.ndarray, int]:
        """Embeddings (n, dimension) float32 of one request, and the server's count of tokens."""
        body = {"model": self.name, "input": texts, "encoding_format": "float"}
        answer = self.api.ask(f"{self.api.url}/embeddings", body, texts)
        return self._embeddings_in(answer, len(texts)), tokens_in(answer)

    def _embeddings_in(self, body: Any, count: int) -> np.ndarray:
        """The `count` embeddings in an answer, (count, dimension) float32."""
        data = body.get("data") if isinstance(body, dict) else None
        if not isinstance(data, list):
            raise self.api.error(
                f"answers no list of embeddings but {self.api.hidden(str(body))[:120]!r}",
                "Look at the server",
            )
        if len(data) != count:
            raise self.api.error(
                f"answers {len(data)} embeddings for {count} texts", "Look at the server"
            )
        try:
            by_index = {int(item["index"]): item["embedding"] for item in data}
            values = np.asarray([by_index[i] for i in range(count)], dtype=np.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise self.api.error(
                f"answers embeddings in another form than OpenAI's ({error!r})",
                "Look at the server",
            ) from error
        if values.ndim != 2 or (self.dimension and values.shape[1] != self.dimension):
            raise self.api.error(
                f"answers embeddings of {values.shape[-1]} dimensions, before it was "
                f"{self.dimension}",
                "Is it still the same model?",
            )
        return values


@reads("teacher_url", "teacher_similarity", "query_prompt", "document_prompt")
def load_endpoint(recipe: Recipe) -> EndpointTeacher:
    """Connect to an endpoint, and ask it for one embedding.

    Raises:
        InputError: As `connect` and `EndpointTeacher.embed`.
    """
    arguments = recipe.teacher
    api = connect(arguments, KEY_VARIABLE, EXAMPLE)
    declared = arguments.teacher_similarity == "declared"
    similarity = "cosine" if declared else arguments.teacher_similarity
    teacher = EndpointTeacher(
        api=api,
        name=api.model,
        scale=SCALES[similarity],
        prompts=Prompts(arguments.query_prompt or "", arguments.document_prompt or ""),
    )
    dimension = teacher.embed(["hf_distill"]).shape[1]
    identity = ("endpoint", api.url, teacher.name, dimension, similarity, vars(teacher.prompts))
    return replace(teacher, dimension=dimension, identity=identity)
