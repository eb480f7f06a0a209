"""A SentenceTransformer as teacher, and where models come from."""

import dataclasses
import importlib.metadata
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import recipe_of, sentences
from huggingface_hub.errors import LocalEntryNotFoundError
from sentence_transformers import SentenceTransformer
from torch import nn

from hf_distill.compute import models
from hf_distill.compute.models import (
    QUICKSTART_SHA256,
    QUICKSTART_TEACHER,
    chosen_dtype,
    digest_of_weights,
    locate_model,
    packaged_quickstart_teacher,
)
from hf_distill.errors import InputError
from hf_distill.run.stage import sha256_of
from hf_distill.teachers.bi_encoder import BiEncoderTeacher, load_bi_encoder


def load(teacher: object, **keys: object) -> BiEncoderTeacher:
    return load_bi_encoder(recipe_of(teacher=teacher, **keys))


def test_embeddings_are_the_models_own_normalised(teacher_dir: Path) -> None:
    teacher = load(teacher_dir)
    texts = ["a cat", "the moon and the sun"]
    model = SentenceTransformer(str(teacher_dir), device="cpu")
    np.testing.assert_allclose(
        teacher.embed(texts), model.encode(texts, normalize_embeddings=True), atol=1e-6
    )
    assert teacher.embed(texts).dtype == np.float32
    assert teacher.dimension == 32


def test_a_bi_encoder_says_what_it_can_do(teacher_dir: Path) -> None:
    teacher = load(teacher_dir)
    assert teacher.embeds
    assert teacher.embeds_new_texts
    assert not teacher.scores_pairs
    assert isinstance(teacher.backbone, SentenceTransformer)
    with pytest.raises(dataclasses.FrozenInstanceError):
        teacher.name = "other"  # type: ignore[misc]


def test_pooling_can_be_replaced(teacher_dir: Path) -> None:
    mean, cls = (load(teacher_dir, teacher_pooling=pooling) for pooling in (None, "cls"))
    assert not np.allclose(mean.embed(["a cat"]), cls.embed(["a cat"]))


def test_pooling_that_is_not_there_cannot_be_replaced(tmp_path: Path, teacher_dir: Path) -> None:
    modules = list(SentenceTransformer(str(teacher_dir), device="cpu"))[:2]
    double = SentenceTransformer(modules=[*modules, modules[1]], device="cpu")
    double.save_pretrained(str(tmp_path / "t"), create_model_card=False)
    with pytest.raises(InputError, match=r"--teacher_pooling cls .* has 2"):
        load(tmp_path / "t", teacher_pooling="cls")


def test_prompts_are_the_recipes_or_the_models_own(tmp_path: Path, teacher_dir: Path) -> None:
    model = SentenceTransformer(str(teacher_dir), device="cpu")
    model.prompts = {"query": "q: ", "passage": "p: "}
    model.save_pretrained(str(tmp_path / "t"), create_model_card=False)
    own = load(tmp_path / "t").prompts
    assert (own.of("query"), own.of("document")) == ("q: ", "p: ")
    given = load(tmp_path / "t", query_prompt="ask ", document_prompt="").prompts
    assert (given.of("query"), given.of("document")) == ("ask ", "")


@pytest.mark.parametrize(
    "change",
    [
        {"teacher_similarity": "dot"}, {"teacher_max_length": 8}, {"teacher_dtype": "bfloat16"},
        {"teacher_pooling": "cls"},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_whatever_changes_scores_changes_the_identity(
    teacher_dir: Path, change: dict[str, object]
) -> None:
    identities = [load(teacher_dir, **keys).identity for keys in ({}, {}, change)]
    assert identities[0] == identities[1]
    assert json.loads(json.dumps(identities[0])) != json.loads(json.dumps(identities[2]))


def test_weights_change_the_identity(teacher_dir: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(str(teacher_dir), device="cpu")
    model.save_pretrained(str(tmp_path / "same"), create_model_card=False)
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1
    model.save_pretrained(str(tmp_path / "other"), create_model_card=False)
    assert load(tmp_path / "same").identity == load(teacher_dir).identity
    assert load(tmp_path / "other").identity != load(teacher_dir).identity


def test_settings_of_the_model_change_the_identity(teacher_dir: Path, tmp_path: Path) -> None:
    """Equal weights, other heads of attention."""
    model = SentenceTransformer(str(teacher_dir), device="cpu")
    model.save_pretrained(str(tmp_path / "t"), create_model_card=False)
    config = tmp_path / "t" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_attention_heads": 2}))
    one, other = load(teacher_dir), load(tmp_path / "t")
    assert not np.allclose(one.embed(["a cat"]), other.embed(["a cat"]))
    assert one.identity != other.identity


def test_weights_have_a_digest_whatever_their_shape() -> None:
    def digest(*tensors: torch.Tensor) -> str:
        model = nn.Module()
        for i, tensor in enumerate(tensors):
            model.register_buffer(f"t{i}", tensor)
        return digest_of_weights(model)

    scalar, empty = torch.tensor(1.0), torch.empty(0, 3)
    digests = {
        digest(scalar, empty),
        digest(scalar + 1, empty),
        digest(scalar.to(torch.bfloat16), empty),
        digest(scalar.reshape(1), empty),
        digest(scalar, torch.empty(3, 0)),
    }
    assert len(digests) == 5
    assert digest(torch.arange(6).view(2, 3).T) == digest(torch.arange(6).view(2, 3).T.contiguous())


def test_nan_embeddings_are_said_with_a_text(teacher_dir: Path) -> None:
    teacher = load(teacher_dir)
    with torch.no_grad():
        next(teacher.backbone.parameters()).fill_(torch.nan)
    with pytest.raises(InputError, match=r"for 2 of 2 texts, e\.g\. for 'a cat'"):
        teacher.embed(["a cat", "a dog"])


@pytest.mark.parametrize("name", ["./nowhere", "nobody/no-such-teacher", "not a name"])
def test_a_teacher_that_does_not_exist_is_said(name: str) -> None:
    with pytest.raises(InputError, match=f"--teacher '?{name}"):
        load(name)


def test_a_folder_without_a_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"--teacher {tmp_path}.*modules.json"):
        load(tmp_path)


def test_the_packaged_teacher_has_the_official_weights() -> None:
    folder = packaged_quickstart_teacher()
    if folder is None:
        pytest.skip(f"{models.QUICKSTART_PACKAGE} is not installed")
    assert sha256_of(folder / "model.safetensors") == QUICKSTART_SHA256
    teacher = load(QUICKSTART_TEACHER)
    assert (teacher.name, teacher.dimension) == (QUICKSTART_TEACHER, 384)
    assert teacher.backbone.max_seq_length == 256


def test_other_weights_under_the_packages_name_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class File:
        name = "model.safetensors"

        def locate(self) -> Path:
            return tmp_path / "model.safetensors"

    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.setattr(importlib.metadata, "files", lambda _: [File()])
    with pytest.raises(InputError, match=f"[0-9a-f]{{64}} instead of {QUICKSTART_SHA256}"):
        packaged_quickstart_teacher()


def test_without_the_package_there_is_no_packaged_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "QUICKSTART_PACKAGE", "no-such-package-anywhere")
    assert packaged_quickstart_teacher() is None


def test_models_come_from_the_cache_then_the_package_then_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached, asked = {"you/cached"}, []

    def snapshot(name: str, local_files_only: bool = False) -> str:
        asked.append((name, local_files_only))
        if local_files_only and name not in cached:
            raise LocalEntryNotFoundError("not in the cache")
        return str(tmp_path / name)

    monkeypatch.setattr(models, "snapshot_download", snapshot)
    monkeypatch.setattr(models, "packaged_quickstart_teacher", lambda: tmp_path / "package")
    assert locate_model("you/cached", "teacher") == tmp_path / "you/cached"
    assert locate_model(QUICKSTART_TEACHER, "teacher") == tmp_path / "package"
    assert asked == [("you/cached", True), (QUICKSTART_TEACHER, True)], "the Hub was not asked"
    assert locate_model("you/far", "teacher") == tmp_path / "you/far"
    assert asked[2:] == [("you/far", True), ("you/far", False)]


@pytest.mark.parametrize(
    ("fast", "dtype"), [("bf16", "bfloat16"), ("fp16", "float16"), ("fp32", "float32")]
)
def test_auto_is_the_precision_that_is_fast_here(
    monkeypatch: pytest.MonkeyPatch, fast: str, dtype: str, teacher_dir: Path
) -> None:
    monkeypatch.setattr(models, "fast_precision", lambda _: fast)
    assert load(teacher_dir, teacher_dtype="auto").precision == dtype
    assert chosen_dtype("float16", "cpu") == torch.float16


def test_bfloat16_scores_stay_close_to_float32() -> None:
    if packaged_quickstart_teacher() is None:
        pytest.skip(f"{models.QUICKSTART_PACKAGE} is not installed")
    exact, rough = (
        load(QUICKSTART_TEACHER, teacher_dtype=dtype) for dtype in ("float32", "bfloat16")
    )
    texts = sentences(16)
    a, b = exact.embed(texts), rough.embed(texts)
    np.testing.assert_allclose(np.linalg.norm(b, axis=1), 1, atol=1e-6)
    difference = np.abs(a @ a.T - b @ b.T)
    assert difference.mean() < 2e-3
    assert difference.max() < 1e-2
