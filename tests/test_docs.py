"""README and docs: their Python runs, their commands and files exist, their lines are short."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, recipe_of, run_tiny, sentences

from hf_distill.commands.main import COMMANDS
from hf_distill.data.load import load_collection
from hf_distill.finished_run import finished
from hf_distill.recipe.arguments import PARTS
from hf_distill.recipe.config import DistillationConfig
from hf_distill.recipe.kinds import FORMATS, RULES, SOURCES, TEACHERS
from hf_distill.run.folder import RunFolder

PAGES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
PAGES["README.md"] = (ROOT / "README.md").read_text(encoding="utf-8")
EXTENDING = PAGES["extending.md"]
A_FORMAT = "# my_format.py"
ELSEWHERE = ("# embed_corpus.py", "# stream.py")
"""Snippets that test_corpus.py runs, or that are a part of test_interrupted_training.py."""


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)


SNIPPETS = [
    pytest.param(code, id=f"{name} {number}")
    for name, page in sorted(PAGES.items())
    for number, code in enumerate(blocks(page, "python"))
    if page is not EXTENDING and not code.startswith(ELSEWHERE)
]


@pytest.mark.parametrize("code", SNIPPETS)
@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_the_snippets_run(
    code: str, teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for model in ("runs/quickstart/student_model_sd", "path/to/a/model"):
        code = code.replace(model, str(teacher_dir))
    exec(compile(code, "a snippet", "exec"), {})


@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_a_source_a_teacher_a_rule_and_a_term_of_ones_own_run_through_train(
    tiny: Path, backbone_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page's own code and recipe, from modules outside the package."""
    (recipe,) = blocks(EXTENDING, "yaml")
    codes = [code for code in blocks(EXTENDING, "python") if not code.startswith(A_FORMAT)]
    assert len(codes) == 4
    for code in codes:
        name, _, body = code.partition("\n")
        (tmp_path / name.removeprefix("# ")).write_text(body)
        statements = [line for line in body.splitlines() if line.strip()]
        assert len(statements) <= 15, f"{name} has {len(statements)} lines"
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    for i, (head, body) in enumerate(zip(sentences(120), sentences(120, 500), strict=True)):
        longer = f"{body} {body} {body} {body} {body}" if i % 3 == 0 else f"{head} {body}"
        (tmp_path / "notes" / f"{i:03}.txt").write_text(f"{head}\n{longer}")
    line = [
        token
        for key, value in yaml.safe_load(recipe).items()
        for token in (f"--{key}", *(value if isinstance(value, list) else [value]))
    ]
    run_tiny(
        tiny, tmp_path / "run", *line, "--group_column", "none", "--student_backbone",
        backbone_dir, "--student_init", "random", "--alignment_weight", "0", "--regression_on",
        "diagonal", "--num_train_epochs", "1",
    )  # fmt: skip
    results = finished(tmp_path / "run")
    assert results.collection.source.name == "my notes"
    assert results.soft_labels.teacher == "word overlap"
    (dropped,) = results.audit.rules
    assert (dropped.rule, dropped.dropped > 0) == ("my_rule:at_most=40", True)
    log = [row for row in results.training.log if "loss" in row]
    assert all(0 < row["spread"] < 0.1 for row in log)
    assert log[0]["spread"] + log[0]["contrastive"] < log[0]["loss"] + 1e-3


def test_a_format_of_ones_own_reads_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = (code for code in blocks(EXTENDING, "python") if code.startswith(A_FORMAT))
    (tmp_path / "my_format.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = [{"question": f"q {i}", "yes": f"yes {i}", "no": [f"no {i}", "no"]} for i in range(20)]
    path = tmp_path / "lists.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_dir = tmp_path / "run"
    recipe = recipe_of(dataset_path=path, format="my_format:LISTS", run_dir=run_dir, max_pairs=None)
    collection = load_collection(recipe, RunFolder(run_dir))
    assert collection.record.read_as == "questions with yes and no"
    assert collection.record.read == {"rows found": 60, "kept": 20, "judged not relevant": 40}


def test_every_subcommand_is_described_and_every_described_one_exists() -> None:
    text = "\n".join(PAGES.values())
    assert set(re.findall(r"hf-distill (\w+)", text)) == {*COMMANDS, "train"}


def test_every_flag_and_key_that_a_page_names_exists() -> None:
    keys = {name for part in (*PARTS, DistillationConfig) for name in part.__dataclass_fields__}
    of_commands = {"rules", "model", "dataset", "dry_run", "push", "task", "help", "python"} | {
        "split",
        "output",
        "noise",
        "with",
        "url",
        "json",
        "cdn",
    }
    of_launchers = {
        "config_file", "cpu", "num_processes", "nproc_per_node", "nnodes", "node_rank",
        "master_addr", "master_port", "multi_gpu", "num_machines", "machine_rank",
        "main_process_ip", "main_process_port",
    }  # fmt: skip
    of_benchmarks = {
        "steps",
        "turns",
        "peers",
        "runs",
        "publish",
        "processes",
        "hosts",
        "only",
        "pages",
        "pictures",
        "python",
    }
    flags = {flag for page in PAGES.values() for flag in re.findall(r"--([a-z]\w+)", page)}
    assert flags <= keys | of_commands | of_launchers | of_benchmarks
    for name in (*SOURCES, *FORMATS, *TEACHERS, *RULES):
        assert any(f"`{name}" in page for page in PAGES.values()), f"{name} is in no page"


def test_every_flag_that_a_message_names_exists() -> None:
    """Strings and docstrings of the package cite flags of the recipe or of its commands."""
    keys = {name for part in (*PARTS, DistillationConfig) for name in part.__dataclass_fields__}
    commands = "".join(p.read_text() for p in (ROOT / "hf_distill" / "commands").glob("*.py"))
    keys |= set(re.findall(r'"--([a-z]\w*)"', commands)) | {"key", "help"}
    others = {"nproc_per_node", "num_processes", "no_", "name", "student_"} | {
        "ink",
        "own",
        "other",
    }  # CSS, in plots
    for file in (ROOT / "hf_distill").rglob("*.py"):
        flags = set(re.findall(r"--([a-z][a-z0-9_]+)", file.read_text(encoding="utf-8")))
        assert flags <= keys | others, f"{file.name}: {flags - keys}"


def test_every_link_leads_somewhere() -> None:
    for name, page in PAGES.items():
        folder = ROOT if name == "README.md" else ROOT / "docs"
        for target in re.findall(r"\]\(([^)#]+)", page):
            assert (folder / target).exists(), f"{name} links to {target}"


def test_the_pages_are_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 120
    for name, page in PAGES.items():
        long = [line for line in page.splitlines() if len(line) > 100]
        assert not long, f"{name}: {long}"
