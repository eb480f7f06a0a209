"""Teacher scoring beside SentenceTransformer.encode, on the same texts in one run: `python
benchmarks/scoring.py [--dataset ...]`.

Prints pairs/s of `encode` at its defaults, at its best batch size and precision, and of this
project as it comes; the share of the measured matrix-multiply peak; the difference of scores from
float32. With `--memory`, also the peak memory of a whole scoring stage on 10^5 and 10^6 synthetic
pairs. Ends with one line of JSON. Turns are taken, and medians of `--rounds` reported: machines are
noisy.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from matmul import matmul_peak
from sentence_transformers import SentenceTransformer

from hf_distill.compute.device import (
    bfloat16_is_faster,
    cpu_cores,
    device_type,
    use_all_cores,
)
from hf_distill.compute.encode import (
    Advance,
    encode,
)
from hf_distill.compute.models import (
    QUICKSTART_TEACHER,
    load_sentence_transformer,
)
from hf_distill.data.collection import (
    CORPUS_FEATURES,
    LEAKED_FEATURES,
    PAIR_FEATURES,
    TEST_FEATURES,
    PairData,
    Source,
    dataset_of,
)
from hf_distill.data.load import load_pair_data
from hf_distill.recipe.arguments import (
    DataArguments,
    TeacherArguments,
)
from hf_distill.run.folder import RunFolder
from hf_distill.scoring.scores import score_pairs
from hf_distill.teachers.base import (
    SCALES,
    Scale,
)

BATCH_SIZES = {"cpu": (32, 128), "cuda": (32, 128, 512)}


def flops_of(model: SentenceTransformer, texts: list[str]) -> float:
    """Of one forward pass over `texts` without padding: two for each weight of a linear layer and
    token, and the attention products.
    """
    backbone = model[0].auto_model
    weights = sum(
        module.weight.numel()
        for module in backbone.encoder.modules()
        if isinstance(module, torch.nn.Linear)
    )
    lengths = np.array(
        [
            len(ids)
            for ids in model.tokenizer(texts, truncation=True, max_length=model.max_seq_length)[
                "input_ids"
            ]
        ]
    )
    attention = (
        4
        * backbone.config.hidden_size
        * backbone.config.num_hidden_layers
        * np.square(lengths.astype(float)).sum()
    )
    return float(2 * weights * lengths.sum() + attention)


def normalised(embeddings: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(embeddings.float().cpu(), dim=1).numpy()


@dataclass(frozen=True)
class Variant:
    """A way to embed the texts."""

    name: str
    dtype: torch.dtype
    run: Callable[[], torch.Tensor]


def speeds(pairs: list[tuple[str, str]], rounds: int) -> dict[str, Any]:
    """Time every variant on the unique texts of `pairs`; print a table."""
    device = device_type()
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    place = {text: i for i, text in enumerate(texts)}
    models = {torch.float32: load_sentence_transformer(QUICKSTART_TEACHER, "teacher")}
    fast = torch.float16 if device == "cuda" else torch.bfloat16
    if bfloat16_is_faster(device):
        models[fast] = load_sentence_transformer(QUICKSTART_TEACHER, "teacher").to(fast)
        models[torch.bfloat16] = models.get(torch.bfloat16) or load_sentence_transformer(
            QUICKSTART_TEACHER, "teacher"
        ).to(torch.bfloat16)

    def peer(model: SentenceTransformer, size: int) -> Callable[[], torch.Tensor]:
        return lambda: model.encode(
            texts, batch_size=size, convert_to_tensor=True, show_progress_bar=False
        )

    def ours(model: SentenceTransformer) -> Callable[[], torch.Tensor]:
        return lambda: encode(model, texts)

    variants = [
        Variant(
            f"encode, {str(dtype)[6:]}, batch {size}{' (default)' if dtype == torch.float32 and size == 32 else ''}",
            dtype,
            peer(model, size),
        )
        for dtype, model in models.items()
        for size in BATCH_SIZES[device]
    ]
    variants += [
        Variant(f"this project, {str(dtype)[6:]}", dtype, ours(model))
        for dtype, model in models.items()
    ]
    for model in models.values():
        model.encode(texts[:64], show_progress_bar=False)
    seconds: dict[str, list[float]] = {variant.name: [] for variant in variants}
    scores: dict[str, np.ndarray] = {}
    rows = np.array([[place[query], place[document]] for query, document in pairs])
    for _ in range(rounds):
        for variant in variants:
            start = time.perf_counter()
            made = variant.run()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[variant.name].append(time.perf_counter() - start)
            values = normalised(made)
            scores[variant.name] = (values[rows[:, 0]] * values[rows[:, 1]]).sum(axis=1)
    exact = scores[variants[0].name]
    flops = flops_of(models[torch.float32], texts)
    peaks = {dtype: matmul_peak(device, dtype) for dtype in models}
    median = {name: statistics.median(times) for name, times in seconds.items()}
    default = median[variants[0].name]
    print(
        f"\n{len(pairs):,} pairs, {len(texts):,} unique texts, {flops / 1e12:.2f} TFLOP; medians of {rounds} rounds"
    )
    print(
        f"{'variant':<40}{'pairs/s':>9}{'x default':>11}{'of peak':>9}{'mean diff':>11}{'max diff':>10}"
    )
    for variant in variants:
        difference = np.abs(scores[variant.name] - exact)
        share = flops / median[variant.name] / peaks[variant.dtype]
        print(
            f"{variant.name:<40}{len(pairs) / median[variant.name]:>9.0f}{default / median[variant.name]:>11.2f}{share:>9.1%}"
            f"{difference.mean():>11.5f}{difference.max():>10.5f}"
        )
    for dtype, peak in peaks.items():
        print(f"matrix products reach {peak / 1e9:,.0f} GFLOP/s in {str(dtype)[6:]}")
    best = min(median[v.name] for v in variants if v.name.startswith("encode"))
    chosen = variants[-1]
    difference = np.abs(scores[chosen.name] - exact)
    return {
        "pairs": len(pairs),
        "texts": len(texts),
        "device": device,
        "cores": cpu_cores(),
        "precision": str(chosen.dtype)[6:],
        "pairs_per_second": round(len(pairs) / median[chosen.name], 1),
        "x_default": round(default / median[chosen.name], 2),
        "x_best": round(best / median[chosen.name], 2),
        "x_default_fp32": round(default / median["this project, float32"], 2),
        "peak_share": round(flops / median[chosen.name] / peaks[chosen.dtype], 3),
        "mean_diff": round(float(difference.mean()), 6),
        "max_diff": round(float(difference.max()), 6),
    }


@dataclass
class CheapTeacher:
    """Embeds by a hash, so that a million pairs are scored in minutes: what is measured is
    everything around the teacher.
    """

    name: str = "cheap"
    fingerprint: str = "cheap"
    precision: str = "float32"
    scale: Scale = SCALES["cosine"]
    dimension: int = 32

    def prompted(self, text: str, kind: str) -> str:
        """No prompts."""
        return text

    def embed(self, texts: list[str], advance: Advance | None = None) -> np.ndarray:
        """Random unit vectors, the same for the same text."""
        values = np.array(
            [
                np.frombuffer((text * 8).encode()[:128].ljust(128), dtype=np.uint8)[::4]
                for text in texts
            ],
            dtype=np.float32,
        )
        if advance:
            advance(len(texts), 0)
        return values / np.linalg.norm(values, axis=1, keepdims=True)


def synthetic_pairs(count: int, cache: Path) -> PairData:
    """`count` pairs of short unique texts, of which a thousand are held out."""

    def rows(start: int, stop: int, **more: Any) -> Iterator[dict[str, Any]]:
        for i in range(start, stop):
            yield {
                "pair_id": str(i),
                "query": f"{i * 7919:x} query",
                "document": f"{i * 104729:x} document text",
                "group": str(i),
                **more,
            }

    test = dataset_of(rows(0, 1000, relevance=1), TEST_FEATURES, cache, "test")
    corpus = dataset_of(
        ({"document_id": r["pair_id"], "document": r["document"]} for r in rows(0, 1000)),
        CORPUS_FEATURES,
        cache,
        "corpus",
    )
    return PairData(
        train=dataset_of(rows(1000, count), PAIR_FEATURES, cache, "train"),
        validation=dataset_of(rows(0, 0), PAIR_FEATURES, cache, "validation"),
        test=test,
        leaked=dataset_of(rows(0, 0), LEAKED_FEATURES, cache, "leaked"),
        corpus=corpus,
        source=Source("synthetic"),
        counts={},
        key=str(count),
    )


def _memory_mb(field: str) -> float:
    line = next(
        row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(field)
    )
    return int(line.split()[1]) / 1024


def memory_of(count: int, result: Any) -> None:
    """Score `count` synthetic pairs and note the peak of anonymous memory (pages of mapped files
    can be dropped at any time).
    """
    datasets.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        folder = RunFolder(Path(temporary) / "run")
        data = synthetic_pairs(count, folder.cache)
        peak, done = [0.0], threading.Event()
        before = _memory_mb("RssAnon")

        def watch() -> None:
            while not done.wait(0.05):
                peak[0] = max(peak[0], _memory_mb("RssAnon"))

        watcher = threading.Thread(target=watch)
        watcher.start()
        start = time.perf_counter()
        score_pairs(data, CheapTeacher(), folder, TeacherArguments(shard_size=16384))
        seconds = time.perf_counter() - start
        done.set()
        watcher.join()
        result.put((before, peak[0], seconds))


def main() -> None:
    """Measure and say it."""
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
        help="Also score 10^5 and 10^6 synthetic pairs, and report peak memory.",
    )
    line = parser.parse_args()
    datasets.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    use_all_cores(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = RunFolder(Path(temporary) / "run")
        data = load_pair_data(
            DataArguments(
                dataset=line.dataset, dataset_path=line.dataset_path, max_pairs=line.pairs
            ),
            42,
            folder,
        )
        train = data.train.select(range(min(line.pairs, len(data.train))))
        figures = speeds(list(zip(train["query"], train["document"], strict=True)), line.rounds)
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
