"""The comparison of the students that `quality.py` trained: estimates with intervals, tests against
the best peer, a table and a plot.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure as Plot

from hf_distill.evaluation.fidelity import mae, pearson
from hf_distill.evaluation.intervals import LEVEL, RESAMPLES, Statistic, estimate, mean
from hf_distill.evaluation.results import Estimate
from hf_distill.evaluation.significance import ALPHA, crossed_interval, holm, paired_tests
from hf_distill.study.measure import Measurement

COMPARED = {"in_domain_ndcg": 1, "out_of_domain_ndcg": 1, "pearson": 1, "mae": -1}
"""What an arm is compared with the best peer on, and whether more (1) or less (-1) is better."""
LABELS = {
    "in_domain_ndcg": "in-domain nDCG@10",
    "out_of_domain_ndcg": "out-of-domain nDCG@10",
    "pearson": "Pearson",
    "mae": "MAE",
}
TITLES = {"pydocs": "the Python documentation", "conversations": "conversations"}
UNTRAINED = "untrained"
OURS, PEER, NEUTRAL, LINES = "#c8642b", "#2f6fb3", "#8a8f98", "#b0b4ba"
"""Colours of the plot."""


@dataclass(frozen=True)
class Trained:
    """One student, trained and measured: a file in `results/`.

    Attributes:
        key: The fingerprint of everything that it depends on.
        domain: What it was trained on.
        arm: How it was trained.
        seed: Of its training.
        pairs: Training pairs.
        examples: Pairs seen, each as often as it was seen.
        training_seconds: Of the training alone.
        in_domain, out_of_domain: It on held-out pairs of its own domain and of the other one.
        overlap: In-domain, the share of the teacher's ten best documents among its own ten best,
            for each query.
    """

    key: str
    domain: str
    arm: str
    seed: int
    pairs: int
    examples: int
    training_seconds: float
    in_domain: Measurement
    out_of_domain: Measurement
    overlap: tuple[float, ...]


@dataclass(frozen=True)
class Reference:
    """What the students are compared with on the held-out pairs of a domain.

    Attributes:
        teacher_score: (n,) float64, the teacher's score of each pair.
        teacher, bm25: (Q,) float64, nDCG@10 of each query.
        leaks_removed: Pairs that shared something with the held-out pairs.
        leaks_left: Such pairs that are still among the training pairs: 0.
    """

    teacher_score: np.ndarray
    teacher: np.ndarray
    bm25: np.ndarray
    leaks_removed: int
    leaks_left: int


@dataclass(frozen=True)
class Difference:
    """An arm minus another one: an estimate, and its two-sided p (None: undefined)."""

    estimate: Estimate
    p: float | None


@dataclass(frozen=True)
class Comparison:
    """An arm of this project minus the best peer on a measure of `COMPARED`; p is corrected by Holm
    over all comparisons of the domain.
    """

    arm: str
    measure: str
    peer: str
    difference: Estimate
    p: float | None
    p_holm: float | None
    verdict: str


@dataclass(frozen=True)
class Row:
    """An arm: means over its seeds, with intervals over queries or pairs.

    Attributes:
        arm: Its name.
        is_own: Whether it is this project's.
        seeds: How many.
        pairs: Training pairs.
        in_domain_ratio, out_of_domain_ratio: nDCG@10, divided by the teacher's.
        in_domain_ratio_by_seed, out_of_domain_ratio_by_seed: Of each seed.
        recall, overlap: Recall@100, and overlap@10 with the teacher.
        pearson, mae: Fidelity to the teacher's scores.
        examples_per_second: Of the median training; None if nothing was trained.
    """

    arm: str
    is_own: bool
    seeds: int
    pairs: int
    in_domain_ratio: Estimate
    in_domain_ratio_by_seed: tuple[float, ...]
    out_of_domain_ratio: Estimate
    out_of_domain_ratio_by_seed: tuple[float, ...]
    recall: Estimate
    pearson: Estimate
    mae: Estimate
    overlap: Estimate
    examples_per_second: float | None


@dataclass(frozen=True)
class DomainTable:
    """All arms that were trained on a domain. Values of teacher and BM25 are mean nDCG@10."""

    domain: str
    out_of_domain: str
    teacher: float
    bm25: float
    queries: int
    pairs: int
    out_of_domain_teacher: float
    out_of_domain_queries: int
    leaks_removed: int
    leaks_left: int
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True)
class Content:
    """`quality.json`. `summary` is the benchmark's last line."""

    examples: int
    seeds: int
    domains: tuple[DomainTable, ...]
    summary: dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class Results:
    """Every training, the reference of each domain, and the arms that are this project's."""

    trainings: Sequence[Trained]
    references: Mapping[str, Reference]
    own: Sequence[str]

    def of(self, domain: str, arm: str) -> list[Trained]:
        """The trainings of an arm on a domain, by seed."""
        own = [t for t in self.trainings if (t.domain, t.arm) == (domain, arm)]
        return sorted(own, key=lambda trained: trained.seed)


@dataclass(frozen=True)
class Values:
    """An arm's values by seed: of queries (S, Q), and of pairs (S, n).

    Attributes:
        in_domain_ndcg, out_of_domain_ndcg: nDCG@10 of queries.
        score: The students' scores of pairs.
        mae: Their absolute distances from the teacher's.
        teacher_score: (n,) the teacher's.
    """

    in_domain_ndcg: np.ndarray
    out_of_domain_ndcg: np.ndarray
    score: np.ndarray
    mae: np.ndarray
    teacher_score: np.ndarray

    @classmethod
    def of(cls, trainings: Sequence[Trained], teacher_score: np.ndarray) -> Values:
        """Those of the trainings of an arm."""
        score = np.array([trained.in_domain.student_score for trained in trainings])
        return cls(
            in_domain_ndcg=np.array([trained.in_domain.ndcg for trained in trainings]),
            out_of_domain_ndcg=np.array([trained.out_of_domain.ndcg for trained in trainings]),
            score=score,
            mae=np.abs(score - teacher_score),
            teacher_score=teacher_score,
        )

    def mean(self, measure: str) -> float:
        """The mean over seeds of a measure of `COMPARED`."""
        if measure == "pearson":
            return float(np.mean([pearson(self.teacher_score, score) for score in self.score]))
        return float(getattr(self, measure).mean())

    def minus(self, other: Values, measure: str) -> Difference:
        """This arm minus another on a measure of `COMPARED`, with the seeds that both have."""
        seeds = min(len(self.score), len(other.score))
        if measure == "pearson":
            scores = self.score[:seeds], other.score[:seeds]
            return pearson_difference(self.teacher_score, *scores, 0)
        gaps = getattr(self, measure)[:seeds] - getattr(other, measure)[:seeds]
        if seeds > 1:
            crossed = crossed_interval(gaps)
            return Difference(crossed.difference, crossed.p)
        tests = paired_tests(gaps[0], np.zeros_like(gaps[0]), 0)  # other queries, but no other seed
        return Difference(tests.difference, tests.tests["paired_t_test"].p)


def pearson_difference(
    teacher: np.ndarray, ours: np.ndarray, theirs: np.ndarray, seed: int
) -> Difference:
    """The difference of two arms' mean Pearson correlations with the teacher, over other pairs and
    other seeds.

    A bootstrap draws pairs (the same for both arms) and seeds, each with replacement. p is how
    often a resampled difference is as far from the observed one as that is from 0 (Efron &
    Tibshirani, 1993, sec. 16.4). Few seeds make it somewhat too narrow.

    Args:
        teacher: (n,) scores of the pairs.
        ours, theirs: (S, n) scores by the students of each arm, row i of both with the same seed.
        seed: Seeds the bootstrap.
    """
    rng = np.random.default_rng(seed)
    seeds, n = ours.shape

    def difference(pairs: np.ndarray, which: np.ndarray) -> float:
        target = np.broadcast_to(teacher[pairs], (len(which), len(pairs)))
        sides = [pearson(target, scores[np.ix_(which, pairs)]) for scores in (ours, theirs)]
        return float((sides[0] - sides[1]).mean())

    observed = difference(np.arange(n), np.arange(seeds))
    drawn = np.array(
        [
            difference(rng.integers(0, n, n), rng.integers(0, seeds, seeds))
            for _ in range(RESAMPLES // 4)
        ]
    )
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    extreme = int((np.abs(drawn - observed) >= abs(observed)).sum())
    p = (1 + extreme) / (1 + len(drawn))
    return Difference(Estimate(observed, float(low), float(high), n), p)


def _ratio(ours: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    return np.asarray(ours.mean(-1) / teacher.mean(-1))


def _over_seeds(statistic: Callable[..., np.ndarray]) -> Statistic:
    """The mean over students of a statistic of (the teacher's scores, a student's scores)."""
    return lambda teacher, *students: np.mean(
        [statistic(teacher, student) for student in students], axis=0
    )


def _row(results: Results, domain: str, other: str, arm: str, values: Values) -> Row:
    trainings = results.of(domain, arm)
    teacher, far_teacher = (results.references[name].teacher for name in (domain, other))
    scores = [values.teacher_score, *values.score]
    seconds = [trained.training_seconds for trained in trainings]
    recall = np.array([trained.in_domain.recall for trained in trainings]).mean(axis=0)
    overlap = np.array([trained.overlap for trained in trainings]).mean(axis=0)
    inside, outside = values.in_domain_ndcg, values.out_of_domain_ndcg
    speed = trainings[0].examples / float(np.median(seconds)) if min(seconds) else None
    return Row(
        arm=arm,
        is_own=arm in results.own,
        seeds=len(trainings),
        pairs=trainings[0].pairs,
        in_domain_ratio=estimate(_ratio, [inside.mean(axis=0), teacher], 0),
        in_domain_ratio_by_seed=tuple(_ratio(inside, teacher).tolist()),
        out_of_domain_ratio=estimate(_ratio, [outside.mean(axis=0), far_teacher], 0),
        out_of_domain_ratio_by_seed=tuple(_ratio(outside, far_teacher).tolist()),
        recall=estimate(mean, [recall], 0),
        pearson=estimate(_over_seeds(pearson), scores, 0),
        mae=estimate(_over_seeds(mae), scores, 0),
        overlap=estimate(mean, [overlap], 0),
        examples_per_second=None if speed is None else round(speed, 1),
    )


def _compare(values: Mapping[str, Values], own: Sequence[str]) -> tuple[Comparison, ...]:
    """Each own arm against the best peer on each of `COMPARED`."""
    peers = [arm for arm in values if arm not in own and arm != UNTRAINED]
    compared: list[tuple[str, str, str, Difference]] = []
    for arm in (arm for arm in values if arm in own and peers):
        for measure, sign in COMPARED.items():
            best = max(peers, key=lambda peer: sign * values[peer].mean(measure))
            compared.append((arm, measure, best, values[arm].minus(values[best], measure)))

    def verdict(measure: str, value: float | None, p: float | None) -> str:
        if value is None or p is None or p >= ALPHA:
            return "no clear difference"
        return "better" if value * COMPARED[measure] > 0 else "worse"

    return tuple(
        Comparison(arm, measure, peer, difference.estimate, difference.p, p,
                   verdict(measure, difference.estimate.value, p))
        for (arm, measure, peer, difference), p in zip(
            compared, holm([difference.p for *_, difference in compared]), strict=True
        )
    )  # fmt: skip


def compile_domain(results: Results, domain: str) -> DomainTable:
    """The table of all arms that were trained on `domain`."""
    other = next(name for name in results.references if name != domain)
    inside, outside = results.references[domain], results.references[other]
    arms = list(dict.fromkeys(t.arm for t in results.trainings if t.domain == domain))
    values = {arm: Values.of(results.of(domain, arm), inside.teacher_score) for arm in arms}
    return DomainTable(
        domain=domain,
        out_of_domain=other,
        teacher=float(inside.teacher.mean()),
        bm25=float(inside.bm25.mean()),
        queries=len(inside.teacher),
        pairs=len(inside.teacher_score),
        out_of_domain_teacher=float(outside.teacher.mean()),
        out_of_domain_queries=len(outside.teacher),
        leaks_removed=inside.leaks_removed,
        leaks_left=inside.leaks_left,
        rows=tuple(_row(results, domain, other, arm, values[arm]) for arm in arms),
        comparisons=_compare(values, results.own),
    )


def _summary(row: Row) -> dict[str, float]:
    estimates = {
        "in_domain ratio": row.in_domain_ratio,
        "out_of_domain ratio": row.out_of_domain_ratio,
        "Pearson": row.pearson,
        "MAE": row.mae,
    }
    return {name: round(float(e.value or 0), 4) for name, e in estimates.items()}


def compile_results(results: Results, domains: Sequence[str], seeds: int, examples: int) -> Content:
    """Everything that `quality.json` holds."""
    tables = tuple(compile_domain(results, domain) for domain in domains)
    summary = {table.domain: {row.arm: _summary(row) for row in table.rows} for table in tables}
    return Content(examples, seeds, tables, summary)


def _plain(estimate: Estimate, digits: int = 3, sign: str = "") -> str:
    values = dataclasses.astuple(estimate)[:3]
    value, low, high = (f"{v:{sign}.{digits}f}" for v in values)
    return f"{value} ({low} to {high})"


def _p(p: float | None) -> str:
    return "undefined" if p is None else "< .001" if p < 0.001 else f"{p:.3f}"


def _line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def markdown(content: Content) -> str:
    """Tables, what they are over, and the comparisons."""
    lines = []
    for table in content.domains:
        lines += [
            f"### Trained on {TITLES[table.domain]}, {content.examples:,} examples",
            "",
            _line(
                "trained with", "seeds", "nDCG@10 in-domain (of the teacher's)", "out-of-domain",
                "Recall@100", "Pearson", "MAE", "overlap@10", "examples/s",
            ),
            "|---|---:|---|---|---|---|---|---|---:|",
        ]  # fmt: skip
        lines += [
            _line(
                f"**{row.arm}**" if row.is_own else row.arm, row.seeds, _plain(row.in_domain_ratio),
                _plain(row.out_of_domain_ratio), _plain(row.recall), _plain(row.pearson),
                _plain(row.mae, 4), _plain(row.overlap), row.examples_per_second or "–",
            )
            for row in table.rows
        ]  # fmt: skip
        lines += [
            "",
            f"nDCG@10 of the teacher {table.teacher:.3f}, of BM25 {table.bm25:.3f} (of the "
            f"teacher's {table.bm25 / table.teacher:.3f}), over {table.queries:,} held-out "
            f"queries; out-of-domain the teacher's {table.out_of_domain_teacher:.3f} over "
            f"{table.out_of_domain_queries:,}. {table.pairs:,} held-out pairs. In parentheses 95% "
            "bootstrap intervals over queries or pairs, of the mean over the seeds. Pairs removed "
            "from training because they share a query, a document or a near-duplicate of one with "
            f"the held-out pairs: {table.leaks_removed:,}; left: {table.leaks_left}.",
            "",
        ]
        if table.comparisons:
            lines += [
                _line("arm", "measure", "best peer", "difference", "p (Holm)", "verdict"),
                "|---|---|---|---|---|---|",
            ]
            lines += [
                _line(
                    c.arm, LABELS[c.measure], c.peer, _plain(c.difference, 4, "+"), _p(c.p_holm),
                    c.verdict,
                )
                for c in table.comparisons
            ]  # fmt: skip
            lines.append("")
    return "\n".join(lines)


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending `heights` moved up where they are less than `gap` apart, and all of them down if
    the last one is then above 1.
    """
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    return [height - max(0.0, placed[-1] - 1) for height in placed]


def _error(estimate: Estimate) -> list[list[float]]:
    value, low, high = (float(v or 0) for v in (estimate.value, estimate.low, estimate.high))
    return [[value - low], [high - value]]


def plot(content: Content) -> Plot:
    """nDCG@10 in-domain against out-of-domain, as shares of the teacher's. Each arm is a point with
    both intervals, each domain a panel.
    """
    look = {
        "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
        "svg.hashsalt": "hf_distill",
    }  # fmt: skip
    with mpl.rc_context(look):
        figure = Plot(figsize=(7.0 * len(content.domains), 4.6))
        panels = figure.subplots(1, len(content.domains), squeeze=False)[0]
        for axes, table in zip(panels, content.domains, strict=True):
            points: list[tuple[float, float, str, str]] = []
            for row in table.rows:
                x, y = row.in_domain_ratio, row.out_of_domain_ratio
                colour = OURS if row.is_own else PEER if row.arm != UNTRAINED else NEUTRAL
                axes.errorbar(
                    x.value, y.value, xerr=_error(x), yerr=_error(y), fmt="o", color=colour,
                    elinewidth=0.8, alpha=0.9,
                )  # fmt: skip
                points.append((float(y.value or 0), float(x.value or 0), row.arm, colour))
            low, high = axes.get_ylim()
            # Labels stand beside the panel, by the height of their points. Among the points they
            # would cover each other.
            points.sort()
            heights = spread([(y - low) / (high - low) for y, *_ in points], 0.055)
            for (y_value, x_value, name, colour), height in zip(points, heights, strict=True):
                axes.annotate(
                    name, (x_value, y_value), xytext=(1.03, height), textcoords="axes fraction",
                    va="center", fontsize=8, color=colour,
                    arrowprops={
                        "arrowstyle": "-", "linewidth": 0.4, "color": colour, "alpha": 0.5,
                    },
                )  # fmt: skip
            axes.axvline(1, color=LINES, linewidth=0.8)
            axes.axhline(1, color=LINES, linewidth=0.8)
            axes.set_title(f"Trained on {TITLES[table.domain]}")
            axes.set_xlabel("nDCG@10 in-domain / the teacher's")
            axes.set_ylabel("nDCG@10 out-of-domain / the teacher's")
        figure.tight_layout()
    return figure
