"""Quality beside the losses of sentence-transformers, at equal seconds:
`python benchmarks/quality.py --domain pydocs NAME=PATH ... [--tasks FOLDER ...] [--minutes 5 15]`.

The same student, from the same start, is trained on the same pairs for the same time: with each
loss of sentence-transformers that a distillation could use, through its own
SentenceTransformerTrainer; with the paper's objective; and with this project's recommended recipe
and any other (`--try`). Everything that an arm needs counts: also the texts that the teacher embeds
for it. (Reading the data, and the start that all students share, are not counted.) Each student is
measured in-domain, on held-out pairs of the domain it was trained on, and out of domain: on those
of the other domains, and on further tasks.

Every timing, training and measurement is kept in `--out`. A second call goes on, and does only what
is missing. Writes quality.json, quality.md, quality.svg and quality.png there. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import logging
import os
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import transformers
from quality_arms import ARMS, UNTRAINED, Arm, further_arm, train_peer
from quality_cost import Cost, time_arm
from quality_domains import (
    Domain,
    Setting,
    bm25_ndcg,
    data_options,
    load_domain,
    load_further,
    prepare_domain,
    recipe_of,
    setting_of,
    with_keys,
)
from quality_table import (
    FurtherReference,
    References,
    Results,
    Student,
    compile_results,
    markdown,
    plot,
)
from sentence_transformers import SentenceTransformer

from hf_distill.compute.device import device_type, keep_freed_memory
from hf_distill.compute.search import search
from hf_distill.data.collection import text_id
from hf_distill.errors import InputError
from hf_distill.evaluation.evaluate import embed_task
from hf_distill.pipeline import Run
from hf_distill.recipe.arguments import Recipe
from hf_distill.run.stage import stage, write_json
from hf_distill.student.save import save_student
from hf_distill.study.arms import matched_recipe
from hf_distill.study.measure import Measurement, measure
from hf_distill.training.texts import wanted_pool

FORM = 4
"""Another number whenever something else is measured: earlier results are then not used."""


@dataclass(frozen=True)
class Trained:
    """`trained.json`: one training. The student is beside it.

    Attributes:
        key: The fingerprint of everything that it depends on.
        pairs: Training pairs.
        examples: Pairs seen, each as often as it was seen.
        planned: Seconds that it should take, the teacher's included.
        teacher: Seconds of these that are the teacher's.
        seconds: Seconds that the training itself took this time, on a machine as busy as it was.
    """

    key: str
    pairs: int
    examples: int
    planned: float
    teacher: float
    seconds: float


@dataclass(frozen=True)
class InDomain:
    """`in-domain.json`: a student on held-out pairs of its domain."""

    key: str
    measured: Measurement
    overlap: tuple[float, ...]


@dataclass(frozen=True)
class Further:
    """A student on another task: nDCG@10 of each query."""

    key: str
    ndcg: tuple[float, ...]


class AbsentError(Exception):
    """A training is not there."""


@dataclass(frozen=True)
class Job:
    """One student.

    Attributes:
        setting: What it is trained and measured on.
        domain: What it is trained on.
        arm: How.
        seed: Of its training.
        minutes: The budget; 0: it is not trained.
        public: The folder of a student that somebody else has published.
    """

    setting: Setting
    domain: str
    arm: Arm
    seed: int = 0
    minutes: float = 0.0
    public: str | None = None

    @property
    def folder(self) -> Path:
        """Where its results are kept."""
        limit = "" if self.arm.epochs is None else f"-{self.arm.epochs:g}epochs"
        name = f"{self.kind}-{self.minutes:g}min{limit}-{self.seed}"
        return self.setting.folder(self.domain) / "results" / name

    @property
    def kind(self) -> str:
        """What its arm is kept by. Arms of this project differ in their keys alone."""
        name = self.arm.name if self.arm.loss or not self.minutes else "own"
        keys = text_id(" ".join(self.arm.keys) + (self.public or ""))[:8]
        return f"{re.sub(r'[^A-Za-z0-9]+', '-', name)}-{keys}"

    @property
    def recipe(self) -> Recipe:
        """The recipe of its arm, of any length."""
        return recipe_of(self.domain, self.setting, self.arm.keys)

    def run_of(self, recipe: Recipe) -> Run:
        """A run of a recipe on its domain."""
        return with_keys(load_domain(self.domain, self.setting), recipe, self.folder)

    def cost(self, turns: int, read_only: bool = False) -> Cost:
        """What its arm costs: read, or timed.

        Raises:
            AbsentError: It is not there, and only to be read.
        """
        run = self.run_of(self.recipe)
        inputs = [FORM, self.arm.name, turns, *run.training_inputs(run.selection)]
        path = self.setting.folder(self.domain) / "costs" / f"{self.kind}.json"

        def make(key: str) -> Cost:
            if read_only:
                raise AbsentError
            with contextlib.redirect_stdout(io.StringIO()):
                return time_arm(self.arm, self.run_of, self.recipe, key, turns)

        return stage(path, Cost, inputs, make)

    def examples(self, cost: Cost, pairs: int) -> int:
        """How many examples of `pairs` training pairs it sees."""
        examples = cost.examples(self.recipe, pairs, 60 * self.minutes)
        return (
            examples if self.arm.epochs is None else min(examples, round(self.arm.epochs * pairs))
        )

    def trained(self, turns: int, read_only: bool = False) -> Trained:
        """The training: read, or made.

        Raises:
            AbsentError: As `cost`.
        """
        if not self.minutes:
            return Trained("untrained", 0, 0, 0.0, 0.0, 0.0)
        cost = self.cost(turns, read_only)
        run = self.run_of(self.recipe)
        pairs = len(run.selection.kept)
        examples = self.examples(cost, pairs)
        recipe = matched_recipe(self.recipe, examples, self.seed)
        run = self.run_of(recipe)
        inputs = [FORM, self.arm.name if self.arm.loss else "own"]
        inputs += run.training_inputs(run.selection)

        def make(key: str) -> Trained:
            if read_only:
                raise AbsentError
            student, seconds = self._train(run, key)
            save_student(student, self.folder / "student")
            pool = wanted_pool(pairs, recipe.stages)
            return Trained(
                key, pairs, examples, round(cost.seconds(recipe, pairs), 1),
                round(cost.teacher(pool), 1), seconds,
            )  # fmt: skip

        path = self.folder / "trained.json"
        return stage(path, Trained, inputs, make, [self.folder / "student"])

    def _train(self, run: Run, key: str) -> tuple[SentenceTransformer, float]:
        with (
            tempfile.TemporaryDirectory() as temporary,
            contextlib.redirect_stdout(io.StringIO()),  # the Trainer's own summary
        ):
            if self.arm.loss:
                student, seconds = train_peer(self.arm, run, temporary)
            else:
                # Arms that begin alike share their first stage.
                shared = self.setting.folder(self.domain) / "stages"
                student, record = run.student_on(run.selection, shared, key)
                seconds = record.seconds
        shutil.rmtree(run.folder.pool, ignore_errors=True)  # its embeddings stay in teacher_cache
        return student, round(seconds, 1)

    def student(self) -> SentenceTransformer:
        """The student."""
        if not self.minutes and self.public is None:
            return self.run_of(self.recipe).untrained()
        path = self.public or str(self.folder / "student")
        return SentenceTransformer(path, device=device_type())

    def measured(self, turns: int) -> Student:
        """The student on everything it is measured on: read, or measured."""
        trained = self.trained(turns)
        own = load_domain(self.domain, self.setting)
        kept: list[SentenceTransformer] = []

        def student() -> SentenceTransformer:
            if not kept:
                kept.append(self.student())
            return kept[0]

        def in_domain(key: str) -> InDomain:
            return InDomain(key, measure(student(), own.task), own.overlap(student()))

        scores = own.run.scores.key
        inputs = [FORM, trained.key, self.public, scores]
        inside = stage(self.folder / "in-domain.json", InDomain, inputs, in_domain)
        further = {}
        for name, task in further_tasks(self.setting, self.domain).items():

            def on(key: str, task: Any = task) -> Further:
                found = search(*embed_task(student(), task), 10)
                return Further(key, tuple(task.ndcg(found).round(6).tolist()))

            asked = [*inputs, list(task.queries), len(task.documents)]
            further[name] = stage(self.folder / f"on-{name}.json", Further, asked, on).ndcg
        return Student(
            domain=self.domain,
            minutes=self.minutes,
            arm=self.arm.name,
            seed=self.seed,
            pairs=trained.pairs,
            examples=trained.examples,
            planned_seconds=trained.planned,
            teacher_seconds=trained.teacher,
            in_domain=inside.measured,
            overlap=inside.overlap,
            further=further,
        )


def further_tasks(setting: Setting, domain: str) -> dict[str, Any]:
    """What students of a domain are measured on out of it: the held-out pairs of the others, and
    the further tasks.
    """
    others = {name: load_domain(name, setting).task for name in setting.names if name != domain}
    return others | {Path(path).name: load_further(path) for path in setting.tasks}


def further_reference(domain: Domain, name: str, task: Any, folder: Path) -> FurtherReference:
    """Teacher and BM25 on a task, and how many of its texts are training texts of the domain."""

    def make(key: str) -> Further:
        assert domain.run.teacher.backbone is not None
        found = search(*embed_task(domain.run.teacher.backbone, task), 10)
        return Further(key, tuple(task.ndcg(found).round(6).tolist()))

    inputs = [FORM, domain.run.scores.key, list(task.queries), len(task.documents)]
    teacher = stage(folder / f"teacher-on-{name}.json", Further, inputs, make)
    ids = {text_id(text) for part in (task.queries, task.documents) for text in part.values()}
    return FurtherReference(teacher.ndcg, bm25_ndcg(task), len(ids & domain.trained_texts))


def be_quiet() -> None:
    """Only results on the terminal."""
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    datasets.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def save_plot(figure: Any, path: Path) -> None:
    """As SVG and as PNG."""
    for suffix in (".svg", ".png"):
        figure.savefig(path.with_suffix(suffix), bbox_inches="tight", facecolor="white", dpi=150)


def options(description: str | None, arms: Iterable[str]) -> argparse.ArgumentParser:
    """A parser of the options that say what is trained how, and measured on what.

    Args:
        description: Of the script.
        arms: The names of its arms.
    """
    parser = data_options(description)
    parser.add_argument(
        "--tasks", nargs="*", type=Path, default=[], metavar="FOLDER",
        help="BEIR folders (or any test set that the project reads): measured out of domain.",
    )  # fmt: skip
    parser.add_argument(
        "--minutes", nargs="+", type=float, default=[5.0], help="Budgets. Default: 5."
    )
    parser.add_argument(
        "--arms", nargs="*", default=list(arms), metavar="NAME",
        help=f"Of: {'; '.join(arms)}. Default: all.",
    )  # fmt: skip
    parser.add_argument(
        "--try", dest="tries", action="append", default=[], metavar='"NAME: KEY=VALUE ..."',
        help="A further arm: the recommended recipe with other keys; or, if NAME is that of a loss "
        "of sentence-transformers above, this one with other keys, e.g. its learning rate. Once "
        "for each. Stages have a semicolon between them, and commas between their keys.",
    )  # fmt: skip
    parser.add_argument(
        "--epochs", type=float,
        help="An arm sees each pair at most so often in a stage, even if there is time for more.",
    )  # fmt: skip
    parser.add_argument(
        "--public", nargs="*", default=[], metavar="FOLDER",
        help="Students that somebody has published: measured beside the others.",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=3, help="Students of each arm. Default: 3.")
    parser.add_argument(
        "--turns", type=int, default=3, help="How often the steps of an arm are timed. Default: 3."
    )
    parser.add_argument(
        "--train_on", nargs="+", help="Train on these domains alone. Default: on all, in turn."
    )
    parser.add_argument(
        "--table", action="store_true",
        help="Train nothing: compare what is there. Arms may then differ in their seeds.",
    )  # fmt: skip
    return parser


def _wanted(line: argparse.Namespace, arms: Mapping[str, Arm]) -> list[Arm]:
    if unknown := set(line.arms) - set(arms):
        raise InputError(
            f"--arms: unknown {', '.join(sorted(unknown))}; known are {', '.join(arms)}"
        )
    wanted = [arms[name] for name in line.arms]
    wanted += [further_arm(text, arms) for text in line.tries]
    limits = [[x for x in (arm.epochs, line.epochs) if x is not None] for arm in wanted]
    return [
        dataclasses.replace(arm, epochs=min(limit, default=None))
        for arm, limit in zip(wanted, limits, strict=True)
    ]


def _jobs(line: argparse.Namespace, setting: Setting, arms: Sequence[Arm]) -> list[Job]:
    """Every student, all arms of a seed before the next seed."""
    trained_on = line.train_on or setting.names
    if unknown := set(trained_on) - set(setting.names):
        raise InputError(f"--train_on: {', '.join(sorted(unknown))} is no --domain")
    jobs = [Job(setting, domain, Arm(UNTRAINED)) for domain in trained_on]
    jobs += [
        Job(setting, domain, Arm(Path(path).name), public=str(Path(path).resolve()))
        for path in line.public
        for domain in trained_on
    ]
    return jobs + [
        Job(setting, domain, arm, seed, minutes)
        for minutes in line.minutes
        for seed in range(line.seeds)
        for domain in trained_on
        for arm in arms
    ]


def _is_there(job: Job, turns: int) -> bool:
    with contextlib.suppress(AbsentError):
        return bool(job.trained(turns, read_only=True).key)
    return False


def main() -> None:
    """Compare the losses of sentence-transformers, the paper and the recommended recipe."""
    compare(options(__doc__, ARMS).parse_args(), ARMS)


def compare(line: argparse.Namespace, arms: Mapping[str, Arm]) -> None:
    """Train and measure what is missing, compare, and print the tables.

    Args:
        line: The command line, read by `options`.
        arms: The arms that it may name.

    Raises:
        InputError: The command line names something that is not there.
    """
    keep_freed_memory()
    be_quiet()
    setting = setting_of(line, line.tasks)
    wanted_arms = _wanted(line, arms)
    jobs = _jobs(line, setting, wanted_arms)
    for name in setting.names:
        prepare_domain(name, setting)
    missing = {job for job in jobs if not _is_there(job, line.turns)}
    if line.table:
        jobs, missing = [job for job in jobs if job not in missing], set()
        if not any(job.minutes for job in jobs):
            raise InputError(
                f"--table: {setting.out} holds no training of these; leave --table out once"
            )
    for job in jobs:  # all of them are timed before any is trained
        if job in missing and job.seed == 0:
            cost = job.cost(line.turns)
            said = " + ".join(f"{1000 * step:.0f}" for step in cost.steps)
            print(f"{job.domain}, {job.arm.name}: {said} ms a step", flush=True)
    students: list[Student] = []
    start, wanted = time.perf_counter(), len(missing)
    for number, job in enumerate(jobs, 1):
        students.append(job.measured(line.turns))
        missing.discard(job)
        seconds = time.perf_counter() - start
        left = seconds / max(1, wanted - len(missing)) * len(missing)
        said = students[-1].said()
        print(f"{number}/{len(jobs)} {said}; about {left / 60:.0f} min left", flush=True)
    references = {
        domain: References(
            load_domain(domain, setting).reference(),
            {
                name: further_reference(
                    load_domain(domain, setting), name, task, setting.folder(domain)
                )
                for name, task in further_tasks(setting, domain).items()
            },
        )
        for domain in dict.fromkeys(job.domain for job in jobs)
    }
    own = [arm.name for arm in wanted_arms if arm.own]
    content = compile_results(Results(students, references, own))
    write_json(setting.out / "quality.json", content)
    text = markdown(content)
    (setting.out / "quality.md").write_text(text, encoding="utf-8")
    save_plot(plot(content), setting.out / "quality.svg")
    print(f"\n{text}\nWritten to {setting.out}")
    print(json.dumps(content.summary))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(f"quality.py: error: {error}") from error
