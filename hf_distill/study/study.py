"""Does selection help? The same student is trained for the same number of examples on what
different rules keep, with several seeds.

Each selection is compared with two controls. The first is random pairs of the same number: only a
better choice of pairs beats those. The second is all pairs: a selection that does not beat them is
not worth having. All students see the same number of examples, because fewer pairs would otherwise
mean less training.

With noise, some training pairs have another document on purpose. One more selection then is the
oracle: the pairs that are left as they were.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from accelerate import PartialState

from hf_distill.data.collection import text_id
from hf_distill.errors import InputError
from hf_distill.evaluation.tasks import HeldOutTask, held_out_task
from hf_distill.pipeline import Run
from hf_distill.recipe.arguments import Recipe
from hf_distill.run.folder import RunFolder, save_recipe
from hf_distill.run.lock import held
from hf_distill.run.stage import stage, write_json, written_whole
from hf_distill.selection.rules import Rule
from hf_distill.selection.second import check_second_model
from hf_distill.selection.select import rule_columns, select_pairs
from hf_distill.study.arms import ORACLE, Arm, clean, matched_recipe, parse_selections, plan_arms
from hf_distill.study.compare import ArmResult, compare
from hf_distill.study.detection import DetectorAUC, Picked, detection, picked, suspicions
from hf_distill.study.measure import measure
from hf_distill.study.noise import Noise, parse_noise
from hf_distill.study.noisy import Noisy, check_noise, noisy_run
from hf_distill.study.page import Study, markdown, plot
from hf_distill.training.stages import check_batch


@dataclass(frozen=True)
class _Trials:
    """Trains and measures students in the folder `out` of a run.

    Attributes:
        run: The run whose pairs, scores and initialisation all students share.
        task: What they are measured on.
        examples: Training examples of each student.
        out: The folder for results.
    """

    run: Run
    task: HeldOutTask
    examples: int
    out: Path

    @cached_property
    def index(self) -> np.ndarray | None:
        """(N, D) the teacher's embeddings of the task's documents, which query encoders search;
        None for other students.
        """
        embeddings = self.run.scores.embeddings
        if self.run.recipe.training.student_space == "own" or embeddings is None:
            return None
        return embeddings.of_documents(self.task.document_numbers).astype(np.float32)

    def result(self, arm: Arm, seed: int) -> ArmResult:
        """Train and measure a student, unless its result is there."""
        run = self.run
        trial = run.with_recipe(matched_recipe(run.recipe, self.examples, seed))
        # A seed changes what is drawn in training, not what is shared.
        trial.ranking, trial.initialisation = run.ranking, run.initialisation
        trial.further_texts = run.further_texts
        name = f"{re.sub(r'[^A-Za-z0-9.=-]+', '_', arm.name)[:60]}-{text_id(arm.name)[:8]}-{seed}"
        selection = select_pairs(
            run.selection_inputs, arm.rules, seed, RunFolder(self.out / "selections" / name)
        )

        def make(key: str) -> ArmResult:
            start, checkpoints = time.perf_counter(), self.out / "checkpoints"
            student, training = trial.student_on(selection, checkpoints, key)
            shutil.rmtree(checkpoints, ignore_errors=True)
            measured = measure(student, self.task, self.index)
            return ArmResult(
                key=key,
                arm=arm.name,
                seed=seed,
                pairs=len(selection.kept),
                steps=training.steps,
                examples=training.examples,
                precision=training.precision,
                training_seconds=training.seconds,
                seconds=round(time.perf_counter() - start, 1),
                measured=measured,
            )

        inputs = [run.collection.key, *trial.training_inputs(selection)]
        path = self.out / "results" / f"{name}.json"
        return stage(path, ArmResult, inputs, make, together=True)

    def results(self, wanted: Sequence[tuple[Arm, int]]) -> list[ArmResult]:
        """The result of each arm and seed, with a line for each on the terminal."""
        results: list[ArmResult] = []
        start, trained = time.perf_counter(), 0
        for number, (arm, seed) in enumerate(wanted, 1):
            before = time.perf_counter()
            result = self.result(arm, seed)
            results.append(result)
            trained += time.perf_counter() - before > 1
            left = (time.perf_counter() - start) / max(1, trained) * (len(wanted) - number) / 60
            PartialState().print(
                f"{number}/{len(wanted)} {arm.name}, seed {seed}: nDCG@10 "
                f"{np.mean(result.measured.ndcg):.4f} ({result.seconds} s)"
                + (f", about {left:.0f} min left" if trained and number < len(wanted) else ""),
                flush=True,
            )
        return results


def _prepared(run: Run) -> Path:
    """The folder of a run's study, whose pairs are read and scored."""
    say, out = PartialState().print, run.folder.path / "study"
    say(run.collection.summary(), flush=True)
    if PartialState().is_main_process:
        if not run.folder.recipe.exists():  # else it says how the run's own student was made
            save_recipe(run.recipe, run.folder)
        save_recipe(run.recipe, RunFolder(out))
    say(run.scores.summary(), flush=True)
    return out


def _write(study: Study, out: Path) -> None:
    write_json(out / "study.json", study)
    text = markdown(study)
    with written_whole(out / "study.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    with written_whole(out / "study.svg") as temporary:
        plot(study.arms).savefig(
            temporary, format="svg", bbox_inches="tight", facecolor="white", metadata={"Date": None}
        )
    print(f"\n{text}\nStudy: {out}")


def run_study(
    recipe: Recipe,
    selections: Sequence[str],
    examples: int,
    seeds: int,
    noises: Sequence[str] = (),
) -> list[Study]:
    """Train and measure every arm with every seed that has no result yet, and write `study.json`,
    `study.md`, `study.svg` and `recipe.yaml` into the folder `study` of the run; of a study with
    noise into a folder of its own there, `noise/random=0.5`.

    Each result is written as soon as it exists. A second call continues, and further seeds or
    selections train only their own students. Seeds are the outer loop, so a study that is stopped
    has compared all arms on the seeds that are done.

    Args:
        recipe: What to train; its own `selection` is not used.
        selections: Lists of rules, each as one text.
        examples: Training examples of each student.
        seeds: How many, from the recipe's seed on. A seed also draws random pairs and breaks ties.
        noises: As for `parse_noise`; a study for each. None, or a share of 0: the pairs as they
            are.

    Returns:
        The studies, in the order of `noises`.

    Raises:
        InputError: No examples, seeds or selections, a bad rule or noise, fewer pairs than a batch,
            and whatever a run refuses.
    """
    if examples < 1 or seeds < 1:
        raise InputError(f"--examples {examples} --seeds {seeds}: both must be at least 1")
    parsed = parse_selections(selections)  # refuse what can be refused before writing anything
    injected = [noise if noise.share else None for noise in parse_noise(noises)] or [None]
    every_rule = [rule for rules in parsed.values() for rule in rules]
    check_second_model(every_rule, recipe.selection.second_model)
    run = Run.open(recipe)
    if any(injected):
        check_noise(run)
    if not run.has_pairs:
        raise InputError(
            f"{run.collection.source.name} is texts without pairs, so there is nothing to select; "
            "a study compares selections of pairs"
        )
    with held(run.folder):
        out = _prepared(run)
        return [_study(run, parsed, examples, seeds, noise, out) for noise in injected]


def _study(
    run: Run,
    parsed: Mapping[str, tuple[Rule, ...]],
    examples: int,
    seeds: int,
    noise: Noise | None,
    out: Path,
) -> Study:
    seed, noisy = run.recipe.seed, None
    if noise is not None:
        out = out / "noise" / str(noise)
        noisy = noisy_run(run, noise, out)
        run = noisy.run
        rows = run.collection.pairs("train").rows[noisy.is_noisy]
        parsed = {**parsed, ORACLE: (clean(rows),)}
        changed, pairs = noisy.record.changed, noisy.record.pairs
        PartialState().print(f"Noise    {noise}: {changed:,} of {pairs:,} pairs", flush=True)
    every_rule = [rule for rules in parsed.values() for rule in rules]
    columns = rule_columns(run.selection_inputs, every_rule, seed)
    arms = plan_arms(parsed, columns)
    matched = matched_recipe(run.recipe, examples, seed).training
    for arm in arms:
        pairs = len(arm.rows(columns))
        check_batch(pairs, matched)
        PartialState().print(
            f"  {arm.name}: {pairs:,} pairs, {examples / pairs:.1f} epochs", flush=True
        )
    task, every_seed = held_out_task(run.collection), range(seed, seed + seeds)
    trials = _Trials(run, task, examples, out)
    results = trials.results([(arm, each) for each in every_seed for arm in arms])
    teacher_scores = run.scores.of(run.collection.rows("test")).astype(np.float64)
    study = Study(
        examples=results[0].examples,
        seeds=tuple(every_seed),
        queries=len(task.queries),
        documents=len(task.documents),
        pairs=int((~np.isnan(teacher_scores)).sum()),
        training_pairs=len(columns),
        arms=compare(arms, results, teacher_scores, seed),
        noise=None if noisy is None else noisy.record,
        detection=() if noisy is None else _detection(noisy, columns.score),
        picked=None if noisy is None else _picked(noisy),
    )
    if PartialState().is_main_process:
        _write(study, out)
    return study


def _detection(noisy: Noisy, scores: np.ndarray) -> tuple[DetectorAUC, ...]:
    """How well what the rules read tells the noisy pairs from the clean ones."""
    ranking = noisy.run.ranking
    if ranking is None:
        return ()
    suspected = suspicions(scores, ranking.rank, ranking.margin)
    return detection(noisy.is_noisy, suspected, noisy.record.seed)


def _picked(noisy: Noisy) -> Picked | None:
    """What `mismatched` picks of the noisy pairs and of the clean ones."""
    ranking = noisy.run.ranking
    if ranking is None:
        return None
    return picked(noisy.is_noisy, ranking.rank, noisy.run.selection_inputs.detection)
