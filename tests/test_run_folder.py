import json
from pathlib import Path

import pytest
import yaml

from hf_distill.errors import InputError
from hf_distill.recipe.arguments import (
    Recipe,
    read_recipe,
)
from hf_distill.run.folder import (
    RunFolder,
    fingerprint,
    open_run_folder,
    read_json_if_current,
    remove_leftovers,
    save_recipe,
    write_json,
    written_whole,
)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    path = tmp_path / "mine.yaml"
    path.write_text("bf16: false\nlearning_rate: 1e-4\n")
    return read_recipe([str(path), "--run_dir", str(tmp_path / "run")])


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.json"

    def fail_halfway() -> None:
        with written_whole(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("no space left")

    with pytest.raises(RuntimeError, match="no space left"):
        fail_halfway()
    assert list(path.parent.iterdir()) == []
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}, "a failed write leaves what was there"


def test_a_fingerprint_is_of_values_not_of_their_order() -> None:
    assert (
        fingerprint({"a": 1, "b": 2})
        == fingerprint({"b": 2, "a": 1})
        != fingerprint({"a": 1, "b": 3})
    )


def test_an_artefact_is_reused_only_with_its_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    assert read_json_if_current(path, "k") is None
    write_json(path, {"fingerprint": "k", "a": 1})
    assert read_json_if_current(path, "k") == {"fingerprint": "k", "a": 1}
    assert read_json_if_current(path, "other") is None
    path.write_text("{half")
    with pytest.raises(InputError, match="damaged"):
        read_json_if_current(path, "k")


def test_a_folder_is_reopened_by_its_own_recipe_alone(recipe: Recipe, tmp_path: Path) -> None:
    folder = open_run_folder(recipe)
    assert not folder.path.exists(), "opening writes nothing"
    save_recipe(recipe, folder)
    saved = yaml.safe_load(folder.recipe.read_text())
    assert saved["learning_rate"] == 1e-4
    assert saved["environment"]["recipe"] == "mine"
    assert saved["environment"]["packages"]["torch"]
    assert open_run_folder(recipe) == folder
    other = read_recipe(
        [str(tmp_path / "mine.yaml"), "--run_dir", str(folder.path), "--teacher", "another/teacher"]
    )
    with pytest.raises(
        InputError,
        match=r"holds another run: teacher is 'sentence-\S+' there, 'another/teacher' here",
    ):
        open_run_folder(other)
    tuned = read_recipe(
        [str(tmp_path / "mine.yaml"), "--run_dir", str(folder.path), "--learning_rate", "1e-3"]
    )
    assert open_run_folder(tuned) == folder, "what only changes later stages may change"


def test_a_folder_that_is_no_run_is_refused(recipe: Recipe) -> None:
    recipe.run_dir.mkdir()
    (recipe.run_dir / "thesis.docx").touch()
    with pytest.raises(
        InputError, match=r"holds 1 files \(e\.g\. thesis\.docx\) but no recipe\.yaml"
    ):
        open_run_folder(recipe)


def test_no_token_is_ever_saved(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("bf16: false\n")
    recipe = read_recipe(
        [str(path), "--run_dir", str(tmp_path / "run"), "--hub_token", "hf_secretsecretsecret"]
    )
    save_recipe(recipe, open_run_folder(recipe))
    assert "secret" not in (tmp_path / "run" / "recipe.yaml").read_text()


def test_leftovers_of_a_killed_call_are_removed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    for name in (
        "evaluation.json", ".evaluation.json.k1.json", "soft_labels/.train.parquet.k1.parquet", "cache/.embeddings.npy.k1.npy",
        ".dataset.k1/dataset/README.md", ".student_model_sd.k1/student_model_sd/model.safetensors", "student_model_sd/modules.json",
    ):  # fmt: skip
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).touch()
    remove_leftovers(folder)
    assert {path.name for path in folder.path.rglob("*") if path.is_file()} == {
        "evaluation.json",
        "modules.json",
    }
    assert not list(folder.path.glob(".*")), "folders, too"
