"""The students of a study compared: one row for each arm, with intervals, tests and a verdict."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hf_distill.evaluation.fidelity import mae, pearson
from hf_distill.evaluation.intervals import Statistic, estimate, mean, undefined
from hf_distill.evaluation.results import Estimate
from hf_distill.evaluation.significance import ALPHA, crossed_interval, holm, paired_tests
from hf_distill.study.arms import FULL, Arm
from hf_distill.study.measure import Measurement


@dataclass(frozen=True)
class ArmResult:
    """A student of an arm, trained with one seed: `study/results/<name>.json`.

    Attributes:
        key: The fingerprint of everything that it depends on.
        arm: The arm's name.
        seed: Seeds the training, random pairs and the order of ties.
        pairs: Training pairs.
        steps, examples, precision, training_seconds: How it was trained.
        seconds: Seconds for training and measuring.
        measured: What was measured.
    """

    key: str
    arm: str
    seed: int
    pairs: int
    steps: int
    examples: int
    precision: str
    training_seconds: float
    seconds: float
    measured: Measurement


@dataclass(frozen=True)
class Difference:
    """nDCG@10 of an arm minus that of a control.

    Attributes:
        estimate: With an interval over queries and seeds; with one seed, over queries alone.
        p: Two-sided; None if it is undefined.
        p_holm: Corrected over all comparisons with this kind of control.
        by_seed: The mean difference of each seed.
    """

    estimate: Estimate
    p: float | None
    p_holm: float | None
    by_seed: tuple[float, ...]


@dataclass(frozen=True)
class Row:
    """An arm over all its seeds.

    Attributes:
        arm: Its name.
        is_control: Whether it is one.
        pairs: Training pairs, the mean over the seeds.
        ndcg, recall: nDCG@10 and Recall@100, the mean over the seeds, with intervals over queries.
        ndcg_by_seed: nDCG@10 of each seed.
        pearson, mae: Fidelity to the teacher, the mean over the seeds, with intervals over pairs.
        control: The name of its random control; None without one.
        minus_random, minus_all: Its differences to the random control and to all pairs.
    """

    arm: str
    is_control: bool
    pairs: int
    ndcg: Estimate
    ndcg_by_seed: tuple[float, ...]
    recall: Estimate
    pearson: Estimate
    mae: Estimate
    control: str | None
    minus_random: Difference | None
    minus_all: Difference | None


def _difference(ours: np.ndarray, theirs: np.ndarray, seed: int) -> Difference:
    """The difference in nDCG@10 of two arms, (seeds, queries) each. With one seed it is tested by
    the bootstrap over queries and the paired t-test, which say nothing about other seeds.
    """
    gaps = ours - theirs
    by_seed = tuple(gaps.mean(axis=1).round(5).tolist())
    if len(gaps) > 1:
        crossed = crossed_interval(gaps)
        return Difference(crossed.difference, crossed.p, None, by_seed)
    tests = paired_tests(ours[0], theirs[0], seed)
    return Difference(tests.difference, tests.tests["paired_t_test"].p, None, by_seed)


def _over_seeds(statistic: Statistic) -> Statistic:
    """The mean over students of a statistic of (the teacher's scores, a student's scores)."""
    return lambda teacher, *students: np.mean(
        [statistic(teacher, student) for student in students], axis=0
    )


def _fidelity(statistic: Statistic, samples: Sequence[np.ndarray], seed: int) -> Estimate:
    try:
        return estimate(_over_seeds(statistic), samples, seed)
    except ValueError as error:  # a student that scores all pairs alike has no correlation
        return undefined(len(samples[0]), str(error))


def _corrected(
    rows: Sequence[Row], of: Callable[[Row], Difference | None]
) -> list[Difference | None]:
    """Each row's difference with its `p_holm`."""
    differences = [of(row) for row in rows]
    adjusted = iter(holm([difference.p for difference in differences if difference]))
    return [d and dataclasses.replace(d, p_holm=next(adjusted)) for d in differences]


def compare(
    arms: Sequence[Arm], results: Sequence[ArmResult], teacher_scores: np.ndarray, seed: int
) -> tuple[Row, ...]:
    """A row for each arm.

    Differences have intervals over queries and seeds (see
    `hf_distill.evaluation.significance.crossed_interval`).

    Args:
        arms: As from `plan_arms`.
        results: Of each arm the same seeds, in the same order.
        teacher_scores: (n,) of the test pairs; NaN where the teacher has none.
        seed: Seeds the bootstrap.
    """
    scored = ~np.isnan(teacher_scores)
    of = {arm.name: [result for result in results if result.arm == arm.name] for arm in arms}
    ndcg = {name: np.array([r.measured.ndcg for r in own]) for name, own in of.items()}

    def row(arm: Arm) -> Row:
        own, values = of[arm.name], ndcg[arm.name]
        recall = np.array([result.measured.recall for result in own]).mean(axis=0)
        students = [np.array(result.measured.student_score)[scored] for result in own]
        samples = [teacher_scores[scored], *students]
        return Row(
            arm=arm.name,
            is_control=arm.kind != "selection",
            pairs=round(float(np.mean([result.pairs for result in own]))),
            ndcg=estimate(mean, [values.mean(axis=0)], seed),
            ndcg_by_seed=tuple(values.mean(axis=1).round(5).tolist()),
            recall=estimate(mean, [recall], seed),
            pearson=_fidelity(pearson, samples, seed),
            mae=_fidelity(mae, samples, seed),
            control=arm.control,
            minus_random=_difference(values, ndcg[arm.control], seed) if arm.control else None,
            minus_all=_difference(values, ndcg[FULL], seed) if arm.kind != "all" else None,
        )

    rows = [row(arm) for arm in arms]
    minus_random = _corrected(rows, lambda row: row.minus_random)
    minus_all = _corrected(rows, lambda row: row.minus_all)
    return tuple(
        dataclasses.replace(row, minus_random=random, minus_all=everything)
        for row, random, everything in zip(rows, minus_random, minus_all, strict=True)
    )


def verdict(row: Row) -> str:
    """What the two comparisons of an arm show: a difference counts if Holm's p is below .05."""
    said = []
    for difference, control in (
        (row.minus_random, "random pairs of its size"),
        (row.minus_all, FULL),
    ):
        if difference is None:
            continue
        if difference.p_holm is None or difference.p_holm >= ALPHA:
            said.append(f"no clear difference from {control}")
        else:
            better = (difference.estimate.value or 0.0) > 0
            said.append(f"{'better' if better else 'worse'} than {control}")
    return "; ".join(said)
