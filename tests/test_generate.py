"""Queries that a language model writes, against a real HTTP server on loopback."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forked
import pytest
from chat_server import ChatServer, running_chat, says, slow
from conftest import call, recipe_of, run_tiny, sentences
from embeddings_server import hang_up, refuse

from hf_distill.commands.train import main as train
from hf_distill.compute import chat
from hf_distill.compute import endpoint as endpoint_module
from hf_distill.compute.endpoint import KEY_VARIABLE
from hf_distill.data.collection import Collection
from hf_distill.data.load import load_collection, open_collection
from hf_distill.data.sources import generate
from hf_distill.data.sources.generate import KINDS, names_of
from hf_distill.errors import InputError
from hf_distill.recipe.read import read_recipe
from hf_distill.run.folder import RunFolder


def queries_for(user: str, names: list[str]) -> dict[str, str]:
    """Four words of the document, elsewhere in it for each query."""
    words = user.split()
    return {
        name: " ".join([*words[2 * i : 2 * i + 4], name.partition("_")[2]])
        for i, name in enumerate(names)
    }


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with running_chat(queries_for) as running:
        yield running


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """A hundred documents, one a line."""
    return table(tmp_path / "documents.jsonl", sentences(100))


def table(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def load(server: ChatServer, path: Path, run: Path, **keys: Any) -> Collection:
    ours: dict[str, Any] = {
        "dataset": "generate", "dataset_path": path, "chat_url": server.url, "chat_model": "writer",
        "run_dir": run, "max_pairs": None, "test_fraction": 0.3, "validation_fraction": 0,
        "eval_strategy": "no",
    }  # fmt: skip
    return load_collection(recipe_of("quickstart", **ours | keys), RunFolder(run))


def pairs_of(collection: Collection) -> list[dict[str, Any]]:
    columns = ("query", "document", "source", "group")
    return [
        dict(zip(columns, values, strict=True))
        for batch in collection.every_pair().batches(*columns)
        for values in zip(*(batch[name] for name in columns), strict=True)
    ]


# --- What is asked and what becomes of it


def test_every_document_gets_a_query_of_each_kind(
    server: ChatServer, documents: Path, tmp_path: Path
) -> None:
    collection = load(server, documents, tmp_path / "run")
    pairs = pairs_of(collection)
    texts = sentences(100)
    assert sorted(server.users()) == sorted(texts)
    written = {
        (query, text, name.partition("_")[0])
        for text in texts
        for name, query in queries_for(text, names_of(4)).items()
    }
    assert {(pair["query"], pair["document"], pair["source"]) for pair in pairs} == written
    assert Counter(pair["source"] for pair in pairs) == dict.fromkeys(KINDS, 100)
    assert collection.record.read == {"queries found": 400, "kept": 400}
    assert collection.source.queries_by == "writer"
    assert len(collection.searched) == 100, "held-out queries search every document"
    by_document: dict[str, set[str]] = {}
    splits = zip(collection.judgements["split"], pairs, strict=True)
    for split, pair in splits:
        by_document.setdefault(pair["document"], set()).add(split)
    assert {len(of) for of in by_document.values()} == {1}
    assert {"train", "test"} <= set(collection.judgements["split"])


def test_what_is_sent(server: ChatServer, documents: Path, tmp_path: Path) -> None:
    load(server, documents, tmp_path / "run", queries_per_document=6)
    request = server.requests[0]
    assert (request["path"], request["model"], request["temperature"]) == (
        "/v1/chat/completions", "writer", 0,
    )  # fmt: skip
    schema = request["response_format"]["json_schema"]["schema"]
    names = ["question_1", "keywords_1", "title_1", "claim_1", "question_2", "keywords_2"]
    assert schema["properties"] == {name: {"type": "string"} for name in names}
    assert (schema["required"], schema["additionalProperties"]) == (names, False)
    assert request["messages"][0] == {"role": "system", "content": generate.SYSTEM}


def test_queries_that_cannot_be_used_are_left_out_and_counted(
    server: ChatServer, tmp_path: Path
) -> None:
    texts = sentences(30)
    answers = {text: queries_for(text, names_of(4)) for text in texts}
    answers[texts[0]] |= {"question_1": "  \n", "keywords_1": f" {texts[0].upper()}! "}
    answers[texts[1]] |= {"title_1": f" {answers[texts[1]]['question_1']}? "}
    same = ("where is it", "Where is it?", "where  is it")
    for text, query in zip(texts[2:5], same, strict=True):
        answers[text] |= {"claim_1": query}
    answers[texts[5]] |= {"claim_1": "half \ud800 a character"}
    server.says = lambda user, _: answers[user]
    collection = load(server, table(tmp_path / "d.jsonl", texts), tmp_path / "run")
    assert collection.record.read == {
        "queries found": 120, "kept": 113, "empty": 1, "same as its document": 1,
        "repeated for its document": 1, "same for several documents": 3, "invalid Unicode": 1,
    }  # fmt: skip
    queries = [pair["query"] for pair in pairs_of(collection)]
    assert len(set(queries)) == len(queries) == 113
    assert all(query == query.strip() for query in queries)


def test_documents_that_cannot_be_used_are_counted(server: ChatServer, tmp_path: Path) -> None:
    long = " ".join(sentences(200))
    texts = [*sentences(30, 500), "", "half \ud800", *sentences(2, 500), long]
    collection = load(server, table(tmp_path / "d.jsonl", texts), tmp_path / "run")
    assert collection.record.unused == {
        "documents without text": 1, "documents with invalid Unicode": 1,
        "documents that repeat another one": 2,
        "documents that the model read 8,000 characters of": 1,
    }  # fmt: skip
    assert len(server.requests) == 31
    assert max(map(len, server.users())) == generate.DOCUMENT_CHARACTERS
    assert long in {pair["document"] for pair in pairs_of(collection)}, "the pair has all of it"


def test_max_pairs_limits_what_is_asked(
    server: ChatServer, documents: Path, tmp_path: Path
) -> None:
    collection = load(server, documents, tmp_path / "run", max_pairs=82)
    assert len(server.requests) == 21
    assert (len(collection.judgements), len(collection.searched)) == (84, 100)
    assert collection.record.unused == {"documents beyond max_pairs, without queries": 79}
    again = load(server, documents, tmp_path / "more", max_pairs=164)
    assert set(server.users()[21:]) > set(server.users()[:21]), "more of the same order"
    assert len(again.judgements) == 164


def test_a_folder_of_files_is_cut_into_passages(server: ChatServer, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for number in range(20):
        text = "\n\n".join(sentences(3, 3 * number))
        (folder / f"{number:02}.md").write_text(text)
    collection = load(server, folder, tmp_path / "run", student_max_length=20)
    pairs = pairs_of(collection)
    assert len(server.requests) == len({pair["document"] for pair in pairs}) == 60
    assert {pair["group"] for pair in pairs} == {f"{number:02}.md" for number in range(20)}


def test_what_cannot_be_read_is_refused(server: ChatServer, tmp_path: Path) -> None:
    path = tmp_path / "two.jsonl"
    path.write_text('{"english": "a red cat", "translation": "eine rote Katze"}\n' * 9)
    with pytest.raises(InputError, match=r"needs one text a document.*--text_column"):
        load(server, path, tmp_path / "run")
    with pytest.raises(InputError, match="has no document with a text"):
        load(server, table(tmp_path / "d.jsonl", ["", " "]), tmp_path / "run")
    with pytest.raises(InputError, match="--dataset generate needs --dataset_path"):
        load(server, None, tmp_path / "run")  # type: ignore[arg-type]
    assert not server.requests
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"chat_url": None}, "--dataset generate needs --chat_url"),
        ({"chat_model": None}, "--dataset generate needs --chat_model"),
        ({"chat_url": "http://me:secret@h/v1"}, f"--chat_url has a user.*{KEY_VARIABLE}"),
        ({"chat_url": "localhost:80"}, "--chat_url localhost:80 is not an address"),
        ({"queries_per_document": 0}, "--queries_per_document 0: it must be a number from 1"),
        ({"source_column": "text"}, "--source_column text has no effect with --dataset generate"),
        ({"sources": "a=b", "dataset_path": None}, "--dataset generate: --sources says"),
        ({"dataset": "files"}, "--chat_url .* has no effect with --dataset files"),
        ({"dataset": "files", "chat_url": None}, "--chat_model writer has no effect"),
        ({"format": "beir"}, "--format beir contradicts --dataset generate"),
    ],
)
def test_keys_that_do_not_fit_are_refused(
    server: ChatServer, documents: Path, tmp_path: Path, keys: dict[str, Any], why: str
) -> None:
    with pytest.raises(InputError, match=why) as caught:
        load(server, documents, tmp_path / "run", **keys)
    assert "secret" not in str(caught.value)
    assert not server.requests


def test_the_packages_recipe_is_read_and_filters_by_rank() -> None:
    recipe = read_recipe(["generate"])
    assert recipe.data.dataset == "generate"
    assert any(rule.startswith("rank=") for rule in recipe.selection.selection)


# --- Faults


def test_passing_faults_are_asked_again(
    server: ChatServer, documents: Path, tmp_path: Path
) -> None:
    server.faults = [refuse(503), refuse(429, **{"Retry-After": "0.02"}), hang_up, says("Sure!"),
                     says(None, refusal="no"), says('{"question_1": "a', "length")]  # fmt: skip
    assert len(load(server, documents, tmp_path / "run").judgements) == 400
    assert len(server.requests) == 106


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (says("Here are four queries: ..."), "not JSON.*'Here are four"),
        (says('{"question_1": "who', "length"), "cut at its limit"),
        (says('{"question_1": "who"}'), r"no keywords_1 \(3 were missing\)"),
        (says(json.dumps(dict.fromkeys([*names_of(4), "poem_1"], "a"))), "unknown.*'poem_1'"),
        (says(json.dumps(dict.fromkeys(names_of(4), 7))), "question_1 was a int, not a text"),
        (refuse(401, "sk-very-secret is no key"), r"401: '\[key\] is no key'. Set OPENAI_API_KEY"),
    ],
    ids=["prose", "cut", "too few", "too many", "numbers", "401"],
)
def test_a_fault_that_stays_is_an_error(
    server: ChatServer, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    fault: Any, why: str,
) -> None:  # fmt: skip
    monkeypatch.setenv(KEY_VARIABLE, "sk-very-secret")
    monkeypatch.setattr(chat, "CONCURRENCY", 1)
    server.faults = [fault] * chat.ATTEMPTS
    with pytest.raises(InputError, match=why) as caught:
        load(server, documents, tmp_path / "run")
    said = str(caught.value)
    assert "sk-very" not in said
    assert "Finished shards are kept; run again to continue" in said
    if "401" not in why:
        assert f"asked 3 times about the document {sentences(1)[0]!r}"[:60] in said


def test_a_document_that_the_model_declines_is_counted_and_not_asked_about_again(
    server: ChatServer, documents: Path, tmp_path: Path
) -> None:
    declined = sentences(100)[3]
    server.declines = declined, says(None, refusal="I would rather not")
    collection = load(server, documents, tmp_path / "run")
    assert collection.record.read == {"queries found": 396, "kept": 396}
    why = "documents that the model declined to write queries for"
    assert collection.record.unused[why] == 1
    assert declined not in {pair["document"] for pair in pairs_of(collection)}
    assert len(server.requests) == 99 + chat.ATTEMPTS
    server.declines = None
    load(server, documents, tmp_path / "run")
    assert len(server.requests) == 99 + chat.ATTEMPTS


def test_a_server_that_is_silent_is_said(
    server: ChatServer, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_module, "RETRIES", 0)
    monkeypatch.setattr(endpoint_module, "TIMEOUT", 0.2)
    server.faults = [slow(0.6)] * 8
    with pytest.raises(InputError, match=r"no answer within 0\.2 s, 1 times"):
        load(server, documents, tmp_path / "run")


# --- What was written is kept


def test_nothing_is_asked_twice_but_the_shard_in_work(
    server: ChatServer, documents: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(generate, "SHARD_DOCUMENTS", 30)
    run = tmp_path / "run"
    server.kill_after = 70
    with pytest.raises(InputError, match="400: 'not now'"):
        load(server, documents, run)
    assert {path.name for path in run.iterdir()} <= {"generated", "cache"}
    assert len(list((run / "generated").glob("*.arrow"))) == 2
    assert "will be asked 100 requests" in caplog.messages[0]
    assert "has answered 70 requests; the server reports 700 tokens read" in caplog.messages[1]
    server.kill_after = None
    before = set(server.users()[:60])
    server.requests.clear()
    collection = load(server, documents, run)
    assert len(server.requests) == 40
    assert not before & set(server.users())
    assert collection.record.read == {"queries found": 400, "kept": 400}
    assert {pair["query"] for pair in pairs_of(collection)} == {
        query for text in sentences(100) for query in queries_for(text, names_of(4)).values()
    }


def test_only_another_document_model_prompt_or_number_is_asked(
    server: ChatServer, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(number: int, **keys: Any) -> int:
        before = len(server.requests)
        keys = {"teacher_cache": tmp_path / "cache", **keys}
        load(server, documents, tmp_path / f"run{number}", **keys)
        return len(server.requests) - before

    assert asked(1) == 100
    assert not (tmp_path / "run1" / "generated").exists()
    assert asked(2) == 0
    assert asked(3, seed=7, test_fraction=0.5, chat_url=server.url + "/") == 0
    table(documents, [*sentences(3, 700), *sentences(100)])
    assert asked(4) == 3
    assert asked(5, chat_model="other") == 103
    assert asked(6, queries_per_document=2) == 103
    monkeypatch.setattr(generate, "PROMPT_VERSION", 2)
    assert asked(7) == 103


def test_a_damaged_file_is_written_again(
    server: ChatServer, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "SHARD_DOCUMENTS", 40)
    run = tmp_path / "run"
    load(server, documents, run)
    path = sorted((run / "generated").glob("*.arrow"))[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    server.requests.clear()
    again = load(server, documents, run, test_fraction=0.5)
    assert again.record.read == {"queries found": 400, "kept": 400}
    assert len(server.requests) in (20, 40), "one shard of 40, 40 and 20"


def test_another_address_of_the_model_makes_nothing_again(
    server: ChatServer, documents: Path, tmp_path: Path
) -> None:
    key = load(server, documents, tmp_path / "run").key
    assert load(server, documents, tmp_path / "run", chat_url="http://127.0.0.1:9/v1").key == key
    assert len(server.requests) == 100


def train_in_small_shards(line: list[str]) -> int:
    generate.SHARD_DOCUMENTS = 20
    return train(line)


def test_a_killed_process_has_paid_for_all_but_the_shard_in_work(
    tiny: Path, server: ChatServer, documents: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    line = [str(token) for token in (
        tiny, "--run_dir", run, "--dataset", "generate", "--dataset_path", documents,
        "--group_column", "none", "--chat_url", server.url, "--chat_model", "writer",
        "--until", "read",
    )]  # fmt: skip
    server.seconds = 0.1
    process = forked.start(tmp_path / "log", train_in_small_shards, line)
    while len(server.requests) < 50:
        assert process.is_alive(), "it ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.join()
    server.seconds = 0
    whole = len(list((run / "generated").glob("*.arrow")))
    assert whole >= 2
    time.sleep(0.5)  # what it had sent may still come in
    before = set(server.users()[: 20 * whole])
    server.requests.clear()
    said = call(line)
    assert said.code == 0, said.err[-2000:]
    assert len(server.requests) == 100 - 20 * whole
    assert not before & set(server.users())


# --- In a run


@pytest.fixture
def line(server: ChatServer, documents: Path) -> list[object]:
    return [
        "--dataset", "generate", "--dataset_path", documents, "--group_column", "none",
        "--chat_url", server.url, "--chat_model", "/models/writer-7b",
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_a_run_keeps_queries_whose_document_the_teacher_finds(
    tiny: Path, tmp_path: Path, server: ChatServer, line: list[object]
) -> None:
    run = tmp_path / "run"
    said = run_tiny(tiny, run, *line, "--selection", "rank=20", "--until", "select")
    assert "queries found 400, kept 400" in said.out
    audit = json.loads((run / "selection.json").read_text())
    (rule,) = audit["rules"]
    assert rule["rule"] == "rank=20"
    assert 0 < rule["dropped"] < rule["pairs_in"]
    collection = open_collection(RunFolder(run))
    assert collection.source.queries_by == "/models/writer-7b"
    run_tiny(tiny, run, *line, "--selection", "rank=20", "--num_train_epochs", 1)
    assert len(server.requests) == 100
    card = (run / "dataset" / "README.md").read_text()
    for text in ("A language model, `writer-7b`, wrote the queries", "| queries found | 400 |",
                 "- synthetic", "chat_model: writer-7b"):  # fmt: skip
        assert text in card, text
    assert "/models" not in card
    assert server.url not in card
    model_card = " ".join((run / "student_model_sd" / "README.md").read_text().split())
    assert "A language model, `writer-7b`, wrote the queries" in model_card
    assert "/models" not in model_card


def test_a_first_call_that_fails_leaves_what_was_written(
    tiny: Path, tmp_path: Path, server: ChatServer, line: list[object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(generate, "SHARD_DOCUMENTS", 30)
    run = tmp_path / "run"
    server.kill_after = 65
    said = call([tiny, "--run_dir", run, *line, "--until", "read"])
    assert (said.code, "Finished shards are kept" in said.err) == (2, True)
    server.kill_after = None
    server.requests.clear()
    run_tiny(tiny, run, *line, "--until", "read")
    assert len(server.requests) == 40
