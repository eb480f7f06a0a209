"""Two groups of pairs by the rank of their documents."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distill.selection.mismatch import LEAST_PAIRS, LEAST_POOL, detect_mismatches

POOL = 2000


def ranks(share: float, pairs: int = 4000, pool: int = POOL) -> tuple[np.ndarray, np.ndarray]:
    """Ranks (n,) int32, and whether each pair is mismatched (n,): that share of them has uniform
    ranks, and half of the others are first.
    """
    draw = np.random.default_rng(0)
    mismatched = np.arange(pairs) < share * pairs
    good = np.minimum(draw.geometric(0.5, pairs) ** 2, pool)
    return np.where(mismatched, draw.integers(1, pool + 1, pairs), good).astype(
        np.int32
    ), mismatched


def test_share_and_probability_by_hand() -> None:
    rank = np.array([1] * 60 + [*range(1, 21)] * 2)
    found = detect_mismatches(rank, 20)
    # Of 100 pairs 20 are in the lower half, as of 40 with uniform ranks.
    assert found.share == pytest.approx(0.4)
    z, p = 1.959964, 0.2
    middle, spread = p + z**2 / 200, z * math.sqrt(p * (1 - p) / 100 + z**2 / 40_000)
    wilson = [2 * (middle + side * spread) / (1 + z**2 / 100) for side in (-1, 1)]
    assert [found.low, found.high] == pytest.approx(wilson, rel=1e-5)
    # The first rank has .62 of the pairs on a twentieth of the pool, every other .02.
    probability = found.probability(np.arange(1, 22))
    np.testing.assert_allclose(probability, [0.4 / 12.4, *[1] * 20], rtol=1e-6)
    assert probability.dtype == np.float32
    assert (found.half, found.nothing, sum(found.counts)) == (2, None, 100)
    assert str(found).startswith("up to 40.0% of the pairs (26.7% to 57.8%) look mismatched")
    assert "from rank 2 of 20 on" in str(found)
    odd = detect_mismatches(np.array([1] * 58 + [*range(1, 22)] * 2), 21)
    assert odd.share == pytest.approx(0.42), "22 of 100 are among the last 11 of 21"


def test_the_density_is_the_best_one_that_never_rises() -> None:
    rank = np.array([1] * 50 + [3] * 20 + [*range(6, 21)] * 2)
    found = detect_mismatches(rank, 20)
    # Ranks 2 and 3 have 20 pairs between them, and ranks 4 to 20 have 30.
    np.testing.assert_allclose(found.density[:3], [10, 2, 2])
    np.testing.assert_allclose(found.density[3:], 0.3 * 20 / 17)
    np.testing.assert_allclose(found.probability(np.array([1, 2, 3, 4])), [0.04, 0.2, 0.2, 1])


@pytest.mark.parametrize("pool", [200, 201])
def test_uniform_ranks_are_all_mismatched(pool: int) -> None:
    found = detect_mismatches(np.repeat(np.arange(1, pool + 1), 5), pool)
    assert (found.share, found.high, found.half) == (1, 1, 1)
    np.testing.assert_allclose(found.density, 1)
    assert (found.probability(np.arange(1, pool + 1)) == 1).all()


def test_a_teacher_that_ranks_all_first_finds_none() -> None:
    found = detect_mismatches(np.ones(400, dtype=np.int32), POOL)
    assert "none of the 400 documents is in the lower half" in str(found.nothing)
    assert "at most 1.9% of the pairs" in str(found)
    assert (found.share, found.low, found.half) == (0, 0, None)
    assert found.counts[0] == 400
    assert not found.probability(np.array([1, POOL])).any()


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_mismatched_pairs_are_found(share: float) -> None:
    rank, mismatched = ranks(share)
    found = detect_mismatches(rank, POOL)
    assert found.low < share < found.high
    assert found.low < found.share < found.high < found.low + 0.06
    assert POOL // 2 + 1 in found.edges
    called = found.probability(rank) >= 0.5
    assert called[mismatched].mean() > 0.95
    assert called[~mismatched].mean() < 0.02
    np.testing.assert_array_equal(called, rank >= found.half)


def test_there_must_be_enough_pairs_and_random_documents() -> None:
    rank, _ = ranks(0.5)
    few = detect_mismatches(rank[: LEAST_PAIRS - 1], POOL)
    small = detect_mismatches(np.minimum(rank, LEAST_POOL - 1), LEAST_POOL - 1)
    listed = detect_mismatches(rank, POOL, mined=True)
    for found, says in (
        (few, "99 ranks are too few; 100 are needed"),
        (small, "a pool of 19 documents is too small; 20 are needed"),
        (listed, "lists hold no random documents"),
    ):
        assert says in str(found)
        assert (found.share, found.low, found.high, found.half) == (0, 0, 1, None)
        assert found.edges == found.counts == found.density == ()
        assert not found.probability(rank).any()


@settings(max_examples=100, deadline=None)
@given(
    st.integers(LEAST_POOL, 300).flatmap(
        lambda pool: st.tuples(
            st.just(pool),
            st.lists(st.integers(1, pool + 1), min_size=5, max_size=40),
        )
    ),
    st.integers(0, 60),
    st.randoms(use_true_random=False),
)
def test_the_probability_never_falls_and_the_order_of_pairs_does_not_matter(
    some: tuple[int, list[int]], first: int, draw: object
) -> None:
    pool, ranked = some
    rank = np.array(ranked * 20 + [1] * first)
    found = detect_mismatches(rank, pool)
    shuffled = rank.copy()
    draw.shuffle(shuffled)  # type: ignore[attr-defined]
    assert detect_mismatches(shuffled, pool) == found
    assert sum(found.counts) == len(rank)
    assert float(np.dot(found.density, np.diff(found.edges))) == pytest.approx(pool)
    assert 0 <= found.low <= found.share <= found.high <= 1
    every = np.arange(1, pool + 2)
    probability = found.probability(every)
    assert (np.diff(probability) >= 0).all()
    if found.nothing is not None:
        assert found.share == 0
        assert not probability.any()
        return
    assert (probability > 0).all()
    assert probability[-1] == pytest.approx(1), "the last ranks are those of mismatched pairs"
    np.testing.assert_array_equal(probability >= 0.5, every >= found.half)
