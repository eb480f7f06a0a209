"""A static student for model2vec: its embeddings are the student's, or nothing is written."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import call, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from run_results import run_results
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, StaticEmbedding
from tiny_models import WORDS
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from hf_distill.commands.main import main
from hf_distill.errors import InputError
from hf_distill.evaluation.efficiency import bytes_on_disk
from hf_distill.release.cards import PLACEHOLDER
from hf_distill.release.model2vec import (
    FILES,
    FOLDER,
    WEIGHTS,
    Model2VecRecord,
    export_model2vec,
    measure_model2vec,
    measured_model2vec,
    model2vec_files,
    table_of,
)
from hf_distill.release.model_card import model_cards
from hf_distill.release.parity import Attempt, Student, attempts_of, texts_of, verify
from hf_distill.release.runtimes.table import RUNTIMES
from hf_distill.report.results import RunResults
from hf_distill.run.folder import RunFolder, save_recipe
from hf_distill.run.stage import listed, read_json
from hf_distill.student.save import save_student

model2vec = pytest.importorskip("model2vec", reason="model2vec is not installed")

PROMPTS = {"query": "who ", "document": ""}


def tokenizer(limit: int | None = 24) -> Tokenizer:
    own = Tokenizer.from_str(make_tokenizer().backend_tokenizer.to_str())
    if limit is not None:
        own.enable_truncation(limit)
    return own


def head(bias: bool = False, activation: nn.Module | None = None) -> Dense:
    return Dense(8, 5, bias=bias, activation_function=activation or nn.Identity())


def save(
    folder: Path, rest: Sequence[nn.Module], limit: int | None = 24, unknown: float = 0
) -> None:
    """A random student; `unknown` is every number in the vector of the unknown token."""
    torch.manual_seed(0)
    table = StaticEmbedding(tokenizer(limit), embedding_dim=8)
    with torch.no_grad():
        table.embedding.weight[1] = unknown
    modules = [table, *rest]
    save_student(SentenceTransformer(modules=modules, device="cpu", prompts=PROMPTS), folder)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a head, exported."""
    folder = tmp_path_factory.mktemp("model2vec") / "student"
    save(folder, [head(), Normalize()])
    assert export_model2vec(folder) == folder / WEIGHTS
    return folder


def test_the_mean_of_mapped_vectors_by_hand() -> None:
    table = StaticEmbedding(tokenizer(), torch.eye(len(WORDS) + 5)[:, :2].contiguous())
    own = Dense(2, 2, bias=False, activation_function=nn.Identity())
    with torch.no_grad():
        own.linear.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    rows, normalised = table_of(SentenceTransformer(modules=[table, own], device="cpu"))
    assert rows[:3].tolist() == [[1, 3], [2, 4], [0, 0]]
    assert (rows.dtype, normalised) == (np.float32, False)


TEXT = st.lists(st.sampled_from([*WORDS, "漢", "xyz", " "]), max_size=11).map(" ".join)
"""Not so long that model2vec would cut it by its characters."""


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(TEXT, max_size=5))
def test_model2vec_embeds_as_the_student_does(exported: Path, texts: list[str]) -> None:
    static = model2vec.StaticModel.from_pretrained(exported / FOLDER)
    student = SentenceTransformer(str(exported), device="cpu")
    every = ["", "the cat " * 100, *texts]
    np.testing.assert_allclose(static.encode(every), student.encode(every), atol=1e-5)


def test_the_folder_says_what_model2vec_must_do(exported: Path) -> None:
    config = json.loads((exported / FOLDER / "config.json").read_text())
    assert (config["normalize"], config["max_length"], config["hidden_dim"]) == (True, 24, 5)
    assert sorted(path.name for path in (exported / FOLDER).iterdir()) == sorted(
        Path(name).name for name in FILES
    )
    without = sum(
        path.stat().st_size for path in exported.rglob("*") if path.parent.name != FOLDER
        and path.is_file()
    )  # fmt: skip
    assert bytes_on_disk(exported) == without, "sentence-transformers does not read it"


def test_bytes_have_no_unknown_token(tmp_path: Path) -> None:
    """So neither unit length nor a limit is needed."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    of_bytes = Tokenizer(models.BPE({byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    of_bytes.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    folder = tmp_path / "student"
    table = StaticEmbedding(of_bytes, embedding_dim=8)
    save_student(SentenceTransformer(modules=[table], device="cpu"), folder)
    export_model2vec(folder)
    config = json.loads((folder / FOLDER / "config.json").read_text())
    assert (config["normalize"], config["max_length"]) == (False, None)
    static = model2vec.StaticModel.from_pretrained(folder / FOLDER)
    student = SentenceTransformer(str(folder), device="cpu")
    texts = ["a cat 漢字 🙂", "the cat " * 1000, ""]
    np.testing.assert_allclose(static.encode(texts), student.encode(texts), atol=1e-5)


@pytest.mark.parametrize(
    ("rest", "unknown", "why"),
    [
        ([head(bias=True), Normalize()], 0, "its head has a bias"),
        ([head(activation=nn.Tanh()), Normalize()], 0, "its head has the activation Tanh"),
        ([Normalize(), head()], 0, "it has a Dense where model2vec has nothing"),
        ([Normalize()], 1, r"leaves out the unknown token \[UNK\], for which this student has"),
        ([], 0, r"leaves out the unknown token \[UNK\]"),
    ],
)  # fmt: skip
def test_what_is_not_equal_is_refused_with_the_reason(
    rest: list[nn.Module], unknown: float, why: str, tmp_path: Path
) -> None:
    folder = tmp_path / "student"
    save(folder, rest, unknown=unknown)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=why):
        export_model2vec(folder)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_texts_that_model2vec_cuts_earlier_are_a_reason(tmp_path: Path) -> None:
    """Cut at one token, a text is first cut at the median length of a token: words break."""
    folder = tmp_path / "student"
    save(folder, [Normalize()], limit=1)
    with pytest.raises(InputError, match=r"model2vec cuts a text at \d characters before"):
        export_model2vec(folder)


def test_a_transformer_has_no_table(backbone_dir: Path, tmp_path: Path) -> None:
    modules = [Transformer(str(backbone_dir)), Pooling(32, pooling_mode="mean"), Normalize()]
    save_student(SentenceTransformer(modules=modules, device="cpu"), tmp_path / "student")
    with pytest.raises(InputError, match=r"begins with a Transformer.* use --format onnx"):
        export_model2vec(tmp_path / "student")
    with pytest.raises(InputError, match="holds no saved student"):
        export_model2vec(tmp_path)


def test_verify_tries_it(exported: Path) -> None:
    student = Student(exported, SentenceTransformer(str(exported), device="cpu"), None)
    (compared,) = verify(student, texts_of(None), attempts_of(["model2vec"])).tried
    assert compared.agrees, compared.reason


def test_verify_says_what_could_be_written_for_it(backbone_dir: Path, tmp_path: Path) -> None:
    save(tmp_path / "static", [Normalize()])
    modules = [Transformer(str(backbone_dir)), Pooling(32, pooling_mode="mean"), Normalize()]
    save_student(SentenceTransformer(modules=modules, device="cpu"), tmp_path / "deep")

    def not_tried(folder: Path, name: str) -> tuple[str, str | None]:
        student = Student(folder, SentenceTransformer(str(folder), device="cpu"), None)
        attempts = [Attempt(name, RUNTIMES[name], asked_for=False)]
        said = {one.runtime: one for one in verify(student, texts_of(None), attempts).not_tried}
        return said[name].why, said[name].line

    line = "hf-distill export STUDENT --format "
    assert not_tried(tmp_path / "static", "model2vec") == (
        f"the student has no {WEIGHTS}", f"{line}model2vec"
    )  # fmt: skip
    assert not_tried(tmp_path / "deep", "onnxruntime")[1] == f"{line}onnx"
    assert not_tried(tmp_path / "static", "onnxruntime") == ("a static student has no graph", None)
    assert not_tried(tmp_path / "deep", "model2vec") == ("it reads static students only", None)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunResults:
    folder = RunFolder(tmp_path_factory.mktemp("run") / "run")
    results, *_ = run_results(folder)
    save(folder.student, [Normalize()])
    save_recipe(results.recipe, folder)
    return dataclasses.replace(
        results,
        recipe=dataclasses.replace(
            results.recipe,
            student=dataclasses.replace(results.recipe.student, student_backbone="static"),
        ),
    )


def test_the_command_exports_and_says_what_it_costs(
    run: RunResults, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = call(["export", exported, "--format", "model2vec"], main)
    assert (said.code, said.out.split()[0]) == (0, "model2vec")
    monkeypatch.setattr("hf_distill.commands.export.finished", lambda _: run)
    monkeypatch.setattr("hf_distill.commands.export.student_of", lambda _: run.folder.student)
    said = call(["export", run.folder.path, "--format", "model2vec"], main)
    assert said.code == 0, said.err
    assert "+0.0000 (+0.0000 to +0.0000)" in said.out
    assert "In PyTorch, a query takes" in said.out
    own = {run.folder.student / name for name in FILES}
    assert listed(run.folder.model2vec) == own, "they go when another student is trained"


def test_a_runs_student_is_measured_and_its_card_says_what_it_costs(run: RunResults) -> None:
    export_model2vec(run.folder.student)
    run.folder.model2vec.unlink(missing_ok=True)
    assert measured_model2vec(run) is None
    assert model2vec_files(run) == frozenset()
    record = measure_model2vec(run)
    assert measured_model2vec(run) == record == read_json(run.folder.model2vec, Model2VecRecord)
    assert model2vec_files(run) == frozenset(FILES)
    (variant,) = record.variants.values()
    assert record.num_queries == 36
    assert (variant.minus_student.low, variant.minus_student.high) == (0, 0)
    assert variant.query_ms is not None
    assert record.query_ms is not None
    assert 0 < variant.query_ms < record.query_ms, "no torch"
    card = model_cards(run)["README.md"].decode()
    assert "### model2vec" in card
    assert f"| `{WEIGHTS}` |" in card
    block = card.partition("### model2vec")[2].split("```")[1].removeprefix("python\n")
    values: dict[str, Any] = {}
    exec(block.replace(PLACEHOLDER, str(run.folder.student)), values)
    student = SentenceTransformer(str(run.folder.student), device="cpu")
    expected = student.encode_query(["how do I read a csv file"])
    np.testing.assert_allclose(values["queries"], expected, atol=1e-5)
    another = dataclasses.replace(run.training, key="another")
    assert measured_model2vec(dataclasses.replace(run, training=another)) is None
