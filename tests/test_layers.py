"""Data flows one way: a module may import those above it and never those below."""

import ast
from pathlib import Path

import pytest

import hf_distill

PACKAGE = Path(hf_distill.__file__).parent
LAYERS = (
    "errors", "hardware", "arguments", "run_folder", "data", "encoding", "teachers", "shards", "scoring", "signals",
    "selection", "student", "augmentation", "packing", "collator", "objective", "trainer", "training", "search", "evaluation",
    "finished_run", "corpus_index", "selection_study", "plots",
    "report", "cards", "export", "onnx_export", "dataset_repo", "load_back", "publishing", "hub", "demo_app", "commands",
)  # fmt: skip
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def layer_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_layers(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        found |= {name.split(".")[1] for name in names if name and name.startswith("hf_distill.")}
    return found


@pytest.mark.parametrize("file", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_only_from_above(file: Path) -> None:
    own = layer_of(file)
    assert own in LAYERS, (
        f"{file.name} has no place in the house; add it to LAYERS where it belongs"
    )
    below = {name for name in imported_layers(file) if LAYERS.index(name) > LAYERS.index(own)}
    assert not below, f"{file.name} imports {below}, which lie below {own}"


def test_a_wrong_import_would_be_seen(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("from hf_distill.hub import publish\nimport hf_distill.trainer\n")
    assert imported_layers(file) == {"hub", "trainer"}
