"""A student in other runtimes: what differs is seen, and why it differs is said."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import chromium
from conftest import call
from embeddings_server import Endpoint, embeddings_body, running_server
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, StaticEmbedding

from hf_distill.commands.main import main
from hf_distill.errors import InputError
from hf_distill.finished_run import finished
from hf_distill.release import model_card
from hf_distill.release.mistakes import Sent, likely_reason
from hf_distill.release.onnx import export_onnx
from hf_distill.release.parity import (
    Attempt,
    Student,
    Texts,
    _FailedError,
    _run,
    attempts_of,
    compare,
    recall_at_10,
    reference,
    texts_of,
    verify,
)
from hf_distill.release.probes import KINDS, PROBES
from hf_distill.release.runtimes.table import RUNTIMES, Runtime
from hf_distill.release.served import connect
from hf_distill.report.page import write_report
from hf_distill.report.parity import Compared, Parity, measured_parity
from hf_distill.run.stage import read_result
from hf_distill.student.save import save_student

PROMPTS = {"query": "who ", "document": "book of "}
TEXTS = texts_of(None)
FEW = PROBES[::5]
"""Of every kind."""
Embed = Callable[[list[str]], np.ndarray]


@pytest.fixture(scope="module")
def student(backbone_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Student:
    """Mean pooling, a head and prompts, cut at 24 tokens; exported to ONNX."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("verify") / "student"
    head = Dense(32, 16, activation_function=torch.nn.Identity())
    modules = [Transformer(str(backbone_dir)), Pooling(32, pooling_mode="mean"), head, Normalize()]
    model = SentenceTransformer(modules=modules, device="cpu", prompts=PROMPTS)
    model.max_seq_length = 24
    model.tokenizer.init_kwargs["max_length"] = 8  # as a teacher's tokenizer may say of its own
    save_student(model.eval(), folder)
    export_onnx(folder)
    return Student(folder, SentenceTransformer(str(folder), device="cpu"), None)


@pytest.fixture(scope="module")
def expected(student: Student) -> np.ndarray:
    """The right embeddings of `FEW`."""
    every = slice(0, len(FEW))
    return reference(student, Texts(list(FEW), list(FEW), "few", every, every))


def wrong(
    student: Student, parts: Sequence[Any], prompts: tuple[str, str] = ("who ", "book of ")
) -> np.ndarray:
    """All texts by a model of other parts, or with other prompts."""
    model = SentenceTransformer(modules=list(parts), device="cpu")
    query, document = prompts
    texts = [query + text for text in FEW] + [document + text for text in FEW]
    return model.encode(texts, show_progress_bar=False)


def cut(student: Student, limit: int) -> np.ndarray:
    own, student.model.max_seq_length = student.model.max_seq_length, limit
    try:
        return wrong(student, list(student.model))
    finally:
        student.model.max_seq_length = own


def endless(student: Student) -> np.ndarray:
    """As transformers.js cuts: special tokens are added first."""
    first, rows = student.model[0], []
    for text in ["who " + text for text in FEW] + ["book of " + text for text in FEW]:
        ids = first.tokenizer(text)["input_ids"][:24]
        tokens = torch.tensor([ids])
        state = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        with torch.inference_mode():
            rows.append(student.model(state)["sentence_embedding"][0].numpy())
    return np.stack(rows)


MISTAKES: dict[str, Callable[[Student, Any, Any, Any], np.ndarray]] = {
    "the Dense head is missing": lambda s, first, mean, _: wrong(s, [first, mean, Normalize()]),
    "it pools the CLS token, not the mean": lambda s, first, _, head: wrong(
        s, [first, Pooling(32, pooling_mode="cls"), head, Normalize()]
    ),
    "the Dense head is missing and it pools the CLS token, not the mean": lambda s, first, *_: (
        wrong(s, [first, Pooling(32, pooling_mode="cls"), Normalize()])
    ),
    "embeddings are not normalised": lambda s, first, mean, head: wrong(s, [first, mean, head]),
    "the prompts are missing": lambda s, *_: wrong(s, list(s.model), ("", "")),
    "the prompts stand twice": lambda s, *_: wrong(s, list(s.model), ("who who ", "book of " * 2)),
    "queries get the prompt of documents": lambda s, *_: wrong(s, list(s.model), ("book of ",) * 2),
    "documents get the prompt of queries": lambda s, *_: wrong(s, list(s.model), ("who ", "who ")),
    "texts are cut at 16 tokens, not at 24": lambda s, *_: cut(s, 16),
    "texts are cut at 64 tokens, not at 24": lambda s, *_: cut(s, 64),
    "the special token at the end of texts that are cut at 24 tokens is lost": lambda s, *_: (
        endless(s)
    ),
    "the Dense head is missing and the prompts are missing and embeddings are not normalised": (
        lambda s, first, mean, _: wrong(s, [first, mean], ("", ""))
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(student: Student, expected: np.ndarray, mistake: str) -> None:
    got = MISTAKES[mistake](student, *list(student.model)[:3])
    assert likely_reason(student.model, Sent(FEW, FEW, got), expected, 1e-4) == mistake


def test_what_is_no_usual_mistake_is_said_by_where_it_differs(
    student: Student, expected: np.ndarray
) -> None:
    def reason(got: np.ndarray) -> str:
        return likely_reason(student.model, Sent(FEW, FEW, got), expected, 1e-4)

    half = expected.astype(np.float16).astype(np.float32) * np.float32(1.0003)
    assert "lower precision" in reason(half)
    odd = expected.copy()
    odd[FEW.index("“quoted” – ‘dashed’ — … •")] *= -1
    assert reason(odd).startswith("1 of 40 texts differ (only emoji and symbols), e.g. '“quoted” ")
    assert reason(expected[:, :8]) == "its embeddings have 8 dimensions, the student's 16"


def test_the_probes_are_a_hundred_texts_of_every_kind() -> None:
    assert len(PROBES) == len(set(PROBES)) == 100
    assert "" in KINDS["blank texts"]
    assert max(len(text.split()) for text in PROBES) > 1000
    assert len({ord(c) >> 8 for text in KINDS["other scripts"] for c in text}) > 15


def test_a_student_without_a_transformer_can_only_miss_its_prompts(student: Student) -> None:
    torch.manual_seed(0)
    table = StaticEmbedding(student.model.tokenizer, embedding_dim=8)
    model = SentenceTransformer(modules=[table, Normalize()], device="cpu", prompts=PROMPTS)
    right = model.encode(["who " + t for t in FEW] + ["book of " + t for t in FEW])
    bare = Sent(FEW, FEW, model.encode([*FEW, *FEW]))
    assert likely_reason(model, bare, right, 1e-4) == "the prompts are missing"
    long = Sent(FEW, FEW, 2 * right)
    assert likely_reason(model, long, right, 1e-4) == "embeddings are not normalised"


def test_every_file_tells_the_same_limit(student: Student) -> None:
    files = ("tokenizer_config.json", "sentence_bert_config.json", "tokenizer.json")
    settings, sentences, tokenizer = (
        json.loads((student.folder / name).read_text(encoding="utf-8")) for name in files
    )
    assert (settings["model_max_length"], sentences["max_seq_length"]) == (24, 24)
    assert "max_length" not in settings, "fastembed would cut there"
    assert tokenizer["truncation"] is tokenizer["padding"] is None


def test_recall_counts_the_first_ten_documents() -> None:
    texts = texts_of(([f"q {i}" for i in range(2)], [f"d {i}" for i in range(20)]))
    n = len(texts.queries)
    right = np.zeros((n + len(texts.documents), 22), dtype=np.float32)
    own = right.copy()
    for rows, flipped in ((right, False), (own, True)):
        rows[100], rows[101] = 1, 1
        rows[n + 100 :, :20] = np.eye(20)
        # Documents 0 to 9 are nearest to every query; in `own`, 8 and 9 change places with 10, 11.
        near = [*range(8), 10, 11] if flipped else range(10)
        for i in range(20):
            rows[n + 100 + i, 20] = 2.0 if i in near else -2.0
    usable = np.ones(len(right), dtype=bool)
    assert recall_at_10(right, right, texts, usable) == 1
    assert recall_at_10(own, right, texts, usable) == pytest.approx(0.8)
    assert recall_at_10(own[:, ::-1], right, texts, usable) == pytest.approx(0.8)
    usable[n + 100 + 10 : n + 100 + 12] = False  # refused: they are not searched
    assert recall_at_10(own, right, texts, usable) == pytest.approx(1.0)


def test_texts_of_a_run_are_some_of_its_own_in_their_order() -> None:
    queries, documents = ([f"{kind} {i}" for i in range(2000)] for kind in "qd")
    texts = texts_of((queries, documents))
    assert texts.of == "100 held-out queries over 500 documents"
    chosen = texts.queries[texts.searching]
    assert len(set(chosen)) == 100
    assert [queries.index(text) for text in chosen] == sorted(map(queries.index, chosen))
    assert texts.queries[:100] == texts.documents[:100] == list(PROBES)


# --- servers ------------------------------------------------------------------------------------


def tei(embed: Callable[[list[str], str | None], np.ndarray], empty: bool = True) -> Any:
    """A server that answers as text-embeddings-inference does."""

    def reply(path: str, request: dict[str, Any]) -> tuple[int, bytes]:
        if path != "/embed":
            return 404, b"{}"
        if not empty and not all(request["inputs"]):
            return 422, b'{"error": "`inputs` cannot be empty"}'
        return 200, json.dumps(
            embed(request["inputs"], request.get("prompt_name")).tolist()
        ).encode()

    return running_server(reply, "")


def openai(embed: Embed) -> contextlib.AbstractContextManager[Endpoint]:
    """A server that answers as OpenAI does, and not at `/embed`."""

    def reply(path: str, request: dict[str, Any]) -> tuple[int, bytes]:
        if path != "/v1/embeddings":
            return 404, b"{}"
        return 200, embeddings_body(embed(request["input"]).tolist())

    return running_server(reply, "")


def asked(student: Student, state: Endpoint, route: str = "", model: str | None = None) -> Compared:
    (compared,) = verify(student, TEXTS, [], [connect(state.url + route, model)]).tried
    return compared


def named(student: Student) -> Callable[[list[str], str | None], np.ndarray]:
    """By the prompt's name."""
    return lambda texts, name: student.model.encode(
        texts, prompt=PROMPTS.get(name or "", ""), show_progress_bar=False
    )


def headless(student: Student) -> SentenceTransformer:
    first, pooling, _, last = list(student.model)
    return SentenceTransformer(modules=[first, pooling, last], device="cpu")


def test_a_server_of_embed_is_found_out_and_agrees(student: Student) -> None:
    with tei(named(student)) as state:
        compared = asked(student, state)
    assert (compared.runtime, compared.agrees, compared.texts) == ("a server's /embed", True, 200)
    assert compared.difference is not None
    assert compared.difference < 1e-5
    assert compared.recall == 1
    assert max(len(request.get("inputs", ())) for request in state.requests) > 1


@pytest.mark.parametrize(
    ("mistake", "says"),
    [("head", "the Dense head is missing"), ("prompt", "the prompts are missing")],
)
def test_a_server_that_drops_something_is_found_out(
    student: Student, mistake: str, says: str
) -> None:
    model = headless(student) if mistake == "head" else student.model
    prompts = PROMPTS if mistake == "head" else {}
    with tei(
        lambda texts, name: model.encode(
            texts, prompt=prompts.get(name or "", ""), show_progress_bar=False
        )
    ) as state:
        compared = asked(student, state)
    assert (compared.agrees, compared.reason) == (False, says)
    assert (compared.difference is None) == (mistake == "head")


def test_texts_that_a_server_refuses_are_counted(student: Student) -> None:
    with tei(named(student), empty=False) as state:
        compared = asked(student, state, "/embed")
    assert (compared.agrees, compared.texts, compared.refused) == (True, 198, 2)
    assert "422" in str(compared.refusal)
    assert "cannot be empty" in str(compared.refusal)


def test_a_server_of_openais_route_is_found_out(student: Student) -> None:
    with openai(lambda texts: student.model.encode(texts, show_progress_bar=False)) as state:
        compared = asked(student, state, model="student")
        assert (compared.runtime, compared.agrees) == ("a server's /v1/embeddings", True)
        with pytest.raises(InputError, match="--model"):
            asked(student, state)
        with pytest.raises(InputError, match="/embed answers 404"):
            asked(student, state, "/embed")
    with openai(lambda texts: headless(student).encode(texts, show_progress_bar=False)) as state:
        for route in ("/v1", "/v1/embeddings"):
            compared = asked(student, state, route, "student")
            assert compared.reason == "the Dense head is missing"
    with pytest.raises(InputError, match="is not an address"):
        connect("somewhere", None)


# --- runtimes in processes of their own ----------------------------------------------------------


def test_onnxruntime_in_another_python_agrees_and_int8_is_judged_by_recall(
    student: Student,
) -> None:
    names = [f"onnxruntime@{sys.executable}", "onnxruntime-int8"]
    exact, small = verify(student, TEXTS, attempts_of(names)).tried
    assert (exact.agrees, exact.precision, exact.recall) == (True, "float32", 1)
    assert exact.versions["onnxruntime"] == importlib.metadata.version("onnxruntime")
    assert small.precision == "int8"
    assert small.recall is not None
    assert small.agrees == (small.recall >= 0.9)
    assert small.difference is not None
    assert small.difference > 1e-4


def test_what_is_not_installed_is_not_tried(
    student: Student, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("NODE_PATH", raising=False)
    absent = Runtime("onnxruntime.py", ("no-such-package",), "pip install no-such-package")
    other = Attempt("absent", absent, asked_for=False)
    js = Attempt("transformers.js", RUNTIMES["transformers.js"], asked_for=False)
    card = Attempt("transformers", RUNTIMES["transformers"], asked_for=False)
    parity = verify(student, TEXTS, [other, js, card])
    assert not parity.tried
    said = {one.runtime: one for one in parity.not_tried}
    assert said["absent"].line == "pip install no-such-package"
    assert "not installed" in said["absent"].why
    assert "NODE_PATH" in said["transformers.js"].why
    assert "snippet" in said["transformers"].why, "nobody else's code is executed"
    assert said["fastembed"].why == "not asked for"
    with pytest.raises(InputError, match="pip install no-such-package"):
        verify(student, TEXTS, [Attempt("absent", absent)])
    with pytest.raises(InputError, match=r"no such runtime; use sentence-transformers, "):
        attempts_of(["sklearn"])
    with pytest.raises(InputError, match="No such file"):
        verify(student, TEXTS, attempts_of([f"onnxruntime@{tmp_path}/bin/python"]))


def test_a_server_that_refuses_every_query_does_not_agree(student: Student) -> None:
    few = Texts(["a dog"], ["a cat"], "two texts", slice(None), slice(None))
    answer = np.eye(2, 16, dtype=np.float32)
    got = np.array([answer[0] * np.nan, answer[1]])
    said = compare(student, few, answer, got, Compared("x", {}, "float32", refusal="too long"))
    assert (said.agrees, said.refused, said.recall) == (False, 1, None)
    assert said.reason == "it refuses all texts that would be searched"


def test_a_folder_of_transformers_alone_is_verified(backbone_dir: Path) -> None:
    model = SentenceTransformer(str(backbone_dir), device="cpu")
    few = Texts(["a dog"], ["a cat"], "two texts", slice(None), slice(None))
    parity = verify(Student(backbone_dir, model, None), few, [])
    assert list(parity.files) == ["model.safetensors"]


def test_a_runtime_that_fails_is_said_to_fail(
    student: Student, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text("def embed(*_):\n    raise ValueError('no \\x1b[2J')\n")
    runtime = Runtime(str(tmp_path / "broken.py"), ("numpy",), "")
    (compared,) = verify(student, TEXTS, [Attempt("broken", runtime)]).tried
    assert (compared.agrees, compared.difference) == (False, None)
    assert compared.reason == "it fails: ValueError: no \\x1b[2J"
    assert "numpy" in compared.versions


HERE = ("sentence-transformers", "transformers", "onnxruntime", "transformers.js")


@pytest.mark.parametrize("name", [name for name in RUNTIMES if not name.startswith(HERE)])
def test_other_runtimes_agree_where_they_are_installed(student: Student, name: str) -> None:
    parity = verify(student, TEXTS, [Attempt(name, RUNTIMES[name], asked_for=False)])
    for obstacle in parity.not_tried:
        if obstacle.runtime == name:
            pytest.skip(obstacle.why)
    (compared,) = parity.tried
    assert compared.agrees or (compared.precision == "int8" and compared.recall), compared.reason


LIBRARY = """
export const env = { backends: { onnx: { wasm: {} } } };
const tokenizer = (texts, { max_length }) => ({ texts, max_length });
const model = async ({ texts, max_length }) => ({
  sentence_embedding: { tolist: () => texts.map((text) => [text.length, max_length]) },
});
export const AutoTokenizer = { from_pretrained: async () => tokenizer };
export const AutoModel = { from_pretrained: async () => model };
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.parametrize("name", ["transformers.js", "transformers.js-chromium"])
def test_node_and_chromium_embed_all_texts_behind_their_prompts(tmp_path: Path, name: str) -> None:
    if name.endswith("chromium") and chromium() is None:
        pytest.skip("chromium is not installed")
    package = tmp_path / "node_modules" / "@huggingface" / "transformers"
    (package / "dist").mkdir(parents=True)
    about = {"version": "0.0.1", "type": "module", "main": "dist/transformers.web.js"}
    (package / "package.json").write_text(json.dumps(about))
    (package / "dist" / "transformers.web.js").write_text(LIBRARY)
    student = {
        "folder": str(tmp_path),
        "file": "onnx/model.onnx",
        "prompts": PROMPTS,
        "max_length": 24,
    }
    texts = {"queries": ["a" * i for i in range(40)], "documents": ["", "b"]}
    attempt = Attempt(name, RUNTIMES[name], str(tmp_path))
    out = tmp_path / "rows.npy"
    answer = _run(attempt, {"student": student, **texts, "out": str(out)})
    assert answer["missing"] == []
    assert answer["versions"]["@huggingface/transformers"] == "0.0.1"
    lengths = [4 + i for i in range(40)] + [8, 9]
    np.testing.assert_array_equal(np.load(out), [[length, 24] for length in lengths])
    (package / "dist" / "transformers.web.js").write_text("throw new Error('no such thing')")
    with pytest.raises(_FailedError, match="no such thing"):
        _run(attempt, {"student": student, **texts, "out": str(out)})


@pytest.mark.skipif("NODE_PATH" not in os.environ, reason="NODE_PATH names no transformers.js")
@pytest.mark.parametrize("name", ["transformers.js", "transformers.js-chromium"])
def test_transformers_js_loses_the_last_token_alone(student: Student, name: str) -> None:
    (compared,) = verify(student, TEXTS, attempts_of([name])).tried
    lost = "the special token at the end of texts that are cut at 24 tokens is lost"
    assert compared.reason == lost


def test_a_runs_student_is_verified_and_its_card_says_with_what(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = finished(copied)
    assert "Readers that were tried" not in (copied / "student_model_sd/README.md").read_text()
    line = ["verify", copied, "--with", "transformers", "sentence-transformers"]
    said = call(line, main)
    assert said.code == 0, said.err
    assert said.out.count(" agrees ") == 2
    assert "Not asked for, and not tried: onnxruntime, " in said.out
    parity = read_result(copied / "parity.json", Parity)
    assert parity == measured_parity(results)
    assert [one.runtime for one in parity.tried] == ["transformers", "sentence-transformers"]
    assert parity.of.endswith("documents")
    card = (copied / "student_model_sd/README.md").read_text()
    assert "| `transformers` | transformers " in card
    assert "Warning" not in card
    report = (copied / "report.html").read_text()
    assert '<th scope="row">sentence-transformers</th><td>float32</td>' in report
    assert "Do not read" not in report

    right = model_card.model_cards
    mean, first = b"(hidden * mask).sum(1) / mask.sum(1)", b"hidden[:, 0]"
    assert mean in right(results)["README.md"]
    monkeypatch.setattr(
        "hf_distill.commands.verify.model_cards",
        lambda results: {n: text.replace(mean, first) for n, text in right(results).items()},
    )
    out = copied / "elsewhere.json"
    with pytest.raises(SystemExit) as left:
        call(["verify", copied / "student_model_sd", "--with", "transformers", "--json", out], main)
    assert left.value.code == 1
    (compared,) = read_result(out, Parity).tried
    assert compared.reason == "it pools the CLS token, not the mean"
    out.replace(copied / "parity.json")
    assert "do not read this model with `transformers`" in right(results)["README.md"].decode()
    write_report(results)
    report = " ".join((copied / "report.html").read_text().split())
    assert (
        "Do not read this student with <code>transformers</code> as it was tried:</b> it pools the "
        "CLS token, not the mean.</p>" in report
    )

    weights = copied / "student_model_sd/model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"\0")
    assert measured_parity(results) is None, "it is of other weights"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["nowhere/at/all"], "no such folder"),
        (["STUDENT", "--model", "x"], "--url"),
        (["STUDENT", "--with", "x"], "no such runtime"),
        (["STUDENT", "--with", "transformers"], "only a run's own card is executed"),
        (["STUDENT", "--json", "no/such/folder/x.json"], "in a folder that exists"),
        (["STUDENT", "--url", "ftp://x"], "not an address"),
    ],
)
def test_bad_input_is_refused(student: Student, line: list[str], says: str) -> None:
    said = call(["verify", *(w.replace("STUDENT", str(student.folder)) for w in line)], main)
    assert said.code == 2
    assert says in said.err
