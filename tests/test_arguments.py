from pathlib import Path

import pytest
from conftest import ROOT

from hf_distill.errors import InputError
from hf_distill.recipe.arguments import (
    parse_final_weights,
    read_recipe,
)


def recipe_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_command_line_wins_over_the_file(tmp_path: Path) -> None:
    path = recipe_file(
        tmp_path,
        "temperature: 0.5\nlearning_rate: 2e-5\nselection: [echo, percentile=80]\nbf16: false\n",
    )
    recipe = read_recipe([str(path), "--temperature", "0.25", "--selection", "duplicate"])
    assert recipe.objective.temperature == 0.25
    assert recipe.training.learning_rate == 2e-5  # YAML reads 2e-5 as text
    assert recipe.selection.selection == ["duplicate"]
    assert recipe.name == "mine"
    assert recipe.run_dir == Path("runs/mine")
    assert recipe.training.output_dir == "runs/mine/checkpoints"


def test_defaults_when_nothing_is_named(tmp_path: Path) -> None:
    recipe = read_recipe([], default_recipe=recipe_file(tmp_path, ""))
    assert recipe.data.dataset == "pydocs"
    assert recipe.run.until == "release"


@pytest.mark.parametrize("empty", ["selection: []", "selection: [none]"])
def test_no_selection(tmp_path: Path, empty: str) -> None:
    assert read_recipe([str(recipe_file(tmp_path, empty))]).selection.selection == []


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("selecton: [echo]", [], "unknown key 'selecton'; did you mean 'selection'?"),
        ("", ["--temprature", "1"], "unknown key --temprature; did you mean 'temperature'?"),
        ("- a\n- b\n", [], "a recipe is a mapping"),
        ("a: [", [], "is not a YAML file"),
        ("", ["--temperature", "0"], "temperature is 0.0, but must be above 0"),
        ("", ["--test_fraction", "1.5"], r"test_fraction is 1.5"),
        ("", ["--dataset", "qrecc"], "needs --dataset_path"),
        ("", ["--dataset", "hub"], "needs --dataset_name"),
        ("", ["--dataset", "wikipedia"], "invalid choice"),
        ("", ["--num_train_epochs", "many"], "invalid float"),
        ("", ["--contrastive_weight", "0", "--regression_weight", "0"], "nothing to train on"),
        ("", ["--early_stopping_patience", "2"], "no validation loss"),
        ("", ["stray"], "'stray' belongs to no key"),
        ("", ["--hub_dataset_id", "a/b"], "without push_to_hub"),
    ],
)
def test_what_cannot_be_used_is_said(tmp_path: Path, text: str, line: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says.replace("[", r"\[")):
        read_recipe([str(recipe_file(tmp_path, text)), "--bf16", "false", *line])


def test_a_missing_recipe_names_those_that_exist(tmp_path: Path) -> None:
    recipe_file(tmp_path, "")
    with pytest.raises(InputError, match=r"no recipe at .*other.yaml; there are: .*mine.yaml"):
        read_recipe([str(tmp_path / "other.yaml")])


def test_keys_are_a_recipe_again(tmp_path: Path) -> None:
    import yaml

    path = recipe_file(
        tmp_path,
        "temperature: 0.5\nlearning_rate: 2e-5\nselection: [echo]\nlr_scheduler_kwargs: {num_cycles: 2}\n",
    )
    once = read_recipe([str(path)])
    again = read_recipe(
        [str(recipe_file(tmp_path, yaml.safe_dump({**once.keys(), "environment": {"x": 1}})))]
    )
    assert again.keys() == once.keys()


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_recipe_reads(path: Path) -> None:
    recipe = read_recipe([str(path), "--dataset_path", "somewhere"])
    assert recipe.name == path.stem


def test_the_papers_recipe_is_the_papers() -> None:
    recipe = read_recipe([str(ROOT / "recipes" / "qrecc.yaml"), "--dataset_path", "x"])
    o, s, t = recipe.objective, recipe.student, recipe.training
    assert (o.contrastive_weight, o.regression_weight, o.regression_on, o.temperature) == (
        1.0,
        0.1,
        "diagonal",
        0.1,
    )
    assert (o.alignment_weight, o.distribution_weight) == (0.0, 0.0)
    assert (s.student_backbone, s.student_pooling, s.student_dim, s.head_dropout) == (
        "microsoft/MiniLM-L12-H384-uncased",
        "cls",
        256,
        0.1,
    )
    assert (t.learning_rate, t.weight_decay, t.per_device_train_batch_size, t.num_train_epochs) == (
        5e-5,
        0.01,
        16,
        8,
    )
    assert (t.warmup_steps, t.max_grad_norm, recipe.trainer.early_stopping_patience) == (
        0.1,
        1.0,
        3,
    )
    assert recipe.teacher.teacher == "sentence-transformers/multi-qa-mpnet-base-dot-v1"
    assert recipe.teacher.teacher_pooling == "mean"
    assert recipe.selection.selection == ["percentile=80"]
    assert s.student_max_length == 256


def test_help_lists_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        read_recipe(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for key in (
        "dataset",
        "selection",
        "student_layers",
        "regression_on",
        "run_dir",
        "until",
        "learning_rate",
    ):
        assert f"--{key} " in text


def test_final_weights_are_read_or_refused() -> None:
    assert parse_final_weights(["contrastive=1", "alignment=0"]) == {
        "contrastive": 1.0,
        "alignment": 0.0,
    }
    for bad in ("contrastive", "contrastive=-1", "contrast=1", "margin=inf", "=1"):
        with pytest.raises(
            InputError,
            match="is no TERM=WEIGHT with a term of contrastive, regression, distribution, margin, alignment",
        ):
            parse_final_weights([bad])


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("localhost:8080", "is no address like http"),
        ("ftp://host/v1", "is no address like http"),
        ("ftp://me:secret@host/v1", "put the key in OPENAI_API_KEY"),
        ("https://me:secret@host/v1", "put the key in OPENAI_API_KEY"),
        ("https://host/v1?key=secret", "put the key in OPENAI_API_KEY"),
    ],
)
def test_an_endpoint_has_an_address_without_a_secret(url: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        read_recipe(["--teacher_kind", "endpoint", "--teacher_url", url])
    assert "secret" not in str(caught.value)


def test_a_runs_own_recipe_keeps_the_runs_name(tmp_path: Path) -> None:
    """The folder may be called anything: its recipe goes on with the run that is there."""
    path = tmp_path / "anything" / "recipe.yaml"
    path.parent.mkdir()
    path.write_text("temperature: 0.2\nenvironment: {recipe: quickstart}\n")
    assert read_recipe([str(path)]).name == "quickstart"
    path.write_text("temperature: 0.2\n")
    assert read_recipe([str(path)]).name == "anything"
