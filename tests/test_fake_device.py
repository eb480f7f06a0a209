"""The tensor code of the hot paths as a GPU would run it: on one device, and with few waits."""

from __future__ import annotations

import ast
import contextlib
import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PROCESS_PATH, sentences
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize
from tiny_training import Tiny, tiny
from training_process import rows_by_number

import hf_distill
from hf_distill.compute import device
from hf_distill.compute.device import exact_products
from hf_distill.compute.models import in_dtype
from hf_distill.compute.search import search
from hf_distill.recipe.read import read_recipe
from hf_distill.training import trainer as module
from hf_distill.training.collator import groups_of
from hf_distill.training.hardware import with_workers
from hf_distill.training.trainer import LOSS_SCALE

PACKAGE = Path(hf_distill.__file__).parent
WHOLE = {
    "candidates_per_query": 6, "hard_negatives_per_pair": 2, "list_kl_weight": 1,
    "rerank_queries": 5, "texts_per_pair": 1, "num_train_epochs": 1, "eval_strategy": "no",
    "save_strategy": "no", "load_best_model_at_end": False, "early_stopping_patience": "none",
}  # fmt: skip
"""A run with mined lists, a ranker and a pool. A checkpoint would pickle tensors of the device."""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `fake_device_process.py` writes."""
    return tmp_path_factory.mktemp("fake")


@pytest.fixture(scope="module")
def results(teacher_dir: Path, tiny: Path, cross_encoder_dir: Path, out: Path) -> dict[str, Any]:
    """What `fake_device_process.py` found out, in a process of its own."""
    line = [
        tiny, "--ranker", f"cross-encoder:{cross_encoder_dir}", "--candidates", "teacher", "bm25",
        *(f"--{name}={value}" for name, value in WHOLE.items()),
    ]  # fmt: skip
    script = Path(__file__).parent / "fake_device_process.py"
    done = subprocess.run(
        [sys.executable, *map(str, (script, teacher_dir, out, *line))],
        capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "PYTHONPATH": PROCESS_PATH},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    read: dict[str, Any] = json.loads((out / "results.json").read_text())
    return read


def total(counted: dict[str, Any], what: str) -> int:
    return sum(counted[what].values())


def test_search_waits_only_for_its_answer(results: dict[str, Any]) -> None:
    of = results["search"]
    assert of["same"] == {"dot": True, "euclidean": True}
    assert total(of, "waits") == 3, "scores, indices and the longest document"
    assert total(of, "copies") == 1 + 3, "the queries, and each block of documents"


def test_a_pool_is_copied_once(results: dict[str, Any]) -> None:
    of, blocks = results["ranking"], 2
    assert of["same"]
    assert total(of, "waits") == 3 * blocks, "ranks, scores and places, and nothing in a tile"
    assert total(of, "copies") == 1 + 4 * blocks, "queries and their pairs"


def test_a_batch_of_the_scoring_waits_for_its_outputs(results: dict[str, Any]) -> None:
    of = results["encode"]
    assert of["same"]
    assert of["batches"] == 12, "10, if all texts were tokenised at once"
    assert total(of, "copies") == 2 * of["batches"], "tokens and mask"
    # transformers looks at the mask once in each forward pass
    assert total(of, "waits") == 2 * of["batches"]


@pytest.mark.parametrize(("rows", "columns"), [("every term", 14), ("texts alone", 8)])
def test_four_steps_have_the_losses_of_the_cpu_and_hardly_wait(
    results: dict[str, Any], rows: str, columns: int
) -> None:
    of = results[rows]
    on_cpu, on_device = of["logs"]
    assert len(on_cpu) == 2
    assert on_cpu == on_device
    _, plain, logs, last = of["steps"]
    for step in (plain, last):
        assert total(step, "waits") == 1, "transformers looks at the mask of the one group"
        assert total(step, "copies") == columns, "each tensor of the batch"
    assert total(logs, "waits") <= 1 + 14, "a logged row fetches each term once"


def test_a_forgotten_move_fails_with_its_line(results: dict[str, Any]) -> None:
    found = re.search(r"on one device.*(in_batch\.py):(\d+)", results["forgotten"])
    assert found, results["forgotten"]
    line = (PACKAGE / "training" / found[1]).read_text().splitlines()[int(found[2]) - 1]
    assert "components" in line


def test_a_whole_run_on_the_device_is_the_cpus(results: dict[str, Any], out: Path) -> None:
    """From reading to the report; the CPU packs its texts, the device pads them."""
    assert results["whole run"]["codes"] == [0, 0]
    assert total(results["whole run"], "copies") > 100, "it was there"
    runs = [out / name for name in ("cpu", "fake")]
    labels, losses, kept = [], [], []
    for run in runs:
        rows = json.loads((run / "teacher_soft_labels.json").read_text())
        labels.append([row["teacher_score"] for row in rows])
        log = json.loads((run / "training.json").read_text())["log"]
        losses.append([row["loss"] for row in log if "loss" in row])
        kept.append(json.loads((run / "selection.json").read_text())["kept"])
        assert (run / "report.html").is_file()
    np.testing.assert_allclose(*labels, atol=1e-3)
    np.testing.assert_allclose(*losses, rtol=1e-3)
    assert kept[0] == kept[1]
    lists = [np.load(run / "candidates" / "scores.npy") for run in runs]
    np.testing.assert_allclose(*lists, atol=1e-4)
    students = [
        SentenceTransformer(str(run / "student_model_sd"), device="cpu").encode(sentences(20))
        for run in runs
    ]
    assert (students[0] * students[1]).sum(axis=1).min() > 0.999


# --- what needs no fake device --------------------------------------------------------------------


def test_cuda_is_named_in_one_module() -> None:
    for file in PACKAGE.rglob("*.py"):
        names = {
            node.value
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        named = {name for name in names if re.fullmatch(r"cuda(:\d+)?", name)}
        assert not named or file == PACKAGE / "compute" / "device.py", file


@given(st.lists(st.integers(1, 900), max_size=60).map(sorted), st.integers(1, 5000))
@settings(max_examples=60)
def test_groups_hold_every_text_and_little_padding(lengths: list[int], most: int) -> None:
    sizes = groups_of(lengths, most)
    assert sum(sizes) == len(lengths)
    start = 0
    for size in sizes:
        group = lengths[start : start + size]
        assert size == 1 or size * group[-1] <= most
        assert 2 * group[0] >= group[-1]
        start += size


def test_a_batch_of_the_recommended_size_is_a_few_groups() -> None:
    draw = np.random.default_rng(0)
    lengths = sorted(int(x) for x in draw.lognormal(4.3, 0.8, 288))
    assert len(groups_of(lengths, module._GROUP_CHARACTERS)) <= 9, "18 of 16 texts each"


@pytest.fixture(scope="module")
def parts(teacher_dir: Path) -> Tiny:
    return tiny(teacher_dir, pairs=64, pool=512)


RECOMMENDED = {
    "contrastive_weight": 12.0, "regression_weight": 108.0, "alignment_weight": 540.0,
    "temperature": 0.05, "false_negative_margin": 0.1, "texts_per_pair": 16,
}  # fmt: skip


@pytest.mark.parametrize(("scale", "holds"), [(LOSS_SCALE, True), (65536.0, False)])
def test_the_recommended_objective_fits_float16_at_the_configured_scale(
    parts: Tiny, tmp_path: Path, scale: float, holds: bool
) -> None:
    """The loss and its gradients, scaled, under fp16 autocast on the CPU."""
    trainer = parts.trainer(
        tmp_path, rows_by_number(parts), components=parts.components, lookup=parts.lookup,
        **RECOMMENDED,
    )  # fmt: skip
    trainer.data_collator.packer = None
    trainer._fast = contextlib.nullcontext
    rows = [trainer.train_dataset[i] for i in range(8)]
    batch = trainer.data_collator(rows)
    with torch.autocast("cpu", dtype=torch.float16):
        loss = trainer.compute_loss(trainer.model, batch)
    assert torch.isfinite(loss)
    (loss * scale).backward()
    gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    assert all(bool(g.isfinite().all()) for g in gradients) == holds


def test_a_loss_scale_begins_low_and_may_skip_some_steps(parts: Tiny, tmp_path: Path) -> None:
    trainer = parts.trainer(tmp_path)
    broken, whole = torch.tensor([1.0, torch.inf]), torch.tensor([1.0, 1.0])

    def look(*losses: torch.Tensor) -> None:
        trainer._losses = list(enumerate(losses))
        trainer._check_losses()

    with pytest.raises(FloatingPointError, match=r"step 1: .*'regression': inf"):
        look(whole, broken, whole)
    trainer._skipped = 0
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
    trainer._set_loss_scale()
    assert trainer.accelerator.scaler.get_scale() == LOSS_SCALE
    look(*[broken] * 8)
    look(*[broken] * 7, whole, *[broken] * 15)
    with pytest.raises(FloatingPointError, match="step 0"):
        look(broken)


def test_losses_of_an_accelerator_are_checked_before_anything_is_saved(
    parts: Tiny, tmp_path: Path
) -> None:
    trainer = parts.trainer(tmp_path)
    trainer._losses = [(3, torch.tensor([torch.nan, 0.0]))]
    with pytest.raises(FloatingPointError, match="step 3"):
        trainer._save_checkpoint(trainer.model, None)
    assert not list(tmp_path.iterdir())


def test_search_is_exact_whatever_precision_products_have() -> None:
    draw = np.random.default_rng(5)
    queries, documents = (draw.normal(size=(n, 384)).astype(np.float32) for n in (40, 3000))
    before = torch.get_float32_matmul_precision()
    exact = search(queries, documents, 3, device="cpu")
    torch.set_float32_matmul_precision("medium")  # TF32 on a GPU, bfloat16 on some CPUs
    try:
        settings = torch.backends.cuda.matmul.fp32_precision
        again = search(queries, documents, 3, device="cpu")
        with exact_products():
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == settings == "tf32"
    finally:
        torch.set_float32_matmul_precision(before)
    assert all(np.array_equal(a, b) for a, b in zip(exact, again, strict=True))


def test_workers_tokenise_for_an_accelerator_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "cpu_cores", lambda: 16)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    line = ["quickstart", "--use_cpu", "false"]
    for on, flags, workers, persistent in (
        ("cpu", [], 0, False),
        (device._CUDA, [], 4, True),
        (device._CUDA, ["--dataloader_num_workers", "0"], 0, False),
    ):
        training = with_workers(read_recipe([*line, *flags]), on).training
        assert training.dataloader_num_workers == workers
        assert training.dataloader_persistent_workers == persistent
        assert training.accelerator_config.non_blocking == (on != "cpu")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert device.loader_workers(device._CUDA, 8) == 1


def test_a_teacher_in_float16_normalises_zeros_to_zeros() -> None:
    model = SentenceTransformer(modules=[Normalize()], device="cpu")
    lengths = {}
    for dtype in (torch.float32, torch.float16):
        own = in_dtype(copy.deepcopy(model), dtype)
        rows = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=dtype)
        lengths[dtype] = own({"sentence_embedding": rows})["sentence_embedding"].norm(dim=1)
    assert lengths[torch.float16].tolist() == lengths[torch.float32].tolist() == [0.0, 1.0]
