"""The folder of a run may be somebody else's: opening it runs no code of theirs, sends no token,
and writes nowhere else.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from conftest import call
from safetensors.torch import load_file

from hf_distill.commands.main import main
from hf_distill.errors import InputError
from hf_distill.finished_run import finished
from hf_distill.recipe.arguments import Recipe
from hf_distill.recipe.read import read_recipe
from hf_distill.serving.demo import local_demo
from hf_distill.serving.index import load_student

SAVED = {"environment": {"recipe": "theirs"}}


def save(path: Path, **keys: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({**SAVED, **keys}))
    return path


def read(path: Path, *line: object) -> Recipe:
    return read_recipe([str(path), *map(str, line)])


def with_code(model: Path, folder: Path) -> Path:
    """A copy of a model in `folder` whose first module is code of its own, and the file that the
    code makes when it runs.
    """
    shutil.copytree(model, folder)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "evil.Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    ran = folder.parent / "ran"
    (folder / "evil.py").write_text(
        f"open({str(ran)!r}, 'w').close()\nfrom sentence_transformers.models import Transformer\n"
    )
    return ran


def test_a_saved_recipe_gets_no_trust_no_token_and_no_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outside = {
        "run_dir": str(tmp_path / "home"), "output_dir": "/etc/x", "teacher_cache": "../shared",
        "trust_remote_code": True, "hub_token": "hf_theirs", "push_to_hub": True,
        "hub_model_id": "them/x", "hub_dataset_id": "them/y", "temperature": 0.5,
    }  # fmt: skip
    path = save(tmp_path / "run" / "recipe.yaml", **outside)
    recipe = read(path)
    assert recipe.teacher.trust_remote_code is False
    assert recipe.teacher.teacher_cache is None
    assert recipe.run_dir == Path("runs/theirs")
    assert recipe.training.output_dir == "runs/theirs/checkpoints"
    assert (recipe.training.hub_token, recipe.training.push_to_hub) == (None, False)
    assert (recipe.training.hub_model_id, recipe.run.hub_dataset_id) == (None, None)
    assert recipe.training.temperature == 0.5, "what it says about the student is read"
    (said,) = [record.getMessage() for record in caplog.records]
    for key in ("run_dir", "output_dir", "teacher_cache", "trust_remote_code", "push_to_hub"):
        assert key in said
    moved = path.rename(path.with_name("mine.yaml"))
    assert read(moved).teacher.trust_remote_code is False, "it is known by what it holds"


def test_the_command_line_says_so_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = {"trust_remote_code": True, "teacher_cache": "/elsewhere"}
    path = save(tmp_path / "run" / "recipe.yaml", **keys)
    recipe = read(path, "--trust_remote_code", "true", "--teacher_cache", tmp_path)
    assert recipe.teacher.trust_remote_code
    assert recipe.teacher.teacher_cache == str(tmp_path)
    assert not caplog.records


def test_folders_inside_its_own_and_recipes_of_ones_own_are_obeyed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    path = save(run / "recipe.yaml", run_dir=str(run), teacher_cache=str(run / "cache" / "t"))
    assert read(path).run_dir == run
    assert read(path).teacher.teacher_cache == str(run / "cache" / "t")
    own = tmp_path / "own.yaml"
    own.write_text("trust_remote_code: true\nrun_dir: /elsewhere\n")
    assert read(own).teacher.trust_remote_code
    assert read(own).run_dir == Path("/elsewhere")
    assert not caplog.records


def test_a_recipe_beside_artefacts_of_a_run_is_a_saved_one(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("trust_remote_code: true\n")
    assert read(path).teacher.trust_remote_code
    (tmp_path / "student_model_sd").mkdir()
    (tmp_path / "student_model_sd" / "modules.json").touch()
    assert not read(path).teacher.trust_remote_code


def test_rules_of_this_package_are_no_code_of_ones_own(tmp_path: Path) -> None:
    rules = ["echo:weight=0.5", "mismatched:relabel", "rank=2:weight_ranking=0"]
    path = save(tmp_path / "run" / "recipe.yaml", selection=rules)
    assert read(path).selection.selection == rules


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "..", "", 7, None])
def test_the_name_of_a_saved_recipe_is_no_path(tmp_path: Path, name: object) -> None:
    path = save(tmp_path / "run" / "recipe.yaml", environment={"recipe": name})
    assert read(path).run_dir == Path("runs/run")
    path.write_text("environment: [1]\n")
    assert read(path).name == "run"


@pytest.mark.parametrize(
    ("key", "value"),
    [("teacher_kind", "evil:T"), ("dataset", "evil:read"), ("selection", ["echo", "evil:r=2"]),
     ("terms", ["evil:t=1"]), ("ensemble", ["precomputed:a=1", "evil:T:x=1"]),
     ("format", "evil:f")],
)  # fmt: skip
def test_code_that_a_saved_recipe_names_is_not_run(tmp_path: Path, key: str, value: object) -> None:
    path = save(tmp_path / "run" / "recipe.yaml", **{key: value})
    with pytest.raises(InputError, match=f"--{key} evil:.*recipe.yaml"):
        read(path)
    given = value if isinstance(value, list) else [value]
    assert read(path, f"--{key}", *given)


def test_a_ranker_that_a_saved_recipe_names_is_not_run(tmp_path: Path) -> None:
    lists = {"candidates": ["bm25"], "hard_negatives_per_pair": 1}
    path = save(tmp_path / "run" / "recipe.yaml", **lists, ranker="evil:T:x")
    with pytest.raises(InputError, match=r"--ranker evil:T:x.*recipe\.yaml"):
        read(path)
    assert read(path, "--ranker", "evil:T:x")
    for named in ("precomputed:a.jsonl", "cross-encoder:a/b"):
        assert read(save(tmp_path / "other" / "recipe.yaml", **lists, ranker=named))


def test_code_in_the_folders_of_models_is_not_run(
    copied: Path, teacher_dir: Path, tmp_path: Path
) -> None:
    ran = with_code(teacher_dir, tmp_path / "teacher")
    content = yaml.safe_load((copied / "recipe.yaml").read_text())
    (copied / "recipe.yaml").write_text(yaml.safe_dump({**content, "trust_remote_code": True}))
    results = finished(copied, "--teacher", str(tmp_path / "teacher"))
    with pytest.raises(InputError, match="trust_remote_code"):
        local_demo(results)
    assert not ran.exists()
    ran = with_code(copied / "student_model_sd", tmp_path / "student")
    with pytest.raises(InputError, match="name a model without"):
        load_student(str(tmp_path / "student"))
    assert not ran.exists()
    trusted = finished(copied, "--trust_remote_code", "true")
    assert trusted.recipe.teacher.trust_remote_code


def test_every_command_says_what_it_does_not_obey(
    copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (copied / "recipe.yaml").open("a") as file:
        file.write("hub_token: hf_theirs\n")
    with caplog.at_level(logging.WARNING):
        line = ["publish", copied, "--model", "you/x", "--dry_run"]
        assert call(line, main).code == 0
        shutil.rmtree(copied / "search")  # its index alone would answer, and the recipe not be read
        assert call(["search", copied, "a cat"], main).code == 0
    said = [r.getMessage() for r in caplog.records if "Not obeyed" in r.getMessage()]
    assert len(said) == 2
    assert all("hub_token" in line and "hf_theirs" not in line for line in said)


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("damage", ["evil", "empty", "text"])
def test_a_pickle_is_read_for_its_weights_alone(
    teacher_dir: Path, tmp_path: Path, damage: str
) -> None:
    folder, ran = tmp_path / "teacher", tmp_path / "ran"
    shutil.copytree(teacher_dir, folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert load_student(str(folder)), "weights alone are read"
    torch.save({**weights, "x": Evil(ran)}, folder / "pytorch_model.bin")
    if damage != "evil":
        (folder / "pytorch_model.bin").write_text("" if damage == "empty" else "no pickle")
    with pytest.raises(InputError, match=r"pytorch_model\.bin|cannot be loaded"):
        load_student(str(folder))
    assert not ran.exists()
