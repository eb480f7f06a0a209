"""Texts one after another, without padding: the same embeddings and gradients, for every backbone
that is packed.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_tokenizer, sentences
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn
from transformers import AutoConfig, AutoModel

from hf_distill.training.packing import (
    PACKABLE,
    PADDING,
    FastDropout,
    _Attention,
    can_pack,
    first_position_of,
    pack,
    packing_of,
    prepare_to_pack,
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
        features, order = pack(features, first_position_of(model))
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
    assert can_pack(model)
    wanted, gradients = embed(model, packed=False)
    prepare_to_pack(model)
    for packed in (True, False):
        found, own = embed(model, packed)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
        assert own.keys() == gradients.keys()
        for name, gradient in own.items():
            torch.testing.assert_close(
                gradient,
                gradients[name],
                atol=2e-5,
                rtol=1e-4,
                msg=lambda text, name=name: f"{name}: {text}",
            )


def test_what_is_packed_is_saved_and_copied_like_any_other(tmp_path: Path) -> None:
    model = make_model("bert", "mean", tmp_path / "one")
    wanted = embed(model, packed=False)[0]
    prepare_to_pack(model)
    model.save_pretrained(str(tmp_path / "two"), create_model_card=False)
    assert "hf_distill" not in (tmp_path / "two" / "config.json").read_text()
    for other in (copy.deepcopy(model), SentenceTransformer(str(tmp_path / "two"), device="cpu")):
        torch.testing.assert_close(
            torch.from_numpy(other.encode(TEXTS)), wanted, atol=1e-5, rtol=1e-5
        )


def test_a_backbone_that_is_not_known_to_allow_it_is_not_packed(tmp_path: Path) -> None:
    model = make_model("bert", "mean", tmp_path)
    model[0].auto_model.config.model_type = "mpnet"
    assert not can_pack(model)


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
        return _Attention.apply(*states, packing, 0.7, dropout)

    assert torch.autograd.gradcheck(attend, states)


def test_attention_drops_as_many_shares_as_it_should() -> None:
    torch.manual_seed(0)
    packing = packing_of([50] * 40)
    query, key = (torch.zeros(2000, 1, 8) for _ in range(2))  # every share is a fiftieth
    out = _Attention.apply(query, key, torch.ones(2000, 1, 8), packing, 1.0, 0.2)
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
    made = []
    for _ in range(2):
        torch.manual_seed(3)
        made.append(FastDropout(0.5)(torch.ones(77)))
    assert made[0].equal(made[1])
    assert not made[0].equal(FastDropout(0.5)(torch.ones(77)))


def test_every_dropout_of_the_backbone_becomes_cheap(tmp_path: Path) -> None:
    model = make_model("bert", "mean", tmp_path)
    prepare_to_pack(model)
    kinds = {type(module) for module in model.modules() if isinstance(module, nn.Dropout)}
    assert kinds == {FastDropout}
