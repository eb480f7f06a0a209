"""The search page: what is written, what is refused, and the page itself in a headless Chromium."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import ir_measures
import numpy as np
import pytest
from browser import Browser, browser, chromium, static_host
from conftest import call, sentences
from datasets import Dataset
from hub_server import TOKEN, running_hub
from huggingface_hub import HfApi
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tokenizers import Tokenizer

from hf_distill.commands.main import main
from hf_distill.errors import InputError
from hf_distill.evaluation.tasks import held_out_task
from hf_distill.finished_run import finished
from hf_distill.release.onnx import export_onnx
from hf_distill.release.onnx_encoder import load_onnx
from hf_distill.report.results import RunResults
from hf_distill.run.stage import read_json, write_result
from hf_distill.serving import javascript
from hf_distill.serving import page as module
from hf_distill.serving.index import index_of_run, load_student
from hf_distill.serving.javascript import LICENCE, ONNXRUNTIME, TOKENIZERS, WASM, File, content_of
from hf_distill.serving.page import (
    RECORD,
    PageRecord,
    check_output,
    check_student,
    int8_rows,
    release_of,
    write_page,
)

NASTY = '<img src=x onerror="document.title=1"><script>document.title=2</script>'
FOUND = "[...document.querySelectorAll('#answers section:nth-child(%d) li code')]"


# --- in a browser --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(finished_run: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> RunResults:
    """A finished run whose training documents look like HTML, and whose student has a query
    prompt.
    """
    path = Path(shutil.copytree(finished_run[0], tmp_path_factory.mktemp("page") / "run"))
    results = finished(path)
    prompts = path / "student_model_sd" / "config_sentence_transformers.json"
    settings = json.loads(prompts.read_text())
    prompts.write_text(json.dumps({**settings, "prompts": {"query": "who ", "document": ""}}))
    write_result(results.folder.training, results.training, [results.folder.student])
    collection = results.collection
    texts = collection.document_texts(np.arange(len(collection.documents)))
    columns = collection.documents.to_dict()
    texts = [
        text if searched else f"{text} {NASTY}"
        for text, searched in zip(texts, columns["searched"], strict=True)
    ]
    documents = Dataset.from_dict({**columns, "text": texts}, collection.documents.features)
    return dataclasses.replace(
        results, collection=dataclasses.replace(collection, documents=documents)
    )


@dataclass(frozen=True)
class Opened:
    """A page that is served at `address`, and a browser."""

    browser: Browser
    folder: Path
    address: str

    def ask(self, question: str) -> list[str]:
        """Type a question. Returns the ids that are shown."""
        self.browser.run(
            "performance.clearMeasures('answer'); document.getElementById('question').value = ''; "
            "document.getElementById('question').focus()"
        )
        self.browser.call("Input.insertText", text=question)
        self.browser.wait("performance.getEntriesByName('answer').length")
        return self.shown()

    def shown(self, column: int = 1) -> list[str]:
        ids: list[str] = self.browser.run(f"{FOUND % column}.map((code) => code.textContent)")
        return ids


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    if chromium() is None:
        pytest.skip("chromium is not installed")
    with browser() as page:
        yield page


@pytest.fixture(scope="module")
def vendored() -> dict[str, bytes]:
    """The JavaScript of others: path -> content."""
    files = (ONNXRUNTIME, TOKENIZERS, WASM, LICENCE)
    try:
        contents = content_of(*files)
    except InputError as error:
        pytest.skip(f"the JavaScript of the page cannot be downloaded: {error}")
    return {file.address(""): content for file, content in zip(files, contents, strict=True)}


@pytest.fixture(scope="module")
def opened(
    results: RunResults,
    chrome: Browser,
    vendored: dict[str, bytes],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Opened]:
    """The page of the run, in many parts, below a sub-path, ready to answer."""
    folder = tmp_path_factory.mktemp("host") / "a" / "page"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_VECTORS", 700)
        patch.setattr(module, "_TEXTS", 2000)
        write_page(results, folder)
    with static_host(folder.parent.parent) as host:
        address = f"{host}/a/page/"
        chrome.open(address)
        chrome.wait("document.documentElement.dataset.ready")
        yield Opened(chrome, folder, address)


def test_the_page_finds_what_the_student_finds(
    opened: Opened, results: RunResults, tmp_path: Path
) -> None:
    index = index_of_run(results, load_student(str(results.folder.path)))
    settings = json.loads(next(opened.folder.glob("page-*/settings.json")).read_text())
    assert settings["prompt"] == "who "
    assert len(settings["vectors"]) > 5
    assert len(settings["texts"]) > 5
    export_onnx(folder := Path(shutil.copytree(results.folder.student, tmp_path / "student")))
    encoder = load_onnx(folder, "int8")
    codes, scales = int8_rows(index.embeddings)
    questions = [*sentences(49, 5000), "read " * 50]
    # One at a time: a batch shares the scale of its activations.
    small = np.concatenate([encoder.encode([question], "query") for question in questions])
    small = small @ (codes * scales[:, None]).T
    same, like_python = [], []
    for question, cosines in zip(questions, small, strict=True):
        shown = opened.ask(question)
        same.append(len({hit.id for hit in index.ask(question)} & set(shown)))
        best = {index.corpus.ids[i] for i in np.argsort(-cosines)[:10]}
        like_python.append(len(best & set(shown)))
    assert np.mean(like_python) >= 9.8, "it computes what onnxruntime computes in Python"
    # A random student of 16 dimensions suffers more from int8 than a real one (benchmarks/page.py).
    assert np.mean(same) >= 8.5
    assert opened.browser.problems == []
    assert "10 of 200 documents" in opened.browser.run(
        "document.getElementById('status').textContent"
    )
    assert opened.browser.run("document.getElementById('size').textContent").count("MB") == 5


def test_texts_of_the_data_are_text(opened: Opened) -> None:
    assert len(opened.ask(f"red green blue {NASTY}")) == 10
    assert (
        opened.browser.run("document.querySelectorAll('#answers img, #answers script').length") == 0
    )
    assert opened.browser.run("document.title") == f"{opened.folder.parent and 'tiny'}: search"
    assert NASTY in opened.browser.run("document.getElementById('answers').textContent")


def test_a_held_out_query_shows_the_teachers_stored_answers_beside_the_students(
    opened: Opened, results: RunResults
) -> None:
    task = held_out_task(results.collection)
    run = ir_measures.read_trec_run(str(results.folder.retrieval / "teacher.run"))
    name = next(iter(task.queries))
    numbers = {document: number for number, document in enumerate(task.documents)}
    index = index_of_run(results, load_student(str(results.folder.path)))
    teacher = [
        index.corpus.ids[task.document_numbers[numbers[scored.doc_id]]]
        for scored in run
        if scored.query_id == name
    ][:10]
    page = opened.browser
    page.run("performance.clearMeasures('answer')")
    page.run("document.querySelector('#examples button').click()")
    page.wait("performance.getEntriesByName('answer').length")
    assert page.run("document.getElementById('question').value") == task.queries[name]
    assert opened.shown(2) == teacher
    held_out = {index.corpus.ids[number] for number in task.document_numbers}
    assert set(opened.shown(1)) <= held_out
    assert page.run("document.querySelectorAll('#answers section:nth-child(2) .mark').length") <= 1
    assert page.run("document.querySelectorAll('[aria-pressed=true]').length") == 1
    before = page.run("document.getElementById('examples').textContent")
    page.run("document.getElementById('others').click()")
    assert page.run("document.getElementById('examples').textContent") != before


def test_the_keys(opened: Opened) -> None:
    page, focus = opened.browser, "document.activeElement"
    opened.ask("small dog")
    page.key("ArrowDown")
    assert page.run(f"{focus} === document.querySelector('#answers li')")
    page.key("ArrowDown")
    assert page.run(f"[...{focus}.parentElement.children].indexOf({focus})") == 1
    page.key("ArrowUp")
    page.key("ArrowUp")
    assert page.run(f"{focus}.id") == "question"
    page.key("ArrowDown")
    page.key("Escape")
    assert page.run(f"{focus}.id") == "question"
    page.run(f"{focus}.blur()")
    page.key("/", "/")
    assert page.run(f"{focus}.id + {focus}.value") == "questionsmall dog"
    page.key("Escape")
    page.wait("!document.querySelector('#answers li')")
    assert page.run("document.getElementById('question').value") == ""


def test_the_page_works_without_its_host_once_it_was_opened(
    opened: Opened, results: RunResults, chrome: Browser, tmp_path: Path
) -> None:
    folder = shutil.copytree(opened.folder, tmp_path / "page")
    with static_host(tmp_path) as host:
        chrome.open(f"{host}/page/")
        chrome.wait("document.documentElement.dataset.kept")
        earlier, below = (
            f"hf_distill {host}/page/{other}page-{'0' * 16}/" for other in ("", "other/")
        )
        for name in (earlier, below):
            chrome.run(f"caches.open({name!r}).then(() => true)")
        chrome.open(f"{host}/page/?q=")
        chrome.wait("document.documentElement.dataset.kept")
        assert chrome.run(f"caches.has({earlier!r})") is False
        assert chrome.run(f"caches.has({below!r})") is True, "it is of another page"
        here = Opened(chrome, folder, f"{host}/page/")
        before = here.ask("a large old house")
    chrome.open(f"{here.address}?q=a+large+old+house")  # a permalink, and nobody answers
    chrome.wait("performance.getEntriesByName('answer').length")
    assert here.shown() == before
    chrome.wait("navigator.serviceWorker.ready.then((worker) => worker.unregister())")
    chrome.problems.clear()  # the browser asked in vain whether there is a newer page


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"embedding": [1.0] + [0.0] * 15}, "embeds a text otherwise"),
        ({"probes": [{"text": "who", "ids": [2, 3]}]}, "reads 1 of 1 texts otherwise"),
    ],
)
def test_the_page_tests_itself(
    opened: Opened, chrome: Browser, tmp_path: Path, change: dict[str, object], says: str
) -> None:
    folder = shutil.copytree(opened.folder, tmp_path / "page")
    settings = next(folder.glob("page-*/settings.json"))
    content = json.loads(settings.read_text())
    if "probes" in change:
        change = {**change, "probes": [content["probes"][0], *change["probes"]]}  # type: ignore[misc]
        says = says.replace("1 of 1", "1 of 2")
    settings.write_text(json.dumps(content | change))
    with static_host(tmp_path) as host:
        chrome.open(f"{host}/page/")
        chrome.wait("document.getElementById('problem').textContent")
        assert says in chrome.run("document.getElementById('problem').textContent")
        chrome.open("about:blank")
    chrome.problems.clear()


def test_a_page_of_a_cdn_checks_what_it_loads(
    results: RunResults, chrome: Browser, vendored: dict[str, bytes], tmp_path: Path
) -> None:
    for path, content in vendored.items():
        place = tmp_path / "cdn" / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    with static_host(tmp_path / "cdn") as cdn, static_host(tmp_path) as host:
        write_page(results, tmp_path / "page", cdn)
        names = {path.name for path in tmp_path.glob("page/page-*/*")}
        assert not names & {"onnxruntime.js", "tokenizers.js", "wasm.bin"}
        chrome.open(f"{host}/page/")
        chrome.wait("document.documentElement.dataset.ready")
        assert len(Opened(chrome, tmp_path / "page", host).ask("red house")) == 10
        assert chrome.problems == []
        other = tmp_path / "cdn" / WASM.address("").lstrip("/")
        other.write_bytes(other.read_bytes()[:-1] + b"\1")
        chrome.call("Network.clearBrowserCache")
        chrome.open(f"{host}/page/?q=red")
        chrome.wait("document.getElementById('problem').textContent")
        assert chrome.run("document.querySelectorAll('#answers li').length") == 0
        chrome.open("about:blank")
    chrome.problems.clear()


# --- what is written -----------------------------------------------------------------------------


@given(arrays(np.float32, (4, 8), elements=st.floats(-1, 1, width=32)))
def test_codes_of_a_byte_lose_at_most_half_a_step(embeddings: np.ndarray) -> None:
    codes, scales = int8_rows(embeddings)
    largest = np.abs(embeddings).max(axis=1)
    error = np.abs(codes * scales[:, None] - embeddings).max(axis=1)
    assert (error <= largest / 254 * 1.001 + 1e-9).all()
    assert codes.dtype == np.int8


def test_every_document_is_in_one_part_under_its_own_vector(
    results: RunResults, tmp_path: Path
) -> None:
    record = write_page(results, tmp_path / "page", "http://127.0.0.1:1")
    assert read_json(tmp_path / "page" / RECORD, PageRecord) == record
    inside = tmp_path / "page" / f"page-{record.key}"
    settings = json.loads((inside / "settings.json").read_text())
    index = index_of_run(results, load_student(str(results.folder.path)))
    texts = [
        entry
        for part in settings["texts"]
        for entry in json.loads(gzip.decompress((inside / part["url"]).read_bytes()))
    ]
    assert sorted(texts) == sorted(
        map(list, zip(index.corpus.ids, index.corpus.texts, strict=True))
    )
    (part,) = settings["vectors"]
    content = (inside / part["url"]).read_bytes()
    scales = np.frombuffer(content[: 4 * 200], "<f4")
    vectors = np.frombuffer(content[4 * 200 :], np.int8).reshape(200, 16) * scales[:, None]
    rows = [index.corpus.ids.index(name) for name, _ in texts]
    np.testing.assert_allclose(vectors, index.embeddings[rows], atol=0.01)
    task = held_out_task(results.collection)
    assert settings["searched"] == len(task.documents)
    assert [text for _, text in texts[: settings["searched"]]] == list(task.documents.values())
    for file, digest in record.files.items():
        assert hashlib.sha256((tmp_path / "page" / file).read_bytes()).hexdigest() == digest
    html = (tmp_path / "page" / "index.html").read_text()
    assert html.count('integrity="sha384-') == 3
    assert "default-src &#39;none&#39;" in html
    assert "<script>" not in html


def test_a_page_replaces_a_page_and_nothing_else(results: RunResults, tmp_path: Path) -> None:
    out = tmp_path / "page"
    out.mkdir()
    first = write_page(results, out, "http://127.0.0.1:1")
    again = write_page(results, out, "http://127.0.0.1:1")
    assert again == first, "the same run gives the same page"
    named = dataclasses.replace(results, recipe=dataclasses.replace(results.recipe, name="<a>_*b"))
    readme = release_of(named, first, out, "you/search").instead["README.md"]
    assert rb"# &lt;a&gt;\_\*b: search" in readme
    (out / "mine.txt").write_text("x")
    with pytest.raises(InputError, match=r"holds 1 files that are not .*mine\.txt"):
        check_output(out)
    (out / "mine.txt").unlink()
    (out / "link").symlink_to(tmp_path)
    with pytest.raises(InputError, match=r"holds 1 files that are not .*link"):
        check_output(out)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        check_output(tmp_path / "file")
    with pytest.raises(InputError, match="cannot be written"):
        write_page(results, tmp_path / "file" / "page")
    check_output(tmp_path / "new")


def test_a_page_that_fails_leaves_the_one_before(
    results: RunResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "page"
    record = write_page(results, out, "http://127.0.0.1:1")
    monkeypatch.setattr(module, "write_json", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_page(results, out, "http://127.0.0.1:1")
    assert read_json(out / RECORD, PageRecord) == record
    assert [path.name for path in tmp_path.iterdir()] == ["page"]


def test_large_pages_are_warned_about(
    results: RunResults,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(module, "MANY_DOCUMENTS", 199)
    monkeypatch.setattr(module, "LARGE", 1000)
    write_page(results, tmp_path / "page", "http://127.0.0.1:1")
    documents, size = (record.message for record in caplog.records)
    assert documents.startswith("200 documents: ")
    assert "holds 0 MB" in size
    settings = json.loads(next(tmp_path.glob("page/page-*/settings.json")).read_text())
    assert settings["offline"] is False


# --- what is refused -----------------------------------------------------------------------------


def test_students_that_no_browser_can_run_are_refused(results: RunResults, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(results.folder.student, tmp_path / "student"))
    check_student(folder)
    tokenizer = folder / "tokenizer.json"
    content = json.loads(tokenizer.read_text())
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [{"type": "UnicodeScripts"}]}
    tokenizer.write_text(json.dumps(content))
    with pytest.raises(InputError, match="pre_tokenizer UnicodeScripts"):
        check_student(folder)
    (folder / "modules.json").write_text(
        '[{"type": "sentence_transformers.models.StaticEmbedding"}]'
    )
    with pytest.raises(InputError, match="begins with a StaticEmbedding"):
        check_student(folder)


def test_the_ids_around_a_text(results: RunResults) -> None:
    tokenizer = Tokenizer.from_file(str(results.folder.student / "tokenizer.json"))
    assert module._around(tokenizer) == ([2], [3])


def test_the_command_writes_a_page(results: RunResults, tmp_path: Path) -> None:
    said = call(["page", results.folder.path, tmp_path / "page", "--cdn"], main)
    assert (said.code, "200 documents, " in said.out) == (0, True), said.err
    (tmp_path / "page" / "mine").touch()
    said = call(["page", results.folder.path, tmp_path / "page", "--cdn"], main)
    assert (said.code, "mine" in said.err) == (2, True)


# --- on the Hub ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Use 'content=")  # the client's own, of its HTTP library
def test_a_page_is_published_as_one_commit_and_replaces_the_one_before(
    results: RunResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    out = tmp_path / "page"
    with running_hub() as hub:
        monkeypatch.setattr(
            "hf_distill.commands.page.HfApi", lambda token: HfApi(hub.endpoint, TOKEN)
        )
        line = ["page", results.folder.path, out, "--cdn", "--push", "you/search"]
        said = call(line, main)
        assert said.code == 0, said.err
        record = read_json(out / RECORD, PageRecord)
        assert f"{len(record.files) + 2} files with equal SHA-256" in said.out
        _, files = hub.files("spaces", "you/search") or ("", {})
        sent = {name for name in files if name != ".gitattributes"}
        assert sent == {*record.files, RECORD, "README.md"}
        assert b"sdk: static" in files["README.md"]
        assert all(files[name] == (out / name).read_bytes() for name in record.files)

        monkeypatch.setattr(module, "TOP", 3)  # another page
        assert call(line, main).code == 0
        _, files = hub.files("spaces", "you/search") or ("", {})
        assert len({name.partition("/")[0] for name in files if name.startswith("page-")}) == 1
        assert hub.commits("spaces", "you/search") == 2
        said = call([*line[:-1], "them/search"], main)
        assert (said.code, "not a member of them" in said.err) == (2, True)


# --- the JavaScript of others --------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[File]:
    """A file of a package in a registry on this machine."""
    place = tmp_path / "registry" / "@some" / "package" / "-" / "package-1.2.3.tgz"
    place.parent.mkdir(parents=True)
    with tarfile.open(place, "w:gz") as archive:
        member = tarfile.TarInfo("package/dist/a.js")
        member.size = 5
        archive.addfile(member, io.BytesIO(b"hello"))

    def digest(kind: str, content: bytes) -> str:
        return base64.b64encode(hashlib.new(kind, content).digest()).decode()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with static_host(tmp_path / "registry") as address:
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"{address}/")
        archived = digest("sha512", place.read_bytes())
        yield File("@some/package", "1.2.3", archived, "dist/a.js", digest("sha384", b"hello"), 5)


def test_a_package_is_downloaded_once_and_checked_each_time(
    package: File, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert content_of(package) == [b"hello"]
    (kept,) = (path for path in (tmp_path / "cache").rglob("*") if path.is_file())
    kept.write_bytes(b"jello")  # damaged: downloaded again
    assert content_of(package) == [b"hello"]
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:1")
    assert content_of(package) == [b"hello"]
    kept.unlink()
    with pytest.raises(InputError, match=r"127\.0\.0\.1:1/@some/package/-/.*cannot be downloaded"):
        content_of(package)


def test_another_package_than_the_pinned_one_is_refused(package: File, tmp_path: Path) -> None:
    (archive,) = (tmp_path / "registry").rglob("*.tgz")
    archive.write_bytes(archive.read_bytes() + b"\0")
    with pytest.raises(InputError, match="is not the package that was pinned"):
        content_of(package)
    assert not (tmp_path / "cache").exists()


def test_the_registry_is_npms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("npm_config_registry", "NPM_CONFIG_REGISTRY", "npm_config_userconfig"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert javascript.registry() == "https://registry.npmjs.org"
    (tmp_path / ".npmrc").write_text("a=b\nregistry = https://mirror.example/npm/\n")
    assert javascript.registry() == "https://mirror.example/npm"
    monkeypatch.setenv("npm_config_registry", "https://other.example/")
    assert javascript.registry() == "https://other.example"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (("page", "RUN", "OUT", "--private"), "--private says who sees a Space"),
        (("demo", "RUN", "--private"), "--private is about a Space"),
        (("demo", "RUN", "--model", "you/x"), "--model is about a Space"),
    ],
)
def test_what_is_said_of_a_space_needs_a_space(
    tmp_path: Path, line: tuple[str, ...], says: str
) -> None:
    said = call([str(tmp_path / part) if part.isupper() else part for part in line], main)
    assert said.code == 2
    assert says in said.err
    assert "--push" in said.err
    assert not list(tmp_path.iterdir())
