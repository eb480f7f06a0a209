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

COMPARED = {"in_domain": 1, "out_of_domain": 1, "pearson": 1, "mae": -1}
"""What an arm is compared with the best peer on, and whether more (1) or less (-1) is better."""
LABELS = {
    "in_domain": "in-domain nDCG@10",
    "out_of_domain": "out-of-domain nDCG@10",
    "pearson": "Pearson",
    "mae": "MAE",
}
OURS, PEER, NEUTRAL, LINES = "#c8642b", "#2f6fb3", "#8a8f98", "#b0b4ba"
"""Colours of the plot."""


@dataclass(frozen=True)
class Student:
    """One student, measured.

    Attributes:
        domain: What it was trained on.
        minutes: The budget; 0: it was not trained here.
        arm: How it was trained.
        seed: Of its training.
        pairs: Training pairs.
        examples: Pairs seen, each as often as it was seen.
        planned_seconds, teacher_seconds: What the training takes, and the teacher's share of it.
        in_domain: It on held-out pairs of its own domain.
        overlap: In-domain, the share of the teacher's ten best documents among its own ten best,
            for each query.
        further: Task -> nDCG@10 of each query, out of domain.
    """

    domain: str
    minutes: float
    arm: str
    seed: int
    pairs: int
    examples: int
    planned_seconds: float
    teacher_seconds: float
    in_domain: Measurement
    overlap: tuple[float, ...]
    further: Mapping[str, tuple[float, ...]]

    def said(self) -> str:
        """It, for the terminal."""
        outside = np.mean([np.mean(values) for values in self.further.values()] or [np.nan])
        trained = f", {self.minutes:g} min, seed {self.seed}" if self.minutes else ""
        return (
            f"{self.domain}, {self.arm}{trained}: nDCG@10 {np.mean(self.in_domain.ndcg):.3f} "
            f"in-domain, {outside:.3f} out of domain, {self.examples:,} examples"
        )


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
class FurtherReference:
    """The same on a task out of domain.

    Attributes:
        teacher: nDCG@10 of each query.
        bm25: (Q,) of each query.
        shared: How many of its texts are training texts of the domain.
    """

    teacher: tuple[float, ...]
    bm25: np.ndarray
    shared: int


@dataclass(frozen=True)
class References:
    """What the students of a domain are compared with."""

    own: Reference
    further: Mapping[str, FurtherReference]


@dataclass(frozen=True)
class Difference:
    """An arm minus another one: an estimate, and its two-sided p (None: undefined)."""

    estimate: Estimate
    p: float | None


@dataclass(frozen=True)
class Comparison:
    """An arm of this project minus the best peer on a measure of `COMPARED`; p is corrected by Holm
    over all comparisons of the table.
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
        examples: Pairs seen by the median student.
        seconds, teacher_seconds: Of its training, and the teacher's share of them.
        in_domain_ratio: nDCG@10, divided by the teacher's.
        out_of_domain_ratio: The mean over tasks of the same.
        in_domain_ratio_by_seed, out_of_domain_ratio_by_seed: Of each seed.
        further: Task -> nDCG@10, divided by the teacher's.
        recall, overlap: Recall@100, and overlap@10 with the teacher.
        pearson, mae: Fidelity to the teacher's scores.
    """

    arm: str
    is_own: bool
    seeds: int
    pairs: int
    examples: int
    seconds: float
    teacher_seconds: float
    in_domain_ratio: Estimate
    in_domain_ratio_by_seed: tuple[float, ...]
    out_of_domain_ratio: Estimate
    out_of_domain_ratio_by_seed: tuple[float, ...]
    further: dict[str, float]
    recall: Estimate
    pearson: Estimate
    mae: Estimate
    overlap: Estimate


@dataclass(frozen=True)
class TaskRow:
    """A task out of domain: mean nDCG@10 of teacher and BM25 over its queries, and how many of its
    texts are training texts.
    """

    teacher: float
    bm25: float
    queries: int
    shared: int


@dataclass(frozen=True)
class Table:
    """All arms that were trained on a domain for some minutes. Values of teacher and BM25 are mean
    nDCG@10.
    """

    domain: str
    minutes: float
    teacher: float
    bm25: float
    queries: int
    pairs: int
    tasks: dict[str, TaskRow]
    leaks_removed: int
    leaks_left: int
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True)
class Content:
    """`quality.json`. `summary` is the benchmark's last line."""

    tables: tuple[Table, ...]
    summary: dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class Results:
    """Every student, the references of each domain, and the arms that are this project's."""

    students: Sequence[Student]
    references: Mapping[str, References]
    own: Sequence[str]

    def of(self, domain: str, minutes: float, arm: str) -> list[Student]:
        """The students of an arm on a domain, by seed; those that were not trained stand beside
        every budget.
        """
        own = [
            s for s in self.students
            if (s.domain, s.arm) == (domain, arm) and s.minutes in (0, minutes)
        ]  # fmt: skip
        return sorted(own, key=lambda student: student.seed)


def out_of_domain(student: Student, further: Mapping[str, FurtherReference]) -> np.ndarray:
    """(Q,) values of the queries of all tasks, whose mean is the mean over tasks of nDCG@10 divided
    by the teacher's: a query of a task of few queries has more weight.
    """
    if not further:
        return np.zeros(0)
    every = sum(len(values) for values in student.further.values())
    return np.concatenate(
        [
            np.asarray(student.further[name])
            / np.mean(reference.teacher)
            * (every / (len(further) * len(reference.teacher)))
            for name, reference in further.items()
        ]
    )


@dataclass(frozen=True)
class Values:
    """An arm's values by seed: of queries (S, Q), and of pairs (S, n).

    Attributes:
        in_domain: nDCG@10 of queries.
        out_of_domain: As `out_of_domain`.
        score: The students' scores of pairs.
        mae: Their absolute distances from the teacher's.
        teacher_score: (n,) the teacher's.
    """

    in_domain: np.ndarray
    out_of_domain: np.ndarray
    score: np.ndarray
    mae: np.ndarray
    teacher_score: np.ndarray

    @classmethod
    def of(cls, students: Sequence[Student], references: References) -> Values:
        """Those of the students of an arm."""
        teacher = references.own.teacher_score
        score = np.array([student.in_domain.student_score for student in students])
        return cls(
            in_domain=np.array([student.in_domain.ndcg for student in students]),
            out_of_domain=np.array([out_of_domain(s, references.further) for s in students]),
            score=score,
            mae=np.abs(score - teacher),
            teacher_score=teacher,
        )

    @property
    def measures(self) -> list[str]:
        """Those of `COMPARED` that there are values of."""
        return [name for name in COMPARED if name != "out_of_domain" or self.out_of_domain.size]

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


def _row(students: Sequence[Student], references: References, values: Values, own: bool) -> Row:
    teacher, further = references.own.teacher, references.further
    scores = [values.teacher_score, *values.score]
    recall = np.array([student.in_domain.recall for student in students]).mean(axis=0)
    overlap = np.array([student.overlap for student in students]).mean(axis=0)
    inside, outside = values.in_domain, values.out_of_domain
    none = Estimate(None, None, None, 0, "nothing out of domain was measured")
    return Row(
        arm=students[0].arm,
        is_own=own,
        seeds=len(students),
        pairs=students[0].pairs,
        examples=int(np.median([student.examples for student in students])),
        seconds=float(np.median([student.planned_seconds for student in students])),
        teacher_seconds=float(np.median([student.teacher_seconds for student in students])),
        in_domain_ratio=estimate(_ratio, [inside.mean(axis=0), teacher], 0),
        in_domain_ratio_by_seed=tuple(_ratio(inside, teacher).tolist()),
        out_of_domain_ratio=estimate(mean, [outside.mean(axis=0)], 0) if further else none,
        out_of_domain_ratio_by_seed=tuple(outside.mean(axis=1).tolist()) if further else (),
        further={
            name: float(
                np.mean([student.further[name] for student in students])
                / np.mean(reference.teacher)
            )
            for name, reference in further.items()
        },
        recall=estimate(mean, [recall], 0),
        pearson=estimate(_over_seeds(pearson), scores, 0),
        mae=estimate(_over_seeds(mae), scores, 0),
        overlap=estimate(mean, [overlap], 0),
    )


def _compare(
    values: Mapping[str, Values], own: Sequence[str], peers: Sequence[str]
) -> tuple[Comparison, ...]:
    """Each own arm against the best peer on each of `COMPARED`."""
    compared: list[tuple[str, str, str, Difference]] = []
    for arm in (arm for arm in values if arm in own and peers):
        for measure in values[arm].measures:
            sign = COMPARED[measure]
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


def compile_table(results: Results, domain: str, minutes: float) -> Table:
    """The table of all arms that were trained on `domain` for `minutes`."""
    references = results.references[domain]
    inside = references.own
    arms = list(
        dict.fromkeys(
            s.arm for s in results.students if s.domain == domain and s.minutes in (0, minutes)
        )
    )
    students = {arm: results.of(domain, minutes, arm) for arm in arms}
    values = {arm: Values.of(students[arm], references) for arm in arms}
    peers = [arm for arm in arms if arm not in results.own and students[arm][0].minutes]
    return Table(
        domain=domain,
        minutes=minutes,
        teacher=float(inside.teacher.mean()),
        bm25=float(inside.bm25.mean()),
        queries=len(inside.teacher),
        pairs=len(inside.teacher_score),
        tasks={
            name: TaskRow(
                float(np.mean(further.teacher)), float(further.bm25.mean()),
                len(further.teacher), further.shared,
            )
            for name, further in references.further.items()
        },
        leaks_removed=inside.leaks_removed,
        leaks_left=inside.leaks_left,
        rows=tuple(
            _row(students[arm], references, values[arm], arm in results.own) for arm in arms
        ),
        comparisons=_compare(values, results.own, peers),
    )  # fmt: skip


def _summary(row: Row) -> dict[str, float]:
    estimates = {
        "in_domain ratio": row.in_domain_ratio,
        "out_of_domain ratio": row.out_of_domain_ratio,
        "Pearson": row.pearson,
        "MAE": row.mae,
    }
    return {name: round(e.value, 4) for name, e in estimates.items() if e.value is not None}


def compile_results(results: Results) -> Content:
    """Everything that `quality.json` holds."""
    wanted = dict.fromkeys((s.domain, s.minutes) for s in results.students if s.minutes)
    tables = tuple(compile_table(results, *which) for which in wanted)
    summary = {
        f"{table.domain}, {table.minutes:g} min": {row.arm: _summary(row) for row in table.rows}
        for table in tables
    }
    return Content(tables, summary)


def _plain(estimate: Estimate, digits: int = 3, sign: str = "") -> str:
    if estimate.value is None:
        return "undefined"
    value, low, high = (f"{v:{sign}.{digits}f}" for v in dataclasses.astuple(estimate)[:3])
    return f"{value} ({low} to {high})"


def _p(p: float | None) -> str:
    return "undefined" if p is None else "< .001" if p < 0.001 else f"{p:.3f}"


def _line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def markdown(content: Content) -> str:
    """Tables, what they are over, and the comparisons."""
    return "\n".join(line for table in content.tables for line in _table_lines(table))


def _table_lines(table: Table) -> list[str]:
    tasks = list(table.tasks)
    lines = [
        f"### Trained on {table.domain} for {table.minutes:g} minutes",
        "",
        _line(
            "trained with", "seeds", "in-domain", "out of domain", "Pearson", "MAE", "Recall@100",
            "overlap@10", "pairs seen", "s (teacher)", *tasks,
        ),
        "|---|---:|---|---|---|---|---|---|---:|---:|" + "---:|" * len(tasks),
    ]  # fmt: skip
    for row in table.rows:
        trained = row.seconds > 0
        lines.append(
            _line(
                f"**{row.arm}**" if row.is_own else row.arm,
                row.seeds,
                _plain(row.in_domain_ratio),
                _plain(row.out_of_domain_ratio) if tasks else "–",
                _plain(row.pearson),
                _plain(row.mae, 4),
                _plain(row.recall),
                _plain(row.overlap),
                f"{row.examples:,}" if trained else "–",
                f"{row.seconds:.0f} ({row.teacher_seconds:.0f})" if trained else "–",
                *(f"{row.further[name]:.3f}" for name in tasks),
            )
        )
    lines += [
        "",
        "In-domain and out of domain: nDCG@10 as a share of the teacher's; out of domain, the mean "
        "over the tasks on the right. The teacher's nDCG@10 is "
        f"{table.teacher:.3f} (BM25: {table.bm25:.3f}) over {table.queries:,} held-out queries"
        + "".join(
            f"; {name}: {task.teacher:.3f} ({task.bm25:.3f}) over {task.queries:,}"
            + (f", {task.shared:,} of its texts are training texts" if task.shared else "")
            for name, task in table.tasks.items()
        )
        + f". {table.pairs:,} held-out pairs. In parentheses 95% bootstrap intervals over queries "
        "or pairs, of the mean over the seeds. Pairs removed from training because they share a "
        "query, a document or a near-duplicate of one with the held-out pairs: "
        f"{table.leaks_removed:,}; left: {table.leaks_left}.",
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
    return lines


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
    """nDCG@10 in-domain against out-of-domain, as shares of the teacher's; against Pearson where
    nothing out of domain was measured. Each arm is a point with both intervals, each table a panel.
    """
    look = {
        "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
        "svg.hashsalt": "hf_distill",
    }  # fmt: skip
    with mpl.rc_context(look):
        figure = Plot(figsize=(7.0 * len(content.tables), 4.6))
        panels = figure.subplots(1, len(content.tables), squeeze=False)[0]
        for axes, table in zip(panels, content.tables, strict=True):
            points: list[tuple[float, float, str, str]] = []
            for row in table.rows:
                x, y = row.in_domain_ratio, row.out_of_domain_ratio if table.tasks else row.pearson
                colour = OURS if row.is_own else PEER if row.seconds else NEUTRAL
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
            if table.tasks:
                axes.axhline(1, color=LINES, linewidth=0.8)
            axes.set_title(f"Trained on {table.domain} for {table.minutes:g} minutes")
            axes.set_xlabel("nDCG@10 in-domain / the teacher's")
            axes.set_ylabel(
                "nDCG@10 out of domain / the teacher's" if table.tasks else "Pearson, in-domain"
            )
        figure.tight_layout()
    return figure
