"""A SentenceTransformer as teacher, and where models come from."""

import dataclasses
import importlib.metadata
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_tokenizer, recipe_of, sentences
from huggingface_hub.errors import LocalEntryNotFoundError
from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    MPNetConfig,
    OPTConfig,
    PreTrainedConfig,
    Qwen3Config,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from hf_distill.compute import models
from hf_distill.compute.models import (
    QUICKSTART_SHA256,
    QUICKSTART_TEACHER,
    chosen_dtype,
    digest_of_weights,
    load_sentence_transformer,
    locate_model,
    most_tokens,
    packaged_quickstart_teacher,
)
from hf_distill.errors import InputError
from hf_distill.run.stage import sha256_of
from hf_distill.student.build import Initialisation, build_student
from hf_distill.teachers.base import SCALES, Prompts, Scale
from hf_distill.teachers.bi_encoder import BiEncoderTeacher, load_bi_encoder
from hf_distill.teachers.load import load_teacher

SMALL = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8,
    "max_position_embeddings": 66,
}  # fmt: skip
GPT = {"n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 66}


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


def prompted(teacher_dir: Path, folder: Path, **prompts: str) -> Path:
    model = SentenceTransformer(str(teacher_dir), device="cpu")
    model.prompts = prompts
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


def test_prompts_are_the_recipes_or_those_that_the_library_uses(
    tmp_path: Path, teacher_dir: Path
) -> None:
    folder = prompted(teacher_dir, tmp_path / "t", query="q: ", document="d: ", passage="p: ")
    own = load(folder).prompts
    assert (own.of("query"), own.of("document")) == ("q: ", "d: ")
    given = load(folder, query_prompt="ask ", document_prompt="").prompts
    assert (given.of("query"), given.of("document")) == ("ask ", "")


def test_prompts_that_are_not_used_are_named_with_the_flag(
    tmp_path: Path, teacher_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    both = {"s2p_query": "find: ", "retrieval.passage": "read: "}
    folder = prompted(teacher_dir, tmp_path / "t", **both)
    assert load(folder).prompts == Prompts()
    said = caplog.text
    assert all(repr(text) in said for text in both.values())
    assert "--query_prompt" in said
    caplog.clear()
    load(folder, query_prompt="find: ")
    load(prompted(teacher_dir, tmp_path / "u", query="q: ", document="d: ", cluster="c: "))
    load(teacher_dir)
    assert not caplog.records, "a prompt is given, both sides have one, or there is none"


def positions(folder: Path) -> Path:
    """An XLM-R with a table of 66 positions, of which the first two are free."""
    tokenizer = make_tokenizer()
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=66, pad_token_id=1,
    )  # fmt: skip
    XLMRobertaModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_teacher_with_fewer_positions_than_it_is_told_to_read_is_refused(tmp_path: Path) -> None:
    folder = positions(tmp_path / "roberta")
    with pytest.raises(InputError, match=r"64 tokens.*max_seq_length 66.*--teacher_max_length 64"):
        load(folder)
    with pytest.raises(InputError, match=r"--teacher_max_length 65: .*64 tokens"):
        load(folder, teacher_max_length=65)
    assert load(folder, teacher_max_length=64).embed([" ".join(["sea"] * 99)]).shape == (1, 32)


def test_a_student_reads_no_more_tokens_than_its_backbone_has_positions(
    tmp_path: Path, teacher_dir: Path
) -> None:
    keys = {"student_backbone": positions(tmp_path / "roberta"), "student_init": "random"}
    teacher = load(teacher_dir)

    def build(length: int) -> SentenceTransformer:
        recipe = recipe_of(student_max_length=length, student_layers=None, **keys)
        return build_student(recipe.student, teacher, None, 0)

    with pytest.raises(InputError, match=r"--student_max_length 66: .*64"):
        build(66)
    assert build(64).encode([" ".join(["sea"] * 99)]).shape[0] == 1


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        (BertConfig(**SMALL), 66), (MPNetConfig(**SMALL), 64), (GPT2Config(**GPT), 66),
        (OPTConfig(**SMALL, ffn_dim=8, word_embed_proj_dim=8), 66), (Qwen3Config(**SMALL), None),
    ],
    ids=["bert", "mpnet", "gpt2", "opt", "qwen3"],
)  # fmt: skip
def test_the_longest_text_is_what_the_table_of_positions_holds(
    config: PreTrainedConfig, tokens: int | None
) -> None:
    assert most_tokens(AutoModel.from_config(config)) == tokens


def test_a_tokenizer_that_cannot_pad_is_refused(tmp_path: Path, teacher_dir: Path) -> None:
    folder = Path(shutil.copytree(teacher_dir, tmp_path / "t"))
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    del settings["pad_token"]
    path.write_text(json.dumps(settings))
    for key in ("teacher", "student_backbone"):
        with pytest.raises(InputError, match=rf"--{key} .*pad_token"):
            load_sentence_transformer(str(folder), key)


MULTI_VECTOR: dict[str, dict[str, object]] = {
    "pylate": {"modules.json": [{"path": "", "type": "pylate.models.Dense.Dense"}]},
    "sentence-transformers": {
        "modules.json": [{"path": "", "type": "sentence_transformers.base.modules.Transformer"}],
        "config_sentence_transformers.json": {"model_type": "MultiVectorEncoder"},
    },
    "pylate's name": {
        "modules.json": [{"path": "", "type": "sentence_transformers.models.Transformer"}],
        "config_sentence_transformers.json": {"model_type": "ColBERT"},
    },
    "stanford": {"config.json": {"architectures": ["HF_ColBERT"]}},
}


@pytest.mark.parametrize("files", MULTI_VECTOR.values(), ids=MULTI_VECTOR)
@pytest.mark.parametrize("trusted", [False, True])
def test_a_multi_vector_model_is_refused_in_one_sentence(
    tmp_path: Path, files: dict[str, object], trusted: bool
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"--teacher {tmp_path} is a multi-vector") as refusal:
        load(tmp_path, trust_remote_code=trusted)
    assert "trust_remote_code" not in str(refusal.value)


def test_a_module_of_a_package_that_is_not_here_is_named(tmp_path: Path, teacher_dir: Path) -> None:
    folder = Path(shutil.copytree(teacher_dir, tmp_path / "t"))
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "no_such_package.pooling.Pooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError, match="no_such_package is not installed"):
        load(folder, trust_remote_code=True)


@pytest.mark.parametrize(
    ("folder", "asked_as", "says"),
    [
        ("teacher_dir", "cross-encoder", "--teacher_kind bi-encoder"),
        ("teacher_dir", "sparse-encoder", "--teacher_kind bi-encoder"),
        ("cross_encoder_dir", "bi-encoder", "--teacher_kind cross-encoder"),
        ("cross_encoder_dir", "sparse-encoder", "--teacher_kind cross-encoder"),
        ("backbone_dir", "cross-encoder", "without a trained head"),
        ("backbone_dir", "sparse-encoder", "without a trained head"),
    ],
)
def test_a_model_of_another_kind_is_refused_with_the_right_one(
    request: pytest.FixtureRequest, folder: str, asked_as: str, says: str
) -> None:
    path = request.getfixturevalue(folder)
    with pytest.raises(InputError, match=rf"--teacher {path} is a .*{says}"):
        load_teacher(recipe_of(teacher=path, teacher_kind=asked_as))


def test_a_sparse_encoder_given_as_another_kind_is_refused_with_its_own(
    tmp_path: Path, backbone_dir: Path
) -> None:
    modules = [Transformer(str(backbone_dir)), Pooling(32), SparseAutoEncoder(32, 64)]
    SparseEncoder(modules=modules, device="cpu").save_pretrained(str(tmp_path))
    for kind in ("bi-encoder", "cross-encoder"):
        with pytest.raises(InputError, match="--teacher_kind sparse-encoder"):
            load_teacher(recipe_of(teacher=tmp_path, teacher_kind=kind))


def test_a_sparse_encoder_is_unbounded_until_the_recipe_bounds_it(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    config = BertConfig(vocab_size=len(tokenizer), **SMALL)
    BertForMaskedLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    def scale(**keys: object) -> Scale:
        return load_teacher(
            recipe_of(teacher=tmp_path, teacher_kind="sparse-encoder", **keys)
        ).scale

    assert scale() == SCALES["dot"]
    assert scale(teacher_similarity="cosine") == SCALES["cosine"]
    assert scale(teacher_activation="sigmoid") == Scale("dot", "sigmoid", 0.0, 1.0)


def test_a_student_can_start_from_the_components_of_a_truncated_teacher(
    tmp_path: Path, teacher_dir: Path
) -> None:
    """Untrained, it gives the truncated embeddings turned by the components."""
    model = SentenceTransformer(str(teacher_dir), device="cpu", truncate_dim=8)
    model.save_pretrained(str(tmp_path / "t"), create_model_card=False)
    teacher = load(tmp_path / "t")
    assert teacher.dimension == 8
    components = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0][:4]
    arguments = recipe_of(
        student_dim=4, student_init="pca", student_layers=None, student_max_length=32
    ).student
    start = Initialisation(components=components.astype(np.float32))
    student = build_student(arguments, teacher, start, 0)
    expected = teacher.embed(["a cat", "the sea"]) @ components.T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(student.encode(["a cat", "the sea"]), expected, atol=1e-5)
    with pytest.raises(InputError, match="--student_init pca"):
        build_student(dataclasses.replace(arguments, student_dim=9), teacher, None, 0)


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
