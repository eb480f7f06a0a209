"""The folder of a run: the path of each artefact, and whether a recipe may use the folder."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hf_distill.errors import InputError
from hf_distill.recipe.arguments import Recipe, deciding
from hf_distill.recipe.saved import ENVIRONMENT_KEY
from hf_distill.recipe.yaml_text import read_yaml
from hf_distill.run.environment import describe_environment
from hf_distill.run.stage import TEMPORARY, read_result, write_result, written_whole

LAYOUT = 2
"""Which artefacts a run's folder holds, and in which form. Version 0.1.0 wrote no number."""

IDENTITY = (
    "dataset", "dataset_path", "sources", "dataset_name", "dataset_config", "dataset_split",
    "chat_model", "teacher", "teacher_kind", "ensemble", "teacher_url", "student_backbone",
)  # fmt: skip
"""Keys that identify a run: with another value of one of them, the folder belongs to another run.
Any other key may change; the stages that depend on it then run again.
"""


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run's artefacts, all below `path`."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def cache(self) -> Path:
        """Working files; safe to remove."""
        return self.path / "cache"

    @property
    def pairs(self) -> Path:
        return self.path / "pairs"

    @property
    def candidates(self) -> Path:
        """The lists of the training queries, and the ranker's scores of them."""
        return self.path / "candidates"

    @property
    def generated(self) -> Path:
        """Queries that a language model has written."""
        return self.path / "generated"

    @property
    def soft_labels(self) -> Path:
        return self.path / "soft_labels"

    @property
    def soft_labels_json(self) -> Path:
        return self.path / "teacher_soft_labels.json"

    @property
    def pool(self) -> Path:
        """The texts that are aligned beside the pairs."""
        return self.path / "pool"

    @property
    def further_texts(self) -> Path:
        """Texts beyond the run's own, of which passages stand in the pool."""
        return self.path / "further_texts"

    @property
    def selection(self) -> Path:
        return self.path / "selection.json"

    @property
    def dataset(self) -> Path:
        return self.path / "dataset"

    @property
    def text_lengths(self) -> Path:
        """How many texts teacher and student cut."""
        return self.path / "text_lengths.json"

    @property
    def dataset_record(self) -> Path:
        """What `dataset` was made of."""
        return self.path / "dataset.json"

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
    def made_with(self) -> Path:
        """The keys that all results together were made with."""
        return self.path / "results.json"

    @property
    def retrieval(self) -> Path:
        """TREC runs of the systems, `<system>.run`, and `qrels.txt`, for `ir_measures`."""
        return self.path / "retrieval"

    @property
    def onnx(self) -> Path:
        """What the student costs as ONNX, if it was exported."""
        return self.path / "onnx.json"

    @property
    def openvino(self) -> Path:
        """What the student costs in OpenVINO, if it was exported."""
        return self.path / "openvino.json"

    @property
    def model2vec(self) -> Path:
        """What a static student costs in model2vec, if it was exported."""
        return self.path / "model2vec.json"

    @property
    def parity(self) -> Path:
        """In which runtimes the student was tried, if it was."""
        return self.path / "parity.json"

    @property
    def router(self) -> Path:
        """A query encoder and its teacher as one model, if they were exported."""
        return self.path / "router"

    @property
    def router_record(self) -> Path:
        """What `router` was made of."""
        return self.path / "router.json"

    @property
    def search(self) -> Path:
        """The index that `hf-distill search` and `demo` read."""
        return self.path / "search"

    @property
    def report(self) -> Path:
        return self.path / "report.html"


def check_links(folder: RunFolder) -> None:
    """Check that every folder in a run is its own: what is written to, replaced or removed behind a
    link belongs to somebody else. The run's folder itself may be a link.

    Raises:
        InputError: One is a link: which one, and where it leads.
    """
    for place, names, _ in os.walk(folder.path, followlinks=False):
        for path in (Path(place, name) for name in names):
            if path.is_symlink():
                raise InputError(
                    f"{path} is a link to {path.resolve()}, and a run writes and removes only what "
                    "is in its own folder; remove the link (for checkpoints elsewhere there is "
                    "--output_dir, for the teacher's embeddings --teacher_cache)"
                )


def recipe_says(folder: RunFolder, key: str) -> Any:
    """What the recipe of a run says of `key`; None if the folder is not a run's.

    Raises:
        InputError: As `read_saved_recipe`.
    """
    return read_saved_recipe(folder).get(key) if folder.recipe.is_file() else None


def read_saved_recipe(folder: RunFolder) -> dict[str, Any]:
    """The content of a run's `recipe.yaml`.

    Raises:
        InputError: There is none, it is damaged, it was written by a version of hf_distill whose
            folders this one cannot read, or a folder of the run is a link.
    """
    check_links(folder)
    if not folder.recipe.is_file():
        raise InputError(
            f"{folder.path} is not a run: it holds no recipe.yaml; hf-distill train makes one"
        )
    try:
        content = read_yaml(folder.recipe.read_text(encoding="utf-8"), folder.recipe)
        environment = content[ENVIRONMENT_KEY]
        layout, version = environment.get("layout"), environment["packages"]["hf_distill"]
    except (TypeError, KeyError, AttributeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{folder.recipe} is damaged ({error!r}); name another --run_dir"
        ) from error
    if layout != LAYOUT:
        raise InputError(
            f"{folder.path} was made by hf_distill {version}, whose runs this version cannot read; "
            "name another --run_dir (the old folder is left as it is)"
        )
    saved: dict[str, Any] = content
    return saved


def remove_leftovers(folder: RunFolder) -> None:
    """Remove what an earlier call was writing when it was killed: only names that nobody else gives
    (`TEMPORARY`), and nothing behind a link: `rmtree` refuses one.
    """
    for place, folders, files in os.walk(folder.path, followlinks=False):
        for name in [*folders, *files]:
            path = Path(place, name)
            if not TEMPORARY.fullmatch(name):
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def open_run_folder(recipe: Recipe) -> RunFolder:
    """The run's folder, if it is free or holds an earlier call of the same recipe. Nothing is
    written.

    Raises:
        InputError: The folder is a file, holds something that is not a run, the run of another
            recipe, or the run of a version whose folders cannot be read.
    """
    folder = RunFolder(recipe.run_dir)
    check_links(folder)
    if folder.path.exists() and not folder.path.is_dir():
        raise InputError(f"--run_dir {folder.path} is a file; name a folder")
    if not folder.recipe.exists():
        # A run that was killed while it read its data leaves these, and no recipe yet.
        own = {folder.cache.name, folder.pairs.name, folder.generated.name}
        strangers = (
            sorted({p.name for p in folder.path.iterdir() if not TEMPORARY.fullmatch(p.name)} - own)
            if folder.path.exists()
            else []
        )
        if strangers:
            raise InputError(
                f"--run_dir {folder.path} is not a run: it holds {len(strangers)} files (e.g. "
                f"{strangers[0]}) but no recipe.yaml; name an empty or a new folder"
            )
        return folder
    before = read_saved_recipe(folder)
    name, now = before[ENVIRONMENT_KEY].get("recipe"), recipe.keys()
    differences = [
        f"{key} is {before.get(key)!r} there, {now[key]!r} here"
        for key in IDENTITY
        if before.get(key, now[key]) != now[key]
    ]
    if name != recipe.name:
        differences.insert(0, f"its recipe is {name!r}, this one is {recipe.name!r}")
    if differences:
        raise InputError(
            f"--run_dir {folder.path} holds another run: {'; '.join(differences)}. Name another "
            "--run_dir, or remove that folder"
        )
    return folder


def save_recipe(recipe: Recipe, folder: RunFolder) -> None:
    """Write `recipe.yaml`: the resolved keys, which can be run again, and what they ran with."""
    environment = {"recipe": recipe.name, "layout": LAYOUT, **describe_environment()}
    with written_whole(folder.recipe) as temporary:
        temporary.write_text(
            "# The resolved recipe of this run. To run it again: "
            "hf-distill train THIS_FILE --run_dir runs/again\n"
            + yaml.safe_dump(recipe.keys(), sort_keys=False, allow_unicode=True)
            + yaml.safe_dump({ENVIRONMENT_KEY: environment}, sort_keys=False, allow_unicode=True),
            encoding="utf-8",
        )


@dataclass(frozen=True)
class MadeWith:
    """`results.json`: the keys that can change a result, when every result was made or found to be
    current. It is written when they all are there.
    """

    keys: dict[str, Any]


def save_made_with(recipe: Recipe, folder: RunFolder) -> None:
    """Write down that every result in the folder is that of `recipe`."""
    write_result(folder.made_with, MadeWith(deciding(recipe.keys())), [])


def check_made_with(folder: RunFolder) -> None:
    """Check that `recipe.yaml` is what the results were made with.

    Raises:
        InputError: A later call changed it and was stopped before the results were there: which
            keys.
    """
    saved = read_saved_recipe(folder)
    del saved[ENVIRONMENT_KEY]
    now = json.loads(json.dumps(deciding(saved), default=str))
    before = read_result(folder.made_with, MadeWith).keys
    differences = [
        f"{key} is {now.get(key)!r} there, and was {before.get(key)!r}"
        for key in sorted(now.keys() | before.keys())
        if now.get(key) != before.get(key)
    ]
    if differences:
        raise InputError(
            f"{folder.recipe} is not what the results were made with: {'; '.join(differences)}. A "
            "later call changed it, and stopped early; run it again: hf-distill train "
            f"{folder.recipe} --run_dir {folder.path} --until release"
        )
