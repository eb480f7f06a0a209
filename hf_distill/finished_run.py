"""What a finished run left, opened again: for everything that is done with it afterwards."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset

from hf_distill.data.collection import (
    PairData,
    Source,
)
from hf_distill.data.load import TABLES
from hf_distill.errors import InputError
from hf_distill.evaluation.evaluate import EVALUATION_FORM
from hf_distill.recipe.arguments import (
    Recipe,
    read_recipe,
)
from hf_distill.run.folder import (
    RunFolder,
    fingerprint,
    sha256_of,
)


@dataclass(frozen=True)
class FinishedRun:
    """A run that reached its evaluation. `recipe` holds the keys it was run with, and those it was
    opened with.
    """

    folder: RunFolder
    recipe: Recipe

    def _json(self, path: Path) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is damaged ({error}); run train.py again") from error
        return content

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        return self._json(self.folder.evaluation)

    @cached_property
    def training(self) -> dict[str, Any]:
        return self._json(self.folder.training)

    @cached_property
    def audit(self) -> dict[str, Any]:
        return self._json(self.folder.selection)

    @cached_property
    def data(self) -> PairData:
        """The pairs as they were split then, whatever has happened to their source."""
        manifest = self._json(self.folder.pairs / "manifest.json")
        tables = {
            name: Dataset.from_file(str(self.folder.pairs / f"{name}.arrow")) for name in TABLES
        }
        source = {
            **manifest["source"],
            **(
                {"license": self.recipe.data.dataset_license}
                if self.recipe.data.dataset_license
                else {}
            ),
        }
        return PairData(
            **tables,
            source=Source(**source),
            counts=manifest["counts"],
            key=manifest["fingerprint"],
        )


def open_finished_run(path: Path, *line: str) -> FinishedRun:
    """The run in the folder `path`, with further keys (`--key`, `value`, ...) over its recipe.

    Raises:
        InputError: No run, one that has not come to its end, or one whose stages do not belong
            together: a later call with other keys was stopped before its end.
    """
    folder = RunFolder(path)
    if not folder.recipe.is_file():
        raise InputError(
            f"{path} holds no recipe.yaml, so it is no run; a run is made by: accelerate launch train.py"
        )
    needed = (
        folder.pairs / "manifest.json",
        folder.student / "modules.json",
        folder.training,
        folder.selection,
        folder.evaluation,
    )
    missing = [str(p.relative_to(path)) for p in needed if not p.is_file()]
    if missing:
        raise InputError(
            f"the run in {path} is not finished: there is no {', '.join(missing)}; run train.py with its recipe again"
        )
    # What it was trained in is no wish for this machine, which may not know it.
    run = FinishedRun(
        folder, read_recipe([str(folder.recipe), "--bf16", "false", "--fp16", "false", *line])
    )
    _check_that_it_is_one(run)
    return run


def _check_that_it_is_one(run: FinishedRun) -> None:
    """Raise InputError unless the student was trained on what `selection.json` kept, and the
    evaluation is of it and of these pairs.
    """
    # Its recipe.yaml may be of a call with --until select.
    again = f"make the later stages again: accelerate launch train.py {run.folder.recipe} --run_dir {run.folder.path} --until release"
    trained, kept = run.training["pairs"], run.audit["kept"]
    if trained != kept:
        raise InputError(
            f"{run.folder.path}: its student was trained on {trained:,} pairs, and its selection.json keeps {kept:,}: they are of "
            f"different calls, and a card would describe another student than this; {again}"
        )
    if run.evaluation.get("fingerprint") != fingerprint(
        run.training.get("fingerprint"), run.data.key, EVALUATION_FORM
    ):
        raise InputError(
            f"{run.folder.evaluation} is not of this student and these pairs, or of an earlier version of hf_distill: its figures may be "
            f"another student's; {again}"
        )


def student_of(run_or_model: str) -> str:
    """The model that `run_or_model` names: the student of a run, or itself (a folder or a Hub
    id).
    """
    student = RunFolder(Path(run_or_model)).student
    return str(student) if student.is_dir() else run_or_model


def digest_of_model(folder: Path) -> str:
    """Sixteen hex digits over the names and contents of a model folder's configuration, tokenizer
    and weights.
    """
    files = sorted(
        p
        for p in folder.rglob("*")
        if p.suffix in {".json", ".safetensors", ".txt", ".model"} and p.is_file()
    )
    if not files:
        raise InputError(f"{folder} holds no model")
    return fingerprint([(p.relative_to(folder).as_posix(), sha256_of(p)) for p in files])
