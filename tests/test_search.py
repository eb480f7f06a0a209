import numpy as np
import pytest
import torch
from sentence_transformers.util import SimilarityFunction

from hf_distill.search import search

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("measure", ["dot", "cosine", "euclidean", "manhattan"])
def test_search_is_exact(monkeypatch: pytest.MonkeyPatch, measure: str) -> None:
    monkeypatch.setattr("hf_distill.search._DOCUMENT_BLOCK", 17)
    monkeypatch.setattr("hf_distill.search._QUERY_BLOCK", 3)
    queries, documents = RNG.normal(size=(10, 8)).astype(np.float32), RNG.normal(size=(100, 8)).astype(np.float32)
    if measure == "cosine":
        queries, documents = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, documents))
    scores, indices = search(queries, documents, 12, measure)
    brute = SimilarityFunction.to_similarity_fn(measure)(torch.from_numpy(queries), torch.from_numpy(documents)).numpy()
    expected = np.argsort(-brute, axis=1, kind="stable")[:, :12]
    assert indices.tolist() == expected.tolist()
    np.testing.assert_allclose(scores, np.take_along_axis(brute, expected, 1), rtol=1e-5)


def test_search_breaks_ties_by_index_and_stops_at_the_corpus() -> None:
    documents = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]], dtype=np.float32)
    _, indices = search(np.array([[1.0, 0.0]], dtype=np.float32), documents, 100)
    assert indices.tolist() == [[0, 2, 3, 1]]
