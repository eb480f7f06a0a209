"""What only a GPU can tell: `pytest -n0 -m gpu`. Without one, all of it is skipped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, sentences
from sentence_transformers import SentenceTransformer

from hf_distill.compute.device import fast_precision
from hf_distill.compute.encode import encode
from hf_distill.compute.search import search

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def run(tiny: Path, folder: Path, *flags: str, visible: bool = True) -> Path:
    """A whole run in a process of its own, which sees one GPU or none."""
    devices = {"CUDA_VISIBLE_DEVICES": "0" if visible else ""}
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), str(tiny), "--run_dir", str(folder), *flags],
        capture_output=True, text=True, check=False, timeout=600,
        env={**os.environ, **devices, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def json_of(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in json_of(folder, "training.json")["log"] if "loss" in row]


@pytest.fixture(scope="module")
def on_cpu(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tiny, tmp_path_factory.mktemp("gpu") / "cpu", visible=False)


def test_a_whole_run_gives_what_the_cpu_gives(tiny: Path, on_cpu: Path, tmp_path: Path) -> None:
    """In float32: scores, losses, and the student."""
    on_gpu = run(tiny, tmp_path / "gpu")
    labels = [
        np.array([row["teacher_score"] for row in json_of(f, "teacher_soft_labels.json")])
        for f in (on_cpu, on_gpu)
    ]
    np.testing.assert_allclose(labels[1], labels[0], atol=1e-3)
    np.testing.assert_allclose(losses(on_gpu), losses(on_cpu), rtol=1e-2)
    texts = sentences(20)
    embeddings = [
        SentenceTransformer(str(f / "student_model_sd"), device="cpu").encode(texts)
        for f in (on_cpu, on_gpu)
    ]
    assert (embeddings[0] * embeddings[1]).sum(1).min() > 0.99
    selected = [json_of(f, "selection.json")["kept"] for f in (on_cpu, on_gpu)]
    assert selected[0] == pytest.approx(selected[1], abs=2)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_in_half_precision_is_near_that_in_float32(
    tiny: Path, on_cpu: Path, tmp_path: Path, precision: str
) -> None:
    if precision == "bf16" and fast_precision(torch.device("cuda").type) != "bf16":
        pytest.skip("this GPU has no bfloat16")
    flags = ["--bf16", str(precision == "bf16"), "--fp16", str(precision == "fp16")]
    dtype = {"bf16": "bfloat16", "fp16": "float16"}[precision]
    folder = run(tiny, tmp_path / precision, *flags, "--teacher_dtype", dtype)
    assert json_of(folder, "training.json")["precision"] == precision
    assert len(losses(folder)) == len(losses(on_cpu)), "a skipped step is still a step"
    np.testing.assert_allclose(losses(folder)[-1], losses(on_cpu)[-1], rtol=0.1)


def test_search_is_exact_without_tf32() -> None:
    draw = np.random.default_rng(5)
    queries, documents = (draw.normal(size=(n, 384)).astype(np.float32) for n in (600, 20_000))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        ours = search(queries, documents, 10, device="cuda")
    finally:
        torch.set_float32_matmul_precision(before)
    theirs = search(queries, documents, 10, device="cpu")
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_teacher_embeds_as_on_the_cpu(teacher_dir: Path) -> None:
    texts = sentences(300)
    on_cpu, on_gpu = (
        encode(SentenceTransformer(str(teacher_dir), device=device).eval(), texts)
        for device in ("cpu", "cuda")
    )
    torch.testing.assert_close(on_gpu, on_cpu, atol=1e-4, rtol=0)
