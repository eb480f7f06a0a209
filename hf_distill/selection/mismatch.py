"""Which pairs are probably mismatched: two components of the teacher's margin.

The document of a mismatched pair does not answer its query, so the teacher scores other documents
far above it. Where such pairs are more than a few, the margins have two modes. Two-component
mixtures tell noisy training pairs from clean ones by their loss (Arazo et al. 2019,
arXiv:1904.11238; Li et al. 2020, DivideMix, arXiv:2002.07394); here the teacher's margin stands in
for the loss, so no student has to be trained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm
from sklearn.mixture import GaussianMixture

MOST_FITTED = 100_000
"""The mixture is fitted on at most so many margins, a seeded sample."""

LEAST_FITTED = 100
"""Below so many margins nothing is fitted."""

LEAST_SEPARATION = 2.0
"""Ashman's D above which two normal distributions are clearly apart (Ashman, Bird and Zepf 1994,
doi:10.1086/117248).
"""

LARGEST_SHARE = 0.6
"""A lower component with more of the pairs is how the teacher scores ordinary ones. Where most
pairs are mismatched, or the teacher does not know what answers the queries, margins cannot tell.
"""

_STEPS = 500


@dataclass(frozen=True)
class Mixture:
    """Two normal distributions of the margin: first that of mismatched pairs, then of the others.

    Attributes:
        means, deviations: Of the two; the first mean is the lower one.
        share: The part of the pairs that belongs to the first, between 0 and 1.
    """

    means: tuple[float, float]
    deviations: tuple[float, float]
    share: float

    @property
    def separation(self) -> float:
        """Ashman's D: the distance of the means over the root mean square of the deviations."""
        (low, high), (narrow, wide) = self.means, self.deviations
        return (high - low) / math.sqrt((narrow**2 + wide**2) / 2)

    def densities(self, margin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The densities (n,) of the two at each `margin` (n,), times their shares."""
        first, second = (
            share * norm.pdf(margin, mean, deviation)
            for share, mean, deviation in zip(
                (self.share, 1 - self.share), self.means, self.deviations, strict=True
            )
        )
        return first, second

    @property
    def _polynomial(self) -> tuple[float, float, float]:
        """a, b and c: the log odds of being mismatched are a m² + b m + c at the margin m."""
        precisions = [deviation**-2 for deviation in self.deviations]
        (low, high), (p, q) = self.means, precisions
        odds = math.log(self.share / (1 - self.share))
        return (
            (q - p) / 2,
            p * low - q * high,
            odds + (math.log(p / q) + q * high**2 - p * low**2) / 2,
        )

    def _log_odds(self, margin: np.ndarray) -> np.ndarray:
        """The log odds of being mismatched; they never rise with the margin.

        Two distributions of different width make a parabola. Beyond its vertex the wider one would
        take the far tail back, also on the side of the other. There the odds stay as at the vertex,
        which does not lie between the means.
        """
        a, b, c = self._polynomial
        if a:
            vertex = -b / (2 * a)
            margin = np.minimum(margin, vertex) if a > 0 else np.maximum(margin, vertex)
        return a * margin**2 + b * margin + c

    @property
    def half(self) -> float | None:
        """The margin at which the probability is one half; None if it is above, or below, one half
        at every margin.
        """
        a, b, c = self._polynomial
        roots = np.roots([a, b, c] if a else [b, c])
        real = roots[np.isreal(roots)].real
        # The odds fall where 2 a m + b < 0: of two roots one lies there.
        falling = real[2 * a * real + b < 0]
        return float(falling[0]) if len(falling) else None

    def probability(self, margin: np.ndarray) -> np.ndarray:
        """(n,) float32: how probably each pair with this `margin` (n,) is mismatched; it never
        rises with the margin. It is 0 where the margin is NaN.
        """
        odds = np.clip(self._log_odds(np.asarray(margin, dtype=np.float64)), -80, 80)
        found = 1 / (1 + np.exp(-odds))
        return np.where(np.isnan(odds), 0.0, found).astype(np.float32)


@dataclass(frozen=True)
class Detection:
    """What the margins say about mismatched pairs.

    Attributes:
        fitted: How many margins were looked at.
        mixture: The two components; None if there are too few margins to fit any.
        nothing: Why no pair counts as mismatched; None: some do.
    """

    fitted: int
    mixture: Mixture | None
    nothing: str | None

    @property
    def share(self) -> float:
        """The part of the pairs that is mismatched; 0 if nothing was detected."""
        return 0.0 if self.mixture is None or self.nothing is not None else self.mixture.share

    @property
    def half(self) -> float | None:
        """The margin at which the probability is one half; None: at no margin."""
        return None if self.mixture is None or self.nothing is not None else self.mixture.half

    def __str__(self) -> str:
        if self.nothing is not None or self.mixture is None:
            return f"no mismatched pairs were detected: {self.nothing}"
        low, high = self.mixture.means
        return (
            f"{self.mixture.share:.1%} of the pairs look mismatched: margins around {low:+.3f}, "
            f"those of the others around {high:+.3f}"
        )

    def probability(self, margin: np.ndarray) -> np.ndarray:
        """(n,) float32: how probably each pair with this `margin` (n,) is mismatched. It is 0 for
        all if nothing was detected, and where the margin is NaN.
        """
        if self.mixture is None or self.nothing is not None:
            return np.zeros(len(margin), dtype=np.float32)
        return self.mixture.probability(margin)


def _fit(values: np.ndarray, components: int) -> GaussianMixture:
    # The tolerance is that of the mean log likelihood.
    return GaussianMixture(
        components, random_state=0, max_iter=_STEPS, tol=1e-6, reg_covar=1e-8
    ).fit(values)


def _why_nothing(mixture: Mixture, one: float, two: float) -> str | None:
    """Why two components are not mismatched and other pairs; None: they are."""
    if two >= one:
        return "a single normal distribution describes the margins as well as two (BIC)"
    if mixture.separation <= LEAST_SEPARATION:
        return (
            f"the two components are {mixture.separation:.2f} standard deviations apart, and "
            f"{LEAST_SEPARATION:g} are needed to tell them apart"
        )
    if mixture.means[0] >= 0:
        return (
            f"the lower component lies at a margin of {mixture.means[0]:+.3f}: its pairs' own "
            "documents score above all others"
        )
    if mixture.share > LARGEST_SHARE:
        return (
            f"the lower component has {mixture.share:.0%} of the pairs, more than "
            f"{LARGEST_SHARE:.0%}: that is how this teacher scores most pairs"
        )
    return None


def detect_mismatches(margin: np.ndarray, seed: int) -> Detection:
    """Fit two normal distributions to the margins of n pairs (scikit-learn's `GaussianMixture`).

    Nothing counts as mismatched if the margins do not clearly have two components: if one describes
    them as well by the Bayesian information criterion, if the two lie at most `LEAST_SEPARATION`
    apart, if the lower one has more than `LARGEST_SHARE` of the pairs, or if its mean is not below
    0.

    Args:
        margin: (n,), the teacher's score of each pair's document minus that of the best other one
            of a pool; NaN: unknown, and left out.
        seed: Draws the sample if there are more than `MOST_FITTED`.
    """
    known = margin[np.isfinite(margin)].astype(np.float64)
    if len(known) < LEAST_FITTED:
        return Detection(
            len(known), None, f"{len(known)} margins are too few; {LEAST_FITTED} are needed"
        )
    if len(known) > MOST_FITTED:
        known = np.random.default_rng(seed).choice(known, MOST_FITTED, replace=False)
    if np.ptp(known) < 1e-6:
        return Detection(len(known), None, "all margins are equal")
    values = known[:, None]
    one, two = _fit(values, 1), _fit(values, 2)
    order = np.argsort(two.means_[:, 0])
    low, high = (
        (float(two.means_[i, 0]), float(np.sqrt(two.covariances_[i, 0, 0])), two.weights_[i])
        for i in order
    )
    share = float(np.clip(low[2], 1e-6, 1 - 1e-6))
    mixture = Mixture((low[0], high[0]), (low[1], high[1]), share)
    return Detection(len(known), mixture, _why_nothing(mixture, one.bic(values), two.bic(values)))
