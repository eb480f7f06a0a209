import json

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distill.errors import InputError
from hf_distill.run_folder import RunFolder
from hf_distill.selection import Columns, Rule, apply_rules, parse_rules, select_pairs


def columns(scores: list[float], queries: list[str] | None = None, documents: list[str] | None = None) -> Columns:
    n = len(scores)
    return Columns(
        queries or [f"query number {i}" for i in range(n)],
        documents or [f"document number {i}" for i in range(n)],
        np.array(scores, dtype=float),
        np.arange(n)[::-1],
    )


def kept(rule: str, given: Columns) -> list[int]:
    reasons, _ = apply_rules(given, parse_rules([rule]))
    return [i for i, reason in enumerate(reasons) if reason is None]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("percentile=80", [3, 4]),  # four fifths of the way from the first to the fifth: .42 + .2 * (.42 - .42)
        ("percentile=0", [0, 1, 2, 3, 4]),
        ("percentile=100", [4]),
        ("threshold=0.3", [2, 3, 4]),
        ("top_k=2", [3, 4]),
        ("top_k=9", [0, 1, 2, 3, 4]),
        ("random=0.4", [3, 4]),  # the seeded order here is reversed
        ("random=0", []),
    ],
)
def test_rules_on_scores_by_hand(rule: str, expected: list[int]) -> None:
    scores = [0.1, 0.2, 0.3, 0.42, 0.42] if rule == "percentile=80" else [0.1, 0.2, 0.3, 0.4, 0.5]
    assert kept(rule, columns(scores)) == expected


def test_rules_on_texts_by_hand() -> None:
    given = columns(
        [0.5] * 5,
        ["who is it", "who is it", "Who is it?", "short", "another query"],
        ["who is  it!", "a document here", "A document, here", "a document here", "tiny"],
    )
    assert kept("echo", given) == [1, 2, 3, 4]
    assert kept("duplicate", given) == [0, 1, 3, 4]
    assert kept("invalid", given) == [0, 1, 2]  # the document "who is  it!" has exactly the 11 characters that it needs


def test_invalid_drops_scores_that_are_no_numbers() -> None:
    assert kept("invalid", columns([0.5, float("nan"), 0.4])) == [0, 2]


def test_ties_at_top_k_are_broken_by_the_seeded_order() -> None:
    assert kept("top_k=2", columns([0.5, 0.5, 0.5, 0.1])) == [1, 2]


def test_rules_apply_to_what_is_left() -> None:
    given = columns([0.0, 0.0, 0.5, 0.6, 0.7, 0.8])
    reasons, records = apply_rules(given, parse_rules(["threshold=0.4", "percentile=50"]))
    assert reasons == ["threshold=0.4", "threshold=0.4", "percentile=50", "percentile=50", None, None]
    assert [(r["pairs_in"], r["dropped"]) for r in records] == [(6, 2), (4, 2)]
    assert records[1]["threshold"] == pytest.approx(0.65)
    assert records[1]["examples"] == [3, 2], "nearest the threshold first"


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("perzentile=80", "unknown selection rule 'perzentile=80'; the rules are unscored, invalid, echo, duplicate, percentile=..."),
        ("percentile=180", "percentile=180: the value of percentile must be between 0 and 100"),
        ("percentile", "percentile needs a number"),
        ("percentile=high", "percentile needs a number"),
        ("percentile=nan", "must be between 0 and 100"),
        ("threshold=nan", "must be between -inf and inf"),
        ("top_k=0", "must be a whole number of at least 1"),
        ("top_k=2.5", "must be a whole number of at least 1"),
        ("random=1.5", "must be between 0 and 1"),
        ("echo=1", "echo takes no value"),
    ],
)
def test_a_bad_rule_is_said(rule: str, says: str) -> None:
    with pytest.raises(InputError, match=says.replace(".", r"\.")):
        parse_rules([rule])


word = st.sampled_from(["alpha beta", "Alpha, beta", "gamma delta epsilon", "x", "one two three four five"])
rules = st.lists(st.sampled_from(["invalid", "echo", "duplicate", "percentile=30", "threshold=0.2", "top_k=5", "random=0.5"]), max_size=6)


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(st.tuples(word, word, st.floats(-1, 1)), max_size=30), names=rules, seed=st.integers(0, 5))
def test_every_dropped_pair_is_accounted_for(rows: list, names: list[str], seed: int) -> None:
    given = Columns(
        [r[0] for r in rows], [r[1] for r in rows], np.array([r[2] for r in rows]), np.random.default_rng(seed).permutation(len(rows))
    )
    reasons, records = apply_rules(given, parse_rules(names))
    assert len(rows) == sum(reason is None for reason in reasons) + sum(record["dropped"] for record in records)
    alive = len(rows)
    for record in records:
        assert record["pairs_in"] == alive
        alive -= record["dropped"]


def scored(n: int = 10) -> Dataset:
    return Dataset.from_dict(
        {
            "pair_id": [str(i) for i in range(n)],
            "query": [f"query number {i}" for i in range(n)],
            "document": [f"document number {i}" for i in range(n)],
            "teacher_score": [i / n for i in range(n)],
        }
    )


def test_selection_json_says_what_each_rule_dropped(tmp_path) -> None:
    folder = RunFolder(tmp_path)
    result = select_pairs(scored(), parse_rules(["echo", "percentile=80"]), 0, folder, "scores")
    assert result.selected["pair_id"] == ["8", "9"]
    assert result.all["dropped_by"] == ["percentile=80"] * 8 + [None] * 2
    written = json.loads((tmp_path / "selection.json").read_text())
    assert (written["pairs_in"], written["kept"]) == (10, 2)
    assert written["rules"][1]["threshold"] == pytest.approx(0.72)
    assert [example["pair_id"] for example in written["rules"][1]["examples"]] == ["7", "6", "5"]
    assert sum(written["histogram"]["kept"]) == 2
    assert sum(written["histogram"]["dropped"]) == 8


def test_an_empty_selection_is_said_with_the_scores(tmp_path) -> None:
    with pytest.raises(
        InputError, match=r"leaves none of 10 pairs; most fell to threshold=0.99 \(10, threshold 0.9900; .* 0.0000 and 0.9000"
    ):
        select_pairs(scored(), [Rule("threshold", 0.99)], 0, RunFolder(tmp_path), "scores")
    assert not (tmp_path / "selection.json").exists()
