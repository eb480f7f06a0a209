"""Scoring lists beside CrossEncoder.predict, on the same pairs in one run: `python
benchmarks/list_scoring.py MODEL --data BEIR_FOLDER`.

Each query has the documents that BM25 ranks best. Prints pairs/s of `predict` with its defaults
(float32, batches of 32), of `predict` at its best (the fastest precision, the best of several batch
sizes, which are tried first), and of this project's cross-encoder as it scores in a run; and how
far the scores are from those in float32. The variants take turns, and medians of `--rounds` count.
The last line is JSON.

`--profile` measures none of this: it prints which part of the processor's time each operation of
the model takes in batches with little padding, and what tokenising takes, on one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from sentence_transformers import CrossEncoder
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from hf_distill.candidates.mine import by_words
from hf_distill.compute.bm25 import BM25, Words
from hf_distill.compute.device import (
    device_type,
    encoding_batch_tokens,
    fast_precision,
    keep_freed_memory,
)
from hf_distill.compute.encode import batches_by_length
from hf_distill.evaluation.efficiency import silence_profiler
from hf_distill.evaluation.tasks import load_task
from hf_distill.recipe.read import read_recipe
from hf_distill.teachers.cross_encoder import CrossEncoderTeacher
from hf_distill.teachers.load import load_teacher
from hf_distill.training.hardware import with_precision

BATCHES = (16, 32, 64, 128)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

Pairs = list[tuple[str, str]]


def lists_of(data: str, queries: int, depth: int, seed: int) -> Pairs:
    """Queries of a task, each with the `depth` documents that BM25 finds."""
    task = load_task(data, "data")
    documents = list(task.documents.values())
    drawn = np.random.default_rng(seed).permutation(len(task.queries))[:queries]
    texts = [list(task.queries.values())[i] for i in drawn]
    rows = by_words(BM25(documents, Words.of(documents, "en")), texts, depth)
    return [
        (query, documents[i]) for query, row in zip(texts, rows, strict=True) for i in row if i >= 0
    ]


def predictor(model: CrossEncoder, batch: int) -> Callable[[Pairs], np.ndarray]:
    """`CrossEncoder.predict`: logits (n,) float32."""

    def predict(pairs: Pairs) -> np.ndarray:
        values = model.predict(
            pairs, batch_size=batch, activation_fn=torch.nn.Identity(), show_progress_bar=False
        )
        return np.asarray(values, dtype=np.float32).reshape(-1)

    return predict


def ours(name: str) -> CrossEncoderTeacher:
    """The model as a teacher of a run, in the precision that a run takes."""
    line = ["quickstart", "--teacher", name, "--teacher_kind", "cross-encoder"]
    recipe = read_recipe([*line, "--teacher_activation", "identity"])
    teacher = load_teacher(with_precision(recipe))
    assert isinstance(teacher, CrossEncoderTeacher)
    return teacher


def profile(teacher: CrossEncoderTeacher, pairs: Pairs) -> None:
    """Print where the time of scoring goes."""
    torch.set_num_threads(1)
    silence_profiler()
    model, tokenising, batches = teacher.model, 0.0, []
    for rows in batches_by_length(pairs, encoding_batch_tokens(model.device.type)):
        start = time.process_time()
        batches.append(model.preprocess([pairs[i] for i in rows]))
        tokenising += time.process_time() - start
    with torch.inference_mode():
        model(batches[0])  # the first call takes longer
        start = time.process_time()
        for features in batches:
            model(features)
        working = time.process_time() - start
        with torch_profile(activities=[ProfilerActivity.CPU]) as watched:
            for features in batches:
                model(features)
    took = {event.key: event.self_cpu_time_total for event in watched.key_averages()}
    whole = sum(took.values())
    tokens = sum(int(features["attention_mask"].sum()) for features in batches)
    print(f"{len(pairs):,} pairs, {tokens:,} tokens, {teacher.precision}, one thread")
    print(f"tokenising: {tokenising / len(pairs) * 1e3:.2f} ms a pair")
    print(f"the model:  {working / len(pairs) * 1e3:.2f} ms a pair, of which")
    for name in sorted(took, key=lambda name: -took[name])[:6]:
        print(f"    {took[name] / whole:.1%} {name}")


def seconds(score: Callable[[Pairs], np.ndarray], pairs: Pairs) -> tuple[float, np.ndarray]:
    """How long it takes, and the scores."""
    start = time.perf_counter()
    values = score(pairs)
    return time.perf_counter() - start, values


def main(argv: list[str] | None = None) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="A cross-encoder: a folder or a Hub id.")
    parser.add_argument("--data", required=True, help="A BEIR folder.")
    parser.add_argument("--queries", type=int, default=64, help="Default: 64.")
    parser.add_argument("--depth", type=int, default=16, help="Documents of a list. Default: 16.")
    parser.add_argument("--rounds", type=int, default=3, help="Default: 3.")
    parser.add_argument("--profile", action="store_true", help="Where the time goes.")
    line = parser.parse_args(argv)
    keep_freed_memory()
    pairs = lists_of(line.data, line.queries, line.depth, 0)
    if line.profile:
        profile(ours(line.model), pairs)
        return
    dtype = DTYPES[fast_precision(device_type())]
    fast = CrossEncoder(line.model, model_kwargs={"torch_dtype": dtype})
    some = pairs[: max(64, len(pairs) // 4)]
    tried = {batch: seconds(predictor(fast, batch), some)[0] for batch in BATCHES}
    best = min(tried, key=lambda batch: tried[batch])
    plain = CrossEncoder(line.model, model_kwargs={"torch_dtype": torch.float32})
    variants: dict[str, Callable[[Pairs], np.ndarray]] = {
        "predict, defaults": predictor(plain, 32),
        f"predict, {str(dtype).removeprefix('torch.')}, batches of {best}": predictor(fast, best),
        "hf_distill": ours(line.model).score,
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    scores: dict[str, np.ndarray] = {}
    for score in variants.values():
        score(pairs[:32])  # the first call takes longer
    for _ in range(line.rounds):
        for name, score in variants.items():
            taken, scores[name] = seconds(score, pairs)
            times[name].append(taken)
    exact = scores["predict, defaults"]
    rates = {name: len(pairs) / statistics.median(values) for name, values in times.items()}
    last = list(rates.values())[-1]
    print(f"{len(pairs):,} pairs of {line.queries} lists, {torch.get_num_threads()} threads\n")
    print("| | pairs/s | hf_distill is faster by | off from float32, mean |")
    print("|---|---:|---:|---:|")
    for name, rate in rates.items():
        off = float(np.abs(scores[name] - exact).mean())
        print(f"| {name} | {rate:,.0f} | {last / rate:.2f} | {off:.4f} |")
    faster = [round(last / rate, 2) for rate in list(rates.values())[:2]]
    print(
        json.dumps({"pairs": len(pairs), "faster_than_default": faster[0], "than_best": faster[1]})
    )


if __name__ == "__main__":
    main()
