"""Forward passes in batches: nothing is lost, mixed up or padded needlessly."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_tokenizer, sentences
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from hf_distill.compute import encode as module
from hf_distill.compute.encode import (
    CHARACTERS_PER_TOKEN,
    batches_by_length,
    encode,
)


def test_batches_hold_every_text_once_and_few_tokens() -> None:
    texts = [" ".join(["word"] * n) for n in (1, 400, 30, 2, 2, 70, 5)]
    batches = list(batches_by_length(texts, 60))
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert batches[0] == [1], "a text longer than a batch has one of its own"
    for batch in batches[1:]:
        assert (
            len(batch) * (max(len(texts[i]) for i in batch) / CHARACTERS_PER_TOKEN + 2) <= 60
            or len(batch) == 1
        )


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(8, 200))
def test_cut_batches_lose_no_token_and_waste_few(lengths: list[int], batch_tokens: int) -> None:
    longest = max(lengths)
    mask = torch.zeros(len(lengths), longest, dtype=torch.long)
    for row, n in enumerate(lengths):
        mask[row, :n] = 1
    batches = module._cut(
        {"attention_mask": mask, "input_ids": mask * 7, "other": "kept"}, len(lengths), batch_tokens
    )
    assert batches is not None
    assert sorted(row for rows, _ in batches for row in rows.tolist()) == list(range(len(lengths)))
    for rows, batch in batches:
        sizes = [lengths[row] for row in rows.tolist()]
        assert batch["attention_mask"].sum(dim=1).tolist() == sizes
        assert batch["input_ids"].shape == (len(sizes), max(sizes))
        assert batch["other"] == "kept"
        assert min(sizes) >= (1 - module.PADDING) * max(sizes)
        assert len(sizes) * max(sizes) <= batch_tokens or len(sizes) == 1


@pytest.mark.parametrize("batch_tokens", [40, 1000])
def test_encoding_is_the_models_own_in_the_order_of_the_texts(
    teacher_dir: Path, batch_tokens: int
) -> None:
    model = SentenceTransformer(str(teacher_dir), device="cpu")
    texts = [*sentences(90), "cat", "the moon", "", *(" ".join(["sea"] * n) for n in range(1, 60))]
    threads = torch.get_num_threads()
    done = [0, 0]

    def advance(items: int, tokens: int) -> None:
        done[0] += items
        done[1] += tokens

    embeddings = encode(model, texts, batch_tokens, advance)
    np.testing.assert_allclose(embeddings.numpy(), model.encode(texts), atol=1e-6)
    assert done == [len(texts), int(model.preprocess(texts)["attention_mask"].sum())]
    assert torch.get_num_threads() == threads


def test_the_result_does_not_depend_on_the_cores(teacher_dir: Path) -> None:
    model = SentenceTransformer(str(teacher_dir), device="cpu")
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        results.append(encode(model, sentences(50), 100))
    torch.set_num_threads(threads)
    assert torch.equal(*results), "each batch runs on one core, whichever"


def test_a_model_without_an_attention_mask_is_encoded_too() -> None:
    model = SentenceTransformer(
        modules=[StaticEmbedding(make_tokenizer()._tokenizer, embedding_dim=8)], device="cpu"
    )
    texts = sentences(40)
    np.testing.assert_allclose(encode(model, texts, 30).numpy(), model.encode(texts), atol=1e-6)


def test_nothing_to_encode_is_no_error(teacher_dir: Path) -> None:
    assert encode(SentenceTransformer(str(teacher_dir), device="cpu"), []).shape == (0, 32)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("x" * 1_000_000, id="million"),
        pytest.param("\x00 nul \x00", id="nul"),
        pytest.param("\u202eright to left", id="override"),
        pytest.param("שלום עולם", id="hebrew"),
        pytest.param("\ufeff\u200b", id="invisible"),
        pytest.param("🦉" * 1000, id="owls"),
    ],
)
def test_odd_texts_have_finite_embeddings(teacher_dir: Path, text: str) -> None:
    assert torch.isfinite(
        encode(SentenceTransformer(str(teacher_dir), device="cpu"), [text, "cat"])
    ).all()
