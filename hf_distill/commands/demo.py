"""`hf-distill demo RUN`: teacher and student side by side, here or as a Space."""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from huggingface_hub import HfApi
from sentence_transformers import SentenceTransformer

from hf_distill import demo_app
from hf_distill.cards import hub_id, public_name
from hf_distill.corpus_index import Corpus, Index, build_index, corpus_of_run, find_index
from hf_distill.errors import InputError
from hf_distill.finished_run import FinishedRun, open_finished_run
from hf_distill.hardware import use_all_cores
from hf_distill.publishing import PublishingError, Release, Settings, publish
from hf_distill.teachers.locate import load_sentence_transformer, locate_model

HELP = "A small Gradio app over a run's documents: teacher and student side by side, with timings."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="Folder of a finished run.")
    parser.add_argument("--push", metavar="OWNER/NAME", help="Publish the app as this Space instead of serving it here.")
    parser.add_argument("--model", metavar="OWNER/NAME", help="With --push: the published student. Default: the recipe's hub_model_id.")
    parser.add_argument(
        "--private", action="store_true", help="With --push: only you see the Space. Default: the recipe's hub_private_repo."
    )


def _side(kind: str, name: str, place: str, index: Index, folder: Path) -> dict[str, str]:
    """Write the embeddings of one model, and say how the app loads it."""
    np.save(folder / f"{kind}.npy", index.embeddings.astype(np.float16))
    prompt = index.model.prompts.get("query") or ""
    return {"name": f"{kind}: {name}", "model": place, "prompt": prompt, "embeddings": f"{kind}.npy"}


def write_demo(run: FinishedRun, folder: Path, student: str | None) -> None:
    """Write the app, its documents and their embeddings to `folder`.

    Args:
        run: Whose documents and models.
        folder: An empty folder.
        student: The published student, for a Space; None: both models are loaded from where they are here.

    Raises:
        InputError: A Space needs a teacher that the Hub has.
    """
    teacher_name = run.recipe.teacher.teacher
    models: list[dict[str, str]] = []
    corpus: Corpus = corpus_of_run(run)
    indices = run.folder.path / "search"
    if run.recipe.teacher.teacher_kind == "bi-encoder":
        if student and not hub_id(teacher_name):
            raise InputError(f"the teacher {teacher_name} is a folder here, which a Space cannot load")
        teacher: SentenceTransformer = load_sentence_transformer(teacher_name, "teacher")
        own = SentenceTransformer(str(run.folder.student), device="cpu").prompts
        teacher.prompts = dict(own)  # what both were used with
        found = find_index(teacher, corpus.key, indices) or build_index(teacher, corpus, indices)
        place = teacher_name if student else locate_model(teacher_name, "teacher")
        models.append(_side("teacher", public_name(teacher_name), place, found, folder))
    model = load_sentence_transformer(str(run.folder.student), "student")
    found = find_index(model, corpus.key, indices) or build_index(model, corpus, indices)
    models.append(_side("student", student or run.recipe.name, student or str(run.folder.student.resolve()), found, folder))
    pq.write_table(pa.table({"id": found.ids, "text": found.texts}), folder / "documents.parquet")
    title = f"{run.recipe.name}: teacher and student"
    (folder / "demo.json").write_text(json.dumps({"title": title, "models": models}, indent=1), encoding="utf-8")
    shutil.copyfile(demo_app.__file__, folder / "app.py")
    if student:
        (folder / "requirements.txt").write_text("sentence-transformers\npyarrow\nnumpy\n", encoding="utf-8")
        card = {"title": title, "sdk": "gradio", "app_file": "app.py", "models": [entry["model"] for entry in models], "pinned": False}
        (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card, sort_keys=False)}---\n\n# {title}\n", encoding="utf-8")


def run(arguments: argparse.Namespace) -> None:
    """Serve the app until it is stopped, or publish it.

    Raises:
        InputError: Gradio is missing; or, for a Space, the name of the published student.
    """
    if not arguments.push and importlib.util.find_spec("gradio") is None:
        raise InputError("gradio is not installed: pip install 'hf_distill[demo]'")
    finished = open_finished_run(arguments.run_dir)
    student = (arguments.model or finished.recipe.training.hub_model_id) if arguments.push else None
    if arguments.push and not student:
        raise InputError("a Space loads the published student: name it with --model you/student")
    use_all_cores(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_demo(finished, folder, student)
        if not arguments.push:
            sys.exit(subprocess.run([sys.executable, str(folder / "app.py")], check=False).returncode)
        private = arguments.private or finished.recipe.training.hub_private_repo or None
        try:
            for line in publish([Release(arguments.push, "space", folder)], Settings(private), HfApi()):
                print(line)
        except PublishingError as error:
            sys.exit(f"hf-distill: error: {error}")
