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

from hf_distill.compute.encode import (
    Advance,
    text_length,
)
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import TeacherArguments
from hf_distill.run.folder import fingerprint
from hf_distill.teachers.base import (
    SCALES,
    Kind,
    Scale,
)
from hf_distill.teachers.bi_encoder import (
    check_finite,
    normalised,
)

if TYPE_CHECKING:
    from openai import OpenAI

KEY_VARIABLE = "OPENAI_API_KEY"
"""The environment variable that holds the endpoint's key. A local server mostly needs none."""

RETRIES = 6
"""Repeated requests (429, 408, 409, 5xx, a lost connection), with back-off or after the server's
`Retry-After`.
"""

TIMEOUT = 300.0
"""Seconds for an answer."""


@dataclass(frozen=True)
class EndpointTeacher:
    """Embeddings from `POST {url}/embeddings` (implements `EmbeddingTeacher`)."""

    client: OpenAI
    url: str
    name: str
    query_prompt: str
    document_prompt: str
    batch_size: int
    concurrency: int
    dimension: int
    fingerprint: str
    scale: Scale = SCALES["cosine"]
    precision: str = "unknown"

    def prompted(self, text: str, kind: Kind) -> str:
        """`text` behind the prompt of its kind."""
        return (self.query_prompt if kind == "query" else self.document_prompt) + text

    def embed(self, texts: list[str], advance: Advance | None = None) -> np.ndarray:
        """See :meth:`EmbeddingTeacher.embed`. At most `concurrency` requests of `batch_size` texts
        are under way.

        Raises:
            InputError: The endpoint refuses, cannot be reached after `RETRIES`, or answers
                something other than one finite embedding of the known dimension for each text.
        """
        batches = [texts[i : i + self.batch_size] for i in range(0, len(texts), self.batch_size)]
        rows = []
        with ThreadPoolExecutor(self.concurrency) as pool:
            requests = [pool.submit(self._ask, batch) for batch in batches]
            try:
                for batch, request in zip(batches, requests, strict=True):
                    values, tokens = request.result()
                    rows.append(values)
                    if advance:
                        advance(len(batch), tokens)
            except InputError:
                for request in requests:
                    request.cancel()  # those that wait; an error is not paid for with further requests
                raise
        values = np.concatenate(rows)
        check_finite(values, texts, self.name, "Nothing of this shard is kept; look at the server")
        return normalised(values) if self.scale.measure == "cosine" else values

    def _ask(self, texts: list[str]) -> tuple[np.ndarray, int]:
        """Embeddings of one request, (n, dimension) float32, and the tokens that the server
        counted.
        """
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
                else f"The request held {len(texts)} texts, the longest of {longest:,} characters; see --endpoint_batch_size and, for "
                "limits on length, the server's own truncation"
            )
            raise self._error(
                f"answers {error.status_code}: {error.response.text[:300]!r}", hint
            ) from error
        except ValueError as error:
            raise self._error(
                f"answers something that is not JSON ({error})",
                "Is --teacher_url the base, e.g. ending in /v1?",
            ) from error
        data = body.get("data") if isinstance(body, dict) else None
        if not isinstance(data, list) or len(data) != len(texts):
            found = (
                f"{len(data)} embeddings"
                if isinstance(data, list)
                else f"no list of embeddings ({str(body)[:120]!r})"
            )
            raise self._error(
                f"answers {found} for {len(texts)} texts",
                "Lower --endpoint_batch_size, or look at the server",
            )
        try:
            by_index = {int(item["index"]): item["embedding"] for item in data}
            values = np.asarray([by_index[i] for i in range(len(texts))], dtype=np.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise self._error(
                f"answers embeddings in another form than OpenAI's ({error!r})",
                "Look at the server",
            ) from error
        if values.ndim != 2 or (self.dimension and values.shape[1] != self.dimension):
            raise self._error(
                f"answers embeddings of {values.shape[-1]} dimensions, before it was {self.dimension}",
                "Has its model been replaced?",
            )
        usage = body.get("usage")
        return values, int(usage.get("total_tokens") or 0) if isinstance(usage, dict) else 0

    def _error(self, what: str, hint: str) -> InputError:
        key = os.environ.get(KEY_VARIABLE)
        message = f"the endpoint {self.url} (model {self.name}) {what}. {hint}. Shards that are done are kept; run again to go on"
        return InputError(message.replace(key, "[key]") if key else message)


def load_endpoint(arguments: TeacherArguments) -> EndpointTeacher:
    """Connect to the endpoint that `arguments` name, and ask it for one embedding.

    Raises:
        InputError: The extra is not installed, or as `EndpointTeacher.embed`.
    """
    try:
        from openai import OpenAI  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise InputError(
            "--teacher_kind endpoint needs the extra of that name: pip install 'hf_distill[endpoint]'"
        ) from error
    measure = (
        "cosine" if arguments.teacher_similarity == "declared" else arguments.teacher_similarity
    )
    url = str(arguments.teacher_url).rstrip("/")
    client = OpenAI(
        base_url=url,
        api_key=os.environ.get(KEY_VARIABLE) or "none",
        max_retries=RETRIES,
        timeout=TIMEOUT,
    )
    teacher = EndpointTeacher(
        client=client,
        url=url,
        name=arguments.teacher,
        query_prompt=arguments.query_prompt or "",
        document_prompt=arguments.document_prompt or "",
        batch_size=arguments.endpoint_batch_size,
        concurrency=arguments.endpoint_concurrency,
        dimension=0,
        fingerprint="",
        scale=SCALES[measure],
    )
    dimension = teacher.embed(["hf_distill"]).shape[1]
    return replace(
        teacher,
        dimension=dimension,
        fingerprint=fingerprint("endpoint", url, teacher.name, dimension, measure),
    )
