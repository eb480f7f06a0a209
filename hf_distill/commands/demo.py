"""`hf-distill demo RUN`: teacher and student side by side, here or as a Space."""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from huggingface_hub import HfApi
from tqdm.auto import tqdm

from hf_distill.compute.device import use_all_cores
from hf_distill.compute.models import load_sentence_transformer
from hf_distill.errors import InputError
from hf_distill.finished_run import (
    FinishedRun,
    open_finished_run,
)
from hf_distill.release.cards import (
    hub_id,
    public_name,
)
from hf_distill.release.publish import (
    PublishingError,
    Release,
    Settings,
    publish,
)
from hf_distill.run.folder import (
    fingerprint,
    written_whole,
)
from hf_distill.serving import demo_app
from hf_distill.serving.demo_app import Side
from hf_distill.serving.index import (
    Corpus,
    build_index,
    corpus_of_run,
    find_index,
)
from hf_distill.teachers.base import similarity
from hf_distill.teachers.bi_encoder import BiEncoderTeacher, load_bi_encoder

HELP = "A small Gradio app over a run's documents: teacher and student side by side, with timings."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="Folder of a finished run.")
    parser.add_argument(
        "--push",
        metavar="OWNER/NAME",
        help="Publish the app as this Space instead of serving it here.",
    )
    parser.add_argument(
        "--model",
        metavar="OWNER/NAME",
        help="With --push: the published student. Default: the recipe's hub_model_id.",
    )
    parser.add_argument(
        "--private",
        action="store_true",
        help="With --push: only you see the Space. Default: the recipe's hub_private_repo.",
    )


def _documents(teacher: BiEncoderTeacher, corpus: Corpus, folder: Path) -> np.ndarray:
    """The teacher's embeddings (N, d) of the documents, float32, as it is scored by; kept in
    `folder`.
    """
    path = folder / f"{fingerprint(teacher.fingerprint, teacher.document_prompt, corpus.key)}.npy"
    if not path.is_file():
        with tqdm(
            total=len(corpus.texts),
            desc="The teacher embeds the corpus",
            unit=" documents",
            leave=False,
        ) as bar:

            def advance(texts: int, _: int) -> None:
                bar.update(texts)

            made = teacher.embed(
                [teacher.prompted(text, "document") for text in corpus.texts], advance
            )
        with written_whole(path) as temporary:
            np.save(temporary, made)
    embeddings: np.ndarray = np.load(path, mmap_mode="c")
    return embeddings


def _teacher_side(teacher: BiEncoderTeacher, corpus: Corpus, folder: Path) -> Side:
    def embed(question: str) -> np.ndarray:
        asked: np.ndarray = teacher.embed([teacher.prompted(question, "query")])[0]
        return asked

    def score(asked: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
        found: np.ndarray = similarity(
            teacher.scale.measure, torch.from_numpy(asked[None]), torch.from_numpy(embeddings)
        ).numpy()[0]
        return found

    return Side(
        f"teacher: {public_name(teacher.name)}", embed, _documents(teacher, corpus, folder), score
    )


def _student_side(run: FinishedRun, name: str, corpus: Corpus, folder: Path) -> tuple[Side, str]:
    """The student, and what stands before its queries."""
    model = load_sentence_transformer(str(run.folder.student), "student")
    prompt = model.prompts.get("query") or ""
    index = find_index(model, corpus.key, folder) or build_index(model, corpus, folder)

    def embed(question: str) -> np.ndarray:
        asked: np.ndarray = model.encode(question, prompt=prompt, show_progress_bar=False)
        return asked

    return Side(f"student: {name}", embed, index.embeddings), prompt


def _teacher_of(run: FinishedRun) -> BiEncoderTeacher | None:
    """The teacher as the recipe has it run; None if it embeds no questions here."""
    return (
        load_bi_encoder(run.recipe.teacher)
        if run.recipe.teacher.teacher_kind == "bi-encoder"
        else None
    )


def _title(run: FinishedRun) -> str:
    return f"{run.recipe.name}: teacher and student"


def local_demo(run: FinishedRun) -> tuple[str, list[Side], list[str], list[str]]:
    """What `demo_app.build` takes: both models as the run had them, with the teacher's pooling,
    length, prompts and similarity.
    """
    corpus, kept, teacher = corpus_of_run(run), run.folder.path / "search", _teacher_of(run)
    sides = [_teacher_side(teacher, corpus, kept)] if teacher else []
    return (
        _title(run),
        [*sides, _student_side(run, run.recipe.name, corpus, kept)[0]],
        corpus.ids,
        corpus.texts,
    )


def _check_space(run: FinishedRun, teacher: BiEncoderTeacher) -> None:
    """Raise InputError if a Space, which loads the teacher plainly and ranks by cosine, would show
    another than the run's.
    """
    arguments = run.recipe.teacher
    if not hub_id(teacher.name):
        raise InputError(f"the teacher {teacher.name} is a folder here, which a Space cannot load")
    changed = {
        "teacher_pooling": arguments.teacher_pooling,
        "teacher_max_length": arguments.teacher_max_length,
        "trust_remote_code": arguments.trust_remote_code,
        "teacher_similarity": None if teacher.scale.measure == "cosine" else teacher.scale.measure,
    }
    if said := ", ".join(f"{key} {value}" for key, value in changed.items() if value):
        raise InputError(
            f"the run's teacher was run with {said}; a Space loads it as it is on the Hub and ranks by cosine, so it would show another "
            "teacher. Leave --push out: the app served here runs it as the recipe says"
        )


def write_space(run: FinishedRun, folder: Path, student: str) -> None:
    """Write the app, its documents and their embeddings to `folder`.

    Args:
        run: Whose documents and models.
        folder: An empty folder.
        student: The published student.

    Raises:
        InputError: The teacher is not on the Hub, or was not run as it is there.
    """
    teacher = _teacher_of(run)
    if teacher:
        _check_space(run, teacher)
    corpus, kept = corpus_of_run(run), run.folder.path / "search"
    side, prompt = _student_side(run, student, corpus, kept)
    sides = {"student": (side, student, prompt)}
    if teacher:
        sides = {
            "teacher": (_teacher_side(teacher, corpus, kept), teacher.name, teacher.query_prompt),
            **sides,
        }
    for kind, (side, _, _) in sides.items():
        np.save(folder / f"{kind}.npy", side.embeddings.astype(np.float16))
    models = [
        {"name": side.name, "model": place, "prompt": prompt, "embeddings": f"{kind}.npy"}
        for kind, (side, place, prompt) in sides.items()
    ]
    pq.write_table(pa.table({"id": corpus.ids, "text": corpus.texts}), folder / "documents.parquet")
    title = _title(run)
    (folder / "demo.json").write_text(
        json.dumps({"title": title, "models": models}, indent=1), encoding="utf-8"
    )
    shutil.copyfile(demo_app.__file__, folder / "app.py")
    (folder / "requirements.txt").write_text(
        "sentence-transformers\npyarrow\nnumpy\n", encoding="utf-8"
    )
    card = {
        "title": title,
        "sdk": "gradio",
        "app_file": "app.py",
        "models": [entry["model"] for entry in models],
        "pinned": False,
    }
    (folder / "README.md").write_text(
        f"---\n{yaml.safe_dump(card, sort_keys=False)}---\n\n# {title}\n", encoding="utf-8"
    )


def run(arguments: argparse.Namespace) -> None:
    """Serve the app until it is stopped, or publish it.

    Raises:
        InputError: Gradio is missing; or, for a Space, the name of the published student.
    """
    if not arguments.push and importlib.util.find_spec("gradio") is None:
        raise InputError("gradio is not installed: pip install 'hf_distill[demo]'")
    finished = open_finished_run(arguments.run_dir)
    use_all_cores(1)
    if not arguments.push:
        demo_app.build(*local_demo(finished)).launch()
        return
    student = arguments.model or finished.recipe.training.hub_model_id
    if not student:
        raise InputError("a Space loads the published student: name it with --model you/student")
    private = arguments.private or finished.recipe.training.hub_private_repo or None
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_space(finished, folder, student)
        try:
            for line in publish(
                [Release(arguments.push, "space", folder)], Settings(private), HfApi()
            ):
                print(line)
        except PublishingError as error:
            sys.exit(f"hf-distill: error: {error}")
