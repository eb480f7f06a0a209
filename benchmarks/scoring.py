"""Teacher scoring beside SentenceTransformer.encode, on the same texts in one run: `python
benchmarks/scoring.py [--dataset ...]`.

Prints pairs/s of `encode` with its defaults, of `encode` with its best batch size and precision,
and of this project; the share of the measured matrix-multiply peak; and how far scores are from
those in float32. With `--memory`, also the peak memory of a whole scoring stage on 10^5 and 10^6
synthetic pairs. The variants take turns, and medians of `--rounds` count, because machines are
noisy. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset
from machine import matmul_peak, memory_mb, peak_memory
from sentence_transformers import SentenceTransformer

from hf_distill.compute.device import cpu_cores, device_type, fast_precision
from hf_distill.compute.encode import Advance, encode
from hf_distill.compute.models import QUICKSTART_TEACHER, load_sentence_transformer
from hf_distill.data.collection import (
    JUDGEMENT_FEATURES,
    TEXT_FEATURES,
    Collection,
    CollectionRecord,
    Pairs,
    Source,
    write_table,
)
from hf_distill.pipeline import Run
from hf_distill.recipe.read import read_recipe
from hf_distill.run.folder import RunFolder
from hf_distill.scoring.scores import score_collection
from hf_distill.teachers.base import EmbeddingTeacher

BATCH_SIZES = {"cpu": (32, 128), "cuda": (32, 128, 512)}
HELD_OUT = 1000
"""Of the synthetic pairs."""


def precisions(device: str) -> list[torch.dtype]:
    """float32, and what the device has units for, the one that this project takes last."""
    fast = fast_precision(device)
    half = [torch.float16] if device == "cuda" and fast != "fp32" else []
    return [torch.float32, *half, *([torch.bfloat16] if fast == "bf16" else [])]


def flops_of(model: SentenceTransformer, texts: list[str]) -> float:
    """Of one forward pass over `texts` without padding: two for each weight of a linear layer and
    token, and the attention products.
    """
    backbone = model[0].auto_model
    linear = [m for m in backbone.encoder.modules() if isinstance(m, torch.nn.Linear)]
    weights = sum(module.weight.numel() for module in linear)
    tokens = model.tokenizer(texts, truncation=True, max_length=model.max_seq_length)["input_ids"]
    lengths = np.array([len(ids) for ids in tokens], dtype=float)
    per_square = 4 * backbone.config.hidden_size * backbone.config.num_hidden_layers
    return float(2 * weights * lengths.sum() + per_square * np.square(lengths).sum())


@dataclass(frozen=True)
class Variant:
    """A way to embed the texts."""

    name: str
    dtype: torch.dtype
    embed: Callable[[], torch.Tensor]


def variants_of(
    models: dict[torch.dtype, SentenceTransformer], texts: list[str], batch_sizes: Sequence[int]
) -> list[Variant]:
    """`encode` in each precision and batch size, its defaults first; then this project in each
    precision, its own choice last.
    """

    def peer(model: SentenceTransformer, size: int) -> Callable[[], torch.Tensor]:
        return lambda: model.encode(
            texts, batch_size=size, convert_to_tensor=True, show_progress_bar=False
        )

    def ours(model: SentenceTransformer) -> Callable[[], torch.Tensor]:
        return lambda: encode(model, texts)

    peers = [
        Variant(f"encode, {str(dtype)[6:]}, batch {size}", dtype, peer(model, size))
        for dtype, model in models.items()
        for size in batch_sizes
    ]
    own = [
        Variant(f"this project, {str(dtype)[6:]}", dtype, ours(model))
        for dtype, model in models.items()
    ]
    return [*peers, *own]


def speeds(pairs: Pairs, rounds: int) -> dict[str, Any]:
    """Time every variant on the unique texts of `pairs`, and print a table."""
    device, collection = device_type(), pairs.collection
    both = [collection.query_texts(pairs.queries), collection.document_texts(pairs.documents)]
    texts = list(dict.fromkeys([*both[0], *both[1]]))
    place = {text: i for i, text in enumerate(texts)}
    queries, documents = (np.array([place[text] for text in side]) for side in both)
    models = {
        dtype: load_sentence_transformer(QUICKSTART_TEACHER, "teacher").to(dtype)
        for dtype in precisions(device)
    }
    variants = variants_of(models, texts, BATCH_SIZES[device])
    for model in models.values():
        model.encode(texts[:64], show_progress_bar=False)  # the first call is slow
    seconds: dict[str, list[float]] = {variant.name: [] for variant in variants}
    scores: dict[str, np.ndarray] = {}
    for _ in range(rounds):
        for variant in variants:
            start = time.perf_counter()
            embeddings = variant.embed()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[variant.name].append(time.perf_counter() - start)
            unit = torch.nn.functional.normalize(embeddings.float().cpu(), dim=1).numpy()
            scores[variant.name] = (unit[queries] * unit[documents]).sum(axis=1)
    first, chosen = variants[0], variants[-1]
    difference = {name: np.abs(values - scores[first.name]) for name, values in scores.items()}
    flops = flops_of(models[torch.float32], texts)
    peaks = {dtype: matmul_peak(device, dtype) for dtype in models}
    median = {name: statistics.median(times) for name, times in seconds.items()}
    print(
        f"\n{len(pairs):,} pairs, {len(texts):,} unique texts, {flops / 1e12:.2f} TFLOP; medians "
        f"of {rounds} rounds; `encode` has the first row's settings by default"
    )
    print(
        f"{'variant':<40}{'pairs/s':>9}{'x default':>11}{'of peak':>9}{'mean diff':>11}"
        f"{'max diff':>10}"
    )
    for variant in variants:
        taken, gap = median[variant.name], difference[variant.name]
        print(
            f"{variant.name:<40}{len(pairs) / taken:>9.0f}{median[first.name] / taken:>11.2f}"
            f"{flops / taken / peaks[variant.dtype]:>9.1%}{gap.mean():>11.5f}{gap.max():>10.5f}"
        )
    for dtype, peak in peaks.items():
        print(f"matrix products reach {peak / 1e9:,.0f} GFLOP/s in {str(dtype)[6:]}")
    taken = median[chosen.name]
    best = min(median[v.name] for v in variants if v.name.startswith("encode"))
    return {
        "pairs": len(pairs),
        "texts": len(texts),
        "device": device,
        "cores": cpu_cores(),
        "precision": str(chosen.dtype)[6:],
        "pairs_per_second": round(len(pairs) / taken, 1),
        "x_default": round(median[first.name] / taken, 2),
        "x_best": round(best / taken, 2),
        "x_default_fp32": round(median[first.name] / median["this project, float32"], 2),
        "peak_share": round(flops / taken / peaks[chosen.dtype], 3),
        "mean_diff": round(float(difference[chosen.name].mean()), 6),
        "max_diff": round(float(difference[chosen.name].max()), 6),
    }


class CheapTeacher(EmbeddingTeacher):
    """Embeds a text by its bytes. A million pairs take minutes, and what is measured is everything
    around the teacher.
    """

    name = "cheap"
    identity = ("cheap",)
    precision = "float32"
    dimension = 32

    def embed(self, texts: list[str], advance: Advance | None = None) -> np.ndarray:
        """Unit vectors, the same for the same text."""
        filled = b"".join((text * 8).encode()[:128].ljust(128) for text in texts)
        values = np.frombuffer(filled, dtype=np.uint8).reshape(-1, 128)[:, ::4].astype(np.float32)
        if advance:
            advance(len(texts), 0)
        return self.checked(values, texts, "")


def synthetic(count: int, folder: Path) -> Collection:
    """`count` pairs of short unique texts, the last `HELD_OUT` of them held out."""
    train = count - HELD_OUT
    tables = {
        "queries": (
            TEXT_FEATURES["queries"],
            ({"text": f"{i * 7919:x} query"} for i in range(count)),
        ),
        "documents": (
            TEXT_FEATURES["documents"],
            (
                {"text": f"{i * 104729:x} document text", "searched": i >= train}
                for i in range(count)
            ),
        ),
        "judgements": (
            JUDGEMENT_FEATURES,
            (
                {
                    "pair_id": str(i), "query": i, "document": i, "grade": 1, "group": str(i),
                    "split": "train" if i < train else "test",
                }
                for i in range(count)
            ),
        ),
    }  # fmt: skip
    for name, (features, rows) in tables.items():
        write_table(rows, features, folder / f"{name}.arrow")
    split = {"train": train, "validation": 0, "test": HELD_OUT, "leaked": 0}
    record = CollectionRecord(str(count), Source("synthetic"), {}, split, {}, 0)
    return Collection(
        *(Dataset.from_file(str(folder / f"{name}.arrow")) for name in tables), record
    )


def memory_of(count: int, result: Any) -> None:
    """Score `count` synthetic pairs, and put the memory before, at the peak, and the seconds into
    `result`.
    """
    datasets.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        folder = RunFolder(Path(temporary) / "run")
        collection = synthetic(count, folder.pairs)
        recipe = read_recipe(["quickstart", "--run_dir", str(folder.path)])
        before = memory_mb()
        with peak_memory() as peak:
            start = time.perf_counter()
            score_collection(collection, CheapTeacher(), recipe, folder)
            result.put((before, before + peak(), time.perf_counter() - start))


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--dataset",
        choices=["pydocs", "qrecc"],
        default="pydocs",
        help="Default: the quickstart's texts.",
    )
    parser.add_argument("--dataset_path", help="The QReCC file.")
    parser.add_argument("--pairs", type=int, default=1500, help="How many pairs.")
    parser.add_argument("--rounds", type=int, default=3, help="Turns that each variant takes.")
    parser.add_argument(
        "--memory",
        action="store_true",
        help="Also score 10^5 and 10^6 synthetic pairs, and print the peak memory.",
    )
    line = parser.parse_args()
    datasets.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    with tempfile.TemporaryDirectory() as temporary:
        keys = {
            "run_dir": f"{temporary}/run",
            "dataset": line.dataset,
            "dataset_path": line.dataset_path or "none",
            "max_pairs": line.pairs,
        }
        recipe = read_recipe(["quickstart", *(f"--{k}={value}" for k, value in keys.items())])
        train = Run.open(recipe).collection.pairs("train")
        figures = speeds(train.take(np.arange(min(line.pairs, len(train)))), line.rounds)
    if line.memory:
        print(f"\n{'synthetic pairs':>16}{'before, MB':>12}{'peak, MB':>10}{'pairs/s':>10}")
        context = multiprocessing.get_context("spawn")
        for count in (10**5, 10**6):
            result = context.Queue()
            process = context.Process(target=memory_of, args=(count, result))
            process.start()
            before, peak, seconds = result.get()
            process.join()
            print(f"{count:>16,}{before:>12.0f}{peak:>10.0f}{count / seconds:>10.0f}")
            figures[f"peak_mb_{count}"] = round(peak)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
