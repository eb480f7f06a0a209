"""What a training costs, so that `quality.py` can give every arm the same seconds.

A few steps of each arm are timed, one arm after another, and once the teacher on some texts. From
these rates follows how many examples fit into a budget. What else the machine does later, during
the trainings, then gives no arm more or less. While it times, it should do nothing else.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from quality_arms import Arm, train_peer

from hf_distill.evaluation.passages import PASSAGES
from hf_distill.pipeline import Run
from hf_distill.recipe.arguments import Recipe
from hf_distill.run.stage import fingerprint
from hf_distill.study.arms import matched_recipe
from hf_distill.teachers.base import EmbeddingTeacher, PairTeacher
from hf_distill.training.texts import passage, wanted_pool

FEW, MORE = 8, 32
"""Steps of the two short trainings whose difference is the time of a step."""
SAMPLE = 512
"""Texts that the teacher is timed on."""


@dataclass(frozen=True)
class Cost:
    """What an arm costs on a domain, in seconds.

    Attributes:
        key: The fingerprint of what was timed.
        text: Of the teacher, for each text of the pairs.
        passage: Of the teacher, for each text of the pool.
        texts: How many texts of the pairs it embeds, with the held-out passages between stages.
        starts: Of each stage, before its first step.
        steps: Of each stage, for each step.
        lists: Of mining the lists and scoring them; 0 without lists.
    """

    key: str
    text: float
    passage: float
    texts: int
    starts: tuple[float, ...]
    steps: tuple[float, ...]
    lists: float = 0.0

    def teacher(self, pool: int) -> float:
        """Seconds of the teacher, with a pool of this size, and of the ranker."""
        return self.text * self.texts + self.passage * pool + self.lists

    def seconds(self, recipe: Recipe, pairs: int) -> float:
        """Seconds of a training of `recipe` on `pairs` pairs, the teacher's included. Each stage
        has its `max_steps`.
        """
        steps = [stage.max_steps for stage in recipe.stages]
        trained = sum(
            start + each * number
            for start, each, number in zip(self.starts, self.steps, steps, strict=True)
        )
        return self.teacher(wanted_pool(pairs, recipe.stages)) + trained

    def examples(self, recipe: Recipe, pairs: int, seconds: float) -> int:
        """The most examples whose training fits into `seconds`, by bisection; at least a batch."""
        batch = recipe.training.train_batch_size
        low, high = 1, 2
        while self.seconds(matched_recipe(recipe, high * batch, 0), pairs) <= seconds:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            fits = self.seconds(matched_recipe(recipe, middle * batch, 0), pairs) <= seconds
            low, high = (middle, high) if fits else (low, middle)
        return low * batch


def stage_seconds(arm: Arm, run: Run) -> list[float]:
    """Seconds of the training of each stage of `run`'s recipe; the last with those of finding the
    place between the last two.
    """
    with tempfile.TemporaryDirectory() as temporary:
        if arm.loss:
            return [train_peer(arm, run, temporary)[1]]
        _, record = run.student_on(run.selection, Path(temporary), "timed")
        stages = [stage.seconds for stage in record.stages]
        return [*stages[:-1], stages[-1] + record.seconds - sum(stages)]


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    """`recipe` with as many steps in each stage."""

    def short(recipe: Recipe) -> Recipe:
        stages = [dataclasses.replace(stage, max_steps=steps) for stage in recipe.stages]
        return dataclasses.replace(recipe, training=stages[0], further=tuple(stages[1:]))

    return short(matched_recipe(recipe, recipe.training.train_batch_size, 0))


_TIMED: dict[tuple[str, ...], list[float]] = {}
"""Seconds for each text, by what was timed."""


def _of_domain(run: Run) -> tuple[str, ...]:
    return run.collection.key, fingerprint(run.teacher.identity)


def time_teacher(run: Run) -> tuple[float, float]:
    """Seconds of the teacher for each text of the pairs, and for each passage of one, timed once
    for all arms.
    """
    timed = _of_domain(run)
    if timed in _TIMED:
        return _TIMED[timed][1], _TIMED[timed][2]
    pairs, rng = run.collection.pairs("train"), np.random.default_rng(0)
    texts = [
        *run.collection.query_texts(rng.permutation(np.unique(pairs.queries))[: SAMPLE // 2]),
        *run.collection.document_texts(rng.permutation(np.unique(pairs.documents))[: SAMPLE // 2]),
    ]
    passages = [passage(text, ["word"], str(number)) for number, text in enumerate(texts)]
    teacher = cast(EmbeddingTeacher, run.teacher)
    rates = []
    for batch in (texts[:32], texts, passages):  # the first one warms up
        start = time.perf_counter()
        teacher.embed(batch)
        rates.append((time.perf_counter() - start) / len(batch))
    _TIMED[timed] = rates
    return rates[1], rates[2]


def time_lists(arm: Arm, run: Run) -> float:
    """Seconds of mining the lists of an arm, as they were when that was done, and of the ranker on
    all of them, from its time on some. (What it has scored is kept, so it is not timed again. A
    teacher that embeds has embedded the texts already.)
    """
    if arm.miner is not None:
        peer = arm.miner.lists(run)
        return peer.seconds + peer.scored * _time_ranker(arm.miner.load(run), run)
    lists = run.lists
    if lists is None:
        return 0.0
    if run.ranker is None and run.teacher.embeds:
        return lists.record.mined.seconds
    each = _time_ranker(run.ranker or cast(PairTeacher, run.teacher), run)
    return lists.record.mined.seconds + each * (len(lists.scores) + len(lists.own))


def _time_ranker(ranker: PairTeacher, run: Run) -> float:
    """Seconds of the ranker for each pair of texts, timed once for all arms."""
    timed = (*_of_domain(run), fingerprint(ranker.identity))
    if timed in _TIMED:
        return _TIMED[timed][0]
    pairs = run.collection.pairs("train")
    pairs = pairs.take(np.arange(min(SAMPLE // 2, len(pairs))))
    texts = (
        run.collection.query_texts(pairs.queries),
        run.collection.document_texts(pairs.documents),
    )
    asked = list(zip(*texts, strict=True))
    ranker.score(asked[:32])  # the first call takes longer
    start = time.perf_counter()
    ranker.score(asked)
    _TIMED[timed] = [(time.perf_counter() - start) / len(asked)]
    return _TIMED[timed][0]


def time_arm(arm: Arm, make: Callable[[Recipe], Run], recipe: Recipe, key: str, turns: int) -> Cost:
    """Time an arm: its steps, the median of several turns.

    Args:
        arm: The arm.
        make: Makes a run of a recipe on the domain.
        recipe: The arm's recipe.
        key: Of the result.
        turns: How often.
    """
    few, more = (
        [stage_seconds(arm, make(with_steps(recipe, steps))) for _ in range(turns)]
        for steps in (FEW, MORE)
    )
    each = [
        max(1e-4, (long - short) / (MORE - FEW))
        for short, long in zip(_medians(few), _medians(more), strict=True)
    ]
    run = make(recipe)
    of_text, of_passage = time_teacher(run)
    pairs = run.collection.pairs("train").take(run.selection.kept)
    unique = len(np.unique(pairs.queries)) + len(np.unique(pairs.documents))
    unique += PASSAGES if arm.own and recipe.specialise is not None else 0
    return Cost(
        key=key,
        text=of_text,
        passage=of_passage,
        texts=0 if arm.asks == "nothing" else unique,
        starts=tuple(
            max(0.0, short - FEW * step) for short, step in zip(_medians(few), each, strict=True)
        ),
        steps=tuple(each),
        lists=time_lists(arm, run),
    )


def _medians(turns: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.median(values) for values in zip(*turns, strict=True)]
