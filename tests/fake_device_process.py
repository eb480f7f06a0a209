"""The tensor code of the hot paths on the fake device and on the CPU, and a whole run on both:
`fake_device_process.py TEACHER OUT RECIPE...`. What both gave, and what was counted, goes to
`OUT/results.json`; the runs are `OUT/cpu` and `OUT/fake`.
"""

from __future__ import annotations

import contextlib
import copy
import json
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch


def _no_grad(mode: Any = True) -> Any:
    """In place of `torch.inference_mode`, whose tensors take no views of wrappers."""
    if callable(mode):
        return torch.no_grad()(mode)
    return torch.no_grad() if mode else torch.enable_grad()


vars(torch)["inference_mode"] = _no_grad

# ruff: noqa: E402  (libraries decorate their functions with it when they are imported)
import numpy as np
from accelerate import PartialState
from conftest import sentences
from fake_device import DEVICE, NAME, TRAFFIC, FakeDevice, let_libraries_compare_memory
from tiny_training import Tiny, tiny, vectors_of
from torch import Tensor
from training_process import rows_by_number, rows_of_texts_alone
from transformers import TrainingArguments

from hf_distill.commands.train import main as train
from hf_distill.compute import encode as encoding
from hf_distill.compute.search import search
from hf_distill.recipe.config import DistillationConfig
from hf_distill.scoring import ranking
from hf_distill.scoring.embeddings import EmbeddingTable
from hf_distill.training.trainer import DistillationTrainer

EVERY: dict[str, Any] = {
    "contrastive_weight": 1.0, "regression_weight": 2.0, "kl_weight": 0.5, "margin_weight": 0.5,
    "spread_out_weight": 2.0, "list_kl_weight": 0.5, "list_margin_weight": 2.0,
    "alignment_weight": 3.0, "regression_on": "matrix", "false_negative_margin": 0.05,
    "contrastive_symmetric": True, "matryoshka_dims": [8], "texts_per_pair": 2,
}  # fmt: skip
ALONE = {name: 0.0 for name in EVERY if name.endswith("_weight")} | {
    "alignment_weight": 1.0, "texts_per_pair": 2,
}  # fmt: skip


class Inline:
    """A ThreadPoolExecutor whose one thread is the caller's: a dispatch mode is of one thread."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def submit(self, act: Callable[..., Any], *arguments: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(act(*arguments))
        return done


def counted() -> dict[str, Any]:
    """What was counted since the last call."""
    result = {
        "waits": dict(TRAFFIC.waits),
        "copies": dict(TRAFFIC.copies),
        "operations": sum(TRAFFIC.operations.values()),
    }
    TRAFFIC.clear()
    return result


def searching() -> dict[str, Any]:
    """20 queries among 20,000 documents: three blocks."""
    draw = np.random.default_rng(1)
    queries, documents = (draw.normal(size=(n, 8)).astype(np.float32) for n in (20, 20_000))
    same = {}
    for similarity in ("dot", "euclidean"):
        ours = search(queries, documents, 10, similarity, str(DEVICE))
        theirs = search(queries, documents, 10, similarity, "cpu")
        same[similarity] = all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    counted()
    search(queries, documents, 10, "dot", str(DEVICE))
    return {"same": same, **counted()}


def ranked() -> dict[str, Any]:
    """600 queries (two blocks) with two documents each, in a pool of 9,000 (two blocks)."""
    draw = np.random.default_rng(2)
    embeddings = draw.normal(size=(9_600, 8)).astype(np.float16)
    table = EmbeddingTable(vectors_of(embeddings), np.arange(9_000, 9_600), np.arange(9_000))
    queries, documents = np.repeat(np.arange(600), 2), draw.integers(0, 9_000, 1_200)
    of_queries = embeddings[9_000:][queries].astype(np.float32)
    scores = (of_queries * embeddings[documents]).sum(1).astype(np.float32)
    pairs = ranking.RankedPairs(queries, documents, scores)
    results = []
    for device in ("cpu", str(DEVICE)):
        vars(ranking)["ranking_device"] = lambda device=device: device
        counted()
        results.append(ranking.rank_pairs(pairs, table, "dot", np.arange(9_000), 4, "key"))
    names = ("rank", "margin", "negatives", "negative_scores")
    same = [np.array_equal(*(getattr(r, n) for r in results), equal_nan=True) for n in names]
    return {"same": all(same), **counted()}


def encoded(parts: Tiny) -> dict[str, Any]:
    """200 texts in batches of 256 tokens."""
    vars(encoding)["ThreadPoolExecutor"] = Inline
    texts = sentences(200)
    model = copy.deepcopy(parts.teacher)
    on_cpu = encoding.encode(model, texts, 256)
    model.to(DEVICE)
    batches: list[int] = []
    counted()
    on_device = encoding.encode(model, texts, 256, lambda count, _: batches.append(count))
    return {"same": torch.equal(on_cpu, on_device), "batches": len(batches), **counted()}


def trainer_of(parts: Tiny, folder: Path, rows: Any, device: torch.device, **keys: Any) -> Any:
    """A trainer on `device`; on the CPU as on an accelerator, padded and without own kernels."""
    config = DistillationConfig(
        str(folder), report_to="none", disable_tqdm=True, use_cpu=True, save_strategy="no",
        per_device_train_batch_size=8, learning_rate=1e-3, logging_steps=2, max_steps=4, seed=3,
        lr_scheduler_type="constant", **keys,
    )  # fmt: skip
    vars(config)["_setup_devices"] = device
    PartialState().device = device  # the config has made a new state
    trainer = DistillationTrainer(
        copy.deepcopy(parts.student), config, rows,
        components=parts.components,
        lookup=parts.lookup,
    )  # fmt: skip
    if device.type == "cpu":
        vars(trainer)["_fast"] = contextlib.nullcontext
        trainer.data_collator.packer = None
        trainer.data_collator.group_characters = 57_344
    return trainer


def trained(parts: Tiny, folder: Path, rows: Any, **keys: Any) -> dict[str, Any]:
    """Four steps on both devices: the logged terms, and what was counted up to the end of each
    loss. A row is logged after every second one.
    """
    logs: list[list[dict[str, float]]] = []
    steps: list[dict[str, Any]] = []
    for device in (torch.device("cpu"), DEVICE):
        trainer = trainer_of(parts, folder, rows, device, **keys)
        step = trainer.training_step

        def watched(*arguments: Any, step: Any = step) -> Tensor:
            loss: Tensor = step(*arguments)  # counts the loader and the optimizer before it, too
            steps.append(counted())
            return loss

        trainer.training_step = watched
        trainer.train()
        names = ("loss", "grad_norm", *trainer.terms)
        logged = [row for row in trainer.state.log_history if "loss" in row]
        logs.append([{name: row[name] for name in names} for row in logged])
    return {"logs": logs, "steps": steps[len(steps) // 2 :]}


def forgotten(parts: Tiny, folder: Path) -> str:
    """What a step says if the components stay on the host."""

    class Stays:
        def to(self, *_: Any, **__: Any) -> Tensor:
            return torch.as_tensor(parts.components)

    trainer = trainer_of(parts, folder, rows_by_number(parts), DEVICE, **EVERY)
    trainer.components = Stays()
    try:
        trainer.train()
    except RuntimeError as error:
        return str(error)
    return ""


def use_fake_device() -> None:
    """From here on the package and the Trainer find the fake device, where they would a GPU."""
    answers = {"device_type": NAME, "ranking_device": str(DEVICE), "loader_workers": 0}
    for module in [m for name, m in sys.modules.items() if name.startswith("hf_distill.")]:
        for name in answers.keys() & vars(module).keys():
            vars(module)[name] = lambda *_, answer=answers[name]: answer
    set_up = TrainingArguments.__dict__["_setup_devices"].func

    def device(arguments: TrainingArguments) -> torch.device:
        if "_is_set_up" not in vars(arguments):  # once, or the state of a training is lost
            set_up(arguments)
            vars(arguments)["_is_set_up"] = True
        PartialState().device = DEVICE  # `use_cpu` has set the CPU
        return DEVICE

    of_class: Any = TrainingArguments
    of_class._setup_devices = property(device)


def main(teacher: Path, out: Path, line: list[str]) -> None:
    """Everything, one after the other."""
    parts = tiny(teacher, pairs=64, pool=512)
    for model in (parts.teacher, parts.student):  # fused attention rounds by device
        model[0].auto_model.set_attn_implementation("eager")
    results: dict[str, Any] = {}
    with FakeDevice():
        results["search"] = searching()
        results["ranking"] = ranked()
        results["encode"] = encoded(parts)
        results["every term"] = trained(parts, out, rows_by_number(parts), **EVERY)
        results["texts alone"] = trained(parts, out, rows_of_texts_alone(parts), **ALONE)
        results["forgotten"] = forgotten(parts, out)
    codes = [train([*line, "--run_dir", str(out / "cpu")])]
    use_fake_device()
    let_libraries_compare_memory()
    counted()
    with FakeDevice():
        codes.append(train([*line, "--run_dir", str(out / "fake")]))
    results["whole run"] = {"codes": codes, **counted()}
    (out / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
