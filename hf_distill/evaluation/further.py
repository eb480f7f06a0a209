"""Further tasks, out of domain: the test set of `test_path`, and those of `eval_tasks`."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
from datasets import Dataset

from hf_distill.data.collection import Collection, Split, text_number
from hf_distill.data.load import read_test_set
from hf_distill.data.near_duplicates import text_key
from hf_distill.errors import InputError
from hf_distill.evaluation.mixed_index import Embedded
from hf_distill.evaluation.tasks import RetrievalTask, load_task, task_of
from hf_distill.recipe.arguments import DataArguments, Recipe
from hf_distill.scoring.embeddings import embed_texts
from hf_distill.teachers.base import EmbeddingTeacher, Teacher

T = TypeVar("T")

Tasks = Mapping[str, tuple[str, RetrievalTask]]
"""Name -> what the recipe calls a further task, and the task."""

_PACKAGE = ("mteb:", "nano:")
_ALIKE = "its queries have no other form for the student, which reads what the teacher reads"


def check_tasks(data: DataArguments) -> None:
    """Refuse what cannot be there, before anything is read.

    Raises:
        InputError: `test_path` or a path of `eval_tasks` does not exist, a task is named twice,
            or `mteb` is not installed.
    """
    if data.test_path and not Path(data.test_path).exists():
        raise InputError(
            f"--test_path {data.test_path}: there is no such file or folder; name your test set, "
            "or leave it out"
        )
    for text in data.eval_tasks:
        if data.eval_tasks.count(text) > 1:
            raise InputError(f"--eval_tasks {text} is named twice; name each task once")
        if not text.startswith(_PACKAGE) and not Path(text).exists():
            raise InputError(
                f"--eval_tasks {text}: there is no such file or folder; name a BEIR folder, "
                "mteb:NAME or nano:NAME (e.g. nano:SciFact)"
            )
        if text.startswith(_PACKAGE) and importlib.util.find_spec("mteb") is None:
            raise InputError(
                f"--eval_tasks {text} needs the package mteb; pip install 'hf_distill[mteb]'"
            )


def task_names(data: DataArguments) -> dict[str, str]:
    """Name -> what the recipe calls it, for every further task: `nano:` and `mteb:` as they are,
    the last part of a path otherwise. Where two would have the same name, or the same folder, the
    later ones get a number.
    """
    names: dict[str, str] = {}
    folders: set[str] = set()
    for text in [*([data.test_path] if data.test_path else []), *data.eval_tasks]:
        name = text if text.startswith(_PACKAGE) else Path(text).resolve().name.split(".")[0]
        number = 1
        while (unique := name if number == 1 else f"{name} {number}") in names or (
            folder_name(unique) in folders
        ):
            number += 1
        names[unique] = text
        folders.add(folder_name(unique))
    return names


def folder_name(task: str) -> str:
    """The name of the folder with the TREC files of a task."""
    return re.sub(r"[^\w-]+", "-", task.lower()).strip("-") or "task"


def load_tasks(recipe: Recipe) -> Tasks:
    """Every further task of the recipe.

    Raises:
        InputError: As `check_tasks`; a task cannot be read, or has nothing to measure.
    """
    data = recipe.data
    check_tasks(data)
    tasks = {}
    for name, text in task_names(data).items():
        key = "test_path" if text == data.test_path else "eval_tasks"
        try:
            task = (
                _test_set(recipe, text)
                if key == "test_path"
                else load_task(text, key, data.student_query)
            )
            if data.student_query and task.student_queries is None:
                task = replace(task, notes=(*task.notes, _ALIKE))
            tasks[name] = (text, replace(_with_ids_of_one_word(task), name=name))
        except InputError as error:
            if str(error).startswith(f"--{key}"):
                raise
            raise InputError(f"--{key} {text}: {error}") from error
    return tasks


def _test_set(recipe: Recipe, text: str) -> RetrievalTask:
    recipe.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=recipe.cache) as cache:
        pairs = read_test_set(text, recipe.data, Path(cache))
        task = task_of(pairs, Path(text).name)
    notes = (f"read as {pairs.read_as}",) if pairs.read_as else ()
    return replace(task, notes=(*notes, *task.notes))


def _with_ids_of_one_word(task: RetrievalTask) -> RetrievalTask:
    """`task` with `_` for white space in ids, which TREC files cannot hold.

    Raises:
        InputError: Two ids are then the same.
    """

    def renamed(texts: Mapping[str, T]) -> dict[str, T]:
        result: dict[str, T] = {}
        for key, text in texts.items():
            name = re.sub(r"\s", "_", key) or "_"
            if name in result:
                raise InputError(
                    f"{task.name}: two ids become {name!r}, because a TREC file holds no white "
                    f"space; one is {key!r}: give it another id"
                )
            result[name] = text
        return result

    documents = dict(sorted(renamed(task.documents).items()))
    qrels = {query: renamed(grades) for query, grades in renamed(task.qrels).items()}
    own = None if task.student_queries is None else renamed(task.student_queries)
    return replace(
        task,
        queries=renamed(task.queries),
        documents=documents,
        qrels=qrels,
        student_queries=own,
    )


def digest(task: RetrievalTask) -> str:
    """A fingerprint of texts and judgements."""
    sha = hashlib.sha256()
    for part in (task.queries, task.documents, task.qrels, task.student_queries or {}):
        for key, value in part.items():
            sha.update(json.dumps([key, value]).encode())
    return sha.hexdigest()[:16]


def embed_by_teacher(task: RetrievalTask, teacher: Teacher, shards: Path | None) -> Embedded | None:
    """The teacher's embeddings of the task's queries (Q, d) and documents (N, d), float16; None if
    it embeds no texts that it was not given. What `shards` holds is not embedded again; all
    processes share the work.
    """
    if not teacher.embeds_new_texts or shards is None:
        return None
    queries, documents = list(task.queries.values()), list(task.documents.values())
    kinds = ["query"] * len(queries) + ["document"] * len(documents)
    texts = Dataset.from_dict({"text": queries + documents, "kind": kinds})
    vectors = embed_texts(texts, cast(EmbeddingTeacher, teacher), shards)
    return vectors[: len(queries)], vectors[len(queries) :]


def with_shared_texts(tasks: Tasks, collection: Collection) -> Tasks:
    """`tasks`, each with a note of how many of its texts the training pairs hold, too, but for
    case, punctuation and spacing.
    """
    if not tasks:
        return {}
    pairs = [collection.pairs("train"), collection.pairs("validation")]
    queries = np.unique(np.concatenate([part.queries for part in pairs]))
    documents = np.unique(np.concatenate([part.documents for part in pairs]))
    trained_queries = _keys(collection.query_texts(queries))
    trained_documents = _keys(collection.document_texts(documents))
    trained_on = "texts of the training pairs"
    if collection.record.texts is not None:
        splits: tuple[Split, ...] = ("train", "validation")
        alone = np.concatenate([collection.text_numbers(split) for split in splits])
        trained_on = "training texts"
        trained_queries = trained_documents = np.concatenate(
            [_keys(collection.teacher_texts(alone)), _keys(collection.student_texts(alone))]
        )

    def noted(task: RetrievalTask) -> RetrievalTask:
        shared_queries = int(np.isin(_keys(task.queries.values()), trained_queries).sum())
        shared_documents = int(np.isin(_keys(task.documents.values()), trained_documents).sum())
        if not shared_queries + shared_documents:
            return task
        note = (
            f"{shared_queries:,} of its {len(task.queries):,} queries and {shared_documents:,} of "
            f"its {len(task.documents):,} documents are {trained_on}, too"
        )
        return replace(task, notes=(*task.notes, note))

    return {name: (named, noted(task)) for name, (named, task) in tasks.items()}


def _keys(texts: Iterable[str]) -> np.ndarray:
    return np.fromiter((text_number(text_key(text)) for text in texts), dtype=np.uint64)


@dataclass(frozen=True)
class FurtherTasks:
    """What is known of the further tasks before anything is scored.

    Attributes:
        digests: Name -> fingerprint.
        summary: What they are, for a terminal. Empty if there are none.
    """

    digests: Mapping[str, str]
    summary: str

    @classmethod
    def of(cls, tasks: Tasks) -> FurtherTasks:
        """Of `tasks`, which need not stay in memory."""
        lines = []
        for name, (_, task) in tasks.items():
            lines.append(
                f"{name}: {len(task.queries):,} queries, {len(task.documents):,} documents"
            )
            lines += [f"  {note}" for note in task.notes]
        summary = "Tasks    " + "\n         ".join(lines) if lines else ""
        return cls({name: digest(task) for name, (_, task) in tasks.items()}, summary)
