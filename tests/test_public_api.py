"""What users import is pinned: a change here is a change for them."""

import inspect
import subprocess
import sys

import hf_distill


def test_all_is_pinned() -> None:
    assert sorted(hf_distill.__all__) == [
        "DistillationCollator", "DistillationConfig", "DistillationTrainer", "InputError", "Run",
        "conversation_query", "finished", "read_recipe", "save_student", "train",
    ]  # fmt: skip


def test_every_public_name_is_documented() -> None:
    for name in hf_distill.__all__:
        assert inspect.getdoc(getattr(hf_distill, name)), name


def test_import_sets_up_no_logging_and_asks_no_network() -> None:
    code = (
        "import logging, socket\n"
        "def refuse(*a, **k): raise AssertionError('network at import')\n"
        "socket.socket.connect = refuse\n"
        "import hf_distill\n"
        "assert not logging.getLogger().handlers, logging.getLogger().handlers\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
