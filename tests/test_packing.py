"""Texts that stand one after another, without padding: the same embeddings and gradients, for every
backbone that is packed, and a model that is unchanged afterwards.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, make_tokenizer, sentences
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from torch import nn
from transformers import AutoConfig, AutoModel

from hf_distill.training.packing import (
    PACKABLE,
    PADDING,
    FastDropout,
    Packer,
    _Attention,
    _Form,
    fast_on_cpu,
    packing_of,
)

TEXTS = [" ".join(sentences(1, i)[0].split()[: 1 + i % 10]) for i in range(23)]


def make_model(kind: str, pooling: str, folder: Path) -> SentenceTransformer:
    tokenizer = make_tokenizer()
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    if kind == "distilbert":
        sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        pad_token_id=0,
        initializer_range=0.3,
        **sizes,
    )
    AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model = SentenceTransformer(
        modules=[Transformer(str(folder)), Pooling(32, pooling_mode=pooling)], device="cpu"
    )
    model.max_seq_length = 32
    return model.eval()


def embed(model: SentenceTransformer, packed: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Embeddings of `TEXTS`, and the gradients of some function of them."""
    features = model.preprocess(TEXTS)
    order = torch.arange(len(TEXTS))
    if packed:
        packer = Packer.of(model)
        assert packer is not None
        features, order = packer.pack(features)
        assert features["input_ids"].shape[0] == 1
    embeddings = model(features)["sentence_embedding"][order.argsort()]
    model.zero_grad()
    embeddings.tanh().mul(
        torch.linspace(-1, 1, embeddings.numel()).view_as(embeddings)
    ).sum().backward()
    return embeddings.detach(), {
        name: p.grad for name, p in model.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("kind", PACKABLE)
def test_packed_texts_have_the_embeddings_and_gradients_of_padded_ones(
    kind: str, pooling: str, tmp_path: Path
) -> None:
    model = make_model(kind, pooling, tmp_path)
    wanted, gradients = embed(model, packed=False)
    for packed in (True, False):
        with fast_on_cpu(model):
            embeddings, own = embed(model, packed)
        torch.testing.assert_close(embeddings, wanted, atol=1e-5, rtol=1e-5)
        assert own.keys() == gradients.keys()
        for name, gradient in own.items():
            torch.testing.assert_close(
                gradient,
                gradients[name],
                atol=2e-5,
                rtol=1e-4,
                msg=lambda text, name=name: f"{name}: {text}",
            )


def form_of(model: SentenceTransformer) -> tuple[Any, ...]:
    """Everything but the values of the weights."""
    backbone = model[0].auto_model
    modules = [
        (name, id(module), type(module), module.training, sorted(vars(module)))
        for name, module in backbone.named_modules()
    ]
    return modules, list(model.state_dict()), dict(vars(backbone.config))


def not_packable(folder: Path) -> SentenceTransformer:
    model = make_model("bert", "mean", folder)
    model[0].auto_model.config.model_type = "another"
    return model


@pytest.mark.parametrize("kind", [*PACKABLE, "another"])
def test_a_model_is_afterwards_what_it_was_before(kind: str, tmp_path: Path) -> None:
    model = not_packable(tmp_path) if kind == "another" else make_model(kind, "mean", tmp_path)
    model.save_pretrained(str(tmp_path / "before"), create_model_card=False)
    before = form_of(model)
    with fast_on_cpu(model):
        assert form_of(model) != before
        with fast_on_cpu(model):  # the Trainer evaluates while it trains
            pass
        inside = {type(module) for module in model.modules() if isinstance(module, nn.Dropout)}
        assert inside == {nn.Dropout if kind == "another" else FastDropout}
        model.save_pretrained(str(tmp_path / "inside"), create_model_card=False)
    assert form_of(model) == before
    with pytest.raises(RuntimeError, match="broken"), fast_on_cpu(model):
        raise RuntimeError("broken")
    assert form_of(model) == before
    saved = [(tmp_path / name / "config.json").read_text() for name in ("before", "inside")]
    assert saved[0] == saved[1]


def test_what_changes_to_training_inside_has_changed_outside(tmp_path: Path) -> None:
    model = make_model("bert", "mean", tmp_path)
    with fast_on_cpu(model):
        model.train()
    assert all(module.training for module in model.modules())


def test_a_backbone_that_is_not_known_to_allow_it_is_not_packed(tmp_path: Path) -> None:
    model = not_packable(tmp_path)
    config = model[0].auto_model.config
    assert (Packer.of(model), config._attn_implementation) == (None, "sdpa")
    with fast_on_cpu(model):
        assert config._attn_implementation == "eager"


def test_a_model_without_a_transformer_is_left_alone() -> None:
    tokenizer = make_tokenizer().backend_tokenizer
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=4)], device="cpu")
    assert Packer.of(model) is None
    with fast_on_cpu(model):
        assert model.encode(TEXTS).shape == (23, 4)


def test_an_import_registers_nothing() -> None:
    code = (
        "import hf_distill.training.packing as p; from transformers import AttentionInterface; "
        "assert p.PACKED not in AttentionInterface().valid_keys()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60).map(sorted))
def test_every_token_has_a_place_and_comes_back(lengths: list[int]) -> None:
    packing = packing_of(lengths)
    assert packing.rows[packing.places].tolist() == list(range(sum(lengths)))
    assert sum(bucket.texts for bucket in packing.buckets) == len(lengths)
    assert len(packing.rows) <= sum(lengths) / (1 - PADDING)
    for bucket in packing.buckets:
        own = packing.rows[bucket.start : bucket.start + bucket.texts * bucket.length].view(
            bucket.texts, bucket.length
        )
        empty = (
            torch.zeros_like(own, dtype=torch.bool)
            if bucket.empty is None
            else bucket.empty[:, 0, 0]
        )
        assert (own[empty] == own[:, :1].expand_as(own)[empty]).all()
        assert (empty[:, 1:] >= empty[:, :-1]).all(), "a text's tokens come first"


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_gradient_of_attention_is_that_of_its_values(dropout: float) -> None:
    packing = packing_of([2, 3, 3, 7])
    states = [torch.randn(15, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def attend(*states: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(5)  # the same numbers dropped each time
        return _Attention.apply(*states, _Form(packing, 0.7, dropout))

    assert torch.autograd.gradcheck(attend, states)


def test_attention_drops_as_many_shares_as_it_should() -> None:
    torch.manual_seed(0)
    packing = packing_of([50] * 40)
    query, key = (torch.zeros(2000, 1, 8) for _ in range(2))  # every share is a fiftieth
    out = _Attention.apply(query, key, torch.ones(2000, 1, 8), _Form(packing, 1.0, 0.2))
    assert out.mean().item() == pytest.approx(1, abs=0.01)
    assert out.std().item() == pytest.approx((0.2 / 0.8 / 50) ** 0.5, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dropout_keeps_and_scales_what_it_should(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = FastDropout(0.1)
    values = torch.full((500, 401), 3.0, dtype=dtype, requires_grad=True)
    out = module(values)
    kept = out != 0
    assert kept.float().mean().item() == pytest.approx(0.9, abs=0.003)
    assert abs(torch.corrcoef(kept[:, :-1:4].float().T)[0, 1].item()) < 0.2
    assert out[kept].unique().tolist() == pytest.approx([3 / 0.9], rel=0.01)
    out.sum().backward()
    assert ((values.grad != 0) == kept).all()
    assert values.grad[kept].unique().tolist() == pytest.approx([1 / 0.9], rel=0.01)
    assert module.eval()(values) is values
    assert not module(values).eq(module.train()(values)).all()


def test_the_same_seed_drops_the_same_numbers() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(3)
        drawn.append(FastDropout(0.5)(torch.ones(77)))
    assert drawn[0].equal(drawn[1])
    assert not drawn[0].equal(FastDropout(0.5)(torch.ones(77)))
