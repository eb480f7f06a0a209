"""Recipes that nobody would write by hand: keys twice, no names, depth, control characters."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT, call

from hf_distill.errors import InputError
from hf_distill.recipe.read import read_recipe
from hf_distill.run.folder import RunFolder, read_saved_recipe

CASES = ROOT.parent / "shared" / "cases" / "reliability"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed: 1\ntemperature: 0.2\nseed: 2\n", "line 3.*'seed'"),
        ("learning_rate_mapping: {a: 1, b: 2, a: 3}\n", "line 1.*'a'"),
        ("[" * 5000, "20 levels"),
        ("a: " + "{a: " * 3000, "20 levels"),
        ("- " * 4000 + "x", "20 levels"),
        ("a: [1\nb: 2", "line 2"),
        ("seed: !!python/object/apply:os.system ['true']", "line 1.*python"),
        ("seed: 2026-13-45", "month"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nselection: [*b, *b]", "unknown key 'a'"),
        ("selection: [[a, b]]", "selection.*list"),
        ("seed: \x00", "special characters|unacceptable"),
        ("? [1]\n: 2", "unknown key|unhashable"),
        ("7: 1", "unknown key 7"),
    ],
)
def test_a_file_that_is_no_recipe_is_one_message(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=says) as caught:
        read_recipe([str(path)])
    assert str(path) in str(caught.value)
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(InputError, match=r"recipe\.yaml"):
        read_saved_recipe(RunFolder(tmp_path))


def test_the_deep_recipe_of_the_campaign() -> None:
    path = CASES / "12-paths-tracebacks" / "deep.yaml"
    if not path.is_file():
        pytest.skip(f"{path.name} is not here")
    said = call([path])
    assert (said.code, "deep.yaml" in said.err, "Traceback" in said.err) == (2, True, False)


@pytest.mark.parametrize("value", ["", "  "])
@pytest.mark.parametrize(
    "key",
    ["query_column", "document_column", "group_column", "label_column", "score_column", "teacher",
     "dataset_path", "run_dir", "output_dir", "hub_model_id", "selection", "eval_tasks",
     "teacher_cache", "dataset_license"],
)  # fmt: skip
def test_an_empty_name_is_no_name(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(InputError, match=f"--{key} '{value}'"):
        read_recipe([f"--{key}", value])
    path = tmp_path / "a.yaml"
    path.write_text(f"{key}: '{value}'\n")
    with pytest.raises(InputError, match=f"--{key} '{value}'"):
        read_recipe([str(path)])


def test_an_empty_prompt_is_a_prompt() -> None:
    assert read_recipe(["--query_prompt", ""]).teacher.query_prompt == ""


def test_control_characters_of_a_name_are_shown(tmp_path: Path, pairs_file: Path) -> None:
    name = "evil\x1b[2J\r\x9b31m"
    path = tmp_path / f"{name}.jsonl"
    path.write_bytes(pairs_file.read_bytes())
    line = ["--dataset_path", path, "--run_dir", tmp_path / "run", "--until", "read"]
    said = call([*line, "--group_column", "topic"])
    assert (said.code, "evil\\x1b[2J\\r\\x9b31m" in said.out) == (0, True)
    wrong = call(["--dataset_path", f"nowhere{name}", "--run_dir", tmp_path / "b"])
    assert (wrong.code, "nowhereevil\\x1b[2J\\r" in wrong.err) == (2, True)
    for text in (said.out, said.err, wrong.out, wrong.err):
        assert not set(text) & {"\x1b", "\x9b"}
