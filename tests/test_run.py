"""The run's folder, and the one way to make, keep and reuse a result."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import forked
import numpy as np
import pytest
import yaml
from conftest import call, recipe_of

from hf_distill.errors import InputError
from hf_distill.recipe.arguments import Recipe
from hf_distill.run.folder import RunFolder, open_run_folder, save_recipe
from hf_distill.run.lock import held
from hf_distill.run.stage import (
    files_of,
    fingerprint,
    folder_written_whole,
    listed,
    read_json,
    read_result,
    stage,
    temporary_of,
    write_json,
    write_result,
    written_whole,
)


@dataclass(frozen=True)
class Sum:
    key: str
    total: float
    parts: dict[str, list[float]]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("learning_rate: 1e-4\n")
    return path


@pytest.fixture
def recipe(mine: Path, tmp_path: Path) -> Recipe:
    return recipe_of(mine, run_dir=tmp_path / "run")


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


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "student"

    def write(name: str, fail: bool = False) -> None:
        with folder_written_whole(path) as new:
            (new / name).touch()
            if fail:
                raise RuntimeError("no space left")

    write("one")
    with pytest.raises(RuntimeError, match="no space left"):
        write("two", fail=True)
    assert [file.name for file in path.iterdir()] == ["one"]
    write("three")
    assert [file.name for file in path.iterdir()] == ["three"]
    assert [file.name for file in tmp_path.iterdir()] == ["student"]


def test_a_fingerprint_is_of_values_not_of_their_order() -> None:
    one, other = {"a": 1, "b": 2}, {"b": 2, "a": 1}
    assert fingerprint(one) == fingerprint(other) != fingerprint({"a": 1, "b": 3})


def test_a_stage_is_made_once_and_again_when_an_input_changes(tmp_path: Path) -> None:
    calls: list[str] = []

    def make(key: str) -> Sum:
        calls.append(key)
        (tmp_path / "beside").touch()
        return Sum(key, np.float32(0.5), {"x": np.array([1.0, 2.0])})  # type: ignore[arg-type,dict-item]

    path, files = tmp_path / "sum.json", [tmp_path / "beside"]
    first = stage(path, Sum, [1, {"a": None}], make, files)
    assert first == Sum(calls[0], 0.5, {"x": [1.0, 2.0]})
    assert stage(path, Sum, [1, {"a": None}], make, files) == first
    assert len(calls) == 1
    stage(path, Sum, [2, {"a": None}], make, files)
    assert len(calls) == 2
    files[0].unlink()
    stage(path, Sum, [2, {"a": None}], make, files, together=True)
    assert len(calls) == 3, "what belongs to it was gone"


@pytest.mark.parametrize("damaged", ["sum.json", "beside", "folder/part"])
def test_a_damaged_result_is_noticed_made_again_and_said(
    tmp_path: Path, damaged: str, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []

    def make(key: str) -> Sum:
        calls.append(key)
        (tmp_path / "beside").write_text("content")
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "folder" / "part").write_text("content")
        return Sum(key, 0.5, {})

    path, files = tmp_path / "sum.json", [tmp_path / "beside", tmp_path / "folder"]
    first = stage(path, Sum, [], make, files)
    (tmp_path / "folder" / "later").write_text("a card")  # it does not belong to the result
    assert read_result(path, Sum) == stage(path, Sum, [], make, files) == first
    assert (len(calls), caplog.text) == (1, "")
    content = bytearray((tmp_path / damaged).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / damaged).write_bytes(content)
    with pytest.raises(InputError, match=f"{damaged} is damaged"):
        read_result(path, Sum)
    assert stage(path, Sum, [], make, files) == first
    assert len(calls) == 2
    assert damaged in caplog.text


def test_a_result_of_another_kind_is_named(tmp_path: Path) -> None:
    path = tmp_path / "sum.json"
    path.write_text('{"key": "k", "total": "many", "parts": {}}')
    with pytest.raises(InputError, match=r"sum\.json.*total"):
        read_json(path, Sum)
    with pytest.raises(InputError, match=r"sum\.json is damaged"):
        read_result(path, Sum)


def test_a_folder_is_reopened_by_its_own_recipe_alone(
    recipe: Recipe, mine: Path, tmp_path: Path
) -> None:
    folder = open_run_folder(recipe)
    assert not folder.path.exists(), "opening writes nothing"
    save_recipe(recipe, folder)
    saved = yaml.safe_load(folder.recipe.read_text())
    assert saved["learning_rate"] == 1e-4
    assert saved["environment"]["recipe"] == "mine"
    assert saved["environment"]["packages"]["torch"]
    assert open_run_folder(recipe) == folder
    with pytest.raises(InputError, match=r"teacher is 'sentence-.*'another/teacher' here"):
        open_run_folder(recipe_of(mine, run_dir=folder.path, teacher="another/teacher"))
    tuned = recipe_of(mine, run_dir=folder.path, learning_rate=1e-3)
    assert open_run_folder(tuned) == folder, "what only changes later stages may change"


def test_a_folder_that_is_not_a_run_is_refused(recipe: Recipe) -> None:
    recipe.run_dir.mkdir()
    (recipe.run_dir / "thesis.docx").touch()
    with pytest.raises(InputError, match=r"1 files.*thesis\.docx"):
        open_run_folder(recipe)


def test_a_folder_of_version_0_1_0_is_refused_and_stays_as_it_is(recipe: Recipe) -> None:
    recipe.run_dir.mkdir()
    old = {
        "dataset": "pydocs",
        "environment": {"recipe": "mine", "packages": {"hf_distill": "0.1.0"}},
    }
    (recipe.run_dir / "recipe.yaml").write_text(yaml.safe_dump(old))
    (recipe.run_dir / ".evaluation.json.k1.json").touch()
    before = {p: p.stat().st_mtime_ns for p in recipe.run_dir.rglob("*")}
    with pytest.raises(InputError, match=r"0\.1\.0.*--run_dir"):
        open_run_folder(recipe)
    assert {p: p.stat().st_mtime_ns for p in recipe.run_dir.rglob("*")} == before


def test_no_token_is_ever_saved(mine: Path, tmp_path: Path) -> None:
    recipe = recipe_of(mine, run_dir=tmp_path / "run", hub_token="hf_secretsecretsecret")
    save_recipe(recipe, open_run_folder(recipe))
    assert "secret" not in (tmp_path / "run" / "recipe.yaml").read_text()


def test_leftovers_of_a_killed_call_are_removed_and_nothing_else(
    recipe: Recipe, tmp_path: Path
) -> None:
    folder = open_run_folder(recipe)
    save_recipe(recipe, folder)
    for name in ("evaluation.json", "soft_labels/scores.npy", "cache/tokens.npy"):
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        temporary_of(folder.path / name).touch()
    for name in ("dataset", "student_model_sd"):
        temporary_of(folder.path / name).mkdir()
        (temporary_of(folder.path / name).parent / ".env.local").touch()
    elsewhere = tmp_path / "home"
    elsewhere.mkdir()
    strange = temporary_of(elsewhere / "evaluation.json")
    strange.touch()
    (folder.path / "retrieval").symlink_to(elsewhere)
    (folder.path / "soft_labels" / ".editor.swp").touch()
    (folder.path / temporary_of(Path("link")).name).symlink_to(elsewhere)
    with held(folder):
        left = {path.name for path in folder.path.rglob("*") if not path.is_symlink()}
    assert left == {
        "recipe.yaml", "soft_labels", "cache", "lock", "lock.json", ".env.local", ".editor.swp",
    }  # fmt: skip
    assert strange.exists()


def test_a_second_call_in_a_folder_is_refused_and_told_by_whom(recipe: Recipe) -> None:
    folder = RunFolder(recipe.run_dir)
    with held(folder), pytest.raises(InputError, match=rf"--run_dir .*process {os.getpid()} "):
        held(folder).__enter__()
    assert not folder.path.exists(), "nothing was made, so nothing is left"
    save_recipe(recipe, folder)
    with held(folder):
        pass
    assert folder.recipe.exists()


def hold_and_be_killed(run: Path) -> None:
    lock = held(RunFolder(run))
    lock.__enter__()
    os.kill(os.getpid(), 9)


def test_the_lock_of_a_killed_call_blocks_nobody(recipe: Recipe, tmp_path: Path) -> None:
    folder = RunFolder(recipe.run_dir)
    save_recipe(recipe, folder)
    killed = forked.start(tmp_path / "log", hold_and_be_killed, folder.path)
    killed.join()
    assert killed.exitcode == -9
    assert (folder.cache / "lock.json").exists()
    with held(folder):
        pass


def others(folder: RunFolder) -> list[Path]:
    """Somebody's own files, in every folder of a run."""
    places = (
        folder.path, folder.pairs, folder.soft_labels, folder.dataset, folder.dataset / "all",
        folder.student, folder.student / "2_Dense", folder.retrieval,
    )  # fmt: skip
    return [place / name for place in places for name in (".env.local", "notes.txt")]


def test_a_run_keeps_and_ignores_what_others_put_into_its_folders(
    copied: Path, tiny: Path, tmp_path: Path
) -> None:
    folder = RunFolder(copied)
    for file in others(folder):
        file.write_text("mine")
    before = {name: (copied / name).read_bytes() for name in ("training.json", "evaluation.json")}
    line = [tiny, "--run_dir", copied]
    assert call(line).code == 0
    assert {name: (copied / name).read_bytes() for name in before} == before
    assert call([*line, "--seed", "7", "--max_pairs", "150"]).code == 0, "everything is made again"
    assert all(file.read_text() == "mine" for file in others(folder))
    listed_files = "".join(path.read_text() for path in copied.glob("*.json"))
    assert "notes.txt" not in listed_files
    for file in others(folder):
        file.unlink()
    made = {name: (copied / name).read_bytes() for name in before}
    again = call([*line, "--seed", "7", "--max_pairs", "150"])
    assert "made again" not in again.err
    assert {name: (copied / name).read_bytes() for name in made} == made
    plain = tmp_path / "plain"
    assert call([tiny, "--run_dir", plain, "--seed", "7", "--max_pairs", "150"]).code == 0
    for name in ("student_model_sd", "dataset", "retrieval", "pairs"):
        files = {p.relative_to(copied) for p in (copied / name).rglob("*") if p.is_file()}
        assert files == {p.relative_to(plain) for p in (plain / name).rglob("*") if p.is_file()}


def test_a_result_that_is_under_way_is_made_again(tmp_path: Path) -> None:
    path, file = tmp_path / "made.json", tmp_path / "made.txt"

    def make(key: str) -> Sum:
        file.write_text("new")
        return Sum(key, 1.0, {})

    stage(path, Sum, [1], make, [file])

    def stopped(key: str) -> Sum:
        file.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage(path, Sum, [2], stopped, [file])
    assert listed(path) == {file}
    with pytest.raises(InputError, match=r"made\.json was being made again when .* stopped"):
        read_result(path, Sum)
    stage(path, Sum, [1], make, [file])
    assert (file.read_text(), read_result(path, Sum).total) == ("new", 1.0)


def test_a_list_of_files_does_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    record, folder = tmp_path / "run" / "made.json", tmp_path / "run" / "student"
    folder.mkdir(parents=True)
    (folder / "own.txt").write_text("own")
    (tmp_path / "secret.txt").write_text("secret")
    outside = folder / ".." / ".." / "secret.txt"
    write_result(record, Sum("key", 1.0, {}), [folder / "own.txt", outside])
    content = json.loads(record.read_text())
    assert len(content["sealed"]["files"]) == 2
    names = [*content["sealed"]["files"]]
    forged = {"student/../../secret.txt" if "secret" in n else n: content["sealed"]["files"][n]
              for n in names}  # fmt: skip
    seal(record, content, forged)
    assert files_of(record, folder) == {"own.txt"}


def seal(record: Path, content: dict[str, object], files: dict[str, str]) -> None:
    """Write a record as somebody would who knows how."""
    rest = {key: value for key, value in content.items() if key != "sealed"}
    text = json.dumps([rest, files], sort_keys=True, ensure_ascii=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    record.write_text(json.dumps({**rest, "sealed": {"sha256": digest, "files": files}}))
