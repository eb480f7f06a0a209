"""Teacher and student of a run side by side: as an app on this machine, or as a Space."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from hf_distill.compute.encode import Advance
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import CONVERSATION, Recipe, TeacherArguments
from hf_distill.release.cards import hub_id, public_name
from hf_distill.report.results import RunResults
from hf_distill.run.folder import RunFolder
from hf_distill.serving import demo_app
from hf_distill.serving.demo_app import Side
from hf_distill.serving.index import Corpus, corpus_of_run, embedded, index_of_run, load_student
from hf_distill.teachers.base import EmbeddingTeacher, similarity
from hf_distill.teachers.load import load_teacher


def _teacher_of(recipe: Recipe) -> EmbeddingTeacher | None:
    """The run's teacher; None if it is not a model that embeds questions on this machine. (An
    endpoint would have to embed all documents a second time.)
    """
    if recipe.teacher.teacher_kind != "bi-encoder":
        return None
    return cast(EmbeddingTeacher, load_teacher(recipe))


def _teacher_side(teacher: EmbeddingTeacher, corpus: Corpus, folder: RunFolder) -> Side:
    """The teacher as the run uses it, with its prompts and its similarity."""

    def embed_documents(texts: list[str], advance: Advance) -> np.ndarray:
        return teacher.embed_as("document", texts, advance)

    def embed(question: str) -> np.ndarray:
        query: np.ndarray = teacher.embed_as("query", [question])[0]
        return query

    def score(query: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
        scores = similarity(
            teacher.scale.similarity, torch.from_numpy(query[None]), torch.from_numpy(embeddings)
        )
        row: np.ndarray = scores.numpy()[0]
        return row

    identity = [teacher.identity, teacher.prompts.document]
    embeddings = embedded(corpus, identity, embed_documents, folder.search / "teacher")
    return Side(f"teacher: {public_name(teacher.name)}", embed, embeddings, score)


def _student_side(name: str, results: RunResults) -> tuple[Side, str]:
    """The student, and the prompt of its queries."""
    model = load_student(str(results.folder.path))
    prompt = model.prompts.get("query") or ""
    index = index_of_run(results, model)

    def embed(question: str) -> np.ndarray:
        query: np.ndarray = model.encode(question, prompt=prompt, show_progress_bar=False)
        return query

    conversation = results.recipe.data.student_query == CONVERSATION
    side = Side(f"student: {name}", embed, index.embeddings, conversation=conversation)
    return side, prompt


def _title(recipe: Recipe) -> str:
    return f"{recipe.name}: teacher and student"


def local_demo(results: RunResults) -> tuple[str, list[Side], list[str], list[str]]:
    """The arguments of `demo_app.build`: both models as the run uses them, with the teacher's
    pooling, length, prompts and similarity.
    """
    recipe, folder = results.recipe, results.folder
    corpus, teacher = corpus_of_run(results.collection), _teacher_of(recipe)
    sides = [_teacher_side(teacher, corpus, folder)] if teacher else []
    student, _ = _student_side(recipe.name, results)
    return _title(recipe), [*sides, student], corpus.ids, corpus.texts


def _check_space(arguments: TeacherArguments, teacher: EmbeddingTeacher) -> None:
    """Raise InputError unless a Space would show the run's teacher: it loads the teacher without
    the recipe's settings and ranks by cosine.
    """
    if not hub_id(teacher.name):
        raise InputError(
            f"--push: the teacher {teacher.name} is a local folder, which a Space cannot load; "
            "without --push the app runs on this machine"
        )
    measure = teacher.scale.similarity
    changed = {
        "teacher_pooling": arguments.teacher_pooling,
        "teacher_max_length": arguments.teacher_max_length,
        "trust_remote_code": arguments.trust_remote_code,
        "teacher_similarity": None if measure == "cosine" else measure,
    }
    if differences := ", ".join(f"{key} {value}" for key, value in changed.items() if value):
        raise InputError(
            f"--push: the run uses its teacher with {differences}. A Space loads it as it is on "
            "the Hub and ranks by cosine, so it would show another teacher; without --push the app "
            "runs on this machine as the recipe says"
        )


def write_space(results: RunResults, folder: Path, student: str) -> None:
    """Write the app, its documents and their embeddings.

    Args:
        results: The run whose documents and models are shown.
        folder: An empty folder.
        student: The published student, as OWNER/NAME.

    Raises:
        InputError: The teacher is not on the Hub, or the run uses it with other settings.
    """
    recipe = results.recipe
    teacher = _teacher_of(recipe)
    if teacher:
        _check_space(recipe.teacher, teacher)
    corpus = corpus_of_run(results.collection)
    side, prompt = _student_side(student, results)
    sides = {"student": (side, student, prompt)}
    if teacher:
        side = _teacher_side(teacher, corpus, results.folder)
        sides = {"teacher": (side, teacher.name, teacher.prompts.query), **sides}
    for kind, (side, _, _) in sides.items():
        np.save(folder / f"{kind}.npy", side.embeddings.astype(np.float16))
    models = [
        {
            "name": side.name,
            "model": place,
            "prompt": prompt,
            "embeddings": f"{kind}.npy",
            "conversation": side.conversation,
        }
        for kind, (side, place, prompt) in sides.items()
    ]
    pq.write_table(pa.table({"id": corpus.ids, "text": corpus.texts}), folder / "documents.parquet")
    title = _title(recipe)
    settings = json.dumps({"title": title, "models": models}, indent=1)
    (folder / "demo.json").write_text(settings, encoding="utf-8")
    shutil.copyfile(demo_app.__file__, folder / "app.py")
    requirements = "sentence-transformers\npyarrow\nnumpy\n"
    (folder / "requirements.txt").write_text(requirements, encoding="utf-8")
    card = {
        "title": title,
        "sdk": "gradio",
        "app_file": "app.py",
        "models": [entry["model"] for entry in models],
        "pinned": False,
    }
    front = yaml.safe_dump(card, sort_keys=False)
    (folder / "README.md").write_text(f"---\n{front}---\n\n# {title}\n", encoding="utf-8")
