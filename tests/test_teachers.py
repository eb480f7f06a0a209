import importlib.metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import sentences
from sentence_transformers import SentenceTransformer

from hf_distill.compute import models as locate
from hf_distill.compute.device import (
    bfloat16_is_faster,
    bfloat16_speedup,
)
from hf_distill.compute.models import (
    QUICKSTART_SHA256,
    QUICKSTART_TEACHER,
    packaged_quickstart_teacher,
)
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import TeacherArguments
from hf_distill.run.folder import sha256_of
from hf_distill.teachers.bi_encoder import load_bi_encoder


def test_embeddings_are_the_models_own_normalised(teacher_dir: Path) -> None:
    teacher = load_bi_encoder(TeacherArguments(teacher=str(teacher_dir), teacher_dtype="float32"))
    texts = ["a cat", "the moon and the sun"]
    np.testing.assert_allclose(
        teacher.embed(texts),
        SentenceTransformer(str(teacher_dir), device="cpu").encode(
            texts, normalize_embeddings=True
        ),
        atol=1e-6,
    )
    assert teacher.dimension == 32
    assert teacher.embed(texts).dtype == np.float32


def test_pooling_can_be_replaced(teacher_dir: Path) -> None:
    plain, cls = (
        load_bi_encoder(TeacherArguments(teacher=str(teacher_dir), teacher_pooling=pooling))
        for pooling in (None, "cls")
    )
    assert plain.fingerprint != cls.fingerprint
    assert not np.allclose(plain.embed(["a cat"]), cls.embed(["a cat"]))


@pytest.mark.parametrize(
    "change",
    [{"teacher_similarity": "dot"}, {"teacher_max_length": 8}, {"teacher_dtype": "bfloat16"}],
    ids=lambda c: next(iter(c)),
)
def test_whatever_changes_embeddings_changes_the_fingerprint(
    teacher_dir: Path, change: dict
) -> None:
    one = load_bi_encoder(TeacherArguments(teacher=str(teacher_dir), teacher_dtype="float32"))
    other = load_bi_encoder(
        TeacherArguments(**{"teacher": str(teacher_dir), "teacher_dtype": "float32", **change})
    )
    assert one.fingerprint != other.fingerprint


def test_weights_change_the_fingerprint(teacher_dir: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(str(teacher_dir), device="cpu")
    before = load_bi_encoder(TeacherArguments(teacher=str(teacher_dir))).fingerprint
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1
    model.save_pretrained(str(tmp_path / "t"), create_model_card=False)
    assert load_bi_encoder(TeacherArguments(teacher=str(tmp_path / "t"))).fingerprint != before


def test_nan_embeddings_are_said_with_a_text(teacher_dir: Path) -> None:
    teacher = load_bi_encoder(TeacherArguments(teacher=str(teacher_dir)))
    with torch.no_grad():
        next(teacher.model.parameters()).fill_(torch.nan)
    with pytest.raises(
        InputError, match=r"NaN or infinite embeddings for 2 of 2 texts, e\.g\. for 'a cat'"
    ):
        teacher.embed(["a cat", "a dog"])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("./nowhere", "--teacher: no folder at ./nowhere"),
        (
            "nobody/no-such-teacher",
            "is no folder here, is not in the local Hub cache, and the Hub does not give it",
        ),
        ("not a name", "neither a folder nor a Hub id"),
    ],
)
def test_a_teacher_that_does_not_exist_is_said(name: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        load_bi_encoder(TeacherArguments(teacher=name))


def test_a_folder_without_a_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no model"):
        load_bi_encoder(TeacherArguments(teacher=str(tmp_path)))


def test_the_packaged_teacher_has_the_official_weights() -> None:
    folder = packaged_quickstart_teacher()
    if folder is None:
        pytest.skip(f"{locate.QUICKSTART_PACKAGE} is not installed")
    assert sha256_of(folder / "model.safetensors") == QUICKSTART_SHA256
    teacher = load_bi_encoder(TeacherArguments(teacher=QUICKSTART_TEACHER))
    assert (teacher.name, teacher.dimension, teacher.model.max_seq_length) == (
        QUICKSTART_TEACHER,
        384,
        256,
    )


def test_other_weights_under_the_packages_name_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class File:
        name = "model.safetensors"

        def locate(self) -> Path:
            return tmp_path / "model.safetensors"

    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.setattr(importlib.metadata, "files", lambda _: [File()])
    with pytest.raises(
        InputError,
        match=f"holds other weights than {QUICKSTART_TEACHER}: SHA-256 [0-9a-f]{{64}} instead of {QUICKSTART_SHA256}",
    ):
        packaged_quickstart_teacher()


def test_without_the_package_there_is_no_packaged_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "QUICKSTART_PACKAGE", "no-such-package-anywhere")
    assert packaged_quickstart_teacher() is None


def test_bfloat16_is_used_only_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, teacher_dir: Path
) -> None:
    assert bfloat16_is_faster("cpu") == (bfloat16_speedup("cpu") > 1.5)
    for faster, dtype in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(locate, "bfloat16_is_faster", lambda _, faster=faster: faster)
        assert load_bi_encoder(TeacherArguments(teacher=str(teacher_dir))).precision == dtype


def test_bfloat16_scores_stay_close_to_float32() -> None:
    if packaged_quickstart_teacher() is None:
        pytest.skip(f"{locate.QUICKSTART_PACKAGE} is not installed")
    exact, rough = (
        load_bi_encoder(TeacherArguments(teacher=QUICKSTART_TEACHER, teacher_dtype=d))
        for d in ("float32", "bfloat16")
    )
    texts = sentences(16)
    a, b = exact.embed(texts), rough.embed(texts)
    np.testing.assert_allclose(np.linalg.norm(b, axis=1), 1, atol=1e-6)
    difference = np.abs(a @ a.T - b @ b.T)
    assert difference.mean() < 2e-3
    assert difference.max() < 1e-2
