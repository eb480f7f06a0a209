from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hf_distill.data.collection import (
    CANDIDATE_FEATURES,
    JUDGEMENT_FEATURES,
    TEXT_FEATURES,
    Collection,
    CollectionRecord,
    Pairs,
    Source,
)
from hf_distill.data.near_duplicates import (
    NEAR_DUPLICATE_JACCARD,
    jaccard,
    text_key,
    word_trigrams,
)
from hf_distill.errors import InputError
from hf_distill.recipe.kinds import RULES
from hf_distill.run.folder import RunFolder
from hf_distill.run.stage import read_json
from hf_distill.scoring.embeddings import EmbeddingTable, Vectors
from hf_distill.scoring.second import disagreement
from hf_distill.selection.audit import Audit, Part
from hf_distill.selection.clusters import document_clusters
from hf_distill.selection.rules import (
    UNSCORED,
    Columns,
    apply_rules,
    parse_rules,
    quotas,
    rule,
)
from hf_distill.selection.second import check_second_model
from hf_distill.selection.select import (
    Selection,
    SelectionInputs,
    better_documents,
    rule_columns,
    select_pairs,
)
from hf_distill.selection.texts import near_duplicate_families, ngram_overlap, text_columns


def pairs_of(rows: list[tuple[str, str]], **columns: list) -> Pairs:
    """Pairs of a collection that holds each text once."""
    queries, documents = (list(dict.fromkeys(row[side] for row in rows)) for side in (0, 1))
    judgements = {
        "pair_id": [str(i) for i in range(len(rows))],
        "query": [queries.index(query) for query, _ in rows],
        "document": [documents.index(document) for _, document in rows],
        **columns,
    }
    empty = {name: [None] * len(rows) for name in JUDGEMENT_FEATURES}
    record = CollectionRecord("key", Source("test"), {}, {"train": len(rows)}, {}, 0)
    searched = [False] * len(documents)
    return Collection(
        Dataset.from_dict(
            {"text": queries, "student_text": [None] * len(queries), "id": queries},
            TEXT_FEATURES["queries"],
        ),
        Dataset.from_dict(
            {"text": documents, "searched": searched, "id": documents}, TEXT_FEATURES["documents"]
        ),
        Dataset.from_dict({**empty, **judgements}, JUDGEMENT_FEATURES),
        record,
    ).every_pair()


def inputs(
    pairs: Pairs,
    scores: list[float] | None = None,
    ranking: SimpleNamespace | None = None,
    embeddings: EmbeddingTable | None = None,
) -> SelectionInputs:
    values = np.array([0.5] * len(pairs) if scores is None else scores, dtype=np.float32)
    return SelectionInputs(pairs, values, ranking, "scores", embeddings)


def table_of(documents: np.ndarray) -> EmbeddingTable:
    """The embeddings (n, dimension) of n documents."""
    numbers = np.arange(len(documents), dtype=np.uint32)
    vectors = Vectors((documents.astype(np.float16),), numbers, documents.shape[1])
    return EmbeddingTable(vectors, numbers, numbers)


def many(count: int) -> Pairs:
    """Pairs of a document each, for rules that read no text."""
    return pairs_of([("query", f"document {i}") for i in range(count)])


def columns(scores: list[float], **needed: list) -> Columns:
    """Scores with the reversed order of the rows as the seeded one."""
    n = len(scores)
    pairs = Pairs(None, np.arange(n))  # rules of numbers read no text
    needed = {name: np.array(values) for name, values in needed.items()}
    return Columns(pairs, np.array(scores, dtype=float), np.arange(n)[::-1], needed)


def kept(rule: str, given: Columns) -> list[int]:
    return apply_rules(given, parse_rules([rule])).kept.tolist()


def kept_of(rule: str, pairs: Pairs) -> list[int]:
    rules = parse_rules([rule])
    return apply_rules(rule_columns(inputs(pairs), rules, 0), rules).kept.tolist()


def select(given: SelectionInputs, rules: list[str], folder: Path, seed: int = 0) -> Selection:
    return select_pairs(given, parse_rules(rules), seed, RunFolder(folder))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (
            "percentile=80",
            [3, 4],
        ),  # four fifths of the way from the first to the fifth: .42 + .2 * (.42 - .42)
        ("percentile=0", [0, 1, 2, 3, 4]),
        ("percentile=100", [4]),
        ("threshold=0.3", [2, 3, 4]),
        ("top_k=2", [3, 4]),
        ("top_k=9", [0, 1, 2, 3, 4]),
        ("random=0.4", [3, 4]),  # the seeded order here is reversed
        ("random=0", []),
        ("stratified=1", [0, 1, 2, 3, 4]),
        ("stratified=0", []),
    ],
)
def test_rules_on_scores_by_hand(rule: str, expected: list[int]) -> None:
    scores = [0.1, 0.2, 0.3, 0.42, 0.42] if rule == "percentile=80" else [0.1, 0.2, 0.3, 0.4, 0.5]
    assert kept(rule, columns(scores)) == expected


def test_rules_on_the_ranking_by_hand() -> None:
    given = columns([0.5] * 4, rank=[1, 3, 2, 9], margin=[0.1, -0.2, 0.0, np.nan])
    assert kept("rank=2", given) == [0, 2]
    assert kept("margin=0", given) == [0, 2, 3], "without another document, a pair is kept"
    assert kept("margin=0.05", given) == [0, 3]


def test_rules_within_groups_by_hand() -> None:
    given = columns(
        [0.1, 0.2, 0.3, 0.9, 0.8, 0.7, 0.5], group=[0, 0, 0, 1, 1, 1, 2], source=[0] * 7
    )
    assert kept("percentile=50:by=group", given) == [1, 2, 3, 4, 6], (
        "each group's median; a group of one keeps it"
    )
    assert kept("percentile=50:by=source", given) == kept("percentile=50", given) == [3, 4, 5, 6]
    assert kept("top_k=1:by=group", given) == [2, 3, 6]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(-1, 1)), min_size=1, max_size=40),
    st.floats(0, 100),
)
def test_a_percentile_within_groups_is_numpys_of_each_group(
    rows: list[tuple[int, float]], q: float
) -> None:
    groups, scores = np.array([g for g, _ in rows]), np.array([s for _, s in rows])
    seen = Columns(
        Pairs(None, np.arange(len(rows))), scores, np.arange(len(rows)), {"group": groups}
    )
    [(_, outcome)] = apply_rules(seen, parse_rules([f"percentile={q!r}:by=group"])).steps
    cuts = np.array([np.percentile(scores[groups == g], q) for g in groups])
    np.testing.assert_allclose(scores - outcome.above, cuts, atol=1e-12)
    [(_, whole)] = apply_rules(seen, parse_rules([f"percentile={q!r}"])).steps
    assert whole.threshold == np.percentile(scores, q)


def test_stratified_draws_evenly_over_the_range() -> None:
    scores = [0.0] * 1 + [0.25] * 3 + [0.55] * 20 + [1.0] * 40
    assert Counter(scores[i] for i in kept("stratified=0.25", columns(scores))) == {
        0.0: 1,
        0.25: 3,
        0.55: 6,
        1.0: 6,
    }
    assert kept("stratified=0.03125", columns(scores)) == [23, 63], (
        "two of 64: what is left over goes to the fullest bins"
    )
    margins = [0.0, 0.0, 0.0, 1.0, np.nan, np.nan]
    assert kept("stratified=0.5:on=margin", columns([0.5] * 6, margin=margins)) == [2, 3, 5]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(0, 300))
def test_quotas_add_up_and_are_even(sizes: list[int], total: int) -> None:
    given_to = quotas(np.array(sizes), total)
    assert given_to.sum() == min(total, sum(sizes))
    assert (given_to <= sizes).all()
    unfilled = [g for g, size in zip(given_to, sizes, strict=True) if g < size]
    assert not unfilled or (
        max(given_to) - min(unfilled) <= 1 and max(unfilled) - min(unfilled) <= 1
    )


def test_coverage_draws_evenly_from_clusters() -> None:
    given = columns([0.5] * 100, cluster=[3] * 90 + [0] * 10)
    assert kept("coverage=0.2", given) == [*range(80, 100)], "ten and ten, in the seeded order"
    assert kept("coverage=0.3", given) == [*range(70, 100)], "the large one makes up for the small"
    assert kept("coverage=0.01", given) == [89], "what is left over goes to the largest"


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=40),
    st.floats(0, 1),
    st.randoms(use_true_random=False),
)
def test_coverage_keeps_the_share_whatever_the_order_of_the_pairs(
    clusters: list[int], share: float, random: Random
) -> None:
    given = columns([0.5] * len(clusters), cluster=clusters)
    rows = kept(f"coverage={share!r}", given)
    assert len(rows) == round(share * len(clusters))
    places = random.sample(range(len(clusters)), len(clusters))
    moved = replace(
        given, order=given.order[places], needed={"cluster": np.array(clusters)[places]}
    )
    assert sorted(places[i] for i in kept(f"coverage={share!r}", moved)) == rows


def test_equal_embeddings_are_one_cluster() -> None:
    """Fewer different embeddings than the square root of 100; only their direction counts."""
    documents = np.repeat([[1.0, 0, 0], [0, 0, 2], [0, 0, 4]], [90, 5, 5], axis=0)
    given = inputs(many(100), embeddings=table_of(documents))
    rules = parse_rules(["coverage=0.06"])
    for seed in (0, 1):
        columns = rule_columns(given, rules, seed)
        first = [
            part[np.argsort(columns.order[part])][:3] for part in np.split(np.arange(100), [90])
        ]
        expected = np.sort(np.concatenate(first))
        np.testing.assert_array_equal(apply_rules(columns, rules).kept, expected)


def test_clusters_hold_what_is_close(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    group = np.repeat([0, 1, 2], [800, 80, 20])
    documents = np.eye(3, 8)[group] + draw.normal(0, 0.05, (900, 8))
    pairs, table = many(900), table_of(documents)
    clusters = document_clusters(pairs, table, 0)
    assert len(set(clusters)) == 30, "the square root of 900"
    assert len(set(zip(group, clusters, strict=True))) == 30, "no cluster reaches over two groups"
    np.testing.assert_array_equal(document_clusters(pairs, table, 0), clusters)

    places = draw.permutation(900)
    moved = document_clusters(pairs.take(places), table, 0)
    np.testing.assert_array_equal(moved, clusters[places])
    twice = np.repeat(np.arange(900), 2)
    np.testing.assert_array_equal(document_clusters(pairs.take(twice), table, 0), clusters[twice])

    monkeypatch.setattr("hf_distill.selection.clusters.MOST_CLUSTERS", 12)
    few, doubled = document_clusters(pairs, table, 0), table_of(np.repeat(documents, 2, axis=0))
    assert len(set(few)) == 12
    np.testing.assert_array_equal(document_clusters(many(1800), doubled, 0), np.repeat(few, 2))
    monkeypatch.undo()

    monkeypatch.setattr("hf_distill.selection.clusters._BLOCK", 7)
    np.testing.assert_array_equal(document_clusters(pairs, table, 0), clusters)
    monkeypatch.setattr("hf_distill.selection.clusters.MOST_FITTED", 100 * 8)
    sampled = document_clusters(pairs, table, 0)
    assert len(set(zip(group, sampled, strict=True))) == len(set(sampled)) <= 30
    assert not np.array_equal(sampled, clusters)


def test_a_single_document_far_from_all_others_is_a_cluster() -> None:
    group = np.repeat(np.arange(10), [91, *[1] * 9])
    pairs, table = many(100), table_of(np.eye(10)[group])
    for seed in range(5):
        clusters = document_clusters(pairs, table, seed)
        assert len(set(clusters)) == len(set(zip(group, clusters, strict=True))) == 10


@settings(max_examples=30, deadline=None)
@example([0.0] * 30)
@given(st.lists(st.sampled_from([0.0, -0.0, 1e-7, 6e-5, 1.0, 3.0, 65504.0]), max_size=60))
def test_any_embeddings_have_clusters(values: list[float]) -> None:
    """Zeros, tiny and huge ones, many of them equal: without a warning, and no more than asked."""
    documents = np.array(values[: len(values) // 3 * 3]).reshape(-1, 3)
    pairs = many(len(documents))
    clusters = document_clusters(pairs, table_of(documents), 0)
    assert (clusters.shape, clusters.dtype) == ((len(documents),), np.int64)
    different = len(np.unique(documents, axis=0))
    assert len(set(clusters)) <= min(round(len(documents) ** 0.5), different)


def test_rules_on_texts_by_hand() -> None:
    pairs = pairs_of(
        [
            ("who is it", "who is  it!"),
            ("who is it", "a document here"),
            ("Who is it?", "A document, here"),
            ("short", "a document here"),
            ("another query", "tiny"),
        ]
    )
    assert kept_of("echo", pairs) == [1, 2, 3, 4]
    assert kept_of("duplicate", pairs) == [0, 1, 3, 4]
    assert kept_of("invalid", pairs) == [
        0,
        1,
        2,
    ]  # the document "who is  it!" has exactly the 11 characters that it needs


def test_overlap_by_hand() -> None:
    assert ngram_overlap("how to read a file", "How to read a file!") == 1.0
    assert ngram_overlap("how to read a file", "to read a book") == pytest.approx(
        2 / 3
    )  # to read, read a; not: a book
    assert ngram_overlap("read", "read") == ngram_overlap("how to read it", "read") == 1.0, (
        "of one word, the word"
    )
    assert ngram_overlap("read", "read a file") == 0.0
    assert ngram_overlap("", "read") == 0.0
    pairs = pairs_of(
        [
            ("how to read a file", "to read a book"),
            ("how to read a file", "how to read a file"),
            ("one", "two three"),
        ]
    )
    assert kept_of("near_echo=0.7", pairs) == [0, 2]
    assert kept_of("near_echo=0.5", pairs) == [2]


LONG = (
    "the quick brown fox jumps over the lazy dog while seven wizards brew a potion of strange and "
    "wonderful colours tonight"
)


def test_near_duplicates_keep_the_first_of_a_family() -> None:
    pairs = pairs_of(
        [
            ("what happens", LONG),
            ("something else", "an entirely different text about nothing in particular"),
            ("what happens", LONG + " again"),
            ("What happens?", LONG.upper()),
            ("what happens", LONG + " again and again"),
        ]
    )
    assert kept_of("near_duplicate", pairs) == [0, 1]
    assert kept_of("near_duplicate=2", pairs) == [0, 1, 2]
    assert str(parse_rules(["near_duplicate"])[0]) == "near_duplicate"


words = st.lists(st.sampled_from(["alpha", "beta", "gamma", "delta"]), min_size=1, max_size=6).map(
    " ".join
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(words, words), min_size=1, max_size=12))
def test_families_are_connected_by_near_duplicates_alone(rows: list[tuple[str, str]]) -> None:
    families = near_duplicate_families(pairs_of(rows))
    grams = [word_trigrams(f"{q}\n{d}") for q, d in rows]
    for i, own in enumerate(grams):
        others = [j for j in range(len(rows)) if j != i and families[j] == families[i]]
        assert not others or max(jaccard(own, grams[j]) for j in others) >= NEAR_DUPLICATE_JACCARD
        same = [j for j in range(len(rows)) if grams[j] == own]
        assert {families[j] for j in same} == {families[i]}, "equal texts are never missed"


def test_invalid_drops_scores_that_are_no_numbers() -> None:
    assert kept("invalid", columns([0.5, float("nan"), 0.4], long_enough=[True] * 3)) == [0, 2]


def test_ties_at_top_k_are_broken_by_the_seeded_order_and_counted(tmp_path: Path) -> None:
    assert kept("top_k=2", columns([0.5, 0.5, 0.5, 0.1])) == [1, 2]
    four = pairs_of([("q", f"d{i}") for i in range(4)])
    audit = select(inputs(four, [0.5, 0.5, 0.5, 0.1]), ["top_k=2"], tmp_path).audit
    assert (audit.seed, audit.rules[0].tied, audit.rules[0].tied_dropped) == (0, 3, 1)


def test_rules_apply_to_what_is_left() -> None:
    given = columns([0.0, 0.0, 0.5, 0.6, 0.7, 0.8])
    applied = apply_rules(given, parse_rules(["threshold=0.4", "percentile=50"]))
    assert applied.dropped_by.tolist() == [0, 0, 1, 1, -1, -1]
    assert [(len(alive), int((~o.keep).sum())) for alive, o in applied.steps] == [(6, 2), (4, 2)]
    assert applied.steps[1][1].threshold == pytest.approx(0.65)


def test_a_weight_instead_of_dropping() -> None:
    given = columns([0.1, 0.2, 0.3, 0.4], rank=[5, 1, 1, 5])
    applied = apply_rules(
        given, parse_rules(["threshold=0.15", "rank=2:weight=0.5", "threshold=0.25:weight=0.5"])
    )
    assert applied.dropped_by.tolist() == [0, -1, -1, -1]
    np.testing.assert_allclose(applied.weight, [0, 0.5, 1, 0.5])


def test_weights_for_ranking_terms_alone() -> None:
    given = columns([0.1, 0.2, 0.3, 0.4], rank=[5, 1, 1, 5])
    applied = apply_rules(
        given,
        parse_rules(["threshold=0.15", "rank=2:weight_ranking=0", "threshold=0.35:weight=0.5"]),
    )
    np.testing.assert_allclose(applied.weight, [0, 0.5, 0.5, 1])
    np.testing.assert_allclose(applied.weight_ranking, [0, 0.5, 0.5, 0])


def test_agreement_and_disagreement_by_hand() -> None:
    apart = disagreement(np.array([0.1, 0.5, 0.9, 0.3]), np.array([-2.0, 7.0, -1.0, 3.0]))
    # quantiles 1/8, 5/8, 7/8, 3/8 for the teacher, and 1/8, 7/8, 3/8, 5/8 for the second model
    assert apart.tolist() == [0.0, 0.25, 0.5, 0.25]
    given = columns([0.1, 0.5, 0.9, 0.3], disagreement=apart.tolist())
    assert kept("agreement=0.25", given) == [0]
    assert kept("agreement=0.5", given) == [0, 3], "the later row is the earlier one of the order"
    assert kept("disagreement=0.25", given) == [2]
    assert kept("disagreement=0.75", given) == [1, 2, 3]
    assert kept("disagreement=1", given) == [0, 1, 2, 3]


def test_a_second_model_and_the_rules_that_read_it_need_each_other() -> None:
    rules = parse_rules(["echo", "disagreement=0.5"])
    check_second_model(rules, "student")
    check_second_model(rules[:1], None)
    with pytest.raises(InputError, match=r"disagreement=0.5 compares .* --second_model"):
        check_second_model(rules, None)
    with pytest.raises(InputError, match=r"--second_model student: no selection rule reads it"):
        check_second_model(rules[:1], "student")


def test_mismatched_pairs_by_hand() -> None:
    given = columns([0.5] * 4, mismatch=[0.0, 0.5, 0.49, 1.0])
    assert kept("mismatched", given) == kept("mismatched=0.5", given) == [0, 2]
    assert kept("mismatched=0.75", given) == [0, 1, 2]


def relabelled_inputs() -> SelectionInputs:
    """Pairs (a, 0), (a, 1), (b, 2), (c, 3), (d, 4), of which the first three look wrong."""
    texts = [("a", "0"), ("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")]
    ranking = ranking_of(
        margin=[-0.5, -0.4, -0.3, 0.2, np.nan],
        negatives=[[3, 4], [3, 4], [4, 0], [0, 1], [-1, -1]],
        scores=[[0.8, 0.7], [0.8, 0.7], [0.6, 0.5], [0.4, 0.3], [np.nan, np.nan]],
        rank=[3, 3, 2, 1, 1],
    )
    return inputs(pairs_of(texts), [0.3, 0.4, 0.3, 0.6, 0.5], ranking)


def test_relabelled_pairs_by_hand(tmp_path: Path) -> None:
    result = select(relabelled_inputs(), ["rank=1:relabel", "threshold=0.45"], tmp_path / "drops")
    # The second pair of `a` cannot have the document that its first one got.
    assert result.relabelled.tolist() == [3, -1, 4, -1, -1]
    np.testing.assert_allclose(result.relabelled_score, [0.8, np.nan, 0.6, np.nan, np.nan])
    assert result.dropped_by.tolist() == [-1, 0, -1, -1, -1]
    assert (result.weight, result.weight_ranking) == (None, None)
    first, second = result.audit.rules
    assert (first.relabelled, first.dropped, first.weighted) == (2, 1, 0)
    assert (second.pairs_in, second.dropped) == (2, 0), "relabelled pairs have low scores no more"
    assert (result.audit.kept, result.audit.relabelled) == (4, 2)
    assert "rank=1:relabel relabels 2 and drops 1, threshold" in result.summary()
    again = select(relabelled_inputs(), ["rank=1:relabel", "threshold=0.45"], tmp_path / "drops")
    np.testing.assert_array_equal(again.relabelled, result.relabelled)

    given = relabelled_inputs()
    given.ranking.rank[1] = 9
    twice = select(given, ["rank=5:relabel", "rank=2:relabel"], tmp_path / "twice")
    assert twice.relabelled.tolist() == [-1, 3, -1, -1, -1]
    assert twice.dropped_by.tolist() == [1, -1, -1, -1, -1], "another rule gave it to the query"

    weighs = select(relabelled_inputs(), ["rank=1:relabel:weight_ranking=0"], tmp_path / "weighs")
    assert weighs.weight_ranking.tolist() == [1, 0, 1, 1, 1]
    assert weighs.weight is None
    assert weighs.audit.weight_ranking.sum == 4
    assert weighs.audit.weight.sum == 5
    assert (weighs.audit.rules[0].weighted, weighs.audit.rules[0].dropped) == (1, 0)


def better(pairs: Pairs, ranking: SimpleNamespace) -> tuple[np.ndarray, np.ndarray]:
    of = text_columns(pairs, ["query", "document"])
    return better_documents(pairs, ranking, of["query"], of["document"])


@pytest.mark.parametrize("block", [2, 8192])
def test_which_document_is_better(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr("hf_distill.selection.select._BLOCK", block)
    pairs, ranking = relabelled_inputs().pairs, relabelled_inputs().ranking
    judged = Dataset.from_dict(
        {"query": [0, 0], "document": [0, 3], "score": [None, None], "grade": [1, 0]},
        CANDIDATE_FEATURES,
    )
    judged_pairs = Pairs(replace(pairs.collection, candidates=judged), pairs.rows)
    documents, scores = better(judged_pairs, ranking)
    assert documents.tolist() == [4, 4, 4, -1, -1], "3 is judged not relevant to a"
    np.testing.assert_allclose(scores, [0.7, 0.7, 0.6, np.nan, np.nan])
    few = pairs.take(np.arange(4))  # 4 is then no training document
    arrays = {k: v[:4] for k, v in vars(ranking).items() if isinstance(v, np.ndarray)}
    short = SimpleNamespace(**arrays)
    assert better(few, short)[0].tolist() == [3, 3, 0, -1]
    echoes = pairs_of([("a", "0"), ("a", "1"), ("b", "2"), ("c", "3"), ("d", "A!")])
    documents, scores = better(echoes, ranking)
    assert documents.tolist() == [3, 3, 4, -1, -1], "4 repeats a"
    ranking.negatives[:, 0], ranking.negatives[:, 1] = ranking.negatives[:, 1], [3, 3, 0, 1, -1]
    assert better(echoes, ranking)[0].tolist() == [3, 3, 0, -1, -1]
    ranking.negatives[:, 1] = -1
    assert (better(pairs, ranking)[0] == -1).all(), "no other negative would be left"


def test_mismatched_pairs_are_in_the_audit(tmp_path: Path) -> None:
    rows = [(f"query {i}", f"document {i}") for i in range(301)]
    spread = np.linspace(1, 1000, 90).round().astype(int)  # of a pool of 1,000
    ranking = ranking_of([0] * 301, [[-1]] * 301, [[np.nan]] * 301, [*spread, *[1] * 211])
    scores = [0.5] * 300 + [np.nan]
    result = select(inputs(pairs_of(rows), scores, ranking), ["mismatched"], tmp_path)
    assert result.kept.tolist() == [0, *range(90, 300)], "its best ranks look right"
    found = read_json(tmp_path / "selection.json", Audit).detection
    assert found == result.audit.detection
    assert (found.pairs, sum(found.counts)) == (300, 300), "the rank of the last one is unknown"
    assert found.share == pytest.approx(0.3)
    assert "up to 30.0% of the pairs (" in result.summary()
    assert result.audit.rules[1].examples[0].value == pytest.approx(0.99, abs=0.01)
    plain = select(inputs(pairs_of(rows), scores, ranking), ["rank=1"], tmp_path)
    assert plain.audit.detection is None

    ranking.mined = True
    listed = select(inputs(pairs_of(rows), scores, ranking), ["mismatched"], tmp_path / "lists")
    assert len(listed.kept) == 300
    assert "lists hold no random documents" in listed.summary()


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("perzentile=80", "'perzentile' is unknown. Did you mean 'percentile'"),
        ("ecko:weight=0.5", "'ecko' is unknown. Did you mean 'echo'"),
        ("unscored", "'unscored' is unknown"),
        ("percentile=180", "percentile=180: .* between 0 and 100"),
        ("percentile", "percentile needs a number"),
        ("percentile=high", "percentile=high: percentile needs a number"),
        ("percentile=nan", "between 0 and 100"),
        ("threshold=nan", "must be a number"),
        ("threshold=inf", "must be a number"),
        ("top_k=0", "a whole number of at least 1"),
        ("top_k=2.5", "a whole number of at least 1"),
        ("near_duplicate=0", "a whole number of at least 1"),
        ("near_duplicate=", "near_duplicate needs a number"),
        ("random=1.5", "between 0 and 1"),
        ("echo=1", "echo takes no value"),
        ("percentile=80:by=length", "'by=length'; it takes by=group, by=source, weight=W"),
        ("mismatched=2", "between 0 and 1"),
        ("mismatched:on=ranking", "'on=ranking'; it takes weight=W, weight_ranking=W, relabel"),
        ("mismatched:relabel=1", "no option 'relabel=1'"),
        ("rank=2:weight_ranking=-1", "weight_ranking must be a number of at least 0, found '-1'"),
        ("ecko:relabel", "'ecko' is unknown. Did you mean 'echo'"),
        ("echo:by=group", "'by=group'; it takes weight=W"),
        ("stratified=0.2:on=rank", "it takes on=score, on=margin, weight=W"),
        ("rank=2:weight=0", "weight must be a number above 0, found '0'"),
        ("rank=2:weight=little", "weight must be a number above 0, found 'little'"),
        ("no_such_module:rule=2", "module no_such_module cannot be imported"),
        ("json:rule", "module json has no rule"),
        ("json:loads", "json:loads is a function, not a rule"),
    ],
)
def test_a_bad_rule_is_refused_with_its_text(rule: str, says: str) -> None:
    with pytest.raises(InputError, match=f"--selection .*{says}"):
        parse_rules([rule])


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("rank=2", "rank=2 needs a teacher that embeds .* Mine lists with .* or remove the rule"),
        ("mismatched", r"mismatched needs a teacher that embeds .* pairs\. Remove the rule"),
        ("threshold=0.2:relabel", "threshold=0.2:relabel needs a teacher that embeds"),
        ("stratified=0.5:on=margin", "embeds"),
        ("coverage=0.5", "coverage=0.5 needs a teacher that embeds .* clusters"),
        ("agreement=0.5", "agreement=0.5 compares .* second model, .* --second_model"),
        ("top_k=1:by=source", "by=source .* pairs have none; .*--source_column"),
        ("top_k=1:by=group", "by=group .* pairs have none; .*--group_column"),
    ],
)
def test_a_rule_without_its_column_is_refused(rule: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        rule_columns(inputs(pairs_of([("a", "b")])), parse_rules([rule]), 0)


OWN_RULES = """
import numpy as np
from hf_distill.selection.rules import Columns, Outcome, Rule, rule

@rule(low=1, whole=True, options={"side": ("query", "document")})
def words(columns: Columns, rule: Rule) -> Outcome:
    side = rule.options.get("side", "document")
    texts = (text for batch in columns.pairs.batches(side) for text in batch[side])
    count = np.array([len(text.split()) for text in texts])
    return Outcome(count >= rule.number, rule.value, count - rule.number, "words")

@rule(needs=("overlap",))
def strange(columns: Columns, rule: Rule) -> Outcome:
    return Outcome(columns["overlap"] < 1)

@rule()
def undeclared(columns: Columns, rule: Rule) -> Outcome:
    return Outcome(columns["overlap"] < 1)

@rule()
def numbers(columns: Columns, rule: Rule) -> Outcome:
    return Outcome(columns.order)
"""


@pytest.fixture
def own_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of someone else's rules, which no test has imported before."""
    path = tmp_path / f"own_{tmp_path.name.replace('-', '_')}.py"
    path.write_text(OWN_RULES)
    monkeypatch.syspath_prepend(str(tmp_path))
    return path


def test_a_rule_of_ones_own_reads_texts_and_takes_value_options_and_weight(own_rules: Path) -> None:
    pairs = pairs_of([("one", "one two"), ("one two", "one"), ("one two", "one two")])
    where = own_rules.stem
    assert kept_of(f"{where}:words=2", pairs) == [0, 2]
    assert kept_of(f"{where}:words=2:side=query", pairs) == [1, 2]
    assert kept_of(f"{where}:strange", pairs) == [0]
    text = f"{where}:words=2:side=query:weight=0.5"
    (parsed,) = parse_rules([text])
    assert (str(parsed), parsed.weight, parsed.number) == (text, 0.5, 2)
    with pytest.raises(InputError, match=r"3\.5: .* a whole number of at least 1"):
        parse_rules([f"{where}:words=3.5"])


def test_what_a_rule_of_ones_own_does_wrong_is_said(own_rules: Path) -> None:
    pairs = pairs_of([("one", "one two"), ("one two", "one")])
    with pytest.raises(InputError, match="'overlap' without declaring"):
        kept_of(f"{own_rules.stem}:undeclared", pairs)
    with pytest.raises(InputError, match=r":numbers returns int64 of shape \(2,\) for 2 pairs"):
        kept_of(f"{own_rules.stem}:numbers", pairs)
    with pytest.raises(InputError, match="'words' is not a column"):
        rule(needs=("words",))


def test_a_selection_is_made_again_when_the_file_of_its_rule_changes(
    own_rules: Path, tmp_path: Path
) -> None:
    pairs = pairs_of([("one", "one two"), ("one two", "one")])
    first = select(inputs(pairs), [f"{own_rules.stem}:words=2"], tmp_path / "run")
    assert first.audit.rules[0].examples[0].value is None, "nobody knows the column `words`"
    assert select(inputs(pairs), [f"{own_rules.stem}:words=2"], tmp_path / "run").key == first.key
    own_rules.write_text(OWN_RULES + "# changed")
    changed = select(inputs(pairs), [f"{own_rules.stem}:words=2"], tmp_path / "run")
    assert changed.key != first.key


@pytest.mark.parametrize(
    "rule",
    ["near_duplicate=3", "percentile=80:by=group:weight=0.25", "stratified=0.2:on=margin", "echo"],
)
def test_a_rule_is_written_as_it_is_read(rule: str) -> None:
    assert [str(parsed) for parsed in parse_rules([rule])] == [rule]


word = st.sampled_from(
    [
        "alpha beta",
        "Alpha, beta",
        "gamma delta epsilon",
        "x",
        "one two three four five",
        "one two three four five six",
    ]
)
FORMS = {
    "near_echo": "=0.5",
    "percentile": "=30",
    "threshold": "=0.2",
    "top_k": "=5",
    "rank": "=2",
    "margin": "=0.1",
    "stratified": "=0.5",
    "coverage": "=0.5",
    "agreement": "=0.5",
    "disagreement": "=0.5",
    "random": "=0.5",
}
every_rule = [name + FORMS.get(name, "") for name in RULES]
every_rule += [
    "percentile=60:by=group",
    "top_k=1:by=source",
    "stratified=0.4:on=margin",
    "near_duplicate=2",
]
rules_of_all_kinds = st.lists(
    st.sampled_from(every_rule).flatmap(
        lambda r: st.sampled_from(
            [
                r,
                f"{r}:weight=0.5",
                f"{r}:weight_ranking=0",
                f"{r}:relabel",
                f"{r}:relabel:weight_ranking=0.5",
            ]
        )
    ),
    max_size=6,
)
rows_of_all_kinds = st.lists(
    st.tuples(
        word,
        word,
        st.one_of(st.floats(-1, 1), st.just(float("nan"))),
        st.integers(1, 3),
        st.floats(-1, 1),
        st.sampled_from("ab"),
    ),
    max_size=20,
)


def ranking_of(margin: list, negatives: list, scores: list, rank: list) -> SimpleNamespace:
    return SimpleNamespace(
        rank=np.array(rank, dtype=np.int32),
        margin=np.array(margin, dtype=np.float32),
        negatives=np.array(negatives, dtype=np.int64).reshape(
            len(margin), len(negatives[0]) if negatives else 2
        ),
        negative_scores=np.array(scores, dtype=np.float32).reshape(
            len(margin), len(negatives[0]) if negatives else 2
        ),
        pool=1000,
        mined=False,
    )


def inputs_of_all_kinds(rows: list) -> SelectionInputs:
    parts = [row[5] for row in rows]
    pairs = pairs_of([(row[0], row[1]) for row in rows], group=parts, source=parts)
    # The other documents of a query: two that it has no pair with, else none.
    asked = pairs.queries[:, None] == pairs.queries
    others = [
        [*np.setdiff1d(pairs.documents, pairs.documents[row])[:2], -1, -1][:2] for row in asked
    ]
    scores = np.where(np.array(others).reshape(-1, 2) < 0, np.nan, (0.6, 0.5))
    ranking = ranking_of(
        [row[4] for row in rows], others, scores.tolist(), [row[3] for row in rows]
    )
    documents = np.eye(len(pairs.collection.documents), 3)  # from the fourth on they are equal
    apart = np.array([abs(row[4]) for row in rows], dtype=np.float32)
    without = inputs(pairs, [row[2] for row in rows], ranking, table_of(documents))
    return replace(without, disagreement=apart)


@settings(max_examples=80, deadline=None)
@given(rows=rows_of_all_kinds, names=rules_of_all_kinds, seed=st.integers(0, 5))
def test_every_dropped_pair_is_accounted_for(rows: list, names: list[str], seed: int) -> None:
    """In = kept + the sum of dropped, for any list of any rules. A relabelled pair is kept, and no
    further rule sees it.
    """
    rules = [UNSCORED, *parse_rules(names)]
    applied = apply_rules(rule_columns(inputs_of_all_kinds(rows), rules, seed), rules)
    alive, kept = len(rows), len(rows)
    for number, (each, (came, outcome)) in enumerate(zip(rules, applied.steps, strict=True)):
        assert len(came) == len(outcome.keep) == alive
        dropped, new = (
            int((by == number).sum()) for by in (applied.dropped_by, applied.relabelled_by)
        )
        assert new == 0 or each.relabel
        assert dropped == (int((~outcome.keep).sum()) - new if each.drops else 0)
        alive -= dropped + new
        kept -= dropped
    assert kept == len(applied.kept)
    relabelled = applied.relabelled_by >= 0
    assert alive == kept - int(relabelled.sum())
    assert not (relabelled & (applied.dropped_by >= 0)).any()
    assert ((applied.weight == 0) == (applied.dropped_by >= 0)).all()
    assert (applied.weight_ranking <= applied.weight).all()


@settings(max_examples=20, deadline=None)
@given(
    rows=rows_of_all_kinds.filter(lambda rows: any(r[2] == r[2] for r in rows)),
    names=rules_of_all_kinds,
)
def test_the_audit_accounts_for_every_pair(
    tmp_path_factory: pytest.TempPathFactory, rows: list, names: list[str]
) -> None:
    given = inputs_of_all_kinds(rows)
    try:
        result = select(given, names, tmp_path_factory.mktemp("run"))
    except InputError:
        rules = [UNSCORED, *parse_rules(names)]
        assert not len(apply_rules(rule_columns(given, rules, 0), rules).kept)
        return
    audit = result.audit
    dropped = [rule.dropped for rule in audit.rules]
    assert audit.pairs_in == len(rows) == audit.kept + sum(dropped)
    assert len(result.kept) == audit.kept
    assert np.bincount(result.dropped_by + 1, minlength=len(dropped) + 1).tolist() == [
        audit.kept,
        *dropped,
    ]
    histogram = audit.histogram
    assert sum(histogram.kept) + sum(histogram.dropped) == sum(r[2] == r[2] for r in rows)
    for loss in audit.losses.values():
        assert sum(part.pairs_in - part.kept for part in loss.worst) == len(rows) - audit.kept, (
            "here all parts are among the worst"
        )


def ten() -> SelectionInputs:
    """Ten pairs with the scores 0.0, 0.1, ... in groups of four."""
    rows = [(f"query number {i}", f"document number {i}") for i in range(10)]
    pairs = pairs_of(rows, group=[str(i // 4) for i in range(10)])
    return inputs(pairs, [i / 10 for i in range(10)])


def test_selection_json_says_what_each_rule_dropped(tmp_path: Path) -> None:
    result = select(ten(), ["echo", "percentile=80", "near_echo=0.9"], tmp_path)
    assert result.kept.tolist() == [8, 9]
    assert result.dropped_by.tolist() == [1] * 8 + [-1] * 2
    assert result.weight is None
    written = read_json(tmp_path / "selection.json", Audit)
    assert written == result.audit
    assert (written.pairs_in, written.kept, written.seed) == (10, 2, 0)
    rule = written.rules[1]
    assert (rule.rule, rule.pairs_in, rule.dropped, rule.column) == (
        "percentile=80",
        10,
        8,
        "score",
    )
    assert rule.threshold == pytest.approx(0.72)
    assert [example.pair_id for example in rule.examples] == ["7", "6", "5"], (
        "the dropped ones nearest the threshold"
    )
    assert [example.pair_id for example in rule.kept_examples] == ["8", "9"], "and those kept"
    assert written.rules[2].kept_examples[0].value == 0.5, "the overlap, which that rule compares"
    assert (sum(written.histogram.kept), sum(written.histogram.dropped)) == (2, 8)
    assert written.overlap == ((0, 0, 0), (0, 8, 0), (0, 0, 0))
    lost = written.losses["group"]
    assert list(written.losses) == ["group"]
    assert (lost.parts, lost.emptied) == (3, 2)
    assert lost.worst == (Part("0", 4, 0), Part("1", 4, 0))


def test_a_selection_is_read_again_and_made_again_with_its_inputs(tmp_path: Path) -> None:
    first = select(ten(), ["top_k=5", "random=0.5:weight=2"], tmp_path)
    path = tmp_path / "selection.json"
    before = path.stat().st_mtime_ns
    again = select(ten(), ["top_k=5", "random=0.5:weight=2"], tmp_path)
    assert path.stat().st_mtime_ns == before
    assert again.audit == first.audit
    np.testing.assert_array_equal(again.dropped_by, first.dropped_by)
    np.testing.assert_array_equal(again.weight, first.weight)
    assert select(ten(), ["top_k=5"], tmp_path).weight is None
    (tmp_path / "cache" / "selection.npz").unlink()
    assert select(ten(), ["top_k=5"], tmp_path).kept.tolist() == [5, 6, 7, 8, 9]


def test_the_overlap_matrix_is_of_rules_on_their_own(tmp_path: Path) -> None:
    audit = select(ten(), ["threshold=0.25", "threshold=0.45"], tmp_path).audit
    assert [rule.dropped for rule in audit.rules] == [3, 2], "one after another"
    assert audit.overlap == ((3, 3), (3, 5)), "each on its own, and both"


def test_weights_are_an_array(tmp_path: Path) -> None:
    result = select(ten(), ["threshold=0.2", "percentile=50:by=group:weight=0.25"], tmp_path)
    # 0.2 as float32 is above 0.2
    assert result.weight == pytest.approx([0, 0, 0.25, 1, 0.25, 0.25, 1, 1, 0.25, 1])
    record = result.audit.rules[1]
    assert (record.dropped, record.weighted, record.threshold) == (0, 4, None)
    by = record.threshold_by
    assert by.column == "group"
    assert (by.min, by.median, by.max) == pytest.approx((0.25, 0.55, 0.85))
    assert result.audit.weight.sum == pytest.approx(5)
    assert "percentile=50:by=group:weight=0.25 weighs 4" in result.summary()


def test_pairs_without_a_score_are_dropped_first(tmp_path: Path) -> None:
    given = inputs(ten().pairs, [float("nan"), 0.1, *[0.5] * 8])
    result = select(given, ["threshold=0.2"], tmp_path)
    assert [(rule.rule, rule.dropped) for rule in result.audit.rules] == [
        ("unscored", 1),
        ("threshold=0.2", 1),
    ]
    assert result.audit.overlap == ((1, 0), (0, 1))


def test_an_empty_selection_is_said_with_the_scores(tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"none of 10 pairs; threshold=0.99 .*\(10, .* 0.9900.* 0.0000 and 0.9000",
    ):
        select(ten(), ["threshold=0.99"], tmp_path)
    assert not (tmp_path / "selection.json").exists()


def test_text_keys_are_what_echo_and_duplicate_compare() -> None:
    assert text_key("Who is it?") == text_key("who is  it!")


@pytest.mark.parametrize(
    "rule",
    [
        "threshold=0.1234567",
        "threshold=-1e-07",
        "top_k=1234567",
        "percentile=80",
        "rank=2:weight=0.123456789",
        "mismatched",
        "mismatched=0.25:relabel",
        "rank=10:weight_ranking=0",
        "stratified=0.2:on=margin:relabel:weight=2:weight_ranking=0.125",
    ],
)
def test_a_rules_text_is_the_rule(rule: str) -> None:
    """A rule is identified by its text, so two rules never share one."""
    (parsed,) = parse_rules([rule])
    assert parse_rules([str(parsed)]) == [parsed]
    assert str(parsed) == rule
