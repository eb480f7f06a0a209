"""Imports go one way: a room may import those before it and never those behind it."""

import ast
from pathlib import Path

import pytest

import hf_distill

PACKAGE = Path(hf_distill.__file__).parent
LAYERS = (
    "errors", "recipe", "run", "compute", "data", "teachers", "candidates", "scoring", "selection",
    "student", "training", "evaluation", "report", "release", "serving", "pipeline", "finished_run",
    "study", "commands", "__main__",
)  # fmt: skip
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def layer_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_layers(file: Path) -> set[str]:
    names: list[str | None] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module)
    return {name.split(".")[1] for name in names if name and name.startswith("hf_distill.")}


@pytest.mark.parametrize("file", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_rooms_before_its_own(file: Path) -> None:
    own = layer_of(file)
    assert own in LAYERS, f"{own} has no place in the house; add it to LAYERS where it belongs"
    behind = {name for name in imported_layers(file) if LAYERS.index(name) > LAYERS.index(own)}
    assert not behind, f"{file.name} imports {behind}, which come after {own}"


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*/__init__.py")), ids=str)
def test_a_rooms_init_holds_no_logic(file: Path) -> None:
    allowed = (ast.Import, ast.ImportFrom, ast.Assign, ast.Expr)
    assert all(isinstance(node, allowed) for node in ast.parse(file.read_text()).body)


def test_only_run_and_scoring_compute_fingerprints() -> None:
    callers = {
        layer_of(file) for file in MODULES if "fingerprint(" in file.read_text(encoding="utf-8")
    }
    assert callers <= {"run", "scoring"}


def test_a_wrong_import_would_be_seen(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("from hf_distill.release.hub import publish\nimport hf_distill.training.rows\n")
    assert imported_layers(file) == {"release", "training"}
