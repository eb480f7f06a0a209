"""The student for OpenVINO, and why there is none for llama.cpp."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import call
from run_results import run_results
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling

from hf_distill.commands.main import main
from hf_distill.errors import InputError
from hf_distill.release import openvino as module
from hf_distill.release.cards import PLACEHOLDER
from hf_distill.release.model_card import model_cards
from hf_distill.release.openvino import (
    GRAPH,
    WEIGHTS,
    export_openvino,
    load_openvino,
    measure_openvino,
    measured_openvino,
    openvino_files,
)
from hf_distill.release.parity import Student, attempts_of, texts_of, verify
from hf_distill.release.probes import PROBES
from hf_distill.run.folder import RunFolder, save_recipe
from hf_distill.run.stage import write_result
from hf_distill.student.save import save_student

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def save(backbone_dir: Path, folder: Path) -> None:
    torch.manual_seed(0)
    head = Dense(32, 16, bias=False, activation_function=torch.nn.Identity())
    modules = [Transformer(str(backbone_dir)), Pooling(32, pooling_mode="mean"), head, Normalize()]
    student = SentenceTransformer(
        modules=modules, device="cpu", prompts={"query": "who ", "document": ""}
    )
    student.max_seq_length = 24
    save_student(student.eval(), folder)


def test_openvino_in_int8_is_close_measured_and_in_the_card(
    backbone_dir: Path, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nncf")
    results, *_ = run_results(folder)
    save(backbone_dir, folder.student)
    save_recipe(results.recipe, folder)
    write_result(folder.training, results.training, [folder.student])
    monkeypatch.delenv("NNCF_CI", raising=False)
    assert export_openvino(folder.student) == folder.student / WEIGHTS
    assert os.environ["NNCF_CI"], "nncf reports to nobody"
    model = SentenceTransformer(str(folder.student), device="cpu")
    embedded = load_openvino(folder.student).encode(PROBES, "query")
    expected = model.encode_query(list(PROBES), show_progress_bar=False)
    assert 1e-5 < np.abs(embedded - expected).max() < 0.1
    assert (embedded * expected).sum(axis=1).min() > 0.99
    assert measured_openvino(results) is None, "exported, and not measured"
    record = measure_openvino(results)
    assert measured_openvino(results) == record
    assert openvino_files(results) == {GRAPH, WEIGHTS}
    assert list(record.variants) == ["int8"]
    card = model_cards(results)["README.md"].decode()
    assert f"| `{WEIGHTS}` | " in card
    (block,) = re.findall(r"```python\n([^`]*import openvino\n.*?)```", card, re.DOTALL)
    values: dict[str, Any] = {}
    exec(block.replace(PLACEHOLDER, str(folder.student)), values)
    asked = load_openvino(folder.student).encode(["how do I read a csv file"], "query")
    np.testing.assert_allclose(values["queries"], asked, atol=1e-2)  # bfloat16 where the CPU can

    student = Student(folder.student, model, None)
    parity = verify(student, texts_of(None), attempts_of(["openvino-int8"]))
    (compared,) = parity.tried
    assert compared.precision == "int8"
    assert compared.recall is not None
    assert compared.recall > 0.8
    assert compared.difference is not None
    assert 1e-5 < compared.difference < 0.1
    assert {GRAPH, WEIGHTS} < parity.files.keys()
    before = (folder.student / WEIGHTS).read_bytes()
    monkeypatch.setattr(module, "TOLERANCE", -1)
    with pytest.raises(RuntimeError, match="nothing was written"):
        export_openvino(folder.student)
    assert (folder.student / WEIGHTS).read_bytes() == before


def test_what_openvino_needs_is_said(
    backbone_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(backbone_dir, tmp_path / "student")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InputError, match=r"pip install 'hf_distill\[openvino\]'"):
        export_openvino(tmp_path / "student")
    with pytest.raises(InputError, match="--format openvino"):
        load_openvino(tmp_path / "student")
    assert not (tmp_path / "student" / "openvino").exists()


@pytest.mark.parametrize(
    ("kinds", "says", "instead"),
    [
        (("Transformer", "Pooling", "Dense", "Normalize"), "the student has a linear head", "onnx"),
        (("Transformer", "Pooling", "Normalize"), "a table of float16", "onnx"),
        (("StaticEmbedding", "Normalize"), "begins with a StaticEmbedding", "model2vec"),
    ],
)
def test_llama_cpp_is_refused_with_the_reason(
    backbone_dir: Path, tmp_path: Path, kinds: tuple[str, ...], says: str, instead: str
) -> None:
    save(backbone_dir, tmp_path)
    modules = [{"type": f"sentence_transformers.models.{kind}"} for kind in kinds]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    said = call(["export", tmp_path, "--format", "gguf"], main)
    assert said.code == 2
    assert says in said.err
    assert f"use --format {instead}" in said.err
