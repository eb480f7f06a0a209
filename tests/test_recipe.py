"""Reading a recipe: names and files, flags, what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import yaml

from hf_distill.errors import InputError
from hf_distill.recipe.kinds import RULES, SOURCES, TEACHERS, load_kind
from hf_distill.recipe.read import read_recipe, recipe_names


def recipe_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    path = recipe_file(
        tmp_path, "temperature: 0.5\nlearning_rate: 2e-5\nselection: [echo, percentile=80]\n"
    )
    recipe = read_recipe([str(path), "--temperature", "0.25", "--selection", "duplicate"])
    assert recipe.training.temperature == 0.25
    assert recipe.training.learning_rate == 2e-5  # YAML reads 2e-5 as text
    assert recipe.selection.selection == ["duplicate"]
    assert recipe.name == "mine"
    assert recipe.run_dir == Path("runs/mine")
    assert recipe.training.output_dir == "runs/mine/checkpoints"


def test_the_quickstart_is_read_when_nothing_is_named() -> None:
    recipe = read_recipe([])
    assert (recipe.name, recipe.data.dataset, recipe.run.until) == (
        "quickstart",
        "auto",
        "release",
    )


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_of_the_package_is_read_by_its_name(name: str) -> None:
    assert read_recipe([name]).name == name


@pytest.mark.parametrize("text", ["selection: []", "selection: [none]", "selection: none"])
def test_no_selection(tmp_path: Path, text: str) -> None:
    assert read_recipe([str(recipe_file(tmp_path, text))]).selection.selection == []


BEST = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
OPTIONAL = {
    "student_layers": "0,2",
    "false_negative_margin": 0.1,
    "teacher_temperature": 0.2,
    "matryoshka_dims": [8],
    "selection": ["echo"],
    "max_pairs": 7,
    "student_dropout": 0.1,
    "ensemble": ["a"],
    "score_range": [0, 1],
    "terms": ["m:t=1"],
    "query_prompt": "ask ",
    "early_stopping_patience": 2,
}


@pytest.mark.parametrize("key", OPTIONAL)
def test_none_unsets_an_optional_key_on_the_command_line(tmp_path: Path, key: str) -> None:
    path = recipe_file(tmp_path, yaml.safe_dump({key: OPTIONAL[key], **BEST}))
    before, after = read_recipe([str(path)]), read_recipe([str(path), f"--{key}", "none"])
    assert before.keys()[key] == OPTIONAL[key]
    assert not after.keys()[key]
    assert after.keys() == read_recipe([str(path), f"--{key}=none"]).keys()


def test_a_static_student_can_be_asked_for_on_the_command_line() -> None:
    line = ["--student_backbone", "static", "--student_layers", "none", "--student_dropout", "none"]
    student = read_recipe(["recommended", *line]).student
    assert (student.student_layers, student.student_dropout) == (None, None)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("selecton: [echo]", [], "'selecton'.*'selection'"),
        ("", ["--temprature", "1"], "--temprature.*'temperature'"),
        ("- a\n- b\n", [], "list"),
        ("a: [", [], "not a YAML file"),
        ("", ["--temperature", "0"], "--temperature 0.0"),
        ("", ["--temperature", "nan"], "--temperature nan"),
        ("", ["--contrastive_weight", "inf"], "--contrastive_weight inf"),
        ("", ["--test_fraction", "1.5"], "--test_fraction 1.5"),
        ("", ["--texts_per_pair", "-1"], "--texts_per_pair -1"),
        ("", ["--matryoshka_dims", "256"], "--matryoshka_dims 256"),
        ("", ["--num_train_epochs", "many"], "num_train_epochs"),
        ("", ["--until", "dawn"], "until"),
        ("", ["--contrastive_weight", "0", "--regression_weight", "0"], "contrastive_weight"),
        ("", ["--early_stopping_patience", "2"], "--early_stopping_patience 2.*eval_strategy"),
        (
            "eval_strategy: epoch",
            ["--early_stopping_patience", "2"],
            "--early_stopping_patience 2.*load_best_model_at_end",
        ),
        ("eval_strategy: epoch", ["--validation_fraction", "0"], "--validation_fraction 0"),
        ("", ["stray"], "'stray'"),
        ("", ["--hub_dataset_id", "a/b"], "--hub_dataset_id"),
    ],
)
def test_what_cannot_be_used_is_said(tmp_path: Path, text: str, line: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_recipe([str(recipe_file(tmp_path, text)), *line])


def test_a_missing_recipe_names_those_that_exist(tmp_path: Path) -> None:
    recipe_file(tmp_path, "")
    with pytest.raises(InputError, match=r"other.yaml.*quickstart.*mine.yaml"):
        read_recipe([str(tmp_path / "other.yaml")])
    with pytest.raises(InputError, match=r"quickstrat.*quickstart"):
        read_recipe(["quickstrat"])


def test_keys_are_a_recipe_again(tmp_path: Path) -> None:
    path = recipe_file(
        tmp_path, "temperature: 0.5\nlearning_rate: 2e-5\nlr_scheduler_kwargs: {num_cycles: 2}\n"
    )
    once = read_recipe([str(path)])
    saved = yaml.safe_dump({**once.keys(), "environment": {"x": 1}})
    assert read_recipe([str(recipe_file(tmp_path, saved))]).keys() == once.keys()


def test_reading_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a product was computed")

    monkeypatch.setattr(torch.Tensor, "__matmul__", refuse)
    recipe = read_recipe(["recommended"])
    assert (recipe.training.bf16, recipe.teacher.teacher_dtype) == (False, "auto")


def test_the_papers_recipe_is_the_papers() -> None:
    recipe = read_recipe(["qrecc", "--dataset_path", "x"])
    student, training = recipe.student, recipe.training
    assert {
        "contrastive": training.contrastive_weight,
        "regression": training.regression_weight,
        "on": training.regression_on,
        "temperature": training.temperature,
        "alignment": training.alignment_weight,
        "kl": training.kl_weight,
        "margin": training.margin_weight,
    } == {
        "contrastive": 1.0,
        "regression": 0.1,
        "on": "diagonal",
        "temperature": 0.1,
        "alignment": 0.0,
        "kl": 0.0,
        "margin": 0.0,
    }
    assert student.student_backbone == "microsoft/MiniLM-L12-H384-uncased"
    assert (student.student_pooling, student.student_dim, student.head_dropout) == ("cls", 256, 0.1)
    assert (training.learning_rate, training.weight_decay) == (5e-5, 0.01)
    assert (training.per_device_train_batch_size, training.num_train_epochs) == (16, 8)
    assert (training.warmup_steps, training.max_grad_norm) == (0.1, 1.0)
    assert training.early_stopping_patience == 3
    assert recipe.teacher.teacher == "sentence-transformers/multi-qa-mpnet-base-dot-v1"
    assert recipe.teacher.teacher_pooling == "mean"
    assert recipe.selection.selection == ["percentile=80"]
    assert student.student_max_length == 256


def test_help_lists_every_key_in_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        read_recipe(["--help"], "hf-distill train")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: hf-distill train [RECIPE]")
    own, trainer = text.split("every argument of SentenceTransformerTrainer:")
    for key in ("dataset", "selection", "student_layers", "regression_on", "run_dir", "kl_weight"):
        assert f"--{key} " in own
    assert "--learning_rate " in trainer
    for name in (*SOURCES, *TEACHERS, *RULES):
        assert name in own


def test_a_runs_own_recipe_keeps_the_runs_name(tmp_path: Path) -> None:
    path = tmp_path / "anything" / "recipe.yaml"
    path.parent.mkdir()
    path.write_text("temperature: 0.2\nenvironment: {recipe: quickstart}\n")
    assert read_recipe([str(path)]).name == "quickstart"
    path.write_text("temperature: 0.2\n")
    assert read_recipe([str(path)]).name == "anything"


@pytest.mark.parametrize("kinds", [SOURCES, TEACHERS, RULES], ids=["sources", "teachers", "rules"])
def test_every_kind_of_the_package_is_where_its_table_says(kinds: dict[str, object]) -> None:
    for name in kinds:
        kind = load_kind(name, kinds, "key")  # type: ignore[arg-type]
        assert kind.__module__.startswith("hf_distill.")


def test_a_kind_of_ones_own_is_loaded_and_what_is_wrong_with_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_kinds.py").write_text("def mine(recipe): return 7\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_kind("my_kinds:mine", SOURCES, "dataset")(None) == 7
    for name, says in {
        "my_kinds:yours": "my_kinds.*yours",
        "no_such_module:x": "no_such_module",
        "file": "'file'.*'files'",
        "my_kinds.py": "my_kinds.py",
    }.items():
        with pytest.raises(InputError, match=f"--dataset.*{says}"):
            load_kind(name, SOURCES, "dataset")
    del sys.modules["my_kinds"]
