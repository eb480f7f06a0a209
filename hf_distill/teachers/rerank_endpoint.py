"""A ranker behind an HTTP `/rerank` endpoint as teacher: text-embeddings-inference, vLLM, Infinity,
Cohere, Jina and others.

They speak one of two forms:

| | a request has | the answer is |
|---|---|---|
| Cohere's | model, query, documents, top_n | {"results": [{"index", "relevance_score"}, ...]} |
| TEI's | query, texts, raw_scores, truncate | [{"index", "score"}, ...] |

Sources:

- text-embeddings-inference (TEI): `RerankRequest` and `Rank` in router/src/http/types.rs,
  https://github.com/huggingface/text-embeddings-inference. A request may hold as many texts as its
  flag max-client-batch-size says, 32 by default. A request without `texts` is answered 422.
- vLLM: `RerankRequest` and `RerankResponse` in vllm/entrypoints/pooling/score/protocol.py,
  https://github.com/vllm-project/vllm. `use_activation: false` asks for raw scores; documents are
  in the answer in any case.
- Infinity: `RerankInput` and `ReRankResult` in
  libs/infinity_emb/infinity_emb/fastapi_schemas/pymodels.py,
  https://github.com/michaelfeil/infinity. `raw_scores: true` asks for raw scores.
- Cohere: `/v1/rerank` and `/v2/rerank` (without `return_documents`) in cohere-openapi.yaml,
  https://github.com/cohere-ai/cohere-developer-experience. Scores lie in [0, 1];
  `meta.billed_units` counts search units and no tokens.
- Jina: https://api.jina.ai/redoc#tag/rerank.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit

from hf_distill.compute.encode import Advance
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import Recipe
from hf_distill.teachers.base import PairTeacher, Prompts, Scale, declared_range, reads
from hf_distill.teachers.http_api import Api, RefusedError, ask_all, connect, tokens_in

KEY_VARIABLE = "RERANK_API_KEY"
"""The environment variable with the endpoint's key. It is not OPENAI_API_KEY: OpenAI has no
`/rerank`, so that key would go to somebody whom it is not for.
"""

BATCH_SIZE = 32
"""Documents in a request: the most that text-embeddings-inference takes by default."""

CONCURRENCY = 16
"""Requests at the same time. In most data a query has one document or two, and so has a request:
the server makes larger batches of those that wait.
"""

ROUTE = "/rerank"

_LARGEST = float(np.finfo(np.float32).max)

ASKED = (
    "What is a bird?",
    ("A bird is an animal with feathers and two wings.", "The road is closed on Sunday."),
)
"""The question to a server when the teacher is loaded: one document answers it, one does not."""


@dataclass(frozen=True)
class Form:
    """How a server is asked and answers.

    Attributes:
        name: Whose form it is.
        documents: The documents' key in a request.
        score: A score's key in an answer.
    """

    name: str
    documents: str
    score: str

    def request(self, model: str, query: str, documents: list[str], raw: bool) -> dict[str, Any]:
        """The body of a request; `raw` asks for scores without the server's activation."""
        body: dict[str, Any] = {"query": query, self.documents: documents}
        if self is TEI:
            return body | {"raw_scores": raw, "truncate": True}
        # Infinity reads the one, vLLM the other; whoever reads none is found out by its scores.
        asks_raw = {"raw_scores": True, "use_activation": False} if raw else {}
        return {
            "model": model, **body, "top_n": len(documents), "return_documents": False, **asks_raw,
        }  # fmt: skip

    def results(self, answer: Any) -> Any:
        """The results in an answer, a list of objects if it has this form."""
        if self is TEI:
            return answer
        return answer.get("results") if isinstance(answer, dict) else None


COHERE = Form("Cohere", "documents", "relevance_score")
TEI = Form("text-embeddings-inference", "texts", "score")


@dataclass(frozen=True)
class _Request:
    """A query, some of its documents, and the places of these pairs."""

    query: str
    documents: list[str]
    places: list[int]


@dataclass(frozen=True, eq=False, kw_only=True)
class RerankEndpointTeacher(PairTeacher):
    """Scores from `POST {address}`.

    Attributes:
        api: The server.
        address: The whole address of its route.
        form: The form that it speaks.
        raw: It is asked for scores without its activation.
    """

    api: Api
    address: str
    form: Form
    raw: bool
    name: str
    scale: Scale
    prompts: Prompts
    identity: tuple[Any, ...]
    by_query = True  # documents of a query share requests, and some servers bill each of these

    def score(self, pairs: list[tuple[str, str]], advance: Advance | None = None) -> np.ndarray:
        """See :meth:`PairTeacher.score`. A request holds one query and up to `BATCH_SIZE` of its
        documents, each with its prompt before it.

        Raises:
            InputError: The endpoint refuses, cannot be reached after `RETRIES`, or does not return
                one finite score for each document.
        """
        scores = np.empty(len(pairs), dtype=np.float32)
        for request, (values, tokens) in ask_all(self._ask, self._requests(pairs), CONCURRENCY):
            scores[request.places] = values
            if advance:
                advance(len(values), tokens)
        if self.scale.activation == "sigmoid":
            scores = expit(scores)
        return scores

    def _requests(self, pairs: list[tuple[str, str]]) -> list[_Request]:
        of_query: dict[str, list[int]] = defaultdict(list)
        for place, (query, _) in enumerate(pairs):
            of_query[query].append(place)
        return [
            _Request(
                self.prompts.query + query,
                [self.prompts.document + pairs[place][1] for place in batch],
                batch,
            )
            for query, places in of_query.items()
            for batch in (
                places[start : start + BATCH_SIZE] for start in range(0, len(places), BATCH_SIZE)
            )
        ]

    def _ask(self, request: _Request) -> tuple[np.ndarray, int]:
        """Scores (n,) float32 of one request's documents, and the server's count of tokens."""
        return _ask(self.api, self.address, self.form, request.query, request.documents, self.raw)


def _ask(
    api: Api, address: str, form: Form, query: str, documents: list[str], raw: bool
) -> tuple[np.ndarray, int]:
    """Scores (n,) float32 of `documents`, and the server's count of tokens."""
    body = form.request(api.model, query, documents, raw)
    answer = api.ask(address, body, [query, *documents])
    return _scores_in(api, form, answer, query, len(documents)), tokens_in(answer)


def _scores_in(api: Api, form: Form, answer: Any, query: str, count: int) -> np.ndarray:
    """The scores (count,) float32 in an answer, whose order is the server's."""

    def error(what: str) -> InputError:
        return api.error(
            f"answers {what}, for {count} documents of the query {query[:60]!r}",
            f"The form of {form.name} was expected; look at the server",
        )

    results = form.results(answer)
    if not isinstance(results, list):
        raise error(f"no list of scores but {api.hidden(str(answer))[:120]!r}")
    scores: dict[int, float] = {}
    for result in results:
        index = result.get("index") if isinstance(result, dict) else None
        if type(index) is not int or form.score not in result:
            raise error(
                f"a result without index or {form.score}, {api.hidden(str(result))[:120]!r}"
            )
        score = result[form.score]
        if not 0 <= index < count:
            raise error(f"a score for document {index}, counted from 0")
        if index in scores:
            raise error(f"two scores for document {index}, counted from 0")
        if type(score) not in (int, float) or not abs(score) <= _LARGEST:
            shown = api.hidden(repr(score))[:60]
            raise error(f"the score {shown} for document {index}, counted from 0")
        scores[index] = score
    if len(scores) != count:
        missing = next(i for i in range(count) if i not in scores)
        raise error(f"{len(scores)} scores, none for document {missing}, counted from 0")
    return np.array([scores[i] for i in range(count)], dtype=np.float32)


def _form_of(api: Api, address: str) -> tuple[Form, np.ndarray]:
    """The form that the server speaks, and its scores of `ASKED`: Cohere's, or if it calls such a
    request wrong (400, 422), TEI's.
    """
    query, documents = ASKED
    refused = []
    for form in (COHERE, TEI):
        try:
            return form, _ask(api, address, form, query, list(documents), raw=False)[0]
        except RefusedError as error:
            if error.status not in (400, 422):
                raise
            refused.append(f"{error.answer} (asked in the form of {form.name})")
    raise api.error(
        f"answers {' and '.join(refused)}",
        f"Check --teacher_url, and --teacher {api.model}, the model's name there",
    )


def _check_raw(api: Api, address: str, form: Form, scores: np.ndarray, activation: str) -> None:
    """Raise InputError if the server does not give raw scores when it is asked to. Those that it
    gives are raw if one leaves [0, 1], or their sigmoid is what it gives otherwise: `scores`.
    """
    query, documents = ASKED
    raw = _ask(api, address, form, query, list(documents), raw=True)[0]
    if ((raw < 0) | (raw > 1)).any() or np.allclose(expit(raw), scores, atol=0.01):
        return
    raise InputError(
        f"--teacher_activation {activation}: {api.url} (model {api.model}) gives no raw scores. "
        f"Asked for them, it scores {', '.join(f'{x:.4f}' for x in raw)}, without that "
        f"{', '.join(f'{x:.4f}' for x in scores)}. Set --teacher_activation auto to take its "
        "scores as they are"
    )


@reads(
    "teacher_url", "teacher_activation", "score_range", "query_prompt", "document_prompt",
)  # fmt: skip
def load_rerank_endpoint(recipe: Recipe) -> RerankEndpointTeacher:
    """Connect to an endpoint, and ask it one question, which tells the form that it speaks.

    `teacher_url` is what `/rerank` follows, or ends in `/rerank`.

    With `teacher_activation: auto` scores are the server's own, in `score_range` (by default
    [0, 1]). With `identity` they are raw: the server is asked for scores without its activation.
    With `sigmoid`, a sigmoid is applied to these.

    Raises:
        InputError: As `connect` and `RerankEndpointTeacher.score`; scores outside the range; or a
            server that does not give raw scores and is asked to.
    """
    arguments = recipe.teacher
    api = connect(arguments, KEY_VARIABLE, "http://localhost:8080")
    # The client would tell a stranger who the user is at OpenAI.
    api.client.organization = api.client.project = None
    address = api.url if api.url.endswith(ROUTE) else api.url + ROUTE
    wanted, bounds = arguments.teacher_activation, declared_range(arguments.score_range)
    if wanted == "sigmoid" and bounds:
        raise InputError(
            "--score_range has no effect with --teacher_activation sigmoid, whose scores lie in "
            "[0, 1]; set one of them to its default"
        )
    form, scores = _form_of(api, address)
    low, high = bounds or ((-np.inf, np.inf) if wanted == "identity" else (0.0, 1.0))
    scale = Scale(
        f"rerank endpoint in the form of {form.name}",
        None if wanted == "auto" else wanted,
        low,
        high,
    )
    if wanted == "auto":
        scale.check(scores, api.model)
    else:
        _check_raw(api, address, form, scores, wanted)
    prompts = Prompts(arguments.query_prompt or "", arguments.document_prompt or "")
    return RerankEndpointTeacher(
        api=api,
        address=address,
        form=form,
        raw=wanted != "auto",
        name=api.model,
        scale=scale,
        prompts=prompts,
        # The scale names the form and the activation.
        identity=("rerank-endpoint", address, api.model, scale.record(), vars(prompts)),
    )
