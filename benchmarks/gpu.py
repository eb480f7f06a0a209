"""Every stage that computes, on a GPU beside the CPU: `python benchmarks/gpu.py`. Five minutes.

Scoring, search, ranking and training, in float32, float16 and bfloat16: tokens/s or seconds, the
share of the measured matrix-multiply peak, and how far the results are from the CPU's in float32.
The models have random weights and the size of MiniLM-L6, so nothing is downloaded; `--teacher`
names another one. Without a GPU it says so and exits with code 2. The last line is JSON.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from machine import matmul_peak
from scoring import flops_of
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tiny_models import make_tokenizer, sentences
from training import StepTimes, flops_of_step, own_rows
from transformers import BertConfig, BertModel

from hf_distill.compute.device import device_type, fast_precision, use_all_cores
from hf_distill.compute.encode import encode
from hf_distill.compute.search import search
from hf_distill.recipe.config import DistillationConfig
from hf_distill.scoring import ranking
from hf_distill.scoring.embeddings import EmbeddingTable, Vectors
from hf_distill.training.trainer import DistillationTrainer


@dataclass(frozen=True)
class Sizes:
    """How much is done.

    Attributes:
        texts: That are embedded.
        compared: Of them, and of queries: those that the CPU does, too.
        queries, documents: That search, and that are searched.
        pairs: That are ranked, in a pool of `documents`.
        batch, steps: Of the training.
        shape: Layers, dimension, heads and inner dimension of the model.
    """

    texts: int = 50_000
    compared: int = 256
    queries: int = 5_000
    documents: int = 100_000
    pairs: int = 5_000
    batch: int = 128
    steps: int = 40
    shape: tuple[int, int, int, int] = (6, 384, 12, 1536)


def random_model(shape: tuple[int, int, int, int], folder: Path) -> SentenceTransformer:
    """A teacher with random weights, on the CPU."""
    layers, dimension, heads, inner = shape
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=dimension, num_hidden_layers=layers,
        num_attention_heads=heads, intermediate_size=inner, initializer_range=0.1,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    modules = [Transformer(str(folder)), Pooling(dimension, pooling_mode="mean"), Normalize()]
    model = SentenceTransformer(modules=modules, device="cpu").eval()
    model.max_seq_length = 256
    return model


def texts_of(count: int) -> list[str]:
    """Texts of 10 to 120 words."""
    return [" ".join(sentences(1 + i % 12, 12 * i)) for i in range(count)]


def timed(act: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what `act` returned. Everything here brings its result back to the host."""
    start = time.perf_counter()
    result = act()
    return time.perf_counter() - start, result


def precisions(device: str) -> dict[str, torch.dtype]:
    """Those that are measured."""
    half = {} if device == "cpu" else {"fp16": torch.float16}
    fast = {"bf16": torch.bfloat16} if fast_precision(device) == "bf16" else {}
    return {"fp32": torch.float32, **half, **fast}


def scoring(model: SentenceTransformer, device: str, sizes: Sizes) -> dict[str, Any]:
    """`encode` in each precision."""
    texts = texts_of(sizes.texts)
    some = texts[: sizes.compared]
    on_cpu, flops = encode(model, some), flops_of(model, texts)
    tokens = sum(map(len, model.tokenizer(texts, truncation=True, max_length=256)["input_ids"]))
    figures = {}
    for name, dtype in precisions(device).items():
        own = copy.deepcopy(model).to(device, dtype)
        encode(own, some)  # the first call is slow
        seconds, embeddings = timed(lambda own=own: encode(own, texts))
        figures[name] = {
            "tokens_per_second": round(tokens / seconds),
            "peak_share": round(flops / seconds / matmul_peak(device, dtype), 3),
            "max_diff": float((embeddings[: sizes.compared] - on_cpu).abs().max()),
        }
    return figures


def searching(device: str, sizes: Sizes) -> dict[str, Any]:
    """Exact search, with the precision of products that a training may have set."""
    draw = np.random.default_rng(0)
    queries, documents = (
        draw.normal(size=(n, 384)).astype(np.float32) for n in (sizes.queries, sizes.documents)
    )
    search(queries[:8], documents[:8], 4, device=device)
    torch.set_float32_matmul_precision("medium")
    seconds, (_, found) = timed(lambda: search(queries, documents, 100, device=device))
    torch.set_float32_matmul_precision("highest")
    few = queries[: sizes.compared]
    cpu_seconds, (_, expected) = timed(lambda: search(few, documents, 100, device="cpu"))
    return {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu_seconds * len(queries) / len(few), 3),
        "equal": bool(np.array_equal(found[: len(few)], expected)),
    }


def ranked(device: str, sizes: Sizes) -> dict[str, Any]:
    """The ranking of pairs in a pool."""
    draw = np.random.default_rng(1)
    rows = draw.normal(size=(sizes.documents + sizes.pairs, 384)).astype(np.float16)
    places = np.arange(len(rows), dtype=np.uint32)
    pool = np.arange(sizes.documents)
    table = EmbeddingTable(
        Vectors((rows,), places, 384), sizes.documents + pool[: sizes.pairs], pool
    )
    own = draw.integers(0, sizes.documents, sizes.pairs)
    scores = np.einsum("nd,nd->n", rows[sizes.documents :], rows[own], dtype=np.float32)
    pairs = ranking.RankedPairs(np.arange(sizes.pairs), own, scores)
    taken, results = [], []
    for place in (device, "cpu"):
        vars(ranking)["ranking_device"] = lambda place=place: place
        seconds, result = timed(lambda: ranking.rank_pairs(pairs, table, "dot", pool, 4, ""))
        taken.append(seconds)
        results.append(result)
    return {
        "seconds": round(taken[0], 3),
        "cpu_seconds": round(taken[1], 3),
        "equal_ranks": round(float((results[0].rank == results[1].rank).mean()), 4),
    }


def training(model: SentenceTransformer, device: str, sizes: Sizes) -> dict[str, Any]:
    """Steps of contrast and alignment in each precision, and the losses of the first ones."""
    count = 4 * sizes.batch
    texts = texts_of(2 * count)
    rows = Dataset.from_dict({"query": texts[:count], "document": texts[count:]})
    vectors = encode(model, texts).numpy().reshape(2, count, -1)
    dimension = vectors.shape[2]
    head = Dense(dimension, dimension, bias=False, activation_function=torch.nn.Identity())
    head.linear.weight.data = torch.eye(dimension)
    student = SentenceTransformer(modules=[*list(model)[:2], head, model[2]], device="cpu")
    flops = flops_of_step(student, rows, sizes.batch)
    figures: dict[str, Any] = {}

    def trained(on: str, precision: str, steps: int) -> tuple[float, list[float]]:
        times = StepTimes()
        with tempfile.TemporaryDirectory() as folder:
            config = DistillationConfig(
                folder, per_device_train_batch_size=sizes.batch, max_steps=steps, seed=0,
                bf16=precision == "bf16", fp16=precision == "fp16", use_cpu=on == "cpu",
                save_strategy="no", report_to="none", disable_tqdm=True, logging_steps=1,
                learning_rate=1e-5, temperature=0.05, alignment_weight=15,
            )  # fmt: skip
            trainer = DistillationTrainer(
                copy.deepcopy(student), config, own_rows(rows, vectors), callbacks=[times]
            )
            trainer.train()
        log = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        return statistics.median(np.diff(times.ends)[1:] if steps > 3 else times.ends), log

    first = trained("cpu", "fp32", 3)[1]
    for name, dtype in precisions(device).items():
        seconds, losses = trained(device, name, sizes.steps)
        tokens = (
            flops
            / 6
            / sum(
                m.weight.numel()
                for m in student[0].auto_model.encoder.modules()
                if isinstance(m, torch.nn.Linear)
            )
        )
        figures[name] = {
            "ms_per_step": round(1000 * seconds, 2),
            "tokens_per_second": round(tokens / seconds),
            "peak_share": round(flops / seconds / matmul_peak(device, dtype), 3),
            "max_loss_diff": float(np.abs(np.subtract(losses[:3], first)).max()),
        }
    return figures


def measure(device: str, sizes: Sizes, teacher: str | None = None) -> dict[str, Any]:
    """Every stage on `device`."""
    with tempfile.TemporaryDirectory() as folder:
        model = (
            SentenceTransformer(teacher, device="cpu").eval()
            if teacher
            else random_model(sizes.shape, Path(folder))
        )
        figures: dict[str, Any] = {"device": device}
        stages: dict[str, Callable[[], dict[str, Any]]] = {
            "scoring": lambda: scoring(model, device, sizes),
            "search": lambda: searching(device, sizes),
            "ranking": lambda: ranked(device, sizes),
            "training": lambda: training(model, device, sizes),
        }
        for name, stage in stages.items():
            seconds, figures[name] = timed(stage)
            print(f"{name:<10}{seconds:>7.1f} s  {json.dumps(figures[name])}", flush=True)
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", help="A model in a folder, instead of random weights.")
    options = parser.parse_args(argv)
    warnings.filterwarnings("ignore")
    if device_type() == "cpu":
        print("gpu.py: there is no GPU here, so there is nothing to measure", file=sys.stderr)
        return 2
    use_all_cores(1)
    figures = measure(device_type(), Sizes(), options.teacher)
    figures["name"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "mps"
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
