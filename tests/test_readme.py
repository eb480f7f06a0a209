"""The README's Python is run, and the commands it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import ROOT

from hf_distill.commands import COMMANDS

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=lambda code: code.strip().splitlines()[-1][:40])
@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_the_snippets_run(
    code: str, teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for model in ("runs/quickstart/student_model_sd", "path/to/a/model"):
        code = code.replace(model, str(teacher_dir))
    exec(compile(code, "README.md", "exec"), {})


def test_every_subcommand_is_described_and_every_described_one_exists() -> None:
    assert set(re.findall(r"`?hf-distill (\w+)", README)) == set(COMMANDS)


def test_every_module_has_its_place_in_the_tree() -> None:
    tree = README[README.index("## Where things are") :]
    for path in (ROOT / "hf_distill").iterdir():
        name = path.name + "/" * path.is_dir()
        if not name.startswith("__") and name not in (
            "templates/",
            "py.typed",
            "errors.py",
            "hardware.py",
            "run_folder.py",
        ):
            assert name in tree, name
