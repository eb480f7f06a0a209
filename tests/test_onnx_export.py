"""The exported graph: embeddings equal to the model's, and served without torch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from hf_distill.errors import InputError
from hf_distill.recipe.arguments import (
    StudentArguments,
    TeacherArguments,
)
from hf_distill.release.onnx import (
    FILES,
    export_onnx,
    load_onnx,
)
from hf_distill.student.build import build_student
from hf_distill.student.save import save_student
from hf_distill.teachers.bi_encoder import load_bi_encoder

TEXTS = ["a cat", "the river of the moon and the sun", "who", "x" * 500, "fly " * 100, ""]


@pytest.fixture(scope="module", params=["mean", "cls"])
def exported(
    request: pytest.FixtureRequest, teacher_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    teacher = load_bi_encoder(TeacherArguments(teacher=str(teacher_dir), query_prompt="who "))
    arguments = StudentArguments(
        student_layers="0,2", student_dim=16, student_max_length=24, student_pooling=request.param
    )
    folder = tmp_path_factory.mktemp("onnx") / "student"
    save_student(build_student(arguments, teacher, None, 0).eval(), folder)
    export_onnx(folder)
    return folder


def test_float32_embeddings_are_equal_and_int8_ones_close(exported: Path) -> None:
    model = SentenceTransformer(str(exported), device="cpu")
    for kind, embed in (("query", model.encode_query), ("document", model.encode_document)):
        exact = load_onnx(exported).encode(TEXTS, kind)
        np.testing.assert_allclose(exact, embed(TEXTS), atol=1e-5)
        small = load_onnx(exported, "int8").encode(TEXTS, kind)
        assert (exact * small).sum(axis=1).min() > 0.95
        np.testing.assert_allclose(np.linalg.norm(small, axis=1), 1, atol=1e-5)
    assert (exported / FILES["int8"]).stat().st_size < (exported / FILES["float32"]).stat().st_size


def test_a_batch_does_not_change_a_text(exported: Path) -> None:
    encoder = load_onnx(exported)
    together = encoder.encode(TEXTS * 12)
    np.testing.assert_allclose(
        together[: len(TEXTS)],
        np.concatenate([encoder.encode([text]) for text in TEXTS]),
        atol=1e-6,
    )


def test_onnxruntime_and_tokenizers_are_enough(exported: Path) -> None:
    code = f"""
import json, sys
import numpy as np, onnxruntime
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file({str(exported / "tokenizer.json")!r})
tokenizer.enable_padding()
tokenizer.enable_truncation(24)
session = onnxruntime.InferenceSession({str(exported / FILES["float32"])!r})
assert [output.name for output in session.get_outputs()] == ["sentence_embedding"]
tokens = tokenizer.encode_batch({TEXTS!r})
feed = {{"input_ids": [t.ids for t in tokens], "attention_mask": [t.attention_mask for t in tokens]}}
made = session.run(["sentence_embedding"], {{name: np.array(rows, dtype=np.int64) for name, rows in feed.items()}})[0]
assert not {{"torch", "transformers", "sentence_transformers"}} & set(sys.modules)
print(json.dumps(made.tolist()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    np.testing.assert_allclose(
        json.loads(done.stdout),
        SentenceTransformer(str(exported), device="cpu").encode(TEXTS),
        atol=1e-5,
    )


def test_what_is_not_there_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: Path
) -> None:
    with pytest.raises(InputError, match="holds no saved student"):
        export_onnx(tmp_path)
    with pytest.raises(InputError, match="hf-distill export"):
        load_onnx(tmp_path)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=r"pip install 'hf_distill\[onnx\]'"):
        export_onnx(exported)
