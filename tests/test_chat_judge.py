"""A judge behind a chat endpoint, against a real HTTP server on loopback."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_server import ChatServer, running_chat, says, slow
from conftest import call, recipe_of, run_tiny, sentences
from embeddings_server import hang_up, refuse, say

from hf_distill.compute import chat as module
from hf_distill.compute import endpoint as endpoint_module
from hf_distill.compute.endpoint import KEY_VARIABLE
from hf_distill.errors import InputError
from hf_distill.run.stage import read_result
from hf_distill.scoring.scores import SoftLabels
from hf_distill.teachers import chat_judge
from hf_distill.teachers.chat_judge import ChatJudge, load_chat_judge
from hf_distill.teachers.load import load_teacher


def grades_in(user: str, names: list[str]) -> dict[str, int]:
    """Each document's grade: the number after `grade` in its text, or how many words of the query
    it has, at most 3.
    """
    query, *documents = user.split("\n\ndocument_")
    words = set(query.removeprefix("Query: ").split())
    found = {}
    for name, document in zip(names, documents, strict=True):
        number, _, text = document.partition(":\n")
        assert name == f"document_{number}"
        said = re.search(r"grade (\d)", text)
        found[name] = int(said[1]) if said else min(3, len(words & set(text.split())))
    return found


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with running_chat(grades_in) as running:
        yield running


def load(server: ChatServer, **changes: object) -> ChatJudge:
    keys = {"teacher": "judge", "teacher_kind": "chat-judge", "teacher_url": server.url}
    return load_chat_judge(recipe_of(**keys | changes))


def graded(*grades: int, query: str = "q") -> list[tuple[str, str]]:
    return [(query, f"grade {grade} of {number}") for number, grade in enumerate(grades)]


# --- Grades, and how they are asked for


def test_a_score_is_a_third_of_the_grade(server: ChatServer) -> None:
    scores = load(server).score(graded(3, 0, 2, 1))
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, np.float32([1, 0, 2 / 3, 1 / 3]))


def test_documents_of_a_query_are_judged_together_up_to_eight(server: ChatServer) -> None:
    first, second = graded(*[3] * 9, query="one"), graded(0, 1, query="two")
    pairs = [*first[:4], second[0], *first[4:], second[1]]
    told: list[tuple[int, int]] = []
    scores = load(server).score(pairs, lambda items, tokens: told.append((items, tokens)))
    np.testing.assert_allclose(scores, [1] * 4 + [0] + [1] * 5 + [1 / 3], atol=1e-6)
    assert told == [(8, 15), (1, 15), (2, 15)]
    assert sorted(user.count("\n\ndocument_") for user in server.users()) == [1, 2, 8]


def test_what_is_sent(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sk-secret")
    load(server).score([("red cat", "a red cat"), ("red cat", "the sea")])
    (request,) = server.requests
    assert (request["path"], request["authorization"]) == (
        "/v1/chat/completions", "Bearer sk-secret",
    )  # fmt: skip
    assert (request["model"], request["temperature"]) == ("judge", 0)
    assert [said["role"] for said in request["messages"]] == ["system", "user"]
    assert server.users() == ["Query: red cat\n\ndocument_1:\na red cat\n\ndocument_2:\nthe sea"]
    assert request["response_format"]["type"] == "json_schema"
    form = request["response_format"]["json_schema"]
    grade = {"type": "integer", "enum": [0, 1, 2, 3]}
    assert form["strict"] is True
    assert form["schema"] == {
        "type": "object",
        "properties": {"document_1": grade, "document_2": grade},
        "required": ["document_1", "document_2"],
        "additionalProperties": False,
    }


def test_a_long_document_is_cut_and_that_is_said(
    server: ChatServer, caplog: pytest.LogCaptureFixture
) -> None:
    judge = load(server)
    long = "x" * (chat_judge.DOCUMENT_CHARACTERS + 1)
    with judge.working(np.array([5000, 10]), np.array([0, 1])):
        judge.score([("q", long), ("r", "grade 1")])
    sent = [user.partition(":\n")[2] for user in server.users()]
    assert sorted(map(len, sent)) == [7, chat_judge.DOCUMENT_CHARACTERS]
    assert "first 4,000 characters of 1 of 2 documents" in caplog.messages[-1]


def test_what_it_takes_is_said_before_and_after(
    server: ChatServer, caplog: pytest.LogCaptureFixture
) -> None:
    judge = load(server)
    server.faults = [says("no")]
    lengths, queries = np.full(10, 100), np.array([0] * 9 + [1])  # 8 + 1 documents, and 1
    with judge.working(lengths, queries):
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        judge.score(graded(*[1] * 9) + graded(2, query="r"))
    read = (10 * 100 + 3 * len(chat_judge.SYSTEM)) // 4
    before, after = caplog.messages
    assert f"3 requests, about {read:,} tokens to read and 50 to write" in before
    assert "4 requests (1 of them again" in after
    assert "40 tokens read and 20 written" in after
    with judge.working(lengths[:1], queries[:1]):
        judge.score(graded(1, query="s"))
    assert "has answered 1 request; the server reports 10 tokens" in caplog.messages[-1]


def test_requests_are_few_at_a_time_but_more_than_one(server: ChatServer) -> None:
    server.seconds = 0.03
    load(server).score([(query, "grade 1") for query in sentences(40)])
    assert 1 < server.most_at_once <= module.CONCURRENCY


# --- Faults


@pytest.mark.parametrize(
    "faults",
    [
        [refuse(503)],
        [refuse(429), refuse(429, **{"Retry-After": "0.02"})],
        [refuse(500), hang_up],
        [says("The grade is 3.")],
        [says(None, refusal="I will not"), says('{"document_1": 7}')],
    ],
    ids=["503", "429", "lost", "prose", "refusal and 7"],
)
def test_a_passing_fault_is_asked_again(server: ChatServer, faults: list[Any]) -> None:
    server.faults = list(faults)
    assert load(server).score(graded(3)).tolist() == [1.0]
    assert len(server.requests) == len(faults) + 1


UNUSABLE = {
    "prose": (says("I would say: relevant."), "was not JSON.*'I would say: relevant"),
    "fenced": (says('```json\n{"document_1": 1}\n```'), "was not JSON"),
    "nothing": (says(None), "was not JSON"),
    "empty": (says(""), "was not JSON"),
    "a list": (says("[1, 2]"), "a JSON list, not an object"),
    "cut": (says('{"document_1": 1', "length"), "was cut at its limit of tokens"),
    "too few": (says('{"document_1": 1}'), r"had no document_2 \(1 were missing\)"),
    "too many": (
        says('{"document_1": 1, "document_2": 1, "document_3": 1}'),
        "unknown property 'document_3'",
    ),
    "twice": (says('{"document_1": 1, "document_1": 2, "document_2": 1}'), "a property twice"),
    "seven": (says('{"document_1": 1, "document_2": 7}'), "grade of document_2 was 7, not 0 to 3"),
    "negative": (says('{"document_1": -1, "document_2": 0}'), "grade of document_1 was -1"),
    "half": (says('{"document_1": 1.5, "document_2": 0}'), "grade of document_1 was 1.5"),
    "true": (says('{"document_1": true, "document_2": 0}'), "grade of document_1 was True"),
    "a word": (says('{"document_1": "3", "document_2": 0}'), "grade of document_1 was '3'"),
    "deep": (says("[" * 100_000), "was not JSON"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_answer_that_stays_unusable_is_an_error(server: ChatServer, name: str) -> None:
    fault, why = UNUSABLE[name]
    server.faults = [fault] * module.ATTEMPTS
    with pytest.raises(InputError, match=f"(?s){why}") as caught:
        load(server).score(graded(3, 1, query="how deep is the sea"))
    assert len(server.requests) == module.ATTEMPTS
    said = str(caught.value)
    assert "asked 3 times about 2 documents of the query 'how deep is the sea'" in said
    assert "Finished shards are kept" in said


DECLINES = {
    "refusal": says(None, refusal="I cannot do that"),
    "filter": says("", "content_filter"),
    "request": refuse(400, json.dumps({"error": {"code": "content_filter", "message": "policy"}})),
}


@pytest.mark.parametrize("name", DECLINES)
def test_a_document_that_the_judge_declines_has_no_score_and_the_others_have_theirs(
    server: ChatServer, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    server.declines = "grade 0", DECLINES[name]
    judge, told = load(server), []
    with judge.working(np.full(5, 10), np.array([0, 0, 0, 1, 1])):
        scores = judge.score(
            [*graded(3, 0, 1), *graded(2, 1, query="r")], lambda items, _: told.append(items)
        )
    np.testing.assert_allclose(scores, [1, np.nan, 1 / 3, 2 / 3, 1 / 3], atol=1e-6)
    assert sum(told) == 5, "progress counts each document once"
    asked = [user.count("\n\ndocument_") for user in server.users()]
    assert sorted(asked) == [1] * (2 + module.ATTEMPTS) + [2] + [3] * module.ATTEMPTS
    assert "declined to grade 1 of 5 documents" in caplog.messages[-1]
    with judge.working(np.full(1, 10), np.zeros(1)):
        judge.score(graded(3, query="s"))
    assert "has answered 1 request;" in caplog.messages[-1], "none of this work is declined"


def test_a_model_that_refuses_temperature_0_is_asked_at_its_own(
    server: ChatServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.faults = [refuse(400, "'temperature' does not support 0 with this model")]
    judge = load(server)
    assert judge.score(graded(3)).tolist() == [1.0]
    assert judge.score(graded(2, query="r")).tolist() == [np.float32(2 / 3)]
    assert [request.get("temperature") for request in server.requests] == [0, None, None]
    (said,) = [text for text in caplog.messages if "temperature" in text]
    assert "does not take temperature 0" in said
    server.faults = [refuse(400, "no temperature helps")] * 2
    with pytest.raises(InputError, match="400: 'no temperature helps"):
        judge.score(graded(1))


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (say(b"<html>"), "not JSON.*--teacher_url the base"),
        (say(b"{}"), r"no message but '\{\}'.*a chat endpoint"),
        (say(b'{"choices": []}'), "no message"),
        (say(b'{"choices": [{"message": "hm"}]}'), "no message"),
        (refuse(400, "unknown response_format"), "400: 'unknown response_format.*json_schema"),
        (refuse(404, "no such model"), "404: 'no such model'.*does it serve this model"),
    ],
    ids=["html", "nothing", "no choice", "no message", "400", "404"],
)
def test_another_form_is_not_asked_again(server: ChatServer, fault: Any, why: str) -> None:
    server.faults = [fault]
    with pytest.raises(InputError, match=why):
        load(server).score(graded(3))
    assert len(server.requests) == 1


def test_a_server_that_stays_away_or_silent_is_said(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_module, "RETRIES", 1)
    server.faults = [hang_up, hang_up]
    with pytest.raises(InputError, match=r"127\.0\.0\.1.*cannot be reached.*--teacher_url"):
        load(server).score(graded(1))
    monkeypatch.setattr(endpoint_module, "TIMEOUT", 0.2)
    server.faults = [slow(0.6), slow(0.6)]
    with pytest.raises(InputError, match=r"no answer within 0\.2 s, 2 times"):
        load(server).score(graded(1))
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9.*cannot be reached"):
        load(server, teacher_url="http://127.0.0.1:9/v1").score(graded(1))


def test_the_key_is_never_shown(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sk-very-secret")
    judge = load(server)
    assert "sk-very-secret" not in json.dumps(vars(judge), default=str)
    told = "you said sk-very-secret"
    for fault in (refuse(401, told), says(told), say(told.encode()),
                  says(json.dumps({told: 1})), say(json.dumps({told: told}).encode())):  # fmt: skip
        server.faults = [fault] * module.ATTEMPTS
        with (
            pytest.raises(InputError) as caught,
            judge.working(np.array([1]), np.array([0])),
        ):
            judge.score(graded(1))
        assert "sk-very" not in str(caught.value) + caplog.text
    server.faults = [refuse(401, told)]
    with pytest.raises(InputError, match=rf"401: 'you said \[key\]'. Set {KEY_VARIABLE}"):
        judge.score(graded(1))


def test_after_an_error_no_further_question_is_asked(server: ChatServer) -> None:
    server.seconds = 0.03
    server.faults = [refuse(404)] * 200
    with pytest.raises(InputError, match="Finished shards are kept"):
        load(server).score([(query, "d") for query in sentences(200)])
    assert len(server.requests) < 40


# --- What it is


def test_the_identity_is_server_model_and_prompt(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(server)
    assert first.identity == load(server).identity
    others = [load(server, teacher="other").identity]
    monkeypatch.setattr(chat_judge, "PROMPT_VERSION", 2)
    others.append(load(server).identity)
    assert len({json.dumps(identity) for identity in [first.identity, *others]}) == 3
    assert str(first.scale) == "judge through grade / 3, in [0, 1]"


def test_it_needs_an_address_and_reads_no_prompt(server: ChatServer) -> None:
    with pytest.raises(InputError, match="--teacher_kind chat-judge needs --teacher_url"):
        load_chat_judge(recipe_of(teacher_kind="chat-judge"))
    keys = {"teacher_kind": "chat-judge", "teacher_url": server.url, "query_prompt": "q: "}
    with pytest.raises(InputError, match=r"--query_prompt q: .*--teacher_kind chat-judge"):
        load_teacher(recipe_of(**keys))
    assert not server.requests, "nothing is asked before the scoring"


# --- In a run


@pytest.fixture
def line(server: ChatServer, backbone_dir: Path) -> list[object]:
    """What makes a judge the teacher of the tiny run, up to its scores."""
    return [
        "--teacher_kind", "chat-judge", "--teacher", "judge", "--teacher_url", server.url,
        "--student_backbone", backbone_dir, "--student_init", "random", "--alignment_weight", 0,
        "--regression_on", "diagonal", "--selection", "none", "--until", "score",
    ]  # fmt: skip


def test_a_run_is_judged(
    tiny: Path, tmp_path: Path, server: ChatServer, line: list[object], pairs_file: Path
) -> None:
    run = tmp_path / "run"
    said = run_tiny(tiny, run, *line)
    rows = [json.loads(text) for text in (run / "teacher_soft_labels.json").read_text()
            .replace("[\n", "").replace("\n]\n", "").split(",\n")]  # fmt: skip
    assert len(rows) == 200
    for row in rows:
        shared = len(set(row["query"].split()) & set(row["document"].split()))
        assert row["teacher_score"] == pytest.approx(min(3, shared) / 3, abs=1e-6)
    agrees = sum(row["teacher_score"] > 0.5 for row in rows)
    assert 0 < agrees < 200
    assert f"the judge gives {agrees} of 200 pairs ({agrees / 200:.0%}) a grade of 2 or 3" in (
        " ".join(said.out.split())
    )
    record = read_result(run / "soft_labels" / "manifest.json", SoftLabels)
    assert (record.teacher_kind, record.dimension) == ("chat-judge", None)
    asked = len(server.requests)
    run_tiny(tiny, run, *line)
    assert len(server.requests) == asked == 200


def test_a_run_that_broke_off_asks_nothing_twice_but_the_shard_in_work(
    tiny: Path, tmp_path: Path, server: ChatServer, line: list[object],
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(chat_judge, "SHARD_PAIRS", 50)
    run = tmp_path / "run"
    server.kill_after = 120
    said = call([tiny, "--run_dir", run, *line])
    assert said.code == 2
    assert "400: 'not now'" in said.err
    assert len(list((run / "soft_labels" / "pairs").glob("*.arrow"))) == 2
    server.kill_after = None
    before = set(server.users()[:100])  # of the two shards that are whole
    server.requests.clear()
    caplog.clear()
    run_tiny(tiny, run, *line)
    assert len(server.requests) == 100
    assert not before & set(server.users())
    assert any("will be asked 100 requests" in text for text in caplog.messages)


def test_documents_of_one_query_stay_together(
    tiny: Path, tmp_path: Path, server: ChatServer, line: list[object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Shards are cut in the order of the queries: sorted by length, four documents of a query would
    be in four shards.
    """
    monkeypatch.setattr(chat_judge, "SHARD_PAIRS", 16)
    path = tmp_path / "lists.jsonl"
    documents = sentences(160, 3000)
    rows = [
        {"query": query, "document": " ".join([documents[4 * i + j]] * (1 + j)), "topic": i}
        for i, query in enumerate(sentences(40))
        for j in range(4)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_tiny(tiny, tmp_path / "run", *line, "--dataset_path", path)
    assert len(list((tmp_path / "run" / "soft_labels" / "pairs").glob("*.arrow"))) == 10
    assert [user.count("\n\ndocument_") for user in server.users()] == [4] * 40
