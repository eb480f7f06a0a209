"""The folder of a run: where each artefact lies, when it may be reused, and how a file is written
whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState

from hf_distill.compute.device import describe_environment
from hf_distill.errors import InputError
from hf_distill.recipe.arguments import (
    ENVIRONMENT_KEY,
    Recipe,
)

IDENTITY = (
    "dataset", "dataset_path", "dataset_name", "dataset_config", "dataset_split", "teacher", "teacher_kind", "ensemble", "teacher_url",
    "student_backbone",
)  # fmt: skip
"""Keys that make a run what it is: with another value, the folder belongs to another run. (Any
other key may change: the stages that depend on it are then made again.)"""


def fingerprint(*parts: Any) -> str:
    """Sixteen hex digits over the JSON of `parts`: equal inputs, equal fingerprint, in any
    process.
    """
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it, on an
    exception remove it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def main_makes(
    path: Path, make: Callable[[], None], holds: Callable[[Path], bool] = Path.is_file
) -> None:
    """Let the main process `make` the file at `path` if it is missing (or `holds` not what it
    should); the others look until it is there.

    A barrier would end the run after `ddp_timeout` (30 minutes by default). If the main process
    fails, the launcher ends the others.
    """
    while not holds(path):
        if PartialState().is_main_process:
            make()
        else:
            time.sleep(0.3)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented UTF-8 JSON, whole or not at all. NaN and infinities raise
    ValueError.
    """
    with written_whole(path) as temporary:
        temporary.write_text(
            json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
            encoding="utf-8",
        )


def read_json_if_current(path: Path, key: str) -> dict[str, Any] | None:
    """The JSON object at `path` if it is there and its `fingerprint` is `key`, else None: its stage
    has to run.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(
            f"{path} is damaged ({error}); remove it and run again, and it is made anew"
        ) from error
    return content if isinstance(content, dict) and content.get("fingerprint") == key else None


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run's artefacts, all below `path`."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def cache(self) -> Path:
        """Working files of `datasets`; safe to remove."""
        return self.path / "cache"

    @property
    def pairs(self) -> Path:
        return self.path / "pairs"

    @property
    def soft_labels(self) -> Path:
        return self.path / "soft_labels"

    @property
    def soft_labels_json(self) -> Path:
        return self.path / "teacher_soft_labels.json"

    @property
    def selection(self) -> Path:
        return self.path / "selection.json"

    @property
    def dataset(self) -> Path:
        return self.path / "dataset"

    @property
    def training(self) -> Path:
        return self.path / "training.json"

    @property
    def layer_search(self) -> Path:
        return self.path / "layer_search.json"

    @property
    def student(self) -> Path:
        return self.path / "student_model_sd"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def retrieval(self) -> Path:
        """The systems' TREC runs, `<system>.run`, and `qrels.txt`, for the command line of
        `ir_measures`.
        """
        return self.path / "retrieval"

    @property
    def onnx(self) -> Path:
        """What the student costs as ONNX, if it was exported."""
        return self.path / "onnx.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"


def remove_leftovers(folder: RunFolder) -> None:
    """Remove what an earlier call was writing when it was killed: hidden files of `written_whole`,
    and hidden folders that were to become the student and the data set.
    """
    for place in (folder.path, folder.soft_labels, folder.cache, folder.retrieval):
        for path in place.glob(".*.*"):
            if path.is_file():
                path.unlink(missing_ok=True)
    for made in (folder.student, folder.dataset):
        for path in folder.path.glob(f".{made.name}.*"):
            shutil.rmtree(path, ignore_errors=True)


def open_run_folder(recipe: Recipe) -> RunFolder:
    """The run's folder, if it is free or holds an earlier call of the same recipe; that call's
    leftovers are then removed. Writes nothing.

    Raises:
        InputError: The folder is a file, holds something that is no run, or holds the run of
            another recipe.
    """
    folder = RunFolder(recipe.run_dir)
    if folder.path.exists() and not folder.path.is_dir():
        raise InputError(f"--run_dir {folder.path} is a file; name a folder")
    if not folder.recipe.exists():
        # A run that was killed while it read its data has left these and no recipe yet.
        own = {folder.cache.name, folder.pairs.name}
        strangers = (
            sorted({p.name for p in folder.path.iterdir()} - own) if folder.path.exists() else []
        )
        if strangers:
            raise InputError(
                f"{folder.path} holds {len(strangers)} files (e.g. {strangers[0]}) but no recipe.yaml, so it is no run; "
                "name an empty or a new --run_dir"
            )
        return folder
    try:
        before = yaml.safe_load(folder.recipe.read_text(encoding="utf-8"))
        name = before[ENVIRONMENT_KEY]["recipe"]
    except (yaml.YAMLError, TypeError, KeyError, UnicodeDecodeError) as error:
        raise InputError(
            f"{folder.recipe} is damaged ({error!r}); name another --run_dir"
        ) from error
    now = recipe.keys()
    differences = [
        f"{key} is {before.get(key)!r} there, {now[key]!r} here"
        for key in IDENTITY
        if before.get(key, now[key]) != now[key]
    ]
    if name != recipe.name:
        differences.insert(0, f"its recipe is {name!r}, this one is {recipe.name!r}")
    if differences:
        raise InputError(
            f"{folder.path} holds another run: {'; '.join(differences)}. Name another --run_dir, or remove that folder"
        )
    if PartialState().is_main_process:
        remove_leftovers(folder)
    return folder


def save_recipe(recipe: Recipe, folder: RunFolder) -> None:
    """Write `recipe.yaml`: the resolved keys, which can be run again, and what they were run
    with.
    """
    environment = {"recipe": recipe.name, **describe_environment()}
    with written_whole(folder.recipe) as temporary:
        temporary.write_text(
            "# The resolved recipe of this run. To run it again: accelerate launch train.py THIS_FILE --run_dir runs/again\n"
            + yaml.safe_dump(recipe.keys(), sort_keys=False, allow_unicode=True)
            + yaml.safe_dump({ENVIRONMENT_KEY: environment}, sort_keys=False, allow_unicode=True),
            encoding="utf-8",
        )
