"""Lists of candidates: mined, joined, scored, and chosen from. Values are computed by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import recipe_of
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from small_collections import read_run, row, text

from hf_distill.candidates.mine import Mined, by_words, filled, joined, with_best
from hf_distill.compute.bm25 import BM25, Words
from hf_distill.data.collection import Collection
from hf_distill.errors import InputError
from hf_distill.evaluation.ranker import agreement_on_list
from hf_distill.run.folder import RunFolder
from hf_distill.scoring import lists as scoring_lists
from hf_distill.scoring.agreement import auc_of_lists
from hf_distill.scoring.lists import (
    ScoredLists,
    Sources,
    _relevant,
    check_candidates,
    corpus_of,
    mine_lists,
    score_lists,
    with_lists,
)
from hf_distill.teachers.base import SCALES, PairTeacher
from hf_distill.training.in_batch import cut_below
from hf_distill.training.lists import Choice, choose

NAN = float("nan")


def test_miners_take_turns_and_name_no_relevant_document() -> None:
    one = np.array([[1, 2, 3], [7, 8, -1]])
    other = np.array([[2, 4], [-1, -1]])
    lists = joined([one, other], [np.array([3]), np.array([8])], 3)
    assert [row.tolist() for row in lists] == [[1, 2, 4], [7]]


def test_the_best_of_a_miner_are_left_out_wherever_they_are_found() -> None:
    first, second = np.array([[7, 1, 2, 3, -1]]), np.array([[3, 2, 8, 1, 9]])
    relevant = [np.array([7])]
    refused = with_best(first, relevant, 2)
    assert [part.tolist() for part in refused] == [[7, 1, 2]]
    assert joined([first, second], refused, 9)[0].tolist() == [3, 8, 9]
    assert with_best(np.array([[-1, -1]]), relevant, 2)[0].tolist() == [7]


def test_candidates_begin_at_a_rank(tmp_path: Path) -> None:
    rows = [row(i, i) | {"query": "one two three four", "document": "one two three four"[: 4 * i]}
            for i in range(1, 5)]  # fmt: skip
    rows[3] |= {"query": "one five", "document": "five six"}
    collection = read_run(tmp_path, [*rows, row(99, 99, "test")])
    sources = sources_of(collection, tmp_path / "run")
    _, all_of_them = mine_lists(sources)
    lists = replace(sources.recipe.lists, candidates_from_rank=2)
    _, without = mine_lists(replace(sources, recipe=replace(sources.recipe, lists=lists)))
    query = collection.queries["text"].index("one five")
    row_of = np.unique(collection.pairs("train").queries).tolist().index(query)
    whole, rest = (
        of.documents[of.starts[row_of] : of.starts[row_of + 1]].tolist()
        for of in (all_of_them, without)
    )
    assert len(whole) == 3
    assert rest == whole[1:]


def test_a_short_list_is_filled_with_random_documents_that_are_not_relevant() -> None:
    corpus = np.arange(10)
    lists = [np.array([1, 2]), np.array([4])]
    positives = [np.array([0]), np.array([5, 6])]
    mined = filled(lists, positives, corpus, 4, 7)
    assert mined.starts.tolist() == [0, 4, 8]
    assert mined.drawn.tolist() == [False, False, True, True, False, True, True, True]
    for i, (own, relevant) in enumerate(zip(lists, positives, strict=True)):
        row = mined.documents[mined.starts[i] : mined.starts[i + 1]]
        assert row[: len(own)].tolist() == own.tolist()
        assert len({*row}) == len(row)
        assert not {*row} & {*relevant}
    again = filled(lists[1:], positives[1:], corpus, 4, 7)
    assert len(again.documents) == 4
    few = filled([np.array([1])], [np.array([0])], np.arange(3), 4, 7)
    assert few.documents.tolist() == [1, 2], "as far as the corpus has them"


@given(
    st.lists(st.lists(st.integers(-1, 8), min_size=4, max_size=4), min_size=1, max_size=5),
    st.lists(st.integers(0, 8), max_size=3),
    st.integers(1, 6),
)
def test_a_list_has_each_document_once_and_none_that_is_relevant(
    rows: list[list[int]], relevant: list[int], least: int
) -> None:
    positives = [np.array(relevant, dtype=np.int64)] * len(rows)
    lists = joined([np.array(rows)], positives, 3)
    mined = filled(lists, positives, np.arange(9), least, 0)
    for i in range(len(rows)):
        row = mined.documents[mined.starts[i] : mined.starts[i + 1]].tolist()
        assert len({*row}) == len(row)
        assert not {*row} & {-1, *relevant}
        assert len(row) >= min(least, 9 - len({*relevant}))


def test_bm25_finds_the_nearest_documents() -> None:
    documents = ["a red kettle", "a blue kettle sings", "rain on a roof"]
    index = BM25(documents, Words.of(documents, "en"))
    assert by_words(index, ["blue kettle", "snow"], 2).tolist() == [[1, 0], [-1, -1]]


def test_what_is_relevant_to_a_query_in_any_split_is_no_candidate(tmp_path: Path) -> None:
    """A pair that leaks is in no training, and its document answers its query all the same."""
    rows = [
        row(1, 1), row(1, 2), row(2, 3), row(3, 4), row(3, 5),
        row(4, 5, "test"), row(5, 6, "test"), row(6, 7, "validation"),
    ]  # fmt: skip
    collection = read_run(tmp_path, rows)
    assert len(collection.pairs("leaked")) == 1, "documents 5 of a test pair"
    texts = {
        collection.query_texts(np.array([number]))[0]: collection.document_texts(documents)
        for number, documents in enumerate(
            _relevant(collection, np.arange(len(collection.queries)))
        )
    }
    assert {*texts[text("query", 3)]} == {text("document", 4), text("document", 5)}
    assert {*texts[text("query", 1)]} == {text("document", 1), text("document", 2)}
    corpus = collection.document_texts(corpus_of(collection))
    assert {*corpus} == {text("document", number) for number in (1, 2, 3, 4)}


def test_what_is_relevant_to_a_query_of_the_same_text_is_no_candidate() -> None:
    collection: Any = SimpleNamespace(
        first_of_text=np.array([0, 1, 0]),  # a question of two conversations, and another one
        query_numbers=np.array([2, 1, 0, 0]),
        document_numbers=np.array([7, 8, 5, 6]),
    )
    documents = [each.tolist() for each in _relevant(collection, np.array([0, 1, 2]))]
    assert documents == [[7, 5, 6], [8], [7, 5, 6]]


def lists_of(scores: list[list[float]], own: list[float], of: list[int]) -> ScoredLists:
    """Lists of documents 0, 1, ... with these scores, and pairs with these own scores."""
    starts = np.concatenate([[0], np.cumsum([len(row) for row in scores])])
    documents = np.concatenate([np.arange(len(row)) for row in scores])
    values = np.concatenate([np.array(row, dtype=np.float32) for row in scores])
    return ScoredLists(
        record=SimpleNamespace(key="k"),  # type: ignore[arg-type]  # what is read of it
        queries=np.arange(len(scores)),
        mined=Mined(starts, documents, np.zeros(len(documents), dtype=bool)),
        scores=values,
        own=np.array(own, dtype=np.float32),
        of=np.array(of),
        trained=len(own),
    )


def test_a_mined_document_that_is_judged_not_relevant_keeps_its_grade(tmp_path: Path) -> None:
    rows = [row(1, 1), row(1, 3, grade=0), row(1, 4, candidate=True), row(2, 2), row(3, 9, "test")]
    collection = read_run(tmp_path, rows)
    number = {name: i for i, name in enumerate(collection.documents["text"])}
    one, two = (collection.queries["text"].index(text("query", i)) for i in (1, 2))
    mined = {one: [3, 2], two: [1]}
    queries = sorted(mined)
    documents = [number[text("document", i)] for query in queries for i in mined[query]]
    lists = ScoredLists(
        record=SimpleNamespace(key="k"),  # type: ignore[arg-type]  # what is read of it
        queries=np.array(queries),
        mined=Mined(
            np.cumsum([0, *(len(mined[query]) for query in queries)]),
            np.array(documents),
            np.zeros(3, dtype=bool),
        ),
        scores=np.array([0.3, 0.2, 0.1], dtype=np.float32),
        own=np.array([0.9, 0.8], dtype=np.float32),
        of=np.array([0, 1]),
        trained=2,
    )
    of_one = with_lists(collection, lists).lists(np.array([one]))
    grades = dict(zip(of_one.documents.tolist(), of_one.grades.tolist(), strict=True))
    assert grades == {
        number[text("document", 1)]: 1, number[text("document", 3)]: 0,
        number[text("document", 2)]: -1,
    }, "document 4 was listed by the data and not mined"  # fmt: skip
    assert not np.isnan(of_one.scores).any()


def test_the_ranking_of_a_list_is_that_of_the_ranker() -> None:
    lists = lists_of([[0.2, 0.9, 0.5], [0.1]], own=[0.6, 0.95, NAN], of=[0, 0, 1])
    ranking = lists.ranking(2)
    assert ranking.mined
    assert ranking.rank.tolist() == [2, 1, 2], "a pair without a score is the last"
    assert ranking.margin[:2].tolist() == pytest.approx([-0.3, 0.05], abs=1e-6)
    assert ranking.negatives.tolist() == [[1, 2], [1, 2], [0, -1]]
    assert ranking.negative_scores[0].tolist() == pytest.approx([0.9, 0.5])
    assert np.isnan(ranking.negative_scores[2, 1])


DOCUMENTS = np.array([[10, 11, 12, 13, 14, -1]])
SCORES = np.array([[0.5, 0.99, 0.7, 0.1, NAN, NAN]], dtype=np.float32)


def taken(number: int, how: str, cut: float | None, own: float = 1.0) -> list[int]:
    choice = Choice(number, how, cut)  # type: ignore[arg-type]  # one of three
    own_score = np.array([own], dtype=np.float32)
    draw = np.random.default_rng(0)
    return [int(x) for x in choose(DOCUMENTS, SCORES, own_score, choice, draw)[0][0]]


def test_the_best_candidates_below_the_cut_are_taken() -> None:
    assert taken(2, "top", 0.95) == [12, 10], ".99 is above .95 of 1"
    assert taken(2, "top", None) == [11, 12]
    assert taken(6, "top", 0.95) == [12, 10, 13, 14, 14, 14], "the last one again"
    assert taken(4, "top", 0.95, NAN) == [11, 12, 10, 13], "an unknown own score cuts nothing"


def test_the_lowest_are_taken_where_all_are_above_the_cut() -> None:
    documents, scores = np.array([[1, 2, 3]]), np.array([[0.9, 0.7, 0.8]], dtype=np.float32)
    for how in ("top", "random", "stratified"):
        choice = Choice(2, how, 0.95)  # type: ignore[arg-type]
        own = np.array([0.1], dtype=np.float32)
        chosen, of = choose(documents, scores, own, choice, np.random.default_rng(0))
        assert chosen.tolist() == [[2, 3]]
        assert of[0].tolist() == pytest.approx([0.7, 0.8])


def test_the_cut_of_logits_lies_below_them_too() -> None:
    own = np.array([2.0, -2.0, 0.0])
    assert cut_below(own, 0.95).tolist() == pytest.approx([1.9, -2.1, 0.0])


@settings(max_examples=50)
@given(st.integers(1, 8), st.integers(0, 2**16), st.sampled_from(["random", "stratified"]))
def test_draws_take_each_candidate_once_and_strata_take_one_of_each(
    number: int, seed: int, how: str
) -> None:
    documents = np.tile(np.arange(8), (3, 1))
    scores = np.tile(np.linspace(1, 0.3, 8, dtype=np.float32), (3, 1))
    choice = Choice(number, how, None)  # type: ignore[arg-type]
    own = np.ones(3, dtype=np.float32)
    chosen, of = choose(documents, scores, own, choice, np.random.default_rng(seed))
    for chosen_row, values in zip(chosen.tolist(), of, strict=True):
        assert len({*chosen_row}) == number
        assert chosen_row == sorted(chosen_row), "the best first"
        assert values.tolist() == scores[0, chosen_row].tolist()
        if how == "stratified":
            bounds = [place * 8 // number for place in range(number + 1)]
            assert all(
                low <= x < high
                for x, low, high in zip(chosen_row, bounds, bounds[1:], strict=False)
            )


def test_agreement_on_a_list() -> None:
    ranker = np.array([3.0, 1.0, 2.0])
    tau, ndcg = agreement_on_list(ranker, np.array([0.9, 0.1, 0.5]))
    assert (tau, ndcg) == pytest.approx((1.0, 1.0))
    tau, ndcg = agreement_on_list(ranker, np.array([0.1, 0.9, 0.5]))
    # gains 1, 0, .5 in the order 0, .5, 1 against 1, .5, 0
    worst = 0.5 / np.log2(3) + 1 / np.log2(4)
    assert tau == pytest.approx(-1.0)
    assert ndcg == pytest.approx(worst / (1 + 0.5 / np.log2(3)))
    assert np.isnan(agreement_on_list(np.ones(3), np.arange(3.0))).all()


def test_the_auc_of_lists_by_hand_and_by_scikit_learn() -> None:
    starts, of = np.array([0, 3, 3, 5]), np.array([0, 0, 2, 1, 2])
    scores = np.array([0.1, 0.5, np.nan, 0.3, 0.4])
    own = np.array([0.5, 0.05, 0.35, 0.9, np.nan])
    every = np.ones(5, dtype=bool)
    value, pairs = auc_of_lists(own, of, starts, scores, every)
    assert pairs == 3, "an empty list and an unknown score say nothing"
    assert value == pytest.approx((0.75 + 0 + 0.5) / 3)
    of_third = auc_of_lists(own, of, starts, scores, np.arange(5) == 3)
    assert of_third == (1.0, 1)
    assert auc_of_lists(own, of, starts, scores, ~every) == (None, 0)
    draw = np.random.default_rng(0)
    scores, own = draw.integers(0, 5, 40) / 4, np.array([0.5])
    value, _ = auc_of_lists(own, np.array([0]), np.array([0, 40]), scores, np.ones(40, dtype=bool))
    labels = np.concatenate([[1], np.zeros(40)])
    assert value == pytest.approx(roc_auc_score(labels, np.concatenate([own, scores])))


def sources_of(collection: Collection, folder: Path) -> Sources:
    """What BM25 mines with."""
    keys = {"candidates": ["bm25"], "hard_negatives_per_pair": 1, "candidates_per_query": 4}
    run: Any = None  # BM25 needs no teacher, and nothing is scored
    return Sources(
        recipe=recipe_of("recommended", **keys),
        folder=RunFolder(folder),
        collection=collection,
        scores=run,
        teacher=run,
        ranker=None,
        miners={},
        place=folder / "candidates",
        texts=folder / "texts",
    )


class Ranker(PairTeacher):
    """Scores by numbers of query and document."""

    name, identity, scale = "ranker", ("ranker",), SCALES["cosine"]

    def __init__(self, scores: dict[tuple[int, int], float]) -> None:
        self.scores = {(text("query", q), text("document", d)): s for (q, d), s in scores.items()}

    def score(self, pairs: list[tuple[str, str]], _: object = None) -> np.ndarray:
        return np.array([self.scores[pair] for pair in pairs], dtype=np.float32)


def test_what_a_ranker_says_of_the_judgements_by_hand(tmp_path: Path) -> None:
    rows = [
        row(1, 1), row(1, 2, grade=0), row(1, 3, candidate=True),
        row(2, 4), row(2, 5, grade=0), row(2, 6, candidate=True),
        row(3, 7), row(3, 8, candidate=True), row(4, 9), row(4, 10, candidate=True),
        row(9, 99, "test"),
    ]  # fmt: skip
    scores = {
        (1, 1): 0.6, (1, 2): 0.2, (1, 3): 0.7,  # above one of two, which is judged
        (2, 4): 0.5, (2, 5): 0.5, (2, 6): NAN,  # a tie with the only one that has a score
        (3, 7): NAN, (3, 8): 0.1,
        (4, 9): 0.9, (4, 10): 0.1,
    }  # fmt: skip
    sources = sources_of(read_run(tmp_path / "run", rows), tmp_path / "run")
    lists = replace(sources.recipe.lists, candidates=["given"])
    record = score_lists(
        replace(
            sources,
            recipe=replace(sources.recipe, lists=lists),
            ranker=Ranker(scores),
            scores=SimpleNamespace(key="s", embeddings=None),
        )
    ).record
    assert (record.candidates, record.unscored, record.judged) == (6, 1, 2)
    assert record.auc == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert record.auc_judged == pytest.approx((1 + 0.5) / 2)
    assert record.first == pytest.approx(1 / 3), "of the pairs that have a score"
    assert record.agreement() == (
        ", the average one above 66.7% of its candidates, and above 75.0% of those that are judged "
        "not relevant (2 pairs have some)"
    )


def test_a_query_to_which_every_document_is_relevant_is_said(tmp_path: Path) -> None:
    collection = read_run(tmp_path, [row(1, 1), row(1, 2), row(2, 1), row(5, 9, "test")])
    says = "1 of 2 queries have no candidate, because all 2 documents are relevant to them"
    with pytest.raises(InputError, match=says):
        mine_lists(sources_of(collection, tmp_path / "run"))
    assert not list((tmp_path / "run").rglob("*.npz")), "nothing half made"


def test_blocks_of_queries_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [f"w{i % 7} w{i % 5} w{i % 3}" for i in range(30)]
    rows = [row(i // 3, i) | {"document": f"{text} d{i}"} for i, text in enumerate(words)]
    rows = [each | {"query": words[each_query]} for each_query, each in enumerate(rows)]
    rows += [row(0, i) | {"query": words[0], "document": rows[i]["document"]} for i in range(9)]
    collection = read_run(tmp_path, [*rows, row(99, 99, "test")])
    whole = mine_lists(sources_of(collection, tmp_path / "whole"))
    monkeypatch.setattr(scoring_lists, "_MINED", 2)
    parts = mine_lists(sources_of(collection, tmp_path / "parts"))
    assert whole[1].documents.tolist() == parts[1].documents.tolist()
    assert whole[1].starts.tolist() == parts[1].starts.tolist()
    assert whole[0].by == parts[0].by
    assert (np.diff(whole[1].starts) == 4).all(), "relevant documents take no place"
    assert not whole[1].drawn.any()


def test_a_corpus_of_one_document_is_said_before_the_scoring(tmp_path: Path) -> None:
    collection = read_run(tmp_path, [row(1, 1), row(2, 1), row(5, 9, "test")])
    sources = sources_of(collection, tmp_path / "run")
    teacher: Any = SimpleNamespace(name="t", embeds=True, scores_pairs=False)
    with pytest.raises(InputError, match=r"the data has 1 document, so no query has another one"):
        check_candidates(collection, teacher, sources.recipe)


def test_a_rank_to_begin_at_needs_a_miner_with_ranks(tmp_path: Path) -> None:
    rows = [row(1, 1), row(1, 2, candidate=True), row(2, 3), row(5, 9, "test")]
    collection = read_run(tmp_path, rows)
    recipe = sources_of(collection, tmp_path / "run").recipe
    teacher: Any = SimpleNamespace(name="t", embeds=True, scores_pairs=False)
    lists = replace(recipe.lists, candidates=["given"], candidates_from_rank=11)
    with pytest.raises(InputError, match=r"--candidates_from_rank 11: .*given is the only one"):
        check_candidates(collection, teacher, replace(recipe, lists=lists))
    with_words = replace(lists, candidates=["given", "bm25"])
    check_candidates(collection, teacher, replace(recipe, lists=with_words))


def test_a_query_without_words_in_common_gets_random_documents_that_are_counted(
    tmp_path: Path,
) -> None:
    rows = [row(1, 1), row(2, 2), row(3, 3), row(5, 9, "test")]
    rows[0] |= {"query": "nothing shared here", "document": "an answer to that"}
    rows[1] |= {"query": "alpha beta gamma", "document": "beta delta one"}
    rows[2] |= {"query": "beta epsilon zeta", "document": "gamma eta two"}
    collection = read_run(tmp_path, rows)
    record, mined = mine_lists(sources_of(collection, tmp_path / "run"))
    assert (record.queries, record.drawn, record.short) == (3, 1, 1)
    assert np.diff(mined.starts).tolist() == [1, 1, 1], "no query is left out"
    assert record.by == {"bm25": 2}


def test_mining_that_is_stopped_leaves_nothing_and_then_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(i, i) | {"query": f"w{i % 3} w{i % 5}", "document": f"w{i} w{i % 3} w{i % 4}"}
            for i in range(12)]  # fmt: skip
    collection = read_run(tmp_path, [*rows, row(99, 99, "test")])
    mine_lists(sources_of(collection, tmp_path / "whole"))
    monkeypatch.setattr(scoring_lists, "_MINED", 4)
    blocks = []

    def stopped(*args: Any) -> list[np.ndarray]:
        blocks.append(args)
        if len(blocks) == 2:
            raise KeyboardInterrupt
        return joined(*args)

    monkeypatch.setattr(scoring_lists, "joined", stopped)
    with pytest.raises(KeyboardInterrupt):
        mine_lists(sources_of(collection, tmp_path / "run"))
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    mine_lists(sources_of(collection, tmp_path / "run"))
    whole, run = (tmp_path / name / "candidates" / "mined.npz" for name in ("whole", "run"))
    assert run.read_bytes() == whole.read_bytes()
