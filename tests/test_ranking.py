from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distill.data.load import load_pair_data
from hf_distill.recipe.arguments import (
    DataArguments,
    TeacherArguments,
)
from hf_distill.run.folder import RunFolder
from hf_distill.scoring import ranking as module
from hf_distill.scoring.ranking import (
    document_pool,
    pool_signals,
    with_signals,
)
from hf_distill.scoring.scores import (
    EmbeddingTable,
    score_pairs,
)
from hf_distill.selection.rules import parse_rules
from hf_distill.selection.select import select_pairs
from hf_distill.teachers.bi_encoder import load_bi_encoder


def table(rows: dict[int, list[float]]) -> EmbeddingTable:
    ids = np.array(sorted(rows), dtype=np.uint64)
    return EmbeddingTable(ids, np.array([rows[int(i)] for i in ids], dtype=np.float16))


def test_signals_by_hand() -> None:
    """Query 1 finds its document 10 second, behind 12; query 2 has two documents, which are no
    negatives of each other.
    """
    embeddings = table(
        {1: [1, 0], 2: [0, 1], 10: [0.75, 0.25], 11: [0.5, 1], 12: [1, 0], 13: [0, 0.5]}
    )
    queries = np.array([1, 2, 2, 1], dtype=np.uint64)
    documents = np.array([10, 11, 13, 12], dtype=np.uint64)
    scores = np.array([0.75, 1, 0.5, 1], dtype=np.float32)
    pool = document_pool(documents, 10, 0)
    assert pool.tolist() == [0, 1, 2, 3]
    made = pool_signals(queries, documents, scores, embeddings, "dot", pool, 2)
    assert made.rank.tolist() == [1, 1, 1, 1], "document 12 is query 1's own, too"
    np.testing.assert_allclose(made.margin, [0.25, 0.75, 0.25, 0.5])
    assert made.negatives.tolist() == [[1, 2], [0, 3], [0, 3], [1, 2]]
    np.testing.assert_allclose(made.negative_scores, [[0.5, 0], [0.25, 0], [0.25, 0], [0.5, 0]])


def test_without_another_document_there_is_no_margin() -> None:
    one = np.array([1], dtype=np.uint64)
    made = pool_signals(
        one, one, np.ones(1, dtype=np.float32), table({1: [1, 0]}), "dot", np.array([0]), 3
    )
    assert made.rank.tolist() == [1]
    assert np.isnan(made.margin).all()
    assert made.negatives.tolist() == [[-1]]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["dot", "euclidean"]), st.integers(0, 4))
def test_blocks_give_what_brute_force_gives(seed: int, measure: str, k: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 60))
    ids = np.arange(100, dtype=np.uint64)
    embeddings = EmbeddingTable(ids, rng.normal(size=(100, 6)).astype(np.float16))
    queries, documents = (
        rng.integers(0, 20, count).astype(np.uint64),
        rng.integers(20, 100, count).astype(np.uint64),
    )
    q, d = (embeddings.of_numbers(x).astype(np.float64) for x in (queries, documents))
    pair = (
        (lambda a, b: (a * b).sum(-1))
        if measure == "dot"
        else (lambda a, b: -np.linalg.norm(a - b, axis=-1))
    )
    pool = document_pool(documents, int(rng.integers(1, 80)), seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PAIR_BLOCK", 7)
        patch.setattr(module, "_DOCUMENT_BLOCK", 5)
        made = pool_signals(
            queries, documents, pair(q, d).astype(np.float32), embeddings, measure, pool, k
        )
    for i in range(count):
        own = set(documents[queries == queries[i]].tolist())
        others = [(float(pair(q[i], d[j])), int(j)) for j in pool if int(documents[j]) not in own]
        best = sorted(others, reverse=True)[: min(k, len(pool))]
        assert made.rank[i] == 1 + sum(score > pair(q[i], d[i]) for score, _ in others)
        np.testing.assert_allclose(
            made.negative_scores[i][: len(best)], [score for score, _ in best], atol=1e-4
        )
        assert (made.negatives[i][len(best) :] == -1).all()
        if others:
            assert made.margin[i] == pytest.approx(pair(q[i], d[i]) - max(others)[0], abs=1e-4)


def test_a_pool_is_all_documents_or_a_seeded_sample() -> None:
    documents = np.array([5, 5, 7, 9, 7], dtype=np.uint64)
    assert document_pool(documents, 3, 0).tolist() == [0, 2, 3]
    assert document_pool(documents, 2, 0).tolist() == document_pool(documents, 2, 0).tolist()
    assert len(document_pool(documents, 2, 1)) == 2


def test_a_run_has_signals_that_rules_can_use(
    pairs_file: Path, teacher_dir: Path, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "run")
    data = load_pair_data(
        DataArguments(dataset="files", dataset_path=str(pairs_file), group_column="topic"),
        0,
        folder,
    )
    teacher = load_bi_encoder(TeacherArguments(teacher=str(teacher_dir), teacher_dtype="float32"))
    scored = score_pairs(data, teacher, folder, TeacherArguments())
    train, key = with_signals(scored, 100_000, 3, 0, folder)
    of_id = {row["pair_id"]: row["document"] for row in train}
    row = train[7]
    assert len(row["hard_negatives"]) == 3
    by_hand = (
        teacher.embed([row["query"]]) @ teacher.embed([of_id[i] for i in row["hard_negatives"]]).T
    )
    np.testing.assert_allclose(by_hand[0], row["hard_negative_scores"], atol=2e-3)
    assert row["margin"] == pytest.approx(
        row["teacher_score"] - row["hard_negative_scores"][0], abs=1e-3
    )
    assert (row["rank"] == 1) == (row["margin"] >= 0)

    before = sorted(folder.soft_labels.glob("signals-*"))
    assert with_signals(scored, 100_000, 3, 0, folder)[1] == key
    assert sorted(folder.soft_labels.glob("signals-*")) == before
    selected = select_pairs(train, parse_rules(["rank=20", "margin=-0.5"]), 0, folder, key)
    ranks = np.array(train["rank"])
    assert selected.audit["rules"][0]["dropped"] == int((ranks > 20).sum()) > 0
    assert all(row["rank"] <= 20 and row["margin"] >= -0.5 for row in selected.selected)
