"""Two components of the margin, and what they say about pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distill.report.plots import plot_margins
from hf_distill.selection.audit import Margins
from hf_distill.selection.mismatch import (
    LEAST_FITTED,
    MOST_FITTED,
    Mixture,
    detect_mismatches,
)


def margins(share: float, pairs: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Margins (n,) float32, and whether each pair is mismatched (n,): that share of them lies
    around -.45, and the others around +.05.
    """
    draw = np.random.default_rng(seed)
    mismatched = np.arange(pairs) < share * pairs
    means, deviations = np.where(mismatched, -0.45, 0.05), np.where(mismatched, 0.12, 0.08)
    return draw.normal(means, deviations).astype(np.float32), mismatched


def test_probability_by_hand() -> None:
    alike = Mixture((-0.4, 0.0), (0.1, 0.1), 0.2)
    # Equal deviations: log(.2 / .8) + (m² - (m + .4)²) / (2 * .1²)
    expected = [
        1 / (1 + math.exp(-(math.log(0.25) + (m**2 - (m + 0.4) ** 2) / 0.02))) for m in (-0.3, -0.2)
    ]
    given = np.array([-0.3, -0.2, np.nan], dtype=np.float32)
    np.testing.assert_allclose(alike.probability(given), [*expected, 0], rtol=1e-5)
    assert expected[1] == pytest.approx(0.2), "halfway between the means, the share is left"
    assert alike.half == pytest.approx(-0.2 - 0.01 * math.log(4) / 0.4)
    assert alike.separation == pytest.approx(4)
    assert alike.probability(given).dtype == np.float32


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_mismatched_pairs_are_found(share: float) -> None:
    margin, mismatched = margins(share)
    found = detect_mismatches(margin, 0)
    assert found.nothing is None
    assert found.mixture is not None
    assert found.share == pytest.approx(share, abs=0.01)
    np.testing.assert_allclose(found.mixture.means, (-0.45, 0.05), atol=0.02)
    np.testing.assert_allclose(found.mixture.deviations, (0.12, 0.08), atol=0.02)
    probability = found.probability(margin)
    assert ((probability >= 0.5) == mismatched).mean() > 0.98
    assert found.half is not None
    np.testing.assert_array_equal(probability >= 0.5, margin <= found.half)


def test_nothing_is_found_where_there_is_nothing() -> None:
    clean, _ = margins(0)
    found = detect_mismatches(clean, 0)
    assert "BIC" in str(found.nothing)
    assert (found.share, found.half) == (0, None)
    assert not found.probability(clean).any()
    skewed = np.random.default_rng(0).gamma(2, 0.1, 4000) - 0.2  # two fit it better than one
    assert "standard deviations apart" in str(detect_mismatches(skewed, 0).nothing)
    most = detect_mismatches(margins(0.75)[0], 0)
    assert "has 75% of the pairs" in str(most.nothing)
    assert most.share == 0
    above = detect_mismatches(margins(0.3)[0] + 1, 0)
    assert "margin of +0.54" in str(above.nothing)
    assert above.mixture is not None
    assert not above.probability(np.array([-1.0])).any()


def test_too_few_and_equal_and_unknown_margins() -> None:
    few = detect_mismatches(margins(0.5, LEAST_FITTED - 1)[0], 0)
    assert (few.fitted, few.mixture) == (99, None)
    assert "99 margins are too few" in str(few.nothing)
    assert "equal" in str(detect_mismatches(np.full(200, 0.25), 0).nothing)
    unknown = detect_mismatches(np.full(200, np.nan), 0)
    assert not unknown.probability(np.full(200, np.nan)).any()
    margin, _ = margins(0.2)
    holes = np.where(np.arange(4000) % 7 == 0, np.nan, margin).astype(np.float32)
    found = detect_mismatches(holes, 0)
    assert found.fitted == int(np.isfinite(holes).sum())
    assert found.share == pytest.approx(0.2, abs=0.02)
    assert not found.probability(holes)[::7].any()


def test_a_sample_is_drawn_with_the_seed() -> None:
    margin, _ = margins(0.2, MOST_FITTED + 20_000)
    first, again, other = (detect_mismatches(margin, seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert first.fitted == MOST_FITTED
    assert other.share == pytest.approx(first.share, abs=0.01)


@settings(max_examples=200, deadline=None)
@given(
    st.floats(-0.9, 0.5),
    st.floats(0.001, 0.9),
    st.floats(0.01, 0.5),
    st.floats(0.01, 0.5),
    st.floats(0.01, 0.99),
)
def test_the_probability_never_rises_with_the_margin(
    low: float, apart: float, first: float, second: float, share: float
) -> None:
    mixture = Mixture((low, low + apart), (first, second), share)
    grid = np.linspace(-3, 3, 2001)
    probability = mixture.probability(grid)
    assert ((probability >= 0) & (probability <= 1)).all()
    assert (np.diff(probability) <= 1e-6).all()
    half = mixture.half
    if half is None:
        assert (probability >= 0.5).all() or (probability <= 0.5).all()
    else:
        assert mixture.probability(np.array([half]))[0] == pytest.approx(0.5, abs=1e-4)


def test_the_plot_shows_both_components_and_where_the_probability_is_one_half() -> None:
    margin, _ = margins(0.2)
    counts, edges = np.histogram(margin, 40)
    detection = detect_mismatches(margin, 0)
    picture = plot_margins(Margins(detection, tuple(edges), tuple(counts.tolist()), 0))
    assert "4,000 margins" in picture.alt
    assert "20.0% of the pairs look mismatched" in picture.alt
    assert f"one half at {detection.half:.3f}" in picture.alt
    nothing = detect_mismatches(margin[:50], 0)
    assert "too few" in plot_margins(Margins(nothing, tuple(edges), tuple(counts.tolist()), 0)).alt
    assert detection.mixture is not None
    grid = np.linspace(-2, 2, 4001)
    areas = [np.trapezoid(density, grid) for density in detection.mixture.densities(grid)]
    assert areas == pytest.approx([detection.share, 1 - detection.share], abs=1e-6)
