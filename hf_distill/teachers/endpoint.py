"""An OpenAI-compatible embeddings endpoint as teacher: text-embeddings-inference, vLLM, Infinity,
llama.cpp, OpenAI and others.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_distill.compute.encode import Advance, text_length
from hf_distill.compute.endpoint import KEY_VARIABLE, checked_url, hidden
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import Recipe
from hf_distill.teachers.base import SCALES, EmbeddingTeacher, Prompts, Scale, reads

if TYPE_CHECKING:
    from openai import OpenAI

BATCH_SIZE = 32
"""Texts in a request."""

CONCURRENCY = 4
"""Requests at the same time."""

RETRIES = 6
"""How often a request is repeated (429, 408, 409, 5xx, a lost connection), with back-off or after
the server's `Retry-After`.
"""

TIMEOUT = 300.0
"""Seconds to wait for an answer."""


@dataclass(frozen=True, eq=False, kw_only=True)
class EndpointTeacher(EmbeddingTeacher):
    """Embeddings from `POST {url}/embeddings`."""

    client: OpenAI
    url: str
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
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            requests = [pool.submit(self._ask, batch) for batch in batches]
            try:
                for batch, request in zip(batches, requests, strict=True):
                    values, tokens = request.result()
                    rows.append(values)
                    if advance:
                        advance(len(batch), tokens)
            except InputError:
                # Requests may cost money, and their answers would be thrown away.
                for request in requests:
                    request.cancel()
                raise
        return self.checked(np.concatenate(rows), texts, "Look at the server")

    def _ask(self, texts: list[str]) -> tuple[np.ndarray, int]:
        """Embeddings (n, dimension) float32 of one request, and the server's count of tokens."""
        import openai  # noqa: PLC0415  (an extra: imported only where an endpoint is used)

        try:
            answer = self.client.embeddings.with_raw_response.create(
                model=self.name, input=texts, encoding_format="float"
            )
            body: Any = json.loads(answer.http_response.content)
        except openai.APIConnectionError as error:
            raise self._error(
                f"cannot be reached ({error.__cause__ or error})",
                "Check --teacher_url and that the server runs",
            ) from error
        except openai.APIStatusError as error:
            longest = max(map(text_length, texts))
            hint = (
                f"Set {KEY_VARIABLE}"
                if error.status_code in (401, 403)
                else f"The request had {len(texts)} texts, the longest of {longest:,} characters; "
                "if that is too much, let the server truncate"
            )
            raise self._error(
                f"answers {error.status_code}: {hidden(error.response.text)[:300]!r}", hint
            ) from error
        except ValueError as error:
            raise self._error(
                f"answers something that is not JSON ({error})",
                "Is --teacher_url the base, e.g. ending in /v1?",
            ) from error
        return self._embeddings_in(body, len(texts)), _tokens_in(body)

    def _embeddings_in(self, body: Any, count: int) -> np.ndarray:
        """The `count` embeddings in an answer, (count, dimension) float32."""
        data = body.get("data") if isinstance(body, dict) else None
        if not isinstance(data, list):
            raise self._error(
                f"answers no list of embeddings but {hidden(str(body))[:120]!r}",
                "Look at the server",
            )
        if len(data) != count:
            raise self._error(
                f"answers {len(data)} embeddings for {count} texts", "Look at the server"
            )
        try:
            by_index = {int(item["index"]): item["embedding"] for item in data}
            values = np.asarray([by_index[i] for i in range(count)], dtype=np.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise self._error(
                f"answers embeddings in another form than OpenAI's ({error!r})",
                "Look at the server",
            ) from error
        if values.ndim != 2 or (self.dimension and values.shape[1] != self.dimension):
            raise self._error(
                f"answers embeddings of {values.shape[-1]} dimensions, before it was "
                f"{self.dimension}",
                "Is it still the same model?",
            )
        return values

    def _error(self, what: str, hint: str) -> InputError:
        message = (
            f"the endpoint {self.url} (model {self.name}) {what}. {hint}. Finished shards are "
            "kept; run again to continue"
        )
        return InputError(hidden(message))


def _tokens_in(body: dict[str, Any]) -> int:
    usage = body.get("usage")
    return int(usage.get("total_tokens") or 0) if isinstance(usage, dict) else 0


@reads("teacher_url", "teacher_similarity", "query_prompt", "document_prompt")
def load_endpoint(recipe: Recipe) -> EndpointTeacher:
    """Connect to an endpoint, and ask it for one embedding.

    Raises:
        InputError: No usable `teacher_url`, the extra is not installed, or as
            `EndpointTeacher.embed`.
    """
    arguments = recipe.teacher
    url = checked_url(arguments.teacher_url, "endpoint")
    try:
        from openai import OpenAI  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise InputError(
            "--teacher_kind endpoint needs an extra: pip install 'hf_distill[endpoint]'"
        ) from error
    declared = arguments.teacher_similarity == "declared"
    similarity = "cosine" if declared else arguments.teacher_similarity
    teacher = EndpointTeacher(
        client=OpenAI(
            base_url=url,
            api_key=os.environ.get(KEY_VARIABLE) or "none",
            max_retries=RETRIES,
            timeout=TIMEOUT,
        ),
        url=url,
        name=arguments.teacher,
        scale=SCALES[similarity],
        prompts=Prompts(arguments.query_prompt or "", arguments.document_prompt or ""),
    )
    dimension = teacher.embed(["hf_distill"]).shape[1]
    identity = ("endpoint", url, teacher.name, dimension, similarity, vars(teacher.prompts))
    return replace(teacher, dimension=dimension, identity=identity)
