"""Quality beside the losses of sentence-transformers: `python benchmarks/quality.py --qrecc FILE
[FILE ...] [--arms ...] [--seeds N]`.

The same student, from the same start, is trained on the same pairs for the same number of examples:
with each loss of sentence-transformers that a distillation could use, through its own
SentenceTransformerTrainer; with the paper's objective; and with this project's recommended recipe
and any other (`--try`). There are two domains: the Python documentation installed here, and the
conversations of QReCC files. Each student is measured in-domain, on held-out pairs of the domain it
was trained on, and out-of-domain, on those of the other one.

Every training is a job of its own whose result is kept in `--out`. A second call goes on, and
trains only what further arms or seeds need. Writes quality.json, quality.md and quality.svg there.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import functools
import io
import json
import logging
import multiprocessing
import os
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from datasets import Dataset
from quality_table import (
    UNTRAINED,
    Reference,
    Results,
    Trained,
    compile_results,
    markdown,
    plot,
)
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer import losses
from torch import nn

from hf_distill.compute.device import cpu_cores, device_type, keep_freed_memory
from hf_distill.compute.search import search
from hf_distill.data.collection import text_id
from hf_distill.errors import InputError
from hf_distill.evaluation.bm25 import bm25_run
from hf_distill.evaluation.evaluate import embed_task
from hf_distill.evaluation.retrieval import NDCG, per_query
from hf_distill.evaluation.tasks import HeldOutTask, held_out_task
from hf_distill.pipeline import Run, with_precision
from hf_distill.recipe.arguments import Recipe
from hf_distill.recipe.read import read_recipe
from hf_distill.run.folder import RunFolder
from hf_distill.run.stage import stage, write_json
from hf_distill.study.arms import matched_recipe
from hf_distill.study.measure import measure
from hf_distill.training.rows import Examples, examples, training_rows
from hf_distill.training.train import check_objective

FORM = 2
"""Another number whenever something else is measured: earlier results are then not used."""
DOMAINS = ("pydocs", "conversations")
SPLIT = 42
RECOMMENDED = "recommended"
TOP = 10


@dataclass(frozen=True)
class Arm:
    """A way to train the student: a loss of sentence-transformers (`loss` with its `columns`), or
    an objective of this project.

    Attributes:
        name: What the table calls it.
        keys: The recipe's keys that differ from the recommended ones, as a command line.
        loss: Of sentence-transformers, made from the student and the teacher; None: this project's
            trainer.
        columns: Makes what that loss reads from the training pairs and the principal components.
        own: Whether it is this project's, to be compared with the best peer.
    """

    name: str
    keys: tuple[str, ...] = ()
    loss: Callable[[SentenceTransformer, SentenceTransformer], nn.Module] | None = None
    columns: Callable[[Examples, torch.Tensor], dict[str, Any]] | None = None
    own: bool = False


def _pair(pairs: Examples, _: torch.Tensor) -> dict[str, Any]:
    return {"query": pairs.queries, "document": pairs.documents}


def _scored_pair(pairs: Examples, components: torch.Tensor) -> dict[str, Any]:
    return {**_pair(pairs, components), "label": pairs.sides.teacher_score.tolist()}


def _embedded_pair(pairs: Examples, components: torch.Tensor) -> dict[str, Any]:
    """The teacher's embeddings in the coordinates of the student's head: the best case of a loss
    that would otherwise learn a projection.
    """
    sides = pairs.sides
    assert sides.query_embedding is not None
    assert sides.document_embedding is not None
    both = torch.stack([sides.query_embedding, sides.document_embedding], dim=1).float()
    return {**_pair(pairs, components), "label": (both @ components.T).tolist()}


def _scored_triple(pairs: Examples, components: torch.Tensor) -> dict[str, Any]:
    """With one hard negative each."""
    assert pairs.sides.negative_score is not None
    scores = torch.stack([pairs.sides.teacher_score, pairs.sides.negative_score[:, 0]], dim=1)
    return {**_pair(pairs, components), "negative": pairs.negatives, "label": scores.tolist()}


def _margin_triple(pairs: Examples, components: torch.Tensor) -> dict[str, Any]:
    columns = _scored_triple(pairs, components)
    return {**columns, "label": [own - other for own, other in columns["label"]]}


def _ranking(student: SentenceTransformer, _: SentenceTransformer) -> nn.Module:
    return losses.MultipleNegativesRankingLoss(student)


def _guided(student: SentenceTransformer, teacher: SentenceTransformer) -> nn.Module:
    return losses.GISTEmbedLoss(student, guide=teacher)


def _cosine(student: SentenceTransformer, _: SentenceTransformer) -> nn.Module:
    return losses.CosineSimilarityLoss(student)


def _embedding(student: SentenceTransformer, _: SentenceTransformer) -> nn.Module:
    return losses.EmbedDistillLoss(student)


def _divergence(student: SentenceTransformer, _: SentenceTransformer) -> nn.Module:
    return losses.DistillKLDivLoss(student, temperature=0.05)


def _margin(student: SentenceTransformer, _: SentenceTransformer) -> nn.Module:
    return losses.MarginMSELoss(student)


PLAIN = (
    "--contrastive_weight", "1", "--temperature", "0.1", "--false_negative_margin", "none",
    "--regression_weight", "0", "--alignment_weight", "0", "--texts_per_pair", "0",
)  # fmt: skip
"""Nothing of the recommended objective, so that what a peer depends on does not change with it."""
NEGATIVE = ("--hard_negatives_per_pair", "1")
_BATCH = ("--per_device_train_batch_size", "64")
SLOW, FAST = (*_BATCH, "--learning_rate", "1e-4"), (*_BATCH, "--learning_rate", "4e-4")
"""Contrast forgets more at a higher rate, and alignment learns more (benchmarks/QUALITY.md): each
peer has the rate that suits it.
"""
RECOMMENDED_STEPS = ("--per_device_train_batch_size", "16", "--learning_rate", "2e-4")
PAPER = (
    *PLAIN, "--regression_weight", "0.1", "--head_dropout", "0.1",
    "--selection", "invalid", "echo", "duplicate", "percentile=80",
)  # fmt: skip
ARMS = {
    arm.name: arm
    for arm in (
        Arm("MultipleNegativesRankingLoss", (*PLAIN, *SLOW), _ranking, _pair),
        Arm("GISTEmbedLoss", (*PLAIN, *SLOW), _guided, _pair),
        Arm("CosineSimilarityLoss", (*PLAIN, *FAST), _cosine, _scored_pair),
        Arm("EmbedDistillLoss", (*PLAIN, *FAST), _embedding, _embedded_pair),
        Arm("EmbedDistillLoss, batch 16", (*PLAIN, *RECOMMENDED_STEPS), _embedding, _embedded_pair),
        Arm("DistillKLDivLoss", (*PLAIN, *SLOW, *NEGATIVE), _divergence, _scored_triple),
        Arm("MarginMSELoss", (*PLAIN, *FAST, *NEGATIVE), _margin, _margin_triple),
        Arm("the paper", (*PAPER, *SLOW)),
        Arm(RECOMMENDED, own=True),
    )
}


def parse_try(text: str) -> Arm:
    """`NAME: key=value key=value ...` as an arm of this project.

    Raises:
        InputError: Another form.
    """
    name, colon, keys = text.partition(":")
    pairs = [key.partition("=") for key in keys.split()]
    if not colon or not name.strip() or not all(equals for _, equals, _ in pairs):
        raise InputError(f'--try {text!r}: expected "NAME: key=value key=value ..."')
    line = [part for key, _, value in pairs for part in (f"--{key}", value)]
    return Arm(name.strip(), tuple(line), own=True)


@dataclass(frozen=True)
class Setting:
    """What is trained and measured on.

    Attributes:
        out: Folder of data and results.
        max_pairs: Of each domain, at most; None: all.
        split: Draws the held-out pairs.
    """

    out: Path
    max_pairs: int | None = None
    split: int = SPLIT

    def name(self, domain: str) -> str:
        """The name of a domain's folders."""
        split = f"-{self.split}" if self.split != SPLIT else ""
        return domain + split + (f"-{self.max_pairs}-pairs" if self.max_pairs else "")


def recipe_of(domain: str, setting: Setting, keys: Sequence[str] = ()) -> Recipe:
    """The recommended recipe on a domain, with other `keys`."""
    data = {
        "pydocs": ["--dataset", "pydocs", "--test_fraction", "0.05"],
        "conversations": [
            "--dataset", "qrecc", "--dataset_path", str(setting.out / "qrecc.json"),
            "--test_fraction", "0.25",
        ],
    }[domain]  # fmt: skip
    fixed = [
        "--max_pairs", str(setting.max_pairs or "none"), "--seed", str(setting.split),
        "--run_dir", str(setting.out / setting.name(domain)), "--until", "select",
        "--teacher_cache", str(setting.out / "teacher"), "--validation_fraction", "0.02",
        "--student_max_length", "128", "--disable_tqdm", "true",
    ]  # fmt: skip
    return read_recipe([RECOMMENDED, *data, *fixed, *keys])


@dataclass(frozen=True)
class Domain:
    """What everything that is trained or measured on a domain shares: its run, whose pairs are
    scored and ranked, and the task of its held-out pairs.
    """

    run: Run
    task: HeldOutTask

    @cached_property
    def teacher_embeddings(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the task's queries (Q, d) and documents (N, d), float32."""
        table = self.run.scores.embeddings
        assert table is not None
        queries, documents = self.task.query_numbers, self.task.document_numbers
        embeddings = table.of_queries(queries), table.of_documents(documents)
        return embeddings[0].astype(np.float32), embeddings[1].astype(np.float32)

    @cached_property
    def teacher_best(self) -> np.ndarray:
        """(Q, `TOP`) int64, the documents that the teacher ranks best."""
        return search(*self.teacher_embeddings, TOP)[1]

    def overlap(self, student: SentenceTransformer) -> tuple[float, ...]:
        """The share of `teacher_best` that the student ranks among its own best, for each query."""
        best = search(*embed_task(student, self.task), TOP)[1]
        rows = zip(best.tolist(), self.teacher_best.tolist(), strict=True)
        return tuple(len(set(own) & set(other)) / len(other) for own, other in rows)

    def reference(self) -> Reference:
        """What its students are compared with."""
        collection, task = self.run.collection, self.task
        bm25 = per_query(bm25_run(task.queries, task.documents), task.qrels, NDCG)["nDCG@10"]
        return Reference(
            teacher_score=self.run.scores.of(collection.rows("test")).astype(np.float64),
            teacher=task.ndcg(search(*self.teacher_embeddings, TOP)),
            bm25=bm25,
            leaks_removed=sum(collection.record.leaks_removed.values()),
            leaks_left=collection.record.leaks_left,
        )


def prepare_domain(name: str, setting: Setting) -> None:
    """Read, score, rank and select the domain's pairs, unless that is done."""
    for said in Run.open(recipe_of(name, setting)).stages():
        print(said, flush=True)


@functools.cache
def load_domain(name: str, setting: Setting) -> Domain:
    """The domain, which `prepare_domain` has made. Several processes may read it."""
    recipe = with_precision(recipe_of(name, setting))
    run = Run(recipe, RunFolder(recipe.run_dir))
    assert run.ranking is not None  # read here, so that all trials share it
    return Domain(run, held_out_task(run.collection))


def with_keys(domain: Domain, recipe: Recipe, folder: Path) -> Run:
    """A run of `recipe` on the domain, whose own stages are in `folder`.

    Raises:
        InputError: The objective needs what the teacher does not have.
    """
    run = domain.run.with_recipe(recipe)
    run.folder = RunFolder(folder)
    check_objective(run.recipe, run.teacher, run.rules)
    return run


class AbsentError(Exception):
    """A result is not there."""


@dataclass(frozen=True)
class Job:
    """One training: what a worker is given."""

    setting: Setting
    domain: str
    arm: Arm
    seed: int
    examples: int

    @property
    def kind(self) -> str:
        """Who trains. Arms of this project differ in their keys alone."""
        return self.arm.name if self.arm.loss or self.arm.name == UNTRAINED else "own"

    @property
    def folder(self) -> Path:
        """Where its result is kept."""
        kind = re.sub(r"[^A-Za-z0-9]+", "-", self.kind)
        keys = text_id(" ".join(self.arm.keys))[:8]
        name = f"{self.setting.name(self.domain)}-{kind}-{keys}-{self.examples}-{self.seed}"
        return self.setting.out / "results" / name

    def result(self, make: Callable[[Run, str], Trained]) -> Trained:
        """The result: read, or made from the run of this job and the result's key."""
        domains = {name: load_domain(name, self.setting) for name in DOMAINS}
        recipe = recipe_of(self.domain, self.setting, self.arm.keys)
        recipe = matched_recipe(recipe, self.examples, self.seed)
        run = with_keys(domains[self.domain], recipe, self.folder)
        scores = [domain.run.scores.key for domain in domains.values()]
        inputs = [FORM, self.domain, self.kind, scores, *run.training_inputs(run.selection)]
        result = stage(self.folder / "trained.json", Trained, inputs, lambda key: make(run, key))
        # An arm with the same keys may have had another name.
        return dataclasses.replace(result, arm=self.arm.name)

    def finished(self) -> Trained | None:
        """The result, if it is there."""

        def absent(*_: Any) -> Trained:
            raise AbsentError

        with contextlib.suppress(AbsentError):
            return self.result(absent)
        return None

    def train(self, run: Run, key: str) -> Trained:
        """Train and measure a student."""
        config = run.recipe.training
        examples = config.max_steps * config.train_batch_size
        with (
            tempfile.TemporaryDirectory() as temporary,
            contextlib.redirect_stdout(io.StringIO()),  # the Trainer's own summary
        ):
            if self.kind == UNTRAINED:
                student, seconds = run.untrained(), 0.0
            elif self.arm.loss:
                student, seconds = train_peer(self.arm, run, temporary)
            else:
                student, record = run.student_on(run.selection, Path(temporary), key)
                seconds, examples = record.seconds, record.examples
        shutil.rmtree(run.folder.pool, ignore_errors=True)  # its embeddings stay in teacher_cache
        own = load_domain(self.domain, self.setting)
        [other] = [load_domain(name, self.setting) for name in DOMAINS if name != self.domain]
        return Trained(
            key=key,
            domain=self.domain,
            arm=self.arm.name,
            seed=self.seed,
            pairs=len(run.selection.kept),
            examples=examples,
            training_seconds=round(seconds, 1),
            in_domain=measure(student, own.task),
            out_of_domain=measure(student, other.task),
            overlap=own.overlap(student),
        )


def train_peer(arm: Arm, run: Run, output_dir: str) -> tuple[SentenceTransformer, float]:
    """A student trained with a loss of sentence-transformers, and the seconds of the training
    alone.
    """
    assert arm.loss is not None
    assert arm.columns is not None
    assert run.teacher.backbone is not None
    student = run.untrained()
    if device_type() == "cpu":  # the same mathematics, and faster there: a peer at its best
        student[0].auto_model.set_attn_implementation("eager")
    rows = training_rows(run, run.selection, student)
    pairs = examples(list(rows.train), rows.lookup)
    components = torch.as_tensor(run.initialisation.components)
    teacher = copy.deepcopy(run.teacher.backbone)  # later jobs need it as it is
    trainer = SentenceTransformerTrainer(
        model=student,
        args=dataclasses.replace(run.recipe.training, output_dir=output_dir),
        train_dataset=Dataset.from_dict(arm.columns(pairs, components)),
        loss=arm.loss(student, teacher),
    )
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    return student.eval(), seconds


def write_conversations(files: Sequence[Path], out: Path) -> None:
    """The turns of all `files` as one, where `recipe_of` looks for them."""
    path = out / "qrecc.json"
    turns = [turn for file in files for turn in json.loads(file.read_text(encoding="utf-8"))]
    merged = json.dumps(turns)
    if not path.exists() or path.read_text(encoding="utf-8") != merged:
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(merged, encoding="utf-8")


def be_quiet() -> None:
    """Only results on the terminal."""
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    datasets.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def run_job(job: Job, threads: int) -> Trained:
    """Do a job in a worker of its own."""
    be_quiet()
    keep_freed_memory()  # peers, too, are faster with it
    torch.set_num_threads(threads)
    return job.result(job.train)


def run_jobs(jobs: Sequence[Job], workers: int) -> Iterator[Trained]:
    """The results of jobs as they come, `workers` at a time, which share the cores."""
    threads = max(1, cpu_cores() // workers)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(run_job, job, threads) for job in jobs]):
            yield future.result()


def _say(result: Trained, done: int, wanted: int, seconds: float) -> None:
    left = seconds / done * (wanted - done) / 60
    print(
        f"{done}/{wanted} {result.domain}, {result.arm}, seed {result.seed}: nDCG@10 "
        f"{np.mean(result.in_domain.ndcg):.3f} in-domain, "
        f"{np.mean(result.out_of_domain.ndcg):.3f} out-of-domain; "
        f"{result.training_seconds:.0f} s, about {left:.0f} min left",
        flush=True,
    )


def save_plot(figure: Any, path: Path) -> None:
    """As SVG and as PNG."""
    for suffix in (".svg", ".png"):
        figure.savefig(path.with_suffix(suffix), bbox_inches="tight", facecolor="white", dpi=150)


def data_options(description: str | None) -> argparse.ArgumentParser:
    """A parser of the options that `frontier.py` has, too."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--qrecc",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="QReCC JSON files: the conversations.",
    )
    parser.add_argument(
        "--examples",
        type=int,
        default=10_240,
        help="Pairs that each student sees. Default: 10,240.",
    )
    parser.add_argument(
        "--max_pairs", type=int, help="Pairs of each domain at most, to try the script out."
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/quality"),
        help="Folder of data and results, the same for quality.py and frontier.py.",
    )
    return parser


def _options() -> argparse.Namespace:
    parser = data_options(__doc__)
    parser.add_argument(
        "--domain", nargs="+", choices=DOMAINS, default=list(DOMAINS), help="Domains to train on."
    )
    parser.add_argument(
        "--arms",
        nargs="*",
        default=list(ARMS),
        metavar="NAME",
        help=f"Of: {', '.join(ARMS)}. Default: all.",
    )
    parser.add_argument(
        "--try", dest="tries", action="append", default=[], metavar='"NAME: KEY=VALUE ..."',
        help="A further arm: the recommended recipe with other keys. Once for each.",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=3, help="Students of each arm. Default: 3.")
    parser.add_argument(
        "--table",
        action="store_true",
        help="Train nothing: compare what is there. Arms may then differ in their seeds.",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=cpu_cores(),
        help="Trainings at a time. Default: one for each core.",
    )
    parser.add_argument(
        "--split",
        type=int,
        default=SPLIT,
        help=f"Draws other held-out pairs than those of {SPLIT}, the default.",
    )
    return parser.parse_args()


def main() -> None:
    """Train what is missing, compare, and print the tables."""
    line = _options()
    keep_freed_memory()  # a part of it is an environment variable, which the workers inherit
    be_quiet()
    if unknown := set(line.arms) - set(ARMS):
        raise InputError(
            f"--arms: unknown {', '.join(sorted(unknown))}; known are {', '.join(ARMS)}"
        )
    arms = [*(ARMS[name] for name in line.arms), *map(parse_try, line.tries)]
    out = line.out.resolve()
    write_conversations(line.qrecc, out)
    setting = Setting(out, line.max_pairs, line.split)
    for name in DOMAINS:
        prepare_domain(name, setting)
    jobs = [Job(setting, domain, Arm(UNTRAINED), 0, 0) for domain in line.domain]
    jobs += [
        Job(setting, domain, arm, seed, line.examples)
        for seed in range(line.seeds)
        for arm in arms
        for domain in line.domain
    ]
    finished = {job: job.finished() for job in jobs}
    results = [result for result in finished.values() if result]
    missing = [] if line.table else [job for job, result in finished.items() if not result]
    print(f"{len(results)} of {len(jobs)} trainings are there", flush=True)
    start = time.perf_counter()
    for done, result in enumerate(run_jobs(missing, line.jobs) if missing else [], 1):
        results.append(result)
        _say(result, done, len(missing), time.perf_counter() - start)
    if absent := sorted(set(line.domain) - {result.domain for result in results}):
        raise InputError(
            f"--table: {out} holds no training on {', '.join(absent)}; leave --table out once"
        )
    references = {name: load_domain(name, setting).reference() for name in DOMAINS}
    own = [arm.name for arm in arms if arm.own]
    content = compile_results(
        Results(results, references, own), line.domain, line.seeds, line.examples
    )
    write_json(out / "quality.json", content)
    text = markdown(content)
    (out / "quality.md").write_text(text, encoding="utf-8")
    save_plot(plot(content), out / "quality.svg")
    print(f"\n{text}\nWritten to {out}")
    print(json.dumps(content.summary))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(f"quality.py: error: {error}") from error
