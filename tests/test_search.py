"""Exact search: the same answer as by brute force, whatever the blocks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.util import SimilarityFunction

from hf_distill.compute import search as module
from hf_distill.compute.search import search
from hf_distill.errors import InputError

RNG = np.random.default_rng(0)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"_DOCUMENTS": 17, "_QUERIES": 3, "_GROUP": 4, "_SPARE": 2, "_EXACT": 23}
    for name, size in sizes.items():
        monkeypatch.setattr(module, name, size)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("similarity", ["dot", "cosine", "euclidean", "manhattan"])
def test_search_is_exact(similarity: str) -> None:
    queries, documents = (
        RNG.normal(size=(10, 8)).astype(np.float32),
        RNG.normal(size=(100, 8)).astype(np.float32),
    )
    if similarity == "cosine":
        queries, documents = (
            x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, documents)
        )
    scores, indices = search(queries, documents, 12, similarity, "cpu")
    brute = SimilarityFunction.to_similarity_fn(similarity)(
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
    seed: int, depth: int, similarity: str, distinct: int
) -> None:
    """Few distinct documents, many copies of each, scattered over blocks: the cut goes through the
    ties.
    """
    rng = np.random.default_rng(seed)
    documents = rng.normal(size=(distinct, 5)).astype(np.float32)[rng.integers(0, distinct, 80)]
    queries = rng.normal(size=(4, 5)).astype(np.float32)
    _, indices = search(queries, documents, depth, similarity, "cpu")
    difference = queries[:, None].astype(np.float64) - documents
    brute = {
        "dot": lambda: (queries[:, None].astype(np.float64) * documents).sum(-1),
        "euclidean": lambda: -np.sqrt((difference**2).sum(-1)),
        "manhattan": lambda: -np.abs(difference).sum(-1),
    }[similarity]()
    expected = np.argsort(-brute.astype(np.float32), axis=1, kind="stable")[:, :depth]
    assert indices.tolist() == expected.tolist()


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Scores are bit for bit the same from memory-mapped float16 in other blocks."""
    documents = RNG.normal(size=(5000, 48)).astype(np.float16)
    documents[4000:4100] = documents[:100]
    np.save(tmp_path / "d.npy", documents)
    queries = documents[:40].astype(np.float32) + np.float32(0.1)
    one = search(queries, documents, 30, device="cpu")
    monkeypatch.setattr(module, "_DOCUMENTS", 333)
    monkeypatch.setattr(module, "_QUERIES", 7)
    monkeypatch.setattr(module, "_EXACT", 50)
    other = search(queries, np.load(tmp_path / "d.npy", mmap_mode="r"), 30, device="cpu")
    assert (one[0] == other[0]).all()
    assert (one[1] == other[1]).all()


@pytest.mark.parametrize(("queries", "documents", "depth"), [(2, 0, 5), (0, 4, 5), (2, 4, 0)])
def test_nothing_to_search(queries: int, documents: int, depth: int) -> None:
    ones = np.ones((5, 3), dtype=np.float32)
    scores, indices = search(ones[:queries], ones[:documents], depth)
    assert scores.shape == indices.shape == (queries, min(depth, documents))
    assert (scores.dtype, indices.dtype) == (np.float32, np.int64)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_embeddings_that_are_not_finite_are_said(value: float) -> None:
    good = RNG.normal(size=(40, 3)).astype(np.float32)
    bad = good.copy()
    bad[20, 1] = value
    with pytest.raises(InputError, match="documents from 17 on"):
        search(good, bad, 5)
    with pytest.raises(InputError, match="the queries"):
        search(bad, good, 5)


@pytest.mark.usefixtures("small_blocks")
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 40))
def test_the_best_of_a_tile_are_found_by_the_maxima_of_its_groups(
    seed: int, columns: int, width: int
) -> None:
    rng = np.random.default_rng(seed)
    tile = torch.from_numpy(rng.integers(0, 9, (5, columns)).astype(np.float32))
    least = torch.from_numpy(rng.integers(-1, 9, 5).astype(np.float32))
    values, places = module._top(tile, width, least)
    assert torch.equal(values, tile.gather(1, places))
    for row, found, places_found, at_least in zip(tile, values, places, least, strict=True):
        best = sorted((v for v in row.tolist() if v > at_least), reverse=True)[:width]
        assert sorted(found.tolist(), reverse=True)[: len(best)] == best
        assert len(set(places_found.tolist())) == len(places_found), "no column twice"
