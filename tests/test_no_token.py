"""No token in any file or log: of a run, of publishing, of every publishing that fails."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from chat_server import running_chat, says
from conftest import Said, call, sentences
from embeddings_server import Endpoint, refuse, running_endpoint, say
from hub_server import READ_TOKEN, SCOPED_TOKEN, TOKEN, Fault, Hub, running_hub
from sentence_transformers import SentenceTransformer

from hf_distill.commands.main import main
from hf_distill.commands.train import main as train
from hf_distill.compute.endpoint import KEY_VARIABLE
from hf_distill.release import access
from hf_distill.release import publish as release_module

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:Use 'content="),  # the client's own, of its HTTP library
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # broken sockets
]

KEY = "sk-endpointkeyendpointkeyendpointkey"
PUSH = ("--push_to_hub", "true", "--hub_model_id", "you/student", "--hub_dataset_id", "you/pairs")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A Hub that this process takes for the Hub. This machine has no token of its own."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")  # of the process that loads back
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(access, "WAITS", [0])
    with running_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        yield hub


Saying = Callable[..., Said]


@pytest.fixture
def saying(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Saying:
    """Run a program, with everything that it and its libraries say."""

    def run(line: list[object], program: Callable[[list[str]], int] = main) -> Said:
        with caplog.at_level(logging.DEBUG):
            said = call(line, program)
        rest = capfd.readouterr()
        ours = [r.getMessage() for r in caplog.records if r.name.startswith("hf_distill")]
        return Said(said.code, said.out + rest.out, said.err + rest.err + "\n".join(ours))

    return run


def holders(secret: str, said: Said, *folders: Path) -> list[str]:
    """Where `secret`, or a half of it, is: files below the folders, by their bytes and their names,
    and what was said.
    """
    halves = [part.encode() for part in (secret[:20], secret[-20:])]
    found = [
        str(path)
        for folder in folders
        for path in folder.rglob("*")
        if any(h in path.name.encode() for h in halves)
        or (path.is_file() and any(h in path.read_bytes() for h in halves))
    ]
    text = (said.out + said.err).encode()
    return found + ["what was said"] * any(half in text for half in halves)


def sent(hub: Hub) -> bytes:
    """Every file of every commit."""
    commits = [files for repo in hub.repos.values() for _, files in repo.commits]
    return b"\n".join(content for files in commits for content in files.values())


@pytest.mark.parametrize("way", ["HF_TOKEN", "--hub_token", "the recipe"])
def test_a_run_that_publishes_writes_its_token_nowhere(
    tiny: Path, tmp_path: Path, hub: Hub, saying: Saying, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    run, line = tmp_path / "run", list(PUSH)
    recipe = tmp_path / "recipes" / tiny.name
    recipe.parent.mkdir()
    recipe.write_bytes(tiny.read_bytes())
    if way == "HF_TOKEN":
        monkeypatch.setenv("HF_TOKEN", TOKEN)
    elif way == "--hub_token":
        line += ["--hub_token", TOKEN]
    else:
        content = yaml.safe_load(tiny.read_text())
        recipe.write_text(yaml.safe_dump({**content, "hub_token": TOKEN}))
    said = saying([recipe, "--run_dir", run, "--teacher_cache", tmp_path / "cache", *line], train)
    assert said.code == 0, said.err[-2000:]
    assert said.out.count("Published: ") == 2
    assert not holders(TOKEN, said, run, tmp_path / "cache")
    assert list(run.glob("checkpoints/*/checkpoint-*/*")), "checkpoints were looked at"
    assert TOKEN.encode() not in sent(hub)


def failing() -> Iterator[tuple[str, list[Fault], str]]:
    """Name, faults and token of everything that can go wrong; the Hub's answers hold the token."""
    places = {
        "whoami": r"whoami", "create": r"POST /api/repos/create", "look": r"GET /api/(models|data)",
        "tree": r"GET .*/tree/", "refs": r"GET .*/refs", "validate": r"POST .*/validate-yaml",
        "preupload": r"POST .*/preupload/", "batch": r"POST .*/objects/batch",
        "store": r"PUT /storage/", "verify": r"POST .*/verify", "commit": r"POST .*/commit/",
        "collection": r"POST /api/collections", "settings": r"PUT .*/settings",
    }  # fmt: skip
    for name, where in places.items():
        for status in (503, 403, None) if name == "commit" else (400,):
            body = json.dumps({"error": f"no: Authorization: Bearer {TOKEN}"}).encode()
            yield f"{name} {status}", [Fault(where, status, times=99, body=body)], TOKEN
    yield "html", [Fault(r"POST .*/commit/", 502, times=99, body=f"<b>{TOKEN}".encode())], TOKEN
    for token in (READ_TOKEN, SCOPED_TOKEN, "hf_wrongtokenwrongtokenwrongtoken"):
        yield f"token {token}", [], token


@pytest.mark.parametrize("way", ["HF_TOKEN", "the recipe"])
def test_no_failing_publish_shows_or_keeps_the_token(
    copied: Path, hub: Hub, saying: Saying, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "the recipe":  # it is not obeyed there, so nothing can be published with it
        with (copied / "recipe.yaml").open("a") as file:
            file.write(f"hub_token: {TOKEN}\n")
    line = ["publish", copied, "--model", "you/student", "--dataset", "you/pairs", "--private",
            "--gated", "auto", "--collection", "Distilled"]  # fmt: skip
    # What comes after it fails, and it is in a process of its own, which takes seconds.
    monkeypatch.setattr(release_module, "load_back", lambda *_: [])
    before = len(hub.requests)
    for name, faults, token in failing():
        hub.repos.clear()
        hub.stored.clear()
        hub.faults[:] = faults
        if way == "HF_TOKEN":
            monkeypatch.setenv("HF_TOKEN", token)
        said = saying(line)
        assert (name, said.code in (1, 2)) == (name, True), said.err[-2000:]
        assert (name, "error: " in said.err, "Traceback" in said.err) == (name, True, False), said
        folders = [path for path in copied.iterdir() if path.is_dir()]
        assert not holders(token, said, *folders), name
        assert token.encode() not in sent(hub)
        if way != "HF_TOKEN":
            break
    assert (len(hub.requests) > before) == (way == "HF_TOKEN")


def test_what_differs_on_the_hub_is_said_without_the_token(
    copied: Path, hub: Hub, saying: Saying, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.corrupt = True
    line = ["publish", copied, "--model", "you/student"]
    said = saying(line)
    assert (said.code, "model.safetensors" in said.err) == (1, True)
    assert not holders(TOKEN, said, copied)
    hub.corrupt = False
    for fault in (r"GET .*/resolve/", r"POST .*/tag/"):
        if "tag" in fault:  # it is loaded back before that
            monkeypatch.setattr(release_module, "load_back", lambda *_: [])
        hub.repos.clear()
        hub.stored.clear()
        body = json.dumps({"error": f"Bearer {TOKEN}"}).encode()
        hub.faults[:] = [Fault(fault, 403, times=99, body=body)]
        said = saying(line)
        assert (fault, said.code) == (fault, 1), said.err[-2000:]
        assert not holders(TOKEN, said, copied), fault


@pytest.mark.parametrize(
    "line",
    [
        f"--teacher_kind endpoint --teacher_url http://me:{TOKEN}@localhost/v1",
        f"--teacher_kind endpoint --teacher_url http://localhost/v1?token={TOKEN}",
        f"--teacher_kind endpoint --teacher_url http://{TOKEN}@localhost/v1",
        f"--teacher_kind rerank-endpoint --teacher_url http://me:{TOKEN}@localhost/v1",
        f"--teacher_kind rerank-endpoint --teacher_url http://localhost/rerank?token={TOKEN}",
        f"--teacher_kind chat-judge --teacher_url http://me:{TOKEN}@localhost/v1",
        f"--dataset generate --chat_model m --chat_url http://localhost/v1?key={TOKEN}",
        f"--dataset_path https://me:{TOKEN}@localhost/pairs.jsonl",
        f"--dataset_path https://localhost/pairs.jsonl?token={TOKEN}",
        f"--dataset auto --dataset_path none --sources a=https://me:{TOKEN}@localhost/p.jsonl",
        f"--teacher https://me:{TOKEN}@localhost/model",
        f"--hub_token {TOKEN} --push_to_hub maybe",
        f"--hub_token {TOKEN} {TOKEN}",
        f"--hub_token {TOKEN} --max_steps 0",
        f"--hub_tokens {TOKEN}",
        f"--token {TOKEN}",
        f"--hub_token {TOKEN} --run_dir /proc/x",
        f"--hub_token={TOKEN} --push_to_hub true",
    ],
)
def test_a_refused_call_does_not_show_a_token(
    tiny: Path, tmp_path: Path, saying: Saying, line: str
) -> None:
    said = saying([tiny, "--run_dir", tmp_path / "run", *line.split()], train)
    assert said.code == 2, said.err[-2000:]
    assert "Traceback" not in said.err
    assert not holders(TOKEN, said, tmp_path)


@pytest.fixture
def endpoint(teacher_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    pytest.importorskip("openai", reason="openai, the extra `endpoint`, is not installed")
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    teacher = SentenceTransformer(str(teacher_dir), device="cpu")
    with running_endpoint(lambda texts: teacher.encode(texts).tolist()) as endpoint:
        yield endpoint


def test_the_key_of_an_endpoint_is_in_no_file_and_no_message(
    tiny: Path, tmp_path: Path, endpoint: Endpoint, backbone_dir: Path, saying: Saying
) -> None:
    run = tmp_path / "run"
    line: list[Any] = [
        tiny, "--run_dir", run, "--teacher_kind", "endpoint", "--teacher", "tiny",
        "--teacher_url", endpoint.url, "--student_backbone", backbone_dir,
    ]  # fmt: skip
    echoed = f"Authorization: Bearer {KEY}"
    for number in (0, 70, 255, 262):  # however a message is cut
        for fault in (refuse(401, "x" * number + echoed), say(b"x" * number + echoed.encode()),
                      say(json.dumps({"x" * number: echoed}).encode())):  # fmt: skip
            endpoint.faults[:] = [fault] * 10
            said = saying(line, train)
            assert said.code == 2
            assert not holders(KEY, said, run)
    endpoint.faults.clear()
    said = saying(line, train)
    assert said.code == 0, said.err[-2000:]
    assert any(re.search(KEY, str(request["authorization"])) for request in endpoint.requests)
    assert not holders(KEY, said, run)


def test_the_key_of_a_chat_endpoint_is_in_no_file_and_no_message(
    tiny: Path, tmp_path: Path, backbone_dir: Path, saying: Saying, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openai", reason="openai, the extra `endpoint`, is not installed")
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    documents = tmp_path / "documents.jsonl"
    documents.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(80)))
    echoed = f"Authorization: Bearer {KEY}"

    def answer(user: str, names: list[str]) -> dict[str, Any]:
        words = user.split()
        if names[0].startswith("document_"):
            return dict.fromkeys(names, len(words) % 4)
        return {name: " ".join(words[i : i + 5]) for i, name in enumerate(names)}

    with running_chat(answer) as chat:
        line: list[Any] = [
            tiny, "--run_dir", tmp_path / "run", "--teacher_kind", "chat-judge", "--teacher", "m",
            "--teacher_url", chat.url, "--student_backbone", backbone_dir, "--student_init",
            "random", "--alignment_weight", 0, "--regression_on", "diagonal", "--selection", "none",
            "--num_train_epochs", 1, "--group_column", "none", "--dataset", "generate",
            "--dataset_path", documents, "--chat_url", chat.url, "--chat_model", "m",
        ]  # fmt: skip
        for number in (0, 255, 290):  # however a message is cut
            text = "x" * number + echoed
            for fault in (refuse(401, text), say(text.encode()), says(text),
                          says(json.dumps({text: text})),
                          say(json.dumps({text: text}).encode())):  # fmt: skip
                chat.faults[:] = [fault] * 30
                said = saying([*line, "--until", "read"], train)  # it comes no further anyway
                assert said.code == 2
                assert not holders(KEY, said, tmp_path)
        chat.faults[:] = [says(None, refusal=echoed)] * 30  # a few documents are declined: no error
        said = saying(line, train)
        assert said.code == 0, said.err[-2000:]
        assert {request["authorization"] for request in chat.requests} == {f"Bearer {KEY}"}
        assert not holders(KEY, said, tmp_path)
