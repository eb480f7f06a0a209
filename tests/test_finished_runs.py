"""What one does with a finished run: publish, search, export, show. Against a Hub on loopback."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import yaml
from conftest import Said, call, run_tiny
from hub_server import TOKEN, Fault, Hub, card_errors, running_hub
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling

from hf_distill.commands import publish as publish_command
from hf_distill.commands import student_index
from hf_distill.commands.main import main
from hf_distill.errors import InputError
from hf_distill.finished_run import finished
from hf_distill.release import access
from hf_distill.release.hub import releases_of
from hf_distill.release.model_card import write_model_card
from hf_distill.release.onnx import OnnxRecord
from hf_distill.run.folder import RunFolder
from hf_distill.run.lock import held
from hf_distill.run.stage import read_result, write_result
from hf_distill.serving import demo, demo_app
from hf_distill.serving import index as index_module
from hf_distill.serving.demo import local_demo, write_space
from hf_distill.serving.index import Corpus, python_identity
from hf_distill.serving.kept import KeptPlaces, kept_index
from hf_distill.serving.without_torch import BertEncoder

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")

PUSH = ("--push_to_hub", "true", "--hub_model_id", "you/student", "--hub_dataset_id", "you/pairs")

in_this_process = pytest.mark.filterwarnings(
    "ignore:Use 'content="  # the client's own, of its HTTP library
)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that this process takes for the Hub."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")  # of the process that loads back
    monkeypatch.setattr(access, "WAITS", [0] * 5)
    with running_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        yield hub


def hub_environment(hub: Hub, home: Path) -> dict[str, str]:
    return {
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }


def train(tiny: Path, folder: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the Hub's address is read when huggingface_hub is imported."""
    command = [sys.executable, "-m", "hf_distill", str(tiny), "--run_dir", str(folder), *PUSH]
    environment = {**os.environ, **env}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def run(*line: object) -> Said:
    return call(line, main)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def card_of(folder: Path) -> str:
    return (folder / "student_model_sd" / "README.md").read_text(encoding="utf-8")


def test_a_run_says_a_line_a_stage_with_its_time(finished_run: tuple[Path, str]) -> None:
    said = finished_run[1]
    assert "{'" not in said, "what the trainer logs is not printed"
    for stage in ("Pairs", "Scores", "Selected", "Training", "Measured", "Index", "Written"):
        assert re.search(rf"^{stage} .*\d s\b", said, re.MULTILINE), stage


@in_this_process
def test_publishing_and_loading_back(
    tiny: Path, copied: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Student and data from a fresh process, the page from this one, and all loaded by commit in
    another.
    """
    hub.faults += [
        Fault(r"POST .*datasets/you/pairs/commit/", 503),
        Fault("PUT /storage/", 500),
    ]
    done = train(tiny, copied, hub_environment(hub, tmp_path / "home"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Published: ") == done.stdout.count("Loaded back ") == 2
    assert "profiler" not in done.stdout + done.stderr
    _, files = hub.files("models", "you/student") or ("", {})
    weights = copied / "student_model_sd" / "model.safetensors"
    assert files["model.safetensors"] == weights.read_bytes()
    assert b"datasets:\n- you/pairs" in files["README.md"]
    for kind, repo in (("datasets", "you/pairs"), ("models", "you/student")):
        assert hub.commits(kind, repo) == 1
        assert hub.repos[kind, repo].tags == {"v1": hub.repos[kind, repo].commits[-1][0]}
        card = (hub.files(kind, repo) or ("", {}))[1]["README.md"].decode()
        assert not card_errors(card, kind[:-1])
    hub.faults.append(Fault(r"POST .*spaces/you/search/commit/", after=True))
    with monkeypatch.context() as patch:
        patch.setenv("HF_TOKEN", TOKEN)
        page = run("page", copied, tmp_path / "page", "--cdn", "--push", "you/search")
    assert page.code == 0, page.err[-3000:]
    assert "Loaded back you/search at " in page.out
    assert TOKEN not in page.out + page.err
    assert all(fault.times == 0 for fault in hub.faults), "each fault has happened"
    assert hub.commits("spaces", "you/search") == 1
    space = hub.repos["spaces", "you/search"].commits[-1][0]
    commit = hub.repos["models", "you/student"].tags["v1"]
    code = (
        "import hashlib, json, pathlib\n"
        "from huggingface_hub import snapshot_download\n"
        f"page = snapshot_download('you/search', repo_type='space', revision='{space}')\n"
        "for name, digest in json.loads(pathlib.Path(page, 'page.json').read_text())"
        "['files'].items():\n"
        "    content = pathlib.Path(page, name).read_bytes()\n"
        "    assert hashlib.sha256(content).hexdigest() == digest, name\n"
        "from sentence_transformers import SentenceTransformer\n"
        "from datasets import load_dataset\n"
        f"for revision in (None, 'v1', '{commit}'):\n"
        "    student = SentenceTransformer('you/student', device='cpu', revision=revision)\n"
        "    print(student.encode('a cat').tolist())\n"
        "print(len(load_dataset('you/pairs', 'selected', split='train')))"
    )
    env = {**os.environ, **hub_environment(hub, tmp_path / "fresh")}
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    local = SentenceTransformer(str(copied / "student_model_sd"), device="cpu").encode("a cat")
    *fresh, pairs = printed.stdout.splitlines()
    for line in fresh:
        assert json.loads(line) == pytest.approx(local.tolist(), abs=1e-6)
    assert int(pairs) == json.loads((copied / "selection.json").read_text())["kept"]
    for file in copied.rglob("*"):
        holds_token = file.is_file() and TOKEN.encode() in file.read_bytes()
        assert not holds_token, f"the token is in {file}"
    assert TOKEN not in done.stdout + done.stderr


@in_this_process
def test_a_flipped_byte_on_the_hub_is_noticed(
    tiny: Path, copied: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.corrupt = True
    said = call([tiny, "--run_dir", copied, *PUSH])
    assert said.code == 1
    assert hub.commits("models", "you/student") == 1
    assert not any(repo.tags for repo in hub.repos.values()), "what was not loaded back"
    assert re.search(r"error: you/student.*model\.safetensors", said.err)


def test_a_dry_run_shows_what_would_be_sent(copied: Path) -> None:
    line = ("publish", copied, "--model", "you/student", "--dataset", "you/pairs")
    before = contents(copied)
    said = run(*line, "--license", "mit", "--dry_run")
    assert contents(copied) == before, "a dry run writes nothing"
    assert said.code == 0
    assert "model you/student: would be created" in said.out
    assert ".eval_results/retrieval.yaml" in said.out
    assert "nothing was sent" in said.out
    assert "private" not in said.out
    releases = releases_of(finished(copied, *PUSH, "--student_license", "mit"))
    linked, card = (release.instead["README.md"].decode() for release in releases)
    assert "license: mit" in card
    assert not card_errors(card, "model")
    assert not card_errors(linked, "dataset")
    assert 'load_dataset("you/pairs", "selected"' in linked
    assert "https://huggingface.co/you/student" in linked
    with (copied / "recipe.yaml").open("a") as file:
        file.write("hub_private_repo: true\nhub_revision: first\n")
    said = run(*line, "--dry_run")
    assert said.out.count("would be created, private") == 2, "the recipe of the run is heard"
    assert said.out.count("tagged first\n") == 2
    said = run("publish", copied.parent, "--model", "you/student")
    assert (said.code, "recipe.yaml" in said.err) == (2, True)


def test_the_card_says_what_selected_and_what_is_kept(copied: Path) -> None:
    results = finished(copied)

    def card(layers: list[int] | None = None, negatives: int = 0, **student: Any) -> str:
        training = dataclasses.replace(
            results.recipe.training,
            hard_negatives_per_pair=negatives,
            texts_per_pair=2 * negatives,
        )
        changed = dataclasses.replace(
            results,
            recipe=dataclasses.replace(
                results.recipe,
                student=dataclasses.replace(results.recipe.student, **student),
                training=training,
            ),
            training=dataclasses.replace(results.training, layers=layers),
        )
        write_model_card(changed)
        return card_of(copied)

    searched = card([0, 2], 2, student_layers="search=2")
    assert "| `percentile=20` |" in searched
    assert "| `hard_negatives_per_pair` | 2 |" in searched
    assert "| `texts_per_pair` | 4 |" in searched
    assert "layers 0, 2 of the teacher's backbone" in searched
    static = card(student_backbone="static")
    assert "pickle" not in static
    assert "_per_pair" not in static
    assert "1 in 2 layers" in card(student_layers="every=2")


def test_every_snippet_of_the_card_runs_and_gives_the_same_embeddings(copied: Path) -> None:
    said = run("export", copied)
    assert said.code == 0, said.err
    assert "held-out queries" in said.out
    measured = json.loads((copied / "onnx.json").read_text())
    assert abs(measured["variants"]["float32"]["minus_student"]["value"]) < 1e-3
    write_model_card(finished(copied))
    blocks = re.findall(r"```python\n(.*?)```", card_of(copied), re.DOTALL)
    libraries = ("sentence_transformers", "langchain_huggingface", "onnxruntime", "transformers")
    names = [next(name for name in libraries if name in block) for block in blocks]
    assert sorted(names) == sorted(libraries)
    cosines = []
    for block in blocks:
        if "langchain" in block and importlib.util.find_spec("langchain_huggingface") is None:
            continue
        values: dict[str, Any] = {}
        exec(block.replace("path/to/this/folder", str(copied / "student_model_sd")), values)
        cosines.append((np.asarray(values["queries"]) @ np.asarray(values["documents"]).T).item())
    assert len(cosines) >= 3
    np.testing.assert_allclose(cosines, cosines[0], atol=1e-5)


def test_searching_a_runs_documents(
    copied: Path, monkeypatch: pytest.MonkeyPatch, pairs_file: Path
) -> None:
    index = {path: path.stat().st_mtime_ns for path in (copied / "search").iterdir()}
    assert len(index) == 4, "the run has embedded its documents"
    first = run("search", copied, "a", "cat", "--top", "3")
    assert first.code == 0, first.err
    student = SentenceTransformer(str(copied / "student_model_sd"), device="cpu")
    documents = [json.loads(line)["document"] for line in pairs_file.read_text().splitlines()]
    cosines = student.encode_document(documents) @ student.encode_query("a cat")
    assert documents[int(cosines.argmax())] in first.out.splitlines()[1]
    assert "3 of 200 documents" in first.err
    monkeypatch.setattr(sys, "stdin", io.StringIO("a cat\n\nthe moon\n"))
    again = run("search", copied, "--top", "3").out
    assert again.startswith(first.out), "asked again, it answers the same"
    assert len(again.splitlines()) == 12
    assert {path: path.stat().st_mtime_ns for path in (copied / "search").iterdir()} == index
    said = run("search", copied, "x", "--top", "0")
    assert (said.code, "--top 0" in said.err) == (2, True)


LIGHT = """
import sys
from hf_distill.commands.main import main
code = main(sys.argv[1:])
heavy = {"torch", "transformers", "datasets", "accelerate", "sentence_transformers", "scipy"}
print(sorted(heavy & sys.modules.keys()))
sys.exit(code)
"""


def test_a_student_searches_without_torch(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    places, folder = KeptPlaces(copied), RunFolder(copied)
    assert (places.student, places.training) == (folder.student, folder.training)
    assert (places.onnx, places.record.parent) == (folder.onnx, folder.search)
    question = ("search", copied, "a", "cat", "--top", "3")
    command = [sys.executable, "-c", LIGHT, *map(str, question)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "3 of 200 documents" in done.stderr
    with monkeypatch.context() as patch:
        patch.setattr("hf_distill.serving.kept.load_bert", lambda _: None)
        assert kept_index(copied) is None, "the student is not exported"
        with_torch = run(*question).out
        assert done.stdout == f"{with_torch}[]\n", "numpy finds what torch finds"
        assert run("export", copied).code == 0
        assert run(*question).out == with_torch

    other = tmp_path / "other"
    shutil.copytree(copied, other)
    record = read_result(folder.onnx, OnnxRecord)
    write_result(other / "onnx.json", dataclasses.replace(record, training="another"), [])
    index, _ = kept_index(other) or pytest.fail("there is an index")
    assert isinstance(index.encoder, BertEncoder), "the export is of another student"
    for name in ("student_model_sd/model.safetensors", "search/student.npy"):
        flip_a_bit(copied / name)
        said = run(*question)
        assert (said.code, Path(name).name in said.err) == (2, True), said.err
        flip_a_bit(copied / name)


def test_many_documents_are_embedded_by_the_first_search(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(copied / "search")
    results = finished(copied)
    monkeypatch.setattr(index_module, "MOST_INDEXED", 199)
    assert "the first hf-distill search embeds the 200 documents" in index_module.keep_index(
        results
    )
    assert not (copied / "search").exists()
    monkeypatch.setattr(index_module, "MOST_INDEXED", 200)
    assert "200 documents, for hf-distill search" in index_module.keep_index(results)
    assert (copied / "search" / "kept.json").is_file()


def test_searching_python_with_a_model_alone(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    texts = ["Return a reader.", "escape \x1b[31m sequence"]
    few = Corpus(["csv.reader", "evil"], texts, python_identity())
    monkeypatch.setattr(student_index, "corpus_of_python", lambda: few)
    said = run("search", copied / "student_model_sd", "escape")
    assert "csv.reader" in said.out
    assert run("search", copied, "escape", "--python").out == said.out, "a run searches it if asked"
    assert "\x1b" not in said.out, "a document does not command the terminal"
    assert list((tmp_path / "cache" / "hf_distill" / "search").iterdir())


def test_the_demo_answers_for_both_models_and_escapes(copied: Path, teacher_dir: Path) -> None:
    title, sides, ids, texts = local_demo(finished(copied))
    assert title == "tiny: teacher and student"
    assert [side.name for side in sides] == ["teacher: teacher", "student: tiny"]
    assert len(texts) == 200
    teacher = SentenceTransformer(str(teacher_dir), device="cpu")
    best = texts[int((teacher.encode(texts) @ teacher.encode("a cat")).argmax())]
    page = demo_app.answer_html(sides[0], "a cat", ids, texts)
    assert page.index(best) < page.index("</li>")
    evil = "<script>alert(1)</script>"
    assert "<script" not in demo_app.answer_html(sides[1], evil, [evil] * 200, [evil] * 200)
    assert demo_app.answer_html(sides[1], " ", ids, texts) == ""


def test_the_demos_teacher_is_the_runs(
    copied: Path, teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = {
        "teacher_pooling": "cls",
        "teacher_max_length": 4,
        "teacher_similarity": "euclidean",
        "query_prompt": "ask ",
        "regression_weight": 0.0,
    }
    results = finished(copied, *(text for k, v in changed.items() for text in (f"--{k}", str(v))))
    _, (side, _), _, texts = local_demo(results)
    teacher = SentenceTransformer(str(teacher_dir), device="cpu")
    teacher[1] = Pooling(teacher[1].embedding_dimension, pooling_mode="cls")
    teacher.max_seq_length = 4
    expected = -np.linalg.norm(teacher.encode(texts) - teacher.encode("ask a cat"), axis=1)
    scores = side.score(side.embed("a cat"), side.embeddings)
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    with pytest.raises(InputError, match="Space"):
        write_space(results, tmp_path / "space", "you/student")
    monkeypatch.setattr(demo, "hub_id", str)
    with pytest.raises(InputError, match="teacher_pooling cls, teacher_max_length 4"):
        write_space(results, tmp_path / "space", "you/student")
    assert not (tmp_path / "space").exists()


def test_a_space_loads_what_the_demo_here_shows(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = finished(copied)
    monkeypatch.setattr(demo, "hub_id", str)
    write_space(results, tmp_path, str(results.folder.student))
    _, here, *documents = local_demo(results)
    title, sides, *loaded = demo_app.load(tmp_path)
    assert loaded == documents
    for local, side in zip(here, sides, strict=True):
        expected = local.score(local.embed("a cat"), local.embeddings)
        scores = side.score(side.embed("a cat"), side.embeddings)
        np.testing.assert_allclose(scores, expected, atol=2e-3)
    front = yaml.safe_load((tmp_path / "README.md").read_text().split("---")[1])
    assert front["title"] == title
    assert (tmp_path / "app.py").read_text() == Path(demo_app.__file__).read_text()


def test_the_demo_is_a_gradio_app(copied: Path) -> None:
    gradio = pytest.importorskip("gradio")
    assert isinstance(demo_app.build(*local_demo(finished(copied))), gradio.Blocks)


# --- what is published is what was measured


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damaged",
    ["student_model_sd/model.safetensors", "dataset/selected/train-00000-of-00001.parquet",
     "evaluation.json", "retrieval/student.run", "teacher_soft_labels.json"],
)  # fmt: skip
def test_a_damaged_artefact_is_not_published(copied: Path, damaged: str) -> None:
    flip_a_bit(copied / damaged)
    line = ["publish", copied, "--model", "you/student", "--dataset", "you/pairs", "--dry_run"]
    said = call(line, main)
    assert said.code == 2
    assert damaged in said.err


def test_what_a_link_leads_to_is_not_published(copied: Path, tmp_path: Path) -> None:
    secret = tmp_path / "id_rsa"
    secret.write_text("secret")
    for folder in ("student_model_sd", "dataset/selected"):
        link = copied / folder / "notes.txt"
        link.symlink_to(secret)
        line = ["publish", copied, "--model", "you/student", "--dataset", "you/pairs", "--dry_run"]
        said = call(line, main)
        assert (said.code, f"{folder}/notes.txt" in said.err) == (2, True)
        link.unlink()


def test_pairs_of_an_earlier_selection_are_not_published(tiny: Path, copied: Path) -> None:
    run_tiny(tiny, copied, "--selection", "percentile=50", "--until", "evaluate")
    line = ["publish", copied, "--model", "you/student", "--dataset", "you/pairs", "--dry_run"]
    said = call(line, main)
    assert said.code == 2
    assert "earlier selection" in said.err


def test_only_files_that_the_run_wrote_are_published(copied: Path) -> None:
    line = ["publish", copied, "--model", "you/student", "--dataset", "you/pairs", "--dry_run"]
    sent = r"^  send .* bytes  (.*)$"
    before = re.findall(sent, run(*line).out, re.MULTILINE)
    foreign = ["student_model_sd/secret.txt", "student_model_sd/onnx/model.onnx",
               "student_model_sd/.eval_results/x.yaml", "dataset/selected/train-9.parquet",
               "student_model_sd/2_Dense/pytorch_model.bin"]  # fmt: skip
    for name in foreign:
        (copied / name).parent.mkdir(exist_ok=True)
        (copied / name).write_text("not of this run")
    (copied / "student_model_sd" / "README.md").write_text("not the card of this run")
    said = run(*line)
    assert re.findall(sent, said.out, re.MULTILINE) == before
    for name in foreign:
        assert f"{name.split('/', 1)[1]} was not written by this run" in said.out
    student = releases_of(finished(copied, *PUSH))[1]
    files = student.files()
    assert sorted(files) == sorted(set(files) - {"secret.txt"})
    assert b"not the card" not in files["README.md"]
    own = {p.relative_to(student.folder).as_posix() for p in student.folder.rglob("*")}
    assert set(files) - own <= {".eval_results/retrieval.yaml"}


@pytest.mark.parametrize(
    ("key", "value", "until"),
    [("temperature", 0.4, "select"), ("query_prompt", "ask ", "score"), ("seed", 9, "read"),
     ("eval_strategy", "no", "select")],
)  # fmt: skip
def test_a_recipe_that_a_stopped_call_changed_is_noticed(
    tiny: Path, copied: Path, key: str, value: object, until: str
) -> None:
    more = ("--load_best_model_at_end", "false", "--early_stopping_patience", "none")
    line = (f"--{key}", value, *(more if value == "no" else ()))
    run_tiny(tiny, copied, *line, "--until", until)
    with pytest.raises(InputError, match=rf"recipe.yaml.* {key} is {value!r} there"):
        finished(copied)
    if key == "temperature":
        run_tiny(tiny, copied, "--until", "read", "--card_examples", "false")
        assert finished(copied), "the recipe is that of the results again"


@pytest.mark.parametrize(
    "line", [["publish", "--model", "you/x"], ["export"], ["study", "--rules", "percentile=60"]]
)
def test_what_writes_into_a_run_waits_for_nobody_and_disturbs_nobody(
    copied: Path, tiny: Path, line: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish_command, "releases_of", lambda _: [])
    before = contents(copied)
    with held(RunFolder(copied)):
        where = [tiny, "--run_dir", copied] if line[0] == "study" else [copied]
        said = run(line[0], *where, *line[1:])
        assert (said.code, f"in use by process {os.getpid()}" in said.err) == (2, True)
    assert contents(copied) == before
