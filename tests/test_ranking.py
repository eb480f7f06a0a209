from pathlib import Path

import numpy as np
import pytest
from conftest import sentences
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring_process import TinyTeacher, read_collection, recipe, write_collection

from hf_distill.run.folder import RunFolder
from hf_distill.scoring import ranking as module
from hf_distill.scoring.embeddings import EmbeddingTable, Vectors
from hf_distill.scoring.ranking import (
    RankedPairs,
    Ranking,
    document_pool,
    rank_in_pool,
    rank_pairs,
)
from hf_distill.scoring.scores import Scores, score_collection


def table(queries: np.ndarray, documents: np.ndarray) -> EmbeddingTable:
    """Embeddings of queries and documents by number."""
    rows = np.concatenate([queries, documents]).astype(np.float16)
    places = np.arange(len(rows))
    vectors = Vectors((rows,), places.astype(np.uint32), rows.shape[1])
    return EmbeddingTable(vectors, places[: len(queries)], places[len(queries) :])


def test_ranks_and_margins_by_hand() -> None:
    """Query 0 has its document 0 second, behind 2, which is its own, too; query 1 has two
    documents, which are no negatives of each other.
    """
    embeddings = table(
        np.array([[1, 0], [0, 1]]), np.array([[0.75, 0.25], [0.5, 1], [1, 0], [0, 0.5]])
    )
    pairs = RankedPairs(
        queries=np.array([0, 1, 1, 0]),
        documents=np.array([0, 1, 3, 2]),
        scores=np.array([0.75, 1, 0.5, 1], dtype=np.float32),
    )
    pool = document_pool(pairs.documents, 10, 0)
    assert pool.tolist() == [0, 1, 3, 2]
    ranking = rank_pairs(pairs, embeddings, "dot", pool, 2, "key")
    assert ranking.rank.tolist() == [1, 1, 1, 1], "document 2 is query 0's own, too"
    np.testing.assert_allclose(ranking.margin, [0.25, 0.75, 0.25, 0.5])
    assert ranking.negatives.tolist() == [[1, 3], [0, 2], [0, 2], [1, 3]]
    np.testing.assert_allclose(ranking.negative_scores, [[0.5, 0], [0.25, 0], [0.25, 0], [0.5, 0]])
    assert ranking.pool == 4


def test_a_document_below_another_one_has_rank_two() -> None:
    embeddings = table(np.array([[1, 0], [0, 1]]), np.array([[0.5, 0], [1, 1]]))
    scores = np.array([0.5, 1], dtype=np.float32)
    pairs = RankedPairs(np.array([0, 1]), np.array([0, 1]), scores)
    ranking = rank_pairs(pairs, embeddings, "dot", np.array([0, 1]), 1, "key")
    assert ranking.rank.tolist() == [2, 1]
    assert ranking.margin.tolist() == [-0.5, 1]


def test_without_another_document_there_is_no_margin() -> None:
    one = np.array([0])
    pairs = RankedPairs(one, one, np.ones(1, dtype=np.float32))
    embeddings = table(np.ones((1, 2)), np.ones((1, 2)))
    ranking = rank_pairs(pairs, embeddings, "dot", one, 3, "key")
    assert ranking.rank.tolist() == [1]
    assert np.isnan(ranking.margin).all()
    assert ranking.negatives.tolist() == [[-1, -1, -1]]
    assert np.isnan(ranking.negative_scores).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["dot", "euclidean"]), st.integers(1, 4))
def test_blocks_give_what_brute_force_gives(seed: int, measure: str, k: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 60))
    embeddings = table(rng.normal(size=(20, 6)), rng.normal(size=(80, 6)))
    queries, documents = rng.integers(0, 20, count), rng.integers(0, 80, count)
    q = embeddings.of_queries(queries).astype(np.float64)
    d = embeddings.of_documents(slice(None)).astype(np.float64)
    pair = (
        (lambda a, b: (a * b).sum(-1))
        if measure == "dot"
        else (lambda a, b: -np.linalg.norm(a - b, axis=-1))
    )
    pool = document_pool(documents, int(rng.integers(1, 80)), seed)
    pairs = RankedPairs(queries, documents, pair(q, d[documents]).astype(np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_QUERY_BLOCK", 7)
        patch.setattr(module, "_DOCUMENT_BLOCK", 5)
        patch.setattr(module, "_GROUP", 2)
        patch.setattr(module, "_GATHERED", 3)
        ranking = rank_pairs(pairs, embeddings, measure, pool, k, "key")
    for i in range(count):
        score = float(pair(q[i], d[documents[i]]))
        own = set(documents[queries == queries[i]].tolist())
        others = [(float(pair(q[i], d[j])), int(j)) for j in pool if int(j) not in own]
        best = sorted(others, reverse=True)[:k]
        assert ranking.rank[i] == 1 + sum(other > score for other, _ in others)
        assert ranking.negatives[i].tolist() == [j for _, j in best] + [-1] * (k - len(best))
        np.testing.assert_allclose(
            ranking.negative_scores[i][: len(best)], [other for other, _ in best], atol=1e-4
        )
        assert np.isnan(ranking.negative_scores[i][len(best) :]).all()
        if others:
            assert ranking.margin[i] == pytest.approx(score - best[0][0], abs=1e-4)


def test_a_pool_is_all_documents_or_a_seeded_sample() -> None:
    documents = np.array([5, 5, 7, 9, 7])
    assert document_pool(documents, 3, 0).tolist() == [5, 7, 9]
    assert document_pool(documents, 2, 0).tolist() == document_pool(documents, 2, 0).tolist()
    assert len(document_pool(documents, 2, 1)) == 2


@pytest.fixture
def scores(teacher_dir: Path, tmp_path: Path, folder: RunFolder) -> Scores:
    splits = ["train"] * 160 + ["test"] * 40
    pairs = zip(sentences(200), sentences(200, 1000), splits, strict=True)
    write_collection(tmp_path / "pairs", list(pairs))
    collection = read_collection(tmp_path / "pairs")
    return score_collection(collection, TinyTeacher(teacher_dir), recipe(), folder)


def equal(one: Ranking | None, other: Ranking | None) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=name != "key")
        for name in ("rank", "margin", "negatives", "negative_scores")
    )


def test_a_run_ranks_its_training_pairs(
    scores: Scores, teacher_dir: Path, tmp_path: Path, folder: RunFolder
) -> None:
    collection = read_collection(tmp_path / "pairs")
    ranking = rank_in_pool(collection, scores, recipe(), folder)
    assert ranking is not None
    assert (ranking.rank.shape, ranking.negatives.shape) == ((160,), (160, 4))
    assert ranking.pool == 160, "held-out documents are not in the pool"
    assert ranking.negatives.max() < 160
    teacher = TinyTeacher(teacher_dir)
    query, documents = sentences(200)[7], sentences(160, 1000)
    every = (teacher.embed([query]) @ teacher.embed(documents).T)[0]
    every[7] = -1
    best = np.argsort(-every)[:4]
    assert ranking.negatives[7].tolist() == best.tolist()
    np.testing.assert_allclose(ranking.negative_scores[7], every[best], atol=2e-3)
    assert ranking.margin[7] == pytest.approx(scores.values[7] - every[best[0]], abs=4e-3)
    assert ((ranking.rank == 1) == (ranking.margin >= 0)).all()


def test_a_ranking_is_kept_until_the_scores_or_the_negatives_change(
    scores: Scores, tmp_path: Path, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = read_collection(tmp_path / "pairs")
    first = rank_in_pool(collection, scores, recipe(), folder)
    more = rank_in_pool(collection, scores, recipe(hard_negatives=6), folder)
    assert more is not None
    assert first is not None
    assert more.negatives.shape == (160, 7), "one can become the positive"
    assert first.key != more.key
    np.testing.assert_array_equal(more.negatives[:, :4], first.negatives)
    monkeypatch.setattr(module, "rank_pairs", None)  # nothing is ranked again
    again = rank_in_pool(collection, scores, recipe(hard_negatives=6), folder)
    assert again is not None
    assert again.key == more.key
    assert equal(again, more)


def test_a_teacher_without_embeddings_ranks_nothing(
    scores: Scores, tmp_path: Path, folder: RunFolder
) -> None:
    without = Scores(scores.record, scores.values, None, scores.scale)
    collection = read_collection(tmp_path / "pairs")
    assert rank_in_pool(collection, without, recipe(), folder) is None
