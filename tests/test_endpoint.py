"""An endpoint as teacher, against a real HTTP server on loopback."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import sentences
from embeddings_server import Endpoint, embeddings_body, hang_up, refuse, running_endpoint, say
from sentence_transformers import SentenceTransformer

from hf_distill.data.load import load_pair_data
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import (
    DataArguments,
    TeacherArguments,
)
from hf_distill.run.folder import RunFolder
from hf_distill.scoring.scores import score_pairs
from hf_distill.teachers import endpoint as module
from hf_distill.teachers.endpoint import (
    KEY_VARIABLE,
    EndpointTeacher,
    load_endpoint,
)


@pytest.fixture
def endpoint(teacher_dir: Path) -> Iterator[Endpoint]:
    model = SentenceTransformer(str(teacher_dir), device="cpu")
    with running_endpoint(lambda texts: (3 * model.encode(texts)).tolist()) as running:
        yield running


def load(endpoint: Endpoint, **changes: object) -> EndpointTeacher:
    arguments = {
        "teacher": "tiny",
        "teacher_kind": "endpoint",
        "teacher_url": endpoint.url,
        "endpoint_batch_size": 4,
        **changes,
    }
    return load_endpoint(TeacherArguments(**arguments))


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
    teacher = load(endpoint, endpoint_concurrency=3)
    endpoint.seconds = 0.05
    teacher.embed(sentences(40))
    assert 1 < endpoint.most_at_once <= 3


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
        (say(of_texts(4, 16)), "answers embeddings of 16 dimensions, before it was 32"),
        (say(of_texts(3)), "answers 3 embeddings for 4 texts"),
        (say(of_texts(4, value=math.nan)), "NaN or infinite embeddings for 4 of 4 texts"),
        (say(b""), "answers something that is not JSON"),
        (say(b"{}"), "answers no list of embeddings"),
        (say(b"<html>"), "answers something that is not JSON"),
        (
            say(json.dumps({"data": [{"vector": [1]}] * 4}).encode()),
            "in another form than OpenAI's",
        ),
        (refuse(404, "no model of that name"), "answers 404: 'no model of that name'"),
        (refuse(413, "too long"), "The request held 4 texts, the longest of"),
    ],
    ids=["dimension", "short", "nan", "empty", "no-data", "html", "other-form", "404", "413"],
)
def test_a_wrong_answer_is_said(endpoint: Endpoint, fault: object, says: str) -> None:
    teacher = load(endpoint)
    endpoint.faults = [fault]
    with pytest.raises(InputError, match=says):
        teacher.embed(sentences(4))


def test_no_answer_is_said(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRIES", 1)
    teacher = load(endpoint)
    endpoint.faults = [hang_up, hang_up]
    with pytest.raises(InputError, match="cannot be reached"):
        teacher.embed(sentences(4))
    with pytest.raises(InputError, match="cannot be reached"):
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


def test_what_is_embedded_before_an_error_is_kept(
    endpoint: Endpoint, pairs_file: Path, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    data = load_pair_data(
        DataArguments(dataset="files", dataset_path=str(pairs_file), group_column="topic"),
        0,
        folder,
    )
    teacher = load(endpoint, endpoint_batch_size=50)
    endpoint.faults = [
        refuse(500, **{"x-should-retry": "false"}) if i == 5 else lambda *_: False for i in range(6)
    ]
    with pytest.raises(InputError, match="Shards that are done are kept"):
        score_pairs(data, teacher, folder, TeacherArguments(shard_size=100))
    assert len(list((folder.soft_labels / "texts").glob("*.parquet"))) == 2
    before = len(endpoint.requests)
    scored = score_pairs(data, teacher, folder, TeacherArguments(shard_size=100))
    assert len(endpoint.requests) - before == 4, "two shards of two requests were left"
    assert scored.manifest["precision"] == "unknown"
