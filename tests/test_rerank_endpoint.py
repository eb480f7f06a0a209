"""A ranker behind an endpoint as teacher, against real HTTP servers on loopback, each of which
answers as one of the servers that people have.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import call, recipe_of, run_tiny, sentences
from embeddings_server import Endpoint, Fault, hang_up, refuse, running_server, say
from hypothesis import given, settings
from hypothesis import strategies as st
from rerank_server import MODEL, cohere, infinity, jina, logit, logits, sigmoid, tei, vllm

from hf_distill.commands.train import main as train
from hf_distill.compute import endpoint as endpoint_module
from hf_distill.errors import InputError
from hf_distill.run import shards
from hf_distill.teachers import rerank_endpoint as module
from hf_distill.teachers.base import Scale
from hf_distill.teachers.load import load_teacher
from hf_distill.teachers.rerank_endpoint import (
    ASKED,
    COHERE,
    KEY_VARIABLE,
    TEI,
    RerankEndpointTeacher,
)

SERVERS = {
    "tei": (tei, "", TEI, 0),
    "vllm": (vllm, "/v1", COHERE, 5),
    "infinity": (infinity, "", COHERE, 5),
    "cohere v1": (cohere("v1"), "/v1", COHERE, 0),
    "cohere v2": (cohere("v2"), "/v2", COHERE, 0),
    "jina": (jina, "/v1", COHERE, 5),
}
"""How it answers, the base of its routes, the form it speaks, and its tokens a document."""

PAIRS = [
    (query, document) for query in sentences(3) for document in sentences(7, len(query) * 1000)
]


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[tuple[str, Endpoint]]:
    """Each of the servers, with its name."""
    reply, base, _, _ = SERVERS[request.param]
    with running_server(reply, base) as endpoint:
        yield request.param, endpoint


@pytest.fixture(params=["tei", "vllm"])
def either(request: pytest.FixtureRequest) -> Iterator[Endpoint]:
    """A server of each form."""
    reply, base, _, _ = SERVERS[request.param]
    with running_server(reply, base) as endpoint:
        yield endpoint


@pytest.fixture
def infinite() -> Iterator[Endpoint]:
    """One of Cohere's form."""
    with running_server(infinity, "") as endpoint:
        yield endpoint


def load(endpoint: Endpoint, **changes: object) -> RerankEndpointTeacher:
    keys = {"teacher": MODEL, "teacher_kind": "rerank-endpoint", "teacher_url": endpoint.url}
    teacher = load_teacher(recipe_of(**keys | changes))
    assert isinstance(teacher, RerankEndpointTeacher)
    return teacher


def asked(endpoint: Endpoint) -> list[dict[str, Any]]:
    """The requests, without what the client and the fixture add, and without those at loading."""
    added = ("path", "authorization", "headers")
    bodies = [{k: v for k, v in one.items() if k not in added} for one in endpoint.requests]
    return [body for body in bodies if body["query"] != ASKED[0]]


# --- The scores


def test_the_scores_are_the_servers_whatever_its_form(server: tuple[str, Endpoint]) -> None:
    name, endpoint = server
    _, base, form, tokens = SERVERS[name]
    teacher = load(endpoint)
    told: list[tuple[int, int]] = []
    scores = teacher.score(PAIRS, lambda items, tokens: told.append((items, tokens)))
    expected = [sigmoid(logit(*pair)) for pair in PAIRS]
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    assert told == [(7, 7 * tokens)] * 3
    assert teacher.form is form
    assert teacher.scale == Scale(f"rerank endpoint in the form of {form.name}", None, 0.0, 1.0)
    assert {one["path"] for one in endpoint.requests} == {f"{base}/rerank"}
    assert (teacher.name, teacher.scores_pairs, teacher.embeds) == (MODEL, True, False)


def test_a_request_has_the_fields_of_its_form(either: Endpoint) -> None:
    teacher = load(either)
    teacher.score([("a", "b"), ("a", "c")])
    bodies = {
        "documents": {
            "model": MODEL, "query": "a", "documents": ["b", "c"], "top_n": 2,
            "return_documents": False,
        },
        "texts": {"query": "a", "texts": ["b", "c"], "raw_scores": False, "truncate": True},
    }  # fmt: skip
    assert asked(either) == [bodies[teacher.form.documents]]


def test_a_score_depends_on_its_pair_alone(
    either: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However pairs are ordered and repeated, and wherever a request ends."""
    monkeypatch.setattr(module, "BATCH_SIZE", 4)
    teacher = load(either)

    @settings(deadline=None, max_examples=40)
    @given(st.lists(st.tuples(st.sampled_from("qrs"), st.sampled_from("abcdefghi")), max_size=30))
    def check(pairs: list[tuple[str, str]]) -> None:
        either.requests.clear()
        scores = teacher.score(pairs)
        np.testing.assert_allclose(scores, [sigmoid(logit(*pair)) for pair in pairs], rtol=1e-6)
        sent = [(one["query"], d) for one in asked(either) for d in one[teacher.form.documents]]
        assert sorted(sent) == sorted(pairs)
        counts = Counter(query for query, _ in pairs).values()
        assert len(asked(either)) == sum(math.ceil(count / 4) for count in counts)

    check()


def test_documents_of_a_query_share_requests_of_32(either: Endpoint) -> None:
    documents = sentences(70)
    queries = sentences(3, 100)
    load(either).score([(query, document) for document in documents for query in queries])
    sizes = [len(one.get("texts") or one["documents"]) for one in asked(either)]
    assert sorted(sizes) == [6] * 3 + [32] * 6


def test_requests_are_several_at_a_time_and_not_all(infinite: Endpoint) -> None:
    teacher = load(infinite)
    infinite.seconds = 0.05
    teacher.score([(query, "d") for query in sentences(60)])
    assert 4 < infinite.most_at_once <= module.CONCURRENCY


def test_prompts_go_before_query_and_document(either: Endpoint) -> None:
    plain, prompted = load(either), load(either, query_prompt="ask: ", document_prompt="text: ")
    assert prompted.prompts.of("query") == "ask: "
    np.testing.assert_array_equal(
        prompted.score([("cat", "dog")]), plain.score([("ask: cat", "text: dog")])
    )


def test_no_pairs_have_no_scores(infinite: Endpoint) -> None:
    assert load(infinite).score([]).shape == (0,)
    assert not asked(infinite)


# --- Where it is, and the form it speaks


@pytest.mark.parametrize("end", ["", "/", "/rerank", "/rerank/"])
def test_the_url_is_the_base_or_the_whole_address(end: str) -> None:
    with running_server(jina, "/v1") as endpoint:
        teacher = load(endpoint, teacher_url=endpoint.url + end)
        assert teacher.address == f"{endpoint.url}/rerank"
        assert teacher.identity[1] == teacher.address
        assert {one["path"] for one in endpoint.requests} == {"/v1/rerank"}


def test_loading_asks_once_or_twice(server: tuple[str, Endpoint]) -> None:
    name, endpoint = server
    load(endpoint)
    assert len(endpoint.requests) == (2 if name == "tei" else 1)


def test_a_wrong_base_and_a_wrong_name_are_said() -> None:
    with running_server(cohere("v2"), "") as endpoint:
        says = r"404: .*not found.*Check --teacher_url, and --teacher tiny-reranker"
        with pytest.raises(InputError, match=says):
            load(endpoint)
    with running_server(vllm, "/v1") as endpoint, pytest.raises(InputError, match="`big` does not"):
        load(endpoint, teacher="big")


def test_a_server_that_speaks_neither_form_is_said_with_both_answers() -> None:
    def reply(path: str, request: dict[str, Any]) -> tuple[int, bytes]:
        return 422, f"no {'texts' if 'texts' in request else 'documents'} please".encode()

    says = r"422: 'no documents please' \(asked .* Cohere\) and 422: 'no texts please' \(asked .*--"
    with running_server(reply, "") as endpoint, pytest.raises(InputError, match=says):
        load(endpoint)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (None, "--teacher_kind rerank-endpoint needs --teacher_url"),
        ("http://me:secret@host/v1", f"--teacher_url .*{KEY_VARIABLE}"),
        ("http://host/rerank?key=secret", f"--teacher_url .*{KEY_VARIABLE}"),
        ("localhost:8080", "--teacher_url localhost:8080"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(url: str | None, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        load_teacher(recipe_of(teacher_kind="rerank-endpoint", teacher_url=url))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "keys", [{"teacher_similarity": "dot"}, {"teacher_max_length": 9}, {"trust_remote_code": True}]
)
def test_options_without_effect_are_refused(infinite: Endpoint, keys: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"--\w+ .*--teacher_kind rerank-endpoint"):
        load(infinite, **keys)


def test_the_identity_is_address_model_form_scale_and_prompts(infinite: Endpoint) -> None:
    changes: list[dict[str, object]] = [
        {}, {"teacher": "other"}, {"teacher_activation": "identity"},
        {"teacher_activation": "sigmoid"}, {"score_range": [-1, 1]}, {"query_prompt": "q "},
        {"document_prompt": "q "},
    ]  # fmt: skip
    identities = [json.dumps(load(infinite, **change).identity) for change in changes]
    assert json.dumps(load(infinite).identity) == identities[0]
    infinite.reply = tei  # the same address, another form
    assert len({*identities, json.dumps(load(infinite).identity)}) == len(changes) + 1


# --- The activation


RAW = {"tei": (tei, ""), "vllm": (vllm, "/v1"), "infinity": (infinity, ""), "logits": (logits, "")}


@pytest.mark.parametrize("name", RAW)
def test_raw_scores_are_asked_for_and_may_go_through_a_sigmoid(name: str) -> None:
    expected = np.array([logit(*pair) for pair in PAIRS])
    with running_server(*RAW[name]) as endpoint:
        raw = load(endpoint, teacher_activation="identity")
        np.testing.assert_allclose(raw.score(PAIRS), expected, rtol=1e-6)
        assert raw.scale.record() == {
            "similarity": f"rerank endpoint in the form of {raw.form.name}",
            "activation": "identity",
            "range": [None, None],
        }
        ours = load(endpoint, teacher_activation="sigmoid")
        np.testing.assert_allclose(ours.score(PAIRS), 1 / (1 + np.exp(-expected)), rtol=1e-5)
        assert (ours.scale.activation, ours.scale.low, ours.scale.high) == ("sigmoid", 0, 1)


@pytest.mark.parametrize("activation", ["identity", "sigmoid"])
@pytest.mark.parametrize("name", ["cohere v1", "cohere v2", "jina"])
def test_raw_scores_of_a_server_without_them_are_refused(name: str, activation: str) -> None:
    reply, base, _, _ = SERVERS[name]
    says = rf"--teacher_activation {activation}: .* gives no raw scores\. .*0\.\d+.* auto"
    with running_server(reply, base) as endpoint, pytest.raises(InputError, match=says):
        load(endpoint, teacher_activation=activation)


def test_scores_of_another_range_are_refused_or_declared() -> None:
    with running_server(logits, "") as endpoint:
        with pytest.raises(InputError, match=r"\[0, 1\].*--teacher_activation sigmoid.*--score_r"):
            load(endpoint)
        teacher = load(endpoint, score_range=[-6, 6])
        assert (teacher.scale.low, teacher.scale.high) == (-6, 6)
        np.testing.assert_allclose(teacher.score(PAIRS), [logit(*p) for p in PAIRS], rtol=1e-6)
        with pytest.raises(InputError, match=r"--score_range .*--teacher_activation sigmoid"):
            load(endpoint, score_range=[-6, 6], teacher_activation="sigmoid")
        with pytest.raises(InputError, match=r"--score_range 1\.0 0\.0"):
            load(endpoint, score_range=[1, 0])


# --- Faults


@pytest.mark.parametrize(
    "faults",
    [[refuse(503)], [refuse(429), refuse(408), refuse(409), refuse(500)], [hang_up]],
    ids=["503", "every status", "closed"],
)
def test_what_may_pass_is_tried_again(either: Endpoint, faults: list[Fault]) -> None:
    teacher = load(either)
    either.faults = list(faults)
    scores = teacher.score([("q", "a"), ("q", "b")])
    np.testing.assert_allclose(scores, [sigmoid(logit("q", d)) for d in "ab"], rtol=1e-6)
    assert len(asked(either)) == len(faults) + 1


def test_retry_after_is_waited_for(infinite: Endpoint) -> None:
    teacher = load(infinite)
    infinite.faults = [refuse(429, **{"Retry-After": "1.5"})]
    began = time.monotonic()
    teacher.score([("q", "a")])
    assert time.monotonic() - began >= 1.5, "the client's own first pause is under a second"


def test_what_does_not_pass_is_said(infinite: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "RETRIES", 1)
    teacher = load(infinite)
    for fault, says in ((hang_up, "cannot be reached"), (refuse(503, "full"), "503: 'full'"),
                        (refuse(429), "429: .*limits how often")):  # fmt: skip
        infinite.faults = [fault] * 2
        with pytest.raises(InputError, match=f"{says}.*Finished shards are kept"):
            teacher.score([("q", "a")])
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9.*cannot be reached"):
        load(infinite, teacher_url="http://127.0.0.1:9")


NAN, INFINITE, HUGE = float("nan"), float("inf"), 10**60

WRONG: dict[str, tuple[Any, str]] = {
    "too few": ([(0, 0.5), (2, 0.5)], "answers 2 scores, none for document 1"),
    "none": ([], "answers 0 scores, none for document 0"),
    "repeated": ([(0, 0.5), (1, 0.5), (1, 0.5)], "two scores for document 1"),
    "repeated beside all": ([(0, 0.5), (1, 0.5), (2, 0.5), (2, 0.5)], "two scores for document 2"),
    "unknown": ([(0, 0.5), (1, 0.5), (3, 0.5)], "a score for document 3"),
    "negative": ([(0, 0.5), (1, 0.5), (-1, 0.5)], "a score for document -1"),
    "nan": ([(0, 0.5), (1, NAN), (2, 0.5)], "the score nan for document 1"),
    "infinite": ([(0, 0.5), (1, INFINITE), (2, 0.5)], "the score inf for document 1"),
    "huge": ([(0, 0.5), (1, HUGE), (2, 0.5)], "the score 10+ for document 1"),
    "null": ([(0, 0.5), (1, None), (2, 0.5)], "the score None for document 1"),
    "text": ([(0, 0.5), (1, "0.5"), (2, 0.5)], "the score '0.5' for document 1"),
    "true": ([(0, 0.5), (1, True), (2, 0.5)], "the score True for document 1"),
    "index is text": ([("0", 0.5)], "a result without index or"),
    "index is true": ([(True, 0.5)], "a result without index or"),
}


def body_of(teacher: RerankEndpointTeacher, results: list[tuple[Any, Any]]) -> bytes:
    items = [{"index": index, teacher.form.score: score} for index, score in results]
    return json.dumps(items if teacher.form is TEI else {"results": items}).encode()


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_is_said_with_its_query(either: Endpoint, name: str) -> None:
    results, says = WRONG[name]
    teacher = load(either)
    either.faults = [say(body_of(teacher, results))]
    rest = rf".* for 3 documents of the query 'which bird'.*{teacher.form.name}.*shards are kept"
    with pytest.raises(InputError, match=says + rest):
        teacher.score([("which bird", document) for document in "abc"])


CHANGED: dict[str, tuple[object, str]] = {
    "prose": (b"Sure! Document 1 is best.", "not JSON"),
    "html": (b"<html>", "not JSON"),
    "empty": (b"", "not JSON"),
    "not utf-8": (b'\xff\xfe"', "not JSON"),
    "text": (b'"the first one"', "no list of scores but 'the first one'"),
    "null": (b"null", "no list of scores but 'None'"),
    "error": (b'{"error": "overloaded"}', "no list of scores but .*overloaded"),
    "results of another kind": (b'{"results": {"0": 0.5}}', "no list of scores"),
    "bare numbers": (b"[0.5, 0.5]", "no list of scores|a result without index"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_an_answer_of_another_form_is_said(either: Endpoint, name: str) -> None:
    body, says = CHANGED[name]
    teacher = load(either)
    either.faults = [say(body)]
    with pytest.raises(InputError, match=f"{says}.*Finished shards are kept"):
        teacher.score([("q", "a"), ("q", "b")])


def test_the_other_form_is_not_the_servers(either: Endpoint) -> None:
    """A server that changes its form is another one."""
    teacher = load(either)
    items = [{"index": 0, "score": 0.5, "relevance_score": 0.5}]
    either.faults = [say(json.dumps({"results": items} if teacher.form is TEI else items).encode())]
    with pytest.raises(InputError, match="no list of scores"):
        teacher.score([("q", "a")])
    either.faults = [say(json.dumps([{"index": 0, "relevance": 0.5}]).encode())]
    with pytest.raises(InputError, match=r"no list of scores|without index or score.*relevance"):
        teacher.score([("q", "a")])


def test_what_a_server_refuses_is_said(infinite: Endpoint) -> None:
    teacher = load(infinite)
    infinite.faults = [refuse(413, "too long")]
    with pytest.raises(InputError, match=r"413: 'too long'.* 3 texts, the longest of 4 characters"):
        teacher.score([("q", "abcd"), ("q", "b")])


def test_after_an_error_no_further_request_is_sent(infinite: Endpoint) -> None:
    teacher = load(infinite)
    infinite.seconds = 0.05
    infinite.faults = [refuse(400)] * 300
    with pytest.raises(InputError, match="answers 400"):
        teacher.score([(query, "d") for query in sentences(300)])
    assert len(asked(infinite)) < 4 * module.CONCURRENCY, "300 requests were waiting"


# --- The key


def test_the_key_comes_from_its_own_variable_and_is_never_shown(
    either: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-openai")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-of-openai")
    load(either)
    assert "of-openai" not in json.dumps([one["headers"] for one in either.requests])
    monkeypatch.setenv(KEY_VARIABLE, "co-very-secret\n")  # as a shell leaves it
    teacher = load(either)
    assert either.requests[-1]["authorization"] == "Bearer co-very-secret"
    for fault in (
        refuse(401, "wrong key: co-very-secret"),
        say(b'{"results": "co-very-secret"}'),
        say(b'[{"index": "co-very-secret"}]'),
        say(body_of(teacher, [(0, "co-very-secret")])),
        say(b"co-very-secret"),
    ):
        either.faults = [fault]
        with pytest.raises(InputError) as caught:
            teacher.score([("q", "d")])
        assert "co-very-secret" not in str(caught.value)
    either.faults = [refuse(401, "wrong key: co-very-secret")]
    with pytest.raises(InputError, match=rf"401: 'wrong key: \[key\]'.*Set {KEY_VARIABLE}"):
        teacher.score([("q", "d")])
    assert "co-very-secret" not in json.dumps(vars(teacher), default=str)
    assert "co-very-secret" not in json.dumps(vars(teacher.api), default=str)


@pytest.mark.parametrize("key", ["co-very\nsecret", "co-vèry-secret"])
def test_a_key_that_no_header_can_hold_is_refused(
    infinite: Endpoint, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, key)
    with pytest.raises(InputError, match=f"{KEY_VARIABLE} holds characters") as caught:
        load(infinite)
    assert "secret" not in str(caught.value)
    assert not infinite.requests


# --- A run


def test_a_run_is_scored_and_after_a_fault_finished_shards_are_not_asked_for_again(
    tiny: Path, tmp_path: Path, backbone_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "LEAST_ITEMS", 50)
    monkeypatch.setattr(endpoint_module, "RETRIES", 0)
    key = "co-veryverysecretveryverysecret"
    monkeypatch.setenv(KEY_VARIABLE, key)
    run = tmp_path / "run"
    with running_server(tei, "") as endpoint:
        line: list[object] = [
            tiny, "--run_dir", run, "--teacher_kind", "rerank-endpoint", "--teacher", MODEL,
            "--teacher_url", endpoint.url, "--student_backbone", backbone_dir, "--until", "score",
            "--student_init", "random", "--alignment_weight", "0", "--regression_on", "diagonal",
        ]  # fmt: skip
        # Two questions when the teacher is loaded, two shards of 50 pairs, and 20 of the third.
        endpoint.faults = [lambda _: False] * 122 + [refuse(500, f"Bearer {key}")] * 80
        stopped = call(line, train)
        assert stopped.code == 2
        assert "Finished shards are kept; run again to continue" in stopped.err
        assert "Bearer [key]" in stopped.err
        first = asked(endpoint)
        done = {(one["query"], text) for one in first[:100] for text in one["texts"]}
        assert len(list((run / "soft_labels" / "pairs").glob("*.arrow"))) == 2
        endpoint.faults.clear()
        endpoint.requests.clear()
        said = call(line, train)
        assert said.code == 0, said.err[-2000:]
        again = {(one["query"], text) for one in asked(endpoint) for text in one["texts"]}
        assert (len(done), len(again)) == (100, 100)
        assert not done & again
    assert re.search(
        r"Scores   200 pairs by tiny-reranker \(unknown; rerank endpoint in the form of "
        r"text-embeddings-inference, in \[0, 1\]\)",
        said.out,
    )
    for text in (stopped.out, stopped.err, said.out, said.err):
        assert key not in text
    assert not [p for p in run.rglob("*") if p.is_file() and key.encode() in p.read_bytes()]
    labels = json.loads((run / "teacher_soft_labels.json").read_text())
    assert len(labels) == 200
    for label in labels:
        expected = sigmoid(logit(label["query"], label["document"]))
        assert label["teacher_score"] == pytest.approx(expected, abs=1e-6)


def test_a_rerank_endpoint_ranks_lists_beside_an_embedder(
    tiny: Path, infinite: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "LEAST_ITEMS", 25)  # five lists
    line = [
        "--candidates", "teacher", "--candidates_per_query", 4, "--hard_negatives_per_pair", 2,
        "--ranker", "rerank-endpoint:m", "--teacher_url", infinite.url, "--until", "select",
    ]  # fmt: skip
    out = run_tiny(tiny, tmp_path / "run", *line, "--ranker_activation", "auto").out
    assert "scored by m" in out
    asked_when_loaded, *lists = infinite.requests
    assert len(asked_when_loaded["documents"]) == 2
    assert {len(request["documents"]) for request in lists} == {5}, "a list and the pair's own"
    line = [tiny, "--run_dir", tmp_path / "other", "--teacher_url", infinite.url]
    said = call(line)
    assert said.code == 2
    assert "--teacher_url" in said.err, "without a ranker nobody reads it"


def test_a_ranker_without_raw_scores_is_said_with_its_own_flag(tiny: Path, tmp_path: Path) -> None:
    with running_server(jina, "/v1") as server:
        said = call(
            [tiny, "--run_dir", tmp_path / "run", "--candidates", "teacher", "--ranker",
             "rerank-endpoint:m", "--hard_negatives_per_pair", 2, "--teacher_url", server.url]
        )  # fmt: skip
    assert said.code == 2
    assert "--ranker m: --ranker_activation identity" in said.err
    assert "Set --ranker_activation auto" in said.err
