"""What `quality.py` and `frontier.py` train and measure on: domains, and further tasks."""

from __future__ import annotations

import argparse
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from quality_arms import RECOMMENDED
from quality_table import Reference
from sentence_transformers import SentenceTransformer

from hf_distill.compute.search import search
from hf_distill.data.collection import text_id
from hf_distill.errors import InputError
from hf_distill.evaluation.bm25 import bm25_run
from hf_distill.evaluation.evaluate import embed_task
from hf_distill.evaluation.retrieval import NDCG, per_query
from hf_distill.evaluation.tasks import HeldOutTask, RetrievalTask, held_out_task, load_task
from hf_distill.pipeline import Run
from hf_distill.recipe.arguments import Recipe
from hf_distill.recipe.read import read_recipe
from hf_distill.run.folder import RunFolder
from hf_distill.run.stage import fingerprint
from hf_distill.training.hardware import with_precision
from hf_distill.training.train import check_objective

PYDOCS = "pydocs"
SPLIT = 42
TOP = 10
TEACHER = "sentence-transformers/all-MiniLM-L6-v2"


def parse_domain(text: str) -> tuple[str, str | None]:
    """`pydocs`, or `NAME=PATH` with any data that the project reads: its name, and its path.

    Raises:
        InputError: Another form, or no such path.
    """
    name, equals, path = text.partition("=")
    if text == PYDOCS:
        return PYDOCS, None
    if not equals or not re.fullmatch(r"[\w.-]+", name):
        raise InputError(
            f"--domain {text}: it must read {PYDOCS}, or NAME=PATH with a name of letters, digits, "
            "- and _"
        )
    if not Path(path).exists():
        raise InputError(f"--domain {text}: there is no such file or folder; name your data")
    return name, str(Path(path).resolve())


@dataclass(frozen=True)
class Setting:
    """What is trained and measured on.

    Attributes:
        out: Folder of data and results.
        domains: Name and path of each domain; None: the Python documentation installed here.
        tasks: Folders of further tasks, which nothing is trained on.
        teacher: The teacher.
        student: Further keys of the recipe that every student has, as a command line.
        max_pairs: Of each domain, at most; None: all.
        split: Draws the held-out pairs.
    """

    out: Path
    domains: tuple[tuple[str, str | None], ...] = ((PYDOCS, None),)
    tasks: tuple[str, ...] = ()
    teacher: str = TEACHER
    student: tuple[str, ...] = ()
    max_pairs: int | None = None
    split: int = SPLIT

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the domains."""
        return tuple(name for name, _ in self.domains)

    def folder(self, domain: str) -> Path:
        """The folder of a domain."""
        of = fingerprint(self.teacher, self.student, self.max_pairs, self.split)[:6]
        return self.out / f"{domain}-{of}"


def recipe_of(domain: str, setting: Setting, keys: Sequence[str] = ()) -> Recipe:
    """The recommended recipe on a domain, with other `keys`."""
    path = dict(setting.domains)[domain]
    data = ["--dataset", PYDOCS] if path is None else ["--dataset_path", path]
    fixed = [
        "--max_pairs", str(setting.max_pairs or "none"), "--seed", str(setting.split),
        "--run_dir", str(setting.folder(domain)), "--until", "select",
        "--teacher", setting.teacher, "--teacher_cache", str(setting.out / "teacher"),
        "--test_fraction", "0.2", "--validation_fraction", "0.02",
        "--student_max_length", "128", "--disable_tqdm", "true", *setting.student,
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

    @cached_property
    def trained_texts(self) -> frozenset[str]:
        """The `text_id`s of all training texts."""
        collection = self.run.collection
        pairs = collection.pairs("train")
        texts = [
            *collection.query_texts(np.unique(pairs.queries)),
            *collection.document_texts(np.unique(pairs.documents)),
        ]
        return frozenset(map(text_id, texts))

    def reference(self) -> Reference:
        """What its students are compared with on its held-out pairs."""
        collection, task = self.run.collection, self.task
        return Reference(
            teacher_score=self.run.scores.of(collection.rows("test")).astype(np.float64),
            teacher=task.ndcg(search(*self.teacher_embeddings, TOP)),
            bm25=bm25_ndcg(task),
            leaks_removed=sum(collection.record.leaks_removed.values()),
            leaks_left=collection.record.leaks_left,
        )


def bm25_ndcg(task: RetrievalTask) -> np.ndarray:
    """nDCG@10 (Q,) of BM25 on a task."""
    return per_query(bm25_run(task.queries, task.documents), task.qrels, NDCG)["nDCG@10"]


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


@functools.cache
def load_further(path: str) -> RetrievalTask:
    """A further task."""
    return load_task(path, "tasks")


def with_keys(domain: Domain, recipe: Recipe, folder: Path) -> Run:
    """A run of `recipe` on the domain, whose own stages are in `folder`.

    Raises:
        InputError: The objective needs what the teacher does not have.
    """
    run = domain.run.with_recipe(recipe)
    run.folder = RunFolder(folder)
    check_objective(run.recipe, run.teacher, run.rules)
    return run


def data_options(description: str | None) -> argparse.ArgumentParser:
    """A parser of the options that say what is trained and measured on."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--domain", nargs="+", required=True, metavar="NAME=PATH",
        help=f"Domains to train on: {PYDOCS} (the Python documentation installed here), or any "
        "data that the project reads, under a name.",
    )  # fmt: skip
    parser.add_argument(
        "--max_pairs", type=int, default=10_000,
        help="Pairs of each domain at most. Default: 10,000.",
    )  # fmt: skip
    parser.add_argument(
        "--teacher", default=TEACHER, help=f"A folder or a Hub id. Default: {TEACHER}."
    )
    parser.add_argument(
        "--student", default="", metavar='"KEY=VALUE ..."',
        help="Keys of the recipe that every student has, e.g. another start.",
    )  # fmt: skip
    parser.add_argument(
        "--split", type=int, default=SPLIT,
        help=f"Draws other held-out pairs than those of {SPLIT}, the default.",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path("runs/quality"), help="Folder of data and results."
    )
    return parser


def setting_of(line: argparse.Namespace, tasks: Sequence[Path] = ()) -> Setting:
    """The setting that the command line names.

    Raises:
        InputError: A domain or a task is not there, two have the same name, or a key has another
            form.
    """
    domains = tuple(map(parse_domain, line.domain))
    names = [name for name, _ in domains] + [path.name for path in tasks]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise InputError(
            f"--domain, --tasks: {twice[0]} is the name of two of them, and results are kept by "
            "name; rename one"
        )
    keys = [key.partition("=") for key in line.student.split()]
    if not all(equals for _, equals, _ in keys):
        raise InputError(f'--student {line.student!r}: expected "KEY=VALUE ..."')
    return Setting(
        out=line.out.resolve(),
        domains=domains,
        tasks=tuple(str(path.resolve()) for path in tasks),
        teacher=str(Path(line.teacher).resolve()) if Path(line.teacher).exists() else line.teacher,
        student=tuple(part for key, _, value in keys for part in (f"--{key}", value)),
        max_pairs=line.max_pairs,
        split=line.split,
    )
