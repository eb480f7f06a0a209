"""A student behind an HTTP server: text-embeddings-inference's `/embed`, or OpenAI's
`/v1/embeddings` (vLLM, Ollama, Infinity, llama.cpp).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_distill.compute.endpoint import KEY_VARIABLE, checked_url, hidden, open_client
from hf_distill.errors import InputError

if TYPE_CHECKING:
    from openai import OpenAI

EMBED, OPENAI = "/embed", "/v1/embeddings"

_BATCH = 16
_RETRIES = 2
_NOT_THERE = (404, 405)
_NOT_ALLOWED = (401, 403)


def name_of(route: str) -> str:
    """What a server is called in a table: by the route that was asked. Its address is not shown."""
    return f"a server's {route}"


@dataclass(frozen=True)
class Answered:
    """What a server answered.

    Attributes:
        embeddings: (N, d) float32. Rows of texts that it refused are NaN.
        refusal: What it said to the first of those; None if it took all.
    """

    embeddings: np.ndarray
    refusal: str | None


class _RefusedError(Exception):
    """The server does not take a request. `status` is its answer's."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, eq=False)
class Server:
    """A server, and how it is asked.

    Attributes:
        client: Sends the requests.
        base: Its address, without the route.
        route: `EMBED` or `OPENAI`.
        model: The model's name there; `/embed` needs none.
        versions: What it says of itself.
    """

    client: OpenAI
    base: str
    route: str
    model: str
    versions: dict[str, str]

    def ask(self, texts: Sequence[str], kind: str, prompts: Mapping[str, str]) -> np.ndarray:
        """Embeddings (n, d) float32 of one request.

        `/embed` adds the student's prompt itself, if it is asked to; for OpenAI's route, the prompt
        is part of the text.

        Raises:
            _RefusedError: The server does not take it, or answers in another form.
        """
        if self.route == EMBED:
            named = {"prompt_name": kind} if prompts[kind] else {}
            answer = self._post({"inputs": list(texts), "truncate": True, **named})
        else:
            prompted = [prompts[kind] + text for text in texts]
            body = {"model": self.model, "input": prompted, "encoding_format": "float"}
            answer = self._post(body)
        try:
            if self.route == OPENAI:
                by_index = {int(item["index"]): item["embedding"] for item in answer["data"]}
                answer = [by_index[i] for i in range(len(texts))]
            rows = np.asarray(answer, dtype=np.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise _RefusedError(200, f"its answer has another form ({error!r:.80})") from error
        if rows.ndim != 2 or len(rows) != len(texts):
            raise _RefusedError(200, f"it answers an array {rows.shape} to {len(texts)} texts")
        return rows

    def _post(self, body: dict[str, Any]) -> Any:
        import openai  # noqa: PLC0415  (an extra)

        try:
            return json.loads(self.client.post(self.base + self.route, cast_to=bytes, body=body))
        except openai.APIStatusError as error:
            text = " ".join(hidden(error.response.text).split())[:120]
            raise _RefusedError(error.status_code, f"{error.status_code}: {text}") from error
        except openai.APIConnectionError as error:
            raise InputError(
                f"--url {self.base} cannot be reached ({error.__cause__ or error}); start the "
                "server, or correct the address"
            ) from error
        except ValueError as error:
            raise _RefusedError(200, "its answer is not JSON") from error

    def embed(
        self, queries: Sequence[str], documents: Sequence[str], prompts: Mapping[str, str]
    ) -> Answered:
        """Embed all, several texts a request; those of a refused request one by one.

        Raises:
            InputError: It cannot be reached, or refuses every text.
        """
        rows: list[np.ndarray | None] = []
        refusals: list[str] = []

        def ask(texts: Sequence[str], kind: str) -> None:
            try:
                rows.extend(self.ask(texts, kind, prompts))
            except _RefusedError as error:
                if error.status in (*_NOT_ALLOWED, *_NOT_THERE):
                    raise _not_usable(self.base, self.route, str(error)) from error
                if len(texts) == 1:
                    rows.append(None)
                    refusals.append(str(error))
                    return
                for text in texts:
                    ask([text], kind)

        for texts, kind in ((queries, "query"), (documents, "document")):
            for start in range(0, len(texts), _BATCH):
                ask(texts[start : start + _BATCH], kind)
        taken = [row for row in rows if row is not None]
        if not taken:
            raise _not_usable(self.base, self.route, refusals[0])
        if len({len(row) for row in taken}) > 1:
            raise _not_usable(self.base, self.route, "embeddings of several dimensions")
        gap = np.full(len(taken[0]), np.nan, dtype=np.float32)
        every = np.stack([gap if row is None else row for row in rows])
        return Answered(every, refusals[0] if refusals else None)


def _not_usable(base: str, route: str, answer: str) -> InputError:
    return InputError(
        hidden(
            f"--url {base}: {route} answers {answer}; check the address, --model, and the key in "
            f"{KEY_VARIABLE}"
        )
    )


def _get(client: OpenAI, address: str) -> Any:
    """What the server says at `address`; None if nothing, or nothing that is JSON."""
    import openai  # noqa: PLC0415  (an extra)

    try:
        return json.loads(client.with_options(max_retries=0).get(address, cast_to=bytes))
    except (openai.APIError, ValueError):
        return None


def _model_of(client: OpenAI, base: str, model: str | None) -> tuple[str, dict[str, str]]:
    """The name of the one model that a server has, and who it says that owns it."""
    body = _get(client, f"{base}/v1/models")
    every = body.get("data") if isinstance(body, dict) else None
    listed = [m for m in every if isinstance(m, dict)] if isinstance(every, list) else []
    names = [str(m.get("id")) for m in listed]
    if model is None and len(names) != 1:
        raise InputError(
            f"--url {base} serves {len(names)} models"
            + (f" ({', '.join(names[:5])})" if names else " that it tells of")
            + "; name the student's with --model"
        )
    name = names[0] if model is None else model
    owner = next(
        (str(m["owned_by"]) for m in listed if m.get("id") == name and "owned_by" in m), ""
    )
    return name, {"owned by": owner} if owner else {}


def connect(url: str, model: str | None) -> Server:
    """Find out which of the two routes a server has, if the address does not end in one.

    Raises:
        InputError: It is no address, holds a secret, or has neither route; or the server has
            several models; or the extra `endpoint` is not installed.
    """
    base = checked_url(url, "", key="url", example="http://localhost:8080")
    client = open_client(base, url, "url").with_options(max_retries=_RETRIES)
    for ending in (EMBED, OPENAI, "/v1"):
        if base.endswith(ending):
            base, route = base.removesuffix(ending), EMBED if ending == EMBED else OPENAI
            break
    else:
        route = ""
    if route != OPENAI:
        info = _get(client, f"{base}/info")
        said = info if isinstance(info, dict) else {}
        versions = {"text-embeddings-inference": str(said["version"])} if "version" in said else {}
        server = Server(client, base, EMBED, "", versions)
        try:
            server.ask(["a"], "document", {"document": ""})
            return server
        except _RefusedError as error:
            if route or error.status not in _NOT_THERE:
                raise _not_usable(base, EMBED, str(error)) from error
    name, versions = _model_of(client, base, model)
    return Server(client, base, OPENAI, name, versions)
