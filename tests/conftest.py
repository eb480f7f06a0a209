"""Tiny models, built once in memory, and the real data where it is."""

from __future__ import annotations

import os

# Before anything imports huggingface_hub: no test may ask the Hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tests run two at a time, on models too small for more threads. A run takes its share of the cores:
# one, as if it had that many neighbours.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("LOCAL_WORLD_SIZE", str(os.cpu_count() or 1))

import contextlib
import gc
import io
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tiny_models import make_tokenizer, sentences
from transformers import BertConfig, BertForSequenceClassification, BertModel
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from hf_distill.commands.train import main as train_main
from hf_distill.data.collection import Collection
from hf_distill.data.load import load_collection
from hf_distill.recipe.arguments import Recipe
from hf_distill.recipe.read import read_recipe
from hf_distill.run.folder import RunFolder

ROOT = Path(__file__).resolve().parent.parent
REAL_DATA = ROOT.parent / "shared" / "data"
PROCESS_PATH = os.pathsep.join(str(ROOT / name) for name in ("", "tests", "benchmarks"))
"""Where a script in tests/ finds what it imports, in a process of its own."""


def recipe_of(recipe: object = "quickstart", **keys: Any) -> Recipe:
    """A recipe with other keys; a list is several values, None unsets a key."""
    line = [str(recipe)]
    for name, value in {"bf16": False, "teacher_dtype": "float32", **keys}.items():
        values = value if isinstance(value, list) else [value]
        line += [f"--{name}", *("none" if v is None else str(v) for v in values or [None])]
    return read_recipe(line)


def pytest_collection_finish() -> None:
    """What is imported by now stays. Each training collects garbage, and need not look through all
    of that for it.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_deepspeed_is_left() -> Iterator[None]:
    """The Trainer's arguments remember a DeepSpeed configuration for the whole process, also one
    that was refused.
    """
    yield
    unset_hf_deepspeed_config()


@pytest.fixture(scope="session")
def backbone_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random 4-layer, 32-dimensional BERT with a vocabulary of some 80 words, as transformers
    saves it.
    """
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "backbone"
    tokenizer = make_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def teacher_dir(backbone_dir: Path) -> Path:
    """The same as a SentenceTransformer: mean pooling, L2-normalised."""
    folder = backbone_dir.parent / "teacher"
    transformer = Transformer(str(backbone_dir))
    model = SentenceTransformer(
        modules=[transformer, Pooling(32, pooling_mode="mean"), Normalize()], device="cpu"
    )
    model.max_seq_length = 32
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


@pytest.fixture(scope="session")
def words_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that reads 32 words in any order: the mean of their random vectors."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("words")
    tokenizer = make_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=0, num_attention_heads=4,
        max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    model = BertModel(config)
    for table in (model.embeddings.position_embeddings, model.embeddings.token_type_embeddings):
        torch.nn.init.zeros_(table.weight)
    model.save_pretrained(folder / "backbone")
    tokenizer.save_pretrained(folder / "backbone")
    modules = [Transformer(str(folder / "backbone")), Pooling(64, pooling_mode="mean"), Normalize()]
    teacher = SentenceTransformer(modules=modules, device="cpu")
    teacher.max_seq_length = 32
    teacher.save_pretrained(str(folder / "teacher"), create_model_card=False)
    return folder / "teacher"


@pytest.fixture(scope="session")
def cross_encoder_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny real cross-encoder whose logits leave [-1, 1], as transformers saves it."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("models") / "cross-encoder"
    tokenizer = make_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64, initializer_range=0.5, num_labels=1,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 pairs in JSONL, a group of four after another."""
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    queries, documents = sentences(200), sentences(200, 1000)
    rows = [
        {"query": q, "document": d, "topic": i // 4}
        for i, (q, d) in enumerate(zip(queries, documents, strict=True))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """The folder of a run that has not begun."""
    return RunFolder(tmp_path / "run")


@pytest.fixture
def collection(pairs_file: Path, folder: RunFolder) -> Collection:
    """`pairs_file`, split."""
    keys = {"dataset": "files", "dataset_path": pairs_file, "group_column": "topic", "seed": 0}
    return load_collection(recipe_of(run_dir=folder.path, **keys), folder)


TINY = {
    "dataset": "files", "group_column": "topic", "test_fraction": 0.2, "validation_fraction": 0.1,
    "teacher_dtype": "float32", "selection": ["invalid", "echo", "duplicate", "percentile=20"],
    "student_layers": "0,2", "student_dim": 16, "student_init": "pca", "student_max_length": 32,
    "student_dropout": 0.0, "alignment_weight": 1.0, "regression_on": "matrix",
    "num_train_epochs": 2, "per_device_train_batch_size": 16, "learning_rate": 1e-3,
    "warmup_steps": 0.1, "eval_strategy": "epoch", "save_strategy": "epoch",
    "load_best_model_at_end": True, "early_stopping_patience": 3, "logging_steps": 2, "bf16": False,
}  # fmt: skip
"""A whole run of seconds: four layers of 32 dimensions, 200 pairs."""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, pairs_file: Path, teacher_dir: Path) -> Path:
    """The file of the recipe `TINY`."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    paths = {"dataset_path": str(pairs_file), "teacher": str(teacher_dir)}
    path.write_text(yaml.safe_dump({**TINY, **paths}))
    return path


@dataclass(frozen=True)
class Said:
    """What a program printed, and its exit code."""

    code: int
    out: str
    err: str


def call(line: Sequence[object], main: Callable[[list[str]], int] = train_main) -> Said:
    """Run a program of this project in this process, as its command line would."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(token) for token in line])
    return Said(code, out.getvalue(), err.getvalue())


def run_tiny(recipe: Path, run_dir: Path, *line: object) -> Said:
    """Run a recipe in this process and check that it came to its end."""
    said = call([recipe, "--run_dir", run_dir, *line])
    assert said.code == 0, said.err[-3000:]
    return said


@pytest.fixture(scope="session")
def finished_run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a whole run of `tiny`, and what it printed. Nobody writes to it."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    return folder, run_tiny(tiny, folder).out


@pytest.fixture
def copied(finished_run: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed."""
    return Path(shutil.copytree(finished_run[0], tmp_path / "copied"))


@pytest.fixture(scope="session")
def qrecc_train() -> Path:
    path = REAL_DATA / "qrecc_quac_train.json"
    if not path.is_file():
        pytest.skip(f"the real QReCC file is not here ({path.name})")
    return path
