import json
from collections import Counter

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distill.data.near_duplicates import (
    NEAR_DUPLICATE_JACCARD,
    jaccard,
    text_key,
    word_trigrams,
)
from hf_distill.errors import InputError
from hf_distill.run.folder import RunFolder
from hf_distill.selection.rules import (
    KINDS,
    Columns,
    Rule,
    apply_rules,
    parse_rules,
    quotas,
    rule_columns,
)
from hf_distill.selection.select import select_pairs
from hf_distill.selection.texts import (
    near_duplicate_families,
    ngram_overlap,
)


def columns(scores: list[float], **more: list) -> Columns:
    """Scores with the reversed order of the rows as the seeded one."""
    return Columns(
        np.array(scores, dtype=float),
        np.arange(len(scores))[::-1],
        **{k: np.array(v) for k, v in more.items()},
    )


def kept(rule: str, given: Columns) -> list[int]:
    return apply_rules(given, parse_rules([rule])).kept.tolist()


def texts(pairs: list[tuple[str, str]], scores: list[float] | None = None, **more: list) -> Dataset:
    n = len(pairs)
    return Dataset.from_dict(
        {
            "pair_id": [str(i) for i in range(n)], "query": [q for q, _ in pairs], "document": [d for _, d in pairs],
            "teacher_score": scores or [0.5] * n, **more,
        }
    )  # fmt: skip


def kept_of(rule: str, pairs: Dataset) -> list[int]:
    rules = parse_rules([rule])
    return apply_rules(rule_columns(pairs, rules, 0), rules).kept.tolist()


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


def test_rules_on_signals_by_hand() -> None:
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
    [(_, outcome)] = apply_rules(
        Columns(scores, np.arange(len(rows)), group=groups), [Rule("percentile", q, by="group")]
    ).steps
    cuts = np.array([np.percentile(scores[groups == g], q) for g in groups])
    np.testing.assert_allclose(scores - outcome.above, cuts, atol=1e-12)
    [(_, whole)] = apply_rules(Columns(scores, np.arange(len(rows))), [Rule("percentile", q)]).steps
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


def test_rules_on_texts_by_hand() -> None:
    pairs = texts(
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
    pairs = texts(
        [
            ("how to read a file", "to read a book"),
            ("how to read a file", "how to read a file"),
            ("one", "two three"),
        ]
    )
    assert kept_of("near_echo=0.7", pairs) == [0, 2]
    assert kept_of("near_echo=0.5", pairs) == [2]


LONG = "the quick brown fox jumps over the lazy dog while seven wizards brew a potion of strange and wonderful colours tonight"


def test_near_duplicates_keep_the_first_of_a_family() -> None:
    pairs = texts(
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
    families = near_duplicate_families(texts(rows))
    grams = [word_trigrams(f"{q}\n{d}") for q, d in rows]
    for i, own in enumerate(grams):
        others = [j for j in range(len(rows)) if j != i and families[j] == families[i]]
        assert not others or max(jaccard(own, grams[j]) for j in others) >= NEAR_DUPLICATE_JACCARD
        same = [j for j in range(len(rows)) if grams[j] == own]
        assert {families[j] for j in same} == {families[i]}, "equal texts are never missed"


def test_invalid_drops_scores_that_are_no_numbers() -> None:
    assert kept("invalid", columns([0.5, float("nan"), 0.4], long_enough=[True] * 3)) == [0, 2]


def test_ties_at_top_k_are_broken_by_the_seeded_order_and_counted(tmp_path) -> None:
    assert kept("top_k=2", columns([0.5, 0.5, 0.5, 0.1])) == [1, 2]
    audit = select_pairs(
        texts([("q", f"d{i}") for i in range(4)], [0.5, 0.5, 0.5, 0.1]),
        parse_rules(["top_k=2"]),
        0,
        RunFolder(tmp_path),
        "",
    )
    assert (
        audit.audit["seed"],
        audit.audit["rules"][0]["tied"],
        audit.audit["rules"][0]["tied_dropped"],
    ) == (0, 3, 1)


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


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (
            "perzentile=80",
            "unknown selection rule 'perzentile=80'; the rules are unscored, invalid, echo, near_echo=..., duplicate",
        ),
        ("percentile=180", "percentile=180: the value of percentile must be between 0 and 100"),
        ("percentile", "percentile needs a number"),
        ("percentile=high", "percentile needs a number"),
        ("percentile=nan", "must be between 0 and 100"),
        ("threshold=nan", "must be between -inf and inf"),
        ("top_k=0", "must be a whole number of at least 1"),
        ("top_k=2.5", "must be a whole number of at least 1"),
        ("near_duplicate=0", "must be a whole number of at least 1"),
        ("near_duplicate=", "unknown selection rule"),
        ("random=1.5", "must be between 0 and 1"),
        ("echo=1", "echo takes no value"),
        (
            "percentile=80:by=length",
            "'by=length' is no option of percentile; it takes by=group, by=source, weight=W",
        ),
        ("echo:by=group", "'by=group' is no option of echo; it takes weight=W"),
        ("stratified=0.2:on=rank", "it takes on=score, on=margin, weight=W"),
        ("rank=2:weight=0", "weight must be a number above 0"),
        ("rank=2:weight=little", "weight must be a number above 0"),
    ],
)
def test_a_bad_rule_is_said(rule: str, says: str) -> None:
    with pytest.raises(InputError, match=says.replace(".", r"\.")):
        parse_rules([rule])


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("rank=2", "need a teacher that embeds"),
        ("stratified=0.5:on=margin", "embeds"),
        ("top_k=1:by=source", "no source; name it by --source_column"),
    ],
)
def test_a_rule_without_its_column_is_said(rule: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        rule_columns(texts([("a", "b")]), parse_rules([rule]), 0)


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
    "near_echo": "=0.5", "percentile": "=30", "threshold": "=0.2", "top_k": "=5", "rank": "=2", "margin": "=0.1", "stratified": "=0.5",
    "random": "=0.5",
}  # fmt: skip
every_rule = [name + FORMS.get(name, "") for name in KINDS]
every_rule += [
    "percentile=60:by=group",
    "top_k=1:by=source",
    "stratified=0.4:on=margin",
    "near_duplicate=2",
]
rules_of_all_kinds = st.lists(
    st.sampled_from(every_rule).flatmap(lambda r: st.sampled_from([r, f"{r}:weight=0.5"])),
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


@settings(max_examples=120, deadline=None)
@given(rows=rows_of_all_kinds, names=rules_of_all_kinds, seed=st.integers(0, 5))
def test_every_dropped_pair_is_accounted_for(rows: list, names: list[str], seed: int) -> None:
    """In = kept + the sum of dropped, for any list of any rules, in the columns, in the audit and
    in the data set.
    """
    pairs = texts(
        [(r[0], r[1]) for r in rows], [r[2] for r in rows] if rows else [],
        rank=[r[3] for r in rows], margin=[r[4] for r in rows], group=[r[5] for r in rows], source=[r[5] for r in rows],
    )  # fmt: skip
    rules = [Rule("unscored"), *parse_rules(names)]
    applied = apply_rules(rule_columns(pairs, rules, seed), rules)
    alive = len(rows)
    for number, (rule, (came, outcome)) in enumerate(zip(rules, applied.steps, strict=True)):
        assert len(came) == len(outcome.keep) == alive
        dropped = int((applied.dropped_by == number).sum())
        assert dropped == (0 if rule.weight else int((~outcome.keep).sum()))
        alive -= dropped
    assert alive == len(applied.kept)
    assert ((applied.weight == 0) == (applied.dropped_by >= 0)).all()


@settings(max_examples=20, deadline=None)
@given(
    rows=rows_of_all_kinds.filter(lambda rows: any(r[2] == r[2] for r in rows)),
    names=rules_of_all_kinds,
)
def test_the_audit_accounts_for_every_pair(tmp_path_factory, rows: list, names: list[str]) -> None:
    pairs = texts(
        [(r[0], r[1]) for r in rows], [r[2] for r in rows],
        rank=[r[3] for r in rows], margin=[r[4] for r in rows], group=[r[5] for r in rows], source=[r[5] for r in rows],
    )  # fmt: skip
    try:
        result = select_pairs(
            pairs, parse_rules(names), 0, RunFolder(tmp_path_factory.mktemp("run")), "scores"
        )
    except InputError:
        assert not len(
            apply_rules(
                rule_columns(pairs, parse_rules(names), 0), parse_rules(["unscored", *names])
            ).kept
        )
        return
    audit = result.audit
    assert (
        audit["pairs_in"]
        == len(rows)
        == audit["kept"] + sum(rule["dropped"] for rule in audit["rules"])
    )
    reasons = Counter(result.all["dropped_by"])
    assert reasons[None] == audit["kept"] == len(result.selected)
    assert sum(n for reason, n in reasons.items() if reason) == sum(
        rule["dropped"] for rule in audit["rules"]
    )
    assert sum(audit["histogram"]["kept"]) + sum(audit["histogram"]["dropped"]) == sum(
        r[2] == r[2] for r in rows
    )
    for loss in audit["losses"].values():
        assert (
            sum(part["pairs_in"] - part["kept"] for part in loss["worst"])
            == len(rows) - audit["kept"]
        ), "here all parts are among the worst"


def scored(n: int = 10) -> Dataset:
    return texts(
        [(f"query number {i}", f"document number {i}") for i in range(n)],
        [i / n for i in range(n)],
        group=[str(i // 4) for i in range(n)],
    )


def test_selection_json_says_what_each_rule_dropped(tmp_path) -> None:
    folder = RunFolder(tmp_path)
    result = select_pairs(
        scored(), parse_rules(["echo", "percentile=80", "near_echo=0.9"]), 0, folder, "scores"
    )
    assert result.selected["pair_id"] == ["8", "9"]
    assert result.all["dropped_by"] == ["percentile=80"] * 8 + [None] * 2
    assert "weight" not in result.all.features
    written = json.loads((tmp_path / "selection.json").read_text())
    assert (written["pairs_in"], written["kept"], written["seed"]) == (10, 2, 0)
    rule = written["rules"][1]
    assert (rule["pairs_in"], rule["dropped"], rule["column"]) == (10, 8, "score")
    assert rule["threshold"] == pytest.approx(0.72)
    assert [example["pair_id"] for example in rule["examples"]] == ["7", "6", "5"], (
        "the dropped ones nearest the threshold"
    )
    assert [example["pair_id"] for example in rule["kept_examples"]] == ["8", "9"], "and those kept"
    assert sum(written["histogram"]["kept"]) == 2
    assert sum(written["histogram"]["dropped"]) == 8
    assert written["overlap"] == [[0, 0, 0], [0, 8, 0], [0, 0, 0]]
    lost = written["losses"]["group"]
    assert (lost["parts"], lost["emptied"]) == (3, 2)
    assert lost["worst"] == [
        {"group": "0", "pairs_in": 4, "kept": 0},
        {"group": "1", "pairs_in": 4, "kept": 0},
    ]


def test_the_overlap_matrix_is_of_rules_on_their_own(tmp_path) -> None:
    result = select_pairs(
        scored(),
        parse_rules(["threshold=0.25", "threshold=0.45"]),
        0,
        RunFolder(tmp_path),
        "scores",
    )
    assert [rule["dropped"] for rule in result.audit["rules"]] == [3, 2], "one after another"
    assert result.audit["overlap"] == [[3, 3], [3, 5]], "each on its own, and both"


def test_weights_are_a_column(tmp_path) -> None:
    result = select_pairs(
        scored(),
        parse_rules(["threshold=0.2", "percentile=50:by=group:weight=0.25"]),
        0,
        RunFolder(tmp_path),
        "scores",
    )
    assert result.all["weight"] == pytest.approx([0, 0, 0.25, 1, 0.25, 0.25, 1, 1, 0.25, 1])
    assert result.selected["weight"] == pytest.approx(result.all["weight"][2:])
    record = result.audit["rules"][1]
    assert (record["dropped"], record["weighted"], record["threshold"]) == (0, 4, None)
    assert record["threshold_by"] == {
        "column": "group",
        "min": pytest.approx(0.25),
        "median": pytest.approx(0.55),
        "max": pytest.approx(0.85),
    }
    assert "percentile=50:by=group:weight=0.25 weighs 4" in result.summary()


def test_an_empty_selection_is_said_with_the_scores(tmp_path) -> None:
    with pytest.raises(
        InputError,
        match=r"leaves none of 10 pairs; most fell to threshold=0.99 \(10, threshold 0.9900; .* 0.0000 and 0.9000",
    ):
        select_pairs(scored(), [Rule("threshold", 0.99)], 0, RunFolder(tmp_path), "scores")
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
    ],
)
def test_a_rules_text_is_the_rule(rule: str) -> None:
    """What a selection made is known by the text of its rules, so two rules never share one."""
    (parsed,) = parse_rules([rule])
    assert parse_rules([str(parsed)]) == [parsed]
    assert str(parsed) == rule
