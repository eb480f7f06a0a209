"""A query encoder and its teacher as one model: a Router of sentence-transformers, with the student
for queries and the teacher for documents. The teacher's weights are copied, so it is made only when
it is asked for (`hf-distill export RUN --format router`).
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from hf_distill.errors import InputError
from hf_distill.release.cards import PLACEHOLDER, hub_id, public_teacher, render
from hf_distill.release.verify import PROBES
from hf_distill.report.headline import verdict
from hf_distill.report.results import RunResults
from hf_distill.run.folder import RunFolder
from hf_distill.run.stage import folder_written_whole, listed, stage
from hf_distill.student.save import save_router
from hf_distill.teachers.base import EmbeddingTeacher
from hf_distill.teachers.load import load_teacher

TOLERANCE = 1e-5
"""Largest difference of an embedding from the student's, or the teacher's."""

_SCRIPT = Path(__file__).with_name("read_router.py")


@dataclass(frozen=True)
class RouterRecord:
    """The content of `router.json`.

    Attributes:
        key: The fingerprint of what it depends on.
        training: The key of the training that made the student.
        megabytes: Size of its files.
        difference: The largest difference of an embedding of some texts, loaded in a fresh process,
            from the student's (queries) or the teacher's (documents).
    """

    key: str
    training: str
    megabytes: float
    difference: float


def export_router(results: RunResults) -> RouterRecord:
    """Write `router/` into the run's folder, with a card, and load it back in a fresh process. A
    stage: `router.json`.

    Raises:
        InputError: The run's student is no query encoder, its teacher has no model here or needs
            code from its repository, or the router does not embed as the two models do; then
            nothing is written.
    """
    _check(results)
    folder = results.folder

    def make(key: str) -> RouterRecord:
        teacher_arguments = dataclasses.replace(results.recipe.teacher, teacher_dtype="float32")
        teacher = load_teacher(dataclasses.replace(results.recipe, teacher=teacher_arguments))
        if teacher.backbone is None or not isinstance(teacher, EmbeddingTeacher):
            raise InputError(
                f"--format router: the teacher {teacher.name} has no model on this machine that "
                "could be copied; load the student for queries, and ask the teacher as before"
            )
        student = SentenceTransformer(str(folder.student), device="cpu")
        with folder_written_whole(folder.router, listed(folder.router_record)) as new:
            save_router(student, teacher.backbone.to("cpu"), new)
            difference = _difference(new, student, teacher)
            (new / "README.md").write_text(_card(results), encoding="utf-8")
            size = sum(file.stat().st_size for file in new.rglob("*") if file.is_file())
        return RouterRecord(key, results.training.key, round(size / 1e6, 1), difference)

    inputs = [results.training.key, results.evaluation.key, results.soft_labels.teacher_identity]
    return stage(folder.router_record, RouterRecord, inputs, make, [folder.router])


def remove_router(folder: RunFolder) -> None:
    """Remove the router of an earlier student; what others put into its folder stays."""
    for file in listed(folder.router_record) or ():
        file.unlink(missing_ok=True)
    folder.router_record.unlink(missing_ok=True)


def _check(results: RunResults) -> None:
    recipe = results.recipe
    if recipe.training.student_space != "teacher":
        raise InputError(
            f"--format router: the student of {results.folder.path} has a space of its own, so its "
            "queries do not find what the teacher embedded; train one with --student_space "
            "teacher (the recipe query_encoder)"
        )
    if recipe.teacher.trust_remote_code:
        raise InputError(
            f"--format router: the teacher {recipe.teacher.teacher} runs code from its repository, "
            "which a router would need wherever it is loaded; load the student for queries, and "
            "the teacher for documents"
        )


def _difference(folder: Path, student: SentenceTransformer, teacher: EmbeddingTeacher) -> float:
    """How far the embeddings of `PROBES` by the router in `folder`, in a fresh process, are from
    those of the two models.

    Raises:
        InputError: It cannot be loaded, or the difference is above `TOLERANCE`.
    """
    done = subprocess.run(
        [sys.executable, "-P", str(_SCRIPT)],
        input=json.dumps({"folder": str(folder.resolve()), "probes": PROBES}),
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    without = "nothing was written; load student and teacher as two models"
    if done.returncode:
        says = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(
            f"--format router: a router with the teacher {teacher.name} cannot be loaded again "
            f"({says}); {without}"
        )
    loaded = json.loads(done.stdout.splitlines()[-1])
    expected = {
        "query": student.encode_query(list(PROBES), show_progress_bar=False),
        "document": teacher.embed_as("document", list(PROBES)),
    }
    difference = max(
        float(np.abs(np.array(loaded[kind], dtype=np.float32) - own).max())
        for kind, own in expected.items()
    )
    if not difference <= TOLERANCE:
        raise InputError(
            f"--format router: loaded again, a router with the teacher {teacher.name} embeds other "
            f"than student and teacher do (by up to {difference:.2g}); {without}"
        )
    return difference


def _card(results: RunResults) -> str:
    recipe, evaluation = results.recipe, results.evaluation
    return render(
        "router_card.md.j2",
        title=f"{recipe.name}: router",
        teacher_name=public_teacher(recipe.teacher),
        teacher=hub_id(recipe.teacher.teacher) or PLACEHOLDER,
        student=recipe.training.hub_model_id or PLACEHOLDER,
        verdict=verdict(evaluation),
        retrieval=evaluation.retrieval,
        source=results.collection.source,
        license=recipe.run.student_license,
    )
