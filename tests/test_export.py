import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tiny_teacher import tiny_teacher
from transformers import AutoModel, AutoTokenizer

from hf_distill.recipe.arguments import StudentArguments
from hf_distill.student.build import build_student
from hf_distill.student.save import save_student

TEXTS = ["a cat", "the river of the moon and the sun", "who"]


@pytest.fixture(scope="module")
def student(teacher_dir: Path) -> SentenceTransformer:
    teacher = tiny_teacher(teacher_dir, query_prompt="who ")
    arguments = StudentArguments(
        student_layers="0,2", student_dim=16, student_max_length=24, head_dropout=0.1
    )
    return build_student(arguments, teacher, None, 0)


@pytest.fixture(scope="module")
def saved(student: SentenceTransformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    student.encode(TEXTS)  # leaves padding and truncation in the tokenizer
    path = tmp_path_factory.mktemp("saved") / "student"
    save_student(student, path)
    return path


def test_a_plain_load_gives_identical_embeddings(student: SentenceTransformer, saved: Path) -> None:
    loaded = SentenceTransformer(str(saved), device="cpu")
    assert [type(module) for module in loaded] == [Transformer, Pooling, Dense, Normalize]
    np.testing.assert_array_equal(loaded.encode(TEXTS), student.encode(TEXTS))
    np.testing.assert_array_equal(loaded.encode_query(TEXTS), student.encode_query(TEXTS))
    assert loaded.max_seq_length == 24
    assert loaded.similarity_fn_name == "cosine"


def test_the_layout_is_the_portable_one(saved: Path) -> None:
    modules = json.loads((saved / "modules.json").read_text())
    assert [m["type"] for m in modules] == [
        f"sentence_transformers.models.{n}"
        for n in ("Transformer", "Pooling", "Dense", "Normalize")
    ]
    assert [m["path"] for m in modules] == ["", "1_Pooling", "2_Dense", "3_Normalize"]
    pooling = json.loads((saved / "1_Pooling" / "config.json").read_text())
    assert (
        pooling["word_embedding_dimension"],
        pooling["pooling_mode_mean_tokens"],
        pooling["pooling_mode_cls_token"],
    ) == (
        32,
        True,
        False,
    )
    dense = json.loads((saved / "2_Dense" / "config.json").read_text())
    assert set(dense) == {"in_features", "out_features", "bias", "activation_function"}
    assert json.loads((saved / "sentence_bert_config.json").read_text())["max_seq_length"] == 24
    tokenizer = json.loads((saved / "tokenizer.json").read_text())
    assert (tokenizer["padding"], tokenizer["truncation"]) == (None, None)


def test_no_pickle_and_no_path_of_this_machine(saved: Path) -> None:
    files = [p for p in saved.rglob("*") if p.is_file()]
    assert not [p for p in files if p.suffix in {".bin", ".pt", ".pkl"}]
    assert any(p.suffix == ".safetensors" for p in files)
    for file in files:
        if file.suffix in {".json", ".md"}:
            assert str(saved.parent) not in file.read_text(encoding="utf-8"), file


def test_transformers_alone_gives_the_same_embeddings(saved: Path) -> None:
    from safetensors.torch import load_file

    tokenizer, model = AutoTokenizer.from_pretrained(saved), AutoModel.from_pretrained(saved).eval()
    tokens = tokenizer(TEXTS, padding=True, truncation=True, max_length=24, return_tensors="pt")
    dense = load_file(saved / "2_Dense" / "model.safetensors")
    with torch.no_grad():
        hidden = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None].float()
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    by_hand = torch.nn.functional.normalize(
        pooled @ dense["linear.weight"].T + dense["linear.bias"], dim=1
    )
    np.testing.assert_allclose(
        by_hand.numpy(), SentenceTransformer(str(saved), device="cpu").encode(TEXTS), atol=1e-6
    )


def test_saving_again_replaces_the_folder_as_a_whole(
    student: SentenceTransformer, tmp_path: Path
) -> None:
    path = tmp_path / "student"
    path.mkdir()
    (path / "old.bin").write_bytes(b"x")
    save_student(student, path)
    assert not (path / "old.bin").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["student"]


def test_a_module_that_is_not_standard_is_refused(
    student: SentenceTransformer, tmp_path: Path
) -> None:
    from sentence_transformers.sentence_transformer.modules import LayerNorm

    odd = SentenceTransformer(modules=[*student, LayerNorm(16)], device="cpu")
    with pytest.raises(ValueError, match="LayerNorm"):
        save_student(odd, tmp_path / "x")
    assert not list(tmp_path.iterdir())
