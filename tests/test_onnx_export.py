"""The exported graph: embeddings equal to the model's, served without torch, and measured."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from run_results import run_results
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling

from hf_distill.errors import InputError
from hf_distill.evaluation.tasks import held_out_task
from hf_distill.release.cost import TIMED, query_milliseconds
from hf_distill.release.model_card import model_cards
from hf_distill.release.onnx import OnnxRecord, export_onnx, measure_onnx, measured_onnx
from hf_distill.release.onnx_encoder import FILES, load_onnx
from hf_distill.report.results import RunResults
from hf_distill.run.folder import RunFolder, save_recipe
from hf_distill.run.stage import read_json, write_result
from hf_distill.student.save import save_student

TEXTS = ["a cat", "the river of the moon and the sun", "who", "x" * 500, "fly " * 100, ""]


def saved(backbone_dir: Path, pooling: str, folder: Path) -> None:
    """Save a random student with a query prompt into `folder`, and export it."""
    torch.manual_seed(0)
    head = Dense(32, 16, bias=False, activation_function=torch.nn.Identity())
    modules = [Transformer(str(backbone_dir)), Pooling(32, pooling_mode=pooling), head, Normalize()]
    student = SentenceTransformer(
        modules=modules, device="cpu", prompts={"query": "who ", "document": ""}
    )
    student.max_seq_length = 24
    save_student(student.eval(), folder)
    export_onnx(folder)


@pytest.fixture(scope="module", params=["mean", "cls"])
def exported(
    request: pytest.FixtureRequest, backbone_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("onnx") / "student"
    saved(backbone_dir, request.param, folder)
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
    together = encoder.encode(TEXTS * 12)[: len(TEXTS)]
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-6)


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
feed = {{
    "input_ids": np.array([t.ids for t in tokens]),
    "attention_mask": np.array([t.attention_mask for t in tokens]),
}}
embeddings = session.run(["sentence_embedding"], feed)[0]
assert not {{"torch", "transformers", "sentence_transformers"}} & set(sys.modules)
print(json.dumps(embeddings.tolist()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = SentenceTransformer(str(exported), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(json.loads(done.stdout), expected, atol=1e-5)


def test_an_error_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: Path
) -> None:
    with pytest.raises(InputError, match="holds no saved student"):
        export_onnx(tmp_path)
    with pytest.raises(InputError, match="hf-distill export"):
        load_onnx(tmp_path)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=r"pip install 'hf_distill\[onnx\]'"):
        export_onnx(exported)


@pytest.fixture(scope="module")
def run(backbone_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResults:
    """A run whose student is exported."""
    folder = RunFolder(tmp_path_factory.mktemp("run") / "run")
    results, *_ = run_results(folder)
    saved(backbone_dir, "mean", folder.student)
    save_recipe(results.recipe, folder)
    return results


def test_both_precisions_are_measured_on_the_held_out_pairs(run: RunResults) -> None:
    run.folder.onnx.unlink(missing_ok=True)
    assert measured_onnx(run) is None, "exported, and not measured"
    record = measure_onnx(run)
    assert record.num_queries == 36
    assert list(record.variants) == list(FILES)
    exact = record.variants["float32"]
    assert abs(exact.minus_student.value) < 1e-9
    assert 0 < exact.ndcg.value < 1
    assert exact.ndcg.n == len(held_out_task(run.collection).queries)
    size = (run.folder.student / FILES["float32"]).stat().st_size
    assert exact.megabytes == round(size / 1e6, 1) > 0
    assert record.processor
    times = [record.query_ms, *(variant.query_ms for variant in record.variants.values())]
    assert all(0 < ms < 1000 for ms in times if ms is not None)
    assert None not in times
    assert measured_onnx(run) == record == read_json(run.folder.onnx, OnnxRecord)


def test_a_query_is_timed_alone_and_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked = [0.0], []
    monkeypatch.setattr("hf_distill.release.cost.time.perf_counter", lambda: now[0])

    def encoder(name: str, seconds: dict[str, float]) -> Callable[[str], None]:
        def encode(query: str) -> None:
            asked.append((name, query))
            now[0] += seconds[query] if len(asked) > 2 else 9  # the first call of each is slow

        return encode

    encoders = {
        "fast": encoder("fast", {"a": 0.001, "b": 0.001, "c": 0.5}),
        "slow": encoder("slow", {"a": 0.02, "b": 0.03, "c": 0.02}),
    }
    assert query_milliseconds(encoders, ["a", "b", "c"]) == {"fast": 1.0, "slow": 20.0}
    assert asked[:6] == [
        ("fast", "a"), ("slow", "a"), ("fast", "a"), ("slow", "a"), ("fast", "b"), ("slow", "b"),
    ]  # fmt: skip
    assert len(asked) == 2 * (1 + TIMED)


def test_a_measurement_without_times_is_read(run: RunResults) -> None:
    record = measure_onnx(run)
    older = dataclasses.replace(
        record,
        query_ms=None,
        processor=None,
        variants={
            name: dataclasses.replace(variant, query_ms=None)
            for name, variant in record.variants.items()
        },
    )
    card = model_cards(run)["README.md"].decode()
    assert "| ms a query |" in card
    assert f"in PyTorch it is {record.query_ms:.3g} ms" in card
    files = [run.folder.student / name for name in FILES.values()]
    write_result(run.folder.onnx, older, files)
    try:
        assert measured_onnx(run) == older
        assert "ms a query" not in model_cards(run)["README.md"].decode()
    finally:
        write_result(run.folder.onnx, record, files)


def test_a_measurement_is_reused_until_a_file_changes(
    run: RunResults, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = measure_onnx(run)
    monkeypatch.setattr("hf_distill.release.cost.held_out_task", lambda _: 1 / 0)
    assert measure_onnx(run) == record
    with (run.folder.student / FILES["int8"]).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ZeroDivisionError):
        measure_onnx(run)


def test_a_measurement_of_another_student_is_not_this_ones(run: RunResults) -> None:
    another = dataclasses.replace(run.training, key="another")
    assert measured_onnx(dataclasses.replace(run, training=another)) is None
