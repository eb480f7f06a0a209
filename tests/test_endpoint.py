"""An endpoint as teacher, against a real HTTP server on loopback."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import recipe_of, sentences
from embeddings_server import Endpoint, embeddings_body, hang_up, refuse, running_endpoint, say
from sentence_transformers import SentenceTransformer

from hf_distill.compute import endpoint as endpoint_module
from hf_distill.compute.endpoint import KEY_VARIABLE
from hf_distill.errors import InputError
from hf_distill.teachers import endpoint as module
from hf_distill.teachers.endpoint import EndpointTeacher, load_endpoint


@pytest.fixture
def endpoint(teacher_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """A server that embeds, asked for four texts at a time."""
    monkeypatch.setattr(module, "BATCH_SIZE", 4)
    model = SentenceTransformer(str(teacher_dir), device="cpu")
    with running_endpoint(lambda texts: (3 * model.encode(texts)).tolist()) as running:
        yield running


def load(endpoint: Endpoint, **changes: object) -> EndpointTeacher:
    keys = {"teacher": "tiny", "teacher_kind": "endpoint", "teacher_url": endpoint.url}
    return load_endpoint(recipe_of(**keys | changes))


def test_embeddings_are_the_servers_normalised(endpoint: Endpoint, teacher_dir: Path) -> None:
    teacher = load(endpoint)
    texts = sentences(10)
    told: list[tuple[int, int]] = []
    embeddings = teacher.embed(texts, lambda items, tokens: told.append((items, tokens)))
    expected = SentenceTransformer(str(teacher_dir), device="cpu").encode(
        texts, normalize_embeddings=True
    )
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)
    assert teacher.dimension == 32
    assert told == [(4, 28), (4, 28), (2, 14)]
    assert sorted(len(request["input"]) for request in endpoint.requests) == [1, 2, 4, 4]
    assert {request["path"] for request in endpoint.requests} == {"/v1/embeddings"}


def test_a_dot_product_keeps_the_servers_lengths(endpoint: Endpoint) -> None:
    np.testing.assert_allclose(
        np.linalg.norm(load(endpoint, teacher_similarity="dot").embed(sentences(3)), axis=1),
        3,
        atol=1e-4,
    )


def test_requests_are_few_at_a_time_but_more_than_one(endpoint: Endpoint) -> None:
    teacher = load(endpoint)
    endpoint.seconds = 0.05
    teacher.embed(sentences(40))
    assert 1 < endpoint.most_at_once <= module.CONCURRENCY


def test_refusals_are_tried_again(endpoint: Endpoint) -> None:
    teacher = load(endpoint)
    before = len(endpoint.requests)
    endpoint.faults = [refuse(429), refuse(500), refuse(503)]
    assert teacher.embed(sentences(4)).shape == (4, 32)
    assert len(endpoint.requests) - before == 4


def of_texts(count: int, dimension: int = 32, value: float = 1.0) -> bytes:
    return embeddings_body([[value] * dimension] * count)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (say(of_texts(4, 16)), "16 dimensions.* 32"),
        (say(of_texts(3)), "3 embeddings for 4 texts"),
        (say(of_texts(4, value=math.nan)), "NaN or infinite embeddings for 4 of 4 texts"),
        (say(b""), "not JSON"),
        (say(b"{}"), "no list of embeddings"),
        (say(b"<html>"), "not JSON"),
        (say(json.dumps({"data": [{"vector": [1]}] * 4}).encode()), "another form.*'index'"),
        (refuse(404, "no model of that name"), "404: 'no model of that name'"),
        (refuse(413, "too long"), "413: 'too long'.* 4 texts, the longest of 54 characters"),
    ],
    ids=["dimension", "short", "nan", "empty", "no-data", "html", "other-form", "404", "413"],
)
def test_a_wrong_answer_is_said(endpoint: Endpoint, fault: object, says: str) -> None:
    teacher = load(endpoint)
    endpoint.faults = [fault]
    with pytest.raises(InputError, match=says):
        teacher.embed(sentences(4))


def test_no_answer_is_said(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "RETRIES", 1)
    teacher = load(endpoint)
    endpoint.faults = [hang_up, hang_up]
    with pytest.raises(InputError, match=r"127\.0\.0\.1.*cannot be reached"):
        teacher.embed(sentences(4))
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9.*cannot be reached"):
        load(endpoint, teacher_url="http://127.0.0.1:9/v1")


def test_the_key_comes_from_the_environment_and_is_never_shown(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sk-very-secret")
    teacher = load(endpoint)
    assert endpoint.requests[-1]["authorization"] == "Bearer sk-very-secret"
    endpoint.faults = [refuse(401, "wrong key: sk-very-secret")]
    with pytest.raises(InputError, match=rf"wrong key: \[key\].*Set {KEY_VARIABLE}") as caught:
        teacher.embed(sentences(1))
    assert "sk-very-secret" not in str(caught.value)
    assert "sk-very-secret" not in json.dumps(vars(teacher), default=str)


def test_the_identity_is_server_model_and_similarity(endpoint: Endpoint) -> None:
    changes = [{}, {"teacher": "other"}, {"teacher_similarity": "dot"}, {"query_prompt": "q "}]
    identities = [json.dumps(load(endpoint, **change).identity) for change in changes]
    assert len(set(identities)) == 4
    assert json.dumps(load(endpoint).identity) == identities[0]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (None, "--teacher_kind endpoint needs --teacher_url"),
        ("http://me:secret@host/v1", f"--teacher_url .*{KEY_VARIABLE}"),
        ("http://host/v1?key=secret", f"--teacher_url .*{KEY_VARIABLE}"),
        ("localhost:8080", "--teacher_url localhost:8080"),
        ("http://[::1/v1", r"--teacher_url http://\[::1/v1 is not an address"),
        ("ftp://host/v1", "--teacher_url ftp://host/v1"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(url: str | None, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        load_endpoint(recipe_of(teacher_kind="endpoint", teacher_url=url))
    assert "secret" not in str(caught.value)


def test_after_an_error_no_further_request_is_sent(endpoint: Endpoint) -> None:
    teacher = load(endpoint)
    before = len(endpoint.requests)
    endpoint.seconds = 0.05
    endpoint.faults = [refuse(404)] * 100
    with pytest.raises(InputError, match="Finished shards are kept"):
        teacher.embed(sentences(400))
    assert len(endpoint.requests) - before < 20, "a hundred requests were waiting"
