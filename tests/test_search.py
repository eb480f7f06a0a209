from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.util import SimilarityFunction

from hf_distill.compute import search as module
from hf_distill.compute.search import search

RNG = np.random.default_rng(0)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DOCUMENT_BLOCK", {"cpu": 17})
    monkeypatch.setattr(module, "_QUERY_BLOCK", 3)
    monkeypatch.setattr(module, "_GROUP", 4)
    monkeypatch.setattr(module, "_SPARE", 2)
    monkeypatch.setattr(module, "_RESCORED", 23)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("measure", ["dot", "cosine", "euclidean", "manhattan"])
def test_search_is_exact(measure: str) -> None:
    queries, documents = (
        RNG.normal(size=(10, 8)).astype(np.float32),
        RNG.normal(size=(100, 8)).astype(np.float32),
    )
    if measure == "cosine":
        queries, documents = (
            x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, documents)
        )
    scores, indices = search(queries, documents, 12, measure, "cpu")
    brute = SimilarityFunction.to_similarity_fn(measure)(
        torch.from_numpy(queries), torch.from_numpy(documents)
    ).numpy()
    expected = np.argsort(-brute, axis=1, kind="stable")[:, :12]
    assert indices.tolist() == expected.tolist()
    np.testing.assert_allclose(scores, np.take_along_axis(brute, expected, 1), rtol=1e-5)


def test_search_breaks_ties_by_index_and_stops_at_the_corpus() -> None:
    documents = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]], dtype=np.float32)
    _, indices = search(np.array([[1.0, 0.0]], dtype=np.float32), documents, 100)
    assert indices.tolist() == [[0, 2, 3, 1]]


@pytest.mark.usefixtures("small_blocks")
@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 90),
    st.sampled_from(["dot", "euclidean", "manhattan"]),
    st.sampled_from([1, 3, 20]),
)
def test_ties_are_broken_by_index_also_at_the_cut(
    seed: int, depth: int, measure: str, distinct: int
) -> None:
    """Few distinct documents, many copies of each, scattered over blocks: the cut goes through the
    ties.
    """
    rng = np.random.default_rng(seed)
    documents = rng.normal(size=(distinct, 5)).astype(np.float32)[rng.integers(0, distinct, 80)]
    queries = rng.normal(size=(4, 5)).astype(np.float32)
    _, indices = search(queries, documents, depth, measure, "cpu")
    difference = queries[:, None].astype(np.float64) - documents
    brute = {
        "dot": lambda: (queries[:, None].astype(np.float64) * documents).sum(-1),
        "euclidean": lambda: -np.sqrt((difference**2).sum(-1)),
        "manhattan": lambda: -np.abs(difference).sum(-1),
    }[measure]()
    expected = np.argsort(-brute.astype(np.float32), axis=1, kind="stable")[:, :depth]
    assert indices.tolist() == expected.tolist()


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Scores are bit for bit the same from memory-mapped float16 in other blocks."""
    documents = RNG.normal(size=(5000, 48)).astype(np.float16)
    documents[4000:4100] = documents[:100]
    np.save(tmp_path / "d.npy", documents)
    queries = documents[:40].astype(np.float32) + np.float32(0.1)
    one = search(queries, documents, 30, device="cpu")
    monkeypatch.setattr(module, "_DOCUMENT_BLOCK", {"cpu": 333})
    monkeypatch.setattr(module, "_QUERY_BLOCK", 7)
    other = search(queries, np.load(tmp_path / "d.npy", mmap_mode="r"), 30, device="cpu")
    assert (one[0] == other[0]).all()
    assert (one[1] == other[1]).all()


def test_nothing_to_search() -> None:
    scores, indices = search(
        np.ones((2, 3), dtype=np.float32), np.empty((0, 3), dtype=np.float32), 5
    )
    assert scores.shape == indices.shape == (2, 0)
